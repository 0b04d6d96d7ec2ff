"""A script for an empty database begins its first run; the next boot completes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from tests.harness.clients import run_client
from tests.harness.models import fresh, models, schema
from tests.harness.project import Project
from tests.samples import CASES

ODD = """
@migration
def odd(op: Operations) -> None:
    op.session.execute(sa.text("SELECT 1"))

"""


def test_the_next_run_says_that_it_completes_the_first_one(project: Project) -> None:
    project.write('@migration\ndef table(op):\n    op.create_table("t", Column("id", Integer, primary_key=True))\n')
    run_client(project.url, project.run("migrate", "--sql").stdout)
    text = project.run("migrate").output
    assert "no history" not in text
    assert "holds every migration of this code, and its first run is not complete yet" in text
    assert "Migration already completed" in project.run("migrate").output


@pytest.mark.parametrize("case", ["rename", "data, then drop", "table"])
def test_what_such_a_script_leaves_the_next_boot_does_as_in_a_first_run(
    case: str, project: Project, new_url: Callable[[str], URL]
) -> None:
    _, source, last = CASES[case]
    project.models = models(**last)
    first, *others = source.split("\n@migration")[1:]
    project.write("\n@migration".join(["import sqlalchemy as sa\n", f"{first}{ODD}", *others]))
    by_script = fresh(project, new_url)
    project.boot()
    script = by_script.run("migrate", "--sql").stdout
    assert "Left to db-smart" in script
    run_client(by_script.url, script)
    assert len(by_script.history()) == 1
    by_script.boot()
    assert schema(by_script.url) == schema(project.url)
    assert sorted(by_script.history()) == sorted(project.history())
    assert by_script.boot().applied == ()
