"""The facts of SQLite: one file, with one lock for all of it, in the process that uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..base import Facts, Kind, cause_of

#: Transactions by ``isolation_level``; Python has a name for it from 3.12 on.
_LEGACY_TRANSACTIONS = -1
_NO_VALUE = re.compile(r"NOT NULL constraint failed: (.+)\.([^.]+)$")


class SqliteFacts(Facts):
    """See the module. It names its errors by words only."""

    editor = "SqliteEditor"
    server = False
    clock = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    quoted = r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/"""
    errors = {
        "transient": ("database is locked",),
        "missing": ("no such table", "no such column", "has no column named"),
    }
    key_needs_target = False
    enforces_lengths = False
    # Who waits for the lock comes and looks now and then, and must find it free.
    batch_rest = 0.04
    table_names = "(SELECT group_concat(name, char(0)) FROM sqlite_master WHERE type IN ('table', 'view'))"
    client = "sqlite3"
    script_header = (".bail on",)

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it: upper and lower case are the same in ASCII alone."""
        return name.encode().lower().decode()

    def prepare(self, engine: Engine) -> None:
        """See that no transaction is begun but by us."""
        sa.event.listen(engine, "begin", _undo_begin)

    @contextmanager
    def opened(self, connection: sa.Connection, autocommit: bool) -> Iterator[sa.Connection]:
        """A new connection, whose driver does not begin and end transactions by itself: :meth:`begin` does so.

        It would commit behind our back before a schema change, or, with its ``autocommit`` (from Python 3.12 on), hold
        a transaction always open or commit each statement.
        """
        driver: Any = connection.connection.dbapi_connection
        level = driver.isolation_level
        own = getattr(driver, "autocommit", None)
        if own is not None:
            driver.autocommit = _LEGACY_TRANSACTIONS
            driver.rollback()
        driver.isolation_level = None
        try:
            yield connection
        finally:
            connection.rollback()
            driver.isolation_level = level
            if own is not None:
                driver.autocommit = own

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that will write.

        The write lock is taken at once: a transaction that reads first and writes later fails when another one writes
        in between, without waiting.
        """
        connection.begin()
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def commit_failed(self, connection: sa.Connection) -> None:
        """Roll back: it would stay open, keep new readers out, and SQLAlchemy has forgotten it."""
        driver: Any = connection.connection.dbapi_connection
        driver.rollback()

    def wait_for_nobody(self, connection: sa.Connection) -> None:
        """Let statements fail at once that would wait for the lock."""
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.rollback()

    def says(self, error: BaseException, kind: Kind) -> bool:
        """Whether the message of an error has one of the texts of a kind."""
        text = str(cause_of(error))
        return any(str(words) in text for words in self.errors.get(kind, ()))

    def column_without_value(self, error: BaseException) -> tuple[str | None, str | None]:
        """The table and the column for which a row has no value."""
        found = _NO_VALUE.search(str(cause_of(error)))
        return (found[1], found[2]) if found else (None, None)


def _undo_begin(connection: sa.Connection) -> None:
    """End the transaction that another listener has begun, before anything is in it.

    Many applications send ``BEGIN`` at this event, as SQLAlchemy's documentation advises for SQLite. It would come
    before our own, and before what cannot run in a transaction, as ``VACUUM``. Listeners of all engines and of the
    application's engine are called before this one, which an engine of ours has.
    """
    driver: Any = connection.connection.dbapi_connection
    if driver.in_transaction:
        driver.rollback()


FACTS = SqliteFacts("sqlite")
