"""Random migrations, applied and taken back: the schema and the rows are those of before.

``RANDOM_SEED`` begins with another migration, ``RANDOM_COUNT`` says how many for each database.
"""

from __future__ import annotations

import os

import pytest
import sqlalchemy as sa

from tests.harness.facts import Facts, differences, facts
from tests.harness.project import HEADER, Project
from tests.harness.random_operations import IMPORTS, Generator

SEED = int(os.environ.get("RANDOM_SEED", "40"))
COUNT = int(os.environ.get("RANDOM_COUNT", "4"))
#: What is refused as a whole, or changes rows, which stay.
WITHOUT = ("drop_column", "drop_table", "drop_constraint", "update", "foreign")


def now(project: Project) -> Facts:
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return facts(connection)


def plain(found: Facts) -> Facts:
    """Whatever spaces and parentheses SQLite's texts have."""
    return {
        table: {
            kind: [str(item).replace("(", "").replace(")", "").replace(" ", "") for item in items]
            if kind in ("columns", "checks")
            else items
            for kind, items in kinds.items()
        }
        for table, kinds in found.items()
    }


@pytest.mark.parametrize("number", range(COUNT))
def test_random_operations_are_taken_back(project: Project, number: int) -> None:
    generator = Generator(SEED + number, project.dialect.replace("mysql", "mariadb"), without=WITHOUT)
    context = "\n".join([*generator.set_up, "", *generator.steps])
    project.config |= {"DB_SMART_SNAPSHOTS": 0}
    project.write(generator.source(steps=False), header=HEADER + IMPORTS)
    project.boot()
    before = now(project)
    project.write(generator.source(steps=True), header=HEADER + IMPORTS)
    project.boot()
    result = project.run("undo", "--discard", "--yes")
    if result.exit_code:
        reasons = [line for line in result.output.splitlines() if line.strip().startswith("refused")]
        assert reasons, f"{context}\n{result.output}"
        assert all("values may have been converted" in line for line in reasons), f"{context}\n{result.output}"
        pytest.skip("a type that is not wider cannot be taken back")
    assert not differences(plain(now(project)), plain(before)), f"{context}\n{result.output}"
