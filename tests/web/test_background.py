"""``DB_SMART_BOOT=background``: the process answers while a thread migrates."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import ConfigError, DbSmart, settings
from aurum_harmony.db_smart.boot import background
from aurum_harmony.db_smart.errors import Interrupted
from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.harness.serving import finished
from tests.samples import V1, WAITS

BROKEN = """
@migration
def broken(op):
    op.execute("SELECT secret FROM nowhere")
"""
READY = "/_db-smart/ready"
Make = Callable[..., Project]
NewUrl = Callable[[str], URL]


def asked(client: FlaskClient) -> dict[str, Any]:
    """What the probe for readiness says."""
    found: dict[str, Any] = client.get(READY).get_json()
    return found


def started(project: Project) -> tuple[Flask, DbSmart]:
    """The application, booted in the background."""
    app, smart = project.app(DB_SMART_BOOT="background")
    assert smart.boot(app).decision == "background"
    return app, smart


def test_requests_wait_until_it_is_done(project: Project, gate: Path) -> None:
    project.write(WAITS.format(gate=str(gate)))
    app, smart = started(project)
    client = app.test_client()
    wait_until(lambda: asked(client)["migration"] == "waits")
    ready = client.get(READY)
    assert ready.status_code == 503
    assert asked(client)["state"] == "migrating"
    assert ready.headers["Cache-Control"] == "no-store"
    response = client.get("/")
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    assert response.headers["Cache-Control"] == "no-store"
    assert response.get_json()["migration"] == "waits"
    assert response.get_json()["status"] == 503
    assert smart._state(app).seen.steps is None  # only pages show them, and ask more for them
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    wait_until(lambda: "0 of 1 migration applied" in client.get("/", headers=accept).text)
    page = client.get("/", headers=accept)
    assert page.status_code == 503
    assert page.mimetype == "text/html"
    assert "waits" in page.text
    assert 1 <= int(page.headers["Refresh"]) <= 3
    posted = client.post("/", headers={"Accept": "text/html"})
    assert "What you sent was not taken" in posted.text
    assert "Refresh" not in posted.headers
    assert client.get("/_db-smart/live").status_code == 200
    gate.touch()
    finished(app, smart)
    assert client.get("/").text == "served"
    ready = client.get(READY)
    assert (ready.status_code, asked(client)["state"]) == (200, "ready")
    assert smart._first_request not in app.before_request_funcs[None]
    assert project.tables() >= {"waited"}
    project.dispose(app)


def test_a_warm_boot_starts_no_thread(project: Project, gate: Path) -> None:
    gate.touch()
    project.write(WAITS.format(gate=str(gate)))
    project.boot()
    app, smart = project.app(DB_SMART_BOOT="background")
    assert smart.boot(app).decision == "skipped"
    assert smart._state(app).background is None
    assert app.test_client().get(READY).status_code == 200
    project.dispose(app)


def test_a_database_that_the_flag_did_not_know_is_migrated_behind(project: Project, gate: Path) -> None:
    """The first request finds it, and does not wait either."""
    gate.touch()
    project.write(WAITS.format(gate=str(gate)))
    project.boot()
    gate.unlink()
    project.query("UPDATE db_smart_state SET database_id = 'another', source = ''")
    project.query("DELETE FROM db_smart_history")
    app, smart = project.app(DB_SMART_BOOT="background")
    report = smart.boot(app)
    client = app.test_client()
    assert client.get("/").status_code == 503
    assert report.decision in ("skipped", "background")  # the file of SQLite tells it at once
    gate.touch()
    finished(app, smart)
    assert client.get("/").text == "served"
    project.dispose(app)


def test_a_failure_is_said_and_tried_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_PAUSES", (0.05, 0.1))
    project.write(BROKEN)
    app, smart = started(project)
    client = app.test_client()
    wait_until(lambda: asked(client)["state"] == "failed")
    response = client.get(READY)
    assert response.status_code == 503
    said = client.get("/", headers={"Accept": "text/html"}).text + client.get("/").text + response.text
    assert "nowhere" not in said
    assert "secret" not in said
    assert client.get("/").status_code == 503
    project.write("@migration\ndef broken(op): pass\n")  # as a new release, in a process of its own
    other, newer = started(project)
    finished(other, newer)
    assert other.test_client().get("/").text == "served"
    project.dispose(other)
    finished(app, smart)  # it has seen that another one has done it
    assert client.get("/").text == "served"
    project.dispose(app)


def test_what_failed_is_tried_again_and_may_succeed(sqlite_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project = sqlite_project
    monkeypatch.setattr(background, "_PAUSES", (0.05, 0.1))
    project.query("CREATE TABLE other (id INTEGER)")
    project.write("@migration\ndef fill(op): op.execute('INSERT INTO needed VALUES (1)')\n")
    app, smart = started(project)
    client = app.test_client()
    wait_until(lambda: asked(client)["state"] == "failed")
    project.query("CREATE TABLE needed (id INTEGER)")
    finished(app, smart)
    assert client.get("/").text == "served"
    assert project.query("SELECT id FROM needed") == [(1,)]
    project.dispose(app)


def test_a_probe_after_a_failure_does_not_try_again(sqlite_project: Project) -> None:
    """The run that fails removes the flag, which is no news from another process."""
    project = sqlite_project
    project.write(V1)
    project.boot()
    project.write(V1 + "@migration\ndef fill(op): op.execute('INSERT INTO needed VALUES (1)')\n")
    app, smart = started(project)
    thread = smart._state(app).background
    assert thread is not None
    wait_until(lambda: thread.failure is not None)
    assert not project.flag.exists()
    assert asked(app.test_client())["state"] == "failed"
    assert project.query("SELECT COUNT(*) FROM db_smart_history WHERE outcome = 'failed'") == [(1,)]
    project.query("CREATE TABLE needed (id INTEGER)")
    thread.woken.set()
    finished(app, smart)
    project.dispose(app)


def test_exempt_views_answer(project: Project, gate: Path) -> None:
    project.write(WAITS.format(gate=str(gate)))
    app, smart = project.app(DB_SMART_BOOT="background")
    app.add_url_rule("/up", view_func=smart.exempt(lambda: "up"), endpoint="up")
    smart.boot(app)
    assert app.test_client().get("/up").text == "up"
    gate.touch()
    finished(app, smart)
    project.dispose(app)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_one_of_several_migrates(make_project: Make, new_url: NewUrl, dialect: str, gate: Path) -> None:
    project = make_project(new_url(dialect))
    project.write(WAITS.format(gate=str(gate)))
    both = [started(project) for _ in range(2)]
    wait_until(lambda: all(asked(app.test_client())["migration"] == "waits" for app, _ in both))
    gate.touch()
    for app, smart in both:
        finished(app, smart)
        project.dispose(app)
    assert project.history() == [("waits", "applied")]


def test_a_database_in_memory_is_migrated_at_once(make_project: Make, gate: Path) -> None:
    gate.touch()
    project = make_project("sqlite://")
    project.write(WAITS.format(gate=str(gate)))
    app, smart = project.app(DB_SMART_BOOT="background")
    assert smart.boot(app).decision == "migrated"
    assert app.test_client().get("/").text == "served"
    project.dispose(app)


def test_our_routes_answer_before_the_hooks_of_the_application(project: Project, gate: Path) -> None:
    project.write(WAITS.format(gate=str(gate)))
    app, smart = project.app(DB_SMART_BOOT="background")

    @app.before_request
    def log_in() -> tuple[str, int]:
        return "log in first", 401

    smart.boot(app)
    assert app.test_client().get("/_db-smart/live").status_code == 200
    assert app.test_client().get(READY).status_code == 503
    gate.touch()
    finished(app, smart)
    assert app.test_client().get("/").status_code == 401
    assert app.test_client().get(READY).status_code == 200
    project.dispose(app)


def test_the_prefix(project: Project, gate: Path) -> None:
    gate.touch()
    project.write(WAITS.format(gate=str(gate)))
    app, smart = project.app(DB_SMART_URL_PREFIX="/ops/db/")
    smart.boot(app)
    assert app.test_client().get("/ops/db/live").status_code == 200
    assert app.test_client().get("/_db-smart/live").status_code == 404
    project.dispose(app)
    app, smart = project.app(DB_SMART_WEB=False)
    smart.boot(app)
    assert app.test_client().get("/_db-smart/live").status_code == 404
    project.dispose(app)
    app, smart = project.app()
    app.add_url_rule("/_db-smart/mine", "mine", lambda: "")
    with pytest.raises(ConfigError, match="The route '/_db-smart/mine' of the application lies below"):
        smart.boot(app)
    project.dispose(app)


def test_a_route_for_every_path_of_the_application(project: Project, gate: Path) -> None:
    """As pages of one file have it; ours go before it."""
    gate.touch()
    project.write(WAITS.format(gate=str(gate)))
    app, smart = project.app()
    app.add_url_rule("/<path:path>", "all", lambda path: f"all {path}")
    smart.boot(app)
    client = app.test_client()
    assert client.get("/elsewhere").text == "all elsewhere"
    assert client.get("/_db-smart/live").get_json() == {"state": "live"}
    assert client.get("/_db-smart/").status_code == 404
    assert client.get("/_db-smart/no/such/thing").status_code == 404
    project.dispose(app)


def test_no_thread_of_ours_remains(project: Project, gate: Path) -> None:
    gate.touch()
    project.write(WAITS.format(gate=str(gate)))
    app, smart = started(project)
    finished(app, smart)
    wait_until(lambda: not any(one.name == "db-smart-boot" for one in threading.enumerate()))
    project.dispose(app)


@pytest.fixture
def sent() -> Iterator[list[tuple[str, float, str]]]:
    """What this process sends to databases: by which thread, when, and what."""
    found: list[tuple[str, float, str]] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        found.append((threading.current_thread().name, time.monotonic(), statement))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


class Looks:
    """What is sent since a moment for whoever asks, and not by the threads that migrate."""

    def __init__(self, sent: list[tuple[str, float, str]]) -> None:
        self._sent = sent
        self._began = time.monotonic()

    def __iter__(self) -> Iterator[float]:
        ours = ("db-smart-boot", "db-smart-heartbeat", "db-smart-progress")
        return (when for thread, when, _ in list(self._sent) if thread not in ours and when > self._began)

    def until(self, number: int, ask: Callable[[], object]) -> int:
        """Ask until so much is sent, a minute at most; returns how much was sent by then."""
        while len(list(self)) < number and time.monotonic() < self._began + 60:
            ask()
        assert len(list(self)) >= number
        return len(list(self))

    @property
    def most(self) -> float:
        """How many there may be, with one a second."""
        return time.monotonic() - self._began + 1


def test_what_the_probe_asks(project: Project, gate: Path, sent: list[tuple[str, float, str]]) -> None:
    """One query a second while the process is not ready, however often it is asked; nothing once it is."""
    project.write(WAITS.format(gate=str(gate)))
    app, smart = started(project)
    client = app.test_client()
    wait_until(lambda: asked(client)["migration"] == "waits")
    looks = Looks(sent)
    answers: list[int] = []
    number = looks.until(3, lambda: answers.extend((client.get(READY).status_code, client.get("/").status_code)))
    assert number <= looks.most
    assert set(answers) == {503}
    assert len(answers) > 2 * number
    # A thread may begin late.
    assert all(later - earlier > 0.5 for earlier, later in pairwise(looks))
    gate.touch()
    finished(app, smart)
    sent.clear()
    assert [client.get(READY).status_code for _ in range(5)] == [200] * 5
    assert sent == []
    project.dispose(app)


BACKFILL = """
@migration
def items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("n", Integer))
    for number in range(1, 21):
        op.execute(f"INSERT INTO items (id) VALUES ({{number}})")

