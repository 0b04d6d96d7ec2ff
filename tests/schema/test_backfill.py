"""Backfills on every kind of database: each row once, whatever happens meanwhile."""

from __future__ import annotations

import functools
import json
import logging
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from rich.cells import cell_len
from sqlalchemy import Column, Integer, String
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.errors import LeaseLost
from aurum_harmony.db_smart.signals import migration_progress, migration_started
from aurum_harmony.db_smart.store import tables
from aurum_harmony.db_smart.store.database import Database
from tests.harness.backfills import PLUS_ONE, numbers, small_batches
from tests.harness.crash import ended, forked, run_out
from tests.harness.databases import engine_of
from tests.harness.direct import operations
from tests.harness.project import Project
from tests.harness.terminal import ESCAPES, Terminal, command_line

ROOT = Path(__file__).parents[2]
ROWS = 3_000


def make_table(
    url: URL | str, *keys: Column[Any], values: Callable[[int], tuple[Any, ...]], rows: int = ROWS, **options: Any
) -> sa.Table:
    """A table ``items`` with a key, and a number ``n`` that is 0 everywhere."""
    table = sa.Table(
        "items", sa.MetaData(), *keys, Column("n", Integer, nullable=False), Column("s", String(20)), **options
    )
    names = [key.name for key in keys]
    with engine_of(url).begin() as connection:
        table.create(connection)
        found = [dict(zip(names, values(number), strict=True)) | {"n": 0} for number in range(rows)]
        random.Random(1).shuffle(found)
        connection.execute(table.insert(), found)
    return table


def with_gaps(number: int) -> tuple[Any, ...]:
    return (number * 3 + number % 7 - 5,)


@pytest.fixture
def items(url: URL) -> sa.Table:
    """Rows with gaps between their keys, some of them negative."""
    return make_table(url, Column("id", Integer, primary_key=True, autoincrement=False), values=with_gaps)


@pytest.fixture
def database(url: URL) -> Database:
    return Database("default", None, engine_of(url))


def execute(url: URL | str, sql: str, **parameters: Any) -> None:
    with engine_of(url).begin() as connection:
        connection.execute(sa.text(sql), parameters)


KEYS: dict[str, tuple[Callable[[str], list[Column[Any]]], Callable[[int], tuple[Any, ...]]]] = {
    "integer": (lambda _: [Column("id", sa.BigInteger, primary_key=True, autoincrement=False)], with_gaps),
    "text": (
        lambda _: [Column("id", String(40), primary_key=True)],
        lambda number: (f"{'äzAb%_ '[number % 6]}'\\:{number}",),
    ),
    "uuid": (lambda _: [Column("id", sa.Uuid(), primary_key=True)], lambda number: (uuid.UUID(int=number**5),)),
    "binary": (
        lambda dialect: [Column("id", sa.LargeBinary() if dialect != "mysql" else sa.BINARY(16), primary_key=True)],
        lambda number: ((number**5).to_bytes(16, "little"),),
    ),
    "datetime": (
        lambda dialect: [Column("id", _datetime(dialect), primary_key=True)],
        lambda number: (datetime(2026, 1, 1, microsecond=7) + timedelta(seconds=number, microseconds=number * 131),),
    ),
    "date": (
        lambda _: [Column("id", sa.Date, primary_key=True)],
        lambda number: (datetime(1999, 1, 1).date() + timedelta(days=number),),
    ),
    "decimal": (
        lambda _: [Column("id", sa.Numeric(30, 10, asdecimal=True), primary_key=True)],
        lambda number: (Decimal(number) / 8,),
    ),
    "composite": (
        lambda _: [
            Column("tenant", Integer, primary_key=True, autoincrement=False),
            Column("name", String(20), primary_key=True),
            Column("part", Integer, primary_key=True, autoincrement=False),
        ],
        lambda number: (number % 3, f"name {number % 40}", number),
    ),
}


