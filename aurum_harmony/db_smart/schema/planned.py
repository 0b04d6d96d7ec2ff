"""What a database would have: the answers of a catalog in a dry run, and how schema changes change them.

Nothing is made on a server, so that what schema changes would have made is noted here and found by those after them.
Of SQLite there is a copy, on which the changes are made; here it is known what its source calls the same things.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, Literal, cast

import sqlalchemy as sa
from alembic.ddl.base import ColumnDefault, ColumnNullable, ColumnType, DropColumn, RenameTable
from alembic.ddl.postgresql import PostgresqlColumnType
from sqlalchemy.dialects.postgresql import CreateEnumType
from sqlalchemy.schema import (
    AddConstraint,
    CreateIndex,
    CreateTable,
    DropColumnComment,
    DropConstraint,
    DropIndex,
    DropTable,
    DropTableComment,
    SetColumnComment,
    SetTableComment,
)

from ..dialects.base import facts_of
from ..session.sql import condition_text, default_text, name_text, needed
from .catalog import Catalog, Constraint, Index, Kind, Reference
from .column_types import with_values
from .ddl import (
    AddColumns,
    AddEnumValue,
    AlterDefault,
    CreateDeclared,
    DeclaredObject,
    DropDeclared,
    ModifyColumn,
    RenameColumn,
    RenameIndex,
    ReplaceCheck,
    ReplaceIndex,
    UniqueUsingIndex,
    ValidateConstraint,
)

#: The beginning of SQL that may change rows.
ROWS = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE|WITH)\b", re.IGNORECASE)
#: The kinds of constraints as a catalog calls them.
_KINDS: dict[type[sa.Constraint], Kind] = {
    sa.UniqueConstraint: "unique",
    sa.CheckConstraint: "check",
    sa.ForeignKeyConstraint: "foreign",
    sa.PrimaryKeyConstraint: "primary",
}


@dataclass
class Planned:
    """A table as it would be at this point of a dry run.

    :ivar columns: as the inspector has them. Where the run changes one, ``stored`` is what the database calls it, or
        ``None`` where it has no such column.
    :ivar stored: what the database calls the table; ``None`` where it has no such table.
    :ivar changed: whether the run changes rows of it, so that those that are there tell little.
    :ivar key: the columns of its primary key; ``None`` where the database is to be asked.
    :ivar comment: of the table; ``False`` where the database is to be asked.
    :ivar dropped: names of what the run drops of it: indexes and constraints.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)
    constraints: dict[str, Constraint] = field(default_factory=dict)
    empty: bool = True
    stored: str | None = None
    changed: bool = False
    key: list[str] | None = field(default_factory=list)
    comment: str | None | Literal[False] = None
    dropped: set[str] = field(default_factory=set)


