"""Copies of a SQLite database: one before each run that changes it, and the way back to one.

Both ways go through SQLite's own backup interface, so that a database may be in use meanwhile, in WAL mode too. Its
file is never opened without SQLite: closing it again would end the locks that this process holds on it.
"""

from __future__ import annotations

import glob
import hashlib
import marshal
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from flask import Flask

from ..errors import DbSmartError
from ..files import give, make_folder
from ..notices import logger_of
from ..settings import Settings
from ..signals import send, snapshot_taken
from .database import Database
from .lock import lock_of
from .tables import TABLE_NAMES

_logger = logger_of(__name__)

_STAMP = "%Y%m%dT%H%M%S.%fZ"
#: After the prefix: whose it is, when it was made, and before what.
_NAME = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{8}|new)-(\d{8}T\d{6}\.\d{6}Z)-before-(.+)\.sqlite")
#: In the name of a snapshot, in the place of the id of a database that had no history.
_NEW = "new"
_PARTIAL = ".partial"
#: Pages copied between two looks at signals.
_PAGES = 1000
_OK, _BUSY, _LOCKED = 0, 5, 6  # https://www.sqlite.org/rescode.html; Python has names for them from 3.11 on


@dataclass(frozen=True)
class Snapshot:
    """One copy of a database.

    :ivar database: name of the database.
    :ivar taken_at: in UTC.
    :ivar before: the first migration of the run that followed, ``first_run`` or ``restore``.
    :ivar size: bytes.
    """

    path: Path
    database: str
    taken_at: datetime
    before: str
    size: int


def listed(app: Flask, database: Database) -> list[Snapshot]:
    """The snapshots of a database, oldest first.

    Those of its file, and of its id where both have one: another database that stood in the same place is another one.
    """
    return _listed(app, database, _id_of(database))


def _listed(app: Flask, database: Database, database_id: str | None) -> list[Snapshot]:
    prefix, place = _prefix(database), _place(database)
    found = []
    for path in _folder(app, database).glob(f"{glob.escape(prefix)}*"):
        match = _NAME.fullmatch(path.name[len(prefix) :])
        mine = match and match[1] == place and (database_id is None or match[2] in (_NEW, _short(database_id)))
        if match and mine and path.is_file():
            taken_at = datetime.strptime(match[3], _STAMP).replace(tzinfo=timezone.utc)
            found.append(Snapshot(path, database.name, taken_at, match[4], path.stat().st_size))
    return sorted(found, key=lambda item: (item.taken_at, item.path.name))


def others(app: Flask, databases: Iterable[Database]) -> list[Path]:
    """The snapshots in the folder that are of none of these databases, or that an earlier release has made."""
    folder = Settings(app).snapshot_folder
    own = {item.path for database in databases for item in listed(app, database)}
    return sorted(path for path in folder.glob("*-before-*.sqlite") if path not in own and path.is_file())


def find(app: Flask, databases: Iterable[Database], name: str | None) -> tuple[Database, Snapshot]:
    """A snapshot by its file name, or the newest that holds something else than the database, with its database.

    After runs that failed and changed nothing, the newest holds what is there now.

    :raises DbSmartError: there is none, or it is not clear which is meant.
    """
    databases = list(databases)
    found = [(database, item) for database in databases for item in listed(app, database)]
    if name is not None:
        found = [pair for pair in found if pair[1].path.name == name]
    if not databases:
        raise DbSmartError(
            "There is no snapshot: only SQLite files have them. Nothing was changed. For a database on a server, use "
            "your own backups."
        )
    if not found:
        where = databases[0].path if len(databases) == 1 else "these databases"
        foreign = len(others(app, databases))
        more = (
            f"{foreign} there {'is' if foreign == 1 else 'are'} of other databases, or of an earlier release. To put "
            "one of them back, name it with --from."
        )
        raise DbSmartError(
            f"There is no snapshot{'' if name is None else f' {name!r}'} in {Settings(app).snapshot_folder} of "
            f"{where}. Nothing was changed. 'flask db-smart snapshots' lists the snapshots."
            + (f" {more}" if foreign else "")
        )
    names = list(dict.fromkeys(database.name for database, _ in found))
    if len(names) > 1:
        raise DbSmartError(
            f"There are snapshots of several databases: {', '.join(names)}. Nothing was changed. Name one with "
            "--database, or name the snapshot."
        )
    if name is None:
        for database, item in reversed(found):
            if not _holds_now(database, item):
                return database, item
    return found[-1]


