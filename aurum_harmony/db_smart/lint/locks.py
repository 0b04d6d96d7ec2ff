"""Which lock a statement takes, whom it blocks, and for how long about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..dialects.base import Facts
from ..schema.effects import IDENTIFIER, listed
from ..session.controls import plain

Blocks = Literal["nobody", "writers", "readers and writers", "the same rows"]
Work = Literal["none", "scan", "build", "rewrite", "rows"]

_FLAGS = re.IGNORECASE | re.DOTALL
#: The name of a table, with its schema where it has one.
PLACE = rf"(?:{IDENTIFIER}\s*\.\s*)?{IDENTIFIER}"
#: Seconds for each row, on a small machine with PostgreSQL 15 and MariaDB 10.11; see ``docs/rules.md``.
_SECONDS = {
    "postgresql": {"scan": 0.3e-6, "build": 2.6e-6, "rewrite": 3.2e-6, "rows": 5e-6},
    "mysql": {"scan": 1e-6, "build": 3e-6, "rewrite": 6e-6, "rows": 8e-6},
    "sqlite": {"scan": 0.1e-6, "build": 0.5e-6, "rewrite": 1e-6, "rows": 1e-6},
}


@dataclass(frozen=True)
class Lock:
    """What a statement takes.

    :ivar table: as it stands in the statement; empty where no table that is there is locked.
    :ivar name: of the lock, as the database calls it.
    :ivar blocks: whom it keeps waiting.
    :ivar work: what the database does while it has it.
    """

    table: str
    name: str
    blocks: Blocks
    work: Work = "none"

    def seconds(self, rows: float, facts: Facts) -> float:
        """For how long about."""
        return rows * _SECONDS.get(facts.name, _SECONDS["postgresql"]).get(self.work, 0.0)

    @property
    def halts(self) -> bool:
        """Whether others wait for as long as the work takes, which grows with the table."""
        return self.blocks in ("writers", "readers and writers") and self.work in ("scan", "build", "rewrite")


def _exclusive(work: Work = "none") -> tuple[str, Blocks, Work]:
    return "ACCESS EXCLUSIVE", "readers and writers", work


_SHARE_UPDATE: tuple[str, Blocks] = ("SHARE UPDATE EXCLUSIVE", "nobody")
_SHARE_ROW: tuple[str, Blocks] = ("SHARE ROW EXCLUSIVE", "writers")
#: Of PostgreSQL: an action of ``ALTER TABLE``, and what it takes. The first that matches counts.
_PG_ACTIONS: tuple[tuple[str, tuple[str, Blocks, Work]], ...] = (
    (r"VALIDATE\s+CONSTRAINT\b", (*_SHARE_UPDATE, "scan")),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?(?:UNIQUE|PRIMARY\s+KEY)\s+USING\s+INDEX\b", _exclusive()),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?(?:UNIQUE|PRIMARY\s+KEY|EXCLUDE)\b", _exclusive("build")),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?FOREIGN\s+KEY\b.*\bNOT\s+VALID\b", (*_SHARE_ROW, "none")),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?FOREIGN\s+KEY\b", (*_SHARE_ROW, "scan")),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?CHECK\b.*\bNOT\s+VALID\b", _exclusive()),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?CHECK\b", _exclusive("scan")),
    (r"ADD\b.*\b(?:GENERATED\b.*\bSTORED|AS\s+IDENTITY|(?:BIG|SMALL)?SERIAL\d?)\b", _exclusive("rewrite")),
    (r"ADD\b.*\bDEFAULT\s+(?:\w*random\w*|nextval|clock_timestamp|timeofday)\b", _exclusive("rewrite")),
    (r"ALTER\s+(?:COLUMN\s+)?\S+\s+(?:SET\s+DATA\s+)?TYPE\b", _exclusive("rewrite")),
    (r"ALTER\s+(?:COLUMN\s+)?\S+\s+SET\s+NOT\s+NULL\b", _exclusive("scan")),
    (r"ALTER\s+(?:COLUMN\s+)?\S+\s+SET\s+STATISTICS\b", (*_SHARE_UPDATE, "none")),
    (r"SET\s+(?:LOGGED|UNLOGGED|ACCESS\s+METHOD|TABLESPACE)\b", _exclusive("rewrite")),
    (r"(?:ENABLE|DISABLE)\s+TRIGGER\b", (*_SHARE_ROW, "none")),
    (r"", _exclusive()),
)
#: Of MariaDB and MySQL, where the statement does not say ``LOCK=``.
_MY_ACTIONS: tuple[tuple[str, tuple[str, Blocks, Work]], ...] = (
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?(?:FOREIGN\s+KEY|CHECK)\b", ("SHARED", "writers", "rewrite")),
    (r"ADD\s+(?:FULLTEXT|SPATIAL)\b", ("SHARED", "writers", "build")),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?PRIMARY\s+KEY\b", ("NONE", "nobody", "rewrite")),
    (r"ADD\s+(?:CONSTRAINT\s+\S+\s+)?(?:UNIQUE|INDEX|KEY)\b", ("NONE", "nobody", "build")),
    (r"(?:MODIFY|CHANGE|CONVERT\s+TO|ENGINE)\b", ("SHARED", "writers", "rewrite")),
    (r"ADD\b.*\bAS\s*\(.*\)\s*(?:STORED|PERSISTENT)\b", ("SHARED", "writers", "rewrite")),
    (r"", ("NONE", "nobody", "none")),
)
_ALTER = re.compile(
    rf"ALTER\s+(?:(?:ONLINE|IGNORE)\s+)*TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?({PLACE})\s+"
    r"(?:(?:WAIT\s+\d+|NOWAIT)\s+)?(.*)",
    _FLAGS,
)
_INDEX = re.compile(rf"CREATE\s+(?:UNIQUE\s+)?INDEX\b(\s+CONCURRENTLY\b)?.*?\bON\s+(?:ONLY\s+)?({PLACE})", _FLAGS)
_DROP_INDEX = re.compile(rf"DROP\s+INDEX\b(\s+CONCURRENTLY\b)?\s+(?:IF\s+EXISTS\s+)?({PLACE})", _FLAGS)
_TABLES = re.compile(rf"(?:DROP|TRUNCATE|LOCK)\s+(?:TABLES?\s+)?(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?({PLACE})", _FLAGS)
_WHOLE = re.compile(
    rf"(?:CLUSTER|VACUUM\s+(?:\(?FULL\b\)?)|REINDEX\s+TABLE|REFRESH\s+MATERIALIZED\s+VIEW|OPTIMIZE\s+TABLE)"
    rf"(\s+CONCURRENTLY)?\s+({PLACE})",
    _FLAGS,
)
_TRIGGER = re.compile(rf"CREATE\s+(?:OR\s+REPLACE\s+)?(?:CONSTRAINT\s+)?TRIGGER\b.*?\bON\s+({PLACE})", _FLAGS)
_ROWS = re.compile(
    rf"(?:UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?|(?:INSERT|REPLACE)(?:\s+\w+)*?\s+INTO)\s+({PLACE})", _FLAGS
)
_REFERS = re.compile(rf"\bREFERENCES\s+({PLACE})", re.IGNORECASE)
_SAYS = re.compile(r"\bLOCK\s*=\s*(NONE|SHARED|EXCLUSIVE)\b", re.IGNORECASE)
_SAID: dict[str, Blocks] = {"NONE": "nobody", "SHARED": "writers", "EXCLUSIVE": "readers and writers"}
#: What a database does while it has a lock, from the least to the most.
_ORDER: tuple[Work, ...] = ("none", "rows", "scan", "build", "rewrite")
_STRENGTH: tuple[Blocks, ...] = ("nobody", "the same rows", "writers", "readers and writers")


def locks_of(statement: str, facts: Facts, *, checked: bool = False) -> list[Lock]:
    """What a statement takes, by its text; nothing where it is not understood or takes nothing that others wait for.

    :param checked: whether an operation sends it, which has made sure that the change is free where it can be.
    """
    text = plain(statement, facts)
    if not facts.server:
        return _sqlite(text)
    postgresql = facts.name == "postgresql"
    found = _ALTER.match(text)
    if found is not None:
        return [_altered(found[1], found[2], facts, checked=checked), *_targets(text, facts)]
    if re.match(r"CREATE\s+(?:\w+\s+)*TABLE\b", text, re.IGNORECASE):
        return _targets(text, facts)
    found = _INDEX.match(text)
    if found is not None:
        if not postgresql:
            return [Lock(found[2], "NONE", "nobody", "build")]
        return [Lock(found[2], *((*_SHARE_UPDATE, "build") if found[1] else ("SHARE", "writers", "build")))]
    found = _DROP_INDEX.match(text)
    if found is not None:
        return [Lock(found[2], *((*_SHARE_UPDATE, "none") if found[1] or not postgresql else _exclusive()))]
    found = _TRIGGER.match(text)
    if found is not None:
        return [Lock(found[1], *(_SHARE_ROW if postgresql else ("EXCLUSIVE", "readers and writers")))]
    found = _WHOLE.match(text)
    if found is not None:
        return [Lock(found[2], *((*_SHARE_UPDATE, "rewrite") if found[1] else _exclusive("rewrite")))]
    found = _TABLES.match(text)
    if found is not None:
        name = "ACCESS EXCLUSIVE" if postgresql else "EXCLUSIVE"
        return [Lock(found[1], name, "readers and writers")]
    found = _ROWS.match(text)
    if found is not None:
        return [Lock(found[1], "ROW EXCLUSIVE" if postgresql else "row locks", "the same rows", "rows")]
    return []


def _altered(table: str, rest: str, facts: Facts, *, checked: bool) -> Lock:
    postgresql = facts.name == "postgresql"
    actions = _PG_ACTIONS if postgresql else _MY_ACTIONS
    said = None if postgresql else _SAYS.search(rest)
    name: str = ""
    blocks: Blocks = "nobody"
    work: Work = "none"
    for action in listed(rest, facts):
        if re.match(r"(?:LOCK|ALGORITHM)\s*=", action, re.IGNORECASE):
            continue
        taken = next(what for pattern, what in actions if re.match(pattern, action, _FLAGS))
        if not name or _STRENGTH.index(taken[1]) > _STRENGTH.index(blocks):
            name, blocks = taken[0], taken[1]
        work = max(work, taken[2], key=_ORDER.index)
    if said is not None:
        name, blocks = said[1].upper(), _SAID[said[1].upper()]
    if checked and blocks == "readers and writers" and postgresql and work == "scan":
        work = "none"  # SET NOT NULL comes after a check that was validated
    return Lock(table, name, blocks, work)


def _targets(text: str, facts: Facts) -> list[Lock]:
    """The tables that new foreign keys refer to."""
    name: tuple[str, Blocks] = _SHARE_ROW if facts.name == "postgresql" else ("SHARED", "nobody")
    return [Lock(table, *name) for table in dict.fromkeys(_REFERS.findall(text))]


def _sqlite(text: str) -> list[Lock]:
    """SQLite has one lock for writing, of the whole database."""
    found = _ROWS.match(text)
    work: Work = "none"
    table = ""
    if found is not None:
        table = found[1]
        copies = re.match(r"INSERT\b.*\bSELECT\b", text, _FLAGS)
        work = "rewrite" if copies is not None else "rows"
        source = re.search(rf"\bFROM\s+({PLACE})", text, re.IGNORECASE) if copies is not None else None
        table = source[1] if source is not None else table
    else:
        index, altered, dropped = _INDEX.match(text), _ALTER.match(text), _TABLES.match(text)
        if index is not None:
            table, work = index[2], "build"
        elif altered is not None:
            table, work = altered[1], "scan" if re.match(r"DROP\b", altered[2], re.IGNORECASE) else "none"
        elif dropped is not None:
            table = dropped[1]
    return [Lock(table, "RESERVED", "writers", work)] if table else []
