"""What can go wrong. Each error has one message that a person can act on.

Every error is a :class:`click.ClickException`: under ``flask`` and ``migrate_db.py`` it is one line on
stderr and the exit code of its class, never a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import click

#: What a terminal or a log would act on: control characters but newline and tab, and what turns the direction of text.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
#: What comes before a password in SQL.
_SETS_PASSWORD = (
    r"\b(?:PASSWORD|IDENTIFIED\s+(?:WITH|VIA)\s+\w+\s+(?:BY|USING|AS)|IDENTIFIED\s+BY)[\s=(]+(?:PASSWORD[\s(]+)?"
)
#: Each with what is kept before a secret and after it.
_SECRETS = (
    # scheme://user:password@host
    r"(\b[A-Za-z][\w+.-]{0,40}://[^\s:/@]{0,256}:)[^\s@]+(@)",
    # ?password=..., &access_token=...
    r"([?&][\w.-]{0,40}(?:pass|pwd|secret|token)[\w.-]{0,40}=)[^&\s'\"]+()",
    # EXECUTE 'ALTER ROLE ... PASSWORD ''...'''
    rf"({_SETS_PASSWORD}[Ee]?'')(?=[^'\s;,)])(?:[^']|'{{4}})*(''|$)",
    # ALTER ROLE ... PASSWORD '...', CREATE USER ... IDENTIFIED BY '...', SET PASSWORD = PASSWORD('...')
    rf"({_SETS_PASSWORD}[Ee]?'(?!'[^'\s;,)]))(?:[^'\\]|''|\\.)*('|$)",
)
#: What PostgreSQL says beside an error's message, as its other drivers show it.
_FIELDS = (("D", "DETAIL"), ("H", "HINT"))


def plain(text: str) -> str:
    """A text whose control characters are written out: what a database or a file says must not act on a terminal."""
    return re.sub(_CONTROL, lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """A text in one line, plain and without what looks like a secret: what a file said, for a log or a message."""
    return " ".join(plain(without_secrets(text)).split())


def shortened(text: str, most: int = 200) -> str:
    """A text as :func:`one_line` has it, and not too long.

    :param most: how much of it there is room for, characters.
    """
    text = one_line(text)
    return text if len(text) <= most else f"{text[:most]} …"


def without_secrets(text: str) -> str:
    """A text without what looks like a password: in URLs, in their options, and in SQL that sets one."""
    for pattern in _SECRETS:
        text = re.sub(pattern, r"\1***\2", text, flags=re.IGNORECASE)
    return text


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it came from, as a traceback shows them."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [found.__cause__, found.__context__, getattr(found, "orig", None)]


def scrub(error: BaseException, hide: Callable[[str], str] = without_secrets) -> None:
    """Take secrets, and the parameters of SQL, out of an error and all that it came from: a traceback prints them.

    :param hide: gives a text without its secrets.
    """
    for found in chain(error):
        if hasattr(found, "hide_parameters"):
            found.hide_parameters = True
        if isinstance(getattr(found, "statement", None), str):
            found.statement = hide(found.statement)  # type: ignore[attr-defined]
        args = tuple(_hidden(value, hide) for value in found.args)
        if args != found.args:
            found.args = args


def _hidden(value: object, hide: Callable[[str], str]) -> object:
    if isinstance(value, dict):  # pg8000: the fields of PostgreSQL's message
        return {key: _hidden(field, hide) for key, field in value.items()}
    return hide(value) if isinstance(value, str) else value


def text_of(error: object) -> str:
    """The text of an error, which can be shown and stored whatever it is.

    It may fail to say anything, and what it says may not be text that can be encoded.
    """
    return plain(without_secrets(raw_text_of(error)))


def raw_text_of(error: object) -> str:
    """As :func:`text_of`, with its secrets and control characters: only for who takes those out."""
    try:
        args = getattr(error, "args", None)
        said = args[0] if args and isinstance(args[0], dict) else {}
        if isinstance(said.get("M"), str):  # pg8000: the fields of PostgreSQL's message
            text = "\n".join([said["M"], *(f"{title}: {said[key]}" for key, title in _FIELDS if key in said)])
        else:
            text = str(error)
    except Exception as second:
        text = f"{type(error).__name__}, whose text cannot be read ({type(second).__name__})"
    return text.encode("utf-8", "backslashreplace").decode()


class DbSmartError(click.ClickException):
    """Base of all errors of this extension. ``str(error)`` is the whole message.

    The message says what failed, what was kept and what to do next; it never holds a password.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(plain(without_secrets(message)))


class WrongUsage(DbSmartError):
    """What was asked for on the command line cannot be."""

    exit_code = 2


class ConfigError(DbSmartError):
    """A setting has a value that cannot be used."""


class MigrationError(DbSmartError):
    """The migrations of the code cannot be loaded: two have one name, or a module cannot be imported."""


class DatabaseUnreachable(DbSmartError):
    """No connection to a database could be made."""


class HistoryUnreadable(DatabaseUnreachable):
    """The database answers, but this user may not read the history in it."""


class DatabaseBehind(DbSmartError):
    """The database lacks migrations of this code, and the mode does not allow applying them.

    :ivar public: what everybody may read: it has no path, host or user, which the message may have.
    """

    def __init__(self, message: str, public: str = "The database is behind this code.") -> None:
        super().__init__(message)
        self.public = one_line(public)


class LockTimeout(DbSmartError):
    """Another process held the lock longer than ``DB_SMART_LOCK_TIMEOUT``."""

    exit_code = 3


class LockHeld(DbSmartError):
    """A lock cannot be freed by hand, because its holder is alive."""


class LeaseLost(DbSmartError):
    """This process held the lock, was stopped or disconnected for too long, and another one has taken it."""


class Interrupted(DbSmartError):
    """A signal ended a run; the running migration was rolled back if the database can do that."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal  # type: ignore[misc]


class MigrationFailed(DbSmartError):
    """A migration raised.

    :ivar migration: name of the migration.
    :ivar database: name of the database, ``"default"`` or a bind key.
    :ivar statement: the SQL that failed; ``None`` if the cause was not SQL.
    :ivar cause: the driver's or Python's own message, without password.
    """

    def __init__(self, message: str, *, migration: str, database: str, statement: str | None, cause: str) -> None:
        super().__init__(message)
        self.migration = migration
        self.database = database
        self.statement = statement
        self.cause = cause
