"""Contract steps: ``@migration(contract=True)`` waits until no release that runs has what it takes away."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.dialects.base import facts_of
from aurum_harmony.db_smart.schema.touched import touched_by_sql
from aurum_harmony.db_smart.store import releases
from aurum_harmony.db_smart.store.database import Database
from aurum_harmony.db_smart.store.releases import Instance, Touches
from tests.harness.databases import engine_of
from tests.harness.project import Project, booted, process
from tests.harness.servers import wait_until

USERS = """
@migration
def users(op):
    op.create_table("users", Column("id", Integer, primary_key=True), Column("fax", String(20)))
    op.create_table("logs", Column("id", Integer, primary_key=True))
"""
DROP = """
@migration(contract=True)
def drop_fax(op):
    op.drop_column("users", "fax")
"""
AFTER = """
@migration
def after(op):
    op.add_column("users", Column("mail", String(20)))
"""
LEASE = 0.6
ON = {
    "DB_SMART_RELEASES": True,
    "DB_SMART_RELEASE": "1.5",
    "DB_SMART_LEASE_SECONDS": LEASE,
    "DB_SMART_REQUEST_GRACE": 0.2,
    "DB_SMART_CREATE_ALL": False,
}
OLD = Instance("1.4", "pod-a:1", {"users": ["id", "fax"]})


def models(db: SQLAlchemy) -> None:
    db.Table("users", sa.Column("id", sa.Integer, primary_key=True))


def old_models(db: SQLAlchemy) -> None:
    db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("fax", sa.String(20)))


def next_models(db: SQLAlchemy) -> None:
    db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("telefax", sa.String(20)))


@pytest.fixture
def ready(project: Project) -> Project:
    """With the table, and the next release's models."""
    return booted(project, models, USERS, ON)


def finished(app: Flask, smart: DbSmart) -> None:
    """Wait until the thread that runs contract steps is done."""
    wait_until(lambda: getattr(smart._state(app).later, "done", False), seconds=20)


@contextmanager
def connected(project: Project) -> Iterator[sa.Connection]:
    with Database("default", None, engine_of(project.url)).connect() as connection:
        yield connection


def serve(project: Project, me: Instance = OLD, seconds: float = 600) -> None:
    """Be as another pod that serves."""
    with connected(project) as connection:
        releases.make_tables(connection)
        releases.register(connection, me, seconds)


def leave(project: Project, me: Instance = OLD) -> None:
    with connected(project) as connection:
        releases.withdraw(connection, me)


def test_it_waits_by_itself(ready: Project) -> None:
    """Boot, readiness and later migrations do not wait for it; it runs when the old release is gone."""
    serve(ready)
    ready.write(USERS + DROP + AFTER)
    with process(ready) as (app, smart):
        assert smart._state(app).report.applied == ("after",)
        assert app.test_client().get("/_db-smart/ready").status_code == 200
        wait_until(lambda: smart._state(app).waiting)
        (waits,) = smart._state(app).waiting.values()
        assert waits.said.startswith("waits for 1 instance of release 1.4 (host pod-a), last seen ")
        assert "pod-a" not in waits.public
        assert "fax" in ready.columns("users")
        with app.app_context():
            assert not smart.applied("drop_fax")
        leave(ready)
        wait_until(lambda: "fax" not in ready.columns("users"), seconds=20)
        finished(app, smart)
    assert ready.history()[1:] == [("after", "applied"), ("drop_fax", "applied")]
    assert ready.boot().decision == "skipped", "the flag is written again"


def test_a_row_that_runs_out_is_waited_for_with_the_grace(ready: Project) -> None:
    serve(ready)
    ready.write(USERS + DROP)
    with process(ready) as (app, smart):
        wait_until(lambda: smart._state(app).waiting)
        serve(ready, seconds=0)
        wait_until(lambda: "fax" not in ready.columns("users"), seconds=20)


def test_who_does_not_map_it_is_in_nobody_s_way(ready: Project) -> None:
    serve(ready, Instance("1.4", "pod-a:1", {"users": ["id"], "logs": ["id"]}))
    ready.write(USERS + DROP)
    with process(ready) as (app, smart):
        finished(app, smart)
    assert "fax" not in ready.columns("users")


