"""Signals that end a process in the middle of a run: what was begun is rolled back, and the lock is freed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .errors import Interrupted

#: What a handler of SIGTERM has that is ours, and not the program's.
OURS = "of_db_smart"
#: How long a thread that is to end may go on to import a module, seconds.
_IMPORT_SECONDS = 10.0
#: Held while a thread is started. One that greenlets of the same thread take too goes on.
_starting = threading.RLock()


@contextmanager
def interruptible(database: str, doing: Callable[[], str | None]) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into an exception, so that what was begun is rolled back and the lock freed.

    :param doing: tells the migration that runs, an empty text between two, ``None`` while the lock is not held.

    A handler that the program installed for SIGTERM is left alone, and other threads than the main one get no signals.

    :raises Interrupted: one of them came.
    """
    try:
        with _terminating():
            yield
    except KeyboardInterrupt as error:
        number = _number(error)
        migration = doing()
        if migration is None:
            said = (
                f"while waiting to migrate the database {database!r}: this process changed nothing, and another one "
                "that migrates goes on."
            )
        elif migration:
            said = (
                f"while migrating the database {database!r}: the running migration ({migration}) was rolled back as "
                "far as the database can do that, earlier ones stay applied, and the lock is free."
            )
        else:
            said = f"while migrating the database {database!r}, between two migrations; the lock is free."
        raise Interrupted(f"Interrupted by {number.name} {said} Start again to go on.", number) from None


@contextmanager
def interruptible_question() -> Iterator[None]:
    """As :func:`interruptible`, for what only makes something to remove it again.

    :raises Interrupted: a signal came.
    """
    try:
        with _terminating():
            yield
    except BaseException as error:
        ended = ending(error)
        if not isinstance(ended, KeyboardInterrupt):
            raise
        number = _number(ended)
        raise Interrupted(f"Interrupted by {number.name}. Nothing was changed.", number) from None


@contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM raise what Ctrl-C raises, where nobody else has a handler for it."""
    before = signal.getsignal(signal.SIGTERM)
    free = before is signal.SIG_DFL or getattr(before, OURS, False)
    ours = free and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def _number(error: KeyboardInterrupt) -> signal.Signals:
    return signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT


class GiveWay(BaseException):
    """A migration in the background ends for now, so that whoever waits for the lock gets it; the next run goes on.

    Not an Exception, because a migration that catches those must not catch it.
    """


class _Terminated(KeyboardInterrupt):
    """SIGTERM; not an Exception, because a migration that catches those must not catch it."""


def interrupt(thread: threading.Thread, seconds: float) -> None:
    """End a run in another thread as SIGTERM does one in the main thread, and wait until the thread has ended.

    One that waits for its database notices it only when the answer comes.

    :param seconds: the longest wait.
    """
    with suppress(ImportError, AttributeError):  # a Python that cannot do so
        import ctypes

        if thread.ident is not None and thread.is_alive():
            deadline = time.monotonic() + _IMPORT_SECONDS
            while _imports(thread.ident) and time.monotonic() < deadline:
                time.sleep(0.005)
            with _starting:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Terminated))
            thread.join(seconds)


def _imports(ident: int) -> bool:
    """Whether a thread is importing a module.

    Ended there, it may leave the lock of that module behind, and whoever imports it next waits for ever.
    """
    frame = sys._current_frames().get(ident)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def start_thread(thread: threading.Thread) -> None:
    """Start a thread from one that :func:`interrupt` may be about to end.

    Until a new thread runs, CPython before 3.12 knows it by the number of the thread that starts it. The exception
    would end the new one before it can say that it has started, and the other would wait for that for ever.

    :raises RuntimeError: the system has no more threads.
    """
    with _starting:
        thread.start()


def _after_fork() -> None:
    global _starting
    _starting = threading.RLock()  # whoever held it is not there


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _raise_interrupt(*_: object) -> None:
    raise _Terminated


def ending(error: BaseException | None) -> BaseException | None:
    """The exception that ends this process, also where an error while cleaning up has replaced it.

    PyMySQL closes a connection whose answer a signal interrupts, so that rolling back fails then.
    """
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error
