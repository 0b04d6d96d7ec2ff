"""The facts of PostgreSQL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from ...errors import raw_text_of
from ...notices import logger_of
from ...retry import Wait
from ..base import LOOK_EVERY, Facts, cause_of

_logger = logger_of(__name__)

_ALONE = re.compile(
    r"\bCONCURRENTLY\b|^\s*(VACUUM|CLUSTER\s*;?\s*$|REINDEX\s+(\([^)]*\)\s*)?(SCHEMA|DATABASE|SYSTEM)\b|ALTER\s+SYSTEM\b"
    r"|(CREATE|ALTER|DROP)\s+(DATABASE|TABLESPACE|SUBSCRIPTION)\b)",
    re.IGNORECASE,
)
_NAME = r"(?:\"(?:[^\"]|\"\")+\"|[\w$]+)"
_BEFORE = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_ON = rf"ON\s+(?:ONLY\s+)?(?P<table>{_NAME}(?:\.{_NAME})?)"
_INDEX = re.compile(
    rf"{_BEFORE}CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<name>{_NAME})\s+{_ON}",
    re.IGNORECASE | re.DOTALL,
)
#: By names as they stand in the statement: the index, whether it is valid, and whether somebody is building it.
_FIND = sa.text(
    "SELECT i.oid::regclass::text, x.indisvalid AND x.indisready, "
    "EXISTS (SELECT 1 FROM pg_stat_progress_create_index AS p WHERE p.index_relid = i.oid) "
    "FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid WHERE x.indrelid = to_regclass(:table) "
    "AND i.relname = (parse_ident(:name))[1]"
)
#: What makes an index whose name PostgreSQL chooses: of a new one, and of one that is to take the place of another.
_UNNAMED = re.compile(
    rf"{_BEFORE}CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+{_ON}"
    rf"|{_BEFORE}REINDEX\s+(?:\([^)]*\bCONCURRENTLY\b|(?:\([^)]*\)\s*)?(?:INDEX|TABLE|SCHEMA|DATABASE)\s+CONCURRENTLY\b)",
    re.IGNORECASE | re.DOTALL,
)
#: The indexes that such a statement may have made, of a table or else of all, and whether each is valid.
_CHOSEN = sa.text(
    "SELECT i.oid::bigint AS oid, i.oid::regclass::text AS name, x.indisvalid AND x.indisready AS valid "
    "FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid WHERE CASE WHEN CAST(:table AS text) IS NULL "
    "THEN i.relname ~ '_cc(new|old)[0-9]*$' ELSE x.indrelid = to_regclass(:table) AND i.relname ~ '_idx[0-9]*$' END "
    "ORDER BY i.oid"
)
#: Whether another session of this user is still at a statement, whose client may be gone.
_AT_IT = sa.text(
    "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND state = 'active' AND query = left(:statement, length(query)) AND query <> '')"
)


#: How far a statement is of which PostgreSQL tells that. By its text: behind PgBouncer nobody knows the session of one
#: that runs in no transaction. The text of another role's statement is not shown, nor is its progress.
_PROGRESS = """
    SELECT p.phase, p.unit, p.done, p.total FROM (
        SELECT pid, phase,
            CASE WHEN lockers_total > 0 THEN 'transactions' WHEN blocks_total > 0 THEN 'blocks' ELSE 'rows' END,
            CASE WHEN lockers_total > 0 THEN lockers_done WHEN blocks_total > 0 THEN blocks_done ELSE tuples_done END,
            CASE WHEN lockers_total > 0 THEN lockers_total WHEN blocks_total > 0 THEN blocks_total
                ELSE tuples_total END
        FROM pg_catalog.pg_stat_progress_create_index
        UNION ALL SELECT pid, phase, 'blocks', heap_blks_scanned, heap_blks_total
        FROM pg_catalog.pg_stat_progress_cluster
        UNION ALL SELECT pid, phase, 'blocks', sample_blks_scanned, sample_blks_total
        FROM pg_catalog.pg_stat_progress_analyze
        UNION ALL SELECT pid, phase, 'blocks', heap_blks_scanned, heap_blks_total
        FROM pg_catalog.pg_stat_progress_vacuum
        UNION ALL SELECT pid, 'copying', 'bytes', bytes_processed, bytes_total
        FROM pg_catalog.pg_stat_progress_copy
    ) AS p (pid, phase, unit, done, total) JOIN pg_catalog.pg_stat_activity AS a ON a.pid = p.pid
    WHERE a.datname = current_database() AND a.state = 'active' AND a.query <> ''
    AND a.query = left(:statement, length(a.query)) ORDER BY a.pid = :session DESC LIMIT 1
