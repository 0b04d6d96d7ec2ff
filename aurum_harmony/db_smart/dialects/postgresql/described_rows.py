"""What the catalogue of a PostgreSQL database says of all tables of some schemas, in a handful of queries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ...store.database import translated

#: Whether a thing belongs to an extension; ``{}`` are the catalogue and the number of the thing.
_OF_EXTENSION = (
    "EXISTS (SELECT 1 FROM pg_depend AS e WHERE e.classid = '{}'::regclass AND e.objid = {} AND e.deptype = 'e')"
)
_TABLES = f"""
    SELECT c.oid AS number, CAST(n.nspname AS text) AS place, CAST(c.relname AS text) AS name,
        CAST(c.relkind AS text) AS kind, c.relispartition AS is_partition,
        {_OF_EXTENSION.format("pg_class", "c.oid")} AS of_extension,
        CAST(c.relpersistence AS text) = 'u' AS unlogged, CAST(m.amname AS text) AS method,
        CAST(c.reloptions AS text[]) AS options, pg_get_partkeydef(c.oid) AS partitioned,
        ARRAY(SELECT CAST(CAST(h.inhparent AS regclass) AS text) FROM pg_inherits AS h WHERE h.inhrelid = c.oid
            ORDER BY h.inhseqno) AS parents,
        CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END AS bound,
        obj_description(c.oid, 'pg_class') AS comment
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_am AS m ON m.oid = c.relam
    WHERE CAST(n.nspname AS text) IN :places AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.oid
"""
# Only the expression of a generated column has columns in it; for one that has none, the server need not look at the
# table, and so does not wait for a migration that is changing it.
_COLUMNS = """
    SELECT a.attrelid AS owner, a.attnum AS position, CAST(a.attname AS text) AS name, quote_ident(a.attname) AS quoted,
        format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
        pg_get_expr(d.adbin, CASE WHEN a.attgenerated = '' THEN CAST(0 AS oid) ELSE d.adrelid END) AS expression,
        CAST(a.attgenerated AS text) AS generated, CAST(a.attidentity AS text) AS identity,
        CASE WHEN a.attcollation <> t.typcollation THEN
            CASE WHEN pg_collation_is_visible(l.oid) THEN '' ELSE quote_ident(s.nspname) || '.' END
            || quote_ident(l.collname)
        END AS collation, e.description AS comment, a.attislocal AS is_local
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_type AS t ON t.oid = a.atttypid LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation AS l ON l.oid = a.attcollation LEFT JOIN pg_namespace AS s ON s.oid = l.collnamespace
    LEFT JOIN pg_description AS e ON e.classoid = 'pg_class'::regclass AND e.objoid = a.attrelid
        AND e.objsubid = a.attnum
    WHERE CAST(n.nspname AS text) IN :places AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""