class DryCatalog(Catalog):
    """What a database would have; by itself for one that does not exist yet: the dry run uses an empty one instead."""

    #: Whether a dry run would have changed rows of any table by now.
    rows_unknown = False

    @property
    def dialect(self) -> sa.Dialect:
        """The dialect of the connection."""
        return self._connection.dialect

    def play(self, sql: str) -> None:
        """Make a change where that harms nobody.

        :raises sqlalchemy.exc.DBAPIError: the database refused it.
        """
        self._connection.exec_driver_sql(sql)

    def plan(self, table: str, schema: str | None) -> Planned | None:
        """The table as it is planned, to be changed; ``None`` where all of that is made."""
        return None

    def plan_drop(self, table: str, schema: str | None, renamed: str | None = None) -> None:
        """Note that a table is gone, or has another name."""

    def plan_columns(self, table: str, schema: str | None, columns: Iterable[sa.Column[Any]]) -> None:
        """Note that a table has these new columns."""

    def plan_rename(self, table: str, schema: str | None, column: str, name: str | None) -> None:
        """Note that a column has another name, or with ``None`` that it is gone."""

    def plan_enumeration(self, name: str, schema: str | None, values: list[str]) -> None:
        """Note which values an enumeration has that is a type of its own."""

    def plan_declared(self, one: DeclaredObject, *, there: bool) -> None:
        """Note that a view, a function or a trigger is made, or gone."""

    @property
    def makes_keys(self) -> bool:
        """Whether there would be foreign keys by now that the database itself does not show."""
        return False

    def plan_rows(self, table: str, schema: str | None, *, filled: bool) -> None:
        """Note that rows of a table are changed.

        :param filled: whether some are added.
        """

    def stored(self, table: str, schema: str | None) -> str | None:
        """Nothing is stored."""
        return None

    def rows(self, table: str, schema: str | None, name: str | None = None) -> sa.Subquery | None:
        """The rows of a table as they would be at this point; ``None`` where that cannot be known.

        A new column whose values are not known is left out.

        :param name: what the rows are called; as the table when ``None``.
        """
        if self.rows_unknown:
            return None
        columns: list[Any] = [sa.column(column["name"]) for column in self.columns(table, schema).values()]
        return sa.select(*columns).select_from(sa.table(table, schema=schema)).subquery(name or table)

    def ask(self, query: sa.Select[Any]) -> Any:
        """The one value of a query of such rows."""
        return ask(self._connection, query)


