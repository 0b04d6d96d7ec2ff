"""drop_column takes along what is on the column alone, and refuses where it has something together with others."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.store.database import Database
from tests.harness.databases import execute
from tests.harness.direct import operations
from tests.harness.facts import facts
from tests.harness.project import Project

TABLE = "CREATE TABLE t (id int PRIMARY KEY, a int, b int, c int)"
#: What the column ``a`` has together with others, and on which databases.
TOGETHER = {
    "index": "CREATE INDEX shared ON t (b, a)",
    "unique index": "CREATE UNIQUE INDEX shared ON t (b, a)",
    "unique": "ALTER TABLE t ADD CONSTRAINT shared UNIQUE (a, b)",
}
POSTGRESQL = {
    "check": "ALTER TABLE t ADD CONSTRAINT shared CHECK (a <= b)",
    "condition": "CREATE INDEX shared ON t (b) WHERE a > 0",
    "expression": "CREATE INDEX shared ON t ((a + b))",
    "include": "CREATE INDEX shared ON t (b) INCLUDE (a)",
    "unique with include": "ALTER TABLE t ADD CONSTRAINT shared UNIQUE (b) INCLUDE (a)",
    "exclusion": "ALTER TABLE t ADD CONSTRAINT shared EXCLUDE (a WITH =, b WITH =)",
    "foreign key": "ALTER TABLE t ADD CONSTRAINT uq UNIQUE (b, c), "
    "ADD CONSTRAINT shared FOREIGN KEY (a, b) REFERENCES t (b, c)",
}
CASES = [("mariadb", sql) for sql in TOGETHER.values()]
CASES += [("postgresql", sql) for sql in {**TOGETHER, **POSTGRESQL}.values()]


def connected(url: URL, *texts: str) -> Database:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    execute(database, TABLE, "INSERT INTO t VALUES (2, 2, 2, 2)", *texts)
    return database


@pytest.mark.parametrize("dialect", ["mariadb", "postgresql"])
def test_what_it_has_with_others_is_in_the_way(new_url: Callable[[str], URL], dialect: str) -> None:
    database = connected(new_url(dialect))
    for sql in (sql for of, sql in CASES if of == dialect):
        execute(database, sql)
        with database.engine.connect() as connection:
            before = facts(connection)
        refused = pytest.raises(DbSmartError, match="the (index|constraint) 'shared'.*together")
        with refused, operations(database, destructive=True) as op:
            op.drop_column("t", "a")
        with database.engine.connect() as connection:
            assert facts(connection) == before, sql
        execute(database, "DROP TABLE t", TABLE, "INSERT INTO t VALUES (2, 2, 2, 2)")


@pytest.mark.parametrize("dialect", ["mariadb", "postgresql"])
def test_what_is_on_it_alone_goes_with_it(new_url: Callable[[str], URL], dialect: str) -> None:
    database = connected(
        new_url(dialect),
        "CREATE INDEX alone ON t (a)",
        "CREATE UNIQUE INDEX unique_alone ON t (a)",
        "CREATE INDEX others ON t (b, c)",
    )
    if dialect == "postgresql":
        execute(
            database,
            "CREATE INDEX expression ON t ((a + 1)) WHERE a > 0",
            "ALTER TABLE t ADD CHECK (a > 0), ADD UNIQUE (a), ADD FOREIGN KEY (a) REFERENCES t (id)",
        )
    with operations(database, destructive=True) as op:
        op.drop_column("t", "a")
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        assert [column["name"] for column in inspector.get_columns("t")] == ["id", "b", "c"]
        assert [index["name"] for index in inspector.get_indexes("t")] == ["others"]


def test_a_partition_counts(new_url: Callable[[str], URL]) -> None:
    database = connected(
        new_url("postgresql"),
        "CREATE TABLE parts (id int, a int, b int) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF parts DEFAULT",
        "CREATE INDEX of_part ON part (a, b)",
    )
    with pytest.raises(DbSmartError, match="'of_part'"), operations(database, destructive=True) as op:
        op.drop_column("parts", "a")


@pytest.mark.parametrize("dialect", ["mariadb", "postgresql"])
def test_a_dry_run_knows_what_was_dropped_before(
    new_url: Callable[[str], URL], make_project: Callable[..., Project], dialect: str
) -> None:
    url = new_url(dialect)
    connected(url, TOGETHER["index"])
    project = make_project(url)
    drop = "    op.drop_column('t', 'a')\n"
    for before, error in (("", "together"), ("    op.drop_index('shared', 't')\n", None)):
        project.write(f"@migration(destructive=True)\ndef m(op):\n{before}{drop}")
        (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
        assert (error or "None") in str(shown["error"])
    project.boot()
    assert project.columns("t") == {"id", "b", "c"}
