"""Databases that were made new by some release, and what later releases, edits and ``--force`` do to them."""

from __future__ import annotations

from .conftest import Project
from .test_new_database import ID, models, string

BACK_AGAIN = """
@migration(destructive=True)
def drop_notes(op: Operations) -> None:
    op.drop_column("users", "note")
    op.drop_table("notes")

@migration
def add_notes(op: Operations) -> None:
    op.add_column("users", Column("note", String(50)))
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("text", String(50)))
"""


def test_what_the_models_have_again_stays_with_its_rows_on_a_new_database(project: Project) -> None:
    project.models = models(users=[ID, string("note")], notes=[ID, string("text")])
    project.write(BACK_AGAIN)
    project.boot()
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    project.query("INSERT INTO notes (id, text) VALUES (1, 'kept')")
    project.write(BACK_AGAIN.replace('("users", "note")\n', '("users", "note")\n    op.drop_column("users", "fax")\n'))
    assert project.boot().applied == ("drop_notes",)
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]
    assert project.query("SELECT id, text FROM notes") == [(1, "kept")]


ALTERED_TWICE = """
@migration(destructive=True)
def narrow(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(20), nullable=False, server_default="first", online=False)

@migration(destructive=True)
def widen(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(60), nullable=True, server_default="last", online=False)
"""


def test_what_was_altered_twice_stays_as_last_on_a_new_database(project: Project) -> None:
    project.models = models(users=[ID, string("name", 60, server_default="last")])
    project.write(ALTERED_TWICE)
    project.boot()
    project.query("INSERT INTO users (id, name) VALUES (1, NULL), (2, :name)", name="x" * 60)
    project.write(ALTERED_TWICE.replace('"first"', '"edited"'))
    assert project.boot().applied == ("narrow",)
    project.query("INSERT INTO users (id) VALUES (3)")
    assert project.query("SELECT id, name FROM users ORDER BY id") == [(1, None), (2, "x" * 60), (3, "last")]
    assert project.run("migrate", "--force").exit_code == 0


def test_what_sync_adds_again_stays(sqlite_project: Project) -> None:
    project = sqlite_project
    project.models = models(users=[ID, string("note")])
    project.write("")
    project.boot()
    drop = '@migration(destructive=True)\ndef drop_note(op):\n    op.drop_column("users", "note")\n'
    sync = "@migration\ndef sync_users(op):\n    op.sync(db.metadata.tables['users'])\n"
    project.write(drop + sync)
    project.boot()
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]
