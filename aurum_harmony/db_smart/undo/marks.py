"""What the undo of a run has written down of how far it is."""

from __future__ import annotations

import sqlalchemy as sa

from ..store.history import UNDO_BEGUN, undo_mark
from ..store.tables import progress

#: Before what tells of which values a table is the archive.
ARCHIVES = "archive:"


class Marks:
    """The marks of the undo of one run.

    :param number: of the run.
    """

    def __init__(self, connection: sa.Connection, number: int) -> None:
        self._connection = connection
        self._migration = undo_mark(number)
        self._mine = progress.c.migration == self._migration

    def get(self, step: str) -> str | None:
        """What was written down with a mark; ``None`` where it is not there."""
        query = sa.select(progress.c.detail).where(self._mine, progress.c.step == step)
        found: str | None = self._connection.scalar(query)
        return found

    def put(self, step: str, detail: str = "") -> bool:
        """Write down a mark.

        :returns: whether that was not written down before.
        """
        if self.get(step) is not None:
            return False
        values = {"migration": self._migration, "step": step, "detail": detail}
        self._connection.execute(progress.insert().values(**values, row_count=0, last_row_id=0))
        return True

    def remove(self, step: str) -> None:
        """Take a mark away."""
        self._connection.execute(progress.delete().where(self._mine, progress.c.step == step))

    def has_changes(self) -> bool:
        """Whether something of the run may have been taken back."""
        steps = self._connection.scalars(sa.select(progress.c.step).where(self._mine)).all()
        return not all(step == UNDO_BEGUN or step.startswith(ARCHIVES) for step in steps)
