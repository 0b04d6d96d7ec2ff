"""Apply what is pending: each migration and its record in one transaction where the database can."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from . import history, snapshot
from .binding import bound
from .database import Database, begin, transient
from .errors import DbSmartError, Interrupted, LeaseLost, MigrationFailed
from .gate import Gate
from .history import Pending, State
from .lock import Lock, lock_of
from .migrations import Migration, location
from .operations import Operations
from .settings import LockSettings
from .signals import migration_applied, migration_failed, migration_started
from .steps import Steps

_logger = logging.getLogger(__name__)

#: How often a migration is tried whose transaction met a deadlock or a lock time-out.
_TRIES = 6


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
    """

    runs: list[Run] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    changed: bool = False


class Runner:
    """Applies the pending migrations of an application, one process at a time.

    :param create_all: whether the first run on a database makes the missing tables of the models.
    :param settings: how long to wait for the lock.
    """

    def __init__(self, app: Flask, db: SQLAlchemy, gate: Gate, *, create_all: bool, settings: LockSettings) -> None:
        self._app = app
        self._db = db
        self._gate = gate
        self._create_all = create_all
        self._settings = settings

    def run(self, databases: Iterable[Database], *, force: bool = False) -> Outcome:
        """Apply what is pending on each database, in order.

        :param databases: the databases to migrate.
        :param force: run every repeatable migration again.
        :raises MigrationFailed: a migration raised; those before it stay applied.
        :raises LockTimeout: another process migrated for too long.
        :raises LeaseLost: this process was stopped for so long that another one took over.
        :raises Interrupted: SIGTERM or Ctrl-C.
        :raises DatabaseUnreachable: a database cannot be reached.
        :raises DbSmartError: a database refuses what is not a migration's: our tables, a lock.
        """
        outcome = Outcome()
        for database in databases:
            before = len(outcome.runs)
            try:
                with interruptible(database.name):
                    outcome.states[database.name] = self._migrate(database, force, outcome)
            except (sa.exc.SQLAlchemyError, OSError) as error:
                raise DbSmartError(
                    f"Cannot migrate the database {database.name!r} ({database.url}): {database.redact(error)}. "
                    f"Migrations applied to it so far: {len(outcome.runs) - before}; they stay. Mend the cause and "
                    "start again."
                ) from error
        return outcome

    def _migrate(self, database: Database, force: bool, outcome: Outcome) -> State:
        if database.path is not None:
            database.path.parent.mkdir(parents=True, exist_ok=True)
        if database.dialect != "sqlite" and self._gate.state(database) is None:
            with database.connect() as connection:
                history.create_state(connection)  # the lease is a row of it
        lock = lock_of(database, self._settings)
        with lock.held(lambda state: not force and state.source == self._gate.sources.digest) as held:
            if held:
                with database.connect() as connection:
                    return self._migrate_locked(database, connection, lock, force, outcome)
        state = self._gate.state(database)
        if state is None:
            raise DbSmartError(f"The database {database.name!r} was emptied while this process waited. Start again.")
        return state

    def _migrate_locked(
        self, database: Database, connection: sa.Connection, lock: Lock, force: bool, outcome: Outcome
    ) -> State:
        wal_version = _wal_schema_version(connection)
        plan = self._gate.by_connection(database, connection, force=force)
        connection.rollback()  # what was only read
        digest = self._gate.sources.digest
        if plan.state is not None and not plan.behind and plan.state.source == digest:
            return plan.state
        if plan.behind:
            snapshot.take(self._app, database, connection, plan.pending)
        outcome.changed |= plan.behind
        if plan.state is None or not plan.state.source:
            self._first_run(database, connection)
        for index, item in enumerate(plan.pending, 1):
            outcome.runs.append(self._apply(database, connection, lock, item, index, len(plan.pending)))
        begin(connection)
        if plan.pending and wal_version is not None and wal_version == _wal_schema_version(connection):
            # In WAL mode only a schema change surely shows in the file's header, by which boot tells this file from
            # an older copy of it.
            connection.exec_driver_sql("CREATE TABLE db_smart_moved (id INTEGER)")
            connection.exec_driver_sql("DROP TABLE db_smart_moved")
        lock.confirm(connection)
        state = history.seal(connection, digest, [item.name for item in self._gate.involved])
        connection.commit()
        if wal_version is not None:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        return state

    def _first_run(self, database: Database, connection: sa.Connection) -> None:
        """Make our tables and those of the models."""
        history.create_state(connection)
        begin(connection)
        history.create_tables(connection)
        metadata = self._db.metadatas.get(database.key)
        if self._create_all and metadata is not None:
            metadata.create_all(connection)
        connection.commit()

    def _apply(
        self, database: Database, connection: sa.Connection, lock: Lock, item: Pending, index: int, total: int
    ) -> Run:
        migration = item.migration
        told: dict[str, Any] = {"migration": migration.name, "database": database.name, "index": index, "total": total}
        migration_started.send(self._app, **told)
        started = time.perf_counter()
        tries = 1
        while True:
            try:
                lock.note(migration.name)
                duration = self._apply_once(database, connection, lock, migration)
                break
            except LeaseLost:
                connection.rollback()
                raise
            except Exception as error:
                if tries < _TRIES and migration.options.transactional and _transient(error):
                    connection.rollback()
                    _logger.info("db-smart: %r is tried again: %s", migration.name, database.redact(error))
                    threading.Event().wait(random.uniform(0, 0.1 * 2**tries))
                    tries += 1
                    continue
                seconds = time.perf_counter() - started
                failed = self._failed(database, connection, lock, item, error, index - 1, seconds)
                migration_failed.send(self._app, **told, error=failed)
                raise failed from error
        migration_applied.send(self._app, **told, duration=duration)
        return Run(migration.name, database.name, duration)

    def _apply_once(self, database: Database, connection: sa.Connection, lock: Lock, migration: Migration) -> float:
        """Run a migration and record it; in one transaction, where the migration and the database allow it.

        :returns: how long it ran, seconds.
        """
        started = time.perf_counter()
        steps = None
        if migration.options.transactional:
            begin(connection)
            steps = None if database.transactional_ddl else Steps(connection, migration.name)
            self._call(database, connection, migration, bind=connection, steps=steps)
        else:
            with database.connect(autocommit=True) as own:
                self._call(database, own, migration, bind=None, steps=None)
            begin(connection)
        duration = time.perf_counter() - started
        lock.confirm(connection)
        history.record(connection, migration, duration)
        if steps is not None:
            steps.clear()
        connection.commit()
        return duration

    def _call(
        self,
        database: Database,
        connection: sa.Connection,
        migration: Migration,
        *,
        bind: sa.Connection | None,
        steps: Steps | None,
    ) -> None:
        with bound(self._app, self._db, database, bind, steps) as engine:
            if not migration.takes_operations:
                migration.function()
                return
            operations = Operations(database, connection, engine, self._db)
            try:
                migration.function(operations)
                operations.finish()
            finally:
                operations.close()

    def _failed(
        self,
        database: Database,
        connection: sa.Connection,
        lock: Lock,
        item: Pending,
        error: Exception,
        before: int,
        seconds: float,
    ) -> MigrationFailed:
        """Roll back, record the failure as well as can be, and say all that a person needs.

        :param before: how many migrations this run applied before.
        """
        migration = item.migration
        if isinstance(error, sa.exc.NoSuchTableError):
            cause = f"there is no table {str(error)!r}"
        elif isinstance(error, (sa.exc.DBAPIError, DbSmartError)):
            cause = database.redact(error)
        else:
            cause = f"{type(error).__name__}: {database.redact(error)}".removesuffix(": ")
        statement = _statement(error)
        try:
            connection.rollback()
            begin(connection)
            lock.confirm(connection)
            history.record(connection, migration, seconds, error=cause)
            connection.commit()
        except (sa.exc.SQLAlchemyError, LeaseLost) as second:
            connection.rollback()
            _logger.debug("The failure could not be recorded: %s", database.redact(second))
        if migration.options.transactional and database.transactional_ddl:
            kept = "Nothing of it was kept"
        else:
            kept = "What it had committed is kept (there each schema change commits by itself)"
        if before:
            kept += f"; what was applied before it ({before}) stays applied"
        again = "run it again with --force" if item.reason == "forced" else "start again: the next run tries it again"
        return MigrationFailed(
            f"Migration {migration.name!r} failed on the database {database.name!r} ({database.url}): {cause}."
            f"\n  At: {location(error, migration.path)}"
            + (f"\n  Statement: {statement}" if statement else "")
            + f"\n{kept}. Mend the cause and {again}.",
            migration=migration.name,
            database=database.name,
            statement=statement,
            cause=cause,
        )


