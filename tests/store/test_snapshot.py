"""Snapshots of SQLite files: made before a run, complete or not there at all, and put back, while others write."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import ConfigError, DbSmartError
from aurum_harmony.db_smart.errors import Interrupted
from aurum_harmony.db_smart.settings import Settings, set_defaults
from aurum_harmony.db_smart.store.snapshot import Snapshot, find, restore
from tests.harness import counter, servers
from tests.harness.files import file_limit
from tests.harness.project import Project
from tests.harness.snapshots import file_of, rows, taken
from tests.samples import V1, V2

ROOT = Path(__file__).parents[2]
NAME = r"default-db\d+\.sqlite-\d{8}T\d{6}\.\d{6}Z-before-"


def put_back(project: Project, chosen: Snapshot, **config: Any) -> Path | None:
    app, smart = project.app(**config)
    return restore(app, smart.planner(app).databases["default"], chosen)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


@pytest.fixture(params=["delete", "wal"])
def journal(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def counting(sqlite_project: Project, journal: str) -> Project:
    """A project whose database has two counters and 4 MB, and no history yet."""
    with closing(sqlite3.connect(file_of(sqlite_project))) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE first (counter INTEGER)")
        connection.execute("CREATE TABLE filler (content BLOB)")
        connection.executemany("INSERT INTO filler VALUES (zeroblob(?))", [(200_000,)] * 20)
        connection.execute("CREATE TABLE second (counter INTEGER)")
        for table in counter.TABLES:
            connection.execute(f"INSERT INTO {table} VALUES (0)")
        connection.commit()
    sqlite_project.write(V1)
    # A writer that comes back at once leaves others no turn in some tries of theirs.
    sqlite_project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": 30}}
    return sqlite_project


class Writer:
    """A second process that writes all the time; see :mod:`tests.harness.counter`."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, counter.__file__, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.counters: list[int] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._news:
                    self.counters.append(int(line))
                    self._news.notify_all()

    def wait_for_more(self, number: int) -> int:
        """Wait until it has committed so many times more.

        :returns: how many commits it has made.
        """
        with self._news:
            wanted = len(self.counters) + number
            assert self._news.wait_for(lambda: len(self.counters) >= wanted, timeout=60)
            return len(self.counters)

    def stop(self) -> None:
        """End it, and see that nothing but locks came in its way."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._reader.join()
        assert self.process.wait() == 0


@pytest.fixture
def writer(counting: Project) -> Iterator[Writer]:
    writer = Writer(file_of(counting))
    try:
        yield writer
    finally:
        writer.process.kill()  # it has ended already, unless the test failed
        writer.process.wait()


# When there is one


def test_one_before_each_run_that_changes_something(sqlite_project: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aurum_harmony.db_smart.store.snapshot")
    sqlite_project.write(V1)
    assert sqlite_project.boot().decision == "migrated"
    assert taken(sqlite_project) == []  # there was no database yet
    sqlite_project.query("INSERT INTO items (id, name) VALUES (1, 'kept')")
    sqlite_project.write(V2)
    assert sqlite_project.run("migrate", "--dry-run").exit_code == 0
    assert taken(sqlite_project) == []
    result = sqlite_project.run("migrate")
    (snapshot,) = taken(sqlite_project)
    assert f"snapshot of default: {snapshot.path}" in result.output
    assert str(snapshot.path) in caplog.text
    assert (snapshot.database, snapshot.before) == ("default", "add_price")
    assert snapshot.size == snapshot.path.stat().st_size
    assert snapshot.path.stat().st_mode & 0o777 == 0o600
    assert rows(snapshot.path, "SELECT * FROM items") == [(1, "kept")]
    sqlite_project.flag.unlink()
    assert sqlite_project.boot().decision == "verified"
    assert len(taken(sqlite_project)) == 1


def test_the_first_run_on_a_legacy_database_is_preceded_by_one_without_our_tables(sqlite_project: Project) -> None:
    sqlite_project.query("CREATE TABLE other (id INTEGER)")
    sqlite_project.write("")
    sqlite_project.boot()
    (snapshot,) = taken(sqlite_project)
    assert snapshot.before == "first_run"
    assert rows(snapshot.path, "SELECT name FROM sqlite_master") == [("other",)]


def test_none_where_there_is_no_table(sqlite_project: Project) -> None:
    sqlite_project.query("PRAGMA journal_mode=WAL")
    assert file_of(sqlite_project).stat().st_size > 0
    sqlite_project.write(V1)
    sqlite_project.boot()
    assert taken(sqlite_project) == []


def test_none_of_a_database_in_memory(make_project: Callable[..., Project]) -> None:
    project = make_project("sqlite://")
    project.write(V1)
    app, smart = project.app()
    smart.boot(app)
    app.config["FORCE_DB_MIGRATION"] = True
    assert smart.boot(app).decision == "migrated"
    project.dispose(app)
    assert not (project.instance / "snapshots").exists()


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_none_of_a_server(make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str) -> None:
    project = make_project(new_url(dialect))
    project.write(V1)
    project.boot()
    project.write(V2)
    project.boot()
    assert not (project.instance / "snapshots").exists()
    assert project.run("snapshots").output == "There are no snapshots.\n"


def test_none_when_the_setting_says_so(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot()
    sqlite_project.write(V2)
    sqlite_project.boot(DB_SMART_SNAPSHOTS=0)
    assert not (sqlite_project.instance / "snapshots").exists()


def test_the_setting(sqlite_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(sqlite_project.app()[0]).snapshots == 3
    monkeypatch.setenv("FLASK_DB_SMART_SNAPSHOTS", "7")
    app, _ = sqlite_project.app()
    assert Settings(app).snapshots == 7
    app.config["DB_SMART_SNAPSHOTS"] = " 0 "
    set_defaults(app)
    assert Settings(app).snapshots == 0
    sqlite_project.write(V1)
    for bad in (-1, "many", 1.5, True, None):
        with pytest.raises(ConfigError, match=r"DB_SMART_SNAPSHOTS is .*; it must be a whole number, at least 0"):
            sqlite_project.boot(DB_SMART_SNAPSHOTS=bad)
    assert sqlite_project.tables() == set()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_oldest_go(sqlite_project: Project, keep: int) -> None:
    sqlite_project.config["DB_SMART_SNAPSHOTS"] = keep
    sqlite_project.write(V1)
    sqlite_project.boot()
    for number in range(4):
        before = taken(sqlite_project)
        sqlite_project.query(f"INSERT INTO items (id) VALUES ({number})")
        sqlite_project.boot(FORCE_DB_MIGRATION=True)
        after = taken(sqlite_project)
        assert after[:-1] == before[max(0, len(before) - keep + 1) :]
        assert after[-1] not in before
        assert rows(after[-1].path, "SELECT count(*) FROM items") == [(number + 1,)]
    assert len(after) == keep


def test_each_database_has_its_own(sqlite_project: Project, new_url: Callable[[str], URL]) -> None:
    other = new_url("sqlite")
    sqlite_project.config.update(SQLALCHEMY_BINDS={"a/b": other}, DB_SMART_SNAPSHOTS=1)
    sqlite_project.write(
        V1 + "@migration(database='a/b')\ndef logs(op): op.create_table('log', Column('id', Integer))\n"
    )
    for _ in range(3):
        sqlite_project.boot(FORCE_DB_MIGRATION=True)
    (first,), (second,) = taken(sqlite_project), taken(sqlite_project, "a/b")
    assert (first.before, second.before) == ("make_items", "logs")
    assert {("items",)} <= set(rows(first.path, "SELECT name FROM sqlite_master"))
    assert {("log",)} <= set(rows(second.path, "SELECT name FROM sqlite_master"))
    listing = json.loads(sqlite_project.run("snapshots", "--json").stdout)
    assert [(item["database"], item["before"]) for item in listing] == [("default", "make_items"), ("a/b", "logs")]
    assert listing[0].keys() == {"name", "database", "taken_at", "before", "size"}
    assert sqlite_project.run("snapshots", "--database", "a/b").output.split()[0] == second.path.name
    assert "several databases: default, a/b" in sqlite_project.run("restore", "--yes").output
    assert sqlite_project.run("restore", "--yes", "--database", "a/b").exit_code == 0
    assert sqlite_project.run("restore", "--yes", first.path.name).exit_code == 0
    result = sqlite_project.run("restore", "--yes", "--database", "c")
    assert result.exit_code == 2
    sqlite_project.url = new_url("sqlite")  # another file, though of the same name in the application
    assert taken(sqlite_project) == []


def test_names_stay_short_and_apart(sqlite_project: Project) -> None:
    name = "migrate_" + "ä" * 190
    sqlite_project.query("CREATE TABLE other (id INTEGER)")
    sqlite_project.write(f"@migration\ndef {name}1(op): pass\n")
    sqlite_project.boot()
    sqlite_project.write(f"@migration\ndef {name}2(op): pass\n")
    sqlite_project.boot()
    first, second = taken(sqlite_project)
    assert first.before != second.before
    assert len(first.path.name) < 200
    assert first.path.name.isascii()


# While it is made


def test_it_is_one_state_of_a_database_that_another_process_writes_to(counting: Project, writer: Writer) -> None:
    before = writer.wait_for_more(3)
    assert counting.boot().applied == ("make_items",)
    writer.wait_for_more(3)
    writer.stop()
    (snapshot,) = taken(counting)
    with closing(sqlite3.connect(f"{snapshot.path.as_uri()}?immutable=1", uri=True)) as connection:
        assert before <= counter.read(connection) <= len(writer.counters)
    assert rows(snapshot.path, "SELECT count(*) FROM sqlite_master") == [(3,)]
    assert writer.counters == list(range(1, len(writer.counters) + 1))  # none of its commits was lost


class Watched(sqlite3.Connection):
    """A connection that calls a function in the midst of a copy, and copies in small steps so that there is a midst."""

    midst: Callable[[], None]

    def backup(self, target: sqlite3.Connection, **options: Any) -> None:
        called = False

        def progress(*arguments: int) -> None:
            nonlocal called
            if not called:
                called = True
                self.midst()
            options["progress"](*arguments)

        super().backup(target, pages=100, progress=progress)


def watched(project: Project, midst: Callable[[], None]) -> None:
    """Let the application's connections call a function in the midst of a copy."""
    factory = type("Factory", (Watched,), {"midst": staticmethod(midst)})
    project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"factory": factory}}


