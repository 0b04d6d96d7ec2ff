"""The Flask extension: its settings, what boot does, and what the first request makes sure of."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import click
import sqlalchemy as sa
from flask import Blueprint, Flask, Response, current_app, request
from flask.cli import ScriptInfo
from werkzeug.routing import BaseConverter

from .boot.app_state import AppState
from .boot.decision import decide
from .boot.flag import FlagVerdict
from .boot.planner import Code, Planner
from .commands import HELP, Commands
from .errors import (
    ConfigError,
    DatabaseBehind,
    DbSmartError,
    HistoryUnreadable,
    one_line,
)
from .notices import Logger, inside, logger_of, notice, without_plugin_lines
from .settings import Settings, set_defaults
from .signals import booted, send
from .store.database import Database, application_engines, databases, engines_of

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from .boot.branch import Branches
    from .boot.plan import Plan
    from .contract import Waits
    from .drift.comparison import Comparison, Drift
    from .drift.hints import Hints
    from .fence import Fence
    from .lint.findings import Linted
    from .preview import Preview
    from .resuming import Resume
    from .runner import Outcome, Runner
    from .store.history import Learned, State
    from .threads import Threads
    from .undo.outcome import Undoing, Undone

Decision = Literal["skipped", "verified", "migrated", "background", "behind", "off"]
V = TypeVar("V", bound=Callable[..., Any])

_logger = logger_of(__name__)
_EXTENSION = "db_smart"
_EXEMPT = "_db_smart_exempt"
#: Words on the command line of commands for which it does not matter whether a database is behind.
_COMMANDS_WITHOUT_DATA = {"db-smart", "db", "routes", "--help", "--version"}
#: How long after the import of this module the first boot of a process still belongs to its start, seconds.
_START_SECONDS = 30
_just_started: float | None = time.time()


class BootReport(NamedTuple):
    """What boot decided.

    :ivar decision: ``"skipped"`` (the flag said enough), ``"verified"`` (the database did), ``"migrated"``,
        ``"background"`` (a thread goes on), ``"behind"`` (while debugging, with ``check``: requests are told) or
        ``"off"``.
    :ivar reason: why, in words.
    :ivar applied: names of the migrations that were applied, in order.
    :ivar duration: seconds.
    """

    decision: Decision
    reason: str
    applied: tuple[str, ...]
    duration: float


class DbSmart:
    """Keeps the databases of a Flask application up to date with its migrations.

    ``DbSmart(app, db, migrations="myapp.migrations")``, or ``DbSmart()`` and :meth:`init_app` later. It stands at
    ``app.extensions["db_smart"]``.

    :param migrations: dotted name of the module, or package of modules, with the migrations.
    :param alembic: the path of an Alembic directory to take over, or ``True`` for that of Flask-Migrate.
    :param alembic_target: how far its revisions are applied.
    """

    def __init__(
        self,
        app: Flask | None = None,
        db: SQLAlchemy | None = None,
        *,
        migrations: str | None = None,
        alembic: str | os.PathLike[str] | bool | None = None,
        alembic_target: str | Sequence[str] = "head",
    ) -> None:
        self._states: WeakKeyDictionary[Flask, AppState] = WeakKeyDictionary()
        self._include_object: Callable[..., Any] | None = None
        if app is not None:
            self.init_app(app, db, migrations=migrations, alembic=alembic, alembic_target=alembic_target)

    def init_app(
        self,
        app: Flask,
        db: SQLAlchemy | None = None,
        *,
        migrations: str | None = None,
        alembic: str | os.PathLike[str] | bool | None = None,
        alembic_target: str | Sequence[str] = "head",
    ) -> None:
        """Register the commands and the hook for the first request. It touches no file and no database.

        Reads these keys of ``app.config``, each also from the environment as ``FLASK_<key>``: ``DB_SMART_BOOT``,
        ``DB_SMART_FLAG``, ``DB_SMART_CREATE_ALL``, ``DB_SMART_MIGRATION_URL``, ``DB_SMART_SNAPSHOTS``,
        ``DB_SMART_LOCK_TIMEOUT``, ``DB_SMART_LEASE_SECONDS``, ``DB_SMART_DDL_LOCK_TIMEOUT``,
        ``DB_SMART_DDL_RETRIES``, ``DB_SMART_RELEASE``, ``DB_SMART_RELEASES``, ``DB_SMART_REQUEST_GRACE``,
        ``DB_SMART_DIFF_IGNORE``, ``DB_SMART_WEB``, ``DB_SMART_URL_PREFIX``, ``DB_SMART_TOKEN`` and
        ``DB_SMART_BRANCHES``. Each boot reads ``FORCE_DB_MIGRATION``.

        :param db: the application's Flask-SQLAlchemy; if ``None``, the one that is registered on ``app``.
        :param migrations: dotted name of a module or package.
        :param alembic: the path of an Alembic directory, absolute, or relative to the working directory or to the
            folder of the application; or ``True`` for that of Flask-Migrate. Its revisions come before the migrations.
            ``DB_SMART_CREATE_ALL`` is then off unless it is set.
        :param alembic_target: how far its revisions are applied: ``"head"``, ``"heads"`` for all of several,
            ``"label@head"`` or an identifier, or a list of these.
        :raises ConfigError: registered twice, without migrations, without Flask-SQLAlchemy, or with no such target.
        """
        if _EXTENSION in app.extensions:
            raise ConfigError("A DbSmart is already registered on this application; use app.extensions['db_smart'].")
        if migrations is None and not alembic:
            raise ConfigError(
                "DbSmart needs the migrations: DbSmart(app, db, migrations='myapp.migrations'), or the revisions of "
                "Flask-Migrate: DbSmart(app, db, alembic=True)."
            )
        named = [alembic_target] if isinstance(alembic_target, str) else alembic_target
        if not (isinstance(named, Sequence) and named and all(isinstance(one, str) and one for one in named)):
            raise ConfigError(
                f"alembic_target is {alembic_target!r}; it must be 'head', 'heads', 'label@head', an identifier or a "
                "list of these. Nothing was changed."
            )
        db = db if db is not None else app.extensions.get("sqlalchemy")
        if db is None:
            raise ConfigError("DbSmart needs Flask-SQLAlchemy: pass db, or call db.init_app(app) first.")
        if not hasattr(db, "_app_engines"):
            kind = f"{type(db).__module__}.{type(db).__qualname__}"
            raise ConfigError(
                f"DbSmart needs the SQLAlchemy of Flask-SQLAlchemy; {kind} is a different class. "
                "Pass a flask_sqlalchemy.SQLAlchemy: DbSmart(app, db, ...)."
            )
        if alembic:
            from .loading import alembic_files  # noqa: F401  (with the application, as all that a warm boot needs)
        set_defaults(app, create_all=not alembic)
        self._states[app] = AppState(db, lambda: _code(app, migrations, alembic, alembic_target))
        app.extensions[_EXTENSION] = self
        blueprint = Blueprint("db_smart", __name__, cli_group="db-smart", template_folder="web/templates")
        blueprint.cli.help = HELP
        blueprint.cli.commands = Commands()
        self._add_routes(app, blueprint)
        app.register_blueprint(blueprint)
        if "alembic.runtime.plugins" in sys.modules:  # only then: a boot does not load Alembic
            from .autogenerate import register

            register()
        _watch(app)
        # Before every other hook, because those may already need the database.
        app.before_request_funcs.setdefault(None, []).insert(0, self._first_request)

    @property
    def applications(self) -> list[Flask]:
        """Those on which it is registered."""
        return list(self._states)

    def database(self, app: Flask) -> SQLAlchemy:
        """The Flask-SQLAlchemy of an application."""
        return self._state(app).db

    def boot(self, app: Flask) -> BootReport:
        """Bring the databases up to date if anything changed; call it last in ``create_app()``.

        Under a ``flask`` command other than ``flask run`` it decides ``"off"``.

        :raises DatabaseBehind: something is pending and ``DB_SMART_BOOT`` is ``check``.
        :raises DbSmartError: a setting, the migrations or a database is at fault; the message says what to do.
        """
        state = self._state(app)
        self.enter_branch(app)
        self._name_sessions(app, state)
        if _flask_command_other_than_run():
            _watch(app)
            self._warn(app)
            report = _report("off", "this flask command does not migrate", time.perf_counter(), 0)
            self._tell(app, report)
            return report
        if inside.directory:
            return _report("off", "it is made by an Alembic directory that runs", time.perf_counter(), 0)
        if state.mine:
            raise DbSmartError("boot() was called by a migration or a listener while it runs; call it afterwards.")
        _refuse_clash(app)
        if state.background is not None and state.background.running:
            return _report("background", "a thread of this process is at it", time.perf_counter(), 0)
        with state.deciding():
            try:
                report = self._decide(app, state)
            except DatabaseBehind as error:
                if not app.debug:
                    raise
                found = self._offer(app, state, error)
                if found is None and not Settings(app).web:
                    raise
                # A page tells it, with a button that migrates.
                report = found or BootReport("behind", error.message, (), 0.0)
        self._tell(app, report)
        return report

    def run_pending(self, app: Flask) -> None:
        """Apply what is pending, because a person said so, and serve requests from then on.

        :raises DbSmartError: see :meth:`migrate`.
        """
        state = self._state(app)
        report = None
        with state.deciding():
            if not state.verified or state.refusal is not None:  # else another request has done it meanwhile
                report = self._run_pending(app, state)
        if report is not None:
            self._tell(app, report)

    def _run_pending(self, app: Flask, state: AppState) -> BootReport:
        """As :meth:`run_pending`; the caller holds the lock of ``state``."""
        with app.app_context():
            planner = self.planner(app)
            self.migrate(app, planner, planner.involved)
        report = self._decide(app, state)
        state.refusal = None
        return report

    def _offer(self, app: Flask, state: AppState, error: DatabaseBehind) -> BootReport | None:
        """Say that the database is behind, and offer to migrate it where ``flask run`` is on a terminal.

        :returns: ``None`` where it is not migrated.
        """
        _logger.warning("db-smart: %s", error.message)
        if not _on_a_terminal() or not click.confirm("Run pending migrations?", err=True):
            return None
        from .output import progress

        try:
            with progress(app, [], lambda _: None, lines=False):
                return self._run_pending(app, state)
        except DbSmartError as failure:
            _logger.error("db-smart: %s", failure.message)
            return None

    def _tell(self, app: Flask, report: BootReport) -> None:
        """Remember what boot decided, and tell those who listen."""
        self._state(app).report = report
        send(booted, app, report=report)

    def exempt(self, view: V) -> V:
        """Let a view answer even if the database is behind or cannot be reached, and while it is migrated.

        For probes that only ask whether the process runs. Requests for it neither ask the database, as the first
        request does, nor wait for that.
        """
        setattr(view, _EXEMPT, True)
        return view

    def planner(self, app: Flask) -> Planner:
        """The planner for an application, by its present settings.

        :raises ConfigError: a setting cannot be used.
        """
        return self._planner(app, Settings(app))

    def database_state(self, app: Flask) -> str:
        """``"up-to-date"``, ``"pending"`` or ``"ahead"``, asked now of the application's own connections.

        Needs an application context.

        :raises DbSmartError: a database cannot be reached, or the migrations cannot be loaded.
        """
        from .boot.plan import overall_state

        planner = self.planner(app)
        planner.databases = {name: database.serving for name, database in planner.databases.items()}
        return overall_state(plan.status for plan in planner.by_row() or planner.by_history())

    def missing_tables(self, app: Flask, planner: Planner, plan: Plan) -> tuple[list[str], str]:
        """The tables of the models that a database with a history does not have.

        While migrations are pending, only tables that existed once count: a pending migration may create the
        others. Needs an application context.

        :returns: their names, and a sentence about them.
        :raises DbSmartError: the database cannot be reached.
        """
        from .schema import model_tables

        database = plan.database
        metadata = self._state(app).db.metadatas.get(database.key)
        if metadata is None or not metadata.tables or not database.exists:
            return [], ""
        there = None if plan.state is None else plan.state.tables
        if there is not None and there.issuperset(_names(metadata, database)):
            return [], ""
        with suppress(sa.exc.DBAPIError), database.connect() as connection:  # no right to look: nothing can be said
            found: Sequence[sa.Table] = model_tables.missing(connection, metadata)
            if found:
                memory = planner.memory(plan, metadata, connection)
                memory.read(connection)
                found = (memory.had(found) or []) if plan.behind else found
                names = [table.key for table in found]
                return names, model_tables.lost(database.name, names, memory.taken(found))
        return [], ""

    def migrate(
        self,
        app: Flask,
        planner: Planner,
        selected: list[Database],
        *,
        force: bool = False,
        remake: bool = False,
        resume: Resume | None = None,
        contract_now: Collection[str] = (),
    ) -> Outcome:
        """Apply what is pending, whatever ``DB_SMART_BOOT`` says, and write the flag when nothing is left.

        Needs an application context.

        :param selected: the databases to migrate.
        :param force: run every repeatable migration again.
        :param remake: create the lost tables of the models again.
        :param resume: first find out how far another tool has come with the next revision.
        :param contract_now: names of contract steps that are not to wait.
        :raises DbSmartError: see :meth:`~.runner.Runner.run`.
        """
        kind = None
        if resume is not None:
            with without_plugin_lines():
                from .resuming import run_of

            kind = run_of(resume)
        state = self._state(app)
        runner = self._runner(app, planner)
        runner.contract_now = contract_now
        with state.running:
            outcome = runner.run(selected, force=force, remake=remake, kind=kind)
        state.verified |= outcome.complete
        return outcome

    def waits(self, app: Flask, planner: Planner, plan: Plan, names: Collection[str]) -> dict[str, Waits]:
        """Why contract steps of a database have to wait, without those that need not. Needs an application context.

        :raises DatabaseUnreachable: the database cannot be asked.
        """
        from .contract import Contracts
        from .store.history import reading

        steps = [item for item in plan.pending if item.migration.name in names]
        with reading(plan.database):
            return Contracts(app, self._state(app).db, planner, plan).look(steps, often=False)

    def stamp(
        self, app: Flask, planner: Planner, name: str, wanted: Sequence[str], told: Sequence[str]
    ) -> State | None:
        """Record on one database as applied what is not run. Needs an application context.

        :param name: of the database; the other parameters are those of :func:`~.stamping.stamp`.
        :raises DbSmartError: see there.
        """
        runner = self._runner(app, planner)
        with without_plugin_lines():
            from .stamping import stamp

        return stamp(runner, planner.databases[name], wanted, told)

    def undoing(self, app: Flask, planner: Planner, database: Database, wanted: str | None) -> list[Undoing]:
        """What taking a run back would come to; see :func:`~.undo.looking.look`. Needs an application context.

        :raises DbSmartError: there is no such run, or the database cannot be asked.
        """
        with without_plugin_lines():
            from .undo.run import asked

        return asked(self._runner(app, planner), database, wanted)

    def undo(
        self,
        app: Flask,
        planner: Planner,
        database: Database,
        wanted: str | None,
        told: Sequence[Undoing],
        *,
        archive: bool,
        discard: bool,
    ) -> list[Undone]:
        """Take runs back on one database. Needs an application context.

        :param told: what the person has agreed to; the other parameters are those of :class:`~.undo.run.UndoRun`.
        :raises DbSmartError: see :meth:`~.undo.run.UndoRun.undo`.
        """
        runner = self._runner(app, planner)
        with without_plugin_lines():
            from .undo.run import UndoRun

        return UndoRun(runner, database, wanted, told, archive, discard).undo()

    def _planner(self, app: Flask, settings: Settings) -> Planner:
        state = self._state(app)
        self.enter_branch(app)
        return Planner(state.code, databases(application_engines(app, state.db), settings.migration_urls), settings)

    def branches(self, app: Flask) -> Branches:
        """The databases of the Git branches.

        :raises ConfigError: they cannot have any.
        """
        state = self._state(app)
        if state.branches is None:
            from .boot.branch import Branches

            state.branches = Branches(app, databases(application_engines(app, state.db), {}), Settings(app))
        return state.branches

    def enter_branch(self, app: Flask) -> bool:
        """Lead this process to the databases of its Git branch, once, where ``DB_SMART_BRANCHES`` says so.

        :returns: whether it is led.
        :raises DbSmartError: that cannot be done.
        """
        if not app.config["DB_SMART_BRANCHES"] or app.testing:  # a test may empty its database
            return False
        state = self._state(app)
        if state.on_branch is not None:
            return state.on_branch
        words = set(sys.argv)
        if not Settings(app).branches or _completing() or ({"db-smart", "branch"} <= words and "--switch" not in words):
            return False
        # As it is at boot: Flask's commands set it by the environment afterwards.
        if app.debug:
            self.branches(app).enter()
        else:
            _logger.warning(
                "db-smart: DB_SMART_BRANCHES has no effect, because this is not debug mode: the database is that of "
                "the URL, whatever the branch. While developing, set FLASK_DEBUG=1; elsewhere, remove the setting"
            )
        state.on_branch = app.debug
        return state.on_branch

    def _runner(self, app: Flask, planner: Planner) -> Runner:
        """The runner that applies migrations.

        :raises ConfigError: a setting cannot be used; nothing was created.
        """
        with without_plugin_lines():
            from .runner import Runner

        planner.settings.check()
        return Runner(app, self._state(app).db, planner)

    def made_otherwise(self, app: Flask, planner: Planner, plan: Plan) -> str | None:
        """Why the pending revisions of Alembic will be refused; see :func:`~.first_run.made_otherwise`.

        :raises DbSmartError: the database cannot be reached.
        """
        if planner.versions is None or not plan.database.exists:
            return None
        from .first_run import made_otherwise

        metadata = self._state(app).db.metadatas.get(plan.database.key)
        with suppress(sa.exc.DBAPIError), plan.database.connect() as connection:  # no right to look
            return made_otherwise(plan.database, connection, plan, metadata, planner.versions)
        return None

    def preview(
        self,
        app: Flask,
        planner: Planner,
        plans: list[Plan],
        *,
        remake: bool = False,
        as_sql: bool = False,
        beyond: bool = False,
    ) -> dict[str, list[Preview]]:
        """What a run of these plans would do, by the name of the database; writes nothing.

        Needs an application context.

        :param remake: as for :meth:`migrate`.
        :param as_sql: whether the SQL is wanted: that of revisions takes their modules to be imported.
        :param beyond: whether to go on with a migration after what a rule refuses.
        :raises DbSmartError: a database cannot be reached, or a run would be refused.
        """
        with without_plugin_lines():
            from .preview import preview

        db, make = self._state(app).db, planner.settings.create_all
        for plan in plans:
            if plan.behind:
                plan.refuse_elsewhere()
            refusal = self.made_otherwise(app, planner, plan)
            if refusal is not None:
                raise DbSmartError(refusal)
        return {
            plan.database.name: preview(
                app, db, planner, plan, create_all=make, remake=remake, as_sql=as_sql, beyond=beyond
            )
            for plan in plans
        }

    def drift(self, app: Flask, planner: Planner, database: Database) -> Drift:
        """Where the models and a database differ, counting what is pending as applied; writes nothing that stays.

        Needs an application context.

        :raises DbSmartError: the database cannot be reached, or the models cannot be made in a scratch place.
        """
        plan = planner.ask(database)
        pending = self.preview(app, planner, [plan], as_sql=True)[database.name] if plan.behind else []
        metadata, db = self.metadata(app).get(database.key, sa.MetaData()), self._state(app).db
        from .session.rebind import refusing

        others = [one for one in planner.databases.values() if one is not database]
        comparison = self._comparison(planner)
        found = comparison.of(database, metadata, pending, lambda engine: refusing(app, db, database, engine, others))
        return replace(found, ahead=plan.ahead)

    def lint(
        self, app: Flask, planner: Planner, database: Database, *, everything: bool, traced: bool = False
    ) -> Linted:
        """What the migrations of a database would lock and break; writes nothing. Needs an application context.

        :param everything: whether what is applied is looked at too.
        :param traced: whether what is pending is applied to a scratch copy, of which nothing stays.
        :raises DbSmartError: the migrations cannot be loaded, or the run would be refused.
        """
        from .lint.run import Lint, model_names

        db: Any = self._state(app).db
        versions = planner.versions
        return Lint(
            planner,
            database,
            metadata=self.metadata(app).get(database.key, sa.MetaData()),
            models=dict(model_names(db.metadatas.values(), db.Model.registry)),
            preview=lambda plan, as_sql: self.preview(app, planner, [plan], as_sql=as_sql, beyond=True)[database.name],
            versions="alembic_version" if versions is None else versions.name,
        ).of(everything=everything, traced=traced)

    def lacking(self, app: Flask, planner: Planner, database: Database) -> list[str]:
        """The tables and columns of the models that a database does not have, by their names alone.

        :raises DatabaseUnreachable: it cannot be asked.
        """
        metadata = self.metadata(app).get(database.key, sa.MetaData())
        return self._comparison(planner).lacking(database, metadata)

    def _comparison(self, planner: Planner) -> Comparison:
        from .drift.comparison import Comparison

        return Comparison(
            ignored=planner.settings.diff_ignore, include_object=self._include_object, versions=planner.versions
        )

    def metadata(self, app: Flask) -> Mapping[str | None, sa.MetaData]:
        """The tables of the models, by bind key."""
        return self._state(app).db.metadatas

    def include_object(self, function: V) -> V:
        """Let a function decide what is compared, as ``include_object`` of Alembic: a decorator.

        It is called with the object, its name, its type (``"table"``, ``"column"``, ``"index"``,
        ``"unique_constraint"``, ``"foreign_key_constraint"``, or the word that ``diff`` uses), whether the database
        alone has it, and what it is compared to.
        """
        self._include_object = function
        return function

    def _state(self, app: Flask) -> AppState:
        try:
            return self._states[app]
        except KeyError:
            raise ConfigError("This DbSmart is not registered on this application: call init_app() first.") from None

    def _warn(self, app: Flask) -> None:
        """Warn, under a flask command, that the database may be behind, if the flag alone says so."""
        context = click.get_current_context(silent=True)
        ours = context is not None and context.command in Commands().values()  # by a script, such as migrate_db.py
        if ours or _COMMANDS_WITHOUT_DATA & set(sys.argv[1:]) or _completing():
            return
        with suppress(Exception):  # whatever is wrong, whoever migrates gets the message; this command may not need it
            planner = self.planner(app)
            mode = planner.settings.boot
            if mode == "off" or planner.in_memory:
                return
            verdict = planner.by_flag()
            # A host that only checks writes no flag, so that there its absence says nothing.
            if not verdict.holds and (verdict.present or planner.settings.migrates):
                _logger.warning(
                    "db-smart: the database may be behind this code: %s. This command does not migrate; 'flask "
                    "db-smart status' shows more, 'flask db-smart migrate' brings it up to date.",
                    verdict.reason,
                )

    def _decide(
        self,
        app: Flask,
        state: AppState,
        planner: Planner | None = None,
        changed: str | None = None,
        began: float | None = None,
    ) -> BootReport:
        """Ask the levels in the order of cost, as far as is needed, and do what :func:`~.boot.decision.decide` says.

        The caller holds the lock of ``state``.

        :param planner: what the first request has asked already; ``None`` at boot.
        :param changed: why the flag that boot trusted is wrong; ``None`` at boot.
        :param began: of a thread that migrates: since when a failure of another process counts as its own.
        """
        started = time.perf_counter()
        settings = Settings(app) if planner is None else planner.settings
        if began is not None and state.background is not None:
            settings.woken = state.background.woken
        mode = settings.boot
        force = settings.force if changed is None and mode != "off" else None
        if force is not None and mode == "check":
            _logger.warning("db-smart: %s is ignored, because DB_SMART_BOOT is 'check'", force)
        verdict = None if changed is None else FlagVerdict(False, changed)
        step = decide(mode, force, verdict)
        if step.action == "off":
            state.verify()
            return _report("off", step.reason, started, 0)
        state.verified = False
        if planner is None:
            planner = self._planner(app, settings)
            planner.began = _boot_began() if began is None else began
        by_flag = verdict is None and step.action == "ask"
        if by_flag:
            verdict = _ask_flag(planner)
            step = decide(mode, force, verdict)
            if step.action == "skip":
                if app.debug:
                    self._debug(app, planner)
                return _trust(state, planner, verdict, started)
        if mode == "background" and began is None and self._threads(app, state).can_wait(planner):
            self._threads(app, state).start(planner.path)
            return _report("background", step.reason, started, planner.queries)
        with ExitStack() as stack:
            _keep_alive(stack)
            if by_flag:
                assert verdict is not None
                verdict = _wait_for_turn(planner, verdict, stack)
                step = decide(mode, force, verdict)
                if step.action == "skip":
                    return _trust(state, planner, verdict, started)
            stack.enter_context(app.app_context())
            known: list[Plan] | None = None
            plans: list[Plan] = []
            if step.action == "ask":
                known = planner.by_row(leaving=not planner.in_memory)
                plans = known or planner.by_history()
                _tell(plans)
                step = decide(mode, force, verdict, plans)
            if step.action == "stop":
                todo = "Run 'flask db-smart migrate' and start again."
                if app.debug and settings.web:  # there is a page with a button
                    todo = "Open the application in a browser on this machine, or run 'flask db-smart migrate'."
                raise DatabaseBehind(
                    f"The database is behind this code and DB_SMART_BOOT is 'check': {step.reason}. Nothing was "
                    f"written. {todo}",
                    # The reason may name files, hosts and users.
                    "The database is behind this code: "
                    + "; ".join(plan.clause for plan in plans if plan.behind)
                    + ".",
                )
            decision: Decision = "verified"
            reason, applied = step.reason, tuple[str, ...]()
            left = [item.migration.name for plan in plans for item in plan.pending]
            later = bool(left) or any(plan.later for plan in plans)
            ahead = {plan.database.name for plan in plans if plan.ahead}
            if step.action == "migrate":
                runner = self._runner(app, planner)
                runner.leaving = force is None and not planner.in_memory
                with state.running:
                    outcome = runner.run(planner.involved, force=force is not None)
                left, later = outcome.left, bool(outcome.left)
                if outcome.changed:
                    decision, applied = "migrated", tuple(run.migration for run in outcome.runs)
                else:
                    reason += "; another process migrated meanwhile" if force is None else "; nothing can be run again"
                self._hints(app, planner).at_boot(outcome.states, ahead)
            else:
                lost = self._warn_of_lost_tables(app, planner, plans)
                self._hints(app, planner).at_boot({plan.database.name: plan.state for plan in plans}, ahead, lost)
                if settings.migrates and not later and not any(plan.half_undone for plan in plans):
                    if known is None:
                        planner.settle(plans)
                    planner.remember({plan.database.name: plan.state for plan in plans if plan.state is not None})
            if app.debug:
                self._hints(app, planner).in_errors(engines_of(app, state.db))
        state.verify()
        if later and settings.migrates:
            self._threads(app, state).run_later(planner, left)
        return _report(decision, reason, started, planner.queries, applied)

    def _debug(self, app: Flask, planner: Planner) -> None:
        """Compare the models where they have changed, and explain errors of queries."""
        with app.app_context():
            hints = self._hints(app, planner)
            hints.while_debugging(planner.path)
            hints.in_errors(engines_of(app, self._state(app).db))

    def _hints(self, app: Flask, planner: Planner) -> Hints:
        from .drift.hints import Hints

        return Hints(lambda: self._comparison(planner), planner.databases, self.metadata(app))

    def _warn_of_lost_tables(self, app: Flask, planner: Planner, plans: list[Plan]) -> list[str]:
        """Say which tables of the models are not there although nothing is pending.

        :returns: their names.
        """
        lost: list[str] = []
        # A lost table of a file shows in its header; servers would need one more query at each such boot.
        for plan in plans:
            if plan.database.path is not None and planner.settings.create_all:
                missing, clause = self.missing_tables(app, planner, plan)
                if missing:
                    _logger.warning("db-smart: %s", clause)
                    lost += missing
        return lost

    def _first_request(self) -> Response | None:
        """Once per process: make sure of boot, and ask the database where boot trusted the flag."""
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        state = self._state(app)
        view = app.view_functions.get(request.endpoint or "")
        if state.mine or getattr(view, _EXEMPT, False):
            return None
        refusal = self.unready(app)
        if refusal is not None:
            from .web.routes import refuse

            return refuse(self, app, state, refusal)
        fence = self._fence(app, state)
        guard = None if fence is None else self._guard(app, state)
        # A new list: other threads are still walking the old one, and would skip the hook after this one.
        hooks = [guard if hook == self._first_request else hook for hook in app.before_request_funcs[None]]
        app.before_request_funcs[None] = [hook for hook in hooks if hook is not None]
        return None if guard is None else guard()

    def _guard(self, app: Flask, state: AppState) -> Callable[[], Response | None]:
        """What looks at each request whether this process may serve: two comparisons, as long as it may."""
        from .fence import clock

        def guard() -> Response | None:
            fence = state.fence
            if clock() < fence.deadline and fence.current:
                return None
            view = app.view_functions.get(request.endpoint or "")
            if state.mine or getattr(view, _EXEMPT, False):
                return None
            refusal = self._fence(app, state).admit()  # type: ignore[union-attr]
            if refusal is None:
                return None
            from .web.routes import refuse

            return refuse(self, app, state, refusal.public)

        return guard

    def _fence(self, app: Flask, state: AppState) -> Fence | None:
        """What lets this process serve only while the databases know of it; ``None`` without ``DB_SMART_RELEASES``."""
        with state.asking:
            if (state.fence is None or not state.fence.current) and Settings(app).releases:
                from .fence import Fence

                def migrated(planner: Planner) -> list[Database]:
                    if state.flag is not None:
                        return [planner.databases[name] for name in state.flag.databases]
                    with app.app_context():  # migrations may need it to be imported
                        return [one for one in planner.involved if one.in_memory or planner.state(one) is not None]

                state.fence = Fence(lambda: self.planner(app), migrated, state.db.metadatas)
        found: Fence | None = state.fence
        return found

    def fenced(self, app: Flask) -> str | None:
        """Why requests cannot be served, because the databases do not know of this process, in words for anybody."""
        fence = self._fence(app, self._state(app))
        refusal = None if fence is None else fence.admit()
        return None if refusal is None else refusal.public

    def _name_sessions(self, app: Flask, state: AppState) -> None:
        """Have connections say which release they are of, with ``DB_SMART_RELEASES``."""
        if state.named or not Settings(app).releases:
            return
        from .boot.sessions import name_sessions
        from .store.releases import session_name

        state.named = True
        release: list[str] = []

        def name() -> str | None:
            with suppress(DbSmartError):  # whoever boots is told
                if not release:
                    release.append(session_name(self.planner(app).release))
            return release[0] if release else None

        name_sessions(engines_of(app, state.db).values(), name)

    def unready(self, app: Flask, *, wait: bool = True) -> str | None:
        """Why requests cannot be served yet, in words for anybody; ``None`` when they can.

        Makes sure of boot, and asks the database where boot trusted the flag.

        :param wait: whether to wait for another thread that is at it until it is done, not only briefly.
        """
        state = self._state(app)
        reports: list[BootReport] = []
        threads = self._threads(app, state)
        refusal = threads.held_back()
        if refusal is None:
            with state.deciding(patient=False, wait=wait) as mine:
                if mine and not state.verified and time.monotonic() >= state.refused_until:
                    try:
                        self._verify(app, state, reports)
                        state.refusal = None
                    except DbSmartError as error:
                        _logger.error("db-smart: %s", error.message)
                        state.refuse(error)
                refusal = (threads.held_back() or state.refusal) if mine else "The database is being migrated."
        for report in reports:
            self._tell(app, report)
        return refusal

    def _threads(self, app: Flask, state: AppState) -> Threads:
        """What starts the threads of this process that migrate."""
        from .threads import Threads  # which a warm boot does not need

        def boot(began: float) -> None:
            with state.deciding():
                report = self._decide(app, state, began=began)
            self._tell(app, report)

        return Threads(app, state, boot, partial(self._planner, app), partial(self._runner, app))

    def applied(self, name: str) -> bool:
        """Whether a migration is applied on its database, in the content that this code has; for application code.

        Asks the database at most once a second until it is so, and not again from then on. Where the database cannot
        be asked it is not. Needs an application context.

        :param name: of a migration or a revision.
        :raises ConfigError: this code has no such migration.
        """
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        state = self._state(app)
        return self._threads(app, state).applied(name)

    def _add_routes(self, app: Flask, blueprint: Blueprint) -> None:
        """Add the probes and pages, which answer before every hook of the application."""
        prefix = Settings(app).web
        if prefix is None:
            return

        def answer(_: str | None, values: dict[str, Any] | None) -> None:
            from werkzeug.exceptions import HTTPException

            from .web.routes import answer

            app = current_app._get_current_object()  # type: ignore[attr-defined]
            state = self._state(app)
            held = self._threads(app, state).held_back()  # any probe starts the thread that a fork has left behind
            raise HTTPException(response=answer(self, app, state, (values or {}).get("name", ""), held))

        blueprint.url_value_preprocessor(answer)
        # One rule, as each takes as long as a boot.
        app.url_map.converters.setdefault("db_smart", _Rest)
        places: list[dict[str, Any]] = [{}]
        if app.url_map.host_matching:  # a probe asks by an address, which is no host of the application
            places = [{"host": "<host>"}]
        elif app.subdomain_matching:
            places.append({"subdomain": "<host>"})
        for place in places:
            rule = f"{prefix}/<db_smart:name>"
            blueprint.add_url_rule(rule, "web", _answered_before, methods=["GET", "POST"], **place)

    def _verify(self, app: Flask, state: AppState, reports: list[BootReport]) -> None:
        """Make sure that boot has happened and that the database is what the flag said.

        :param reports: collects what was decided.
        :raises DbSmartError: it is behind and may not be migrated, or could not be.
        """
        if not state.booted:
            reports.append(self._decide(app, state))
        if state.verified:
            return
        started = time.perf_counter()
        with app.app_context():
            planner = self.planner(app)
            planner.began = time.time()
            try:
                changed = state.changed(app, planner)
            except HistoryUnreadable as error:
                _logger.warning("db-smart: the flag cannot be checked and is trusted. %s", error.message)
                changed = None
            if changed is None:
                _logger.debug("db-smart: the flag was right (%.3f ms)", (time.perf_counter() - started) * 1000)
                state.verified = True
                return
            _logger.warning("db-smart: boot trusted the flag, but %s", changed)
            if planner.settings.migrates:
                planner.forget()
                for database in planner.databases.values():
                    if database.path is not None:
                        # In EXCLUSIVE locking mode the connection that was asked keeps every other one out.
                        database.app_engine.dispose()
            reports.append(self._decide(app, state, planner, changed))


def _code(
    app: Flask, migrations: str | None, alembic: str | os.PathLike[str] | bool | None, target: str | Sequence[str]
) -> Code:
    """What an application has to apply.

    :raises ConfigError: there is no such Alembic directory.
    """
    if not alembic:
        return Code(migrations)
    from .loading.alembic_files import find_alembic

    migrate = app.extensions.get("migrate")
    options = {} if migrate is None else migrate.configure_args
    table = options.get("version_table", "alembic_version"), options.get("version_table_schema")
    files = find_alembic(app, alembic, target)

    def look(databases: Mapping[str, Database]) -> Learned:
        from .revising import look

        with without_plugin_lines():
            return look(app, files, databases)

    return Code(migrations, files, table, look)


class _Rest(BaseConverter):
    """All that follows in a path, or nothing."""

    regex = ".*"
    part_isolating = False


def _answered_before(name: str = "") -> Response:
    """The view of our routes, which is never reached."""
    return Response(name, 404)


def _refuse_clash(app: Flask) -> None:
    """Make sure that the application has no routes below the prefix of ours.

    :raises ConfigError: it has.
    """
    prefix = Settings(app).web
    if prefix is None:
        return
    for rule in app.url_map.iter_rules():
        if (rule.rule == prefix or rule.rule.startswith(f"{prefix}/")) and rule.endpoint != "db_smart.web":
            raise ConfigError(
                f"The route {rule.rule!r} of the application lies below {prefix!r}, where the probes and pages of "
                "db-smart are. Set DB_SMART_URL_PREFIX to another path, or DB_SMART_WEB to False. Nothing was changed."
            )


def _watch(app: Flask) -> None:
    """Have the commands of Flask-Migrate, where it is registered by now, hold our lock while they write."""
    migrate = getattr(app.extensions.get("migrate"), "migrate", None)
    if migrate is not None and _hold not in migrate.configure_callbacks:
        migrate.configure(_hold)


def _hold(config: Any) -> Any:
    """Called by each command of Flask-Migrate with its configuration."""
    context = click.get_current_context(silent=True)
    if context is not None:
        from .beside import hold_during

        hold_during(context)
    return config


#: So that no boot makes a configuration only because this looks at it.
_hold.only_watches = True  # type: ignore[attr-defined]


def _report(decision: Decision, reason: str, started: float, queries: int, applied: tuple[str, ...] = ()) -> BootReport:
    report = BootReport(decision, reason, applied, time.perf_counter() - started)
    if decision == "migrated" or _logger.isEnabledFor(logging.INFO):
        count = f"{queries} quer{'y' if queries == 1 else 'ies'}"
        log = notice if decision == "migrated" else Logger.info
        log(_logger, "db-smart: %s: %s (%.3f ms, %s)", decision, reason, report.duration * 1000, count)
    return report


def _trust(state: AppState, planner: Planner, verdict: FlagVerdict, started: float) -> BootReport:
    """Go on by the flag alone."""
    state.trust(verdict.flag)
    if verdict.stale and planner.settings.migrates:
        planner.refresh(verdict)
    return _report("skipped", verdict.reason, started, planner.queries)


def _keep_alive(stack: ExitStack) -> None:
    """Report to Gunicorn, where a worker of it is what boots, until a boot is over that asks or migrates."""
    from .boot.keepalive import kept_alive

    stack.enter_context(kept_alive())


def _names(metadata: sa.MetaData, database: Database) -> set[str]:
    """Names of the tables of models, as the database compares them; none is there with a schema in front."""
    return {database.facts.normalize_name(table.key) for table in metadata.tables.values()}


def _ask_flag(planner: Planner) -> FlagVerdict:
    """Levels 0 and 1."""
    verdict = planner.by_flag()
    if verdict.flag is not None and verdict.flag.module.partition(" to ")[0] not in planner.code.names:
        _logger.warning(
            "db-smart: the flag %s is that of another application, with the migrations %s. If both run here, give "
            "each a DB_SMART_FLAG of its own; otherwise each boot of one slows down the next boot of the other.",
            planner.path,
            one_line(verdict.flag.module),
        )
    return verdict


def _wait_for_turn(planner: Planner, verdict: FlagVerdict, stack: ExitStack) -> FlagVerdict:
    """What the flag says when it is the turn of this process among those of its host, which may be what it said before.

    :param stack: takes what lasts until boot is over.
    """
    for clause in planner.settings.check():
        _logger.warning("db-smart: %s", clause)
    if not planner.settings.migrates:
        return verdict
    from .boot.turn import one_boot_per_host

    settings = planner.settings.lock
    return stack.enter_context(one_boot_per_host(planner, verdict, min(2 * settings.lease, settings.timeout)))


def _tell(plans: list[Plan]) -> None:
    """Log what is worth knowing although nothing is to be done about it."""
    for plan in plans:
        if plan.elsewhere is not None:
            _logger.warning(
                "db-smart: the history of the database %r lies in the schema %r, to which the search path leads, and "
                "not in the current schema; what is pending would not be migrated",
                plan.database.name,
                plan.elsewhere,
            )
        if plan.ahead:
            names = ", ".join(plan.ahead)
            _logger.info("db-smart: the database %r is ahead of this code: %s", plan.database.name, names)
        for note in plan.undo_notes:
            _logger.warning("db-smart: %s (database %r)", note, plan.database.name)
        plan.log_edited_once()


def _boot_began() -> float:
    """When this boot began, seconds since the epoch: with the process, if that has just started; otherwise now."""
    global _just_started
    now = time.time()
    began, _just_started = _just_started, None
    return began if began is not None and 0 <= now - began < _START_SECONDS else now


def _on_a_terminal() -> bool:
    """Whether this is ``flask run``, started by a person who can answer; not what its reloader starts again."""
    context = click.get_current_context(silent=True)
    if context is None or context.find_object(ScriptInfo) is None or context.info_name != "run":
        return False
    streams = (sys.stdin, sys.stderr)
    return os.environ.get("WERKZEUG_RUN_MAIN") != "true" and all(one is not None and one.isatty() for one in streams)


def _flask_command_other_than_run() -> bool:
    """Whether the application is being made for a ``flask`` command that serves no request."""
    context = click.get_current_context(silent=True)
    if context is None:
        return _completing()
    return context.find_object(ScriptInfo) is not None and (context.info_name != "run" or context.resilient_parsing)


def _completing() -> bool:
    """Whether a shell asks only what may follow on the command line, as when a person presses Tab.

    Click makes the application for that, and has no context then: https://click.palletsprojects.com/shell-completion/
    """
    name = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    return bool(os.environ.get(f"_{name.replace('-', '_').replace('.', '_')}_COMPLETE".upper()))