def test_the_command_says_that_it_waits(ready: Project) -> None:
    serve(ready)
    ready.write(USERS + DROP + AFTER)
    result = ready.run("migrate")
    assert result.exit_code == 0, result.output
    assert "after" in result.output
    assert "drop_fax waits for 1 instance of release 1.4 (host pod-a), last seen " in result.output
    forced = ready.run("migrate", "--force")
    assert forced.exit_code == 0, forced.output
    assert "drop_fax waits for 1 instance" in forced.output
    assert "because the database 'default' has 2 forced migrations (users, after)." in forced.output
    assert "fax" in ready.columns("users")
    found = json.loads(ready.run("migrate", "--json").stdout)
    assert found["waiting"][0]["name"] == "drop_fax"
    shown = ready.run("status").output
    assert "pending  drop_fax  new  waits for 1 instance of release 1.4 (host pod-a), last seen " in shown
    (item,) = json.loads(ready.run("status", "--json").stdout)["databases"][0]["pending"]
    assert item["waits"].startswith("waits for 1 instance")
    ended = ready.run("watch", "--until-ready").output
    assert ended.endswith("Ready: nothing is pending but contract steps, and nobody migrates.\n")


def test_past_it(ready: Project) -> None:
    serve(ready)
    ready.write(USERS + DROP)
    assert "There is no migration" in ready.run("migrate", "--contract-now", "drop_tax", "--yes").output
    assert ready.run("migrate", "--contract-now", "users", "--yes").exit_code == 2
    refused = ready.run("migrate", "--contract-now", "drop_fax")
    assert "fax" in ready.columns("users"), refused.output
    result = ready.run("migrate", "--contract-now", "drop_fax", "--yes")
    assert result.exit_code == 0, result.output
    assert "passes over 1 instance of release 1.4 (host pod-a)" in result.output
    assert "fax" not in ready.columns("users")


def test_off(ready: Project) -> None:
    """Nobody knows which releases run, so it does not run by itself; and where it takes nothing away, it does."""
    ready.config["DB_SMART_RELEASES"] = False
    ready.write(USERS + DROP + DROP.replace("drop_fax", "drop_pager").replace('"fax"', '"pager"'))
    with process(ready) as (app, smart):
        finished(app, smart)
        assert list(smart._state(app).waiting) == ["drop_fax"]
    assert "fax" in ready.columns("users")
    assert ready.history()[1:] == [("drop_pager", "applied")]
    shown = ready.run("status").output
    assert "migrate --contract-now drop_fax" in shown
    assert "DB_SMART_RELEASES is off" in shown
    assert ready.run("migrate", "--contract-now", "drop_fax", "--yes").exit_code == 0
    assert "fax" not in ready.columns("users")


def test_the_models_of_this_release_still_map_it(ready: Project) -> None:
    ready.models = old_models
    ready.write(USERS + DROP)
    result = ready.run("migrate")
    assert result.exit_code == 1
    assert "DS107 drop_fax (users.fax)" in result.output
    assert "fax" in ready.columns("users")
    assert "DS107" in ready.run("migrate", "--dry-run").output
    assert "DS107" in ready.run("lint").output
    assert "DS107" in ready.run("explain", "DS107").output
    assert ready.run("migrate", "--contract-now", "drop_fax", "--yes").exit_code == 1
    ready.write(USERS + DROP.replace("contract=True", "contract=True, allow={'DS107': 'the model goes tomorrow'}"))
    assert ready.run("migrate").exit_code == 0
    assert "fax" not in ready.columns("users")


