"""What the commands say, as data: both the text and the JSON of a report are made from one object.

``migrate`` makes a :class:`Run`, with ``--dry-run`` a :class:`DryRun` and with ``--sql`` a :class:`Script`; ``status``
makes a :class:`Status`, ``diff`` a :class:`Diff`, ``lint`` a :class:`Lint`, ``history`` a :class:`History`, ``stamp`` a
:class:`Stamp`, ``undo`` an :class:`Undo`, ``snapshots`` makes :class:`Snapshots`, and ``branch`` :class:`Branches`. A
field is a key of the JSON, unless it says otherwise.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .boot.decision import decide
from .boot.plan import describe, overall_state, pending
from .contract import Waits, waits_of
from .drift.differences import VERBS, by_owner
from .errors import DatabaseUnreachable, DbSmartError, HistoryUnreadable, LockTimeout, one_line
from .grid import Column, Screen, took
from .schema import model_names
from .schema.progress import Progress, duration, read_progress
from .settings import Settings
from .store.history import Applied, Ended, Holder, find_state, read_failure, read_runs, reading
from .store.lock import lock_of
from .store.snapshot import listed, others

if TYPE_CHECKING:
    from flask import Flask

    from .boot import branch as branching
    from .boot.flag import FlagVerdict
    from .boot.plan import Plan
    from .boot.planner import Planner
    from .drift.comparison import Drift
    from .extension import DbSmart
    from .lint.findings import Finding, Linted, Taken, Traced
    from .loading.decorator import Migration
    from .preview import Preview
    from .runner import Outcome
    from .store.database import Database
    from .undo.outcome import Undoing, Undone

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
        """The report as text, as others read it by a program: it says the same on every terminal."""

    def screen(self, screen: Screen) -> Iterator[str]:
        """The report on a terminal."""
        yield from self.lines()

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


@dataclass(frozen=True)
class RevisionText:
    """What a revision of Alembic says of itself.

    :ivar file: its path.
    :ivar labels: those that it gives to its branch.
    :ivar shown: the path as the text shows it.
    """

    message: str
    file: str
    labels: list[str]
    shown: str = field(metadata=_TEXT_ONLY)

    @classmethod
    def of(cls, planner: Planner, migration: Migration) -> RevisionText | None:
        """What the file of a migration says, if it is a revision."""
        alembic, revisions = planner.code.alembic, planner.revisions
        if not migration.revision or alembic is None or revisions is None:
            return None
        shown = os.path.relpath(migration.path, os.path.dirname(alembic.directory))
        return cls(migration.message, migration.path, list(revisions.by_name[migration.name].labels), shown)


def _message(revision: RevisionText | None) -> str:
    """What a revision says of itself, without its path."""
    if revision is None:
        return ""
    labels = f" ({', '.join(revision.labels)})" if revision.labels else ""
    return f"{one_line(revision.message)}{labels}"


def revision_text(revision: RevisionText | None) -> str:
    """What to add to the name of a revision; nothing to that of a migration."""
    return "" if revision is None else f"  {_message(revision)}  {revision.shown}"


# -- migrate


@dataclass(frozen=True)
class Ran:
    """A migration that was applied."""

    name: str
    duration_ms: float
    revision: RevisionText | None = field(default=None, metadata=_IF_ANY)


@dataclass(frozen=True)
class Lock:
    """Who migrates a database now."""

    holder: str
    since: datetime
    expires_at: datetime | None
    migration: str | None
    #: How far it is with one long statement.
    progress: Progress | None = field(default=None, metadata=_TEXT_ONLY)

    @classmethod
    def of(cls, app: Flask, database: Database) -> Lock | None:
        """Ask the database; ``None`` if nobody migrates it.

        :raises DatabaseUnreachable: it cannot be asked.
        """
        return cls.by(lock_of(database, Settings(app).lock).holder())

    @classmethod
    def by(cls, holder: Holder | None) -> Lock | None:
        """Who migrates, by who holds the lock."""
        if holder is None:
            return None
        progress = Progress.of_statement(holder.migration, holder.doing)
        return cls(holder.name, holder.since, holder.expires_at, holder.migration or None, progress)


@dataclass(frozen=True)
class Step:
    """A contract step that waits, and why."""

    name: str
    waits: str


@dataclass(frozen=True)
class Run(Report):
    """What ``migrate`` has done.

    :ivar result: ``"applied"``, ``"up-to-date"`` or ``"failed"``.
    :ivar lock: which process migrates now, if the command failed because of it.
    :ivar made: the lost tables of the models that were made again.
    :ivar waiting: the contract steps that wait.
    :ivar reasons: why it was necessary.
    :ivar ahead: which databases a newer release has migrated, and what they have beyond this code.
    """

    result: str
    applied: list[Ran]
    error: str | None = None
    lock: Lock | None = None
    made: list[str] = field(default_factory=list, metadata=_IF_ANY)
    waiting: list[Step] = field(default_factory=list, metadata=_IF_ANY)
    reasons: list[str] = field(default_factory=list, metadata=_TEXT_ONLY)
    ahead: dict[str, list[str]] = field(default_factory=dict, metadata=_TEXT_ONLY)

    unwritten = None

    @classmethod
    def done(cls, outcome: Outcome, applied: list[Ran], plans: Iterable[Plan]) -> Run:
        """The report of a run that has ended.

        :param plans: what was pending before it.
        """
        plans = list(plans)
        reasons = []
        for plan in plans:
            done = [item for item in plan.pending if item.migration.name not in outcome.waiting]
            if plan.behind and (done or not plan.pending):
                reason = describe(done, plan.state, plan.applied) if len(done) < len(plan.pending) else plan.reason
                reasons.append(replace(plan, reason=reason).clause)
        ahead = {plan.database.name: plan.ahead for plan in plans if plan.ahead}
        result = "applied" if outcome.changed else "up-to-date"
        waiting = [Step(name, waits.said) for name, waits in outcome.waiting.items()]
        return cls(result, applied, made=outcome.made, waiting=waiting, reasons=reasons, ahead=ahead)

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
        yield from (f"{step.name} {step.waits}" for step in self.waiting)
        if self.waiting and not self.applied:
            yield "Nothing else is to be applied."
            return
        if self.result == "up-to-date":
            yield "Migration already completed: the database holds every migration of this code."
            for name, beyond in self.ahead.items():
                yield f"The database {name!r} is ahead of this code: {', '.join(beyond)}."
            yield "To run the repeatable migrations again, use --force."
            return
        count = len(self.applied)
        yield f"Applied {count} migration{'' if count == 1 else 's'}, because {'; '.join(self.reasons)}."


def _why(reason: str, background: bool) -> str:
    """Why a migration is pending, as people read it; the command ``migrate`` waits for each."""
    return f"{reason}, in the background at boot" if background else reason


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
    revision: RevisionText | None = field(metadata=_IF_ANY)
    background: bool = field(metadata=_IF_ANY)

    @property
    def why(self) -> str:
        """The reason, as people read it."""
        return _why(self.reason, self.background)


@dataclass(frozen=True)
class DryRun(Report):
    """What ``migrate`` would do.

    :ivar result: ``"pending"`` or ``"up-to-date"``.
    :ivar shown: what the text shows, each with the name of its database.
    :ivar revisions: name -> what that revision says of itself.
    """

    result: str
    applied: list[Ran]
    error: None
    tables: list[TablesForetold]
    pending: list[Foretold]
    lock: None
    shown: list[tuple[str, Preview]] = field(metadata=_TEXT_ONLY)
    revisions: dict[str, RevisionText | None] = field(metadata=_TEXT_ONLY)

    @classmethod
    def of(cls, planner: Planner, previews: Mapping[str, list[Preview]]) -> DryRun:
        """The report, by the previews of each database."""
        shown = [(database, item) for database, items in previews.items() for item in items]
        migrations = [item.migration for _, item in shown if item.migration is not None]
        revisions = {one.name: RevisionText.of(planner, one) for one in migrations if one.revision}
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
                revisions.get(item.name),
                item.left,
            )
            for database, item in shown
            if item.migration is not None
        ]
        return cls("pending" if shown else "up-to-date", [], None, tables, pending, None, shown, revisions)

    @property
    def fails(self) -> bool:  # type: ignore[override]
        """Whether the run would fail."""
        return any(item.error is not None for item in self.pending)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for database, item in self.shown:
            revision = self.revisions.get(item.name)
            yield f"  {item.name}{revision_text(revision)}  {_why(item.reason, item.left)}  ({database})"
            if item.steps_done:
                yield f"    goes on    after {item.steps_done} steps of an interrupted run"
            yield from (f"    would do   {operation}" for operation in item.does)
            yield from (f"    satisfied  {operation}" for operation in item.satisfied)
            if item.migration is not None and item.migration.options.contract:
                yield "    waits      until no release that runs has what it takes away"
            if item.unknown is not None and revision is None:
                yield f"    unknown    it uses {item.unknown}"
            if item.error is not None:
                yield f"    would fail {item.error}"
            if item.refused is not None and item.refused.instead:
                yield "    instead"
                yield from (f"        {line}".rstrip() for line in item.refused.instead.splitlines())
        if self.revisions:
            yield "What revisions of Alembic would do cannot be foreseen; --sql prints what can be written of them."
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
    def of(cls, planner: Planner, plans: Iterable[Plan], previews: Mapping[str, list[Preview]]) -> Script:
        """The report, by the previews of each database."""
        from .script import certainly_fails, script

        settings, versions = planner.settings, planner.versions
        shown = [(plan, found) for plan in plans if (found := previews[plan.database.name])]
        text = [line for plan, found in shown for line in script(plan, found, settings, versions)]
        whole = [next((item for item in found if item.unknown or item.error), None) for _, found in shown]
        return cls(text, any(item is not None and certainly_fails(item) for item in whole))

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield from self.text or ["-- Nothing to apply."]


# -- status


@dataclass(frozen=True)
class Waiting:
    """A migration that is pending, and why.

    :ivar background: whether boot leaves it to a thread that runs it while the process serves.
    :ivar waits: what a contract step waits for.
    """

    name: str
    reason: str
    revision: RevisionText | None = field(default=None, metadata=_IF_ANY)
    background: bool = field(default=False, metadata=_IF_ANY)
    waits: str | None = field(default=None, metadata=_IF_ANY)

    @property
    def why(self) -> str:
        """The reason, as people read it."""
        return _why(self.reason, self.background and self.waits is None)


@dataclass(frozen=True)
class Held(Applied):
    """A migration that is applied."""

    revision: RevisionText | None = field(default=None, metadata=_IF_ANY)


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
    :ivar lacking: the tables and columns of the models that are not there although at most contract steps are pending.
    :ivar failed: the last run that failed, of a migration that was not applied since.
    :ivar half_undone: numbers of the runs of which an undo was interrupted.
    """

    name: str
    url: str
    dialect: str
    state: str
    applied: list[Held] = field(default_factory=list)
    pending: list[Waiting] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    failed: Failure | None = None
    lock: Lock | None = None
    progress: Progress | None = None
    half_undone: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        planner: Planner,
        plan: Plan,
        lock: Lock | None,
        progress: Progress | None,
        failed: Mapping[str, Any] | None,
        missing: Sequence[str] = (),
        lacking: Sequence[str] = (),
        waits: Mapping[str, Waits] | None = None,
    ) -> DatabaseStatus:
        """What is said of a database that could be asked.

        :param failed: see :func:`~.store.history.read_failure`.
        """
        database, taken_back = plan.database, planner.taken_back(plan)
        code = planner.of(database)
        revisions = {item.name: RevisionText.of(planner, item) for item in code if item.revision}
        if failed is not None and failed["name"] not in {item.name for item in code}:
            failed = None  # it is gone from the code
        return cls(
            database.name,
            database.url,
            database.dialect,
            "pending" if missing else plan.status,
            [Held(**vars(item), revision=revisions.get(item.name)) for item in plan.applied if item not in taken_back],
            [
                Waiting(
                    name,
                    item.reason,
                    revisions.get(name),
                    item.left,
                    waits[name].said if waits and name in waits else None,
                )
                for item in plan.pending
                for name in [item.migration.name]
            ],
            plan.ahead,
            list(missing),
            list(lacking),
            None if failed is None else Failure(**failed),
            lock,
            progress,
            plan.half_undone,
        )

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"Database {self.name}: {self.state}  {self.url}"
        if self.lock is not None:
            on = f", on {self.lock.migration}" if self.lock.migration else ""
            yield f"  migrating now: {self.lock.holder} since {to_second(self.lock.since)}{on}"
        if self.progress is not None:
            yield f"  {'statement' if self.progress.phase else 'backfill'}  {self.progress}"
        last = {item.name: item.checksum for item in self.applied}
        for item in self.applied:
            ahead = item.name in self.unknown and item.checksum == last[item.name]
            word, why = ("unknown", "  the database is ahead of this code") if ahead else ("applied", "")
            when = to_second(item.applied_at)
            about = revision_text(item.revision)
            yield f"  {word}  {item.name}{about}  {when}  {item.duration_ms:.1f} ms  {item.applied_by}{why}"
        # A head of Alembic's version table has no row of the history where Alembic alone has run it.
        yield from (
            f"  unknown  {name}  the database is ahead of this code" for name in self.unknown if name not in last
        )
        if self.failed is not None:
            when = to_second(datetime.fromisoformat(self.failed.failed_at))
            yield f"  failed   {self.failed.name}  {when}  {self.failed.applied_by}  {self.failed.error}"
        for one in self.pending:
            waits = "" if one.waits is None else f"  {one.waits}"
            yield f"  pending  {one.name}{revision_text(one.revision)}  {one.why}{waits}"
        yield from (f"  missing  {name}  the table of a model does not exist" for name in self.missing)
        if self.lacking:
            yield f"  models   {self._models}"

    def screen(self, screen: Screen) -> Iterator[str]:
        """The report on a terminal."""
        yield from screen.ending(f"Database {self.name}: {self.state}", self.url)
        yield from self.running(screen)
        last = {item.name: item.checksum for item in self.applied}
        rows = []
        for item in self.applied:
            state = "unknown" if item.name in self.unknown and item.checksum == last[item.name] else "applied"
            about = _about(screen, item.revision)
            rows.append(_Row(state, item.name, item.applied_at, item.duration_ms, item.applied_by, below=about))
        rows += [_Row("unknown", name) for name in self.unknown if name not in last]
        failed = self.failed
        if failed is not None:
            whole = f"    {failed.error}"
            below = [screen.cut(whole)]
            if below != [whole]:
                below.append("    The whole message: flask db-smart history")
            when = datetime.fromisoformat(failed.failed_at)
            rows.append(_Row("failed", failed.name, when, failed.duration_ms, failed.applied_by, below=below))
        for one in self.pending:
            waits = [] if one.waits is None else [*screen.wrapped(f"    {one.waits}")]
            rows.append(_Row("pending", one.name, one.why, below=[*_about(screen, one.revision), *waits]))
        rows += [_Row("missing", name, "no table") for name in self.missing]
        yield from _table(screen, "state", rows)
        if self.unknown:
            yield from screen.wrapped("  The database is ahead of this code by what is unknown to it.")
        if self.missing:
            yield from screen.wrapped("  The models have tables that are missing in the database.")
        if self.lacking:
            yield from screen.wrapped(f"  Models: {self._models}")

    def running(self, screen: Screen) -> Iterator[str]:
        """What happens there now, on a terminal."""
        if self.lock is not None:
            on = f"on {self.lock.migration}" if self.lock.migration else ""
            said = f"  migrating now: {self.lock.holder} since {to_second(self.lock.since)}"
            yield from screen.ending(said, on, "    ")
        if self.progress is not None:
            one = self.progress
            said = ", ".join(filter(None, (one.rows, one.left)))
            kind = "statement" if one.phase else "backfill"
            yield from screen.ending(f"  {kind}: {said}", f"in {one.migration}", "    ")

    @property
    def counts(self) -> str:
        """How many migrations are applied and pending."""
        return f"{len({item.name for item in self.applied})} applied, {len(self.pending)} pending"

    @property
    def _models(self) -> str:
        return f"{model_names.said(self.lacking, ahead=bool(self.unknown))}; 'flask db-smart diff' shows more"


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
    :ivar branch: the Git branch whose databases these are; ``None`` where databases do not follow the branch.
    """

    state: str
    error: str | None
    databases: list[DatabaseStatus]
    lock: Lock | None
    progress: Progress | None
    flag: FlagStatus | None
    boot: NextBoot
    notes: list[str] = field(metadata=_TEXT_ONLY)
    branch: str | None = None

    @property
    def fails(self) -> bool:  # type: ignore[override]
        """Whether a database cannot be asked what it holds."""
        return self.state in _SILENT

    @classmethod
    def of(cls, app: Flask, smart: DbSmart, begin: Begin = lambda _, ask: ask) -> Status:
        """Ask the flag and all databases. Needs an application context.

        :param begin: begins to ask a database, and gives what waits for the answer; all are begun before the first is
            waited for.
        :raises DbSmartError: the migrations or the settings are at fault.
        """
        planner = smart.planner(app)
        notes = planner.settings.check()
        verdict = planner.by_flag()
        found, plans = [], []
        asked = [(one, begin(one, partial(_ask, app, smart, planner, one))) for one in planner.involved]
        for database, answer in asked:
            try:
                plan, status, said = answer()
                found.append(status)
                plans.append(plan)
                notes += said
            except DatabaseUnreachable as error:
                notes.append(error.message)
                state = "unreadable" if isinstance(error, HistoryUnreadable) else "unreachable"
                found.append(DatabaseStatus(database.name, database.url, database.dialect, state))
        state = overall_state(item.state for item in found)
        boot = _next_boot(app, planner, verdict, plans, state)
        refused = _first(smart.made_otherwise(app, planner, plan) for plan in plans)
        if refused is not None and boot.will_migrate:
            boot = NextBoot(False, f"{_stops(planner.settings)}: {refused}")
        lost = [name for item in found for name in item.missing]
        if lost and not boot.will_migrate:
            boot = NextBoot(False, f"{boot.reason}; but tables of the models are missing: {', '.join(lost)}")
        lock, progress = _first(item.lock for item in found), _first(item.progress for item in found)
        flag = FlagStatus(planner.path, verdict.present, verdict.holds, verdict.reason)
        branch = smart.branches(app).entered if smart.enter_branch(app) else None
        return cls(state, None, found, lock, progress, flag, boot, notes, branch)

    @classmethod
    def failed(cls, error: DbSmartError, app: Flask, smart: DbSmart) -> Status:
        """The report where the migrations or the settings cannot be used."""
        return cls("failed", error.message, [], None, None, None, _next_boot_despite(error, app, smart), [])

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.branch is not None:
            yield f"Branch: {one_line(self.branch)}"
        for database in self.databases:
            yield from database.lines()
        if self.flag is not None:
            word = "valid" if self.flag.valid else "not valid" if self.flag.present else "none"
            yield f"Flag: {word}  {self.flag.path}  {self.flag.reason}"
        yield self._next_boot

    def screen(self, screen: Screen) -> Iterator[str]:
        """The report on a terminal."""
        if self.branch is not None:
            yield from screen.wrapped(f"Branch: {one_line(self.branch)}")
        for database in self.databases:
            yield from database.screen(screen)
        if self.flag is not None:
            word = "valid" if self.flag.valid else "not valid" if self.flag.present else "none"
            yield from screen.ending(f"Flag: {word}, {self.flag.reason}", self.flag.path)
        yield from screen.wrapped(self._next_boot)

    @property
    def _next_boot(self) -> str:
        return f"Next boot: will {'' if self.boot.will_migrate else 'not '}migrate, {self.boot.reason}"


#: What a database holds, what ``status`` says of it, and what else a person should know.
Answer = tuple["Plan", DatabaseStatus, list[str]]
Begin = Callable[["Database", Callable[[], Answer]], Callable[[], Answer]]


def _ask(app: Flask, smart: DbSmart, planner: Planner, database: Database) -> Answer:
    """Ask a database all that ``status`` says of it.

    :raises DatabaseUnreachable: it cannot be asked.
    """
    plan = planner.ask(database)
    # A first run that is not over makes the tables of the models, or goes on making them.
    first = not plan.first_run_done
    missing, said = ([], "") if first else smart.missing_tables(app, planner, plan)
    lock = Lock.of(app, database)
    progress, failed = None, None
    waits: dict[str, Waits] = {}
    if database.exists:
        with database.connect() as connection:
            waits = waits_of(planner, connection, plan, smart.metadata(app).get(database.key))
            progress = read_progress(connection, plan.elsewhere, running=lock is not None)
            if lock is not None and lock.progress is not None:
                progress = lock.progress
            failed = read_failure(connection, plan.elsewhere)
    notes = [f"{name} was edited after it was applied; it runs only once." for name in plan.edited_once]
    notes += [f"Attention: {note}." for note in plan.undo_notes]
    if missing and Settings(app).create_all:
        notes.append(f"Attention: {said}")
    # A contract step may wait for days; what it is to bring is lacking until then.
    only_waits = bool(plan.pending) and all(item.migration.options.contract for item in plan.pending)
    lacking = [] if missing or (plan.behind and not only_waits) else smart.lacking(app, planner, database)
    return plan, DatabaseStatus.of(planner, plan, lock, progress, failed, missing, lacking, waits), notes


#: States of databases that cannot be asked what they hold.
_SILENT = {
    "unreachable": "a database cannot be reached",
    "unreadable": "the history of a database cannot be read by its user",
}


def _stops(settings: Settings) -> str:
    """What becomes of a boot that cannot bring the databases up to date."""
    return "requests are refused and boot tries again" if settings.boot == "background" else "boot will stop"


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
            return NextBoot(False, f"{_SILENT[state]}, {_stops(planner.settings)}")
        step = decide(mode, force, verdict, by_row)
    if step.action == "stop":
        stops = "requests are refused" if app.debug and planner.settings.web else _stops(planner.settings)
        return NextBoot(False, f"DB_SMART_BOOT is check, {stops}: {step.reason}")
    if step.action == "migrate":
        return _next_run(planner, step.reason, plans, force=force is not None)
    if step.action != "skip":
        return NextBoot(False, step.reason)
    if not reached:
        then = "requests are refused until it can" if state == "unreachable" else "the flag is trusted"
        return NextBoot(False, f"{step.reason}; but {_SILENT[state]}, {then}")
    if behind:
        may = planner.settings.migrates and not any(plan.behind and plan.elsewhere for plan in plans)
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
            return NextBoot(False, f"{reason}; but {where} and not in the current one, {_stops(planner.settings)}")
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
        return NextBoot(False, f"{_stops(settings)}: {error.message}")
    return NextBoot(False, f"boot will stop: {error.message}")


def _by_row(planner: Planner) -> list[Plan] | None:
    """What boot asks first; ``None`` where that is not enough, or cannot be asked."""
    try:
        return planner.by_row()
    except DatabaseUnreachable:
        return None


# -- history


@dataclass(frozen=True)
class DatabaseHistory:
    """What ``history`` says of one database.

    :ivar schema: where its history lies, if that is not the current schema of PostgreSQL.
    :ivar runs: the oldest first; ``None`` where there is no history.
    """

    name: str
    url: str
    dialect: str
    runs: list[Ended] | None
    schema: str | None = field(default=None, metadata=_IF_ANY)

    @classmethod
    def of(cls, database: Database, limit: int | None, skip: int = 0) -> DatabaseHistory:
        """Ask the database; the migrations of the code do not matter.

        :param limit: only so many of the newest runs.
        :param skip: without so many that are newer still.
        :raises DatabaseUnreachable: it cannot be asked.
        """
        runs, place = None, None
        if database.exists:
            with database.connect() as connection, reading(database):
                state = find_state(connection)
                place = None if state is None else state.place
                runs = read_runs(connection, place, limit, skip)
        return cls(database.name, database.url, database.dialect, runs, place)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        where = "" if self.schema is None else f"  in the schema {self.schema}"
        yield f"Database {self.name}: {self._count}  {self.url}{where}"
        for run in self.runs or ():
            more = "".join(f"  {part}" for part in (run.release, run.error) if part)
            when = to_second(run.applied_at)
            by = f"{run.applied_by}  run {run.number}"
            yield f"  {run.outcome}  {run.name}  {when}  {run.duration_ms:.1f} ms  {by}{more}"

    def screen(self, screen: Screen) -> Iterator[str]:
        """The report on a terminal."""
        where = "" if self.schema is None else f" in the schema {self.schema}"
        yield from screen.ending(f"Database {self.name}: {self._count}{where}", self.url)
        rows = []
        for run in self.runs or ():
            below = [f"    {run.error}"] if run.error else []
            by, release = run.applied_by, run.release or ""
            rows.append(
                _Row(run.outcome, run.name, run.applied_at, run.duration_ms, by, release, below, str(run.number))
            )
        yield from _table(screen, "outcome", rows)

    @property
    def _count(self) -> str:
        return "no history" if self.runs is None else f"{len(self.runs)} run{'' if len(self.runs) == 1 else 's'}"


@dataclass(frozen=True)
class History(Report):
    """What ``history`` says."""

    error: str | None
    databases: list[DatabaseHistory]

    @classmethod
    def of(cls, databases: Iterable[Database], limit: int | None) -> History:
        """Ask all databases.

        :param limit: only so many of the newest runs of each.
        :raises DatabaseUnreachable: one cannot be asked.
        """
        return cls(None, [DatabaseHistory.of(database, limit) for database in databases])

    @classmethod
    def failed(cls, error: DbSmartError) -> History:
        """The report where a database cannot be asked, or a setting cannot be used."""
        return cls(error.message, [])

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for database in self.databases:
            yield from database.lines()

    def screen(self, screen: Screen) -> Iterator[str]:
        """The report on a terminal."""
        for database in self.databases:
            yield from database.screen(screen)


# -- stamp


@dataclass(frozen=True)
class Recorded:
    """What would be recorded as applied.

    :ivar named: whether the person named it, or it comes before a revision that is named.
    """

    name: str
    named: bool
    revision: RevisionText | None


@dataclass(frozen=True)
class DatabaseStamp:
    """What ``stamp`` would record on one database.

    :ivar there: what was named, and counts as applied already.
    """

    name: str
    url: str
    records: list[Recorded]
    there: list[str]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"Database {self.name}: {len(self.records) or 'nothing'} to record as applied  {self.url}"
        for item in self.records:
            why = "" if item.named else "  comes before what is named"
            yield f"  {item.name}{revision_text(item.revision)}{why}"
        yield from (f"  {name}  is applied already" for name in self.there)


@dataclass(frozen=True)
class Stamp(Report):
    """What ``stamp`` would record; it has no JSON."""

    databases: list[DatabaseStamp]

    @classmethod
    def of(cls, planner: Planner, plans: Iterable[Plan], wanted: Collection[str]) -> Stamp:
        """The report, by what the databases hold.

        :param wanted: the names; empty for everything that is pending.
        :raises DbSmartError: see :func:`~.stamping.lacking`.
        """
        from .stamping import lacking

        found = []
        for plan in plans:
            todo = lacking(planner, plan, wanted)
            if todo:
                plan.refuse_elsewhere()
            names = {migration.name for migration in todo}
            there = [item.name for item in planner.of(plan.database) if item.name in wanted and item.name not in names]
            records = [
                Recorded(item.name, not wanted or item.name in wanted, RevisionText.of(planner, item)) for item in todo
            ]
            found.append(DatabaseStamp(plan.database.name, plan.database.url, records, there))
        return cls(found)

    @property
    def count(self) -> int:
        """How many rows would be written."""
        return sum(len(database.records) for database in self.databases)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for database in self.databases:
            yield from database.lines()


# -- undo


@dataclass(frozen=True)
class Undo(Report):
    """What ``undo`` says.

    :ivar runs: what taking each back comes to, in this order.
    :ivar refused: why it is not done.
    :ivar undone: what was taken back; ``None`` where that was not tried.
    :ivar again: those of them that this code still has, so that the next boot applies them again.
    """

    error: str | None
    database: str
    url: str
    runs: list[Undoing]
    refused: list[str]
    undone: list[Undone] | None = None
    again: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:  # type: ignore[override]
        """Whether it is refused, or failed."""
        return bool(self.refused) or self.error is not None

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.undone is None:
            yield f"Database {self.database}: {len(self.runs)} to undo  {self.url}"
            for run in self.runs:
                yield f"  run {run.number}  {run.name}"
                yield from (f"    {text}" for text in run.does)
                yield from (f"    is gone already: {text}" for text in run.gone)
                yield from (f"    would lose {loss}" for loss in run.losses)
                yield from (f"    perhaps made by it: {text}" for text in run.perhaps)
                yield from (f"    cannot be counted: {one_line(text)}" for text in run.unforeseen)
                yield from (f"    stays, and would be done again with it: {one_line(text)}" for text in run.stays)
            yield from (f"  refused: {one_line(text)}" for text in self.refused)
            return
        for done in self.undone:
            yield f"Database {self.database}: took back run {done.number}  {done.name}"
            yield from (f"  kept {rows} in the table {name}" for name, rows in done.archived)
            yield from (f"  lost {text}" for text in done.lost)
        if self.again:
            yield (
                f"The code here still has {', '.join(map(repr, self.again))}: the next boot applies "
                f"{'it' if len(self.again) == 1 else 'them'} again. Remove {'it' if len(self.again) == 1 else 'them'}, "
                "or go back to an earlier release, first."
            )


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

    def screen(self, screen: Screen) -> Iterator[str]:
        """The report on a terminal."""
        found = self.snapshots
        if not found:
            yield from self.lines()
            return
        several = len({item.database for item in found}) > 1
        columns = [
            Column("taken (UTC)", [f"{item.taken_at:%Y-%m-%d %H:%M:%S}" for item in found]),
            Column("size", [f"{item.size / 1e6:,.1f} MB" for item in found], right=True),
            Column("database", [item.database if several else "" for item in found], spare=1),
        ]
        yield from screen.table(columns, Column("name", [item.name for item in found]))

    def _data(self) -> object:
        return self.snapshots


# -- branch


@dataclass(frozen=True)
class BranchEntry:
    """A database that a branch has of its own, see :class:`~.store.branches.Kept`.

    :ivar gone: whether the branch is not there any more.
    """

    name: str
    branch: str | None
    size: int | None
    changed: datetime | None
    gone: bool

    def line(self) -> str:
        """The entry as text."""
        size = "" if self.size is None else f"  {self.size / 1e6:.1f} MB"
        changed = "" if self.changed is None else f"  {to_second(self.changed)}"
        return f"  {self.name}{size}{changed}{'  its branch is gone' if self.gone else ''}"


@dataclass(frozen=True)
class BranchedDatabase:
    """The databases of one of the application's.

    :ivar current: path or name of that of the branch that is checked out.
    :ivar to_copy: what the next boot copies to it, where it is not there yet.
    :ivar base: that of the URL.
    """

    database: str
    current: str
    to_copy: str | None
    base: str
    kept: list[BranchEntry]


@dataclass(frozen=True)
class Branches(Report):
    """What ``branch`` says.

    :ivar on: whether databases follow the branch, in debug mode.
    :ivar branch: what is checked out; ``HEAD`` where it is no branch.
    :ivar main: the branch that has the databases of the URLs.
    """

    on: bool
    branch: str
    main: str
    databases: list[BranchedDatabase]

    @classmethod
    def of(cls, app: Flask, found: branching.Branches) -> Branches:
        """Read the state of Git, and ask for the databases."""
        databases = []
        for name, store in found.stores.items():
            kept = [BranchEntry(*item, gone) for item, gone in found.kept(store)]
            current, base = store.at(found.current(store)), store.at(None)
            databases.append(BranchedDatabase(name, current, found.to_copy(store), base, kept))
        return cls(bool(Settings(app).branches), found.branch, found.main, databases)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"Branch: {one_line(self.branch)}"
        if not self.on:
            yield "DB_SMART_BRANCHES is off: every branch has the database of the URL."
        for one in self.databases:
            later = "" if one.to_copy is None else f"  not there yet: the next boot copies {one.to_copy}"
            yield f"Database {one.database}: {f'{one.current}{later}' if self.on else one.base}"
            yield f"  {one.base}  of the URL, for the branch {one_line(self.main)}"
            yield from (item.line() for item in one.kept)


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def to_second(moment: datetime) -> str:
    """A moment as people read it."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True)
