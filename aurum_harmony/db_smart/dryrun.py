"""Dry runs: what the pending migrations would do, found without doing any of it.

Each migration is called with operations that ask the database as ever, note what they would have done, and find that
afterwards as if it were there. What cannot be known so is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from . import history
from .binding import bound
from .catalog import Catalog
from .database import Database
from .ddl import render
from .errors import DbSmartError
from .execution import Execution, Send
from .history import Pending
from .migrations import Migration, Options
from .operations import Operations
from .settings import DdlSettings
from .steps import Steps, reads

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy.schema import DDLElement

    from .gate import Plan

_BEGIN, _COMMIT = "BEGIN", "COMMIT"


@dataclass
class Preview:
    """What one migration would do.

    :ivar migration: ``None`` for the tables of the models, which the first run makes.
    :ivar does: operations that would do something, in order.
    :ivar satisfied: operations that find nothing to do.
    :ivar unknown: why some of it cannot be known beforehand; ``None`` where all is.
    :ivar error: what the migration would fail with.
    :ivar script: statements and, beginning with ``--``, remarks.
    """

    name: str
    reason: str
    migration: Migration | None = None
    does: list[str] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)
    unknown: str | None = None
    error: str | None = None
    script: list[str] = field(default_factory=list)


def preview(
    app: Flask, db: SQLAlchemy, database: Database, pending: Iterable[Pending], *, models: sa.MetaData | None
) -> list[Preview]:
    """What each pending migration of a database would do. Needs an application context.

    Reads only. A SQLite database is played through on a copy of its schema in memory, without its rows.

    :param models: the models whose tables the run would make first, if it would.
    :raises DatabaseUnreachable: no connection could be made.
    """
    previews = []
    with _opened(database) as (connection, catalog):
        execution = DryExecution(database, connection, catalog)
        if models is not None:
            tables = Migration("", "", Options(), lambda op: None, True, "")
            execution.current = Preview("tables of the models", "first run")
            operations = Operations(execution, db, tables, catalog)
            for table in models.sorted_tables:
                if not operations.has_table(table.name, schema=table.schema):
                    operations.sync(table)
            if execution.current.does:
                previews.append(execution.current)
        for item in pending:
            shown = execution.current = Preview(item.migration.name, item.reason, item.migration)
            previews.append(shown)
            try:
                with bound(app, db, database, lambda: _unforeseeable("db.session or db.engine")):
                    if not item.migration.takes_operations:
                        _unforeseeable("no operations, only db.session and db.engine")
                    item.migration.function(Operations(execution, db, item.migration, catalog))
            except _Unforeseeable as error:
                shown.unknown = str(error)
                execution.remark(f"from here on it cannot be known beforehand: the migration uses {error}")
            except Exception as error:  # of the migration: it may fail for real, or for want of what it would have made
                connection.rollback()
                shown.error = database.redact(error)
                execution.remark(f"it ends here: {shown.error}")
    return previews


@contextmanager
def _opened(database: Database) -> Iterator[tuple[sa.Connection, Catalog]]:
    """A connection to play a run through, and what is there."""
    if database.dialect != "sqlite":
        with database.connect() as connection:
            yield connection, Catalog(connection, dry=True)
        return
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    copy = Database(database.name, database.key, engine)
    try:
        with copy.connect() as connection:
            if not database.exists:
                yield connection, Catalog(connection)
                return
            with database.connect() as source:
                _copy_schema(source, connection)
                yield connection, _CopyCatalog(connection, source)
    finally:
        engine.dispose()  # the pool keeps the one connection, and with it the copy


class _CopyCatalog(Catalog):
    """What a copy of a schema has; whether a table has rows, the source knows."""

    def __init__(self, copy: sa.Connection, source: sa.Connection) -> None:
        super().__init__(copy)
        self._source = Catalog(source)

    def empty(self, table: str, schema: str | None) -> bool:
        """Whether a table has no rows; one that only the copy has is new."""
        return not self._source.has_table(table, schema) or self._source.empty(table, schema)


def _copy_schema(source: sa.Connection, copy: sa.Connection) -> None:
    order = "CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid"
    query = (
        f"SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY {order}"
    )
    for sql in source.exec_driver_sql(query).scalars().all():
        # The tables behind a virtual one come with it; a view or trigger may be broken already.
        with suppress(sa.exc.DBAPIError):
            copy.exec_driver_sql(sql)
    for record in ("sqlite_sequence", "sqlite_stat1"):  # what a rebuild has to move
        if source.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = ?", (record,)).first():
            with suppress(sa.exc.DBAPIError):
                for row in source.exec_driver_sql(f"SELECT * FROM {record}"):
                    copy.exec_driver_sql(f"INSERT INTO {record} VALUES ({', '.join('?' * len(row))})", tuple(row))
    enforced = source.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
    copy.exec_driver_sql(f"PRAGMA foreign_keys = {enforced}")
    source.rollback()
    copy.rollback()


def script(plan: Plan, previews: Iterable[Preview], settings: DdlSettings) -> Iterator[str]:
    """The previews as SQL for the database's own client, line by line, with transaction boundaries.

    The history is written too, so that the next boot finds the migrations applied. From the first one on that cannot be
    known whole, they are remarks.
    """
    database = plan.database
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
    if plan.state is None:
        yield f"{render(history.state.insert().values(history.new_state()), dialect, literal_binds=True)};"
    known = True
    for shown in previews:
        yield f"\n-- {shown.name} ({shown.reason})"
        known = known and shown.unknown is None and shown.error is None
        if not known:
            # Half of a migration would be done twice, and what comes after it may build on the other half.
            yield "-- Left to db-smart, which runs it at the next boot; of it is known:"
            yield from ("-- " + line.removeprefix("-- ").replace("\n", "\n-- ") for line in shown.script)
            continue
        lines = [_BEGIN, *shown.script] if transactional else list(shown.script)
        if shown.migration is not None:
            insert = history.history.insert().values(history.row(shown.migration, 0.0))
            lines.append(render(insert, dialect, literal_binds=True))
        if transactional:
            lines.append(_COMMIT)
        yield from (line if line.startswith("--") else f"{line};" for line in _without_empty_transactions(lines))


class DryExecution(Execution):
    """An execution that notes instead of sending."""

    dry = True

    def __init__(self, database: Database, connection: sa.Connection, catalog: Catalog) -> None:
        self.database = database
        self.connection = connection
        self.transactional = True
        self.steps = Steps(connection, "", at_once=False, begun=False)
        self.before_cut, self.after_rollback = [], []
        self.catalog = catalog
        self.current: Preview

    @property
    def engine(self) -> Engine:
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
        text = (change if isinstance(change, str) else render(change, self.connection.dialect)) + more
        self.current.script.append(text)
        if self.dialect == "sqlite":
            self.connection.exec_driver_sql(text)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is sent past :meth:`send`, as the rebuild of a SQLite table is."""

        def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
            if not reads(statement) or (statement.startswith("PRAGMA") and "=" in statement):
                for value in parameters or ():
                    statement = statement.replace("?", repr(value), 1)
                self.current.script.append(statement)

        sa.event.listen(self.connection, "before_cursor_execute", note)
        try:
            yield
        finally:
            sa.event.remove(self.connection, "before_cursor_execute", note)

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
        self.connection.exec_driver_sql(f"PRAGMA {name} = {value}")
        yield
        self.connection.exec_driver_sql(f"PRAGMA {name} = {before}")
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
        return self.connection.exec_driver_sql("SELECT 1 FROM (SELECT 1 AS one) AS no_rows WHERE 1 = 0")

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
