"""How far one long statement of a migration is, which the server tells to another connection of the same user.

A thread of the run looks once a second whether a statement has been at work for longer than that. What it learns it
sends to the listeners of this process, and notes it at the lock, so that other processes can tell it too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from flask import Flask

from ..beat import Beat
from ..dialects.base import facts_of
from ..notices import logger_of
from ..signals import send, statement_progress
from ..spans import Sent, Statements
from ..store.database import Database
from ..store.history import Doing
from ..store.lock import Lock

_logger = logger_of(__name__)

#: How often it is looked, and how long a statement may take unasked, seconds.
_EVERY = 1.0
#: How often it is logged, seconds.
_LOG_EVERY = 5.0
#: It is noted for other processes each time, later less often: a thirtieth of what has passed, at most this, seconds.
_NOTE_LEAST_OFTEN = 10.0


class _Watch:
    """The look at the statements of one run.

    :param doing: the name of the migration that runs.
    """

    def __init__(
        self, app: Flask, database: Database, lock: Lock, statements: Statements, doing: Callable[[], str | None]
    ) -> None:
        self._app = app
        self._database = database
        self._lock = lock
        self._statements = statements
        self._doing = doing
        self._query = sa.text(database.facts.statement_progress or "")
        self._sent: Sent | None = None
        self._phase = ""
        #: What was done when the phase was first seen, and when that was.
        self._first = (0.0, 0.0)
        self._told: str | None = None
        self._logged = self._noted = float("-inf")

    def look(self) -> float | None:
        """Look once; returns when to do so again, ``None`` where the server has nothing to say."""
        sent, migration, now = self._statements.at, self._doing(), time.monotonic()
        if sent is not self._sent:
            self.over()
        if sent is None or not migration or now - sent.since < _EVERY:
            return _EVERY
        try:
            # Without another try where the server has no connection left: the end of the run waits for this thread.
            connection = self._database.engine.connect()
        except sa.exc.DBAPIError:
            return _EVERY
        try:
            with connection:
                found = self._ask(connection, sent)
        except sa.exc.DBAPIError as error:
            _logger.debug("db-smart: how far a statement is cannot be asked: %s", self._database.redact(error))
            self.over()
            return None
        if found is not None and self._statements.at is sent:
            self._tell(migration, sent, now, *found)
        return _EVERY

    def over(self) -> None:
        """The statement that was told of has ended, if there was one."""
        self._sent, self._phase = None, ""
        if self._told is not None:
            migration, self._told = self._told, None
            self._lock.note_doing(None)
            self._send(migration, Doing("", "", 1, 1, 0.0), 0.0)

    def _ask(self, connection: sa.Connection, sent: Sent) -> tuple[str, str, float, float] | None:
        row = connection.execute(self._query, {"statement": sent.statement, "session": sent.session}).first()
        return None if row is None else (row[0], row[1], float(row[2] or 0), float(row[3] or 0))

    def _tell(self, migration: str, sent: Sent, now: float, phase: str, unit: str, done: float, total: float) -> None:
        if sent is not self._sent or phase != self._phase or done < self._first[0]:
            self._sent, self._phase, self._first = sent, phase, (done, now)
        rate = (done - self._first[0]) / (now - self._first[1]) if now > self._first[1] else 0.0
        doing, self._told = Doing(phase, unit, round(done), round(total), round(rate, 3)), migration
        if now - self._noted >= min((now - sent.since) / 30, _NOTE_LEAST_OFTEN):
            self._noted = now
            self._lock.note_doing(doing)
        left = round(max(0.0, total - done) / rate, 1) if rate and total else None
        self._send(migration, doing, left)
        if now - self._logged >= _LOG_EVERY and _logger.isEnabledFor(logging.INFO):
            self._logged = now
            count = f", {doing.done:,} of {doing.total:,} {unit}" if doing.total else ""
            more = "" if left is None else f", about {left:,.0f} s left"
            _logger.info(
                "db-smart: %r has been at a statement for %.0f s: %s%s%s",
                migration,
                now - sent.since,
                phase,
                count,
                more,
            )

    def _send(self, migration: str, doing: Doing, eta: float | None) -> None:
        values = doing._asdict()
        send(statement_progress, self._app, migration=migration, database=self._database.name, eta=eta, **values)


@contextmanager
def statements_watched(
    app: Flask, database: Database, lock: Lock, statements: Statements, doing: Callable[[], str | None]
) -> Iterator[None]:
    """Tell of long statements for as long as a run holds the lock; see the module."""
    if facts_of(database.dialect).statement_progress is None:
        yield
        return
    watch = _Watch(app, database, lock, statements, doing)
    beat = Beat("db-smart-progress", watch.look, _EVERY)
    beat.start()
    try:
        yield
    finally:
        beat.stop()
        watch.over()
