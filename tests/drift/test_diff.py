"""``flask db-smart diff``: where the models and the database differ."""

from __future__ import annotations

import json
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
    return project


def test_alike(project: Project) -> None:
    project.boot()
    assert found(project) == []
    result = project.run("diff", "--check")
    assert result.exit_code == 0
    assert result.output == "Database default: the models and the database are alike.\n"


def test_a_new_database_gets_what_the_models_have(project: Project) -> None:
    result = project.run("diff", "--check")
    assert result.exit_code == 0, result.output
    assert result.output == (
        "Database default: counted as applied, because the next boot does so: tables of the models, first.\n"
        "Database default: the models and the database are alike.\n"
    )
    assert not project.tables()


def test_a_database_from_before_db_smart(project: Project) -> None:
    project.query("CREATE TABLE users (id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL)")
    result = project.run("diff")
    assert "tables of the models, first" in result.output
    assert ("add", "column", "users.age") in found(project)
    assert "orders" not in {table for _, kind, table in found(project) if kind == "table"}


def test_what_the_database_lacks_and_has_more(project: Project) -> None:
    project.boot()
    project.query("ALTER TABLE users ADD COLUMN fax VARCHAR(20)")
    project.query("CREATE TABLE stray (id INTEGER)")
    project.query("DROP TABLE orders")

    def more(db: SQLAlchemy) -> None:
        models(db)
        db.metadata.tables["users"].append_column(sa.Column("nickname", sa.String(40)))

    project.models = more
    assert sorted(found(project)) == [
        ("add", "column", "users.nickname"),
        ("add", "table", "orders"),
        ("drop", "column", "users.fax"),
        ("drop", "table", "stray"),
    ]
    result = project.run("diff", "--check")
    assert result.exit_code == 1
    spelled = {"postgresql": "character varying(40)"}.get(project.dialect, "VARCHAR(40)")
    assert "  A migration would add:\n" in result.output
    assert f"    users\n      column nickname {spelled}\n" in result.output


def test_what_is_pending_counts_as_applied(project: Project) -> None:
    project.boot()

    def more(db: SQLAlchemy) -> None:
        models(db)
        db.metadata.tables["users"].append_column(sa.Column("nickname", sa.String(40)))

    project.models = more
    project.write(
        """
        @migration
        def first(op: Operations):
            pass


        @migration
        def nickname(op: Operations):
            op.add_columns("users", Column("nickname", String(40)))
        """
    )
    assert found(project) == []
    assert "counted as applied, because the next boot does so: nickname." in project.run("diff").output
    assert "nickname" not in project.columns("users")


def test_what_is_ignored(project: Project) -> None:
    project.boot()
    project.query("CREATE TABLE spatial_ref_sys (id INTEGER)")
    project.query("ALTER TABLE users ADD COLUMN legacy_fax VARCHAR(20)")
    project.config["DB_SMART_DIFF_IGNORE"] = ["SPATIAL_*", "users.legacy_*"]
    assert found(project) == []
    project.config["DB_SMART_DIFF_IGNORE"] = "spatial_*"
    assert found(project) == [("drop", "column", "users.legacy_fax")]
    project.config["DB_SMART_DIFF_IGNORE"] = 7
    assert "DB_SMART_DIFF_IGNORE is 7; it must be a list of patterns" in project.run("diff").output


def test_include_object(project: Project) -> None:
    project.boot()
    project.query("CREATE TABLE stray (id INTEGER)")
    app, smart = project.app()
    asked = []

    @smart.include_object
    def include(item: object, name: str, kind: str, reflected: bool, compare_to: object) -> bool:
        asked.append((getattr(item, "name", None), name, kind, reflected, compare_to))
        return False

    result = app.test_cli_runner().invoke(args=["db-smart", "diff", "--check"])
    project.dispose(app)
    assert result.exit_code == 0
    assert asked == [("stray", "stray", "table", True, None)]


def test_a_database_that_is_ahead_is_said_so(project: Project) -> None:
    project.boot()
    source = project.file.read_text()
    later = '@migration\ndef later(op: Operations):\n    op.add_column("users", Column("fax", Integer))\n'
    project.write(source + later, header="")
    project.boot()
    project.write(source, header="")
    said = "it is ahead of this code: later"
    result = project.run("diff")
    assert said in result.output
    assert "      column fax " in result.output
    assert json.loads(project.run("diff", "--json").stdout)["databases"][0]["ahead"] == ["later"]
    assert said in project.run("new", "less", "--from-models").stderr


@pytest.mark.parametrize(("there", "models", "differs"), [("INTEGER", "BigInteger", []), ("BIGINT", "Integer", ["id"])])
def test_a_rowid_has_64_bits_already(
    make_project: Make, sqlite_url: URL, there: str, models: str, differs: list[str]
) -> None:
    project = make_project(sqlite_url, {"DB_SMART_CREATE_ALL": False})

    def model(db: SQLAlchemy) -> None:
        sa.Table("t", db.metadata, sa.Column("id", getattr(sa, models), primary_key=True))

    project.query(f"CREATE TABLE t (id {there} NOT NULL PRIMARY KEY)")
    project.models = model
    project.write("@migration\ndef first(op: Operations):\n    pass\n")
    project.boot()
    assert [one["name"] for one in json.loads(project.run("diff", "--json").stdout)["databases"][0]["differences"]] == (
        differs
    )


def test_a_default_keeps_the_old_type(make_project: Make, new_url: NewUrl) -> None:
    """PostgreSQL's ALTER TYPE leaves the default as it was understood: 3, where a new column has '3'::bigint."""
    project = make_project(new_url("postgresql"))
    changes: list[tuple[Any, Any, str]] = [(sa.Integer, sa.BigInteger, "3"), (sa.Integer, sa.BigInteger, "-3")]
    changes += [(sa.String(20), sa.Text, "it's"), (sa.String(20), sa.String(40), "7")]

    def model(number: int) -> Callable[[SQLAlchemy], None]:
        def define(db: SQLAlchemy) -> None:
            columns = [
                sa.Column(f"c{i}", (old, new)[number], server_default=default)
                for i, (old, new, default) in enumerate(changes)
            ]
            sa.Table("t", db.metadata, sa.Column("id", sa.Integer, primary_key=True), *columns)

        return define

    project.models = model(0)
    project.write("@migration\ndef first(op: Operations):\n    pass\n")
    project.boot()
    project.models = model(1)
    assert project.run("new", "wider", "--from-models").exit_code == 0
    project.boot()
    assert found(project) == []
    project.query("ALTER TABLE t ALTER c0 SET DEFAULT 4, ALTER c2 SET DEFAULT 'its'")
    assert len(found(project)) == 2
