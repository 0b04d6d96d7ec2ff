"""How far each tenant is, in one table of the database that the fleet is led from; and who may lead it.

A row says of which sources a tenant has all, so that one query tells which tenants have nothing to do. What counts is
the tenant's own history all the same: a row that was never written only costs a look at that tenant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain
from typing import Any

import sqlalchemy as sa

from ..beat import Beat
from ..errors import DatabaseUnreachable, LeaseLost, LockTimeout
from ..notices import logger_of
from ..retry import Wait, retry
from ..store.database import Database, begin, commit
from ..store.lock import process_name
from ..store.tables import epoch_us, fleet, fleet_lease, fleet_metadata

_logger = logger_of(__name__)

UP_TO_DATE, PENDING, APPLIED, WAITING, FAILED = "up_to_date", "pending", "applied", "waiting", "failed"
#: How often a change of the ledger is tried again, where another process writes the same rows.
_RETRIES = 10
#: How far ahead a lease ends that may be nobody's, seconds.
_FAR = 3600
#: How often one looks whether the heartbeat of another run goes on, seconds.
_LOOK_EVERY = 0.2


@dataclass(frozen=True)
class Result:
    """What became of one tenant; can be pickled, and holds neither URL nor password.

    :ivar status: ``"up_to_date"``, ``"applied"`` or ``"failed"``.
    :ivar applied: names of the migrations that were applied.
    :ivar duration: seconds.
    :ivar error: why it failed.
    :ivar waiting: names of the contract steps that wait; the next run looks again.
    :ivar database_id: what its own state row says, empty where that is not known; so is ``stamp``.
    """

    name: str
    status: str
    applied: tuple[str, ...] = ()
    duration: float = 0.0
    error: str | None = None
    database_id: str = ""
    stamp: str = ""
    waiting: tuple[str, ...] = ()


class Ledger:
    """The ledger of a fleet.

    :param database: the one that the fleet is led from.
    :param lease: how long a run keeps the fleet without a heartbeat, seconds.
    """

    def __init__(self, database: Database, lease: float) -> None:
        self.database = database
        self._lease = lease
        self._token: int | None = None
        self._lost = False

    def at_head(self, source: str) -> set[str]:
        """The names of the tenants that have all of these sources. One query.

        :raises DatabaseUnreachable: the database cannot be asked.
        """
        query = sa.select(fleet.c.name).where(fleet.c.source == source, fleet.c.status == APPLIED)
        with self._asked(query) as rows:  # all at once: the set has them all anyway
            return set(chain.from_iterable(rows))

    def known(self, source: str) -> dict[str, str]:
        """The names of all tenants that it has, each with how it is; see :meth:`~.fleet.Fleet.status`. One query.

        :param source: see :meth:`at_head`.
        :raises DatabaseUnreachable: the database cannot be asked.
        """
        with self._asked(sa.select(fleet.c.name, fleet.c.source, fleet.c.status), yield_per=1000) as rows:
            shown = {APPLIED: UP_TO_DATE, WAITING: WAITING}
            return {
                row.name: FAILED
                if row.status == FAILED
                else shown.get(row.status, PENDING)
                if row.source == source
                else PENDING
                for row in rows
            }

    def failed(self) -> Iterator[sa.Row[Any]]:
        """The rows of the tenants of which the last run failed, by name. One query."""
        query = sa.select(fleet).where(fleet.c.status == FAILED).order_by(fleet.c.name)
        with self._asked(query, yield_per=1000) as rows:
            yield from rows

    def row(self, name: str) -> sa.Row[Any] | None:
        """The row of a tenant. One query."""
        with self._asked(sa.select(fleet).where(fleet.c.name == name)) as rows:
            return next(iter(rows), None)

    @contextmanager
    def _asked(self, query: sa.Select[Any], **options: Any) -> Iterator[Iterator[sa.Row[Any]]]:
        """The rows of a query; none where no run has made the tables yet."""
        database = self.database
        if not database.exists:
            yield iter(())
            return
        with database.connect() as connection:
            try:
                rows: Iterator[sa.Row[Any]] = iter(connection.execute(query, execution_options=options))
            except sa.exc.DBAPIError as error:
                connection.rollback()
                if self._there(connection):
                    raise DatabaseUnreachable(
                        f"Cannot read the ledger of the fleet in the database {database.name!r}: "
                        f"{database.redact(error)}. Nothing was changed. Fix the cause and try again."
                    ) from None
                rows = iter(())
            yield rows

    @staticmethod
    def _there(connection: sa.Connection) -> bool:
        try:
            return sa.inspect(connection).has_table(fleet.name)
        except sa.exc.DBAPIError:  # it is locked, or the server has gone away
            return True

    def make(self) -> None:
        """Make the tables where they are missing; several processes may do so at once."""
        with self._writing() as connection:

            def attempt() -> None:
                connection.rollback()
                inspector = sa.inspect(connection)
                missing = [one for one in fleet_metadata.sorted_tables if not inspector.has_table(one.name)]
                connection.rollback()
                begin(connection)
                for table in missing:
                    table.create(connection, checkfirst=False)
                if connection.execute(sa.select(fleet_lease.c.id)).first() is None:
                    connection.execute(fleet_lease.insert().values(id=1, token=0, holder="", expires=0))
                commit(connection)

            self._retry(attempt, self._may_pass)

    def write(self, results: Sequence[Result], source: str, release: str | None) -> None:
        """Write down what became of tenants.

        A tenant that failed keeps what is known of it from before; its sources do not count any more.

        :param source: the digest of the sources that were applied.
        :raises LeaseLost: another run has taken the fleet from this one.
        """
        by_name = {one.name: one for one in results}
        if not by_name:
            return
        now = datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds")
        mine, rows = fleet.c.name.in_(by_name), sa.select(fleet.c.name, fleet.c.attempts)
        with self._writing() as connection:

            def attempt() -> None:
                connection.rollback()
                begin(connection)
                if self._token is not None:
                    self._confirm(connection)
                known = {row.name: row.attempts for row in connection.execute(rows.where(mine))}
                values = [_values(one, known.get(one.name, 0), source, release, now) for one in by_name.values()]
                done = [one for one in values if one["status"] != FAILED]
                failures = [one for one in values if one["status"] == FAILED]
                connection.execute(fleet.delete().where(fleet.c.name.in_([one["name"] for one in done])))
                for one in failures:
                    if one["name"] in known:
                        kept = {key: value for key, value in one.items() if key not in ("database_id", "applied")}
                        connection.execute(fleet.update().where(fleet.c.name == one["name"]).values(kept))
                new = done + [one for one in failures if one["name"] not in known]
                if new:
                    connection.execute(fleet.insert(), new)
                commit(connection)

            self._retry(attempt, self._may_pass)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A connection to write with.

        :raises DatabaseUnreachable: it cannot be written.
        """
        try:
            with self.database.connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, DatabaseUnreachable) as error:
            raise DatabaseUnreachable(
                f"Cannot write the ledger of the fleet in the database {self.database.name!r}: "
                f"{self.database.redact(error)}. What was applied to tenants stays applied, and the next run finds it "
                "so. Fix the cause and start again."
            ) from None

    def look_again(self, name: str) -> None:
        """Have the next run look at a tenant, whose database is behind what its row says."""
        self._send(fleet.update().where(fleet.c.name == name, fleet.c.status == APPLIED).values(source=""))

    def forget(self, name: str) -> None:
        """Have no row of a tenant."""
        self._send(fleet.delete().where(fleet.c.name == name))

    def _send(self, statement: sa.Update | sa.Delete) -> None:
        with self._writing() as connection:

            def attempt() -> None:
                connection.rollback()
                begin(connection)
                connection.execute(statement)
                commit(connection)

            self._retry(attempt, lambda error: self.database.says(error, "transient"))

    def _retry(self, attempt: Callable[[], None], again: Callable[[Exception], bool]) -> None:
        deadline = self.database.deadline
        retry(attempt, _RETRIES, lambda error: (deadline is None or time.monotonic() < deadline) and again(error))

    def _may_pass(self, error: Exception) -> bool:
        """Whether an error may come of another process that makes the same table, or writes the same row.

        Databases report that in many ways.
        """
        facts = self.database.facts
        denied = facts.says(error, "denied") or facts.says(error, "read only")
        return isinstance(error, sa.exc.DBAPIError) and not denied

    # -- who leads it

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lead the fleet for the length of a block.

        A run that was killed keeps it until its lease has run out, which is waited for.

        :raises LockTimeout: another run leads it, and is alive.
        """
        self.make()
        self._take()
        heart = Beat("db-smart-fleet", self._beat, self._lease / 3)
        heart.start()
        try:
            yield
        finally:
            heart.stop()
            with suppress(DatabaseUnreachable, sa.exc.DBAPIError):  # the expiry frees it
                self._update({"expires": 0, "holder": ""})
            self._token = None

    def confirm(self) -> None:
        """Make sure that no other run has taken the fleet, as far as this process has learned.

        :raises LeaseLost: one has.
        """
        if self._lost:
            raise self._loss()

    def _take(self) -> None:
        """Take the lease, once it is free."""
        now = epoch_us()
        take = {"token": fleet_lease.c.token + 1, "holder": process_name(), "expires": self._expiry()}
        row = sa.select(fleet_lease).where(fleet_lease.c.id == 1)
        wait: Wait | None = None
        first: sa.Row[Any] | None = None
        with self._writing() as connection:

            def attempt() -> sa.Row[Any] | None:
                connection.rollback()
                begin(connection)
                free: sa.ColumnElement[bool] = fleet_lease.c.expires < now
                if wait is not None and first is not None and wait.over:
                    # Of a clock that was set back since, or of nobody: a holder would have renewed it. One nearer than
                    # that may be of a holder with a longer lease than ours, who renews it less often.
                    silent = sa.and_(
                        fleet_lease.c.token == first.token,
                        fleet_lease.c.expires == first.expires,
                        fleet_lease.c.expires > now + _FAR * 1_000_000,
                    )
                    free = sa.or_(free, silent)
                mine = sa.and_(fleet_lease.c.id == 1, free)
                taken = connection.execute(fleet_lease.update().where(mine).values(take)).rowcount == 1
                found = connection.execute(row).one()
                commit(connection)
                if taken:
                    self._token, self._lost = found.token, False
                return None if taken else found

            def others_were_quicker(error: Exception) -> bool:
                return self.database.says(error, "transient")

            while (found := retry(attempt, _RETRIES, others_were_quicker)) is not None:
                if first is None or wait is None:
                    first, wait = found, Wait((_LOOK_EVERY, _LOOK_EVERY), self._lease)
                if (found.token, found.expires) != (first.token, first.expires):
                    raise LockTimeout(
                        f"The fleet is being migrated by {found.holder}, whose heartbeat is alive. Nothing was "
                        "changed. Start again when it is done; 'flask db-smart fleet status' shows how far it is."
                    )
                holder = found.holder
                wait.look(_logger, lambda: f"{holder}, which migrates the fleet or was killed")  # noqa: B023 - at once

    def _expiry(self) -> sa.ColumnElement[int]:
        return epoch_us() + int(self._lease * 1_000_000)

    def _confirm(self, connection: sa.Connection) -> None:
        if connection.execute(self._mine().values(expires=self._expiry())).rowcount != 1:
            self._lost = True
            raise self._loss()

    def _mine(self) -> sa.Update:
        return fleet_lease.update().where(fleet_lease.c.id == 1, fleet_lease.c.token == self._token)

    def _update(self, values: dict[str, object]) -> bool:
        with self.database.connect() as connection:
            begin(connection)
            changed: int = connection.execute(self._mine().values(values)).rowcount
            commit(connection)
            return changed == 1

    def _beat(self) -> float | None:
        """Renew the lease; returns when to do so again, seconds."""
        try:
            if self._update({"expires": self._expiry()}):
                return self._lease / 3
        except Exception as error:  # whether the lease still holds is seen where it counts
            _logger.warning("db-smart: the heartbeat of the fleet failed: %s", self.database.redact(error))
            return self._lease / 15
        self._lost = True
        return None

    def _loss(self) -> LeaseLost:
        return LeaseLost(
            "This run on the fleet was stopped or disconnected for so long that another one has taken it. What was "
            "applied stays applied. You need not do anything."
        )


def _values(one: Result, attempts: int, source: str, release: str | None, now: str) -> dict[str, Any]:
    failed = one.status == FAILED
    return {
        "name": one.name,
        "database_id": one.database_id,
        "applied": one.stamp,
        "source": "" if failed else source,
        "status": FAILED if failed else WAITING if one.waiting else APPLIED,
        "error": one.error,
        "attempts": attempts + 1 if failed else 0,
        "duration_ms": round(one.duration * 1000, 3),
        "release": release,
        "at": now,
    }
