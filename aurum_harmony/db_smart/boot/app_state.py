"""What the extension knows of one application in this process, from its boot to its first request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flask import Flask

from ..errors import DatabaseBehind, DatabaseUnreachable, DbSmartError
from ..signals import in_listener
from .flag import FlagHead
from .planner import Planner
from .question import Question

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

#: After how long a request that is refused may be tried again, seconds.
RETRY_SECONDS = 1
#: The shortest time that the first request waits for the answer of a server, seconds.
_LEAST_PATIENCE = 2.0
#: After how long it asks again while an earlier question has no answer, seconds.
_ASK_AGAIN_SECONDS = 60.0
#: How long a request waits for a listener that is called while another thread migrates, seconds.
_LISTENER_SECONDS = 1.0


@dataclass
class AppState:
    """What the extension knows of one application."""

    db: SQLAlchemy
    module: str
    #: Whether boot came to a decision; under a flask command that does not migrate it did not.
    booted: bool = False
    #: Whether the database itself, not only the flag, said in this process that it is up to date.
    verified: bool = False
    #: What the flag said when boot trusted it.
    flag: FlagHead | None = None
    #: What requests are told that cannot be served (not the error, whose traceback would keep all that it came
    #: through), and until when (seconds of the monotonic clock) not to try again.
    refusal: str | None = None
    refused_until: float = 0.0
    #: The last question of a first request that had no answer in time, and when it was asked.
    question: Question[str | None] | None = None
    asked: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: The thread that holds the lock.
    thread: int | None = None

    @property
    def mine(self) -> bool:
        """Whether this very thread is deciding: it runs a migration, or a listener, that calls back."""
        return self.thread == threading.get_ident()

    @contextmanager
    def deciding(self, *, patient: bool = True) -> Iterator[bool]:
        """Let one thread at a time decide.

        :param patient: whether to wait also while that one is in a listener, which may wait for this very thread.
        :returns: whether it is this thread's turn.
        """
        while not self.lock.acquire(timeout=-1 if patient else _LISTENER_SECONDS / 10):
            if in_listener(self.thread) > _LISTENER_SECONDS:
                yield False
                return
        self.thread = threading.get_ident()
        try:
            yield True
        finally:
            self.thread = None
            self.lock.release()

    def trust(self, flag: FlagHead | None) -> None:
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
        self.refused_until = time.monotonic() + RETRY_SECONDS

    def changed(self, app: Flask, planner: Planner) -> str | None:
        """Why the databases are not those of the flag that boot trusted; ``None`` when they are.

        A server is not waited for longer than a lease lasts. What waits for it still keeps one connection of the pool
        at most, and is not joined by another one each second.

        :raises DatabaseUnreachable: it cannot be asked, or does not answer.
        """
        flag = self.flag
        assert flag is not None
        if not any(planner.databases[name].facts.server for name in flag.databases):
            return planner.changed(flag)
        seconds = max(planner.settings.lock.lease, _LEAST_PATIENCE)
        before, now = self.question, time.monotonic()
        if before is None or now - self.asked > _ASK_AGAIN_SECONDS:
            pooled = before is None or not before.open

            def ask() -> str | None:
                with app.app_context():
                    return planner.changed(flag, pooled=pooled)

            self.question, self.asked = Question(ask), now
        assert self.question is not None
        try:
            changed = self.question.answer(max(0.0, self.asked + seconds - now))
        except TimeoutError:
            names = " or ".join(planner.databases[name].url for name in flag.databases)
            raise DatabaseUnreachable(
                f"The database does not answer ({names}): nothing came for {seconds:g} s (DB_SMART_LEASE_SECONDS, at "
                f"least {_LEAST_PATIENCE:g} s). Nothing was changed; requests get status 503 until it answers. Check "
                "the server, and the network in between."
            ) from None
        except BaseException:
            self.question = None
            raise
        self.question = None
        return changed
