"""``DB_SMART_BOOT=background`` behind real servers: each answers while one process migrates."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from tests.harness.processes import results
from tests.harness.project import DIALECTS, Project
from tests.harness.servers import wait_until
from tests.harness.serving import GATED, LIVE, READY, SERVERS, Answer, Server, serving

QUICK = {"sync", "sync-preload", "gevent-preload", "waitress", "uwsgi", "uwsgi-threads", "flask-reload"}
UWSGI = ("uwsgi", "uwsgi-lazy")
#: Where no thread can migrate, and the word by which the log says so.
BLOCKED = {name: "gevent" if "gevent" in name else "--enable-threads" for name in ("gevent", "gevent-preload", *UWSGI)}
#: Fifteen seconds; a database that commits schema changes shows the column from the first on, and not yet its rows.
FIFTEEN_SECONDS = """
@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True))
"""
FIFTEEN_SECONDS_LATER = """
@migration
def takes_fifteen_seconds(op):
    import os, time
    with open(os.environ["BEGUN"], "a") as begun:
        begun.write("%d\\n" % os.getpid())
    op.add_column("effects", Column("late", Integer))
    for number in range(15):
        op.execute(f"INSERT INTO effects (late) VALUES ({number})")
        dialect = op.connection.dialect.name
        if dialect == "sqlite":
            time.sleep(1)
        else:
            op.execute("SELECT pg_sleep(1)" if dialect == "postgresql" else "SELECT SLEEP(1)")
