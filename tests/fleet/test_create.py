"""The database of a new tenant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import current_app

from aurum_harmony.db_smart import DbSmartError
from tests.harness.files import leave_wal
from tests.harness.fleets import FleetProject, write_application
from tests.harness.processes import ROOT, environment
from tests.samples import V1, V2

SEED = """
@migration(once=True)
def seed(op):
    op.execute("INSERT INTO items (id, name) VALUES (1, 'first')")
"""


@contextmanager
def made(fleet: FleetProject) -> Iterator[Any]:
    """The fleet of an application, in its context."""
    app, _ = fleet.app()
    try:
        with app.app_context():
            yield app.extensions["db_smart_fleet"]
    finally:
        fleet.dispose(app)


def ids(fleet: FleetProject, *names: str) -> list[str]:
    return [fleet.of(name, "SELECT database_id FROM db_smart_state")[0][0] for name in names]


@pytest.mark.parametrize("template", [None, "a"])
def test_a_new_tenant_is_up_to_date_and_another_one(fleet: FleetProject, template: str | None) -> None:
    fleet.options["template"] = template
    fleet.write(V1 + SEED)
    fleet.migrate()
    fleet.write(V2 + SEED)  # the template is brought up to date too
    with made(fleet) as found:
        found.create("new")
        fleet.names.append("new")
        with pytest.raises(DbSmartError, match="has a database already"):
            found.create("new")
        with pytest.raises(DbSmartError, match="has a database already"):
            found.create("b")
    copied = template is not None and fleet.kind in ("sqlite", "postgresql")
    order = ["make_items", "seed", "add_price"] if copied else ["make_items", "add_price", "seed"]
    assert fleet.applied("new") == order
    assert fleet.of("new", "SELECT name, price FROM items") == [("first", None)]
    assert len(set(ids(fleet, "a", "b", "new"))) == 3
    assert fleet.ledger()["new"] == ("applied", 0)
    assert fleet.applied("b") == ["make_items", "seed"]
    run = fleet.migrate()
    assert (run.counts["applied"], run.counts["up_to_date"]) == (2 if copied else 3, 2 if copied else 1)


def test_a_template_that_is_in_use_is_waited_for_and_then_not_needed(
    make_fleet: Callable[..., FleetProject], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aurum_harmony.db_smart.fleet.create._RETRIES", 1)
    fleet = make_fleet("postgresql", "a", template="a")
    fleet.write(V1)
    fleet.names.append("new")
    with made(fleet) as found, fleet.engine_of("a").connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        found.create("new")
    assert "the template 'a' is in use" in caplog.text
    assert fleet.applied("new") == ["make_items"]


def test_a_new_tenant_that_cannot_be_migrated_is_kept_for_the_next_try(fleet: FleetProject) -> None:
    fleet.write(SEED)
    fleet.names.append("new")
    with made(fleet) as found, pytest.raises(DbSmartError, match="is made, but could not be migrated"):
        found.create("new")
    fleet.write(V1 + SEED)
    assert fleet.run("fleet", "migrate", "--only", "new").exit_code == 0
    assert fleet.applied("new") == ["make_items", "seed"]


def test_a_place_where_nothing_can_be_made_has_a_clear_answer(make_fleet: Callable[..., FleetProject]) -> None:
    fleet = make_fleet("sqlite", "a", url=lambda name: "postgresql+psycopg://anna:geheim@127.0.0.1:9/shop")
    fleet.write(V1)
    with made(fleet) as found, pytest.raises(DbSmartError, match="cannot be made") as caught:
        found.create("new")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("template", [None, "a"])
def test_a_new_tenant_has_nothing_of_one_of_that_name_that_was_deleted(
    make_fleet: Callable[..., FleetProject], template: str | None
) -> None:
    fleet = make_fleet("sqlite", "a", template=template)
    fleet.write(V1)
    leave_wal(Path(str(fleet.url_of("new").database)))
    with made(fleet) as found:
        found.create("new")
    assert fleet.applied("new") == ["make_items"]
    assert fleet.of("new", "SELECT name FROM sqlite_master WHERE name = 'of_the_one_before'") == []
    assert fleet.of("new", "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("template", [None, "a"])
def test_of_two_sign_ups_of_one_name_at_once_one_is_refused(fleet: FleetProject, template: str | None) -> None:
    fleet.options["template"] = template
    fleet.write(V1 + SEED)
    fleet.migrate()
    met, said = threading.Barrier(2), list[str]()
    with made(fleet) as found:
        app = current_app._get_current_object()  # type: ignore[attr-defined]

        def sign_up() -> None:
            with app.app_context():
                met.wait(30)
                try:
                    found.create("new")
                    said.append("made")
                except DbSmartError as error:
                    said.append(error.message)

        threads = [threading.Thread(target=sign_up) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    fleet.names.append("new")
    assert sorted("has a database already" if "has a database already" in one else one for one in said) == [
        "has a database already", "made",
    ]  # fmt: skip
    assert fleet.of("new", "SELECT name FROM items") == [("first",)]


#: Killed where the copy is whole, and not the tenant's yet.
KILLED = """
import os, signal
from types import SimpleNamespace
from {module} import create_app
from aurum_harmony.db_smart.fleet import create
app = create_app()
fleet = app.extensions["db_smart_fleet"]
fleet.template = "a"
create._send = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
create.os = SimpleNamespace(link=create._send)
fleet.create("new")
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_a_killed_sign_up_has_left_is_removed(make_fleet: Callable[..., FleetProject], kind: str) -> None:
    fleet = make_fleet(kind, "a", template="a")
    folder = Path(str(fleet.url_of("a").database)).parent
    fleet.names += ["new", "other"]
    fleet.write(V1)

    def left() -> list[str]:
        if kind == "sqlite":
            return [path.name for path in folder.glob("*.*new*")]
        return [name for (name,) in fleet.query("SELECT datname FROM pg_database") if name.startswith("db_smart_new_")]

    script = KILLED.format(module=write_application(fleet))
    path = os.pathsep.join([str(fleet.directory), str(ROOT)])
    ended = subprocess.run([sys.executable, "-c", script], env=environment(PYTHONPATH=path), capture_output=True)
    assert (ended.returncode, len(left())) == (-signal.SIGKILL, 1), ended.stderr
    with made(fleet) as found:
        found.create("new")
        if kind == "postgresql":  # whoever began it may be at it still
            (name,) = left()
            fleet.admin(f"ALTER DATABASE {name} RENAME TO db_smart_new_1_{'0' * 32}")
            found.create("other")
    assert left() == []
    assert fleet.applied("new") == ["make_items"]
