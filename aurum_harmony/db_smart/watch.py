"""``flask db-smart watch``: what the databases hold and who migrates them, as it changes, from any host.

Each database is asked in a thread of its own, at most once a second, so that one that is silent holds up nothing. The
whole history is read only when something was recorded since the last look.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from .boot.question import Question
from .contract import waits_of
from .errors import ConfigError, DbSmartError, HistoryUnreadable, MigrationError, one_line
from .grid import Screen
from .output import can_redraw, encodable, screen_of, tell
from .report import DatabaseStatus, Lock, to_second
from .schema.progress import Progress, read_progress
from .store.history import find_state, last_id, read_failure, reading

if TYPE_CHECKING:
    from flask import Flask
    from rich.console import RenderableType

    from .boot.plan import Plan
    from .boot.planner import Planner
    from .store.database import Database

T = TypeVar("T")

#: How often at most the databases are asked, seconds.
_EVERY = 1.0
#: After so long without an answer, a database is shown as silent, seconds.
_SILENT = 5.0
#: So long after a failure that was there before, nobody tries again any more, seconds.
_GRACE = 10.0
#: How often at most a line says how far a backfill is, seconds.
_PROGRESS_EVERY = 5.0


def watch(
    app: Flask, planner: Planner, select: Callable[[], list[Database]], named: list[Database], *, until_ready: bool
) -> int:
    """Show the databases until Ctrl-C, or until they are ready.

    :param select: finds those that migrations concern, which may have to ask one.
    :param named: those that may be among them.
    :param until_ready: end as soon as nothing is pending and nobody migrates.
    :returns: the exit code.
    :raises DbSmartError: a run failed, while they are to become ready; or the migrations cannot be used.
    """
    with _live() if can_redraw() else nullcontext(_Printed()) as shown, _terminated():
        looks: list[_Look] = []
        try:
            planner.migrations  # noqa: B018 - what is wrong with them is said at once
            chosen = _Choice(app, select, named)
            while True:
                began = time.monotonic()
                looks = chosen.looks(planner, looks)
                for look in looks:
                    look.ask()
                for look in looks:
                    look.wait(began + _EVERY)
                shown.update(looks)
                if until_ready and chosen.done and _ready(looks):
                    break
                time.sleep(max(0.0, began + _EVERY - time.monotonic()))
        except KeyboardInterrupt:
            shown.end(looks)
            return 128 + signal.SIGINT if until_ready else 0
        except DbSmartError:
            shown.end(looks)
            raise
        shown.end(looks)
    waits = any(look.status is not None and look.status.pending for look in looks)
    tell(f"Ready: nothing is pending{' but contract steps' if waits else ''}, and nobody migrates.")
    return 0


def _ready(looks: list[_Look]) -> bool:
    """Whether all are ready.

    :raises DbSmartError: a run has failed.
    """
    for look in looks:
        look.refuse_failure()
    return bool(looks) and all(look.ready for look in looks)


class _Choice:
    """Which databases are watched; where that must be asked of one that is silent, all that may be are."""

    def __init__(self, app: Flask, select: Callable[[], list[Database]], named: list[Database]) -> None:
        self._app = app
        self._select = select
        self._named = named
        self._question: Question[list[Database]] | None = None
        #: Whether it is known.
        self.done = False

    def looks(self, planner: Planner, looks: list[_Look]) -> list[_Look]:
        """How the databases are looked at.

        :param looks: those of the last round.
        """
        if self.done:
            return looks
        trouble = ""
        try:
            self._question = self._question or Question(_inside(self._app, self._select))
            databases = self._question.answer(_EVERY)
            self.done = True
            return [_Look(self._app, planner, database) for database in databases]
        except TimeoutError:
            pass
        except (ConfigError, MigrationError):
            raise
        except (DbSmartError, sa.exc.SQLAlchemyError, OSError) as error:
            self._question = None
            trouble = one_line(str(error))
        return [_Look(self._app, planner, database, trouble) for database in self._named]


class _Look:
    """What is known of one database.

    :ivar status: what it has said; ``None`` before that.
    :ivar trouble: why it does not say more; empty where it does.
    """

    def __init__(self, app: Flask, planner: Planner, database: Database, trouble: str | None = None) -> None:
        self.database = database
        self.status: DatabaseStatus | None = None
        self.trouble = trouble or ""
        self._app = app
        self._planner = planner
        self._asks = trouble is None
        self._question: Question[DatabaseStatus] | None = None
        self._asked = 0.0
        self._seen: tuple[object, ...] | None = None
        self._known: tuple[Plan, dict[str, Any] | None] | None = None
        #: The failure that was there before, and since when nobody has migrated.
        self._before: object = None
        self._quiet_since: float | None = None

    @property
    def word(self) -> str:
        """Its state in one word."""
        if self.status is None:
            return "unreachable" if self.trouble else "asked"
        return "migrating" if self.status.lock is not None else self.status.state

    @property
    def ready(self) -> bool:
        """Whether nothing is pending but contract steps, which may wait for days, and nobody migrates."""
        one = self.status
        if one is None or self.trouble or one.lock is not None:
            return False
        waits = bool(one.pending) and all(item.waits is not None for item in one.pending)
        return one.state in ("up-to-date", "ahead") or (one.state == "pending" and waits and not one.missing)

    def ask(self) -> None:
        """Ask it, unless an answer is still to come."""
        if self._asks and self._question is None:
            self._asked = time.monotonic()
            self._question = Question(_inside(self._app, self._answer))

    def wait(self, until: float) -> None:
        """Take its answer, if there is one by then."""
        if self._question is None:
            return
        try:
            self.status, self.trouble = self._question.answer(max(0.0, until - time.monotonic())), ""
            self._question = None
            self._note_failure()
        except TimeoutError:
            silent = time.monotonic() - self._asked
            if silent >= _SILENT:
                self._fail("unreachable", "It does not answer.")
        except (DbSmartError, sa.exc.SQLAlchemyError, OSError) as error:
            self._question = None
            state = "unreadable" if isinstance(error, HistoryUnreadable) else "unreachable"
            self._fail(
                state, one_line(error.message if isinstance(error, DbSmartError) else self.database.redact(error))
            )

    def _fail(self, state: str, trouble: str) -> None:
        one, lock = self.database, None
        if not one.facts.server:  # the file of the lock tells even while SQLite lets nobody read
            with suppress(DbSmartError, OSError):
                lock = Lock.of(self._app, one)
        self.status, self.trouble = DatabaseStatus(one.name, one.url, one.dialect, state, lock=lock), trouble
        self._seen = None

    def _answer(self) -> DatabaseStatus:
        database, planner = self.database, self._planner
        lock = None if database.facts.server else Lock.of(self._app, database)
        if not database.exists:
            return DatabaseStatus.of(planner, planner.ask(database), lock, None, None)
        with database.connect() as connection, reading(database):
            state = find_state(connection, planner.versions)
            place = None if state is None else state.place
            seen = None if state is None else (state.stamp, state.source, place, last_id(connection))
            if seen is None or seen != self._seen or self._known is None:
                plan = planner.by_connection(database, connection)
                self._known = plan, read_failure(connection, plan.elsewhere)
                self._seen = seen
            plan, failed = self._known
            if state is not None and database.facts.server and place is None:
                lock = Lock.by(state.holder)
            progress = None if state is None else read_progress(connection, place, running=lock is not None)
            if lock is not None and lock.progress is not None:
                progress = lock.progress
            metadata = self._app.extensions["db_smart"].metadata(self._app).get(database.key)
            waits = waits_of(planner, connection, plan, metadata)
        return DatabaseStatus.of(planner, plan, lock, progress, failed, waits=waits)

    def _note_failure(self) -> None:
        assert self.status is not None
        if self._quiet_since is None:
            self._before = self.status.failed
        if self._quiet_since is None or self.status.lock is not None:
            self._quiet_since = time.monotonic()

    def refuse_failure(self) -> None:
        """Do not wait for what has failed.

        :raises DbSmartError: a run failed since this began; or before, and nobody tries again.
        """
        failed = None if self.status is None else self.status.failed
        if failed is None or self._quiet_since is None:
            return
        if failed != self._before or time.monotonic() - self._quiet_since >= _GRACE:
            raise DbSmartError(
                f"{failed.name!r} failed on the database {self.database.name!r} at {_when(failed.failed_at)}, by "
                f"{failed.applied_by}: {failed.error}. Mend it, and start again: 'flask db-smart status' shows more."
            )

    def said(self) -> str:
        """The state in one line, without what changes all the time."""
        one = self.status
        if one is None or self.trouble:
            return ": ".join(filter(None, (self.word, self.trouble)))
        parts = [self.word]
        if one.lock is not None:
            parts.append(f"by {one.lock.holder}" + (f" on {one.lock.migration}" if one.lock.migration else ""))
        parts.append(one.counts)
        if one.failed is not None:
            parts.append(
                f"{one.failed.name} failed at {_when(one.failed.failed_at)} by {one.failed.applied_by}: "
                f"{one.failed.error}"
            )
        return ", ".join(parts)

    def lines(self, screen: Screen) -> Iterator[str]:
        """The state on a terminal."""
        yield from self.top(screen)
        yield from self.rest(screen)

    @property
    def quiet(self) -> bool:
        """Whether there is nothing to say but that it is ready."""
        return self.ready and self.status is not None and self.status.failed is None

    def top(self, screen: Screen) -> Iterator[str]:
        """Which state it is in, and what happens now."""
        one, quiet = self.status, self.quiet
        counts = f", {one.counts}" if quiet and one is not None else ""
        yield from screen.ending(f"Database {self.database.name}: {self.word}{counts}", self.database.url)
        if self.trouble:
            yield from screen.wrapped(f"  {self.trouble}")
            yield "  It is asked again."
        if one is not None:
            yield from one.running(screen)

    def rest(self, screen: Screen) -> Iterator[str]:
        """What is applied, pending and failed."""
        one = self.status
        if one is None or self.quiet or self.trouble:
            return
        names = ", ".join(item.name for item in one.pending)
        yield from screen.ending(f"  {one.counts}{':' if names else ''}", names, "    ")
        for item in one.pending:
            if item.waits is not None:
                yield from screen.wrapped(f"  {item.name} {item.waits}")
        if one.failed is not None:
            yield from screen.ending(f"  failed at {_when(one.failed.failed_at)}:", one.failed.name, "    ")
            yield f"    by {one.failed.applied_by}"
            yield screen.cut(f"    {one.failed.error}")


def _when(moment: str) -> str:
    """A time of the JSON as people read it."""
    return to_second(datetime.fromisoformat(moment))


def _inside(app: Flask, ask: Callable[[], T]) -> Callable[[], T]:
    """A question that is asked in the context of the application, whichever thread asks it."""

    def asked() -> T:
        with app.app_context():
            return ask()

    return asked


class _Printed:
    """Prints a line for each change, where there is no terminal."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._told: dict[str, float] = {}

    def update(self, looks: list[_Look]) -> None:
        """A round is over."""
        for look in looks:
            name, said = look.database.name, look.said()
            if said != "asked" and self._said.get(name) != said:
                self._said[name] = said
                self._line(name, said)
            progress = None if look.status is None else look.status.progress
            if progress is not None and time.monotonic() - self._told.get(name, float("-inf")) >= _PROGRESS_EVERY:
                self._told[name] = time.monotonic()
                self._line(name, f"backfill {progress}")

    def end(self, looks: list[_Look]) -> None:
        """It ends: the last state was said."""

    @staticmethod
    def _line(name: str, said: str) -> None:
        tell(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC  {name}: {said}")


class _Live(_Printed):
    """Draws the state on a terminal again and again, and leaves the last one there."""

    def __init__(self, draw: Callable[[RenderableType], None], stop: Callable[[], None]) -> None:
        super().__init__()
        self._draw = draw
        self._stop = stop

    def update(self, looks: list[_Look]) -> None:
        from rich.console import Group
        from rich.text import Text

        screen = screen_of()

        def texts(lines: Iterable[str]) -> Iterator[RenderableType]:
            return (Text(encodable(line), no_wrap=True, overflow="ellipsis") for line in lines)

        found = [*texts(self._head(looks))]
        for look in sorted(looks, key=_urgency):
            found += texts(look.top(screen))
            if look.status is not None and look.status.progress is not None:
                found.append(_bar(look.status.progress))
            found += texts(look.rest(screen))
        self._draw(Group(*found))

    def end(self, looks: list[_Look]) -> None:
        self._stop()
        for look in looks:
            for line in look.lines(screen_of()):
                tell(line)

    @staticmethod
    def _head(looks: list[_Look]) -> Iterator[str]:
        yield f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC. Ctrl-C ends this, and stops no migration."
        if len(looks) > 1:
            counts = Counter(look.word for look in looks)
            yield f"{len(looks)} databases: {', '.join(f'{count} {word}' for word, count in counts.items())}"


def _urgency(look: _Look) -> int:
    """What a person must see comes first, as a terminal has few lines."""
    if look.word == "migrating":
        return 0
    if look.trouble or (look.status is not None and look.status.failed is not None):
        return 1
    return 3 if look.ready else 2


def _bar(progress: Progress) -> RenderableType:
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar

    bar = ProgressBar(total=max(progress.total, 1), completed=progress.done, width=50)
    return Padding(bar, (0, 0, 0, 2))


@contextmanager
def _live() -> Iterator[_Printed]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False, transient=True) as live:
        yield _Live(lambda found: live.update(found, refresh=True), live.stop)


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end it in order, so that a terminal gets its cursor back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
