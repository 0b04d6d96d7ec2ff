"""What was applied to a database, kept in the database itself.

``db_smart_history`` only ever grows: one row for each run of a migration. ``db_smart_state`` is one row that says
in short what the history holds, so that most questions cost one small query.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from typing import Any

import sqlalchemy as sa

from ..dialects.base import facts_of
from ..errors import DatabaseUnreachable, HistoryUnreadable
from .database import Database, begin, commit, translated
from .tables import epoch_us, history, metadata, objects, progress, state


@dataclass(frozen=True)
class Applied:
    """One migration as the history holds it.

    :ivar applied_at: in UTC.
    :ivar duration_ms: milliseconds.
    :ivar applied_by: ``user@host``.
    """

    name: str
    checksum: str
    applied_at: datetime
    duration_ms: float
    applied_by: str


@dataclass(frozen=True)
class Holder:
    """Who holds the lock of a database.

    :ivar name: ``host:process id``.
    :ivar since: in UTC, by the database's clock where it has one.
    :ivar expires_at: in UTC; ``None`` for a file lock, which ends with its process.
    :ivar migration: the one it is on, empty before the first.
    """

    name: str
    since: datetime
    expires_at: datetime | None
    migration: str

    def __str__(self) -> str:
        on = f", on {self.migration!r}" if self.migration else ""
        return f"{self.name} (since {self.since:%Y-%m-%d %H:%M:%S} UTC{on})"


@dataclass(frozen=True)
class State:
    """The one row of ``db_smart_state``.

    :ivar database_id: made with the table; a copy of the database keeps it, a new database has another.
    :ivar applied: changes with every run.
    :ivar source: digest of the migration sources (see :mod:`~.loading.sources`) that the last run left applied whole.
    :ivar databases: names of the databases that those sources concern.
    :ivar holder: who holds the lease; ``None`` when it is free or has run out.
    :ivar place: the schema of PostgreSQL where it lies, if that is another one than the connection's current schema, in
        which our tables are made; ``None`` for the current one, and for other databases.
    :ivar tables: names of all tables and views, as the database compares them; ``None`` where that takes another query.
    """

    database_id: str
    applied: str
    source: str
    databases: tuple[str, ...]
    holder: Holder | None
    place: str | None = None
    tables: frozenset[str] | None = None


def _schema_of(table: sa.Table) -> sa.ColumnElement[str]:
    """The schema in which PostgreSQL's search path finds one of our tables."""
    return sa.literal_column(
        "(SELECT nspname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace "
        f"WHERE pg_class.oid = to_regclass('{table.name}'))",
        sa.Text(),
    )


def _searches(connection: sa.Connection) -> bool:
    """Whether a search path decides in which schema our tables are found."""
    return facts_of(connection.dialect.name).has_search_path and translated(connection, None) is None


def within(connection: sa.Connection, table: sa.Table, place: str | None = None) -> sa.ColumnElement[bool]:
    """Whether a table is that of this schema, and not one that the search path finds because this schema has none.

    :param place: see :class:`State`.
    """
    if not _searches(connection):
        return sa.true()
    return _schema_of(table) == (sa.func.current_schema() if place is None else sa.literal(place))


def _schema(connection: sa.Connection) -> str | None:
    """The schema where our tables are made, for the inspector; ``None`` where it knows that itself."""
    if not _searches(connection):
        return translated(connection, None)
    found: str | None = connection.scalar(sa.select(sa.func.current_schema()))
    return found


def read_state(connection: sa.Connection) -> State | None:
    """The state row in the place where this connection makes our tables; ``None`` where there is none. One query.

    :raises sqlalchemy.exc.DBAPIError: the database answered with another error than "no such table".
    """
    found = find_state(connection)
    return None if found is None or found.place is not None else found


