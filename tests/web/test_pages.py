"""The page that shows all databases, and that of a database that is behind, with its button."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, Response
from flask.testing import FlaskClient
from jinja2 import StrictUndefined
from sqlalchemy.engine import URL
from werkzeug.test import TestResponse

from aurum_harmony.db_smart import DatabaseBehind, DbSmart
from aurum_harmony.db_smart.schema.progress import Progress
from aurum_harmony.db_smart.store.tables import history
from aurum_harmony.db_smart.web import overview
from aurum_harmony.db_smart.web.answers import refused
from aurum_harmony.db_smart.web.readiness import Readiness, Steps
from tests.harness.alembic_project import AlembicProject
from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.samples import V1, V2, WAITS

PAGE, RUN = "/_db-smart/", "/_db-smart/run"
HTML = {"Accept": "text/html"}
#: What a browser says of a form that stands on the page itself.
SAME = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", **HTML}
FAILING = """
@migration
def failing(op):
    op.create_table("kept", Column("id", Integer, primary_key=True))
    op.execute("INSERT INTO nowhere VALUES (1)")
"""
COUNTED = """
@migration
def counted(op):
    import pathlib, time
    with open({path!r}, "a") as file:
        file.write("x")
    time.sleep(0.3)
    op.create_table("items", Column("id", Integer, primary_key=True))
"""
Make = Callable[..., Project]
NewUrl = Callable[[str], URL]


@contextmanager
def debugged(project: Project, **config: Any) -> Iterator[tuple[Flask, DbSmart]]:
    """An application in debug mode, as one that is served."""
    app, smart = project.app(**config)
    app.debug = True
    smart.boot(app)
    yield app, smart
    project.dispose(app)


@contextmanager
def checked(project: Project, **config: Any) -> Iterator[FlaskClient]:
    """A browser's requests to an application in debug mode that only checks."""
    with debugged(project, DB_SMART_BOOT="check", **config) as (app, _):
        app.add_url_rule("/kept", "kept", lambda: "a page", methods=["GET", "POST"])
        yield app.test_client()


def token_of(page: TestResponse) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return unescape(found[1])


def policy(page: TestResponse) -> str:
    return page.headers["Content-Security-Policy"]


# -- all databases


def test_what_it_shows(project: Project) -> None:
    project.write(V1)
    project.boot(DB_SMART_RELEASE="1.2.3")
    project.write(V2)
    with debugged(project, DB_SMART_BOOT="check") as (app, _):
        response = app.test_client().get(PAGE)
        text = response.text
    assert response.status_code == 200
    for words in ("make_items", "add_price", "Pending", "release 1.2.3", "Took", '<rect class="applied"', ">pending<"):
        assert words in text
    assert "unsafe-inline" not in policy(response)
    assert "default-src 'none'" in policy(response)
    assert not re.search(r'<script|\son\w+=|\sstyle="|(?:src|href)="(?:http|//)', text)


def test_drift_failures_and_snapshots(sqlite_project: Project) -> None:
    project = sqlite_project
    project.write(V1)
    project.boot()
    project.write(V2 + "\n@migration\ndef broken(op): op.execute('INSERT INTO nowhere VALUES (1)')\n")
    assert project.run("migrate").exit_code == 1
    project.write(V2)

    def models(db: Any) -> None:
        db.Table(
            "items",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(50)),
            sa.Column("colour", sa.String(10)),
        )

    project.models = models
    with debugged(project) as (app, _):
        text = app.test_client().get(PAGE).text
    assert "items.colour" in text
    assert "Snapshots" in text
    assert "nowhere" in text
    assert '<rect class="failed"' in text


def test_ten_thousand_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "_PATIENCE", 60.0)  # of a machine that has much else to do
    project.write(V1)
    project.boot()
    row = project.query("SELECT checksum, applied_at, applied_by FROM db_smart_history")[0]
    values = dict(zip(("checksum", "applied_at", "applied_by"), row, strict=True))
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        names = [
            {"name": f"old_{number}", "duration_ms": number / 10, "outcome": "applied"} for number in range(10_000)
        ]
        connection.execute(history.insert(), [{**values, **one} for one in names])
    with debugged(project, DB_SMART_BOOT="off") as (app, _):
        client = app.test_client()
        first = client.get(PAGE).text
        assert first.count("<rect") == 50
        older = re.findall(r'href="([^"]+)">Older runs', first)
        assert len(older) == 1
        second = client.get(PAGE + unescape(older[0]).partition("#")[0]).text
        last = client.get(f"{PAGE}?database=default&page=201").text
        assert client.get(f"{PAGE}?database=default&page=x").status_code == 200
        assert client.get(f"{PAGE}?database=default&page={'9' * 30}").status_code == 200
    assert "<strong>old_9999</strong>" in first
    assert "<strong>old_9950</strong>" in first
    assert "<strong>old_9949</strong>" in second
    assert "Newer runs" in second
    assert "<strong>make_items</strong>" in last
    assert "Older runs" not in last


