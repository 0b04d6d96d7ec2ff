"""create_primary_key() and widen_key(), with the foreign keys that refer to a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.clients import run_client
from tests.harness.direct import operations, statements
from tests.harness.project import Project

BIG = 5_000_000_000


def opened(url: URL, *made: str) -> Database:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        for statement in made:
            connection.exec_driver_sql(statement)
    return database


def key(database: Database, table: str) -> list[str]:
    with database.engine.connect() as connection:
        return sa.inspect(connection).get_pk_constraint(table)["constrained_columns"]


ROWS = (
    "CREATE TABLE t (a integer NOT NULL, b integer, c integer)",
    "INSERT INTO t VALUES (7, 2, 1), (5, 1, NULL), (6, 2, NULL)",
)


@pytest.mark.parametrize("columns", [["a"], ["a", "b"], ["b", "a"]])
def test_a_primary_key_is_added_beside_the_traffic(url: URL, columns: list[str]) -> None:
    database = opened(url, *ROWS)

    def run() -> None:
        with operations(database) as op:
            op.create_primary_key("t_pkey", "t", columns)

    sent = statements(database, run)
    assert key(database, "t") == columns
    if database.dialect == "postgresql":
        assert sent[-1] == "ALTER TABLE t ADD CONSTRAINT t_pkey PRIMARY KEY USING INDEX t_pkey"
        assert any("CREATE UNIQUE INDEX CONCURRENTLY t_pkey" in one for one in sent)
    if database.dialect == "mysql":
        assert sent[-1].endswith("LOCK=NONE")
    assert statements(database, run) == []
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT a, b, c FROM t ORDER BY a").all()
    assert found == [(5, 1, None), (6, 2, None), (7, 2, 1)]
    with pytest.raises(DbSmartError, match="has a primary key already, on"), operations(database) as op:
        op.create_primary_key("t_pkey", "t", ["c"])


@pytest.mark.parametrize(("column", "message"), [("b", "same values|repeats? b|repeat b"), ("c", "NULL")])
def test_rows_that_break_a_key_are_said(url: URL, column: str, message: str) -> None:
    database = opened(url, *ROWS)
    with pytest.raises(Refused, match=f"DS204 .*({message})"), operations(database) as op:
        op.create_primary_key("t_pkey", "t", [column])
    assert key(database, "t") == []


def test_a_primary_key_is_foretold(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    begin = "@migration\ndef begin(op):\n    op.has_table('t')\n"
    project.write(begin)
    project.boot()
    opened(url, *ROWS)
    later = """
@migration
def keys(op):
    op.create_primary_key("t_pkey", "t", ["a"])
    op.create_primary_key("t_pkey", "t", ["a"])
    op.create_table("u", Column("id", Integer, primary_key=True))
    op.create_primary_key("u_pkey", "u", ["id"])
