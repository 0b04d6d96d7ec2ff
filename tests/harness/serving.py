"""An application behind a real server: Gunicorn, uWSGI, Waitress or ``flask run``."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart import DbSmart
from tests.harness.processes import ROOT
from tests.harness.project import Project
from tests.harness.servers import wait_until

WORKERS = 8
TIMEOUT = 3  # seconds

SERVED = """
import json
import os
import threading
import time

import sqlalchemy as sa

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart


def report():
    pass  # Gunicorn's configuration may have a real one


def answer():
    time.sleep(0.05)  # so that the next request goes to another worker
    return str(os.getpid())


def note(_, __, statement, *___):
    thread = threading.current_thread().name
    with open(os.environ["SENT"], "a") as sent:
        sent.write(json.dumps([os.getpid(), thread, time.time(), statement]) + "\\n")


def create_app(boot):
    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    app = Flask("served", instance_path=os.environ["INSTANCE"])
    app.config.update(json.loads(os.environ["CONFIG"]))
    db = SQLAlchemy(app)
    smart = DbSmart(app, db, migrations=os.environ["MIGRATIONS"])
    app.add_url_rule("/", view_func=answer)
    count = "SELECT count(*) FROM effects"
    app.add_url_rule("/effects", "effects", lambda: str(db.session.execute(db.text(count)).scalar()))

    @app.after_request
    def tell(response):
        response.headers["X-Process"] = str(os.getpid())
        return response

    if boot:
        report()
        smart.boot(app)
    return app
"""

# Gunicorn 22 and newer have no time-out before a worker's first report. Older ones count from the start, which this
# does from the boot of db-smart: how long eight workers need to import at once is not the question.
CONFIGURATION = """
import gc

import alembic.operations, psycopg, pymysql
import aurum_harmony.db_smart.runner
import served

control_socket_disable = True


def post_fork(server, worker):
    gc.freeze()  # as in tests.harness.crash.forked
    served.report = worker.notify
"""

# Before gevent has changed the standard library in the worker, nothing may import what it changes.
CONFIGURATION_OF_GEVENT = "control_socket_disable = True\n"

#: Begins, and goes on when the file is there that ``GATE`` names.
GATED = """
@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True))

@migration
def gated(op):
    import os, time
    with open(os.environ.get("BEGUN", os.devnull), "a") as begun:
        begun.write("%d\\n" % os.getpid())
    while not os.path.exists(os.environ.get("GATE", "/")):
        time.sleep(0.02)
    op.execute("INSERT INTO effects (id) VALUES (1)")