"""


#: What a name in SQL stands for: where it is listed, and how its columns begin; some are in a schema.
_NAMED = {
    **dict.fromkeys(("table", "sequence", "view", "materialized view"), ("pg_class", "rel", True)),
    **dict.fromkeys(("type", "domain"), ("pg_type", "typ", True)),
    **dict.fromkeys(("function", "procedure", "routine", "aggregate"), ("pg_proc", "pro", True)),
    "collation": ("pg_collation", "coll", True),
    "extension": ("pg_extension", "ext", False),
    "schema": ("pg_namespace", "nsp", False),
    "language": ("pg_language", "lan", False),
    "server": ("pg_foreign_server", "srv", False),
    "foreign data wrapper": ("pg_foreign_data_wrapper", "fdw", False),
    "access method": ("pg_am", "am", False),
}
_FOUND = "SELECT CAST('{0}' AS regclass), oid, 0 FROM {0} WHERE {1}name IN (CAST(:name AS text), lower(:name))"
_IN_SCHEMA = (
    " AND {1}namespace IN (SELECT oid FROM pg_namespace WHERE CASE WHEN CAST(:schema AS text) IS NULL "
    "THEN nspname = ANY (current_schemas(true)) ELSE nspname IN (CAST(:schema AS text), lower(:schema)) END)"
)
#: Everything that depends on something, and what that is an inner part of: a generated column has its expression.
_ALONG = """
    WITH RECURSIVE gone (class, object, part) AS (
        {}
        UNION
        SELECT more.* FROM gone, LATERAL (
            SELECT CAST(classid AS regclass), objid, objsubid FROM pg_depend
            WHERE refclassid = gone.class AND refobjid = gone.object AND (gone.part = 0 OR refobjsubid = gone.part)
            UNION ALL
            SELECT CAST(refclassid AS regclass), refobjid, refobjsubid FROM pg_depend
            WHERE classid = gone.class AND objid = gone.object AND objsubid = gone.part AND deptype = 'i'
        ) AS more
    )
    SELECT DISTINCT CASE WHEN NOT pg_table_is_visible(c.oid) THEN CAST(n.nspname AS text) END, CAST(c.relname AS text),
        CAST(a.attname AS text)
    FROM gone JOIN pg_class AS c ON c.oid = gone.object JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = gone.part AND a.attnum > 0
    WHERE gone.class = CAST('pg_class' AS regclass)
        AND (c.relkind IN ('r', 'p', 'f') OR (c.relkind = 'c' AND gone.part > 0))
    ORDER BY 2, 3
"""
#: The parts of a table, and by ``CASCADE`` all that refers to them.
_EMPTIED = """
    WITH RECURSIVE gone (object) AS (
        SELECT oid FROM ({}) AS named
        UNION
        SELECT more.object FROM gone, LATERAL (
            SELECT inhrelid AS object FROM pg_inherits WHERE inhparent = gone.object
            UNION ALL
            SELECT conrelid FROM pg_constraint WHERE contype = 'f' AND confrelid = gone.object AND :cascades
        ) AS more
    )
    SELECT CASE WHEN NOT pg_table_is_visible(c.oid) THEN CAST(n.nspname AS text) END, CAST(c.relname AS text), NULL
    FROM gone JOIN pg_class AS c ON c.oid = gone.object JOIN pg_namespace AS n ON n.oid = c.relnamespace ORDER BY 2
