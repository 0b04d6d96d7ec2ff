"""Values of a database as JSON, for what the progress table keeps: cursors, and rows that a statement returned."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

#: How a value that JSON has no form for becomes text and comes back, by the name of its type.
_TYPES: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (
        timedelta,
        lambda value: f"{value.days} {value.seconds} {value.microseconds}",
        lambda text: timedelta(*map(int, text.split())),
    ),
    "decimal": (Decimal, str, Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
}


def dumps(value: Any) -> str:
    """A value, or lists of them, as JSON; rows become lists.

    :raises TypeError: there is a value of a type that has no form here.
    """
    return json.dumps(_pack(value), separators=(",", ":"))


def loads(text: str) -> Any:
    """What :func:`dumps` made JSON of."""
    return _unpack(json.loads(text))


def _pack(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    for name, (kind, text, _) in _TYPES.items():
        if type(value) is kind:
            return {name: text(value)}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if isinstance(value, dict):
        ((name, content),) = value.items()
        if name == "dict":
            return {_unpack(key): _unpack(item) for key, item in content}
        return _TYPES[name][2](content)
    return value
