"""Which releases run on a database, and what a migration with ``contract=True`` would take away from them.

Each host keeps a row for each release that it serves, with the tables and columns that its models map, and until when
it serves without renewing that row. Who takes something away writes down what, commits, and only then looks at those
rows; who registers commits the row, and only then looks at what is being taken away. So of two that do it at the same
time at least one sees the other, and gives way. Nobody holds a lock for that. On the nodes of a Galera cluster it holds
too: a node has committed all that comes before a transaction in their common order when it commits that one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..dialects.base import facts_of
from .database import begin, commit, translated
from .history import schema_of, searches
from .tables import contracts, epoch_us, release_metadata, releases, state

#: Names of tables, each with its schema where it has one, and names of columns; none stand for the whole table.
Names = Mapping[str, Collection[str]]

#: What the connections of an application are called on a server that shows that, before the name of the release.
APPLICATION = "db-smart/"
#: How many bytes of such a name PostgreSQL keeps.
_MOST_OF_NAME = 63
#: After how long without renewal a row is removed, seconds. Until then it tells what that release maps.
FORGET = 7 * 86_400
_SECOND = 1_000_000


@dataclass(frozen=True)
class Touches:
    """What a migration takes away from a release that maps it.

    :ivar gone: what it drops or renames.
    :ivar narrowed: what takes less than before from then on.
    :ivar unknown: why all of it cannot be known; empty where it is known.
    """

    gone: Names = field(default_factory=dict)
    narrowed: Names = field(default_factory=dict)
    unknown: str = ""

    def __bool__(self) -> bool:
        return bool(self.gone or self.narrowed or self.unknown)

    def __or__(self, other: Touches) -> Touches:
        return Touches(
            _both(self.gone, other.gone), _both(self.narrowed, other.narrowed), self.unknown or other.unknown
        )

    def made_again(self, place: str) -> Touches:
        """The same, where what was dropped whole is there again, in another form."""
        if place not in self.gone:
            return self
        gone = {table: columns for table, columns in self.gone.items() if table != place}
        return Touches(gone, {**self.narrowed, place: []}, self.unknown)

    def text(self) -> str:
        """As the database keeps it."""
        said = {name: {table: sorted(found) for table, found in getattr(self, name).items()} for name in _KINDS}
        return json.dumps({**said, "unknown": self.unknown})

    @classmethod
    def of(cls, text: str) -> Touches:
        """From what the database keeps; what is not ours may be anything."""
        try:
            found = json.loads(text)
            gone, narrowed = ({str(key): [*map(str, its)] for key, its in found[one].items()} for one in _KINDS)
            return cls(gone, narrowed, str(found["unknown"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(unknown="it was written by another release")


_KINDS = ("gone", "narrowed")


def _both(one: Names, other: Names) -> Names:
    found = dict(one)
    for table, columns in other.items():
        whole = not columns or (table in found and not found[table])
        found[table] = [] if whole else sorted({*found.get(table, ()), *columns})
    return found


@dataclass(frozen=True)
class Instance:
    """The processes of one host that serve a release.

    :ivar key: names the host, and what tells these processes from others of a host of that name.
    :ivar uses: what the models map.
    """

    release: str
    key: str
    uses: Names

    @property
    def host(self) -> str:
        """Name of the host."""
        return self.key.rpartition(":")[0]


@dataclass(frozen=True)
class Seen(Instance):
    """An instance as the database has it.

    :ivar seconds: since when it has not renewed its row.
    :ivar over: whether it serves no longer, unless it registers again.
    :ivar known: whether its row tells what the models map; else it may be anything.
    """

    seconds: float
    over: bool = False
    known: bool = True


class Contract(NamedTuple):
    """A migration that takes something away, as the database has it.

    :ivar release: that of whoever tried it last.
    :ivar under_way: whether it is being done.
    """

    migration: str
    release: str
    touches: Touches
    under_way: bool


@dataclass(frozen=True)
class InTheWay:
    """What a migration waits for.

    :ivar instances: those that have what it takes away.
    :ivar sessions: by the name of a release, how many sessions of the server it has, where no row tells of it.
    """

    instances: list[Seen] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.instances or self.sessions)

    @property
    def clauses(self) -> list[str]:
        """What is waited for, with the names of hosts."""
        return self._said(hosts=True)

    @property
    def public(self) -> list[str]:
        """The same, without the names of hosts."""
        return self._said(hosts=False)

    def _said(self, *, hosts: bool) -> list[str]:
        said = []
        by_release: dict[str, list[Seen]] = {}
        for one in self.instances:
            by_release.setdefault(one.release, []).append(one)
        for release, found in by_release.items():
            names = sorted({one.host for one in found})
            where = f" (host{'s' if len(names) > 1 else ''} {', '.join(names)})" if hosts else ""
            count = f"{len(found)} instance{'s' if len(found) > 1 else ''}"
            last = min(one.seconds for one in found)
            said.append(f"{count} of release {release}{where}, last seen {max(0, last):.0f} s ago")
        for release, number in self.sessions.items():
            said.append(f"{number} session{'s' if number > 1 else ''} of release {release} that no host tells of")
        return said

    def __str__(self) -> str:
        return f"waits for {' and for '.join(self.clauses)}"


def mapped(metadata: sa.MetaData, engine: sa.Engine) -> dict[str, list[str]]:
    """What models map, by the names that a database compares."""
    facts = facts_of(engine.dialect.name)
    found = {}
    for table in list(metadata.tables.values()):  # another thread may import more
        schema = translated(engine, table.schema)
        name = facts.normalize_name(table.name if schema is None else f"{schema}.{table.name}")
        found[name] = sorted({facts.normalize_name(column.name) for column in list(table.columns)})
    return dict(sorted(found.items()))  # whatever is imported first


def overlap(touched: Names, uses: Names) -> list[str]:
    """What of that models map: tables, and columns such as ``users.fax``."""
    return sorted({table if column is None else f"{table}.{column}" for table, column in _shared(touched, uses)})


def lost(connection: sa.Connection, touched: Names, uses: Names) -> list[str]:
    """As :func:`overlap`, of that alone which the database does not have. Leaves no transaction."""
    found = set()
    for table, column in _shared(touched, uses):
        schema, _, name = table.rpartition(".")
        there = facts_of(connection.dialect.name).column_names(connection, schema or None)
        if not any(name == one and column in (None, of) for one, of in there):
            found.add(table if column is None else f"{table}.{column}")
    connection.rollback()
    return sorted(found)


def _shared(touched: Names, uses: Names) -> Iterator[tuple[str, str | None]]:
    """The tables that models map, each with a column, or with ``None`` for the whole of it."""
    for table, columns in touched.items():
        for used, its in uses.items():
            if _same(table, used):
                shared: list[str | None] = [one for one in columns if one in its] if columns else [None]
                yield from ((used, one) for one in shared)


def _same(one: str, other: str) -> bool:
    """Whether two names may be of one table; one without a schema is wherever the connection looks."""
    (schema, _, name), (place, _, found) = one.rpartition("."), other.rpartition(".")
    return name == found and (schema == place or not schema or not place)


# -- the tables


def make_tables(connection: sa.Connection) -> None:
    """Make the tables of this module where they are missing; safe when many do so at once. Leaves no transaction.

    They lie beside the row of the state, wherever the search path of PostgreSQL finds that.

    :raises sqlalchemy.exc.DBAPIError: the database refuses them.
    """
    schema = translated(connection, None)
    if searches(connection):
        schema = connection.scalar(sa.select(sa.literal_column(schema_of(state), sa.Text())))
    for table in release_metadata.sorted_tables:
        for last in (False, True):
            try:
                if sa.inspect(connection).has_table(table.name, schema=schema):
                    break
                connection.rollback()
                begin(connection)
                made = table if schema is None else table.to_metadata(sa.MetaData(), schema=schema)
                made.create(connection, checkfirst=False)
                connection.commit()
            except sa.exc.DBAPIError:  # another one made it between our look and our act
                connection.rollback()
                if last and not sa.inspect(connection).has_table(table.name, schema=schema):
                    raise
    connection.rollback()


def exist(connection: sa.Connection) -> bool:
    """Whether there are all the tables of this module. Leaves no transaction."""
    try:
        for table in release_metadata.sorted_tables:  # who made one may have ended before the next
            connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).all()
        return True
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated or not facts_of(connection.dialect.name).says(error, "missing"):
            raise
        return False
    finally:
        connection.rollback()


# -- who serves


def register(connection: sa.Connection, me: Instance, seconds: float) -> None:
    """Write down, for good, that an instance serves; then look at :func:`read_contracts`.

    :param seconds: for how long without :func:`renew`.
    """
    changes = {**_until(seconds), "uses": json.dumps({table: sorted(columns) for table, columns in me.uses.items()})}
    values = {"release": me.release, "instance": me.key, "started": epoch_us(), **changes}
    facts = facts_of(connection.dialect.name)
    for last in (False, True):
        try:
            with _written(connection):
                connection.execute(facts.upsert(releases, values, changes))
            return
        except sa.exc.DBAPIError as error:  # another process of this host makes the row at the same time
            if last or not facts.says(error, "deadlock"):
                raise


def renew(connection: sa.Connection, me: Instance, seconds: float) -> bool:
    """Go on serving; nobody need look for that, because whoever takes something away has seen the row.

    :returns: ``False`` where the row has run out, or is gone, so that it is to be registered again.
    """
    held = sa.and_(_is(me), releases.c.seen_until > epoch_us())
    with _written(connection):
        renewed: bool = connection.execute(releases.update().where(held).values(**_until(seconds))).rowcount == 1
    return renewed


def withdraw(connection: sa.Connection, me: Instance) -> None:
    """Remove the row of an instance that does not serve."""
    with _written(connection):
        connection.execute(releases.delete().where(_is(me)))


def forget(connection: sa.Connection) -> None:
    """Remove the rows of instances that ended long ago."""
    with _written(connection):
        connection.execute(releases.delete().where(releases.c.seen_until < epoch_us() - FORGET * _SECOND))


@contextmanager
def _written(connection: sa.Connection) -> Iterator[None]:
    """A transaction of its own, committed at the end."""
    connection.rollback()  # what was only read
    begin(connection)
    try:
        yield
        commit(connection)
    except BaseException:
        connection.rollback()
        raise


@contextmanager
def _read(connection: sa.Connection) -> Iterator[None]:
    """A transaction that begins now, so that it sees all that is committed by now."""
    connection.rollback()
    yield
    connection.rollback()


def _until(seconds: float) -> dict[str, Any]:
    return {"seen_at": epoch_us(), "seen_until": epoch_us() + int(seconds * _SECOND)}


def _is(me: Instance) -> sa.ColumnElement[bool]:
    return sa.and_(releases.c.release == me.release, releases.c.instance == me.key)


def read_instances(connection: sa.Connection, grace: float, *, living: bool = False) -> list[Seen]:
    """Every instance that the database knows, in a transaction that begins now. One query.

    :param grace: for how long a request may go on that began in time, seconds.
    :param living: whether those that are over are left out, which may be all pods of a week.
    """
    query = sa.select(releases, epoch_us().label("now")).order_by(releases.c.instance)
    if living:
        query = query.where(releases.c.seen_until >= epoch_us() - int(grace * _SECOND))
    with _read(connection):
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        uses, over = _uses(row.uses), row.seen_until + int(grace * _SECOND) < row.now
        seconds = (row.now - row.seen_at) / _SECOND
        found.append(Seen(row.release, row.instance, uses or {}, seconds, over, known=uses is not None))
    return found


def _uses(text: str) -> Names | None:
    """From what the database keeps; ``None`` where it is not ours."""
    try:
        found = json.loads(text)
        names = [*found, *(name for its in found.values() for name in its)]
        ours = all(isinstance(its, list) for its in found.values()) and all(isinstance(name, str) for name in names)
        return found if ours else None
    except (ValueError, TypeError, AttributeError):
        return None


# -- who takes something away


def read_contracts(connection: sa.Connection, *, holds: bool | None = None) -> list[Contract]:
    """What is, was or is to be taken away, in a transaction that begins now. One query.

    :param holds: whether somebody holds the lock; ``None`` where the row of the lease tells.
    """
    with _read(connection):
        rows = connection.execute(sa.select(contracts, _lease_holds(contracts.c.token).label("holds"))).all()
    return [
        Contract(row.migration, row.release, Touches.of(row.touches), _begun(row.token, row.holds, holds))
        for row in rows
    ]


def _begun(token: int, lease: int, holds: bool | None) -> bool:
    return token != 0 and bool(lease if holds is None else holds)


def _lease_holds(token: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Whether a token is that of a lease which holds: what its holder had begun is void when it is not."""
    mine = sa.exists().where(state.c.id == 1, state.c.token == token, state.c.lease_expires >= epoch_us())
    return sa.case((mine, 1), else_=0)


