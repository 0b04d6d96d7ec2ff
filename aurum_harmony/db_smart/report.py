"""What the commands say, as data: both the text and the JSON of a report are made from one object.

``migrate`` makes a :class:`Run`, with ``--dry-run`` a :class:`DryRun` and with ``--sql`` a :class:`Script`; ``status``
makes a :class:`Status`, and ``snapshots`` makes :class:`Snapshots`. A field is a key of the JSON, unless it says
otherwise.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from .boot.decision import decide
from .boot.plan import overall_state, pending
from .errors import DatabaseUnreachable, DbSmartError, HistoryUnreadable, LockTimeout
from .schema.progress import Progress, read_progress
from .settings import Settings
from .store.history import Applied, read_failure
from .store.lock import lock_of
from .store.snapshot import listed, others

if TYPE_CHECKING:
    from flask import Flask

    from .boot.flag import FlagVerdict
    from .boot.plan import Plan
    from .boot.planner import Planner
    from .extension import DbSmart
    from .preview import Preview
    from .runner import Outcome
    from .store.database import Database

T = TypeVar("T")

#: Of a field: it is only for the text, or only in the JSON where there is any of it.
_TEXT_ONLY, _IF_ANY = {"json": lambda _: False}, {"json": bool}


class Report(ABC):
    """What one command says.

    :ivar fails: whether the command ends with exit code 1.
    :ivar in_utf_8: whether it is in UTF-8 whatever the locale says.
    :ivar unwritten: what to say of it where it cannot be written whole; ``None`` where only what was done counts.
    """

    fails = False
    in_utf_8 = False
    unwritten: str | None = "The output cannot be written ({}): it is not complete. Nothing was changed."

    @abstractmethod
    def lines(self) -> Iterator[str]:
        """The report as text."""

    def json(self) -> str:
        """The report as JSON."""
        return json.dumps(self._data(), default=_plain, indent=2)

    def _data(self) -> object:
        return self


def _plain(value: Any) -> object:
    """What JSON has no form for itself: a moment, or one of the dataclasses below."""
    if isinstance(value, datetime):
        return value.isoformat()
    found = {item: getattr(value, item.name) for item in fields(value)}
    return {item.name: given for item, given in found.items() if item.metadata.get("json", lambda _: True)(given)}


# -- migrate


@dataclass(frozen=True)
class Ran:
    """A migration that was applied."""

    name: str
    duration_ms: float


@dataclass(frozen=True)
class Lock:
    """Who migrates a database now."""

    holder: str
    since: datetime
    expires_at: datetime | None
    migration: str | None

    @classmethod
    def of(cls, app: Flask, database: Database) -> Lock | None:
        """Ask the database; ``None`` if nobody migrates it.

        :raises DatabaseUnreachable: it cannot be asked.
        """
        found = lock_of(database, Settings(app).lock).holder()
        return None if found is None else cls(found.name, found.since, found.expires_at, found.migration or None)


@dataclass(frozen=True)
class Run(Report):
    """What ``migrate`` has done.

    :ivar result: ``"applied"``, ``"up-to-date"`` or ``"failed"``.
    :ivar lock: which process migrates now, if the command failed because of it.
    :ivar made: the lost tables of the models that were made again.
    :ivar reasons: why it was necessary.
    """

    result: str
    applied: list[Ran]
    error: str | None = None
    lock: Lock | None = None
    made: list[str] = field(default_factory=list, metadata=_IF_ANY)
    reasons: list[str] = field(default_factory=list, metadata=_TEXT_ONLY)

    unwritten = None

    @classmethod
    def done(cls, outcome: Outcome, applied: list[Ran], plans: Iterable[Plan]) -> Run:
        """The report of a run that has ended.

        :param plans: what was pending before it.
        """
        reasons = [plan.clause for plan in plans if plan.behind]
        return cls("applied" if outcome.changed else "up-to-date", applied, made=outcome.made, reasons=reasons)

    @classmethod
    def failed(cls, error: DbSmartError, applied: list[Ran], app: Flask, databases: Iterable[Database]) -> Run:
        """The report of a run that failed, after it applied some migrations."""
        lock = None
        with suppress(DbSmartError):  # the database may be gone meanwhile: it is the first error that counts
            if isinstance(error, LockTimeout):
                lock = _first(Lock.of(app, database) for database in databases)
        return cls("failed", applied, error.message, lock)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.made:
            yield f"Created the missing tables of the models: {', '.join(self.made)}."
            if not self.reasons and not self.applied:
                return
        if self.result == "up-to-date":
            yield "Migration already completed: the database holds every migration of this code."
            yield "To run the repeatable migrations again, use --force."
            return
        count = len(self.applied)
        yield f"Applied {count} migration{'' if count == 1 else 's'}, because {'; '.join(self.reasons)}."


@dataclass(frozen=True)
class TablesForetold:
    """The tables of the models that the first run would create in one database."""

    database: str
    does: list[str]
    sql: list[str]


@dataclass(frozen=True)
class Foretold:
    """What one migration would do, see :class:`~.preview.Preview`."""

    database: str
    name: str
    reason: str
    does: list[str]
    satisfied: list[str]
    unknown: str | None
    error: str | None
    sql: list[str]
    steps_done: int


@dataclass(frozen=True)
class DryRun(Report):
    """What ``migrate`` would do.

    :ivar result: ``"pending"`` or ``"up-to-date"``.
    :ivar shown: what the text shows, each with the name of its database.
    """

    result: str
    applied: list[Ran]
    error: None
    tables: list[TablesForetold]
    pending: list[Foretold]
    lock: None
    shown: list[tuple[str, Preview]] = field(metadata=_TEXT_ONLY)

    @classmethod
    def of(cls, previews: Mapping[str, list[Preview]]) -> DryRun:
        """The report, by the previews of each database."""
        shown = [(database, item) for database, items in previews.items() for item in items]
        tables = [TablesForetold(name, item.does, item.script) for name, item in shown if item.migration is None]
        pending = [
            Foretold(
                database,
                item.name,
                item.reason,
                item.does,
                item.satisfied,
                item.unknown,
                item.error,
                item.script,
                item.steps_done,
            )
            for database, item in shown
            if item.migration is not None
        ]
        return cls("pending" if shown else "up-to-date", [], None, tables, pending, None, shown)

    @property
    def fails(self) -> bool:  # type: ignore[override]
        """Whether the run would fail."""
        return any(item.error is not None for item in self.pending)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for database, item in self.shown:
            yield f"  {item.name}  {item.reason}  ({database})"
            if item.steps_done:
                yield f"    goes on    after {item.steps_done} steps of an interrupted run"
            yield from (f"    would do   {operation}" for operation in item.does)
            yield from (f"    satisfied  {operation}" for operation in item.satisfied)
            if item.unknown is not None:
                yield f"    unknown    it uses {item.unknown}"
            if item.error is not None:
                yield f"    would fail {item.error}"
        tables = " and tables of the models to create" if self.tables else ""
        count = f"{len(self.pending)} to apply{tables}; nothing was written"
        yield f"Dry run: {count if self.shown else 'nothing to apply'}."


@dataclass(frozen=True)
class Script(Report):
    """The SQL of what ``migrate`` would do; it has no JSON."""

    text: list[str]
    #: Whether a migration would fail, so that neither the script nor the next boot applies it.
    fails: bool = False

    in_utf_8 = True
    unwritten = "The script cannot be written ({}): it is not complete, so do not run it. Nothing was changed."

    @classmethod
    def of(cls, app: Flask, plans: Iterable[Plan], previews: Mapping[str, list[Preview]]) -> Script:
        """The report, by the previews of each database."""
        from .script import certainly_fails, script

        shown = [(plan, found) for plan in plans if (found := previews[plan.database.name])]
        text = [line for plan, found in shown for line in script(plan, found, Settings(app).ddl)]
        whole = [next((item for item in found if item.unknown or item.error), None) for _, found in shown]
        return cls(text, any(item is not None and certainly_fails(item) for item in whole))

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield from self.text or ["-- Nothing to apply."]


# -- status


@dataclass(frozen=True)
class Waiting:
    """A migration that is pending, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """A run that failed, see :func:`~.store.history.read_failure`."""

    name: str
    failed_at: str
    duration_ms: float
    applied_by: str
    error: str


