"""What the tests of this folder share."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from tests.harness.alembic_project import AlembicProject
from tests.harness.project import Project

#: A table with 200 rows.
MAKE = """
@migration
def make(op: Operations):
    op.create_table("orders", Column("id", Integer, primary_key=True), Column("number", Integer))
    op.execute("INSERT INTO orders (id, number) VALUES (:id, :id)", [{"id": number} for number in range(1, 201)])
"""


def pending(project: Project, body: str, options: str = "") -> None:
    project.write(f"{MAKE}\n@migration{options}\ndef change(op: Operations):\n    {body}\n")


def linted(project: Project | AlembicProject, *arguments: str, **config: Any) -> dict[str, Any]:
    result = project.run("lint", "--json", *arguments, **config)
    (found,) = json.loads(result.stdout)["databases"]
    errors = [one for one in found["findings"] if one["level"] == "error" and one["allowed"] is None]
    assert result.exit_code == bool(errors or found["failing"])
    return dict(found)


def rules(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["rule"], one["level"]) for one in found["findings"]]


def schemas(project: Project) -> list[str]:
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        names = [name for name in sa.inspect(connection).get_schema_names() if "scratch" in name]
    whose = str(engine.url.database)[:18]  # on MariaDB those of other tests are there too
    return [name for name in names if project.dialect != "mysql" or whose in name]
