"""Trying again, as often as a setting says."""

from __future__ import annotations

import logging
import time

import pytest

from aurum_harmony.db_smart.notices import logger_of
from aurum_harmony.db_smart.retry import Wait, back_off


@pytest.mark.parametrize("tries", [1, 5, 1023, 1024, 5000])
def test_a_pause_has_an_end_after_any_number_of_tries(monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    back_off(tries)
    assert 0 <= pauses[0] <= 5


def test_a_wait_without_end_says_for_whom_before_it_looks_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wait = Wait((0.001, 0.001), float("inf"))
    for _ in range(3):
        wait.look(logger_of(__name__), lambda: "session 7")
    assert caplog.messages == ["db-smart: waiting for session 7"]