@dataclass(frozen=True)
class DatabaseStatus:
    """What ``status`` says of one database.

    :ivar unknown: the names that it is ahead of this code by.
    :ivar missing: the tables of the models that are not there.
    :ivar failed: the last run that failed, of a migration that was not applied since.
    """

    name: str
    url: str
    dialect: str
    state: str
    applied: list[Applied] = field(default_factory=list)
    pending: list[Waiting] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: Failure | None = None
    lock: Lock | None = None
    progress: Progress | None = None

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"Database {self.name}: {self.state}  {self.url}"
        if self.lock is not None:
            on = f", on {self.lock.migration}" if self.lock.migration else ""
            yield f"  migrating now: {self.lock.holder} since {_second(self.lock.since)}{on}"
        if self.progress is not None:
            yield f"  backfill  {self.progress}"
        last = {item.name: item.checksum for item in self.applied}
        for item in self.applied:
            ahead = item.name in self.unknown and item.checksum == last[item.name]
            word, why = ("unknown", "  the database is ahead of this code") if ahead else ("applied", "")
            when = _second(item.applied_at)
            yield f"  {word}  {item.name}  {when}  {item.duration_ms:.1f} ms  {item.applied_by}{why}"
        if self.failed is not None:
            when = _second(datetime.fromisoformat(self.failed.failed_at))
            yield f"  failed   {self.failed.name}  {when}  {self.failed.applied_by}  {self.failed.error}"
        yield from (f"  pending  {item.name}  {item.reason}" for item in self.pending)
        yield from (f"  missing  {name}  the table of a model does not exist" for name in self.missing)


