"""Apply what is pending: each migration and its record in one transaction where the database can."""

from __future__ import annotations

import functools
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from .boot.plan import Pending, Plan
from .boot.planner import Planner
from .errors import DbSmartError, Interrupted, LeaseLost, MigrationFailed, plain, scrub
from .loading.decorator import Migration
from .loading.loader import location
from .notices import logger_of
from .operations import Operations
from .schema import loosening, model_tables
from .schema.catalog import Catalog
from .session.journal import Journal
from .session.lock_timeout import DdlLockTimeout
from .session.rebind import commit_session, rebind
from .session.transaction import RunTransaction, back_off, tried_again
from .settings import DdlSettings, LockSettings
from .signals import migration_applied, migration_failed, migration_progress, migration_started, send
from .store import history, snapshot
from .store.database import Database, begin, commit, transient, translated
from .store.history import State
from .store.lock import Lock, lock_of
from .store.memory import Memory, insert

_logger = logger_of(__name__)


@dataclass(frozen=True)
class Run:
    """A migration that was applied.

    :ivar duration: seconds.
    """

    migration: str
    database: str
    duration: float


@dataclass
class Outcome:
    """What a run came to.

    :ivar runs: what was applied, in order.
    :ivar states: the state row of each database.
    :ivar changed: whether this process did anything; not so where another one had done it all.
    :ivar made: the lost tables of the models that were made again.
    """

    runs: list[Run] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    changed: bool = False
    made: list[str] = field(default_factory=list)


@dataclass
class _DatabaseRun:
    """The run on one database, under its lock.

    :ivar begun: names of migrations of which an earlier try may have left steps.
    :ivar contents: names and checksums of the migrations that were applied before.
    :ivar cut: whether the migration that runs has committed a part of its work.
    """

    database: Database
    connection: sa.Connection
    lock: Lock
    lock_timeout: DdlLockTimeout
    begun: set[str]
    memory: Memory
    contents: set[tuple[str, str]]
    cut: bool = False


