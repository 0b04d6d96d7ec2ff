"""Flask-Migrate beside db-smart: Alembic's autogenerate proposes nothing for the tables of the extension."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.harness import processes
from tests.harness.project import Project

APP = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart

db = SQLAlchemy()

class User(db.Model):
    id = db.Column(db.Integer, primary_key=True)

def create_app():
    app = Flask("shop", instance_path={instance!r})
    app.config["SQLALCHEMY_DATABASE_URI"] = {url!r}
    db.init_app(app)
    Migrate(app, db, directory={directory!r})
    DbSmart(app, db, migrations={module!r})
    return app
"""


def flask(project: Project, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", *arguments],
        cwd=project.directory,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_alembic_does_not_propose_to_drop_our_tables(project: Project, tmp_path: Path) -> None:
    project.write("""
        @migration
        def add_name(op: Operations) -> None:
            op.create_table("user", Column("id", Integer, primary_key=True))
            op.create_table("left_over", Column("id", Integer, primary_key=True))
    """)
    values = {
        "instance": str(project.instance),
        "url": sa.make_url(project.url).render_as_string(hide_password=False),
        "directory": str(tmp_path / "alembic"),
        "module": project.module,
    }
    (tmp_path / "shop.py").write_text(APP.format(**values), encoding="utf-8")
    flask(project, "db-smart", "migrate")
    flask(project, "db", "init")
    flask(project, "db", "migrate", "-m", "first")
    (revision,) = (tmp_path / "alembic" / "versions").glob("*.py")
    text = revision.read_text(encoding="utf-8")
    assert "db_smart" not in text
    assert "op.drop_table('left_over')" in text  # what is not ours is compared as ever
    flask(project, "db", "upgrade")
    assert [name for name, _ in project.history()] == ["add_name"]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_boot_does_not_load_alembic_for_it(sqlite_project: Project, loaded: bool) -> None:
    script = f"""
import sys
{"import alembic.runtime.plugins" if loaded else ""}
sys.path.insert(0, {str(sqlite_project.directory)!r})
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = SQLAlchemy(app)
DbSmart(app, db, migrations="nothing")
print("alembic" in sys.modules)
if {loaded}:
    print("alembic.autogenerate.db_smart" in sys.modules["alembic.runtime.plugins"]._all_plugins)
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, env=processes.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.split() == (["True", "True"] if loaded else ["False"]), result.stderr
