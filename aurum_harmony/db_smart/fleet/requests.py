"""Tenants in the code of the application: whose a request is, and whether that database is ready for this code."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flask import Flask, Response, current_app
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from ..errors import ConfigError, DatabaseBehind, DatabaseUnreachable, DbSmartError
from ..notices import logger_of
from ..session.rebind import Block, bound, keep_for_request, of_request
from ..settings import Settings
from ..web.answers import refused
from ..web.readiness import Readiness, What
from .ledger import FAILED, UP_TO_DATE, Result
from .tenants import Crew, Tenant, TenantGone, check_name

if TYPE_CHECKING:
    from .fleet import Fleet

_logger = logger_of(__name__)

#: How many tenants a process migrates at a time because they were used.
_AT_A_TIME = 4
#: After how long a tenant that could not be made ready is tried again, seconds.
_AGAIN_SECONDS = 5.0


class UnknownTenant(DbSmartError):
    """There is no tenant of a name."""


class TenantNotReady(DbSmartError):
    """A tenant is being migrated."""


class Gate:
    """Lets the code of an application have the database of a tenant, once it is known to be ready.

    :param patience: how long a request waits for that, seconds.
    :param keep: how many tenants a process keeps connections to that are not in use.
    """

    def __init__(self, fleet: Fleet, patience: float, keep: int) -> None:
        self._fleet = fleet
        self._patience = patience
        self._lock = threading.Lock()
        #: Names of the tenants that were found ready in this process.
        self._ready: set[str] = set()
        #: Those that are being migrated, or looked at.
        self._bringing: dict[str, Future[None]] = {}
        #: Why those failed that were tried, and when they are tried again, seconds of the monotonic clock.
        self._failures: dict[str, tuple[DbSmartError, float]] = {}
        self._crew: Crew | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._engines = _Engines(keep)
        _all.add(self)

    # -- requests

    def register(self, app: Flask) -> None:
        """Have each request use its tenant, once there is a reader; behind the hook of DbSmart, before all others."""
        hooks = app.before_request_funcs.setdefault(None, [])
        ours = [place for place, hook in enumerate(hooks) if getattr(hook, "__self__", None) is self._fleet.smart]
        hooks.insert(ours[0] + 1 if ours else 0, self._begin)
        teardown = app.do_teardown_request

        def end(*args: Any, **options: Any) -> None:
            """Also where a function of the application for that fails, as the next request of the thread must not have
            this tenant; and after all of them."""
            try:
                teardown(*args, **options)
            finally:
                self._end()

        app.do_teardown_request = end  # type: ignore[method-assign]

    def _begin(self) -> Response | None:
        reader = self._fleet.reader
        name = None if reader is None else reader()
        if name is None:
            return None
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        with ExitStack() as stack:
            try:
                keep_for_request(stack.enter_context(self.open(app, name, self._patience)))
            except UnknownTenant:
                return Response("There is no such tenant.\n", 404, mimetype="text/plain")
            except DbSmartError as error:
                return self._refused(app, error)
            of_request()["db_smart_tenant"] = stack.pop_all()
        return None

    def _refused(self, app: Flask, error: DbSmartError) -> Response:
        if isinstance(error, TenantNotReady):
            return refused(
                app, Readiness("migrating", reason="The database of this tenant is being brought up to date.")
            )
        state: What = "behind" if isinstance(error, DatabaseBehind) else "failed"
        _logger.error("db-smart: %s", error.message)
        return refused(app, Readiness(state, retry_after=int(_AGAIN_SECONDS), reason="This tenant is not ready."))

    def _end(self) -> None:
        stack = of_request().pop("db_smart_tenant", None)
        if stack is not None:
            stack.close()

    # -- the database of a tenant

    @contextmanager
    def open(self, app: Flask, name: str, patience: float | None) -> Iterator[Block]:
        """See :meth:`~.fleet.Fleet.use`.

        :param patience: how long to wait while it is migrated, seconds; ``None`` for as long as that takes.
        :raises UnknownTenant: there is none of that name, or it can be none.
        :raises TenantNotReady: it took longer.
        """
        try:
            check_name(name)
        except ConfigError as error:
            raise UnknownTenant(f"There is no such tenant. {error.message}") from None
        if name not in self._ready:
            self._make_ready(app, name, patience)
        crew = self._crew_of(app)
        db, key = self._fleet.smart.database(app), crew.places.key
        with self._engines.of(name, lambda: crew.places.tenant(name)) as engine, bound(app, db, key, engine) as block:
            yield block

    def _make_ready(self, app: Flask, name: str, patience: float | None) -> None:
        """Have the tenant looked at, once for all who ask meanwhile, and wait for that."""
        with self._lock:
            error, again = self._failures.get(name, (None, 0.0))
            if error is not None and time.monotonic() < again:
                if self._fleet.strategy == "progressive" and not isinstance(error, TenantGone):  # it is used as it is
                    return
                raise error
            future = self._bringing.get(name)
            if future is None:
                if self._pool is None:
                    one = self._fleet.strategy == "progressive"
                    self._pool = ThreadPoolExecutor(1 if one else _AT_A_TIME, "db-smart-tenants")
                future = self._bringing[name] = Future()
                mine = True
            else:
                mine = False
        if mine:
            try:
                self._look(app, name, future, patience)
            except BaseException as error:
                self._over(name, future, error)
        try:
            future.result(patience)
        except NotYet:
            raise TenantNotReady(
                f"The tenant {name!r} is being migrated, for longer than {patience:g} s. Try again soon."
            ) from None

    def forget(self, name: str) -> None:
        """See :meth:`~.fleet.Fleet.forget`."""
        with self._lock:
            self._ready.discard(name)
            self._failures.pop(name, None)
        self._engines.forget(name)

    def close(self) -> None:
        """See :meth:`~.fleet.Fleet.close`."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        self._engines.close()

    def after_fork(self) -> None:
        """Have a forked process begin with threads, locks and connections of its own."""
        self._lock, self._bringing = threading.Lock(), {}
        self._crew = self._pool = None
        self._engines.after_fork()

    def _look(self, app: Flask, name: str, future: Future[None], patience: float | None) -> None:
        """Ask the tenant and the ledger one question each, and see to a tenant that is not what they say.

        :param patience: how long a server that has no connection left, or a ledger that is locked, is asked again.
        :raises DbSmartError: it is not to be used.
        """
        crew, ledger = self._crew_of(app), self._fleet.ledger(app)
        # Asked of the application: the ledger still has those that were tenants once.
        if not self._fleet.is_tenant(app, name):
            raise UnknownTenant(f"There is no tenant {name!r}.")
        deadline = None if patience is None else time.monotonic() + patience
        ledger.database.deadline = deadline
        row, tenant = ledger.row(name), crew.places.tenant(name)
        tenant.deadline = deadline
        try:
            crew.check_file(tenant)
            planner = crew.planner(tenant)
            state = planner.state(tenant)
            same = row is not None and state is not None and row.database_id == state.database_id
            if same and state is not None and state.source == planner.source(state.heads):
                self._over(name, future)
                return
            if row is not None and row.database_id and not same:
                _logger.warning(
                    "db-smart: the database of the tenant %r is another one than that which was migrated last: it was "
                    "restored, or its place has changed",
                    name,
                )
            crew.load()
            with app.app_context():
                plan = planner.ask(tenant)
        except DatabaseUnreachable as error:
            raise DatabaseUnreachable(tenant.without_url(error.message)) from None
        finally:
            tenant.close()
        if not plan.behind and state is not None:
            found = Result(name, UP_TO_DATE, database_id=state.database_id, stamp=state.stamp)
            ledger.make()
            ledger.write([found], crew.noted, Settings(app).release)
            self._over(name, future)
            return
        waits = all(item.migration.options.contract for item in plan.pending)
        if not plan.blocks and (waits or self._fleet.strategy == "full"):  # no boot would wait for that
            self._over(name, future)
            return
        if self._fleet.strategy == "full":
            with suppress(DatabaseUnreachable, DBAPIError):  # '--only' looks at it all the same
                ledger.look_again(name)
            raise DatabaseBehind(f"The tenant {name!r} is behind this code. Run 'flask db-smart fleet migrate'.")
        assert self._pool is not None
        if self._fleet.strategy == "progressive":
            future.set_result(None)  # before it can be over
        self._pool.submit(self._bring, app, name, future)

    def _bring(self, app: Flask, name: str, future: Future[None]) -> None:
        """Bring a tenant up to date, in a thread of its own."""
        try:
            crew, ledger = self._crew_of(app), self._fleet.ledger(app)
            result = crew.bring(name)
            ledger.make()
            ledger.write([result], crew.noted, Settings(app).release)
            if result.status == FAILED:
                raise DbSmartError(f"The tenant {name!r} could not be migrated: {result.error}")
        except BaseException as error:
            self._over(name, future, error)
        else:
            self._over(name, future)

    def _over(self, name: str, future: Future[None], error: BaseException | None = None) -> None:
        """Tell all who wait what has become of a tenant."""
        with self._lock:
            del self._bringing[name]
            self._failures.pop(name, None)
            if error is None:
                self._ready.add(name)
            elif isinstance(error, DbSmartError) and not isinstance(error, UnknownTenant):
                self._failures[name] = error, time.monotonic() + _AGAIN_SECONDS
        if future.done():  # of a tenant that is used meanwhile
            if error is not None:
                _logger.error("db-smart: %s", error)
        elif error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _crew_of(self, app: Flask) -> Crew:
        if self._crew is None:
            self._crew = self._fleet.crew(app)
        return self._crew


