"""Attacks on the scratch databases of MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine

from aurum_harmony.db_smart.drift.comparison import Comparison
from aurum_harmony.db_smart.errors import DbSmartError
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database
from tests.harness import servers
from tests.harness.drift import execute, scratch_databases
from tests.harness.servers import query

NewUrl = Callable[[str], URL]


@pytest.fixture
def database(new_url: NewUrl) -> Database:
    url = new_url("mariadb")
    execute(
        url, "CREATE TABLE people (id INTEGER AUTO_INCREMENT PRIMARY KEY)", "CREATE SEQUENCE numbers START WITH 500"
    )
    return Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))


def people() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("people", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Sequence("numbers", start=500, metadata=metadata)
    return metadata


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO {own}.people VALUES (7)",
        "ALTER TABLE `{own}`.people ADD COLUMN IF NOT EXISTS more INTEGER",
        "SELECT SETVAL({own}.numbers, 9000)",
        "CREATE TRIGGER {own}.t BEFORE INSERT ON {own}.people FOR EACH ROW SET @a = 1",
        "USE {own}",
        "SET GLOBAL long_query_time = 4321",
        "SET SESSION lock_wait_timeout = 2, GLOBAL long_query_time = 4321",
    ],
)
def test_what_listeners_name(database: Database, sql: str) -> None:
    """What names the database means the scratch one; what would leave that, or change the server, is refused."""
    url, metadata = database.app_engine.url, people()
    sql = sql.format(own=url.database)
    sa.event.listen(metadata, "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    sa.event.listen(metadata, "after_create", sa.DDL("INSERT INTO people (id) VALUES (8)"))  # type: ignore[no-untyped-call]
    if "USE" in sql or "GLOBAL" in sql:
        with pytest.raises(DbSmartError, match="scratch database"):
            Comparison().of(database, metadata)
    else:
        Comparison().of(database, metadata)
    assert query(url, "SELECT id FROM people") == []
    assert query(url, "SELECT column_name FROM information_schema.columns WHERE table_schema = database()") != []
    assert query(url, "SHOW COLUMNS FROM people LIKE 'more'") == []
    assert query(url, "SHOW TRIGGERS") == []
    assert query(url, "SELECT NEXTVAL(numbers)") == [(500,)]
    assert query(url, "SELECT @@GLOBAL.long_query_time = 4321") == [(0,)]
    assert scratch_databases(url) == []


def test_what_listeners_change_elsewhere(database: Database, mariadb: URL) -> None:
    metadata = people()
    with servers.new_database(mariadb) as other:
        execute(other, "CREATE TABLE t (id INT PRIMARY KEY)")
        sql = f"INSERT INTO {other.database}.t VALUES (1)"
        sa.event.listen(metadata, "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
        with pytest.raises(DbSmartError, match="it names the database"):
            Comparison().of(database, metadata)
        assert query(other, "SELECT * FROM t") == []


@pytest.mark.parametrize(
    "sql",
    [
        "SET SESSION lock_wait_timeout = 2, GLOBAL long_query_time = 4321",
        "SET @a = 1, @@GLOBAL.long_query_time = 4321",
        "SET @a = NEXTVAL({own}.numbers)",
        "CREATE TABLE more AS SELECT NEXTVAL({own}.numbers) AS n",
        "SELECT SETVAL({own}.numbers, 9000)",
        "ALTER SEQUENCE {own}.numbers RESTART 9000",
    ],
)
def test_what_is_pending(database: Database, sql: str) -> None:
    url = database.app_engine.url
    pending = Preview("more", "new", script=[sql.format(own=url.database)])
    Comparison().of(database, people(), [pending])
    assert query(url, "SELECT NEXTVAL(numbers)") == [(500,)]
    assert query(url, "SELECT @@GLOBAL.long_query_time = 4321") == [(0,)]
    assert scratch_databases(url) == []


@pytest.mark.parametrize("pending", [True, False])
def test_a_listener_that_leads_back(database: Database, pending: bool) -> None:
    """Applications with a database for each tenant choose it before each statement."""
    url, metadata = database.app_engine.url, people()

    def choose(_: Any, cursor: Any, *__: Any) -> None:
        cursor.execute(f"USE `{url.database}`")

    sql = "ALTER TABLE people ADD COLUMN IF NOT EXISTS more INTEGER"
    if not pending:
        sa.event.listen(metadata, "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    sa.event.listen(Engine, "before_cursor_execute", choose)
    try:
        if pending:
            drift = Comparison().of(database, metadata, [Preview("more", "new", script=[sql])])
            assert "leads out of the scratch database" in drift.uncounted["more"]
        else:
            with pytest.raises(DbSmartError, match="leads out of the scratch database"):
                Comparison().of(database, metadata)
    finally:
        sa.event.remove(Engine, "before_cursor_execute", choose)
    assert query(url, "SHOW COLUMNS FROM people LIKE 'more'") == []
    assert scratch_databases(url) == []
