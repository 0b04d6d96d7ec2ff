"""Every operation on a populated table of every kind of database, compared with what a fresh build gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.schema.column_types import compare
from aurum_harmony.db_smart.schema.rules import RULES, Refused
from aurum_harmony.db_smart.store.database import Database
from aurum_harmony.db_smart.store.tables import TABLE_NAMES
from tests.harness import servers
from tests.harness.direct import operations, statements
from tests.harness.facts import differences, drop_tables, facts

#: A name that must be quoted everywhere.
NAME = "Order line"
ROWS = [
    {
        "id": number,
        "customer_id": number % 10 + 1 if number % 7 else None,
        "Mixed": f'O\'Brien {number}: 100% "ü" \\ :x' if number % 5 else None,
        "select": f"straße {number}",
        "amount": number / 4,
        "note": f"note {number}" if number % 2 else None,
        "level": number % 9 + 1 if number % 3 else None,
        "seller_id": number % 10 + 1 if number % 4 else None,
        "code": f"c{number}",
    }
    for number in range(1, 201)
]
Items = dict[str, Any]
Action = Callable[[Operations], None]
#: Edits what the table is to be in the end, and returns what the migration does.
Case = Callable[[Items], Action]


def items() -> Items:
    """What the table is made of, by name."""
    found: list[Any] = [
        Column("id", Integer, primary_key=True),
        Column("customer_id", Integer, comment="whose"),
        Column("Mixed", String(40)),
        Column("select", String(30)),
        Column("amount", Numeric(10, 2), nullable=False, server_default=text("0")),
        Column("note", String(50), server_default="50% off: it's :new", comment="free text, 100%"),
        Column("level", SmallInteger),
        Column("code", String(20)),
        Column("seller_id", Integer),
        Index("ix Mixed", "Mixed"),
        Index("ix_seller", "seller_id"),
        ForeignKeyConstraint(["seller_id"], ["customer.id"], name="fk_seller", onupdate="CASCADE"),
        UniqueConstraint("code", name="uq_code"),
        CheckConstraint("level > 0", name="ck_level"),
    ]
    return {**{str(item.name): item for item in found}, "spare": spare()}


def spare() -> list[Any]:
    """A table without what PostgreSQL names after it: a sequence, a primary key."""
    return [Column("id", Integer, autoincrement=False), PrimaryKeyConstraint("id", name="pk_spare")]


def metadata(found: Items) -> sa.MetaData:
    """The table, one that it may refer to, one that refers to it, and a spare one."""
    made = sa.MetaData()
    sa.Table("customer", made, Column("id", Integer, primary_key=True), Column("code", String(20), unique=True))
    sa.Table(NAME, made, *(item for name, item in found.items() if name not in ("spare", "new table")))
    sa.Table(
        "child",
        made,
        Column("id", Integer, primary_key=True),
        Column("line_id", Integer, ForeignKey(f"{NAME}.id", ondelete="CASCADE"), nullable=False),
    )
    for name in ("spare", "new table"):
        if name in found:
            sa.Table(name, made, *found[name])
    return made


def build(database: Database, made: sa.MetaData) -> None:
    """Make the tables as an application without migrations does, and fill them."""
    with database.engine.begin() as connection:
        made.create_all(connection)
        for number in range(1, 11):
            connection.execute(made.tables["customer"].insert(), {"id": number, "code": f"c{number}"})
        table = made.tables[NAME]
        columns = [(column.name, column.info.get("was", column.name)) for column in table.columns]
        rows = [{new: row[old] for new, old in columns if old in row} for row in ROWS]
        connection.execute(table.insert(), rows)
        connection.execute(
            made.tables["child"].insert(), [{"id": number, "line_id": number} for number in range(1, 51)]
        )
        if database.dialect == "sqlite":
            connection.exec_driver_sql(f'CREATE VIEW totals AS SELECT sum(amount) AS total FROM "{NAME}"')
            connection.exec_driver_sql(
                f'CREATE TRIGGER keep AFTER DELETE ON "{NAME}" BEGIN INSERT INTO customer (code) VALUES (old.id); END'
            )


@pytest.fixture(scope="module", params=["sqlite", "sqlite with foreign keys", "postgresql", "mariadb"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database of each kind in turn, for the whole module, as making one takes longer than most tests."""
    if not request.param.startswith("sqlite"):
        fixture = {"postgresql": "postgres", "mariadb": "mariadb"}[request.param]
        with servers.new_database(request.getfixturevalue(fixture)) as url:
            yield Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
        return
    url = URL.create("sqlite", database=str(tmp_path_factory.mktemp("online") / "db.sqlite"))
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    if request.param != "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    yield Database("default", None, engine)


