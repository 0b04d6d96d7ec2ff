"""alter_enum() on each kind of database; and that a type with more values is never passed over in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Enum, Integer, MetaData, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.schema.column_types import listed_values
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.clients import run_client
from tests.harness.direct import operations, statements
from tests.harness.project import Project

OLD = ("sad", "ok", "it's")


def opened(url: URL) -> Database:
    return Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))


def make(database: Database, *, rows: bool = True, **options: Any) -> Table:
    people = Table("people", MetaData(), Column("id", Integer, primary_key=True), Column("mood", Enum(*OLD, **options)))
    people.create(database.engine)
    if rows:
        with database.engine.begin() as connection:
            connection.execute(people.insert(), [{"mood": value} for value in OLD])
    return people


def put(database: Database, value: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO people (mood) VALUES (:value)"), {"value": value})


def values(database: Database) -> list[str]:
    """What the column takes, in its order, as the database shows it."""
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        kind: Any = inspector.get_columns("people")[1]["type"]
        if isinstance(kind, sa.Enum):
            return list(kind.enums)
        (check,) = inspector.get_check_constraints("people")
        return listed_values(check["sqltext"], "mood", connection.dialect) or []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [*OLD, "so so", "50%"]),
        ({"after": "sad"}, ["sad", "so so", "50%", "ok", "it's"]),
        ({"before": "sad"}, ["so so", "50%", *OLD]),
        ({"before": "it's"}, ["sad", "ok", "so so", "50%", "it's"]),
    ],
)
def test_values_are_added_in_their_place(url: URL, where: dict[str, str], expected: list[str]) -> None:
    database = opened(url)
    make(database, name="mood", create_constraint=True)
    # Only at its end does MariaDB 10.11 give an enumeration more values beside the table's traffic.
    online = not (where and database.dialect == "mysql")

    def run() -> None:
        with operations(database) as op:
            op.alter_enum("mood", add=["so so", "50%"], columns={"people": "mood"}, online=online, **where)

    run()
    assert values(database) == expected
    put(database, "50%")
    with pytest.raises(sa.exc.DBAPIError):
        put(database, "no such mood")
    assert statements(database, run) == []


def test_a_text_with_a_check_gets_another_check(url: URL) -> None:
    database = opened(url)
    make(database, name="ck_mood", create_constraint=True, native_enum=False)

    def run() -> None:
        with operations(database) as op:
            op.alter_enum("ck_mood", add="more than that", columns={"people": ["mood"]}, online=online)

    online = True
    if database.dialect == "mysql":
        with pytest.raises(Refused, match="DS202"):
            run()
        assert values(database) == [*OLD]
        online = False
    run()
    assert values(database) == [*OLD, "more than that"]
    put(database, "more than that")
    with pytest.raises(sa.exc.DBAPIError):
        put(database, "no such mood")
    assert statements(database, run) == []
    with database.engine.connect() as connection:
        (check,) = sa.inspect(connection).get_check_constraints("people")
    assert check["name"] == "ck_mood"


def test_a_text_without_a_check_needs_nothing_but_room(url: URL) -> None:
    database = opened(url)
    make(database, name="mood", native_enum=False)

    def run() -> None:
        with operations(database) as op:
            op.alter_enum("mood", add=["more than that"], columns={"people": "mood"})

    run()
    put(database, "more than that")
    assert statements(database, run) == []


def test_alter_column_replaces_the_check_of_an_enumeration(url: URL) -> None:
    database = opened(url)
    make(database, name="ck_mood", create_constraint=True, native_enum=False)

    def become(*wanted: str) -> Callable[[], None]:
        def run() -> None:
            with operations(database) as op:
                kind = Enum(*wanted, name="ck_mood", create_constraint=True, native_enum=False)
                op.alter_column("people", "mood", type_=kind, online=database.dialect != "mysql")

        return run

    become(*OLD, "new")()
    assert values(database) == [*OLD, "new"]
    put(database, "new")
    assert statements(database, become(*OLD, "new")) == []
    assert statements(database, become("new", *OLD)) == []
    before = "DS204" if database.dialect == "sqlite" else "DS206 .*These would go: 'ok', \"it's\""
    with pytest.raises(Refused, match=before):
        become("sad", "new", "long")()
    assert values(database) == [*OLD, "new"]
    become(*OLD, "new", "a much longer one")()
    put(database, "a much longer one")


def test_an_array_of_an_enumeration_gets_its_values(new_url: Callable[[str], URL]) -> None:
    database = opened(new_url("postgresql"))
    kind = sa.ARRAY(Enum(*OLD, name="mood"))
    table = Table("people", MetaData(), Column("id", Integer, primary_key=True), Column("moods", kind))
    table.create(database.engine)
    with database.engine.begin() as connection:
        connection.execute(table.insert(), {"moods": ["sad"]})

    def run() -> None:
        with operations(database) as op:
            op.alter_column("people", "moods", type_=sa.ARRAY(Enum(*OLD, "new", name="mood")))

    run()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO people (moods) VALUES ('{new}')")
    assert statements(database, run) == []
    with pytest.raises(Refused, match="DS206 .*neither removes one"), operations(database, destructive=True) as op:
        op.alter_column("people", "moods", type_=sa.ARRAY(Enum("sad", "new", name="mood")))


def test_what_is_not_there_is_said(url: URL) -> None:
    database = opened(url)
    make(database, name="mood", create_constraint=True)
    with pytest.raises(DbSmartError, match="has no value 'happy', only 'sad', 'ok', "), operations(database) as op:
        op.alter_enum("mood", add=["new"], after="happy", columns={"people": "mood"})
    with pytest.raises(DbSmartError, match="Say which columns have it"), operations(database) as op:
        op.alter_enum("no_mood", add=["new"])
    with pytest.raises(DbSmartError, match="no column 'temper'"), operations(database) as op:
        op.alter_enum("no_mood", add=["new"], columns={"people": "temper"})
    with pytest.raises(TypeError, match="after= or before="), operations(database) as op:
        op.alter_enum("mood", add=["new"], after="sad", before="ok", columns={"people": "mood"})
    assert values(database) == [*OLD]


def test_in_the_middle_mariadb_would_block_and_says_so(new_url: Callable[[str], URL]) -> None:
    database = opened(new_url("mariadb"))
    make(database)
    with database.engine.connect() as connection:
        copies_beside = (connection.dialect.server_version_info or ()) >= (11, 2)
    if copies_beside:
        pytest.skip("from MariaDB 11.2 on it copies the table beside its writers")
    with pytest.raises(Refused, match="DS202"), operations(database) as op:
        op.alter_enum("mood", add=["new"], after="sad", columns={"people": "mood"})
    assert values(database) == [*OLD]


def test_the_columns_are_those_of_the_models(url: URL, make_project: Callable[..., Project]) -> None:
    """One line of a migration works on all databases; and on a new database the models have it already."""
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})

    def model(*wanted: str) -> Callable[[Any], None]:
        def define(db: Any) -> None:
            kind = Enum(*wanted, name="mood", create_constraint=True)
            Table("people", db.metadata, Column("id", Integer, primary_key=True), Column("mood", kind))

        return define

    project.models = model(*OLD)
    begin = "@migration\ndef begin(op):\n    op.execute(\"INSERT INTO people (id, mood) VALUES (1, 'ok')\")\n"
    project.write(begin)
    project.boot()
    later = """
