"""How the commands write their reports, and what happens if these cannot be written."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import click

from .errors import DbSmartError
from .grid import Screen
from .notices import logger_of
from .report import Ran, Report, RevisionText, revision_text
from .schema.progress import Progress
from .signals import migration_applied, migration_progress, migration_started, snapshot_taken, statement_progress

if TYPE_CHECKING:
    from pathlib import Path

    import rich.progress
    from flask import Flask

_logger = logger_of(__name__)
#: What a terminal is called that can only print: such as the shell of Emacs.
_PLAIN_TERMINALS = ("dumb", "unknown")
#: What a bar and the name before it need, columns.
_BAR_AND_NAME = 32
#: How often at most a line says how far a backfill is, seconds.
_PROGRESS_EVERY = 5.0


class OutputUnwritable(DbSmartError):
    """The result of a command cannot be written to standard output."""


def show(report: Report, as_json: bool = False) -> None:
    """Print a report.

    :raises OutputUnwritable: it cannot be written, and the command has no other result.
    """
    if report.unwritten is None:
        with optional():
            _print(report, as_json)
        return
    try:
        _print(report, as_json)
    except BrokenPipeError:  # whoever reads it has enough
        raise
    except OSError as error:
        _drop_output()
        raise OutputUnwritable(report.unwritten.format(error.strerror)) from None


def say(text: str) -> None:
    """Print what was done or has failed; if that cannot be printed, it is done or has failed all the same."""
    with optional():
        click.echo(encodable(text))


def tell(text: str) -> None:
    """Print a line of a command that has no other result.

    :raises OutputUnwritable: it cannot be written.
    """
    try:
        click.echo(encodable(text))
    except BrokenPipeError:  # whoever reads it has enough
        raise
    except OSError as error:
        _drop_output()
        raise OutputUnwritable(f"The output cannot be written ({error.strerror}). Nothing was changed.") from None


def confirm(question: str) -> bool:
    """Ask a person.

    :raises OutputUnwritable: the question cannot be written.
    """
    try:
        return click.confirm(question)
    except OSError as error:
        _drop_output()
        raise OutputUnwritable(
            f"The question cannot be asked ({error.strerror}). Nothing was changed. To go on without it: --yes."
        ) from None


@contextmanager
def optional() -> Iterator[None]:
    """Ignore that something cannot be printed (a closed pipe, a full disk): what counts is the run that it reports.

    Nothing more is written to standard output afterwards.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                click.echo(f"The output cannot be written ({error.strerror}); the run itself goes on.", err=True)
        _drop_output()


@contextmanager
def progress(
    app: Flask, applied: list[Ran], revision: Callable[[str], RevisionText | None], *, lines: bool
) -> Iterator[None]:
    """Print each migration with its time as it is applied.

    On a terminal a progress line says which one runs, and another one how far a backfill is; elsewhere a backfill
    prints a line every few seconds.

    :param applied: collects them.
    :param revision: what a migration of a name says of itself, if it is a revision of Alembic.
    :param lines: whether to print lines on a terminal too.
    """
    terminal = not lines and can_redraw()
    with _terminal() if terminal else nullcontext(_Lines()) as display:

        def on_started(_: object, migration: str, database: str, index: int, total: int) -> None:
            display.started(migration, index, total)

        def on_progress(_: object, migration: str, done: int, total: int, rate: float, **_more: object) -> None:
            display.progress(Progress(migration, done, total, rate))

        def on_statement(
            _: object, migration: str, phase: str, unit: str, done: int, total: int, rate: float, **_more: object
        ) -> None:
            display.progress(Progress(migration, done, total, rate, unit, phase) if phase else None)

        def on_snapshot(_: object, database: str, path: Path) -> None:
            with optional():
                display.line(f"  snapshot of {database}: {path}")

        def on_applied(_: object, migration: str, database: str, duration: float, **_more: object) -> None:
            about = revision(migration)
            applied.append(Ran(migration, round(duration * 1000, 3), about))
            where = "" if database == "default" else f"  ({database})"
            with optional():
                display.line(f"  {migration}{revision_text(about)}  {duration * 1000:.1f} ms{where}")

        with (
            migration_progress.connected_to(on_progress, sender=app),
            statement_progress.connected_to(on_statement, sender=app),
            migration_started.connected_to(on_started, sender=app),
            migration_applied.connected_to(on_applied, sender=app),
            snapshot_taken.connected_to(on_snapshot, sender=app),
        ):
            yield


