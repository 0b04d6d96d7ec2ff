"""An application of a test's own, with migrations of its own."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import BootReport, DbSmart

DIALECTS = ("sqlite", "postgresql", "mariadb")
HEADER = """\
from __future__ import annotations
from sqlalchemy import *
from aurum_harmony.db_smart import Operations, migration
from flask import current_app
db = current_app.extensions["sqlalchemy"]
"""


@dataclass
class Project:
    """A Flask application with migrations in files of its own, as one developer's project.

    Each :meth:`app` is what a new process would make: an application, a Flask-SQLAlchemy and a DbSmart.
    """

    directory: Path
    module: str
    url: URL | str
    config: dict[str, Any] = field(default_factory=dict)
    models: Callable[[SQLAlchemy], None] | None = None
    #: Called with each new application, to put listeners on its engines.
    tune: Callable[[Flask], None] | None = None

    @property
    def dialect(self) -> str:
        """Name of the database's kind: ``sqlite``, ``postgresql`` or ``mysql``."""
        return make_url(self.url).get_backend_name()

    @property
    def instance(self) -> Path:
        """The instance folder."""
        return self.directory / "instance"

    @property
    def flag(self) -> Path:
        """The flag file."""
        return self.instance / ".db_migration_completed"

    @property
    def file(self) -> Path:
        """The migrations, when they are a single module."""
        return self.directory / f"{self.module}.py"

    def write(self, source: str, name: str | None = None, *, header: str = HEADER) -> Path:
        """Write the single module of migrations, or, with a name, one module of the package."""
        if name is None:
            path = self.file
        else:
            path = self.directory / self.module / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            (path.parent / "__init__.py").touch()
        path.write_text(header + textwrap.dedent(source), encoding="utf-8")
        return path

    def app(self, **config: Any) -> tuple[Flask, DbSmart]:
        """Make the application without booting it."""
        for name in [name for name in sys.modules if name.split(".")[0] == self.module]:
            del sys.modules[name]
        app = Flask(f"app_{self.module}", instance_path=str(self.instance))
        app.config.update({"SQLALCHEMY_DATABASE_URI": self.url, **self.config, **config})
        db = SQLAlchemy()
        if self.models is not None:
            self.models(db)
        db.init_app(app)
        smart = self.extend(app, db)
        app.add_url_rule("/", view_func=lambda: "served", endpoint="index")
        if self.tune is not None:
            self.tune(app)
        return app, smart

    def extend(self, app: Flask, db: SQLAlchemy) -> DbSmart:
        """Register the extension on an application."""
        return DbSmart(app, db, migrations=self.module)

    def boot(self, **config: Any) -> BootReport:
        """Make the application and boot it."""
        app, smart = self.app(**config)
        try:
            return smart.boot(app)
        finally:
            self.dispose(app)

    def run(self, *args: str, **config: Any) -> Any:
        """Run ``flask db-smart ARGS`` and return Click's result."""
        app, _ = self.app(**config)
        try:
            return app.test_cli_runner().invoke(args=["db-smart", *args])
        finally:
            self.dispose(app)

    @staticmethod
    def dispose(app: Flask) -> None:
        """Close the application's pooled connections."""
        with app.app_context():
            for engine in app.extensions["sqlalchemy"].engines.values():
                engine.dispose()

    def query(self, sql: str, **parameters: Any) -> list[Any]:
        """Rows of a query past the application."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            result = connection.execute(sa.text(sql), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    def columns(self, table: str) -> set[str]:
        """Names of the columns of a table."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            return {column["name"] for column in sa.inspect(connection).get_columns(table)}

    def tables(self) -> set[str]:
        """Names of the tables."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            return set(sa.inspect(connection).get_table_names())

    def history(self) -> list[tuple[str, str]]:
        """Name and outcome of each row of the history."""
        return self.query("SELECT name, outcome FROM db_smart_history ORDER BY id")


def booted(project: Project, models: Callable[[SQLAlchemy], None], source: str, config: Mapping[str, Any]) -> Project:
    """A project with these models, migrations and settings, after its first boot."""
    project.models = models
    project.write(source)
    project.config.update(config)
    project.boot()
    return project


@contextmanager
def process(project: Project, **config: Any) -> Iterator[tuple[Flask, DbSmart]]:
    """What a new process would be, until it ends."""
    app, smart = project.app(**config)
    try:
        smart.boot(app)
        yield app, smart
    finally:
        state = smart._state(app)
        if state.later is not None:
            state.later.end()
        if state.fence is not None:
            state.fence.stop()
        project.dispose(app)
