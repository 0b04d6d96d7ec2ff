"""The schema of a PostgreSQL database, made once more in other schemas.

Not by ``CREATE TABLE … (LIKE …)``: that keeps a lock on the table until the end, and gives the indexes other names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import sqlalchemy as sa

from .described_rows import Rows, read, sequence_options

_MORE = {
    "functions": (
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace "
        "WHERE CAST(n.nspname AS text) IN :places AND p.prokind IN ('f', 'p') AND NOT EXISTS (SELECT 1 FROM pg_depend "
        "AS e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') ORDER BY p.oid"
    ),
    "views": (
        "SELECT 'CREATE ' || CASE c.relkind WHEN 'm' THEN 'MATERIALIZED ' ELSE '' END || 'VIEW ' || "
        "quote_ident(n.nspname) || '.' || quote_ident(c.relname) || ' AS ' || rtrim(pg_get_viewdef(c.oid), ';') || "
        "CASE c.relkind WHEN 'm' THEN ' WITH NO DATA' ELSE '' END "
        "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE CAST(n.nspname AS text) IN :places "
        "AND c.relkind IN ('v', 'm') AND NOT EXISTS (SELECT 1 FROM pg_depend AS e WHERE e.classid = "
        "'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e') ORDER BY c.oid"
    ),
    "triggers": (
        "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid "
        "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE CAST(n.nspname AS text) IN :places "
        "AND NOT t.tgisinternal AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY t.oid"
    ),
}


def copy_statements(
    source: sa.Connection, places: Collection[str], elsewhere: Callable[[str], str]
) -> list[tuple[list[str], bool]]:
    """The statements that make what some schemas have, in groups, and whether each is needed for a comparison.

    The first group has the enumerations.

    :param elsewhere: what SQL is to be there, where it names a schema.
    """
    more: dict[str, list[str]] = {}
    for what, query in _MORE.items():
        text = sa.text(query).bindparams(sa.bindparam("places", expanding=True, type_=sa.Text()))
        more[what] = [elsewhere(sql) for sql in source.scalars(text, {"places": [*places]}).all() if sql]
    rows = read(source, places)

    def quote(name: str) -> str:  # that of the dialect doubles a percent sign, which no parameters follow here
        return f'"{name.replace(chr(34), chr(34) * 2)}"'

    def name(row: Any) -> str:
        return f"{quote(row.place)}.{quote(row.name)}"

    def moved(found: Iterator[str]) -> list[str]:
        return [elsewhere(sql) for sql in found]

    return [
        (moved(_enumerations(rows, name)), True),
        (moved(_domains_and_sequences(rows, name)), True),
        (["SET LOCAL check_function_bodies = off", *more["functions"]], False),
        (moved(_tables(rows, name, quote)), True),
        (moved(_constraints(rows, name, quote, foreign=False)), True),
        (moved(_constraints(rows, name, quote, foreign=True)), True),
        (moved(_comments(rows, name, quote)), True),
        (more["functions"], False),
        (more["views"], False),
        (more["triggers"], False),
    ]


def _enumerations(rows: Rows, name: Callable[[Any], str]) -> Iterator[str]:
    for row in rows.types:
        if row.kind == "e":
            yield f"CREATE TYPE {name(row)} AS ENUM ({', '.join(map(_text, row.labels))})"


def _domains_and_sequences(rows: Rows, name: Callable[[Any], str]) -> Iterator[str]:
    for row in rows.types:
        if row.kind == "d":
            parts = [f"CREATE DOMAIN {name(row)} AS {row.base}"]
            parts += [f"COLLATE {row.collation}"] * (row.collation is not None) + row.named_checks
            parts += ["NOT NULL"] * row.not_null + [f"DEFAULT {row.expression}"] * (row.expression is not None)
            yield " ".join(parts)
    for row in rows.sequences:
        if row.bond != "i":
            yield " ".join([f"CREATE SEQUENCE {name(row)} AS {row.type}", *sequence_options(row)])


def _tables(rows: Rows, name: Callable[[Any], str], quote: Callable[[str], str]) -> Iterator[str]:
    tables = [row for row in rows.tables if row.kind in "rp" and not row.of_extension]
    for row in tables:
        end = f" PARTITION BY {row.partitioned}" if row.partitioned else ""
        end += f" WITH ({', '.join(row.options)})" if row.options else ""
        head = f"CREATE {'UNLOGGED ' * row.unlogged}TABLE {name(row)}"
        if row.is_partition:
            yield f"{head} PARTITION OF {row.parents[0]} {row.bound}{end}"
            continue
        columns = [_column(column, rows) for column in rows.columns.get(row.number, []) if column.is_local]
        inherits = f" INHERITS ({', '.join(row.parents)})" if row.parents else ""
        yield f"{head} ({', '.join(columns)}){inherits}{end}"
    by_number = {row.number: row for row in tables}
    for row in rows.sequences:
        if row.bond == "a" and row.owner in by_number:
            column = next(one for one in rows.columns[row.owner] if one.position == row.position)
            yield f"ALTER SEQUENCE {name(row)} OWNED BY {name(by_number[row.owner])}.{quote(column.name)}"


def _column(row: Any, rows: Rows) -> str:
    parts = [row.quoted, row.type]
    parts += [f"COLLATE {row.collation}"] if row.collation else []
    if row.identity:
        sequence = rows.owned.get((row.owner, row.position))
        options = " ".join([] if sequence is None else sequence_options(sequence))
        parts.append(f"GENERATED {'ALWAYS' if row.identity == 'a' else 'BY DEFAULT'} AS IDENTITY")
        parts += [f"({options})"] if options else []
    elif row.generated:
        parts.append(f"GENERATED ALWAYS AS ({row.expression}) {'STORED' if row.generated == 's' else 'VIRTUAL'}")
    elif row.expression is not None:
        parts.append(f"DEFAULT {row.expression}")
    return " ".join([*parts, *["NOT NULL"] * row.not_null])


def _constraints(
    rows: Rows, name: Callable[[Any], str], quote: Callable[[str], str], *, foreign: bool
) -> Iterator[str]:
    for table in rows.tables:
        for row in rows.constraints.get(table.number, []):
            if (row.kind == "f") == foreign and row.is_local and not table.of_extension:
                yield f"ALTER TABLE {name(table)} ADD CONSTRAINT {quote(row.name)} {row.definition}"
        if not foreign and not table.of_extension:
            yield from (row.definition for row in rows.indexes.get(table.number, []) if not row.of_parent)


def _comments(rows: Rows, name: Callable[[Any], str], quote: Callable[[str], str]) -> Iterator[str]:
    for table in rows.tables:
        if table.kind not in "rp" or table.of_extension:
            continue
        if table.comment is not None:
            yield f"COMMENT ON TABLE {name(table)} IS {_text(table.comment)}"
        for row in rows.columns.get(table.number, []):
            if row.comment is not None:
                yield f"COMMENT ON COLUMN {name(table)}.{row.quoted} IS {_text(row.comment)}"
        for row in rows.constraints.get(table.number, []):
            if row.comment is not None:
                yield f"COMMENT ON CONSTRAINT {quote(row.name)} ON {name(table)} IS {_text(row.comment)}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
