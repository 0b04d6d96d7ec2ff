"""The source files of the migrations: where they are, whether they changed, what they contain.

Nothing here imports the migrations, so that a boot with nothing to do costs a few ``stat`` calls.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from ..errors import MigrationError, scrub, text_of
from ..files import read_regular

#: Enters every digest and checksum. Raise it only when the way of computing changes on purpose: every
#: database then compares its whole history once, and every repeatable migration counts as edited.
CHECKSUM_VERSION = 1

#: A file whose time stamp is younger than this when it was scanned may change again without a change of its
#: time stamp (FAT counts in steps of 2 s), so its stamp alone is not trusted: what Git calls "racily clean".
RACY_NS = 2_000_000_000

#: Whether the system lists a folder that is open.
_BY_DESCRIPTOR = os.scandir in os.supports_fd

#: What is larger is no source.
MAX_BYTES = 64 * 1024 * 1024


class Sources:
    """One scan of the source files of a module or a package of modules.

    :ivar module: dotted name of the module or package.
    :ivar roots: the directories that hold the files.
    :ivar stats: path relative to its root -> ``[mtime in ns, ctime in ns, size in bytes]``, sorted by path.
    :ivar elsewhere: path relative to its root -> that root, of files that are not below the first one.
    :ivar scanned_ns: when the scan began, nanoseconds since the epoch.
    """

    def __init__(
        self,
        module: str,
        package: bool,
        roots: list[str],
        stats: dict[str, list[int]],
        elsewhere: dict[str, str],
        scanned_ns: int,
    ) -> None:
        self.module = module
        self.package = package
        self.roots = roots
        self.stats = stats
        self.elsewhere = elsewhere
        self.scanned_ns = scanned_ns

    @cached_property
    def paths(self) -> dict[str, str]:
        """Path relative to its root -> absolute path, sorted as :attr:`stats`."""
        return {name: os.path.join(self.elsewhere.get(name, self.roots[0]), name) for name in self.stats}

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """The bytes of every file, read once: what is hashed is what is run.

        :raises MigrationError: a file cannot be read.
        """
        contents = {}
        for relative, path in self.paths.items():
            try:
                content = read_regular(Path(path), MAX_BYTES)
            except OSError as error:
                raise MigrationError(f"Cannot read the migrations in {path}: {error.strerror}.") from None
            if content is None:
                raise MigrationError(f"Cannot read the migrations in {path}: it is a pipe or a device, not a file.")
            contents[relative] = content
        return contents

    @cached_property
    def digest(self) -> str:
        """Hash of all names and contents, in hexadecimal."""
        digest = hashlib.sha256(b"%d" % CHECKSUM_VERSION)
        for relative, content in self.contents.items():
            digest.update(b"\0%s\0%d\0" % (relative.encode(errors="surrogateescape"), len(content)))
            digest.update(content)
        return digest.hexdigest()

    @property
    def racy(self) -> bool:
        """Whether a file was so young at the scan that a later edit could leave its time stamps as they are."""
        limit = self.scanned_ns - RACY_NS
        return any(mtime > limit or ctime > limit for mtime, ctime, _ in self.stats.values())

    def module_name(self, relative: str) -> str:
        """Dotted name of the module in the file ``relative``."""
        if not self.package:
            return self.module
        parts = relative[: -len(".py")].split("/")
        if parts[-1] == "__init__":
            parts.pop()
        return ".".join([self.module, *parts])


def scan(module: str) -> Sources:
    """Find the source files of ``module`` and stat each.

    Parent packages are imported as Python's own import system does; ``module`` itself is not.

    :param module: dotted name of a module or package.
    :raises MigrationError: there is no such module, or it has no source file.
    """
    scanned_ns = time.time_ns()
    stats: dict[str, list[int]] = {}
    elsewhere: dict[str, str] = {}
    file, directories = _locate(module)
    if directories is None:
        assert file is not None
        stats[os.path.basename(file)] = _stat(file)
        return Sources(module, False, [os.path.dirname(file)], stats, elsewhere, scanned_ns)
    for directory in directories:
        found: dict[str, list[int]] = {}
        _walk(directory, "", found)
        # Of a name that two roots have, Python finds that of the first one only.
        elsewhere |= dict.fromkeys(found.keys() - stats.keys(), directory) if directory != directories[0] else {}
        stats = found | stats
    stats = {name: stats[name] for name in sorted(stats)}
    if "env.py" in stats and any(name.startswith("versions/") for name in stats):
        raise MigrationError(
            f"{module!r} ({directories[0]}) is a directory of Alembic or Flask-Migrate, whose revisions db-smart "
            "cannot run. Nothing was changed. Keep it for the revisions that it has, and give DbSmart a module of its "
            "own for new migrations: DbSmart(app, db, migrations='myapp.db_migrations')."
        )
    if not stats:
        raise MigrationError(f"The package of migrations {module!r} has no source file in {directories[0]}.")
    return Sources(module, True, directories, stats, elsewhere, scanned_ns)


def _stat(file: str) -> list[int]:
    try:
        info = os.stat(file)
    except OSError as error:
        raise MigrationError(f"Cannot read the migrations in {file}: {error.strerror}.") from None
    return [info.st_mtime_ns, info.st_ctime_ns, info.st_size]


def _locate(module: str) -> tuple[str | None, list[str] | None]:
    """The file of a module, or the directories of a package."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        directories = getattr(loaded, "__path__", None)
        file = getattr(loaded, "__file__", None)
    else:
        try:
            spec = find_spec(module)
        except ModuleNotFoundError as error:
            raise MigrationError(f"There is no module of migrations {module!r}: {error}.") from None
        except Exception as error:
            scrub(error)
            raise MigrationError(
                f"The package with the migrations {module!r} cannot be imported: {type(error).__name__}: "
                f"{text_of(error)}."
            ) from error
        if spec is None:
            raise MigrationError(
                f"There is no module of migrations {module!r}. Make it (an empty file is enough to begin with), or "
                "correct the name in DbSmart(app, db, migrations=...)."
            )
        directories = spec.submodule_search_locations
        file = spec.origin
    if directories is not None:
        return None, [os.path.abspath(directory) for directory in directories]
    if file is None:
        raise MigrationError(f"The module of migrations {module!r} has no source file; db-smart needs the source.")
    return os.path.abspath(file), None


def _walk(directory: str, prefix: str, stats: dict[str, list[int]]) -> None:
    """Stat the Python files below ``directory``; hidden ones and caches are nobody's migrations.

    :param prefix: the path of ``directory`` relative to its root, with a slash at its end; empty for the root.
    :param stats: takes what is found; see :class:`Sources`.
    :raises MigrationError: something cannot be listed or read.
    """
    name, descriptor = "", None
    try:
        if _BY_DESCRIPTOR:
            # By a name in an open folder the system finds a file quicker than by a path from the root.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with os.scandir(directory if descriptor is None else descriptor) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(".py"):
                    stem = name[:-3]
                    if stem and "." not in stem:
                        info = entry.stat()
                        stats[prefix + name] = [info.st_mtime_ns, info.st_ctime_ns, info.st_size]
                elif "." not in name and name != "__pycache__" and entry.is_dir():
                    _walk(os.path.join(directory, name), f"{prefix}{name}/", stats)
                name = ""
    except OSError as error:
        doing = "read" if name.endswith(".py") else "list"
        place = os.path.join(directory, name) if name else directory
        raise MigrationError(f"Cannot {doing} the migrations in {place}: {error.strerror}.") from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
