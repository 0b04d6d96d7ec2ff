"""A real cluster of Dask on this machine: a scheduler and workers, which are processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.fleets import COUNTED, FleetProject, check_each_once, write_application
from tests.harness.processes import ROOT, environment
from tests.harness.servers import missing, program

pytestmark = pytest.mark.slow
COUNT = 60
ROLES = ("SCHEDULER", "WORKER", "CLIENT")


def certificates(folder: Path) -> dict[str, str]:
    """A certificate authority, one certificate of it for all, and what tells Dask to ask for it, as the docs say."""
    openssl = program("openssl")
    if openssl is None:
        missing("there is no openssl")

    def run(*args: str) -> None:
        subprocess.run([str(openssl), *args], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    run("req", "-x509", *key, "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=fleet-ca")
    run("req", *key, "fleet.key", "-out", "fleet.csr", "-subj", "/CN=fleet")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    run("x509", "-req", "-in", "fleet.csr", *signed, "-out", "fleet.pem")
    parts = [(f"{role}__{part}", f"fleet.{end}") for role in ROLES for part, end in (("CERT", "pem"), ("KEY", "key"))]
    files = {name: str(folder / file) for name, file in [("CA_FILE", "ca.pem"), *parts]}
    return {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"} | {
        f"DASK_DISTRIBUTED__COMM__TLS__{name}": file for name, file in files.items()
    }


class Cluster:
    """A scheduler and its workers.

    :param tls: settings of the processes for ``tls://``; empty for ``tcp://``.
    """

    def __init__(self, fleet: FleetProject, stack: ExitStack, tls: dict[str, str]) -> None:
        self._fleet = fleet
        self._stack = stack
        self._settings = tls
        protocol = "tls" if tls else "tcp"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"{protocol}://127.0.0.1:{port}"
        self.scheduler = self.start(
            "distributed.cli.dask_scheduler",
            *("--protocol", protocol, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
        )
        self.workers = [self.worker() for _ in range(2)]

    def worker(self) -> subprocess.Popen[str]:
        """Start one worker with two threads."""
        options = ("--no-nanny", "--nthreads", "2", "--no-dashboard", "--death-timeout", "20")
        local = ("--local-directory", str(self._fleet.directory))
        return self.start("distributed.cli.dask_worker", self.address, *options, *local)

    def start(self, module: str, *args: str) -> subprocess.Popen[str]:
        """Start a process that can import the application."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if module != "flask" else subprocess.PIPE,
            text=True,
            cwd=self._fleet.directory,
            env=environment(PYTHONPATH=os.pathsep.join([str(self._fleet.directory), str(ROOT)]), **self._settings),
        )
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        return process

    def migrate(self, app: str, *args: str) -> subprocess.Popen[str]:
        """Start a run over the fleet."""
        return self.start(
            "flask", "--app", app, "db-smart", "fleet", "migrate", "--json-lines", "--dask", self.address, *args
        )


@pytest.fixture(params=["tcp"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, make_fleet: Callable[..., FleetProject]
) -> Iterator[tuple[FleetProject, Cluster, str]]:
    """A fleet of many SQLite files, a cluster, and the application."""
    pytest.importorskip("distributed")
    fleet = make_fleet("sqlite", *(f"n{number}" for number in range(COUNT)))
    fleet.write(COUNTED)
    app = write_application(fleet)
    with ExitStack() as stack:
        yield fleet, Cluster(fleet, stack, certificates(tmp_path) if request.param == "tls" else {}), app


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """The first lines that a run prints."""
    assert process.stdout is not None
    assert process.stderr is not None
    found = [process.stdout.readline() for _ in range(count)]
    assert all(found), process.stderr.read()
    return found


@pytest.mark.parametrize("cluster", ["tls"], indirect=True)
def test_a_worker_that_is_killed_leaves_its_tenants_to_others(
    cluster: tuple[FleetProject, Cluster, str],
) -> None:
    fleet, dask, app = cluster
    process = dask.migrate(app, "--workers", "6")
    seen = lines(process, 10)
    dask.workers[0].kill()
    output, errors = process.communicate(timeout=120)
    found = [json.loads(line) for line in [*seen, *output.splitlines()]]
    assert process.returncode == 0, errors
    assert (found[-1]["failed"], found[-1]["left"], found[-1]["total"]) == (0, 0, COUNT)
    assert sorted(one["name"] for one in found[:-1]) == sorted(fleet.names)
    assert not [url for url in map(fleet.url_of, fleet.names) if str(url) in output]
    check_each_once(fleet)


def test_a_scheduler_that_is_killed_ends_the_run_and_the_next_one_goes_on(
    cluster: tuple[FleetProject, Cluster, str],
) -> None:
    fleet, dask, app = cluster
    process = dask.migrate(app, "--workers", "6")
    seen = lines(process, 10)
    dask.scheduler.kill()
    output, errors = process.communicate(timeout=120)
    found = [json.loads(line) for line in [*seen, *output.splitlines()] if line.startswith("{")]
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    last, tenants = found[-1], found[:-1]
    done = {one["name"] for one in tenants if one["status"] == "applied"}
    assert len(done) == last["applied"] < COUNT
    assert last["applied"] + last["failed"] + last["left"] == COUNT
    # What is reported as done is done.
    for name in done:
        assert fleet.applied(name) == ["make_items", "count"]
    again = fleet.migrate()
    assert (again.failures, again.counts["up_to_date"] >= len(done)) == ([], True)
    check_each_once(fleet)


def test_a_cluster_that_is_not_there_has_a_clear_answer(make_fleet: Callable[..., FleetProject]) -> None:
    pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    fleet = make_fleet("sqlite", "a")
    fleet.write(COUNTED)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):  # instead of 30
        result = fleet.run("fleet", "migrate", "--dask", "tcp://127.0.0.1:9")
        assert (result.exit_code, "No scheduler of Dask" in result.output) == (1, True)
        # Without certificates.
        result = fleet.run("fleet", "migrate", "--dask", "tls://127.0.0.1:9")
        assert (result.exit_code, "No scheduler of Dask" in result.output, "TLS" in result.output) == (1, True, True)
    assert fleet.tables() == set()
