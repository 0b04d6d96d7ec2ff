"""Apply what is pending to a scratch copy, and tell what each statement really did there.

SQLite: a copy of the file, with its rows. PostgreSQL: schemas of the same server without rows, one transaction for each
statement. MariaDB: a scratch database without rows, which is asked for the weakest lock that it accepts.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..dialects.sqlite.copying import without_files
from ..errors import DbSmartError, one_line, shortened
from ..preview import Preview
from ..schema.scratch import Scratch
from ..session.controls import controls_transaction
from ..store.database import Database
from ..store.tables import TABLE_NAMES
from .findings import Traced
from .locks import locks_of

#: What the session has locked.
_LOCKS = sa.text(
    "SELECT relation, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' ORDER BY relation, mode"
)
_FILES = sa.text(
    "SELECT c.oid, c.relname, pg_relation_filenode(c.oid) AS file FROM pg_class AS c WHERE c.relkind IN ('r', 'p') "
    "AND c.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN :schemas) ORDER BY c.relname"
).bindparams(sa.bindparam("schemas", expanding=True))
#: What is tried in a transaction, and takes a stronger lock there.
_CONCURRENTLY = re.compile(
    r"\s*(?:CREATE\s+(?:UNIQUE\s+)?INDEX|DROP\s+INDEX|REINDEX\s.*?(?:INDEX|TABLE))\s+CONCURRENTLY\b", re.IGNORECASE
)
#: From the weakest on.
_MODES = [
    f"{mode}Lock"
    for mode in (
        *("AccessShare", "RowShare", "RowExclusive", "ShareUpdateExclusive"),
        *("Share", "ShareRowExclusive", "Exclusive", "AccessExclusive"),
    )
]
#: What MariaDB is asked for, the weakest first.
_WAYS = (
    ("INSTANT", ", ALGORITHM=INSTANT"),
    ("INPLACE, LOCK=NONE", ", ALGORITHM=INPLACE, LOCK=NONE"),
    ("INPLACE, LOCK=SHARED", ", ALGORITHM=INPLACE, LOCK=SHARED"),
    ("COPY, LOCK=SHARED", ", ALGORITHM=COPY, LOCK=SHARED"),
)
_ALTER = re.compile(r"\s*(ALTER\s+TABLE|CREATE\s+(?:UNIQUE\s+)?INDEX)\b", re.IGNORECASE)
_SAYS = re.compile(r"\b(?:ALGORITHM|LOCK)\s*=", re.IGNORECASE)


def trace(database: Database, previews: Sequence[Preview], notes: list[str]) -> list[Traced]:
    """Apply what is pending to a scratch copy.

    :param notes: takes what could not be found out.
    :raises DbSmartError: there can be no scratch copy.
    """
    try:
        return _trace(database, previews, notes)
    except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
        raise DbSmartError(database.cause(error)) from error


def _trace(database: Database, previews: Sequence[Preview], notes: list[str]) -> list[Traced]:
    found: list[Traced] = []
    with _OPEN.get(database.facts.name, _sqlite)(database) as apply:
        for preview in previews:
            for statement in preview.script:
                text = statement.strip().removesuffix(";")
                if (text.startswith("--") and "\n" not in text) or controls_transaction(text, database.facts.name):
                    continue
                if any(name in text for name in TABLE_NAMES):  # what a run records
                    continue
                if database.facts.server and any(lock.work == "rows" for lock in locks_of(text, database.facts)):
                    continue  # which a scratch place without rows does not try
                one = Traced(preview.name, shortened(text))
                started = time.perf_counter()
                try:
                    apply(text, one)
                except (sa.exc.DBAPIError, sqlite3.Error, DbSmartError) as error:
                    one.error = one_line(database.cause(error))
                one.seconds = one.seconds or time.perf_counter() - started
                found.append(one)
                if one.error is not None:
                    notes.append(f"{preview.name}: nothing is traced from there on: {one.error}")
                    return found
            if preview.unknown is not None or preview.error is not None:
                notes.append(f"{preview.name}: only the beginning of it is traced.")
                return found
    return found


Apply = Callable[[str, Traced], None]


@contextmanager
def _sqlite(database: Database) -> Iterator[Apply]:
    with (
        tempfile.TemporaryDirectory(prefix="db-smart-trace-") as folder,
        closing(sqlite3.connect(Path(folder) / "copy.sqlite", isolation_level=None)) as copy,
    ):
        if database.exists:
            with database.connect() as connection:
                driver: Any = connection.connection.dbapi_connection
                driver.backup(copy)
        copy.set_authorizer(without_files)

        def pages() -> dict[str, int]:
            return dict(copy.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'"))

        def apply(statement: str, one: Traced) -> None:
            before, started = pages(), time.perf_counter()
            copy.execute(statement).fetchall()
            one.seconds = time.perf_counter() - started
            one.rewritten = sorted(name for name, page in pages().items() if before.get(name, page) != page)

        yield apply


def _scratch_of(database: Database) -> Any:
    folder = type(database.facts).__module__.rpartition(".")[0]
    return import_module(f"{folder}.describe").SCRATCH


@contextmanager
def _postgresql(database: Database) -> Iterator[Apply]:
    kind: Any = _scratch_of(database)
    with database.connect() as source, kind.kept(database, source, [None]) as scratch:
        yield lambda statement, one: _traced(scratch, statement, one)


def _traced(scratch: Any, statement: str, one: Traced) -> None:
    connection, names = scratch.connection, {"schemas": scratch.names}
    try:
        scratch.enter()
        before = {row.oid: row for row in connection.execute(_FILES, names)}
        started = time.perf_counter()
        scratch.run(statement)
        one.seconds = time.perf_counter() - started
        taken: dict[str, str] = {}
        for number, mode in connection.execute(_LOCKS).all():
            if mode != "AccessShareLock" and number in before:
                name = before[number].relname
                taken[name] = max(mode, taken.get(name, mode), key=_MODES.index)
        alone = _CONCURRENTLY.match(statement) is not None
        one.locks = {name: "SHARE UPDATE EXCLUSIVE" if alone else _mode(mode) for name, mode in taken.items()}
        for row in connection.execute(_FILES, names).all():
            if row.oid in before and before[row.oid].file != row.file:
                one.rewritten.append(before[row.oid].relname)
        connection.commit()
    except BaseException:
        with suppress(sa.exc.DBAPIError):
            connection.rollback()
        raise


def _mode(mode: str) -> str:
    """``AccessExclusiveLock`` as it is written in the manual."""
    return re.sub(r"(?<!^)([A-Z])", r" \1", mode.removesuffix("Lock")).upper()


@contextmanager
def _mariadb(database: Database) -> Iterator[Apply]:
    kind: type[Scratch] = _scratch_of(database)
    with kind.open(database, [None]) as scratch:
        with database.connect() as source:
            scratch.copy(source)

        def apply(statement: str, one: Traced) -> None:
            found = _ALTER.match(statement)
            ways = _WAYS if found is not None and _SAYS.search(statement) is None else ()
            for name, more in ways:
                started = time.perf_counter()
                index = found is not None and found[1].upper().startswith("CREATE")
                with suppress(sa.exc.DBAPIError):
                    scratch.run(statement + (more.replace(",", "") if index else more))
                    one.seconds, one.accepted = time.perf_counter() - started, name
                    return
            started = time.perf_counter()
            scratch.run(statement)
            one.seconds = time.perf_counter() - started

        yield apply


_OPEN: dict[str, Callable[[Database], Any]] = {"postgresql": _postgresql, "mysql": _mariadb, "sqlite": _sqlite}
