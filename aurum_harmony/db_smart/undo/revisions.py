"""Take revisions of Alembic back by their own ``downgrade()``, and see beforehand what that would take away.

It is done as revisions are applied (see :mod:`~.revising`): ``env.py`` runs as it stands, each revision is one
transaction with its rows of the version table and of the history, and one that was killed on a database that commits
each schema change is gone on with by replay. What a statement takes away is read from its text, twice: where the code
runs without a change (:class:`Foreseeing`), and right before the statement is sent.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from ..batches import alone
from ..boot.plan import Pending, Plan
from ..errors import DbSmartError
from ..resuming import Listing, Statement, Unclear
from ..revising import Revising, Run
from ..session.controls import without_comments
from ..session.environment import Environment, end_transaction
from ..session.replay import RevisionCursor, RevisionJournal
from ..store.history import Made
from .statements import Taken, Takes

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, RevisionStep

    from ..boot.planner import Planner

#: So often the same statement comes from a loop that ends only when the database says so.
_MOST_ALIKE = 5_000


@dataclass
class Foreseen:
    """What the ``downgrade()`` of a revision would do.

    :ivar statements: what it would send that changes something, in order; without what an undo that was killed has
        done.
    :ivar error: what ended it, or why it cannot be followed; ``None`` where it is known to its end.
    :ivar missing: whether there is no ``downgrade()``.
    """

    statements: list[str] = field(default_factory=list)
    error: BaseException | None = None
    missing: bool = False


class UndoingRun(Run, Protocol):
    """What it needs of the run on the database besides; see :class:`~.undo.run.UndoRun`."""

    wanted: str | None

    @property
    def planner(self) -> Planner:
        """Knows the code."""

    @property
    def archives(self) -> bool:
        """Whether what would be lost is copied first."""

    @property
    def discards(self) -> bool:
        """Whether it may be lost."""

    def archive_name(
        self, connection: sa.Connection, target: Made, table: str, column: str | None, *, another: bool = False
    ) -> str:
        """The name of the table that keeps values."""

    def expect(self, revisions: Iterable[Made]) -> None:
        """Know the revisions that are to be taken back."""

    def plan_of(self, names: Iterable[str]) -> Plan:
        """Revisions to take back, as what is to be run."""

    def environment_failed(self, error: Exception) -> DbSmartError:
        """What to say where no revision is to blame."""

    def steps_of(self, item: Pending) -> str:
        """By what name the journal keeps how far the undo of a revision is."""

    def keeping(
        self,
        connection: sa.Connection,
        item: Pending,
        taken: Iterable[Taken | str],
        at_home: Callable[[sa.Connection], AbstractContextManager[None]],
    ) -> AbstractContextManager[None]:
        """Keep, or refuse to lose, what a statement takes away that a block sends."""


class Foreseeing(Revising):
    """Runs the ``downgrade()`` of revisions without a change.

    :param begun: names of those of which an undo was killed.
    :ivar found: what each would do, by name.
    """

    _wanted = "to be taken back"

    def __init__(self, run: UndoingRun, plan: Plan, begun: set[str]) -> None:
        super().__init__(run, plan)
        self._undoing = run
        self._begun = begun
        self.found: dict[str, Foreseen] = {}

    def _steps(
        self, environment: Environment, heads: tuple[str, ...], context: MigrationContext
    ) -> Iterator[RevisionStep]:
        connection = context.connection
        assert connection is not None
        if not self._ours[connection] or self.met:
            return
        self.met = True
        end_transaction(context)
        self._check_versions(environment, context)
        for name, item in self._items.items():
            self.found[name] = self._foreseen(environment, context, item)
            self._done.add(name)
        yield from ()

    def _is_ours(self, connection: sa.Connection) -> bool:
        """As for a run; but nothing is written, be it only the version table."""
        super()._is_ours(connection)
        return False

    def _foreseen(self, environment: Environment, context: MigrationContext, item: Pending) -> Foreseen:
        connection, name = context.connection, item.migration.name
        assert connection is not None
        try:
            step = environment.back(name)
        except AttributeError:
            return Foreseen(missing=True)
        with self._at_home(connection):
            listing = _Listing(
                connection, self._undoing.steps_of(item), "server", hidden=True, begun=name in self._begun
            )
        error: BaseException | None = None
        end_transaction(context)
        with context.begin_transaction(_per_migration=True):
            if not self._run.database.facts.server:  # else SQLite's write lock would be taken before what is not sent
                connection.exec_driver_sql("BEGIN")
            try:
                with listing.recording(), self._run.rebound(listing.refuse_engine), alone(listing.refuse):
                    function: Callable[..., Any] = step.migration_fn
                    function(**environment.arguments)
            except (Exception, SystemExit) as raised:
                error = raised
            finally:
                driver: Any = connection.connection.dbapi_connection
                driver.rollback()
        end_transaction(context)
        if error is None and listing.unclear:
            error = Unclear(listing.unclear)
        return Foreseen([one.text for one in listing.statements], error)


class _Listing(Listing):
    """Notes what a ``downgrade()`` would send."""

    def take_over(self) -> None:
        """Nothing is written, so that nobody is to wait."""

    def change(self, step: str, statement: str, rows: int) -> Statement:
        """Note a statement that changes something."""
        self._alike[statement] += 1
        if self._alike[statement] > _MOST_ALIKE:
            self.refuse("its code repeats a statement until there is nothing more to do")
        self.statements.append(Statement(statement, step, rows=rows))
        return self.statements[-1]

    def ask(self, statement: str) -> None:
        """A question changes nothing."""

    def control(self, statement: str, send: Callable[[], Any]) -> Any:
        """What is about the session is sent, unless it runs what takes something away, as ``SET STATEMENT`` may."""
        if self.paused or not [*Takes(self.facts).of(statement)]:
            return super().control(statement, send)
        self.statements.append(Statement(statement))
        return None


class Downgrading(Revising):
    """Takes revisions back, in the order of the plan."""

    _wanted, _stays = "to be taken back", "were taken back"

    def __init__(self, run: UndoingRun, plan: Plan) -> None:
        super().__init__(run, plan)
        self._undoing = run

    def _steps_to(self, environment: Environment, heads: tuple[str, ...]) -> Iterable[RevisionStep]:
        return [environment.back(name) for name in self._items if name not in self._done]

    def _journal_of(self, connection: sa.Connection, item: Pending) -> RevisionJournal:
        run, takes = self._undoing, Takes(self._run.database.facts)
        journal = UndoJournal(
            connection, run.steps_of(item), run.lock.confirm, self._at_home, begun=run.has_steps(item)
        )
        journal.told = lambda statement: [*takes.of(statement)]
        journal.keeping = lambda taken: run.keeping(connection, item, taken, self._at_home)
        return journal


class UndoJournal(RevisionJournal):
    """The statements of one ``downgrade()``.

    :ivar told: what a statement takes away; asked of all in their order, also of those that are done already.
    :ivar keeping: see :class:`UndoingRun`.
    """

    told: Callable[[str], list[Taken | str]]
    keeping: Callable[[Sequence[Taken | str]], AbstractContextManager[None]]
    #: What the last statement takes away.
    _taken: Sequence[Taken | str] = ()
    #: The tables that are dropped.
    dropped: Sequence[Taken] = ()

    def meet(self, statement: str) -> None:
        """See what a statement takes away that is about to be sent, or was."""
        self._taken = self.told(statement)
        dropped = (one for one in self._taken if isinstance(one, Taken) and (one.column, one.kept) == (None, None))
        self.dropped = (*self.dropped, *dropped)

    def control(self, statement: str, send: Callable[[], Any]) -> Any:
        """As for a revision; also here it is seen what goes, but with a temporary table, which goes anyway."""
        if self.paused or self._is_temporary(without_comments(statement)):
            return super().control(statement, send)
        self.meet(statement)
        return super().control(statement, lambda: self.send_keeping(send))

    def recording_cursor(self, driver_cursor: Any, streams: bool) -> RevisionCursor:
        """A cursor that keeps what is taken away."""
        return _UndoCursor(self, driver_cursor, streams=streams)

    def send_keeping(self, send: Callable[[], Any]) -> Any:
        """Send the statement that was met."""
        taken, self._taken = self._taken, ()
        if not taken:
            return send()
        with self.pause(), self.keeping(taken):
            return send()


class _UndoCursor(RevisionCursor):
    """A driver's cursor that keeps what a statement takes away before it is sent."""

    _journal: UndoJournal

    def _record(self, step: str, send: Callable[[], Any]) -> Any:
        return super()._record(step, lambda: self._journal.send_keeping(send))


def does_nothing(path: str, name: str) -> bool:
    """Whether the functions of a revision whose names begin so do nothing, by their source."""
    return all(
        isinstance(one, ast.Pass) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in _statements_of(path, name)
    )


def raises(path: str, name: str) -> bool:
    """Whether a function of a revision always raises an error, by its source."""
    return any(isinstance(one, ast.Raise) for one in _statements_of(path, name))


def _statements_of(path: str, name: str) -> list[ast.stmt]:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    functions = (one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith(name))
    return [statement for one in functions for statement in one.body]
