"""Apply revisions of Alembic: its ``env.py`` runs as it stands, and asks for them one after the other.

Each is one transaction of its own connection, with its row of the version table, its row of the history and the
confirmation of the lock, so that it is applied and recorded, or neither.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import click
import sqlalchemy as sa
from flask import Flask

from .batches import ended_as_noted
from .boot.plan import Pending, Plan
from .dialects.base import autocommits, facts_of
from .errors import DbSmartError
from .loading.alembic_files import AlembicFiles
from .loading.decorator import Migration
from .notices import without_plugin_lines
from .session.environment import Environment, begin_revision, end_transaction
from .session.lock_timeout import DdlLockTimeout
from .session.rebind import Savepoints
from .session.replay import RevisionJournal
from .store import history, tables
from .store.database import Database, safe_url
from .store.history import Learned, VersionTable
from .store.lock import Lock

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep


class HeadsMoved(Exception):
    """The version table is no longer what it was: another tool has written to it, so what is pending is asked again."""


class Run(Protocol):
    """What revisions need of the run on their database; see :class:`~.runner.DatabaseRun`."""

    connection: sa.Connection
    database: Database
    database_id: str
    lock: Lock

    @property
    def attended(self) -> bool:
        """Whether a person waits for it, who can be asked."""

    @property
    def versions(self) -> VersionTable | None:
        """The version table that was asked for what is pending."""

    def led(self, config: Config) -> AbstractContextManager[None]:
        """Let ``env.py`` find the URL for migrating where it looks for that of the application."""

    def rebound(self, engine: Callable[[], sa.Engine]) -> AbstractContextManager[None]:
        """Let ``db.session`` and ``db.engine`` of the application use one engine."""

    def environment(self) -> Environment:
        """The Alembic directory of the application."""

    def has_steps(self, item: Pending) -> bool:
        """Whether an earlier run of a migration may have left steps."""

    def bound_changes(self, connection: sa.Connection) -> DdlLockTimeout:
        """Have schema changes of a connection wait for their locks for a short time only."""

    def begin_item(self, item: Pending) -> None:
        """Say that a migration begins."""

    def end_item(self, item: Pending, seconds: float) -> None:
        """Say that a migration is applied and recorded."""

    def end_revision(
        self, connection: sa.Connection, migration: Migration, seconds: float, journal: RevisionJournal
    ) -> None:
        """Append it to the history, in the transaction of a connection."""


class Revising:
    """The revisions of one run on one database.

    :param run: holds the lock.
    :ivar item: the revision that runs; ``None`` between two.
    :ivar journal: its statements.
    :ivar met: whether ``env.py`` configured a connection to the database.
    """

    #: What is to be done with the revisions, and how those are that were done, in words.
    _wanted, _stays = "pending", "ran and stay applied"

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run = run
        self._planned = set(plan.heads or ())
        self._items = {item.migration.name: item for item in plan.pending if item.migration.revision}
        self.item: Pending | None = None
        self.met = False
        self.journal: RevisionJournal | None = None
        self._started = 0.0
        #: What the version table has by what this run knows.
        self._heads: set[str] = set()
        #: Which foreign keys were violated before the revision, and after the last one; what had changed until then.
        self._violations: set[str] = set()
        self._violations_after: set[str] = set()
        self._changes: object | None = None
        self._done: set[str] = set()
        self._elsewhere: set[str] = set()
        #: Of each connection that env.py has configured, whether it leads to the database whose lock is held.
        self._ours: dict[sa.Connection, bool] = {}
        #: What a revision raised.
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run ``env.py`` once, with all revisions that are pending.

        :raises DbSmartError: it never came to this database.
        """
        with without_plugin_lines():
            environment = self._run.environment()
            try:
                with self._run.led(environment.config):
                    environment.run(
                        lambda heads, context: self._steps(environment, heads, context),
                        self._applied,
                        writes=self._is_ours,
                        ask=self._run.attended,
                    )
            except Exception:
                if self._error is None:
                    raise
        if self._error is not None:  # env.py may have swallowed it, wrapped it, or ended the process for it
            raise self._error
        database, left = self._run.database, [name for name in self._items if name not in self._done]
        if not self.met:
            raise DbSmartError(
                f"{environment.directory}/env.py ran no revision on the database {database.name!r} ({database.url}), "
                f"where they are {self._wanted}: it configured no connection to it{self._others()}, or did not call "
                "run_migrations(). Nothing was changed. Let it take the URL of the application, as the env.py of "
                "Flask-Migrate does."
            )
        if left:
            raise DbSmartError(
                f"{environment.directory}/env.py did not run what is {self._wanted} on the database {database.name!r} "
                f"({database.url}): {', '.join(left[:3])}{', …' if left[3:] else ''}. Revisions that {self._stays}: "
                f"{len(self._done) or 'none'}."
            )

    def _others(self) -> str:
        return f", but one to {' and '.join(sorted(self._elsewhere))}" if self._elsewhere else ""

    def _steps(
        self, environment: Environment, heads: tuple[str, ...], context: MigrationContext
    ) -> Iterator[RevisionStep]:
        """Give Alembic what is pending; it runs, stamps and commits each before it asks for the next one."""
        connection = context.connection
        assert connection is not None
        if not self._ours[connection]:
            self._elsewhere.add(safe_url(connection.engine.url))
            return
        end_transaction(context)  # what Alembic and env.py have set up: the version table, a search path
        self._check_versions(environment, context)
        self._check_heads(heads, self._heads if self.met else self._planned)
        self.met, self._heads = True, set(heads)
        waits = self._run.bound_changes(connection)
        waits.within = lambda: self.journal is not None and self.journal.paused
        versions = sa.select(context._version.c.version_num).with_for_update()
        for step in self._steps_to(environment, heads):
            item = self._items[str(step.revision.revision)]
            end_transaction(context)
            self.item, self._started = item, time.perf_counter()
            self._run.begin_item(item)
            begin_revision(context)
            with waits.bounding():  # for the row, which a process that is stopped may hold
                self._hold_versions(versions, connection)
            self._violations = self._violated(connection)
            # Alembic logs the step by the name of its function.
            called = functools.partial(self._call, connection, step.migration_fn)
            step.migration_fn = functools.wraps(step.migration_fn)(called)
            yield step
            end_transaction(context)
            done, self.item = item, None
            self._done.add(done.migration.name)
            self._run.end_item(done, time.perf_counter() - self._started)

    def _steps_to(self, environment: Environment, heads: tuple[str, ...]) -> Iterable[RevisionStep]:
        """What is to be run, in order."""
        return environment.steps(heads)

    def _journal_of(self, connection: sa.Connection, item: Pending) -> RevisionJournal:
        """The statements of one revision."""
        run = self._run
        return RevisionJournal(
            connection, item.migration.name, run.lock.confirm, self._at_home, begun=run.has_steps(item)
        )

    def _violated(self, connection: sa.Connection) -> set[str]:
        """Which foreign keys are violated before a revision; not looked for again where nothing has changed since."""
        facts = self._run.database.facts
        if self._changes is not None and facts.changes(connection) == self._changes:
            return self._violations_after
        return facts.violations(connection)

    def _hold_versions(self, versions: sa.Select[Any], connection: sa.Connection) -> None:
        """Lock the rows of the version table, which ``flask db upgrade`` of a process without db-smart writes to.

        It does so at the end of what it runs, and fails where the row is not what it has read; so does Alembic here.

        :raises HeadsMoved: they are not what this run has left there.
        """
        self._check_heads(connection.scalars(versions), self._heads)

    def _check_heads(self, found: Iterable[str], expected: set[str]) -> None:
        """Make sure that the version table has what was read there before.

        :raises HeadsMoved: it has not.
        """
        if set(found) != expected:
            self._error = HeadsMoved("another tool has written to the version table of Alembic")
            raise self._error

    def _is_ours(self, connection: sa.Connection) -> bool:
        """Whether a connection leads to the database whose lock is held."""
        found = None
        with self._at_home(connection):
            if sa.inspect(connection).has_table(tables.state.name):  # else the question would end its transaction
                found = history.read_state(connection)
        self._ours[connection] = found is not None and found.database_id == self._run.database_id
        return self._ours[connection]

    def _check_versions(self, environment: Environment, context: MigrationContext) -> None:
        """Make sure that what is pending was asked of the table that ``env.py`` configures.

        :raises DbSmartError: it was not.
        """
        expected, database = self._run.versions, self._run.database
        found = _versions_of(context, self._home)
        if expected is not None and found != expected[:2]:
            raise DbSmartError(
                f"{environment.directory}/env.py configures the version table {_named(found)} in the database "
                f"{database.name!r} ({database.url}), but {_named(expected[:2])} was asked for what is pending. "
                f"Revisions that {self._stays}: {len(self._done) or 'none'}. Name it in Migrate(app, db, "
                "version_table=..., version_table_schema=...), or in env.py itself."
            )

    def _call(self, connection: sa.Connection, function: Callable[..., Any], **arguments: Any) -> None:
        """Run one revision; what it does by ``db.session`` and ``db.engine`` is in its transaction."""
        item, run = self.item, self._run
        assert item is not None
        with self._at_home(connection):
            self.journal = journal = self._journal_of(connection, item)
        engines: list[Savepoints] = []

        def engine() -> sa.Engine:
            if not engines:
                engines.append(Savepoints(connection, journal))
            return engines[0].engine

        try:
            with journal.recording(), run.rebound(engine), ended_as_noted(journal):
                try:
                    function(**arguments)
                    for savepoints in engines:
                        savepoints.check()
                finally:
                    for savepoints in engines:
                        savepoints.close()
            journal.begin_end()
        except BaseException as error:
            self._error = _explained(error)
            raise

    @contextmanager
    def _at_home(self, connection: sa.Connection) -> Iterator[None]:
        """Have our tables be found, whatever search path ``env.py`` has set; until the transaction ends at most."""
        if self._home is None:
            yield
            return
        before, there = connection.execute(sa.text("SELECT current_setting('search_path'), current_schema()")).one()
        if there == self._home:
            yield
            return
        search = sa.text("SELECT set_config('search_path', :path, :local)").bindparams(
            local=not autocommits(connection)
        )
        connection.execute(search, {"path": connection.dialect.identifier_preparer.quote(self._home)})
        yield
        connection.execute(search, {"path": before})

    @cached_property
    def _home(self) -> str | None:
        """The schema in which the run made our tables; ``None`` where no search path decides that."""
        connection = self._run.connection
        found = _current_schema(connection)
        connection.rollback()
        return found

    def _applied(self, context: MigrationContext, step: MigrationInfo, heads: Collection[str]) -> None:
        """Record a revision, in its own transaction."""
        self._heads = set(heads)
        connection, item = context.connection, self.item
        assert connection is not None
        assert item is not None
        try:
            facts = self._run.database.facts
            self._violations_after = facts.violations(connection)
            broken = self._violations_after - self._violations
            if broken:
                shown = "; ".join(sorted(map(str, broken))[:3])
                raise DbSmartError(f"it leaves rows whose foreign key refers to no row: {shown}")
            with self._at_home(connection):
                self._run.lock.confirm(connection)
                seconds = time.perf_counter() - self._started
                assert self.journal is not None
                self._run.end_revision(connection, item.migration, seconds, self.journal)
                self.journal.clear(connection)
            self._changes = facts.changes(connection)
            self.journal.end()
        except BaseException as error:
            self._error = error
            raise


