"""The database goes away in the middle of a run: a connection is cut, or the whole server restarts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import servers
from tests.harness.databases import connected
from tests.harness.own_servers import OwnMariaDB, OwnPostgres, OwnServer
from tests.harness.processes import Start, in_the_middle, line_with
from tests.harness.project import Project
from tests.harness.servers import wait_until

EFFECTS = """
@migration
def quick(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(20)))

@migration
def slow(op):
    op.execute("INSERT INTO effects (name) VALUES ('one')")
    op.add_column("effects", Column("more", Integer))
    op.execute("INSERT INTO effects (name) VALUES ('two')")
    import os
    if os.environ.get("GATE"):
        print("in the middle", flush=True)
        with open(os.environ["GATE"]) as gate:
            gate.read()
    op.execute("INSERT INTO effects (name) VALUES ('three')")
"""


@pytest.fixture(scope="module", params=[OwnPostgres, OwnMariaDB])
def own_server(request: pytest.FixtureRequest) -> Iterator[OwnServer]:
    server: OwnServer = request.param()
    yield server
    server.remove()


@pytest.fixture
def url(own_server: OwnServer) -> Iterator[URL]:
    """An empty database on a server of our own."""
    with servers.new_database(own_server.url) as url:
        yield url


def sessions(connection: sa.Connection, words: str = "") -> set[int]:
    """The other connections to the database of this one, whose statement holds some words, by their number."""
    if connection.dialect.name == "postgresql":
        query = """
            SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE :words"""
    else:
        query = """
            SELECT id FROM information_schema.processlist
            WHERE db = database() AND id <> connection_id() AND coalesce(info, '') LIKE :words"""
    return set(connection.scalars(sa.text(query), {"words": f"%{words}%"}))


@contextmanager
def heartbeat_waiting(project: Project) -> Iterator[tuple[Callable[[set[int]], None], set[int], set[int]]]:
    """Hold the row of the lease, so that the heartbeat's connection waits for it.

    :returns: what cuts connections, those of the process that migrates, and those of its heartbeat.
    """
    with connected(project.url, isolation_level="AUTOCOMMIT") as admin:
        theirs = sessions(admin)
        with connected(project.url) as blocker:
            blocker.exec_driver_sql("SELECT * FROM db_smart_state FOR UPDATE")
            heart = wait_until(lambda: sessions(admin, "UPDATE db_smart_state%lease_migration"))
            kill = "SELECT pg_terminate_backend(%s)" if admin.dialect.name == "postgresql" else "KILL %s"

            def cut(numbers: set[int]) -> None:
                for number in numbers:
                    admin.exec_driver_sql(kill, (number,))

            yield cut, theirs | heart, heart


def failed_clearly(child: subprocess.Popen[str]) -> None:
    """The one message of a process that lost the database in the middle of ``slow``."""
    output, error = child.communicate(timeout=60)
    assert child.returncode == 1, output + error
    assert output.startswith("Migration 'slow' failed on the database 'default'"), output
    assert "INSERT INTO effects (name) VALUES ('three')" in output
    assert "kept" in output
    assert "start again: the next run tries it again" in output
    assert "Traceback" not in output + error


def every_effect_is_there_once(project: Project) -> None:
    assert project.query("SELECT name FROM effects ORDER BY id") == [("one",), ("two",), ("three",)]
    assert project.columns("effects") == {"id", "name", "more"}
    applied = [name for name, outcome in project.history() if outcome == "applied"]
    assert applied == ["quick", "slow"]


def test_all_connections_of_the_holder_are_cut(project: Project, start_child: Start, gate: Path) -> None:
    project.write(EFFECTS)
    child = start_child(gate)
    in_the_middle(child)
    with heartbeat_waiting(project) as (cut, theirs, heart):
        assert heart < theirs
        cut(theirs)
    line_with(child, "heartbeat failed")
    gate.write_text("")
    failed_clearly(child)
    assert project.boot().applied == ("slow",)
    every_effect_is_there_once(project)


def test_only_the_connection_of_the_heartbeat_is_cut(project: Project, start_child: Start, gate: Path) -> None:
    project.write(EFFECTS)
    child = start_child(gate)
    in_the_middle(child)
    with heartbeat_waiting(project) as (cut, _, heart):
        cut(heart)
        line_with(child, "heartbeat failed")
    gate.write_text("")
    output, error = child.communicate(timeout=60)
    assert output == "migrated\n", output + error
    every_effect_is_there_once(project)


def test_the_server_restarts_under_the_holder(
    project: Project, start_child: Start, gate: Path, own_server: OwnServer
) -> None:
    project.write(EFFECTS)
    child = start_child(gate)
    in_the_middle(child)
    with own_server.down():
        pass
    gate.write_text("")
    failed_clearly(child)
    assert project.boot().applied == ("slow",)
    every_effect_is_there_once(project)


def test_the_server_is_gone_for_good(project: Project, start_child: Start, gate: Path, own_server: OwnServer) -> None:
    project.write(EFFECTS)
    child = start_child(gate)
    in_the_middle(child)
    with own_server.down():
        gate.write_text("")
        failed_clearly(child)
        output, error = start_child().communicate(timeout=60)
        assert output.startswith("Cannot connect to the database 'default'")
        assert "Traceback" not in output + error
    assert project.boot().applied == ("slow",)
    every_effect_is_there_once(project)


def test_who_waits_outlasts_a_restart_of_the_server(
    project: Project, start_child: Start, gate: Path, own_server: OwnServer
) -> None:
    project.write(EFFECTS)
    child = start_child(gate)
    in_the_middle(child)
    waiters = [start_child(flag=f"flag{number}") for number in range(2)]
    for waiter in waiters:
        line_with(waiter, "waiting for")
    with own_server.down():
        for waiter in waiters:
            line_with(waiter, "waiting for the database")
    gate.write_text("")
    failed_clearly(child)
    decisions = []
    for waiter in waiters:
        output, error = waiter.communicate(timeout=60)
        assert waiter.returncode == 0, output + error
        decisions.append(output)
    assert decisions.count("migrated\n") == 1, decisions
    assert set(decisions) <= {"migrated\n", "verified\n"}
    every_effect_is_there_once(project)
