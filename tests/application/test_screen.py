"""Reports on terminals of several widths: they fit, and what a person wants to copy is whole and on one line."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import chain

import pytest
from rich.cells import cell_len
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from aurum_harmony.db_smart.grid import Screen, took
from aurum_harmony.db_smart.report import (
    DatabaseHistory,
    DatabaseStatus,
    Failure,
    FlagStatus,
    Held,
    History,
    Lock,
    NextBoot,
    Report,
    RevisionText,
    SnapshotEntry,
    Snapshots,
    Status,
    Waiting,
)
from aurum_harmony.db_smart.schema.progress import Progress, duration
from aurum_harmony.db_smart.store.history import Ended
from tests.harness.project import Project
from tests.harness.terminal import ESCAPES, Terminal, command_line, printed, run
from tests.samples import V2

WIDTHS = (60, 80, 120, 200)
WHEN = datetime(2026, 11, 29, 5, 43, 14, tzinfo=timezone.utc)
LONG = "add_the_column_that_" + "x" * 170
WIDE = "価格を埋める" * 4
NAMES = ["make_items", LONG, WIDE]
PATH = "/srv/a very long folder with blanks/" + "y" * 90 + "/instance/.db_migration_completed"
URLS = ["sqlite:////srv/shop.db", "postgresql+psycopg://user:***@db.example.com/" + "z" * 120]
BY = "a-person-with-a-long-name@a-host-with-a-longer-name.example.com"
ERROR = "IntegrityError: the key 価格 is there twice; " * 8 + "that is all"


def status() -> Status:
    revision = RevisionText("価格を埋める " * 12, "/a/b.py", ["label"], "versions/" + "w" * 70 + ".py")
    held = [Held(name, "c", WHEN, 3_600_000.0, BY) for name in NAMES]
    waiting = [Waiting("next_" + name, "edited") for name in NAMES] + [Waiting("0a1b2c", "new", revision)]
    failed = Failure("next_make_items", WHEN.isoformat(), 12.5, BY, ERROR)
    progress = Progress(LONG, 1_250_000, 10_000_000, 48_612.0)
    lock = Lock("web-1:4711", WHEN, None, LONG)
    databases = [
        DatabaseStatus("empty", URLS[0], "sqlite", "pending"),
        DatabaseStatus("away", URLS[1], "x", "unreachable"),
    ]
    for number in range(20):
        name = f"{WIDE if number % 2 else 'tenant'}_{number}"
        there, tables = (held, waiting, [LONG, "beyond"]), [LONG, "users"]
        one = DatabaseStatus(
            name,
            URLS[number % 2],
            "x",
            "pending",
            *there,
            tables,
            ["users"],
            failed,
            lock,
            progress,
        )
        databases.append(one)
    boot = NextBoot(True, "the database 'default' has no history yet: 4 new migrations (a, b, c, …) and 3 edited ones")
    return Status("pending", None, databases, lock, progress, FlagStatus(PATH, True, False, "too old"), boot, [])


def history() -> History:
    runs = [
        Ended(7, name, "c", outcome, WHEN, 3.1, BY, release, error)
        for name in NAMES
        for outcome, release, error in [
            ("applied", "2.4.1", None),
            ("failed", None, ERROR),
            ("taken back", "r" * 60, None),
        ]
    ]
    found = [DatabaseHistory("default", URLS[1], "x", runs, "elsewhere"), DatabaseHistory("new", URLS[0], "x", None)]
    return History(None, [*found, DatabaseHistory("empty", URLS[0], "x", [])])


def snapshots() -> Snapshots:
    names = [f"{one}-shop.db-5d2e8a07.c41f93be-20261122T203015.123456Z-before-{one}.sqlite" for one in NAMES]
    return Snapshots([SnapshotEntry(name, one, WHEN, one, 12288) for name in names for one in ("a", WIDE)], None)


def copied(report: Report) -> Iterator[str]:
    """What a person may want to copy from a report."""
    if isinstance(report, Status):
        for one in report.databases:
            yield from [one.url, *one.unknown, *one.missing]
            yield from (item.name for item in one.applied)
            yield from (item.name for item in one.pending)
        yield PATH
        yield report.databases[-1].pending[-1].revision.shown  # type: ignore[union-attr]
    elif isinstance(report, History):
        yield from (one.url for one in report.databases)
        yield from chain(NAMES, [ERROR])
    elif isinstance(report, Snapshots):
        yield from (item.name for item in report.snapshots)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", [status, history, snapshots])
def test_a_report_fits_and_what_is_copied_is_whole(make: Callable[[], Report], width: int) -> None:
    report = make()
    lines = list(report.screen(Screen(width)))
    wanted = {*copied(report)}
    for one in wanted:
        assert any(line.endswith(one) for line in lines), one
    # What is too long for the terminal stands alone, so that the terminal breaks it and copies it whole.
    for line in lines:
        assert cell_len(line) <= width or re.sub("^ *(by |on |in )?", "", line) in {*wanted, BY}, line
        assert line == line.rstrip()
        assert not set(line) & set("│─┃━|┌╭")
    coloured = list(report.screen(Screen(width, colours=True)))
    assert [ESCAPES.sub("", line) for line in coloured] == lines
    assert (coloured != lines) is not isinstance(report, Snapshots)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_stands_in_columns(width: int) -> None:
    lines = list(history().screen(Screen(width)))
    rows = [line for line in lines if " 2026-11-29 05:43:14" in line]
    assert len(rows) == 9
    assert {line.index("2026") for line in rows} == {lines[2].index("when (UTC)") if "outcome" in lines[2] else 14}


def test_a_long_history_is_no_trouble() -> None:
    runs = [Ended(number, f"m{number}", "c", "applied", WHEN, 3.1, BY, None, None) for number in range(10_000)]
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(len(list(DatabaseHistory("d", "u", "x", runs).screen(Screen(80))))), daemon=True
    )
    thread.start()
    thread.join(30)
    assert found == [10_002]


@pytest.mark.parametrize("width", WIDTHS)
def test_of_a_failure_nothing_is_left_out(width: int) -> None:
    shown = list(status().screen(Screen(width)))
    start = next(number for number, line in enumerate(shown) if line.strip().startswith("failed"))
    text = "\n".join(shown[start : start + 6])
    for part in ("2026-11-29 05:43:14", "12.5 ms", BY, "IntegrityError: the key", "next_make_items"):
        assert part in text, text
    assert "…\n    The whole message: flask db-smart history\n" in text
    assert f"    {ERROR}" in history().screen(Screen(width))


def test_a_terminal_gets_tables_and_a_pipe_gets_the_lines_of_old(
    sqlite_project: Project, new_url: Callable[[str], URL]
) -> None:
    project = sqlite_project
    project.config["SQLALCHEMY_BINDS"] = {"analytics": new_url("sqlite")}
    project.write(V2 + f"@migration(database='analytics')\ndef {LONG}(op): pass\n@migration\ndef bad(op): 1 / 0\n")
    with pytest.raises(MigrationFailed):
        project.boot()
    for width in WIDTHS:
        for command in (["status"], ["history"], ["snapshots"]):
            lines = printed(project, *command, columns=width)
            assert all(len(line) <= width or " " not in line.strip() for line in lines), lines
    with Terminal(command_line(project, "status")) as coloured:
        assert coloured.rest() == 0
        assert "\x1b[32mapplied\x1b[0m" in coloured.seen
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with Terminal(command_line(project, "status"), variables) as plain:
            assert plain.rest() == 0
            assert "\x1b" not in plain.seen
            assert plain.lines == coloured.lines
    piped = run(project, "status").stdout.splitlines()
    assert piped[0] == f"Database default: pending  {project.url}"
    assert piped[1].startswith("  applied  make_items  20")
    assert piped[3].startswith("  failed   bad  20")
    assert piped[3].endswith("  ZeroDivisionError: division by zero")
    assert any(line.startswith(f"  applied  {LONG}  20") for line in piped) is False
    assert f"  pending  {LONG}  new" in piped


def test_an_empty_history_and_no_snapshots_are_said(sqlite_project: Project) -> None:
    assert printed(sqlite_project, "snapshots", columns=60) == ["There are no snapshots."]
    lines = printed(sqlite_project, "history", columns=60)
    assert lines == ["Database default: no history", f"  {sqlite_project.url}"]


def test_what_a_database_holds_cannot_act_on_the_terminal() -> None:
    runs = [Ended(7, "a", "c", "failed", WHEN, 1.0, "me\x1b[2J@here", "1\n2", "a\x1b]0;title\x07b")]
    lines = list(DatabaseHistory("default", "sqlite://", "x", runs).screen(Screen(60)))
    assert "\x1b" not in "".join(lines)
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "a moment"), (0.5, "about 0.5 s"), (9, "about 9 s"), (59.6, "about 60 s"), (180, "about 3 min")]
    + [(5000, "about 83 min"), (7200, "about 2 h"), (400_000, "about 5 days")],
)
def test_how_long_something_takes_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_command_in_a_sentence_is_not_broken() -> None:
    text = "  the database's 価格 cannot be read; 'flask db-smart diff' shows more"
    assert list(Screen(40).wrapped(text)) == [
        "  the database's 価格 cannot be read;",
        "    'flask db-smart diff' shows more",
    ]
    assert list(Screen(40).wrapped(f"  {PATH} has changed")) == [f"  {PATH} has changed"]


def test_how_long_something_took() -> None:
    found = [took(one) for one in (3.14, 999, 59_900, 61_000, 3_600_000)]
    assert found == ["3.1 ms", "999.0 ms", "59.9 s", "1 min 01 s", "1 h 00 min"]


def test_what_is_left_of_a_backfill_is_in_words() -> None:
    assert str(Progress("fill", 1_250_000, 10_000_000, 48_612.0)) == (
        "fill: 1,250,000 of ~10,000,000 rows, 48,612 rows/s, about 3 min left"
    )
    assert str(Progress("fill", 5, 10, 0.0)) == "fill: 5 of ~10 rows"