def look(app: Flask, files: AlembicFiles, databases: Mapping[str, Database]) -> Learned:
    """Run ``env.py`` without a change, to learn which version table and which databases it configures.

    :raises DbSmartError: it fails.
    """
    found: dict[str, VersionTable] = {}
    elsewhere: list[VersionTable] = []
    environment = Environment(files)

    def steps(heads: tuple[str, ...], context: MigrationContext) -> Iterator[RevisionStep]:
        connection = context.connection
        assert connection is not None
        database = next((one for one in databases.values() if leads_to(connection.engine.url, one)), None)
        if database is None:
            elsewhere.append(VersionTable(context.version_table, context.version_table_schema))
        else:
            with database.connect() as own:
                home = _current_schema(own)
            versions = VersionTable(*_versions_of(context, home))
            if found.setdefault(database.name, versions) != versions:
                raise DbSmartError(
                    f"{files.directory}/env.py keeps several version tables in the database {database.name!r} "
                    f"({database.url}): {_named(found[database.name][:2])} and {_named(versions[:2])}, as where each "
                    "tenant has a schema of its own. db-smart can take over a directory with one for each database. "
                    "Nothing was changed."
                )
        yield from ()

    with app.app_context():
        try:
            environment.run(steps, lambda *_: None, writes=lambda _: False)
        except Exception as error:
            if isinstance(error, DbSmartError):
                raise
            text = next(iter(databases.values())).cause(error)
            raise DbSmartError(
                f"{files.directory}/env.py was run to learn which version table and databases it configures, and "
                f"failed: {text}. Nothing was changed. Fix the cause and start again."
            ) from error
    if not found and len(elsewhere) == 1:  # by another address; a run makes sure that it is the same
        found["default"] = elsewhere[0]
    names = [name for name in databases if name in found]
    if not names:
        known = ", ".join(database.url for database in databases.values())
        raise DbSmartError(
            f"{files.directory}/env.py configures no connection to a database of the application ({known}). Nothing "
            "was changed. Let it take the URL of the application, as the env.py of Flask-Migrate does."
        )
    return Learned(files.env_hash, found[names[0]], tuple(names))


