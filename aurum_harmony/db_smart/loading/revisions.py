"""The revisions of an Alembic directory, read from their files and never imported.

Each names itself and those before it by literals, so the files tell what there is, in which order, and how far a
target reaches. How to walk that graph is left to Alembic: its ``RevisionMap`` takes what was read.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import MigrationError, text_of
from .alembic_files import AlembicFiles, Target
from .sources import ALEMBIC, Sources

if TYPE_CHECKING:
    from alembic.script.revision import Revision as Node
    from alembic.script.revision import RevisionMap

#: What Alembic takes from the module of a revision.
_NAMES = ("revision", "down_revision", "depends_on", "branch_labels")
#: The name of a file whose module does not say its identifier, as the first releases of Alembic wrote them.
_LEGACY = re.compile(r"([a-f0-9]+)\.py$")


@dataclass(frozen=True)
class Revision:
    """One revision.

    :ivar name: its identifier.
    :ivar down: identifiers of those that it comes after.
    :ivar depends_on: identifiers or labels of those that must be there, besides.
    :ivar labels: the labels that it gives to its branch.
    :ivar message: the first line of its description.
    :ivar path: its file.
    :ivar checksum: hash of that file, by which the history also tells a revision from a migration.
    """

    name: str
    down: tuple[str, ...]
    depends_on: tuple[str, ...]
    labels: tuple[str, ...]
    message: str
    path: str
    checksum: str


class Revisions:
    """The revisions of one directory, and how far they are to be applied.

    :ivar by_name: identifier -> revision.
    :ivar target: how far to go.
    """

    def __init__(self, revisions: Iterable[Revision], target: Target) -> None:
        self.by_name: dict[str, Revision] = {}
        self.target = target
        for one in revisions:
            other = self.by_name.setdefault(one.name, one)
            if other is not one:
                raise MigrationError(
                    f"Two revisions of Alembic are named {one.name!r}: {other.path} and {one.path}. Nothing was "
                    "changed. Remove one of the files."
                )

    def unknown(self, heads: Iterable[str]) -> list[str]:
        """The heads of a database that these revisions do not know: it is ahead of this code."""
        return [name for name in heads if name not in self.by_name]

    def applied(self, heads: Iterable[str]) -> list[Revision]:
        """What a database with these heads holds, in the order in which Alembic ran it."""
        with self._told():
            nodes = self._graph.iterate_revisions(tuple(heads), "base", inclusive=True, assert_relative_length=False)
            return self._in_order(nodes)

    def before(self, name: str) -> tuple[str, ...]:
        """Those that a revision comes right after, or depends on."""
        with self._told():
            node = self._graph.get_revision(name)
        return () if node is None else node._all_down_revisions

    def pending(self, heads: Iterable[str]) -> list[Revision]:
        """What a database with these heads lacks until the target is reached, in the order in which Alembic runs it.

        :raises MigrationError: the target is not to be reached: there is none of its name, or there are several heads.
        """
        with self._told():
            target = self.target if isinstance(self.target, str) else tuple(self.target)
            return self._in_order(self._graph.iterate_revisions(target, tuple(heads), implicit_base=True))

    def _in_order(self, nodes: Iterable[Node]) -> list[Revision]:
        """Alembic gives the last one first."""
        return [self.by_name[node.revision] for node in reversed(list(nodes))]

    @cached_property
    def _graph(self) -> RevisionMap:
        from alembic.script.revision import Revision as Node
        from alembic.script.revision import RevisionMap

        return RevisionMap(
            lambda: [Node(one.name, one.down, one.depends_on, one.labels) for one in self.by_name.values()]
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what is wrong with the graph, or with the target.

        :raises MigrationError: something is.
        """
        from alembic.script.revision import MultipleHeads, RevisionError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # by which Alembic says that a revision is not there
                yield
        except MultipleHeads as error:
            heads = ", ".join(sorted(error.heads))
            raise MigrationError(
                f"The revisions of Alembic have several heads ({heads}), and the target is {self.target!r}. Nothing "
                "was changed. Merge them ('flask db merge heads'), or say how far to go: alembic_target='heads' for "
                "all of them, 'label@head' for one branch, or a list."
            ) from None
        except (RevisionError, KeyError, UserWarning) as error:
            raise MigrationError(
                f"The revisions of Alembic cannot be put in order for the target {self.target!r}: {text_of(error)}. "
                "Nothing was changed. Put the files right, or alembic_target."
            ) from None


def read(sources: Sources, alembic: AlembicFiles) -> Revisions:
    """Read the revisions among the files of an Alembic directory.

    :raises MigrationError: a file does not parse, does not name itself by literals, or has the name of another one.
    """
    named, deep = alembic.folders()
    folders = [os.path.normpath(folder) for folder in named]
    found = []
    for name, path in sources.paths.items():
        folder, base = os.path.split(os.path.normpath(path))
        within = deep and any(folder.startswith(one + os.sep) for one in folders)
        skipped = base.startswith(("__init__", ".#")) or not base.endswith(".py")
        if name.startswith(ALEMBIC) and (folder in folders or within) and not skipped:
            found.append(_revision(path, sources.contents[name]))
    for folder in folders if not found else ():
        if any(name.endswith((".pyc", ".pyo")) for name in _names_in(folder)):
            raise MigrationError(
                f"{folder} has compiled revisions without their source, which is what db-smart reads. Nothing was "
                "changed. Install the application with the source of its revisions."
            )
    return Revisions(found, alembic.target)


def _names_in(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _revision(path: str, content: bytes) -> Revision:
    """What a file says of its revision.

    :raises MigrationError: see :func:`read`.
    """
    try:
        tree = ast.parse(content, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MigrationError(f"The revision in {path} does not parse: {text_of(error)}. Nothing was changed.") from None
    said: dict[str, Any] = {}
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in _NAMES:
                said[target.id] = getattr(statement, "value", None)
    values = {name: _literal(path, name, node) for name, node in said.items()}
    legacy = _LEGACY.match(os.path.basename(path))
    name = values.get("revision") or (legacy[1] if legacy else None)
    if not isinstance(name, str):
        raise MigrationError(
            f"{path} is among the revisions of Alembic, but does not say which one it is ('revision = ...'). Nothing "
            "was changed. Move it elsewhere, or name it so that it begins with '__init__' or '.#'."
        )
    down, depends_on, labels = (_texts(path, key, values.get(key)) for key in _NAMES[1:])
    message = (ast.get_docstring(tree) or "").strip().partition("\n")[0].strip()
    checksum = ALEMBIC + hashlib.sha256(content).hexdigest()[:56]  # of the 64 characters that the history keeps
    return Revision(name, down, depends_on, labels, message, path, checksum)


def _literal(path: str, name: str, node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        raise MigrationError(
            f"The revision in {path} computes its {name!r}. db-smart reads it without running the file, so that it "
            "must be written out. Nothing was changed."
        ) from None


def _texts(path: str, name: str, value: Any) -> tuple[str, ...]:
    """One name, several, or none, as Alembic takes them."""
    values = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(values, (tuple, list, set)) or not all(isinstance(one, str) for one in values):
        raise MigrationError(
            f"The revision in {path} has {name!r} {value!r}, which names no revision. Nothing was changed. Write a "
            "text, several, or None."
        )
    return tuple(values)
