"""What operations say where the words of the database, or none at all, would mislead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, Text
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations


@pytest.fixture
def database(url: URL) -> Database:
    """A database with orders, some without a note."""
    return made(url)


def made(url: URL) -> Database:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    found = sa.MetaData()
    orders = sa.Table(
        "orders",
        found,
        Column("id", Integer, primary_key=True),
        Column("note", Text),
    )
    with engine.begin() as connection:
        found.create_all(connection)
        connection.execute(orders.insert(), [{"id": 1, "note": "a"}, {"id": 2, "note": None}, {"id": 3, "note": None}])
    return Database("default", None, engine)


CONTROL = [
    "COMMIT",
    "commit work;",
    " -- done\n COMMIT",
    "/* all */ ROLLBACK",
    "/* a */" * 40 + "ROLLBACK",
    "ROLLBACK AND CHAIN",
    "BEGIN",
    "begin immediate",
    "START TRANSACTION",
    "END",
    "END TRANSACTION;",
    "ABORT",
    "UPDATE orders SET note = 'x; y'; -- done\n COMMIT",
    "SAVEPOINT a; ROLLBACK",
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


def test_execute_takes_savepoints_and_comments(database: Database) -> None:
    with operations(database) as op:
        op.execute("/* COMMIT */ " * 40 + "SELECT 1 AS commit_me")
        op.execute("SAVEPOINT mine")
        op.execute("UPDATE orders SET note = 'b' WHERE id = 1")
        op.execute("ROLLBACK TO SAVEPOINT mine")
        op.execute("RELEASE SAVEPOINT mine")
    with database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT note FROM orders WHERE id = 1")) == "a"


def test_one_row_is_no_plural(new_url: Callable[[str], URL]) -> None:
    database = made(new_url("postgresql"))
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE orders SET note = 'x' WHERE id <> (SELECT min(id) FROM orders)"))
        connection.execute(sa.text("UPDATE orders SET note = NULL WHERE id = (SELECT min(id) FROM orders)"))
    with pytest.raises(DbSmartError, match="1 row has NULL"), operations(database) as op:
        op.alter_column("orders", "note", nullable=False)


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


def test_a_rename_hints_at_a_mapping_that_works(database: Database) -> None:
    with (
        pytest.raises(DbSmartError, match=r"DS103 .*new_name = mapped_column\('old_name'\)"),
        operations(database) as op,
    ):
        op.alter_column("orders", "note", new_column_name="remark")

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        remark: Mapped[str | None] = mapped_column("note")

    with database.engine.connect() as connection:
        assert connection.scalar(sa.select(Order.remark).where(Order.id == 1)) == "a"
