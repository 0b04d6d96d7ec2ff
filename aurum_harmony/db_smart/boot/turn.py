"""One boot of a host asks the databases, and the others wait for the flag that it writes."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import one_line
from ..files import open_beside
from ..notices import logger_of
from ..retry import Wait
from .flag import FlagVerdict
from .planner import Planner

_logger = logger_of(__name__)
#: How often a boot looks whether the one that asks before it is done, seconds.
_LOOK_EVERY = (0.05, 0.25)
#: So long is what the lock file says: the process that has the turn, and what it asks.
_HOLDER_BYTES = 40


@contextmanager
def one_boot_per_host(planner: Planner, verdict: FlagVerdict, patience: float) -> Iterator[FlagVerdict]:
    """Let one boot on this host at a time ask the databases; the others wait for the flag that it writes.

    It spares the server a herd of workers, and decides nothing: who has waited long enough, or cannot use a file
    lock beside the flag, goes on without. The kernel frees the lock when its process ends.

    :param verdict: what the flag said, which does not hold.
    :param patience: the longest wait, seconds; the shortest is half of it, because all must not leave at once.
    :returns: what the flag says now.
    """
    if verdict.holds or planner.in_memory:
        yield verdict
        return
    question = _question(planner)
    try:
        import fcntl  # not filelock, whose import alone takes as long as the boots of ten who only waited

        descriptor = open_beside(Path(f"{planner.path}.lock"))
    except (ImportError, OSError) as error:
        _logger.debug("db-smart: boots of this host do not wait for each other: %s", error)
        yield verdict
        return
    try:
        wait = Wait(_LOOK_EVERY, patience * random.uniform(0.5, 1))
        seen, taken = None, False
        while not (verdict.holds or taken or wait.over):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken = True
                # Over what the one before wrote: to truncate a file takes longer than all else here.
                os.pwrite(descriptor, f"{os.getpid()} {question}".ljust(_HOLDER_BYTES).encode(), 0)
            except BlockingIOError:
                holder, _, asked = one_line(os.pread(descriptor, _HOLDER_BYTES, 0).decode(errors="replace")).partition(
                    " "
                )
                if asked and asked != question:  # another application, which will not answer ours
                    break
                who = holder or "another one"
                wait.log(_logger, lambda: f"process {who} of this host, which asks or migrates")  # noqa: B023
                wait.pause()
            except OSError:  # a file system without locks
                break
            before, seen = seen, stamp(planner.path)
            if seen != before:
                verdict = planner.by_flag()
        yield verdict
    finally:
        os.close(descriptor)


def _question(planner: Planner) -> str:
    """What a boot asks, in short: whether these databases hold these migrations."""
    texts = [planner.code.flag_name, *(database.url for database in planner.databases.values())]
    return hashlib.sha256("\0".join(texts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def stamp(path: str) -> tuple[int, int] | None:
    """What changes whenever the file is written anew; ``None`` where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
