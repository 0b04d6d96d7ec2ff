"""``flask db-smart stamp``, and databases that were made without revisions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DatabaseBehind, DbSmartError
from aurum_harmony.db_smart.store import history
from tests.harness.alembic_project import AlembicProject
from tests.harness.clients import run_client
from tests.harness.crash import counted, ended, forked
from tests.harness.project import Project

USERS = 'op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))'
NAME = 'op.add_column("users", sa.Column("name", sa.String(20)))'
OWN = """
@migration(once=True)
def seed(op: Operations) -> None:
    op.execute("INSERT INTO users (id) VALUES (1)")

@migration
def add_fax(op: Operations) -> None:
    op.add_column("users", Column("fax", Text))
"""


def models(db: SQLAlchemy) -> None:
    sa.Table("users", db.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))


@pytest.fixture
def linear(make_alembic: Callable[..., AlembicProject], url: URL) -> AlembicProject:
    """An application with two revisions, on each kind of database in turn."""
    project = make_alembic(url)
    project.revision("a1b2", None, USERS, message="make users")
    project.revision("b2c3", "a1b2", NAME, labels=("people",), message="names of users")
    return project


def create_all(project: AlembicProject) -> None:
    """Make the tables of the models, as many applications do."""
    project.models = models
    app, _ = project.app()
    with app.app_context():
        app.extensions["sqlalchemy"].create_all()
    project.dispose(app)


def runs(project: Project) -> list[tuple[str, str]]:
    """Name and outcome of each run, as ``history`` shows it."""
    (found,) = json.loads(project.run("history", "--json").stdout)["databases"]
    return [(run["name"], run["outcome"]) for run in found["runs"] or ()]


def outcome(project: Project, *args: str, answer: str | None = None) -> Any:
    """Run a command with an answer to its question."""
    app, _ = project.app()
    try:
        return app.test_cli_runner().invoke(args=["db-smart", *args], input=answer)
    finally:
        project.dispose(app)


def test_a_database_of_create_all_is_refused_and_left(linear: AlembicProject) -> None:
    create_all(linear)
    before = linear.tables()
    for create in (False, True):
        with pytest.raises(DbSmartError, match=r"create_all\(\)") as refused:
            linear.boot(DB_SMART_CREATE_ALL=create)
        for words in ("users", "alembic_version", "flask db-smart stamp --all", "stamp NAME"):
            assert words in refused.value.message
    for command in (["migrate"], ["migrate", "--dry-run"], ["migrate", "--sql"]):
        found = linear.run(*command)
        assert found.exit_code == 1, command
        assert "create_all()" in found.output
    with pytest.raises(DatabaseBehind):
        linear.boot(DB_SMART_BOOT="check")
    status = json.loads(linear.run("status", "--json").stdout)
    assert status["boot"]["will_migrate"] is False
    assert "create_all()" in status["boot"]["reason"]
    assert linear.tables() == before


def test_stamp_all_takes_a_database_of_create_all_over(linear: AlembicProject) -> None:
    create_all(linear)
    found = linear.run("stamp", "--all", "--yes")
    assert found.exit_code == 0, found.output
    assert "make users" in found.output
    assert linear.heads() == {"b2c3"}
    assert runs(linear) == [("a1b2", "stamped"), ("b2c3", "stamped")]
    assert linear.history() == [("a1b2", "applied"), ("b2c3", "applied")]  # earlier releases know no other word
    report = linear.boot()
    assert report.applied == ()
    assert linear.boot().decision == "skipped"
    again = linear.run("stamp", "--all", "--yes")
    assert again.exit_code == 0
    assert "nothing to record" in again.output
    linear.revision("c3d4", "b2c3", 'op.add_column("users", sa.Column("mail", sa.String(20)))')
    assert linear.boot().applied == ("c3d4",)
    assert linear.columns("users") == {"id", "name", "mail"}


def test_an_empty_database_runs_from_base(linear: AlembicProject) -> None:
    linear.models = models
    assert linear.boot().applied == ("a1b2", "b2c3")


def test_an_empty_version_table_says_nothing(linear: AlembicProject) -> None:
    """Alembic makes it before its first revision fails, and before ``flask db migrate`` compares the models."""
    create_all(linear)
    linear.query("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    before = linear.tables()
    for command in (["migrate"], ["migrate", "--dry-run"], ["migrate", "--sql"]):
        found = linear.run(*command)
        assert found.exit_code == 1, command
        assert "'alembic_version', the version table of Alembic, is empty" in found.output
    with pytest.raises(DbSmartError, match=r"is empty, .* made by create_all\(\).*flask db-smart stamp --all"):
        linear.boot()
    assert linear.tables() == before
    assert linear.run("stamp", "--all", "--yes").exit_code == 0
    assert linear.heads() == {"b2c3"}
    assert linear.boot().applied == ()


def test_where_no_revision_has_to_do_with_the_tables_alembic_runs_them(
    make_alembic: Callable[..., AlembicProject], sqlite_url: URL
) -> None:
    project = make_alembic(sqlite_url)
    project.revision("a1", None, 'op.create_table("other", sa.Column("id", sa.Integer, primary_key=True))')
    create_all(project)
    with pytest.raises(DbSmartError, match="'flask db upgrade' runs all of them"):
        project.boot()
    project.upgrade()
    project.revision("b2", "a1")
    assert project.boot().applied == ("b2",)


def test_a_first_revision_that_was_cut_short_is_no_database_of_create_all(linear: AlembicProject) -> None:
    """Its tables may be there without anything recorded, where each schema change commits."""
    path = linear.revision("a1b2", None, USERS + '\nraise RuntimeError("cut")')
    linear.models = models
    with pytest.raises(DbSmartError, match="cut"):
        linear.boot()
    there = linear.dialect == "mysql"
    assert ("users" in linear.tables()) == there
    path.write_text(
        path.read_text().replace('raise RuntimeError("cut")', "").replace(USERS, "pass" if there else USERS)
    )
    assert linear.boot().applied == ("a1b2", "b2c3")


def test_a_revision_is_stamped_with_what_comes_before_it(linear: AlembicProject) -> None:
    create_all(linear)
    linear.revision("c3d4", "b2c3", 'op.add_column("users", sa.Column("mail", sa.String(20)))')
    found = outcome(linear, "stamp", "b2c3", answer="n\n")
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert "2 to record as applied" in lines[0]
    assert "a1b2  make users" in lines[1]
    assert lines[1].endswith("comes before what is named")
    assert "b2c3  names of users (people)" in lines[2]
    assert "Nothing was recorded." in found.output
    assert linear.heads() == set()
    assert "db_smart_history" not in linear.tables()
    found = outcome(linear, "stamp", "b2c3", answer="y\n")
    assert found.exit_code == 0
    assert linear.heads() == {"b2c3"}
    assert linear.boot().applied == ("c3d4",)
    assert linear.heads() == {"c3d4"}
    # Never back: that is what 'flask db stamp' is for.
    found = linear.run("stamp", "a1b2", "--yes")
    assert "a1b2  is applied already" in found.output
    assert linear.heads() == {"c3d4"}


def test_migrations_are_stamped_beside_revisions(linear: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(linear.directory))
    linear.migrations = f"own_{linear.module}"
    Project(linear.directory, linear.migrations, linear.url).write(OWN)
    assert linear.run("stamp", "seed", "a1b2", "--yes").exit_code == 0
    assert runs(linear) == [("a1b2", "stamped"), ("seed", "stamped")]
    linear.query("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    assert linear.boot(DB_SMART_RELEASE="3").applied == ("b2c3", "add_fax")
    assert linear.query("SELECT id FROM users") == []


def test_what_is_stamped_was_done_for_every_release(project: Project) -> None:
    project.write(OWN)
    found = project.run("stamp", "seed", "--yes", DB_SMART_RELEASE="7")
    assert found.exit_code == 0
    assert project.history() == [("seed", "applied")]
    project.query("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    assert project.boot().applied == ("add_fax",)
    project.write(OWN.replace("fax", "telefax").replace("add_telefax", "add_fax"))
    assert project.run("stamp", "--all", "--yes").exit_code == 0  # an edit
    assert project.boot().applied == ()
    assert "telefax" not in project.columns("users")
    status = json.loads(project.run("status", "--json").stdout)
    assert status["state"] == "up-to-date"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["stamp"], "--all"),
        (["stamp", "a1b2", "--all"], "--all"),
        (["stamp", "a1b3"], "There is no migration or revision 'a1b3'. Did you mean a1b2?"),
        (["stamp", "a1b2", "--database", "other"], "There is no database 'other'"),
    ],
)
def test_wrong_use(make_alembic: Callable[..., AlembicProject], sqlite_url: URL, args: list[str], said: str) -> None:
    project = make_alembic(sqlite_url)
    project.revision("a1b2", None, USERS)
    found = project.run(*args)
    assert found.exit_code == 2
    assert said in found.output


@pytest.mark.parametrize("target", ["heads", "merge"])
def test_branches_get_the_heads_that_alembic_gives_them(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], target: str
) -> None:
    project = make_alembic(new_url("sqlite"))
    project.target = "heads"
    project.revision("root1", None)
    project.revision("left1", "root1", labels=("left",))
    project.revision("left2", "left1")
    project.revision("right1", "root1")
    project.revision("island", None, depends_on="right1")
    if target == "merge":
        project.revision("merged", ("left2", "right1"))
    other = project.at(new_url("sqlite"))
    other.upgrade("heads")
    assert project.run("stamp", "--all", "--yes").exit_code == 0
    assert project.heads() == other.heads()
    assert sorted(name for name, _ in runs(project)) == sorted(
        path.stem for path in project.alembic.glob("versions/*.py")
    )
    stepwise = project.at(new_url("sqlite"))
    for name in ("root1", "left1", "right1", "left2", "island"):
        assert stepwise.run("stamp", name, "--yes").exit_code == 0
    stepwise.run("stamp", "--all", "--yes")
    assert stepwise.heads() == other.heads()


def test_a_database_that_is_ahead_cannot_be_stamped(linear: AlembicProject) -> None:
    linear.boot()
    linear.query("UPDATE alembic_version SET version_num = 'z9'")
    found = linear.run("stamp", "b2c3", "--yes")
    assert found.exit_code == 1
    assert "ahead" in found.output
    assert linear.heads() == {"z9"}


def test_revisions_that_alembic_ran_are_shown_as_adopted(linear: AlembicProject) -> None:
    linear.upgrade("a1b2")
    linear.boot()
    assert runs(linear) == [("a1b2", "adopted"), ("b2c3", "applied")]
    linear.revision("c3d4", "b2c3")
    linear.upgrade()
    assert linear.boot().decision == "verified"
    assert runs(linear)[2:] == [("c3d4", "adopted")]


def test_what_failed_half_way_is_recorded_nowhere(linear: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads and the history are one transaction."""
    create_all(linear)
    record = history.record

    def fail(connection: sa.Connection, name: str, *args: Any, **options: Any) -> None:
        record(connection, name, *args, **options)
        if name == "b2c3":
            raise RuntimeError("pulled the plug")

    monkeypatch.setattr(history, "record", fail)
    found = linear.run("stamp", "--all", "--yes")
    assert found.exit_code == 1
    assert "pulled the plug" in found.output
    assert linear.heads() == set()
    assert runs(linear) == []
    monkeypatch.undo()
    assert linear.run("stamp", "--all", "--yes").exit_code == 0
    assert linear.heads() == {"b2c3"}
    assert linear.boot().applied == ()


