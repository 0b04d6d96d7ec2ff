"""Kill the thread of migrations in the background: ``python -m tests.harness.kill_later URL``.

Each round begins with a table of rows that lack a value. A forked process boots and kills itself with SIGKILL before
the n-th statement that changes something or the n-th commit of the thread, for every n until one gets through; the lock
is given to others after each batch. Two more processes boot together and finish. Each row must have been changed
once, and each step be done once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart, settings, threads
from aurum_harmony.db_smart.boot import background
from aurum_harmony.db_smart.schema import backfill
from aurum_harmony.db_smart.session.journal import reads
from tests.harness.crash import ended, forked, set_up

MODULE = "later_migrations"
THREAD = "db-smart-background"
ROWS = 24
MIGRATIONS = """
from flask import current_app
from sqlalchemy import Column, Integer, String, text
from aurum_harmony.db_smart import migration

db = current_app.extensions["sqlalchemy"]


@migration
def items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("a", Integer), Column("b", Integer))
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(50)))
    op.execute("INSERT INTO items (id, a, b) VALUES (:id, 0, 0)", [{"id": n} for n in range(1, 25)])


@migration(background=True, once=True)
def fill(op):
    op.execute("INSERT INTO effects (name) VALUES ('before')")
    op.add_column("items", Column("c", Integer))
    op.session.execute(text("INSERT INTO effects (name) VALUES ('session')"))
    op.session.commit()
    try:
        op.backfill("items", {"a": text("a + 1")})
    except:
        op.execute("INSERT INTO effects (name) VALUES ('caught')")
    op.execute("INSERT INTO effects (name) VALUES ('between')")

    @op.batches("items")
    def each(rows):
        for row in rows:
            op.execute("UPDATE items SET b = b + 1 WHERE id = :id", {"id": row.id})

    op.create_index("ix_items", "items", ["a"])
    op.execute("INSERT INTO effects (name) VALUES ('after')")


@migration(background=True)
def without_argument():
    db.session.execute(text("INSERT INTO effects (name) VALUES ('plain')"))
    db.session.commit()


@migration(background=True, transactional=False)
def alone(op):
    found = op.execute("SELECT name FROM effects WHERE name = 'alone'").first()
    if found is None:
        op.execute("INSERT INTO effects (name) VALUES ('alone')")
"""
EFFECTS = ["after", "alone", "before", "between", "plain", "session"]


def run(folder: Path, url: str, die_at: int = 0) -> None:
    """Boot as a process that serves, and wait until nothing is left to do.

    :param die_at: before which statement of the thread to die; 0 for never.
    """
    threads._SLICE_SECONDS = background._AWAY = settings._IDLE_AWAY = 0.0
    settings._IDLE_PAUSES = (0.02, 0.1)
    backfill._FIRST = 5
    app = Flask("later", instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DB_SMART_LEASE_SECONDS=0.2, DB_SMART_SNAPSHOTS=0)
    db = SQLAlchemy()
    db.init_app(app)
    smart = DbSmart(app, db, migrations=MODULE)
    count = 0

    def step(*event: Any) -> None:
        nonlocal count
        if threading.current_thread().name != THREAD or (len(event) > 2 and reads(event[2])):
            return
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("before_cursor_execute", "commit"):
        sa.event.listen(sa.Engine, name, step)
    smart.boot(app)
    later, deadline = smart._state(app).later, time.monotonic() + 60
    while later is not None and not later.done:
        if later.failure is not None:
            raise later.failure
        assert time.monotonic() < deadline, "the thread is not done"
        time.sleep(0.005)


def main() -> None:
    """Kill at every boundary, and print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="kill only at every N-th of them")
    arguments = parser.parse_args()
    url: str = arguments.url
    logging.disable(logging.WARNING)
    counts = Counter(kills=0, converged=0, failed=0, lost=0, repeated=0)
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    sa.event.listen(sa.Engine, "connect", set_up)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, name)
        (folder / f"{MODULE}.py").write_text(MIGRATIONS, encoding="utf-8")
        died = True
        while died:
            _empty(engine, folder)
            code = ended(forked(run, folder, url, counts["kills"] * arguments.every + 1))
            died = code == -signal.SIGKILL
            counts["kills"] += died
            together = [forked(run, folder, url) for _ in range(2)] if died else []
            failed = [pid for pid in together if ended(pid) != 0] or (not died and code != 0)
            counts["failed"] += bool(failed)
            if not failed:
                _count(engine, counts, died)
    print(json.dumps(counts))


def _empty(engine: sa.Engine, folder: Path) -> None:
    """Drop all tables, and forget the flag."""
    for path in folder.iterdir():
        if path.suffix != ".py" and path.is_file():
            path.unlink()
    found = sa.MetaData()
    found.reflect(engine)
    found.drop_all(engine)


def _count(engine: sa.Engine, counts: Counter[str], died: bool) -> None:
    """Count what was lost and what was repeated."""
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT a, b FROM items")).all()
        effects = Counter(connection.scalars(sa.text("SELECT name FROM effects")))
        applied = connection.scalar(sa.text("SELECT COUNT(*) FROM db_smart_history WHERE outcome = 'applied'"))
        left = connection.scalar(sa.text("SELECT COUNT(*) FROM db_smart_progress"))
    numbers = [number for row in rows for number in row] + [effects[name] for name in EFFECTS]
    lost = sum(number < 1 for number in numbers) + 2 * (ROWS - len(rows))
    repeated = sum(number > 1 for number in numbers) + sum(effects[name] for name in effects if name not in EFFECTS)
    counts["lost"] += lost
    counts["repeated"] += repeated
    if lost or repeated or applied != 4 or left:
        print(f"after kill {counts['kills']}: {rows} {effects} applied {applied}, steps left {left}", file=sys.stderr)
    elif died:
        counts["converged"] += 1


if __name__ == "__main__":
    main()
