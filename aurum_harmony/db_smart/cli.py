"""The commands of ``flask db-smart``: ``migrate``, ``status``, ``diff``, ``new``, ``lint``, ``explain``, ``history``…

What they print is in ``report``, how they print it in ``output``; both are imported only when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click
from flask import current_app
from flask.cli import AppGroup

from . import completion
from .boot import flag
from .errors import DbSmartError
from .interrupt import interruptible_question
from .settings import Settings

if TYPE_CHECKING:
    from flask import Flask

    from .boot.plan import Plan
    from .boot.planner import Planner
    from .extension import DbSmart
    from .report import DryRun, Ran, Report, RevisionText, Run, Script, Undo
    from .resuming import Resume
    from .store.branches import BranchDatabases, Kept
    from .store.database import Database

F = TypeVar("F", bound=Callable[..., Any])

group = AppGroup("db-smart")

json_option = click.option("as_json", "--json", is_flag=True, help="Print only JSON on standard output.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def database_option(text: str = "Only this database; can be repeated.") -> Callable[[F], F]:
    """The option that names databases."""
    return click.option(
        "names", "--database", metavar="NAME", multiple=True, help=text, shell_complete=completion.databases
    )


class UnknownDatabase(click.BadParameter):
    """An option names a database that the application does not have."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"There is no database {name!r}. There is: {', '.join(known)}.", param_hint="--database")