def test_a_run_that_is_under_way(project: Project, gate: Path) -> None:
    project.write(V1 + WAITS.format(gate=str(gate)))
    with debugged(project, DB_SMART_BOOT="background") as (app, smart):
        client = app.test_client()
        try:
            wait_until(lambda: "Migrating now</strong>: waits" in client.get(PAGE).text)
            response = client.get(PAGE)
            assert response.headers["Refresh"] == "5"
            assert f":{os.getpid()}, since" in response.text
            still = client.get(f"{PAGE}?still=1")
            assert "Refresh" not in still.headers
        finally:
            gate.touch()
        background = smart._state(app).background
        assert background is not None
        wait_until(lambda: background.done)
        assert "Refresh" not in client.get(PAGE).headers


def test_what_is_said_of_a_backfill(sqlite_project: Project) -> None:
    app, _ = sqlite_project.app()
    found = Progress("fill<b>", 1_500_000, 6_000_000, 500.0)
    steps = Steps([(f"done_{number}", 90.0) for number in range(7)], ["fill<b>", "last"])
    with app.test_request_context(headers=HTML):
        text = refused(app, Readiness("migrating", "fill<b>", found, steps=steps)).get_data(as_text=True)
    for words in ("1,500,000 of ~6,000,000 rows", "about 2 h left", "7 of 9 migrations applied", "done_6"):
        assert words in text
    with app.test_request_context(headers=HTML):
        found = Progress("index", 0, 0, 0.0, "blocks", "waiting for old snapshots")
        text_without = refused(app, Readiness("migrating", "index", found)).get_data(as_text=True)
    assert "waiting for old snapshots" in text_without
    assert "<progress" not in text_without
    assert "2 before these" in text
    assert "done_1<" not in text
    assert "<b>" not in text


def test_a_silent_server_does_not_stop_the_page(make_project: Make, new_url: NewUrl) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(20)  # it takes connections, and never says a word
        url = f"postgresql+psycopg://nobody:hidden@127.0.0.1:{silent.getsockname()[1]}/none"
        project = make_project(new_url("sqlite"), {"SQLALCHEMY_BINDS": {"other": url}})
        project.write(V1 + "\n@migration(database='other')\ndef elsewhere(op): pass\n")
        with debugged(project, DB_SMART_BOOT="off") as (app, _):
            for _ in range(6):
                started = time.monotonic()
                response = app.test_client().get(PAGE)
                assert time.monotonic() - started < 6
                assert response.status_code == 200
            named = [one.name for one in threading.enumerate()]
    assert named.count("db-smart-question") <= 4
    assert "does not answer" in response.text
    assert "unreachable" in response.text
    assert "hidden" not in response.text
    assert "make_items" in response.text


def test_a_database_that_refuses_is_said(make_project: Make) -> None:
    project = make_project("postgresql+psycopg://nobody:hidden@127.0.0.1:1/none")
    project.write(V1)
    with debugged(project, DB_SMART_BOOT="off") as (app, _):
        response = app.test_client().get(PAGE)
    assert response.status_code == 200
    assert "Cannot connect to the database" in unescape(response.text)
    assert "hidden" not in response.text


def test_migrations_that_cannot_be_loaded_are_said(sqlite_project: Project) -> None:
    sqlite_project.write("def (:\n")
    with debugged(sqlite_project, DB_SMART_BOOT="off") as (app, _):
        response = app.test_client().get(PAGE)
    assert response.status_code == 200
    assert "cannot be imported" in response.text


def test_names_are_escaped(sqlite_project: Project) -> None:
    """Also where the application has turned escaping off for its own templates."""
    project, evil = sqlite_project, "<script>alert(1)</script>"
    project.write(V1)
    project.boot()
    columns = "name, checksum, applied_at, duration_ms, applied_by, outcome, error"
    values = f"'{evil}', checksum, applied_at, 1, '{evil}', 'failed', '{evil}'"
    project.query(f"INSERT INTO db_smart_history ({columns}) SELECT {values} FROM db_smart_history")
    with debugged(project) as (app, _):
        app.select_jinja_autoescape = lambda _: False  # type: ignore[assignment,method-assign]
        text = app.test_client().get(PAGE).text
    assert evil not in text
    assert text.count("&lt;script&gt;") >= 3
    assert '<span class="state good">up-to-date</span>' in text


