"""alter_column(server_default=…) sets what differs, and leaves what is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Boolean, Column, DateTime, Integer, MetaData, Numeric, String, Table, func, text
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements

KINDS: dict[str, tuple[Any, list[Any]]] = {
    "string": (
        String(30),
        ["abc", "ABC", " abc ", "a::b", "a::c", "it's", "(abc)", "null", "7", "", "a\\b", "E", "CURRENT_TIMESTAMP"],
    ),
    "integer": (Integer, ["7", "8", "-7", text("(7 + 1)"), None]),
    "numeric": (Numeric(10, 2), ["1.5", "1.25", "-1.5", None]),
    "boolean": (Boolean, [sa.true(), sa.false(), None]),
    "time": (DateTime, [func.now(), "2020-01-01 00:00:00", "2020-01-01 00:00:01", None]),
}


@pytest.fixture
def database(url: URL) -> Database:
    return Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))


def inserted(database: Database, table: Table) -> str:
    """What a row gets that says nothing of the column; the time of now without its digits."""
    with database.engine.begin() as connection:
        connection.execute(sa.delete(table))
        connection.execute(sa.insert(table).values(id=1))
        value = str(connection.scalar(sa.select(table.c.c)))
    return "now" if value.startswith("20") and not value.startswith("2020") else value


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_follows_every_other_one(database: Database, kind: str) -> None:
    type_, defaults = KINDS[kind]
    fresh = []
    for number, default in enumerate(defaults):
        table = Table(f"fresh{number}", MetaData(), Column("id", Integer, primary_key=True))
        table.append_column(Column("c", type_, server_default=default))
        table.create(database.engine)
        fresh.append(inserted(database, table))
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("c", type_))
    table.create(database.engine)
    order = [*range(len(defaults)), 0]
    for number in order:

        def run(default: Any = defaults[number]) -> None:
            with operations(database) as op:
                op.alter_column("t", "c", server_default=default)

        run()
        assert inserted(database, table) == fresh[number], defaults[number]
        assert statements(database, run) == [], "the same default is sent again"


def test_json_is_told_apart_by_its_letters(new_url: Callable[[str], URL]) -> None:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id int, j jsonb DEFAULT '{\"K\":1}', s text)")

    def run() -> None:
        with operations(database) as op:
            op.alter_column("t", "s", server_default=text("(lower('A') || 'x')"))

    with operations(database) as op:
        op.alter_column("t", "j", server_default='{"k":1}')
    run()
    assert statements(database, run) == []
    with database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t (id) VALUES (1)")
        assert tuple(connection.exec_driver_sql("SELECT j::text, s FROM t").one()) == ('{"k": 1}', "ax")
