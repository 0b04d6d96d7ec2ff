"""Attacks on what ``new`` writes: no row is lost by a guess, and no table stands twice."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.drift import DIALECTS, found
from tests.harness.project import Project

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
FIRST = "@migration\ndef first(op: Operations):\n    pass\n"


def items(name: str, column: str, **options: str) -> Callable[[SQLAlchemy], None]:
    def models(db: SQLAlchemy) -> None:
        info = {"renamed_from": options["old"]} if "old" in options else {}
        key = sa.Column("id", sa.Integer, primary_key=True)
        db.Table(name, key, sa.Column(column, sa.String(20)), schema="shop", info=info)

    return models


@pytest.fixture
def project(make_project: Make, new_url: NewUrl) -> Project:
    """Of a table in another schema, with a row."""
    project = make_project(new_url("postgresql"))
    project.query("CREATE SCHEMA shop")
    project.models = items("items", "name")
    project.write(FIRST)
    project.boot()
    project.query("INSERT INTO shop.items VALUES (1, 'kept')")
    return project


@pytest.mark.parametrize(
    ("rename", "old"),
    [
        (["--rename", "shop.items=shop.things"], ""),
        (["--rename", "shop.items=things"], ""),
        ([], "items"),
        ([], "shop.items"),
    ],
)
def test_a_table_of_another_schema_is_renamed(project: Project, rename: list[str], old: str) -> None:
    project.models = items("things", "name", **({"old": old} if old else {}))
    result = project.run("new", "more", "--from-models", *rename)
    assert result.exit_code == 0, result.output
    assert 'op.rename_table("items", "things", schema="shop")' in project.file.read_text()
    assert "create_table" not in project.file.read_text()
    project.boot()
    assert project.query("SELECT * FROM shop.things") == [(1, "kept")]
    assert found(project) == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_is_renamed(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_project(new_url(dialect))
    project.write(FIRST)

    def models(name: str) -> Callable[[SQLAlchemy], None]:
        def make(db: SQLAlchemy) -> None:
            db.Table(name, sa.Column("id", sa.Integer, primary_key=True))

        return make

    project.models = models("items")
    project.boot()
    project.query("INSERT INTO items VALUES (7)")
    project.models = models("order")
    result = project.run("new", "more", "--from-models", "--rename", "items=order")
    assert result.exit_code == 0, result.output
    project.boot()
    assert found(project) == []
    assert "items" not in project.tables()
    quote = "`" if dialect == "mariadb" else '"'
    assert project.query(f"SELECT * FROM {quote}order{quote}") == [(7,)]


def test_a_column_of_another_schema_is_renamed(project: Project) -> None:
    project.models = items("items", "title")
    result = project.run("new", "more", "--from-models", "--rename", "shop.items.name=title")
    assert result.exit_code == 0, result.output
    project.boot()
    assert project.query("SELECT title FROM shop.items") == [("kept",)]
    assert found(project) == []


def test_two_columns_to_one_name(project: Project) -> None:
    """One of them would have to lose its values."""
    project.query("ALTER TABLE shop.items ADD COLUMN label VARCHAR(20)")
    project.models = items("items", "title")
    before = project.file.read_text()
    for new in ("title", "nowhere"):
        renames = ["--rename", f"shop.items.name={new}"] + ["--rename", f"shop.items.label={new}"] * (new == "title")
        result = project.run("new", "more", "--from-models", *renames)
        assert result.exit_code == 2, result.output
        assert "Nothing was written" in result.output
        assert project.file.read_text() == before


class State(str, enum.Enum):
    """As many models have it, whose column is a plain text."""

    NEW = "new"


def test_defaults_that_are_no_plain_values(make_project: Make, new_url: NewUrl) -> None:
    project = make_project(new_url("sqlite"))
    project.write(FIRST)
    key = ("id", sa.Integer)
    project.models = lambda db: _table(db, sa.Column(*key, primary_key=True))
    project.boot()
    project.query("INSERT INTO items VALUES (1)")
    project.models = lambda db: _table(
        db,
        sa.Column(*key, primary_key=True),
        sa.Column("state", sa.String(9), nullable=False, default=State.NEW),
        sa.Column("most", sa.Float, nullable=False, default=float("inf")),
    )
    result = project.run("new", "more", "--from-models")
    assert result.exit_code == 0, result.output
    source = project.file.read_text()
    assert 'op.backfill("items", {"state": "new"}, where="state IS NULL")' in source
    assert '# op.backfill("items", {"most": ...}, where="most IS NULL")' in source


def _table(db: SQLAlchemy, *columns: sa.Column[Any]) -> None:
    db.Table("items", *columns)
