"""Dry runs: what the pending migrations would do, found without doing any of it.

Each migration is called with operations that ask the database as ever, note what they would have done, and find that
afterwards as if it were there. What cannot be known so is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from . import history
from .binding import bound
from .catalog import Catalog, Reference
from .database import Database
from .ddl import render
from .errors import DbSmartError
from .execution import Execution, Send
from .history import Pending, State
from .memory import insert
from .migrations import Migration, Options
from .operations import Operations
from .settings import DdlSettings
from .steps import Steps, reads

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy.schema import DDLElement

    from .gate import Plan

#: A parameter's mark; what else could hold one is matched whole.
_MARK = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\?""")
_ROWS = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE|WITH)\b", re.IGNORECASE)
_BEGIN, _COMMIT = "BEGIN", "COMMIT"
#: How much of a statement is shown as what a migration does, characters.
_SHOWN = 200


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
            execution.repeated = item.reason == "forced"
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
                yield connection, _NewCatalog(connection)
                return
            with database.connect() as source:
                _copy_schema(source, connection)
                yield connection, _CopyCatalog(connection, source)
    finally:
        engine.dispose()  # the pool keeps the one connection, and with it the copy


class _NewCatalog(Catalog):
    """What a database that is not there yet would have."""

    def stored(self, table: str, schema: str | None) -> None:
        """Nothing is stored."""


class _CopyCatalog(Catalog):
    """What a copy of a schema has; whether a table has rows, the source knows."""

    def __init__(self, copy: sa.Connection, source: sa.Connection) -> None:
        super().__init__(copy)
        self._source = Catalog(source)
        #: What the source calls a table that has another name by now, or is new and so is none of the source's.
        self._names: dict[tuple[str | None, str], str | None] = {}
        #: Tables that the run has put rows into.
        self._filled: set[tuple[str | None, str]] = set()

    def change_rows(self, sql: str) -> None:
        """Try a statement that changes rows, and note which tables get some.

        None are kept: those of the source, which they may refer to, are missing to the copy.
        """
        run = self._connection.exec_driver_sql
        run("PRAGMA defer_foreign_keys = 1")
        run("SAVEPOINT db_smart_rows")
        try:
            run(sql)
            names = run("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^'")
            for name in names.scalars().all():
                if not super().empty(name, None):
                    self._filled.add((None, self.fold(name)))
        finally:
            run("ROLLBACK TO db_smart_rows")
            run("RELEASE db_smart_rows")
            run("PRAGMA defer_foreign_keys = 0")

    def empty(self, table: str, schema: str | None) -> bool:
        """Whether a table has no rows: neither those of the source, nor any that the run has made."""
        former = self._former(table, schema)
        if (schema, self.fold(table)) in self._filled:
            return False
        return super().empty(table, schema) and (former is None or self._source.empty(former, schema))

    def refers(self, reference: Reference, schema: str | None) -> bool:
        """Whether any row has such a foreign key that is not NULL."""
        former = self._former(reference.table, schema)
        if former is not None and not self._source.empty(former, schema):
            present = self._source.present(former, reference.columns, schema)
            # A column that is new to the source's rows has no values in them, unless it has its name from this run.
            if len(present) == len(reference.columns):
                return self._source.refers(replace(reference, table=former), schema)
        return super().refers(reference, schema)

    def stored(self, table: str, schema: str | None) -> str | None:
        """What the source calls a table; ``None`` where it has no such table."""
        return self._former(table, schema)

    def plan_drop(self, table: str, schema: str | None, renamed: str | None = None) -> None:
        """Note that a table is gone, or has another name."""
        former = self._former(table, schema)
        self._names[schema, self.fold(table)] = None
        filled = (schema, self.fold(table)) in self._filled
        self._filled.discard((schema, self.fold(table)))
        if renamed is not None:
            self._filled |= {(schema, self.fold(renamed))} if filled else set()
            self._names[schema, self.fold(renamed)] = former

    def _former(self, table: str, schema: str | None) -> str | None:
        """The source's name of a table; ``None`` for one that only the copy has."""
        key = schema, self.fold(table)
        former = self._names.get(key, table)
        return former if former is not None and self._source.has_table(former, schema) else None


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
        yield "\\set ON_ERROR_STOP on"
        yield from _guard_postgresql(plan.state)
        yield f"SET lock_timeout = {round(settings.lock_timeout * 1000)};"
    elif kind == "mysql":
        yield from _guard_mariadb(plan.state)
        yield f"SET SESSION lock_wait_timeout = {max(1, round(settings.lock_timeout))};"
    elif kind == "sqlite":
        yield ".bail on"
        yield from _guard_sqlite(plan.state)
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
            insert = history.history.insert().inline().values(history.row(shown.migration, 0.0))
            lines.append(render(insert, dialect, literal_binds=True))
        if transactional:
            lines.append(_COMMIT)
        yield from (line if line.startswith("--") else f"{line};" for line in _without_empty_transactions(lines))


def _guards(state: State | None) -> tuple[str, str, str]:
    """What a script asks before anything else: whether it has got hold of the database that it was made for.

    :returns: the id of that one as a literal, what to say where there is no history, and what to say where there is.
    """
    wanted = "" if state is None else state.database_id.replace("'", "''").replace("\\", "")
    if state is None:
        other = "This script is for a database without a history of db-smart, and this one has one"
        return "''", "", f"'{other}: nothing was changed'"
    without = f"This script is for the database with the id {wanted}, and this one has no history of db-smart"
    other = f"This script is for the database with the id {wanted}, and this one has another id"
    return f"'{wanted}'", f"'{without}: nothing was changed'", f"'{other}: nothing was changed'"


