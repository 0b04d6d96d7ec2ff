"""Connections past the application."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.store.database import Database

#: What a session of the application has read when it holds a table.
READ = "SELECT count(*) FROM items"


def engine_of(url: URL | str, **options: Any) -> sa.Engine:
    """An engine that keeps no connection."""
    return sa.create_engine(url, poolclass=sa.pool.NullPool, **options)


def execute(database: Database, *texts: str) -> Any:
    """Run statements as they are in one transaction, and return the first value of what the last one finds."""
    with database.engine.begin() as connection:
        value = None
        for text in texts:
            result = connection.exec_driver_sql(text, execution_options={"no_parameters": True})
            value = result.scalar() if result.returns_rows else None
        return value


@contextmanager
def connected(url: URL | str, **options: Any) -> Iterator[sa.Connection]:
    """A connection of a bystander."""
    with engine_of(url, **options).connect() as connection:
        yield connection


@contextmanager
def holding(url: URL | str, statement: str = READ) -> Iterator[sa.Connection]:
    """A session in whose open transaction a statement ran."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.update_query_dict({"application_name": "long_report"})
    with engine_of(parsed).connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(statement)
        yield connection