_NAMES = (
    "ARRAY(SELECT CAST(a.attname AS text) FROM unnest(o.{}) WITH ORDINALITY AS u (number, place) "
    "JOIN pg_attribute AS a ON a.attrelid = o.{} AND a.attnum = u.number ORDER BY u.place)"
)
# The kind "n" is NOT NULL, which the column says. What has a parent stands for that in a partition.
_CONSTRAINTS = f"""
    SELECT o.conrelid AS owner, CAST(o.conname AS text) AS name, CAST(o.contype AS text) AS kind,
        pg_get_constraintdef(o.oid) AS definition, {_NAMES.format("conkey", "conrelid")} AS columns,
        o.condeferrable AS deferrable, o.condeferred AS deferred, o.convalidated AS valid,
        CAST(o.confupdtype AS text) AS on_update, CAST(o.confdeltype AS text) AS on_delete,
        CAST(o.confmatchtype AS text) AS match, CAST(CAST(o.confrelid AS regclass) AS text) AS target,
        {_NAMES.format("confkey", "confrelid")} AS target_columns,
        obj_description(o.oid, 'pg_constraint') AS comment, o.conislocal AS is_local
    FROM pg_constraint AS o JOIN pg_class AS c ON c.oid = o.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE CAST(n.nspname AS text) IN :places AND c.relkind IN ('r', 'p') AND o.conparentid = 0
        AND o.contype IN ('p', 'u', 'f', 'c', 'x')
    ORDER BY o.conrelid, o.conname
"""
_INDEXES = """
    SELECT x.indrelid AS owner, CAST(i.relname AS text) AS name, x.indisunique AS is_unique,
        CAST(m.amname AS text) AS method, pg_get_indexdef(x.indexrelid) AS definition,
        CAST(x.indkey AS text) AS keys, x.indnkeyatts AS key_count, x.indisvalid AS valid, i.relispartition AS of_parent
    FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS c ON c.oid = x.indrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_am AS m ON m.oid = i.relam
    WHERE CAST(n.nspname AS text) IN :places AND c.relkind IN ('r', 'p') AND NOT EXISTS (
        SELECT 1 FROM pg_constraint AS o WHERE o.conindid = x.indexrelid AND o.contype IN ('p', 'u', 'x'))
    ORDER BY x.indrelid, i.relname
"""
_SEQUENCES = f"""
    SELECT CAST(n.nspname AS text) AS place, CAST(c.relname AS text) AS name,
        format_type(q.seqtypid, NULL) AS type, q.seqstart AS start, q.seqincrement AS increment, q.seqmin AS minimum,
        q.seqmax AS maximum, q.seqcache AS cache, q.seqcycle AS cycle, CAST(d.deptype AS text) AS bond,
        d.refobjid AS owner, d.refobjsubid AS position, EXISTS (
            SELECT 1 FROM pg_attrdef AS f JOIN pg_depend AS g ON g.classid = 'pg_attrdef'::regclass AND g.objid = f.oid
            WHERE g.refobjid = c.oid AND f.adrelid = d.refobjid AND f.adnum = d.refobjsubid) AS is_default
    FROM pg_sequence AS q JOIN pg_class AS c ON c.oid = q.seqrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
        AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
    WHERE CAST(n.nspname AS text) IN :places AND NOT {_OF_EXTENSION.format("pg_class", "c.oid")}
    ORDER BY c.oid
"""
_TYPES = f"""
    SELECT CAST(n.nspname AS text) AS place, CAST(t.typname AS text) AS name, CAST(t.typtype AS text) AS kind,
        ARRAY(SELECT CAST(l.enumlabel AS text) FROM pg_enum AS l WHERE l.enumtypid = t.oid
            ORDER BY l.enumsortorder) AS labels,
        format_type(t.typbasetype, t.typtypmod) AS base, t.typnotnull AS not_null,
        pg_get_expr(t.typdefaultbin, CAST(0 AS oid)) AS expression,
        CASE WHEN t.typcollation <> b.typcollation THEN quote_ident(l.collname) END AS collation,
        ARRAY(SELECT 'CONSTRAINT ' || quote_ident(o.conname) || ' ' || pg_get_constraintdef(o.oid)
            FROM pg_constraint AS o WHERE o.contypid = t.oid AND o.contype = 'c' ORDER BY 1) AS named_checks,
        ARRAY(SELECT pg_get_constraintdef(o.oid) FROM pg_constraint AS o WHERE o.contypid = t.oid AND o.contype = 'c'
            ORDER BY 1) AS checks
    FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace LEFT JOIN pg_type AS b ON b.oid = t.typbasetype
    LEFT JOIN pg_collation AS l ON l.oid = t.typcollation
    WHERE CAST(n.nspname AS text) IN :places AND t.typtype IN ('e', 'd')
        AND NOT {_OF_EXTENSION.format("pg_type", "t.oid")}
    ORDER BY t.oid
"""
#: Which versions the rows of the catalogue have: another sum, and somebody has changed something meanwhile.
_VERSIONS = " UNION ALL ".join(
    f"SELECT count(*), sum(CAST(CAST(x.xmin AS text) AS bigint)) FROM {source}"
    for source in (
        "pg_class AS x WHERE x.relnamespace IN (SELECT oid FROM n)",
        "pg_type AS x WHERE x.typnamespace IN (SELECT oid FROM n)",
        "pg_constraint AS x WHERE x.connamespace IN (SELECT oid FROM n)",
        "pg_attribute AS x JOIN pg_class AS c ON c.oid = x.attrelid WHERE c.relnamespace IN (SELECT oid FROM n)",
        "pg_attrdef AS x JOIN pg_class AS c ON c.oid = x.adrelid WHERE c.relnamespace IN (SELECT oid FROM n)",
        "pg_enum AS x JOIN pg_type AS t ON t.oid = x.enumtypid WHERE t.typnamespace IN (SELECT oid FROM n)",
    )
)
_VERSIONS = _VERSIONS.replace("FROM n)", "FROM pg_namespace WHERE CAST(nspname AS text) IN :places)")
#: How often to read again what others have changed meanwhile.
_READINGS = 10