class _Engines:
    """The engines of the tenants that were used last; the others have no connections.

    :param most: how many of those that are not in use are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        #: By name: the tenant, and how many use it.
        self._kept: OrderedDict[str, tuple[Tenant, int]] = OrderedDict()

    @contextmanager
    def of(self, name: str, make: Callable[[], Tenant]) -> Iterator[Engine]:
        """The engine of a tenant, for the length of a block."""
        with self._lock:
            found = self._kept.get(name)
            if found is None:
                tenant = make()
                found = tenant, 0
            tenant, users = found
            self._kept[name] = tenant, users + 1
            self._kept.move_to_end(name)
        try:
            yield tenant.app_engine
        finally:
            with self._lock:
                if name in self._kept:  # else all were closed meanwhile
                    tenant, users = self._kept[name]
                    self._kept[name] = tenant, users - 1
                idle = [one for one, (_, users) in self._kept.items() if not users]
                gone = [self._kept.pop(one)[0] for one in idle[: max(0, len(self._kept) - self._most)]]
            for one in gone:
                one.close()

    def forget(self, name: str) -> None:
        """Close the connections to a tenant that are not in use, and keep none."""
        with self._lock:
            tenant, _ = self._kept.pop(name, (None, 0))
        if tenant is not None:
            tenant.close()

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            kept, self._kept = self._kept, OrderedDict()
        for tenant, _ in kept.values():
            tenant.close()

    def after_fork(self) -> None:
        """Leave the connections to the process before."""
        self._lock = threading.Lock()
        for tenant, _ in self._kept.values():
            if tenant.schema is None:  # else they are the application's
                tenant.app_engine.dispose(close=False)


_all: WeakSet[Gate] = WeakSet()


def _after_fork() -> None:
    for one in list(_all):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