@dataclass(frozen=True)
class FlagStatus:
    """What ``status`` says of the flag."""

    path: str
    present: bool
    valid: bool
    reason: str


@dataclass(frozen=True)
class NextBoot:
    """What the next boot will do."""

    will_migrate: bool
    reason: str


@dataclass(frozen=True)
class Status(Report):
    """What ``status`` says.

    :ivar state: the one state for all databases; ``"failed"`` if they cannot be asked, because the migrations or the
        settings cannot be used.
    :ivar notes: what else a person should know.
    """

    state: str
    error: str | None
    databases: list[DatabaseStatus]
    lock: Lock | None
    progress: Progress | None
    flag: FlagStatus | None
    boot: NextBoot
    notes: list[str] = field(metadata=_TEXT_ONLY)

    @property
    def fails(self) -> bool:  # type: ignore[override]
        """Whether a database cannot be asked what it holds."""
        return self.state in _SILENT

    @classmethod
    def of(cls, app: Flask, smart: DbSmart) -> Status:
        """Ask the flag and all databases. Needs an application context.

        :raises DbSmartError: the migrations or the settings are at fault.
        """
        planner = smart.planner(app)
        notes = planner.settings.check()
        verdict = planner.by_flag()
        found, plans = [], []
        for database in planner.involved:
            try:
                plan = planner.ask(database)
                found.append(_database(app, smart, planner, plan, notes))
                plans.append(plan)
            except DatabaseUnreachable as error:
                notes.append(error.message)
                state = "unreadable" if isinstance(error, HistoryUnreadable) else "unreachable"
                found.append(DatabaseStatus(database.name, database.url, database.dialect, state))
        state = overall_state(item.state for item in found)
        boot = _next_boot(app, planner, verdict, plans, state)
        lost = [name for item in found for name in item.missing]
        if lost and not boot.will_migrate:
            boot = NextBoot(False, f"{boot.reason}; but tables of the models are missing: {', '.join(lost)}")
        lock, progress = _first(item.lock for item in found), _first(item.progress for item in found)
        flag = FlagStatus(str(planner.path), verdict.present, verdict.holds, verdict.reason)
        return cls(state, None, found, lock, progress, flag, boot, notes)

    @classmethod
    def failed(cls, error: DbSmartError, app: Flask, smart: DbSmart) -> Status:
        """The report where the migrations or the settings cannot be used."""
        return cls("failed", error.message, [], None, None, None, _next_boot_despite(error, app, smart), [])

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for database in self.databases:
            yield from database.lines()
        if self.flag is not None:
            word = "valid" if self.flag.valid else "not valid" if self.flag.present else "none"
            yield f"Flag: {word}  {self.flag.path}  {self.flag.reason}"
        yield f"Next boot: will {'' if self.boot.will_migrate else 'not '}migrate, {self.boot.reason}"


def _database(app: Flask, smart: DbSmart, planner: Planner, plan: Plan, notes: list[str]) -> DatabaseStatus:
    """What ``status`` says of a database that can be asked.

    :param notes: takes what else a person should know.
    :raises DatabaseUnreachable: it cannot be asked after all.
    """
    database = plan.database
    # A first run that is not over makes the tables of the models, or goes on making them.
    first = not plan.first_run_done
    missing, said = ([], "") if first else smart.missing_tables(app, planner, plan)
    lock = Lock.of(app, database)
    progress, failed = None, None
    if database.exists:
        with database.connect() as connection:
            progress = read_progress(connection, plan.elsewhere, running=lock is not None)
            failed = read_failure(connection, plan.elsewhere)
    if failed is not None and failed["name"] not in {item.name for item in planner.of(database)}:
        failed = None  # it is gone from the code
    notes += [f"{name} was edited after it was applied; it runs only once." for name in plan.edited_once]
    if missing and Settings(app).create_all:
        notes.append(f"Attention: {said}")
    return DatabaseStatus(
        database.name,
        database.url,
        database.dialect,
        "pending" if missing else plan.status,
        plan.applied,
        [Waiting(item.migration.name, item.reason) for item in plan.pending],
        plan.ahead,
        missing,
        None if failed is None else Failure(**failed),
        lock,
        progress,
    )


#: States of databases that cannot be asked what they hold.
_SILENT = {
    "unreachable": "a database cannot be reached",
    "unreadable": "the history of a database cannot be read by its user",
}