@migration
def moods(op):
    op.alter_enum("mood", add=["great"])
    op.alter_enum("mood", add=["super"], after="great")
    op.execute("INSERT INTO people (id, mood) VALUES (2, 'super')")
"""
    project.models = model(*OLD, "great", "super")
    project.write(begin + later)
    shown = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert [item["error"] or item["unknown"] for item in shown] == [None]
    assert len(shown[0]["does"]) == 3
    project.boot()
    assert project.query("SELECT mood FROM people ORDER BY id") == [("ok",), ("super",)]


def test_the_script_adds_the_values_too(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    begin = """
@migration
def begin(op):
    kind = Enum("a", "b", name="kind", create_constraint=True)
    op.create_table("things", Column("id", Integer, primary_key=True), Column("kind", kind))
    op.execute("INSERT INTO things (id, kind) VALUES (1, 'a')")
"""
    later = """
@migration
def more(op):
    op.alter_enum("kind", add=["c"], columns={"things": "kind"})
    op.alter_enum("kind", add=["d"], after="c", columns={"things": "kind"})
    op.execute("INSERT INTO things (id, kind) VALUES (2, 'd')")
    op.create_table("a", Column("id", Integer, primary_key=True), Column("kind", Enum("x", "y", name="other")))
    op.alter_enum("other", add=["z"], columns={"a": "kind"})
    op.create_table("b", Column("id", Integer, primary_key=True), Column("kind", Enum("x", "y", "z", name="other")))
