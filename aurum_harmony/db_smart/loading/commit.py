"""Which commit of Git is checked out, by the files of ``.git``: a process that serves does not start Git."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def commit_of(path: str) -> str | None:
    """The commit of the working tree in which a folder is; ``None`` where it is in none, or nothing is committed."""
    for folder in (Path(path).absolute(), *Path(path).absolute().parents):
        found = folder / ".git"
        if found.is_file():  # of a further working tree, or of a submodule
            found = folder / _read(found).removeprefix("gitdir:").strip()
        if found.is_dir():
            return _commit(found)
    return None


def _commit(folder: Path) -> str | None:
    name = _read(folder / "HEAD").strip().removeprefix("ref: ")
    common = folder / (_read(folder / "commondir").strip() or ".")
    texts = [name, _read(folder / name), _read(common / name)]
    texts += [
        line.partition(" ")[0] for line in _read(common / "packed-refs").splitlines() if line.endswith(f" {name}")
    ]
    return next((text.strip() for text in texts if _COMMIT.fullmatch(text.strip())), None)


def _read(path: Path) -> str:
    """The text of a file, with any bytes in names; empty where there is none."""
    with suppress(OSError):
        return os.fsdecode(path.read_bytes())
    return ""
