"""What boot costs: ``python -m benchmarks.boot``. See RESULTS.md for what the sections mean."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from . import floors, ours, peers
from .measure import Job, Laboratory, Row, SampleFailed, milliseconds, ratios, save, show, show_verdicts
from .projects import Project, new_database, project, write_module, write_package, write_process
from .sample import Result

WARM = "Warm boot: nothing changed since the last one"
PROCESS = "Whole process: start, build the application, boot warm, end"
APPLY = "Applying: every migration adds a column"
LOAD = "Loading all migrations: parse, import, checksums"
HISTORY = "A history of 100,000 rows"
LEVEL_2 = "Flag deleted, nothing pending: the database is asked"

#: The contender that takes over the directory of Flask-Migrate.
ALEMBIC = "db-smart, alembic="

#: A flag is trusted by time stamps alone when the files were older than this at the boot that wrote it, seconds.
SETTLED = 2.1

_PACKAGES = ("Flask", "Flask-SQLAlchemy", "SQLAlchemy", "Flask-Migrate", "alembic", "yoyo-migrations", "Django")


@dataclass(frozen=True)
class Options:
    """What to run; see :func:`_parser`."""

    sizes: tuple[int, ...]
    rounds: int
    url: str | None
    django_apply: bool
    quick: bool

    @property
    def process_rounds(self) -> int:
        """Whole processes differ by less than the noise of one round."""
        return self.rounds if self.quick else 3 * self.rounds

    @property
    def apply_rounds(self) -> int:
        """Applying takes long, and its noise is small against it."""
        return max(1, self.rounds // 3)


@dataclass(frozen=True)
class Fleet:
    """The prepared projects of one database server (or of SQLite) for one number of migrations."""

    database: str
    size: int
    files: Project
    module: Project
    flask_migrate: Project
    yoyo: Project | None = None
    django: Project | None = None


def prepare(laboratory: Laboratory, directory: Path, options: Options, stack: ExitStack) -> list[Fleet]:
    """Write all migrations and apply them."""
    fleets: list[Fleet] = []
    for size in options.sizes:
        paths = {name: directory / f"{name}-{size}" for name in ("files", "module", "flask-migrate", "yoyo", "django")}
        fleets.append(Fleet("SQLite", size, *(project(path, size) for path in paths.values())))
        write_package(fleets[-1].files)
        write_module(fleets[-1].module)
        if options.url is not None:
            urls = [stack.enter_context(new_database(options.url)) for _ in range(3)]
            projects = [project(path, size, url) for path, url in zip(paths.values(), urls, strict=False)]
            name = {"postgresql": "PostgreSQL"}.get(urls[0].get_backend_name(), urls[0].get_backend_name())
            fleets.append(Fleet(name, size, *projects))
    for fleet in fleets:
        laboratory.run(Job(peers.flask_migrate_prepare, fleet.flask_migrate))
    written = time.monotonic()
    for fleet in fleets:
        if fleet.yoyo is not None:
            laboratory.run(Job(peers.yoyo_prepare, fleet.yoyo))
        if fleet.django is not None:
            laboratory.run(Job(peers.django_prepare, fleet.django))
    time.sleep(max(0.0, written + SETTLED - time.monotonic()))
    for fleet in fleets:
        for mine in (fleet.files, fleet.module):
            laboratory.run(Job(ours.prepare, mine))
        laboratory.run(Job(ours.adopt, fleet.flask_migrate))
    return fleets


def warm_boot(laboratory: Laboratory, fleets: list[Fleet], options: Options) -> tuple[list[Row], list[str]]:
    """Nothing to do: db-smart, its peers, and bare loops over the source files."""
    jobs: dict[tuple[str, int, str], Job] = {}
    for fleet in fleets:
        contenders = {
            "db-smart, one module": Job(ours.warm, fleet.module),
            "db-smart, a file each": Job(ours.warm, fleet.files),
            ALEMBIC: Job(ours.warm_alembic, fleet.flask_migrate),
            "Flask-Migrate upgrade()": Job(peers.flask_migrate_upgrade, fleet.flask_migrate),
            "db.create_all()": Job(peers.create_all, fleet.files),
        }
        if fleet.yoyo is not None:
            contenders["yoyo apply"] = Job(peers.yoyo_apply, fleet.yoyo)
        if fleet.django is not None:
            contenders["Django migrate"] = Job(peers.django_warm, fleet.django)
        if fleet.database == "SQLite":
            contenders["bare loop: stat each file"] = Job(floors.stat, fleet.files)
            contenders["bare loop: stat and hash each file"] = Job(floors.stat_and_hash, fleet.files)
        jobs |= {(fleet.database, fleet.size, label): job for label, job in contenders.items()}
    results = laboratory.rounds(jobs, options.rounds, "Warm boot")
    rows: list[Row] = []
    for key, found in results.items():
        database, size, label = key
        limit = None
        if label == "db-smart, one module":
            limit = 0.25
        elif label in ("db-smart, a file each", ALEMBIC):
            floor = milliseconds(results["SQLite", size, "bare loop: stat each file"])
            limit = 1.5 * statistics.median(floor) + 0.15
        rows.append(Row(WARM, database, size, label, milliseconds(found), limit=limit))
        if limit is not None:
            other = ratios(results[database, size, "Flask-Migrate upgrade()"], found)
            least = 50 if label != ALEMBIC else 100 if size >= 100 else 25
            label = f"Flask-Migrate / {label}"
            rows.append(Row(WARM, database, size, label, other, unit="x", limit=least, at_least=True))
    return rows, _violations(results)


def _violations(results: dict[tuple[str, int, str], list[Result]]) -> list[str]:
    """What a warm boot must not do, whatever the time."""
    found = []
    for key, samples in results.items():
        where = ", ".join(map(str, key))
        for name in ("connections", "statements"):
            count = sum(sample.get(name, 0) for sample in samples)
            if count:
                found.append(f"{where}: {count} {name} in {len(samples)} warm boots")
        heavy = {module for sample in samples for module in sample.get("heavy", ())}
        if heavy:
            found.append(f"{where}: imported {', '.join(sorted(heavy))}")
    return found


def whole_process(laboratory: Laboratory, fleets: list[Fleet], options: Options) -> list[Row]:
    """A process with the extension against one without; the same one twice shows the noise."""
    sqlite = [fleet for fleet in fleets if fleet.database == "SQLite"]
    largest = sqlite[-1].size
    without = Job(write_process(sqlite[-1].module, extension=False))
    jobs = {(largest, "without"): without, (largest, "without, again"): without}
    jobs[largest, "with, one module"] = Job(write_process(sqlite[-1].module, extension=True))
    for fleet in sqlite:
        jobs[fleet.size, "with, a file each"] = Job(write_process(fleet.files, extension=True))
    results = laboratory.rounds(jobs, options.process_rounds, "Whole process")
    base = results.pop((largest, "without"))
    rows = []
    for key, name in (("wall_ms", "wall"), ("cpu_ms", "CPU")):
        rows.append(Row(PROCESS, "SQLite", largest, f"{name}, without", milliseconds(base, key)))
        for (size, label), found in results.items():
            limit = 1.01 if label.startswith("with,") else None
            label = f"{name}, {label} / without"
            rows.append(Row(PROCESS, "SQLite", size, label, ratios(found, base, key), unit="x", limit=limit))
    for (size, label), found in results.items():
        if label.startswith("with,"):
            # Both times are of one process, so that the noise between processes has no part in it.
            inside = [one["wall_ms"] / (one["wall_ms"] - one["extension_ms"]) for one in found]
            rows.append(Row(PROCESS, "SQLite", size, f"{label} / the rest of it", inside, unit="x", limit=1.01))
    return rows


def applying(laboratory: Laboratory, fleet: Fleet, options: Options) -> list[Row]:
    """Apply all migrations to a new SQLite database."""
    assert fleet.yoyo is not None
    assert fleet.django is not None
    mine = {
        f"db-smart {what}, {layout}": Job(sample, where)
        for layout, where in (("one module", fleet.module), ("a file each", fleet.files))
        for what, sample in (("run, loaded before", ours.run_all), ("whole boot", ours.boot_all))
    }
    jobs = mine | {
        "bare driver": Job(floors.driver, fleet.files),
        "bare driver, with a row each": Job(floors.driver_and_record, fleet.files),
        "Flask-Migrate upgrade()": Job(peers.flask_migrate_upgrade, fleet.flask_migrate, new=True),
        ALEMBIC: Job(ours.boot_all_alembic, fleet.flask_migrate, new=True),
        "yoyo apply": Job(peers.yoyo_apply, fleet.yoyo, new=True),
    }
    if options.django_apply:
        jobs["Django migrate"] = Job(peers.django_apply, fleet.django)
    results = laboratory.rounds(jobs, options.apply_rounds, "Applying")
    limit = 1.5 * statistics.median(milliseconds(results["bare driver"]))
    rows = [
        Row(APPLY, fleet.database, fleet.size, label, milliseconds(found), limit=limit if label in mine else None)
        for label, found in results.items()
    ]
    slower = ratios(results[ALEMBIC], results["Flask-Migrate upgrade()"])
    label = f"{ALEMBIC} / Flask-Migrate upgrade()"
    return [*rows, Row(APPLY, fleet.database, fleet.size, label, slower, unit="x", limit=1.0)]


def loading(laboratory: Laboratory, fleets: list[Fleet], options: Options) -> list[Row]:
    """Load the migrations of the largest project."""
    fleet = max((fleet for fleet in fleets if fleet.database == "SQLite"), key=lambda fleet: fleet.size)
    jobs = {"one module": Job(ours.load_all, fleet.module), "a file each": Job(ours.load_all, fleet.files)}
    results = laboratory.rounds(jobs, options.apply_rounds, "Loading")
    return [
        Row(LOAD, fleet.database, fleet.size, f"db-smart, {label}", milliseconds(found), limit=300)
        for label, found in results.items()
    ]


def long_history(laboratory: Laboratory, fleets: list[Fleet], options: Options) -> list[Row]:
    """Level 2 and the first request, on a history as it is and on one that is long; SQLite."""
    fleet = next(fleet for fleet in fleets if fleet.database == "SQLite")
    samples = {"flag deleted": ours.without_flag, "first request": ours.first_request}
    short = laboratory.rounds(
        {label: Job(sample, fleet.module) for label, sample in samples.items()}, options.rounds, "Short history"
    )
    laboratory.run(Job(ours.lengthen_history, fleet.module))
    long = laboratory.rounds(
        {label: Job(sample, fleet.module) for label, sample in samples.items()}, options.rounds, "Long history"
    )
    rows = []
    for label in samples:
        rows.append(Row(HISTORY, "SQLite", fleet.size, f"{label}, short history", milliseconds(short[label])))
        rows.append(Row(HISTORY, "SQLite", fleet.size, f"{label}, long history", milliseconds(long[label])))
        found = ratios(long[label], short[label])
        rows.append(Row(HISTORY, "SQLite", fleet.size, f"{label}, long / short", found, unit="x", limit=1.0))
    return rows


def without_flag(laboratory: Laboratory, fleets: list[Fleet], options: Options) -> list[Row]:
    """Level 2 against a bare connection with a bare query."""
    jobs = {}
    for fleet in fleets:
        for layout, mine in (("one module", fleet.module), ("a file each", fleet.files)):
            jobs[fleet.database, fleet.size, f"db-smart, {layout}"] = Job(ours.without_flag, mine)
        jobs[fleet.database, fleet.size, ALEMBIC] = Job(ours.without_flag_alembic, fleet.flask_migrate)
        jobs[fleet.database, fleet.size, "bare connection and query"] = Job(floors.query, fleet.files)
    results = laboratory.rounds(jobs, options.rounds, "Without flag")
    rows = []
    for (database, size, label), found in results.items():
        is_ours = label.startswith("db-smart")
        floor = statistics.median(milliseconds(results[database, size, "bare connection and query"]))
        limit = 2 * floor if is_ours else None
        rows.append(Row(LEVEL_2, database, size, label, milliseconds(found), limit=limit))
        if is_ours:
            rows.append(Row(LEVEL_2, database, size, f"{label}: imports", milliseconds(found, "imports_ms")))
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boot", description=__doc__)
    parser.add_argument("--rounds", type=int, help="samples of each figure (15); thrice as many for whole processes")
    parser.add_argument("--sizes", type=_sizes, help="numbers of migrations (10,100,1000); the largest is applied")
    parser.add_argument("--url", help="a server to measure too, such as postgresql://user@host/postgres")
    parser.add_argument("--django-apply", action="store_true", help="let Django apply too, which takes it long")
    parser.add_argument("--quick", action="store_true", help="10 migrations and 2 rounds: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, with all samples")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(size) for size in text.split(",")}))
    if not 1 <= sizes[0] <= sizes[-1] <= 1500:
        raise argparse.ArgumentTypeError("from 1 to 1500, as a table has no more columns")
    return sizes


def main() -> int:
    """Measure and print; the exit code is 1 where a contender cannot run or a warm boot does what it must not."""
    arguments = _parser().parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 15)
    sizes = arguments.sizes or ((10,) if arguments.quick else (10, 100, 1000))
    options = Options(sizes, rounds, arguments.url, arguments.django_apply, arguments.quick)
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db-smart-bench-")))
            laboratory = Laboratory(directory, warm_up=not options.quick)
            fleets = prepare(laboratory, directory, options, stack)
            rows, violations = warm_boot(laboratory, fleets, options)
            rows += whole_process(laboratory, fleets, options)
            largest = max((fleet for fleet in fleets if fleet.yoyo is not None), key=lambda fleet: fleet.size)
            rows += applying(laboratory, largest, options)
            rows += loading(laboratory, fleets, options)
            rows += without_flag(laboratory, fleets, options)
            rows += long_history(laboratory, fleets, options)
    except (SampleFailed, SQLAlchemyError) as error:
        print(error, file=sys.stderr)
        return 1
    show(rows)
    show_verdicts(rows)
    print("Warm boots: " + ("; ".join(violations) or "no connection, no query, neither Alembic nor Rich imported."))
    if arguments.json is not None:
        used = {"sizes": sizes, "rounds": rounds, "server": options.url and make_url(options.url).get_backend_name()}
        save(arguments.json, rows, _PACKAGES, options=used, violations=violations)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
