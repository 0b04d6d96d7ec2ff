"""What the extension knows of one application in this process, from its boot to its first request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..errors import DatabaseBehind, DatabaseUnreachable, DbSmartError
from ..signals import in_listener
from .flag import Flag
from .planner import Code, Planner

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from .background import Background
    from .branch import Branches
    from .question import Question

#: After how long a request that is refused may be tried again, seconds.
RETRY_SECONDS = 1
#: The shortest time that the first request waits for the answer of a server, seconds.
_LEAST_PATIENCE = 2.0
#: After how long it asks again while an earlier question has no answer, seconds.
_ASK_AGAIN_SECONDS = 60.0
#: How long a request waits for a listener that is called while another thread migrates, seconds.
_LISTENER_SECONDS = 1.0
#: How long a probe waits for another thread, which may only be asking, seconds.
_BRIEFLY = 0.8


class AppState:
    """What the extension knows of one application.

    :ivar booted: whether boot came to a decision; under a flask command that does not migrate it did not.
    :ivar verified: whether the database itself, not only the flag, said in this process that it is up to date.
    :ivar flag: what the flag said when boot trusted it.
    :ivar refusal: what requests are told that cannot be served; not the error, whose traceback would keep all that it
        came through.
    :ivar cause: the whole message, for those who operate the application.
    :ivar behind: whether that is because the database is behind and boot may not migrate it.
    :ivar refused_until: until when not to try again, seconds of the monotonic clock.
    """

    def __init__(self, db: SQLAlchemy, find: Callable[[], Code]) -> None:
        self.db = db
        self._find = find
        self.booted = False
        self.verified = False
        self.flag: Flag | None = None
        self.refusal: str | None = None
        self.cause = ""
        self.behind = False
        self.refused_until = 0.0
        #: What migrates in a thread of this process while requests are refused; ``None`` where nothing does.
        self.background: Background | None = None
        #: What runs migrations with ``background=True`` in a thread while requests are served; ``None`` where none is
        #: left.
        self.later: Background | None = None
        #: The names of those.
        self.left: list[str] = []
        #: What lets requests through only while the database knows of this process; ``None`` where nothing does.
        self.fence: Any = None
        #: Whether new connections say which release they are of.
        self.named = False
        #: Held while migrations run: two threads must not change what ``db.engine`` is at the same time.
        self.running = threading.Lock()
        #: Name of a migration -> whether it was applied, and until when that need not be asked again, seconds of the
        #: monotonic clock.
        self.applied: dict[str, tuple[bool, float]] = {}
        #: Name of a migration -> why that is not known, as it was logged.
        self.unknown: dict[str, str] = {}
        #: Whom that is asked; and held by the thread that looks whether to ask.
        self.asked: Planner | None = None
        self.asking = threading.Lock()
        #: Why contract steps wait, by name, as this process has found it last.
        self.waiting: dict[str, Any] = {}
        #: What the probes and pages remember of the database for a second.
        self.seen: Any = None
        #: What the metrics remember likewise.
        self.metrics: Any = None
        #: The databases of the Git branches, see :mod:`.boot.branch`; and whether this process was led to those of its
        #: own, ``None`` where that was not decided yet.
        self.branches: Branches | None = None
        self.on_branch: bool | None = None
        #: What the last boot of this process decided.
        self.report: Any = None
        #: The last question of a first request that had no answer in time, and when it was asked.
        self._question: Question[str | None] | None = None
        self._asked = float("-inf")
        self._lock = threading.Lock()
        #: The thread that holds the lock.
        self._thread: int | None = None

    @cached_property
    def code(self) -> Code:
        """What the application has to apply.

        :raises ConfigError: it is not there.
        """
        return self._find()

    @property
    def mine(self) -> bool:
        """Whether this very thread is deciding: it runs a migration, or a listener, that calls back."""
        return self._thread == threading.get_ident()

    @property
    def busy(self) -> bool:
        """Whether a thread of this process is deciding, and may migrate."""
        return self._thread is not None

    @contextmanager
    def deciding(self, *, patient: bool = True, wait: bool = True) -> Iterator[bool]:
        """Let one thread at a time decide.

        :param patient: whether to wait also while that one is in a listener, which may wait for this very thread.
        :param wait: whether to wait longer than one question to a database takes.
        :returns: whether it is this thread's turn.
        """
        seconds = _BRIEFLY if not wait else -1 if patient else _LISTENER_SECONDS / 10
        while not self._lock.acquire(timeout=seconds):
            if not wait or in_listener(self._thread) > _LISTENER_SECONDS:
                yield False
                return
        self._thread = threading.get_ident()
        try:
            yield True
        finally:
            self._thread = None
            self._lock.release()

    def forked(self) -> None:
        """Make good in a forked process that the thread which was deciding is not there, nor its connections."""
        self._lock, self._thread, self._question, self.seen = threading.Lock(), None, None, None
        self.metrics = None
        self.running, self.asking = threading.Lock(), threading.Lock()

    def trust(self, flag: Flag | None) -> None:
        """Go on by the flag alone, until the first request asks the database."""
        self.flag = flag
        self.booted = True

    def verify(self) -> None:
        """Go on as the database itself has said what boot needs to know."""
        self.booted = self.verified = True

    def refuse(self, error: DbSmartError) -> None:
        """Answer requests with status 503 for a while."""
        # What a failed migration says (SQL, paths) is for the log; that the database is behind is for all.
        self.refusal = error.public if isinstance(error, DatabaseBehind) else "The database is not ready."
        self.cause, self.behind = error.message, isinstance(error, DatabaseBehind)
        self.refused_until = time.monotonic() + RETRY_SECONDS

    def changed(self, app: Flask, planner: Planner) -> str | None:
        """Why the databases are not those of the flag that boot trusted; ``None`` when they are.

        A server is not waited for longer than a lease lasts. What waits for it still keeps one connection of the pool
        at most, and is not joined by another one each second.

        :raises DatabaseUnreachable: it cannot be asked, or does not answer.
        """
        from .question import Question

        flag = self.flag
        assert flag is not None
        if not any(planner.databases[name].facts.server for name in flag.databases):
            return planner.changed(flag)
        seconds = max(planner.settings.lock.lease, _LEAST_PATIENCE)
        before, now = self._question, time.monotonic()
        if before is None or now - self._asked > _ASK_AGAIN_SECONDS:
            pooled = before is None or not before.open

            def ask() -> str | None:
                with app.app_context():
                    return planner.changed(flag, pooled=pooled)

            self._question, self._asked = Question(ask), now
        assert self._question is not None
        try:
            changed = self._question.answer(max(0.0, self._asked + seconds - now))
        except TimeoutError:
            names = " or ".join(planner.databases[name].url for name in flag.databases)
            raise DatabaseUnreachable(
                f"The database does not answer ({names}): nothing came for {seconds:g} s (DB_SMART_LEASE_SECONDS, at "
                f"least {_LEAST_PATIENCE:g} s). Nothing was changed; requests get status 503 until it answers. Check "
                "the server, and the network in between."
            ) from None
        except BaseException:
            self._question = None
            raise
        self._question = None
        return changed
