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
from ..store.history import ADOPTED, STAMPED, Made, read_heads, undo_mark
from .inverses import is_revision, kept_of, why_unknown
from .outcome import Undoing
from .statements import Taken, Takes

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, RevisionStep

    from ..boot.planner import Planner
    from ..loading.revisions import Revision


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

    def expect(self, revisions: Iterable[Made]) -> None:
        """Know the revisions that are to be taken back."""

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


def plan_of(run: UndoingRun, names: Iterable[str]) -> Plan:
    """Revisions to take back, as what is to be run.

    :param names: in order.
    """
    known = {one.name: one for one in run.planner.of(run.database) if one.revision}
    heads = None if run.versions is None else read_heads(run.connection, run.versions)
    return Plan(run.database, None, "", [Pending(known[name], "new") for name in names], heads=heads)


class Foreseeing(Revising):
    """Runs the ``downgrade()`` of revisions without a change.

    :param begun: names of those of which an undo was killed.
    :ivar found: what each would do, by name.
    """

    _run: UndoingRun
    _wanted = "to be taken back"

    def __init__(self, run: UndoingRun, plan: Plan, begun: set[str]) -> None:
        super().__init__(run, plan)
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
            listing = _Listing(connection, self._run.steps_of(item), "server", hidden=True, begun=name in self._begun)
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
        self.check_repeats(statement)
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

    _run: UndoingRun
    _wanted, _stays = "to be taken back", "were taken back"

    def _steps_to(self, environment: Environment, heads: tuple[str, ...]) -> Iterable[RevisionStep]:
        return [environment.back(name) for name in self._items if name not in self._done]

    def _journal_of(self, connection: sa.Connection, item: Pending) -> RevisionJournal:
        run, takes = self._run, Takes(self._run.database.facts)
        journal = DowngradeJournal(
            connection, run.steps_of(item), run.lock.confirm, self._at_home, begun=run.has_steps(item)
        )
        journal.told = lambda statement: [*takes.of(statement)]
        journal.keeping = lambda taken: run.keeping(connection, item, taken, self._at_home)
        return journal


class DowngradeJournal(RevisionJournal):
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
        dropped = (one for one in self._taken if isinstance(one, Taken) and one.whole)
        self.dropped = (*self.dropped, *dropped)

    def control(self, statement: str, send: Callable[[], Any]) -> Any:
        """As for a revision; also here it is seen what goes, but with a temporary table, which goes anyway."""
        if self.paused or self._is_temporary(without_comments(statement)):
            return super().control(statement, send)
        self.meet(statement)
        return super().control(statement, lambda: self.send_keeping(send))

    def recording_cursor(self, driver_cursor: Any, streams: bool) -> RevisionCursor:
        """A cursor that keeps what is taken away."""
        return _DowngradeCursor(self, driver_cursor, streams=streams)

    def send_keeping(self, send: Callable[[], Any]) -> Any:
        """Send the statement that was met."""
        taken, self._taken = self._taken, ()
        if not taken:
            return send()
        with self.pause(), self.keeping(taken):
            return send()


class _DowngradeCursor(RevisionCursor):
    """A driver's cursor that keeps what a statement takes away before it is sent."""

    _journal: DowngradeJournal

    def _record(self, step: str, send: Callable[[], Any]) -> Any:
        return super()._record(step, lambda: self._journal.send_keeping(send))


