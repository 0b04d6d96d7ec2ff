"""MariaDB: foreign keys that would stop the table's writers, and column definitions that are kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Integer, event
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.schema.rules import Refused
from aurum_harmony.db_smart.store.database import Database
from tests.harness.clients import run_client
from tests.harness.databases import engine_of
from tests.harness.direct import operations
from tests.harness.facts import differences, drop_tables, facts
from tests.harness.project import Project


@pytest.fixture
def database(new_url: Callable[[str], URL]) -> Database:
    return Database("default", None, engine_of(new_url("mariadb")))


def run(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def shown(database: Database, table: str) -> str:
    with database.engine.connect() as connection:
        text: str = connection.exec_driver_sql(f"SHOW CREATE TABLE `{table.replace('%', '%%')}`").one()[1]
        return text


def orders(database: Database, user: str) -> None:
    run(
        database,
        "CREATE TABLE users (id INT PRIMARY KEY)",
        "CREATE TABLE orders (id INT PRIMARY KEY, user_id INT)",
        f"INSERT INTO orders VALUES (1, {user})",
    )


TARGETS = {
    "missing": "SELECT 1",
    "a view": "CREATE VIEW target AS SELECT id FROM users",
    "Aria": "CREATE TABLE target (id INT PRIMARY KEY) ENGINE=Aria",
    "partitioned": "CREATE TABLE target (id INT PRIMARY KEY) PARTITION BY HASH (id) PARTITIONS 2",
    "without index": "CREATE TABLE target (id INT)",
    "another type": "CREATE TABLE target (id BIGINT PRIMARY KEY)",
    "without the column": "CREATE TABLE target (no INT PRIMARY KEY)",
}


@pytest.mark.parametrize("how", ["key", "column"])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_foreign_key_to_what_cannot_be_one_is_refused_and_writers_go_on(
    database: Database, kind: str, how: str
) -> None:
    orders(database, "NULL")
    run(database, TARGETS[kind])
    before = shown(database, "orders")

    def add(op: Operations) -> None:
        if how == "key":
            op.create_foreign_key("fk_user", "orders", "target", ["user_id"], ["id"])
        else:
            op.add_column("orders", Column("other_id", Integer, ForeignKey("target.id")))

    for _ in range(2):
        with pytest.raises((DbSmartError, sa.exc.DBAPIError)) as caught, operations(database) as op:
            add(op)
        if kind in ("missing", "a view", "Aria", "partitioned"):
            assert "'target'" in str(caught.value)
            assert "Nothing was changed" in str(caught.value)
        assert shown(database, "orders") == before
        run(database, "UPDATE orders SET user_id = 7", "UPDATE orders SET user_id = NULL")
    if kind != "without index":  # which is one again once it has an index
        run(database, "DROP VIEW IF EXISTS target") if kind == "a view" else run(
            database, "DROP TABLE IF EXISTS target"
        )
        run(database, "CREATE TABLE target (id INT PRIMARY KEY)")
        with operations(database) as op:
            add(op)
        assert "REFERENCES `target` (`id`)" in shown(database, "orders")


def test_a_column_with_a_key_beside_one_to_which_the_server_gave_its_name(database: Database) -> None:
    orders(database, "NULL")
    run(database, "ALTER TABLE orders ADD CONSTRAINT orders_ibfk_1 FOREIGN KEY (user_id) REFERENCES users (id)")
    for name in ("a_id", "b_id"):
        with operations(database) as op:
            op.add_column("orders", Column(name, Integer, ForeignKey("users.id")))
    found = shown(database, "orders")
    assert "CONSTRAINT `orders_ibfk_2` FOREIGN KEY (`a_id`)" in found
    assert "CONSTRAINT `orders_ibfk_3` FOREIGN KEY (`b_id`)" in found


def test_a_look_at_the_rows_that_fails_takes_the_key_back(database: Database) -> None:
    orders(database, "7")
    before = shown(database, "orders")

    @event.listens_for(database.engine, "before_cursor_execute")
    def stop(_: object, cursor: object, statement: str, *__: object) -> None:
        if "NOT (EXISTS" in statement:
            raise InterruptedError

    with pytest.raises(InterruptedError), operations(database) as op:
        op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
    assert "CONSTRAINT" not in shown(database, "orders")
    run(database, "UPDATE orders SET user_id = 8")
    event.remove(database.engine, "before_cursor_execute", stop)
    with pytest.raises(Refused, match="DS204.*1 row "), operations(database) as op:
        op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
    assert "CONSTRAINT" not in shown(database, "orders")
    assert "CONSTRAINT" not in before


@pytest.mark.parametrize("how", ["key", "column"])
def test_a_key_whose_rows_were_not_looked_at_is_looked_at_by_the_next_run(database: Database, how: str) -> None:
    orders(database, "7")

    def add(op: Operations) -> None:
        if how == "key":
            op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
        else:
            op.add_column("orders", Column("other_id", Integer, ForeignKey("users.id"), server_default="9"))

    @event.listens_for(database.engine, "before_cursor_execute")
    def kill(connection: sa.Connection, cursor: object, statement: str, *_: object) -> None:
        if "NOT (EXISTS" in statement:
            number = connection.connection.driver_connection.thread_id()  # type: ignore[union-attr]
            with engine_of(database.engine.url).connect() as other:
                other.exec_driver_sql(f"KILL {number}")

    with pytest.raises((DbSmartError, sa.exc.DBAPIError)), operations(database) as op:
        add(op)
    event.remove(database.engine, "before_cursor_execute", kill)
    assert "FOREIGN KEY" in shown(database, "orders")
    with pytest.raises(Refused, match="DS204.*1 row "), operations(database) as op:
        add(op)
    assert "FOREIGN KEY" not in shown(database, "orders")


DATED = "t TIMESTAMP NOT NULL DEFAULT current_timestamp() ON UPDATE current_timestamp() COMMENT 'DEFAULT 1 ON UPDATE'"


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("2020-01-01 00:00:00", "DEFAULT '2020-01-01 00:00:00' ON UPDATE current_timestamp()"),
        (sa.text("CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP"), "current_timestamp() ON UPDATE current_timestamp()"),
        (None, "DEFAULT '0000-00-00 00:00:00' ON UPDATE current_timestamp()"),
    ],
)
def test_a_new_default_keeps_on_update(database: Database, default: object, expected: str, rows: int) -> None:
    run(database, f"CREATE TABLE d (id INT PRIMARY KEY, {DATED.replace('TIMESTAMP', 'DATETIME', 1)})")
    run(database, *["INSERT INTO d (id) VALUES (1)"] * rows)
    with operations(database) as op:
        op.alter_column("d", "t", server_default=default)
    line = next(line for line in shown(database, "d").split("\n") if line.startswith("  `t`"))
    assert expected in line
    assert line.endswith("COMMENT 'DEFAULT 1 ON UPDATE',")


def test_a_column_with_a_percent_sign_keeps_all_else(database: Database) -> None:
    run(
        database,
        "CREATE TABLE `t%c` (`id%` INT AUTO_INCREMENT PRIMARY KEY COMMENT '100%', `n%s` INT NOT NULL DEFAULT 5)",
    )
    with operations(database) as op:
        op.alter_column("t%c", "id%", type_=sa.BigInteger())
        op.alter_column("t%c", "n%s", nullable=True)
    text = shown(database, "t%c")
    assert "  `id%` bigint(20) NOT NULL AUTO_INCREMENT COMMENT '100%'," in text
    assert "  `n%s` int(11) DEFAULT 5," in text


OLD = """
@migration
def old(op):
    op.create_table(
        "people", Column("id", Integer, primary_key=True), Column("a", String(20)), Column("n", Integer),
        Column("name", String(50), server_default="it's 5%, (x", comment="DEFAULT, 'x'"),
    )
    op.execute("INSERT INTO people (id, a, n) VALUES (1, 'x', 2)")
