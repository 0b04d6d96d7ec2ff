"""What is found in the ``env.py`` of real applications, and in their revisions, and what becomes of it."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.errors import ConfigError, DbSmartError, MigrationError, MigrationFailed
from tests.harness import kill_revisions
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked
from tests.harness.project import DIALECTS

Make = Callable[..., AlembicProject]
NewUrl = Callable[[str], URL]

TABLE = 'op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))'
RUN = """    with connectable.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=get_metadata(),
            **conf_args
        )

        with context.begin_transaction():
            context.run_migrations()
"""


@pytest.fixture
def project(make_alembic: Make, new_url: NewUrl) -> AlembicProject:
    """An application on SQLite with two revisions."""
    return two_revisions(make_alembic(new_url("sqlite")))


def two_revisions(project: AlembicProject) -> AlembicProject:
    project.revision("a1", None, TABLE)
    project.revision("a2", "a1", 'op.add_column("users", sa.Column("age", sa.Integer))\nop.execute("SELECT 1")')
    return project


def edit(project: AlembicProject, *changes: tuple[str, str], head: str = "") -> None:
    """Change ``env.py``."""
    env = project.alembic / "env.py"
    text = env.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    env.write_text(head + text)


def test_loggers_stay(project: AlembicProject) -> None:
    logger = logging.getLogger("of.the.application")
    level = logging.getLogger().level
    project.boot()
    assert not logger.disabled
    assert logging.getLogger().level == level


@pytest.mark.parametrize("dialect", DIALECTS)
def test_swallowed_errors_are_raised(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = two_revisions(make_alembic(new_url(dialect)))
    project.revision("a3", "a2", "raise ValueError('no')")
    swallowed = "try:\n                context.run_migrations()\n            except Exception:\n                pass\n"
    edit(project, ("            context.run_migrations()\n\n\nif", f"            {swallowed}\n\nif"))
    with pytest.raises(MigrationFailed, match="'a3' failed .*ValueError: no"):
        project.boot()
    assert project.heads() == {"a2"}


def test_an_exit_of_env_py(project: AlembicProject) -> None:
    edit(project, ("run_migrations_online()\n", "import sys; sys.exit(3)\n"))
    with pytest.raises(DbSmartError, match=r"env.py wanted to end the process \(3\)"):
        project.boot()


def test_an_exit_of_a_revision(project: AlembicProject) -> None:
    project.revision("a3", "a2", "import sys; sys.exit(4)")
    with pytest.raises(MigrationFailed, match=r"'a3' failed.*it wanted to end the process \(4\)"):
        project.boot()
    assert project.heads() == {"a2"}


def test_env_py_that_runs_nothing(project: AlembicProject) -> None:
    edit(project, ("            context.run_migrations()\n\n\nif", "            pass\n\n\nif"))
    with pytest.raises(
        DbSmartError, match=r"env.py ran no revision on the database.*or did not call run_migrations\(\)"
    ):
        project.boot()
    assert project.heads() == set()


def test_env_py_that_only_writes_scripts(project: AlembicProject) -> None:
    edit(project, ("connection=connection,", "url=connection.engine.url,"))
    with pytest.raises(DbSmartError, match=r"env.py configures no connection .* but a URL, as for a script"):
        project.boot()


def test_env_py_that_does_not_parse(project: AlembicProject) -> None:
    edit(project, ("def get_engine():", "def get_engine(:"))
    with pytest.raises(DbSmartError, match=r"env.py, failed for the database 'default'.*SyntaxError"):
        project.boot()
    assert project.heads() == set()


def test_a_revision_that_cannot_be_imported(project: AlembicProject) -> None:
    """The message names its file and its line, and not env.py, through which Alembic came there."""
    path = project.revision("a3", "a2")
    path.write_text(path.read_text().replace("import sqlalchemy as sa", "import no_such_module"))
    with pytest.raises(DbSmartError, match=r"/a3\.py, line 2, .*No module named 'no_such_module'") as raised:
        project.boot()
    assert "env.py" not in str(raised.value)
    assert project.heads() == set()
    found = project.run("migrate", "--sql")
    assert found.exit_code == 1
    assert "/a3.py, line 2, " in found.output
    assert "offline mode" not in found.output


@pytest.mark.parametrize("dialect", DIALECTS)
def test_env_py_that_configures_several_times(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = two_revisions(make_alembic(new_url(dialect)))
    edit(project, (RUN, RUN + RUN))
    assert project.boot().applied == ("a1", "a2")
    assert project.heads() == {"a2"}


#: Another tool, which has come to an end between the question what is pending and the transaction for it.
QUICKER = """import sqlalchemy as sa
from flask import current_app

