"""Comparing the check that a table has with the one that it is to have, as the database itself understands both."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from ..session.sql import render
from .defaults import without_types

#: MariaDB's ER_YES: how it has understood a query.
_REWRITTEN = 1003


def same_condition(connection: sa.Connection, table: str, schema: str | None, one: str, other: str) -> bool:
    """Whether two conditions of a table are the same: how they are written makes no difference.

    The database is asked how it would compute them for its rows, which it does not do.

    :raises sqlalchemy.exc.DBAPIError: one of them is none, or not any more.
    """
    explain = {"postgresql": _postgresql, "sqlite": _sqlite}.get(connection.dialect.name, _mariadb)
    rows = sa.table(table, schema=schema)
    found = []
    for condition in (one, other):
        query: sa.Select[Any] = sa.select(sa.literal_column(f"({condition}\n)").label("c")).select_from(rows)
        query = query.with_hint(rows, "ONLY", "postgresql")  # one plan, whatever partitions there are
        found.append(explain(connection, render(query, connection.dialect)))
    return bool(found[0] == found[1])


def _run(connection: sa.Connection, sql: str) -> sa.CursorResult[Any]:
    return connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def _postgresql(connection: sa.Connection, query: str) -> Any:
    (plan,) = _run(connection, f"EXPLAIN (VERBOSE, FORMAT JSON) {query}").scalar_one()
    # Without types: those that it writes into a condition stay when a column gets another type.
    return [without_types(text) for text in plan["Plan"]["Output"]]


def _mariadb(connection: sa.Connection, query: str) -> Any:
    _run(connection, f"EXPLAIN EXTENDED {query}").all()
    notes = _run(connection, "SHOW WARNINGS").mappings()
    return [note["Message"] for note in notes if note["Code"] == _REWRITTEN]


def _sqlite(connection: sa.Connection, query: str) -> Any:
    return [tuple(row[:7]) for row in _run(connection, f"EXPLAIN {query}")]
