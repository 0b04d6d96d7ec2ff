"""How the operations of one migration reach its database: in one transaction, or in several where they must."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..dialects.base import Facts
from ..errors import DbSmartError
from ..interrupt import GiveWay
from ..notices import logger_of, without_pipeline_lines
from ..retry import retry
from ..settings import DdlSettings
from ..store.database import Database, begin, commit
from ..store.lock import Lock
from ..store.memory import Memory, insert
from .journal import CONTROL, Journal, reads
from .lock_timeout import DdlLockTimeout, guarded
from .rebind import Savepoints, commit_session
from .sql import render

if TYPE_CHECKING:
    from flask_sqlalchemy.session import Session
    from sqlalchemy.orm import scoped_session
    from sqlalchemy.schema import DDLElement
    from sqlalchemy.sql.base import Executable

_logger = logger_of(__name__)

#: Sends one schema change: an element of SQLAlchemy or Alembic, or SQL; and more text for its end.
Send = Callable[..., None]
#: What becomes of an operation: it does something; it finds nothing to do; a later migration has overtaken it; an
#: earlier, interrupted run has done it.
Outcome = Literal["does", "satisfied", "left out", "done before"]
#: A query whose result has no rows.
NO_ROWS = "SELECT 1 FROM (SELECT 1 AS one) AS no_rows WHERE 1 = 0"
T = TypeVar("T")


class DryRun(Protocol):
    """What is asked of a run that only finds out what it would do."""

    @property
    def catalog(self) -> Any:
        """What there would be by now: a :class:`~.schema.planned.DryCatalog`, of which this layer knows nothing."""
        ...

    @property
    def rows_changed(self) -> bool:
        """Whether it would have changed rows by now, so that those that are there tell little."""
        ...

    def unforeseeable(self, what: str) -> NoReturn:
        """End it, because a migration uses something that cannot be foreseen."""
        ...

    def found_done(self) -> None:
        """Note that an earlier, interrupted run has done what was just reported as something to do."""
        ...

    def remark(self, text: str) -> None:
        """Say something that is no SQL."""
        ...

    def recorded(self, step: str, detail: str | None = None) -> AbstractContextManager[None]:
        """Have the script write a step down together with what a block notes, in one transaction."""
        ...

    def foretell(self, statement: Any, values: Mapping[str, Any]) -> None:
        """Note a statement of a migration with its values."""
        ...


class Transaction(ABC):
    """What operations may ask of the connection of one run of one migration.

    :ivar repeated: whether the very content of the migration was applied to this database before.
    :param database: the database being migrated.
    :param connection: in a transaction; or, for a migration that is not to run in one, in autocommit.
    :param journal: the steps of the migration.
    :param settings: for schema changes.
    :param transactional: whether the migration runs in a transaction.
    :param memory: what the history remembers of objects; ``None`` where nothing is to be remembered.
    :param tell: called with how far a backfill is: ``done``, ``total``, ``rate``, ``eta``.
    """

    def __init__(
        self,
        database: Database,
        connection: sa.Connection,
        journal: Journal,
        *,
        settings: DdlSettings,
        transactional: bool,
        memory: Memory | None = None,
        tell: Callable[..., object] = lambda **_: None,
    ) -> None:
        self.database = database
        self.connection = connection
        self.journal = journal
        self.settings = settings
        self.transactional = transactional
        self.memory = memory
        self.tell = tell
        self.repeated = False

    @property
    def facts(self) -> Facts:
        """What is true of the kind of database."""
        return self.database.facts

    @property
    def dialect(self) -> str:
        """Name of the dialect; ``mysql`` for MariaDB too."""
        return self.facts.name

    @property
    def dry(self) -> DryRun | None:
        """Where nothing is really sent, who is to be asked what would be; ``None`` when the run is real."""
        return None

    def refuse(self, refusal: DbSmartError, allowed: str | None = None) -> None:
        """Refuse something before it is done; a dry run may take note of it instead and go on.

        :param allowed: why the migration says that it may be.
        :raises DbSmartError: the refusal.
        """
        if allowed is None:
            raise refusal

    @property
    @abstractmethod
    def session(self) -> scoped_session[Session]:
        """``db.session``, in this transaction."""

    @property
    @abstractmethod
    def own_connection(self) -> sa.Connection:
        """A connection for the migration's code, each of whose transactions is a savepoint of this one."""

    @abstractmethod
    def settle_connection(self) -> None:
        """Commit what :attr:`own_connection` has left open."""

    @abstractmethod
    def execute(self, statement: Executable, parameters: Any) -> sa.CursorResult[Any]:
        """Run a statement of the migration; if it needs what no longer exists, the result has no rows.

        :raises sqlalchemy.exc.DBAPIError: the database refused it.
        """

    @abstractmethod
    def send(self, change: sa.ClauseElement | str, more: str = "") -> None:
        """Send one schema change in the migration's transaction.

        :param change: an element of SQLAlchemy, Alembic or :mod:`~.schema.ddl`, or SQL of our own.
        :param more: text for its end, such as ``, LOCK=NONE``.
        :raises sqlalchemy.exc.DBAPIError: the database refused it.
        """

    @abstractmethod
    def by_hand(self, change: DDLElement | None) -> AbstractContextManager[sa.Connection]:
        """The connection, for a schema change that takes questions and statements of its own.

        :param change: the one that it stands for; ``None`` where no name of a table or column is another afterwards.
        """

    @abstractmethod
    def report(self, outcome: Outcome, operation: str, reason: str = "") -> None:
        """Take note of what becomes of an operation.

        :param reason: why it is left out.
        """

    @abstractmethod
    def note(self, migration: str, event: str, kind: str, schema: str | None, table: str, name: str = "") -> None:
        """Remember an event, in the transaction that is open; see :mod:`~.store.memory`."""

    def making(self, op: str, **inverse: Any) -> AbstractContextManager[None]:
        """Make a schema change that was found missing, and keep what takes it back; see :mod:`~.undo.inverses`.

        :param op: what takes it back.
        :param inverse: of what, and how it was before; what JSON has a form for.
        """
        return nullcontext()

    @abstractmethod
    def undoable(self) -> AbstractContextManager[None]:
        """Let a block fail and leave the transaction as it was, as far as the block has not committed it."""

    @abstractmethod
    def checkpoint(self) -> None:
        """Commit what was done so far, with the record of its steps, and begin the next transaction.

        :raises LeaseLost: somebody else has taken the lock; nothing was committed.
        """

    @abstractmethod
    def commit(self) -> None:
        """Commit as :meth:`checkpoint` does, without a new transaction: what follows begins one when it has work.

        :raises LeaseLost: somebody else has taken the lock; nothing was committed.
        """

    @abstractmethod
    def rollback(self) -> None:
        """Take back the open transaction, so that it can be tried again."""

    @abstractmethod
    def autocommit_block(self) -> AbstractContextManager[Send]:
        """Commit as :meth:`checkpoint` does, and let a block send what cannot run in a transaction.

        :returns: as :meth:`send`, each statement committing by itself.
        """

    @abstractmethod
    def pragma(self, name: str, value: str) -> AbstractContextManager[None]:
        """Commit as :meth:`checkpoint` does, and set a pragma of SQLite for the next transaction alone."""

    @contextmanager
    def leniently(self, left_out: Callable[[Exception], object], *, whole: bool = False) -> Iterator[None]:
        """Leave a block out that needs what no longer exists; see :meth:`~.store.memory.Memory.excuses`.

        :param left_out: called with why.
        :param whole: whether the block is a whole migration and not one operation.
        """
        memory, migration = self.memory, self.journal.migration
        if memory is None or not memory.lenient(migration):
            yield
            return

        def passes(error: Exception) -> bool:
            if not memory.excuses(migration, error):
                return False
            left_out(error)
            return True

        if whole:
            with self._ignoring(passes):
                yield
            return
        try:
            with self.undoable():
                yield
        except Exception as error:
            if not passes(error):
                raise

    @abstractmethod
    def _ignoring(self, passes: Callable[[Exception], bool]) -> AbstractContextManager[None]:
        """Take back what a block did when it fails with an error that is to be ignored."""


