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
import re
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..dialects.base import facts_of
from ..errors import DatabaseUnreachable, HistoryUnreadable
from .database import Database, begin, commit, translated
from .tables import clock, history, metadata, objects, progress, state

#: One statement for all rows, which SQLAlchemy compiles once; their number is not asked for.
_RECORD = history.insert().inline()


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


#: What a row says of a migration that counts as applied although this extension did not run it. It stands where errors
#: do, and the outcome is ``applied``: so releases that do not know of it take it for what it is.
STAMPED, ADOPTED = "stamped", "adopted"
#: The outcome of a row that says that a migration was undone, or that another tool has taken a revision back.
TAKEN_BACK = "taken back"
#: The step of an undo, where each schema change commits, that says that it has begun.
UNDO_BEGUN = "begun"
#: By what name the journal keeps how far an undo is.
_UNDO_MARK = re.compile(r"\(undo (\d+)\)")
#: Columns that the history of an earlier release lacks, until a run adds them.
_LATER = (history.c.release, history.c.inverse)


@dataclass(frozen=True)
class Ended:
    """One run as the history has it.

    :ivar number: of the run, which ``undo`` takes; it grows.
    :ivar outcome: ``applied``, ``failed``, ``stamped`` (a person said that it is applied), ``adopted`` (Alembic alone
        had applied it) or ``taken back`` (by ``undo``, or by Alembic alone, as ``flask db downgrade`` does).
    :ivar applied_at: its end, in UTC.
    :ivar applied_by: ``user@host``.
    :ivar release: see :attr:`~.settings.Settings.release`.
    """

    number: int
    name: str
    checksum: str
    outcome: str
    applied_at: datetime
    duration_ms: float
    applied_by: str
    release: str | None
    error: str | None


class Doing(NamedTuple):
    """How far one long statement is, as the server tells it.

    :ivar phase: what the server is at, in its own words.
    :ivar unit: of the next three.
    :ivar total: 0 where it is not known.
    :ivar rate: per second.
    """

    phase: str
    unit: str
    done: int
    total: int
    rate: float


@dataclass(frozen=True)
class Holder:
    """Who holds the lock of a database.

    :ivar name: ``host:process id``.
    :ivar since: in UTC, by the database's clock where it has one.
    :ivar expires_at: in UTC; ``None`` for a file lock, which ends with its process.
    :ivar migration: the one it is on, empty before the first.
    :ivar doing: how far it is with one long statement; ``None`` where it does not say.
    """

    name: str
    since: datetime
    expires_at: datetime | None
    migration: str
    doing: Doing | None = None

    def __str__(self) -> str:
        on = f", on {self.migration!r}" if self.migration else ""
        return f"{self.name} (since {self.since:%Y-%m-%d %H:%M:%S} UTC{on})"


class VersionTable(NamedTuple):
    """Where Alembic keeps the heads of a database.

    :ivar schema: ``None`` for where the connection looks.
    :ivar sure: whether it is known, and not only likely, so that the row of the state may know better.
    """

    name: str = "alembic_version"
    schema: str | None = None
    sure: bool = True


class Learned(NamedTuple):
    """What only a run of ``env.py`` tells.

    :ivar env: hexadecimal hash of that file.
    :ivar versions: the version table that it configures.
    :ivar databases: names of the databases that it migrates.
    """

    env: str
    versions: VersionTable
    databases: tuple[str, ...]


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
    :ivar heads: what Alembic's version table has, sorted; ``None`` where it was not asked, or where there is none.
    :ivar learned: what an earlier run has learned of ``env.py``; ``None`` where that was nothing.
    :ivar models: hash of the models of which the database was found to have all; ``None`` where it had not.
    :ivar backfills: how far those are that were asked for: migration, rows, and the JSON of the rest.
    """

    database_id: str
    applied: str
    source: str
    databases: tuple[str, ...]
    holder: Holder | None
    place: str | None = None
    tables: frozenset[str] | None = None
    heads: tuple[str, ...] | None = None
    learned: Learned | None = None
    models: str | None = None
    backfills: tuple[tuple[str, int, str], ...] = ()

    @property
    def stamp(self) -> str:
        """What is another one as soon as anything was applied, by this extension or by Alembic alone."""
        return self.applied if self.heads is None else f"{self.applied} {','.join(self.heads)}"


def schema_of(table: sa.Table) -> str:
    """SQL for the schema in which PostgreSQL's search path finds one of our tables."""
    return (
        "(SELECT nspname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace "
        f"WHERE pg_class.oid = to_regclass('{table.name}'))"
    )


