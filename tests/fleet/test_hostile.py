"""Code of the application that a fleet calls, and that does what it should not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import sqlalchemy as sa
from flask import current_app

from aurum_harmony.db_smart.errors import WrongUsage
from aurum_harmony.db_smart.fleet.ledger import Result
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


@pytest.mark.parametrize("kind", ["nothing", "of another one", "the same future"])
def test_an_executor_that_mixes_results_up_is_not_believed(make_fleet: Callable[..., FleetProject], kind: str) -> None:
    fleet = make_fleet("sqlite", "a", "b", "c")
    fleet.write(V1)
    same: Future[Any] = Future()
    same.set_result(Result("a", "applied"))
    mixed = {"nothing": lambda *_: None, "of another one": lambda *_: Result("a", "applied")}.get(kind)

    class Mixed(InPlace):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return same if mixed is None else super().submit(mixed, *args)

    run = fleet.migrate(executor=Mixed(), workers=3)
    done = {"a"} if kind != "nothing" else set()
    assert (run.complete, run.counts["applied"], run.counts["failed"] + run.left) == (False, len(done), 3 - len(done))
    assert {name for name, row in fleet.ledger().items() if row[0] == "applied"} == done
    assert bool(run.stopped) == (kind == "the same future")


@pytest.mark.parametrize("option", ["workers", "per_server", "stop_after"])
def test_a_run_of_nobody_is_refused(make_fleet: Callable[..., FleetProject], option: str) -> None:
    fleet = make_fleet("sqlite", "a")
    fleet.write(V1)
    for number in (0, -1):
        with pytest.raises(WrongUsage, match=f"{option} must be at least 1"):
            fleet.migrate(**{option: number})
    assert fleet.tables() == set()


def test_a_tenant_that_is_named_twice_is_one_and_one_may_be_in_no_group(
    make_fleet: Callable[..., FleetProject],
) -> None:
    fleet = make_fleet("sqlite", "a", "b", groups={"b": "later"}.get)
    fleet.names.append("a")
    fleet.write(V1)
    assert fleet.migrate(group="later").counts["applied"] == 1
    run = fleet.migrate()
    assert (run.total, run.counts["applied"], run.complete) == (2, 1, True)
    assert fleet.run("fleet", "status", "--check").exit_code == 0


def test_names_that_cannot_be_read_have_a_clear_answer(fleet: FleetProject) -> None:
    def listed() -> Any:
        return current_app.extensions["sqlalchemy"].session.scalars(sa.text("SELECT slug FROM customers"))

    fleet.options["tenants"] = listed
    fleet.write(V1)
    for args in (("migrate",), ("status",)):
        result = fleet.run("fleet", *args)
        assert (result.exit_code, isinstance(result.exception, SystemExit)) == (1, True), result.exception
        assert "cannot tell the names of the tenants" in result.output
        assert "customers" in result.output
    assert fleet.tables() == set()
