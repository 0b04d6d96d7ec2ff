"""What a statement destroys and changes is seen however it is spelled."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import MigrationFailed
from aurum_harmony.db_smart.dialects.base import facts_of
from aurum_harmony.db_smart.schema.raw_sql import changes_rows, losses, row_change, within
from aurum_harmony.db_smart.session.controls import controls_transaction, split
from tests.harness.project import Project
from tests.lint.samples import MAKE

EVERY = ("postgresql", "mysql", "sqlite")
#: Databases, a statement, and what it destroys.
LOSSES = [
    (EVERY, "drop /* all */ table orders", ["table orders"]),
    (EVERY, "DROP -- all\n TABLE orders -- of it", ["table orders"]),
    (EVERY, "ALTER TABLE orders -- now\n DROP COLUMN state", ["column orders.state"]),
    (EVERY, "ALTER TABLE orders/**/DROP COLUMN state", ["column orders.state"]),
    (EVERY, "SELECT ';'; DROP TABLE orders", ["table orders"]),
    (EVERY, "SELECT 'DROP TABLE orders' -- DROP TABLE orders", []),
    (("postgresql",), "DROP TABLE shop.public.orders", ["table shop.public.orders"]),
    (("postgresql",), "/* a /* b */ c */ DROP TABLE orders", ["table orders"]),
    (("postgresql",), "TRUNCATE ONLY (orders)", ["rows orders"]),
    (("postgresql",), "CREATE FUNCTION f() RETURNS int AS $$ SELECT 1; $$ LANGUAGE sql; DROP TABLE a", ["table a"]),
    (("postgresql",), "DO $$ BEGIN DROP TABLE orders; END $$", ["table orders"]),
    (("postgresql",), "DO LANGUAGE plpgsql $x$ BEGIN IF true THEN\n DROP TABLE a, b; ELSE TRUNCATE c; END IF; END $x$",
     ["table a", "table b", "rows c"]),
    (("postgresql",), "DO $$ DECLARE x int; BEGIN EXECUTE 'ALTER TABLE orders DROP a'; END $$", ["column orders.a"]),
    (("postgresql",), "DO $$ BEGIN CREATE TYPE t AS ENUM ('DROP TABLE x'); EXCEPTION WHEN others THEN END $$", []),
    (("mysql",), "/*!50001 DROP TABLE orders */", ["table orders"]),
    (("mysql",), "/*M! DROP TABLE orders */", ["table orders"]),
    (("mysql",), "DROP TABLES /*!40000 IF EXISTS */ orders, lines", ["table orders", "table lines"]),
    (("mysql",), "ALTER ONLINE IGNORE TABLE orders WAIT 5 DROP state", ["column orders.state"]),
    (("mysql",), "ALTER TABLE orders NOWAIT DROP state", ["column orders.state"]),
    (("mysql",), "ALTER TABLE orders DROP PARTITION IF EXISTS p0", ["partition orders.p0"]),
    (("mysql",), "BEGIN NOT ATOMIC DROP TABLE orders; END", ["table orders"]),
    (("mysql",), "EXECUTE IMMEDIATE 'DROP TABLE orders'", ["table orders"]),
    (("mysql",), "PREPARE s FROM 'DROP TABLE orders'", ["table orders"]),
    (("mysql",), "DROP TEMPORARY TABLE orders", []),
]  # fmt: skip
CHANGES = [
    (EVERY, "UPDATE orders -- now\n SET state = 1", "UPDATE orders"),
    (EVERY, "UPDATE/**/orders/**/SET state = 1", "UPDATE orders"),
    (EVERY, "WITH t AS (SELECT 1) /* now */ DELETE FROM orders", "several"),
    (("postgresql",), "WITH t AS (/* now */ DELETE FROM orders RETURNING id) SELECT 1", "several"),
    (("postgresql",), "EXPLAIN ANALYZE DELETE FROM orders", "DELETE orders"),
    (("postgresql",), "EXPLAIN (ANALYZE, COSTS OFF) DELETE FROM orders", "DELETE orders"),
    (("postgresql",), "EXPLAIN DELETE FROM orders", None),
    (("postgresql",), "PREPARE p (int) AS DELETE FROM orders", "DELETE orders"),
    (("postgresql",), "MERGE INTO orders USING t ON id = a WHEN MATCHED THEN DELETE", "several"),
    (("postgresql",), "DO $$ BEGIN DELETE FROM orders; END $$", "DELETE orders"),
    (("mysql",), "ANALYZE FORMAT=JSON DELETE FROM orders", "DELETE orders"),
    (("mysql",), "SET STATEMENT max_statement_time=5 FOR DELETE FROM orders", "DELETE orders"),
    (("mysql",), "DELETE FROM orders PARTITION (p0) WHERE 1", "several"),
]


def cases(texts: list[tuple[tuple[str, ...], str, object]]) -> list[tuple[str, str, object]]:
    return [(dialect, text, wanted) for dialects, text, wanted in texts for dialect in dialects]


@pytest.mark.parametrize(("dialect", "sql", "wanted"), cases(LOSSES))  # type: ignore[arg-type]
def test_losses(dialect: str, sql: str, wanted: list[str]) -> None:
    facts = facts_of(dialect)
    found = [one for part in split(sql, dialect) for inner in within(part, facts) for one in losses(inner, facts)]
    assert [f"{one.kind} {'.'.join(filter(None, (one.place, one.name)))}" for one in found] == wanted


@pytest.mark.parametrize(("dialect", "sql", "wanted"), cases(CHANGES))  # type: ignore[arg-type]
def test_changes(dialect: str, sql: str, wanted: str | None) -> None:
    facts = facts_of(dialect)
    found = []
    for inner in within(sql, facts):
        if changes_rows(inner, facts):
            change = row_change(inner, facts)
            found.append("several" if change is None else f"{change.verb} {change.table}")
    assert found == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
    ("dialect", "sql", "wanted"),
    [
        ("postgresql", "PREPARE TRANSACTION 'x'", True),
        ("postgresql", "PREPARE p AS SELECT 1", False),
        ("mysql", "SET autocommit = 1", True),
        ("mysql", "SET SESSION sql_mode = '', @@session.autocommit = ON", True),
        ("mysql", "SET autocommit = 0", False),
        ("mysql", "SET @autocommit = 1", False),
        ("mysql", "SET NAMES 'autocommit = 1'", False),
    ],
)
def test_transactions(dialect: str, sql: str, wanted: bool) -> None:
    assert controls_transaction(sql, dialect) is wanted


#: What destroys the table or changes all of its rows, by the kind of database.
HIDDEN = {
    "postgresql": (
        "DO $$ BEGIN IF true THEN DROP TABLE orders; END IF; END $$",
        "DO $$ BEGIN DELETE FROM orders; END $$",
        "EXPLAIN ANALYZE DELETE FROM orders",
        "/* a /* b */ c */ DELETE FROM orders",
        "WITH t AS (/* now */ DELETE FROM orders RETURNING id) SELECT count(*) FROM t",
    ),
    "mysql": (
        "/*!50001 DROP TABLE orders */",
        "EXECUTE IMMEDIATE 'DROP TABLE orders'",
        "BEGIN NOT ATOMIC DROP TABLE orders; END",
        "ANALYZE DELETE FROM orders",
        "SET STATEMENT max_statement_time=5 FOR DELETE FROM orders",
        "SET autocommit = 1",
    ),
    "sqlite": ("DROP /* x */ TABLE orders", "DELETE /* x */ FROM orders WHERE 1 = 1"),
}


def test_it_is_refused_and_lint_tells_of_it(project: Project) -> None:
    project.config["DB_SMART_STATEMENT_ROWS"] = 50
    project.write(MAKE)
    project.boot()
    for statement in HIDDEN[project.dialect]:
        project.write(f'{MAKE}\n@migration\ndef change(op: Operations):\n    op.execute("""{statement}""")\n')
        result = project.run("lint")
        assert result.exit_code == 1, statement
        assert ": error: DS30" in result.output, statement
        with pytest.raises(MigrationFailed, match="DS30"):
            project.boot()
        assert project.query("SELECT count(*) FROM orders") == [(200,)], statement


def test_a_block_that_does_no_harm(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    project = make_project(new_url("postgresql"), {"DB_SMART_STATEMENT_ROWS": 50})
    project.write(MAKE)
    project.boot()
    body = (
        "DO $$ DECLARE most int := 9; BEGIN IF NOT EXISTS (SELECT FROM pg_type WHERE typname = 'state') THEN "
        "CREATE TYPE state AS ENUM ('a'); END IF; DROP TABLE IF EXISTS nowhere; "
        "UPDATE orders SET number = 1 WHERE id < most; CREATE TABLE mine (id int); DROP TABLE mine; END $$"
    )
    project.write(f'{MAKE}\n@migration\ndef change(op: Operations):\n    op.execute("""{body}""")\n')
    assert project.boot().applied == ("change",)


def test_each_statement_of_a_string_is_looked_at(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    """Also behind a comment in a line of its own."""
    project = make_project(new_url("postgresql"))
    project.write(MAKE)
    project.boot()
    body = "-- first\nSELECT 1; ALTER TABLE orders ALTER number TYPE bigint; "
    body += "DO $x$ BEGIN ALTER TABLE orders ADD y int; END $x$"
    project.write(f'{MAKE}\n@migration\ndef change(op: Operations):\n    op.execute("""{body}""")\n')
    found = json.loads(project.run("lint", "--json").stdout)["databases"][0]
    assert [one["statement"] for one in found["statements"]] == [
        "ALTER TABLE orders ALTER number TYPE bigint",
        "ALTER TABLE orders ADD y int",
    ]
    assert [one["rule"] for one in found["findings"]] == ["DS201"]
