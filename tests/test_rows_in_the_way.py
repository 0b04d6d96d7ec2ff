"""Rows that break a new constraint are DS204, and counted, in the plain forms too."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.database import Database
from aurum_harmony.db_smart.rules import Refused

from .direct import operations
from .facts import facts
from .test_backfill import engine_of

Action = Callable[[Operations, bool], None]
#: What is refused, how many rows are in the way, and whether what came before it stays where nothing is transactional.
CASES: dict[str, tuple[Action, str]] = {
    "unique": (lambda op, online: op.create_unique_constraint("uq", "t", ["a", "b%"], online=online), "2 rows"),
    "unique index": (lambda op, online: op.create_index("ux", "t", ["a", "b%"], unique=True, online=online), "2 rows"),
    "check": (lambda op, online: op.create_check_constraint("ck", "t", sa.column("a") < 8, online=online), "1 row "),
    "foreign key": (
        lambda op, online: op.create_foreign_key("fk", "t", "t", ["a"], ["id"], online=online),
        "2 row",
    ),
    "not null": (lambda op, online: op.alter_column("t", "b%", nullable=False, online=online), "2 rows"),
    "unique column": (
        lambda op, online: op.add_column("t", Column("x%", Integer, unique=True, server_default="5"), online=online),
        "4 rows",
    ),
    "checked column": (
        lambda op, online: op.add_column(
            "t", Column("x%", Integer, CheckConstraint("a < 8 OR a % 2 > 7"), server_default="5"), online=online
        ),
        "1 row ",
    ),
    "column with a named check": (
        lambda op, online: op.add_column(
            "t", Column("x", Integer, CheckConstraint("x + a < 8", name="ck"), server_default="5"), online=online
        ),
        "2 rows",
    ),
}


@pytest.fixture(params=["sqlite", "mariadb"])
def database(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> Database:
    database = Database("default", None, engine_of(new_url(request.param)))
    table = sa.Table("t", sa.MetaData(), Column("id", Integer, primary_key=True), Column("a", Integer))
    table.append_column(Column("b%", Integer))
    with database.engine.begin() as connection:
        table.create(connection)
        rows = [(1, 1, 1), (2, 1, 1), (3, 7, None), (4, 8, None)]
        connection.execute(table.insert(), [dict(zip(("id", "a", "b%"), row, strict=True)) for row in rows])
    return database


@pytest.mark.parametrize("online", [True, False])
def test_rows_in_the_way_are_counted(database: Database, online: bool) -> None:
    for name, (action, count) in CASES.items():
        if database.dialect == "mysql" and name == "check" and online:
            continue  # DS202
        with database.engine.connect() as connection:
            before = facts(connection)
        with pytest.raises(Refused) as caught, operations(database) as op:
            action(op, online)
        assert re.match(rf"DS204 .*: rows that are there break it\. {count}", caught.value.message), name
        if database.dialect == "mysql" and name == "foreign key" and online:
            with operations(database) as op:
                op.drop_index("fk", "t")  # MariaDB makes one for a key, and leaves it when the key is taken back
        with database.engine.connect() as connection:
            assert facts(connection) == before, name


@pytest.mark.parametrize("online", [True, False])
def test_a_foreign_key_that_comes_with_a_column_is_counted_too(database: Database, online: bool) -> None:
    column = Column("x%", Integer, ForeignKey("t.id"), server_default="55")
    with pytest.raises(Refused, match=r"DS204 .*break it\. 4 row"), operations(database) as op:
        op.add_column("t", column, online=online)
    with database.engine.connect() as connection:
        assert sa.inspect(connection).get_foreign_keys("t") == []
    with pytest.raises(Refused, match=r"DS204 .*break it\. 4 row"), operations(database) as op:  # the next run
        op.add_column("t", column, online=online)


def test_a_checked_column_whose_default_fits_is_added(database: Database) -> None:
    with operations(database) as op:
        op.add_column("t", Column("x%", Integer, CheckConstraint("`x%` > 4"), server_default="5"))
        op.add_column("t", Column("y", Integer, CheckConstraint("y > 4")))  # NULL breaks no check
        op.execute(sa.update(sa.table("t", sa.column("a"))).values(a=9))
