"""What a statement of raw SQL destroys, and which rows it changes, read from its text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..dialects.base import Facts
from ..session.controls import plain, split
from .effects import IDENTIFIER, changes_of, listed

_PLACE = rf"(?:{IDENTIFIER}\s*\.\s*){{0,2}}{IDENTIFIER}"
_FLAGS = re.IGNORECASE | re.DOTALL
_DROPS = re.compile(r"DROP\s+(?:FOREIGN\s+)?(TABLE|DATABASE|SCHEMA)S?\s+(?:IF\s+EXISTS\s+)?(.*)", _FLAGS)
#: On PostgreSQL: what may take columns and tables along that depend on it, or belong to it.
_TAKES = re.compile(
    r"DROP\s+(?:(?P<kind>EXTENSION)|(?P<owned>OWNED\s+BY)"
    r"|(?P<any>TYPE|DOMAIN|FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|SEQUENCE|(?:MATERIALIZED\s+)?VIEW|COLLATION|LANGUAGE"
    r"|SERVER|FOREIGN\s+DATA\s+WRAPPER|ACCESS\s+METHOD)(?=.*\bCASCADE\Z))\s+(?:IF\s+EXISTS\s+)?(?P<names>.*)",
    _FLAGS,
)
_ATTRIBUTE = re.compile(
    rf"ALTER\s+TYPE\s+({_PLACE})\b.*?\bDROP\s+ATTRIBUTE\s+(?:IF\s+EXISTS\s+)?({IDENTIFIER})", _FLAGS
)
#: On MariaDB: what takes the rows that a table had before, or all of them.
_FORMER = re.compile(
    rf"ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?({_PLACE})\s.*\bDROP\s+SYSTEM\s+VERSIONING\b|DELETE\s+HISTORY\s+FROM\s+({_PLACE})",
    _FLAGS,
)
_DISCARDS = re.compile(rf"ALTER\s+TABLE\s+({_PLACE})\s+DISCARD\s+TABLESPACE\b", _FLAGS)
_EMPTIES = re.compile(r"TRUNCATE\s+(?:TABLE\s+)?(.*)", _FLAGS)
_REPLACES = re.compile(rf"CREATE\s+OR\s+REPLACE\s+TABLE\s+({_PLACE})", _FLAGS)
_PARTITION = re.compile(
    rf"ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?({_PLACE})\s+(?:DROP|TRUNCATE)\s+PARTITION\s+(?:IF\s+EXISTS\s+)?({IDENTIFIER})",
    _FLAGS,
)
_OTHER_LOSSES = (
    (_REPLACES, "table"),
    (_PARTITION, "partition"),
    (_FORMER, "former rows"),
    (_DISCARDS, "rows"),
    (_ATTRIBUTE, "attribute"),
)
_FIRST = re.compile(_PLACE)
#: What is no part of a name where ``DROP`` and ``TRUNCATE`` list them.
_ONLY = re.compile(r"ONLY\b\s*\(?\s*", re.IGNORECASE)
#: How MariaDB is told how to alter a table.
_HOW = re.compile(
    rf"ALTER\s+(?:(?:ONLINE|IGNORE)\s+)*TABLE\s+((?:IF\s+EXISTS\s+)?{_PLACE})\s+(?:(?:WAIT\s+\d+|NOWAIT)\s+)?", _FLAGS
)
_CHANGES = re.compile(r"(?:UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
#: One that begins behind a bracket: that of ``FOR UPDATE`` does not.
_WITHIN = re.compile(r"WITH\b.*[()]\s*(?:UPDATE|DELETE)\b", _FLAGS)
#: How SQLite is told which index to use.
_BY = rf"(?:\s+INDEXED\s+BY\s+{IDENTIFIER}|\s+NOT\s+INDEXED)?"
_UPDATE = re.compile(
    rf"UPDATE\s+(?:(?:LOW_PRIORITY|IGNORE|ONLY|OR\s+\w+)\s+)*(?P<target>(?P<table>{_PLACE})(?:\s+(?:AS\s+)?(?!(?:SET|INDEXED|NOT)\b)(?P<alias>{IDENTIFIER}))?{_BY})\s+SET\b",
    re.IGNORECASE,
)
_DELETE = re.compile(
    rf"DELETE\s+(?:(?:LOW_PRIORITY|QUICK|IGNORE)\s+)*FROM\s+(?:ONLY\s+)?"
    rf"(?P<target>(?P<table>{_PLACE})(?:\s+(?:AS\s+)?(?!(?:WHERE|ORDER|LIMIT|RETURNING|USING|PARTITION|INDEXED|NOT)\b)"
    rf"(?P<alias>{IDENTIFIER}))?{_BY})(?=\s|;|$)",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"\b(?:FROM|USING|JOIN)\b|\A\s*,", re.IGNORECASE)
#: Where the other tables of an ``UPDATE`` begin; ``IS DISTINCT FROM`` is none.
_SOURCE = re.compile(r"(?P<is>\bDISTINCT\s+)?\bFROM\b", re.IGNORECASE)
_MAIN = re.compile(r"\b(?:UPDATE|DELETE)\b", re.IGNORECASE)
_TAIL = re.compile(r"\b(?:WHERE|ORDER\s+BY|LIMIT|RETURNING)\b", re.IGNORECASE)
_RETURNING = re.compile(r"\bRETURNING\b", re.IGNORECASE)
_LIMIT = re.compile(r"\bLIMIT\b", re.IGNORECASE)
_ORDER = re.compile(r"\b(?:LIMIT|ORDER\s+BY)\b", re.IGNORECASE)
#: What comes before a statement that is run with it, or made ready.
_RUNS = {
    "postgresql": re.compile(
        r"EXPLAIN\s+(?:ANALY[SZ]E\s+(?:VERBOSE\s+)?|\([^()]*\bANALY[SZ]E\b(?!\s+(?:FALSE|OFF|0)\b)[^()]*\)\s*)"
        r"|PREPARE\s+\S+\s*(?:\([^()]*\)\s*)?AS\s+",
        _FLAGS,
    ),
    "mysql": re.compile(
        r"ANALYZE\s+(?:FORMAT\s*=\s*\w+\s+)?(?=(?:UPDATE|DELETE|WITH)\b)|SET\s+STATEMENT\b.*?\bFOR\s+(?=[A-Z])", _FLAGS
    ),
}
_STRING = r"'(?:[^'\\]|''|\\.)*'"
_ESCAPED = rf"E{_STRING}"
#: What has statements in a string, or in a body of its own.
_CODE = {
    "postgresql": re.compile(
        rf"DO\s+(?:LANGUAGE\s+\S+\s+)?(?:\$(?P<tag>\w*)\$(?P<body>.*)\$(?P=tag)\$|(?P<string>{_ESCAPED}|'(?:[^']|'')*'))",
        _FLAGS,
    ),
    "mysql": re.compile(
        rf"BEGIN\s+NOT\s+ATOMIC\b(?P<body>.*)|(?:EXECUTE\s+IMMEDIATE|PREPARE\s+\S+\s+FROM)\s*(?P<string>{_STRING})",
        _FLAGS,
    ),
}
#: Where a statement begins in code.
_BEGINS = re.compile(
    r"(?:\A|\b(?:BEGIN|THEN|ELSE|LOOP|DO|IN|QUERY)\b)\s*(?P<one>(?:ALTER|CREATE|DROP|TRUNCATE|UPDATE|DELETE|MERGE|WITH|EXECUTE)\b)",
    re.IGNORECASE,
)
_EXECUTES = re.compile(rf"EXECUTE\s+(?:IMMEDIATE\s+)?({_ESCAPED}|{_STRING})", _FLAGS)
#: Where values go that are sent beside a statement by their place.
_MARK = re.compile(r"\?|%s")
#: What takes the place of strings, names in quotes, comments and what is in parentheses, where keywords are looked for.
_HIDDEN = "\x01"


class Loss(NamedTuple):
    """Something that a statement destroys.

    :ivar kind: ``table``, ``column``, ``partition``, ``database``, ``schema``, ``rows`` for all rows of a table,
        ``former rows`` for those of its history; on PostgreSQL also ``attribute`` of a type, ``all objects of`` a role,
        and, such as ``type`` or ``extension``, what takes along whatever depends on it.
    :ivar place: its table as it stands in the statement, or what has a name of its own.
    :ivar name: of the column, partition or attribute.
    :ivar cascades: whether rows of tables that refer to it go too.
    """

    kind: str
    place: str
    name: str = ""
    cascades: bool = False


class RowChange(NamedTuple):
    """An ``UPDATE`` or ``DELETE`` of one table.

    :ivar verb: ``UPDATE`` or ``DELETE``.
    :ivar table: the table as it stands in the statement.
    :ivar target: the same with its alias.
    :ivar alias: what the table is called in the statement; ``None`` where that is its name.
    :ivar assignments: what stands behind ``SET``, one by one.
    :ivar tail: from ``WHERE`` on, without ``RETURNING``; empty for all rows. Other tables are in it by ``EXISTS``.
    :ivar marks: how many values that are sent by their place are in front of ``SET``, behind it, and in the tail.
    :ivar limited: whether it says itself how many rows at most.
    :ivar alone: whether it names no other table, except in its condition.
    """

    verb: str
    table: str
    target: str
    alias: str | None
    assignments: Sequence[str]
    tail: str
    marks: tuple[int, int, int]
    limited: bool
    alone: bool

    def bounded(self, most: int) -> str:
        """A query for how many rows it would change, at most one more than ``most``."""
        limit = "" if self.limited else f"LIMIT {most + 1}"
        return f"SELECT count(*) FROM (SELECT 1 FROM {self.target} {self.tail}\n{limit}) AS counted"

    def values(self, parameters: Any) -> Any:
        """Those of the values of the statement that such a query needs."""
        if not isinstance(parameters, (tuple, list)):
            return parameters
        before, assigned, within = self.marks
        start = before + assigned
        return (*parameters[:before], *parameters[start : start + within])

    @property
    def condition(self) -> str:
        """What rows must meet; empty for all."""
        return re.sub(r"\A\s*WHERE\b", "", self.tail, count=1, flags=re.IGNORECASE).strip()


def within(statement: str, facts: Facts) -> Iterator[str]:
    """What one statement runs, without comments: itself, or what is in a block of code or behind ``EXPLAIN ANALYZE``.

    What code puts together out of strings is not seen.
    """
    text = plain(statement, facts)
    runs, code = _RUNS.get(facts.name), _CODE.get(facts.name)
    found = None if code is None else code.match(text)
    if found is not None:
        body = found["body"] if found["string"] is None else _spelled(found["string"])
        for part in split(body, facts.name):
            piece = plain(part, facts)
            for begins in _BEGINS.finditer(
                re.sub(facts.quoted, lambda one: _HIDDEN * len(one[0]), piece, flags=re.DOTALL)
            ):
                one = piece[begins.start("one") :]
                executes = _EXECUTES.match(one)
                yield from [one] if executes is None else split(_spelled(executes[1]), facts.name)
        return
    found = None if runs is None else runs.match(text)
    yield text if found is None else text[found.end() :]


def _spelled(string: str) -> str:
    text = string[string.index("'") + 1 : -1].replace("''", "'")
    return text if string[0] == "'" else re.sub(r"\\(.)", lambda one: {"n": "\n", "t": "\t"}.get(one[1], one[1]), text)


def losses(statement: str, facts: Facts) -> Iterator[Loss]:
    """What one statement destroys."""
    text = plain(statement, facts)
    if facts.name == "mysql":
        text = _HOW.sub(r"ALTER TABLE \1 ", text, count=1) if text[:5].upper() == "ALTER" else text
    for pattern in (_DROPS, _EMPTIES):
        found = pattern.match(text)
        if found is None:
            continue
        kind = found[1].lower() if pattern is _DROPS else "rows"
        cascades = pattern is _EMPTIES and re.search(r"\bCASCADE\Z", text, re.IGNORECASE) is not None
        for item in listed(found[found.re.groups], facts):
            name = _FIRST.match(_ONLY.sub("", item, count=1))
            if name is not None:
                yield Loss(kind, name[0], cascades=cascades)
        return
    found = _TAKES.match(text) if facts.name == "postgresql" else None
    if found is not None:
        kind = "all objects of" if found["owned"] else " ".join((found["kind"] or found["any"]).lower().split())
        for item in listed(found["names"], facts):
            name = _FIRST.match(item)
            if name is not None:
                yield Loss(kind, name[0])
        return
    for pattern, kind in _OTHER_LOSSES:
        found = pattern.match(text)
        if found is not None:
            place, *names = [one for one in found.groups() if one is not None]
            yield Loss(kind, place, "".join(names))
            return
    for change in changes_of(text, facts).seen:
        if change.kind == "drop column":
            yield Loss("column", change.table, change.name)


def changes_rows(statement: str, facts: Facts) -> bool:
    """Whether one statement updates or deletes rows."""
    text = plain(statement, facts)
    if not text[:4].upper().startswith("WITH"):
        return _CHANGES.match(text) is not None
    return _WITHIN.match(re.sub(facts.quoted, _HIDDEN, text, flags=re.DOTALL)) is not None


def row_change(statement: str, facts: Facts) -> RowChange | None:
    """Which rows one statement updates or deletes; ``None`` where they are not those of one table by a condition."""
    text, common = plain(statement, facts), ""
    if text[:4].upper() == "WITH" and not facts.server:  # whose ``WITH`` changes nothing
        main = _MAIN.search(_hidden(text, facts))
        if main is not None:
            common, text = text[: main.start()], text[main.start() :]
    found = _UPDATE.match(text) or _DELETE.match(text)
    if found is None:
        return None
    verb, rest = text[:6].upper(), text[found.end() :]
    hidden = _hidden(rest, facts)
    tail = _TAIL.search(hidden)
    end = set_end = tail.start() if tail is not None else len(rest)
    if verb == "UPDATE":
        set_end = next((one.start() for one in _SOURCE.finditer(hidden, 0, end) if one["is"] is None), end)
    elif hidden[:end].strip(" \t\r\n*"):
        return None
    if _OTHERS.search(_SOURCE.sub("", hidden[:set_end])):
        return None
    returning = _RETURNING.search(hidden)
    until = returning.start() if returning is not None else len(rest)
    condition, others = rest[end:until].strip(), rest[set_end:end]
    if common or others:
        if _ORDER.search(hidden, end, until):
            return None
        condition = f"WHERE EXISTS ({common}SELECT 1 {others} {condition})"
    return RowChange(
        verb,
        found["table"],
        found["target"],
        found["alias"],
        listed(rest[:set_end], facts) if verb == "UPDATE" else [],
        condition,
        (_marks(common, facts), _marks(rest[:set_end], facts), _marks(rest[set_end:until], facts)),
        _LIMIT.search(hidden) is not None,
        not common and not others,
    )


def place_of(schema: str | None, name: str) -> str:
    """A table as it stands in SQL, for :func:`parts`."""
    plain = (one if re.fullmatch(r"[a-z_][a-z0-9_]*", one) else f'"{one}"' for one in (schema, name) if one is not None)
    return ".".join(plain)


def parts(place: str) -> tuple[str | None, str]:
    """Schema and name of a table, without their quotes."""
    names = [_unquoted(name) for name in re.findall(IDENTIFIER, place)]
    return (names[-2] if len(names) > 1 else None), names[-1]


def _unquoted(name: str) -> str:
    return name[1:-1].replace(name[-1] * 2, name[-1]) if name[0] in '"`[' else name


def _hidden(text: str, facts: Facts) -> str:
    """A text of the same length in which only keywords, and names without quotes, are left."""
    pieces, depth, last = [], 0, 0
    for token in re.finditer(rf"(?:{facts.quoted})|(?P<sign>[()])", text, re.DOTALL):
        plain = text[last : token.start()]
        pieces.append(plain if not depth else _HIDDEN * len(plain))
        if token["sign"] is not None:
            depth += 1 if token["sign"] == "(" else -1
        pieces.append(_HIDDEN * len(token[0]))
        last = token.end()
    pieces.append(text[last:])
    return "".join(pieces)


def _marks(text: str, facts: Facts) -> int:
    plain = re.sub(rf"(?:{facts.quoted})", "", text, flags=re.DOTALL)
    return len(_MARK.findall(plain.replace("%%", "")))
