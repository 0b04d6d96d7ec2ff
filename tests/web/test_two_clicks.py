"""The button of the page, pressed in two processes at once."""

from __future__ import annotations

import http.client
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.harness.serving import GATED, SERVERS, Server, serving

MORE = """
@migration
def more(op): op.execute("INSERT INTO effects (id) VALUES (2)")
"""


class Browser:
    """What a person does with the page of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._cookie = self._token = ""

    def send(self, method: str, path: str, body: str = "") -> tuple[int, str | None, str]:
        """The status, where it leads, and the text."""
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        headers = {
            "Accept": "text/html",
            "Cookie": self._cookie,
            "Origin": f"http://127.0.0.1:{self._server.port}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        try:
            connection.request(method, path, body, headers)
            found = connection.getresponse()
            self._cookie = (found.headers["Set-Cookie"] or self._cookie).partition(";")[0]
            return found.status, found.headers["Location"], found.read().decode()
        finally:
            connection.close()

    def open(self, path: str) -> None:
        """Ask for a page, and get that with the button."""
        status, _, text = self.send("GET", path)
        assert status == 503
        assert "Run pending migrations" in text
        (self._token,) = re.findall(r'name="csrf" value="([^"]+)"', text)

    def press(self) -> tuple[int, str | None]:
        """Press it, and go where that leads."""
        return self.send("POST", "/_db-smart/run", urlencode({"csrf": self._token}))[:2]


def test_one_run_and_both_go_on(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    monkeypatch.setitem(SERVERS, "flask", (f"{SERVERS['flask'][0]} --no-reload", 1))
    project.write(GATED + MORE)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / f"{project.module}.py").symlink_to(project.directory / f"{project.module}.py")
    with (
        serving(project, folders[0], "flask", DB_SMART_BOOT="check") as one,
        serving(project, folders[1], "flask", DB_SMART_BOOT="check") as other,
        ThreadPoolExecutor(2) as pool,
    ):
        servers = [one, other]
        browsers = [Browser(server) for server in servers]
        for server in servers:
            server.gate.touch()  # the page tries the migrations, without a change
        for number, browser in enumerate(browsers):
            browser.open(f"/effects?number={number}")
        for server in servers:
            server.gate.unlink()
            server.begun.unlink()
        pressed = [pool.submit(browser.press) for browser in browsers]
        try:
            wait_until(lambda: one.began() or other.began())
            (waits,) = [server for server in servers if not server.began()]
            wait_until(lambda: "db-smart: waiting for" in waits.log.read_text())
        finally:
            for server in servers:
                server.gate.touch()
        assert [click.result() for click in pressed] == [(303, f"/effects?number={number}") for number in range(2)]
        for number, browser in enumerate(browsers):
            assert browser.send("GET", f"/effects?number={number}") == (200, None, "2")
        assert len(one.began()) + len(other.began()) == 1
        assert "Traceback" not in one.log.read_text() + other.log.read_text()
    assert project.history() == [("make_effects", "applied"), ("gated", "applied"), ("more", "applied")]
    assert project.query("SELECT id FROM effects ORDER BY id") == [(1,), (2,)]