@pytest.mark.parametrize(
    ("body", "touches"),
    [
        ('op.drop_column("users", "fax")', Touches(gone={"users": ["fax"]})),
        ('op.drop_table("logs")', Touches(gone={"logs": []})),
        ('op.alter_column("users", "fax", new_column_name="telefax")', Touches(gone={"users": ["fax"]})),
        ('op.rename_table("logs", "events")', Touches(gone={"logs": []})),
        ('op.add_column("users", Column("mail", String(20)))', Touches()),
        ('op.add_column("users", Column("n", Integer, nullable=False, server_default="1"))', Touches()),
        ('op.create_index("ix_fax", "users", ["fax"])', Touches()),
        ('op.backfill("users", {"fax": "1"}, where="fax IS NULL")', Touches()),
        ('op.execute("ALTER TABLE users DROP COLUMN fax")', Touches(gone={"users": ["fax"]})),
        ('op.execute("DROP TABLE logs")', Touches(gone={"logs": []})),
        ('op.execute("ALTER TABLE users RENAME TO people")', Touches(gone={"users": []})),
        ('op.execute("DELETE FROM logs")', Touches()),
        ('op.execute("INSERT INTO logs (id) VALUES (1)")', Touches()),
        ('op.create_table("new", Column("id", Integer)); op.drop_table("new")', Touches()),
        ('op.view("new", "SELECT id FROM users")', Touches()),
        ('op.execute("CREATE VIEW new AS SELECT id FROM users")', Touches()),
    ],
)
def test_what_it_takes_away(ready: Project, body: str, touches: Touches) -> None:
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', body))
    assert previewed(ready) == touches


@pytest.mark.parametrize(
    "body",
    [
        'op.alter_column("users", "fax", nullable=False)',
        'op.create_unique_constraint("uq_fax", "users", ["fax"])',
        'op.create_check_constraint("ck_fax", "users", "fax <> \'\'")',
    ],
)
def test_what_it_narrows(ready: Project, body: str) -> None:
    """The columns where they are known; the table where a value may have to be given, or SQLite builds it again."""
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', body))
    found = previewed(ready)
    assert not found.gone
    assert not found.unknown
    assert dict(found.narrowed) in ({"users": ["fax"]}, {"users": []})
    if ready.dialect != "sqlite" and "unique" in body:
        assert dict(found.narrowed) == {"users": ["fax"]}


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        ('op.add_column("users", Column("code", Integer, nullable=False))', "users"),
        ('op.add_column("users", Column("code", Integer)); op.alter_column("users", "code", nullable=False)', "users"),
        (
            'op.add_column("users", Column("code", Integer)); op.create_check_constraint("ck", "users", "code > 0")',
            "users",
        ),
        ('op.alter_column("users", "code", server_default=None)', "users"),
        ('op.view("shown", "SELECT id FROM users")', "shown"),
    ],
)
def test_what_it_narrows_as_a_whole(ready: Project, body: str, whole: str) -> None:
    """A value that must be given, and a view that may have less than before."""
    ready.query("CREATE VIEW shown AS SELECT id, fax FROM users")
    if "code" in body and "add" not in body:
        ready.query("ALTER TABLE users ADD COLUMN code INTEGER DEFAULT 1")
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', body))
    found = previewed(ready)
    assert not found.unknown
    assert {*found.gone, *found.narrowed} == {whole}


@pytest.mark.parametrize(
    ("dialect", "statement", "narrowed"),
    [
        ("postgresql", "ALTER TABLE users ADD COLUMN code INT NOT NULL", {"users": []}),
        (
            "postgresql",
            "ALTER TABLE users ADD code INT CONSTRAINT filled NOT NULL CHECK (code <> 'DEFAULT')",
            {"users": []},
        ),
        ("postgresql", "ALTER TABLE users ADD COLUMN code INT NOT NULL DEFAULT 1", {}),
        ("postgresql", "ALTER TABLE users ADD COLUMN code BIGSERIAL NOT NULL", {}),
        ("postgresql", "CREATE OR REPLACE VIEW shown AS SELECT id FROM users", {"shown": []}),
        ("mariadb", "ALTER TABLE users ADD COLUMN note TEXT COMMENT 'NOT NULL'", {}),
        ("mariadb", "ALTER TABLE users ADD code INT NOT NULL, ADD INDEX i (code)", {"users": []}),
        ("mariadb", "ALTER TABLE users ADD code INT AS (id + 1) STORED NOT NULL", {}),
    ],
)
def test_what_raw_sql_narrows(dialect: str, statement: str, narrowed: dict[str, list[str]]) -> None:
    assert touched_by_sql(statement, facts_of(dialect)) == Touches(narrowed=narrowed)


