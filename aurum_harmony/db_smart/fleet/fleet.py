"""A fleet of tenants in an application: how it is set up, and a run over all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from flask import Flask, current_app, has_app_context
from sqlalchemy.engine import URL

from ..boot.planner import Planner
from ..errors import ConfigError, DbSmartError, Interrupted, WrongUsage
from ..extension import DbSmart
from ..interrupt import interrupt, interruptible
from ..session.rebind import unbound
from ..settings import Settings
from ..store.database import Database
from . import remote
from .create import can_be_copied, make
from .ledger import APPLIED, FAILED, PENDING, UP_TO_DATE, WAITING, Ledger, Result
from .remote import EXTENSION
from .requests import Gate
from .run import Course, FleetRun, Limits, Names, canary_of, tenants
from .tenants import Crew, Places, check_name, said, server_of

C = TypeVar("C", bound=Callable[..., Any])
Canary = int | float | str | None
#: Told of a run when its tenants are counted, and of each result.
Listener = Callable[[FleetRun, "Result | None"], None]

STRATEGIES = ("full", "on_request", "progressive")
#: How many tenants are at work at a time. What takes time is the server, not this process.
_WORKERS = 8
#: How many groups are named where none is meant that there is.
_MOST_SHOWN = 20
#: Where ``app.extensions`` has what lets its code have tenants.
_GATE = "db_smart_fleet_gate"


class Fleet:
    """Many databases with the same migrations, one for each tenant.

    ``Fleet(smart, tenants=names, url=url_of)``, after ``DbSmart(app, db, …)``; or :meth:`init_app` later. It stands at
    ``app.extensions["db_smart_fleet"]``. Nothing is asked before it is used.

    :param tenants: gives the names of the tenants, as an iterator if they are many; called in an application context.
    :param url: gives the URL of the database of a tenant by its name.
    :param schema: in its place: gives the PostgreSQL schema of a tenant, in the database of the bind.
    :param bind: the name of the database of the application in whose place those of the tenants stand: ``"default"``
        or a key of ``SQLALCHEMY_BINDS``. They get its migrations and its models, and are reached with its options.
    :param control: the name of the database that has the ledger.
    :param strategy: ``"full"``: a command migrates all, and a tenant that is behind is not served. ``"on_request"``: a
        tenant is migrated at its first use. ``"progressive"``: so too, but it is used meanwhile, as it is.
    :param groups: gives the group, or the groups, of a tenant by its name, for :meth:`migrate`; ``None`` for no group.
    :param canary: how many tenants are migrated first, see :meth:`migrate`.
    :param template: the name of a tenant of which :meth:`create` makes copies.
    :param patience: how long a request waits for its tenant to be migrated, seconds.
    :param keep: how many tenants a process keeps connections to that are not in use.
    :raises ConfigError: these cannot be used together.
    """

    def __init__(
        self,
        smart: DbSmart,
        *,
        tenants: Callable[[], Iterable[str]],
        url: Callable[[str], str | URL] | None = None,
        schema: Callable[[str], str] | None = None,
        bind: str = "default",
        control: str = "default",
        strategy: str = "full",
        groups: Callable[[str], str | Collection[str] | None] | None = None,
        canary: Canary = None,
        template: str | None = None,
        patience: float = 5.0,
        keep: int = 64,
    ) -> None:
        if (url is None) == (schema is None):
            raise ConfigError("Fleet needs url=… or schema=…, and not both: where the database of a tenant is.")
        if strategy not in STRATEGIES:
            raise ConfigError(f"Fleet(strategy={strategy!r}): it must be one of {', '.join(STRATEGIES)}.")
        self.smart = smart
        self._tenants = tenants
        self._url = url
        self._schema = schema
        self._bind = bind
        self._control = control
        self.strategy = strategy
        self._groups = groups
        self._canary = canary
        self.template = template
        self._patience = patience
        self._keep = keep
        #: Gives the name of the tenant of a request.
        self.reader: Callable[[], str | None] | None = None
        for app in smart.applications:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the fleet on an application on which its DbSmart is.

        :raises ConfigError: the application has another fleet.
        """
        if EXTENSION in app.extensions:
            raise ConfigError(
                "A fleet is already registered on this application; use app.extensions['db_smart_fleet']."
            )
        app.extensions[EXTENSION] = self
        # Of each application its own: they may have other databases.
        app.extensions[_GATE] = Gate(self, self._patience, self._keep)
        app.extensions[_GATE].register(app)

    def migrate(
        self,
        executor: Executor | None = None,
        *,
        workers: int | None = None,
        per_server: int | None = None,
        stop_after: int | None = None,
        only: Collection[str] = (),
        group: str | None = None,
        failed: bool = False,
        every: bool = False,
        canary: Canary = None,
        factory: str | None = None,
        listener: Listener | None = None,
    ) -> FleetRun:
        """Bring the tenants up to date. One that fails stops no other.

        What the ledger has as up to date is not looked at, unless it is named. Where that is all, nothing is written
        and nobody kept out.

        :param executor: any of :mod:`concurrent.futures`, also that of Dask; by default threads of this process. Other
            processes get names, and make the application by ``factory``.
        :param workers: how many tenants are at work at a time.
        :param per_server: how many of them on one server, by host and port. A run on a tenant has one connection, and
            for moments one or two more.
        :param stop_after: after how many failures no other tenant is begun.
        :param only: names of tenants, which are looked at whatever the ledger says; of the others none is.
        :param group: only those of this group.
        :param failed: only those whose last run failed.
        :param every: look at those too that the ledger has as up to date.
        :param canary: so many (``10``), or such a part of those that are pending (``0.05``, ``"5%"``), are migrated
            first; if one of them fails, no other one is begun.
        :param factory: the application as ``flask --app`` takes it, for an executor of other processes.
        :param listener: called with the run and ``None`` when the tenants are counted, then with each result.
        :raises LockTimeout: another run is at it.
        :raises LeaseLost: this process was stopped for so long that another run has taken over.
        :raises Interrupted: SIGTERM or Ctrl-C; the tenants that were at work are rolled back.
        :raises DbSmartError: the migrations cannot be loaded, the ledger cannot be read, or there is no such tenant.
        """
        for what, number in (("workers", workers), ("per_server", per_server), ("stop_after", stop_after)):
            if number is not None and number < 1:
                raise WrongUsage(f"{what} must be at least 1, not {number}. Nothing was changed.")
        app, started = self._app(), time.perf_counter()
        tell = listener or (lambda run, result: None)
        planner = self._planner(app)
        crew, ledger = self._crew(app, planner), self.ledger(app)
        run, names = FleetRun(), Names()
        try:
            self._list(app, run, names, ledger, crew.noted, set(only), group, failed, every)
            tell(run, None)
            if names.count:
                first = canary_of(self._canary if canary is None else canary, names.count)
                limits = Limits(workers or _workers_of(executor), per_server)
                with ledger.held(), _submitting(crew, executor, factory, limits) as submit:
                    course = Course(
                        run,
                        submit,
                        lambda name: server_of(crew.places.url(name)),
                        ledger,
                        crew.noted,
                        planner.settings.release,
                        limits,
                        lambda result: tell(run, result),
                        lambda: _ended(executor),
                    )
                    _go(course, run, iter(names), first, stop_after)
        finally:
            names.close()
            run.duration = time.perf_counter() - started
        return run

    def _list(
        self,
        app: Flask,
        run: FleetRun,
        names: Names,
        ledger: Ledger,
        source: str,
        only: set[str],
        group: str | None,
        failed: bool,
        every: bool,
    ) -> None:
        """Count the tenants that are meant, and note those that are to be looked at."""
        if group is not None and self._groups is None:
            raise WrongUsage("There are no groups: Fleet(groups=…) gives those of a tenant. Nothing was changed.")
        # Who names tenants has a reason to have them looked at, whatever the ledger says.
        head, missing = set() if only or every else ledger.at_head(source), set(only)
        broken = {row.name for row in ledger.failed()} if failed else set()
        with unbound(app):
            found = self._names()
            if only or failed or group is not None:
                missing.difference_update(found)
                if group is not None:
                    found = self._in_group(found, group)
                found = [name for name in found if (not only or name in only) and (not failed or name in broken)]
        if missing:
            raise WrongUsage(f"There is no tenant {min(missing)!r}. Nothing was changed.")
        for name in found:
            if name not in head:
                check_name(name)
                names.add(name)
        run.total, run.pending = len(found), names.count
        run.counts[UP_TO_DATE] = run.total - run.pending

    def _names(self) -> Collection[str]:
        """The names of all tenants, as the application gives them, each once.

        :raises DbSmartError: it cannot.
        """
        with self._telling_names():
            return dict.fromkeys(self._tenants())

    @contextmanager
    def _telling_names(self) -> Iterator[None]:
        """Have the code of the application tell names.

        :raises DbSmartError: it cannot.
        """
        try:
            yield
        except DbSmartError:
            raise
        except Exception as error:  # of the code of the application
            raise DbSmartError(
                f"Fleet(tenants=…) cannot tell the names of the tenants: {said(error)}. Nothing was changed. If their "
                "table is missing, 'flask db-smart migrate' brings the application's own databases up to date."
            ) from error

    def _in_group(self, names: Collection[str], group: str) -> list[str]:
        """Those of all tenants that are in a group.

        :raises WrongUsage: none of them is.
        """
        groups, found = set[str](), []
        for name in names:
            of_name = self._groups_of(name)
            groups |= of_name
            if group in of_name:
                found.append(name)
        if names and not found:
            there = sorted(map(repr, groups)) or ["none"]
            more = f" and {len(there) - _MOST_SHOWN} more" if len(there) > _MOST_SHOWN else ""
            raise WrongUsage(
                f"No tenant is in the group {group!r}. There are: {', '.join(there[:_MOST_SHOWN])}{more}. Nothing was "
                "changed."
            )
        return found

    def _groups_of(self, name: str) -> set[str]:
        """The groups that a tenant is in."""
        assert self._groups is not None
        try:
            found = self._groups(name)
            return {found} if isinstance(found, str) else set(found or ())
        except Exception as error:  # of the code of the application
            raise DbSmartError(
                f"Fleet(groups=…) cannot tell the group of the tenant {name!r}: {said(error)}. Nothing was changed."
            ) from error

    def status(self) -> dict[str, int]:
        """How many tenants there are, and how they are by the ledger alone; no tenant is opened. One query.

        :returns: ``total``, ``up_to_date``, ``waiting`` (a contract step does, and that is all), ``pending`` (another
            release was applied), ``failed`` (the last run on it), ``new`` (none was applied) and ``gone`` (in the
            ledger, but no tenant any more).
        :raises DbSmartError: the ledger cannot be read, or the migrations cannot be found.
        """
        app = self._app()
        known = self.ledger(app).known(self.crew(app).noted)
        found = dict.fromkeys(("total", UP_TO_DATE, WAITING, PENDING, FAILED, "new", "gone"), 0)
        with unbound(app):
            for name in self._names():
                found["total"] += 1
                found[known.pop(name, "new")] += 1
        found["gone"] = len(known)
        return found

    def failed(self) -> Iterator[dict[str, Any]]:
        """The tenants of which the last run failed: name, error, attempts, when (UTC), and of which release."""
        for row in self.ledger(self._app()).failed():
            yield {
                "name": row.name,
                "error": row.error,
                "attempts": row.attempts,
                "at": f"{row.at}+00:00",
                "release": row.release,
            }

    def create(self, name: str) -> None:
        """Make the database, or the schema, of a new tenant, up to date.

        With a template it is a copy of that, with its rows, where tenants are SQLite files or PostgreSQL databases of
        one server; the template is brought up to date first. Else all migrations run on an empty one.

        :param name: which ``tenants`` need not give yet.
        :raises DbSmartError: it is there already, and is left as it is; or it cannot be made or migrated.
        """
        app = self._app()
        crew, ledger = self.crew(app), self.ledger(app)
        crew.load()
        tenant, template = crew.places.tenant(name), None
        results = []
        try:
            if self.template is not None and can_be_copied(tenant):
                found = crew.bring(self.template)
                results.append(found)
                if found.error is not None:
                    raise DbSmartError(f"The template {self.template!r} cannot be migrated: {found.error}")
                template = crew.places.tenant(self.template)
            make(crew.places, tenant, template)
        finally:
            for one in (tenant, template):
                if one is not None:
                    one.close()
        ledger.make()
        ledger.forget(name)  # what it says is of a database that is not there any more
        result = crew.bring(name)
        ledger.write([*results, result], crew.noted, Settings(app).release)
        if result.error is not None:
            raise DbSmartError(
                f"The database of the tenant {name!r} is made, but could not be migrated: {result.error} "
                f"'flask db-smart fleet migrate --only {name}' tries it again, once it is a tenant."
            )

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Let ``db.session`` and the engine of the bind be those of a tenant, in this thread or task.

        The block has a session of its own, of which what is not committed is rolled back at its end. At the first use
        of a tenant in this process its database is asked one question, and the strategy decides what a tenant gets
        that is behind.

        :raises UnknownTenant: there is no tenant of that name.
        :raises DatabaseBehind: it is behind, and ``strategy`` is ``"full"``.
        :raises DbSmartError: it cannot be reached, or could not be migrated.
        """
        app = self._app()
        with app.extensions[_GATE].open(app, name, None):
            yield

    def tenant_from_request(self, function: C) -> C:
        """Have each request use a tenant, whose name a function gives: a decorator.

        It is called without argument before each request; ``None`` is for a request of no tenant. An unknown tenant is
        answered with status 404, one that is not ready with 503 and ``Retry-After``.
        """
        self.reader = function
        return function

    def forget(self, name: str) -> None:
        """Forget a tenant that is none any more: its row of the ledger, and its connections in this process.

        Its database is left as it is.

        :param name: which ``tenants`` does not give any more.
        """
        app = self._app()
        self.ledger(app).forget(name)
        app.extensions[_GATE].forget(name)

    def close(self) -> None:
        """Wait for the tenants that are being migrated because they were used, and close all their connections."""
        for app in self._applications():
            app.extensions[_GATE].close()

    def is_tenant(self, app: Flask, name: str) -> bool:
        """Whether there is a tenant of a name; looks through the names until it is found."""
        with unbound(app), self._telling_names():
            return any(one == name for one in self._tenants())

    def ledger(self, app: Flask) -> Ledger:
        """The ledger.

        :raises ConfigError: the application does not have the database that it is in.
        """
        return Ledger(self._of_application(app, self._control, "control"), Settings(app).lock.lease)

    def _of_application(self, app: Flask, name: str, what: str) -> Database:
        known = self.smart.planner(app).databases
        if name not in known:
            raise ConfigError(
                f"Fleet({what}={name!r}): the application has no such database (it has: {', '.join(known)})."
            )
        return known[name]

    def crew(self, app: Flask) -> Crew:
        """Who brings tenants up to date in this process.

        :raises DbSmartError: the migrations cannot be loaded.
        """
        return self._crew(app, self._planner(app))

    def _planner(self, app: Flask) -> Planner:
        """The questions about the application, whose answers hold for every tenant."""
        self._of_application(app, self._bind, "bind")
        return self.smart.planner(app)

    def _crew(self, app: Flask, planner: Planner) -> Crew:
        key = None if self._bind == "default" else self._bind
        db = self.smart.database(app)
        return Crew(app, db, planner, self._bind, Places(app, db, key, self._url, self._schema), self.ledger(app))

    def _app(self) -> Flask:
        """The application that is meant.

        :raises ConfigError: there is none, or it is not clear which.
        """
        if has_app_context() and current_app.extensions.get(EXTENSION) is self:
            return current_app._get_current_object()  # type: ignore[attr-defined, no-any-return]
        apps = self._applications()
        if len(apps) != 1:
            raise ConfigError(
                "It is not clear which application is meant: call init_app(app), or do it in its context."
            )
        return apps[0]

    def _applications(self) -> list[Flask]:
        return [app for app in self.smart.applications if app.extensions.get(EXTENSION) is self]


def _workers_of(executor: Executor | None) -> int:
    found: int = getattr(executor, "_max_workers", None) or _WORKERS
    return found


def _ended(executor: Executor | None) -> bool:
    """Whether one of Dask has lost its scheduler for good: it takes work as before, and says nothing."""
    return getattr(getattr(executor, "_client", None), "status", None) in ("closing", "closed")


def _go(course: Course, run: FleetRun, names: Iterator[str], first: int, stop_after: int | None) -> None:
    """First the canary, then the others; a signal ends both with what has become of the fleet."""
    doing = ""
    try:
        with interruptible("of the fleet", lambda: doing):
            if first:
                course.go(islice(names, first), 1)
                if run.counts[FAILED] or run.stopped:
                    run.stopped = run.stopped or "a tenant of the canary failed"
                    return
            if not course.go(names, stop_after) and run.stopped is None:
                run.stopped = f"{tenants(run.counts[FAILED])} failed"
    except Interrupted as error:
        done = run.counts[UP_TO_DATE] + run.counts[APPLIED]
        raise Interrupted(
            f"Interrupted while migrating the fleet: {done:,} of {run.total:,} tenants are up to date, "
            f"{run.counts[FAILED]:,} failed. Those that were at work are rolled back as far as their databases can do "
            "that. Start again to go on.",
            error.exit_code - 128,
        ) from None


@contextmanager
def _submitting(crew: Crew, executor: Executor | None, factory: str | None, limits: Limits) -> Iterator[Any]:
    """How one tenant is handed over: to a thread with the application that there is, or as a name."""
    if executor is not None and not isinstance(executor, ThreadPoolExecutor):
        source = crew.source
        yield lambda name: executor.submit(remote.bring, name, factory, source)
        return
    crew.load()
    busy: set[threading.Thread] = set()
    # A thread is interrupted in bring() or not at all: one that the interruption meets in the pool's own code takes
    # with it what was to wake the others, which then wait for ever.
    guard = threading.Lock()

    def bring(name: str) -> Result:
        with guard:
            busy.add(threading.current_thread())
        try:
            return crew.bring(name)
        finally:
            with guard:
                busy.discard(threading.current_thread())

    own = ThreadPoolExecutor(limits.workers, "db-smart-fleet") if executor is None else None
    pool = own or executor
    assert pool is not None
    try:
        yield lambda name: pool.submit(bring, name)
    except Interrupted:
        with guard:
            for thread in busy:
                interrupt(thread, 0)
        raise
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)
