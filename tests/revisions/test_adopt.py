"""An application on Flask-Migrate, in the middle of its history, moves in by five lines, and can move out again."""

from __future__ import annotations

import difflib
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.errors import DatabaseBehind
from tests.harness import processes
from tests.harness.alembic_project import AlembicProject
from tests.harness.project import DIALECTS, Project

#: As such applications look; the lines that differ say "mine".
BEFORE = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
migrate = Migrate()


class User(db.Model):
    __tablename__ = "users"
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String(20))


def create_app():
    app = Flask("club", instance_path={instance!r})
    app.config["SQLALCHEMY_DATABASE_URI"] = {url!r}
    db.init_app(app)
    migrate.init_app(app, db, directory={directory!r})

    @app.get("/")
    def index():
        return {{"users": db.session.query(User).count()}}

    return app
"""
IMPORT = "from flask_sqlalchemy import SQLAlchemy\n"
REGISTER = "    migrate.init_app(app, db, directory={directory!r})\n"
END = "    return app\n"
AFTER = (
    BEFORE.replace(IMPORT, IMPORT + "from aurum_harmony.db_smart import DbSmart\n")
    .replace(REGISTER, REGISTER + "    smart = DbSmart(app, db, alembic=True)\n")
    .replace(END, "    smart.boot(app)\n" + END)
)
#: What a server does: it makes the application and answers one request.
SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from club import create_app
response = create_app().test_client().get("/")
print(response.status_code, response.text.strip())
"""


@pytest.fixture(params=DIALECTS)
def project(
    request: pytest.FixtureRequest, make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> AlembicProject:
    """Three revisions, of which the database has two, by Flask-Migrate; the second writes a row."""
    project = make_alembic(new_url(request.param))
    project.revision(
        "a1",
        None,
        'op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))',
        downgrade='op.drop_table("users")',
    )
    project.revision(
        "b2", "a1", 'op.execute("INSERT INTO users (id) VALUES (1)")', downgrade='op.execute("DELETE FROM users")'
    )
    project.upgrade()
    project.revision(
        "c3",
        "b2",
        'op.add_column("users", sa.Column("name", sa.String(20)))\nop.execute("INSERT INTO users (id) VALUES (2)")',
        downgrade='op.execute("DELETE FROM users WHERE id = 2")\nop.drop_column("users", "name")',
    )
    return project


class Club:
    """The application of a project as files, and what one types beside it."""

    def __init__(self, project: AlembicProject) -> None:
        self.project = project
        self.write(BEFORE)

    def write(self, source: str) -> None:
        url = make_url(self.project.url).render_as_string(hide_password=False)
        values = {"instance": str(self.project.instance), "url": url, "directory": str(self.project.alembic)}
        (self.project.directory / "club.py").write_text(source.format(**values), encoding="utf-8")

    def flask(self, *arguments: str, code: int = 0) -> str:
        """What a command says."""
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "flask", "--app", "club", *arguments],
            cwd=self.project.directory,
            env=processes.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    def serve(self) -> str:
        return processes.run_python(SERVE, str(self.project.directory)).strip()


