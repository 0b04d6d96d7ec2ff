"""One run over a fleet: who is to be looked at, by whom, how many at a time, and what became of each.

Neither the names nor the results are kept: names wait in a file, results go to the ledger and to whoever listens.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO

from ..errors import ConfigError, DbSmartError, Interrupted, text_of
from .ledger import APPLIED, FAILED, UP_TO_DATE, Ledger, Result

#: So many characters of names wait in memory, more in a file.
_IN_MEMORY = 1_000_000
#: So many names wait for their server at most, until one of those that are at work is done.
_MOST_WAITING = 1000
#: How many results are written down at once, and how long one waits for that at most, seconds.
_BATCH, _WRITE_EVERY = 200, 0.5
#: How often a run looks whether it still has the fleet, while no tenant is done; seconds.
_LOOK_EVERY = 1.0
#: How many names of tenants that failed a run keeps, for whoever looks at it afterwards.
_MOST_KEPT = 20


@dataclass
class FleetRun:
    """What a run over a fleet has come to.

    :ivar total: how many tenants there are, of those that were asked for.
    :ivar pending: how many of them the ledger did not know as up to date.
    :ivar counts: ``up_to_date``, ``applied`` and ``failed``.
    :ivar waiting: in how many of them a contract step waits.
    :ivar failures: the first results that failed.
    :ivar stopped: why it ended before all were looked at; ``None`` where it did not.
    :ivar duration: seconds.
    """

    total: int = 0
    pending: int = 0
    counts: Counter[str] = field(default_factory=lambda: Counter({UP_TO_DATE: 0, APPLIED: 0, FAILED: 0}))
    waiting: int = 0
    failures: list[Result] = field(default_factory=list)
    stopped: str | None = None
    duration: float = 0.0

    @property
    def left(self) -> int:
        """How many tenants were not looked at."""
        return self.total - sum(self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether all tenants are up to date."""
        return not (self.counts[FAILED] or self.left)

    def add(self, result: Result) -> None:
        """Count one result."""
        self.counts[result.status] += 1
        self.waiting += bool(result.waiting)
        if result.status == FAILED and len(self.failures) < _MOST_KEPT:
            self.failures.append(result)


class Names:
    """The names of the tenants that a run is to look at, in a file that has no name itself."""

    def __init__(self) -> None:
        self._file: IO[str] = SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8", newline="\n")  # noqa: SIM115
        self.count = 0

    def add(self, name: str) -> None:
        """Have one more; it has no line breaks, see :func:`~.fleet.tenants.check_name`."""
        self._file.write(f"{name}\n")
        self.count += 1

    def __iter__(self) -> Iterator[str]:
        self._file.seek(0)
        for line in self._file:
            yield line.rstrip("\n")

    def close(self) -> None:
        """Forget them."""
        self._file.close()


@dataclass(frozen=True)
class Limits:
    """How a run goes about it.

    :ivar workers: how many tenants are at work at a time.
    :ivar per_server: how many of them on one server; ``None`` for no such limit.
    """

    workers: int
    per_server: int | None = None