@contextmanager
def interruptible(database: str) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into an exception, so that what was begun is rolled back and the lock freed.

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
        raise Interrupted(
            f"Interrupted by {number.name} while migrating the database {database!r}: the migration that ran was "
            "rolled back as far as the database can, those before it stay, and the lock is free. Start again to go on.",
            number,
        ) from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Terminated(KeyboardInterrupt):
    """SIGTERM; not an Exception, as a migration that catches those must not catch it."""


def _raise_interrupt(*_: object) -> None:
    raise _Terminated


def _transient(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the transaction may succeed when tried again."""
    while error is not None:
        if isinstance(error, sa.exc.DBAPIError) and transient(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _statement(error: BaseException | None) -> str | None:
    """The SQL that an error came from, in one line; its parameters may be personal data and stay out."""
    while error is not None:
        if isinstance(error, sa.exc.StatementError) and error.statement:
            statement = " ".join(error.statement.split())
            return statement if len(statement) <= 500 else statement[:500] + " …"
        error = error.__cause__ or error.__context__
    return None


def _wal_schema_version(connection: sa.Connection) -> int | None:
    """The schema cookie of a SQLite database in WAL mode; ``None`` in every other."""
    if connection.dialect.name != "sqlite" or connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        return None
    return int(connection.exec_driver_sql("PRAGMA schema_version").scalar_one())