def _guard_postgresql(state: State | None) -> Iterator[str]:
    wanted, without, other = _guards(state)
    yield "DO $db_smart$ BEGIN"
    if state is None:
        # Nested, as a condition that names a table is an error where there is none.
        yield "  IF to_regclass('db_smart_state') IS NOT NULL THEN"
        yield "    IF EXISTS (SELECT 1 FROM db_smart_state) THEN"
    else:
        yield "  IF to_regclass('db_smart_state') IS NULL THEN"
        yield f"    RAISE EXCEPTION USING MESSAGE = {without};"
        yield "  ELSE"
        yield f"    IF NOT EXISTS (SELECT 1 FROM db_smart_state WHERE database_id = {wanted}) THEN"
    yield f"      RAISE EXCEPTION USING MESSAGE = {other};"
    yield "    END IF;"
    yield "  END IF;"
    yield "END $db_smart$;"


def _guard_mariadb(state: State | None) -> Iterator[str]:
    wanted, without, other = _guards(state)
    there = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'db_smart_state'"
    yield "DELIMITER //"
    yield "BEGIN NOT ATOMIC"
    if state is None:
        yield f"  IF EXISTS ({there}) THEN"
        yield "    IF EXISTS (SELECT 1 FROM db_smart_state) THEN"
    else:
        yield f"  IF NOT EXISTS ({there}) THEN"
        yield f"    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {without};"
        yield "  ELSE"
        yield f"    IF NOT EXISTS (SELECT 1 FROM db_smart_state WHERE database_id = {wanted}) THEN"
    yield f"      SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {other};"
    yield "    END IF;"
    yield "  END IF;"
    yield "END//"
    yield "DELIMITER ;"


def _guard_sqlite(state: State | None) -> Iterator[str]:
    """SQLite has neither conditions nor blocks: a constraint whose name is what is to be said stops the script."""
    wanted, without, other = _guards(state)
    there = "EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'db_smart_state')"
    questions = [(other, f"NOT {there}")]
    if state is not None:
        mine = f"EXISTS (SELECT 1 FROM main.db_smart_state WHERE database_id = {wanted})"
        questions = [(without, there), (other, mine)]
    for text, question in questions:
        yield f'CREATE TEMP TABLE db_smart_guard (fine INTEGER CONSTRAINT "{text[1:-1]}" CHECK (fine));'
        yield f"INSERT INTO temp.db_smart_guard SELECT {question};"
        yield "DROP TABLE temp.db_smart_guard;"


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
        self.memory = None
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

    def passed_by(self, operation: str, reason: str) -> None:
        """An operation is not to be done, as the database is beyond it."""
        self.current.satisfied.append(f"{operation}: {reason}")

    def note(self, migration: str, event: str, kind: str, schema: str | None, table: str, name: str = "") -> None:
        """Note what the run would remember; the script does so too."""
        new = None if self.memory is None else self.memory.event(migration, event, kind, schema, table, name)
        if new is not None:
            self.current.script.append(render(insert(new), self.connection.dialect, literal_binds=True))

    @contextmanager
    def undoable(self) -> Iterator[None]:
        """Nothing is done, so that there is nothing to undo."""
        yield

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
        self.rows_changed = self.rows_changed or _ROWS.match(text) is not None
        if isinstance(self.catalog, _CopyCatalog) and _ROWS.match(text):
            self.catalog.change_rows(text)
        elif self.dialect == "sqlite":
            self.connection.exec_driver_sql(text)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is sent past :meth:`send`, as the rebuild of a SQLite table is."""

        def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
            if not reads(statement) or (statement.startswith("PRAGMA") and "=" in statement):
                self.current.script.append(_with_values(statement, parameters or ()))

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
        text = " ".join(str(statement).split())
        self.current.does.append(f"execute({text if len(text) <= _SHOWN else text[:_SHOWN] + ' …'!r})")
        for values in [parameters] if parameters is None or isinstance(parameters, Mapping) else parameters:
            try:
                bound_statement = _bind(statement, values or {})
                self.send(render(bound_statement, dialect, literal_binds=True))
            except (sa.exc.CompileError, NotImplementedError, DbSmartError):
                self.rows_changed = True
                self.remark(f"with values that have no form in SQL: {statement}")
        return self.connection.exec_driver_sql("SELECT 1 FROM (SELECT 1 AS one) AS no_rows WHERE 1 = 0")

    def confirm(self) -> None:
        """No lock is held."""


class _Unforeseeable(Exception):
    """A dry run cannot go on with this migration."""


def _unforeseeable(what: str) -> NoReturn:
    raise _Unforeseeable(what)


def _with_values(statement: str, values: Iterable[Any]) -> str:
    """A statement with its ``?`` replaced by values, but for those in names and strings."""
    left = iter(values)

    def fill(found: re.Match[str]) -> str:
        if found[0] != "?":
            return found[0]
        value = next(left)
        return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)

    return _MARK.sub(fill, statement) if values else statement


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
