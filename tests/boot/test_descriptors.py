"""Open files: a boot leaves none behind, and looking at a SQLite file ends no lock on it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store import database as database_module
from aurum_harmony.db_smart.store.database import Database
from tests.harness.processes import run_python
from tests.harness.project import Project

SOURCE = """
@migration
def make_t(op: Operations) -> None:
    op.create_table("t", Column("id", Integer, primary_key=True))
"""
TRY_TO_WRITE = (
    "import sqlite3, sys\n"
    "try: sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')\n"
    "except sqlite3.OperationalError as error: print(error)\n"
)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_boots_leave_no_file_open(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], kind: str
) -> None:
    project = make_project("sqlite://")
    project.write(SOURCE)
    counts = []
    for _ in range(12):
        project.url = "sqlite://" if kind == "memory" else new_url("sqlite")
        app, smart = project.app()
        assert smart.boot(app).decision == "migrated"
        assert smart.boot(app).decision in ("skipped", "verified")
        assert app.test_client().get("/").text == "served"
        project.dispose(app)
        counts.append(len(os.listdir("/proc/self/fd")))
    # The first one imports, and a few files stay open.
    assert counts[-1] - counts[1] <= 8
    assert counts[-1] <= counts[-3]


@pytest.fixture(params=["DELETE", "WAL"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    path = tmp_path / "a b%20ü#?.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {request.param}")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    engine = sa.create_engine(URL.create("sqlite", database=str(path)), poolclass=sa.pool.NullPool)
    return Database("default", None, engine)


@pytest.mark.parametrize("how", ["kept", "listed", "not-listed", "other-sqlite"])
def test_looking_at_a_file_ends_no_lock_of_any_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also where the system does not list what is open, or the driver may have a SQLite of its own."""
    monkeypatch.setattr(database_module, "_open_files", {})
    monkeypatch.setattr(database_module, "_MOST_KEPT", 1 if how == "kept" else 0)
    if how == "not-listed":
        monkeypatch.setattr(database_module, "_DESCRIPTORS", ())
    elif how == "other-sqlite":
        monkeypatch.setattr(database.app_engine.dialect, "dbapi", None)
    assert database.path is not None
    with closing(sqlite3.connect(database.path, isolation_level=None)) as writer:
        for _ in range(3):
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("INSERT INTO t DEFAULT VALUES")
            for _ in range(3):
                assert database.file_state() is not None
            assert run_python(TRY_TO_WRITE, str(database.path)) == "database is locked\n"
            writer.execute("COMMIT")
        assert writer.execute("SELECT count(*) FROM t").fetchone() == (3,)


def test_the_header_is_that_of_the_file_that_is_there_now(database: Database, tmp_path: Path) -> None:
    assert database.path is not None
    first = database.file_state()
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("CREATE TABLE u (id INTEGER)")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        second = database.file_state()
        assert first is not None
        assert second is not None
        assert second["schema"] == first["schema"] + 1
    copy = tmp_path / "copy"
    shutil.copyfile(database.path, copy)
    with closing(sqlite3.connect(database.path)) as old:  # still open, by the same name
        old.execute("SELECT * FROM t")
        os.replace(copy, database.path)
        third = database.file_state()
    assert third is not None
    assert third["inode"] == os.stat(database.path).st_ino != second["inode"]


@pytest.mark.parametrize("kept", [0, 8])
def test_what_cannot_be_read_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(database_module, "_open_files", {})
    monkeypatch.setattr(database_module, "_MOST_KEPT", kept)
    for path, message in ((tmp_path / "missing.db", "No such file"), (tmp_path, "not a regular file")):
        database = Database("default", None, sa.create_engine(URL.create("sqlite", database=str(path))))
        with pytest.raises(OSError, match=message) as caught:
            database.file_state()
        assert caught.value.strerror
    assert not (tmp_path / "missing.db").exists()
