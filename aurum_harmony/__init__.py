"""AurumHarmony: a Flask application whose database brings itself up to date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask

from . import config as configuration
from .database import db
from .db_smart import DbSmart
from .version import __version__
from .views import register_views

__all__ = ["__version__", "create_app", "smart"]


smart = DbSmart()


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the application and bring its database up to date; see :meth:`~.db_smart.DbSmart.boot`.

    :param config: settings that stand above the environment and the defaults; ``INSTANCE_PATH`` is the folder for
        the SQLite file and the flag.
    :raises click.ClickException: a setting, a migration or the database is at fault; the message says what to do.
    """
    app = Flask(__name__, instance_path=configuration.instance_path(config))
    configuration.configure(app, config)
    configuration.register_database(app, db)
    smart.init_app(app, db, migrations="aurum_harmony.database.migrate")
    register_views(app, smart)
    smart.boot(app)
    return app
