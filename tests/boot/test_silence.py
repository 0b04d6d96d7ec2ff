"""What a person sees who has set up no logging: that boot migrated, or waits; and nothing at a warm boot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy.engine import URL, make_url

from tests.harness import processes
from tests.harness.project import Project
from tests.harness.servers import free_ports
from tests.samples import APP, V1

GATED = """
import os

@migration
def make_items(op):
    if "GATE" in os.environ:
        with open(os.environ["GATE"]) as gate:
            gate.read()
    op.create_table("items", Column("id", Integer, primary_key=True))
"""
BOOT = "import other_app; other_app.create_app()"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python on an application that sets up no logging, of a project."""
    started: list[subprocess.Popen[str]] = []

    def run(project: Project, *arguments: str, app: str = APP, **environment: str) -> subprocess.Popen[str]:
        url = make_url(project.url).render_as_string(hide_password=False)
        text = app.format(instance=str(project.instance), url=url, module=project.module)
        text = text.replace("    return app", "    app.cli.command('seed')(lambda: print('seeded'))\n    return app")
        (project.directory / "other_app.py").write_text(text)
        paths = os.pathsep.join([str(processes.ROOT), str(project.directory)])
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=project.directory,
            env={**processes.environment(**environment), "PYTHONPATH": paths},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ours(lines: str | IO[str]) -> list[str]:
    text = lines if isinstance(lines, str) else lines.read()
    return [line for line in text.splitlines() if "db-smart" in line]


def test_a_boot_that_migrates_is_seen_once_and_a_warm_one_is_silent(project: Project, start: Start) -> None:
    project.write(V1)
    _, stderr = start(project, "-c", BOOT).communicate(timeout=60)
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith(
        "db-smart: migrated: there is no flag file; the database 'default' has no history yet: 1 new"
    )
    assert start(project, "-c", BOOT).communicate(timeout=60) == ("", "")
    project.flag.unlink()
    assert start(project, "-c", BOOT).communicate(timeout=60) == ("", "")


SET_UP = {
    "nothing, under the application's logger": (
        "import logging, flask; flask.Flask('aurum_harmony').logger",
        ["] WARNING in extension: db-smart: migrated:"],
    ),
    "info": (
        "import logging; logging.basicConfig(level='INFO')",
        ["INFO:aurum_harmony.db_smart.extension:db-smart: mig"],
    ),
    "warning": (
        "import logging; logging.basicConfig()",
        ["WARNING:aurum_harmony.db_smart.extension:db-smart: migrated:"],
    ),
    "error": ("import logging; logging.basicConfig(level='ERROR')", []),
    "a level and no handler": ("import logging; logging.getLogger().setLevel('INFO')", ["db-smart: migrated:"]),
    "silenced": ("import logging; logging.getLogger('aurum_harmony').setLevel('ERROR')", []),
}


@pytest.mark.parametrize("name", SET_UP)
def test_logging_is_left_as_it_is_set_up(sqlite_project: Project, start: Start, name: str) -> None:
    script, wanted = SET_UP[name]
    sqlite_project.write(V1)
    count = "print(len(logging.getLogger().handlers))"
    stdout, stderr = start(sqlite_project, "-c", f"{script}; {BOOT}; {count}").communicate(timeout=60)
    assert "setup plugin" not in stderr
    lines = stderr.splitlines()
    assert len(lines) == len(wanted), stderr
    assert all(part in line for part, line in zip(wanted, lines, strict=True)), stderr
    assert stdout == ("1\n" if "basicConfig" in script else "0\n")


@pytest.mark.parametrize("server", ["flask", "gunicorn", "waitress"])
def test_each_server_shows_it(sqlite_project: Project, start: Start, server: str) -> None:
    (port,) = free_ports(1)
    sqlite_project.write(V1)
    commands = {
        "flask": ["-m", "flask", "--app", "other_app", "run", "--port", str(port)],
        "gunicorn": ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "other_app:create_app()"],
        "waitress": ["-m", "waitress", "--listen", f"127.0.0.1:{port}", "--call", "other_app:create_app"],
    }
    process = start(sqlite_project, *commands[server])
    assert process.stderr is not None
    seen = next(line for line in process.stderr if "db-smart" in line)  # the test's time-out ends it where none comes
    assert seen.startswith("db-smart: migrated: ")
    process.terminate()
    assert ours(process.stderr) == []


@pytest.mark.parametrize(
    ("waiter", "dialect"),
    [("boot", "sqlite"), ("other host", "sqlite"), ("other host", "postgresql"), ("command", "mariadb")],
)
def test_who_waits_says_so_once(
    make_project: Callable[..., Project],
    new_url: Callable[[str], URL],
    start: Start,
    gate: Path,
    waiter: str,
    dialect: str,
) -> None:
    project = make_project(new_url(dialect))
    project.write(GATED)
    holder = start(project, "-c", BOOT, GATE=str(gate))
    with open(gate, "w"):  # the holder is in the midst of the migration
        if waiter == "command":
            other = start(project, "-m", "flask", "--app", "other_app", "db-smart", "migrate")
        else:
            own = {} if waiter == "boot" else {"FLASK_DB_SMART_FLAG": "own"}
            other = start(project, "-c", BOOT, **own)
        assert other.stderr is not None
        line = other.stderr.readline()
        assert line.startswith("db-smart: waiting for "), line
        assert f" {holder.pid} of this host" in line or f":{holder.pid} " in line
    output, more = other.communicate(timeout=60)
    assert (other.returncode, more) == (0, "")
    assert output == "" or "already completed" in output
    assert holder.communicate(timeout=60)[1].startswith("db-smart: migrated: ")


COMMANDS = {
    "shell": (["shell"], True),
    "custom": (["seed"], True),
    "routes": (["routes"], False),
    "status": (["db-smart", "status"], False),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_does_not_migrate_warns_where_the_database_may_be_behind(
    sqlite_project: Project, start: Start, name: str
) -> None:
    arguments, warns = COMMANDS[name]

    def lines(**environment: str) -> list[str]:
        process = start(sqlite_project, "-m", "flask", "--app", "other_app", *arguments, **environment)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == 0, stderr
        return ours(stderr)

    sqlite_project.write(V1)
    found = lines()
    assert len(found) == warns
    assert not warns or "the database may be behind this code: there is no flag file. This command does not" in found[0]
    if name != "custom":  # each line is a process more
        return
    assert lines(FLASK_DB_SMART_BOOT="check") == lines(FLASK_DB_SMART_BOOT="off") == []
    sqlite_project.boot()
    assert lines() == []
    sqlite_project.write("def (:\n")
    assert len(lines()) == len(lines(FLASK_DB_SMART_BOOT="check")) == 1  # whoever migrates gets the error


def test_the_warning_cannot_end_a_command(sqlite_project: Project, start: Start) -> None:
    """Not even where the application is not put together so far that boot could ask."""
    sqlite_project.write(V1)
    broken = APP.replace("SQLAlchemy(app)", "SQLAlchemy()")
    process = start(sqlite_project, "-m", "flask", "--app", "other_app", "seed", app=broken)
    assert process.communicate(timeout=60) == ("seeded\n", "")
    assert process.returncode == 0
