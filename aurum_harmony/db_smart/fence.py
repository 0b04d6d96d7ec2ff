"""What lets a process serve only while the database knows so: a host renews its row, and who is cut off serves nothing.

That a process has not been heard of does not prove that it has ended: it may be paused, or cut off. So each knows by a
clock of its host until when its row holds, and after that it serves no request until it has registered again. The time
is taken before the row is renewed, so that it never ends after what the database says.

The processes of a host that run the same release share one row. One of them renews it, and a small file beside the flag
tells the others until when. Where there can be no such file, each process has a row of its own.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet, finalize, ref

import sqlalchemy as sa

from .beat import Beat
from .boot.question import Question
from .errors import DbSmartError
from .files import open_beside
from .notices import logger_of
from .settings import LockSettings
from .store import releases
from .store.database import Database
from .store.lock import lock_of
from .store.releases import Contract, Instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from .boot.planner import Planner

_logger = logger_of(__name__)

#: Of this host, also of a process that was stopped or of a host that slept meanwhile.
clock: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
#: How long a request waits for the answer of a server, and after how long a question that has none is left, seconds.
_PATIENCE, _SILENT = 3.0, 60.0
#: How often a process that may not serve asks again, seconds.
_ASK_EVERY = 1.0
#: How much of the row's time is left when it is renewed, at most.
_LEFT = 0.55
#: What the shared file is called, after the name of the flag.
_SEEN = ".seen"
#: So long is what the shared file says, bytes.
_WIDTH = 64
#: What tells a host from others of its name, and containers from each other.
_MARKS = ("/proc/sys/kernel/random/boot_id",)
_SPACES = ("/proc/self/ns/pid", "/proc/self/ns/time")


class Refusal(NamedTuple):
    """Why a process may not serve.

    :ivar public: in words for anybody.
    :ivar cause: for those who operate the application.
    :ivar gone: whether its release needs what the database no longer has.
    """

    public: str
    cause: str
    gone: bool = False


class _Served(NamedTuple):
    """A database that this release uses.

    :ivar maker: the same by what may make tables.
    """

    database: Database
    maker: Database
    me: Instance


_BUSY = Refusal("The database is being asked.", "another request asks the database whether this process may serve")


class Fence:
    """Whether this process may serve, with the models that it has now; there is another one when it has more.

    :param planner: makes the planner of the application.
    :param databases: which databases the application migrates.
    :param metadatas: the tables of its models by bind key.
    :ivar deadline: until when it may, seconds of :data:`clock`.
    """

    def __init__(
        self,
        planner: Callable[[], Planner],
        databases: Callable[[Planner], Sequence[Database]],
        metadatas: Mapping[str | None, sa.MetaData],
    ) -> None:
        self.deadline = 0.0
        self.refusal: Refusal | None = None
        self._planner = planner
        self._databases = databases
        self._metadatas = metadatas
        self._tables = self._count()
        self._locks = LockSettings()
        self._served: list[_Served] | None = None
        self._file: int | None = None
        self._closes: Callable[[], object] | None = None
        self._ask_at = 0.0
        self._question: Question[None] | None = None
        self._questioned = 0.0
        self._beats: Beat | None = None
        self._tidied, self._path = False, ""
        self._turn = threading.Lock()
        _all.add(self)

    @property
    def current(self) -> bool:
        """Whether the models are those that it registers: a view may import more of them."""
        return self._tables == self._count()

    def _count(self) -> int:
        return sum([len(one.tables) for one in list(self._metadatas.values())])

    def admit(self) -> Refusal | None:
        """Why this process may not serve now; ``None`` where it may. Registers it where that is needed.

        One request at a time asks, for a short time, and at most once a second.
        """
        if clock() < self.deadline:
            return None
        if not self._turn.acquire(timeout=_PATIENCE):
            return self.refusal or _BUSY
        try:
            if clock() >= self.deadline:
                self._ask()
            return None if clock() < self.deadline else self.refusal or _BUSY
        finally:
            self._turn.release()

    def stop(self) -> None:
        """End the thread that renews the row."""
        if self._beats is not None:
            self._beats.stop()
            self._beats = None

    def after_fork(self) -> None:
        """Make good in a forked process that the thread and whoever held the lock are not there."""
        if self._closes is not None:
            self._closes()  # a lock on the file would be that of the process before
        self.deadline, self._file, self._served = 0.0, None, None
        self._beats, self._question, self._turn = None, None, threading.Lock()

    def _ask(self) -> None:
        try:
            if self._served is None:
                self._served = self._open()
            if not self._served:
                self.deadline = float("inf")
                return
            self._adopt()
            if clock() >= self.deadline and clock() >= self._ask_at:
                self._register_in_time()
            if clock() < self.deadline:
                self._start()
        except DbSmartError as error:
            self._refuse(Refusal("The database is not ready.", error.message))

    def _register_in_time(self) -> None:
        """Register, but do not wait long for a server that says nothing."""
        if not any(one.database.facts.server for one in self._served or ()):
            self._register()
            return
        if self._question is None or not self._question.open or clock() - self._questioned > _SILENT:
            self._question, self._questioned = Question(self._register), clock()
        try:
            self._question.answer(_PATIENCE)
        except TimeoutError:
            self._refuse(Refusal("The database does not answer.", f"nothing came for {_PATIENCE:g} s"))

    def _open(self) -> list[_Served]:
        """Find out what this process is on each database, and open the file that it shares with others."""
        planner = self._planner()
        self._locks, self._path = planner.settings.lock, planner.path
        found = []
        for maker in self._databases(planner):
            uses = self._maps(maker)
            if uses and not maker.in_memory:
                database = Database(maker.name, maker.key, maker.app_engine)  # its pool is for requests
                found.append((database, maker, uses))
        texts = [planner.release, planner.path, *map(_text, _MARKS), *map(_link, _SPACES)]
        texts += [json.dumps([database.url, uses]) for database, _, uses in found]
        host = socket.gethostname()
        digest = hashlib.sha256("\0".join([host, *texts]).encode("utf-8", "backslashreplace")).hexdigest()[:16]
        try:
            if not _text(_MARKS[0]):
                raise OSError("it is not known when this system was started")
            self._file = open_beside(Path(f"{planner.path}.{digest}{_SEEN}"))
            self._closes = finalize(self, os.close, self._file)
        except OSError as error:
            _logger.debug("db-smart: this process has a row of its own: %s", error)
            digest = f"{digest}.{os.getpid()}.{os.urandom(4).hex()}"
        key = f"{host[:200]}:{digest}"
        return [_Served(database, maker, Instance(planner.release, key, uses)) for database, maker, uses in found]

    def _maps(self, database: Database) -> dict[str, list[str]]:
        metadata = self._metadatas.get(database.key)
        return {} if metadata is None else releases.mapped(metadata, database.app_engine)

    def _register(self) -> None:
        """Tell each database that this process serves, and then look whether what it needs is there."""
        since = clock()
        for one in self._served or ():
            try:
                refusal = self._register_on(one)
            except Exception as error:  # also what a driver or a listener raises that SQLAlchemy does not wrap
                said = error.message if isinstance(error, DbSmartError) else one.database.redact(error)
                refusal = Refusal(
                    "The database is not ready.",
                    f"The database {one.database.name!r} ({one.database.url}) cannot be told that this process serves: "
                    f"{said}. Its user needs the rights to read and to write db_smart_releases, and to read "
                    "db_smart_contracts and db_smart_state.",
                )
            if refusal is not None:
                self._refuse(refusal)
                return
        self._hold(since)

    def _register_on(self, one: _Served) -> Refusal | None:
        with one.database.connect() as connection:
            try:
                contracts = self._written_down(one, connection)
            except sa.exc.DBAPIError as error:
                # Whether they are there now says nothing: another thread may be making them.
                if error.connection_invalidated or not one.database.facts.says(error, "missing"):
                    raise
                with one.maker.connect() as making:
                    releases.make_tables(making)
                contracts = self._written_down(one, connection)
            for contract in contracts:
                if not releases.harmed(contract.touches, one.me, Instance(contract.release, "", one.me.uses)):
                    continue
                if contract.under_way and self._holds(one.maker):
                    cause = f"{contract.migration!r} is being applied to the database {one.database.name!r}, and "
                    return Refusal("The database is being migrated.", f"{cause}takes away what this release uses")
                lost = releases.lost(connection, contract.touches.gone, one.me.uses)
                if lost:
                    releases.withdraw(connection, one.me)
                    return Refusal(
                        "This release needs what a later one has taken away from the database.",
                        f"Release {one.me.release} uses {', '.join(lost)}, which the database {one.database.name!r} no "
                        f"longer has since {contract.migration!r}. Deploy a release that does not use it.",
                        gone=True,
                    )
        return None

    def _written_down(self, one: _Served, connection: sa.Connection) -> list[Contract]:
        """Write the row, and then read what is being taken away."""
        releases.register(connection, one.me, self._locks.lease)
        return releases.read_contracts(connection, holds=None if one.database.facts.server else True)

    def _holds(self, database: Database) -> bool:
        """Whether anybody holds the lock of a database; on a server the row of the lease has told that already.

        Else what was begun is void; whoever takes the lock later looks at our row.
        """
        return database.facts.server or lock_of(database, self._locks).holder() is not None

    def _refuse(self, refusal: Refusal) -> None:
        if self.refusal is None or self.refusal.cause != refusal.cause:
            _logger.error("db-smart: requests get status 503: %s", refusal.cause)
        self.refusal, self._ask_at = refusal, clock() + _ASK_EVERY

    def _hold(self, since: float) -> None:
        """Go on until the row runs out that was renewed after a moment, and let the others of this host do so."""
        if self.refusal is not None:
            _logger.warning("db-smart: requests are served again")
        self.deadline, self.refusal = since + self._locks.lease, None
        if self._file is not None:
            text = f"{self.deadline:.6f}"
            with suppress(OSError):  # the others register by themselves
                os.pwrite(self._file, f"{text} {text}".ljust(_WIDTH).encode(), 0)

    def _adopt(self) -> None:
        """Go on as long as another process of this host has found that it may."""
        if self._file is None:
            return
        with suppress(OSError, ValueError):
            first, second = os.pread(self._file, _WIDTH, 0).split()
            if first == second:  # else it is just being written
                # What is far ahead is of no process that lives.
                self.deadline = max(self.deadline, min(float(first), clock() + self._locks.lease))

    def _start(self) -> None:
        """Start the thread that renews the row, where it is not there."""
        if self._beats is not None:
            return
        mine = ref(self)

        def beat() -> float | None:
            fence = mine()  # the thread does not keep an application that nobody uses
            return None if fence is None or not fence.current else fence._beat()

        self._beats = Beat("db-smart-releases", beat, self._pause)
        try:
            self._beats.start()
        except RuntimeError as error:  # no more threads: a request registers, whenever the row has run out
            _logger.warning("db-smart: no thread can renew what the database knows of this process: %s", error)

    @property
    def _pause(self) -> float:
        return self._locks.lease / 3 * random.uniform(0.7, 1)

    def _beat(self) -> float:
        """Renew the row, unless another process of this host has done so, or is at it.

        :returns: when to look again, seconds.
        """
        try:
            if any(self._maps(one.maker) != one.me.uses for one in self._served or ()):
                self._tables = -1  # the next request has all registered that it maps by now
            self._adopt()
            if self.deadline - clock() > self._locks.lease * _LEFT or not self._alone():
                return self._pause
            try:
                self._adopt()
                if self.deadline - clock() <= self._locks.lease * _LEFT:
                    self._renew()
            finally:
                self._let_others()
            return self._pause
        except Exception as error:  # whatever it was, the thread is to go on
            text = error.message if isinstance(error, DbSmartError) else type(error).__name__
            _logger.warning("db-smart: what the database knows of this process is not renewed yet: %s", text)
            return self._locks.lease / 15

    def _renew(self) -> None:
        since = clock()
        # A request that registers the row again has made it hold before it has looked at what is gone.
        held = since < self.deadline
        for one in self._served or ():
            if not held:
                break
            with one.database.connect() as connection:
                held = releases.renew(connection, one.me, self._locks.lease)
                if not self._tidied:
                    releases.forget(connection)
        if held:
            self._hold(since)
        else:
            self._register()
        if not self._tidied:
            self._tidied = True
            self._remove_files()

    def _remove_files(self) -> None:
        """Remove the files of earlier releases, and of what this host was before it was started again."""
        flag = Path(self._path)
        with suppress(OSError):
            for path in flag.parent.glob(f"{glob.escape(flag.name)}.*{_SEEN}"):
                if time.time() - path.lstat().st_mtime > releases.FORGET:
                    path.unlink()

    def _alone(self) -> bool:
        """Whether no other process of this host is at it."""
        if self._file is None:
            return True
        import fcntl  # there is one where there is such a file

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # One that was stopped may hold the lock.
            return self.deadline - clock() < self._locks.lease / 3
        except OSError:  # a file system without locks
            return True
        return True

    def _let_others(self) -> None:
        if self._file is not None:
            import fcntl

            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


_all: WeakSet[Fence] = WeakSet()


def _after_fork() -> None:
    for one in list(_all):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
