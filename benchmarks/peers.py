"""Samples of the tools that people use instead, each as its documentation has it. Imports are not timed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from flask import Flask

from .projects import Project, alembic_directory, create_items, make_app
from .sample import Result, scratch, timed


def create_all(project: Project) -> Result:
    """``db.create_all()`` with every table there."""
    app, db = make_app(project)
    with app.app_context(), timed() as result:
        db.create_all()
    return result


def flask_migrate_prepare(project: Project) -> Result:
    """Write the revisions and migrate the database."""
    app, flask_migrate = _flask_migrate(project)
    create_items(project.url)
    directory = Path(alembic_directory(project))
    with app.app_context():
        if not directory.exists():
            flask_migrate.init(str(directory))
            for previous, name in pairwise([None, *project.columns]):
                _write(directory / "versions" / f"{name}.py", _REVISION, name=name, previous=previous)
        flask_migrate.upgrade()
    return {}


def flask_migrate_upgrade(project: Project) -> Result:
    """``upgrade()``: with nothing to do, or of all revisions on a new database."""
    app, flask_migrate = _flask_migrate(project)
    with app.app_context(), timed() as result:
        flask_migrate.upgrade()
    return result


def yoyo_prepare(project: Project) -> Result:
    """Write the migrations and apply them."""
    create_items(project.url)
    for previous, name in pairwise(["", *project.columns]):
        _write(Path(project.directory, "migrations", f"{name}.py"), _YOYO, name=name, depends={previous} - {""})
    _yoyo(project)()
    return {}


def yoyo_apply(project: Project) -> Result:
    """Apply: nothing, or all on a new database."""
    run = _yoyo(project)
    with timed() as result:
        run()
    return result


def django_prepare(project: Project) -> Result:
    """Write the migrations and note them as applied, as applying them takes Django long."""
    package = Path(project.directory, "bench_app")
    fields = [f"{name} = models.IntegerField(null=True)" for name in project.columns]
    _write(package / "models.py", _DJANGO_MODELS, fields="\n    ".join(fields))
    _write(package / "migrations" / "0000_initial.py", _DJANGO_INITIAL)
    for previous, name in pairwise(["0000_initial", *project.columns]):
        _write(package / "migrations" / f"{name}.py", _DJANGO, name=name, previous=previous)
    for directory in (package, package / "migrations"):
        (directory / "__init__.py").touch()
    create_items(project.url)
    _django(project)(fake=True)
    return {}


def django_warm(project: Project) -> Result:
    """``migrate`` with nothing to apply."""
    migrate = _django(project)
    with timed() as result:
        migrate()
    return result


def django_apply(project: Project) -> Result:
    """``migrate`` of all; the table is there already."""
    with scratch(project) as new:
        migrate = _django(new)
        migrate("bench_app", "0000", fake=True)
        with timed() as result:
            migrate()
        return result


def _flask_migrate(project: Project) -> tuple[Flask, Any]:
    flask_migrate: Any = import_module("flask_migrate")
    app, db = make_app(project)
    flask_migrate.Migrate(app, db, directory=alembic_directory(project))
    return app, flask_migrate


def _yoyo(project: Project) -> Callable[[], None]:
    yoyo: Any = import_module("yoyo")

    def run() -> None:
        backend = yoyo.get_backend(project.url)
        migrations = yoyo.read_migrations(str(Path(project.directory, "migrations")))
        with backend.lock():
            backend.apply_migrations(backend.to_apply(migrations))

    return run


def _django(project: Project) -> Callable[..., None]:
    conf: Any = import_module("django.conf")
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": project.url.removeprefix("sqlite:///")}
    conf.settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["bench_app"])
    django: Any = import_module("django")
    django.setup()
    management: Any = import_module("django.core.management")

    def migrate(*args: str, **options: Any) -> None:
        management.call_command("migrate", *args, verbosity=0, interactive=False, **options)

    return migrate


def _write(path: Path, template: str, **values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(template).format(**values))


_REVISION = """\
    import sqlalchemy as sa
    from alembic import op

    revision = "{name}"
    down_revision = {previous!r}
    branch_labels = None
    depends_on = None


    def upgrade():
        op.add_column("items", sa.Column("{name}", sa.Integer()))


    def downgrade():
        op.drop_column("items", "{name}")
    """

_YOYO = """\
    from yoyo import step

    __depends__ = {depends!r}

    steps = [step("ALTER TABLE items ADD COLUMN {name} INTEGER", "ALTER TABLE items DROP COLUMN {name}")]
    """

_DJANGO_MODELS = """\
    from django.db import models


    class Item(models.Model):
        id = models.AutoField(primary_key=True)
        {fields}

        class Meta:
            db_table = "items"
    """

_DJANGO_INITIAL = """\
    from django.db import migrations, models


    class Migration(migrations.Migration):
        initial = True
        operations = [
            migrations.CreateModel("Item", [("id", models.AutoField(primary_key=True))], {{"db_table": "items"}})
        ]
    """

_DJANGO = """\
    from django.db import migrations, models


    class Migration(migrations.Migration):
        dependencies = [("bench_app", "{previous}")]
        operations = [migrations.AddField("item", "{name}", models.IntegerField(null=True))]
    """
