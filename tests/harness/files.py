"""Files that change although their times do not say so, and files that cannot grow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def edit_in_place(path: Path, content: bytes) -> None:
    """Rewrite a file with another content and its old modification time, and wait until the clock of files moved."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


@contextmanager
def file_limit(most: int) -> Iterator[None]:
    """No file of this process can grow beyond a number of bytes."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


#: Writes rows into the WAL of a database alone, and ends as a killed process does.
_LEAVE_WAL = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE of_the_one_before (text)")
connection.commit()
os._exit(0)
"""


def leave_wal(path: Path) -> None:
    """Leave the WAL of a database that a process was killed in, and that was deleted by its name alone."""
    subprocess.run([sys.executable, "-c", _LEAVE_WAL, str(path)], check=True)
    path.unlink()
    assert path.with_name(f"{path.name}-wal").stat().st_size
