"""What an application hangs into db-smart: listeners, log handlers, views, output. None of it breaks a run."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart, DbSmartError, notices, signals
from aurum_harmony.db_smart.store.database import safe_url
from tests.harness.processes import ROOT, environment
from tests.harness.project import Project
from tests.harness.servers import by_driver
from tests.samples import V1

MIGRATIONS = """
@migration
def one(op):
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("n", Integer))
    op.execute("INSERT INTO notes (id, n) VALUES (1, 0)")
@migration
def two(op): op.backfill("notes", {"n": column("n") + 1})
@migration
def three(op): op.execute("UPDATE notes SET n = n + 10")
"""
SIGNALS = ("migration_started", "migration_applied", "migration_progress", "snapshot_taken", "booted")


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    signals._told.clear()


def applied(project: Project) -> bool:
    """Whether all three ran once."""
    names = [name for name, outcome in project.history() if outcome == "applied"]
    return names == ["one", "two", "three"] and project.query("SELECT n FROM notes") == [(11,)]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    "what", [ValueError("no"), BrokenPipeError(32, "Broken pipe"), sa.exc.InvalidRequestError("x")]
)
def test_a_listener_that_raises_is_logged_once_and_passed_by(
    sqlite_project: Project, caplog: pytest.LogCaptureFixture, name: str, what: Exception
) -> None:
    project = sqlite_project
    project.write(V1)
    project.boot()  # so that there is something to make a snapshot of
    project.write(V1 + MIGRATIONS)
    app, smart = project.app()
    called = []

    def listen(_: object, **__: object) -> None:
        called.append(name)
        raise what

    def healthy(_: object, **__: object) -> None:
        called.append("healthy")

    with getattr(signals, name).connected_to(listen, sender=app), getattr(signals, name).connected_to(healthy):
        report = smart.boot(app)
    assert report.applied == ("one", "two", "three")
    assert project.history()[1:] == [("one", "applied"), ("two", "applied"), ("three", "applied")]
    assert called.count(name) == called.count("healthy") >= 1
    assert caplog.text.count("raised, and is ignored") == 1
    assert type(what).__name__ in caplog.text
    project.dispose(app)
    assert project.boot().decision == "skipped"


@pytest.mark.parametrize("listener", ["raises", "is a coroutine", "no such argument"])
def test_a_listener_of_a_failure_does_not_hide_it(project: Project, listener: str) -> None:
    project.write('@migration\ndef bad(op): op.execute("SELECT * FROM nowhere")\n')
    app, smart = project.app()

    def raises(_: object, **__: object) -> None:
        raise RuntimeError("hidden")

    async def coroutine(_: object, **__: object) -> None: ...

    def few(_: object) -> None: ...

    listen: Any = {"raises": raises, "is a coroutine": coroutine, "no such argument": few}[listener]
    with signals.migration_failed.connected_to(listen, sender=app), pytest.raises(DbSmartError, match="nowhere"):
        smart.boot(app)
    assert project.history() == [("bad", "failed")]
    project.dispose(app)


@pytest.mark.parametrize("name", [*SIGNALS, "a migration"])
def test_a_listener_that_makes_a_request_gets_its_answer(sqlite_project: Project, name: str) -> None:
    """Also when the first request boots."""
    project = sqlite_project
    project.write(V1)
    project.boot()
    more = '@migration\ndef ask(): assert current_app.test_client().get("/").status_code == 200\n'
    project.write(V1 + MIGRATIONS + (more if name == "a migration" else ""))
    app, smart = project.app()
    answers: list[str] = []

    def listen(_: object, **__: object) -> None:
        answers.append(app.test_client().get("/").text)

    def run() -> None:
        if name == "a migration":
            smart.boot(app)
            answers.append("served")
            return
        with getattr(signals, name).connected_to(listen, sender=app):
            if name == "booted":
                assert app.test_client().get("/").text == "served"
            else:
                smart.boot(app)

    bounded(run)
    assert answers
    assert set(answers) == {"served"}
    assert len(project.history()) >= 4
    project.dispose(app)


def test_a_listener_of_booted_may_wait_for_a_request_of_another_thread(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    app, smart = sqlite_project.app()
    answers = []

    def listen(_: object, **__: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            answers.append(pool.submit(lambda: app.test_client().get("/").text).result(20))

    def run() -> None:
        with signals.booted.connected_to(listen, sender=app):
            smart.boot(app)

    bounded(run)
    assert answers == ["served"]
    sqlite_project.dispose(app)


@pytest.mark.parametrize("name", ["migration_started", "migration_progress"])
def test_a_listener_within_a_run_may_wait_for_a_request_of_another_thread(sqlite_project: Project, name: str) -> None:
    """It gets an answer, also where it was already waiting: that the database is not ready."""
    sqlite_project.write(MIGRATIONS)
    app, smart = sqlite_project.app()
    answers: list[tuple[int, str]] = []

    def listen(_: object, **__: object) -> None:
        if not answers:
            with ThreadPoolExecutor(2) as pool:
                asked = [pool.submit(lambda: app.test_client().get("/")) for _ in range(2)]
                answers.extend((one.result(18).status_code, one.result().headers["Retry-After"]) for one in asked)

    def run() -> None:
        with getattr(signals, name).connected_to(listen, sender=app):
            smart.boot(app)

    bounded(run)
    assert answers == [(503, "1")] * 2
    assert app.test_client().get("/").text == "served"
    assert applied(sqlite_project)
    sqlite_project.dispose(app)


def test_boot_within_boot_is_said(sqlite_project: Project) -> None:
    sqlite_project.write(
        "@migration\ndef again(): current_app.extensions['db_smart'].boot(current_app._get_current_object())\n"
    )
    app, smart = sqlite_project.app()
    errors = []

    def run() -> None:
        with pytest.raises(DbSmartError) as error:
            smart.boot(app)
        errors.append(str(error.value))

    bounded(run)
    assert "call it afterwards" in errors[0]
    sqlite_project.dispose(app)


def bounded(action: Callable[[], None]) -> None:
    """Do it in a thread, and fail where it hangs."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


