"""Migrations as authors write them: with operations, or with ``db.session`` as the original document shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, MigrationFailed
from tests.harness.project import Project

#: The example of the original document, pasted as it stands under the imports that it needs.
SPEC_HEADER = """\
from flask import current_app
from sqlalchemy import inspect
db = current_app.extensions["sqlalchemy"]

"""
SPEC_EXAMPLE = """\
def migrate_user_fields():
    inspector = inspect(db.engine)
    columns = [col['name'] for col in inspector.get_columns('users')]

    # Add new field
    if 'new_field' not in columns:
        print("  - Adding new_field column...")
        db.session.execute(db.text('ALTER TABLE users ADD COLUMN new_field TEXT'))
        db.session.commit()
        print("    done: new_field added")
"""


def users(db: SQLAlchemy) -> None:
    class User(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "users"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    db.User = User  # type: ignore[attr-defined]


def test_the_documents_example_works_as_it_stands(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.models = users
    project.write(SPEC_EXAMPLE, header=SPEC_HEADER)
    report = project.boot()
    assert report.applied == ("migrate_user_fields",)
    assert "new_field" in project.columns("users")
    assert "Adding new_field" in capsys.readouterr().out
    assert project.boot().decision == "skipped"
    # The document's way to add a field: write it into the same function.
    project.write(SPEC_EXAMPLE.replace("new_field", "newer_field"), header=SPEC_HEADER)
    assert project.boot().applied == ("migrate_user_fields",)
    assert project.columns("users") == {"id", "name", "new_field", "newer_field"}


def test_a_session_migration_that_raises_is_kept_whole_or_not_at_all(project: Project) -> None:
    project.models = users
    project.write(
        SPEC_EXAMPLE + "    db.session.execute(db.text(\"INSERT INTO users (id, name) VALUES (1, 'a')\"))\n"
        "    db.session.commit()\n"
        "    raise ValueError('stop')\n",
        header=SPEC_HEADER,
    )
    with pytest.raises(MigrationFailed, match="ValueError: stop") as caught:
        project.boot()
    assert caught.value.migration == "migrate_user_fields"
    assert project.history() == [("migrate_user_fields", "failed")]
    if project.dialect == "mysql":
        assert "new_field" in project.columns("users")
        assert "schema change commits by itself" in caught.value.message
    else:
        assert "new_field" not in project.columns("users")
        assert "Nothing of it was kept" in caught.value.message
    # The rows were to be committed with the record of the migration, also where schema changes were not.
    assert project.query("SELECT * FROM users") == []
    project.write(SPEC_EXAMPLE, header=SPEC_HEADER)
    assert project.boot().applied == ("migrate_user_fields",)


def test_data_left_uncommitted_in_the_session_is_committed_with_the_migration(project: Project) -> None:
    project.models = users
    project.write("""
        @migration
        def add_row():
            db.session.execute(text("INSERT INTO users (id, name) VALUES (1, 'a')"))

        @migration
        def add_another(op):
            op.session.execute(text("INSERT INTO users (id, name) VALUES (2, 'b')"))
            op.connection.execute(text("INSERT INTO users (id, name) VALUES (3, 'c')"))
    """)
    project.boot()
    assert project.query("SELECT id, name FROM users ORDER BY id") == [(1, "a"), (2, "b"), (3, "c")]


def test_session_rollback_takes_back_only_its_own_transaction(project: Project) -> None:
    project.models = users
    project.write("""
        @migration
        def rows():
            db.session.execute(text("INSERT INTO users (id, name) VALUES (1, 'kept')"))
            db.session.commit()
            db.session.execute(text("INSERT INTO users (id, name) VALUES (2, 'gone')"))
            db.session.rollback()
            with db.engine.begin() as connection:
                connection.execute(text("INSERT INTO users (id, name) VALUES (3, 'kept')"))
            with db.engine.connect() as connection:
                connection.execute(text("INSERT INTO users (id, name) VALUES (4, 'gone')"))
    """)
    project.boot()
    assert project.query("SELECT id FROM users ORDER BY id") == [(1,), (3,)]


def test_asking_by_a_failing_query_works(project: Project) -> None:
    project.models = users
    project.write("""
        @migration
        def add_city():
            try:
                db.session.execute(text("SELECT city FROM users LIMIT 1"))
            except Exception:
                db.session.rollback()
                db.session.execute(text("ALTER TABLE users ADD COLUMN city TEXT"))
                db.session.commit()
            db.session.execute(text("INSERT INTO users (id, city) VALUES (1, 'x')"))
            db.session.commit()
    """)
    project.boot()
    assert project.query("SELECT city FROM users") == [("x",)]


def test_an_inspector_kept_open_does_not_undo_what_the_session_commits(project: Project) -> None:
    project.models = users
    project.write("""
        @migration
        def add_city():
            connection = db.engine.connect()
            columns = inspect(connection).get_columns("users")
            db.session.execute(text("ALTER TABLE users ADD COLUMN city TEXT"))
            db.session.execute(text("INSERT INTO users (id, city) VALUES (1, 'x')"))
            db.session.commit()
            connection.close()
    """)
    project.boot()
    assert project.query("SELECT city FROM users") == [("x",)]


def test_interleaved_writers_of_which_one_rolls_back_fail_the_migration(project: Project) -> None:
    project.models = users
    project.write("""
        @migration
        def both():
            connection = db.engine.connect()
            connection.execute(text("INSERT INTO users (id) VALUES (1)"))
            db.session.execute(text("INSERT INTO users (id) VALUES (2)"))
            db.session.commit()
            connection.close()
    """)
    with pytest.raises(MigrationFailed, match="share one transaction"):
        project.boot()
    assert project.query("SELECT id FROM users") == []


def test_models_and_create_all_inside_a_migration_use_its_transaction(project: Project) -> None:
    project.models = users
    project.write("""
        @migration
        def all_of_it():
            db.create_all()
            db.session.add(db.User(id=1, name="a"))
            db.session.commit()
            assert db.session.get(db.User, 1).name == "a"
            with current_app.app_context():
                assert db.session.execute(text("SELECT count(*) FROM users")).scalar() == 1
    """)
    assert project.boot(DB_SMART_CREATE_ALL=False).applied == ("all_of_it",)
    assert project.query("SELECT name FROM users") == [("a",)]


def test_the_applications_engine_is_back_after_a_run(project: Project) -> None:
    project.models = users
    project.write("@migration\ndef fails(): raise ValueError('no')\n")
    app, smart = project.app()
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    with pytest.raises(MigrationFailed):
        smart.boot(app)
    with app.app_context():
        assert app.extensions["sqlalchemy"].engine is engine
        assert app.extensions["sqlalchemy"].session.execute(sa.text("SELECT count(*) FROM users")).scalar() == 0
    project.dispose(app)


def test_migrations_never_use_the_pool_that_serves_requests(project: Project) -> None:
    project.models = users
    project.write(SPEC_EXAMPLE, header=SPEC_HEADER)
    app, smart = project.app()
    checkouts = []
    with app.app_context():
        sa.event.listen(app.extensions["sqlalchemy"].engine, "checkout", lambda *_: checkouts.append(1))
        assert smart.boot(app).decision == "migrated"
        assert app.extensions["sqlalchemy"].engine.pool.checkedin() == 0
    project.dispose(app)


def test_once_is_never_repeated_and_its_edit_is_reported(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.models = users
    source = """
        @migration(once=True)
        def add_row(op):
            op.execute("INSERT INTO users (id, name) VALUES (:id, :name)", {"id": 1, "name": "a"})
    """
    project.write(source)
    assert project.boot().applied == ("add_row",)
    assert project.boot(FORCE_DB_MIGRATION="yes").applied == ()
    project.write(source.replace('"name": "a"', '"name": "b"'))
    report = project.boot()
    assert report.decision == "verified"
    assert "'add_row' was edited after it was applied" in caplog.text
    assert project.boot(FORCE_DB_MIGRATION="yes").applied == ()
    assert project.query("SELECT name FROM users") == [("a",)]


def test_failure_names_migration_statement_and_cause_and_the_next_boot_tries_again(project: Project) -> None:
    # Not a new database, on which SQL for a table that is not there is left out.
    project.query("CREATE TABLE users (id INTEGER PRIMARY KEY, name VARCHAR(50))")
    project.models = users
    path = project.write("""
        @migration
        def first(op):
            op.add_column("users", Column("a", Text))

        @migration
        def second(op):
            op.add_column("users", Column("b", Text))
            op.execute("INSERT INTO nowhere (x) VALUES (:x)", {"x": "personal"})
    """)
    with pytest.raises(MigrationFailed) as caught:
        project.boot()
    message = caught.value.message
    assert "'second'" in message
    assert "INSERT INTO nowhere" in message
    line = 1 + next(n for n, text in enumerate(path.read_text().splitlines()) if "INTO nowhere" in text)
    assert f"{path}, line {line}" in message
    assert "nowhere" in caught.value.cause
    assert "personal" not in message
    assert "applied before it (1) stays" in message
    assert project.history() == [("first", "applied"), ("second", "failed")]
    assert ("b" in project.columns("users")) == (project.dialect == "mysql")
    assert not project.flag.exists()
    with pytest.raises(MigrationFailed):
        project.boot()
    project.query("CREATE TABLE nowhere (x VARCHAR(20))")
    assert project.boot().applied == ("second",)
    assert {"a", "b"} <= project.columns("users")
    assert project.query("SELECT x FROM nowhere") == [("personal",)]


def test_non_transactional_migrations(project: Project) -> None:
    project.models = users
    statement = {
        "sqlite": "VACUUM",
        "postgresql": "CREATE INDEX CONCURRENTLY ix_name ON users (name)",
        "mysql": "OPTIMIZE TABLE users",
    }[project.dialect]
    project.write(f"""
        @migration(transactional=False)
        def outside(op):
            op.execute({statement!r})
            op.session.execute(text("INSERT INTO users (id) VALUES (1)"))
            op.session.commit()
            op.session.execute(text("INSERT INTO users (id) VALUES (2)"))
            op.session.rollback()
    """)
    assert project.boot().applied == ("outside",)
    assert project.query("SELECT id FROM users") == [(1,)]


def test_create_all_makes_the_models_tables_on_the_first_run_only(project: Project) -> None:
    project.models = users
    project.write("@migration\ndef nothing(op): pass\n")
    project.boot()
    assert "users" in project.tables()
    project.query("DROP TABLE users")
    project.write("@migration\ndef nothing(op): 'more'; len('x')\n")
    project.boot()
    assert "users" not in project.tables()


def test_create_all_can_be_switched_off(project: Project) -> None:
    project.models = users
    project.write("@migration\ndef nothing(op): pass\n")
    project.boot(DB_SMART_CREATE_ALL="false")
    assert "users" not in project.tables()


def test_tables_without_any_migration_are_made(project: Project) -> None:
    project.models = users
    project.write("")
    report = project.boot()
    assert (report.decision, report.applied) == ("migrated", ())
    assert "users" in project.tables()
    assert project.boot().decision == "skipped"


def test_old_and_new_code_take_turns_without_running_anything_twice(
    project: Project, make_project: Callable[..., Project]
) -> None:
    project.models = users
    old = make_project(project.url)
    old.models = users
    source = "@migration\ndef fields(op): op.add_column('users', Column('{}', Text))\n"
    old.write(source.format("a"))
    project.write(source.format("b") + "@migration\ndef more(op): pass\n")
    old.config["DB_SMART_FLAG"] = "old"
    assert old.boot().applied == ("fields",)
    assert project.boot().applied == ("fields", "more")
    for _ in range(3):
        for pod, flag in ((old, "old"), (project, ".db_migration_completed")):
            (pod.instance / flag).unlink()
            assert pod.boot().decision == "verified"
            assert pod.boot().decision == "skipped"
    assert len(project.history()) == 3
    result = old.run("status")
    assert "Database default: ahead" in result.output


class TestBinds:
    """Several databases in one application."""

    SOURCE = """
        @migration
        def one(op):
            op.create_table("items", Column("id", Integer, primary_key=True))

        @migration(database="analytics")
        def two(op):
            op.create_table("events", Column("id", Integer, primary_key=True))

        @migration(database="analytics")
        def three():
            db.session.execute(text("INSERT INTO events (id) VALUES (7)"))
            db.session.commit()
            assert inspect(db.engine).has_table("events")
            assert inspect(db.engines["analytics"]).has_table("events")
    """

    @pytest.fixture
    def second(self, project: Project, new_url: Callable[[str], URL]) -> URL:
        """A database of the next kind."""
        return new_url({"sqlite": "postgresql", "postgresql": "mariadb", "mysql": "sqlite"}[project.dialect])

    def test_each_database_has_its_own_history_and_part_of_the_flag(
        self, project: Project, second: URL, make_project: Callable[..., Project]
    ) -> None:
        project.config["SQLALCHEMY_BINDS"] = {"analytics": second, "unused": "sqlite:///unused.db"}
        project.write(self.SOURCE)
        other = make_project(second)
        assert project.boot().applied == ("one", "two", "three")
        assert project.history() == [("one", "applied")]
        assert other.history() == [("two", "applied"), ("three", "applied")]
        assert other.query("SELECT id FROM events") == [(7,)]
        assert project.boot().decision == "skipped"
        assert not (project.instance / "unused.db").exists()
        project.flag.unlink()
        assert project.boot().decision == "verified"

    def test_another_bind_url_is_noticed(self, project: Project, second: URL, new_url: Callable[[str], URL]) -> None:
        project.config["SQLALCHEMY_BINDS"] = {"analytics": second}
        project.write(self.SOURCE)
        project.boot()
        project.config["SQLALCHEMY_BINDS"] = {"analytics": new_url("sqlite")}
        report = project.boot()
        assert report.applied == ("two", "three")
        assert "the database 'analytics' is now" in report.reason

    def test_unknown_bind_is_one_clear_message(self, sqlite_project: Project) -> None:
        sqlite_project.write(self.SOURCE)
        with pytest.raises(DbSmartError, match="'two' .* is for the database 'analytics', which .* does not have"):
            sqlite_project.boot()
        assert not (sqlite_project.instance / "x").exists()


def test_memory_database_is_migrated_by_the_applications_engine(make_project: Callable[..., Project]) -> None:
    project = make_project("sqlite://")
    project.models = users
    project.write(SPEC_EXAMPLE, header=SPEC_HEADER)
    app, smart = project.app()
    assert smart.boot(app).decision == "migrated"
    assert not project.flag.exists()
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        assert db.session.execute(sa.text("SELECT new_field FROM users")).all() == []
        db.session.execute(sa.text("INSERT INTO users (id) VALUES (1)"))
        db.session.commit()
        db.session.remove()
        assert db.session.execute(sa.text("SELECT id FROM users")).scalar() == 1
    assert smart.boot(app).decision == "verified"
    project.dispose(app)
