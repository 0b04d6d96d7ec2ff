"""How far a backfill is, as the table of the journal tells others, or one long statement, as the lock's holder does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ..session import json_values
from ..store.history import Doing, within
from ..store.tables import progress


@dataclass(frozen=True)
class Progress:
    """How far a backfill is, or one long statement.

    :ivar done: rows; of a statement, as many of its unit.
    :ivar total: likewise, estimated; of a statement 0 where the server does not say.
    :ivar rate: of these per second; 0 where it stands still.
    :ivar unit: ``"rows"`` of a backfill; of a statement what the server counts: ``"blocks"``, ``"rows"``, ``"bytes"``,
        ``"transactions"`` that it waits for, or ``"%"``.
    :ivar phase: what the server is at with the statement, of which the others are; empty for a backfill.
    :ivar eta_s: how long it will take, seconds; ``None`` where nothing can be said.
    """

    migration: str
    done: int
    total: int
    rate: float
    unit: str = "rows"
    phase: str = ""
    eta_s: float | None = field(init=False)

    def __post_init__(self) -> None:
        left = round(max(0, self.total - self.done) / self.rate, 1) if self.rate else None
        object.__setattr__(self, "eta_s", left)

    def __str__(self) -> str:
        return f"{self.migration}: {self.rows}{', ' if self.left else ''}{self.left}"

    @property
    def rows(self) -> str:
        """How many are done, and how quickly."""
        if self.phase and not self.total:
            return self.phase
        text = f"{self.done:,} of {'' if self.phase else '~'}{self.total:,} {self.unit}"
        text = f"{self.done} %" if self.unit == "%" else text
        text = f"{self.phase}: {text}" if self.phase else text
        return f"{text}, {self.rate:,.0f} {self.unit}/s" if self.rate and self.unit != "%" else text

    @property
    def left(self) -> str:
        """How long it will take, in words; empty where nothing can be said."""
        if self.eta_s is None:
            return ""
        return f"{duration(self.eta_s if self.eta_s < 1 else round(self.eta_s))} left"

    @classmethod
    def of_statement(cls, migration: str | None, doing: Doing | None) -> Progress | None:
        """How far a migration is with one long statement, where it is with one."""
        if doing is None or not migration:
            return None
        return cls(migration, doing.done, doing.total, doing.rate, doing.unit, doing.phase)


def duration(seconds: float) -> str:
    """About how long something takes, in words."""
    if seconds < 0.05:
        return "a moment"
    if seconds < 90:
        return f"about {seconds:.1f} s" if seconds < 10 and seconds % 1 else f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min"
    hours = round(seconds / 3600)
    return f"about {hours} h" if hours < 48 else f"about {round(hours / 24)} days"


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
    return unfinished(rows, running=running)


def unfinished(backfills: Iterable[Sequence[Any]], *, running: bool) -> Progress | None:
    """The one of several backfills that is not finished; ``None`` where all are.

    :param backfills: of each the migration, the rows, and the JSON of the rest.
    :param running: whether somebody is at it.
    """
    for migration, done, text in backfills:
        detail = json_values.loads(text)
        if not detail["finished"]:
            return Progress(migration, done, detail["total"], detail["rate"] if running else 0.0)
    return None
