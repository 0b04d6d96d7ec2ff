"""What the models have and a database lacks, by the names of tables and columns alone: one query tells.

It is what boot can afford; :mod:`~aurum_harmony.db_smart.drift` compares everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import sqlalchemy as sa

from ..dialects.base import facts_of
from ..store.database import translated

#: Tells whether a table, or a column of one, is looked for.
Counts = Callable[[sa.Table, "sa.Column[object] | None"], bool]


def digest(metadata: sa.MetaData) -> str:
    """A hash of all names, which changes with them, in hexadecimal."""
    names = sorted(f"{table.key}\0{column.name}" for table in metadata.tables.values() for column in table.columns)
    return hashlib.sha256("\1".join(names).encode()).hexdigest()


def lacking(connection: sa.Connection, metadata: sa.MetaData, counts: Counts = lambda *_: True) -> list[str]:
    """The tables and columns of the models that a database does not have, such as ``users.nickname``.

    One query for each schema of the models. Leaves no transaction.
    """
    facts = facts_of(connection.dialect.name)
    found: list[str] = []
    for schema in {table.schema for table in metadata.tables.values()}:
        place = translated(connection, schema)
        there = facts.column_names(connection, place)
        tables = {table for table, _ in there}
        for table in metadata.tables.values():
            if table.schema != schema or not counts(table, None):
                continue
            name = facts.normalize_name(table.name)
            if name not in tables:
                found.append(table.key)
                continue
            found += [
                f"{table.key}.{column.name}"
                for column in table.columns
                if (name, facts.normalize_name(column.name)) not in there and counts(table, column)
            ]
    connection.rollback()
    return sorted(found)


def said(names: list[str], *, ahead: bool = False, most: int = 5) -> str:
    """A sentence on what is lacking.

    :param ahead: whether the database is ahead of the code, so that it may have had that.
    :param most: how many are named.
    """
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    verb = "is" if len(names) == 1 else "are"
    why = ", which is ahead of this code: a later release may have taken it away. If not," if ahead else ":"
    return (
        f"{shown} {verb} in the models but not in the database{why} 'flask db-smart new NAME --from-models' writes the "
        "migration"
    )
