"""Apply what is pending: each migration and its record in one transaction where the database can.

``Runner.run`` goes through the databases, ``DatabaseRun.run`` through the migrations of one; ``apply`` tries one
migration as often as is allowed, and ``apply_once`` runs it and records it.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy.orm import scoped_session

from .boot.plan import Pending, Plan
from .boot.planner import Planner
from .dialects.base import facts_of
from .errors import DbSmartError, HistoryUnreadable, Interrupted, LeaseLost, MigrationFailed, plain, scrub
from .first_run import loosen, tighten, warn_of_lost_history
from .interrupt import ending, interruptible
from .loading.decorator import Migration
from .loading.loader import location
from .notices import logger_of
from .operations import Operations
from .retry import back_off
from .schema import model_tables
from .session.journal import Journal
from .session.lock_timeout import DdlLockTimeout
from .session.rebind import commit_session, rebind
from .session.transaction import RunTransaction, tried_again
from .signals import migration_applied, migration_failed, migration_progress, migration_started, send
from .store import history, snapshot
from .store.database import Database, begin, commit, safe_url
from .store.history import State
from .store.lock import lock_of
from .store.memory import Memory, insert

_logger = logger_of(__name__)


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
    """

    runs: list[Run] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    changed: bool = False
    made: list[str] = field(default_factory=list)
    complete: bool = False


