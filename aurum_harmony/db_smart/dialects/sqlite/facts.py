"""The facts of SQLite: one file, with one lock for all of it, in the process that uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ...errors import raw_text_of
from ..base import Facts, Kind, autocommits, cause_of

#: Transactions by ``isolation_level``; Python has a name for it from 3.12 on.
_LEGACY_TRANSACTIONS = -1
#: What is a transaction of its own unless one is open.
_WRITES = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:ALTER|ANALYZE|CREATE|DELETE|DROP|INSERT|REINDEX|REPLACE|SAVEPOINT|UPDATE|WITH)\b",
    re.IGNORECASE | re.DOTALL,
)
_BEGIN = re.compile(r"\s*BEGIN\b", re.IGNORECASE)
#: What cannot run in a transaction.
_ALONE = re.compile(r"\s*(?:VACUUM\b|PRAGMA\s+(?:\w+\s*\.\s*)?(?:journal_mode|synchronous)\s*[=(])", re.IGNORECASE)
#: Where a connection keeps how many rows were changed when its transaction began, as long as it has written nothing.
_CLEAN = "db_smart_clean"
_SWITCHES_KEYS = re.compile(r"\s*PRAGMA\s+(?:\w+\s*\.\s*)?foreign_keys\s*[=(]", re.IGNORECASE)
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
        "begun": ("already exists", "there is already", "duplicate column name", "no such"),
    }
    begin_now = "BEGIN IMMEDIATE"
    key_needs_target = False
    enforces_lengths = False
    # Who waits for the lock comes and looks now and then, and must find it free.
    batch_rest = 0.04
    table_names = "(SELECT group_concat(name, char(0)) FROM sqlite_master WHERE type IN ('table', 'view'))"
    client = "sqlite3"
    script_header = (".bail on",)

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it: upper and lower case are the same in ASCII alone."""
        # Not the method of a quoted name of SQLAlchemy, which leaves it as it is.
        return str.lower(name) if name.isascii() else name.encode().lower().decode()

    def columns_query(self, connection: sa.Connection, schema: str | None) -> str:
        """The query of :meth:`~.dialects.base.Facts.column_names`."""
        place = connection.dialect.identifier_preparer.quote_identifier(schema or "main")
        return (
            f"SELECT m.name, c.name FROM {place}.sqlite_master AS m, "
            "pragma_table_xinfo(m.name, COALESCE(:schema, 'main')) AS c WHERE m.type IN ('table', 'view')"
        )

    def prepare(self, engine: Engine) -> None:
        """See that no transaction is begun but by us."""
        sa.event.listen(engine, "begin", _undo_begin)

    @contextmanager
    def opened(self, connection: sa.Connection, autocommit: bool) -> Iterator[sa.Connection]:
        """A new connection, whose driver does not begin and end transactions by itself: :meth:`begin` does so.

        It would commit behind our back before a schema change, or, with its ``autocommit`` (from Python 3.12 on), hold
        a transaction always open or commit each statement.
        """
        with _real_transactions(connection):
            try:
                yield connection
            finally:
                connection.rollback()

    @contextmanager
    def adopted(self, connection: sa.Connection) -> Iterator[None]:
        """A connection of ``env.py``, with real transactions, and with foreign keys off.

        A table is changed by another one that takes its place, and to drop the first one would delete the rows that
        refer to it, or the reference in them. Within a transaction they cannot be switched, and between two they must
        not be, whatever a revision says.
        """
        driver: Any = connection.connection.dbapi_connection
        keys, pool = driver.execute("PRAGMA foreign_keys").fetchone()[0], connection.engine.pool
        with ExitStack() as undo:
            undo.enter_context(_real_transactions(connection))
            if not driver.in_transaction:
                driver.execute("PRAGMA foreign_keys = OFF")
                undo.callback(_switch_keys, driver, keys)

            def given_back(given: Any, *_: Any) -> None:
                if given is driver:  # before anybody else gets it from the pool
                    undo.close()

            listeners: tuple[tuple[Any, str, Any, dict[str, Any]], ...] = (
                (pool, "checkin", given_back, {}),
                (connection, "begin", _undo_begin, {}),
                (connection, "before_cursor_execute", _own, {"retval": True}),
            )
            for target, event, listener, options in listeners:
                sa.event.listen(target, event, listener, **options)
            try:
                yield
            finally:
                for target, event, listener, _ in listeners:
                    sa.event.remove(target, event, listener)

    def violations(self, connection: sa.Connection) -> set[str]:
        """As ``PRAGMA foreign_key_check`` tells them: foreign keys are off while a revision runs."""
        rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        return {f"row {row} of {table!r} refers to {parent!r}" for table, row, parent, _ in rows}

    def changes(self, connection: sa.Connection) -> object | None:
        """The versions of the data, which others change, and of the schema, and how many rows this connection changed.

        In a transaction alone, because only that keeps others out until it is asked.
        """
        driver: Any = connection.connection.dbapi_connection
        if not driver.in_transaction:
            return None
        data, schema = (driver.execute(f"PRAGMA {one}_version").fetchone()[0] for one in ("data", "schema"))
        return driver, data, schema, driver.total_changes

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that will write.

        The write lock is taken at once: a transaction that reads first and writes later fails when another one writes
        in between, without waiting.
        """
        connection.begin()
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def begin_within(self, connection: sa.Connection) -> None:
        """Begin where SQLAlchemy takes a transaction for open."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def runs_alone(self, statement: str) -> bool:
        """Whether a statement cannot run in a transaction."""
        return statement.lstrip().upper().startswith("VACUUM")

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
        text = raw_text_of(cause_of(error))
        return any(str(words) in text for words in self.errors.get(kind, ()))

    def column_without_value(self, error: BaseException) -> tuple[str | None, str | None]:
        """The table and the column for which a row has no value."""
        found = _NO_VALUE.search(raw_text_of(cause_of(error)))
        return (found[1], found[2]) if found else (None, None)


