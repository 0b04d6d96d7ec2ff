"""What an earlier run of a revision has done, answered from the journal and not done again.

A revision of Alembic may be committed in parts: where the database commits at a schema change (MariaDB, MySQL), at an
``autocommit_block()``, and where its code commits. Its code looks at nothing before it acts, so a run after a kill is a
replay: up to the last commit every statement gets the answer that it got before, reads too, as rows that were read
before a column was dropped are written after it. From there on the statements are sent.

A change of rows is recorded in its own transaction. A schema change that commits by itself is recorded as *intended*
before it, with what the catalog has of all that it names, and as done after it. Where only the intent is found, the
catalog tells whether it has happened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from ..dialects.base import autocommits, facts_of
from ..store.tables import progress, state
from . import json_values as codec
from .controls import controls_transaction, split, without_comments
from .journal import CONTROL, OWN_LOOKED, ROWS, Done, Journal, StepCursor, reads
from .lock_timeout import gets_transaction

#: How many rows are kept that were read since the last commit.
_MOST_ROWS = 10_000
#: How much one of those queries may have returned, characters of JSON.
_MOST_TEXT = 4_000_000
#: What is the session's own, and therefore sent in each run.
_OF_SESSION = re.compile(
    r"(PRAGMA|ATTACH|DETACH)\b|.*\b(set_config|pg_(try_)?advisory\w*|get_lock|release_lock)\s*\(",
    re.IGNORECASE | re.DOTALL,
)
_COMPOUND = re.compile(r"BEGIN\s+NOT\b", re.IGNORECASE)
_NAME = r"(?:IF\s+(?:NOT\s+)?EXISTS\s+)?[\"`]?(?P<name>\w+)"
_TEMPORARY = re.compile(rf"CREATE\s+(?:OR\s+REPLACE\s+)?(?:LOCAL\s+)?TEMP(?:ORARY)?\s+TABLE\s+{_NAME}", re.IGNORECASE)
#: What the code of a revision makes anew in each run, where it stands in the SQL and is no parameter: identifiers and
#: tokens, times, seconds since 1970, random fractions, hashes of passwords with their salt.
_VOLATILE = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?=[a-f]*\d)[0-9a-f]{16,}\b"
    r"|\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?|\b1\d{9}(?:\d{3}|\d{6}|\d{9}|\.\d+)?\b"
    r"|\b0\.\d{10,}|(?:pbkdf2:|scrypt:|\$argon2\w*\$|\$2[abxy]?\$)[^'\"]*",
    re.IGNORECASE,
)
#: How Alembic calls the table that takes the place of another one, whose rows are copied into it.
_COPIED = "_alembic_tmp_"
_COPIES_IN = re.compile(r"\bFROM\s+STDIN\b", re.IGNORECASE)
#: What a statement changes, at its beginning.
_CHANGED = re.compile(
    r"(?:INSERT\s+(?:IGNORE\s+)?INTO|REPLACE\s+INTO|UPDATE|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?|ALTER\s+TABLE"
    rf"|DROP\s+(?:TEMPORARY\s+)?TABLE)\s+{_NAME}",
    re.IGNORECASE,
)


class RevisionJournal(Journal):
    """The statements of one revision, which is running; as :class:`~.journal.Journal` otherwise.

    :param revision: its name.
    :param confirm: makes sure that the lock is still held; called in each transaction before it is committed.
    :param at_home: has our tables be found meanwhile, whatever search path the revision has set.
    """

    def __init__(
        self,
        connection: sa.Connection,
        revision: str,
        confirm: Callable[[sa.Connection], object],
        at_home: Callable[[sa.Connection], AbstractContextManager[Any]] = nullcontext,
        *,
        begun: bool,
    ) -> None:
        transactional_ddl = facts_of(connection.dialect.name).transactional_ddl
        super().__init__(connection, revision, at_once=not transactional_ddl, begun=begun)
        self._confirm = confirm
        self._at_home = at_home
        self._read: dict[str, list[Any]] = {}
        #: What was written down with the last intent of a schema change.
        self._read_before: list[str] = []
        self._temporary: set[str] = set()
        self._driver: Any = None
        self._ending = False
        #: Whether it has sent what changes the schema.
        self.changes_schema = False
        #: Whether a part of the revision was committed, or may have been.
        self.committed = self.at_once or begun

    @property
    def autocommit(self) -> bool:
        """Whether each statement commits by itself, as in an ``autocommit_block()``."""
        return autocommits(self._connection)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Put this between the connection and its driver."""
        connection: Any = self._connection
        proxy = connection.connection
        self._driver = proxy.dbapi_connection
        proxy.dbapi_connection = recorded = RecordedConnection(self._driver, self)
        events = _events_of(connection)
        before, events.journal = events.journal, self
        try:
            yield
        finally:
            events.journal = before
            if proxy.dbapi_connection is recorded:
                proxy.dbapi_connection = self._driver

    def take_over(self) -> None:
        """Have SQLite begin a transaction where SQLAlchemy takes one for begun."""
        if not self.facts.server and not self.autocommit and not self._driver.in_transaction:
            self._driver.execute("BEGIN IMMEDIATE")

    def cut(self) -> None:
        """Write down all that was done, in the transaction that is about to be committed."""
        self.committed = True
        self._store_reads()
        self.store()
        self.confirm()

    def cut_open(self) -> None:
        """As :meth:`cut`, where something was done since the last one."""
        if not self.paused and (self._made or self._read):
            self.cut()

    def store(self) -> None:
        """Write down the steps that were made and not written down yet, in the transaction that is open."""
        if self._made:
            with self.pause(), self._at_home(self._connection):
                super().store()

    def recording_cursor(self, driver_cursor: Any, streams: bool) -> StepCursor:
        """A cursor that replays, in the place of the driver's.

        :param streams: whether the driver gives the rows one by one.
        """
        return RevisionCursor(self, driver_cursor, streams=streams)

    def cursor(self, driver_cursor: Any) -> StepCursor:
        """A cursor that replays; the one of :class:`RecordedConnection` does."""
        assert isinstance(driver_cursor, StepCursor)
        return driver_cursor

    def confirm(self) -> None:
        """Make sure that this process still holds the lock.

        :raises LeaseLost: it does not.
        """
        with self.pause(), self._at_home(self._connection):
            self._confirm(self._connection)

    def next(self, statement: str, name: str | None = None) -> str | None:
        """The key of the step that a statement is; ``None`` for what is sent in each run.

        :param name: what it is known by, where that is not its text.
        """
        text = without_comments(statement)
        if self.paused or (text.upper().startswith(CONTROL) and not _COMPOUND.match(text)):
            return None
        if _OF_SESSION.match(text) or self._is_temporary(text):
            return None
        return self.number(_VOLATILE.sub("?", name or statement))

    def meet(self, statement: str) -> None:
        """Take note of a statement that changes something, for whoever takes the revision back."""
        text = without_comments(statement[:OWN_LOOKED])
        if not text.upper().startswith(ROWS):
            self.changes_schema = True
        elif _COPIED not in text:
            self.keep_own(text)

    def _is_temporary(self, text: str) -> bool:
        """Whether a statement makes or changes a temporary table, which ends with its session."""
        made = _TEMPORARY.match(text)
        if made is not None:
            self._temporary.add(made["name"].lower())
            return True
        changed = _CHANGED.match(text) if self._temporary else None
        return changed is not None and changed["name"].lower() in self._temporary

    def record(self, step: str, rowcount: int, lastrowid: int | None, detail: str | None) -> None:
        """Note a step, and write it down where that cannot wait."""
        super().record(step, rowcount, lastrowid, detail)
        if self.autocommit:
            self.committed = True
            self.store()

    def keep(self, step: str, description: list[Any], rows: list[Any]) -> None:
        """Remember what was read, until the next commit."""
        self._read[step] = [description, rows]

    def room(self) -> int:
        """How many more rows are kept."""
        return _MOST_ROWS - sum(len(rows) for _, rows in self._read.values())

    def _store_reads(self) -> None:
        for step, kept in self._read.items():
            with suppress(TypeError):  # of a type that JSON has no form for: it is read again
                text = codec.dumps(kept)
                if len(text) <= _MOST_TEXT:
                    super().record(step, 0, 0, text)
        self._read.clear()

    def intend(self, step: str, statement: str) -> None:
        """Write down that a schema change is about to be made, and what was read before it."""
        self.committed = True
        intent = self.intent(step)
        if intent is None:
            self._read_before = list(self._read)
            self._store_reads()
        super().intend(step, statement)
        self.confirm()
        self.clear_way(statement, None if intent is None else intent.detail)

    def give_up(self, step: str, statement: str) -> None:
        """The database has refused a schema change: what was read before it is read again by the next run."""
        with self.pause(), suppress(sa.exc.DBAPIError), self._at_home(self._connection):
            for read in self._read_before:
                pieces = sa.or_(progress.c.step == read, progress.c.step.startswith(f"{read}/"))
                mine = sa.and_(progress.c.migration == self.migration, pieces)
                self._connection.execute(progress.delete().where(mine))
        if not self.facts.chooses_name(statement):
            with self._at_home(self._connection):
                super().give_up(step, statement)

    def clear_way(self, statement: str, image: str | None) -> None:
        """See to what a schema change outside of a transaction has left behind when it failed."""
        with self.pause():
            self.facts.clear_way(self._connection, statement, image)

    def driver_cursor(self) -> Any:
        """A cursor past the journal and past all listeners."""
        return self._driver.cursor()

    def send(self, statement: str) -> None:
        """Send a statement past the journal and past all listeners."""
        cursor = self.driver_cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    @contextmanager
    def transaction(self, statement: str) -> Iterator[None]:
        """A transaction for one statement and its record, where each commits by itself."""
        if (self.facts.bounds_each_change and gets_transaction(statement)) or getattr(
            self._driver, "in_transaction", False
        ) is True:
            yield  # it has one, of its lock time-out or of the revision itself
            return
        self.send(self.facts.begin_now)
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.send("ROLLBACK")
            raise
        self.send("COMMIT")

    def begin_end(self) -> None:
        """Have what ends the revision, its rows of the version table and of the history, be one transaction.

        Where each statement commits by itself; :meth:`end` ends it.
        """
        if self.autocommit and getattr(self._driver, "in_transaction", False) is not True:
            self.send(self.facts.begin_now)
            self._ending = True

    def end(self) -> None:
        """Commit what :meth:`begin_end` has begun."""
        if self._ending:
            self.send("COMMIT")

    def control(self, statement: str, send: Callable[[], Any]) -> Any:
        """Send what begins or ends a transaction, as the raw SQL of a revision may."""
        if self.paused or self.autocommit or not self._connection.in_transaction():  # SQLAlchemy itself sends it
            return send()
        if not controls_transaction(statement, self.facts.name):
            return send()
        word = without_comments(statement)[:8].upper()
        if not word.startswith(("ROLLBACK", "ABORT")):
            self.cut()
        if self.facts.server:
            return send()
        if word.startswith("BEGIN"):  # it is in one
            return None
        result = send()
        self.send("BEGIN IMMEDIATE")
        return result


