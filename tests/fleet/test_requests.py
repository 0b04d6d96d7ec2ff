"""Tenants in the application's own code: bound for a block or a request, and ready for this code."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, g, request
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DatabaseBehind, DbSmartError
from tests.harness.fleets import FleetProject, add, names, running, with_model
from tests.harness.servers import role
from tests.samples import V1, V2

WAITS = (
    V2
    + """
@migration
def waits(op):
    if "gate" in current_app.extensions:
        current_app.extensions["gate"].wait(30)
"""
)


@pytest.fixture
def migrated(fleet: FleetProject) -> FleetProject:
    fleet.models = with_model
    fleet.write(V1)
    fleet.migrate()
    fleet.boot()
    return fleet


def test_a_block_has_the_tables_and_a_session_of_its_tenant(migrated: FleetProject) -> None:
    with running(migrated) as (app, found, db), app.app_context():
        add(db, "own")
        mine = db.session.get(db.extensions_item, 1)
        g.kept = "kept"
        with found.use("a"):
            add(db, "of a")
            assert db.session.get(db.extensions_item, 1) is not mine
            with found.use("b"):
                assert names(db) == []
                add(db, "of b")
                db.session.add(db.extensions_item(name="not committed"))
            assert (names(db), g.kept) == (["of a"], "kept")
            with app.app_context():
                assert names(db) == ["of a"]
        assert (names(db), mine.name) == (["own"], "own")
        assert db.session.get(db.extensions_item, 1) is mine
        with pytest.raises(ZeroDivisionError), found.use("a"):
            raise ZeroDivisionError
        assert names(db) == ["own"]
    assert migrated.of("b", "SELECT name FROM items") == [("of b",)]


def test_threads_have_each_its_own_tenant(migrated: FleetProject) -> None:
    met, failures = threading.Barrier(3), []
    with running(migrated) as (app, found, db):

        def work(name: str) -> None:
            try:
                with app.app_context(), found.use(name):
                    met.wait(30)
                    for number in range(20):
                        add(db, f"{name}{number}")
                    met.wait(30)
                    assert sorted(names(db)) == sorted(f"{name}{number}" for number in range(20))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_tenant_is_asked_once_in_a_process(migrated: FleetProject) -> None:
    with running(migrated) as (app, found, _), app.app_context():
        sent: list[str] = []

        def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            sent.append(statement)

        sa.event.listen(sa.Engine, "before_cursor_execute", count)
        try:
            with found.use("a"):
                first = len([one for one in sent if "db_smart" in one])
            with found.use("a"):
                pass
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", count)
    assert (first, len([one for one in sent if "db_smart" in one])) == (2, 2)


def test_a_process_keeps_connections_to_so_many_tenants(make_fleet: Callable[..., FleetProject]) -> None:
    fleet = make_fleet("sqlite", "a", "b", "c", keep=2)
    fleet.models = with_model
    fleet.write(V1)
    fleet.migrate()
    with running(fleet) as (app, found, db), app.app_context():
        engines: dict[str, sa.Engine] = {}
        for name in fleet.names:
            with found.use(name):
                names(db)
                engines[name] = db.session.connection().engine
        idle = {name: int(engine.pool.checkedin()) for name, engine in engines.items()}  # type: ignore[attr-defined]
        assert idle == {"a": 0, "b": 1, "c": 1}


def test_an_unknown_tenant_is_none(migrated: FleetProject) -> None:
    with (
        running(migrated) as (_, found, _db),
        pytest.raises(DbSmartError, match="no tenant 'nobody'"),
        found.use("nobody"),
    ):
        pass


def by_header(app: Flask, found: Any, db: Any) -> None:
    found.tenant_from_request(lambda: request.headers.get("X-Tenant"))
    app.add_url_rule("/names", view_func=lambda: names(db), endpoint="names")


def test_a_request_has_its_tenant_and_the_next_one_another(migrated: FleetProject) -> None:
    migrated.of("a", "INSERT INTO items (id, name) VALUES (1, 'of a')")
    with running(migrated) as (app, found, db):
        by_header(app, found, db)
        client = app.test_client()
        assert client.get("/names", headers={"X-Tenant": "a"}).json == ["of a"]
        assert client.get("/names", headers={"X-Tenant": "b"}).json == []
        assert client.get("/names").json == []
        assert client.get("/names", headers={"X-Tenant": "x"}).status_code == 404
        with app.app_context():
            assert names(db) == []


def test_full_does_not_serve_a_tenant_that_is_behind(migrated: FleetProject) -> None:
    migrated.write(V2)
    with running(migrated) as (app, found, db):
        by_header(app, found, db)
        answer = app.test_client().get("/names", headers={"X-Tenant": "a"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "'" not in answer.text
        with pytest.raises(DatabaseBehind, match="fleet migrate"), found.use("b"):
            pass
    assert migrated.applied("a") == ["make_items"]


def test_a_tenant_that_was_restored_is_found_behind_by_the_command_that_its_refusal_names(
    make_fleet: Callable[..., FleetProject],
) -> None:
    fleet = make_fleet("sqlite", "a", "b")
    fleet.write(V1)
    fleet.migrate()
    file = Path(str(fleet.url_of("a").database))
    backup = file.read_bytes()
    fleet.write(V2)
    fleet.migrate()
    file.write_bytes(backup)
    with running(fleet) as (app, found, _), app.app_context():
        with pytest.raises(DatabaseBehind, match="fleet migrate"), found.use("a"):
            pass
        assert found.migrate().counts["applied"] == 1
    assert fleet.applied("a") == ["make_items", "add_price"]
    # Without a request too, where it is named, or all are looked at.
    for options in ("--only", "a"), ("--all",):
        file.write_bytes(backup)
        assert "1 migrated" in fleet.run("fleet", "migrate", *options).output
        assert fleet.applied("a") == ["make_items", "add_price"]


@pytest.mark.parametrize("strategy", ["full", "on_request", "progressive"])
def test_a_file_that_is_gone_is_not_made_anew(make_fleet: Callable[..., FleetProject], strategy: str) -> None:
    fleet = make_fleet("sqlite", "a", "b", strategy=strategy)
    fleet.write(V1)
    fleet.migrate()
    file = Path(str(fleet.url_of("a").database))
    for empty in (False, True):
        file.write_bytes(b"") if empty else file.unlink()
        with running(fleet) as (app, found, db):
            by_header(app, found, db)
            client = app.test_client()
            assert [client.get("/names", headers={"X-Tenant": "a"}).status_code for _ in range(2)] == [503, 503]
        fleet.write(V2)
        run = fleet.migrate()
        assert [one.name for one in run.failures] == ["a"]
        assert "The file of the tenant 'a' is not there any more" in str(run.failures[0].error)
        assert (file.exists(), empty and file.stat().st_size) == (empty, 0)
    file.unlink()
    with running(fleet) as (_, found, _db):
        found.create("a")
    assert fleet.applied("a") == ["make_items", "add_price"]


def test_who_is_no_tenant_any_more_is_not_served(make_fleet: Callable[..., FleetProject]) -> None:
    fleet = make_fleet("sqlite", "a", "b", "c")
    fleet.models = with_model
    fleet.write(V1)
    fleet.migrate()
    fleet.boot()
    with running(fleet) as (app, found, db):
        by_header(app, found, db)
        client = app.test_client()
        assert client.get("/names", headers={"X-Tenant": "a"}).status_code == 200
        fleet.names.remove("a")
        found.forget("a")
        assert client.get("/names", headers={"X-Tenant": "a"}).status_code == 404
        fleet.names.remove("b")  # which the ledger still has
        assert client.get("/names", headers={"X-Tenant": "b"}).status_code == 404
    assert set(fleet.ledger()) == {"b", "c"}


@pytest.mark.parametrize("url", ["postgresql+psycopg://anna:geheim@127.0.0.1:9/shop", "sqlite://u:geheim/x", 7, None])
def test_a_place_that_cannot_be_used_is_refused_and_not_told(
    make_fleet: Callable[..., FleetProject], caplog: pytest.LogCaptureFixture, url: Any
) -> None:
    def place(name: str) -> Any:
        return {"a": url}[name]

    fleet = make_fleet("sqlite", "a", "b", url=place, strategy="on_request")
    fleet.write(V1)
    fleet.boot()
    with running(fleet) as (app, found, db):
        by_header(app, found, db)
        client = app.test_client()
        assert [client.get("/names", headers={"X-Tenant": name}).status_code for name in "ab"] == [503, 503]
    assert not [word for word in ("geheim", "anna", "127.0.0.1:9", "/shop") if word in caplog.text]
    assert "cannot tell the URL of the tenant 'b': KeyError: 'b'" in caplog.text


def test_on_request_a_tenant_is_migrated_at_its_first_use(migrated: FleetProject) -> None:
    migrated.options["strategy"] = "on_request"
    migrated.write(V2)
    with running(migrated) as (app, found, db):
        by_header(app, found, db)
        assert app.test_client().get("/names", headers={"X-Tenant": "a"}).status_code == 200
    assert (migrated.applied("a"), migrated.applied("b")) == (["make_items", "add_price"], ["make_items"])
    run = migrated.migrate()
    assert (run.counts["up_to_date"], run.counts["applied"]) == (1, 2)


def test_requests_do_not_wait_for_ever_and_one_migrates(migrated: FleetProject) -> None:
    migrated.options.update(strategy="on_request", patience=0.2)
    migrated.write(WAITS)
    migrated.boot()  # so that no request waits in the database of the application itself
    with running(migrated) as (app, found, db):
        gate = app.extensions["gate"] = threading.Event()
        by_header(app, found, db)
        client = app.test_client()
        for _ in range(2):
            answer = client.get("/names", headers={"X-Tenant": "a"})
            assert (answer.status_code, "brought up to date" in answer.text) == (503, True)
            assert int(answer.headers["Retry-After"]) > 0
        assert client.get("/names").status_code == 200
        gate.set()
        with found.use("a"):  # waits for it
            assert names(db) == []
    assert migrated.applied("a") == ["make_items", "add_price", "waits"]


def test_progressive_serves_a_tenant_while_it_is_migrated(migrated: FleetProject) -> None:
    migrated.options["strategy"] = "progressive"
    migrated.write(WAITS)
    migrated.boot()  # so that no request waits in the database of the application itself
    with running(migrated) as (app, found, db):
        gate = app.extensions["gate"] = threading.Event()
        by_header(app, found, db)
        assert app.test_client().get("/names", headers={"X-Tenant": "a"}).json == []
        assert "waits" not in migrated.applied("a")
        gate.set()
    assert migrated.applied("a") == ["make_items", "add_price", "waits"]
    assert migrated.ledger()["a"] == ("applied", 0)


def test_a_tenant_that_cannot_be_migrated_is_refused_and_tried_again_later(migrated: FleetProject) -> None:
    migrated.options["strategy"] = "on_request"
    migrated.config["DB_SMART_BOOT"] = "off"
    migrated.write(V1 + "@migration\ndef fails(op):\n    raise ValueError('secret of the database')\n")
    with running(migrated) as (app, found, db):
        by_header(app, found, db)
        for _ in range(2):
            answer = app.test_client().get("/names", headers={"X-Tenant": "a"})
            assert (answer.status_code, "secret" in answer.text) == (503, False)
    assert migrated.ledger()["a"] == ("failed", 1)


def test_progressive_goes_on_to_serve_a_tenant_that_cannot_be_migrated(
    make_fleet: Callable[..., FleetProject],
) -> None:
    fleet = make_fleet("sqlite", "a", strategy="progressive")
    fleet.models = with_model
    fleet.write(V1)
    fleet.migrate()
    fleet.config["DB_SMART_BOOT"] = "off"
    fleet.write(V1 + "@migration\ndef fails(op):\n    raise ValueError\n")
    with running(fleet) as (app, found, db):
        by_header(app, found, db)
        client = app.test_client()
        assert client.get("/names", headers={"X-Tenant": "a"}).json == []
        found.close()  # until it has failed
        for _ in range(2):
            assert client.get("/names", headers={"X-Tenant": "a"}).json == []
    assert fleet.ledger()["a"] == ("failed", 1)


def test_a_tenant_that_was_restored_is_noticed_and_migrated(
    make_fleet: Callable[..., FleetProject], caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet("sqlite", "a", strategy="on_request")
    fleet.models = with_model
    fleet.write(V1)
    fleet.boot()
    fleet.migrate()
    fleet.write(V2)
    fleet.migrate()
    fleet.of("a", "DROP TABLE items")
    for table in ("history", "state", "progress", "objects"):
        fleet.of("a", f"DROP TABLE db_smart_{table}")
    with running(fleet) as (app, found, db), app.app_context(), found.use("a"):
        assert names(db) == []
    assert fleet.applied("a") == ["make_items", "add_price"]
    ((kept,),) = fleet.query("SELECT database_id FROM db_smart_fleet")
    assert fleet.of("a", "SELECT database_id FROM db_smart_state") == [(kept,)]
    assert "is another one than that which was migrated last" in caplog.text


def test_a_tenant_that_was_restored_gets_what_it_lacks(fleet: FleetProject) -> None:
    """Whoever uses it is told to run a command, which must do it then; and so must one that names it."""
    fleet.models = with_model
    fleet.config["DB_SMART_BOOT"] = "off"
    fleet.write(V1)
    fleet.migrate()
    fleet.write(V2)
    fleet.migrate()
    for name in "ab":
        fleet.of(name, "ALTER TABLE items DROP COLUMN price")
        fleet.of(name, "DELETE FROM db_smart_history WHERE name = 'add_price'")
        fleet.of(name, "UPDATE db_smart_state SET source = ''")
    with running(fleet) as (app, found, _), app.app_context():
        with pytest.raises(DatabaseBehind, match="fleet migrate"), found.use("a"):
            pass
        assert found.status()["up_to_date"] == 2
    assert (fleet.migrate().counts["applied"], fleet.applied("a")[-1]) == (1, "add_price")
    assert (fleet.migrate(only=["b"]).counts["applied"], fleet.applied("b")[-1]) == (1, "add_price")


def test_a_tenant_that_is_gone_is_unknown_though_the_ledger_knows_it(make_fleet: Callable[..., FleetProject]) -> None:
    fleet = make_fleet("sqlite", "a", "b")
    fleet.models = with_model
    fleet.config["DB_SMART_BOOT"] = "off"
    fleet.write(V1)
    fleet.migrate()
    fleet.names.remove("a")
    with running(fleet) as (app, found, db):
        by_header(app, found, db)
        codes = [app.test_client().get("/names", headers={"X-Tenant": name}).status_code for name in "ab"]
    assert (codes, set(fleet.ledger())) == ([404, 200], {"a", "b"})


def refusal(fleet: FleetProject) -> tuple[int, bool]:
    """The status that a request of a tenant gets, and whether it had to wait for long."""
    with running(fleet) as (app, found, db):
        by_header(app, found, db)
        began = time.monotonic()
        answer = app.test_client().get("/names", headers={"X-Tenant": "a"})
        return answer.status_code, time.monotonic() - began > 10


def test_a_request_does_not_wait_for_long_for_a_server_that_is_full(
    make_fleet: Callable[..., FleetProject], new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture
) -> None:
    with role(new_url("postgresql")) as url, ExitStack() as stack:
        fleet = make_fleet("sqlite", "a", url=lambda _: url, patience=0.2)
        fleet.config["DB_SMART_BOOT"] = "off"
        fleet.write(V1)
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with pytest.raises(sa.exc.OperationalError, match="slots are reserved|too many clients"):
            deque((stack.enter_context(engine.connect()) for _ in count()), 0)
        assert refusal(fleet) == (503, False)
    assert "Cannot connect to the database 'a'" in caplog.text


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_request_does_not_wait_for_long_for_a_ledger_that_is_locked(
    make_fleet: Callable[..., FleetProject], lock: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet("sqlite", "a", patience=0.2)
    fleet.config.update(DB_SMART_BOOT="off", SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}})
    fleet.write(V1)
    fleet.migrate()
    fleet.query("DELETE FROM db_smart_fleet")
    with closing(sqlite3.connect(str(make_url(fleet.url).database), isolation_level=None)) as other:
        other.execute(f"BEGIN {lock}")
        assert refusal(fleet) == (503, False)
    assert "the ledger of the fleet in the database 'default': database is locked" in caplog.text
