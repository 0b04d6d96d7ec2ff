"""How a SQLite schema is changed: ``ALTER TABLE`` can do four things, and for everything else the table is rebuilt.

See https://www.sqlite.org/lang_altertable.html. SQLite has one lock for the whole file, so that no form is "online".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Literal

import sqlalchemy as sa
from alembic.ddl.base import DropColumn
from alembic.operations.schemaobj import SchemaObjects
from sqlalchemy.schema import DDLElement
from sqlalchemy.types import TypeEngine

from ...errors import DbSmartError
from ...schema.catalog import Constraint, Index
from ...schema.ddl import AddColumns, CreateDeclared
from ...schema.rules import OLD_ROWS, Refused, counted
from ...session.sql import column_text, condition_text, constraint_text, default_text, render
from ..editor import Change, SchemaEditor
from .rebuild import RowsInTheWay, needs_foreign_keys_off, rebuild
from .table_sql import TableSql, spelled_alike

#: A default that SQLite takes in ADD COLUMN for a table with rows: a literal.
_CONSTANT = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|'([^']|'')*'|x'[0-9a-f]*'|NULL|TRUE|FALSE", re.IGNORECASE)

_KEY_TYPES = sa.text("SELECT upper(type) FROM pragma_table_xinfo(:table, :schema) WHERE pk > 0")
#: An INTEGER PRIMARY KEY is the rowid and needs no index; the key of a WITHOUT ROWID table has one that is the table.
_HAS_ROWID = sa.text(
    "SELECT count(*) = 0 FROM pragma_index_list(:table, :schema) AS i, pragma_index_xinfo(i.name, :schema) AS x "
    "WHERE i.origin = 'pk' AND NOT EXISTS "
    "(SELECT 1 FROM pragma_index_xinfo(i.name, :schema) AS y WHERE y.cid = -1)"
)


class SqliteEditor(SchemaEditor):
    """See the module."""

    names_checks = False
    rechecks = True

    def add_columns(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], online: bool
    ) -> None:
        """Add columns one by one; a unique one gets a unique index, because ADD COLUMN takes no such constraint.

        With constraints that ADD COLUMN cannot say, all of it is one rebuild.
        """
        what = f"op.add_columns({table.name!r}, {', '.join(repr(column.name) for column in columns)})"
        checks: dict[str, list[sa.Constraint]] = {column.name: [] for column in columns}
        apart: list[sa.Constraint] = []
        for constraint in constraints:
            if getattr(constraint, "_column_flag", False):
                continue  # of a unique column, which gets an index
            own = [column.name for column in getattr(constraint, "columns", ())]
            if isinstance(constraint, sa.CheckConstraint):
                checks[[column.name for column in columns if column.name in own][-1]].append(constraint)
            elif not (isinstance(constraint, sa.ForeignKeyConstraint) and len(own) == 1 and _one_key(constraint)):
                apart.append(constraint)
        if apart:
            self._rebuild_with(table, columns, checks, apart, what)
            return
        for column in columns:
            if self._needs_rebuild(column) and not self.catalog.empty(table.name, table.schema):
                self._rebuild_with(table, [column], checks, [], what)
                continue
            unique, column.unique = column.unique, None
            try:
                self.transaction.send(AddColumns(table, [column], checks[column.name]))
            except (sa.exc.IntegrityError, sa.exc.OperationalError) as error:
                if "constraint failed" not in str(error.orig):
                    raise
                broken = self.broken_checks(table, [column], checks[column.name])
                raise Refused(OLD_ROWS, what, broken or f"{error.orig} for existing rows. ") from error
            finally:
                column.unique = unique

    def finish_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Make the unique indexes."""
        for column in columns:
            if column.unique:
                name = f"uq_{table.name}_{column.name}"
                if self.catalog.normalize_name(name) not in self.catalog.indexes(table.name, table.schema):
                    index = SchemaObjects().index(name, table.name, [column.name], schema=table.schema, unique=True)
                    self.create_index(index, online)

    def drop_column(self, table: str, column: str, schema: str | None, online: bool) -> None:
        """Drop a column, and the indexes on it."""
        change = DropColumn(table, sa.Column(column, sa.types.NullType()), schema=schema)
        what = f"op.drop_column({table!r}, {column!r})"
        self._rebuild(table, schema, lambda sql: sql.drop_column(column), what, stands_for=change)

    def drop_table(self, table: sa.Table) -> None:
        """Drop a table. Where foreign keys are enforced, SQLite deletes its rows first, with every ON DELETE there is.

        :raises DbSmartError: rows of other tables would be deleted or changed with it.
        """
        if not self.transaction.connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
            super().drop_table(table)
            return
        normalize_name, schema = self.catalog.normalize_name, table.schema
        references = self.catalog.references(table.name, schema)
        own = [reference for reference in references if normalize_name(reference.table) == normalize_name(table.name)]
        others = [reference for reference in references if reference not in own]
        used = dict.fromkeys(reference.table for reference in others if self.catalog.refers(reference, schema))
        if used:
            raise DbSmartError(
                f"op.drop_table({table.name!r}): rows of {', '.join(map(repr, used))} reference it, and "
                "PRAGMA foreign_keys is on, so SQLite would delete or change them too. Nothing was dropped. "
                "Drop what references it first: that table, that column, or the foreign key with op.drop_constraint()."
            )
        restricts = any(reference.on_delete == "RESTRICT" for reference in own)
        with self.transaction.pragma("foreign_keys", "0") if restricts else nullcontext():
            super().drop_table(table)

    def create_index(self, index: sa.Index, online: bool) -> None:
        """Create an index that is missing.

        :raises Refused: it is unique, and rows have the same values.
        """
        try:
            super().create_index(index, online)
        except sa.exc.IntegrityError as error:
            assert index.table is not None
            what = f"op.create_index({str(index.name)!r}, {index.table.name!r}, unique=True)"
            raise Refused(OLD_ROWS, what, self._repeated(index)) from error

    def same_index(self, index: sa.Index, existing: Index) -> bool | None:
        """Whether an index that is there is this one, by their texts."""
        assert index.table is not None
        quote = self.dialect.identifier_preparer.quote_identifier
        schema = quote(index.table.schema or "main")
        query = f"SELECT sql FROM {schema}.sqlite_master WHERE type = 'index' AND name = ? COLLATE NOCASE"
        sql = self.transaction.connection.exec_driver_sql(query, (existing.name,)).scalar()
        wanted = render(sa.schema.CreateIndex(index), self.dialect)
        alike = [spelled_alike(text or "").replace(f"{index.table.schema} . ", "") for text in (sql, wanted)]
        return alike[0] == alike[1]

    def declare(self, one: CreateDeclared, there: bool) -> None:
        """Make a view or a trigger; a view keeps its triggers.

        :raises DbSmartError: it is a function.
        """
        if one.kind == "function":
            raise DbSmartError(
                f"op.function({one.name!r}): SQLite has no functions of its own; the application registers them for "
                "each connection. Nothing was changed. Ask op.connection.dialect.name before this."
            )
        schema = self.dialect.identifier_preparer.quote_identifier(one.schema or "main")
        query = f"SELECT sql FROM {schema}.sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
        run = self.transaction.connection.exec_driver_sql
        triggers = run(query, (one.name,)).scalars().all() if one.kind == "view" and there else []
        super().declare(one, there)
        for trigger in triggers:
            self.transaction.send(trigger)

    def standing_on(self, view: str, schema: str | None) -> list[str]:
        """The views that select from a view, by trying: SQLite would drop it, and each query of theirs would fail."""
        if self.transaction.dry:
            return []
        run, quote = self.transaction.connection.exec_driver_sql, self.dialect.identifier_preparer.quote_identifier
        place = quote(schema or "main")
        naming = f"SELECT name FROM {place}.sqlite_master WHERE type = 'view' AND name <> ? COLLATE NOCASE "
        naming += "AND instr(lower(replace(sql, '\"\"', '\"')), lower(?)) ORDER BY name"
        names = run(naming, (view, view)).scalars().all()

        def usable() -> set[str]:
            found = set()
            for name in names:
                with suppress(sa.exc.DBAPIError):
                    run(f"SELECT 1 FROM {place}.{quote(name)} LIMIT 0")
                    found.add(name)
            return found

        before = usable()
        if not before:
            return []
        run("SAVEPOINT db_smart_view")
        try:
            run(f"DROP VIEW {place}.{quote(view)}")
            after = usable()
        finally:
            run("ROLLBACK TO db_smart_view")
            run("RELEASE db_smart_view")
        return sorted(before - after)

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a constraint."""
        assert constraint.table is not None
        table = constraint.table
        text = constraint_text(constraint, self.dialect)
        what = f"The constraint {str(constraint.name)!r} of {table.name!r}"
        self._rebuild(table.name, table.schema, lambda sql: sql.add_constraint(text), what)

    def drop_constraint(self, constraint: sa.Constraint) -> None:
        """Drop a named constraint."""
        assert constraint.table is not None
        table, name = constraint.table, str(constraint.name)
        what = f"op.drop_constraint({name!r}, {table.name!r})"
        self._rebuild(table.name, table.schema, lambda sql: sql.drop_constraint(name), what)

    def alter_column(self, change: Change, online: bool) -> None:
        """Change a column."""

        def edit(sql: TableSql) -> None:
            if change.type_ is not None:
                sql.set_type(change.column, change.type_.compile(dialect=self.dialect))
            if change.server_default is not False:
                column = sa.Column(change.column, sa.types.NullType(), server_default=change.server_default)
                default = default_text(column, self.dialect)
                sql.set_default(change.column, default)
            if change.nullable is not None:
                sql.set_nullable(change.column, change.nullable)
            for check in change.checks:
                listing = self.listing(change.table, change.column, change.schema)
                if listing is not None and listing.name == (check.name or ""):
                    sql.set_check(str(listing.condition), f"({condition_text(check.sqltext, self.dialect)})")
                    continue
                if isinstance(check.name, str) and self.catalog.normalize_name(check.name) in map(
                    self.catalog.normalize_name, sql.constraints
                ):
                    sql.drop_constraint(check.name)
                sql.add_constraint(constraint_text(check, self.dialect))

        if (
            change.type_ is not None
            or change.server_default is not False
            or change.nullable is not None
            or change.checks
        ):
            self._rebuild(change.table, change.schema, edit, f"op.alter_column({change.table!r}, {change.column!r})")
        self.rename_column(change)

    def understood(self, query: str) -> Any:
        """The program that SQLite makes of a query."""
        return [tuple(row[:7]) for row in self.plain(f"EXPLAIN {query}")]

    def type_is(self, old: TypeEngine[Any], new: TypeEngine[Any]) -> Literal["same", "wider", "other"]:
        """What a change of type does. An enumeration is a VARCHAR here; what has no type may hold anything."""
        if isinstance(old, sa.types.NullType):
            return "same" if isinstance(new, sa.types.NullType) else "other"
        if isinstance(new, sa.Enum):
            new = sa.String(new.length)
        return super().type_is(old, new)

    def wanted(
        self, change: Change, type_: TypeEngine[Any] | None, nullable: bool | None
    ) -> tuple[TypeEngine[Any] | None, bool | None]:
        """What is asked for of a column, without what SQLite does not tell from what it has.

        An ``INTEGER PRIMARY KEY`` holds 64 bits, and any other name of an integer would take its numbering from it. The
        key of a ``WITHOUT ROWID`` table is NOT NULL always.
        """
        type_, nullable = super().wanted(change, type_, nullable)
        if change.existing.get("primary_key"):
            columns, without_rowid = self._key(change.table, change.schema)
            if without_rowid and nullable:
                nullable = None
            is_rowid = columns == ["INTEGER"] and not without_rowid
            if is_rowid and type_ is not None and issubclass(type_._type_affinity or sa.types.NullType, sa.Integer):
                type_ = None
        return type_, nullable

    def checks(self, table: str, schema: str | None) -> list[Constraint]:
        """The checks of a table, those without a name too."""
        definition = self.catalog.definition(table, schema)
        if definition is None:
            return []
        sql = TableSql(definition)
        names = [name or "" for _, kind, name, _ in sql.pieces if kind == "check"]
        return [
            Constraint(name, "check", [], condition=condition)
            for name, condition in zip(names, sql.all_checks, strict=True)
        ]

    def _key(self, table: str, schema: str | None) -> tuple[list[str], bool]:
        """The types of the columns of a table's primary key, and whether it has no rowid."""
        connection, names = self.transaction.connection, {"table": table, "schema": schema or "main"}
        types = connection.scalars(_KEY_TYPES, names).all()
        return list(types), not connection.scalar(_HAS_ROWID, names)

    def _repeated(self, index: sa.Index) -> str:
        """How many rows have the same values in what an index is on, as a sentence."""
        assert index.table is not None
        parts: list[Any] = list(index.expressions)
        columns = ", ".join(getattr(part, "name", None) or str(part) for part in parts)
        where = index.dialect_options["sqlite"]["where"]
        groups = sa.select(sa.func.count().label("n")).select_from(index.table).group_by(*parts)
        groups = groups.where(*(part.is_not(None) for part in parts)).having(sa.func.count() > 1)
        groups = groups if where is None else groups.where(where)
        count = None
        with suppress(sa.exc.SQLAlchemyError):  # an order, which GROUP BY does not take
            count = self.transaction.connection.scalar(sa.select(sa.func.sum(groups.subquery().c.n)))
        return f"{counted(count, 'repeats', 'repeat') if count else 'Rows repeat'} {columns}. "

    def _needs_rebuild(self, column: sa.Column[Any]) -> bool:
        """Whether ADD COLUMN refuses a column on a table with rows."""
        default = column.server_default
        if column.computed is not None:
            return bool(column.computed.persisted)
        if not isinstance(default, sa.DefaultClause):
            return False
        if column.foreign_keys:
            return True
        text = default_text(column, self.dialect)
        return _CONSTANT.fullmatch((text or "").strip("()")) is None

    def _rebuild_with(
        self,
        table: sa.Table,
        columns: Sequence[sa.Column[Any]],
        checks: Mapping[str, Sequence[sa.Constraint]],
        constraints: Sequence[sa.Constraint],
        what: str,
    ) -> None:
        """Add columns whose defaults are to be computed for each row that is there, and constraints with them."""
        texts = [column_text(column, checks[column.name], self.dialect) for column in columns]
        more = [constraint_text(constraint, self.dialect) for constraint in constraints]
        defaults = {column.name: default_text(column, self.dialect) for column in columns if column.computed is None}

        def edit(sql: TableSql) -> None:
            for text in texts:
                sql.add_column(text)
            for text in more:
                sql.add_constraint(text)

        values = {name: default for name, default in defaults.items() if default is not None}
        self._rebuild(table.name, table.schema, edit, what, values, AddColumns(table, columns, constraints))

    def _rebuild(
        self,
        table: str,
        schema: str | None,
        change: Callable[[TableSql], None],
        what: str,
        values: dict[str, str] | None = None,
        stands_for: DDLElement | None = None,
    ) -> None:
        connection = self.transaction.connection
        off = needs_foreign_keys_off(connection, table, schema, change)
        foreign_keys = self.transaction.pragma("foreign_keys", "0") if off else nullcontext()
        with foreign_keys, self.transaction.by_hand(stands_for) as own:
            try:
                rebuild(own, table, change, schema=schema, values=values)
            except RowsInTheWay as error:
                raise Refused(OLD_ROWS, what, error.rows) from error


def _one_key(constraint: sa.ForeignKeyConstraint) -> bool:
    """Whether it is the only foreign key of its column, as ADD COLUMN knows one."""
    return len(constraint.elements[0].parent.foreign_keys) == 1
