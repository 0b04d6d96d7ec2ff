"""Expressions as PostgreSQL shows them, in one spelling.

It shows the tree that it has parsed. What it shows it may parse to another tree, so that a database that was restored
from a dump shows some of its checks in another way than the one that was dumped.
"""

from __future__ import annotations

import re
from typing import Any

#: What parentheses do not count within, and parentheses.
PIECES = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()]""")
#: A constant with its type; a list of such whose type is cast as a whole.
_CONSTANT = r"'(?:[^']|'')*'::[\w .\"]+?(?:\(\d+\))?"
_CAST_LIST = re.compile(rf"\(ARRAY\[({_CONSTANT}(?:, {_CONSTANT})*)\]\)::([\w .\"]+)\[\]")
_CONSTANTS = re.compile(_CONSTANT + r"(?=, '|$)")

#: A default that is a number or a text, by the type that its column has.
_NUMBER = re.compile(r"'?(-?\d+(?:\.\d+)?)'?(?:::(?:smallint|integer|bigint|numeric))?")
_NUMBERS = re.compile(r"smallint|integer|bigint|numeric(\(.*\))?")
_STRING = re.compile(r"('(?:[^']|'')*')::(?:text|character varying)")
_STRINGS = re.compile(r"text|character varying(\(.*\))?")


def constant(default: str, type_: str) -> str:
    """A default, without the type of a number or text: a column that gets another type keeps it with the old one."""
    for column, value in ((_NUMBERS, _NUMBER), (_STRINGS, _STRING)):
        found = value.fullmatch(default) if column.fullmatch(type_) else None
        if found is not None:
            return found[1]
    return default


def alike(text: str) -> str:
    """An expression, or what has some in it, in the spelling that parsing it again does not change."""
    if ")::" in text:
        text = _CAST_LIST.sub(_cast_each, text)
    for word in (" AND ", " OR "):
        if word in text:
            text = _text(_flat(_tree(text), word))
    return text


def parenthesized(text: str) -> tuple[str, str]:
    """What stands in the first parentheses of a text, and what follows them."""
    depth, start = 0, 0
    for piece in PIECES.finditer(text):
        if piece[0] == "(":
            depth += 1
            start = start or piece.end()
        elif piece[0] == ")":
            depth -= 1
            if not depth:
                return text[start : piece.start()], text[piece.end() :]
    return text, ""


def _cast_each(found: re.Match[str]) -> str:
    return f"ARRAY[{', '.join(f'({one})::{found[2]}' for one in _CONSTANTS.findall(found[1]))}]"


def _tree(text: str) -> list[Any]:
    """A text with what stands in parentheses as lists of its own, and a string of SQL apart, as a tuple."""
    stack: list[list[Any]] = [[]]
    end = 0
    for piece in PIECES.finditer(text):
        if end != piece.start():
            stack[-1].append(text[end : piece.start()])
        end = piece.end()
        if piece[0] == "(":
            stack.append([])
        elif piece[0] == ")" and len(stack) > 1:
            closed = stack.pop()
            stack[-1].append(closed)
        else:
            stack[-1].append((piece[0],))
    return [*stack[0], *stack[1:], text[end:]] if end != len(text) else [*stack[0], *stack[1:]]


def _flat(tree: list[Any], word: str) -> list[Any]:
    """A tree in which ``(a AND b) AND c`` is ``a AND b AND c``."""
    found: list[Any] = []
    for index, piece in enumerate(tree):
        if not isinstance(piece, list):
            found.append(piece)
            continue
        inner = _flat(piece, word)
        before = tree[index - 1] if index else None
        after = tree[index + 1] if index + 1 < len(tree) else None
        operand = (before is None or (isinstance(before, str) and before.endswith(word))) and (
            after is None or (isinstance(after, str) and after.startswith(word))
        )
        joined = (before, after) != (None, None) and any(isinstance(one, str) and word in one for one in inner)
        if operand and joined:
            found += inner
        else:
            found.append(inner)
    return found


def _text(tree: list[Any]) -> str:
    return "".join(
        f"({_text(piece)})" if isinstance(piece, list) else piece[0] if isinstance(piece, tuple) else piece
        for piece in tree
    )
