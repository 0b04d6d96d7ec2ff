"""The databases that Git branches have of their own: beside the database of the URL, by its name and the branch's.

No database is ever moved: an engine is led to another one before it connects. So a switch needs nobody to close what is
open, and a process that is killed leaves nothing half-done. Only a copy takes work, once for each branch: of a SQLite
file through SQLite's backup interface, of a PostgreSQL database as a template.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from ..errors import ConfigError, DbSmartError, LockHeld
from ..settings import LockSettings
from .database import Database, safe_url
from .lock import Lock, lock_of
from .snapshot import copy_file, remove_journals

#: Between the name of the database and that of the branch.
_MARK = ".branch-"
#: What a name of a branch is in that of a database: ``~`` and two digits for other bytes, as no branch has a ``~``.
_PLAIN, _SLUG = re.compile("[a-z0-9._-]"), re.compile(r"[a-z0-9._~A-F-]+")
#: Longer names of branches are cut, and end with this and a hash.
_CUT = "~~"
#: Characters of a branch's name in that of a file, and bytes of a database's name on PostgreSQL.
_LONGEST_SLUG, _LONGEST_NAME = 150, 63
#: The database that a connection is made to while another one is copied or dropped.
_MAINTENANCE = "postgres"
_IN_USE = "55006"  # object_in_use, https://www.postgresql.org/docs/current/errcodes-appendix.html


class Kept(NamedTuple):
    """A database that a branch has of its own.

    :ivar name: of the file, or of the database on the server.
    :ivar branch: as far as the name says it; ``None`` where it was too long.
    :ivar size: bytes; ``None`` where the server does not say.
    :ivar changed: when it was last changed; on a server, when it was made; in UTC.
    """

    name: str
    branch: str | None
    size: int | None
    changed: datetime | None


class BranchDatabases(ABC):
    """The databases of one of the application's, by the branches."""

    def __init__(self, database: Database, settings: LockSettings) -> None:
        self.database = database
        self.settings = settings
        self._engine = database.app_engine
        #: The URL in the settings of the application.
        self.base = self._target = self._engine.url
        #: What the connections have to be told; see :meth:`_lead`.
        self._keys: set[str] = set()
        sa.event.listen(self._engine, "do_connect", self._lead, insert=True)

    @abstractmethod
    def name_of(self, branch: str) -> str:
        """What the database of a branch is called."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a database of this name."""

    @abstractmethod
    def kept(self) -> list[Kept]:
        """All databases of branches, by their names."""

    @abstractmethod
    def copy(self, source: str | None, branch: str) -> bool:
        """Make the database of a branch, unless it is there by now; it has its name only when it is whole.

        :param source: name of what is copied; ``None`` for the database of the URL.
        :returns: whether it was made; there may be nothing to copy.
        :raises DbSmartError: it cannot be made; what is there is unchanged.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete the database of a branch.

        :raises DbSmartError: it is in use, or cannot be deleted.
        """

    @abstractmethod
    def _url(self, name: str | None) -> URL:
        """The URL of a database by its name, ``None`` for that of the settings."""

    def use(self, name: str | None) -> None:
        """Lead the engine to a database by its name, ``None`` for that of the URL."""
        self._engine.url = self._target = self._url(name)
        self._engine.dispose()

    def at(self, name: str | None) -> str:
        """What a person knows a database by: a path, or a name on the server."""
        return str(self._url(name).database)

    def _lead(self, dialect: Any, _: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        """Change where a connection leads, and nothing else of what it is made with."""
        arguments[:], wanted = dialect.create_connect_args(self._target)
        before = dialect.create_connect_args(self.base)[1]
        self._keys |= {key for key, value in wanted.items() if before.get(key) != value}
        options.update((key, wanted[key]) for key in self._keys)


class _Files(BranchDatabases):
    """SQLite: files beside that of the URL."""

    def __init__(self, database: Database, settings: LockSettings) -> None:
        super().__init__(database, settings)
        assert database.path is not None
        self._path = database.path
        self._begin, self._end = f"{self._path.stem}{_MARK}", self._path.suffix or ".branch"

    def name_of(self, branch: str) -> str:
        return f"{self._begin}{_slug(branch, _LONGEST_SLUG)}{self._end}"

    def exists(self, name: str) -> bool:
        return self._path.with_name(name).exists()

    def kept(self) -> list[Kept]:
        found = []
        for path in self._path.parent.glob(f"*{_MARK}*"):
            slug = path.name.removeprefix(self._begin).removesuffix(self._end)
            if path.name == f"{self._begin}{slug}{self._end}" and _SLUG.fullmatch(slug):
                stats = [one.stat() for one in _files_of(path) if one.exists()]
                if not stats:  # a link that leads nowhere, or just deleted
                    continue
                changed = datetime.fromtimestamp(max(one.st_mtime for one in stats), timezone.utc)
                found.append(Kept(path.name, _unslug(slug), sum(one.st_size for one in stats), changed))
        return sorted(found, key=lambda item: item.name)

    def copy(self, source: str | None, branch: str) -> bool:
        origin, target = Path(self.at(source)), self._path.with_name(self.name_of(branch))
        if not origin.exists():
            return False
        try:
            with ExitStack() as stack:
                # Under the first lock no other branch is copied, and under that of the origin it is not migrated.
                for name in dict.fromkeys((None, source)):
                    stack.enter_context(self._lock(name, self.settings).held(lambda _: False))
                for partial in self._path.parent.glob(f"{glob.escape(self._begin)}*.partial"):  # of a killed process
                    partial.unlink()
                if target.exists():
                    return False
                remove_journals(target)
                copy_file(origin, target)
                return True
        except (sqlite3.Error, OSError) as error:
            raise DbSmartError(
                f"Cannot copy {origin} to {target} for the branch {branch!r}: {self.database.redact(error)}. {origin} "
                "is as it was, and no part of the copy was kept. Fix the cause and start again."
            ) from error

    def delete(self, name: str) -> None:
        path = self._path.with_name(name)
        try:
            with self._lock(name, LockSettings(timeout=0)).held(lambda _: False):
                with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1)) as connection:
                    # Leaving WAL mode needs that nobody else has it open; the rest, that nobody reads or writes.
                    connection.execute("PRAGMA journal_mode=DELETE").fetchall()
                    connection.execute("BEGIN EXCLUSIVE")
                    connection.rollback()
                for one in _files_of(path):
                    one.unlink(missing_ok=True)
            path.with_name(f"{path.name}.db-smart.lock").unlink(missing_ok=True)
        except (sqlite3.Error, OSError) as error:
            raise DbSmartError(
                f"Cannot delete {path}: {self.database.redact(error)}. End what uses it and try again, or remove it by "
                "hand."
            ) from error

    def _url(self, name: str | None) -> URL:
        return self.base if name is None else self.base.set(database=str(self._path.with_name(name)))

    def _lock(self, name: str | None, settings: LockSettings) -> Lock:
        return lock_of(Database(self.database.name, None, sa.create_engine(self._url(name))), settings)


