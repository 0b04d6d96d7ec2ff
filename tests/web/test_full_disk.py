"""A disk that is full while a thread migrates: what is kept, what is said, and when it is tried again."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aurum_harmony.db_smart.boot import background
from tests.harness.disk import Disk
from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.harness.serving import READY

TOKEN = "correct horse battery staple"
MADE = """
@migration
def made(op):
    op.create_table("t", Column("id", Integer, primary_key=True), Column("n", Integer))
    op.execute("INSERT INTO t (id) VALUES (1)")
"""
#: More than a snapshot and the room that is left can hold.
FILL = """
@migration{how}
def fill(op):
    for number in range(2, 42):
        op.execute(f"INSERT INTO t (id, n) VALUES ({{number}}, length(zeroblob({{number}})))")
    op.execute("CREATE TABLE large (content BLOB)")
    op.execute("INSERT INTO large VALUES (zeroblob(100000))")
"""
FULL = re.compile("disk is full|No space left")
#: What the tries are apart, seconds.
PAUSES = [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]


class Clock(threading.Event):
    """The pauses between two tries, which end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []
        self._passes = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        self._passes.acquire()
        return False  # as nobody has woken the thread

    def go_on(self) -> None:
        """End a pause, as if its time were over."""
        self._passes.release()


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> list[Clock]:
    """Those of the threads, in the order of their start."""
    found: list[Clock] = []

    class Timed(background.Background):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            found.append(Clock())
            self.woken = found[-1]

    monkeypatch.setattr(background, "Background", Timed)
    return found


@pytest.fixture
def on_disk(make_project: Callable[..., Project], disk: Disk) -> Project:
    if not disk.mounted:
        pytest.skip("only root can mount a disk")
    project = make_project(f"sqlite:///{disk.folder}/app.db")
    project.write(MADE)
    project.boot()
    return project


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator sees in the log."""
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("pages", [0, 3, 12])
def test_a_boot_in_the_background(
    on_disk: Project, disk: Disk, clocks: list[Clock], caplog: pytest.LogCaptureFixture, pages: int
) -> None:
    on_disk.write(MADE + FILL.format(how=""))
    app, smart = on_disk.app(DB_SMART_BOOT="background", DB_SMART_TOKEN=TOKEN)
    client, told = app.test_client(), {"Authorization": f"Bearer {TOKEN}"}
    with disk.room(pages * 4096):
        smart.boot(app)
        for tries in range(1, len(PAUSES) + 1):
            wait_until(lambda tries=tries: clocks[0].pauses == PAUSES[:tries])  # type: ignore[misc]
            assert client.get(READY).get_json()["state"] == "failed"
            assert client.get(READY).status_code == client.get("/").status_code == 503
            assert FULL.search(client.get("/", headers=told).get_json()["detail"])
            assert FULL.search(lines(caplog)[-1])
            assert len(lines(caplog)) == tries, lines(caplog)
            if tries < len(PAUSES):
                clocks[0].go_on()
        assert on_disk.query("PRAGMA integrity_check") == [("ok",)]
        assert on_disk.query("SELECT id, n FROM t") == [(1, None)]
    clocks[0].go_on()
    wait_until(lambda: client.get(READY).status_code == 200)
    assert client.get("/").text == "served"
    assert on_disk.query("SELECT count(*), max(id) FROM t") == [(41, 41)]
    assert on_disk.query("SELECT count(*) FROM large") == [(1,)]
    assert dict(on_disk.history())["fill"] == "applied"
    on_disk.dispose(app)
    assert on_disk.boot().decision == "skipped"


@pytest.mark.parametrize("pages", [0, 3, 12])
def test_a_migration_in_the_background(
    on_disk: Project, disk: Disk, clocks: list[Clock], caplog: pytest.LogCaptureFixture, pages: int
) -> None:
    on_disk.write(MADE + FILL.format(how="(background=True)"))
    app, smart = on_disk.app()
    client = app.test_client()
    with disk.room(pages * 4096):
        smart.boot(app)
        for tries in range(1, len(PAUSES) + 1):
            wait_until(lambda tries=tries: clocks and clocks[0].pauses == PAUSES[:tries])  # type: ignore[misc]
            assert client.get("/").text == "served"
            assert client.get(READY).get_json()["background"] == ["fill"]
            assert FULL.search(lines(caplog)[-1])
            assert len(lines(caplog)) == tries, lines(caplog)
            if tries < len(PAUSES):
                clocks[0].go_on()
        with app.app_context():
            assert not smart.applied("fill")
        assert on_disk.query("SELECT id, n FROM t") == [(1, None)]
    clocks[0].go_on()
    thread = smart._state(app).later
    wait_until(lambda: thread is not None and thread.done)
    assert on_disk.query("PRAGMA integrity_check") == [("ok",)]
    assert on_disk.query("SELECT count(*), max(id) FROM t") == [(41, 41)]
    assert dict(on_disk.history())["fill"] == "applied"
    on_disk.dispose(app)
    assert on_disk.boot().decision == "skipped"


def test_the_flag(sqlite_project: Project, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """What is in the database counts: requests are served, and a later boot writes it."""
    if not disk.mounted:
        pytest.skip("only root can mount a disk")
    project, flag = sqlite_project, disk.folder / "flag"
    project.write(MADE)
    with disk.room(0):
        app, smart = project.app(DB_SMART_BOOT="background", DB_SMART_FLAG=str(flag))
        smart.boot(app)
        client = app.test_client()
        wait_until(lambda: client.get(READY).status_code == 200)
        assert client.get("/").text == "served"
        project.dispose(app)
        said = [line for line in lines(caplog) if "cannot write the flag" in line]
        assert len(said) == 1
        assert "No space left" in said[0]
        assert not flag.exists() or flag.read_bytes() == b""
        assert not [path for path in disk.folder.iterdir() if path.name.startswith("flag.") and path.suffix != ".lock"]
    assert project.boot(DB_SMART_FLAG=str(flag)).decision == "verified"
    assert project.boot(DB_SMART_FLAG=str(flag)).decision == "skipped"
    assert project.history() == [("made", "applied")]