class _Events:
    """Tells the journal of the revision that runs, if one does, that its connection begins or commits."""

    journal: RevisionJournal | None = None

    def commit(self, _: sa.Connection) -> None:
        if self.journal is not None:
            self.journal.cut()

    def begin(self, _: sa.Connection) -> None:
        if self.journal is not None:
            self.journal.take_over()


#: They stay as long as their connection, because to listen and to stop for each revision takes longer than a statement.
_events: WeakKeyDictionary[sa.Connection, _Events] = WeakKeyDictionary()


def _events_of(connection: sa.Connection) -> _Events:
    found = _events.get(connection)
    if found is None:
        found = _events[connection] = _Events()
        sa.event.listen(connection, "commit", found.commit)
        sa.event.listen(connection, "begin", found.begin)
    return found


class RevisionCursor(StepCursor):
    """A driver's cursor that replays what an earlier run did."""

    _journal: RevisionJournal

    def __init__(self, journal: RevisionJournal, cursor: Any, *, streams: bool = False) -> None:
        super().__init__(journal, cursor)
        self._streams = streams
        #: Whether the driver has more than was taken from it.
        self._more = False

    def _let_go(self) -> None:
        """Let the driver give the rows itself, when those that were taken from it are used up."""
        if self._more and not self._rows:
            self._rows, self._more = None, False

    def fetchone(self) -> Any:
        """As :pep:`249` has it."""
        self._let_go()
        return super().fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        """As :pep:`249` has it."""
        self._let_go()
        return super().fetchmany(size)

    def fetchall(self) -> Any:
        """As :pep:`249` has it."""
        rows = list(super().fetchall())
        return rows + list(self._cursor.fetchall()) if self._more else rows

    def execute(self, statement: str, parameters: Any = None) -> Any:
        """Run a statement, or skip it; several in one string, where schema changes commit, one after the other."""
        journal = self._journal
        parts = [] if journal.paused or not journal.at_once else split(statement, journal.facts.name)
        if len(parts) < 2:
            return super().execute(statement, parameters)
        if parameters:
            parts = split(self._cursor.mogrify(statement, parameters), journal.facts.name)
            parameters = None
        result = None
        for number, part in enumerate(parts):
            result = self._run(self._cursor.execute, part, parameters, f"{statement}#{number}")
        return result

    def _run(self, run: Any, statement: str, parameters: Any, name: str | None = None) -> Any:
        journal = self._journal
        self._passed = self._rows = self._description = None
        self._more = False
        if not journal.paused:
            statement = journal.facts.locking_ours(statement, (progress.name, state.name))

        def send() -> Any:
            return run(statement) if parameters is None else run(statement, parameters)

        variables = [] if journal.paused else journal.facts.variables(statement)
        if variables:
            return self._assign(variables, journal.number(name or statement), send)
        step = journal.next(statement, name)
        if step is None:
            return journal.control(statement, send)
        if not reads(statement):
            journal.meet(statement)
        done = journal.done(step)
        if done is not None:
            return self._replay(done)
        if reads(statement):
            result = send()
            if self._cursor.description is None and journal.facts.server and not journal.at_once:
                journal.record(step, self._cursor.rowcount, None, None)  # SELECT … INTO makes a table
                return result
            self._keep_read(step)
            return result
        if journal.facts.commits(statement) or (journal.autocommit and journal.facts.runs_alone(statement)):
            return self._change(step, statement, send)
        if not journal.autocommit:
            return self._record(step, send)
        with journal.transaction(statement):
            result = self._record(step, send)
            journal.confirm()
        return result

    def _replay(self, done: Done) -> Any:
        """As :class:`~.journal.StepCursor`; what the session knows of an insert, it knows again."""
        again = self._journal.facts.set_last_id(done.lastrowid) if done.lastrowid else None
        if again is not None:
            self._journal.send(again)
        return super()._replay(done)

    def _assign(self, variables: list[str], step: str, send: Callable[[], Any]) -> Any:
        """Give values to variables of the session; a later run, in another session, gives them the same ones."""
        journal = self._journal
        done = journal.done(step)
        cursor = journal.driver_cursor()
        try:
            if done is not None and done.detail is not None:
                _, [values] = codec.loads(done.detail)
                cursor.execute(f"SET {', '.join(f'@{name} = %s' for name in variables)}", values)
                return 0
            result = send()
            cursor.execute(f"SELECT {', '.join(f'@{name}' for name in variables)}")
            journal.keep(step, [], [list(cursor.fetchone())])
            return result
        finally:
            cursor.close()

    @contextmanager
    def copy(self, statement: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        """``COPY`` of psycopg: copy rows, or skip them."""
        text = statement if isinstance(statement, str) else repr(statement)
        step = self._journal.next(text) if _COPIES_IN.search(text) else None
        if step is not None and self._journal.done(step) is not None:
            yield _Skipped()
            return
        with self._cursor.copy(statement, *arguments, **options) as copy:
            yield copy
        if step is not None:
            self._journal.record(step, self._cursor.rowcount, None, None)

    def copy_expert(self, sql: Any, file: Any, *arguments: Any, **options: Any) -> Any:
        """``COPY`` of psycopg2."""
        if not _COPIES_IN.search(str(sql)):
            return self._cursor.copy_expert(sql, file, *arguments, **options)
        return self._run(lambda _: self._cursor.copy_expert(sql, file, *arguments, **options), str(sql), None)

    def copy_from(self, file: Any, table: str, *arguments: Any, **options: Any) -> Any:
        """``COPY`` of psycopg2, into a table."""
        return self._run(
            lambda _: self._cursor.copy_from(file, table, *arguments, **options), f"COPY {table} FROM STDIN", None
        )

    def callproc(self, name: str, arguments: Any = ()) -> Any:
        """Call a procedure, or skip it."""
        self._run(lambda _: self._cursor.callproc(name, arguments), f"CALL {name}", None)
        return arguments

    def executescript(self, script: str) -> Any:
        """Run the statements of a script one after the other, in the transaction; SQLite would commit it before."""
        from sqlite3 import complete_statement

        part = ""
        for piece in script.split(";"):
            part += f"{piece};"
            if complete_statement(part):
                self._run(self._cursor.execute, part, None)
                part = ""
        if without_comments(part.rstrip(";")):
            self._run(self._cursor.execute, part.rstrip(";"), None)
        return self

    def _keep_read(self, step: str) -> None:
        """Remember what was read, unless it is too much; the rest is read from the driver."""
        cursor, room = self._cursor, self._journal.room()
        if cursor.description is None or (cursor.rowcount > room and not self._streams):
            return
        self._description = [tuple(column)[:7] for column in cursor.description]
        self._rows = list(cursor.fetchmany(room + 1) if self._streams else cursor.fetchall())
        self._more = self._streams and len(self._rows) > room
        if len(self._rows) <= room:
            self._journal.keep(step, self._kept_names(), list(self._rows))


class _Skipped:
    """A ``COPY`` whose rows an earlier run has copied."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


class RecordedConnection:
    """A driver's connection whose cursors replay; everything else is the driver's."""

    def __init__(self, driver: Any, journal: RevisionJournal) -> None:
        self.__dict__.update(driver=driver, journal=journal)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """A cursor that replays; where schema changes do not commit, one that streams is the driver's own."""
        cursor = self.driver.cursor(*arguments, **options)
        streams = bool(arguments) or options.get("buffered") is False
        if streams and not self.journal.at_once:
            return cursor
        return self.journal.recording_cursor(cursor, streams)

    def executescript(self, script: str) -> Any:
        """As the cursor does it."""
        return self.cursor().executescript(script)

    def commit(self) -> None:
        """Commit a part of the revision that is ended past SQLAlchemy, or what was cut before."""
        self.journal.cut_open()
        self.driver.commit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # After a block in autocommit SQLAlchemy would have Python begin and end SQLite's transactions again.
        if name != "isolation_level" or self.journal.facts.server:
            setattr(self.driver, name, value)
