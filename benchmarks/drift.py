"""What a comparison of models with a database costs: ``python -m benchmarks.drift [DIALECT]…``.

200 tables with 15 columns each, with keys, indexes, checks and comments; the database is as the models are. Each
comparison runs in a new process, which reads the models first. A line for each: how long the first one takes, how long
the next ones take, and how much memory the process takes at most before and afterwards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.drift.comparison import Comparison
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database
from tests.harness import servers

from .projects import sqlite_url

TABLES = 200
#: How often the comparison is repeated, to see whether memory grows.
TIMES = 5


def models(tables: int) -> sa.MetaData:
    """Tables with 15 columns each, in a chain of foreign keys."""
    metadata = sa.MetaData()
    for number in range(tables):
        name = f"table_{number:03}"
        kind = sa.Enum("new", "done", name=f"kind_{number % 10}", metadata=metadata)
        sa.Table(
            name,
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("parent_id", sa.ForeignKey(f"table_{max(0, number - 1):03}.id", ondelete="CASCADE"), index=True),
            sa.Column("name", sa.String(40), nullable=False, unique=True),
            sa.Column("email", sa.String(100), index=True, comment="as they gave it"),
            sa.Column("amount", sa.Numeric(10, 2), server_default="0.00"),
            sa.Column("count", sa.BigInteger, server_default="0"),
            sa.Column("at", sa.DateTime, server_default=sa.func.now()),
            sa.Column("kind", kind, server_default="new"),
            sa.Column("flag", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("note", sa.Text),
            *(sa.Column(f"more_{more}", sa.String(20)) for more in range(5)),
            sa.CheckConstraint("count >= 0 AND amount < 1000000", name=f"ck_{name}"),
            sa.Index(f"ix_{name}_two", "name", "at"),
        )
    return metadata


def compare(url: str, pending: bool, tables: int, times: int, pipe: Pipe) -> None:
    """Compare several times, and tell seconds and memory."""
    metadata = models(tables)
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with database.connect():
        before = _peak()
    added = Preview("pending", "new", script=["ALTER TABLE table_000 ADD COLUMN added INTEGER"])
    seconds, memory = [], []
    for _ in range(times):
        started = time.perf_counter()
        drift = Comparison().of(database, metadata, [added] if pending else [])
        seconds.append(time.perf_counter() - started)
        memory.append(_peak())
        assert len(drift.differences) == pending, drift.differences
    pipe.send({"seconds": seconds, "before": before, "memory": memory})


def _peak() -> float:
    """The most memory so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def measure(url: str, dialect: str, tables: int, times: int, *, pending: bool) -> str:
    """One line of what comparing takes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=compare, args=(url, pending, tables, times, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    first, *later = found["seconds"]
    return (
        f"{dialect}{', a migration pending' * pending}: {tables} tables, {15 * tables} columns: {first:.2f} s the "
        f"first time, then {min(later):.2f} s; memory at most {found['before']:.0f} MB before, "
        f"{found['memory'][0]:.0f} MB after the first, {found['memory'][-1]:.0f} MB after {times}"
    )


def main() -> None:
    """Measure each kind of database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialects", nargs="*", default=["sqlite", "postgresql", "mariadb"], metavar="DIALECT")
    parser.add_argument("--quick", action="store_true", help="small schemas, to see that it runs")
    arguments = parser.parse_args()
    tables, times = (10, 2) if arguments.quick else (TABLES, TIMES)
    with ExitStack() as stack:
        for dialect in arguments.dialects:
            url: URL
            if dialect == "sqlite":
                url = make_url(sqlite_url(stack.enter_context(tempfile.TemporaryDirectory())))
            elif dialect == "mariadb":
                server = servers.mariadb_server()
                if server is None:
                    print("mariadb: there is no server")
                    continue
                url = stack.enter_context(servers.new_database(server))
            else:
                url = stack.enter_context(servers.new_database(stack.enter_context(servers.postgres_server())))
            with sa.create_engine(url, poolclass=sa.pool.NullPool).begin() as connection:
                models(tables).create_all(connection)
            for pending in (False, True):
                text = url.render_as_string(hide_password=False)
                print(measure(text, dialect, tables, times, pending=pending), flush=True)


if __name__ == "__main__":
    main()
