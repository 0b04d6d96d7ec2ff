"""Percent signs in names: drivers take them for parameters, and what is asked of the catalog is a value and not SQL."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements
from tests.harness.facts import facts


@pytest.mark.parametrize("name", ["%s", "100%%"])
def test_all_operations_on_a_table_with_rows(url: URL, name: str) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    metadata = MetaData()
    table = Table(name, metadata, Column(f"id{name}", Integer, primary_key=True), Column(f"a{name}", String(20)))
    metadata.create_all(database.engine)
    with database.engine.begin() as connection:
        connection.execute(table.insert(), [{f"id{name}": 1, f"a{name}": "x"}, {f"id{name}": 2, f"a{name}": "y"}])

    def run(op: Operations) -> None:
        op.add_column(name, Column("r", Integer, ForeignKey(f"{name}.id{name}")))
        op.create_index(f"ix{name}", name, [f"n{name}"])
        op.create_unique_constraint(f"uq{name}", name, [f"a{name}"])
        op.create_foreign_key(f"fk{name}", name, name, [f"n{name}"], [f"id{name}"], online=False)
        op.create_check_constraint(f"ck{name}", name, sa.column(f"n{name}") > 0, online=False)
        op.alter_column(name, f"a{name}", type_=String(60), nullable=False)

    with operations(database) as op:
        op.backfill(name, {f"a{name}": sa.column(f"a{name}") + "z"})
        op.add_column(name, Column(f"n{name}", Integer))
        op.backfill(name, {f"n{name}": 1})
    with operations(database) as op:
        run(op)
    with database.engine.connect() as connection:
        done = facts(connection)

    def again() -> None:
        with operations(database) as op:
            run(op)

    assert statements(database, again) == []
    with operations(database, destructive=True) as op:
        op.drop_constraint(f"ck{name}", name)
        op.drop_constraint(f"fk{name}", name)
        op.drop_constraint(f"uq{name}", name)
        op.drop_index(f"ix{name}", name)
        op.alter_column(name, f"a{name}", new_column_name=f"b{name}")
        op.drop_column(name, f"n{name}")
        op.rename_table(name, f"new{name}")
    with database.engine.connect() as connection:
        left = sa.inspect(connection)
        assert {column["name"] for column in left.get_columns(f"new{name}")} == {f"id{name}", f"b{name}", "r"}
        assert not left.get_indexes(f"new{name}") or database.dialect in ("mysql", "mariadb")
        assert [row[1] for row in done[name]["rows"]] == ["xz", "yz"]
