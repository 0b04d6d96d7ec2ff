"""How far a backfill is, as the table of the journal tells others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
    """

    migration: str
    done: int
    total: int
    rate: float

    @property
    def eta(self) -> float | None:
        """How long it will take, seconds; ``None`` where nothing can be said."""
        return round(max(0, self.total - self.done) / self.rate, 1) if self.rate else None

    def report(self) -> dict[str, Any]:
        """As ``status`` has it in JSON."""
        return {**asdict(self), "eta_s": self.eta}

    @staticmethod
    def of(report: dict[str, Any]) -> Progress:
        """What :meth:`report` gave."""
        return Progress(**{name: value for name, value in report.items() if name != "eta_s"})

    def __str__(self) -> str:
        text = f"{self.migration}: {self.done:,} of ~{self.total:,} rows"
        return text if self.eta is None else f"{text}, {self.rate:,.0f} rows/s, about {self.eta:,.0f} s left"


def read_progress(connection: sa.Connection, place: str | None = None, *, running: bool) -> Progress | None:
    """The backfill that is not finished; ``None`` where there is none. One query.

    :param place: see :class:`State`.
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
