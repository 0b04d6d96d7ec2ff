"""Names of indexes that are longer than the database allows: made once, found again."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.database import Database

from .direct import operations, statements

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
