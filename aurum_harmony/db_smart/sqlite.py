"""The forms of schema changes on SQLite, whose ``ALTER TABLE`` knows four things; for all else the table is rebuilt.

See https://www.sqlite.org/lang_altertable.html. SQLite has one lock for the whole file, so that no form is "online".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import sqlalchemy as sa
from alembic.operations.schemaobj import SchemaObjects

from .ddl import AddColumns, default_text, render
from .forms import Change, Forms
from .rebuild import TableSql, needs_foreign_keys_off, rebuild

#: A default that SQLite takes in ADD COLUMN for a table with rows: a literal.
_CONSTANT = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|'([^']|'')*'|x'[0-9a-f]*'|NULL|TRUE|FALSE", re.IGNORECASE)


class SqliteForms(Forms):
    """See the module."""

    def add_columns(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], online: bool
    ) -> None:
        """Add columns one by one; a unique one gets a unique index, as ADD COLUMN knows no constraints."""
        for column in columns:
            if self._needs_rebuild(column) and not self.catalog.empty(table.name, table.schema):
                self._rebuild_with(table, column)
                continue
            unique, column.unique = column.unique, None
            self.execution.send(AddColumns(table, [column]))
            column.unique = unique

    def finish_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Make the unique indexes."""
        for column in columns:
            if column.unique:
                name = f"uq_{table.name}_{column.name}"
                if name.lower() not in self.catalog.indexes(table.name, table.schema):
                    index = SchemaObjects().index(name, table.name, [column.name], schema=table.schema, unique=True)
                    self.create_index(index, online)

    def drop_column(self, table: str, column: str, schema: str | None, online: bool) -> None:
        """Drop a column, and the indexes on it."""
        self._rebuild(table, schema, lambda sql: sql.drop_column(column))

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a constraint."""
        assert constraint.table is not None
        text = render(sa.schema.AddConstraint(constraint), self.dialect)
        text = text[text.index(" ADD ") + len(" ADD ") :]
        self._rebuild(constraint.table.name, constraint.table.schema, lambda sql: sql.add_constraint(text))

    def drop_constraint(self, constraint: sa.Constraint) -> None:
        """Drop a named constraint."""
        assert constraint.table is not None
        name = str(constraint.name)
        self._rebuild(constraint.table.name, constraint.table.schema, lambda sql: sql.drop_constraint(name))

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

        if change.type_ is not None or change.server_default is not False or change.nullable is not None:
            self._rebuild(change.table, change.schema, edit)
        self.rename_column(change)

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

    def _rebuild_with(self, table: sa.Table, column: sa.Column[Any]) -> None:
        """Add a column whose default is to be computed for each row that is there."""
        text = render(AddColumns(table, [column]), self.dialect)
        text = text[text.index(" ADD COLUMN ") + len(" ADD COLUMN ") :]
        default = default_text(column, self.dialect)
        values = {} if column.computed is not None or default is None else {column.name: default}
        self._rebuild(table.name, table.schema, lambda sql: sql.add_column(text), values)

    def _rebuild(
        self, table: str, schema: str | None, change: Callable[[TableSql], None], values: dict[str, str] | None = None
    ) -> None:
        connection = self.execution.connection
        off = needs_foreign_keys_off(connection, table, schema)
        with self.execution.pragma("foreign_keys", "0") if off else nullcontext(), self.execution.noted():
            rebuild(connection, table, change, schema=schema, values=values)
