"""How a schema is changed in the plain form, which every database has and which blocks the table meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import sqlalchemy as sa
from alembic.ddl.base import ColumnDefault, ColumnNullable, ColumnType, DropColumn, RenameTable
from sqlalchemy.types import TypeEngine

from ..schema.catalog import Catalog, Constraint
from ..schema.ddl import AddColumns, RenameColumn
from ..schema.rules import OLD_ROWS, Refused, counted
from ..session.sql import condition_text, default_text, render
from ..session.transaction import Transaction

#: The kind of a constraint that rows break.
Broken = Literal["unique", "check", "foreign"]


@dataclass
class Change:
    """What is to become of a column; only what really changes.

    :ivar existing: the column as SQLAlchemy's inspector has it.
    :ivar server_default: ``False`` when it stays.
    :ivar using: PostgreSQL's expression for the values of the new type.
    :ivar checks: on SQLite, the checks that come with the new type and are not there.
    """

    table: str
    schema: str | None
    column: str
    existing: dict[str, Any]
    nullable: bool | None = None
    type_: TypeEngine[Any] | None = None
    server_default: Any = False
    name: str | None = None
    using: str | None = None
    checks: Sequence[sa.CheckConstraint] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        same = self.nullable is None and self.type_ is None and self.server_default is False and self.name is None
        return same and not self.checks


def editor_of(transaction: Transaction, catalog: Catalog) -> SchemaEditor:
    """The editor for the kind of database that is being migrated; it stands beside the facts of that kind."""
    folder = type(transaction.facts).__module__.rpartition(".")[0]
    kind: type[SchemaEditor] = getattr(import_module(f"{folder}.editor"), transaction.facts.editor)
    return kind(transaction, catalog)


class SchemaEditor:
    """How one kind of database makes schema changes.

    Everywhere ``online`` says that the table has rows and is to stay usable; where it is false, the plain form is
    taken. All can be repeated after an interruption.

    :param transaction: sends them.
    :param catalog: what is there.
    """

    #: Whether some changes have a form that does not block.
    has_online = False

    def __init__(self, transaction: Transaction, catalog: Catalog) -> None:
        self.transaction = transaction
        self.catalog = catalog

    @property
    def dialect(self) -> sa.Dialect:
        """The dialect of the connection."""
        return self.transaction.connection.dialect

    def create_table(self, table: sa.Table) -> None:
        """Create a table that is missing, without its indexes."""
        self.create_types(table.columns)
        self.transaction.send(sa.schema.CreateTable(table))
        if self.dialect.supports_comments and not self.dialect.inline_comments:
            if table.comment is not None:
                self.transaction.send(sa.schema.SetTableComment(table))
            self._comment(table.columns)

    def drop_table(self, table: sa.Table) -> None:
        """Drop a table."""
        self.transaction.send(sa.schema.DropTable(table))

    def rename_table(self, table: str, name: str, schema: str | None) -> None:
        """Give a table another name."""
        self.transaction.send(RenameTable(table, name, schema=schema))

    def replace_table(self, table: sa.Table, name: str) -> None:
        """Drop an empty table, and give its name to another one.

        :param name: of the other one.
        """
        self.drop_table(table)
        self.rename_table(name, table.name, table.schema)

    def rows_moved(self, table: str, schema: str | None, columns: Sequence[str]) -> None:
        """Do what rows that came with their keys from another table leave to do."""

    def add_columns(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], online: bool
    ) -> None:
        """Add columns that are missing, with constraints on them; as one statement where that can be."""
        self.create_types(columns)
        self.transaction.send(AddColumns(table, columns, constraints))
        self._comment(columns)

    def finish_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Do what adding these columns has left to do, also when an earlier run has added them."""

    def drop_column(self, table: str, column: str, schema: str | None, online: bool) -> None:
        """Drop a column."""
        self.transaction.send(DropColumn(table, sa.Column(column, sa.types.NullType()), schema=schema))

    def shared(self, table: str, column: str, schema: str | None) -> list[str]:
        """What a column has together with others and would take along in silence, such as ``"the index 'ix'"``."""
        return []

    def create_index(self, index: sa.Index, online: bool) -> None:
        """Create an index that is missing."""
        self.transaction.send(sa.schema.CreateIndex(index))

    def drop_index(self, index: sa.Index, online: bool) -> None:
        """Drop an index."""
        self.transaction.send(sa.schema.DropIndex(index))

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a named constraint that is missing."""
        self.transaction.send(sa.schema.AddConstraint(constraint))

    def finish_constraint(self, constraint: sa.Constraint, existing: Constraint) -> None:
        """Do what an earlier run has left to do for a constraint that is there."""

    def same_condition(self, constraint: sa.CheckConstraint, existing: Constraint) -> bool:
        """Whether a check that is there has this condition, as the database itself understands both; in doubt it has.

        How they are written makes no difference: the database is asked how it would compute them for the rows of the
        table, which it does not do.
        """
        connection, table = self.transaction.connection, constraint.table
        wanted, shown = condition_text(constraint.sqltext, self.dialect), existing.condition
        if shown is None or self.catalog.stored(table.name, table.schema) != table.name:
            return True
        rows = sa.table(table.name, schema=table.schema)
        queries = []
        for text in (shown, wanted):
            query: sa.Select[Any] = sa.select(sa.literal_column(f"({text}\n)").label("c")).select_from(rows)
            query = query.with_hint(rows, "ONLY", "postgresql")  # one plan, whatever partitions there are
            queries.append(render(query, self.dialect))
        nested = self.transaction.facts.failure_ends_transaction and self.transaction.transactional
        try:
            with connection.begin_nested() if nested else nullcontext():
                one, other = map(self.understood, queries)
                return bool(one == other)
        except sa.exc.DBAPIError:  # a column of it has another name by now
            return True

    def understood(self, query: str) -> Any:
        """How the database understands a query, however it is written; ``None`` where it does not tell."""
        return None

    def plain(self, sql: str) -> sa.CursorResult[Any]:
        """The result of SQL in which a percent sign is one."""
        return self.transaction.connection.exec_driver_sql(sql, execution_options={"no_parameters": True})

    def drop_constraint(self, constraint: sa.Constraint) -> None:
        """Drop a named constraint."""
        self.transaction.send(sa.schema.DropConstraint(constraint))

    def alter_column(self, change: Change, online: bool) -> None:
        """Change a column."""
        place: dict[str, Any] = {"schema": change.schema}
        if change.type_ is not None:
            self.transaction.send(ColumnType(change.table, change.column, change.type_, **place))
        if change.nullable is not None:
            self.transaction.send(ColumnNullable(change.table, change.column, change.nullable, **place))
        if change.server_default is not False:
            self.transaction.send(ColumnDefault(change.table, change.column, change.server_default, **place))
        self.rename_column(change)

    def rename_column(self, change: Change) -> None:
        """Give a column its new name, if it gets one."""
        if change.name is not None:
            self.transaction.send(RenameColumn(change.table, change.column, change.name, change.schema))

    def create_types(self, columns: Sequence[sa.Column[Any]] | sa.ColumnCollection[str, sa.Column[Any]]) -> None:
        """Make the types of columns that are things of their own: PostgreSQL's native enumerations."""

    def type_is(self, old: TypeEngine[Any], new: TypeEngine[Any]) -> Literal["same", "wider", "other"]:
        """What a change of type does; see :func:`.column_types.compare`."""
        from ..schema.column_types import compare

        return compare(old, new, self.dialect)

    def default(self, change: Change) -> str | None:
        """The default that a column has, as the database shows it."""
        shown = change.existing["default"]
        return None if shown is None else str(shown)

    def wanted(
        self, change: Change, type_: TypeEngine[Any] | None, nullable: bool | None
    ) -> tuple[TypeEngine[Any] | None, bool | None]:
        """What is asked for of a column, without what this kind of database does not tell from what it has."""
        return type_, nullable

    def _shared(self, table: str, column: str, schema: str | None) -> list[str]:
        """As :meth:`shared`, of indexes and constraints by their columns."""
        kinds: dict[str, str] = {}
        normalize_name = self.catalog.normalize_name
        for index in self.catalog.indexes(table, schema).values():
            if len(index.columns) > 1 and normalize_name(column) in [
                normalize_name(name) for name in index.columns if name
            ]:
                kinds[index.name] = "index"
        for constraint in self.catalog.constraints(table, schema).values():
            if len(constraint.columns) > 1 and normalize_name(column) in map(normalize_name, constraint.columns):
                kinds[constraint.name] = "constraint"
        return [f"the {kind} {name!r}" for name, kind in sorted(kinds.items())]

    def breaking(self, table: sa.Table, condition: sa.ClauseElement, columns: Sequence[sa.Column[Any]] = ()) -> int:
        """How many rows of a table do not meet the condition of a check.

        :param columns: those that are new to it, in which rows have the default.
        """
        text = condition_text(condition, self.dialect)
        broken: sa.ColumnElement[bool] = sa.literal_column(f"NOT ({text}\n)")
        query = sa.select(sa.func.count()).select_from(self.rows(table, columns)).where(broken)
        return self.transaction.connection.scalar(query) or 0

    def broken_checks(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Iterable[sa.Constraint]
    ) -> str:
        """How many rows break the checks of columns that are new to a table, as sentences; empty where none do.

        :param constraints: of the table, beside those of the columns themselves.
        """
        said = ""
        for check in [*constraints, *(each for column in columns for each in column.constraints)]:
            if isinstance(check, sa.CheckConstraint):
                count = self.breaking(table, check.sqltext, columns)
                text = condition_text(check.sqltext, self.dialect)
                said += f"{counted(count, 'breaks', 'break')} the check {text}. " if count else ""
        return said

    def repeated(self, table: sa.Table, names: Iterable[str], columns: Sequence[sa.Column[Any]] = ()) -> int:
        """How many rows of a table have the same values in some columns as others.

        :param columns: as for :meth:`breaking`.
        """
        parts: list[sa.ColumnClause[Any]] = [sa.column(name) for name in names]
        groups = sa.select(sa.func.count().label("alike")).select_from(self.rows(table, columns)).group_by(*parts)
        groups = groups.where(sa.true(), *(part.is_not(None) for part in parts)).having(sa.func.count() > 1)
        return self.transaction.connection.scalar(sa.select(sa.func.sum(groups.subquery().c.alike))) or 0

    def lost(self, constraint: sa.ForeignKeyConstraint, columns: Sequence[sa.Column[Any]] = ()) -> int:
        """How many rows break a foreign key.

        :param columns: those that are new to its table, in which rows have the default.
        """
        return self.transaction.connection.scalar(self.count_lost(constraint, columns)) or 0

    def count_lost(self, constraint: sa.ForeignKeyConstraint, columns: Sequence[sa.Column[Any]] = ()) -> sa.Select[Any]:
        """The query for :meth:`lost`."""
        source = self.rows(constraint.table, columns).alias("own")
        first = constraint.elements[0].column.table
        targets = [element.column.name for element in constraint.elements]
        target = sa.table(first.name, *map(sa.column, targets), schema=first.schema).alias("target")
        own: list[sa.ColumnClause[Any]] = [sa.column(name, _selectable=source) for name in constraint.column_keys]
        match = sa.and_(*(column == target.c[name] for column, name in zip(own, targets, strict=True)))
        broken = sa.and_(*(column.is_not(None) for column in own), ~sa.exists().where(match).correlate(source))
        return sa.select(sa.func.count()).select_from(source).where(broken)

    def broken(self, error: sa.exc.DBAPIError) -> Broken | None:
        """The kind of the constraint that the database says rows break; ``None`` for any other error."""
        return None

    @contextmanager
    def rows_in_the_way(
        self,
        table: sa.Table,
        constraints: Sequence[sa.Constraint],
        what: str,
        columns: Sequence[sa.Column[Any]] = (),
        unique: Sequence[str] = (),
    ) -> Iterator[None]:
        """Say how many rows are in the way of constraints.

        :param columns: those that are added with them.
        :param unique: the columns of a unique index.
        :raises Refused: there are such rows.
        """
        try:
            with self.transaction.undoable():
                yield
        except sa.exc.DBAPIError as error:
            kind = self.broken(error)
            if kind is None:
                raise
            raise Refused(OLD_ROWS, what, self.found(kind, table, constraints, columns, unique)) from error

    def found(self, *arguments: Any, **more: Any) -> str:
        """As :meth:`in_the_way`; nothing where they cannot be counted, which must not hide that there are some."""
        try:
            with self.transaction.undoable():
                return self.in_the_way(*arguments, **more)
        except sa.exc.DBAPIError:
            return ""

    def in_the_way(
        self,
        kind: Broken,
        table: sa.Table,
        constraints: Iterable[sa.Constraint],
        columns: Sequence[sa.Column[Any]] = (),
        unique: Sequence[str] = (),
    ) -> str:
        """How many rows are in the way of constraints, as sentences; empty where none can be found.

        :param kind: of the constraint that the database says is broken.
        :param columns: as for :meth:`breaking`.
        :param unique: the columns of a unique index.
        """
        found = ""
        if kind == "unique" and unique:
            found += _alike(self.repeated(table, unique, columns))
        for each in constraints:
            if kind == "unique" and isinstance(each, sa.UniqueConstraint):
                found += _alike(self.repeated(table, [one.name for one in each.columns], columns))
            elif kind == "check" and isinstance(each, sa.CheckConstraint):
                count = self.breaking(table, each.sqltext, columns)
                found += f"{counted(count, 'breaks', 'break')} its condition. " if count else ""
            elif kind == "foreign" and isinstance(each, sa.ForeignKeyConstraint):
                count = self.lost(each, columns)
                found += f"{counted(count, 'refers', 'refer')} to missing rows. " if count else ""
        return found

    def rows(self, table: sa.Table, columns: Sequence[sa.Column[Any]] = ()) -> sa.FromClause:
        """The rows of a table as they are with columns that are new to it, which have the default."""
        source = sa.table(table.name, schema=table.schema)
        if not columns:
            return source
        values: list[sa.Label[Any]] = []
        for column in columns:
            given = default_text(column, self.dialect)
            if column.computed is not None:
                given = condition_text(column.computed.sqltext, self.dialect)
            value: sa.ColumnElement[Any] = sa.literal_column(f"({given or 'NULL'})")
            if self.transaction.facts.casts_literals:
                value = sa.cast(value, column.type)
            values.append(value.label(column.name))
        return sa.select(sa.literal_column("*"), *values).select_from(source).subquery("old")

    def _comment(self, columns: Sequence[sa.Column[Any]] | sa.ColumnCollection[str, sa.Column[Any]]) -> None:
        if self.dialect.supports_comments and not self.dialect.inline_comments:
            for column in columns:
                if column.comment is not None:
                    self.transaction.send(sa.schema.SetColumnComment(column))


def _alike(count: int) -> str:
    return f"{counted(count, 'has', 'have')} the same values as others. " if count else ""
