"""Who may migrate: one holder at a time over all processes and hosts, freed when the holder dies.

Server databases hold a lease: a row with a fencing token and an expiry by the database's own clock, taken by
compare-and-set and renewed by a heartbeat. It needs no session, so that it works through a connection pooler and over
the nodes of a cluster, and whoever waits holds no connection. SQLite has an operating-system file lock beside the
file, which the kernel releases with the process.
"""

from __future__ import annotations

import json
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..beat import Beat
from ..errors import DatabaseUnreachable, DbSmartError, LeaseLost, LockHeld, LockTimeout, one_line
from ..files import NO_LINK, give, make_file, read_regular
from ..interrupt import GiveWay
from ..notices import logger_of
from ..retry import Wait
from ..settings import LockSettings
from .database import Database, begin
from .history import Doing, Holder, State, holder_in, holder_text, read_state
from .tables import epoch_us, state

if TYPE_CHECKING:
    from filelock import BaseFileLock

_logger = logger_of(__name__)

#: How often at most the holder writes down which migration it is on, seconds.
_NOTE_EVERY = 0.5
#: A longer file is not the holder's, bytes.
_MOST_OF_HOLDER = 65536
#: What the lock of a SQLite file is called, after the name of the file.
_LOCK = ".db-smart.lock"


class Lock(ABC):
    """The lock of one database. The one object that holds it also releases it."""

    def __init__(self, database: Database, settings: LockSettings) -> None:
        self.database = database
        self.settings = settings
        #: Whether it is released for those who wait to boot: see :attr:`~.settings.LockSettings.away`.
        self._for_others = False

    @property
    def token(self) -> int:
        """What tells, as long as it is held, who holds it; never 0."""
        return 1

    @abstractmethod
    def try_acquire(self, done: Callable[[State], bool]) -> bool | None:
        """Take the lock if it is free; never waits.

        :param done: told what the database says; whether there is nothing left to do.
        :returns: whether it was taken; ``None`` when there is nothing left to do.
        """

    @abstractmethod
    def release(self) -> None:
        """Give the lock back; does nothing when it is lost already."""

    @abstractmethod
    def holder(self) -> Holder | None:
        """Who holds the lock now, ``None`` when it is free. Writes nothing."""

    @abstractmethod
    def note(self, migration: str) -> None:
        """Tell those who wait, soon, which migration the holder is on.

        :raises LeaseLost: somebody else has taken the lock.
        """

    def note_doing(self, doing: Doing | None) -> None:  # noqa: B027 - a file has no server that would tell
        """Tell others, soon, how far the holder is with one long statement; ``None`` where it is with none."""

    @abstractmethod
    def confirm(self, connection: sa.Connection) -> None:
        """Make sure, in the transaction that records something, that it can commit only while the lock is held.

        :raises LeaseLost: somebody else has taken the lock; roll the transaction back.
        """

    @abstractmethod
    def left_behind(self) -> str | None:
        """Name of a holder that is gone without having released the lock; ``None`` where there is none.

        Watches for a heartbeat, for at most three quarters of a lease: two are due by then. Writes nothing.

        :raises LockHeld: the holder is alive.
        """

    @abstractmethod
    def free(self) -> bool:
        """Free a lock that :meth:`left_behind` found; its holder, should it come back, can record nothing.

        :returns: ``False`` if it is alive after all, or another one has it now.
        """

    @contextmanager
    def held(self, done: Callable[[State], bool]) -> Iterator[bool]:
        """Hold the lock, waiting for it if need be.

        :param done: see :meth:`try_acquire`.
        :returns: whether the lock is held; ``False`` when there was nothing left to do.
        :raises LockTimeout: it was not free in time.
        :raises DatabaseUnreachable: it could not be asked all that time.
        """
        if not self._wait(done):
            yield False
            return
        try:
            yield True
        except GiveWay:
            self._for_others = True
            raise
        finally:
            self.release()

    def _wait(self, done: Callable[[State], bool]) -> bool:
        wait = Wait(self.settings.pauses, self.settings.timeout, self.settings.woken)
        while True:
            over = wait.over
            try:
                taken = self.try_acquire(done)
                if taken is not False:
                    return taken is True
                if over:
                    raise LockTimeout(
                        f"The database {self.database.name!r} ({self.database.url}) is being migrated by {self._who()};"
                        f" this process waited {self.settings.timeout:g} s for it (DB_SMART_LOCK_TIMEOUT) and changed "
                        "nothing. Start again when it is done; 'flask db-smart status' shows that."
                    )
                wait.log(_logger, lambda: f"{self._who()}, which migrates {self.database.name!r}")
            except (DatabaseUnreachable, sa.exc.DBAPIError) as error:
                # The database has answered this process before: it may be restarting, and come back.
                if over or not (isinstance(error, DatabaseUnreachable) or error.connection_invalidated):
                    raise
                said = f"the database: {self.database.redact(error)}"
                wait.log(_logger, lambda: said, warn=True)  # noqa: B023 - called at once
            wait.pause()

    def _who(self) -> str:
        holder = self.holder()
        return "another process" if holder is None else str(holder)


