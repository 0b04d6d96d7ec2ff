"""Bounds how long a schema change waits for its locks, and tells who is in the way.

While a schema change waits for a lock, all that comes after it queues behind it, reads too. So it waits for a short
time only, then everything is rolled back and the migration is tried again.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..dialects.base import facts_of
from ..interrupt import start_thread
from ..notices import logger_of
from ..store.database import Database
from .controls import split, without_comments

_logger = logger_of(__name__)

_CHANGE = re.compile(
    r"(\s|--[^\n]*\n|/\*([^*]|\*(?!/))*\*/)*"
    r"(ALTER|CREATE|DROP|TRUNCATE|COMMENT|LOCK|REINDEX|CLUSTER|REFRESH|RENAME|GRANT|REVOKE)\b",
    re.IGNORECASE,
)
#: What PostgreSQL runs only outside of a transaction, or under a lock that nobody queues behind.
_ALONE = re.compile(
    r"\bCONCURRENTLY\b|\bVALIDATE\s+CONSTRAINT\b|\bREINDEX\s+SCHEMA\b|^\s*(LOCK\b|CLUSTER\s*;?\s*$)"
    r"|\b(CREATE|ALTER|DROP|REINDEX)\s+(DATABASE|SYSTEM|TABLESPACE|SUBSCRIPTION)\b",
    re.IGNORECASE,
)
#: By what the code of a migration chooses a time-out itself, or gives it back.
_CHOICE = re.compile(
    r"SET\s+(?:SESSION\s+|(?P<local>LOCAL)\s+)?lock_timeout\s*(?:=|TO\b)\s*(?P<default>DEFAULT\b)?"
    r"|SELECT\b.*\bset_config\s*\(\s*'lock_timeout'\s*,[^,]*,\s*(?P<transaction>true\b)?"
    r"|(?P<reset>RESET\s+(?:lock_timeout|ALL)\b)",
    re.IGNORECASE | re.DOTALL,
)
#: The shortest time-out, seconds: what is left to a transaction whose schema changes have waited long already.
_LEAST = 0.05


class DdlLockTimeout:
    """Watches over the schema changes of one connection.

    On PostgreSQL each gets ``lock_timeout`` for its statement; those of one transaction share the time, since the locks
    that it has already block others while it waits for more. In autocommit a change gets a transaction of its own, as
    nothing else may be set for one statement alone behind PgBouncer. What the code of a migration itself sets is left
    as it is, for as long as PostgreSQL keeps it. On MariaDB it is the session's ``lock_wait_timeout``. SQLite has one
    lock, which is waited for at the begin of a transaction, when nothing is held, and at its end, when new readers wait
    too.

    :param connection: a new connection for migrating.
    :param seconds: how long to wait.
    """

    def __init__(self, database: Database, connection: sa.Connection, seconds: float) -> None:
        self._database = database
        self._connection = connection
        self._seconds = seconds
        self._session = 0
        #: Asked before each statement, and before anything is set for it.
        self.fence: Callable[[str], None] | None = None
        #: Tells of a statement that is sent while another one is, such as the record of that one: it is none of ours.
        self.within: Callable[[], bool] = lambda: False
        #: Tells of one that nobody is told of either: the record of a step, or a batch of a backfill.
        self.aside: Callable[[], bool] = lambda: False
        #: Whether any statement is bounded, not only a schema change.
        self._bounding = False
        #: How long the schema changes of this transaction took.
        self._spent = 0.0
        self._started: float | None = None
        #: Whether the code of the migration has chosen a time-out: for this transaction; for the session, as it is now,
        #: and as the last commit left it.
        self._chosen_here = self._chosen = self._chosen_before = False
        #: The ``lock_timeout`` before ours; ``None`` where there is none of ours.
        self._before_ours: str | None = None
        self._watch: threading.Timer | None = None
        # Not the application's: the migrating URL may lead elsewhere, which is found out later.
        self._facts = facts_of(connection.dialect.name)
        if not self._facts.server and not database.in_memory:
            self._bound_commits()
        elif not self._facts.bounds_each_change and (bound := self._facts.set_lock_timeout(seconds)) is not None:
            begun = connection.in_transaction()
            connection.exec_driver_sql(bound)
            self._session = connection.exec_driver_sql(self._facts.session_number).scalar_one()
            if begun:  # by who made the connection, who will end it
                _driver_of(connection).rollback()
            else:
                connection.rollback()
        self.watch(connection)

    def watch(self, target: sa.Connection | Engine) -> None:
        """Watch over what this connection, or those of this engine, send; they must share one driver connection."""
        if self._facts.blockers is not None:
            sa.event.listen(target, "before_cursor_execute", self._before)
            sa.event.listen(target, "after_cursor_execute", self._after)
            if target is self._connection:
                sa.event.listen(target, "commit", self._ended)
                sa.event.listen(target, "rollback", self._taken_back)
        told = self._database.statements
        if told is not None and (told.traced or self._facts.statement_progress is not None):
            sa.event.listen(target, "before_cursor_execute", self._sent)
            sa.event.listen(target, "after_cursor_execute", self._answered)

    @contextmanager
    def bounding(self) -> Iterator[None]:
        """Bound the wait of whatever statement, where each schema change has a time-out of its own."""
        self._bounding = True
        try:
            yield
        finally:
            self._bounding = False

    def _bound_commits(self) -> None:
        driver: Any = self._connection.connection.dbapi_connection
        (usual,) = driver.execute("PRAGMA busy_timeout").fetchone()
        ours = min(usual, round(self._seconds * 1000))
        sa.event.listen(self._connection, "begin", lambda _: driver.execute(f"PRAGMA busy_timeout = {usual}"))
        sa.event.listen(self._connection, "commit", lambda _: driver.execute(f"PRAGMA busy_timeout = {ours}"))

    def _before(self, connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if self.within():
            return
        if self.fence is not None:
            self.fence(statement)
        self._quiet()
        if self._before_ours is not None:  # the change before has failed
            self._before_ours = None
            if self._autocommit:
                self._send("ROLLBACK")
        if self._facts.bounds_each_change and "lock_timeout" in statement.lower():
            self._note_choice(statement)
        if not (self._bounding or _CHANGE.match(statement)):
            return
        if self._facts.bounds_each_change:
            try:
                self._arm(statement)
            except Exception as error:
                # Of a transaction that has failed, or a connection that is lost, the statement itself will say so.
                code = self._facts.code(error)
                if isinstance(code, str) and code != "25P02" and code[:2] not in ("08", "57"):
                    raise
        self._started = time.monotonic()
        self._watch = threading.Timer(self._seconds / 2, self._tell)
        self._watch.daemon = True
        start_thread(self._watch)

    def _after(self, *_: Any) -> None:
        if self.within():
            return
        self._quiet()
        if self._started is not None:
            if not self._bounding:  # which takes nothing that others wait for
                self._spent += time.monotonic() - self._started
            self._started = None
        if self._before_ours is not None:
            before, self._before_ours = self._before_ours, None
            self._send("COMMIT" if self._autocommit else f"SET LOCAL lock_timeout = '{before}'")

    def _sent(self, connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if self._database.statements is not None and not (self.within() or self.aside()):
            self._database.statements.before(statement, self._session)

    def _answered(self, *_: Any) -> None:
        if self._database.statements is not None and not (self.within() or self.aside()):
            self._database.statements.after()

    def _arm(self, statement: str) -> None:
        bounded = "NULL"
        if not self._autocommit or not _ALONE.search(statement):
            if self._autocommit:
                self._send("BEGIN")
                self._spent = 0.0
            left = max(_LEAST, self._seconds - self._spent)
            if not (self._chosen_here or self._chosen):
                bounded = f"current_setting('lock_timeout'), set_config('lock_timeout', '{round(left * 1000)}', true)"
            elif self._autocommit:  # it is to be committed
                bounded = "current_setting('lock_timeout')"
        self._session, self._before_ours, *_ = self._send(f"SELECT pg_backend_pid(), {bounded}")

    def _note_choice(self, sql: str) -> None:
        """Note that the code of a migration chooses a time-out."""
        for statement in split(sql, self._facts.name):
            found = _CHOICE.match(without_comments(statement))
            if found is None:
                continue
            if found["reset"] or found["default"]:
                self._chosen_here = self._chosen = False
            elif found["local"] or found["transaction"]:
                self._chosen_here = not self._autocommit  # else it has no effect
            else:
                self._chosen = True

    def _quiet(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    @property
    def _autocommit(self) -> bool:
        return bool(_driver_of(self._connection).autocommit)

    def _send(self, statement: str) -> Any:
        """Send a statement without SQLAlchemy's events, one of which has called this."""
        with _driver_of(self._connection).cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def _ended(self, *_: Any) -> None:
        """``SET LOCAL`` ended with its transaction, and so did the locks."""
        self._quiet()
        self._spent, self._started, self._before_ours = 0.0, None, None
        self._chosen_here, self._chosen_before = False, self._chosen

    def _taken_back(self, *_: Any) -> None:
        """As at each end of a transaction; and what it set for the session is as it was."""
        self._chosen = self._chosen_before
        self._ended()

    def _tell(self) -> None:
        """Log who is in the way; in a thread, while the connection waits."""
        try:
            for line in blockers(self._database, self._session):
                _logger.warning("db-smart: a schema change waits for %s", line)
        except Exception as error:  # it is only said to help
            _logger.debug("db-smart: cannot tell which session blocks: %s", self._database.redact(error))


