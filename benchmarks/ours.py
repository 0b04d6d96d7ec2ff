"""Samples of db-smart."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Set
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.dialects.base import facts_of

from .projects import MODULE, Project, alembic_directory, create_items, make_app
from .sample import Result, scratch, timed

#: What a boot with nothing to do has no use for.
HEAVY = ("alembic", "rich", "aurum_harmony.db_smart.runner", "aurum_harmony.db_smart.store.history")
#: What a boot imports that asks the database.
_LEVEL_2 = ("boot.keepalive", "boot.plan", "boot.turn", "drift.hints", "schema.model_tables", "store.history")


class Traffic:
    """Counts what goes to any database, by SQLAlchemy's events."""

    def __init__(self) -> None:
        self.connections = 0
        self.statements = 0
        sa.event.listen(sa.pool.Pool, "connect", self._connected)
        sa.event.listen(sa.Engine, "before_cursor_execute", self._sent)

    def _connected(self, *_: Any) -> None:
        self.connections += 1

    def _sent(self, *_: Any) -> None:
        self.statements += 1


def prepare(project: Project) -> Result:
    """Migrate the database and leave a flag that a warm boot trusts."""
    create_items(project.url)
    app, smart = _make(project)
    smart.boot(app)
    report = smart.boot(app)
    if report.reason != "nothing changed":
        raise RuntimeError(f"The next boot is not a warm one: {report}")
    return {}


def adopt(project: Project) -> Result:
    """Take over an Alembic directory whose revisions Flask-Migrate has applied; leave a flag as :func:`prepare`."""
    for decision in ("migrated", "skipped"):
        app, smart = _make_alembic(project)
        report = smart.boot(app)
        if report.decision != decision or report.applied:
            raise RuntimeError(f"This was not {decision}: {report}")
    return {}


def warm(project: Project) -> Result:
    """A boot with nothing to do: level 0."""
    return _warm(*_make(project))


def warm_alembic(project: Project) -> Result:
    """The same with an Alembic directory; Flask-Migrate, which the application registers, has imported Alembic."""
    app, smart = _make_alembic(project)
    return _warm(app, smart, {*sys.modules})


def _warm(app: Flask, smart: DbSmart, known: Set[str] = frozenset()) -> Result:
    traffic = Traffic()
    with timed() as result:
        report = smart.boot(app)
    if report.reason != "nothing changed":
        raise RuntimeError(f"This was no warm boot: {report}")
    heavy = [name for name in HEAVY if name in sys.modules.keys() - known]
    return {**result, "connections": traffic.connections, "statements": traffic.statements, "heavy": heavy}


def without_flag(project: Project) -> Result:
    """A boot that asks the database: level 2. What it imports is timed apart."""
    return _without_flag(project, *_make(project), _LEVEL_2)


def without_flag_alembic(project: Project) -> Result:
    """The same with an Alembic directory."""
    return _without_flag(project, *_make_alembic(project), (*_LEVEL_2, "loading.alembic_files"))


def _without_flag(project: Project, app: Flask, smart: DbSmart, modules: tuple[str, ...]) -> Result:
    Path(project.instance, app.config["DB_SMART_FLAG"]).unlink()
    started = time.perf_counter()
    for module in modules:
        import_module(f"aurum_harmony.db_smart.{module}")
    facts_of(make_url(project.url).get_backend_name())
    imports = (time.perf_counter() - started) * 1000
    known = set(sys.modules)
    traffic = Traffic()
    with timed() as result:
        report = smart.boot(app)
    if report.decision != "verified" or not (traffic.connections and traffic.statements):
        raise RuntimeError(f"This boot did not ask the database ({traffic.statements} statements): {report}")
    late = [name for name in sys.modules.keys() - known if name.startswith("aurum_harmony")]
    if late:
        raise RuntimeError(f"This boot imported {', '.join(late)}, which is to be timed apart.")
    return {**result, "imports_ms": imports}


def lengthen_history(project: Project) -> Result:
    """Give the history of a SQLite database a hundred thousand rows more, as thousands of forced runs leave them."""
    database = make_url(project.url).database
    with sqlite3.connect(str(database)) as connection:
        columns = "name, checksum, applied_at, duration_ms, applied_by, outcome, error"
        (count,) = connection.execute("SELECT count(*) FROM db_smart_history").fetchone()
        connection.execute(
            f"INSERT INTO db_smart_history ({columns}) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            f"WHERE i < ?) SELECT {columns} FROM n, db_smart_history",
            (100_000 // count,),
        )
    connection.close()
    app, smart = _make(project)
    smart.boot(app)
    return {}


def first_request(project: Project) -> Result:
    """The first request after a warm boot, which asks the database."""
    app, smart = _make(project)
    smart.boot(app)
    import_module("aurum_harmony.db_smart.store.history")
    client = app.test_client()
    traffic = Traffic()
    with timed() as result:
        client.get("/nothing")
    if traffic.statements != 1:
        raise RuntimeError(f"The first request sent {traffic.statements} statements.")
    return result


def load_all(project: Project) -> Result:
    """Load all migrations: parse, import, checksums. What their imports cost is not in it."""
    app, smart = _make(project)
    for name in ("loading.loader", "operations"):
        import_module(f"aurum_harmony.db_smart.{name}")
    with app.app_context(), timed() as result:
        assert smart.planner(app).migrations
    return result


def boot_all(project: Project) -> Result:
    """The first boot on a database: load all migrations and apply them."""
    with scratch(project) as new:
        app, smart = _make(new)
        with timed() as result:
            smart.boot(app)
        return result


def boot_all_alembic(project: Project) -> Result:
    """The first boot on a database with an Alembic directory: read all revisions and apply them."""
    app, smart = _make_alembic(project)
    # The table that the revisions extend is there: with it in the models, this is a database of create_all().
    app.extensions["sqlalchemy"].metadata.clear()
    with timed() as result:
        report = smart.boot(app)
    if len(report.applied) != project.size:
        raise RuntimeError(f"Not every revision was applied: {report}")
    return result


def run_all(project: Project) -> Result:
    """Apply all migrations, which are loaded, with what they import, before."""
    with scratch(project) as new:
        app, smart = _make(new)
        with app.app_context():
            planner = smart.planner(app)
            assert planner.migrations
            for name in ("aurum_harmony.db_smart.runner", "aurum_harmony.db_smart.schema.ddl"):
                import_module(name)
            with timed() as result:
                smart.migrate(app, planner, planner.involved)
        return result


def _make_alembic(project: Project) -> tuple[Flask, DbSmart]:
    app, db = make_app(project)
    flask_migrate: Any = import_module("flask_migrate")
    flask_migrate.Migrate(app, db, directory=alembic_directory(project))
    return app, DbSmart(app, db, alembic=True)


def _make(project: Project) -> tuple[Flask, DbSmart]:
    app, db = make_app(project)
    return app, DbSmart(app, db, migrations=MODULE)
