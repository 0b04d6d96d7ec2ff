"""Revisions behind PgBouncer in transaction mode, where a session is not one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import URL

from tests.harness.alembic_project import AlembicProject
from tests.harness.kill_revisions import DIRECTORIES
from tests.harness.processes import run_harness

PROCESSES = 32
REVISIONS = 10


@pytest.mark.parametrize("name", sorted(DIRECTORIES))
def test_as_without_it(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], postgres: URL, name: str
) -> None:
    """All revisions at once, and one by each boot, as releases have them."""

    def schema(project: AlembicProject) -> dict[str, Any]:
        """Asked without PgBouncer, for which psycopg would have to be told not to prepare what it sends often."""
        assert isinstance(project.url, URL)
        return project.at(postgres.set(database=project.url.database)).schema()

    direct = make_alembic(new_url("postgresql"))
    for number, body in enumerate(DIRECTORIES[name]):
        direct.revision(f"r{number}", f"r{number - 1}" if number else None, body)
    names = tuple(f"r{number}" for number in range(len(DIRECTORIES[name])))
    assert direct.boot().applied == names
    between = direct.at(new_url("pgbouncer"))
    assert between.boot().applied == names
    assert schema(between) == direct.schema()
    assert between.history() == direct.history()
    assert between.query("SELECT * FROM db_smart_progress") == []
    stepwise = direct.at(new_url("pgbouncer"))
    for one in names:
        stepwise.target = one
        stepwise.flag.unlink(missing_ok=True)
        assert stepwise.boot().applied == (one,)
    assert schema(stepwise) == direct.schema()


@pytest.mark.slow
def test_a_kill_at_every_statement(new_url: Callable[[str], URL]) -> None:
    report = run_harness("kill_revisions", "pgbouncer", [new_url("pgbouncer")], "--every", "3", "--without-plain")
    ours = report["db-smart"]
    assert ours["kills"] >= 80
    assert (ours["converged"], ours["failed"], ours["different"]) == (ours["kills"], 0, 0), report["stderr"]


@pytest.mark.slow
def test_a_herd(new_url: Callable[[str], URL]) -> None:
    options = ("--revisions", "--processes", str(PROCESSES), "--migrations", str(REVISIONS))
    report = run_harness("herd", "pgbouncer, revisions", [new_url("pgbouncer")], *options)
    for name in ("cold", "one pending", "no flag", "flag"):
        counts = report[name]
        effects = REVISIONS - 1 if name == "cold" else REVISIONS
        assert (name, counts["failed"], counts["repeated"], counts["effects"]) == (name, 0, 0, effects), report
    assert report["flag"]["connections"] == 0