@pytest.mark.slow
def test_five_lines_and_back(project: AlembicProject) -> None:
    changes = [line for line in difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines()) if line[0] in "+-"]
    assert len(changes) <= 5
    club = Club(project)
    club.write(AFTER)
    assert club.serve() == '200 {"users":2}'
    assert project.heads() == {"c3"}
    assert project.history() == [("a1", "applied"), ("b2", "applied"), ("c3", "applied")]
    assert club.serve() == '200 {"users":2}'
    # Flask-Migrate goes on beside it.
    assert "c3 (head)" in club.flask("db", "current")
    assert "No new upgrade operations detected" in club.flask("db", "check")
    club.flask("db", "downgrade")
    assert (project.heads(), project.columns("users")) == ({"b2"}, {"id"})
    club.flask("db", "upgrade")
    assert project.heads() == {"c3"}
    club.flask("db", "stamp", "b2")
    assert project.heads() == {"b2"}
    club.flask("db", "stamp", "head")
    club.flask("db", "revision", "--rev-id", "d4", "-m", "by hand")
    assert club.serve() == '200 {"users":2}'
    assert project.heads() == {"d4"}
    club.write(AFTER.replace("db.String(20))", "db.String(20))\n    town = db.Column(db.String(20))"))
    club.flask("db", "migrate", "--rev-id", "e5", "-m", "found")
    (found,) = (project.alembic / "versions").glob("e5_*.py")
    assert "town" in found.read_text(encoding="utf-8")
    assert "db_smart" not in found.read_text(encoding="utf-8")
    assert club.serve() == '200 {"users":2}'
    assert project.columns("users") == {"id", "name", "town"}
    assert project.query("SELECT count(*) FROM users") == [(2,)]
    # And alone, at a later day: what db-smart has left is where Flask-Migrate goes on from.
    club.write(BEFORE)
    club.flask("db", "revision", "--rev-id", "f6", "-m", "alone")
    club.flask("db", "upgrade")
    assert project.heads() == {"f6"}
    club.flask("db", "downgrade", "b2")
    assert (project.heads(), project.columns("users")) == ({"b2"}, {"id"})
    # And here again.
    club.write(AFTER)
    assert club.serve() == '200 {"users":2}'
    assert project.heads() == {"f6"}


def test_what_is_done_behind_our_back_is_noticed(project: AlembicProject, caplog: pytest.LogCaptureFixture) -> None:
    assert project.boot().applied == ("c3",)
    app, smart = project.app()
    assert smart.boot(app).decision == "skipped"
    Club(project).flask("db", "downgrade")
    # The process that had booted finds out at its first request, and goes on to where its code is.
    with caplog.at_level(logging.WARNING):
        assert app.test_client().get("/").text == "served"
    Project.dispose(app)
    assert "boot trusted the flag, but" in caplog.text
    assert (project.heads(), project.columns("users")) == ({"c3"}, {"id", "name"})
    assert project.history()[-3:] == [("c3", "applied"), ("c3", "taken back"), ("c3", "applied")]
    Club(project).flask("db", "downgrade")
    project.flag.unlink()
    assert project.boot().applied == ("c3",)
    assert project.boot().decision == "skipped"
    # What lies ahead of the flag, done by hand, is found done.
    project.revision("d4", "c3", 'op.execute("INSERT INTO users (id) VALUES (4)")')
    Club(project).flask("db", "upgrade")
    assert project.boot().decision == "verified"
    assert project.boot().decision == "skipped"
    assert project.query("SELECT count(*) FROM users") == [(3,)]


def test_the_first_request_asks_one_query(project: AlembicProject) -> None:
    project.boot()
    app, smart = project.app()
    assert smart.boot(app).decision == "skipped"
    sent: list[str] = []
    with app.app_context():
        from sqlalchemy import event

        engine = app.extensions["sqlalchemy"].engine
        event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    assert app.test_client().get("/").text == "served"
    Project.dispose(app)
    assert len(sent) == 1


def test_releases_in_turn(project: AlembicProject, caplog: pytest.LogCaptureFixture) -> None:
    """The old release boots and serves on what the new one has made, with a flag of its own or with one for both."""
    newest = project.alembic / "versions" / "c3.py"
    content = newest.read_bytes()
    assert project.boot().applied == ("c3",)
    for flag in ("shared", "old"):
        config = {"DB_SMART_FLAG": flag} if flag == "old" else {}
        for _ in range(2):
            newest.unlink()
            app, smart = project.app(**config)
            with caplog.at_level(logging.INFO):
                assert smart.boot(app).decision in ("verified", "skipped")
            assert "is ahead of this code: c3" in caplog.text
            assert app.test_client().get("/").text == "served"
            with app.app_context():
                assert smart.database_state(app) == "ahead"
            Project.dispose(app)
            assert project.run("status", **config).exit_code == 0
            newest.write_bytes(content)
            assert project.boot().decision in ("verified", "skipped")
            project.flag.unlink()
            assert project.boot().decision == "verified"
    assert project.heads() == {"c3"}
    assert project.query("SELECT count(*) FROM users") == [(2,)]