def gets_transaction(statement: str) -> bool:
    """Whether a statement in autocommit gets a transaction of its own, on a database that bounds each change."""
    return _CHANGE.match(statement) is not None and not _ALONE.search(statement)


def _driver_of(connection: sa.Connection) -> Any:
    """The driver's connection, also where a journal stands before it."""
    driver: Any = connection.connection.dbapi_connection
    return getattr(driver, "driver", driver)


def guarded(database: Database, seconds: float, fence: Callable[[str], None]) -> Engine:
    """The engine for migrating, each of whose connections has such a time-out.

    :param seconds: how long to wait.
    :param fence: asked before each statement.
    """

    def lock_timeout(connection: sa.Connection) -> None:
        DdlLockTimeout(database, connection, seconds).fence = fence

    engine = database.engine.execution_options()
    sa.event.listen(engine, "engine_connect", lock_timeout)
    return engine


def blockers(database: Database, session: int) -> Iterator[str]:
    """Who keeps a session waiting: exactly on PostgreSQL; on MariaDB the open transactions, longest first.

    :param session: the server's number of the waiting session.
    """
    with database.connect() as connection:
        query = facts_of(connection.dialect.name).blockers
        assert query is not None  # else nobody asks
        for number, user, client, state, seconds in connection.execute(sa.text(query), {"session": session}):
            where = f" {client}" if client else ""
            yield f"session {number} ({user}{where}, {state}, its transaction began {seconds or 0} s ago)"
