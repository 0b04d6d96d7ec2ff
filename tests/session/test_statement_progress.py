"""How far one long statement is: asked of the server, and told by probes, ``status``, the bar, and the log."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.schema.progress import Progress
from aurum_harmony.db_smart.session import statement_progress as module
from aurum_harmony.db_smart.signals import statement_progress
from aurum_harmony.db_smart.store.history import Doing, holder_in, holder_text
from tests.harness.project import Project
from tests.harness.servers import config_of, wait_until

INDEX = """
@migration
def add_index(op):
    op.create_index("ix_items_n", "items", ["n"])
"""
#: Without a word of the table's data in it, because a copy of it is what takes long.
COPY = """
@migration(allow={"DS302": "the table is not in use"})
def rebuild(op):
    op.execute("ALTER TABLE items ENGINE=InnoDB, ALGORITHM=COPY")
"""
READY = "/_db-smart/ready"


@contextmanager
def old_transaction(url: URL | str) -> Iterator[None]:
    """A transaction that has written to the table, for which CREATE INDEX CONCURRENTLY waits."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("UPDATE items SET n = n WHERE id = 1"))
        yield
        connection.rollback()


def made(project: Project, rows: int = 1) -> None:
    """Make the table, with that many rows."""
    project.query("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER, t TEXT)")
    numbers = "generate_series(1, :rows) AS seq" if project.dialect == "postgresql" else f"seq_1_to_{rows} AS seq"
    number = "seq" if project.dialect != "postgresql" else "seq"
    parameters = {"rows": rows} if project.dialect == "postgresql" else {}
    project.query(f"INSERT INTO items SELECT {number}, {number} % 1000, repeat('x', 200) FROM {numbers}", **parameters)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+pg8000"])