def test_sqlite_s_own_table_may_be_anything() -> None:
    assert touched_by_sql("PRAGMA writable_schema = ON", facts_of("sqlite")).unknown
    assert not touched_by_sql("PRAGMA writable_schema", facts_of("sqlite"))


@pytest.mark.parametrize(
    "body",
    [
        'op.execute("CALL tidy()")',
        'op.session.execute(text("SELECT 1"))',
        'op.execute("DROP INDEX ix_users_fax")',
    ],
)
def test_what_is_not_known_waits_for_every_other_release(ready: Project, body: str) -> None:
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', body))
    found = ready.app()
    ready.dispose(found[0])
    serve(ready, Instance("1.4", "pod-a:1", {"logs": ["id"]}))
    result = ready.run("migrate")
    assert "waits for 1 instance of release 1.4" in result.output, result.output
    assert "it waits for every other release, because it is not known what" in result.output


@pytest.mark.parametrize(
    "body",
    [
        'op.drop_column("users", "fax")',
        'op.execute("ALTER TABLE users DROP COLUMN fax")',
        'op.session.execute(text("ALTER TABLE users DROP COLUMN fax"))',
    ],
)
def test_what_the_dry_run_did_not_show(ready: Project, body: str) -> None:
    """It depends on rows that the step itself writes, so that no release was asked for what it drops."""
    serve(ready)
    step = """
    @migration(contract=True)
    def drop_fax(op):
        op.execute("INSERT INTO logs (id) VALUES (1)")
        if op.execute("SELECT id FROM logs").first():
            BODY
    """
    ready.write(USERS + textwrap.dedent(step).replace("BODY", body))
    result = ready.run("migrate")
    assert result.exit_code == 1, result.output
    assert "which its dry run did not show" in result.output
    assert "fax" in ready.columns("users")
    assert ready.history()[1:] == [("drop_fax", "failed")]
    assert ready.run("migrate", "--contract-now", "drop_fax", "--yes").exit_code == 0
    assert "fax" not in ready.columns("users")


@pytest.mark.parametrize(
    "body",
    [
        'op.create_table("new", Column("id", Integer)); op.rename_table("new", "newer"); op.drop_table("newer")',
        'op.rename_table("users", "people"); op.drop_column("people", "fax")',
        'op.alter_column("users", "fax", nullable=False); op.create_index("ix", "users", ["fax"])',
        'op.execute("ALTER TABLE users RENAME TO people"); op.execute("ALTER TABLE people DROP COLUMN fax")',
    ],
)
def test_what_the_dry_run_has_shown_is_done(ready: Project, body: str) -> None:
    """Also of a table that has another name by then, and where rows decide on the form of an operation."""
    ready.query("INSERT INTO users (id, fax) VALUES (1, 'a')")
    ready.models = None
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', body))
    result = ready.run("migrate")
    assert result.exit_code == 0, result.output
    assert ready.history()[-1] == ("drop_fax", "applied")


def test_a_step_that_would_fail_says_so_while_it_waits(ready: Project) -> None:
    """Else its author would learn that only when the old release has ended."""
    serve(ready)
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', "op.drop_colum()"))
    ready.run("migrate")
    assert "as it would fail now: AttributeError: 'Operations' object has no attribute" in ready.run("status").output
    assert "would fail: AttributeError: 'Operations' object has no" in ready.run("lint").output


def test_what_it_brings_is_not_there_while_it_waits(ready: Project) -> None:
    """Models that map it already fail until then."""
    serve(ready)
    ready.models = next_models
    rename = 'op.alter_column("users", "fax", new_column_name="telefax")'
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', rename))
    assert "users.telefax is in the models but not in the database" in ready.run("status").output


def previewed(project: Project) -> Touches:
    project.models = None
    app, smart = project.app()
    try:
        with app.app_context():
            planner = smart.planner(app)
            (plan,) = planner.by_history()
            shown = smart.preview(app, planner, [plan])["default"][-1]
            assert shown.error is None, shown.error
            return shown.touches
    finally:
        project.dispose(app)