def claim(connection: sa.Connection, migration: str, seconds: float) -> bool:
    """Whether it is this process's turn to try a migration that waits, of all that do so from time to time.

    :param seconds: how often one of them is to.
    """
    mine = contracts.c.migration == migration
    due = sa.and_(mine, contracts.c.looked < epoch_us() - int(seconds * _SECOND))
    with _written(connection):
        if connection.execute(contracts.update().where(due).values(looked=epoch_us())).rowcount == 1:
            return True
        return not connection.execute(sa.select(contracts.c.token).where(mine)).all()


def note(connection: sa.Connection, migration: str, release: str, touches: Touches) -> None:
    """Write down what a migration would take away that waits; what somebody is at stays as it is."""
    values = {"release": release, "touches": touches.text(), "looked": epoch_us()}
    mine = contracts.c.migration == migration
    try:
        with _written(connection):
            if not connection.execute(sa.select(contracts.c.token).where(mine)).all():
                connection.execute(contracts.insert().values(migration=migration, token=0, **values))
            connection.execute(contracts.update().where(mine, contracts.c.token == 0).values(values))
    except sa.exc.IntegrityError:  # another process has noted it just now
        return


def intend(connection: sa.Connection, migration: str, release: str, touches: Touches, token: int) -> None:
    """Write down, for good, what a migration takes away; then look at :func:`in_the_way`. The caller holds the lock.

    :param token: of the lease.
    """
    values = {"release": release, "touches": touches.text(), "token": token, "looked": epoch_us()}
    mine = contracts.c.migration == migration
    with _written(connection):
        if connection.execute(contracts.update().where(mine).values(values)).rowcount != 1:
            connection.execute(contracts.insert().values(migration=migration, **values))
        # Whoever held the lock before is not at it any more.
        connection.execute(contracts.update().where(contracts.c.migration != migration).values(token=0))