class PlannedCatalog(DryCatalog):
    """What a database would have of which there is no copy."""

    def __init__(self, connection: sa.Connection) -> None:
        super().__init__(connection)
        self._planned: dict[tuple[str | None, str], Planned | None] = {}
        self._enumerations: dict[tuple[str | None, str], list[str]] = {}
        self._declared: dict[tuple[str, str | None, str, str | None], bool] = {}

    def play(self, sql: str) -> None:
        """Nothing is made."""

    def has_table(self, table: str, schema: str | None) -> bool:
        """Whether there is such a table or view."""
        known = self._known(table, schema)
        view = self._declared.get(("view", schema, self.normalize_name(table), None))
        if view is not None:
            return view
        return super().has_table(table, schema) if known is False else known is not None

    def has_declared(self, kind: str, name: str, schema: str | None, of: str | None = None) -> bool:
        """Whether there is such a view, function or trigger."""
        place = (kind, schema, self.normalize_name(name))
        known = self._declared.get((*place, of and self.normalize_name(of)))
        if known is None and kind == "function" and of is not None and self._declared.get((*place, None)) is False:
            return False  # all of that name are gone
        return super().has_declared(kind, name, schema, of) if known is None else known

    def plan_declared(self, one: DeclaredObject, *, there: bool) -> None:
        """Note that a view, a function or a trigger is made, or gone."""
        of = one.arguments if isinstance(one, DropDeclared) and one.kind == "function" else one.table
        names = [of and self.normalize_name(of)]
        if one.kind == "trigger" and self._dialect != "postgresql":
            names.append(None)  # of a name there is one alone
        for name in names:
            self._declared[one.kind, one.schema, self.normalize_name(one.name), name] = there

    def columns(self, table: str, schema: str | None) -> dict[str, Any]:
        """The columns by normalized name, each as SQLAlchemy's inspector has it, or as in :class:`Planned`.

        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        known = self._known(table, schema)
        if known is None:
            raise sa.exc.NoSuchTableError(table)
        return super().columns(table, schema) if known is False else known.columns

    def present(self, table: str, columns: Iterable[str], schema: str | None) -> set[str]:
        """Those of the columns, normalized, that the table has.

        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        return {self.normalize_name(column) for column in columns} & self.columns(table, schema).keys()

    def indexes(self, table: str, schema: str | None) -> dict[str, Index]:
        """The indexes of a table by normalized name."""
        known = self._known(table, schema)
        return super().indexes(table, schema) if known is False else {} if known is None else known.indexes

    @property
    def makes_keys(self) -> bool:
        """Whether there would be foreign keys by now that the database itself does not show."""
        for (schema, _), planned in self._planned.items():
            if planned is None:
                continue
            there = {} if planned.stored is None else super().constraints(planned.stored, schema)
            names = [{one.name for one in of.values() if one.kind == "foreign"} for of in (planned.constraints, there)]
            if planned.stored is None or names[0] != names[1]:
                return True
        return False

    def constraints(self, table: str, schema: str | None) -> dict[str, Constraint]:
        """The named constraints of a table by normalized name."""
        known = self._known(table, schema)
        return super().constraints(table, schema) if known is False else {} if known is None else known.constraints

    def primary_key(self, table: str, schema: str | None) -> list[str]:
        """The columns of the primary key in its order; none where there is no such key."""
        known = self._known(table, schema) or Planned(key=None, stored=table)
        return super().primary_key(str(known.stored), schema) if known.key is None else known.key

    def comment(self, table: str, schema: str | None) -> str | None:
        """The comment of a table."""
        known = self._known(table, schema) or Planned(comment=False, stored=table)
        return super().comment(str(known.stored), schema) if known.comment is False else known.comment

    def enumeration(self, name: str, schema: str | None) -> list[str] | None:
        """The values of an enumeration that is a type of its own; ``None`` where there is no such type."""
        return self._enumerations.get((schema, name)) or super().enumeration(name, schema)

    def plan_enumeration(self, name: str, schema: str | None, values: list[str]) -> None:
        """Note which values an enumeration has."""
        self._enumerations[schema, name] = values

    def empty(self, table: str, schema: str | None) -> bool:
        """Whether a table has no rows."""
        known = self._known(table, schema)
        return super().empty(table, schema) if known is False else known is None or known.empty

    def stored(self, table: str, schema: str | None) -> str | None:
        """What the database itself calls a table; ``None`` where it has no such table."""
        known = self._known(table, schema)
        return table if known is False else None if known is None else known.stored

    def stored_column(self, table: str, column: str, schema: str | None) -> str | None:
        """What the database itself calls a column; ``None`` where it has no such column."""
        known = self._known(table, schema) or Planned()
        stored: str | None = known.columns.get(self.normalize_name(column), {}).get("stored", column)
        return stored

    def dropped(self, table: str, name: str, schema: str | None) -> bool:
        """Whether an index or a constraint is dropped by now, which the database still has."""
        return name in (self._known(table, schema) or Planned()).dropped

    def plan(self, table: str, schema: str | None) -> Planned:
        """The table as it is planned, to be changed."""
        known = self._known(table, schema)
        if known is False or known is None:
            exists = known is False and self.has_table(table, schema)
            known = Planned()
            if exists:
                known = Planned(
                    dict(self.columns(table, schema)),
                    self.indexes(table, schema),
                    self.constraints(table, schema),
                    self.empty(table, schema),
                    table,
                    key=None,
                    comment=False,
                )
            self._planned[schema, self.normalize_name(table)] = known
        return known

    def plan_drop(self, table: str, schema: str | None, renamed: str | None = None) -> None:
        """Note that a table is gone, or has another name."""
        planned = self.plan(table, schema)
        self._planned[schema, self.normalize_name(table)] = None
        if renamed is not None:
            self._planned[schema, self.normalize_name(renamed)] = planned

    def plan_columns(self, table: str, schema: str | None, columns: Iterable[sa.Column[Any]]) -> None:
        """Note that a table has these new columns."""
        new = {self.normalize_name(column.name): _reflected(column) for column in columns}
        self.plan(table, schema).columns.update(new)

    def plan_rename(self, table: str, schema: str | None, column: str, name: str | None) -> None:
        """Note that a column has another name, or with ``None`` that it is gone."""
        columns = self.plan(table, schema).columns
        known = columns.pop(self.normalize_name(column), None)
        if name is not None and known is not None:
            columns[self.normalize_name(name)] = {"stored": column, **known, "name": name}

    def plan_rows(self, table: str, schema: str | None, *, filled: bool) -> None:
        """Note that rows of a table are changed."""
        if self.has_table(table, schema):
            planned = self.plan(table, schema)
            planned.changed = True
            planned.empty = planned.empty and not filled

    def rows(self, table: str, schema: str | None, name: str | None = None) -> sa.Subquery | None:
        """The rows that are there, by their present names."""
        known = self._known(table, schema)
        if known is None or self.rows_unknown or (known is not False and (known.stored is None or known.changed)):
            return None
        stored = table if known is False else known.stored
        columns = [self._value(column) for column in self.columns(table, schema).values()]
        listed = [column for column in columns if column is not None]
        return sa.select(*listed).select_from(sa.table(str(stored), schema=schema)).subquery(name or table)

    def _value(self, column: dict[str, Any]) -> sa.ColumnElement[Any] | None:
        """The values of a column in the rows that are there; ``None`` where they are not known."""
        stored = column.get("stored", column["name"])
        if stored is not None:
            return sa.column(stored).label(column["name"])
        return new_value(column["column"], self._connection.dialect)

    def _known(self, table: str, schema: str | None) -> Planned | Literal[False] | None:
        """What is planned for a table; ``False`` where the database is to be asked."""
        return self._planned.get((schema, self.normalize_name(table)), False)


