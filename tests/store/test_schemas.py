"""Several schemas in one PostgreSQL database: each application finds its own history, whatever the search path."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DatabaseBehind, DatabaseUnreachable, DbSmartError
from aurum_harmony.db_smart.store.tables import metadata
from tests.harness.project import Project
from tests.harness.servers import role

#: The tables that every database gets.
OWN = frozenset(metadata.tables)
A = """
@migration(once=True)
def seed(op: Operations) -> None:
    op.execute("INSERT INTO users (name) VALUES ('a')")
"""
B = """
@migration
def make_notes(op: Operations) -> None:
    op.create_table("notes", Column("id", Integer, primary_key=True))

@migration(once=True)
def seed(op: Operations) -> None:
    op.execute("INSERT INTO orders (name) VALUES ('b')")
"""
MORE = """
@migration
def make_more(op: Operations) -> None:
    op.create_table("{0}", Column("id", Integer, primary_key=True))
"""


def searching(url: URL, path: str) -> URL:
    """The URL of a database with a search path."""
    return url.update_query_dict({"options": f"-csearch_path={path}"})


def model(table: str) -> Callable[[SQLAlchemy], None]:
    def make(db: SQLAlchemy) -> None:
        sa.Table(table, db.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))

    return make


@dataclass
class Schemas:
    """A database with the schemas ``public``, ``b`` and ``c``."""

    make_project: Callable[..., Project]
    url: URL

    def project(self, path: str, source: str, table: str, **config: Any) -> Project:
        """An application with one model."""
        project = self.make_project(searching(self.url, path), config)
        project.config["DB_SMART_FLAG"] = f".flag-{project.module}"
        project.models = model(table)
        project.write(source)
        return project

    def query(self, sql: str) -> list[Any]:
        """Rows of a query past the applications."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    def tables(self, schema: str) -> set[str]:
        """Names of the tables of a schema."""
        return {name for (name,) in self.query(f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'")}


@pytest.fixture
def schemas(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> Schemas:
    found = Schemas(make_project, new_url("postgresql"))
    found.query("CREATE SCHEMA b")
    found.query("CREATE SCHEMA c")
    return found


@pytest.mark.parametrize("translated", [False, True])
def test_two_applications_in_two_schemas_have_each_its_own_history_and_tables(
    schemas: Schemas, caplog: pytest.LogCaptureFixture, translated: bool
) -> None:
    a = schemas.project("public", A, "users")
    b = schemas.project("b,public", B, "orders")
    if translated:
        a.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"execution_options": {"schema_translate_map": {None: "public"}}}
    caplog.set_level("INFO", "aurum_harmony.db_smart")
    assert a.boot().applied == ("seed",)
    assert b.run("status").output.count("pending") == 3
    assert b.run("migrate", "--dry-run").output.count("new") == 2
    assert b.boot().applied == ("make_notes", "seed")
    assert schemas.tables("public") == OWN | {"users"}
    assert schemas.tables("b") == OWN | {"orders", "notes"}
    assert schemas.query("SELECT name FROM public.users") == [("a",)]
    assert schemas.query("SELECT name FROM b.orders") == [("b",)]
    assert schemas.query("SELECT name FROM public.db_smart_history ORDER BY id") == [("seed",)]
    assert schemas.query("SELECT name FROM b.db_smart_history ORDER BY id") == [("make_notes",), ("seed",)]
    # Neither disturbs the other, then and with a later release.
    a.write(A + MORE.format("more_a"))
    assert a.boot().applied == ("make_more",)
    assert b.boot().decision == "skipped"
    b.write(B + MORE.format("more_b"))
    assert b.boot().applied == ("make_more",)
    assert {"more_a"} == {name for name in schemas.tables("public") if name.startswith("more")}
    for project in (a, b):
        app, smart = project.app()
        assert smart.boot(app).decision == "skipped"
        assert app.test_client().get("/").status_code == 200
        project.dispose(app)
        assert project.run("status", "--check").exit_code == 0
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_first_run_that_was_cut_short_does_not_go_by_the_history_of_a_neighbour(schemas: Schemas) -> None:
    schemas.project("public", B, "orders").boot()
    b = schemas.project("b,public", A, "users")
    b.boot()
    schemas.query("DROP TABLE b.db_smart_history, b.db_smart_objects, b.db_smart_progress, b.users")
    schemas.query("UPDATE b.db_smart_state SET source = ''")
    b.flag.unlink(missing_ok=True)
    assert b.boot(DB_SMART_FLAG=".other").applied == ("seed",)
    assert schemas.query("SELECT name FROM b.users") == [("a",)]


def test_an_application_finds_what_a_role_with_another_search_path_has_migrated(schemas: Schemas) -> None:
    """The application's own connections may have a schema of theirs in front."""
    project = schemas.project("b,c", A, "users")
    project.config["DB_SMART_MIGRATION_URL"] = searching(schemas.url, "c").render_as_string(hide_password=False)
    assert project.boot().decision == "migrated"
    assert schemas.tables("b") == set()
    app, smart = project.app()
    assert smart.boot(app).decision == "skipped"
    assert app.test_client().get("/").status_code == 200
    with app.app_context():
        assert smart.database_state(app) == "up-to-date"
    project.dispose(app)
    # Processes that only check have no other URL, and no flag.
    for mode in ("check", "migrate"):
        report = project.boot(DB_SMART_MIGRATION_URL=None, DB_SMART_BOOT=mode, DB_SMART_FLAG=f".none-{mode}")
        assert report.decision == "verified"
    project.write(A + MORE.format("more"))
    with pytest.raises(DatabaseBehind, match=r"make_more.*another schema"):
        project.boot(DB_SMART_MIGRATION_URL=None, DB_SMART_BOOT="check")
    assert project.boot().applied == ("make_more",)
    assert schemas.tables("b") == set()


@pytest.mark.parametrize("release", ["this one", "one that did not write down whose history it is"])
def test_an_installation_whose_schema_is_no_longer_the_first_is_not_migrated_anew(
    schemas: Schemas, caplog: pytest.LogCaptureFixture, release: str
) -> None:
    with role(schemas.url, "GRANT ALL ON SCHEMA public TO {user}") as url:
        name = url.username
        project = schemas.project('"$user",public', A, "users")
        project.url = url
        assert project.boot().decision == "migrated"
        assert schemas.tables("public") >= OWN
        if release != "this one":
            schemas.query("DROP TABLE public.db_smart_objects")
        schemas.query(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        # Nothing is pending: it goes on, and says what is odd.
        assert project.boot(DB_SMART_FLAG=".second").decision == "verified"
        assert "lies in the schema 'public'" in caplog.text
        assert project.run("migrate").exit_code == 0
        project.write(A + MORE.format("more"))
        for config in ({}, {"FORCE_DB_MIGRATION": True}):
            refused = r"the one in 'public' .* holds migrations of this application .* Nothing was changed"
            with pytest.raises(DbSmartError, match=refused):
                project.boot(**config)
        for options in (["migrate"], ["migrate", "--dry-run"], ["migrate", "--sql"]):
            result = project.run(*options)
            assert result.exit_code == 1
            assert "put 'public' first in the search path" in result.output
        assert schemas.tables(str(name)) == set()
        assert schemas.query("SELECT count(*) FROM public.users") == [(1,)]
        # The two ways out that the message names.
        own = searching(url, "public")
        project.config["DB_SMART_MIGRATION_URL"] = own.render_as_string(hide_password=False)
        assert project.boot().applied == ("make_more",)
        del project.config["DB_SMART_MIGRATION_URL"]
        assert project.boot(SQLALCHEMY_DATABASE_URI=searching(url, str(name)), DB_SMART_FLAG=".new").applied == (
            "seed",
            "make_more",
        )
        assert project.boot(DB_SMART_FLAG=".third").decision == "verified"
        assert schemas.query(f"SELECT count(*) FROM {name}.users") == [(1,)]


def test_a_neighbour_that_may_not_be_read_is_named(schemas: Schemas) -> None:
    schemas.project("public", A, "users").boot()
    with role(schemas.url, "GRANT ALL ON SCHEMA b TO {user}") as url:
        b = schemas.project("b,public", B, "orders")
        b.url = searching(url, "b,public")
        with pytest.raises(DatabaseUnreachable, match="or a search path that does not lead to them"):
            b.boot()
        b.url = searching(url, "b")
        assert b.boot().decision == "migrated"
        b.url = searching(url, "b,public")
        b.write(B + MORE.format("more"))
        assert b.boot().applied == ("make_more",)


def test_the_database_is_still_asked_with_one_query(schemas: Schemas, caplog: pytest.LogCaptureFixture) -> None:
    schemas.project("public", A, "users").boot()
    b = schemas.project("b,public", B, "orders")
    b.boot()
    caplog.set_level("INFO", "aurum_harmony.db_smart")
    assert b.boot(DB_SMART_FLAG=".other").decision == "verified"
    assert ", 1 query)" in caplog.records[-1].message


def test_a_script_for_a_new_schema_does_not_stop_at_the_history_of_a_neighbour(schemas: Schemas) -> None:
    schemas.project("public", A, "users").boot()
    b = schemas.project("b,public", B, "orders")
    script = b.run("migrate", "--sql").stdout
    host = schemas.url.query.get("host") or schemas.url.host
    command = ["psql", "-q", "-h", str(host), "-p", str(schemas.url.port or 5432), "-U", str(schemas.url.username)]
    command += ["-v", "ON_ERROR_STOP=1", "-d", str(schemas.url.database)]

    def play(path: str) -> subprocess.CompletedProcess[str]:
        setting = f"SET search_path = {path};\n"
        return subprocess.run(command, input=setting + script, capture_output=True, text=True)

    assert "has one: nothing was changed" in play("public").stderr
    assert play("b,public").stderr == ""
    assert b.boot(DB_SMART_CREATE_ALL=False).applied == ()
    assert schemas.query("SELECT name FROM b.orders") == [("b",)]
    assert schemas.query("SELECT name FROM public.db_smart_history") == [("seed",)]
