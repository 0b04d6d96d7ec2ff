"""What schema changes take away from a release that runs: those of operations, and SQL as far as it tells."""

from __future__ import annotations

import re
from functools import singledispatch
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import ColumnDefault, ColumnNullable, ColumnType, DropColumn, RenameTable
from alembic.ddl.postgresql import PostgresqlColumnType
from sqlalchemy.dialects.postgresql import CreateDomainType, CreateEnumType
from sqlalchemy.schema import (
    AddConstraint,
    CreateIndex,
    CreateTable,
    DropColumnComment,
    DropConstraint,
    DropIndex,
    DropTable,
    DropTableComment,
    SetColumnComment,
    SetTableComment,
)

from ..dialects.base import Facts
from ..errors import shortened
from ..session.controls import split
from ..session.journal import reads
from ..store.releases import Touches
from .ddl import (
    AddColumns,
    AddEnumValue,
    AlterDefault,
    CreateDeclared,
    DropDeclared,
    ModifyColumn,
    RenameColumn,
    RenameIndex,
    ReplaceCheck,
    ReplaceIndex,
    UniqueUsingIndex,
    ValidateConstraint,
)
from .effects import Change, changes_of, normalized
from .planned import ROWS, DryCatalog
from .raw_sql import changes_rows, losses, within

#: What takes nothing away.
_HARMLESS = (
    CreateTable,
    SetColumnComment,
    DropColumnComment,
    SetTableComment,
    DropTableComment,
    CreateEnumType,
    CreateDomainType,
    AddEnumValue,
    RenameIndex,
    ReplaceIndex,
    sa.sql.expression.UpdateBase,
)
#: Of raw SQL: the first words of what takes nothing away.
_HARMLESS_WORDS = ("SET", "PRAGMA", "ANALYZE", "COMMENT", "GRANT", "TRUNCATE", "CREATE SEQUENCE", "CREATE TYPE")
#: What lets ``UPDATE`` change the schema: https://www.sqlite.org/lang_altertable.html#otheralter
_WRITABLE = re.compile(r"\s*PRAGMA\s+(?:\w+\s*\.\s*)?writable_schema\s*[=(]", re.IGNORECASE)
#: Of the definition of a column: what lacks a value where none is given, and what has one nevertheless.
_REQUIRED = re.compile(r"\bNOT\s+NULL\b|\bPRIMARY\s+KEY\b", re.IGNORECASE)
_GIVEN = re.compile(r"\b(?:DEFAULT|GENERATED|AS|\w*SERIAL\d?|AUTO_?INCREMENT)\b", re.IGNORECASE)
#: How much of a statement is named, characters.
_SHOWN = 80


@singledispatch
def touched(change: Any, catalog: DryCatalog) -> Touches:
    """What a change takes away that an operation makes; to be asked before the catalog knows of it."""
    if isinstance(change, _HARMLESS):
        return Touches()
    return Touches(unknown=f"what {type(change).__name__} takes away")


@touched.register
def _drop_table(change: DropTable, catalog: DryCatalog) -> Touches:
    return _gone(catalog, change.element.name, change.element.schema)


@touched.register
def _rename_table(change: RenameTable, catalog: DryCatalog) -> Touches:
    return _gone(catalog, change.table_name, change.schema)


@touched.register
def _drop_column(change: DropColumn, catalog: DryCatalog) -> Touches:
    return _gone(catalog, change.table_name, change.schema, change.column.name)


@touched.register
def _rename_column(change: RenameColumn, catalog: DryCatalog) -> Touches:
    return _gone(catalog, change.table, change.schema, change.column)


@touched.register
def _drop_declared(change: DropDeclared, catalog: DryCatalog) -> Touches:
    if change.kind != "view":
        return Touches(unknown=f"who uses the {change.kind} {change.name!r}")
    return _gone(catalog, change.name, change.schema)


@touched.register
def _create_declared(change: CreateDeclared, catalog: DryCatalog) -> Touches:
    """A view in the place of another one may have less than that."""
    there = change.kind == "view" and catalog.has_declared(change.kind, change.name, change.schema)
    return _narrowed(catalog, change.name, change.schema, [None]) if there else Touches()


@touched.register
def _add_columns(change: AddColumns, catalog: DryCatalog) -> Touches:
    """A value that must be given is given by nobody who does not map the column."""
    given = ("server_default", "computed", "identity")
    if all(one.nullable or any(getattr(one, name) is not None for name in given) for one in change.columns):
        return Touches()
    return _narrowed(catalog, change.table.name, change.table.schema, [None])


@touched.register(ColumnType)
@touched.register(PostgresqlColumnType)
def _column(change: Any, catalog: DryCatalog) -> Touches:
    return _narrowed(catalog, change.table_name, change.schema, [change.column_name])


@touched.register
def _nullable(change: ColumnNullable, catalog: DryCatalog) -> Touches:
    names = [change.column_name if change.nullable else None]
    return _narrowed(catalog, change.table_name, change.schema, names)


@touched.register
def _default(change: ColumnDefault, catalog: DryCatalog) -> Touches:
    names = [None if change.default in (None, False) else change.column_name]
    return _narrowed(catalog, change.table_name, change.schema, names)


@touched.register
def _alter_default(change: AlterDefault, catalog: DryCatalog) -> Touches:
    names = [None if change.default in (None, False) else change.column_name]
    return _narrowed(catalog, change.table_name, change.schema, names)


@touched.register
def _modify_column(change: ModifyColumn, catalog: DryCatalog) -> Touches:
    must = change.becomes.get("nullable") is False or ("default" in change.becomes and not change.becomes["default"])
    return _narrowed(catalog, change.table, change.schema, [None if must else change.column])


