"""What schema changes make and take away, read from their SQL, and how many of them a database has.

A revision that another tool was killed in has made the first of its changes and none of the rest. How many can be seen
from what is there: a table, a column, an index, a constraint. Nothing is assumed of a statement that is not understood.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..dialects.base import Facts, facts_of
from ..session.controls import without_comments
from .catalog import Catalog

#: A name as it may stand in SQL.
IDENTIFIER = r"(?:\"(?:[^\"]|\"\")+\"|`(?:[^`]|``)+`|\[[^\]]+\]|[\w$]+)"
_TABLE = rf"(?P<table>(?:{IDENTIFIER}\s*\.\s*)?{IDENTIFIER})"
_NAME = rf"(?P<name>(?:{IDENTIFIER}\s*\.\s*)?{IDENTIFIER})"
_NEW = rf"(?P<new>(?:{IDENTIFIER}\s*\.\s*)?{IDENTIFIER})"
_IF = r"(?P<if>IF\s+(?:NOT\s+)?EXISTS\s+)?"
_FLAGS = re.IGNORECASE | re.DOTALL
#: Statements by what they do; the actions of ``ALTER TABLE`` stand apart.
_STATEMENTS = (
    ("make table", rf"CREATE\s+TABLE\s+{_IF}{_TABLE}(?P<rest>.*)"),
    (
        "make view",
        rf"CREATE\s+(?P<or>OR\s+REPLACE\s+)?(?:\w+\s*=\s*\S+\s+|SQL\s+SECURITY\s+\w+\s+)*VIEW\s+{_IF}{_TABLE}\b",
    ),
    ("drop table", rf"DROP\s+(?:TABLE|VIEW)\s+{_IF}{_TABLE}\s*(?:CASCADE|RESTRICT)?\s*"),
    (
        "make index",
        r"CREATE\s+(?:(?:(?P<unique>UNIQUE)|FULLTEXT|SPATIAL)\s+)?INDEX\s+(?:CONCURRENTLY\s+)?"
        rf"{_IF}{_NAME}\s+ON\s+(?:ONLY\s+)?{_TABLE}(?P<rest>.*)",
    ),
    (
        "drop index",
        rf"DROP\s+INDEX\s+(?:CONCURRENTLY\s+)?{_IF}{_NAME}(?:\s+ON\s+{_TABLE})?\s*(?:CASCADE|RESTRICT)?\s*",
    ),
    ("rename table", rf"RENAME\s+TABLE\s+{_IF}{_TABLE}\s+TO\s+{_NEW}\s*"),
)
_ALTER = re.compile(rf"ALTER\s+TABLE\s+{_IF}(?:ONLY\s+)?{_TABLE}\s+(?P<rest>.*)", _FLAGS)
_ACTIONS = (
    ("rename column", rf"RENAME\s+COLUMN\s+{_NAME}\s+TO\s+{_NEW}\s*"),
    ("rename table", rf"RENAME\s+(?:TO|AS)\s+{_NEW}\s*"),
    ("rename column", rf"CHANGE\s+(?:COLUMN\s+)?{_IF}{_NAME}\s+{_NEW}\s+.*"),
    (
        "make constraint",
        rf"ADD\s+CONSTRAINT\s+{_IF}(?!(?:CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b){_NAME}\s+(?P<rest>(?:CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b.*)",
    ),
    ("make check", r"ADD\s+(?:CONSTRAINT\s+)?CHECK\s*(?P<rest>\(.*\))\s*"),
    (
        "make index",
        r"ADD\s+(?:(?:(?P<unique>UNIQUE)|FULLTEXT|SPATIAL)\s+)?(?:INDEX|KEY)\s+"
        rf"{_IF}(?P<name>{IDENTIFIER})\s*(?P<rest>\(.*)",
    ),
    ("", r"ADD\s+(?:UNIQUE|PRIMARY|FOREIGN|FULLTEXT|SPATIAL|INDEX|KEY|PERIOD|SYSTEM|PARTITION|EXCLUDE|CONSTRAINT)\b.*"),
    ("make column", rf"ADD\s+(?:COLUMN\s+)?{_IF}(?P<rest>(?P<name>{IDENTIFIER})\s+.*)"),
    ("drop constraint", rf"DROP\s+(?:CONSTRAINT|FOREIGN\s+KEY|CHECK)\s+{_IF}{_NAME}\s*(?:CASCADE|RESTRICT)?\s*"),
    ("drop index", rf"DROP\s+(?:INDEX|KEY)\s+{_IF}(?P<name>{IDENTIFIER})\s*"),
    ("", r"DROP\s+(?:PRIMARY|PARTITION|PERIOD|SYSTEM)\b.*"),
    ("drop column", rf"DROP\s+(?:COLUMN\s+)?{_IF}(?P<name>{IDENTIFIER})\s*(?:CASCADE|RESTRICT)?\s*"),
)
#: What comes to the same when it is done twice, and leaves no name behind.
_AGAIN = re.compile(
    r"MODIFY\b|ALTER\s+(?:COLUMN\s+)?\S+\s+(?:TYPE|SET|DROP)\b|COMMENT\b|CONVERT\s+TO\b|ENGINE\b|VALIDATE\b", _FLAGS
)
_AGAIN_ALONE = re.compile(
    r"COMMENT\s+ON\b|CREATE\s+OR\s+REPLACE\b|(?:CREATE|DROP)\s[\w\s]*\bIF\s+(?:NOT\s+)?EXISTS\b", _FLAGS
)
#: What is no column where ``CREATE TABLE`` lists them.
_NO_COLUMN = re.compile(
    r"(?:CONSTRAINT|PRIMARY|UNIQUE|CHECK|FOREIGN|KEY|INDEX|FULLTEXT|SPATIAL|EXCLUDE|LIKE|PERIOD)\b", re.IGNORECASE
)


class Change(NamedTuple):
    """One thing that a statement makes, takes away or renames.

    :ivar kind: such as ``make column``.
    :ivar table: its name, normalized.
    :ivar name: of the column, index or constraint.
    :ivar new: the name that it gets.
    :ivar anyway: whether the statement also takes it when it is there already, or not there.
    :ivar columns: of a new table; ``None`` where they are not known.
    :ivar form: what follows the name of what is made.
    :ivar unique: whether an index is.
    """

    kind: str
    table: str
    name: str = ""
    new: str = ""
    anyway: bool = False
    columns: tuple[str, ...] | None = None
    form: str = ""
    unique: bool = False


class Changes(NamedTuple):
    """What a statement does to the schema.

    :ivar seen: what can be looked up.
    :ivar again: whether the statement comes to the same when it is done twice.
    :ivar whole: whether it changes nothing else of a table.
    """

    seen: tuple[Change, ...]
    again: bool
    whole: bool = True


def changes_of(statement: str, facts: Facts) -> Changes:
    """What a statement does to the schema.

    :param facts: of the database.
    """
    text = without_comments(statement).rstrip(" \t\r\n;")
    for kind, pattern in _STATEMENTS:
        found = re.fullmatch(pattern, text, _FLAGS) if kind != "make view" else re.match(pattern, text, _FLAGS)
        if found:
            one = _change(kind, found.groupdict(), facts)
            return Changes((one,), one.anyway)
    found = _ALTER.fullmatch(text)
    if found is None:
        return Changes((), _AGAIN_ALONE.match(text) is not None)
    seen, again, whole = [], True, True
    for action in listed(found["rest"], facts):
        matches = ((kind, re.fullmatch(pattern, action, _FLAGS)) for kind, pattern in _ACTIONS)
        kind, groups = next(((kind, match.groupdict()) for kind, match in matches if match), ("", {}))
        if kind:
            one = _change(kind, {**groups, "table": found["table"]}, facts)
            if kind == "rename column" and one.name == one.new:
                whole = False
                continue  # CHANGE of its type alone
            seen.append(one)
            again &= one.anyway
        else:
            whole = False
            again &= _AGAIN.match(action) is not None and not re.search(r"\bUSING\b", action, re.IGNORECASE)
    return Changes(tuple(seen), again, whole)


def names_in(text: str, facts: Facts) -> set[str]:
    """All that may be the name of a table in a statement, normalized and without its schema."""
    return {_plain(name, facts) for name in re.findall(IDENTIFIER, text)}


def _change(kind: str, groups: dict[str, Any], facts: Facts) -> Change:
    table, name, new = (normalized(groups.get(key) or "", facts) for key in ("table", "name", "new"))
    anyway = bool(groups.get("if") or groups.get("or"))
    if kind == "make check":
        name = _bare(groups["rest"])
    if kind == "make table":
        return Change(kind, table, anyway=anyway, columns=_columns(groups["rest"], facts), form=groups["rest"])
    if kind == "make view":
        return Change("make table", table, anyway=anyway)
    if kind != "rename table" and "." in name and not table:
        name = name.rpartition(".")[2]
    return Change(kind, table, name, new, anyway, form=groups.get("rest") or "", unique=bool(groups.get("unique")))


def _columns(rest: str, facts: Facts) -> tuple[str, ...] | None:
    """The columns of ``CREATE TABLE``; ``None`` where it takes them from elsewhere."""
    items, _ = defined(rest, facts)
    if items is None:
        return None
    names = [re.match(IDENTIFIER, item) for item in items if not _NO_COLUMN.match(item)]
    return tuple(_plain(name[0], facts) for name in names if name)


def defined(rest: str, facts: Facts) -> tuple[list[str] | None, str]:
    """What ``CREATE TABLE`` lists, and what follows that; ``None`` where it takes columns from elsewhere."""
    start = rest.find("(")
    if start < 0 or rest[:start].strip():
        return None, ""
    inner, end = inside(rest[start:], facts)
    items = [without_comments(item) for item in listed(inner, facts)]
    elsewhere = any(re.match(r"(?:LIKE|SELECT)\b", item, re.IGNORECASE) for item in items)
    if elsewhere or re.search(r"\b(?:AS|SELECT|INHERITS|LIKE)\b", end, re.IGNORECASE):
        return None, end
    return items, end


def inside(text: str, facts: Facts) -> tuple[str, str]:
    """What stands in the parentheses that a text begins with, and what follows them."""
    depth = 0
    for token in re.finditer(rf"(?:{facts.quoted})|(?P<sign>[()])", text, re.DOTALL):
        if token["sign"] is not None:
            depth += 1 if token["sign"] == "(" else -1
            if not depth:
                return text[1 : token.start()], text[token.end() :]
    return text[1:], ""


def listed(text: str, facts: Facts) -> list[str]:
    """What stands between the commas that are in no parentheses."""
    depth, start, found = 0, 0, []
    for token in re.finditer(rf"(?:{facts.quoted})|(?P<sign>[(),])", text, re.DOTALL):
        sign = token["sign"]
        if sign == "," and not depth:
            found.append(text[start : token.start()])
            start = token.end()
        elif sign is not None and sign != ",":
            depth += 1 if sign == "(" else -1
    return [item.strip() for item in (*found, text[start:])]


def normalized(name: str, facts: Facts) -> str:
    """A name, with its schema where it has one, as it is compared."""
    return ".".join(_plain(part, facts) for part in re.findall(IDENTIFIER, name))


def _plain(name: str, facts: Facts) -> str:
    """A name as it is compared, without its quotes."""
    quoted = name[0] in '"`['
    if quoted:
        name = name[1:-1].replace(name[-1] * 2, name[-1])
    return name if quoted and facts.has_search_path else name.lower()


def _bare(condition: str) -> str:
    """A condition without what databases write in other ways."""
    return re.sub(r"[\s()`\"]", "", condition).lower()


class Contradiction(Exception):
    """The statements cannot come one after the other by what is known of them."""


class _Table:
    """What is known of one table: by name whether it has it."""

    def __init__(self, columns: Iterable[str] | None = None) -> None:
        self.parts: dict[tuple[str, str], bool] = {("column", name): True for name in columns or ()}
        #: Whether it has no other columns.
        self.exact = columns is not None
        #: Learns what it was before the first statement, or when a statement made it.
        self.learns: dict[tuple[str, str], bool] | None = None


class Scene:
    """What is known of a schema at one moment.

    :ivar tables: ``None`` for one that is not there; of others nothing is known.
    :ivar indexes: by name, where names of indexes are those of the whole schema.
    :ivar births: what each table that is made surely has or lacks then, in the order in which they are made.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.tables: dict[str, _Table | None] = {}
        self.indexes: dict[str, tuple[bool, _Table | None]] = {}
        self.births: list[dict[tuple[str, str], bool]] = []
        self._born = 0

    @classmethod
    def before(cls, changes: Iterable[Change], facts: Facts) -> Scene:
        """What must have been there, and what not, so that statements could come one after the other.

        :raises Contradiction: they cannot.
        """
        initial, now = cls(facts), cls(facts)
        for change in changes:
            now.apply(change, initial)
        return initial

    def after(self, changes: Iterable[Change]) -> Scene:
        """The scene after statements.

        :raises Contradiction: they cannot be.
        """
        found = copy.deepcopy(self)
        for change in changes:
            found.apply(change)
        return found

    def apply(self, change: Change, initial: Scene | None = None) -> None:
        """Make a change.

        :param initial: learns what the change needs.
        """
        verb, what = change.kind.split()
        if what == "table":
            self._apply_table(verb, change, initial)
            return
        if what == "index" and not self._own_indexes:
            table = self._present(change.table, initial) if change.table else None
            self._index(change, table, verb == "make", initial)
            return
        table = self._present(change.table, initial)
        if verb == "rename":
            self._part(table, (what, change.name), False, anyway=change.anyway)
            self._part(table, (what, change.new), True, anyway=change.anyway)
        else:
            self._part(table, (what, change.name), verb == "make", anyway=change.anyway)

    @property
    def _own_indexes(self) -> bool:
        """Whether each table names its indexes as it likes."""
        return self.facts.name == "mysql"

    def _apply_table(self, verb: str, change: Change, initial: Scene | None) -> None:
        if verb == "make":
            if change.anyway:
                if self.tables.get(change.table) is None:
                    known = change.table in self.tables
                    self.tables[change.table] = _Table(change.columns if known else None)
                return
            self._absent(change.table, initial)
            made = self.tables[change.table] = _Table(change.columns)
            if initial is not None:
                made.learns = {}
                initial.births.append(made.learns)
            else:
                made.parts.update(self.births[self._born])
                self._born += 1
            return
        if not change.anyway:
            self._present(change.table, initial)
        table = self.tables.get(change.table)
        self.tables[change.table] = None
        if verb == "rename":
            self._absent(change.new, initial)
            self.tables[change.new] = table if table is not None else _Table()
        elif table is not None:
            for name, (_, owner) in self.indexes.items():
                if owner is table:
                    self.indexes[name] = (False, None)

    def _present(self, name: str, initial: Scene | None) -> _Table:
        found = self.tables.get(name)
        if found is None:
            if name in self.tables:
                raise Contradiction
            found = self.tables[name] = _Table()
            if initial is not None:
                initial.tables[name] = before = _Table()
                found.learns = before.parts
        return found

    def _absent(self, name: str, initial: Scene | None) -> None:
        if self.tables.get(name) is not None:
            raise Contradiction
        if name not in self.tables and initial is not None:
            initial.tables[name] = None

    def _part(self, table: _Table, key: tuple[str, str], value: bool, *, anyway: bool) -> None:
        known = table.parts.get(key, False if table.exact and key[0] == "column" else None)
        if not anyway:
            if known is value:
                raise Contradiction
            if known is None and table.learns is not None:
                table.learns[key] = not value
        table.parts[key] = value

    def _index(self, change: Change, table: _Table | None, value: bool, initial: Scene | None) -> None:
        known = self.indexes.get(change.name)
        if not change.anyway:
            if known is not None and known[0] is value:
                raise Contradiction
            if known is None and initial is not None:
                initial.indexes[change.name] = (not value, None)
        self.indexes[change.name] = (value, table)

    def is_there(self, found: Found) -> bool:
        """Whether a database is as this says."""
        for name, table in self.tables.items():
            if found.has(name) is not (table is not None):
                return False
            if table is None:
                continue
            columns = found.columns(name)
            if table.exact and columns != {
                part for (kind, part), value in table.parts.items() if kind == "column" and value
            }:
                return False
            for (kind, part), value in table.parts.items():
                if found.part(name, kind, part) is (not value):
                    return False
        return all(found.index(name) is value for name, (value, _) in self.indexes.items())


