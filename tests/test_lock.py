"""One migrating process at a time: the lease, the file lock, and those who wait."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import history
from aurum_harmony.db_smart.database import Database, begin
from aurum_harmony.db_smart.errors import LeaseLost, LockHeld, LockTimeout
from aurum_harmony.db_smart.history import State
from aurum_harmony.db_smart.lock import Lock, lock_of
from aurum_harmony.db_smart.settings import LockSettings

from .conftest import Project
from .test_boot import V1

ROOT = Path(__file__).parent.parent


def pending(_: State) -> bool:
    """There is always something left to do."""
    return False


@pytest.fixture
def make_lock(url: URL) -> Callable[..., Lock]:
    """Locks of one database, each as another process has it."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with Database("default", None, engine).connect() as connection:
        history.create_state(connection)

    def make(timeout: float = 30, lease: float = 10) -> Lock:
        return lock_of(Database("default", None, engine), LockSettings(timeout, lease))

    return make


@pytest.fixture(params=["postgresql", "mariadb"])
def make_lease(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> Callable[..., Lock]:
    engine = sa.create_engine(new_url(request.param), poolclass=sa.pool.NullPool)
    with Database("default", None, engine).connect() as connection:
        history.create_state(connection)

    def make(timeout: float = 30, lease: float = 10) -> Lock:
        return lock_of(Database("default", None, engine), LockSettings(timeout, lease))

    return make


def test_one_holds_it_and_the_next_gets_it_afterwards(make_lock: Callable[..., Lock]) -> None:
    first, second = make_lock(), make_lock()
    assert second.holder() is None
    assert first.try_acquire(pending) is True
    assert second.try_acquire(pending) is False
    holder = second.holder()
    assert holder is not None
    assert holder.name.endswith(f":{os.getpid()}")
    first.release()
    assert second.holder() is None
    assert second.try_acquire(pending) is True
    second.release()


def test_a_waiter_is_told_who_holds_it_and_gives_up_in_time(
    make_lock: Callable[..., Lock], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aurum_harmony.db_smart")
    first, second = make_lock(), make_lock(timeout=0.2)
    with (
        first.held(pending) as held,
        pytest.raises(LockTimeout, match=rf":{os.getpid()} \(since .* waited 0.2 s"),
        second.held(pending),
    ):
        pass
    assert held
    assert "waiting for" in caplog.text
    assert LockTimeout.exit_code == 3


def test_a_waiter_gets_it_as_soon_as_it_is_free(make_lock: Callable[..., Lock]) -> None:
    first, second = make_lock(), make_lock()
    entered = threading.Event()

    def wait() -> None:
        with second.held(pending) as held:
            assert held
            entered.set()

    assert first.try_acquire(pending)
    thread = threading.Thread(target=wait)
    thread.start()
    assert not entered.wait(0.2)
    first.release()
    assert entered.wait(10)
    thread.join()


def test_a_lease_outlives_its_length_by_its_heartbeat(make_lease: Callable[..., Lock]) -> None:
    first, second = make_lease(lease=0.5), make_lease(timeout=1.5)
    with first.held(pending), pytest.raises(LockTimeout), second.held(pending):
        pass


def test_who_lost_the_lease_cannot_record(make_lease: Callable[..., Lock]) -> None:
    first, second = make_lease(lease=0.3), make_lease()
    assert first.try_acquire(pending)
    first._stop.set()  # type: ignore[attr-defined]  # what a stopped process does not send
    first._wake.set()  # type: ignore[attr-defined]
    with second.held(pending):
        with first.database.connect() as connection:
            begin(connection)
            with pytest.raises(LeaseLost, match="another one has taken it"):
                first.confirm(connection)
            connection.rollback()
            begin(connection)
            second.confirm(connection)
            connection.commit()
        first.release()
        assert first.holder() is not None  # the second's, untouched


def test_who_waits_while_the_work_is_done_takes_no_lock(make_lease: Callable[..., Lock]) -> None:
    with make_lease().held(lambda state: state.databases == ()) as held:
        assert held is False


def test_unlock_frees_only_what_is_left_behind(make_lease: Callable[..., Lock]) -> None:
    first, second = make_lease(lease=3), make_lease(lease=3)
    assert second.left_behind() is None
    with first.held(pending), pytest.raises(LockHeld, match="heartbeat is alive"):
        second.left_behind()
    assert first.holder() is None
    dead = make_lease(lease=60)
    assert dead.try_acquire(pending)
    dead._stop.set()  # type: ignore[attr-defined]
    dead._wake.set()  # type: ignore[attr-defined]
    assert second.left_behind() == f"{os.uname().nodename}:{os.getpid()}"
    assert second.free()
    assert second.holder() is None
    with dead.database.connect() as connection:
        begin(connection)
        with pytest.raises(LeaseLost):
            dead.confirm(connection)


def test_unlock_leaves_a_living_file_lock(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot()
    engine = sa.create_engine(sqlite_project.url, poolclass=sa.pool.NullPool)
    lock = lock_of(Database("default", None, engine), LockSettings())
    with lock.held(pending):
        result = sqlite_project.run("unlock", "--yes")
        assert result.exit_code == 1
        assert "which is alive" in result.output
        status = json.loads(sqlite_project.run("status", "--json").stdout)
        assert status["lock"]["holder"].endswith(f":{os.getpid()}")
        assert status["databases"][0]["lock"] == status["lock"]
    assert "nothing to free" in sqlite_project.run("unlock").output
    assert json.loads(sqlite_project.run("status", "--json").stdout)["lock"] is None


def test_migrate_exits_3_when_another_one_migrates(project: Project) -> None:
    project.write(V1)
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    database = Database("default", None, engine)
    if project.dialect != "sqlite":
        with database.connect() as connection:
            history.create_state(connection)
    with lock_of(database, LockSettings()).held(pending):
        result = project.run("migrate", "--json", DB_SMART_LOCK_TIMEOUT=0.1)
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert report["result"] == "failed"
    assert report["lock"]["holder"].endswith(f":{os.getpid()}")
    assert report["lock"].keys() == {"holder", "since", "expires_at", "migration"}
    assert "is being migrated by" in result.stderr
    assert project.run("migrate").exit_code == 0


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.errors import DbSmartError
app = Flask("child", instance_path=sys.argv[3])
app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[4], DB_SMART_LEASE_SECONDS=1)
db = SQLAlchemy(app)
smart = DbSmart(app, db, migrations=sys.argv[2])
try:
    print(smart.boot(app).decision, flush=True)
except DbSmartError as error:
    print(error.message, flush=True)
    sys.exit(error.exit_code)
"""

SLOW = """
@migration
def quick(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(20)))

@migration
def slow(op):
    op.execute("INSERT INTO effects (name) VALUES ('slow')")
    import os
    if os.environ.get("GATE"):
        print("in the middle", flush=True)
        with open(os.environ["GATE"]) as gate:
            gate.read()
"""


@pytest.fixture
def start_child(project: Project, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that boots; with a gate it stops in the middle of a migration until the gate is opened."""
    project.write(SLOW)

    started: list[subprocess.Popen[str]] = []

    def start(gate: Path | None = None) -> subprocess.Popen[str]:
        url = make_url(project.url).render_as_string(hide_password=False)
        arguments = [str(project.directory), project.module, str(project.instance), url]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"GATE": str(gate)} if gate else {})}
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def in_the_middle(child: subprocess.Popen[str]) -> None:
    """Wait until a child is in the middle of its migration."""
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "in the middle\n", line + child.stderr.read() if child.stderr else line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_rolls_back_and_frees_the_lock(
    project: Project, start_child: Callable[..., subprocess.Popen[str]], gate: Path, number: signal.Signals
) -> None:
    child = start_child(gate)
    in_the_middle(child)
    child.send_signal(number)
    output, error = child.communicate(timeout=30)
    assert child.returncode == 128 + number, error
    assert output.startswith(f"Interrupted by {number.name} while migrating the database 'default'")
    assert "Traceback" not in error
    assert project.query("SELECT count(*) FROM effects") == [(0,)]
    assert json.loads(project.run("status", "--json").stdout)["lock"] is None
    assert project.boot().applied == ("slow",)
    assert project.query("SELECT name FROM effects") == [("slow",)]


