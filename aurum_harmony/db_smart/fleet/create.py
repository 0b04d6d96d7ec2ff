"""The database of a new tenant: a copy of a template where that is one file or database, else an empty one."""

from __future__ import annotations

import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import sqlalchemy as sa

from ..errors import DbSmartError, text_of
from ..notices import logger_of
from ..retry import retry
from ..settings import LockSettings
from ..store import snapshot
from ..store.lock import lock_of
from ..store.tables import state
from .tenants import Places, Tenant, identifier, server_of

_logger = logger_of(__name__)

#: How often a copy of a PostgreSQL database is tried again, of which somebody is using the template.
_RETRIES = 5
#: What a copy of a PostgreSQL database is called until it is a tenant's: when it was begun, by the server's clock.
_FRESH = re.compile(r"db_smart_new_(\d+)_[0-9a-f]{32}")
#: After how long such a copy is of a process that was killed, seconds.
_OLD_SECONDS = 86_400
#: No driver looks for parameters, of which a percent sign in a name would be one.
_AS_IT_IS = {"no_parameters": True}
_NOW = sa.text("SELECT CAST(extract(epoch FROM now()) AS bigint)")
#: The third one is what PostgreSQL says where another session makes it at the same moment.
_IN_USE, _EXISTS = "55006", ("42P04", "42P06", "23505")


def make(places: Places, tenant: Tenant, template: Tenant | None) -> None:
    """Make the database of a tenant, which must not be there yet.

    :param places: of all tenants.
    :param template: up to date; of a server that is another one nothing can be copied.
    :raises DbSmartError: it is there already, or cannot be made; nothing is left of it.
    """
    try:
        if tenant.path is not None:
            _file(tenant, template)
        else:
            _on_server(places, tenant, template)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        said = tenant.without_url(text_of(getattr(error, "orig", None) or error))
        raise DbSmartError(
            f"The database of the tenant {tenant.name!r} cannot be made: {said}. Nothing of it is left. Fix the cause "
            "and try again."
        ) from None


def can_be_copied(tenant: Tenant) -> bool:
    """Whether the database of a tenant can be a copy of another one."""
    return tenant.path is not None or (tenant.schema is None and tenant.dialect == "postgresql")


def _there(tenant: Tenant) -> DbSmartError:
    return DbSmartError(
        f"The tenant {tenant.name!r} has a database already, which is left as it is. 'flask db-smart fleet migrate "
        f"--only {tenant.name}' brings it up to date."
    )


def _file(tenant: Tenant, template: Tenant | None) -> None:
    """Copy a SQLite file; without a template an empty one, so that who makes it is known, which the migrations fill."""
    path = tenant.path
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever else makes it, or migrates it then, has that lock: nobody's journal is removed.
    with lock_of(tenant, LockSettings()).held(lambda _: False):
        fresh = path.with_name(f"{path.name}.db-smart.new")
        fresh.unlink(missing_ok=True)  # of who was killed
        snapshot.remove_journals(fresh)
        if path.exists():
            raise _there(tenant)
        try:
            if template is None or template.path is None:
                path.touch(exist_ok=False)
                return
            try:
                snapshot.copy(template.path, fresh)
                with closing(sqlite3.connect(fresh)) as connection, connection:
                    connection.execute(f"UPDATE {state.name} SET database_id = ? WHERE id = 1", (uuid.uuid4().hex,))
                snapshot.remove_journals(path)
                os.link(fresh, path)  # which replaces nothing, as a rename would
            finally:
                fresh.unlink(missing_ok=True)
        except FileExistsError:
            raise _there(tenant) from None


def _on_server(places: Places, tenant: Tenant, template: Tenant | None) -> None:
    dialect = tenant.app_engine.dialect.name
    if tenant.schema is not None:
        with tenant.app_engine.connect() as connection:
            _send(tenant, connection, f"CREATE SCHEMA {identifier(connection.dialect, tenant.schema)}")
            connection.commit()
        return
    name = tenant.app_engine.url.database
    if name is None or dialect not in ("postgresql", "mysql", "mariadb"):
        raise DbSmartError(f"The database of the tenant {tenant.name!r} must be made by hand: a {dialect} database.")
    with _beside(places, tenant, "postgres" if dialect == "postgresql" else "") as connection:
        if dialect == "postgresql" and template is not None and _copied(places, tenant, template, connection):
            return
        _send(tenant, connection, f"CREATE DATABASE {identifier(connection.dialect, name)}")


def _copied(places: Places, tenant: Tenant, template: Tenant, connection: sa.Connection) -> bool:
    """Copy a PostgreSQL database; under another name until it has an id of its own.

    :returns: ``False`` where that cannot be done, as somebody is using the template all the time.
    """
    source, name = template.app_engine.url, str(tenant.app_engine.url.database)
    if server_of(source) != server_of(tenant.app_engine.url) or source.database is None:
        return False
    there = sa.text("SELECT 1 FROM pg_catalog.pg_database WHERE datname = :name")
    if connection.scalar(there, {"name": name}) is not None:
        raise _there(tenant)
    _drop_old(connection)
    fresh = f"db_smart_new_{connection.scalar(_NOW)}_{uuid.uuid4().hex}"
    quoted = identifier(connection.dialect, fresh)

    def attempt() -> None:
        named = identifier(connection.dialect, str(source.database))
        connection.exec_driver_sql(f"CREATE DATABASE {quoted} TEMPLATE {named}", execution_options=_AS_IT_IS)

    def used(error: Exception) -> bool:
        return isinstance(error, sa.exc.DBAPIError) and template.facts.code(error) == _IN_USE

    try:
        retry(attempt, _RETRIES, used)
    except sa.exc.DBAPIError as error:
        if not used(error):
            raise
        _logger.warning("db-smart: the template %r is in use: %r gets all migrations", template.name, tenant.name)
        return False
    try:
        with _beside(places, tenant, fresh) as own:
            own.execute(state.update().where(state.c.id == 1).values(database_id=uuid.uuid4().hex))
        _send(tenant, connection, f"ALTER DATABASE {quoted} RENAME TO {identifier(connection.dialect, name)}")
    except BaseException:
        connection.exec_driver_sql(f"DROP DATABASE {quoted}")
        raise
    return True


def _drop_old(connection: sa.Connection) -> None:
    """Drop the copies that processes have left that were killed, as far as this user may."""
    names = connection.scalars(sa.text("SELECT datname FROM pg_catalog.pg_database")).all()
    now = connection.scalar(_NOW)
    for name in names:
        found = _FRESH.fullmatch(name)
        if found is not None and now - int(found[1]) > _OLD_SECONDS:
            with suppress(sa.exc.DBAPIError):  # it is another one's, or in use
                connection.exec_driver_sql(f"DROP DATABASE {name}")


@contextmanager
def _beside(places: Places, tenant: Tenant, database: str) -> Iterator[sa.Connection]:
    """A connection to another database of the same server, in autocommit."""
    engine = places.engine(tenant.app_engine.url.set(database=database))
    try:
        with engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")
    finally:
        engine.dispose()


def _send(tenant: Tenant, connection: sa.Connection, statement: str) -> None:
    """Send a statement that makes something by its name.

    :raises DbSmartError: that is there already.
    """
    try:
        connection.exec_driver_sql(statement, execution_options=_AS_IT_IS)
    except sa.exc.DBAPIError as error:
        if tenant.facts.code(error) in (*_EXISTS, 1007):  # of MariaDB
            raise _there(tenant) from None
        raise
