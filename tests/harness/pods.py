"""Pods of three releases that serve requests: ``python -m tests.harness.pods URL FOLDER`` forks them.

It reads the release of each from its standard input, so that all that they import is imported once.

Release 1 has a column ``fax``. Release 2 adds ``phone``, fills it, and writes both. Release 3 uses ``phone`` alone, and
drops ``fax`` by a contract step. Each pod is a process with an instance folder of its own, as on a host of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL
from werkzeug.serving import make_server

from aurum_harmony.db_smart import DbSmart
from tests.harness.crash import preload
from tests.harness.databases import engine_of
from tests.harness.processes import environment
from tests.harness.servers import wait_until

LEASE, GRACE = 3.0, 1.0  # seconds
#: What each release's models map besides the key.
USES = {"1": ("fax",), "2": ("fax", "phone"), "3": ("phone",)}
_BEGIN = """
from sqlalchemy import Column, Integer, String
from aurum_harmony.db_smart import migration

@migration
def people(op):
    op.create_table("people", Column("id", Integer, primary_key=True), Column("fax", String(20)))
"""
_EXPAND = """
@migration
def add_phone(op):
    op.add_column("people", Column("phone", String(20)))

@migration
def fill_phone(op):
    op.backfill("people", {"phone": Column("fax")}, where="phone IS NULL")
"""
_CONTRACT = """
@migration(contract=True)
def drop_fax(op):
    op.drop_column("people", "fax")
"""
MIGRATIONS = {"1": _BEGIN, "2": _BEGIN + _EXPAND, "3": _BEGIN + _EXPAND + _CONTRACT}


def create_app(release: str, url: str, folder: Path) -> Flask:
    """The application of a release; each request writes a row and reads it."""
    app = Flask("pod", instance_path=str(folder / "instance"))
    app.config.update(
        SQLALCHEMY_DATABASE_URI=url,
        DB_SMART_RELEASES=True,
        DB_SMART_RELEASE=release,
        DB_SMART_LEASE_SECONDS=LEASE,
        DB_SMART_REQUEST_GRACE=GRACE,
        DB_SMART_CREATE_ALL=False,
    )
    if not url.startswith("sqlite"):
        # A session that stays open says on PostgreSQL that its process may go on, also where that is stopped.
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": sa.pool.NullPool}
    db = SQLAlchemy(app)
    columns = [sa.Column(name, sa.String(20)) for name in USES[release]]
    people = db.Table("people", sa.Column("id", sa.Integer, primary_key=True), *columns)

    def index() -> str:
        values = dict.fromkeys(USES[release], "123")
        added: Any = db.session.execute(people.insert().values(values))
        (key,) = added.inserted_primary_key
        row = db.session.execute(sa.select(people).where(people.c.id == key)).one()
        db.session.commit()
        assert row[1:] == tuple(values.values())
        return release

    app.add_url_rule("/", view_func=index)
    DbSmart(app, db, migrations="pod_migrations").boot(app)
    return app


class Pod:
    """A process that serves a release.

    :param process: its id.
    """

    def __init__(self, release: str, process: int, port: int, log: Path) -> None:
        self.release = release
        self.process = process
        self.port = port
        self.log = log
        #: How many requests are under way; whoever has it at 0 may end the process.
        self.under_way = 0
        self.taken = False
        self.turn = threading.Lock()

    def ask(self, path: str = "/") -> tuple[int, str]:
        """What it answers: the status and the text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            found = connection.getresponse()
            return found.status, found.read().decode()
        finally:
            connection.close()

    @property
    def ready(self) -> bool:
        """Whether its probe says so."""
        return self.ask("/_db-smart/ready")[0] == 200

    def drain(self) -> None:
        """Let it get no more requests, and wait for those under way."""
        with self.turn:
            self.taken = True
        wait_until(lambda: self.under_way == 0)

    def send(self, number: int) -> None:
        """Send it a signal, which stops or ends it."""
        self.drain()
        os.kill(self.process, number)

    @property
    def ended(self) -> bool:
        """Whether it is gone; who has forked it leaves nothing behind."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        return False


class Deployment:
    """Pods behind a balancer that sends requests to those that are ready, all the time."""

    def __init__(self, url: URL, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.pods: list[Pod] = []
        self.all: list[Pod] = []
        self.failures: list[tuple[str, int, str]] = []
        self.served: dict[str, int] = dict.fromkeys(USES, 0)
        self._ended = threading.Event()
        text = url.render_as_string(hide_password=False)
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.pods", text, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def start(self, release: str) -> Pod:
        """Start a pod, and send it requests as soon as it is ready."""
        nursery = self._nursery
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        folder = self.folder / f"pod{len(self.all)}"
        nursery.stdin.write(f"{release} {folder}\n")
        nursery.stdin.flush()
        words = nursery.stdout.readline().split()
        assert len(words) == 2, (folder / "log").read_text()
        pod = Pod(release, int(words[0]), int(words[1]), folder / "log")
        self.all.append(pod)
        wait_until(lambda: pod.ready)
        self.pods.append(pod)
        return pod

    def stop(self, pod: Pod, number: int = signal.SIGTERM) -> None:
        """Send a pod no more requests, and end it."""
        self.pods.remove(pod)
        pod.send(number)
        wait_until(lambda: pod.ended)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Send requests."""
        threads = [threading.Thread(target=self._send) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()
            for pod in self.all:
                with suppress(ProcessLookupError):
                    os.kill(pod.process, signal.SIGKILL)
            with self._nursery as nursery:
                nursery.kill()

    def _send(self) -> None:
        turn = 0
        while not self._ended.wait(0.1):
            pods = list(self.pods)
            if not pods:
                continue
            turn += 1
            pod = pods[turn % len(pods)]
            with pod.turn:
                if pod.taken:
                    continue
                pod.under_way += 1
            try:
                status, text = pod.ask()
                self.served[pod.release] += 1
                if status != 200:
                    self.failures.append((pod.release, status, text))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((pod.release, 0, repr(error)))
            finally:
                with pod.turn:
                    pod.under_way -= 1

    def has_fax(self) -> bool:
        """Whether the column is there that the contract step drops."""
        with engine_of(self.url).connect() as connection:
            return "fax" in {column["name"] for column in sa.inspect(connection).get_columns("people")}

    def stays(self, seconds: float) -> bool:
        """Whether the column is there all that time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self.has_fax():
                return False
            threading.Event().wait(0.1)
        return True

    def status(self) -> Any:
        """What ``ready`` of a pod of release 3 says of the step."""
        pod = next(pod for pod in self.pods if pod.release == "3")
        return json.loads(pod.ask("/_db-smart/ready")[1])


def serve(release: str, url: str, folder: Path, told: int) -> None:
    """Be a pod."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.path.insert(0, str(folder))
    server = make_server("127.0.0.1", 0, create_app(release, url, folder), threaded=True)
    os.write(told, f"{os.getpid()} {server.port}\n".encode())
    server.serve_forever()


def main() -> None:
    """Fork a pod for each line."""
    url = sys.argv[1]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        release, name = line.split()
        folder = Path(name)
        folder.mkdir()
        (folder / "pod_migrations.py").write_text(MIGRATIONS[release])
        if os.fork() == 0:
            try:
                serve(release, url, folder, 1)
            except BaseException:
                traceback.print_exc()
                os.write(1, b"failed\n")
            finally:
                os._exit(1)


if __name__ == "__main__":
    preload()
    main()
