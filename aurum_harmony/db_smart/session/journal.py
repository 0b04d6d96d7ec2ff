"""The statements that a migration has done, so that a later run of it repeats none of them.

A migration may be committed in parts: where the database commits at a schema change (MariaDB, MySQL), and where an
operation commits because its work must not share a transaction with other work (an index built while the table is in
use, a backfill). Schema operations look first and do only what is missing. Every other statement that changes
something is a *step*: it is recorded in the same transaction as its change, and the next run skips it
(:class:`StepCursor`, which :mod:`.rebind` puts in the place of the driver's cursor). A schema change in raw SQL that
commits by itself is recorded as *intended* before it and as done after it; where only the intent is found, the
definitions of the tables that it names tell whether it was made.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from ..dialects.base import facts_of
from ..errors import DbSmartError
from ..store.tables import progress
from . import json_values as codec
from .controls import without_comments

_READS = ("SELECT", "SHOW", "PRAGMA", "EXPLAIN", "VALUES", "DESCRIBE", "DESC")
CONTROL = ("SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT", "BEGIN", "START", "SET", "USE", "LOCK", "UNLOCK")
#: How much of what a statement returned is kept, characters.
_MAX_KEPT = 16_000
#: How much of that is in one row, all of it ASCII; MariaDB's ``TEXT`` holds 65,535 bytes.
_PIECE = 60_000
_PROMISE = "promise:"
#: How the key of a step begins that says what takes a schema change back.
_INVERSE = "undo:"
#: How much of a statement of a migration's own SQL is kept for whoever undoes it, characters; of how many; and how much
#: of it is looked at. Of more statements, only the first word is kept.
_OWN_TEXT, _OWN_NUMBER, OWN_LOOKED = 200, 50, 2000
#: The statements that change no schema, whose work stays when a run is taken back.
ROWS = (
    *("INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "WITH"),
    *("GRANT", "ANALYZE", "VACUUM", "OPTIMIZE", "REFRESH"),
)
#: The key of a statement, or of an operation, that an earlier try has done.
_OWN_STEP = re.compile(r"[0-9a-f]{40}:\d+")
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|REPLACE)\b", re.IGNORECASE)


class Done(NamedTuple):
    """What the driver said of a step when it was done.

    :ivar detail: JSON: the columns and rows that it returned; ``None`` where it returned none.
    """

    rowcount: int
    lastrowid: int
    detail: str | None


class Guard(Protocol):
    """Looks at what a migration's own SQL is about to do."""

    def check(self, statement: str, parameters: Any = None) -> None:
        """Look at a statement before it is sent; raise if it is not to be."""
        ...

    def passed(self, statement: str) -> None:
        """Take note of a statement that an earlier, interrupted run has done."""
        ...