"""
#: Pairs of changes, of which the second builds on the first; ``@@`` begins another migration.
PAIRS = {
    "not null, wider": "op.alter_column('people', 'a', nullable=False)@@"
    "op.alter_column('people', 'a', type_=String(60))",
    "default, not null": "op.alter_column('people', 'n', server_default='5')@@"
    "op.alter_column('people', 'n', nullable=False)",
    "wider, default": "op.alter_column('people', 'name', type_=String(60))@@"
    "op.alter_column('people', 'name', server_default='b')",
    "default, wider": "op.alter_column('people', 'name', server_default='b')@@"
    "op.alter_column('people', 'name', type_=String(60))",
    "no default, not null": "op.alter_column('people', 'name', server_default=None)@@"
    "op.alter_column('people', 'name', nullable=False)",
    "default and all": "op.alter_column('people', 'n', server_default='7', nullable=False, type_=BigInteger(), "
    "online=False)@@op.alter_column('people', 'n', nullable=True)",
    "new column": "op.add_column('people', Column('x', String(9), server_default='y', comment='z'))@@"
    "op.alter_column('people', 'x', nullable=False)@@op.alter_column('people', 'x', type_=String(12))",
    "backfilled": "op.add_column('people', Column('x', Integer))@@op.backfill('people', {'x': 3})@@"
    "op.alter_column('people', 'x', nullable=False)",
    "old column backfilled": "op.execute('INSERT INTO people (id) VALUES (2)')@@op.backfill('people', {'n': 3})@@"
    "op.alter_column('people', 'n', nullable=False)",
    "new table": "op.create_table('t', Column('id', Integer, primary_key=True), "
    "Column('x', Integer, server_default='4'))@@"
    "op.alter_column('t', 'x', type_=BigInteger())@@op.alter_column('t', 'x', nullable=False)",
    "renamed table": "op.rename_table('people', 'persons')@@op.alter_column('persons', 'n', nullable=False)@@"
    "op.create_index('ix', 'persons', ['n'])@@op.create_unique_constraint('uq', 'persons', ['a'])",
    "renamed column": "op.alter_column('people', 'n', new_column_name='m')@@"
    "op.alter_column('people', 'm', nullable=False)@@"
    "op.create_index('ix', 'people', ['m'])@@op.create_unique_constraint('uq', 'people', ['m'])@@"
    "op.alter_column('people', 'm', type_=BigInteger(), online=False)",
}


TOGETHER = ("not null, wider", "backfilled", "renamed column", "new column")


@pytest.mark.parametrize(
    ("pair", "together"), [*((pair, False) for pair in PAIRS), *((pair, True) for pair in TOGETHER)]
)
def test_a_script_of_changes_that_build_on_each_other_is_the_run(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], pair: str, together: bool
) -> None:
    actions = PAIRS[pair].split("@@")
    head = "\n@migration(destructive=True)\ndef new{}(op):\n"
    if together:
        new = head.format("") + "".join(f"    {action}\n" for action in actions)
    else:
        new = "".join(head.format(number) + f"    {action}\n" for number, action in enumerate(actions))
    project = make_project(new_url("mariadb"))
    project.write(OLD)
    project.boot()
    engine = engine_of(project.url)
    with engine.connect() as connection:
        start = facts(connection)
    project.write(OLD + new)
    dry = project.run("migrate", "--dry-run")
    assert dry.exit_code == 0, dry.output
    script = project.run("migrate", "--sql").output
    project.boot()
    with engine.connect() as connection:
        ran = facts(connection)
    assert differences(ran, start) != {}
    drop_tables(engine, keep=())
    project.write(OLD)
    project.boot()
    with engine.connect() as connection:
        number = connection.scalar(sa.text("SELECT database_id FROM db_smart_state"))
    before = re.search(r"database_id = '([^']+)'", script)
    assert before is not None
    run_client(project.url, script.replace(before[1], str(number)))
    with engine.connect() as connection:
        assert differences(facts(connection), ran) == {}


def test_a_dry_run_foresees_rows_that_are_null(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("mariadb"))
    project.write(OLD)
    project.boot()
    project.write(
        OLD
        + """
