"""Databases of Git branches: one for each, nothing that was entered is lost, and never outside debug mode."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import BootReport
from aurum_harmony.db_smart.errors import ConfigError, DbSmartError
from aurum_harmony.db_smart.store.branches import _slug, _unslug
from tests.harness.alembic_project import AlembicProject
from tests.harness.files import file_limit, leave_wal
from tests.harness.processes import BECOME_NOBODY, environment, run_harness, run_python
from tests.harness.project import Project
from tests.harness.repository import git

NOTES = """
@migration
def notes(op: Operations) -> None:
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("text", String(50)))
"""
COLOUR = """
@migration
def colour(op: Operations) -> None:
    op.add_column("notes", Column("colour", String(50)))
"""


#: A process that boots on its branch, and says how many notes it finds: ``python -c CHILD`` with :func:`arguments_of`.
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import filelock
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.errors import DbSmartError
if len(sys.argv) == 5:  # before another user has no right to read it
    from aurum_harmony.db_smart.boot import branch
    from aurum_harmony.db_smart.dialects.sqlite import facts
app = Flask("child", root_path=sys.argv[1], instance_path=sys.argv[3])
app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[4], DEBUG=True, DB_SMART_BRANCHES=len(sys.argv) == 5)
db = SQLAlchemy(app)
smart = DbSmart(app, db, migrations=sys.argv[2])
try:
    report = smart.boot(app)
except DbSmartError as error:
    sys.exit(print(error.message))
if len(sys.argv) > 5:
    print([name for name in sys.modules if "branch" in name or name.endswith(".git")])
    sys.exit(print(report.decision))
with app.app_context():
    print(db.session.scalar(sa.text("SELECT count(*) FROM notes")))
"""


def arguments_of(project: Project) -> tuple[str, ...]:
    url = make_url(project.url).render_as_string(hide_password=False)
    return str(project.directory), project.module, str(project.instance), url