def give_way(connection: sa.Connection, migration: str) -> None:
    """Take back that a migration is begun."""
    with _written(connection):
        connection.execute(contracts.update().where(contracts.c.migration == migration).values(token=0))


def in_the_way(connection: sa.Connection, touches: Touches, me: Instance, grace: float) -> InTheWay:
    """Who has what a migration takes away.

    :param me: the release that knows the migration; what it only narrows does not harm this one.
    :param grace: see :func:`read_instances`.
    """
    living = read_instances(connection, grace, living=True)
    waited = [one for one in living if not one.over and harmed(touches, one, me)]
    sessions = _sessions(connection)
    sessions.pop(session_name(me.release), None)
    for one in waited:  # a row says more than the sessions of its release
        sessions.pop(session_name(one.release), None)
    for release, uses in _told_of(connection, sessions):
        if not any(harmed(touches, Instance(release, "", one), me) for one in uses):
            sessions.pop(session_name(release), None)
    return InTheWay(waited, {name.removeprefix(APPLICATION): count for name, count in sessions.items()})


def _told_of(connection: sa.Connection, sessions: Collection[str]) -> list[tuple[str, list[Names]]]:
    """What rows tell that the releases map which sessions are named by, also where the instances are over."""
    if not sessions:
        return []
    with _read(connection):
        names = connection.scalars(sa.select(releases.c.release).distinct()).all()
        named = [name for name in names if session_name(name) in sessions]
        query = sa.select(releases.c.release, releases.c.uses).distinct().where(releases.c.release.in_(named))
        rows = connection.execute(query).all() if named else []
    found: dict[str, list[Names | None]] = {}
    for release, uses in rows:
        found.setdefault(release, []).append(_uses(uses))
    # Where one cannot be read, it may map anything.
    return [(release, [one for one in uses if one is not None]) for release, uses in found.items() if None not in uses]


