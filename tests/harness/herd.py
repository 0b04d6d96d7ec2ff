"""Boot many processes at once and count failures and repeated effects: ``python -m tests.harness.herd URL``.

The processes are forked after import and wait for one starting signal. Four rounds: on an empty database, with one
migration pending, with none but no flag, and with none and a flag. Several URLs are the nodes of one cluster. With
``--revisions`` the migrations are revisions of Alembic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_migrate import Migrate  # type: ignore[import-untyped]
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked

MODULE = "herd_migrations"
FIRST = """
from sqlalchemy import Column, Integer, String
from aurum_harmony.db_smart import migration

@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(50)))
"""
MORE = """
from sqlalchemy import Column, Integer
from aurum_harmony.db_smart import migration

@migration
def effect_{number}(op):
    op.add_column("effects", Column("c{number}", Integer))
    op.execute("INSERT INTO effects (name) VALUES ('{number}')")
"""
#: The same as revisions: of the first one, and of those that come after it.
FIRST_REVISION = """
op.create_table("effects", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50)))
"""
MORE_REVISION = """
op.add_column("effects", sa.Column("c{number}", sa.Integer))
op.execute("INSERT INTO effects (name) VALUES ('{number}')")
"""


class Package:
    """A package of migrations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / MODULE
        self._folder.mkdir()
        (self._folder / "__init__.py").write_text(FIRST)

    def add(self, number: int) -> None:
        """Write one more."""
        (self._folder / f"m{number:04}.py").write_text(MORE.format(number=number))
        shutil.rmtree(self._folder / "__pycache__", ignore_errors=True)


class Directory(Package):
    """A directory of revisions."""

    def __init__(self, folder: Path) -> None:
        self._project = AlembicProject(folder, MODULE, "sqlite://")
        with redirect_stdout(sys.stderr):
            self._project.init()
        self._project.revision("r0000", None, FIRST_REVISION)

    def add(self, number: int) -> None:
        """Write one more."""
        self._project.revision(f"r{number:04}", f"r{number - 1:04}", MORE_REVISION.format(number=number))


ROUNDS = ("cold", "one pending", "no flag", "flag")


def boot(folder: Path, url: str, flag: str, start: int, told: int) -> None:
    """Wait for the starting signal, boot, and tell the number of connections, statements and writes."""
    counts: Counter[str] = Counter(connections=0, statements=0, writes=0)

    def connected(*_: Any) -> None:
        counts["connections"] += 1

    def sent(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        counts["statements"] += 1
        counts["writes"] += not statement.lstrip().startswith("SELECT")

    sa.event.listen(sa.pool.Pool, "connect", connected)
    sa.event.listen(sa.Engine, "before_cursor_execute", sent)
    app = Flask("herd", instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DB_SMART_FLAG=flag, DB_SMART_LOCK_TIMEOUT=300)
    db = SQLAlchemy(app)
    if (folder / MODULE / "env.py").exists():
        Migrate(app, db, str(folder / MODULE))
        smart = DbSmart(app, db, alembic=True)
    else:
        smart = DbSmart(app, db, migrations=MODULE)
    os.read(start, 1)
    smart.boot(app)
    os.write(told, json.dumps(counts).encode() + b"\n")


def herd(folder: Path, urls: list[str], processes: int, *, own_flags: bool) -> Counter[str]:
    """Boot many at once, spread over the URLs, each with a flag of its own or with one for each URL.

    :returns: how many failed, and the sums of what they sent.
    """
    start, go = os.pipe()
    hear, told = os.pipe()
    pids = []
    for number in range(processes):
        host = number % len(urls)
        flag = f"flag_of_process_{number}" if own_flags else f"flag{host}"
        pids.append(forked(boot, folder, urls[host], flag, start, told))
    os.write(go, b"x" * processes)
    for end in (go, start, told):
        os.close(end)
    counts: Counter[str] = Counter(failed=0)
    with open(hear) as lines:
        for line in lines:
            counts.update(json.loads(line))
    counts["failed"] = sum(ended(pid) != 0 for pid in pids)
    return counts


def main() -> None:
    """Run the rounds and print what they came to as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="+", help="several for the nodes of one cluster")
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--migrations", type=int, default=100)
    parser.add_argument("--revisions", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = (Directory if arguments.revisions else Package)(folder)
        for number in range(1, arguments.migrations):
            package.add(number)
        sys.path.insert(0, name)
        urls = [url if "://" in url else f"sqlite:///{name}/herd.sqlite" for url in arguments.urls]
        engine = sa.create_engine(urls[0], poolclass=sa.pool.NullPool)
        report: dict[str, object] = {}
        for round_name in ROUNDS:
            if round_name == "one pending":
                package.add(arguments.migrations)
            elif round_name == "no flag":
                for flag in folder.glob("flag_of_process_*"):
                    flag.unlink()
            # The round "one pending" leaves behind the flags that the last one finds.
            counts = herd(folder, urls, arguments.processes, own_flags=round_name in ("cold", "no flag"))
            with engine.connect() as connection:
                if len(urls) > 1:  # what another node has committed may not be here yet
                    connection.exec_driver_sql("SET wsrep_sync_wait = 1")
                effects = Counter(connection.scalars(sa.text("SELECT name FROM effects")))
                token = connection.scalar(sa.text("SELECT token FROM db_smart_state"))
            repeated = sum(count > 1 for count in effects.values())
            report[round_name] = {**counts, "effects": len(effects), "repeated": repeated, "token": token}
        print(json.dumps(report))


if __name__ == "__main__":
    main()