class _Lines:
    """Prints a run as lines, where there is no terminal."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def line(self, text: str) -> None:
        """Something was done."""
        click.echo(encodable(text))

    def started(self, migration: str, number: int, total: int) -> None:
        """A migration begins.

        :param number: from 1 on.
        """

    def progress(self, progress: Progress | None) -> None:
        """A backfill or one long statement goes on; or the latter has ended."""
        # Where the application logs such lines, it has logged this one.
        if progress is None or _logger.isEnabledFor(logging.INFO):
            return
        if time.monotonic() - self._last >= _PROGRESS_EVERY:
            self._last = time.monotonic()
            click.echo(f"  {progress}", err=True)


class _Terminal(_Lines):
    """Prints a run on a terminal."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        super().__init__()
        self._progress = progress
        self._run = progress.add_task("", total=None, more="")
        self._rows = progress.add_task("", visible=False, more="")

    def line(self, text: str) -> None:
        # Plain: ":key:" in a path must not become a symbol, and the terminal must not cut the path.
        self._progress.console.print(encodable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def started(self, migration: str, number: int, total: int) -> None:
        more = f"({number} of {total})"
        self._progress.update(self._run, description=encodable(migration), completed=number - 1, total=total, more=more)
        self._progress.update(self._rows, visible=False)

    def progress(self, progress: Progress | None) -> None:
        if progress is None:
            self._progress.update(self._rows, visible=False)
            return
        more = ", ".join(filter(None, (progress.rows, progress.left)))
        if self._progress.console.width < len(more) + _BAR_AND_NAME:
            more = progress.left or progress.phase or f"{progress.done:,} rows"
        done, total = progress.done, progress.total or None
        self._progress.update(
            self._rows, description=encodable(progress.migration), completed=done, total=total, more=more, visible=True
        )


@contextmanager
def _terminal() -> Iterator[_Lines]:
    import rich.progress as bars
    from rich.table import Column

    columns = (
        bars.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=2)),
        bars.BarColumn(None, table_column=Column(ratio=1, min_width=10)),
        bars.TextColumn("{task.percentage:>3.0f} %", markup=False),
        bars.TextColumn("{task.fields[more]}", markup=False, table_column=Column(no_wrap=True)),
    )
    with bars.Progress(*columns, transient=True, expand=True) as progress:
        yield _Terminal(progress)


def _print(report: Report, as_json: bool) -> None:
    in_utf_8 = report.in_utf_8 and hasattr(sys.stdout, "buffer")
    for line in [report.json()] if as_json else report.screen(screen_of()) if _on_terminal() else report.lines():
        click.echo(line.encode("utf-8", "backslashreplace") if in_utf_8 else encodable(line))


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # one that is closed is None


def can_redraw() -> bool:
    """Whether standard output is a terminal on which lines can be drawn again."""
    return _on_terminal() and os.environ.get("TERM") not in _PLAIN_TERMINALS


def screen_of() -> Screen:
    """The terminal; in colours unless its user does not want them: https://no-color.org."""
    colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in _PLAIN_TERMINALS
    return Screen(shutil.get_terminal_size().columns, colours)


def encodable(text: str) -> str:
    """A text in which what standard output cannot encode is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _drop_output() -> None:
    """Write nothing more to standard output: what it still holds must not fail again when Python ends."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
