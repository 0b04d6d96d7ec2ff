"""Samples of the least that a contender could do: bare loops over files, the bare driver, a bare query."""

from __future__ import annotations

import hashlib
import os
import sqlite3

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from .projects import Project, make_app
from .sample import Result, scratch, timed


def stat(project: Project) -> Result:
    """Stat every source file."""
    paths = project.sources
    with timed() as result:
        for path in paths:
            os.stat(path)
    return result


def stat_and_hash(project: Project) -> Result:
    """Stat and hash every source file."""
    paths = project.sources
    with timed() as result:
        digest = hashlib.sha256()
        for path in paths:
            os.stat(path)
            with open(path, "rb") as file:
                digest.update(file.read())
        digest.hexdigest()
    return result


def query(project: Project) -> Result:
    """A new engine without pool, a connection, a query of one row."""
    make_app(project)  # The driver is loaded by the application, as it is for db-smart.
    with timed() as result:
        engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT applied FROM db_smart_state WHERE id = 1")).one()
    return result


def driver(project: Project) -> Result:
    """Add every column by the SQLite driver, in a transaction each."""
    return _add_columns(project, record=False)


def driver_and_record(project: Project) -> Result:
    """The same, with one row written in each transaction, as every tool must."""
    return _add_columns(project, record=True)


def _add_columns(project: Project, *, record: bool) -> Result:
    with scratch(project) as new:
        path = make_url(new.url).database
        assert path is not None
        with timed() as result:
            connection = sqlite3.connect(path, isolation_level=None)
            if record:
                connection.execute("CREATE TABLE done (name TEXT)")
            for name in project.columns:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"ALTER TABLE items ADD COLUMN {name} INTEGER")
                if record:
                    connection.execute("INSERT INTO done VALUES (?)", (name,))
                connection.execute("COMMIT")
            connection.close()
        return result