def foreign(app: Flask, databases: Iterable[Database], name: str) -> tuple[Database, Snapshot]:
    """A file by its path, or by its name in the folder of snapshots, whichever database it is of.

    :param databases: the one that it is to be put into.
    :raises DbSmartError: there is no such file, or it is not clear which database is meant.
    """
    databases = list(databases)
    path = Path(name) if Path(name).is_file() else Settings(app).snapshot_folder / name
    if not path.is_file():
        raise DbSmartError(
            f"There is no file {name!r}, here or in {Settings(app).snapshot_folder}. Nothing was changed."
        )
    if len(databases) != 1:
        known = ", ".join(database.name for database in databases) or "none"
        raise DbSmartError(
            f"It is not clear which SQLite database to restore (there is: {known}). Nothing was changed. Name it with "
            "--database."
        )
    path, found = path.resolve(), path.stat()
    return databases[0], Snapshot(
        path, databases[0].name, datetime.fromtimestamp(found.st_mtime, timezone.utc), "", found.st_size
    )


def differs(database: Database, chosen: Snapshot) -> str | None:
    """Why a snapshot is not of a database by their ids; ``None`` where it is, or where one of them has none."""
    assert database.path is not None
    wanted, found = _id_of(database), None
    with suppress(sqlite3.Error), closing(_open(chosen.path, immutable=True)) as connection:
        found, _ = _state(connection)
    if wanted is None or found is None or wanted == found:
        return None
    return f"it belongs to another database: its id is {found}, the id of {database.path} is {wanted}"


def prune(app: Flask, database: Database, database_id: str) -> None:
    """Keep only the newest ones, after a run that succeeded.

    :param database_id: its id, because the connection of the run may keep every other one out.
    :raises ConfigError: ``DB_SMART_SNAPSHOTS`` cannot be used.
    """
    keep = Settings(app).snapshots
    if database.path is None or not keep or not _folder(app, database).is_dir():
        return
    try:
        _remove(_surplus(_listed(app, database, database_id), keep, ()))
    except OSError as error:  # the run has succeeded; the next one tries again
        _logger.warning("db-smart: an old snapshot cannot be removed: %s", error)


def take(app: Flask, database: Database, connection: sa.Connection, first: str) -> None:
    """Make a snapshot before the first change of a run; of a SQLite file that holds a table.

    :param connection: the connection of the run, outside a transaction.
    :param first: name of the migration that is the first to run.
    :raises ConfigError: ``DB_SMART_SNAPSHOTS`` cannot be used.
    :raises DbSmartError: there is no snapshot; nothing was changed.
    """
    keep = Settings(app).snapshots
    if database.path is None or not keep:
        return
    started = time.perf_counter()
    source: object = connection.connection.dbapi_connection
    try:
        if not isinstance(source, sqlite3.Connection):
            raise OSError(f"the driver {type(source).__module__} is not Python's sqlite3")
        path = _take(app, database, source, first, keep, once_only=True)
    except (sqlite3.Error, OSError) as error:
        raise DbSmartError(
            f"Cannot make a snapshot of the database {database.name!r} ({database.url}) in "
            f"{_folder(app, database)}: "
            f"{database.redact(error)}. Nothing was migrated, and no part of the copy was kept. Fix the cause, or set "
            "DB_SMART_SNAPSHOTS=0 to migrate without a snapshot."
        ) from error
    if path is not None:
        _logger.info("db-smart: snapshot %s (%.3f ms)", path, (time.perf_counter() - started) * 1000)
        send(snapshot_taken, app, database=database.name, path=path)


def restore(app: Flask, database: Database, chosen: Snapshot) -> Path | None:
    """Put a snapshot back, under the lock; whoever has the database open sees it change in one step.

    What it replaces is a snapshot afterwards. A file that is no database any more stays beside the new one.

    :returns: where the replaced content is; ``None`` where there was none.
    :raises LockTimeout: another process migrated for too long.
    :raises DbSmartError: the snapshot is damaged, the database is in use, or a disk is full; nothing was changed.
    """
    assert database.path is not None
    path = Path(os.path.realpath(database.path))
    settings = Settings(app).lock
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(_open(chosen.path, immutable=True)) as source, lock_of(database, settings).held(lambda _: False):
            _check(source)
            try:
                return _write_back(app, database, path, source, chosen, settings.timeout)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # a subclass: the file is not what is at fault
                    raise
                _logger.warning("db-smart: %s cannot be read and is set aside: %s", path, error)
                return _replace_broken(path, source)
    except (sqlite3.Error, OSError) as error:
        raise DbSmartError(
            f"Cannot restore the database {database.name!r} ({database.url}) from {chosen.path.name}: "
            f"{database.redact(error)}. The database is unchanged. Fix the cause and restore again."
        ) from error