@pytest.fixture
def database(server: Database) -> Iterator[Database]:
    """The database, without tables of other tests; those of the extension stay, as they take time to make."""
    yield server
    drop_tables(server.engine, keep=TABLE_NAMES)


def seen(database: Database) -> Any:
    with database.engine.connect() as connection:
        return facts(connection)


def put(final: Items, *added: Any) -> None:
    final.update({str(item.name): item for item in added})


def add_nullable(final: Items) -> Action:
    new: list[Any] = [
        Column("Town", String(40), comment="where, 100%"),
        Column("group", Integer),
        Column("rate", Numeric(8, 3), server_default=text("1.5")),
        Column("tag", Text),
    ]
    put(final, *new)
    return lambda op: op.add_columns(NAME, *new)


def add_not_null_with_default(final: Items) -> Action:
    new: list[Any] = [
        Column("Kind", String(40), nullable=False, server_default='it\'s 100%: "x" :y'),
        Column("flag", Boolean, nullable=False, server_default=sa.true()),
        Column("score", Integer, nullable=False, server_default="7"),
    ]
    put(final, *new)
    return lambda op: op.add_columns(NAME, *new)


def add_with_expression_as_default(final: Items) -> Action:
    new = Column("computed default", Integer, nullable=False, server_default=text("(abs(-5) + 2)"))
    put(final, new)
    return lambda op: op.add_column(NAME, new)


def add_foreign_key_column(final: Items) -> Action:
    new: list[Any] = [
        Column("Customer Id", Integer, ForeignKey("customer.id", ondelete="SET NULL"), index=True),
        Column("parent", Integer, ForeignKey(f"{NAME}.id", name="fk_parent")),
    ]
    put(final, *new)
    return lambda op: op.add_columns(NAME, *new)


def add_foreign_key_column_with_default(final: Items) -> Action:
    new = Column("owner", Integer, ForeignKey("customer.id"), nullable=False, server_default="1")
    put(final, new)
    return lambda op: op.add_column(NAME, new)


def add_unique_column(final: Items) -> Action:
    new = Column("serial no", String(20), unique=True)
    put(final, new)
    return lambda op: op.add_column(NAME, new)


def add_column_with_check(final: Items) -> Action:
    new = Column("rank", Integer, CheckConstraint("rank > 0"), server_default="1")
    put(final, new)
    return lambda op: op.add_column(NAME, new)


def add_column_with_index(final: Items) -> Action:
    new: list[Any] = [
        Column("Indexed", Integer, index=True),
        Column("other", Integer, index=True, nullable=False, server_default="3"),
    ]
    put(final, *new)
    return lambda op: op.add_columns(NAME, *new)


def create_table(final: Items) -> Action:
    new: list[Any] = [
        Column("id", Integer, primary_key=True, comment="a number"),
        Column("line", Integer, ForeignKey(f"{NAME}.id", ondelete="CASCADE"), nullable=False),
        Column("name", String(20), nullable=False, server_default="50%", index=True),
        Column("code", String(20), unique=True),
        CheckConstraint("name <> '%'", name="ck_name"),
    ]
    final["new table"] = new
    return lambda op: op.create_table("new table", *new)


def create_index(final: Items) -> Action:
    put(final, Index("Two columns", "level", "Mixed"))
    return lambda op: op.create_index("Two columns", NAME, ["level", "Mixed"])


def create_unique_index(final: Items) -> Action:
    put(final, Index("ux_select", "select", unique=True))
    return lambda op: op.create_index("ux_select", NAME, ["select"], unique=True)


def create_index_on_expression(final: Items) -> Action:
    put(final, Index("ix_lower", func.lower(final["Mixed"]), final["level"]))
    return lambda op: op.create_index("ix_lower", NAME, [func.lower(sa.column("Mixed")), "level"])


def create_partial_index(final: Items) -> Action:
    where: Any = {f"{dialect}_where": text("level > 3 AND code LIKE 'c%'") for dialect in ("postgresql", "sqlite")}
    put(final, Index("ix_part", "level", **where))
    return lambda op: op.create_index("ix_part", NAME, ["level"], **where)