def test_a_template_of_the_application(sqlite_project: Project) -> None:
    folder = sqlite_project.directory / "templates" / "db_smart"
    folder.mkdir(parents=True)
    (folder / "token.html").write_text('{% extends "db_smart/base.html" %}{% block main %}Ask Ada.{% endblock %}')
    (folder / "style.css").write_text("body { color: teal }")
    sqlite_project.write(V1)
    app, smart = sqlite_project.app(DB_SMART_TOKEN="x" * 20)
    app.template_folder = str(folder.parent)
    smart.boot(app)
    response = app.test_client().get(PAGE, headers=HTML)
    assert "Ask Ada." in response.text
    assert "<style>body { color: teal }</style>" in response.text
    assert "'sha256-" in policy(response)
    sqlite_project.dispose(app)


def test_an_application_with_a_syntax_of_its_own(sqlite_project: Project) -> None:
    """As those have that fill in their pages in the browser."""
    sqlite_project.write(V1)
    app, smart = sqlite_project.app()
    app.debug = True
    app.jinja_options = {"variable_start_string": "[[", "variable_end_string": "]]", "undefined": StrictUndefined}
    smart.boot(app)
    text = app.test_client().get(PAGE).text
    assert "<title>Database migrations</title>" in text
    assert "{{" not in text
    sqlite_project.dispose(app)


# -- a database that is behind


def test_a_request_is_offered_to_run_what_is_pending(project: Project) -> None:
    project.write(V1)
    project.boot()
    project.write(V2)
    with checked(project) as client:
        page = client.get("/kept?a=1&b=%2F", headers=HTML)
        assert page.status_code == 503
        assert "add_price" in page.text
        assert "ALTER TABLE items ADD" in page.text
        assert "price" not in project.columns("items")
        assert "unsafe-inline" not in policy(page)
        plain = client.get("/kept")
        assert plain.content_type == "application/problem+json"
        assert "csrf" not in plain.text
        done = client.post(RUN, data={"csrf": token_of(page)}, headers=SAME)
        assert (done.status_code, done.headers["Location"]) == (303, "/kept?a=1&b=%2F")
        assert "price" in project.columns("items")
        assert client.get("/kept").text == "a page"
        again = client.post(RUN, data={"csrf": token_of(page)}, headers=SAME)
        assert again.status_code == 303
    assert [name for name, _ in project.history()] == ["make_items", "add_price"]


