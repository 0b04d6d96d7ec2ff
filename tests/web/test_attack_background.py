"""What happens to a process while a thread of it migrates, and what must not."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.boot import background
from tests.harness.alembic_project import AlembicProject
from tests.harness.project import DIALECTS, Project
from tests.harness.servers import wait_until
from tests.harness.serving import LIVE, READY, finished
from tests.samples import WAITS


@pytest.fixture(params=DIALECTS)
def url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    """An empty database of each kind in turn, or of that which a test names."""
    return new_url(request.param)


@pytest.fixture
def waiting(project: Project, gate: Path) -> Project:
    """With a migration that waits for the gate."""
    project.write(WAITS.format(gate=str(gate)))
    return project


def booted(project: Project, **config: Any) -> tuple[Flask, DbSmart]:
    app, smart = project.app(DB_SMART_BOOT="background", **config)
    smart.boot(app)
    return app, smart


def test_a_process_that_is_forked_meanwhile(waiting: Project, gate: Path) -> None:
    """It has no such thread; its first request starts one, which finds what the other has done."""
    app, smart = booted(waiting)
    client = app.test_client()
    wait_until(lambda: client.get(READY).get_json()["migration"] == "waits")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        answers = [client.get(LIVE).status_code, client.get("/").status_code]
        theirs.send(answers)
        theirs.recv()
        wait_until(lambda: client.get("/").status_code == 200)
        theirs.send(client.get(READY).status_code)
        os._exit(0)

    process = context.Process(target=serve)
    process.start()
    assert ours.poll(30)
    assert ours.recv() == [200, 503]
    gate.touch()
    finished(app, smart)
    ours.send(None)
    assert ours.poll(30)
    assert ours.recv() == 200
    process.join()
    assert client.get("/").status_code == 200
    assert waiting.history() == [("waits", "applied")]
    waiting.dispose(app)


def test_an_application_that_boots_twice_and_one_beside_it(waiting: Project, gate: Path) -> None:
    app, smart = booted(waiting)
    wait_until(lambda: app.test_client().get(READY).get_json()["migration"] == "waits")
    assert smart.boot(app).decision == "background"  # which does not wait for the thread
    other, its = booted(waiting)
    gate.touch()
    finished(app, smart)
    finished(other, its)
    assert app.test_client().get("/").text == other.test_client().get("/").text == "served"
    assert waiting.history() == [("waits", "applied")]
    waiting.dispose(app)
    waiting.dispose(other)


def test_a_migration_that_ends_the_process(
    sqlite_project: Project, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failure as another; the process goes on to answer."""
    monkeypatch.setattr(background, "_PAUSES", (0.05, 0.1))
    source = "@migration\ndef ends(op):\n    import os\n    if not os.path.exists({gate!r}): raise SystemExit(3)\n"
    sqlite_project.write(source.format(gate=str(gate)))
    app, smart = booted(sqlite_project)
    client = app.test_client()
    wait_until(lambda: client.get(READY).get_json()["state"] == "failed")
    assert client.get("/").status_code == 503
    assert client.get(LIVE).status_code == 200
    gate.touch()
    finished(app, smart)
    assert client.get("/").status_code == 200
    sqlite_project.dispose(app)


@pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
def test_probes_while_requests_hold_all_connections(waiting: Project, gate: Path) -> None:
    """They ask by connections of their own."""
    app, smart = booted(waiting, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 30})
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        with db.engine.connect():
            began = time.monotonic()
            wait_until(lambda: app.test_client().get(READY).get_json()["migration"] == "waits", seconds=5)
            assert time.monotonic() - began < 5
    gate.touch()
    finished(app, smart)
    assert app.test_client().get("/").status_code == 200
    waiting.dispose(app)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_a_server_that_accepts_and_never_answers(make_project: Callable[..., Project], driver: str) -> None:
    """Probes and requests are answered all the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = URL.create(driver, "user", "secret", "127.0.0.1", server.getsockname()[1], "data")
        project = make_project(url)
        project.write("@migration\ndef one(op): pass\n")
        began = time.monotonic()
        app, smart = booted(project)
        assert time.monotonic() - began < 2
        client = app.test_client()
        for path, status in [(LIVE, 200), (READY, 503), ("/", 503), (READY, 503)]:
            began = time.monotonic()
            assert client.get(path).status_code == status
            assert time.monotonic() - began < 2, path
        app.config["DB_SMART_BOOT"] = "off"  # so that the thread comes to an end
    finished(app, smart)


def test_a_database_that_is_away_and_comes_back(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try after the other at growing intervals, and then it is ready."""
    monkeypatch.setattr(background, "_PAUSES", (0.1, 0.4))
    url = new_url("mariadb")
    away = url.set(database=f"{url.database}_away")
    project = make_project(away)
    project.write("@migration\ndef one(op): op.create_table('items', Column('id', Integer, primary_key=True))\n")
    app, smart = booted(project)
    client = app.test_client()
    wait_until(lambda: client.get(READY).get_json()["state"] == "failed")
    said = client.get("/")
    assert said.status_code == 503
    assert "away" not in said.text
    admin = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with admin.begin() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {away.database}")
    try:
        finished(app, smart)
        assert client.get(READY).get_json()["state"] == "ready"
        assert client.get("/").text == "served"
        project.dispose(app)
    finally:
        with admin.begin() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {away.database}")


def test_heads_and_what_is_static(waiting: Project, gate: Path) -> None:
    app, smart = waiting.app(DB_SMART_BOOT="background")
    folder = waiting.directory / "static"
    folder.mkdir()
    (folder / "style.css").write_text("p {}")
    app.static_folder = str(folder)
    smart.boot(app)
    client = app.test_client()
    for path, status in [(LIVE, 200), (READY, 503), ("/", 503), ("/static/style.css", 503), ("/nowhere", 503)]:
        found = client.head(path)
        assert (found.status_code, found.data) == (status, b""), path
        assert client.get(path).status_code == status
    assert client.post(LIVE).status_code == 404
    gate.touch()
    finished(app, smart)
    with client.get("/static/style.css") as style:
        assert style.data == b"p {}"
    assert client.get("/nowhere").status_code == 404
    waiting.dispose(app)


@pytest.mark.parametrize("config", [{"SERVER_NAME": "shop.example"}, {"APPLICATION_ROOT": "/shop"}, {"TESTING": True}])
def test_hosts_and_roots(waiting: Project, gate: Path, config: dict[str, Any]) -> None:
    """A probe asks by the address of the container, whatever name the application has."""
    app, smart = booted(waiting, **config)
    client, address = app.test_client(), "http://10.0.0.7:8000"
    assert client.get(LIVE, base_url=address).status_code == 200
    assert client.get(READY, base_url=address).status_code == 503
    assert client.get("/", base_url=address).status_code == 503
    gate.touch()
    finished(app, smart)
    assert client.get(READY, base_url=address).status_code == 200
    waiting.dispose(app)


@pytest.mark.filterwarnings("ignore:Current server name")
@pytest.mark.parametrize("how", [{"host_matching": True, "static_host": "shop.example"}, {"subdomain_matching": True}])
def test_an_application_that_tells_hosts_apart(sqlite_project: Project, gate: Path, how: dict[str, Any]) -> None:
    gate.touch()
    sqlite_project.write(WAITS.format(gate=str(gate)))
    app = Flask("hosts", instance_path=str(sqlite_project.instance), **how)
    app.config.update(SQLALCHEMY_DATABASE_URI=sqlite_project.url, SERVER_NAME="shop.example")
    smart = DbSmart(app, SQLAlchemy(app), migrations=sqlite_project.module)
    smart.boot(app)
    for host in ("http://10.0.0.7:8000", "http://shop.example", "http://blue.shop.example"):
        for path in (LIVE, READY):
            assert app.test_client().get(path, base_url=host).status_code == 200, (host, path)
    sqlite_project.dispose(app)


