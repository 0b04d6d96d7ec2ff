"""The differences between two descriptions of a database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from ..schema.described import Description, Part, PartKind, TableDescription, Thing, ThingKind

#: Who has it: the models alone, the database alone, or both in different forms.
Side = Literal["models", "database", "both"]
#: What a migration would do for each side.
VERBS: Mapping[Side, str] = {"models": "add", "both": "change", "database": "drop"}


@dataclass(frozen=True)
class Difference:
    """One thing that the models and the database do not have alike.

    :ivar kind: of the thing.
    :ivar table: whose part it is; ``None`` for an enumeration or a sequence.
    :ivar name: ``None`` for a table, and for a constraint without a name.
    :ivar models: its facets there; ``None`` where it lacks.
    :ivar database: likewise.
    :ivar columns: of a table that one side lacks: the name and the type of each, by which it is known again.
    :ivar name_there: what the database calls what it has in another form.
    """

    kind: Literal["table"] | PartKind | ThingKind
    schema: str | None
    table: str | None
    name: str | None
    models: Mapping[str, Any] | None
    database: Mapping[str, Any] | None
    columns: frozenset[tuple[str, str]] = frozenset()
    name_there: str | None = None

    @property
    def side(self) -> Side:
        """Who has it."""
        return "database" if self.models is None else "models" if self.database is None else "both"

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Of what both have, the facets that differ: in the models, in the database."""
        if self.models is None or self.database is None:
            return {}
        names = [*self.models, *(name for name in self.database if name not in self.models)]
        found = {name: (self.models.get(name), self.database.get(name)) for name in names}
        return {name: both for name, both in found.items() if both[0] != both[1]}

    @property
    def owner(self) -> str:
        """The table as people write it, or the thing itself."""
        return ".".join(filter(None, (self.schema, self.table or self.name)))

    @property
    def path(self) -> str:
        """What names it in one word, such as ``users.nickname``; by this it can be ignored."""
        return self.owner if self.table is None or self.name is None else f"{self.owner}.{self.name}"

    def __str__(self) -> str:
        facets = self.models if self.database is None else self.database
        if self.side == "both":
            more = "; ".join(
                f"{name}: {_shown(models)} in the models, {_shown(database)} in the database"
                for name, (models, database) in self.changes.items()
            )
        elif self.kind in ("table", "column"):
            more = "" if self.kind == "table" or facets is None else str(facets.get("type") or "")
        else:
            more = ", ".join(f"{name} {_shown(value)}" for name, value in (facets or {}).items() if value)
        name = "" if self.name is None or self.kind == "table" else f" {self.name}"
        return f"{self.kind}{name}{': ' if self.side == 'both' else ' ' if more else ''}{more}"


def compare(models: Description, database: Description) -> list[Difference]:
    """What the models and a database do not have alike, in the order of the models' tables."""
    found: list[Difference] = []
    for key in [*models.things, *(key for key in database.things if key not in models.things)]:
        found += _things(models.things.get(key), database.things.get(key))
    others = models.others | database.others
    for place in [*models.tables, *(place for place in database.tables if place not in models.tables)]:
        mine, theirs = models.tables.get(place), database.tables.get(place)
        if place in others:
            continue
        if mine is None or theirs is None:
            one = mine or theirs
            assert one is not None
            columns = frozenset((name, str(column.facets.get("type"))) for name, column in one.columns.items())
            found.append(Difference("table", one.schema, one.name, None, _facets(mine), _facets(theirs), columns))
        else:
            found += _table(mine, theirs)
    return found


def by_owner(differences: Iterable[Difference]) -> Iterator[tuple[str, list[Difference]]]:
    """Differences by the table that they are of, in their order."""
    for owner, found in groupby(differences, lambda one: one.owner):
        yield owner, list(found)


def _facets(one: Part | Thing | TableDescription | None) -> Mapping[str, Any] | None:
    return None if one is None else one.facets


def _things(mine: Thing | None, theirs: Thing | None) -> Iterator[Difference]:
    one = mine or theirs
    assert one is not None
    if mine is None or theirs is None or mine.facets != theirs.facets:
        yield Difference(one.kind, one.schema, None, one.name, _facets(mine), _facets(theirs))


def _table(mine: TableDescription, theirs: TableDescription) -> Iterator[Difference]:
    if mine.facets != theirs.facets:
        yield Difference("table", mine.schema, mine.name, None, mine.facets, theirs.facets)
    for name in [*mine.columns, *(name for name in theirs.columns if name not in mine.columns)]:
        yield from _parts(mine, mine.columns.get(name), theirs.columns.get(name))
    left, right = ([one for one in parts if not one.implied] for parts in _unmatched(mine.parts, theirs.parts))
    for part in left:
        # Of the same name, or of the same kind where a table has only one: the same thing in another form.
        other = next((one for one in right if one.kind == part.kind and _same_place(part, one)), None)
        if other is not None:
            right.remove(other)
        yield from _parts(mine, part, other)
    for part in right:
        yield from _parts(mine, None, part)


def _same_place(part: Part, other: Part) -> bool:
    return part.kind == "primary key" or (part.name is not None and part.name == other.name)


def _unmatched(mine: Iterable[Part], theirs: Iterable[Part]) -> tuple[list[Part], list[Part]]:
    """What is left when everything is taken away that does the same, whatever it is called.

    But what has the name of an index of the models has to make way for it, and so has an index that has the name of a
    unique constraint. A constraint's name may be the server's own.
    """
    left, right = list(mine), list(theirs)
    for named in (True, False):
        names = {(part.kind, part.name) for part in left if not part.implied}
        for part in list(left):
            other = next(
                (
                    one
                    for one in right
                    if one.content == part.content
                    and (
                        one.name == part.name
                        if named
                        else ("index", one.name) not in names
                        and (one.kind != "index" or ("unique", one.name) not in names)
                    )
                ),
                None,
            )
            if other is not None:
                left.remove(part)
                right.remove(other)
    return left, right


def _parts(table: TableDescription, mine: Part | None, theirs: Part | None) -> Iterator[Difference]:
    one = mine or theirs
    assert one is not None
    if mine is not None and theirs is not None and theirs.holds == mine.facets.get("type") is not None:
        mine = replace(mine, facets={**mine.facets, "type": theirs.facets["type"]})
    if mine is None or theirs is None or mine.facets != theirs.facets:
        there = None if theirs is None else theirs.name
        yield Difference(one.kind, table.schema, table.name, one.name, _facets(mine), _facets(theirs), name_there=there)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"({', '.join('an expression' if one is None else str(one) for one in value)})"
    return str(value)
