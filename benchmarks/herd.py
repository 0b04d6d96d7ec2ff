"""Many boots at once against one: ``python -m benchmarks.herd``. See RESULTS.md for what the figures mean."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.dialects.base import facts_of
from aurum_harmony.db_smart.store.database import Database

from .boot import SETTLED
from .measure import Row, SampleFailed, save, show, show_verdicts
from .projects import (
    MODULE,
    Project,
    count_columns,
    create_items,
    make_app,
    new_database,
    project,
    sqlite_url,
    write_package,
)

SECTIONS = {
    True: "One host: all processes share the flag's folder",
    False: "A host each: every process has a folder of its own",
}

#: How long the server may list a connection that its client has closed, seconds.
_LINGER = 0.1
#: A round that takes longer hangs, seconds.
_TOO_LONG = 900
_COUNT = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = :name",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = :name",
}
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}

# Whatever was imported is there in every process: these are the boots of a server that loads its application first.
_fork = mp.get_context("fork")


class Watch:
    """Counts what the processes do, in memory that they share.

    :ivar kinds: what a process without the lock has a connection for (level 2, a try for the lock), and the holder's.
    """

    kinds = ("asking", "trying", "holding")

    def __init__(self) -> None:
        self._now = _fork.Array("i", len(self.kinds))
        self._peaks = _fork.Array("i", len(self.kinds))
        self._opened = _fork.Value("i")
        self._refused = _fork.Value("i")
        self._kind = 0

    @property
    def in_a_try(self) -> int:
        """How many processes ask or try at this moment."""
        return sum(self._now[:2])

    @property
    def report(self) -> dict[str, int]:
        """The most of each kind at once, how many connections were opened, and how many the server refused."""
        peaks = {f"peak {kind}": self._peaks[number] for number, kind in enumerate(self.kinds)}
        return {**peaks, "opened": self._opened.value, "refused": self._refused.value}

    def install(self) -> None:
        """Count in this process from now on."""
        from aurum_harmony.db_smart.store.lock import Lock

        connect, held = Database.connect, Lock.held

        @contextmanager
        def counted_connect(database: Database, **options: Any) -> Iterator[sa.Connection]:
            kind = self._kind
            with self._now.get_lock():
                self._now[kind] += 1
                self._peaks[kind] = max(self._peaks[kind], self._now[kind])
            try:
                with connect(database, **options) as connection:
                    with self._opened.get_lock():
                        self._opened.value += 1
                    yield connection
            finally:
                with self._now.get_lock():
                    self._now[kind] -= 1

        @contextmanager
        def counted_held(lock: Lock, done: Any) -> Iterator[bool]:
            self._kind = 1
            try:
                with held(lock, done) as taken:
                    self._kind = 2 if taken else 0
                    yield taken
            finally:
                self._kind = 0

        def counted_full(full: Callable[[BaseException], bool]) -> Callable[[BaseException], bool]:
            def counted(error: BaseException) -> bool:
                refused = full(error)
                if refused:
                    with self._refused.get_lock():
                        self._refused.value += 1
                return refused

            return counted

        servers = facts_of("postgresql"), facts_of("mysql")
        for owner, name, value in (
            (Database, "connect", counted_connect),
            (Lock, "held", counted_held),
            *((facts, "full", counted_full(facts.full)) for facts in servers),
        ):
            setattr(owner, name, value)


@contextmanager
def sampled(url: str, server: str, watch: Watch, found: dict[str, int]) -> Iterator[None]:
    """Sample the connections of a database on its server as often as can be, from another process and database.

    :param found: gets the most ``connections`` at once, the most ``beyond`` those in a try, and how many ``samples``.
    """
    stop, (mine, theirs) = _fork.Event(), _fork.Pipe()
    process = _fork.Process(target=_sample, args=(url, server, watch, stop, theirs))
    process.start()
    assert mine.recv() == "ready"
    try:
        yield
    finally:
        stop.set()
        found.update(mine.recv())
        process.join()


def _sample(url: str, server: str, watch: Watch, stop: Any, pipe: Any) -> None:
    target = make_url(url)
    counting = sa.text(_COUNT[target.get_backend_name()])
    engine = sa.create_engine(_driver(server), poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    found = {"connections": 0, "beyond": 0, "samples": 0}
    tries: deque[tuple[float, int]] = deque()
    with engine.connect() as connection:
        pipe.send("ready")
        while not stop.is_set():
            tries.append((time.monotonic(), watch.in_a_try))
            count = connection.scalar(counting, {"name": target.database}) or 0
            tries.append((time.monotonic(), watch.in_a_try))
            while tries[0][0] < tries[-1][0] - _LINGER:
                tries.popleft()
            found["connections"] = max(found["connections"], count)
            found["beyond"] = max(found["beyond"], count - max(number for _, number in tries))
            found["samples"] += 1
    pipe.send(found)


def boots(projects: list[Project], watch: Watch | None = None) -> float:
    """Boot all at once, each in a process of its own, forked before with its application made.

    :returns: from the starting signal to the end of the last process, milliseconds.
    :raises SampleFailed: a boot failed.
    """
    ready = _fork.Semaphore(0)
    start, go = os.pipe()
    processes = [_fork.Process(target=_boot, args=(one, ready, start, go, watch)) for one in projects]
    for process in processes:
        process.start()
    os.close(start)
    for _ in processes:
        ready.acquire()
    started = time.perf_counter()
    os.close(go)
    for process in processes:
        process.join(_TOO_LONG)
    taken = (time.perf_counter() - started) * 1000
    failed = [process for process in processes if process.exitcode != 0]
    for process in failed:
        process.kill()
    if failed:
        raise SampleFailed(f"{len(failed)} of {len(processes)} boots failed.")
    return taken


def _boot(project: Project, ready: Any, start: int, go: int, watch: Watch | None) -> None:
    app, db = make_app(project)
    smart = DbSmart(app, db, migrations=MODULE)
    if watch is not None:
        watch.install()
    os.close(go)
    ready.release()
    os.read(start, 1)
    smart.boot(app)


@dataclass(frozen=True)
class Options:
    """What to run; see :func:`_parser`."""

    processes: int
    migrations: int
    rounds: int


class Herd:
    """One kind of database, one layout of folders.

    :param server: URL of the server, ``None`` for SQLite.
    :param shared: whether all processes share the folder of the flag.
    """

    def __init__(self, directory: Path, options: Options, server: str | None, shared: bool) -> None:
        self._options = options
        self._server = server
        self._shared = shared
        self._base = project(directory, options.migrations, None if server is None else make_url(server))
        self.samples: dict[str, list[float]] = {}

    def round(self, number: int) -> None:
        """Take every figure once; those that are compared right after each other, in turning order."""
        parts: list[Callable[[], None]] = [self._one_by_one, self._all_at_once]
        for part in parts if number % 2 else reversed(parts):
            part()
        above, *below = (self.samples[name][-1] for name in ("cold", "one cold", "warm"))
        self._keep("ratio", above / sum(below))
        if self._server is not None:
            self._connections(self._server)

    def _one_by_one(self) -> None:
        with self._empty() as projects:
            self._keep("one cold", boots(projects[:1]))
            self._spread_flag(projects)
            self._keep("warm", boots(projects[1:]))

    def _all_at_once(self) -> None:
        with self._empty() as projects:
            self._keep("cold", boots(projects))

    def _connections(self, server: str) -> None:
        """In boots of their own, as the sampling takes a good part of a processor."""
        with self._empty() as projects:
            for kind in ("cold", "warm"):
                watch, found = Watch(), dict[str, int]()
                with sampled(projects[0].url, server, watch, found):
                    boots(projects, watch)
                for name, value in {**watch.report, **found}.items():
                    self._keep(f"{kind} {name}", value)

    def _keep(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    @contextmanager
    def _empty(self) -> Iterator[list[Project]]:
        """All processes' view of a new database, which holds every column at the end."""
        instance = tempfile.mkdtemp(dir=self._base.instance)
        with nullcontext() if self._server is None else new_database(self._server) as url:
            text = sqlite_url(instance) if url is None else url.render_as_string(hide_password=False)
            create_items(text)
            folders = [Path(instance, "all" if self._shared else str(one)) for one in range(self._options.processes)]
            yield [replace(self._base, instance=str(folder), url=text) for folder in folders]
            added = count_columns(text) - 1
            if added != self._options.migrations:
                raise SampleFailed(f"{added} of {self._options.migrations} columns were added.")

    @staticmethod
    def _spread_flag(projects: list[Project]) -> None:
        first, *others = (Path(one.instance, ".db_migration_completed") for one in projects)
        for path in {*others} - {first}:
            path.parent.mkdir()
            path.write_bytes(first.read_bytes())

    def rows(self) -> list[Row]:
        """All figures."""
        section, count = SECTIONS[self._shared], self._options.processes
        database = _NAMES[make_url(self._base.url if self._server is None else self._server).get_backend_name()]
        target = 1.5 if database == "PostgreSQL" and self._shared else None
        labels: list[tuple[str, str, str, float | None]] = [
            ("one cold", "1 cold boot alone", "ms", None),
            ("warm", f"{count - 1} warm boots at once", "ms", None),
            ("cold", f"{count} cold boots at once", "ms", None),
            ("ratio", f"{count} cold / (1 cold + {count - 1} warm)", "x", target),
        ]
        if self._server is not None:
            labels += [
                ("cold connections", f"{count} cold: peak of connections", "", None),
                ("cold beyond", f"{count} cold: peak of connections beyond the processes in a try", "", 3),
                *((f"cold peak {kind}", f"{count} cold: peak of connections {kind}", "", None) for kind in Watch.kinds),
                ("cold opened", f"{count} cold: connections in all", "", None),
                ("cold refused", f"{count} cold: refused by the server", "", None),
                ("warm opened", f"{count} warm: connections in all", "", 0),
                ("warm connections", f"{count} warm: peak of connections", "", 0),
            ]
        return [
            Row(section, database, self._options.migrations, label, self.samples[name], unit, limit)
            for name, label, unit, limit in labels
        ]


