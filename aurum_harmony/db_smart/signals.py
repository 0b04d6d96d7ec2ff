"""Signals for those who want to listen: https://blinker.readthedocs.io/

The sender is always the Flask application.
"""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

from blinker import NamedSignal, Namespace
from flask import Flask

from .errors import one_line, text_of
from .notices import logger_of

_logger = logger_of(__name__)
_signals = Namespace()
#: Signal, listener and kind of error of what was logged.
_told: set[tuple[str, str, str]] = set()

#: Since when a thread is in a listener, by the number of the thread; seconds of the monotonic clock.
_listening: dict[int, float] = {}

#: A migration begins. Arguments: ``migration`` (its name), ``database`` (name), ``index`` (from 1), ``total``.
migration_started = _signals.signal("migration-started")

#: A migration was applied and recorded. Arguments as above, and ``duration`` in seconds.
migration_applied = _signals.signal("migration-applied")

#: A migration failed. Arguments as for the start, and ``error``, a :class:`~.errors.MigrationFailed`.
migration_failed = _signals.signal("migration-failed")

#: A snapshot was made before a run. Arguments: ``database`` (name), ``path``.
snapshot_taken = _signals.signal("snapshot-taken")

#: A backfill has finished a batch. Arguments: ``migration``, ``database`` (names), ``done`` and
#: ``total`` (rows, the second an estimate), ``rate`` (rows per second), ``eta`` (seconds, ``None`` if not known).
migration_progress = _signals.signal("migration-progress")

#: A single statement of a migration takes long, and the server tells how far it is. Sent about once a second, from a
#: thread of its own without an application context. Arguments: ``migration``, ``database`` (names), ``phase`` (what the
#: server is at), ``unit`` (``"blocks"``, ``"rows"``, ``"bytes"``, ``"transactions"`` that are waited for, or ``"%"``),
#: ``done`` and ``total`` (0 where it is not known) of this phase, ``rate`` (per second), ``eta`` (seconds, ``None`` if
#: not known). When the statement has ended, ``done`` and ``total`` are the same, and ``phase`` is empty.
statement_progress = _signals.signal("statement-progress")

#: Boot came to a decision. Argument: ``report``, a :class:`~.extension.BootReport`.
booted = _signals.signal("booted")


def send(signal: NamedSignal, app: Flask, **values: Any) -> None:
    """Tell those who listen. One that raises is logged once, and can neither end a run nor change what it counts.

    Only what ends the process, such as Ctrl-C, goes through.
    """
    if signal.is_muted:
        return
    me = threading.get_ident()
    outer = _listening.get(me)
    for receiver in signal.receivers_for(app):
        _listening[me] = time.monotonic()
        try:
            if inspect.iscoroutinefunction(receiver):
                raise TypeError("it is a coroutine function, and there is no event loop to run it")
            receiver(app, **values)
        except Exception as error:
            name = getattr(receiver, "__qualname__", type(receiver).__qualname__)
            told = (
                str(getattr(signal, "name", signal)),
                f"{getattr(receiver, '__module__', '?')}.{name}",
                type(error).__name__,
            )
            if told not in _told:
                _told.add(told)
                _logger.error(
                    "db-smart: a listener of %r raised, and is ignored: %s: %s: %s", *told, one_line(text_of(error))
                )
        finally:
            if outer is None:
                _listening.pop(me, None)
            else:
                _listening[me] = outer


def in_listener(thread: int | None) -> float:
    """For how long a thread has been in a listener by now, seconds; 0 where it is in none."""
    since = None if thread is None else _listening.get(thread)
    return 0.0 if since is None else time.monotonic() - since
