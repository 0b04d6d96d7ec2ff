"""``flask db-smart history``, and the release that each run is recorded with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.errors import ConfigError, MigrationFailed
from tests.harness.clients import run_client
from tests.harness.project import Project
from tests.harness.servers import role
from tests.samples import V1, V2

BAD = "@migration\ndef bad(op): op.execute('SELECT 1 FROM nowhere')\n"


def runs(project: Project, *options: str) -> list[dict[str, Any]]:
    (database,) = json.loads(project.run("history", "--json", *options).stdout)["databases"]
    found: list[dict[str, Any]] = database["runs"]
    return found


def without_release(project: Project) -> None:
    """Make the history what earlier releases made."""
    quoted = "`release`" if project.dialect == "mysql" else "release"
    project.query(f"ALTER TABLE db_smart_history DROP COLUMN {quoted}")


def test_every_run_is_shown_the_newest_last(project: Project) -> None:
    project.write(V1 + BAD)
    with pytest.raises(MigrationFailed):
        project.boot(DB_SMART_RELEASE="1.10")
    project.write(V2)
    project.boot(DB_SMART_RELEASE="1.11")
    project.boot(FORCE_DB_MIGRATION="1")
    assert [(run["name"], run["outcome"], run["release"]) for run in runs(project)] == [
        ("make_items", "applied", "1.10"),
        ("bad", "failed", "1.10"),
        ("add_price", "applied", "1.11"),
        ("make_items", "applied", None),
        ("add_price", "applied", None),
    ]
    assert [run["number"] for run in runs(project)] == [1, 2, 3, 4, 5]
    keys = {"number", "name", "checksum", "outcome", "applied_at", "duration_ms", "applied_by", "release", "error"}
    assert all(run.keys() == keys for run in runs(project))
    assert "nowhere" in runs(project)[1]["error"]
    assert runs(project)[0]["error"] is None
    assert [run["name"] for run in runs(project, "--limit", "1")] == ["add_price"]
    lines = project.run("history").output.splitlines()
    assert lines[0].startswith(f"Database default: {len(runs(project))} runs  ")
    assert [line.split()[:2] for line in lines[1:3]] == [["applied", "make_items"], ["failed", "bad"]]
    assert "@" in lines[1]
    assert "  run 1  " in lines[1]
    assert lines[1].endswith("  1.10")
    assert project.run("history", "--limit", "0").exit_code == 2


def test_history_needs_no_migrations(project: Project, new_url: Callable[[str], URL]) -> None:
    project.config["SQLALCHEMY_BINDS"] = {"other": new_url("sqlite")}
    project.write(V1)
    project.boot()
    project.write("raise RuntimeError('broken')\n")
    found = project.run("history")
    assert found.exit_code == 0
    assert "make_items" in found.output
    assert "Database other: no history" in found.output
    assert "Database other" not in project.run("history", "--database", "default").output
    assert project.run("history", "--database", "nope").exit_code == 2


def test_json_where_a_database_is_unreachable(make_project: Callable[..., Project]) -> None:
    project = make_project("postgresql+psycopg://nobody:secret@127.0.0.1:1/none")
    project.write(V1)
    found = project.run("history", "--json")
    assert found.exit_code == 1
    report = json.loads(found.stdout)
    assert report["databases"] == []
    assert "Cannot connect" in report["error"]
    assert "secret" not in found.output


def test_a_history_of_an_earlier_release_is_read_and_gets_its_column(project: Project) -> None:
    project.write(V1)
    project.boot()
    without_release(project)
    assert [run["release"] for run in runs(project)] == [None]
    assert project.run("status").exit_code == 0
    project.flag.unlink()
    assert project.boot(DB_SMART_RELEASE="2").decision == "verified"
    assert "release" not in project.columns("db_smart_history")
    project.write(V2)
    assert project.boot(DB_SMART_RELEASE="2").applied == ("add_price",)
    assert "release" in project.columns("db_smart_history")
    assert [run["release"] for run in runs(project)] == [None, "2"]
    assert project.run("migrate", "--force", DB_SMART_RELEASE="2").exit_code == 0  # it is there already


def test_an_earlier_release_goes_on_with_the_new_column(project: Project) -> None:
    project.write(V1)
    project.boot(DB_SMART_RELEASE="2")
    values = "'old', 'x', '2026-01-01T00:00:00.000000', 1.0, 'me@here', 'applied', NULL"
    project.query(
        "INSERT INTO db_smart_history (name, checksum, applied_at, duration_ms, applied_by, outcome, error) "
        f"VALUES ({values})"
    )
    assert [run["release"] for run in runs(project)] == ["2", None]


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_who_may_not_change_the_history_migrates_without_release(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_project(new_url(dialect))
    project.write(V1)
    project.boot()
    without_release(project)
    rights = {
        "postgresql": [
            "GRANT ALL ON SCHEMA public TO {user}",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {user}",
        ],
        "mariadb": ["GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON {database}.* TO {user}"],
    }
    project.write(
        V1 + "@migration\ndef second(op): op.create_table('second', Column('id', Integer, primary_key=True))\n"
    )
    with role(make_url(project.url), *rights[dialect]) as url:
        project.url = url
        assert project.boot(DB_SMART_RELEASE="2").applied == ("second",)
        assert [run["release"] for run in runs(project)] == [None, None]


@pytest.mark.parametrize("text", ["1.10", '"1.10"', "true", "v7-3-gabc"])
def test_a_release_of_the_environment_is_taken_as_it_is_written(
    sqlite_project: Project, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FLASK_DB_SMART_RELEASE", text)
    sqlite_project.write(V1)
    sqlite_project.boot()
    assert [run["release"] for run in runs(sqlite_project)] == [text]


def test_a_number_is_a_release_too(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot(DB_SMART_RELEASE=7)
    assert [run["release"] for run in runs(sqlite_project)] == ["7"]


@pytest.mark.parametrize("value", ["x" * 256, True, ["1"], "a\nb"])
def test_what_is_no_release(sqlite_project: Project, value: object) -> None:
    sqlite_project.write(V1)
    with pytest.raises(ConfigError, match="DB_SMART_RELEASE is .*Nothing was changed"):
        sqlite_project.boot(DB_SMART_RELEASE=value)


def test_a_script_writes_the_release_where_there_is_room(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    assert "'1.2'" in sqlite_project.run("migrate", "--sql", DB_SMART_RELEASE="1.2").output
    sqlite_project.boot()
    sqlite_project.write(V1 + "@migration\ndef second(op): op.execute('SELECT 1')\n")
    without_release(sqlite_project)
    script = sqlite_project.run("migrate", "--sql", DB_SMART_RELEASE="1.2").output
    assert "'1.2'" not in script
    run_client(sqlite_project.url, script)
    assert [run["name"] for run in runs(sqlite_project)] == ["make_items", "second"]
