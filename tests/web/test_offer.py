"""What ``flask run`` asks on a terminal where the database is behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.harness.processes import environment
from tests.harness.project import Project
from tests.harness.servers import free_ports
from tests.samples import APP, V1, V2

pty = pytest.importorskip("pty")

QUESTION = "Run pending migrations? [y/N]"
FAILING = V1 + "\n@migration\ndef broken(op): op.execute('INSERT INTO nowhere VALUES (1)')\n"


class Terminal:
    """``flask run`` on a terminal of its own."""

    def __init__(self, directory: Path, *options: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        (port,) = free_ports(1)
        more = {"FLASK_DB_SMART_BOOT": "check", "PYTHONUNBUFFERED": "1", **variables}
        found = environment(**more)
        found["PYTHONPATH"] += os.pathsep + str(directory)
        command = [sys.executable, "-m", "flask", "--app", "other_app", *options, "--port", str(port)]
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=directory, env=found, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def until(self, words: str) -> str:
        """What it shows until it has shown something, or has ended."""
        while words not in self.shown:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # the other side was closed
                break
            if not part:
                break
            self.shown += part.decode(errors="replace")
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ours)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(sqlite_project: Project) -> Iterator[Open]:
    project, opened = sqlite_project, list[Terminal]()
    url = make_url(project.url).render_as_string(hide_password=False)
    text = APP.format(instance=str(project.instance), url=url, module=project.module)
    (project.directory / "other_app.py").write_text(text)

    def start(*options: str, **variables: str) -> Terminal:
        opened.append(Terminal(project.directory, *options, **variables))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def behind(sqlite_project: Project) -> Project:
    """A project whose database lacks a migration."""
    sqlite_project.write(V1)
    sqlite_project.boot()
    sqlite_project.write(V2)
    return sqlite_project


@pytest.mark.parametrize("options", [("--debug", "run"), ("--debug", "run", "--no-reload")])
def test_yes(terminal: Open, behind: Project, options: tuple[str, ...]) -> None:
    one = terminal(*options)
    assert QUESTION in one.until(QUESTION)
    one.type("y\n")
    ready = "Debugger PIN" if len(options) == 2 else "Press CTRL+C"
    assert ready in one.until(ready)
    assert one.shown.count(QUESTION) == 1
    assert "add_price" in one.shown
    assert [name for name, _ in behind.history()] == ["make_items", "add_price"]


def test_no(terminal: Open, behind: Project) -> None:
    """What the reloader starts does not ask again."""
    one = terminal("--debug", "run")
    one.until(QUESTION)
    one.type("\n")
    assert "Debugger PIN" in one.until("Debugger PIN")
    assert one.shown.count(QUESTION) == 1
    assert "Open the application in a browser on this machine, or run 'flask db-smart migrate'." in one.shown
    assert [name for name, _ in behind.history()] == ["make_items"]


def test_a_failure(terminal: Open, behind: Project) -> None:
    """It is said, and the page is there."""
    behind.write(FAILING)
    one = terminal("--debug", "run", "--no-reload")
    one.until(QUESTION)
    one.type("y\n")
    assert "Press CTRL+C" in one.until("Press CTRL+C")
    assert "nowhere" in one.shown
    assert "Traceback" not in one.shown


def test_nobody_is_asked_in_production(terminal: Open, behind: Project) -> None:
    shown = terminal("run").until("what never comes")
    assert "The database is behind this code" in shown
    assert "Run 'flask db-smart migrate' and start again." in shown
    assert QUESTION not in shown


def test_nobody_is_asked_where_nobody_can_answer(behind: Project, terminal: Open) -> None:
    found = environment(FLASK_DB_SMART_BOOT="check", FLASK_DB_SMART_WEB="false")
    found["PYTHONPATH"] += os.pathsep + str(behind.directory)
    command = [sys.executable, "-m", "flask", "--app", "other_app", "--debug", "run", "--no-reload"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=behind.directory, env=found, timeout=60
    )
    assert ended.returncode == 1
    assert "The database is behind this code" in ended.stderr
    assert "Run 'flask db-smart migrate' and start again." in ended.stderr
    assert QUESTION not in ended.stderr + ended.stdout
