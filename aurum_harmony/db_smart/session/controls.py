"""SQL that begins or ends a transaction, found also behind another statement of the same string."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..dialects.base import Facts, facts_of

#: Not ``/*!50001 … */``, whose content MariaDB and MySQL run.
_BEFORE = r"(?:\s|(?:--|#)[^\n]*(?:\n|$)|/\*(?!M?!)(?:(?!\*/).)*\*/)*"
_COMMENTS = re.compile(rf"\A{_BEFORE}", re.DOTALL)
#: Not those of savepoints, prepared transactions and MariaDB's ``BEGIN NOT ATOMIC … END``.
_CONTROLS = re.compile(
    _BEFORE + r"(?:START\s+TRANSACTION|BEGIN(?!\s+NOT\b)"
    r"|(?:COMMIT|ROLLBACK)(?!\s+(?:(?:WORK|TRANSACTION)\s+)?(?:TO|PREPARED)\b)"
    r"|PREPARE\s+TRANSACTION|END|ABORT)\b",
    re.IGNORECASE | re.DOTALL,
)
#: What has statements of its own within, with semicolons.
_BODY = re.compile(
    _BEFORE + r"(?:BEGIN\s+NOT\b|CREATE\b(?:[^(;]|\(\))*?\b(?:PROCEDURE|FUNCTION|TRIGGER|EVENT|PACKAGE)\b)",
    re.IGNORECASE | re.DOTALL,
)
#: MariaDB commits the open transaction when it is switched on.
_AUTOCOMMIT = re.compile(
    r"SET\b(?:.*[\s,])?(?:(?:SESSION|LOCAL)\s+|@@(?:SESSION\.|LOCAL\.)?)?autocommit\s*:?=(?!\s*(?:0|OFF|FALSE)\b)",
    re.IGNORECASE | re.DOTALL,
)
#: What MariaDB and MySQL run of a comment.
_RUN = re.compile(r"/\*M?!\d*(.*)\*/", re.DOTALL)
_ATOMIC = re.compile(r"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)


def controls_transaction(sql: str, dialect: str) -> bool:
    """Whether SQL begins or ends a transaction.

    :param sql: one or more statements.
    :param dialect: name of the dialect.
    """
    facts = facts_of(dialect)
    for statement in _statements(sql, facts.quoted):
        text = plain(statement, facts)
        if _CONTROLS.match(text):
            return True
        if "autocommit" in text.lower() and facts.name == "mysql":
            text = re.sub(facts.quoted, "''", text, flags=re.DOTALL)
            if _AUTOCOMMIT.match(text):
                return True
        if _has_body(statement, facts):
            return False  # what follows is its own
    return False


def split(sql: str, dialect: str) -> list[str]:
    """The statements of a string; what has statements within stays whole, with all that follows it.

    :param dialect: name of the dialect.
    """
    facts, rest = facts_of(dialect), sql
    found: list[str] = []
    for statement in _statements(sql, facts.quoted):
        if _has_body(statement, facts):
            return [*found, rest]
        rest = rest[len(statement) + 1 :]
        if without_comments(statement):
            found.append(statement)
    return found


def without_comments(sql: str) -> str:
    """SQL from its first word on."""
    return _COMMENTS.sub("", sql, count=1)


def plain(sql: str, facts: Facts) -> str:
    """A statement from its first word to its last, without the comments in it; what MariaDB runs of one stays."""

    def shown(found: re.Match[str]) -> str:
        if not found[0].startswith(("--", "#", "/*")):
            return found[0]
        run = _RUN.match(found[0]) if facts.name == "mysql" else None
        return " " if run is None else f" {run[1]} "

    return re.sub(facts.quoted, shown, sql, flags=re.DOTALL).strip("; \t\r\n")


def _has_body(statement: str, facts: Facts) -> bool:
    """Whether a statement has others within that are no string, so that it is cut off at the first semicolon."""
    return _BODY.match(statement) is not None and (
        not facts.bodies_are_strings or _ATOMIC.search(statement) is not None
    )


def _statements(sql: str, quoted: str) -> Iterator[str]:
    start = 0
    for token in re.finditer(rf"(?:{quoted})|(?P<end>;)", sql, re.DOTALL):
        if token["end"] is not None:
            yield sql[start : token.start()]
            start = token.end()
    yield sql[start:]