def test_migrations_alone_are_not_stamped_where_revisions_would_then_run(
    linear: AlembicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(linear.directory))
    linear.migrations = f"own_{linear.module}"
    Project(linear.directory, linear.migrations, linear.url).write(OWN)
    create_all(linear)
    found = linear.run("stamp", "seed", "--yes")
    assert found.exit_code == 1
    assert "Record revisions first" in found.output
    assert linear.tables() == {"users"}
    assert linear.run("stamp", "seed", "b2c3", "--yes").exit_code == 0
    assert linear.boot().applied == ("add_fax",)


def test_a_history_without_version_table(linear: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(linear.directory))
    linear.migrations = f"own_{linear.module}"
    Project(linear.directory, linear.migrations, linear.url).write(OWN)
    assert linear.run("stamp", "add_fax", "--yes").exit_code == 0
    assert "alembic_version" not in linear.tables()
    run_client(linear.url, linear.run("migrate", "--sql").stdout)
    assert linear.heads() == {"b2c3"}
    assert linear.boot().applied == ("seed",)


def test_a_directory_without_revisions(
    make_alembic: Callable[..., AlembicProject], url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no version table then, and what is recorded is recorded all the same."""
    project = make_alembic(url)
    monkeypatch.syspath_prepend(str(project.directory))
    project.migrations = f"own_{project.module}"
    Project(project.directory, project.migrations, project.url).write(OWN.replace("add_columns", "sync"))
    project.query("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    assert project.boot().applied == ("seed", "add_fax")
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"
    assert json.loads(project.run("status", "--json").stdout)["state"] == "up-to-date"


def kill(project: AlembicProject, boundary: int) -> None:
    """Stamp in this process, and die at a statement."""
    with counted(boundary):
        project.run("stamp", "--all", "--yes")


@pytest.mark.slow
def test_killed_at_every_statement_it_is_recorded_or_not(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], url: URL
) -> None:
    project = make_alembic(url, {"DB_SMART_LEASE_SECONDS": 0.5})
    for name, down in (("a1", None), ("b2", "a1"), ("c3", "b2")):
        project.revision(name, down, 'raise RuntimeError("it ran")')
    dialect = {"mysql": "mariadb"}.get(project.dialect, project.dialect)
    for boundary in itertools.count(1):
        killed = project.at(new_url(dialect))
        code = ended(forked(kill, killed, boundary))
        done = [name for name, _ in killed.history()] if "db_smart_history" in killed.tables() else []
        assert (killed.heads(), done) in ((set(), []), ({"c3"}, ["a1", "b2", "c3"]))
        if code == 0:
            assert done
            break
        assert killed.run("stamp", "--all", "--yes").exit_code == 0
        assert killed.heads() == {"c3"}
        assert killed.history() == [(name, "applied") for name in ("a1", "b2", "c3")]
        assert killed.boot().applied == ()
    assert boundary > 10
