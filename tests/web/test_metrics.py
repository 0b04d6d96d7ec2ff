"""``metrics``: what Prometheus gets."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import MigrationFailed
from tests.harness.project import Project
from tests.harness.servers import role, wait_until

parser = pytest.importorskip("prometheus_client.parser")

TOKEN = "a token that nobody can guess"
PATH = "/_db-smart/metrics"
TWO = """
@migration
def first(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("n", Integer))

@migration
def second(op):
    op.add_column("items", Column("size", Integer))
"""
THIRD = """
@migration
def third(op):
    import pathlib, time
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
"""
Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
Samples = dict[tuple[str, ...], float]


def scraped(app: Flask) -> Samples:
    """The samples of a scrape: the name and the values of the labels, in the order of their names."""
    response = app.test_client().get(PATH, headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200, response.text
    assert response.headers["Cache-Control"] == "no-store"
    return {
        (one.name.removeprefix("db_smart_"), *(one.labels[name] for name in sorted(one.labels))): one.value
        for family in parser.text_string_to_metric_families(response.text)
        for one in family.samples
    }


def fresh(app: Flask, smart: Any) -> Samples:
    """As :func:`scraped`, whatever was asked within the last second."""
    smart._state(app).metrics = None
    return scraped(app)


def test_all_of_them(project: Project) -> None:
    project.write(TWO)
    app, smart = project.app(DB_SMART_TOKEN=TOKEN)
    smart.boot(app)
    found = scraped(app)
    assert found.pop(("migration_seconds", "default", "first")) > 0
    assert found.pop(("migration_seconds", "default", "second")) > 0
    assert found.pop(("boot_seconds", "migrated")) > 0
    same = {
        ("ready",): 1.0,
        ("migrations_pending", "default"): 0.0,
        ("migrations_total", "default", "applied"): 2.0,
        ("migrations_total", "default", "failed"): 0.0,
        ("lock_wait_seconds",): 0.0,
        ("drift", "default", "table"): 0.0,
        ("drift", "default", "column"): 0.0,
    }
    assert found == same
    project.dispose(app)
    other, smart = project.app(DB_SMART_TOKEN=TOKEN)
    assert smart.boot(other).decision == "skipped"
    found = scraped(other)
    assert ("boot_seconds", "skipped") in found
    assert {name: value for name, value in found.items() if name in same} == same
    project.dispose(other)


def test_failures_stamps_and_what_is_pending(project: Project) -> None:
    project.write(TWO)
    project.boot()
    project.write(TWO + "\n@migration\ndef third(op):\n    raise ValueError('no')\n")
    with pytest.raises(MigrationFailed):
        project.boot()
    app, smart = project.app(DB_SMART_TOKEN=TOKEN, DB_SMART_BOOT="check")
    found = scraped(app)
    assert found["ready",] == 0
    assert found["migrations_pending", "default"] == 1
    assert found["migrations_total", "default", "failed"] == 1
    assert not any(name[0] == "drift" for name in found)
    assert project.run("stamp", "third", "--yes").exit_code == 0
    found = fresh(app, smart)
    assert found["migrations_pending", "default"] == 0
    assert found["migrations_total", "default", "stamped"] == 1
    assert found["migrations_total", "default", "applied"] == 2
    assert ("migration_seconds", "default", "third") not in found
    project.dispose(app)


def test_a_lock_that_is_held(project: Project, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    project.write(TWO + THIRD.format(gate=str(gate)))
    app, smart = project.app(DB_SMART_TOKEN=TOKEN, DB_SMART_BOOT="background")
    smart.boot(app)
    wait_until(lambda: fresh(app, smart).get(("migrations_pending", "default")) == 1)
    first = fresh(app, smart)["lock_wait_seconds",]
    assert first > 0
    assert fresh(app, smart)["lock_wait_seconds",] > first
    assert fresh(app, smart)["ready",] == 0
    gate.touch()
    wait_until(lambda: fresh(app, smart)["ready",] == 1)
    found = fresh(app, smart)
    assert found["lock_wait_seconds",] == 0
    assert found["migrations_pending", "default"] == 0
    project.dispose(app)


def test_drift(project: Project) -> None:
    def models(db: Any) -> None:
        class Item(db.Model):  # type: ignore[misc]
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(20))

        class Other(db.Model):  # type: ignore[misc]
            id = sa.Column(sa.Integer, primary_key=True)

    project.models = models
    project.write("@migration\ndef first(op):\n    pass\n")
    project.boot()
    project.query("DROP TABLE other")
    project.query("ALTER TABLE item DROP COLUMN name")
    app, _ = project.app(DB_SMART_TOKEN=TOKEN, DB_SMART_BOOT="off")
    found = scraped(app)
    assert (found["drift", "default", "table"], found["drift", "default", "column"]) == (1, 1)
    project.dispose(app)


def test_how_far_a_backfill_is(project: Project) -> None:
    project.query("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER)")
    project.query("INSERT INTO items VALUES " + ", ".join(f"({number}, 1)" for number in range(1, 2_501)))
    project.write("""
    @migration
    def fill(op):
        seen = []
        @op.batches("items")
        def each(rows):
            seen.append(1 if not seen else 1 / 0)
    """)
    with pytest.raises(MigrationFailed):
        project.boot()
    app, _ = project.app(DB_SMART_TOKEN=TOKEN, DB_SMART_BOOT="off")
    found = scraped(app)
    assert found["progress_rows", "done", "fill"] == 1_000
    assert found["progress_rows", "total", "fill"] > 0
    project.dispose(app)


def test_how_far_a_statement_is(make_project: Make, new_url: NewUrl) -> None:
    url = new_url("postgresql")
    project = make_project(url)
    project.query("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER)")
    project.query("INSERT INTO items VALUES (1, 1)")
    project.write('@migration\ndef add_index(op):\n    op.create_index("ix_n", "items", ["n"])\n')
    app, smart = project.app(DB_SMART_TOKEN=TOKEN, DB_SMART_BOOT="background", DB_SMART_DDL_LOCK_TIMEOUT=60)
    with sa.create_engine(url, poolclass=sa.pool.NullPool).connect() as connection:
        connection.execute(sa.text("UPDATE items SET n = 2"))
        smart.boot(app)

        def ratios() -> list[tuple[tuple[str, ...], float]]:
            return [item for item in fresh(app, smart).items() if item[0][0] == "statement_progress_ratio"]

        ((name, value),) = wait_until(ratios)
        connection.rollback()
    assert name[1] == "add_index"
    assert name[2].startswith("waiting for ")
    assert value == 0
    state = smart._state(app)
    wait_until(lambda: state.background is not None and state.background.done)
    assert ratios() == []
    project.dispose(app)


@pytest.fixture
def silent() -> Any:
    """The port of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    kept.append(server.accept()[0])
            except OSError:
                pass

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in kept:
            one.close()


