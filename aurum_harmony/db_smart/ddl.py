"""DDL elements that Alembic lacks, compiled with its own building blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import add_column, alter_table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement
from sqlalchemy.sql.compiler import DDLCompiler


class AddColumns(DDLElement):
    """``ALTER TABLE`` that adds several columns, and constraints on them, in one statement.

    :param table: the table with at least the new columns.
    :param columns: the columns to add; SQLite takes one at a time.
    :param constraints: constraints to add with them.
    """

    inherit_cache = False

    def __init__(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint] = ()
    ) -> None:
        self.table = table
        self.columns = columns
        self.constraints = constraints


@compiles(AddColumns)
def _add_columns(element: AddColumns, compiler: DDLCompiler, **options: Any) -> str:
    # A foreign key is a constraint of its own, except on SQLite, which knows only the inline form.
    inline = compiler.dialect.name == "sqlite"
    parts = [add_column(compiler, column, inline_references=inline, **options) for column in element.columns]
    for constraint in element.constraints:
        text = compiler.process(constraint)
        if text:
            parts.append(f"ADD {text}")
    return f"{alter_table(compiler, element.table.name, element.table.schema)} {', '.join(parts)}"