class Found:
    """What a database has.

    :param without: names of tables that are left out.
    """

    def __init__(self, connection: sa.Connection, without: Sequence[str] = ()) -> None:
        self._connection = connection
        self._catalog = Catalog(connection)
        self._facts = facts_of(connection.dialect.name)
        self._without = without
        self._known: dict[tuple[str, ...], Any] = {}

    def _once(self, key: tuple[str, ...], ask: Any) -> Any:
        if key not in self._known:
            self._known[key] = ask()
        return self._known[key]

    def has(self, name: str) -> bool:
        """Whether there is such a table or view."""
        if name in self._without:
            return False
        return bool(self._once(("table", name), lambda: self._catalog.has_table(*split_name(name))))

    def columns(self, name: str) -> set[str]:
        """The columns of a table."""
        found = self._once(("columns", name), lambda: self._catalog.columns(*split_name(name)).keys())
        return {*found}

    def part(self, table: str, kind: str, name: str) -> bool | None:
        """Whether a table has a column, an index, a constraint or a check; ``None`` where that is not clear."""
        if kind == "column":
            return name in self.columns(table)
        constraints = self._once(("constraints", table), lambda: self._catalog.constraints(*split_name(table)))
        indexes = self._once(("indexes", table), lambda: self._catalog.indexes(*split_name(table)))
        known = {one.lower() if self._facts.name == "mysql" else one for one in (*constraints, *indexes)}
        if kind != "check":
            return name in known
        bare, schema = split_name(table)
        inspector = self._catalog.inspector
        checks = self._once(("checks", table), lambda: inspector.get_check_constraints(bare, schema=schema))
        if name in {_bare(str(check["sqltext"])) for check in checks}:
            return True
        return None if checks else False  # the database may write it in another way

    def index(self, name: str) -> bool:
        """Whether the schema has an index of a name, and can use it."""
        if not self._facts.server:
            query = "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND lower(name) = :name"
        else:
            query = (
                "SELECT count(*) FROM pg_class AS c JOIN pg_index AS i ON i.indexrelid = c.oid "
                "WHERE c.relname = :name AND pg_table_is_visible(c.oid) AND i.indisvalid"
            )
        return bool(self._once(("index", name), lambda: self._connection.scalar(sa.text(query), {"name": name})))


def split_name(name: str) -> tuple[str, str | None]:
    """A normalized name as that of the table and that of its schema."""
    schema, _, table = name.rpartition(".")
    return table, schema or None


def consistent(before: Scene, units: Sequence[Sequence[Change]], found: Found) -> Iterator[int]:
    """How many of the units a database may have, of which each is made whole or not at all, one after the other."""
    scene = copy.deepcopy(before)
    for number in range(len(units) + 1):
        if number:
            scene = scene.after(units[number - 1])
        if scene.is_there(found):
            yield number