def searches(connection: sa.Connection) -> bool:
    """Whether a search path decides in which schema our tables are found."""
    return facts_of(connection.dialect.name).has_search_path and translated(connection, None) is None


def within(connection: sa.Connection, table: sa.Table, place: str | None = None) -> sa.ColumnElement[bool]:
    """Whether a table is that of this schema, and not one that the search path finds because this schema has none.

    :param place: see :class:`State`.
    """
    if not searches(connection):
        return sa.true()
    found = sa.literal_column(schema_of(table), sa.Text())
    return found == (sa.func.current_schema() if place is None else sa.literal(place))


def _schema(connection: sa.Connection) -> str | None:
    """The schema where our tables are made, for the inspector; ``None`` where it knows that itself."""
    if not searches(connection):
        return translated(connection, None)
    found: str | None = connection.scalar(sa.select(sa.func.current_schema()))
    return found


def read_state(connection: sa.Connection, versions: VersionTable | None = None) -> State | None:
    """The state row in the place where this connection makes our tables; ``None`` where there is none. One query.

    :param versions: ask for the heads too.
    :raises sqlalchemy.exc.DBAPIError: the database answered with another error than "no such table".
    """
    found = find_state(connection, versions)
    return None if found is None or found.place is not None else found


def read_heads(connection: sa.Connection, versions: VersionTable) -> tuple[str, ...] | None:
    """What Alembic's version table has, sorted; ``None`` where there is none.

    Looks first, and does not try: a query that fails would end the transaction, with what it has recorded.

    :raises sqlalchemy.exc.DBAPIError: the database answered with an error.
    """
    if not sa.inspect(connection).has_table(versions.name, schema=versions.schema):
        return None
    table = sa.table(versions.name, sa.column("version_num"), schema=versions.schema)
    return tuple(sorted(connection.scalars(sa.select(table.c.version_num))))


def find_state(
    connection: sa.Connection, versions: VersionTable | None = None, *, backfills: bool = False
) -> State | None:
    """As :func:`read_state`, also that of another schema, to which the search path of PostgreSQL leads.

    Such a one (see :class:`State`) is what another role has migrated, or another installation altogether.

    :param versions: ask for the heads too.
    :param backfills: ask in the same query how far backfills are; where that cannot be read, it is not said.
    :raises sqlalchemy.exc.DBAPIError: the database answered with another error than "no such table".
    """
    facts = facts_of(connection.dialect.name)
    schema, preparer = translated(connection, None), connection.dialect.identifier_preparer
    place = f"nullif({schema_of(state)}, current_schema())" if searches(connection) else "NULL"
    names = facts.table_names if facts.table_names is not None and schema is None else "NULL"

    prefix = "" if schema is None else f"{preparer.quote_schema(schema)}."

    def query(heads: str, more: str = "", join: str = "") -> str:
        # As text, because to build and to compile a query for the first time takes longer than to ask it.
        return (
            "SELECT database_id, applied, source, holder, lease_since, lease_expires, lease_migration, "
            f"{preparer.quote('databases')}, {clock(connection.dialect.name)} AS now, {place} AS place, "
            f"{names} AS tables, {heads} AS heads{more} FROM {prefix}{state.name}{join} WHERE id = 1"
        )

    heads = "NULL"
    if versions is not None and versions.sure:
        table = "" if versions.schema is None else preparer.quote_schema(versions.schema) + "."
        heads = f"(SELECT {facts.joined.format('version_num')} FROM {table}{preparer.quote(versions.name)})"
    try:
        rows = _with_backfills(connection, query, heads, prefix) if backfills else None
        if rows is None:
            rows = _rows(connection, query(heads), state, anywhere=True)
    except sa.exc.DBAPIError:
        if versions is None or not versions.sure:
            raise
        # Another process may have made the version table between the query and this look.
        there = read_heads(connection, versions) is not None
        versions = versions if there else None
        rows = _rows(connection, query(heads if there else "NULL"), state, anywhere=True)
    row = rows[0] if rows else None
    if row is None:
        return None
    databases, learned, models = _parsed(row.databases)
    found = None if versions is None else tuple(sorted(filter(None, (row.heads or "").split(","))))
    if versions is not None and not versions.sure:
        found = read_heads(connection, versions if learned is None else learned.versions) or ()
    holder = None
    if row.lease_expires >= row.now:
        name, doing = holder_in(row.holder)
        holder = Holder(name, _moment(row.lease_since), _moment(row.lease_expires), row.lease_migration, doing)
    tables = None if row.tables is None else frozenset(map(facts.normalize_name, row.tables.split("\0")))
    under_way = tuple((one.migration, one.row_count, one.detail) for one in rows or () if getattr(one, "detail", None))
    known = row.database_id, row.applied, row.source, databases, holder, row.place, tables, found, learned, models
    return State(*known, under_way)


