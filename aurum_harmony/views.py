"""The pages of the application."""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app, jsonify
from flask.typing import ResponseReturnValue

from .db_smart import DbSmart, DbSmartError
from .version import __version__


def register_views(app: Flask, smart: DbSmart) -> None:
    """Register the views on an application."""
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/healthz", view_func=smart.exempt(healthz))


def index() -> ResponseReturnValue:
    """Name, version and state of the database, asked now."""
    return jsonify(name="AurumHarmony", version=__version__, database=_database_state())


def healthz() -> ResponseReturnValue:
    """That the process lives; says nothing of the database."""
    return jsonify(status="ok")


def _database_state() -> str:
    """The state as ``flask db-smart status`` names it."""
    app: Any = current_app
    smart: DbSmart = app.extensions["db_smart"]
    try:
        return smart.database_state(app._get_current_object())
    except DbSmartError:
        return "unreachable"
