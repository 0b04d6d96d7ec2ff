"""The weaker comparison, where there can be no scratch place: Alembic's, without what it is known to find in vain.

It compares what the models say with what the database shows, so that spellings differ that mean the same. What cannot
be told so is left out: it finds less than the comparison with a scratch place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ..schema.described import PartKind, Wanted
from ..session.sql import condition_text, default_text, type_text
from .differences import Difference

#: Names of one type.
_TYPES = {"bool": "tinyint", "boolean": "tinyint", "json": "longtext", "integer": "int", "numeric": "decimal"}
_TYPES |= {"double precision": "double", "real": "float", "character varying": "varchar", "dec": "decimal"}
_TYPES |= {"national varchar": "varchar", "national char": "char"}
#: Texts and bytes, of which the server takes that which a length fits into.
_SIZED = re.compile(r"(?:tiny|medium|long)?(text|blob)")
_COLLATION = re.compile(r" (?:character set \w+|collate \S+)")
_CAST = re.compile(r"::[\w ]+(?:\(\d+(?:,\d+)?\))?(?:\[\])?|^cast\((.*) as [^)]*\)$")
#: A default that SQLAlchemy finds on MariaDB: a number, a string, the time.
_SHOWN = re.compile(r"-?[\d.]+|'.*'|now|true|false", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NOW = re.compile(r"\b(?:now|current_timestamp|localtimestamp)(?:\(\d*\))?")
_TODAY = re.compile(r"\b(?:curdate\(\)|current_date(?:\(\))?)")
_NO_ACTION = (None, "NO ACTION", "RESTRICT")


def compare(connection: sa.Connection, metadata: sa.MetaData, wanted: Wanted) -> list[Difference]:
    """What the models and a database do not have alike, as far as Alembic tells.

    :param connection: leads to the database, which is only read.
    """

    def include(name: str | None, kind: str, parents: Mapping[str, Any]) -> bool:
        if kind == "schema":
            return name is None or any(table.schema == name for table in metadata.tables.values())
        return kind != "table" or wanted(parents["schema_name"], str(name))

    def include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
        return kind != "table" or wanted(item.schema, str(name))

    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_schemas": any(table.schema is not None for table in metadata.tables.values()),
        "include_name": include,
        "include_object": include_object,
    }
    context = MigrationContext.configure(connection, opts=options)
    changes: list[Any] = []
    for change in compare_metadata(context, metadata):
        changes += change if isinstance(change, list) else [change]
    found = [
        one
        for change in _settled(changes, connection, metadata)
        for one in _difference(change, connection.dialect, metadata)
    ]
    order = {table.key: number for number, table in enumerate(metadata.sorted_tables)}
    return sorted(found, key=lambda one: order.get(one.owner, len(order)))


def _settled(changes: list[Any], connection: sa.Connection, metadata: sa.MetaData) -> Iterator[Any]:
    """Changes without pairs of which each takes back what the other does, and without what only some databases have."""
    dialect = connection.dialect
    elsewhere = {
        (table.schema, table.name, getattr(item, "name", None))
        for table in metadata.tables.values()
        for item in (*table.indexes, *table.constraints)
        if getattr(item, "_ddl_if", None) is not None
    }
    keys_of: dict[Any, Any] = {}
    left: list[Any] = []
    for change in changes:
        action = change[0].removeprefix("add_").removeprefix("remove_")
        key = _content(change[1], dialect) if action in ("index", "constraint", "fk") else None
        other = None if key is None else keys_of.get((change[0].startswith("add_"), key))
        if other is not None:
            left.remove(other)
            del keys_of[change[0].startswith("add_"), key]
        elif key is None or (key[0] != "untold" and (*key[1], change[1].name) not in elsewhere):
            left.append(change)
            if key is not None:
                keys_of[not change[0].startswith("add_"), key] = change
    for change in left:
        if change[0] == "remove_index" and dialect.name in ("mysql", "mariadb") and _of_key(change[1]):
            continue
        yield change


def _content(item: Any, dialect: sa.Dialect) -> tuple[Any, ...]:
    """What an index or a constraint does, whatever it is called."""
    table = item.table.schema, item.table.name
    if isinstance(item, sa.ForeignKeyConstraint):
        actions = [None if one in _NO_ACTION else one for one in (item.onupdate, item.ondelete)]
        targets = [one.target_fullname.split(".")[-2:] for one in item.elements]
        return "foreign key", table, tuple(item.column_keys), str(targets), *actions
    if isinstance(item, sa.Index):
        names = [getattr(one, "name", None) for one in item.expressions]
        if None in names:
            return "untold", table, item.name  # how the server writes an expression is not known
        return "unique" if item.unique else "index", table, tuple(names)
    if isinstance(item, sa.CheckConstraint):
        return "check", table, item.name, _squeezed(condition_text(item.sqltext, dialect))
    return "unique", table, tuple(column.name for column in item.columns)


def _of_key(index: sa.Index) -> bool:
    """Whether an index is one that the server makes for a foreign key."""
    names = [getattr(column, "name", None) for column in index.expressions]
    table = index.table
    return table is not None and any(
        list(key.column_keys) == names and index.name in (key.name, names[0]) for key in table.foreign_key_constraints
    )


def _difference(change: Any, dialect: sa.Dialect, metadata: sa.MetaData) -> Iterator[Difference]:
    action = change[0]
    if action in ("add_table", "remove_table"):
        table = change[1]
        columns = frozenset(
            (column.name.lower(), "") for column in table.columns
        )  # their types are spelled in two ways
        yield replace(_one("table", table, None, {}, action), columns=columns)
    elif action in ("add_column", "remove_column"):
        _, schema, table, column = change
        facets = {
            "type": type_text(column.type, dialect).upper(),
            "nullable": column.nullable,
            "default": default_text(column, dialect),
        }
        yield _one("column", sa.Table(table, sa.MetaData(), schema=schema), column.name, facets, action)
    elif action in ("add_table_comment", "remove_table_comment"):
        table, old = change[1], change[2] if len(change) > 2 else None
        new = table.comment if action.startswith("add") else None
        old = old if action.startswith("add") else table.comment
        yield Difference("table", table.schema, table.name, None, {"comment": new}, {"comment": old})
    elif action.startswith("modify_"):
        _, schema, table, column, _, old, new = change
        facet = {"modify_type": "type", "modify_nullable": "nullable", "modify_default": "default"}.get(action)
        both = (new, old)
        if facet == "type":
            both = (type_text(new, dialect).upper(), type_text(old, dialect).upper())
            if _same_type(*both):
                return
        elif facet == "default":
            both = (_default(new, dialect), _default(old, dialect))
            unseen = both[1] is None and dialect.name in ("mysql", "mariadb") and not _SHOWN.fullmatch(_now(both[0]))
            if unseen or _same_default(*both):
                return
        facet = facet or action.removeprefix("modify_")
        yield Difference("column", schema, table, column, {facet: both[0]}, {facet: both[1]})
    else:
        item = change[1]
        kind, facets = _part(item, dialect)
        yield _one(kind, item.table, item.name, facets, action)


def _one(kind: Any, table: Any, name: str | None, facets: Mapping[str, Any], action: str) -> Difference:
    mine = action.startswith("add_")
    return Difference(kind, table.schema, table.name, name, facets if mine else None, None if mine else facets)


def _part(item: Any, dialect: sa.Dialect) -> tuple[PartKind, dict[str, Any]]:
    if isinstance(item, sa.ForeignKeyConstraint):
        facets = {
            "columns": tuple(item.column_keys),
            "target": item.elements[0].target_fullname.rpartition(".")[0],
            "target columns": tuple(one.target_fullname.rpartition(".")[2] for one in item.elements),
            "on update": None if item.onupdate in _NO_ACTION else item.onupdate,
            "on delete": None if item.ondelete in _NO_ACTION else item.ondelete,
        }
        return "foreign key", facets
    if isinstance(item, sa.CheckConstraint):
        return "check", {"condition": condition_text(item.sqltext, dialect)}
    if isinstance(item, sa.Index):
        columns = tuple(getattr(one, "name", None) or str(one) for one in item.expressions)
        return "index", {"columns": columns, "unique": bool(item.unique)}
    return "unique", {"columns": tuple(column.name for column in item.columns)}


def _same_type(mine: str, theirs: str) -> bool:
    def plain(text: str) -> str:
        word, bracket, rest = _COLLATION.sub("", text.lower().replace('"', "")).partition("(")
        word = _TYPES.get(word.strip(), word.strip())
        sized = _SIZED.fullmatch(word)
        if sized:
            return sized[1] if "(" in mine else word
        if word == "tinyint":  # a boolean; how many digits are shown of a number changes nothing
            return word + (" unsigned" if "unsigned" in rest else "")
        return re.sub(r"\s", "", f"{word}{bracket}{rest}")

    return plain(mine) == plain(theirs)


def _default(value: Any, dialect: sa.Dialect) -> str | None:
    if value is None or value is False:
        return None
    if isinstance(value, sa.schema.FetchedValue):
        column: sa.Column[Any] = sa.Column("c", sa.types.NullType(), server_default=value)
        return default_text(column, dialect)
    return str(value)


def _same_default(mine: str | None, theirs: str | None) -> bool:
    def plain(text: str | None) -> str | None:
        if text is None:
            return None
        text = _CAST.sub(r"\1", text.strip().lower())
        text = _now(text).strip("'\"")
        if _NUMBER.fullmatch(text):  # a server writes as many digits as the column has
            return str(Decimal(text).normalize())
        return {"true": "1", "false": "0", "null": None}.get(text, text)

    one, other = plain(mine), plain(theirs)
    if one is not None and other is not None and "nextval" in one and "nextval" in other:
        return True
    return one == other


def _now(text: str | None) -> str:
    """A default without what servers put in or leave out, and with one word for the time."""
    return _TODAY.sub("today", _NOW.sub("now", _squeezed((text or "").lower())))


def _squeezed(text: str) -> str:
    """A text without what servers put in or leave out: blanks, quotes of names, outer parentheses."""
    text = re.sub(r"[\s`\"]", "", text)
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return text
