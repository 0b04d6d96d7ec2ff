"""The commands ``flask db-smart migrate|status|snapshots|restore|unlock|reset-flag``.

What they print is in ``report``, how they print it in ``output``; both are imported only when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any, TypeVar

import click
from flask import current_app
from flask.cli import AppGroup

from .boot import flag
from .errors import DbSmartError
from .settings import Settings

if TYPE_CHECKING:
    from flask import Flask

    from .boot.plan import Plan
    from .boot.planner import Planner
    from .extension import DbSmart
    from .report import DryRun, Ran, Report, Run, Script
    from .store.database import Database

F = TypeVar("F", bound=Callable[..., Any])

group = AppGroup("db-smart")

json_option = click.option("as_json", "--json", is_flag=True, help="Print only JSON on standard output.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def database_option(text: str = "Only this database; can be repeated.") -> Callable[[F], F]:
    """The option that names databases."""
    return click.option("names", "--database", metavar="NAME", multiple=True, help=text)


class UnknownDatabase(click.BadParameter):
    """An option names a database that the application does not have."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"There is no database {name!r}. There is: {', '.join(known)}.", param_hint="--database")


@group.command()
@click.option("--force", is_flag=True, help="Run every repeatable migration again.")
@click.option("--dry-run", is_flag=True, help="List what would run and what it would do; write nothing.")
@click.option("as_sql", "--sql", is_flag=True, help="Print the SQL that would run; write nothing.")
@database_option()
@json_option
def migrate(force: bool, dry_run: bool, as_sql: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Apply the pending migrations."""
    if as_sql and as_json:
        raise click.UsageError("--sql and --json cannot be combined; --dry-run --json has the statements too.")
    command = _Migrate(force, as_json)
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
@click.argument("name", required=False)
@database_option("The newest snapshot of this database.")
@click.option("source", "--from", metavar="FILE", help="This file, whichever database it belongs to.")
@yes_option
def restore(name: str | None, names: tuple[str, ...], source: str | None, yes: bool) -> None:
    """Put a snapshot back, by default the newest that differs; keep what it replaces."""
    if name is not None and source is not None:
        raise click.UsageError("Name one snapshot, or a file with --from, not both.")
    app, smart = _current()
    _restore(app, _files(smart.planner(app), names), name, source, yes)


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

    def __init__(self, force: bool, as_json: bool) -> None:
        self._app, self._smart = _current()
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
            return DryRun.of(self._smart.preview(self._app, self._planner, plans))

    def script(self, plans: list[Plan]) -> Script:
        """A run of these plans as SQL."""
        from .report import Script

        with redirect_stdout(sys.stderr):  # what the migrations print is no SQL
            return Script.of(self._app, plans, self._smart.preview(self._app, self._planner, plans))

    def run(self, plans: list[Plan]) -> Run:
        """Do what is pending now.

        :param plans: what was pending before.
        """
        from .output import progress
        from .report import Run

        with (
            redirect_stdout(sys.stderr) if self._as_json else nullcontext(),
            progress(self._app, self._applied, lines=self._as_json),
        ):
            outcome = self._smart.migrate(self._app, self._planner, self._selected, force=self._force, remake=True)
        return Run.done(outcome, self._applied, plans)


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