@migration
def new(op):
    op.add_column("people", Column("x", Integer))
    op.alter_column("people", "x", nullable=False)
"""
    )
    dry = project.run("migrate", "--dry-run")
    assert dry.exit_code == 1
    assert "DS204" in dry.output
    assert "DS204" in project.run("migrate").output


#: A type, and one that it becomes; what the dry run says of it is what the run does.
TYPES = [
    ("INT", "BigInteger()"),
    ("SMALLINT", "Integer()"),
    ("VARCHAR(20)", "Text()"),
    ("VARCHAR(20)", "String(60)"),
    ("TEXT", "mysql.MEDIUMTEXT()"),
    ("CHAR(5)", "String(5)"),
    ("DATE", "DateTime()"),
    ("TIMESTAMP NULL", "DateTime()"),
    ("FLOAT", "mysql.DOUBLE()"),
    ("INT", "Numeric(12, 0)"),
    ("LONGTEXT", "mysql.VARCHAR(20)"),
    ("INT", "mysql.INTEGER(unsigned=True)"),
    ("INT(5)", "mysql.INTEGER(display_width=11)"),
    ("INT UNSIGNED", "mysql.INTEGER(unsigned=True, zerofill=True)"),
    ("DECIMAL(10,2)", "Numeric(12, 2)"),
    ("DECIMAL(10,2)", "Numeric(10, 3)"),
    ("DECIMAL(10,2)", "Numeric(9, 2)"),
    ("FLOAT", "mysql.FLOAT(7, 3)"),
    ("DOUBLE", "mysql.DOUBLE(unsigned=True)"),
    ("VARCHAR(31)", "String(64)"),
    ("VARCHAR(32)", "String(63)"),
    ("VARCHAR(32)", "String(64)"),
    ("VARCHAR(64)", "String(300)"),
    ("VARCHAR(20)", "String(19)"),
    ("VARCHAR(63) CHARACTER SET utf8mb3", "String(86)"),
    ("VARCHAR(63) CHARACTER SET utf8mb3", "String(85)"),
    ("VARCHAR(255) CHARACTER SET latin1", "String(256)"),
    ("VARCHAR(127) CHARACTER SET latin1", "String(256)"),
    ("VARBINARY(127)", "mysql.VARBINARY(256)"),
    ("VARBINARY(128)", "mysql.VARBINARY(256)"),
    ("CHAR(20)", "CHAR(30)"),
    ("BINARY(5)", "mysql.BINARY(6)"),
    ("BIT(4)", "mysql.BIT(8)"),
    ("TINYTEXT", "Text()"),
    ("TINYBLOB", "mysql.BLOB()"),
    ("DATETIME", "mysql.DATETIME(fsp=3)"),
    ("TIMESTAMP(3) NULL", "mysql.TIMESTAMP(fsp=6)"),
    ("TIME", "mysql.TIME(fsp=2)"),
    ("ENUM('a','b')", "Enum('a', 'b', 'c')"),
    ("ENUM('a','b')", "Enum('b', 'a')"),
    ("ENUM('a','b')", "Enum('a', 'c', 'b')"),
    ("ENUM('a','b')", "Enum('a')"),
    ("ENUM('it''s','b,(')", "Enum(\"it's\", 'b,(', 'c')"),
    ("ENUM('a')", "Enum(*map(str, ['a', *range(255)]))"),
    ("ENUM('a')", "mysql.SET('a')"),
    ("SET('a','b')", "mysql.SET('a', 'b', 'c')"),
    ("SET('a','b')", "mysql.SET(*'abcdefghi')"),
    ("SET('a','b')", "mysql.SET('b', 'a')"),
    ("VARCHAR(36)", "mysql.CHAR(36)"),
]
#: Tables on which the server can do less beside writers, or next to nothing.
TABLES = {
    "aria": ") ENGINE=Aria",
    "myisam": ") ENGINE=MyISAM",
    "searched": ", FULLTEXT (c))",
    "places": ", p POINT NOT NULL DEFAULT (POINT(1, 1)), SPATIAL INDEX (p))",
    "virtual": ", g INT AS (n + 1) VIRTUAL, INDEX (g))",
    "without_index": ", g INT AS (n + 1) VIRTUAL)",
    "stored": ", g INT AS (n + 1) STORED)",
}


@pytest.mark.filterwarnings("ignore:Did not recognize type 'point'")
def test_a_dry_run_foresees_what_would_block(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    url = new_url("mariadb")
    database = Database("default", None, engine_of(url))
    columns = ", ".join(f"c{number} {old}" for number, (old, _) in enumerate(TYPES))
    run(database, f"CREATE TABLE t (id INT PRIMARY KEY, {columns})", "INSERT INTO t (id) VALUES (1)")
    actions = [f"op.alter_column('t', 'c{number}', type_={new})" for number, (_, new) in enumerate(TYPES)]
    actions.append("op.create_check_constraint('ck', 't', 'c0 > 3')")
    for name, end in TABLES.items():
        run(
            database,
            f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT DEFAULT 1, c VARCHAR(9), nn INT NOT NULL, u INT{end}",
            f"INSERT INTO {name} (id, c, nn) VALUES (1, 'a', 1)",
        )
        actions += [
            f"op.add_column('{name}', Column('x', Integer))",
            f"op.add_column('{name}', Column('y', Integer, unique=True))",
            f"op.create_index('ix', '{name}', ['n'])",
            f"op.alter_column('{name}', 'c', nullable=False)",
            f"op.alter_column('{name}', 'nn', nullable=True)",
            f"op.alter_column('{name}', 'c', type_=String(20))",
            f"op.alter_column('{name}', 'n', server_default='5')",
            f"op.drop_column('{name}', 'u')",
            f"op.create_unique_constraint('uq', '{name}', ['n'])",
        ]
    project = make_project(url)
    project.write(
        "".join(
            f"from sqlalchemy.dialects import mysql\nfrom sqlalchemy import *\n@migration(destructive=True)\n"
            f"def m{number}(op):\n    {action}\n"
            for number, action in enumerate(actions)
        )
    )
    dry = project.run("migrate", "--dry-run").output
    foreseen = ["DS202" in text for text in re.split(r"(?m)^  m\d+ ", dry)[1:]]
    found = []
    with operations(database, destructive=True) as op:
        for action in actions:
            try:
                exec(action, {**vars(sa), "mysql": mysql, "op": op})
            except Refused as error:
                found.append(error.rule.id == "DS202")
            else:
                found.append(False)
    assert dict(zip(actions, foreseen, strict=True)) == dict(zip(actions, found, strict=True))
    assert found.count(True) > 50


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("how", ["index", "constraint"])
def test_rows_that_are_alike_are_counted(database: Database, how: str, online: bool) -> None:
    run(database, "CREATE TABLE t (id INT PRIMARY KEY, a INT, b INT)")
    run(database, "INSERT INTO t VALUES (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 2), (5, 1, NULL), (6, 1, NULL)")
    before = shown(database, "t")

    def add(op: Operations) -> None:
        if how == "index":
            op.create_index("uq", "t", ["a", "b"], unique=True, online=online)
        else:
            op.create_unique_constraint("uq", "t", ["a", "b"], online=online)

    with pytest.raises(Refused, match=r"DS204.* 3 rows"), operations(database) as op:
        add(op)
    assert shown(database, "t") == before


def test_a_column_of_a_unique_constraint_with_others_is_a_clear_error(database: Database) -> None:
    run(database, "CREATE TABLE t (id INT PRIMARY KEY, a INT, b INT, UNIQUE uq (a, b))")
    before = shown(database, "t")
    message = r"'uq': each has the column together with others.*op\.drop_constraint"
    with pytest.raises(DbSmartError, match=message), operations(database, destructive=True) as op:
        op.drop_column("t", "b")
    assert shown(database, "t") == before


@pytest.mark.parametrize("rows", [0, 1])
def test_a_named_check_of_a_column(database: Database, rows: int) -> None:
    with operations(database, name="table") as op:
        check = sa.CheckConstraint("n > 0", name="ck_n")
        op.create_table("t", Column("id", Integer, primary_key=True), Column("n", Integer, check))
    assert "CONSTRAINT `ck_n` CHECK (`n` > 0)" in shown(database, "t")
    run(database, *["INSERT INTO t VALUES (1, 1)"] * rows)
    with operations(database, name="column") as op:
        column = Column("m", Integer, sa.CheckConstraint("m > 0", name="ck_m"))
        op.add_column("t", column, online=False)
    assert "CONSTRAINT `ck_m` CHECK (`m` > 0)" in shown(database, "t")


def test_a_key_to_a_table_that_the_run_makes_is_fine_in_a_dry_run(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("mariadb"))
    project.write(OLD)
    project.boot()
    made = "    op.create_table('users', Column('id', Integer, primary_key=True))\n"
    key = "    op.create_foreign_key('fk', 'people', '{}', ['m'], ['id'])\n"
    column = "    op.add_column('people', Column('m', Integer))\n"
    project.write(OLD + "\n@migration\ndef new(op):\n" + column + made + key.format("userz"))
    dry = project.run("migrate", "--dry-run")
    assert dry.exit_code == 1
    assert "'userz', which does not exist" in dry.output
    project.write(OLD + "\n@migration\ndef new(op):\n" + column + made + key.format("users"))
    assert project.run("migrate", "--dry-run").exit_code == 0
    assert project.run("migrate").exit_code == 0


def test_names_with_backticks_and_percent_signs_are_found_again(database: Database) -> None:
    run(
        database,
        "CREATE TABLE `u%s` (`i``%d` INT PRIMARY KEY)",
        "CREATE TABLE `t``%c` (`k``%s` INT PRIMARY KEY, `n``%` INT, `u``%` INT)",
        "INSERT INTO `t``%c` VALUES (1, 1, NULL), (2, 2, NULL)",
    )
    for _ in range(2):
        with operations(database) as op:
            op.add_column("t`%c", Column("x`%", Integer, server_default="5"))
            op.create_index("i`%", "t`%c", ["n`%"])
            op.create_unique_constraint("u`%", "t`%c", ["n`%", "k`%s"])
            op.create_foreign_key("f`%", "t`%c", "u%s", ["u`%"], ["i`%d"])
            op.create_check_constraint("c`%", "t`%c", sa.column("n`%") > 0, online=False)
            op.alter_column("t`%c", "n`%", nullable=False)
            assert op.has_column("t`%c", "k`%s")
    with operations(database, destructive=True) as op:
        op.backfill("t`%c", {"x`%": sa.column("n`%") + 1}, where=sa.column("x`%") == 5)
        assert op.execute(sa.select(sa.column("x`%")).select_from(sa.table("t`%c"))).scalars().all() == [2, 3]
        for name in ("u`%", "f`%", "c`%"):
            op.drop_constraint(name, "t`%c")
        op.drop_index("i`%", "t`%c")
        op.drop_column("t`%c", "x`%")
    text = shown(database, "t``%c")
    assert "CONSTRAINT" not in text
    assert "`i``%`" not in text
    assert "`x``%`" not in text
    assert "`n``%` int(11) NOT NULL" in text


def test_a_default_that_is_an_expression_is_seen_and_dropped(database: Database) -> None:
    run(
        database,
        "CREATE TABLE d (id INT PRIMARY KEY, s VARCHAR(20) DEFAULT upper('x''y') COMMENT 'DEFAULT 5')",
        "INSERT INTO d (id) VALUES (1)",
    )
    for _ in range(2):
        with operations(database) as op:
            op.alter_column("d", "s", server_default=None)
        assert "`s` varchar(20) COMMENT 'DEFAULT 5'" in shown(database, "d").replace(" DEFAULT NULL", "")


@pytest.mark.parametrize("strict", [True, False])
def test_a_value_that_does_not_fit_is_never_made_another_one(database: Database, strict: bool) -> None:
    """Where the mode is not strict, the server makes a NULL 0 and cuts a text off, and only warns."""
    mode = "STRICT_TRANS_TABLES,NO_ZERO_DATE" if strict else ""

    @event.listens_for(database.engine, "connect")
    def relax(driver: Any, _: object) -> None:
        with driver.cursor() as cursor:
            cursor.execute("SET SESSION sql_mode = %s", (mode,))

    run(database, "CREATE TABLE t (id INT PRIMARY KEY, n INT, v VARCHAR(9))")
    run(database, "INSERT INTO t VALUES (1, 1, 'long text')")

    @event.listens_for(database.engine, "before_cursor_execute")
    def write(_: object, cursor: object, statement: str, *__: object) -> None:
        if "MODIFY n" in statement:  # after the NULLs were counted
            with engine_of(database.engine.url).begin() as other:
                other.exec_driver_sql("INSERT INTO t VALUES (2, NULL, 'x')")

    with pytest.raises(Refused, match="DS204.*truncated"), operations(database) as op:
        op.alter_column("t", "n", nullable=False)
    with pytest.raises(Refused, match="DS204.*truncated"), operations(database, destructive=True) as op:
        op.alter_column("t", "v", type_=sa.String(4), online=False)
    with operations(database) as op:
        op.alter_column("t", "v", type_=sa.String(10))
        assert op.execute("SELECT @@SESSION.sql_mode").scalar() == mode
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM t").all() == [(1, 1, "long text"), (2, None, "x")]


def test_a_server_with_double_quotes_for_names(new_url: Callable[[str], URL]) -> None:
    url = new_url("mariadb").update_query_dict({"init_command": "SET sql_mode = 'ANSI_QUOTES,STRICT_TRANS_TABLES'"})
    database = Database("default", None, engine_of(url))
    run(
        database,
        """CREATE TABLE t (id INT PRIMARY KEY, "q""%" INT DEFAULT 5 COMMENT 'x')""",
        "INSERT INTO t VALUES (1, 1)",
    )
    for _ in range(2):
        with operations(database) as op:
            op.alter_column("t", 'q"%', nullable=False)
            op.add_column("t", Column('n"%', Integer))
    assert "`q\"%` int(11) NOT NULL DEFAULT 5 COMMENT 'x'" in shown(
        Database("default", None, engine_of(url.set(query={}))), "t"
    )
