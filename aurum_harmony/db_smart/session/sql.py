"""SQLAlchemy's and Alembic's elements as text: the one place that uses the private parts of their compilers."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import add_column
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import conv
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


def needed(item: sa.Constraint | sa.Index, dialect: Dialect) -> bool:
    """Whether the database needs a constraint or an index.

    It does not need the check of a type that it has itself, nor what ``ddl_if`` keeps for others.
    """
    compiler = _ddl_compiler(dialect)
    if isinstance(item, sa.Constraint):
        # create_all() adds a foreign key of a circle of tables by itself, and leaves it without a place in its table.
        apart = getattr(item._create_rule, "__func__", None) is sa.schema.AddConstraint._create_rule_disable
        return apart or bool(item._should_create_for_compiler(compiler))
    only = item._ddl_if
    return only is None or only._should_execute(
        sa.schema.CreateIndex(item), item, None, compiler=compiler, checkfirst=False
    )


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
            f"The constraint {str(constraint.name)!r} is a foreign key to another schema; {dialect.name} has none. "
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
    return inline_column(_ddl_compiler(dialect), column, checks)


def _ddl_compiler(dialect: Dialect) -> Any:
    plain = _plain(dialect)
    return plain.ddl_compiler(plain, None)  # type: ignore[arg-type]


def inline_column(compiler: Any, column: sa.Column[Any], checks: Sequence[sa.Constraint]) -> str:
    """A column with its foreign key, which Alembic writes without its name, and with constraints behind it."""
    plain: str = compiler.get_column_specification(column)
    if not (column.foreign_keys or column.constraints or checks):
        return plain
    more = add_column(compiler, column, inline_references=True).removeprefix(f"ADD COLUMN {plain}")
    if more.startswith(" REFERENCES "):
        key = next(iter(column.foreign_keys)).constraint
        name = None if key is None or key.name is None else compiler.preparer.format_constraint(key)
        more = f" CONSTRAINT {name}{more}" if name is not None else more
    return " ".join([plain + more, *map(compiler.process, checks)])


@functools.lru_cache(maxsize=8)
def _plain(dialect: Dialect) -> Dialect:
    """As :func:`without_doubled_percents`, and each time the same, so that it remembers how it writes types."""
    return without_doubled_percents(dialect)


def without_doubled_percents(dialect: Dialect) -> Dialect:
    """A new dialect that does not double percent signs."""
    plain = copy.copy(dialect)
    plain.paramstyle, plain.positional = "named", False
    plain.identifier_preparer = plain.preparer(plain)
    compiler: Any = plain.statement_compiler
    plain.statement_compiler = _ddl_statements(compiler)
    plain.__dict__.pop("_type_memos", None)  # how literals are written
    types = type(plain.type_compiler_instance)(plain)  # the values of MariaDB's enumerations
    plain.type_compiler_instance = plain.type_compiler = types
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
