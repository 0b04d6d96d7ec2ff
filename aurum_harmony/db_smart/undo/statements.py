"""What the statements of a ``downgrade()`` take away, read from their text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..batches import copy_of
from ..dialects.base import Facts
from ..schema.catalog import Catalog
from ..schema.effects import IDENTIFIER, normalized, split_name
from ..schema.raw_sql import changes_rows, losses, within
from ..session.controls import plain, split

_PLACE = rf"(?:{IDENTIFIER}\s*\.\s*)*{IDENTIFIER}"
#: How ``batch_alter_table`` fills the table that takes the place of another one.
_FILLS = re.compile(
    rf"INSERT\s+INTO\s+(?P<copy>{_PLACE})\s*\([^)]*\)\s*SELECT\b(?P<columns>.*)\sFROM\s", re.IGNORECASE | re.DOTALL
)
_QUALIFIED = re.compile(rf"{IDENTIFIER}\s*\.\s*(?:{IDENTIFIER}\s*\.\s*)*({IDENTIFIER})")
#: What overwrites rows, or runs code whose effects its text does not tell.
_OVERWRITES = re.compile(
    r"(?:REPLACE|MERGE|CALL|DO|EXECUTE|PREPARE|LOAD)\b|BEGIN\s+NOT\b|INSERT\s+OR\s+REPLACE\b|ALTER\s+IGNORE\b"
    r"|INSERT\b.*\bON\s+(?:DUPLICATE\s+KEY|CONFLICT\b.*\bDO\s+UPDATE)\b",
    re.IGNORECASE | re.DOTALL,
)


class Taken(NamedTuple):
    """What a statement takes away.

    :ivar table: its normalized name.
    :ivar column: likewise; ``None`` for the whole table, or all of its rows.
    :ivar kept: of a table that another one takes the place of, the columns that are copied into that.
    """

    schema: str | None
    table: str
    column: str | None = None
    kept: frozenset[str] | None = None

    @property
    def whole(self) -> bool:
        """Whether all of the table goes."""
        return self.column is None and self.kept is None


class Takes:
    """What the statements of one ``downgrade()`` take away, asked one after the other."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._copies: dict[str, frozenset[str]] = {}

    def of(self, statement: str) -> Iterator[Taken | str]:
        """What one statement takes away; as a text, what cannot be counted."""
        for part in split(statement, self._facts.name):
            text = plain(part, self._facts)
            if _OVERWRITES.match(text):
                yield text
                continue
            for one in within(part, self._facts):
                yield from self._of_one(one)

    def _of_one(self, text: str) -> Iterator[Taken | str]:
        facts = self._facts
        filled = _FILLS.match(text)
        if filled is not None:
            names = (normalized(name, facts) for name in _QUALIFIED.findall(filled["columns"]))
            self._copies[split_name(normalized(filled["copy"], facts))[0]] = frozenset(names)
        if changes_rows(text, facts):
            yield text
            return
        for loss in losses(text, facts):
            if loss.kind == "column":  # whose names are normalized already
                table, schema = split_name(loss.place)
                yield Taken(schema, table, loss.name)
            elif loss.kind in ("table", "rows") and not loss.cascades:
                table, schema = split_name(normalized(loss.place, facts))
                yield Taken(schema, table, kept=self._copies.get(copy_of(table)))
            else:
                yield text


def stored(catalog: Catalog, schema: str | None, table: str, facts: Facts) -> str | None:
    """What the database itself calls the table of a normalized name; ``None`` where there is none."""
    names = catalog.inspector.get_table_names(schema)
    found = next((name for name in names if _key(name, facts) == table), None)
    if found is None and catalog.has_table(table, schema):  # where only a search path finds it
        return table
    return found


def _key(name: str, facts: Facts) -> str:
    """A name, which stands nowhere in SQL, as it is compared."""
    quoted = name.replace('"', '""')
    return normalized(f'"{quoted}"', facts)


def goes(taken: Taken, column: str, facts: Facts) -> bool:
    """Whether a column is among those that a statement takes away."""
    key = _key(column, facts)
    return key == taken.column if taken.kept is None else key not in taken.kept