def find_state(connection: sa.Connection) -> State | None:
    """As :func:`read_state`, also that of another schema, to which the search path of PostgreSQL leads.

    Such a one (see :class:`State`) is what another role has migrated, or another installation altogether.

    :raises sqlalchemy.exc.DBAPIError: the database answered with another error than "no such table".
    """
    place: sa.ColumnElement[Any] = sa.null()
    if _searches(connection):
        place = sa.func.nullif(_schema_of(state), sa.func.current_schema())
    # As text where no database quotes a name: to compile the columns one by one takes longer than to ask for them.
    plain = sa.text("database_id, applied, source, holder, lease_since, lease_expires, lease_migration")
    facts = facts_of(connection.dialect.name)
    apart = facts.table_names is None or translated(connection, None) is not None
    names = sa.null() if apart else sa.literal_column(str(facts.table_names), sa.Text())
    columns = (plain, state.c.databases, epoch_us().label("now"), place.label("place"), names.label("tables"))
    query = sa.select(*columns).where(state.c.id == 1)
    rows = _rows(connection, query, state, anywhere=True)
    row = rows[0] if rows else None
    if row is None:
        return None
    holder = None
    if row.lease_expires >= row.now:
        holder = Holder(row.holder, _moment(row.lease_since), _moment(row.lease_expires), row.lease_migration)
    try:
        databases = tuple(str(name) for name in json.loads(row.databases))
    except (ValueError, TypeError):  # not ours: without names the whole history is asked
        databases = ()
    tables = None if row.tables is None else frozenset(map(facts.normalize_name, row.tables.split("\0")))
    return State(row.database_id, row.applied, row.source, databases, holder, row.place, tables)


def read_applied(connection: sa.Connection, place: str | None = None) -> list[Applied]:
    """Everything that was applied, oldest first; of runs of the same content only the last. One query.

    :param place: see :class:`State`.
    """
    applied = sa.and_(history.c.outcome == "applied", within(connection, history, place))
    name = facts_of(connection.dialect.name).exact(history.c.name)
    newest = sa.select(sa.func.max(history.c.id)).where(applied).group_by(name, history.c.checksum)
    columns = (history.c.name, history.c.checksum, history.c.applied_at, history.c.duration_ms, history.c.applied_by)
    query = sa.select(*columns).where(history.c.id.in_(newest)).order_by(history.c.id)
    rows: Sequence[Any] = _rows(connection, query, history, place) or []  # none while the first run has only begun
    return [
        Applied(name, checksum, datetime.fromisoformat(at).replace(tzinfo=timezone.utc), duration_ms, applied_by)
        for name, checksum, at, duration_ms, applied_by in rows
    ]


def read_applications(connection: sa.Connection, place: str | None = None) -> set[str]:
    """Dotted names of the migrations whose first run was complete, as far as that can be read. One query.

    :param place: see :class:`State`.
    """
    query = sa.select(objects.c.name).where(objects.c.event == "application", within(connection, objects, place))
    try:
        return {row[0] for row in _rows(connection, query, objects, place) or ()}
    except sa.exc.DBAPIError as error:
        # Who may only read the history was given the right before there was this table.
        if not facts_of(connection.dialect.name).says(error, "denied"):
            raise
        connection.rollback()
        return set()


def read_failure(connection: sa.Connection, place: str | None = None) -> dict[str, Any] | None:
    """The last run that failed, unless that migration was applied since; as ``status`` has it in JSON. One query.

    :param place: see :class:`State`.
    """
    columns = (history.c.name, history.c.applied_at, history.c.duration_ms, history.c.applied_by, history.c.error)
    later = history.alias("later")
    applied = sa.exists().where(later.c.name == history.c.name, later.c.id > history.c.id, later.c.outcome == "applied")
    query = sa.select(*columns).where(history.c.outcome == "failed", ~applied, within(connection, history, place))
    rows: Sequence[Any] | None = _rows(connection, query.order_by(history.c.id.desc()).limit(1), history, place)
    if not rows:
        return None
    name, failed_at, duration_ms, applied_by, error = rows[0]
    moment = datetime.fromisoformat(failed_at).replace(tzinfo=timezone.utc)
    return {
        "name": name,
        "failed_at": moment.isoformat(),
        "duration_ms": duration_ms,
        "applied_by": applied_by,
        "error": error,
    }


