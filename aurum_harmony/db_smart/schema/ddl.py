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
from sqlalchemy.types import TypeEngine

from ..session.sql import inline_column


class BareTable:
    """What stands for a :class:`sqlalchemy.Table` where only its name counts, as that takes long to make."""

    constraints = foreign_key_constraints = indexes = frozenset[Any]()

    def __init__(self, name: str, schema: str | None) -> None:
        self.name = name
        self.schema = schema


def alone(column: sa.Column[Any]) -> bool:
    """Whether a column brings nothing along into its table: neither constraint nor index, nor who listens for that."""
    more = column.primary_key or column.unique or column.index or column.constraints or column.foreign_keys
    if more or column.server_default is not None or column.comment is not None:
        return False
    return not (column.dispatch.before_parent_attach or column.dispatch.after_parent_attach)


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
    """PostgreSQL's ``ADD CONSTRAINT … UNIQUE USING INDEX``: an index that is there becomes the constraint, or the key.

    :param constraint: tells when it is looked at.
    """

    def __init__(
        self,
        table: str,
        name: str,
        schema: str | None,
        constraint: sa.UniqueConstraint | sa.PrimaryKeyConstraint,
    ) -> None:
        super().__init__(table, name, schema)
        self.constraint = constraint


@compiles(UniqueUsingIndex)
def _unique_using_index(element: UniqueUsingIndex, compiler: DDLCompiler, **_: Any) -> str:
    name = compiler.preparer.quote(element.name)
    when = compiler.define_constraint_deferrability(element.constraint)
    place = alter_table(compiler, element.table, element.schema)
    kind = "PRIMARY KEY" if isinstance(element.constraint, sa.PrimaryKeyConstraint) else "UNIQUE"
    return f"{place} ADD CONSTRAINT {name} {kind} USING INDEX {name}{when}"


class AddEnumValue(DDLElement):
    """PostgreSQL's ``ALTER TYPE … ADD VALUE IF NOT EXISTS``.

    :param before: the value that it is to stand before; ``after`` likewise; without both it is the last.
    """

    inherit_cache = False

    def __init__(
        self, name: str, schema: str | None, value: str, *, before: str | None = None, after: str | None = None
    ) -> None:
        self.name = name
        self.schema = schema
        self.value = value
        self.before = before
        self.after = after


@compiles(AddEnumValue)
def _add_enum_value(element: AddEnumValue, compiler: DDLCompiler, **_: Any) -> str:
    text = f"ALTER TYPE {_placed(compiler, element.name, element.schema)} ADD VALUE IF NOT EXISTS "
    text += _literal(compiler, element.value)
    for word, other in (("BEFORE", element.before), ("AFTER", element.after)):
        text += "" if other is None else f" {word} {_literal(compiler, other)}"
    return text


def _placed(compiler: DDLCompiler, name: str, schema: str | None) -> str:
    """A name, with its schema if it has one."""
    quote = compiler.preparer.quote
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"


def _literal(compiler: DDLCompiler, value: str) -> str:
    return str(compiler.sql_compiler.render_literal_value(value, sa.String()))


class ReplaceCheck(DDLElement):
    """``ALTER TABLE`` that puts a check in the place of another, in one statement.

    :param name: of the old one.
    :param check: the new one.
    :param column: one that gets another type with it; PostgreSQL only.
    """

    inherit_cache = False

    def __init__(
        self, name: str, check: sa.CheckConstraint, column: str | None = None, type_: TypeEngine[Any] | None = None
    ) -> None:
        self.name = name
        self.check = check
        self.column = column
        self.type_ = type_


@compiles(ReplaceCheck)
def _replace_check(element: ReplaceCheck, compiler: DDLCompiler, **_: Any) -> str:
    table = element.check.table
    quote = compiler.preparer.quote
    parts = [f"DROP CONSTRAINT {quote(element.name)}", f"ADD {compiler.process(element.check)}"]
    if element.column is not None and element.type_ is not None:
        parts.insert(1, f"ALTER COLUMN {quote(element.column)} TYPE {compiler.type_compiler.process(element.type_)}")
    return f"{alter_table(compiler, table.name, table.schema)} {', '.join(parts)}"


class ReplaceIndex(DDLElement):
    """MariaDB's ``ALTER TABLE`` that puts an index in the place of another of its name."""

    inherit_cache = False

    def __init__(self, index: sa.Index) -> None:
        self.index = index


