"""What a statement destroys and changes is seen however it is spelled."""

from __future__ import annotations

import json
import re
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
    (("postgresql",), "DO E'BEGIN DROP TABLE orders; END'", ["table orders"]),
    (("postgresql",), "DO $$ BEGIN EXECUTE E'DROP TABLE a'; END $$", ["table a"]),
    (("postgresql",), "DO $$ BEGIN FOR r IN DELETE FROM a RETURNING id LOOP DROP TABLE b; END LOOP; END $$",
     ["table b"]),
    (("postgresql",), "SELECT 1; ALTER TABLE orders ADD a int, DROP state; SELECT 2", ["column orders.state"]),
    (("postgresql",), "TRUNCATE a, ONLY b RESTART IDENTITY CASCADE", ["rows a", "rows b"]),
    (("postgresql",), "DROP TYPE IF EXISTS public.state, other CASCADE", ["type public.state", "type other"]),
    (("postgresql",), "DROP MATERIALIZED  VIEW v CASCADE", ["materialized view v"]),
    (("postgresql",), "DROP FUNCTION f(a int, b text), g CASCADE", ["function f", "function g"]),
    (("postgresql",), "DROP EXTENSION IF EXISTS hstore", ["extension hstore"]),
    (("postgresql",), "DROP OWNED BY old_role, CURRENT_USER CASCADE",
     ["all objects of old_role", "all objects of CURRENT_USER"]),
    (("postgresql",), "ALTER TYPE address ADD ATTRIBUTE a int, DROP ATTRIBUTE IF EXISTS zip CASCADE",
     ["attribute address.zip"]),
    (("postgresql",), "DROP FOREIGN TABLE orders", ["table orders"]),
    (("postgresql",), "DROP TYPE state; DROP FUNCTION f(int); REASSIGN OWNED BY a TO b", []),
    (("mysql",), "ALTER TABLE orders DISCARD TABLESPACE", ["rows orders"]),
    (("mysql",), "ALTER TABLE orders ADD a INT, DROP SYSTEM VERSIONING", ["former rows orders"]),
    (("mysql",), "DELETE HISTORY FROM orders", ["former rows orders"]),
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
    (("postgresql", "mysql"), "WITH t AS (SELECT 1) /* now */ DELETE FROM orders", "several"),
    (("postgresql",), "WITH t AS (/* now */ DELETE FROM orders RETURNING id) SELECT 1", "several"),
    (("postgresql",), "EXPLAIN ANALYZE DELETE FROM orders", "DELETE orders"),
    (("postgresql",), "EXPLAIN (ANALYZE, COSTS OFF) DELETE FROM orders", "DELETE orders"),
    (("postgresql",), "EXPLAIN DELETE FROM orders", None),
    (("postgresql",), "PREPARE p (int) AS DELETE FROM orders", "DELETE orders"),
    (("postgresql",), "MERGE INTO orders USING t ON id = a WHEN MATCHED THEN DELETE", "several"),
    (("postgresql",), "DO $$ BEGIN DELETE FROM orders; END $$", "DELETE orders"),
    (
        ("postgresql",),
        "DO $$ BEGIN FOR r IN DELETE FROM orders RETURNING id LOOP NULL; END LOOP; END $$",
        "DELETE orders",
    ),
    (("postgresql", "sqlite"), "UPDATE orders AS o SET state = t.a FROM t WHERE t.id = o.id", "UPDATE orders"),
    (("postgresql", "sqlite"), "UPDATE orders SET state = 1 WHERE a IS DISTINCT FROM b", "UPDATE orders"),
    (("sqlite",), "UPDATE orders SET state = a IS DISTINCT FROM b", "UPDATE orders"),
    (("sqlite",), "WITH t AS (SELECT 1) DELETE FROM orders WHERE id IN t", "DELETE orders"),
    (("sqlite",), "DELETE FROM orders INDEXED BY ix_orders WHERE id = 1", "DELETE orders"),
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


#: What SQLite is asked about by counting, and how many of 200 rows it changes.
COUNTED = {
    "UPDATE orders SET number = picked.id FROM picked WHERE picked.id = orders.id": 60,
    "UPDATE orders AS o SET number = p.id FROM picked AS p JOIN picked AS q ON q.id = p.id "
    "WHERE p.id = o.id AND o.id > 40": 20,
    "WITH some AS (SELECT id FROM picked WHERE id > 30) DELETE FROM orders WHERE id IN (SELECT id FROM some)": 30,
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 70) "
    "UPDATE orders SET number = i FROM n WHERE i = id": 70,
    "WITH some AS (SELECT 1) DELETE FROM orders": 200,
    "DELETE FROM orders NOT INDEXED WHERE id > 190": 10,
}


