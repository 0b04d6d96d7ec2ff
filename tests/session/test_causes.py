"""A migration that fails after it has changed rows: the database's own words are shown, not how it was cleaned up."""

from __future__ import annotations

import pytest

from aurum_harmony.db_smart import DbSmartError
from tests.harness.project import Project

TABLE = """
@migration
def make(op):
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("n", Integer), Column("name", String(20)))
    op.execute("INSERT INTO notes (id, n, name) VALUES (1, 1, 'a'), (2, 2, 'a')")
"""
#: What a migration writes first, and by what.
WRITES = {
    "op": 'op.execute("UPDATE notes SET n = 5")',
    "connection": 'op.connection.execute(text("UPDATE notes SET n = 5"))',
    "session": 'op.session.execute(text("UPDATE notes SET n = 5"))',
    "op and session": 'op.execute("UPDATE notes SET n = 5"); op.session.execute(text("UPDATE notes SET n = 6"))',
    "session and op": 'op.session.execute(text("UPDATE notes SET n = 6")); op.execute("UPDATE notes SET n = 5")',
}
#: What fails then, and a word of its cause.
FAILS = {
    "constraint": (
        'op.create_unique_constraint("uq_notes_name", "notes", ["name"])',
        "uq_notes_name|notes.name|unique",
    ),
    "python": ('raise ValueError("the sheet has no such column")', "the sheet has no such column"),
    "sql": ('op.execute("UPDATE nowhere SET n = 1")', "nowhere"),
    "session": ('op.session.execute(text("UPDATE nowhere SET n = 1"))', "nowhere"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("fails", FAILS)
def test_the_cause_of_a_failure_after_a_change_of_rows_is_shown(project: Project, write: str, fails: str) -> None:
    project.write(TABLE + f"@migration\ndef mend(op):\n    {WRITES[write]}\n    {FAILS[fails][0]}\n")
    with pytest.raises(DbSmartError, match=f"Migration 'mend' failed(?s:.*)({FAILS[fails][1]})") as error:
        project.boot()
    assert "rolled one connection back" not in str(error.value)
    assert project.history() == [("make", "applied"), ("mend", "failed")]


SWALLOWS = """
@migration
def mend(op):
    op.session.execute(text("UPDATE notes SET n = 6"))
    op.execute("UPDATE notes SET n = 7 WHERE id = 1")
    try:
        raise ValueError("swallowed")
    except ValueError:
        op.session.rollback()
    {then}
"""


@pytest.mark.parametrize(
    "then", ["", "    op.execute(\"UPDATE notes SET name = 'b'\")", '    op.create_index("ix", "notes", ["n"])']
)
def test_half_a_migration_is_not_recorded_where_the_code_swallows_the_error(project: Project, then: str) -> None:
    project.write(TABLE + SWALLOWS.format(then=then))
    with pytest.raises(DbSmartError, match="rolled one connection back"):
        project.boot()
    assert project.history() == [("make", "applied"), ("mend", "failed")]
    if project.dialect != "mysql":
        assert project.query("SELECT n, name FROM notes ORDER BY id") == [(1, "a"), (2, "a")]
