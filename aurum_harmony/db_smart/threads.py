"""What starts the threads that migrate while the process answers, and what application code is told meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from .boot.app_state import AppState
from .errors import ConfigError, DatabaseUnreachable
from .notices import Logger, logger_of, notice
from .settings import Settings
from .store.database import application_engines

if TYPE_CHECKING:
    from flask import Flask

    from .boot.planner import Planner
    from .runner import Runner

_logger = logger_of(__name__)
#: After how long a backfill in the background gives the lock to others, seconds.
_SLICE_SECONDS = 15.0


class Threads:
    """The threads of one application in this process; ``state`` remembers them.

    :param boot: one boot; takes since when a failure of another process counts as its own, seconds since the epoch.
    :param planner: makes the planner of the application by some settings.
    :param runner: makes what runs the migrations of a planner.
    """

    def __init__(
        self,
        app: Flask,
        state: AppState,
        boot: Callable[[float], float | None],
        planner: Callable[[Settings], Planner],
        runner: Callable[[Planner], Runner],
    ) -> None:
        self._app = app
        self._state = state
        self._boot = boot
        self._planner = planner
        self._runner = runner

    def held_back(self) -> str | None:
        """What requests are told as long as a thread migrates; starts it where a fork has left it behind."""
        state = self._state
        later, background = state.later, state.background
        if later is not None and not later.start():
            state.later = None
            self.run_later(self._planner(Settings(self._app)), state.left)  # which says why it is not run here
        if background is None or background.done:
            return None
        if not background.start():  # gevent has changed this worker after it was forked: see to it here and now
            state.background, state.booted = None, False
            state.forked()  # with locks that let other greenlets go on
            return None
        from .boot.turn import stamp

        with suppress(ConfigError):
            if background.look(stamp(Settings(self._app).flag)):
                return None
        return "The database is not ready." if background.failure else "The database is being brought up to date."

    @staticmethod
    def can_wait(planner: Planner) -> bool:
        """Whether a thread can migrate while this process answers; says so where it cannot."""
        if planner.in_memory:
            return False  # it has one connection, or one for each thread
        from .boot.background import no_thread

        why = no_thread()
        if why is not None:
            _logger.warning(
                "db-smart: DB_SMART_BOOT is 'background', but %s: this process migrates before it answers, as with "
                "'migrate'",
                why,
            )
        return why is None

    def start(self, path: str) -> None:
        """Have a thread migrate; in a process of which the workers are still to be forked, they will.

        :param path: of the flag.
        """
        from .boot.background import Background, before_fork
        from .boot.turn import stamp

        state = self._state
        state.booted, state.refusal = True, None
        if state.background is None or state.background.done:
            meanwhile = "requests get status 503 until it succeeds"
            state.background = Background(self._boot, self._forked, "db-smart-boot", meanwhile)
            state.background.flag = stamp(path)
        if not before_fork():
            state.background.start()

    def run_later(self, booted: Planner, names: list[str]) -> None:
        """Have a thread run the migrations with ``background=True``, while requests are served.

        :param booted: its sources are what runs, also where another release is put in the place of the files.
        :param names: of those that are left; empty where the thread is to find them.
        """
        from .boot.background import Background, before_fork, no_thread

        why = no_thread()
        if why is not None:
            _logger.warning(
                "db-smart: migrations with background=True or contract=True are pending and are not run by this "
                "process, because %s: run 'flask db-smart migrate'",
                why,
            )
            return

        app, state = self._app, self._state
        state.asked, state.left = booted, names
        told: set[tuple[str, str]] = set()

        def attempt(began: float) -> float | None:
            settings = Settings(app)
            settings.idle = True
            planner = self._planner(settings)
            planner.began, planner.sources = began, booted.sources
            with app.app_context():
                state.left = state.left or [item.migration.name for one in planner.by_history() for item in one.pending]
            with app.app_context(), state.running:
                runner = self._runner(planner)
                runner.slice, runner.told = _SLICE_SECONDS, told
                outcome = runner.run(planner.involved)
            applied = [run.migration for run in outcome.runs]
            state.left = []
            if applied:
                notice(_logger, "db-smart: applied in the background: %s", ", ".join(applied))
            for name, waits in outcome.waiting.items():
                if name not in state.waiting:
                    log = Logger.info if waits.by_itself else Logger.warning
                    log(_logger, "db-smart: the contract step %r %s", name, waits.said)
            state.waiting = outcome.waiting
            # Not at the same moment in each process.
            again = settings.lock.lease * random.uniform(0.9, 1.1)
            return again if any(waits.by_itself for waits in outcome.waiting.values()) else None

        if state.later is None or state.later.done:
            meanwhile = "requests are served meanwhile"
            state.later = Background(attempt, self._forked, "db-smart-background", meanwhile)
        if not before_fork():
            state.later.start()

    def _forked(self) -> None:
        """Make good in a forked process that the threads and connections of the one before are not its own."""
        self._state.forked()
        for engine in application_engines(self._app, self._state.db).values():
            engine.dispose(close=False)

    def applied(self, name: str) -> bool:
        """As :meth:`.DbSmart.applied`."""
        state = self._state
        with state.asking:
            applied, until = state.applied.get(name, (False, 0.0))
            if applied or time.monotonic() < until:
                return applied
            state.applied[name] = False, time.monotonic() + 1
        try:
            if state.asked is None:
                state.asked = self._planner(Settings(self._app))
            applied = state.asked.was_applied(name)
            state.unknown.pop(name, None)
        except DatabaseUnreachable as error:
            if state.unknown.get(name) != error.message:  # it may be so for long
                _logger.warning("db-smart: it is not known whether %r is applied: %s", name, error.message)
            state.unknown[name] = error.message
        except BaseException:
            del state.applied[name]  # the next call is to say it too
            raise
        state.applied[name] = applied, time.monotonic() + 1
        return applied