@group.command()
@click.option("--force", is_flag=True, help="Run every repeatable migration again.")
@click.option("--dry-run", is_flag=True, help="List what would run and what it would do; write nothing.")
@click.option("as_sql", "--sql", is_flag=True, help="Print the SQL that would run; write nothing.")
@click.option(
    "resumed",
    "--resume",
    metavar="[REVISION]",
    is_flag=False,
    flag_value="",
    help="Finish the next revision, which another tool has left half-done; then go on.",
    shell_complete=completion.revisions,
)
@click.option(
    "contract_now",
    "--contract-now",
    metavar="NAME",
    multiple=True,
    help="Run this contract step although releases that run need what it takes away; can be repeated.",
    shell_complete=completion.migrations,
)
@database_option()
@yes_option
@json_option
def migrate(
    force: bool,
    dry_run: bool,
    as_sql: bool,
    resumed: str | None,
    contract_now: tuple[str, ...],
    names: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """Apply the pending migrations."""
    if as_sql and as_json:
        raise click.UsageError("--sql and --json cannot be combined; --dry-run --json has the statements too.")
    if resumed is not None and (dry_run or as_sql):
        raise click.UsageError(
            "--resume cannot be combined with --dry-run or --sql: how far another tool has come is found out while "
            "nobody else can migrate. It says what it passes by, and changes nothing where that is not clear."
        )
    if contract_now and (dry_run or as_sql):
        raise click.UsageError("--contract-now cannot be combined with --dry-run or --sql.")
    command = _Migrate(force, as_json, resumed, contract_now, yes)
    with command.failing():
        plans = command.ask(names, one=as_sql)
        report = command.script(plans) if as_sql else command.dry_run(plans) if dry_run else command.run(plans)
    _finish(report, as_json)


@group.command()
@click.option("--check", is_flag=True, help="Exit with 1 if anything is pending.")
@json_option
def status(check: bool, as_json: bool) -> None:
    """Show what is applied and pending; write nothing."""
    from .report import Status

    app, smart = _current()
    with _failing(lambda error: Status.failed(error, app, smart), as_json):
        report = Status.of(app, smart)
    for note in report.notes:
        click.echo(note, err=True)
    _finish(report, as_json, fails=report.fails or (check and report.state == "pending"))


@group.command()
@click.option(
    "--until-ready", is_flag=True, help="End when nothing is pending and nobody migrates; with 1 on a failure."
)
@database_option()
def watch(until_ready: bool, names: tuple[str, ...]) -> None:
    """Show the state as it changes, until Ctrl-C; write nothing."""
    from .watch import watch as look

    app, smart = _current()
    planner = smart.planner(app)
    named = _named(planner, names)
    code = look(app, planner, lambda: _select(planner, names), named, until_ready=until_ready)
    click.get_current_context().exit(code)


@group.command()
@click.option("--check", is_flag=True, help="Exit with 1 if they differ.")
@database_option()
@json_option
def diff(check: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Show where the models and the database differ; write nothing that stays."""
    from .report import Diff

    app, smart = _current()
    with _failing(Diff.failed, as_json):
        planner = smart.planner(app)
        report = Diff([smart.drift(app, planner, database) for database in _named(planner, names)])
    _finish(report, as_json, fails=check and report.found)


@group.command()
@click.argument("name")
@click.option("--from-models", is_flag=True, help="Fill in what the models have and the database lacks.")
@click.option(
    "renames",
    "--rename",
    metavar="TABLE.OLD=NEW",
    multiple=True,
    help="A column or table that has a new name; can be repeated.",
)
@click.option("--empty", is_flag=True, help="Write an empty migration without asking the database.")
@database_option("Only for this database; can be repeated.")
def new(name: str, from_models: bool, renames: tuple[str, ...], empty: bool, names: tuple[str, ...]) -> None:
    """Write a new migration, empty or from the models."""
    from .drift import new as writer
    from .output import confirm, say

    if empty and (from_models or renames):
        raise click.UsageError("--empty cannot be combined with --from-models or --rename.")
    app, smart = _current()
    planner = smart.planner(app)
    databases = _named(planner, names)
    if not from_models and not renames:
        path = writer.empty(planner, name, databases[0] if names else None)
        say(f"Wrote an empty migration {name!r} into {path}.")
        return
    drifts = [smart.drift(app, planner, database) for database in databases]
    asked = confirm if sys.stdin.isatty() else None
    written = writer.from_models(smart.metadata(app), planner, name, drifts, renames, asked)
    for note in written.notes:
        click.echo(note, err=True)
    if written.path is None:
        say("The models and the database are alike: there is nothing to write.")
    else:
        say(f"Wrote {', '.join(map(repr, written.names))} into {written.path}. Read it before it runs.")


@group.command()
@click.option("everything", "--all", is_flag=True, help="What is applied too, by its source.")
@click.option("traced", "--trace", is_flag=True, help="Apply it to a scratch copy, and tell what that really did.")
@click.option("as_sarif", "--sarif", is_flag=True, help="Print SARIF 2.1.0, which code hosts show beside the lines.")
@database_option()
@json_option
def lint(everything: bool, traced: bool, as_sarif: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Foretell what pending migrations would lock and break; write nothing that stays."""
    from .report import Lint

    if as_sarif and as_json:
        raise click.UsageError("--sarif and --json cannot be combined.")
    app, smart = _current()
    with _failing(Lint.failed, as_json), interruptible_question():
        planner = smart.planner(app)
        with redirect_stdout(sys.stderr):  # what the migrations print is none of it
            databases = _named(planner, names) if names else planner.involved
            report = Lint([smart.lint(app, planner, one, everything=everything, traced=traced) for one in databases])
    if not as_sarif:
        _finish(report, as_json)
        return
    from ..version import __version__
    from .lint.sarif import sarif
    from .output import say

    say(sarif(__version__, report.linted))
    if report.fails:
        click.get_current_context().exit(1)


@group.command()
@click.argument("rule", required=False, shell_complete=completion.rules)
def explain(rule: str | None) -> None:
    """Print what is said of a rule, such as DS203; without one, list them."""
    from .lint.pages import section
    from .output import say
    from .schema.rules import RULES

    name = (rule or "").upper()
    if name in RULES:
        say(section(name))
        return
    say("\n".join(f"{one.id}  {one.level:7}  {one.summary}" for one in RULES.values()))
    if rule is not None:
        raise DbSmartError(f"There is no rule {rule!r}. Those that there are stand above.")


@group.command()
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the N newest of each database.")
@database_option()
@json_option
def history(limit: int | None, names: tuple[str, ...], as_json: bool) -> None:
    """Show every run of migrations and revisions, the oldest first, the newest last; write nothing."""
    from .report import History

    app, smart = _current()
    with _failing(History.failed, as_json):
        report = History.of(_named(smart.planner(app), names), limit)
    _finish(report, as_json)


@group.command()
@click.argument("wanted", metavar="[NAME]...", nargs=-1, shell_complete=completion.migrations)
@click.option("everything", "--all", is_flag=True, help="Everything that is pending.")
@database_option()
@yes_option
def stamp(wanted: tuple[str, ...], everything: bool, names: tuple[str, ...], yes: bool) -> None:
    """Ask, then record migrations and revisions as applied without running them.

    For a database that has already what they would make. A revision is recorded with all that come before it.
    """
    if bool(wanted) == everything:
        raise click.UsageError("Name what to record, or record everything that is pending with --all.")
    app, smart = _current()
    planner = smart.planner(app)
    _stamp(app, smart, planner, _select(planner, names), wanted, yes)


@group.command()
@click.argument("wanted", metavar="[RUN]", required=False, shell_complete=completion.migrations)
@click.option("--dry-run", is_flag=True, help="Say what would be done and lost; write nothing.")
@click.option("--archive", is_flag=True, help="First copy what would be lost into tables db_smart_archive_...")
@click.option("--discard", is_flag=True, help="Lose what would be lost and is not archived.")
@database_option("The database of the run, where there are several.")
@yes_option
@json_option
def undo(
    wanted: str | None,
    dry_run: bool,
    archive: bool,
    discard: bool,
    names: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """Ask, then take back what a run of migrations made, and only that.

    RUN is the number of a run, as `history` shows it, or the name of a migration for its last run. Without it, all
    migrations that the last run applied are taken back, the newest first.
    """
    app, smart = _current()
    planner = smart.planner(app)
    databases = _named(planner, names)
    if len(databases) > 1:
        known = ", ".join(database.name for database in databases)
        raise click.UsageError(f"Runs are those of one database. Name one of {known} with --database.")
    _finish(_undo(app, smart, planner, databases[0], wanted, dry_run, archive, discard, yes, as_json), as_json)


@group.command()
@database_option()
@yes_option
def unlock(names: tuple[str, ...], yes: bool) -> None:
    """Free a lock whose holder has ended; leave it alone if the holder is alive."""
    app, smart = _current()
    for database in _select(smart.planner(app), names):
        _unlock(app, database, yes)


@group.command()
@database_option()
@json_option
def snapshots(names: tuple[str, ...], as_json: bool) -> None:
    """List the snapshots of SQLite databases, oldest first."""
    from .report import Snapshots

    app, smart = _current()
    planner = smart.planner(app)
    report = Snapshots.of(app, _files(planner, names), _files(planner, ()))
    _finish(report, as_json)
    if report.elsewhere and not as_json:
        click.echo(report.elsewhere, err=True)


@group.command()
@click.argument("name", required=False, shell_complete=completion.snapshots)
@database_option("The newest snapshot of this database.")
@click.option(
    "source", "--from", metavar="FILE", type=click.Path(), help="This file, whichever database it belongs to."
)
@yes_option
def restore(name: str | None, names: tuple[str, ...], source: str | None, yes: bool) -> None:
    """Put a snapshot back, by default the newest that differs; keep what it replaces."""
    if name is not None and source is not None:
        raise click.UsageError("Name one snapshot, or a file with --from, not both.")
    app, smart = _current()
    _restore(app, _files(smart.planner(app), names), name, source, yes)


@group.command()
@click.option("--switch", is_flag=True, help="Make the database of this branch now, as the next boot would.")
@click.option(
    "--delete",
    "name",
    metavar="NAME",
    help="Delete what is kept for this branch.",
    shell_complete=completion.branches,
)
@click.option("--prune", is_flag=True, help="Delete what is kept for branches that are gone.")
@yes_option
@json_option
def branch(switch: bool, name: str | None, prune: bool, yes: bool, as_json: bool) -> None:
    """Show the database of this Git branch, and all that are kept; ask before deleting any."""
    from .report import Branches

    if switch + (name is not None) + prune > 1:
        raise click.UsageError("Only one of --switch, --delete and --prune can be given.")
    app, smart = _current()
    branches = smart.branches(app)
    if switch:
        if not smart.enter_branch(app):
            raise DbSmartError(
                "Databases follow the branch only with DB_SMART_BRANCHES=True and in debug mode (--debug), and not "
                "with TESTING."
            )
    elif name is not None or prune:
        chosen = branches.gone() if name is None else branches.find(name)
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            _delete(chosen, yes)
        if not as_json:
            return
    _finish(Branches.of(app, branches), as_json)


def _delete(chosen: list[tuple[BranchDatabases, Kept]], yes: bool) -> None:
    """Ask, then delete databases of branches."""
    from .output import confirm, say

    if not chosen:
        say("There is nothing to delete.")
        return
    for store, item in chosen:
        say(f"Branch {item.branch or '(its name was too long)'}: {store.at(item.name)}")
    if not yes and not confirm(f"Delete {'this database' if len(chosen) == 1 else 'these databases'}?"):
        say("Nothing was deleted.")
        return
    for store, item in chosen:
        store.delete(item.name)
        say(f"Deleted {store.at(item.name)}.")


@group.command("reset-flag")
def reset_flag() -> None:
    """Remove the flag file, so that the next boot asks the database."""
    from .output import say

    app, _ = _current()
    path = Settings(app).flag
    removed = _remove_flag(app)
    say(f"Removed the flag {path}." if removed else f"There is no flag {path} to remove.")


def _current() -> tuple[Flask, DbSmart]:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    return app, app.extensions["db_smart"]


def _named(planner: Planner, names: tuple[str, ...]) -> list[Database]:
    """The databases of the application that the options name, or all."""
    for name in names:
        if name not in planner.databases:
            raise UnknownDatabase(name, planner.databases)
    return [database for name, database in planner.databases.items() if not names or name in names]


def _select(planner: Planner, names: tuple[str, ...]) -> list[Database]:
    """The databases that the options name, or all that the migrations concern."""
    named = _named(planner, names)
    return [database for database in planner.involved if database in named]


def _files(planner: Planner, names: tuple[str, ...]) -> list[Database]:
    """The SQLite files among the databases; without the migrations, which may not even load."""
    return [database for database in _named(planner, names) if database.path is not None]


def _finish(report: Report, as_json: bool, *, fails: bool | None = None) -> None:
    """Print a report, and end with exit code 1 where it fails."""
    from .output import show

    show(report, as_json)
    if report.fails if fails is None else fails:
        click.get_current_context().exit(1)


@contextmanager
def _failing(failed: Callable[[DbSmartError], Report], as_json: bool) -> Iterator[None]:
    """Print the JSON of a failure before its message.

    :param failed: makes its report.
    """
    try:
        yield
    except DbSmartError as error:
        if as_json:
            from .output import say

            say(failed(error).json())
        raise


class _Migrate:
    """One call of ``migrate``."""

    def __init__(
        self, force: bool, as_json: bool, resumed: str | None, contract_now: tuple[str, ...], yes: bool
    ) -> None:
        self._app, self._smart = _current()
        self._contract_now = contract_now
        self._resumed = resumed
        self._yes = yes
        self._force = force
        self._as_json = as_json
        self._selected: list[Database] = []
        self._applied: list[Ran] = []

    def failing(self) -> AbstractContextManager[None]:
        """Print the JSON of a failure before its message."""
        from .report import Run

        return _failing(lambda error: Run.failed(error, self._applied, self._app, self._selected), self._as_json)

    def ask(self, names: tuple[str, ...], *, one: bool) -> list[Plan]:
        """What the databases that the options name hold and lack.

        :param one: whether it must be a single one.
        """
        self._planner = self._smart.planner(self._app)
        self._selected = _select(self._planner, names)
        if one and len(self._selected) > 1:
            known = ", ".join(database.name for database in self._selected)
            raise click.UsageError(f"There is one script for each database. Name one of {known} with --database.")
        for note in Settings(self._app).check():
            click.echo(note, err=True)
        return [self._planner.ask(database, force=self._force) for database in self._selected]

    def dry_run(self, plans: list[Plan]) -> DryRun:
        """What a run of these plans would do."""
        from .report import DryRun

        with redirect_stdout(sys.stderr) if self._as_json else nullcontext():
            return DryRun.of(self._planner, self._smart.preview(self._app, self._planner, plans, remake=True))

    def script(self, plans: list[Plan]) -> Script:
        """A run of these plans as SQL."""
        from .report import Script

        with redirect_stdout(sys.stderr):  # what the migrations print is no SQL
            shown = self._smart.preview(self._app, self._planner, plans, remake=True, as_sql=True)
            return Script.of(self._planner, plans, shown)

    def _revision(self, name: str) -> RevisionText | None:
        from .report import RevisionText

        found = (migration for migration in self._planner.migrations if migration.name == name)
        return next((RevisionText.of(self._planner, migration) for migration in found), None)

    def _resume(self, plans: list[Plan]) -> Resume | None:
        """What ``--resume`` asks for; ``None`` where it is not given, or nothing can be half-done."""
        from .output import confirm, say

        if self._resumed is None:
            return None
        from .resuming import Resume

        pending = [item.migration.name for plan in plans for item in plan.pending if item.migration.revision]
        if not pending:
            say("No revision of Alembic is pending, so none is half-done.")
            return None
        if self._resumed and self._resumed not in pending:
            known = {migration.name for migration in self._planner.migrations}
            if self._resumed in known:
                raise DbSmartError(f"{self._resumed!r} is no revision that is pending. Nothing was changed.")
            raise _unknown(self._resumed, set(pending), known)
        return Resume(self._resumed or None, say, lambda question: self._yes or confirm(question))

    def _pass_over(self, plans: list[Plan]) -> None:
        """Say what the contract steps that are named would wait for, and ask whether they are not to.

        :raises click.BadParameter: there is none of a name.
        :raises click.Abort: they are to wait.
        """
        from .output import confirm

        pending = {
            item.migration.name: plan for plan in plans for item in plan.pending if item.migration.options.contract
        }
        for name in self._contract_now:
            if name not in pending:
                known = {migration.name for migration in self._planner.migrations}
                if name in known:
                    raise click.BadParameter(f"{name!r} is no contract step that is pending.", param_hint="NAME")
                raise _unknown(name, set(pending), known)
            waits = self._smart.waits(self._app, self._planner, pending[name], [name]).get(name)
            if waits is not None and waits.count:
                click.echo(f"{name} passes over {waits.said.removeprefix('waits for ')}.", err=True)
            elif waits is not None:
                click.echo(f"{name} {waits.said}.", err=True)
        if not self._contract_now or self._yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("--contract-now needs --yes where nobody can be asked.")
        if not confirm(f"Run {', '.join(self._contract_now)} now? Releases that need what it takes away will fail."):
            raise click.Abort

    def run(self, plans: list[Plan]) -> Run:
        """Do what is pending now.

        :param plans: what was pending before.
        """
        from .output import progress
        from .report import Run

        self._pass_over(plans)
        with (
            redirect_stdout(sys.stderr) if self._as_json else nullcontext(),
            progress(self._app, self._applied, self._revision, lines=self._as_json),
        ):
            outcome = self._smart.migrate(
                self._app,
                self._planner,
                self._selected,
                force=self._force,
                remake=True,
                resume=self._resume(plans),
                contract_now=self._contract_now,
            )
        return Run.done(outcome, self._applied, plans)


def _stamp(
    app: Flask, smart: DbSmart, planner: Planner, databases: list[Database], wanted: tuple[str, ...], yes: bool
) -> None:
    """Record as applied what is named, or everything that is pending.

    :raises click.BadParameter: there is nothing of a name.
    """
    from .output import confirm, say, show
    from .report import Stamp

    known = {migration.name for database in databases for migration in planner.of(database)}
    for name in wanted:
        if name not in known:
            raise _unknown(name, known, {migration.name for migration in planner.migrations})
    plans = [planner.ask(database) for database in databases]
    report = Stamp.of(planner, plans, wanted)
    show(report)
    if not report.count:
        return
    for plan, found in zip(plans, report.databases, strict=True):
        refusal = smart.made_otherwise(app, planner, plan)
        if refusal is not None and found.records and not any(item.revision for item in found.records):
            # With a history, the database would no longer be told from one on which all revisions may run.
            raise DbSmartError(f"Record revisions first, or together with migrations. {refusal}")
    if not yes and not confirm(f"Record {'this' if report.count == 1 else 'these'} as applied, without running?"):
        say("Nothing was recorded.")
        return
    for database in report.databases:
        if database.records:
            state = smart.stamp(app, planner, database.name, wanted, [item.name for item in database.records])
            heads = f" The version table of Alembic has: {', '.join(state.heads)}." if state and state.heads else ""
            say(f"Database {database.name}: recorded {len(database.records)} as applied.{heads}")


def _undo(
    app: Flask,
    smart: DbSmart,
    planner: Planner,
    database: Database,
    wanted: str | None,
    dry_run: bool,
    archive: bool,
    discard: bool,
    yes: bool,
    as_json: bool,
) -> Undo:
    """Take a run back.

    :raises DbSmartError: it is refused, or failed.
    """
    from .output import confirm, say, show
    from .report import Undo

    def failed(error: DbSmartError) -> Undo:
        return Undo(error.message, database.name, database.url, [], [])

    with _failing(failed, as_json):
        told = smart.undoing(app, planner, database, wanted)
    refused = [text for one in told for text in one.objections(archive=archive, discard=discard)]
    report = Undo(None, database.name, database.url, told, refused)
    if dry_run or refused:
        return report
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("There is nobody to ask: say --yes, after a look at what --dry-run shows.")
    if not as_json:
        show(report)
    if not yes and not confirm(f"Take {'this' if len(told) == 1 else 'these'} back?"):
        say("Nothing was taken back.")
        return Undo(None, database.name, database.url, told, [], [])
    with _failing(failed, as_json), redirect_stdout(sys.stderr) if as_json else nullcontext():
        undone = smart.undo(app, planner, database, wanted, told, archive=archive, discard=discard)
    known: set[str] = set()
    with suppress(DbSmartError):  # the migrations may not even load
        known = {migration.name for migration in planner.migrations}
    again = [one.name for one in undone if one.name in known]
    return Undo(None, database.name, database.url, told, [], undone, again)


def _unknown(name: str, known: set[str], everywhere: set[str]) -> click.BadParameter:
    """What to say of a name that the databases in question do not know."""
    if name in everywhere:
        return click.BadParameter(f"{name!r} is for a database that --database leaves out.", param_hint="NAME")
    from difflib import get_close_matches

    close = get_close_matches(name, known, 3) or sorted(other for other in known if other.startswith(name))[:3]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return click.BadParameter(f"There is no migration or revision {name!r}.{hint}", param_hint="NAME")


def _unlock(app: Flask, database: Database, yes: bool) -> None:
    """Free the lock of one database where its holder is gone."""
    from .output import confirm, say
    from .store.lock import lock_of

    lock = lock_of(database, Settings(app).lock)
    holder = lock.left_behind()
    if holder is None:
        say(f"Database {database.name}: there is no lock to free.")
    elif yes or confirm(f"Database {database.name}: free the lock of {holder}, which has ended?"):
        if not lock.free():
            raise DbSmartError(f"The lock of the database {database.name!r} has just been taken; left alone.")
        say(f"Database {database.name}: freed the lock of {holder}.")
    else:
        say(f"Database {database.name}: left as it is.")


def _restore(app: Flask, files: list[Database], name: str | None, source: str | None, yes: bool) -> None:
    """Put back the snapshot of a name, or a file, or the newest snapshot that differs."""
    from .output import confirm, say
    from .store import snapshot

    database, chosen = snapshot.find(app, files, name) if source is None else snapshot.foreign(app, files, source)
    other = snapshot.differs(database, chosen)
    if other is not None:
        click.echo(f"Of {chosen.path.name}: {other}.", err=True)
    earlier = snapshot.before_interrupted(app, database, chosen) if name is None and source is None else None
    if earlier is not None:
        click.echo(
            f"An earlier run of the same migration was interrupted: the state before that is in {earlier.path.name}. "
            "To put that back, name it.",
            err=True,
        )
    if not yes and not confirm(f"Database {database.name}: put back {chosen.path} into {database.path}?"):
        say(f"Database {database.name}: left as it is.")
        return
    kept = snapshot.restore(app, database, chosen)
    say(f"Database {database.name}: put back {chosen.path.name}.")
    if kept is not None:
        say(f"The database as it was before is in {kept}.")
    _remove_flag(app)
    say("Remove or correct the migration that is not to run again: the next boot applies what is now pending.")


def _remove_flag(app: Flask) -> bool:
    """Remove the flag.

    :returns: whether there was one.
    """
    path = Settings(app).flag
    try:
        return flag.remove(path)
    except OSError as error:
        raise DbSmartError(f"Cannot remove the flag {path}: {error.strerror}. Remove it by hand.") from None
