"""Backfills: rows are changed in batches, each a short transaction that also saves how far the work is.

A table is passed in the order of its key, from the lowest to what is the highest when the pass begins. A batch is the
range from where the last one ended to the n-th key after that, so that no row is done twice, and a run that goes on
after a kill misses none. What arrives behind the cursor, or above the highest key, is not seen by a pass; where the
condition is one that the update itself makes false, the table is passed again until nothing is found.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql.elements import Grouping

from ..errors import DbSmartError
from ..notices import logger_of
from ..retry import back_off
from ..session import json_values as codec
from ..session.sql import render
from ..session.transaction import DryRun, Transaction
from ..store.database import begin
from .catalog import Catalog
from .progress import Progress

_logger = logger_of(__name__)

#: How many rows the first batch has.
_FIRST = 1_000
#: The most rows of a batch, and of one that is handed to a function, which has them in memory.
_MOST, _MOST_HANDED = 1_000_000, 10_000
#: How often at most a table is passed.
_PASSES = 10
#: How often progress is logged, seconds.
_TELL_EVERY = 5.0
#: The shortest and the longest time between two questions whether to pause, seconds.
_PAUSES = (0.05, 1.0)
#: MariaDB compares a ``SET`` with a number as floats, which are exact up to so many bits.
_EXACT_BITS = 53

_Key = list[Any]
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
    :ivar done: rows passed.
    :ivar changed: those of them that matched the condition.
    :ivar again: whether another pass may follow: no batch has left a row that still matches.
    :ivar number: of the pass, from 1.
    :ivar rate: rows per second.
    """

    until: _Key | None
    total: int
    again: bool
    cursor: _Key | None = None
    done: int = 0
    changed: int = 0
    number: int = 1
    rate: float = 0.0
    finished: bool = False