def _write_back(
    app: Flask, database: Database, path: Path, source: sqlite3.Connection, chosen: Snapshot, timeout: float
) -> Path | None:
    """Write a snapshot into the database in one transaction, in which the content before it is copied too.

    :raises sqlite3.DatabaseError: as itself, not as a subclass: the file is no database or malformed.
    """
    deadline = time.monotonic() + timeout
    kept: list[Path | None] = []

    def step(status: int, *_: int) -> None:
        if status == _OK and not kept:
            # From here on nobody else can write. Outside WAL mode nobody can read either, but what this transaction
            # changed is still in its own memory, so the file may be read without the locks.
            with closing(_open(path, immutable=not wal)) as current:
                keep = Settings(app).snapshots or sys.maxsize
                kept.append(_take(app, database, current, "restore", keep, spared=(chosen.path,)))
        elif status in (_BUSY, _LOCKED) and time.monotonic() > deadline:
            raise OSError(f"other connections kept it locked for {timeout:g} s (DB_SMART_LOCK_TIMEOUT)")

    with closing(sqlite3.connect(path, timeout=timeout)) as target:
        wal = _pragma(target, "journal_mode") == "wal"
        if wal and _pragma(target, "page_size") != _pragma(source, "page_size"):
            raise OSError(
                "in WAL mode its page size cannot change to that of the snapshot; to change the mode, end every "
                "process that uses the database and run PRAGMA journal_mode=DELETE on it"
            )
        target.execute("PRAGMA busy_timeout=1000")  # from here on step() is asked in between
        # One page at a time: the first step must not be the last one, and must fit into the memory of the connection.
        source.backup(target, pages=1, progress=step, sleep=0.05)
        with suppress(sqlite3.Error):  # it is done; in WAL mode this makes the header, which boot looks at, say so
            target.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return kept[0]


def _replace_broken(path: Path, source: sqlite3.Connection) -> Path:
    """Put a snapshot in the place of a file that is no database, which gets another name."""
    fresh = path.with_name(f"{path.name}.restored")
    _copy(source, fresh)
    shutil.copymode(path, fresh)
    if hasattr(os, "chown"):
        with suppress(PermissionError):
            os.chown(fresh, path.stat().st_uid, path.stat().st_gid)
    aside = path.with_name(f"{path.name}.broken-{datetime.now(timezone.utc):{_STAMP}}")
    for suffix in ("-wal", "-journal", "-shm"):  # SQLite would take them for the new file's
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    os.link(path, aside)  # two names for a moment, so that there is a file at every moment
    os.replace(fresh, path)
    return aside


def _take(
    app: Flask,
    database: Database,
    source: sqlite3.Connection,
    before: str,
    keep: int,
    spared: Collection[Path] = (),
    *,
    once_only: bool = False,
) -> Path | None:
    """Copy a database that holds a table into a new snapshot; remove the oldest ones.

    While runs fail, the state before the first of them stays, and the newest one from before the last that succeeded.

    :param keep: how many are there afterwards.
    :param spared: what is not removed.
    :param once_only: make none of the state that the newest one holds. That of an older one is copied again, so that
        the newest is always what a run began with.
    :raises OSError: there is not enough room, or no right to write; what was there stays.
    """
    folder, prefix = _folder(app, database), _prefix(database)
    with _reading(source):
        pages = _pragma(source, "page_count")
        if pages < 2:  # each table has a page of its own
            return None
        make_folder(folder, database.path)
        for partial in folder.glob(f"{glob.escape(prefix)}{_place(database)}.*{_PARTIAL}"):  # of a killed process
            partial.unlink()
        database_id, applied = _state(source)
        there = _listed(app, database, database_id)
        if once_only and there and _same(source, there[-1].path):
            return None
        spared = (*spared, *_before_failures(there, applied))
        # The newest one stays until there is a newer one.
        old = _surplus(there, max(keep - 1, 1), spared)
        size = pages * _pragma(source, "page_size")
        room = shutil.disk_usage(folder).free + sum(item.size for item in old)
        if size > room:
            raise OSError(f"the disk has {room / 1e6:.1f} MB free, and the copy needs {size / 1e6:.1f} MB")
        _remove(old)
        owner = f"{_place(database)}.{_short(database_id)}"
        path = folder / f"{prefix}{owner}-{datetime.now(timezone.utc):{_STAMP}}-before-{_safe(before, 80)}.sqlite"
        _copy(source, path, like=database.path)
    _remove(_surplus(_listed(app, database, database_id), keep, (*spared, path)))
    return path


