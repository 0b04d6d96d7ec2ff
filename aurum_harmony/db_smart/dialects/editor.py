"""How a schema is changed in the plain form, which every database has and which blocks the table meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

import sqlalchemy as sa
from alembic.ddl.base import ColumnDefault, ColumnNullable, ColumnType, DropColumn, RenameTable
from alembic.operations.schemaobj import SchemaObjects
from sqlalchemy.types import TypeEngine

from ..errors import DbSmartError
from ..schema.catalog import Catalog, Constraint, Index
from ..schema.column_types import listed_values
from ..schema.ddl import AddColumns, CreateDeclared, DropDeclared, RenameColumn, ReplaceCheck
from ..schema.rules import ENUM_VALUES, OLD_ROWS, REWRITE, Refused, Rule, counted
from ..session.sql import condition_text, default_text, needed, render
from ..session.transaction import Transaction
from .base import Facts

#: The kind of a constraint that rows break.
Broken = Literal["unique", "check", "foreign"]


@dataclass
class Change:
    """What is to become of a column; only what really changes.

    :ivar existing: the column as SQLAlchemy's inspector has it.
    :ivar server_default: ``False`` when it stays.
    :ivar using: PostgreSQL's expression for the values of the new type.
    :ivar comment: ``False`` when it stays.
    :ivar checks: those that come with the new type and are not there; one that is there under their name gives way.
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
    comment: Any = False
    checks: Sequence[sa.CheckConstraint] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        same = self.nullable is None and self.type_ is None and self.server_default is False and self.name is None
        return same and self.comment is False and not self.checks


def editor_of(transaction: Transaction, catalog: Catalog) -> SchemaEditor:
    """The editor for the kind of database that is being migrated."""
    return _editor_class(transaction.facts)(transaction, catalog)


@cache
def _editor_class(facts: Facts) -> type[SchemaEditor]:
    """The class that the facts name; it stands beside them."""
    folder = type(facts).__module__.rpartition(".")[0]
    kind: type[SchemaEditor] = getattr(import_module(f"{folder}.editor"), facts.editor)
    return kind