class _Bounds(NamedTuple):
    """The range of one batch.

    :ivar within: compares the key with it.
    :ivar keys: the keys for that.
    :ivar reached: the last key; ``None`` where the pass ends with this batch.
    :ivar size: how many rows there were when it was looked up.
    """

    within: sa.ColumnElement[bool]
    keys: dict[str, Any]
    reached: _Key | None
    size: int


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
                # By RETURNING, as a query after it would also see rows of others that came in between.
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
            found = self._connection.execute(rows.where(within).order_by(*self._sorted), keys).all()
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
        self._key: list[sa.ColumnClause[Any]] = [sa.column(name) for name in self._key_names()]
        #: What tells the values of the key apart, as it is asked for; and the key as it is compared and sorted.
        self._asked, self._sorted = self._forms_of_key()
        for name in banned or ():
            if name.lower() in [column.name.lower() for column in self._key]:
                raise DbSmartError(
                    f"A backfill of {self._name!r} cannot set {name!r}, a column of the key by which it goes."
                )
        transaction.checkpoint()
        with journal.pause(), self._patience():
            if state is not None and self._by_text(state):
                state = self._anew(state)
                self._save(state)
            if state is None:
                state = self._first_of(_State(None, 0, repeat))
                self._save(state)
            transaction.commit()
            self._pass(state, work, most)
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
        dry.remark(f"a backfill of {self._name!r}, in batches:")
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
                "db-smart: rows of %r that a backfill looks for keep arriving; it has passed the table %d times and "
                "ends. Stop or update whatever writes them.",
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
                    bounds = self._bounds(state, size)
                    self._connection.rollback()  # what was only read
                    self._free = time.perf_counter() - started
                begin(self._connection)
                # A batch that waits keeps others waiting for the rows that it has already.
                bound = self._transaction.facts.set_batch_timeout(self._transaction.settings.lock_timeout)
                if bound is not None:
                    self._connection.exec_driver_sql(bound)
                new = self._next(state, bounds or self._bounds(state, size), work)
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

    def _bounds(self, state: _State, size: int) -> _Bounds:
        """The range of keys of the next batch.

        :param size: how many rows it is to have.
        """
        within = self._compare("until", "<=")
        keys = self._bind("until", state.until)
        if state.cursor is not None:
            within = sa.and_(self._compare("cursor", ">"), within)
            keys |= self._bind("cursor", state.cursor)
        reached = self._one(
            sa.select(*self._asked).where(within).order_by(*self._sorted).limit(1).offset(size - 1), keys
        )
        if reached is None:
            count = sa.select(sa.func.count()).select_from(self._table).where(within)
            size = self._connection.scalar(count, keys) or 0
        else:
            keys |= self._bind("until", reached)
        return _Bounds(within, keys, reached, size)

    def _next(self, state: _State, bounds: _Bounds, work: _Work) -> _State:
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
        descending = [column.desc() for column in self._sorted]
        until = self._one(sa.select(*self._asked).order_by(*descending).limit(1))
        if until is None:
            return replace(before, total=before.done, finished=True)
        if before.until is None:
            return replace(before, until=until, total=self._estimate(until))
        return replace(before, until=until, cursor=None, done=0, changed=0, total=before.done, number=before.number + 1)

    def _by_text(self, state: _State) -> bool:
        """Whether an earlier release of db-smart began this, by what an ``ENUM``, ``SET`` or ``BIT`` is as text."""
        numbered = [number for number, column in enumerate(self._key) if self._asked[number] is not column]
        keys = [key for key in (state.cursor, state.until) if key is not None]
        return any(not isinstance(key[number], int) for key in keys for number in numbered)

    def _anew(self, state: _State) -> _State:
        """The start of a pass in the place of one that may have missed rows.

        :raises DbSmartError: a row that was done would be done twice.
        """
        if not state.again and state.done:
            raise DbSmartError(
                f"A backfill of {self._name!r} was begun by an earlier release of db-smart, which sorted a key with an "
                "ENUM, SET or BIT by its text and could miss rows. It is not known which rows are done. Nothing was "
                "changed now. Find the rows that lack it, and write another op.backfill() with a where for them."
            )
        _logger.info("db-smart: a backfill of %r begins its pass again, because it could have missed rows", self._name)
        return replace(self._first_of(_State(None, 0, state.again)), number=state.number)

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

        :param columns: those of the table by folded name; empty where they are not known.
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

    def _key_names(self) -> Sequence[str]:
        """The columns that tell the rows of the table apart: its primary key, or on SQLite the rowid.

        :raises DbSmartError: there are none.
        """
        if self._dialect == "sqlite":  # where a primary key can be NULL
            columns = Catalog(self._connection).columns(self._name, self._schema)
            for name in ("rowid", "_rowid_", "oid"):
                if name not in columns and self._addressable(name):
                    return [name]
        names = Catalog(self._connection).primary_key(self._name, self._schema)
        if not names:
            raise DbSmartError(
                f"The table {self._name!r} has no primary key, which a backfill needs. Nothing of it was done. "
                "Give it one, or update it by op.execute(), in one transaction."
            )
        return names

    def _forms_of_key(self) -> tuple[list[sa.ColumnElement[Any]], list[sa.ColumnElement[Any]]]:
        """The key as it is asked for, and as it is compared and sorted.

        MariaDB sorts an ``ENUM`` or ``SET`` by its number, and compares it with a text by the text, but with a number
        by the number, for which it can use an index. A ``BIT`` comes as bytes, and compares as a number only. Of
        PostgreSQL's types that Python cannot hold every value of (a date may be infinite, or before Christ), or that
        drivers send as another one, the text is asked for.
        """
        asked: list[sa.ColumnElement[Any]] = list(self._key)
        compared = list(asked)
        #: The types of a key's columns whose text is asked for.
        self._text_kinds: dict[int, Any] = {}
        if self._dialect not in ("mysql", "postgresql"):
            return asked, compared
        from sqlalchemy.dialects import mysql, postgresql

        catalog = Catalog(self._connection)
        columns = catalog.columns(self._name, self._schema)
        for number, column in enumerate(self._key):
            kind = columns[catalog.normalize_name(column.name)]["type"]
            if isinstance(kind, (sa.Enum, mysql.SET, mysql.BIT)) and self._dialect == "mysql":
                asked[number] = sa.cast(column, mysql.INTEGER(unsigned=True)).label(f"key_{number}")
            if isinstance(kind, mysql.SET) and len(kind.values) > _EXACT_BITS:
                compared[number] = sa.cast(column, mysql.INTEGER(unsigned=True))
            stored = kind.data_type if isinstance(kind, postgresql.DOMAIN) else kind
            if self._dialect == "postgresql" and isinstance(stored, (sa.Date, sa.DateTime)):
                # As JSON has them, whatever the session's style of dates.
                text = sa.func.to_jsonb(column).op("#>>")(sa.literal_column("'{}'"))
                asked[number], self._text_kinds[number] = text.label(f"key_{number}"), kind
            elif self._dialect == "postgresql" and isinstance(stored, (sa.ARRAY, postgresql.JSONB)):
                asked[number], self._text_kinds[number] = sa.cast(column, sa.Text).label(f"key_{number}"), kind
        return asked, compared

    def _addressable(self, rowid: str) -> bool:
        try:
            self._connection.execute(sa.select(sa.column(rowid)).select_from(self._table).limit(0))
        except sa.exc.OperationalError:  # WITHOUT ROWID
            return False
        return True

    def _one(self, query: sa.Select[Any], keys: Mapping[str, Any] | None = None) -> _Key | None:
        """The key that a query finds."""
        row = self._connection.execute(query.select_from(self._table), keys or {}).first()
        if row is None:
            return None
        if self._dialect != "sqlite" and any(isinstance(value, float) for value in row):
            raise DbSmartError(
                f"The table {self._name!r} cannot be backfilled: its primary key is a float, which no client can name "
                "exactly. Nothing of it was done. Update it by op.execute()."
            )
        return list(row)

    def _estimate(self, until: _Key) -> int:
        """About how many rows the table has, as the planner has it; on SQLite by the range of rowids."""
        query: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(self._table)
        if self._dialect == "sqlite":
            first = self._one(sa.select(*self._asked).order_by(*self._sorted).limit(1))
            if first is not None and len(self._key) == 1 and isinstance(first[0], int) and isinstance(until[0], int):
                return int(until[0] - first[0]) + 1
            return self._connection.scalar(sa.select(sa.func.count()).select_from(self._table)) or 0
        text = render(query, self._connection.dialect)
        plain: dict[str, Any] = {"execution_options": {"no_parameters": True}}  # a percent sign is one
        if self._dialect == "postgresql":
            (plan,) = self._connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", **plain).scalar_one()
            return int(plan["Plan"]["Plan Rows"])
        return int(self._connection.exec_driver_sql(f"EXPLAIN {text}", **plain).mappings().one()["rows"] or 0)

    def _bind(self, name: str, key: _Key | None) -> dict[str, Any]:
        return {f"db_smart_{name}_{number}": value for number, value in enumerate(key or ())}

    def _compare(self, name: str, sign: str) -> sa.ColumnElement[bool]:
        """The key compared with another one, ``>`` or ``<=``, as an index can be used for it.

        The values are bound without type, as the driver gave them: a cast to another type would not use the index. What
        was asked for as text is cast to the type of its column.
        """
        binds: list[sa.ColumnElement[Any]] = []
        for number, key in enumerate(self._bind(name, [None] * len(self._key))):
            if number in self._text_kinds:
                binds.append(sa.cast(sa.bindparam(key, type_=sa.Text()), self._text_kinds[number]))
            else:
                binds.append(sa.bindparam(key, type_=sa.types.NullType()))
        if len(binds) == 1:
            return self._sorted[0].op(sign, is_comparison=True)(binds[0])
        if self._dialect != "mysql":
            return sa.tuple_(*self._sorted).op(sign, is_comparison=True)(sa.tuple_(*binds))
        # MariaDB does not use the index for row values.
        *pairs, (column, bind) = zip(self._sorted, binds, strict=True)
        found: sa.ColumnElement[bool] = column > bind if sign == ">" else column <= bind
        for column, bind in reversed(pairs):
            beyond, within = (column > bind, column >= bind) if sign == ">" else (column < bind, column <= bind)
            found = sa.and_(within, sa.or_(beyond, sa.and_(column == bind, found)))
        return found


def _table_of(select: sa.GenerativeSelect) -> sa.TableClause:
    """The table that a ``SELECT`` is from.

    :raises DbSmartError: it is from more than one, or its rows are not those of the table.
    """
    froms: Sequence[Any] = []
    folded = True
    if isinstance(select, sa.Select):  # not a UNION
        froms = select.get_final_froms()
        folded = bool(
            select._distinct or select._group_by_clauses or select._having_criteria or select._has_row_limiting_clause
        )
    if len(froms) != 1 or not isinstance(froms[0], sa.TableClause) or folded:
        raise DbSmartError(
            "op.batches() takes a table, or a SELECT from one table without joins, DISTINCT, GROUP BY and LIMIT. "
            "Nothing was done. If you need more, query it in the function, for the rows of its batch."
        )
    return froms[0]
