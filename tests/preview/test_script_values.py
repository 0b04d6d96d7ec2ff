"""Rows after ``migrate --sql``, run by the database's own client, are those after the run: values of every type."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import URL

from tests.harness.clients import run_client
from tests.harness.project import Project
from tests.harness.servers import config_of
from tests.samples import DRIVERS

TABLE = """
import datetime, decimal, enum, uuid
import sqlalchemy as sa

class Tone(enum.Enum):
    LOW = "low"

@migration(once=True)
def table(op):
    op.create_table(
        "v", Column("id", Integer, primary_key=True), Column("a", sa.DateTime), Column("b", sa.LargeBinary(200)),
        Column("c", sa.Numeric(20, 6)), Column("d", sa.Boolean), Column("e", sa.Date), Column("f", sa.JSON),
        Column("g", String(200)), Column("h", sa.Double), Column("i", sa.BigInteger), Column("j", sa.Uuid),
        Column("k", sa.Interval), Column("l", sa.Enum(Tone)), Column("m", sa.Time),
    )
"""
VALUES = (
    TABLE
    + r"""
DAY, AT = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, 5)
TEXTS = ["it's 100% :x ? \\ \" `", "two\nlines;\n.exit\n\\q", "a\r\nb\rc\x1a", "-- no", "", "\u00fc\u4e16\U0001f600"]

@migration(once=True)
def by_text(op):
    row = "INSERT INTO v (id, a, b, d, e, g, h, i) VALUES (:id, :a, :b, :d, :e, :g, :h, :i)"
    a = AT.isoformat(" ") if KIND == "sqlite" else AT
    e = DAY.isoformat() if KIND == "sqlite" else DAY
    plain = {"id": 1, "a": a, "b": b"\x00\xff'\\", "d": True, "e": e, "g": "x", "h": 0.1 + 0.2, "i": -(2**40)}
    op.execute(row, plain)
    op.execute(row, [{**plain, "id": 2}, {**{name: None for name in plain}, "id": 3}])
    if KIND != "sqlite":
        op.execute("INSERT INTO v (id, c) VALUES (4, :c)", {"c": decimal.Decimal("-1.500001")})
    op.execute("INSERT INTO v (id, i) VALUES (5, 1-:n)", {"n": -4})
    if KIND in ("sqlite", "postgresql"):
        for number, h in ((7, float("inf")), (8, -float("inf"))):
            op.execute("INSERT INTO v (id, h) VALUES (:id, :h)", {"id": number, "h": h})
    op.execute(r"INSERT INTO v (id, g) VALUES (6, 'at 12\:30 ' || :g)" if KIND in ("sqlite", "postgresql") else
               r"INSERT INTO v (id, g) VALUES (6, CONCAT('at 12\:30 ', :g))", {"g": "sharp"})
    op.execute("UPDATE v SET h = :h WHERE id IN (1, 2) AND g = :g", {"h": 1e-300, "g": "x"})

@migration(once=True)
def by_untyped(op):
    v = sa.table("v", *map(sa.column, "abcdefghi"), sa.column("id"))
    op.execute(v.insert(), [{"id": 20 + number, "g": text} for number, text in enumerate(TEXTS)])
    op.execute(v.insert().values(id=30, g="one", b=b""))
    op.execute(v.insert(), {"id": 31, "g": "two", "h": 2.5, "d": False, "b": bytearray(b"\x01")})
    op.execute(v.insert().values([{"id": 32, "g": "three"}, {"id": 33, "g": None}]))
    op.execute(v.update().where(v.c.id == 30).values(g="z", b=b"\xfe"))
    of = v.update().where(v.c.id == sa.bindparam("k")).values(g=sa.bindparam("w"))
    op.execute(of, [{"k": 31, "w": "q"}, {"k": 32, "w": None}])
    op.execute(v.update().where(v.c.id == sa.bindparam("k")), [{"k": 33, "g": "by key"}])
    op.execute(v.delete().where(v.c.id.in_([20, 1000])))
    op.execute(sa.text("UPDATE v SET i = 9 WHERE id IN :ids").bindparams(sa.bindparam("ids", expanding=True)),
               {"ids": [31, 32]})

@migration(once=True)
def by_typed(op):
    v = sa.Table(
        "v", sa.MetaData(), Column("id", Integer, primary_key=True), Column("a", sa.DateTime),
        Column("b", sa.LargeBinary), Column("c", sa.Numeric(20, 6)), Column("d", sa.Boolean), Column("e", sa.Date),
        Column("f", sa.JSON), Column("g", String(200), default=lambda context: "made by Python"),
        Column("h", sa.Double, default=0.5, onupdate=1.5), Column("i", sa.BigInteger), Column("j", sa.Uuid),
        Column("k", sa.Interval), Column("l", sa.Enum(Tone)), Column("m", sa.Time),
    )
    row = {
        "a": AT, "b": b"\x00'", "c": decimal.Decimal("1.5"), "d": True, "e": DAY, "f": {"k": [1, "\u00e9'\\\n"]},
        "i": 7, "j": uuid.UUID(int=5), "k": datetime.timedelta(days=1, seconds=5), "l": Tone.LOW,
        "m": datetime.time(4, 5),
    }
    op.execute(v.insert(), [{**row, "id": 40}, {**row, "id": 41}])
    op.execute(v.insert().values(id=42, d=False, f=None))
    op.execute(v.insert(), {"id": 43, "f": None})
    op.execute(v.insert().values(id=45, f=sa.null(), g="own"))
    op.execute(v.insert().values([{"id": 46, "i": 1}, {"id": 47, "i": 2}]))
    op.execute(v.insert(), [{**{name: None for name in row}, "id": 48}])
    op.execute(v.update().where(v.c.id == 48).values(a=AT, j=uuid.UUID(int=9)))

