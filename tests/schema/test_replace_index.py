"""replace_index(): the new index is there before the old one goes, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.clients import run_client
from tests.harness.direct import operations, statements
from tests.harness.project import Project

#: How each database shows the index.
SHOWN = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE name = 'ix'",
    "postgresql": "SELECT pg_get_indexdef('ix'::regclass)",
    "mysql": "SELECT column_name, concat('(', sub_part, ')') FROM information_schema.statistics "
    "WHERE table_schema = DATABASE() AND index_name = 'ix'",
}


@pytest.fixture
def database(url: URL) -> Database:
    made = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with made.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id integer PRIMARY KEY, a integer, b integer)")
        connection.exec_driver_sql("CREATE INDEX ix ON t (a)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 1, 1), (2, 2, 1)")
    return made


def indexes(database: Database) -> dict[str, tuple[list[str | None], bool]]:
    with database.engine.connect() as connection:
        found = sa.inspect(connection).get_indexes("t")
    return {str(one["name"]): (one["column_names"], bool(one["unique"])) for one in found}


def replace(database: Database, columns: list[Any], **options: Any) -> Callable[[], None]:
    def run() -> None:
        with operations(database) as op:
            op.replace_index("ix", "t", columns, **options)

    return run


def test_the_new_one_is_built_first(database: Database) -> None:
    sent = statements(database, replace(database, ["a", "b"]))
    assert indexes(database) == {"ix": (["a", "b"], False)}
    first = {
        "sqlite": "DROP INDEX ix",
        "postgresql": "CREATE INDEX CONCURRENTLY ix_db_smart_new ON t (a, b)",
        "mysql": "ALTER TABLE t DROP INDEX ix, ADD INDEX ix (a, b), LOCK=NONE",
    }[database.dialect]
    assert sent[0] == first
    assert statements(database, replace(database, ["a", "b"])) == []
    replace(database, ["a"], unique=True)()
    assert indexes(database) == {"ix": (["a"], True)}
    assert statements(database, replace(database, ["a"], unique=True)) == []


def test_one_that_is_missing_is_created(database: Database) -> None:
    def run() -> None:
        with operations(database) as op:
            op.replace_index("new", "t", ["b"])

    run()
    assert indexes(database)["new"] == (["b"], False)
    assert statements(database, run) == []


def test_rows_in_the_way_leave_the_old_one(database: Database) -> None:
    with pytest.raises(Refused, match="DS204 .*have the same values|DS204 .*repeat"):
        replace(database, ["b"], unique=True)()
    assert indexes(database) == {"ix": (["a"], False)}


def test_one_that_keeps_values_apart_is_asked_for(database: Database) -> None:
    replace(database, ["a"], unique=True)()
    with pytest.raises(Refused, match="DS106"):
        replace(database, ["a", "b"])()
    assert indexes(database) == {"ix": (["a"], True)}


def test_that_of_a_constraint_is_not_replaced(new_url: Callable[[str], URL]) -> None:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id integer PRIMARY KEY, a integer CONSTRAINT ix UNIQUE, b integer)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 1, 1)")
    with pytest.raises(DbSmartError, match="is that of a constraint"):
        replace(database, ["b"])()


@pytest.mark.parametrize("old", [True, False])
def test_what_a_kill_has_left_is_cleaned_up(new_url: Callable[[str], URL], old: bool) -> None:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE TABLE t (id integer PRIMARY KEY, a integer, b integer)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 1, 1), (2, 2, 1)")
        if old:
            connection.exec_driver_sql("CREATE INDEX ix ON t (a)")
        with pytest.raises(sa.exc.IntegrityError):
            connection.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY ix_db_smart_new ON t (b)")
    assert "ix_db_smart_new" in indexes(database)
    replace(database, ["a", "b"])()
    assert indexes(database) == {"ix": (["a", "b"], False)}


def test_a_condition_or_an_expression_is_remembered(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    kind = project.dialect
    begin = """