@compiles(ReplaceIndex)
def _replace_index(element: ReplaceIndex, compiler: DDLCompiler, **_: Any) -> str:
    index = element.index
    assert index.table is not None
    table, name = compiler.preparer.format_table(index.table), compiler.preparer.format_index(index)
    kind, columns = str(compiler.process(sa.schema.CreateIndex(index))).split(f" ON {table} ", 1)
    return f"ALTER TABLE {table} DROP INDEX {name}, ADD {kind.removeprefix('CREATE ')} {columns}"


class RenameIndex(DDLElement):
    """PostgreSQL's ``ALTER INDEX … RENAME``."""

    inherit_cache = False

    def __init__(self, table: str, index: str, name: str, schema: str | None) -> None:
        self.table = table
        self.index = index
        self.name = name
        self.schema = schema


@compiles(RenameIndex)
def _rename_index(element: RenameIndex, compiler: DDLCompiler, **_: Any) -> str:
    old, new = _placed(compiler, element.index, element.schema), compiler.preparer.quote(element.name)
    return f"ALTER INDEX {old} RENAME TO {new}"


class DeclaredObject(DDLElement):
    """What stands in the schema by its text: a view, a function or a trigger.

    :param kind: ``view``, ``function`` or ``trigger``.
    :param table: of a trigger.
    """

    inherit_cache = False

    def __init__(self, kind: str, name: str, schema: str | None, table: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.schema = schema
        self.table = table


class CreateDeclared(DeclaredObject):
    """The statement that makes it.

    :param text: all of the statement.
    """

    def __init__(self, kind: str, name: str, schema: str | None, table: str | None, text: str) -> None:
        super().__init__(kind, name, schema, table)
        self.text = text


@compiles(CreateDeclared)
def _create_declared(element: CreateDeclared, compiler: DDLCompiler, **_: Any) -> str:
    return element.text


class DropDeclared(DeclaredObject):
    """``DROP`` of it.

    :param arguments: the types of a function's arguments, on PostgreSQL.
    """

    def __init__(
        self, kind: str, name: str, schema: str | None, table: str | None = None, arguments: str | None = None
    ) -> None:
        super().__init__(kind, name, schema, table)
        self.arguments = arguments


@compiles(DropDeclared)
def _drop_declared(element: DropDeclared, compiler: DDLCompiler, **_: Any) -> str:
    more = "" if element.arguments is None else f"({element.arguments})"
    return f"DROP {element.kind.upper()} {_placed(compiler, element.name, element.schema)}{more}"


@compiles(DropDeclared, "postgresql")
def _drop_on_postgresql(element: DropDeclared, compiler: DDLCompiler, **options: Any) -> str:
    if element.kind != "trigger":
        return _drop_declared(element, compiler, **options)
    table = _placed(compiler, str(element.table), element.schema)
    return f"DROP TRIGGER {compiler.preparer.quote(element.name)} ON {table}"


class CreateTableAs(DDLElement):
    """A table that has what a query gives.

    :param select: without parameters.
    """

    inherit_cache = False

    def __init__(self, name: str, schema: str | None, select: sa.Select[Any]) -> None:
        self.name = name
        self.schema = schema
        self.select = select


@compiles(CreateTableAs)
def _create_table_as(element: CreateTableAs, compiler: DDLCompiler, **_: Any) -> str:
    query = compiler.sql_compiler.process(element.select, literal_binds=True)
    # Whatever the server makes by default: another engine may lose at a crash what it was asked to keep.
    engine = " ENGINE=InnoDB" if compiler.dialect.name in ("mysql", "mariadb") else ""
    return f"CREATE TABLE {_placed(compiler, element.name, element.schema)}{engine} AS {query}"


class LockTables(DDLElement):
    """Let nobody else read or write tables: on PostgreSQL until the transaction ends, on MariaDB until ``UNLOCK``."""

    inherit_cache = False

    def __init__(self, names: Sequence[str], schema: str | None) -> None:
        self.names = names
        self.schema = schema


@compiles(LockTables, "postgresql")
def _lock_on_postgresql(element: LockTables, compiler: DDLCompiler, **_: Any) -> str:
    places = ", ".join(_placed(compiler, name, element.schema) for name in element.names)
    return f"LOCK TABLE {places} IN ACCESS EXCLUSIVE MODE"


@compiles(LockTables, "mysql", "mariadb")
def _lock_on_mariadb(element: LockTables, compiler: DDLCompiler, **_: Any) -> str:
    places = (f"{_placed(compiler, name, element.schema)} WRITE" for name in element.names)
    return f"LOCK TABLES {', '.join(places)}"


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