class Raising(logging.Handler):
    """Not as the handlers of Python, which never raise."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("this handler always raises")


def test_a_log_handler_that_raises_breaks_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write(MIGRATIONS)
    logger = logging.getLogger("aurum_harmony.db_smart")
    handler, level = Raising(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    notices._said.clear()
    try:
        assert project.boot().applied == ("one", "two", "three")
        assert project.run("migrate").exit_code == 0
        project.write(MIGRATIONS + '@migration\ndef bad(op): op.execute("SELECT * FROM nowhere")\n')
        with pytest.raises(DbSmartError, match="nowhere"):
            project.boot()
        app, _ = project.app()
        assert app.test_client().get("/").status_code == 503
        project.dispose(app)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert applied(project)
    said = [line for line in capsys.readouterr().err.splitlines() if "extension are lost" in line]
    assert said == [
        "db-smart: messages to aurum_harmony.db_smart.extension are lost: RuntimeError: this handler always raises"
    ]


# -- The first request


def asked(project: Project, url: str = "/") -> tuple[Flask, Any]:
    """An application whose boot trusted the flag, and a client of it."""
    app, smart = project.app()
    app.add_url_rule("/alive", view_func=smart.exempt(lambda: "alive"), endpoint="alive")
    assert smart.boot(app).decision == "skipped"
    return app, app.test_client()


@pytest.fixture(params=["postgresql", "mariadb"])
def server(
    request: pytest.FixtureRequest, make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> Project:
    return make_project(new_url(request.param))


def test_a_query_of_the_first_request_that_fails_for_another_reason_than_rights_trusts_no_flag(server: Project) -> None:
    server.write(V1)
    server.boot()
    for table in ("items", "db_smart_history"):
        server.query(f"DROP TABLE {table}")
    server.query("UPDATE db_smart_state SET applied = '', source = ''")
    app, client = asked(server)
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    limit, unlimited = {
        "postgresql": ("SET statement_timeout = '100ms'", "RESET statement_timeout"),
    }.get(server.dialect, ("SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1", "DO 0"))

    @sa.event.listens_for(engine, "connect")
    def connected(driver: Any, _: object) -> None:
        driver.cursor().execute(limits[0])
        driver.commit()

    limits = [limit]
    engine.dispose()
    holder = sa.create_engine(server.url, poolclass=sa.pool.NullPool)
    with holder.connect() as connection:
        if server.dialect == "postgresql":
            connection.execute(sa.text("LOCK TABLE db_smart_state IN ACCESS EXCLUSIVE MODE"))
        else:
            connection.execute(sa.text("LOCK TABLES db_smart_state WRITE"))
        response = client.get("/")
        assert response.status_code == 503
        assert response.get_json()["detail"] == "The database is not ready."
        assert client.get("/alive").text == "alive"
        connection.rollback()
    limits[0] = unlimited
    engine.dispose()
    app.extensions["db_smart"]._states[app].refused_until = 0.0
    assert client.get("/").status_code == 200
    assert "items" in server.tables()
    server.dispose(app)


def test_only_a_refused_right_makes_the_flag_trusted(
    new_url: Callable[[str], URL], make_project: Callable[..., Project], caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project(new_url("postgresql"))
    project.write(V1)
    project.boot()
    app, client = asked(project)
    role = f"unreader_{project.module}"
    project.query(f"CREATE ROLE {role}")
    try:
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine

        @sa.event.listens_for(engine, "connect")
        def connected(driver: Any, _: object) -> None:
            driver.cursor().execute(f"SET ROLE {role}")
            driver.commit()

        engine.dispose()
        assert client.get("/").status_code == 200
        assert "is trusted" in caplog.text
        project.dispose(app)
    finally:
        project.query(f"DROP ROLE {role}")


def test_exempt_views_answer_while_another_thread_migrates(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(MIGRATIONS)
    app, smart = project.app()
    app.add_url_rule("/alive", view_func=smart.exempt(lambda: "alive"), endpoint="alive")
    running, opened = threading.Event(), threading.Event()

    def hold(_: object, **__: object) -> None:
        running.set()
        opened.wait(20)

    with signals.migration_started.connected_to(hold, sender=app), ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: app.test_client().get("/").text)
        assert running.wait(10)
        try:
            assert pool.submit(lambda: app.test_client().get("/alive").text).result(5) == "alive"
        finally:
            opened.set()
        assert first.result(20) == "served"
    project.dispose(app)


def test_exempt_views_answer_although_the_server_never_does(server: Project) -> None:
    server.write(V1)
    server.boot()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(10)
        url = sa.engine.make_url(server.url).set(host="127.0.0.1", port=silent.getsockname()[1], query={})
        app, smart = server.app(SQLALCHEMY_DATABASE_URI=url, DB_SMART_BOOT="migrate")
        app.add_url_rule("/alive", view_func=smart.exempt(lambda: "alive"), endpoint="alive")
        waiting = threading.Thread(target=lambda: app.test_client().get("/"), daemon=True)
        bounded(lambda: answered(app))
        waiting.start()
        silent.accept()[0].close()  # it has asked, and holds what the others would wait for
        bounded(lambda: answered(app))
        waiting.join(20)
    server.dispose(app)


def test_a_server_that_never_answers_the_first_request_is_a_503_after_a_while(
    server: Project, caplog: pytest.LogCaptureFixture
) -> None:
    server.write(V1)
    server.boot()
    url = sa.engine.make_url(server.url)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(10)
        port = silent.getsockname()[1]
        silenced = url.set(host="127.0.0.1", port=port, query={})
        server.config.update(SQLALCHEMY_DATABASE_URI=silenced, DB_SMART_LEASE_SECONDS=0.2)
        # As if it had answered when the flag was written.
        app, _ = server.app()
        with app.app_context():
            shown = safe_url(app.extensions["sqlalchemy"].engine.url)
        flag = json.loads(server.flag.read_text())
        flag["databases"]["default"]["url"] = shown
        server.flag.write_text(json.dumps(flag))
        app, client = asked(server)

        def refused() -> None:
            assert client.get("/").status_code == 503

        bounded(refused)
        assert caplog.text.count("does not answer") == 1
        assert "nothing came for 2 s" in caplog.text
        connections = [silent.accept()[0]]
        # The next one does not wait again, and asks nothing of its own.
        app.extensions["db_smart"]._states[app].refused_until = 0.0
        bounded(refused)
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()
        assert caplog.text.count("does not answer") == 2
        # When the server is there again, so is the application.
        app.extensions["db_smart"]._states[app].refused_until = 0.0
        with forwarding(connections[0], url):
            bounded(lambda: app.extensions["db_smart"]._states[app]._question._thread.join(10))
            assert client.get("/").text == "served"
            server.dispose(app)


def connected(url: URL) -> socket.socket:
    """A connection to a server, over TCP or its socket."""
    by_socket = by_driver(url, "postgresql+pg8000")[1]
    if by_socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(by_socket["unix_sock"])
        return connection
    default = 5432 if url.get_backend_name() == "postgresql" else 3306
    return socket.create_connection((url.host or "127.0.0.1", url.port or default))


@contextmanager
def forwarding(client: socket.socket, url: URL) -> Iterator[None]:
    """Carry what a connection that was accepted sends to a server, and back."""
    with client, connected(url) as upstream:

        def carry(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)

        threads = [threading.Thread(target=carry, args=pair) for pair in ((client, upstream), (upstream, client))]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for end in (client, upstream):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)


def answered(app: Flask) -> None:
    assert app.test_client().get("/alive").text == "alive"


def test_a_lock_that_cannot_be_noted_is_free_for_the_next_try(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(V1)
    app, _ = project.app(DB_SMART_LOCK_TIMEOUT=1)
    holder = project.directory / f"{sa.engine.make_url(project.url).database}.db-smart.holder"
    holder.mkdir()
    client = app.test_client()
    assert client.get("/").status_code == 503
    holder.rmdir()
    app.extensions["db_smart"]._states[app].refused_until = 0.0
    assert client.get("/").text == "served"
    project.dispose(app)


# -- What cannot be used


def test_a_list_of_databases_that_is_no_json_is_asked_the_long_way(project: Project) -> None:
    project.write(V1)
    project.boot()
    column = "`databases`" if project.dialect == "mysql" else "databases"
    project.query(f"UPDATE db_smart_state SET {column} = 'not json'")
    project.flag.unlink()
    assert project.boot().decision == "verified"


def test_a_loop_of_links_among_the_migrations_is_one_message(sqlite_project: Project) -> None:
    path = sqlite_project.write(V1, "m1").parent
    (path / "loop").symlink_to(path / "loop")
    with pytest.raises(DbSmartError, match="Cannot list the migrations in"):
        sqlite_project.boot()


RAISES = {
    "surrogate": 'raise RuntimeError("name \\udcff.csv")',
    "nul": 'raise RuntimeError("a\\0b")',
    "beyond the encoding": 'raise RuntimeError("\\u043f\\u0440\\u0438\\u0432\\u0435\\u0442 \\U0001f600")',
    "no text": "class Bad(Exception):\n        def __str__(self): raise KeyError('text')\n    raise Bad",
}


@pytest.mark.parametrize("what", RAISES)
def test_an_error_whose_text_cannot_be_had_or_stored_is_told_and_recorded(project: Project, what: str) -> None:
    project.write(f"@migration\ndef bad(op):\n    {RAISES[what]}\n")
    options = {}
    if project.dialect == "postgresql":
        options = {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": {"client_encoding": "LATIN1"}}}
    with pytest.raises(DbSmartError, match="Migration 'bad' failed") as error:
        project.boot(**options)
    error.value.message.encode()
    assert project.history() == [("bad", "failed")]
    assert ("RuntimeError" if what != "no text" else "Bad") in project.query("SELECT error FROM db_smart_history")[0][0]


# -- Wrong wiring


def test_another_sqlalchemy_extension_is_named(sqlite_url: URL) -> None:
    class Other:  # as Flask-SQLAlchemy-Lite, which has sessions and engines, but no registry of applications
        session = engines = None

    with pytest.raises(DbSmartError, match=r"Flask-SQLAlchemy; .*Other is a different class"):
        DbSmart(Flask("other"), Other(), migrations="anything")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["boot", "request", "command"])
def test_a_forgotten_init_app_is_named(sqlite_project: Project, caplog: pytest.LogCaptureFixture, how: str) -> None:
    sqlite_project.write(V1)
    app = Flask("forgotten", instance_path=str(sqlite_project.instance))
    smart = DbSmart(app, SQLAlchemy(), migrations=sqlite_project.module)
    if how == "boot":
        with pytest.raises(DbSmartError, match="call db.init_app"):
            smart.boot(app)
    elif how == "request":
        assert app.test_client().get("/").status_code == 503
        assert "call db.init_app" in caplog.text
    else:
        found = app.test_cli_runner().invoke(args=["db-smart", "status"])
        assert found.exit_code == 1
        assert "call db.init_app" in found.output


def test_a_directory_of_alembic_is_named(sqlite_project: Project) -> None:
    folder = sqlite_project.directory / sqlite_project.module
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text("from alembic import context\n")
    (folder / "versions" / "1a2b_first.py").write_text("revision = '1a2b'\n")
    with pytest.raises(DbSmartError, match="directory of Alembic or Flask-Migrate"):
        sqlite_project.boot()


@pytest.mark.parametrize("what", ["port in use", "bad host"])
def test_the_start_script_says_why_it_cannot_serve(sqlite_project: Project, what: str) -> None:
    script = next((ROOT / "aurum_harmony" / "master_codebase").glob("Master_*.py"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = "127.0.0.1" if what == "port in use" else "no.such.host.invalid"
        found = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(
                HOST=host, PORT=str(taken.getsockname()[1]), AURUM_LOCAL_DIR=str(sqlite_project.directory / "local")
            ),
        )
    assert found.returncode == 1
    assert "Cannot serve on HOST" in found.stderr
    assert "Traceback" not in found.stderr
