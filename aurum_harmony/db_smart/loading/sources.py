"""The source files of the migrations: where they are, whether they changed, what they contain.

Nothing here imports the migrations, so that a boot with nothing to do costs a few ``stat`` calls.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import MigrationError, scrub, text_of
from ..files import read_regular

if TYPE_CHECKING:
    from .alembic_files import AlembicFiles

#: Enters every digest and checksum. Raise it only when the way of computing changes on purpose: every
#: database then compares its whole history once, and every repeatable migration counts as edited.
CHECKSUM_VERSION = 1

#: A file whose time stamp is younger than this when it was scanned may change again without a change of its
#: time stamp (FAT counts in steps of 2 s), so its stamp alone is not trusted: what Git calls "racily clean".
RACY_NS = 2_000_000_000

#: Whether the system lists a folder that is open.
_BY_DESCRIPTOR = os.scandir in os.supports_fd

#: The files of one root: their paths relative to it, and three numbers of each: mtime and ctime in ns, size in bytes.
Listing = tuple[list[str], list[int]]

#: What is larger is no source.
MAX_BYTES = 64 * 1024 * 1024


#: What the names of the files of an Alembic directory begin with.
ALEMBIC = "alembic:"
#: A name that is no file: how far its revisions are applied, without which the same files mean another thing.
_TARGET = "alembic_target "


class Sources:
    """One scan of the source files of a module or a package of modules.

    :ivar module: dotted name of the module or package; empty where there is only an Alembic directory.
    :ivar package: whether it is a package.
    :ivar roots: the directories that hold the files.
    :ivar listings: what each of them holds, as the system lists it.
    :ivar scanned_ns: when the scan began, nanoseconds since the epoch.
    """

    def __init__(self, module: str, package: bool, roots: list[str], listings: list[Listing], scanned_ns: int) -> None:
        self.module = module
        self.package = package
        self.roots = roots
        self.listings = listings
        self.scanned_ns = scanned_ns

    @property
    def packed(self) -> str:
        """A hash of all listings, in hexadecimal, which is the same while no file changes.

        A boot compares this one text, because to sort and to compare thousands of entries takes longer than all else.
        A system may list the same files in another order, so that only :attr:`stats` tell that something changed. Empty
        where a time stamp does not fit: one before the year 1678 or after 2262.
        """
        digest = hashlib.blake2b(digest_size=16)
        try:
            for names, numbers in self.listings:
                text = "\0".join(names).encode(errors="surrogateescape")
                digest.update(struct.pack(f"{len(numbers) + 2}q", len(text), len(numbers), *numbers))
                digest.update(text)
        except struct.error:
            return ""
        return digest.hexdigest()

    @cached_property
    def stats(self) -> dict[str, list[int]]:
        """Path relative to its root -> ``[mtime in ns, ctime in ns, size in bytes]``, sorted by path.

        Of a name that two roots have, Python finds that of the first one only.
        """
        stats: dict[str, list[int]] = {}
        for names, numbers in self.listings:
            stats = {name: numbers[3 * at : 3 * at + 3] for at, name in enumerate(names)} | stats
        return {name: stats[name] for name in sorted(stats)}

    @cached_property
    def paths(self) -> dict[str, str]:
        """Path relative to its root -> absolute path, sorted as :attr:`stats`."""
        places: dict[str, str] = {}
        for root, (names, _) in zip(self.roots, self.listings, strict=True):
            places = dict.fromkeys(names, root) | places
        return {name: os.path.join(places[name], name.removeprefix(ALEMBIC)) for name in self.stats}

    @property
    def modules(self) -> list[str]:
        """The names of the files with migrations."""
        return [name for name in self.stats if not name.startswith((ALEMBIC, _TARGET))]

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """The bytes of every file, read once: what is hashed is what is run.

        :raises MigrationError: a file cannot be read.
        """
        contents = {}
        for relative, path in self.paths.items():
            if relative.startswith(_TARGET):
                contents[relative] = b""
                continue
            try:
                content = read_regular(path, MAX_BYTES)
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


def scan(module: str | None, alembic: AlembicFiles | None = None) -> Sources:
    """Find the source files of ``module`` and of an Alembic directory, and stat each.

    Parent packages are imported as Python's own import system does; ``module`` itself is not.

    :param module: dotted name of a module or package; ``None`` where there is only the directory.
    :raises MigrationError: there is no such module, or it has no source file.
    """
    scanned_ns = time.time_ns()
    sources = Sources("", True, [], [], scanned_ns) if module is None else _scan_module(module, scanned_ns)
    if alembic is not None:
        _scan_directory(alembic, sources)
    return sources


def _scan_directory(alembic: AlembicFiles, sources: Sources) -> None:
    """Add the files of an Alembic directory: whatever may say what its revisions do."""
    listing: Listing = ([], [])
    _walk(alembic.directory, ALEMBIC, listing, dotted=True)
    for file in filter(None, (alembic.ini, alembic.toml)):  # in the directory or beside it
        folder, name = os.path.split(file)
        listing[0].append(f"{ALEMBIC}{'' if folder == alembic.directory else f'{os.pardir}/'}{name}")
        listing[1].extend(_stat(file))
    if alembic.target != "head":
        listing[0].append(f"{_TARGET}{alembic.target!r}")
        listing[1].extend((0, 0, 0))
    sources.roots.append(alembic.directory)
    sources.listings.append(listing)
    for folder in alembic.folders()[0]:
        if folder.startswith(alembic.directory + os.sep):
            continue
        inside = os.path.relpath(folder, alembic.directory)
        if inside.startswith(os.pardir):
            more: Listing = ([], [])
            _walk(folder, f"{ALEMBIC}{inside}/", more, dotted=True)
            listing[0].extend(more[0])
            listing[1].extend(more[1])


def _scan_module(module: str, scanned_ns: int) -> Sources:
    file, directories = _locate(module)
    if directories is None:
        assert file is not None
        folder, name = os.path.split(file)
        return Sources(module, False, [folder], [([name], _stat(file))], scanned_ns)
    listings: list[Listing] = []
    for directory in directories:
        listings.append(([], []))
        _walk(directory, "", listings[-1])
    if any("env.py" in names and any(name.startswith("versions/") for name in names) for names, _ in listings):
        raise MigrationError(
            f"{module!r} ({directories[0]}) is a directory of Alembic or Flask-Migrate, whose revisions db-smart "
            "runs by another name. Nothing was changed. Pass it so: DbSmart(app, db, alembic='migrations'); and a "
            "module of its own for new migrations, if you want them: migrations='myapp.db_migrations'."
        )
    if not any(names for names, _ in listings):
        raise MigrationError(f"The package of migrations {module!r} has no source file in {directories[0]}.")
    return Sources(module, True, directories, listings, scanned_ns)


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


def _walk(directory: str, prefix: str, listing: Listing, *, dotted: bool = False) -> None:
    """Stat the Python files below ``directory``; hidden ones and caches are nobody's migrations.

    :param prefix: the path of ``directory`` relative to its root, with a slash at its end; empty for the root.
    :param listing: takes what is found.
    :param dotted: whether a name may have more dots, as no module can.
    :raises MigrationError: something cannot be listed or read.
    """
    name, descriptor = "", None
    add, extend = listing[0].append, listing[1].extend  # found once, as there may be thousands of files
    try:
        if _BY_DESCRIPTOR:
            # By a name in an open folder the system finds a file quicker than by a path from the root.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with os.scandir(directory if descriptor is None else descriptor) as entries:
            for entry in entries:
                name = entry.name
                if name[-3:] == ".py":
                    if name[0] != "." and (dotted or name.count(".") == 1):
                        info = entry.stat()
                        add(prefix + name)
                        extend((info.st_mtime_ns, info.st_ctime_ns, info.st_size))
                elif "." not in name and name != "__pycache__" and entry.is_dir():
                    _walk(os.path.join(directory, name), f"{prefix}{name}/", listing, dotted=dotted)
                name = ""
    except OSError as error:
        doing = "read" if name.endswith(".py") else "list"
        place = os.path.join(directory, name) if name else directory
        raise MigrationError(f"Cannot {doing} the migrations in {place}: {error.strerror}.") from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
