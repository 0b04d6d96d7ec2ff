"""Where the files of an Alembic directory are."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..errors import ConfigError, MigrationError, text_of
from ..files import read_regular

if TYPE_CHECKING:
    from alembic.config import Config

#: A target: the identifier, the name or the label of one or more revisions, as ``flask db upgrade`` takes it.
Target = str | Sequence[str]
#: The largest configuration that is read, bytes.
_MAX_INI = 1 << 20
_OF_FLASK_MIGRATE = (b"extensions['migrate']", b'extensions["migrate"]')
#: By which a configuration says where the revisions are. No expression, because that would be compiled first.
_SAYS_WHERE = (b"\nversion_locations", b"\nrecursive_version_locations")


class AlembicFiles:
    """Where the files of an Alembic directory are.

    :param named: by which path the application names it.
    :ivar directory: the absolute path of the directory with ``env.py``.
    :ivar ini: the absolute path of the configuration; ``None`` where there is none.
    :ivar target: how far its revisions are to be applied; see :class:`~.revisions.Revisions`.
    :ivar toml: the absolute path of a ``pyproject.toml`` that configures Alembic; ``None`` where there is none.
    """

    def __init__(
        self, app: Flask, named: str, directory: str, ini: str | None, toml: str | None, target: Target
    ) -> None:
        self._app = app
        self._named = named
        self.directory = directory
        self.ini = ini
        self.toml = toml
        self.target = target

    @property
    def _migrate(self) -> Any:
        """Flask-Migrate's ``Migrate`` for this directory; ``None`` without one."""
        registered = self._app.extensions.get("migrate")
        if registered is None:
            return None
        named = str(registered.directory)
        return registered.migrate if named == self._named or _find(self._app, named) == self.directory else None

    def config(self) -> Config:
        """The configuration of Alembic, new each time: Flask-Migrate's, with what its callbacks add; else the files'.

        Needs an application context.
        """
        from alembic.config import Config

        migrate = self._migrate
        if migrate is not None:
            found: Config = migrate.get_config(self.directory)
            return found
        config = Config(self.ini, self.toml) if self.toml is not None else Config(self.ini)
        config.set_main_option("script_location", self.directory.replace("%", "%%"))
        return config

    @cached_property
    def _env(self) -> bytes:
        """What ``env.py`` contains."""
        path = os.path.join(self.directory, "env.py")
        try:
            return read_regular(path, _MAX_INI) or b""
        except OSError as error:
            raise MigrationError(f"Cannot read {path}: {error.strerror}. Nothing was changed.") from None

    def has_words(self, words: Iterable[bytes]) -> bool:
        """Whether one of several words is in ``env.py``.

        :raises MigrationError: it cannot be read.
        """
        return any(word in self._env for word in words)

    @property
    def env_hash(self) -> str:
        """Hexadecimal hash of ``env.py``."""
        return hashlib.sha256(self._env).hexdigest()

    def folders(self) -> tuple[list[str], bool]:
        """The absolute paths of the folders with the revisions, and whether those within count too, as configured.

        :raises MigrationError: the configuration cannot be read.
        """
        callbacks = getattr(self._migrate, "configure_callbacks", ())
        if self.toml is not None or any(not hasattr(one, "only_watches") for one in callbacks):
            return self._configured_folders()
        content = b""
        if self.ini is not None:
            try:
                content = read_regular(self.ini, _MAX_INI) or b""
            except OSError as error:
                raise MigrationError(f"Cannot read {self.ini}: {error.strerror}. Nothing was changed.") from None
        lines = b"\n" + content.lower()
        if not any(words in lines for words in _SAYS_WHERE):
            return [os.path.join(self.directory, "versions")], False
        return _version_folders(self.directory, str(self.ini), content)

    def _configured_folders(self) -> tuple[list[str], bool]:
        """As :meth:`folders`, where more than one file decides it."""
        from alembic.util import CommandError, coerce_resource_to_filename

        try:
            with self._app.app_context(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the file, which stays as it is
                config = self.config()
                named = config.get_version_locations_list() or [os.path.join(self.directory, "versions")]
                deep = config.get_alembic_boolean_option("recursive_version_locations")
                return [os.path.abspath(coerce_resource_to_filename(one)) for one in named], deep
        except (CommandError, ImportError, ValueError, OSError) as error:
            text = " ".join(text_of(error).split())
            raise MigrationError(
                f"The configuration of Alembic for {self.directory} cannot be read: {text}. Nothing was changed. "
                f"Correct {self.toml or 'the callbacks of Migrate.configure, or alembic.ini'}."
            ) from None


def find_alembic(app: Flask, where: str | os.PathLike[str] | bool, target: Target) -> AlembicFiles:
    """The Alembic directory that an application names.

    :param where: its path, absolute, or relative to the working directory, as Flask-Migrate takes it, or to the folder
        of the application; or ``True`` for that of the ``Migrate`` that is registered on it.
    :raises ConfigError: there is none.
    """
    remedy = "Correct DbSmart(app, db, alembic=...)."
    if where is True:
        remedy = "Make it by 'flask db init', or correct Migrate(app, db, directory=...)."
        migrate = app.extensions.get("migrate")
        if migrate is None:
            raise ConfigError(
                "DbSmart(alembic=True) is for the directory of Flask-Migrate, but no Migrate is registered on this "
                "application. Nothing was changed. Call Migrate(app, db) first, or name the directory."
            )
        where = str(migrate.directory)
    path = os.fspath(where) if isinstance(where, (str, os.PathLike)) else ""
    directory = _find(app, path)
    if not path or directory is None:
        tried = ", ".join(dict.fromkeys(_places(app, path)))
        raise ConfigError(
            f"There is no Alembic directory {path!r}, which would have an env.py; looked for: {tried}. "
            f"Nothing was changed. {remedy}"
        )
    beside = (directory, os.path.dirname(directory))
    ini = next(filter(os.path.isfile, (os.path.join(one, "alembic.ini") for one in beside)), None)
    toml = next(filter(_configures, (os.path.join(one, "pyproject.toml") for one in beside)), None)
    files = AlembicFiles(app, path, directory, ini, toml, target)
    if "migrate" not in app.extensions and files.has_words(_OF_FLASK_MIGRATE):
        raise ConfigError(
            f"{directory}/env.py is one of Flask-Migrate, but no Migrate is registered on this application. Nothing "
            "was changed. Call Migrate(app, db) first."
        )
    return files


def _places(app: Flask, path: str) -> Iterator[str]:
    """The absolute paths where an Alembic directory is looked for, in order."""
    for base in ("", app.root_path, os.path.dirname(app.root_path)):
        yield os.path.abspath(os.path.join(base, path))


def _find(app: Flask, path: str) -> str | None:
    """The absolute path of an Alembic directory; ``None`` where there is none."""
    return next((place for place in _places(app, path) if os.path.isfile(os.path.join(place, "env.py"))), None)


def _configures(path: str) -> bool:
    """Whether a ``pyproject.toml`` configures Alembic."""
    try:
        return b"[tool.alembic]" in (read_regular(path, _MAX_INI) or b"")
    except OSError:
        return False


def _version_folders(directory: str, ini: str, content: bytes) -> tuple[list[str], bool]:
    """The folders with revisions that a configuration names, and whether those within count too.

    :param directory: the absolute path of the Alembic directory.
    :param ini: the absolute path of the configuration.
    :param content: what it says.
    """
    from configparser import ConfigParser, Error

    parser = ConfigParser({"here": os.path.dirname(ini)})
    try:
        parser.read_string(content.decode())
        options = parser["alembic"] if parser.has_section("alembic") else {}
        named = options.get("version_locations")
        deep = options.get("recursive_version_locations") == "true"
        separator = options.get("path_separator") or options.get("version_path_separator")
    except (Error, ValueError) as error:
        text = " ".join(text_of(error).split())
        raise MigrationError(f"Cannot read {ini}: {text}. Nothing was changed. Correct it.") from None
    if not named:
        return [os.path.join(directory, "versions")], deep
    known = {"space": " ", "newline": "\n", "os": os.pathsep}
    # Without a separator by spaces and commas, as Alembic does it.
    parts = named.split(known.get(separator, separator)) if separator else re.split(r", *|(?: +)", named)
    return [os.path.abspath(part.strip()) for part in parts if part.strip()], deep