def test_the_first_run_on_a_new_database(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        page = client.get("/", headers=HTML)
        assert "CREATE TABLE items" in page.text
        assert not Path(str(sa.make_url(sqlite_project.url).database)).exists()
        assert client.post(RUN, data={"csrf": token_of(page)}, headers=SAME).headers["Location"] == "/"
        assert client.get("/").text == "served"


def test_two_clicks_run_it_once(project: Project, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    project.write(COUNTED.format(path=str(ran)))
    with checked(project) as client:
        page = client.get("/", headers=HTML)
        ran.unlink()  # the dry run calls the migration too
        cookie = page.headers["Set-Cookie"].partition(";")[0]
        answers: list[int] = []

        def click() -> None:
            found = client.application.test_client(use_cookies=False).post(
                RUN, data={"csrf": token_of(page)}, headers={**SAME, "Cookie": cookie}
            )
            answers.append(found.status_code)

        threads = [threading.Thread(target=click) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [303, 303, 303]
    assert ran.read_text() == "x"
    assert project.history() == [("counted", "applied")]


def test_each_of_several_pages_has_a_button_that_works(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        first = client.get("/kept", headers=HTML)
        client.get("/", headers=HTML)
        done = client.post(RUN, data={"csrf": token_of(first)}, headers=SAME)
        assert (done.status_code, done.headers["Location"]) == (303, "/kept")


def test_a_failure_is_shown(project: Project) -> None:
    project.write(FAILING)
    with checked(project) as client:
        page = client.get("/kept", headers=HTML)
        failed = client.post(RUN, data={"csrf": token_of(page)}, headers=SAME)
        assert failed.status_code == 500
        assert "It failed." in failed.text
        assert "nowhere" in failed.text
        assert client.get("/kept").status_code == 503
        project.query("CREATE TABLE nowhere (id INTEGER)")
        done = client.post(RUN, data={"csrf": token_of(failed)}, headers=SAME)
        assert (done.status_code, done.headers["Location"]) == (303, "/kept")
        assert client.get("/kept").text == "a page"


@pytest.mark.parametrize(
    "change",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": None, "Sec-Fetch-Site": None},
        {"path": f"{RUN}?name=x"},
        {"data": {"csrf": "{csrf}", "name": "x"}},
        {"data": {"csrf": ["{csrf}", "{csrf}"]}},
        {"data": {}},
        {"data": {"csrf": "forged"}},
        {"data": {"csrf": "{csrf}x"}},
        {"cookie": "another"},
        {"cookie": None},
    ],
)
def test_a_request_that_does_not_come_from_the_page(sqlite_project: Project, change: dict[str, Any]) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        page = client.get("/", headers=HTML)
        csrf = token_of(page)
        headers = {**SAME, **{name: one for name, one in change.items() if name[0].isupper()}}
        data = change.get("data", {"csrf": csrf})
        data = {
            name: [part.format(csrf=csrf) for part in ([one] if isinstance(one, str) else one)]
            for name, one in data.items()
        }
        if "cookie" in change:
            client.delete_cookie("db_smart_run")
            if change["cookie"] is not None:
                client.set_cookie("db_smart_run", change["cookie"])
        sent = {name: value for name, value in headers.items() if value is not None}
        answer = client.post(change.get("path", RUN), data=data, headers=sent)
        assert answer.status_code == 403
        assert "Nothing was changed" in answer.text
        assert client.get(RUN).status_code == 404
    assert sqlite_project.run("status", "--check").exit_code == 1


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_HOST": "evil.example", "HTTP_ORIGIN": "http://evil.example"},
    ],
)
def test_a_request_from_elsewhere_is_offered_nothing(sqlite_project: Project, environ: dict[str, str]) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        csrf = token_of(client.get("/", headers=HTML))
        page = client.get("/", headers=HTML, environ_overrides=environ)
        assert page.status_code == 503
        assert "csrf" not in page.text
        assert "CREATE TABLE" not in page.text
        answer = client.post(RUN, data={"csrf": csrf}, headers=SAME, environ_overrides=environ)
        assert answer.status_code == 404
    assert sqlite_project.run("status", "--check").exit_code == 1


def test_the_button_is_not_there_in_production(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        csrf = token_of(client.get("/", headers=HTML))
        client.application.debug = False
        assert client.post(RUN, data={"csrf": csrf}, headers=SAME).status_code == 404
        client.application.debug = True
        client.application.config["DB_SMART_BOOT"] = "migrate"
        assert client.post(RUN, data={"csrf": csrf}, headers=SAME).status_code == 404
    app, smart = sqlite_project.app(DB_SMART_BOOT="check")
    with pytest.raises(DatabaseBehind):
        smart.boot(app)
    sqlite_project.dispose(app)


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "///evil.example"])
def test_it_goes_back_to_this_application_alone(sqlite_project: Project, path: str) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        page = client.get("/", headers=HTML, environ_overrides={"PATH_INFO": path})
        done = client.post(RUN, data={"csrf": token_of(page)}, headers=SAME)
    assert done.status_code == 303
    assert re.match(r"/(?![/\\])", done.headers["Location"])


def test_what_was_sent_is_not_sent_again(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        page = client.post("/kept", data={"order": "1"}, headers=HTML)
        assert page.status_code == 503
        assert client.post(RUN, data={"csrf": token_of(page)}, headers=SAME).headers["Location"] == "/"


def test_below_another_application(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:
        mounted: Any = {"environ_overrides": {"SCRIPT_NAME": "/shop"}}
        page = client.get("/kept", headers=HTML, **mounted)
        assert 'action="/shop/_db-smart/run"' in page.text
        cookie = page.headers["Set-Cookie"]
        assert "Path=/shop;" in f"{cookie};"
        headers = {**SAME, "Cookie": cookie.partition(";")[0]}
        done = client.application.test_client(use_cookies=False).post(
            RUN, data={"csrf": token_of(page)}, headers=headers, **mounted
        )
        assert done.headers["Location"] == "/shop/kept"


def test_revisions_of_alembic(make_alembic: Callable[..., AlembicProject], sqlite_url: URL) -> None:
    project = make_alembic(sqlite_url)
    project.revision("0001", upgrade='op.create_table("items", sa.Column("id", sa.Integer(), primary_key=True))')
    with checked(project) as client:
        page = client.get("/", headers=HTML)
        assert "CREATE TABLE items" in page.text
        assert client.post(RUN, data={"csrf": token_of(page)}, headers=SAME).status_code == 303
        assert client.get("/").text == "served"
    assert "items" in project.tables()


def test_hooks_of_the_application_do_not_stop_the_button(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    with checked(sqlite_project) as client:

        @client.application.before_request
        def log_in() -> Response:
            return Response("log in first", 401)

        page = client.get("/kept", headers=HTML)
        assert client.post(RUN, data={"csrf": token_of(page)}, headers=SAME).status_code == 303
        assert client.get("/kept").status_code == 401