class CopyCatalog(DryCatalog):
    """What a copy of a schema has; whether a table has rows, the source knows."""

    def __init__(self, copy: sa.Connection, source: sa.Connection) -> None:
        super().__init__(copy)
        self._source = Catalog(source)
        #: What the source calls a table that has another name by now, or is new and so is none of the source's.
        self._names: dict[tuple[str | None, str], str | None] = {}
        #: Tables that the run has put rows into; and those whose rows it has changed.
        self._filled: set[tuple[str | None, str]] = set()
        self._changed: set[tuple[str | None, str]] = set()
        #: By table and normalized name, columns that the run has added, and what the source calls those it has renamed.
        self._columns: dict[tuple[str | None, str], dict[str, sa.Column[Any] | str]] = {}

    def play(self, sql: str) -> None:
        """Make a change on the copy, but keep no rows."""
        if ROWS.match(sql):
            self._try_rows(sql)
        else:
            super().play(sql)

    def _try_rows(self, sql: str) -> None:
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
                    self._filled.add((None, self.normalize_name(name)))
        finally:
            run("ROLLBACK TO db_smart_rows")
            run("RELEASE db_smart_rows")
            run("PRAGMA defer_foreign_keys = 0")

    def empty(self, table: str, schema: str | None) -> bool:
        """Whether a table has no rows: neither those of the source, nor any that the run has made."""
        former = self._former(table, schema)
        if (schema, self.normalize_name(table)) in self._filled:
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
        former, key = self._former(table, schema), (schema, self.normalize_name(table))
        new = None if renamed is None else (schema, self.normalize_name(renamed))
        self._names[key] = None
        columns = self._columns.pop(key, {})
        if new is not None:
            self._names[new] = former
            self._columns[new] = columns
        for tables in (self._filled, self._changed):
            if key in tables:
                tables.discard(key)
                tables |= set() if new is None else {new}

    def plan_columns(self, table: str, schema: str | None, columns: Iterable[sa.Column[Any]]) -> None:
        """Note that a table has these new columns."""
        own = self._columns.setdefault((schema, self.normalize_name(table)), {})
        own.update({self.normalize_name(column.name): column for column in columns})

    def plan_rename(self, table: str, schema: str | None, column: str, name: str | None) -> None:
        """Note that a column has another name, or is gone."""
        own = self._columns.setdefault((schema, self.normalize_name(table)), {})
        known = own.pop(self.normalize_name(column), column)
        if name is not None:
            own[self.normalize_name(name)] = known

    def plan_rows(self, table: str, schema: str | None, *, filled: bool) -> None:
        """Note that rows of a table are changed; those that are added, the copy knows."""
        self._changed.add((schema, self.normalize_name(table)))

    def rows(self, table: str, schema: str | None, name: str | None = None) -> sa.Subquery | None:
        """The rows of the source's table, by their present names."""
        former, key = self._former(table, schema), (schema, self.normalize_name(table))
        if former is None or self.rows_unknown or key in self._changed | self._filled:
            return None
        own, source = self._columns.get(key, {}), self._source.columns(former, schema)
        listed = []
        for column in self.columns(table, schema).values():
            known = own.get(self.normalize_name(column["name"]), column["name"])
            if isinstance(known, sa.Column):
                value = new_value(known, self._connection.dialect)
            else:  # one that SQL of the migration has made or renamed is none of the source's
                there = self.normalize_name(known) in source
                value = sa.column(known).label(column["name"]) if there else None
            listed += [] if value is None else [value]
        return sa.select(*listed).select_from(sa.table(former, schema=schema)).subquery(name or table)

    def ask(self, query: sa.Select[Any]) -> Any:
        """The one value of a query of such rows."""
        return ask(self._source._connection, query)

    def _former(self, table: str, schema: str | None) -> str | None:
        """The source's name of a table; ``None`` for one that only the copy has."""
        key = schema, self.normalize_name(table)
        former = self._names.get(key, table)
        return former if former is not None and self._source.has_table(former, schema) else None


