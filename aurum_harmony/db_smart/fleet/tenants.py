"""One tenant: where its database is, and a run on it by the same engine that migrates every other database."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, Engine, make_url

from ..boot.plan import Pending, Plan
from ..boot.planner import Planner
from ..contract import Waits
from ..dialects.base import autocommits
from ..errors import ConfigError, DatabaseUnreachable, DbSmartError, Interrupted, one_line, text_of
from ..loading.decorator import Migration
from ..loading.revisions import Revisions
from ..loading.sources import Sources
from ..runner import DatabaseRun, Runner
from ..session.rebind import rebind, unbound
from ..session.sql import without_doubled_percents
from ..store.database import Database, application_engines, safe_url
from ..store.history import State
from ..store.tables import MAX_NAME
from .ledger import APPLIED, FAILED, UP_TO_DATE, Ledger, Result

#: Why what runs in no transaction cannot run.
_POOLER = (
    "No session of the tenant {!r} can begin in its schema; behind a pooler such as PgBouncer that is so. Let 'fleet "
    "migrate' connect to the server itself"
)
#: Why a contract step waits.
_NOT_FIRST = "waits until it is applied to the application's own database"
#: Over how many folders the snapshots of tenants are spread: each run lists the one of its tenant.
_FOLDERS = 256
#: How long names of PostgreSQL are, bytes.
_MAX_PLACE = 63


class TenantGone(DbSmartError):
    """There is no file where that of a tenant was."""


class Tenant(Database):
    """The database, or the schema, of one tenant. What is shown of it is its name alone.

    :param name: of the tenant.
    :param key: the bind key in whose place it stands.
    :param engine: as the application connects to it.
    :param schema: of PostgreSQL; ``None`` where it has a database of its own.
    :param alone: makes an engine whose sessions are in that schema from their start; for what runs in no transaction.
    :param shared: the engine for migrating the database that has the schema: what it has compiled is so for all.
    """

    def __init__(
        self,
        name: str,
        key: str | None,
        engine: Engine,
        schema: str | None = None,
        alone: Callable[[], Engine] | None = None,
        shared: Engine | None = None,
    ) -> None:
        super().__init__(name, key, engine)
        self.url = "a tenant of the fleet"
        self.schema = schema
        self._alone = alone
        self._shared = shared
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _FOLDERS
        self.snapshot_folder = f"fleet/{number:02x}"

    def _make_engine(self) -> Engine:
        if self.schema is None or self._shared is None:
            return super()._make_engine()
        engine = self._shared.execution_options()
        enter(engine, self.schema)
        return engine

    @contextmanager
    def connect(self, *, autocommit: bool = False) -> Iterator[sa.Connection]:
        """A new connection; see :meth:`~.store.database.Database.connect`."""
        if self.schema is None or not autocommit:
            with super().connect(autocommit=autocommit) as connection:
                try:
                    yield connection
                except KeyboardInterrupt:
                    if self.facts.server:  # it may have met a statement in the middle: the session can only be closed
                        connection.invalidate()
                    raise
            return
        assert self._alone is not None
        session = Database(self.name, self.key, self._alone())
        session.url, session.statements = self.url, self.statements
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(session.connect(autocommit=True))
                found = connection.scalar(sa.select(sa.func.current_schema()))
            except DatabaseUnreachable as error:
                raise DbSmartError(f"{_POOLER.format(self.name)}: {error.message}") from None
            if found != self.schema:
                raise DbSmartError(f"{_POOLER.format(self.name)}: it begins in {found!r}. What was done is kept.")
            yield connection

    def check(self) -> None:
        """Make sure that there is the schema, as nothing can be made in it otherwise.

        :raises DbSmartError: there is none.
        """
        if self.schema is None:
            return
        with self.connect() as connection:
            there = connection.scalar(sa.select(sa.func.current_schema()))
        if there != self.schema:
            raise DbSmartError(
                f"There is no schema {self.schema!r} for the tenant {self.name!r}, or this user may not use it. "
                "Nothing was changed. Make it with fleet.create(), which also migrates it."
            )

    def close(self) -> None:
        """Close what the pools of its own hold."""
        if self.schema is None:
            self.app_engine.dispose()

    def without_url(self, text: str) -> str:
        """A text without the URL of the tenant."""
        url = self.app_engine.url
        for form in (url.render_as_string(hide_password=False), safe_url(url), str(url)):
            text = text.replace(form, "URL hidden")
        return self.hide(text)


def server_of(url: URL) -> str | None:
    """Host and port of a server; ``None`` for a file."""
    if url.get_backend_name() == "sqlite":
        return None
    return f"{url.host or url.query.get('host', '')}:{url.port or ''}"


def enter(engine: Engine, schema: str) -> None:
    """Have each transaction of an engine be in a schema of PostgreSQL.

    For each one anew, as behind PgBouncer a session is not one's own; so nothing is left behind in it either.
    """
    statement = f"SET LOCAL search_path TO {identifier(engine.dialect, schema)}"

    def enter(connection: sa.Connection) -> None:
        if autocommits(connection):
            raise DbSmartError(
                f"A connection in autocommit cannot be in the schema {schema!r} of a tenant. Nothing was changed. "
                "Leave AUTOCOMMIT out of the options of the engine."
            )
        # By the driver: a transaction of SQLAlchemy has only just begun.
        cursor = connection.connection.cursor()
        try:
            cursor.execute(statement)
        except Exception as error:
            base: Any = connection.dialect.loaded_dbapi.Error
            raise sa.exc.DBAPIError.instance(statement, None, error, base, dialect=connection.dialect) from error
        finally:
            cursor.close()

    sa.event.listen(engine, "begin", enter)


def identifier(dialect: sa.Dialect, name: str) -> str:
    """A name for a statement that is sent as it is: no driver looks for parameters in it."""
    return without_doubled_percents(dialect).identifier_preparer.quote_identifier(name)


class Places:
    """Where the databases of tenants are.

    :param key: the bind key in whose place they stand.
    :param url: gives the URL of a tenant by its name.
    :param schema: gives its schema in the database of that bind.
    :ivar kind: which of these two it is.
    """

    def __init__(
        self,
        app: Flask,
        db: SQLAlchemy,
        key: str | None,
        url: Callable[[str], str | URL] | None,
        schema: Callable[[str], str] | None,
    ) -> None:
        self._app = app
        self._db = db
        self.key = key
        self._url = url
        self._schema = schema
        self.kind = "schema" if url is None else "url"
        #: That which has the schemas.
        self._database: Database | None = None

    def tenant(self, name: str) -> Tenant:
        """The database of a tenant.

        :raises DbSmartError: its name, URL or schema cannot be used.
        """
        check_name(name)
        if self._schema is not None:
            try:
                with unbound(self._app):
                    schema = self._schema(name)
            except Exception as error:  # of the code of the application
                raise ConfigError(
                    f"Fleet(schema=…) cannot tell the schema of the tenant {name!r}: {said(error)}."
                ) from error
            check_name(schema, "schema")
            engine = self.own()
            if engine.dialect.name != "postgresql":
                raise ConfigError(
                    "Fleet(schema=…) needs PostgreSQL: elsewhere a schema is a database. Give each tenant a URL."
                )
            _check_length(name, schema, "schema")
            if self._database is None or self._database.app_engine is not engine:
                self._database = Database("default", self.key, engine)
            inside = engine.execution_options()  # with the pool of the application
            enter(inside, schema)
            return Tenant(name, self.key, inside, schema, lambda: self._in_session(schema), self._database.engine)
        url = self.url(name)
        if url.get_backend_name() == "postgresql":
            _check_length(name, url.database or "", "database")
        return Tenant(name, self.key, self.engine(url))

    def url(self, name: str) -> URL:
        """The URL of a tenant, or of the database that has its schema.

        :raises ConfigError: it is none.
        """
        if self._url is None:
            return self.own().url
        try:
            with unbound(self._app):
                given = self._url(name)
        except Exception as error:  # of the code of the application
            raise ConfigError(f"Fleet(url=…) cannot tell the URL of the tenant {name!r}: {said(error)}.") from error
        try:
            return make_url(given)
        except (sa.exc.ArgumentError, ValueError):
            raise ConfigError(f"What Fleet(url=…) gives for the tenant {name!r} is no URL of SQLAlchemy.") from None

    def own(self) -> Engine:
        """The engine of the application in whose place tenants stand.

        :raises ConfigError: there is none.
        """
        engines = application_engines(self._app, self._db)
        if self.key not in engines:
            raise ConfigError(f"Fleet(bind={self.key!r}): there is no such bind in SQLALCHEMY_BINDS.")
        return engines[self.key]

    def engine(self, url: URL, **connect_args: Any) -> Engine:
        """An engine for a URL, as Flask-SQLAlchemy makes that of the bind.

        :raises ConfigError: its driver is not installed, or the options of the bind lead elsewhere.
        """
        app, db, options = self._app, self._db, self._options()
        if "creator" in options:
            raise ConfigError(
                "The options of the engine have a 'creator', which would lead all tenants to one database. Leave it "
                "out, or give the tenants another bind: Fleet(bind=…)."
            )
        options["url"] = url
        if connect_args:
            options["connect_args"] = {**options.get("connect_args", {}), **connect_args}
        db._apply_driver_defaults(options, app)
        try:
            return db._make_engine(self.key, options, app)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise ConfigError(
                f"A URL that Fleet(url=…) gives cannot be used ({type(error).__name__}); its driver must be installed."
            ) from None

    def _in_session(self, schema: str) -> Engine:
        """An engine whose sessions are in a schema from their start."""
        engine = self.own()
        quoted = identifier(engine.dialect, schema)
        if engine.dialect.driver == "pg8000":
            return self.engine(engine.url, startup_params={"search_path": quoted})
        option = quoted.replace("\\", "\\\\").replace(" ", "\\ ")
        given = self._options().get("connect_args", {})
        before = given.get("options") or engine.url.query.get("options") or ""
        return self.engine(engine.url, options=f"{before} -csearch_path={option}".strip())

    def _options(self) -> dict[str, Any]:
        """The options that the application has for the engine of the bind."""
        config = self._app.config
        given = config["SQLALCHEMY_ENGINE_OPTIONS"]
        if self.key is not None:
            found = config["SQLALCHEMY_BINDS"].get(self.key)
            given = found if isinstance(found, dict) else {}
        return {**self._db._engine_options, "echo": config["SQLALCHEMY_ECHO"], **given}


def check_name(name: object, what: str = "name") -> None:
    """Make sure that a name can be kept, and shown in a line.

    :raises ConfigError: it cannot.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip() or len(name) > MAX_NAME:
        shown = f"{name!r:.100}" if isinstance(name, str) else f"A value of the type {type(name).__name__}"
        raise ConfigError(
            f"{shown} cannot be the {what} of a tenant: it must be a text of at most {MAX_NAME} characters that "
            "can be printed, without blanks around it. Nothing was changed."
        )


