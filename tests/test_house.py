"""The order of the code: who may import whom, in the package and in the tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.harness.processes import ROOT


def imports(path: Path) -> Iterator[str]:
    """The modules that a module imports, wherever in it; of ``from A import b`` both ``A`` and ``A.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


def test_no_test_module_is_imported() -> None:
    """What tests share stands in ``tests/samples.py`` and ``tests/harness``."""
    found = [
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "tests").rglob("*.py")
        for name in imports(path)
        if any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert found == []