def _datetime(dialect: str) -> sa.types.TypeEngine[Any]:
    from sqlalchemy.dialects import mysql

    return mysql.DATETIME(fsp=6) if dialect == "mysql" else sa.DateTime()


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.filterwarnings("ignore:Dialect sqlite.* does \\*not\\* support Decimal")
def test_each_row_once_whatever_the_key(
    url: URL, database: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, values = KEYS[kind]
    make_table(url, *columns(database.dialect), values=values)
    with small_batches(monkeypatch), operations(database) as op:
        op.backfill("items", PLUS_ONE)
        seen: list[tuple[Any, ...]] = []
        op.batches("items")(lambda rows: seen.extend(tuple(row)[:-2] for row in rows))
    assert numbers(url) == [(1, ROWS)]
    assert len(seen) == len(set(seen)) == ROWS


@pytest.mark.parametrize("kind", ["integer", "text", "uuid", "binary", "composite"])
def test_goes_on_from_a_key_of_any_kind(
    url: URL, database: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, values = KEYS[kind]
    make_table(url, *columns(database.dialect), values=values)
    asked = iter([False, False, False])

    def pause() -> bool:
        return next(asked, None) is None and _stop()

    with small_batches(monkeypatch):
        with pytest.raises(InterruptedError), operations(database) as op:
            op.backfill("items", PLUS_ONE, pause=pause)
        assert {n for n, _ in numbers(url)} == {0, 1}
        with operations(database) as op:
            op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(1, ROWS)]


def _stop() -> bool:
    raise InterruptedError


@pytest.mark.parametrize("kind", ["text", "blob", "composite"])
def test_without_rowid_a_table_is_passed_by_its_key(
    new_url: Callable[[str], URL], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url("sqlite")
    columns, values = KEYS[{"blob": "binary"}.get(kind, kind)]
    make_table(url, *columns("sqlite"), values=values, sqlite_with_rowid=False)
    with small_batches(monkeypatch), operations(Database("default", None, engine_of(url))) as op:
        op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(1, ROWS)]


def test_sqlite_finds_rows_whose_key_is_null_or_of_another_type(new_url: Callable[[str], URL]) -> None:
    url = new_url("sqlite")
    execute(url, "CREATE TABLE items (rowid TEXT, id DATE PRIMARY KEY, n INTEGER)")
    for value in ("NULL", "NULL", "'no date'", "1.5", "x'00'", "'2026-01-01'"):
        execute(url, f"INSERT INTO items (id, n) VALUES ({value}, 0)")
    with operations(Database("default", None, engine_of(url))) as op:
        op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(1, 6)]


def test_a_table_without_key_is_a_clear_error(url: URL, database: Database) -> None:
    execute(url, "CREATE TABLE items (id INTEGER, n INTEGER)")
    execute(url, "INSERT INTO items VALUES (1, 0)")
    if database.dialect == "sqlite":
        with operations(database) as op:
            op.backfill("items", PLUS_ONE)
        assert numbers(url) == [(1, 1)]
        return
    with pytest.raises(DbSmartError, match="'items' has no primary key"), operations(database) as op:
        op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(0, 1)]


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_a_float_is_no_key(new_url: Callable[[str], URL], dialect: str) -> None:
    url = new_url(dialect)
    execute(url, "CREATE TABLE items (id FLOAT PRIMARY KEY, n INTEGER)")
    execute(url, "INSERT INTO items VALUES (1.1, 0)")
    with (
        pytest.raises(DbSmartError, match="primary key is a float"),
        operations(Database("default", None, engine_of(url))) as op,
    ):
        op.backfill("items", PLUS_ONE)


def test_wrong_uses_are_clear_errors(items: sa.Table, database: Database) -> None:
    def read(select: sa.Select[Any], op: Any) -> None:
        op.batches(select)(print)

    def fails(match: str, action: Callable[[Any], object]) -> None:
        with pytest.raises(DbSmartError, match=match), operations(database) as op:
            action(op)

    fails("no column 'nothing'", lambda op: op.backfill("items", {"nothing": 1}))
    fails("batch_seconds is 0", lambda op: op.backfill("items", PLUS_ONE, batch_seconds=0))
    fails("throttle is -1", lambda op: op.backfill("items", PLUS_ONE, throttle=-1))
    for select in (
        sa.select(items, sa.table("other")),
        sa.select(items.c.n).distinct(),
        sa.select(items.c.n).limit(3),
        sa.select(items.c.n).group_by(items.c.n),
    ):
        fails("a SELECT from one table", functools.partial(read, select))
    fails("cannot have", lambda op: op.batches("items")(lambda _: op.backfill("items", PLUS_ONE)))
    if database.dialect != "sqlite":
        fails("cannot set 'id'", lambda op: op.backfill("items", {"id": sa.column("id") + 1}))
    with pytest.raises(sa.exc.NoSuchTableError), operations(database) as op:
        op.backfill("nowhere", PLUS_ONE)
    assert numbers(items_url(database)) == [(0, ROWS)]


def items_url(database: Database) -> URL:
    return database.app_engine.url


