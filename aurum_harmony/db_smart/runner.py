"""Apply what is pending: each migration and its record in one transaction where the database can."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from . import history
from .binding import bound
from .database import Database, begin
from .errors import DbSmartError, MigrationFailed
from .gate import Gate
from .history import Pending, State
from .migrations import Migration, location
from .operations import Operations
from .signals import migration_applied, migration_failed, migration_started

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A migration that was applied.

    :ivar duration: seconds.
    """

    migration: str
    database: str
    duration: float


class Runner:
    """Applies the pending migrations of an application.

    :param create_all: whether the first run on a database makes the missing tables of the models.
    """

    def __init__(self, app: Flask, db: SQLAlchemy, gate: Gate, *, create_all: bool) -> None:
        self._app = app
        self._db = db
        self._gate = gate
        self._create_all = create_all

    def run(self, databases: Iterable[Database], *, force: bool = False) -> tuple[list[Run], dict[str, State]]:
        """Apply what is pending on each database, in order.

        :param databases: the databases to migrate.
        :param force: run every repeatable migration again.
        :returns: what was applied, and the state row of each database.
        :raises MigrationFailed: a migration raised; those before it stay applied.
        :raises DatabaseUnreachable: a database cannot be reached.
        :raises DbSmartError: a database refuses what is not a migration's: our tables, a lock.
        """
        runs: list[Run] = []
        states: dict[str, State] = {}
        for database in databases:
            before = len(runs)
            try:
                if database.path is not None:
                    database.path.parent.mkdir(parents=True, exist_ok=True)
                with database.connect() as connection:
                    states[database.name] = self._migrate(database, connection, force, runs)
            except (sa.exc.SQLAlchemyError, OSError) as error:
                raise DbSmartError(
                    f"Cannot migrate the database {database.name!r} ({database.url}): {database.redact(error)}. "
                    f"Migrations applied to it so far: {len(runs) - before}; they stay. Mend the cause and start again."
                ) from error
        return runs, states

    def _migrate(self, database: Database, connection: sa.Connection, force: bool, runs: list[Run]) -> State:
        wal_version = _wal_schema_version(connection)
        self._prepare(database, connection)
        todo = self._gate.by_connection(database, connection, force=force).pending
        connection.rollback()  # what was only read
        for index, item in enumerate(todo, 1):
            runs.append(self._apply(database, connection, item, index, len(todo)))
        begin(connection)
        if todo and wal_version is not None and wal_version == _wal_schema_version(connection):
            # In WAL mode only a schema change surely shows in the file's header, by which boot tells this file from
            # an older copy of it.
            connection.exec_driver_sql("CREATE TABLE db_smart_moved (id INTEGER)")
            connection.exec_driver_sql("DROP TABLE db_smart_moved")
        state = history.seal(connection, self._gate.sources.digest, [item.name for item in self._gate.involved])
        connection.commit()
        if wal_version is not None:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        return state

    def _prepare(self, database: Database, connection: sa.Connection) -> None:
        """Make our tables; on the first run also those of the models."""
        if history.read_state(connection) is not None and history.read_applied(connection):
            connection.rollback()
            return
        connection.rollback()
        begin(connection)
        history.create_tables(connection)
        metadata = self._db.metadatas.get(database.key)
        if self._create_all and metadata is not None:
            metadata.create_all(connection)
        connection.commit()

    def _apply(self, database: Database, connection: sa.Connection, item: Pending, index: int, total: int) -> Run:
        migration = item.migration
        told: dict[str, Any] = {"migration": migration.name, "database": database.name, "index": index, "total": total}
        migration_started.send(self._app, **told)
        started = time.perf_counter()
        try:
            if migration.options.transactional:
                begin(connection)
                self._call(database, connection, migration, in_transaction=True)
            else:
                with database.connect(autocommit=True) as own:
                    self._call(database, own, migration, in_transaction=False)
                begin(connection)
            duration = time.perf_counter() - started
            history.record(connection, migration, duration)
            connection.commit()
        except Exception as error:
            failed = self._failed(database, connection, item, error, index - 1, time.perf_counter() - started)
            migration_failed.send(self._app, **told, error=failed)
            raise failed from error
        migration_applied.send(self._app, **told, duration=duration)
        return Run(migration.name, database.name, duration)

    def _call(
        self, database: Database, connection: sa.Connection, migration: Migration, *, in_transaction: bool
    ) -> None:
        with bound(self._app, self._db, database, connection if in_transaction else None) as engine:
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
            history.record(connection, migration, seconds, error=cause)
            connection.commit()
        except sa.exc.SQLAlchemyError as second:
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
