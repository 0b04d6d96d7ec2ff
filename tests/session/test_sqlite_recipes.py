"""SQLite connections as SQLAlchemy's documentation advises to make them: they boot, and are left as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import URL, Engine

from aurum_harmony.db_smart import DbSmart, MigrationFailed
from tests.harness.project import Project

#: Options of the engine, and what the application listens to: nothing, its own engine, or all engines.
RECIPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, ("nothing", "its engine", "all engines")),
    "level None": ({"connect_args": {"isolation_level": None}}, ("nothing", "its engine")),
    "level IMMEDIATE": ({"connect_args": {"isolation_level": "IMMEDIATE"}}, ("nothing",)),
    "AUTOCOMMIT": ({"isolation_level": "AUTOCOMMIT"}, ("nothing",)),
    "one connection": ({"poolclass": sa.pool.StaticPool}, ("nothing", "its engine", "all engines")),
}
if sys.version_info >= (3, 12):
    RECIPES["autocommit False"] = ({"connect_args": {"autocommit": False}}, ("nothing", "its engine", "all engines"))
    RECIPES["autocommit True"] = ({"connect_args": {"autocommit": True}}, ("nothing",))
CASES = [(name, where) for name, (_, listens) in RECIPES.items() for where in listens]

SOURCE = """
@migration
def make(op: Operations) -> None:
    op.create_table("parent", Column("id", Integer, primary_key=True))
    op.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, parent INTEGER REFERENCES parent (id))")
    op.execute("INSERT INTO parent VALUES (1)")
    op.execute("INSERT INTO t VALUES (1, 1, 1), (2, 2, 1)")

@migration
def by_session(op: Operations) -> None:
    db.session.execute(text("INSERT INTO t VALUES (3, 3, 1)"))
    db.session.commit()
    db.session.execute(text("INSERT INTO t VALUES (4, 4, 1)"))
    db.session.rollback()
    with db.engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (5, 5, 1)"))

@migration
def by_rebuild(op: Operations) -> None:
    op.alter_column("parent", "id", type_=BigInteger)
    op.alter_column("t", "n", nullable=False)

@migration(transactional=False)
def outside(op: Operations) -> None:
    op.execute("INSERT INTO t VALUES (6, 6, 1)")
    op.execute("VACUUM")

@migration
def by_batches(op: Operations) -> None:
    op.backfill("t", {"n": text("n + 10")})
"""
FAILING = """
@migration
def failing(op: Operations) -> None:
    op.execute("UPDATE t SET n = n + 100")
    op.create_table("u", Column("id", Integer))
    raise ValueError("stop")
"""
ROWS = [(1, 11), (2, 12), (3, 13), (5, 15), (6, 16)]


def on_connect(driver: Any, _: object) -> None:
    """As the documentation has it, with foreign keys enforced, which a transaction would ignore."""
    if getattr(driver, "autocommit", -1) != -1:  # sqlite3.LEGACY_TRANSACTION_CONTROL
        before, driver.autocommit = driver.autocommit, True
        driver.execute("PRAGMA foreign_keys = ON")
        driver.autocommit = before
    else:
        driver.isolation_level = None
        driver.execute("PRAGMA foreign_keys = ON")


def on_begin(connection: sa.Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    if getattr(driver, "autocommit", None) is not False:  # else the driver begins by itself
        connection.exec_driver_sql("BEGIN")


@contextmanager
def listening(app: Flask, where: str) -> Iterator[Engine]:
    """The recipe, while the application lives."""
    with app.app_context():
        engine: Engine = app.extensions["sqlalchemy"].engine
    target: Any = {"nothing": None, "its engine": engine, "all engines": Engine}[where]
    if target is not None:
        sa.event.listen(target, "connect", on_connect)
        sa.event.listen(target, "begin", on_begin)
    try:
        yield engine
    finally:
        if target is not None:
            sa.event.remove(target, "connect", on_connect)
            sa.event.remove(target, "begin", on_begin)
        engine.dispose()


def mode(engine: Engine) -> tuple[object, object]:
    """How the application's connections begin transactions."""
    with engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        return driver.isolation_level, getattr(driver, "autocommit", None)


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text("SELECT id, n FROM t ORDER BY id"))]


def check(app: Flask, smart: DbSmart, project: Project, engine: Engine) -> None:
    before = mode(engine)
    assert smart.boot(app).decision == "migrated"
    assert smart.boot(app).decision in ("skipped", "verified")
    assert mode(engine) == before
    assert rows(engine) == ROWS
    with engine.begin() as connection:  # the application's own transactions are as they were
        connection.execute(sa.text("INSERT INTO t VALUES (7, 17, 1)"))
    project.write(SOURCE + FAILING)
    with pytest.raises(MigrationFailed, match="stop"):
        smart.boot(app)
    assert rows(engine) == [*ROWS, (7, 17)]
    project.write(SOURCE + FAILING.replace('raise ValueError("stop")', "pass"))
    assert smart.boot(app).applied == ("failing",)
    assert rows(engine) == [(id_, n + 100) for id_, n in [*ROWS, (7, 17)]]
    assert mode(engine) == before
    assert app.test_client().get("/").text == "served"


@pytest.mark.parametrize(("options", "listens"), CASES)
@pytest.mark.parametrize("place", ["file", "memory"])
def test_each_way_to_begin_transactions_migrates_and_is_left_as_it_was(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], place: str, options: str, listens: str
) -> None:
    url = new_url("sqlite") if place == "file" else "sqlite://"
    project = make_project(url, {"SQLALCHEMY_ENGINE_OPTIONS": RECIPES[options][0]})
    project.write(SOURCE)
    app, smart = project.app()
    with listening(app, listens) as engine:
        check(app, smart, project, engine)
        if place == "file":
            engine.dispose()
            result = app.test_cli_runner().invoke(args=["db-smart", "restore", "--yes"])
            assert result.exit_code == 0, result.output
            assert rows(engine) == [*ROWS, (7, 17)]
