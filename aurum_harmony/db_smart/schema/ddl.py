"""DDL elements that SQLAlchemy and Alembic lack, compiled with their building blocks; and elements as text."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import add_column, alter_table
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement, conv
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import TypeEngine

from ..errors import DbSmartError

#: What SQLAlchemy takes for a parameter when it writes a text.
_PARAMETER = re.compile(r"(?<![:\w\\]):(\w+)(?![:\w])")


def as_written(text: sa.TextClause) -> sa.TextClause:
    """A text without parameters for which it has no values: a colon before a word is one, as in ``':none'``."""
    without = {name for name, bind in text._bindparams.items() if bind.required}
    if not without:
        return text
    plain = sa.text(_PARAMETER.sub(lambda found: ("\\" if found[1] in without else "") + found[0], text.text))
    return plain.bindparams(*(bind for name, bind in text._bindparams.items() if name not in without))


def needed(constraint: sa.Constraint, dialect: Dialect) -> bool:
    """Whether the database needs a constraint: not the check of a type that it has itself."""
    return bool(constraint._should_create_for_compiler(_ddl_compiler(dialect)))


def render(element: sa.ClauseElement, dialect: Dialect, **options: Any) -> str:
    """An element as SQL that is sent without parameters, so that a percent sign is one.

    :param options: as ``compile_kwargs`` of SQLAlchemy.
    """
    return str(element.compile(dialect=_plain(dialect), compile_kwargs=options)).strip()


def default_text(column: sa.Column[Any], dialect: Dialect) -> str | None:
    """The default of a column as SQL, ``None`` where it has none."""
    text: str | None = _ddl_compiler(dialect).get_column_default_string(column)
    return text


def condition_text(condition: sa.ClauseElement, dialect: Dialect) -> str:
    """A condition, or another expression, as SQL, as it stands in a check of a table."""
    text: str = _ddl_compiler(dialect).sql_compiler.process(condition, include_table=False, literal_binds=True)
    return text


def name_text(item: sa.Index | sa.Constraint, dialect: Dialect) -> str:
    """The name that an index or constraint has in the database, where a long one made by a convention is shortened."""
    preparer: Any = dialect.identifier_preparer
    name = preparer.format_constraint(item, _alembic_quote=False)
    return str(item.name if name is None else name)


def short_name(name: str, dialect: Dialect) -> str:
    """The name that an index or constraint of a name has in the database, if the name was made by a convention."""
    preparer: Any = dialect.identifier_preparer
    return str(preparer.truncate_and_render_constraint_name(conv(name), _alembic_quote=False))


def settle_names(constraints: Iterable[Any], dialect: Dialect) -> None:
    """Give constraints that have a name the one that they will have in the database.

    :raises sqlalchemy.exc.IdentifierError: it is too long, and not made by a convention.
    """
    preparer: Any = dialect.identifier_preparer
    for constraint in constraints:
        if constraint.name is not None:
            constraint.name = preparer.format_constraint(constraint, _alembic_quote=False)


def type_text(kind: TypeEngine[Any], dialect: Dialect) -> str:
    """A type as SQL that is sent without parameters."""
    return kind.compile(dialect=_plain(dialect))


def string_text(value: str, dialect: Dialect) -> str:
    """A string as SQL that is sent without parameters."""
    return render(sa.literal(value, sa.String()), dialect, literal_binds=True)


def constraint_text(constraint: sa.Constraint, dialect: Dialect) -> str:
    """A constraint as SQL, as it stands in ``CREATE TABLE``.

    :raises DbSmartError: the database has no such constraints.
    """
    text: str | None = _ddl_compiler(dialect).process(constraint)
    if text is None:
        raise DbSmartError(
            f"The constraint {str(constraint.name)!r} is a foreign key to another schema, which {dialect.name} lacks. "
            "Nothing was changed. Leave it out."
        )
    return text


def definition_text(column: sa.Column[Any], dialect: Dialect) -> str:
    """A column of MariaDB as SQL, as it stands behind its name."""
    compiler = _ddl_compiler(dialect)
    text: str = compiler.get_column_specification(column)
    return text.removeprefix(f"{compiler.preparer.format_column(column)} ")


def column_text(column: sa.Column[Any], checks: Sequence[sa.Constraint], dialect: Dialect) -> str:
    """A column of SQLite as SQL, as it stands in ``CREATE TABLE``.

    :param checks: constraints to write behind it.
    """
    return _inline(_ddl_compiler(dialect), column, checks)


def _ddl_compiler(dialect: Dialect) -> Any:
    plain = _plain(dialect)
    return plain.ddl_compiler(plain, None)  # type: ignore[arg-type]


def _inline(compiler: Any, column: sa.Column[Any], checks: Sequence[sa.Constraint]) -> str:
    """A column with its foreign key, which Alembic writes without its name, and with constraints behind it."""
    plain = compiler.get_column_specification(column)
    more = add_column(compiler, column, inline_references=True).removeprefix(f"ADD COLUMN {plain}")
    if more.startswith(" REFERENCES "):
        key = next(iter(column.foreign_keys)).constraint
        name = None if key is None or key.name is None else compiler.preparer.format_constraint(key)
        more = f" CONSTRAINT {name}{more}" if name is not None else more
    return " ".join([plain + more, *map(compiler.process, checks)])


def _plain(dialect: Dialect) -> Dialect:
    """A dialect that does not double percent signs."""
    plain = copy.copy(dialect)
    plain.paramstyle, plain.positional = "named", False
    plain.identifier_preparer = plain.preparer(plain)
    compiler: Any = plain.statement_compiler
    plain.statement_compiler = _ddl_statements(compiler)
    plain.__dict__.pop("_type_memos", None)  # how literals are written
    return plain


@functools.lru_cache
def _ddl_statements(compiler: Any) -> Any:
    """A compiler of statements that writes texts within a schema change, which has no parameters, as they stand."""

    class Statements(compiler):  # type: ignore[misc]
        def visit_textclause(self, text: sa.TextClause, *args: Any, **options: Any) -> str:
            if self.statement is None:  # of a schema change, or of nothing
                text = as_written(text)
            written: str = super().visit_textclause(text, *args, **options)
            return written

    return Statements


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
    # A foreign key is a constraint of its own, except on SQLite, which knows only the inline form.
    if compiler.dialect.name == "sqlite":
        (column,) = element.columns
        text = _inline(compiler, column, element.constraints)
        return f"{alter_table(compiler, element.table.name, element.table.schema)} ADD COLUMN {text}"
    parts = [add_column(compiler, column, **options) for column in element.columns]
    for constraint in element.constraints:
        text = compiler.process(constraint)
        if text:
            parts.append(f"ADD {text}")
    return f"{alter_table(compiler, element.table.name, element.table.schema)} {', '.join(parts)}"


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


class ModifyColumn(DDLElement):
    """MariaDB's ``MODIFY``, with a whole definition as SQL."""

    inherit_cache = False

    def __init__(self, table: str, column: str, definition: str, schema: str | None) -> None:
        self.table = table
        self.column = column
        self.definition = definition
        self.schema = schema


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
