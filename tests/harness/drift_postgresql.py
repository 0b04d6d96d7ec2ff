"""Databases of PostgreSQL that are compared, past any application."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.drift.comparison import Comparison, Drift
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database
from tests.harness import servers
from tests.harness.kill_diff_postgresql import models


@contextmanager
def database(url: URL, **options: Any) -> Iterator[Database]:
    engine = sa.create_engine(url, **options)
    try:
        yield Database("default", None, engine)
    finally:
        engine.dispose()


def make(url: URL, metadata: sa.MetaData | None = None, *, before: str = "CREATE SCHEMA IF NOT EXISTS shop") -> None:
    with sa.create_engine(url, poolclass=sa.pool.NullPool).begin() as connection:
        connection.exec_driver_sql(before)
        (models() if metadata is None else metadata).create_all(connection)


def drift(one: Database, *statements: str, metadata: sa.MetaData | None = None) -> Drift:
    pending = [Preview("pending", "new", script=[*statements])] if statements else []
    return Comparison().of(one, models() if metadata is None else metadata, pending)


def paths(drift: Drift) -> list[str]:
    return sorted(f"{one.side} {one.kind} {one.path}" for one in drift.differences)


def schemas(url: URL) -> set[str]:
    return {name for (name,) in servers.query(url, "SELECT nspname::text FROM pg_namespace")}
