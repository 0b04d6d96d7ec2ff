"""Deployments: workers of Gunicorn that boot at once, and pods of two releases in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.harness.processes import run_harness
from tests.harness.project import DIALECTS, Project
from tests.harness.servers import wait_until
from tests.harness.serving import CONFIGURATION, CONFIGURATION_OF_GEVENT, SERVED, TIMEOUT, WORKERS, Server, surroundings

QUICK = """
@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True))

@migration
def fill(op):
    op.execute("INSERT INTO effects (id) SELECT count(*) FROM effects")
"""

LONG = """
@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(20)))

@migration
def longer_than_the_timeout(op):
    import os, time
    with open(os.environ["BEGUN"], "a") as begun:
        begun.write("%d\\n" % os.getpid())
    for number in range(6):
        op.execute(f"INSERT INTO effects (name) VALUES ('{number}')")
        dialect = op.connection.dialect.name
        if dialect == "postgresql":
            op.execute("SELECT pg_sleep(1)")
        elif dialect == "sqlite":
            time.sleep(1)
        else:
            op.execute("SELECT SLEEP(1)")
"""

COMPUTING = """
@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(20)))

@migration
def computes_longer_than_the_lease(op):
    import os, time
    with open(os.environ["BEGUN"], "a") as begun:
        begun.write("%d\\n" % os.getpid())
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        pass
    op.execute("INSERT INTO effects (name) VALUES ('once')")
"""


@pytest.fixture
def url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    """An empty database of the kind that the test names."""
    return new_url(request.param)


@pytest.fixture
def gunicorn(project: Project, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts Gunicorn on a database without history."""
    project.write(LONG)
    (tmp_path / "served.py").write_text(SERVED)
    log, begun = tmp_path / "log", tmp_path / "begun"
    log.touch()
    started: list[subprocess.Popen[bytes]] = []

    def start(
        *,
        worker_class: str = "sync",
        boot: bool = True,
        lease: float = 15,
        workers: int = WORKERS,
        more: str = "",
    ) -> Server:
        configuration = CONFIGURATION_OF_GEVENT if worker_class == "gevent" else CONFIGURATION
        (tmp_path / "gunicorn.conf.py").write_text(configuration)
        options = ["--workers", str(workers), *more.split(), "--timeout", str(TIMEOUT), "--worker-class", worker_class]
        options += ["--bind", "127.0.0.1:0", "--error-logfile", str(log), f"served:create_app({boot})"]
        environment = surroundings(project, tmp_path, lease)
        process = subprocess.Popen([sys.executable, "-m", "gunicorn", *options], cwd=tmp_path, env=environment)
        started.append(process)
        return Server(process, log, begun, workers)

    yield start
    for process in started:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


@pytest.mark.parametrize(
    ("url", "more"), [("sqlite", ""), *((dialect, "--preload") for dialect in DIALECTS)], indirect=["url"]
)
def test_workers_of_a_first_start_have_the_effect_once_and_serve_it(
    project: Project, gunicorn: Callable[..., Server], more: str
) -> None:
    """With ``--preload`` they are forked from the process that has migrated."""
    project.write(QUICK)
    server = gunicorn(workers=3, more=more)
    server.serve_all()
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: server.answer(path="/effects"), range(18))) == {1}
    assert project.history() == [("make_effects", "applied"), ("fill", "applied")]
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("url", "more"), [("sqlite", ""), ("postgresql", ""), ("mariadb", "--lazy-apps")], indirect=["url"]
)
def test_processes_of_uwsgi_have_the_effect_once_and_serve_it(project: Project, tmp_path: Path, more: str) -> None:
    """They are forked from one that has migrated; with ``--lazy-apps`` each loads the application itself."""
    project.write(QUICK)
    (tmp_path / "served.py").write_text(SERVED)
    (tmp_path / "served_by_uwsgi.py").write_text("from served import create_app\n\napplication = create_app(True)\n")
    log = tmp_path / "log"
    log.touch()
    options = "--http-socket 127.0.0.1:0 --master --processes 3 --need-app --die-on-term --module served_by_uwsgi"
    process = subprocess.Popen(
        [Path(sys.executable).with_name("uwsgi"), *options.split(), *more.split(), "--logto", log],
        cwd=tmp_path,
        env=surroundings(project, tmp_path, 15),
    )
    try:
        server = Server(process, log, tmp_path / "begun", 3)
        server.serve_all()
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(lambda _: server.answer(path="/effects"), range(18))) == {1}
    finally:
        process.terminate()
        process.wait(30)
    assert project.history() == [("make_effects", "applied"), ("fill", "applied")]
    assert "Traceback" not in log.read_text()


