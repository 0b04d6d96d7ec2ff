"""A browser for the tests, and what it says of a page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_core_python.selenium import Axe  # type: ignore[import-untyped]
from flask import Flask
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from werkzeug.serving import make_server

from tests.harness import servers

#: What axe calls the rules of WCAG 2.1, A and AA, and good practice.
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@contextmanager
def browser() -> Iterator[Chrome]:
    """Debian's Chromium, without a window."""
    program, driver = servers.program("chromium"), servers.program("chromedriver")
    if program is None or driver is None:
        servers.missing("chromium or chromium-driver is not installed")
    options = ChromeOptions()
    options.binary_location = str(program)
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, Service(str(driver)))
    try:
        chrome.set_page_load_timeout(60)
        yield chrome
    finally:
        chrome.quit()


def look(chrome: Chrome, *, width: int = 1000, height: int = 800, dark: bool = False) -> None:
    """Give the page a size and a scheme of colours; narrower than any window can be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def faults(chrome: Chrome) -> list[str]:
    """What is wrong with a page: for people who do not see it, or cannot use a mouse, and by its own policy."""
    found: dict[str, Any] = Axe().run(chrome, options={"runOnly": {"type": "tag", "values": _RULES}})
    assert found["passes"], "axe has looked at nothing"
    said = [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]
    return said + [str(one["message"]) for one in logged(chrome) if "Content Security Policy" in str(one["message"])]


def logged(chrome: Chrome) -> list[dict[str, Any]]:
    """What the browser has to complain of since the last call."""
    lines: list[dict[str, Any]] = chrome.get_log("browser")  # type: ignore[no-untyped-call]
    return lines


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The address of an application that a real server serves, with threads."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
