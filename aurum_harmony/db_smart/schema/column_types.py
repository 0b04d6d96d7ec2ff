"""Comparing the type that a column has with the one that it is to have."""

from __future__ import annotations

import re
from operator import le
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from ..dialects.base import facts_of

#: What ends the name of a type.
_MORE = re.compile(r"\s*\(| CHARACTER SET | COLLATE ")


def compare(old: TypeEngine[Any], new: TypeEngine[Any], dialect: Dialect) -> Literal["same", "wider", "other"]:
    """What a change of type does to the values that are there.

    :param old: as reflected.
    :returns: ``"wider"`` when the new type holds every value of the old one and reads the same to the application;
        ``"other"`` when it may not.
    """
    values = native_values(old, dialect), native_values(new, dialect)
    if values[0] is not None and values[1] is not None and _same_name(old, new, dialect):
        return "same" if values[0] == values[1] else "wider" if _within(values[0], values[1]) else "other"
    if _text(old, dialect) == _text(new, dialect):
        return "same"
    alike = _affinity(old, dialect) == _affinity(new, dialect)
    sizes: tuple[tuple[float, ...], tuple[float, ...]]
    if values != (None, None):
        return "other"
    if isinstance(old, sa.String) and isinstance(new, sa.String):
        sizes = (_length(old, dialect),), (_length(new, dialect),)
        alike &= new.collation in (None, old.collation)
    elif isinstance(old, sa.Integer) and isinstance(new, sa.Integer):
        sizes = _range(old), _range(new)
    elif isinstance(old, sa.Numeric) and isinstance(new, sa.Numeric) and not isinstance(old, sa.Float):
        sizes = _digits(old, dialect), _digits(new, dialect)
    else:  # of one class, it is their arguments that differ; of two, their spelling
        return "same" if alike and type(old) is not type(new) else "other"
    if alike and sizes[0] == sizes[1]:
        return "same"
    return "wider" if all(map(le, *sizes)) else "other"


def native_values(kind: TypeEngine[Any], dialect: Dialect) -> list[str] | None:
    """The values of an enumeration that is a type of the database, in their order; ``None`` of any other type."""
    if isinstance(kind, sa.types.TypeDecorator):
        kind = kind.load_dialect_impl(dialect)
    if isinstance(kind, sa.Enum) and kind.native_enum and dialect.supports_native_enum:
        return list(kind.enums)
    return None


def spelled(kind: TypeEngine[Any], dialect: Dialect) -> str:
    """A type as a person is to read it: as the database has it, and an enumeration with its values."""
    if isinstance(kind, sa.types.NullType):
        return str(kind)
    values = native_values(kind, dialect)
    if values is not None and facts_of(dialect.name).named_enumerations:
        return f"{_text_of(kind, dialect)} ({', '.join(map(repr, values))})"
    return _text_of(kind, dialect)


def free_on_postgresql(old: TypeEngine[Any], new: TypeEngine[Any]) -> bool:
    """Whether PostgreSQL makes a change to a wider type in place, without rewriting the table.

    See ``ALTER COLUMN TYPE`` in its manual: binary coercible, or an unconstrained domain of it.
    """
    if isinstance(old, sa.String) and isinstance(new, sa.String):
        fixed = isinstance(old, sa.CHAR) or isinstance(new, sa.CHAR)
        return not fixed and (new.length is None or (old.length is not None and old.length <= new.length))
    if isinstance(old, sa.Numeric) and isinstance(new, sa.Numeric):
        if new.precision is None or old.precision is None:
            return new.precision is None
        return (old.scale or 0) == (new.scale or 0) and old.precision <= new.precision
    return False


def _within(few: list[str], many: list[str]) -> bool:
    """Whether all values are among others in the same order."""
    rest = iter(many)
    return all(value in rest for value in few)


def _same_name(old: TypeEngine[Any], new: TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether two enumerations are one type, which may have a name and perhaps a schema."""
    if not facts_of(dialect.name).named_enumerations:
        return True
    names = [[str(getattr(kind, "name", None)), getattr(kind, "schema", None)] for kind in (old, new)]
    return names[0][0] == names[1][0] and (None in (names[0][1], names[1][1]) or names[0][1] == names[1][1])


def _text_of(kind: TypeEngine[Any], dialect: Dialect) -> str:
    return kind.compile(dialect=dialect)


def _text(kind: TypeEngine[Any], dialect: Dialect) -> str:
    return _text_of(kind, dialect).upper()


def _affinity(kind: TypeEngine[Any], dialect: Dialect) -> str:
    """The type as the database calls it, without its arguments; synonyms as Alembic knows them."""
    from alembic.migration import MigrationContext

    text = _MORE.split(_text(kind, dialect))[0]
    synonyms = MigrationContext(dialect, None, {}).impl.type_synonyms
    return min([text, *(word for group in synonyms if text in group for word in group)])


def _length(kind: TypeEngine[Any], dialect: Dialect) -> float:
    """Characters, or for a text of MariaDB bytes."""
    length: int | None = kind.length  # type: ignore[attr-defined]
    if length is not None:
        return length
    bits = facts_of(dialect.name).text_bits.get(_text(kind, dialect).partition(" ")[0])
    return float("inf") if bits is None else 2**bits - 1


def _range(kind: sa.Integer) -> tuple[int, int]:
    """The bits that hold what is below zero, and above."""
    small = 16 if isinstance(kind, sa.SmallInteger) else 64 if isinstance(kind, sa.BigInteger) else 32
    bits = {"TINYINT": 8, "MEDIUMINT": 24}.get(type(kind).__name__, small)
    return (0, bits) if getattr(kind, "unsigned", False) else (bits - 1, bits - 1)


def _digits(kind: sa.Numeric[Any], dialect: Dialect) -> tuple[float, float]:
    """Digits before the point, and behind it."""
    if kind.precision is None:
        return facts_of(dialect.name).plain_numeric
    return kind.precision - (kind.scale or 0), kind.scale or 0
