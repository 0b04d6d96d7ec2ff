"""``lint --trace``: what each statement really did on a scratch copy, of which nothing stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness.project import Project
from tests.lint.samples import MAKE, schemas

#: Statement -> its locks and whether it writes the table again; MariaDB: what it accepts.
EXPECTED: dict[str, dict[str, Any]] = {
    "postgresql": {
        "ALTER TABLE orders ADD COLUMN note text": ("ACCESS EXCLUSIVE", False),
        "ALTER TABLE orders ALTER COLUMN number TYPE bigint": ("ACCESS EXCLUSIVE", True),
        "CREATE INDEX ix_number ON orders (number)": ("SHARE", False),
        "ALTER TABLE orders ADD CHECK (number > 0) NOT VALID": ("ACCESS EXCLUSIVE", False),
        "ALTER TABLE orders ALTER COLUMN number SET STATISTICS 5": ("SHARE UPDATE EXCLUSIVE", False),
        "CREATE INDEX CONCURRENTLY ix_beside ON orders (id)": ("SHARE UPDATE EXCLUSIVE", False),
        "ALTER TABLE orders RENAME TO renamed": ("ACCESS EXCLUSIVE", False),
    },
    "mysql": {
        "ALTER TABLE orders ADD COLUMN note text": "INSTANT",
        "ALTER TABLE orders MODIFY number BIGINT": "COPY, LOCK=SHARED",
        "CREATE INDEX ix_number ON orders (number)": "INPLACE, LOCK=NONE",
    },
    "sqlite": {
        "ALTER TABLE orders ADD COLUMN note text": False,
        "CREATE INDEX ix_number ON orders (number)": False,
    },
}


def traced(project: Project) -> list[dict[str, Any]]:
    result = project.run("lint", "--trace", "--json")
    (found,) = json.loads(result.stdout)["databases"]
    assert found["notes"] == []
    return list(found["traced"])


def test_what_statements_did(project: Project) -> None:
    project.write(MAKE)
    project.boot()
    expected = EXPECTED[project.dialect]
    body = "\n".join(f'    op.execute("{statement}")' for statement in expected)
    project.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n{body}\n")
    before = project.columns("orders"), project.history(), schemas(project)
    found = {one["statement"]: one for one in traced(project) if one["statement"] in expected}
    assert list(found) == list(expected)
    for statement, wanted in expected.items():
        one = found[statement]
        assert one["error"] is None
        assert one["seconds"] > 0
        if project.dialect == "postgresql":
            assert (one["locks"]["orders"], one["rewritten"] == ["orders"]) == wanted, statement
        elif project.dialect == "mysql":
            assert one["accepted"] == wanted, statement
        else:
            assert (one["rewritten"] == ["orders"]) == wanted, statement
    assert (project.columns("orders"), project.history(), schemas(project)) == before
    assert (
        f"on a scratch copy of the database default:\n    {next(iter(expected))}"
        in project.run("lint", "--trace").output
    )


def test_operations_are_traced_as_they_are_sent(project: Project) -> None:
    project.write(MAKE)
    project.boot()
    project.write(
        f"{MAKE}\n@migration\ndef change(op: Operations):\n"
        "    op.add_column('orders', Column('note', String(20)))\n"
        "    op.create_index('ix_orders_number', 'orders', ['number'])\n"
    )
    found = [one for one in traced(project) if one["error"] is None]
    assert any("ADD COLUMN note" in one["statement"] or "ADD note" in one["statement"] for one in found)
    assert any("ix_orders_number" in one["statement"] for one in found)


def test_what_a_killed_run_has_left_is_removed(project: Project) -> None:
    if project.dialect != "postgresql":
        return  # MariaDB's is tested with diff; SQLite's is a file in the folder for such
    project.write(MAKE)
    project.boot()
    project.query("CREATE SCHEMA db_smart_scratch_0123456789ab_0")
    project.query("CREATE TABLE db_smart_scratch_0123456789ab_0.t (id int)")
    traced(project)
    assert schemas(project) == []


#: What would change more than the copy, and stay; and a part of what is said of it.
BEYOND = {
    "DO $$ BEGIN CREATE ROLE {name}; END $$": "may change more than the copy",
    "DO $$ BEGIN EXECUTE 'CREATE ROLE {name}'; END $$": "may change more than the copy",
    "SELECT make_role()": "may change more than the copy",
    "CREATE TABLE made AS SELECT make_role()": "may change more than the copy",
    "CREATE FUNCTION f() RETURNS int AS $$ SELECT 1 $$ LANGUAGE sql; CREATE ROLE {name}": "may change more than",
    "CREATE TABLE made (id int); CREATE ROLE {name}": "may change more than the copy",
    "ALTER TABLE elsewhere.orders ADD COLUMN note text": "changes elsewhere.orders of the database itself",
}


@contextmanager
def dropping_role(project: Project, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        project.query(f"DROP ROLE IF EXISTS {name}")


def test_nothing_outside_of_the_copy_is_touched(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    """Another session uses the table of another schema meanwhile, so that not even a lock of it is waited for."""
    project = make_project(new_url("postgresql"))
    project.write(MAKE)
    project.boot()
    name = "traced_" + str(project.url).rpartition("_")[2][:8].partition("?")[0]
    project.query("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.orders (id int)")
    project.query(
        f"CREATE FUNCTION make_role() RETURNS int AS $$ BEGIN CREATE ROLE {name}; RETURN 1; END $$ LANGUAGE plpgsql"
    )
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as other, dropping_role(project, name):
        other.exec_driver_sql("SELECT * FROM elsewhere.orders").all()
        for statement, said in BEYOND.items():
            body = statement.format(name=name)
            project.write(f'{MAKE}\n@migration\ndef change(op: Operations):\n    op.execute("""{body}""")\n')
            (found,) = json.loads(project.run("lint", "--trace", "--json").stdout)["databases"]
            assert said in found["traced"][-1]["error"], statement
            assert project.query(f"SELECT count(*) FROM pg_roles WHERE rolname = '{name}'") == [(0,)], statement
    assert schemas(project) == []


def test_several_statements_of_one_string_are_tried(project: Project) -> None:
    """Also a block of code that stays within the copy, and what comes after a function."""
    if project.dialect != "postgresql":
        return  # whose drivers take several
    project.write(MAKE)
    project.boot()
    statements = (
        "CREATE FUNCTION one() RETURNS int AS $$ SELECT 1; $$ LANGUAGE sql; ALTER TABLE orders ADD COLUMN one int; "
        "ALTER TABLE orders ADD COLUMN two int",
        "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM orders) THEN ALTER TABLE orders ADD COLUMN three int; END IF; END $$",
    )
    body = "\n".join(f'    op.execute("{statement}")' for statement in statements)
    project.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n{body}\n    op.drop_column('orders', 'x')\n")
    found = [one for one in traced(project) if one["migration"] == "change"]
    assert [one["error"] for one in found] == [None, None]
    assert [one["locks"] for one in found] == [{"orders": "ACCESS EXCLUSIVE"}] * 2
