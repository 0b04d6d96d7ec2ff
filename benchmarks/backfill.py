"""What a backfill costs: ``python -m benchmarks.backfill``. See RESULTS.md for what the sections mean."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from .backfill_samples import backfilled, by_hand, single
from .measure import Job, Laboratory, Row, SampleFailed, milliseconds, ratios, save, show, show_verdicts
from .projects import MODULE, Project, new_database, project
from .sample import Result

THROUGHPUT = "Throughput: n = n + 1 in every row"
LATENCY = "Latency of others: pgbench updates rows of the same table"
MEMORY = "Peak memory of the process that backfills"

#: Transactions per second that pgbench asks for; its latency counts from when each was due, so that none is left out.
_PGBENCH_RATE = 100
#: How long pgbench runs alone before what is measured begins, and afterwards, until its log is written, seconds.
_MARGIN = 2.0

_MIGRATION = """\
from sqlalchemy import column

from aurum_harmony.db_smart import migration


@migration
def fill(op):
    op.backfill("items", {"n": column("n") + 1})
"""
_FILL = {
    "sqlite": "WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {rows}) "
    "INSERT INTO items SELECT i, 0, 'row number ' || i FROM s",
    "postgresql": "INSERT INTO items SELECT i, 0, 'row number ' || i FROM generate_series(1, {rows}) AS s (i)",
    "mysql": "INSERT INTO items SELECT seq, 0, concat('row number ', seq) FROM seq_1_to_{rows}",
}


def fill(of: Project) -> None:
    """Create the table again, as it is before any update, without a history of migrations."""
    engine = sa.create_engine(of.url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    for path in Path(of.instance).glob(".db_migration*"):
        path.unlink()
    with engine.connect() as connection:
        for name in sa.inspect(connection).get_table_names():
            connection.exec_driver_sql(f"DROP TABLE {name}")
        connection.exec_driver_sql("CREATE TABLE items (id INTEGER NOT NULL PRIMARY KEY, n INTEGER, s VARCHAR(40))")
        connection.exec_driver_sql(_FILL[engine.dialect.name].format(rows=of.size))
        for statement in {"postgresql": ("VACUUM ANALYZE items", "CHECKPOINT")}.get(engine.dialect.name, ()):
            connection.exec_driver_sql(statement)


def check(of: Project) -> None:
    """See that each row was updated once.

    :raises SampleFailed: one was not.
    """
    with sa.create_engine(of.url, poolclass=sa.pool.NullPool).connect() as connection:
        found = connection.execute(sa.text("SELECT min(n), max(n), count(*) FROM items")).one()
    if tuple(found) != (1, 1, of.size):
        raise SampleFailed(f"{of.url}: not every row was updated once: {found}")


def run(laboratory: Laboratory, sample: Callable[[Project], Result], of: Project) -> Result:
    """One sample on a new table."""
    fill(of)
    result = laboratory.run(Job(sample, of))
    check(of)
    if "sizes" in result:
        Path(of.directory, "sizes.json").write_text(json.dumps(result["sizes"]))
    return result


def throughput(
    laboratory: Laboratory, projects: dict[str, Project], rounds: int
) -> tuple[list[Row], dict[str, Result]]:
    """The backfill, the loop by hand, and one statement, in turn.

    :returns: the rows, and the last backfill of each database.
    """
    rows, last = [], {}
    for database, of in projects.items():
        found: dict[str, list[Result]] = {"db-smart": [], "loop by hand": [], "single UPDATE": []}
        samples = dict(zip(found, (backfilled, by_hand, single), strict=True))
        for number in range(1, rounds + 1):
            print(f"Throughput, {database}: round {number} of {rounds}", file=sys.stderr)
            # The backfill comes first, as the loop takes its batches; the other two swap places.
            for label in sorted(samples, key=lambda label: (label != "db-smart", (label > "m") == (number % 2 == 1))):
                found[label].append(run(laboratory, samples[label], of))
        ours = last[database] = found["db-smart"][-1]
        print(f"{database}: {len(ours['sizes'])} batches, of {max(ours['sizes'])} rows at most", file=sys.stderr)
        for label, results in found.items():
            per_second = [of.size / ms * 1000 for ms in milliseconds(results)]
            rows.append(Row(THROUGHPUT, database, of.size, label, per_second, unit="rows/s"))
        for label, limit in (("loop by hand", 0.9), ("single UPDATE", 0.5)):
            ratio = ratios(found[label], found["db-smart"])
            label = f"db-smart / {label}"
            rows.append(Row(THROUGHPUT, database, of.size, label, ratio, unit="x", limit=limit, at_least=True))
    return rows, last


@contextmanager
def pgbench(of: Project) -> Iterator[Path]:
    """pgbench beside a block, on the same table.

    :returns: the folder with its log, which is whole for what ended before the block did.
    """
    url = make_url(of.url)
    environment = {**os.environ, "PGPASSWORD": url.password or ""}
    with tempfile.TemporaryDirectory(prefix="pgbench-") as folder:
        script = Path(folder, "update.sql")
        script.write_text(f"\\set id random(1, {of.size})\nUPDATE items SET s = 'by pgbench' WHERE id = :id;\n")
        where = ["-h", url.host or "", "-p", str(url.port or 5432), "-U", url.username or "", str(url.database)]
        options = ["-n", "-c", "8", "-R", str(_PGBENCH_RATE), "-T", "100000", "-l", "--log-prefix", f"{folder}/log"]
        process = subprocess.Popen(
            ["pgbench", *options, "-f", str(script), *where],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            time.sleep(_MARGIN)
            yield Path(folder)
            time.sleep(_MARGIN)
            if process.poll() is not None:
                assert process.stderr is not None
                raise SampleFailed(f"pgbench ended with {process.returncode}: {process.stderr.read().decode()}")
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def beside(of: Project, action: Callable[[], object]) -> float:
    """Latency at the 99th percentile of what pgbench did during an action, milliseconds."""
    with pgbench(of) as folder:
        started = time.time()
        action()
        ended = time.time()
        # What waited for the action ends after it.
        time.sleep(_MARGIN)
        found = []
        for path in folder.glob("log*"):
            for line in path.read_text().splitlines():
                parts = line.split()
                if len(parts) >= 6 and started <= int(parts[4]) + int(parts[5]) / 1e6 <= ended + _MARGIN:
                    found.append(int(parts[2]) / 1000)
    if len(found) < 20:
        raise SampleFailed(f"pgbench logged only {len(found)} transactions; take more rows.")
    return statistics.quantiles(found, n=100)[98]


def latency(laboratory: Laboratory, of: Project, rounds: int, seconds: float) -> list[Row]:
    """The p99 of pgbench alone, beside the backfill, and beside the single statement.

    :param seconds: how long it runs alone.
    """
    found: dict[str, list[float]] = {"alone": [], "beside db-smart": [], "beside the single UPDATE": []}
    for number in range(1, rounds + 1):
        print(f"Latency: round {number} of {rounds}", file=sys.stderr)
        actions: tuple[Callable[[], object], ...] = (
            lambda: threading.Event().wait(seconds),
            lambda: laboratory.run(Job(backfilled, of)),
            lambda: laboratory.run(Job(single, of)),
        )
        for label, action in zip(found, actions, strict=True):
            fill(of)
            found[label].append(beside(of, action))
            if label != "alone":
                check(of)
    return [Row(LATENCY, "PostgreSQL", of.size, f"p99 {label}", samples) for label, samples in found.items()]


def memory(laboratory: Laboratory, small: dict[str, Project], large: dict[str, Result], rows: int) -> list[Row]:
    """The peak with the whole table, and with a tenth of it."""
    found = []
    for database, of in small.items():
        tenth = run(laboratory, backfilled, of)
        for size, result in ((of.size, tenth), (rows, large[database])):
            found.append(Row(MEMORY, database, size, "db-smart", [result["peak_mb"]], unit="MB"))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backfill", description=__doc__)
    parser.add_argument("--rows", type=int, help="rows of the table (2,000,000)")
    parser.add_argument("--rounds", type=int, help="samples of each figure (3)")
    parser.add_argument("--url", action="append", default=[], help="a server to measure too; can be repeated")
    parser.add_argument("--quick", action="store_true", help="20,000 rows, one round: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    return parser


def main() -> int:
    """Measure and print; the exit code is 1 where a contender cannot run or updates a row not exactly once."""
    arguments = _parser().parse_args()
    rows = arguments.rows or (20_000 if arguments.quick else 2_000_000)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db-smart-bench-")))
            laboratory = Laboratory(directory, warm_up=False)
            projects = {"SQLite": project(directory / "sqlite", rows)}
            for text in arguments.url:
                url = stack.enter_context(new_database(text))
                name = {"postgresql": "PostgreSQL", "mysql": "MariaDB"}[url.get_backend_name()]
                projects[name] = project(directory / name, rows, url)
            small = {}
            for name, of in projects.items():
                Path(of.directory, f"{MODULE}.py").write_text(_MIGRATION)
                small[name] = Project(rows // 10, of.directory, of.instance, of.url)
            report, last = throughput(laboratory, projects, rounds)
            report += memory(laboratory, small, last, rows)
            if "PostgreSQL" in projects:
                if shutil.which("pgbench"):
                    seconds = last["PostgreSQL"]["ms"] / 1000
                    report += latency(laboratory, projects["PostgreSQL"], rounds, max(1.0, min(seconds, 20.0)))
                else:
                    print("NOT MEASURED: there is no pgbench on the path (postgresql-contrib).", file=sys.stderr)
    except (SampleFailed, SQLAlchemyError) as error:
        print(error, file=sys.stderr)
        return 1
    show(report)
    show_verdicts(report)
    if arguments.json is not None:
        save(arguments.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
