"""Run samples in fresh processes, in turn, and set what they say beside the targets."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from .projects import Project
from .sample import Result

_SETTINGS = ("FLASK_", "DB_SMART_", "DJANGO_", "YOYO_", "DATABASE_URL", "FORCE_DB_MIGRATION", "PYTHON")
_ROOT = Path(__file__).resolve().parent.parent

K = TypeVar("K")


class SampleFailed(Exception):
    """A contender could not run; the message has its output."""


@dataclass(frozen=True)
class Job:
    """What one process is to do.

    :ivar project: what to run ``sample`` with; ``None`` for a program.
    :ivar new: whether on a new SQLite database.
    """

    sample: Callable[[Project], Result] | Path
    project: Project | None = None
    new: bool = False


class Laboratory:
    """Runs jobs, each in a process of its own without settings of the surroundings.

    :param directory: holds the byte code, so that all contenders start with it and the source tree stays clean.
    :param warm_up: whether a first round, which does not count, fills byte code and page cache.
    """

    def __init__(self, directory: Path, *, warm_up: bool) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
        self._environment["PYTHONPATH"] = str(_ROOT)
        self._environment["PYTHONPYCACHEPREFIX"] = str(directory / "bytecode")
        self._directory = directory
        self._warm_up = warm_up

    def run(self, job: Job) -> Result:
        """Run one job.

        :returns: what it printed, with the ``wall_ms`` and ``cpu_ms`` (user and system) of the whole process.
        :raises SampleFailed: it failed.
        """
        if isinstance(job.sample, Path):
            name, arguments, given = job.sample.name, [str(job.sample)], ""
        else:
            assert job.project is not None
            name = f"{job.sample.__module__}:{job.sample.__name__}"
            arguments, given = ["-m", "benchmarks.sample", name, *["new"] * job.new], json.dumps(asdict(job.project))
        with tempfile.TemporaryFile("w+") as source, tempfile.TemporaryFile("w+") as out:
            source.write(given)
            source.seek(0)
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=source,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=self._environment,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            text = out.read()
        if process.returncode:
            raise SampleFailed(f"{name} ended with {process.returncode}:\n{text}")
        result: Result = json.loads(text.strip().rpartition("\n")[2] or "{}")
        return {**result, "wall_ms": wall * 1000, "cpu_ms": (usage.ru_utime + usage.ru_stime) * 1000}

    def rounds(self, jobs: Mapping[K, Job], rounds: int, title: str) -> dict[K, list[Result]]:
        """Run all jobs in turn, round after round, each round in another order.

        :returns: the results of each job, those of one round at the same index.
        """
        results: dict[K, list[Result]] = {key: [] for key in jobs}
        keys = list(jobs)
        for number in range(0 if self._warm_up else 1, rounds + 1):
            print(f"{title}: round {number} of {rounds}", file=sys.stderr)
            for key in random.Random(number).sample(keys, len(keys)):
                result = self.run(jobs[key])
                if number:
                    results[key].append(result)
        return results


@dataclass(frozen=True)
class Row:
    """A measured figure, and its target where it has one.

    :ivar samples: one for each round; the figure is their median.
    :ivar unit: ``"ms"``, or ``"x"`` for a ratio.
    :ivar limit: the target.
    :ivar at_least: whether the target is to be reached, not to be kept below.
    """

    section: str
    database: str
    size: int
    label: str
    samples: list[float]
    unit: str = "ms"
    limit: float | None = None
    at_least: bool = False

    @property
    def figure(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches the target; ``None`` where it has none."""
        if self.limit is None:
            return None
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true median is, about 95 % sure from 6 samples on; by ranks, as noise here is not normal."""
        ordered, count = sorted(self.samples), len(self.samples)
        outside = max(0, int(count / 2 - 0.98 * math.sqrt(count)))
        return ordered[outside], ordered[-1 - outside]

    @property
    def verdict(self) -> str:
        """Whether the target is met, and whether the noise leaves that open."""
        if self.limit is None:
            return ""
        low, high = self.interval
        return ("met" if self.met else "missed") + (", within noise" if low <= self.limit <= high else "")

    def report(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {**asdict(self), "figure": self.figure, "interval": self.interval, "verdict": self.verdict}

    def cells(self) -> tuple[str, ...]:
        """The columns of :data:`HEADINGS`."""
        sign = "at least" if self.at_least else "at most"
        return (
            self.database,
            f"{self.size:,}",
            self.label,
            f"{_short(self.figure)} {self.unit}",
            " – ".join(map(_short, self.interval)),
            "" if self.limit is None else f"{sign} {_short(self.limit)} {self.unit}",
            self.verdict,
        )


def milliseconds(results: Iterable[Result], key: str = "ms") -> list[float]:
    """One time of each result."""
    return [result[key] for result in results]


def ratios(above: Iterable[Result], below: Iterable[Result], key: str = "ms") -> list[float]:
    """The ratio of two jobs in each round."""
    return [one / other for one, other in zip(milliseconds(above, key), milliseconds(below, key), strict=True)]


HEADINGS = ("database", "N", "what", "median", "interval", "target", "verdict")


def show(rows: list[Row]) -> None:
    """Print the rows, a table for each section."""
    for section in dict.fromkeys(row.section for row in rows):
        cells = [row.cells() for row in rows if row.section == section]
        if sys.stdout.isatty():
            _show_rich(section, cells)
        else:
            _show_markdown(section, cells)


def show_verdicts(rows: Iterable[Row]) -> None:
    """Print how many targets were met."""
    targets = [row.met for row in rows if row.met is not None]
    print(f"\n{targets.count(True)} of {len(targets)} targets met by the median.")


def save(path: Path, rows: Iterable[Row], packages: Iterable[str] = (), **more: object) -> None:
    """Write the rows with all their samples, and on what machine they were taken, as JSON.

    :param packages: names of those whose versions matter.
    :param more: further entries.
    """
    machine = {
        "python": platform.python_version(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "packages": {name: version(name) for name in packages},
    }
    report = {"machine": machine, **more, "rows": [row.report() for row in rows]}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _show_rich(section: str, rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=section, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("N", "median", "interval", "target") else "left")
    for row in rows:
        table.add_row(*row, style="green" if row[-1].startswith("met") else "red" if row[-1] else None)
    Console().print(table)


def _show_markdown(section: str, rows: list[tuple[str, ...]]) -> None:
    print(f"\n{section}\n")
    for row in [HEADINGS, tuple("---" for _ in HEADINGS), *rows]:
        print(f"| {' | '.join(row)} |")


def _short(value: float) -> str:
    """Three digits that count; one more near 1, where ratios are close."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 2 else 3
    return f"{value:,.{digits}f}"
