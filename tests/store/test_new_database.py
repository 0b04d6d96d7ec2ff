"""A database made new by the last release, beside one that went through all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DbSmartError, MigrationFailed
from aurum_harmony.db_smart.signals import migration_started
from aurum_harmony.db_smart.store.tables import TABLE_NAMES
from tests.harness.models import ID, Columns, fresh, models, schema, second_application, string
from tests.harness.project import Project
from tests.samples import BACK, CASES, DROP, SEED


@pytest.mark.parametrize("case", CASES)
def test_new_beside_upgraded(case: str, project: Project, new_url: Callable[[str], URL]) -> None:
    first, source, last = CASES[case]
    project.models = models(**first)
    project.write("")
    project.boot()
    project.write(source)
    project.models = models(**last)
    project.boot()
    new = fresh(project, new_url)
    assert new.boot().decision == "migrated"
    assert schema(new.url) == schema(project.url)
    for table in ("persons", "seeds", "notes", "woods"):
        if table in last:
            assert new.query(f"SELECT * FROM {table}") == project.query(f"SELECT * FROM {table}")
    for one in (project, new):
        before = schema(one.url)
        result = one.run("migrate", "--force")
        assert result.exit_code == 0, result.output
        assert schema(one.url) == before


def test_an_edited_migration_does_not_bring_back_what_a_later_one_dropped(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(DROP)
    project.boot()
    project.write(
        DROP.replace("String(50)))", 'String(50)))\n    op.add_column("users", Column("room", String(9)))', 1)
    )
    assert project.boot().applied == ("add_fax",)
    assert project.columns("users") == {"id", "room"}


def test_a_dropped_column_that_a_newer_migration_adds_again_stays(project: Project) -> None:
    project.models = models(users=[ID, string("note")])
    project.write("")
    project.boot()
    project.write(BACK)
    project.boot()
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]


def test_a_second_application_on_one_database_gets_its_tables(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    other = second_application(project, SEED.format(table="orders").replace("seed", "seed_orders"))
    assert other.boot().applied == ("seed_orders",)
    assert project.query("SELECT id FROM users") == project.query("SELECT id FROM orders") == [(1,)]
    for one in (project, other):
        one.flag.with_name(one.config.get("DB_SMART_FLAG", one.flag.name)).unlink()
        assert one.boot().applied == ()


def test_a_second_application_with_migrations_of_the_same_name_is_refused(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    other = second_application(project, SEED.format(table="orders"))
    with pytest.raises(DbSmartError, match="history of other migrations.*'seed'"):
        other.boot()
    assert project.boot().decision == "skipped"


def test_a_lost_history_is_said(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    for table in TABLE_NAMES & project.tables():
        project.query(f"DROP TABLE {table}")
    project.flag.unlink()
    caplog.clear()
    with pytest.raises(MigrationFailed):  # the row is there
        project.boot()
    assert "has tables with rows (users) but no history of db-smart" in caplog.text
    assert "also those that run only once (seed)" in caplog.text


def test_a_wrong_name_in_a_migration_that_runs_again_is_an_error(project: Project) -> None:
    """Only what a later migration took away is no fault, and by its whole name."""
    project.models = models(users=[ID], seeds=[ID, string("fax")])
    project.write(DROP)
    project.boot()
    wrong = '    op.execute("UPDATE seeds SET fax = faxx")\n'
    project.write(
        DROP.replace("def mend_fax(op: Operations) -> None:\n", f"def mend_fax(op: Operations) -> None:\n{wrong}")
    )
    with pytest.raises(MigrationFailed, match="faxx"):
        project.boot()


ADD = '@migration\ndef m1(op):\n    op.add_columns("users", Column("a", Integer){more})\n'
RENAMED = '@migration(destructive=True)\ndef m3(op): op.rename_table("users", "people")\n'
DROPPED = '@migration(destructive=True)\ndef m4(op): op.drop_column("people", "b")\n'


@pytest.mark.parametrize("how", ["edited", "inserted"])
def test_a_column_that_an_older_migration_adds_goes_to_the_table_by_its_new_name(
    project: Project, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    first, columns = ADD.format(more=""), [ID, sa.Column("a", sa.Integer)]
    project.models = models(users=[ID])
    project.write(first)
    project.boot()
    project.query("INSERT INTO users (id, a) VALUES (1, 2)")
    project.models = models(people=columns)
    project.write(first + RENAMED + DROPPED)
    project.boot()
    more = 'Column("c", Integer, server_default="7"), Column("b", Integer)'
    inserted = f'@migration\ndef m2(op): op.add_columns("users", {more})\n'
    edited = ADD.format(more=f", {more}")
    project.models = models(people=[*columns, sa.Column("c", sa.Integer)])
    project.write((edited if how == "edited" else first + inserted) + RENAMED + DROPPED)
    assert project.boot().applied == (("m1",) if how == "edited" else ("m2",))
    assert project.query("SELECT id, a, c FROM people") == [(1, 2, 7)]
    assert set(project.columns("people")) == {"id", "a", "c"}
    assert "'people', 'b'" in caplog.text  # what is left out, not for the first time, is said loudly
    assert project.run("migrate", "--force").exit_code == 0
    assert set(project.columns("people")) == {"id", "a", "c"}


def test_what_an_edit_leaves_out_is_a_warning(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.models = models(users=[ID])
    project.write(ADD.format(more="") + RENAMED)
    project.models = models(users=[ID])
    project.write(ADD.format(more=""))
    project.boot()
    project.models = models(people=[ID])
    project.write(ADD.format(more="") + RENAMED)
    project.boot()
    caplog.clear()
    project.write(ADD.format(more="") + '    op.create_index("ix_a", "users", ["a"])\n' + RENAMED)
    assert project.boot().applied == ("m1",)
    said = [record.levelname for record in caplog.records if "is left out" in record.message]
    assert said == ["WARNING"]


BROUGHT_BACK: dict[str, str] = {
    "migrate": "",
    "create_all": "",
    "sql": '@migration\ndef back(op):\n    if not op.has_table("logs"):\n'
    '        op.execute("CREATE TABLE logs (id INTEGER PRIMARY KEY, a INTEGER)")\n',
}


@pytest.mark.parametrize("how", BROUGHT_BACK)
def test_a_dropped_table_that_is_there_again_with_rows_is_not_dropped_again(project: Project, how: str) -> None:
    logs: Columns = [ID, sa.Column("a", sa.Integer)]
    drop = '@migration(destructive=True)\ndef drop(op): op.drop_table("logs")\n'
    project.models = models(logs=logs)
    project.write("@migration\ndef first(op): ...\n")
    project.boot()
    project.models = models(users=[ID])
    project.write("@migration\ndef first(op): ...\n" + drop)
    project.run("migrate")
    assert "logs" not in project.tables()
    project.models = models(users=[ID], logs=logs)
    if how == "create_all":
        app, _ = project.app()
        with app.app_context():
            app.extensions["sqlalchemy"].create_all()
        project.dispose(app)
    else:
        project.write("@migration\ndef first(op): ...\n" + drop + BROUGHT_BACK[how])
        project.run("migrate")
    project.query("INSERT INTO logs (id, a) VALUES (7, 7)")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id FROM logs") == [(7,)]


@pytest.mark.parametrize("rows", [True, False])
def test_a_swap_of_names_is_not_repeated(project: Project, rows: bool) -> None:
    columns: Columns = [ID, sa.Column("a", sa.Integer), sa.Column("b", sa.String(5))]
    project.models = models(left=columns, right=[ID])
    project.write("@migration\ndef first(op): ...\n")
    project.boot()
    if rows:
        project.query(
            "INSERT INTO \"left\" (id, a, b) VALUES (1, 2, 'x')"
            if project.dialect != "mysql"
            else "INSERT INTO `left` (id, a, b) VALUES (1, 2, 'x')"
        )
    project.write(
        "@migration(destructive=True)\ndef swap(op):\n"
        '    op.rename_table("left", "t")\n    op.rename_table("right", "left")\n    op.rename_table("t", "right")\n'
        '    op.alter_column("right", "a", new_column_name="t")\n'
        '    op.alter_column("right", "b", new_column_name="a")\n'
        '    op.alter_column("right", "t", new_column_name="b")\n'
    )
    project.models = models(right=[ID, sa.Column("a", sa.String(5)), sa.Column("b", sa.Integer)], left=[ID])
    project.boot()
    before = schema(project.url)
    assert before["right"]["columns"]["b"][0] == "INTEGER"
    for _ in range(2):
        assert project.run("migrate", "--force").exit_code == 0
        assert schema(project.url) == before


def test_a_column_that_may_be_null_meanwhile_leaves_the_session_of_a_listener_alone(sqlite_project: Project) -> None:
    """That session is the application's own: to commit it would wait for the run itself."""
    notes: list[type[Any]] = []

    def user() -> sa.Column[Any]:
        return sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"))

    def define(db: SQLAlchemy) -> None:
        models(users=[ID, string("room", nullable=False)], keys=[ID, user])(db)

        class Note(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)

        notes.append(Note)

    def enforce(app: Flask) -> None:
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
        sa.event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA foreign_keys = ON"))

    def listen(app: Flask, **_: object) -> None:
        app.extensions["sqlalchemy"].session.add(notes[-1]())

    sqlite_project.models, sqlite_project.tune = define, enforce
    sqlite_project.write(
        """
        @migration
        def fill(op: Operations) -> None:
            op.execute("INSERT INTO users (id) VALUES (1)")

        @migration
        def complete(op: Operations) -> None:
            op.execute("UPDATE users SET room = 'a'")
        """
    )
    with migration_started.connected_to(listen):
        assert sqlite_project.boot().applied == ("fill", "complete")
    assert sqlite_project.query("SELECT id, room FROM users") == [(1, "a")]
    assert sqlite_project.query("SELECT id FROM note") == []