def harmed(touches: Touches, one: Instance, me: Instance) -> bool:
    """Whether an instance has what a migration takes away."""
    if isinstance(one, Seen) and not one.known:
        return bool(touches)
    if overlap(touches.gone, one.uses):
        return True
    same = one.release == me.release and _sorted(one.uses) == _sorted(me.uses)
    return not same and bool(touches.unknown or overlap(touches.narrowed, one.uses))


def _sorted(uses: Names) -> dict[str, list[str]]:
    return {table: sorted(columns) for table, columns in uses.items()}


def session_name(release: str) -> str:
    """What the sessions of a release are called: in ASCII, and so short that a server shows all of it."""
    name = f"{APPLICATION}{release}".encode("ascii", "backslashreplace").decode()
    if len(name) <= _MOST_OF_NAME:
        return name
    digest = hashlib.sha256(release.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{name[: _MOST_OF_NAME - 9]}~{digest}"


def _sessions(connection: sa.Connection) -> dict[str, int]:
    """How many sessions have such a name, where a server tells; of this database."""
    query = facts_of(connection.dialect.name).sessions
    if query is None:
        return {}
    found: dict[str, int] = dict(connection.execute(sa.text(query), {"name": f"{APPLICATION}%"}).all())
    connection.rollback()
    return found
