"""Who owns the files that this extension makes: if root makes them, they belong to those who will use them.

As SQLite does with its journals. Only what was just made is given away: what stood there before may be a link.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

StrPath = str | os.PathLike[str]


def give(target: Path | int, like: Path) -> None:
    """Give what root has just made, a path or an open file, to the owner and group of another file or folder.

    :raises OSError: the other one is not there, or the file system has no owners.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        found = like.stat()
        os.chown(target, found.st_uid, found.st_gid)


def make_folder(folder: Path, like: Path | None = None) -> None:
    """Make a folder and those above it where they are missing.

    :param like: a file whose owner they get where root makes them; by default that of the first folder that is there.
    :raises OSError: they cannot be made.
    """
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            like = like or path
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        if like is not None:
            give(path, like)


def make_file(path: Path, like: Path) -> None:
    """Make an empty file if there is none, with the owner and mode of another file, or the owner of a folder.

    It has them from the first moment that it has its name. Where that cannot be done, whoever opens the file makes it.
    """
    if os.name != "posix" or os.path.lexists(path):
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with suppress(OSError):
                give(descriptor, like)
                found = like.stat()
                if stat.S_ISREG(found.st_mode):
                    os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & 0o666 | 0o600)
            os.link(temporary, path)  # does not replace what another process has made meanwhile
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)


#: How to open what somebody else may have put there. Windows has none of them, and none of what they are for.
_SAFELY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
#: Do not follow a symbolic link.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def read_regular(path: StrPath, most: int, flags: int = 0) -> bytes | None:
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
        # Not more than it is likely to have: what is asked for is set aside in memory.
        size = min(max(found.st_size, 4095), most) + 1
        while len(content) <= most and (more := os.read(descriptor, size)):
            content += more
        return content
    finally:
        os.close(descriptor)


def open_beside(path: Path) -> int:
    """Open a file that the processes of a host share, to read and write it and to lock it; made where it is missing.

    Whoever may write to the folder can put a link or a pipe there: nothing is written through it.

    :returns: its descriptor.
    :raises OSError: it cannot be made, or is not ours.
    """
    careful = os.O_RDWR | NO_LINK | _SAFELY
    try:
        descriptor = os.open(path, careful)
    except FileNotFoundError:
        make_folder(path.parent)
        make_file(path, path.parent)
        descriptor = os.open(path, careful | os.O_CREAT, 0o644)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not ours", str(path))
    return descriptor
