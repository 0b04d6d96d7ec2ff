"""Comparing the type that a column has with the one that it is to have."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from operator import le
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from ..dialects.base import facts_of

_STRING, _QUOTE = re.compile(r"'((?:[^']|'')*)'"), re.compile("'(')")
#: The same where a backslash takes the next character as it is.
_ESCAPED_STRING, _ESCAPE = re.compile(r"'((?:[^'\\]|''|\\.)*)'", re.DOTALL), re.compile(r"(?:'|\\)(.)", re.DOTALL)
#: PostgreSQL's casts, as in ``'a'::character varying(20)`` and ``::text[]``.
_CAST = re.compile(r"::[a-z ]+(\(\d+\))?(\[\])?")
#: What makes no difference in a list of values.
_SIGNS = re.compile(r"""[\s(),\[\]"`]""")
#: What ends the name of a type; what is below zero counts with the size.
_MORE = re.compile(r"\s*\(| UNSIGNED\b| CHARACTER SET | COLLATE ")


def compare(old: TypeEngine[Any], new: TypeEngine[Any], dialect: Dialect) -> Literal["same", "wider", "other"]:
    """What a change of type does to the values that are there.

    :param old: as reflected.
    :returns: ``"wider"`` when the new type holds every value of the old one and reads the same to the application;
        ``"other"`` when it may not.
    """
    values = native_values(old, dialect), native_values(new, dialect)
    lists = isinstance(old, sa.ARRAY), isinstance(new, sa.ARRAY)
    if values[0] is not None and values[1] is not None and lists[0] == lists[1] and _same_name(old, new, dialect):
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
    """The values of an enumeration that is a type of the database, in their order; ``None`` of any other type.

    Of an array, those of its items.
    """
    kind = enumeration(kind, dialect)
    if isinstance(kind, sa.Enum) and kind.native_enum and dialect.supports_native_enum:
        return list(kind.enums)
    return None


def enumeration(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """The enumeration that a type is made of, if it is of one: by a decorator or as an array; else the type itself."""
    while isinstance(kind, (sa.types.TypeDecorator, sa.ARRAY)):
        kind = kind.item_type if isinstance(kind, sa.ARRAY) else kind.load_dialect_impl(dialect)
    return kind


def listed_values(condition: str | None, column: str, dialect: Dialect) -> list[str] | None:
    """The values that a check allows a column, as the database shows it; ``None`` if it says anything else."""
    escapes = facts_of(dialect.name).backslash_escapes
    string, escape = (_ESCAPED_STRING, _ESCAPE) if escapes else (_STRING, _QUOTE)
    values = [escape.sub(r"\1", text) for text in string.findall(condition or "")]
    rest, name = (_SIGNS.sub("", text).lower() for text in (_CAST.sub("", string.sub("", condition or "")), column))
    return values if rest in (f"{name}in", f"{name}=anyarray", f"{name}=") and values else None


def longer(kind: TypeEngine[Any], values: Sequence[str]) -> TypeEngine[Any] | None:
    """A text type in which all values have room; ``None`` where they have it already."""
    length = getattr(kind, "length", None)
    most = max(map(len, values), default=0)
    if not isinstance(kind, sa.String) or length is None or length >= most:
        return None
    new = copy.copy(kind)
    new.length = most
    new.__dict__.pop("_static_cache_key", None)
    return new


def with_values(
    have: Sequence[str], add: Sequence[str], *, after: str | None = None, before: str | None = None
) -> list[str]:
    """Values with those that are missing among them, each behind the one that is added before it.

    :param after: the value behind which the first of them stands; ``before`` likewise; without both it is the last.
    :raises ValueError: there is no such value.
    """
    wanted, previous = list(have), after
    for value in add:
        if value not in wanted:
            place = len(wanted)
            if previous is not None:
                place = wanted.index(previous) + 1
            elif before is not None:
                place = wanted.index(before)
            wanted.insert(place, value)
        previous = None if previous is None and before is None else value
    return wanted


def spelled(kind: TypeEngine[Any], dialect: Dialect) -> str:
    """A type as a person is to read it: as the database has it, and an enumeration with its values."""
    if isinstance(kind, sa.types.NullType):
        return str(kind)
    values = native_values(kind, dialect)
    if values is not None and facts_of(dialect.name).named_enumerations:
        return f"{_text_of(kind, dialect)} ({', '.join(map(repr, values))})"
    return _text_of(kind, dialect)


def as_json(kind: TypeEngine[Any], dialect: Dialect) -> dict[str, Any] | None:
    """A reflected type as JSON has it; ``None`` where that does not tell all of it."""
    values = {
        key: value
        for key, value in vars(kind).items()
        if key in sa.util.get_cls_kwargs(type(kind)) and isinstance(value, (str, int)) and value is not False
    }
    found = {"name": type(kind).__name__, **values}
    try:
        return found if _text_of(from_json(found, dialect), dialect) == _text_of(kind, dialect) else None
    except (AttributeError, TypeError, sa.exc.CompileError):
        return None


def from_json(found: Mapping[str, Any], dialect: Dialect) -> TypeEngine[Any]:
    """The type that :func:`as_json` has told of."""
    values = {key: value for key, value in found.items() if key != "name"}
    types = import_module(f"sqlalchemy.dialects.{dialect.name.replace('mariadb', 'mysql')}")
    made: TypeEngine[Any] = (getattr(types, found["name"], None) or getattr(sa.types, found["name"]))(**values)
    return made


def misfits(column: sa.ColumnElement[Any], kind: TypeEngine[Any], dialect: Dialect) -> sa.ColumnElement[bool] | None:
    """The condition of values that a narrower type would refuse or cut; ``None`` where nothing tells."""
    if isinstance(kind, sa.String):
        most = _length(kind, dialect)
        if most == float("inf"):
            return sa.false()
        size = sa.func.char_length if kind.length is not None else sa.func.octet_length
        return size(column) > int(most)
    if isinstance(kind, sa.Integer):
        below, above = _range(kind)
        return sa.or_(column < sa.literal(-(2**below) if below else 0), column > sa.literal(2**above - 1))
    if isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float) and kind.precision is not None:
        before, behind = map(int, _digits(kind, dialect))
        return sa.or_(sa.func.round(column, behind) != column, sa.func.abs(column) >= sa.literal(10**before))
    return None


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
    kinds = enumeration(old, dialect), enumeration(new, dialect)
    names = [[str(getattr(kind, "name", None)), getattr(kind, "schema", None)] for kind in kinds]
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
