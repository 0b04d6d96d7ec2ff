"""What is wrong with the tables themselves: those of the models, and those that a database has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ..dialects.base import Facts
from ..schema.effects import IDENTIFIER, listed, normalized
from ..schema.rules import KEY_WITHOUT_INDEX, NO_PRIMARY_KEY, REDUNDANT_INDEX, SHORT_KEY, Rule
from ..session.controls import plain
from .findings import Finding

_LONGEST = 2**31 - 1
_PLACE = rf"(?:{IDENTIFIER}\s*\.\s*)?{IDENTIFIER}"
_FLAGS = re.IGNORECASE | re.DOTALL
_CREATE = re.compile(rf"CREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?({_PLACE})\s*\((.*)\)[^()]*", _FLAGS)
_INDEX = re.compile(
    rf"CREATE\s+(UNIQUE\s+)?INDEX\s+(?:CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?({_PLACE})\s+ON\s+({_PLACE})\s*\(([^()]*)\)",
    _FLAGS,
)
_TABLE_KEY = re.compile(rf"(?:CONSTRAINT\s+{IDENTIFIER}\s+)?(PRIMARY\s+KEY|UNIQUE|FOREIGN\s+KEY)\s*\(([^)]*)\)", _FLAGS)
_REFERS = re.compile(rf"\bREFERENCES\s+({_PLACE})", re.IGNORECASE)


@dataclass
class Shape:
    """A table, as far as the rules go.

    :ivar indexes: columns, whether it is unique, and whether only its columns count, by name.
    :ivar keys: of foreign keys the columns and the table that they refer to.
    :ivar path: of the file that makes it, as it is shown.
    :ivar line: in that file.
    """

    name: str
    primary: list[str]
    indexes: dict[str, tuple[list[str | None], bool, bool]] = field(default_factory=dict)
    uniques: list[list[str]] = field(default_factory=list)
    keys: list[tuple[list[str], str]] = field(default_factory=list)
    path: str | None = None
    line: int | None = None


def of_models(metadata: sa.MetaData) -> Iterator[Shape]:
    """The tables of the models."""
    for table in metadata.tables.values():
        shape = Shape(table.fullname, [column.name for column in table.primary_key])
        for index in table.indexes:
            plain = [getattr(one, "name", None) if isinstance(one, sa.Column) else None for one in index.expressions]
            whole = not any(value for name, value in index.dialect_kwargs.items() if not name.endswith("_include"))
            shape.indexes[str(index.name)] = (plain, bool(index.unique), whole)
        for constraint in table.constraints:
            if isinstance(constraint, sa.UniqueConstraint):
                shape.uniques.append([column.name for column in constraint.columns])
            elif isinstance(constraint, sa.ForeignKeyConstraint):
                target = constraint.elements[0].target_fullname.rpartition(".")[0]
                shape.keys.append(([column.name for column in constraint.columns], target))
        shape.keys.sort()  # SQLAlchemy has them in no order
        shape.uniques.sort()
        yield shape


def of_database(connection: sa.Connection, left_out: Collection[str]) -> Iterator[Shape]:
    """The tables that a database has.

    :param left_out: names of those that are not the application's.
    """
    inspector = sa.inspect(connection)
    names = [name for name in inspector.get_table_names() if name not in left_out]
    every = {kind: getattr(inspector, f"get_multi_{kind}")(filter_names=names) for kind in _KINDS} if names else {}
    for name in names:
        key = (None, name)
        shape = Shape(name, [*(every["pk_constraint"].get(key) or {}).get("constrained_columns", [])])
        for index in every["indexes"].get(key) or []:
            whole = not any(value for value in index.get("dialect_options", {}).values())
            plain = list(index["column_names"])
            shape.indexes[str(index["name"])] = (plain, bool(index["unique"]), whole)
        shape.uniques = [[*one["column_names"]] for one in every["unique_constraints"].get(key) or []]
        shape.keys = [
            ([*one["constrained_columns"]], one["referred_table"]) for one in every["foreign_keys"].get(key) or []
        ]
        yield shape


_KINDS = ("pk_constraint", "indexes", "unique_constraints", "foreign_keys")


def of_statements(statements: Iterable[str], facts: Facts) -> Iterator[tuple[Shape, str]]:
    """The tables that statements make, with the indexes that later ones give them, and the statement of each."""
    made: dict[str, tuple[Shape, str]] = {}
    for statement in statements:
        text = plain(statement, facts)
        found = _CREATE.match(text)
        if found is not None:
            shape = Shape(normalized(found[1], facts), [])
            for item in listed(found[2], facts):
                _read(shape, item, facts)
            made[shape.name] = shape, statement
            continue
        found = _INDEX.match(text)
        if found is not None and (name := normalized(found[3], facts)) in made:
            columns: list[str | None] = [*_names(found[4], facts)]
            rest = text[found.end() :].strip()
            made[name][0].indexes[normalized(found[2], facts)] = (columns, bool(found[1]), not rest)
    yield from made.values()


def _read(shape: Shape, item: str, facts: Facts) -> None:
    """Take one line of ``CREATE TABLE``."""
    found = _TABLE_KEY.match(item)
    if found is not None:
        columns = _names(found[2], facts)
        kind = found[1].upper().split()[0]
        if kind == "PRIMARY":
            shape.primary = columns
        elif kind == "UNIQUE":
            shape.uniques.append(columns)
        else:
            target = _REFERS.search(item)
            shape.keys.append((columns, normalized(target[1], facts) if target is not None else "?"))
        return
    name = re.match(IDENTIFIER, item)
    if name is None:
        return
    column = normalized(name[0], facts)
    if re.search(r"\bPRIMARY\s+KEY\b", item, re.IGNORECASE):
        shape.primary = [column]
    if re.search(r"\bUNIQUE\b", item, re.IGNORECASE):
        shape.uniques.append([column])
    target = _REFERS.search(item)
    if target is not None:
        shape.keys.append(([column], normalized(target[1], facts)))


def _names(text: str, facts: Facts) -> list[str]:
    return [normalized(name[0], facts) for item in listed(text, facts) if (name := re.match(IDENTIFIER, item))]


def found(shapes: Iterable[Shape], where: str, *, indexes_keys: bool) -> Iterator[Finding]:
    """What breaks a rule.

    :param where: whose tables they are.
    :param indexes_keys: whether the database makes an index for each foreign key by itself.
    """

    for shape in shapes:

        def finding(rule: Rule, message: str, instead: str, shape: Shape = shape) -> Finding:
            return Finding(rule, rule.level, message, path=shape.path, line=shape.line, instead=instead, where=where)

        schema, _, bare = shape.name.rpartition(".")
        more = f', schema="{schema}"' if schema else ""
        if not shape.primary:
            yield finding(NO_PRIMARY_KEY, f"{shape.name} has no primary key.", "")
        leading: list[Sequence[str | None]] = [[*columns] for columns, _, whole in shape.indexes.values() if whole]
        leading += [*shape.uniques, shape.primary]
        for columns, target in [] if indexes_keys else shape.keys:
            if not any(_begins(one, columns) for one in leading):
                listed = ", ".join(columns)
                name = "_".join(["ix", bare, *columns])
                instead = (
                    f"@migration\ndef {name}(op: Operations) -> None:\n"
                    f'    op.create_index("{name}", "{bare}", {columns!r}{more})'.replace("'", '"')
                )
                yield finding(KEY_WITHOUT_INDEX, f"{shape.name} ({listed}), which refers to {target}.", instead)
        yield from _redundant(shape, finding, bare, more)


def _redundant(shape: Shape, finding: Any, bare: str, more: str) -> Iterator[Finding]:
    keys: list[tuple[str, Sequence[str | None]]] = [("its primary key", shape.primary)]
    keys += [("a unique constraint", columns) for columns in shape.uniques]
    for name, (columns, unique, whole) in shape.indexes.items():
        if unique or not whole or None in columns:
            continue
        # A unique constraint of PostgreSQL and MariaDB is among the indexes too, as the same thing.
        others = [(other, names) for other, (names, _, also) in shape.indexes.items() if other != name and also]
        for other, names in [*others, *keys]:
            same = [*names] == columns
            if not names or None in names or not _starts(names, columns) or (same and name < other):
                continue
            instead = (
                f'@migration\ndef drop_{name}(op: Operations) -> None:\n    op.drop_index("{name}", "{bare}"{more})'
            )
            message = (
                f"{name} of {shape.name} ({', '.join(map(str, columns))}): {other} ({', '.join(map(str, names))})."
            )
            yield finding(REDUNDANT_INDEX, message, instead)
            break


def _starts(longer: Sequence[str | None], shorter: Sequence[str | None]) -> bool:
    return [*longer[: len(shorter)]] == [*shorter]


def _begins(index: Sequence[str | None], columns: Sequence[str]) -> bool:
    """Whether an index begins with the columns, in any order."""
    return len(index) >= len(columns) and set(index[: len(columns)]) == set(columns)


def short_keys(connection: sa.Connection, shapes: Iterable[Shape]) -> Iterator[Finding]:
    """Keys of 32 bits that have used more than half of their numbers; SQLite has none."""
    if connection.dialect.name == "sqlite":
        return
    inspector = sa.inspect(connection)
    for shape in shapes:
        if len(shape.primary) != 1:
            continue
        (name,) = shape.primary
        (column,) = [one for one in inspector.get_columns(shape.name) if one["name"] == name]
        kind: Any = column["type"]
        if not isinstance(kind, sa.Integer) or isinstance(kind, (sa.BigInteger, sa.SmallInteger)):
            continue
        most = _LONGEST * 2 + 1 if getattr(kind, "unsigned", False) else _LONGEST
        try:
            value = connection.scalar(sa.select(sa.func.max(sa.column(name))).select_from(sa.table(shape.name)))
        except sa.exc.DBAPIError:  # no right to read it
            continue
        finally:
            connection.rollback()  # so that a change of the table does not wait for this
        if value is not None and value > most / 2:
            message = f"{shape.name}.{name} has reached {value:,} of {most:,}."
            instead = f"@migration\ndef widen_{shape.name}(op: Operations) -> None:\n"
            instead += f'    op.widen_key("{shape.name}", "{name}", online=False)'
            yield Finding(
                SHORT_KEY,
                SHORT_KEY.level,
                message,
                path=shape.path,
                line=shape.line,
                instead=instead,
                where="the database",
            )
