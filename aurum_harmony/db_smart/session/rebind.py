"""What ``db.engine`` and ``db.session`` are during a migration: the migration's own connection.

A migration written for Flask-SQLAlchemy opens connections and sessions, commits and rolls back as it likes. All of
that happens inside the one transaction that also records the migration, so each of its transactions is a savepoint.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import Flask, has_app_context, has_request_context, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from ..dialects.base import facts_of
from ..errors import DbSmartError
from ..store.database import Database
from .journal import Journal, reads

if TYPE_CHECKING:
    from flask_sqlalchemy.session import Session
    from sqlalchemy.orm import scoped_session

_BEGIN = re.compile(r"\s*BEGIN\b", re.IGNORECASE)


@contextmanager
def rebind(
    app: Flask, db: SQLAlchemy, database: Database, engine: Callable[[], Engine], *, default: bool = True
) -> Iterator[None]:
    """Let ``db.engine``, ``db.engines[bind key]`` and ``db.session`` use one engine, in this thread.

    Other threads keep the application's pool. What the migration left uncommitted in ``db.session`` is committed at
    the end, so that nothing is recorded as done and then lost.

    :param engine: gives the engine; called when the migration first needs it, and most never do.
    :param default: whether ``db.engine`` and ``db.session`` mean the database, whichever bind it is.
    """
    with app.app_context(), _replaced(app, db, {None, database.key} if default else {database.key}, engine):
        try:
            yield
            commit_session(db.session)
        finally:
            db.session.remove()


@contextmanager
def refusing(
    app: Flask, db: SQLAlchemy, database: Database, engine: Callable[[], Engine], others: Iterable[Database]
) -> Iterator[None]:
    """As :func:`rebind`; the other databases are refused.

    :raises DbSmartError: one of them is used.
    """

    def refuse(other: Database) -> Callable[[], Engine]:
        def get() -> Engine:
            raise DbSmartError(
                f"While the models of the database {database.name!r} are compared, a listener of the models uses the "
                f"database {other.name!r}, which would be changed. Nothing was changed. Let it use the connection that "
                "it is given."
            )

        return get

    with ExitStack() as stack:
        stack.enter_context(rebind(app, db, database, engine))
        for other in others:
            if other.key not in (None, database.key):
                stack.enter_context(rebind(app, db, other, refuse(other), default=False))
        yield


def commit_session(session: scoped_session[Session]) -> None:
    """Commit what a session holds, if it was used."""
    if session.registry.has():
        session.commit()


#: What a block of the application's own code sees: of which engines, under which key, what engine.
Block = tuple["_ThreadEngines", "str | None", Engine]
#: The blocks that count here; ``None`` where not even that of the request does.
_bound: ContextVar[tuple[Block, ...] | None] = ContextVar("db_smart_bound", default=())
#: Under which name a request has its block.
_OF_REQUEST = "_db_smart_block"
#: Held while the engines of an application are replaced by those of its threads, or put back.
_replacing = threading.Lock()


@contextmanager
def _replaced(app: Flask, db: SQLAlchemy, keys: Set[str | None], engine: Callable[[], Engine]) -> Iterator[None]:
    """Have this thread see another engine under some keys, whatever other threads see meanwhile."""
    with _replacing:
        engines = _installed(app, db)
        mine = engines.layers.setdefault(threading.get_ident(), [])
        mine.append((keys, engine))
    try:
        yield
    finally:
        with _replacing:
            mine.pop()
            if not mine:
                del engines.layers[threading.get_ident()]
            if not (engines.layers or engines.kept):
                all_engines: Any = db._app_engines
                all_engines[app] = engines.engines


@contextmanager
def bound(app: Flask, db: SQLAlchemy, key: str | None, engine: Engine) -> Iterator[Block]:
    """Let ``db.session`` and the engine of a bind use another engine, in this thread or task, for a block.

    For the application's own code: it gets a session of its own, of which what is not committed is rolled back at the
    end, and finds the one that it had before when the block ends. Blocks may stand in each other.

    :raises DbSmartError: a migration runs in this thread, whose connection ``db.session`` is to be.
    """
    with _replacing:
        engines = _installed(app, db)
        engines.kept = True
    if threading.get_ident() in engines.layers:
        raise DbSmartError("A migration cannot use another tenant. Nothing of it is recorded. Let it use its own.")
    mine = engines, key, engine
    with nullcontext() if has_app_context() else app.app_context():
        sessions = db.session.registry
        held = sessions() if sessions.has() else None
        sessions.clear()
        _bound.set((*(_bound.get() or ()), mine))
        try:
            yield mine
        finally:
            try:
                db.session.remove()
            finally:  # whatever fails, and in whatever order blocks of generators end: nobody else gets this engine
                _bound.set(tuple(one for one in _bound.get() or () if one is not mine))
                sessions.clear()
                if held is not None:
                    sessions.set(held)


@contextmanager
def unbound(app: Flask) -> Iterator[None]:
    """A context of an application in which no block of :func:`bound` counts, for code that says where tenants are."""
    token = _bound.set(None)
    try:
        with app.app_context():
            yield
    finally:
        _bound.reset(token)


def keep_for_request(block: Block) -> None:
    """Have a block count in all that is done in the contexts of this request, also in what is streamed afterwards."""
    of_request()[_OF_REQUEST] = block


def of_request() -> dict[str, Any]:
    """What belongs to this request alone; ``g`` also belongs to one that a view makes inside it."""
    current: Any = request
    found: dict[str, Any] = current._get_current_object().__dict__
    return found


def _blocks() -> tuple[Block, ...]:
    """The blocks that count here; the last one most."""
    blocks = _bound.get()
    if blocks is None:
        return ()
    if has_request_context():
        mine = of_request().get(_OF_REQUEST)
        if mine is not None and not any(one is mine for one in blocks):
            return (mine, *blocks)
    return blocks


def _installed(app: Flask, db: SQLAlchemy) -> _ThreadEngines:
    """The engines of an application as threads may see them replaced."""
    all_engines: Any = db._app_engines  # the one place where Flask-SQLAlchemy looks an engine up
    engines = all_engines[app]
    if not isinstance(engines, _ThreadEngines):
        engines = all_engines[app] = _ThreadEngines(engines)
    return engines


class _ThreadEngines(Mapping[str | None, Engine]):
    """The application's engines, of which some threads see some replaced.

    :ivar layers: by thread, keys with what gives the engine; the last one counts.
    :ivar kept: whether it stays for good.
    """

    kept = False

    def __init__(self, engines: Mapping[str | None, Engine]) -> None:
        self.engines = engines
        self.layers: dict[int, list[tuple[Set[str | None], Callable[[], Engine]]]] = {}

    def __getitem__(self, key: str | None) -> Engine:
        for keys, engine in reversed(self.layers.get(threading.get_ident(), ())):
            if key in keys:
                return engine()
        for engines, name, bound in reversed(_blocks()):
            if engines is self and name == key:
                return bound
        return self.engines[key]

    def __iter__(self) -> Iterator[str | None]:
        mine = self.layers.get(threading.get_ident(), ())
        return iter(set(self.engines).union(*(keys for keys, _ in mine)) if mine else self.engines)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass
class _Open:
    """A transaction of the migration's code that is not ended yet."""

    name: str
    writes_before: int
    steps_before: int
    wrote: bool = False
    failed: bool = False