@migration
def fill(op):
    import pathlib
    op.backfill("items", {{"n": 1}}, where="n IS NULL", pause=lambda: not pathlib.Path({gate!r}).exists())
"""


def test_what_the_probe_asks_during_a_backfill(
    project: Project, gate: Path, sent: list[tuple[str, float, str]]
) -> None:
    """The holder of the lock and how far it is are one query."""
    project.write(BACKFILL.format(gate=str(gate)))
    app, smart = started(project)
    client = app.test_client()
    wait_until(lambda: asked(client)["progress"], seconds=20)
    assert asked(client)["migration"] == "fill"
    looks, units = Looks(sent), set()
    assert looks.until(3, lambda: units.add(client.get(READY).get_json()["progress"]["unit"])) <= looks.most
    assert units == {"rows"}
    gate.touch()
    finished(app, smart)
    project.dispose(app)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_what_the_probe_asks_of_several_databases(
    make_project: Make, new_url: NewUrl, dialect: str, gate: Path, sent: list[tuple[str, float, str]]
) -> None:
    """Together one query a second, also where one of them has no history yet."""
    binds = {"other": new_url(dialect), "third": new_url(dialect)}
    project = make_project(new_url(dialect), {"SQLALCHEMY_BINDS": binds})
    project.write(WAITS.format(gate=str(gate)))
    app, smart = started(project)
    client = app.test_client()
    wait_until(lambda: asked(client)["migration"] == "waits")
    looks, statuses = Looks(sent), set()
    # Where a database has no history yet, one look is several questions, and the next comes so much later.
    assert looks.until(6, lambda: statuses.add(client.get(READY).status_code)) <= looks.most + 4
    assert statuses == {503}
    gate.touch()
    finished(app, smart)
    project.dispose(app)


def test_a_run_is_interrupted_also_after_a_boot_in_the_background(sqlite_project: Project, gate: Path) -> None:
    """Whose handler of SIGTERM stays with the process."""
    project = sqlite_project
    gate.touch()
    project.write(WAITS.format(gate=str(gate)))
    app, smart = started(project)
    finished(app, smart)
    project.dispose(app)
    before = signal.getsignal(signal.SIGTERM)
    project.write("@migration\ndef ended(op):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGTERM)\n")
    with pytest.raises(Interrupted, match="SIGTERM while migrating"):
        project.boot()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("later", [False, True])
def test_another_host_is_ready_as_soon_as_its_probe_sees_it(
    project: Project,
    gate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    later: bool,
) -> None:
    """Its flag is another one, so that no flag tells it; and while a migration is left to the background, none does."""
    monkeypatch.setattr(settings, "_PATIENT_PAUSES", (600.0, 600.0))
    monkeypatch.setattr(settings, "_IDLE_PAUSES", (0.05, 0.1))
    caplog.set_level("INFO")
    done = tmp_path / "done"
    left = WAITS.format(gate=str(done)).replace("@migration", "@migration(background=True)").replace("waits(", "later(")
    project.write(WAITS.format(gate=str(gate)) + (left.replace("waited", "late") if later else ""))
    hosts = []
    for number in range(2):
        app, smart = project.app(DB_SMART_BOOT="background", DB_SMART_FLAG=str(tmp_path / f"flag-{number}"))
        smart.boot(app)
        hosts.append((app, smart))
        wait_until(lambda app=app: asked(app.test_client())["migration"] == "waits")  # type: ignore[misc]
    wait_until(lambda: "which migrates 'default'" in caplog.text)
    gate.touch()
    for app, _ in hosts:
        wait_until(lambda app=app: app.test_client().get(READY).status_code == 200, seconds=10)  # type: ignore[misc]
        assert app.test_client().get("/").text == "served"
    assert project.history() == [("waits", "applied")]
    done.touch()
    for app, smart in hosts:
        state = smart._state(app)
        wait_until(lambda state=state: state.later is None or state.later.done)  # type: ignore[misc]
        project.dispose(app)
    assert project.history() == [("waits", "applied"), *([("later", "applied")] if later else [])]
