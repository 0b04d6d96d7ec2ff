"""Boot pods of two releases in turn and at once: ``python -m tests.harness.rolling URL [--rounds N] [--shared-flag]``.

The new release has one migration of the old one edited, and one more. Each pod is a forked process. In turn, they share
one database; at once, each round begins with the old release's database, or with an empty one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import alembic.operations  # noqa: F401 - so that each pod need not import it
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

import aurum_harmony.db_smart.runner  # noqa: F401
from aurum_harmony.db_smart import DbSmart
from tests.harness.crash import ended, forked

MODULE = "rolling_migrations"
OLD = """
from sqlalchemy import Column, Integer, String
from aurum_harmony.db_smart import migration

@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(50)))

@migration
def edited(op):
    op.add_column("effects", Column("first", Integer))
    op.execute("INSERT INTO effects (name) VALUES ('as it was')")

@migration
def unchanged(op):
    op.execute("INSERT INTO effects (name) VALUES ('unchanged')")
"""
NEW = (
    OLD.replace('"first"', '"second"').replace("as it was", "edited")
    + """
@migration(once=True)
def one_more(op):
    op.add_column("effects", Column("third", Integer))
    op.execute("INSERT INTO effects (name) VALUES ('one more')")
"""
)
EFFECTS = {"as it was", "edited", "unchanged", "one more"}


class Pods:
    """Pods of both releases on one database, and what they did to it."""

    def __init__(self, url: str, folder: Path, *, shared_flag: bool) -> None:
        self.url = url
        self.folder = folder
        self.shared_flag = shared_flag
        self.numbers = itertools.count()
        self.failed = self.repeated = self.lost = 0

    def start(self, release: str) -> int:
        """Start a pod.

        :returns: its process id.
        """
        name = "shared" if self.shared_flag else f"pod{next(self.numbers)}"
        return forked(self._boot, release, self.folder / name)

    def _boot(self, release: str, instance: Path) -> None:
        sys.path.insert(0, str(self.folder / release))
        app = Flask("rolling", instance_path=str(instance))
        app.config.update(SQLALCHEMY_DATABASE_URI=self.url, DB_SMART_CREATE_ALL=False)
        DbSmart(app, SQLAlchemy(app), migrations=MODULE).boot(app)

    def wait(self, *pods: int) -> None:
        """Wait for pods, and count those that failed."""
        self.failed += sum(ended(pod) != 0 for pod in pods)

    def empty(self) -> None:
        """Empty the database and forget the flags."""
        for flag in self.folder.glob("*/.db_migration_completed"):
            flag.unlink()
        metadata = sa.MetaData()
        metadata.reflect(self._engine())
        metadata.drop_all(self._engine())

    def count(self, expected: set[str]) -> None:
        """Count what is repeated and lost."""
        with self._engine().connect() as connection:
            found = Counter(connection.scalars(sa.text("SELECT name FROM effects")))
            runs = Counter(connection.execute(sa.text("SELECT name, checksum FROM db_smart_history")).all())
        self.repeated += sum(number > 1 for number in [*found.values(), *runs.values()])
        self.lost += len(expected - set(found))

    def _engine(self) -> sa.Engine:
        return sa.create_engine(self.url, poolclass=sa.pool.NullPool)


def main() -> None:
    """Run the rounds and print their count as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shared-flag", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for release, source in (("old", OLD), ("new", NEW)):
            (folder / release).mkdir()
            (folder / release / f"{MODULE}.py").write_text(source)
        url = arguments.url if "://" in arguments.url else f"sqlite:///{name}/rolling.sqlite"
        pods = Pods(url, folder, shared_flag=arguments.shared_flag)
        for _ in range(arguments.rounds):
            pods.wait(pods.start("old"))
            pods.wait(pods.start("new"))
            pods.count(EFFECTS)
        for number in range(arguments.rounds):
            pods.empty()
            if number % 2:
                pods.wait(pods.start("old"))
            pods.wait(*[pods.start(release) for release in ("old", "new") * 3])
            pods.count(EFFECTS)
        print(json.dumps({"failed": pods.failed, "repeated": pods.repeated, "lost": pods.lost}))


if __name__ == "__main__":
    main()
