"""What SQLite's operations must not lose, find again, and say."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Enum, ForeignKey, Integer, String, Text, func, text
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.errors import DbSmartError
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.clients import run_client
from tests.harness.direct import operations, statements
from tests.harness.project import Project

Action = Callable[[Operations], object]


class Base:
    """A SQLite file, whose foreign keys are enforced where the test asks for it."""

    def __init__(self, url: URL) -> None:
        self.path = str(url.database)
        self.foreign_keys = False
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        sa.event.listen(engine, "connect", lambda driver, _: driver.execute(f"PRAGMA foreign_keys={self.foreign_keys}"))
        self.database = Database("default", None, engine)

    def script(self, sql: str) -> None:
        with closing(sqlite3.connect(self.path)) as driver:
            driver.executescript(sql)

    def query(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as driver:
            return driver.execute(sql).fetchall()

    def sql(self, name: str = "t") -> str:
        return str(self.query(f"SELECT sql FROM sqlite_master WHERE name = '{name}'")[0][0])

    def run(self, action: Action) -> None:
        with operations(self.database, destructive=True) as op:
            action(op)

    def sent(self, action: Action) -> list[str]:
        """The schema changes that a run sends."""
        return statements(self.database, lambda: self.run(action))

    def once(self, action: Action) -> None:
        """Run, and see that a second run has nothing to do."""
        assert self.sent(action)
        assert self.sent(action) == []


@pytest.fixture
def base(sqlite_url: URL) -> Base:
    return Base(sqlite_url)


# Tables that others reference


@pytest.mark.parametrize("rule", ["CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", "NO ACTION"])
@pytest.mark.parametrize("rows", [True, False])
def test_a_table_that_rows_of_others_reference_is_not_dropped(base: Base, rule: str, rows: bool) -> None:
    base.foreign_keys = True
    base.script(f"""
        CREATE TABLE p (id INTEGER PRIMARY KEY, up INT REFERENCES p (id) ON DELETE {rule});
        CREATE TABLE "the child" (id INTEGER PRIMARY KEY, "p id" INT DEFAULT 1 REFERENCES P (id) ON DELETE {rule});
        INSERT INTO p VALUES (1, NULL), (2, 1);
        INSERT INTO "the child" VALUES (1, {1 if rows else "NULL"}), (2, NULL);
    """)
    before = base.query('SELECT * FROM "the child"')
    if rows:
        with pytest.raises(DbSmartError, match="rows of 'the child' reference it.*Nothing was dropped"):
            base.run(lambda op: op.drop_table("p"))
        assert len(base.query("SELECT * FROM p")) == 2
    else:
        base.once(lambda op: op.drop_table("p"))
    assert base.query('SELECT * FROM "the child"') == before
    if rows:
        base.once(lambda op: (op.drop_table("the child"), op.drop_table("p")))


def test_a_dry_run_foretells_that_rows_reference_a_table(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write("""
        @migration
        def tables(op):
            op.create_table("p", Column("id", Integer, primary_key=True))
            op.create_table("c", Column("p", Integer, ForeignKey("p.id", ondelete="CASCADE")))
            op.execute("INSERT INTO p VALUES (1)")
            op.execute("INSERT INTO c VALUES (1)")
    """)
    project.boot()
    with project.file.open("a") as file:
        file.write("""
@migration(destructive=True)
def drop(op):
    op.rename_table("c", "d")
    op.drop_table("p")
