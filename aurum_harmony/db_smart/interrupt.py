"""Signals that end a process in the middle of a run: what was begun is rolled back, and the lock is freed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Interrupted


@contextmanager
def interruptible(database: str, doing: Callable[[], str | None]) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into an exception, so that what was begun is rolled back and the lock freed.

    :param doing: tells the migration that runs, an empty text between two, ``None`` while the lock is not held.

    A handler that the program installed for SIGTERM is left alone, and other threads than the main one get no signals.

    :raises Interrupted: one of them came.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
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
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Terminated(KeyboardInterrupt):
    """SIGTERM; not an Exception, because a migration that catches those must not catch it."""


def _raise_interrupt(*_: object) -> None:
    raise _Terminated


def ending(error: BaseException | None) -> BaseException | None:
    """The exception that ends this process, also where an error while cleaning up has replaced it.

    PyMySQL closes a connection whose answer a signal interrupts, so that rolling back fails then.
    """
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error
