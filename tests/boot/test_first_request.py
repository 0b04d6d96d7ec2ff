"""The first request of a process: makes sure of boot, asks the database once, and costs nothing afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.signals import migration_started
from tests.harness.project import Project
from tests.samples import V1, V2


def hooked(app: Flask, smart: DbSmart) -> bool:
    """Whether requests still pass the hook."""
    return smart._first_request in app.before_request_funcs[None]


def count_queries(app: Flask) -> list[str]:
    """Collects the statements that the application's own engine sends."""
    sent: list[str] = []
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine

    @sa.event.listens_for(engine, "before_cursor_execute")
    def listen(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    return sent


def test_a_trusted_flag_is_checked_by_one_query_and_then_never_again(project: Project) -> None:
    project.write(V1)
    project.boot()
    app, smart = project.app()
    assert smart.boot(app).decision == "skipped"
    sent = count_queries(app)
    client = app.test_client()
    assert client.get("/").text == "served"
    assert len(sent) == 1
    assert "db_smart_state" in sent[0]
    assert not hooked(app, smart)
    for _ in range(3):
        assert client.get("/").text == "served"
    assert len(sent) == 1
    project.dispose(app)


def test_what_boot_asked_itself_is_not_asked_again(project: Project) -> None:
    project.write(V1)
    app, smart = project.app()
    assert smart.boot(app).decision == "migrated"
    sent = count_queries(app)
    app.test_client().get("/")
    assert sent == []
    assert not hooked(app, smart)
    project.dispose(app)


def restore_older(project: Project) -> None:
    """What a restored backup looks like: nothing of the last migrations is there, and the server is the same."""
    for table in ("items", "db_smart_history", "db_smart_progress", "db_smart_state", "db_smart_objects"):
        project.query(f"DROP TABLE {table}")


@pytest.fixture(params=["postgresql", "mariadb"])
def server_project(
    request: pytest.FixtureRequest, make_project: Callable[..., Project], new_url: Callable[[str], Any]
) -> Project:
    return make_project(new_url(request.param))


def test_a_restored_database_is_migrated_before_the_request_is_served(server_project: Project) -> None:
    server_project.write(V2)
    server_project.boot()
    restore_older(server_project)
    app, smart = server_project.app()
    assert smart.boot(app).decision == "skipped"
    assert app.test_client().get("/").status_code == 200
    assert server_project.history() == [("make_items", "applied"), ("add_price", "applied")]
    assert "price" in server_project.columns("items")
    server_project.dispose(app)
    assert server_project.boot().decision == "skipped"


def test_in_check_mode_it_gets_503_with_the_reason_until_somebody_migrates(server_project: Project) -> None:
    server_project.write(V2)
    server_project.boot()
    restore_older(server_project)
    app, smart = server_project.app(DB_SMART_BOOT="check")
    app.add_url_rule("/alive", view_func=smart.exempt(lambda: "alive"), endpoint="alive")
    assert smart.boot(app).decision == "skipped"
    client = app.test_client()
    response = client.get("/")
    assert response.status_code == 503
    assert "make_items" in response.text
    assert "has no history" in response.text
    assert response.headers["Retry-After"] == "1"
    assert client.get("/alive").text == "alive"
    assert server_project.tables() == set()
    server_project.run("migrate")
    app.extensions["db_smart"]._states[app].refused_until = 0.0  # what a second of waiting does
    assert client.get("/").text == "served"
    assert not hooked(app, smart)
    server_project.dispose(app)


def test_another_database_behind_the_same_name_is_noticed(server_project: Project) -> None:
    server_project.write(V1)
    server_project.boot()
    server_project.query("UPDATE db_smart_state SET database_id = 'another'")
    app, smart = server_project.app()
    smart.boot(app)
    assert app.test_client().get("/").status_code == 200
    assert "another" in server_project.flag.read_text()
    server_project.dispose(app)


def test_without_boot_the_first_request_boots(project: Project) -> None:
    project.write(V1)
    app, _ = project.app()
    assert app.test_client().get("/").text == "served"
    assert project.history() == [("make_items", "applied")]
    project.dispose(app)


def test_boot_switched_off_is_off_for_requests_too(project: Project) -> None:
    project.write(V1)
    app, smart = project.app(DB_SMART_BOOT="off")
    smart.boot(app)
    assert app.test_client().get("/").text == "served"
    assert project.tables() == set()
    project.dispose(app)


def test_a_failing_migration_gives_503_without_its_details_and_is_tried_again(project: Project) -> None:
    project.write("@migration\ndef bad(op): op.execute('SELECT secret FROM nowhere')\n")
    app, smart = project.app()
    client = app.test_client()
    response = client.get("/")
    assert response.status_code == 503
    assert "secret" not in response.text
    assert client.get("/").status_code == 503
    assert project.history() == [("bad", "failed")]  # not tried at every request
    assert hooked(app, smart)
    project.dispose(app)


def test_first_requests_on_many_threads_migrate_once_and_no_hook_is_skipped(project: Project) -> None:
    project.write(V2)
    app, smart = project.app()
    passed = []
    started = []
    app.before_request(lambda: passed.append(threading.get_ident()))
    barrier = threading.Barrier(16)

    def get(_: int) -> str:
        client = app.test_client()
        barrier.wait()
        return client.get("/").text

    with (
        migration_started.connected_to(lambda _, migration, **__: started.append(migration), sender=app),
        ThreadPoolExecutor(16) as pool,
    ):
        assert set(pool.map(get, range(16))) == {"served"}
    assert len(passed) == 16
    assert started == ["make_items", "add_price"]
    assert not hooked(app, smart)
    project.dispose(app)
