"""What stands where the extension's own files belong: links, pipes, devices, directories, huge files."""

from __future__ import annotations

import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.store import database
from tests.harness.crash import ended, forked
from tests.harness.disk import Disk
from tests.harness.project import Project

MAKE_T = """
@migration
def make_t(op: Operations) -> None:
    op.create_table("t", Column("id", Integer, primary_key=True))
"""
#: How long a process may take at most, with much room; a hang is what it is to find.
BOUND = 20
VICTIM = "precious\n" * 250


def put(kind: str, path: Path) -> Path | None:
    """Put something of a kind where a file is expected.

    :returns: the file that a link leads to, which must stay as it is.
    """
    path.parent.mkdir(exist_ok=True)
    victim = path.with_name("victim")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif kind == "link":
        victim.write_text(VICTIM)
        path.symlink_to(victim)
        return victim
    elif kind == "hard link":
        victim.write_text(VICTIM)
        path.hardlink_to(victim)
        return victim
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "text":
        path.write_text(VICTIM)
    elif kind == "dangling link":
        path.symlink_to(victim)
    else:
        path.symlink_to(kind)
    return None


KINDS = ["fifo", "directory", "link", "/dev/zero", "/dev/urandom", "huge"]
LINKS = ["fifo", "link", "dangling link", "hard link"]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    :ivar code: its exit code, or minus the signal that ended it.
    :ivar said: the decision of its boot, or the one message.
    """

    code: int
    said: str


def bounded(action: Callable[[], str], out: Path, largest: int | None = None) -> Ended:
    """Do something in a process of its own, whose time and memory are bounded: neither a hang nor a flood gets out.

    :param action: returns what is to be said.
    :param out: a file for what it says; anything but a message for a user leaves none, and the code 1.
    :param largest: how large a file it may write.
    """

    def do() -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), used + (1 << 29)))
        signal.alarm(BOUND)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if largest is None else largest, hard))
        try:
            said, code = action(), 0
        except DbSmartError as error:
            said, code = error.message, error.exit_code
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        out.write_text(said, encoding="utf-8")
        os._exit(code)

    out.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        code = ended(forked(do))
    return Ended(code, out.read_text(encoding="utf-8") if out.exists() else "")


def boot(project: Project, largest: int | None = None) -> Ended:
    return bounded(lambda: project.boot().decision, project.directory / "said", largest)


def command(project: Project, *arguments: str, largest: int | None = None) -> Ended:
    """Run a command of the extension."""

    def do() -> str:
        result = project.run(*arguments)
        assert isinstance(result.exception, (SystemExit, type(None))), result.exc_info
        if result.exit_code != 0:
            raise DbSmartError(result.output)
        return str(result.output)

    return bounded(do, project.directory / "said", largest)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_the_flag(sqlite_project: Project, kind: str) -> None:
    sqlite_project.write(MAKE_T)
    victim = put(kind, sqlite_project.flag)
    done = boot(sqlite_project)
    assert (done.code, done.said) == (0, "migrated")
    assert victim is None or victim.read_text() == VICTIM


@pytest.mark.parametrize("kind", LINKS)
def test_what_stands_at_the_lock_of_the_flag(sqlite_project: Project, kind: str) -> None:
    sqlite_project.write(MAKE_T)
    lock = sqlite_project.flag.with_name(f"{sqlite_project.flag.name}.lock")
    victim = put(kind, lock)
    done = boot(sqlite_project)
    assert (done.code, done.said) == (0, "migrated")
    assert victim is None or victim.read_text() == VICTIM
    assert not lock.with_name("victim").exists() or victim is not None


@pytest.mark.parametrize("kind", LINKS)
def test_what_stands_at_the_holder(sqlite_project: Project, kind: str) -> None:
    sqlite_project.write(MAKE_T)
    victim = put(kind, Path(f"{make_url(sqlite_project.url).database}.db-smart.holder"))
    done = boot(sqlite_project)
    assert (done.code, done.said) == (0, "migrated")
    assert victim is None or victim.read_text() == VICTIM


@pytest.mark.parametrize("kind", ["fifo", "link", "/dev/zero", "/dev/urandom", "huge"])
def test_a_holder_that_cannot_be_read_is_another_process(sqlite_project: Project, kind: str) -> None:
    from filelock import FileLock

    from aurum_harmony.db_smart.settings import LockSettings
    from aurum_harmony.db_smart.store.database import Database
    from aurum_harmony.db_smart.store.lock import lock_of

    app, _ = sqlite_project.app()
    file = str(make_url(sqlite_project.url).database)
    put(kind, Path(f"{file}.db-smart.holder"))
    with app.app_context(), FileLock(f"{file}.db-smart.lock"):
        engine = app.extensions["sqlalchemy"].engines[None]
        holder = lock_of(Database("default", None, engine), LockSettings()).holder()
    assert holder is not None
    assert holder.name == "another process"


EVERYTHING = [*KINDS, "dangling link", "/dev/full", "loop", "text"]
MORE = (
    MAKE_T
    + """