class _Row:
    """A row of a table of runs.

    :ivar when: in UTC, or words.
    :ivar below: lines that follow it.
    """

    state: str
    name: str
    when: datetime | str = ""
    duration_ms: float | None = None
    by: str = ""
    release: str = ""
    below: list[str] = field(default_factory=list)
    number: str = ""


def _table(screen: Screen, title: str, rows: list[_Row]) -> Iterator[str]:
    """Runs as a table; those that failed lack nothing on a narrow terminal.

    :param title: what is in the first column.
    """
    if not rows:
        return
    moments = [row.when if isinstance(row.when, str) else f"{row.when:%Y-%m-%d %H:%M:%S}" for row in rows]
    times = ["" if row.duration_ms is None else took(row.duration_ms) for row in rows]
    columns = [
        Column(title, [row.state for row in rows]),
        Column("when (UTC)", moments),
        Column("took", times, right=True, spare=2, said="after {}"),
        Column("by", [row.by for row in rows], spare=3, said="by {}"),
        Column("release", [row.release for row in rows], spare=1, said="release {}"),
    ]
    if any(row.number for row in rows):
        columns.append(Column("run", [row.number for row in rows], right=True, spare=4, said="run {}"))
    below = {number: row.below for number, row in enumerate(rows)}
    failed = [number for number, row in enumerate(rows) if row.state == "failed"]
    yield from screen.table(columns, Column("name", [row.name for row in rows]), below, failed)


