"""What a person must see without logging set up, what nobody wants to see with it, and handlers that raise."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .errors import one_line, text_of

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

#: How long a boot waits before it says so at ``WARNING`` where that is needed to be seen, seconds.
WAIT_SHOWN_AFTER = 1.0


#: What was said of handlers that raise.
_said: set[str] = set()


class Logger(_Adapter):
    """A logger whose handlers and filters may raise: what was done is done, and what is to be done goes on.

    Only what ends the process, such as Ctrl-C, goes through.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, and say once on standard error, as Python's own handlers do, what cannot be logged."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            self.logger.log(level, msg, *args, **kwargs)
        except Exception as error:
            said = f"db-smart: messages to {self.logger.name} are lost: {type(error).__name__}: {text_of(error)}"
            if said not in _said and logging.raiseExceptions:
                _said.add(said)
                with suppress(Exception):
                    print(one_line(said), file=sys.stderr)


def logger_of(name: str) -> Logger:
    """The logger of a module."""
    return Logger(logging.getLogger(name), {})


def unheard(logger: Logger) -> bool:
    """Whether what is logged at ``INFO`` is not seen, because nobody has set up logging that far.

    Python shows warnings on stderr even then.
    """
    return not logger.isEnabledFor(logging.INFO) or not logger.hasHandlers()


def notice(logger: Logger, message: str, *args: object) -> None:
    """Log at ``INFO``, or at ``WARNING`` where that would not be seen."""
    logger.log(logging.WARNING if unheard(logger) else logging.INFO, message, *args, stacklevel=2)


class _Inside(threading.local):
    """What this thread is in the middle of.

    :ivar directory: whether it runs an Alembic directory.
    """

    directory = False


inside = _Inside()


@contextmanager
def without_plugin_lines() -> Iterator[None]:
    """Import Alembic without its seven lines about its own plugins; whoever has set their level gets them."""
    logger = logging.getLogger("alembic.runtime.plugins")
    before = logger.level
    if before == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def without_pipeline_lines() -> Iterator[None]:
    """Send SQL without what psycopg says of the pipeline of a list of rows that fails: the error itself is told."""
    logger, thread = logging.getLogger("psycopg"), threading.get_ident()

    def wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or not str(record.msg).startswith("error ignored terminating")

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
