"""What the commands do where what they say cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.harness.processes import environment
from tests.harness.project import Project
from tests.harness.terminal import Terminal, command_line, run
from tests.samples import V1, V2


def run_full(project: Project, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same with standard output on a full device."""
    with open("/dev/full", "w") as file:
        found = run(project, *arguments, stdout=file, **options)
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr
    return found


def run_unread(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same with standard output into a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        return run(project, *arguments, stdout=pipe)


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("output", ["closed pipe", "full device"])
def test_output_that_cannot_be_written_breaks_no_run(
    sqlite_project: Project, output: str, options: tuple[str, ...]
) -> None:
    project = sqlite_project
    project.write(V2)
    if output == "full device":
        found = run_full(project, "migrate", *options)
        assert "cannot be written" in found.stderr
    else:
        found = run_unread(project, "migrate", *options)
    assert project.history() == [("make_items", "applied"), ("add_price", "applied")]
    assert "Traceback" not in found.stderr
    assert "applied before that" not in found.stderr
    assert found.returncode == 0, found.stderr
    assert project.boot().decision == "skipped"


def test_a_script_that_cannot_be_written_whole_says_so(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    found = run_full(sqlite_project, "migrate", "--sql")
    assert found.returncode == 1
    assert "it is not complete, so do not run it" in found.stderr
    assert not sqlite_project.tables()


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "--json"),
        ("migrate", "--dry-run"),
        ("migrate", "--dry-run", "--json"),
        ("snapshots",),
        ("snapshots", "--json"),
    ],
)
def test_a_report_that_cannot_be_written_is_one_message(sqlite_project: Project, command: tuple[str, ...]) -> None:
    sqlite_project.write(V1)
    found = run_full(sqlite_project, *command)
    assert found.returncode == 1
    assert found.stderr == (
        "Error: The output cannot be written (No space left on device): it is not complete. Nothing was changed.\n"
    )
    assert not sqlite_project.instance.exists()


@pytest.mark.parametrize("command", [("status", "--json"), ("migrate", "--json")])
def test_what_failed_is_told_though_its_json_cannot_be_written(
    sqlite_project: Project, command: tuple[str, ...]
) -> None:
    sqlite_project.write("def (:\n")
    found = run_full(sqlite_project, *command)
    assert found.returncode == 1
    assert "Error: The module of migrations" in found.stderr


def test_what_was_done_is_whole_though_it_cannot_be_told(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(V1)
    project.boot()
    project.write(V2)
    project.boot()
    assert run_full(project, "restore").stderr.endswith("To go on without it: --yes.\n")
    assert "price" in project.columns("items")
    found = run_full(project, "restore", "--yes")
    assert (found.returncode, found.stderr.count("cannot be written")) == (0, 1)
    assert "price" not in project.columns("items")
    assert not project.flag.exists()
    for command in (["reset-flag"], ["unlock", "--yes"]):
        assert run_full(project, *command).returncode == 0


@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("migrate", "--sql"), ("migrate",), ("snapshots",), ("reset-flag",)]
)
def test_a_standard_output_that_is_closed(sqlite_project: Project, command: tuple[str, ...]) -> None:
    sqlite_project.write(V1)
    found = run(sqlite_project, *command, stdout=None, preexec_fn=lambda: os.close(1))
    assert (found.returncode, found.stderr) == (0, "")
    assert (sqlite_project.flag.exists()) is (command == ("migrate",))


@pytest.mark.parametrize("command", [("status", "--json"), ("migrate", "--dry-run", "--json"), ("migrate", "--sql")])
def test_a_reader_who_has_enough_is_no_error(sqlite_project: Project, command: tuple[str, ...]) -> None:
    sqlite_project.write(V1)
    found = run_unread(sqlite_project, *command)
    assert (found.returncode, found.stderr) == (1, "")


def test_an_output_of_another_encoding_breaks_no_run(sqlite_project: Project) -> None:
    names = "".join(f"@migration\ndef m{number}(op): pass\n" for number in range(5))
    sqlite_project.write(names + "@migration\ndef été(op): pass\n")
    latin = environment(PYTHONIOENCODING="latin-1")
    found = run(sqlite_project, "status", env=latin, encoding="latin-1")
    assert (found.returncode, found.stderr) == (0, "")
    assert "  pending  été  new\n" in found.stdout
    assert "(m0, m1, m2, \\u2026)" in found.stdout
    # The script says itself that it is in UTF-8.
    found = run(sqlite_project, "migrate", "--sql", env=latin, encoding="utf-8")
    assert (found.returncode, found.stderr) == (0, "")
    assert "('été', " in found.stdout
    found = run(sqlite_project, "migrate", env=latin, encoding="latin-1")
    assert (found.returncode, found.stderr) == (0, "")
    assert "Applied 6 migrations" in found.stdout
    assert json.loads(run(sqlite_project, "status", "--json", env=latin).stdout)["state"] == "up-to-date"


def test_a_path_is_whole_on_a_narrow_terminal(sqlite_project: Project) -> None:
    project = sqlite_project
    instance = project.directory / "an:key:instance"
    for source in (V1, V2):
        project.write(source)
        with Terminal(command_line(project, "migrate", instance=instance), {"NO_COLOR": "1"}, columns=20) as terminal:
            assert terminal.rest() == 0, terminal.seen
    (snapshot,) = (instance / "snapshots").glob("*.sqlite")
    assert f"  snapshot of default: {snapshot}\r\n" in terminal.seen


def test_a_terminal_that_can_only_print_gets_lines(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with Terminal(command_line(sqlite_project, "migrate"), {"TERM": "dumb"}) as terminal:
        assert terminal.rest() == 0
    assert "\x1b" not in terminal.seen
    assert [line.split()[0] for line in terminal.lines] == ["make_items", "Applied"]
