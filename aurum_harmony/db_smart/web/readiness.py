"""Whether this process can serve, and if not, what the databases say of the run that is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from ..boot.app_state import RETRY_SECONDS, AppState
from ..boot.question import Question
from ..errors import DbSmartError
from ..report import DatabaseHistory, Lock
from ..schema.progress import Progress, read_progress, unfinished
from ..store.database import Database
from ..store.history import find_state

if TYPE_CHECKING:
    from flask import Flask

    from ..boot.planner import Planner
    from ..contract import Waits

#: How often at most a process that is not ready asks: so long for each query, seconds; for a page, for all of them.
_ASK_EVERY = 1.0
#: How long a request waits for the answer; if it comes later, the next request gets it. Seconds.
_PATIENCE = 0.5
#: How soon a client may come back, seconds; see ``Retry-After``.
_SHORTEST, _LONGEST = 1, 30
#: Where nothing can be said of how long it will take.
_UNKNOWN = 2

#: So many runs of the history are read to find those of the run that is under way.
_MOST_RUNS = 200


@dataclass(frozen=True)
class Steps:
    """What a run does.

    :ivar done: the migrations that it has applied, in order, each with how long that took in seconds.
    :ivar todo: those that are still to be applied, in order, with the one that is.
    """

    done: list[tuple[str, float]]
    todo: list[str]


What = Literal["ready", "migrating", "waiting", "behind", "failed"]


@dataclass(frozen=True)
class Readiness:
    """Whether a process can serve.

    :ivar state: ``"ready"``; ``"migrating"``, by whatever process; ``"waiting"`` for its turn or for the database;
        ``"behind"``, which boot may not change; or ``"failed"``.
    :ivar migration: what is being applied.
    :ivar progress: how far that is, where it tells.
    :ivar since: since when it is in this state.
    :ivar background: what runs while this process serves, as far as it knows by itself.
    :ivar steps: what the run that is under way has done and will do, where that is known.
    :ivar waiting: why contract steps wait, by name, as this process has found it last.
    :ivar retry_after: when to ask again, whole seconds.
    :ivar reason: what may be told to anybody.
    :ivar cause: what only those may see who operate the application: it can have names of hosts, paths and SQL.
    """

    state: What
    migration: str | None = None
    progress: Progress | None = None
    since: datetime | None = None
    retry_after: int = RETRY_SECONDS
    reason: str = ""
    cause: str = ""
    steps: Steps | None = None
    background: tuple[str, ...] = ()
    waiting: Mapping[str, Waits] = field(default_factory=dict)

    def public(self) -> dict[str, Any]:
        """What a probe tells anybody."""
        found = self.progress
        names = ("done", "total", "rate", "eta_s", "unit", "phase")
        steps = [{"migration": name, "waits": one.public} for name, one in self.waiting.items()]
        more: dict[str, Any] = {"background": self.background} if self.background else {}
        more |= {"contract": steps} if steps else {}
        return {
            "state": self.state,
            "migration": self.migration,
            "progress": found and {name: getattr(found, name) for name in names},
            "since": self.since and self.since.isoformat(timespec="seconds"),
            **more,
        }


class Seen:
    """What one process remembers of the databases for a second, so that probes do not ask them each."""

    def __init__(self) -> None:
        self.lock: Lock | None = None
        self.progress: Progress | None = None
        self.steps: Steps | None = None
        #: The name of the database that was migrated at the last look.
        self._held = ""
        #: Whether a run was under way at the last look: its database, its holder and since when; and what was applied.
        self._under_way: tuple[str, str, datetime, str] | None = None
        #: Whether another run, or none, was under way at the look after that.
        self.news = threading.Event()
        #: Whose run it was that was seen last, and the names of what it was to apply.
        self._run: tuple[str, datetime] | None = None
        self._names: list[str] = []
        #: When it may be asked again for a probe, and for a person; seconds of the monotonic clock.
        self._next = {False: float("-inf"), True: float("-inf")}
        self._turn = threading.Lock()
        self._question: Question[None] | None = None

    def look(self, app: Flask, planner: Planner, *, steps: bool) -> None:
        """Ask the databases, if that was not done within the last second; does not wait for one that is silent.

        :param steps: whether a person looks, who is shown more.
        """
        if not self._turn.acquire(blocking=False):  # another thread looks
            return
        try:
            now = time.monotonic()
            if now < self._next[steps] or (self._question is not None and self._question.open):
                return
            self._next[False] = self._next[steps] = now + _ASK_EVERY
            self._question = Question(lambda: self._ask(app, planner, steps))
            with suppress(Exception):  # what is known by now is what is said
                self._question.answer(_PATIENCE)
        finally:
            self._turn.release()

    def _ask(self, app: Flask, planner: Planner, with_steps: bool) -> None:
        lock, progress, steps, under_way = None, None, None, None
        began, queries = time.monotonic(), 0
        # A run goes from one database to the next: that of the last look alone is asked as long as it is there.
        for database in sorted(planner.databases.values(), key=lambda one: one.name != self._held):
            if not database.exists or database.in_memory:
                continue
            # Not from the application's pool, which requests may have emptied.
            one = Database(database.name, database.key, database.app_engine)
            found, how_far, source = self._look(app, one)
            queries += one.queries
            if found is not None:
                lock, progress, steps, self._held = found, found.progress or how_far, self.steps, one.name
                under_way = one.name, found.holder, found.since, source
                if with_steps:
                    with suppress(DbSmartError):  # who waits need not know
                        steps = self._steps(app, planner, one, found)
                break
        if not with_steps:  # several databases, or one that lacks our tables
            self._next[False] = began + max(1, queries) * _ASK_EVERY
        self.lock, self.progress, self.steps = lock, progress, steps
        before, self._under_way = self._under_way, under_way
        if before is not None and under_way != before:
            self.news.set()

    @staticmethod
    def _look(app: Flask, database: Database) -> tuple[Lock | None, Progress | None, str]:
        """Who migrates a database, how far a backfill is, and which sources are applied; by one query."""
        lock = None if database.facts.server else Lock.of(app, database)
        if not database.facts.server and lock is None:
            return None, None, ""
        with database.connect() as connection:
            if lock is not None:
                return lock, read_progress(connection, running=True), ""
            state = find_state(connection, backfills=True)
        if state is None or state.place is not None:
            return None, None, ""
        return Lock.by(state.holder), unfinished(state.backfills, running=True), state.source

    def _steps(self, app: Flask, planner: Planner, database: Database, lock: Lock) -> Steps:
        """What a run does: what was pending when it was first seen, and what it had applied by then.

        :raises DbSmartError: the migrations cannot be loaded, or the database cannot be asked.
        """
        runs = DatabaseHistory.of(database, _MOST_RUNS).runs or []
        done = [run for run in runs if run.outcome == "applied" and run.applied_at >= lock.since]
        if self._run != (lock.holder, lock.since):
            with app.app_context():  # migrations may need it to be imported
                items = planner.ask(database).pending
            # Of what boot leaves to the background only a run in the background is at.
            pending = [one.migration.name for one in [item for item in items if not item.left] or items]
            first = [run.name for run in done if run.name not in pending]
            self._run, self._names = (lock.holder, lock.since), first + pending
        names = {run.name for run in done}
        todo = [name for name in self._names if name not in names]
        return Steps([(run.name, run.duration_ms / 1000) for run in done], todo)


def readiness(
    app: Flask, state: AppState, planner: Planner | None, refusal: str | None, *, steps: bool = False
) -> Readiness:
    """Whether a process can serve, asking its databases at most once a second.

    :param refusal: why requests are not served, in words for anybody; ``None`` where they are.
    :param steps: whether to say what is done and what is to come.
    """
    if refusal is None:
        others = tuple(name for name in state.left if name not in state.waiting)
        return Readiness("ready", background=others, waiting=state.waiting)
    fenced = None if state.fence is None else state.fence.refusal
    if fenced is not None and fenced.public == refusal:
        return Readiness("failed" if fenced.gone else "waiting", reason=refusal, cause=fenced.cause)
    if state.seen is None:
        state.seen = Seen()
    seen: Seen = state.seen
    if planner is not None:
        seen.look(app, planner, steps=steps)
    background, lock = state.background, seen.lock
    failure = None if background is None else background.failure
    if seen.news.is_set():
        seen.news.clear()
        if background is not None and failure is None:  # it waits for the lock, and no flag may tell it
            background.woken.set()
    cause = failure.message if failure is not None else state.cause
    began = None if background is None else datetime.fromtimestamp(background.since, timezone.utc)
    if lock is not None:
        found = seen.progress
        eta = _UNKNOWN if found is None or found.eta_s is None else found.eta_s
        return Readiness("migrating", lock.migration, found, lock.since, _clamped(eta), refusal, cause, seen.steps)
    if failure is not None and background is not None:
        left = background.next_try - time.monotonic()
        return Readiness("failed", None, None, began, _clamped(left), refusal, cause)
    if background is not None:
        return Readiness("waiting", None, None, began, _UNKNOWN, refusal, cause)
    what: What = "migrating" if state.busy else "behind" if state.behind else "failed"
    return Readiness(what, reason=refusal, cause=cause)


def _clamped(seconds: float) -> int:
    return int(min(max(seconds, _SHORTEST), _LONGEST))


def planner_of(smart: Any, app: Flask) -> Planner | None:
    """The planner, by which the databases are known; ``None`` where a setting cannot be used."""
    with suppress(DbSmartError):
        found: Planner = smart.planner(app)
        return found
    return None
