"""Boot many processes at once and count failures and repeated effects: ``python -m tests.herd URL [--processes N]``.

The processes are forked after import and wait for one starting signal. Three rounds: on an empty database, with one
migration pending, and with none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart

from .crash import ended, forked

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


def boot(folder: Path, url: str, own_flag: bool, start: int) -> None:
    """Wait for the starting signal and boot, with a flag of its own where every host has one."""
    flag = f"flag{os.getpid()}" if own_flag else ".db_migration_completed"
    app = Flask("herd", instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DB_SMART_FLAG=flag, DB_SMART_LOCK_TIMEOUT=120)
    db = SQLAlchemy(app)
    smart = DbSmart(app, db, migrations=MODULE)
    os.read(start, 1)
    smart.boot(app)


def herd(folder: Path, url: str, processes: int, *, own_flag: bool) -> int:
    """Boot many at once.

    :returns: how many failed.
    """
    start, go = os.pipe()
    pids = []
    for _ in range(processes):
        pids.append(forked(boot, folder, url, own_flag, start))
    os.write(go, b"x" * processes)
    os.close(go)
    os.close(start)
    return sum(ended(pid) != 0 for pid in pids)


def main() -> None:
    """Run the three rounds and print what they came to as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--migrations", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = folder / MODULE
        package.mkdir()
        (package / "__init__.py").write_text(FIRST)
        for number in range(1, arguments.migrations):
            (package / f"m{number:04}.py").write_text(MORE.format(number=number))
        sys.path.insert(0, name)
        url = arguments.url if "://" in arguments.url else f"sqlite:///{name}/herd.sqlite"
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        report: dict[str, object] = {}
        for round_name in ("cold", "one pending", "none pending"):
            if round_name == "one pending":
                number = arguments.migrations
                (package / f"m{number:04}.py").write_text(MORE.format(number=number))
                shutil.rmtree(package / "__pycache__", ignore_errors=True)
            failed = herd(folder, url, arguments.processes, own_flag=round_name != "none pending")
            with engine.connect() as connection:
                effects = Counter(connection.scalars(sa.text("SELECT name FROM effects")))
                token = connection.scalar(sa.text("SELECT token FROM db_smart_state"))
            report[round_name] = {
                "failed": failed,
                "effects": len(effects),
                "repeated": sum(count > 1 for count in effects.values()),
                "token": token,
            }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