class Journal:
    """The steps of one migration, which is running.

    A step is known by its SQL and by its number among the runs of that SQL; parameters do not count, because they may
    be a time or a random id. They are kept by the migration's name, so that they outlast the edit that fixes it.

    :param connection: the connection of the migration's transaction.
    :param migration: its name.
    :param at_once: whether each step is written down as it is made, because the database may commit behind our back;
        otherwise only at a checkpoint, because a migration without checkpoints needs no steps.
    :param begun: whether an earlier run may have left steps.
    """

    def __init__(self, connection: sa.Connection, migration: str, *, at_once: bool, begun: bool) -> None:
        self._connection = connection
        self.migration = migration
        self.at_once = at_once
        self.facts = facts_of(connection.dialect.name)
        self._begun = begun
        self._counts: Counter[str] = Counter()
        self._made: list[dict[str, Any]] = []
        self._done: dict[str, Done] = {}
        if begun:
            rows = connection.execute(sa.select(progress).where(progress.c.migration == migration))
            self._done = _joined({row.step: Done(row.row_count, row.last_row_id, row.detail) for row in rows})
        #: What takes back the schema changes of all tries, as the rows of their steps.
        self._inverses: list[dict[str, Any]] = []
        for step in sorted(step for step in self._done if step.startswith(_INVERSE)):
            done = self._done.pop(step)
            self._inverses.append(self._row(step, done.rowcount, done.detail))
        #: Which steps this try has asked for.
        self._met: set[str] = set()
        #: The statements of the migration's own SQL that change something, of this try, or passed by in it.
        self._own: dict[str, None] = {}
        #: How long the parts before this one took, which ended in a backfill, and since when this one runs, seconds.
        self._before = max((done.lastrowid for done in self.steps("backfill:")), default=0) / 1000
        self._since = time.perf_counter()
        #: True while what is sent is no step: the record of one, or a batch, which has a cursor instead.
        self.paused = False
        #: Looks at each statement of the migration's own SQL; ``None`` where nobody does.
        self.guard: Guard | None = None
        #: True while the guard asks the database, in the middle of sending the statement that it looks at.
        self.guarding = False

    def look(self, statement: str, parameters: Any = None, *, passed: bool = False) -> None:
        """Let the guard look at a statement of the migration's own SQL.

        :param parameters: as the driver takes them.
        :param passed: whether an earlier, interrupted run has done it.
        """
        if self.guard is None or self.paused or self.guarding:
            return
        if not reads(statement) and not _controls(statement):
            self.keep_own(without_comments(statement[:OWN_LOOKED]))
        self.guarding = True
        try:
            if passed:
                self.guard.passed(statement)
            else:
                self.guard.check(statement, parameters)
        finally:
            self.guarding = False

    def keep_own(self, text: str) -> None:
        """Note a statement of a migration's own SQL that changes something, without comments."""
        text = " ".join(text.split())[:_OWN_TEXT]
        self._own[text if len(self._own) < _OWN_NUMBER else text.partition(" ")[0]] = None

    def clear(self, connection: sa.Connection) -> None:
        """Forget all steps, in the transaction that records the migration."""
        if self._begun:
            connection.execute(progress.delete().where(progress.c.migration == self.migration))

    def store(self) -> None:
        """Write down the steps that were made and not written down yet, in the transaction that is open."""
        if self._made:
            with self.pause():
                self._connection.execute(progress.insert(), self._made)
            self._made.clear()
            self._begun = True

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing meanwhile."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    @property
    def kept(self) -> int:
        """How many steps an earlier run has done."""
        return sum(not step.startswith(_PROMISE) for step in self._done)

    @property
    def made(self) -> int:
        """How many steps are not written down yet."""
        return len(self._made)

    def take_back(self, made: int) -> None:
        """Forget the steps after the first ``made``: a rollback has undone them."""
        gone = [id(row) for row in self._made[made:]]
        self._inverses = [row for row in self._inverses if id(row) not in gone]
        del self._made[made:]

    @contextmanager
    def making(self, inverse: dict[str, Any]) -> Iterator[None]:
        """Make a schema change that was found missing, and keep what takes it back.

        That is written down before the change, which may commit it, and marked when the change is made. Without the
        mark, a killed run may or may not have made what the next one finds.
        """
        text = json.dumps(inverse)
        if len(text) > _PIECE:
            text = json.dumps({"op": "cannot", "what": "a change", "why": "what was there before is too long"})
        row = next((row for row in self._inverses if row["detail"] == text), None)
        if row is None:
            row = self._row(f"{_INVERSE}{len(self._inverses):06}", 0, text)
            self._inverses.append(row)
            self._made.append(row)
            if self.at_once:
                self.store()
        yield
        if row["row_count"]:
            return
        row["row_count"] = 1
        if not any(one is row for one in self._made):
            mine = sa.and_(progress.c.migration == self.migration, progress.c.step == row["step"])
            with self.pause():
                self._connection.execute(progress.update().where(mine).values(row_count=1))

    def inverses(self) -> tuple[list[dict[str, Any]], list[str]]:
        """What takes back the schema changes of all tries, in their order; and the migration's own SQL besides.

        ``sure`` is false of what this migration has perhaps not made.
        """
        found = [{**json.loads(row["detail"]), "sure": bool(row["row_count"])} for row in self._inverses]
        if any(_OWN_STEP.fullmatch(step) for step in self._done.keys() - self._met):
            found.append({"op": "stays", "what": "what an earlier try did that an edit has taken out", "sure": True})
        return found, list(self._own)

    def _row(self, step: str, row_count: int, detail: str | None) -> dict[str, Any]:
        values = {"migration": self.migration, "step": step, "row_count": row_count, "last_row_id": 0}
        return {**values, "detail": detail}

    def promise(self, what: str) -> None:
        """Record that something begins that takes several transactions, before or with the first of them."""
        step = _promise(what)
        if step not in self._done:
            self._done[step] = Done(0, 0, None)
            self.record(step, 0, None, None)

    def promised(self, what: str) -> bool:
        """Whether this run or an earlier one has begun it, so that it is to be finished."""
        return _promise(what) in self._done

    def cursor(self, driver_cursor: Any) -> StepCursor:
        """A cursor that records what it does."""
        return StepCursor(self, driver_cursor)

    def next(self, statement: str) -> str | None:
        """The key of the step that a statement is; ``None`` when it changes nothing or is no step."""
        if self.paused or reads(statement) or _controls(statement):
            return None
        return self.number(statement)

    def number(self, text: str) -> str:
        """A key made of a text and of its number among equal texts."""
        digest = hashlib.sha256(text.encode()).hexdigest()[:40]
        self._counts[digest] += 1
        return f"{digest}:{self._counts[digest]}"

    def steps(self, prefix: str) -> list[Done]:
        """The steps of an earlier run whose keys begin with something."""
        return [done for step, done in self._done.items() if step.startswith(prefix)]

    @property
    def seconds(self) -> float:
        """How long the migration has run, with the parts of it that ended in a backfill, also in other processes."""
        return self._before + time.perf_counter() - self._since

    def done(self, step: str) -> Done | None:
        """What a step said when an earlier run did it."""
        self._met.add(step)
        return self._done.get(step)

    def save(self, step: str, row_count: int, detail: str) -> None:
        """Write down how far a backfill is, in the transaction that is open.

        It inserts no row of which an id would be kept: so there stands how long the migration has run, milliseconds.
        """
        values = {"row_count": row_count, "last_row_id": round(self.seconds * 1000), "detail": detail}
        with self.pause():
            if step in self._done:
                mine = sa.and_(progress.c.migration == self.migration, progress.c.step == step)
                self._connection.execute(progress.update().where(mine).values(values))
            else:
                row = {"migration": self.migration, "step": step, **values}
                self._connection.execute(progress.insert(), row)
        self._done[step] = Done(row_count, 0, detail)
        self._begun = True

    def record(self, step: str, rowcount: int, lastrowid: int | None, detail: str | None) -> None:
        """Note a step, and write it down where that cannot wait."""
        values = {"migration": self.migration, "step": step, "row_count": rowcount, "last_row_id": lastrowid or 0}
        self._made.append({**values, "detail": detail if detail is None else detail[:_PIECE]})
        for number, start in enumerate(range(_PIECE, len(detail or ""), _PIECE), 1):
            piece = (detail or "")[start : start + _PIECE]
            self._made.append({**values, "step": f"{step}/{number}", "detail": piece})
        if self.at_once:
            self.store()

    def intent(self, step: str) -> Done | None:
        """What an earlier run has written before a schema change."""
        return self.done(f"{step}?")

    def intend(self, step: str, statement: str) -> None:
        """Write down that a schema change is about to be made; it commits that before it begins."""
        if self.intent(step) is None:
            with self.pause():
                image = self.facts.image(self._connection, statement)
            values = {"migration": self.migration, "row_count": 0, "last_row_id": 0}
            self._made.append({**values, "step": f"{step}?", "detail": image})
            self.store()

    def give_up(self, step: str, statement: str) -> None:
        """The database has refused a schema change: the next run makes it as if for the first time."""
        with self.pause(), suppress(sa.exc.DBAPIError):
            mine = sa.and_(progress.c.migration == self.migration, progress.c.step == f"{step}?")
            self._connection.execute(progress.delete().where(mine))
            driver: Any = self._connection.connection.dbapi_connection
            driver.commit()

    def happened(self, intent: Done, statement: str) -> bool:
        """Whether a schema change was made of which only the intent was found."""
        with self.pause():
            return self.facts.happened(self._connection, statement, intent.detail or "")


