"""What a database has, described so that two of them can be compared: the real one, and one made from the models.

Both are described by the same code, and both by what the server itself calls its things, so that whatever the server
makes of a definition (spelling, casts, names of types) is on both sides and is no difference. Each kind of database has
its own reader, ``describe.py`` in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: What a table consists of. An exclusion constraint is one of PostgreSQL.
PartKind = Literal["column", "primary key", "unique", "foreign key", "check", "exclusion", "index"]
#: What is there besides tables. An enumeration is a type with a name of its own, of PostgreSQL, and so is a domain.
ThingKind = Literal["enumeration", "domain", "sequence"]
#: Tells of a schema and the name of a table whether it is compared.
Wanted = Callable[[str | None, str], bool]


@dataclass(frozen=True)
class Part:
    """A column, a constraint or an index.

    :ivar name: as the database has it; ``None`` for a constraint without a name.
    :ivar facets: all that counts of it but its name, in words that people read: ``{"type": "VARCHAR(20)", "nullable":
        True, "default": None}``. Both sides of a comparison have the same words for a part of one kind.
    :ivar implied: whether the server has made it for another part, so that it is no difference by itself.
    :ivar holds: of a column, another type of which it has every value already; the models may have that one.
    """

    kind: PartKind
    name: str | None
    facets: Mapping[str, Any]
    implied: bool = False
    holds: str | None = None

    @property
    def content(self) -> tuple[object, ...]:
        """What it does. A unique index of plain columns does what a unique constraint does."""
        facets = {name: value for name, value in self.facets.items() if value not in (None, False, "")}
        if self.kind == "index" and facets.keys() == {"columns", "unique"}:
            return "unique", (("columns", facets["columns"]),)
        return self.kind, tuple(sorted(facets.items()))


@dataclass
class TableDescription:
    """A table.

    :ivar columns: by normalized name, in their order.
    :ivar parts: everything else of it.
    :ivar facets: as of :class:`Part`: ``{"comment": None}``.
    """

    name: str
    schema: str | None = None
    columns: dict[str, Part] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    facets: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name as people write it, with the schema where that is not the usual one."""
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Thing:
    """An enumeration, a domain or a sequence.

    :ivar schema: ``None`` for the usual one.
    """

    kind: ThingKind
    name: str
    schema: str | None
    facets: Mapping[str, Any]


@dataclass
class Description:
    """All that is compared of one database.

    :ivar tables: by schema (``None`` for the usual one) and normalized name.
    :ivar things: by kind, schema and normalized name.
    :ivar others: names that views have, and tables that are not compared; a model may stand for one.
    """

    tables: dict[tuple[str | None, str], TableDescription] = field(default_factory=dict)
    things: dict[tuple[ThingKind, str | None, str], Thing] = field(default_factory=dict)
    others: set[tuple[str | None, str]] = field(default_factory=set)

    def __iter__(self) -> Iterator[TableDescription]:
        return iter(self.tables.values())
