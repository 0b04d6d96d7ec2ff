"""What a SQLite database has, described to be compared; see :mod:`~aurum_harmony.db_smart.schema.described`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from ...errors import DbSmartError
from ...schema.described import Description, Part, TableDescription, Wanted
from ...schema.scratch import Scratch
from ...store.database import Database
from .copying import copy_schema, in_memory
from .table_sql import TableSql, listed, normalize_name, spelled_alike

_TABLES = "SELECT name, sql FROM {master} WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY rowid"
#: Views and virtual tables.
_OTHERS = "SELECT name FROM {}.sqlite_master WHERE type = 'view' OR (type = 'table' AND rootpage = 0)"
#: The tables in which a virtual table keeps what it has.
_SHADOWS = "SELECT name FROM pragma_table_list WHERE schema = :schema AND type = 'shadow'"
_COLUMNS = (
    'SELECT m.name, c.name, c.type, c."notnull", c.dflt_value, c.pk, c.hidden FROM {master} AS m, '
    "pragma_table_xinfo(m.name, :schema) AS c WHERE m.type = 'table' ORDER BY m.name, c.cid"
)
_KEYS = (
    'SELECT m.name, f.id, f."from", f."table", f."to", f.on_update, f.on_delete FROM {master} AS m, '
    "pragma_foreign_key_list(m.name, :schema) AS f WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq"
)
_INDEXES = (
    'SELECT m.name, i.name, i."unique", i.origin, x.name, x."desc", x.coll, d.sql FROM {master} AS m, '
    "pragma_index_list(m.name, :schema) AS i, pragma_index_xinfo(i.name, :schema) AS x "
    "LEFT JOIN {master} AS d ON d.type = 'index' AND d.name = i.name "
    "WHERE m.type = 'table' AND x.key ORDER BY m.name, i.name, x.seqno"
)
#: The words before the columns of an index.
_INDEX_HEAD = re.compile(r"^create (?:unique )?index (?:if not exists )?.*? on (?:\"[^\"]*\"|\S+) \( ", re.DOTALL)


def describe(connection: sa.Connection, schemas: Collection[str | None], wanted: Wanted) -> Description:
    """Describe the tables of a database; what is virtual is left out.

    :param schemas: where to look, ``None`` for the usual place; any other is an attached database.
    """
    found = Description()
    for schema in schemas:
        for table in _tables(connection, schema, wanted):
            found.tables[schema, normalize_name(table.name)] = table
        place = connection.dialect.identifier_preparer.quote_identifier(schema or "main")
        for name in connection.exec_driver_sql(_OTHERS.format(place)).scalars():
            found.others.add((schema, normalize_name(name)))
    return found


class SqliteScratch(Scratch):
    """A database in memory."""

    @classmethod
    @contextmanager
    def open(cls, database: Database, schemas: Collection[str | None]) -> Iterator[SqliteScratch]:
        """See :meth:`~.schema.scratch.Scratch.open`."""
        with in_memory() as engine, engine.connect() as connection:
            for schema in filter(None, schemas):
                quoted = connection.dialect.identifier_preparer.quote_identifier(schema)
                connection.exec_driver_sql(f"ATTACH ':memory:' AS {quoted}")
            yield cls(database, connection, schemas)

    def make(self, metadata: sa.MetaData) -> None:
        """See :meth:`~.schema.scratch.Scratch.make`."""
        metadata.create_all(self.connection, checkfirst=False)

    def copy(self, source: sa.Connection) -> None:
        """See :meth:`~.schema.scratch.Scratch.copy`."""
        copy_schema(source, self.connection, [schema or "main" for schema in self.schemas])

    def describe(self, wanted: Wanted) -> Description:
        """See :meth:`~.schema.scratch.Scratch.describe`."""
        return describe(self.connection, self.schemas, wanted)


def _tables(connection: sa.Connection, schema: str | None, wanted: Wanted) -> Iterator[TableDescription]:
    place = schema or "main"
    master = f"{connection.dialect.identifier_preparer.quote_identifier(place)}.sqlite_master"

    def rows(query: str) -> dict[str, list[Any]]:
        by_table: dict[str, list[Any]] = {}
        for table, *row in connection.execute(sa.text(query.format(master=master)), {"schema": place}):
            by_table.setdefault(table, []).append(row)
        return by_table

    columns, keys, indexes = rows(_COLUMNS), rows(_KEYS), rows(_INDEXES)
    primary_keys = {
        normalize_name(name): [column[0] for column in sorted(found, key=_place) if _place(column)]
        for name, found in columns.items()
    }
    shadows = set()
    if (connection.dialect.server_version_info or ()) >= (3, 37):
        shadows = set(connection.execute(sa.text(_SHADOWS), {"schema": place}).scalars())
    for name, sql in connection.execute(sa.text(_TABLES.format(master=master))).all():
        if name in shadows or not wanted(schema, name):
            continue
        try:
            definition = TableSql(sql)
        except DbSmartError:  # a virtual table
            continue
        pieces = definition.pieces
        table = TableDescription(name, schema, facets={"options": spelled_alike(definition.options) or None})
        primary = primary_keys[normalize_name(name)]
        for column, type_, not_null, default, place_in_key, hidden in columns[name]:
            said = {kind: text for owner, kind, _, text in pieces if owner == column}
            rowid = bool(place_in_key) and len(primary) == 1 and type_.upper() == "INTEGER"
            facets = {
                "type": " ".join(type_.upper().split()),
                "nullable": not (not_null or rowid),
                "default": None if default is None or default.upper() == "NULL" else spelled_alike(default),
                "collation": _collation(said.get("collate")),
                "computed": spelled_alike(said["generated"]) if hidden > 1 and "generated" in said else None,
                "autoincrement": "AUTOINCREMENT" in said.get("primary", "").upper(),
            }
            # A rowid has 64 bits; and BIGINT would be another column, which does not number the rows.
            holds = "BIGINT" if rowid else None
            table.columns[normalize_name(column)] = Part("column", column, facets, holds=holds)
        names = {kind: found for _, kind, found, _ in pieces}
        if primary:
            table.parts.append(
                Part("primary key", names.get("primary"), {"columns": tuple(map(normalize_name, primary))})
            )
        table.parts += _constraints(pieces)
        table.parts += _keys(keys.get(name, []), pieces, primary_keys)
        table.parts += _indexes(indexes.get(name, []), pieces)
        yield table


def _place(row: Any) -> int:
    return int(row[4])


def _collation(text: str | None) -> str | None:
    """The collation that a column names; the usual one is none."""
    if text is None:
        return None
    name = spelled_alike(text).split()[-1]
    return None if name == "binary" else name


def _constraints(pieces: list[tuple[str | None, str, str | None, str]]) -> Iterator[Part]:
    for _, kind, name, text in pieces:
        if kind == "check":
            inner = text[text.index("(") :] if name is None else text[text.upper().index("CHECK") + len("CHECK") :]
            yield Part("check", name, {"condition": spelled_alike(inner)})


def _keys(
    rows: list[Any], pieces: list[tuple[str | None, str, str | None, str]], primary_keys: dict[str, list[str]]
) -> Iterator[Part]:
    by_number: dict[int, list[Any]] = {}
    for number, *row in rows:
        by_number.setdefault(number, []).append(row)
    for found in by_number.values():
        columns = tuple(normalize_name(own) for own, *_ in found)
        _, target, _, on_update, on_delete = found[0]
        referred = [to for _, _, to, *_ in found]
        if None in referred:  # the primary key of the target
            referred = primary_keys.get(normalize_name(target), [])
        said = [(name, spelled_alike(text)) for text, name in _foreign(pieces, columns)]
        deferrable = next((text for _, text in said if "deferrable" in text), "")
        facets = {
            "columns": columns,
            "target": normalize_name(target),
            "target columns": tuple(map(normalize_name, referred)),
            "on update": None if on_update == "NO ACTION" else on_update,
            "on delete": None if on_delete == "NO ACTION" else on_delete,
            "deferrable": None
            if not deferrable or "not deferrable" in deferrable
            else "initially deferred"
            if "initially deferred" in deferrable
            else "initially immediate",
        }
        yield Part("foreign key", said[0][0] if said else None, facets)


def _foreign(
    pieces: list[tuple[str | None, str, str | None, str]], columns: tuple[str, ...]
) -> Iterator[tuple[str, str | None]]:
    """Text and name of the foreign keys on these columns; one of a column has its ``DEFERRABLE`` behind it."""
    for index, (column, kind, name, text) in enumerate(pieces):
        if kind != "foreign":
            continue
        if column is None:
            own = listed(text)
        else:
            own = (normalize_name(column),)
            text += "".join(
                f" {more}" for owner, kind, _, more in pieces[index + 1 : index + 2] if kind == "deferrable"
            )
        if own == columns:
            yield text, name


def _indexes(rows: list[Any], pieces: list[tuple[str | None, str, str | None, str]]) -> Iterator[Part]:
    by_name: dict[str, list[Any]] = {}
    for name, *row in rows:
        by_name.setdefault(name, []).append(row)
    for name, found in by_name.items():
        unique, origin, _, _, _, sql = found[0]
        columns = tuple(None if column is None else normalize_name(column) for _, _, column, *_ in found)
        if origin == "pk":
            continue
        if origin == "u":
            facets: dict[str, Any] = {"columns": columns}
            yield Part("unique", _unique_name(pieces, columns), facets)
            continue
        text = spelled_alike(sql)
        head = _INDEX_HEAD.match(text)
        body = text[head.end() - 2 :] if head else text
        _, _, where = body.partition(" ) where ")
        plain = all(column is not None for column in columns) and not any(desc for _, _, _, desc, *_ in found)
        collated = any(collation != "BINARY" for *_, collation, _ in found)
        facets = {
            "columns": columns if plain and not collated else body.removesuffix(f" where {where}"),
            "unique": bool(unique),
            "where": where or None,
        }
        yield Part("index", name, facets)


def _unique_name(pieces: list[tuple[str | None, str, str | None, str]], columns: tuple[str | None, ...]) -> str | None:
    for column, kind, name, text in pieces:
        if kind != "unique" or name is None:
            continue
        own = listed(text) if column is None else (normalize_name(column),)
        if own == columns:
            return name
    return None


SCRATCH = SqliteScratch
