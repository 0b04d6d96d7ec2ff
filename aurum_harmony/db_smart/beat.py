"""Call a function from time to time while a migration runs, even if that keeps this process busy.

That takes a thread of the operating system. Where gevent has changed the standard library, ``threading`` makes
greenlets, which get no turn while a migration computes; there its thread pool has such threads, each with a hub of its
own for what is done in it.
"""

from __future__ import annotations

import importlib
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from .interrupt import start_thread


class Beat:
    """A thread that calls a function from time to time, until it is stopped.

    :param name: name of the thread.
    :param action: called in the thread; returns after how many seconds it is to be called again, ``None`` for never.
    :param first: seconds until the first call.
    :param least: seconds that :meth:`wake` does not shorten.
    """

    def __init__(self, name: str, action: Callable[[], float | None], first: float, least: float = 0) -> None:
        self._name = name
        self._action = action
        self._first = first
        self._least = least
        make_queue = _unchanged_queue()
        self._stops, self._wakes = make_queue(), make_queue()
        self._join: Callable[[], object] | None = None

    def start(self) -> None:
        """Start the thread.

        :raises RuntimeError: the system has no more threads.
        """
        if greenlets():
            pool = importlib.import_module("gevent.threadpool").ThreadPool(1)
            running = pool.spawn(self._run)

            def join() -> None:
                running.wait()
                pool.kill()  # else its thread would wait for more to do

            self._join = join
        else:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            start_thread(thread)
            self._join = thread.join

    def wake(self) -> None:
        """Let the next call come soon."""
        self._wakes.put(None)

    def stop(self) -> None:
        """End the thread, and wait until it has ended; does nothing where it was not started."""
        self._stops.put(None)
        self._wakes.put(None)
        if self._join is not None:
            self._join()

    def _run(self) -> None:
        pause: float | None = self._first
        while pause is not None and not _told(self._stops, min(self._least, pause)):
            _told(self._wakes, pause)
            if _told(self._stops, 0):
                return
            while _told(self._wakes, 0):  # several messages count as one
                pass
            pause = self._action()


def greenlets() -> bool:
    """Whether ``threading`` makes greenlets."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _unchanged_queue() -> Callable[[], Any]:
    """A queue that also works between threads of the operating system."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None:
        return queue.SimpleQueue
    unchanged: Callable[[], Any] = monkey.get_original("queue", "SimpleQueue")
    return unchanged


def _told(messages: Any, seconds: float) -> bool:
    """Wait for a message and take it; ``False`` when none came in time."""
    try:
        messages.get(timeout=seconds)
    except queue.Empty:
        return False
    return True
