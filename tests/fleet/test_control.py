"""A control database that cannot be written, or that goes away in the middle: one message, and nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.errors import DatabaseUnreachable
from tests.harness.fleets import COUNTED, FleetProject, check_each_once
from tests.samples import V1


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried again once."""
    monkeypatch.setattr("aurum_harmony.db_smart.fleet.ledger._RETRIES", 1)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_that_cannot_be_written_is_a_line(make_fleet: Callable[..., FleetProject], kind: str) -> None:
    fleet = make_fleet(kind, "a")
    fleet.write(V1)
    url = make_url(fleet.url)
    if kind == "sqlite":
        fleet.query("CREATE TABLE made (id INTEGER)")
        url = url.set(database=f"file:{url.database}").update_query_dict({"mode": "ro", "uri": "true"})
    else:
        url = url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    tenants = fleet.url_of("a")
    fleet.options["url"] = lambda _: tenants
    result = fleet.run("fleet", "migrate", SQLALCHEMY_DATABASE_URI=url)
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (1, True), result.exception
    assert "Cannot write the ledger of the fleet" in result.output
    assert result.output.count("\n") == 1
    assert "db_smart_fleet" not in fleet.tables()


@pytest.mark.usefixtures("soon")
def test_a_ledger_that_is_lost_in_the_middle_ends_the_run_and_the_next_one_does_the_rest(fleet: FleetProject) -> None:
    fleet.write(COUNTED)
    broken: list[Any] = []

    def listen(_: object, result: object) -> None:
        if result is not None and not broken:
            broken.append(result)
            fleet.query("ALTER TABLE db_smart_fleet RENAME TO lost")

    with pytest.raises(DatabaseUnreachable, match="What was applied to tenants stays applied"):
        fleet.migrate(workers=1, listener=listen)
    fleet.query("ALTER TABLE lost RENAME TO db_smart_fleet")
    assert fleet.migrate().complete
    check_each_once(fleet)
