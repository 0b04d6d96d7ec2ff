"""Is there anything to do? Asked in the order of cost: the flag, the sources, one row, the whole history."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from ..errors import DatabaseUnreachable, DbSmartError, HistoryUnreadable, MigrationError, one_line
from ..files import make_file, make_folder
from ..loading.sources import Sources, scan
from ..notices import WAIT_SHOWN_AFTER, logger_of, unheard
from ..store.database import Database, denied
from . import flag as flags
from .flag import DatabaseRecord, Flag, FlagInvalid

if TYPE_CHECKING:
    from ..loading.loader import Migration
    from ..store.history import Applied, Pending, State


_logger = logger_of(__name__)

_UNCHANGED = "nothing changed"
_COMPLETE = "holds every migration of this code"
#: How often a boot looks whether the one that asks before it is done, seconds.
_LOOK_EVERY = (0.05, 0.25)
#: How often it says for whom it waits, seconds.
_TELL_EVERY = 5.0


@dataclass(frozen=True)
class FlagVerdict:
    """What the flag says.

    :ivar holds: whether boot may go on without asking a database.
    :ivar reason: why, in words.
    :ivar flag: the flag, ``None`` where there is none that can be read.
    :ivar present: whether there is anything at its path.
    :ivar stale: whether it holds but should be written again, as only time stamps had changed.
    """

    holds: bool
    reason: str
    flag: Flag | None = None
    present: bool = True
    stale: bool = False


@dataclass
class Plan:
    """What one database holds and lacks.

    :ivar state: its state row, ``None`` without history.
    :ivar reason: why it is behind, or that it is not, in words.
    :ivar pending: what is to run, in order.
    :ivar applied: its history; empty where the state row alone was enough.
    :ivar unknown: names that it is ahead of this code by.
    :ivar edited_once: ``once`` migrations edited after they were applied.
    """

    database: Database
    state: State | None
    reason: str
    pending: list[Pending] = field(default_factory=list)
    applied: list[Applied] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    edited_once: list[str] = field(default_factory=list)
    #: Whether the history is that of other applications alone, so that this one's first run is still to come.
    foreign: bool = False

    @property
    def status(self) -> str:
        """``"pending"``, ``"ahead"`` or ``"up-to-date"``."""
        return "pending" if self.behind else "ahead" if self.unknown else "up-to-date"

    @property
    def clause(self) -> str:
        """The reason as a clause of its own."""
        return f"the database {self.database.name!r} {self.reason}"

    @property
    def elsewhere(self) -> str | None:
        """The schema of its history, where that is not the one in which a run would make it."""
        return None if self.state is None else self.state.place

    def refuse_elsewhere(self) -> None:
        """Refuse to run anything by a history in another schema: it may be that of another installation.

        :raises DbSmartError: it is in another one.
        """
        if self.elsewhere is not None:
            raise DbSmartError(
                f"Cannot migrate the database {self.database.name!r} ({self.database.url}): there is no history of "
                f"db-smart in the current schema (the first one of the search path), and the one in {self.elsewhere!r} "
                "(to which the search path leads) holds migrations of this application too. It cannot be told whether "
                "that is the history of this installation or of another one. Nothing was changed. If it is this one's, "
                f"put {self.elsewhere!r} first in the search path of who migrates; if the current schema is to get an "
                "installation of its own, migrate it once with a search path that does not lead elsewhere. More: "
                'docs/how-it-works.md, "Schemas of PostgreSQL".'
            )

    @property
    def behind(self) -> bool:
        """Whether the database lacks something: a migration, or the end of its first run."""
        return bool(self.pending) or self.foreign or self.state is None or not self.state.source


@dataclass(frozen=True)
class Step:
    """What boot does next.

    :ivar action: ``"off"``, ``"skip"`` (the flag is enough), ``"verify"`` (the databases hold everything),
        ``"migrate"``, ``"stop"`` (they do not, and the mode does not allow to migrate), or ``"ask"``: the flag, or,
        where that was asked already, the databases.
    :ivar reason: why, in words.
    """

    action: Literal["off", "skip", "verify", "migrate", "stop", "ask"]
    reason: str


def decide(mode: str, force: str | None, verdict: FlagVerdict | None = None, plans: list[Plan] | None = None) -> Step:
    """What boot does by what it knows so far. Boot goes by this, and ``status`` foretells by it.

    :param mode: ``DB_SMART_BOOT``.
    :param force: why everything is to run again; ``None`` where it is not.
    :param verdict: what the flag says; ``None`` where it was not asked yet.
    :param plans: what the databases hold; ``None`` where they were not asked yet.
    """
    if mode == "off":
        return Step("off", "DB_SMART_BOOT is off")
    if force is not None and mode == "migrate":
        return Step("migrate", force)
    if verdict is None:
        return Step("ask", "")
    if verdict.holds:
        return Step("skip", verdict.reason)
    if plans is None:
        return Step("ask", verdict.reason)
    behind = [plan for plan in plans if plan.behind]
    reason = "; ".join([verdict.reason, *(plan.clause for plan in behind or plans)])
    return Step("verify" if not behind else "migrate" if mode == "migrate" else "stop", reason)


class Planner:
    """The questions of one boot (or command) about one set of migrations.

    :param module: dotted name of the migrations.
    :param databases: the application's databases by name.
    :param path: the flag file.
    """

    def __init__(self, module: str, databases: Mapping[str, Database], path: Path) -> None:
        self.module = module
        self.databases = databases
        self.path = path
        #: When this process began to boot, UTC; ``None`` for a command, by which a person asks for what it does.
        self.since: datetime | None = None

    @property
    def queries(self) -> int:
        """How many statements were sent to all databases so far."""
        return sum(database.queries for database in self.databases.values())

    @cached_property
    def sources(self) -> Sources:
        """The scan of the source files; one for the whole question.

        :raises MigrationError: there are none.
        """
        return scan(self.module)

    @cached_property
    def migrations(self) -> list[Migration]:
        """The migrations of the code; imports them.

        :raises MigrationError: they cannot be loaded.
        """
        from ..loading.loader import load

        return load(self.sources)

    @cached_property
    def involved(self) -> list[Database]:
        """The default database, and those that migrations name; imports the migrations.

        :raises MigrationError: a migration names a database that the application does not have.
        """
        names = {"default"} & self.databases.keys()
        for migration in self.migrations:
            name = migration.options.database or "default"
            if name not in self.databases:
                known = ", ".join(sorted(self.databases))
                raise MigrationError(
                    f"Migration {migration.name!r} in {migration.path} is for the database {name!r}, which the "
                    f"application does not have (it has: {known}). Add it to SQLALCHEMY_BINDS; nothing was changed."
                )
            names.add(name)
        return [database for name, database in self.databases.items() if name in names]

    def of(self, database: Database) -> list[Migration]:
        """The migrations of one database."""
        return [item for item in self.migrations if (item.options.database or "default") == database.name]

    def by_flag(self) -> FlagVerdict:
        """Levels 0 and 1: does the flag still fit the sources and the databases? No query, no connection."""
        try:
            flag = flags.read(self.path)
        except FlagInvalid as error:
            return FlagVerdict(False, str(error), present=error.present)
        if flag.module != self.module:
            return FlagVerdict(False, f"the flag is for the migrations {one_line(flag.module)!r}", flag)
        for name, record in flag.databases.items():
            reason = self._database_changed(name, record)
            if reason is not None:
                return FlagVerdict(False, one_line(reason), flag)
        if "default" in self.databases and "default" not in flag.databases:
            return FlagVerdict(False, "the flag does not name the default database", flag)
        sources = self.sources
        same = flag.stats == sources.stats and flag.roots == sources.roots
        if same and not flag.racy:
            return FlagVerdict(True, _UNCHANGED, flag)
        if flag.digest == sources.digest:
            reason = _UNCHANGED if same else "only time stamps or places of the migrations changed"
            return FlagVerdict(True, reason, flag, stale=True)
        return FlagVerdict(False, one_line(_sources_changed(flag, sources)), flag)

    @contextmanager
    def one_boot_per_host(self, verdict: FlagVerdict, patience: float) -> Iterator[FlagVerdict]:
        """Let one boot on this host at a time ask the databases; the others wait for the flag that it writes.

        It spares the server a herd of workers, and decides nothing: who has waited long enough, or cannot use a file
        lock beside the flag, goes on without. The kernel frees the lock when its process ends.

        :param verdict: what the flag said, which does not hold.
        :param patience: the longest wait, seconds; the shortest is half of it, as all must not leave at once.
        :returns: what the flag says now.
        """
        if verdict.holds or any(database.in_memory for database in self.databases.values()):
            yield verdict
            return
        try:
            import fcntl  # not filelock, whose import alone takes as long as the boots of ten who only waited

            make_folder(self.path.parent)
            make_file(self.path.with_name(f"{self.path.name}.lock"), self.path.parent)
            # Whoever may write to the folder can put a link or a pipe there: nothing is written through it.
            careful = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | careful, 0o644)
        except (ImportError, OSError) as error:
            _logger.debug("db-smart: boots of this host do not wait for each other: %s", error)
            yield verdict
            return
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                _logger.debug("db-smart: boots of this host do not wait for each other: %s.lock is not ours", self.path)
                yield verdict
                return
            deadline = time.monotonic() + patience * random.uniform(0.5, 1)
            started, shown = time.monotonic(), False
            last_logged = float("-inf")
            pause, longest = _LOOK_EVERY
            seen, taken = None, False
            while not (verdict.holds or taken) and time.monotonic() < deadline:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    taken = True
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {self._question}".encode(), 0)
                except BlockingIOError:
                    holder, _, question = one_line(os.pread(descriptor, 40, 0).decode(errors="replace")).partition(" ")
                    if question and question != self._question:  # another application, which will not answer ours
                        break
                    now = time.monotonic()
                    show = not shown and now - started >= WAIT_SHOWN_AFTER and unheard(_logger)
                    if show or now - last_logged >= _TELL_EVERY:
                        last_logged, shown = now, shown or show
                        level = logging.WARNING if show else logging.INFO
                        _logger.log(
                            level,
                            "db-smart: waiting for process %s of this host, which asks or migrates",
                            holder or "another one",
                        )
                    threading.Event().wait(pause * random.uniform(0.5, 1.5))
                    pause = min(pause * 1.5, longest)
                except OSError:  # a file system without locks
                    break
                before, seen = seen, self._flag_stamp()
                if seen != before:
                    verdict = self.by_flag()
            yield verdict
        finally:
            os.close(descriptor)

    @cached_property
    def _question(self) -> str:
        """What this boot asks, in short: whether these databases hold these migrations."""
        texts = [self.module, *(database.url for database in self.databases.values())]
        return hashlib.sha256("\0".join(texts).encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def _flag_stamp(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def by_row(self) -> list[Plan] | None:
        """Level 2, the short way: does the state row of each database say that these very sources are applied?

        The row of the first database names the others, so that the migrations need not be imported.

        :returns: a plan with nothing pending for each; ``None`` when the whole history must be read.
        :raises DatabaseUnreachable: a database cannot be asked.
        """
        plans: list[Plan] = []
        names = list(self.databases)[:1]
        for name in names:  # grows by what the first row says
            database = self.databases.get(name)
            state = None if database is None else self.state(database)
            if database is None or state is None or state.source != self.sources.digest or not state.databases:
                return None
            if any(plan.state is not None and plan.state.database_id == state.database_id for plan in plans):
                return None  # one database by two names has one row, which the run on either of them writes
            names += [other for other in state.databases if other not in names]
            plans.append(Plan(database, state, _COMPLETE))
        return plans

    def by_history(self, *, force: bool = False) -> list[Plan]:
        """Level 2, the long way: compare the history of each database with the migrations; see :meth:`ask`."""
        return [self.ask(database, force=force) for database in self.involved]

    def ask(self, database: Database, *, force: bool = False) -> Plan:
        """What one database holds and lacks.

        :param force: count every repeatable migration as pending.
        :raises DatabaseUnreachable: the database cannot be asked.
        """
        if not database.exists:
            return self._plan(database, None, [], force)
        with database.connect() as connection:
            return self.by_connection(database, connection, force=force)

    def complete(self, database: Database, state: State) -> bool:
        """Whether a database, whose state row was just read, lacks nothing of these sources.

        The row alone does not tell where two names lead to one database.
        """
        return state.source == self.sources.digest and not self.ask(database).behind

    def by_connection(self, database: Database, connection: sa.Connection, *, force: bool = False) -> Plan:
        """As :meth:`ask`, on an open connection."""
        from ..store.history import find_state, read_applications, read_applied

        with reading(database):
            state = find_state(connection)
            place = None if state is None else state.place
            applied = [] if state is None else read_applied(connection, place)
            owners = set() if state is None else read_applications(connection, place)
        if place is not None and not self._may_be_ours(database, applied, owners):
            state, place, applied, owners = None, None, [], set()
        plan = self._plan(database, state, applied, force)
        if place is not None:
            plan.reason += " (by the history in another schema, to which the search path leads)"
        if owners and self.module not in owners:
            plan.foreign = True
            if not plan.pending:
                plan.reason = f"has the history of another application ({', '.join(sorted(owners))})"
        return plan

    def _may_be_ours(self, database: Database, applied: list[Applied], owners: set[str]) -> bool:
        """Whether a history in another schema may be that of this application, and not only of a neighbour."""
        mine = self.of(database)
        contents = {(item.name, item.checksum) for item in applied}
        if self.module in owners or any((item.name, item.checksum) in contents for item in mine):
            return True
        # Of a release that did not write down whose it is, a name alone may mean that.
        return not owners and bool({item.name for item in mine} & {name for name, _ in contents})

    def state(self, database: Database) -> State | None:
        """The state row of a database, ``None`` where there is none. At most one query.

        It may lie in another schema, see :class:`~.store.history.State`.

        :raises DatabaseUnreachable: the database cannot be asked.
        """
        from ..store.history import find_state

        if not database.exists:
            return None
        with database.connect() as connection, reading(database):
            return find_state(connection)

    def changed(self, flag: Flag, *, pooled: bool = True) -> str | None:
        """Why the databases are not those that a flag names, with one query each; ``None`` when they are.

        Asked of the application's own connections: what it will use is what counts.

        :param pooled: whether the connections are those of the application's pool, or only made as those are.
        :raises DatabaseUnreachable: a database cannot be asked.
        """
        for name, record in flag.databases.items():
            database = self.databases[name]
            state = self.state(database.serving if pooled else Database(name, database.key, database.app_engine))
            if state is None:
                return f"the database {name!r} has no history"
            if state.database_id != record.database_id:
                return f"the database {name!r} is another one"
            if state.applied != record.applied:
                return f"the database {name!r} has another history"
        return None

    def _plan(self, database: Database, state: State | None, applied: list[Applied], force: bool) -> Plan:
        from ..store.history import edited_once, pending, unknown

        migrations = self.of(database)
        todo = pending(migrations, applied, force=force)
        reason = _describe(todo, state, applied)
        # Of all migrations of the code, as two names may lead to one database.
        ahead, edited = unknown(self.migrations, applied), edited_once(migrations, applied)
        return Plan(database, state, reason, todo, applied, ahead, edited)

    def settle(self, plans: Iterable[Plan]) -> None:
        """Have the state rows say that these databases lack nothing of these sources, where they said another thing.

        Else each boot without a flag would read the whole history again, until the next run: after an edited comment,
        for instance. Where it cannot be written, or would hide what boot says, it is left.

        :param plans: what the whole histories said; none lacks anything.
        """
        from ..store.history import settle

        names = [database.name for database in self.involved]
        for plan in plans:
            database, state = plan.database, plan.state
            if state is None or state.holder is not None or database.in_memory or plan.elsewhere is not None:
                continue
            if (
                plan.unknown
                or plan.edited_once
                or (state.source, list(state.databases)) == (self.sources.digest, names)
            ):
                continue
            try:
                with database.connect() as connection:
                    settle(connection, state, self.sources.digest, names)
            except (DatabaseUnreachable, sa.exc.DBAPIError) as error:
                _logger.debug("db-smart: the row of the state stays as it is: %s", database.redact(error))

    def remember(self, states: Mapping[str, State]) -> None:
        """Write the flag: these databases hold every migration of these sources.

        A database in memory ends with the process, so that there is nothing to remember.

        :raises OSError: the flag cannot be written; the old one stays.
        """
        records = {}
        for name, state in states.items():
            database = self.databases[name]
            if database.in_memory:
                return
            file = database.settled_file_state()
            records[name] = DatabaseRecord(database.url, file, state.database_id, state.applied)
        self._write(records)

    def refresh(self, verdict: FlagVerdict) -> None:
        """Write the flag of a verdict again with the time stamps of now.

        :raises OSError: the flag cannot be written; the old one stays.
        """
        if verdict.flag is not None:
            self._write(verdict.flag.databases)

    def _write(self, records: dict[str, DatabaseRecord]) -> None:
        sources = self.sources
        flag = Flag(self.module, sources.roots, sources.stats, sources.digest, sources.racy, records)
        flags.write(self.path, flag)

    def _database_changed(self, name: str, record: DatabaseRecord) -> str | None:
        """Why the flag's record no longer fits a database; ``None`` when it does."""
        database = self.databases.get(name)
        if database is None:
            return f"the application no longer has the database {name!r}"
        if database.url != record.url:
            return f"the database {name!r} is now {database.url}, was {record.url}"
        if database.path is None or record.file is None:
            return None if database.path is None and record.file is None else "the flag file is damaged"
        try:
            now = database.file_state()
        except OSError as error:
            return f"the database file {database.path} is gone or cannot be read ({error.strerror})"
        assert now is not None
        if now.keys() != record.file.keys() or now["inode"] != record.file["inode"]:
            return f"the database file {database.path} was replaced"
        if now["schema"] != record.file["schema"]:
            return f"the schema of the database file {database.path} was changed or an older copy put back"
        if now["changes"] < record.file["changes"]:
            return f"an older copy of the database file {database.path} was put back"
        return None