class StepCursor:
    """A driver's cursor that skips what an earlier run did, and answers as the driver did then."""

    def __init__(self, journal: Journal, cursor: Any) -> None:
        self._journal = journal
        self._cursor = cursor
        self._passed: Done | None = None
        #: What the statement returned, where it was kept; ``None`` where the driver has it.
        self._rows: list[Any] | None = None
        self._description: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    @property
    def rowcount(self) -> int:
        """As :pep:`249` has it."""
        return int((self._passed or self._cursor).rowcount)

    @property
    def lastrowid(self) -> Any:
        """As :pep:`249` has it."""
        return (self._passed or self._cursor).lastrowid

    @property
    def description(self) -> Any:
        """As :pep:`249` has it."""
        return self._cursor.description if self._passed is None and self._rows is None else self._description

    def fetchone(self) -> Any:
        """As :pep:`249` has it."""
        if self._rows is None:
            return self._cursor.fetchone()
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int | None = None) -> Any:
        """As :pep:`249` has it."""
        if self._rows is None:
            return self._cursor.fetchmany() if size is None else self._cursor.fetchmany(size)
        count = size or self._cursor.arraysize
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows

    def fetchall(self) -> Any:
        """As :pep:`249` has it."""
        if self._rows is None:
            return self._cursor.fetchall()
        rows, self._rows = self._rows, []
        return rows

    def execute(self, statement: str, parameters: Any = None) -> Any:
        """Run a statement, or skip it."""
        return self._run(self._cursor.execute, statement, parameters)

    def executemany(self, statement: str, parameters: Any) -> Any:
        """Run a statement for each set of parameters, as one step, or skip it."""
        return self._run(self._cursor.executemany, statement, parameters)

    def _run(self, run: Any, statement: str, parameters: Any) -> Any:
        step = self._journal.next(statement)
        self._passed = None if step is None else self._journal.done(step)
        self._rows = self._description = None
        many = run == self._cursor.executemany
        self._journal.look(statement, None if many else parameters, passed=self._passed is not None)
        if self._passed is not None:
            return self._replay(self._passed)

        def send() -> Any:
            return run(statement) if parameters is None else run(statement, parameters)

        if step is None:
            return send()
        return (
            self._change(step, statement, send) if self._journal.facts.commits(statement) else self._record(step, send)
        )

    def _replay(self, done: Done) -> Any:
        """Answer as the driver did when a step was done."""
        self._passed = done
        if done.detail is not None:
            self._description, rows = codec.loads(done.detail)
            if rows is None:
                raise DbSmartError(
                    "What a statement returned before this migration was interrupted was not saved, because of its "
                    "types or its size, and cannot be given again. Query it by a SELECT instead of RETURNING"
                )
            self._rows = [tuple(row) for row in rows]
        return done.rowcount

    def _change(self, step: str, statement: str, send: Callable[[], Any]) -> Any:
        """Make a schema change that commits by itself."""
        journal = self._journal
        intent = journal.intent(step)
        if intent is not None and journal.happened(intent, statement):
            journal.record(step, 0, 0, None)
            return self._replay(Done(0, 0, None))
        journal.intend(step, statement)
        try:
            return self._record(step, send)
        except Exception as error:
            if intent is not None and journal.facts.says(error, "done"):
                journal.record(step, 0, 0, None)
                return self._replay(Done(0, 0, None))
            journal.give_up(step, statement)
            raise

    def _record(self, step: str, send: Callable[[], Any]) -> Any:
        """Do a step, and note what the driver said of it."""
        result = send()
        last = getattr(self._cursor, "lastrowid", None)  # psycopg has none
        rows = self._keep_rows()
        self._journal.record(step, self._cursor.rowcount, last, rows)
        return result

    def _keep_rows(self) -> str | None:
        """Take what a statement returned from the driver (``RETURNING``), to be given now and kept for a later run."""
        if self._cursor.description is None:
            return None
        self._description = [tuple(column)[:7] for column in self._cursor.description]
        self._rows = list(self._cursor.fetchall())
        names = self._kept_names()
        try:
            kept = codec.dumps([names, self._rows])
        except TypeError:
            kept = None
        return codec.dumps([names, None]) if kept is None or len(kept) > _MAX_KEPT else kept

    def _kept_names(self) -> list[Any]:
        """The description of what was returned, as far as JSON has a form for it."""
        return [
            [column[0], column[1] if isinstance(column[1], int) else None] + [None] * 5 for column in self._description
        ]


def _controls(statement: str) -> bool:
    """Whether a statement is about transactions and sessions, and changes nothing itself."""
    return statement.lstrip().upper().startswith(CONTROL)


def reads(statement: str) -> bool:
    """Whether a statement only reads."""
    text = without_comments(statement).lstrip(" \t\r\n(").upper()
    return text.startswith(_READS) or (text.startswith("WITH") and not _WRITES.search(text))


def _joined(rows: dict[str, Done]) -> dict[str, Done]:
    """The steps, each with all pieces of what it returned."""
    steps = {step: done for step, done in rows.items() if "/" not in step}
    for step, done in steps.items():
        pieces = [done.detail or ""]
        while (more := rows.get(f"{step}/{len(pieces)}")) is not None:
            pieces.append(more.detail or "")
        if len(pieces) > 1:
            steps[step] = done._replace(detail="".join(pieces))
    return steps


def _promise(what: str) -> str:
    return f"{_PROMISE}{hashlib.sha256(what.encode()).hexdigest()[:40]}"
