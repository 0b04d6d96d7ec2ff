"""Constraints and unique indexes are dropped from a table with rows only where the migration says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.databases import engine_of
from tests.harness.direct import operations
from tests.harness.facts import Facts, facts
from tests.harness.project import Project

DIALECTS = ("sqlite", "postgresql", "mariadb")
DROPS: dict[str, Callable[[Operations], Any]] = {
    "unique": lambda op: op.drop_constraint("uq_email", "people"),
    "check": lambda op: op.drop_constraint("ck_balance", "people"),
    "foreign": lambda op: op.drop_constraint("fk_boss", "people"),
    "unique index": lambda op: op.drop_index("ux_name", "people"),
}


@pytest.fixture(params=DIALECTS)
def database(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> Database:
    return Database("default", None, engine_of(new_url(request.param)))


def build(database: Database, *, rows: int) -> None:
    metadata = sa.MetaData()
    people = sa.Table(
        "people",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("email", sa.String(20)),
        sa.Column("name", sa.String(20)),
        sa.Column("balance", sa.Integer),
        sa.Column("boss", sa.Integer),
        sa.UniqueConstraint("email", name="uq_email"),
        sa.CheckConstraint("balance >= 0", name="ck_balance"),
        sa.ForeignKeyConstraint(["boss"], ["people.id"], name="fk_boss", ondelete="CASCADE"),
    )
    sa.Index("ux_name", people.c.name, unique=True)
    sa.Index("ix_balance", people.c.balance)
    with database.engine.begin() as connection:
        metadata.create_all(connection)
        for number in range(rows):
            connection.execute(people.insert().values(id=number, email=str(number), name=str(number), balance=1))


def seen(database: Database) -> Facts:
    with database.engine.connect() as connection:
        return facts(connection)


def test_what_rows_must_keep_to_is_dropped_only_where_the_migration_says_so(database: Database) -> None:
    build(database, rows=1)
    for kind, drop in DROPS.items():
        before = seen(database)
        with pytest.raises(Refused, match="DS106 .*destructive=True") as caught, operations(database) as op:
            drop(op)
        assert f"of the kind {kind!r}" in caught.value.message or "a unique index" in caught.value.message
        assert seen(database) == before
        with operations(database, destructive=True) as op:
            drop(op)
        dropped = seen(database)
        assert dropped != before
        with operations(database) as op:  # nothing to do is nothing to ask for
            drop(op)
        assert seen(database) == dropped


def test_of_an_empty_table_all_is_dropped_and_of_any_an_index_that_is_not_unique(database: Database) -> None:
    build(database, rows=0)
    with operations(database) as op:
        for drop in DROPS.values():
            drop(op)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO people (id, email, balance, boss) VALUES (1, 'a', -1, NULL)")
        connection.exec_driver_sql("INSERT INTO people (id, email, balance, boss) VALUES (2, 'a', -1, NULL)")
    with operations(database) as op:
        op.drop_index("ix_balance", "people")


HISTORY = """
@migration
def old(op):
    op.create_table("folk", Column("id", Integer, primary_key=True), Column("email", String(20)))
    op.execute("INSERT INTO folk (id, email) VALUES (1, 'a')")
    op.create_unique_constraint("uq_email", "folk", ["email"])

@migration(destructive=True)
def rename(op):
    op.rename_table("folk", "people")
"""
DROP = """
@migration
def drop(op):
    op.drop_constraint("uq_email", "people")
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_run_drops_what_it_has_made_itself_and_a_dry_run_foresees_the_refusal(
    new_url: Callable[[str], URL], make_project: Callable[..., Project], dialect: str
) -> None:
    project = make_project(new_url(dialect))
    project.write(HISTORY + DROP)
    dry = project.run("migrate", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert project.boot().applied
    old = make_project(new_url(dialect))
    old.write(HISTORY)
    old.boot()
    old.write(HISTORY + DROP)
    dry = old.run("migrate", "--dry-run")
    assert dry.exit_code == 1
    assert "DS106" in dry.output
    failed = old.run("migrate")
    assert failed.exit_code == 1
    assert "DS106" in failed.output
    old.write(HISTORY + DROP.replace("@migration", "@migration(destructive=True)"))
    assert len(old.boot().applied) == 1


def test_what_a_failed_run_has_made_is_still_unused_in_the_next(
    new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    project = make_project(new_url("mariadb"))
    project.write(HISTORY + "\n@migration\ndef broken(op):\n    op.execute('SELECT * FROM nowhere')\n")
    assert project.run("migrate").exit_code == 1
    project.write(HISTORY + DROP)
    assert len(project.boot().applied) == 1
