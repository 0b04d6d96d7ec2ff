"""The Flask extension: its settings, what boot does, and what the first request makes sure of."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import click
import sqlalchemy as sa
from flask import Blueprint, Flask, Response, current_app, request
from flask.cli import ScriptInfo

from .boot.decision import decide
from .boot.flag import FlagVerdict
from .boot.keepalive import kept_alive
from .boot.plan import Plan, overall_state
from .boot.planner import Planner
from .boot.question import Question
from .boot.turn import one_boot_per_host
from .cli import group
from .errors import (
    ConfigError,
    DatabaseBehind,
    DatabaseUnreachable,
    DbSmartError,
    HistoryUnreadable,
    Interrupted,
    MigrationFailed,
    one_line,
)
from .notices import logger_of, notice, without_plugin_lines
from .settings import (
    boot_mode,
    check,
    create_all,
    ddl_settings,
    flag_path,
    forced,
    lock_settings,
    migration_urls,
    set_defaults,
)
from .signals import booted, in_listener, send
from .store.database import Database, databases, engines_of

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from .boot.flag import FlagHead
    from .preview import Preview
    from .runner import Outcome
    from .store.history import State

Decision = Literal["skipped", "verified", "migrated", "off"]
V = TypeVar("V", bound=Callable[..., Any])

_logger = logger_of(__name__)
_EXTENSION = "db_smart"
_EXEMPT = "_db_smart_exempt"
_RETRY_SECONDS = 1
#: The shortest time that the first request waits for the answer of a server, seconds.
_LEAST_PATIENCE = 2.0
#: After how long it asks anew while an earlier question has no answer, seconds.
_ASK_AGAIN_SECONDS = 60.0
#: How long a request waits for a listener that is called while another thread migrates, seconds.
_LISTENER_SECONDS = 1.0
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


@dataclass
class _AppState:
    """What the extension knows of one application."""

    db: SQLAlchemy
    module: str
    #: Whether boot came to a decision; under a flask command that does not migrate it did not.
    booted: bool = False
    #: Whether the database itself, not only the flag, said in this process that it is up to date.
    verified: bool = False
    #: What the flag said when boot trusted it.
    flag: FlagHead | None = None
    #: What requests are told that cannot be served (not the error, whose traceback would keep all that it came
    #: through), and until when (seconds of the monotonic clock) not to try again.
    refusal: str | None = None
    refused_until: float = 0.0
    #: The last question of a first request that had no answer in time, and when it was asked.
    question: Question[str | None] | None = None
    asked: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: The thread that holds the lock.
    thread: int | None = None

    @property
    def mine(self) -> bool:
        """Whether this very thread is deciding: it runs a migration, or a listener, that calls back."""
        return self.thread == threading.get_ident()

    @contextmanager
    def deciding(self, *, patient: bool = True) -> Iterator[bool]:
        """Let one thread at a time decide.

        :param patient: whether to wait also while that one is in a listener, which may wait for this very thread.
        :returns: whether it is this thread's turn.
        """
        while not self.lock.acquire(timeout=-1 if patient else _LISTENER_SECONDS / 10):
            if in_listener(self.thread) > _LISTENER_SECONDS:
                yield False
                return
        self.thread = threading.get_ident()
        try:
            yield True
        finally:
            self.thread = None
            self.lock.release()


class DbSmart:
    """Keeps the databases of a Flask application up to date with its migrations.

    ``DbSmart(app, db, migrations="myapp.migrations")``, or ``DbSmart()`` and :meth:`init_app` later. It stands at
    ``app.extensions["db_smart"]``.

    :param migrations: dotted name of the module, or package of modules, with the migrations.
    """

    def __init__(
        self, app: Flask | None = None, db: SQLAlchemy | None = None, *, migrations: str | None = None
    ) -> None:
        self._states: WeakKeyDictionary[Flask, _AppState] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app, db, migrations=migrations)

    def init_app(self, app: Flask, db: SQLAlchemy | None = None, *, migrations: str | None = None) -> None:
        """Register the commands and the first-request hook on an application. Touches no file and no database.

        Reads these keys of ``app.config``, each also from the environment as ``FLASK_<key>``: ``DB_SMART_BOOT``,
        ``DB_SMART_FLAG``, ``DB_SMART_CREATE_ALL``, ``DB_SMART_MIGRATION_URL``, ``DB_SMART_SNAPSHOTS``; and
        ``FORCE_DB_MIGRATION`` at each boot.

        :param db: the application's Flask-SQLAlchemy; the one registered on ``app`` when ``None``.
        :param migrations: dotted name of a module or package.
        :raises ConfigError: registered twice, without migrations, or without Flask-SQLAlchemy.
        """
        if _EXTENSION in app.extensions:
            raise ConfigError("A DbSmart is already registered on this application; use app.extensions['db_smart'].")
        if migrations is None:
            raise ConfigError("DbSmart needs to know the migrations: DbSmart(app, db, migrations='myapp.migrations').")
        db = db if db is not None else app.extensions.get("sqlalchemy")
        if db is None:
            raise ConfigError("DbSmart needs Flask-SQLAlchemy: pass db, or call db.init_app(app) before.")
        if not hasattr(db, "_app_engines"):
            kind = f"{type(db).__module__}.{type(db).__qualname__}"
            raise ConfigError(
                f"DbSmart needs the SQLAlchemy of Flask-SQLAlchemy; {kind} is another one, which it cannot work with. "
                "Pass DbSmart(app, db, ...) a flask_sqlalchemy.SQLAlchemy."
            )
        set_defaults(app)
        self._states[app] = _AppState(db, migrations)
        app.extensions[_EXTENSION] = self
        blueprint = Blueprint("db_smart", __name__, cli_group="db-smart")
        blueprint.cli.help = group.help
        for command in group.commands.values():
            blueprint.cli.add_command(command)
        app.register_blueprint(blueprint)
        if "alembic.runtime.plugins" in sys.modules:  # only then: a boot does not load Alembic
            from .autogenerate import register

            register()
        # Before every other hook, as those may already need the database.
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
            report = self._boot(app, state)
        send(booted, app, report=report)
        return report

    def exempt(self, view: V) -> V:
        """Let a view answer although the database is behind or cannot be reached, and while it is migrated.

        For probes that ask only whether the process lives. Requests for it neither make the check of the first
        request nor wait for it.
        """
        setattr(view, _EXEMPT, True)
        return view

    def planner(self, app: Flask) -> Planner:
        """The questions of boot for an application, as its settings are now.

        :raises ConfigError: a setting cannot be used.
        """
        state = self._state(app)
        return Planner(state.module, databases(engines_of(app, state.db), migration_urls(app)), flag_path(app))

    def database_state(self, app: Flask) -> str:
        """``"up-to-date"``, ``"pending"`` or ``"ahead"``, asked now of the application's own connections.

        Needs an application context.

        :raises DbSmartError: a database cannot be reached, or the migrations cannot be loaded.
        """
        planner = self.planner(app)
        planner.databases = {name: database.serving for name, database in planner.databases.items()}
        return overall_state(plan.status for plan in planner.by_row() or planner.by_history())

    def missing_tables(self, app: Flask, planner: Planner, plan: Plan) -> tuple[list[str], str]:
        """The tables that the models have and a database with a history has not.

        Where migrations are pending, these are only the tables that were there once: a pending migration may make the
        others. Needs an application context.

        :returns: their names, and what to say of them.
        :raises DbSmartError: the database cannot be reached.
        """
        from .schema import model_tables

        database = plan.database
        metadata = self._state(app).db.metadatas.get(database.key)
        if metadata is None or not metadata.tables or not database.exists:
            return [], ""
        with suppress(sa.exc.DBAPIError), database.connect() as connection:  # no right to look: nothing can be said
            found: Sequence[sa.Table] = model_tables.missing(connection, metadata)
            if found:
                from .store.memory import Memory

                memory = Memory.of(planner.module, planner.of(database), plan, metadata, connection)
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
        :param remake: make the tables of the models that got lost.
        :raises DbSmartError: see :meth:`~.runner.Runner.run`.
        """
        with without_plugin_lines():
            from .runner import Runner

        state = self._state(app)
        check(app)  # a value that cannot be used is refused before anything is made
        for database in selected:
            if database.migration_url is not None:
                self._check_led(planner, database)
        runner = Runner(
            app, state.db, planner, create_all=create_all(app), lock=lock_settings(app), ddl=ddl_settings(app)
        )
        try:
            outcome = runner.run(selected, force=force, remake=remake)
        except (MigrationFailed, Interrupted):
            # What it changed is not what the flag remembers; the next boot would take it for somebody else's work.
            _keep_flag(planner, lambda: planner.path.unlink(missing_ok=True))
            raise
        for database in selected:
            if database.migration_url is not None:
                self._check_same(planner, database, outcome.states[database.name])
        if outcome.states.keys() == {database.name for database in planner.involved}:
            _keep_flag(planner, lambda: planner.remember(outcome.states))
            state.verified = True
        return outcome

    def preview(self, app: Flask, planner: Planner, plans: list[Plan]) -> dict[str, list[Preview]]:
        """What a run of these plans would do, by the name of the database; writes nothing.

        Needs an application context.

        :raises DbSmartError: a database cannot be reached, or a run would be refused.
        """
        with without_plugin_lines():
            from .preview import preview

        db, make = self._state(app).db, create_all(app)
        for plan in plans:
            if plan.behind:
                plan.refuse_elsewhere()
        return {plan.database.name: preview(app, db, planner, plan, create_all=make) for plan in plans}

    @staticmethod
    def _check_led(planner: Planner, database: Database) -> None:
        """Make sure that ``DB_SMART_MIGRATION_URL`` leads to the database that the application has the history of.

        :raises DbSmartError: it does not; nothing was changed.
        """
        try:
            served = planner.state(Database(database.name, database.key, database.app_engine))
        except DbSmartError:  # it may not be read, or is not reached yet: looked at again when it is migrated
            return
        led = None if served is None else planner.state(database)
        if served is not None and (led is None or led.database_id != served.database_id):
            raise DbSmartError(
                f"DB_SMART_MIGRATION_URL of {database.name!r} leads to {database.url}, which is another database than "
                "the one that the application uses and that has its history. Nothing was changed. Correct one of them."
            )

    @staticmethod
    def _check_same(planner: Planner, database: Database, migrated: State) -> None:
        """Make sure that what was migrated is what the application uses.

        :raises DbSmartError: it is not.
        """
        served = Database(database.name, database.key, database.app_engine)
        try:
            found = planner.state(served)
        except HistoryUnreadable as error:
            _logger.warning("db-smart: the migrations are applied. %s", error.message)
            return
        if found is None or found.database_id != migrated.database_id:
            raise DbSmartError(
                f"The migrations of {database.name!r} were applied through DB_SMART_MIGRATION_URL, but "
                f"{database.url}, which the application uses, is another database. Correct one of them."
            )

    def _state(self, app: Flask) -> _AppState:
        try:
            return self._states[app]
        except KeyError:
            raise ConfigError("This DbSmart is not registered on this application: call init_app() first.") from None

    def _boot(self, app: Flask, state: _AppState) -> BootReport:
        """The decision of boot; the caller holds the lock of ``state``."""
        started = time.perf_counter()
        mode = boot_mode(app)
        step = decide(mode, None)
        if step.action == "off":
            state.booted = state.verified = True
            return _report("off", step.reason, started, 0)
        state.verified = False
        planner = self.planner(app)
        planner.since = _boot_began()
        decision, reason, applied = self._decide(app, state, planner, mode, forced(app))
        state.booted = True
        return _report(decision, reason, started, planner.queries, applied)

    def _warn(self, app: Flask) -> None:
        """Say under a flask command that the database may be behind, by the flag alone."""
        context = click.get_current_context(silent=True)
        ours = context is not None and context.command in group.commands.values()  # by a script, such as migrate_db.py
        if ours or _COMMANDS_WITHOUT_DATA & set(sys.argv[1:]):
            return
        with suppress(Exception):  # whatever is wrong, whoever migrates gets the message; this command may not need it
            planner, mode = self.planner(app), boot_mode(app)
            if mode == "off" or any(database.in_memory for database in planner.databases.values()):
                return
            verdict = planner.by_flag()
            # A host that only checks writes no flag, so that there its absence says nothing.
            if not verdict.holds and (verdict.present or mode == "migrate"):
                _logger.warning(
                    "db-smart: the database may be behind this code: %s. This command does not migrate; 'flask "
                    "db-smart status' tells, 'flask db-smart migrate' brings it up to date.",
                    verdict.reason,
                )

    def _decide(
        self, app: Flask, state: _AppState, planner: Planner, mode: str, force: str | None
    ) -> tuple[Decision, str, tuple[str, ...]]:
        if force is not None and mode == "check":
            _logger.warning("db-smart: %s is ignored, as DB_SMART_BOOT is 'check'", force)
        step = decide(mode, force)
        if step.action == "migrate":
            with app.app_context(), kept_alive():
                return self._migrate(app, planner, step.reason, force=True)
        verdict = planner.by_flag()
        if verdict.flag is not None and verdict.flag.module != planner.module:
            _logger.warning(
                "db-smart: the flag %s is that of another application, with the migrations %s. If both run here, give "
                "each a DB_SMART_FLAG of its own; else each boot of one makes the next one of the other slow.",
                planner.path,
                one_line(verdict.flag.module),
            )
        with ExitStack() as stack:
            if not verdict.holds:
                for said in check(app):
                    _logger.warning("db-smart: %s", said)
                stack.enter_context(kept_alive())
            if not verdict.holds and mode == "migrate":
                settings = lock_settings(app)
                verdict = stack.enter_context(
                    one_boot_per_host(planner, verdict, min(2 * settings.lease, settings.timeout))
                )
            if not verdict.holds:
                with app.app_context():
                    decision = self._ask(app, planner, mode, verdict.reason)
                state.verified = True
                return decision
        state.flag = verdict.flag
        if verdict.stale and mode == "migrate":
            _keep_flag(planner, lambda: planner.refresh(verdict))
        return "skipped", verdict.reason, ()

    def _ask(self, app: Flask, planner: Planner, mode: str, reason: str) -> tuple[Decision, str, tuple[str, ...]]:
        """Levels 2 and 3: ask the databases, and migrate or refuse where one is behind.

        :param reason: why the flag was not enough.
        """
        known = planner.by_row()
        plans = known or planner.by_history()
        _tell(plans)
        step = decide(mode, None, FlagVerdict(False, reason), plans)
        if step.action == "stop":
            raise DatabaseBehind(
                f"The database is behind this code and DB_SMART_BOOT is 'check': {step.reason}. Nothing was written. "
                "Run 'flask db-smart migrate' and start again.",
                # The reason may name files, hosts and users.
                "The database is behind this code: " + "; ".join(plan.clause for plan in plans if plan.behind) + ".",
            )
        if step.action == "migrate":
            return self._migrate(app, planner, step.reason)
        # That a table of a file got lost shows in its header; servers would be asked one query more at each such boot.
        for plan in plans:
            if plan.database.path is None or not create_all(app):
                continue
            missing, said = self.missing_tables(app, planner, plan)
            if missing:
                _logger.warning("db-smart: %s", said)
        if mode == "migrate":
            if known is None:
                planner.settle(plans)
            states = {plan.database.name: plan.state for plan in plans if plan.state is not None}
            _keep_flag(planner, lambda: planner.remember(states))
        return "verified", step.reason, ()

    def _migrate(
        self, app: Flask, planner: Planner, reason: str, *, force: bool = False
    ) -> tuple[Decision, str, tuple[str, ...]]:
        outcome = self.migrate(app, planner, planner.involved, force=force)
        if not outcome.changed:
            return "verified", f"{reason}; another process migrated meanwhile", ()
        return "migrated", reason, tuple(run.migration for run in outcome.runs)

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
                    # What a failed migration says (SQL, paths) is for the log; that the database is behind is for all.
                    state.refusal = error.public if isinstance(error, DatabaseBehind) else "The database is not ready."
                    state.refused_until = time.monotonic() + _RETRY_SECONDS
            refusal = state.refusal if mine else "The database is being migrated."
        for report in reports:
            send(booted, app, report=report)
        if refusal is not None:
            return Response(refusal + "\n", 503, {"Retry-After": str(_RETRY_SECONDS)}, mimetype="text/plain")
        # A new list: other threads are still walking the old one, and would skip the hook after this one.
        hooks = app.before_request_funcs[None]
        app.before_request_funcs[None] = [hook for hook in hooks if hook != self._first_request]
        return None

    def _verify(self, app: Flask, state: _AppState, reports: list[BootReport]) -> None:
        """See that boot has happened and that the database is what the flag said.

        :param reports: takes what was decided.
        :raises DbSmartError: it is behind and may not be migrated, or could not be.
        """
        if not state.booted:
            reports.append(self._boot(app, state))
        if state.verified:
            return
        started = time.perf_counter()
        mode = boot_mode(app)
        with app.app_context():
            planner = self.planner(app)
            planner.since = datetime.now(timezone.utc)
            assert state.flag is not None
            try:
                changed = self._changed(app, state, planner, state.flag)
            except HistoryUnreadable as error:
                _logger.warning("db-smart: the flag cannot be checked and is trusted. %s", error.message)
                changed = None
            if changed is not None:
                _logger.warning("db-smart: boot trusted the flag, but %s", changed)
                if mode == "migrate":
                    _keep_flag(planner, lambda: planner.path.unlink(missing_ok=True))
                    for database in planner.databases.values():
                        if database.path is not None:
                            # In EXCLUSIVE locking mode the connection that was asked keeps every other one out.
                            database.app_engine.dispose()
                with kept_alive():
                    decision, reason, applied = self._ask(app, planner, mode, changed)
                reports.append(_report(decision, reason, started, planner.queries, applied))
            else:
                _logger.debug("db-smart: the flag was right (%.3f ms)", (time.perf_counter() - started) * 1000)
        state.verified = True

    @staticmethod
    def _changed(app: Flask, state: _AppState, planner: Planner, flag: FlagHead) -> str | None:
        """As :meth:`~.boot.planner.Planner.changed`; a server is not waited for longer than a lease lasts.

        What waits for it still keeps one connection of the pool at most, and is not joined by another one each second.

        :raises DatabaseUnreachable: it cannot be asked, or does not answer.
        """
        if all(planner.databases[name].dialect == "sqlite" for name in flag.databases):
            return planner.changed(flag)
        seconds = max(lock_settings(app).lease, _LEAST_PATIENCE)
        before, now = state.question, time.monotonic()
        if before is None or now - state.asked > _ASK_AGAIN_SECONDS:
            pooled = before is None or not before.open

            def ask() -> str | None:
                with app.app_context():
                    return planner.changed(flag, pooled=pooled)

            state.question, state.asked = Question(ask), now
        assert state.question is not None
        try:
            changed = state.question.answer(max(0.0, state.asked + seconds - now))
        except TimeoutError:
            names = " or ".join(planner.databases[name].url for name in flag.databases)
            raise DatabaseUnreachable(
                f"The database does not answer ({names}): nothing came for {seconds:g} s (DB_SMART_LEASE_SECONDS, at "
                f"least {_LEAST_PATIENCE:g} s). Nothing was changed; requests get status 503 until it answers. Look at "
                "the server, and at what stands between."
            ) from None
        except BaseException:
            state.question = None
            raise
        state.question = None
        return changed