def drop_index(final: Items) -> Action:
    del final["ix Mixed"]
    return lambda op: op.drop_index("ix Mixed", NAME)


def alter_to_not_null(final: Items) -> Action:
    final["select"].nullable = False
    return lambda op: op.alter_column(NAME, "select", nullable=False)


def alter_to_nullable(final: Items) -> Action:
    final["amount"].nullable = True
    return lambda op: op.alter_column(NAME, "amount", nullable=True)


def alter_to_wider_type(final: Items) -> Action:
    final["Mixed"].type = String(60)
    final["note"].type = String(300)
    final["amount"].type = Numeric(16, 2)

    def run(op: Operations) -> None:
        # MariaDB does these beside the traffic only where the length keeps fitting into one byte.
        online = op.connection.dialect.name != "mysql"
        op.alter_column(NAME, "Mixed", type_=String(60))
        op.alter_column(NAME, "note", type_=String(300), online=online)
        op.alter_column(NAME, "amount", type_=Numeric(16, 2), online=online)

    return run


def alter_default(final: Items) -> Action:
    final["select"].server_default = sa.DefaultClause("100%: it's")
    final["level"].server_default = sa.DefaultClause(text("5"))
    final["note"].server_default = None

    def run(op: Operations) -> None:
        op.alter_column(NAME, "select", server_default="100%: it's")
        op.alter_column(NAME, "level", server_default=text("5"))
        op.alter_column(NAME, "note", server_default=None)

    return run


def rename_column(final: Items) -> Action:
    put(final, Index("ix Mixed", "New name"))
    old = final["Mixed"]
    old.name = old.key = "New name"
    old.info["was"] = "Mixed"
    return lambda op: op.alter_column(NAME, "Mixed", new_column_name="New name")


def alter_several_at_once(final: Items) -> Action:
    column = final["select"]
    column.type, column.nullable, column.server_default = String(90), False, sa.DefaultClause("none")
    column.name = column.key = "chosen"
    column.info["was"] = "select"
    return lambda op: op.alter_column(
        NAME, "select", type_=String(90), nullable=False, server_default="none", new_column_name="chosen"
    )


def create_foreign_key(final: Items) -> Action:
    put(final, ForeignKeyConstraint(["customer_id"], ["customer.id"], name="fk_customer", ondelete="SET NULL"))
    put(final, Index("fk_customer_index", "customer_id"))

    def run(op: Operations) -> None:
        op.create_index("fk_customer_index", NAME, ["customer_id"])
        op.create_foreign_key("fk_customer", NAME, "customer", ["customer_id"], ["id"], ondelete="SET NULL")

    return run


def create_check_constraint(final: Items) -> Action:
    put(final, CheckConstraint("code LIKE 'c%'", name="ck code"))
    return lambda op: op.create_check_constraint(
        "ck code", NAME, "code LIKE 'c%'", online=op.connection.dialect.name != "mysql"
    )


def create_unique_constraint(final: Items) -> Action:
    put(final, UniqueConstraint("select", "level", name="uq two"))
    return lambda op: op.create_unique_constraint("uq two", NAME, ["select", "level"])


def drop_unique_constraint(final: Items) -> Action:
    del final["uq_code"]
    return lambda op: op.drop_constraint("uq_code", NAME)


def drop_check_constraint(final: Items) -> Action:
    del final["ck_level"]
    return lambda op: op.drop_constraint("ck_level", NAME, "check")


def drop_foreign_key(final: Items) -> Action:
    del final["fk_seller"]
    return lambda op: op.drop_constraint("fk_seller", NAME, type_="foreignkey")


def drop_column(final: Items) -> Action:
    for name in ("Mixed", "ix Mixed", "note", "code", "uq_code"):
        del final[name]

    def run(op: Operations) -> None:
        op.drop_column(NAME, "note")
        op.drop_column(NAME, "Mixed")
        op.drop_column(NAME, "code")

    return run


def drop_table(final: Items) -> Action:
    del final["spare"]
    return lambda op: op.drop_table("spare")


def rename_table(final: Items) -> Action:
    final["new table"] = final.pop("spare")
    return lambda op: op.rename_table("spare", "new table")