"""
    project.write(begin)
    project.boot()
    project.write(begin + later)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.query("SELECT kind FROM things ORDER BY id") == [("a",), ("d",)]
    assert project.boot().applied == ()


def test_a_new_database_is_foretold(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    project.write("""
        @migration
        def begin(op):
            kind = Enum("a", "b", name="kind", create_constraint=True)
            op.create_table("things", Column("id", Integer, primary_key=True), Column("kind", kind))
            op.alter_enum("kind", add=["c"], columns={"things": "kind"})
            op.alter_enum("kind", add=["c"], columns={"things": "kind"})
        """)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], shown["unknown"], len(shown["does"]), len(shown["satisfied"])) == (None, None, 2, 1)
    project.boot()
    project.query("INSERT INTO things (id, kind) VALUES (1, 'c')")


def test_an_older_migration_that_runs_again_takes_nothing_back(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    source = """
@migration
def begin(op):
    kind = Enum("a", "b", name="kind", create_constraint=True)
    op.create_table("things", Column("id", Integer, primary_key=True), Column("kind", kind))
    op.alter_column("things", "kind", type_=Enum("a", "b", "c", name="kind", create_constraint=True))
@migration
def more(op):
    op.alter_enum("kind", add=["d"], columns={"things": "kind"})
    op.execute("INSERT INTO things (id, kind) VALUES (1, 'd')")
"""
    project.write(source)
    project.boot()
    project.write(source.replace("\n@migration\ndef more", "\n    op.has_table('things')\n@migration\ndef more"))
    assert project.boot().applied == ("begin",)
    project.query("INSERT INTO things (id, kind) VALUES (2, 'd')")


def test_values_with_signs_of_sql_stay_as_they_are(url: URL) -> None:
    database = opened(url)
    values = ["it's", "a,b", 'say "q"', "50%", "back\\slash", "two\nlines", ":name"]
    new = ["x'y,z", "p%", ":q", "b\\s", "n\nn"]
    if database.dialect == "mysql" and "k\\\\s" not in Enum(*values).compile(dialect=database.engine.dialect):
        values, new = ([one for one in of if "\\" not in one] for of in (values, new))  # SQLAlchemy 2.0 loses it
    kind = Enum(*values, name="My Enum", create_constraint=database.dialect == "sqlite")
    table = Table("the people", MetaData(), Column("id", Integer, primary_key=True), Column("a mood", kind))
    table.create(database.engine)

    def run() -> None:
        with operations(database) as op:
            op.alter_enum("My Enum", add=new, columns={"the people": "a mood"})

    with database.engine.begin() as connection:
        connection.execute(table.insert(), [{"a mood": value} for value in values])
    run()
    assert statements(database, run) == []
    rows = sa.table("the people", sa.column("a mood", Enum(*values, *new, name="My Enum")))
    with database.engine.begin() as connection:
        connection.execute(rows.insert(), [{"a mood": value} for value in [*values, *new]])
        found = connection.scalars(sa.select(rows.c["a mood"])).all()
    assert sorted(found) == sorted([*values, *values, *new])
