"""Snapshots of a project's SQLite file, and what is in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.store.snapshot import Snapshot, listed
from tests.harness.project import Project


def file_of(project: Project) -> Path:
    """The file that is a project's SQLite database."""
    return Path(str(make_url(project.url).database))


def taken(project: Project, name: str = "default") -> list[Snapshot]:
    """The snapshots of a project."""
    app, smart = project.app()
    return listed(app, smart.planner(app).databases[name])


def rows(path: Path, sql: str) -> list[Any]:
    """Rows of a query past the application; of a snapshot without making a file beside it."""
    options = "?immutable=1" if path.parent.name == "snapshots" else ""
    with closing(sqlite3.connect(f"{path.as_uri()}{options}", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute(sql).fetchall()
