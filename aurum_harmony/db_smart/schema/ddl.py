"""DDL elements that SQLAlchemy and Alembic lack, compiled with their building blocks; and elements as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import add_column, alter_table
from alembic.ddl.mysql import MySQLAlterDefault
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from ..session.sql import inline_column


class AddColumns(DDLElement):
    """``ALTER TABLE`` that adds several columns, and constraints on them, in one statement.

    :param table: the table with at least the new columns.
    :param columns: the columns to add; SQLite takes one at a time.
    :param constraints: constraints to add with them; on SQLite checks, which stand behind the column.
    """

    inherit_cache = False

    def __init__(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint] = ()
    ) -> None:
        self.table = table
        self.columns = columns
        self.constraints = constraints


@compiles(AddColumns)
def _add_columns(element: AddColumns, compiler: DDLCompiler, **options: Any) -> str:
    parts = [add_column(compiler, column, **options) for column in element.columns]
    for constraint in element.constraints:
        text = compiler.process(constraint)
        if text:
            parts.append(f"ADD {text}")
    return f"{alter_table(compiler, element.table.name, element.table.schema)} {', '.join(parts)}"


@compiles(AddColumns, "sqlite")
def _add_column(element: AddColumns, compiler: DDLCompiler, **_: Any) -> str:
    # A foreign key stands within the column, and not as a constraint of its own.
    (column,) = element.columns
    text = inline_column(compiler, column, element.constraints)
    return f"{alter_table(compiler, element.table.name, element.table.schema)} ADD COLUMN {text}"


class _ConstraintChange(DDLElement):
    """``ALTER TABLE`` for a constraint of a name."""

    inherit_cache = False

    def __init__(self, table: str, name: str, schema: str | None) -> None:
        self.table = table
        self.name = name
        self.schema = schema


class ValidateConstraint(_ConstraintChange):
    """PostgreSQL's ``VALIDATE CONSTRAINT``."""


@compiles(ValidateConstraint)
def _validate_constraint(element: ValidateConstraint, compiler: DDLCompiler, **_: Any) -> str:
    name = compiler.preparer.quote(element.name)
    return f"{alter_table(compiler, element.table, element.schema)} VALIDATE CONSTRAINT {name}"


class UniqueUsingIndex(_ConstraintChange):
    """PostgreSQL's ``ADD CONSTRAINT … UNIQUE USING INDEX``: an index that is there becomes the constraint.

    :param constraint: tells when it is looked at.
    """

    def __init__(self, table: str, name: str, schema: str | None, constraint: sa.UniqueConstraint) -> None:
        super().__init__(table, name, schema)
        self.constraint = constraint


@compiles(UniqueUsingIndex)
def _unique_using_index(element: UniqueUsingIndex, compiler: DDLCompiler, **_: Any) -> str:
    name = compiler.preparer.quote(element.name)
    when = compiler.define_constraint_deferrability(element.constraint)
    place = alter_table(compiler, element.table, element.schema)
    return f"{place} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{when}"


class AlterDefault(MySQLAlterDefault):
    """MariaDB's ``ALTER COLUMN … SET DEFAULT``.

    :param becomes: what an inspector has of the column afterwards, where that is another than before.
    """

    def __init__(self, table: str, column: str, default: Any, schema: str | None, becomes: Mapping[str, Any]) -> None:
        super().__init__(table, column, default, schema=schema)
        self.becomes = becomes


class ModifyColumn(DDLElement):
    """MariaDB's ``MODIFY``, with a whole definition as SQL.

    :param becomes: as for :class:`AlterDefault`.
    """

    inherit_cache = False

    def __init__(
        self, table: str, column: str, definition: str, schema: str | None, becomes: Mapping[str, Any]
    ) -> None:
        self.table = table
        self.column = column
        self.definition = definition
        self.schema = schema
        self.becomes = becomes


@compiles(ModifyColumn)
def _modify_column(element: ModifyColumn, compiler: DDLCompiler, **_: Any) -> str:
    column = compiler.preparer.quote(element.column)
    return f"{alter_table(compiler, element.table, element.schema)} MODIFY {column} {element.definition}"


class RenameColumn(DDLElement):
    """``RENAME COLUMN``, which keeps all else of the column on every database (MariaDB from 10.5.2 on)."""

    inherit_cache = False

    def __init__(self, table: str, column: str, name: str, schema: str | None) -> None:
        self.table = table
        self.column = column
        self.name = name
        self.schema = schema


@compiles(RenameColumn)
def _rename_column(element: RenameColumn, compiler: DDLCompiler, **_: Any) -> str:
    old, new = compiler.preparer.quote(element.column), compiler.preparer.quote(element.name)
    return f"{alter_table(compiler, element.table, element.schema)} RENAME COLUMN {old} TO {new}"
