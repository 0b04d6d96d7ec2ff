"""What boot, ``status`` and errors say of models that have more than the database."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.drift import models
from tests.harness.project import DIALECTS, Project

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
SAID = (
    "users.nickname is in the models but not in the database: 'flask db-smart new NAME --from-models' writes the "
    "migration"
)
SECOND = "\n\n@migration\ndef second(op: Operations) -> None:\n"
MIGRATION = "@migration\ndef first(op: Operations) -> None:\n    pass\n"


@pytest.fixture(params=DIALECTS)
def project(request: pytest.FixtureRequest, make_project: Make, new_url: NewUrl) -> Project:
    project = make_project(new_url(request.param))
    project.models = models
    project.write(MIGRATION)
    return project


def more(db: SQLAlchemy) -> None:
    models(db)
    db.metadata.tables["users"].append_column(sa.Column("nickname", sa.String(40)))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "in the models" in record.getMessage()]
    caplog.clear()
    return found


def test_boot_warns_where_it_asks(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert project.boot().decision == "migrated"
    assert warned(caplog) == []
    project.models = more
    assert project.boot().decision == "skipped"  # a warm boot in production looks at nothing
    assert warned(caplog) == []
    project.flag.unlink()
    assert project.boot().decision == "verified"
    assert warned(caplog) == [f"db-smart: {SAID} (database 'default')"]
    project.write(MIGRATION + SECOND + "    pass\n")
    assert project.boot().decision == "migrated"
    assert warned(caplog) == [f"db-smart: {SAID} (database 'default')"]


def test_a_database_that_is_ahead(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """A later release has taken it away: a migration that brings it back is no help."""
    project.write(MIGRATION + SECOND + "    pass\n")
    assert project.boot().decision == "migrated"
    project.write(MIGRATION)
    project.models = more
    caplog.clear()
    assert project.boot().decision == "verified"
    said = "not in the database, which is ahead of this code: a later release may have taken it away. If not, 'flask "
    assert [said in one for one in warned(caplog)] == [True]
    assert said in project.run("status").output


def test_what_is_complete_costs_no_query(project: Project) -> None:
    project.boot()
    project.flag.unlink()
    app, smart = project.app()
    statements: list[str] = []
    with app.app_context():
        for engine in app.extensions["sqlalchemy"].engines.values():
            sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert smart.boot(app).decision == "verified"
    project.dispose(app)
    assert len([one for one in statements if "pragma_table_xinfo" in one or "information_schema.columns" in one]) == 0


def test_status_has_a_line(project: Project) -> None:
    project.boot()
    assert "in the models" not in project.run("status").output
    project.models = more
    assert f"  models   {SAID}; 'flask db-smart diff' shows more\n" in project.run("status").output
    project.write(MIGRATION + SECOND + '    op.add_columns("users", Column("nickname", String(40)))\n')
    assert "in the models" not in project.run("status").output  # it is pending


def test_while_debugging(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.boot()
    project.config["DEBUG"] = True
    assert project.boot().decision == "skipped"
    assert warned(caplog) == []
    project.models = more
    assert project.boot().decision == "skipped"
    assert warned(caplog) == [f"db-smart: {SAID} (database 'default')"]
    project.models = models
    assert project.boot().decision == "skipped"
    assert warned(caplog) == []


def test_the_error_of_a_query_while_debugging(project: Project) -> None:
    project.boot()
    project.models = more
    for debug in (False, True):
        app, smart = project.app(DEBUG=debug)
        smart.boot(app)
        db = app.extensions["sqlalchemy"]
        with app.app_context(), pytest.raises(sa.exc.DBAPIError) as caught:
            db.session.execute(sa.select(db.metadata.tables["users"]))
        project.dispose(app)
        assert (f"db-smart: {SAID}." in str(caught.value)) == debug


def test_a_bind_that_no_migration_names(make_project: Make, new_url: NewUrl, caplog: pytest.LogCaptureFixture) -> None:
    project = make_project(new_url("sqlite"))
    project.config["SQLALCHEMY_BINDS"] = {"billing": new_url("sqlite")}
    project.write(MIGRATION)
    engine = sa.create_engine(project.config["SQLALCHEMY_BINDS"]["billing"])
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (id INTEGER)")
    engine.dispose()

    def with_bind(db: SQLAlchemy) -> None:
        models(db)
        db.Table("invoices", sa.Column("id", sa.Integer, primary_key=True), bind_key="billing")

    project.models = with_bind
    project.boot()
    assert [line for line in warned(caplog) if "invoices is in the models" in line]
