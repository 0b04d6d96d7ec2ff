"""What a fleet costs: ``python -m benchmarks.fleet [--url postgresql://user@host/postgres]``.

Many SQLite files, and with ``--url`` many schemas of one PostgreSQL database. Three lines for each: a run that has
nothing to do, beside its query alone; a run with one pending migration, beside a bare loop that has the same executor
migrate the same tenants without ledger, limits and lease, and beside ``upgrade()`` of Flask-Migrate one after the
other; and how the memory grows over a run. What a tenant takes is projected to 100,000 of them.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import flask_migrate  # type: ignore[import-untyped]
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmart, Fleet
from aurum_harmony.db_smart.store.tables import fleet as ledger_table
from tests.harness import servers

WORKERS = 4
PROJECTED = 100_000
_MODULE = "fleet_benchmark_migrations"
_MIGRATION = """
@migration
def step_{number}(op):
    op.{what}
"""
_TABLE = 'create_table("items", Column("id", Integer, primary_key=True))'
_REVISION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = {name!r}, {down!r}
def upgrade():
    op.{what}
"""


@dataclass
class Setting:
    """An application with a fleet.

    :ivar names: of its tenants.
    :ivar place: the URL of a tenant, or its schema.
    """

    directory: Path
    control: URL
    names: list[str]
    place: Callable[[str], Any]
    schemas: bool

    def write(self, count: int) -> None:
        """Have so many migrations: a table, and columns of it."""
        steps = [_TABLE, *(f'add_column("items", Column("c{number}", Integer))' for number in range(1, count))]
        text = "from sqlalchemy import Column, Integer\nfrom aurum_harmony.db_smart import migration\n"
        text += "".join(_MIGRATION.format(number=number, what=what) for number, what in enumerate(steps))
        (self.directory / f"{_MODULE}.py").write_text(text, encoding="utf-8")

    @contextmanager
    def fleet(self) -> Iterator[tuple[Flask, Fleet]]:
        """The fleet as a new process has it."""
        sys.modules.pop(_MODULE, None)
        app = Flask("fleet", instance_path=str(self.directory / "instance"))
        app.config.update(SQLALCHEMY_DATABASE_URI=self.control, DB_SMART_SNAPSHOTS=0)
        db = SQLAlchemy(app)
        where: Any = {"schema": self.place} if self.schemas else {"url": self.place}
        fleet = Fleet(DbSmart(app, db, migrations=_MODULE), tenants=lambda: iter(self.names), **where)
        try:
            with app.app_context():
                yield app, fleet
                db.engine.dispose()
        finally:
            fleet.close()


