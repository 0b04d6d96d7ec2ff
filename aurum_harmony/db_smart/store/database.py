"""One database of the application: how it is reached, what identifies it, and what may be shown of it."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.pool import NullPool

from ..errors import ConfigError, DatabaseUnreachable, DbSmartError, chain, plain, raw_text_of, text_of, without_secrets

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from ..dialects.base import Facts, Kind
    from ..spans import Statements

#: Bytes of a SQLite file that hold all we ask of it: https://www.sqlite.org/fileformat2.html#the_database_header
_HEADER_BYTES = 100
#: How long to come back to a server that has no connection left, seconds.
_FULL_SECONDS = 60.0
#: How long a question that only foretells something waits for what another session has locked, seconds.
_PATIENCE_SECONDS = 2.0
#: Where systems list what a process has open.
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")
#: SQLite files that stay open for their header, by device and inode; see :func:`_read_kept`.
_open_files: dict[tuple[int, int], int] = {}
#: So many files stay open, which is quickest and enough for an application; the many files of a test suite do not.
_MOST_KEPT = 8
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "odbc_connect")


class Database:
    """A database, by the engine that the application uses for it.

    :param name: ``"default"`` or the bind key.
    :param key: the bind key, ``None`` for the default database.
    :param app_engine: the application's engine; only its way of connecting is used, never its pool.
    :param migration_url: another URL for migrating, for a role with more rights or around a connection pooler.
    :ivar queries: how many statements were sent through :meth:`connect` so far.
    :ivar deadline: until when a server that has no connection left is asked again, seconds of the monotonic clock;
        ``None`` for a minute from then on.
    :ivar snapshot_folder: where in the folder of snapshots those of this one are.
    """

    snapshot_folder = "."
    deadline: float | None = None

    def __init__(self, name: str, key: str | None, app_engine: Engine, migration_url: str | None = None) -> None:
        self.name = name
        self.key = key
        self.app_engine = app_engine
        self.migration_url = migration_url
        self.queries = 0
        #: Told of what a run sends; ``None`` where there is none.
        self.statements: Statements | None = None

    @cached_property
    def url(self) -> str:
        """The application's URL, safe to show: without password and other secrets."""
        return safe_url(self.app_engine.url)

    @property
    def dialect(self) -> str:
        """Name of the dialect: ``sqlite``, ``postgresql``, ``mysql``, ``mariadb`` or another."""
        return self.app_engine.dialect.name

    @property
    def facts(self) -> Facts:
        """What is true of that kind of database."""
        return _facts_of(self.dialect)

    @cached_property
    def path(self) -> Path | None:
        """As :attr:`file`."""
        return None if self.file is None else Path(self.file)

    @cached_property
    def file(self) -> str | None:
        """The path of the file of a SQLite database; ``None`` for a server and for a database in memory."""
        url = self.app_engine.url
        name = url.database
        if self.dialect != "sqlite":  # not by the facts, which would have to be imported for a warm boot
            return None
        if not name:
            return self._file_by_creator()
        if name == ":memory:":
            return None
        if name.startswith("file:"):  # https://www.sqlite.org/uri.html
            name = unquote(name[len("file:") :].split("#")[0])
            if name in ("", ":memory:") or url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb":
                return None
            if name.startswith("//"):
                name = name[2:].removeprefix("localhost")
                name = "/" + name.lstrip("/")
        return os.path.abspath(name)

    def _file_by_creator(self) -> str | None:
        """The file that a ``creator`` opens, where the URL names none; asked of a connection."""
        try:
            with self.app_engine.connect() as connection:
                rows = connection.exec_driver_sql("PRAGMA database_list").all()
        except Exception:  # whoever connects next says what is wrong, with all that a person needs
            return None
        return next((file for _, schema, file in rows if schema == "main"), None) or None

    @property
    def in_memory(self) -> bool:
        """Whether the database lives in this process only."""
        return self.dialect == "sqlite" and self.file is None

    @property
    def exists(self) -> bool:
        """``False`` for a SQLite file that is not there (or empty); connecting would make it."""
        if self.file is None:
            return True
        try:
            found = os.stat(self.file)
        except FileNotFoundError:
            return False
        except OSError:  # whoever connects is told what is wrong
            return True
        return found.st_size > 0 or not stat.S_ISREG(found.st_mode)

    @property
    def transactional_ddl(self) -> bool:
        """Whether a failed transaction takes its schema changes back."""
        return self.facts.transactional_ddl

    def file_state(self) -> dict[str, int] | None:
        """What a SQLite file looks like without opening it as a database; ``None`` for a server.

        The inode tells a replaced file. The header's schema cookie moves with every schema change, its change
        counter with every write (in WAL mode with some), and neither moves back but by an older copy.

        :raises OSError: the file is missing or cannot be read.
        """
        if self.file is None:
            return None
        import sqlite3  # which an application of a server need not have

        # A driver that has a SQLite of its own knows nothing of Python's, and Python's nothing of its locks.
        driver: object = self.app_engine.dialect.dbapi
        header, inode = _read_header(self.file, driver is sqlite3.dbapi2)
        return {
            "inode": inode,
            "wal": int(header[18:19] == b"\2"),
            "changes": int.from_bytes(header[24:28], "big"),
            "schema": int.from_bytes(header[40:44], "big"),
        }

    def settled_file_state(self) -> dict[str, int] | None:
        """As :meth:`file_state`, with the schema cookie that the database itself tells.

        In WAL mode the header lags behind until a checkpoint. What it says then is what an older copy says too, so
        it must not be remembered.

        :raises OSError: the file is missing or cannot be read.
        """
        found = self.file_state()
        if found is not None and found["wal"]:
            with self.connect() as connection:
                found["schema"] = int(connection.exec_driver_sql("PRAGMA schema_version").scalar_one())
        return found

    @cached_property
    def engine(self) -> Engine:
        """The engine for migrating: no pool, so that no connection outlives its use or a fork.

        Connections are made as the application makes them (its ``connect_args``, ``creator`` and pool listeners).
        A database in memory has only the application's pool.

        :raises ConfigError: ``migration_url`` cannot be used.
        """
        engine = self._make_engine()
        self.facts.prepare(engine)
        sa.event.listen(engine, "before_cursor_execute", self._count)
        return engine

    def _make_engine(self) -> Engine:
        if self.migration_url is not None:
            try:
                engine = sa.create_engine(
                    make_url(self.migration_url), poolclass=NullPool, hide_parameters=self.app_engine.hide_parameters
                )
                return engine.execution_options(**self._options)
            except (sa.exc.ArgumentError, ImportError, ValueError) as error:
                raise ConfigError(
                    f"DB_SMART_MIGRATION_URL for the database {self.name!r} cannot be used "
                    f"({type(error).__name__}). It must be a SQLAlchemy URL whose driver is installed."
                ) from None
        pool = self.app_engine.pool
        if not self.in_memory:
            pool = NullPool(pool._creator, dialect=self.app_engine.dialect, _dispatch=pool.dispatch)
        return Engine(
            pool,
            self.app_engine.dialect,
            self.app_engine.url,
            execution_options=self._options,
            hide_parameters=self.app_engine.hide_parameters,
        )

    @property
    def _options(self) -> dict[str, Any]:
        """Execution options of the application's engine; the isolation level is :func:`begin`'s to choose."""
        options = dict(self.app_engine.get_execution_options())
        options.pop("isolation_level", None)
        return options

    @property
    def serving(self) -> Database:
        """The same database by the application's own engine and pool."""
        database = Database(self.name, self.key, self.app_engine)
        database.engine = self.app_engine
        return database

    @contextmanager
    def connect(self, *, autocommit: bool = False) -> Iterator[sa.Connection]:
        """A new connection, counted in :attr:`queries`. Begin with :func:`begin` before a statement that writes.

        :param autocommit: let each statement commit by itself.
        :raises DatabaseUnreachable: no connection could be made; the message has no password.
        """
        with self._open() as connection:
            if self.engine is self.app_engine:
                sa.event.listen(connection, "before_cursor_execute", self._count)
            with self.facts.opened(connection, autocommit) as opened:
                yield opened

    def _open(self) -> sa.Connection:
        """A new connection; waits while the server has none left or is starting."""
        deadline = time.monotonic() + _FULL_SECONDS if self.deadline is None else self.deadline
        while True:
            try:
                return self.engine.connect()
            except Exception as error:  # also what a driver or a connect hook raises that SQLAlchemy does not wrap
                if not self.facts.full(error) or time.monotonic() > deadline:
                    check = "that the server is running, and the address, user, password and rights"
                    if self.file is not None:
                        check = "that it is a file, and the permissions of the file and its folder"
                    raise DatabaseUnreachable(
                        f"Cannot connect to the database {self.name!r} ({safe_url(self.engine.url)}): "
                        f"{self.redact(error)}. Nothing was changed. Check {check}."
                    ) from None
            time.sleep(random.uniform(0.05, 0.5))

    def says(self, error: BaseException, kind: Kind) -> bool:
        """Whether an error, or what it came from, is an answer of this kind of database that is of a kind."""
        return any(isinstance(one, sa.exc.DBAPIError) and self.facts.says(one, kind) for one in chain(error))

    def redact(self, error: BaseException) -> str:
        """The message of an error (of the driver where there is one) in one line, without the URLs' passwords."""
        return " ".join(plain(self.hide(raw_text_of(getattr(error, "orig", None) or error))).split()).rstrip(".?")

    def cause(self, error: BaseException) -> str:
        """Why a migration failed, in one line, without the URLs' passwords."""
        if isinstance(error, sa.exc.NoSuchTableError):
            return f"there is no table {text_of(error).strip('`')!r}"  # MariaDB's dialect quotes it
        if isinstance(error, (sa.exc.DBAPIError, sa.exc.NoSuchColumnError, DbSmartError)):
            return self.redact(error)
        return f"{type(error).__name__}: {self.redact(error)}".removesuffix(": ")

    def hide(self, text: str) -> str:
        """A text without the passwords of the URLs, nor what looks like one."""
        urls: list[URL] = [self.app_engine.url]
        if self.migration_url is not None:
            urls.append(make_url(self.migration_url))
        for url in urls:
            values = [url.password]
            for name, value in url.query.items():
                if _sounds_secret(name):
                    values += [value] if isinstance(value, str) else value
            for secret in {value for value in values if value}:
                forms = (secret, quote(secret, safe=""), quote_plus(secret), quote(secret, safe=" +"))
                for form in (*forms, secret.replace("'", "''")):
                    text = text.replace(form, "***")
        return without_secrets(text)

    def _count(self, *_: Any) -> None:
        self.queries += 1


