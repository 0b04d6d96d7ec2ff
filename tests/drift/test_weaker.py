"""Where there can be no scratch place: Alembic's comparison, said to be the weaker answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness import servers
from tests.harness.drift import DIALECTS, execute, found, models
from tests.harness.project import Project

NewUrl = Callable[[str], URL]
#: What a role may, and the right that it lacks.
RIGHTS = {
    "mariadb": ("GRANT ALL ON {database}.* TO {user}", r"GRANT ALL ON `db\_smart\_scratch\_%`.* TO 'u_"),
    "postgresql": ("GRANT ALL ON SCHEMA public TO {user}", "Give the role the right CREATE on the database"),
}


@pytest.mark.parametrize("dialect", [one for one in DIALECTS if one in RIGHTS])
def test_without_the_right(make_project: Callable[..., Project], new_url: NewUrl, dialect: str) -> None:
    right, lacking = RIGHTS[dialect]
    with servers.role(new_url(dialect), right) as limited:
        project = make_project(limited)
        project.models = models
        project.write("@migration\ndef first(op: Operations):\n    pass\n")
        project.boot()
        output = project.run("diff", "--check").output
        assert "This is Alembic's comparison, which finds less than ours. No " in output
        assert lacking in output
        assert "the models and the database are alike" in output
        execute(
            limited,
            "ALTER TABLE users ADD fax INT",
            "ALTER TABLE users ALTER age SET DEFAULT 5",
            "DROP INDEX ix_users_age" + " ON users" * (dialect == "mariadb"),
            "CREATE TABLE stray (id INT)",
            "ALTER TABLE orders DROP "
            + ("FOREIGN KEY orders_ibfk_1" if dialect == "mariadb" else "CONSTRAINT orders_user_id_fkey"),
        )
        assert sorted(found(project)) == [
            ("add", "foreign key", "orders"),
            ("add", "index", "users.ix_users_age"),
            ("change", "column", "users.age"),
            ("drop", "column", "users.fax"),
            ("drop", "table", "stray"),
        ]


@pytest.mark.parametrize("dialect", [one for one in DIALECTS if one in RIGHTS])
def test_numbers_that_the_server_spells_another_way(
    make_project: Callable[..., Project], new_url: NewUrl, dialect: str
) -> None:
    def prices(default: str, db: SQLAlchemy) -> None:
        column = sa.Column("price", sa.Numeric(10, 2), server_default=default)
        db.Table("prices", sa.Column("id", sa.Integer, primary_key=True), column)

    with servers.role(new_url(dialect), RIGHTS[dialect][0]) as limited:
        project = make_project(limited)
        project.models = partial(prices, "1")
        project.write("@migration\ndef first(op: Operations):\n    pass\n")
        project.boot()
        assert found(project) == []
        project.models = partial(prices, "2")
        assert found(project) == [("change", "column", "prices.price")]


@pytest.mark.parametrize("dialect", [one for one in DIALECTS if one in RIGHTS])
def test_what_is_pending(make_project: Callable[..., Project], new_url: NewUrl, dialect: str) -> None:
    """It is not counted, and that is said."""
    with servers.role(new_url(dialect), RIGHTS[dialect][0]) as limited:
        project = make_project(limited)
        project.models = models
        first = "@migration\ndef first(op: Operations):\n    pass\n"
        project.write(first)
        project.boot()
        project.write(
            f'{first}\n\n@migration\ndef fax(op: Operations):\n    op.execute("ALTER TABLE users ADD fax INT")\n'
        )
        assert "the pending 'fax' is not counted: the weaker comparison cannot" in project.run("diff").output


@pytest.mark.parametrize("dialect", [one for one in DIALECTS if one in RIGHTS])
def test_a_table_that_may_have_been_renamed(
    make_project: Callable[..., Project], new_url: NewUrl, dialect: str
) -> None:
    """By the names of its columns, because their types are not spelled alike."""

    def one(name: str, db: SQLAlchemy) -> None:
        db.Table(name, sa.Column("id", sa.Integer, primary_key=True), sa.Column("yes", sa.Boolean))

    with servers.role(new_url(dialect), RIGHTS[dialect][0]) as limited:
        project = make_project(limited)
        project.models = partial(one, "clients")
        project.write("@migration\ndef first(op: Operations):\n    pass\n")
        project.boot()
        project.models = partial(one, "customers")
        result = project.run("new", "more", "--from-models")
        assert "--rename clients=customers." in result.stderr, result.output
