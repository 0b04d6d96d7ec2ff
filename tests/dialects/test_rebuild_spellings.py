"""Operations on SQLite tables in every spelling that ``CREATE TABLE`` allows.

Tables are made at random of parts; what an operation is to make of one is known by the parts. ``RANDOM_SEED`` begins
with another table, ``RANDOM_COUNT`` says how many.
"""

from __future__ import annotations

import copy
import os
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.errors import DbSmartError
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements

SEED = int(os.environ.get("RANDOM_SEED", "8"))
COUNT = int(os.environ.get("RANDOM_COUNT", "10"))

NAMES = [
    "a",
    "B b",
    "check",
    "Straße",
    "x'y",
    'q"q',
    "ti`ck",
    "c,d",
    "(e",
    "MixedCase",
    "not",
    "f--g",
    "Ä",
    "ä",
    "h]i",
    "%s",
    "j?",
]
CONSTRAINTS = [
    "ck",
    "UQ_Name",
    "fk one",
    "unique",
    'n"n',
    "k'k",
    "Ünique",
    "references",
    "c)",
    "--",
    "z]z",
    "%d",
    "CK_2",
]
GAPS = [" ", " ", "\n", "\t", " /* , ) ' CHECK ( \" */ ", " -- , ( CONSTRAINT x UNIQUE '\n", "/**/", "  "]
CONFLICTS = ["", "", "ON CONFLICT ABORT", "ON CONFLICT IGNORE", "ON CONFLICT REPLACE", "on conflict fail"]
TYPES = ["", "INT", "integer", "VARCHAR(20)", "DECIMAL (10 , 2)", "double precision", "[my type]", "TEXT", "BLOB"]
DEFAULTS = ["5", "- 1", "'it''s'", "(1 + 2)", "(')')", "NULL", "x'ab'", "TRUE", "CURRENT_DATE"]
_COMMENT = re.compile(r"(\s|/\*.*?\*/|--[^\n]*\n)+", re.DOTALL)
_PLAIN = {"a", "Straße", "MixedCase", "Ä", "ä", "ck", "UQ_Name", "CK_2", "Ünique"}


