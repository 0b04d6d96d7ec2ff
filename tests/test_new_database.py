"""A database made new by the last release, beside one that went through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.history import TABLE_NAMES

from .conftest import Project

Columns = Sequence[sa.Column[Any]]


def models(**tables: Columns) -> Callable[[SQLAlchemy], None]:
    """Models of a release."""

    def define(db: SQLAlchemy) -> None:
        for name, columns in tables.items():
            sa.Table(name, db.metadata, *(column._copy() for column in columns))

    return define


def schema(url: URL | str) -> dict[str, Any]:
    """Tables with columns, indexes and named constraints, as the database has them; without their order."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        for table in set(inspector.get_table_names()) - TABLE_NAMES:
            found[table] = {
                "columns": {
                    one["name"]: (str(one["type"]), one["nullable"], one["default"] and str(one["default"]).lower())
                    for one in inspector.get_columns(table)
                    if one["name"] != "id"
                },
                "indexes": {
                    one["name"]: (tuple(one["column_names"]), bool(one["unique"]))
                    for one in inspector.get_indexes(table)
                },
            }
    return found


def fresh(project: Project, new_url: Callable[[str], URL]) -> Project:
    """The same code on a new database."""
    dialect = {"mysql": "mariadb"}.get(project.dialect, project.dialect)
    directory = project.directory
    return Project(directory, project.module, new_url(dialect), {"DB_SMART_FLAG": "fresh"}, project.models)


ID = sa.Column("id", sa.Integer, primary_key=True)


def string(name: str, length: int = 50, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), **options)


RENAME = """
@migration
def add_name(op: Operations) -> None:
    op.add_column("users", Column("fullname", String(50)))

@migration(destructive=True)
def rename_name(op: Operations) -> None:
    op.alter_column("users", "fullname", new_column_name="name")
"""
DROP = """
@migration
def add_fax(op: Operations) -> None:
    op.add_column("users", Column("fax", String(50)))

@migration
def mend_fax(op: Operations) -> None:
    op.execute("UPDATE users SET fax = NULL WHERE fax = ''")
    op.backfill("users", {"fax": "x"}, where="fax = ''")

@migration(destructive=True)
def drop_fax(op: Operations) -> None:
    op.drop_column("users", "fax")
"""
LEGACY_DROP = """
@migration(once=True)
def fill_phone(op: Operations) -> None:
    op.execute("UPDATE users SET phone = old_phone")
    op.execute("INSERT INTO seeds (id) VALUES (1)")

@migration(destructive=True)
def drop_old_phone(op: Operations) -> None:
    op.drop_column("users", "old_phone")
"""
TABLE = """
@migration(once=True)
def seed_people(op: Operations) -> None:
    op.create_table("people", Column("id", Integer, primary_key=True), Column("city", String(50)))
    op.create_index("ix_people_city", "people", ["city"])
    op.execute("INSERT INTO people (city) VALUES ('Pune')")

@migration(destructive=True)
def rename_people(op: Operations) -> None:
    op.drop_index("ix_people_city", "people")
    op.rename_table("people", "persons")
"""
TYPES = """
@migration(destructive=True)
def widen(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(60), nullable=True)

@migration(destructive=True)
def widen_again(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(80), nullable=False, server_default="x")
"""
PLAIN = """
from sqlalchemy import inspect, text

@migration(destructive=True)
def migrate_city():
    if "town" not in {one["name"] for one in inspect(db.engine).get_columns("users")}:
        db.session.execute(text("ALTER TABLE users ADD COLUMN town VARCHAR(50)"))
    db.session.execute(text("UPDATE users SET town = village"))
    db.session.commit()

@migration(destructive=True)
def drop_village(op: Operations) -> None:
    op.drop_column("users", "village")
"""
BACK = """
@migration(destructive=True)
def drop_note(op: Operations) -> None:
    op.drop_column("users", "note")

@migration
def add_note(op: Operations) -> None:
    op.add_column("users", Column("note", String(50)))
"""

#: Models of the first release, migrations, and models of the last one.
CASES: dict[str, tuple[dict[str, Columns], str, dict[str, Columns]]] = {
    "rename": ({"users": [ID]}, RENAME, {"users": [ID, string("name")]}),
    "drop": ({"users": [ID]}, DROP, {"users": [ID]}),
    "data, then drop": (
        {"users": [ID, string("old_phone"), string("phone")], "seeds": [ID]},
        LEGACY_DROP,
        {"users": [ID, string("phone")], "seeds": [ID]},
    ),
    "table": ({"users": [ID]}, TABLE, {"users": [ID], "persons": [ID, string("city")]}),
    "types": (
        {"users": [ID, string("name")]},
        TYPES,
        {"users": [ID, string("name", 80, nullable=False, server_default="x")]},
    ),
    "plain function": (
        {"users": [ID, string("village"), string("town")]},
        PLAIN,
        {"users": [ID, string("town")]},
    ),
    "back": ({"users": [ID, string("note")]}, BACK, {"users": [ID, string("note")]}),
}


@pytest.mark.parametrize("case", CASES)
def test_new_beside_upgraded(case: str, project: Project, new_url: Callable[[str], URL]) -> None:
    first, source, last = CASES[case]
    project.models = models(**first)
    project.write("")
    project.boot()
    project.write(source)
    project.models = models(**last)
    project.boot()
    new = fresh(project, new_url)
    assert new.boot().decision == "migrated"
    assert schema(new.url) == schema(project.url)
    for table in ("persons", "seeds"):
        if table in last:
            assert new.query(f"SELECT * FROM {table}") == project.query(f"SELECT * FROM {table}")
    for one in (project, new):
        before = schema(one.url)
        result = one.run("migrate", "--force")
        assert result.exit_code == 0, result.output
        assert schema(one.url) == before
