"""Which branch of Git is checked out, and which commit, by the files of ``.git``: a boot does not start Git."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from ..notices import logger_of

_logger = logger_of(__name__)

#: Stands for what is checked out without a branch; Git lets no branch have this name.
DETACHED = "HEAD"
_HEADS = "refs/heads/"
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
#: Of an operation that detaches HEAD for a while: where it says which branch it is about.
_MEANWHILE = ("rebase-merge/head-name", "rebase-apply/head-name")
_CREATED, _MOVED, _RENAMED = "branch: Created from ", "checkout: moving from ", "Branch: renamed refs/heads/"
#: How long to wait for a checkout that goes on, seconds, and how long its index is still new.
_PATIENCE, _NEW = 10.0, 0.2


class Checkout:
    """A working tree of Git.

    :param folder: the Git directory of this working tree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: That of the repository, which may have several working trees.
        self.common = folder / (_read(folder / "commondir").strip() or ".")

    @classmethod
    def find(cls, path: str) -> Checkout | None:
        """The working tree in which a folder is; ``None`` where it is in none."""
        for folder in (Path(path).absolute(), *Path(path).absolute().parents):
            found = folder / ".git"
            if found.is_dir():
                return cls(found)
            if found.is_file():  # of a further working tree, or of a submodule
                return cls(folder / _read(found).removeprefix("gitdir:").strip())
        return None

    @property
    def branch(self) -> str:
        """The branch that is checked out, or that is being rebased; else :data:`DETACHED`."""
        for name in ("HEAD", *_MEANWHILE):  # a rebase may be left behind by a checkout of another branch
            text = _read(self.folder / name).strip().removeprefix("ref: ")
            if text.startswith(_HEADS):
                return text.removeprefix(_HEADS)
        return DETACHED

    @property
    def commit(self) -> str | None:
        """The commit that is checked out; ``None`` where there is none yet, or Git alone can read it."""
        name = _read(self.folder / "HEAD").strip().removeprefix("ref: ")
        packed = _read(self.common / "packed-refs").splitlines()
        texts = [
            name,
            _read(self.common / name),
            *(line[: -len(name) - 1] for line in packed if line.endswith(f" {name}")),
        ]
        return next((text.strip() for text in texts if _COMMIT.fullmatch(text.strip())), None)

    @property
    def readable(self) -> bool:
        """Whether the branches are files, and not in a table that only Git can read."""
        return not (self.common / "reftable").is_dir()

    def settle(self) -> None:
        """Wait until Git is done with a checkout: it writes the files first, which restarts a server, and HEAD last."""
        deadline = time.monotonic() + _PATIENCE
        while self._busy():
            if time.monotonic() > deadline:
                _logger.warning(
                    "db-smart: %s has been there for %g s: if no Git is running, remove it",
                    self.folder / "index.lock",
                    _PATIENCE,
                )
                return
            time.sleep(0.02)

    def _busy(self) -> bool:
        with suppress(OSError):
            if 0 <= time.time() - (self.folder / "index").stat().st_mtime < _NEW:
                return True
        return (self.folder / "index.lock").exists()

    def branches(self) -> set[str]:
        """All branches, with that which is checked out, which may have no commit yet."""
        heads = self.common / _HEADS
        found = {path.relative_to(heads).as_posix() for path in heads.rglob("*") if path.is_file()}
        for line in _read(self.common / "packed-refs").splitlines():
            _, _, name = line.partition(f" {_HEADS}")
            found.add(name)
        return (found | {self.branch}) - {"", DETACHED}

    def has(self, branch: str) -> bool:
        """Whether there is such a branch, here or at a remote as Git has seen it last."""
        remotes = (self.common / "refs/remotes").glob("*")
        if branch in self.branches() or any((remote / branch).is_file() for remote in remotes):
            return True
        packed = (line.partition(" refs/remotes/")[2] for line in _read(self.common / "packed-refs").splitlines())
        return any(name.partition("/")[2] == branch for name in packed)

    def checked_out(self) -> set[str]:
        """What is checked out in all working trees of the repository."""
        folders = {self.folder, self.common, *(self.common / "worktrees").glob("*")}
        return {Checkout(folder).branch for folder in folders}

    def main_branch(self) -> str | None:
        """The default branch of the remote, else ``main`` or ``master``, else the only one; ``None`` if not clear."""
        there = self.branches()
        remote = _read(self.common / "refs/remotes/origin/HEAD").strip()
        names = (remote.removeprefix("ref: refs/remotes/origin/"), "main", "master")
        return next((name for name in names if name in there), there.pop() if len(there) == 1 else None)

    def parent(self, branch: str) -> str | None:
        """From which branch another one was made, or of which it has got its name; ``None`` where no log says so."""
        lines = [line.partition("\t") for line in _read(self.common / "logs" / _HEADS / branch).splitlines()]
        for _, _, said in reversed(lines):
            if said.startswith(_RENAMED):
                return said.removeprefix(_RENAMED).partition(" ")[0]
        created = next((line for line in lines if line[2].startswith(_CREATED)), None)
        if created is None:
            return None
        point = created[2].removeprefix(_CREATED)
        if not point.startswith("HEAD"):
            return point.removeprefix(_HEADS)
        for line in _read(self.folder / "logs" / "HEAD").splitlines():
            moment, _, said = line.partition("\t")
            # Both lines have the same commit, person and time, as the same command wrote them.
            if _after(moment) == _after(created[0]) and said.startswith(_MOVED) and said.endswith(f" to {branch}"):
                name = said.removeprefix(_MOVED).removesuffix(f" to {branch}")
                return name if name in self.branches() else DETACHED
        return None


def _after(moment: str) -> str:
    """A line of a log from the new commit on."""
    return moment.partition(" ")[2]


def _read(path: Path) -> str:
    """The text of a file, with any bytes in names; empty where there is none."""
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""
