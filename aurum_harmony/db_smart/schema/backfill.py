"""Backfills: rows are changed in batches, each a short transaction that also saves how far the work is.

A pass goes through a table in the order of its key, from the lowest to the one that is the highest when it begins. A
batch is the range from the end of the last one to the n-th key after that. So no row is done twice, and a run that goes
on after a kill misses none. A pass does not see what arrives behind the cursor or above the highest key. If the update
itself makes the condition false, further passes follow until one finds nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import Grouping

from ..errors import DbSmartError
from ..notices import logger_of
from ..retry import back_off
from ..session import json_values as codec
from ..session.transaction import DryRun, Transaction
from ..store.database import begin, see_all_rows
from .catalog import Catalog
from .keyset import Bounds, Key, Keyset
from .progress import Progress

_logger = logger_of(__name__)

#: How many rows the first batch has.
_FIRST = 1_000
#: The most rows of a batch, and of one that is handed to a function, which has them in memory.
_MOST, _MOST_HANDED = 1_000_000, 10_000
#: How many passes there are at most.
_PASSES = 10
#: How often progress is logged, seconds.
_TELL_EVERY = 5.0
#: The shortest and the longest time between two questions whether to pause, seconds.
_PAUSES = (0.05, 1.0)
#: Does a batch, given its range and the keys for it, and whether to look for rows that still match. Returns how many
#: rows it had, and whether some still match.
_Work = Callable[[sa.ColumnElement[bool], Mapping[str, Any], bool], tuple[int, bool]]


@dataclass(frozen=True)
class Pace:
    """How fast a backfill goes.

    :ivar seconds: how long a batch is to take.
    :ivar throttle: how long to rest after each batch, as a fraction of the time that it took.
    :ivar pause: asked before each batch; while it returns true, nothing is done.
    """

    seconds: float = 0.2
    throttle: float = 0.0
    pause: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.throttle >= 0):
            raise DbSmartError(
                f"batch_seconds is {self.seconds!r} and throttle is {self.throttle!r}; the first must be above 0, the "
                "second at least 0."
            )


@dataclass(frozen=True)
class _State:
    """How far a backfill is; what the progress table keeps.

    :ivar cursor: the last key that is done; ``None`` at the start of a pass.
    :ivar until: the highest key when the pass began.
    :ivar total: estimated rows of the pass.
    :ivar done: rows that this pass has gone through.
    :ivar changed: those of them that matched the condition.
    :ivar again: whether another pass may follow: no batch has left a row that still matches.
    :ivar number: of the pass, from 1.
    :ivar rate: rows per second.
    """

    until: Key | None
    total: int
    again: bool
    cursor: Key | None = None
    done: int = 0
    changed: int = 0
    number: int = 1
    rate: float = 0.0
    finished: bool = False


class Backfill:
    """One backfill of one table; see the module.

    :param transaction: of the migration.
    :param source: the table, or for :meth:`call` a plain ``SELECT`` from one table.
    :param pace: how fast.
    :raises DbSmartError: the ``SELECT`` is of another kind.
    """

    def __init__(
        self,
        transaction: Transaction,
        source: str | sa.TableClause | sa.GenerativeSelect,
        schema: str | None = None,
        pace: Pace = Pace(),  # noqa: B008 - it cannot be changed
    ) -> None:
        self._transaction = transaction
        self._connection = transaction.connection
        self._dialect = transaction.dialect
        self._pace = pace
        self._select = source if isinstance(source, sa.Select) else None
        if isinstance(source, sa.GenerativeSelect):
            source = _table_of(source)
        if isinstance(source, sa.TableClause):
            source, schema = source.name, getattr(source, "schema", None) or schema
        self._name, self._schema = source, schema
        self._table = sa.table(self._name, schema=schema)
        self._last = self._told = float("-inf")
        #: For how long others had SQLite's lock in the last batch, seconds.
        self._free = 0.0

    def update(self, values: Mapping[str, Any], where: sa.ColumnElement[bool] | sa.TextClause | None = None) -> None:
        """Give columns new values.

        :param values: plain values or SQL expressions, by column.
        :param where: which rows; all when ``None``.
        :raises DbSmartError: there is no such column, or it is of the key; and as for :meth:`call`.
        """
        condition: Any = None if where is None else Grouping(where)
        dry = self._transaction.dry
        if dry is not None:
            self._foretell(dry, values, condition)
            return
        columns = Catalog(self._connection).columns(self._name, self._schema)
        update = self._updating(values, columns, condition)

        def work(within: sa.ColumnElement[bool], keys: Mapping[str, Any], look: bool) -> tuple[int, bool]:
            batch = update.where(within)
            if look and self._dialect == "postgresql":
                # By RETURNING, because a query after it would also see rows of others that came in between.
                still = sa.case((condition, 1), else_=0).label("still")
                changed = batch.returning(still).cte("db_smart_changed")
                query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.max(changed.c.still), 0))
                count, left = self._connection.execute(query, keys).one()
                return count, bool(left)
            count = self._connection.execute(batch, keys).rowcount
            if not look or not count:
                return count, False
            rest = sa.select(sa.literal(1)).select_from(self._table).where(within, condition).limit(1)
            return count, self._connection.execute(rest, keys).first() is not None

        what = str(update.compile(dialect=self._connection.dialect))
        self._run(what, work, repeat=where is not None, most=_MOST, banned=values)

    def call(self, function: Callable[[Sequence[sa.Row[Any]]], object]) -> None:
        """Call a function with the rows of each batch, which are locked for it.

        :raises DbSmartError: the table has no key that a backfill can use; the migration is not in a transaction; or
            this is called by such a function.
        """
        if self._transaction.dry is not None:
            self._transaction.dry.unforeseeable(f"op.batches() of {self._name!r}, a function of Python")
        select = self._select
        if select is None:
            columns = Catalog(self._connection).columns(self._name, self._schema).values()
            listed = [sa.column(column["name"], column["type"]) for column in columns]
            select = sa.select(*listed).select_from(self._table)
        rows = select.with_for_update(key_share=True)

        def work(within: sa.ColumnElement[bool], keys: Mapping[str, Any], look: bool) -> tuple[int, bool]:
            found = self._connection.execute(rows.where(within).order_by(*self._keyset.sorted), keys).all()
            if found:
                function(found)
            return len(found), False

        what = f"{getattr(function, '__name__', '')} {select.compile(dialect=self._connection.dialect)}"
        self._run(what, work, repeat=False, most=_MOST_HANDED)

    def _run(self, what: str, work: _Work, *, repeat: bool, most: int, banned: Mapping[str, Any] | None = None) -> None:
        transaction, journal = self._transaction, self._transaction.journal
        if journal.paused:
            raise DbSmartError("A batch of op.batches() cannot have a backfill or batches of its own.")
        if not transaction.transactional:
            raise DbSmartError(
                f"A backfill of {self._name!r} saves its progress in the transaction of each batch, so it cannot run "
                "with @migration(transactional=False). It changed nothing. Drop the option; a backfill commits "
                "batch by batch anyway."
            )
        state = self._kept(what)
        if state is not None and state.finished:
            return
        self._keyset = Keyset(self._connection, self._dialect, self._name, self._schema)
        for name in banned or ():
            if name.lower() in [column.name.lower() for column in self._keyset.columns]:
                raise DbSmartError(
                    f"A backfill of {self._name!r} cannot set {name!r}, a column of the key whose order it follows."
                )
        transaction.checkpoint()
        try:
            with journal.pause(), self._patience():
                if state is None:
                    see_all_rows(self._connection)
                    state = self._first_of(_State(None, 0, repeat))
                    self._save(state)
                transaction.commit()
                self._pass(state, work, most)
        except BaseException:
            # The code of the migration may catch it: what it does then must not commit by itself.
            with suppress(sa.exc.SQLAlchemyError):
                transaction.rollback()
                begin(self._connection)
            raise
        begin(self._connection)

    def _foretell(self, dry: DryRun, values: Mapping[str, Any], condition: Any) -> None:
        """Note it as one statement, unless an earlier run has done it; what one has left cannot be said so."""
        columns = dry.catalog.columns(self._name, self._schema)
        state = self._kept(str(self._updating(values, columns, condition).compile(dialect=self._connection.dialect)))
        if state is not None and state.finished:
            dry.found_done()
            return
        if state is not None:
            dry.unforeseeable(f"a backfill of {self._name!r} that an earlier run has begun")
        dry.remark(f"a backfill of {self._name!r}, here in one statement:")
        detail = asdict(_State(None, 0, False, finished=True))
        del detail["done"]
        with dry.recorded(self._step, codec.dumps(detail)):
            dry.foretell(self._updating(values, {}, condition), {})

    def _kept(self, what: str) -> _State | None:
        """How far an earlier run has come with this backfill; ``None`` where none has begun it."""
        self._step = f"backfill:{self._transaction.journal.number(what)}"
        kept = self._transaction.journal.done(self._step)
        return None if kept is None else _State(done=kept.rowcount, **codec.loads(kept.detail or ""))

    def _pass(self, state: _State, work: _Work, most: int) -> None:
        """Do batch after batch, and pass after pass."""
        size = min(_FIRST, most)
        self._last = time.perf_counter()
        self._tell(state)
        while not state.finished:
            self._wait(state)
            started = time.perf_counter()
            state, size = self._batch(state, size, work)
            seconds = time.perf_counter() - started
            size = max(1, min(most, round(size * max(0.5, min(2.0, self._pace.seconds / seconds)))))
            self._tell(state)
            if not state.finished:
                least = seconds * self._transaction.facts.batch_rest - self._free
                rest = max(seconds * self._pace.throttle, least)
                if rest > 0:
                    time.sleep(rest)
        if state.number == _PASSES and state.changed and state.again:
            _logger.warning(
                "db-smart: rows of %r that a backfill looks for keep arriving; it ends after %d passes. Stop or "
                "update whatever writes them.",
                self._name,
                _PASSES,
            )

    def _batch(self, state: _State, size: int, work: _Work) -> tuple[_State, int]:
        """Do one batch, if need be a smaller one, until it is committed.

        :returns: how far the work is, and how many rows the batch was to have.
        """
        for tries in itertools.count(1):
            try:
                bounds = None
                if self._transaction.facts.batch_rest:
                    # Where the batch ends is looked up before the lock is taken: meanwhile others have it. A range of
                    # keys is right whatever they write.
                    started = time.perf_counter()
                    bounds = self._keyset.bounds(state.cursor, state.until, size)
                    self._connection.rollback()  # what was only read
                    self._free = time.perf_counter() - started
                begin(self._connection)
                see_all_rows(self._connection)
                # A batch that waits keeps others waiting for the rows that it has already.
                bound = self._transaction.facts.set_batch_timeout(self._transaction.settings.lock_timeout)
                if bound is not None:
                    self._connection.exec_driver_sql(bound)
                new = self._next(state, bounds or self._keyset.bounds(state.cursor, state.until, size), work)
                self._save(new)
                self._transaction.commit()
                return new, size
            except sa.exc.DBAPIError as error:
                if not self._transaction.facts.says(error, "transient") or tries > self._transaction.settings.retries:
                    raise
                self._transaction.rollback()
                _logger.info("db-smart: a batch is tried again: %s", self._transaction.database.redact(error))
                size = max(1, size // 2)
            back_off(tries)
        raise AssertionError

    def _next(self, state: _State, bounds: Bounds, work: _Work) -> _State:
        """Do one batch in the open transaction."""
        within, keys, reached, size = bounds
        changed, left = work(within, keys, state.again)
        now = time.perf_counter()
        rate = size / (now - self._last)
        self._last = now
        state = replace(
            state,
            cursor=reached or state.until,
            done=state.done + size,
            changed=state.changed + changed,
            again=state.again and not left,
            rate=round(0.7 * state.rate + 0.3 * rate if state.rate else rate, 1),
        )
        state = replace(state, total=max(state.total, state.done))
        if reached is not None and reached != state.until:
            return state
        if state.changed and state.again and state.number < _PASSES:
            return self._first_of(state)
        return replace(state, total=state.done, finished=True)

    def _first_of(self, before: _State) -> _State:
        """The state at the start of the next pass."""
        until = self._keyset.highest()
        if until is None:
            return replace(before, total=before.done, finished=True)
        if before.until is None:
            return replace(before, until=until, total=self._keyset.estimate(until))
        return replace(before, until=until, cursor=None, done=0, changed=0, total=before.done, number=before.number + 1)

    def _save(self, state: _State) -> None:
        detail = asdict(state)
        done = detail.pop("done")
        try:
            self._transaction.journal.save(self._step, done, codec.dumps(detail))
        except TypeError as error:
            raise DbSmartError(
                f"The table {self._name!r} cannot be backfilled: a value of its primary key cannot be saved, {error}. "
                "It changed nothing. Give the table another key, or update it by op.execute()."
            ) from None

    def _wait(self, state: _State) -> None:
        """Wait while the backfill is to pause."""
        if self._pace.pause is None or not self._pace.pause():
            return
        pause, longest = _PAUSES
        while True:
            self._tell(state, ", paused")
            time.sleep(pause)
            if not self._pace.pause():
                break
            pause = min(2 * pause, longest)
        self._last = time.perf_counter()

    def _tell(self, state: _State, more: str = "") -> None:
        progress = Progress(self._transaction.journal.migration, state.done, state.total, state.rate)
        self._transaction.tell(done=progress.done, total=progress.total, rate=progress.rate, eta=progress.eta_s)
        if state.finished or time.monotonic() - self._told >= _TELL_EVERY:
            self._told = time.monotonic()
            again = f", pass {state.number}" if state.number > 1 else ""
            _logger.info("db-smart: backfill of %r in %s%s%s", self._name, progress, again, more)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Let batches wait for rows no longer than schema changes wait for locks; PostgreSQL is told by each batch."""
        facts = self._transaction.facts
        if (bound := facts.set_rows_timeout(self._transaction.settings.lock_timeout)) is not None:
            self._connection.exec_driver_sql(bound)
        yield
        if (usual := facts.set_rows_timeout(None)) is not None:
            self._connection.exec_driver_sql(usual)
            self._connection.rollback()

    def _updating(self, values: Mapping[str, Any], columns: Mapping[str, Any], condition: Any) -> sa.Update:
        """The whole update as one statement.

        :param columns: those of the table by normalized name; empty where they are not known.
        """
        normalize_name = Catalog(self._connection).normalize_name
        targets = {}
        for name, value in values.items():
            if columns and normalize_name(name) not in columns:
                raise DbSmartError(f"op.backfill(): the table {self._name!r} has no column {name!r}.")
            known = columns.get(normalize_name(name), {"name": name, "type": None})
            if value is None:
                value = sa.null()  # not the null of JSON
            elif not columns and not isinstance(value, sa.ClauseElement):
                value = sa.literal(value)
            targets[sa.column(known["name"], known["type"])] = value
        update = sa.table(self._name, *targets, schema=self._schema).update().values(targets)
        return update if condition is None else update.where(condition)


def _table_of(select: sa.GenerativeSelect) -> sa.TableClause:
    """The table that a ``SELECT`` is from.

    :raises DbSmartError: it is from more than one, or its rows are not those of the table.
    """
    froms: Sequence[Any] = []
    grouped = True
    if isinstance(select, sa.Select):  # not a UNION
        froms = select.get_final_froms()
        grouped = bool(
            select._distinct or select._group_by_clauses or select._having_criteria or select._has_row_limiting_clause
        )
    if len(froms) != 1 or not isinstance(froms[0], sa.TableClause) or grouped:
        raise DbSmartError(
            "op.batches() takes a table, or a SELECT from one table without joins, DISTINCT, GROUP BY and LIMIT. "
            "Nothing was done. If you need more, query it in the function, for the rows of its batch."
        )
    return froms[0]