@pytest.mark.parametrize("statement", COUNTED)
def test_sqlite_counts_rows_of_several_tables(sqlite_project: Project, statement: str) -> None:
    project, changed = sqlite_project, COUNTED[statement]
    project.config["DB_SMART_STATEMENT_ROWS"] = changed - 1
    make = f"{MAKE}    op.execute('CREATE TABLE picked (id INTEGER PRIMARY KEY)')\n"
    make += "    op.execute('INSERT INTO picked SELECT id FROM orders WHERE id <= 60')\n"
    project.write(make)
    project.boot()
    project.write(f"{make}\n@migration\ndef change(op: Operations):\n    op.execute({statement!r})\n")
    before = project.query("SELECT * FROM orders")
    assert f": error: DS301 {statement[:20]}" in project.run("lint").output
    with pytest.raises(MigrationFailed, match=f"DS301 .* More than {changed - 1} rows"):
        project.boot()
    assert project.query("SELECT * FROM orders") == before
    project.config["DB_SMART_STATEMENT_ROWS"] = changed
    assert "DS301" not in project.run("lint").output
    assert project.boot().applied == ("change",)
    after = project.query("SELECT * FROM orders")
    assert len(before) - len(after) in (0, changed)


#: What makes something, and what then takes a table or a column of it along; and what that is.
ALONG = {
    "CREATE TYPE mood AS ENUM ('a'); ALTER TABLE orders ADD COLUMN mood mood": (
        "DROP TYPE mood CASCADE", "column orders.mood"),
    "CREATE TYPE mood AS ENUM ('a'); ALTER TABLE orders ADD moods mood[]": (
        "DROP TYPE Mood CASCADE", "column orders.moods"),
    "CREATE DOMAIN d AS int; ALTER TABLE orders ADD d d": ("DROP DOMAIN public.d CASCADE", "column orders.d"),
    "CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'; "
    "ALTER TABLE orders ADD t int GENERATED ALWAYS AS (twice(number)) STORED": (
        "DROP FUNCTION twice(int) CASCADE", "column orders.t"),
    "CREATE SCHEMA apart; CREATE TABLE apart.things (id int)": ("DROP SCHEMA apart CASCADE", "table apart.things"),
    "CREATE TABLE top (id int PRIMARY KEY); CREATE TABLE low (id int REFERENCES top); INSERT INTO low VALUES (NULL)": (
        "TRUNCATE top CASCADE", "rows low"),
    "CREATE TYPE place AS (a int, b int); ALTER TABLE orders ADD p place": (
        "ALTER TYPE place DROP ATTRIBUTE b", "attribute place.b"),
    "CREATE TABLE of_it (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF of_it DEFAULT; "
    "INSERT INTO of_it VALUES (1); ALTER TABLE of_it DETACH PARTITION part": (
        "CREATE TABLE mine (id int) PARTITION BY RANGE (id); ALTER TABLE mine ATTACH PARTITION part DEFAULT; "
        "DROP TABLE mine",
        "table part"),
    "SELECT 1": ("DROP OWNED BY CURRENT_USER", "all objects of CURRENT_USER"),
}  # fmt: skip


@pytest.mark.parametrize("made", ALONG)
def test_what_goes_along_is_seen(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], made: str
) -> None:
    project = make_project(new_url("postgresql"))
    project.write(MAKE)
    project.boot()
    for one in made.split("; "):
        project.query(one)
    statement, lost = ALONG[made]
    *first, last = statement.split("; ")
    body = "".join(f'    op.execute("{one}")\n' for one in (*first, last))
    project.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n{body}")
    with pytest.raises(MigrationFailed, match=f"DS303 {re.escape(last)}: .*It would destroy: {re.escape(lost)}"):
        project.boot()
    if not first:
        assert f"It would destroy: {lost}" in project.run("lint").output
    project.write(f"{MAKE}\n@migration(destructive=True)\ndef change(op: Operations):\n{body}")
    if "OWNED" not in statement:
        assert project.boot().applied == ("change",)


def test_what_takes_nothing_along_passes(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    """Views, triggers, defaults and checks are no data; nor is what is not there, or what the migration has made."""
    project = make_project(new_url("postgresql"))
    project.write(MAKE)
    project.boot()
    for one in (
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'; "
        "ALTER TABLE orders ALTER number SET DEFAULT one()",
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION noted()",
        "CREATE VIEW v AS SELECT * FROM orders; CREATE VIEW w AS SELECT * FROM v; CREATE SCHEMA empty",
        "CREATE TYPE unused AS ENUM ('a')",
    ):
        project.query(one)
    body = "".join(
        f'    op.execute("{one}")\n'
        for one in (
            "DROP FUNCTION one() CASCADE", "DROP FUNCTION noted CASCADE", "DROP VIEW v CASCADE",
            "DROP SCHEMA empty CASCADE", "DROP TYPE unused CASCADE", "DROP TYPE IF EXISTS nowhere CASCADE",
            "DROP EXTENSION IF EXISTS nowhere", "CREATE TYPE mine AS ENUM ('a')", "CREATE TABLE made (a mine)",
            "DROP TYPE mine CASCADE", "CREATE TABLE other (id int)", "TRUNCATE other CASCADE",
        )
    )  # fmt: skip
    project.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n{body}")
    assert "DS303" not in project.run("lint").output
    assert project.boot().applied == ("change",)


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