def _report(decision: Decision, reason: str, started: float, queries: int, applied: tuple[str, ...] = ()) -> BootReport:
    report = BootReport(decision, reason, applied, time.perf_counter() - started)
    count = f"{queries} quer{'y' if queries == 1 else 'ies'}"
    message = "db-smart: %s: %s (%.3f ms, %s)"
    if decision == "migrated":
        notice(_logger, message, decision, reason, report.duration * 1000, count)
    else:
        _logger.info(message, decision, reason, report.duration * 1000, count)
    return report


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
        for name in plan.edited_once:
            _logger.warning("db-smart: %r was edited after it was applied; it runs only once and is left alone", name)


def _keep_flag(planner: Planner, action: Callable[[], None]) -> None:
    """Change the flag; that it cannot be changed costs time at later boots, and never fails one."""
    try:
        action()
    except OSError as error:
        _logger.warning(
            "db-smart: cannot write the flag %s (%s); every boot will ask the database", planner.path, error.strerror
        )


def _boot_began() -> datetime:
    """When what boots now began to start: with the process, when that has just started, else now."""
    global _just_started
    now = time.time()
    began, _just_started = _just_started, None
    fresh = began is not None and 0 <= now - began < _START_SECONDS
    return datetime.fromtimestamp(began if began is not None and fresh else now, timezone.utc)


def _flask_command_other_than_run() -> bool:
    """Whether the application is being made for a ``flask`` command that serves no request."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_object(ScriptInfo) is not None and context.info_name != "run"
