"""Apply what is pending: each migration and its record in one transaction where the database can.

``Runner.run`` goes through the databases, ``DatabaseRun.run`` through the migrations of one; ``apply`` tries one
migration as often as is allowed, and ``apply_once`` runs it and records it.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from textwrap import indent
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
from flask import Flask, current_app, has_app_context
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy.orm import scoped_session

from .boot.plan import Pending, Plan
from .boot.planner import Planner
from .dialects.base import facts_of
from .errors import (
    DatabaseUnreachable,
    DbSmartError,
    HistoryUnreadable,
    Interrupted,
    LeaseLost,
    MigrationFailed,
    plain,
    scrub,
)
from .first_run import loosen, made_otherwise, tighten, warn_of_lost_history
from .interrupt import GiveWay, ending, interruptible
from .loading.decorator import Migration, Options
from .loading.loader import location, location_in
from .notices import logger_of
from .operations import Operations
from .retry import ASKED_AGAIN, back_off
from .revising import HeadsMoved, Revising
from .schema import model_names, model_tables
from .schema.guard import Guard
from .schema.rules import Refused
from .session.environment import Environment
from .session.journal import Journal
from .session.lock_timeout import DdlLockTimeout
from .session.rebind import commit_session, rebind
from .session.statement_progress import statements_watched
from .session.transaction import RunTransaction, tried_again
from .signals import migration_applied, migration_failed, migration_progress, migration_started, send
from .spans import Statements
from .store import history, snapshot
from .store.database import Database, begin, commit, engines_of, safe_url
from .store.history import State, VersionTable
from .store.lock import lock_of
from .store.memory import Memory, insert

if TYPE_CHECKING:
    from alembic.config import Config

    from .contract import Waits
    from .session.replay import RevisionJournal
    from .store.releases import Touches

_logger = logger_of(__name__)

#: How often a run asks again because another tool writes to Alembic's version table.
_MOST_MOVES = 5


@dataclass(frozen=True)
class Run:
    """A migration that was applied.

    :ivar duration: seconds.
    """

    migration: str
    database: str
    duration: float


@dataclass
class Outcome:
    """The result of a run.

    :ivar runs: what was applied, in order.
    :ivar states: the state row of each database.
    :ivar changed: whether this process did anything; ``False`` if another one had done all of it.
    :ivar made: the lost tables of the models that were made again.
    :ivar complete: whether every database of the application was migrated, so that the flag was written.
    :ivar left: names of the migrations with ``background=True`` or ``contract=True`` that are still to run.
    :ivar waiting: why contract steps wait, by name.
    """

    runs: list[Run] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    changed: bool = False
    made: list[str] = field(default_factory=list)
    complete: bool = False
    left: list[str] = field(default_factory=list)
    waiting: dict[str, Waits] = field(default_factory=dict)


class Runner:
    """Applies the pending migrations of an application, one process at a time.

    :ivar leaving: whether migrations with ``background=True`` or ``contract=True`` are left for later.
    :ivar contract_now: names of contract steps that are not to wait, because a person has said so.
    :ivar slice: after how long a backfill gives the lock to others, seconds; ``None`` for never.
    """

    leaving = False
    slice: float | None = None
    contract_now: Collection[str] = ()

    def __init__(self, app: Flask, db: SQLAlchemy, planner: Planner) -> None:
        #: Databases and names of the migrations that were told to begin; later parts of a run do not tell it again.
        self.told: set[tuple[str, str]] = set()
        self.app = app
        self.db = db
        self.planner = planner
        self.settings = planner.settings

    def run(
        self,
        databases: Iterable[Database],
        *,
        force: bool = False,
        remake: bool = False,
        kind: Callable[..., DatabaseRun] | None = None,
    ) -> Outcome:
        """Apply what is pending on each database, in order.

        :param databases: the databases to migrate.
        :param force: run every repeatable migration again.
        :param remake: create the lost tables of the models again.
        :param kind: makes the run on one database, in the place of :class:`DatabaseRun`.
        :raises MigrationFailed: a migration raised; those before it stay applied.
        :raises LockTimeout: another process migrated for too long.
        :raises LeaseLost: this process was stopped for so long that another one took over.
        :raises Interrupted: SIGTERM or Ctrl-C.
        :raises DatabaseUnreachable: a database cannot be reached.
        :raises DbSmartError: a database refuses what is not a migration's: our tables, a lock; or
            ``DB_SMART_MIGRATION_URL`` leads to another database than that of the application.
        """
        databases, planner, outcome = list(databases), self.planner, Outcome()
        for database in databases:
            self.check_led(database)
        for database in databases:
            make = kind or DatabaseRun
            before, tries = len(outcome.runs), 0
            while database.name not in outcome.states:
                run = make(self, database, outcome, force=force, remake=remake and self.settings.create_all)
                try:
                    with run.observed(), interruptible(database.name, lambda run=run: run.doing):  # type: ignore[misc]
                        outcome.states[database.name] = run.run()
                except (MigrationFailed, Interrupted):
                    # What it changed is not what the flag remembers; the next boot would take it for somebody else's
                    # work.
                    planner.forget()
                    raise
                except (sa.exc.SQLAlchemyError, OSError, DbSmartError) as error:
                    tries += 1
                    done = len(outcome.runs) - before
                    if not done and tries <= ASKED_AGAIN and database.says(error, "deadlock"):
                        back_off(tries)
                        continue
                    if isinstance(error, DbSmartError):
                        raise
                    raise DbSmartError(
                        f"Cannot migrate the database {database.name!r} ({database.url}): {database.redact(error)}. "
                        f"Migrations applied before that, which stay applied: {done or 'none'}. Fix the cause and "
                        "start again."
                    ) from error
        # Where two names lead to one database, the run on the second has changed the row of the first.
        last = {state.database_id: state for state in outcome.states.values()}
        outcome.states = {name: last[state.database_id] for name, state in outcome.states.items()}
        for database in databases:
            self._check_same(database, outcome.states[database.name])
        reached = outcome.states.keys() == {database.name for database in planner.involved}
        outcome.complete = reached and not outcome.left
        if outcome.complete:
            planner.remember(outcome.states)
        return outcome

    def check_led(self, database: Database) -> None:
        """Make sure that ``DB_SMART_MIGRATION_URL`` leads to the database whose history the application reads.

        :raises DbSmartError: it does not; nothing was changed.
        """
        if database.migration_url is None:
            return
        planner = self.planner
        try:
            served = planner.state(Database(database.name, database.key, database.app_engine))
        except DbSmartError:  # it may not be read, or is not reached yet: looked at again when it is migrated
            return
        led = None if served is None else planner.state(database)
        if served is not None and (led is None or led.database_id != served.database_id):
            raise DbSmartError(
                f"DB_SMART_MIGRATION_URL of {database.name!r} leads to {safe_url(database.engine.url)}, which is "
                f"another database than the one that the application uses and that has its history ({database.url}). "
                "Nothing was changed. Correct one of them."
            )

    def _check_same(self, database: Database, migrated: State) -> None:
        """Make sure that what was migrated is what the application uses.

        :raises DbSmartError: it is not.
        """
        if database.migration_url is None:
            return
        served = Database(database.name, database.key, database.app_engine)
        try:
            found = self.planner.state(served)
        except HistoryUnreadable as error:
            _logger.warning("db-smart: the migrations are applied. %s", error.message)
            return
        if found is None or found.database_id != migrated.database_id:
            raise DbSmartError(
                f"The migrations of {database.name!r} were applied through DB_SMART_MIGRATION_URL, but "
                f"{database.url}, which the application uses, is another database. Correct one of them."
            )


class DatabaseRun:
    """The run on one database.

    :param outcome: takes what it does.
    :ivar doing: what a signal would interrupt: the name of the running migration, empty between two;
        ``None`` while another process holds the lock.
    """

    connection: sa.Connection
    memory: Memory
    _lock_timeout: DdlLockTimeout
    #: Names of migrations of which an earlier try may have left steps.
    _begun: set[str]
    #: Names and checksums of the migrations that were applied before.
    _contents: set[tuple[str, str]]
    #: Whether the migration that runs has committed a part of its work.
    _committed = False
    #: Whether db-smart had not begun the revision that failed, so that what is in its way may be another tool's.
    _by_other = False
    #: Name of a migration of this run -> its number, from 1.
    _places: dict[str, int]
    #: Whether this run leaves migrations for the background.
    _leaves = False
    #: When the lock was taken, and when a backfill first told how far it was; seconds of the monotonic clock.
    _taken_at = 0.0
    _first_told: float | None = None
    #: How far a backfill was when it last told that, and whether one has come further in this run.
    _last_told = 0
    _moved = False
    #: The id in the state row of the database.
    database_id: str
    #: What the history calls this release; ``None`` also where its table has no place for it.
    _release: str | None = None
    #: Whether the history has a place for what takes a run back.
    _keeps_inverse = False

    def __init__(self, runner: Runner, database: Database, outcome: Outcome, *, force: bool, remake: bool) -> None:
        self.database = database
        self.lock = lock_of(database, runner.settings.lock)
        self.statements = Statements(self._system, database.app_engine.url.database)
        self.doing: str | None = None
        self._runner = runner
        self._outcome = outcome
        #: What the migrations that this run applies have in common in the history.
        self._together = uuid.uuid4().hex[:12]
        self._force = force
        self._remake = remake
        #: The schema cookie before migrations run, on SQLite in WAL mode.
        self._wal_version: int | None = None
        #: The last row of the history before this process waited for the lock; ``None`` where it was not asked.
        self._seen: int | None = None

    def _system(self) -> str:
        """The kind of database as OpenTelemetry names it."""
        return "mariadb" if getattr(self.database.app_engine.dialect, "is_mariadb", False) else self.database.facts.name

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Have the database tell what is sent, for as long as this run lasts."""
        self.database.statements = self.statements
        try:
            with self.statements.run():
                yield
        finally:
            self.database.statements = None

    def run(self) -> State:
        """Apply what is pending, in order, while this process holds the lock.

        :returns: the state row as it is afterwards.
        """
        self._refuse_made_otherwise()
        found = self._reach() or self._look_at_contracts()
        if found is not None:
            return found
        with self.lock.held(self._complete) as held:
            if held:
                self.doing, self._taken_at = "", time.monotonic()
                watched = statements_watched(
                    self._runner.app, self.database, self.lock, self.statements, lambda: self.doing
                )
                with watched, self.database.connect() as self.connection:
                    plan = self._begin()
                    if isinstance(plan, State):
                        return plan
                    self._places = {item.migration.name: index for index, item in enumerate(plan.pending, 1)}
                    if any(item.migration.revision for item in plan.pending):
                        self._revise(plan)
                    for item in plan.pending:
                        if self._waits_for_releases(item.migration):
                            self._take_away(item, plan)
                        elif not item.migration.revision:
                            self.apply(item)
                    return self._finish(plan)
        planner = self._runner.planner
        if self._runner.leaving:
            self._leave(planner.ask(self.database))
        state = planner.state(self.database)
        if state is None:
            raise DbSmartError(
                f"The database {self.database.name!r} was emptied while this process waited. Start again."
            )
        return state

    def _refuse_made_otherwise(self) -> None:
        """Leave a database as it is that was not made by the revisions of Alembic which are pending.

        Where another process may be making it now, this is found out under the lock.

        :raises DbSmartError: it was not.
        """
        planner, database = self._runner.planner, self.database
        if planner.versions is None or not database.exists:
            return
        with database.connect() as connection:
            refusal = self._refusal(planner.by_connection(database, connection), connection)
        if refusal is not None and database.facts.server and planner.state(database) is None:
            raise DbSmartError(refusal)

    def _refusal(self, plan: Plan, connection: sa.Connection) -> str | None:
        """Why a database is left as it is; see :func:`~.first_run.made_otherwise`."""
        versions, metadata = self._runner.planner.versions, self._runner.db.metadatas.get(self.database.key)
        return None if versions is None else made_otherwise(self.database, connection, plan, metadata, versions)

    def _reach(self) -> State | None:
        """Make what the lock needs: the folder of the file, or the row of the lease.

        :returns: the state row, where the history lies in another schema and nothing is pending by it.
        :raises DbSmartError: something is pending by such a history.
        """
        database, planner = self.database, self._runner.planner
        if database.path is not None:
            database.path.parent.mkdir(parents=True, exist_ok=True)
        if not database.facts.server:
            return None
        found = planner.state(database)
        if found is not None and found.place is not None:
            plan = planner.ask(database, force=self._force)
            if plan.behind:
                plan.refuse_elsewhere()
            found = plan.state
            if found is not None:
                return found
        with database.connect() as connection:
            if found is None:
                history.create_state(connection)
            if planner.since is not None and not self._force:
                self._seen = history.last_id(connection)
        return None

    def _waits_for_releases(self, migration: Migration) -> bool:
        """Whether a migration is a contract step, and other processes may use the database."""
        return migration.options.contract and not self.database.in_memory

    def _look_at_contracts(self) -> State | None:
        """Find out which contract steps have to wait, before the lock is taken.

        :returns: the state row, where nothing else is to be done.
        """
        planner, runner = self._runner.planner, self._runner
        if runner.leaving or not any(map(self._waits_for_releases, planner.of(self.database))):
            return None
        plan = planner.ask(self.database, force=self._force)
        steps = [
            item
            for item in plan.pending
            if self._waits_for_releases(item.migration) and item.migration.name not in runner.contract_now
        ]
        if steps:
            self._outcome.waiting |= self._waiting(plan, steps)
        rest = [item for item in plan.pending if item.migration.name not in self._outcome.waiting]
        if rest or not plan.pending or self._remake or plan.state is None or plan.foreign or not plan.first_run_done:
            return None
        self._leave(plan)
        return plan.state

    def _waiting(self, plan: Plan, steps: list[Pending]) -> dict[str, Waits]:
        """Which contract steps have to wait, and why."""
        from .contract import Contracts

        runner = self._runner
        contracts = Contracts(runner.app, runner.db, runner.planner, plan)
        return contracts.look(steps, often=runner.planner.settings.idle)

    def _take_away(self, item: Pending, plan: Plan) -> None:
        """Apply a contract step, unless it has to wait.

        :raises MigrationFailed: see :meth:`apply`.
        """
        from .contract import Contracts

        runner, name = self._runner, item.migration.name
        contracts = Contracts(runner.app, runner.db, runner.planner, plan)
        self.connection.rollback()  # what was only read
        try:
            touches = contracts.touched(item)
        except Refused as error:
            self.begin_item(item)
            self._fail(item, error, 0.0)
        now = name in runner.contract_now
        with contracts.taking(name, touches, self.lock, now=now) as waits:
            if waits is None:
                self._confirm()
                # What is unknown has been waited for by every release.
                self.apply(item, None if now or touches.unknown else touches)
                return
        self._put_off(name, waits)

    def _confirm(self) -> None:
        """Make sure that this process still holds the lock."""
        begin(self.connection)
        self.lock.confirm(self.connection)
        commit(self.connection)

    def _put_off(self, name: str, waits: Waits) -> None:
        """Leave a contract step to a later run."""
        self._outcome.waiting[name] = waits
        self._outcome.left.append(name)
        self._leaves = True

    def _complete(self, state: State) -> bool:
        """Whether another process has done all that there was to do."""
        if self._force or self._remake:
            return False
        planner = self._runner.planner
        found = state if planner.versions is None else planner.state(self.database)  # with the heads of Alembic
        return found is not None and planner.complete(self.database, found, leaving=self._runner.leaving)

    def _begin(self) -> Plan | State:
        """Ask again, now under the lock, and prepare the run.

        :returns: what is to be done; the state row where there is nothing.
        """
        database, connection, planner = self.database, self.connection, self._runner.planner
        if planner.since is not None and not self._force:
            self._leave_failed(planner.since)
        self._wal_version = _wal_schema_version(connection)
        plan = planner.by_connection(database, connection, force=self._force)
        refusal = self._refusal(plan, connection)
        connection.rollback()  # what was only read
        plan.refuse_half_undone()
        if refusal is not None:
            raise DbSmartError(refusal)
        self._leave(plan)
        if planner.since is None:  # a command; a boot has said it when it asked
            plan.log_edited_once()
        first = not plan.first_run_done
        missing = self._missing() if self._remake and not first else []
        if not (plan.behind or missing) and plan.state is not None and plan.state.source == self._source(plan.heads):
            return plan.state
        if plan.behind and not self._goes_on(plan):
            name = plan.pending[0].migration.name if plan.pending else "first_run"
            snapshot.take(self._runner.app, database, connection, name)
        self._outcome.changed |= plan.behind
        self._lock_timeout = DdlLockTimeout(database, connection, self._runner.settings.ddl.lock_timeout)
        self._begun, self.memory = tried_again(database, lambda: self._prepare(plan), self._runner.settings.ddl.retries)
        self._contents = {(item.name, item.checksum) for item in plan.applied}
        had = self.memory.had(missing) if plan.pending else missing
        # While migrations are pending, only tables that existed once are lost: the others may still be created.
        lost = missing if had is None and self._force else had or []
        if lost:
            self._make_lost(lost)
        return plan

    def _goes_on(self, plan: Plan) -> bool:
        """Whether this is one more part of a run in the background, before which there was a snapshot."""
        first = plan.pending[0] if plan.pending else None
        if self._runner.slice is None or first is None or not first.left:
            return False
        found = first.migration.name in history.begun(self.connection)
        self.connection.rollback()  # what was only read
        return found

    def _leave(self, plan: Plan) -> None:
        """Take what runs in the background out of a plan, where this run leaves it, and contract steps that wait."""
        left = [item for item in plan.pending if item.left] if self._runner.leaving else []
        left += [item for item in plan.pending if item.migration.name in self._outcome.waiting and item not in left]
        plan.pending = [item for item in plan.pending if item not in left]
        self._outcome.left += [item.migration.name for item in left]
        self._leaves = bool(left)

    def _source(self, heads: tuple[str, ...] | None) -> str:
        """What the state row is to say at the end of this run."""
        planner = self._runner.planner
        return planner.partly(heads) if self._leaves else planner.source(heads)

    def _finish(self, plan: Plan) -> State:
        """See to the tables of the models, and bring the state row up to date."""
        database = self.database
        missing = self._missing()
        if missing and self._remake and plan.first_run_done:
            missing = self._make_lost(missing)
        if missing:
            names = [table.key for table in missing]
            _logger.warning("db-smart: %s", model_tables.lost(database.name, names, self.memory.taken(missing)))
        there = [table for table in self._models() if table not in missing]
        tighten(self)
        state = tried_again(
            database, lambda: self._update_state(there, migrated=bool(plan.pending)), self._runner.settings.ddl.retries
        )
        if self._wal_version is not None:
            self.connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        if plan.behind:
            snapshot.prune(self._runner.app, database, state.database_id)
        return state

    def _leave_failed(self, since: datetime) -> None:
        """Leave a migration alone that failed in another process while this one was starting or waiting.

        Workers that start together would try it one after the other, with the same result each.

        :param since: when this process began to boot.
        :raises MigrationFailed: there is one.
        """
        database, connection = self.database, self.connection
        rows = history.failed(connection, since, self._seen)
        plan = self._runner.planner.by_connection(database, connection) if rows else None
        waited = [item for item in plan.pending if not (item.left and self._runner.leaving)] if plan else []
        pending = {(item.migration.name, item.migration.checksum) for item in waited}
        for row in rows:
            if (row.name, row.checksum) in pending:
                raise MigrationFailed(
                    f"Migration {row.name!r} failed on the database {database.name!r} ({database.url}) in another "
                    f"process of this start, run by {row.applied_by}: {row.error}. This process did not try it again "
                    "and changed nothing. Fix the cause and start again: the next start tries it again.",
                    migration=row.name,
                    database=database.name,
                    statement=None,
                    cause=str(row.error),
                )
        connection.rollback()  # what was only read

    def _prepare(self, plan: Plan) -> tuple[set[str], Memory]:
        """Make our tables where they are missing, and on the first run of this application those of its models.

        :returns: names of migrations that an earlier run left unfinished; and what the history remembers.
        :raises DbSmartError: the history is that of another application, and has names of this one's migrations.
        """
        database, connection = self.database, self.connection
        connection.rollback()  # what a try before this one has left
        self._make_tables(plan)
        metadata = self._runner.db.metadatas.get(database.key)
        mine = self._runner.planner.of(database)
        memory = self._runner.planner.memory(plan, metadata, connection)
        memory.read(connection)
        first = plan.is_first_run(self._runner.planner.module, mine, memory.applications)
        if first and self._runner.settings.create_all and metadata is not None:
            if not plan.applied and not memory.fresh:
                warn_of_lost_history(database, connection, plan, metadata)
            missing = model_tables.missing(connection, metadata)
            for event in memory.begin_first_run(connection, missing):
                connection.execute(insert(event))
            model_tables.make(connection, metadata, missing, transactional=database.transactional_ddl)
        begun = history.begun(connection)
        self._adopt(plan)
        found = history.read_state(connection)
        assert found is not None
        self.database_id = found.database_id
        commit(connection)
        memory.keep()
        return begun, memory

    def _make_tables(self, plan: Plan) -> None:
        """Make our tables, and the column of a later release, where they are missing; begins a transaction."""
        connection = self.connection
        if not plan.first_run_done:
            history.create_state(connection)
        has = history.add_columns(connection)
        self._release = self._runner.settings.release if "release" in has else None
        self._keeps_inverse = "inverse" in has
        history.add_index(connection)
        begin(connection)
        history.create_tables(connection)

    def _adopt(self, plan: Plan) -> None:
        """Have the history name every revision that Alembic alone has applied, or taken back.

        The steps of one that it has finished are forgotten: after a downgrade it is to run as a whole.
        """
        planner = self._runner.planner
        for name, checksum, mark in planner.done_alone(plan):
            history.record(self.connection, name, checksum, 0.0, mark=mark, release=self._release)
        history.forget_steps(self.connection, planner.without_steps(plan))

    def record(
        self,
        connection: sa.Connection,
        migration: Migration,
        seconds: float,
        *,
        error: str | None = None,
        mark: str | None = None,
        inverse: str | None = None,
    ) -> None:
        """Append one run to the history, in the transaction of a connection; see :func:`~.store.history.record`."""
        said = {"error": error, "mark": mark, "release": self._release, "inverse": inverse}
        history.record(connection, migration.name, migration.checksum, seconds, **said)

    def _models(self) -> list[sa.Table]:
        """The tables of the models, where this is to see to them."""
        metadata = self._runner.db.metadatas.get(self.database.key) if self._runner.settings.create_all else None
        return [] if metadata is None else list(metadata.tables.values())

    def _missing(self) -> list[sa.Table]:
        """The tables that the models have and the database has not."""
        if not self._models():
            return []
        found = model_tables.missing(self.connection, self._runner.db.metadatas[self.database.key])
        self.connection.rollback()  # what was only read
        return found

    def _make_lost(self, missing: list[sa.Table]) -> list[sa.Table]:
        """Create lost tables again.

        :returns: those that were not made, because a newer release has taken them away.
        """
        database, connection = self.database, self.connection
        taken = self.memory.taken(missing)
        wanted = [table for table in missing if table.key not in taken]
        if wanted:
            begin(connection)
            metadata = self._runner.db.metadatas[database.key]
            model_tables.make(connection, metadata, wanted, transactional=database.transactional_ddl)
            commit(connection)
            lost = [table.key for table in wanted]
            _logger.info("db-smart: created these tables of the models again: %s", ", ".join(lost))
            self._outcome.made += lost
            self._outcome.changed = True
        return [table for table in missing if table.key in taken]

    def _update_state(self, models: Sequence[sa.Table], *, migrated: bool) -> State:
        """Bring the state row up to date.

        :param models: the tables of the models that are there.
        :param migrated: whether migrations ran.
        """
        connection, planner = self.connection, self._runner.planner
        connection.rollback()  # what a try before this one has left
        complete = self._complete_models()
        begin(connection)
        if migrated and self._wal_version is not None and self._wal_version == _wal_schema_version(connection):
            # In WAL mode only a schema change surely shows in the file's header, by which boot tells this file from
            # an older copy of it.
            connection.exec_driver_sql("CREATE TABLE db_smart_moved (id INTEGER)")
            connection.exec_driver_sql("DROP TABLE db_smart_moved")
        self.lock.confirm(connection)
        self.memory.end_run(connection, models, self._outcome.left)
        versions = planner.versions
        heads = None if versions is None else history.read_heads(connection, versions)
        lacking, _ = planner.lacking(self.database, heads)
        if lacking:
            raise DbSmartError(
                f"Revisions of Alembic are still pending on the database {self.database.name!r} ({self.database.url}) "
                f"although its environment reported no error: {', '.join(lacking[:3])}. Another tool has taken them "
                "back meanwhile, or env.py passes over errors. What was applied stays applied. Start again."
            )
        names = [item.name for item in planner.involved]
        state = history.update_state(connection, self._source(heads), names, versions, planner.learned, complete)
        commit(connection)
        return state

    def _complete_models(self) -> str | None:
        """The hash of the models, if the database has all tables and columns of theirs."""
        metadata = self._runner.db.metadatas.get(self.database.key)
        if metadata is None or model_names.lacking(self.connection, metadata):
            return None
        return model_names.digest(metadata)

    @property
    def attended(self) -> bool:
        """Whether a person waits for this run, who can be asked."""
        return self._runner.planner.since is None and sys.stdin is not None and sys.stdin.isatty()

    @property
    def versions(self) -> VersionTable | None:
        """The version table that was asked for what is pending."""
        return self._runner.planner.versions

    @contextmanager
    def led(self, config: Config) -> Iterator[None]:
        """Let ``env.py`` find the URL for migrating where it looks for that of the application.

        That is in ``db.engine``, in the settings of the application, or in its own configuration.
        """
        database, runner = self.database, self._runner
        if database.migration_url is None:
            yield
            return
        settings, key = runner.app.config, "SQLALCHEMY_DATABASE_URI"
        before = settings.get(key)
        if database.key is None:
            config.set_main_option("sqlalchemy.url", database.migration_url.replace("%", "%%"))
            settings[key] = database.migration_url
        try:
            with rebind(runner.app, runner.db, database, lambda: database.engine, default=False):
                yield
        finally:
            settings[key] = before

    def rebound(self, engine: Callable[[], sa.Engine]) -> AbstractContextManager[None]:
        """Let ``db.session`` and ``db.engine`` use one engine, also of an application that ``env.py`` itself made."""
        database = self.database
        app: Flask = current_app._get_current_object() if has_app_context() else self._runner.app  # type: ignore[attr-defined]
        db = self._runner.db if app is self._runner.app else app.extensions.get("sqlalchemy")
        if not isinstance(db, SQLAlchemy):
            return nullcontext()
        found = engines_of(app, db).get(database.key)
        if found is None or found.url not in (database.app_engine.url, database.engine.url):
            return nullcontext()
        return rebind(app, db, database, engine, default=False)

    def environment(self) -> Environment:
        """The Alembic directory of the application."""
        alembic = self._runner.planner.code.alembic
        assert alembic is not None
        return Environment(alembic)

    def _revise(self, plan: Plan) -> None:
        """Apply the revisions of Alembic that are pending, and try one again where others were in its way.

        :raises MigrationFailed: one raised; the message says what was kept.
        :raises LeaseLost: another process has taken the lock.
        """
        tried: dict[str, int] = {}
        self._runner.planner.learn()  # of a new file it could not be asked before
        moved = 0
        while True:
            revising = Revising(self, plan)
            self.connection.rollback()  # what was only read
            started = time.perf_counter()
            try:
                revising.run()
                ran = {run.migration for run in self._outcome.runs if run.database == self.database.name}
                if any(item.migration.revision and item.migration.name not in ran for item in plan.pending):
                    self._again()  # another tool was quicker
                return
            except LeaseLost:
                raise
            except HeadsMoved as error:
                if moved == _MOST_MOVES:
                    raise DbSmartError(
                        f"Cannot migrate the database {self.database.name!r} ({self.database.url}): {error}, again and "
                        "again. What was applied stays applied. Start again when it is done."
                    ) from None
                moved += 1
                plan = self._again()
            except Exception as error:
                self.statements.failed(error)
                end = ending(error)
                if end is not None:
                    raise end from None
                item = revising.item
                self._committed = revising.journal is not None and revising.journal.committed
                if item is not None:
                    with suppress(sa.exc.DBAPIError, DatabaseUnreachable):  # the error itself says more
                        plan = self._again()
                    if item not in plan.pending:  # another tool was quicker, which is why it failed here
                        continue
                if item is None:
                    if isinstance(error, DbSmartError):
                        raise
                    scrub(error, self.database.hide)
                    place = location_in(error, self._runner.planner.revisions)
                    if place is not None:
                        failed = f"The revision of Alembic in {place}, cannot be imported"
                    else:
                        failed = (
                            f"The environment of Alembic, {self.environment().directory}/env.py, failed for the "
                            f"database {self.database.name!r} ({self.database.url})"
                        )
                    raise DbSmartError(
                        f"{failed}: {self.database.cause(error)}. What was applied before that stays applied. Fix the "
                        "cause and start again."
                    ) from error
                self._by_other = not self.has_steps(item)
                if self._committed:
                    self._begun.add(item.migration.name)
                tried[item.migration.name] = tries = tried.get(item.migration.name, 0) + 1
                if tries <= self._runner.settings.ddl.retries and self.database.says(error, "transient"):
                    _logger.info("db-smart: %r is tried again: %s", item.migration.name, self.database.redact(error))
                    back_off(tries)
                    continue
                self._fail(item, error, time.perf_counter() - started)

    def has_steps(self, item: Pending) -> bool:
        """Whether an earlier run of a migration may have left steps."""
        return item.migration.name in self._begun

    def bound_changes(self, connection: sa.Connection) -> DdlLockTimeout:
        """Have schema changes of a connection wait for their locks for a short time only."""
        return DdlLockTimeout(self.database, connection, self._runner.settings.ddl.lock_timeout)

    def _again(self) -> Plan:
        """Ask again what is pending, as another tool may have written to Alembic's version table."""
        connection = self.connection
        connection.rollback()  # what a try before this one has left
        plan = self._runner.planner.by_connection(self.database, connection)
        connection.rollback()  # what was only read
        begin(connection)
        self.lock.confirm(connection)
        self._adopt(plan)
        commit(connection)
        for item in plan.pending:
            self._places.setdefault(item.migration.name, len(self._places) + 1)
        return plan

    def begin_item(self, item: Pending) -> None:
        """Say that a migration begins."""
        self.doing = item.migration.name
        self.statements.begin(item.migration.name)
        self.lock.note(item.migration.name)
        begins = (self.database.name, item.migration.name)
        if begins not in self._runner.told:
            self._runner.told.add(begins)
            send(migration_started, self._runner.app, **self._about(item))

    def end_item(self, item: Pending, seconds: float) -> None:
        """Say that a migration is applied and recorded."""
        self.doing = ""
        self.statements.end()
        send(migration_applied, self._runner.app, **self._about(item), duration=seconds)
        self._outcome.runs.append(Run(item.migration.name, self.database.name, seconds))

    def _fail(self, item: Pending, error: Exception, seconds: float) -> NoReturn:
        """Record and tell that a migration failed."""
        self.statements.end(error)
        failed = self._failed(item, error, self._places[item.migration.name] - 1, seconds)
        scrub(error, self.database.hide)
        self._runner.told.discard((self.database.name, item.migration.name))
        send(migration_failed, self._runner.app, **self._about(item), error=failed)
        raise failed from error

    def _about(self, item: Pending) -> dict[str, Any]:
        """What all signals say of a migration."""
        name = item.migration.name
        return {
            "migration": name,
            "database": self.database.name,
            "index": self._places[name],
            "total": len(self._places),
        }

    def apply(self, item: Pending, announced: Touches | None = None) -> None:
        """Apply one migration, and try it again where others were in its way.

        :param announced: all that it may take away; ``None`` where that does not matter.
        :raises MigrationFailed: it raised; the message says what was kept.
        :raises LeaseLost: another process has taken the lock.
        """
        migration, connection = item.migration, self.connection
        self.begin_item(item)
        started = time.perf_counter()
        for tries in itertools.count(1):
            try:
                if tries > 1:
                    self.lock.note(migration.name)
                duration = self.apply_once(migration, announced)
                break
            except LeaseLost:
                connection.rollback()
                raise
            except Exception as error:
                self.statements.failed(error)
                self.memory.take_back()
                end = ending(error)
                if end is not None:
                    connection.invalidate()
                    raise end from None
                again = migration.options.transactional
                if again and tries <= self._runner.settings.ddl.retries and self.database.says(error, "transient"):
                    connection.rollback()
                    self.memory.read(connection)  # a part may be committed
                    connection.rollback()
                    self._begun.add(migration.name)
                    _logger.info("db-smart: %r is tried again: %s", migration.name, self.database.redact(error))
                    back_off(tries)
                    continue
                if again and loosen(self, error):
                    self._begun.add(migration.name)
                    continue
                self._fail(item, error, time.perf_counter() - started)
        self.end_item(item, duration)

    def apply_once(self, migration: Migration, announced: Touches | None = None) -> float:
        """Run a migration and record it; in one transaction, where the migration and the database allow it.

        :param announced: see :meth:`apply`.
        :returns: how long it ran, with its parts before this one, seconds.
        """
        connection, runner = self.connection, self._runner
        with (
            self.database.connect(autocommit=True)
            if not migration.options.transactional
            else nullcontext(connection) as own
        ):
            if own is connection:
                begin(connection)
            at_once = not migration.options.transactional or not self.database.transactional_ddl
            begun = migration.name in self._begun
            self._committed = at_once or begun
            journal = Journal(own, migration.name, at_once=at_once, begun=begun)
            transactional, session = migration.options.transactional, runner.db.session
            transaction = self.transaction(own, journal, transactional=transactional, session=session)
            transaction.repeated = (migration.name, migration.checksum) in self._contents
            journal.guard = self._guard(transaction, migration.options, announced)
            try:
                with (
                    rebind(runner.app, runner.db, self.database, lambda: transaction.engine),
                    transaction.leniently(functools.partial(self._say_left_out, migration), whole=True),
                ):
                    if migration.takes_operations:
                        operations = Operations(
                            transaction, destructive=migration.options.destructive, allow=migration.options.allow
                        )
                        migration.function(operations)
                        operations.finish()
                    else:
                        migration.function()
                        commit_session(runner.db.session)
                transaction.check()
            except Exception:
                if transaction.gave_way:  # what its code has made of that
                    raise GiveWay from None
                raise
            finally:
                self._committed |= transaction.commits > 0
                transaction.close()
            if transaction.gave_way:  # its code has caught that, and only a part is done
                raise GiveWay
        if own is not connection:
            begin(connection)
        duration = journal.seconds
        self.lock.confirm(connection)
        self.record(connection, migration, duration, inverse=self._inverse(migration, journal))
        journal.clear(connection)
        commit(connection)
        self.memory.keep()
        return duration

    def _guard(self, transaction: RunTransaction, options: Options, announced: Touches | None) -> Guard:
        """What looks at the SQL of a migration, and for a contract step at its operations too."""
        if announced is None:
            return Guard(transaction, options)
        from .schema.announced import AnnouncedGuard

        guard = AnnouncedGuard(transaction, options, announced)
        transaction.look = guard.check_change
        return guard

    def _inverse(self, migration: Migration, journal: Journal) -> str | None:
        """What takes a migration back, as :mod:`~.undo.inverses` reads it.

        ``None`` where the history has no place for it.
        """
        if not self._keeps_inverse:
            return None
        made, own = journal.inverses()
        if not migration.takes_operations:
            made.append({"op": "cannot", "what": "its function", "why": "it takes no operations, which would tell"})
        return json.dumps({"run": self._together, "made": made, "own": own})

    def end_revision(
        self, connection: sa.Connection, migration: Migration, seconds: float, journal: RevisionJournal
    ) -> None:
        """Append a revision to the history, in the transaction of a connection, with what whoever undoes it is told.

        A release that runs no ``downgrade()`` reads there that it cannot take it back.
        """
        inverse = None
        if self._keeps_inverse:
            why = "this release of db-smart runs no downgrade(); 'flask db downgrade' does"
            cannot = {"op": "cannot", "what": "a revision of Alembic", "why": why, "sure": True}
            _, own = journal.inverses()
            kept = {"run": self._together, "made": [cannot], "own": own, "schema": journal.changes_schema}
            inverse = json.dumps(kept)
        self.record(connection, migration, seconds, inverse=inverse)

    def transaction(
        self,
        connection: sa.Connection,
        journal: Journal,
        *,
        transactional: bool = True,
        session: scoped_session[Session] | None = None,
    ) -> RunTransaction:
        """The transaction for the operations of one try of a migration.

        :param connection: in a transaction, or in autocommit for a migration that is not to run in one.
        :param session: ``db.session``, brought into this transaction; ``None`` where it is the application's own.
        """
        runner, database, lock_timeout = self._runner, self.database, self._lock_timeout
        if not transactional:
            lock_timeout = DdlLockTimeout(database, connection, runner.settings.ddl.lock_timeout)
        transaction = RunTransaction(
            database,
            connection,
            journal,
            lock=self.lock,
            lock_timeout=lock_timeout,
            settings=runner.settings.ddl,
            transactional=transactional,
            memory=self.memory,
            session=session,
        )
        transaction.tell = functools.partial(self._tell, transaction)
        return transaction

    def _tell(self, transaction: RunTransaction, **values: Any) -> None:
        """Tell how far a backfill is, and end this run for now where others are to have the lock.

        :raises GiveWay: it ends; never before a batch is done, so that each run comes further, and not soon after what
            came before the backfill has taken all the time.
        """
        runner, migration = self._runner, transaction.journal.migration
        send(migration_progress, runner.app, migration=migration, database=self.database.name, **values)
        if runner.slice is None:
            return
        now, done = time.monotonic(), values["done"]
        if self._first_told is None:
            self._first_told = now
        else:
            self._moved |= done != self._last_told
        self._last_told = done
        if self._moved and now - self._taken_at > runner.slice and now - self._first_told > runner.slice / 3:
            transaction.gave_way = True
            raise GiveWay

    def _say_left_out(self, migration: Migration, error: Exception) -> None:
        _logger.warning(
            "db-smart: %r is left out and counts as applied, because a table or column that it needs no longer "
            "exists: %s",
            migration.name,
            self.database.redact(error),
        )

    def _failed(self, item: Pending, error: Exception, before: int, seconds: float) -> MigrationFailed:
        """Roll back, record the failure if possible, and make the error that says all that a person needs.

        :param before: how many migrations this run applied before.
        """
        migration, database, connection = item.migration, self.database, self.connection
        cause = database.cause(error)
        statement = _statement(error, database)
        for text in (cause, cause.encode("ascii", "backslashreplace").decode()):
            try:
                connection.rollback()
                begin(connection)
                self.lock.confirm(connection)
                self.record(connection, migration, seconds, error=text)
                commit(connection)
                break
            except UnicodeError:  # the connection speaks an encoding that lacks some of it
                connection.rollback()
            except (sa.exc.SQLAlchemyError, LeaseLost) as second:
                connection.rollback()
                _logger.debug("The failure could not be recorded: %s", database.redact(second))
                break
        kept = "What it had committed is kept" if self._committed else "Nothing of it was kept"
        if not database.transactional_ddl:
            kept += " (on this database each schema change commits by itself)"
        if before:
            kept += f"; what was applied before it ({before}) stays applied"
        advice = "Fix the cause"
        if database.says(error, "transient"):
            advice = (
                "Other sessions were in its way at each try; if the database knows which, the log names "
                "them. End them, or raise DB_SMART_DDL_RETRIES or DB_SMART_DDL_LOCK_TIMEOUT,"
            )
        if database.facts.all_rows is not None and database.facts.says(error, "denied"):
            advice = (
                "Give the user of the migrations that right, or name another one by DB_SMART_MIGRATION_URL (where "
                "policies would hide rows from it, a role with BYPASSRLS),"
            )
        if database.facts.says(error, "referred"):
            advice = (
                "A foreign key needs both of its columns to have one type: drop the foreign key, change both columns, "
                "and create it again. In a migration, op.widen_key() does all of it. Change the "
                f"{'revision' if migration.revision else 'migration'}"
            )
        again = "run it again with --force" if item.reason == "forced" else "start again: the next run tries it again"
        if self._committed and migration.revision:  # whose steps are told by what it sends, in that order
            again = "start again: the next run goes on after what is kept, so leave that part of the file as it is"
        if migration.revision and self._by_other and database.facts.says(error, "begun"):
            again += (
                ". If another tool, such as 'flask db upgrade', was ended in the middle of this revision, finish it "
                f"with 'flask db-smart migrate --resume {migration.name}'"
            )
        return MigrationFailed(
            f"Migration {migration.name!r} failed on the database {database.name!r} ({database.url}): {cause}."
            f"\n  At: {location(error, migration.path)}"
            + (f"\n  Statement: {statement}" if statement else "")
            + f"\n{kept}. {advice} and {again}."
            + _instead(error),
            migration=migration.name,
            database=database.name,
            statement=statement,
            cause=cause,
        )


def _instead(error: Exception) -> str:
    """The migration to write instead of one that was refused, where one is known."""
    source = error.instead if isinstance(error, Refused) else ""
    return f"\n  Instead:\n\n{indent(source, '    ')}\n" if source else ""


def _statement(error: BaseException | None, database: Database) -> str | None:
    """The SQL that an error came from, in one line; its parameters may be personal data and stay out."""
    while error is not None:
        if isinstance(error, sa.exc.StatementError) and error.statement:
            statement = " ".join(plain(database.hide(error.statement)).split())
            return statement if len(statement) <= 500 else statement[:500] + " …"
        error = error.__cause__ or error.__context__
    return None


def _wal_schema_version(connection: sa.Connection) -> int | None:
    """The schema cookie of a SQLite database in WAL mode; ``None`` in every other."""
    if facts_of(connection.dialect.name).server or connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        return None
    return int(connection.exec_driver_sql("PRAGMA schema_version").scalar_one())