def every_effect_is_there_once(project: Project) -> None:
    assert project.query("SELECT name FROM effects ORDER BY id") == [(str(number),) for number in range(6)]
    assert project.history() == [("make_effects", "applied"), ("longer_than_the_timeout", "applied")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "worker_class", "boot"),
    [
        ("sqlite", "sync", True),
        ("postgresql", "sync", True),
        ("mariadb", "sync", True),
        ("postgresql", "gthread", True),
        ("sqlite", "sync", False),
        ("postgresql", "sync", False),
    ],
    indirect=["url"],
)
def test_a_migration_longer_than_the_timeout_of_gunicorn(
    project: Project, gunicorn: Callable[..., Server], worker_class: str, boot: bool
) -> None:
    """At boot, or at the first request where nothing booted."""
    server = gunicorn(worker_class=worker_class, boot=boot)
    server.serve_all()
    assert len(server.began()) == 1
    assert "WORKER TIMEOUT" not in server.log.read_text()
    every_effect_is_there_once(project)


@pytest.mark.parametrize(
    ("url", "boot"), [("postgresql", True), ("mariadb", True), ("postgresql", False)], indirect=["url"]
)
def test_a_migration_that_computes_longer_than_the_lease_keeps_it_under_gevent(
    project: Project, gunicorn: Callable[..., Server], boot: bool
) -> None:
    """At boot, or at the first request; no other greenlet gets a turn meanwhile."""
    project.write(COMPUTING)
    server = gunicorn(worker_class="gevent", boot=boot, lease=1, workers=2)
    server.serve_all()
    assert len(server.began()) == 1, server.log.read_text()
    assert "WORKER TIMEOUT" not in server.log.read_text()
    assert project.query("SELECT name FROM effects") == [("once",)]
    assert project.history() == [("make_effects", "applied"), ("computes_longer_than_the_lease", "applied")]


@pytest.mark.slow
@pytest.mark.parametrize("url", DIALECTS, indirect=True)
@pytest.mark.parametrize(("number", "lease"), [(signal.SIGABRT, 60), (signal.SIGSTOP, 5)], ids=["abort", "hung"])
def test_gunicorn_kills_the_worker_that_migrates(
    project: Project, gunicorn: Callable[..., Server], number: signal.Signals, lease: float
) -> None:
    """SIGABRT is how Gunicorn begins to kill, and frees the lock; a worker that hangs gets SIGKILL after it."""
    server = gunicorn(lease=lease)
    (first,) = wait_until(server.began)
    os.kill(first, number)
    server.serve_all()
    assert len(server.began()) == 2
    if number == signal.SIGSTOP:
        assert "WORKER TIMEOUT" in server.log.read_text()
    every_effect_is_there_once(project)


@pytest.mark.parametrize("url", DIALECTS, indirect=True)
@pytest.mark.parametrize("options", [(), ("--shared-flag",)], ids=["own-flags", "shared-flag"])
def test_pods_of_two_releases_boot_in_turn_and_at_once(url: URL, options: tuple[str, ...]) -> None:
    report = run_harness("rolling", url.get_backend_name(), [url], *options)
    assert (report["failed"], report["repeated"], report["lost"]) == (0, 0, 0), report
