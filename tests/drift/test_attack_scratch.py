"""Attacks on the scratch place: whatever models and migrations do, a comparison leaves the database as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.drift import DIALECTS, found, models
from tests.harness.project import Project

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]


@pytest.fixture(params=DIALECTS)
def project(request: pytest.FixtureRequest, make_project: Make, new_url: NewUrl) -> Project:
    project = make_project(new_url(request.param))
    project.models = models
    project.write("@migration\ndef first(op: Operations):\n    pass\n")
    project.boot()
    return project


def test_listeners_of_models_that_use_the_session(project: Project) -> None:
    """The first rows of a table are often added so: to a table that was made, and so once."""

    def with_rows(db: SQLAlchemy) -> None:
        models(db)

        @sa.event.listens_for(db.metadata.tables["users"], "after_create")
        def fill(target: sa.Table, *_: Any, **__: Any) -> None:
            db.session.execute(sa.insert(target).values(id=1, name="admin"))
            db.session.commit()

        @sa.event.listens_for(db.metadata.tables["orders"], "after_create")
        def fill_by_engine(target: sa.Table, *_: Any, **__: Any) -> None:
            with db.engine.begin() as connection:
                connection.execute(sa.insert(target).values(id=1, user_id=1))

    project.models = with_rows
    assert found(project) == []
    assert project.query("SELECT count(*) FROM users") == [(0,)]
    assert project.query("SELECT count(*) FROM orders") == [(0,)]


def test_models_that_cannot_be_made(project: Project) -> None:
    """One message says so, whatever it is."""

    def failing(db: SQLAlchemy) -> None:
        models(db)

        @sa.event.listens_for(db.metadata.tables["users"], "after_create")
        def fail(*_: Any, **__: Any) -> None:
            raise KeyError("no such role")

    def without_target(db: SQLAlchemy) -> None:
        models(db)
        db.Table("more", sa.Column("id", sa.ForeignKey("nowhere.id"), primary_key=True))

    for broken, said in ((failing, "KeyError: 'no such role'"), (without_target, "nowhere")):
        project.models = broken
        for args in (("diff",), ("new", "more", "--from-models")):
            result = project.run(*args)
            assert result.exit_code == 1, result.output
            assert isinstance(result.exception, SystemExit)
            assert "The models cannot be made in a scratch place" in result.output
            assert said in result.output


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
@pytest.mark.parametrize("sql", ["SELECT setval({0}, 7)", "SELECT nextval({0})", "SELECT f()"])
def test_queries_that_change_something(make_project: Make, new_url: NewUrl, dialect: str, sql: str) -> None:
    """A dry run notes them, as every other change; a rollback would not take the numbers of a sequence back."""
    project = make_project(new_url(dialect))
    project.models = models
    project.query("CREATE SEQUENCE numbers")
    project.query("CREATE TABLE seen (n INTEGER)")
    body = "RETURNS integer LANGUAGE sql AS 'INSERT INTO seen VALUES (1) RETURNING n'"
    if dialect == "mariadb":
        body = "RETURNS integer MODIFIES SQL DATA BEGIN INSERT INTO seen VALUES (1); RETURN 1; END"
    project.query(f"CREATE FUNCTION f() {body}")
    name = "'numbers'" if dialect == "postgresql" else "numbers"
    project.query(f"SELECT setval({name}, 500)")
    sql = sql.format(name)
    project.write(f'@migration\ndef first(op: Operations):\n    op.execute("{sql}")\n')
    project.run("status")
    found(project)
    result = project.run("migrate", "--dry-run")
    assert result.exit_code == 0, result.output
    assert sql in result.output
    assert project.query(f"SELECT nextval({name})") == [(501,)]
    assert project.query("SELECT * FROM seen") == []


def test_listeners_of_models_that_use_another_database(make_project: Make, new_url: NewUrl) -> None:
    """It has no scratch place: what they would write there is refused."""
    project = make_project(new_url("sqlite"))
    audit = new_url("sqlite")
    project.config["SQLALCHEMY_BINDS"] = {"audit": audit}
    project.write("@migration\ndef first(op: Operations):\n    pass\n")

    def with_audit(db: SQLAlchemy) -> None:
        models(db)
        entries = db.Table("entries", sa.Column("id", sa.Integer, primary_key=True), bind_key="audit")

        @sa.event.listens_for(db.metadata.tables["users"], "after_create")
        def note(*_: Any, **__: Any) -> None:
            db.session.execute(sa.insert(entries))
            db.session.commit()

    engine = sa.create_engine(audit, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE entries (id INTEGER NOT NULL PRIMARY KEY)")
    project.models = with_audit
    result = project.run("diff", "--database", "default")
    assert result.exit_code == 1, result.output
    assert "a listener of the models uses the database 'audit'" in result.output
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT * FROM entries").all() == []
