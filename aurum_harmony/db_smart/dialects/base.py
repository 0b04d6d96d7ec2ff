"""What is true of one kind of database, asked for wherever kinds differ in more than their schema changes.

The facts of each kind stand in its folder, which is only imported when a database of that kind is met. A boot with
nothing to do asks for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine

#: How often to look whether another session of the server is done, the shortest and the longest pause, seconds.
LOOK_EVERY = (0.05, 0.25)
#: The folder of each of SQLAlchemy's dialects; MySQL's is MariaDB's.
FOLDERS: Mapping[str, str] = {"sqlite": "sqlite", "postgresql": "postgresql", "mariadb": "mariadb", "mysql": "mariadb"}


@cache
def facts_of(dialect: str) -> Facts:
    """The facts of a kind of database; of one that has no folder, those that most have in common.

    :param dialect: SQLAlchemy's name of it.
    """
    if dialect not in FOLDERS:
        return Facts(dialect)
    facts: Facts = import_module(f".{FOLDERS[dialect]}.facts", __package__).FACTS
    return facts


#: What an error can be. *transient*: the same transaction may succeed when tried again, as after a deadlock, a
#: serialization failure, a lock time-out, or when another node of a cluster was quicker. *deadlock*: of these, what the
#: server ended at once in favour of another session. *denied*: the user lacks the right. *read only*: nothing can be
#: written, because the server, the role or the transaction only reads. *missing*: there is no such table or column.
#: *old rows*: existing rows are in the way of a schema change. *done*: a schema change finds that it was made before,
#: and the catalog of :meth:`Facts.image` does not show that. *begun*: what a statement would make is there, or what it
#: needs is not, as after a part of a migration. *referred*: a foreign key needs a column as it is.
Kind = Literal["transient", "deadlock", "denied", "read only", "missing", "old rows", "done", "begun", "referred"]


class Facts:
    """The facts of one kind of database; here those of a server that knows what the SQL standard has.

    :ivar name: what it is called in the code: as SQLAlchemy's dialect, and ``mysql`` for MariaDB too.
    """

    #: The class in ``editor.py`` of the same folder that makes schema changes.
    editor = "SchemaEditor"

    #: Whether a server has it: it is reached over a connection, and holds a lease. Else it is one file.
    server = True
    #: Whether ``CREATE DATABASE … TEMPLATE`` copies a database.
    template_databases = False
    #: The clock, in microseconds since 1970, whatever the session's time zone; ``None`` where there is no expression.
    clock: str | None = None
    #: Whether a search path decides in which schema a table is found.
    has_search_path = False

    #: Whether a failed transaction takes its schema changes back.
    transactional_ddl = True
    #: Whether a failed statement is the end of its transaction, so that it needs a savepoint.
    failure_ends_transaction = False
    #: By which a transaction that has just begun only reads; ``""`` where there is no such statement.
    reads_only = ""
    #: What a semicolon within does not end a statement: strings, names, comments; a pattern with ``re.DOTALL``.
    quoted = r"""'[^']*'|"[^"]*"|--[^\n]*|/\*.*?\*/"""
    #: Whether the body of a procedure is a string unless it says ``BEGIN ATOMIC``.
    bodies_are_strings = False

    #: Whether a schema change gets its lock time-out for itself, because nothing may be set for the session.
    bounds_each_change = False
    #: The query for the number by which the server knows this session.
    session_number = ""
    #: The query for who keeps the session ``:session`` waiting: number, user, client, state, seconds. ``None`` where
    #: nobody does.
    blockers: str | None = None

    #: The query for how many sessions of this database have each name that is like ``:name``; ``None`` where they have
    #: no names.
    sessions: str | None = None

    #: The query for how far ``:statement`` of this user is, sent by the session ``:session`` where that is known: what
    #: the server is at, the unit, how many are done, of how many (0 where that is not known). ``None``: nobody can say.
    statement_progress: str | None = None

    #: By what it names the errors of each kind.
    errors: Mapping[Kind, tuple[object, ...]] = {}

    #: Whether a table, as the target of a foreign key, must be there when the key is made.
    key_needs_target = True
    #: Whether a foreign key refers to the table itself, so that a table dropped for another one of its name loses it.
    key_holds_table = False
    #: Whether all options of a foreign key can be read, and not only ``ON UPDATE`` and ``ON DELETE``.
    shows_key_options = False
    #: Whether it shows ``NO ACTION`` and ``RESTRICT`` as one.
    restrict_is_no_action = False
    #: Whether a value that is too long or too large for its column is refused.
    enforces_lengths = True
    #: Whether a backslash in a string takes the next character as it is.
    backslash_escapes = False
    #: Whether a literal among the results of a query needs a cast to have the type of its column.
    casts_literals = False
    #: Whether a value can be cast to each type that a column can have.
    casts_to_any_type = True
    #: Whether an enumeration is a thing with a name of its own.
    named_enumerations = False
    #: Of texts without a length: name, and how many bits the length in bytes has.
    text_bits: Mapping[str, int] = {}
    #: Of a number without a precision: digits before the point, and behind it.
    plain_numeric: tuple[float, float] = (float("inf"), float("inf"))

    #: SQL for the names of all tables and views, each behind a NUL; ``None`` where that is a question of its own.
    table_names: str | None = None

    #: SQL for all values of a column in one text, with commas between; ``{}`` stands for the column.
    joined = "group_concat({})"

    #: The statement that begins a transaction that will write, in autocommit.
    begin_now = "BEGIN"

    #: Has the server refuse a question, until the transaction ends, where policies would hide rows; ``None`` if there
    #: are no policies.
    all_rows: str | None = None

    #: The least rest after a batch of a backfill, as a fraction of the batch.
    batch_rest = 0.0

    #: The program that runs a script.
    client = "its client"
    #: What a script begins with: it is to stop at the first error, and to be read as UTF-8.
    script_header: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it."""
        return name.lower()

    def column_names(self, connection: sa.Connection, schema: str | None) -> set[tuple[str, str]]:
        """The tables and views with each of their columns, by normalized names. One query.

        :param schema: ``None`` for where the connection looks.
        """
        rows = connection.execute(sa.text(self.columns_query(connection, schema)), {"schema": schema})
        return {(self.normalize_name(table), self.normalize_name(column)) for table, column in rows}

    def columns_query(self, connection: sa.Connection, schema: str | None) -> str:
        """The query of :meth:`column_names`, by ``:schema``."""
        return (
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = COALESCE(:schema, schema())"
        )

    def exact(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
        """A text by which only equal ones are grouped."""
        return text

    def prepare(self, engine: Engine) -> None:
        """Do what a new engine for migrating needs, before its first connection."""

    @contextmanager
    def opened(self, connection: sa.Connection, autocommit: bool) -> Iterator[sa.Connection]:
        """A new connection as it is used for migrating, for as long as it is."""
        yield connection.execution_options(isolation_level="AUTOCOMMIT") if autocommit else connection

    @contextmanager
    def adopted(self, connection: sa.Connection) -> Iterator[None]:
        """A connection that ``env.py`` of Alembic has made, as it is used for migrating; it may be closed meanwhile."""
        yield

    def violations(self, connection: sa.Connection) -> set[str]:
        """What refers to no row although a foreign key says that it must, where the database does not see to it."""
        return set()

    def changes(self, connection: sa.Connection) -> object | None:
        """What is equal later where nobody has changed the database meanwhile; ``None`` where that is not known."""
        return None

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that will write; see :func:`~.store.database.begin`."""
        if "isolation_level" not in connection.get_execution_options():
            level = self.isolation_level(connection)
            connection.rollback()  # a query has begun a transaction
            connection.execution_options(isolation_level=level)
        connection.begin()

    def begin_within(self, connection: sa.Connection) -> None:
        """As :meth:`begin`, where SQLAlchemy takes a transaction for open whose work the driver has just ended."""
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {self.isolation_level(connection)}")

    def isolation_level(self, connection: sa.Connection) -> str:
        """The level at which migrations run."""
        return "READ COMMITTED"

    def commit_failed(self, connection: sa.Connection) -> None:
        """End a transaction that could not be committed, where the database keeps it open."""

    def commits(self, statement: str) -> bool:
        """Whether a statement commits the open transaction before it is done."""
        return False

    def runs_alone(self, statement: str) -> bool:
        """Whether a statement cannot run in a transaction."""
        return False

    def locking_ours(self, statement: str, ours: Sequence[str]) -> str:
        """A statement, which also locks these tables if it locks some and no other ones may be used meanwhile."""
        return statement

    def variables(self, statement: str) -> list[str]:
        """Names of the variables of the session that a statement without rows gives values to."""
        return []

    def set_last_id(self, number: int) -> str | None:
        """The statement that gives a session the identifier that it inserted last; ``None`` where there is none."""
        return None

    def image(self, connection: sa.Connection, statement: str) -> str | None:
        """What the database has of all that a schema change names, before it is made; see :meth:`happened`."""
        return None

    def happened(self, connection: sa.Connection, statement: str, image: str) -> bool:
        """Whether a schema change was made after all, of which a run that was killed left only its intent.

        A server may still be busy with it; that is waited for.

        :param image: what :meth:`image` gave before it.
        """
        return False

    def clear_way(self, connection: sa.Connection, statement: str, image: str | None = None) -> None:
        """Remove what a schema change that cannot run in a transaction has left behind when it failed.

        :param image: what :meth:`image` gave before it; ``None`` where this run is the first one.
        """

    def chooses_name(self, statement: str) -> bool:
        """Whether a schema change makes something whose name the database chooses, so that it never is there already.

        What it leaves behind when it fails is found by its :meth:`image` alone.
        """
        return False

    def wait_for_nobody(self, connection: sa.Connection) -> None:
        """Let statements fail at once that would wait for a lock, where they cannot say so themselves."""

    def set_lock_timeout(self, seconds: float) -> str | None:
        """The statement by which all schema changes of a session wait so long for their locks; ``None``: there is none.

        :param seconds: what can be said more coarsely only is rounded.
        """
        return None

    def set_batch_timeout(self, seconds: float) -> str | None:
        """The statement by which one transaction waits so long for rows; ``None`` where there is none."""
        return None

    def set_rows_timeout(self, seconds: float | None) -> str | None:
        """As :meth:`set_batch_timeout`, of a whole session.

        :param seconds: ``None`` for what the server has otherwise.
        """
        return None

    def estimate(self, cursor: Any, statement: str, parameters: Any) -> float | None:
        """How many rows a statement would update or delete, as the database plans it; ``None`` where it does not say.

        :param cursor: of the driver.
        :param parameters: the values of the statement as the driver takes them; ``None`` for none.
        """
        return None

    def rows(self, connection: sa.Connection, table: str, schema: str | None) -> float:
        """How many rows a table has that is not empty, as the database's own statistics have it, or counted."""
        return float(connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table, schema=schema))) or 0)

    def along(
        self, connection: sa.Connection, kind: str, schema: str | None, name: str, *, cascades: bool
    ) -> Sequence[tuple[str | None, str, str | None]]:
        """What goes along with what is dropped or emptied: the schema of a table, its name, and the column.

        The schema is ``None`` where the table is found without it; the column, where it is the whole table.

        :param kind: such as ``table``, ``type`` or ``extension``; ``rows`` for those of a table.
        :param cascades: whether rows of tables that refer to it go too.
        """
        return ()

    def upsert(self, table: sa.Table, values: Mapping[str, Any], changes: Mapping[str, Any]) -> sa.Insert:
        """Insert a row; where there is one with its primary key, change that."""
        found: sa.Insert = (
            import_module(f"sqlalchemy.dialects.{self.name}")
            .insert(table)
            .values(values)
            .on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)
        )
        return found

    def code(self, error: BaseException) -> object:
        """By what the database names an error, from any of its drivers; ``None`` for an error that is not its own."""
        return None

    def says(self, error: BaseException, kind: Kind) -> bool:
        """Whether an error is of a kind."""
        return self.code(error) in self.errors.get(kind, ())

    def full(self, error: BaseException) -> bool:
        """Whether a connection was refused for the moment: all are taken, or the server is starting or stopping."""
        return False

    def column_without_value(self, error: BaseException) -> tuple[str | None, str | None]:
        """The table, where it is named, and the column for which a row has no value; two times ``None`` otherwise."""
        return None, None


def autocommits(connection: sa.Connection) -> bool:
    """Whether each statement of a connection commits by itself, by its options or by those of its engine."""
    level = connection.get_execution_options().get("isolation_level")
    return (level or getattr(connection.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


def cause_of(error: BaseException) -> Any:
    """The driver's own error, where SQLAlchemy has wrapped it."""
    return getattr(error, "orig", None) or error
