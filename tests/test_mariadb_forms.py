"""MariaDB: foreign keys that would stop the table's writers, and column definitions that are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Integer, event
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.database import Database
from aurum_harmony.db_smart.rules import Refused

from .direct import operations
from .test_backfill import engine_of


@pytest.fixture
def database(new_url: Callable[[str], URL]) -> Database:
    return Database("default", None, engine_of(new_url("mariadb")))


def run(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def shown(database: Database, table: str) -> str:
    with database.engine.connect() as connection:
        text: str = connection.exec_driver_sql(f"SHOW CREATE TABLE `{table.replace('%', '%%')}`").one()[1]
        return text


def orders(database: Database, user: str) -> None:
    run(
        database,
        "CREATE TABLE users (id INT PRIMARY KEY)",
        "CREATE TABLE orders (id INT PRIMARY KEY, user_id INT)",
        f"INSERT INTO orders VALUES (1, {user})",
    )


TARGETS = {
    "missing": "SELECT 1",
    "a view": "CREATE VIEW target AS SELECT id FROM users",
    "Aria": "CREATE TABLE target (id INT PRIMARY KEY) ENGINE=Aria",
    "partitioned": "CREATE TABLE target (id INT PRIMARY KEY) PARTITION BY HASH (id) PARTITIONS 2",
    "without index": "CREATE TABLE target (id INT)",
    "another type": "CREATE TABLE target (id BIGINT PRIMARY KEY)",
    "without the column": "CREATE TABLE target (no INT PRIMARY KEY)",
}


@pytest.mark.parametrize("how", ["key", "column"])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_foreign_key_to_what_cannot_be_one_is_refused_and_writers_go_on(
    database: Database, kind: str, how: str
) -> None:
    orders(database, "NULL")
    run(database, TARGETS[kind])
    before = shown(database, "orders")

    def add(op: Operations) -> None:
        if how == "key":
            op.create_foreign_key("fk_user", "orders", "target", ["user_id"], ["id"])
        else:
            op.add_column("orders", Column("other_id", Integer, ForeignKey("target.id")))

    for _ in range(2):
        with pytest.raises((DbSmartError, sa.exc.DBAPIError)) as caught, operations(database) as op:
            add(op)
        if kind in ("missing", "a view", "Aria", "partitioned"):
            assert "'target'" in str(caught.value)
            assert "Nothing was changed" in str(caught.value)
        assert shown(database, "orders") == before
        run(database, "UPDATE orders SET user_id = 7", "UPDATE orders SET user_id = NULL")
    if kind != "without index":  # which is one again once it has an index
        run(database, "DROP VIEW IF EXISTS target") if kind == "a view" else run(
            database, "DROP TABLE IF EXISTS target"
        )
        run(database, "CREATE TABLE target (id INT PRIMARY KEY)")
        with operations(database) as op:
            add(op)
        assert "REFERENCES `target` (`id`)" in shown(database, "orders")


def test_a_look_at_the_rows_that_fails_takes_the_key_back(database: Database) -> None:
    orders(database, "7")
    before = shown(database, "orders")

    @event.listens_for(database.engine, "before_cursor_execute")
    def stop(_: object, cursor: object, statement: str, *__: object) -> None:
        if "NOT (EXISTS" in statement:
            raise InterruptedError

    with pytest.raises(InterruptedError), operations(database) as op:
        op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
    assert "CONSTRAINT" not in shown(database, "orders")
    run(database, "UPDATE orders SET user_id = 8")
    event.remove(database.engine, "before_cursor_execute", stop)
    with pytest.raises(Refused, match="DS204.*1 rows"), operations(database) as op:
        op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
    assert "CONSTRAINT" not in shown(database, "orders")
    assert "CONSTRAINT" not in before


@pytest.mark.parametrize("how", ["key", "column"])
def test_a_key_whose_rows_were_not_looked_at_is_looked_at_by_the_next_run(database: Database, how: str) -> None:
    orders(database, "7")

    def add(op: Operations) -> None:
        if how == "key":
            op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
        else:
            op.add_column("orders", Column("other_id", Integer, ForeignKey("users.id"), server_default="9"))

    @event.listens_for(database.engine, "before_cursor_execute")
    def kill(connection: sa.Connection, cursor: object, statement: str, *_: object) -> None:
        if "NOT (EXISTS" in statement:
            number = connection.connection.driver_connection.thread_id()  # type: ignore[union-attr]
            with engine_of(database.engine.url).connect() as other:
                other.exec_driver_sql(f"KILL {number}")

    with pytest.raises((DbSmartError, sa.exc.DBAPIError)), operations(database) as op:
        add(op)
    event.remove(database.engine, "before_cursor_execute", kill)
    assert "FOREIGN KEY" in shown(database, "orders")
    with pytest.raises(Refused, match="DS204.*1 rows"), operations(database) as op:
        add(op)
    assert "FOREIGN KEY" not in shown(database, "orders")
