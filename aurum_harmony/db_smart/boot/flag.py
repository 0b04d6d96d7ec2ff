"""The flag file: a cache of what the database said, never the truth.

It names the source files that were found applied, as ``stat`` saw them, and the databases that hold them. It
is safe to delete at any time, holds no secret, and is never a reason to apply anything.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import give, make_folder

FORMAT = 1
PROGRAM = "db-smart"

#: A larger file is not ours: 10,000 migration files need less. To read one takes up to 25 times as much memory.
MAX_BYTES = 2 * 1024 * 1024


#: How to open what somebody else may have put there. Windows has none of them, and none of what they are for.
_SAFELY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
#: Do not follow a symbolic link.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class FlagInvalid(Exception):
    """The flag cannot be used; ``str(error)`` says why. ``present`` tells whether there is anything at all."""

    def __init__(self, reason: str, *, present: bool = True) -> None:
        super().__init__(reason)
        self.present = present


@dataclass(frozen=True)
class DatabaseRecord:
    """What the flag remembers of one database.

    :ivar url: its URL, without password.
    :ivar file: what the database file looked like, ``None`` for a server.
    :ivar database_id: the id in its ``db_smart_state``.
    :ivar applied: the digest of its history in ``db_smart_state``.
    """

    url: str
    file: dict[str, int] | None
    database_id: str
    applied: str


@dataclass(frozen=True)
class Flag:
    """The content of a flag file; see :class:`~.loading.sources.Sources` for the first six."""

    module: str
    roots: list[str]
    stats: dict[str, list[int]]
    digest: str
    racy: bool
    databases: dict[str, DatabaseRecord]


def read(path: Path) -> Flag:
    """Read and check a flag file.

    :raises FlagInvalid: it is missing, unreadable, or not a flag of this format.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise FlagInvalid("there is no flag file", present=False) from None
    except IsADirectoryError:
        raise FlagInvalid("the flag is a directory") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise FlagInvalid("the flag file is too large to be ours") from None
        raise FlagInvalid(f"the flag file cannot be read ({error.strerror})") from None
    if content is None:
        raise FlagInvalid("the flag is no file, but a pipe, a device or the like")
    if len(content) > MAX_BYTES:
        raise FlagInvalid("the flag file is too large to be ours")
    if not content.strip():
        raise FlagInvalid("the flag file is empty")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise FlagInvalid("the flag file is not one of db-smart (or was cut short)") from None
    if not isinstance(data, dict) or data.get("program") != PROGRAM:
        raise FlagInvalid("the flag file belongs to another program")
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise FlagInvalid(f"the flag file has format {data.get('format')!r:.40}, this release writes {FORMAT}")
    try:
        return _parse(data)
    except (KeyError, TypeError, ValueError):
        raise FlagInvalid("the flag file is damaged") from None


def read_regular(path: Path, most: int, flags: int = 0) -> bytes | None:
    """The bytes of a file that has no more than ``most``; ``None`` for what is no regular file.

    A pipe is not waited for, and a device not read: either may never end.

    :param flags: flags for opening it besides those for reading.
    :raises OSError: it is missing, a directory, larger (``EFBIG``), or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | flags | _SAFELY)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            return None
        if found.st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        content = b""
        while len(content) <= most and (more := os.read(descriptor, min(most + 1 - len(content), 1 << 20))):
            content += more
        return content
    finally:
        os.close(descriptor)


def write(path: Path, flag: Flag) -> None:
    """Replace the flag file in one step; its directory is made when missing.

    Where root does it, the flag is of the owner of its folder.

    :raises OSError: the file cannot be written, or would be too large to be read again; nothing is left behind.
    """
    content = json.dumps({"program": PROGRAM, "format": FORMAT, "note": "safe to delete", **asdict(flag)})
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
        with suppress(OSError):  # a file system without owners
            give(temporary, path.parent)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> bool:
    """Remove the flag file.

    :returns: whether there was one.
    :raises OSError: it cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _parse(data: dict[str, Any]) -> Flag:
    """Build the flag from JSON; what has another type than ours raises."""
    databases = {
        name: DatabaseRecord(
            url=_typed(record["url"], str),
            file=None if record["file"] is None else _integers(_typed(record["file"], dict)),
            database_id=_typed(record["database_id"], str),
            applied=_typed(record["applied"], str),
        )
        for name, record in _typed(data["databases"], dict).items()
        if _typed(record, dict)
    }
    if not databases:
        raise ValueError("no database")
    return Flag(
        module=_typed(data["module"], str),
        roots=[_typed(root, str) for root in _typed(data["roots"], list)],
        stats={name: _stat(_typed(stat, list)) for name, stat in _typed(data["stats"], dict).items()},
        digest=_typed(data["digest"], str),
        racy=_typed(data["racy"], bool),
        databases=databases,
    )


def _integers(values: dict[str, Any]) -> dict[str, int]:
    return {name: _typed(value, int) for name, value in values.items()}


def _stat(values: list[Any]) -> list[int]:
    mtime, ctime, size = values
    # In one expression, as there may be thousands of files.
    if type(mtime) is int and type(ctime) is int and type(size) is int:
        return values
    raise TypeError("stat")


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value