def lock_of(database: Database, settings: LockSettings) -> Lock:
    """The lock that a database has."""
    return (_Lease if database.facts.server else _FileLock)(database, settings)


class _Lease(Lock):
    """A row in the database; see the module."""

    def __init__(self, database: Database, settings: LockSettings) -> None:
        super().__init__(database, settings)
        self._token: int | None = None
        self._migration = ""
        self._doing: Doing | None = None
        self._lost = False
        self._heart: Beat | None = None

    @property
    def token(self) -> int:
        """That of the lease."""
        assert self._token is not None
        return self._token

    def try_acquire(self, done: Callable[[State], bool]) -> bool | None:
        free = sa.and_(state.c.id == 1, state.c.lease_expires < epoch_us() - int(self.settings.away * 1_000_000))
        take = {
            "token": state.c.token + 1,
            "holder": process_name(),
            "lease_since": epoch_us(),
            "lease_expires": self._expiry(),
            "lease_migration": "",
        }
        with self.database.connect() as connection:
            try:
                found = read_state(connection)
                connection.rollback()
                if found is not None and done(found):
                    return None
                if found is None or found.holder is not None:
                    return False
                begin(connection)
                if connection.execute(state.update().where(free).values(take)).rowcount != 1:
                    return False
                self._token = connection.scalar(sa.select(state.c.token).where(state.c.id == 1))
                connection.commit()
            except sa.exc.DBAPIError as error:
                # Another one was quicker, maybe on another node of the cluster.
                if self.database.facts.says(error, "transient"):
                    return False
                raise
        pause = self.settings.lease / 3
        self._heart = Beat("db-smart-heartbeat", self._beat, pause, min(_NOTE_EVERY, pause))
        try:
            self._heart.start()
        except BaseException:  # no more threads
            self._heart = None
            self.release()
            raise
        return True

    def release(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        try:
            expired = epoch_us() - 1 if self._for_others else 0
            self._update({"lease_expires": expired, "holder": "", "lease_migration": ""})
        except Exception as error:  # the expiry frees it
            _logger.warning("db-smart: cannot free the lease, which will run out: %s", self.database.redact(error))

    def holder(self) -> Holder | None:
        with self.database.connect() as connection:
            found = read_state(connection)
            return None if found is None else found.holder

    def note(self, migration: str) -> None:
        if self._lost:
            raise self._loss()
        self._migration, self._doing = migration, None
        if self._heart is not None:
            self._heart.wake()

    def note_doing(self, doing: Doing | None) -> None:
        self._doing = doing
        if self._heart is not None:
            self._heart.wake()

    def confirm(self, connection: sa.Connection) -> None:
        # An update, not a query: it locks the row until this transaction ends, so that nobody takes the lease between.
        if connection.execute(self._mine().values(lease_expires=self._expiry())).rowcount != 1:
            raise self._loss()

    def left_behind(self) -> str | None:
        found = self._lease()
        if found is None or not found.holder:
            return None
        deadline = time.monotonic() + self.settings.lease * 0.75
        while found.lease_expires >= found.now and time.monotonic() < deadline:
            time.sleep(0.1)
            later = self._lease()
            if later is None or not later.holder:
                return None
            if (later.token, later.lease_expires) != (found.token, found.lease_expires):
                raise LockHeld(
                    f"The database {self.database.name!r} is being migrated by {self._who()}, whose heartbeat is alive."
                    " Nothing was changed. To stop it, end that process; then the lock frees itself."
                )
        self._found = found
        return holder_in(found.holder)[0]

    def free(self) -> bool:
        same = sa.and_(
            state.c.id == 1, state.c.token == self._found.token, state.c.lease_expires == self._found.lease_expires
        )
        values = {"token": state.c.token + 1, "lease_expires": 0, "holder": "", "lease_migration": ""}
        with self.database.connect() as connection:
            begin(connection)
            freed: bool = connection.execute(state.update().where(same).values(values)).rowcount == 1
            connection.commit()
            return freed

    def _lease(self) -> sa.Row[Any] | None:
        """The row, whether the lease in it has run out or not."""
        with self.database.connect() as connection:
            if read_state(connection) is None:
                return None
            return connection.execute(sa.select(state, epoch_us().label("now")).where(state.c.id == 1)).first()

    def _beat(self) -> float | None:
        """Renew the lease.

        :returns: when to do so again, seconds.
        """
        try:
            holder = holder_text(process_name(), self._doing)
            values = {"lease_expires": self._expiry(), "lease_migration": self._migration, "holder": holder}
            if not self._update(values):
                self._lost = True
                return None
            return self.settings.lease / 3
        except Exception as error:  # try again soon; whether the lease still holds is seen where it counts
            _logger.warning("db-smart: the heartbeat failed and is tried again: %s", self.database.redact(error))
            return self.settings.lease / 15

    def _update(self, values: dict[str, object]) -> bool:
        """Change the row in a transaction of its own, if the lease is still ours."""
        with self.database.connect() as connection:
            begin(connection)
            changed: int = connection.execute(self._mine().values(values)).rowcount
            connection.commit()
            return changed == 1

    def _mine(self) -> sa.Update:
        return state.update().where(state.c.id == 1, state.c.token == self._token)

    def _expiry(self) -> sa.ColumnElement[int]:
        return epoch_us() + int(self.settings.lease * 1_000_000)

    def _loss(self) -> LeaseLost:
        return LeaseLost(
            f"The lease on the database {self.database.name!r} ran out while this process was stopped or disconnected, "
            "and another one has taken it. That one finishes what was not recorded yet. You need not do anything."
        )


class _FileLock(Lock):
    """A lock file beside the database file, and a second file that says who holds it."""

    def __init__(self, database: Database, settings: LockSettings) -> None:
        super().__init__(database, settings)
        # Not the link that leads to the file: each release may have one of its own.
        path = None if database.path is None else os.path.realpath(database.path)
        self._path = None if path is None else Path(f"{path}{_LOCK}")
        self._info = None if path is None else Path(f"{path}.db-smart.holder")
        self._lock: BaseFileLock | None = None
        #: Who holds it, and since when.
        self._holder: tuple[str, str] = ("", "")
        #: The second file, as long as it is ours, and how long what it says was at most.
        self._notes: FileIO | None = None
        self._width = 0

    def try_acquire(self, done: Callable[[State], bool]) -> bool | None:
        if self._path is None:  # a database in memory has no other process
            return True
        from filelock import FileLock, Timeout

        make_file(self._path, self._like)
        if self.settings.away:
            found = self._path.lstat()
            if found.st_size and 0 <= time.time() - found.st_mtime < self.settings.away:
                return self._while_held(done)
        self._lock = self._lock or FileLock(self._path, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return self._while_held(done)
        except OSError as error:
            if error.filename is None:  # such as a pipe in its place, which cannot be cut
                error.filename = str(self._path)
            raise
        self._holder = process_name(), datetime.now(timezone.utc).isoformat()
        with suppress(OSError):
            if self._path.lstat().st_size:
                self._mark(0)
        try:
            self.note("")
        except BaseException:  # a full disk; the next try must not wait for this one
            self.release()
            raise
        return True

    def _while_held(self, done: Callable[[State], bool]) -> bool | None:
        """As :meth:`try_acquire` while another process holds the lock, maybe for what boot does not wait for."""
        with suppress(DbSmartError, sa.exc.SQLAlchemyError):  # the file is just being written
            if self.database.exists:
                with self.database.connect() as connection:
                    found = read_state(connection)
                if found is not None and done(found):
                    return None
        return False

    def release(self) -> None:
        if self._lock is not None and self._info is not None:
            assert self._path is not None
            if self._for_others:
                with suppress(OSError):  # then those in the background may be quicker
                    self._mark(1)
            try:
                self._close_notes()
                self._info.unlink(missing_ok=True)
            except OSError as error:  # whoever looks asks the lock first
                _logger.debug("db-smart: cannot remove %s: %s", self._info, error)
            finally:
                self._lock.release()

    def holder(self) -> Holder | None:
        if self._info is None or self._path is None or not self._info.exists():
            return None
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._path, blocking=False):
                return None
        except Timeout:
            pass
        try:
            content = read_regular(self._info, _MOST_OF_HOLDER, NO_LINK) or b""
            name, since, migration = json.loads(content)
            return Holder(one_line(str(name)), datetime.fromisoformat(since), None, one_line(str(migration)))
        except (OSError, ValueError, TypeError, RecursionError):  # just released, or just being written
            return Holder("another process", datetime.now(timezone.utc), None, "")

    @property
    def _like(self) -> Path:
        """Whose owner the files get that root makes: the database, or its folder where there is none yet."""
        assert self._path is not None
        path = self._path.with_name(self._path.name.removesuffix(_LOCK))
        return path if path.exists() else path.parent

    def left_behind(self) -> str | None:
        holder = self.holder()
        if holder is not None:
            raise LockHeld(
                f"The database {self.database.name!r} is being migrated by {holder}, which is alive. Nothing was "
                "changed. To stop it, end that process; then the lock frees itself."
            )
        if self._info is None or not self._info.exists():
            return None
        return f"a process that has ended (see {self._info})"

    def free(self) -> bool:
        if self._info is not None:
            self._info.unlink(missing_ok=True)
        return True

    def note(self, migration: str) -> None:
        if self._info is not None:
            text = json.dumps([*self._holder, migration]).encode()
            # In one write, with blanks over what was longer, because others may read it meanwhile.
            self._width = max(self._width, len(text))
            if self._notes is not None and os.fstat(self._notes.fileno()).st_nlink:
                self._notes.seek(0)
                self._notes.write(text.ljust(self._width))
                return
            # A new file, because what is there may be a link that leads to another file, or a pipe.
            self._close_notes()
            temporary = self._info.with_name(f"{self._info.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            notes = FileIO(temporary, "x")
            try:
                notes.write(text)
                if os.name == "nt":  # which does not rename what is open
                    notes.close()
                with suppress(OSError):  # a file system without owners
                    give(temporary, self._like)
                os.replace(temporary, self._info)
            except BaseException:
                notes.close()
                temporary.unlink(missing_ok=True)
                raise
            self._notes = None if notes.closed else notes

    def _mark(self, size: int) -> None:
        """Have the lock file be empty, or not: then it was left to who waits to boot."""
        assert self._path is not None
        descriptor = os.open(self._path, os.O_WRONLY | NO_LINK)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def _close_notes(self) -> None:
        if self._notes is not None:
            self._notes.close()
            self._notes = None

    def confirm(self, connection: sa.Connection) -> None:
        """Nothing to ask: the kernel keeps the lock as long as the process lives."""


def process_name() -> str:
    """What this process is called in a database: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"[:255]
