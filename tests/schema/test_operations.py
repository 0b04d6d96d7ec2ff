"""Operations on every kind of database: applied, applied again, finished where they were cut short."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations as AlembicOperations
from sqlalchemy import Boolean, Column, Date, Enum, Float, ForeignKey, Integer, Numeric, String, Text, func, text
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations, statements


@pytest.fixture
def database(url: URL) -> Database:
    """A database with a populated table of a name that must be quoted."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        table = sa.Table("order", sa.MetaData(), Column("id", Integer, primary_key=True), Column("Mixed", String(20)))
        table.create(connection)
        connection.execute(table.insert(), [{"id": 1, "Mixed": "a"}, {"id": 2, "Mixed": "b"}])
    return Database("default", None, engine)


@pytest.fixture
def ops(database: Database) -> Callable[..., Any]:
    """``with ops() as op``: operations in a transaction that is committed."""

    def make(**options: Any) -> Any:
        return operations(database, **options)

    return make


Ops = Callable[..., Any]


def columns(database: Database, table: str) -> dict[str, Any]:
    with database.engine.connect() as connection:
        return {column["name"]: column for column in sa.inspect(connection).get_columns(table)}


def test_add_columns_adds_what_is_missing_in_one_statement(database: Database, ops: Ops) -> None:
    new: list[Column[Any]] = [
        Column("select", Text),
        Column("weird name-ü", Integer),
        Column("born", Date),
        Column("capital", Float, nullable=False, server_default="1.5"),
        Column("note", String(20), server_default="it's"),
        Column("flag", Boolean, server_default=sa.true(), nullable=False),
        Column("amount", Numeric(10, 2), server_default=text("0")),
    ]

    def run() -> None:
        with ops() as op:
            op.add_column("order", Column("select", Text))
            op.add_columns("order", *new)

    sent = statements(database, run)
    assert len(sent) == (7 if database.dialect == "sqlite" else 2)
    assert set(columns(database, "order")) == {"id", "Mixed", *(column.name for column in new)}
    with database.engine.connect() as connection:
        row = connection.execute(
            text(
                'SELECT capital, note, flag, amount FROM "order" WHERE id = 2'
                if database.dialect != "mysql"
                else "SELECT capital, note, flag, amount FROM `order` WHERE id = 2"
            )
        ).one()
    assert (row[0], row[1], bool(row[2]), float(row[3])) == (1.5, "it's", True, 0.0)
    assert statements(database, run) == []


def test_names_are_compared_as_the_database_does(database: Database, ops: Ops) -> None:
    with ops() as op:
        assert op.has_column("order", "Mixed")
        assert op.has_column("order", "mixed") == (database.dialect != "postgresql")
        assert not op.has_column("order", "other")
        assert op.has_table("order")
        assert not op.has_table("orders")
        op.add_column("order", Column("mixed", Text))
    assert ("mixed" in columns(database, "order")) == (database.dialect == "postgresql")


def test_a_missing_table_is_an_error(database: Database, ops: Ops) -> None:
    with pytest.raises(sa.exc.NoSuchTableError), ops() as op:
        op.add_column("nowhere", Column("x", Text))
    with pytest.raises(sa.exc.NoSuchTableError), ops() as op:
        op.has_column("nowhere", "x")


def test_columns_bring_their_constraints_indexes_and_types(database: Database, ops: Ops) -> None:
    def run() -> None:
        with ops() as op:
            op.create_table("kind", Column("id", Integer, primary_key=True), Column("name", String(20), index=True))
            op.add_columns(
                "order",
                Column("kind_id", Integer, ForeignKey("kind.id")),
                Column("code", String(10), unique=True),
                Column("level", Enum("low", "high", name="level_type"), index=True),
            )

    run()
    with database.engine.connect() as connection:
        inspector = sa.inspect(connection)
        (key,) = inspector.get_foreign_keys("order")
        assert (key["constrained_columns"], key["referred_table"]) == (["kind_id"], "kind")
        indexes = {tuple(index["column_names"]): index["unique"] for index in inspector.get_indexes("order")}
        assert not indexes["level",]
        unique = [tuple(item["column_names"]) for item in inspector.get_unique_constraints("order")]
        assert ("code",) in unique or indexes["code",]
        assert [index["name"] for index in inspector.get_indexes("kind")] == ["ix_kind_name"]
    assert statements(database, run) == []


def test_what_was_cut_short_is_finished(database: Database, ops: Ops) -> None:
    with ops() as op:
        op.create_table("part", Column("id", Integer, primary_key=True), Column("name", String(20)))
        op.add_column("order", Column("level", Integer))
    with ops() as op:
        op.create_table("part", Column("id", Integer, primary_key=True), Column("name", String(20), index=True))
        op.add_column("order", Column("level", Integer, index=True))
    with database.engine.connect() as connection:
        assert [index["name"] for index in sa.inspect(connection).get_indexes("part")] == ["ix_part_name"]
        assert [index["name"] for index in sa.inspect(connection).get_indexes("order")] == ["ix_order_level"]


def test_create_and_drop_index(database: Database, ops: Ops) -> None:
    def create() -> None:
        with ops() as op:
            op.create_index("by name", "order", ["Mixed", "id"], unique=True)

    def drop() -> None:
        with ops(destructive=True) as op:
            op.drop_index("by name", "order")
            op.drop_index("by name", "nowhere")

    assert len(statements(database, create)) == 1
    assert statements(database, create) == []
    with pytest.raises(DbSmartError, match="already has an index 'by name', on Mixed, id"), ops() as op:
        op.create_index("by name", "order", ["Mixed"], unique=True)
    with pytest.raises(DbSmartError, match="already has an index"), ops() as op:
        op.create_index("by name", "order", ["Mixed", "id"])
    assert len(statements(database, drop)) == 1
    assert statements(database, drop) == []


