"""``flask db-smart watch``: what it shows while others migrate, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness.processes import environment, line_with
from tests.harness.project import Project
from tests.harness.terminal import ESCAPES, Terminal, command_line, run
from tests.samples import V1

FAILS = "@migration\ndef bad(op): op.execute('SELECT 1 FROM nowhere')\n"
#: A migration that waits for a line on its standard input.
HELD = """
@migration
def held(op):
    import sys
    print("in the middle", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def watching(project: Project, *options: str) -> Iterator[Watching]:
    """A process that watches, into a pipe."""
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command_line(project, "watch", *options), text=True, env=environment(), **pipes) as process:
        try:
            yield Watching(process)
        finally:
            process.kill()


class Watching:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[str] = []

    def until(self, words: str) -> str:
        """The next line with these words, without its time."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line)
            if words in line:
                return line.partition(" UTC  ")[2].rstrip("\n")
        raise AssertionError("".join(self.seen) + (self.process.stderr.read() if self.process.stderr else ""))

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """The exit code, and what it says on standard error."""
        if number is not None:
            self.process.send_signal(number)
        _, error = self.process.communicate(timeout=60)
        assert "Traceback" not in error
        return self.process.returncode, error


@contextmanager
def migrating(project: Project) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of a migration until it gets a line."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command_line(project, "migrate", "--json"), text=True, env=environment(), **pipes) as process:
        try:
            line_with(process, "in the middle")
            yield process
        finally:
            process.kill()


def let_go(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate("\n", timeout=60)
    assert process.returncode == 0, error


def test_into_a_pipe_a_line_for_each_change(project: Project) -> None:
    project.write(V1)
    project.boot()
    project.write(V1 + HELD)
    with watching(project) as watch:
        assert watch.until("default: ") == "default: pending, 1 applied, 1 pending"
        with migrating(project) as process:
            found = watch.until("on held")
            assert found.startswith("default: migrating, by ")
            assert found.endswith(f":{process.pid} on held, 1 applied, 1 pending")
            let_go(process)
        assert watch.until("up-to-date") == "default: up-to-date, 2 applied, 0 pending"
        assert watch.end(signal.SIGINT) == (0, "")
    changes = [line.partition("default: ")[2] for line in watch.seen]
    assert all(one != other for one, other in zip(changes, changes[1:], strict=False))


def test_until_ready_waits_for_who_migrates(project: Project) -> None:
    project.write(V1 + HELD)
    with watching(project, "--until-ready") as watch:
        watch.until("pending, 0 applied, 2 pending")
        with migrating(project) as process:
            watch.until("on held")
            assert watch.process.poll() is None
            let_go(process)
        watch.until("up-to-date")
        assert watch.process.stdout is not None
        assert watch.process.stdout.read() == "Ready: nothing is pending, and nobody migrates.\n"
        assert watch.end() == (0, "")


def test_until_ready_ends_with_a_run_that_fails(project: Project) -> None:
    project.write(V1 + FAILS)
    with watching(project, "--until-ready") as watch:
        watch.until("2 pending")
        with pytest.raises(MigrationFailed):
            project.boot()
        code, error = watch.end()
    assert code == 1
    assert re.match(r"Error: 'bad' failed on the database 'default' at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, by ", error)
    assert "nowhere" in error


def test_until_ready_does_not_wait_for_what_failed_before(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(V1 + FAILS)
    with pytest.raises(MigrationFailed):
        project.boot()
    with watching(project, "--until-ready") as watch:
        assert "bad failed at 20" in watch.until("1 pending")
        code, error = watch.end()
    assert (code, "'bad' failed" in error) == (1, True)


def test_until_ready_gives_a_new_run_its_time_after_an_old_failure(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(V1 + FAILS)
    with pytest.raises(MigrationFailed):
        project.boot()
    project.write(V1 + "@migration\ndef bad(op): pass\n")
    with watching(project, "--until-ready") as watch:
        watch.until("bad failed at 20")
        project.boot()
        watch.until("up-to-date")
        assert watch.end() == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_script_is_not_told_that_it_is_ready_by_a_signal(
    sqlite_project: Project, number: signal.Signals, code: int
) -> None:
    sqlite_project.write(V1)
    with watching(sqlite_project, "--until-ready") as watch:
        watch.until("1 pending")
        assert watch.end(number) == (code, "")


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_a_database_that_is_not_there_is_asked_again(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str
) -> None:
    server = new_url(dialect)
    project = make_project(server.set(database=f"{server.database}_later"))
    project.write(V1)
    admin = sa.create_engine(server, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    try:
        with watching(project, "--until-ready") as watch:
            found = watch.until("default: ")
            assert found.startswith("default: unreachable: Cannot connect to the database 'default'")
            with admin.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {server.database}_later")
            watch.until("default: pending, 0 applied, 1 pending")
            project.boot()
            watch.until("default: up-to-date, 1 applied, 0 pending")
            assert watch.end() == (0, "")
    finally:
        with admin.connect() as connection:
            force = " WITH (FORCE)" if dialect == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {server.database}_later{force}")


def test_a_server_that_says_nothing_holds_up_no_other(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    import socket

    project = make_project(new_url("sqlite"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        project.config["SQLALCHEMY_BINDS"] = {"mute": f"postgresql+psycopg://me@127.0.0.1:{port}/none"}
        project.write(V1 + "@migration(database='mute')\ndef other(op): pass\n")
        with watching(project) as watch:
            assert watch.until("default: ") == "default: pending, 0 applied, 1 pending"
            assert watch.until("mute: ") == "mute: unreachable: It does not answer."
            assert watch.end(signal.SIGINT) == (0, "")


def test_only_the_named_database(sqlite_project: Project, new_url: Callable[[str], URL]) -> None:
    project = sqlite_project
    project.config["SQLALCHEMY_BINDS"] = {"analytics": new_url("sqlite")}
    project.write(V1 + "@migration(database='analytics')\ndef other(op): pass\n")
    project.run("migrate", "--database", "analytics")
    found = run(project, "watch", "--until-ready", "--database", "analytics")
    assert (found.returncode, found.stderr) == (0, "")
    assert "analytics: up-to-date, 1 applied, 0 pending" in found.stdout
    assert "default" not in found.stdout
    assert run(project, "watch", "--database", "nope").returncode == 2


def test_migrations_that_cannot_be_used_are_one_message(sqlite_project: Project) -> None:
    sqlite_project.write("def (:\n")
    found = run(sqlite_project, "watch")
    assert found.returncode == 1
    assert found.stderr.startswith("Error: The module of migrations")


def test_a_reader_who_has_enough_ends_it(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        found = run(sqlite_project, "watch", stdout=pipe)
    assert (found.returncode, found.stderr) == (1, "")
    with open("/dev/full", "w") as full:
        found = run(sqlite_project, "watch", stdout=full)
    assert found.returncode == 1
    assert found.stderr.startswith("Error: The output cannot be written (No space left on device).")


@pytest.mark.parametrize("columns", [60, 200])
def test_on_a_terminal_it_is_drawn_again_and_left_there(
    sqlite_project: Project, new_url: Callable[[str], URL], columns: int
) -> None:
    project = sqlite_project
    project.config["SQLALCHEMY_BINDS"] = {f"db{number}": new_url("sqlite") for number in range(30)}
    others = "".join(f"@migration(database='db{n}')\ndef other{n}(op): pass\n" for n in range(30))
    project.write(V1 + others)
    project.boot()
    project.write(V1 + others + "@migration\ndef 価格(op): pass\n" + HELD)
    with Terminal(command_line(project, "watch"), columns=columns) as terminal:
        terminal.until("Database default: pending")
        with migrating(project) as process:
            terminal.until("31 databases: 1 migrating, 30 up-to-date")
            let_go(process)
        terminal.until("31 databases: 31 up-to-date")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.rest() == 0
        assert "Traceback" not in terminal.seen
        assert terminal.seen.count("\x1b[?25l") == terminal.seen.count("\x1b[?25h")  # the cursor is back
        last = terminal.seen.rpartition("\x1b[?25h")[2].replace("\r\n", "\n").splitlines()
        assert sum("Database " in line for line in last) == 31
        assert any("Database default: up-to-date, 3 applied, 0 pending" in line for line in last)
        assert f"  {project.url}" in last or columns == 200


def test_a_terminal_gets_its_cursor_back_from_sigterm(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with Terminal(command_line(sqlite_project, "watch")) as terminal:
        terminal.until("Database default: pending")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.rest() == 143
        assert terminal.seen.rindex("\x1b[?25h") > terminal.seen.rindex("\x1b[?25l")


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_terminals_without_colours(sqlite_project: Project, variables: dict[str, str]) -> None:
    sqlite_project.write(V1)
    with Terminal(command_line(sqlite_project, "watch"), variables) as terminal:
        terminal.until("pending")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.rest() == 0
        assert not any(code.endswith("m") for code in ESCAPES.findall(terminal.seen))
        assert ("\x1b" in terminal.seen) is ("NO_COLOR" in variables)


def test_it_writes_nothing(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with watching(sqlite_project) as watch:
        watch.until("1 pending")
        watch.end(signal.SIGINT)
    assert sqlite_project.tables() == set()
    assert not sqlite_project.instance.exists()