def _before_failures(items: list[Snapshot], applied: str) -> list[Path]:
    """What runs that fail must not remove: the first snapshot since the last success, and the newest from before.

    A run that succeeds changes ``applied`` in the state row, so all snapshots since then hold its present value.

    :param applied: what the last run that succeeded has left in the state row.
    """
    since: list[Path] = []
    before: list[Path] = []
    for item in reversed(items):
        # One behind that holds another value is older than a restore that brought the present value back.
        (before if before or _applied_in(item) != applied else since).append(item.path)
    return [*since[-1:], *before[:1]]


def _applied_in(item: Snapshot) -> str | None:
    """What the last run that succeeded has left in the state row of a snapshot; ``None`` where it cannot be read."""
    with suppress(sqlite3.Error), closing(_open(item.path, immutable=True)) as connection:
        return _state(connection)[1]
    return None


def copy_file(source: Path, target: Path) -> None:
    """Copy a database that may be in use, with what is only in its WAL yet; the copy is there when it is whole.

    :raises sqlite3.Error: it cannot be read, or is locked for too long.
    :raises OSError: the copy cannot be written; no part of it was kept.
    """
    # To be opened for writing, as the journal of a process that was killed is then undone first.
    uri = f"{source.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection, _reading(connection):
        _copy(connection, target, like=source)
    shutil.copymode(source, target)


def remove_journals(path: Path) -> None:
    """Remove what is left of a database that is gone: SQLite would take it for a part of a copy that gets its name.

    Where SQLite makes a database itself, it does the same.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def before_interrupted(app: Flask, database: Database, chosen: Snapshot) -> Snapshot | None:
    """The snapshot from before the first try of a migration, where the chosen one is of a later try.

    :returns: ``None`` where the chosen one is of the first try.
    """
    found = None
    for item in reversed(listed(app, database)):
        if item.taken_at >= chosen.taken_at:
            continue
        if item.before != chosen.before or _applied_in(item) != _applied_in(chosen):
            break
        found = item
    return found


def _same(source: sqlite3.Connection, path: Path) -> bool:
    """Whether a snapshot holds the same as a database: what was applied, the schema, and each row.

    Our own tables are left out: each failed run adds a row to them.
    """
    ours = ", ".join(f"'{name}'" for name in sorted(TABLE_NAMES))
    schema = f"SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name NOT IN ({ours}) ORDER BY 1, 2"
    applied = "SELECT name, checksum FROM db_smart_history WHERE outcome = 'applied' ORDER BY id"
    has_history = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'db_smart_history'"
    stored = f"SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 AND name NOT IN ({ours})"
    try:
        with closing(_open(path, immutable=True)) as copy:
            if any(_pragma(source, name) != _pragma(copy, name) for name in ("user_version", "application_id")):
                return False
            histories = [_rows(one, applied) if _rows(one, has_history) else [] for one in (source, copy)]
            if histories[0] != histories[1] or not _equal(source, copy, schema):
                return False
            names = [name.replace('"', '""') for (name,) in _rows(source, stored)]
            return all(_equal(source, copy, f'SELECT * FROM "{name}" NOT INDEXED') for name in names)
    except (sqlite3.Error, ValueError):  # damaged, or not to be read by this connection: not known to be the same
        return False


def _holds_now(database: Database, item: Snapshot) -> bool:
    """Whether putting a snapshot back would change nothing."""
    if database.path is None or not database.path.is_file():
        return False
    with suppress(sqlite3.Error), closing(_open(database.path, immutable=False)) as connection, _reading(connection):
        return _same(connection, item.path)
    return False


def _equal(first: sqlite3.Connection, second: sqlite3.Connection, query: str) -> bool:
    """Whether a query gives the same rows, down to their types, in the same order."""
    cursors = [connection.cursor() for connection in (first, second)]
    for cursor in cursors:
        cursor.row_factory = None
        cursor.execute(query)
    while True:
        rows, others = (cursor.fetchmany(_PAGES) for cursor in cursors)
        if marshal.dumps(rows, 2) != marshal.dumps(others, 2):  # to Python, 1 is equal to 1.0
            return False
        if not rows:
            return True


def _rows(connection: sqlite3.Connection, query: str) -> list[Any]:
    """The rows of a query as tuples, whatever the application has made of its connections."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(query).fetchall()


