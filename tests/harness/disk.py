"""A small disk, to be filled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """A disk of 1 MB for the database and the instance folder, or what is nearest to it without root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        self.mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True).returncode == 0

    def unmount(self) -> None:
        if self.mounted:  # lazily, as a process keeps a file open whose header it has read
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @contextmanager
    def room(self, size: int) -> Iterator[int | None]:
        """Leave so many bytes.

        :returns: how large a file may be, where there is no disk of its own to be filled.
        """
        filler = self.folder / "filler"
        if self.mounted:
            filler.write_bytes(bytes(shutil.disk_usage(self.folder).free - size))
        try:
            yield None if self.mounted else size
        finally:
            filler.unlink(missing_ok=True)

    def keep(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def put_back(self, kept: dict[Path, bytes]) -> None:
        for path in self.keep():
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
