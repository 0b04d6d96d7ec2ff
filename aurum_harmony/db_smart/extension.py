"""The Flask extension: its settings, what boot does, and what the first request makes sure of."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import click
import sqlalchemy as sa
from flask import Blueprint, Flask, Response, current_app, request
from flask.cli import ScriptInfo

from .boot.app_state import RETRY_SECONDS, AppState
from .boot.decision import decide
from .boot.flag import FlagVerdict
from .boot.planner import Planner
from .commands import HELP, Commands
from .errors import (
    ConfigError,
    DatabaseBehind,
    DbSmartError,
    HistoryUnreadable,
    one_line,
)
from .notices import logger_of, notice, without_plugin_lines
from .settings import Settings, set_defaults
from .signals import booted, send
from .store.database import Database, databases, engines_of

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from .boot.plan import Plan
    from .preview import Preview
    from .runner import Outcome, Runner

Decision = Literal["skipped", "verified", "migrated", "off"]
V = TypeVar("V", bound=Callable[..., Any])

_logger = logger_of(__name__)
_EXTENSION = "db_smart"
_EXEMPT = "_db_smart_exempt"
#: Words on the command line of commands for which it does not matter whether a database is behind.
_COMMANDS_WITHOUT_DATA = {"db-smart", "db", "routes", "--help", "--version"}
#: How long after the import of this module the first boot of a process still belongs to its start, seconds.
_START_SECONDS = 30
_just_started: float | None = time.time()


@dataclass(frozen=True)
class BootReport:
    """What boot decided.

    :ivar decision: ``"skipped"`` (the flag said enough), ``"verified"`` (the database did), ``"migrated"`` or
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
    """

    def __init__(
        self, app: Flask | None = None, db: SQLAlchemy | None = None, *, migrations: str | None = None
    ) -> None:
        self._states: WeakKeyDictionary[Flask, AppState] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app, db, migrations=migrations)

    def init_app(self, app: Flask, db: SQLAlchemy | None = None, *, migrations: str | None = None) -> None:
        """Register the commands and the hook for the first request. It touches no file and no database.

        Reads these keys of ``app.config``, each also from the environment as ``FLASK_<key>``: ``DB_SMART_BOOT``,
        ``DB_SMART_FLAG``, ``DB_SMART_CREATE_ALL``, ``DB_SMART_MIGRATION_URL``, ``DB_SMART_SNAPSHOTS``,
        ``DB_SMART_LOCK_TIMEOUT``, ``DB_SMART_LEASE_SECONDS``, ``DB_SMART_DDL_LOCK_TIMEOUT`` and
        ``DB_SMART_DDL_RETRIES``. Each boot reads ``FORCE_DB_MIGRATION``.

        :param db: the application's Flask-SQLAlchemy; if ``None``, the one that is registered on ``app``.
        :param migrations: dotted name of a module or package.
        :raises ConfigError: registered twice, without migrations, or without Flask-SQLAlchemy.
        """
        if _EXTENSION in app.extensions:
            raise ConfigError("A DbSmart is already registered on this application; use app.extensions['db_smart'].")
        if migrations is None:
            raise ConfigError("DbSmart needs the migrations: DbSmart(app, db, migrations='myapp.migrations').")
        db = db if db is not None else app.extensions.get("sqlalchemy")
        if db is None:
            raise ConfigError("DbSmart needs Flask-SQLAlchemy: pass db, or call db.init_app(app) first.")
        if not hasattr(db, "_app_engines"):
            kind = f"{type(db).__module__}.{type(db).__qualname__}"
            raise ConfigError(
                f"DbSmart needs the SQLAlchemy of Flask-SQLAlchemy; {kind} is a different class. "
                "Pass a flask_sqlalchemy.SQLAlchemy: DbSmart(app, db, ...)."
            )
        set_defaults(app)
        self._states[app] = AppState(db, migrations)
        app.extensions[_EXTENSION] = self
        blueprint = Blueprint("db_smart", __name__, cli_group="db-smart")
        blueprint.cli.help = HELP
        blueprint.cli.commands = Commands()
        app.register_blueprint(blueprint)
        if "alembic.runtime.plugins" in sys.modules:  # only then: a boot does not load Alembic
            from .autogenerate import register

            register()
        # Before every other hook, because those may already need the database.
        app.before_request_funcs.setdefault(None, []).insert(0, self._first_request)

    def boot(self, app: Flask) -> BootReport:
        """Bring the databases up to date if anything changed; call it last in ``create_app()``.

        Under a ``flask`` command other than ``flask run`` it decides ``"off"``.

        :raises DatabaseBehind: something is pending and ``DB_SMART_BOOT`` is ``check``.
        :raises DbSmartError: a setting, the migrations or a database is at fault; the message says what to do.
        """
        state = self._state(app)
        if _flask_command_other_than_run():
            self._warn(app)
            report = _report("off", "this flask command does not migrate", time.perf_counter(), 0)
            send(booted, app, report=report)
            return report
        if state.mine:
            raise DbSmartError("boot() was called by a migration or a listener while it runs; call it afterwards.")
        with state.deciding():
            report = self._decide(app, state)
        send(booted, app, report=report)
        return report

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
        self, app: Flask, planner: Planner, selected: list[Database], *, force: bool = False, remake: bool = False
    ) -> Outcome:
        """Apply what is pending, whatever ``DB_SMART_BOOT`` says, and write the flag when nothing is left.

        Needs an application context.

        :param selected: the databases to migrate.
        :param force: run every repeatable migration again.
        :param remake: create the lost tables of the models again.
        :raises DbSmartError: see :meth:`~.runner.Runner.run`.
        """
        outcome = self._runner(app, planner).run(selected, force=force, remake=remake)
        self._state(app).verified |= outcome.complete
        return outcome

    def _planner(self, app: Flask, settings: Settings) -> Planner:
        state = self._state(app)
        return Planner(state.module, databases(engines_of(app, state.db), settings.migration_urls), settings)

    def _runner(self, app: Flask, planner: Planner) -> Runner:
        """The runner that applies migrations.

        :raises ConfigError: a setting cannot be used; nothing was created.
        """
        with without_plugin_lines():
            from .runner import Runner

        planner.settings.check()
        return Runner(app, self._state(app).db, planner)

    def preview(self, app: Flask, planner: Planner, plans: list[Plan]) -> dict[str, list[Preview]]:
        """What a run of these plans would do, by the name of the database; writes nothing.

        Needs an application context.

        :raises DbSmartError: a database cannot be reached, or a run would be refused.
        """
        with without_plugin_lines():
            from .preview import preview

        db, make = self._state(app).db, planner.settings.create_all
        for plan in plans:
            if plan.behind:
                plan.refuse_elsewhere()
        return {plan.database.name: preview(app, db, planner, plan, create_all=make) for plan in plans}

    def _state(self, app: Flask) -> AppState:
        try:
            return self._states[app]
        except KeyError:
            raise ConfigError("This DbSmart is not registered on this application: call init_app() first.") from None

    def _warn(self, app: Flask) -> None:
        """Warn, under a flask command, that the database may be behind, if the flag alone says so."""
        context = click.get_current_context(silent=True)
        ours = context is not None and context.command in Commands().values()  # by a script, such as migrate_db.py
        if ours or _COMMANDS_WITHOUT_DATA & set(sys.argv[1:]):
            return
        with suppress(Exception):  # whatever is wrong, whoever migrates gets the message; this command may not need it
            planner = self.planner(app)
            mode = planner.settings.boot
            if mode == "off" or any(database.in_memory for database in planner.databases.values()):
                return
            verdict = planner.by_flag()
            # A host that only checks writes no flag, so that there its absence says nothing.
            if not verdict.holds and (verdict.present or mode == "migrate"):
                _logger.warning(
                    "db-smart: the database may be behind this code: %s. This command does not migrate; 'flask "
                    "db-smart status' shows more, 'flask db-smart migrate' brings it up to date.",
                    verdict.reason,
                )

    def _decide(
        self, app: Flask, state: AppState, planner: Planner | None = None, changed: str | None = None
    ) -> BootReport:
        """Ask the levels in the order of cost, as far as is needed, and do what :func:`~.boot.decision.decide` says.

        The caller holds the lock of ``state``.

        :param planner: what the first request has asked already; ``None`` at boot.
        :param changed: why the flag that boot trusted is wrong; ``None`` at boot.
        """
        started = time.perf_counter()
        settings = Settings(app) if planner is None else planner.settings
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
            planner.since = _boot_began()
        with ExitStack() as stack:
            if verdict is None and step.action == "ask":
                verdict = _ask_flag(app, planner, mode, stack)
                step = decide(mode, force, verdict)
            else:
                _keep_alive(stack)
            if step.action == "skip" and verdict is not None:
                state.trust(verdict.flag)
                if verdict.stale and mode == "migrate":
                    planner.refresh(verdict)
                return _report("skipped", step.reason, started, planner.queries)
            stack.enter_context(app.app_context())
            known: list[Plan] | None = None
            plans: list[Plan] = []
            if step.action == "ask":
                known = planner.by_row()
                plans = known or planner.by_history()
                _tell(plans)
                step = decide(mode, force, verdict, plans)
            if step.action == "stop":
                raise DatabaseBehind(
                    f"The database is behind this code and DB_SMART_BOOT is 'check': {step.reason}. Nothing was "
                    "written. Run 'flask db-smart migrate' and start again.",
                    # The reason may name files, hosts and users.
                    "The database is behind this code: "
                    + "; ".join(plan.clause for plan in plans if plan.behind)
                    + ".",
                )
            decision: Decision = "verified"
            reason, applied = step.reason, tuple[str, ...]()
            if step.action == "migrate":
                outcome = self._runner(app, planner).run(planner.involved, force=force is not None)
                if outcome.changed:
                    decision, applied = "migrated", tuple(run.migration for run in outcome.runs)
                else:
                    reason += "; another process migrated meanwhile" if force is None else "; nothing can be run again"
            else:
                self._warn_of_lost_tables(app, planner, plans)
                if mode == "migrate":
                    if known is None:
                        planner.settle(plans)
                    planner.remember({plan.database.name: plan.state for plan in plans if plan.state is not None})
        state.verify()
        return _report(decision, reason, started, planner.queries, applied)

    def _warn_of_lost_tables(self, app: Flask, planner: Planner, plans: list[Plan]) -> None:
        """Say which tables of the models are not there although nothing is pending."""
        # A lost table of a file shows in its header; servers would need one more query at each such boot.
        for plan in plans:
            if plan.database.path is not None and planner.settings.create_all:
                missing, clause = self.missing_tables(app, planner, plan)
                if missing:
                    _logger.warning("db-smart: %s", clause)

    def _first_request(self) -> Response | None:
        """Once per process: make sure of boot, and ask the database where boot trusted the flag."""
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        state = self._state(app)
        view = app.view_functions.get(request.endpoint or "")
        if state.mine or getattr(view, _EXEMPT, False):
            return None
        reports: list[BootReport] = []
        with state.deciding(patient=False) as mine:
            if mine and not state.verified and time.monotonic() >= state.refused_until:
                try:
                    self._verify(app, state, reports)
                    state.refusal = None
                except DbSmartError as error:
                    _logger.error("db-smart: %s", error.message)
                    state.refuse(error)
            refusal = state.refusal if mine else "The database is being migrated."
        for report in reports:
            send(booted, app, report=report)
        if refusal is not None:
            return Response(refusal + "\n", 503, {"Retry-After": str(RETRY_SECONDS)}, mimetype="text/plain")
        # A new list: other threads are still walking the old one, and would skip the hook after this one.
        hooks = app.before_request_funcs[None]
        app.before_request_funcs[None] = [hook for hook in hooks if hook != self._first_request]
        return None

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
            planner.since = datetime.now(timezone.utc)
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
            if planner.settings.boot == "migrate":
                planner.forget()
                for database in planner.databases.values():
                    if database.path is not None:
                        # In EXCLUSIVE locking mode the connection that was asked keeps every other one out.
                        database.app_engine.dispose()
            reports.append(self._decide(app, state, planner, changed))


def _report(decision: Decision, reason: str, started: float, queries: int, applied: tuple[str, ...] = ()) -> BootReport:
    report = BootReport(decision, reason, applied, time.perf_counter() - started)
    count = f"{queries} quer{'y' if queries == 1 else 'ies'}"
    message = "db-smart: %s: %s (%.3f ms, %s)"
    if decision == "migrated":
        notice(_logger, message, decision, reason, report.duration * 1000, count)
    else:
        _logger.info(message, decision, reason, report.duration * 1000, count)
    return report


def _keep_alive(stack: ExitStack) -> None:
    """Report to Gunicorn, where a worker of it is what boots, until a boot is over that asks or migrates."""
    from .boot.keepalive import kept_alive

    stack.enter_context(kept_alive())


def _names(metadata: sa.MetaData, database: Database) -> set[str]:
    """Names of the tables of models, as the database compares them; none is there with a schema in front."""
    return {database.facts.normalize_name(table.key) for table in metadata.tables.values()}


def _ask_flag(app: Flask, planner: Planner, mode: str, stack: ExitStack) -> FlagVerdict:
    """Levels 0 and 1; if they are not enough, wait for the turn of this process among those of its host.

    :param stack: takes what lasts until boot is over.
    """
    verdict = planner.by_flag()
    if verdict.flag is not None and verdict.flag.module != planner.module:
        _logger.warning(
            "db-smart: the flag %s is that of another application, with the migrations %s. If both run here, give "
            "each a DB_SMART_FLAG of its own; otherwise each boot of one slows down the next boot of the other.",
            planner.path,
            one_line(verdict.flag.module),
        )
    if verdict.holds:
        return verdict
    for clause in planner.settings.check():
        _logger.warning("db-smart: %s", clause)
    _keep_alive(stack)
    if mode != "migrate":
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
        plan.log_edited_once()


def _boot_began() -> datetime:
    """When this boot began: with the process, if that has just started; otherwise now."""
    global _just_started
    now = time.time()
    began, _just_started = _just_started, None
    fresh = began is not None and 0 <= now - began < _START_SECONDS
    return datetime.fromtimestamp(began if began is not None and fresh else now, timezone.utc)


def _flask_command_other_than_run() -> bool:
    """Whether the application is being made for a ``flask`` command that serves no request."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_object(ScriptInfo) is not None and context.info_name != "run"