CASES: list[Case] = [
    add_nullable,
    add_not_null_with_default,
    add_with_expression_as_default,
    add_foreign_key_column,
    add_foreign_key_column_with_default,
    add_unique_column,
    add_column_with_check,
    add_column_with_index,
    create_table,
    create_index,
    create_unique_index,
    create_index_on_expression,
    create_partial_index,
    drop_index,
    alter_to_not_null,
    alter_to_nullable,
    alter_to_wider_type,
    alter_default,
    rename_column,
    alter_several_at_once,
    create_foreign_key,
    create_check_constraint,
    create_unique_constraint,
    drop_unique_constraint,
    drop_check_constraint,
    drop_foreign_key,
    drop_column,
    drop_table,
    rename_table,
]


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_that_of_a_fresh_build(database: Database, case: Case) -> None:
    if database.dialect == "mysql" and case in (create_index_on_expression, create_partial_index):
        return  # MariaDB has no such index; test_operations.py shows that it says so
    final = items()
    action = case(final)
    build(database, metadata(items()))

    def run() -> None:
        with operations(database, destructive=True) as op:
            action(op)

    assert statements(database, run) != []
    result = seen(database)
    assert statements(database, run) == []
    assert differences(seen(database), result) == {}
    drop_tables(database.engine, keep=TABLE_NAMES)
    build(database, metadata(final))
    assert differences(result, seen(database)) == {}


def columns_of(database: Database, table: str = NAME) -> dict[str, Any]:
    with database.engine.connect() as connection:
        return {column["name"]: column for column in sa.inspect(connection).get_columns(table)}


def sent(database: Database, action: Action) -> list[str]:
    """The schema changes of operations on the populated table."""

    def run() -> None:
        with operations(database, destructive=True) as op:
            action(op)

    return statements(database, run)


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_postgresql_takes_the_forms_that_leave_the_table_usable(database: Database) -> None:
    build(database, metadata(items()))
    assert sent(database, lambda op: op.create_index("ix_a", NAME, ["level"])) == [
        'CREATE INDEX CONCURRENTLY ix_a ON "Order line" (level)'
    ]
    assert sent(database, lambda op: op.drop_index("ix_a", NAME)) == ["DROP INDEX CONCURRENTLY ix_a"]
    assert sent(database, lambda op: op.create_check_constraint("ck", NAME, "level < 100")) == [
        'ALTER TABLE "Order line" ADD CONSTRAINT ck CHECK (level < 100) NOT VALID',
        'ALTER TABLE "Order line" VALIDATE CONSTRAINT ck',
    ]
    assert sent(
        database, lambda op: op.create_foreign_key("fk", NAME, "customer", ["customer_id"], ["id"], ondelete="CASCADE")
    ) == [
        'ALTER TABLE "Order line" ADD CONSTRAINT fk FOREIGN KEY(customer_id) REFERENCES customer (id) '
        "ON DELETE CASCADE NOT VALID",
        'ALTER TABLE "Order line" VALIDATE CONSTRAINT fk',
    ]
    assert sent(database, lambda op: op.create_unique_constraint("uq", NAME, ["select"])) == [
        'CREATE UNIQUE INDEX CONCURRENTLY uq ON "Order line" ("select")',
        'ALTER TABLE "Order line" ADD CONSTRAINT uq UNIQUE USING INDEX uq',
    ]
    name = '"Order line_select_db_smart_not_null"'
    assert sent(database, lambda op: op.alter_column(NAME, "select", nullable=False)) == [
        f'ALTER TABLE "Order line" ADD CONSTRAINT {name} CHECK ("select" IS NOT NULL) NOT VALID',
        f'ALTER TABLE "Order line" VALIDATE CONSTRAINT {name}',
        'ALTER TABLE "Order line" ALTER COLUMN "select" SET NOT NULL',
        f'ALTER TABLE "Order line" DROP CONSTRAINT {name}',
    ]
    first, *more = sent(
        database,
        lambda op: op.add_columns(
            NAME,
            Column("one", Integer, ForeignKey("customer.id")),
            Column("two", Integer, CheckConstraint("two > 0"), server_default="1"),
            Column("three", Integer, unique=True),
        ),
    )
    assert first == (
        "ALTER TABLE \"Order line\" ADD COLUMN one INTEGER, ADD COLUMN two INTEGER DEFAULT '1', "
        "ADD COLUMN three INTEGER, "
        'ADD CONSTRAINT "Order line_one_fkey" FOREIGN KEY(one) REFERENCES customer (id) NOT VALID, '
        'ADD CONSTRAINT "Order line_two_check" CHECK (two > 0) NOT VALID'
    )
    assert more == [
        'ALTER TABLE "Order line" VALIDATE CONSTRAINT "Order line_one_fkey"',
        'CREATE UNIQUE INDEX CONCURRENTLY "Order line_three_key" ON "Order line" (three)',
        'ALTER TABLE "Order line" ADD CONSTRAINT "Order line_three_key" UNIQUE USING INDEX "Order line_three_key"',
        'ALTER TABLE "Order line" VALIDATE CONSTRAINT "Order line_two_check"',
    ]


