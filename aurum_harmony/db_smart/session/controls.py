"""SQL that begins or ends a transaction, found also behind another statement of the same string."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..dialects.base import facts_of

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


def controls_transaction(sql: str, dialect: str) -> bool:
    """Whether SQL begins or ends a transaction.

    :param sql: one or more statements.
    :param dialect: name of the dialect.
    """
    facts = facts_of(dialect)
    for statement in _statements(sql, facts.quoted):
        if _CONTROLS.match(statement):
            return True
        if _BODY.match(statement) and (not facts.bodies_are_strings or _ATOMIC.search(statement)):
            return False  # what follows is its own
    return False


def _statements(sql: str, quoted: str) -> Iterator[str]:
    start = 0
    for token in re.finditer(rf"(?:{quoted})|(?P<end>;)", sql, re.DOTALL):
        if token["end"] is not None:
            yield sql[start : token.start()]
            start = token.end()
    yield sql[start:]
