"""Keep a Gunicorn worker alive while it waits for a database, migrates it, or waits for another one that does.

A worker reports to Gunicorn from its main loop only. One that has not done so for ``--timeout`` is killed, its
transaction is rolled back, and the next worker begins it again: a migration longer than that would never end.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..beat import Beat


@contextmanager
def kept_alive() -> Iterator[None]:
    """Report to Gunicorn from a thread, where a worker of Gunicorn is what calls; else do nothing."""
    worker = _gunicorn_worker()
    if worker is None or not worker.timeout:
        yield
        return
    worker.notify()

    def report() -> float:
        worker.notify()
        return float(worker.timeout / 2)  # worker.timeout is half of --timeout, in seconds

    beat = Beat("db-smart-keepalive", report, worker.timeout / 2)
    beat.start()
    try:
        yield
    finally:
        beat.stop()


def _gunicorn_worker() -> Any:
    """The worker that loads this application or serves this request; Gunicorn hands it to nobody but its own hooks,
    so it is looked for on the call stack."""
    base = sys.modules.get("gunicorn.workers.base")
    if base is None:
        return None
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None))
    return next((caller for caller in callers if isinstance(caller, base.Worker)), None)
