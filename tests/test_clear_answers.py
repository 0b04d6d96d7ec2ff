"""What operations say where they would otherwise do nothing, or something else than is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Integer, Text
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.database import Database

from .direct import operations, statements


@pytest.fixture
def database(url: URL) -> Database:
    """A database with orders, and two tables that they could refer to."""
    return made(url)


def made(url: URL) -> Database:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    found = sa.MetaData()
    for name in ("Buyer", "seller"):
        sa.Table(name, found, Column("id", Integer, primary_key=True), Column("no", Integer, unique=True))
    orders = sa.Table(
        "orders",
        found,
        Column("id", Integer, primary_key=True),
        Column("who", Integer, ForeignKey("Buyer.id", name="fk_who")),
        Column("note", Text),
    )
    with engine.begin() as connection:
        found.create_all(connection)
        connection.execute(orders.insert(), [{"id": 1, "note": "a"}, {"id": 2, "note": None}, {"id": 3, "note": None}])
    return Database("default", None, engine)


@pytest.mark.parametrize(("table", "column"), [("seller", "id"), ("Buyer", "no")])
def test_a_foreign_key_of_the_same_name_to_elsewhere_is_an_error(database: Database, table: str, column: str) -> None:
    message = r"'fk_who', of kind 'foreign' on who to Buyer \(id\).*Drop it first"
    with pytest.raises(DbSmartError, match=message), operations(database) as op:
        op.create_foreign_key("fk_who", "orders", table, ["who"], [column])


def test_a_foreign_key_that_is_there_is_left_alone(database: Database) -> None:
    def run() -> None:
        with operations(database) as op:
            op.create_foreign_key("fk_who", "orders", "Buyer", ["who"], ["id"])

    assert statements(database, run) == []


CONTROL = [
    "COMMIT",
    "commit work;",
    " -- done\n COMMIT",
    "/* all */ ROLLBACK",
    "ROLLBACK AND CHAIN",
    "BEGIN",
    "begin immediate",
    "START TRANSACTION",
    "END",
    "END TRANSACTION;",
    "ABORT",
]


@pytest.mark.parametrize("wrap", [str, sa.text], ids=["str", "text"])
def test_execute_takes_no_control_of_the_transaction(database: Database, wrap: Callable[[str], Any]) -> None:
    with operations(database) as op:
        op.execute("UPDATE orders SET note = 'b' WHERE id = 1")
        for statement in CONTROL:
            with pytest.raises(DbSmartError, match="begins and ends the transaction"):
                op.execute(wrap(statement))
        op.connection.rollback()
    with database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT note FROM orders WHERE id = 1")) == "a"


def test_execute_takes_savepoints(database: Database) -> None:
    with operations(database) as op:
        op.execute("SAVEPOINT mine")
        op.execute("UPDATE orders SET note = 'b' WHERE id = 1")
        op.execute("ROLLBACK TO SAVEPOINT mine")
        op.execute("RELEASE SAVEPOINT mine")
    with database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT note FROM orders WHERE id = 1")) == "a"


@pytest.mark.parametrize("online", [True, False])
def test_not_null_on_postgresql_names_the_column_and_counts(new_url: Callable[[str], URL], online: bool) -> None:
    database = made(new_url("postgresql"))
    with pytest.raises(DbSmartError) as caught, operations(database) as op:
        op.alter_column("orders", "note", nullable=False, online=online)
    message = str(caught.value)
    assert message.startswith("DS204 op.alter_column('orders', 'note', nullable=False): ")
    assert "2 rows have NULL" in message
    assert "db_smart_not_null" not in message
    with database.engine.connect() as connection:
        assert sa.inspect(connection).get_check_constraints("orders") == []
