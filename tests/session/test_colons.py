"""A colon before a word in SQL of a schema change: part of it, as nothing there has parameters."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, Integer, MetaData, String, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements


@pytest.fixture
def database(url: URL) -> Database:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("a", String(20)))
    table.create(database.engine)
    with database.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "a": "x"}, {"id": 2, "a": "12:30"}])
    return database


def insert(database: Database, number: int, text: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO t (id, a) VALUES (:id, :a)"), {"id": number, "a": text})


CONDITIONS: list[Any] = [
    "a <> ':none'",
    r"a <> '\:none'",
    sa.text("a <> ':none'"),
    sa.text("a <> :other").bindparams(other=":none"),
    sa.text("a <> ':x' AND a <> :other").bindparams(other=":none"),
    "a <> ':smile:' AND a NOT IN (' :a', ':none')",
]


def test_a_check_holds_what_it_says(database: Database) -> None:
    for number, condition in enumerate(CONDITIONS):

        def run(condition: Any = condition) -> None:
            with operations(database) as op:
                op.create_check_constraint("ck", "t", condition, online=False)

        run()
        assert statements(database, run) == []
        insert(database, 10 + number, "NULL")
        with pytest.raises((sa.exc.IntegrityError, sa.exc.OperationalError)):
            insert(database, 20 + number, ":none")
        with operations(database, destructive=True) as op:
            op.drop_constraint("ck", "t")


def test_checks_of_tables_and_columns_and_defaults(database: Database) -> None:
    with operations(database) as op:
        op.create_table("n", Column("a", String(20)), CheckConstraint("a <> ':none'", name="ck_n"))
        new = Column("b", String(20), CheckConstraint("b <> ':none'"), server_default=sa.text("':b'"))
        op.add_column("t", new, online=False)
        op.alter_column("t", "a", server_default=sa.text("':a'"))
    with database.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO t (id) VALUES (3)"))
        assert connection.execute(sa.text("SELECT a, b FROM t WHERE id = 3")).one() == (":a", ":b")
        with pytest.raises((sa.exc.IntegrityError, sa.exc.OperationalError)):
            connection.execute(sa.text(r"UPDATE t SET b = '\:none'"))
    with database.engine.begin() as connection, pytest.raises((sa.exc.IntegrityError, sa.exc.OperationalError)):
        connection.execute(sa.text(r"INSERT INTO n (a) VALUES ('\:none')"))


def test_the_condition_of_an_index(database: Database) -> None:
    if database.dialect in ("mysql", "mariadb"):  # which has none
        key: Any = {}
    else:
        key = {f"{database.dialect}_where": sa.text("a <> ':none'")}
    with operations(database) as op:
        op.create_index("ux", "t", ["a"], unique=True, **key)
    insert(database, 3, ":none")
    if key:
        insert(database, 4, ":none")


def test_the_condition_of_a_backfill(database: Database) -> None:
    insert(database, 3, ":none")

    def run(op: Operations) -> None:
        op.backfill("t", {"a": "done"}, where="a = ':none' OR a LIKE '12:%'")

    with operations(database) as op:
        run(op)
    with database.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT a FROM t ORDER BY id")).scalars().all() == ["x", "done", "done"]
