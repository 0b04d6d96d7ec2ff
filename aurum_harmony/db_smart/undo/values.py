"""Which values go with what is taken back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..dialects.base import Facts
from ..schema.catalog import Catalog
from .statements import Taken, goes, stored

#: A default that is the same for every row.
_CONSTANT = re.compile(r"\(*(?:'(?:[^']|'')*'|[+-]?[\d.]+|true|false)(?:::[\w ()\[\]\"]+)?\)*", re.IGNORECASE)


@dataclass(frozen=True)
class Loss:
    """Values that go with what is taken back.

    :ivar column: ``None`` for a whole table.
    """

    schema: str | None
    table: str
    column: str | None
    rows: int

    def __str__(self) -> str:
        kind, what = ("row", "the table ") if self.column is None else ("value", f"the column {self.column!r} of ")
        return f"{self.rows} {kind}{'' if self.rows == 1 else 's'} of {what}{self.table!r}"


class Part(NamedTuple):
    """Values that go.

    :ivar column: ``None`` for whole rows.
    :ivar where: which rows have them.
    """

    schema: str | None
    table: str
    column: str | None
    where: sa.ColumnElement[bool]


def parts_of(catalog: Catalog, taken: Taken, facts: Facts) -> list[Part]:
    """The values that go with what a statement takes away."""
    schema, table = taken.schema, stored(catalog, taken.schema, taken.table, facts)
    if table is None:
        return []
    if taken.whole:
        return [Part(schema, table, None, sa.true())]
    names = [one["name"] for one in catalog.columns(table, schema).values()]
    return [
        Part(schema, table, name, holds(catalog, schema, table, name)) for name in names if goes(taken, name, facts)
    ]


def holds(catalog: Catalog, schema: str | None, table: str, name: str) -> sa.ColumnElement[bool]:
    """The condition of rows that have a value in a column: neither NULL nor its default, and not computed."""
    existing = catalog.columns(table, schema)[catalog.normalize_name(name)]
    column: sa.ColumnElement[Any] = sa.column(name)
    if existing.get("computed"):
        return sa.false()
    has, default = column.is_not(None), existing["default"]
    kind = existing["type"]
    if default is None or isinstance(kind, sa.JSON) or not _CONSTANT.fullmatch(str(default)):
        return has
    usual: sa.ColumnElement[Any] = sa.literal_column(f"({default})")
    postgresql = catalog.inspector.dialect.name == "postgresql"
    # Others, such as a point, have no equality there, or one that is less than that: of boxes it compares the areas.
    as_text = postgresql and isinstance(getattr(kind, "item_type", kind), (sa.String, sa.types.NullType, sa.JSON))
    if isinstance(kind, sa.String) or as_text:  # whatever its collation
        as_it_is = sa.Text(collation="C") if postgresql else sa.LargeBinary()
        column, usual = sa.cast(column, as_it_is), sa.cast(usual, as_it_is)
    return sa.and_(has, column != usual)
