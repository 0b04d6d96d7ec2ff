"""The table rebuild on SQLite: what is not changed stays, whatever the table, its rows and those around it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from operator import methodcaller
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.sqlite.rebuild import needs_foreign_keys_off, rebuild
from aurum_harmony.db_smart.dialects.sqlite.table_sql import TableSql
from aurum_harmony.db_smart.errors import DbSmartError
from aurum_harmony.db_smart.store.database import Database, begin
from tests.harness.processes import run_harness

needs_strict = pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 37), reason="STRICT needs SQLite 3.37")


def same(_: TableSql) -> None:
    """Change nothing."""


class Base:
    """A SQLite file, by a connection in a transaction as the runner has it."""

    def __init__(self, url: URL) -> None:
        self.engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        self.path = str(url.database)

    @contextmanager
    def begun(self, *, foreign_keys: bool = False) -> Iterator[sa.Connection]:
        with Database("default", None, self.engine).connect() as connection:
            connection.exec_driver_sql(f"PRAGMA foreign_keys = {foreign_keys}")
            connection.rollback()
            begin(connection)
            yield connection
            connection.commit()

    def rebuild(self, table: str, change: Callable[[TableSql], None] = same, **options: Any) -> None:
        foreign_keys = options.pop("foreign_keys", False)
        with self.begun(foreign_keys=foreign_keys) as connection:
            rebuild(connection, table, change, **options)
        with closing(sqlite3.connect(self.path)) as driver:
            assert driver.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert not driver.execute("SELECT name FROM sqlite_master WHERE name LIKE '%db_smart_new%'").fetchall()

    def refused(self, match: str, table: str, change: Callable[[TableSql], None] = same, **options: Any) -> str:
        """The message of a rebuild that is refused, and leaves every byte of the database as it was."""
        before = self.dump()
        foreign_keys = options.pop("foreign_keys", False)
        with self.begun(foreign_keys=foreign_keys) as connection:
            with pytest.raises(DbSmartError, match=match) as caught:
                rebuild(connection, table, change, **options)
            pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS]
            assert pragmas == [0, 0, int(foreign_keys)]
        assert self.dump() == before
        message = str(caught.value)
        assert "_db_smart_new_" not in message or "already exists" in message
        assert "Nothing" in message
        return message

    def dump(self) -> list[Any]:
        """The schema in its text, and all rows."""
        # Not by iterdump(): from Python 3.13 on it asks for the foreign keys that rows violate, which may be unusable.
        found: list[Any] = self.query("SELECT rowid, * FROM sqlite_master")
        for (name,) in self.query("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"):
            found += [(name, row) for row in self.query(f"SELECT * FROM {quote(name)}")]
        return found

    def script(self, sql: str) -> None:
        with closing(sqlite3.connect(self.path)) as driver:
            driver.executescript(sql)

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as driver:
            return driver.execute(sql, parameters).fetchall()

    def sql(self, name: str) -> str:
        return str(self.query("SELECT sql FROM sqlite_master WHERE name = ?", name)[0][0])


PRAGMAS = ("legacy_alter_table", "defer_foreign_keys", "foreign_keys")


@pytest.fixture
def base(sqlite_url: URL) -> Base:
    return Base(sqlite_url)


# The text of a definition


def pragmas(driver: sqlite3.Connection, table: str) -> dict[str, Any]:
    """What SQLite understood of a table."""
    columns = driver.execute(
        'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid', (table,)
    )
    keys = driver.execute("SELECT * FROM pragma_foreign_key_list(?)", (table,)).fetchall()
    indexes = [
        (unique, origin, partial, driver.execute("SELECT * FROM pragma_index_xinfo(?)", (name,)).fetchall())
        for _, name, unique, origin, partial in driver.execute("SELECT * FROM pragma_index_list(?)", (table,))
    ]
    return {"columns": {row[0]: row[1:] for row in columns}, "keys": keys, "indexes": indexes}


def edited(sql: str, change: Callable[[TableSql], None] = same) -> tuple[dict[str, Any], dict[str, Any]]:
    """What SQLite understands of a definition as it is stored, and as it is edited."""
    with closing(sqlite3.connect(":memory:")) as driver:
        driver.execute(sql)
        ((name, stored),) = driver.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        before = pragmas(driver, name)
        definition = TableSql(stored)
        assert definition.columns == list(before["columns"])
        change(definition)
        driver.execute(definition.render("edited_one"))
        return before, pragmas(driver, "edited_one")


ODD = """CREATE TABLE "a,b" (
    a int references p(x) not null deferrable initially deferred null constraint foo constraint bar default - 1,
    b VARCHAR(20)NOT NULL,
    [c d] DOUBLE PRECISION DEFAULT (lower('X)')) COLLATE NOCASE, -- a comma, a quote ' and )
    `e``f` DECIMAL(10, 2) CONSTRAINT "n(n" NOT NULL ON CONFLICT REPLACE /* NOT NULL, */ DEFAULT "abc",
    'g h',
    match MATCH NOT NULL,
    "x""y" generated DEFAULT x'ab',
    k TEXT CONSTRAINT k_check CHECK (k <> ')') CONSTRAINT k_one UNIQUE ON CONFLICT IGNORE
        CONSTRAINT k_key REFERENCES p ON DELETE SET NULL ON UPDATE SET DEFAULT NOT DEFERRABLE,
    gen GENERATED ALWAYS AS (a + 1) VIRTUAL,
    constraint u unique(a, b) constraint foo check("a,b" . a > 0 /* . */) foreign key (a, b) references r (c, d)
)"""


def test_what_is_not_edited_stays_as_it_was_written() -> None:
    definition = TableSql(ODD)
    assert definition.columns == ["a", "b", "c d", "e`f", "g h", "match", 'x"y', "k", "gen"]
    assert definition.constraints == {
        "k_check": "check", "k_one": "unique", "k_key": "foreign", "u": "unique", "foo": "check"
    }  # fmt: skip
    # Only the name of the table goes, as the definition must be read under another one.
    assert definition.render('"a,b"') == ODD.replace('"a,b" . a', "  a")
    before, after = edited(ODD)
    assert before == after


@pytest.mark.parametrize("column", ["a", "b", "C D", "e`f", "g h", "match", 'x"y', "k"])
def test_each_edit_of_a_column_changes_that_alone(column: str) -> None:
    name = column.lower()

    def differences(change: Callable[[TableSql], None]) -> dict[int, Any]:
        before, after = edited(ODD, change)
        old, new = before["columns"].pop(name), after["columns"].pop(name)
        assert before == after
        return {index: value for index, value in enumerate(new) if value != old[index]}

    assert differences(lambda table: table.set_type(column, "DECIMAL(7, 3)")) == {0: "DECIMAL(7, 3)"}
    assert differences(lambda table: table.set_default(column, "(1 + 2)")) == {2: "1 + 2"}
    assert differences(lambda table: table.set_default(column, "'it''s'")) == {2: "'it''s'"}
    nullable = edited(ODD, lambda table: table.set_nullable(column, True))[1]
    assert nullable["columns"][name][1] == 0
    assert set(differences(lambda table: table.set_nullable(column, True))) <= {1}
    assert edited(ODD, lambda table: table.set_nullable(column, False))[1]["columns"][name][1] == 1
    assert set(differences(lambda table: table.set_nullable(column, False))) <= {1}
    _, after = edited(ODD, lambda table: table.set_default(column, None))
    assert after["columns"][name][2] is None


def test_what_belongs_to_not_null_goes_with_it_and_comments_stay() -> None:
    definition = TableSql(ODD)
    definition.set_nullable("e`f", True)
    definition.set_nullable("a", True)
    text = definition.render("t")
    assert '`e``f` DECIMAL(10, 2)  /* NOT NULL, */ DEFAULT "abc"' in text
    assert "a int references p(x) deferrable initially deferred null constraint foo" in text
    definition.set_nullable("a", False)
    assert "null constraint foo" not in definition.render("t")


def test_a_collation_replaces_the_one_before() -> None:
    definition = TableSql("CREATE TABLE t (a TEXT COLLATE NOCASE NOT NULL, b)")
    definition.set_type("a", 'VARCHAR(20) COLLATE "RTRIM"')
    definition.set_type("b", "INTEGER")
    assert definition.render("t") == 'CREATE TABLE t (a VARCHAR(20) COLLATE "RTRIM" NOT NULL, b INTEGER)'


def test_columns_and_constraints_are_added_and_dropped() -> None:
    definition = TableSql("CREATE TABLE t (a, b -- the b\n, UNIQUE (a))")
    definition.add_column('"c" INTEGER DEFAULT 1')
    definition.add_constraint("CONSTRAINT positive CHECK (c > 0)")
    assert definition.columns == ["a", "b", "c"]
    assert definition.render("t") == (
        'CREATE TABLE t (a, b -- the b\n, "c" INTEGER DEFAULT 1, UNIQUE (a), CONSTRAINT positive CHECK (c > 0))'
    )
    definition.drop_constraint("POSITIVE")
    definition.drop_column("a")
    assert definition.render("t") == 'CREATE TABLE t ( b -- the b\n, "c" INTEGER DEFAULT 1)'
    for name in ("foo", "k_check", "k_one", "k_key", "u"):
        definition = TableSql(ODD)
        definition.drop_constraint(name)
        assert name not in definition.constraints
        before, after = edited(ODD, methodcaller("drop_constraint", name))
        assert before["columns"] == after["columns"]
        lost = {"k_one": (0, 1), "u": (0, 1), "k_key": (1, 0)}.get(name, (0, 0))
        assert tuple(len(before[kind]) - len(after[kind]) for kind in ("keys", "indexes")) == lost
    definition = TableSql("CREATE TABLE t (a CONSTRAINT f REFERENCES p DEFERRABLE INITIALLY DEFERRED CHECK (a > 0))")
    definition.drop_constraint("f")
    assert "DEFER" not in definition.render("t")


@pytest.mark.parametrize(
    ("constraint", "used"),
    [
        ("PRIMARY KEY (a)", "'PRIMARY KEY \\(a\\)'"),
        ("UNIQUE (A, b)", "'UNIQUE \\(A, b\\)'"),
        ("FOREIGN KEY (b, `a`) REFERENCES p (x, y)", "FOREIGN KEY"),
        ('CONSTRAINT less CHECK ("a" < b)', "CONSTRAINT less"),
        ("UNIQUE ('a', b)", "UNIQUE"),
    ],
)
def test_a_column_that_is_used_with_others_cannot_be_dropped(constraint: str, used: str) -> None:
    definition = TableSql(f"CREATE TABLE t (a INT, b INT, {constraint})")
    with pytest.raises(DbSmartError, match=f"column 'a' of the table 't' cannot be dropped.*{used}"):
        definition.drop_column("a")
    assert definition.columns == ["a", "b"]


@pytest.mark.parametrize("other", ["b INT CHECK (a > 0)", "b INT AS (a + 1)", "b INT GENERATED ALWAYS AS ([A] + 1)"])
def test_a_column_in_an_expression_of_another_cannot_be_dropped(other: str) -> None:
    with pytest.raises(DbSmartError, match="is used in"):
        TableSql(f"CREATE TABLE t (a INT, {other})").drop_column("a")
    with pytest.raises(DbSmartError, match="PRIMARY KEY"):
        TableSql("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").drop_column("a")


@pytest.mark.parametrize(
    "constraint", ["UNIQUE (a)", "CHECK (a <> 'b' AND lower(a) > 0)", "FOREIGN KEY (a) REFERENCES p (b)"]
)
def test_constraints_on_a_column_alone_go_with_it(constraint: str) -> None:
    definition = TableSql(f"CREATE TABLE t (a INT NOT NULL UNIQUE, b INT REFERENCES p (a), {constraint})")
    definition.drop_column("a")
    assert definition.render("t") == "CREATE TABLE t ( b INT REFERENCES p (a))"


@pytest.mark.parametrize("sql", ["CREATE VIRTUAL TABLE t USING fts5(a)", "CREATE TABLE t AS SELECT 1", "", "nonsense"])
def test_what_is_no_table_definition_is_refused(sql: str) -> None:
    with pytest.raises(DbSmartError, match="not define an ordinary table"):
        TableSql(sql)


def test_a_missing_column_or_constraint_is_a_clear_error() -> None:
    definition = TableSql("CREATE TABLE t (a)")
    with pytest.raises(DbSmartError, match="'t' has no column 'z'"):
        definition.set_type("z", "TEXT")
    with pytest.raises(DbSmartError, match="'t' has no constraint 'z'"):
        definition.drop_constraint("z")
    with pytest.raises(DbSmartError, match="the only one of the table 't'"):
        definition.drop_column("a")


def test_a_table_made_by_a_query_is_edited(base: Base) -> None:
    base.script(
        "CREATE TABLE o (a); INSERT INTO o VALUES (1); CREATE TABLE t AS SELECT a AS 'x,y', 1 AS b, 2 AS [c d] FROM o"
    )
    base.rebuild("t", lambda table: table.set_nullable("c d", False))
    assert base.query('SELECT "x,y", b, "c d" FROM t') == [(1, 1, 2)]
    assert [row[3] for row in base.query("PRAGMA table_info(t)")] == [0, 0, 1]


# Definitions of every kind

_GLUE = st.sampled_from([" ", "\n\t", " /* a, (b' */ ", " -- it's )\n"])
_BARE = st.sampled_from(["a", "B", "key", "match", "always", "generated", "é", "_x$1", "type"])
_QUOTED = st.text(st.sampled_from("aB é,()'\"`[]-/*.;:%?\n😀"), min_size=1, max_size=6).filter(str.strip)
_TYPES = st.sampled_from(
    ["", "INTEGER", "VARCHAR(20)", "DOUBLE PRECISION", "DECIMAL(10, 2)", '"odd, ("', "[not null]", "DECIMAL(+1,-2)"]
)
_PREFIX = st.sampled_from(["", "", 'CONSTRAINT "c, (1"', "CONSTRAINT [check]"])
_CLAUSES = st.sampled_from(
    [
        "NOT NULL", "NOT NULL ON CONFLICT REPLACE", "NULL", "UNIQUE", "UNIQUE ON CONFLICT IGNORE", "COLLATE NOCASE",
        'COLLATE "RTRIM"', "CHECK (1 <> 2)", "CHECK (')' <> ',')", "DEFAULT -1", "DEFAULT + 1.5e3", "DEFAULT ('a,)')",
        "DEFAULT (1 + (2))", "DEFAULT x'ab'", "DEFAULT CURRENT_TIMESTAMP", 'DEFAULT "q"', "DEFAULT NULL",
        "DEFAULT match", "REFERENCES other", 'REFERENCES "o,(" (x) ON DELETE SET NULL ON UPDATE SET DEFAULT MATCH FULL',
        "REFERENCES other (x) ON UPDATE CASCADE NOT DEFERRABLE", "REFERENCES other DEFERRABLE INITIALLY DEFERRED",
    ]
)  # fmt: skip


@st.composite
def _identifiers(draw: st.DrawFn) -> tuple[str, str]:
    """A name, and one of the ways to write it."""
    if draw(st.booleans()):
        name = draw(_BARE)
        return name, name
    name = draw(_QUOTED)
    ways = ['"' + name.replace('"', '""') + '"', "`" + name.replace("`", "``") + "`"]
    return name, draw(st.sampled_from(ways if "]" in name else [*ways, f"[{name}]"]))


@st.composite
def _definitions(draw: st.DrawFn) -> str:
    """A CREATE TABLE that SQLite accepts."""
    columns = draw(st.lists(_identifiers(), min_size=1, max_size=5, unique_by=lambda one: one[0].encode().lower()))
    written = [one[1] for one in columns]
    elements = []
    for name in written:
        parts = [name, draw(_TYPES)]
        for clause in draw(st.lists(_CLAUSES, max_size=4)):
            parts += [draw(_PREFIX), clause]
        elements.append("".join(part + draw(_GLUE) for part in parts))
    if draw(st.booleans()):
        elements.append(f"generated_one {draw(st.sampled_from(['GENERATED ALWAYS ', 'INT ']))}AS ({written[0]})")
    constraints = []
    one, two = draw(st.sampled_from(written)), draw(st.sampled_from(written))
    for kind in draw(
        st.lists(
            st.sampled_from(["UNIQUE ({0})", "CHECK ({0} IS NOT {1} OR 1)", "FOREIGN KEY ({1}) REFERENCES other (x)"])
        )
    ):
        constraints.append(f"{draw(_PREFIX)}{draw(_GLUE)}{kind.format(one, two)}{draw(_GLUE)}")
    without_rowid = draw(st.booleans())
    if without_rowid:
        constraints.append(f"PRIMARY{draw(_GLUE)}KEY ({one})")
    text = ",".join(elements)
    for constraint in constraints:
        text += ("," if constraint is constraints[0] or draw(st.booleans()) else " ") + constraint
    table = draw(_identifiers())[1]
    return f"CREATE TABLE {table}{draw(_GLUE)}({draw(_GLUE)}{text}){'WITHOUT ROWID' if without_rowid else ''}"


@given(sql=_definitions())
@settings(deadline=None)
def test_every_definition_is_understood_as_sqlite_does(sql: str) -> None:
    before, after = edited(sql)
    assert before == after


@given(sql=_definitions(), data=st.data())
@settings(deadline=None)
def test_every_edit_of_every_definition_changes_that_alone(sql: str, data: st.DataObject) -> None:
    columns = edited(sql)[0]["columns"]
    column = data.draw(st.sampled_from([name for name, facts in columns.items() if not facts[4]]))
    edit = data.draw(
        st.sampled_from(["type", "nullable", "not nullable", "default", "no default", "add", "constraint"])
    )
    changes: dict[str, tuple[Callable[[TableSql], None], int, Any]] = {
        "type": (lambda table: table.set_type(column, "DECIMAL(7, 3)"), 0, "DECIMAL(7, 3)"),
        "nullable": (
            lambda table: table.set_nullable(column, True),
            1,
            int("WITHOUT" in sql and columns[column][3] > 0),
        ),
        "not nullable": (lambda table: table.set_nullable(column, False), 1, 1),
        "default": (lambda table: table.set_default(column, "(1 + 2)"), 2, "1 + 2"),
        "no default": (lambda table: table.set_default(column, None), 2, None),
        "add": (lambda table: table.add_column("brand_new INTEGER DEFAULT 3"), 0, columns[column][0]),
        "constraint": (lambda table: table.add_constraint("CONSTRAINT brand_new CHECK (1)"), 0, columns[column][0]),
    }
    change, place, expected = changes[edit]
    before, after = edited(sql, change)
    assert after["columns"][column][place] == expected
    if edit == "add":
        assert after["columns"].pop("brand_new") == ("INTEGER", 0, "3", 0, 0)
        for kind in ("indexes",):  # the numbers of columns behind it move
            assert len(before[kind]) == len(after[kind])
        del before["indexes"], after["indexes"]
    facts = before["columns"].pop(column), after["columns"].pop(column)
    assert [value for index, value in enumerate(facts[0]) if index != place] == [
        value for index, value in enumerate(facts[1]) if index != place
    ]
    assert before == after


# The rebuild


@given(sql=_definitions())
@settings(deadline=None)
def test_every_table_is_rebuilt_as_it_was(sql: str) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(sql)
        ((name, stored),) = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
        quoted = engine.dialect.identifier_preparer.quote_identifier(name)
        columns = [quote(column) for column in TableSql(stored).columns if column != "generated_one"]
        for value in ("1", "'x'", "NULL"):
            values = ", ".join([value] * len(columns))
            connection.exec_driver_sql(f"INSERT OR IGNORE INTO {quoted} ({', '.join(columns)}) VALUES ({values})")
        rows = connection.exec_driver_sql(f"SELECT * FROM {quoted}").all()
        rebuild(connection, name, same)
        assert connection.exec_driver_sql(f"SELECT * FROM {quoted}").all() == rows
        ((_, again),) = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
        assert TableSql(again).render("t") == TableSql(stored).render("t")


WORLD = """
CREATE TABLE parent (id INTEGER PRIMARY KEY AUTOINCREMENT, code VARCHAR(20) NOT NULL COLLATE NOCASE,
    twice AS (code || code), stored INT GENERATED ALWAYS AS (length(code)) STORED,
    note TEXT DEFAULT ('a:b'), price DECIMAL(10, 2),
    CONSTRAINT one_code UNIQUE (code) ON CONFLICT REPLACE, CONSTRAINT positive CHECK (parent.price > 0));
CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INT REFERENCES PARENT (id) ON DELETE CASCADE);
CREATE TABLE log (what TEXT);
CREATE INDEX "ix, (x)" ON parent (price DESC, note COLLATE NOCASE);
CREATE UNIQUE INDEX ix_expression ON parent (lower(code), price) WHERE price > 10;
CREATE TRIGGER parent_added AFTER INSERT ON parent BEGIN INSERT INTO log VALUES ('added ' || new.code); END;
CREATE TRIGGER parent_gone BEFORE DELETE ON parent WHEN old.price > 1
    BEGIN INSERT INTO log VALUES ('gone; ' || old.code); END;
CREATE TRIGGER child_added AFTER INSERT ON child BEGIN UPDATE parent SET note = 'child' WHERE id = new.parent_id; END;
CREATE VIEW dear AS SELECT p.code, "p".twice, c.id FROM parent AS p JOIN child c ON c.parent_id = p.id;
CREATE TRIGGER dear_added INSTEAD OF INSERT ON dear BEGIN INSERT INTO parent (code) VALUES (new.code); END;
CREATE VIEW broken AS SELECT x FROM nowhere;
WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
    INSERT INTO parent (id, code, price) SELECT i * 2, 'Code ' || i, CASE i % 3 WHEN 0 THEN NULL ELSE i END FROM n;
