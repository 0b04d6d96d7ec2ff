"""Finish a ``batch_alter_table()`` of which only the copy is left: the table itself is gone, and the copy has its rows.

What ends such a batch is the renaming of the copy, and then the indexes, those too that Alembic has read of the table
that is gone. So the revisions run once more in a scratch place, and what that batch sends there at its end is what
is to be sent here. The copy has to be what the revisions make there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from .schema.effects import changes_of
from .schema.forms import Forms
from .schema.scratch import Scratch
from .session.journal import Journal, reads
from .store.database import Database

if TYPE_CHECKING:
    from alembic.operations.batch import BatchOperationsImpl
    from alembic.runtime.migration import MigrationContext

#: What Alembic calls the table that takes the place of another one.
COPY = "_alembic_tmp_"
#: The step of the journal that says how a batch ends.
_ENDS = "ends:"
#: What Python tells of connections that are not SQLAlchemy's, and of other programs.
_OUTSIDE = ("sqlite3.connect", "socket.connect", "subprocess.Popen", "os.system")


class Ending(NamedTuple):
    """How a batch ends whose table is gone.

    :ivar table: the name of that table.
    :ivar statements: what is to be sent: the renaming, then each index.
    """

    table: str
    statements: list[str]

    @property
    def step(self) -> str:
        """By what the journal knows it."""
        return f"{_ENDS}{hashlib.sha256(self.table.encode()).hexdigest()[:40]}"

    @property
    def detail(self) -> str:
        """As the journal keeps it."""
        return json.dumps(self)


@contextmanager
def alone(refuse: Callable[[str], object]) -> Iterator[None]:
    """Have a revision that is only to be looked at reach nothing by a connection of its own.

    :param refuse: called with what it does instead, and raises.
    """
    thread, within = threading.get_ident(), True

    def taken(*_: Any) -> None:
        if within and threading.get_ident() == thread:
            refuse("it uses a connection of its own")

    def heard(event: str, _: Any) -> None:
        if within and event in _OUTSIDE and threading.get_ident() == thread:
            refuse(f"it reaches what is not in this database ({event})")

    places: list[tuple[Any, str]] = [(sa.Engine, "do_connect"), (sa.pool.Pool, "checkout")]
    for target, event in places:
        sa.event.listen(target, event, taken)
    sys.addaudithook(heard)  # stays, and then does nothing
    try:
        yield
    finally:
        within = False
        for target, event in places:
            sa.event.remove(target, event, taken)


def copy_of(table: str) -> str:
    """The name that Alembic gives to the table that is to take the place of one."""
    return f"{COPY}{table}"[:50]


@contextmanager
def flushing(instead: Callable[[BatchOperationsImpl, Callable[[], None]], None]) -> Iterator[None]:
    """Have something be called where a batch is carried out, with what carries it out."""
    from alembic.operations.batch import BatchOperationsImpl

    flush = BatchOperationsImpl.flush

    def flushed(batch: BatchOperationsImpl) -> None:
        instead(batch, lambda: flush(batch))

    BatchOperationsImpl.flush = flushed  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        BatchOperationsImpl.flush = flush  # type: ignore[method-assign]


@contextmanager
def ended_as_noted(journal: Journal) -> Iterator[None]:
    """Have the batch whose ending is in the journal of a revision do no more than that."""
    endings = [Ending(*json.loads(done.detail or "")) for done in journal.steps(_ENDS)]
    if not endings:
        yield
        return

    def instead(batch: BatchOperationsImpl, flush: Callable[[], None]) -> None:
        ending = next((one for one in endings if replaces(batch, one.table)), None)
        if ending is None:
            flush()
            return
        endings.remove(ending)
        for statement in ending.statements:
            batch.operations.get_bind().exec_driver_sql(statement)

    with flushing(instead):
        yield


def replaces(batch: BatchOperationsImpl, table: str) -> bool:
    """Whether a batch makes a copy of a table and puts it in the place of that."""
    return batch.table_name == table and batch._should_recreate()


def ending(
    database: Database,
    context: MigrationContext,
    steps: list[Callable[[], object]],
    table: str,
    refuse: Callable[[str], object],
) -> Ending | str:
    """How the batch of the last step ends; why that cannot be known.

    :param context: as ``env.py`` has configured it.
    :param steps: the revisions from the first one on.
    :param refuse: see :func:`alone`.
    """
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    sent: list[str] = []
    collecting = False
    ends = 0
    made: dict[str, str] = {}

    def collect(_: Any, __: Any, statement: str, *more: Any) -> None:
        if collecting and not reads(statement):
            sent.append(statement)

    def instead(batch: BatchOperationsImpl, flush: Callable[[], None]) -> None:
        nonlocal collecting, ends, made
        collecting = step is steps[-1] and replaces(batch, table)
        flush()
        if collecting:
            collecting, ends = False, ends + 1
            made = Forms(connection, facts).described(table)

    folder = type(database.facts).__module__.rpartition(".")[0]
    kind: type[Scratch] = import_module(f"{folder}.describe").SCRATCH
    facts, step = database.facts, None
    try:
        with kind.open(database, [None]) as scratch, flushing(instead):
            connection = scratch.connection
            connection.commit()
            sa.event.listen(connection, "before_cursor_execute", collect)
            there = MigrationContext.configure(connection, opts={**context.opts, "as_sql": False})
            there.autocommit_block = nullcontext  # type: ignore[method-assign,assignment]
            with scratch.confining(), Operations.context(there), alone(refuse):
                for step in steps:
                    step()
            if ends != 1:
                return f"the revision puts a copy in the place of {table!r} {ends} times"
            dropped = [
                number
                for number, text in enumerate(sent)
                if any(one.kind == "drop table" for one in changes_of(text, facts).seen)
            ]
            with database.connect() as own:
                found = Forms(own, facts).described(copy_of(table))
            if found != made:
                other = next((one for one in (*found, *made) if found.get(one) != made.get(one)), "")
                return (
                    f"the copy is not what the revisions make: its column {other!r} is "
                    f"{found.get(other, 'not there')}, and they make {made.get(other, 'none')}"
                )
            return Ending(table, sent[dropped[-1] + 1 :])
    except Exception as error:
        return f"the revisions cannot be run in a scratch place: {database.cause(error)}"
