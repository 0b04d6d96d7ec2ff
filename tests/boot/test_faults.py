"""Broken flags, databases put back or swapped, and surroundings that fail: noticed, survived, said clearly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import ConfigError, DatabaseBehind, DatabaseUnreachable, DbSmartError, MigrationError
from aurum_harmony.db_smart.store.database import Database, begin
from tests.harness.processes import run_python
from tests.harness.project import HEADER, Project
from tests.samples import V1, V2

DATA = V1 + "\n@migration(once=True)\ndef seed(op):\n    op.execute(\"INSERT INTO items (id, name) VALUES (1, 'a')\")\n"


def _nothing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _huge(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(100_000_000)


def _newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (_nothing, "there is no flag file"),
    "empty": (lambda path: path.write_text(""), "empty"),
    "truncated": (lambda path: path.write_text(path.read_text()[:-10]), "cut short"),
    "original": (lambda path: path.write_text("Migration completed on 2025-12-12 10:00:00"), "not one of db-smart"),
    "random": (lambda path: path.write_bytes(bytes(range(256)) * 40), "not one of db-smart"),
    "other program": (lambda path: path.write_text('{"version": 3, "databases": []}'), "another program"),
    "huge": (_huge, "too large"),
    "directory": (_directory, "directory"),
    "newer": (_newer, "format 99"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_flag_costs_a_look_at_the_database(
    sqlite_project: Project, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot()
    spoil, reason = BROKEN[kind]
    caplog.clear()  # the first boot says that it migrated
    spoil(sqlite_project.flag)
    caplog.set_level(logging.WARNING, "aurum_harmony.db_smart")
    report = sqlite_project.boot()
    assert report.decision == "verified"
    assert reason in report.reason
    if kind == "directory":
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert sqlite_project.flag.is_dir()
    else:
        assert caplog.records == []
        assert sqlite_project.boot().decision == "skipped"
    assert sqlite_project.history() == [("make_items", "applied")]


def test_a_flag_for_another_database(project: Project, new_url: Callable[[str], URL]) -> None:
    project.write(V1)
    project.boot()
    first, project.url = project.url, new_url({"mysql": "mariadb"}.get(project.dialect, project.dialect))
    report = project.boot()
    assert (report.decision, report.applied) == ("migrated", ("make_items",))
    assert "is now" in report.reason
    project.url = first
    assert project.boot().decision == "verified"


UNPRIVILEGED = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
sys.path.insert(0, sys.argv[1])
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
import aurum_harmony.db_smart.boot.keepalive, aurum_harmony.db_smart.boot.plan, aurum_harmony.db_smart.boot.turn
import aurum_harmony.db_smart.store.history, secrets, sqlalchemy
from aurum_harmony.db_smart import DbSmart
sqlalchemy.create_engine(sys.argv[4]).connect().close()
os.setuid(65534)  # only now: this user may not read where Python itself is installed
app = Flask("unprivileged", instance_path=sys.argv[3])
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[4]
db = SQLAlchemy()
db.init_app(app)
print(DbSmart(app, db, migrations=sys.argv[2]).boot(app).decision)
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("what", ["folder", "flag"])
def test_a_folder_or_flag_without_rights_costs_one_warning(
    make_project: Callable[..., Project], open_directory: Path, what: str, new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("mariadb"))
    project.directory = open_directory
    project.write(V1)
    project.boot()
    if what == "folder":
        project.flag.unlink()
        project.instance.chmod(0o555)
    else:
        project.flag.chmod(0)
    command = [sys.executable, "-c", UNPRIVILEGED, str(open_directory), project.module, str(project.instance)]
    url = make_url(project.url).render_as_string(hide_password=False)
    for _ in range(2):
        result = subprocess.run([*command, url], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "verified"
        assert sum(line.startswith("WARNING") for line in result.stdout.splitlines()) == 1
        assert "cannot write the flag" in result.stdout
    project.instance.chmod(0o755)


def test_the_instance_folder_is_made(sqlite_project: Project) -> None:
    sqlite_project.url = URL.create("sqlite", database=str(sqlite_project.instance / "deep" / "x.db"))
    sqlite_project.write(V1)
    assert not sqlite_project.instance.exists()
    assert sqlite_project.boot().decision == "migrated"
    assert sqlite_project.boot().decision == "skipped"


@pytest.fixture(params=["delete", "wal"])
def journal(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def filled(sqlite_project: Project, journal: str) -> tuple[Project, Path]:
    """A migrated SQLite database in each journal mode, and a copy from before its last migration, of data alone."""
    path = Path(str(make_url(sqlite_project.url).database))
    sqlite_project.write(V1)
    sqlite_project.boot()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
    connection.close()
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    sqlite_project.write(DATA)
    assert sqlite_project.boot().applied == ("seed",)
    assert sqlite_project.boot().decision == "skipped"
    return sqlite_project, copy


class TestSqliteFile:
    """What happens to the file while the flag stands is noticed at boot, without a query."""

    def test_deleted(self, filled: tuple[Project, Path]) -> None:
        project, copy = filled
        copy.with_suffix(".sqlite").unlink()
        report = project.boot()
        assert report.applied == ("make_items", "seed")
        assert "is gone" in report.reason

    def test_replaced(self, filled: tuple[Project, Path]) -> None:
        project, copy = filled
        os.replace(copy, copy.with_suffix(".sqlite"))
        report = project.boot()
        assert report.applied == ("seed",)
        assert "was replaced" in report.reason

    def test_older_copy_written_over_it(self, filled: tuple[Project, Path]) -> None:
        project, copy = filled
        for suffix in ("-wal", "-shm"):
            Path(f"{copy.with_suffix('.sqlite')}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(copy, copy.with_suffix(".sqlite"))
        report = project.boot()
        assert report.applied == ("seed",)
        assert "older copy" in report.reason

    def test_the_applications_own_writes_are_not_mistaken(self, filled: tuple[Project, Path]) -> None:
        project, _ = filled
        project.query("INSERT INTO items (id, name) VALUES (5, 'x')")
        project.query("DELETE FROM items WHERE id = 5")
        assert project.boot().decision == "skipped"

    def test_a_schema_changed_by_hand_is_looked_at_once(self, filled: tuple[Project, Path]) -> None:
        project, _ = filled
        project.query("CREATE INDEX by_hand ON items (name)")
        assert project.boot().decision == "verified"
        assert project.boot().decision == "skipped"

    def test_while_another_process_reads_in_wal_mode(self, filled: tuple[Project, Path], journal: str) -> None:
        project, copy = filled
        reader = sqlite3.connect(copy.with_suffix(".sqlite"))
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM items").fetchall()
        try:
            if journal == "wal":
                project.write(DATA + "\n@migration\ndef more(op): op.execute(\"UPDATE items SET name = 'b'\")\n")
                assert project.boot().applied == ("more",)
            assert project.boot().decision in ("skipped", "verified")
        finally:
            reader.close()
        assert project.history()[-1][1] == "applied"


def test_a_name_in_the_way_of_the_instance_folder_is_survived(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.config["DB_SMART_FLAG"] = str(sqlite_project.file / "flag")  # below a file: cannot be made
    assert sqlite_project.boot().decision == "migrated"
    assert sqlite_project.boot().decision == "verified"


BAD_MODULES = {
    "two of one name": (
        "@migration\ndef a(op): pass\n@migration\ndef a(op): len('x')\n",
        "Two migrations are named 'a'",
    ),
    "syntax": ("def (:\n", "cannot be imported"),
    "import": ("import nowhere_at_all\n", "No module named 'nowhere_at_all'"),
    "raises": ("1 / 0\n", "ZeroDivisionError"),
}


@pytest.mark.parametrize("kind", BAD_MODULES)
def test_bad_modules_are_one_clear_message(sqlite_project: Project, kind: str) -> None:
    source, message = BAD_MODULES[kind]
    path = sqlite_project.write(source)
    with pytest.raises(MigrationError, match=message) as caught:
        sqlite_project.boot()
    assert str(path) in caught.value.message
    assert not Path(str(make_url(sqlite_project.url).database)).exists()
    for command in ("migrate", "status"):
        result = sqlite_project.run(command)
        assert result.exit_code == 1
        assert message in result.output
        assert "Traceback" not in result.output


def test_a_module_that_is_not_there(sqlite_project: Project) -> None:
    with pytest.raises(MigrationError, match="There is no module of migrations"):
        sqlite_project.boot()


UNREACHABLE = {
    "no server": ("postgresql+psycopg://joe:s3cret%40x@127.0.0.1:1/db", "Cannot connect"),
    "no mariadb": ("mysql+pymysql://joe:s3cret%40x@127.0.0.1:1/db", "Cannot connect"),
    "no host": ("postgresql+psycopg://joe:s3cret%40x@no.such.host.invalid/db", "Cannot connect"),
    "folder": ("sqlite:////proc/nowhere/x.db", "annot"),
}


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_an_unreachable_database_is_one_message_without_password(sqlite_project: Project, kind: str) -> None:
    url, message = UNREACHABLE[kind]
    sqlite_project.write(V1)
    sqlite_project.url = url
    with pytest.raises(DbSmartError, match=message) as caught:
        sqlite_project.boot()
    assert "s3cret" not in caught.value.message
    result = sqlite_project.run("migrate")
    assert result.exit_code == 1
    assert "s3cret" not in result.output
    assert "Traceback" not in result.output
    if kind != "folder":
        result = sqlite_project.run("status", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["state"] == "unreachable"
        assert message in result.stderr
        assert "s3cret" not in result.output


@pytest.mark.parametrize("dialect", ["mariadb"])
def test_a_wrong_password(sqlite_project: Project, new_url: Callable[[str], URL], dialect: str) -> None:
    sqlite_project.write(V1)
    sqlite_project.url = new_url(dialect).set(username="nobody_here", password="wr0ng/pass")
    with pytest.raises(DatabaseUnreachable, match="(?i)access denied") as caught:
        sqlite_project.boot()
    assert "wr0ng" not in caught.value.message


def test_a_wrong_password_on_postgresql(sqlite_project: Project, new_url: Callable[[str], URL]) -> None:
    sqlite_project.write(V1)
    sqlite_project.url = new_url("postgresql").set(username="nobody_here", password="wr0ng/pass")
    with pytest.raises(DatabaseUnreachable, match="nobody_here") as caught:
        sqlite_project.boot()
    assert "wr0ng" not in caught.value.message


def test_migration_url(project: Project, new_url: Callable[[str], URL]) -> None:
    project.write(V1)
    config = {"DB_SMART_MIGRATION_URL": make_url(project.url).render_as_string(hide_password=False)}
    assert project.boot(**config).decision == "migrated"
    assert project.boot(**config).decision == "skipped"
    project.flag.unlink()
    project.write(V2)
    other = new_url("sqlite")
    with pytest.raises(DbSmartError, match=f"leads to {other}, .* another database.*Nothing was changed"):
        project.boot(DB_SMART_MIGRATION_URL=other.render_as_string())
    assert not project.flag.exists()
    with sa.create_engine(other, poolclass=sa.pool.NullPool).connect() as connection:
        assert sa.inspect(connection).get_table_names() == []
    for bad in ("nonsense", "postgres://a:s3cret@h/x", "mysql+nodriver://a:s3cret@h/x"):
        with pytest.raises(ConfigError, match="DB_SMART_MIGRATION_URL") as caught:
            project.boot(DB_SMART_MIGRATION_URL=bad)
        assert "s3cret" not in caught.value.message


def test_a_role_that_may_only_read_verifies(sqlite_project: Project, new_url: Callable[[str], URL]) -> None:
    url = new_url("postgresql")
    sqlite_project.write(V1)
    sqlite_project.url = url
    sqlite_project.boot()
    role = f"reader_{url.database}"
    sqlite_project.query(f"CREATE ROLE {role} LOGIN")
    try:
        sqlite_project.url = url.set(username=role)
        with pytest.raises(DatabaseUnreachable, match="right to read db_smart_state"):
            sqlite_project.boot(DB_SMART_BOOT="check")
        sqlite_project.url = url
        sqlite_project.query(f"GRANT SELECT ON db_smart_state, db_smart_history TO {role}")
        sqlite_project.url = url.set(username=role)
        assert sqlite_project.boot(DB_SMART_BOOT="check").decision == "verified"
        sqlite_project.write(V2)
        with pytest.raises(DatabaseBehind, match="add_price"):
            sqlite_project.boot(DB_SMART_BOOT="check")
        with pytest.raises(DbSmartError, match="permission denied for table db_smart_state"):
            sqlite_project.boot()
    finally:
        sqlite_project.url = url
        sqlite_project.query(f"DROP OWNED BY {role}")
        sqlite_project.query(f"DROP ROLE {role}")


def test_a_settings_error_says_what_is_allowed(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with pytest.raises(ConfigError, match="DB_SMART_BOOT is 'sometimes'; it must be 'migrate', 'backgr"):
        sqlite_project.boot(DB_SMART_BOOT="sometimes")
    with pytest.raises(ConfigError, match="FORCE_DB_MIGRATION is 'maybe'; it must be one of 1, true, yes, on"):
        sqlite_project.boot(FORCE_DB_MIGRATION="maybe")


def test_force_at_boot(sqlite_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot()
    monkeypatch.setenv("FORCE_DB_MIGRATION", "Yes")
    report = sqlite_project.boot()
    assert (report.decision, report.reason) == ("migrated", "forced by FORCE_DB_MIGRATION")
    assert report.applied == ("make_items",)
    monkeypatch.setenv("FORCE_DB_MIGRATION", "off")
    assert sqlite_project.boot().decision == "skipped"


def test_registering_twice_or_without_migrations(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    app, smart = sqlite_project.app()
    with pytest.raises(ConfigError, match="already registered"):
        smart.init_app(app, migrations="x")
    assert app.extensions["db_smart"] is smart


#: What a boot with nothing to do may import of the package. As it says what is allowed, a module that moves is found.
LIGHT = (
    *("", "errors", "files", "notices", "settings", "signals"),
    *("boot", "boot.app_state", "boot.decision", "boot.flag", "boot.planner", "commands", "extension"),
    *("loading", "loading.sources", "store", "store.database"),
    *("dialects", "dialects.base", "dialects.*.facts", "dialects.mariadb", "dialects.postgresql", "dialects.sqlite"),
)


def test_a_process_without_anything_to_do_imports_nothing_heavy(sqlite_project: Project) -> None:
    sqlite_project.write(V1, header=HEADER)
    sqlite_project.boot()
    code = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        from flask import Flask
        from flask_sqlalchemy import SQLAlchemy
        from aurum_harmony.db_smart import DbSmart
        app = Flask("warm", instance_path=sys.argv[3])
        app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[4]
        db = SQLAlchemy()
        db.init_app(app)
        print(DbSmart(app, db, migrations=sys.argv[2]).boot(app).decision)
        print(*sys.modules)
    """)
    project = sqlite_project
    arguments = [str(project.directory), project.module, str(project.instance), str(make_url(project.url))]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    decision, imported = result.stdout.splitlines()
    assert decision == "skipped"
    package = "aurum_harmony.db_smart"
    ours = [name.removeprefix(package).lstrip(".") for name in imported.split() if name.startswith(package)]
    assert "extension" in ours
    assert [name for name in ours if not any(fnmatchcase(name, one) for one in LIGHT)] == []
    assert {"alembic", "rich", project.module}.isdisjoint(imported.split())


