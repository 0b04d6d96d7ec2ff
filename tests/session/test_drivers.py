"""The drivers of each server: all do the same, and say the same of what fails."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import MigrationFailed
from tests.harness.databases import holding
from tests.harness.project import Project
from tests.harness.servers import config_of
from tests.samples import DRIVERS, TABLE

MORE = """
@migration
def fill(op):
    op.add_columns("items", Column("name", String(20)), Column("number", Integer, server_default="5", nullable=False))
    op.backfill("items", {"name": "x"}, where=text("id = 1 AND name IS NULL"))
    op.create_index("ix_items_n", "items", ["n"])
"""
FAILS = """
@migration
def twice(op):
    op.execute("INSERT INTO items (id, n) VALUES (1, 7)")
"""
SECRET = """
@migration
def secret(op):
    word = "Gehe" + "1m"  # a traceback shows this line
    op.execute(f"DO $$ BEGIN RAISE EXCEPTION 'no ALTER ROLE me PASSWORD ''{word}'' '; END $$")
"""
ADD = """
@migration
def add(op):
    op.execute("UPDATE items SET n = n + 1 WHERE id = 2")
    op.add_column("items", Column("more", Integer))
"""


@pytest.fixture(params=DRIVERS, ids=[driver for _, driver in DRIVERS])
def by_drivers(
    request: pytest.FixtureRequest, make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> Project:
    """A project on a server, by each driver in turn."""
    server, driver = request.param
    url = new_url(server)
    return make_project(url, config_of(url, driver))


def test_boots_changes_tables_in_use_and_says_what_failed(by_drivers: Project) -> None:
    project = by_drivers
    project.write(TABLE)
    assert project.boot().applied == ("make_items",)
    assert project.boot().decision == "skipped"
    project.write(TABLE + MORE)
    assert project.boot().applied == ("fill",)
    assert project.run("status", "--check").exit_code == 0
    app, smart = project.app()
    assert smart.boot(app).decision == "skipped"
    assert app.test_client().get("/").text == "served"
    project.dispose(app)
    project.write(TABLE + MORE + FAILS)
    with pytest.raises(MigrationFailed) as caught:
        project.boot()
    if project.dialect == "postgresql":
        says = ': duplicate key value violates unique constraint "items_pkey" DETAIL: Key (id)=(1) already exists.'
    else:
        says = "Duplicate entry '1' for key 'PRIMARY'"
    assert says in caught.value.message
    failed = [outcome for name, outcome in project.history() if name == "twice"]
    assert failed == ["failed"]
    if project.dialect == "postgresql":
        project.write(TABLE + MORE + SECRET)
        with pytest.raises(MigrationFailed) as caught:
            project.boot()
        assert "no ALTER ROLE me PASSWORD" in caught.value.message
        assert "Gehe1m" not in "".join(traceback.format_exception(caught.value))


def test_a_lock_timeout_is_tried_again(by_drivers: Project, caplog: pytest.LogCaptureFixture) -> None:
    """It is a migration's own UPDATE that is done again with it, once."""
    project = by_drivers
    project.write(TABLE)
    project.boot()
    project.write(TABLE + ADD)
    again = threading.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "tried again" in record.getMessage():
                again.set()

    handler = Listening()
    logger = logging.getLogger("aurum_harmony.db_smart")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            with holding(project.url):
                boot = pool.submit(lambda: project.boot(DB_SMART_DDL_LOCK_TIMEOUT=0.3))
                boot.add_done_callback(lambda _: again.set())
                assert again.wait(60)
                assert not boot.done(), boot.exception()
            assert boot.result(60).applied == ("add",)
    finally:
        logger.removeHandler(handler)
    assert project.query("SELECT n FROM items ORDER BY id") == [(0,), (1,)]