class RunTransaction(Transaction):
    """The connection of a migration that runs.

    :param lock: confirmed whenever something is committed.
    :param lock_timeout: watches over ``connection``.
    :param session: ``db.session``, whose transactions are parts of this one; ``None`` where no migration's code runs.
    """

    _confirming = False

    def __init__(
        self,
        database: Database,
        connection: sa.Connection,
        journal: Journal,
        *,
        lock: Lock,
        lock_timeout: DdlLockTimeout,
        settings: DdlSettings,
        transactional: bool,
        memory: Memory | None = None,
        tell: Callable[..., object] = lambda **_: None,
        session: scoped_session[Session] | None = None,
    ) -> None:
        super().__init__(
            database, connection, journal, settings=settings, transactional=transactional, memory=memory, tell=tell
        )
        self._lock = lock
        self._lock_timeout = lock_timeout
        self._session = session
        self._own_connection: sa.Connection | None = None
        self._savepoints: Savepoints | None = None
        lock_timeout.fence = self._fence
        lock_timeout.within = lambda: journal.guarding
        lock_timeout.aside = lambda: journal.paused
        #: Whether the migration's own SQL is what the connection of a migration without a transaction is about to send.
        self._executing = False
        if not transactional:
            sa.event.listen(connection, "before_cursor_execute", self._guard_own)
        #: Looks at each schema change of an operation before it is sent.
        self.look: Callable[[sa.ClauseElement], object] = lambda _: None
        #: How many transactions were committed, or may have been, as their commit failed.
        self.commits = 0
        #: Whether the migration has ended for now, in the middle: nothing of it is committed any more, even where its
        #: code catches that and goes on.
        self.gave_way = False

    @cached_property
    def engine(self) -> Engine:
        """What ``db.engine`` is during the migration."""
        if not self.transactional:
            engine = guarded(self.database, self.settings.lock_timeout, self._fence)
            sa.event.listen(engine, "before_cursor_execute", self._guard)
            return engine
        self._savepoints = Savepoints(self.connection, self.journal)
        self._lock_timeout.watch(self._savepoints.engine)
        return self._savepoints.engine

    @property
    def session(self) -> scoped_session[Session]:
        """``db.session``, which :func:`~.rebind.rebind` has brought into this transaction."""
        assert self._session is not None
        return self._session

    @property
    def own_connection(self) -> sa.Connection:
        """A connection of :attr:`engine`."""
        if self._own_connection is None:
            self._own_connection = self.engine.connect()
        return self._own_connection

    def settle_connection(self) -> None:
        """Commit what :attr:`own_connection` has left open."""
        if self._own_connection is not None:
            self._own_connection.commit()

    def check(self) -> None:
        """Make sure that the migration's transaction holds what its code believes.

        :raises DbSmartError: it lacks something that was taken back.
        """
        if self._savepoints is not None:
            self._savepoints.check()

    def close(self) -> None:
        """Leave the connection as it was; its transaction stays open."""
        try:
            if self._own_connection is not None:
                self._own_connection.close()
        finally:
            self._lock_timeout.fence = None
            self._lock_timeout.within = self._lock_timeout.aside = lambda: False
            if self._savepoints is not None:
                self._savepoints.close()

    def _fence(self, statement: str) -> None:
        """Let nothing be committed behind our back by a process that was stopped and has lost the lock since.

        :raises LeaseLost: the statement would commit, and somebody else has taken the lock.
        """
        if self.gave_way and not reads(statement) and not statement.lstrip().upper().startswith(CONTROL):
            raise GiveWay
        if self.transactional:
            commits = self.facts.commits(statement)
        else:
            commits = not reads(statement)
        if self._confirming or not commits:
            return
        self._confirming = True
        try:
            with self.journal.pause():
                self.confirm()
        finally:
            self._confirming = False

    def _guard(self, _: sa.Connection, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        """Look at a statement of a migration that has no steps; see :attr:`~.journal.Journal.guard`."""
        self.journal.look(statement, None if many else parameters)

    def _guard_own(self, *sent: Any) -> None:
        if self._executing:
            self._guard(*sent)

    def execute(self, statement: Executable, parameters: Any) -> sa.CursorResult[Any]:
        """Run a statement, quietly: psycopg tells of its pipelines."""
        self._executing = True
        try:
            return self._execute(statement, parameters)
        finally:
            self._executing = False

    def _execute(self, statement: Executable, parameters: Any) -> sa.CursorResult[Any]:
        memory = self.memory
        connection = self.own_connection if self.transactional else self.connection
        retries = 0 if self.transactional else self.settings.retries
        with without_pipeline_lines():
            if memory is None or not memory.lenient(self.journal.migration):
                return tried_again(self.database, lambda: connection.execute(statement, parameters), retries)
            nested = self.transactional and self.facts.failure_ends_transaction
            try:
                with connection.begin_nested() if nested else nullcontext():
                    return tried_again(self.database, lambda: connection.execute(statement, parameters), retries)
            except sa.exc.DBAPIError as error:
                if not memory.excuses(self.journal.migration, error):
                    raise
                _logger.warning(
                    "db-smart: %r: a statement is left out, because a table or column that it needs no "
                    "longer exists: %s",
                    self.journal.migration,
                    self.database.redact(error),
                )
                return connection.exec_driver_sql(NO_ROWS)

    def report(self, outcome: Outcome, operation: str, reason: str = "") -> None:
        """Log that an operation is left out."""
        if outcome == "left out":
            # The author of a migration that runs for the first time may have expected it to do something.
            expected = self.repeated or self.memory is None or self.memory.fresh
            level = logging.INFO if expected else logging.WARNING
            _logger.log(level, "db-smart: %r: %s is left out: %s", self.journal.migration, operation, reason)

    def note(self, migration: str, event: str, kind: str, schema: str | None, table: str, name: str = "") -> None:
        """Remember an event."""
        new = None if self.memory is None else self.memory.event(migration, event, kind, schema, table, name)
        if new is not None:
            with self.journal.pause():
                self.connection.execute(insert(new))

    def making(self, op: str, **inverse: Any) -> AbstractContextManager[None]:
        """Keep it in the journal."""
        return self.journal.making({"op": op, **inverse})

    @contextmanager
    def undoable(self) -> Iterator[None]:
        """By a savepoint on PostgreSQL, which alone gives a transaction up for a failed statement."""
        if not self.transactional or not self.facts.failure_ends_transaction:
            yield
            return
        before = self.commits
        self._control("SAVEPOINT db_smart_operation")
        try:
            yield
        except sa.exc.DBAPIError:
            if self.commits == before:
                self._control("ROLLBACK TO SAVEPOINT db_smart_operation")
            raise
        if self.commits == before:
            self._control("RELEASE SAVEPOINT db_smart_operation")

    @contextmanager
    def _ignoring(self, passes: Callable[[Exception], bool]) -> Iterator[None]:
        """Take back what a block did.

        Of what was committed meanwhile (by a schema change, where that commits) nothing can be taken back.
        """
        if not self.transactional:
            try:
                yield
            except Exception as error:
                if not passes(error):
                    raise
            return
        before, made = self.commits, self.journal.made
        self._control("SAVEPOINT db_smart_migration")
        try:
            yield
        except Exception as error:
            if not passes(error):
                raise
            if self._savepoints is not None:
                self._savepoints.cut()
            try:
                if self.commits != before:
                    raise sa.exc.InvalidRequestError("the savepoint was committed") from None
                self._control("ROLLBACK TO SAVEPOINT db_smart_migration")
                self.journal.take_back(made)
                if self.memory is not None:
                    self.memory.take_back()
            except (sa.exc.DBAPIError, sa.exc.InvalidRequestError):
                self.connection.rollback()
                begin(self.connection)
            self._renew()

    def _control(self, statement: str) -> None:
        with self.journal.pause():
            self.connection.exec_driver_sql(statement)

    def send(self, change: sa.ClauseElement | str, more: str = "", *, connection: sa.Connection | None = None) -> None:
        """Send one schema change; where it is a transaction of its own, try it again by itself."""
        connection = connection or self.connection
        if not isinstance(change, str):
            self.look(change)
        text = (change if isinstance(change, str) else render(change, connection.dialect)) + more
        # Without parameters, so that no driver takes a percent sign for one.
        sending = partial(connection.exec_driver_sql, text, execution_options={"no_parameters": True})
        if self.transactional:
            sending()
        else:
            tried_again(self.database, sending, self.settings.retries)

    @contextmanager
    def by_hand(self, change: DDLElement | None) -> Iterator[sa.Connection]:
        """The connection."""
        if change is not None:
            self.look(change)
        yield self.connection

    def checkpoint(self) -> None:
        """Commit, and begin the next transaction."""
        if self.transactional:
            self.commit()
            begin(self.connection)

    def commit(self) -> None:
        """Commit what the migration's code has left open, the record of its steps, and all of it together."""
        if self._session is not None:
            commit_session(self._session)
        self.settle_connection()
        self.check()
        self.journal.store()
        self.confirm()
        if self._savepoints is not None:
            self._savepoints.cut()
        self.commits += 1
        commit(self.connection)

    def rollback(self) -> None:
        """Take back the open transaction, and what the migration's code knows of it."""
        if self._savepoints is not None:
            self._savepoints.cut()
        self.connection.rollback()
        self._renew()

    def _renew(self) -> None:
        """Let the session and the connection of the migration's code forget a transaction that was taken back."""
        if self._session is not None and self._session.registry.has():
            self._session.rollback()
        if self._own_connection is not None:
            self._own_connection.rollback()

    @contextmanager
    def autocommit_block(self) -> Iterator[Send]:
        """Commit, and send by a connection in autocommit."""
        if not self.transactional:
            yield self.send
            return
        self.commit()
        with self.database.connect(autocommit=True) as own:
            DdlLockTimeout(self.database, own, self.settings.lock_timeout)
            yield partial(self.send, connection=own)
        begin(self.connection)

    @contextmanager
    def pragma(self, name: str, value: str) -> Iterator[None]:
        """Set a pragma between two transactions, and set it back after the next."""
        if self.transactional:
            self.commit()
        before = self.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        self.connection.exec_driver_sql(f"PRAGMA {name} = {value}")
        self.connection.rollback()
        begin(self.connection)
        try:
            yield
            self.commit()
        finally:
            self.connection.rollback()
            self.connection.exec_driver_sql(f"PRAGMA {name} = {before}")
            self.connection.rollback()
        if self.transactional:
            begin(self.connection)

    def confirm(self) -> None:
        """Make sure, in the open transaction, that this process still holds the lock.

        :raises LeaseLost: it does not.
        :raises GiveWay: this migration has left it to others already.
        """
        if self.gave_way:
            raise GiveWay
        self._lock.confirm(self.connection)


def tried_again(database: Database, action: Callable[[], T], retries: int) -> T:
    """Do what leaves nothing behind when it fails, again and again while others are in its way."""

    def again(error: Exception) -> bool:
        # An index that could not be built concurrently stays, and is invalid.
        if not isinstance(error, sa.exc.DBAPIError) or "CONCURRENTLY" in (error.statement or "").upper():
            return False
        found = database.facts.says(error, "transient")
        if found:
            _logger.info("db-smart: tried again: %s", database.redact(error))
        return found

    return retry(action, retries, again)
