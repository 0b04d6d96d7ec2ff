"""The schema of a SQLite database, made once more in another one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

#: How SQLite begins whatever it keeps, before the name.
_HEAD = re.compile(r"CREATE (?:UNIQUE INDEX|INDEX|TABLE|VIEW|TRIGGER|VIRTUAL TABLE) ")


@contextmanager
def in_memory() -> Iterator[Engine]:
    """An engine with one connection to an empty database in memory, which cannot reach a file."""
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    try:
        with engine.connect() as connection:
            # A listener of all engines may have attached a file of the application.
            for _, name, _ in connection.exec_driver_sql("PRAGMA database_list").all():
                if name not in ("main", "temp"):
                    connection.rollback()
                    connection.exec_driver_sql(
                        f"DETACH {connection.dialect.identifier_preparer.quote_identifier(name)}"
                    )
            driver: Any = connection.connection.dbapi_connection
            driver.set_authorizer(without_files)
        yield engine
    finally:
        engine.dispose()


def without_files(action: int, file: str | None, *_: object) -> int:
    """An authorizer of a connection that is to reach no file but its own."""
    import sqlite3  # which an application of a server need not have

    attaches = action == sqlite3.SQLITE_ATTACH and file not in ("", ":memory:")
    return sqlite3.SQLITE_DENY if attaches else sqlite3.SQLITE_OK


def copy_schema(source: sa.Connection, copy: sa.Connection, schemas: Sequence[str] = ("main",)) -> None:
    """Make the tables, indexes, views and triggers of one database in another, without rows.

    :param schemas: which of its databases: ``main``, or those attached to both.
    """
    order = "CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid"
    for schema in schemas:
        quoted = source.dialect.identifier_preparer.quote_identifier(schema)
        query = (
            f"SELECT sql FROM {quoted}.sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite^_%' ESCAPE '^' "
            f"ORDER BY {order}"
        )
        for sql in source.exec_driver_sql(query).scalars().all():
            # The tables behind a virtual one come with it; a view or trigger may be broken already.
            with suppress(sa.exc.DBAPIError):
                head = _HEAD.match(sql)
                copy.exec_driver_sql(sql if head is None else f"{head[0]}{quoted}.{sql[head.end() :]}")
    for record in ("sqlite_sequence", "sqlite_stat1"):  # what a rebuild has to move
        if source.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = ?", (record,)).first():
            with suppress(sa.exc.DBAPIError):
                for row in source.exec_driver_sql(f"SELECT * FROM {record}"):
                    copy.exec_driver_sql(f"INSERT INTO {record} VALUES ({', '.join('?' * len(row))})", tuple(row))
    enforced = source.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
    copy.exec_driver_sql(f"PRAGMA foreign_keys = {enforced}")
    source.rollback()
    copy.rollback()