def test_a_stopped_holder_records_nothing_when_it_wakes(
    start_child: Callable[..., subprocess.Popen[str]], gate: Path, project: Project
) -> None:
    if project.dialect == "sqlite":
        # A file lock stays with a stopped process: the others wait, and then have nothing to do.
        child = start_child(gate)
        in_the_middle(child)
        child.send_signal(signal.SIGSTOP)
        other = start_child()
        child.send_signal(signal.SIGCONT)
        gate.write_text("")
        assert child.communicate(timeout=30)[0] == "migrated\n"
        assert other.communicate(timeout=30)[0] in ("verified\n", "skipped\n")
    else:
        child = start_child(gate)
        in_the_middle(child)
        child.send_signal(signal.SIGSTOP)
        other = start_child()
        deadline = time.monotonic() + 30
        while project.query("SELECT token FROM db_smart_state") == [(1,)] and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        child.send_signal(signal.SIGCONT)
        gate.write_text("")
        output, error = child.communicate(timeout=60)
        assert "another one has taken it" in output, error
        assert child.returncode == 1
        assert other.communicate(timeout=60)[0] == "migrated\n"
    assert project.query("SELECT name FROM effects") == [("slow",)]
    assert project.history() == [("quick", "applied"), ("slow", "applied")]


def test_a_killed_holder_is_followed_by_the_next(
    start_child: Callable[..., subprocess.Popen[str]], gate: Path, project: Project
) -> None:
    child = start_child(gate)
    in_the_middle(child)
    waiters = [start_child() for _ in range(3)]
    child.kill()
    child.communicate(timeout=30)
    decisions = [waiter.communicate(timeout=60)[0] for waiter in waiters]
    assert decisions.count("migrated\n") == 1, decisions
    assert set(decisions) <= {"migrated\n", "verified\n", "skipped\n"}
    assert project.query("SELECT name FROM effects") == [("slow",)]


