"""What is measured: applications with N migrations, each of which adds one column to the table ``items``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

#: Dotted name of the migrations of db-smart, whether a module or a package.
MODULE = "bench_migrations"

_HEADER = """\
from __future__ import annotations

from sqlalchemy import Column, Integer

from aurum_harmony.db_smart import Operations, migration
"""
_MIGRATION = '''

@migration
def add_{name}(op: Operations) -> None:
    """Add {name}."""
    op.add_column("items", Column("{name}", Integer))
'''

_PROCESS = """\
import sys
import types

# The extension lives in the package of an application, which is not part of what is measured.
stand_in = types.ModuleType("aurum_harmony")
stand_in.__path__ = [{package!r}]
sys.modules["aurum_harmony"] = stand_in

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

app = Flask("bench", instance_path={instance!r})
app.config["SQLALCHEMY_DATABASE_URI"] = {url!r}
db = SQLAlchemy()


class Item(db.Model):
    __tablename__ = "items"
    id = db.Column(db.Integer, primary_key=True)


db.init_app(app)
"""
_PROCESS_BOOT = """
from time import perf_counter

started = perf_counter()

from aurum_harmony.db_smart import DbSmart

smart = DbSmart(app, db, migrations={module!r})
report = smart.boot(app)
if report.reason != "nothing changed":
    sys.exit(f"not a warm boot: {{report}}")
print(f'{{{{"extension_ms": {{(perf_counter() - started) * 1000}}}}}}')
"""


@dataclass(frozen=True)
class Project:
    """The migrations of one contender, and one database for them.

    :ivar size: number of migrations.
    :ivar directory: where its sources are.
    :ivar instance: where its flag and, for SQLite, its database are.
    :ivar url: the database.
    """

    size: int
    directory: str
    instance: str
    url: str

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the migrations add, one each."""
        return [f"c{number:04}" for number in range(1, self.size + 1)]

    @property
    def sources(self) -> list[str]:
        """The source files of the migrations of db-smart."""
        path = Path(self.directory)
        return sorted(map(str, path.joinpath(MODULE).glob("*.py"))) or [str(path / f"{MODULE}.py")]


def project(directory: Path, size: int, server: URL | None = None) -> Project:
    """A project in ``directory``: on SQLite, or on a database of a server."""
    instance = directory / ("sqlite" if server is None else server.get_backend_name())
    instance.mkdir(parents=True, exist_ok=True)
    url = sqlite_url(instance) if server is None else server.render_as_string(hide_password=False)
    return Project(size, str(directory), str(instance), url)


def sqlite_url(directory: str | Path) -> str:
    """The URL of a SQLite database in a directory."""
    return f"sqlite:///{directory}/bench.sqlite"


def alembic_directory(project: Project) -> str:
    """The directory of Flask-Migrate."""
    return str(Path(project.directory, "migrations"))


def write_package(project: Project) -> None:
    """Write the migrations of db-smart, each in a file of its own."""
    package = Path(project.directory, MODULE)
    package.mkdir()
    package.joinpath("__init__.py").touch()
    for name in project.columns:
        package.joinpath(f"m_{name}.py").write_text(_HEADER + _MIGRATION.format(name=name))


def write_module(project: Project) -> None:
    """Write the migrations of db-smart into one file."""
    body = "".join(_MIGRATION.format(name=name) for name in project.columns)
    Path(project.directory, f"{MODULE}.py").write_text(_HEADER + body)


def write_process(project: Project, *, extension: bool) -> Path:
    """Write a program that builds the application, with or without the extension."""
    spec = find_spec("aurum_harmony")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    text = _PROCESS.format(package=spec.submodule_search_locations[0], instance=project.instance, url=project.url)
    if extension:
        text += _PROCESS_BOOT.format(module=MODULE)
    path = Path(project.directory, "with_extension.py" if extension else "without_extension.py")
    path.write_text(text)
    return path


def make_app(project: Project) -> tuple[Flask, SQLAlchemy]:
    """The application that all contenders serve, without any of them."""
    app = Flask("bench", instance_path=project.instance)
    app.config["SQLALCHEMY_DATABASE_URI"] = project.url
    db = SQLAlchemy()
    sa.Table("items", db.metadata, sa.Column("id", sa.Integer, primary_key=True))
    db.init_app(app)
    return app, db


def create_items(url: str) -> None:
    """Make the table that the migrations extend."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE items (id INTEGER NOT NULL PRIMARY KEY)")


def count_columns(url: str) -> int:
    """How many columns the table has."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return len(sa.inspect(connection).get_columns("items"))


@contextmanager
def new_database(server: str) -> Iterator[URL]:
    """An empty database of its own on a server, dropped afterwards."""
    url = make_url(server)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    name = f"db_smart_bench_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}")
