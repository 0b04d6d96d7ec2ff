"""Connections past the application."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

#: What a session of the application has read when it holds a table.
READ = "SELECT count(*) FROM items"


def engine_of(url: URL | str) -> sa.Engine:
    """An engine that keeps no connection."""
    return sa.create_engine(url, poolclass=sa.pool.NullPool)


@contextmanager
def connected(url: URL | str, **options: Any) -> Iterator[sa.Connection]:
    """A connection of a bystander."""
    with sa.create_engine(url, poolclass=sa.pool.NullPool, **options).connect() as connection:
        yield connection


@contextmanager
def holding(url: URL | str, statement: str = READ) -> Iterator[sa.Connection]:
    """A session in whose open transaction a statement ran."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.update_query_dict({"application_name": "long_report"})
    with sa.create_engine(parsed, poolclass=sa.pool.NullPool).connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(statement)
        yield connection