def leads_to(url: sa.URL, database: Database) -> bool:
    """Whether a URL is that of a database, whoever connects by whichever driver."""
    for other in (database.app_engine.url, database.engine.url):
        if url.get_backend_name() == other.get_backend_name() and url.port == other.port:
            if database.path is not None and url.database:
                return os.path.realpath(url.database) == os.path.realpath(database.path)
            if _address(url) == _address(other):
                return True
    return False


def _address(url: sa.URL) -> tuple[object, ...]:
    return url.database, url.host, url.query.get("host"), url.query.get("unix_socket")


def _versions_of(context: MigrationContext, home: str | None) -> tuple[str, str | None]:
    """Name and schema of the version table that ``env.py`` configures; ``None`` is where the application looks.

    :param home: the current schema of the application, where a search path decides that.
    """
    connection = context.connection
    assert connection is not None
    schema = context.version_table_schema
    if schema is None and home is not None and _current_schema(connection) != home:
        schema = _current_schema(connection)
    return context.version_table, schema


def _current_schema(connection: sa.Connection) -> str | None:
    """Where tables are found and made; ``None`` where no search path decides that."""
    if not facts_of(connection.dialect.name).has_search_path:
        return None
    found: str | None = connection.scalar(sa.text("SELECT current_schema()"))
    return found


def _named(table: tuple[str, str | None]) -> str:
    name, schema = table
    return name if schema is None else f"{schema}.{name}"


def _explained(error: BaseException) -> BaseException:
    """What a revision raised, where that alone would not tell what to do."""
    if isinstance(error, (EOFError, click.Abort)):
        return DbSmartError(
            "it asks a question, and there is nobody to answer it; run 'flask db-smart migrate' in a terminal"
        )
    if isinstance(error, SystemExit):
        return DbSmartError(f"it wanted to end the process ({error.code})")
    return error
