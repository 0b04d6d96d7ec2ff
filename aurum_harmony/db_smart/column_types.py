"""Comparing the type that a column has with the one that it is to have."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

#: Integers by what they hold.
_RANKS: tuple[type[TypeEngine[int]], ...] = (sa.SmallInteger, sa.Integer, sa.BigInteger)


def compare(old: TypeEngine[object], new: TypeEngine[object], dialect: Dialect) -> Literal["same", "wider", "other"]:
    """What a change of type does to the values that are there.

    :param old: as reflected.
    :returns: ``"wider"`` when the new type holds every value of the old one and reads the same to the application;
        ``"other"`` when it may not.
    """
    if _text(old, dialect) == _text(new, dialect):
        return "same"
    if isinstance(old, sa.String) and isinstance(new, sa.String):
        if isinstance(old, sa.Enum) or isinstance(new, sa.Enum):
            return "other"
        return "wider" if _length(new) >= _length(old) else "other"
    if isinstance(old, sa.Integer) and isinstance(new, sa.Integer):
        return "wider" if _rank(new) >= _rank(old) else "other"
    if isinstance(old, sa.Float) and isinstance(new, sa.Float):
        return "same" if _affinity(old, dialect) == _affinity(new, dialect) else "other"
    if isinstance(old, sa.Numeric) and isinstance(new, sa.Numeric):
        return "wider" if _digits(new) >= _digits(old) and (new.scale or 0) >= (old.scale or 0) else "other"
    if type(old) is type(new) or _affinity(old, dialect) == _affinity(new, dialect):
        return "same"
    return "other"


def free_on_postgresql(old: TypeEngine[object], new: TypeEngine[object]) -> bool:
    """Whether PostgreSQL makes a change to a wider type in place, without rewriting the table.

    See ``ALTER COLUMN TYPE`` in its manual: binary coercible, or an unconstrained domain of it.
    """
    if isinstance(old, sa.String) and isinstance(new, sa.String):
        return not isinstance(old, sa.CHAR) and not isinstance(new, sa.CHAR)
    if isinstance(old, sa.Numeric) and isinstance(new, sa.Numeric):
        return new.precision is None or (old.scale or 0) == (new.scale or 0)
    return False


def _text(kind: TypeEngine[object], dialect: Dialect) -> str:
    return kind.compile(dialect=dialect).upper()


def _affinity(kind: TypeEngine[object], dialect: Dialect) -> str:
    """The type as the database calls it, without its arguments; synonyms as Alembic knows them."""
    from alembic.migration import MigrationContext

    text = _text(kind, dialect).partition("(")[0].strip()
    synonyms = MigrationContext(dialect, None, {}).impl.type_synonyms
    return min([text, *(word for group in synonyms if text in group for word in group)])


def _length(kind: sa.String) -> float:
    return float("inf") if kind.length is None else kind.length


def _rank(kind: sa.Integer) -> int:
    text = type(kind).__name__.upper()
    for rank, base in reversed(list(enumerate(_RANKS))):
        if isinstance(kind, base) and not (base is sa.Integer and text in ("TINYINT", "MEDIUMINT")):
            return rank * 10
    return {"TINYINT": -10, "MEDIUMINT": 5}.get(text, 10)


def _digits(kind: sa.Numeric[Any]) -> float:
    """Digits before the point."""
    return float("inf") if kind.precision is None else kind.precision - (kind.scale or 0)