class Revisions:
    """The revisions of Alembic among the runs that are to be taken back."""

    def __init__(self, run: UndoingRun) -> None:
        self._run = run
        self._planner = run.planner
        #: What the database has of the revisions that are here, in order; ``None`` where that cannot be told.
        self._held: dict[str, Revision] | None = None
        self._here = False
        if self._planner.code.alembic is not None:
            plan = self._planner.by_connection(run.database, run.connection)
            self._here = run.database.name in self._planner.revised
            self._held = self._planner.held(plan) if plan.heads else None
        self._refused: dict[int, str] = {}
        self._foreseen: dict[str, Foreseen] = {}
        self._begun: set[str] = set()
        #: Names, in order.
        self._targets: list[str] = []

    def is_gone(self, made: Made) -> bool:
        """Whether Alembic alone has taken a revision back."""
        revisions = self._planner.revisions
        if not is_revision(made) or revisions is None or self._held is None:
            return False
        return made.name in revisions.by_name and made.name not in self._held

    def in_order(self, targets: list[Made]) -> list[Made]:
        """The runs with the revisions last, each before those that it comes after."""
        places = {name: place for place, name in enumerate(self._held or ())}
        revisions = sorted(filter(is_revision, targets), key=lambda one: -places.get(one.name, -1))
        return [*(one for one in targets if not is_revision(one)), *revisions]

    def foresee(self, targets: list[Made], begun: set[str]) -> None:
        """Find out what each would do.

        :raises DbSmartError: the environment of Alembic cannot be run.
        """
        run, revisions = self._run, list(filter(is_revision, targets))
        self._begun = begun
        run.expect(revisions)
        for one in revisions:
            why = self._why_not(one, {other.name for other in revisions})
            if why is not None:
                self._refused[one.number] = why
        self._targets = [one.name for one in revisions if one.number not in self._refused]
        if not self._targets:
            return
        foreseeing = Foreseeing(run, plan_of(run, self._targets), begun)
        run.connection.rollback()  # what was only read
        try:
            foreseeing.run()
        except Exception as error:
            raise run.environment_failed(error) from error
        self._foreseen = foreseeing.found

    def _why_not(self, target: Made, others: set[str]) -> str | None:
        if target.error == STAMPED:
            return why_unknown(target)
        if target.error == ADOPTED and self._run.wanted is None:
            return f"Alembic alone has applied it; name it to take it back all the same: 'undo {target.name}'"
        if not self._here or self._planner.revisions is None:
            return "the code here has no revisions of Alembic for this database, so that its downgrade() is not known"
        if self._held is None:
            return "the version table of Alembic has what the code here does not know; undo it by the release that does"
        if target.name not in self._held:
            return "the code here does not have this revision, so that its downgrade() is not known"
        graph = self._planner.revisions
        later = [name for name in self._held if name not in others and target.name in graph.before(name)]
        if later:
            return f"{', '.join(map(repr, later))} comes after it; undo that first"
        return None

    def look(self, undoing: Undoing, target: Made) -> list[str] | None:
        """Say what stands against the ``downgrade()`` of a revision.

        :returns: the statements that it would send; ``None`` where it is not run.
        """
        if target.number in self._refused:
            undoing.refusals.append(self._refused[target.number])
            return None
        foreseen, kept = self._foreseen[target.name], kept_of(target) or {}
        assert self._planner.revisions is not None
        path, error = self._planner.revisions.by_name[target.name].path, foreseen.error
        half = undo_mark(target.number) in self._begun
        if foreseen.missing:
            undoing.refusals.append(f"it has no downgrade(): write one in {path}")
        elif isinstance(error, NotImplementedError) or raises(path, "downgrade"):
            undoing.refusals.append(f"its downgrade() raises an error instead of taking it back: see {path}")
        elif error is not None:
            text = " ".join(self._run.database.cause(error).split()).rstrip(".")
            first = self._targets[0]
            hint = "" if target.name == first else f"; or take back {first!r} first, by itself, and look again"
            undoing.unforeseen.append(f"its downgrade() cannot be followed to its end ({text}{hint})")
        elif not (foreseen.statements or half) and self._changes_schema(kept, path):
            undoing.refusals.append(
                "its downgrade() does nothing, so that what its upgrade() has made would stay and be made again: write "
                f"it in {path}"
            )
        return foreseen.statements

    def _changes_schema(self, kept: dict[str, Any], path: str) -> bool:
        """Whether the ``upgrade()`` of a revision has changed the schema, as far as that is known."""
        known: bool | None = kept.get("schema")
        return not does_nothing(path, "upgrade") if known is None else known


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