def test_needs_a_transaction(project: Project) -> None:
    project.write("""
        @migration(transactional=False)
        def fill(op: Operations) -> None:
            op.create_table("items", Column("id", Integer, primary_key=True), Column("n", Integer))
            op.backfill("items", {"n": 1})
    """)
    with pytest.raises(DbSmartError, match="cannot run with @migration\\(transactional=False\\)"):
        project.boot()


def test_values_and_conditions(url: URL, items: sa.Table, database: Database) -> None:
    execute(url, "UPDATE items SET s = '50%' WHERE id < 100")
    with operations(database) as op:
        # Without parentheses the OR would reach past the range.
        op.backfill("items", {"n": 1, "s": "it's 100%"}, where="s = '50%' OR id > 5000 AND s IS NULL")
        op.backfill("items", {"n": sa.column("n") + 1}, where=sa.column("id").between(200, 300))
        op.backfill("items", {"s": None}, where=sa.column("id") < 0)
        op.backfill("items", {"N" if database.dialect != "postgresql" else "n": sa.text("n + 5")}, where="id = 0")
    with engine_of(url).connect() as connection:
        rows = connection.execute(sa.select(items)).all()
    for id_, n, s in rows:
        filled = id_ < 100 or id_ > 5000
        assert n == filled + (200 <= id_ <= 300) + 5 * (id_ == 0)
        assert s == ("it's 100%" if filled and id_ >= 0 else None)


def test_types_of_columns_are_those_of_the_table(new_url: Callable[[str], URL]) -> None:
    url = new_url("postgresql")
    execute(url, "CREATE TYPE mood AS ENUM ('sad', 'glad')")
    execute(
        url, "CREATE TABLE items (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), n UUID, m mood, d JSONB, k CHAR(5))"
    )
    execute(url, "INSERT INTO items (k) VALUES ('a'), ('b')")
    new = uuid.uuid4()
    with operations(Database("default", None, engine_of(url))) as op:
        op.backfill("items", {"n": str(new), "m": "glad", "d": {"a": [1]}})
    with engine_of(url).connect() as connection:
        assert {tuple(row) for row in connection.execute(sa.text("SELECT n, m, d ->> 'a' FROM items"))} == {
            (new, "glad", "[1]")
        }


def test_a_schema(url: URL, items: sa.Table, database: Database) -> None:
    schema = {"sqlite": "main", "postgresql": "public"}.get(database.dialect, url.database)
    with operations(database) as op:
        op.backfill("items", PLUS_ONE, schema=schema)
        op.batches("items", schema=schema)(lambda rows: rows)
    assert numbers(url) == [(1, ROWS)]


def test_an_empty_table(url: URL, database: Database) -> None:
    execute(url, "CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER)")
    with operations(database) as op:
        op.backfill("items", PLUS_ONE)
        op.batches("items")(_never)
    assert numbers(url) == []


def _never(_: Any) -> None:
    raise AssertionError("there are no rows")


def test_batches_work_in_the_transaction_of_their_cursor(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(project.url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,), rows=1000)
    project.write("""
        calls = []

        @migration
        def fix(op: Operations) -> None:
            t = table("items", column("id"), column("n"), column("s"))

            @op.batches(select(t.c.id, t.c.n).where(t.c.id > 100))
            def fix(rows):
                assert [row.id for row in rows] == sorted(row.id for row in rows)
                ids = [row.id for row in rows]
                calls.append(len(rows))
                if len(calls) == 3:
                    op.execute(t.update().values(n=100))
                    raise ValueError("third")
                op.execute(t.update().where(t.c.id.in_(ids)).values(n=t.c.n + 1))
                op.session.execute(t.update().where(t.c.id.in_(ids)).values(n=t.c.n + 1))
                op.connection.execute(t.update().where(t.c.id.in_(ids)).values(n=t.c.n + 1))
    """)
    with small_batches(monkeypatch, 200):
        with pytest.raises(DbSmartError, match="ValueError: third.*\n.*\n?What it had committed is kept"):
            project.boot()
        (left, done), (three, _) = sorted(numbers(project.url), key=lambda pair: pair[0])
        assert (left, three) == (0, 3)
        assert done > 100
        project.file.write_text(project.file.read_text().replace("len(calls) == 3", "False"))
        project.boot()
    assert numbers(project.url) == [(0, 100), (3, 900)]
    assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]


def test_the_same_backfill_twice_in_one_migration(items: sa.Table, url: URL, database: Database) -> None:
    with operations(database) as op:
        op.backfill("items", PLUS_ONE)
        op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(2, ROWS)]