VOLATILE: dict[str, Any] = {
    "gen_random_uuid()": sa.Uuid(),
    "clock_timestamp()": sa.DateTime(timezone=True),
    "random() * 100": sa.Float(),
}


@pytest.mark.parametrize("default", VOLATILE)
@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_a_volatile_default_is_computed_for_each_row_without_a_rewrite(database: Database, default: str) -> None:
    def file() -> Any:
        with database.engine.connect() as connection:
            return connection.scalar(text("SELECT pg_relation_filenode(CAST('\"Order line\"' AS regclass))"))

    final = items()
    column = Column("own", VOLATILE[default], nullable=False, unique=True, server_default=text(default))
    build(database, metadata(items()))
    before = file()
    assert sent(database, lambda op: op.add_column(NAME, column)) != []
    assert file() == before
    assert sent(database, lambda op: op.add_column(NAME, column)) == []
    with database.engine.connect() as connection:
        counts = connection.execute(text('SELECT count(DISTINCT own), count(*) FROM "Order line"')).one()
    assert tuple(counts) == (200, 200)
    result = seen(database)
    put(final, column)
    drop_tables(database.engine, keep=TABLE_NAMES)
    build(database, metadata(final))
    assert differences(result, seen(database)).keys() == {f"{NAME}: rows"}


def plain_forms(op: Operations, online: bool) -> None:
    op.create_index("ix_a", NAME, ["level"], online=online)
    op.drop_index("ix_a", NAME, online=online)
    op.create_foreign_key("fk", NAME, "customer", ["customer_id"], ["id"], online=online)
    op.create_check_constraint("ck", NAME, "level < 100", online=online)
    op.create_unique_constraint("uq", NAME, ["select"], online=online)
    op.alter_column(NAME, "select", nullable=False, online=online)
    op.add_columns(NAME, Column("one", Integer, ForeignKey("customer.id"), index=True), online=online)


@pytest.mark.parametrize("online", [True, False], ids=["an empty table", "online=False"])
@pytest.mark.parametrize("server", ["postgresql", "mariadb"], indirect=True)
def test_the_plain_forms(database: Database, online: bool) -> None:
    build(database, metadata(items()))
    if online:
        with database.engine.begin() as connection:
            connection.execute(sa.table("child").delete())
            connection.execute(sa.table(NAME).delete())
    text = "\n".join(sent(database, lambda op: plain_forms(op, online)))
    assert text.count("\n") >= 7
    for form in ("CONCURRENTLY", "NOT VALID", "VALIDATE", "USING INDEX", "LOCK", "foreign_key_checks"):
        assert form not in text, text


@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_mariadb_is_asked_not_to_lock(database: Database) -> None:
    build(database, metadata(items()))

    def action(op: Operations) -> None:
        op.create_index("ix_a", NAME, ["level"])
        op.create_unique_constraint("uq", NAME, ["select"])
        op.alter_column(NAME, "select", nullable=False)
        op.alter_column(NAME, "note", server_default="none")
        op.create_foreign_key("fk", NAME, "customer", ["customer_id"], ["id"])
        op.add_columns(NAME, Column("one", Integer, ForeignKey("customer.id")), Column("two", Integer))
        op.drop_column(NAME, "two")

    changes = [change for change in sent(database, action) if not change.startswith("SET")]
    assert len(changes) == 7
    assert all(change.endswith("LOCK=NONE") for change in changes), changes


MODIFIED = """
    latin VARCHAR(40) CHARACTER SET latin1 COLLATE latin1_bin{0} DEFAULT 'x' COMMENT 'it''s 100%% \\\\ :x, y',
    binary_order VARCHAR(10) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin{0} COMMENT 'NOT NULL, DEFAULT NULL',
    `number (1)` INT(8) UNSIGNED ZEROFILL{0} DEFAULT 5,
    changed DATETIME(3){0} DEFAULT CURRENT_TIMESTAMP(3) ON UPDATE CURRENT_TIMESTAMP(3),
    expression VARCHAR(40){0} DEFAULT (concat('a', ' NOT NULL', upper('b'))),
    checked INT{0} DEFAULT 3 CHECK (checked > 0),
    hidden INT{0} INVISIBLE DEFAULT 1,
    kind ENUM('a', 'NOT NULL (', 'it''s'){0} DEFAULT 'a'
"""


