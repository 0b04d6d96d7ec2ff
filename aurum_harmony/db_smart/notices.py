"""What a person must see although no logging is set up, and what nobody wants to see although it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

#: How long a boot waits before it says so at ``WARNING`` where that is needed to be seen, seconds.
WAIT_SHOWN_AFTER = 1.0


def unheard(logger: logging.Logger) -> bool:
    """Whether what is logged at ``INFO`` is not seen, as nobody has set up logging that far.

    Python shows warnings on stderr even then.
    """
    return not logger.isEnabledFor(logging.INFO) or not logger.hasHandlers()


def notice(logger: logging.Logger, message: str, *args: object) -> None:
    """Log at ``INFO``, or at ``WARNING`` where that would not be seen."""
    logger.log(logging.WARNING if unheard(logger) else logging.INFO, message, *args, stacklevel=2)


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
