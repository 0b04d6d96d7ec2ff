"""The pages in a browser: what people see, and what they can do there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from flask import Flask, request
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from aurum_harmony.db_smart import DbSmart
from tests.harness.browser import faults, look, served
from tests.harness.processes import ROOT
from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.samples import V1, V2

T = TypeVar("T")
TOKEN = "correct horse battery staple"
PAGE = "/_db-smart/"
#: Its name is as bad as a name can be, as is what it says of itself.
EVIL = """
def add_weight(op):
    "<script>document.title = 'run'</script>"
    op.add_column("items", Column("weight", Float, comment="<script>document.title = 'run'</script>"))

add_weight.__name__ = "<script>document.title='run'</script>"
migration(add_weight)
"""
WAITING = """
@migration
def add_price(op):
    op.add_column("items", Column("price", Float))

@migration
def fill(op):
    import pathlib, time
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)

@migration
def add_stock(op):
    op.add_column("items", Column("stock", Integer))
"""


@contextmanager
def opened(project: Project, *, debug: bool = True, **config: Any) -> Iterator[tuple[str, Flask, DbSmart]]:
    """The address of an application, which serves from the boot on."""
    app, smart = project.app(**config)
    app.debug = debug
    posts: list[str] = app.extensions.setdefault("posts", [])

    def kept() -> str:
        if request.method == "POST":
            posts.append(request.form["order"])
        return "<title>Kept</title><h1>Kept</h1>"

    app.add_url_rule("/kept", "kept", kept, methods=["GET", "POST"])
    smart.boot(app)
    with served(app) as address:
        yield address, app, smart
    project.dispose(app)


def between_loads(action: Callable[[], T]) -> T:
    """What an action gives on a page that looks again by itself: it is done again where that comes in its middle."""
    for _ in range(20):
        with suppress(WebDriverException):
            return action()
    return action()


def heading(chrome: Chrome) -> str:
    return chrome.find_element(By.TAG_NAME, "h1").text


def keep(chrome: Chrome, name: str, tmp_path: Path) -> None:
    """Take a picture of the page; among those of the documentation where ``UPDATE_SCREENSHOTS`` says so."""
    update = os.environ.get("UPDATE_SCREENSHOTS") == "1"
    path = (ROOT / "docs" / "screenshots" if update else tmp_path) / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    picture = chrome.get_screenshot_as_png()
    path.write_bytes(picture)
    assert 5_000 < len(picture) < 100_000  # a page of one colour takes much less


def fits(chrome: Chrome) -> bool:
    """Whether nothing has to be scrolled to the side."""
    wide: bool = chrome.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    return wide


def everywhere(chrome: Chrome) -> None:
    """A page is in order in the dark and in the light, on a phone and on a screen."""
    for width, dark in ((360, False), (360, True), (1000, True), (1000, False)):
        look(chrome, width=width, dark=dark)
        assert faults(chrome) == []
        assert fits(chrome), width


@pytest.fixture
def shop(sqlite_project: Project) -> Project:
    """A project with a history that has a bit of everything."""
    project = sqlite_project
    project.write(V1)
    project.boot(DB_SMART_RELEASE="1.0.0")
    project.write(V2 + "\n@migration\ndef add_colour(op): op.execute('INSERT INTO colours VALUES (1)')\n")
    assert project.run("migrate", DB_SMART_RELEASE="1.1.0").exit_code == 1
    more = [f"add_field_{number}" for number in range(12)]
    fields = "".join(
        f"\n@migration\ndef {name}(op):\n    op.add_column('items', Column({name!r}, Integer))\n" for name in more
    )
    project.write(V2 + fields)
    assert project.run("migrate", DB_SMART_RELEASE="1.1.0").exit_code == 0

    def models(db: Any) -> None:
        db.Table("items", sa.Column("id", sa.Integer, primary_key=True), sa.Column("colour", sa.String(10)))

    project.models = models
    # The same on every machine and in every picture.
    project.query("UPDATE db_smart_history SET applied_by = 'deploy@web1', duration_ms = 3.2 * id * (1 + id % 4)")
    return project


def test_all_databases(shop: Project, chrome: Chrome, tmp_path: Path) -> None:
    with opened(shop) as (address, _, _):
        chrome.get(address + PAGE)
        assert heading(chrome) == "Database migrations"
        assert "items.colour" in chrome.page_source
        everywhere(chrome)
        somewhere = f"document.body.innerHTML = document.body.innerHTML.replaceAll({str(tmp_path)!r}, '/srv/shop')"
        chrome.execute_script(somewhere)
        keep(chrome, "overview", tmp_path)
        look(chrome, dark=True)
        keep(chrome, "overview-dark", tmp_path)
        look(chrome, width=360)
        keep(chrome, "overview-narrow", tmp_path)


def test_names_do_nothing(sqlite_project: Project, chrome: Chrome) -> None:
    sqlite_project.write(V1 + EVIL)
    with opened(sqlite_project, DB_SMART_BOOT="check") as (address, _, _):
        chrome.get(f"{address}/kept")
        assert "<script>" in chrome.find_element(By.TAG_NAME, "main").text
        assert chrome.title == "The database is behind this code"
        everywhere(chrome)
        chrome.find_element(By.TAG_NAME, "button").click()
        wait_until(lambda: chrome.title == "Kept")
        chrome.get(address + PAGE)
        assert "<script>" in chrome.find_element(By.TAG_NAME, "main").text
        assert chrome.title == "Database migrations"
        assert faults(chrome) == []


def test_the_button(project: Project, chrome: Chrome, tmp_path: Path) -> None:
    project.write(V1)
    project.boot()
    project.write(V2)
    with opened(project, DB_SMART_BOOT="check") as (address, _, _):
        chrome.get(f"{address}/kept?a=1")
        assert "ALTER TABLE items ADD" in chrome.find_element(By.TAG_NAME, "main").text
        everywhere(chrome)
        if project.dialect == "postgresql":
            look(chrome, height=600)
            keep(chrome, "pending", tmp_path)
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        assert chrome.switch_to.active_element.text == "Run pending migrations"
        chrome.switch_to.active_element.send_keys(Keys.ENTER)
        wait_until(lambda: chrome.title == "Kept")
        assert chrome.current_url == f"{address}/kept?a=1"
    assert "price" in project.columns("items")


def test_a_button_that_fails(sqlite_project: Project, chrome: Chrome) -> None:
    sqlite_project.write("@migration\ndef broken(op): op.execute('INSERT INTO nowhere VALUES (1)')\n")
    with opened(sqlite_project, DB_SMART_BOOT="check") as (address, _, _):
        chrome.get(f"{address}/kept")
        chrome.find_element(By.TAG_NAME, "button").click()
        wait_until(lambda: "It failed." in chrome.page_source)
        assert "nowhere" in chrome.find_element(By.CSS_SELECTOR, "[role=alert]").text
        everywhere(chrome)
        sqlite_project.query("CREATE TABLE nowhere (id INTEGER)")
        chrome.find_element(By.TAG_NAME, "button").click()
        wait_until(lambda: chrome.title == "Kept")


def test_waiting(project: Project, chrome: Chrome, tmp_path: Path) -> None:
    """It lets in who waits, without a script, at the address that was asked for."""
    project.write(V1)
    project.boot()
    gate = tmp_path / "gate"
    project.write(V1 + WAITING.format(gate=str(gate)))
    with opened(project, debug=False, DB_SMART_BOOT="background") as (address, _, _):
        try:
            chrome.get(f"{address}/kept?a=1")
            told = "1 of 3 migrations applied"
            wait_until(lambda: told in between_loads(lambda: chrome.find_element(By.TAG_NAME, "main").text))
            assert between_loads(lambda: heading(chrome)) == "The database is being migrated"
            between_loads(lambda: everywhere(chrome))
            if project.dialect == "postgresql":
                look(chrome, height=600)
                between_loads(lambda: keep(chrome, "waiting", tmp_path))
        finally:
            gate.touch()
        wait_until(lambda: between_loads(lambda: chrome.title) == "Kept")
        assert chrome.current_url == f"{address}/kept?a=1"


def test_what_was_sent_while_it_was_migrated(sqlite_project: Project, chrome: Chrome, tmp_path: Path) -> None:
    project, gate = sqlite_project, tmp_path / "gate"
    project.write(V1 + WAITING.format(gate=str(gate)))
    with opened(project, debug=False, DB_SMART_BOOT="background") as (address, app, smart):
        try:
            form = f'<form method=post action="{address}/kept"><input name=order value=1><button>x</button></form>'
            chrome.get(f"data:text/html,{form}")
            chrome.find_element(By.TAG_NAME, "button").click()
            wait_until(lambda: "What you sent was not taken" in between_loads(lambda: chrome.page_source))
            assert faults(chrome) == []
        finally:
            gate.touch()
        background = smart._state(app).background
        assert background is not None
        wait_until(lambda: background.done)
        # Longer than the page of a question waits until it looks again.
        with pytest.raises(TimeoutError):
            wait_until(lambda: "What you sent was not taken" not in chrome.page_source, seconds=5)
        assert app.extensions["posts"] == []


def test_the_token(sqlite_project: Project, chrome: Chrome) -> None:
    sqlite_project.write(V1)
    with opened(sqlite_project, debug=False, DB_SMART_TOKEN=TOKEN) as (address, _, _):
        chrome.get(address + PAGE)
        everywhere(chrome)
        chrome.find_element(By.ID, "token").send_keys("wrong", Keys.ENTER)
        wait_until(lambda: "This is not the token" in chrome.page_source)
        assert faults(chrome) == []
        chrome.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)
        wait_until(lambda: "make_items" in chrome.page_source)
        chrome.refresh()
        assert "make_items" in chrome.page_source
        assert chrome.execute_script("return document.cookie") == ""
