"""What a row of the history has to take its run back, entry by entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..loading.sources import ALEMBIC
from ..store.history import STAMPED, Made


def kept_of(run: Made) -> dict[str, Any] | None:
    """What takes a run back; ``None`` where that is not kept, or not as this release writes it."""
    try:
        found: dict[str, Any] = json.loads(run.inverse or "")
        made, own = found["made"], found["own"]
        lists = isinstance(made, list) and isinstance(own, list) and all(isinstance(one, str) for one in own)
        return found if lists and all(map(_known, made)) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


_TEXT, _NAMES = (str,), (list,)
_MAYBE = (str, type(None))
#: What tells of each inverse, besides its table.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "cannot": {"what": _TEXT, "why": _TEXT},
    "stays": {"what": _TEXT},
    "drop_table": {"names": _NAMES},
    "drop_columns": {"names": _NAMES, "constraints": _NAMES},
    "drop_index": {"name": _TEXT, "names": _NAMES},
    "drop_constraint": {"name": _TEXT, "names": _NAMES, "implied": (bool,)},
    "rename_table": {"name": _TEXT},
    "rename_column": {"name": _TEXT, "to": _TEXT},
    "alter_column": {"name": _TEXT},
    "table_comment": {"comment": _MAYBE},
    "declare": {"kind": _TEXT, "name": _TEXT, "text": _MAYBE},
    "drop_type": {"name": _TEXT, "domain": (bool,)},
}
_PLACE = {"schema": _MAYBE, "table": _TEXT}
#: What an altered column may have had before.
_ALTERED: dict[str, tuple[type, ...]] = {"type": (dict,), "nullable": (bool,), "default": _MAYBE, "comment": _MAYBE}


def _known(entry: dict[str, Any]) -> bool:
    """Whether an inverse is one of this release, with all that it needs, and nothing else."""
    op = entry["op"]
    needs = {"op": _TEXT, "sure": (bool,), **_FIELDS[op], **({} if op in ("cannot", "stays") else _PLACE)}
    may = needs | (_ALTERED if op == "alter_column" else {})
    typed = all(isinstance(value, may[name]) for name, value in entry.items())
    lists = (value for value in entry.values() if isinstance(value, list))
    return typed and needs.keys() <= entry.keys() and all(isinstance(name, _MAYBE) for its in lists for name in its)


def why_unknown(made: Made) -> str:
    """Why :func:`kept_of` a run has nothing."""
    if made.error == STAMPED:
        return "it was recorded by 'stamp', so db-smart has made nothing for it"
    if made.inverse is not None:
        return (
            "what the history has to take it back is not as this release of db-smart writes it: it was edited, or a "
            "later release has written it, which can take it back"
        )
    return (
        "the history does not have what takes it back: it was applied by an earlier release of db-smart, or by a "
        "script of 'migrate --sql'"
    )


def is_revision(made: Made) -> bool:
    """Whether a run was that of a revision of Alembic."""
    return made.checksum.startswith(ALEMBIC)


def inverses(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """What to do, in this order: types go last, when no column has them any more."""
    newest = kept["made"][::-1]
    return sorted(newest, key=lambda one: one["op"] == "drop_type")


def touches(entry: dict[str, Any], later: dict[str, Any]) -> bool:
    """Whether what a later run did concerns what an earlier one made."""
    if "table" not in later or entry["schema"] != later["schema"] or not tables_of(entry) & tables_of(later):
        return False
    whole = {"drop_table", "rename_table"}
    if (entry["table"] and {entry["op"], later["op"]} & whole) or entry["op"] == later["op"] == "table_comment":
        return True
    return bool(_names(entry) & _names(later))


def stands_on(entry: dict[str, Any], names: set[str], key: Callable[[str], str]) -> bool:
    """Whether a view that has these names would be broken by what an inverse takes away."""
    if entry["op"] not in ("drop_table", "drop_columns", "rename_table", "rename_column"):
        return False
    of_op: dict[str, list[str]] = {"drop_columns": entry.get("names", []), "rename_column": [entry.get("name", "")]}
    columns = of_op.get(entry["op"])
    return key(entry["table"]) in names and (columns is None or any(key(name) in names for name in columns))


def tables_of(entry: dict[str, Any]) -> set[str]:
    """The table of an inverse, by all of its names."""
    return {entry["table"], *([entry["name"]] if entry["op"] == "rename_table" else [])}


def _names(entry: dict[str, Any]) -> set[Any]:
    return {entry.get("name"), entry.get("to"), *entry.get("names", ()), *entry.get("constraints", ())} - {None}


def said_of(entry: dict[str, Any]) -> str:
    """An inverse as a person reads it."""
    table, name = f"{entry['table']!r}", repr(entry.get("name"))
    names = ", ".join(map(repr, entry.get("names", ())))
    column = f"the column {name} of {table}"
    kind = entry.get("kind")
    return {
        "drop_table": f"drop the table {table}",
        "drop_columns": f"drop the column{'s' if len(entry.get('names', ())) > 1 else ''} {names} of {table}",
        "drop_index": f"drop the index {name} of {table}",
        "drop_constraint": f"drop the constraint {name} of {table}",
        "rename_table": f"rename the table {table} back to {name}",
        "rename_column": f"rename {column} back to {entry.get('to')!r}",
        "alter_column": f"alter {column} back ({', '.join(key for key in _ALTERED if key in entry)})",
        "table_comment": f"put back the comment of {table}",
        "declare": f"{'drop' if entry.get('text') is None else 'put back'} the {kind} {name}",
        "drop_type": f"drop the type {name}",
    }[entry["op"]]
