"""Revisions survive a kill at any statement, on every database."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import URL

from tests.harness.processes import run_harness


@pytest.mark.slow
def test_a_kill_at_every_statement_of_a_revision_leaves_nothing_behind(url: URL) -> None:
    """At every statement on SQLite, and for the sake of time at each N-th on servers, where it takes longer."""
    backend = url.get_backend_name()
    every = {"sqlite": "1", "postgresql": "2", "mysql": "5"}[backend]
    report = run_harness("kill_revisions", backend, [url], "--every", every)
    ours, plain = report["db-smart"], report["flask db upgrade"]
    assert ours["kills"] >= 100
    assert (ours["converged"], ours["failed"], ours["different"]) == (ours["kills"], 0, 0), report["stderr"]
    rescue = report["rescue"]
    assert plain["kills"] >= 20  # a figure to compare with: how many of them no later upgrade mends
    assert rescue["wrong"] == 0, report["stderr"]
    assert rescue["broken"] == plain["failed"] + plain["different"] == rescue["finished"] + rescue["told"]
    assert rescue["finished"] > rescue["told"]