@contextmanager
def _real_transactions(connection: sa.Connection) -> Iterator[None]:
    """Keep the driver from beginning and ending transactions by itself; the connection may be closed meanwhile."""
    driver: Any = connection.connection.dbapi_connection
    level = driver.isolation_level
    own = getattr(driver, "autocommit", None)
    if own is not None:
        driver.autocommit = _LEGACY_TRANSACTIONS
        driver.rollback()
    driver.isolation_level = None
    try:
        yield
    finally:
        with suppress(Exception):  # the driver says in ways of its own that it is closed
            driver.isolation_level = level
            if own is not None:
                driver.autocommit = own


def _switch_keys(driver: Any, keys: int) -> None:
    with suppress(Exception):  # see above
        driver.rollback()
        driver.execute(f"PRAGMA foreign_keys = {keys}")


def _own(connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
    """Begin a transaction before what a revision writes, where it has ended the one that we began.

    The driver would have begun one too, but not before a schema change. ``autocommit_block()`` has none on purpose, and
    leaves the driver as it likes it.
    """
    driver: Any = connection.connection.dbapi_connection
    if _SWITCHES_KEYS.match(statement) or (driver.in_transaction and _BEGIN.match(statement)):
        return "SELECT 1", ()
    if not autocommits(connection):
        if driver.isolation_level is not None:
            driver.isolation_level = None  # which commits, up to Python 3.11 also where it is already so
        if not driver.in_transaction and (_BEGIN.match(statement) or _ALONE.match(statement)):
            connection.info[_CLEAN] = driver.total_changes
        elif _WRITES.match(statement):
            connection.info.pop(_CLEAN, None)
            if not driver.in_transaction:
                driver.execute("BEGIN IMMEDIATE")
        elif _ALONE.match(statement) and connection.info.get(_CLEAN) == driver.total_changes:
            driver.commit()  # of nothing; what the revision writes after this begins again
    return statement, parameters


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
