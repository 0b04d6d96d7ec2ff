"""Is there anything to do? Asked in the order of cost: the flag, the sources, one row, the whole history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ..errors import DatabaseUnreachable, MigrationError
from ..loading.sources import Sources, scan
from ..notices import logger_of
from ..settings import Settings
from ..store.database import Database
from . import flag as flags
from .flag import DatabaseRecord, Flag, FlagVerdict

if TYPE_CHECKING:
    from ..loading.decorator import Migration
    from ..store.history import Applied, State
    from ..store.memory import Memory
    from .plan import Plan


_logger = logger_of(__name__)


class Planner:
    """The questions of one boot (or command) about one set of migrations.

    :param module: dotted name of the migrations.
    :param databases: the application's databases by name.
    :param settings: of the application, as they are now.
    """

    def __init__(self, module: str, databases: Mapping[str, Database], settings: Settings) -> None:
        self.module = module
        self.databases = databases
        self.settings = settings
        #: The flag file.
        self.path = settings.flag
        #: When this process began to boot, UTC; ``None`` for a command, by which a person asks for what it does.
        self.since: datetime | None = None

    @property
    def queries(self) -> int:
        """How many statements were sent to all databases so far."""
        return sum(database.queries for database in self.databases.values())

    @cached_property
    def sources(self) -> Sources:
        """The scan of the source files; one for the whole question.

        :raises MigrationError: there are none.
        """
        return scan(self.module)

    @cached_property
    def migrations(self) -> list[Migration]:
        """The migrations of the code; imports them.

        :raises MigrationError: they cannot be loaded.
        """
        from ..loading.loader import load

        return load(self.sources)

    @cached_property
    def involved(self) -> list[Database]:
        """The default database, and those that migrations name; imports the migrations.

        :raises MigrationError: a migration names a database that the application does not have.
        """
        names = {"default"} & self.databases.keys()
        for migration in self.migrations:
            name = migration.options.database or "default"
            if name not in self.databases:
                known = ", ".join(sorted(self.databases))
                raise MigrationError(
                    f"Migration {migration.name!r} in {migration.path} is for the database {name!r}, which the "
                    f"application does not have (it has: {known}). Nothing was changed. Add it to SQLALCHEMY_BINDS."
                )
            names.add(name)
        return [database for name, database in self.databases.items() if name in names]

    def of(self, database: Database) -> list[Migration]:
        """The migrations of one database."""
        return [item for item in self.migrations if (item.options.database or "default") == database.name]

    def memory(self, plan: Plan, models: sa.MetaData | None, connection: sa.Connection) -> Memory:
        """What a database remembers of objects; nothing is read yet.

        :param models: those of the application for this database.
        :param connection: that of the run.
        """
        from ..store.memory import Memory

        names = [migration.name for migration in self.of(plan.database)]
        return Memory.of(self.module, names, plan.database, plan.applied, models, connection)

    def by_flag(self) -> FlagVerdict:
        """Levels 0 and 1: see :func:`~.boot.flag.check`."""
        return flags.check(self.path, self.module, self.databases, lambda: self.sources)

    def by_row(self) -> list[Plan] | None:
        """Level 2, the short way: does the state row of each database say that these very sources are applied?

        The row of the first database names the others, so that the migrations need not be imported.

        :returns: a plan with nothing pending for each; ``None`` when the whole history must be read.
        :raises DatabaseUnreachable: a database cannot be asked.
        """
        from .plan import COMPLETE, Plan

        plans: list[Plan] = []
        names = list(self.databases)[:1]
        for name in names:  # grows by what the first row says
            database = self.databases.get(name)
            state = None if database is None else self.state(database)
            if database is None or state is None or state.source != self.sources.digest or not state.databases:
                return None
            if any(plan.state is not None and plan.state.database_id == state.database_id for plan in plans):
                return None  # one database by two names has one row, which the run on either of them writes
            names += [other for other in state.databases if other not in names]
            plans.append(Plan(database, state, COMPLETE))
        return plans

    def by_history(self, *, force: bool = False) -> list[Plan]:
        """Level 2, the long way: compare the history of each database with the migrations; see :meth:`ask`."""
        return [self.ask(database, force=force) for database in self.involved]

    def ask(self, database: Database, *, force: bool = False) -> Plan:
        """What one database holds and lacks.

        :param force: count every repeatable migration as pending.
        :raises DatabaseUnreachable: the database cannot be asked.
        """
        if not database.exists:
            return self._plan(database, None, [], force)
        with database.connect() as connection:
            return self.by_connection(database, connection, force=force)

    def complete(self, database: Database, state: State) -> bool:
        """Whether a database, whose state row was just read, lacks nothing of these sources.

        The row alone does not tell where two names lead to one database.
        """
        return state.source == self.sources.digest and not self.ask(database).behind

    def by_connection(self, database: Database, connection: sa.Connection, *, force: bool = False) -> Plan:
        """As :meth:`ask`, on an open connection."""
        from ..store.history import find_state, read_applications, read_applied, reading

        with reading(database):
            state = find_state(connection)
            place = None if state is None else state.place
            applied = [] if state is None else read_applied(connection, place)
            owners = set() if state is None else read_applications(connection, place)
        if place is not None and not self._may_be_ours(database, applied, owners):
            state, place, applied, owners = None, None, [], set()
        plan = self._plan(database, state, applied, force)
        if place is not None:
            plan.reason += " (by the history in another schema, to which the search path leads)"
        if owners and self.module not in owners:
            plan.foreign = True
            if not plan.pending:
                plan.reason = f"has the history of another application ({', '.join(sorted(owners))})"
        return plan

    def _may_be_ours(self, database: Database, applied: list[Applied], owners: set[str]) -> bool:
        """Whether a history in another schema may be that of this application, and not only of a neighbour."""
        mine = self.of(database)
        contents = {(item.name, item.checksum) for item in applied}
        if self.module in owners or any((item.name, item.checksum) in contents for item in mine):
            return True
        # Of a release that did not write down whose it is, a name alone may mean that.
        return not owners and bool({item.name for item in mine} & {name for name, _ in contents})

    def state(self, database: Database) -> State | None:
        """The state row of a database, ``None`` where there is none. At most one query.

        It may lie in another schema, see :class:`~.store.history.State`.

        :raises DatabaseUnreachable: the database cannot be asked.
        """
        from ..store.history import find_state, reading

        if not database.exists:
            return None
        with database.connect() as connection, reading(database):
            return find_state(connection)

    def changed(self, flag: Flag, *, pooled: bool = True) -> str | None:
        """Why the databases are not those that a flag names, with one query each; ``None`` when they are.

        Asked of the application's own connections: what it will use is what counts.

        :param pooled: whether the connections are those of the application's pool, or only made as those are.
        :raises DatabaseUnreachable: a database cannot be asked.
        """
        for name, record in flag.databases.items():
            database = self.databases[name]
            state = self.state(database.serving if pooled else Database(name, database.key, database.app_engine))
            if state is None:
                return f"the database {name!r} has no history"
            if state.database_id != record.database_id:
                return f"the database {name!r} is another one"
            if state.applied != record.applied:
                return f"the database {name!r} has another history"
        return None

    def _plan(self, database: Database, state: State | None, applied: list[Applied], force: bool) -> Plan:
        from .plan import Plan, ahead, describe, edited_once, pending

        migrations = self.of(database)
        todo = pending(migrations, applied, force=force)
        reason = describe(todo, state, applied)
        # Of all migrations of the code, because two names may lead to one database.
        beyond, edited = ahead(self.migrations, applied), edited_once(migrations, applied)
        return Plan(database, state, reason, todo, applied, beyond, edited)

    def settle(self, plans: Iterable[Plan]) -> None:
        """Have the state rows say that these databases lack nothing of these sources, where they said another thing.

        Else each boot without a flag would read the whole history again, until the next run: after an edited comment,
        for instance. Where it cannot be written, or would hide what boot says, it is left.

        :param plans: what the whole histories said; none lacks anything.
        """
        from ..store.history import settle

        names = [database.name for database in self.involved]
        for plan in plans:
            database, state = plan.database, plan.state
            if state is None or state.holder is not None or database.in_memory or plan.elsewhere is not None:
                continue
            if plan.ahead or plan.edited_once or (state.source, list(state.databases)) == (self.sources.digest, names):
                continue
            try:
                with database.connect() as connection:
                    settle(connection, state, self.sources.digest, names)
            except (DatabaseUnreachable, sa.exc.DBAPIError) as error:
                _logger.debug("db-smart: the state row stays as it is: %s", database.redact(error))

    def remember(self, states: Mapping[str, State]) -> None:
        """Write the flag: these databases hold every migration of these sources.

        A database in memory ends with the process, so that there is nothing to remember.
        """
        self._keep_flag(lambda: self._remember(states))

    def refresh(self, verdict: FlagVerdict) -> None:
        """Write the flag of a verdict again with the present time stamps."""
        flag = verdict.flag
        if flag is not None:
            # Its own digest: a file that is edited by now was not when its stamps were read.
            self._keep_flag(lambda: self._write(flag.databases, flag.digest))

    def forget(self) -> None:
        """Remove the flag, so that the next boot asks the databases."""
        self._keep_flag(lambda: self.path.unlink(missing_ok=True))

    def _keep_flag(self, action: Callable[[], None]) -> None:
        """Change the flag; that it cannot be changed costs time at later boots, and never fails one."""
        try:
            action()
        except OSError as error:
            _logger.warning(
                "db-smart: cannot write the flag %s (%s); every boot will ask the database", self.path, error.strerror
            )

    def _remember(self, states: Mapping[str, State]) -> None:
        records = {}
        for name, state in states.items():
            database = self.databases[name]
            if database.in_memory:
                return
            file = database.settled_file_state()
            records[name] = DatabaseRecord(database.url, file, state.database_id, state.applied)
        self._write(records, self.sources.digest)

    def _write(self, records: dict[str, DatabaseRecord], digest: str) -> None:
        sources = self.sources
        flag = Flag(self.module, sources.roots, digest, sources.racy, records, sources.stats)
        flags.write(self.path, flag)
