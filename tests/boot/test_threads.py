"""Boots and first requests of many threads, with a module of migrations that takes its time to import."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import BootReport, DbSmart, DbSmartError
from aurum_harmony.db_smart.loading.loader import load
from aurum_harmony.db_smart.loading.sources import scan
from tests.harness.processes import environment, find_python
from tests.harness.project import Project

#: A module that stops in the middle of its import until the test lets it go on.
SLOW = """
import slow_import_gate
@migration
def first(op): op.create_table("first", Column("id", Integer, primary_key=True))
slow_import_gate.stop()
@migration
def second(op): op.create_table("second", Column("id", Integer, primary_key=True))
"""
BOTH = [("first", "applied"), ("second", "applied")]


class Gate(ModuleType):
    """Where the import of :data:`SLOW` stops."""

    def __init__(self) -> None:
        super().__init__("slow_import_gate")
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.imports = 0

    def stop(self) -> None:
        self.imports += 1
        self.reached.set()
        assert self.opened.wait(30)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setitem(sys.modules, "slow_import_gate", gate)
    yield gate
    gate.opened.set()


def blocked(started: list[Future[Any]]) -> bool:
    """Whether none of those who wait for an import has ended; those who do not wait end within that time."""
    threading.Event().wait(0.3)
    return not any(future.done() for future in started)


HEADER = "from sqlalchemy import *\nfrom aurum_harmony.db_smart import migration\n"


def applications(project: Project, count: int, urls: list[Any]) -> list[tuple[Flask, DbSmart]]:
    made = []
    for index in range(count):
        app = Flask(f"app{index}", instance_path=str(project.directory / f"instance{index}"))
        app.config["SQLALCHEMY_DATABASE_URI"] = urls[index % len(urls)]
        db = SQLAlchemy(app)
        made.append((app, DbSmart(app, db, migrations=project.module)))
        app.add_url_rule("/", view_func=lambda: "served")
    return made


@pytest.mark.parametrize("how", ["load", "import"])
def test_no_thread_takes_a_module_that_another_one_still_executes(
    sqlite_project: Project, slow: Gate, how: str
) -> None:
    sqlite_project.write(SLOW, header=HEADER)
    name = sqlite_project.module
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(importlib.import_module, name) if how == "import" else pool.submit(load, scan(name))
        assert slow.reached.wait(10)
        # Each with sources of its own, so that no lock of ours is between them.
        others = [pool.submit(lambda: load(scan(name))) for _ in range(3)]
        plain = pool.submit(importlib.import_module, name)
        try:
            assert blocked([first, *others, plain])
        finally:
            slow.opened.set()
        for other in others:
            assert [migration.name for migration in other.result(10)] == ["first", "second"]
        first.result(10)
        assert hasattr(plain.result(10), "second")
    assert slow.imports == 1


@pytest.mark.parametrize("count", [1, 2])
def test_boots_of_many_threads_apply_all_of_a_module_that_imports_slowly(
    sqlite_project: Project, new_url: Callable[[str], Any], slow: Gate, count: int
) -> None:
    """With one database for all of them, and with two."""
    sqlite_project.write(SLOW, header=HEADER)
    urls = [sqlite_project.url, *(new_url("sqlite") for _ in range(count - 1))]
    made = applications(sqlite_project, 4, urls)
    with ThreadPoolExecutor(4) as pool:
        boots: list[Future[BootReport]] = [pool.submit(smart.boot, app) for app, smart in made]
        assert slow.reached.wait(10)
        slow.opened.set()
        reports = [boot.result(30) for boot in boots]
    assert sorted(len(report.applied) for report in reports) == [0] * (4 - count) + [2] * count
    for url in urls:
        assert Project(sqlite_project.directory, sqlite_project.module, url).history() == BOTH
    for app, _ in made:
        Project.dispose(app)


def test_first_requests_of_many_threads_wait_for_a_slow_import(sqlite_project: Project, slow: Gate) -> None:
    sqlite_project.write(SLOW, header=HEADER)
    app, _ = sqlite_project.app()
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(lambda: app.test_client().get("/").text) for _ in range(8)]
        assert slow.reached.wait(10)
        slow.opened.set()
        assert {request.result(30) for request in requests} == {"served"}
    assert sqlite_project.history() == BOTH
    assert slow.imports == 1
    sqlite_project.dispose(app)


SELF = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import *
from aurum_harmony.db_smart import DbSmart, migration
app = Flask("alone", instance_path={instance!r})
app.config["SQLALCHEMY_DATABASE_URI"] = {url!r}
db = SQLAlchemy(app)
smart = DbSmart(app, db, migrations=__name__)
@migration
def first(op): op.create_table("first", Column("id", Integer, primary_key=True))
{boot_early}
@migration
def second(op): op.create_table("second", Column("id", Integer, primary_key=True))
{boot_late}
"""