def test_databases_that_do_not_answer(sqlite_project: Project, silent: int) -> None:
    sqlite_project.write(TWO)
    sqlite_project.boot()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    binds = {
        "away": f"postgresql+psycopg://joe:secret@127.0.0.1:{port}/shop",
        "silent": f"postgresql+psycopg://joe:secret@127.0.0.1:{silent}/shop",
        "mute": f"mysql+pymysql://joe:secret@127.0.0.1:{silent}/shop",
    }
    app, _ = sqlite_project.app(DB_SMART_TOKEN=TOKEN, SQLALCHEMY_BINDS=binds)
    began = time.monotonic()
    found = scraped(app)
    assert time.monotonic() - began < 2.5
    assert found["migrations_pending", "default"] == 0
    assert not {"away", "silent", "mute"} & {part for name in found for part in name}
    began = time.monotonic()
    time.sleep(1)
    assert scraped(app)["migrations_pending", "default"] == 0
    assert time.monotonic() - began < 3.5
    names = [one.name for one in threading.enumerate() if one.name == "db-smart-question"]
    assert len(names) <= 2  # the silent ones are asked once, until they answer
    sqlite_project.dispose(app)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_a_user_who_may_not_read(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    url = new_url(dialect)
    project = make_project(url)
    project.write(TWO)
    project.boot()
    with role(url) as weak:
        app, _ = project.app(DB_SMART_TOKEN=TOKEN, SQLALCHEMY_DATABASE_URI=weak, DB_SMART_BOOT="off")
        assert {name[0] for name in scraped(app)} == {"ready"}
        project.dispose(app)


def test_a_big_history_is_not_read_whole(project: Project) -> None:
    project.write(TWO)
    project.boot()
    numbers = {
        "postgresql": "generate_series(1, 100000) AS s (seq)",
        "mysql": "seq_1_to_100000",
        "sqlite": "(WITH RECURSIVE s(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM s LIMIT 100000) SELECT * FROM s)",
    }[project.dialect]
    name = "concat('m', seq)" if project.dialect == "mysql" else "'m' || seq"
    project.query(
        "INSERT INTO db_smart_history (name, checksum, applied_at, duration_ms, applied_by, outcome) "
        f"SELECT {name}, 'c', '2026-01-01T00:00:00.000000', 5, 'me@here', 'applied' FROM {numbers}"
    )
    project.write(TWO + "\n@migration\ndef third(op): pass\n")
    app, smart = project.app(DB_SMART_TOKEN=TOKEN, DB_SMART_BOOT="check")
    began = time.monotonic()
    found = scraped(app)
    assert time.monotonic() - began < 2
    assert found["migrations_total", "default", "applied"] == 100_002
    assert found["migrations_pending", "default"] == 1
    assert len([1 for one in found if one[0] == "migration_seconds"]) == 1_000
    sent: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        sent.append(statement)

    smart._state(app).metrics._asked = float("-inf")
    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        assert scraped(app) == found
        few = len(sent)
        assert scraped(app) == found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert few == len(sent)  # within a second nothing is asked
    assert few <= 4, sent
    project.dispose(app)


def test_who_may_see_them(sqlite_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_project.write(TWO)
    app, smart = sqlite_project.app()
    smart.boot(app)
    assert app.test_client().get(PATH).status_code == 404
    sqlite_project.dispose(app)
    app, smart = sqlite_project.app(DB_SMART_TOKEN=TOKEN)
    smart.boot(app)
    client, right = app.test_client(), {"Authorization": f"Bearer {TOKEN}"}
    assert client.get(PATH).status_code == 401
    assert client.get(PATH, headers={"Authorization": "Bearer wrong"}).status_code == 401
    response = client.get(PATH, headers=right)
    assert response.content_type.startswith("text/plain; version=")
    response = client.get(PATH, headers={**right, "Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.content_type.startswith("application/openmetrics-text; version=")
    assert response.text.endswith("# EOF\n")
    assert 'db_smart_migrations_total{database="default",outcome="applied"} 2.0' in response.text
    assert client.head(PATH, headers=right).status_code == 200
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    response = client.get(PATH, headers=right)
    assert response.status_code == 404
    assert response.get_json()["error"].startswith("metrics need the package prometheus-client: pip install")
    assert "prometheus" not in client.get(PATH).text
    sqlite_project.dispose(app)


def test_labels_are_escaped(sqlite_project: Project, tmp_path: Path) -> None:
    name = 'a "b" \\ c\nd{}'
    sqlite_project.write(f"@migration(database={name!r})\ndef first(op): pass\n")
    app, smart = sqlite_project.app(DB_SMART_TOKEN=TOKEN, SQLALCHEMY_BINDS={name: f"sqlite:///{tmp_path}/other.sqlite"})
    smart.boot(app)
    found = scraped(app)
    assert found["migrations_total", name, "applied"] == 1
    assert found["migration_seconds", name, "first"] > 0
    sqlite_project.dispose(app)


def test_a_database_in_memory_has_no_samples(make_project: Make) -> None:
    project = make_project("sqlite://")
    project.write(TWO)
    app, smart = project.app(DB_SMART_TOKEN=TOKEN)
    smart.boot(app)
    assert {name[0] for name in scraped(app)} == {"ready", "boot_seconds"}
    assert scraped(app)["ready",] == 1
    project.dispose(app)