INSERT INTO child (parent_id) SELECT id FROM parent;
DELETE FROM parent WHERE id = 20000;
DELETE FROM child WHERE parent_id = 20000;
DELETE FROM log;
ANALYZE;
"""
OF_PARENT = "SELECT id, code, twice, stored, note, price, typeof(id), typeof(code), typeof(price) FROM parent"


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("foreign_keys", [False, True])
def test_everything_around_a_table_of_10000_rows_is_kept(base: Base, foreign_keys: bool) -> None:
    base.script(WORLD if not foreign_keys else WORLD.replace("REFERENCES PARENT (id) ON DELETE CASCADE", ""))
    queries = [
        OF_PARENT, "SELECT * FROM child", "SELECT * FROM dear", "SELECT * FROM sqlite_sequence",
        "SELECT * FROM sqlite_stat1 ORDER BY idx",
        "SELECT name, sql FROM sqlite_master WHERE name <> 'parent' ORDER BY name",
        "SELECT * FROM pragma_table_xinfo('parent')", "SELECT * FROM pragma_foreign_key_list('child')",
    ]  # fmt: skip
    before = [base.query(query) for query in queries]
    text = base.sql("parent")
    base.rebuild("PARENT", foreign_keys=foreign_keys)
    assert [base.query(query) for query in queries] == before
    assert len(before[0]) == 9999
    assert base.sql("parent") == text.replace("TABLE parent", 'TABLE "parent"').replace("parent.price", "price")
    with closing(sqlite3.connect(base.path)) as driver:
        driver.execute("PRAGMA foreign_keys = ON")
        driver.execute("INSERT INTO dear (code) VALUES ('new')")
        assert driver.execute("SELECT id, code FROM parent WHERE id >= 20000").fetchall() == [(20001, "new")]
        driver.execute("INSERT INTO child (parent_id) VALUES (20001)")
        assert driver.execute("SELECT note FROM parent WHERE id = 20001").fetchall() == [("child",)]
        driver.execute("DELETE FROM parent WHERE id = 4")
        kept = driver.execute("SELECT count(*) FROM child WHERE parent_id = 4").fetchall()
        assert kept == [(int(foreign_keys),)]
        assert driver.execute("SELECT what FROM log").fetchall() == [("added new",), ("gone; Code 2",)]
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            driver.execute("UPDATE parent SET price = -1")


def test_a_change_is_made_and_nothing_else(base: Base) -> None:
    base.script(WORLD)
    before = base.query(OF_PARENT)

    def change(table: TableSql) -> None:
        table.set_type("price", "TEXT")
        table.set_default("note", "'none'")
        table.set_nullable("note", False)
        table.add_column("city VARCHAR(30) NOT NULL UNIQUE")
        table.drop_constraint("positive")
        table.add_constraint("CONSTRAINT long CHECK (length(city) > 2)")

    base.rebuild("parent", change, values={"Note": "coalesce(note, 'none')", "city": "'city of ' || id"})
    assert base.query("SELECT id, code, twice, stored, note, city, price FROM parent") == [
        (*row[:4], row[4] or "none", f"city of {row[0]}", None if row[5] is None else str(row[5])) for row in before
    ]
    assert base.query("SELECT name FROM pragma_index_list('parent') WHERE origin = 'c' ORDER BY name") == [
        ("ix, (x)",), ("ix_expression",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "rowids"),
    [
        ("CREATE TABLE t (a TEXT PRIMARY KEY, b)", "rowid"),
        ("CREATE TABLE t (rowid TEXT, a, b)", "_rowid_"),
        ("CREATE TABLE t (a INT, b, _ROWID_, 'oid')", "rowid"),
        ("CREATE TABLE t (a, b INTEGER PRIMARY KEY)", "b"),
        ("CREATE TABLE t (a, b INTEGER PRIMARY KEY DESC)", "rowid"),
    ],
)
def test_rowids_are_kept(base: Base, table: str, rowids: str) -> None:
    base.script(f"{table}; INSERT INTO t (a, b) VALUES ('x', 5), ('a', 7), ('m', 6); DELETE FROM t WHERE b = 5")
    before = base.query(f"SELECT {rowids}, * FROM t ORDER BY b")
    base.rebuild("t", lambda table: table.set_type("a", "VARCHAR(9)"))
    assert base.query(f"SELECT {rowids}, * FROM t ORDER BY b") == before


def test_rows_without_any_rowid_to_name_keep_their_order(base: Base) -> None:
    # An index that covers what is copied, and is smaller than the table, must not be read instead of it.
    base.script(
        "CREATE TABLE t (rowid INT, oid INT, _rowid_ INT, wide TEXT AS (hex(zeroblob(99))) STORED,"
        "UNIQUE (_rowid_, oid, rowid));"
        "INSERT INTO t VALUES (3, 1, 2), (2, 2, 1), (1, 3, 0)"
    )
    before = base.query("SELECT * FROM t NOT INDEXED")
    base.rebuild("t")
    assert base.query("SELECT * FROM t NOT INDEXED") == before


@needs_strict
def test_strict_and_without_rowid_are_kept(base: Base) -> None:
    base.script(
        "CREATE TABLE t (a TEXT COLLATE NOCASE, b INT, c ANY, PRIMARY KEY (a DESC, b)) STRICT, WITHOUT ROWID;"
        "INSERT INTO t VALUES ('x', 1, '1'), ('Y', 2, 1)"
    )
    before = base.query("SELECT *, typeof(c) FROM t")
    base.rebuild("t", lambda table: table.set_default("c", "1"))
    assert base.query("SELECT *, typeof(c) FROM t") == before
    assert base.query("SELECT wr, strict FROM pragma_table_list('t')") == [(1, 1)]
    base.refused("cannot store TEXT value in INT column t.b", "t", values={"b": "'text'"})


def test_autoincrement_goes_on_in_a_table_that_was_emptied(base: Base) -> None:
    base.script("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a)")
    base.script("INSERT INTO t (a) VALUES (1), (2); DELETE FROM t")
    base.rebuild("t", methodcaller("set_type", "a", "INT"))
    base.script("INSERT INTO t (a) VALUES (3)")
    assert base.query("SELECT * FROM t") == [(3, 3)]
    assert base.query("SELECT * FROM sqlite_sequence") == [("t", 3)]


def test_full_text_search_over_the_table_goes_on(base: Base) -> None:
    base.script(
        "CREATE TABLE t (title TEXT, body TEXT); CREATE VIRTUAL TABLE found USING fts5(title, body, content='t');"
        "CREATE TRIGGER ai AFTER INSERT ON t"
        " BEGIN INSERT INTO found(rowid, title, body) VALUES (new.rowid, new.title, new.body); END;"
        "INSERT INTO t VALUES ('one', 'first'), ('two', 'second'), ('three', 'third'); DELETE FROM t WHERE rowid = 1"
    )
    base.rebuild("t", lambda table: table.set_nullable("title", False))
    base.script("INSERT INTO t VALUES ('four', 'fourth')")
    assert base.query("SELECT rowid, title FROM found WHERE found MATCH 'third OR fourth'") == [
        (3, "three"),
        (4, "four"),
    ]
    base.refused("not define an ordinary table", "found")


@pytest.mark.parametrize("schema", ["other", "temp"])
def test_a_table_of_another_schema(base: Base, schema: str) -> None:
    with base.begun() as connection:
        run = connection.exec_driver_sql
        connection.commit()
        run("ATTACH ':memory:' AS other")
        connection.commit()
        begin(connection)
        run("CREATE TABLE main.t (a, b)")
        run("INSERT INTO main.t VALUES ('main', 1)")
        run(f"CREATE TABLE {schema}.t (a, b)")
        run(f"INSERT INTO {schema}.t VALUES ('here', 1)")
        run(f"CREATE UNIQUE INDEX {schema}.ix ON t (b)")
        run(f"CREATE TRIGGER {schema}.tr AFTER INSERT ON t BEGIN UPDATE t SET a = 'trigger' WHERE b = new.b; END")
        run("CREATE TEMP TRIGGER over_main AFTER INSERT ON main.t BEGIN UPDATE t SET b = b; END")
        rebuild(connection, "t", lambda table: table.add_column("c DEFAULT 5"), schema=schema)
        run(f"INSERT INTO {schema}.t (a, b) VALUES ('x', 2)")
        assert run(f"SELECT * FROM {schema}.t").all() == [("here", 1, 5), ("trigger", 2, 5)]
        assert run("SELECT * FROM main.t").all() == [("main", 1)]
        assert run(f"SELECT name FROM {schema}.pragma_index_list('t', '{schema}')").all() == [("ix",)]
        rebuild(connection, "t", same)
        assert run("SELECT name FROM temp.sqlite_master WHERE name = 'over_main'").all() == [("over_main",)]
        with pytest.raises(sa.exc.NoSuchTableError):
            rebuild(connection, "missing", same, schema=schema)


# Foreign keys

FAMILY = """
CREATE TABLE parent (id INTEGER PRIMARY KEY, name VARCHAR(20));
CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER NOT NULL REFERENCES parent (id) ON DELETE CASCADE);
CREATE TABLE tree (id INTEGER PRIMARY KEY, up INTEGER REFERENCES Tree (id) ON DELETE CASCADE);
INSERT INTO parent VALUES (1, 'one'), (2, 'two');
INSERT INTO child (parent_id) VALUES (1), (1), (2);
INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2);
"""


def test_alembic_deletes_the_children_and_this_does_not(base: Base) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    base.script(FAMILY)
    with base.begun(foreign_keys=True) as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("parent") as batch:
            batch.alter_column("name", nullable=False, existing_type=sa.String(20))
        assert connection.exec_driver_sql("SELECT count(*) FROM parent").scalar() == 2
        assert connection.exec_driver_sql("SELECT count(*) FROM child").scalar() == 0  # that is why
        connection.rollback()
        begin(connection)
        assert connection.exec_driver_sql("SELECT count(*) FROM child").scalar() == 3
    for table, column in (("parent", "name"), ("tree", "up")):
        with base.begun(foreign_keys=True) as connection:
            assert needs_foreign_keys_off(connection, table)
            assert needs_foreign_keys_off(connection, table.upper(), "main")
            assert not needs_foreign_keys_off(connection, "child")
        base.refused("PRAGMA foreign_keys is on", table, methodcaller("set_type", column, "INT"), foreign_keys=True)
        before = base.query("SELECT * FROM child, tree")
        with base.begun() as connection:
            assert not needs_foreign_keys_off(connection, table)
        base.rebuild(table, methodcaller("set_type", column, "INT"))
        assert base.query("SELECT * FROM child, tree") == before
    with closing(sqlite3.connect(base.path)) as driver:
        driver.execute("PRAGMA foreign_keys = ON")
        driver.execute("DELETE FROM parent WHERE id = 1")
        driver.execute("DELETE FROM tree WHERE id = 2")
        assert driver.execute("SELECT parent_id FROM child").fetchall() == [(2,)]
        assert driver.execute("SELECT id FROM tree").fetchall() == [(1,)]


def test_a_reference_to_itself_that_the_change_adds_must_not_cascade(base: Base) -> None:
    base.script("CREATE TABLE t (id INTEGER PRIMARY KEY, up INT); INSERT INTO t VALUES (1, NULL), (2, 1)")

    def change(table: TableSql) -> None:
        table.add_constraint("FOREIGN KEY (up) REFERENCES t (id) ON DELETE CASCADE")

    base.refused("PRAGMA foreign_keys is on", "t", change, foreign_keys=True)
    base.rebuild("t", change)
    assert base.query("SELECT * FROM t") == [(1, None), (2, 1)]


@pytest.mark.parametrize("foreign_keys", [False, True])
def test_rows_that_violated_before_stay_and_new_violations_are_refused(base: Base, foreign_keys: bool) -> None:
    base.script(FAMILY)
    base.script("INSERT INTO child (parent_id) VALUES (77), (78); INSERT INTO parent VALUES (99, 'nine')")
    before = base.query("SELECT * FROM child")
    base.rebuild("child", lambda table: table.add_column("more INT DEFAULT 4"), foreign_keys=foreign_keys)
    assert base.query("SELECT id, parent_id FROM child") == before
    message = base.refused(
        r"3 row\(s\) of 'child' violate FOREIGN KEY \(more\) REFERENCES parent",
        "child",
        lambda table: table.add_constraint("CONSTRAINT more FOREIGN KEY (more) REFERENCES parent (id)"),
        values={"more": "CASE WHEN id < 4 THEN 5 ELSE 99 END"},
        foreign_keys=foreign_keys,
    )
    assert "77" not in message
    if not foreign_keys:
        base.refused(r"1 row\(s\) of 'child' violate", "parent", values={"id": "id + (id = 2)"})


@pytest.mark.parametrize("foreign_keys", [False, True])
def test_a_key_that_others_reference_cannot_be_dropped(base: Base, foreign_keys: bool) -> None:
    base.script(
        "CREATE TABLE p (a INT, CONSTRAINT one UNIQUE (a)); CREATE TABLE c (a INT REFERENCES p (a));"
        "CREATE TABLE unusable (a REFERENCES p (b)); INSERT INTO p VALUES (1); INSERT INTO c VALUES (1)"
    )
    base.rebuild("p")
    base.refused(
        "foreign_keys is on" if foreign_keys else 'unusable foreign key: .*"c" referencing "p"',
        "p",
        lambda table: table.drop_constraint("one"),
        foreign_keys=foreign_keys,
    )


# What is refused


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.set_nullable("price", False), "NOT NULL constraint failed: parent.price"),
        (lambda table: table.add_constraint("UNIQUE (note) ON CONFLICT IGNORE"), "UNIQUE .* failed: parent.note"),
        (lambda table: table.add_constraint("CHECK (parent.price > 5)"), "CHECK constraint failed"),
        (lambda table: table.add_column("city TEXT NOT NULL"), "NOT NULL constraint failed: parent.city"),
        (lambda table: table.add_column("code TEXT"), "duplicate column name: code"),
        (lambda table: table.set_type("price", "TEXT )"), "syntax error"),
        (lambda table: table.drop_column("note"), "the index 'ix, \\(x\\)' also covers a dropped column.*Drop"),
        (lambda table: table.drop_column("missing"), "has no column 'missing'"),
        (lambda table: table.drop_column("id"), "PRIMARY KEY"),
    ],
)  # fmt: skip
def test_what_does_not_fit_leaves_everything_as_it_was(
    base: Base, change: Callable[[TableSql], None], match: str
) -> None:
    base.script(WORLD + "UPDATE parent SET note = 'same';")
    base.refused(match, "parent", change)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("CREATE VIEW v AS SELECT b FROM t", "break the view 'v' .no such column: b"),
        ('CREATE VIEW v AS SELECT "b" FROM T', "break the view 'v' .it names 'b'"),
        ("CREATE TEMP VIEW v AS SELECT 1", None),
        ("CREATE VIEW v AS SELECT 'b', a FROM t", None),
        (
            "CREATE TRIGGER tr AFTER DELETE ON t BEGIN SELECT old.b; END",
            "a trigger on 't' for DELETE .no such",
        ),
        (
            "CREATE TRIGGER tr AFTER UPDATE OF x ON o BEGIN INSERT INTO t (a, b) VALUES (1, 2); END",
            "a trigger on 'o' for UPDATE",
        ),
        (
            'CREATE TRIGGER tr AFTER INSERT ON o BEGIN DELETE FROM t WHERE "b" = 1; END',
            "the trigger 'tr' .it names 'b'",
        ),
        ("CREATE INDEX ix ON t (b)", None),
        ("CREATE UNIQUE INDEX ix ON t (lower([B])) WHERE b > 0", None),
        ('CREATE INDEX ix ON t (a, "b")', "the index 'ix' also covers a dropped column"),
        ("CREATE INDEX ix ON t (a) WHERE `b` > 0", "the index 'ix' also covers a dropped column"),
    ],
)
def test_a_column_that_others_name_cannot_be_dropped(base: Base, more: str, match: str | None) -> None:
    base.script(f"CREATE TABLE o (x, y AS (x)); CREATE TABLE t (a INT, b INT); INSERT INTO t VALUES (1, 2); {more}")

    def change(table: TableSql) -> None:
        table.drop_column("b")

    if match is not None:
        base.refused(match, "t", change)
        return
    base.rebuild("t", change)
    assert base.query("SELECT * FROM t") == [(1,)]
    assert base.query("SELECT * FROM sqlite_master WHERE name = 'ix'") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CONSTRAINT one_code UNIQUE (code) ON CONFLICT REPLACE", "CHECK (1)"),
        ("DEFAULT ('a:b')", "DEFAULT ('a;b')"),
        ("VARCHAR(20)", "VARCHAR(30)"),
        ("NOT NULL", "NULL"),
        ("COLLATE NOCASE", "COLLATE RTRIM"),
        ("STORED", "VIRTUAL"),
    ],
)
def test_a_change_that_nobody_asked_for_is_refused(base: Base, old: str, new: str) -> None:
    base.script(WORLD)

    def damage(table: TableSql) -> None:
        for element in table._elements:  # as an error in an edit could
            for piece in element.pieces:
                piece.text = piece.text.replace(old, new)

    base.refused("it would have lost", "parent", damage)


def test_values_for_a_column_that_is_not_there(base: Base) -> None:
    base.script("CREATE TABLE t (a, b AS (a))")
    base.refused("no column 'b', 'c' that could get values", "t", values={"c": "1", "b": "2"})


def test_a_table_in_the_way_is_left_alone(base: Base) -> None:
    base.script("CREATE TABLE t (a); CREATE TABLE _db_smart_new_T (precious); INSERT INTO _db_smart_new_T VALUES (1)")
    base.refused("a table '_db_smart_new_t' already exists.*Drop it", "t")


def test_a_full_disk_is_a_clear_error(base: Base) -> None:
    base.script(WORLD)
    before = base.dump()
    with base.begun() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(DbSmartError, match="database or disk is full.*Nothing was changed"):
            rebuild(connection, "parent", same)
        connection.rollback()
    assert base.dump() == before


def test_outside_a_transaction_it_is_one_of_its_own(base: Base) -> None:
    base.script(WORLD)
    before = base.dump()
    with Database("default", None, base.engine).connect(autocommit=True) as connection:
        with pytest.raises(DbSmartError):
            rebuild(connection, "parent", lambda table: table.set_nullable("price", False))
        assert not connection.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]
        assert base.dump() == before
        rebuild(connection, "parent", lambda table: table.set_nullable("code", True))
        assert not connection.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]
    assert base.query("SELECT \"notnull\" FROM pragma_table_info('parent') WHERE name = 'code'") == [(0,)]


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_kill_at_every_statement_leaves_the_old_table_or_the_new_one(sqlite_url: URL, journal: str) -> None:
    report = run_harness("kill_rebuild", f"sqlite, {journal}", [sqlite_url], journal)
    assert report["kills"] > 30, report
    assert report["old"] + report["new"] == report["kills"], report
    assert report["new"] >= 1, report
