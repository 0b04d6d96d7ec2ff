"""``@migration(background=True)``: boot does not wait for it, and a thread runs it while requests are served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import ConfigError, DbSmart, MigrationFailed, settings, threads
from aurum_harmony.db_smart.boot import background
from aurum_harmony.db_smart.boot.planner import Planner
from aurum_harmony.db_smart.interrupt import GiveWay
from aurum_harmony.db_smart.runner import DatabaseRun, Runner
from aurum_harmony.db_smart.schema import backfill
from aurum_harmony.db_smart.settings import Settings
from aurum_harmony.db_smart.signals import migration_applied, migration_progress, migration_started
from aurum_harmony.db_smart.store import history
from aurum_harmony.db_smart.store.database import begin
from aurum_harmony.db_smart.store.lock import lock_of
from tests.harness.project import Project
from tests.harness.servers import role, wait_until
from tests.harness.snapshots import taken

TOKEN = "correct horse battery staple"
ITEMS = """
@migration
def items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("n", Integer))
"""
FILL = """
@migration(background=True)
def fill(op):
    import pathlib, time
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
    op.backfill("items", {{"n": 1}}, where="n IS NULL", batch_seconds=0.0001)
"""
SHORT = """
@migration(background=True)
def fill(op):
    op.backfill("items", {"n": 1}, where="n IS NULL", batch_seconds=0.0001)
"""
AFTER = """
@migration
def after(op):
    op.add_column("items", Column("after", Integer))