def _with_backfills(
    connection: sa.Connection, query: Callable[[str, str, str], str], heads: str, prefix: str
) -> Sequence[sa.Row[Any]] | None:
    """The state row, once for each backfill; ``None`` where their table is not there, or may not be read."""
    # No "%" of LIKE, which some drivers take for a parameter.
    join = f" LEFT JOIN {prefix}{progress.name} ON substr(step, 1, 9) = 'backfill:'"
    if searches(connection):
        join += f" AND {schema_of(progress)} = {schema_of(state)}"
    try:
        return connection.exec_driver_sql(query(heads, ", migration, row_count, detail", join)).all()
    except sa.exc.DBAPIError as error:
        connection.rollback()
        if error.connection_invalidated:
            raise
        return None


#: How long what names a holder can be, characters.
_LONGEST_HOLDER = 255


def holder_text(name: str, doing: Doing | None) -> str:
    """What the state row says of a holder: who it is, and behind that how far it is with one long statement."""
    more = "" if doing is None else f" {json.dumps(doing)}"
    return f"{name}{more}" if len(name) + len(more) <= _LONGEST_HOLDER else name[:_LONGEST_HOLDER]


def holder_in(text: str) -> tuple[str, Doing | None]:
    """The name in such a text, and how far it is."""
    name, found, more = text.partition(" [")
    if not found:
        return text, None
    try:
        phase, unit, done, total, rate = json.loads(f"[{more}")
        return name, Doing(str(phase), str(unit), int(done), int(total), float(rate))
    except (ValueError, TypeError, OverflowError):  # it is a name
        return text, None


def _parsed(text: str) -> tuple[tuple[str, ...], Learned | None, str | None]:
    """The names of databases in the state row, what is learned of ``env.py``, and the hash of the models."""
    try:
        found = json.loads(text)
        if isinstance(found, list):
            return tuple(map(str, found)), None, None
        learned = None
        if "learned" in found:
            env, (table, schema), databases = found["learned"]
            learned = Learned(env, VersionTable(table, schema), tuple(databases))
        return tuple(map(str, found["names"])), learned, found.get("models")
    except (ValueError, TypeError, KeyError):  # not ours: without names the whole history is asked
        return (), None, None


def _text(names: Iterable[str], learned: Learned | None, models: str | None) -> str:
    more: dict[str, object] = {} if models is None else {"models": models}
    if learned is not None:
        more["learned"] = [learned.env, learned.versions[:2], learned.databases]
    return json.dumps({"names": list(names), **more} if more else list(names))


def read_applied(
    connection: sa.Connection, place: str | None = None, names: Sequence[str] | None = None
) -> list[Applied]:
    """Everything that was applied and not taken back since, oldest first; of runs of the same content only the last.

    One query.

    :param place: see :class:`State`.
    :param names: of these alone.
    """
    counts = sa.and_(history.c.outcome.in_(("applied", TAKEN_BACK)), within(connection, history, place))
    if names is not None:
        counts = sa.and_(counts, history.c.name.in_(names))
    name = facts_of(connection.dialect.name).exact(history.c.name)
    newest = sa.select(sa.func.max(history.c.id)).where(counts).group_by(name, history.c.checksum)
    columns = (history.c.name, history.c.checksum, history.c.applied_at, history.c.duration_ms, history.c.applied_by)
    query = sa.select(*columns).where(history.c.id.in_(newest), history.c.outcome == "applied").order_by(history.c.id)
    rows: Sequence[Any] = _rows(connection, query, history, place) or []  # none while the first run has only begun
    return [
        Applied(name, checksum, _utc(at), duration_ms, applied_by)
        for name, checksum, at, duration_ms, applied_by in rows
    ]


