"""Dry runs: what the pending migrations would do, found without doing any of it.

Each migration is called with operations that ask the database as ever, note what they would have done, and find that
afterwards as if it were there. What cannot be known so is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from . import history
from .binding import bound
from .database import Database
from .ddl import render
from .errors import DbSmartError
from .execution import Execution, Send
from .history import Pending
from .migrations import Migration
from .operations import Operations
from .settings import DdlSettings
from .steps import Steps, reads

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy.schema import DDLElement

_BEGIN, _COMMIT = "BEGIN", "COMMIT"


@dataclass
class Preview:
    """What one migration would do.

    :ivar does: operations that would do something, in order.
    :ivar satisfied: operations that find nothing to do.
    :ivar unknown: why some of it cannot be known beforehand; ``None`` where all is.
    :ivar error: what the migration would fail with.
    :ivar script: statements and, beginning with ``--``, remarks.
    """

    migration: Migration
    reason: str
    does: list[str] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)
    unknown: str | None = None
    error: str | None = None
    script: list[str] = field(default_factory=list)


def preview(app: Flask, db: SQLAlchemy, database: Database, pending: Iterable[Pending]) -> list[Preview]:
    """What each pending migration of a database would do. Needs an application context.

    Reads only, in a transaction of its own that is rolled back. A database that does not exist yet is taken as empty.

    :raises DatabaseUnreachable: no connection could be made.
    """
    if not database.exists:
        engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        database = Database(database.name, database.key, engine)
    previews = []
    with database.connect() as connection:
        execution = DryExecution(database, connection)
        for item in pending:
            shown = execution.current = Preview(item.migration, item.reason)
            previews.append(shown)
            try:
                with bound(app, db, database, lambda: _unforeseeable("db.session or db.engine")):
                    if not item.migration.takes_operations:
                        _unforeseeable("no operations, only db.session and db.engine")
                    operations = Operations(execution, db, item.migration, execution.catalog)
                    item.migration.function(operations)
            except _Unforeseeable as error:
                shown.unknown = str(error)
                execution.remark(f"from here on it cannot be known beforehand: the migration uses {error}")
            except Exception as error:  # of the migration: it may fail for real, or for want of what it would have made
                connection.rollback()
                shown.error = database.redact(error)
                execution.remark(f"it ends here: {shown.error}")
    return previews


def script(database: Database, previews: Iterable[Preview], settings: DdlSettings) -> Iterator[str]:
    """The previews as SQL for the database's own client, line by line, with transaction boundaries.

    The history is written too, so that the next boot finds the migrations applied.
    """
    dialect = database.app_engine.dialect
    kind = "mysql" if dialect.name == "mariadb" else dialect.name
    client = {"postgresql": "psql", "mysql": "mariadb", "sqlite": "sqlite3"}.get(kind, "its client")
    yield f"-- For the database {database.name!r} ({database.url}), by {client}. Made {_now()} UTC from its state then."
    if kind == "postgresql":
        yield f"SET lock_timeout = {round(settings.lock_timeout * 1000)};"
        yield "\\set ON_ERROR_STOP on"
    elif kind == "mysql":
        yield f"SET SESSION lock_wait_timeout = {max(1, round(settings.lock_timeout))};"
    elif kind == "sqlite":
        yield ".bail on"
    transactional = database.transactional_ddl
    for table in history.metadata.sorted_tables:
        yield f"{render(sa.schema.CreateTable(table, if_not_exists=True), dialect)};"
    for shown in previews:
        yield f"\n-- {shown.migration.name} ({shown.reason})"
        lines = [_BEGIN, *shown.script] if transactional else list(shown.script)
        if shown.unknown is None and shown.error is None:
            insert = history.history.insert().values(history.row(shown.migration, 0.0))
            lines.append(render(insert, dialect, literal_binds=True))
        else:
            lines.append("-- not recorded as applied: db-smart runs it at the next boot")
        if transactional:
            lines.append(_COMMIT)
        yield from (line if line.startswith("--") else f"{line};" for line in _without_empty_transactions(lines))


class DryExecution(Execution):
    """An execution that notes instead of sending."""

    dry = True

    def __init__(self, database: Database, connection: sa.Connection) -> None:
        from .catalog import Catalog

        self.database = database
        self.connection = connection
        self.transactional = True
        self.steps = Steps(connection, "", at_once=False, begun=False)
        self.before_cut = []
        self.catalog = Catalog(connection, dry=True)
        self.current: Preview

    @property
    def engine(self) -> Engine:  # type: ignore[override]
        """There is none: what goes past the operations cannot be foreseen."""
        _unforeseeable("a connection of its own")

    def unforeseeable(self, what: str) -> None:
        """A migration uses something that cannot be foreseen."""
        _unforeseeable(what)

    def satisfied(self, operation: str) -> None:
        """An operation has found that there is nothing to do."""
        self.current.satisfied.append(operation)

    @contextmanager
    def operation(self, operation: str) -> Iterator[None]:
        """An operation would do something."""
        self.current.does.append(operation)
        yield

    def remark(self, text: str) -> None:
        """Say something that is no SQL."""
        self.current.script.append(f"-- {' '.join(text.split())}")

    def send(self, change: DDLElement | str, more: str = "") -> None:
        """Note one schema change."""
        text = change if isinstance(change, str) else render(change, self.connection.dialect)
        self.current.script.append(text + more)

    def cut(self) -> None:
        """Note the end of a transaction."""
        if self.database.transactional_ddl:
            self.current.script += [_COMMIT, _BEGIN]

    @contextmanager
    def outside(self) -> Iterator[Send]:
        """Note what cannot run in a transaction."""
        self.current.script.append(_COMMIT)
        yield self.send
        self.current.script.append(_BEGIN)

    @contextmanager
    def pragma(self, name: str, value: str) -> Iterator[None]:
        """Note a pragma for one transaction."""
        before = self.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        self.current.script += [_COMMIT, f"PRAGMA {name} = {value}", _BEGIN]
        yield
        self.current.script += [_COMMIT, f"PRAGMA {name} = {before}", _BEGIN]

    def pretend(self, statement: Any, parameters: Any) -> sa.CursorResult[Any]:
        """Run a statement that only reads; note any other, which then returns nothing."""
        dialect = self.connection.dialect
        if reads(str(statement.compile(dialect=dialect))):
            return self.connection.execute(statement, parameters)
        self.current.does.append("execute()")
        for values in [parameters] if parameters is None or isinstance(parameters, Mapping) else parameters:
            try:
                bound_statement = _bind(statement, values or {})
                self.send(render(bound_statement, dialect, literal_binds=True))
            except (sa.exc.CompileError, NotImplementedError, DbSmartError):
                self.remark(f"with values that have no form in SQL: {statement}")
        return self.connection.exec_driver_sql("SELECT 1 FROM (SELECT 1 AS one) AS nothing WHERE 1 = 0")

    def confirm(self) -> None:
        """No lock is held."""


class _Unforeseeable(Exception):
    """A dry run cannot go on with this migration."""


def _unforeseeable(what: str) -> NoReturn:
    raise _Unforeseeable(what)


def _bind(statement: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(statement, sa.TextClause):
        return statement.bindparams(**values)
    if values and isinstance(statement, (sa.Insert, sa.Update)):
        return statement.values(values)
    return statement.params(values) if values else statement


def _without_empty_transactions(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if line == _COMMIT and kept and kept[-1] == _BEGIN:
            kept.pop()
        else:
            kept.append(line)
    return kept


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