def _about(screen: Screen, revision: RevisionText | None) -> list[str]:
    """What to print below the name of a revision."""
    if revision is None:
        return []
    return list(screen.ending(screen.cut(f"    {_message(revision)}"), revision.shown, "    "))


# -- diff


@dataclass(frozen=True)
class Diff(Report):
    """What ``diff`` found.

    :ivar drifts: of each database.
    """

    drifts: list[Drift] = field(metadata=_TEXT_ONLY)
    error: str | None = None

    @property
    def found(self) -> bool:
        """Whether models and a database differ."""
        return any(self.drifts)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for drift in self.drifts:
            yield from self._lines(drift)

    def _lines(self, drift: Drift) -> Iterator[str]:
        if drift.counted:
            names = ", ".join(drift.counted)
            yield f"Database {drift.database}: counted as applied, because the next boot does so: {names}."
        yield from drift.not_counted
        if drift.weaker is not None:
            yield f"Database {drift.database}: {drift.weaker}"
        if drift.ahead:
            yield (
                f"Database {drift.database}: it is ahead of this code: {', '.join(drift.ahead)}. What differs may be "
                "what a newer release has done: compare with its models."
            )
        if not drift:
            yield f"Database {drift.database}: the models and the database are alike."
            return
        count = f"{len(drift.differences)} difference{'s' if len(drift.differences) > 1 else ''}"
        yield f"Database {drift.database}: {count} between the models and the database."
        for side, verb in VERBS.items():
            found = [one for one in drift.differences if one.side == side]
            if found:
                yield f"  A migration would {verb}:"
            for owner, differences in by_owner(found):
                yield f"    {owner}"
                yield from (f"      {one}" for one in differences)

    def _data(self) -> object:
        return {
            "result": "error" if self.error is not None else "different" if self.found else "alike",
            "error": self.error,
            "databases": [
                {
                    "database": drift.database,
                    "differences": [
                        {
                            "action": VERBS[one.side],
                            "kind": one.kind,
                            "schema": one.schema,
                            "table": one.table,
                            "name": one.name,
                            "models": one.models and dict(one.models),
                            "database": one.database and dict(one.database),
                        }
                        for one in drift.differences
                    ],
                    "counted": drift.counted,
                    "uncounted": drift.uncounted,
                    "weaker": drift.weaker,
                    "ahead": drift.ahead,
                }
                for drift in self.drifts
            ],
        }

    @classmethod
    def failed(cls, error: DbSmartError) -> Diff:
        """The report of a comparison that failed."""
        return cls([], error.message)