@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_mariadb_keeps_all_else_that_a_column_has(database: Database) -> None:
    def create(null: str) -> list[str]:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS t")
            connection.exec_driver_sql(
                f"CREATE TABLE t (id INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, {MODIFIED.format(null)})"
            )
        return shown()

    def shown() -> list[str]:
        with database.engine.connect() as connection:
            text: str = connection.exec_driver_sql("SHOW CREATE TABLE t").one()[1]
            return text.split("\n")

    def alter(op: Operations, nullable: bool) -> None:
        for name in columns_of(database, "t"):
            if name != "id":
                op.alter_column("t", name, nullable=nullable)

    expected = create(" NOT NULL")
    assert create("") != expected
    sent(database, lambda op: alter(op, False))
    assert shown() == expected
    sent(database, lambda op: alter(op, True))
    assert shown() == create("")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE t ADD small VARCHAR(20) COMPRESSED CHARACTER SET latin1")
    assert sent(database, lambda op: op.alter_column("t", "binary_order", type_=String(12))) == [
        "ALTER TABLE t MODIFY binary_order VARCHAR(12) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin DEFAULT NULL "
        "COMMENT 'NOT NULL, DEFAULT NULL'"
    ]
    assert sent(database, lambda op: op.alter_column("t", "small", nullable=False)) == [
        "ALTER TABLE t MODIFY small varchar(20) /*M!100301 COMPRESSED*/ CHARACTER SET latin1 "
        "COLLATE latin1_swedish_ci NOT NULL"
    ]
    sent(database, lambda op: op.alter_column("t", "id", type_=mysql.BIGINT(unsigned=True)))
    assert "  `id` bigint(20) unsigned NOT NULL AUTO_INCREMENT," in shown()


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_another_schema(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql('DROP SCHEMA IF EXISTS "My schema" CASCADE; CREATE SCHEMA "My schema"')
        connection.exec_driver_sql(
            'CREATE TABLE "My schema".t (id INTEGER PRIMARY KEY, "Name" TEXT); '
            "INSERT INTO \"My schema\".t VALUES (1, 'x')"
        )

    def action(op: Operations) -> None:
        place: Any = {"schema": "My schema"}
        op.add_columns(
            "t",
            Column("parent", Integer, ForeignKey("My schema.t.id"), index=True),
            Column("code", Integer, unique=True),
            Column("kind", Integer, nullable=False, server_default="1"),
            **place,
        )
        op.create_index("ix", "t", ["Name"], **place)
        op.create_check_constraint("ck", "t", "kind > 0", **place)
        op.create_unique_constraint("uq", "t", ["Name"], **place)
        op.create_foreign_key("fk", "t", "t", ["kind"], ["id"], source_schema="My schema", referent_schema="My schema")
        op.alter_column("t", "Name", nullable=False, server_default="50%", **place)

    def undo(op: Operations) -> None:
        op.drop_index("ix", "t", schema="My schema")
        op.alter_column("t", "code", new_column_name="Code", schema="My schema")
        for name in ("ck", "uq", "fk"):
            op.drop_constraint(name, "t", schema="My schema")
        op.drop_column("t", "Code", schema="My schema")
        op.rename_table("t", "u", schema="My schema")
        op.drop_table("u", schema="My schema")

    assert len(sent(database, action)) == 17
    assert sent(database, action) == []
    with database.engine.connect() as connection:
        found = facts(connection, "My schema")["t"]
    assert [constraint[0] for constraint in found["constraints"]] == [
        "ck", "fk", "t_code_key", "t_parent_fkey", "t_pkey", "uq"
    ]  # fmt: skip
    assert all(constraint[3] for constraint in found["constraints"])
    assert found["rows"] == [(1, "x", None, None, 1)]
    assert len(sent(database, undo)) == 8
    assert sent(database, lambda op: op.drop_table("u", schema="My schema")) == []


class Model(DeclarativeBase):
    pass


class Line(Model):
    __tablename__ = NAME
    id: Mapped[int] = mapped_column(primary_key=True)
    Mixed: Mapped[str | None] = mapped_column(String(40), index=True)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id"))
    state: Mapped[str] = mapped_column(String(10), server_default="new%")


class Owner(Model):
    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[str | None] = mapped_column(String(10), unique=True)


def test_sync_adds_what_a_model_has(database: Database) -> None:
    build(database, metadata(items()))
    before = columns_of(database)

    def action(op: Operations) -> None:
        op.sync(Owner)
        op.sync(Line)

    assert sent(database, action) != []
    assert sent(database, action) == []
    after = columns_of(database)
    assert set(after) == {*before, "owner_id", "state"}
    assert not after["state"]["nullable"]
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        assert {"ix_Order line_Mixed", "ix Mixed"} <= {index["name"] for index in inspector.get_indexes(NAME)}
        assert "owner" in {key["referred_table"] for key in inspector.get_foreign_keys(NAME)}
        assert connection.exec_driver_sql("SELECT DISTINCT state FROM " + quoted(connection)).all() == [("new%",)]
    with pytest.raises(DbSmartError, match=r"takes a model or a table, not 'x'"), operations(database) as op:
        op.sync("x")


def quoted(connection: sa.Connection) -> str:
    return connection.dialect.identifier_preparer.quote(NAME)


# Refusals: what is refused, with which words; and that nothing is changed.
REFUSED: dict[str, tuple[str, Action]] = {
    "drop column": (
        "DS101 .*drop_column.*destroys its data.*destructive=True",
        lambda op: op.drop_column(NAME, "note"),
    ),
    "drop table": ("DS102 .*drop_table.*destroys its data.*destructive=True", lambda op: op.drop_table("spare")),
    "rename column": (
        "DS103 .*'Mixed'.*to 'new'.*breaks the release",
        lambda op: op.alter_column(NAME, "Mixed", new_column_name="new"),
    ),
    "rename table": ("DS104 .*breaks the release", lambda op: op.rename_table("spare", "new")),
    "shorter": ("DS105 .*'Mixed'.*VARCHAR", lambda op: op.alter_column(NAME, "Mixed", type_=String(39))),
    "fewer digits": ("DS105 ", lambda op: op.alter_column(NAME, "amount", type_=Numeric(10, 1))),
    "another type": ("DS105 ", lambda op: op.alter_column(NAME, "level", type_=String(10))),
}
ROWS_IN_THE_WAY: dict[str, tuple[str, Action]] = {
    "no value": (
        "DS203 .*Column\\('rank'.*Give it a server_default",
        lambda op: op.add_column(NAME, Column("rank", Integer, nullable=False)),
    ),
    "null": ("(?s)(NULL|NOT NULL|null)", lambda op: op.alter_column(NAME, "Mixed", nullable=False)),
    "foreign key": (
        "(DS204|violate)",
        lambda op: op.create_foreign_key("fk", NAME, "customer", ["id"], ["id"]),
    ),
    "check": (
        "(?i)(DS204|constraint)",
        lambda op: op.create_check_constraint("ck", NAME, "level > 2", online=op.connection.dialect.name != "mysql"),
    ),
    "unique index": ("(DS204|UNIQUE)", lambda op: op.create_index("ux", NAME, ["level"], unique=True)),
    "unique constraint": ("(DS204|UNIQUE)", lambda op: op.create_unique_constraint("uq", NAME, ["level"])),
}
#: Where a column brings a constraint that its own default breaks, the column is there already when that shows.
COLUMNS_IN_THE_WAY: dict[str, Column[Any]] = {
    "unique column": Column("rank", Integer, unique=True, server_default="1"),
    "foreign key column": Column("rank", Integer, ForeignKey("customer.id"), server_default="99"),
    "checked column": Column("rank", Integer, CheckConstraint("rank < 5"), server_default="9"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_destroys_or_breaks_is_refused(database: Database, what: str) -> None:
    message, action = REFUSED[what]
    build(database, metadata(items()))
    before = seen(database)
    with pytest.raises(Refused, match=message) as caught, operations(database) as op:
        action(op)
    assert caught.value.rule is RULES[caught.value.rule.id]
    assert differences(seen(database), before) == {}
    if what in ("shorter", "fewer digits", "another type") and database.dialect == "postgresql":
        with pytest.raises(Refused, match="DS201 .*rewrite the table.*online=False"):
            sent(database, action)
        return
    if what in ("shorter", "fewer digits", "another type") and database.dialect == "mysql":
        with pytest.raises(Refused, match="DS202 .*LOCK=NONE.*online=False"):
            sent(database, action)
        return
    assert sent(database, action) != []
    assert differences(seen(database), before) != {}


@pytest.mark.parametrize("what", ROWS_IN_THE_WAY)
def test_rows_in_the_way_are_a_clear_message_and_nothing_is_left_behind(database: Database, what: str) -> None:
    message, action = ROWS_IN_THE_WAY[what]
    build(database, metadata(items()))
    before = seen(database)
    with pytest.raises((DbSmartError, sa.exc.DBAPIError), match=message), operations(database) as op:
        action(op)
    assert differences(seen(database), before) == {}


@pytest.mark.parametrize("what", COLUMNS_IN_THE_WAY)
def test_a_column_whose_default_breaks_its_constraint(database: Database, what: str) -> None:
    column = COLUMNS_IN_THE_WAY[what]
    build(database, metadata(items()))
    before = seen(database)
    with pytest.raises((DbSmartError, sa.exc.DBAPIError), match="(DS204|UNIQUE|CHECK|CONSTRAINT|violate)"):
        sent(database, lambda op: op.add_column(NAME, column))
    with database.engine.begin() as connection:
        if "rank" in columns_of(database):
            left = facts(connection)[NAME]
            for kind in ("constraints", "foreign keys"):
                assert left.get(kind) == before[NAME].get(kind)
            assert not [line for line in left.get("others", []) if "rank" in line and "CONSTRAINT" in line]
            connection.execute(sa.update(sa.table(NAME, sa.column("rank"))).values(rank=None))
        else:
            assert differences(facts(connection), before) == {}
            column = Column("rank", column.type, unique=column.unique)
    sent(database, lambda op: op.add_column(NAME, column))
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        found = [key["constrained_columns"] for key in inspector.get_foreign_keys(NAME)]
        found += [key["column_names"] for key in inspector.get_unique_constraints(NAME)]
        found += [list(map(str, key["column_names"])) for key in inspector.get_indexes(NAME) if key["unique"]]
        checks = [check for check in inspector.get_check_constraints(NAME) if "rank" in check["sqltext"]]
    assert (["rank"] in found or bool(checks)) == (column.unique or bool(column.foreign_keys or column.constraints))


TYPES: list[tuple[Any, Any, str]] = [
    (mysql.INTEGER(display_width=11), Integer(), "same"),
    (mysql.BIGINT(display_width=20, unsigned=True), mysql.BIGINT(unsigned=True), "same"),
    (mysql.INTEGER(unsigned=True), Integer(), "other"),
    (mysql.INTEGER(unsigned=True), sa.BigInteger(), "wider"),
    (mysql.MEDIUMINT(), Integer(), "wider"),
    (mysql.TINYINT(display_width=1), Boolean(), "same"),
    (mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), sa.JSON(), "same"),
    (mysql.LONGTEXT(), Text(), "other"),
    (mysql.VARCHAR(70_000), Text(), "other"),
    (mysql.VARCHAR(40, collation="utf8mb4_bin"), String(40), "same"),
    (mysql.VARCHAR(40), String(40, collation="utf8mb4_bin"), "wider"),
    (mysql.DECIMAL(10, 2), Numeric(10, 2), "same"),
    (mysql.DATETIME(), sa.DateTime(), "same"),
    (mysql.DATETIME(), mysql.DATETIME(fsp=6), "other"),
    (postgresql.TIMESTAMP(), postgresql.TIMESTAMP(timezone=True), "other"),
    (postgresql.TIMESTAMP(), sa.DateTime(), "same"),
    (postgresql.ARRAY(Integer), postgresql.ARRAY(Text), "other"),
    (postgresql.DOUBLE_PRECISION(53), sa.Float(), "same"),
    (postgresql.NUMERIC(10, 2), Numeric(), "wider"),
    (postgresql.VARCHAR(40), Text(), "wider"),
    (postgresql.TEXT(), String(40), "other"),
]


@pytest.mark.parametrize(("old", "new", "relation"), TYPES, ids=repr)
def test_types_are_compared_by_what_they_hold(old: Any, new: Any, relation: str) -> None:
    kind: Any = mysql if ".mysql." in type(old).__module__ else postgresql
    assert compare(old, new, kind.dialect()) == relation
