"""The commands of ``flask db-smart fleet``: ``migrate``, ``status`` and ``failed``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

import click
from flask import current_app
from flask.cli import AppGroup, ScriptInfo

from ..cli import json_option
from ..errors import DbSmartError, WrongUsage, one_line, text_of
from .ledger import APPLIED, FAILED, PENDING, UP_TO_DATE, WAITING, Result
from .remote import EXTENSION
from .run import FleetRun, tenants

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from .fleet import Fleet, Listener

group = AppGroup("fleet", help="Keep the databases of all tenants up to date.")

_COUNT = click.IntRange(min=1)


@group.command()
@click.option("only", "--only", metavar="NAME", multiple=True, help="Only this tenant; can be repeated.")
@click.option("--failed", is_flag=True, help="Only the tenants whose last run failed.")
@click.option("every", "--all", is_flag=True, help="Look at those too that the ledger has as up to date.")
@click.option("in_group", "--group", metavar="GROUP", help="Only the tenants of this group.")
@click.option("--canary", metavar="N|P%", help="So many first, or such a part; if one fails, no other one is begun.")
@click.option("--workers", type=_COUNT, metavar="N", help="So many at a time, by default 8.")
@click.option("--per-server", type=_COUNT, metavar="N", help="So many at a time on one server.")
@click.option("--stop-after", type=_COUNT, metavar="N", help="Begin no other one after so many failures.")
@click.option("--dask", metavar="ADDRESS", help="Have a cluster of Dask do it, such as tls://scheduler:8786.")
@click.option("json_lines", "--json-lines", is_flag=True, help="Print a line of JSON for each tenant, and a last one.")
@json_option
def migrate(
    only: tuple[str, ...],
    failed: bool,
    every: bool,
    in_group: str | None,
    canary: str | None,
    workers: int | None,
    per_server: int | None,
    stop_after: int | None,
    dask: str | None,
    json_lines: bool,
    as_json: bool,
) -> None:
    """Bring all tenants up to date; one that fails stops no other.

    Ends with 0 if all are up to date, with 1 if some failed or were not begun, with 3 if another run is at it.
    """
    from ..output import say

    fleet = _fleet()
    quiet, shown = as_json or json_lines, _lines(sys.stdout) if json_lines else _silent() if as_json else _bar()
    # What the migrations print is none of it.
    aside = redirect_stdout(sys.stderr) if quiet else nullcontext()
    with _executor(dask) as (executor, at_once), shown as listener, aside:
        run = fleet.migrate(
            executor,
            workers=workers or at_once,
            per_server=per_server,
            stop_after=stop_after,
            only=only,
            group=in_group,
            failed=failed,
            every=every,
            canary=canary,
            factory=click.get_current_context().ensure_object(ScriptInfo).app_import_path,
            listener=listener,
        )
    data = _data(run)
    if quiet:
        say(json.dumps(data, indent=None if json_lines else 2))
    else:
        say(_summary(run))
    if not run.complete:
        click.get_current_context().exit(1)


@group.command()
@click.option("--failed", is_flag=True, help="List the tenants whose last run failed too.")
@click.option("--check", is_flag=True, help="Exit with 1 if not all are up to date.")
@json_option
def status(failed: bool, check: bool, as_json: bool) -> None:
    """Show how many tenants are up to date, by the ledger; open none of them."""
    from ..output import tell

    fleet = _fleet()
    counts = fleet.status()
    failures = list(fleet.failed()) if failed else []
    if as_json:
        tell(json.dumps({**counts, **({"failures": failures} if failed else {})}, indent=2))
    else:
        tell(
            f"{tenants(counts['total'])}: {counts[UP_TO_DATE]:,} up to date, {counts[PENDING]:,} of another release, "
            f"{counts[FAILED]:,} failed, {counts['new']:,} new."
        )
        if counts[WAITING]:
            tell(_waits(counts[WAITING]))
        if counts["gone"]:
            tell(f"{counts['gone']:,} in the ledger are no tenants any more.")
        for one in failures:
            tell(_line(one))
    if check and counts[UP_TO_DATE] != counts["total"]:
        click.get_current_context().exit(1)


@group.command("failed")
@json_option
def failed_ones(as_json: bool) -> None:
    """List the tenants whose last run failed, with the reason."""
    from ..output import tell

    found = _fleet().failed()
    if as_json:
        tell(json.dumps(list(found), indent=2))
        return
    first = next(found, None)
    for one in () if first is None else chain([first], found):
        tell(_line(one))
    if first is None:
        tell("No tenant failed.")


def _line(one: dict[str, Any]) -> str:
    tries = f"{one['attempts']} time{'s' if one['attempts'] > 1 else ''}"
    return f"{one['name']}: {one['error']}\n  failed {tries}, the last time at {one['at']}"


def _fleet() -> Fleet:
    fleet: Fleet | None = current_app.extensions.get(EXTENSION)
    if fleet is None:
        raise WrongUsage("This application has no fleet: Fleet(smart, tenants=…, url=…) makes one.")
    return fleet


@contextmanager
def _executor(dask: str | None) -> Iterator[tuple[Executor | None, int | None]]:
    """A cluster, and how many tenants it has at a time; two times ``None`` for threads of this process."""
    if dask is None:
        yield None, None
        return
    try:
        client_of: Any = import_module("distributed").Client
    except ImportError:
        raise DbSmartError(
            "--dask needs Dask: install the extra 'fleet', as in pip install 'aurum-harmony[fleet]'. Nothing was "
            "changed."
        ) from None
    # It tells of each connection that ends, with a traceback; what became of the run is told below.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        client = client_of(dask)
    except Exception as error:  # a TypeError where there are no certificates, a RuntimeError where they are required
        raise DbSmartError(
            f"No scheduler of Dask can be reached at {dask}: {one_line(text_of(error))}. Nothing was changed."
        ) from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise DbSmartError(f"The scheduler of Dask at {dask} has no workers. Nothing was changed.")
        # Not retried by Dask: the next run goes on where this one was.
        yield client.get_executor(pure=False, retries=0), 2 * threads


def _data(run: FleetRun) -> dict[str, Any]:
    return {
        "total": run.total,
        **run.counts,
        "left": run.left,
        "waiting": run.waiting,
        "stopped": run.stopped,
        "duration_s": round(run.duration, 3),
        "failures": [{"name": one.name, "error": one.error} for one in run.failures],
    }


def _summary(run: FleetRun) -> str:
    counts = run.counts
    parts = [f"{counts[UP_TO_DATE]:,} up to date", f"{counts[APPLIED]:,} migrated", f"{counts[FAILED]:,} failed"]
    if run.left:
        parts.append(f"{run.left:,} not begun")
    text = f"{tenants(run.total)} in {run.duration:.1f} s: {', '.join(parts)}."
    if run.stopped:
        text += f" Stopped, because {run.stopped}."
    if run.waiting:
        text += f" {_waits(run.waiting)}"
    if counts[FAILED]:
        text += " 'flask db-smart fleet failed' says why; 'fleet migrate --failed' tries them again."
    return text


def _waits(count: int) -> str:
    return (
        f"In {tenants(count)} a contract step waits until it is applied to the application's own database: "
        "'flask db-smart status' says why."
    )


@contextmanager
def _silent() -> Iterator[Listener]:
    yield lambda run, result: None


@contextmanager
def _lines(output: TextIO) -> Iterator[Listener]:
    """Prints a line of JSON for each tenant that was looked at."""
    from ..output import say

    def listen(run: FleetRun, result: Result | None) -> None:
        if result is not None:
            data = {"duration_s": round(result.duration, 6), **asdict(result)}
            del data["stamp"], data["duration"]
            with redirect_stdout(output):
                say(json.dumps(data))

    yield listen


@contextmanager
def _bar() -> Iterator[Listener]:
    """Shows how many tenants are done and how long the others will take, on a terminal; failures are lines."""
    from ..output import can_redraw, encodable, say

    def failure(result: Result) -> str:
        return encodable(f"{result.name}: {result.error}")

    if not can_redraw():
        yield lambda run, result: say(failure(result)) if result is not None and result.error else None
        return
    import rich.progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[failed]}", markup=False),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, transient=True) as progress:
        task = progress.add_task("tenants", total=None, failed="")

        def listen(run: FleetRun, result: Result | None) -> None:
            if result is not None and result.error:
                progress.console.print(failure(result), markup=False, highlight=False, emoji=False, soft_wrap=True)
            failed = f"{run.counts[FAILED]:,} failed" if run.counts[FAILED] else ""
            done = run.pending - run.left
            progress.update(task, total=run.pending, completed=done, failed=failed)

        yield listen