class _Templates(BranchDatabases):
    """PostgreSQL: databases on the same server."""

    def name_of(self, branch: str) -> str:
        begin = f"{self.base.database}{_MARK}"
        if len(begin.encode()) > _LONGEST_NAME - 24:
            raise ConfigError(
                f"The name of the database {self.base.database!r} is too long to have those of branches beside it. "
                "Nothing was changed. Use one of at most 30 characters, or set DB_SMART_BRANCHES to False."
            )
        return f"{begin}{_slug(branch, _LONGEST_NAME - len(begin.encode()))}"

    def exists(self, name: str) -> bool:
        with self._server() as connection:
            return _exists(connection, name)

    def kept(self) -> list[Kept]:
        query = sa.text(
            "SELECT datname, CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) END, "
            "shobj_description(oid, 'pg_database') FROM pg_database ORDER BY datname"
        )
        begin, found = f"{self.base.database}{_MARK}", []
        with self._server() as connection:
            for name, size, comment in connection.execute(query):
                slug = name.removeprefix(begin)
                if name == f"{begin}{slug}" and _SLUG.fullmatch(slug):
                    made = None
                    with suppress(ValueError):
                        made = datetime.fromisoformat((comment or "").rpartition(" ")[2])
                    found.append(Kept(name, _unslug(slug), size, made))
        return found

    def copy(self, source: str | None, branch: str) -> bool:
        origin, target = self.at(source), self.name_of(branch)
        digest = hashlib.sha256(str(self.base.database).encode()).hexdigest()
        partial = f"db_smart_unfinished_{digest[:16]}"
        self._engine.dispose()
        with self._elsewhere(source) as database:
            holder = lock_of(database, self.settings).holder()
        if holder is not None:
            raise LockHeld(
                f"The database {origin!r} is being migrated by {holder}, so it cannot be copied. Nothing was changed. "
                "Start again when it is done."
            )
        with self._server() as connection, self._saying(connection, origin, f"copy {origin!r} to {target!r}"):
            # Held by the session: no other branch is copied, so what is unfinished is of a process that was killed.
            connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": int(digest[:15], 16)})
            if _exists(connection, target) or not _exists(connection, origin):
                return False
            quote = connection.dialect.identifier_preparer.quote_identifier
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quote(partial)}")
            connection.exec_driver_sql(f"CREATE DATABASE {quote(partial)} TEMPLATE {quote(origin)}")
            settings = sa.text(
                "SELECT unnest(setconfig) FROM pg_db_role_setting WHERE setrole = 0 AND setdatabase = "
                "(SELECT oid FROM pg_database WHERE datname = :name)"
            )
            for setting in connection.scalars(settings, {"name": origin}).all():
                key, _, value = setting.partition("=")
                connection.execute(sa.text("SELECT set_config(:key, :value, false)"), {"key": key, "value": value})
                parts = ".".join(quote(part) for part in key.split("."))
                connection.exec_driver_sql(f"ALTER DATABASE {quote(partial)} SET {parts} FROM CURRENT")
            connection.exec_driver_sql("RESET ALL")
            made = datetime.now(timezone.utc).isoformat(timespec="seconds")
            connection.exec_driver_sql(
                f"COMMENT ON DATABASE {quote(partial)} IS 'a copy for a Git branch, made {made}'"
            )
            connection.exec_driver_sql(f"ALTER DATABASE {quote(partial)} RENAME TO {quote(target)}")
            return True

    def delete(self, name: str) -> None:
        with self._server() as connection, self._saying(connection, name, f"delete {name!r}"):
            quoted = connection.dialect.identifier_preparer.quote_identifier(name)
            connection.exec_driver_sql(f"DROP DATABASE {quoted}")

    def _url(self, name: str | None) -> URL:
        return self.base if name is None else self.base.set(database=name)

    @contextmanager
    def _server(self) -> Iterator[sa.Connection]:
        """A connection to none of the databases that are copied."""
        with self._elsewhere(_MAINTENANCE) as database, database.connect(autocommit=True) as connection:
            yield connection

    @contextmanager
    def _elsewhere(self, name: str | None) -> Iterator[Database]:
        """Another database of the server, to which the application's way of connecting leads meanwhile.

        By an engine of its own: that of the application learns from its first connection what is true of all.
        """
        before, self._target = self._target, self._url(name)
        engine = sa.create_engine(self._target, creator=self._engine.pool._creator, poolclass=NullPool)
        try:
            yield Database(self.database.name, None, engine)
        finally:
            self._target = before

    @contextmanager
    def _saying(self, connection: sa.Connection, name: str, what: str) -> Iterator[None]:
        """Turn an error of the server into a message, with the sessions that are in the way.

        :raises DbSmartError: in its place.
        """
        try:
            yield
        except sa.exc.DBAPIError as error:
            text = f"Cannot {what} on {safe_url(self.base)}: {self.database.redact(error)}. Nothing was changed."
            sessions: list[str] = []
            if self.database.facts.code(error) == _IN_USE:
                rows = connection.execute(
                    sa.text(
                        "SELECT coalesce(nullif(application_name, ''), 'a program'), pid, usename, "
                        "coalesce(host(client_addr), 'the server itself') FROM pg_stat_activity WHERE datname = :name"
                    ),
                    {"name": name},
                )
                sessions = [f"{app} (session {pid} of {user} from {host})" for app, pid, user, host in rows]
            todo = (
                f"Close it in: {', '.join(sessions)}; then try again." if sessions else "Fix the cause and try again."
            )
            raise DbSmartError(f"{text} {todo}") from None


