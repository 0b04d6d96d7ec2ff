"""Random migrations beside plain Alembic: run, killed and finished, foretold by a dry run, and run from ``--sql``.

``RANDOM_SEED`` begins with another migration, ``RANDOM_COUNT`` says how many for each database.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness.clients import run_client
from tests.harness.crash import counted, ended, forked
from tests.harness.facts import Facts, differences, drop_tables, facts
from tests.harness.project import HEADER, Project
from tests.harness.random_operations import IMPORTS, Generator, PlainAlembic

SEED = int(os.environ.get("RANDOM_SEED", "8"))
COUNT = os.environ.get("RANDOM_COUNT")
CASES = [
    (dialect, number)
    for dialect, count in {"sqlite": 10, "sqlite with foreign keys": 6, "postgresql": 5, "mariadb": 5}.items()
    for number in range(int(COUNT or count))
]


class Place:
    """A database of its own for one way to run the migrations."""

    def __init__(self, url: URL, project: Project, generator: Generator) -> None:
        self.project = project
        self.engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        self.generator = generator
        drop_tables(self.engine)
        self._write(steps=False)
        project.boot()
        self._write(steps=True)

    def _write(self, *, steps: bool) -> None:
        self.project.write(self.generator.source(steps=steps), header=HEADER + IMPORTS)

    def facts(self) -> Facts:
        with self.engine.connect() as connection:
            return facts(connection)

    def boot(self, die_before: int = 0) -> int:
        """Boot, and count the statements that change something; die by SIGKILL before the one of a number."""
        with counted(die_before) as count:
            assert self.project.boot().applied
        return count()


@pytest.fixture
def enforced() -> Iterator[Callable[[], None]]:
    """Has SQLite enforce foreign keys from the call on, as many applications do."""

    def enforce(driver: Any, _: Any) -> None:
        driver.execute("PRAGMA foreign_keys = ON")

    yield lambda: sa.event.listen(sa.Engine, "connect", enforce)
    if sa.event.contains(sa.Engine, "connect", enforce):
        sa.event.remove(sa.Engine, "connect", enforce)


def compared(found: Facts) -> Facts:
    """Without the parentheses that Alembic's copy of a table adds or drops."""

    def plain(kind: str, items: Any) -> Any:
        if kind not in ("checks", "columns"):
            return items
        return [str(item).replace("(", "").replace(")", "") for item in items]

    return {table: {kind: plain(kind, items) for kind, items in kinds.items()} for table, kinds in found.items()}


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_random_operations(
    new_url: Callable[[str], URL],
    make_project: Callable[..., Project],
    enforced: Callable[[], None],
    kind: str,
    number: int,
) -> None:
    dialect = kind.partition(" ")[0]
    generator = Generator(SEED + number, kind)
    context = "\n".join([*generator.set_up, "", *generator.steps])
    config = {"DB_SMART_SNAPSHOTS": 0, "DB_SMART_LEASE_SECONDS": 1}

    plain = new_url(dialect)
    with sa.create_engine(plain, poolclass=sa.pool.NullPool).begin() as connection:
        alembic = PlainAlembic(connection)
        alembic.run(generator.set_up)
        start = facts(connection)
        alembic.run(generator.steps)
        expected = facts(connection)
    if kind != dialect:
        enforced()

    def place() -> Place:
        made = new_url(dialect)
        return Place(made, make_project(made, config), generator)

    run, killed, script = place(), place(), place()
    assert not differences(compared(run.facts()), compared(start)), context

    shown = json.loads(script.project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert [item["error"] or item["unknown"] for item in shown] == [None], context
    count = run.boot()
    done = run.facts()
    assert not differences(compared(done), compared(expected)), context

    result = script.project.run("migrate", "--sql")
    run_client(script.project.url, result.stdout)
    assert not differences(script.facts(), done), f"{context}\n{result.stdout}"
    assert script.project.boot().applied == ()

    boundary = random.Random(SEED + number).randint(1, count * 3 // 4)
    assert ended(forked(killed.boot, boundary)) == -signal.SIGKILL, context
    killed.project.boot()
    assert not differences(killed.facts(), done), f"killed before statement {boundary}\n{context}"