class Developer:
    """A person with a repository, in which the application of a project is."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(project.directory)  # where the application is whose module has no file
        self.monkeypatch = monkeypatch
        self.project = project
        self.folder = project.directory
        self.git("init", "-q")
        (self.folder / ".gitignore").write_text("*\n!migrations_*.py\n")
        self.commit(NOTES)

    def git(self, *arguments: str) -> str:
        return git(self.folder, *arguments)

    def commit(self, source: str) -> None:
        self.project.write(source)
        self.git("add", self.project.file.name)
        self.git("commit", "-q", "-m", "change")

    def boot(self, *notes: str, **config: Any) -> tuple[BootReport, str, list[str], bool]:
        """Boot, enter notes, and say what the application sees: its database, the notes, whether they have colours."""
        app, smart = self.project.app(**{"DEBUG": True, "DB_SMART_BRANCHES": True, **config})
        try:
            report = smart.boot(app)
            db = app.extensions["sqlalchemy"]
            with app.app_context():
                for note in notes:
                    db.session.execute(sa.text("INSERT INTO notes (text) VALUES (:text)"), {"text": note})
                db.session.commit()
                found = list(db.session.scalars(sa.text("SELECT text FROM notes ORDER BY id")))
                colours = "colour" in {column["name"] for column in sa.inspect(db.engine).get_columns("notes")}
                return report, os.path.basename(db.engine.url.database), found, colours
        finally:
            self.project.dispose(app)

    def run(self, *arguments: str, **config: Any) -> Any:
        """Run ``flask db-smart branch``, of which Flask itself sets the debug mode."""
        self.monkeypatch.setenv("FLASK_DEBUG", str(config.get("DEBUG", True)))
        return self.project.run("branch", *arguments, **{"DEBUG": True, "DB_SMART_BRANCHES": True, **config})


@pytest.fixture(params=["sqlite", "postgresql"])
def base(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> Any:
    """A database, and no other one of its branches afterwards."""
    url = new_url(request.param)
    yield url
    if request.param == "postgresql":
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            names = sa.text("SELECT datname FROM pg_database WHERE starts_with(datname, :begin)")
            for name in connection.scalars(names, {"begin": f"{url.database}.branch-"}).all():
                connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def developer(base: URL, make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> Developer:
    project = make_project(base)
    return Developer(project, monkeypatch)


@pytest.fixture
def on_sqlite(sqlite_project: Project, monkeypatch: pytest.MonkeyPatch) -> Developer:
    return Developer(sqlite_project, monkeypatch)


def test_each_branch_has_its_database_and_loses_nothing(developer: Developer) -> None:
    base = os.path.basename(make_url(developer.project.url).database or "")
    assert developer.boot("first")[1:] == (base, ["first"], False)

    developer.git("checkout", "-q", "-b", "feature/x")
    developer.commit(NOTES + COLOUR)
    report, name, notes, colours = developer.boot("on x")
    assert (report.applied, notes, colours) == (("colour",), ["first", "on x"], True)
    assert ".branch-feature~2Fx" in name

    developer.git("checkout", "-q", "main")
    report, name, notes, colours = developer.boot("second")
    assert (report.decision, name, notes, colours) == ("verified", base, ["first", "second"], False)
    assert developer.boot()[0].decision == "skipped"

    developer.git("checkout", "-q", "feature/x")
    report, name, notes, colours = developer.boot()
    assert (report.decision, report.applied, notes, colours) == ("verified", (), ["first", "on x"], True)


def test_a_branch_begins_with_the_database_of_the_branch_that_it_was_made_from(developer: Developer) -> None:
    developer.boot("first")
    developer.git("checkout", "-q", "-b", "x")
    developer.boot("on x")
    developer.git("checkout", "-q", "-b", "y")
    assert developer.boot("on y")[2] == ["first", "on x", "on y"]
    developer.git("branch", "-q", "z", "main")
    developer.git("checkout", "-q", "z")
    assert developer.boot()[2] == ["first"]
    developer.git("branch", "-q", "-m", "y", "renamed")
    developer.git("checkout", "-q", "renamed")
    assert developer.boot()[2] == ["first", "on x", "on y"]


def test_what_is_checked_out_without_a_branch_does_not_touch_a_branch(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "--detach")
    _, name, notes, _ = on_sqlite.boot("loose")
    assert (name.split(".branch-")[1], notes) == ("~48~45~41~44.sqlite", ["first", "loose"])
    on_sqlite.git("checkout", "-q", "main")
    assert on_sqlite.boot()[2] == ["first"]


def test_a_branch_that_is_rebased_keeps_its_database(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    on_sqlite.boot("on x")
    on_sqlite.commit(NOTES + COLOUR)
    on_sqlite.git("checkout", "-q", "main")
    on_sqlite.commit(NOTES + "\n# else\n")
    on_sqlite.git("checkout", "-q", "x")
    with pytest.raises(AssertionError, match="could not apply"):
        on_sqlite.git("rebase", "main")
    on_sqlite.project.write(NOTES)
    assert on_sqlite.boot()[2] == ["first", "on x"]


def test_a_rebase_that_was_left_by_a_checkout_does_not_count(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    on_sqlite.boot("second")
    (on_sqlite.folder / ".git" / "rebase-merge").mkdir()
    (on_sqlite.folder / ".git" / "rebase-merge" / "head-name").write_text("refs/heads/x\n")
    on_sqlite.git("checkout", "-q", "main")
    assert on_sqlite.boot()[2] == ["first"]


def test_what_a_further_working_tree_has_checked_out_is_not_deleted(on_sqlite: Developer, tmp_path: Path) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    on_sqlite.boot()
    on_sqlite.git("checkout", "-q", "main")
    on_sqlite.git("worktree", "add", "-q", str(tmp_path / "tree"), "x")
    result = on_sqlite.run("--delete", "x", "--yes")
    assert result.exit_code == 1
    assert "is checked out" in result.output
    assert list(on_sqlite.folder.glob("*.branch-x*"))


def test_a_further_working_tree_has_the_database_of_its_branch(
    on_sqlite: Developer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_sqlite.boot("first")
    tree, stem = tmp_path / "tree", Path(make_url(on_sqlite.project.url).database or "").stem
    on_sqlite.git("worktree", "add", "-q", "-b", "x", str(tree), "main")
    monkeypatch.chdir(tree)
    assert on_sqlite.boot("on x")[1:3] == (f"{stem}.branch-x.sqlite", ["first", "on x"])
    monkeypatch.chdir(tmp_path)
    assert on_sqlite.boot()[2] == ["first"]


@pytest.mark.parametrize("branch", ["Feature", "feature", "käse/ärger", "#%&", "x" * 200])
def test_names_of_branches(branch: str) -> None:
    slug = _slug(branch, 150)
    assert slug == slug.encode("ascii").decode()
    assert len(slug) <= 150
    assert _unslug(slug) == (branch if len(branch) < 150 else None)


def test_names_differ_where_a_file_system_does_not_tell_capitals() -> None:
    names = ["feature", "Feature", "FEATURE", "feature/x", "feature-x", *("y" * 150 + end for end in "ab")]
    assert len({_slug(name, 60).lower() for name in names}) == len(names)


def test_long_and_foreign_names(developer: Developer) -> None:
    developer.boot("first")
    for branch in ("x" * 100 + "/" + "y" * 100, "x" * 100 + "/" + "z" * 100, "Käse", "käse"):
        developer.git("checkout", "-q", "-b", branch, "main")
        assert developer.boot(branch[-20:])[2] == ["first", branch[-20:]]
    found = json.loads(developer.run("--json").stdout)["databases"][0]["kept"]
    assert len(found) == 4
    assert not any(one["gone"] for one in found)
    assert {one["branch"] for one in found} >= {"Käse", "x" * 100 + "/" + "y" * 100}


def test_what_is_in_the_wal_alone_is_copied(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    file = make_url(on_sqlite.project.url).database or ""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("INSERT INTO notes (text) VALUES ('in the WAL')")
        connection.commit()
        assert b"in the WAL" not in Path(file).read_bytes()
        on_sqlite.git("checkout", "-q", "-b", "x")
        assert on_sqlite.boot()[2] == ["first", "in the WAL"]
        on_sqlite.git("checkout", "-q", "main")
        assert on_sqlite.boot()[2] == ["first", "in the WAL"]


def test_a_process_that_is_open_stays_with_its_database(on_sqlite: Developer) -> None:
    app, smart = on_sqlite.project.app(DEBUG=True, DB_SMART_BRANCHES=True)
    smart.boot(app)
    db = app.extensions["sqlalchemy"]
    with app.app_context():
        db.session.execute(sa.text("INSERT INTO notes (text) VALUES ('before')"))
        db.session.commit()
        on_sqlite.git("checkout", "-q", "-b", "x")
        on_sqlite.boot("on x")
        db.session.execute(sa.text("INSERT INTO notes (text) VALUES ('still main')"))
        db.session.commit()
    on_sqlite.project.dispose(app)
    assert on_sqlite.boot()[2] == ["before", "on x"]
    on_sqlite.git("checkout", "-q", "main")
    assert on_sqlite.boot()[2] == ["before", "still main"]


def test_it_is_off_by_default_and_costs_nothing(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    assert on_sqlite.boot(DB_SMART_BRANCHES=False)[1] == os.path.basename(
        make_url(on_sqlite.project.url).database or ""
    )
    assert run_python(CHILD, *arguments_of(on_sqlite.project), "off") == "[]\nskipped\n"


def test_outside_debug_mode_it_says_that_it_has_no_effect(
    on_sqlite: Developer, caplog: pytest.LogCaptureFixture
) -> None:
    on_sqlite.git("checkout", "-q", "-b", "x")
    assert on_sqlite.boot(DEBUG=False)[1] == os.path.basename(make_url(on_sqlite.project.url).database or "")
    assert "DB_SMART_BRANCHES has no effect, because this is not debug mode" in caplog.text
    result = on_sqlite.run("--switch", DEBUG=False)
    assert result.exit_code == 1
    assert "debug mode" in result.output


def test_tests_of_the_application_use_the_database_of_the_url(
    on_sqlite: Developer, caplog: pytest.LogCaptureFixture
) -> None:
    on_sqlite.git("checkout", "-q", "-b", "x")
    caplog.clear()
    assert on_sqlite.boot(TESTING=True)[1] == os.path.basename(make_url(on_sqlite.project.url).database or "")
    assert "DB_SMART_BRANCHES" not in caplog.text
    result = on_sqlite.run("--switch", TESTING=True)
    assert result.exit_code == 1
    assert "not with TESTING" in result.output


def test_the_branch_that_is_named_must_be_there(on_sqlite: Developer) -> None:
    """It is the only one to have the database of the URL, so that after a slip every branch would have another."""
    on_sqlite.git("checkout", "-q", "-b", "x")
    with pytest.raises(ConfigError, match="DB_SMART_BRANCHES is 'Ture', but this repository has no branch"):
        on_sqlite.boot(DB_SMART_BRANCHES="Ture")
    assert list(on_sqlite.folder.glob("*.branch-*")) == []
    on_sqlite.git("update-ref", "refs/remotes/origin/team/trunk", "HEAD")
    on_sqlite.boot(DB_SMART_BRANCHES="team/trunk")
    on_sqlite.git("pack-refs", "--all")
    on_sqlite.boot(DB_SMART_BRANCHES="team/trunk")


def test_the_command_lists_switches_and_deletes(developer: Developer) -> None:
    developer.boot("first")
    developer.git("checkout", "-q", "-b", "x")
    assert "not there yet: the next boot copies" in developer.run().stdout
    result = developer.run("--switch")
    assert result.exit_code == 0, result.output
    text = developer.run().stdout
    assert "Branch: x\n" in text
    assert "not there yet" not in text
    status = developer.project.run("status", "--json", DEBUG=True, DB_SMART_BRANCHES=True)
    assert json.loads(status.stdout)["branch"] == "x"
    status = developer.project.run("status", DEBUG=True, DB_SMART_BRANCHES=True)
    assert status.stdout.startswith("Branch: x\n")
    assert not developer.project.run("status").stdout.startswith("Branch")
    assert "of the URL, for the branch main" in text
    assert ".branch-x" in text
    assert "is checked out" in developer.run("--delete", "x", "--yes").output
    developer.git("checkout", "-q", "main")
    assert "No database is kept" in developer.run("--delete", "main", "--yes").output
    assert developer.run("--prune", "--yes").stdout == "There is nothing to delete.\n"
    developer.git("branch", "-q", "-D", "x")
    assert "its branch is gone" in developer.run().stdout
    assert developer.run("--prune").exit_code == 1  # nobody answers
    (kept,) = json.loads(developer.run("--json").stdout)["databases"][0]["kept"]
    assert (kept["branch"], kept["gone"]) == ("x", True)
    assert kept["size"] > 1000
    assert kept["changed"]
    result = developer.run("--prune", "--yes", "--json")
    assert result.exit_code == 0
    assert "Deleted" in result.stderr
    assert json.loads(result.stdout)["databases"][0]["kept"] == []
    assert not list(developer.folder.glob("*.branch-*"))
    assert developer.boot()[2] == ["first"]


def test_a_database_in_use_is_not_deleted(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    _, name, _, _ = on_sqlite.boot()
    on_sqlite.git("checkout", "-q", "main")
    with closing(sqlite3.connect(on_sqlite.folder / name)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("SELECT * FROM notes").fetchall()
        result = on_sqlite.run("--delete", "x", "--yes")
        assert result.exit_code == 1
        assert "locked" in result.output
    assert on_sqlite.run("--delete", "x", "--yes").exit_code == 0
    assert not list(on_sqlite.folder.glob("*.branch-*"))


def test_sessions_that_keep_postgresql_from_copying_are_named(
    new_url: Callable[[str], URL], make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(new_url("postgresql"))
    developer = Developer(project, monkeypatch)
    developer.boot("first")
    developer.git("checkout", "-q", "-b", "x")
    engine = sa.create_engine(
        make_url(project.url).update_query_dict({"application_name": "a shell"}), poolclass=sa.pool.NullPool
    )
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        with pytest.raises(DbSmartError, match=r"Nothing was changed\. Close it in: a shell \(session \d+ of "):
            developer.boot()
        assert connection.scalar(sa.text("SELECT count(*) FROM notes")) == 1  # it was not ended
        developer.git("checkout", "-q", "main")
        assert developer.boot()[2] == ["first"]


def test_settings_of_a_postgresql_database_are_copied(developer: Developer) -> None:
    if developer.project.dialect != "postgresql":
        return
    developer.boot("first")
    name = make_url(developer.project.url).database
    developer.project.query(f"ALTER DATABASE \"{name}\" SET search_path TO 'Other one', public")
    developer.project.query('CREATE SCHEMA "Other one"')
    developer.git("checkout", "-q", "-b", "x")
    app, smart = developer.project.app(DEBUG=True, DB_SMART_BRANCHES=True)
    smart.boot(app)
    engine = app.extensions["sqlalchemy"]._app_engines[app][None]
    with engine.connect():
        assert engine.dialect.default_schema_name == "Other one"
    developer.project.dispose(app)
    there = make_url(developer.project.url).set(database=f"{name}.branch-x")
    engine = sa.create_engine(there, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW search_path")) == '"Other one", public'


def test_a_full_disk_leaves_nothing(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    with file_limit(10_000), pytest.raises(DbSmartError, match="no part of the copy was kept"):
        on_sqlite.boot()
    assert not list(on_sqlite.folder.glob("*.branch-*"))
    assert on_sqlite.boot()[2] == ["first"]


def test_mariadb_is_refused(
    new_url: Callable[[str], URL], make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(new_url("mariadb"))
    with pytest.raises(ConfigError, match="only files of SQLite and databases of PostgreSQL can be copied"):
        Developer(project, monkeypatch).boot()


def test_an_engine_that_does_not_go_by_its_url_is_refused(on_sqlite: Developer) -> None:
    file = make_url(on_sqlite.project.url).database or ""
    options = {"creator": lambda: sqlite3.connect(file)}
    with pytest.raises(ConfigError, match="a creator or a pool of its own"):
        on_sqlite.boot(SQLALCHEMY_ENGINE_OPTIONS=options)


def test_it_must_be_clear_which_branch_has_the_database_of_the_url(on_sqlite: Developer) -> None:
    on_sqlite.git("branch", "-q", "-m", "trunk")
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    with pytest.raises(ConfigError, match="It is not clear which branch"):
        on_sqlite.boot()
    assert on_sqlite.boot(DB_SMART_BRANCHES="trunk")[2] == ["first"]
    assert len(list(on_sqlite.folder.glob("*.branch-x.sqlite"))) == 1


def test_a_checkout_that_goes_on_is_waited_for(on_sqlite: Developer) -> None:
    """Git writes the migrations of the other branch first, which makes a reloader boot, and HEAD last."""
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    on_sqlite.commit(NOTES + COLOUR)
    on_sqlite.git("checkout", "-q", "main")
    lock, head = on_sqlite.folder / ".git/index.lock", on_sqlite.folder / ".git/HEAD"
    lock.touch()
    on_sqlite.project.write(NOTES + COLOUR)

    def finish() -> None:
        head.write_text("ref: refs/heads/x\n")
        lock.unlink()

    timer = threading.Timer(0.5, finish)
    timer.start()
    assert ".branch-x" in on_sqlite.boot()[1]
    timer.join()


def test_a_branch_keeps_its_database_when_another_one_becomes_the_main_branch(developer: Developer) -> None:
    developer.boot("first")
    developer.git("checkout", "-q", "-b", "x")
    developer.boot("on x")
    assert developer.boot(DB_SMART_BRANCHES="x")[2] == ["first", "on x"]
    developer.git("checkout", "-q", "main")
    assert developer.boot("second", DB_SMART_BRANCHES="x")[2] == ["first", "second"]
    developer.git("checkout", "-q", "-b", "y")
    assert developer.boot()[2] == ["first", "second"]


def test_processes_that_boot_together_on_a_new_branch_make_one_copy(developer: Developer) -> None:
    developer.boot("first")
    developer.git("checkout", "-q", "-b", "x")
    command = [sys.executable, "-c", CHILD, *arguments_of(developer.project)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(4)
    ]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in ends] == ["1"] * 4, ends
    assert sum("from now on" in err for _, err in ends) == 1
    assert len(json.loads(developer.run("--json").stdout)["databases"][0]["kept"]) == 1


def test_a_folder_that_only_reads(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_directory / "data"
    folder.mkdir()
    project = Project(open_directory, "migrations_read", URL.create("sqlite", database=str(folder / "shop.db")))
    developer = Developer(project, monkeypatch)
    developer.boot("first")
    developer.git("checkout", "-q", "-b", "x")
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    try:
        said = run_python(CHILD.replace("try:\n", f"{BECOME_NOBODY}try:\n", 1), *arguments_of(project))
        assert re.search("Cannot copy .*: .*denied.* no part of the copy was kept", said), said
        assert sorted(folder.iterdir()) == before
    finally:
        folder.chmod(0o755)
    assert developer.boot()[2] == ["first"]


def test_revisions_of_alembic_follow_the_branch(
    make_alembic: Callable[..., AlembicProject], sqlite_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_alembic(sqlite_url, {"DEBUG": True, "DB_SMART_BRANCHES": True})
    monkeypatch.chdir(project.directory)
    monkeypatch.setenv("FLASK_DEBUG", "1")
    git(project.directory, "init", "-q")
    git(project.directory, "commit", "-q", "--allow-empty", "-m", "first")
    project.revision("aa", None, "op.create_table('notes', sa.Column('id', sa.Integer))")
    assert project.boot().applied == ("aa",)
    git(project.directory, "checkout", "-q", "-b", "x")
    project.revision("bb", "aa", "op.add_column('notes', sa.Column('text', sa.Text))")
    assert project.boot().applied == ("bb",)
    assert project.columns("notes") == {"id"}
    project.revision("cc", "bb", "op.add_column('notes', sa.Column('colour', sa.Text))")
    assert project.flask_db("upgrade").exit_code == 0
    assert project.columns("notes") == {"id"}


def test_none_is_switched_where_one_cannot_be_copied(on_sqlite: Developer, new_url: Callable[[str], URL]) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    with pytest.raises(ConfigError, match="'other'.*Nothing was changed"):
        on_sqlite.boot(SQLALCHEMY_BINDS={"other": new_url("mariadb")})
    assert not list(on_sqlite.folder.glob("*.branch-*"))


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_copies_loses_nothing(base: URL) -> None:
    report = run_harness("kill_branch", base.get_backend_name(), [base])
    assert report["kills"] > 8
    assert report["broken"] == 0


def test_a_branch_has_nothing_of_a_database_of_that_name_that_was_deleted(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    on_sqlite.git("checkout", "-q", "-b", "x")
    base = Path(make_url(on_sqlite.project.url).database or "")
    leave_wal(base.with_name(f"{base.stem}.branch-x{base.suffix}"))
    _, name, notes, _ = on_sqlite.boot()
    assert (name, notes) == (f"{base.stem}.branch-x{base.suffix}", ["first"])


def test_a_link_that_leads_nowhere_is_no_database_of_a_branch(on_sqlite: Developer) -> None:
    on_sqlite.boot("first")
    base = Path(make_url(on_sqlite.project.url).database or "")
    base.with_name(f"{base.stem}.branch-x{base.suffix}").symlink_to("nowhere")
    result = on_sqlite.run("--json")
    assert (result.exit_code, json.loads(result.stdout)["databases"][0]["kept"]) == (0, [])