"""


class PostgresqlFacts(Facts):
    """See the module. It names its errors by their SQLSTATE."""

    editor = "PostgresqlEditor"
    # Not now(), which is the start of the transaction.
    clock = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
    has_search_path = True
    template_databases = True
    joined = "string_agg({}, ',')"
    failure_ends_transaction = True
    quoted = (
        r"""\b[eE]'(?:[^'\\]|''|\\.)*'|'[^']*'|"[^"]*"|(?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*"""
        # A comment may have others in it.
        r"""|/\*(?:[^*/]|\*(?!/)|/(?!\*)|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*\*/|/\*.*?\*/"""
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
    sessions = """
        SELECT application_name, count(*) FROM pg_catalog.pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE :name
        GROUP BY application_name
    """
    statement_progress = _PROGRESS
    errors = {
        "transient": ("40001", "40P01", "55P03"),
        "deadlock": ("40001", "40P01"),
        "denied": ("42501",),
        "read only": ("25006",),
        "missing": ("42P01", "42703"),
        "begun": ("42P04", "42P06", "42P07", "42701", "42710", "42P01", "42703", "42704"),
        # A database, an object, a relation; none of that name.
        "done": ("42P04", "42710", "42P07", "42704", "3D000"),
        # NOT NULL, a key, unique, a check, too long, out of range.
        "old rows": ("23502", "23503", "23505", "23514", "22001", "22003"),
    }
    reads_only = "SET TRANSACTION READ ONLY"
    all_rows = "SET LOCAL row_security = off"
    key_holds_table = True
    shows_key_options = True
    casts_literals = True
    named_enumerations = True
    client = "psql"
    # Which the script is in, whatever the surroundings of the client say.
    script_header = ("\\set ON_ERROR_STOP on", "SET client_encoding = 'UTF8';")

    def columns_query(self, connection: sa.Connection, schema: str | None) -> str:
        """The query of :meth:`~.dialects.base.Facts.column_names`."""
        # Not by the standard's views, which show only what the role may use.
        return (
            "SELECT CAST(relname AS text), CAST(attname AS text) FROM pg_catalog.pg_class JOIN pg_catalog.pg_attribute "
            "ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped WHERE relkind IN ('r', 'p', 'f', 'v', 'm') "
            "AND (CAST(:schema AS text) IS NULL AND pg_catalog.pg_table_is_visible(pg_class.oid) "
            "OR relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = :schema)) "
            "AND relnamespace <> CAST('pg_catalog' AS regnamespace)"
        )

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it: upper and lower case are not the same."""
        return name

    @contextmanager
    def opened(self, connection: sa.Connection, autocommit: bool) -> Iterator[sa.Connection]:
        """A new connection, which prepares no statements."""
        with _unprepared(connection), super().opened(connection, autocommit) as opened:
            yield opened

    @contextmanager
    def adopted(self, connection: sa.Connection) -> Iterator[None]:
        """A connection of ``env.py``, which prepares no statements."""
        with _unprepared(connection):
            yield

    def runs_alone(self, statement: str) -> bool:
        """Whether a statement cannot run in a transaction."""
        return _ALONE.search(statement) is not None

    def chooses_name(self, statement: str) -> bool:
        """Whether it makes an index whose name PostgreSQL chooses."""
        return _UNNAMED.match(statement) is not None

    def image(self, connection: sa.Connection, statement: str) -> str | None:
        """The indexes that are there before one whose name PostgreSQL chooses."""
        found = self._chosen(connection, statement)
        return None if found is None else json.dumps([row.oid for row in found])

    def happened(self, connection: sa.Connection, statement: str, image: str) -> bool:
        """Whether there is the index that it builds, and is valid; anything else is sent again."""
        if image:
            return any(
                row.valid and not row.name.startswith("pg_toast.") for row in self._new(connection, statement, image)
            )
        found = self._index(connection, statement)
        return found is not None and found[1]

    def clear_way(self, connection: sa.Connection, statement: str, image: str | None = None) -> None:
        """Drop an index that could not be finished: it serves no query, and ``IF NOT EXISTS`` sees it."""
        found = self._index(connection, statement)
        left = [] if found is None or found[1] else [found[0]]
        if image:
            left += [row.name for row in self._new(connection, statement, image) if not row.valid]
        for name in left:
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}", execution_options={"no_parameters": True})

    def _chosen(self, connection: sa.Connection, statement: str) -> Sequence[sa.Row[Any]] | None:
        found = _UNNAMED.match(statement)
        return None if found is None else connection.execute(_CHOSEN, {"table": found["table"]}).all()

    def _new(self, connection: sa.Connection, statement: str, image: str) -> list[sa.Row[Any]]:
        """The indexes that have come since an image; waits while somebody is at that statement."""
        wait = Wait(LOOK_EVERY, float("inf"))
        while connection.scalar(_AT_IT, {"statement": statement}):
            wait.look(_logger, lambda: f"the session that is still at {' '.join(statement.split())!r}")
        before = json.loads(image)
        return [row for row in self._chosen(connection, statement) or () if row.oid not in before]

    def _index(self, connection: sa.Connection, statement: str) -> tuple[str, bool] | None:
        """The index that a statement builds concurrently; waits while somebody is building it."""
        named, wait = _INDEX.match(statement), Wait(LOOK_EVERY, float("inf"))
        while named is not None:
            found = connection.execute(_FIND, {"table": named["table"], "name": named["name"]}).first()
            if found is None:
                return None
            if not found[2]:
                return str(found[0]), bool(found[1])
            wait.look(_logger, lambda: f"the session that builds the index {named['name']!r}")
        return None

    def set_lock_timeout(self, seconds: float) -> str:
        """The statement for a session of one's own, in milliseconds."""
        return f"SET lock_timeout = {round(seconds * 1000)}"

    def set_batch_timeout(self, seconds: float) -> str:
        """The statement for one transaction, in milliseconds."""
        return f"SET LOCAL lock_timeout = {round(seconds * 1000)}"

    def estimate(self, cursor: Any, statement: str, parameters: Any) -> float | None:
        """See the base class."""
        values = () if parameters is None else (parameters,)
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", *values)
        shown = cursor.fetchone()[0]
        (plan,) = json.loads(shown) if isinstance(shown, str) else shown
        return _changed(plan["Plan"])

    def rows(self, connection: sa.Connection, table: str, schema: str | None) -> float:
        """See the base class; the planner knows the size of a table also where nobody has analyzed it."""
        query = sa.select(sa.literal(1)).select_from(sa.table(table, schema=schema)).compile(connection)
        shown = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}", query.params).scalar_one()
        (plan,) = json.loads(shown) if isinstance(shown, str) else shown
        return float(plan["Plan"]["Plan Rows"])

    def along(
        self, connection: sa.Connection, kind: str, schema: str | None, name: str, *, cascades: bool
    ) -> Sequence[tuple[str | None, str, str | None]]:
        """See the base class."""
        listed, prefix, in_schema = _NAMED.get("table" if kind == "rows" else kind, ("", "", False))
        if not listed:
            return ()
        found = (_FOUND + _IN_SCHEMA * in_schema).format(listed, prefix)
        query = _EMPTIED.format(found) if kind == "rows" else _ALONG.format(found)
        values = {"schema": schema, "name": name, "cascades": cascades}
        return [(row[0], row[1], row[2]) for row in connection.execute(sa.text(query), values)]

    def code(self, error: BaseException) -> str | None:
        """The SQLSTATE of an error."""
        return sqlstate(error)

    def full(self, error: BaseException) -> bool:
        """Whether a connection was refused for the moment, for which drivers give no SQLSTATE."""
        text = raw_text_of(cause_of(error))
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


