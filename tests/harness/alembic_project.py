"""An application with an Alembic directory, as Flask-Migrate makes it, taken over by db-smart."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import flask_migrate  # type: ignore[import-untyped]
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.session.environment import logging_kept
from tests.harness.processes import run_python
from tests.harness.project import Project

_REVISION = '''\
"""{message}"""
import sqlalchemy as sa
from alembic import context, op

revision = {name!r}
down_revision = {down!r}
branch_labels = {labels!r}
depends_on = {depends_on!r}


def upgrade():
{upgrade}


def downgrade():
{downgrade}
'''
#: What a process runs that has no db-smart: ``python -c PLAIN DIRECTORY TARGET CONFIG OPTIONS``.
PLAIN = """
import json
import sys
import flask_migrate  # type: ignore[import-untyped]
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

directory, target, config, options = sys.argv[1:5]
app = Flask("plain", instance_path=directory)
app.config.update(json.loads(config))
db = SQLAlchemy(app)
flask_migrate.Migrate(app, db, directory, **json.loads(options))
with app.app_context():
    flask_migrate.upgrade(revision=target)
"""
#: As ``alembic -c INI upgrade TARGET``.
PLAIN_ALEMBIC = """
import sys
from alembic import command
from alembic.config import Config

command.upgrade(Config(sys.argv[1]), sys.argv[2])
"""


@dataclass
class AlembicProject(Project):
    """As :class:`~.project.Project`, with revisions of Alembic, and no migrations unless a test names them.

    :ivar target: ``alembic_target`` of the extension.
    :ivar migrations: dotted name of migrations that come after the revisions.
    :ivar migrate_options: for Flask-Migrate's ``Migrate``.
    """

    target: str | Sequence[str] = "head"
    migrations: str | None = None
    migrate_options: dict[str, Any] | None = None
    #: The configuration of a directory that Flask-Migrate knows nothing of; the extension is given its path.
    ini: Path | None = None

    @property
    def alembic(self) -> Path:
        """The Alembic directory."""
        return self.directory / self.module

    def init(self, template: str = "flask", *, multidb: bool = False) -> None:
        """Make the directory from a template of Flask-Migrate."""
        app = Flask("init", instance_path=str(self.instance))
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        db = SQLAlchemy(app)
        flask_migrate.Migrate(app, db, str(self.alembic))
        with app.app_context():
            flask_migrate.init(multidb=multidb, template=None if multidb else template)

    def init_alembic(self, template: str = "generic", *, above: bool = False) -> None:
        """Make the directory as ``alembic init`` does, with the database in its own configuration.

        :param above: whether the configuration is in the folder above, where Alembic itself puts it.
        """
        shutil.rmtree(self.alembic, ignore_errors=True)
        self.ini = (self.directory if above else self.alembic) / "alembic.ini"
        with redirect_stdout(StringIO()):
            command.init(Config(str(self.directory / "alembic.ini")), str(self.alembic), template)
        if not above:
            (self.directory / "alembic.ini").rename(self.ini)
        self.set_url()

    def set_url(self) -> None:
        """Write the URL of the database into the configuration."""
        assert self.ini is not None
        line = f"sqlalchemy.url = {self.text}".replace("%", "%%")
        self.ini.write_text(re.sub(r"(?m)^sqlalchemy.url = .*$", lambda _: line, self.ini.read_text()))

    @property
    def text(self) -> str:
        """The URL of the database."""
        return self.url if isinstance(self.url, str) else self.url.render_as_string(hide_password=False)

    def revision(
        self,
        name: str,
        down: str | tuple[str, ...] | None = None,
        upgrade: str = "pass",
        *,
        downgrade: str = "pass",
        depends_on: Any = None,
        labels: Any = None,
        message: str = "",
    ) -> Path:
        """Write one revision; ``upgrade`` and ``downgrade`` are the bodies of its functions."""
        path = self.alembic / "versions" / f"{name}.py"
        bodies = [textwrap.indent(textwrap.dedent(text).strip("\n"), "    ") for text in (upgrade, downgrade)]
        path.write_text(
            _REVISION.format(
                name=name,
                down=down,
                upgrade=bodies[0],
                downgrade=bodies[1],
                depends_on=depends_on,
                labels=labels,
                message=message or name,
            ),
            encoding="utf-8",
        )
        return path

    def extend(self, app: Flask, db: SQLAlchemy) -> DbSmart:
        """Register Flask-Migrate, where the directory is one of it, and the extension on an application."""
        if self.ini is None:
            flask_migrate.Migrate(app, db, str(self.alembic), **(self.migrate_options or {}))
        where = True if self.ini is None else str(self.alembic)
        return DbSmart(app, db, migrations=self.migrations, alembic=where, alembic_target=self.target)

    def at(self, url: URL | str) -> AlembicProject:
        """The same project with another database."""
        other = replace(self, url=url)
        if self.ini is not None:
            other.set_url()
        return other

    def upgrade(self, target: str = "head", **config: Any) -> None:
        """What ``flask db upgrade`` does, in a process without db-smart; or ``alembic upgrade``."""
        if self.ini is not None:
            run_python(PLAIN_ALEMBIC, str(self.ini), target)
            return
        settings = {"SQLALCHEMY_DATABASE_URI": self.text, **self.config, **config}
        run_python(PLAIN, str(self.alembic), target, json.dumps(settings), json.dumps(self.migrate_options or {}))

    def flask_db(self, *args: str) -> Any:
        """Run ``flask db ARGS`` beside db-smart and return Click's result; loggers stay as they are."""
        app, _ = self.app()
        try:
            with logging_kept():
                return app.test_cli_runner().invoke(args=["db", *args])
        finally:
            self.dispose(app)

    def heads(self, table: str = "alembic_version") -> set[str]:
        """What the version table has; empty where there is none."""
        if table not in self.tables():
            return set()
        quoted = sa.create_engine(self.url).dialect.identifier_preparer.quote(table)
        return {row[0] for row in self.query(f"SELECT version_num FROM {quoted}")}

    def schema(self) -> dict[str, Any]:
        """Everything that SQLAlchemy reflects of the tables, without those of db-smart, to be compared."""
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            found = sa.inspect(connection)
            tables = sorted(name for name in found.get_table_names() if not name.startswith("db_smart_"))
            enums = found.get_enums() if connection.dialect.name == "postgresql" else []  # type: ignore[attr-defined]
            more = {"views": sorted(found.get_view_names()), "enums": enums}
            return more | {
                name: {
                    "columns": [{**one, "type": repr(one["type"])} for one in found.get_columns(name)],
                    "primary key": found.get_pk_constraint(name),
                    "foreign keys": sorted(map(repr, found.get_foreign_keys(name))),
                    "indexes": sorted(map(repr, found.get_indexes(name))),
                    "unique": sorted(map(repr, found.get_unique_constraints(name))),
                    "checks": sorted(map(repr, found.get_check_constraints(name))),
                    "rows": sorted(map(repr, connection.execute(sa.text(f'SELECT * FROM "{name}"')).all()))
                    if connection.dialect.name != "mysql"
                    else sorted(map(repr, connection.execute(sa.text(f"SELECT * FROM `{name}`")).all())),
                }
                for name in tables
            }
