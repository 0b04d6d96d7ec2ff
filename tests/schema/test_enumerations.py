"""alter_column(type_=Enum(…)): values are added in their place, and what cannot be done is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Enum, Integer, MetaData, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements

OLD = ("low", "it's", "high")
MORE = [
    ("low", "it's", "high", "new"),
    ("new", "low", "it's", "high"),
    ("first", "second", "low", "it's", "third", "high", "50%", "a:b"),
]
OTHER = [("low", "high"), ("low", "high", "it's"), ("low", "IT'S", "high"), ("new", "high", "low", "it's")]


@pytest.fixture
def postgresql(new_url: Callable[[str], URL]) -> Database:
    return Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))


def make(database: Database, rows: bool, **options: Any) -> Table:
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("lvl", Enum(*OLD, **options)))
    table.create(database.engine)
    if rows:
        with database.engine.begin() as connection:
            connection.execute(table.insert(), [{"lvl": value} for value in OLD])
    return table


def labels(database: Database, table: str = "t") -> list[str]:
    with database.engine.connect() as connection:
        kind: Any = sa.inspect(connection).get_columns(table)[1]["type"]
        return list(kind.enums)


@pytest.mark.parametrize(
    ("values", "rows", "name"), [(MORE[0], False, "lvl"), (MORE[1], True, "lvl"), (MORE[2], True, "My Level")]
)
def test_postgresql_adds_values_in_their_place(
    postgresql: Database, values: tuple[str, ...], rows: bool, name: str
) -> None:
    make(postgresql, rows, name=name)

    def run() -> None:
        with operations(postgresql) as op:
            op.alter_column("t", "lvl", type_=Enum(*values, name=name))
            op.execute(f"INSERT INTO t (lvl) VALUES ('{values[0]}')")

    run()
    assert labels(postgresql) == list(values)
    assert statements(postgresql, run) == []


@pytest.mark.parametrize("values", OTHER)
def test_postgresql_says_that_values_cannot_go_nor_move(postgresql: Database, values: tuple[str, ...]) -> None:
    make(postgresql, True, name="lvl")
    with (
        pytest.raises(
            DbSmartError, match="lvl \\('low', \"it's\", 'high'\\).*neither removes one nor changes their order"
        ),
        operations(postgresql, destructive=True) as op,
    ):
        op.alter_column("t", "lvl", type_=Enum(*values, name="lvl"))
    assert labels(postgresql) == list(OLD)


def test_postgresql_finishes_what_was_cut_short(postgresql: Database) -> None:
    make(postgresql, True, name="lvl")
    with postgresql.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TYPE lvl ADD VALUE 'first' BEFORE 'low'")
    with operations(postgresql) as op:
        op.alter_column("t", "lvl", type_=Enum("first", "second", *OLD, name="lvl"), nullable=False)
    assert labels(postgresql) == ["first", "second", *OLD]
    with postgresql.engine.connect() as connection:
        assert not sa.inspect(connection).get_columns("t")[1]["nullable"]


def test_mariadb_tells_enumerations_apart_by_their_values(new_url: Callable[[str], URL]) -> None:
    database = Database("default", None, sa.create_engine(new_url("mariadb"), poolclass=sa.pool.NullPool))
    make(database, True)
    with operations(database) as op:
        op.alter_column("t", "lvl", type_=Enum(*MORE[0]))
    assert labels(database) == list(MORE[0])
    with (
        pytest.raises(Refused, match="DS105 .* from ENUM\\('low'.*\\) to ENUM\\('low','high'\\)"),
        operations(database) as op,
    ):
        op.alter_column("t", "lvl", type_=Enum("low", "high"))
    with pytest.raises(Refused, match="DS105 .* to VARCHAR\\(5\\)"), operations(database) as op:
        op.alter_column("t", "lvl", type_=sa.String(5))