def branch_databases(database: Database, settings: LockSettings) -> BranchDatabases | None:
    """What a database of the application offers to branches; ``None`` where it lives in this process only.

    :raises ConfigError: branches cannot have databases of their own of this kind.
    """
    if database.in_memory:
        return None
    url, engine = database.app_engine.url, database.app_engine
    kind: type[BranchDatabases] = _Templates if database.facts.server else _Files
    why = None
    if database.facts.server and not database.facts.template_databases:
        why = "only files of SQLite and databases of PostgreSQL can be copied"
    elif getattr(engine.pool._creator, "__module__", "") != "sqlalchemy.engine.create":
        why = "it has a creator or a pool of its own, which does not go by the URL"
    elif not url.database or url.database.startswith("file:") or {"dbname", "service"} & url.query.keys():
        why = "its URL does not plainly name the database"
    if why is not None:
        raise ConfigError(
            f"The database {database.name!r} ({database.url}) cannot be kept for each Git branch: {why}. Nothing was "
            "changed. Set DB_SMART_BRANCHES to False, or use SQLite or PostgreSQL by a plain URL while developing."
        )
    return kind(database, settings)


def _exists(connection: sa.Connection, name: str) -> bool:
    query = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
    return connection.scalar(query, {"name": name}) is not None


def _files_of(path: Path) -> list[Path]:
    """A SQLite database, and what SQLite keeps beside it."""
    return [path, *(path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm", "-journal"))]


def _slug(branch: str, limit: int) -> str:
    """The name of a branch in plain characters, also where a file system does not tell capitals."""
    raw = os.fsencode(branch)
    text = "".join(chr(byte) if _PLAIN.fullmatch(chr(byte)) else f"~{byte:02X}" for byte in raw)
    if len(text) <= limit:
        return text
    return f"{text[: limit - 14]}{_CUT}{hashlib.sha256(raw).hexdigest()[:12].upper()}"


def _unslug(slug: str) -> str | None:
    """The branch of which a name was made; ``None`` where it was cut."""
    if _CUT in slug:
        return None
    return os.fsdecode(re.sub(rb"~(..)", lambda found: bytes([int(found[1], 16)]), slug.encode()))
