"""Runs that are ended in the middle: what is done is not done again, and the next run does the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.harness.fleets import COUNTED, FleetProject, check_each_once, write_application
from tests.harness.processes import ROOT, environment


@pytest.fixture
def started(fleet: FleetProject) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts runs over a fleet of forty tenants, in processes of their own."""
    fleet.make(*(f"n{number}" for number in range(37)))
    fleet.write(COUNTED)
    module = write_application(fleet)
    processes: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flask", "--app", module, "db-smart", "fleet", "migrate", *args]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=fleet.directory,
            env=environment(PYTHONPATH=os.pathsep.join([str(fleet.directory), str(ROOT)])),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read(process: subprocess.Popen[str], count: int) -> set[str]:
    """The names of the first tenants that a run is through with."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [process.stdout.readline() for _ in range(count)]
    assert all(lines), process.stderr.read()
    return {json.loads(line)["name"] for line in lines}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(fleet: FleetProject, started: Callable[..., subprocess.Popen[str]]) -> None:
    known: set[str] = set()
    for _ in range(3):
        process = started("--json-lines", "--workers", "4")
        seen = read(process, 7)
        # Only what was applied and not yet written down when the last run was killed is looked at again.
        assert not seen & known
        process.kill()
        process.communicate()
        known = set(fleet.ledger())
    process = started("--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    data = json.loads(output)
    assert (data["failed"], data["left"], data["total"]) == (0, 0, 40)
    assert data["up_to_date"] >= len(known)
    check_each_once(fleet)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_what_is_done(
    fleet: FleetProject, started: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = started("--json-lines", "--workers", "4")
    seen = read(process, 5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Interrupted while migrating the fleet" in errors) == (128 + number, True), errors
    assert "Traceback" not in errors
    ledger = fleet.ledger()
    assert seen <= ledger.keys()
    assert set(ledger.values()) == {("applied", 0)}
    # Nobody has to wait for its lease.
    assert fleet.query("SELECT expires, holder FROM db_smart_fleet_lease") == [(0, "")]
    process = started()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    check_each_once(fleet)


@pytest.mark.slow
def test_processes_get_names_and_make_the_application_themselves(
    fleet: FleetProject, started: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_application(fleet)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fleet.directory), str(ROOT)]))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        run = fleet.migrate(executor=pool, factory=module)
    assert (run.failures, run.counts["applied"]) == ([], 40)
    check_each_once(fleet)
    fleet.write(COUNTED + "\n@migration\ndef more(op):\n    op.add_column('items', Column('n', Integer))\n")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(os.getpid).result()
        first = fleet.migrate(executor=pool, factory=module, only=["a"])
        assert first.counts["applied"] == 1
        # A worker that still has the release before this one changes nothing.
        fleet.write(COUNTED + "\n@migration\ndef other(op):\n    op.add_column('items', Column('m', Integer))\n")
        run = fleet.migrate(executor=pool, factory=module)
    assert run.counts["failed"] == 40
    assert "other migrations" in str(run.failures[0].error)
    assert fleet.applied("b") == ["make_items", "count"]
