"""A foreign key of that name to another table or column is not the one that is asked for."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, Table, UniqueConstraint
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements


@pytest.mark.parametrize("rows", [False, True])
def test_a_key_to_another_table_is_an_error(url: URL, rows: bool) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    metadata = MetaData()
    for name in ("first", "second", "t"):
        Table(name, metadata, Column("id", Integer, primary_key=True), Column("n", Integer), UniqueConstraint("n"))
    metadata.create_all(database.engine)
    if rows:
        with database.engine.begin() as connection:
            connection.execute(metadata.tables["t"].insert(), {"id": 1})

    def run(table: str, column: str) -> None:
        with operations(database) as op:
            op.create_foreign_key("FK_n", "t", table, ["n"], [column])

    run("first", "id")
    assert statements(database, lambda: run("first", "id")) == []
    for table, column in (("second", "id"), ("first", "n")):
        with pytest.raises(DbSmartError, match=r"already has a foreign key 'FK_n', to 'first' \(id\)"):
            run(table, column)
    with database.engine.connect() as connection:
        (key,) = sa.inspect(connection).get_foreign_keys("t")
    assert (key["referred_table"], key["referred_columns"]) == ("first", ["id"])


def test_a_key_whose_table_was_renamed_since_is_satisfied(url: URL) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    metadata = MetaData()
    for name in ("old", "t"):
        Table(name, metadata, Column("id", Integer, primary_key=True), Column("n", Integer))
    metadata.create_all(database.engine)

    def run() -> None:
        with operations(database) as op:
            op.create_foreign_key("fk_n", "t", "old", ["n"], ["id"])

    run()
    with operations(database, destructive=True) as op:
        op.rename_table("old", "new")
    assert statements(database, run) == []