""")
    enforce = lambda driver, _: driver.execute("PRAGMA foreign_keys = ON")  # noqa: E731
    sa.event.listen(sa.Engine, "connect", enforce)
    try:
        shown = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
        run = project.run("migrate")
    finally:
        sa.event.remove(sa.Engine, "connect", enforce)
    assert "rows of 'd' reference it" in shown[0]["error"]
    assert run.exit_code == 1
    assert "rows of 'd' reference it" in run.output
    assert project.query("SELECT * FROM c") == [(1,)]


@pytest.mark.parametrize("rows", ["(1, NULL), (2, 1)", "(1, 7)"])
def test_a_table_comes_to_reference_itself(base: Base, rows: str) -> None:
    base.foreign_keys = True
    base.script(f"CREATE TABLE t (id INTEGER PRIMARY KEY, up INT); INSERT INTO t VALUES {rows}")
    before = base.query("SELECT * FROM t")

    def run(op: Operations) -> None:
        op.create_foreign_key("fk_up", "t", "T", ["up"], ["id"], ondelete="CASCADE")

    if "7" in rows:
        with pytest.raises(Refused, match=r"DS204 .*1 row\(s\) of 't' violate FOREIGN KEY \(up\)") as caught:
            base.run(run)
        assert str(caught.value).count("violate") == 1
    else:
        base.once(run)
        base.once(lambda op: op.add_column("t", Column("top", Integer, ForeignKey("t.id"), server_default="1")))
    assert [row[:2] for row in base.query("SELECT * FROM t")] == before


# Constraints are found again


@pytest.mark.parametrize("name", ["uq_t", "UQ_Orders", "with blank", 'quo"te', "select", "ünï Ä", "x'y", "a]b", "50%"])
@pytest.mark.parametrize("other", ["unique", "foreign", "check"])
@pytest.mark.parametrize("kind", ["unique", "foreign", "check"])
def test_a_constraint_is_found_again_whatever_its_name(base: Base, kind: str, other: str, name: str) -> None:
    base.script("CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE t (a INT, b INT UNIQUE)")
    makes: dict[str, Callable[[Operations, str], object]] = {
        "unique": lambda op, name: op.create_unique_constraint(name, "t", ["b"]),
        "foreign": lambda op, name: op.create_foreign_key(name, "t", "p", ["a"], ["id"]),
        "check": lambda op, name: op.create_check_constraint(name, "t", "a > 0"),
    }
    base.run(lambda op: makes[other](op, "CK other"))
    base.once(lambda op: makes[kind](op, name))
    before = base.sql()
    base.once(lambda op: op.drop_constraint(name, "t"))
    base.once(lambda op: makes[kind](op, name))
    assert base.sql() == before


def test_names_are_folded_in_ascii_only(base: Base) -> None:
    base.script("CREATE TABLE t (id INTEGER PRIMARY KEY, ä TEXT)")
    base.once(lambda op: op.add_columns("t", Column("Ä", Text), Column("Äpfel", Text, unique=True), Column("ID", Text)))
    base.once(lambda op: op.create_index("ix_Ä", "t", ["Ä"]))
    base.once(lambda op: op.create_index("ix_ä", "t", ["Ä"]))
    with operations(base.database) as op:
        assert op.has_column("t", "Äpfel")
        assert not op.has_column("t", "äpfel")
    base.once(lambda op: op.alter_column("t", "Äpfel", new_column_name="äpfel"))
    base.once(lambda op: (op.drop_index("ix_Ä", "t"), op.drop_column("t", "Ä")))
    assert [row[1] for row in base.query("PRAGMA table_info(t)")] == ["id", "ä", "äpfel"]


def test_added_columns_have_all_that_belongs_to_them(base: Base) -> None:
    base.foreign_keys = True
    base.script("CREATE TABLE u (id INTEGER PRIMARY KEY); CREATE TABLE t (a INT); INSERT INTO t VALUES (1)")

    def run(op: Operations) -> None:
        op.add_columns(
            "t",
            Column("kind", Enum("a", "b", name="ck_kind", create_constraint=True), server_default="a"),
            Column("flag", Boolean(create_constraint=True, name="CK flag")),
            Column("u", Integer, ForeignKey("u.id", name="FK u", ondelete="SET NULL")),
            Column("n", Integer, CheckConstraint("n > 0", name="ck_n"), server_default=text("(abs(-2))")),
            Column("plain", Enum("a", "b")),
        )

    base.once(run)
    with operations(base.database) as op:
        assert {"ck_kind", "ck flag", "fk u", "ck_n"} == set(op._catalog.constraints("t", None))
    assert base.query("SELECT * FROM t") == [(1, "a", None, None, 2, None)]
    for sql in ("kind) VALUES ('c'", "flag) VALUES (2", "u) VALUES (1", "n) VALUES (0"):
        with closing(sqlite3.connect(base.path)) as driver:
            driver.execute("PRAGMA foreign_keys = ON")
            with pytest.raises(sqlite3.IntegrityError):
                driver.execute(f"INSERT INTO t ({sql})")
    base.once(lambda op: op.drop_constraint("FK u", "t"))
    assert base.query("PRAGMA foreign_key_list(t)") == []


def test_sync_adds_the_constraints_of_new_columns_with_others(base: Base) -> None:
    base.script(
        "CREATE TABLE p (a INT, b INT, UNIQUE (a, b)); CREATE TABLE t (a INT, z INT); INSERT INTO t VALUES (1, 2)"
    )
    made = sa.MetaData()
    sa.Table("p", made, Column("a", Integer), Column("b", Integer))
    table = sa.Table(
        "t",
        made,
        Column("a", Integer),
        Column("z", Integer),
        Column("b", Integer, server_default=text("(1 + 1)")),
        sa.UniqueConstraint("a", "b", name="UQ both"),
        sa.ForeignKeyConstraint(["a", "b"], ["p.a", "p.b"], name="fk_both"),
    )
    table.append_constraint(CheckConstraint(table.c.a <= table.c.b, name="ck_both"))
    base.script("INSERT INTO p VALUES (1, 2)")
    base.once(lambda op: op.sync(table))
    with operations(base.database) as op:
        assert {"uq both", "fk_both", "ck_both"} == set(op._catalog.constraints("t", None))
    assert base.query("SELECT a, z, b FROM t") == [(1, 2, 2)]


# What SQLite does not tell apart


@pytest.mark.parametrize(
    ("definition", "type_", "stays"),
    [
        ("id INTEGER PRIMARY KEY, n INT", BigInteger(), True),
        ("id integer PRIMARY KEY AUTOINCREMENT, n INT", BigInteger(), True),
        ("id INTEGER, n INT, PRIMARY KEY (id)", sa.SmallInteger(), True),
        ("id BIGINT PRIMARY KEY, n INT", Integer(), False),
        ("id INT PRIMARY KEY, n INT", BigInteger(), False),
        ("id BIGINT, n INT, CONSTRAINT pk PRIMARY KEY (id)", Integer(), False),
        ("id INTEGER PRIMARY KEY, n INT", String(20), False),
        ("id INTEGER, n INT, PRIMARY KEY (id, n)", BigInteger(), False),
        ("id INTEGER PRIMARY KEY, n INT) WITHOUT ROWID --", BigInteger(), False),
    ],
)
def test_the_type_of_a_key(base: Base, definition: str, type_: Any, stays: bool) -> None:
    base.script(f"CREATE TABLE t ({definition}\n)" if "--" not in definition else f"CREATE TABLE t ({definition}")
    base.script("INSERT INTO t VALUES (5, 6), (3, 4); CREATE TABLE c (t INT REFERENCES t (id));")
    before = base.sql()
    sent = base.sent(lambda op: op.alter_column("t", "id", type_=type_))
    assert bool(sent) != stays
    assert base.sent(lambda op: op.alter_column("t", "id", type_=type_)) == []
    assert (base.sql() == before) == stays
    assert sorted(map(tuple, base.query("SELECT CAST(id AS INT), n FROM t"))) == [(3, 4), (5, 6)]


def test_a_column_without_type_gets_one(base: Base) -> None:
    base.script("CREATE TABLE t (a, b DEFAULT 1); INSERT INTO t VALUES (1, 2)")
    base.once(lambda op: op.alter_column("t", "a", type_=Text()))
    assert base.query("SELECT typeof(a), b FROM t") == [("text", 2)]
    with pytest.raises(Refused, match="DS105"), operations(base.database) as op:
        op.alter_column("t", "b", type_=Text())


def test_an_enumeration_is_a_varchar(base: Base) -> None:
    base.script("CREATE TABLE t (a VARCHAR(4)); INSERT INTO t VALUES ('high')")
    with operations(base.database) as op:  # not destructive
        op.alter_column("t", "a", type_=Enum("low", "high", "middle", name="lvl"))
    assert "VARCHAR(6)" in base.sql()
    with pytest.raises(Refused, match=r"from VARCHAR\(6\) to VARCHAR\(3\)"), operations(base.database) as op:
        op.alter_column("t", "a", type_=Enum("low", "mid"))


@pytest.mark.parametrize("column", ["k", "n"])
def test_a_key_without_rowid_is_never_nullable(base: Base, column: str) -> None:
    base.script("CREATE TABLE t (k INT PRIMARY KEY, n INT NOT NULL) WITHOUT ROWID")
    sent = base.sent(lambda op: op.alter_column("t", column, nullable=True))
    assert bool(sent) == (column == "n")
    assert base.sent(lambda op: op.alter_column("t", column, nullable=True)) == []


@pytest.mark.parametrize("name", ["not", "is", "where", "Check"])
def test_a_reserved_word_is_no_column_of_that_name(base: Base, name: str) -> None:
    base.script(f"""
        CREATE TABLE t ("{name}" INT, b INT CHECK (b IS NOT 1 OR b IN (2)));
        CREATE INDEX ix ON t (b) WHERE b IS NOT 3;
        CREATE INDEX own ON t ("{name}");
    """)
    base.once(lambda op: op.drop_column("t", name))
    assert [row[1] for row in base.query("PRAGMA index_list(t)")] == ["ix"]


# Rows in the way


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (lambda op: op.create_unique_constraint("UQ", "a ADD b", ["x", "y"]), "5 rows repeat x, y"),
        (lambda op: op.create_index("ux", "a ADD b", ["x", "y"], unique=True), "5 rows repeat x, y"),
        (
            lambda op: op.create_index("ux", "a ADD b", ["y"], unique=True, sqlite_where=text("x = 2")),
            "2 rows repeat y",
        ),
        (lambda op: op.create_index("ux", "a ADD b", [func.abs(sa.column("x"))], unique=True), "5 rows repeat abs"),
        (lambda op: op.alter_column("a ADD b", "z", nullable=False), "1 row has NULL in z"),
        (lambda op: op.create_check_constraint("ck ADD", "a ADD b", "x > 1"), "3 rows break ck ADD"),
        (lambda op: op.create_foreign_key("fk", "a ADD b", "p", ["x"], ["id"]), r"2 row\(s\) of 'a ADD b' violate"),
        (
            lambda op: op.add_column("a ADD b", Column("n", Integer, CheckConstraint("n > 1"), server_default="1")),
            "CHECK",
        ),
        (lambda op: op.add_column("a ADD b", Column("n", Integer, unique=True, server_default="1")), "6 rows repeat n"),
    ],
)
def test_rows_in_the_way_are_counted_and_named_once(base: Base, action: Action, says: str) -> None:
    base.script("""
        CREATE TABLE p (id INTEGER PRIMARY KEY);
        INSERT INTO p VALUES (1);
        CREATE TABLE "a ADD b" (x INT, y INT, z INT);
        INSERT INTO "a ADD b" VALUES (1, 1, 1), (1, 1, 2), (1, 1, NULL), (2, 7, 4), (2, 7, 5), (NULL, 7, 6);
    """)
    before = base.sql("a ADD b")
    with pytest.raises(Refused, match=says) as caught:
        base.run(action)
    message = str(caught.value)
    assert message.startswith("DS204 ")
    assert "db_smart_new" not in message
    assert message.count("existing rows") <= 2
    assert message.count("Fix those rows first") == 1
    assert base.sql("a ADD b") == before
    assert len(base.query('SELECT * FROM "a ADD b"')) == 6


@pytest.mark.parametrize("table", ["a ADD b", "x ADD COLUMN y", "ADD"])
def test_sql_is_not_cut_at_words_that_are_names(base: Base, table: str) -> None:
    base.script(f'CREATE TABLE "{table}" (a INT); INSERT INTO "{table}" VALUES (1)')
    base.once(lambda op: op.create_unique_constraint("one ADD two", table, ["a"]))
    base.once(lambda op: op.add_column(table, Column("n ADD COLUMN m", Integer, server_default=text("(abs(-1))"))))
    assert base.query(f'SELECT * FROM "{table}"') == [(1, 1)]


def test_a_foreign_key_to_another_schema_is_a_clear_error(base: Base) -> None:
    base.script("CREATE TABLE t (a INT)")
    with pytest.raises(DbSmartError, match="'fk' is a foreign key to another schema.*Nothing was changed"):
        base.run(lambda op: op.create_foreign_key("fk", "t", "p", ["a"], ["id"], referent_schema="aux"))
    assert base.sql() == "CREATE TABLE t (a INT)"


# Dry runs


@pytest.mark.parametrize("name", ["it's", "wh?at", "back\\slash", "50%", 'q"?"', "a:b", "Ünï", "select"])
def test_the_script_takes_every_name(make_project: Any, new_url: Any, name: str) -> None:
    old = f"""
        @migration
        def tables(op):
            items = Column("id", Integer, primary_key=True), Column({name!r}, Integer)
            op.create_table({name!r}, *items, sqlite_autoincrement=True)
            op.create_index("ix " + {name!r}, {name!r}, [{name!r}])
            op.execute(table({name!r}, column("id"), column({name!r})).insert(), [{{"id": 7, {name!r}: 7}}])
    """
    new = f"""
        @migration(destructive=True)
        def change(op):
            op.alter_column({name!r}, {name!r}, nullable=False)
            op.create_unique_constraint("uq " + {name!r}, {name!r}, [{name!r}])
            op.add_column({name!r}, Column("more", String(20), server_default="it's a ? \\\\ and 50%"))
            op.rename_table({name!r}, "other " + {name!r})
    """
    dumps = []
    for by_script in (True, False):
        project = make_project(new_url("sqlite"))
        project.write(old)
        project.boot()
        project.write(old + new)
        result = project.run("migrate", *(["--sql"] if by_script else []))
        assert result.exit_code == 0, result.output
        if by_script:
            run_client(project.url, result.stdout)
        assert [outcome for _, outcome in project.history()] == ["applied", "applied"]
        with closing(sqlite3.connect(project.url.database)) as driver:
            tables = driver.execute(
                "SELECT * FROM sqlite_master WHERE name NOT LIKE '%db_smart%' ORDER BY name"
            ).fetchall()
            quoted = '"' + f"other {name}".replace('"', '""') + '"'
            dumps.append([[row[:3] + row[4:] for row in tables], *driver.execute(f"SELECT * FROM {quoted}")])
            dumps[-1] += driver.execute("SELECT * FROM sqlite_sequence WHERE name NOT LIKE 'db_smart%'")
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ('op.rename_table("t", "u"); op.add_column("u", Column("n", Integer, nullable=False))', "DS203"),
        ('op.rename_table("t", "u"); op.add_column("u", Column("n", DateTime, server_default=func.now()))', None),
        ('op.rename_table("e", "u"); op.add_column("u", Column("n", Integer, nullable=False))', None),
        ('op.create_table("v", Column("id", Integer)); op.add_column("v", Column("n", Integer, nullable=False))', None),
        (
            'op.create_table("v", Column("id", Integer)); op.execute("INSERT INTO v VALUES (1)"); '
            'op.add_column("v", Column("n", Integer, nullable=False))',
            "DS203",
        ),
        ('op.drop_table("t"); op.create_table("t", Column("id", Integer)); op.add_column("t", Column("n", DateTime, '
         "nullable=False, server_default=func.now()))", None),
    ],
)  # fmt: skip
def test_a_dry_run_knows_which_tables_have_rows(sqlite_project: Project, steps: str, says: str | None) -> None:
    project = sqlite_project
    old = """
        @migration
        def tables(op):
            op.create_table("t", Column("id", Integer))
            op.create_table("e", Column("id", Integer))
            op.execute("INSERT INTO t VALUES (1)")
    """
    project.write(old)
    project.boot()
    project.write(f"{old}\n        @migration(destructive=True)\n        def change(op):\n            {steps}\n")
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    script = project.run("migrate", "--sql").stdout
    if says is not None:
        assert says in shown["error"]
        assert project.run("migrate").exit_code == 1
        return
    assert shown["error"] is None, shown
    run_client(project.url, script)
    assert project.boot().applied == ()


def test_rows_of_a_dry_run_may_reference_rows_that_are_there(sqlite_project: Project) -> None:
    project = sqlite_project
    old = """
        @migration
        def tables(op):
            op.create_table("p", Column("id", Integer, primary_key=True))
            op.execute("INSERT INTO p VALUES (1)")
    """
    new = """
        @migration
        def more(op):
            op.create_table("c", Column("p", Integer))
            op.execute("INSERT INTO c VALUES (1)")
            op.create_foreign_key("fk", "c", "p", ["p"], ["id"])
    """
    project.write(old)
    project.boot()
    project.write(old + new)
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert shown["error"] is None
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.query("SELECT * FROM c") == [(1,)]
    assert project.boot().applied == ()


def test_a_type_brings_its_check_with_it(base: Base) -> None:
    base.script("CREATE TABLE t (id INTEGER PRIMARY KEY, k VARCHAR(4)); INSERT INTO t VALUES (1, 'low')")

    def become(*values: str, name: str | None = "CK k") -> Action:
        return lambda op: op.alter_column("t", "k", type_=Enum(*values, name=name, create_constraint=True))

    base.once(become("low", "high"))
    assert """CONSTRAINT "CK k" CHECK (k IN ('low', 'high'))""" in base.sql()
    base.once(become("low", "high", "mid"))  # as long, and more
    assert """CONSTRAINT "CK k" CHECK (k IN ('low', 'high', 'mid'))""" in base.sql()
    assert base.sql().count("CHECK") == 1
    base.once(become("low", "high", "rest", name=None))
    assert base.sql().endswith("""CHECK (k IN ('low', 'high', 'rest')))""")
    before = base.sql()
    with pytest.raises(Refused, match="DS204 .*1 row breaks CK k"):
        base.run(become("high"))
    assert base.sql() == before
    base.once(lambda op: op.add_column("t", Column("b", Boolean(create_constraint=True, name="ck_b"))))
    assert "CONSTRAINT ck_b CHECK (b IN (0, 1))" in base.sql()
    assert base.sent(lambda op: op.alter_column("t", "b", type_=Boolean(create_constraint=True, name="ck_b"))) == []
