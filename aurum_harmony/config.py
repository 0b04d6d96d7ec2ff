"""Settings of the application: defaults, then the environment, then what the caller of ``create_app()`` says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from .db_smart import ConfigError

#: The driver that an URL without one is given, and what pip installs it as.
_DRIVERS = {
    "postgres": ("postgresql+psycopg", "psycopg[binary]"),
    "postgresql": ("postgresql+psycopg", "psycopg[binary]"),
    "mysql": ("mysql+pymysql", "PyMySQL"),
    "mariadb": ("mariadb+pymysql", "PyMySQL"),
}


def instance_path(config: Mapping[str, Any] | None) -> str | None:
    """The folder for the SQLite file and the flag.

    ``AURUM_LOCAL_DIR``, else ``_local`` of a source checkout, else ``None``: where Flask puts it.
    """
    chosen = (config or {}).get("INSTANCE_PATH") or os.environ.get("AURUM_LOCAL_DIR")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    checkout = Path(__file__).resolve().parent.parent
    return str(checkout / "_local") if (checkout / "migrate_db.py").is_file() else None


def configure(app: Flask, config: Mapping[str, Any] | None) -> None:
    """Fill ``app.config``.

    :raises ConfigError: a database URL does not parse.
    """
    database = os.path.join(app.instance_path, "aurum.db")
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("DATABASE_URL") or URL.create("sqlite", database=database)
    app.config.from_prefixed_env()
    app.config.update(config or {})
    for key in ("SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_BINDS", "DB_SMART_MIGRATION_URL"):
        value = app.config.get(key)
        if isinstance(value, Mapping):
            app.config[key] = {name: _with_driver(url, f"{key}[{name!r}]") for name, url in value.items()}
        elif value:
            app.config[key] = _with_driver(value, key)


def register_database(app: Flask, db: SQLAlchemy) -> None:
    """Register Flask-SQLAlchemy.

    :raises ConfigError: the driver that a database URL asks for is not installed.
    """
    try:
        db.init_app(app)
    except (ImportError, NoSuchModuleError, ArgumentError) as error:
        name = app.config["SQLALCHEMY_DATABASE_URI"].drivername
        package = next((package for driver, package in _DRIVERS.values() if driver == name), None)
        hint = f" Install it: pip install '{package}'." if package else ""
        raise ConfigError(
            f"The driver of the database URL ({name}) cannot be loaded: {type(error).__name__}.{hint} "
            "Nothing was changed."
        ) from None


def _with_driver(value: Any, key: str) -> Any:
    """The URL with the driver that is installed, where it names none; what is no URL (a bind's options) as it is.

    :raises ConfigError: it does not parse; the message leaves it out, as it may hold a password.
    """
    if not isinstance(value, (str, URL)):
        return value
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        shown = "DATABASE_URL" if key == "SQLALCHEMY_DATABASE_URI" and os.environ.get("DATABASE_URL") == value else key
        raise ConfigError(
            f"{shown} is not a database URL. It has the form postgresql://user:password@host:5432/name, "
            "mysql://user:password@host:3306/name or sqlite:////path/to/file.db, and special characters of the "
            "password are percent-encoded. Nothing was changed."
        ) from None
    driver, _ = _DRIVERS.get(url.drivername, (url.drivername, None))
    return url.set(drivername=driver)