class Speller:
    """Writes names and words in any of the ways there are."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def name(self, name: str, *, string: bool = False) -> str:
        """A name, in any case and quotes; also as a string where SQLite takes one for a name."""
        ways = ['"' + name.replace('"', '""') + '"', "`" + name.replace("`", "``") + "`"]
        ways += [f"[{name}]"] if "]" not in name else []
        ways += ["'" + name.replace("'", "''") + "'"] if string else []
        ways += [name] if name in _PLAIN else []
        return self.random.choice(ways)

    def other_case(self, name: str) -> str:
        return self.random.choice([name, name.encode().upper().decode(), name.encode().lower().decode()])

    def word(self, words: str) -> str:
        return self.random.choice([words, words.lower(), words.title()])

    def join(self, parts: list[str]) -> str:
        return "".join(self.random.choice(GAPS) + part for part in parts if part)


@dataclass
class Part:
    """A constraint: its words, its name, and the columns that it is on."""

    kind: str
    words: list[str]
    name: str | None = None
    columns: list[str] = field(default_factory=list)

    def text(self, speller: Speller) -> str:
        named = [speller.word("CONSTRAINT"), speller.name(self.name, string=True)] if self.name is not None else []
        return speller.join([*named, *self.words])


@dataclass
class Spelled:
    """A table as parts."""

    columns: dict[str, tuple[str, list[Part]]] = field(default_factory=dict)
    constraints: list[Part] = field(default_factory=list)
    options: str = ""
    #: For the values of each column, so that they do not depend on what else there is.
    numbers: dict[str, int] = field(default_factory=dict)
    key: str | None = None

    @property
    def parts(self) -> list[Part]:
        return [part for _, parts in self.columns.values() for part in parts] + self.constraints

    @property
    def ordinary(self) -> list[str]:
        """Those that rows give values for."""
        return [name for name, (_, parts) in self.columns.items() if all(part.kind != "generated" for part in parts)]

    def without(self, gone: Part) -> Spelled:
        less = copy.deepcopy(self)
        for parts in [*(parts for _, parts in less.columns.values()), less.constraints]:
            parts[:] = [part for part in parts if part != gone]
        return less

    def sql(self, seed: int, table: str = "the Table") -> str:
        speller = Speller(seed)
        items = [
            speller.join([speller.name(name, string=True), sql_type, *(part.text(speller) for part in parts)])
            for name, (sql_type, parts) in self.columns.items()
        ]
        items += [part.text(speller) for part in self.constraints]
        body = ",".join(item + speller.random.choice(["", "\n", " -- the last ,\n"]) for item in items)
        return f"{speller.word('CREATE TABLE')} {speller.name(table)} ({body}){self.options}"


def spelled(seed: int) -> Spelled:
    """A table made at random."""
    speller = Speller(seed)
    choose, chance = speller.random.choice, speller.random.random
    names = speller.random.sample(NAMES, 5)
    free = speller.random.sample(CONSTRAINTS, len(CONSTRAINTS))
    made = Spelled(key=names[0])

    def name() -> str | None:
        return free.pop() if free and chance() < 0.75 else None

    strict = sqlite3.sqlite_version_info >= (3, 37) and chance() < 0.2
    types = ["INT", "integer", "TEXT", "any"] if strict else TYPES
    kind = choose(["rowid", "auto", "table", "without", "none"])
    first = {"rowid": ["PRIMARY KEY"], "auto": ["PRIMARY", "KEY", "AUTOINCREMENT"], "without": ["PRIMARY KEY"]}.get(
        kind
    )
    key_parts = [Part("primary", [speller.word(word) for word in first], None, [names[0]])] if first else []
    made.columns[names[0]] = ("INTEGER", key_parts)
    made.options = ", ".join(["STRICT"] * strict + [speller.word("WITHOUT ROWID")] * (kind == "without"))
    for number, column in enumerate(names[1:]):
        parts = []
        if chance() < 0.3:
            parts.append(Part("not null", ["NOT", "NULL", choose(CONFLICTS)], None, [column]))
        if chance() < 0.3:
            parts.append(Part("default", [speller.word("DEFAULT"), choose(["5", "(7)"] if strict else DEFAULTS)]))
        if chance() < 0.3:
            parts.append(Part("collate", ["COLLATE", choose(["NOCASE", '"rtrim"', "BINARY"])]))
        if chance() < 0.3:
            parts.append(Part("unique", [speller.word("UNIQUE"), choose(CONFLICTS)], name(), [column]))
        if chance() < 0.3:
            check = f"({speller.name(column)} IS NOT {-10 - number})"
            parts.append(Part("check", [speller.word("CHECK"), check], name(), [column]))
        if chance() < 0.3:
            more = choose(
                [[], ["ON", "DELETE", "SET", "NULL"], ["deferrable", "initially", "deferred"], ["NOT DEFERRABLE"]]
            )
            parts.append(Part("foreign", ["REFERENCES", speller.name("The parent"), "(id)", *more], name(), [column]))
        speller.random.shuffle(parts)
        made.columns[column] = (choose(types), parts)
    if chance() < 0.3 and sqlite3.sqlite_version_info >= (3, 31):
        expression = f"({speller.name(names[1])} || 'g')"
        # In one piece, as SQLite takes a comment before it for a part of the type.
        how = f"{choose(['AS', 'GENERATED ALWAYS AS'])} {expression} {choose(['', 'STORED'])}"
        made.columns["gen"] = (f"TEXT {how}", [Part("generated", [], None, [names[1]])])
    if kind == "table":
        primary = ["PRIMARY KEY", "(", speller.name(names[0]), ")"]
        made.constraints.append(Part("primary", primary, name(), [names[0]]))
    made.numbers = {column: number for number, column in enumerate(made.columns)}
    for number in range(3):
        what, two = choose(["unique", "check", "foreign"]), speller.random.sample(names[1:], 2)
        if what == "unique":
            one = [speller.name(speller.other_case(two[0]), string=True), choose(["", "COLLATE NOCASE", "DESC"])]
            words = ["UNIQUE", "(", *one, ",", speller.name(two[1], string=True), ")", choose(CONFLICTS)]
            if any(part.kind == "unique" and part.columns == two for part in made.constraints):
                words.pop()  # two of the same columns may not want different things at a conflict
            made.constraints.append(Part("unique", words, name(), two))
        elif what == "check":
            words = ["CHECK", f"({speller.name(two[0])} IS NOT {-20 - number}", f"OR {speller.name(two[1])} = ')')"]
            made.constraints.append(Part("check", words, name(), two))
        else:
            words = [
                "foreign key",
                f"({speller.name(two[0], string=True)})",
                "references",
                speller.name("The parent"),
                "(id)",
            ]
            made.constraints.append(Part("foreign", words, name(), two[:1]))
    return made


class Made:
    """A database with such a table, rows, indexes and a trigger."""

    def __init__(self, path: Path, table: Spelled, seed: int) -> None:
        self.path = path
        engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
        sa.event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA synchronous = OFF"))
        self.database = Database("default", None, engine)
        columns = table.ordinary
        quoted = ['"' + name.replace('"', '""') + '"' for name in columns]
        with closing(sqlite3.connect(path)) as driver, driver:
            driver.execute("CREATE TABLE 'The parent' (id INTEGER PRIMARY KEY)")
            driver.execute("CREATE TABLE log (what)")
            driver.executemany("INSERT INTO 'The parent' VALUES (?)", [(number,) for number in range(100)])
            driver.execute(table.sql(seed))
            for number in range(1, 6):
                values = [number * 10 + table.numbers[column] for column in columns]
                marks = ", ".join("?" * len(columns))
                driver.execute(f'INSERT INTO "the Table" ({", ".join(quoted)}) VALUES ({marks})', values)
            for column, name in zip(columns[1:], quoted[1:], strict=True):
                driver.execute(
                    f'CREATE INDEX "ix {table.numbers[column]}" ON "the Table" ({name}) WHERE {name} IS NOT 3'
                )
            driver.execute("CREATE TRIGGER tr AFTER DELETE ON 'the Table' BEGIN INSERT INTO log VALUES (1); END")

    def facts(self, table: Spelled, *, rows: bool = True) -> dict[str, Any]:
        """What SQLite understood of the table, its rows, and what it says to rows that break something."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as driver:

            def ask(sql: str, *values: Any) -> list[Any]:
                return driver.execute(sql, values).fetchall()

            assert ask("PRAGMA integrity_check") == [("ok",)]
            columns = ask(
                'SELECT name, upper(type), "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo("the Table")'
            )
            keys = ask('SELECT "from", "table", "to", on_update, on_delete FROM pragma_foreign_key_list("the Table")')
            # SQLite takes a comment behind a type for a part of it.
            columns = [(row[0], _COMMENT.sub("", row[1]), *row[2:]) for row in columns]
            indexes = [
                (unique, origin, partial, ask("SELECT name, desc, coll, key FROM pragma_index_xinfo(?)", name))
                for _, name, unique, origin, partial in ask("SELECT * FROM pragma_index_list('the Table')")
            ]
            own = ask(
                "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL "
                "AND tbl_name NOT LIKE 'db_smart_%' ORDER BY name"
            )
            return {
                "columns": columns,
                "keys": sorted(keys),
                "indexes": sorted(indexes, key=repr),
                "own": own,
                "rows": sorted(ask('SELECT * FROM "the Table"'), key=repr) if rows else [],
                "probes": self._probes(driver, table),
            }

    @staticmethod
    def _probes(driver: sqlite3.Connection, table: Spelled) -> list[str]:
        """What becomes of rows that break a check, or repeat a value."""
        columns = table.ordinary
        quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
        said = []
        for position in range(len(columns)):
            for value in (*range(-14, -9), *range(-23, -19), 10 + table.numbers[columns[position]], None):
                values: list[Any] = [90 + table.numbers[column] for column in columns]
                values[position] = value
                driver.execute("BEGIN")
                try:
                    marks = ", ".join("?" * len(columns))
                    done = driver.execute(f'INSERT INTO "the Table" ({quoted}) VALUES ({marks})', values)
                    count = driver.execute('SELECT count(*) FROM "the Table"').fetchone()
                    said.append(f"{done.rowcount} {count}")
                except sqlite3.Error as error:
                    said.append(" ".join(_COMMENT.sub(" ", str(error)).split()))
                driver.rollback()
        return said