def was_applied(connection: sa.Connection, name: str, checksum: str | None) -> bool:
    """Whether a migration was applied and not taken back since; one short query, whatever the history holds.

    :param checksum: of its content; ``None`` where any counts.
    """
    counts = history.c.outcome.in_(("applied", TAKEN_BACK))
    query = sa.select(history.c.name, history.c.checksum, history.c.outcome).where(history.c.name == name, counts)
    if searches(connection):  # see State.place
        query = query.where(sa.text(f"{schema_of(history)} = {schema_of(state)}"))
    if checksum is not None:
        query = query.where(history.c.checksum == checksum)
    rows = _rows(connection, query.order_by(history.c.id), history, anywhere=True) or ()
    # A collation may take no notice of case.
    return "applied" in {row.checksum: row.outcome for row in rows if row.name == name}.values()


def read_runs(
    connection: sa.Connection, place: str | None = None, limit: int | None = None, skip: int = 0
) -> list[Ended] | None:
    """Every run that the history has, oldest first; ``None`` where there is no history.

    :param place: see :class:`State`.
    :param limit: only so many of the newest.
    :param skip: without so many that are newer still.
    """
    found = has_release(connection, place)
    if found is None:
        return None
    names = [column for column in history.c if column not in set(_LATER)]
    release = history.c.release if found else sa.null().label(history.c.release.name)
    query = (
        sa.select(*names, release).where(within(connection, history, place)).order_by(history.c.id.desc()).limit(limit)
    )
    if skip:
        query = query.offset(skip)
    runs = []
    for row in reversed(_rows(connection, query, history, place) or []):
        marked = row.outcome == "applied" and row.error in (STAMPED, ADOPTED)
        outcome, error = (row.error, None) if marked else (row.outcome, row.error)
        said = (row.id, row.name, row.checksum, outcome, _utc(row.applied_at), row.duration_ms, row.applied_by)
        runs.append(Ended(*said, row.release, error))
    return runs


def has_release(connection: sa.Connection, place: str | None = None) -> bool | None:
    """Whether the history has the column for the release; ``None`` where there is no history."""
    found = _lacks(connection, place)
    return None if found is None else history.c.release not in found


def has_inverse(connection: sa.Connection, place: str | None = None) -> bool:
    """Whether the history has the column for what takes a run back."""
    found = _lacks(connection, place)
    return found is not None and history.c.inverse not in found


def _lacks(connection: sa.Connection, place: str | None = None) -> list[sa.Column[Any]] | None:
    """Which of the columns of later releases the history lacks; ``None`` where there is no history."""
    try:
        query = sa.select(*_LATER).where(within(connection, history, place)).limit(1)
        return None if _rows(connection, query, history, place) is None else []
    except sa.exc.DBAPIError:
        schema = place or _schema(connection)
        columns = {column["name"] for column in sa.inspect(connection).get_columns(history.name, schema=schema)}
        connection.rollback()
        lacking = [column for column in _LATER if column.name not in columns]
        if not lacking:
            raise
        return lacking


class Made(NamedTuple):
    """A run that applied a migration and was not taken back since.

    :ivar error: a mark, where it was applied without a run.
    :ivar inverse: what takes it back, as JSON; ``None`` where that was not kept.
    """

    number: int
    name: str
    checksum: str
    error: str | None
    inverse: str | None


def read_made(connection: sa.Connection) -> list[Made]:
    """What :func:`read_applied` has, with all runs of the same content, and what takes each back. One query."""
    known = has_inverse(connection)
    inverse = history.c.inverse if known else sa.null().label(history.c.inverse.name)
    query = sa.select(history.c.id, history.c.name, history.c.checksum, history.c.error, inverse, history.c.outcome)
    query = query.where(history.c.outcome.in_(("applied", TAKEN_BACK)), within(connection, history))
    found: list[Made] = []
    for row in _rows(connection, query.order_by(history.c.id), history) or []:
        made = Made(row.id, row.name, row.checksum, row.error, row.inverse)
        if row.outcome == "applied":
            found.append(made)
        else:  # by another tool, it is the last run of that content
            same = [one.number for one in found if (one.name, one.checksum) == (made.name, made.checksum)]
            number = _taken_back(made.inverse) or (same[-1] if same else None)
            found = [one for one in found if one.number != number]
    return found


def _taken_back(inverse: str | None) -> int | None:
    """The number of the run that was taken back; ``None`` where the row does not tell."""
    try:
        return int(json.loads(inverse or "")["of"])
    except (ValueError, TypeError, KeyError):
        return None


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
    return {
        "name": name,
        "failed_at": _utc(failed_at).isoformat(),
        "duration_ms": duration_ms,
        "applied_by": applied_by,
        "error": error,
    }


def last_id(connection: sa.Connection, place: str | None = None) -> int:
    """The number of the newest row of the history, 0 without one. One query.

    :param place: see :class:`State`.
    """
    query = sa.select(sa.func.max(history.c.id)).where(within(connection, history, place))
    rows = _rows(connection, query, history, place)
    return (rows[0][0] if rows else None) or 0


