"""One fleet in several applications, and in forked processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart, Fleet
from tests.harness.fleets import FleetProject, running, with_model
from tests.samples import V1


def test_each_application_has_the_tenants_of_its_own_databases(
    make_fleet: Callable[..., FleetProject], tmp_path: Path, new_url: Callable[[str], URL]
) -> None:
    project = make_fleet("sqlite")
    project.write(V1)
    db, smart = SQLAlchemy(), DbSmart()
    fleet = Fleet(
        smart,
        tenants=lambda: ["a"],
        url=lambda name: f"sqlite:///{current_app.instance_path}/{name}.db",
        strategy="on_request",
    )
    for number in (1, 2):
        app = Flask("shop", instance_path=str(tmp_path / f"instance{number}"))
        app.config["SQLALCHEMY_DATABASE_URI"] = new_url("sqlite")
        db.init_app(app)
        smart.init_app(app, db, migrations=project.module)
        fleet.init_app(app)
        with app.app_context(), fleet.use("a"):
            assert db.session.scalars(sa.text("SELECT count(*) FROM items")).all() == [0]
            assert db.engine.url.database == f"{app.instance_path}/a.db"
    fleet.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_forked_process_has_threads_and_connections_of_its_own(
    make_fleet: Callable[..., FleetProject], kind: str
) -> None:
    """As with ``gunicorn --preload``, where tenants were used before."""
    fleet = make_fleet(kind, "a", "b", strategy="on_request")
    fleet.models = with_model
    fleet.config["DB_SMART_BOOT"] = "off"
    fleet.write(V1)
    session = sa.text("SELECT pg_backend_pid()" if kind == "postgresql" else "SELECT 1")
    with running(fleet) as (app, found, db), app.app_context():
        with found.use("a"):
            before = db.session.scalar(session)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(30)
            try:
                with found.use("b"):  # is migrated, by a thread
                    pass
                with found.use("a"):
                    os.write(writer, str(db.session.scalar(session)).encode())
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        os.close(writer)
        with os.fdopen(reader) as said:
            other = said.read()
        assert other
        assert (other != str(before)) == (kind == "postgresql")
        with found.use("a"):
            assert db.session.scalar(session) == before
    assert fleet.applied("b") == ["make_items"]
