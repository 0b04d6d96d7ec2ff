"""Bring the databases up to date in a thread, while the process answers that it is not ready yet."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from ..beat import greenlets
from ..errors import DbSmartError, LeaseLost, LockTimeout, one_line, text_of
from ..interrupt import OURS, GiveWay, interrupt, start_thread
from ..notices import logger_of

_logger = logger_of(__name__)

#: The pause between two tries doubles from the first to the second figure, seconds.
_PAUSES = (5.0, 300.0)
#: How often a thread looks whether the worker that it belongs to has started, and for how long at most; seconds.
_LOOK_EVERY, _LOOK_FOR = 0.05, 60.0
#: How long a request waits for the thread that another process has made ready, seconds.
_PATIENCE = 0.8
#: How long a process that ends waits for its thread to roll back, seconds.
_END_WITHIN = 5.0
#: How long the lock is left to others; who has waited long comes back after three seconds at the latest, and a half.
_AWAY = 4.7


class Background:
    """One try after the other in a thread of this process, until the databases are up to date.

    :param attempt: one try; takes since when a failure of another process counts as its own, seconds since the epoch.
        It returns after how long it is to be called again although it has not failed, seconds; ``None`` for never.
    :param forked: called in a process that was made from this one, where the thread does not exist.
    :param name: of the thread.
    :param meanwhile: what is to be said of the time until the next try.
    :ivar failure: why the last try failed; ``None`` where none has.
    :ivar next_try: when the next one begins, seconds of the monotonic clock.
    :ivar done: whether a try has succeeded.
    :ivar since: since when this process is at it, seconds since the epoch.
    """

    def __init__(
        self, attempt: Callable[[float], float | None], forked: Callable[[], None], name: str, meanwhile: str
    ) -> None:
        self._attempt = attempt
        self._name = name
        self._meanwhile = meanwhile
        self._reset = forked
        self.failure: DbSmartError | None = None
        self.next_try = 0.0
        self.done = False
        self.since = time.time()
        self._began = self.since
        #: Ends the wait for the next try, and for the lock.
        self.woken = threading.Event()
        self._ended = threading.Event()
        #: What the flag was when it was looked at, and until when requests wait because it is another one now.
        self.flag: object = None
        self._patient_until = 0.0
        self._ending = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        _all.add(self)

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, when: Callable[[], bool] = lambda: True) -> bool:
        """Start the thread where it is not there: at boot, or at the first request or probe after a fork.

        :param when: it waits until this is so.
        :returns: whether it is there or done; ``False`` where no thread of this process can do it.
        """
        if self.running or self.done:
            return True
        if no_thread() is not None:
            return False
        with self._lock:
            if not self.running:
                self._thread = threading.Thread(target=self._go, args=[when], name=self._name, daemon=True)
                start_thread(self._thread)
                _watch_the_end()
        return True

    def end(self) -> None:
        """End the thread with its process: roll back what was begun, and free the lock."""
        if self._thread is not None and self.running:
            self._ending = True
            self.woken.set()
            interrupt(self._thread, _END_WITHIN)

    def look(self, flag: object) -> bool:
        """Ask at once, where another process of this host has written the flag, and wait for a moment for the answer.

        So no process refuses a request, or says that it is not ready, once another one of its host has served.

        :param flag: what is the same as long as the flag is; ``None`` where there is none.
        :returns: whether the thread is done.
        """
        if flag != self.flag:
            self.flag = flag
            if flag is not None:  # else a run has removed it, which may have failed
                self._patient_until = time.monotonic() + _PATIENCE
        left = self._patient_until - time.monotonic()
        if left > 0:
            self.woken.set()
            self._ended.wait(left)
        return self.done

    def _go(self, when: Callable[[], bool]) -> None:
        with suppress(KeyboardInterrupt):  # by end(), between two tries
            self._run(when)

    def _run(self, when: Callable[[], bool]) -> None:
        until = time.monotonic() + _LOOK_FOR
        while not when() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)
        pause, longest = _PAUSES
        while True:
            try:
                again = self._attempt(self._began)
                self.failure, self.done = None, again is None
                if again is None:
                    self._ended.set()
                    return
                self.woken.clear()
                self.woken.wait(again)
                if self._ending:
                    return
                continue
            except (LockTimeout, LeaseLost) as error:  # another process is at it
                _logger.info("db-smart: %s", error.message)
                self.woken.clear()
                self.woken.wait(_PAUSES[0])  # the longest wait may be none
                continue
            except GiveWay:  # to who waits for the lock
                time.sleep(_AWAY)
                continue
            except DbSmartError as error:
                self.failure = error.with_traceback(None)
            except BaseException as error:  # the process goes on to answer
                if self._ending:
                    return
                _logger.error("db-smart: the boot in the background failed unexpectedly", exc_info=True)
                self.failure = DbSmartError(f"{type(error).__name__}: {one_line(text_of(error))}")
            if self._ending:
                _logger.error("db-smart: %s", self.failure)
                return
            # What fails in another process from now on counts as tried again, so that only one process does it.
            self._began = time.time()
            self.woken.clear()
            self.next_try = time.monotonic() + pause
            _logger.error("db-smart: %s It is tried again in %g s; %s.", self.failure, pause, self._meanwhile)
            if self.woken.wait(pause):
                pause = _PAUSES[0]
            else:
                pause = min(pause * 2, longest)

    def after_fork(self) -> None:
        """Make good in a forked process that its thread and whoever held the locks are not there.

        A worker of Gunicorn goes on by itself, once it has started; any other process at its first request or probe.
        """
        self.woken, self._ended = threading.Event(), threading.Event()
        self._lock, self._thread = threading.Lock(), None
        self._reset()
        worker = _new_gunicorn_worker()
        if worker is not None and not type(worker).__module__.endswith(("ggevent", "geventlet")):
            self.start(lambda: bool(worker.booted))


def no_thread() -> str | None:
    """Why no thread of this process can migrate while requests are answered; ``None`` where one can."""
    if greenlets():
        return "gevent has turned threads into greenlets here, and a database driver would stop every one of them"
    if "eventlet" in sys.modules and getattr(sys.modules.get("eventlet.patcher"), "already_patched", None):
        return "eventlet has turned threads into greenlets here, and a database driver would stop every one of them"
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is not None and not {"enable-threads", "threads"} & {_word(name) for name in getattr(uwsgi, "opt", ())}:
        return "uWSGI runs without threads (start it with --enable-threads)"
    return None


def before_fork() -> bool:
    """Whether this process only loads the application, and the workers that will serve it are forked from it later."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is not None and hasattr(uwsgi, "worker_id"):
        return bool(uwsgi.worker_id() == 0)
    arbiters: Any = sys.modules.get("gunicorn.arbiter")
    workers: Any = sys.modules.get("gunicorn.workers.base")
    if arbiters is None:
        return False
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None)]
    return any(isinstance(one, arbiters.Arbiter) for one in callers) and not (
        workers is not None and any(isinstance(one, workers.Worker) for one in callers)
    )


def _new_gunicorn_worker() -> Any:
    """The worker of Gunicorn that this process, just forked, is to become."""
    workers: Any = sys.modules.get("gunicorn.workers.base")
    if workers is None:
        return None
    found = (frame.f_locals.get("worker") for frame, _ in traceback.walk_stack(None))
    return next((one for one in found if isinstance(one, workers.Worker)), None)


def _word(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


_all: WeakSet[Background] = WeakSet()
_watched: list[int] = []


def _watch_the_end() -> None:
    """Have the threads end with this process, also where nobody handles SIGTERM."""
    if os.getpid() in _watched:
        return
    _watched[:] = [os.getpid()]
    atexit.unregister(_end)
    atexit.register(_end)
    main = threading.current_thread() is threading.main_thread()
    if main and "uwsgi" not in sys.modules and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _end() -> None:
    for one in list(_all):
        one.end()


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end()
    os.kill(os.getpid(), signal.SIGTERM)


setattr(_terminate, OURS, True)


def _after_fork() -> None:
    for one in list(_all):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
