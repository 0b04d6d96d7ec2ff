"""What can go wrong, each with one message that a person can act on.

Every error is a :class:`click.ClickException`: under ``flask`` and ``migrate_db.py`` it ends in one line on
stderr and the exit code of its class, never in a traceback.
"""

from __future__ import annotations

import click


def text_of(error: object) -> str:
    """The text of an error, which can be shown and stored whatever it is.

    It may fail to say anything, and what it says may not be text that can be encoded.
    """
    try:
        text = str(error)
    except Exception as second:
        text = f"{type(error).__name__}, whose text cannot be had ({type(second).__name__})"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class DbSmartError(click.ClickException):
    """Base of all errors of this extension. ``str(error)`` is the whole message.

    The message says what failed, what was kept and what to do next; it never holds a password.
    """

    exit_code = 1


class ConfigError(DbSmartError):
    """A setting has a value that cannot be used."""


class MigrationError(DbSmartError):
    """The migrations of the code cannot be loaded: a clash of names, a module that does not import."""


class DatabaseUnreachable(DbSmartError):
    """No connection to a database could be made."""


class HistoryUnreadable(DatabaseUnreachable):
    """The database answers, but this user may not read the history in it."""


class DatabaseBehind(DbSmartError):
    """The database lacks migrations of this code and the mode does not allow to apply them."""


class LockTimeout(DbSmartError):
    """Another process held the lock longer than ``DB_SMART_LOCK_TIMEOUT``."""

    exit_code = 3


class LockHeld(DbSmartError):
    """A lock cannot be freed by hand, as its holder is alive."""


class LeaseLost(DbSmartError):
    """This process held the lock, was stopped or cut off for too long, and another one has taken it."""


class Interrupted(DbSmartError):
    """A signal ended a run; the migration that ran was rolled back where the database can."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal  # type: ignore[misc]


class MigrationFailed(DbSmartError):
    """A migration raised.

    :ivar migration: name of the migration.
    :ivar database: name of the database, ``"default"`` or a bind key.
    :ivar statement: the SQL that failed, ``None`` when the cause was not SQL.
    :ivar cause: the driver's or Python's own message, without password.
    """

    def __init__(self, message: str, *, migration: str, database: str, statement: str | None, cause: str) -> None:
        super().__init__(message)
        self.migration = migration
        self.database = database
        self.statement = statement
        self.cause = cause
