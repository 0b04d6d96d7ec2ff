"""Migrations to write instead of what was refused, with the user's own names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_DESTRUCTIVE = "@migration(destructive=True)"

#: What stands for a value that is sent beside a statement.
_MARK = re.compile(r"%s|\?|%\(\w+\)s(?:::[\w ]+)?")


def migration(name: str, *lines: str, head: str = "@migration") -> str:
    """A migration of a name, and what it does, as source."""
    return "\n".join([head, f"def {name}(op: Operations) -> None:", *(f"    {line}" if line else "" for line in lines)])


def backfill(name: str, table: str, schema: str | None, assignments: Sequence[str], condition: str) -> str:
    """An update in batches.

    :param assignments: as SQL, such as ``state = 'new'``.
    """
    values = []
    for one in assignments:
        column, _, value = one.partition("=")
        values.append(f'"{_plain(column)}": sa.text({_quoted(value)})')
    more = f", where={_quoted(condition)}" if condition else ""
    return migration(name, f'op.backfill("{table}", {{{", ".join(values)}}}{more}{_schema(schema)})')


def batches(name: str, table: str, schema: str | None, key: Sequence[str], condition: str) -> str:
    """A deletion in batches.

    :param key: the columns of the primary key.
    """
    columns = ", ".join(f'sa.column("{column}")' for column in key)
    where = f".where(sa.text({_quoted(condition)}))" if condition else ""
    if len(key) == 1:
        which = f"table.c.{key[0]}.in_([row.{key[0]} for row in rows])"
    else:
        listed = ", ".join(f"table.c.{column}" for column in key)
        which = f"sa.tuple_({listed}).in_([tuple(row) for row in rows])"
    return migration(
        name,
        f'table = sa.table("{table}", {columns}{_schema(schema)})',
        "",
        f"@op.batches(sa.select(table){where}{_schema(schema)})",
        "def delete(rows):",
        f"    op.execute(sa.delete(table).where({which}))",
    )


def dropped_column(name: str, table: str, schema: str | None, column: str, existing: Mapping[str, Any]) -> str:
    """A column that goes in a later release, and before that may be NULL, so that rows can be written without it.

    :param existing: the column as the inspector has it.
    """
    drop = f'op.drop_column("{table}", "{column}"{_schema(schema)})'
    later = migration(name, "# In a later release, when no process uses the column any more.", drop, head=_DESTRUCTIVE)
    if existing.get("nullable", True):
        return later
    null = f'op.alter_column("{table}", "{column}", nullable=True{_schema(schema)})'
    now = migration(f"{table}_{column}_may_be_missing", "# Together with the release that no longer uses it.", null)
    return f"{now}\n\n\n{later}"


def dropped(name: str, call: str) -> str:
    """What a later release drops.

    :param call: of the operation.
    """
    return migration(name, "# In a later release, when no process relies on it any more.", call, head=_DESTRUCTIVE)


def renamed_column(name: str, table: str, schema: str | None, old: str, new: str, kind: Any) -> str:
    """A column of a new name beside the old one."""
    where = f"{new} IS NULL AND {old} IS NOT NULL"
    return migration(
        name,
        f'op.add_column("{table}", Column("{new}", {_type(kind)}){_schema(schema)})',
        f'op.backfill("{table}", {{"{new}": sa.column("{old}")}}, where="{where}"{_schema(schema)})',
    )


def retyped_column(name: str, table: str, schema: str | None, column: str, kind: Any) -> str:
    """A column of a new type beside the old one."""
    new, spelled = f"new_{column}", _type(kind)
    where = f"{new} IS NULL AND {column} IS NOT NULL"
    value = f'sa.cast(sa.column("{column}"), {spelled})'
    return migration(
        name,
        f'op.add_column("{table}", Column("{new}", {spelled}){_schema(schema)})',
        f'op.backfill("{table}", {{"{new}": {value}}}, where="{where}"{_schema(schema)})',
    )


def filled_column(name: str, table: str, schema: str | None, column: str, kind: Any) -> str:
    """A new column that is NOT NULL, with a value for the rows that are there."""
    more = 'nullable=False, server_default="…"'
    return migration(
        name,
        "# Put the value for existing rows in the place of the dots.",
        f'op.add_column("{table}", Column("{column}", {_type(kind)}, {more}){_schema(schema)})',
    )


def _type(kind: Any) -> str:
    """A type as source."""
    if isinstance(kind, type):
        kind = kind()
    with suppress(NotImplementedError):
        kind = kind.as_generic()
    return f"sa.{kind!r}"


def _schema(schema: str | None) -> str:
    return f', schema="{schema}"' if schema else ""


def _plain(name: str) -> str:
    return name.strip().rpartition(".")[2].strip('"`[] ')


def _sql(text: str) -> str:
    return _MARK.sub("…", " ".join(text.split()))


def _quoted(text: str) -> str:
    plain = _sql(text)
    return f'"{plain}"' if '"' not in plain and "\\" not in plain else repr(plain)
