"""An Alembic directory as a fleet: env.py as it stands, on the database of each tenant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Fleet
from tests.harness.alembic_project import AlembicProject

MAKES = 'op.create_table("items", sa.Column("id", sa.Integer, primary_key=True))'
FILLS = 'op.execute("INSERT INTO items (id) SELECT count(*) + 1 FROM items")'


def test_revisions_run_in_schemas(make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]) -> None:
    project = make_alembic(new_url("postgresql"))
    project.revision("one", None, MAKES)
    project.revision("two", "one", FILLS)
    for name in "ab":
        project.query(f"CREATE SCHEMA {name}")
    app, smart = project.app()
    fleet = Fleet(smart, tenants=lambda: iter("ab"), schema=str)
    run = fleet.migrate()
    project.dispose(app)
    assert (run.failures, run.counts["applied"]) == ([], 2)
    for name in "ab":
        assert project.query(f"SELECT version_num FROM {name}.alembic_version") == [("two",)]
        assert project.query(f"SELECT id FROM {name}.items") == [(1,)]
    assert not project.tables() & {"items", "alembic_version"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_revisions_run_on_each_tenant_and_on_no_other_database(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], kind: str
) -> None:
    project = make_alembic(new_url(kind))
    project.revision("one", None, MAKES)
    project.revision("two", "one", FILLS)
    places = {name: new_url(kind) for name in "abc"}
    # One of them was made by Flask-Migrate alone.
    project.at(places["c"]).upgrade("one")

    def migrate() -> Any:
        app, smart = project.app()
        fleet = Fleet(smart, tenants=lambda: iter(places), url=places.__getitem__)
        try:
            return fleet.migrate(workers=3)
        finally:
            project.dispose(app)

    run = migrate()
    assert (run.failures, dict(run.counts)) == ([], {"up_to_date": 0, "applied": 3, "failed": 0})
    for url in places.values():
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            assert connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == ["two"]
            assert connection.scalars(sa.text("SELECT id FROM items")).all() == [1]
    assert not project.tables() & {"items", "alembic_version"}
    assert migrate().counts["up_to_date"] == 3
    project.revision("three", "two", FILLS)
    assert (migrate().counts["applied"], project.heads()) == (3, set())