"""


@pytest.fixture
def filled(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """With a table of fifty rows that lack a value; a backfill begins with batches of ten."""
    monkeypatch.setattr(backfill, "_FIRST", 10)
    project.write(ITEMS)
    project.boot()
    for number in range(1, 51):
        project.query("INSERT INTO items (id) VALUES (:id)", id=number)
    return project


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the lock to others after each batch, and take it back at once."""
    monkeypatch.setattr(threads, "_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(background, "_AWAY", 0.0)
    monkeypatch.setattr(settings, "_IDLE_AWAY", 0.0)


def ended(app: Flask, smart: DbSmart) -> None:
    """Wait until the thread is done."""
    state = smart._state(app)
    wait_until(lambda: state.later is not None and state.later.done, seconds=20)


def lacking(project: Project) -> int:
    return int(project.query("SELECT COUNT(*) FROM items WHERE n IS NULL")[0][0])


@pytest.mark.parametrize("mode", ["migrate", "background"])
def test_boot_and_requests_do_not_wait(filled: Project, gate: Path, mode: str) -> None:
    filled.write(ITEMS + FILL.format(gate=str(gate)) + AFTER)
    app, smart = filled.app(DB_SMART_BOOT=mode, DB_SMART_TOKEN=TOKEN)
    report = smart.boot(app)
    client = app.test_client()
    if mode == "migrate":
        assert report.applied == ("after",)
    wait_until(lambda: client.get("/_db-smart/ready").status_code == 200)
    assert client.get("/").text == "served"
    with app.app_context():
        assert smart.applied("after")
        assert not smart.applied("fill")
        with pytest.raises(ConfigError, match="There is no migration 'full'"):
            smart.applied("full")
    pending = filled.run("status").output
    assert "Flag: not valid" in pending
    assert "pending  fill  new, in the background at boot" in pending
    assert "will not migrate" in pending
    told = json.loads(filled.run("status", "--json").output)["databases"][0]["pending"]
    assert told == [{"name": "fill", "reason": "new", "background": True}]
    assert client.get("/_db-smart/ready").get_json()["background"] == ["fill"]
    assert (
        "new, in the background at boot" in client.get("/_db-smart/", headers={"Authorization": f"Bearer {TOKEN}"}).text
    )
    gate.touch()
    ended(app, smart)
    assert "background" not in client.get("/_db-smart/ready").get_json()
    with app.app_context():
        smart._state(app).applied.clear()  # what was asked within the last second
        assert smart.applied("fill")
    assert lacking(filled) == 0
    assert filled.history()[1:] == [("after", "applied"), ("fill", "applied")]
    filled.dispose(app)
    assert filled.boot().decision == "skipped"


def test_commands_while_it_is_left(filled: Project) -> None:
    """Each does what it does with any other pending migration."""
    filled.write(ITEMS + SHORT)
    planned = json.loads(filled.run("migrate", "--dry-run", "--json").output)["pending"]
    assert [(one["name"], one["background"]) for one in planned] == [("fill", True)]
    assert "fill  new, in the background at boot  (default)" in filled.run("migrate", "--dry-run").output
    assert "UPDATE" in filled.run("migrate", "--sql").output
    assert "fill" not in filled.run("history").output
    said = {
        ("lint",): "1 migration looked at: 0 errors",
        ("diff",): "counted as applied, because the next boot does so: fill.",
        ("reset-flag",): "Removed the flag",
        ("unlock", "--yes"): "there is no lock to free",
        ("new", "nothing"): "Wrote an empty migration 'nothing'",
    }
    for command, words in said.items():
        result = filled.run(*command)
        assert (result.exit_code, words in result.output) == (0, True), result.output
    filled.write(ITEMS + SHORT)  # without the new one
    stamped = filled.run("stamp", "fill", "--yes")
    assert stamped.exit_code == 0, stamped.output
    assert lacking(filled) == 50  # as a person has said that it is done
    assert filled.boot().decision == "verified"
    assert filled.history()[1:] == [("fill", "applied")]


def test_commands_while_it_runs(filled: Project, gate: Path) -> None:
    """What would write waits for it, and then says who is in the way; it goes on meanwhile."""
    filled.write(ITEMS + FILL.format(gate=str(gate)))
    app, smart = filled.app()
    smart.boot(app)
    wait_until(lambda: "migrating now" in filled.run("status").output)
    for command in (["stamp", "fill", "--yes"], ["migrate"], ["unlock", "--yes"]):
        result = filled.run(*command, DB_SMART_LOCK_TIMEOUT=0)
        assert result.exit_code != 0
        assert "is being migrated by" in result.output
    if filled.dialect == "sqlite":
        result = filled.run("restore", "--yes", taken(filled)[-1].path.name, DB_SMART_LOCK_TIMEOUT=0)
        assert result.exit_code != 0
        assert "is being migrated by" in result.output
    assert filled.run("reset-flag").exit_code == filled.run("history").exit_code == 0
    gate.touch()
    ended(app, smart)
    filled.dispose(app)
    assert filled.history()[1:] == [("fill", "applied")]
    assert lacking(filled) == 0


def test_it_gives_the_lock_to_others(filled: Project, gate: Path, quick: None) -> None:
    """After each batch; nothing is done twice, and another boot comes in between."""
    gate.touch()
    filled.write(ITEMS + FILL.format(gate=str(gate)).replace('{"n": 1}', '{"n": text("COALESCE(n, 0) + 1")}'))
    app, smart = filled.app()
    smart.boot(app)
    ended(app, smart)
    filled.dispose(app)
    assert filled.query("SELECT DISTINCT n FROM items") == [(1,)]
    assert filled.history()[1:] == [("fill", "applied")]


def test_how_long_it_took_is_the_whole(filled: Project, quick: None) -> None:
    """Of all its parts, whoever ran them; not of the last one alone."""
    source = (
        ITEMS
        + """
@migration(background=True)
def fill(op):
    import time
    op.backfill("items", {"n": 1}, where="n IS NULL", batch_seconds=0.0001, pause=lambda: time.sleep(0.2))
"""
    )
    filled.write(source)
    runs: list[float] = []
    app, smart = filled.app()

    def tell(_: Flask, **values: Any) -> None:
        runs.append(values["duration"])

    migration_applied.connect(tell, app)
    began = time.perf_counter()
    smart.boot(app)
    ended(app, smart)
    whole = time.perf_counter() - began
    filled.dispose(app)
    ((milliseconds,),) = filled.query("SELECT duration_ms FROM db_smart_history WHERE name = 'fill'")
    # Five batches and more, each after a rest of 0.2 s.
    assert 1 < milliseconds / 1000 < whole
    assert runs == [pytest.approx(milliseconds / 1000, abs=0.001)]


def test_a_later_release_does_not_wait_for_it(filled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(settings, "_IDLE_AWAY", 0.0)
    again, left = threading.Event(), threading.Event()
    real = time.sleep

    def sleep(seconds: float) -> None:
        if seconds == background._AWAY:
            left.set()
            again.wait(30)
        else:
            real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    filled.write(ITEMS + SHORT)
    app, smart = filled.app()
    smart.boot(app)
    assert left.wait(30)
    assert 0 < lacking(filled) < 50
    filled.write(ITEMS + SHORT + AFTER)
    other, newer = filled.app()
    assert newer.boot(other).applied == ("after",)
    again.set()
    ended(app, smart)
    ended(other, newer)
    assert lacking(filled) == 0
    assert sorted(filled.history()[1:]) == [("after", "applied"), ("fill", "applied")]
    filled.dispose(app)
    filled.dispose(other)


def test_a_command_runs_it(filled: Project, gate: Path) -> None:
    gate.touch()
    filled.write(ITEMS + FILL.format(gate=str(gate)))
    result = filled.run("migrate")
    assert result.exit_code == 0, result.output
    assert lacking(filled) == 0
    assert filled.boot().decision == "skipped"


def test_who_only_checks_does_not_stop_for_it(filled: Project, gate: Path) -> None:
    filled.write(ITEMS + FILL.format(gate=str(gate)))
    app, smart = filled.app(DB_SMART_BOOT="check")
    assert smart.boot(app).decision == "verified"
    assert app.test_client().get("/").text == "served"
    assert smart._state(app).later is None
    filled.dispose(app)


def test_it_fails_and_is_tried_again(filled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_PAUSES", (0.05, 0.1))
    filled.write(ITEMS + "@migration(background=True)\ndef fill(op): op.execute('INSERT INTO needed VALUES (1)')\n")
    app, smart = filled.app()
    smart.boot(app)
    state = smart._state(app)
    wait_until(lambda: state.later is not None and state.later.failure is not None)
    assert app.test_client().get("/").text == "served"
    filled.query("CREATE TABLE needed (id INTEGER)")
    ended(app, smart)
    filled.dispose(app)
    assert filled.query("SELECT id FROM needed") == [(1,)]


def test_the_first_run_of_all(project: Project, gate: Path) -> None:
    gate.touch()
    project.write(ITEMS + FILL.format(gate=str(gate)))
    app, smart = project.app()
    assert smart.boot(app).applied == ("items",)
    ended(app, smart)
    assert project.history() == [("items", "applied"), ("fill", "applied")]
    project.dispose(app)
    assert project.boot().decision == "skipped"


OLD_NAMES = """
@migration
def items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("first", String(20)))
    op.add_column("items", Column("name", String(20)))

@migration(background=True)
def fill(op):
    op.backfill("items", {"name": text("first")}, where="name IS NULL")

@migration(background=True)
def clear(op):
    op.backfill("items", {"first": None})

@migration(contract=True)
def copy_and_drop(op):
    op.execute("UPDATE items SET name = first WHERE name IS NULL")
    op.drop_column("items", "first")
"""


def test_on_a_new_database_what_the_models_no_longer_have_is_left_out(project: Project) -> None:
    """In the first run it would be; and what comes with a later release is not."""

    def models(db: SQLAlchemy) -> None:
        db.Table("items", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))

    project.models = models
    project.write(OLD_NAMES)
    app, smart = project.app()
    assert smart.boot(app).applied == ("items",)
    project.query("INSERT INTO items (id, name) VALUES (1, 'kept')")
    ended(app, smart)
    project.dispose(app)
    assert project.history() == [(name, "applied") for name in ("items", "fill", "clear", "copy_and_drop")]
    assert project.query("SELECT id, name FROM items") == [(1, "kept")]
    project.write(OLD_NAMES + '\n@migration\ndef wrong(op):\n    op.execute("UPDATE items SET name = frist")\n')
    with pytest.raises(MigrationFailed, match="frist"):
        project.boot()


CAUGHT = """
@migration(background=True)
def fill(op):
    try:
        op.backfill("items", {"n": text("COALESCE(n, 0) + 1")}, where="n IS NULL", batch_seconds=0.0001)
    HANDLER
    op.execute("CREATE TABLE IF NOT EXISTS after_it (id INTEGER)")
    op.execute("INSERT INTO after_it SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM items WHERE n IS NULL)")
"""


@pytest.mark.parametrize(
    "handler",
    [
        "except:\n        pass",
        "except BaseException as error:\n        raise ValueError('not done') from error",
        "except BaseException:\n        raise ValueError('not done') from None",
        "finally:\n        op.execute('CREATE TABLE IF NOT EXISTS final (id INTEGER)')",
        "finally:\n        op.create_index('ix_items', 'items', ['n'])",
        "except BaseException:\n        op.session.execute(text('DELETE FROM items WHERE n IS NULL'))\n"
        "        op.session.commit()",
    ],
)
def test_what_catches_everything_does_not_catch_that_it_gives_way(filled: Project, quick: None, handler: str) -> None:
    filled.write(ITEMS + CAUGHT.replace("HANDLER", handler))
    app, smart = filled.app()
    smart.boot(app)
    ended(app, smart)
    filled.dispose(app)
    assert filled.query("SELECT n, COUNT(*) FROM items GROUP BY n") == [(1, 50)]
    assert filled.query("SELECT id FROM after_it") == [(1,)]
    assert filled.history()[1:] == [("fill", "applied")]


def test_each_of_several_backfills_gives_way(filled: Project, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that has fewer rows than the first one had done when this run began."""
    filled.write(
        ITEMS
        + """
@migration(background=True)
def fill(op):
    op.backfill("items", {"n": 1}, where="n IS NULL", batch_seconds=0.0001)
    op.backfill("items", {"n": 2}, where="n = 1", batch_seconds=0.0001)
"""
    )
    runs: list[int] = []
    monkeypatch.setattr(Runner, "run", _counted(Runner.run, runs))
    app, smart = filled.app()
    smart.boot(app)
    ended(app, smart)
    filled.dispose(app)
    assert filled.query("SELECT n, COUNT(*) FROM items GROUP BY n") == [(2, 50)]
    assert len(runs) > 8


def _counted(run: Any, runs: list[int]) -> Any:
    def counted(*args: Any, **more: Any) -> Any:
        runs.append(1)
        return run(*args, **more)

    return counted


def test_what_follows_a_failed_backfill_is_still_one_transaction(filled: Project) -> None:
    filled.write(
        ITEMS
        + """
def fail():
    raise LookupError

@migration
def fill(op):
    try:
        op.backfill("items", {"n": 1}, pause=fail)
    except LookupError:
        pass
    op.session.execute(text("INSERT INTO items (id) VALUES (100)"))
    op.session.commit()
    raise ValueError("not done")
"""
    )
    with pytest.raises(MigrationFailed, match="not done"):
        filled.boot()
    assert filled.query("SELECT id FROM items WHERE id = 100") == []


def test_a_boot_does_not_fail_because_it_failed(filled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it failed in another process while this one waited for the lock."""
    source = ITEMS + "@migration(background=True)\ndef fill(op): raise ValueError('not this time')\n" + AFTER
    filled.write(source)
    real = DatabaseRun._leave_failed

    def leave_failed(run: DatabaseRun, since: Any) -> None:
        fill = next(one for one in run._runner.planner.migrations if one.name == "fill")
        begin(run.connection)
        history.record(run.connection, fill.name, fill.checksum, 0.1, error="not this time")
        run.connection.commit()
        real(run, since)

    app, smart = filled.app()
    with monkeypatch.context() as patch:
        patch.setattr(DatabaseRun, "_leave_failed", leave_failed)
        patch.setattr(threads.Threads, "run_later", lambda *_: None)
        assert smart.boot(app).applied == ("after",)
    filled.dispose(app)


def test_one_run_in_parts_has_one_snapshot_and_begins_once(
    filled: Project, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.write(ITEMS + SHORT)
    app, smart = filled.app()
    told: list[str] = []

    def tell(name: str) -> Any:
        return lambda _, **values: told.append(name)

    listeners = [tell("started"), tell("applied"), tell("progress")]
    signals = (migration_started, migration_applied, migration_progress)
    for signal, listener in zip(signals, listeners, strict=True):
        signal.connect(listener, app)
    before = len(taken(filled)) if filled.dialect == "sqlite" else 0
    smart.boot(app)
    ended(app, smart)
    filled.dispose(app)
    assert told.count("started") == told.count("applied") == 1
    assert told.count("progress") > 5
    if filled.dialect == "sqlite":
        assert len(taken(filled)) == before + 1


def test_who_waits_in_the_background_leaves_the_lock_to_who_boots(filled: Project) -> None:
    app, smart = filled.app()
    patient = Settings(app)
    patient.idle = True
    with app.app_context():
        database = smart.planner(app).databases["default"]
        idle, waits = lock_of(database, patient.lock), lock_of(database, Settings(app).lock)
        with pytest.raises(GiveWay), idle.held(lambda _: False):
            raise GiveWay
        assert lock_of(database, patient.lock).try_acquire(lambda _: False) is False
        assert waits.try_acquire(lambda _: False)
        waits.release()
        assert idle.try_acquire(lambda _: False)
        idle.release()
    filled.dispose(app)


def test_it_does_not_spin_where_nobody_is_to_wait_for_the_lock(
    filled: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.write(ITEMS + SHORT)
    runs: list[int] = []
    monkeypatch.setattr(background, "_PAUSES", (0.05, 0.1))
    monkeypatch.setattr(Runner, "run", _counted(Runner.run, runs))
    app, smart = filled.app(DB_SMART_LOCK_TIMEOUT=0)
    with app.app_context():
        lock = lock_of(smart.planner(app).databases["default"], Settings(app).lock)
        with lock.held(lambda _: False):
            smart.boot(app)
            wait_until(lambda: len(runs) > 1)
            began, so_far = time.monotonic(), len(runs)
            wait_until(lambda: len(runs) > so_far + 4)
            assert time.monotonic() - began > 0.15
    ended(app, smart)
    filled.dispose(app)
    assert lacking(filled) == 0


def test_another_release_in_the_place_of_the_files_is_not_run(filled: Project, gate: Path, quick: None) -> None:
    """By the thread of the one before; a process of its own boots it."""
    filled.write(ITEMS + FILL.format(gate=str(gate)))
    app, smart = filled.app()
    smart.boot(app)
    filled.write(ITEMS + SHORT + AFTER)
    gate.touch()
    ended(app, smart)
    assert filled.history()[1:] == [("fill", "applied")]
    filled.dispose(app)
    assert filled.boot().applied == ("after",)


def test_applied_says_each_time_that_there_is_no_such_migration(filled: Project) -> None:
    app, smart = filled.app()
    smart.boot(app)
    with app.app_context():
        for _ in range(3):
            with pytest.raises(ConfigError, match="There is no migration 'itmes'"):
                smart.applied("itmes")
        assert smart.applied("items")
    filled.dispose(app)
    with pytest.raises(RuntimeError, match="application context"):
        smart.applied("items")


def test_applied_asks_once_a_second_over_all_threads(filled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.write(ITEMS + FILL.format(gate="/nowhere/gate"))
    app, smart = filled.app(DB_SMART_BOOT="check")
    smart.boot(app)
    asked: list[str] = []
    real = Planner.was_applied

    def was_applied(planner: Planner, name: str) -> bool:
        asked.append(name)
        return real(planner, name)

    monkeypatch.setattr(Planner, "was_applied", was_applied)
    together = threading.Barrier(16)

    def ask() -> None:
        together.wait()
        with app.app_context():
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                assert not smart.applied("fill")

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    filled.dispose(app)
    assert 1 <= len(asked) <= 2


def test_applied_is_one_query_by_an_index(filled: Project) -> None:
    """Also before boot, and on a history of an earlier release once something has been applied to it."""
    filled.query("DROP INDEX ix_db_smart_history_name" + (" ON db_smart_history" if filled.dialect == "mysql" else ""))
    filled.write(ITEMS + AFTER)
    filled.boot()
    engine = sa.create_engine(filled.url, poolclass=sa.pool.NullPool)
    assert [one["name"] for one in sa.inspect(engine).get_indexes("db_smart_history")] == ["ix_db_smart_history_name"]
    filled.write(ITEMS + AFTER + SHORT)
    app, smart = filled.app()
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        with app.app_context():
            assert smart.applied("after")
            for _ in range(5):
                assert not smart.applied("fill")
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    filled.dispose(app)
    assert len(sent) == 2, sent
    if filled.dialect == "sqlite":
        plan = str(filled.query(f"EXPLAIN QUERY PLAN {sent[1]}".replace("?", "'x'")))
        assert "USING INDEX ix_db_smart_history_name" in plan


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_applied_for_a_role_that_may_not_read(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and not each second."""
    url = new_url(dialect)
    project = make_project(url)
    project.write(ITEMS)
    project.boot()
    with role(url) as weak:
        app, smart = project.app(SQLALCHEMY_DATABASE_URI=weak, DB_SMART_BOOT="off")
        with app.app_context():
            for _ in range(4):
                assert not smart.applied("items")
                smart._state(app).applied.clear()  # a second has passed
        project.dispose(app)
    said = [one.getMessage() for one in caplog.records if "it is not known" in one.getMessage()]
    assert len(said) == 1
    assert "needs the right to read" in said[0] or "denied" in said[0]


@pytest.mark.parametrize("spelled", ["alike", "otherwise"])
def test_two_names_of_one_database(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], url: URL, spelled: str
) -> None:
    """Each has its own, and both are applied once to what is one database, also as localhost and as 127.0.0.1."""
    again = url
    if spelled == "otherwise":
        if url.host is not None:
            again = url.set(host="localhost")
        elif "host" in url.query:  # a socket
            again = url.update_query_dict({"host": f"{url.query['host']}/."})
        else:
            path = Path(url.database or "")
            again = url.set(database=f"{path.parent}/./{path.name}")
        assert again != url
    project = make_project(url, {"SQLALCHEMY_BINDS": {"again": again, "other": new_url("sqlite")}})
    project.write(
        ITEMS
        + "@migration(background=True)\ndef one(op): op.execute('INSERT INTO items (id) VALUES (1)')\n"
        + "@migration(background=True, database='again')\n"
        + "def two(op): op.execute('INSERT INTO items (id) VALUES (2)')\n"
        + "@migration(background=True, database='other')\ndef three(op): op.create_table('x', Column('id', Integer))\n"
    )
    app, smart = project.app()
    smart.boot(app)
    ended(app, smart)
    with app.app_context():
        assert all(smart.applied(name) for name in ("items", "one", "two", "three"))
    project.dispose(app)
    assert project.query("SELECT id FROM items ORDER BY id") == [(1,), (2,)]
    assert sorted(project.history()) == [("items", "applied"), ("one", "applied"), ("two", "applied")]
    assert project.boot().decision == "skipped"


def test_the_next_process_asks_only_the_state_row(filled: Project, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves before it imports a migration; its thread finds out what is left."""
    monkeypatch.setattr(settings, "_IDLE_PAUSES", (0.05, 0.1))
    filled.write(ITEMS + FILL.format(gate=str(gate)) + AFTER)
    app, smart = filled.app()
    smart.boot(app)
    other, others = filled.app()
    planner = others.planner(other)
    with other.app_context():
        assert planner.by_row() is None
        found = planner.by_row(leaving=True)
    assert found is not None
    assert [plan.later for plan in found] == [True]
    assert "migrations" not in vars(planner)
    assert others.boot(other).decision == "verified"
    client = other.test_client()
    wait_until(lambda: client.get("/_db-smart/ready").get_json().get("background") == ["fill"])
    gate.touch()
    ended(app, smart)
    ended(other, others)
    filled.dispose(other)
    filled.dispose(app)
    assert filled.boot().decision == "skipped"
