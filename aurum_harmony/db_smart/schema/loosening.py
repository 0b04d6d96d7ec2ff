"""Columns that the models require and rows of older migrations do not have yet.

The models are those of today. A column can be ``NOT NULL`` in them although an early migration inserts rows without it,
and only a later one fills it in. On the run that makes the tables from the models, such a column takes ``NULL`` until
all migrations are applied. It does so only if a row needs it: a first run without such rows changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from ..store.memory import Memory


def required(error: BaseException | None, memory: Memory) -> list[tuple[sa.Table, str]]:
    """The columns for which a database error says that a row has no value, in tables made from their models.

    :returns: models and names of columns; several where the database does not name the table. Empty for other errors.
    """
    while error is not None:
        if isinstance(error, sa.exc.DBAPIError):
            found = [*_required(error, memory)]
            if found:
                return found
        error = error.__cause__ or error.__context__
    return []


def _required(error: sa.exc.DBAPIError, memory: Memory) -> Iterator[tuple[sa.Table, str]]:
    table, column = memory.facts.column_without_value(error)
    if column is None:
        return
    for model in memory.made():
        named = model.name in (error.statement or "") if table is None else memory.same(model.name, table)
        if named:
            yield from (
                (model, one.name)
                for one in model.columns
                if memory.same(one.name, column) and not one.nullable and not one.primary_key
            )


def as_default(table: str, schema: str | None, column: str, default: Any) -> sa.Update:
    """The statement that gives rows without a value the default that a column was added with."""
    target = sa.table(table, sa.column(column), schema=schema)
    value = sa.literal_column("'" + default.replace("'", "''") + "'") if isinstance(default, str) else default
    return target.update().values({column: value}).where(target.c[column].is_(None))
