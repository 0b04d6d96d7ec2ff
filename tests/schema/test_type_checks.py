"""Checks that come with a type: made where the database has no such type, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Enum, Integer, MetaData, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements


def columns() -> list[Column[Any]]:
    return [
        Column("f", Boolean(create_constraint=True, name="ck_f")),
        Column("level", Enum("low", "high", name="ck_level", create_constraint=True)),
        Column("text", Enum("low", "high", name="ck_text", create_constraint=True, native_enum=False)),
    ]


@pytest.mark.parametrize("rows", [False, True])
def test_add_columns_makes_the_checks_that_create_table_makes(url: URL, rows: bool) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    metadata = MetaData()
    Table("made", metadata, Column("id", Integer, primary_key=True), *columns())
    added = Table("added", metadata, Column("id", Integer, primary_key=True))
    metadata.create_all(database.engine)
    if rows:
        with database.engine.begin() as connection:
            connection.execute(added.insert(), {"id": 1})

    def run() -> None:
        with operations(database) as op:
            op.add_columns("added", *columns(), online=database.dialect == "postgresql")

    run()
    assert statements(database, run) == []
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        made, found = (
            sorted(str(check["name"]) for check in inspector.get_check_constraints(name)) for name in ("made", "added")
        )
    assert found == made
    assert "ck_text" in found
