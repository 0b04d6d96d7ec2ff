"""Comments of columns and tables: set, taken away, foretold, and nothing else of the column lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store.database import Database
from tests.harness.clients import run_client
from tests.harness.direct import operations, statements
from tests.harness.facts import facts
from tests.harness.project import Project

TABLE = {
    "postgresql": "CREATE TABLE t (id integer PRIMARY KEY, a varchar(20) NOT NULL DEFAULT 'COMMENT x')",
    "mysql": "CREATE TABLE t (id integer PRIMARY KEY AUTO_INCREMENT, a varchar(20) CHARACTER SET latin1 NOT NULL "
    "DEFAULT 'COMMENT ''x''' COMMENT 'it''s \\\\ COMMENT ''old''' CHECK (a <> 'COMMENT ''y'''), "
    "b timestamp NULL DEFAULT NULL ON UPDATE current_timestamp(), c integer AS (id + 1) VIRTUAL COMMENT 'old')",
    "sqlite": "CREATE TABLE t (id integer PRIMARY KEY, a varchar(20) NOT NULL DEFAULT 'x')",
}


def column(database: Database, name: str) -> str | None:
    with database.engine.connect() as connection:
        if database.dialect == "mysql":  # SQLAlchemy does not find those behind ON UPDATE
            query = "SELECT column_comment FROM information_schema.columns WHERE table_schema = DATABASE() AND "
            return (
                connection.scalar(sa.text(query + "table_name = 't' AND column_name = :name"), {"name": name}) or None
            )
        columns = {one["name"]: one for one in sa.inspect(connection).get_columns("t")}
    return columns[name].get("comment")


@pytest.fixture
def database(url: URL) -> Database:
    made = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with made.engine.begin() as connection:
        connection.exec_driver_sql(TABLE[made.dialect])
        connection.exec_driver_sql("INSERT INTO t (id, a) VALUES (1, 'one')")
    return made


@pytest.mark.parametrize("text", ['50% of it\'s \\ :name ? `x` "y"', "a\nb", None, ""])
def test_a_comment_of_a_column(database: Database, text: str | None) -> None:
    names = ["a", "id", *(["b", "c"] if database.dialect == "mysql" else [])]

    def run(wanted: str | None) -> Callable[[], None]:
        def once() -> None:
            with operations(database) as op:
                for name in names:
                    op.alter_column("t", name, comment=wanted)

        return once

    def everything() -> Any:
        with database.engine.connect() as connection:
            return facts(connection)

    if database.dialect == "sqlite":
        assert statements(database, run(text)) == []
        return
    run(None)()
    without = everything()
    run("first")()
    assert [column(database, name) for name in names] == ["first"] * len(names)
    run(text)()
    assert [column(database, name) for name in names] == [text or None] * len(names)
    assert statements(database, run(text)) == []
    run(None)()
    assert everything() == without


def test_a_comment_goes_with_the_other_changes(database: Database) -> None:
    with operations(database) as op:
        op.alter_column("t", "a", type_=sa.String(60), server_default="new", comment="both")
    with database.engine.connect() as connection:
        found = {one["name"]: one for one in sa.inspect(connection).get_columns("t")}["a"]
    assert (str(getattr(found["type"], "length", None)), "new" in str(found["default"])) == ("60", True)
    assert found.get("comment") == (None if database.dialect == "sqlite" else "both")


def test_a_comment_of_a_table(database: Database) -> None:
    def run(wanted: str | None) -> Callable[[], None]:
        def once() -> None:
            with operations(database) as op:
                if wanted:
                    op.create_table_comment("t", wanted, existing_comment="as Alembic writes it")
                else:
                    op.drop_table_comment("t", existing_comment="as Alembic writes it")

        return once

    def comment() -> str | None:
        with database.engine.connect() as connection:
            return sa.inspect(connection).get_table_comment("t")["text"] or None

    if database.dialect == "sqlite":
        assert statements(database, run("any")) == []
        return
    run("it's 50% \\")()
    assert comment() == "it's 50% \\"
    assert statements(database, run("it's 50% \\")) == []
    run(None)()
    assert comment() is None
    assert statements(database, run(None)) == []
    with pytest.raises(sa.exc.NoSuchTableError), operations(database) as op:
        op.create_table_comment("nowhere", "x")


def test_comments_are_foretold(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    begin = """
@migration
def begin(op):
    op.create_table("t", Column("id", Integer, primary_key=True), Column("a", Integer), comment="old")
    op.execute("INSERT INTO t (id, a) VALUES (1, 1)")
"""
    later = """
@migration
def comments(op):
    op.alter_column("t", "a", comment="it's a")
    op.alter_column("t", "a", comment="it's a")
    op.create_table_comment("t", "old")
    op.create_table_comment("t", "new")
    op.create_table_comment("t", "new")
    op.create_table("u", Column("id", Integer, primary_key=True), comment="u")
    op.create_table_comment("u", "u")
"""
    project.write(begin)
    project.boot()
    project.write(begin + later)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], shown["unknown"]) == (None, None)
    if project.dialect == "sqlite":
        assert shown["does"] == ["create_table('u')"]
        assert "alter_column('t', 'a'), comment: sqlite has no comments" in shown["satisfied"]
    else:
        assert len(shown["does"]) == 3
        assert len(shown["satisfied"]) == 4
    run_client(project.url, project.run("migrate", "--sql").stdout)
    if project.dialect != "sqlite":
        engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            inspector = sa.inspect(connection)
            assert inspector.get_table_comment("t")["text"] == "new"
            assert inspector.get_columns("t")[1]["comment"] == "it's a"
    assert project.boot().applied == ()