def test_a_commit_in_the_midst_of_the_copy_waits_or_is_not_in_it(counting: Project, journal: str) -> None:
    said = []
    other = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=0.1)\n"
        "connection.execute('UPDATE first SET counter = 1')\n"
        "connection.execute('UPDATE second SET counter = 1')\n"
        "connection.commit()\n"
    )

    def write() -> None:
        command = [sys.executable, "-c", other, str(file_of(counting))]
        said.append(subprocess.run(command, capture_output=True, text=True).stderr)

    watched(counting, write)
    assert counting.boot().applied == ("make_items",)
    assert len(said) == 1
    (snapshot,) = taken(counting)
    assert rows(snapshot.path, "SELECT counter FROM first UNION SELECT counter FROM second") == [(0,)]
    if journal == "wal":
        assert said == [""]
        assert counting.query("SELECT counter FROM first") == [(1,)]
    else:
        assert "database is locked" in said[0]


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_copy_is_no_snapshot_and_goes_at_the_next_run(counting: Project) -> None:
    script = (
        "import sys\n"
        "from tests.store.test_snapshot import *\n"
        "project = Project(Path(sys.argv[1]), sys.argv[2], sys.argv[3])\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "watched(project, kill_oneself)\n"
        "project.boot()\n"
    )
    command = [sys.executable, "-c", script, str(counting.directory), counting.module, str(counting.url)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    folder = counting.instance / "snapshots"
    assert [name.endswith(".partial") for name in files(folder)] == [True]
    assert taken(counting) == []
    assert counting.boot().decision == "migrated"
    assert list(files(folder)) == [item.path.name for item in taken(counting)]


def test_sigterm_in_the_midst_of_the_copy(counting: Project) -> None:
    watched(counting, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        counting.boot()
    assert files(counting.instance / "snapshots") == {}
    assert "items" not in counting.tables()


@pytest.fixture
def small_disk(counting: Project) -> Iterator[Path]:
    """A file system of 6 MB in the place of the snapshot folder."""
    folder = counting.instance / "snapshots"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode != 0:
        servers.missing("a small file system cannot be mounted: that needs Linux and root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fails_and_changes_nothing(project: Project, message: str) -> None:
    """A run that stops before its first change, and goes through without a snapshot."""
    before, there = rows(file_of(project), "SELECT name FROM sqlite_master"), files(project.instance / "snapshots")
    with pytest.raises(DbSmartError, match=message) as caught:
        project.boot()
    assert "Nothing was migrated" in caught.value.message
    assert "DB_SMART_SNAPSHOTS=0" in caught.value.message
    assert rows(file_of(project), "SELECT name FROM sqlite_master") == before
    assert {name: data for name, data in files(project.instance / "snapshots").items() if name != "filler"} == there
    assert not project.flag.exists()
    assert project.boot(DB_SMART_SNAPSHOTS=0).decision == "migrated"


def test_too_little_room_is_seen_before_anything_is_removed(counting: Project, small_disk: Path) -> None:
    counting.boot()
    counting.flag.unlink()
    assert len(taken(counting)) == 1
    counting.write(V2)
    fails_and_changes_nothing(counting, r"the disk has [12]\.\d MB free, and the copy needs 4\.\d MB")


def test_the_room_of_what_goes_is_counted(counting: Project, small_disk: Path) -> None:
    counting.query("DELETE FROM filler")
    counting.query("VACUUM")
    counting.query("INSERT INTO filler VALUES (zeroblob(1500000))")
    for _ in range(3):
        counting.boot(FORCE_DB_MIGRATION=True)
    assert shutil.disk_usage(small_disk).free < 2_500_000
    last = taken(counting)[1:]
    counting.query("INSERT INTO filler VALUES (zeroblob(1000000))")
    counting.boot(FORCE_DB_MIGRATION=True)
    assert taken(counting)[:-1] == last


def test_a_disk_that_fills_up_meanwhile(counting: Project, small_disk: Path) -> None:
    def fill() -> None:
        with open(small_disk / "filler", "wb") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free))

    watched(counting, fill)
    fails_and_changes_nothing(counting, "database or disk is full")


def test_a_limit_on_the_size_of_files(counting: Project) -> None:
    counting.config["DB_SMART_SNAPSHOTS"] = 1
    counting.boot()
    before = files(counting.instance / "snapshots")
    counting.write(V2)
    with file_limit(1_000_000), pytest.raises(DbSmartError, match="disk I/O error|database or disk is full"):
        counting.boot()
    assert len(before) == 1
    assert files(counting.instance / "snapshots") == before  # the only one is not given up for one that fails
    assert counting.columns("items") == {"id", "name"}


def test_a_folder_that_cannot_be_made(counting: Project) -> None:
    counting.instance.mkdir()
    (counting.instance / "snapshots").touch()
    fails_and_changes_nothing(counting, "File exists")


# Put back


@pytest.fixture
def migrated(counting: Project) -> tuple[Project, Snapshot]:
    """A project after two runs, with the snapshot from between them."""
    counting.boot()
    counting.query("INSERT INTO items (id, name) VALUES (1, 'old')")
    counting.write(V2)
    counting.boot()
    counting.query("UPDATE items SET name = 'new'")
    return counting, taken(counting)[-1]


NAMES = "SELECT name FROM items"


def test_the_command_asks_keeps_and_resets(migrated: tuple[Project, Snapshot]) -> None:
    project, snapshot = migrated
    app, _ = project.app()
    result = app.test_cli_runner().invoke(args=["db-smart", "restore"], input="n\n")
    assert "left as it is" in result.output
    assert snapshot.path.name in result.output
    assert project.query(NAMES) == [("new",)]
    result = app.test_cli_runner().invoke(args=["db-smart", "restore"], input="y\n")
    assert result.exit_code == 0, result.output
    kept = taken(project)[-1]
    assert kept.before == "restore"
    assert str(kept.path) in result.output
    assert project.query(NAMES) == [("old",)]
    assert "price" not in project.columns("items")
    assert project.history() == [("make_items", "applied")]
    assert not project.flag.exists()
    report = project.boot()
    assert report.applied == ("add_price",)
    project.write("def (:\n")  # the way back does not need the migrations
    assert project.run("restore", "--yes", kept.path.name).exit_code == 0
    assert project.query(NAMES) == [("new",)]
    assert project.history() == [("make_items", "applied"), ("add_price", "applied")]


def test_the_newest_undoes_the_last_restore(migrated: tuple[Project, Snapshot]) -> None:
    project, _ = migrated
    for name in ("old", "new", "old"):
        assert project.run("restore", "--yes").exit_code == 0
        assert project.query(NAMES) == [(name,)]


@pytest.mark.parametrize("keep", [0, 1])
def test_it_is_not_removed_for_what_it_replaces(migrated: tuple[Project, Snapshot], keep: int) -> None:
    project, snapshot = migrated
    kept = put_back(project, snapshot, DB_SMART_SNAPSHOTS=keep)
    assert {snapshot.path, kept} <= {item.path for item in taken(project)}


def test_boot_notices_it_in_spite_of_the_flag(migrated: tuple[Project, Snapshot]) -> None:
    """As where another host has a flag of its own; with a process that has the database open, as it is in use."""
    project, snapshot = migrated
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('SELECT * FROM items').fetchall()\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(file_of(project))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        for _ in range(2):
            assert project.boot().decision == "skipped"
            put_back(project, snapshot)
            report = project.boot()
            assert "was changed or an older copy put back" in report.reason
            assert report.applied == ("add_price",)


def test_there_is_none(sqlite_project: Project) -> None:
    app, smart = sqlite_project.app()
    databases = list(smart.planner(app).databases.values())
    with pytest.raises(DbSmartError, match="There is no snapshot in "):
        find(app, databases, None)
    with pytest.raises(DbSmartError, match="There is no snapshot '../x' in "):
        find(app, databases, "../x")


def test_a_writer_goes_on_and_all_it_committed_is_kept(counting: Project, writer: Writer) -> None:
    writer.wait_for_more(3)
    counting.boot()
    writer.wait_for_more(3)
    (snapshot,) = taken(counting)
    kept = put_back(counting, snapshot)
    assert kept is not None
    writer.wait_for_more(3)
    writer.stop()
    with closing(sqlite3.connect(f"{snapshot.path.as_uri()}?immutable=1", uri=True)) as connection:
        old = counter.read(connection)
    with closing(sqlite3.connect(f"{kept.as_uri()}?immutable=1", uri=True)) as connection:
        last = counter.read(connection)
    now = rows(file_of(counting), "SELECT counter FROM first")[0][0]
    # Up to the very last commit before the restore, and from the snapshot on after it.
    assert writer.counters == [*range(1, last + 1), *range(old + 1, now + 1)]
    assert old < last


def test_a_reader_sees_one_or_the_other(migrated: tuple[Project, Snapshot], journal: str) -> None:
    project, snapshot = migrated
    reader = sqlite3.connect(file_of(project), timeout=0, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute(NAMES).fetchall() == [("new",)]
    if journal == "wal":
        put_back(project, snapshot, DB_SMART_LOCK_TIMEOUT=0)
        assert reader.execute(NAMES).fetchall() == [("new",)]
    else:
        with pytest.raises(DbSmartError, match=r"kept it locked for 0 s .* The database is unchanged"):
            put_back(project, snapshot, DB_SMART_LOCK_TIMEOUT=0)
        reader.execute("COMMIT")
        put_back(project, snapshot, DB_SMART_LOCK_TIMEOUT=0)
        reader.execute("BEGIN")
    reader.execute("COMMIT")
    assert reader.execute(NAMES).fetchall() == [("old",)]
    reader.close()


def test_a_writer_that_does_not_end(migrated: tuple[Project, Snapshot]) -> None:
    project, snapshot = migrated
    blocker = sqlite3.connect(file_of(project), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    before = files(project.instance / "snapshots")
    with pytest.raises(DbSmartError, match=r"kept it locked for 0\.2 s"):
        put_back(project, snapshot, DB_SMART_LOCK_TIMEOUT=0.2)
    blocker.close()
    assert files(project.instance / "snapshots") == before
    assert project.query(NAMES) == [("new",)]
    assert put_back(project, snapshot) is not None


def test_not_while_another_process_migrates(migrated: tuple[Project, Snapshot]) -> None:
    from filelock import FileLock

    project, snapshot = migrated
    with (
        FileLock(f"{file_of(project)}.db-smart.lock"),
        pytest.raises(DbSmartError, match="is being migrated by another process"),
    ):
        put_back(project, snapshot, DB_SMART_LOCK_TIMEOUT=0)
    assert project.query(NAMES) == [("new",)]


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _no_database(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 1000)


def _cut_short(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(10_000)


@pytest.mark.parametrize("spoil", [_missing, _empty, _no_database, _cut_short])
def test_a_file_that_is_gone_or_no_database(migrated: tuple[Project, Snapshot], spoil: Callable[[Path], None]) -> None:
    project, snapshot = migrated
    path = file_of(project)
    path.chmod(0o640)
    spoil(path)
    Path(f"{path}-wal").write_bytes(b"what an older file had left")
    Path(f"{path}-journal").write_bytes(b"what an older file had left")
    broken = path.read_bytes() if path.exists() else None
    kept = put_back(project, snapshot)
    assert project.query(NAMES) == [("old",)]
    assert rows(path, "SELECT counter FROM first") == [(0,)]
    if spoil in (_missing, _empty):
        assert kept is None
    else:
        assert kept is not None
        assert kept.name.startswith(f"{path.name}.broken-")
        assert kept.read_bytes() == broken
        assert path.stat().st_mode & 0o777 == 0o640
    assert project.boot().applied == ("add_price",)


@pytest.mark.parametrize("spoil", [_empty, _no_database, _cut_short])
def test_a_damaged_snapshot_is_refused(migrated: tuple[Project, Snapshot], spoil: Callable[[Path], None]) -> None:
    project, snapshot = migrated
    spoil(snapshot.path)
    before = files(project.instance / "snapshots")
    result = project.run("restore", "--yes", snapshot.path.name)
    assert result.exit_code == 1
    assert "the snapshot is damaged or empty" in result.output
    assert "The database is unchanged" in result.output
    assert project.query(NAMES) == [("new",)]
    assert files(project.instance / "snapshots") == before
    assert project.flag.exists()


def test_another_page_size(migrated: tuple[Project, Snapshot], journal: str) -> None:
    project, snapshot = migrated
    with closing(sqlite3.connect(file_of(project), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA page_size=8192")
        connection.execute("VACUUM")
        connection.execute(f"PRAGMA journal_mode={journal}")
    if journal == "wal":
        with pytest.raises(DbSmartError, match="end every process that uses the database and run PRAGMA"):
            put_back(project, snapshot)
        assert project.query(NAMES) == [("new",)]
        project.query("PRAGMA journal_mode=DELETE")
    kept = put_back(project, snapshot)
    assert project.query(NAMES) == [("old",)]
    assert kept is not None
    assert rows(kept, NAMES) == [("new",)]
    assert rows(file_of(project), "PRAGMA page_size") == [(4096,)]


def test_no_room_for_what_it_replaces(counting: Project, small_disk: Path) -> None:
    counting.boot()
    (snapshot,) = taken(counting)
    with pytest.raises(DbSmartError, match=r"the disk has [12]\.\d MB .* The database is unchanged"):
        put_back(counting, snapshot)
    assert taken(counting) == [snapshot]
    assert "items" in counting.tables()


def test_no_room_for_the_database_itself(migrated: tuple[Project, Snapshot]) -> None:
    """A limit on the size of files stands for a full disk: what was begun is rolled back."""
    project, _ = migrated
    file_of(project).unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{file_of(project)}{suffix}").unlink(missing_ok=True)
    with closing(sqlite3.connect(file_of(project))) as connection:
        connection.execute("CREATE TABLE items (name TEXT)")
        connection.execute("INSERT INTO items VALUES ('small')")
        connection.commit()
    message = r"(disk I/O error|database or disk is full)\. The database is unchanged"
    with file_limit(1_000_000), pytest.raises(DbSmartError, match=message):
        put_back(project, taken(project)[-1])
    assert project.query(NAMES) == [("small",)]


def test_a_killed_restore_leaves_the_one_or_the_other(journal: str) -> None:
    command = [sys.executable, "-m", "tests.harness.kill_restore", journal, "20"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert (counts["kills"], counts["old"] + counts["new"]) == (20, 20)
