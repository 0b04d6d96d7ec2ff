"""``flask db-smart new`` for an application with an Alembic directory: it writes a revision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.alembic_project import AlembicProject
from tests.harness.drift import DIALECTS, found

Make = Callable[..., AlembicProject]
NewUrl = Callable[[str], URL]


def before(db: SQLAlchemy) -> None:
    db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("age", sa.Integer))


def after(db: SQLAlchemy) -> None:
    db.Table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("age", sa.BigInteger),
        sa.Column("nickname", sa.String(40), index=True),
        sa.Column("score", sa.Integer, nullable=False, default=0),
        sa.Column("state", sa.String(20), nullable=False, default="100% :so"),
        sa.UniqueConstraint("age", "nickname", name="uq_users"),
        sa.CheckConstraint("nickname <> '\\:so 100%'", name="ck_users"),
    )
    db.Table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_revision_from_the_models(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    project.models = before
    columns = 'sa.Column("id", sa.Integer, primary_key=True), sa.Column("age", sa.Integer)'
    project.revision("a1", None, f'op.create_table("users", {columns})\nop.execute("INSERT INTO users VALUES (1, 30)")')
    project.boot()
    assert found(project) == []
    project.models = after
    result = project.run("new", "more", "--from-models")
    assert result.exit_code == 0, result.output
    (path,) = (project.alembic / "versions").glob("*_more.py")
    assert f"Wrote 'more' into {path}" in result.output
    assert len(project.boot().applied) == 1
    assert found(project) == []
    assert project.query("SELECT age, score FROM users") == [(30, 0)]
    project.upgrade("head")  # Alembic alone finds nothing to do
    taken_back = project.flask_db("downgrade")
    assert taken_back.exit_code == 0, taken_back.output
    assert project.columns("users") == {"id", "age"}
    assert "orders" not in project.tables()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_default_that_stays_and_one_that_changes(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    def orders(length: int, left: str, db: SQLAlchemy) -> None:
        db.Table(
            "orders",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("state", sa.String(length), server_default="new"),
            sa.Column("left", sa.Integer, server_default=left),
        )

    project = make_alembic(new_url(dialect))
    project.models = partial(orders, 10, "1")
    project.boot()
    assert project.run("new", "orders", "--from-models").exit_code == 0
    project.boot()
    project.models = partial(orders, 20, "2")
    result = project.run("new", "longer", "--from-models")
    assert result.exit_code == 0, result.output
    assert len(project.boot().applied) == 1
    assert found(project) == []
    taken_back = project.flask_db("downgrade")
    assert taken_back.exit_code == 0, taken_back.output
    project.query("INSERT INTO orders (id) VALUES (1)")
    quoted = {"mariadb": "`left`"}.get(dialect, '"left"')
    assert project.query(f"SELECT state, {quoted} FROM orders") == [("new", 1)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_go_there_and_back(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    project.models = before
    columns = 'sa.Column("id", sa.Integer, primary_key=True), sa.Column("age", sa.Integer)'
    project.revision("a1", None, f'op.create_table("users", {columns})\nop.execute("INSERT INTO users VALUES (1, 30)")')
    project.revision("a2", "a1", 'op.create_table("clients", sa.Column("id", sa.Integer, primary_key=True))')
    project.boot()

    def renamed(db: SQLAlchemy) -> None:
        db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("years", sa.Integer))
        db.Table("customers", sa.Column("id", sa.Integer, primary_key=True))

    project.models = renamed
    result = project.run(
        "new", "names", "--from-models", "--rename", "users.age=years", "--rename", "clients=customers"
    )
    assert result.exit_code == 0, result.output
    assert len(project.boot().applied) == 1
    assert found(project) == []
    assert project.query("SELECT years FROM users") == [(30,)]
    taken_back = project.flask_db("downgrade")
    assert taken_back.exit_code == 0, taken_back.output
    assert project.query("SELECT age FROM users") == [(30,)]
    assert "clients" in project.tables()


@pytest.mark.parametrize("dialect", DIALECTS[:1])
def test_what_a_revision_leaves_out_is_said(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    project.models = before
    columns = 'sa.Column("id", sa.Integer, primary_key=True), sa.Column("age", sa.Integer)'
    project.revision("a1", None, f'op.create_table("users", {columns}, sa.Column("fax", sa.String(20)))')
    project.boot()
    result = project.run("new", "less", "--from-models")
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        "Left out: The release that is still running may use it. Deploy this release first, then do this in a later "
        'one: op.drop_column("users", "fax")\n'
    )


@pytest.mark.parametrize("dialect", DIALECTS[:1])
def test_an_empty_revision(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    result = project.run("new", "nothing_yet")
    assert result.exit_code == 0, result.output
    assert len(project.boot().applied) == 1


def test_what_has_no_way_back_is_said(make_alembic: Make, new_url: NewUrl) -> None:
    def moods(values: list[str], index: list[str], db: SQLAlchemy) -> None:
        columns = [sa.Column("mood", sa.Enum(*values, name="mood")), sa.Column("n", sa.Integer)]
        table = db.Table("days", sa.Column("id", sa.Integer, primary_key=True), *columns)
        sa.Index("ix_days", *(table.c[name] for name in index))

    project = make_alembic(new_url("postgresql"))
    project.models = partial(moods, ["sad"], ["n"])
    project.boot()
    assert project.run("new", "days", "--from-models").exit_code == 0
    project.boot()
    for name, values, index in (("values", ["sad", "happy"], ["n"]), ("index", ["sad", "happy"], ["n", "mood"])):
        project.models = partial(moods, values, index)
        result = project.run("new", name, "--from-models")
        assert result.exit_code == 0, result.output
        (path,) = (project.alembic / "versions").glob(f"*_{name}.py")
        way_back = path.read_text().partition("def downgrade")[2]
        said = "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'happy' AFTER 'sad'" if name == "values" else "op.drop_index("
        assert "# What upgrade() did here has no way back that can be written for you:\n" in way_back
        assert said in way_back
        project.boot()
        assert found(project) == []
        taken_back = project.flask_db("downgrade")
        assert taken_back.exit_code == 0, taken_back.output
        project.boot()
