"""Scratch databases of a MariaDB or MySQL server: made, kept apart from all others, and removed.

Each has a name that nobody else gives, and is held by a lock of that name in the session that has made it. The server
frees the lock when the session ends, however it ends; so whoever gets it knows that nobody uses the database any more.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from ...errors import DbSmartError
from ...notices import logger_of
from ...schema.scratch import NoScratch
from ...store.database import Database

_logger = logger_of(__name__)

#: Of a statement in which a percent sign is one.
no_parameters = {"no_parameters": True}
_PREFIX = "db_smart_scratch_"
#: Whose it is, on which server, since when, and a number of its own.
_NAME = re.compile(rf"{_PREFIX}\w{{0,18}}_[0-9a-f]{{6}}_\d{{8}}t\d{{4}}_[0-9a-f]{{6}}")
#: A server of a cluster, or a replica, does not know the locks of the others, though it has their databases.
_SERVER = "SELECT CONCAT_WS(':', @@hostname, @@port, @@datadir)"
_DATABASES = "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA"
_CHARACTERS = sa.text(
    "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA "
    "WHERE SCHEMA_NAME = :place"
)
#: What is played in a scratch database: changes of what it has, and settings of the session.
_PLAYED = re.compile(
    r"\s*(?:(?:ALTER|CREATE|DROP|RENAME|TRUNCATE)\s+(?:OR\s+REPLACE\s+)?"
    r"(?:(?:ONLINE|IGNORE|UNIQUE|FULLTEXT|SPATIAL|ALGORITHM\s*=\s*\w+|SQL\s+SECURITY\s+\w+)\s+)*"
    r"(?:TABLES?|INDEX|VIEW|SEQUENCE|TRIGGER)\b|SET\s+(?:SESSION\s|@(?!@)|NAMES\b))",
    re.IGNORECASE,
)
#: What changes no table: rows, of which a scratch database has none, transactions, routines, rights, the server.
_APART = re.compile(
    r"\s*(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|START\s+TRANSACTION|BEGIN|COMMIT|DELIMITER|ANALYZE|OPTIMIZE|FLUSH"
    r"|GRANT|REVOKE|SET\s+(?:GLOBAL|@@GLOBAL)|(?:CREATE|ALTER|DROP)\s+(?:OR\s+REPLACE\s+)?"
    r"(?:FUNCTION|PROCEDURE|EVENT|USER|ROLE))\b",
    re.IGNORECASE,
)
#: Settings of the server, and not of the session.
_OF_SERVER = re.compile(
    r"\s*SET\b.*\b(?:GLOBAL|PERSIST|PERSIST_ONLY|PASSWORD|DEFAULT\s+ROLE)\b", re.IGNORECASE | re.DOTALL
)
_USE = re.compile(r"\s*USE\b", re.IGNORECASE)
#: Engines whose tables have their rows elsewhere, so that even an empty table is more than that.
_ELSEWHERE = {"CONNECT", "FEDERATED", "FEDERATEDX", "MRG_MYISAM", "OQGRAPH", "S3", "SPHINX", "SPIDER"}
_DEFINER = re.compile(r"^CREATE .*?VIEW ", re.DOTALL)


def folding(connection: sa.Connection) -> Callable[[str], str]:
    """How the server compares names of databases and tables."""
    exact = connection.exec_driver_sql("SELECT @@lower_case_table_names").scalar() == 0
    return (lambda name: name) if exact else str.lower


@contextmanager
def made(database: Database, connection: sa.Connection, places: Iterable[str]) -> Iterator[dict[str, str]]:
    """Make a scratch database for each of some databases, the first as the usual one; drop them afterwards.

    :returns: their names by those of the databases.
    :raises NoScratch: the role may not, or the server only reads.
    """
    server = hashlib.sha256(str(connection.exec_driver_sql(_SERVER).scalar()).encode()).hexdigest()[:6]
    remove_left(connection, server)
    session = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
    found: dict[str, str] = {}
    try:
        for place in places:
            found[place] = name = _new_name(place, server)
            _hold(connection, name)
            characters = connection.execute(_CHARACTERS, {"place": place}).first()
            like = "" if characters is None else " CHARACTER SET {} COLLATE {}".format(*characters)
            try:
                # Who may not drop it again shall not make it.
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS `{name}`")
                connection.exec_driver_sql(f"CREATE DATABASE `{name}`{like}")
            except sa.exc.DBAPIError as error:
                if not any(database.facts.says(error, kind) for kind in ("denied", "read only")):
                    raise
                raise NoScratch(lacking(connection, database, error)) from error
        usual = next(iter(found.values()), None)
        if usual is not None:
            connection.exec_driver_sql(f"USE `{usual}`")
        yield {**found}
    finally:
        if not connection.invalidated:
            for name in found.values():
                _drop(connection, name)
        else:  # as by Ctrl-C; its session may still be at a statement
            with suppress(DbSmartError), database.connect(autocommit=True) as other:
                with suppress(sa.exc.DBAPIError):  # it has ended
                    other.exec_driver_sql(f"KILL {session}")
                for name in found.values():
                    _drop(other, name)


@contextmanager
def indexes_within(connection: sa.Connection) -> Iterator[None]:
    """Make the indexes of new tables together with them, which takes less than half the time."""
    made: set[sa.Index] = set()

    def send(_: Any, __: Any, statement: str, parameters: Any, context: Any, ___: bool) -> tuple[str, Any]:
        change = getattr(context.compiled, "statement", None)
        if isinstance(change, sa.schema.CreateIndex) and change.element in made:
            return "DO 0", parameters
        if isinstance(change, sa.schema.CreateTable):
            options = {"schema_translate_map": connection.get_execution_options().get("schema_translate_map")}
            for index in change.element.indexes:
                if getattr(index, "_ddl_if", None) is not None:  # it may not be for this kind of database
                    continue
                compiled: Any = sa.schema.CreateIndex(index).compile(
                    connection, **options, render_schema_translate=options["schema_translate_map"] is not None
                )
                before, on, after = str(compiled).partition(" ON ")
                body, start = statement.rfind("\n)"), after.find(" (")
                if on and start > 0 and statement.count("\n)") == 1 and " " not in after[:start]:
                    definition = f"{before.removeprefix('CREATE ')}{after[start:]}"
                    statement = f"{statement[:body]}, \n\t{definition}{statement[body:]}"
                    made.add(index)
        return statement, parameters

    sa.event.listen(connection, "before_cursor_execute", send, retval=True)
    try:
        yield
    finally:
        sa.event.remove(connection, "before_cursor_execute", send)


def lacking(connection: sa.Connection, database: Database, error: sa.exc.DBAPIError) -> str:
    """Why there can be no scratch database, and which right would allow it."""
    if database.facts.says(error, "read only"):
        return "No scratch database can be made, because the server only reads. Compare on the one that is written to."
    user = "{}'@'{}".format(*str(connection.exec_driver_sql("SELECT CURRENT_USER()").scalar()).rsplit("@", 1))
    pattern = _PREFIX.replace("_", r"\_")
    return (
        f"No scratch database can be made beside the database {database.name!r} ({database.url}): the user '{user}' "
        f"may not. Give it the right: GRANT ALL ON `{pattern}%`.* TO '{user}'."
    )


def remove_left(connection: sa.Connection, server: str) -> None:
    """Remove the scratch databases of sessions of this server that have ended without doing so."""
    for name in connection.exec_driver_sql(_DATABASES).scalars().all():
        if not _NAME.fullmatch(name) or name.split("_")[-3] != server:
            continue
        if connection.execute(sa.text("SELECT GET_LOCK(:name, 0)"), {"name": name}).scalar() == 1:
            _drop(connection, name)


def copy(source: sa.Connection, connection: sa.Connection, places: dict[str, str]) -> None:
    """Make the tables, sequences and views of databases in their scratch databases.

    :param places: names of scratch databases by those of the databases; those that foreign keys lead to are added.
    :raises DbSmartError: one of them cannot be made.
    """
    mode = str(connection.exec_driver_sql("SELECT @@SESSION.sql_mode").scalar())
    lenient = ",".join(one for one in mode.split(",") if one in ("ANSI_QUOTES", "NO_BACKSLASH_ESCAPES"))
    connection.exec_driver_sql(f"SET SESSION foreign_key_checks = 0, SESSION sql_mode = '{lenient}'")

    def quote(name: str) -> str:  # that of the dialect doubles a percent sign, which no parameters follow here
        return f"`{name.replace('`', '``')}`"

    views = []
    query = sa.text(
        "SELECT TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = :place "
        "ORDER BY TABLE_TYPE = 'SEQUENCE' DESC, TABLE_NAME"
    )
    for place, scratch in [*places.items()]:
        connection.exec_driver_sql(f"USE `{scratch}`")
        _check_place(connection, [scratch])
        for name, kind, engine in source.execute(query, {"place": place}).all():
            what = "VIEW" if kind.endswith("VIEW") else "SEQUENCE" if kind == "SEQUENCE" else "TABLE"
            shown = f"SHOW CREATE {what} {quote(place)}.{quote(name)}"
            if (engine or "").upper() in _ELSEWHERE:
                raise DbSmartError(f"the table {name!r} has its rows elsewhere ({engine}), so that it is not copied")
            with suppress(sa.exc.DBAPIError) if what == "VIEW" else _explained(name):
                sql = str(source.exec_driver_sql(shown, execution_options=no_parameters).one()[1])
                if what == "VIEW":
                    views.append((scratch, _DEFINER.sub("CREATE VIEW ", sql, count=1)))
                else:
                    sql = requalified(sql, mode, places, others=True)
                    connection.exec_driver_sql(sql, execution_options=no_parameters)
    left = len(views) + 1
    while len(views) < left:  # one of another comes after that, and those of what is gone never
        left, waiting, views = len(views), views, []
        for scratch, sql in waiting:
            try:
                connection.exec_driver_sql(f"USE `{scratch}`")
                connection.exec_driver_sql(requalified(sql, mode, places), execution_options=no_parameters)
            except sa.exc.DBAPIError:
                views.append((scratch, sql))
    connection.exec_driver_sql(f"USE `{next(iter(places.values()))}`")
    connection.execute(sa.text("SET SESSION foreign_key_checks = 1, SESSION sql_mode = :mode"), {"mode": mode})


def confined(connection: sa.Connection, statement: str, places: Mapping[str, str]) -> str | None:
    """A statement that reaches nothing but scratch databases.

    :returns: ``None`` for one that changes no table, which need not be played.
    :raises DbSmartError: it might reach something else.
    """
    if _APART.match(statement):
        return None
    if not _PLAYED.match(statement):
        raise DbSmartError(_not_played(statement))
    return within(connection, statement, places)


def within(connection: sa.Connection, statement: str, places: Mapping[str, str]) -> str:
    """A statement that names scratch databases instead of those that they stand for, and no others.

    :raises DbSmartError: it might reach something else, or changes the server.
    """
    if _USE.match(statement) or _OF_SERVER.match(statement):
        raise DbSmartError(_not_played(statement))
    mode = str(connection.exec_driver_sql("SELECT @@SESSION.sql_mode").scalar())
    own, fold = {*places.values()}, folding(connection)
    _check_place(connection, own)
    sent = requalified(statement, mode, places)
    known = {fold(name) for name in connection.exec_driver_sql(_DATABASES).scalars()} - own
    for _, _, name in _qualifiers(sent, mode):
        if fold(name) in known:
            raise DbSmartError(f"it names the database {name!r}, of which there is no scratch database")
    return sent


def _check_place(connection: sa.Connection, own: Collection[str]) -> None:
    """Make sure that what names no database goes to a scratch database.

    :raises DbSmartError: a listener of the application's engines has chosen another one.
    """
    current = connection.exec_driver_sql("SELECT DATABASE()").scalar()
    if current not in own:
        raise DbSmartError(
            f"a listener of the application leads out of the scratch database, to {current!r}, before each statement"
        )


def _not_played(statement: str) -> str:
    return f"{' '.join(statement.split())[:80]!r} is not played in a scratch database"


@contextmanager
def listeners_within(connection: sa.Connection, places: Mapping[str, str]) -> Iterator[None]:
    """Keep within scratch databases what listeners of the models send, whose names SQLAlchemy does not translate.

    :raises DbSmartError: it might reach something else, or changes the server.
    """
    asking = False

    def send(_: Any, __: Any, statement: str, parameters: Any, context: Any, ___: bool) -> tuple[str, Any]:
        nonlocal asking
        made = getattr(getattr(context, "compiled", None), "statement", None)
        if asking or (isinstance(made, sa.schema.ExecutableDDLElement) and not isinstance(made, sa.DDL)):
            return statement, parameters
        asking = True
        try:
            return within(connection, statement, places), parameters
        finally:
            asking = False

    sa.event.listen(connection, "before_cursor_execute", send, retval=True)
    try:
        yield
    finally:
        sa.event.remove(connection, "before_cursor_execute", send)


def requalified(statement: str, mode: str, places: Mapping[str, str], others: bool = False) -> str:
    """A statement that names scratch databases instead of those that they stand for.

    :param mode: ``sql_mode`` of the session.
    :param others: whether any other database, too, gets a name that no database has; it is added to ``places``.
    """
    parts, done = [], 0
    for start, end, name in _qualifiers(statement, mode):
        scratch = places.get(name) or places.get(name.lower())
        if scratch is None and others and isinstance(places, dict) and name not in places.values():
            scratch = places[name] = f"{_PREFIX}{secrets.token_hex(8)}"
        if scratch is not None:
            parts += [statement[done:start], f"`{scratch}`"]
            done = end
    return "".join(parts) + statement[done:]


def _qualifiers(statement: str, mode: str) -> Iterator[tuple[int, int, str]]:
    """The names that stand before a point, and behind none: where from, where to, and which."""
    escape = r"(?!)" if "NO_BACKSLASH_ESCAPES" in mode else r"\\."
    token = re.compile(
        rf"(?P<skip>\s+|'(?:''|{escape}|[^'\\]|\\)*'|\#[^\n]*|--(?=\s)[^\n]*|/\*(?!M?!).*?\*/)"
        rf"|(?P<quoted>`(?:``|[^`])*`|\"(?:\"\"|{escape}|[^\"\\]|\\)*\")|(?P<word>[\w$]+)|(?P<other>/\*M?!\d*|.)",
        re.DOTALL,
    )
    before, last = "", None
    for found in token.finditer(statement):
        if found.lastgroup == "skip":
            continue
        text = found[0]
        if text == "." and last is not None:
            yield last
        is_name = found.lastgroup in ("quoted", "word") and before != "." and not text.isdigit()
        name = text[1:-1].replace(text[0] * 2, text[0]) if found.lastgroup == "quoted" else text
        last = (found.start(), found.end(), name) if is_name else None
        before = text


def _new_name(place: str, server: str) -> str:
    whose = re.sub(r"\W", "", place, flags=re.ASCII).lower()[:18]
    since = datetime.now(timezone.utc).strftime("%Y%m%dt%H%M")
    return f"{_PREFIX}{whose}_{server}_{since}_{secrets.token_hex(3)}"


def _hold(connection: sa.Connection, name: str) -> None:
    if connection.execute(sa.text("SELECT GET_LOCK(:name, 0)"), {"name": name}).scalar() != 1:
        raise DbSmartError(f"The server gives no lock named {name!r}. Nothing was changed.")


def _drop(connection: sa.Connection, name: str) -> None:
    """Drop a scratch database, and free its lock. Where that fails, the next run does it."""
    assert _NAME.fullmatch(name), name
    try:
        connection.exec_driver_sql("SET SESSION foreign_key_checks = 0")
        try:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS `{name}`")
        finally:
            connection.exec_driver_sql("SET SESSION foreign_key_checks = 1")
        connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": name})
    except sa.exc.DBAPIError as error:
        _logger.debug("The scratch database %s is not dropped yet: %s", name, error.orig)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise DbSmartError(f"the table {name!r} cannot be copied: {error.orig}") from error
