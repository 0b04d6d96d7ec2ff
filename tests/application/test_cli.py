"""The commands: what they print, what they write, how they exit."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.cli import group
from aurum_harmony.db_smart.commands import Commands
from tests.harness.project import Project
from tests.harness.terminal import Terminal, command_line, flask, write_app
from tests.samples import V1, V2


def snapshot(project: Project) -> dict[str, bytes]:
    """All files of the instance folder and the database file."""
    files = [path for path in project.directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path): path.read_bytes() for path in files}


def test_migrate_prints_each_migration_and_why(project: Project) -> None:
    project.write(V2)
    result = project.run("migrate")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["make_items", "add_price"]
    assert all(line.endswith(" ms") for line in lines[:2])
    assert lines[2].startswith("Applied 2 migrations, because the database 'default' has no history yet: 2 new")
    assert project.boot().decision == "skipped"
    result = project.run("migrate")
    assert result.exit_code == 0
    assert "Migration already completed" in result.output
    assert project.history() == [("make_items", "applied"), ("add_price", "applied")]


def test_force_runs_every_repeatable_migration_again(project: Project) -> None:
    project.write(V2 + "\n@migration(once=True)\ndef seed(op): op.execute('INSERT INTO items (id) VALUES (1)')\n")
    project.run("migrate")
    result = project.run("migrate", "--force")
    assert result.exit_code == 0
    assert "2 forced migrations (make_items, add_price)" in result.output
    assert [name for name, _ in project.history()] == ["make_items", "add_price", "seed", "make_items", "add_price"]
    assert project.query("SELECT id FROM items") == [(1,)]


def test_json_of_migrate(project: Project) -> None:
    project.write(V1 + "    print('noise')\n")
    result = project.run("migrate", "--json")
    report = json.loads(result.stdout)
    assert report.keys() == {"result", "applied", "error", "lock"}
    assert (report["result"], report["error"]) == ("applied", None)
    assert [item["name"] for item in report["applied"]] == ["make_items"]
    assert report["applied"][0]["duration_ms"] > 0
    assert "noise" in result.stderr
    assert json.loads(project.run("migrate", "--json").stdout) == {
        "result": "up-to-date",
        "applied": [],
        "error": None,
        "lock": None,
    }


def test_json_of_a_failing_migration(project: Project) -> None:
    project.write(V1 + "@migration\ndef bad(op): op.execute('SELECT 1 FROM nowhere')\n")
    result = project.run("migrate", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["result"] == "failed"
    assert [item["name"] for item in report["applied"]] == ["make_items"]
    assert "SELECT 1 FROM nowhere" in report["error"]
    assert "'bad' failed" in result.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_dry_run_lists_and_writes_nothing_anywhere(project: Project, options: tuple[str, ...]) -> None:
    project.write(V2)
    before = snapshot(project)
    result = project.run("migrate", "--dry-run", *options)
    assert result.exit_code == 0
    assert "make_items" in result.output
    assert "add_price" in result.output
    assert snapshot(project) == before
    assert not project.instance.exists()
    if project.dialect != "sqlite":
        assert project.tables() == set()
    project.run("migrate")
    before = snapshot(project)
    assert "make_items" not in project.run("migrate", "--dry-run", *options).output
    assert "make_items" in project.run("migrate", "--dry-run", "--force", *options).output
    assert snapshot(project) == before


def test_only_the_named_database(project: Project, new_url: Callable[[str], Any]) -> None:
    project.config["SQLALCHEMY_BINDS"] = {"analytics": new_url("sqlite")}
    project.write(V1 + "@migration(database='analytics')\ndef other(op): pass\n")
    result = project.run("migrate", "--database", "analytics")
    assert result.exit_code == 0
    assert "other" in result.output
    assert "make_items" not in result.output
    assert not project.flag.exists()
    result = project.run("migrate", "--database", "nope")
    assert result.exit_code == 2
    assert "There is no database 'nope'. There is: default, analytics" in result.output
    assert project.run("migrate", "--database", "default", "--database", "analytics").exit_code == 0
    assert project.flag.exists()


def test_usage_errors_exit_2(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    assert sqlite_project.run("migrate", "--nonsense").exit_code == 2
    assert sqlite_project.run("nonsense").exit_code == 2


def test_status_json_shape_and_states(project: Project) -> None:
    project.write(V2)
    before = snapshot(project)
    result = project.run("status", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["state"] == "pending"
    assert report["flag"] == {
        "path": str(project.flag),
        "present": False,
        "valid": False,
        "reason": "there is no flag file",
    }
    assert report["boot"]["will_migrate"] is True
    assert "2 new migrations" in report["boot"]["reason"]
    assert snapshot(project) == before
    project.run("migrate")
    report = json.loads(project.run("status", "--json").stdout)
    assert report.keys() == {"state", "error", "databases", "lock", "progress", "flag", "boot", "branch"}
    (entry,) = report["databases"]
    lists = {"applied", "pending", "unknown", "missing", "lacking", "half_undone"}
    assert entry.keys() == {"name", "url", "dialect", "state", "failed", "lock", "progress"} | lists
    assert (report["state"], entry["state"], entry["name"]) == ("up-to-date", "up-to-date", "default")
    assert entry["dialect"] == project.dialect
    assert [item["name"] for item in entry["applied"]] == ["make_items", "add_price"]
    assert entry["applied"][0].keys() == {"name", "checksum", "applied_at", "duration_ms", "applied_by"}
    assert report["flag"]["valid"] is True
    assert report["boot"] == {"will_migrate": False, "reason": "nothing changed"}
    project.write(V1 + "    len('edit')\n@migration\ndef third(op): pass\n")
    (entry,) = json.loads(project.run("status", "--json").stdout)["databases"]
    assert entry["state"] == "pending"
    assert entry["pending"] == [{"name": "make_items", "reason": "edited"}, {"name": "third", "reason": "new"}]
    assert entry["unknown"] == ["add_price"]
    project.write(V1)
    report = json.loads(project.run("status", "--json").stdout)
    assert (report["state"], report["databases"][0]["unknown"]) == ("ahead", ["add_price"])


def test_status_text_and_check(project: Project) -> None:
    project.write(V1)
    assert project.run("status").exit_code == 0
    result = project.run("status", "--check")
    assert result.exit_code == 1
    assert "pending  make_items  new" in result.output
    assert "Next boot: will migrate" in result.output
    project.run("migrate")
    result = project.run("status", "--check")
    assert result.exit_code == 0
    assert "applied  make_items" in result.output
    assert "Flag: valid" in result.output
    password = make_url(project.url).password
    assert not password or password not in result.output


def test_status_tells_what_the_mode_means(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    assert "not migrate, DB_SMART_BOOT is off" in sqlite_project.run("status", DB_SMART_BOOT="off").output
    assert "boot will stop" in sqlite_project.run("status", DB_SMART_BOOT="check").output
    assert "forced by FORCE_DB_MIGRATION" in sqlite_project.run("status", FORCE_DB_MIGRATION="on").output


def test_reset_flag(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot()
    result = sqlite_project.run("reset-flag")
    assert (result.exit_code, result.output) == (0, f"Removed the flag {sqlite_project.flag}.\n")
    assert not sqlite_project.flag.exists()
    result = sqlite_project.run("reset-flag")
    assert result.exit_code == 0
    assert "to remove" in result.output
    sqlite_project.flag.mkdir()
    result = sqlite_project.run("reset-flag")
    assert result.exit_code == 1
    assert "Cannot remove the flag" in result.output
    assert sqlite_project.flag.is_dir()


@pytest.fixture
def flask_command(sqlite_project: Project) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``flask`` on a project that is not AurumHarmony, as a user does."""
    sqlite_project.write(V1)
    write_app(sqlite_project)
    return functools.partial(flask, sqlite_project)