def overall_state(states: Iterable[str]) -> str:
    """The one state that stands for several databases."""
    found = set(states)
    return next((state for state in ("unreachable", "unreadable", "pending", "ahead") if state in found), "up-to-date")


@contextmanager
def reading(database: Database) -> Iterator[None]:
    """Say what went wrong where the tables of the history cannot be read.

    :raises DatabaseUnreachable: the database answered with an error.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        failed = (
            f"Cannot read the history in the database {database.name!r} ({database.url}): {database.redact(error)}."
        )
        if denied(error):
            raise HistoryUnreadable(
                f"{failed} Nothing was changed. The user needs the right to read db_smart_state and db_smart_history, "
                "for a dry run also db_smart_objects and db_smart_progress"
                + ("" if database.dialect != "postgresql" else ", or a search path that does not lead to them")
                + "."
            ) from None
        raise DatabaseUnreachable(f"{failed} Nothing was changed. Mend the cause and try again.") from None


def _sources_changed(flag: Flag, sources: Sources) -> str:
    """Which source files differ from those that the flag names."""
    added = [name for name in sources.stats if name not in flag.stats]
    removed = [name for name in flag.stats if name not in sources.stats]
    changed = [name for name, stat in sources.stats.items() if name in flag.stats and flag.stats[name] != stat]
    differences = [(n, "is new") for n in added] + [(n, "is gone") for n in removed] + [(n, "changed") for n in changed]
    if not differences:
        return f"the migrations in {sources.roots[0]} changed"
    name, verb = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return f"{sources.paths.get(name, name)} {verb}{more}"


def _describe(todo: list[Pending], state: State | None, applied: Sequence[Applied]) -> str:
    if not todo:
        if state is None or not (state.source or applied):
            return "has no history yet"
        # A script of ours applies migrations, and the run that follows it completes the first one.
        return _COMPLETE if state.source else f"{_COMPLETE}, and its first run is not complete yet"
    kinds: dict[str, list[str]] = {}
    for item in todo:
        kinds.setdefault(item.reason, []).append(item.migration.name)
    parts = []
    for reason, names in kinds.items():
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        parts.append(f"{len(names)} {reason} migration{'s' if len(names) > 1 else ''} ({shown})")
    return ("has no history yet: " if state is None else "has ") + " and ".join(parts)
