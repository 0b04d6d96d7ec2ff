"""Is there anything to do? Asked in the order of cost: the flag, the sources, one row, the whole history."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from ..errors import ConfigError, DatabaseUnreachable, MigrationError
from ..loading.sources import ALEMBIC, Sources, scan
from ..notices import logger_of
from ..settings import Settings
from ..store.database import Database
from . import flag as flags
from .flag import DatabaseRecord, Flag, FlagVerdict

if TYPE_CHECKING:
    from ..loading.alembic_files import AlembicFiles
    from ..loading.decorator import Migration
    from ..loading.revisions import Revision, Revisions
    from ..store.history import Applied, Learned, State, VersionTable
    from ..store.memory import Memory
    from .plan import Plan

T = TypeVar("T")

_logger = logger_of(__name__)


#: What is in an ``env.py`` that has a version table of its own, or several databases.
_WORDS = (b"version_table", b"search_path", b"default_schema_name", b"engine_name", b"set_config")
#: What is in one that migrates several databases, as the template of Flask-Migrate does.
_SEVERAL = (b"engine_name",)


class Code:
    """What an application has to apply: migrations of its own, the revisions of an Alembic directory, or both.

    :ivar module: dotted name of the module, or package of modules, with its migrations.
    :ivar version_table: name and schema of Alembic's version table; a schema of ``None`` is where a connection looks.
    :ivar look: runs ``env.py`` without a change, to learn what it says of itself only then.
    """

    def __init__(
        self,
        module: str | None,
        alembic: AlembicFiles | None = None,
        version_table: tuple[str, str | None] = ("alembic_version", None),
        look: Callable[[Mapping[str, Database]], Learned] | None = None,
    ) -> None:
        self.module = module
        self.alembic = alembic
        self.version_table = version_table
        self.look = look

    @property
    def name(self) -> str:
        """By which the flag and the history know it."""
        return self.names[0]

    @property
    def names(self) -> list[str]:
        """By which they may know it, the present name first: revisions alone have that of their directory.

        Migrations may have come beside them later.
        """
        names = [] if self.module is None else [self.module]
        if self.alembic is not None:
            names.append(f"{ALEMBIC}{os.path.basename(self.alembic.directory)}")
        return names or [""]

    @cached_property
    def plain(self) -> bool:
        """Whether ``env.py`` says nothing by itself of the version table and of the databases that it migrates."""
        return self.look is None or self.alembic is None or not self.alembic.has_words(_WORDS)

    @property
    def target(self) -> str:
        """How far the revisions are applied; another target is another thing to apply, though no file changes."""
        target = "head" if self.alembic is None else self.alembic.target
        return target if isinstance(target, str) else ",".join(target)

    @property
    def flag_name(self) -> str:
        """By which the flag knows it."""
        return self.name if self.target == "head" else f"{self.name} to {self.target}"


class Planner:
    """The questions of one boot (or command) about one set of migrations.

    :param code: what the application has to apply.
    :param databases: the application's databases by name.
    :param settings: of the application, as they are now.
    """

    def __init__(self, code: Code, databases: Mapping[str, Database], settings: Settings) -> None:
        self.code = code
        self.module = code.name
        self.databases = databases
        self.settings = settings
        #: The flag file.
        self.path = settings.flag
        #: When this process began to boot, seconds since the epoch; ``None`` for a command, by which a person asks for
        #: what it does.
        self.began: float | None = None
        #: What ``env.py`` has told of itself; ``None`` where that was not needed, or could not be asked yet.
        self.learned: Learned | None = None

    @property
    def in_memory(self) -> bool:
        """Whether a database ends with this process."""
        return any(database.in_memory for database in self.databases.values())

    @property
    def since(self) -> datetime | None:
        """When this process began to boot, UTC; ``None`` for a command."""
        return None if self.began is None else datetime.fromtimestamp(self.began, timezone.utc)

    @property
    def queries(self) -> int:
        """How many statements were sent to all databases so far."""
        return sum(database.queries for database in self.databases.values())

    @cached_property
    def sources(self) -> Sources:
        """The scan of the source files; one for the whole question.

        :raises MigrationError: there are none.
        """
        return scan(self.code.module, self.code.alembic)

    @cached_property
    def release(self) -> str:
        """What this release is called: ``DB_SMART_RELEASE``, else the commit of Git, else the digest of the sources."""
        from ..loading.git import Checkout

        checkout = Checkout.find(os.path.dirname(self.sources.roots[0]))
        commit = None if checkout is None else checkout.commit
        return self.settings.release or commit or self.sources.digest[:12]

    @cached_property
    def migrations(self) -> list[Migration]:
        """The migrations of the code, the revisions of Alembic first; imports the others.

        :raises MigrationError: they cannot be loaded.
        """
        from ..loading.loader import load

        return load(self.sources, self.revisions)

    @cached_property
    def revisions(self) -> Revisions | None:
        """The revisions of the Alembic directory, ``None`` without one; imports none of them.

        :raises MigrationError: a file cannot be read.
        """
        if self.code.alembic is None:
            return None
        from ..loading.revisions import read

        return read(self.sources, self.code.alembic)

    @property
    def versions(self) -> VersionTable | None:
        """Where Alembic keeps what is applied; ``None`` without an Alembic directory."""
        if self.code.alembic is None:
            return None
        from ..store.history import VersionTable

        found = VersionTable(*self.code.version_table, sure=self.code.plain)
        return found if self.learned is None else self.learned.versions

    @property
    def revised(self) -> tuple[str, ...]:
        """Names of the databases that the Alembic directory is for."""
        alembic = self.code.alembic
        if alembic is None:
            return ()
        if self.learned is not None:
            return tuple(name for name in self.learned.databases if name in self.databases)
        several = not self.code.plain and alembic.has_words(_SEVERAL)
        return tuple(self.databases) if several else tuple(name for name in self.databases if name == "default")

    def learn(self) -> None:
        """Find out what ``env.py`` tells only when it runs: from the row of an earlier run, or by a look.

        :raises DbSmartError: it cannot be run.
        """
        database = self.databases.get("default")
        if self.learned is not None or self.code.plain or database is None or not database.exists:
            return
        assert self.code.look is not None
        assert self.code.alembic is not None
        state = self.state(database)
        found = None if state is None else state.learned
        if found is None or found.env != self.code.alembic.env_hash:
            found = self.code.look(self.databases)
        self.learned = found
        self.__dict__.pop("involved", None)

    def source(self, heads: tuple[str, ...] | None) -> str:
        """What the state row says where all of these sources is applied.

        :param heads: of the database; ``None`` without an Alembic directory.
        """
        if self.code.alembic is None:
            return self.sources.digest
        return hashlib.sha256("\0".join((self.sources.digest, self.code.target, *(heads or ()))).encode()).hexdigest()

    @cached_property
    def involved(self) -> list[Database]:
        """The default database, and those that migrations name; imports the migrations.

        :raises MigrationError: a migration names a database that the application does not have.
        """
        self.learn()
        names = ({"default"} & self.databases.keys()) | set(self.revised)
        for migration in self.migrations:
            if migration.revision:
                continue
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
        revised = database.name in self.revised
        return [
            item
            for item in self.migrations
            if (revised if item.revision else (item.options.database or "default") == database.name)
        ]

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
        return flags.check(self.path, self.code.flag_name, self.databases, lambda: self.sources)

    def by_row(self, *, leaving: bool = False) -> list[Plan] | None:
        """Level 2, the short way: does the state row of each database say that these very sources are applied?

        The row of the first database names the others, so that the migrations need not be imported.

        :param leaving: whether migrations with ``background=True`` do not count.
        :returns: a plan with nothing pending for each; ``None`` when the whole history must be read.
        :raises DatabaseUnreachable: a database cannot be asked.
        """
        from .plan import BUT_LATER, COMPLETE, Plan

        plans: list[Plan] = []
        names = list(self.databases)[:1]
        for name in names:  # grows by what the first row says
            database = self.databases.get(name)
            state = None if database is None else self.state(database)
            if database is None or state is None or not state.databases:
                return None
            left = leaving and state.source == self.partly(state.heads)
            if not left and state.source != self.source(state.heads):
                return None
            if any(plan.state is not None and plan.state.database_id == state.database_id for plan in plans):
                return None  # one database by two names has one row, which the run on either of them writes
            names += [other for other in state.databases if other not in names]
            plans.append(Plan(database, state, BUT_LATER if left else COMPLETE, later=left))
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
            return self._plan(database, None, [], force, None)

        def ask() -> Plan:
            with database.connect() as connection:
                return self.by_connection(database, connection, force=force)

        return _asked(database, ask)

    def partly(self, heads: tuple[str, ...] | None) -> str:
        """What the state row says where only migrations with ``background=True`` are left; see :meth:`source`."""
        return hashlib.sha256(f"{self.source(heads)}\0but those in the background".encode()).hexdigest()

    def complete(self, database: Database, state: State, *, leaving: bool = False) -> bool:
        """Whether a database, whose state row was just read, lacks nothing of these sources.

        The row alone does not tell where two names lead to one database.

        :param leaving: whether migrations with ``background=True`` do not count.
        """
        if state.source == self.source(state.heads):
            return not self.ask(database).behind
        return leaving and state.source == self.partly(state.heads) and not self.ask(database).blocks

    def was_applied(self, name: str) -> bool:
        """Whether a migration of this code is applied, in the content that it has here.

        :raises ConfigError: there is no such migration.
        :raises DatabaseUnreachable: its database cannot be asked.
        """
        from ..store.history import reading, was_applied

        found = next((one for one in self.migrations if one.name == name), None)
        if found is None:
            raise ConfigError(f"There is no migration {name!r} in {self.module}.")
        names = self.revised if found.revision else [found.options.database or "default"]
        known = [self.databases[database] for database in names]
        served = [Database(one.name, one.key, one.app_engine) for one in known]  # its pool is for the application
        if found.revision:
            return all(name not in {item.migration.name for item in self.ask(one).pending} for one in served)
        database = served[0]
        if not database.exists:
            return False
        with database.connect() as connection, reading(database):
            return was_applied(connection, name, None if found.options.once else found.checksum)

    def by_connection(self, database: Database, connection: sa.Connection, *, force: bool = False) -> Plan:
        """As :meth:`ask`, on an open connection."""
        from ..store.history import TAKEN_BACK, find_state, half_undone, read_applications, read_applied, reading

        self.learn()
        with reading(database):
            state = find_state(connection, self.versions)
            heads = state.heads if state is not None else self._heads(connection)
            place = None if state is None else state.place
            applied = [] if state is None else read_applied(connection, place)
            owners = set() if state is None else read_applications(connection, place)
            # What an undo says of the sources from its begin on; each boot comes here until it has ended.
            undone = half_undone(connection, place) if state is not None and state.source == TAKEN_BACK else []
        if place is not None and not self._may_be_ours(database, applied, owners):
            state, place, applied, owners = None, None, [], set()
        plan = self._plan(database, state, applied, force, heads)
        plan.half_undone = undone
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

        def ask() -> State | None:
            with database.connect() as connection, reading(database):
                return find_state(connection, self.versions)

        return _asked(database, ask)

    def _heads(self, connection: sa.Connection) -> tuple[str, ...] | None:
        from ..store.history import read_heads

        return None if self.versions is None else read_heads(connection, self.versions)

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
            if state.stamp != record.applied:
                return f"the database {name!r} has another history"
        return None

    def _plan(
        self,
        database: Database,
        state: State | None,
        applied: list[Applied],
        force: bool,
        heads: tuple[str, ...] | None,
    ) -> Plan:
        from .plan import COMPLETE, Plan, ahead, describe, edited_once, pending

        migrations = self.of(database)
        lacking, unknown = self.lacking(database, heads)
        todo = pending(migrations, applied, force=force, lacking=lacking)
        reason = describe(todo, state, applied)
        # Of all migrations of the code, because two names may lead to one database.
        beyond, edited = ahead(self.migrations, applied), edited_once(migrations, applied)
        beyond += [name for name in unknown if name not in beyond]
        plan = Plan(database, state, reason, todo, applied, beyond, edited, heads=heads)
        if plan.adoptable:
            holds = "is ahead of this code" if beyond else COMPLETE
            plan.reason = f"{holds}, by Alembic alone, and has no history of db-smart yet"
        return plan

    def lacking(self, database: Database, heads: tuple[str, ...] | None) -> tuple[list[str], list[str]]:
        """What a database with these heads lacks of the revisions, in order; and those of its heads that are not here.

        A newer release has run what is not here, so that nothing is to be run by this one.
        """
        if self.revisions is None or database.name not in self.revised:
            return [], []
        unknown = self.revisions.unknown(heads or ())
        return [] if unknown else [one.name for one in self.revisions.pending(heads or ())], unknown

    def held(self, plan: Plan) -> dict[str, Revision] | None:
        """The revisions that a database holds, in order; ``None`` where that cannot be told, as it is ahead."""
        revisions, heads = self.revisions, plan.heads or ()
        if revisions is None or plan.database.name not in self.revised or revisions.unknown(heads):
            return None
        return {one.name: one for one in (revisions.applied(heads) if heads else ())}

    def without_steps(self, plan: Plan) -> set[str]:
        """The revisions of which the steps of a killed run do not hold: each is to run as a whole.

        Another tool has finished the revision; or it has taken back one that comes before it, with all that was done
        after that.
        """
        held = self.held(plan)
        if held is None or self.revisions is None:
            return set()
        every = self.revisions.by_name.values()
        return {one.name for one in every if one.name in held or not held.keys() >= set(one.down)}

    def taken_back(self, plan: Plan) -> list[Applied]:
        """What the history has of revisions that Alembic alone has taken back, as ``flask db downgrade`` does."""
        revisions, held = self.revisions, self.held(plan)
        if revisions is None or held is None:
            return []
        gone = revisions.by_name.keys() - held.keys()
        return [item for item in plan.applied if item.checksum.startswith(ALEMBIC) and item.name in gone]

    def done_alone(self, plan: Plan) -> list[tuple[str, str, str]]:
        """Names, checksums and marks of the revisions that Alembic alone has taken back or applied, in order.

        With a row for each in the history, older code knows that the database is ahead of it.
        """
        from ..store.history import ADOPTED, TAKEN_BACK

        found = [(item.name, item.checksum, TAKEN_BACK) for item in self.taken_back(plan)]
        known = {item.name for item in plan.applied}
        held = (self.held(plan) or {}).values()
        return found + [(one.name, one.checksum, ADOPTED) for one in held if one.name not in known]

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
            source = self.source(state.heads)
            if plan.ahead or plan.edited_once or (state.source, list(state.databases)) == (source, names):
                continue
            try:
                with database.connect() as connection:
                    alone, forgotten = self.done_alone(plan), self.without_steps(plan)
                    plan.state = settle(connection, state, source, names, self.learned, alone, forgotten) or state
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
        self._keep_flag(lambda: flags.remove(self.path))

    def _keep_flag(self, action: Callable[[], object]) -> None:
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
            records[name] = DatabaseRecord(database.url, file, state.database_id, state.stamp)
        self._write(records, self.sources.digest)

    def _write(self, records: dict[str, DatabaseRecord], digest: str) -> None:
        sources = self.sources
        flag = Flag(self.code.flag_name, sources.roots, digest, sources.racy, records, sources.stats, sources.packed)
        flags.write(self.path, flag)


def _asked(database: Database, ask: Callable[[], T]) -> T:
    """The answer of a database, asked again where it has put another session first, which changes our tables."""
    from ..retry import ASKED_AGAIN, retry  # which a warm boot does not need

    return retry(ask, ASKED_AGAIN, lambda error: database.says(error, "deadlock"))
