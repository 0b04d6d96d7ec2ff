"""Processes that start together on a migration that fails, and those that only wait: each says what is true of it."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import MigrationFailed
from tests.harness.project import Project

#: Fails after the gate was opened, as often as it is tried.
FAILS = """
import os
@migration
def bad(op):
    if "GATE" in os.environ:
        print("begun", flush=True)
        open(os.environ["GATE"]).close()
    op.execute("SELECT * FROM nowhere")
"""
WAITS = """
import os
@migration
def slow(op):
    print("begun", flush=True)
    open(os.environ["GATE"]).close()
"""
Start = Callable[..., "subprocess.Popen[str]"]


def waits(child: subprocess.Popen[str]) -> None:
    """Read what it logs until it waits for another process."""
    assert child.stderr is not None
    for line in child.stderr:
        if "waiting for" in line:
            return
    raise AssertionError("it does not wait")


@pytest.mark.parametrize("flags", ["one host", "a flag for each"])
def test_of_processes_that_start_together_one_tries_what_fails(
    project: Project, start_child: Start, gate: Path, flags: str
) -> None:
    project.write(FAILS)
    children = [start_child(gate, ".flag0")]
    assert children[0].stdout is not None
    assert children[0].stdout.readline() == "begun\n"
    for index in range(1, 4):
        children.append(start_child(None, ".flag0" if flags == "one host" else f".flag{index}"))
    for child in children[1:]:
        waits(child)
    with open(gate, "w"):
        pass
    outputs = [child.communicate(timeout=40)[0] for child in children]
    assert [child.returncode for child in children] == [1] * 4
    assert project.history() == [("bad", "failed")]
    for output in outputs:
        assert "nowhere" in output
    for output in outputs[1:]:
        assert re.search(r"failed on .* in another process of this start", output)
        assert len(output.splitlines()) == 1
    # A later start tries again, and so does a person.
    assert start_child(None, ".flag9").wait(20) == 1
    assert len(project.history()) == 2
    assert project.run("migrate").exit_code == 1
    with pytest.raises(MigrationFailed):
        project.boot(FORCE_DB_MIGRATION=True)
    assert len(project.history()) == 4


def test_what_was_edited_meanwhile_is_tried(project: Project, start_child: Start, gate: Path) -> None:
    project.write(FAILS)
    first = start_child(gate, ".flag0")
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    project.write(FAILS.replace("nowhere", "db_smart_state"))
    second = start_child(None, ".flag1")
    waits(second)
    with open(gate, "w"):
        pass
    assert second.communicate(timeout=40)[0] == "migrated\n"
    assert project.history() == [("bad", "failed"), ("bad", "applied")]


def test_one_process_may_try_again_and_again(project: Project) -> None:
    project.write(FAILS)
    for _ in range(3):
        with pytest.raises(MigrationFailed):
            project.boot()
    assert len(project.history()) == 3


def test_who_is_interrupted_while_it_waits_says_so(project: Project, start_child: Start, gate: Path) -> None:
    project.write(WAITS)
    holder, waiter = start_child(gate, ".flag0"), None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "begun\n"
    waiter = start_child(gate, ".flag1")
    waits(waiter)
    waiter.send_signal(signal.SIGINT)
    output = waiter.communicate(timeout=20)[0]
    assert "Interrupted by SIGINT while waiting" in output
    assert "this process changed nothing" in output
    assert "rolled back" not in output
    with open(gate, "w"):
        pass
    assert holder.communicate(timeout=20)[0] == "migrated\n"
    assert project.history() == [("slow", "applied")]


def test_an_application_does_not_wait_for_another_one_that_shares_its_flag(
    make_project: Callable[..., Project],
    project: Project,
    new_url: Callable[[str], URL],
    start_child: Start,
    gate: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project.write(WAITS)
    child = start_child(gate)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    other = make_project(new_url("sqlite"))
    other.write("@migration\ndef fine(op):\n    pass\n")
    caplog.set_level("INFO", "aurum_harmony.db_smart")
    assert other.boot().applied == ("fine",)
    assert "waiting for" not in caplog.text
    assert child.poll() is None
    with open(gate, "w"):
        pass
    assert child.communicate(timeout=20)[0] == "migrated\n"
    # Each of them makes the other's next boot ask, and says so.
    caplog.clear()
    assert [other.boot().decision for _ in range(2)] == ["verified", "skipped"]
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"with the migrations {project.module}. If both run here, give each a DB_SMART_FLAG" in warning
    assert [other.boot(DB_SMART_FLAG=".own").decision for _ in range(2)] == ["verified", "skipped"]
