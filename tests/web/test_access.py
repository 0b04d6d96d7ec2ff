"""Who may see the pages: this machine while debugging, or who has the token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import TestResponse

from aurum_harmony.db_smart.web import access
from tests.harness.project import Project
from tests.samples import V1

PAGE = "/_db-smart/"
TOKEN = "correct horse battery staple"
HTML = {"Accept": "text/html"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def app(sqlite_project: Project) -> Iterator[Flask]:
    """A booted application."""
    sqlite_project.write(V1)
    app, smart = sqlite_project.app()
    smart.boot(app)
    yield app
    sqlite_project.dispose(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def asked(app: Flask, *, peer: str = "127.0.0.1", host: str = "localhost:5000", **headers: str) -> TestResponse:
    """The page, asked for by a peer."""
    more: dict[str, Any] = {"environ_overrides": {"REMOTE_ADDR": peer, "HTTP_HOST": host}}
    return app.test_client(use_cookies=False).get(PAGE, headers=headers, **more)


def test_nobody_sees_it_in_production(app: Flask) -> None:
    assert asked(app).status_code == 404
    assert asked(app, **bearer("")).status_code == 404
    assert app.test_client().post(PAGE, data={"token": ""}).status_code == 404


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:5000", "127.0.0.1:80", "[::1]:5000"])
def test_this_machine_sees_it_while_debugging(app: Flask, peer: str, host: str) -> None:
    app.debug = True
    response = asked(app, peer=peer, host=host)
    assert response.status_code == 200
    assert "make_items" in response.text


@pytest.mark.parametrize("peer", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", "", "localhost"])
def test_another_machine_does_not(app: Flask, peer: str) -> None:
    app.debug = True
    assert asked(app, peer=peer).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "evil@localhost", ""])
def test_another_name_of_this_machine_does_not(app: Flask, host: str) -> None:
    """A foreign page can have its own name lead to this machine, and then read what it shows."""
    app.debug = True
    assert asked(app, host=host).status_code == 404


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via", "X-Forwarded-Host"])
def test_what_came_by_a_proxy_does_not(app: Flask, header: str) -> None:
    app.debug = True
    assert asked(app, **{header: "127.0.0.1"}).status_code == 404


def test_proxy_fix_does_not_change_who_asks(app: Flask) -> None:
    app.debug = True
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_host=1)  # type: ignore[method-assign]
    forged = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"}
    assert asked(app, peer="192.0.2.1", host="shop.example", **forged).status_code == 404
    assert asked(app).status_code == 200


def test_a_token_in_the_header(app: Flask) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    response = asked(app, peer="192.0.2.1", host="shop.example", **bearer(TOKEN))
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    refused = asked(app)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert "make_items" not in refused.text
    assert asked(app, **bearer(TOKEN[:-1])).status_code == 401
    assert asked(app, Authorization=f"Basic {TOKEN}").status_code == 401


def test_a_token_that_is_not_ascii(app: Flask, client: FlaskClient) -> None:
    token = "zażółć gęślą jaźń"
    app.config["DB_SMART_TOKEN"] = token
    given = f"Bearer {token}".encode().decode("latin-1")
    assert client.get(PAGE, environ_overrides={"HTTP_AUTHORIZATION": given}).status_code == 200
    assert client.post(PAGE, data={"token": token}).status_code == 303


def test_a_token_that_cannot_be_used_opens_nothing(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    app.config["DB_SMART_TOKEN"] = "short"
    assert asked(app, **bearer("short")).status_code == 404
    assert "DB_SMART_TOKEN must be a text of at least 16 characters" in caplog.text


def test_the_form(app: Flask, client: FlaskClient) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    form = client.get(PAGE, headers=HTML)
    assert form.status_code == 401
    assert "<form" in form.text
    wrong = client.post(PAGE, data={"token": "wrong"}, headers=HTML)
    assert wrong.status_code == 401
    assert "This is not the token" in wrong.text
    assert "Set-Cookie" not in wrong.headers
    right = client.post(PAGE, data={"token": TOKEN}, headers=HTML)
    assert (right.status_code, right.headers["Location"]) == (303, PAGE)
    cookie = right.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert client.get(PAGE).status_code == 200


def test_the_cookie_over_https(app: Flask, client: FlaskClient) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    right = client.post(PAGE, data={"token": TOKEN}, base_url="https://shop.example")
    assert "Secure" in right.headers["Set-Cookie"]


def test_the_cookie_is_good_in_every_process_until_the_token_changes(
    app: Flask, client: FlaskClient, sqlite_project: Project
) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    value = client.post(PAGE, data={"token": TOKEN}).headers["Set-Cookie"].partition(";")[0]
    other, smart = sqlite_project.app(DB_SMART_TOKEN=TOKEN)
    smart.boot(other)
    assert asked(other, Cookie=value).status_code == 200
    other.config["DB_SMART_TOKEN"] = f"{TOKEN}!"
    assert asked(other, Cookie=value).status_code == 401
    sqlite_project.dispose(other)


def test_the_cookie_ends(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    client.post(PAGE, data={"token": TOKEN})
    monkeypatch.setattr(access, "_COOKIE_SECONDS", -1)
    assert client.get(PAGE).status_code == 401


def test_five_wrong_tokens_a_minute(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    signed_in = app.test_client()
    signed_in.post(PAGE, data={"token": TOKEN})
    for _ in range(3):
        assert client.post(PAGE, data={"token": "wrong"}).status_code == 401
    for _ in range(2):
        assert asked(app, **bearer("wrong")).status_code == 401
    locked = client.post(PAGE, data={"token": TOKEN}, headers=HTML)
    assert locked.status_code == 429
    assert 1 <= int(locked.headers["Retry-After"]) <= 61
    assert "Too many wrong tokens" in locked.text
    assert asked(app, **bearer(TOKEN)).status_code == 429
    assert signed_in.get(PAGE).status_code == 200  # a cookie cannot be guessed
    monkeypatch.setattr(access, "_WINDOW", 0.0)
    assert asked(app, **bearer(TOKEN)).status_code == 200


@pytest.mark.parametrize("content", [b"", b"token=" + b"x" * 9000])
def test_a_form_of_another_size_is_not_read(app: Flask, client: FlaskClient, content: bytes) -> None:
    app.config["DB_SMART_TOKEN"] = TOKEN
    answer = client.post(PAGE, data=content, content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 400


BROKEN = """
@migration
def broken(op):
    op.execute("SELECT secret FROM nowhere")
"""


def test_the_cause_of_a_failure_is_for_those_alone(sqlite_project: Project) -> None:
    sqlite_project.write(BROKEN)
    app, _ = sqlite_project.app(DB_SMART_TOKEN=TOKEN)
    client = app.test_client()

    def said(**headers: str) -> str:
        return client.get("/", headers=headers).text + client.get("/", headers={**HTML, **headers}).text

    assert "nowhere" not in said()
    assert said(**bearer(TOKEN)).count("nowhere") >= 2
    for number in range(8):
        assert "nowhere" not in said(**bearer(f"a user's own {number}"))
    # The tokens of the application's own users lock nobody out of the pages.
    assert client.get(PAGE, headers=bearer(TOKEN)).status_code == 200
    assert client.post(PAGE, data={"token": TOKEN}).status_code == 303
    assert "nowhere" in said()  # by the cookie
    sqlite_project.dispose(app)