@dataclass(frozen=True)
class Places:
    """Where the schemas of the models are.

    :ivar current: where something is made that names no schema; ``None`` where no schema of the search path exists.
    :ivar path: the schemas of the search path, in order.
    :ivar of: what each schema of the models is called on the server; the usual one, ``None``, may be several.
    """

    current: str | None
    path: Sequence[str]
    of: Mapping[str | None, Sequence[str]]

    @property
    def all(self) -> list[str]:
        """All of them."""
        return [place for places in self.of.values() for place in places]

    def schema_of(self, place: str) -> str | None:
        """By which name the models know a schema."""
        return next(schema for schema, places in self.of.items() if place in places)


def places_of(connection: sa.Connection, schemas: Collection[str | None]) -> Places:
    """Where schemas of the models are, by the search path and the engine's ``schema_translate_map``."""
    query = sa.text("SELECT CAST(current_schemas(false) AS text[])")
    path = [str(name) for name in connection.execute(query).scalar_one()]
    usual = translated(connection, None)
    if usual is not None:
        path = [usual, *(name for name in path if name != usual)]
    current = path[0] if path else None
    of: dict[str | None, list[str]] = {}
    for schema in schemas:
        place = translated(connection, schema)
        # A schema that is named although things are made there anyway is the usual one.
        if schema is not None and place is not None and place != current and [place] not in of.values():
            of[schema] = [place]
    taken = [place for places in of.values() for place in places]
    visible = path[:1] if usual is not None else path
    return Places(current, path, {None: [name for name in visible if name not in taken], **of})


def set_path(connection: sa.Connection, names: Iterable[str]) -> None:
    """Look in these schemas for what names none, until the transaction ends."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    query = sa.text("SELECT set_config('search_path', :path, true)")
    connection.execute(query, {"path": ", ".join(map(quote, names))})


@dataclass(frozen=True)
class Rows:
    """What the catalogue says, those of a table by its number."""

    tables: list[sa.Row[Any]]
    columns: Mapping[int, list[sa.Row[Any]]]
    constraints: Mapping[int, list[sa.Row[Any]]]
    indexes: Mapping[int, list[sa.Row[Any]]]
    sequences: list[sa.Row[Any]]
    types: list[sa.Row[Any]]
    #: What sequences belong to, by table and position of the column.
    owned: Mapping[tuple[int, int], sa.Row[Any]] = field(default_factory=dict)


def read(connection: sa.Connection, places: Collection[str]) -> Rows:
    """All that is compared of some schemas; it is read again where somebody has changed it meanwhile."""

    def rows(query: str) -> list[sa.Row[Any]]:
        text = sa.text(query).bindparams(sa.bindparam("places", expanding=True, type_=sa.Text()))
        return [*connection.execute(text, {"places": [*places]}).all()]

    before = rows(_VERSIONS)
    for _ in range(_READINGS):
        found = _read(rows)
        after = rows(_VERSIONS)
        if after == before:
            break
        before = after
    return found


def _read(rows: Callable[[str], list[sa.Row[Any]]]) -> Rows:
    def by_owner(query: str) -> dict[int, list[sa.Row[Any]]]:
        found: dict[int, list[sa.Row[Any]]] = {}
        for row in rows(query):
            if getattr(row, "definition", "") is not None:  # of what was dropped just now
                found.setdefault(row.owner, []).append(row)
        return found

    sequences = rows(_SEQUENCES)
    return Rows(
        rows(_TABLES),
        by_owner(_COLUMNS),
        by_owner(_CONSTRAINTS),
        by_owner(_INDEXES),
        sequences,
        rows(_TYPES),
        {(row.owner, row.position): row for row in sequences if row.bond == "i" or row.is_default},
    )


def sequence_options(row: Any) -> list[str]:
    """What is not usual of a sequence, as SQL."""
    most = {"smallint": 2**15, "integer": 2**31}.get(row.type, 2**63)
    low, high = (1, most - 1) if row.increment > 0 else (-most, -1)
    usual: Iterable[tuple[str, int, int]] = (
        ("START WITH", row.start, row.minimum if row.increment > 0 else row.maximum),
        ("INCREMENT BY", row.increment, 1),
        ("MINVALUE", row.minimum, low),
        ("MAXVALUE", row.maximum, high),
        ("CACHE", row.cache, 1),
    )
    return [f"{word} {value}" for word, value, other in usual if value != other] + ["CYCLE"] * row.cycle