def test_the_old_release_is_the_first_to_boot(project: AlembicProject) -> None:
    """Flask-Migrate was ahead of what db-smart is first deployed with: no history, and a head that it does not know."""
    newest = project.alembic / "versions" / "c3.py"
    content = newest.read_bytes()
    project.upgrade()
    newest.unlink()
    app, smart = project.app()
    smart.boot(app)
    assert app.test_client().get("/").text == "served"
    Project.dispose(app)
    assert project.heads() == {"c3"}
    newest.write_bytes(content)
    project.revision("d4", "c3", 'op.execute("INSERT INTO users (id) VALUES (4)")')
    assert project.boot().applied == ("d4",)
    assert project.history() == [(name, "applied") for name in ("a1", "b2", "c3", "d4")]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_alembic_alone_has_brought_there_is_served_by_who_only_looks(
    project: AlembicProject, caplog: pytest.LogCaptureFixture, ahead: bool
) -> None:
    """With ``DB_SMART_BOOT=check`` and no history: the database lacks nothing, or has more than this code."""
    project.upgrade()
    if ahead:
        (project.alembic / "versions" / "c3.py").unlink()
    for _ in range(2):
        app, smart = project.app(DB_SMART_BOOT="check")
        with caplog.at_level(logging.INFO):
            assert smart.boot(app).decision == "verified"
        assert ("is ahead of this code: c3" in caplog.text) == ahead
        assert app.test_client().get("/").text == "served"
        with app.app_context():
            assert smart.database_state(app) == ("ahead" if ahead else "up-to-date")
        Project.dispose(app)
    status = json.loads(project.run("status", "--json", DB_SMART_BOOT="check").stdout)
    assert status["state"] == ("ahead" if ahead else "up-to-date")
    assert status["databases"][0]["unknown"] == (["c3"] if ahead else [])
    assert not status["boot"]["will_migrate"]
    assert "boot will stop" not in status["boot"]["reason"]
    assert "db_smart_history" not in project.tables()