@pytest.mark.parametrize("arguments", [("routes",), ("db-smart", "status"), ("shell", "-c", ""), ("--help",)])
def test_flask_commands_do_not_migrate(
    flask_command: Callable[..., subprocess.CompletedProcess[str]], sqlite_project: Project, arguments: tuple[str, ...]
) -> None:
    result = flask_command(*[argument for argument in arguments if argument not in ("-c", "")])
    assert "Traceback" not in result.stderr
    assert not sqlite_project.flag.exists()
    assert not Path(str(make_url(sqlite_project.url).database)).exists()


def test_flask_migrate_command_in_another_application(
    flask_command: Callable[..., subprocess.CompletedProcess[str]], sqlite_project: Project
) -> None:
    result = flask_command("db-smart", "migrate")
    assert result.returncode == 0, result.stderr
    assert "make_items" in result.stdout
    assert sqlite_project.history() == [("make_items", "applied")]


def test_an_error_at_boot_under_flask_run_is_one_message(
    flask_command: Callable[..., subprocess.CompletedProcess[str]], sqlite_project: Project
) -> None:
    sqlite_project.write("def (:\n")
    result = flask_command("run", "--port", "0")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The module of migrations")
    assert "Traceback" not in result.stderr
    result = flask_command("db-smart", "migrate", FLASK_DB_SMART_BOOT="nonsense")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_a_progress_line_on_a_terminal(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with Terminal(command_line(sqlite_project, "migrate")) as terminal:
        assert terminal.rest() == 0
        assert "(1 of 1)" in terminal.seen
        assert "Applied 1 migration" in terminal.seen


def test_the_commands_are_known_without_being_imported() -> None:
    assert sorted(Commands()) == sorted([*group.commands, "fleet"])
    assert Commands()["fleet"].name == "fleet"
    assert Commands()["status"] is group.commands["status"]
    assert Commands().get("nope") is None


def test_migrate_says_that_an_edit_of_what_runs_once_has_no_effect(
    sqlite_project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    once = "@migration(once=True)\ndef seed(op):\n    op.execute('SELECT {}')\n"
    sqlite_project.write(once.format(1))
    sqlite_project.boot()
    sqlite_project.write(once.format(2))
    assert sqlite_project.run("migrate").exit_code == 0
    assert "'seed' was edited after it was applied" in caplog.text
