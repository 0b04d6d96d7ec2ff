"""Code of the application that a fleet calls, and that does what it should not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from tests.harness.fleets import FleetProject
from tests.samples import V1


def exits(status: object) -> str:
    return V1 + f"@migration\ndef ends(op):\n    raise SystemExit({status!r})\n"


class InPlace(Executor):
    """An executor that does the work at once, as a worker elsewhere would."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("status", [0, "enough"])
def test_a_migration_that_exits_is_a_failure_of_its_tenant(fleet: FleetProject, status: object) -> None:
    fleet.write(exits(status))
    result = fleet.run("fleet", "migrate")
    assert (result.exit_code, result.output.count(f"SystemExit: {status}")) == (1, 3)
    assert {fleet.applied(name)[0] for name in "abc"} == {"make_items"}
    assert fleet.ledger() == dict.fromkeys("abc", ("failed", 1))


def test_a_place_or_a_worker_that_exits_is_a_failure_of_its_tenant(make_fleet: Callable[..., FleetProject]) -> None:
    fleet = make_fleet("sqlite", "a", "b")
    place = fleet.url_of
    fleet.options["url"] = lambda name: sys.exit(0) if name == "a" else place(name)
    fleet.write(V1)
    run = fleet.migrate()
    assert ([one.name for one in run.failures], run.counts["applied"]) == (["a"], 1)
    executor = InPlace()
    app = fleet.directory / "ends.py"
    app.write_text("import sys\nsys.exit(0)\n")
    fleet.query("DELETE FROM db_smart_fleet")
    run = fleet.migrate(executor=executor, factory=str(app))
    assert run.counts["failed"] == 2
    assert "has not answered (SystemExit: 0)" in str(run.failures[0].error)
