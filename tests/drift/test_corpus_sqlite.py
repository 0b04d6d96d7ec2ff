"""``diff`` on SQLite: models of every kind are found alike once made, and each change of them is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness.corpus_sqlite import MUTATIONS, SMALL, corpus, small
from tests.harness.drift import by_alembic, differences, execute, told
from tests.harness.processes import results
from tests.harness.project import Project


@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
def test_what_is_made_is_alike(sqlite_url: URL) -> None:
    metadata = corpus()
    metadata.create_all(sa.create_engine(sqlite_url, poolclass=sa.pool.NullPool))
    assert [str(one) for one in differences(sqlite_url, metadata)] == []
    count = len(by_alembic(sqlite_url, metadata))
    tables, columns = len(metadata.tables), sum(len(table.columns) for table in metadata.tables.values())
    results.append(
        f"Unchanged models on SQLite ({tables} tables, {columns} columns): differences found: 0; by Alembic: {count}"
    )


@pytest.mark.parametrize("what", MUTATIONS)
def test_each_change_is_found(sqlite_url: URL, what: str) -> None:
    before, after, expected = MUTATIONS[what]
    script = ";\n".join(SMALL.values())
    assert before in script
    script = script.replace(before, after)
    if after.startswith("id INTEGER PRIMARY"):
        script = script.replace("        PRIMARY KEY (id),\n", "")
    execute(sqlite_url, *filter(str.strip, script.split(";")))
    assert told(differences(sqlite_url, small())) == expected


def test_models_of_what_is_no_table(sqlite_url: URL) -> None:
    execute(sqlite_url, *SMALL.values(), "CREATE VIEW seen AS SELECT id FROM users")
    execute(sqlite_url, "CREATE VIRTUAL TABLE texts USING fts5(body)")
    metadata = small()
    for name in ("seen", "texts"):
        sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True))
    assert told(differences(sqlite_url, metadata)) == []


def test_a_key_to_no_table(sqlite_url: URL) -> None:
    execute(sqlite_url, *SMALL.values(), "CREATE TABLE loose (id INTEGER PRIMARY KEY, gone_id REFERENCES gone)")
    assert told(differences(sqlite_url, small())) == [("database", "table", "loose", [])]


def test_made_by_our_operations(make_project: Callable[..., Project], sqlite_url: URL) -> None:
    """Tables made in steps, by every operation, are as the models make them at once."""
    project = make_project(sqlite_url)
    project.write(
        """
        @migration(destructive=True)
        def first(op: Operations):
            op.create_table("parents", Column("id", Integer, primary_key=True))
            op.create_table("users", Column("id", Integer, primary_key=True), Column("nick", String(20)))
            op.add_columns(
                "users",
                Column("email", String(80), unique=True),
                Column("age", Integer, index=True),
                Column("parent_id", Integer, ForeignKey("parents.id", ondelete="CASCADE")),
                Column("flag", Boolean, server_default=text("1")),
                Column("data", JSON),
                Column("folded", String(20, collation="NOCASE")),
                Column("positive", Integer, CheckConstraint("positive > 0")),
                Column("twice", Integer, Computed("age * 2", persisted=False)),
            )
            op.alter_column("users", "nick", new_column_name="nickname")
            op.alter_column("users", "nickname", type_=String(30), nullable=False)
            op.create_unique_constraint("uq_both", "users", ["nickname", "age"])
            op.create_check_constraint("ck_age", "users", "age BETWEEN 0 AND 150")
            op.create_index("ix_flag", "users", ["flag", "age"])
            op.create_table("orders", Column("id", Integer, primary_key=True), Column("user_id", Integer))
            op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
            op.create_index("ix_user", "orders", ["user_id"])
            op.add_columns("orders", Column("gone", Integer), Column("select", Integer, server_default="7"))
            op.drop_column("orders", "gone")
        """
    )
    project.boot()
    metadata = sa.MetaData()
    sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("nickname", sa.String(30), nullable=False),
        sa.Column("email", sa.String(80), unique=True),
        sa.Column("age", sa.Integer, index=True),
        sa.Column("parent_id", sa.ForeignKey("parents.id", ondelete="CASCADE")),
        sa.Column("flag", sa.Boolean, server_default=sa.text("1")),
        sa.Column("data", sa.JSON),
        sa.Column("folded", sa.String(20, collation="NOCASE")),
        sa.Column("positive", sa.Integer, sa.CheckConstraint("positive > 0")),
        sa.Column("twice", sa.Integer, sa.Computed("age * 2", persisted=False)),
        sa.UniqueConstraint("nickname", "age", name="uq_both"),
        sa.CheckConstraint("age BETWEEN 0 AND 150", name="ck_age"),
        sa.Index("ix_flag", "flag", "age"),
    )
    sa.Table(
        "orders",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id", name="fk_user"), index=True),
        sa.Column("select", sa.Integer, server_default="7"),
    )
    assert [str(one) for one in differences(project.url, metadata)] == []


def test_names_that_need_quotes(sqlite_url: URL) -> None:
    """Constraints on such columns have their names, and what is said behind them."""
    metadata = sa.MetaData()
    sa.Table(
        "Order Lines",
        metadata,
        sa.Column("the id", sa.Integer, primary_key=True),
        sa.Column("references (", sa.Integer),
        sa.ForeignKeyConstraint(
            ["references ("], ["Order Lines.the id"], name="fk key", deferrable=True, initially="DEFERRED"
        ),
        sa.UniqueConstraint("references (", "the id", name="uq ("),
    )
    execute(sqlite_url, 'CREATE TABLE "Order Lines" ("the id" INTEGER NOT NULL PRIMARY KEY, "references (" INTEGER)')
    named = {(one.kind, one.name) for one in differences(sqlite_url, metadata)}
    assert named == {("foreign key", "fk key"), ("unique", "uq (")}


def test_attached(sqlite_url: URL, tmp_path: Path) -> None:
    """A database that is attached is a schema."""
    engine = sa.create_engine(sqlite_url, poolclass=sa.pool.NullPool)
    sa.event.listen(engine, "connect", lambda raw, _: raw.execute(f"ATTACH '{tmp_path / 'more.sqlite'}' AS more"))
    metadata = sa.MetaData()
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.Integer, index=True))
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True), schema="more")
    metadata.create_all(engine)
    assert told(differences(engine, metadata)) == []
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE more.users ADD COLUMN b INTEGER")
    assert told(differences(engine, metadata)) == [("database", "column", "more.users.b", [])]