@migration
def begin(op):
    op.create_table("t", Column("id", Integer, primary_key=True), Column("a", String(20)), Column("b", String(20)))
    op.create_index("ix", "t", ["a"])
    op.execute("INSERT INTO t (id, a, b) VALUES (1, 'x', 'x')")
"""
    text = "postgresql_where=text('b IS NOT NULL'), sqlite_where=text('b IS NOT NULL')"
    text = "mysql_length={'a': 5}, mariadb_length={'a': 5}" if kind == "mysql" else text
    later = f"""
@migration
def replaced(op):
    op.replace_index("ix", "t", ["a"], {text})
    op.replace_index("ix", "t", ["a"], {text})
"""
    project.write(begin)
    project.boot()
    project.write(begin + later)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], len(shown["does"]), len(shown["satisfied"])) == (None, 1, 1)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.boot().applied == ()
    again = later.replace("def replaced", "def again")
    project.write(begin + later + again)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], len(shown["does"]), len(shown["satisfied"])) == (None, 0, 2)
    (before,) = project.query(SHOWN[kind])
    assert ("(5)" if kind == "mysql" else "IS NOT NULL") in before[-1]
    # The first migration runs again, and leaves what the later one made.
    project.write(begin.replace("'x')\"", "'x') \"").replace("VALUES (1", "VALUES (2") + later + again)
    assert project.boot().applied
    assert project.query(SHOWN[kind]) == [before]


def test_what_needs_an_index_is_said_before(new_url: Callable[[str], URL]) -> None:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        for statement in (
            "CREATE TABLE t (id integer NOT NULL, a integer, b integer)",
            "CREATE UNIQUE INDEX ix ON t (id)",
            "CREATE TABLE u (t_id integer CONSTRAINT fk REFERENCES t (id))",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX ix",
            "INSERT INTO t VALUES (1, 1, 1)",
            "CREATE TABLE parts (id integer, a integer) PARTITION BY RANGE (id)",
            "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9)",
            "CREATE INDEX whole ON parts (a)",
            "INSERT INTO parts VALUES (1, 1)",
        ):
            connection.exec_driver_sql(statement)
    said = (
        r"the foreign key fk of u and the replica identity of the table need the index as it is\. Nothing was changed"
    )
    with pytest.raises(DbSmartError, match=said), operations(database, destructive=True) as op:
        op.replace_index("ix", "t", ["id", "a"], unique=True)
    assert indexes(database) == {"ix": (["id"], True)}
    with (
        pytest.raises(DbSmartError, match="the index whole of the partitioned table needs"),
        operations(database) as op,
    ):
        op.replace_index("part_a_idx", "part", ["id"])


def test_one_that_a_foreign_key_needs(new_url: Callable[[str], URL]) -> None:
    database = Database("default", None, sa.create_engine(new_url("mariadb"), poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE p (id integer PRIMARY KEY)")
        key = "CONSTRAINT fk FOREIGN KEY (a) REFERENCES p (id)"
        connection.exec_driver_sql(f"CREATE TABLE t (id integer PRIMARY KEY, a integer, b integer, KEY ix (a), {key})")
    with pytest.raises(DbSmartError, match="a foreign key needs the index as it is. Nothing was changed"):
        replace(database, ["b"])()
    assert indexes(database) == {"ix": (["a"], False)}
    replace(database, ["a", "b"])()
    assert indexes(database) == {"ix": (["a", "b"], False)}


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_condition_makes_a_unique_one_weaker(database: Database) -> None:
    replace(database, ["a"], unique=True)()
    condition: dict[str, Any] = {f"{kind}_where": sa.text("b > 1") for kind in ("sqlite", "postgresql")}
    with pytest.raises(Refused, match="DS106"):
        replace(database, ["a"], unique=True, **condition)()
    with operations(database, destructive=True) as op:
        op.replace_index("ix", "t", ["a"], unique=True, **condition)
