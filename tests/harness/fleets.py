"""An application with a fleet of tenants."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmart, Fleet
from aurum_harmony.db_smart.fleet.run import FleetRun
from tests.harness.project import Project


@dataclass
class FleetProject(Project):
    """A project whose tenants are SQLite files, databases on its server, or schemas of its database.

    :ivar kind: ``"sqlite"``, ``"postgresql"``, ``"mariadb"`` or ``"schemas"``.
    """

    kind: str = "sqlite"
    names: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    stem: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")

    def place(self, name: str) -> str:
        """The file, database or schema of a tenant."""
        return f"{self.stem}_{name}"

    def url_of(self, name: str) -> URL:
        """The URL of a tenant's database."""
        if self.kind == "sqlite":
            return URL.create("sqlite", database=str(self.directory / "tenants" / f"{self.place(name)}.sqlite"))
        url = make_url(self.url)
        return url if self.kind == "schemas" else url.set(database=self.place(name))

    def extend(self, app: Flask, db: SQLAlchemy) -> DbSmart:
        """Register the extension and the fleet on an application."""
        smart = super().extend(app, db)
        where: dict[str, Any] = {"schema": self.place} if self.kind == "schemas" else {"url": self.url_of}
        Fleet(smart, **{"tenants": lambda: iter(self.names), **where, **self.options})
        return smart

    def make(self, *names: str) -> None:
        """Make empty databases, or schemas, and have them be tenants."""
        self.names += names
        for name in names:
            if self.kind == "sqlite":
                Path(str(self.url_of(name).database)).parent.mkdir(exist_ok=True)
            else:
                self.admin(f"CREATE {'SCHEMA' if self.kind == 'schemas' else 'DATABASE'} {self.place(name)}")

    def admin(self, statement: str) -> None:
        """Send a statement to the server of the project."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def engine(self) -> sa.Engine:
        """An engine of the control database, past the application."""
        return sa.create_engine(self.url, poolclass=sa.pool.NullPool)

    def engine_of(self, name: str) -> sa.Engine:
        """An engine of a tenant, past the application."""
        return sa.create_engine(self.url_of(name), poolclass=sa.pool.NullPool)

    def clean(self) -> None:
        """Drop the databases of the tenants."""
        if self.kind in ("postgresql", "mariadb"):
            for name in self.names:
                self.admin(f"DROP DATABASE IF EXISTS {self.place(name)}")

    def migrate(self, **options: Any) -> FleetRun:
        """One run over the fleet, as a new process does it."""
        app, _ = self.app()
        try:
            run: FleetRun = app.extensions["db_smart_fleet"].migrate(**options)
            return run
        finally:
            self.dispose(app)

    def of(self, name: str, sql: str) -> list[Any]:
        """Rows of a query to a tenant, past the application."""
        with self.engine_of(name).begin() as connection:
            if self.kind == "schemas":
                connection.exec_driver_sql(f"SET search_path TO {self.place(name)}")
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    def applied(self, name: str) -> list[str]:
        """The migrations that were applied to a tenant, in order."""
        rows = self.of(name, "SELECT name FROM db_smart_history WHERE outcome = 'applied' ORDER BY id")
        return [row[0] for row in rows]

    def ledger(self) -> dict[str, tuple[str, int]]:
        """Status and attempts of each tenant in the ledger."""
        return {row[0]: (row[1], row[2]) for row in self.query("SELECT name, status, attempts FROM db_smart_fleet")}


def with_model(db: Any) -> None:
    """The model of the table that :data:`tests.samples.V1` makes."""
    columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50))
    db.extensions_item = type("Item", (db.Model,), {"__tablename__": "items", "id": columns[0], "name": columns[1]})


@contextmanager
def running(fleet: FleetProject) -> Iterator[tuple[Flask, Any, Any]]:
    """An application, its fleet and its Flask-SQLAlchemy."""
    app, _ = fleet.app()
    found, db = app.extensions["db_smart_fleet"], app.extensions["sqlalchemy"]
    try:
        yield app, found, db
    finally:
        found.close()
        fleet.dispose(app)


def add(db: Any, name: str) -> None:
    """Add a row by the session that the application has here."""
    db.session.add(db.extensions_item(name=name))
    db.session.commit()


def names(db: Any) -> list[str]:
    """The rows that the session of the application finds here."""
    return list(db.session.scalars(sa.select(db.extensions_item.name)))


#: An application for other processes, as ``flask --app`` takes it; the figures are filled in.
APPLICATION = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import make_url
from aurum_harmony.db_smart import DbSmart, Fleet

def create_app():
    app = Flask(__name__, instance_path={instance!r})
    app.config.update(SQLALCHEMY_DATABASE_URI={control!r}, DB_SMART_LEASE_SECONDS=1)
    db = SQLAlchemy(app)
    smart = DbSmart(app, db, migrations={module!r})
    places = {places!r}
    where = {{"schema": places.get}} if {kind!r} == "schemas" else {{"url": places.get}}
    Fleet(smart, tenants=lambda: iter(places), **where)
    smart.boot(app)
    return app
"""


def write_application(fleet: FleetProject) -> str:
    """Write the application of a fleet as a module, and return its name."""
    places = {
        name: fleet.place(name) if fleet.kind == "schemas" else fleet.url_of(name).render_as_string(hide_password=False)
        for name in fleet.names
    }
    control = make_url(fleet.url).render_as_string(hide_password=False)
    name = f"{fleet.module}_app"
    text = APPLICATION.format(
        instance=str(fleet.instance), control=control, module=fleet.module, places=places, kind=fleet.kind
    )
    (fleet.directory / f"{name}.py").write_text(text, encoding="utf-8")
    return name


#: Of which a second run would leave another row.
COUNTED = """
@migration
def make_items(op):
    op.create_table("items", Column("id", Integer, primary_key=True))

@migration(once=True)
def count(op):
    op.execute("INSERT INTO items (id) SELECT count(*) + 1 FROM items")
"""


def check_each_once(fleet: FleetProject) -> None:
    """Make sure that each tenant has had each of these migrations once, and that the ledger says so."""
    for name in fleet.names:
        assert fleet.applied(name) == ["make_items", "count"], name
        assert fleet.of(name, "SELECT count(*) FROM items") == [(1,)], name
    assert set(fleet.ledger().values()) == {("applied", 0)}