def _next_boot(app: Flask, planner: Planner, verdict: FlagVerdict, plans: list[Plan], state: str) -> NextBoot:
    """What the next boot will do, and the first request where boot trusts the flag.

    :param plans: those of the databases that could be asked.
    :param state: the one state for all databases.
    """
    reached = state not in _SILENT
    mode, force = planner.settings.boot, planner.settings.force
    step = decide(mode, force, verdict, plans if reached else None)
    behind = "; ".join(plan.clause for plan in plans if plan.behind)
    if step.action in ("ask", "migrate") and not reached:
        # Who may read the state of the history, but not the history, can do so for long.
        by_row = _by_row(planner) if step.action == "ask" and state == "unreadable" else None
        if by_row is None:
            return NextBoot(False, f"{_SILENT[state]}, boot will stop")
        step = decide(mode, force, verdict, by_row)
    if step.action == "stop":
        return NextBoot(False, f"DB_SMART_BOOT is check, boot will stop: {step.reason}")
    if step.action == "migrate":
        return _next_run(planner, step.reason, plans, force=force is not None)
    if step.action != "skip":
        return NextBoot(False, step.reason)
    if not reached:
        then = "requests are refused until it can" if state == "unreachable" else "the flag is trusted"
        return NextBoot(False, f"{step.reason}; but {_SILENT[state]}, {then}")
    if behind:
        may = mode == "migrate" and not any(plan.behind and plan.elsewhere for plan in plans)
        return NextBoot(False, f"{step.reason}; but the first request {'migrates' if may else 'refuses'}, as {behind}")
    return NextBoot(False, step.reason)


def _next_run(planner: Planner, reason: str, plans: list[Plan], *, force: bool) -> NextBoot:
    """What the run of the next boot will do, which may find nothing to do, or be refused."""
    todo = [plan for plan in plans if plan.behind]
    if force:
        todo = [plan for plan in plans if plan.behind or pending(planner.of(plan.database), plan.applied, force=True)]
    for plan in todo:
        if plan.elsewhere is not None:
            where = f"the history of the database {plan.database.name!r} is in the schema {plan.elsewhere!r}"
            return NextBoot(False, f"{reason}; but {where} and not in the current one, boot will stop")
    return NextBoot(True, reason) if todo else NextBoot(False, f"{reason}; nothing can be run again")


def _next_boot_despite(error: DbSmartError, app: Flask, smart: DbSmart) -> NextBoot:
    """What the next boot will do although the migrations or the settings cannot be used: it may not need them."""
    with suppress(DbSmartError):
        settings = Settings(app)
        mode = settings.boot
        step = decide(mode, None)
        if step.action == "off":
            return NextBoot(False, step.reason)
        force, planner = settings.force, smart.planner(app)
        verdict = planner.by_flag()
        step = decide(mode, force, verdict)
        if step.action == "ask":
            settings.check()
            step = decide(mode, force, verdict, _by_row(planner))
        if step.action in ("skip", "verify"):
            return NextBoot(False, f"{step.reason}; but {error.message}")
    return NextBoot(False, f"boot will stop: {error.message}")


def _by_row(planner: Planner) -> list[Plan] | None:
    """What boot asks first; ``None`` where that is not enough, or cannot be asked."""
    try:
        return planner.by_row()
    except DatabaseUnreachable:
        return None


# -- snapshots


@dataclass(frozen=True)
class SnapshotEntry:
    """One snapshot, see :class:`~.store.snapshot.Snapshot`."""

    name: str
    database: str
    taken_at: datetime
    before: str
    size: int


@dataclass(frozen=True)
class Snapshots(Report):
    """What ``snapshots`` says; its JSON is a list.

    :ivar snapshots: oldest first.
    :ivar elsewhere: a note about snapshots that belong to none of these databases.
    """

    snapshots: list[SnapshotEntry]
    elsewhere: str | None

    @classmethod
    def of(cls, app: Flask, databases: Iterable[Database], files: Iterable[Database]) -> Snapshots:
        """Read the folder of the snapshots.

        :param databases: those whose snapshots are listed.
        :param files: all SQLite databases of the application.
        """
        found = [
            SnapshotEntry(item.path.name, item.database, item.taken_at, item.before, item.size)
            for database in databases
            for item in listed(app, database)
        ]
        foreign = others(app, files)
        if not foreign:
            return cls(found, None)
        note = f"Of other databases, or of an earlier release: {len(foreign)} in {foreign[0].parent}."
        return cls(found, f"{note} To put one back, use 'restore --from NAME'.")

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield from (f"{item.name}  {item.size / 1e6:.1f} MB" for item in self.snapshots)
        if not self.snapshots:
            yield "There are no snapshots."

    def _data(self) -> object:
        return self.snapshots


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