def _check_length(name: str, place: str, what: str) -> None:
    """Make sure that PostgreSQL takes the name of a place as it is: of a longer one it takes the beginning alone.

    :raises ConfigError: it does not. Two tenants would have one place.
    """
    if len(place.encode()) > _MAX_PLACE:
        raise ConfigError(
            f"The {what} {place!r} of the tenant {name!r} has a name of more than {_MAX_PLACE} bytes, of which "
            "PostgreSQL would cut off the end. Nothing was changed. Give it a shorter one."
        )


def said(error: Exception) -> str:
    """What the code of an application has failed with, in one line."""
    text = one_line(text_of(getattr(error, "orig", None) or error))
    return text if isinstance(error, sa.exc.DBAPIError) else f"{type(error).__name__}: {text}"


class TenantPlanner(Planner):
    """The questions about one tenant. It has no flag.

    :param shared: about the application; its scan of the sources and its migrations are those of all tenants.
    :param bind: the name of the database in whose place the tenant stands.
    """

    def __init__(self, shared: Planner, bind: str, tenant: Tenant) -> None:
        super().__init__(shared.code, {tenant.name: tenant}, shared.settings)
        self._shared = shared
        self._bind = bind
        self.learned, self.began = shared.learned, shared.began
        self.involved = [tenant]
        self._revised = (tenant.name,) if bind in shared.revised else ()

    @property
    def sources(self) -> Sources:
        """One scan for all tenants."""
        return self._shared.sources

    @property
    def revisions(self) -> Revisions | None:
        """One reading for all tenants."""
        return self._shared.revisions

    @property
    def migrations(self) -> list[Migration]:
        """Those of the database in whose place the tenant stands."""
        return self._shared.of(self._shared.databases[self._bind])

    @property
    def revised(self) -> tuple[str, ...]:
        """The tenant, where the Alembic directory is for the database in whose place it stands."""
        return self._revised

    def applied_before(self, name: str) -> bool:
        """Whether the database in whose place the tenant stands has a migration already."""
        plan = self._shared.ask(self._shared.databases[self._bind])
        return all(item.migration.name != name for item in plan.pending)

    def learn(self) -> None:
        """Nothing: what there is to learn is known of the application."""

    def of(self, database: Database) -> list[Migration]:
        """The migrations of the tenant."""
        return self.migrations

    def _keep_flag(self, action: Callable[[], object]) -> None:
        """Nothing: the ledger is what a fleet has in the place of a flag."""