def test_a_finished_backfill_is_passed_by(items: sa.Table, url: URL, database: Database) -> None:
    def stopped() -> None:
        with operations(database) as op:
            op.backfill("items", PLUS_ONE)
            op.execute("UPDATE items SET s = 'gone'")
            _stop()

    with pytest.raises(InterruptedError):
        stopped()
    with operations(database) as op:
        op.backfill("items", PLUS_ONE)
    assert numbers(url) == [(1, ROWS)]
    with engine_of(url).connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM items WHERE s = 'gone'")) == 0


def test_work_before_and_after_is_done_once(project: Project) -> None:
    make_table(project.url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,), rows=50)
    project.write("""
        @migration
        def fill(op: Operations) -> None:
            op.execute("INSERT INTO items (id, n) VALUES (100, 10)")
            op.add_column("items", Column("extra", Integer))
            op.backfill("items", {"n": column("n") + 1, "extra": column("id")})
            op.execute("INSERT INTO items (id, n) VALUES (101, 20)")
            raise ValueError("in the end")
    """)
    for _ in range(2):
        with pytest.raises(DbSmartError, match="in the end.*\n.*\nWhat it had committed is kept"):
            project.boot()
    project.file.write_text(project.file.read_text().replace("raise ", ""))
    project.boot()
    assert numbers(project.url) == [(1, 50), (11, 1), (20, 1)]
    assert project.query("SELECT count(*) FROM items WHERE extra = id") == [(51,)]


def test_rows_that_arrive_and_go_meanwhile(items: sa.Table, url: URL, database: Database, monkeypatch: Any) -> None:
    """Without a condition: what is in front of the cursor is done, what comes behind it or above the end is not."""
    count = 0
    known = {with_gaps(number)[0] for number in range(ROWS)}

    def pause() -> bool:
        nonlocal count
        count += 1
        if count == 3:
            gap = next(id_ for id_ in range(8000, 9000) if id_ not in known)
            execute(url, f"INSERT INTO items (id, n) VALUES (-100, 0), ({gap}, 0), (100000, 0)")
            execute(url, "DELETE FROM items WHERE id BETWEEN 4000 AND 4999")
        return False

    with small_batches(monkeypatch, 100), operations(database) as op:
        op.backfill("items", PLUS_ONE, pause=pause)
    assert count > 3
    with engine_of(url).connect() as connection:
        found = connection.execute(sa.select(items.c.id).where(items.c.n == 0)).scalars().all()
        assert sorted(found) == [-100, 100000]
        assert connection.scalar(sa.select(sa.func.max(items.c.n))) == 1