Case = tuple[str, Callable[[Operations], object], Spelled]


def _drop_constraint(op: Operations, name: str) -> None:
    op.drop_constraint(name, "the Table")


def cases(table: Spelled, speller: Speller) -> list[Case]:
    """Operations, and what is to become of the table."""
    name = "the Table"
    plain = [column for column in table.ordinary if column != table.key]
    found: list[Case] = []
    for part in table.parts:
        if part.name is not None and part.kind in ("unique", "check", "foreign"):
            drop = partial(_drop_constraint, name=speller.other_case(part.name))
            found.append((f"drop {part}", drop, table.without(part)))
    one, two = speller.random.sample(plain, 2)
    first, second = ('"' + column.replace('"', '""') + '"' for column in (one, two))

    def more_by(words: list[str], kind: str, constraint: str) -> Spelled:
        more = copy.deepcopy(table)
        more.constraints.append(Part(kind, words, constraint))
        return more

    more = more_by(["UNIQUE", "(", first, ",", second, ")"], "unique", "new UQ")
    found.append(("add unique", lambda op: op.create_unique_constraint("new UQ", name, [one, two]), more))
    more = more_by(["CHECK", "(", first, "IS NOT -12)"], "check", "new CK")
    condition = sa.column(one).is_distinct_from(sa.text("-12"))
    found.append(("add check", lambda op: op.create_check_constraint("new CK", name, condition), more))
    more = more_by(["FOREIGN KEY", "(", second, ")", "REFERENCES 'The parent' (id)"], "foreign", "new 'FK'")
    found.append(("add key", lambda op: op.create_foreign_key("new 'FK'", name, "The parent", [two], ["id"]), more))
    for column in (one, two):
        was_null = all(part.kind != "not null" for part in table.columns[column][1])
        more = copy.deepcopy(table)
        parts = more.columns[column][1]
        parts[:] = [part for part in parts if part.kind != "not null"]
        if was_null:
            parts.append(Part("not null", ["NOT NULL"]))
        alter = lambda op, column=column, was_null=was_null: op.alter_column(name, column, nullable=not was_null)  # noqa: E731
        found.append((f"nullable {column}", alter, more))
    more = copy.deepcopy(table)
    parts = more.columns[one][1]
    parts[:] = [*(part for part in parts if part.kind != "default"), Part("default", ["DEFAULT", "77"])]
    found.append(("default", lambda op: op.alter_column(name, one, server_default=sa.text("77")), more))
    if "STRICT" not in table.options:
        more = copy.deepcopy(table)
        more.columns[two] = ("VARCHAR(99)", more.columns[two][1])
        found.append(("type", lambda op: op.alter_column(name, two, type_=sa.String(99)), more))
    return found


