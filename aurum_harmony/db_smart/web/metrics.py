"""The metrics of Prometheus, read from the databases at the scrape, so that every process gives the same answer.

Only how long the boot took is this process's own. A database that does not answer in time, or that this user may not
read, has no samples.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import Response, request

from ..boot.plan import pending
from ..boot.question import Question
from ..contract import this_release
from ..contract import told as why_waiting
from ..errors import DatabaseUnreachable, DbSmartError
from ..notices import logger_of
from ..report import Lock
from ..schema.progress import Progress, read_progress
from ..store import history
from ..store.database import Database
from ..store.tables import epoch_us
from .answers import in_json, plain

if TYPE_CHECKING:
    from flask import Flask

    from ..boot.app_state import AppState
    from ..boot.planner import Planner
    from ..contract import Waits
    from ..extension import DbSmart

_logger = logger_of(__name__)

#: For how long an answer of the databases is good, and how long a scrape waits for one, seconds.
_FRESH, _PATIENCE = 1.0, 1.8
#: For how long it is known that the database has all of the models where its history stays the same, seconds.
_DRIFT_FRESH = 60.0
#: How long a migration took is told by so many of the newest runs.
_MOST_RUNS = 1_000
#: What every database has a count of, 0 too, so that the first one is seen to come.
_ALWAYS = ("applied", "failed")


@dataclass
class _Told:
    """What one database says.

    :ivar pending: how many migrations are to run; ``None`` where it has none of this application.
    :ivar blocks: whether one of them is to run before requests are served.
    :ivar counts: how many runs have each outcome.
    :ivar durations: how long the last run of each migration took, seconds.
    :ivar held: for how long somebody has had the lock, seconds.
    :ivar lacking: how many tables and columns of the models there are not; ``None`` where that was not asked.
    :ivar waiting: why contract steps wait, by name.
    """

    pending: int | None = None
    blocks: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    held: float = 0.0
    progress: Progress | None = None
    lacking: dict[str, int] | None = None
    waiting: dict[str, Waits] = field(default_factory=dict)


class _Source:
    """One database, and what is remembered of it as long as its history stays the same."""

    def __init__(self) -> None:
        self.question: Question[_Told] | None = None
        self.told: _Told | None = None
        #: The id of the database and the number of the last row of its history, and what that history says.
        self._stamp: object = None
        self._history: tuple[dict[str, int], dict[str, float]] = {}, {}
        #: What the pending migrations were found by, how many there are, whether one of them blocks, and the names of
        #: the contract steps among them.
        self._plan: tuple[object, int, bool, list[str]] = None, 0, False, []
        self._drift: tuple[object, float, dict[str, int]] = None, float("-inf"), {}

    def ask(self, smart: DbSmart, app: Flask, planner: Planner, database: Database, turn: threading.Lock) -> _Told:
        """Ask the database: four small queries, as long as its history stays the same.

        :param turn: held while the migrations are imported.
        :raises DbSmartError: it cannot be asked.
        """
        told = _Told()
        if not database.exists:
            self._count(told, app, planner, database, None, None, None, turn)
            return told
        with database.connect() as connection, history.reading(database):
            state = history.find_state(connection, planner.versions)
            place = None if state is None else state.place
            if state is None:
                self._count(told, app, planner, database, None, None, None, turn)
                return told
            newest = history.last_id(connection, place)
            stamp = state.database_id, newest
            if stamp != self._stamp:
                counts = history.read_counts(connection, place)
                self._history = counts, history.read_durations(connection, _MOST_RUNS, place)
                self._stamp = stamp
            told.counts, told.durations = self._history
            if state.source != planner.source(state.heads):
                self._count(told, app, planner, database, connection, state, stamp, turn)
            elif database.name in (state.databases or (database.name,)):
                told.pending = 0
            if told.pending and self._plan[3] and planner.settings.releases:
                me = this_release(planner, database, smart.metadata(app).get(database.key))
                told.waiting = why_waiting(planner, connection, me, self._plan[3])
            told.progress = read_progress(connection, place, running=state.holder is not None)
            if state.holder is not None:
                now = connection.scalars(sa.select(epoch_us())).one() / 1_000_000
                told.held = max(0.0, now - state.holder.since.timestamp())
                told.progress = Progress.of_statement(state.holder.migration, state.holder.doing) or told.progress
        if not database.facts.server:
            lock = Lock.of(app, database)
            if lock is not None:
                told.held = max(0.0, (datetime.now(timezone.utc) - lock.since).total_seconds())
        if told.pending == 0:
            with app.app_context():  # the application decides what counts
                told.lacking = self._lacking(smart, app, planner, database, stamp)
        return told

    def _count(
        self,
        told: _Told,
        app: Flask,
        planner: Planner,
        database: Database,
        connection: sa.Connection | None,
        state: history.State | None,
        stamp: object,
        turn: threading.Lock,
    ) -> None:
        """Count what is pending, where the state row does not say that nothing is."""
        with suppress(DbSmartError):  # code that cannot be loaded has no number of migrations
            with turn, app.app_context():  # migrations may need it to be imported
                involved = planner.involved
            if database.name not in {one.name for one in involved}:
                return
            heads = None if state is None else state.heads
            found = stamp, heads, planner.source(heads)
            if connection is None or found != self._plan[0]:
                mine = planner.of(database)
                applied: list[history.Applied] = []
                if connection is not None and state is not None:
                    applied = history.read_applied(connection, state.place, [one.name for one in mine])
                left = pending(mine, applied, lacking=planner.lacking(database, heads)[0])
                steps = [one.migration.name for one in left if one.migration.options.contract]
                self._plan = found, len(left), any(not one.left for one in left), steps
            _, told.pending, told.blocks, _ = self._plan

    def _lacking(
        self, smart: DbSmart, app: Flask, planner: Planner, database: Database, stamp: object
    ) -> dict[str, int] | None:
        before, until, counts = self._drift
        if before != stamp or time.monotonic() >= until:
            try:
                found = smart.lacking(app, planner, database)
            except DatabaseUnreachable:  # no right to look
                return None
            tables = len(set(found) & smart.metadata(app)[database.key].tables.keys())
            counts = {"table": tables, "column": len(found) - tables}
            self._drift = stamp, time.monotonic() + _DRIFT_FRESH, counts
        return counts


class Metrics:
    """What one process remembers of its databases for a second."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._asked = float("-inf")
        self._turn, self._loading = threading.Lock(), threading.Lock()

    def ask(self, smart: DbSmart, app: Flask) -> dict[str, _Told | None]:
        """What each database says, ``None`` of one that does not answer; does not wait longer than two seconds.

        :raises DbSmartError: a setting cannot be used.
        """
        planner = smart.planner(app)
        until = time.monotonic() + _PATIENCE
        if self._turn.acquire(timeout=_PATIENCE):
            try:
                if time.monotonic() - self._asked >= _FRESH:
                    self._ask(smart, app, planner, until)
                    self._asked = time.monotonic()
            finally:
                self._turn.release()
        return {name: source.told for name, source in self._sources.items()}

    def _ask(self, smart: DbSmart, app: Flask, planner: Planner, until: float) -> None:
        new = []
        for name, database in planner.databases.items():
            source = self._sources.setdefault(name, _Source())
            source.told = None
            if database.in_memory or (source.question is not None and source.question.open):
                continue
            # Not from the application's pool, which requests may have emptied.
            one = Database(name, database.key, database.app_engine)

            def ask(source: _Source = source, one: Database = one) -> _Told:
                return source.ask(smart, app, planner, one, self._loading)

            source.question = Question(ask)
            new.append((source, source.question, one))
        for source, question, one in new:
            try:
                source.told = question.answer(max(0.0, until - time.monotonic()))
            except Exception as error:  # it is away, or keeps this user out; the next scrape asks again
                _logger.debug("db-smart: there are no metrics of %r: %s", one.name, one.redact(error))


