"""Backfills by keys of the kinds that each server has: each row exactly once, by an update and by batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store.database import Database
from tests.harness.backfills import PLUS_ONE, numbers, small_batches
from tests.harness.databases import engine_of
from tests.harness.direct import operations

#: 6 · 40 rows: the key's columns, and for one of the first six kinds of values and a number their values.
_WORDS = ["sms", "email", "push", "Aa", "zz", "b"]
_ENUM = f"ENUM({', '.join(map(repr, _WORDS))})"
_DATES = ["infinity", "-infinity", "0044-03-15 01:02:03.4 BC", "2026-02-28", "10001-01-01 12:00", "0001-01-01"]
_BITS = [1, 2, 3, 4, 31, 63]
_LONG_SET = f"SET({', '.join(repr(f'm{number}') for number in range(64))})"
KEYS: dict[tuple[str, str], tuple[str, Callable[[int, int], tuple[str, ...]]]] = {
    ("mariadb", "enum first"): (f"k {_ENUM}, u INT, PRIMARY KEY (k, u)", lambda k, u: (repr(_WORDS[k]), str(u))),
    ("mariadb", "enum last"): (f"u INT, k {_ENUM}, PRIMARY KEY (u, k)", lambda k, u: (str(u), repr(_WORDS[k]))),
    ("mariadb", "set last"): ("u INT, k SET('z', 'a', 'M'), PRIMARY KEY (u, k)", lambda k, u: (str(u), str(k + 1))),
    ("mariadb", "long set"): (
        f"k {_LONG_SET}, u INT, PRIMARY KEY (k, u)",
        lambda k, u: (f"{(1 << 63) + _BITS[k]}", str(u)),
    ),
    ("mariadb", "bit"): ("k BIT(20), PRIMARY KEY (k)", lambda k, u: (f"{k * 40 + u}",)),
    ("mariadb", "bit 64"): ("k BIT(64), u INT, PRIMARY KEY (k, u)", lambda k, u: (f"{(1 << 63) + _BITS[k]}", str(u))),
    ("mariadb", "bigint unsigned"): ("k BIGINT UNSIGNED PRIMARY KEY", lambda k, u: (f"{(1 << 63) + k * 40 + u}",)),
    ("mariadb", "time"): ("k TIME PRIMARY KEY", lambda k, u: (f"'-{k * 40 + u:03}:10:00'",)),
    ("mariadb", "year"): ("k YEAR, u INT, PRIMARY KEY (k, u)", lambda k, u: (f"{2000 + k}", str(u))),
    ("mariadb", "inet6"): ("k INET6 PRIMARY KEY", lambda k, u: (f"'fe80::{k}:{u}'",)),
    ("mariadb", "text without case"): (
        "k VARCHAR(20), u INT, PRIMARY KEY (k, u)",
        lambda k, u: (repr(_WORDS[k] + "é" * (u % 2)), str(u)),
    ),
    ("postgresql", "enum"): (
        "k word, u INT, PRIMARY KEY (k, u)",
        lambda k, u: (repr(_WORDS[k]), str(u)),
    ),
    ("postgresql", "interval"): ("k INTERVAL PRIMARY KEY", lambda k, u: (f"interval '{k} days {u} minutes'",)),
    ("postgresql", "numeric"): ("k NUMERIC PRIMARY KEY", lambda k, u: (f"{k}.{u:03}",)),
    ("postgresql", "bytea"): ("k BYTEA PRIMARY KEY", lambda k, u: (f"'\\x{k:02x}{u:02x}'",)),
    ("postgresql", "timestamptz"): (
        "k TIMESTAMPTZ PRIMARY KEY",
        lambda k, u: (f"timestamptz '2026-10-25 00:00:00+00' + interval '{k * 40 + u} minutes'",),
    ),
    ("postgresql", "date"): ("k DATE, u INT, PRIMARY KEY (k, u)", lambda k, u: (repr(_DATES[k]), str(u))),
    ("postgresql", "timestamp"): ("u INT, k TIMESTAMP, PRIMARY KEY (u, k)", lambda k, u: (str(u), repr(_DATES[k]))),
    ("postgresql", "timestamptz without end"): (
        "k TIMESTAMPTZ, u INT, PRIMARY KEY (k, u)",
        lambda k, u: (repr(_DATES[k]), str(u)),
    ),
    ("postgresql", "int[]"): ("k INT[] PRIMARY KEY", lambda k, u: (f"'{{{k},NULL,{u}}}'",)),
    ("postgresql", "text[]"): ("k TEXT[] PRIMARY KEY", lambda k, u: (f"ARRAY['a\"\\{{', '{k}', '{u}%']",)),
    ("postgresql", "jsonb"): ("k JSONB PRIMARY KEY", lambda k, u: (f"""'{{"a": [{k}, "é%"], "b": {u}.5}}'""",)),
    ("postgresql", "domain"): ("k day PRIMARY KEY", lambda k, u: (f"date '0044-03-15 BC' + {k * 40 + u}",)),
    ("sqlite", "text without rowid"): (
        "k TEXT, u INT, PRIMARY KEY (k, u)) WITHOUT ROWID",
        lambda k, u: (repr(_WORDS[k]), str(u)),
    ),
    ("sqlite", "no primary key"): ("k TEXT", lambda k, u: (repr(_WORDS[k]),)),
}


@pytest.mark.filterwarnings("ignore:Did not recognize type 'inet6'")
@pytest.mark.parametrize("kind", KEYS, ids=" ".join)
def test_each_row_once_by_every_kind_of_key(
    new_url: Callable[[str], URL], kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, values = KEYS[kind]
    url = new_url(kind[0])
    database = Database("default", None, engine_of(url))
    with database.engine.begin() as connection:
        if "word" in columns:
            connection.exec_driver_sql(f"CREATE TYPE word AS {_ENUM}")
        if "k day" in columns:
            connection.exec_driver_sql("CREATE DOMAIN day AS DATE")
        options = {"no_parameters": True}
        end = "" if columns.endswith("ROWID") else ")"
        connection.exec_driver_sql(f"CREATE TABLE items (n INT NOT NULL, {columns}{end}", execution_options=options)
        rows = ", ".join(f"(0, {', '.join(values(k, u))})" for u in range(40) for k in range(6))
        connection.exec_driver_sql(f"INSERT INTO items VALUES {rows}", execution_options=options)
    done: list[int] = []
    with small_batches(monkeypatch, 7), operations(database) as op:
        op.backfill("items", PLUS_ONE)
        # Not the key, of which Python cannot hold every value.
        op.batches(sa.select(sa.column("n")).select_from(sa.table("items")))(lambda found: done.append(len(found)))
    assert numbers(url) == [(1, 240)]
    assert sum(done) == 240


@pytest.mark.parametrize(
    "kind", [("postgresql", "timestamp"), ("postgresql", "jsonb"), ("mariadb", "bit")], ids=" ".join
)
def test_a_run_that_was_cut_short_goes_on_where_it_was(
    new_url: Callable[[str], URL], kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the key is asked for in another form than it is stored in."""
    columns, values = KEYS[kind]
    url = new_url(kind[0])
    database = Database("default", None, engine_of(url))
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE items (n INT NOT NULL, {columns})")
        rows = ", ".join(f"(0, {', '.join(values(k, u))})" for u in range(10) for k in range(6))
        connection.exec_driver_sql(f"INSERT INTO items VALUES {rows}", execution_options={"no_parameters": True})

    def stop() -> bool:
        calls.append(None)
        if len(calls) > 2:
            raise InterruptedError
        return False

    calls: list[None] = []
    with small_batches(monkeypatch, 7):
        with pytest.raises(InterruptedError), operations(database) as op:
            op.backfill("items", PLUS_ONE, pause=stop)
        assert dict(numbers(url)).keys() == {0, 1}
        with operations(database) as op:
            op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(1, 60)]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"])
def test_percent_signs_in_the_names_of_a_table_and_its_key(
    new_url: Callable[[str], URL], dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database("default", None, engine_of(new_url(dialect)))
    table = sa.Table("t%c", sa.MetaData(), sa.Column("id%s", sa.Integer, primary_key=True), sa.Column("n%", sa.Integer))
    with database.engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"n%": 0}] * 20)
    with small_batches(monkeypatch, 7), operations(database) as op:
        op.backfill("t%c", {"n%": 1})
    with database.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.sum(table.c["n%"]))) == 20


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"])
def test_a_condition_may_end_in_a_comment(new_url: Callable[[str], URL], dialect: str) -> None:
    url = new_url(dialect)
    database = Database("default", None, engine_of(url))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE items (id INT PRIMARY KEY, n INT)")
        connection.exec_driver_sql("INSERT INTO items VALUES (1, 0), (2, 0), (3, 0)")
    with operations(database) as op:
        op.backfill("items", PLUS_ONE, where="id > 1 -- not the first")
    assert numbers(url) == [(0, 1), (1, 2)]