@pytest.mark.parametrize("seed", range(SEED, SEED + COUNT))
def test_a_table_in_any_spelling(tmp_path: Path, seed: int) -> None:
    table = spelled(seed)
    for number, (what, action, wanted) in enumerate(cases(table, Speller(seed))):
        made = Made(tmp_path / f"{number}.db", table, seed)
        context = f"{what}\n{table.sql(seed)}"
        before = made.facts(table)

        def run(made: Made = made, action: Callable[[Operations], object] = action) -> None:
            with operations(made.database, destructive=True) as op:
                action(op)

        assert statements(made.database, run), context
        after = made.facts(wanted)
        expected = Made(tmp_path / f"{number} expected.db", wanted, seed + 1).facts(wanted)
        assert {**after, "rows": 0} == {**expected, "rows": 0}, context
        if what != "type":
            assert after["rows"] == before["rows"], context
        assert after["own"] == before["own"], context
        assert statements(made.database, run) == [], f"again: {context}"


@pytest.mark.parametrize("seed", range(SEED, SEED + COUNT, 2))
def test_columns_are_dropped_unless_others_have_them(tmp_path: Path, seed: int) -> None:
    table = spelled(seed)
    for number, column in enumerate(table.columns):
        made = Made(tmp_path / f"{number}.db", table, seed)
        before = made.facts(table)
        users = [part for name, (_, parts) in table.columns.items() if name != column for part in parts]
        users += [part for part in table.constraints if len(part.columns) > 1 or part.kind == "primary"]
        used = any(column in part.columns for part in users) or any(
            part.kind == "primary" for part in table.columns[column][1]
        )

        def run(made: Made = made, column: str = column) -> None:
            with operations(made.database, destructive=True) as op:
                op.drop_column("the Table", column)

        context = f"{column}\n{table.sql(seed)}"
        if used:
            with pytest.raises(DbSmartError, match="cannot be dropped"):
                run()
            assert made.facts(table) == before, context
            continue
        wanted = copy.deepcopy(table)
        del wanted.columns[column]
        wanted.constraints = [part for part in wanted.constraints if column not in part.columns]
        run()
        after = made.facts(wanted)
        position = list(table.columns).index(column)
        assert after["rows"] == sorted((row[:position] + row[position + 1 :] for row in before["rows"]), key=repr), (
            context
        )
        expected = Made(tmp_path / f"{number} expected.db", wanted, seed + 1).facts(wanted)
        keep = ("columns", "keys", "probes")
        assert {key: after[key] for key in keep} == {key: expected[key] for key in keep}, context
        assert statements(made.database, run) == [], context
