"""Rows that PostgreSQL's policies hide from the user of the migrations are not passed by in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import MigrationFailed
from tests.harness.project import Project
from tests.harness.servers import role

NOTES = """
import sqlalchemy as sa
@migration
def notes(op):
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("n", Integer))
    op.create_table("plain", Column("id", Integer, primary_key=True), Column("n", Integer))
    op.create_unique_constraint("uq_n", "notes", ["n"])
    op.execute("INSERT INTO plain (id) VALUES (1), (2)")
"""
#: Each would leave a row of a table as it is that only the policies hide.
CHANGES = {
    "backfill": 'op.backfill("notes", {"n": sa.column("id")}, where="n IS NULL")',
    "batches": """
    @op.batches("notes")
    def fill(rows):
        op.execute(sa.text("UPDATE notes SET n = id WHERE id = :id"), [{"id": row.id} for row in rows])
""",
    "by another table": 'op.backfill("plain", {"n": sa.text("(SELECT id FROM notes WHERE notes.id = plain.id)")})',
}


@pytest.fixture
def owner(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> Iterator[tuple[Project, URL]]:
    """A project whose user owns its tables, in one of which policies show one of two rows; and who sees all."""
    url = new_url("postgresql")
    with role(url, "GRANT ALL ON SCHEMA public TO {user}") as weak:
        project = make_project(weak)
        project.write(NOTES)
        project.boot()
        project.query("INSERT INTO notes (id) VALUES (1), (2)")
        project.query("CREATE POLICY first ON notes USING (id = 1)")
        project.query("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
        yield project, url


def changed(project: Project, change: str, more: str = "") -> None:
    project.write(f"{NOTES}\n@migration({more})\ndef change(op):\n    {change}\n")


@pytest.mark.parametrize("change", CHANGES)
def test_a_backfill_fails_where_policies_hide_rows(owner: tuple[Project, URL], change: str) -> None:
    project, url = owner
    project.query("ALTER TABLE notes FORCE ROW LEVEL SECURITY")
    changed(project, CHANGES[change])
    with pytest.raises(MigrationFailed, match='row-level security policy for table "notes"') as caught:
        project.boot()
    assert "a role with BYPASSRLS), and start again" in caught.value.message
    assert "DB_SMART_MIGRATION_URL" in caught.value.message
    assert project.history()[-1] == ("change", "failed")
    assert project.boot(DB_SMART_MIGRATION_URL=url.render_as_string(False)).applied == ("change",)
    project.url = url
    table = "plain" if change == "by another table" else "notes"
    assert project.query(f"SELECT id, n FROM {table} ORDER BY id") == [(1, 1), (2, 2)]


def test_an_owner_whom_policies_do_not_concern_notices_nothing(owner: tuple[Project, URL]) -> None:
    project, _ = owner
    changed(project, CHANGES["backfill"])
    assert project.boot().applied == ("change",)
    assert project.query("SELECT id, n FROM notes ORDER BY id") == [(1, 1), (2, 2)]


@pytest.mark.parametrize("change", ['op.execute("TRUNCATE notes")', 'op.drop_constraint("uq_n", "notes")'])
def test_a_table_that_only_looks_empty_is_not_taken_for_empty(owner: tuple[Project, URL], change: str) -> None:
    project, url = owner
    project.query("DELETE FROM notes WHERE id = 1")
    project.query("ALTER TABLE notes FORCE ROW LEVEL SECURITY")
    assert project.query("SELECT * FROM notes") == []
    changed(project, change)
    with pytest.raises(MigrationFailed, match="destructive=True"):
        project.boot()
    project.url = url
    assert project.query("SELECT id FROM notes") == [(2,)]


def test_a_column_that_only_looks_without_values_is_not_dropped_again(owner: tuple[Project, URL]) -> None:
    """Somebody has brought it back since the migration dropped it."""
    project, url = owner
    changed(project, 'op.drop_column("notes", "n")', "destructive=True")
    project.boot()
    project.query("ALTER TABLE notes ADD COLUMN n integer")
    project.query("UPDATE notes SET n = 7 WHERE id = 2")
    project.query("ALTER TABLE notes FORCE ROW LEVEL SECURITY")
    changed(project, 'op.drop_column("notes", "n"); op.execute("SELECT 1")', "destructive=True")
    project.boot()
    project.url = url
    assert project.query("SELECT n FROM notes WHERE id = 2") == [(7,)]
