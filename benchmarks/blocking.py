"""How long schema changes keep an application's writers waiting: ``python -m benchmarks.blocking``; see RESULTS.md."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart import DbSmart, runner
from aurum_harmony.db_smart.dialects.mariadb import editor as mariadb
from aurum_harmony.db_smart.dialects.postgresql import editor as postgresql
from aurum_harmony.db_smart.dialects.sqlite import editor as sqlite
from aurum_harmony.db_smart.errors import MigrationFailed
from aurum_harmony.db_smart.schema.rules import Refused

from .measure import Row, SampleFailed, save, show
from .projects import new_database, sqlite_url

WAIT = "Longest wait of a writer while a table is changed"
READER = "The same beside a reader whose transaction is open for {seconds:g} s"
DURATION = "How long the change took"
WRITERS = 4
#: Between two statements of a writer, seconds.
PACE = 0.002

#: What a change would import while it is measured.
PRELOADED = (mariadb, postgresql, runner, sqlite)

_fork = multiprocessing.get_context("fork")
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}
_PACKAGES = ("SQLAlchemy", "alembic", "psycopg", "PyMySQL")
_MODULE = """\
from aurum_harmony.db_smart import migration
from benchmarks.blocking import CASES

@migration(destructive=True)
def change_{number}(op):
    CASES[{case!r}](op)
"""
_TOKEN = {"postgresql": "CAST(gen_random_uuid() AS VARCHAR)", "mysql": "(uuid())", "sqlite": "(hex(randomblob(16)))"}
#: A thousand numbers, squared.
_FILL = """
    INSERT INTO items (id, name, email, owner_id, score, note, spare)
    SELECT a.id + 1000 * (b.id - 1), 'somebody', {email}, a.id, a.id, 'some words', b.id FROM owners AS a, owners AS b
    WHERE a.id + 1000 * (b.id - 1) <= {rows}
