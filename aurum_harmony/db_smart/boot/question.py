"""Wait for an answer, but not for ever: a server may accept a connection and never say a word."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ..interrupt import start_thread

T = TypeVar("T")


class Question(Generic[T]):
    """Something that is asked in a thread of its own, so that the caller can go on without an answer.

    A thread that waits for ever is left behind; it does not keep the process from ending.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._answers: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="db-smart-question", daemon=True)
        start_thread(self._thread)

    def answer(self, seconds: float) -> T:
        """The answer.

        :raises TimeoutError: it has not come in this time.
        :raises BaseException: what the question raised.
        """
        self._thread.join(seconds)
        if self._errors:
            raise self._errors[0]
        if not self._answers:
            raise TimeoutError
        return self._answers[0]

    @property
    def open(self) -> bool:
        """Whether there is no answer yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._answers.append(self._ask())
        except BaseException as error:
            self._errors.append(error)
