"""Partitioned tables with rows on PostgreSQL: what they take only while writers wait; and exclusion constraints."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements
from tests.harness.project import Project

SET_UP = (
    "CREATE TABLE users (id int PRIMARY KEY)",
    "INSERT INTO users VALUES (1)",
    "CREATE TABLE parts (id int, u int, n int) PARTITION BY RANGE (id)",
    "CREATE TABLE part PARTITION OF parts DEFAULT",
    "CREATE INDEX ix_n ON parts (n)",
    "INSERT INTO parts VALUES (1, 1, 1)",
)
CHANGES = {
    "foreign key": "op.create_foreign_key('fk', 'parts', 'users', ['u'], ['id']{plain})",
    "column": "op.add_column('parts', Column('v', Integer, ForeignKey('users.id')){plain})",
    "unique": "op.create_unique_constraint('uq', 'parts', ['id']{plain})",
    "drop index": "op.drop_index('ix_n', 'parts'{plain})",
    "index": "op.create_index('ix_u', 'parts', ['u']{plain})",
}


def connected(url: URL, *texts: str) -> Database:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        for text in texts:
            connection.exec_driver_sql(text)
    return database


def refused(database: Database) -> list[str | None]:
    """The rule for each change: PostgreSQL 18 adds a foreign key beside the writers."""
    with database.engine.connect() as connection:
        version = connection.dialect.server_version_info or ()
    key = None if version >= (18,) else "DS202"
    return [key, key, "DS202", "DS202", "DS205"]


def test_what_blocks_is_refused_and_foreseen(
    new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    url = new_url("postgresql")
    wanted = refused(connected(url, *SET_UP))
    project = make_project(url)

    def foreseen(plain: str) -> list[str | None]:
        steps = (f"@migration\ndef m{n}(op):\n    {text}\n" for n, text in enumerate(CHANGES.values()))
        project.write("\n".join(steps).format(plain=plain))
        result = project.run("migrate", "--dry-run", "--json")
        return [item["error"] for item in json.loads(result.stdout)["pending"]]

    errors = foreseen("")
    assert [error and error[:5] for error in errors] == wanted
    assert all(error is None or "online=False" in error for error in errors)
    assert foreseen(", online=False") == [None] * len(CHANGES)
    project.boot()
    with sa.create_engine(url, poolclass=sa.pool.NullPool).connect() as connection:
        inspector = sa.inspect(connection)
        assert {key["constrained_columns"][0] for key in inspector.get_foreign_keys("parts")} == {"u", "v"}
        assert {index["name"] for index in inspector.get_indexes("parts")} == {"ix_u", "uq"}


def test_a_refusal_changes_nothing(new_url: Callable[[str], URL]) -> None:
    database = connected(new_url("postgresql"), *SET_UP)
    names = {"Column": sa.Column, "Integer": sa.Integer, "ForeignKey": sa.ForeignKey}

    def run(change: str) -> None:
        with operations(database) as op:
            exec(change.format(plain=""), {**names, "op": op})

    def refuse(change: str) -> None:
        with pytest.raises(Refused, match="DS20[25]"):
            run(change)

    for change, rule in zip(CHANGES.values(), refused(database), strict=True):
        if rule is None:
            run(change)
        else:
            assert statements(database, lambda change=change: refuse(change)) == []  # type: ignore[misc]


def test_an_exclusion_constraint_is_dropped(new_url: Callable[[str], URL]) -> None:
    database = connected(
        new_url("postgresql"), 'CREATE TABLE t (span int4range, CONSTRAINT "No Two" EXCLUDE USING gist (span WITH &&))'
    )
    with pytest.raises(DbSmartError, match="of kind 'exclude'"), operations(database) as op:
        op.create_unique_constraint("No Two", "t", ["span"])
    with operations(database) as op:
        op.drop_constraint("No Two", "t")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES ('[1, 3)'), ('[2, 4)')")