def _state(connection: sqlite3.Connection) -> tuple[str | None, str]:
    """The id in a database's state row, and what the last run that succeeded has left there."""
    try:
        row = connection.execute("SELECT database_id, applied FROM db_smart_state WHERE id = 1").fetchone()
    except sqlite3.OperationalError:  # no such table
        row = None
    return (None, "") if row is None else (row[0], row[1])


def _id_of(database: Database) -> str | None:
    """The id of a database; ``None`` where it has no history, or can no longer be read."""
    if database.path is None or not database.path.is_file():
        return None
    with suppress(sqlite3.Error), closing(_open(database.path, immutable=False)) as connection:
        return _state(connection)[0]
    return None


def _surplus(items: list[Snapshot], keep: int, spared: Collection[Path]) -> list[Snapshot]:
    """The oldest, which are too many."""
    return [item for item in items if item.path not in spared][: max(0, len(items) - keep)]


def _remove(items: Iterable[Snapshot]) -> None:
    for item in items:
        item.path.unlink(missing_ok=True)


def copy(source: Path, path: Path) -> None:
    """Copy a database that may be in use into a new file, as :func:`take` does.

    :raises sqlite3.Error: it cannot be read.
    :raises OSError: the copy cannot be written; no part of it is left.
    """
    with closing(_open(source, immutable=False)) as connection:
        _copy(connection, path, like=source)


def _copy(source: sqlite3.Connection, path: Path, *, like: Path | None = None) -> None:
    """Copy a database into a file of its owner's alone, which has its name only when it is whole and on the disk.

    :param like: the file whose owner it gets, where root makes it.
    """
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if like is not None:
            give(partial, like)
        with closing(sqlite3.connect(partial)) as copy:
            copy.execute("PRAGMA journal_mode=OFF")
            copy.execute("PRAGMA synchronous=OFF")
            source.backup(copy, pages=_PAGES, progress=lambda *_: None)  # Python sees to signals when it is called
        _sync(partial, os.O_RDWR)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _reading(connection: sqlite3.Connection) -> Iterator[None]:
    """Read one state of the database for as long as it takes, while others write."""
    connection.execute("BEGIN")
    try:
        _pragma(connection, "schema_version")  # BEGIN alone does not begin
        yield
    finally:
        connection.rollback()


def _check(snapshot: sqlite3.Connection) -> None:
    """Make sure that a snapshot is a whole database with a table in it."""
    try:
        found = _pragma(snapshot, "quick_check(1)")
    except sqlite3.DatabaseError as error:
        found = error
    if found != "ok" or _pragma(snapshot, "page_count") < 2:
        raise OSError(f"the snapshot is damaged or empty ({found}); choose another one")


def _open(path: Path, *, immutable: bool) -> sqlite3.Connection:
    """Open a database to read it.

    :param immutable: take no lock and look for no WAL: nobody writes.
    """
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' * immutable}", uri=True)


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _folder(app: Flask, database: Database) -> Path:
    """Where the snapshots of a database are."""
    return Settings(app).snapshot_folder / database.snapshot_folder


def _prefix(database: Database) -> str:
    """How the names of a database's snapshots begin; with its file, because a setting may name another one tomorrow."""
    assert database.path is not None
    return f"{_safe(database.name, 50)}-{_safe(database.path.name, 50)}-"


def _place(database: Database) -> str:
    """What stands for the place of a database's file in the names of its snapshots."""
    assert database.path is not None
    return hashlib.sha256(os.fsencode(os.path.realpath(database.path))).hexdigest()[:8]


def _short(database_id: str | None) -> str:
    """What stands for the id of a database there."""
    return _NEW if database_id is None else hashlib.sha256(database_id.encode()).hexdigest()[:8]


def _safe(text: str, limit: int) -> str:
    """A text as a part of a file name; differs where texts differ."""
    text = quote(text, safe="")
    return text if len(text) <= limit else f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
