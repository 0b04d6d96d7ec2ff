"""What backfills change in a table ``items``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness.databases import engine_of

PLUS_ONE: dict[str, Any] = {"n": sa.column("n") + 1}


def numbers(url: URL | str) -> list[tuple[int, int]]:
    """How many rows have which number."""
    with engine_of(url).connect() as connection:
        query = sa.text("SELECT n, count(*) FROM items GROUP BY n ORDER BY n")
        return [(n, count) for n, count in connection.execute(query)]


@contextmanager
def small_batches(monkeypatch: pytest.MonkeyPatch, size: int = 250) -> Iterator[None]:
    """Batches of at most this size, whatever time they take."""
    with monkeypatch.context() as patch:
        for name in ("_FIRST", "_MOST", "_MOST_HANDED"):
            patch.setattr(f"aurum_harmony.db_smart.schema.backfill.{name}", size)
        yield
