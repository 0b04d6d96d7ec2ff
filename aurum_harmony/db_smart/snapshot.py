"""Copies of a SQLite database: one before each run that changes it, and the way back to one.

Both ways go through SQLite's own backup interface, so that a database may be in use meanwhile, in WAL mode too. Its
file is never opened past SQLite: closing it again would end the locks that this process holds on it.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from flask import Flask

from .database import Database
from .errors import DbSmartError
from .history import Pending
from .lock import lock_of
from .settings import lock_settings, snapshot_folder, snapshots
from .signals import send, snapshot_taken

_logger = logging.getLogger(__name__)

_STAMP = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-before-(.+)\.sqlite")
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
    """The snapshots of a database, oldest first."""
    prefix = _prefix(database)
    found = []
    for path in sorted(snapshot_folder(app).glob(f"{glob.escape(prefix)}*")):
        match = _NAME.fullmatch(path.name[len(prefix) :])
        if match:
            taken_at = datetime.strptime(match[1], _STAMP).replace(tzinfo=timezone.utc)
            found.append(Snapshot(path, database.name, taken_at, match[2], path.stat().st_size))
    return found


def find(app: Flask, databases: Iterable[Database], name: str | None) -> tuple[Database, Snapshot]:
    """A snapshot by its file name, or the newest, with its database.

    :raises DbSmartError: there is none, or it is not clear which is meant.
    """
    found = [(database, item) for database in databases for item in listed(app, database)]
    if name is not None:
        found = [pair for pair in found if pair[1].path.name == name]
    if not found:
        raise DbSmartError(
            f"There is no snapshot{'' if name is None else f' {name!r}'} in {snapshot_folder(app)}. Nothing was "
            "changed. 'flask db-smart snapshots' lists what there is."
        )
    names = list(dict.fromkeys(database.name for database, _ in found))
    if len(names) > 1:
        raise DbSmartError(
            f"There are snapshots of several databases: {', '.join(names)}. Nothing was changed. Name one with "
            "--database, or name the snapshot."
        )
    return found[-1]


def take(app: Flask, database: Database, connection: sa.Connection, pending: Sequence[Pending]) -> None:
    """Make a snapshot before the first change of a run; of a SQLite file that holds a table.

    :param connection: the connection of the run, outside a transaction.
    :param pending: what the run is going to apply.
    :raises ConfigError: ``DB_SMART_SNAPSHOTS`` cannot be used.
    :raises DbSmartError: there is no snapshot; nothing was changed.
    """
    keep = snapshots(app)
    if database.path is None or not keep:
        return
    started = time.perf_counter()
    source: object = connection.connection.dbapi_connection
    try:
        if not isinstance(source, sqlite3.Connection):
            raise OSError(f"the driver {type(source).__module__} is not Python's sqlite3")
        path = _take(app, database, source, pending[0].migration.name if pending else "first_run", keep)
    except (sqlite3.Error, OSError) as error:
        raise DbSmartError(
            f"Cannot make a snapshot of the database {database.name!r} ({database.url}) in {snapshot_folder(app)}: "
            f"{database.redact(error)}. Nothing was migrated, and no part of the copy was kept. Mend the cause, or set "
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
    path = database.path.resolve()
    settings = lock_settings(app)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(_open(chosen.path, immutable=True)) as source, lock_of(database, settings).held(lambda _: False):
            _check(source)
            try:
                return _write_back(app, database, path, source, chosen, settings.timeout)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # a subclass: the file is not what is at fault
                    raise
                _logger.warning("db-smart: %s cannot be read: %s", path, error)
                return _replace_broken(path, source)
    except (sqlite3.Error, OSError) as error:
        raise DbSmartError(
            f"Cannot restore the database {database.name!r} ({database.url}) from {chosen.path.name}: "
            f"{database.redact(error)}. It is as it was. Mend the cause and restore again."
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
            # changed is still in its own memory, so that the file may be read past the locks.
            with closing(_open(path, immutable=not wal)) as current:
                keep = snapshots(app) or sys.maxsize
                kept.append(_take(app, database, current, "restore", keep, spared=(chosen.path,)))
        elif status in (_BUSY, _LOCKED) and time.monotonic() > deadline:
            raise OSError(f"other connections kept it locked for {timeout:g} s (DB_SMART_LOCK_TIMEOUT)")

    with closing(sqlite3.connect(path, timeout=timeout)) as target:
        wal = _pragma(target, "journal_mode") == "wal"
        if wal and _pragma(target, "page_size") != _pragma(source, "page_size"):
            raise OSError(
                "in WAL mode its page size cannot change to that of the snapshot; to change the mode, end every "
                "process that uses it and run PRAGMA journal_mode=DELETE on it"
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
    app: Flask, database: Database, source: sqlite3.Connection, before: str, keep: int, spared: Collection[Path] = ()
) -> Path | None:
    """Copy a database that holds a table into a new snapshot; remove the oldest ones.

    :param keep: how many are there afterwards.
    :param spared: what is not removed.
    :raises OSError: there is not enough room, or no right to write; what was there stays.
    """
    folder, prefix = snapshot_folder(app), _prefix(database)
    with _reading(source):
        pages = _pragma(source, "page_count")
        if pages < 2:  # each table has a page of its own
            return None
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(f"{glob.escape(prefix)}*{_PARTIAL}"):  # of a process that was killed
            partial.unlink()
        # The newest one stays until there is a newer one.
        old = _surplus(listed(app, database), max(keep - 1, 1), spared)
        size = pages * _pragma(source, "page_size")
        room = shutil.disk_usage(folder).free + sum(item.size for item in old)
        if size > room:
            raise OSError(f"the disk has {room / 1e6:.1f} MB for it, and it needs {size / 1e6:.1f} MB")
        _remove(old)
        path = folder / f"{prefix}{datetime.now(timezone.utc):{_STAMP}}-before-{_safe(before, 80)}.sqlite"
        _copy(source, path)
    _remove(_surplus(listed(app, database), keep, (*spared, path)))
    return path


def _surplus(items: list[Snapshot], keep: int, spared: Collection[Path]) -> list[Snapshot]:
    """The oldest, which are too many."""
    return [item for item in items if item.path not in spared][: max(0, len(items) - keep)]


def _remove(items: Iterable[Snapshot]) -> None:
    for item in items:
        item.path.unlink(missing_ok=True)


def _copy(source: sqlite3.Connection, path: Path) -> None:
    """Copy a database into a file of its owner's alone, which has its name only when it is whole and on the disk."""
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
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
        raise OSError(f"the snapshot is damaged or empty ({found}), choose another one")


def _open(path: Path, *, immutable: bool) -> sqlite3.Connection:
    """Open a database to read it.

    :param immutable: take no lock and look for no WAL: nobody writes.
    """
    return sqlite3.connect(f"{path.as_uri()}?mode=ro{'&immutable=1' * immutable}", uri=True)


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _prefix(database: Database) -> str:
    """How the names of a database's snapshots begin; with its file, as a setting may name another one tomorrow."""
    assert database.path is not None
    return f"{_safe(database.name, 50)}-{_safe(database.path.name, 50)}-"


def _safe(text: str, limit: int) -> str:
    """A text as a part of a file name; differs where texts differ."""
    text = quote(text, safe="")
    return text if len(text) <= limit else f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