with current_app.extensions["migrate"].db.engine.begin() as quicker:
    if quicker.scalar(sa.text("SELECT version_num FROM alembic_version")) == "a1":
        quicker.execute(sa.text("ALTER TABLE users ADD COLUMN age INTEGER"))
        quicker.execute(sa.text("UPDATE alembic_version SET version_num = 'a2'"))

"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_another_tool_is_quicker(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    project.revision("a1", None, TABLE)
    project.boot()
    two_revisions(project)
    edit(project, head=QUICKER)
    assert project.boot().applied == ()
    assert project.history() == [("a1", "applied"), ("a2", "applied")]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_transaction_of_env_py(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = two_revisions(make_alembic(new_url(dialect)))
    edit(project, ("with connectable.connect() as", "with connectable.begin() as"))
    assert project.boot().applied == ("a1", "a2")
    assert project.heads() == {"a2"}
    assert project.history() == [("a1", "applied"), ("a2", "applied")]
    project.revision("a3", "a2", 'op.execute("DELETE FROM users")')
    project.revision("a4", "a3", 'op.execute("INSERT INTO users (id) VALUES (4)")\nraise ValueError("no")')
    with pytest.raises(MigrationFailed, match="'a4' failed"):
        project.boot()
    assert project.heads() == {"a3"}
    assert project.query("SELECT count(*) FROM users") == [(0,)]


def test_autocommit_block_in_a_transaction_of_env_py(make_alembic: Make, new_url: NewUrl) -> None:
    project = two_revisions(make_alembic(new_url("postgresql")))
    edit(project, ("with connectable.connect() as", "with connectable.begin() as"))
    project.revision(
        "a3",
        "a2",
        """
        with op.get_context().autocommit_block():
            op.create_index("ix_age", "users", ["age"], postgresql_concurrently=True)
        op.execute("INSERT INTO users (id) VALUES (1)")
        """,
    )
    assert project.boot().applied == ("a1", "a2", "a3")
    assert project.query("SELECT id FROM users") == [(1,)]
    assert project.heads() == {"a3"}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("by", ["engine", "connection"])
def test_an_engine_in_autocommit(make_alembic: Make, new_url: NewUrl, dialect: str, by: str) -> None:
    project = two_revisions(make_alembic(new_url(dialect)))
    if by == "engine":
        project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"isolation_level": "AUTOCOMMIT"}
    else:
        edit(
            project,
            (
                "connectable = get_engine()",
                "connectable = get_engine().execution_options(isolation_level='AUTOCOMMIT')",
            ),
        )
    if dialect == "postgresql":
        project.revision("a3", "a2", 'op.execute("CREATE INDEX CONCURRENTLY ix_age ON users (age)")')
    else:
        project.revision("a3", "a2", 'op.create_index("ix_age", "users", ["age"])')
    assert project.boot().applied == ("a1", "a2", "a3")
    assert project.heads() == {"a3"}


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("by", ["engine", "connection"])
def test_killed_with_an_engine_in_autocommit(make_alembic: Make, new_url: NewUrl, dialect: str, by: str) -> None:
    """Each statement commits by itself; the rows of the version table and of the history do so together."""
    for boundary in itertools.count(1, 2):
        project = make_alembic(new_url(dialect), {"DB_SMART_LEASE_SECONDS": 0.3})
        if by == "engine":
            project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"isolation_level": "AUTOCOMMIT"}
        else:
            option = "connectable = get_engine().execution_options(isolation_level='AUTOCOMMIT')"
            edit(project, ("connectable = get_engine()", option))
        project.revision("a1", None, TABLE)
        project.boot()
        project.revision("a2", "a1", 'op.execute("INSERT INTO users (id) VALUES (1)")')
        add = 'op.add_column("users", sa.Column("age", sa.Integer, server_default="5"))'
        project.revision("a3", "a2", f'{add}\nop.execute("UPDATE users SET age = age + 1")')
        if ended(forked(kill_revisions.boot, project, boundary)) == 0:
            break
        project.boot()
        assert project.query("SELECT id, age FROM users") == [(1, 6)], boundary
        assert project.heads() == {"a3"}
        assert project.history() == [("a1", "applied"), ("a2", "applied"), ("a3", "applied")], boundary
        assert project.query("SELECT * FROM db_smart_progress") == []
    assert boundary > 10


