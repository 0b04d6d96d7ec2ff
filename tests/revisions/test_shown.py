"""What ``status`` and ``migrate`` say of revisions, and the SQL of revisions."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from tests.harness.alembic_project import AlembicProject
from tests.harness.clients import ask_client, run_client
from tests.harness.project import Project

USERS = """
op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))
op.bulk_insert(sa.table("users", sa.column("id", sa.Integer)), [{"id": 1}, {"id": 2}])
"""
NAME = """
op.add_column("users", sa.Column("name", sa.String(20)))
op.execute("UPDATE users SET name = 'x;y'; ")
op.execute("UPDATE users SET name = 'z' WHERE id = 2 -- the second")
"""
OWN = """
@migration
def add_fax(op: Operations) -> None:
    op.add_columns("users", Column("fax", Text))
"""


@pytest.fixture
def linear(make_alembic: Callable[..., AlembicProject], url: URL, monkeypatch: pytest.MonkeyPatch) -> AlembicProject:
    """An application with two revisions, on each kind of database in turn."""
    project = make_alembic(url)
    monkeypatch.syspath_prepend(str(project.directory))
    project.revision("a1b2", None, USERS, message="make users")
    project.revision("b2c3", "a1b2", NAME, labels=("people",), message="names of users")
    return project


def with_own(project: AlembicProject) -> None:
    """Add a migration that comes after the revisions."""
    project.migrations = f"own_{project.module}"
    Project(project.directory, project.migrations, project.url).write(OWN)


def test_status_and_migrate_show_revisions(linear: AlembicProject) -> None:
    with_own(linear)
    path = linear.alembic / "versions" / "b2c3.py"
    about = {"message": "names of users", "file": str(path), "labels": ["people"]}
    (entry,) = json.loads(linear.run("status", "--json").stdout)["databases"]
    assert [item["name"] for item in entry["pending"]] == ["a1b2", "b2c3", "add_fax"]
    assert entry["pending"][1] == {"name": "b2c3", "reason": "new", "revision": about}
    assert "revision" not in entry["pending"][2]
    line = f"b2c3  names of users (people)  {linear.module}/versions/b2c3.py"
    assert f"  pending  {line}  new" in linear.run("status").output
    assert linear.run("status", "--check").exit_code == 1
    shown = linear.run("migrate").output
    assert f"  {line}  " in shown
    assert "Applied 3 migrations" in shown
    (entry,) = json.loads(linear.run("status", "--json").stdout)["databases"]
    assert (entry["state"], entry["pending"]) == ("up-to-date", [])
    assert entry["applied"][1]["revision"] == about
    assert f"  applied  {line}  " in linear.run("status").output
    linear.revision("c3d4", "b2c3", message="[red]third[/red]")
    report = json.loads(linear.run("migrate", "--json").stdout)
    assert report["applied"][0]["revision"]["message"] == "[red]third[/red]"


def test_a_dry_run_names_revisions_and_foresees_nothing(linear: AlembicProject) -> None:
    with_own(linear)
    found = linear.run("migrate", "--dry-run")
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert lines[0].startswith("  a1b2  make users  ")
    assert lines[1].startswith("  b2c3  names of users (people)  ")
    assert lines[2].startswith("  add_fax  new")
    assert found.output.count("cannot be foreseen") == 1
    assert "Dry run: 3 to apply; nothing was written." in found.output
    report = json.loads(linear.run("migrate", "--dry-run", "--json").stdout)
    assert [(item["unknown"], item["error"]) for item in report["pending"]] == [
        ("operations of Alembic", None),
        ("operations of Alembic", None),
        ("what the revisions before it make", None),
    ]
    assert report["pending"][0]["revision"]["message"] == "make users"
    assert linear.dialect == "sqlite" or linear.tables() == set()
    linear.boot()
    linear.revision("c3d4", "b2c3")
    with_own_edited = linear.run("migrate", "--dry-run", "--force")
    assert "c3d4" in with_own_edited.output


def test_a_script_does_what_a_run_does(linear: AlembicProject, new_url: Callable[[str], URL]) -> None:
    other = linear.at(new_url({"mysql": "mariadb"}.get(linear.dialect, linear.dialect)))
    linear.boot()
    found = other.run("migrate", "--sql", DB_SMART_RELEASE="9")
    assert found.exit_code == 0, found.output
    run_client(other.url, found.stdout)
    assert other.heads() == {"b2c3"}
    assert other.history() == [("a1b2", "applied"), ("b2c3", "applied")]
    assert other.query("SELECT id, name FROM users ORDER BY id") == [(1, "x;y"), (2, "z")]
    assert other.schema() == linear.schema()
    assert other.boot(DB_SMART_FLAG=".other").applied == ()
    assert other.boot(DB_SMART_FLAG=".other").decision == "skipped"
    # From the middle on.
    linear.revision("c3d4", "b2c3", 'op.add_column("users", sa.Column("mail", sa.String(20)))')
    script = other.run("migrate", "--sql").stdout
    assert "a1b2" not in script
    run_client(other.url, script)
    assert other.heads() == {"c3d4"}
    again = ask_client(other.url, script)
    assert again.returncode != 0
    assert "earlier state" in again.stderr + again.stdout
    assert other.history()[-1] == ("c3d4", "applied")
    assert len(other.history()) == 3


def test_a_script_is_for_the_heads_that_it_was_made_for(linear: AlembicProject) -> None:
    linear.upgrade("a1b2")
    script = linear.run("migrate", "--sql").stdout
    linear.query("UPDATE alembic_version SET version_num = 'b2c3'")
    again = ask_client(linear.url, script)
    assert again.returncode != 0
    assert "earlier state" in again.stderr + again.stdout
    assert "name" not in linear.columns("users")
    linear.query("UPDATE alembic_version SET version_num = 'a1b2'")
    run_client(linear.url, script)
    assert linear.heads() == {"b2c3"}
    assert linear.history() == [("b2c3", "applied")]
    assert linear.boot().applied == ()


def test_an_empty_version_table_is_not_made_again(linear: AlembicProject) -> None:
    linear.query("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    run_client(linear.url, linear.run("migrate", "--sql").stdout)
    assert linear.heads() == {"b2c3"}


def test_what_needs_a_connection_is_left_to_the_boot(linear: AlembicProject) -> None:
    with_own(linear)
    linear.revision("c3d4", "b2c3", 'op.get_bind().execute(sa.text("UPDATE users SET name = 1")).rowcount')
    linear.revision("d4e5", "c3d4", 'op.add_column("users", sa.Column("mail", sa.String(20)))')
    found = linear.run("migrate", "--sql")
    assert found.exit_code == 0
    assert "Alembic cannot write it as SQL: AttributeError" in found.stdout
    assert "reads from the database" in found.stdout
    assert "-- Running upgrade a1b2 -> b2c3" in found.stdout
    assert found.stdout.count("Left to db-smart, which runs it at the next boot") == 3
    run_client(linear.url, found.stdout)
    assert linear.heads() == {"b2c3"}
    assert linear.boot().applied == ("c3d4", "d4e5", "add_fax")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("if context.is_offline_mode():", "if False:"), "configures a connection"),
        (("    run_migrations_offline()\nelse", "    pass\nelse"), "configures nothing"),
        (("    run_migrations_offline()\nelse", "    raise SystemExit('no offline mode')\nelse"), "no offline mode"),
    ],
)
def test_an_environment_without_offline_mode_is_told(
    make_alembic: Callable[..., AlembicProject], sqlite_url: URL, change: tuple[str, str], said: str
) -> None:
    project = make_alembic(sqlite_url)
    project.revision("a1b2", None, USERS)
    environment = project.alembic / "env.py"
    text = environment.read_text()
    assert change[0] in text
    environment.write_text(text.replace(*change))
    found = project.run("migrate", "--sql")
    assert found.exit_code == 1
    assert said in found.output
    assert "offline mode" in found.output
    assert "Traceback" not in found.output


def test_autocommit_blocks_are_outside_of_the_transaction(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    project = make_alembic(new_url("postgresql"))
    project.revision("a1b2", None, USERS)
    block = 'with op.get_context().autocommit_block():\n    op.execute("CREATE INDEX CONCURRENTLY i ON users (id)")'
    project.revision("b2c3", "a1b2", block)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.heads() == {"b2c3"}
    assert project.boot().applied == ()


def test_a_database_that_is_ahead_boots_and_serves(linear: AlembicProject) -> None:
    linear.revision("c3d4", "b2c3")
    linear.upgrade("head")
    (linear.alembic / "versions" / "c3d4.py").unlink()
    assert linear.boot().applied == ()
    assert linear.run("status", "--check").exit_code == 0
    assert linear.boot().decision == "skipped"
    linear.flag.unlink()
    assert linear.boot().decision == "verified"
    assert linear.boot(DB_SMART_BOOT="check").decision == "skipped"
    app, smart = linear.app()
    smart.boot(app)
    assert app.test_client().get("/").text == "served"
    linear.dispose(app)
    found = linear.run("status")
    assert found.exit_code == 0
    assert "Database default: ahead" in found.output
    assert "  unknown  c3d4  the database is ahead of this code" in found.output
    (entry,) = json.loads(linear.run("status", "--json").stdout)["databases"]
    assert (entry["state"], entry["unknown"], entry["pending"]) == ("ahead", ["c3d4"], [])
    for command in (["migrate"], ["migrate", "--dry-run"], ["migrate", "--sql"]):
        assert linear.run(*command).exit_code == 0
    assert "The database 'default' is ahead of this code: c3d4." in linear.run("migrate").stdout
    assert linear.heads() == {"c3d4"}


def test_ahead_by_history(linear: AlembicProject) -> None:
    linear.revision("c3d4", "b2c3", message="third")
    linear.boot()
    (linear.alembic / "versions" / "c3d4.py").unlink()
    found = linear.run("status")
    (line,) = [line for line in found.output.splitlines() if line.startswith("  ") and "c3d4" in line]
    assert line.startswith("  unknown  c3d4  ")
    assert line.endswith("  the database is ahead of this code")
    assert linear.boot().applied == ()