def _facts_of(dialect: str) -> Facts:
    from ..dialects.base import facts_of  # which a warm boot does not need

    return facts_of(dialect)


def _read_header(path: str, by_sqlite: bool) -> tuple[bytes, int]:
    """The first bytes of a file, and its inode.

    The file stays open, or is opened and closed by SQLite: on POSIX, closing it ends every lock that this process holds
    on it, and so lets another one write into a transaction; SQLite knows its locks and puts the closing off
    (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    Nothing is asked of that connection: it takes no lock, and touches no journal.

    :param by_sqlite: whether SQLite knows all locks of this process; else the file stays open.
    :raises OSError: the file is missing or cannot be read.
    """
    if os.name == "nt":  # no such locks, and an open file could not be replaced
        with open(path, "rb") as file:
            return file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_ino
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for who writes to it
        raise OSError(errno.EINVAL, "it is not a regular file")
    if not by_sqlite or len(_open_files) < _MOST_KEPT or (found.st_dev, found.st_ino) in _open_files:
        return _read_kept(path, found)
    import sqlite3

    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)):
            found = os.stat(path)
            header = _read_open(found)
    except sqlite3.Error as error:
        raise OSError(errno.EIO, f"SQLite says: {error}", path) from error
    return _read_kept(path, found) if header is None else (header, found.st_ino)