def test_index_on_an_expression(database: Database, ops: Ops) -> None:
    if database.dialect == "mysql":
        pytest.raises(sa.exc.DBAPIError, lambda: _expression_index(ops))
        return  # MariaDB has no such index and says so
    _expression_index(ops)
    assert statements(database, lambda: _expression_index(ops)) == []


def _expression_index(ops: Ops) -> None:
    with ops() as op:
        op.create_index("ix_lower", "order", [func.lower(sa.column("Mixed"))])


def test_create_table_leaves_an_existing_one(database: Database, ops: Ops) -> None:
    items = [
        Column("id", Integer, primary_key=True),
        Column("x", Text),
        sa.CheckConstraint("x <> ''", name="not_empty"),
    ]

    def run() -> None:
        with ops() as op:
            op.create_table("new table", *items)
            op.create_table("order", Column("id", Integer, primary_key=True))

    assert len(statements(database, run)) == 1
    assert set(columns(database, "new table")) == {"id", "x"}
    assert set(columns(database, "order")) == {"id", "Mixed"}
    assert statements(database, run) == []


def test_execute_with_parameters(database: Database, ops: Ops) -> None:
    table = sa.table("order", sa.column("id"), sa.column("Mixed"))
    with ops() as op:
        op.execute(table.insert(), [{"id": 3, "Mixed": "c"}, {"id": 4, "Mixed": "12:30"}])
        assert op.execute("SELECT :value", {"value": "it's"}).scalar() == "it's"
        assert op.connection.execute(sa.select(func.count()).select_from(table)).scalar() in (2, 4)
        op.finish()
    with database.engine.connect() as connection:
        assert connection.execute(sa.select(table.c["Mixed"]).where(table.c.id == 4)).scalar() == "12:30"


def test_schemas(new_url: Callable[[str], URL]) -> None:
    engine = sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool)
    database = Database("default", None, engine)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "my schema"')
    for _ in range(2):
        with operations(database) as op:
            op.create_table("t", Column("id", Integer, primary_key=True), schema="my schema")
            op.add_columns(
                "t",
                Column("user", Text),
                Column("t_id", Integer, ForeignKey("my schema.t.id")),
                Column("e", Enum("a", "b", name="e_type", schema="my schema")),
                schema="my schema",
            )
            op.create_index("ix_user", "t", ["user"], schema="my schema")
            assert op.has_table("t", schema="my schema")
            assert not op.has_table("t")
            assert op.has_column("t", "user", schema="my schema")
            assert op.inspector.get_indexes("t", schema="my schema")[0]["name"] == "ix_user"
    with operations(database) as op:
        op.drop_index("ix_user", "t", schema="my schema")
        assert op.inspector.get_indexes("t", schema="my schema") == []


def test_attached_sqlite_schema(new_url: Callable[[str], URL]) -> None:
    engine = sa.create_engine(new_url("sqlite"), poolclass=sa.pool.NullPool)
    database = Database("default", None, engine)
    with database.connect() as connection:
        connection.exec_driver_sql("ATTACH ? AS aux", (new_url("sqlite").database,))
        connection.rollback()
        with operations(database, connection) as op:
            for _ in range(2):
                op.create_table("t", Column("id", Integer, primary_key=True), schema="aux")
                op.add_column("t", Column("x", Text, server_default="y"), schema="aux")
                op.create_index("ix", "t", ["x"], schema="aux")
            assert op.has_column("t", "x", schema="aux")
            assert not op.has_table("t")


def test_the_same_columns_can_be_used_for_several_tables(database: Database, ops: Ops) -> None:
    shared = [Column("a", Integer, index=True), Column("b", Text)]
    with ops() as op:
        op.create_table("one", Column("id", Integer, primary_key=True))
        op.create_table("two", Column("id", Integer, primary_key=True), *shared)
        op.add_columns("one", *shared)
        op.add_columns("order", *shared)
    for table in ("one", "two", "order"):
        assert {"a", "b"} <= set(columns(database, table))


@pytest.mark.parametrize(
    "name",
    ["add_column", "create_table", "create_index", "drop_index", "alter_column", "create_foreign_key"]
    + ["create_check_constraint", "create_unique_constraint", "drop_constraint", "drop_column", "drop_table"]
    + ["rename_table"],
)
def test_arguments_are_called_as_in_alembic(name: str) -> None:
    ours, theirs = (
        [
            parameter.name
            for parameter in inspect.signature(getattr(kind, name)).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        for kind in (Operations, AlembicOperations)
    )
    assert ours == theirs


def test_what_goes_without_saying_may_be_said(database: Database, ops: Ops) -> None:
    def run() -> None:
        with ops(destructive=True) as op:
            op.create_table("gone", Column("id", Integer, primary_key=True), if_not_exists=True)
            op.add_column("order", Column("level", Integer), if_not_exists=True)
            for _ in range(2):
                op.create_index("ix", "order", ["level"], if_not_exists=True)
            for _ in range(2):
                op.drop_index("ix", "order", if_exists=True)
            op.drop_table("gone", if_exists=True)

    assert len(statements(database, run)) == 5