class Savepoints:
    """An engine whose connections all share one driver connection, each transaction being a savepoint of it.

    Connections may interleave, and a rollback to a savepoint takes back whatever came after it. Where that would
    undo what another connection wrote, it raises instead: half a migration must not be recorded as a whole one.

    :param connection: the connection with the transaction.
    :param journal: the steps of the migration.
    """

    def __init__(self, connection: sa.Connection, journal: Journal) -> None:
        self._outer = connection
        self._journal = journal
        self._driver: Any = connection.connection.dbapi_connection
        self._open: dict[sa.Connection, _Open] = {}
        self._writers: list[sa.Connection] = []
        self._count = 0
        #: Why the migration cannot be recorded, although its code may go on.
        self._spoilt: DbSmartError | None = None
        dialect = connection.dialect
        pool = NullPool(lambda: _SharedConnection(self._driver, journal), dialect=dialect)
        outer = connection.engine
        self.engine = Engine(
            pool,
            dialect,
            outer.url,
            execution_options=outer.get_execution_options(),
            hide_parameters=outer.hide_parameters,
        )
        sa.event.listen(self.engine, "before_cursor_execute", self._before_statement, retval=True)
        sa.event.listen(self.engine, "handle_error", self._on_error)
        sa.event.listen(self.engine, "commit", self._commit)
        sa.event.listen(self.engine, "rollback", self._rollback)
        sa.event.listen(connection, "before_cursor_execute", self._before_outer_statement)

    def close(self) -> None:
        """Leave the connection and its dialect as they were."""
        sa.event.remove(self.engine, "handle_error", self._on_error)
        sa.event.remove(self._outer, "before_cursor_execute", self._before_outer_statement)

    def check(self) -> None:
        """Make sure that the transaction holds what the migration's code believes.

        :raises DbSmartError: it lacks something that was taken back.
        """
        if self._spoilt is not None:
            raise self._spoilt

    def cut(self) -> None:
        """The transaction is about to be committed, or is rolled back: its savepoints end with it."""
        self._open.clear()
        self._writers.clear()
        self._spoilt = None

    def _before_outer_statement(self, connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        self.check()
        if not reads(statement) and not self._journal.paused:
            self._writers.append(connection)

    def _before_statement(
        self, connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        self.check()
        current = self._open.get(connection)
        if current is None:
            if not facts_of(connection.dialect.name).server and _BEGIN.match(statement):
                # A listener of all engines begins a transaction, as SQLAlchemy's documentation advises for SQLite; the
                # next statement opens the savepoint, which is one.
                return "SELECT 1", parameters
            self._count += 1
            current = self._open[connection] = _Open(f"db_smart_{self._count}", len(self._writers), self._journal.made)
            self._send(f"SAVEPOINT {current.name}")
        if not reads(statement):
            current.wrote = True
            self._writers.append(connection)
        return statement, parameters

    def _on_error(self, context: sa.ExceptionContext) -> None:
        if context.connection in self._open:
            self._open[context.connection].failed = True

    def _commit(self, connection: sa.Connection) -> None:
        current = self._open.pop(connection, None)
        if current is not None and not self._others_wrote(connection, current):
            self._send(f"RELEASE SAVEPOINT {current.name}")

    def _rollback(self, connection: sa.Connection) -> None:
        current = self._open.pop(connection, None)
        if current is None:
            return
        if not self._others_wrote(connection, current):
            self._send(f"ROLLBACK TO SAVEPOINT {current.name}")
            self._send(f"RELEASE SAVEPOINT {current.name}")
            del self._writers[current.writes_before :]
            self._journal.take_back(current.steps_before)
        elif current.wrote or (current.failed and not self._journal.at_once):
            self._spoilt = DbSmartError(
                "The migration rolled one connection back after another had written; in a migration they "
                "share one transaction. Use one of db.session, db.engine and op at a time, and end each transaction "
                "before the next."
            )
            # An error that is on its way is the cause, and what a person must see; where the code swallows it, the
            # next statement or the end of the migration raises this one.
            if sys.exc_info()[0] is None:
                raise self._spoilt

    def _others_wrote(self, connection: sa.Connection, current: _Open) -> bool:
        return any(writer is not connection for writer in self._writers[current.writes_before :])

    def _send(self, statement: str) -> None:
        cursor = self._driver.cursor()
        try:
            cursor.execute(statement)
        except Exception:
            # Where a schema change commits, the savepoints before it are gone, and all that is left to take
            # back is what came after it.
            if not self._journal.at_once:
                raise
            if statement.startswith("ROLLBACK"):
                self._driver.rollback()
        finally:
            cursor.close()


class _SharedConnection:
    """A driver connection that outlives those who use it: ending it or its transaction is not theirs to do."""

    def __init__(self, driver: Any, journal: Journal) -> None:
        self._driver = driver
        self._journal = journal

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """A cursor that records its steps."""
        return self._journal.cursor(self._driver.cursor(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def commit(self) -> None:
        """Nothing: the event of the engine has released the savepoint."""

    def rollback(self) -> None:
        """Nothing: the event of the engine has rolled back to the savepoint."""

    def close(self) -> None:
        """Nothing: the runner closes its connection."""
