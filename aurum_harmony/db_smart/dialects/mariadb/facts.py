"""The facts of MariaDB, and of MySQL."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import insert

from ...errors import raw_text_of
from ...notices import logger_of
from ...retry import Wait
from ..base import LOOK_EVERY, Facts, cause_of

_logger = logger_of(__name__)

#: Whether the binary log holds statements, where InnoDB refuses to write at READ COMMITTED.
_LOGS_STATEMENTS = "SELECT @@log_bin AND @@session.binlog_format = 'STATEMENT'"
#: What commits the open transaction: https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/
_COMMITS = re.compile(
    r"(\s|--[^\n]*\n|#[^\n]*\n|/\*M?!\d*|/\*(?!M?!)([^*]|\*(?!/))*\*/)*"
    r"(ALTER|ANALYZE|BACKUP|BEGIN|CACHE|CHANGE|CHECK|COMMIT|CREATE|DROP|FLUSH|GRANT|INSTALL|LOAD\s+INDEX|LOCK|OPTIMIZE"
    r"|RENAME|REPAIR|RESET|REVOKE|SET\s+PASSWORD|START|STOP|TRUNCATE|UNINSTALL|UNLOCK)\b",
    re.IGNORECASE,
)
#: A column cannot be NULL, or has no default.
_NO_VALUE = (1048, 1364)
#: What may be a name in a statement.
_WORD = re.compile(r"`(?:[^`]|``)+`|[\w$]+")
#: Rows that the application inserts change it.
_NEXT_NUMBER = re.compile(r"\bAUTO_INCREMENT=\d+ ?")
_QUOTED = re.compile(r"'([^']+)'")
_LOCKS_TABLES = re.compile(r"\s*LOCK\s+TABLES?\b", re.IGNORECASE)
#: What gives values to variables of the session, and returns no rows.
_ASSIGNS = re.compile(r"\s*(?:SET\s+@(?!@)|SELECT\b.*\bINTO\s+@(?!@))", re.IGNORECASE | re.DOTALL)
_VARIABLE = re.compile(r"(?<![@\w])@(\w+)")


class MariadbFacts(Facts):
    """See the module. It names its errors by numbers."""

    editor = "MariadbEditor"
    clock = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    transactional_ddl = False
    reads_only = "START TRANSACTION READ ONLY"
    quoted = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`|\#[^\n]*|--(?=\s)[^\n]*|/\*.*?\*/"""
    session_number = "SELECT connection_id()"
    # The open transactions, longest first: who exactly blocks is not told.
    blockers = """
        SELECT p.id, p.user, p.host, p.command, TIMESTAMPDIFF(SECOND, t.trx_started, now())
        FROM information_schema.innodb_trx AS t JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id
        WHERE p.id <> :session AND EXISTS (
            SELECT 1 FROM information_schema.processlist AS me
            WHERE me.id = :session AND me.state LIKE 'Waiting for%lock%'
        )
        ORDER BY t.trx_started LIMIT 5
    """
    # MySQL has no such columns. Stages are not equally long, but nothing says how long each is.
    statement_progress = """
        SELECT state, '%', (stage - 1) * 100 / max_stage + progress / max_stage, 100
        FROM information_schema.processlist WHERE id = :session AND info = :statement AND max_stage > 0
    """
    errors = {
        "transient": (1205, 1213, 1020),
        # Also of what only reads, where a schema change comes from another node of a cluster.
        "deadlock": (1213,),
        "denied": (1044, 1142, 1143),  # of a database, a table, a column
        "read only": (1290, 1792, 1836),
        # A database, a routine, a trigger, an event, a user; tables and all that is in them are in the image.
        "done": (1007, 1008, 1304, 1305, 1359, 1360, 1396, 1537, 1539),
        "missing": (1051, 1054, 1072, 1091, 1146),
        # A table, a column, an index, a constraint that is there, or is not.
        "begun": (1050, 1060, 1061, 1826, 1022, 1051, 1054, 1072, 1091, 1146),
        "referred": (1832, 1833, 3780),
        # Unique, NULL twice, a key, a check, cut off, too long, out of range.
        "old rows": (1062, 1048, 1138, 1452, 4025, 1265, 1406, 1264),
    }
    restrict_is_no_action = True
    backslash_escapes = True
    # It compares whatever it is, and has no such type for some.
    casts_to_any_type = False
    text_bits = {"TINYTEXT": 8, "TEXT": 16, "MEDIUMTEXT": 24, "LONGTEXT": 32}
    plain_numeric = (10, 0)
    client = "mariadb"
    script_header = ("SET NAMES utf8mb4;",)

    def exact(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
        """A text as bytes, as its collation takes no notice of case, accents and blanks at the end."""
        return sa.cast(text, sa.LargeBinary)

    def isolation_level(self, connection: sa.Connection) -> str:
        """The level at which migrations run."""
        return "REPEATABLE READ" if connection.exec_driver_sql(_LOGS_STATEMENTS).scalar() else "READ COMMITTED"

    def commits(self, statement: str) -> bool:
        """Whether a statement commits the open transaction before it is done."""
        return _COMMITS.match(statement) is not None

    def image(self, connection: sa.Connection, statement: str) -> str:
        """The session that sends the schema change, and the definitions of all tables and views that it names."""
        session = connection.exec_driver_sql(self.session_number).scalar_one()
        return f"{session} {self._definitions(connection, statement)}"

    def happened(self, connection: sa.Connection, statement: str, image: str) -> bool:
        """Whether one of the definitions is another one by now."""
        session, _, before = image.partition(" ")
        running = sa.text("SELECT 1 FROM information_schema.processlist WHERE id = :session AND info LIKE :statement")
        # Its end may differ: the driver has put the parameters in.
        pattern = re.sub(r"([\\%_])", r"\\\1", statement.partition("%")[0]) + "%"
        wait = Wait(LOOK_EVERY, float("inf"))
        while connection.execute(running, {"session": int(session), "statement": pattern}).first() is not None:
            wait.look(_logger, lambda: f"session {session}, which still makes a schema change of a run that has ended")
        return self._definitions(connection, statement) != before

    def _definitions(self, connection: sa.Connection, statement: str) -> str:
        words = {word.strip("`").lower() for word in _WORD.findall(statement)}
        query = sa.text(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema = DATABASE() OR table_schema IN :words ORDER BY 1, 2"
        ).bindparams(sa.bindparam("words", expanding=True))
        found = hashlib.sha256()
        quote = connection.dialect.identifier_preparer.quote_identifier
        for schema, name in connection.execute(query, {"words": sorted(words)}).all():
            if name.lower() in words:
                try:
                    shown = connection.exec_driver_sql(
                        f"SHOW CREATE TABLE {quote(schema)}.{quote(name)}", execution_options={"no_parameters": True}
                    ).one()[1]
                except sa.exc.DBAPIError:  # a view whose tables are gone
                    shown = ""
                found.update(f"{schema}.{name} {_NEXT_NUMBER.sub('', shown)}\n".encode())
        return found.hexdigest()

    def locking_ours(self, statement: str, ours: Sequence[str]) -> str:
        """With locks of tables no other ones can be used."""
        if not _LOCKS_TABLES.match(statement):
            return statement
        return f"{statement.rstrip().rstrip(';')}, {', '.join(f'{name} WRITE' for name in ours)}"

    def variables(self, statement: str) -> list[str]:
        """Names of the variables of the session that a statement gives values to, and of those that it uses."""
        return sorted(set(_VARIABLE.findall(statement))) if _ASSIGNS.match(statement) else []

    def set_last_id(self, number: int) -> str:
        """The statement after which ``LAST_INSERT_ID()`` is a number."""
        return f"SET SESSION last_insert_id = {number}"

    def set_lock_timeout(self, seconds: float) -> str:
        """The statement for a session, in whole seconds; rows are waited for by :meth:`set_rows_timeout`."""
        return f"SET SESSION lock_wait_timeout = {max(1, round(seconds))}"

    def set_rows_timeout(self, seconds: float | None) -> str:
        """The statement for a session, in whole seconds."""
        value = "DEFAULT" if seconds is None else max(1, round(seconds))
        return f"SET SESSION innodb_lock_wait_timeout = {value}"

    def estimate(self, cursor: Any, statement: str, parameters: Any) -> float | None:
        """See the base class; it is how many rows the server reads to find those."""
        values = () if parameters is None else (parameters,)
        cursor.execute(f"EXPLAIN {statement}", *values)
        names = [column[0] for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return max((float(row["rows"] or 0) for row in found if "SUBQUERY" not in row["select_type"]), default=None)

    def rows(self, connection: sa.Connection, table: str, schema: str | None) -> float:
        """See the base class."""
        query = sa.text(
            "SELECT TABLE_ROWS FROM information_schema.TABLES WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) "
            "AND TABLE_NAME = :table"
        )
        return float(connection.scalar(query, {"schema": schema, "table": table}) or 0)

    def upsert(self, table: sa.Table, values: Mapping[str, Any], changes: Mapping[str, Any]) -> sa.Insert:
        """With the words of MariaDB."""
        return insert(table).values(values).on_duplicate_key_update(changes)

    def code(self, error: BaseException) -> int | None:
        """The number of an error."""
        return number(error)

    def full(self, error: BaseException) -> bool:
        """Whether a connection was refused for the moment."""
        return number(error) in (1040, 1203)

    def column_without_value(self, error: BaseException) -> tuple[str | None, str | None]:
        """The column for which a row has no value; which table it is in is not told."""
        quoted = _QUOTED.search(raw_text_of(cause_of(error))) if number(error) in _NO_VALUE else None
        return None, quoted[1] if quoted else None


def number(error: BaseException) -> int | None:
    """The number by which MariaDB names an error, from any of its drivers; ``None`` where there is none."""
    cause = cause_of(error)
    candidates = (getattr(cause, "errno", None), *cause.args[:1])
    return next((found for found in candidates if isinstance(found, int)), None)


FACTS = MariadbFacts("mysql")
