"""The transactions in which runs are taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa

from ..dialects.base import facts_of
from ..schema.ddl import LockTables
from ..session.journal import Journal
from ..session.sql import render
from ..session.transaction import RunTransaction
from ..store.database import begin, commit, see_all_rows


class NoJournal(Journal):
    """Keeps nothing: each inverse looks first."""

    def store(self) -> None:
        """Forget the steps."""
        self._made.clear()


class UndoTransaction(RunTransaction):
    """The transaction of an undo.

    :ivar locked: whether tables of MariaDB are locked, so that no other can be asked, that of the lease neither.
    :ivar changed: whether it has sent a schema change, which the database has taken.
    """

    locked = False
    changed = False

    def send(self, change: sa.ClauseElement | str, more: str = "", *, connection: sa.Connection | None = None) -> None:
        """Send one schema change."""
        super().send(change, more, connection=connection)
        self.changed |= not isinstance(change, LockTables)

    def making(self, op: str, **inverse: Any) -> AbstractContextManager[None]:
        """Nothing takes an undo back but the migration itself."""
        return nullcontext()

    def _fence(self, statement: str) -> None:
        if not self.locked:
            super()._fence(statement)

    def at_home(self) -> AbstractContextManager[None]:
        """Have our tables be found, as they are."""
        return nullcontext()

    def all_rows(self) -> AbstractContextManager[None]:
        """Let no policy hide rows; none does in this transaction."""
        return nullcontext()

    def bounding(self) -> AbstractContextManager[None]:
        """Bound the wait for the lock of a table."""
        return self._lock_timeout.bounding()

    def settle(self) -> None:
        """Commit, as the lock of a table would."""
        self.confirm()
        commit(self.connection)
        begin(self.connection)


class WithinRevision:
    """The transaction of a ``downgrade()``, in the middle of which values are kept.

    :param at_home: has our tables be found, whatever search path ``env.py`` has set.
    """

    locked = False

    def __init__(self, connection: sa.Connection, at_home: Callable[[], AbstractContextManager[None]]) -> None:
        self.connection = connection
        self.facts = facts_of(connection.dialect.name)
        self.at_home = at_home

    def send(self, change: sa.ClauseElement) -> None:
        """Send a statement."""
        text = render(change, self.connection.dialect)
        self.connection.exec_driver_sql(text, execution_options={"no_parameters": True})

    @contextmanager
    def all_rows(self) -> Iterator[None]:
        """Let no policy hide rows that are counted and copied; what the revision itself sends is as it was."""
        connection = self.connection
        if self.facts.all_rows is None:
            yield
            return
        before = connection.exec_driver_sql("SELECT current_setting('row_security')").scalar_one()
        see_all_rows(connection)
        yield
        connection.exec_driver_sql(f"SET LOCAL row_security = {before}")

    def bounding(self) -> AbstractContextManager[None]:
        """The statement in the middle of which this is has its time-out already."""
        return nullcontext()

    def pragma(self, name: str, value: str) -> AbstractContextManager[None]:
        """Foreign keys are off in a revision."""
        return nullcontext()

    def settle(self) -> None:
        """The record of the statement has confirmed the lock, and what is open is committed with its steps."""
