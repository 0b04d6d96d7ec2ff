"""``flask db-smart new --from-models`` where a column gets wider to which foreign keys refer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness.drift import found
from tests.harness.project import Project
from tests.harness.round_trip import FIRST, HEADER, uncommented

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
#: Types, each with a wider one.
KINDS: dict[str, tuple[Any, Any]] = {
    "integer": (sa.Integer, sa.BigInteger),
    "text": (sa.String(20), sa.String(300)),
    "number": (sa.Numeric(8, 2), sa.Numeric(10, 2)),
    "unsigned": (mysql.INTEGER(unsigned=True), mysql.BIGINT(unsigned=True)),
}


def key(kind: Any, db: SQLAlchemy) -> None:
    """Foreign keys that refer to the key of a table, one by way of another."""
    db.Table("users", sa.Column("id", kind, primary_key=True))
    db.Table("notes", sa.Column("user_id", sa.ForeignKey("users.id", name="fk_user"), primary_key=True))
    note: sa.Column[Any] = sa.Column("note_id", sa.ForeignKey("notes.user_id", name="fk_note"))
    db.Table("lines", sa.Column("id", sa.Integer, primary_key=True), note)


def unique(kind: Any, db: SQLAlchemy) -> None:
    """One that refers to what is unique."""
    db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("code", kind, unique=True))
    code: sa.Column[Any] = sa.Column("code", sa.ForeignKey("users.code", name="fk_code"))
    db.Table("notes", sa.Column("id", sa.Integer, primary_key=True), code)


def pair(kind: Any, db: SQLAlchemy) -> None:
    """One that refers to a key of two columns."""
    numbers = (sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in ("n", "m"))
    db.Table("users", sa.Column("id", kind, primary_key=True), next(numbers))
    columns = sa.Column("user_id", kind), sa.Column("n", sa.Integer)
    both = sa.ForeignKeyConstraint(["user_id", "n"], ["users.id", "users.n"], name="fk_both")
    db.Table("notes", sa.Column("id", sa.Integer, primary_key=True), *columns, both)


def begun(make_project: Make, url: URL, models: Callable[[Any, SQLAlchemy], None], kind: str) -> Project:
    """A project whose models have got wider types than its database has."""
    project = make_project(url)
    project.write(FIRST, header=HEADER)
    project.models = partial(models, KINDS[kind][0])
    project.boot()
    project.models = partial(models, KINDS[kind][1])
    return project


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("models", [key, unique, pair])
@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_with_its_foreign_keys(
    make_project: Make, new_url: NewUrl, dialect: str, models: Callable[[Any, SQLAlchemy], None], kind: str
) -> None:
    if kind == "unsigned" and dialect != "mariadb":
        return
    project = begun(make_project, new_url(dialect), models, kind)
    result = project.run("new", "wide", "--from-models")
    assert result.exit_code == 0, result.output
    if dialect == "mariadb":
        assert 'op.widen_key("users", ' in project.file.read_text()
    project.boot()
    assert found(project) == []


def test_with_rows(make_project: Make, new_url: NewUrl) -> None:
    """It is refused, and told how to do it; then no row and no key is lost."""
    project = begun(make_project, new_url("mariadb"), unique, "text")
    project.query("INSERT INTO users (id, code) VALUES (1, 'a')")
    project.query("INSERT INTO notes (id, code) VALUES (7, 'a')")
    assert project.run("new", "wide", "--from-models").exit_code == 0
    text = project.file.read_text()
    assert "# 'flask db-smart migrate --dry-run' on such a database tells. If so, add online=False for\n" in text
    with pytest.raises(MigrationFailed, match="DS202 op.widen_key"):
        project.boot()
    assert ("change", "column", "users.code") in found(project)
    wide = 'op.widen_key("users", "code", type_=sa.String(length=300)'
    assert wide in text
    project.write(text.replace(wide, wide + ", online=False"), header="")
    project.boot()
    assert found(project) == []
    assert project.query("SELECT notes.id, code FROM notes JOIN users USING (code)") == [(7, "a")]


def test_to_a_narrower_type(make_project: Make, new_url: NewUrl) -> None:
    """Which is a comment: taken in, it runs."""
    project = make_project(new_url("mariadb"))
    project.write(FIRST, header=HEADER)
    project.models = partial(unique, sa.String(40))
    project.boot()
    project.models = partial(unique, sa.String(20))
    assert project.run("new", "from_models", "--from-models").exit_code == 0
    text = project.file.read_text()
    assert '    # op.widen_key("users", "code", type_=sa.String(length=20))\n' in text
    project.write(uncommented(text), header="")
    project.boot()
    assert found(project) == []
