"""What a database has, in its own words, so that two ways to the same schema can be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

#: What a database has: by table, kind of thing, and then the things.
Facts = dict[str, dict[str, Any]]

_POSTGRESQL = {
    "columns": """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
            a.attidentity::text, a.attgenerated::text, col_description(a.attrelid, a.attnum), a.attcollation::int
        FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = CAST(:table AS regclass) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum""",
    "constraints": """
        SELECT conname, contype::text, pg_get_constraintdef(oid), convalidated
        FROM pg_constraint WHERE conrelid = CAST(:table AS regclass) AND contype <> 'n' ORDER BY conname""",
    "indexes": """
        SELECT pg_get_indexdef(indexrelid), indisvalid, indisready, indisunique, indisprimary
        FROM pg_index WHERE indrelid = CAST(:table AS regclass) ORDER BY 1""",
    "triggers": """
        SELECT pg_get_triggerdef(oid) FROM pg_trigger
        WHERE tgrelid = CAST(:table AS regclass) AND NOT tgisinternal ORDER BY 1""",
    "comment": "SELECT obj_description(CAST(:table AS regclass), 'pg_class')",
}
_SQLITE = {
    "columns": 'SELECT name, upper(type), "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(:table)',
    "foreign keys": """
        SELECT "from", "table", "to", on_update, on_delete FROM pragma_foreign_key_list(:table) ORDER BY 1, 2, 3""",
    # A unique column that is added later has an index instead of a constraint, which differ in name and origin.
    "indexes": """
        SELECT CASE WHEN i."unique" THEN 'unique' ELSE i.name END, i.partial,
            group_concat(coalesce(c.name, 'expression') || c."desc" || c.coll)
        FROM pragma_index_list(:table) AS i, pragma_index_xinfo(i.name) AS c WHERE c.key
        GROUP BY i.name ORDER BY 3, 1""",
    "triggers and views": """
        SELECT type, name, sql FROM sqlite_master
        WHERE type = 'trigger' AND tbl_name = :table OR type = 'view' ORDER BY name""",
}


def facts(connection: sa.Connection, schema: str | None = None) -> Facts:
    """All tables but those of the extension, with all that their columns, constraints and indexes are, and their rows.

    :param schema: the schema to look at.
    """
    ask = {"postgresql": _postgresql, "sqlite": _sqlite}.get(connection.dialect.name, _mariadb)
    found = {}
    for name in sorted(sa.inspect(connection).get_table_names(schema=schema)):
        if not name.startswith("db_smart_"):
            found[name] = {**ask(connection, name, schema), "rows": _rows(connection, name, schema)}
    return found


def drop_tables(engine: sa.Engine, keep: Collection[str] = ()) -> None:
    """Drop all tables and views, whatever refers to them."""
    off = {"sqlite": "PRAGMA foreign_keys = OFF", "mysql": "SET foreign_key_checks = 0"}
    with engine.connect() as connection:
        connection.exec_driver_sql(off.get(engine.dialect.name, "SELECT 1"))
        quote = connection.dialect.identifier_preparer.quote
        cascade = " CASCADE" if engine.dialect.name == "postgresql" else ""
        for kind, names in (
            ("VIEW", sa.inspect(connection).get_view_names()),
            ("TABLE", sa.inspect(connection).get_table_names()),
        ):
            for name in names:
                if name not in keep:
                    connection.exec_driver_sql(f"DROP {kind} {quote(name)}{cascade}")
        connection.commit()


def differences(one: Facts, other: Facts) -> dict[str, Any]:
    """Where two differ, for a message that can be read."""
    return {
        f"{table}: {kind}": (_less(mine, theirs), _less(theirs, mine))
        for table in one.keys() | other.keys()
        for kind in one.get(table, {}).keys() | other.get(table, {}).keys()
        if (mine := one.get(table, {}).get(kind)) != (theirs := other.get(table, {}).get(kind))
    }


def _less(one: Any, other: Any) -> Any:
    both = isinstance(one, list) and isinstance(other, list)
    return ([item for item in one if item not in other] or "in another order") if both else one


def _rows(connection: sa.Connection, table: str, schema: str | None) -> list[Any]:
    quote = connection.dialect.identifier_preparer.quote
    name = f"{quote(schema)}.{quote(table)}" if schema else quote(table)
    return sorted(map(tuple, connection.exec_driver_sql(f"SELECT * FROM {name}")), key=repr)


def _ask(connection: sa.Connection, queries: dict[str, str], table: str) -> dict[str, Any]:
    return {
        kind: [tuple(row) for row in connection.execute(sa.text(query), {"table": table})]
        for kind, query in queries.items()
    }


def _postgresql(connection: sa.Connection, table: str, schema: str | None) -> dict[str, Any]:
    quote = connection.dialect.identifier_preparer.quote
    name = f"{quote(schema)}.{quote(table)}" if schema else quote(table)
    return _ask(connection, _POSTGRESQL, name.replace("%%", "%"))  # as a value, not as SQL


def _sqlite(connection: sa.Connection, table: str, _: str | None) -> dict[str, Any]:
    found = _ask(connection, _SQLITE, table)
    checks = sa.inspect(connection).get_check_constraints(table)
    found["checks"] = sorted((str(check["name"]), check["sqltext"].strip("() ")) for check in checks)
    return found


def _mariadb(connection: sa.Connection, table: str, _: str | None) -> dict[str, Any]:
    quote: Callable[[str], str] = connection.dialect.identifier_preparer.quote_identifier
    text = connection.exec_driver_sql(f"SHOW CREATE TABLE {quote(table)}").one()[1]
    first, *lines, last = [line.strip().rstrip(",") for line in text.split("\n")]
    # Keys and constraints are shown in the order in which they were made.
    return {
        "columns": [line for line in lines if line.startswith("`")],
        "others": sorted(line for line in lines if not line.startswith("`")),
        "options": re.sub(r" AUTO_INCREMENT=\d+", "", last),
    }