def _read_open(wanted: os.stat_result) -> bytes | None:
    """The first bytes of a file that this process has open; ``None`` where that is not to be found out."""
    for folder in _DESCRIPTORS:
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):  # another thread has closed it
                    descriptor = int(name)
                    if os.path.samestat(os.fstat(descriptor), wanted):
                        header = os.pread(descriptor, _HEADER_BYTES, 0)
                        if os.path.samestat(os.fstat(descriptor), wanted):
                            return header
    return None


def _read_kept(path: str, found: os.stat_result) -> tuple[bytes, int]:
    """As :func:`_read_header`, of a file that is never closed again."""
    key = (found.st_dev, found.st_ino)
    if key not in _open_files:
        _open_files[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return os.pread(_open_files[key], _HEADER_BYTES, 0), found.st_ino


def translated(connection: sa.Connection | Engine, schema: str | None) -> str | None:
    """A schema as the engine's ``schema_translate_map`` has it, where SQLAlchemy does not do so: inspecting, DDL."""
    places: Mapping[str | None, str | None] = connection.get_execution_options().get("schema_translate_map") or {}
    return places.get(schema, schema)


def begin(connection: sa.Connection) -> None:
    """Begin a transaction that will write.

    Explicitly, so that SQLAlchemy ends it even if no statement went through this connection. On SQLite the write
    lock is taken at once. On a server it is READ COMMITTED, whatever the application, the role or the server prefers:
    in autocommit nothing could be taken back, and at a stricter level the heartbeat's write to the row of the lease
    would make every longer migration fail as it confirms the lease.
    """
    _facts_of(connection.dialect.name).begin(connection)


@contextmanager
def impatient(connection: sa.Connection) -> Iterator[None]:
    """Let no question of a connection wait long for what another session has locked."""
    facts = _facts_of(connection.dialect.name)
    wait = facts.set_batch_timeout(_PATIENCE_SECONDS) or facts.set_lock_timeout(_PATIENCE_SECONDS)
    if wait is None:
        yield
        return

    def begun(_: sa.Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        with closing(driver.cursor()) as cursor:
            cursor.execute(wait)

    sa.event.listen(connection, "begin", begun)
    try:
        yield
    finally:
        sa.event.remove(connection, "begin", begun)


def see_all_rows(connection: sa.Connection) -> None:
    """Let no policy hide rows, which would be passed by: the server refuses instead, until the transaction ends."""
    statement = _facts_of(connection.dialect.name).all_rows
    if statement is not None:
        connection.exec_driver_sql(statement)


def commit(connection: sa.Connection) -> None:
    """Commit; what cannot be committed is rolled back.

    :raises sqlalchemy.exc.DBAPIError: it could not be committed.
    """
    try:
        connection.commit()
    except sa.exc.DBAPIError:
        _facts_of(connection.dialect.name).commit_failed(connection)
        raise


def safe_url(url: URL) -> str:
    """A URL without its secrets: the password, and every option that sounds like one."""
    secrets = {name: "hidden" for name in url.query if _sounds_secret(name)}
    if secrets:
        url = url.update_query_dict(secrets)
    return url.render_as_string(hide_password=True)


def _sounds_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)


def engines_of(app: Flask, db: SQLAlchemy) -> Mapping[str | None, Engine]:
    """The engines of an application by bind key, where Flask-SQLAlchemy looks them up.

    ``db.engines`` is the same, but needs an application context, which is a good part of what a warm boot costs.
    """
    try:
        engines: Mapping[str | None, Engine] = db._app_engines[app]
    except KeyError:
        raise ConfigError(
            "The db that was passed to DbSmart is not registered on this application: call db.init_app(app) before "
            "boot() and before the first request."
        ) from None
    return engines


def application_engines(app: Flask, db: SQLAlchemy) -> Mapping[str | None, Engine]:
    """The engines of an application itself, whatever :mod:`~.session.rebind` shows this thread or task instead."""
    engines = engines_of(app, db)
    own: Mapping[str | None, Engine] = getattr(engines, "engines", engines)
    return own


def databases(engines: Mapping[str | None, Engine], migration_urls: Mapping[str, str]) -> dict[str, Database]:
    """All databases of an application by name, the default one first.

    :param engines: Flask-SQLAlchemy's engines by bind key.
    :param migration_urls: names of databases with a URL of their own for migrating.
    :raises ConfigError: there is no database of one of these names.
    """
    unknown = migration_urls.keys() - {"default" if key is None else key for key in engines}
    if unknown:
        known = ", ".join(sorted("default" if key is None else key for key in engines))
        raise ConfigError(
            f"DB_SMART_MIGRATION_URL names the database {min(unknown)!r}, which the application does not have (it has: "
            f"{known}). Nothing was changed."
        )
    found = {}
    for key in sorted(engines, key=lambda key: (key is not None, key or "")):
        name = "default" if key is None else key
        found[name] = Database(name, key, engines[key], migration_urls.get(name))
    return found