def metrics(smart: DbSmart, app: Flask, state: AppState) -> Response:
    """The answer to a scrape."""
    try:
        client = importlib.import_module("prometheus_client")
        exposition = importlib.import_module("prometheus_client.exposition")
        core = importlib.import_module("prometheus_client.core")
    except ImportError:
        needed = "metrics need the package prometheus-client: pip install prometheus-client, or the extra [metrics]"
        return in_json({"error": needed}, status=404)
    if state.metrics is None:
        state.metrics = Metrics()
    found: dict[str, _Told | None] = {}
    with suppress(DbSmartError):
        found = state.metrics.ask(smart, app)
    families = list(_families(core, state, found))

    class Collector:
        def collect(self) -> list[Any]:
            return families

    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    encode, mimetype = exposition.choose_encoder(request.headers.get("Accept", ""))
    return plain(encode(registry), mimetype)


def _families(core: Any, state: AppState, found: dict[str, _Told | None]) -> Iterator[Any]:
    told = {name: one for name, one in found.items() if one is not None}
    background = state.background
    waits = state.refusal is not None or (background is not None and not background.done)
    known = bool(found) and all(one is not None and not one.blocks for one in found.values())
    ready = core.GaugeMetricFamily("db_smart_ready", "Whether this application can serve, as the probe says.")
    ready.add_metric([], float(not waits and (state.verified or known)))
    yield ready
    gauge = core.GaugeMetricFamily(
        "db_smart_migrations_pending", "Migrations of this code that are to run.", labels=["database"]
    )
    for name, one in told.items():
        if one.pending is not None:
            gauge.add_metric([name], one.pending)
    yield gauge
    counter = core.CounterMetricFamily(
        "db_smart_migrations", "Runs of migrations in the history of the database.", labels=["database", "outcome"]
    )
    for name, one in told.items():
        for outcome in sorted({*_ALWAYS, *one.counts}):
            counter.add_metric([name, outcome], one.counts.get(outcome, 0))
    yield counter
    gauge = core.GaugeMetricFamily(
        "db_smart_migration_seconds", "How long the last run of a migration took.", labels=["database", "migration"]
    )
    for name, one in told.items():
        for migration, seconds in one.durations.items():
            gauge.add_metric([name, migration], seconds)
    yield gauge
    gauge = core.GaugeMetricFamily(
        "db_smart_contract_waiting",
        "Instances and sessions of releases that a contract step waits for.",
        labels=["migration"],
    )
    for one in told.values():
        for migration, reason in one.waiting.items():
            gauge.add_metric([migration], reason.count)
    yield gauge
    yield from _progress(core, [one.progress for one in told.values() if one.progress is not None])
    gauge = core.GaugeMetricFamily(
        "db_smart_lock_wait_seconds", "For how long somebody has had the lock, for which others wait; 0 if nobody has."
    )
    if told:
        gauge.add_metric([], max(one.held for one in told.values()))
    yield gauge
    gauge = core.GaugeMetricFamily("db_smart_boot_seconds", "How long this process's boot took.", labels=["decision"])
    if state.report is not None:
        gauge.add_metric([state.report.decision], state.report.duration)
    yield gauge
    gauge = core.GaugeMetricFamily(
        "db_smart_drift",
        "Tables and columns that the models have and the database lacks, while nothing is pending.",
        labels=["database", "kind"],
    )
    for name, one in told.items():
        for kind, count in (one.lacking or {}).items():
            gauge.add_metric([name, kind], count)
    yield gauge


def _progress(core: Any, progress: list[Progress]) -> Iterator[Any]:
    """How far backfills and long statements are, each migration once."""
    rows = core.GaugeMetricFamily(
        "db_smart_progress_rows", "Rows of a backfill that is not finished.", labels=["migration", "kind"]
    )
    ratio = core.GaugeMetricFamily(
        "db_smart_statement_progress_ratio",
        "How much of the present phase of a long statement is done, from 0 to 1.",
        labels=["migration", "phase"],
    )
    for one in {one.migration: one for one in progress}.values():
        if one.phase:
            if one.total:
                ratio.add_metric([one.migration, one.phase], min(1.0, one.done / one.total))
        else:
            rows.add_metric([one.migration, "done"], one.done)
            rows.add_metric([one.migration, "total"], one.total)
    yield rows
    yield ratio