def test_with_a_condition_late_rows_are_found_by_another_pass(
    items: sa.Table, url: URL, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def pause() -> bool:
        nonlocal count
        count += 1
        if count in (3, 8):
            execute(
                url, "INSERT INTO items (id, n) VALUES (:low, 0), (:high, 0)", low=-100 * count, high=100_000 * count
            )
        return False

    with small_batches(monkeypatch), operations(database) as op:
        op.backfill("items", {"n": 1}, where="n = 0", pause=pause)
    assert count > 8
    assert numbers(url) == [(1, ROWS + 4)]


@pytest.mark.parametrize("where", ["id IS NOT NULL", "n < 2"])
def test_a_condition_that_stays_true_is_passed_once(items: sa.Table, url: URL, database: Database, where: str) -> None:
    execute(url, "UPDATE items SET n = 1 WHERE id < 3000")
    before = numbers(url)
    with operations(database) as op:
        op.backfill("items", PLUS_ONE, where=where)
    assert numbers(url) == [(number + 1, count) for number, count in before]


def test_passes_end_although_rows_keep_arriving(
    items: sa.Table, url: URL, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    new = iter(range(10**6, 2 * 10**6))

    def pause() -> bool:
        execute(url, "INSERT INTO items (id, n) VALUES (:id, 0)", id=next(new))
        execute(url, "INSERT INTO items (id, n) VALUES (:id, 0)", id=-next(new))
        return False

    with operations(database) as op:
        op.backfill("items", {"n": 1}, where="n = 0", pause=pause)
    assert "keep arriving; it ends after 10 passes" in caplog.text


def test_pauses_while_it_is_told_to(items: sa.Table, url: URL, database: Database) -> None:
    answers = iter([True, True, True])
    asked = 0

    def pause() -> bool:
        nonlocal asked
        asked += 1
        more = next(answers, False)
        if more:
            assert numbers(url) == [(0, ROWS)]
        return more

    with operations(database) as op:
        op.backfill("items", PLUS_ONE, pause=pause)
    assert asked > 4
    assert numbers(url) == [(1, ROWS)]


def test_throttle_rests_for_its_share(
    items: sa.Table, url: URL, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest after a batch is at least its share of the time that the batch's own statements took."""
    times: list[tuple[str, float]] = []

    def listen(_: Any, __: Any, statement: str, *___: Any) -> None:
        times.append((statement, time.perf_counter()))

    for name in ("before_cursor_execute", "after_cursor_execute"):
        sa.event.listen(database.engine, name, listen)
    with small_batches(monkeypatch, 500), operations(database) as op:
        op.backfill("items", PLUS_ONE, throttle=3.0)
    updates = [moment for statement, moment in times if statement.startswith("UPDATE items")]
    pairs = list(zip(updates[::2], updates[1::2], strict=True))
    assert len(pairs) >= 4
    for (started, finished), (following, _) in zip(pairs, pairs[1:], strict=False):
        assert following - finished >= 3.0 * (finished - started)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_a_deadlock_is_tried_again(new_url: Callable[[str], URL], dialect: str) -> None:
    """The batch has the first row of a pair and wants the second; the other session has that and wants the first."""
    url = new_url(dialect)
    make_table(url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,), rows=400)
    execute(url, "CREATE TABLE pair (id INTEGER PRIMARY KEY, n INTEGER)")
    execute(url, "INSERT INTO pair VALUES " + ", ".join(f"({number}, 0)" for number in range(1, 501)))
    other = engine_of(url).connect()
    if dialect == "postgresql":
        other.exec_driver_sql("SET LOCAL deadlock_timeout = '100s'")  # so that it is the batch that finds out
    # MariaDB takes back the one that has done less.
    other.exec_driver_sql("UPDATE pair SET n = 10 WHERE id > 1")
    reached = threading.Event()

    def cross() -> None:
        assert reached.wait(60)
        other.exec_driver_sql("UPDATE pair SET n = 10 WHERE id = 1")
        other.commit()

    thread = threading.Thread(target=cross)
    thread.start()
    calls = []
    with operations(Database("default", None, engine_of(url))) as op:

        @op.batches("items")
        def add(rows: Any) -> None:
            calls.append(len(rows))
            op.execute("UPDATE pair SET n = n + 1 WHERE id = 1")
            reached.set()
            op.execute("UPDATE pair SET n = n + 1 WHERE id = 2")
            op.execute("UPDATE items SET n = n + 1 WHERE id BETWEEN :low AND :high", {"low": rows[0].id, "high": 9999})

    thread.join(60)
    other.close()
    assert calls == [400, 400]
    assert numbers(url) == [(1, 400)]
    with engine_of(url).connect() as connection:
        assert connection.scalars(sa.text("SELECT n FROM pair WHERE id < 3")).all() == [11, 11]


def test_a_locked_row_holds_up_its_batch_only(items: sa.Table, url: URL, database: Database, monkeypatch: Any) -> None:
    """The one who has the row lets go when the batch has given up for the first time."""
    other = engine_of(url).connect()
    held = {"sqlite": "BEGIN IMMEDIATE"}.get(database.dialect, "UPDATE items SET s = 'x' WHERE id > 8000")
    let_go: list[bool] = []

    def pause() -> bool:
        if database.dialect == "sqlite" and not let_go and not other.in_transaction():
            other.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
        if not let_go and not other.in_transaction():
            other.exec_driver_sql(held)
        return False

    def back_off(_: int) -> None:
        let_go.append(True)
        other.rollback()

    monkeypatch.setattr("aurum_harmony.db_smart.schema.backfill.back_off", back_off)
    if database.dialect == "sqlite":
        listens: Any = lambda connection, _: connection.execute("PRAGMA busy_timeout = 50")  # noqa: E731
        sa.event.listen(database.engine, "connect", listens)
    with small_batches(monkeypatch), operations(database) as op:
        op.backfill("items", PLUS_ONE, pause=pause)
    other.close()
    assert let_go
    assert numbers(url) == [(1, ROWS)]


def test_who_lost_the_lease_stops(new_url: Callable[[str], URL]) -> None:
    url = new_url("postgresql")
    make_table(url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,))

    def pause() -> bool:
        execute(url, "UPDATE db_smart_state SET token = token + 1")
        return False

    with pytest.raises(LeaseLost), operations(Database("default", None, engine_of(url))) as op:
        op.backfill("items", PLUS_ONE, pause=pause)
    assert numbers(url) == [(0, ROWS)]


def test_no_snapshot_lasts_longer_than_a_batch(new_url: Callable[[str], URL], monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_url("postgresql")
    make_table(url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,))
    states: set[tuple[Any, ...]] = set()

    def pause() -> bool:
        with engine_of(url).connect() as connection:
            query = sa.text(
                "SELECT state, backend_xid, backend_xmin FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            states.update(tuple(row) for row in connection.execute(query) if row.state != "active")
        return False

    with small_batches(monkeypatch), operations(Database("default", None, engine_of(url))) as op:
        op.backfill("items", PLUS_ONE, pause=pause)
    assert states == {("idle", None, None)}


def test_batches_grow_to_the_time_asked_for(url: URL, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,), rows=100)
    sizes: list[int] = []

    def handed(rows: Any) -> None:
        sizes.append(len(rows))

    monkeypatch.setattr("aurum_harmony.db_smart.schema.backfill._FIRST", 4)
    with operations(database) as op:
        op.batches("items", batch_seconds=60)(handed)
        assert sizes == [4, 8, 16, 32, 40]
        sizes.clear()
        op.batches("items", batch_seconds=1e-9)(handed)
    assert sizes[:3] == [4, 2, 1]
    assert set(sizes[3:]) == {1}


def test_progress_is_sent_and_logged(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aurum_harmony.db_smart")
    monkeypatch.setattr("aurum_harmony.db_smart.schema.backfill._TELL_EVERY", 0.0)
    make_table(project.url, Column("id", Integer, primary_key=True), values=with_gaps)
    project.write("""
        @migration
        def fill(op: Operations) -> None:
            op.backfill("items", {"n": 1}, where="n = 0")
    """)
    told: list[dict[str, Any]] = []

    def listen(_: Any, **progress: Any) -> None:
        told.append(progress)

    with small_batches(monkeypatch), migration_progress.connected_to(listen):
        project.boot()
    first, last = told[0], told[-1]
    assert first.keys() == {"migration", "database", "done", "total", "rate", "eta"}
    assert (first["migration"], first["database"], first["done"], first["eta"]) == ("fill", "default", 0, None)
    assert first["total"] > 0
    assert (last["done"], last["total"], last["eta"]) == (ROWS, ROWS, 0)
    assert all(progress["rate"] > 0 for progress in told[1:])
    done = [progress["done"] for progress in told]
    assert done == sorted(done[: done.index(ROWS) + 1] if ROWS in done else done) or 0 in done[1:]
    assert "backfill of 'items' in fill: 0 of ~" in caplog.text
    assert re.search(r" rows/s, (about .+|a moment) left", caplog.text), "by how quick the server is"
    assert "pass 2" in caplog.text


HELD = """
    import os

    def held():
        os.write(int(os.environ["READY"]), b"x")
        os.read(int(os.environ["GO"]), 1)
        return False

    asked = []

    def third():
        asked.append(1)
        return held() if len(asked) == 3 else False

    @migration
    def fill(op: Operations) -> None:
        op.backfill("items", {"n": column("n") + 1}, pause=third)
"""


@contextmanager
def held_backfill(project: Project, **options: Any) -> Iterator[tuple[subprocess.Popen[str], Callable[[], object]]]:
    """A process that stands in its third batch until it is let go."""
    make_table(project.url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,))
    project.write(HELD)
    ready, its_ready = os.pipe()
    its_go, go = os.pipe()
    url = make_url(project.url).render_as_string(hide_password=False)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(project.directory), project.module, url],
        env={**os.environ, "PYTHONPATH": str(ROOT), "READY": str(its_ready), "GO": str(its_go)},
        pass_fds=(its_ready, its_go),
        text=True,
        **options,
    )
    os.close(its_ready)
    os.close(its_go)
    try:
        assert os.read(ready, 1), "it has ended before its third batch"
        yield process, lambda: os.write(go, b"x")
    finally:
        process.kill()
        process.communicate()
        os.close(ready)
        os.close(go)


