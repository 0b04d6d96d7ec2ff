"""How far a backfill is, as the table of the journal tells others."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from ..session import json_values
from ..store.history import within
from ..store.tables import progress


@dataclass(frozen=True)
class Progress:
    """How far a backfill is.

    :ivar done: rows.
    :ivar total: rows, estimated.
    :ivar rate: rows per second; 0 where it stands still.
    :ivar eta_s: how long it will take, seconds; ``None`` where nothing can be said.
    """

    migration: str
    done: int
    total: int
    rate: float
    eta_s: float | None = field(init=False)

    def __post_init__(self) -> None:
        left = round(max(0, self.total - self.done) / self.rate, 1) if self.rate else None
        object.__setattr__(self, "eta_s", left)

    def __str__(self) -> str:
        text = f"{self.migration}: {self.done:,} of ~{self.total:,} rows"
        return text if self.eta_s is None else f"{text}, {self.rate:,.0f} rows/s, about {self.eta_s:,.0f} s left"


def read_progress(connection: sa.Connection, place: str | None = None, *, running: bool) -> Progress | None:
    """The backfill that is not finished; ``None`` where there is none. One query.

    :param place: see :class:`~.store.history.State`.
    :param running: whether somebody is at it.
    """
    query = sa.select(progress.c.migration, progress.c.row_count, progress.c.detail)
    query = query.where(within(connection, progress, place))
    try:
        rows = connection.execute(query.where(progress.c.step.like("backfill:%"))).all()
    except sa.exc.DBAPIError:  # no such table, one of an earlier release, or no right to read it
        connection.rollback()
        return None
    for migration, done, text in rows:
        detail = json_values.loads(text)
        if not detail["finished"]:
            return Progress(migration, done, detail["total"], detail["rate"] if running else 0.0)
    return None