"""


def _add_token(op: Any) -> None:
    default = sa.text(_TOKEN[_dialect(op)])
    op.add_column("items", sa.Column("token", sa.String(36), nullable=False, server_default=default))


def _dialect(op: Any) -> str:
    context = getattr(op, "migration_context", None)
    return str(context.dialect.name if context is not None else op.inspector.dialect.name)


#: The same calls for Alembic's operations and for ours.
CASES: dict[str, Callable[[Any], object]] = {
    "add_column, NOT NULL with a default": lambda op: op.add_column(
        "items", sa.Column("level", sa.Integer, nullable=False, server_default="1")
    ),
    "add_column, NOT NULL, default for each row": _add_token,
    "create_index": lambda op: op.create_index("ix_items_name_score", "items", ["name", "score"]),
    "create_unique_constraint": lambda op: op.create_unique_constraint("uq_items_email", "items", ["email"]),
    "create_foreign_key": lambda op: op.create_foreign_key("fk_owner", "items", "owners", ["owner_id"], ["id"]),
    "create_check_constraint": lambda op: op.create_check_constraint("ck_score", "items", "score >= 0"),
    "alter_column, nullable=False": lambda op: op.alter_column(
        "items", "score", nullable=False, existing_type=sa.Integer()
    ),
    "alter_column, a wider VARCHAR": lambda op: op.alter_column(
        "items", "name", type_=sa.String(60), existing_type=sa.String(50), existing_nullable=False
    ),
    "drop_index": lambda op: op.drop_index("ix_items_note", "items"),
    "drop_column": lambda op: op.drop_column("items", "spare"),
}


@dataclass(frozen=True)
class Options:
    """What to run; see :func:`_parser`."""

    cases: tuple[str, ...]
    rows: int
    rounds: int
    idle_seconds: float
    reader_seconds: float


@dataclass(frozen=True)
class Sample:
    """What one change did.

    :ivar wait: the longest wait of a writer, seconds.
    :ivar duration: of the change, seconds.
    :ivar errors: how many statements of the writers failed.
    :ivar refused: the rule by which it was refused; ``None`` where it was made.
    """

    wait: float
    duration: float
    errors: int = 0
    refused: str | None = None


class Table:
    """The table that is changed, in a database of its own.

    :param url: the database.
    :param directory: where the migrations are written.
    """

    def __init__(self, url: str, directory: Path, options: Options) -> None:
        self.url = url
        self.dialect = make_url(url).get_backend_name()
        self._directory = directory
        self._options = options
        self._changes = 0
        metadata = sa.MetaData()
        owners = sa.Table("owners", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
        sa.Table(
            "items",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("name", sa.String(50), nullable=False),
            sa.Column("email", sa.String(50)),
            sa.Column("owner_id", sa.Integer),
            sa.Column("score", sa.Integer),
            sa.Column("note", sa.String(50), index=True),
            sa.Column("spare", sa.Integer),
        )
        self._metadata = metadata
        with _engine(url).begin() as connection:
            owners.create(connection)
            connection.execute(owners.insert(), [{"id": number} for number in range(1, 1001)])

    def renew(self) -> None:
        """Create the table again."""
        items = self._metadata.tables["items"]
        email = "concat(a.id, '-', b.id)" if self.dialect == "mysql" else "a.id || '-' || b.id"
        with _engine(self.url).begin() as connection:
            items.drop(connection, checkfirst=True)
            items.create(connection)
            connection.exec_driver_sql(_FILL.format(email=email, rows=self._options.rows))
        if self.dialect == "postgresql":
            with _engine(self.url, isolation_level="AUTOCOMMIT").connect() as connection:
                connection.exec_driver_sql("VACUUM ANALYZE items")

    def ours(self, case: str) -> Callable[[Pipe], None]:
        """What boots with one new migration."""
        self._changes += 1
        module = f"blocking_{self.dialect}_{self._changes}"
        self._directory.joinpath(f"{module}.py").write_text(_MODULE.format(number=self._changes, case=case))

        def work(pipe: Pipe) -> None:
            app = Flask("bench", instance_path=str(self._directory / self.dialect))
            app.config["SQLALCHEMY_DATABASE_URI"] = self.url
            smart = DbSmart(app, SQLAlchemy(app), migrations=module)
            started = time.perf_counter()
            try:
                smart.boot(app)
                pipe.send((time.perf_counter() - started, None))
            except MigrationFailed as error:
                if not isinstance(error.__cause__, Refused):
                    raise
                pipe.send((time.perf_counter() - started, error.__cause__.rule.id))

        return work

    def alembic(self, case: str) -> Callable[[Pipe], None]:
        """What does the same by Alembic's operations, in one transaction."""

        def work(pipe: Pipe) -> None:
            engine = _engine(self.url)
            started = time.perf_counter()
            with engine.begin() as connection:
                CASES[case](Operations(MigrationContext.configure(connection)))
            pipe.send((time.perf_counter() - started, None))

        return work

    def idle(self, pipe: Pipe) -> None:
        """What changes nothing."""
        time.sleep(self._options.idle_seconds)
        pipe.send((self._options.idle_seconds, None))

    def sample(self, work: Callable[[Pipe], None], *, reader: bool = False) -> Sample:
        """Change the table while clients write to it.

        :param reader: whether a transaction that has read the table is open meanwhile.
        :raises SampleFailed: a process failed.
        """
        window, stop, ready = _fork.Event(), _fork.Event(), _fork.Barrier(WRITERS + 1)
        with _started(
            *(self._writing(number, window, stop, ready) for number in range(1, WRITERS + 1)), stop=stop
        ) as writers:
            ready.wait(60)
            with _started(*[self._reading] * reader) as readers:
                for pipe in readers:
                    pipe.recv()
                window.set()
                with _started(work) as (worker,):
                    duration, refused = _received(worker)
            stop.set()
            found = [_received(writer) for writer in writers]
        return Sample(max(wait for wait, _ in found), duration, sum(errors for _, errors in found), refused)

    def _writing(self, number: int, window: Any, stop: Any, ready: Any) -> Callable[[Pipe], None]:
        """A client that updates and inserts by key, each in a transaction of its own."""
        update = sa.text("UPDATE items SET score = :score WHERE id = :id")
        insert = sa.text(
            "INSERT INTO items (id, name, email, owner_id, score, note) VALUES (:id, 'new', :email, 1, 1, 'new')"
        )

        def write(pipe: Pipe) -> None:
            longest, errors, count = 0.0, 0, 0
            draw = random.Random(number)
            with _engine(self.url).connect() as connection:
                while not stop.is_set():
                    seen, started = window.is_set(), time.perf_counter()
                    try:
                        if count % 4:
                            connection.execute(update, {"score": count, "id": draw.randint(1, self._options.rows)})
                        else:
                            new = number * 100_000_000 + count
                            connection.execute(insert, {"id": new, "email": f"new-{new}"})
                        connection.commit()
                    except sa.exc.OperationalError:  # a deadlock, a time-out
                        connection.rollback()
                        errors += 1
                    if seen or window.is_set():
                        longest = max(longest, time.perf_counter() - started)
                    if not count:
                        ready.wait(60)
                    count += 1
                    time.sleep(PACE)
            pipe.send((longest, errors))

        return write

    def _reading(self, pipe: Pipe) -> None:
        with _engine(self.url).connect() as connection:
            connection.execute(sa.text("SELECT note FROM items WHERE id = 1")).all()
            pipe.send(None)
            time.sleep(self._options.reader_seconds)