def run_module(module: str, url: URL | str, *options: str) -> dict[str, Any]:
    """Run one of the harnesses as a process, and return the JSON that it prints."""
    text = url if isinstance(url, str) else url.render_as_string(hide_password=False)
    result = subprocess.run(
        [sys.executable, "-m", f"tests.{module}", text, *options], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    print(f"{module} {make_url(text).get_backend_name() if '://' in text else text}: {result.stdout}")
    report: dict[str, Any] = json.loads(result.stdout)
    return {**report, "stderr": result.stderr}


def test_64_processes_boot_at_once_and_every_effect_happens_once(url: URL) -> None:
    report = run_module("herd", url)
    for round_name, effects in (("cold", 99), ("one pending", 100), ("none pending", 100)):
        result = report[round_name]
        assert (result["failed"], result["repeated"], result["effects"]) == (0, 0, effects), report
    # Nothing pending takes no lease: its token has not moved.
    assert report["none pending"]["token"] == report["one pending"]["token"]


@pytest.mark.slow
def test_a_kill_at_every_statement_boundary_loses_and_repeats_nothing(url: URL) -> None:
    report = run_module("crash", url)
    assert report["kills"] > 100
    assert_nothing_lost(report)


@pytest.mark.slow
def test_a_kill_at_every_statement_boundary_of_the_operations_changes_nothing(url: URL) -> None:
    report = run_module("crash", url, "--operations")
    assert report["kills"] > 80
    assert_nothing_lost(report)


def assert_nothing_lost(report: dict[str, Any]) -> None:
    assert (report["converged"], report["failed"]) == (report["kills"], 0), report
    assert (report["lost"], report["repeated"]) == (0, 0), report
