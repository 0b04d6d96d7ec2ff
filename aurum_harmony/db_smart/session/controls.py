"""SQL that begins or ends a transaction, found also behind another statement of the same string."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BEFORE = r"(?:\s|(?:--|#)[^\n]*(?:\n|$)|/\*(?:(?!\*/).)*\*/)*"
#: Not those of savepoints, prepared transactions and MariaDB's ``BEGIN NOT ATOMIC … END``.
_CONTROLS = re.compile(
    _BEFORE + r"(?:START\s+TRANSACTION|BEGIN(?!\s+NOT\b)"
    r"|(?:COMMIT|ROLLBACK)(?!\s+(?:(?:WORK|TRANSACTION)\s+)?(?:TO|PREPARED)\b)"
    r"|END|ABORT)\b",
    re.IGNORECASE | re.DOTALL,
)
#: What has statements of its own within, with semicolons.
_BODY = re.compile(
    _BEFORE + r"(?:BEGIN\s+NOT\b|CREATE\b(?:[^(;]|\(\))*?\b(?:PROCEDURE|FUNCTION|TRIGGER|EVENT|PACKAGE)\b)",
    re.IGNORECASE | re.DOTALL,
)
_ATOMIC = re.compile(r"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)
#: What a semicolon within does not end a statement: strings, names, comments.
_WHOLE = {
    "postgresql": r"""\b[eE]'(?:[^'\\]|''|\\.)*'|'[^']*'|"[^"]*"|(?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*"""
    r"""|/\*.*?\*/""",
    "mysql": r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`|\#[^\n]*|--(?=\s)[^\n]*|/\*.*?\*/""",
    "sqlite": r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/""",
}
_TOKENS = {dialect: re.compile(rf"(?:{whole})|(?P<end>;)", re.DOTALL) for dialect, whole in _WHOLE.items()}


def controls_transaction(sql: str, dialect: str) -> bool:
    """Whether SQL begins or ends a transaction.

    :param sql: one or more statements.
    :param dialect: name of the dialect; ``mysql`` for MariaDB too.
    """
    for statement in _statements(sql, dialect):
        if _CONTROLS.match(statement):
            return True
        if _BODY.match(statement) and (dialect != "postgresql" or _ATOMIC.search(statement)):
            return False  # what follows is its own
    return False


def _statements(sql: str, dialect: str) -> Iterator[str]:
    start = 0
    for token in _TOKENS.get(dialect, _TOKENS["sqlite"]).finditer(sql):
        if token["end"] is not None:
            yield sql[start : token.start()]
            start = token.end()
    yield sql[start:]