def test_requests_never_see_the_connection_of_the_migration(waiting: Project, gate: Path) -> None:
    """Exempt views may use ``db.session`` while the thread has it rebound for its migration."""
    waiting.write(
        WAITS.format(gate=str(gate)).replace("    while", "    db.session.execute(text('SELECT 1'))\n    while")
    )
    app, smart = waiting.app(DB_SMART_BOOT="background")
    db = app.extensions["sqlalchemy"]

    @smart.exempt
    def look() -> str:
        return str(sa.inspect(db.engine).has_table("waited")) + str(db.session.scalar(sa.text("SELECT 1")))

    app.add_url_rule("/look", view_func=look)
    smart.boot(app)
    client = app.test_client()
    wait_until(lambda: client.get(READY).get_json()["migration"] == "waits")
    seen = client.get("/look").text
    assert seen == ("True1" if waiting.dialect == "mysql" else "False1")  # which commits schema changes
    gate.touch()
    finished(app, smart)
    assert client.get("/look").text == "True1"
    waiting.dispose(app)


def test_nothing_is_left_on_the_path_of_a_request(waiting: Project, gate: Path) -> None:
    gate.touch()
    before = {thread for thread in threading.enumerate() if thread.name.startswith("db-smart")}
    app, smart = booted(waiting)
    finished(app, smart)
    client = app.test_client()
    assert client.get("/").text == "served"
    assert app.before_request_funcs[None] == []
    wait_until(lambda: {one for one in threading.enumerate() if one.name.startswith("db-smart")} <= before)
    statements: list[str] = []
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    sa.event.listen(engine, "before_cursor_execute", lambda *found: statements.append(found[2]))
    for _ in range(20):
        assert client.get(READY).status_code == 200
        assert client.get("/").status_code == 200
    assert statements == []
    waiting.dispose(app)


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_two_applications_with_revisions_in_one_process(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], url: URL, gate: Path
) -> None:
    """Alembic knows one environment for each process; each application gets its own tables and no others."""
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
    both = []
    for name, target in (("one", url), ("two", new_url(url.get_backend_name()))):
        project = make_alembic(target)
        project.revision(f"{name}1", None, f"{waits}op.execute('CREATE TABLE {name} (id INTEGER)')")
        app, smart = booted(project, DB_SMART_FLAG=f"flag_{name}")
        both.append((name, project, app, smart))
    clients = [app.test_client() for _, _, app, _ in both]
    wait_until(lambda: {client.get(READY).get_json()["migration"] for client in clients} & {"one1", "two1"})
    assert logging.getLogger("shop").disabled is False
    gate.touch()
    for name, project, app, smart in both:
        finished(app, smart)
        assert project.tables() & {"one", "two"} == {name}
        assert project.heads() == {f"{name}1"}
        assert app.test_client().get("/").text == "served"
        project.dispose(app)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_another_application_that_boots_while_a_thread_runs_revisions(
    make_alembic: Callable[..., AlembicProject], make_project: Callable[..., Project], url: URL, gate: Path
) -> None:
    """It is not taken for one that the directory of Alembic makes."""
    revised = make_alembic(url)
    revised.revision(
        "one", None, f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
    )
    app, smart = booted(revised)
    wait_until(lambda: app.test_client().get(READY).get_json()["migration"] == "one")
    other = make_project(url.set(database=f"{url.database}2"))
    other.write("@migration\ndef one(op): pass\n")
    assert other.boot(DB_SMART_FLAG="other").decision == "migrated"
    gate.touch()
    finished(app, smart)
    revised.dispose(app)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_several_databases_by_urls_of_their_own(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], url: URL, gate: Path
) -> None:
    """What migrates has other connections than what serves; a flag that cannot be written stops nothing."""
    logs = new_url("sqlite")
    project = make_project(url, {"SQLALCHEMY_BINDS": {"logs": logs}})
    project.write(
        WAITS.format(gate=str(gate))
        + "@migration(database='logs')\ndef noted(op): op.create_table('notes', Column('id', Integer))\n"
    )
    app, smart = booted(project, DB_SMART_MIGRATION_URL={"default": url, "logs": logs}, DB_SMART_FLAG="/proc/no/flag")
    client = app.test_client()
    wait_until(lambda: client.get(READY).get_json()["migration"] == "waits")
    assert client.get("/").status_code == 503
    gate.touch()
    finished(app, smart)
    assert client.get("/").text == "served"
    assert client.get(READY).status_code == 200
    project.dispose(app)