def test_a_concurrent_index_says_what_it_waits_for(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = new_url("postgresql")
    project = make_project(plain, config_of(plain, driver))
    made(project)
    project.write(INDEX)
    app, smart = project.app(DB_SMART_BOOT="background", DB_SMART_DDL_LOCK_TIMEOUT=60)
    told: list[dict[str, Any]] = []

    def listen(_: Flask, **values: Any) -> None:
        told.append(values)

    caplog.set_level(logging.INFO, "aurum_harmony.db_smart")
    client = app.test_client()
    with statement_progress.connected_to(listen, sender=app):
        with old_transaction(plain):
            smart.boot(app)
            ready = wait_until(lambda: (found := client.get(READY).get_json())["progress"] and found)
            assert ready["migration"] == "add_index"
            assert ready["progress"] == {
                "done": 0,
                "total": 1,
                "rate": 0.0,
                "eta_s": None,
                "unit": "transactions",
                "phase": ready["progress"]["phase"],
            }
            assert ready["progress"]["phase"].startswith("waiting for ")
            status = project.run("status").output
            assert re.search(r"statement +add_index: waiting for .*: 0 of 1 transactions", status), status
            found = json.loads(project.run("status", "--json").output)
            assert found["progress"]["unit"] == "transactions"
            assert "{" not in found["lock"]["holder"]
            assert "[" not in found["lock"]["holder"]
        state = smart._state(app)
        wait_until(lambda: state.background is not None and state.background.done)
    assert {(one["migration"], one["database"]) for one in told} == {("add_index", "default")}
    assert told[0]["total"] == 1
    assert (told[-1]["phase"], told[-1]["done"], told[-1]["total"]) == ("", 1, 1)
    assert "'add_index' has been at a statement for" in caplog.text
    assert project.query("SELECT holder FROM db_smart_state") == [("",)]
    project.dispose(app)


def test_a_copy_of_a_table_on_mariadb(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    project = make_project(new_url("mariadb"))
    made(project, 300_000)
    project.write(COPY)
    app, smart = project.app()
    told: list[dict[str, Any]] = []

    def listen(_: Flask, **values: Any) -> None:
        told.append(values)

    with statement_progress.connected_to(listen, sender=app), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_EVERY", 0.05)
        smart.boot(app)
    percents = [one["done"] for one in told if one["phase"]]
    assert percents == sorted(percents)
    assert len(set(percents)) > 3
    assert 0 < percents[-1] <= 100
    assert {one["unit"] for one in told if one["phase"]} == {"%"}
    assert any(one["eta"] for one in told)
    project.dispose(app)


def test_behind_pgbouncer(pgbouncer: URL, make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    """Where the session of a statement in autocommit is not known, its text tells."""
    direct = new_url("postgresql")
    project = make_project(pgbouncer.set(database=direct.database))
    made(project)
    project.write(INDEX)
    app, smart = project.app(DB_SMART_BOOT="background", DB_SMART_DDL_LOCK_TIMEOUT=60)
    client = app.test_client()
    with old_transaction(direct):
        smart.boot(app)
        wait_until(lambda: client.get(READY).get_json()["progress"])
    state = smart._state(app)
    wait_until(lambda: state.background is not None and state.background.done)
    project.dispose(app)


def test_only_what_this_run_has_sent(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    """While another session builds an index, a migration that sleeps says nothing."""
    url = new_url("postgresql")
    project = make_project(url)
    made(project)
    project.write("@migration\ndef sleep(op):\n    op.execute('SELECT pg_sleep(2.5)')\n")
    app, smart = project.app()
    told: list[object] = []

    def listen(_: Flask, **values: Any) -> None:
        told.append(values)

    other = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")

    def build() -> None:
        with other.connect() as connection:
            connection.execute(sa.text("CREATE INDEX CONCURRENTLY ix_other ON items (n)"))

    with old_transaction(url), statement_progress.connected_to(listen, sender=app):
        thread = threading.Thread(target=build)
        thread.start()
        wait_until(lambda: project.query("SELECT 1 FROM pg_stat_progress_create_index"))
        smart.boot(app)
        assert project.query("SELECT 1 FROM pg_stat_progress_create_index")
    thread.join()
    assert told == []
    project.dispose(app)


def test_the_bar(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    """Where the output is no terminal, lines on standard error say it."""
    url = new_url("postgresql")
    project = make_project(url, {"DB_SMART_DDL_LOCK_TIMEOUT": 60})
    made(project)
    project.write(INDEX)
    results = []
    with old_transaction(url):
        thread = threading.Thread(target=lambda: results.append(project.run("migrate")))
        thread.start()
        wait_until(lambda: "[" in project.query("SELECT holder FROM db_smart_state")[0][0])
    thread.join()
    assert results[0].exit_code == 0
    assert re.search(r"^  add_index: waiting for .*: 0 of 1 transactions$", results[0].stderr, re.MULTILINE)


def test_what_the_row_says() -> None:
    doing = Doing("building index: scanning table", "blocks", 12, 40, 3.5)
    assert holder_in(holder_text("web-1:17", doing)) == ("web-1:17", doing)
    assert holder_text("web-1:17", None) == "web-1:17"
    long = "h" * 240 + ":1"
    assert holder_text(long, doing) == long
    for name in ("", "web-1:17", "web [1]:17", 'web ["a", "b", 1e999, 1, 1]', "web [[[["):
        assert holder_in(name) == (name, None)


def test_the_text() -> None:
    for doing, said in (
        (
            Doing("scanning table", "blocks", 12_000, 40_000, 2_000),
            "12,000 of 40,000 blocks, 2,000 blocks/s, about 14 s left",
        ),
        (Doing("copy to tmp table", "%", 42, 100, 2), "42 %, about 29 s left"),
    ):
        assert str(Progress.of_statement("m", doing)) == f"m: {doing.phase}: {said}"
    assert str(Progress.of_statement("m", Doing("sorting", "rows", 0, 0, 0))) == "m: sorting"
    assert Progress.of_statement(None, Doing("sorting", "rows", 0, 0, 0)) is None
    assert Progress.of_statement("m", None) is None