def ask(connection: sa.Connection, query: sa.Select[Any]) -> Any:
    """The one value of a query; where it fails, the connection can be used as before.

    :raises sqlalchemy.exc.DBAPIError: it fails.
    """
    try:
        return connection.scalar(query)
    except sa.exc.DBAPIError:
        connection.rollback()
        raise


def new_value(column: sa.Column[Any], dialect: sa.Dialect) -> sa.ColumnElement[Any] | None:
    """What a new column has in the rows that are there; ``None`` where that is not known beforehand."""
    if column.computed is not None or column.identity is not None:
        return None
    default = column.server_default
    if default is not None and not isinstance(default, sa.DefaultClause):
        return None
    text = None if default is None else default_text(column, dialect)
    value: sa.ColumnElement[Any] = sa.literal_column(text or "NULL", column.type)
    if facts_of(dialect.name).casts_to_any_type:
        value = sa.cast(value, column.type)
    return value.label(column.name)


def _reflected(column: sa.Column[Any]) -> dict[str, Any]:
    """A column of ours as an inspector would show it."""
    default = column.server_default
    text = str(default.arg) if isinstance(default, sa.DefaultClause) else None
    return {
        "name": column.name,
        "type": column.type,
        "nullable": column.nullable,
        "default": text,
        "comment": column.comment,
        "column": column,
        "stored": None,
    }


@singledispatch
def apply(change: object, catalog: DryCatalog) -> None:
    """Have a catalog know what a schema change makes; of one that is not named here there is nothing to know."""


@apply.register
def _create_table(change: CreateTable, catalog: DryCatalog) -> None:
    table = change.element
    catalog.plan_columns(table.name, table.schema, table.columns)
    _plan_comment(catalog, table, table.comment)
    planned = catalog.plan(table.name, table.schema)
    if planned is not None:
        planned.key = [column.name for column in table.primary_key]
    for constraint in table.constraints:
        if isinstance(constraint.name, str) and needed(constraint, catalog.dialect):
            _plan_constraint(catalog, table, constraint.name, constraint)


@apply.register
def _drop_table(change: DropTable, catalog: DryCatalog) -> None:
    catalog.plan_drop(change.element.name, change.element.schema)


@apply.register
def _rename_table(change: RenameTable, catalog: DryCatalog) -> None:
    catalog.plan_drop(change.table_name, change.schema, change.new_table_name)


@apply.register
def _add_columns(change: AddColumns, catalog: DryCatalog) -> None:
    catalog.plan_columns(change.table.name, change.table.schema, change.columns)
    highest = catalog.highest_key(change.table.name, change.table.schema)
    for number, constraint in enumerate(change.constraints, highest + 1):
        name = constraint.name
        if name is None and catalog.dialect.name in ("mysql", "mariadb"):  # on PostgreSQL this extension names them
            name = f"{change.table.name}_ibfk_{number}"
        if name is not None:
            _plan_constraint(catalog, change.table, str(name), constraint)


