"""What is true of one kind of database, asked for wherever kinds differ in more than their schema changes.

The facts of each kind stand in its folder, which is only imported when a database of that kind is met. A boot with
nothing to do asks for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine

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
#: serialization failure, a lock time-out, or when another node of a cluster was quicker. *denied*: the user lacks the
#: right. *read only*: nothing can be written, because the server, the role or the transaction only reads. *missing*:
#: there is no such table or column. *old rows*: existing rows are in the way of a schema change.
Kind = Literal["transient", "denied", "read only", "missing", "old rows"]


class Facts:
    """The facts of one kind of database; here those of a server that knows what the SQL standard has.

    :ivar name: what it is called in the code: as SQLAlchemy's dialect, and ``mysql`` for MariaDB too.
    """

    #: The class in ``editor.py`` of the same folder that makes schema changes.
    editor = "SchemaEditor"

    #: Whether a server has it: it is reached over a connection, and holds a lease. Else it is one file.
    server = True
    #: The clock, in microseconds since 1970, whatever the session's time zone; ``None`` where there is no expression.
    clock: str | None = None
    #: Whether a search path decides in which schema a table is found.
    has_search_path = False

    #: Whether a failed transaction takes its schema changes back.
    transactional_ddl = True
    #: Whether a failed statement is the end of its transaction, so that it needs a savepoint.
    failure_ends_transaction = False
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

    def exact(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
        """A text by which only equal ones are grouped."""
        return text

    def prepare(self, engine: Engine) -> None:
        """Do what a new engine for migrating needs, before its first connection."""

    @contextmanager
    def opened(self, connection: sa.Connection, autocommit: bool) -> Iterator[sa.Connection]:
        """A new connection as it is used for migrating, for as long as it is."""
        yield connection.execution_options(isolation_level="AUTOCOMMIT") if autocommit else connection

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that will write; see :func:`~.store.database.begin`."""
        if "isolation_level" not in connection.get_execution_options():
            level = self.isolation_level(connection)
            connection.rollback()  # a query has begun a transaction
            connection.execution_options(isolation_level=level)
        connection.begin()

    def isolation_level(self, connection: sa.Connection) -> str:
        """The level at which migrations run."""
        return "READ COMMITTED"

    def commit_failed(self, connection: sa.Connection) -> None:
        """End a transaction that could not be committed, where the database keeps it open."""

    def commits(self, statement: str) -> bool:
        """Whether a statement commits the open transaction before it is done."""
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


def cause_of(error: BaseException) -> Any:
    """The driver's own error, where SQLAlchemy has wrapped it."""
    return getattr(error, "orig", None) or error