@migration
def more(op: Operations) -> None:
    op.add_column("t", Column("n", Integer))
"""
)
LAST = MORE + MAKE_T.replace("make_t", "make_u").replace('"t"', '"u"')


@contextmanager
def taken_away(path: Path, kind: str) -> Iterator[None]:
    """Put something in the place of what is there, and that back afterwards."""
    kept = path.rename(path.with_name(f"{path.name}.kept"))
    put(kind, path)
    try:
        yield
    finally:
        cleared(path)
        kept.rename(path)


def cleared(path: Path) -> None:
    """Take away what was put there."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def made(project: Project) -> Project:
    project.write(MAKE_T)
    project.boot()
    project.query("INSERT INTO t (id) VALUES (1)")
    return project


def lost_nothing(project: Project) -> None:
    """What is there now is migrated, with its row."""
    assert boot(project) == Ended(0, "migrated")
    assert project.query("SELECT id, n FROM t") == [(1, None)]
    assert project.history() == [("make_t", "applied"), ("more", "applied")]


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("kind", [kind for kind in EVERYTHING if kind != "dangling link"])
def test_what_stands_at_the_database_file(
    sqlite_project: Project, kind: str, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(database, "_MOST_KEPT", kept)  # files that stay open, and those that SQLite opens and closes
    project = made(sqlite_project)
    project.write(MORE)
    with taken_away(Path(str(make_url(project.url).database)), kind):
        done = boot(project)
        assert done.code == 1
        assert done.said.startswith("Cannot ")
        assert ("Nothing was changed" in done.said) or ("applied before that, which stay applied: none" in done.said)
        assert command(project, "status").code in (0, 1)
        assert "There is no snapshot" in command(project, "restore", "--yes").said
    lost_nothing(project)


def test_a_link_to_a_database_that_is_still_to_be_made(sqlite_project: Project) -> None:
    sqlite_project.write(MAKE_T)
    put("dangling link", Path(str(make_url(sqlite_project.url).database)))
    assert boot(sqlite_project) == Ended(0, "migrated")
    assert boot(sqlite_project) == Ended(0, "skipped")


@pytest.mark.parametrize("kind", [kind for kind in EVERYTHING if kind != "directory"])
def test_what_stands_at_the_folder_of_snapshots(sqlite_project: Project, kind: str) -> None:
    project = made(sqlite_project)
    folder = project.instance / "snapshots"
    victim = put(kind, folder)
    project.write(MORE)
    done = boot(project)
    assert done.code == 1
    assert done.said.startswith("Cannot make a snapshot")
    assert "Nothing was migrated" in done.said
    assert command(project, "snapshots") == Ended(0, "There are no snapshots.\n")
    assert "There is no snapshot" in command(project, "restore", "--yes").said
    assert victim is None or victim.read_text() == VICTIM
    cleared(folder)
    lost_nothing(project)


@pytest.mark.parametrize("kind", EVERYTHING)
def test_what_stands_at_a_snapshot(sqlite_project: Project, kind: str) -> None:
    project = made(sqlite_project)
    project.write(MORE)
    project.boot()
    (snapshot,) = (project.instance / "snapshots").iterdir()
    project.write(LAST)
    with taken_away(snapshot, kind):
        assert boot(project) == Ended(0, "migrated")
        assert command(project, "snapshots").code == 0
        for named in ([snapshot.name], ["--from", str(snapshot)]):
            done = command(project, "restore", "--yes", *named)
            assert done.code == 1
            assert "Nothing was changed" in done.said or "The database is unchanged" in done.said
    assert "u" in project.tables()
    assert command(project, "restore", "--yes", snapshot.name).code == 0
    assert project.query("SELECT * FROM t") == [(1,)]


@pytest.mark.parametrize(("kind", "package"), [*((kind, True) for kind in EVERYTHING), ("huge", False)])
def test_what_stands_at_a_source(sqlite_project: Project, kind: str, package: bool) -> None:
    source = sqlite_project.write(MAKE_T, "first" if package else None)
    sqlite_project.boot()
    with taken_away(source, kind):
        for done in (boot(sqlite_project), command(sqlite_project, "status")):
            assert done.code == 1
            assert str(source) in done.said
    assert boot(sqlite_project) == Ended(0, "skipped")


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "dangling link", "loop", "/dev/full", "text", "huge"])
@pytest.mark.parametrize("name", ["lock", "holder"])
def test_what_stands_at_the_lock_of_the_database(sqlite_project: Project, kind: str, name: str) -> None:
    project = made(sqlite_project)
    path = Path(f"{make_url(project.url).database}.db-smart.{name}")
    path.unlink(missing_ok=True)
    victim = put(kind, path)
    project.write(MORE)
    done = boot(project)
    assert victim is None or victim.read_text() == VICTIM
    assert not path.with_name("victim").exists() or victim is not None
    if done.code == 0:
        assert project.query("SELECT id, n FROM t") == [(1, None)]
        return
    assert done.code == 1
    assert str(path) in done.said
    cleared(path)
    lost_nothing(project)