"""
    project.write(begin + later)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], len(shown["does"]), len(shown["satisfied"])) == (None, 2, 2)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert key(opened(url), "t") == ["a"]
    assert project.boot().applied == ()


def family(url: URL, *, rows: bool) -> Database:
    metadata, number = sa.MetaData(), sa.Integer
    parents = sa.Table("parents", metadata, sa.Column("id", number, primary_key=True), sa.Column("n", number))
    children = sa.Table(
        "children",
        metadata,
        sa.Column("id", number, sa.ForeignKey("parents.id", name="fk_same", ondelete="CASCADE"), primary_key=True),
        sa.Column("n", number),
    )
    toys = sa.Table(
        "toys",
        metadata,
        sa.Column("id", number, primary_key=True),
        sa.Column("child_id", number, sa.ForeignKey("children.id", name="fk_child"), nullable=False),
        sa.Column("parent_id", number, sa.ForeignKey("parents.id", name="fk_parent", ondelete="SET NULL")),
    )
    database = opened(url)
    metadata.create_all(database.engine)
    if rows:
        with database.engine.begin() as connection:
            connection.execute(parents.insert(), [{"n": 1}, {"n": 2}])
            connection.execute(children.insert(), [{"id": 1, "n": 1}])
            connection.execute(toys.insert(), [{"child_id": 1, "parent_id": 2}])
    return database


def types(database: Database) -> dict[str, str]:
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        return {
            f"{table}.{column['name']}": str(column["type"].compile(database.engine.dialect)).partition("(")[0]
            for table in inspector.get_table_names()
            if not table.startswith("db_smart")
            for column in inspector.get_columns(table)
        }


def foreign_keys(database: Database) -> dict[str, Any]:
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        return {
            str(one["name"]): (table, one["constrained_columns"], one["referred_table"], one["options"])
            for table in ("children", "toys")
            for one in inspector.get_foreign_keys(table)
        }


WIDENED = {"parents.id", "children.id", "toys.child_id", "toys.parent_id"}


@pytest.mark.parametrize("rows", [True, False])
def test_a_key_and_all_that_refers_to_it(url: URL, rows: bool) -> None:
    database = family(url, rows=rows)
    before, keys = types(database), foreign_keys(database)

    def run(*, online: bool = True) -> None:
        with operations(database) as op:
            op.widen_key("parents", online=online)

    if database.dialect == "sqlite":
        assert statements(database, run) == []
    else:
        if rows:
            rule = "DS201" if database.dialect == "postgresql" else "DS202"
            with pytest.raises(Refused, match=f"{rule} .*children.id, parents.id, toys.child_id, toys.parent_id would"):
                run()
            assert types(database) == before
        run(online=not rows)
        after = types(database)
        assert {name for name in after if after[name] != before[name]} == WIDENED
        assert {after[name] for name in WIDENED} == {"BIGINT"}
        assert foreign_keys(database) == keys
        assert statements(database, run) == []
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO parents (id, n) VALUES ({BIG}, 1)")
        connection.exec_driver_sql(f"INSERT INTO children (id, n) VALUES ({BIG}, 1)")
        connection.exec_driver_sql(f"INSERT INTO toys (child_id, parent_id) VALUES ({BIG}, {BIG})")
    if database.dialect == "postgresql":
        with database.engine.begin() as connection:  # the sequence goes on as far as the column
            connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('parents', 'id'), {BIG + 1})")
            connection.exec_driver_sql("INSERT INTO parents (n) VALUES (1)")
    if database.dialect != "sqlite":
        with pytest.raises(sa.exc.IntegrityError), database.engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO toys (child_id) VALUES (12345)")


def test_a_widened_key_is_foretold(url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    begin = "@migration\ndef begin(op):\n    op.has_table('t')\n"
    project.write(begin)
    project.boot()
    database = family(url, rows=True)
    keys = foreign_keys(database)
    project.write(begin + "@migration\ndef wide(op):\n    op.widen_key('parents', online=False)\n")
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], len(shown["does"])) == (None, 0 if project.dialect == "sqlite" else 1)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.boot().applied == ()
    assert foreign_keys(database) == keys
    if project.dialect != "sqlite":
        assert {types(database)[name] for name in WIDENED} == {"BIGINT"}


def test_a_key_that_other_schemas_and_partitions_refer_to(new_url: Callable[[str], URL]) -> None:
    database = opened(
        new_url("postgresql"),
        "CREATE SCHEMA other",
        "CREATE TABLE p (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, up integer REFERENCES p (id))",
        "CREATE TABLE other.c (id integer PRIMARY KEY, p_id integer REFERENCES p (id))",
        "CREATE TABLE g (c_id integer REFERENCES other.c (id), p_id integer REFERENCES p (id))",
        "CREATE TABLE parts (id integer, p_id integer REFERENCES p (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE alone (id integer, p_id integer) PARTITION BY RANGE (id)",
        "CREATE TABLE alone_1 PARTITION OF alone FOR VALUES FROM (0) TO (10)",
        "ALTER TABLE alone_1 ADD FOREIGN KEY (p_id) REFERENCES p (id)",
        "INSERT INTO p DEFAULT VALUES",
        "INSERT INTO other.c VALUES (1, 1)",
        "INSERT INTO parts VALUES (1, 1)",
        "INSERT INTO alone VALUES (1, 1)",
    )

    def run() -> None:
        with operations(database) as op:
            op.widen_key("p", online=False)

    with pytest.raises(Refused, match="DS201"), operations(database) as op:
        op.widen_key("p")
    run()
    query = (
        "SELECT attrelid::regclass::text || '.' || attname FROM pg_attribute JOIN pg_class AS r ON r.oid = attrelid "
        "WHERE relkind IN ('r', 'p') AND relname !~ '^(pg|sql|db_smart)_' AND atttypid = 'bigint'::regtype ORDER BY 1"
    )
    wide = ["alone.p_id", "alone_1.p_id", "g.p_id", "other.c.p_id", "p.id", "p.up", "parts.p_id", "parts_1.p_id"]
    with database.engine.begin() as connection:
        assert connection.exec_driver_sql(query).scalars().all() == wide
        connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('p', 'id'), {BIG})")
        connection.exec_driver_sql("INSERT INTO p DEFAULT VALUES")
    assert statements(database, run) == []
    with operations(database) as op:
        op.widen_key("c", schema="other", online=False)
    with database.engine.begin() as connection:
        assert {"g.c_id", "other.c.id"} <= {*connection.exec_driver_sql(query).scalars().all()}


def test_a_sequence_of_its_own_is_widened_too(new_url: Callable[[str], URL]) -> None:
    database = opened(
        new_url("postgresql"),
        'CREATE SEQUENCE "my numbers" AS integer',
        """CREATE TABLE t (id integer DEFAULT nextval('"my numbers"') PRIMARY KEY)""",
    )
    with operations(database) as op:
        op.widen_key("t")
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"""SELECT setval('"my numbers"', {BIG})""")
        connection.exec_driver_sql("INSERT INTO t DEFAULT VALUES")


@pytest.mark.parametrize(
    "more", ["CREATE VIEW v AS SELECT id FROM t", "ALTER TABLE t ADD g integer {} (id * 2) STORED"]
)
def test_what_is_computed_from_a_key_is_said(new_url: Callable[[str], URL], more: str) -> None:
    database = opened(new_url("postgresql"), "CREATE TABLE t (id serial PRIMARY KEY)")
    opened(database.engine.url, more.format("GENERATED ALWAYS AS"))
    said = r"(view v depends|generated column).* Drop what uses the column before"
    with pytest.raises(DbSmartError, match=said), operations(database) as op:
        op.widen_key("t")
    assert types(database)["t.id"] == "INTEGER"


def test_keys_that_stay_as_they_are_are_said_before(new_url: Callable[[str], URL]) -> None:
    url = new_url("mariadb")
    other = f"{url.database}_o"
    database = opened(
        url,
        "CREATE TABLE p (id integer PRIMARY KEY)",
        "CREATE TABLE c (id integer PRIMARY KEY, FOREIGN KEY (id) REFERENCES p (id))",
        "CREATE TABLE g (id integer, CONSTRAINT fk_g FOREIGN KEY (id) REFERENCES c (id))",
    )
    said = r"leads to p\.id, .* Nothing was changed\. Widen p\.id"
    with pytest.raises(DbSmartError, match=said), operations(database) as op:
        op.widen_key("c")
    opened(url, f"CREATE DATABASE {other}")
    try:
        opened(url, f"CREATE TABLE {other}.far (id integer, FOREIGN KEY (id) REFERENCES {url.database}.p (id))")

        def run() -> None:
            with operations(database) as op:
                op.widen_key("p")

        with pytest.raises(DbSmartError, match=rf"leads from {other}\.far\.id, .* Nothing was changed"):
            run()
        assert set(types(database).values()) == {"INTEGER"}
    finally:
        opened(url, f"DROP DATABASE {other}")
    run()
    assert set(types(database).values()) == {"BIGINT"}


def test_a_primary_key_without_a_name_gets_the_usual_one(url: URL) -> None:
    database = opened(url, *ROWS)
    with operations(database) as op:
        op.create_primary_key(None, "t", ["a"])
    assert key(database, "t") == ["a"]
    if database.dialect == "postgresql":
        with database.engine.connect() as connection:
            assert sa.inspect(connection).get_pk_constraint("t")["name"] == "t_pkey"


def test_a_view_gets_no_primary_key(url: URL) -> None:
    database = opened(url, *ROWS, "CREATE VIEW v AS SELECT a, b FROM t")
    with pytest.raises(DbSmartError, match="'v' is a view, which can have no key"), operations(database) as op:
        op.create_primary_key("v_pkey", "v", ["a"])


def test_a_script_leaves_out_what_it_cannot_see(url: URL, make_project: Callable[..., Project]) -> None:
    """A foreign key that the same run makes: its column has to be widened too, and is not there yet."""
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    begin = "@migration\ndef begin(op):\n    op.has_table('t')\n"
    project.write(begin)
    project.boot()
    database = opened(url, "CREATE TABLE t (id integer PRIMARY KEY)")
    child = "Column('id', Integer, primary_key=True), Column('t_id', Integer)"
    later = f"""