def test_an_asynchronous_engine(project: AlembicProject) -> None:
    edit(
        project,
        (
            "        context.configure(\n            connection=",
            "        connection.dialect.is_async = True\n        context.configure(\n            connection=",
        ),
    )
    with pytest.raises(DbSmartError, match=r"env.py connects by an asynchronous driver .*Nothing was changed"):
        project.boot()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_create_app_in_env_py_and_in_a_revision(
    make_alembic: Make, new_url: NewUrl, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make the application again, whose ``boot()`` must not wait for the run that they are part of."""
    project = two_revisions(make_alembic(new_url(dialect)))
    module = ModuleType("application_of_env")
    reports, made = [], []

    def create_app() -> object:
        app, smart = project.app()
        made.append(app)
        reports.append(smart.boot(app))
        return app

    module.create_app = create_app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    edit(
        project,
        ("connectable = get_engine()", "connectable = db.engine"),
        head=(
            "from application_of_env import create_app\napp = create_app()\napp.app_context().push()\n"
            "db = app.extensions['sqlalchemy']\n"
        ),
    )
    path = project.revision(
        "a3",
        "a2",
        """
        from application_of_env import create_app
        app = create_app()
        with app.app_context():
            op.execute("INSERT INTO users (id) VALUES (1)")
        db = current_app.extensions["sqlalchemy"]
        db.session.execute(sa.text("UPDATE users SET age = 3"))
        db.session.commit()
        """,
    )
    path.write_text(path.read_text().replace("import sqlalchemy", "from flask import current_app\nimport sqlalchemy"))
    assert project.boot().applied == ("a1", "a2", "a3")
    assert {report.decision for report in reports} == {"off"}
    for app in made:
        project.dispose(app)
    assert project.query("SELECT id, age FROM users") == [(1, 3)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_models_target_metadata_and_the_application(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    """Revisions that use what the application has: its metadata, ``current_app``, ``db.session``."""
    project = two_revisions(make_alembic(new_url(dialect)))

    def models(db: object) -> None:
        class Extra(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)

    project.models = models
    path = project.revision(
        "a3",
        "a2",
        """
        metadata = op.get_context().opts["target_metadata"]
        metadata.tables["extra"].create(op.get_bind())
        db.create_all()
        metadata.create_all(db.engine)
        db.session.execute(metadata.tables["extra"].insert(), [{"id": 1}, {"id": 2}])
        db.session.commit()
        db.session.execute(metadata.tables["extra"].insert(), [{"id": 3}])
        db.session.rollback()
        assert current_app.name == name
        """,
    )
    head = 'from flask import current_app\nname = current_app.name\ndb = current_app.extensions["sqlalchemy"]\n'
    path.write_text(path.read_text().replace("import sqlalchemy", head + "import sqlalchemy"))
    assert project.boot().applied == ("a1", "a2", "a3")
    assert project.query("SELECT id FROM extra ORDER BY id") == [(1,), (2,)]


def test_a_prompt_fails(project: AlembicProject) -> None:
    project.revision("a3", "a2", "input('Really?')")
    with pytest.raises(MigrationFailed, match="it asks a question, and there is nobody to answer it; run 'flask db-sm"):
        project.boot()
    assert project.heads() == {"a2"}
    project.revision("a3", "a2", "import click; click.confirm('Really?', abort=True)")
    with pytest.raises(MigrationFailed, match="it asks a question"):
        project.boot()


def test_a_revision_that_catches_its_errors(make_alembic: Make, new_url: NewUrl) -> None:
    project = two_revisions(make_alembic(new_url("sqlite")))
    project.revision(
        "a3",
        "a2",
        """
        try:
            op.execute("INSERT INTO nothing (id) VALUES (1)")
        except Exception:
            op.execute("INSERT INTO users (id) VALUES (1)")
        """,
    )
    assert project.boot().applied == ("a1", "a2", "a3")
    assert project.query("SELECT id FROM users") == [(1,)]


def test_callbacks_and_hooks_of_env_py_are_kept(project: AlembicProject) -> None:
    edit(
        project,
        (
            "            **conf_args",
            "            on_version_apply=lambda step, **_: seen.append(step.up_revision_id), **conf_args",
        ),
        head="import sys\nseen = sys.seen = []\n",
    )
    try:
        project.boot()
        assert sys.seen == ["a1", "a2"]  # type: ignore[attr-defined]
    finally:
        del sys.seen  # type: ignore[attr-defined]


@pytest.mark.parametrize("separator", ["os", "space", "newline", ":", None])
def test_version_locations(project: AlembicProject, tmp_path: Path, separator: str | None) -> None:
    more = tmp_path / "more"
    more.mkdir()
    project.revision("a2", "a1").rename(more / "a2.py")
    between = {"os": ":", ":": ":", "newline": "\n    "}.get(separator or "", " ")
    ini = project.alembic / "alembic.ini"
    lines = f"version_locations = {project.alembic}/versions{between}{more}\n"
    if separator is not None:
        lines += f"{'version_path_separator' if separator == ':' else 'path_separator'} = {separator}\n"
    ini.write_text(ini.read_text().replace("[alembic]\n", f"[alembic]\n{lines}", 1))
    assert project.boot().applied == ("a1", "a2")
    assert project.boot().decision == "skipped"
    project.revision("a3", "a2").rename(more / "a3.py")
    assert project.boot().applied == ("a3",)


def test_recursive_version_locations(project: AlembicProject) -> None:
    deep = project.alembic / "versions" / "2024" / "01"
    deep.mkdir(parents=True)
    project.revision("a3", "a2").rename(deep / "a3_named.py")
    assert project.boot().applied == ("a1", "a2")
    ini = project.alembic / "alembic.ini"
    ini.write_text(ini.read_text().replace("[alembic]\n", "[alembic]\nrecursive_version_locations = true\n", 1))
    assert project.boot().applied == ("a3",)


def test_no_directory(project: AlembicProject) -> None:
    (project.alembic / "env.py").unlink()
    with pytest.raises(ConfigError, match=r"There is no Alembic directory .*env.py; looked for: .*Nothing was changed"):
        project.boot()


def test_no_directory_of_flask_migrate_yet(project: AlembicProject, sqlite_url: URL) -> None:
    """Who names it by ``alembic=True`` makes it, or corrects ``Migrate``; and has no path to correct in ``DbSmart``."""
    (project.alembic / "env.py").unlink()
    with pytest.raises(ConfigError, match=r"'flask db init'.*Migrate\(app, db, directory=\.\.\.\)") as raised:
        project.boot()
    assert "alembic=..." not in str(raised.value)
    project.init_alembic()
    (project.alembic / "env.py").unlink()
    with pytest.raises(ConfigError, match=r"Correct DbSmart\(app, db, alembic=\.\.\.\)"):
        project.boot()


@pytest.mark.parametrize("target", [7, None, "", [], ["heads", 7], {"head": 1}])
def test_a_target_that_is_no_text(project: AlembicProject, target: Any) -> None:
    project.target = target
    with pytest.raises(ConfigError, match=r"alembic_target is .*'head'.*Nothing was changed"):
        project.boot()


def test_nothing_to_apply_is_named() -> None:
    app = Flask("club")
    with pytest.raises(ConfigError, match=r"migrations='myapp\.migrations'.*alembic=True"):
        DbSmart(app, SQLAlchemy())


def test_version_locations_by_a_callback(project: AlembicProject, tmp_path: Path) -> None:
    """As an application does that has plugins with revisions of their own."""
    more = tmp_path / "more"
    more.mkdir()

    def tune(app: Flask) -> None:
        @app.extensions["migrate"].migrate.configure  # type: ignore[untyped-decorator]
        def configure(config: Config) -> Config:
            config.set_main_option("version_locations", f"{project.alembic}/versions {more}")
            config.set_main_option("path_separator", "space")
            return config

    project.tune = tune
    project.revision("p1", None, labels=("plugin",), depends_on="a1").rename(more / "p1.py")
    project.target = ["a2", "plugin@head"]
    assert set(project.boot().applied) == {"a1", "a2", "p1"}
    assert project.boot().decision == "skipped"
    project.revision("p2", "p1").rename(more / "p2.py")
    assert project.boot().applied == ("p2",)


def test_a_configuration_in_pyproject(project: AlembicProject, tmp_path: Path) -> None:
    project.init_alembic(above=True)
    two_revisions(project)
    deep = project.alembic / "others"
    deep.mkdir()
    project.revision("a3", "a2").rename(deep / "a3.py")
    assert project.boot().applied == ("a1", "a2")
    text = '[tool.alembic]\nversion_locations = ["%(here)s/NAME/versions", "%(here)s/NAME/others"]\n'
    (tmp_path / "pyproject.toml").write_text(text.replace("NAME", project.alembic.name))
    assert project.boot().applied == ("a3",)
    (tmp_path / "pyproject.toml").write_text("[tool.alembic]\nversion_locations = 7 7\n")
    with pytest.raises(MigrationError, match=r"configuration of Alembic for .* cannot be read: .*pyproject.toml"):
        project.boot()


@pytest.mark.parametrize("template", ["flask", "generic"])
def test_a_url_for_migrating(make_alembic: Make, new_url: NewUrl, template: str) -> None:
    url = new_url("postgresql")
    project = make_alembic(url)
    if template == "generic":
        project.init_alembic()
    two_revisions(project)
    path = project.revision(
        "a3",
        "a2",
        """
        assert op.get_bind().engine.url.query["application_name"] == "migrator"
        assert op.get_bind().scalar(sa.text("SELECT current_setting('application_name')")) == "migrator"
        db = current_app.extensions["sqlalchemy"]
        db.session.execute(sa.text("INSERT INTO users (id) VALUES (1)"))
        db.session.commit()
        """,
    )
    path.write_text(path.read_text().replace("import sqlalchemy", "from flask import current_app\nimport sqlalchemy"))
    leading = url.update_query_dict({"application_name": "migrator"}).render_as_string(hide_password=False)
    assert project.boot(DB_SMART_MIGRATION_URL=leading).applied == ("a1", "a2", "a3")
    assert project.query("SELECT id FROM users") == [(1,)]


def test_a_version_table_for_each_tenant(make_alembic: Make, new_url: NewUrl) -> None:
    project = two_revisions(make_alembic(new_url("postgresql")))
    project.query("CREATE SCHEMA one")
    project.query("CREATE SCHEMA two")
    tenant = "connection.exec_driver_sql('SET search_path TO ' + tenant); connection.commit()"
    edit(
        project,
        (
            "    with connectable.connect() as connection:\n",
            f"    for tenant in ('one', 'two'):\n     with connectable.connect() as connection:\n        {tenant}\n",
        ),
    )
    with pytest.raises(DbSmartError, match=r"several version tables .*one.alembic_version and two.alembic_version"):
        project.boot()


def test_a_version_table_by_another_file(project: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is taken only where env.py has words that call for it."""
    module = ModuleType("options_of_env")
    module.more = {"version_table": "elsewhere"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    edit(project, ("**conf_args", "**conf_args, **more"), head="from options_of_env import more\n")
    with pytest.raises(DbSmartError, match=r"configures the version table elsewhere .*Name it in Migrate\(app, db"):
        project.boot()
    assert project.heads("elsewhere") == set()


def test_a_connection_goes_back_to_the_pool_as_it_was(project: AlembicProject) -> None:
    """What env.py itself, or another thread, gets from the pool next is not in the middle of anything."""

    def tune(app: Flask) -> None:
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
        sa.event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA foreign_keys=ON"))

    project.tune = tune
    after = (
        "    with connectable.connect() as connection:\n"
        "        assert connection.exec_driver_sql('PRAGMA foreign_keys').scalar() == 1\n"
        "        assert connection.connection.isolation_level is not None\n"
    )
    edit(project, (RUN, RUN + after))
    assert project.boot().applied == ("a1", "a2")


def test_a_database_in_memory(make_alembic: Make) -> None:
    project = two_revisions(make_alembic("sqlite://"))
    app, smart = project.app()
    assert smart.boot(app).applied == ("a1", "a2")
    with app.app_context():
        session = app.extensions["sqlalchemy"].session
        assert session.execute(sa.text("SELECT version_num FROM alembic_version")).all() == [("a2",)]
        session.execute(sa.text("INSERT INTO users (id) VALUES (1)"))
        session.commit()
    assert app.test_client().get("/").status_code == 200
    project.dispose(app)


def test_a_two_phase_transaction(make_alembic: Make, new_url: NewUrl) -> None:
    project = two_revisions(make_alembic(new_url("postgresql")))
    begin = "        connection.begin_twophase()\n"
    edit(project, ("as connection:\n", f"as connection:\n{begin}"))
    with pytest.raises(DbSmartError, match=r"two-phase transaction.*Nothing was changed. Set USE_TWOPHASE = False"):
        project.boot()
    assert project.heads() == set()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_revision_that_fails_is_tried_again_by_the_next_boot(
    make_alembic: Make, new_url: NewUrl, dialect: str
) -> None:
    project = two_revisions(make_alembic(new_url(dialect)))
    project.revision("a3", "a2", "op.execute('INSERT INTO users (id) VALUES (1)')\nraise ValueError('no')")
    with pytest.raises(MigrationFailed, match=r"(?s)'a3' failed .*a3\.py, line 13"):
        project.boot()
    assert project.query("SELECT count(*) FROM users") == [(0,)]
    assert project.heads() == {"a2"}
    project.revision("a3", "a2", "op.execute('INSERT INTO users (id) VALUES (1)')")
    assert project.boot().applied == ("a3",)
    assert project.history() == [("a1", "applied"), ("a2", "applied"), ("a3", "failed"), ("a3", "applied")]
