"""Comparing the default that a column has with the one that it is to have."""

from __future__ import annotations

import re
from decimal import Decimal

_TOKEN = re.compile(
    r"""(?P<string>[eE]?'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`)|(?P<space>\s+)|(?P<other>.)"""
)
#: What PostgreSQL writes behind a value: its type.
_CAST = re.compile(
    r'::(?:[\w.]+|"(?:[^"]|"")*")(?: varying| precision)?(?:\(\d+(?:, ?\d+)?\))?(?: with(?:out)? time zone)?(?:\[\])*'
)
#: One value or name in parentheses, which are not those of a call.
_SINGLE = re.compile(r"""(?<![\w"])\(('(?:[^']|'')*'|"(?:[^"]|"")*"|[\w.]+)\)""")
_ON_UPDATE = re.compile(r"\s+on update .*", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
#: How MariaDB shows them.
_SHOWN = {"true": "1", "false": "0", "now()": "current_timestamp()", "current_timestamp": "current_timestamp()"}


def same_default(shown: str | None, wanted: str | None, dialect: str) -> bool:
    """Whether two defaults are the same; in doubt they are not, as setting a default once more does no harm.

    :param shown: as the database shows it, ``None`` when there is none.
    :param wanted: SQL, ``None`` when there is to be none.
    :param dialect: name of the dialect; ``mysql`` for MariaDB too.
    """
    if shown is not None and dialect == "mysql":
        shown = _ON_UPDATE.sub("", shown) if not shown.startswith("'") else shown
    have, want = _plain(shown, dialect), _plain(wanted, dialect)
    # MariaDB shows the default of a number without quotes, and with all digits of its column.
    if dialect == "mysql" and have and want and shown and _NUMBER.fullmatch(shown) and _NUMBER.fullmatch(want):
        return Decimal(have) == Decimal(want)
    # PostgreSQL adds the types of the values within an expression.
    return have == want or (have is not None and dialect == "postgresql" and _uncast(have) == want)


def without_types(text: str) -> str:
    """SQL as PostgreSQL writes it, without the types behind values, and without parentheses around a single one."""
    parts, position = [], 0
    while position < len(text):
        token = _CAST.match(text, position)
        if token is None:
            token = _TOKEN.match(text, position)
            assert token is not None
            parts.append(token[0])
        position = token.end()
    text, count = "".join(parts), 1
    while count:
        text, count = _SINGLE.subn(r"\1", text)
    return text


def _plain(default: str | None, dialect: str) -> str | None:
    """A default without what makes no difference: outer parentheses, spaces, and upper case outside of quotes."""
    if default is None:
        return None
    text = "".join(map(_spelled, _TOKEN.finditer(default.strip())))
    while _enclosed(text):
        text = text[1:-1].strip()
    value = _TOKEN.match(text)
    if value is not None and value["string"] is not None:
        rest = text[value.end() :]
        if dialect == "postgresql" and _CAST.fullmatch(rest):
            rest = ""
        # SQLite keeps a default as it is written, and a number in quotes is not always one there.
        if not rest and dialect != "sqlite" and _NUMBER.fullmatch(value["string"][1:-1]):
            return value["string"][1:-1]
        return value["string"] + rest
    if dialect == "postgresql" and (cast := re.fullmatch(rf"(null|{_NUMBER.pattern}){_CAST.pattern}", text)):
        text = cast[1]
    if dialect == "mysql":
        text = _SHOWN.get(text, text)
    return None if text == "null" else text


def _spelled(token: re.Match[str]) -> str:
    text = token[0]
    if token["string"] is not None:
        return text[1:].replace("\\\\", "\\") if text[0] in "eE" else text
    if token["name"] is not None:
        return text
    return " " if token["space"] is not None else text.lower()


def _uncast(text: str) -> str:
    """A default without the types of its string literals."""
    parts, position = [], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        assert token is not None
        parts.append(token[0])
        position = token.end()
        if token["string"] is not None and (cast := _CAST.match(text, position)) is not None:
            position = cast.end()
    return "".join(parts)


def _enclosed(text: str) -> bool:
    """Whether one pair of parentheses encloses a whole text."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return token[0] == ")" and token.end() == len(text) and text.startswith("(")
    return False