def last_id(connection: sa.Connection) -> int:
    """The number of the newest row of the history, 0 without one. One query."""
    rows = _rows(connection, sa.select(sa.func.max(history.c.id)).where(within(connection, history)), history)
    return (rows[0][0] if rows else None) or 0


def failed(connection: sa.Connection, since: datetime, seen: int | None) -> Sequence[sa.Row[Any]]:
    """The failures that were recorded after a moment, by the clock of this host, or after a row of the history.

    Rows of other hosts count by their number alone, as clocks differ. One query.

    :param since: in UTC.
    :param seen: see :func:`last_id`; ``None`` where only the clock tells.
    """
    moment = since.replace(tzinfo=None).isoformat(timespec="microseconds")
    here = sa.and_(history.c.applied_at >= moment, history.c.applied_by == _applied_by())
    newer = here if seen is None else sa.or_(here, history.c.id > seen)
    wanted = sa.and_(history.c.outcome == "failed", newer, within(connection, history))
    query = sa.select(history).where(wanted).order_by(history.c.id)
    return _rows(connection, query, history) or []


def _rows(
    connection: sa.Connection,
    query: sa.Select[Any],
    table: sa.Table,
    place: str | None = None,
    *,
    anywhere: bool = False,
) -> Sequence[sa.Row[Any]] | None:
    """The rows of a query; ``None`` where its table does not exist.

    :param place: see :class:`State`.
    :param anywhere: whether the search path tells where the table may be.
    """
    for last in (False, True):
        try:
            return connection.execute(query).all()
        except sa.exc.DBAPIError as error:
            connection.rollback()
            if error.connection_invalidated:
                raise
            schema = translated(connection, None) if anywhere else place or _schema(connection)
            if not sa.inspect(connection).has_table(table.name, schema=schema):
                return None
            if last:
                raise
        # Another process made the table between the query and the look.
        connection.rollback()
    return None


def create_state(connection: sa.Connection) -> None:
    """Make the state table and its row where they are missing; safe when many do so at once, without any lock.

    :raises sqlalchemy.exc.DBAPIError: the database refuses them.
    """
    failure: sa.exc.DBAPIError | None = None
    for attempt in range(10):
        try:
            found = read_state(connection)
            connection.rollback()
            if found is not None:
                return
            if attempt:
                time.sleep(random.uniform(0, 0.05 * attempt))
            begin(connection)
            if not sa.inspect(connection).has_table(state.name, schema=_schema(connection)):
                state.create(connection, checkfirst=False)
            if connection.execute(sa.select(state.c.id)).first() is None:
                connection.execute(state.insert().values(new_state()))
            connection.commit()
            return
        except sa.exc.DBAPIError as error:
            # Another one made it between our look and our act; databases report that in many ways. Look again.
            connection.rollback()
            failure = error
            facts = facts_of(connection.dialect.name)
            if facts.says(error, "denied") or facts.says(error, "read only"):  # then only another one can have made it
                if read_state(connection) is None:
                    raise
                connection.rollback()
                return
    assert failure is not None
    raise failure


def new_state() -> dict[str, Any]:
    """The state row of a database that has no history, with an id of its own."""
    texts = ("applied", "source", "holder", "lease_migration")
    numbers = ("token", "lease_since", "lease_expires")
    names = {"id": 1, "database_id": uuid.uuid4().hex, "databases": "[]"}
    return {**names, **dict.fromkeys(texts, ""), **dict.fromkeys(numbers, 0)}


def create_tables(connection: sa.Connection) -> None:
    """Make the other tables where they are missing; under the lock."""
    schema = _schema(connection)
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name, schema=schema):
            table.create(connection, checkfirst=False)


