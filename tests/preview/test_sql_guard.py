"""A script of ``migrate --sql`` is for one database, and stops on every other one; what a dry run says."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.clients import ask_client, run_client
from tests.harness.project import Project
from tests.samples import V1, V2

BINDS = V1 + "@migration(database='logs')\ndef log(op): op.create_table('log', Column('id', Integer))\n"


@pytest.mark.parametrize("target", ["own", "other", "empty"])
@pytest.mark.parametrize("made_for", ["history", "nothing"])
def test_a_script_stops_on_another_database(
    project: Project,
    make_project: Callable[..., Project],
    new_url: Callable[[str], URL],
    made_for: str,
    target: str,
) -> None:
    dialect = {"mysql": "mariadb"}.get(project.dialect, project.dialect)
    project.write(V1)
    if made_for == "history":
        project.boot()
    project.write(V2)
    script = project.run("migrate", "--sql").stdout
    aim = project if target == "own" else make_project(new_url(dialect))
    if target == "other":
        aim.write(V1)
        aim.boot()
    fits = target == "own" or (made_for, target) == ("nothing", "empty")
    before = aim.tables()
    result = ask_client(aim.url, script)
    if fits:
        assert result.returncode == 0, result.stderr
        assert "price" in aim.columns("items")
        return
    assert result.returncode != 0
    said = {
        ("history", "other"): "and this one has another id: nothing was changed",
        ("history", "empty"): "and this one has no history of db-smart: nothing was changed",
        ("nothing", "other"): "This script is for a database without a history of db-smart, and this one has one",
    }
    assert said[made_for, target] in result.stderr
    assert aim.tables() == before
    if target == "other":
        assert aim.columns("items") == {"id", "name"}
        assert aim.history() == [("make_items", "applied")]


def test_a_script_of_a_new_database_is_not_for_it_once_it_has_run(project: Project) -> None:
    project.write(V1)
    script = project.run("migrate", "--sql").stdout
    run_client(project.url, script)
    result = ask_client(project.url, script)
    assert result.returncode != 0
    assert "this one has one: nothing was changed" in result.stderr
    assert project.history() == [("make_items", "applied")]
    assert "RETURNING" not in script  # psql would print a table for each


TWICE = """
@migration(once=True)
def twice(op: Operations) -> None:
    op.execute("UPDATE items SET id = id + 10")
    op.execute("UPDATE items SET id = id + 100")
"""


@pytest.mark.parametrize("how", ["piped twice", "after a boot"])
def test_a_script_is_not_for_a_database_that_has_moved_on(project: Project, how: str) -> None:
    project.write(V1)
    project.boot()
    project.query("INSERT INTO items (id) VALUES (1)")
    project.write(V1 + TWICE.replace("def twice", "def other"))
    project.boot()
    project.write(V1 + TWICE.replace("def twice", "def other") + TWICE)
    script = project.run("migrate", "--sql").stdout
    if how == "after a boot":
        project.boot()
    else:
        run_client(project.url, script)
    result = ask_client(project.url, script)
    assert result.returncode != 0
    assert "make a new one: nothing was changed" in result.stderr
    assert project.query("SELECT id FROM items") == [(221,)]
    assert [name for name, _ in project.history()].count("twice") == 1


def test_one_script_for_each_database(project: Project, new_url: Callable[[str], URL]) -> None:
    logs = new_url({"mysql": "mariadb"}.get(project.dialect, project.dialect))
    project.config["SQLALCHEMY_BINDS"] = {"logs": logs}
    project.write(BINDS)
    result = project.run("migrate", "--sql")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Name one of default, logs with --database." in result.output
    assert project.run("migrate", "--sql", "--database", "default", "--database", "logs").exit_code == 2
    for name, url in (("default", project.url), ("logs", logs)):
        result = project.run("migrate", "--sql", "--database", name)
        assert result.exit_code == 0, result.output
        run_client(url, result.stdout)
    assert "log" not in project.tables()
    assert project.boot().applied == ()
    report = json.loads(project.run("status", "--json").stdout)
    assert [[item["name"] for item in entry["applied"]] for entry in report["databases"]] == [["make_items"], ["log"]]
    assert report["state"] == "up-to-date"


def test_a_dry_run_that_would_fail_exits_with_1(project: Project) -> None:
    project.write(V1)
    assert project.run("migrate", "--dry-run").exit_code == 0
    project.boot()
    project.write(V1 + "@migration\ndef bad(op): op.drop_column('items', 'name')\n")
    result = project.run("migrate", "--dry-run")
    assert "would fail" in result.output
    assert result.exit_code == 1
    result = project.run("migrate", "--dry-run", "--json")
    assert "DS101" in json.loads(result.stdout)["pending"][0]["error"]
    assert result.exit_code == 1


def test_a_dry_run_shows_sql_tables_and_columns_with_keys(project: Project) -> None:
    def models(db: SQLAlchemy) -> None:
        class Author(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)

        class Book(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)
            author_id = sa.Column(sa.Integer, sa.ForeignKey("author.id"))

    project.models = models
    project.write("")
    result = project.run("migrate", "--dry-run")
    assert "would do   create_table('author')" in result.output
    assert "would do   create_table('book')" in result.output
    assert "Dry run: 0 to apply and tables of the models to create; nothing was written." in result.output
    report = json.loads(project.run("migrate", "--dry-run", "--json").stdout)
    assert (report["result"], report["pending"]) == ("pending", [])
    assert report["tables"][0]["does"] == ["create_table('author')", "create_table('book')"]
    project.write("""
        @migration
        def key(op): op.add_column("book", Column("author_id", Integer, ForeignKey("author.id")))

        @migration
        def rows(op):
            op.execute("INSERT INTO author (id) VALUES (:id)", {"id": 17})
            op.execute(text("UPDATE book SET author_id = 1 WHERE id = 2"))
    """)
    output = project.run("migrate", "--dry-run").output
    assert "satisfied  add_columns('book', 'author_id')" in output
    assert "would do   execute('INSERT INTO author (id) VALUES (:id)')" in output
    assert "would do   execute('UPDATE book SET author_id = 1 WHERE id = 2')" in output
    assert "17" not in output