@migration
def wide(op):
    op.create_table("kid", {child})
    op.create_foreign_key("fk_kid", "kid", "t", ["t_id"], ["id"])
    op.widen_key("t", online=False)
"""
    project.write(begin + later)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert shown["error"] is None
    assert ("op.widen_key()" in str(shown["unknown"])) is (project.dialect != "sqlite")
    run_client(project.url, project.run("migrate", "--sql").stdout)
    project.boot()
    if project.dialect != "sqlite":
        assert {name: types(database)[name] for name in ("t.id", "kid.t_id")} == {
            "t.id": "BIGINT",
            "kid.t_id": "BIGINT",
        }


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    "taken",
    [
        'CREATE TABLE other (id integer CONSTRAINT "the key" PRIMARY KEY)',
        'CREATE SEQUENCE "the key"',
        'ALTER TABLE t ADD CONSTRAINT "the key" CHECK (a > 0)',
    ],
)
def test_a_name_that_is_taken_is_said_before_anything_is_done(
    new_url: Callable[[str], URL], taken: str, online: bool
) -> None:
    database = opened(new_url("postgresql"), *ROWS, taken)
    for operation in ("create_primary_key", "create_unique_constraint"):
        said = (
            r"(the name is that of the (index|sequence|constraint) .*|already has a constraint 'the key'.*)Nothing was"
        )
        with pytest.raises(DbSmartError, match=said), operations(database) as op:
            getattr(op, operation)("the key", "t", ["a", "b"], online=online)
    with database.engine.connect() as connection:
        nullable = {one["name"]: one["nullable"] for one in sa.inspect(connection).get_columns("t")}
    assert nullable == {"a": False, "b": True, "c": True}
    if "TABLE" in taken:
        with operations(database) as op:
            op.create_primary_key("another key", "t", ["a", "b"], online=online)
        assert key(database, "t") == ["a", "b"]


def test_a_referred_column_of_mariadb_says_what_to_do(
    new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    project = make_project(new_url("mariadb"), {"DB_SMART_SNAPSHOTS": 0})
    family(make_url(project.url), rows=True)
    for table, column in (("parents", "id"), ("toys", "parent_id")):
        line = f"op.alter_column({table!r}, {column!r}, type_=BigInteger, online=False)"
        project.write(f"@migration\ndef wide(op):\n    {line}\n")
        with pytest.raises(
            DbSmartError, match=r"In a migration, op\.widen_key\(\) does all of it\. Change the migration"
        ):
            project.boot()