class Runner:
    """Applies the pending migrations of an application, one process at a time."""

    def __init__(self, app: Flask, db: SQLAlchemy, planner: Planner) -> None:
        self.app = app
        self.db = db
        self.planner = planner
        self.settings = planner.settings

    def run(self, databases: Iterable[Database], *, force: bool = False, remake: bool = False) -> Outcome:
        """Apply what is pending on each database, in order.

        :param databases: the databases to migrate.
        :param force: run every repeatable migration again.
        :param remake: create the lost tables of the models again.
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
            self._check_led(database)
        for database in databases:
            run = DatabaseRun(self, database, outcome, force=force, remake=remake and self.settings.create_all)
            before = len(outcome.runs)
            try:
                with interruptible(database.name, lambda run=run: run.doing):  # type: ignore[misc]
                    outcome.states[database.name] = run.run()
            except (sa.exc.SQLAlchemyError, OSError) as error:
                raise DbSmartError(
                    f"Cannot migrate the database {database.name!r} ({database.url}): {database.redact(error)}. "
                    f"Migrations applied before that, which stay applied: {len(outcome.runs) - before or 'none'}. "
                    "Fix the cause and start again."
                ) from error
            except (MigrationFailed, Interrupted):
                # What it changed is not what the flag remembers; the next boot would take it for somebody else's work.
                planner.forget()
                raise
        # Where two names lead to one database, the run on the second has changed the row of the first.
        last = {state.database_id: state for state in outcome.states.values()}
        outcome.states = {name: last[state.database_id] for name, state in outcome.states.items()}
        for database in databases:
            self._check_same(database, outcome.states[database.name])
        outcome.complete = outcome.states.keys() == {database.name for database in planner.involved}
        if outcome.complete:
            planner.remember(outcome.states)
        return outcome

    def _check_led(self, database: Database) -> None:
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

    def __init__(self, runner: Runner, database: Database, outcome: Outcome, *, force: bool, remake: bool) -> None:
        self.database = database
        self.lock = lock_of(database, runner.settings.lock)
        self.doing: str | None = None
        self._runner = runner
        self._outcome = outcome
        self._force = force
        self._remake = remake
        #: The schema cookie before migrations run, on SQLite in WAL mode.
        self._wal_version: int | None = None
        #: The last row of the history before this process waited for the lock; ``None`` where it was not asked.
        self._seen: int | None = None

    def run(self) -> State:
        """Apply what is pending, in order, while this process holds the lock.

        :returns: the state row as it is afterwards.
        """
        found = self._reach()
        if found is not None:
            return found
        with self.lock.held(self._complete) as held:
            if held:
                self.doing = ""
                with self.database.connect() as self.connection:
                    plan = self._begin()
                    if isinstance(plan, State):
                        return plan
                    for index, item in enumerate(plan.pending, 1):
                        self._outcome.runs.append(self.apply(item, index, len(plan.pending)))
                    return self._finish(plan)
        state = self._runner.planner.state(self.database)
        if state is None:
            raise DbSmartError(
                f"The database {self.database.name!r} was emptied while this process waited. Start again."
            )
        return state

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

    def _complete(self, state: State) -> bool:
        """Whether another process has done all that there was to do."""
        again = self._force or self._remake
        return not again and self._runner.planner.complete(self.database, state)

    def _begin(self) -> Plan | State:
        """Ask again, now under the lock, and prepare the run.

        :returns: what is to be done; the state row where there is nothing.
        """
        database, connection, planner = self.database, self.connection, self._runner.planner
        if planner.since is not None and not self._force:
            self._leave_failed(planner.since)
        self._wal_version = _wal_schema_version(connection)
        plan = planner.by_connection(database, connection, force=self._force)
        connection.rollback()  # what was only read
        if planner.since is None:  # a command; a boot has said it when it asked
            plan.log_edited_once()
        first = not plan.first_run_done
        missing = self._missing() if self._remake and not first else []
        if not (plan.behind or missing) and plan.state is not None and plan.state.source == planner.sources.digest:
            return plan.state
        if plan.behind:
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
        pending = {(item.migration.name, item.migration.checksum) for item in (plan.pending if plan else ())}
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
        if not plan.first_run_done:
            history.create_state(connection)
        begin(connection)
        history.create_tables(connection)
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
        commit(connection)
        memory.keep()
        return begun, memory

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
        begin(connection)
        if migrated and self._wal_version is not None and self._wal_version == _wal_schema_version(connection):
            # In WAL mode only a schema change surely shows in the file's header, by which boot tells this file from
            # an older copy of it.
            connection.exec_driver_sql("CREATE TABLE db_smart_moved (id INTEGER)")
            connection.exec_driver_sql("DROP TABLE db_smart_moved")
        self.lock.confirm(connection)
        self.memory.end_run(connection, models)
        state = history.update_state(connection, planner.sources.digest, [item.name for item in planner.involved])
        commit(connection)
        return state

    def apply(self, item: Pending, index: int, total: int) -> Run:
        """Apply one migration, and try it again where others were in its way.

        :param index: its number in this run, from 1.
        :param total: how many there are.
        :raises MigrationFailed: it raised; the message says what was kept.
        :raises LeaseLost: another process has taken the lock.
        """
        migration, connection, app = item.migration, self.connection, self._runner.app
        about: dict[str, Any] = {
            "migration": migration.name,
            "database": self.database.name,
            "index": index,
            "total": total,
        }
        self.doing = migration.name
        send(migration_started, app, **about)
        started = time.perf_counter()
        for tries in itertools.count(1):
            try:
                self.lock.note(migration.name)
                duration = self.apply_once(migration)
                break
            except LeaseLost:
                connection.rollback()
                raise
            except Exception as error:
                self.memory.take_back()
                end = ending(error)
                if end is not None:
                    connection.invalidate()
                    raise end from None
                again = migration.options.transactional
                if again and tries <= self._runner.settings.ddl.retries and _transient(self.database, error):
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
                failed = self._failed(item, error, index - 1, time.perf_counter() - started)
                scrub(error, self.database.hide)
                send(migration_failed, app, **about, error=failed)
                raise failed from error
        self.doing = ""
        send(migration_applied, app, **about, duration=duration)
        return Run(migration.name, self.database.name, duration)

    def apply_once(self, migration: Migration) -> float:
        """Run a migration and record it; in one transaction, where the migration and the database allow it.

        :returns: how long it ran, seconds.
        """
        connection, runner, started = self.connection, self._runner, time.perf_counter()
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
            try:
                with (
                    rebind(runner.app, runner.db, self.database, lambda: transaction.engine),
                    transaction.leniently(functools.partial(self._say_left_out, migration), whole=True),
                ):
                    if migration.takes_operations:
                        operations = Operations(transaction, destructive=migration.options.destructive)
                        migration.function(operations)
                        operations.finish()
                    else:
                        migration.function()
                        commit_session(runner.db.session)
                transaction.check()
            finally:
                self._committed |= transaction.commits > 0
                transaction.close()
        if own is not connection:
            begin(connection)
        duration = time.perf_counter() - started
        self.lock.confirm(connection)
        history.record(connection, migration.name, migration.checksum, duration)
        journal.clear(connection)
        commit(connection)
        self.memory.keep()
        return duration

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
        return RunTransaction(
            database,
            connection,
            journal,
            lock=self.lock,
            lock_timeout=lock_timeout,
            settings=runner.settings.ddl,
            transactional=transactional,
            tell=functools.partial(
                send, migration_progress, runner.app, migration=journal.migration, database=database.name
            ),
            memory=self.memory,
            session=session,
        )

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
                history.record(connection, migration.name, migration.checksum, seconds, error=text)
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
        if _transient(database, error):
            advice = (
                "Other sessions were in its way at each try; if the database knows which, the log names "
                "them. End them, or raise DB_SMART_DDL_RETRIES or DB_SMART_DDL_LOCK_TIMEOUT,"
            )
        again = "run it again with --force" if item.reason == "forced" else "start again: the next run tries it again"
        return MigrationFailed(
            f"Migration {migration.name!r} failed on the database {database.name!r} ({database.url}): {cause}."
            f"\n  At: {location(error, migration.path)}"
            + (f"\n  Statement: {statement}" if statement else "")
            + f"\n{kept}. {advice} and {again}.",
            migration=migration.name,
            database=database.name,
            statement=statement,
            cause=cause,
        )


def _transient(database: Database, error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the transaction may succeed when tried again."""
    while error is not None:
        if isinstance(error, sa.exc.DBAPIError) and database.facts.says(error, "transient"):
            return True
        error = error.__cause__ or error.__context__
    return False


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
