"""Tenants that are schemas of one PostgreSQL database: each statement is in its schema, whatever the driver."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError
from tests.harness.fleets import FleetProject, names, running, with_model
from tests.harness.servers import config_of
from tests.samples import V1

ONLINE = (
    V1
    + """
@migration
def index(op):
    op.create_index("ix_items_name", "items", ["name"])

@migration(transactional=False)
def alone(op):
    op.execute("INSERT INTO items (id, name) VALUES (2, current_schema())")
"""
)


@pytest.fixture
def fleet(make_fleet: Callable[..., FleetProject]) -> FleetProject:
    """Two tenants whose tables have rows, so that an index is built while they are in use."""
    fleet = make_fleet("schemas", "a", "b")
    fleet.write(V1)
    fleet.migrate()
    for name in "ab":
        fleet.of(name, "INSERT INTO items (id, name) VALUES (1, 'x')")
    fleet.write(ONLINE)
    return fleet


def indexes(fleet: FleetProject) -> set[str]:
    rows = fleet.query("SELECT schemaname FROM pg_indexes WHERE indexname = 'ix_items_name'")
    return {schema for (schema,) in rows}


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+pg8000"])
def test_what_runs_in_no_transaction_is_in_the_schema_too(fleet: FleetProject, driver: str) -> None:
    fleet.config.update(config_of(make_url(fleet.url), driver))
    run = fleet.migrate()
    assert (run.failures, run.counts["applied"]) == ([], 2)
    assert indexes(fleet) == {fleet.place("a"), fleet.place("b")}
    for name in "ab":
        found = fleet.of(name, "SELECT name FROM items ORDER BY id")
        assert found == [("x",), (fleet.place(name),)]
    assert "items" not in fleet.tables()


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+pg8000"])
def test_a_schema_may_have_any_name(make_fleet: Callable[..., FleetProject], driver: str) -> None:
    place = '5%s "of" 100%% \\ a.b'
    fleet = make_fleet("schemas", schema=lambda name: place)
    fleet.config.update(config_of(make_url(fleet.url), driver))
    fleet.write(ONLINE)
    app, _ = fleet.app()
    try:
        app.extensions["db_smart_fleet"].create("a")
    finally:
        fleet.dispose(app)
    found = fleet.query("SELECT schemaname FROM pg_tables WHERE tablename = 'items'")
    assert found == [(place,)]


def test_behind_pgbouncer_transactions_are_in_the_schema_and_the_rest_is_refused(
    fleet: FleetProject, pgbouncer: URL
) -> None:
    own = make_url(fleet.url)
    fleet.config["SQLALCHEMY_DATABASE_URI"] = pgbouncer.set(database=own.database)
    fleet.make("c")
    fleet.write(V1 + "@migration\ndef more(op):\n    op.add_column('items', Column('n', Integer))\n")
    run = fleet.migrate()
    assert (run.failures, run.counts["applied"]) == ([], 3)
    assert {fleet.applied(name)[-1] for name in "abc"} == {"more"}
    fleet.write(ONLINE)
    run = fleet.migrate()
    assert run.counts["failed"] == 3
    assert "behind a pooler such as PgBouncer" in str(run.failures[0].error)
    # Without rows an index is built in the transaction.
    assert (indexes(fleet), fleet.applied("a")[-1]) == ({fleet.place("c")}, "more")
    assert "items" not in fleet.tables()


def test_a_tenant_without_its_schema_fails_alone(fleet: FleetProject) -> None:
    fleet.names.append("gone")
    run = fleet.migrate()
    assert (run.counts["applied"], [one.name for one in run.failures]) == (2, ["gone"])
    assert "There is no schema" in str(run.failures[0].error)
    assert fleet.tables() == {"db_smart_fleet", "db_smart_fleet_lease"}


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+pg8000"])
def test_names_of_schemas_are_taken_as_they_are_and_none_is_cut(
    make_fleet: Callable[..., FleetProject], driver: str
) -> None:
    places = ["a%b", "\\q\"; --'ä", "x" * 63, "x" * 64]
    fleet = make_fleet("schemas", schema=lambda name: places[int(name)])
    fleet.config.update(config_of(make_url(fleet.url), driver), DB_SMART_BOOT="off")
    fleet.models = with_model
    fleet.names.extend("012")
    fleet.write(ONLINE.replace("current_schema()", "left(current_schema(), 50)"))
    with running(fleet) as (app, found, db), app.app_context():
        for name in fleet.names:
            found.create(name)
            with found.use(name):
                assert db.session.scalar(text("SELECT current_schema()")) == places[int(name)]
                assert names(db) == [places[int(name)][:50]]
        fleet.names.append("3")
        with pytest.raises(DbSmartError, match="more than 63 bytes"), found.use("3"):
            pass
    assert fleet.migrate().counts["failed"] == 1
    rows = fleet.query("SELECT schemaname FROM pg_indexes WHERE indexname = 'ix_items_name'")
    assert {schema for (schema,) in rows} == set(places[:3])