@apply.register
def _drop_column(change: DropColumn, catalog: DryCatalog) -> None:
    catalog.plan_rename(change.table_name, change.schema, change.column.name, None)


@apply.register
def _rename_column(change: RenameColumn, catalog: DryCatalog) -> None:
    catalog.plan_rename(change.table, change.schema, change.column, change.name)


@apply.register(ColumnType)
@apply.register(PostgresqlColumnType)
def _column_type(change: Any, catalog: DryCatalog) -> None:
    _plan_column(catalog, change.table_name, change.column_name, change.schema, type=change.type_)


@apply.register
def _column_nullable(change: ColumnNullable, catalog: DryCatalog) -> None:
    _plan_column(catalog, change.table_name, change.column_name, change.schema, nullable=change.nullable)


@apply.register
def _column_default(change: ColumnDefault, catalog: DryCatalog) -> None:
    column: Any = sa.Column("c", sa.types.NullType(), server_default=cast(Any, change.default))
    text = default_text(column, catalog.dialect)
    _plan_column(catalog, change.table_name, change.column_name, change.schema, default=text)


@apply.register
def _alter_default(change: AlterDefault, catalog: DryCatalog) -> None:
    _plan_column(catalog, change.table_name, change.column_name, change.schema, **change.becomes)


@apply.register
def _modify_column(change: ModifyColumn, catalog: DryCatalog) -> None:
    _plan_column(catalog, change.table, change.column, change.schema, **change.becomes)


@apply.register(SetColumnComment)
@apply.register(DropColumnComment)
def _column_comment(change: Any, catalog: DryCatalog) -> None:
    column = change.element
    _plan_column(catalog, column.table.name, column.name, column.table.schema, comment=column.comment)


@apply.register(SetTableComment)
@apply.register(DropTableComment)
def _table_comment(change: Any, catalog: DryCatalog) -> None:
    _plan_comment(catalog, change.element, change.element.comment)


@apply.register
def _create_index(change: CreateIndex, catalog: DryCatalog) -> None:
    index = change.element
    assert index.table is not None
    planned = catalog.plan(index.table.name, index.table.schema)
    if planned is not None:
        columns = [getattr(expression, "name", None) for expression in index.expressions]
        name = name_text(index, catalog.dialect)
        planned.indexes[catalog.normalize_name(name)] = Index(name, columns, bool(index.unique))
        planned.dropped.discard(name)


@apply.register
def _replace_index(change: ReplaceIndex, catalog: DryCatalog) -> None:
    _create_index(CreateIndex(change.index), catalog)


@apply.register
def _rename_index(change: RenameIndex, catalog: DryCatalog) -> None:
    planned = catalog.plan(change.table, change.schema)
    if planned is not None:
        index = planned.indexes.pop(catalog.normalize_name(change.index))
        planned.indexes[catalog.normalize_name(change.name)] = replace(index, name=change.name)


@apply.register
def _drop_index(change: DropIndex, catalog: DryCatalog) -> None:
    assert change.element.table is not None
    _forget(catalog, change.element.table, str(change.element.name))


@apply.register
def _add_constraint(change: AddConstraint, catalog: DryCatalog) -> None:
    constraint = change.element
    assert isinstance(constraint.table, sa.Table)
    if constraint.name is not None:
        _plan_constraint(catalog, constraint.table, str(constraint.name), constraint)


@apply.register
def _unique_using_index(change: UniqueUsingIndex, catalog: DryCatalog) -> None:
    assert isinstance(change.constraint.table, sa.Table)
    _plan_constraint(catalog, change.constraint.table, change.name, change.constraint)


