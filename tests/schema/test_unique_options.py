"""create_unique_constraint on PostgreSQL: the same with rows as without, and only by an index that is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.store.database import Database
from tests.harness.databases import execute
from tests.harness.direct import operations, statements

OPTIONS: list[dict[str, Any]] = [
    {},
    {"deferrable": True, "initially": "DEFERRED"},
    {"deferrable": True},
    {"postgresql_nulls_not_distinct": True},
    {"postgresql_include": ["n"]},
    {"postgresql_include": ["n"], "postgresql_nulls_not_distinct": True, "deferrable": True, "initially": "DEFERRED"},
]
DEFINITION = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'uq' AND conrelid = 't'::regclass"


@pytest.fixture
def database(new_url: Callable[[str], URL]) -> Database:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    execute(database, "CREATE TABLE t (id int, a int, n int)")
    return database


@pytest.mark.parametrize("options", OPTIONS)
def test_options_are_kept_with_rows_and_without(database: Database, options: dict[str, Any]) -> None:
    definitions = []
    for _ in range(2):

        def run() -> None:
            with operations(database) as op:
                op.create_unique_constraint("uq", "t", ["a"], **options)

        run()
        definitions.append(execute(database, DEFINITION))
        assert statements(database, run) == []
        execute(database, "ALTER TABLE t DROP CONSTRAINT uq", "INSERT INTO t VALUES (1, 1, 1)")
    assert definitions[0] == definitions[1]
    assert ("DEFERRABLE" in definitions[1]) == ("deferrable" in options)
    assert ("INCLUDE (n)" in definitions[1]) == ("postgresql_include" in options)
    assert ("NULLS NOT DISTINCT" in definitions[1]) == ("postgresql_nulls_not_distinct" in options)


@pytest.mark.parametrize(
    "index",
    [
        "UNIQUE INDEX uq ON t (n)",
        "UNIQUE INDEX uq ON t (a) WHERE n > 0",
        "INDEX uq ON t (a)",
        "UNIQUE INDEX uq ON t (a, n)",
        "UNIQUE INDEX uq ON t (a) INCLUDE (n)",
        "UNIQUE INDEX uq ON t (a) NULLS NOT DISTINCT",
        "UNIQUE INDEX uq ON t ((a + 1))",
    ],
)
def test_an_index_of_that_name_that_is_another_is_an_error(database: Database, index: str) -> None:
    execute(database, "INSERT INTO t VALUES (1, 1, 1)", f"CREATE {index}")
    with pytest.raises(DbSmartError, match="already has an index 'uq'"), operations(database) as op:
        op.create_unique_constraint("uq", "t", ["a"])
    assert execute(database, DEFINITION) is None


def test_an_index_that_is_the_same_becomes_the_constraint(database: Database) -> None:
    execute(database, "INSERT INTO t VALUES (1, 1, 1)", "CREATE UNIQUE INDEX uq ON t (a)")
    with operations(database) as op:
        op.create_unique_constraint("uq", "t", ["a"])
    assert execute(database, DEFINITION) == "UNIQUE (a)"