# A full disk

PAGE = 4096
FILL = """
@migration
def fill(op: Operations) -> None:
    op.add_column("t", Column("n", Integer))
    op.execute("INSERT INTO t (n) VALUES (7)")
    op.create_table("v", Column("id", Integer, primary_key=True), Column("name", String(20), index=True))
"""


@pytest.fixture
def on_disk(make_project: Callable[..., Project], disk: Disk) -> Project:
    project = make_project(f"sqlite:///{disk.folder}/app.db")
    (project.directory / "instance").symlink_to(disk.folder, target_is_directory=True)
    return made(project)


def whole(project: Project) -> list[Any]:
    """The rows of a database that is whole, by how many they are and their number."""
    assert project.query("PRAGMA integrity_check") == [("ok",)]
    return project.query("SELECT count(*), max(id) FROM t")


def test_a_disk_that_is_full_at_any_write_of_a_boot(on_disk: Project, disk: Disk) -> None:
    kept, codes = disk.keep(), []
    on_disk.write(MAKE_T + FILL)
    for pages in itertools.count():
        disk.put_back(kept)
        with disk.room(pages * PAGE) as largest:
            done = boot(on_disk, largest)
        codes.append(done.code)
        assert (done.code, done.said) == (0, "migrated") or done.code == 1 and done.said.startswith(("Cannot ", "Migr"))
        assert whole(on_disk) == ([(2, 2)] if "fill" in dict(on_disk.history()) and done.code == 0 else [(1, 1)])
        again = boot(on_disk)
        assert again.said in (("migrated",) if done.code else ("skipped", "verified"))
        assert whole(on_disk) == [(2, 2)]
        if codes[-3:] == [0, 0, 0] and again.said == "skipped":
            break
    assert len([code for code in codes if code == 1]) > 5


def test_a_disk_that_is_full_at_any_write_of_a_restore(on_disk: Project, disk: Disk) -> None:
    on_disk.write(MAKE_T + FILL)
    on_disk.boot()
    kept, codes = disk.keep(), []
    for pages in itertools.count():
        disk.put_back(kept)
        with disk.room(pages * PAGE) as largest:
            done = command(on_disk, "restore", "--yes", largest=largest)
        codes.append(done.code)
        assert done.code == 0 or done.code == 1 and "Cannot restore" in done.said and "is unchanged" in done.said
        assert whole(on_disk) == ([(1, 1)] if done.code == 0 else [(2, 2)])
        if codes[-3:] == [0, 0, 0]:
            break
        if done.code == 1:
            assert command(on_disk, "restore", "--yes").code == 0
            assert whole(on_disk) == [(1, 1)]
    assert len([code for code in codes if code == 1]) > 3