@apply.register
def _drop_constraint(change: DropConstraint, catalog: DryCatalog) -> None:
    assert isinstance(change.element.table, sa.Table)
    _forget(catalog, change.element.table, str(change.element.name))


@apply.register
def _replace_check(change: ReplaceCheck, catalog: DryCatalog) -> None:
    assert isinstance(change.check.table, sa.Table)
    _forget(catalog, change.check.table, change.name)
    _plan_constraint(catalog, change.check.table, str(change.check.name), change.check)
    if change.column is not None:
        _plan_column(catalog, change.check.table.name, change.column, change.check.table.schema, type=change.type_)


@apply.register
def _create_declared(change: CreateDeclared, catalog: DryCatalog) -> None:
    catalog.plan_declared(change, there=True)


@apply.register
def _drop_declared(change: DropDeclared, catalog: DryCatalog) -> None:
    catalog.plan_declared(change, there=False)


@apply.register
def _create_enum_type(change: CreateEnumType, catalog: DryCatalog) -> None:
    catalog.plan_enumeration(str(change.element.name), change.element.schema, list(change.element.enums))


@apply.register
def _add_enum_value(change: AddEnumValue, catalog: DryCatalog) -> None:
    have = catalog.enumeration(change.name, change.schema) or []
    values = with_values(have, [change.value], after=change.after, before=change.before)
    catalog.plan_enumeration(change.name, change.schema, values)


@apply.register
def _validate_constraint(change: ValidateConstraint, catalog: DryCatalog) -> None:
    planned = catalog.plan(change.table, change.schema)
    if planned is not None and catalog.normalize_name(change.name) in planned.constraints:
        planned.constraints[catalog.normalize_name(change.name)].valid = True


def _plan_comment(catalog: DryCatalog, table: sa.Table, comment: str | None) -> None:
    planned = catalog.plan(table.name, table.schema)
    if planned is not None:
        planned.comment = comment


def _plan_column(catalog: DryCatalog, table: str, column: str, schema: str | None, **new: Any) -> None:
    """Note what a column is from now on; SQL of the migration may have made one that is not known."""
    planned, key = catalog.plan(table, schema), catalog.normalize_name(column)
    if planned is not None and key in planned.columns:
        planned.columns[key] = {**planned.columns[key], **new}


def _plan_constraint(catalog: DryCatalog, table: sa.Table, name: str, constraint: sa.Constraint) -> None:
    planned = catalog.plan(table.name, table.schema)
    kind = next((kind for one, kind in _KINDS.items() if isinstance(constraint, one)), None)
    if planned is None or kind is None:
        return
    columns: list[str] = []
    target = None
    if isinstance(constraint, (sa.UniqueConstraint, sa.PrimaryKeyConstraint)):
        columns = [column.name for column in constraint.columns]
        planned.key = columns if kind == "primary" else planned.key
    elif isinstance(constraint, sa.ForeignKeyConstraint):
        columns = [*constraint.column_keys]
        target = constraint.referred_table.name, tuple(element.column.name for element in constraint.elements)
    valid = not constraint.dialect_options["postgresql"]["not_valid"] if kind in ("check", "foreign") else True
    planned.constraints[catalog.normalize_name(name)] = Constraint(name, kind, columns, valid, target)
    if isinstance(constraint, sa.CheckConstraint):
        condition = condition_text(constraint.sqltext, catalog.dialect)
        planned.constraints[catalog.normalize_name(name)].condition = condition
    planned.dropped.discard(name)


def _forget(catalog: DryCatalog, table: sa.Table, name: str) -> None:
    """Note that an index or a constraint is gone; a unique constraint is an index too."""
    planned, key = catalog.plan(table.name, table.schema), catalog.normalize_name(name)
    if planned is not None:
        planned.dropped.add(name)
        constraint = planned.constraints.pop(key, None)
        if constraint is not None and constraint.kind == "primary":
            planned.key = []
        if constraint is None or constraint.kind != "foreign":  # whose index MariaDB keeps
            planned.indexes.pop(key, None)
