"""Python source in the layout of black and of ruff's formatter, for the expressions of a migration."""

from __future__ import annotations

import ast
from collections.abc import Iterator

#: The length of a line in both by default, characters.
WIDTH = 88
#: What stands for the object of a method that begins a line.
_BASE = "_"


def laid_out(source: str, indent: int = 0) -> str:
    """One expression, each line of which is indented.

    What does not fit is opened, one argument a line with a comma at its end, which both leave as it is whatever length
    of line they are set to.

    :param source: the expression.
    :param indent: by how many blanks.
    """
    return " " * indent + _expression(ast.parse(source, mode="eval").body, indent, "")


def _expression(node: ast.expr, indent: int, after: str) -> str:
    """An expression as it stands behind an indentation, with what comes after it on the same line.

    :param after: a comma, or nothing.
    """
    flat = _flat(node)
    first = flat.split("\n", 1)[0]
    if indent + len(first) + len(after) <= WIDTH:
        return flat + after
    calls = list(_chained(node))
    if len(calls) > 2:
        lines = [_expression(calls[0], indent, "")]
        for number, call in enumerate(calls[1:], 2):
            dotted = _dotted(call)
            lines.append(" " * indent + _expression(dotted, indent, after if number == len(calls) else ""))
        return "\n".join(lines).replace(f"{_BASE}.", ".")
    pieces = _pieces(node)
    if pieces is None:
        return flat + after
    opening, items, closing = pieces
    inner = indent + 4
    lines = []
    for keyword, item in items:
        lines.append(
            " " * inner + keyword + _expression(item, inner + len(keyword) if _pieces(item) is None else inner, ",")
        )
    return "\n".join([opening, *lines, " " * indent + closing + after])


def _chained(node: ast.expr) -> Iterator[ast.expr]:
    """A call of a method of what a call returns, and so on: each of these calls, the first one first."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        yield from _chained(node.func.value)
    yield node


def _dotted(node: ast.expr) -> ast.expr:
    """A call of a method, of a name that stands for its object."""
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Attribute)
    func = ast.Attribute(ast.Name(_BASE, ast.Load()), node.func.attr, ast.Load())
    return ast.Call(func, node.args, node.keywords)


def _pieces(node: ast.expr) -> tuple[str, list[tuple[str, ast.expr]], str] | None:
    """What opens, the items with their keywords, and what closes; ``None`` for what cannot be opened."""
    if isinstance(node, ast.Call) and (node.args or node.keywords):
        items = [
            ("*" if isinstance(one, ast.Starred) else "", getattr(one, "value", one))
            if isinstance(one, ast.Starred)
            else ("", one)
            for one in node.args
        ]
        items += [(f"{one.arg}=" if one.arg else "**", one.value) for one in node.keywords]
        return f"{_flat(node.func)}(", items, ")"
    if isinstance(node, ast.List) and node.elts:
        return "[", [("", one) for one in node.elts], "]"
    if isinstance(node, ast.Tuple) and node.elts:
        return "(", [("", one) for one in node.elts], ")"
    if isinstance(node, ast.Dict) and node.keys:
        return (
            "{",
            [
                ("**" if key is None else f"{_flat(key)}: ", value)
                for key, value in zip(node.keys, node.values, strict=True)
            ],
            "}",
        )
    return None


def _flat(node: ast.expr) -> str:
    """An expression on one line."""
    if isinstance(node, ast.Constant):
        return _constant(node.value)
    if isinstance(node, ast.Call):
        items = [_flat(one) for one in node.args]
        items += [f"{one.arg}={_flat(one.value)}" if one.arg else f"**{_flat(one.value)}" for one in node.keywords]
        return f"{_flat(node.func)}({', '.join(items)})"
    if isinstance(node, ast.Attribute):
        return f"{_flat(node.value)}.{node.attr}"
    if isinstance(node, ast.Starred):
        return f"*{_flat(node.value)}"
    if isinstance(node, ast.List):
        return f"[{', '.join(map(_flat, node.elts))}]"
    if isinstance(node, ast.Tuple):
        return f"({', '.join(map(_flat, node.elts))}{',' if len(node.elts) == 1 else ''})"
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return (
            "{"
            + ", ".join(f"**{_flat(value)}" if key is None else f"{_flat(key)}: {_flat(value)}" for key, value in pairs)
            + "}"
        )
    return ast.unparse(node)


def _constant(value: object) -> str:
    """A literal with the quotes that both prefer."""
    if value is ...:
        return "..."
    if not isinstance(value, str):
        return repr(value)
    body = repr(f"{value}'\"")[1:-4].replace("\\'", "'")  # with both in it, it is in single quotes
    quote = "'" if value.count('"') > value.count("'") else '"'
    return quote + body.replace(quote, f"\\{quote}") + quote