"""
HISTORY = [("make_effects", "applied"), ("gated", "applied")]


def each(names: Collection[str]) -> list[Any]:
    """Each server on each kind of database; a few of them are enough for those who will not wait."""
    return [
        pytest.param(dialect, name, marks=[] if dialect == "sqlite" and name in QUICK else [pytest.mark.slow])
        for dialect in DIALECTS
        for name in sorted(names)
    ]


@pytest.fixture
def url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    """An empty database of the kind that the test names."""
    return new_url(request.param)


def of_each_process(server: Server, path: str) -> list[Answer]:
    """What all processes of a server answer, each at least once."""
    found: list[Answer] = []

    def all_answered() -> bool:
        with ThreadPoolExecutor(2 * server.workers) as pool:
            found.extend(pool.map(lambda _: server.ask(path), range(4 * server.workers)))
        return len({answer.process for answer in found}) == server.workers

    wait_until(all_answered)
    return found


def until_served(server: Server) -> list[list[Answer]]:
    """What each of several clients was answered, one request after the other, until every process serves."""
    ready: set[int] = set()

    def ask(path: str) -> list[Answer]:
        found = []
        while len(ready) < server.workers:
            found.append(server.ask(path))
            if path == READY and found[-1].status == 200:
                ready.add(found[-1].process)
        return [*found, server.ask(path)]

    clients = [READY, "/effects"] * max(3, server.workers // 2)
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(ask, clients))


def check_turned_once(answers: list[Answer]) -> None:
    """A client is refused until it is served, by whatever process, and from then on served."""
    statuses = [answer.status for answer in answers]
    turned = statuses.index(200)
    assert set(statuses[:turned]) <= {503}
    assert set(statuses[turned:]) == {200}


@pytest.mark.parametrize(("url", "name"), each(SERVERS.keys() - {*BLOCKED, "four", "sixteen"}), indirect=["url"])
def test_it_answers_while_a_thread_migrates(project: Project, tmp_path: Path, name: str) -> None:
    project.write(GATED)
    with serving(project, tmp_path, name, DB_SMART_BOOT="background") as server:
        if name != "uwsgi-threads":  # there it begins with the first request or probe
            wait_until(server.began)
        assert {answer.status for answer in of_each_process(server, LIVE)} == {200}
        wait_until(server.began)
        assert {answer.status for answer in of_each_process(server, READY)} == {503}
        for answer in of_each_process(server, "/effects"):
            assert answer.status == 503
            assert 1 <= int(answer.headers["Retry-After"]) <= 30
        server.gate.touch()
        clients = until_served(server)
        for answers in clients:
            check_turned_once(answers)
        for answers in clients[1::2]:
            assert {answer.text for answer in answers if answer.status == 200} == {"1"}
        assert len(server.began()) == 1
    assert project.history() == HISTORY
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "WORKER TIMEOUT" not in log


@pytest.mark.parametrize(("url", "name"), each(BLOCKED), indirect=["url"])
def test_where_no_thread_can_it_says_so_and_migrates_first(project: Project, tmp_path: Path, name: str) -> None:
    project.write(GATED)
    with serving(project, tmp_path, name, DB_SMART_BOOT="background") as server:
        if name == "gevent-preload":  # the process that loads the application is not changed by gevent
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(server.ask, "/effects")
                wait_until(server.began)
                server.gate.touch()
                assert (first.result().status, first.result().text) == (200, "1")
        else:
            wait_until(server.began)
            server.gate.touch()
        assert {(answer.status, answer.text) for answer in of_each_process(server, "/effects")} == {(200, "1")}
        assert {answer.status for answer in of_each_process(server, READY)} == {200}
        assert len(server.began()) == 1
    assert project.history() == HISTORY
    assert BLOCKED[name] in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql", "sync"),
        pytest.param("sqlite", "gthread", marks=pytest.mark.slow),
        pytest.param("postgresql", "gthread-preload", marks=pytest.mark.slow),
        ("mariadb", "waitress"),
        pytest.param("postgresql", "flask-reload", marks=pytest.mark.slow),
    ],
    indirect=["url"],
)
def test_a_server_that_ends_in_the_middle_frees_the_lock(project: Project, tmp_path: Path, name: str) -> None:
    """SIGTERM, as at the end of a container: the thread rolls back, and nobody has to wait for a lease of a minute."""
    project.write(GATED)
    with serving(project, tmp_path, name, lease=60, DB_SMART_BOOT="background") as server:
        wait_until(server.began)
        began = time.monotonic()
        server.process.terminate()
        server.process.wait(20)
        assert time.monotonic() - began < 15
        server.gate.touch()
        assert project.boot(DB_SMART_LOCK_TIMEOUT=5, DB_SMART_LEASE_SECONDS=60).decision == "migrated"
        assert "Traceback" not in server.log.read_text()
    assert project.history() == HISTORY


def watched(server: Server, finished: threading.Event) -> list[list[tuple[float, Answer]]]:
    """What each of four clients was answered, and when, until the end; a killed worker answers nothing."""

    def watch(path: str) -> list[tuple[float, Answer]]:
        found = []
        while not finished.wait(0.02):
            with suppress(OSError, http.client.HTTPException):
                found.append((time.monotonic(), server.ask(path)))
        return found

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(watch, [READY, READY, "/effects", "/effects"]))


@pytest.mark.slow
@pytest.mark.parametrize("url", DIALECTS, indirect=True)
@pytest.mark.parametrize("kills", [0, 2])
def test_fifteen_seconds_of_migration_with_a_timeout_of_three(project: Project, tmp_path: Path, kills: int) -> None:
    """One start, no worker that Gunicorn kills, and nothing served before all is there."""
    project.write(FIFTEEN_SECONDS)
    project.boot()
    project.write(FIFTEEN_SECONDS + FIFTEEN_SECONDS_LATER)
    finished = threading.Event()
    started = time.monotonic()
    with serving(project, tmp_path, "four", lease=3, DB_SMART_BOOT="background") as server:
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watched, server, finished)
            try:
                for number in range(1, kills + 1):
                    wait_until(lambda number=number: len(server.began()) == number)  # type: ignore[misc]
                    time.sleep(2)
                    os.kill(server.began()[-1], signal.SIGKILL)
                wait_until(lambda: project.history()[-1] == ("takes_fifteen_seconds", "applied"), seconds=150)
                committed = time.monotonic()
                wait_until(lambda: {answer.status for answer in of_each_process(server, READY)} == {200})
            finally:
                finished.set()
            clients = watching.result()
        log = server.log.read_text()
    assert len(server.began()) == kills + 1
    assert log.count("Booting worker") == server.workers + kills
    assert "WORKER TIMEOUT" not in log
    assert project.query("SELECT late FROM effects ORDER BY id") == [(number,) for number in range(15)]
    for answers in clients:
        check_turned_once([answer for _, answer in answers])
    for answers in clients[2:]:
        assert {answer.text for _, answer in answers if answer.status == 200} <= {"15"}
    probes = sorted(answer for answers in clients[:2] for answer in answers)
    ready = min(moment for moment, answer in probes if answer.status == 200)
    last = max(moment for moment, answer in probes if answer.status == 503)
    count = sum(len(answers) for answers in clients)
    results.append(
        f"background on {project.dialect}, {kills} kills: {committed - started:.0f} s, {count} answers, ready "
        f"{ready - committed:+.2f} s after the commit was seen, the last process {last - ready:+.2f} s later"
    )


#: By themselves, these wait for the lock, hold it, or look how far the server is.
OURS = ("db-smart-boot", "db-smart-background", "db-smart-heartbeat", "db-smart-progress")


@pytest.mark.slow
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_sixteen_processes_and_a_migration_that_serving_does_not_wait_for(project: Project, tmp_path: Path) -> None:
    """Each migration runs once; a process asks one query a second until it is ready, and none from then on."""
    later = "\n@migration(background=True)\ndef later(op): op.execute('INSERT INTO effects (id) VALUES (2)')\n"
    project.write(GATED + later)
    with serving(project, tmp_path, "sixteen", DB_SMART_BOOT="background") as server:
        wait_until(server.began)
        of_each_process(server, LIVE)
        began = time.time()
        while time.time() < began + 3:
            assert {answer.status for answer in of_each_process(server, READY)} == {503}
        asked = time.time()
        server.gate.touch()
        for answers in until_served(server):
            for process in {one.process for one in answers if one.status == 200}:  # the flag is not written yet
                check_turned_once([one for one in answers if one.process == process])
        looks = [pid for pid, thread, when, _ in server.sent() if thread not in OURS and began < when < asked]
        assert looks
        assert max(looks.count(pid) for pid in set(looks)) <= asked - began + 1
        wait_until(lambda: project.history() == [*HISTORY, ("later", "applied")])
        wait_until(lambda: all("background" not in one.text for one in of_each_process(server, READY)))
        served = time.time()
        assert {answer.text for answer in of_each_process(server, "/effects")} == {"2"}
        of_each_process(server, READY)
        assert {statement for *_, when, statement in server.sent() if when > served} == {"SELECT count(*) FROM effects"}
        assert len(server.began()) == 1
    assert "Traceback" not in server.log.read_text()