@touched.register(AddConstraint)
@touched.register(DropConstraint)
def _constraint(change: Any, catalog: DryCatalog) -> Touches:
    return _by_constraint(catalog, change.element)


@touched.register
def _replace_check(change: ReplaceCheck, catalog: DryCatalog) -> Touches:
    return _by_constraint(catalog, change.check)


@touched.register
def _unique_using_index(change: UniqueUsingIndex, catalog: DryCatalog) -> Touches:
    return _by_constraint(catalog, change.constraint)


@touched.register
def _validate_constraint(change: ValidateConstraint, catalog: DryCatalog) -> Touches:
    return Touches()  # new rows keep it already


@touched.register
def _create_index(change: CreateIndex, catalog: DryCatalog) -> Touches:
    index = change.element
    if not index.unique or index.table is None:
        return Touches()
    names = [getattr(one, "name", None) for one in index.expressions]
    return _narrowed(catalog, index.table.name, index.table.schema, names)


@touched.register
def _drop_index(change: DropIndex, catalog: DryCatalog) -> Touches:
    """A unique one is relied on by what says ``ON CONFLICT``."""
    index = change.element
    if index.table is None:
        return Touches(unknown=f"of which table {index.name!r} is an index")
    place = index.table.name, index.table.schema
    known = catalog.indexes(*place).get(catalog.normalize_name(str(index.name)))
    return Touches() if known is None or not known.unique else _narrowed(catalog, *place, known.columns)


def _by_constraint(catalog: DryCatalog, constraint: Any) -> Touches:
    """What a constraint is about: what it names of its table, also where it is a name alone that is dropped."""
    table = constraint.table
    place = table.name, table.schema
    known = catalog.constraints(*place).get(catalog.normalize_name(str(constraint.name)))
    names = [column.name for column in getattr(constraint, "columns", ())]
    if not names and known is not None:
        names = list(known.columns)
    condition = getattr(constraint, "sqltext", None)
    condition = condition if condition is not None else None if known is None else known.condition
    if condition is not None:  # it may say that a value must be given
        names = [None]
    return _narrowed(catalog, *place, names)


def _gone(catalog: DryCatalog, table: str, schema: str | None, column: str | None = None) -> Touches:
    place = _place(catalog, table, schema)
    names = [] if column is None else [catalog.normalize_name(column)]
    return Touches() if place is None else Touches(gone={place: names})


def _narrowed(catalog: DryCatalog, table: str, schema: str | None, columns: list[Any]) -> Touches:
    """:param columns: one that is ``None`` may be any."""
    place = _place(catalog, table, schema)
    names = [] if None in columns else sorted({catalog.normalize_name(one) for one in columns})
    return Touches() if place is None else Touches(narrowed={place: names})


def _place(catalog: DryCatalog, table: str, schema: str | None) -> str | None:
    """What releases call a table; ``None`` for one that this run has made."""
    stored = catalog.stored(table, schema)
    return None if stored is None else place_of(catalog, stored, schema)


def place_of(catalog: DryCatalog, name: str, schema: str | None) -> str:
    """What releases call a table or a view."""
    name = catalog.normalize_name(name)
    return name if schema is None else f"{catalog.normalize_name(schema)}.{name}"


def touched_by_sql(statement: str, facts: Facts) -> Touches:
    """What a migration's own SQL takes away."""
    found = Touches()
    for part in split(statement, facts.name):
        for one in within(part, facts):
            found |= _of_one(one, facts)
    return found


def touched_by_rebuild(statements: list[str], facts: Facts) -> Touches:
    """What becomes of a table that SQLite builds again, where no operation says so: any column may be another."""
    places = [loss.place for one in statements for loss in losses(one, facts) if loss.kind == "table"]
    return Touches(narrowed={normalized(place, facts).removeprefix("main."): [] for place in places})


def _of_one(statement: str, facts: Facts) -> Touches:
    words = " ".join(statement.split()[:2]).upper()
    if _WRITABLE.match(statement):
        return Touches(unknown="what is written into SQLite's own table of the schema")
    if not words or reads(statement) or changes_rows(statement, facts) or words.startswith(_HARMLESS_WORDS):
        return Touches()
    if ROWS.match(statement) and not words.startswith("WITH"):
        return Touches()
    unknown = Touches(unknown=f"what {shortened(statement, _SHOWN)} takes away")
    changes, found = changes_of(statement, facts), Touches()
    lost = list(losses(statement, facts))
    if not (changes.seen or lost) or not changes.whole:
        return unknown
    for loss in lost:
        if loss.kind not in ("table", "column", "rows", "partition"):
            return unknown
        if loss.kind in ("table", "column"):
            found |= Touches(gone={normalized(loss.place, facts): [loss.name] if loss.kind == "column" else []})
    for change in changes.seen:
        if change.kind in ("rename table", "drop table"):
            found |= Touches(gone={change.table: []})
        elif change.kind in ("rename column", "drop column"):
            found |= Touches(gone={change.table: [change.name]})
        elif change.kind.startswith("make") and _narrows(change, words, facts):
            found |= Touches(narrowed={change.table: []})
        elif not change.kind.startswith("make"):
            if not change.table:
                return unknown
            found |= Touches(narrowed={change.table: []})
    return found


def _narrows(made: Change, words: str, facts: Facts) -> bool:
    """Whether what a statement makes lets less be written or read than before."""
    if made.kind == "make table":
        return words.startswith("CREATE OR")  # a view; a table is lost
    if made.kind != "make column":
        return made.unique or made.kind != "make index"
    # Nobody gives a value who does not map the column.
    text = re.sub(facts.quoted, "", made.form, flags=re.DOTALL)
    return _REQUIRED.search(text) is not None and _GIVEN.search(text) is None