@migration(once=True)
def by_backfill(op):
    op.backfill("v", {"b": b"\x01\x02", "g": "back\\slash"}, where="id = 42")
"""
)


def boths(make_project: Callable[..., Project], new_url: Callable[[str], URL], server: str, driver: str) -> Any:
    for _ in range(2):
        url = new_url(server)
        yield make_project(url, config_of(url, driver) if driver else {})


def rows(project: Project) -> list[Any]:
    """The rows as the database has them, types too where it tells."""
    columns = ["id", *"abcdefghijklm"]
    if project.dialect == "sqlite":
        columns += [f"typeof({name})" for name in columns]
    elif project.dialect == "postgresql":
        columns = ["id", *(f"CAST({name} AS text)" for name in "abcdefghijklm")]
    else:
        columns += [f"HEX({name})" for name in "abcdefghijklm"]
    return project.query(f"SELECT {', '.join(columns)} FROM v ORDER BY id")


@pytest.mark.parametrize(("server", "driver"), [("sqlite", ""), *DRIVERS], ids=lambda value: str(value))
def test_the_rows_of_a_script_are_those_of_the_run(
    server: str, driver: str, make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    by_run, by_script = boths(make_project, new_url, server, driver)
    for project in (by_run, by_script):
        project.write(f"KIND = {project.dialect!r}\n{VALUES}")
    by_run.boot()
    script = by_script.run("migrate", "--sql")
    assert script.exit_code == 0, script.output
    assert "Left to db-smart" not in script.stdout, script.stdout
    run_client(by_script.url, script.stdout)
    assert rows(by_script) == rows(by_run)
    assert len(rows(by_run)) > 20
    assert by_script.boot().applied == ()


@pytest.mark.parametrize("operation", ["execute", "backfill"])
def test_what_a_script_cannot_say_it_leaves_to_the_next_boot(operation: str, project: Project) -> None:
    does = {
        "execute": "op.execute(sa.table('t', sa.column('id'), sa.column('g')).insert(), [{'id': 2, 'g': dict(a=1)}])",
        "backfill": "op.backfill('t', {'g': dict(a=1)})",
    }
    project.write(f"""
        import sqlalchemy as sa

        @migration
        def table(op):
            op.create_table("t", Column("id", Integer, primary_key=True), Column("g", String(20)))

        @migration(once=True)
        def odd(op):
            op.execute("INSERT INTO t (id) VALUES (1)")
            {does[operation]}

        @migration(once=True)
        def after(op):
            op.execute("INSERT INTO t (id) VALUES (3)")
    """)
    script = project.run("migrate", "--sql")
    assert script.stdout.count("Left to db-smart") == 2
    assert "type dict cannot be written as SQL" in script.stdout
    run_client(project.url, script.stdout)
    assert project.query("SELECT id FROM t") == []
    assert project.history() == [("table", "applied")]
    items = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert [item["unknown"] is not None for item in items] == [True, False]


def test_a_script_is_read_as_what_it_is_whatever_the_surroundings_of_the_client(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("""
        @migration(once=True)
        def one(op):
            op.create_table("t", Column("id", Integer, primary_key=True), Column("g", String(20)))
            op.execute("INSERT INTO t (id, g) VALUES (1, 'ünï世')")
    """)
    script = project.run("migrate", "--sql").stdout
    with monkeypatch.context() as surroundings:
        surroundings.setenv("LC_ALL", "C")
        surroundings.setenv("PGCLIENTENCODING", "LATIN1")
        run_client(project.url, script)
    assert project.query("SELECT g FROM t") == [("ünï世",)]


def test_what_is_wrong_for_the_run_is_no_matter_of_the_script(project: Project) -> None:
    project.write("""
        import sqlalchemy as sa

        @migration
        def table(op):
            op.create_table("t", Column("id", Integer, primary_key=True), Column("g", String(20)))

        @migration(once=True)
        def lacks_a_value(op):
            op.execute("INSERT INTO t (id, g) VALUES (:id, :g)", [{"id": 1, "g": "x"}, {"id": 2}])

        @migration(once=True)
        def lacks_a_column(op):
            op.execute(sa.table("t", sa.column("id")).insert().values(id=1, g="x"))
    """)
    result = project.run("migrate", "--dry-run", "--json")
    errors = [item["error"] for item in json.loads(result.stdout)["pending"]]
    assert (result.exit_code, errors[0]) == (1, None)
    assert "value is required for bind parameter 'g'" in errors[1]
    assert "Unconsumed column names: g" in errors[2]