class SchemaEditor:
    """How one kind of database makes schema changes.

    Everywhere ``online`` says that the table has rows and is to stay usable; where it is false, the plain form is
    taken. All can be repeated after an interruption.

    :param transaction: sends them.
    :param catalog: what is there.
    """

    #: Whether some changes have a form that does not block.
    has_online = False
    #: Whether a check that gives way to a narrower one is only dropped where all rows meet that.
    rechecks = False
    #: Whether a unique index and a unique constraint are one and the same.
    has_unique_keys = False
    #: Why a key of a table with rows is not widened.
    widening: Rule = REWRITE
    #: Whether each check has a name.
    names_checks = True

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

    def replace_index(self, index: sa.Index, existing: Index, online: bool) -> None:
        """Put an index in the place of another of its name."""
        assert index.table is not None
        old = SchemaObjects().index(existing.name, index.table.name, [], schema=index.table.schema)
        self.drop_index(old, online)
        self.create_index(index, online)

    def needing_index(self, name: str, table: str, schema: str | None) -> list[str]:
        """What needs an index as it is, and is known before, such as ``"the foreign key 'fk'"``."""
        return []

    def leftover(self, index: str) -> str | None:
        """What an index is called while it is built beside the one that it is to replace."""
        return None

    def same_index(self, index: sa.Index, existing: Index) -> bool | None:
        """Whether an index that is there is this one; ``None`` where the database does not tell."""
        columns = [one.name if isinstance(one, sa.ColumnClause) else None for one in index.expressions]
        names = [self.catalog.normalize_name(str(name)) for name in columns]
        if [self.catalog.normalize_name(str(name)) for name in existing.columns] != names:
            return None if None in columns and len(names) == len(existing.columns) else False
        if bool(index.unique) != existing.unique:
            return False
        return None if None in columns or existing.options or dict(index.dialect_kwargs) else True

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a named constraint that is missing."""
        self.transaction.send(sa.schema.AddConstraint(constraint))

    def referring(self, table: str, column: str, schema: str | None) -> list[tuple[str | None, str, str]] | None:
        """The columns whose foreign keys lead to a column: schema, table and name; ``None`` to ask the inspector."""
        return None

    def refuse_name(self, constraint: sa.Constraint) -> None:
        """Refuse a key whose name is that of something else.

        :raises DbSmartError: it is.
        """

    def refuse_widening(self, columns: Sequence[tuple[str | None, str, str]], what: str) -> None:
        """Refuse to give columns another type because of others that stay as they are.

        :raises DbSmartError: there are such.
        """

    def widen(self, changes: Sequence[Change]) -> None:
        """Give the columns of keys that refer to each other another type, in the plain form."""
        for change in changes:
            self.alter_column(change, False)

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
        for check in change.checks:
            self.put_check(check, online)
        self.comment_column(change)
        self.rename_column(change)

    def comment_column(self, change: Change) -> None:
        """Give a column its comment, if it gets another one, or take it away."""
        if change.comment is False:
            return
        column = sa.Column(change.column, sa.types.NullType(), comment=change.comment)
        sa.Table(change.table, sa.MetaData(), column, schema=change.schema)
        kind = sa.schema.DropColumnComment if change.comment is None else sa.schema.SetColumnComment
        self.transaction.send(kind(column))

    def comment_table(self, table: sa.Table) -> None:
        """Give a table its comment, or take it away."""
        kind = sa.schema.DropTableComment if table.comment is None else sa.schema.SetTableComment
        self.transaction.send(kind(table))

    def put_check(self, check: sa.CheckConstraint, online: bool) -> None:
        """Add a check, in the place of the one that has its name, if there is one."""
        assert isinstance(check.table, sa.Table)
        there = self.catalog.constraints(check.table.name, check.table.schema)
        existing = there.get(self.catalog.normalize_name(str(check.name)))
        if existing is None:
            self.add_constraint(check, online)
        else:
            self.replace_check(existing.name, check, online)

    def replace_check(self, name: str, check: sa.CheckConstraint, online: bool) -> None:
        """Put a check in the place of another, whose rows all meet it."""
        self.transaction.send(ReplaceCheck(name, check))

    def listing(self, table: str, column: str, schema: str | None) -> Constraint | None:
        """The check that lists the values of a column, as an enumeration that is no type of its own has one."""
        for constraint in self.checks(table, schema):
            if listed_values(constraint.condition, column, self.dialect) is not None:
                return constraint
        return None

    def checks(self, table: str, schema: str | None) -> list[Constraint]:
        """The checks of a table."""
        return [one for one in self.catalog.constraints(table, schema).values() if one.kind == "check"]

    def add_values(self, name: str, schema: str | None, have: Sequence[str], wanted: Sequence[str]) -> None:
        """Give an enumeration that is a type of its own more values, each in its place."""

    def rename_column(self, change: Change) -> None:
        """Give a column its new name, if it gets one."""
        if change.name is not None:
            self.transaction.send(RenameColumn(change.table, change.column, change.name, change.schema))

    def declare(self, one: CreateDeclared, there: bool) -> None:
        """Make a view, a function or a trigger from its text, in the place of the one that is there."""
        if there:
            self.drop_declared(DropDeclared(one.kind, one.name, one.schema, one.table))
        self.transaction.send(one)

    def drop_declared(self, one: DropDeclared) -> None:
        """Drop a view, a function or a trigger."""
        self.transaction.send(one)

    def standing_on(self, view: str, schema: str | None) -> list[str]:
        """The views that would be broken without a view, where the database would drop it nevertheless."""
        return []

    def replacing(self, one: CreateDeclared) -> CreateDeclared:
        """The same, where the database puts it in the place of the one that is there."""
        text = f"CREATE OR REPLACE {one.text.removeprefix('CREATE ')}"
        return CreateDeclared(one.kind, one.name, one.schema, one.table, text)

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

    def comment(self, change: Change) -> str | None:
        """The comment that a column has."""
        return change.existing.get("comment") or None

    def wanted(
        self, change: Change, type_: TypeEngine[Any] | None, nullable: bool | None
    ) -> tuple[TypeEngine[Any] | None, bool | None]:
        """What is asked for of a column, without what this kind of database does not tell from what it has."""
        change.checks = [] if type_ is None else self._new_checks(change, type_)
        return type_, nullable

    def _new_checks(self, change: Change, type_: TypeEngine[Any]) -> list[sa.CheckConstraint]:
        """The checks that come with a type (``create_constraint``), but for those that the table has as they are.

        :raises Refused: one of them allows less than that which is there.
        :raises DbSmartError: there is another one of its name.
        """
        described = sa.Table(change.table, sa.MetaData(), sa.Column(change.column, type_), schema=change.schema)
        found = []
        for check in [*described.constraints]:
            if not isinstance(check, sa.CheckConstraint) or not needed(check, self.dialect):
                continue
            checks, named = self.checks(change.table, change.schema), isinstance(check.name, str)
            there = {self.catalog.normalize_name(one.name): one for one in checks}
            existing = there.get(self.catalog.normalize_name(str(check.name))) if named else None
            existing = existing or self.listing(change.table, change.column, change.schema)
            if existing is None and not named:
                existing = next((one for one in checks if self.same_condition(check, one)), None)
            if existing is None:
                if not named and self.names_checks:
                    check.name = f"{change.table}_{change.column}_check"
                found.append(check)
                continue
            values = [
                listed_values(text, change.column, self.dialect)
                for text in (existing.condition, condition_text(check.sqltext, self.dialect))
            ]
            if None in values:
                if not self.same_condition(check, existing):
                    raise DbSmartError(
                        f"The table {change.table!r} already has a constraint {existing.name!r}, with another "
                        f"condition: {existing.condition}. Nothing was changed. Drop it first with "
                        "op.drop_constraint(), or give the new one another name."
                    )
            else:
                gone = [value for value in values[0] or () if value not in (values[1] or ())]
                if gone and not self.rechecks:
                    what = f"op.alter_column({change.table!r}, {change.column!r}, type_=…)"
                    raise Refused(ENUM_VALUES, what, f"These would go: {', '.join(map(repr, gone))}. ")
                if set(values[1] or ()) != set(values[0] or ()):
                    check.name = existing.name or None
                    found.append(check)
        return found

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
            if kind == "unique" and isinstance(each, (sa.UniqueConstraint, sa.PrimaryKeyConstraint)):
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