class Runner:
    """Applies the pending migrations of an application, one process at a time.

    :param create_all: whether the first run on a database makes the missing tables of the models.
    :param lock: how long to wait for the lock.
    :param ddl: how long schema changes wait, and how often they are tried again.
    """

    def __init__(
        self, app: Flask, db: SQLAlchemy, planner: Planner, *, create_all: bool, lock: LockSettings, ddl: DdlSettings
    ) -> None:
        self._app = app
        self._db = db
        self._planner = planner
        self._create_all = create_all
        self._lock = lock
        self._ddl = ddl
        #: What this process is doing, for who interrupts it: the migration that runs, empty between two; ``None``
        #: while another process holds the lock.
        self._doing: str | None = None

    def run(self, databases: Iterable[Database], *, force: bool = False, remake: bool = False) -> Outcome:
        """Apply what is pending on each database, in order.

        :param databases: the databases to migrate.
        :param force: run every repeatable migration again.
        :param remake: make the tables of the models that got lost.
        :raises MigrationFailed: a migration raised; those before it stay applied.
        :raises LockTimeout: another process migrated for too long.
        :raises LeaseLost: this process was stopped for so long that another one took over.
        :raises Interrupted: SIGTERM or Ctrl-C.
        :raises DatabaseUnreachable: a database cannot be reached.
        :raises DbSmartError: a database refuses what is not a migration's: our tables, a lock.
        """
        outcome = Outcome()
        self._remake = remake and self._create_all
        for database in databases:
            before = len(outcome.runs)
            self._doing = None
            try:
                with interruptible(database.name, lambda: self._doing):
                    outcome.states[database.name] = self._migrate(database, force, outcome)
            except (sa.exc.SQLAlchemyError, OSError) as error:
                raise DbSmartError(
                    f"Cannot migrate the database {database.name!r} ({database.url}): {database.redact(error)}. "
                    f"Migrations applied to it so far: {len(outcome.runs) - before}; they stay. Mend the cause and "
                    "start again."
                ) from error
        # Where two names lead to one database, the run on the second has changed the row of the first.
        last = {state.database_id: state for state in outcome.states.values()}
        outcome.states = {name: last[state.database_id] for name, state in outcome.states.items()}
        return outcome

    def _migrate(self, database: Database, force: bool, outcome: Outcome) -> State:
        if database.path is not None:
            database.path.parent.mkdir(parents=True, exist_ok=True)
        if database.dialect != "sqlite":
            found = self._planner.state(database)
            if found is not None and found.place is not None:
                plan = self._planner.ask(database, force=force)
                if plan.behind:
                    plan.refuse_elsewhere()
                found = plan.state
                if found is not None:
                    return found
            if found is None:
                with database.connect() as connection:
                    history.create_state(connection)  # the lease is a row of it
        since, seen = self._planner.since, None
        if since is not None and not force and database.dialect != "sqlite":
            with database.connect() as connection:
                seen = history.last_id(connection)
        lock = lock_of(database, self._lock)
        again = force or self._remake
        with lock.held(lambda state: not again and self._planner.complete(database, state)) as held:
            if held:
                self._doing = ""
                with database.connect() as connection:
                    if since is not None and not force:
                        self._leave_failed(database, connection, since, seen)
                    return self._migrate_locked(database, connection, lock, force, outcome)
        state = self._planner.state(database)
        if state is None:
            raise DbSmartError(f"The database {database.name!r} was emptied while this process waited. Start again.")
        return state

    def _leave_failed(self, database: Database, connection: sa.Connection, since: datetime, seen: int | None) -> None:
        """Leave a migration alone that failed in another process while this one was starting or waiting.

        Workers that start together would try it one after the other, with the same result each.

        :param since: when this process began to boot.
        :param seen: the last row of the history before this process waited for the lock, if it was asked.
        :raises MigrationFailed: there is one.
        """
        rows = history.failed(connection, since, seen)
        plan = self._planner.by_connection(database, connection) if rows else None
        pending = {(item.migration.name, item.migration.checksum) for item in (plan.pending if plan else ())}
        for row in rows:
            if (row.name, row.checksum) in pending:
                raise MigrationFailed(
                    f"Migration {row.name!r} failed on the database {database.name!r} ({database.url}) in another "
                    f"process of this start, run by {row.applied_by}: {row.error}. This process did not try it again "
                    "and changed nothing. Mend the cause and start again: the next start tries it again.",
                    migration=row.name,
                    database=database.name,
                    statement=None,
                    cause=str(row.error),
                )
        connection.rollback()  # what was only read

    def _migrate_locked(
        self, database: Database, connection: sa.Connection, lock: Lock, force: bool, outcome: Outcome
    ) -> State:
        wal_version = _wal_schema_version(connection)
        plan = self._planner.by_connection(database, connection, force=force)
        connection.rollback()  # what was only read
        first = plan.state is None or not plan.state.source
        missing = self._missing(database, connection) if self._remake and not first else []
        if (
            not (plan.behind or missing)
            and plan.state is not None
            and plan.state.source == self._planner.sources.digest
        ):
            return plan.state
        if plan.behind:
            snapshot.take(self._app, database, connection, plan.pending)
        outcome.changed |= plan.behind
        lock_timeout = DdlLockTimeout(database, connection, self._ddl.lock_timeout)
        begun, memory = tried_again(database, lambda: self._prepare(database, connection, plan), self._ddl.retries)
        had = memory.had(missing) if plan.pending else missing
        # What is pending may make the tables that were never there; of those that were, all can go on as before.
        lost = missing if had is None and force else had or []
        if lost:
            self._make_lost(database, connection, lost, memory, outcome)
        contents = {(item.name, item.checksum) for item in plan.applied}
        run = _DatabaseRun(database, connection, lock, lock_timeout, begun, memory, contents)
        for index, item in enumerate(plan.pending, 1):
            outcome.runs.append(self._apply(run, item, index, len(plan.pending)))
        missing = self._missing(database, connection)
        if missing and self._remake and not first:
            missing = self._make_lost(database, connection, missing, memory, outcome)
        if missing:
            names = [table.key for table in missing]
            _logger.warning("db-smart: %s", model_tables.lost(database.name, names, memory.taken(missing)))
        there = [table for table in self._models(database) if table not in missing]
        changed = wal_version if plan.pending else None
        self._tighten(run)
        state = tried_again(
            database, lambda: self._update_state(connection, lock, memory, there, changed), self._ddl.retries
        )
        if wal_version is not None:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        if plan.behind:
            snapshot.prune(self._app, database, state.database_id)
        return state

    def _update_state(
        self,
        connection: sa.Connection,
        lock: Lock,
        memory: Memory,
        models: Sequence[sa.Table],
        wal_version: int | None,
    ) -> State:
        """Bring the state row up to date.

        :param models: the tables of the models that are there.
        :param wal_version: the schema cookie before migrations ran, on SQLite in WAL mode.
        """
        connection.rollback()  # what a try before this one has left
        begin(connection)
        if wal_version is not None and wal_version == _wal_schema_version(connection):
            # In WAL mode only a schema change surely shows in the file's header, by which boot tells this file from
            # an older copy of it.
            connection.exec_driver_sql("CREATE TABLE db_smart_moved (id INTEGER)")
            connection.exec_driver_sql("DROP TABLE db_smart_moved")
        lock.confirm(connection)
        memory.end_run(connection, models)
        state = history.update_state(
            connection, self._planner.sources.digest, [item.name for item in self._planner.involved]
        )
        commit(connection)
        return state

    def _prepare(self, database: Database, connection: sa.Connection, plan: Plan) -> tuple[set[str], Memory]:
        """Make our tables where they are missing, and on the first run of this application those of its models.

        :returns: names of migrations that an earlier run has cut short; and what the history remembers.
        :raises DbSmartError: the history is that of another application, and has names of this one's migrations.
        """
        connection.rollback()  # what a try before this one has left
        if plan.state is None or not plan.state.source:
            history.create_state(connection)
        begin(connection)
        history.create_tables(connection)
        metadata = self._db.metadatas.get(database.key)
        mine = self._planner.of(database)
        memory = Memory.of(self._planner.module, mine, plan, metadata, connection)
        memory.read(connection)
        first = memory.is_first_run(mine, plan)
        if first and self._create_all and metadata is not None:
            if not plan.applied and not memory.fresh:
                _warn_of_lost_history(database, connection, plan, metadata)
            missing = model_tables.missing(connection, metadata)
            for event in memory.begin_first_run(connection, missing):
                connection.execute(insert(event))
            model_tables.make(connection, metadata, missing, transactional=database.transactional_ddl)
        begun = history.begun(connection)
        commit(connection)
        memory.keep()
        return begun, memory

    def _models(self, database: Database) -> list[sa.Table]:
        """The tables of the models, where this is to see to them."""
        metadata = self._db.metadatas.get(database.key) if self._create_all else None
        return [] if metadata is None else list(metadata.tables.values())

    def _missing(self, database: Database, connection: sa.Connection) -> list[sa.Table]:
        """The tables that the models have and the database has not."""
        if not self._models(database):
            return []
        found = model_tables.missing(connection, self._db.metadatas[database.key])
        connection.rollback()  # what was only read
        return found

    def _make_lost(
        self,
        database: Database,
        connection: sa.Connection,
        missing: list[sa.Table],
        memory: Memory,
        outcome: Outcome,
    ) -> list[sa.Table]:
        """Make tables that got lost.

        :returns: those that were not made, as a newer release has taken them away.
        """
        taken = memory.taken(missing)
        wanted = [table for table in missing if table.key not in taken]
        if wanted:
            begin(connection)
            metadata = self._db.metadatas[database.key]
            model_tables.make(connection, metadata, wanted, transactional=database.transactional_ddl)
            commit(connection)
            lost = [table.key for table in wanted]
            _logger.info("db-smart: made these tables of the models again: %s", ", ".join(lost))
            outcome.made += lost
            outcome.changed = True
        return [table for table in missing if table.key in taken]

    def _apply(self, run: _DatabaseRun, item: Pending, index: int, total: int) -> Run:
        migration, connection = item.migration, run.connection
        told: dict[str, Any] = {
            "migration": migration.name,
            "database": run.database.name,
            "index": index,
            "total": total,
        }
        self._doing = migration.name
        send(migration_started, self._app, **told)
        started = time.perf_counter()
        for tries in itertools.count(1):
            try:
                run.lock.note(migration.name)
                duration = self._apply_once(run, migration)
                break
            except LeaseLost:
                connection.rollback()
                raise
            except Exception as error:
                run.memory.take_back()
                ending = _ending(error)
                if ending is not None:
                    connection.invalidate()
                    raise ending from None
                if tries <= self._ddl.retries and migration.options.transactional and _transient(error):
                    connection.rollback()
                    run.memory.read(connection)  # a part may be committed
                    connection.rollback()
                    run.begun.add(migration.name)
                    _logger.info("db-smart: %r is tried again: %s", migration.name, run.database.redact(error))
                    back_off(tries)
                    continue
                if migration.options.transactional and self._loosen(run, error):
                    run.begun.add(migration.name)
                    continue
                seconds = time.perf_counter() - started
                failed = self._failed(run, item, error, index - 1, seconds)
                scrub(error, run.database.hide)
                send(migration_failed, self._app, **told, error=failed)
                raise failed from error
        self._doing = ""
        send(migration_applied, self._app, **told, duration=duration)
        return Run(migration.name, run.database.name, duration)

    def _apply_once(self, run: _DatabaseRun, migration: Migration) -> float:
        """Run a migration and record it; in one transaction, where the migration and the database allow it.

        :returns: how long it ran, seconds.
        """
        started = time.perf_counter()
        connection = run.connection
        if migration.options.transactional:
            begin(connection)
            journal = self._call(run, connection, migration)
        else:
            with run.database.connect(autocommit=True) as own:
                journal = self._call(run, own, migration)
            begin(connection)
        duration = time.perf_counter() - started
        run.lock.confirm(connection)
        history.record(connection, migration.name, migration.checksum, duration)
        journal.clear(connection)
        commit(connection)
        run.memory.keep()
        return duration

    def _call(self, run: _DatabaseRun, connection: sa.Connection, migration: Migration) -> Journal:
        """Call the function of a migration.

        :returns: its steps.
        """
        transactional = migration.options.transactional
        lock_timeout = (
            run.lock_timeout if transactional else DdlLockTimeout(run.database, connection, self._ddl.lock_timeout)
        )
        at_once = not transactional or not run.database.transactional_ddl
        journal = Journal(connection, migration.name, at_once=at_once, begun=migration.name in run.begun)
        transaction = RunTransaction(
            run.database,
            connection,
            journal,
            lock=run.lock,
            lock_timeout=lock_timeout,
            settings=self._ddl,
            transactional=transactional,
            tell=functools.partial(
                send, migration_progress, self._app, migration=migration.name, database=run.database.name
            ),
            memory=run.memory,
            session=self._db.session,
        )
        transaction.repeated = (migration.name, migration.checksum) in run.contents
        run.cut = not transactional or not run.database.transactional_ddl or migration.name in run.begun
        try:
            with (
                rebind(self._app, self._db, run.database, lambda: transaction.engine),
                transaction.leniently(functools.partial(self._say_left_out, run, migration), whole=True),
            ):
                if not migration.takes_operations:
                    migration.function()
                    commit_session(self._db.session)
                else:
                    operations = Operations(transaction, destructive=migration.options.destructive)
                    migration.function(operations)
                    operations.finish()
            transaction.check()
            return journal
        finally:
            run.cut = run.cut or transaction.commits > 0
            transaction.close()

    @staticmethod
    def _say_left_out(run: _DatabaseRun, migration: Migration, error: Exception) -> None:
        _logger.warning(
            "db-smart: %r is left out and counts as applied, as the table or column that it wants is not there any "
            "more: %s",
            migration.name,
            run.database.redact(error),
        )

    def _loosen(self, run: _DatabaseRun, error: Exception) -> bool:
        """Let a column take NULL until the first run is complete, if that is what a row of a migration needs.

        :returns: whether something was changed, so that the migration is to be tried again.
        """
        if not run.memory.fresh:
            return False
        required = loosening.required(error, run.memory)
        if not required:
            return False
        run.connection.rollback()
        run.memory.read(run.connection)  # a part may be committed
        run.connection.rollback()
        known = run.memory.loosened()
        wanted = [column for column in required if column not in known]
        for model, name in wanted:
            _logger.info(
                "db-smart: a migration inserts a row into %r without %r, which the models require: it may be NULL "
                "until all migrations are applied",
                model.name,
                name,
            )
            self._set_nullable(run, model, name, True)
        return bool(wanted)

    def _tighten(self, run: _DatabaseRun) -> None:
        """Have the columns that were loosened as the models have them.

        :raises DbSmartError: rows have no value for one.
        """
        database, connection = run.database, run.connection
        for model, name in run.memory.loosened():
            column: Any = sa.column(name)
            place = sa.table(model.name, schema=translated(connection, model.schema))
            query = sa.select(sa.func.count()).select_from(place).where(column.is_(None))
            key = place.schema, run.memory.folded(model.name), run.memory.folded(name)
            if key in run.memory.defaults:
                begin(connection)
                connection.execute(loosening.as_default(model.name, place.schema, name, run.memory.defaults[key]))
                run.lock.confirm(connection)
                commit(connection)
            empty = connection.scalar(query)
            connection.rollback()  # what was only read
            if empty:
                raise DbSmartError(
                    f"All migrations are applied to the new database {database.name!r} ({database.url}), but {empty} "
                    f"rows that they inserted into {model.name!r} have no value for {name!r}, which the models require"
                    ". Everything is kept; the column may be NULL meanwhile. Add a migration that gives these rows a "
                    "value and start again."
                )
            self._set_nullable(run, model, name, False)

    def _set_nullable(self, run: _DatabaseRun, model: sa.Table, name: str, nullable: bool) -> None:
        """Change a column of a table that this first run made."""
        from .dialects.editor import Change, editor_of

        connection = run.connection
        schema = translated(connection, model.schema)
        begin(connection)
        journal = Journal(connection, "(first run)", at_once=False, begun=False)
        transaction = RunTransaction(
            run.database,
            connection,
            journal,
            lock=run.lock,
            lock_timeout=run.lock_timeout,
            settings=self._ddl,
            transactional=True,
            memory=run.memory,
        )
        try:
            if nullable:  # before it is so, as MariaDB commits it with this
                transaction.note(run.memory.module, "loosened", "column", schema, model.name, name)
            catalog = Catalog(connection)
            existing = catalog.columns(model.name, schema)[catalog.normalize_name(name)]
            if existing["nullable"] != nullable:
                change = Change(model.name, schema, existing["name"], existing, nullable=nullable)
                editor_of(transaction, catalog).alter_column(change, False)
            run.lock.confirm(connection)
            commit(connection)
        finally:
            transaction.close()
        run.memory.keep()

    def _failed(
        self,
        run: _DatabaseRun,
        item: Pending,
        error: Exception,
        before: int,
        seconds: float,
    ) -> MigrationFailed:
        """Roll back, record the failure as well as can be, and say all that a person needs.

        :param before: how many migrations this run applied before.
        """
        migration, database, connection = item.migration, run.database, run.connection
        cause = database.cause(error)
        statement = _statement(error, database)
        for text in (cause, cause.encode("ascii", "backslashreplace").decode()):
            try:
                connection.rollback()
                begin(connection)
                run.lock.confirm(connection)
                history.record(connection, migration.name, migration.checksum, seconds, error=text)
                commit(connection)
                break
            except UnicodeError:  # the connection speaks an encoding that lacks some of it
                connection.rollback()
            except (sa.exc.SQLAlchemyError, LeaseLost) as second:
                connection.rollback()
                _logger.debug("The failure could not be recorded: %s", database.redact(second))
                break
        kept = "What it had committed is kept" if run.cut else "Nothing of it was kept"
        if not database.transactional_ddl:
            kept += " (there each schema change commits by itself)"
        if before:
            kept += f"; what was applied before it ({before}) stays applied"
        advice = "Mend the cause"
        if _transient(error):
            advice = (
                "Other sessions were in its way each time it was tried; where the database can tell, the log names "
                "them. End them, or raise DB_SMART_DDL_RETRIES or DB_SMART_DDL_LOCK_TIMEOUT,"
            )
        again = "run it again with --force" if item.reason == "forced" else "start again: the next run tries it again"
        return MigrationFailed(
            f"Migration {migration.name!r} failed on the database {database.name!r} ({database.url}): {cause}."
            f"\n  At: {location(error, migration.path)}"
            + (f"\n  Statement: {statement}" if statement else "")
            + f"\n{kept}. {advice} and {again}.",
            migration=migration.name,
            database=database.name,
            statement=statement,
            cause=cause,
        )