def _driver(server: str) -> sa.URL:
    url = make_url(server)
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.herd", description=__doc__)
    parser.add_argument("--url", action="append", default=[], help="a server, such as postgresql://user@host/postgres")
    parser.add_argument("--processes", type=int, help="boots at once (200)")
    parser.add_argument("--migrations", type=int, help="how many are to be applied (100)")
    parser.add_argument("--rounds", type=int, help="samples of each figure (5)")
    parser.add_argument("--hosts", action="store_true", help="also with a folder, and so a flag, for each process")
    parser.add_argument("--quick", action="store_true", help="12 processes, 10 migrations, 1 round: does it all run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, with all samples")
    return parser


def main() -> int:
    """Measure and print; the exit code is 1 where a boot fails or a warm one opens a connection."""
    arguments = _parser().parse_args()
    quick = arguments.quick
    options = Options(
        arguments.processes or (12 if quick else 200),
        arguments.migrations or (10 if quick else 100),
        arguments.rounds or (1 if quick else 5),
    )
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db-smart-bench-")))
            base = project(directory, options.migrations)
            write_package(base)
            sys.path.insert(0, base.directory)
            time.sleep(SETTLED)  # a younger file would cost every warm boot a read of it
            layouts = (True, False) if quick or arguments.hosts else (True,)
            herds = [Herd(directory, options, url, shared) for url in (None, *arguments.url) for shared in layouts]
            for number in range(1, options.rounds + 1):
                print(f"Round {number} of {options.rounds}", file=sys.stderr)
                for herd in herds:
                    herd.round(number)
            rows = sorted((row for herd in herds for row in herd.rows()), key=lambda row: row.section, reverse=True)
    except (SampleFailed, SQLAlchemyError) as error:
        print(error, file=sys.stderr)
        return 1
    show(rows)
    show_verdicts(rows)
    if arguments.json is not None:
        save(arguments.json, rows, options=vars(options))
    return 1 if any(row.limit == 0 and not row.met for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
