"""The page that shows all databases of an application: what is applied and pending, who migrates, and every run."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from flask import Response, request

from ..boot.question import Question
from ..errors import DatabaseUnreachable, DbSmartError, one_line, text_of
from ..notices import logger_of
from ..report import Answer, DatabaseHistory, DatabaseStatus, NextBoot, SnapshotEntry, Snapshots, Status
from ..store.history import Ended
from .answers import page

if TYPE_CHECKING:
    from flask import Flask

    from ..boot.app_state import AppState
    from ..extension import DbSmart
    from ..store.database import Database

T = TypeVar("T")
_logger = logger_of(__name__)

#: How long the page waits for databases, seconds; what else it asks then has the rest.
_PATIENCE, _REST = 3.0, 1.5
#: So many questions to a database can be open: those to a silent one are left behind, each with a connection.
_MOST_OPEN = 4
#: So many runs are on a page, and so many snapshots.
_RUNS, _SNAPSHOTS = 50, 20
_HIGHEST_PAGE = 1_000_000
#: After how long a page looks again that shows a run, seconds.
_LOOKS_AGAIN = 5
#: The size of the timeline.
_WIDTH, _HEIGHT, _WIDEST = 1000, 120, 40


@dataclass(frozen=True)
class Bar:
    """One run in the timeline.

    :ivar x: its left edge; so are the others in units of the picture.
    """

    x: float
    y: float
    width: float
    height: float
    run: Ended


@dataclass(frozen=True)
class Shown:
    """What the page says of one database.

    :ivar runs: those of one page, the newest first.
    :ivar bars: the same in a picture, the oldest first.
    :ivar page: the number of the page, from 1.
    :ivar more: whether there are older runs.
    """

    status: DatabaseStatus
    runs: list[Ended]
    bars: list[Bar]
    page: int
    more: bool


@dataclass
class _Look:
    """One look at all databases, which ends in time.

    :ivar pages: which page of runs is wanted of a database; of others the first.
    :ivar until: when, seconds of the monotonic clock.
    :ivar histories: by the name of the database.
    """

    app: Flask
    smart: DbSmart
    pages: Mapping[str, int]
    until: float = field(default_factory=lambda: time.monotonic() + _PATIENCE)
    histories: dict[str, DatabaseHistory] = field(default_factory=dict)

    def status(self) -> Status:
        """What the command ``status`` says."""
        try:
            return self._begun("", self._status, self.until + _REST)()
        except TimeoutError:
            error = f"The databases do not answer: nothing came for {_PATIENCE + _REST:g} s."
        except Exception as failure:  # of a driver, or of the application's own code: the page says it
            _logger.error("db-smart: the state of the databases cannot be shown", exc_info=True)
            error = f"{type(failure).__name__}: {one_line(text_of(failure))}"
        return Status("failed", error, [], None, None, None, NextBoot(False, "that cannot be said now"), [])

    def _status(self) -> Status:
        try:
            return Status.of(self.app, self.smart, self._begin)
        except DbSmartError as error:
            return Status.failed(error, self.app, self.smart)

    def _begin(self, database: Database, ask: Callable[[], Answer]) -> Callable[[], Answer]:
        """Ask one database, also for its history."""

        def all_of_it() -> Answer:
            answer = ask()
            name = database.name
            self.histories[name] = DatabaseHistory.of(database, _RUNS + 1, (self.pages.get(name, 1) - 1) * _RUNS)
            return answer

        if database.in_memory:  # its one connection is this thread's
            return all_of_it
        begun = self._begun(database.name, all_of_it, self.until)

        def answer() -> Answer:
            try:
                return begun()
            except TimeoutError:
                said = f"does not answer: nothing came for {_PATIENCE:g} s"
                raise DatabaseUnreachable(f"The database {database.name!r} ({database.url}) {said}.") from None

        return answer

    def _begun(self, name: str, ask: Callable[[], T], until: float) -> Callable[[], T]:
        """Ask in a thread; what waits for the answer raises ``TimeoutError`` where it does not come."""
        gate = _gate(self.app, name)
        free = gate.acquire(blocking=False)

        def run() -> T:
            try:
                with self.app.app_context():
                    return ask()
            finally:
                gate.release()

        question = Question(run) if free else None

        def answer() -> T:
            if question is None:
                raise TimeoutError
            return question.answer(max(0.0, until - time.monotonic()))

        return answer


_gates: WeakKeyDictionary[Flask, defaultdict[str, threading.BoundedSemaphore]] = WeakKeyDictionary()


def _gate(app: Flask, name: str) -> threading.BoundedSemaphore:
    """What lets only some questions at once be open."""
    found = _gates.setdefault(app, defaultdict(partial(threading.BoundedSemaphore, _MOST_OPEN)))
    return found[name]


def overview(smart: DbSmart, app: Flask, state: AppState) -> Response:
    """The page."""
    pages = {request.args.get("database", ""): _number(request.args.get("page", ""))}
    look = _Look(app, smart, pages)
    status = look.status()
    shown = [_shown(one, look.histories.get(one.name), pages.get(one.name, 1)) for one in status.databases]
    again = status.lock is not None and "still" not in request.args
    response = page(
        app,
        "overview.html",
        title="Database migrations",
        status=status,
        databases=shown,
        snapshots=_snapshots(app, smart),
        serves=state.verified,
        refusal=state.refusal,
        again=_LOOKS_AGAIN if again else None,
        size=(_WIDTH, _HEIGHT),
    )
    if again:
        response.headers["Refresh"] = str(_LOOKS_AGAIN)
    return response


def _shown(status: DatabaseStatus, history: DatabaseHistory | None, number: int) -> Shown:
    """What the page says of a database.

    :param history: ``None`` where it could not be asked.
    """
    found = list(reversed((history and history.runs) or []))
    runs = found[:_RUNS]
    return Shown(status, runs, _bars(runs), number, len(found) > _RUNS)


def _bars(runs: list[Ended]) -> list[Bar]:
    """The timeline of runs, which come the newest first. Heights are logarithmic: some run a thousand times longer."""
    longest = max((run.duration_ms for run in runs), default=0.0)
    width = min(_WIDEST, _WIDTH / max(1, len(runs)))
    bars = []
    for index, run in enumerate(reversed(runs)):
        height = 4 + (_HEIGHT - 4) * (math.log1p(max(0.0, run.duration_ms)) / math.log1p(longest) if longest else 0)
        bars.append(
            Bar(round(index * width, 1), round(_HEIGHT - height, 1), round(width * 0.8, 1), round(height, 1), run)
        )
    return bars


def _number(text: str) -> int:
    """The number of a page; the first where it is none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_HIGHEST_PAGE)) else 1
    return min(max(1, number), _HIGHEST_PAGE)


def _snapshots(app: Flask, smart: DbSmart) -> list[SnapshotEntry]:
    """The newest snapshots of SQLite files, the newest first."""
    try:
        files = [one for one in smart.planner(app).databases.values() if one.path is not None]
        return Snapshots.of(app, files, files).snapshots[: -_SNAPSHOTS - 1 : -1]
    except (DbSmartError, OSError) as error:
        _logger.warning("db-smart: the snapshots cannot be listed: %s", one_line(text_of(error)))
        return []