class Course:
    """Hands names to an executor, and takes the results.

    :param submit: has one tenant brought up to date, elsewhere.
    :param server: by which the tenants of one server are counted; ``None`` for a file.
    :param ledger: held by this run.
    :param source: see :meth:`~.fleet.ledger.Ledger.write`; so is ``release``.
    :param tell: told of each result.
    :param ended: whether the executor takes work that nobody will do.
    """

    def __init__(
        self,
        run: FleetRun,
        submit: Callable[[str], Future[Result]],
        server: Callable[[str], str | None],
        ledger: Ledger,
        source: str,
        release: str | None,
        limits: Limits,
        tell: Callable[[Result], None],
        ended: Callable[[], bool],
    ) -> None:
        self._run = run
        self._submit = submit
        self._server = server
        self._ledger = ledger
        self._source = source
        self._release = release
        self._limits = limits
        self._tell = tell
        self._ended = ended
        self._at_work: dict[Future[Result], tuple[str, str | None]] = {}
        self._busy: Counter[str] = Counter()
        self._waiting: dict[str, deque[str]] = {}
        #: Whether the executor has ended.
        self._gone = False
        self._unwritten: list[Result] = []
        self._written = time.monotonic()

    def go(self, names: Iterable[str], stop_after: int | None) -> bool:
        """Look at some tenants; returns when all that were begun are done.

        :param stop_after: after how many failures of this run no other one is begun.
        :returns: whether all were looked at.
        """
        todo = iter(names)
        try:
            while True:
                stop = stop_after is not None and self._run.counts[FAILED] >= stop_after
                while not stop and len(self._at_work) < self._limits.workers and self._begin(todo):
                    pass
                if not self._at_work:
                    return not (stop or self._gone)
                self._take()
        finally:
            for future in self._at_work:
                future.cancel()
            self._write()

    def _begin(self, todo: Iterator[str]) -> bool:
        """Begin one tenant.

        :returns: ``False`` where none can be begun before another one is done, or none is left.
        """
        limit = self._limits.per_server
        for busy, names in self._waiting.items():
            if limit is None or self._busy[busy] < limit:
                first = names.popleft()
                if not names:
                    del self._waiting[busy]
                return self._send(first, busy)
        while sum(map(len, self._waiting.values())) < _MOST_WAITING and not self._gone:
            name = next(todo, None)
            if name is None:
                return False
            server = None if limit is None else self._of_server(name)
            if server is not None and limit is not None and self._busy[server] >= limit:
                self._waiting.setdefault(server, deque()).append(name)
                continue
            return self._send(name, server)
        return False

    def _of_server(self, name: str) -> str | None:
        try:
            return self._server(name)
        except Exception:  # whoever is to migrate it says what is wrong
            return None

    def _send(self, name: str, server: str | None) -> bool:
        """Hand one tenant over.

        :returns: ``False`` where the executor takes none.
        """
        if self._ended():
            self._gone = True
            self._run.stopped = "the cluster has ended"
            return False
        try:
            future = self._submit(name)
            if future in self._at_work:
                raise DbSmartError(f"it gave one future for {self._at_work[future][0]!r} and for {name!r}")
        except Exception as error:  # it was closed, or its scheduler is not there any more
            self._gone = True
            self._run.stopped = f"the executor takes no more work: {type(error).__name__}: {text_of(error)}"
            return False
        if server is not None:
            self._busy[server] += 1
        self._at_work[future] = name, server
        return True

    def _take(self) -> None:
        """Wait for a tenant to be done, and see to what is done."""
        done, _ = wait(self._at_work, _LOOK_EVERY, FIRST_COMPLETED)
        self._ledger.confirm()
        if not done and self._ended():
            done = set(self._at_work)
        for future in done:
            name, server = self._at_work.pop(future)
            if server is not None:
                self._busy[server] -= 1
            result = self._result(future, name)
            self._run.add(result)
            self._unwritten.append(result)
            self._tell(result)
        if len(self._unwritten) >= _BATCH or time.monotonic() - self._written > _WRITE_EVERY:
            self._write()

    def _result(self, future: Future[Result], name: str) -> Result:
        """What became of a tenant, also where its worker has not lived to tell."""
        try:
            if not future.done():
                raise CancelledError
            found = future.result()
            if isinstance(found, Result) and found.name == name:
                return found
            said = "the executor gave the result of something else"
        except (Interrupted, KeyboardInterrupt):
            raise
        except CancelledError:
            said = "it was cancelled"
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {text_of(error)}"
        return Result(
            name,
            FAILED,
            error=f"The worker that had this tenant has not answered ({said}). What it applied before that stays "
            "applied. Start again: the next run goes on where it was.",
        )

    def _write(self) -> None:
        self._ledger.write(self._unwritten, self._source, self._release)
        self._unwritten, self._written = [], time.monotonic()


def canary_of(canary: int | float | str | Collection[str] | None, count: int) -> int:
    """How many tenants are looked at first.

    :param canary: so many, or such a part (``0.05``, ``"5%"``) of those that are pending, rounded up.
    :raises ConfigError: it is neither.
    """
    number: float
    try:
        if isinstance(canary, str) and canary.strip().endswith("%"):
            number = float(canary.strip()[:-1]) / 100 * count
        elif isinstance(canary, float):
            number = canary * count
        else:
            number = int(canary or 0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < float("inf"):
        raise ConfigError(
            f"The canary is {canary!r}; it must be a number of tenants such as 10, or a part such as '5%'. Nothing was "
            "changed."
        )
    return min(count, -int(-number // 1))


def tenants(count: int) -> str:
    """How many tenants, in words."""
    return f"{count:,} tenant{'' if count == 1 else 's'}"
