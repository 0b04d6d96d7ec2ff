"""Record as applied what is not run: migrations and revisions whose work a database has already.

A revision is recorded with all that come before it. Its row of Alembic's version table, which Alembic itself writes,
and its rows of the history are one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .boot.plan import Plan
from .boot.planner import Planner
from .errors import DbSmartError
from .interrupt import interruptible
from .loading.decorator import Migration
from .loading.revisions import Revisions
from .revising import Revising
from .runner import DatabaseRun, Outcome, Runner
from .session.environment import Environment, begin_revision, end_transaction
from .session.lock_timeout import DdlLockTimeout
from .session.transaction import tried_again
from .store import history
from .store.database import Database, begin, commit
from .store.history import State
from .store.tables import progress

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, MigrationInfo


def lacking(planner: Planner, plan: Plan, names: Collection[str]) -> list[Migration]:
    """What a database lacks of the migrations and revisions of these names, and of the revisions before them.

    :param names: empty for everything that is pending.
    :returns: the revisions first, in the order in which they would run.
    :raises DbSmartError: the version table has heads that this code lacks, so that its revisions cannot be placed.
    """
    pending = {item.migration.name: item.migration for item in plan.pending}
    if not names:
        return list(pending.values())
    mine = {migration.name: migration for migration in planner.of(plan.database)}
    wanted = [name for name in names if name in mine and mine[name].revision]
    found = []
    if wanted and planner.revisions is not None:
        heads = plan.heads or ()
        unknown = planner.revisions.unknown(heads)
        if unknown:
            raise DbSmartError(
                f"The database {plan.database.name!r} ({plan.database.url}) is ahead of this code: its version table "
                f"has {', '.join(map(repr, unknown))}, which are not among the revisions. Nothing was recorded. Use "
                "the release that has them."
            )
        found = [mine[one.name] for one in Revisions(planner.revisions.by_name.values(), wanted).pending(heads)]
    return found + [one for one in pending.values() if one.name in names and not one.revision]


def stamp(runner: Runner, database: Database, names: Collection[str], told: Collection[str]) -> State | None:
    """Record on one database as applied what :func:`lacking` finds, while no other process migrates it.

    :param told: names of what the person has agreed to.
    :returns: the state row as it is afterwards; ``None`` where there was nothing to record.
    :raises DbSmartError: more would be recorded than that, or a database refuses it.
    """
    runner.check_led(database)
    run = StampRun(runner, database, names, told)
    try:
        with interruptible(database.name, lambda: run.doing):
            return run.stamp()
    except DbSmartError:
        raise
    except Exception as error:  # of env.py and Alembic too
        raise DbSmartError(
            f"Cannot stamp the database {database.name!r} ({database.url}): {database.cause(error)}. Nothing was run; "
            f"recorded before that: {', '.join(run.recorded) or 'nothing'}. Fix the cause and try again."
        ) from error
    finally:
        runner.planner.forget()


class StampRun(DatabaseRun):
    """The recording on one database.

    :ivar recorded: names of what was recorded.
    """

    def __init__(self, runner: Runner, database: Database, names: Collection[str], told: Collection[str]) -> None:
        super().__init__(runner, database, Outcome(), force=False, remake=False)
        self._names = names
        self._told = told
        self.recorded: list[str] = []

    def stamp(self) -> State | None:
        """Record it, while this process holds the lock; see :func:`stamp`."""
        database, planner = self.database, self._runner.planner
        if self._reach() is not None:
            return None
        with self.lock.held(lambda _: False), database.connect() as self.connection:
            self.doing = ""
            connection = self.connection
            plan = planner.by_connection(database, connection)
            connection.rollback()  # what was only read
            todo = lacking(planner, plan, self._names)
            more = [migration.name for migration in todo if migration.name not in self._told]
            if more:
                raise DbSmartError(
                    f"The database {database.name!r} ({database.url}) has changed meanwhile, so that "
                    f"{', '.join(more)} would be recorded too. Nothing was recorded. Start again."
                )
            if not todo:
                return None
            self._lock_timeout = DdlLockTimeout(database, connection, self._runner.settings.ddl.lock_timeout)
            tried_again(database, lambda: self._make_room(plan), self._runner.settings.ddl.retries)
            revisions = [migration for migration in todo if migration.revision]
            if revisions:
                _Stamping(self, plan, revisions, planner.revisions).run()
            begin(connection)
            self.lock.confirm(connection)
            for migration in todo:
                if not migration.revision:
                    self.note(connection, migration)
            found = history.read_state(connection)
            assert found is not None
            # What is pending still, or a first run that is not complete, the next run sees to.
            state = history.update_state(connection, found.source, found.databases, planner.versions)
            commit(connection)
            self.recorded = [migration.name for migration in todo]
            return state

    def _make_room(self, plan: Plan) -> None:
        """Make our tables where they are missing."""
        self.connection.rollback()  # what a try before this one has left
        self._make_tables(plan)
        self._adopt(plan)
        found = history.read_state(self.connection)
        assert found is not None
        self.database_id = found.database_id
        commit(self.connection)

    def note(self, connection: sa.Connection, migration: Migration) -> None:
        """Record one, in the transaction of a connection, and forget how far a run of it had come."""
        self.record(connection, migration, 0.0, mark=history.STAMPED)
        connection.execute(progress.delete().where(progress.c.migration == migration.name))


class _Stamping(Revising):
    """The revisions of one recording: Alembic writes its version table, and runs none of them."""

    def __init__(self, run: StampRun, plan: Plan, todo: list[Migration], revisions: Revisions | None) -> None:
        super().__init__(run, plan)
        self._items = {}  # none of them is run
        assert revisions is not None
        self._stamping = run
        self._left = {migration.name: migration for migration in todo}
        self._revisions = revisions
        # Those that no other one of them comes after: Alembic would take an earlier one for another head, or go back.
        before = {one: {other.name for other in revisions.applied([one])} - {one} for one in self._left}
        self._targets = [one for one in self._left if not any(one in names for names in before.values())]

    def _steps(self, environment: Environment, heads: tuple[str, ...], context: MigrationContext) -> Iterator[Any]:
        assert context.connection is not None
        if not self._ours[context.connection]:
            return
        end_transaction(context)  # what Alembic and env.py have set up
        self._check_versions(environment, context)
        self.met = True
        for target in self._targets:
            for step in environment.script._stamp_revs(target, context.get_current_heads()):
                end_transaction(context)  # the step before
                begin_revision(context)
                yield step
        end_transaction(context)

    def _applied(self, context: MigrationContext, step: MigrationInfo, heads: Collection[str]) -> None:
        """Record what the version table now says, in its transaction."""
        connection = context.connection
        assert connection is not None
        with self._at_home(connection):
            self._stamping.lock.confirm(connection)
            for one in self._revisions.applied(heads):
                migration = self._left.pop(one.name, None)
                if migration is not None:
                    self._stamping.note(connection, migration)
                    self._stamping.recorded.append(one.name)
