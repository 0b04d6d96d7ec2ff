"""Fixtures: a browser, and what a migration waits for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.harness import browser


@pytest.fixture(scope="session")
def _chrome() -> Iterator[Chrome]:
    with browser.browser() as chrome:
        yield chrome


@pytest.fixture
def chrome(_chrome: Chrome) -> Iterator[Chrome]:
    """A browser that knows nothing yet."""
    browser.look(_chrome)
    browser.logged(_chrome)
    yield _chrome
    _chrome.get("about:blank")
    _chrome.execute_cdp_cmd("Network.clearBrowserCookies", {})


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The file for which the migration waits that ``WAITS`` is; not there until a test makes it, or ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()