def memory() -> float:
    """The most memory so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def migrated(setting: Setting) -> tuple[float, list[float]]:
    """Seconds that a run over the fleet takes, and the memory after each quarter of it."""
    found: list[float] = []

    def listen(run: Any, result: Any) -> None:
        done = sum(run.counts.values())
        if result is not None and done % max(1, run.total // 4) == 0:
            found.append(memory())

    with setting.fleet() as (_, fleet):
        run = fleet.migrate(workers=WORKERS, listener=listen)
    if run.counts["applied"] != len(setting.names):
        raise SystemExit(f"the run failed: {run}")
    return run.duration, found


def bare(setting: Setting) -> float:
    """Seconds that a loop takes without ledger, limits and lease."""
    with setting.fleet() as (app, fleet):
        crew = fleet.crew(app)
        crew.load()
        started = time.perf_counter()
        with ThreadPoolExecutor(WORKERS) as pool:
            results = list(pool.map(crew.bring, setting.names))
        if {one.status for one in results} != {"applied"}:
            raise SystemExit(f"the loop failed: {results[0]}")
        return time.perf_counter() - started


def nothing(setting: Setting, rounds: int) -> tuple[float, float]:
    """Seconds of a run that has nothing to do, and of its query and the names alone."""
    runs, queries = [], []
    for _ in range(rounds):
        with setting.fleet() as (app, fleet):
            run = fleet.migrate()
            if run.counts["up_to_date"] != len(setting.names):
                raise SystemExit(f"something was to do: {run}")
            runs.append(run.duration)
            source = fleet.crew(app).noted
            with fleet.ledger(app).database.connect() as connection:
                started = time.perf_counter()
                query = sa.select(ledger_table.c.name).where(ledger_table.c.source == source)
                head = set(connection.scalars(query))
                if not all(name in head for name in setting.names):
                    raise SystemExit("a name is missing")
                queries.append(time.perf_counter() - started)
    return min(runs), min(queries)


def by_flask_migrate(setting: Setting, count: int) -> float:
    """Seconds for each tenant of a loop of ``upgrade()``, in new files, from the first revision to the second."""
    directory = setting.directory / "revisions"
    app = Flask("peer", instance_path=str(setting.directory / "peer"))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    flask_migrate.Migrate(app, SQLAlchemy(app), str(directory))
    silent = redirect_stdout(StringIO()), redirect_stderr(StringIO())
    with app.app_context(), silent[0], silent[1]:
        flask_migrate.init()
    column = 'add_column("items", sa.Column("c1", sa.Integer))'
    table = _TABLE.replace("Column", "sa.Column").replace("Integer", "sa.Integer")
    for name, down, what in (("one", None, table), ("two", "one", column)):
        text = _REVISION.format(name=name, down=down, what=what)
        (directory / "versions" / f"{name}.py").write_text(text, encoding="utf-8")
    took = 0.0
    for number in range(count):
        app = Flask("peer", instance_path=str(setting.directory / "peer"))
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{setting.directory}/peer{number}.sqlite"
        db = SQLAlchemy(app)
        flask_migrate.Migrate(app, db, str(directory))
        with app.app_context(), redirect_stderr(StringIO()):
            flask_migrate.upgrade(revision="one")
            started = time.perf_counter()
            flask_migrate.upgrade(revision="two")
            took += time.perf_counter() - started
            db.engine.dispose()
    return took / count


def measure(title: str, setting: Setting, rounds: int) -> None:
    """Measure one kind of tenants."""
    count = len(setting.names)
    setting.write(1)
    migrated(setting)
    run, query = nothing(setting, rounds)
    print(f"{title}: nothing to do: {run * 1000:.0f} ms, its query alone {query * 1000:.0f} ms", flush=True)
    setting.write(2)
    alone = bare(setting)
    setting.write(3)
    took, found = migrated(setting)
    each = took / count
    print(
        f"{title}: one pending: {count / took:.0f} tenants/s, a bare loop {count / alone:.0f}/s "
        f"({alone / took:.2f} x); {PROJECTED:,} tenants would take {each * PROJECTED / 60:.0f} min"
    )
    print(f"{title}: memory after each quarter: {', '.join(f'{one:.0f}' for one in found)} MB", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tenants, to see that it runs")
    parser.add_argument("--tenants", type=int, default=10_000, metavar="N", help="SQLite files")
    parser.add_argument("--schemas", type=int, default=1_000, metavar="N", help="PostgreSQL schemas")
    parser.add_argument("--url", metavar="URL", help="a PostgreSQL server")
    arguments = parser.parse_args()
    tenants, schemas, rounds, peers = arguments.tenants, arguments.schemas, 5, 20
    if arguments.quick:
        tenants, schemas, rounds, peers = 8, 4, 1, 2
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sys.path.insert(0, str(directory))
        (directory / "tenants").mkdir()
        names = [f"t{number}" for number in range(tenants)]
        control = URL.create("sqlite", database=str(directory / "control.sqlite"))
        files = Setting(directory, control, names, lambda name: f"sqlite:///{directory}/tenants/{name}.sqlite", False)
        measure(f"{tenants:,} SQLite files", files, rounds)
        peer = by_flask_migrate(files, peers)
        print(
            f"SQLite: upgrade() of Flask-Migrate, one after the other: {1 / peer:.0f} tenants/s; {PROJECTED:,} tenants "
            f"would take {peer * PROJECTED / 60:.0f} min"
        )
        if arguments.url:
            url = stack.enter_context(
                servers.new_database(make_url(arguments.url).set(drivername="postgresql+psycopg"))
            )
            names = [f"t{number}" for number in range(schemas)]
            with sa.create_engine(url, poolclass=sa.pool.NullPool).begin() as connection:
                for name in names:
                    connection.exec_driver_sql(f"CREATE SCHEMA {name}")
            measure(f"{schemas:,} PostgreSQL schemas", Setting(directory, url, names, str, True), rounds)


if __name__ == "__main__":
    main()
