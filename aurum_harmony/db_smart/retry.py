"""Waiting: one way to pause, to try again, and to say now and then for whom."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .notices import WAIT_SHOWN_AFTER, Logger, unheard

T = TypeVar("T")

#: How often a database is asked again that has put another session first.
ASKED_AGAIN = 8
#: How often it is said for whom somebody waits, seconds.
_TELL_EVERY = 5.0


def back_off(tries: int) -> None:
    """Pause before the next try: longer from try to try, and jittered, so that two do not meet again and again.

    :param tries: how many have failed; the pause is at most 5 s.
    """
    time.sleep(random.uniform(0, min(5.0, 0.1 * 2 ** min(tries, 6))))


def retry(action: Callable[[], T], retries: int, again: Callable[[Exception], bool]) -> T:
    """Do something that leaves nothing behind when it fails, and try it again as long as that may help.

    :param retries: how often at most after the first try.
    :param again: whether an error may not come a second time.
    :raises Exception: what the last try raised.
    """
    for tries in itertools.count(1):
        try:
            return action()
        except Exception as error:
            if tries > retries or not again(error):
                raise
        back_off(tries)
    raise AssertionError  # never reached


class Wait:
    """A wait for somebody else, in pauses that grow by half each time and are jittered.

    :param pauses: the shortest and the longest one, seconds.
    :param timeout: the longest wait, seconds.
    :param woken: set by whoever has news, which ends a pause.
    """

    def __init__(self, pauses: tuple[float, float], timeout: float, woken: threading.Event | None = None) -> None:
        self._pause, self._longest = pauses
        self._woken = woken
        self._started = self._now = time.monotonic()
        self._deadline = self._started + timeout
        self._last_logged = float("-inf")
        self._shown = self._warned = False

    @property
    def over(self) -> bool:
        """Whether the longest wait is over."""
        self._now = time.monotonic()
        return self._now >= self._deadline

    def log(self, logger: Logger, message: Callable[[], str], *, warn: bool = False) -> None:
        """Log for whom, every five seconds; once as a warning, if nobody would see less.

        :param message: gives the text; not called where nothing is said.
        :param warn: whether it is a warning, which is said at once where what was said before was none.
        """
        show = not self._shown and self._now - self._started >= WAIT_SHOWN_AFTER and unheard(logger)
        if show or (warn and not self._warned) or self._now - self._last_logged >= _TELL_EVERY:
            self._last_logged, self._shown = self._now, self._shown or show
            logger.log(logging.WARNING if show or warn else logging.INFO, "db-smart: waiting for %s", message())
        self._warned = warn

    def look(self, logger: Logger, message: Callable[[], str]) -> None:
        """Say for whom, as :meth:`log` does, and wait for a moment, before one looks again."""
        self._now = time.monotonic()
        self.log(logger, message)
        self.pause()

    def pause(self) -> None:
        """Wait for a moment; those that began together do not come back together."""
        left = max(self._deadline - self._now, 0)
        pause = min(self._pause * random.uniform(0.5, 1.5), left)
        if self._woken is None:
            time.sleep(pause)
        elif self._woken.wait(pause):
            self._woken.clear()
        self._pause = min(self._pause * 1.5, self._longest)