def test_who_only_looks_stops_where_a_revision_is_pending(project: AlembicProject) -> None:
    with pytest.raises(DatabaseBehind, match=r"1 new migration \(c3\)"):
        project.boot(DB_SMART_BOOT="check")
    project.target = "b2"
    assert project.boot(DB_SMART_BOOT="check").decision == "verified"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_migrations_of_another_database_have_no_revisions(
    make_alembic: Callable[..., AlembicProject],
    new_url: Callable[[str], URL],
    monkeypatch: pytest.MonkeyPatch,
    dialect: str,
) -> None:
    """The directory is for the default database alone, and lacks nothing on a bind that only migrations concern."""
    project = make_alembic(new_url(dialect), {"SQLALCHEMY_BINDS": {"log": new_url(dialect)}})
    project.revision("a1", None, 'op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))')
    project.migrations = module = f"after_{project.module}"
    monkeypatch.syspath_prepend(str(project.directory))
    source = """
        from aurum_harmony.db_smart import migration

        @migration(database="log")
        def make_log(op):
            op.execute("CREATE TABLE log (id INTEGER)")
    """
    (project.directory / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    assert project.boot().applied == ("a1", "make_log")
    assert project.heads() == {"a1"}
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"


def test_migrations_come_after_the_revisions(project: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"after_{project.module}"
    monkeypatch.syspath_prepend(str(project.directory))
    project.migrations = module
    source = """
        from aurum_harmony.db_smart import migration

        @migration(once=True)
        def greet(op):
            op.execute("UPDATE users SET name = 'Ada' WHERE id = 2")
    """
    (project.directory / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    assert project.boot().applied == ("c3", "greet")
    assert project.query("SELECT name FROM users WHERE id = 2") == [("Ada",)]
    project.revision("d4", "c3", 'op.execute("INSERT INTO users (id) VALUES (4)")')
    assert project.boot().applied == ("d4",)
    assert [name for name, _ in project.history()] == ["a1", "b2", "c3", "greet", "d4"]
    project.flag.unlink()
    assert project.boot().decision == "verified"
    monkeypatch.delitem(sys.modules, module)


def test_migrations_that_are_added_later_are_of_the_same_application(
    project: AlembicProject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The flag and the history of the revisions alone are those of this application, and no reason to warn."""
    assert project.boot().applied == ("c3",)
    project.migrations = module = f"later_{project.module}"
    monkeypatch.syspath_prepend(str(project.directory))
    source = """
        from aurum_harmony.db_smart import migration

        @migration
        def greet(op):
            op.execute("UPDATE users SET name = 'Ada' WHERE id = 2")
    """
    (project.directory / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    assert project.boot().applied == ("greet",)
    messages = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one for one in messages if "another application" in one or "belongs to" in one] == []
    project.flag.unlink()
    assert project.boot().decision == "verified"


def test_another_target_is_a_change(project: AlembicProject) -> None:
    project.target = "b2"
    assert project.boot().applied == ()
    assert project.boot().decision == "skipped"
    project.target = "head"
    assert project.boot().applied == ("c3",)
    project.flag.unlink()
    project.target = "b2"  # it is a least: nothing is taken back
    assert project.boot().decision == "verified"
    assert project.heads() == {"c3"}


def revisions_of(project: AlembicProject, **config: Any) -> tuple[list[str], list[str]]:
    """The names that ``status`` shows as applied, and as pending."""
    (found,) = json.loads(project.run("status", "--json", **config).stdout)["databases"]
    return [item["name"] for item in found["applied"]], [item["name"] for item in found["pending"]]


@pytest.mark.parametrize("alone", [False, True])
def test_what_was_taken_back_is_pending_and_not_applied(project: AlembicProject, alone: bool) -> None:
    """By ``flask db downgrade`` with db-smart, or by a release without it."""
    project.boot()
    club = Club(project)
    club.write(BEFORE if alone else AFTER)
    club.flask("db", "downgrade", "a1")
    assert revisions_of(project) == (["a1"], ["b2", "c3"])
    taken = [] if alone else [("b2", "taken back"), ("c3", "taken back")]
    assert project.history() == [("a1", "applied"), ("b2", "applied"), ("c3", "applied"), *taken]
    project.flag.unlink()
    assert project.boot().applied == ("b2", "c3")
    assert revisions_of(project) == (["a1", "b2", "c3"], [])
    assert project.history()[3:] == [
        ("b2", "taken back"),
        ("c3", "taken back"),
        ("b2", "applied"),
        ("c3", "applied"),
    ]
    said = project.run("history").output
    assert "  taken back  c3  " in said
    # Taken back, and applied again, both by another tool.
    club.flask("db", "downgrade", "b2")
    club.flask("db", "upgrade")
    assert revisions_of(project) == (["a1", "b2", "c3"], [])
    if not alone:
        (found,) = json.loads(project.run("history", "--json").stdout)["databases"]
        assert [run["outcome"] for run in found["runs"]][-2:] == ["taken back", "adopted"]
        club.flask("db", "downgrade", "b2")
        (project.alembic / "versions" / "c3.py").unlink()
        assert revisions_of(project) == (["a1", "b2"], [])


def test_a_downgrade_before_a_roll_back_is_no_being_ahead(project: AlembicProject) -> None:
    """``flask db downgrade`` and the old release: the version table is the truth, and not what was applied once."""
    project.boot()
    Club(project).flask("db", "downgrade", "b2")
    (project.alembic / "versions" / "c3.py").unlink()
    app, smart = project.app()
    assert smart.boot(app).decision == "verified"
    with app.app_context():
        assert smart.database_state(app) == "up-to-date"
    Project.dispose(app)
