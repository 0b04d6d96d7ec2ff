"""The settings of the extension: keys of ``app.config``, each also from the environment with Flask's prefix."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy.engine import URL

from .errors import ConfigError

#: Key -> default. Read from the environment as ``FLASK_<key>`` where ``app.config`` has none.
DEFAULTS: Mapping[str, Any] = {
    "DB_SMART_BOOT": "migrate",
    "DB_SMART_FLAG": ".db_migration_completed",
    "DB_SMART_CREATE_ALL": True,
    "DB_SMART_MIGRATION_URL": None,
    "DB_SMART_LOCK_TIMEOUT": 600,
    "DB_SMART_LEASE_SECONDS": 15,
    "DB_SMART_DDL_LOCK_TIMEOUT": 2,
    "DB_SMART_DDL_RETRIES": 30,
    "DB_SMART_STATEMENT_ROWS": 10_000,
    "DB_SMART_SNAPSHOTS": 3,
    "DB_SMART_RELEASE": None,
    "DB_SMART_RELEASES": False,
    "DB_SMART_REQUEST_GRACE": 30,
    "DB_SMART_DIFF_IGNORE": (),
    "DB_SMART_WEB": True,
    "DB_SMART_URL_PREFIX": "/_db-smart",
    "DB_SMART_TOKEN": None,
    "DB_SMART_BRANCHES": False,
}


#: The pause between two tries to take the lock grows from the first to the second figure, seconds, and is jittered.
#: It is about a third of the time waited so far: a herd of waiters that comes back faster takes from the server what
#: the holder needs.
_PAUSES = (0.05, 3.0)
#: Likewise where a thread waits, and requests are answered meanwhile; jittered, the shortest is above a second.
_PATIENT_PAUSES = (2.1, 4.0)
#: Likewise for migrations with ``background=True``, which are in no hurry.
_IDLE_PAUSES = (10.0, 30.0)
#: For how long they leave a lock alone that one of them has left to others; whoever waits to boot asks within that.
_IDLE_AWAY = 4.5


class LockSettings:
    """How long to wait for the lock, and how long a lease lasts without heartbeat; both in seconds.

    :param pauses: the shortest and the longest pause between two tries, seconds, before they are jittered.
    :param away: for how long a lock that was left to others is not taken, seconds.
    :param woken: set by whoever has news, which ends a pause.
    """

    def __init__(
        self,
        timeout: float = DEFAULTS["DB_SMART_LOCK_TIMEOUT"],
        lease: float = DEFAULTS["DB_SMART_LEASE_SECONDS"],
        pauses: tuple[float, float] = _PAUSES,
        away: float = 0.0,
        woken: threading.Event | None = None,
    ) -> None:
        self.away = away
        self.timeout = timeout
        self.lease = lease
        self.pauses = pauses
        self.woken = woken


class DdlSettings:
    """How long a schema change waits for a lock, seconds; how often a migration that met one is tried again.

    And how many rows one statement of a migration's own SQL may change.
    """

    def __init__(
        self,
        lock_timeout: float = DEFAULTS["DB_SMART_DDL_LOCK_TIMEOUT"],
        retries: int = DEFAULTS["DB_SMART_DDL_RETRIES"],
        statement_rows: int = DEFAULTS["DB_SMART_STATEMENT_ROWS"],
    ) -> None:
        self.lock_timeout = lock_timeout
        self.retries = retries
        self.statement_rows = statement_rows


#: A year. A holder that died keeps the others out for so long; dates far beyond cannot be computed with.
_LONGEST_LEASE = 366.0 * 86_400
#: What fits into PostgreSQL's ``lock_timeout``, milliseconds in 32 bits; MariaDB's ``lock_wait_timeout`` takes a year.
_LONGEST_DDL_WAIT = 2_147_483.0
#: How long the name of a release can be, characters.
_LONGEST_RELEASE = 255
#: No count has more.
_DIGITS = 15
#: A token that is shorter can be found by trying, characters.
_SHORTEST_TOKEN = 16

_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


def set_defaults(app: Flask, *, create_all: bool = True) -> None:
    """Give each key that the application did not set its value from the environment, or its default.

    :param create_all: the default of ``DB_SMART_CREATE_ALL``.
    """
    for key, default in {**DEFAULTS, "DB_SMART_CREATE_ALL": create_all}.items():
        app.config.setdefault(key, _environment(f"FLASK_{key}", default))
    release = os.environ.get("FLASK_DB_SMART_RELEASE")
    if release is not None and app.config["DB_SMART_RELEASE"] == _environment("FLASK_DB_SMART_RELEASE", None):
        app.config["DB_SMART_RELEASE"] = release  # as it is written: read as JSON, version 1.10 is 1.1


class Settings:
    """The settings of an application, each read once, when it is first needed, and the same from then on.

    There is a new one for each boot, request and command, so that a change of ``app.config`` counts from the next one
    on.

    :raises ConfigError: by each attribute: its value cannot be used.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        #: Whether they are for migrations with ``background=True``, for which nobody waits.
        self.idle = False
        #: Set by whoever has news for a thread that waits for the lock.
        self.woken: threading.Event | None = None

    def check(self) -> list[str]:
        """Look at every setting, also at those that nothing needs now.

        :returns: what to say about keys that have no effect: misspelt, or in the environment without the prefix.
        :raises ConfigError: one cannot be used.
        """
        names = ("flag", "boot", "force", "lock", "ddl", "snapshots", "create_all", "migration_urls", "release")
        for name in (*names, "releases", "grace", "diff_ignore", "web", "token", "branches"):
            getattr(self, name)
        unknown = {key for key in self._app.config if key.startswith("DB_SMART_")}
        unknown |= {key.removeprefix("FLASK_") for key in os.environ if key.startswith("FLASK_DB_SMART_")}
        said = []
        for key in sorted(unknown - DEFAULTS.keys()):
            import difflib

            close = difflib.get_close_matches(key, DEFAULTS, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            said.append(f"{key} is not a setting of db-smart and has no effect.{hint}")
        for key in DEFAULTS:
            value = os.environ.get(key)
            if value is not None and f"FLASK_{key}" not in os.environ and str(self._app.config[key]) != value:
                said.append(f"{key} in the environment has no effect: db-smart reads FLASK_{key}.")
        return said

    @cached_property
    def flag(self) -> str:
        """Where the flag of an application is: ``DB_SMART_FLAG``, relative to the instance folder.

        :raises ConfigError: it is no path of a file.
        """
        value = self._app.config["DB_SMART_FLAG"]
        path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
        if "\0" in path or os.path.basename(path) in ("", ".", ".."):
            raise ConfigError(f"DB_SMART_FLAG is {_shown(value)}; it must be the path of a file. Nothing was changed.")
        return os.path.join(self._app.instance_path, path)

    @cached_property
    def snapshot_folder(self) -> Path:
        """Where the snapshots of an application's SQLite databases are: ``snapshots`` in the instance folder."""
        return Path(self._app.instance_path, "snapshots")

    @cached_property
    def boot(self) -> str:
        """``DB_SMART_BOOT``.

        :raises ConfigError: it is none of its values.
        """
        mode = str(self._app.config["DB_SMART_BOOT"]).strip().lower()
        if mode not in ("migrate", "background", "check", "off"):
            raise ConfigError(
                f"DB_SMART_BOOT is {mode!r}; it must be 'migrate', 'background', 'check' or 'off'. Nothing was changed."
            )
        return mode

    @property
    def migrates(self) -> bool:
        """Whether boot may migrate, at once or in the background.

        :raises ConfigError: see :attr:`boot`.
        """
        return self.boot in ("migrate", "background")

    @cached_property
    def force(self) -> str | None:
        """Why boot must migrate whatever it finds: ``FORCE_DB_MIGRATION``; ``None`` if it need not.

        :raises ConfigError: it is neither yes nor no.
        """
        value = self._app.config.get("FORCE_DB_MIGRATION")
        if value is None:
            value = os.environ.get("FORCE_DB_MIGRATION", "")
        return "forced by FORCE_DB_MIGRATION" if _boolean("FORCE_DB_MIGRATION", value, empty=False) else None

    @cached_property
    def lock(self) -> LockSettings:
        """``DB_SMART_LOCK_TIMEOUT`` and ``DB_SMART_LEASE_SECONDS``, both in seconds.

        :raises ConfigError: one is no number, or too small or too large to work with.
        """
        timeout = _seconds(self._app, "DB_SMART_LOCK_TIMEOUT", 0)
        lease = _seconds(self._app, "DB_SMART_LEASE_SECONDS", 0.2, _LONGEST_LEASE)
        waits = _IDLE_PAUSES if self.idle else _PATIENT_PAUSES if self.boot == "background" else _PAUSES
        away = _IDLE_AWAY if self.idle else 0.0
        return LockSettings(timeout, lease, waits, away, self.woken)

    @cached_property
    def ddl(self) -> DdlSettings:
        """``DB_SMART_DDL_LOCK_TIMEOUT``, in seconds, ``DB_SMART_DDL_RETRIES`` and ``DB_SMART_STATEMENT_ROWS``.

        :raises ConfigError: one is no number, or too small or too large.
        """
        timeout = _seconds(self._app, "DB_SMART_DDL_LOCK_TIMEOUT", 0.05, _LONGEST_DDL_WAIT)
        retries, rows = _whole(self._app, "DB_SMART_DDL_RETRIES"), _whole(self._app, "DB_SMART_STATEMENT_ROWS")
        return DdlSettings(timeout, retries, rows)

    @cached_property
    def snapshots(self) -> int:
        """``DB_SMART_SNAPSHOTS``: how many snapshots of each SQLite database are kept, 0 for none.

        :raises ConfigError: it is no whole number.
        """
        return _whole(self._app, "DB_SMART_SNAPSHOTS")

    @cached_property
    def release(self) -> str | None:
        """``DB_SMART_RELEASE``: what the history calls the release that runs now; ``None`` where nobody has said.

        :raises ConfigError: it is no text, or too long to be kept.
        """
        value = self._app.config["DB_SMART_RELEASE"]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = _text(value)
        if value is not None and (
            not isinstance(value, str) or len(value) > _LONGEST_RELEASE or not value.isprintable()
        ):
            raise ConfigError(
                f"DB_SMART_RELEASE is {_shown(value)}; it must be a text in one line, of at most {_LONGEST_RELEASE} "
                "characters. Nothing was changed."
            )
        return value.strip() or None if value is not None else None

    @cached_property
    def releases(self) -> bool:
        """``DB_SMART_RELEASES``: whether the database is to know which releases run.

        :raises ConfigError: it is neither yes nor no.
        """
        return _boolean("DB_SMART_RELEASES", self._app.config["DB_SMART_RELEASES"], empty=False)

    @cached_property
    def grace(self) -> float:
        """``DB_SMART_REQUEST_GRACE``: how long a request may take, seconds.

        :raises ConfigError: it is no number, or too small or too large.
        """
        return _seconds(self._app, "DB_SMART_REQUEST_GRACE", 0, _LONGEST_LEASE)

    @cached_property
    def diff_ignore(self) -> list[str]:
        """``DB_SMART_DIFF_IGNORE``: glob patterns of what comparisons with the models leave out.

        :raises ConfigError: it is neither a list of texts nor a text with commas.
        """
        value = self._app.config["DB_SMART_DIFF_IGNORE"]
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in value):
            raise ConfigError(
                f"DB_SMART_DIFF_IGNORE is {_shown(value)}; it must be a list of patterns such as 'spatial_*' or "
                "'users.legacy_*'. Nothing was changed."
            )
        return [one.strip() for one in value if one.strip()]

    @cached_property
    def web(self) -> str | None:
        """Below which path the probes and pages are: ``DB_SMART_URL_PREFIX``; ``None`` without ``DB_SMART_WEB``.

        :raises ConfigError: it is no path.
        """
        if not _boolean("DB_SMART_WEB", self._app.config["DB_SMART_WEB"], empty=True):
            return None
        value = self._app.config["DB_SMART_URL_PREFIX"]
        path = value.rstrip("/") if isinstance(value, str) else ""
        if not path.startswith("/") or "//" in path or any(one in "<>?#\\" or one.isspace() for one in path):
            raise ConfigError(
                f"DB_SMART_URL_PREFIX is {_shown(value)}; it must be a path such as '/_db-smart'. Nothing was changed."
            )
        return path

    @cached_property
    def token(self) -> str | None:
        """``DB_SMART_TOKEN``: who has it may see the pages and the metrics; ``None`` where nobody may by it.

        :raises ConfigError: it is no text, or easy to guess.
        """
        value = self._app.config["DB_SMART_TOKEN"]
        if isinstance(value, int) and not isinstance(value, bool):  # from the environment
            value = _text(value)
        if not value:
            return None
        if not isinstance(value, str) or len(value) < _SHORTEST_TOKEN:
            raise ConfigError(
                f"DB_SMART_TOKEN must be a text of at least {_SHORTEST_TOKEN} characters that nobody can guess, such "
                "as 'python -c \"import secrets; print(secrets.token_urlsafe())\"' prints. Nothing was changed."
            )
        return value

    @cached_property
    def branches(self) -> bool | str:
        """``DB_SMART_BRANCHES``: whether each Git branch has databases of its own while debugging.

        A text is the name of the branch that has those of the URLs.

        :raises ConfigError: it is neither yes nor no nor a text.
        """
        value = self._app.config["DB_SMART_BRANCHES"]
        if isinstance(value, str) and value.strip().lower() not in (*_YES, *_NO, ""):
            return value.strip()
        return _boolean("DB_SMART_BRANCHES", value, empty=False)

    @cached_property
    def create_all(self) -> bool:
        """``DB_SMART_CREATE_ALL``.

        :raises ConfigError: it is neither yes nor no.
        """
        return _boolean("DB_SMART_CREATE_ALL", self._app.config["DB_SMART_CREATE_ALL"], empty=True)

    @cached_property
    def migration_urls(self) -> dict[str, str]:
        """``DB_SMART_MIGRATION_URL`` by the name of the database; a single one is for the default database.

        :func:`~.store.database.databases` makes sure that there are databases of these names.

        :raises ConfigError: one is no URL.
        """
        value = self._app.config["DB_SMART_MIGRATION_URL"]
        if not value:
            return {}
        found = {}
        for name, url in (value if isinstance(value, Mapping) else {"default": value}).items():
            if isinstance(url, URL):
                url = url.render_as_string(hide_password=False)
            if url and not isinstance(url, str):
                raise ConfigError("DB_SMART_MIGRATION_URL must be a URL, or a mapping of database names to URLs.")
            if url:
                found[str(name or "default")] = url
        return found


