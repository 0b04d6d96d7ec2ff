"""PostgreSQL: how many rows are in the way of a constraint, whether it is made beside the traffic or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations
from tests.harness.facts import facts

CHANGES: dict[str, tuple[Callable[[Operations, bool], None], str]] = {
    "check": (
        lambda op, online: op.create_check_constraint("Ck", "t", "a < 3 AND b <> ':x%'", online=online),
        "2 rows break its condition",
    ),
    "foreign key": (
        lambda op, online: op.create_foreign_key("Fk", "t", "t", ["a"], ["id"], online=online),
        "1 row refers to missing rows",
    ),
    "unique": (
        lambda op, online: op.create_unique_constraint("Uq", "t", ["a", "b"], online=online),
        "2 rows have the same values as others",
    ),
    "index": (
        lambda op, online: op.create_index("Ux", "t", ["a", "b"], unique=True, online=online),
        "2 rows have the same values as others",
    ),
    "index of an expression": (
        lambda op, online: op.create_index("Ux", "t", [sa.func.lower(sa.column("b"))], unique=True, online=online),
        "",
    ),
    "column with a check": (
        lambda op, online: op.add_column(
            "t", Column("n", Integer, CheckConstraint("n > 7"), server_default="7"), online=online
        ),
        "5 rows break its condition",
    ),
    "column with a key": (
        lambda op, online: op.add_column(
            "t", Column("n", Integer, ForeignKey("t.id"), server_default="9"), online=online
        ),
        "5 rows refer to missing rows",
    ),
}


@pytest.mark.parametrize("online", [True, False])
def test_they_are_counted(new_url: Callable[[str], URL], online: bool) -> None:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    set_up = (
        "DROP TABLE IF EXISTS t",
        "CREATE TABLE t (id int PRIMARY KEY, a int, b text)",
        "INSERT INTO t VALUES (1, 1, 'x'), (2, 1, 'x'), (3, 3, 'X'), (4, NULL, NULL), (5, 8, NULL)",
    )
    for change, expected in CHANGES.values():
        with database.engine.begin() as connection:
            for text in set_up:
                connection.exec_driver_sql(text)
            before = facts(connection)
        with pytest.raises(Refused, match=f"DS204.*{expected}"), operations(database) as op:
            change(op, online)
        with database.engine.connect() as connection:
            after = facts(connection)
        for kind in ("constraints", "indexes"):
            assert after["t"][kind] == before["t"][kind]