def read_counts(connection: sa.Connection, place: str | None = None) -> dict[str, int]:
    """How many runs the history has of each outcome; see :class:`Ended`. One query.

    :param place: see :class:`State`.
    """
    marked = sa.and_(history.c.outcome == "applied", history.c.error.in_((STAMPED, ADOPTED)))
    mark = sa.case((marked, history.c.error), else_=None).label("mark")
    query = sa.select(history.c.outcome, mark, sa.func.count()).where(within(connection, history, place))
    rows: Sequence[Any] = _rows(connection, query.group_by(history.c.outcome, mark), history, place) or []
    return {mark or outcome: count for outcome, mark, count in rows}


def read_durations(connection: sa.Connection, limit: int, place: str | None = None) -> dict[str, float]:
    """How long the last run took that applied a migration, seconds, by its name. One query.

    :param limit: so many of the newest runs are looked at.
    :param place: see :class:`State`.
    """
    ran = sa.and_(history.c.outcome == "applied", history.c.error.is_(None), within(connection, history, place))
    query = sa.select(history.c.name, history.c.duration_ms).where(ran).order_by(history.c.id.desc()).limit(limit)
    rows: Sequence[Any] = _rows(connection, query, history, place) or []
    return {name: milliseconds / 1000 for name, milliseconds in reversed(rows)}


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
    columns = (history.c.name, history.c.checksum, history.c.applied_by, history.c.error)
    return _rows(connection, sa.select(*columns).where(wanted).order_by(history.c.id), history) or []


