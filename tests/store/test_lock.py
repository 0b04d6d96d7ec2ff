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
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.boot.turn import one_boot_per_host
from aurum_harmony.db_smart.errors import LeaseLost, LockHeld, LockTimeout
from aurum_harmony.db_smart.settings import LockSettings
from aurum_harmony.db_smart.store import history
from aurum_harmony.db_smart.store.database import Database, begin
from aurum_harmony.db_smart.store.history import State
from aurum_harmony.db_smart.store.lock import Lock, lock_of
from tests.harness.processes import in_the_middle, run_harness
from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.samples import V1


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
    first, second = make_lease(lease=1.5), make_lease(timeout=4)
    with first.held(pending), pytest.raises(LockTimeout), second.held(pending):
        pass


def test_who_lost_the_lease_cannot_record(make_lease: Callable[..., Lock]) -> None:
    first, second = make_lease(lease=0.3), make_lease()
    assert first.try_acquire(pending)
    first._heart.stop()  # type: ignore[attr-defined]  # what a stopped process does not send
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
    dead._heart.stop()  # type: ignore[attr-defined]
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
    assert "no lock to free" in sqlite_project.run("unlock").output
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_rolls_back_and_frees_the_lock(
    project: Project, start_child: Callable[..., subprocess.Popen[str]], gate: Path, number: signal.Signals
) -> None:
    project.write(SLOW)
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


@pytest.mark.parametrize("url", ["mariadb"], indirect=True)
def test_a_signal_in_the_middle_of_a_statement(
    project: Project, start_child: Callable[..., subprocess.Popen[str]]
) -> None:
    """PyMySQL closes the connection then, so that the rollback fails; the signal must not be lost by that."""
    project.write("@migration\ndef sleep(op):\n    print('asleep', flush=True)\n    op.execute('SELECT SLEEP(60)')\n")
    child = start_child()
    assert child.stdout is not None
    assert child.stdout.readline() == "asleep\n"
    query = "SELECT 1 FROM information_schema.processlist WHERE db = database() AND info LIKE 'SELECT SLEEP%'"
    wait_until(lambda: project.query(query))
    child.terminate()
    assert child.communicate(timeout=30)[0].startswith("Interrupted by SIGTERM")
    assert child.returncode == 128 + signal.SIGTERM


def test_a_stopped_holder_records_nothing_when_it_wakes(
    start_child: Callable[..., subprocess.Popen[str]], gate: Path, project: Project
) -> None:
    project.write(SLOW)
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
    project.write(SLOW)
    child = start_child(gate)
    in_the_middle(child)
    waiters = [start_child() for _ in range(3)]
    child.kill()
    child.communicate(timeout=30)
    decisions = [waiter.communicate(timeout=60)[0] for waiter in waiters]
    assert decisions.count("migrated\n") == 1, decisions
    assert set(decisions) <= {"migrated\n", "verified\n", "skipped\n"}
    assert project.query("SELECT name FROM effects") == [("slow",)]


@pytest.fixture
def turns(sqlite_project: Project) -> Iterator[Callable[[float], threading.Event]]:
    """Starts boots that wait for their turn beside the flag; the event is set when it comes, or the flag holds."""
    sqlite_project.write(V1)
    threads: list[threading.Thread] = []

    def start(patience: float) -> threading.Event:
        app, smart = sqlite_project.app()
        planner, came = smart.planner(app), threading.Event()

        def wait() -> None:
            with one_boot_per_host(planner, planner.by_flag(), patience) as verdict:
                assert verdict.holds is sqlite_project.flag.exists()
                came.set()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        return came

    yield start
    for thread in threads:
        thread.join()


HOLD_TURN = """
import fcntl, sys
fcntl.flock(file := open(sys.argv[1], "w"), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_boot(project: Project) -> Iterator[subprocess.Popen[str]]:
    """A process that has the turn until it is killed."""
    project.instance.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD_TURN, f"{project.flag}.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_boot_waits_for_the_flag_of_another_one(
    sqlite_project: Project, turns: Callable[[float], threading.Event]
) -> None:
    with another_boot(sqlite_project):
        came = turns(60)
        assert not came.wait(0.3)
        app, smart = sqlite_project.app()
        with app.app_context():
            planner = smart.planner(app)
            smart.migrate(app, planner, planner.involved)  # writes the flag; a command waits for no turn
        assert came.wait(20)


def test_a_boot_goes_on_when_the_one_before_it_is_killed(
    sqlite_project: Project, turns: Callable[[float], threading.Event]
) -> None:
    with another_boot(sqlite_project) as process:
        came = turns(60)
        assert not came.wait(0.3)
        process.kill()
        assert came.wait(20)


def test_a_boot_goes_on_when_the_one_before_it_hangs(
    sqlite_project: Project, turns: Callable[[float], threading.Event]
) -> None:
    with another_boot(sqlite_project):
        assert turns(0.2).wait(20)
        assert sqlite_project.boot(DB_SMART_LOCK_TIMEOUT=0.2).decision == "migrated"


def test_a_boot_needs_no_turn(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    lock = Path(f"{sqlite_project.flag}.lock")
    assert sqlite_project.boot(SQLALCHEMY_DATABASE_URI="sqlite://").decision == "migrated"
    assert not lock.exists()
    lock.mkdir(parents=True)  # cannot be opened as a file
    assert sqlite_project.boot().decision == "migrated"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "pgbouncer", "mariadb", "galera"])
def test_64_processes_boot_at_once_and_every_effect_happens_once(
    kind: str, new_url: Callable[[str], URL], request: pytest.FixtureRequest
) -> None:
    url = new_url(kind)
    nodes = request.getfixturevalue("galera").nodes if kind == "galera" else []
    report = run_harness("herd", kind, [url.set(port=node.port) for node in nodes] or [url])
    for round_name, effects in (("cold", 99), ("one pending", 100), ("no flag", 100), ("flag", 100)):
        result = report[round_name]
        assert (result["failed"], result["repeated"], result["effects"]) == (0, 0, effects), report["stderr"] or report
    # Nothing pending takes no lock: with a flag nothing is asked, else it is only read.
    assert [report["flag"][key] for key in ("connections", "statements")] == [0, 0]
    assert report["no flag"]["connections"] == report["no flag"]["statements"] == 64
    assert report["no flag"]["writes"] == 0
    assert report["flag"]["token"] == report["no flag"]["token"] == report["one pending"]["token"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kills"),
    [((), 100), (("--random", "30"), 30), (("--operations",), 100)],
    ids=["every-boundary", "random", "operations"],
)
def test_a_kill_at_any_moment_loses_and_repeats_nothing(url: URL, options: tuple[str, ...], kills: int) -> None:
    report = run_harness("crash", url.get_backend_name(), [url], *options)
    assert report["kills"] >= kills
    assert (report["converged"], report["failed"]) == (report["kills"], 0), report["stderr"] or report
    assert (report["lost"], report["repeated"]) == (0, 0)


@pytest.mark.slow
def test_a_kill_in_the_background_loses_and_repeats_nothing(url: URL) -> None:
    report = run_harness("kill_later", url.get_backend_name(), [url], "--every", "10")
    assert report["kills"] >= 15
    assert (report["converged"], report["failed"]) == (report["kills"], 0), report["stderr"] or report
    assert (report["lost"], report["repeated"]) == (0, 0)
