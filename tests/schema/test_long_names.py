"""Names of indexes that are longer than the database allows: made once, found again."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements

TABLE = "a_table_whose_name_is_forty_letters_long"
NEW = "a_column_whose_name_is_long_as_well"


def column() -> Column[Any]:
    return Column(NEW, String(30), index=True)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("operation", ["add_column", "create_table", "sync"])
def test_a_long_index_is_found_again(url: URL, operation: str, rows: bool) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    model = Table(TABLE, MetaData(), Column("id", Integer, primary_key=True), column())

    def run() -> None:
        with operations(database) as op:
            if operation == "add_column":
                op.add_column(TABLE, column())
            elif operation == "sync":
                op.sync(model)
            else:
                op.create_table(TABLE, Column("id", Integer, primary_key=True), column())

    if operation == "create_table":
        run()
    else:
        old = Table(TABLE, MetaData(), Column("id", Integer, primary_key=True))
        old.create(database.engine)
    if rows:
        with database.engine.begin() as connection:
            connection.execute(sa.insert(sa.table(TABLE, sa.column("id"))).values(id=1))
    run()
    with database.engine.connect() as connection:
        assert len(sa.inspect(connection).get_indexes(TABLE)) == 1
    assert statements(database, run) == []


def test_a_database_that_its_models_made_has_it(url: URL) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    Table(TABLE, MetaData(), Column("id", Integer, primary_key=True), column()).create(database.engine)

    def run() -> None:
        with operations(database) as op:
            op.add_column(TABLE, column())

    assert statements(database, run) == []


CONVENTION = {
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
CHECK = "the_number_must_be_above_zero_always"


def model(*more: sa.schema.SchemaItem) -> Table:
    metadata = MetaData(naming_convention=CONVENTION)
    return Table(TABLE, metadata, Column("id", Integer, primary_key=True), Column("n", Integer), *more)


@pytest.mark.parametrize("made", ["by its model", "by sync", "by operations"])
def test_long_constraints_are_found_again_and_dropped(url: URL, made: str) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    whole = model(
        Column(NEW, Integer, sa.ForeignKey(f"{TABLE}.id"), unique=True),
        sa.CheckConstraint(sa.text("n > 0"), name=CHECK),
    )
    names = {str(constraint.name) for constraint in whole.constraints if constraint.name}
    if made == "by its model":
        whole.create(database.engine)
    else:
        model().create(database.engine)
        with database.engine.begin() as connection:
            connection.execute(sa.insert(model()).values(id=1, n=1))
    plain: Any = {"online": False} if database.dialect in ("mysql", "mariadb") else {}

    def run() -> None:
        with operations(database) as op:
            if made == "by sync":
                op.sync(whole, **plain)
            op.add_columns(TABLE, Column(NEW, Integer))
            conv = sa.schema.conv
            op.create_check_constraint(conv(f"ck_{TABLE}_{CHECK}"), TABLE, "n > 0", **plain)
            op.create_unique_constraint(conv(f"uq_{TABLE}_{NEW}"), TABLE, [NEW])
            op.create_foreign_key(conv(f"fk_{TABLE}_{NEW}_{TABLE}"), TABLE, TABLE, [NEW], ["id"])

    def found() -> list[int]:
        with database.engine.connect() as connection:
            inspector = sa.inspect(connection)
            kinds = (inspector.get_check_constraints, inspector.get_unique_constraints, inspector.get_foreign_keys)
            return [len(kind(TABLE)) for kind in kinds]

    run()
    assert found() == [1, 1, 1]
    assert statements(database, run) == []
    with operations(database, destructive=True) as op:
        for name in sorted(names):
            op.drop_constraint(name, TABLE)
    assert found() == [0, 0, 0]


def test_a_long_index_is_dropped(url: URL) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    Table(TABLE, MetaData(), Column("id", Integer, primary_key=True), column()).create(database.engine)
    with operations(database) as op:
        op.drop_index(f"ix_{TABLE}_{NEW}", TABLE)
    with database.engine.connect() as connection:
        assert sa.inspect(connection).get_indexes(TABLE) == []
