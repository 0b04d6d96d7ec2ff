"""Trying again, as often as a setting says."""

from __future__ import annotations

import time

import pytest

from aurum_harmony.db_smart.retry import back_off


@pytest.mark.parametrize("tries", [1, 5, 1023, 1024, 5000])
def test_a_pause_has_an_end_after_any_number_of_tries(monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    back_off(tries)
    assert 0 <= pauses[0] <= 5