def test_history_and_flag_hold_no_password(project: Project) -> None:
    project.write("@migration\ndef bad(op): op.execute('SELECT nothing_here FROM nowhere')\n")
    with pytest.raises(DbSmartError):
        project.boot()
    project.write(V1)
    project.boot()
    engine = sa.create_engine(project.url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM db_smart_history")).all()
    engine.dispose()
    password = make_url(project.url).password
    for text in (repr(rows), project.flag.read_text()):
        assert not password or password not in text


def test_a_locked_database_is_one_clear_message(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": 0.1}}
    sqlite_project.query("CREATE TABLE other (id INTEGER)")
    blocker = sqlite3.connect(str(make_url(sqlite_project.url).database), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(DbSmartError, match="Cannot migrate the database 'default' .* database is locked"):
        sqlite_project.boot(DB_SMART_DDL_RETRIES=2)
    blocker.close()
    assert sqlite_project.boot().decision == "migrated"


def test_looking_at_the_file_ends_no_lock_of_this_process(sqlite_project: Project) -> None:
    """POSIX ends every lock of a process on a file when the process closes any descriptor of it."""
    sqlite_project.write(V1)
    sqlite_project.boot()
    engine = sa.create_engine(sqlite_project.url, poolclass=sa.pool.NullPool)
    database = Database("default", None, engine)
    with database.connect() as connection:
        begin(connection)
        assert database.file_state() is not None
        try_to_write = (
            "import sqlite3, sys\n"
            "try: sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')\n"
            "except sqlite3.OperationalError as error: print(error)\n"
        )
        assert run_python(try_to_write, str(database.path)) == "database is locked\n"