def _rows(
    connection: sa.Connection,
    query: sa.Select[Any] | str,
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
            asked = connection.exec_driver_sql(query) if isinstance(query, str) else connection.execute(query)
            return asked.all()
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


def add_columns(connection: sa.Connection) -> set[str]:
    """Give the history of an earlier release the columns of later ones; under the lock, each in its own transaction.

    :returns: names of those that it has; fewer where this user may not change the table, which is no
        reason to migrate nothing.
    """
    lacking = _lacks(connection) or []
    connection.rollback()  # what was only read
    there = {column.name for column in _LATER if column not in set(lacking)}
    if lacking:
        from alembic.ddl.base import AddColumn
    for one in lacking:
        column = sa.Column(one.name, one.type, comment=one.comment)
        try:
            begin(connection)
            connection.execute(AddColumn(history.name, column, schema=translated(connection, None)))
            commit(connection)
        except sa.exc.DBAPIError as error:
            connection.rollback()
            if not facts_of(connection.dialect.name).says(error, "denied"):
                raise
            break
        there.add(one.name)
    return there


def add_index(connection: sa.Connection) -> None:
    """Give the history of an earlier release its index; as :func:`add_columns`."""
    schema, (index,) = _schema(connection), history.indexes
    inspector = sa.inspect(connection)
    missing = inspector.has_table(history.name, schema=schema) and index.name not in {
        found["name"] for found in inspector.get_indexes(history.name, schema=schema)
    }
    connection.rollback()  # what was only read
    if not missing:
        return
    try:
        begin(connection)
        index.create(connection)
        commit(connection)
    except sa.exc.DBAPIError as error:
        connection.rollback()
        if not facts_of(connection.dialect.name).says(error, "denied"):
            raise


def begun(connection: sa.Connection) -> set[str]:
    """Names of migrations that an earlier run left unfinished. One query."""
    return set(connection.scalars(sa.select(progress.c.migration).distinct()))


def undo_mark(number: int) -> str:
    """By what name the journal keeps how far the undo of a run is."""
    return f"(undo {number})"


def half_undone(connection: sa.Connection, place: str | None = None) -> list[int]:
    """Numbers of the runs of which an undo was interrupted, as far as that can be read. One query.

    :param place: see :class:`State`.
    """
    query = sa.select(progress.c.migration).where(progress.c.step == UNDO_BEGUN, within(connection, progress, place))
    try:
        names = [row[0] for row in _rows(connection, query, progress, place) or ()]
    except sa.exc.DBAPIError as error:
        if not facts_of(connection.dialect.name).says(error, "denied"):
            raise
        connection.rollback()
        return []
    return sorted(int(found[1]) for name in names if (found := _UNDO_MARK.fullmatch(name)))


def forget_steps(connection: sa.Connection, names: Collection[str]) -> None:
    """Forget how far runs of migrations had come that another tool has finished, or taken back what comes before them.

    In the transaction of ``connection``.

    :param names: see :meth:`~.boot.planner.Planner.without_steps`.
    """
    for name in begun(connection).intersection(names) if names else ():
        connection.execute(progress.delete().where(progress.c.migration == name))


def missing_tables(connection: sa.Connection) -> set[str]:
    """Names of those of our tables that the database lacks."""
    inspector, schema = sa.inspect(connection), _schema(connection)
    return {table.name for table in metadata.sorted_tables if not inspector.has_table(table.name, schema=schema)}


def record(
    connection: sa.Connection,
    name: str,
    checksum: str,
    seconds: float,
    *,
    error: str | None = None,
    mark: str | None = None,
    release: str | None = None,
    inverse: str | None = None,
) -> None:
    """Append one run of a migration to the history, in the transaction of ``connection``.

    :param seconds: how long the migration ran.
    :param error: why it failed, without password; ``None`` when it was applied.
    :param mark: ``STAMPED`` or ``ADOPTED``, of what was applied without a run; ``TAKEN_BACK`` is an outcome itself.
    :param release: only where the history has that column.
    :param inverse: what takes it back, as JSON; only where the history has that column.
    """
    values = row(name, checksum, seconds, error=error, mark=mark, release=release)
    connection.execute(_RECORD, values if inverse is None else {**values, history.c.inverse.name: inverse})


def row(
    name: str,
    checksum: str,
    seconds: float,
    *,
    error: str | None = None,
    mark: str | None = None,
    release: str | None = None,
) -> dict[str, Any]:
    """One run as the history keeps it; see :func:`record`."""
    said = {} if release is None else {history.c.release.name: release}
    return {
        "name": name,
        "checksum": checksum,
        "applied_at": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds"),
        "duration_ms": round(seconds * 1000, 3),
        "applied_by": _applied_by(),
        "outcome": "failed" if error is not None else TAKEN_BACK if mark == TAKEN_BACK else "applied",
        "error": error or (None if mark == TAKEN_BACK else mark),
        **said,
    }


def update_state(
    connection: sa.Connection,
    source: str,
    databases: Iterable[str],
    versions: VersionTable | None = None,
    learned: Learned | None = None,
    models: str | None = None,
) -> State:
    """Write down what the history now holds, in the transaction of ``connection``.

    :param source: digest of the sources whose migrations for this database are all applied.
    :param databases: names of all databases that those sources concern.
    :param learned: what of ``env.py`` is to be known the next time.
    :param models: see :class:`State`.
    """
    values = {"applied": _digest(connection), "source": source, "databases": _text(databases, learned, models)}
    connection.execute(state.update().where(state.c.id == 1).values(values))
    updated = read_state(connection)
    assert updated is not None
    return updated if versions is None else replace(updated, heads=read_heads(connection, versions))


def _digest(connection: sa.Connection) -> str:
    """What is another text as soon as the history has another row."""
    applied = hashlib.sha256()
    columns = (history.c.id, history.c.name, history.c.checksum, history.c.outcome)
    for run in connection.execute(sa.select(*columns).order_by(history.c.id)):
        applied.update("\0".join(map(str, run)).encode())
    return applied.hexdigest()


def settle(
    connection: sa.Connection,
    found: State,
    source: str,
    databases: Iterable[str],
    learned: Learned | None = None,
    alone: Sequence[tuple[str, str, str]] = (),
    without_steps: Collection[str] = (),
) -> State | None:
    """Write down that a history, found complete, holds these very sources; without the lock, and without waiting.

    A history only grows, so that what it held it holds. Where the row is no longer what was found, or another one has
    it, it is left alone.

    :param found: the state row as it was read with the history.
    :param source: see :func:`update_state`; so are ``databases`` and ``learned``.
    :param alone: names, checksums and marks of revisions that Alembic alone has applied or taken back; the history gets
        a row for each.
    :param without_steps: see :func:`forget_steps`.
    :returns: the state row as it is then; ``None`` where it was left alone.
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
        return None
    for name, checksum, mark in alone:
        record(connection, name, checksum, 0.0, mark=mark)
    forget_steps(connection, without_steps)
    applied = _digest(connection) if alone else found.applied
    values = {"applied": applied, "source": source, "databases": _text(databases, learned, found.models)}
    connection.execute(state.update().where(state.c.id == 1).values(values))
    commit(connection)
    return replace(found, applied=applied, source=source, databases=tuple(databases))


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


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
