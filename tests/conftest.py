"""Fixtures: applications of their own, with migrations of their own, on every kind of database."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from tests.harness import processes, servers
from tests.harness.alembic_project import AlembicProject
from tests.harness.disk import Disk
from tests.harness.project import DIALECTS, Project

_numbers = itertools.count()

# A shell has what it runs in the background ignore Ctrl-C, and that is inherited; the tests send it to their processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the surroundings reaches a test."""
    for name in [name for name in os.environ if name.startswith(("FLASK_", "DB_SMART_", "AURUM_"))]:
        monkeypatch.delenv(name)
    for name in ("DATABASE_URL", "FORCE_DB_MIGRATION"):
        monkeypatch.delenv(name, raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-each", action="store_true", help="of each test's parameters take the first ones alone")


@pytest.hookimpl(trylast=True)  # among those that other options leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--one-each"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        others = [item for item in items if first[item.nodeid.partition("[")[0]] is not item]
        config.hook.pytest_deselected(items=others)
        items[:] = sorted(first.values(), key=items.index)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what was imported and collected is no garbage: to look at it again and again is slow


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where servers are required everything is: a test that is skipped fails, so that none is missed unseen."""
    report = yield
    if report.skipped and servers.require_servers() and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_SERVERS=1 lets no test be skipped: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the herds and the crashes came to, also when all tests pass."""
    if processes.results:
        terminalreporter.section("herds and crashes")
        for line in processes.results:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A PostgreSQL server."""
    with servers.postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def mariadb() -> URL:
    """A MariaDB server."""
    url = servers.mariadb_server()
    if url is None:
        servers.missing("there is no MariaDB: set TEST_MARIADB_URL, or start one on 127.0.0.1:3306")
    assert url is not None
    return url


@pytest.fixture(scope="session")
def pgbouncer(postgres: URL) -> Iterator[URL]:
    """PgBouncer in transaction mode before :func:`postgres`."""
    with servers.pgbouncer_server(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def _galera() -> Iterator[servers.GaleraCluster]:
    with servers.galera_cluster() as cluster:
        yield cluster


@pytest.fixture
def galera(_galera: servers.GaleraCluster) -> Iterator[servers.GaleraCluster]:
    """A Galera cluster of three nodes; those that a test kills are started again."""
    yield _galera
    _galera.start()


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], URL]]:
    """Makes empty databases: ``new_url("sqlite" | "postgresql" | "pgbouncer" | "mariadb" | "galera")``.

    That of the cluster is reached by its last node; a test may kill the others.
    """
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(dialect: str) -> URL:
            if dialect == "sqlite":
                return URL.create("sqlite", database=str(tmp_path / f"db{next(_numbers)}.sqlite"))
            if dialect == "galera":
                return stack.enter_context(servers.new_database(request.getfixturevalue("galera").nodes[-1].url))
            if dialect == "mariadb":
                return stack.enter_context(servers.new_database(request.getfixturevalue("mariadb")))
            made = stack.enter_context(servers.new_database(request.getfixturevalue("postgres")))
            if dialect == "postgresql":
                return made
            url: URL = request.getfixturevalue("pgbouncer").set(database=made.database)
            return url

        yield make


@pytest.fixture(params=DIALECTS)
def url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    """An empty database of each kind in turn."""
    return new_url(request.param)


@pytest.fixture
def sqlite_url(new_url: Callable[[str], URL]) -> URL:
    """A SQLite database that does not exist yet."""
    return new_url("sqlite")


@pytest.fixture
def make_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Project]]:
    """Makes projects: ``make_project(url, config)``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(url: URL | str, config: Mapping[str, Any] | None = None) -> Project:
        module = f"migrations_{next(_numbers)}"
        made.append(module)
        return Project(tmp_path, module, url, dict(config or {}))

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] in made]:
        del sys.modules[name]


@pytest.fixture
def make_alembic(tmp_path: Path) -> Callable[..., AlembicProject]:
    """Makes projects with an Alembic directory from Flask-Migrate's template: ``make_alembic(url)``."""

    def make(url: URL | str, config: Mapping[str, Any] | None = None, *, multidb: bool = False) -> AlembicProject:
        project = AlembicProject(tmp_path, f"revisions_{next(_numbers)}", url, dict(config or {}))
        project.init(multidb=multidb)
        return project

    return make


@pytest.fixture
def open_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that every user may enter, on the path of modules.

    That of ``tmp_path`` is closed to others whenever another pytest begins.
    """
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        monkeypatch.syspath_prepend(name)
        yield Path(name)


@pytest.fixture
def project(make_project: Callable[..., Project], url: URL) -> Project:
    """A project on each kind of database in turn."""
    return make_project(url)


@pytest.fixture
def sqlite_project(make_project: Callable[..., Project], sqlite_url: URL) -> Project:
    """A project on SQLite."""
    return make_project(sqlite_url)


CHILD = """
import logging, sys
logging.basicConfig(level=logging.INFO)
sys.path.insert(0, sys.argv[1])
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.errors import DbSmartError
app = Flask("child", instance_path=sys.argv[3])
app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[4], DB_SMART_LEASE_SECONDS=1)
db = SQLAlchemy(app)
smart = DbSmart(app, db, migrations=sys.argv[2])
try:
    print(smart.boot(app).decision, flush=True)
except DbSmartError as error:
    print(error.message, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def start_child(project: Project) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that boots; with a gate it stops in the middle of a migration until the gate is opened.

    With a flag of its own it is as on a host of its own: it does not wait for the others' flag, but for the lock.
    """
    started: list[subprocess.Popen[str]] = []

    def start(gate: Path | None = None, flag: str = ".db_migration_completed") -> subprocess.Popen[str]:
        url = make_url(project.url).render_as_string(hide_password=False)
        arguments = [str(project.directory), project.module, str(project.instance), url]
        environment = processes.environment(FLASK_DB_SMART_FLAG=flag, **({} if gate is None else {"GATE": str(gate)}))
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk, which can be filled."""
    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()
