"""A snapshot belongs to one database, and runs that fail do not take away the one that matters."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from aurum_harmony.db_smart.store.snapshot import _same
from tests.harness.project import Project
from tests.harness.snapshots import file_of, rows, taken
from tests.samples import V1, V2

NAMES = "SELECT name FROM items"


def at(project: Project, path: Path) -> Project:
    """The same application, in the same instance folder, with its database in another place."""
    path.parent.mkdir(exist_ok=True, parents=True)
    return Project(project.directory, project.module, URL.create("sqlite", database=str(path)), dict(project.config))


def migrated(project: Project, name: str) -> Project:
    """Take a database through two runs, so that there is a snapshot of the state between them, with one row."""
    project.write(V1)
    project.boot()
    project.query("INSERT INTO items (id, name) VALUES (1, :name)", name=name)
    project.write(V2)
    project.boot()
    return project


@pytest.fixture
def shops(sqlite_project: Project, tmp_path: Path) -> tuple[Project, Project]:
    """The real database and the one of the tests: one instance folder, one file name, two folders."""
    real = migrated(at(sqlite_project, tmp_path / "prod" / "shop.db"), "real")
    return real, migrated(at(sqlite_project, tmp_path / "staging" / "shop.db"), "test")


def test_of_two_files_of_one_name_each_has_its_own(shops: tuple[Project, Project]) -> None:
    real, test = shops
    (first,), (second,) = taken(real), taken(test)
    assert rows(first.path, NAMES) == [("real",)]
    assert rows(second.path, NAMES) == [("test",)]
    result = real.run("snapshots")
    assert result.stdout.split()[0] == first.path.name
    assert second.path.name not in result.output
    assert "or of an earlier release: 1 in" in result.stderr
    result = real.run("restore", "--yes", second.path.name)
    assert result.exit_code == 1
    assert "1 there is of other databases" in result.output
    assert real.run("restore", "--yes").exit_code == 0
    assert real.query(NAMES) == [("real",)]


def test_the_runs_of_one_do_not_remove_those_of_the_other(shops: tuple[Project, Project]) -> None:
    real, test = shops
    kept = taken(real)
    for number in range(5):
        test.query("INSERT INTO items (id) VALUES (:id)", id=10 + number)
        test.boot(FORCE_DB_MIGRATION=True)
    assert len(taken(test)) == 3
    assert taken(real) == kept


def test_another_ones_is_put_back_when_it_is_named_with_from(shops: tuple[Project, Project]) -> None:
    real, test = shops
    (snapshot,) = taken(test)
    app, _ = real.app()
    for name in (snapshot.path.name, str(snapshot.path)):
        result = app.test_cli_runner().invoke(args=["db-smart", "restore", "--from", name], input="n\n")
        assert f"put back {snapshot.path} into {file_of(real)}?" in result.output
        assert "it belongs to another database" in result.output
        assert real.query(NAMES) == [("real",)]
    result = real.run("restore", "--yes", "--from", str(snapshot.path))
    assert result.exit_code == 0, result.output
    assert real.query(NAMES) == [("test",)]
    assert real.run("restore", "--from", "nothing").exit_code == 1
    assert real.run("restore", "x", "--from", str(snapshot.path)).exit_code == 2


def test_from_needs_to_know_into_which(shops: tuple[Project, Project], new_url: Callable[[str], URL]) -> None:
    real, test = shops
    (snapshot,) = taken(test)
    real.config["SQLALCHEMY_BINDS"] = {"other": new_url("sqlite")}
    result = real.run("restore", "--yes", "--from", str(snapshot.path))
    assert result.exit_code == 1
    assert "Name it with --database" in result.output
    assert real.run("restore", "--yes", "--from", str(snapshot.path), "--database", "default").exit_code == 0
    assert real.query(NAMES) == [("test",)]


def test_one_of_an_earlier_release_is_put_back_by_from(sqlite_project: Project) -> None:
    migrated(sqlite_project, "old")
    (snapshot,) = taken(sqlite_project)
    file = file_of(sqlite_project).name
    old = snapshot.path.rename(
        snapshot.path.with_name(f"default-{file}-20260101T000000.000000Z-before-add_price.sqlite")
    )
    assert taken(sqlite_project) == []
    sqlite_project.query("UPDATE items SET name = 'new'")
    sqlite_project.boot(FORCE_DB_MIGRATION=True)
    result = sqlite_project.run("restore", "--yes", "--from", old.name)
    assert result.exit_code == 0, result.output
    assert sqlite_project.query(NAMES) == [("old",)]


def test_a_new_database_in_the_same_place_is_another_one(sqlite_project: Project) -> None:
    migrated(sqlite_project, "first")
    (snapshot,) = taken(sqlite_project)
    file_of(sqlite_project).unlink()
    assert taken(sqlite_project) == [snapshot]  # whoever has lost the file finds the way back
    sqlite_project.boot()
    assert taken(sqlite_project) == []
    sqlite_project.config["DB_SMART_SNAPSHOTS"] = 1
    for number in range(3):
        sqlite_project.query("INSERT INTO items (id) VALUES (:id)", id=number)
        sqlite_project.boot(FORCE_DB_MIGRATION=True)
    assert snapshot.path.exists()
    result = sqlite_project.run("restore", "--yes", "--from", snapshot.path.name)
    assert result.exit_code == 0, result.output
    assert sqlite_project.query(NAMES) == [("first",)]
    assert snapshot in taken(sqlite_project)


def test_a_copy_in_another_place_is_another_one(sqlite_project: Project, tmp_path: Path) -> None:
    migrated(sqlite_project, "real")
    copy = at(sqlite_project, tmp_path / "copy" / file_of(sqlite_project).name)
    shutil.copyfile(file_of(sqlite_project), file_of(copy))
    assert taken(copy) == []
    assert len(taken(sqlite_project)) == 1


def test_a_link_leads_to_the_same_one(sqlite_project: Project, tmp_path: Path) -> None:
    """As where each release has a folder of its own, with a link to the shared file."""
    migrated(sqlite_project, "real")
    release = at(sqlite_project, tmp_path / "release" / file_of(sqlite_project).name)
    file_of(release).symlink_to(file_of(sqlite_project))
    assert taken(release) == taken(sqlite_project) != []


def test_a_server_has_none_to_put_back(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    project = make_project(new_url("postgresql"))
    project.write(V1)
    result = project.run("restore", "--yes")
    assert result.exit_code == 1
    assert "only SQLite files have them" in result.output


# Runs that fail

DROPS = """
@migration(destructive=True)
def drop_code(op): op.drop_column("items", "name")

