"""Many processes that boot at once with an Alembic directory: each revision runs once, and all of them serve."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import URL

from tests.harness.processes import run_harness

PROCESSES = 64
REVISIONS = 20


@pytest.mark.slow
def test_a_herd(url: URL) -> None:
    options = ("--revisions", "--processes", str(PROCESSES), "--migrations", str(REVISIONS))
    report = run_harness("herd", f"{url.get_backend_name()}, revisions", [url], *options)
    for name in ("cold", "one pending", "no flag", "flag"):
        counts = report[name]
        effects = REVISIONS - 1 if name == "cold" else REVISIONS
        assert (name, counts["failed"], counts["repeated"], counts["effects"]) == (name, 0, 0, effects), report
    assert report["flag"]["connections"] == 0
