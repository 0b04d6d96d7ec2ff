"""What a MariaDB or MySQL database has, described to be compared; see :mod:`~.schema.described`.

All tables of a database are asked for at once, by ``=``: with any other condition the server opens the tables of all
databases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from ...schema.described import Description, Part, TableDescription, Thing, Wanted
from ...schema.scratch import NoScratch, Scratch
from ...session.journal import reads
from ...store.database import Database, translated
from . import scratch
from .scratch import no_parameters

#: Of which database each is, or refers to another; ``*`` because servers do not have the same columns.
_TABLES = (
    "SELECT TABLE_NAME, TABLE_TYPE, ENGINE, TABLE_COLLATION, TABLE_COMMENT FROM information_schema.TABLES "
    "WHERE TABLE_SCHEMA = :schema ORDER BY TABLE_NAME"
)
_COLUMNS = "SELECT * FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = :schema ORDER BY TABLE_NAME, ORDINAL_POSITION"
_INDEXES = (
    "SELECT * FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = :schema "
    "ORDER BY TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX"
)
_KEY_COLUMNS = (
    "SELECT TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME, "
    "REFERENCED_COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE WHERE TABLE_SCHEMA = :schema "
    "AND REFERENCED_TABLE_NAME IS NOT NULL ORDER BY TABLE_NAME, CONSTRAINT_NAME, ORDINAL_POSITION"
)
_KEYS = (
    "SELECT TABLE_NAME, CONSTRAINT_NAME, UPDATE_RULE, DELETE_RULE FROM information_schema.REFERENTIAL_CONSTRAINTS "
    "WHERE CONSTRAINT_SCHEMA = :schema"
)
_CHECKS = (
    "SELECT * FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = :schema ORDER BY CONSTRAINT_NAME"
)
#: MySQL does not say in ``CHECK_CONSTRAINTS`` whose they are.
_CHECKED = (
    "SELECT CONSTRAINT_NAME, TABLE_NAME FROM information_schema.TABLE_CONSTRAINTS "
    "WHERE TABLE_SCHEMA = :schema AND CONSTRAINT_TYPE = 'CHECK'"
)
#: How many digits are shown of an integer, which changes nothing; but ``TINYINT(1)`` is a boolean.
_WIDTH = re.compile(r"^(tinyint(?!\(1\))|smallint|mediumint|int|bigint|year)\(\d+\)(?!.*zerofill)")
_QUOTED_OR_NOT = re.compile(r"'(?:[^'\\]|''|\\.)*'|[^']+")
_ON_UPDATE = re.compile(r"on update (\S+)", re.IGNORECASE)
_IS_JSON = re.compile(r"json_valid\([`\"](.*)[`\"]\)")
#: A database before the name of what is in it.
_QUALIFIER = re.compile(r"[`\"]((?:[^`\"]|``)+)[`\"]\.(?=[`\"])")
#: As it is when nothing is said of it.
_NO_ACTION = ("NO ACTION", "RESTRICT")

_Rows = dict[str, list[Mapping[str, Any]]]


def describe(connection: sa.Connection, schemas: Collection[str | None], wanted: Wanted) -> Description:
    """Describe the tables and sequences of a database.

    :param schemas: where to look, ``None`` for the usual place; any other is a database of the server.
    """
    places = places_of(connection, schemas)
    return _Reader(connection, places, wanted).read(places)


def places_of(connection: sa.Connection, schemas: Collection[str | None]) -> dict[str, str | None]:
    """The databases of the server that schemas stand for, each with the first schema that stands for it."""
    usual = connection.exec_driver_sql("SELECT DATABASE()").scalar()
    fold = scratch.folding(connection)
    found: dict[str, str | None] = {}
    for schema in schemas:
        name = translated(connection, schema) or usual
        if name is not None:
            found.setdefault(fold(name), schema)
    return found


class MariadbScratch(Scratch):
    """Databases of the server, one for each of ours, with names that nobody else gives.

    What a process that was killed has left of them is removed before new ones are made.
    """

    #: The scratch databases by the names of those that they stand for, and the schemas by the same.
    _places: dict[str, str]
    _schemas_of: dict[str, str | None]

    @classmethod
    @contextmanager
    def open(cls, database: Database, schemas: Collection[str | None]) -> Iterator[MariadbScratch]:
        """See :meth:`~.schema.scratch.Scratch.open`."""
        with database.connect(autocommit=True) as connection:
            connection.detach()  # a pool shall not get it back: it is in another database then
            schemas_of = places_of(connection, schemas)
            with scratch.made(database, connection, schemas_of) as places:
                opened = cls(database, connection, schemas)
                opened._places, opened._schemas_of = places, schemas_of
                yield opened

    def make(self, metadata: sa.MetaData) -> None:
        """See :meth:`~.schema.scratch.Scratch.make`.

        :raises NoScratch: the role may make a database, but not all that is in it.
        """
        fold = scratch.folding(self.connection)
        usual = next((place for place, schema in self._schemas_of.items() if schema is None), "")
        places = {one: self._places[fold(translated(self.connection, one) or usual)] for one in self.schemas}
        before = self.connection.get_execution_options().get("schema_translate_map")
        self.connection.execution_options(schema_translate_map=places)
        try:
            with scratch.listeners_within(self.connection, self._places), scratch.indexes_within(self.connection):
                metadata.create_all(self.connection, checkfirst=False)
        except sa.exc.DBAPIError as error:
            if self.database.facts.says(error, "denied"):
                raise NoScratch(scratch.lacking(self.connection, self.database, error)) from error
            raise
        finally:
            self.connection.execution_options(schema_translate_map=before)

    def copy(self, source: sa.Connection) -> None:
        """See :meth:`~.schema.scratch.Scratch.copy`."""
        scratch.copy(source, self.connection, self._places)

    def run(self, statement: str) -> None:
        """See :meth:`~.schema.scratch.Scratch.run`; what changes rows alone is not sent.

        :raises DbSmartError: it might reach what is not in the place.
        """
        sent = scratch.confined(self.connection, statement, self._places)
        if sent is not None:
            self.connection.exec_driver_sql(sent, execution_options=no_parameters)

    @contextmanager
    def confining(self) -> Iterator[None]:
        """See :meth:`~.schema.scratch.Scratch.confining`.

        :raises DbSmartError: something might reach what is not in the place.
        """
        asking = False

        def send(_: Any, __: Any, statement: str, parameters: Any, *more: Any) -> tuple[str, Any]:
            nonlocal asking
            if asking or reads(statement):
                return statement, parameters
            asking = True
            try:
                return scratch.within(self.connection, statement, self._places), parameters
            finally:
                asking = False

        sa.event.listen(self.connection, "before_cursor_execute", send, retval=True)
        try:
            yield
        finally:
            sa.event.remove(self.connection, "before_cursor_execute", send)

    def describe(self, wanted: Wanted) -> Description:
        """See :meth:`~.schema.scratch.Scratch.describe`."""
        places = {self._places[place]: schema for place, schema in self._schemas_of.items()}
        others: dict[str, str | None] = {made: name for name, made in self._places.items()}
        return _Reader(self.connection, {**others, **places}, wanted).read(places)


class _Reader:
    """Reads databases of a server.

    :param names: of databases, what people call them: a schema, ``None`` for the usual one.
    """

    def __init__(self, connection: sa.Connection, names: Mapping[str, str | None], wanted: Wanted) -> None:
        self._connection = connection
        self._names = names
        self._wanted = wanted
        self._mariadb = bool(getattr(connection.dialect, "is_mariadb", True))
        self._fold = scratch.folding(connection)

    def read(self, places: Mapping[str, str | None]) -> Description:
        """Describe databases, each as a schema."""
        found = Description()
        for place, schema in places.items():
            sequences: list[str] = []
            tables = self._rows(_TABLES, place)
            for table in self._tables(place, schema, tables, sequences.append):
                found.tables[schema, self._fold(table.name)] = table
            views = (name for name, (row,) in tables.items() if row["TABLE_TYPE"].endswith("VIEW"))
            found.others |= {(schema, self._fold(name)) for name in views}
            for thing in self._sequences(place, schema, sequences):
                found.things["sequence", schema, self._fold(thing.name)] = thing
        return found

    def _rows(self, query: str, place: str) -> _Rows:
        by_table: _Rows = {}
        for row in self._connection.execute(sa.text(query), {"schema": place}).mappings():
            by_table.setdefault(row.get("TABLE_NAME") or "", []).append({**row})
        return by_table

    def _tables(
        self, place: str, schema: str | None, tables: _Rows, sequence: Callable[[str], None]
    ) -> Iterator[TableDescription]:
        columns, indexes = self._rows(_COLUMNS, place), self._rows(_INDEXES, place)
        key_columns, keys = self._rows(_KEY_COLUMNS, place), self._rows(_KEYS, place)
        checks = self._checks(place)
        for name, (row,) in tables.items():
            if not self._wanted(schema, name):
                continue
            if row["TABLE_TYPE"] == "SEQUENCE":
                sequence(name)
            if row["TABLE_TYPE"] not in ("BASE TABLE", "SYSTEM VERSIONED"):
                continue
            facets = {
                "engine": row["ENGINE"],
                "collation": row["TABLE_COLLATION"],
                "comment": row["TABLE_COMMENT"] or None,
                "system versioned": row["TABLE_TYPE"] == "SYSTEM VERSIONED",
            }
            table = TableDescription(name, schema, facets=facets)
            long_texts = {
                one["COLUMN_NAME"].lower() for one in columns.get(name, []) if one["COLUMN_TYPE"] == "longtext"
            }
            found, json = self._split(checks.get(name, []), long_texts)
            for column in columns.get(name, []):
                part = self._column(column, row["TABLE_COLLATION"], json)
                table.columns[str(part.name).lower()] = part
            foreign = list(self._keys(key_columns.get(name, []), keys.get(name, [])))
            table.parts += self._indexes(indexes.get(name, []), foreign)
            table.parts += found
            table.parts += foreign
            yield table

    def _column(self, row: Mapping[str, Any], collation: str | None, json: set[str]) -> Part:
        name, extra, kind = row["COLUMN_NAME"], row["EXTRA"] or "", _WIDTH.sub(r"\1", row["COLUMN_TYPE"])
        is_json = name.lower() in json
        on_update = _ON_UPDATE.search(extra)
        computed = row["GENERATION_EXPRESSION"]
        stored = "STORED" in extra.upper() or "PERSISTENT" in extra.upper()
        facets = {
            "type": "JSON" if is_json else _QUOTED_OR_NOT.sub(lambda one: _upper(one[0]), kind),
            "nullable": row["IS_NULLABLE"] == "YES",
            "default": self._default(row, extra),
            "on update": on_update[1] if on_update else None,
            "collation": None if is_json or row["COLLATION_NAME"] == collation else row["COLLATION_NAME"],
            "computed": f"{self._expression(computed)} ({'stored' if stored else 'virtual'})" if computed else None,
            "autoincrement": "auto_increment" in extra.lower(),
            "invisible": "INVISIBLE" in extra.upper(),
            "comment": row["COLUMN_COMMENT"] or None,
        }
        return Part("column", name, facets)

    def _default(self, row: Mapping[str, Any], extra: str) -> str | None:
        text: str | None = row["COLUMN_DEFAULT"]
        if text is None or (self._mariadb and text == "NULL"):
            return None
        if self._mariadb or "DEFAULT_GENERATED" in extra.upper() or row["CHARACTER_SET_NAME"] is None:
            return self._expression(text)
        quoted = text.replace("'", "''")
        return f"'{quoted}'"

    def _expression(self, text: str) -> str:
        """An expression without the names of our databases, which are other ones in a scratch place."""

        def plain(found: re.Match[str]) -> str:
            name = self._names.get(self._fold(found[1]), found[1])
            return "" if name is None else f"{name}."

        return _QUALIFIER.sub(plain, text)

    def _checks(self, place: str) -> _Rows:
        found = self._rows(_CHECKS, place)
        if "" in found:
            owners = {
                row["CONSTRAINT_NAME"]: row["TABLE_NAME"] for row in sum(self._rows(_CHECKED, place).values(), [])
            }
            for row in found.pop(""):
                found.setdefault(owners.get(row["CONSTRAINT_NAME"], ""), []).append(row)
        return found

    def _split(self, rows: list[Mapping[str, Any]], long_texts: set[str]) -> tuple[list[Part], set[str]]:
        """The checks, and the long texts that are checked to hold JSON, which is what MariaDB makes of that type."""
        parts, json = [], set()
        for row in rows:
            condition = self._expression(row["CHECK_CLAUSE"])
            about_json = _IS_JSON.fullmatch(condition)
            if about_json and self._mariadb and about_json[1].lower() in long_texts:
                json.add(about_json[1].lower())
            else:
                name = None if row.get("LEVEL") == "Column" else row["CONSTRAINT_NAME"]
                parts.append(Part("check", name, {"condition": condition}))
        return parts, json

    def _keys(self, columns: list[Mapping[str, Any]], rules: list[Mapping[str, Any]]) -> Iterator[Part]:
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for row in columns:
            by_name.setdefault(row["CONSTRAINT_NAME"], []).append(row)
        rule_of = {row["CONSTRAINT_NAME"]: row for row in rules}
        for name, rows in by_name.items():
            rule = rule_of.get(name, {})
            place = self._fold(rows[0]["REFERENCED_TABLE_SCHEMA"])
            schema = self._names.get(place, place)
            target = self._fold(rows[0]["REFERENCED_TABLE_NAME"])
            facets = {
                "columns": tuple(row["COLUMN_NAME"].lower() for row in rows),
                "target": target if schema is None else f"{schema}.{target}",
                "target columns": tuple(row["REFERENCED_COLUMN_NAME"].lower() for row in rows),
                "on update": _action(rule.get("UPDATE_RULE")),
                "on delete": _action(rule.get("DELETE_RULE")),
            }
            yield Part("foreign key", name, facets)

    def _indexes(self, rows: list[Mapping[str, Any]], keys: list[Part]) -> Iterator[Part]:
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_name.setdefault(row["INDEX_NAME"], []).append(row)
        for name, found in by_name.items():
            columns = tuple(self._indexed(row) for row in found)
            if name == "PRIMARY":
                yield Part("primary key", None, {"columns": columns})
                continue
            kind = found[0]["INDEX_TYPE"]
            facets = {
                "columns": columns,
                "unique": not int(found[0]["NON_UNIQUE"]),
                "kind": None if kind == "BTREE" else kind,
                "ignored": found[0].get("IGNORED") == "YES" or found[0].get("IS_VISIBLE") == "NO",
                "comment": found[0]["INDEX_COMMENT"] or None,
            }
            implied = not facets["unique"] and any(
                key.facets["columns"] == columns and name in (key.name, found[0]["COLUMN_NAME"]) for key in keys
            )
            part = Part("index", name, facets, implied)
            # To the server a unique constraint is an index, and the other way round.
            yield Part("unique", name, {"columns": columns}) if part.content[0] == "unique" else part

    def _indexed(self, row: Mapping[str, Any]) -> str:
        """A column of an index, with its prefix and order; or an expression."""
        if row["COLUMN_NAME"] is None:
            return self._expression(str(row.get("EXPRESSION")))
        prefix = f"({row['SUB_PART']})" if row["SUB_PART"] is not None and row["INDEX_TYPE"] != "SPATIAL" else ""
        return f"{row['COLUMN_NAME'].lower()}{prefix}{' DESC' if row['COLLATION'] == 'D' else ''}"

    def _sequences(self, place: str, schema: str | None, names: list[str]) -> Iterator[Thing]:
        quote = self._connection.dialect.identifier_preparer.quote_identifier
        for name in names:
            row = (
                self._connection.exec_driver_sql(
                    f"SELECT * FROM {quote(place)}.{quote(name)}", execution_options=no_parameters
                )
                .mappings()
                .one()
            )
            facets = {
                "start": row["start_value"],
                "increment": row["increment"],
                "minimum": row["minimum_value"],
                "maximum": row["maximum_value"],
                "cycle": bool(row["cycle_option"]),
                "cache": row["cache_size"],
            }
            yield Thing("sequence", name, schema, facets)


def _upper(text: str) -> str:
    return text if text.startswith("'") else text.upper()


def _action(rule: str | None) -> str | None:
    return None if rule in _NO_ACTION else rule


SCRATCH = MariadbScratch