class Crew:
    """Brings tenants up to date, several at the same time, in the threads of one process.

    :param shared: the questions about the application, with the migrations of the tenants.
    :param bind: the name of the database in whose place tenants stand.
    :param ledger: which knows what tenants had a database before.
    """

    def __init__(self, app: Flask, db: SQLAlchemy, shared: Planner, bind: str, places: Places, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger
        self._db = db
        self._shared = shared
        self._bind = bind
        self.places = places
        self._loading = threading.Lock()
        #: Alembic has one environment in a process, so that one thread at a time can run revisions.
        self._one = threading.Lock() if shared.code.alembic is not None else nullcontext()

    @property
    def source(self) -> str:
        """What tells these sources from those of another release."""
        return self._shared.source(None)

    @property
    def noted(self) -> str:
        """What the ledger says of a tenant that has all of these sources.

        Another fleet with the same sources, of which a tenant has the same name, says something else.
        """
        place = self.places.own().url.database or ""
        return hashlib.sha256("\0".join((self.source, self._bind, self.places.kind, place)).encode()).hexdigest()

    def load(self) -> None:
        """Load the migrations, before several threads need them.

        :raises DbSmartError: they cannot be loaded.
        """
        with self._app.app_context(), self._loading:
            self._shared.learn()
            self._shared.of(self._shared.databases[self._bind])

    def planner(self, tenant: Tenant) -> TenantPlanner:
        """The questions about a tenant."""
        return TenantPlanner(self._shared, self._bind, tenant)

    def bring(self, name: str) -> Result:
        """Bring one tenant up to date, whatever becomes of it.

        :raises Interrupted: a signal ended the run.
        """
        started = time.perf_counter()
        try:
            tenant = self.places.tenant(name)
        except (Exception, SystemExit) as error:  # of the code of the application that tells the place
            return _failed(name, started, text_of(error))
        try:
            applied, state, waiting = self._run(tenant)
        except Interrupted:
            raise
        except SystemExit as error:  # of a migration, which would end the run, and maybe with 0
            return _failed(name, started, f"a migration ended the process (SystemExit: {text_of(error)})")
        except Exception as error:
            return _failed(name, started, tenant.without_url(text_of(error)))
        finally:
            tenant.close()
        status = APPLIED if applied else UP_TO_DATE
        took = time.perf_counter() - started
        return Result(name, status, applied, took, None, state.database_id, state.stamp, waiting)

    def _run(self, tenant: Tenant) -> tuple[tuple[str, ...], State, tuple[str, ...]]:
        planner = self.planner(tenant)
        with self._app.app_context(), self._one:
            plan = planner.ask(tenant)
            if not plan.behind and plan.state is not None:
                planner.settle([plan])
                return (), plan.state, ()
            tenant.check()
            self.check_file(tenant)
            with self._found_by_alembic(tenant):
                outcome = Runner(self._app, self._db, planner).run([tenant], kind=_TenantRun)
        return tuple(run.migration for run in outcome.runs), outcome.states[tenant.name], tuple(outcome.waiting)

    def check_file(self, tenant: Tenant) -> None:
        """Make sure that no empty file takes the place of one that had the data of a tenant.

        A server says itself that it has no such database; a file would be made by connecting to it.

        :raises TenantGone: it is not there.
        """
        if tenant.exists:
            return
        row = self._ledger.row(tenant.name)
        if row is not None and row.database_id:
            raise TenantGone(
                f"The file of the tenant {tenant.name!r} is not there any more, or is empty; perhaps its disk is not "
                "mounted. Nothing was made in its place. Put the file back. If the tenant is to begin anew, "
                "fleet.create() makes an empty one."
            )

    def _found_by_alembic(self, tenant: Tenant) -> AbstractContextManager[None]:
        """Have an ``env.py`` that looks for an engine of the application find that of a tenant."""
        if self._shared.code.alembic is None:
            return nullcontext()
        return rebind(self._app, self._db, tenant, lambda: tenant.app_engine, default=False)


class _TenantRun(DatabaseRun):
    """The run on one tenant, of which there may be several at the same time.

    Processes say in the application's own database what they map, and read there what is taken away. So a contract step
    comes to a tenant only after it: then no process of an earlier release runs any more, or can begin to.
    """

    def _waiting(self, plan: Plan, steps: list[Pending]) -> dict[str, Waits]:
        planner = self._runner.planner
        assert isinstance(planner, TenantPlanner)
        said = Waits(_NOT_FIRST, _NOT_FIRST)
        return {item.migration.name: said for item in steps if not planner.applied_before(item.migration.name)}

    def _take_away(self, item: Pending, plan: Plan) -> None:
        waits = self._waiting(plan, [item])
        if waits:
            self._put_off(*waits.popitem())
            return
        self.connection.rollback()  # what was only read
        self._confirm()
        self.apply(item)

    @property
    def attended(self) -> bool:
        """Nobody is asked in the middle of it."""
        return False


def _failed(name: str, started: float, error: str) -> Result:
    return Result(name, FAILED, (), time.perf_counter() - started, error)