def _whole(app: Flask, key: str) -> int:
    value = app.config[key]
    text = _text(value).strip()
    if not text.isdecimal() or len(text) > _DIGITS:
        raise ConfigError(
            f"{key} is {_shown(value)}; it must be a whole number, at least 0 and of at most {_DIGITS} digits. "
            "Nothing was changed."
        )
    return int(text)


def _text(value: object) -> str:
    """What a setting is as text; an integer can be too long to be written."""
    try:
        return str(value)
    except ValueError:
        return "a number with thousands of digits"


def _shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:
        return _text(value)
    return text if len(text) <= 80 else text[:80] + " …"


def _seconds(app: Flask, key: str, least: float, most: float = float("inf")) -> float:
    value = app.config[key]
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    if not least <= seconds <= most or seconds == float("inf"):
        bound = f"at least {least:g}" + (f" and at most {most:.0f}" if most < float("inf") else "")
        raise ConfigError(f"{key} is {_shown(value)}; it must be a number of seconds, {bound}. Nothing was changed.")
    return seconds


def _boolean(key: str, value: object, *, empty: bool) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if not text:
        return empty
    if text not in (*_YES, *_NO):
        raise ConfigError(
            f"{key} is {text!r}; it must be one of {', '.join(_YES)}, or {', '.join(_NO)}. Nothing was changed."
        )
    return text in _YES


def _environment(key: str, default: object) -> object:
    """A setting from the environment, read as Flask reads its own: JSON where it is JSON."""
    value = os.environ.get(key)
    if value is None:
        return default
    try:
        return json.loads(value)
    except ValueError:
        return value
