"""The facts of PostgreSQL."""

from __future__ import annotations

from ..base import Facts, cause_of


class PostgresqlFacts(Facts):
    """See the module. It names its errors by their SQLSTATE."""

    editor = "PostgresqlEditor"
    # Not now(), which is the start of the transaction.
    clock = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
    has_search_path = True
    failure_ends_transaction = True
    quoted = (
        r"""\b[eE]'(?:[^'\\]|''|\\.)*'|'[^']*'|"[^"]*"|(?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|/\*.*?\*/"""
    )
    bodies_are_strings = True
    # Behind PgBouncer a session is not one's own.
    bounds_each_change = True
    blockers = """
        SELECT a.pid, a.usename, a.application_name, a.state,
            CAST(extract(epoch FROM clock_timestamp() - a.xact_start) AS INTEGER)
        FROM unnest(pg_blocking_pids(:session)) AS b (pid) JOIN pg_stat_activity AS a ON a.pid = b.pid
        ORDER BY a.xact_start
    """
    errors = {
        "transient": ("40001", "40P01", "55P03"),
        "denied": ("42501",),
        "read only": ("25006",),
        "missing": ("42P01", "42703"),
        # NOT NULL, a key, unique, a check, too long, out of range.
        "old rows": ("23502", "23503", "23505", "23514", "22001", "22003"),
    }
    key_holds_table = True
    shows_key_options = True
    casts_literals = True
    named_enumerations = True
    client = "psql"
    # Which the script is in, whatever the surroundings of the client say.
    script_header = ("\\set ON_ERROR_STOP on", "SET client_encoding = 'UTF8';")

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it: upper and lower case are not the same."""
        return name

    def set_lock_timeout(self, seconds: float) -> str:
        """The statement for a session of one's own, in milliseconds."""
        return f"SET lock_timeout = {round(seconds * 1000)}"

    def set_batch_timeout(self, seconds: float) -> str:
        """The statement for one transaction, in milliseconds."""
        return f"SET LOCAL lock_timeout = {round(seconds * 1000)}"

    def code(self, error: BaseException) -> str | None:
        """The SQLSTATE of an error."""
        return sqlstate(error)

    def full(self, error: BaseException) -> bool:
        """Whether a connection was refused for the moment, for which drivers give no SQLSTATE."""
        text = str(cause_of(error))
        known = ("too many clients", "connection slots are reserved", "the database system is ")
        return any(words in text for words in known)

    def column_without_value(self, error: BaseException) -> tuple[str | None, str | None]:
        """The table and the column for which a row has no value."""
        if sqlstate(error) != "23502":
            return None, None
        cause = cause_of(error)
        first = cause.args[0] if cause.args else None
        if isinstance(first, dict):  # pg8000
            return first.get("t"), first.get("c")
        diagnosis = getattr(cause, "diag", None)
        return getattr(diagnosis, "table_name", None), getattr(diagnosis, "column_name", None)


def sqlstate(error: BaseException) -> str | None:
    """The five letters by which PostgreSQL names an error, from any of its drivers; ``None`` where there are none."""
    cause = cause_of(error)
    first = cause.args[0] if cause.args else None
    found: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return found or (first.get("C") if isinstance(first, dict) else None)  # a dict: pg8000


FACTS = PostgresqlFacts("postgresql")
