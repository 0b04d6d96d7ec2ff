"""Constraints of a table that the same run has made and filled, and how one is called that its rows break."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness.project import Project

FILLED = """
@migration
def table(op):
    op.create_table("t", Column("id", Integer, primary_key=True), Column("n", Integer))
    op.execute("INSERT INTO t (id, n) VALUES (1, 1)")
    op.execute("INSERT INTO t (id, n) VALUES (2, 2)")
"""


def test_the_plain_form_is_taken_for_a_table_that_the_same_migration_has_filled(project: Project) -> None:
    project.write("")
    project.boot()
    project.write(f"""{FILLED}
    op.create_check_constraint("ck_n", "t", "n > 0")
    op.create_unique_constraint("uq_n", "t", ["n"])
""")
    dry = project.run("migrate", "--dry-run", "--json")
    assert [item["error"] for item in json.loads(dry.stdout)["pending"]] == [None]
    project.boot()
    for sql in ("INSERT INTO t (id, n) VALUES (3, 0)", "INSERT INTO t (id, n) VALUES (3, 1)"):
        with pytest.raises(Exception, match="(?i)constraint|duplicate"):
            project.query(sql)


def test_a_unique_constraint_is_called_by_its_own_name(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("postgresql"))
    filled = FILLED.replace("VALUES (2, 2)", "VALUES (2, 1)")
    project.write(filled)
    project.boot()
    project.write(
        filled + '\n@migration\ndef unique(op):\n    op.create_unique_constraint("uq_n", "t", ["n"])\n',
    )
    with pytest.raises(MigrationFailed) as caught:
        project.boot()
    assert "DS204 The constraint 'uq_n' of 't': existing rows break it. 2 rows have" in str(caught.value)
    assert "create_index" not in str(caught.value)