def begun(connection: sa.Connection) -> set[str]:
    """Names of migrations that an earlier run left unfinished. One query."""
    return set(connection.scalars(sa.select(progress.c.migration).distinct()))


def missing_tables(connection: sa.Connection) -> set[str]:
    """Names of those of our tables that the database lacks."""
    inspector, schema = sa.inspect(connection), _schema(connection)
    return {table.name for table in metadata.sorted_tables if not inspector.has_table(table.name, schema=schema)}


def record(connection: sa.Connection, name: str, checksum: str, seconds: float, *, error: str | None = None) -> None:
    """Append one run of a migration to the history, in the transaction of ``connection``.

    :param seconds: how long the migration ran.
    :param error: why it failed, without password; ``None`` when it was applied.
    """
    connection.execute(history.insert(), row(name, checksum, seconds, error=error))


def row(name: str, checksum: str, seconds: float, *, error: str | None = None) -> dict[str, Any]:
    """One run as the history keeps it; see :func:`record`."""
    return {
        "name": name,
        "checksum": checksum,
        "applied_at": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds"),
        "duration_ms": round(seconds * 1000, 3),
        "applied_by": _applied_by(),
        "outcome": "applied" if error is None else "failed",
        "error": error,
    }


def update_state(connection: sa.Connection, source: str, databases: Iterable[str]) -> State:
    """Write down what the history now holds, in the transaction of ``connection``.

    :param source: digest of the sources whose migrations for this database are all applied.
    :param databases: names of all databases that those sources concern.
    """
    applied = hashlib.sha256()
    columns = (history.c.id, history.c.name, history.c.checksum, history.c.outcome)
    for run in connection.execute(sa.select(*columns).order_by(history.c.id)):
        applied.update("\0".join(map(str, run)).encode())
    values = {"applied": applied.hexdigest(), "source": source, "databases": json.dumps(list(databases))}
    connection.execute(state.update().where(state.c.id == 1).values(values))
    updated = read_state(connection)
    assert updated is not None
    return updated


def settle(connection: sa.Connection, found: State, source: str, databases: Iterable[str]) -> bool:
    """Write down that a history, found complete, holds these very sources; without the lock, and without waiting.

    A history only grows, so that what it held it holds. Where the row is no longer what was found, or another one has
    it, it is left alone.

    :param found: the state row as it was read with the history.
    :param source: see :func:`update_state`; so is ``databases``.
    :returns: whether it was written.
    :raises sqlalchemy.exc.DBAPIError: it cannot be written.
    """
    same = sa.and_(
        state.c.id == 1,
        state.c.database_id == found.database_id,
        state.c.applied == found.applied,
        state.c.source == found.source,
        within(connection, state),
    )
    facts_of(connection.dialect.name).wait_for_nobody(connection)
    begin(connection)
    if connection.execute(sa.select(state.c.id).where(same).with_for_update(nowait=True)).first() is None:
        connection.rollback()
        return False
    values = {"source": source, "databases": json.dumps(list(databases))}
    connection.execute(state.update().where(state.c.id == 1).values(values))
    commit(connection)
    return True


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1_000_000, timezone.utc)


@cache
def _applied_by() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without an entry in the user database
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"[:255]


@contextmanager
def reading(database: Database) -> Iterator[None]:
    """Say what went wrong where the tables of the history cannot be read.

    :raises DatabaseUnreachable: the database answered with an error.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        failed = (
            f"Cannot read the history in the database {database.name!r} ({database.url}): {database.redact(error)}."
        )
        if database.facts.says(error, "denied"):
            raise HistoryUnreadable(
                f"{failed} Nothing was changed. The user needs the right to read db_smart_state and db_smart_history, "
                "for a dry run also db_smart_objects and db_smart_progress"
                + ("" if not database.facts.has_search_path else ", or a search path that does not lead to them")
                + "."
            ) from None
        raise DatabaseUnreachable(f"{failed} Nothing was changed. Fix the cause and try again.") from None
