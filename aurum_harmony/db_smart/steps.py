"""Steps: how a migration goes on after a kill where schema changes commit by themselves (MariaDB, MySQL).

There, the transaction of a migration ends at each schema change, so that a kill may leave its first half. Schema
operations look before they act; for all else, each statement that changes something is recorded, a change of data in
the very transaction that makes it, and a run that goes on passes by what is recorded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import sqlalchemy as sa

from .history import progress

_READS = ("SELECT", "SHOW", "PRAGMA", "EXPLAIN", "VALUES", "DESCRIBE", "DESC")
_CONTROL = ("SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT", "BEGIN", "START", "SET", "USE", "LOCK", "UNLOCK")


class _Done(NamedTuple):
    """What the driver said of a step when it was done."""

    rowcount: int
    lastrowid: int


class Steps:
    """The recorded steps of one migration, which is running.

    A step is known by its SQL and by the how-manieth run of that SQL it is; parameters do not count, as they may
    be a time or a random id. They are kept by the migration's name, so that they outlast the edit that mends it.

    :param connection: the connection of the migration's transaction.
    :param migration: its name.
    """

    def __init__(self, connection: sa.Connection, migration: str) -> None:
        self._connection = connection
        self._migration = migration
        self._counts: Counter[str] = Counter()
        rows = connection.execute(sa.select(progress).where(progress.c.migration == migration))
        self._done = {row.step: _Done(row.row_count, row.last_row_id) for row in rows}
        #: True while a step is being recorded: that is no statement of the migration.
        self.recording = False

    def clear(self) -> None:
        """Forget all steps, in the transaction that records the migration."""
        self._connection.execute(progress.delete().where(progress.c.migration == self._migration))

    def cursor(self, driver_cursor: Any) -> StepCursor:
        """A cursor that records what it does."""
        return StepCursor(self, driver_cursor)

    def next(self, statement: str) -> str | None:
        """The key of the step that a statement is; ``None`` when it changes nothing."""
        if reads(statement) or statement.lstrip().upper().startswith(_CONTROL):
            return None
        text = hashlib.sha256(statement.encode()).hexdigest()[:40]
        self._counts[text] += 1
        return f"{text}:{self._counts[text]}"

    def done(self, step: str) -> _Done | None:
        """What a step said when an earlier run did it."""
        return self._done.get(step)

    def record(self, step: str, rowcount: int, lastrowid: int | None) -> None:
        """Write a step down, in the transaction that is open."""
        self.recording = True
        try:
            values = {"migration": self._migration, "step": step, "row_count": rowcount, "last_row_id": lastrowid or 0}
            self._connection.execute(progress.insert(), values)
        finally:
            self.recording = False


class StepCursor:
    """A driver's cursor that passes by what an earlier run did, and answers as the driver did then."""

    def __init__(self, steps: Steps, cursor: Any) -> None:
        self._steps = steps
        self._cursor = cursor
        self._passed: _Done | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

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
        return None if self._passed else self._cursor.description

    def execute(self, statement: str, parameters: Any = None) -> Any:
        """Run a statement, or pass it by."""
        return self._run(self._cursor.execute, statement, parameters)

    def executemany(self, statement: str, parameters: Any) -> Any:
        """Run a statement for each set of parameters, as one step, or pass it by."""
        return self._run(self._cursor.executemany, statement, parameters)

    def _run(self, run: Any, statement: str, parameters: Any) -> Any:
        step = self._steps.next(statement)
        self._passed = None if step is None else self._steps.done(step)
        if self._passed is not None:
            return self._passed.rowcount
        result = run(statement, parameters)
        if step is not None:
            self._steps.record(step, self._cursor.rowcount, self._cursor.lastrowid)
        return result


def reads(statement: str) -> bool:
    """Whether a statement only reads."""
    return statement.lstrip(" \t\r\n(").upper().startswith(_READS)