@migration
def fails(op): op.execute("SELECT 1 FROM nowhere")
"""


@pytest.fixture
def failing(sqlite_project: Project) -> Project:
    """A database on its way through a run that dropped a column and then failed."""
    migrated(sqlite_project, "precious")
    sqlite_project.write(V2 + DROPS)
    return sqlite_project


def start(project: Project) -> None:
    with pytest.raises(MigrationFailed, match="'fails' failed"):
        project.boot()


def test_a_crash_loop_makes_one_snapshot_of_one_state(failing: Project) -> None:
    start(failing)
    precious = taken(failing)[-1]
    for _ in range(6):
        start(failing)
    assert [item.before for item in taken(failing)] == ["add_price", "drop_code", "fails"]
    result = failing.run("restore", "--yes")  # not the newest, which holds what is there
    assert result.exit_code == 0, result.output
    assert precious.path.name in result.output
    assert failing.query(NAMES) == [("precious",)]


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_a_crash_loop_with_writes_keeps_what_was_there_before_it(failing: Project, keep: int) -> None:
    failing.config["DB_SMART_SNAPSHOTS"] = keep
    succeeded = taken(failing)[-1]
    start(failing)
    precious = taken(failing)[-1]
    for number in range(5):
        failing.query("INSERT INTO items (id) VALUES (:id)", id=10 + number)
        start(failing)
        there = taken(failing)
        assert {succeeded, precious} <= set(there)
        assert rows(there[-1].path, "SELECT max(id) FROM items") == [(10 + number,)]
        assert len(there) <= max(keep, 3)
    assert rows(precious.path, NAMES) == [("precious",)]
    failing.write(V2)  # mended: a run that succeeds goes back to the number asked for
    failing.boot(FORCE_DB_MIGRATION=True)
    assert len(taken(failing)) == keep


def test_a_first_run_that_fails_keeps_the_legacy_database(sqlite_project: Project) -> None:
    sqlite_project.query("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
    sqlite_project.query("INSERT INTO items VALUES (1, 'precious', 2)")
    sqlite_project.write(DROPS)
    for number in range(5):
        start(sqlite_project)
        sqlite_project.query("INSERT INTO items (id) VALUES (:id)", id=10 + number)
    assert rows(taken(sqlite_project)[0].path, NAMES) == [("precious",)]
    assert len(taken(sqlite_project)) == 3


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("INSERT INTO db_smart_history VALUES (9, 'm', 'c', '2026-01-01', 0, 'me', 'failed', 'why')", True),
        ("UPDATE db_smart_state SET token = 99", True),
        ("INSERT INTO db_smart_history VALUES (9, 'm', 'c', '2026-01-01', 0, 'me', 'applied', NULL)", False),
        ("UPDATE t SET a = 2", False),
        ("UPDATE t SET a = '1'", False),
        ("UPDATE t SET a = 1.0", False),
        ("UPDATE t SET a = NULL", False),
        ("UPDATE t SET a = CAST('1' AS BLOB)", False),
        ('UPDATE "a ""quoted"" one" SET b = 3', False),
        ("INSERT INTO k VALUES ('b', 1)", False),
        ("DELETE FROM t", False),
        ("CREATE TABLE other (id)", False),
        ("CREATE INDEX ix ON t (a)", False),
        ("CREATE VIEW v AS SELECT 1", False),
        ("PRAGMA user_version = 7", False),
        ("INSERT INTO words VALUES ('more')", False),
    ],
)
def test_what_is_the_same_state(sqlite_project: Project, journal: str, change: str, same: bool) -> None:
    path = file_of(sqlite_project)
    copy = path.with_suffix(".copy")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        for sql in (
            "CREATE TABLE db_smart_history (id, name, checksum, applied_at, duration_ms, applied_by, outcome, error)",
            "CREATE TABLE db_smart_state (id, database_id, applied, token)",
            "INSERT INTO db_smart_state VALUES (1, 'x', 'y', 1)",
            "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a)",
            "INSERT INTO t (a) VALUES (1)",
            'CREATE TABLE "a ""quoted"" one" (b)',
            'INSERT INTO "a ""quoted"" one" VALUES (2)',
            "CREATE TABLE k (a TEXT PRIMARY KEY, b) WITHOUT ROWID",
            "CREATE VIRTUAL TABLE words USING fts5(word)",
        ):
            connection.execute(sql)
        with closing(sqlite3.connect(copy)) as target:
            connection.backup(target)
        connection.row_factory = sqlite3.Row  # as an application may have it
        assert _same(connection, copy)
        connection.execute(change)
        assert _same(connection, copy) is same
        copy.write_bytes(copy.read_bytes()[:5000])
        assert not _same(connection, copy)


# The owner


def test_what_root_makes_belongs_to_the_owner_of_the_database(sqlite_project: Project) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    sqlite_project.write(V1)
    sqlite_project.boot()
    shutil.rmtree(sqlite_project.instance)
    os.chown(file_of(sqlite_project), 65534, 65534)
    sqlite_project.write(V2)
    sqlite_project.run("migrate")
    (snapshot,) = taken(sqlite_project)
    for path in (snapshot.path, snapshot.path.parent, sqlite_project.instance):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534), path


def test_a_run_that_keeps_every_other_connection_out_removes_only_its_own(sqlite_project: Project) -> None:
    def tune(app: Flask) -> None:
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
        sa.event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA locking_mode = EXCLUSIVE").close())

    project = migrated(sqlite_project, "gone")
    before = taken(project)
    file_of(project).unlink()
    project.tune = tune
    project.config["DB_SMART_SNAPSHOTS"] = 1
    migrated(project, "new")
    assert len(before) == 1
    assert before[0].path.exists()
    assert [rows(item.path, NAMES) for item in taken(project)] == [[("new",)]]


ADD = "@migration\ndef add_{0}(op):\n    op.add_column('t', Column('{0}', Integer))\n"
MAKE = "@migration\ndef make_t(op):\n    op.create_table('t', Column('id', Integer, primary_key=True))\n"


def columns_after(project: Project, *commands: str) -> set[str]:
    for command in commands:
        result = project.run(*command.split())
        assert result.exit_code == 0, result.output
    return project.columns("t")


def test_restore_goes_to_the_state_before_the_last_run_also_after_another_restore(sqlite_project: Project) -> None:
    """The state before the second run is that of an older snapshot, and the newest one is of the restore."""
    project = sqlite_project
    project.write(MAKE)
    project.boot()
    for wrong in ("a", "b"):
        project.write(MAKE + ADD.format(wrong))
        assert columns_after(project, "migrate") == {"id", wrong}
        assert columns_after(project, "restore --yes") == {"id"}


def test_the_copy_from_before_the_first_killed_run_stays_after_restores(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(MAKE)
    project.boot()
    project.write(MAKE + ADD.format("a"))
    columns_after(project, "migrate", "restore --yes", "restore --yes")
    project.query("INSERT INTO t (id, a) VALUES (1, 0)")
    for n in range(5):
        project.write(
            MAKE + ADD.format("a") + "@migration(transactional=False)\ndef half(op):\n"
            f"    op.execute('UPDATE t SET a = {n} + 1')\n    raise RuntimeError\n"
        )
        assert project.run("migrate").exit_code == 1
    kept = [rows(item.path, "SELECT a FROM t") for item in taken(project) if item.before == "half"]
    assert [(0,)] in kept


def test_restore_names_the_state_before_a_run_that_was_interrupted(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(MAKE + ADD.format("a"))
    project.boot()
    project.query("INSERT INTO t (id, a) VALUES (1, 0)")
    half = "@migration(transactional=False)\ndef half(op):\n    op.execute('UPDATE t SET a = a + 1')\n"
    project.write(MAKE + ADD.format("a") + half + "    raise RuntimeError\n")
    assert project.run("migrate").exit_code == 1
    project.write(MAKE + ADD.format("a") + half)
    columns_after(project, "migrate")
    (first, second) = [item.path.name for item in taken(project) if item.before == "half"]
    result = project.run("restore", "--yes")
    assert f"Put back {second}" in result.stdout or second in result.stdout, result.output
    assert (
        f"An earlier run of the same migration was interrupted: the state before that is in {first}." in result.stderr
    )
