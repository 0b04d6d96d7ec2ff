"""Contract steps: migrations that wait until no release that runs has what they take away.

What a step takes away comes from a dry run. Whoever is to run it looks twice: before the lock is taken, so that a step
that waits costs nobody the lock; and again under the lock, after it has written down what it takes away, because only
then no process can register without seeing that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import sqlalchemy as sa

from .dialects.base import facts_of
from .errors import DatabaseUnreachable, shortened
from .notices import logger_of, without_plugin_lines
from .schema.rules import STILL_MAPPED
from .store import releases
from .store.releases import Instance, InTheWay, Touches

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from .boot.plan import Pending, Plan
    from .boot.planner import Planner
    from .preview import Preview
    from .store.database import Database
    from .store.lock import Lock

_logger = logger_of(__name__)

_OFF = (
    "does not run by itself, because DB_SMART_RELEASES is off, so that nobody knows which releases run; set it, or run "
    "'flask db-smart migrate --contract-now {}'"
)
_ANOTHER = "another process looks whether anything is in its way"
_UNREADABLE = "waits, and this user may not read in db_smart_releases for whom"
_NOT_YET = "is looked at by the next process that serves, or by 'flask db-smart migrate'"


@dataclass(frozen=True)
class Waits:
    """Why a step waits.

    :ivar said: with the names of hosts.
    :ivar public: in words for anybody.
    :ivar count: how many instances and sessions it waits for.
    :ivar by_itself: whether that may end without anybody's doing.
    """

    said: str
    public: str
    count: int = 0
    by_itself: bool = True

    @classmethod
    def of(cls, found: InTheWay, touches: Touches) -> Waits:
        """For what is in its way."""
        why = (
            f"; it waits for every other release, because it is not known {touches.unknown}" if touches.unknown else ""
        )
        count = len(found.instances) + sum(found.sessions.values())
        return cls(f"{found}{why}", f"waits for {' and for '.join(found.public)}", count)


class Contracts:
    """The contract steps of one database.

    :param plan: what is pending there.
    """

    def __init__(self, app: Flask, db: SQLAlchemy, planner: Planner, plan: Plan) -> None:
        self._app = app
        self._db = db
        self._planner = planner
        self._plan = plan
        self._database = plan.database

    def look(self, steps: Sequence[Pending], *, often: bool) -> dict[str, Waits]:
        """Which steps wait, and why. Begins nothing.

        :param steps: of the plan.
        :param often: whether this is asked from time to time by every process, of which one is to do it.
        """
        settings, found = self._planner.settings, dict[str, Waits]()
        if settings.releases and self._database.exists:
            with self._database.connect() as connection:
                if not releases.exist(connection):
                    releases.make_tables(connection)
                if often:
                    found = self._told(connection, steps)
        left = [item for item in steps if item.migration.name not in found]
        previews = self._previews(self._plan) if left else {}
        for item in left:
            touches = _touches(previews.get(item.migration.name))
            if not touches:
                continue
            name = item.migration.name
            if not settings.releases:
                said = _OFF.format(name)
                found[name] = Waits(said, said, by_itself=False)
                continue
            with self._database.connect() as connection:
                releases.note(connection, name, self._planner.release, touches)
                way = self._in_the_way(connection, touches)
            if way:
                found[name] = Waits.of(way, touches)
        return found

    def _told(self, connection: sa.Connection, steps: Sequence[Pending]) -> dict[str, Waits]:
        """What is said of the steps that another process has looked at within the time of a lease."""
        lease = self._planner.settings.lock.lease
        names = [item.migration.name for item in steps]
        others = [name for name in names if not releases.claim(connection, name, lease * 0.9)]
        found = told(self._planner, connection, self._me, others) if others else {}
        return {name: found.get(name, Waits(_ANOTHER, _ANOTHER)) for name in others}

    def touched(self, item: Pending) -> Touches:
        """What a step takes away that is to be run now.

        :raises Refused: the models of this release still map it.
        """
        shown = self._previews(replace(self._plan, pending=[item])).get(item.migration.name)
        if shown is not None and shown.refused is not None and shown.refused.rule is STILL_MAPPED:
            raise shown.refused
        return _touches(shown)

    @contextmanager
    def taking(self, name: str, touches: Touches, lock: Lock, *, now: bool) -> Iterator[Waits | None]:
        """Run a step in the block, unless it has to wait; the caller holds the lock.

        :param touches: see :meth:`touched`.
        :param now: whether a person has said that it is not to wait.
        :returns: why it waits; ``None`` where it is to be run.
        """
        settings = self._planner.settings
        if not touches or not settings.releases:
            said = _OFF.format(name)
            yield Waits(said, said, by_itself=False) if touches and not now else None
            return
        with self._database.connect() as connection:
            releases.intend(connection, name, self._planner.release, touches, lock.token)
        try:
            with self._database.connect() as connection:
                way = self._in_the_way(connection, touches)
            if way and now:
                _logger.warning("db-smart: %r is run now, although it %s", name, way)
            yield Waits.of(way, touches) if way and not now else None
        finally:
            try:
                with self._database.connect() as connection:
                    releases.give_way(connection, name)
            except (DatabaseUnreachable, sa.exc.DBAPIError) as error:  # it ends with the lease
                _logger.warning("db-smart: %r still counts as being done: %s", name, self._database.redact(error))

    def _in_the_way(self, connection: sa.Connection, touches: Touches) -> InTheWay:
        return releases.in_the_way(connection, touches, self._me, self._planner.settings.grace)

    @property
    def _me(self) -> Instance:
        return this_release(self._planner, self._database, self._db.metadatas.get(self._database.key))

    def _previews(self, plan: Plan) -> Mapping[str, Preview]:
        """What the pending migrations would do."""
        with without_plugin_lines():
            from .preview import preview  # with Alembic, which who only asks why a step waits does not need

        make = self._planner.settings.create_all
        return {one.name: one for one in preview(self._app, self._db, self._planner, plan, create_all=make)}


def this_release(planner: Planner, database: Database, metadata: sa.MetaData | None) -> Instance:
    """What this code maps on a database.

    :param metadata: the models of it.
    """
    uses = {} if metadata is None else releases.mapped(metadata, database.app_engine)
    return Instance(planner.release, "", uses)


def waits_of(planner: Planner, connection: sa.Connection, plan: Plan, metadata: sa.MetaData | None) -> dict[str, Waits]:
    """Why the contract steps of a plan wait; see :func:`told`.

    :param metadata: the models of its database.
    """
    names = [item.migration.name for item in plan.pending if item.migration.options.contract]
    if not names or plan.database.in_memory:
        return {}
    return told(planner, connection, this_release(planner, plan.database, metadata), names)


def told(planner: Planner, connection: sa.Connection, me: Instance, names: Collection[str]) -> dict[str, Waits]:
    """Why contract steps wait, by what the database says of them; a few queries, and no dry run.

    :param names: of the steps that are pending.
    """
    settings, found = planner.settings, dict[str, Waits]()
    if not settings.releases:
        said = {name: _OFF.format(name) for name in names}
        return {name: Waits(text, text, by_itself=False) for name, text in said.items()}
    known = {}
    try:
        if names and releases.exist(connection):
            known = {one.migration: one.touches for one in releases.read_contracts(connection)}
        for name in names:
            way = releases.in_the_way(connection, known[name], me, settings.grace) if name in known else InTheWay()
            found[name] = Waits.of(way, known[name]) if way else Waits(_NOT_YET, _NOT_YET)
    except sa.exc.DBAPIError as error:
        connection.rollback()
        if not facts_of(connection.dialect.name).says(error, "denied"):
            raise
        return {name: Waits(_UNREADABLE, _UNREADABLE) for name in names}
    return found


def _touches(shown: Preview | None) -> Touches:
    """What a step takes away; what is not known may be anything."""
    if shown is None:
        return Touches(unknown="what it does")
    if shown.refused is not None and shown.refused.rule is STILL_MAPPED:
        return Touches()  # it is refused when it is tried
    if shown.error is not None:
        return shown.touches | Touches(unknown=f"what it takes away, as it would fail now: {shortened(shown.error)}")
    if shown.unknown is not None:
        return shown.touches | Touches(unknown="what it takes away, as only a part of it can be foreseen")
    return shown.touches
