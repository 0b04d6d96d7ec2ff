"""What was applied to a database, kept in the database itself.

``db_smart_history`` only ever grows: one row for each run of a migration. ``db_smart_state`` is one row that says
in short what the history holds, so that most questions cost one small query.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from .migrations import MAX_NAME, Migration

metadata = sa.MetaData()
_NAME = sa.String(MAX_NAME)
_DIGEST = sa.String(64)
_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

history = sa.Table(
    "db_smart_history",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("checksum", _DIGEST, nullable=False),
    sa.Column("applied_at", _TIME, nullable=False, comment="UTC, end of the run"),
    sa.Column("duration_ms", sa.Float, nullable=False),
    sa.Column("applied_by", sa.String(255), nullable=False, comment="user@host"),
    sa.Column("outcome", sa.String(10), nullable=False, comment="applied or failed"),
    sa.Column("error", sa.Text),
)

state = sa.Table(
    "db_smart_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False, comment="always 1"),
    sa.Column("database_id", sa.String(32), nullable=False),
    sa.Column("applied", _DIGEST, nullable=False, comment="digest of the history"),
    sa.Column("source", _DIGEST, nullable=False, comment="digest of the sources last applied whole"),
    sa.Column("databases", sa.Text, nullable=False, comment="JSON: names of all databases of those sources"),
)

#: The tables of this extension, which comparisons of models with the database leave out.
TABLE_NAMES = frozenset(metadata.tables)


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
class State:
    """The one row of ``db_smart_state``.

    :ivar database_id: made with the table; a copy of the database keeps it, a new database has another.
    :ivar applied: changes with every run.
    :ivar source: digest of the migration sources (see :mod:`~.sources`) that the last run left applied whole.
    :ivar databases: names of the databases that those sources concern.
    """

    database_id: str
    applied: str
    source: str
    databases: tuple[str, ...]


@dataclass(frozen=True)
class Pending:
    """A migration to run, and why."""

    migration: Migration
    reason: Literal["new", "edited", "forced"]


def read_state(connection: sa.Connection) -> State | None:
    """The state row, ``None`` in a database that has no history. One query.

    :raises sqlalchemy.exc.DBAPIError: the database answered with another error than "no such table".
    """
    columns = (state.c.database_id, state.c.applied, state.c.source, state.c.databases)
    query = sa.select(*columns).where(state.c.id == 1)
    try:
        row = connection.execute(query).first()
    except sa.exc.DBAPIError:
        connection.rollback()
        if sa.inspect(connection).has_table(state.name):
            raise
        return None
    return None if row is None else State(row.database_id, row.applied, row.source, tuple(json.loads(row.databases)))


def read_applied(connection: sa.Connection) -> list[Applied]:
    """Everything that was applied, oldest first; of runs of the same content only the last. One query."""
    columns = (history.c.name, history.c.checksum, history.c.applied_at, history.c.duration_ms, history.c.applied_by)
    rows = connection.execute(sa.select(*columns).where(history.c.outcome == "applied").order_by(history.c.id))
    latest: dict[tuple[str, str], Applied] = {}
    for name, checksum, applied_at, duration_ms, applied_by in rows:
        latest.pop((name, checksum), None)
        moment = applied_at.replace(tzinfo=timezone.utc)
        latest[name, checksum] = Applied(name, checksum, moment, duration_ms, applied_by)
    return list(latest.values())


def create_tables(connection: sa.Connection) -> None:
    """Make the tables and the state row where they are missing."""
    metadata.create_all(connection)
    if connection.execute(sa.select(state.c.id)).first() is None:
        values = {"id": 1, "database_id": uuid.uuid4().hex, "applied": "", "source": "", "databases": "[]"}
        connection.execute(state.insert().values(values))


def record(connection: sa.Connection, migration: Migration, seconds: float, *, error: str | None = None) -> None:
    """Append one run to the history, in the transaction of ``connection``.

    :param seconds: how long the migration ran.
    :param error: why it failed, without password; ``None`` when it was applied.
    """
    connection.execute(
        history.insert(),
        {
            "name": migration.name,
            "checksum": migration.checksum,
            "applied_at": datetime.now(timezone.utc).replace(tzinfo=None),
            "duration_ms": round(seconds * 1000, 3),
            "applied_by": _applied_by(),
            "outcome": "applied" if error is None else "failed",
            "error": error,
        },
    )


def seal(connection: sa.Connection, source: str, databases: Iterable[str]) -> State:
    """Write down what the history now holds, in the transaction of ``connection``.

    :param source: digest of the sources whose migrations for this database are all applied.
    :param databases: names of all databases that those sources concern.
    """
    applied = hashlib.sha256()
    columns = (history.c.id, history.c.name, history.c.checksum, history.c.outcome)
    for row in connection.execute(sa.select(*columns).order_by(history.c.id)):
        applied.update("\0".join(map(str, row)).encode())
    values = {"applied": applied.hexdigest(), "source": source, "databases": json.dumps(list(databases))}
    connection.execute(state.update().where(state.c.id == 1).values(values))
    sealed = read_state(connection)
    assert sealed is not None
    return sealed


def pending(migrations: Iterable[Migration], applied: Iterable[Applied], *, force: bool = False) -> list[Pending]:
    """The migrations of one database that are still to run, in order.

    :param force: run every repeatable migration again.
    """
    contents = {(item.name, item.checksum) for item in applied}
    names = {name for name, _ in contents}
    found: list[Pending] = []
    for migration in migrations:
        if migration.name not in names:
            found.append(Pending(migration, "new"))
        elif not migration.options.once:
            if (migration.name, migration.checksum) not in contents:
                found.append(Pending(migration, "edited"))
            elif force:
                found.append(Pending(migration, "forced"))
    return found


def unknown(migrations: Iterable[Migration], applied: Iterable[Applied]) -> list[str]:
    """Names whose last applied content is not of this code: the database is ahead of it."""
    known = {migration.name: migration for migration in migrations}
    contents = {(item.name, item.checksum) for item in applied}
    last = {item.name: item.checksum for item in applied}
    ahead = []
    for name, checksum in last.items():
        migration = known.get(name)
        if migration is None or (
            not migration.options.once and checksum != migration.checksum and (name, migration.checksum) in contents
        ):
            ahead.append(name)
    return ahead


def edited_once(migrations: Iterable[Migration], applied: Iterable[Applied]) -> list[str]:
    """Names of ``once`` migrations edited after they were applied; they are reported and never run again."""
    contents = {(item.name, item.checksum) for item in applied}
    names = {name for name, _ in contents}
    return [
        migration.name
        for migration in migrations
        if migration.options.once and migration.name in names and (migration.name, migration.checksum) not in contents
    ]


@cache
def _applied_by() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without an entry in the user database
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"[:255]
