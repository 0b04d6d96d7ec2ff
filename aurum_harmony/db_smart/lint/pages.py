"""The page of the rules, as it is in the package."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


@cache
def _sections() -> dict[str, str]:
    page = files("aurum_harmony.db_smart").joinpath("rules.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (DS\d+)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def section(rule: str) -> str:
    """The section of a rule."""
    return f"## {rule}\n{_sections()[rule]}".rstrip()