def _warn_of_lost_history(database: Database, connection: sa.Connection, plan: Plan, metadata: sa.MetaData) -> None:
    """Say that a database is not new although it has no history: what runs only once may have run before."""
    inspector = sa.inspect(connection)
    used = []
    for table, _ in model_tables.in_order(metadata.tables.values()):
        if table is not None and inspector.has_table(table.name, schema=table.schema):
            query = sa.select(sa.literal(1)).select_from(sa.table(table.name, schema=table.schema)).limit(1)
            if connection.execute(query).first() is not None:
                used.append(table.name)
    if not used:
        return
    once = [item.migration.name for item in plan.pending if item.migration.options.once]
    dropped = " Alembic uses this database too: see whether one of its revisions dropped the tables db_smart_*."
    _logger.warning(
        "db-smart: the database %r has tables with rows (%s) but no history of db-smart, so that all its migrations "
        "run%s. If they had run before, their history was lost: stop, and put the tables db_smart_* back from a "
        "backup.%s",
        database.name,
        ", ".join(used[:5]) + (", …" if len(used) > 5 else ""),
        f", also those that run only once ({', '.join(once)})" if once else "",
        dropped if inspector.has_table("alembic_version") else "",
    )


@contextmanager
def interruptible(database: str, doing: Callable[[], str | None]) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into an exception, so that what was begun is rolled back and the lock freed.

    :param doing: tells the migration that runs, an empty text between two, ``None`` while the lock is not held.

    A handler that the program installed for SIGTERM is left alone, and other threads than the main one get no signals.

    :raises Interrupted: one of them came.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
        migration = doing()
        if migration is None:
            said = (
                f"while waiting to migrate the database {database!r}: this process changed nothing, and another one "
                "that migrates goes on."
            )
        elif migration:
            said = (
                f"while migrating the database {database!r}: the migration that ran ({migration}) was rolled back as "
                "far as the database can, those before it stay, and the lock is free."
            )
        else:
            said = f"while migrating the database {database!r}, between two migrations; the lock is free."
        raise Interrupted(f"Interrupted by {number.name} {said} Start again to go on.", number) from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Terminated(KeyboardInterrupt):
    """SIGTERM; not an Exception, as a migration that catches those must not catch it."""


def _raise_interrupt(*_: object) -> None:
    raise _Terminated


def _ending(error: BaseException | None) -> BaseException | None:
    """What ends this process, where an error of the cleaning up has taken its place.

    PyMySQL closes a connection whose answer a signal interrupts, so that rolling back fails then.
    """
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error


def _transient(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the transaction may succeed when tried again."""
    while error is not None:
        if isinstance(error, sa.exc.DBAPIError) and transient(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _statement(error: BaseException | None, database: Database) -> str | None:
    """The SQL that an error came from, in one line; its parameters may be personal data and stay out."""
    while error is not None:
        if isinstance(error, sa.exc.StatementError) and error.statement:
            statement = " ".join(plain(database.hide(error.statement)).split())
            return statement if len(statement) <= 500 else statement[:500] + " …"
        error = error.__cause__ or error.__context__
    return None


def _wal_schema_version(connection: sa.Connection) -> int | None:
    """The schema cookie of a SQLite database in WAL mode; ``None`` in every other."""
    if connection.dialect.name != "sqlite" or connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        return None
    return int(connection.exec_driver_sql("PRAGMA schema_version").scalar_one())
