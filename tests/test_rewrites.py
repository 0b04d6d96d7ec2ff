"""What would make PostgreSQL rewrite or scan a table under its exclusive lock: done another way, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import String, Text
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.database import Database

from .direct import operations


@pytest.fixture
def database(new_url: Callable[[str], URL]) -> Database:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        for sql in (
            'CREATE TABLE "T" (id int PRIMARY KEY, "A" varchar(20) COLLATE "C", b numeric(12, 2), c text)',
            """INSERT INTO "T" VALUES (1, 'a', 1, 'x'), (2, 'B', 2, 'y')""",
            'CREATE INDEX ix_a ON "T" ("A")',
            "CREATE DOMAIN score AS int DEFAULT 1 CHECK (VALUE > 0)",
            "CREATE FUNCTION \"Rnd\"() RETURNS float8 LANGUAGE sql VOLATILE AS 'SELECT random()'",
        ):
            connection.exec_driver_sql(sql)
    return database


def files(database: Database) -> Any:
    """The files of the table and its index: a rewrite makes new ones."""
    with database.engine.connect() as connection:
        return connection.exec_driver_sql(
            "SELECT relname, relfilenode FROM pg_class WHERE relname IN ('T', 'ix_a') ORDER BY 1"
        ).all()


@pytest.mark.parametrize("type_", [String(80), Text()])
def test_a_wider_text_keeps_its_collation_and_its_index(database: Database, type_: Any) -> None:
    before = files(database)
    for _ in range(2):
        with operations(database) as op:
            op.alter_column("T", "A", type_=type_)
    assert files(database) == before
    with database.engine.connect() as connection:
        sql = "SELECT collation_name FROM information_schema.columns WHERE table_name = 'T' AND column_name = 'A'"
        assert connection.exec_driver_sql(sql).scalar_one() == "C"
        assert connection.exec_driver_sql('SELECT "A" FROM "T" ORDER BY "A"').scalars().all() == ["B", "a"]


def test_a_collation_that_is_asked_for_is_taken(database: Database) -> None:
    with operations(database, destructive=True) as op:
        op.alter_column("T", "A", type_=String(80, collation="POSIX"), online=False)
    with database.engine.connect() as connection:
        sql = "SELECT collation_name FROM information_schema.columns WHERE table_name = 'T' AND column_name = 'A'"
        assert connection.exec_driver_sql(sql).scalar_one() == "POSIX"