def test_a_view_in_the_place_of_another_is_not_gone(ready: Project) -> None:
    """This release may map it; every other one that does so is waited for."""
    ready.query("CREATE VIEW shown AS SELECT id, fax FROM users")

    def mapping(db: SQLAlchemy) -> None:
        models(db)
        db.Table("shown", sa.Column("id", sa.Integer))

    ready.models = mapping
    ready.write(USERS + DROP.replace('op.drop_column("users", "fax")', 'op.view("shown", "SELECT id FROM users")'))
    serve(ready, Instance("1.4", "pod-a:1", {"shown": ["id", "fax"]}))
    result = ready.run("migrate")
    assert result.exit_code == 0, result.output
    assert "waits for 1 instance of release 1.4" in result.output
    leave(ready)
    assert ready.run("migrate").exit_code == 0
    assert ready.columns("shown") == {"id"}


def test_a_database_in_memory_has_no_other_release(make_project: Callable[..., Project]) -> None:
    project = make_project("sqlite://", ON)
    project.write(USERS + DROP)
    assert project.boot().applied == ("users", "drop_fax")


def test_it_sees_a_worker(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    url = new_url("postgresql")
    project = make_project(url, ON)
    booted(project, models, USERS, {})
    project.write(USERS + DROP)
    with engine_of(url.update_query_dict({"application_name": "db-smart/1.4"})).connect() as worker:
        worker.execute(sa.text("SELECT 1"))
        result = project.run("migrate")
        assert "waits for 1 session of release 1.4 that no host tells of" in result.output
    assert project.run("migrate").exit_code == 0
    assert "fax" not in project.columns("users")


def test_a_new_database_lacks_it_from_the_start(make_project: Callable[..., Project], url: URL) -> None:
    """So nothing is taken away from anybody, and nobody is waited for."""
    project = make_project(url, {**ON, "DB_SMART_CREATE_ALL": True, "DB_SMART_RELEASES": False})
    project.models = models
    project.write(DROP)
    with process(project) as (app, smart):
        finished(app, smart)
        assert smart._state(app).waiting == {}
    assert project.history() == [("drop_fax", "applied")]


def test_what_the_probes_and_pages_say(ready: Project) -> None:
    pytest.importorskip("prometheus_client")
    serve(ready)
    serve(ready, Instance("1.4", "pod-b:2", {"users": ["fax"]}))
    ready.write(USERS + DROP)
    with process(ready, DB_SMART_TOKEN="x" * 20) as (app, smart):
        wait_until(lambda: smart._state(app).waiting)
        client = app.test_client()
        probe = client.get("/_db-smart/ready")
        assert probe.status_code == 200
        assert probe.json is not None
        (said,) = probe.json["contract"]
        assert said["migration"] == "drop_fax"
        assert said["waits"].startswith("waits for 2 instances of release 1.4, last seen ")
        who = {"Authorization": "Bearer " + "x" * 20}
        page = client.get("/_db-smart/", headers=who).text
        assert "waits for 2 instances of release 1.4 (hosts pod-a, pod-b)" in page
        metrics = client.get("/_db-smart/metrics", headers=who).text
        assert 'db_smart_contract_waiting{migration="drop_fax"} 2.0' in metrics
    watched = ready.run("watch", "--until-ready")
    assert watched.exit_code == 0, watched.output


def test_a_script_leaves_it_out(ready: Project) -> None:
    ready.write(USERS + DROP + AFTER)
    result = ready.run("migrate", "--sql")
    assert "-- drop_fax (new)\n-- Left to db-smart, which runs it when no release" in result.stdout
    assert "DROP COLUMN" not in result.stdout
    assert "mail" in result.stdout
    assert "until no release that runs has what it takes away" in ready.run("migrate", "--dry-run").stdout


def test_a_step_that_fails_takes_back_that_it_began(ready: Project) -> None:
    ready.write(
        USERS + DROP.replace('op.drop_column("users", "fax")', 'op.execute("ALTER TABLE users DROP COLUMN no")')
    )
    assert ready.run("migrate").exit_code == 1
    with connected(ready) as connection:
        (found,) = releases.read_contracts(connection, holds=True)
    assert not found.under_way
    ready.write(USERS + DROP)
    assert ready.run("migrate").exit_code == 0
    assert "fax" not in ready.columns("users")