@contextmanager
def _unprepared(connection: sa.Connection) -> Iterator[None]:
    """Have psycopg prepare no statement: behind PgBouncer in transaction mode none outlasts a transaction."""
    driver: Any = connection.connection.dbapi_connection
    if not hasattr(driver, "prepare_threshold"):
        yield
        return
    before, driver.prepare_threshold = driver.prepare_threshold, None
    try:
        yield
    finally:
        driver.prepare_threshold = before


def sqlstate(error: BaseException) -> str | None:
    """The five letters by which PostgreSQL names an error, from any of its drivers; ``None`` where there are none."""
    cause = cause_of(error)
    first = cause.args[0] if cause.args else None
    found: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return found or (first.get("C") if isinstance(first, dict) else None)  # a dict: pg8000


FACTS = PostgresqlFacts("postgresql")


def _changed(plan: dict[str, Any]) -> float:
    """How many rows the nodes of a plan change that update or delete some."""
    within = plan.get("Plans", [])
    changes = plan["Node Type"] == "ModifyTable" and plan.get("Operation") in ("Update", "Delete")
    sources = ("Outer", "Member")  # before version 14, one for each partition
    changed = sum(part["Plan Rows"] for part in within if changes and part.get("Parent Relationship") in sources)
    return float(changed + sum(map(_changed, within)))
