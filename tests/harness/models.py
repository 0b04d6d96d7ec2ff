"""Models of a release, and databases that are made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.store.tables import TABLE_NAMES
from tests.harness.databases import engine_of
from tests.harness.project import Project

Columns = Sequence[sa.Column[Any] | Callable[[], sa.schema.SchemaItem]]
ID = sa.Column("id", sa.Integer, primary_key=True)


def string(name: str, length: int = 50, **options: Any) -> sa.Column[Any]:
    """A column of text."""
    return sa.Column(name, sa.String(length), **options)


def models(**tables: Columns) -> Callable[[SQLAlchemy], None]:
    """Models of a release."""

    def define(db: SQLAlchemy) -> None:
        for name, columns in tables.items():
            sa.Table(name, db.metadata, *(item() if callable(item) else item._copy() for item in columns))

    return define


def schema(url: URL | str) -> dict[str, Any]:
    """Tables with columns, indexes and named constraints, as the database has them; without their order."""
    found: dict[str, Any] = {}
    with engine_of(url).connect() as connection:
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


def second_application(project: Project, source: str) -> Project:
    """Another application on the same database, with a model and migrations of its own."""
    other = Project(project.directory, f"{project.module}_b", project.url, {"DB_SMART_FLAG": "other"})
    other.models = models(orders=[ID])
    other.write(source)
    return other
