"""The tables of the models: a first run that was killed while it made them, and tables that got lost."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from tests.harness.clients import run_client
from tests.harness.crash import ended, forked, run_out
from tests.harness.project import Project


def models(db: SQLAlchemy) -> None:
    sa.Table(
        "items",
        db.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20), index=True),
        sa.Column("sku", sa.String(20)),
        sa.Column("b_id", sa.Integer, sa.ForeignKey("b.id", name="fk_items_b")),
        sa.Index("ux_sku", "sku", unique=True),
    )
    sa.Table(
        "a",
        db.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("b_id", sa.Integer, sa.ForeignKey("b.id", name="fk_ab", use_alter=True)),
    )
    sa.Table(
        "b",
        db.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("a_id", sa.Integer, sa.ForeignKey("a.id", name="fk_ba", use_alter=True)),
    )


def facts(project: Project) -> dict[str, Any]:
    """Indexes and foreign keys of the tables of the models."""
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        return {
            table: (
                sorted((str(index["name"]), bool(index["unique"])) for index in inspector.get_indexes(table)),
                sorted(str(key["constrained_columns"]) for key in inspector.get_foreign_keys(table)),
            )
            for table in ("items", "a", "b")
        }


def boot_and_die(project: Project, at: int) -> None:
    """Boot; die by SIGKILL before a schema change of the models."""
    count = 0

    def step(*event: Any) -> None:
        nonlocal count
        statement = event[2]
        if statement.split()[0] in ("CREATE", "ALTER") and "db_smart" not in statement:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", step)
    assert project.boot(DB_SMART_LEASE_SECONDS=1).decision == "migrated"


def killed(project: Project, at: int) -> bool:
    """Boot in a process of its own.

    :returns: whether it was killed.
    """
    project.models = models
    code = ended(forked(boot_and_die, project, at))
    assert code in (0, -signal.SIGKILL)
    if code:
        run_out(project.url)
    return bool(code)


def test_a_first_run_killed_at_any_statement_is_finished(
    project: Project, make_project: Any, new_url: Any, request: pytest.FixtureRequest
) -> None:
    source = "@migration\ndef nothing(op): ..."
    whole = make_project(new_url(request.node.callspec.params["url"]))
    whole.write(source)
    assert not killed(whole, 0)
    wanted = facts(whole)
    kills = 0
    # Where a killed run leaves nothing behind, one statement stands for all.
    for at in range(1, 20) if project.dialect == "mysql" else [3]:
        each = make_project(new_url(request.node.callspec.params["url"]))
        each.write(source)
        if not killed(each, at):
            break
        kills += 1
        if at == 3:  # killed again in the second run, and then let through
            killed(each, 1)
        assert not killed(each, 0)
        assert facts(each) == wanted, at
        assert each.query("SELECT count(*) FROM db_smart_progress") == [(0,)]
    assert kills >= (5 if project.dialect == "mysql" else 1)


def test_a_first_run_adds_no_index_to_a_table_that_was_there_before(project: Project) -> None:
    project.query("CREATE TABLE items (id INTEGER PRIMARY KEY, name VARCHAR(20), sku VARCHAR(20), b_id INTEGER)")
    project.query("INSERT INTO items (id, name, sku) VALUES (1, 'a', 'same'), (2, 'b', 'same')")
    project.write("@migration\ndef nothing(op): ...")
    project.models = models
    assert project.boot().decision == "migrated"
    assert facts(project)["items"] == ([], [])
    assert {"a", "b"} <= project.tables()


MAKE = '@migration\ndef add(op): op.add_column("items", Column("extra", Integer))\n'


@pytest.mark.parametrize("pending", [False, True])
def test_lost_tables_are_named_and_made_again(
    project: Project, caplog: pytest.LogCaptureFixture, pending: bool
) -> None:
    project.models = models
    project.write(MAKE)
    project.boot()
    wanted = facts(project)
    app, _ = project.app()
    with app.app_context():
        app.extensions["sqlalchemy"].drop_all()
    project.dispose(app)
    caplog.clear()
    assert project.boot().applied == ()
    if project.dialect == "sqlite":
        assert "lacks tables of the models: " in caplog.text
        assert "'flask db-smart migrate' creates them" in caplog.text
    found = project.run("status")
    assert "lacks tables of the models: " in found.output
    assert set(json.loads(project.run("status", "--json").stdout)["databases"][0]["missing"]) == set(wanted)
    if pending:
        project.write(MAKE + "@migration\ndef more(op): ...\n")
    found = project.run("migrate", "--force") if pending else project.run("migrate")
    assert found.exit_code == 0, found.output
    assert "Created the missing tables of the models: " in found.output
    assert facts(project) == wanted
    assert ("extra" in project.columns("items")) is pending
    again = json.loads(project.run("migrate", "--json").stdout)
    assert again["result"] == "up-to-date"
    assert "made" not in again


def test_a_new_model_without_a_migration_is_named_by_a_run(
    sqlite_project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project = sqlite_project
    project.write("@migration\ndef one(op): ...\n")
    project.boot()
    project.write("@migration\ndef one(op): ...\n@migration\ndef two(op): ...\n")
    project.models = models
    assert project.boot().applied == ("two",)
    assert "lacks tables of the models: " in caplog.text
    assert "items" not in project.tables()


@pytest.mark.parametrize("pending", [False, True])
def test_a_dry_run_tells_of_a_new_model(project: Project, pending: bool) -> None:
    one = "@migration\ndef one(op): ...\n"
    project.write(one)
    project.boot()
    project.models = models
    if pending:
        one += '@migration\ndef two(op): op.create_table("other", Column("id", Integer, primary_key=True))\n'
        project.write(one)
    shown = json.loads(project.run("migrate", "--dry-run", "--json").stdout)
    assert shown["result"] == "pending"
    does = {line for entry in shown["tables"] for line in entry["does"] if "create_table" in line}
    assert does == {"create_table('items')", "create_table('a')", "create_table('b')"}
    assert "nothing to apply" not in project.run("migrate", "--dry-run").output
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert {"items", "a", "b"} <= project.tables()
    assert ("other" in project.tables()) is pending
    made = facts(project)
    assert json.loads(project.run("migrate", "--dry-run", "--json").stdout)["result"] == "up-to-date"
    app, _ = project.app()
    with app.app_context():
        app.extensions["sqlalchemy"].drop_all()
    project.dispose(app)
    assert project.run("migrate").exit_code == 0
    assert facts(project) == made


RENAME = (
    '@migration\ndef one(op): op.add_columns("addresses", Column("city", String(20)))\n'
    '@migration(destructive=True)\ndef two(op): op.rename_table("addresses", "user_addresses")\n'
)


def named(*names: str) -> Any:
    """Models with these tables, and one more that stays."""

    def models(db: Any) -> None:
        for name in ("users", *names):
            sa.Table(name, db.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("city", sa.String(20)))

    return models


@pytest.mark.parametrize("lost", [False, True])
def test_a_new_table_of_the_models_is_not_lost_while_its_migration_is_pending(project: Project, lost: bool) -> None:
    project.models = named("addresses")
    project.write(RENAME.partition("@migration(destructive")[0])
    project.boot()
    project.query("INSERT INTO addresses (id, city) VALUES (1, 'Pune')")
    if lost:
        project.query("DROP TABLE users")
    project.models = named("user_addresses", "brands")
    project.write(RENAME)
    entry = json.loads(project.run("status", "--json").stdout)["databases"][0]
    assert entry["missing"] == (["users"] if lost else [])
    found = project.run("migrate", "--force")
    assert found.exit_code == 0, found.output
    assert project.query("SELECT city FROM user_addresses") == [("Pune",)]
    assert {"users", "brands"} <= project.tables()
    assert "addresses" not in project.tables()
    assert json.loads(project.run("status", "--json").stdout)["databases"][0]["missing"] == []
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT city FROM user_addresses") == [("Pune",)]


def test_a_table_that_a_newer_release_renamed_is_not_made_by_an_older_one(project: Project) -> None:
    older = RENAME.partition("@migration(destructive")[0]
    project.models = named("addresses")
    project.write(older)
    project.boot()
    project.query("INSERT INTO addresses (id, city) VALUES (1, 'Pune')")
    project.models = named("user_addresses")
    project.write(RENAME)
    assert project.boot().applied == ("two",)
    project.models = named("addresses")
    project.write(older)
    project.query("DROP TABLE users")
    found = project.run("status")
    assert "'addresses' was dropped or renamed by the migration 'two', which this code does not have" in found.output
    found = project.run("migrate")
    assert found.exit_code == 0, found.output
    assert {"users", "user_addresses"} <= project.tables()  # what got lost is made, what has another name is not
    assert "addresses" not in project.tables()
    project.models = named("user_addresses")
    project.write(RENAME)
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT city FROM user_addresses") == [("Pune",)]


def test_a_rename_is_done_where_the_first_run_has_made_the_new_table(project: Project) -> None:
    project.query("CREATE TABLE addresses (id INTEGER PRIMARY KEY, city VARCHAR(20))")
    project.query("INSERT INTO addresses (id, city) VALUES (1, 'Pune')")

    def models(db: Any) -> None:
        named("user_addresses")(db)
        key = sa.ForeignKey("user_addresses.id", name="fk_parcels")
        sa.Table(
            "parcels", db.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("to", sa.Integer, key)
        )

    project.models = models
    project.write(RENAME)
    foretold = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert [item["error"] for item in foretold] == [None, None]
    assert project.boot().applied == ("one", "two")
    assert project.query("SELECT id, city FROM user_addresses") == [(1, "Pune")]
    assert "addresses" not in project.tables()
    inspector = sa.inspect(sa.create_engine(project.url, poolclass=sa.pool.NullPool))
    assert [key["referred_table"] for key in inspector.get_foreign_keys("parcels")] == ["user_addresses"]
    project.query("INSERT INTO parcels VALUES (1, 1)")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, city FROM user_addresses") == [(1, "Pune")]
