"""Findings as SARIF 2.1.0, which code hosts show beside the lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from ..schema.rules import RULES, Rule
from .findings import Finding, Linted
from .pages import section

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(version: str, found: Sequence[Linted]) -> str:
    """A log of one run.

    :param version: of this package.
    """
    numbers = {name: number for number, name in enumerate(RULES)}
    results = [_result(one, linted.database, numbers) for linted in found for one in linted.findings]
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "db-smart",
                "version": version,
                "rules": [_rule(rule) for rule in RULES.values()],
            }
        },
        "columnKind": "unicodeCodePoints",
        "results": results,
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {"level": level, "message": {"text": f"Database {linted.database}: {text}"}}
                    for linted in found
                    for level, texts in (
                        ("error", linted.failing),
                        ("note", [*([linted.unreachable] if linted.unreachable else []), *linted.notes]),
                    )
                    for text in texts
                ],
            }
        ],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(rule: Rule) -> dict[str, Any]:
    text = section(rule.id)
    return {
        "id": rule.id,
        "shortDescription": {"text": f"{rule.summary[0].upper()}{rule.summary[1:]}."},
        "fullDescription": {"text": f"{rule.why} {rule.fix}"},
        "helpUri": f"urn:db-smart:{rule.document}",
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": rule.level},
    }


def _result(finding: Finding, database: str, numbers: dict[str, int]) -> dict[str, Any]:
    text = finding.message
    if finding.statement is not None:
        text += f"\n\n    {finding.statement}"
    if finding.instead:
        text += f"\n\nInstead:\n\n{finding.instead}"
    about = "\0".join([finding.rule.id, database, finding.migration or "", finding.statement or finding.message])
    result: dict[str, Any] = {
        "ruleId": finding.rule.id,
        "ruleIndex": numbers[finding.rule.id],
        "level": finding.level,
        "message": {"text": text},
        "partialFingerprints": {"dbSmart/v1": hashlib.sha256(about.encode()).hexdigest()},
    }
    if finding.path is not None:
        path = PurePath(finding.path)
        uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
        location: dict[str, Any] = {"artifactLocation": {"uri": uri}}
        if finding.line is not None:
            location["region"] = {"startLine": finding.line}
        result["locations"] = [{"physicalLocation": location}]
    if finding.allowed is not None:
        result["suppressions"] = [{"kind": "inSource", "justification": finding.allowed}]
    return result
