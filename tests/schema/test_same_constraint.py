"""A check or a foreign key of a name that is there: the same, or another, as the database itself sees it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import column
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.store.database import Database
from tests.harness.databases import execute
from tests.harness.direct import operations, statements
from tests.harness.project import Project

TABLE = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, a VARCHAR(20), b INTEGER, c NUMERIC(10, 2), d DATE, "
    "CONSTRAINT {name} CHECK ({condition}))"
)
#: Conditions, in ways to write the same, each with one that is another.
SAME: list[tuple[list[Any], Any]] = [
    ([column("a") != ":none", "a <> ':none'", "(a != ':none')"], "a <> ':None'"),
    (["b > 0", "b>0", "((b) > (0))", column("b") > 0], "b >= 0"),
    ([column("a").in_(["x", "y"]), "a IN ('x','y')"], "a IN ('x', 'z')"),
    (["b BETWEEN 1 AND 5 OR b IS NULL", sa.or_(column("b").between(1, 5), column("b").is_(None))], "b BETWEEN 1 AND 6"),
    (["length(a) > 2 AND c > 0.5", sa.text("length(a)>2 and c>0.5")], "length(a) > 2 OR c > 0.5"),
    (["c >= 0 AND a LIKE 'x%'", sa.and_(column("c") >= 0, column("a").like("x%"))], "c >= 0 AND a LIKE '%x'"),
    (["NOT (b = 3 AND c = 4)", "not (b=3 and c=4)"], "NOT (b = 4 AND c = 3)"),
    (["d > '2020-01-01'", column("d") > "2020-01-01"], "d > '2020-01-02'"),
    (["CASE WHEN b = 1 THEN a = 'x' ELSE c > 1 END", "case when b=1 then a='x' else c>1 end"], "b = 1"),
]


def connected(url: URL, *texts: str) -> Database:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    execute(database, *texts)
    return database


@pytest.mark.parametrize("rows", [0, 2])
def test_checks_are_compared_by_what_they_mean(url: URL, rows: int) -> None:
    database = connected(url)
    plain = database.dialect in ("mysql", "mariadb")

    def create(condition: Any) -> None:
        with operations(database) as op:
            op.create_check_constraint("The_Ck", "t", condition, online=not plain)

    values = ", ".join(f"({number}, NULL, NULL, NULL, NULL)" for number in range(rows))
    for ways, another in SAME:
        execute(database, "DROP TABLE IF EXISTS t", TABLE.format(name="other", condition="b < 100"))
        if rows:
            execute(database, f"INSERT INTO t VALUES {values}")
        create(ways[-1])
        for again in ways:
            assert statements(database, partial(create, again)) == [], again
        with pytest.raises(DbSmartError, match="already has a constraint 'The_Ck', with another condition"):
            create(another)


def test_a_check_is_the_same_after_its_columns_have_changed(url: URL) -> None:
    """Another type, a dump, another name: what an unedited migration asks for is there, or cannot be told."""
    database = connected(url, TABLE.format(name="ck", condition="a IN ('x', 'y') AND b IN (1, 2)"))

    def create() -> None:
        with operations(database) as op:
            op.create_check_constraint("ck", "t", "a IN ('x', 'y') AND b IN (1, 2)")

    changes: list[Callable[[Operations], None]] = [
        lambda op: op.alter_column("t", "a", type_=sa.String(80)),
        lambda op: op.alter_column("t", "b", type_=sa.BigInteger()),
        lambda op: op.alter_column("t", "a", type_=sa.Text()),
        lambda op: op.alter_column("t", "b", new_column_name="bb"),
    ]
    for change in changes:
        assert statements(database, create) == []
        with operations(database, destructive=True) as op:
            change(op)
    assert statements(database, create) == []


def test_a_partitioned_table_of_any_name(new_url: Callable[[str], URL]) -> None:
    database = connected(
        new_url("postgresql"),
        'CREATE TABLE "a FROM %s" (id int, CONSTRAINT ck CHECK (id > 0)) PARTITION BY RANGE (id)',
        'CREATE TABLE one PARTITION OF "a FROM %s" FOR VALUES FROM (0) TO (9)',
        'CREATE TABLE two PARTITION OF "a FROM %s" DEFAULT',
    )
    with operations(database) as op:
        op.create_check_constraint("ck", "a FROM %s", "id > 0")
    with pytest.raises(DbSmartError, match="another condition"), operations(database) as op:
        op.create_check_constraint("ck", "a FROM %s", "id > 1")


def test_what_pg_dump_writes_is_the_same(new_url: Callable[[str], URL]) -> None:
    database = connected(new_url("postgresql"), TABLE.format(name="ck", condition="a IN ('x', 'y')"))
    shown = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'ck'"
    with database.engine.begin() as connection:
        dumped = connection.exec_driver_sql(shown).scalar_one()
        connection.exec_driver_sql(f"ALTER TABLE t DROP CONSTRAINT ck, ADD CONSTRAINT ck {dumped}")
        assert connection.exec_driver_sql(shown).scalar_one() != dumped
    with operations(database) as op:
        op.create_check_constraint("ck", "t", column("a").in_(["x", "y"]))


OPTIONS: list[dict[str, Any]] = [{}, {"ondelete": "CASCADE"}, {"ondelete": "set null", "onupdate": "CASCADE"}]
POSTGRESQL: list[dict[str, Any]] = [
    {"deferrable": True},
    {"initially": "DEFERRED"},
    {"ondelete": "RESTRICT", "match": "FULL"},
]


def test_options_of_a_foreign_key_are_compared(url: URL) -> None:
    database = connected(
        url,
        "CREATE TABLE u (id INTEGER PRIMARY KEY)",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER, KEY (a))"
        if "mysql" in str(url) or "mariadb" in str(url)
        else "CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER)",
    )

    def create(options: dict[str, Any]) -> None:
        with operations(database) as op:
            op.create_foreign_key("Fk", "t", "u", ["a"], ["id"], **options)

    every = OPTIONS + (POSTGRESQL if database.dialect == "postgresql" else [])
    for options in every:
        create(options)
        for others in every:
            if others == options:
                assert statements(database, partial(create, others)) == []
            else:
                with pytest.raises(DbSmartError, match="already has a constraint 'Fk', with "):
                    create(others)
        with operations(database) as op:
            op.drop_constraint("Fk", "t")


M1 = """
@migration
def m1(op):
    op.create_table("t", Column("id", Integer, primary_key=True), Column("a", Integer))
    op.create_check_constraint("ck", "t", "a > {limit}")
"""
M2 = """
@migration
def m2(op):
    op.create_check_constraint("ck", "t", "a > 5")
"""


def test_only_an_edit_is_refused(project: Project) -> None:
    project.write(M1.format(limit=0))
    project.boot()
    if project.dialect != "sqlite":  # which cannot do it
        change = "ALTER TABLE t DROP CONSTRAINT ck, ADD CONSTRAINT ck CHECK (a > 7)"
        connected(sa.make_url(project.url), change)
    result = project.run("migrate", "--force")
    assert result.exit_code == 0, result.output
    project.write(M1.format(limit=3))
    result = project.run("migrate")
    assert result.exit_code == 1
    assert "already has a constraint 'ck', with another condition" in result.output
    assert "Traceback" not in result.output


def test_a_new_database_boots_where_the_old_one_was_content(project: Project) -> None:
    project.write(M1.format(limit=0) + M2)
    assert [*project.boot().applied] == ["m1", "m2"]