def test_a_module_that_boots_itself_does_so_after_its_last_migration(sqlite_project: Project) -> None:
    def write(**boots: str) -> None:
        url, instance = str(sqlite_project.url), str(sqlite_project.instance)
        sqlite_project.file.write_text(SELF.format(**{"url": url, "instance": instance, **boots}))
        sys.modules.pop(sqlite_project.module, None)
        importlib.invalidate_caches()

    write(boot_early="smart.boot(app)", boot_late="")
    with pytest.raises(DbSmartError, match="'second' is not defined yet"):
        importlib.import_module(sqlite_project.module)
    assert not sqlite_project.tables()
    write(boot_early="", boot_late="smart.boot(app)")
    Project.dispose(importlib.import_module(sqlite_project.module).app)
    assert sqlite_project.history() == BOTH


SPAWN = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[1])

def boot(name, url, instance):
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from aurum_harmony.db_smart import DbSmart
    app = Flask("spawned", instance_path=instance)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    smart = DbSmart(app, SQLAlchemy(app), migrations=name)
    return smart.boot(app).decision, app.test_client().get("/").status_code

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(boot, [tuple(sys.argv[2:])] * 4, chunksize=1)
    assert {code for _, code in found} == {404}, found
    assert [decision for decision, _ in found].count("migrated") == 1, found
"""


def test_spawned_processes_migrate_once(project: Project) -> None:
    project.write(
        SLOW.replace("slow_import_gate.stop()", "slow_import_gate.sleep(0.3)").replace(
            "import slow_import_gate", "import time as slow_import_gate"
        ),
        header=HEADER,
    )
    script = project.directory / "spawn.py"
    script.write_text(SPAWN)
    url = project.url if isinstance(project.url, str) else project.url.render_as_string(hide_password=False)
    arguments = [str(project.directory), project.module, url, str(project.instance)]
    found = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert project.history() == BOTH


NEW_PYTHON = """
import sys, threading, types
sys.path.insert(0, sys.argv[1])
gate = types.ModuleType("slow_import_gate")
reached, opened = threading.Event(), threading.Event()
def stop():
    reached.set()
    assert opened.wait(20)
gate.stop = stop
sys.modules["slow_import_gate"] = gate
from aurum_harmony.db_smart.loading.loader import load
from aurum_harmony.db_smart.loading.sources import scan
found = []
threads = [threading.Thread(target=lambda: found.append([m.name for m in load(scan(sys.argv[2]))])) for _ in range(4)]
threads[0].start()
assert reached.wait(20)
for thread in threads[1:]:
    thread.start()
for thread in threads[1:]:
    thread.join(0.2)
opened.set()
for thread in threads:
    thread.join(20)
assert found == [["first", "second"]] * 4, found
"""


def pythons() -> list[str]:
    """This Python, and the oldest and the newest one where they are with the packages."""
    found = [sys.executable]
    for version in ("3.10", "3.13"):
        python = find_python(version)
        if python is not None and python not in found:
            asked = subprocess.run([python, "-c", "import flask_sqlalchemy, alembic"], capture_output=True)
            found += [python] * (asked.returncode == 0)
    return found


@pytest.mark.parametrize("python", pythons())
def test_each_python_waits_for_a_slow_import(sqlite_project: Project, python: str) -> None:
    sqlite_project.write(SLOW, header=HEADER)
    found = subprocess.run(
        [python, "-c", NEW_PYTHON, str(sqlite_project.directory), sqlite_project.module],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