"""

_GUNICORN = "-m gunicorn --workers 3 --timeout 3 --bind 127.0.0.1:0 served_app:application --worker-class "
_UWSGI = "uwsgi --http-socket 127.0.0.1:0 --master --processes 2 --need-app --die-on-term --module served_app"
_FLASK = "-m flask --app served_app run --port 0"
#: By name: the command that serves the application, and how many processes then answer.
SERVERS = {
    "sync": (f"{_GUNICORN} sync", 3),
    "sync-preload": (f"{_GUNICORN} sync --preload", 3),
    "four": (f"{_GUNICORN} sync --workers 4", 4),
    "sixteen": (f"{_GUNICORN} sync --workers 16 --timeout 60", 16),
    "gthread": (f"{_GUNICORN} gthread --threads 4", 3),
    "gthread-preload": (f"{_GUNICORN} gthread --threads 4 --preload", 3),
    "gevent": (f"{_GUNICORN} gevent", 3),
    "gevent-preload": (f"{_GUNICORN} gevent --preload", 3),
    "waitress": ("-m waitress --listen=127.0.0.1:0 served_app:application", 1),
    "uwsgi": (_UWSGI, 2),
    "uwsgi-lazy": (f"{_UWSGI} --lazy-apps", 2),
    "uwsgi-threads": (f"{_UWSGI} --enable-threads", 2),
    "uwsgi-threads-lazy": (f"{_UWSGI} --threads 2 --lazy-apps", 2),
    "flask": (_FLASK, 1),
    "flask-reload": (f"{_FLASK} --reload", 1),
}
READY, LIVE = "/_db-smart/ready", "/_db-smart/live"


class Answer(NamedTuple):
    """What a server answers.

    :ivar process: the id of the process that answered.
    """

    status: int
    process: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Server:
    """A server that runs.

    :ivar begun: file with the process id of each worker that began the long migration.
    :ivar gate: the file for which ``GATED`` waits.
    """

    process: subprocess.Popen[bytes]
    log: Path
    begun: Path
    workers: int = WORKERS
    gate: Path = Path()

    @property
    def port(self) -> int:
        """Where it listens."""
        said = (
            r"(?:Listening at: http://|Running on http://|Serving on http://|bound to TCP address )127\.0\.0\.1:(\d+)"
        )
        return int(wait_until(lambda: re.findall(said, self.log.read_text()))[0])

    def answer(self, _: object = None, path: str = "/") -> int | None:
        """The number that a worker answers, its process id; ``None`` when one was killed under the request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
            return int(text)
        except (ConnectionError, http.client.RemoteDisconnected):
            return None
        finally:
            connection.close()

    def ask(self, path: str = "/", *, method: str = "GET", seconds: float = 20) -> Answer:
        """Ask the server.

        :raises OSError: it cannot be reached, or did not answer in time.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path)
            found = connection.getresponse()
            text = found.read().decode()
            return Answer(found.status, int(found.headers["X-Process"]), dict(found.headers), text)
        finally:
            connection.close()

    def serve_all(self) -> None:
        """Send requests until every worker has answered one."""
        answered: set[int] = set()

        def all_answered() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with ThreadPoolExecutor(2 * self.workers) as pool:
                answered.update(pid for pid in pool.map(self.answer, range(4 * self.workers)) if pid is not None)
            return len(answered) == self.workers

        wait_until(all_answered)

    def sent(self) -> list[tuple[int, str, float, str]]:
        """What each worker has sent to the database: its process id, its thread, when, and what."""
        return [tuple(json.loads(line)) for line in self.begun.with_name("sent").read_text().splitlines()]

    def began(self) -> list[int]:
        """Who began the long migration, in order."""
        return [int(pid) for pid in self.begun.read_text().split()] if self.begun.exists() else []


def surroundings(project: Project, folder: Path, lease: float, **config: Any) -> dict[str, str]:
    """The environment of a server.

    :param config: more settings of the application.
    """
    url = make_url(project.url).render_as_string(hide_password=False)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "INSTANCE": str(project.instance),
        "MIGRATIONS": project.module,
        "CONFIG": json.dumps({"SQLALCHEMY_DATABASE_URI": url, "DB_SMART_LEASE_SECONDS": lease, **config}),
        "BEGUN": str(folder / "begun"),
        "SENT": str(folder / "sent"),
        "GATE": str(folder / "open"),
    }


@contextmanager
def serving(project: Project, folder: Path, name: str, *, lease: float = 15, **config: Any) -> Iterator[Server]:
    """One of ``SERVERS`` on the application of a project, until the end.

    :param folder: where its files are made.
    :param config: more settings of the application.
    """
    command, workers = SERVERS[name]
    (folder / "served.py").write_text(SERVED)
    (folder / "served_app.py").write_text("from served import create_app\n\napplication = create_app(True)\n")
    (folder / "gunicorn.conf.py").write_text(CONFIGURATION_OF_GEVENT if "gevent" in name else CONFIGURATION)
    words = command.split()
    if words[0] == "uwsgi":
        words[0] = str(Path(sys.executable).with_name("uwsgi"))
    else:
        words.insert(0, sys.executable)
    log, environment = folder / "log", surroundings(project, folder, lease, **config)
    with open(log, "wb") as told:
        # In a session of its own, because the reloader has a child that must end too.
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=told, stderr=told, start_new_session=True)
    try:
        yield Server(process, log, folder / "begun", workers, folder / "open")
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def finished(app: Flask, smart: DbSmart) -> None:
    """Wait until the thread of a boot in the background is done."""
    state = smart._state(app)
    wait_until(lambda: state.background is not None and state.background.done)