@dataclass(frozen=True)
class Lint(Report):
    """What ``lint`` found.

    :ivar linted: of each database.
    :ivar error: why nothing could be looked at; ``None`` where it could.
    """

    linted: list[Linted] = field(metadata=_TEXT_ONLY)
    error: str | None = None

    @property
    def fails(self) -> bool:  # type: ignore[override]
        """Whether there is an error that nobody allows, or a migration would fail."""
        return any(one.errors for one in self.linted)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for linted in self.linted:
            yield from self._lines(linted)

    def _lines(self, linted: Linted) -> Iterator[str]:
        if linted.unreachable is not None:
            yield f"Database {linted.database}: only what the source tells, for it was not asked: {linted.unreachable}"
        by_migration: dict[str | None, list[Finding]] = {name: [] for name in linted.migrations}
        for finding in linted.findings:
            by_migration.setdefault(finding.migration, []).append(finding)
        for name, findings in by_migration.items():
            taken = [one for one in linted.taken if one.migration == name]
            if not findings and not taken:
                continue
            yield f"  {name or 'tables'}  ({linted.database})"
            for one in taken:
                yield f"    {one.statement}"
                yield f"        {_taken_text(one)}"
            for finding in findings:
                yield from (f"    {line}" for line in _finding_lines(finding))
        if linted.traced is not None:
            yield f"  on a scratch copy of the database {linted.database}:"
            for traced in linted.traced:
                yield f"    {traced.statement}"
                yield f"        {_traced_text(traced)}"
        yield from (f"  error: {text}" for text in linted.failing)
        yield from (f"  note: {note}" for note in linted.notes)
        count = len(linted.migrations)
        allowed = sum(one.allowed is not None for one in linted.findings)
        several = len(linted.findings)
        said = f"{linted.errors} error{'' if linted.errors == 1 else 's'}, "
        said += f"{several} finding{'' if several == 1 else 's'} in all"
        said += f", of which {allowed} allowed" if allowed else ""
        yield f"Database {linted.database}: {count} migration{'' if count == 1 else 's'} looked at: {said}."

    def _data(self) -> object:
        found = "errors" if self.fails else "findings" if any(one.findings for one in self.linted) else "clean"
        return {
            "result": "error" if self.error is not None else found,
            "error": self.error,
            "databases": [
                {
                    "database": one.database,
                    "unreachable": one.unreachable,
                    "migrations": one.migrations,
                    "statements": one.taken,
                    "findings": [
                        {
                            **{item.name: getattr(found, item.name) for item in fields(found)},
                            "rule": found.rule.id,
                            "document": found.rule.document,
                        }
                        for found in one.findings
                    ],
                    "failing": one.failing,
                    "notes": one.notes,
                    "traced": one.traced,
                }
                for one in self.linted
            ],
        }

    @classmethod
    def failed(cls, error: DbSmartError) -> Lint:
        """The report where nothing could be looked at."""
        return cls([], error.message)


