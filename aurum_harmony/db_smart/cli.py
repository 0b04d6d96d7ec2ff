"""The commands ``flask db-smart migrate|status|snapshots|restore|unlock|reset-flag``."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from .boot import flag
from .boot.decision import decide
from .boot.plan import overall_state
from .errors import DatabaseUnreachable, DbSmartError, HistoryUnreadable, LockTimeout
from .notices import logger_of
from .settings import boot_mode, create_all, ddl_settings, flag_path, forced, lock_settings
from .settings import check as check_settings
from .signals import migration_applied, migration_progress, migration_started, snapshot_taken

if TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask

    from .boot.flag import FlagVerdict
    from .boot.plan import Plan
    from .boot.planner import Planner
    from .extension import DbSmart
    from .preview import Preview
    from .schema.progress import Progress
    from .store.database import Database

_logger = logger_of(__name__)

group = AppGroup("db-smart", help="Keep the database up to date with this code.")

json_option = click.option("as_json", "--json", is_flag=True, help="Print only JSON on standard output.")


@group.command()
@click.option("--force", is_flag=True, help="Run every repeatable migration again.")
@click.option("--dry-run", is_flag=True, help="List what would run and what it would do; write nothing.")
@click.option("as_sql", "--sql", is_flag=True, help="Print the SQL that would run; write nothing.")
@click.option("names", "--database", metavar="NAME", multiple=True, help="Only this database; can be repeated.")
@json_option
def migrate(force: bool, dry_run: bool, as_sql: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Apply the pending migrations."""
    if as_sql and as_json:
        raise click.UsageError("--sql and --json cannot be combined; --dry-run --json has the statements too.")
    app, smart = _current()
    applied: list[dict[str, Any]] = []
    selected: list[Database] = []
    try:
        planner = smart.planner(app)
        selected = _select(planner, names)
        if as_sql and len(selected) > 1:
            known = ", ".join(database.name for database in selected)
            raise click.UsageError(f"There is one script for each database. Name one of {known} with --database.")
        for note in check_settings(app):
            click.echo(note, err=True)
        plans = [planner.ask(database, force=force) for database in selected]
        if dry_run or as_sql:
            with redirect_stdout(sys.stderr) if as_json or as_sql else nullcontext():
                previews = smart.preview(app, planner, plans)
            if as_sql:
                _show_script(app, plans, previews)
            elif _show_pending(plans, previews, as_json):
                click.get_current_context().exit(1)
            return
        behind = [plan for plan in plans if plan.behind]
        with _progress(app, applied, as_json):
            outcome = smart.migrate(app, planner, selected, force=force, remake=True)
    except DbSmartError as error:
        if as_json:
            lock = _first(_lock(app, database) for database in selected) if isinstance(error, LockTimeout) else None
            _print_json({"result": "failed", "applied": applied, "error": error.message, "lock": lock})
        raise
    with _output_optional():
        if as_json:
            result = "applied" if outcome.changed else "up-to-date"
            made = {"made": outcome.made} if outcome.made else {}
            _print_json({"result": result, "applied": applied, "error": None, "lock": None, **made})
            return
        if outcome.made:
            click.echo(f"Created the missing tables of the models: {', '.join(outcome.made)}.")
            if not behind and not applied:
                return
        if not outcome.changed:
            click.echo("Migration already completed: the database holds every migration of this code.")
            click.echo("To run the repeatable migrations again, use --force.")
            return
        count = len(applied)
        reasons = "; ".join(plan.clause for plan in behind)
        click.echo(f"Applied {count} migration{'' if count == 1 else 's'}, because {reasons}.")


@group.command()
@click.option("--check", is_flag=True, help="Exit with 1 if anything is pending.")
@json_option
def status(check: bool, as_json: bool) -> None:
    """Show what is applied and pending; write nothing."""
    app, smart = _current()
    try:
        unknown = check_settings(app)
        report, notes = _status(app, smart)
    except DbSmartError as error:
        if as_json:
            _print_json(_broken(app, error))
        raise
    for note in [*unknown, *notes]:
        click.echo(note, err=True)
    if as_json:
        _print_json(report)
    else:
        _show_status(report)
    if report["state"] in _SILENT or (check and report["state"] == "pending"):
        click.get_current_context().exit(1)