@contextmanager
def _started(*targets: Callable[[Pipe], None], stop: Any = None) -> Iterator[list[Pipe]]:
    """Run functions in processes of their own, each with a pipe to here, and wait for their end."""
    pipes, processes = [], []
    for target in targets:
        mine, theirs = _fork.Pipe()
        process = _fork.Process(target=target, args=(theirs,))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        yield pipes
    finally:
        if stop is not None:
            stop.set()
        for process in processes:
            process.join()


def _received(pipe: Pipe) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise SampleFailed("A process failed; its traceback is above.") from None


def _engine(url: str, **options: Any) -> sa.Engine:
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 600}
    return sa.create_engine(url, poolclass=sa.pool.NullPool, **options)


def measure(table: Table, options: Options) -> tuple[list[Row], list[str]]:
    """All changes to one table.

    :returns: the figures, and what was refused or failed.
    """
    database = _NAMES[table.dialect]
    waits: dict[tuple[str, str], list[float]] = {}
    durations: dict[str, list[float]] = {}
    remarks: dict[str, None] = {}
    contenders = {"db-smart": table.ours, "Alembic": table.alembic}
    reader = READER.format(seconds=options.reader_seconds)
    # Alembic changes constraints and columns of SQLite only by its batch mode, which is another way of writing it.
    plain = options.cases if table.dialect != "sqlite" else ()
    runs = [(WAIT, case, name) for case in options.cases for name in contenders if name == "db-smart" or case in plain]
    if table.dialect != "sqlite":
        runs += [(reader, options.cases[0], name) for name in contenders]
    runs.append((WAIT, "no change", ""))
    for number in range(1, options.rounds + 1):
        for section, case, name in random.Random(number).sample(runs, len(runs)):
            label = f"{case}: {name}" if name else case
            print(f"{database}, round {number} of {options.rounds}: {label}", file=sys.stderr)
            table.renew()
            work = contenders[name](case) if name else table.idle
            sample = table.sample(work, reader=section != WAIT)
            if sample.refused is not None:
                remarks[f"{database}: {label}: refused by {sample.refused}"] = None
                continue
            if sample.errors:
                remarks[f"{database}: {label}: {sample.errors} statements of writers failed in round {number}"] = None
            waits.setdefault((section, label), []).append(sample.wait * 1000)
            if section == WAIT and name:
                durations.setdefault(label, []).append(sample.duration * 1000)
    rows = []
    for section, case, name in runs:
        label = f"{case}: {name}" if name else case
        if (section, label) in waits:
            rows.append(Row(section, database, options.rows, label, waits[section, label]))
        if section == WAIT and label in durations:
            rows.append(Row(DURATION, database, options.rows, label, durations[label]))
    return rows, list(remarks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocking", description=__doc__)
    parser.add_argument("--url", action="append", default=[], help="a server, such as postgresql://user@host/postgres")
    parser.add_argument("--rows", type=int, help="rows of the table (1,000,000; at most that)")
    parser.add_argument("--rounds", type=int, help="samples of each figure (3)")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, every third change, 1 round: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, with all samples")
    return parser


def main() -> int:
    """Measure and print; the exit code is 1 where something cannot run."""
    arguments = _parser().parse_args()
    quick = arguments.quick
    options = Options(
        tuple(CASES)[:: 3 if quick else 1],
        arguments.rows or (2000 if quick else 1_000_000),
        arguments.rounds or (1 if quick else 3),
        0.2 if quick else 5.0,
        0.2 if quick else 5.0,
    )
    rows: list[Row] = []
    remarks: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="db-smart-bench-") as directory:
            sys.path.insert(0, directory)
            for server in [*arguments.url, None]:
                with nullcontext() if server is None else new_database(server) as made:
                    url = sqlite_url(directory) if made is None else made.render_as_string(hide_password=False)
                    found = measure(Table(url, Path(directory), options), options)
                rows += found[0]
                remarks += found[1]
    except (SampleFailed, sa.exc.SQLAlchemyError) as error:
        print(error, file=sys.stderr)
        return 1
    show(sorted(rows, key=lambda row: (row.section == DURATION, row.section != WAIT)))
    print("\n" + "\n".join(remarks))
    if arguments.json is not None:
        save(arguments.json, rows, _PACKAGES, options=asdict(options), remarks=remarks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