SCRIPT = """
import sys
from flask import Flask
from flask.cli import FlaskGroup
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart.schema import backfill
from aurum_harmony.db_smart import DbSmart

backfill._FIRST = backfill._MOST = 250
sys.path.insert(0, sys.argv[1])


def make():
    app = Flask("held", instance_path=sys.argv[1])
    app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[3], DB_SMART_FLAG="other", DB_SMART_LEASE_SECONDS=3)
    DbSmart(app, SQLAlchemy(app), migrations=sys.argv[2])
    return app


FlaskGroup(create_app=make).main(["db-smart", "migrate"])
"""


def test_status_tells_it_from_another_process(project: Project) -> None:
    with held_backfill(project, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as (process, let_go):
        report = json.loads(project.run("status", "--json").stdout)
        text = project.run("status").output
        let_go()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    progress = report["progress"]
    assert progress == report["databases"][0]["progress"]
    assert progress.keys() == {"migration", "done", "total", "unit", "phase", "rate", "eta_s"}
    assert progress["migration"] == "fill"
    assert 250 < progress["done"] < ROWS
    assert progress["rate"] > 0
    assert isinstance(progress["eta_s"], float)
    assert f"backfill  fill: {progress['done']:,} of ~{progress['total']:,} rows, " in text
    assert "fill: 0 of ~" in error  # no terminal: a line at once
    assert numbers(project.url) == [(1, ROWS)]
    assert json.loads(project.run("status", "--json").stdout)["progress"] is None


def test_watch_tells_it_on_a_terminal(sqlite_project: Project) -> None:
    with held_backfill(sqlite_project), Terminal(command_line(sqlite_project, "watch"), columns=60) as terminal:
        terminal.until("━")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.rest() == 0
    last = terminal.seen.rpartition("\x1b[?25h")[2].replace("\r\n", "\n")
    assert re.search(r"^  migrating now: \S+ since 20.* UTC\n? +on fill$", last, re.MULTILINE), last
    assert re.search(r"^  backfill: [\d,]+ of ~[\d,]+ rows, [\d,]+ rows/s", last, re.MULTILINE), last


def test_status_tells_what_a_kill_has_left(sqlite_project: Project) -> None:
    with held_backfill(sqlite_project) as (process, _):
        process.kill()
        process.communicate()
        report = json.loads(sqlite_project.run("status", "--json").stdout)
    assert report["lock"] is None
    assert 250 < report["progress"]["done"] < ROWS
    assert (report["progress"]["rate"], report["progress"]["eta_s"]) == (0, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_was_committed(project: Project, number: signal.Signals) -> None:
    with held_backfill(project, stderr=subprocess.PIPE) as (process, let_go):
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert {n for n, _ in numbers(project.url)} == {0, 1}
    assert project.query("SELECT count(*) FROM db_smart_history") == [(0,)]
    project.file.write_text(project.file.read_text().replace("pause=third", "pause=None"))
    project.boot()
    assert numbers(project.url) == [(1, ROWS)]


@pytest.mark.parametrize("columns", [60, 120])
def test_a_bar_on_a_terminal(sqlite_project: Project, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ours, theirs = pty.openpty()
    with held_backfill(sqlite_project, stdout=theirs, stderr=theirs, stdin=theirs) as (process, let_go):
        os.close(theirs)
        let_go()
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side was closed
                break
            if not part:
                break
            shown += part
        process.wait(60)
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    assert ("rows/s" in text) is (columns == 120)
    assert " left" in text
    assert "━" in text
    drawn = [line for line in re.split("[\r\n]", ESCAPES.sub("", text)) if "━" in line]
    assert max(map(cell_len, drawn)) <= columns
    assert numbers(sqlite_project.url) == [(1, ROWS)]


KILLED = """
from sqlalchemy import Column, Integer, column
from aurum_harmony.db_smart import migration


@migration
def fill(op):
    op.add_column("items", Column("extra", Integer))
    op.backfill("items", {"n": column("n") + 1, "extra": 1}, where="extra IS NULL")
    op.backfill("items", {"n": column("n") + 1})

    @op.batches("items")
    def add(rows):
        within = {"low": rows[0].id, "high": rows[-1].id}
        op.execute("UPDATE items SET n = n + 1 WHERE id BETWEEN :low AND :high", within)
"""


def boot_small(folder: Path, url: str, module: str, boundary: int | None) -> None:
    """Boot with small batches; die by SIGKILL at a statement boundary of the migration."""
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from aurum_harmony.db_smart import DbSmart
    from aurum_harmony.db_smart.schema import backfill

    backfill._FIRST = backfill._MOST = backfill._MOST_HANDED = 50
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    def begin(*_: Any, **__: Any) -> None:
        # After a statement is, to the database, the same moment as before the next one.
        for name in ("before_cursor_execute", "commit"):
            sa.event.listen(sa.Engine, name, step)

    app = Flask("killed", instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DB_SMART_LEASE_SECONDS=1, DB_SMART_CREATE_ALL=False)
    with migration_started.connected_to(begin):
        DbSmart(app, SQLAlchemy(app), migrations=module).boot(app)


def killed_round(project: Project, kill: Callable[[], int]) -> bool:
    """One boot that is killed, and one that finishes: each row is done once by each of the three.

    :returns: whether it was killed.
    """
    url = make_url(project.url).render_as_string(hide_password=False)
    engine = engine_of(url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)
    project.flag.unlink(missing_ok=True)
    make_table(url, Column("id", Integer, primary_key=True), values=lambda number: (number * 2 + 1,), rows=100)
    code = kill()
    assert code in (0, -signal.SIGKILL)
    if code:
        run_out(url)
        assert ended(forked(boot_small, project.instance, url, project.module, None)) == 0
    assert numbers(url) == [(3, 100)]
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.progress)) == 0
    return bool(code)


@pytest.mark.slow
def test_killed_at_every_statement_boundary(project: Project) -> None:
    project.write(KILLED, header="")
    url = make_url(project.url).render_as_string(hide_password=False)
    boundary = 0
    killed = True
    while killed:
        boundary += 1

        def kill(at: int = boundary) -> int:
            return ended(forked(boot_small, project.instance, url, project.module, at))

        killed = killed_round(project, kill)
    assert boundary > 40


@pytest.mark.slow
def test_killed_at_random(project: Project) -> None:
    project.write(KILLED, header="")
    url = make_url(project.url).render_as_string(hide_password=False)
    started = time.perf_counter()
    killed_round(project, lambda: ended(forked(boot_small, project.instance, url, project.module, None)))
    length = time.perf_counter() - started

    def kill() -> int:
        pid = forked(boot_small, project.instance, url, project.module, None)
        time.sleep(random.uniform(0, length))  # the moment is the point
        os.kill(pid, signal.SIGKILL)
        return ended(pid)

    assert sum(killed_round(project, kill) for _ in range(10))


def peak(url: str, rows: int) -> None:
    """Backfill, and say through the exit code whether memory grew by more than a few megabytes."""
    database = Database("default", None, engine_of(url))
    with operations(database, name="warm") as op:
        op.backfill("items", PLUS_ONE, where="id < 1000")
        op.batches("items")(lambda _: None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with operations(database, name="more") as op:
        op.backfill("items", PLUS_ONE, batch_seconds=0.02)
        op.batches(sa.select(sa.column("id")).select_from(sa.table("items")), batch_seconds=0.02)(lambda _: None)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > 8_000:
        raise AssertionError(f"{grown} KiB more for {rows} rows")


def test_memory_does_not_grow_with_the_table(url: URL) -> None:
    """Some 100,000 rows would be more than 8 MiB if they were kept, at least 100 bytes each."""
    make_table(url, Column("id", Integer, primary_key=True), values=lambda number: (number + 1,), rows=20_000)
    for _ in range(3):
        execute(url, "INSERT INTO items (id, n) SELECT id + (SELECT max(id) FROM items), n FROM items")
    assert ended(forked(peak, url.render_as_string(hide_password=False), 160_000)) == 0


def test_composite_keys_use_the_index(new_url: Callable[[str], URL], monkeypatch: pytest.MonkeyPatch) -> None:
    """On MariaDB, with all rows under one first column: the rows that a batch reads are counted by the server."""
    url = new_url("mariadb")
    columns = [Column(name, Integer, primary_key=True, autoincrement=False) for name in ("tenant", "id")]
    make_table(url, *columns, values=lambda number: (1, number), rows=ROWS)
    reads = []

    def listen(connection: Any, *_: Any) -> None:
        rows = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all()
        reads.append(sum(int(value) for _, value in rows))

    database = Database("default", None, engine_of(url))
    sa.event.listen(database.engine, "commit", listen)
    with small_batches(monkeypatch, 100), operations(database) as op:
        op.backfill("items", PLUS_ONE)
        sa.event.remove(database.engine, "commit", listen)
    deltas = [after - before for before, after in zip(reads, reads[1:], strict=False)]
    # The first ones read the catalogue. A batch reads its range twice, and little else.
    assert len(deltas) > ROWS // 100
    assert max(deltas[-ROWS // 100 :]) < 500


def test_the_backfill_of_a_dry_run_is_text(items: sa.Table, url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url)
    project.write(
        """\
        @migration
        def fill(op):
            op.backfill("items", {"n": 1, "s": "it's 5%"}, where="n = 0")
        """
    )
    script = project.run("migrate", "--sql").stdout
    (update,) = [line for line in script.splitlines() if line.startswith("UPDATE items SET n=1")]
    assert "s='it''s 5%'" in update
    assert update.endswith(" WHERE (n = 0);")
    assert numbers(url) == [(0, ROWS)]
