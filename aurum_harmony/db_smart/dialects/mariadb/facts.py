"""The facts of MariaDB, and of MySQL."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from ..base import Facts, cause_of

#: Whether the binary log holds statements, where InnoDB refuses to write at READ COMMITTED.
_LOGS_STATEMENTS = "SELECT @@log_bin AND @@session.binlog_format = 'STATEMENT'"
#: What commits the open transaction: https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/
_COMMITS = re.compile(
    r"(\s|--[^\n]*\n|#[^\n]*\n|/\*([^*]|\*(?!/))*\*/)*"
    r"(ALTER|ANALYZE|BACKUP|BEGIN|CACHE|CHANGE|CHECK|COMMIT|CREATE|DROP|FLUSH|GRANT|INSTALL|LOAD\s+INDEX|LOCK|OPTIMIZE"
    r"|RENAME|REPAIR|RESET|REVOKE|SET\s+PASSWORD|START|STOP|TRUNCATE|UNINSTALL|UNLOCK)\b",
    re.IGNORECASE,
)
#: A column cannot be NULL, or has no default.
_NO_VALUE = (1048, 1364)
_QUOTED = re.compile(r"'([^']+)'")


class MariadbFacts(Facts):
    """See the module. It names its errors by numbers."""

    editor = "MariadbEditor"
    clock = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
    transactional_ddl = False
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
    errors = {
        "transient": (1205, 1213, 1020),
        "denied": (1044, 1142, 1143),  # of a database, a table, a column
        "read only": (1290, 1792, 1836),
        "missing": (1051, 1054, 1072, 1091, 1146),
        # Unique, NULL twice, a key, a check, cut off, too long, out of range.
        "old rows": (1062, 1048, 1138, 1452, 4025, 1265, 1406, 1264),
    }
    restrict_is_no_action = True
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

    def set_lock_timeout(self, seconds: float) -> str:
        """The statement for a session, in whole seconds; rows are waited for by :meth:`set_rows_timeout`."""
        return f"SET SESSION lock_wait_timeout = {max(1, round(seconds))}"

    def set_rows_timeout(self, seconds: float | None) -> str:
        """The statement for a session, in whole seconds."""
        value = "DEFAULT" if seconds is None else max(1, round(seconds))
        return f"SET SESSION innodb_lock_wait_timeout = {value}"

    def code(self, error: BaseException) -> int | None:
        """The number of an error."""
        return number(error)

    def full(self, error: BaseException) -> bool:
        """Whether a connection was refused for the moment."""
        return number(error) in (1040, 1203)

    def column_without_value(self, error: BaseException) -> tuple[str | None, str | None]:
        """The column for which a row has no value; which table it is in is not told."""
        quoted = _QUOTED.search(str(cause_of(error))) if number(error) in _NO_VALUE else None
        return None, quoted[1] if quoted else None


def number(error: BaseException) -> int | None:
    """The number by which MariaDB names an error, from any of its drivers; ``None`` where there is none."""
    cause = cause_of(error)
    candidates = (getattr(cause, "errno", None), *cause.args[:1])
    return next((found for found in candidates if isinstance(found, int)), None)


FACTS = MariadbFacts("mysql")