@group.command()
@click.option("names", "--database", metavar="NAME", multiple=True, help="Only this database; can be repeated.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def unlock(names: tuple[str, ...], yes: bool) -> None:
    """Free a lock whose holder has ended; leave it alone if the holder is alive."""
    from .store.lock import lock_of

    app, smart = _current()
    for database in _select(smart.planner(app), names):
        lock = lock_of(database, lock_settings(app))
        holder = lock.left_behind()
        if holder is None:
            click.echo(f"Database {database.name}: there is no lock to free.")
        elif yes or click.confirm(f"Database {database.name}: free the lock of {holder}, which has ended?"):
            if not lock.free():
                raise DbSmartError(f"The lock of the database {database.name!r} has just been taken; left alone.")
            click.echo(f"Database {database.name}: freed the lock of {holder}.")
        else:
            click.echo(f"Database {database.name}: left as it is.")


@group.command()
@click.option("names", "--database", metavar="NAME", multiple=True, help="Only this database; can be repeated.")
@json_option
def snapshots(names: tuple[str, ...], as_json: bool) -> None:
    """List the snapshots of SQLite databases, oldest first."""
    from .store.snapshot import listed, others

    app, smart = _current()
    planner = smart.planner(app)
    found = [item for database in _files(planner, names) for item in listed(app, database)]
    if as_json:
        _print_json(
            [
                {
                    "name": item.path.name,
                    "database": item.database,
                    "taken_at": item.taken_at.isoformat(),
                    "before": item.before,
                    "size": item.size,
                }
                for item in found
            ]
        )
        return
    for item in found:
        click.echo(f"{item.path.name}  {item.size / 1e6:.1f} MB")
    if not found:
        click.echo("There are no snapshots.")
    foreign = others(app, _files(planner, ()))
    if foreign:
        click.echo(
            f"Of other databases, or of an earlier release: {len(foreign)} in {foreign[0].parent}. "
            "To put one back, use 'restore --from NAME'.",
            err=True,
        )


@group.command()
@click.argument("name", required=False)
@click.option("names", "--database", metavar="NAME", multiple=True, help="The newest snapshot of this database.")
@click.option("source", "--from", metavar="FILE", help="This file, whichever database it belongs to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(name: str | None, names: tuple[str, ...], source: str | None, yes: bool) -> None:
    """Put a snapshot back, by default the newest that differs; keep what it replaces."""
    from .store import snapshot

    if name is not None and source is not None:
        raise click.UsageError("Name one snapshot, or a file with --from, not both.")
    app, smart = _current()
    files = _files(smart.planner(app), names)
    database, chosen = snapshot.find(app, files, name) if source is None else snapshot.foreign(app, files, source)
    other = snapshot.differs(database, chosen)
    if other is not None:
        click.echo(f"Of {chosen.path.name}: {other}.", err=True)
    question = f"Database {database.name}: put back {chosen.path} into {database.path}?"
    if not yes and not click.confirm(question):
        click.echo(f"Database {database.name}: left as it is.")
        return
    kept = snapshot.restore(app, database, chosen)
    click.echo(f"Database {database.name}: put back {chosen.path.name}.")
    if kept is not None:
        click.echo(f"The database as it was before is in {kept}.")
    _remove_flag(app)
    click.echo("Start the application again: its boot applies what is now pending.")


@group.command("reset-flag")
def reset_flag() -> None:
    """Remove the flag file, so that the next boot asks the database."""
    app, _ = _current()
    path = flag_path(app)
    removed = _remove_flag(app)
    click.echo(f"Removed the flag {path}." if removed else f"There is no flag {path} to remove.")


def _remove_flag(app: Flask) -> bool:
    path = flag_path(app)
    try:
        return flag.remove(path)
    except OSError as error:
        raise DbSmartError(f"Cannot remove the flag {path}: {error.strerror}. Remove it by hand.") from None


def _current() -> tuple[Flask, DbSmart]:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    return app, app.extensions["db_smart"]


def _select(planner: Planner, names: tuple[str, ...]) -> list[Database]:
    """The databases that the options name, or all that the migrations concern."""
    named = _named(planner, names)
    return [database for database in planner.involved if database in named]


def _files(planner: Planner, names: tuple[str, ...]) -> list[Database]:
    """The SQLite files among the databases; whatever the migrations are, as they may not even load."""
    return [database for database in _named(planner, names) if database.path is not None]


def _named(planner: Planner, names: tuple[str, ...]) -> list[Database]:
    """The databases of the application that the options name, or all."""
    for name in names:
        if name not in planner.databases:
            known = ", ".join(planner.databases)
            raise click.BadParameter(f"There is no database {name!r}. There is: {known}.", param_hint="--database")
    return [database for name, database in planner.databases.items() if not names or name in names]


def _show_pending(plans: list[Plan], previews: dict[str, list[Preview]], as_json: bool) -> bool:
    """Print what a run would do.

    :returns: whether it would fail.
    """
    shown = [(plan.database.name, preview) for plan in plans for preview in previews[plan.database.name]]
    count = sum(len(plan.pending) for plan in plans)
    fails = any(preview.error is not None for _, preview in shown)
    if as_json:
        items = [
            {
                "database": database,
                "name": preview.name,
                "reason": preview.reason,
                "does": preview.does,
                "satisfied": preview.satisfied,
                "unknown": preview.unknown,
                "error": preview.error,
                "sql": preview.script,
                "steps_done": preview.steps_done,
            }
            for database, preview in shown
            if preview.migration is not None
        ]
        tables = [
            {"database": database, "does": preview.does, "sql": preview.script}
            for database, preview in shown
            if preview.migration is None
        ]
        result = "pending" if items or tables else "up-to-date"
        report = {"result": result, "applied": [], "error": None, "tables": tables, "pending": items, "lock": None}
        _print_json(report)
        return fails
    for database, preview in shown:
        click.echo(f"  {preview.name}  {preview.reason}  ({database})")
        if preview.steps_done:
            click.echo(f"    goes on    after {preview.steps_done} steps of an interrupted run")
        for operation in preview.does:
            click.echo(f"    would do   {operation}")
        for operation in preview.satisfied:
            click.echo(f"    satisfied  {operation}")
        if preview.unknown is not None:
            click.echo(f"    unknown    it uses {preview.unknown}")
        if preview.error is not None:
            click.echo(f"    would fail {preview.error}")
    first = " and tables of the models to create" if any(preview.migration is None for _, preview in shown) else ""
    text = f"{count} to apply{first}; nothing was written" if shown else "nothing to apply"
    click.echo(f"Dry run: {text}.")
    return fails


def _show_script(app: Flask, plans: list[Plan], previews: dict[str, list[Preview]]) -> None:
    from .script import script

    wanted = [plan for plan in plans if previews[plan.database.name]]
    lines = [line for plan in wanted for line in script(plan, previews[plan.database.name], ddl_settings(app))]
    try:
        for line in lines or ["-- Nothing to apply."]:
            click.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has enough
        raise
    except OSError as error:
        _drop_output()
        raise DbSmartError(
            f"The script cannot be written ({error.strerror}): it is not complete, so do not run it. "
            "Nothing was changed."
        ) from None


@contextmanager
def _output_optional() -> Iterator[None]:
    """Let what is printed go where it cannot be written (a closed pipe, a full disk): the run that it tells of counts.

    Nothing more is written to standard output afterwards.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                click.echo(f"The output cannot be written ({error.strerror}); the run itself goes on.", err=True)
        _drop_output()


def _drop_output() -> None:
    """Write nothing more to standard output: what it still holds must not fail again when Python ends."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)


@contextmanager
def _progress(app: Flask, applied: list[dict[str, Any]], as_json: bool) -> Iterator[None]:
    """Print each migration with its time as it is applied, and collect them in ``applied``.

    On a terminal a progress line says which one runs, and another one how far a backfill is; elsewhere a backfill
    prints a line every few seconds. With JSON, what migrations print goes to stderr.
    """
    from .schema.progress import Progress

    with ExitStack() as stack:
        echo: Any = click.echo
        advance: Any = lambda *_: None  # noqa: E731
        last_logged = float("-inf")

        def print_line(done: Progress) -> None:
            nonlocal last_logged
            # Where the application logs such lines, it has logged this one.
            if time.monotonic() - last_logged >= 5 and not _logger.isEnabledFor(logging.INFO):
                last_logged = time.monotonic()
                click.echo(f"  {done}", err=True)

        fill: Any = print_line
        if as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        elif sys.stdout.isatty():
            import rich.progress

            progress = stack.enter_context(rich.progress.Progress(transient=True))
            task = progress.add_task("", total=None)
            rows = progress.add_task("", visible=False)

            def echo(line: str) -> None:
                progress.console.print(line, markup=False, highlight=False)

            def advance(description: str, done: int, total: int) -> None:
                progress.update(task, description=description, completed=done, total=total)
                progress.update(rows, visible=False)

            def fill(done: Progress) -> None:
                progress.update(rows, description=str(done), completed=done.done, total=done.total, visible=True)

        def on_started(_: object, migration: str, database: str, index: int, total: int) -> None:
            advance(f"{migration} ({index} of {total})", index - 1, total)

        def on_snapshot(_: object, database: str, path: Path) -> None:
            with _output_optional():
                echo(f"  snapshot of {database}: {path}")

        def on_applied(_: object, migration: str, database: str, duration: float, **_more: object) -> None:
            applied.append({"name": migration, "duration_ms": round(duration * 1000, 3)})
            with _output_optional():
                echo(f"  {migration}  {duration * 1000:.1f} ms" + ("" if database == "default" else f"  ({database})"))

        def on_progress(_: object, migration: str, done: int, total: int, rate: float, **_more: object) -> None:
            fill(Progress(migration, done, total, rate))

        stack.enter_context(migration_progress.connected_to(on_progress, sender=app))
        stack.enter_context(migration_started.connected_to(on_started, sender=app))
        stack.enter_context(migration_applied.connected_to(on_applied, sender=app))
        stack.enter_context(snapshot_taken.connected_to(on_snapshot, sender=app))
        yield


def _status(app: Flask, smart: DbSmart) -> tuple[dict[str, Any], list[str]]:
    """The JSON of ``status``, and what else a person should know."""
    planner = smart.planner(app)
    verdict = planner.by_flag()
    entries, notes, plans = [], [], []
    for database in planner.involved:
        try:
            plan = planner.ask(database)
            # A first run that is not over makes the tables of the models, or goes on making them.
            first = plan.state is None or not plan.state.source
            missing, said = ([], "") if first else smart.missing_tables(app, planner, plan)
            lock = _lock(app, database)
            progress, failed = _work(database, plan.elsewhere, running=lock is not None)
            if failed is not None and failed["name"] not in {item.name for item in planner.of(database)}:
                failed = None  # it is gone from the code
        except DatabaseUnreachable as error:
            notes.append(error.message)
            found = "unreadable" if isinstance(error, HistoryUnreadable) else "unreachable"
            entries.append(_entry(database, found, None, None, None))
            continue
        plans.append(plan)
        notes += [f"{name} was edited after it was applied; it runs only once." for name in plan.edited_once]
        state = "pending" if missing else plan.status
        entries.append(_entry(database, state, plan, lock, progress, missing=missing, failed=failed))
        if missing and create_all(app):
            notes.append(f"Attention: {said}")
    states = [entry["state"] for entry in entries]
    state = overall_state(states)
    will, reason = _next_boot(app, verdict, plans, state)
    lost = [name for entry in entries for name in entry["missing"]]
    if lost and not will:
        reason += f"; but tables of the models are missing: {', '.join(lost)}"
    file = {
        "path": str(planner.path),
        "present": verdict.present,
        "valid": verdict.holds,
        "reason": verdict.reason,
    }
    boot = {"will_migrate": will, "reason": reason}
    now = {key: _first(entry[key] for entry in entries) for key in ("lock", "progress")}
    return {"state": state, "error": None, "databases": entries, **now, "flag": file, "boot": boot}, notes


#: States of databases that do not say what they hold.
_SILENT = {
    "unreachable": "a database cannot be reached",
    "unreadable": "the history of a database cannot be read by its user",
}


def _next_boot(app: Flask, verdict: FlagVerdict, plans: list[Plan], state: str) -> tuple[bool, str]:
    """Whether the next boot migrates, and why.

    :param state: the worst of those of the databases.
    """
    reached = state not in _SILENT
    mode = boot_mode(app)
    step = decide(mode, forced(app), verdict, plans if reached else None)
    behind = "; ".join(plan.clause for plan in plans if plan.behind)
    if step.action in ("ask", "migrate") and not reached:
        return False, f"{_SILENT[state]}, boot will stop"
    if step.action == "stop":
        return False, f"DB_SMART_BOOT is check, boot will stop: {step.reason}"
    if step.action != "skip":
        return step.action == "migrate", step.reason
    if not reached:
        then = "requests are refused until it can" if state == "unreachable" else "the flag is trusted"
        return False, f"{step.reason}; but {_SILENT[state]}, {then}"
    if behind:
        then = "migrates" if mode == "migrate" else "refuses"
        return False, f"{step.reason}; but the first request {then}, as {behind}"
    return False, step.reason


def _broken(app: Flask, error: DbSmartError) -> dict[str, Any]:
    """The JSON of ``status`` where the databases cannot be asked, as the migrations or the settings are at fault."""
    boot = {"will_migrate": False, "reason": f"boot will stop: {error.message}"}
    return {
        "state": "failed",
        "error": error.message,
        "databases": [],
        "lock": None,
        "progress": None,
        "flag": None,
        "boot": boot,
    }


def _lock(app: Flask, database: Database) -> dict[str, Any] | None:
    """Who migrates a database now."""
    from .store.lock import lock_of

    holder = lock_of(database, lock_settings(app)).holder()
    if holder is None:
        return None
    expires = None if holder.expires_at is None else holder.expires_at.isoformat()
    return {
        "holder": holder.name,
        "since": holder.since.isoformat(),
        "expires_at": expires,
        "migration": holder.migration or None,
    }


def _work(
    database: Database, place: str | None, *, running: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """How far a backfill is that is not finished, and the last run where it failed.

    :param place: the schema of the history, where that is another one than the current.
    """
    from .schema.progress import read_progress
    from .store.history import read_failure

    if not database.exists:
        return None, None
    with database.connect() as connection:
        found = read_progress(connection, place, running=running)
        return None if found is None else found.report(), read_failure(connection, place)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _entry(
    database: Database,
    state: str,
    plan: Plan | None,
    lock: dict[str, Any] | None,
    progress: dict[str, Any] | None,
    *,
    missing: list[str] | None = None,
    failed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "name": database.name,
        "url": database.url,
        "dialect": database.dialect,
        "state": state,
        "applied": [
            {
                "name": item.name,
                "checksum": item.checksum,
                "applied_at": item.applied_at.isoformat(),
                "duration_ms": item.duration_ms,
                "applied_by": item.applied_by,
            }
            for item in (plan.applied if plan else [])
        ],
        "pending": [{"name": item.migration.name, "reason": item.reason} for item in (plan.pending if plan else [])],
        "unknown": plan.ahead if plan else [],
        "missing": missing or [],
        "failed": failed,
        "lock": lock,
        "progress": progress,
    }


def _show_status(report: dict[str, Any]) -> None:
    from .schema.progress import Progress

    for entry in report["databases"]:
        click.echo(f"Database {entry['name']}: {entry['state']}  {entry['url']}")
        if entry["lock"]:
            lock = entry["lock"]
            on = f", on {lock['migration']}" if lock["migration"] else ""
            click.echo(f"  migrating now: {lock['holder']} since {lock['since'][:19].replace('T', ' ')} UTC{on}")
        if entry["progress"]:
            click.echo(f"  backfill  {Progress.of(entry['progress'])}")
        last = {item["name"]: item["checksum"] for item in entry["applied"]}
        for item in entry["applied"]:
            ahead = item["name"] in entry["unknown"] and item["checksum"] == last[item["name"]]
            word, why = ("unknown", "  the database is ahead of this code") if ahead else ("applied", "")
            when = _minute(item["applied_at"])
            click.echo(f"  {word}  {item['name']}  {when}  {item['duration_ms']:.1f} ms  {item['applied_by']}{why}")
        if entry["failed"]:
            item = entry["failed"]
            when = _minute(item["failed_at"])
            click.echo(f"  failed   {item['name']}  {when}  {item['applied_by']}  {item['error']}")
        for item in entry["pending"]:
            click.echo(f"  pending  {item['name']}  {item['reason']}")
        for name in entry["missing"]:
            click.echo(f"  missing  {name}  the table of a model does not exist")
    file, boot = report["flag"], report["boot"]
    word = "valid" if file["valid"] else "not valid" if file["present"] else "none"
    click.echo(f"Flag: {word}  {file['path']}  {file['reason']}")
    click.echo(f"Next boot: will {'' if boot['will_migrate'] else 'not '}migrate, {boot['reason']}")


def _minute(moment: str) -> str:
    return f"{moment[:19].replace('T', ' ')} UTC"


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))
