"""Kill migrating processes and count what was lost or repeated: ``python -m tests.crash URL [--random N]``.

Each round begins with an empty database. A forked process boots and kills itself with SIGKILL: at its n-th statement
boundary (before a statement, after it, before a commit), for every n until a boot gets through; or, with ``--random``,
it is killed from outside at a random moment. One more boot must then finish, with every effect there exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart import DbSmart

MIGRATIONS = """
from flask import current_app
from sqlalchemy import Column, Integer, String, Text, inspect, text
from aurum_harmony.db_smart import migration

db = current_app.extensions["sqlalchemy"]


def effect(name):
    return "INSERT INTO effects (name) VALUES ('%s')" % name


@migration
def make_tables(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(50)))
    op.create_table("things", Column("id", Integer, primary_key=True), Column("name", String(50), index=True))


@migration
def data_alone(op):
    op.execute(effect("data 1"))
    op.execute(effect("data 2"))


@migration
def mixed(op):
    op.execute(effect("mixed 1"))
    op.add_columns("things", Column("a", Integer), Column("b", String(20), server_default="x"))
    op.execute(effect("mixed 2"))
    op.execute("INSERT INTO effects (name) VALUES (:name)", [{"name": "mixed 3"}, {"name": "mixed 4"}])
    op.create_index("ix_things_b", "things", ["b"])
    op.execute(effect("mixed 5"))


@migration
def as_the_document_says():
    columns = [column["name"] for column in inspect(db.engine).get_columns("things")]
    db.session.execute(text(effect("session 1")))
    db.session.commit()
    if "city" not in columns:
        db.session.execute(text("ALTER TABLE things ADD COLUMN city TEXT"))
        db.session.commit()
    db.session.execute(text(effect("session 2")))
    db.session.execute(text(effect("session 3")))
    db.session.commit()


@migration
def with_models(op):
    first, second = db.Effect(name="model 1"), db.Effect(name="model 2")
    op.session.add_all([first, second])
    op.session.flush()
    op.add_column("things", Column("c", Integer))
    op.session.add(db.Effect(name="model 3"))
    op.session.flush()
    second.name = "model 2"
    op.session.commit()


@migration(once=True)
def only_once(op):
    op.execute(effect("once"))
"""

EFFECTS = [f"data {n}" for n in (1, 2)] + [f"mixed {n}" for n in (1, 2, 3, 4, 5)]
EFFECTS += [f"session {n}" for n in (1, 2, 3)] + [f"model {n}" for n in (1, 2, 3)] + ["once"]
COLUMNS = {"id", "name", "a", "b", "city", "c"}
MODULE = "crash_migrations"


def make_app(folder: Path, url: str) -> tuple[Flask, DbSmart]:
    """The application whose processes are killed."""
    app = Flask("crash", instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DB_SMART_LEASE_SECONDS=0.2, DB_SMART_CREATE_ALL=False)
    db = SQLAlchemy()

    class Effect(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "effects"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    db.Effect = Effect  # type: ignore[attr-defined]
    db.init_app(app)
    return app, DbSmart(app, db, migrations=MODULE)


def boot_and_die(folder: Path, url: str, boundary: int) -> None:
    """Boot; die by SIGKILL at a statement boundary."""
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sa.event.listen(sa.Engine, name, step)
    boot(folder, url)


def boot(folder: Path, url: str) -> None:
    """Boot as a new process does."""
    app, smart = make_app(folder, url)
    smart.boot(app)


def forked(action: Any, *arguments: Any) -> int:
    """Run an action in a forked process.

    :returns: its process id.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        action(*arguments)
        os._exit(0)
    except BaseException as error:  # the parent counts it
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def ended(pid: int) -> int:
    """Exit code of a forked process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Rounds:
    """Rounds of kill and recovery on one database, and their count."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.counts: Counter[str] = Counter(kills=0, converged=0, failed=0, lost=0, repeated=0)

    def empty(self) -> None:
        """Empty the database and forget the flag."""
        for path in self.folder.iterdir():
            if path.suffix != ".py" and path.is_file():
                path.unlink()
        url = make_url(self.url)
        if url.database is None or url.get_backend_name() == "sqlite":
            return
        # As a whole: dropping table by table takes longer than a boot.
        what = "SCHEMA public" if url.get_backend_name() == "postgresql" else f"DATABASE {url.database}"
        with sa.create_engine(url, poolclass=sa.pool.NullPool).begin() as connection:
            connection.exec_driver_sql(f"DROP {what}{' CASCADE' * ('SCHEMA' in what)}")
            connection.exec_driver_sql(f"CREATE {what}")

    def recover(self) -> None:
        """Boot once more after a kill, and count what it finds."""
        self.counts["kills"] += 1
        if ended(forked(boot, self.folder, self.url)) != 0:
            self.counts["failed"] += 1
            return
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            found = Counter(connection.scalars(sa.text("SELECT name FROM effects")))
            columns = {column["name"] for column in sa.inspect(connection).get_columns("things")}
            left = connection.scalar(sa.text("SELECT count(*) FROM db_smart_progress"))
        lost = sum(found[name] == 0 for name in EFFECTS)
        repeated = sum(found[name] > 1 for name in EFFECTS)
        self.counts["lost"] += lost
        self.counts["repeated"] += repeated
        if not lost and not repeated and columns == COLUMNS and not left:
            self.counts["converged"] += 1

    def every_boundary(self) -> None:
        """One kill at each statement boundary."""
        boundary = 1
        while True:
            self.empty()
            code = ended(forked(boot_and_die, self.folder, self.url, boundary))
            if code != -signal.SIGKILL:
                self.counts["failed"] += code != 0
                return
            self.recover()
            boundary += 1

    def at_random(self, kills: int) -> None:
        """Kills from outside at random moments of a boot, whose length is measured first."""
        self.empty()
        started = time.perf_counter()
        ended(forked(boot, self.folder, self.url))
        length = time.perf_counter() - started
        while self.counts["kills"] < kills:
            self.empty()
            pid = forked(boot, self.folder, self.url)
            time.sleep(random.uniform(0, length))  # the moment is the point
            os.kill(pid, signal.SIGKILL)
            if ended(pid) == -signal.SIGKILL:
                self.recover()


def main() -> None:
    """Run the rounds and print their count as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--random", type=int, metavar="N", help="N kills at random moments instead of at each boundary")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{MODULE}.py").write_text(MIGRATIONS, encoding="utf-8")
        sys.path.insert(0, name)
        url = arguments.url if "://" in arguments.url else f"sqlite:///{name}/crash.sqlite"
        rounds = Rounds(url, folder)
        if arguments.random:
            rounds.at_random(arguments.random)
        else:
            rounds.every_boundary()
        print(json.dumps(rounds.counts))


if __name__ == "__main__":
    main()