def _taken_text(taken: Taken) -> str:
    from .schema.guard import counted_text

    if not taken.table:
        return taken.lock
    rows = "a new table" if taken.rows is None else "empty" if not taken.rows else f"about {counted_text(taken.rows)}"
    said = f"{taken.lock} of {taken.table} ({rows}): blocks {taken.blocks}"
    return said if taken.seconds is None or taken.rows is None else f"{said}, for {duration(taken.seconds)}"


def _traced_text(traced: Traced) -> str:
    said = [f"{mode} of {table}" for table, mode in traced.locks.items()]
    said += [f"writes {table} again" for table in traced.rewritten]
    said += [f"the server accepts {traced.accepted}"] if traced.accepted is not None else []
    said += [f"fails: {traced.error}"] if traced.error is not None else [f"took {traced.seconds * 1000:.1f} ms"]
    return "; ".join(said)


def _finding_lines(finding: Finding) -> Iterator[str]:
    place = "" if finding.path is None else f"{finding.path}{'' if finding.line is None else f':{finding.line}'}: "
    level = finding.level if finding.allowed is None else f"allowed ({finding.allowed})"
    where = "" if finding.where is None else f" ({finding.where})"
    yield f"{place}{level}: {finding.rule.id} {finding.message}{where}"
    if finding.allowed is not None:
        return
    if finding.line is None and finding.statement is not None:
        yield f"    {finding.statement}"
    if finding.rule.fix not in finding.message:
        fix = finding.fix or f"{finding.rule.why} {finding.rule.fix}"
        yield f"    {fix} See {finding.rule.document}."
    yield from (f"        {line}".rstrip() for line in finding.instead.splitlines())
