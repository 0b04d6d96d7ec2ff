"""What would make PostgreSQL rewrite or scan a table under its exclusive lock: done another way, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Computed, Identity, Integer, Numeric, String, Text
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.databases import execute
from tests.harness.direct import operations


@pytest.fixture
def database(new_url: Callable[[str], URL]) -> Database:
    database = Database("default", None, sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        for sql in (
            'CREATE TABLE "T" (id int PRIMARY KEY, "A" varchar(20) COLLATE "C", b numeric(12, 2), c text)',
            """INSERT INTO "T" VALUES (1, 'a', 1, 'x'), (2, 'B', 2, 'y')""",
            'CREATE INDEX ix_a ON "T" ("A")',
            "CREATE DOMAIN score AS int DEFAULT 1 CHECK (VALUE > 0)",
            "CREATE FUNCTION \"Rnd\"() RETURNS float8 LANGUAGE sql VOLATILE AS 'SELECT random()'",
        ):
            connection.exec_driver_sql(sql)
    return database


def files(database: Database) -> Any:
    """The files of the table and its index: a rewrite makes new ones."""
    with database.engine.connect() as connection:
        return connection.exec_driver_sql(
            "SELECT relname, relfilenode FROM pg_class WHERE relname IN ('T', 'ix_a') ORDER BY 1"
        ).all()


@pytest.mark.parametrize("type_", [String(80), Text()])
def test_a_wider_text_keeps_its_collation_and_its_index(database: Database, type_: Any) -> None:
    before = files(database)
    for _ in range(2):
        with operations(database) as op:
            op.alter_column("T", "A", type_=type_)
    assert files(database) == before
    with database.engine.connect() as connection:
        sql = "SELECT collation_name FROM information_schema.columns WHERE table_name = 'T' AND column_name = 'A'"
        assert connection.exec_driver_sql(sql).scalar_one() == "C"
        assert connection.exec_driver_sql('SELECT "A" FROM "T" ORDER BY "A"').scalars().all() == ["B", "a"]


def test_a_collation_that_is_asked_for_is_taken(database: Database) -> None:
    with operations(database, destructive=True) as op:
        op.alter_column("T", "A", type_=String(80, collation="POSIX"), online=False)
    with database.engine.connect() as connection:
        sql = "SELECT collation_name FROM information_schema.columns WHERE table_name = 'T' AND column_name = 'A'"
        assert connection.exec_driver_sql(sql).scalar_one() == "POSIX"


REWRITES: dict[str, Callable[[Operations, bool], None]] = {
    "identity": lambda op, online: op.add_column("T", Column("n", Integer, Identity()), online=online),
    "computed": lambda op, online: op.add_column(
        "T", Column("n", Integer, Computed("id + 1", persisted=True)), online=online
    ),
    "domain": lambda op, online: op.add_column("T", Column("n", DOMAIN("score", Integer)), online=online),
    "shorter": lambda op, online: op.alter_column("T", "A", type_=String(5), online=online),
    "text to string": lambda op, online: op.alter_column("T", "c", type_=String(8), online=online),
    "fewer digits": lambda op, online: op.alter_column("T", "b", type_=Numeric(8, 2), online=online),
    "using": lambda op, online: op.alter_column("T", "A", type_=Text(), postgresql_using='upper("A")', online=online),
}


@pytest.mark.parametrize("what", REWRITES)
def test_a_rewrite_is_refused_and_done_where_it_is_asked_for(database: Database, what: str) -> None:
    before = files(database)
    with pytest.raises(Refused, match="DS201"), operations(database, destructive=True) as op:
        REWRITES[what](op, True)
    assert files(database) == before
    with operations(database, destructive=True) as op:
        REWRITES[what](op, False)
    assert files(database) != before


def test_a_volatile_function_with_capitals_is_no_rewrite(database: Database) -> None:
    before = files(database)
    with operations(database) as op:
        op.add_column("T", Column("n", sa.Float, nullable=False, server_default=sa.text('"Rnd"()')))
    assert files(database) == before
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql('SELECT count(DISTINCT n) FROM "T"').scalar_one() == 2


def widen(op: Operations) -> None:
    op.alter_column("T", "A", type_=String(80))
    op.alter_column("T", "b", type_=Numeric(14, 2))


#: How each is made, what widens then, and how it is dropped and made again.
IN_THE_WAY: dict[str, tuple[str, Callable[[Operations], None], Callable[[Operations], None]]] = {
    "check": (
        """ALTER TABLE "T" ADD CONSTRAINT "in the Way" CHECK ("A" <> '')""",
        lambda op: op.drop_constraint("in the Way", "T"),
        lambda op: op.create_check_constraint("in the Way", "T", sa.column("A") != ""),
    ),
    "check of two": (
        """ALTER TABLE "T" ADD CONSTRAINT "in the Way" CHECK (b > id - 9)""",
        lambda op: op.drop_constraint("in the Way", "T"),
        lambda op: op.create_check_constraint("in the Way", "T", "b > id - 9"),
    ),
    "partial index": (
        """CREATE INDEX "in the Way" ON "T" (c) WHERE "A" <> ''""",
        lambda op: op.drop_index("in the Way", "T"),
        lambda op: op.create_index("in the Way", "T", ["c"], postgresql_where=sa.column("A") != ""),
    ),
    "index of an expression": (
        """CREATE INDEX "in the Way" ON "T" (upper("A"))""",
        lambda op: op.drop_index("in the Way", "T"),
        lambda op: op.create_index("in the Way", "T", [sa.func.upper(sa.column("A"))]),
    ),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_looks_at_every_row_again_is_refused(database: Database, kind: str) -> None:
    made, drop, create = IN_THE_WAY[kind]
    execute(database, made)
    with pytest.raises(Refused, match="DS201.*'in the Way'"), operations(database) as op:
        widen(op)
    with operations(database, destructive=True) as op:
        drop(op)
        widen(op)
        create(op)
    with operations(database) as op:  # nothing is to be done any more, so that nothing is refused
        widen(op)


def test_what_does_not_look_at_every_row_is_not_refused(database: Database) -> None:
    execute(
        database,
        'ALTER TABLE "T" ADD CONSTRAINT other CHECK (id > 0), ADD CONSTRAINT later CHECK (b > 0) NOT VALID',
        "CREATE INDEX other_ix ON \"T\" (upper(c)) WHERE c <> ''",
        'CREATE UNIQUE INDEX plain ON "T" ("A", id) INCLUDE (b)',
    )
    before = files(database)
    with operations(database) as op:
        widen(op)
    assert files(database) == before


def test_checks_of_a_partition_count(database: Database) -> None:
    execute(
        database,
        "CREATE TABLE parts (id int, a varchar(20)) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF parts (CONSTRAINT of_part CHECK (a <> '')) DEFAULT",
        "INSERT INTO parts VALUES (1, 'x')",
    )
    with pytest.raises(Refused, match="DS201.*'of_part'"), operations(database) as op:
        op.alter_column("parts", "a", type_=String(40))


def test_another_collation_is_refused_and_the_same_is_none(database: Database) -> None:
    with pytest.raises(Refused, match="DS201"), operations(database, destructive=True) as op:
        op.alter_column("T", "A", type_=String(80, collation="POSIX"))
    before = files(database)
    with operations(database) as op:
        op.alter_column("T", "A", type_=String(80, collation="C"))
    assert files(database) == before
