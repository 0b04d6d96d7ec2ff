"""Take back what runs of migrations made, by what each has written into its row of the history.

The code that made it need not be there. Nothing is taken back that a run found satisfied, or that is not as the run
left it. :func:`~.looking.look` says what there is to do and what stands against it; :class:`UndoRun` does it under
the lock, newest first. Each inverse looks first, so that an undo which was killed is finished by another one; the row
that says that a run was taken back is written last, in the same transaction where the database has such.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..boot.plan import Pending
from ..errors import DbSmartError, LeaseLost, one_line, scrub
from ..interrupt import ending, interruptible
from ..loading.loader import location, location_in
from ..retry import back_off
from ..runner import DatabaseRun, Outcome, Runner
from ..schema.catalog import Catalog
from ..session.lock_timeout import DdlLockTimeout
from ..session.transaction import tried_again
from ..store import history, snapshot
from ..store.database import Database, begin, commit, see_all_rows
from ..store.history import TAKEN_BACK, UNDO_BEGUN, Made
from ..store.tables import objects, progress, state
from .inverses import is_revision, kept_of, tables_of
from .inverting import Inverting
from .keeping import Keeper
from .looking import look
from .marks import Marks
from .outcome import Undoing, Undone
from .revisions import DowngradeJournal, Downgrading, plan_of
from .statements import Taken
from .transaction import NoJournal, UndoTransaction, WithinRevision
from .values import parts_of

if TYPE_CHECKING:
    from ..boot.planner import Planner
    from ..loading.decorator import Migration
    from ..session.replay import RevisionJournal


def asked(runner: Runner, database: Database, wanted: str | None) -> list[Undoing]:
    """As :func:`~.looking.look`, by a connection of its own, without the lock.

    :raises DbSmartError: there is no such run, or the database cannot be asked.
    """
    if not database.exists:
        raise DbSmartError(f"There is no database {database.name!r} ({database.url}) yet: nothing to take back.")
    run = UndoRun(runner, database, wanted, [], False, False)
    with database.connect() as run.connection, history.reading(database):
        state = history.find_state(run.connection)
        if state is not None and state.place is not None:
            raise DbSmartError(
                f"The history of {database.name!r} lies in the schema {state.place!r}: undo as who migrates it."
            )
        return look(run)


class UndoRun(DatabaseRun):
    """Takes runs back on one database.

    :param wanted: see :func:`~.looking.look`.
    :param told: what the person has agreed to.
    :ivar undone: what was taken back.
    """

    def __init__(
        self,
        runner: Runner,
        database: Database,
        wanted: str | None,
        told: Sequence[Undoing],
        archive: bool,
        discard: bool,
    ) -> None:
        super().__init__(runner, database, Outcome(), force=False, remake=False)
        self.wanted = wanted
        self._told = told
        self._archive = archive
        self._discard = discard
        self.undone: list[Undone] = []
        #: The runs of revisions that are taken back, by the names of these.
        self._revised: dict[str, Made] = {}
        #: The number of the last run of which this undo has written down that it begins.
        self._noted: int | None = None
        #: What was kept and lost so far of the revision that is taken back.
        self._now = Undone(0, "")

    def expect(self, revisions: Iterable[Made]) -> None:
        """Know the revisions that are to be taken back, and the database by which their connection is known."""
        self._revised = {one.name: one for one in revisions}
        state = history.read_state(self.connection)
        assert state is not None
        self.database_id = state.database_id

    @property
    def planner(self) -> Planner:
        """Knows the code."""
        return self._runner.planner

    def undo(self) -> list[Undone]:
        """Take them back, while no other process migrates the database.

        :raises DbSmartError: it changed meanwhile, or refuses something; the message says what was taken back.
        """
        self._runner.check_led(self.database)
        try:
            with interruptible(self.database.name, lambda: self.doing):
                self._undo()
        except DbSmartError:
            raise
        except Exception as error:
            raise self.failed(error) from error
        finally:
            self.planner.forget()
        return self.undone

    def _undo(self) -> None:
        """Take them back, newest first, while this process holds the lock.

        :raises DbSmartError: what there is to do is not what the person has agreed to.
        """
        database, retries = self.database, self._runner.settings.ddl.retries
        if self._reach() is not None:
            raise DbSmartError(f"The history of {database.name!r} lies in another schema. Nothing was taken back.")
        with self.lock.held(lambda _: False), database.connect() as self.connection:
            self.doing, connection = "", self.connection
            targets = self._agreed()
            snapshot.take(self._runner.app, database, connection, "undo")
            self._lock_timeout = DdlLockTimeout(database, connection, self._runner.settings.ddl.lock_timeout)
            has = history.add_columns(connection)
            self._release = self._runner.settings.release if "release" in has else None
            self.planner.forget()  # now, as this process may be killed after its last commit
            for target in targets:
                if is_revision(target):
                    continue  # they come after the migrations of their run
                self.doing = target.name
                self.lock.note(target.name)
                self.undone.append(tried_again(database, lambda target=target: self._take_back(target), retries))  # type: ignore[misc]
            if self._revised:
                self._downgrade()

    def _agreed(self) -> list[Made]:
        """The runs to take back."""
        connection = self.connection
        found = look(self)
        numbers = [one.number for one in found]
        against = [text for one in found for text in one.objections(archive=self._archive, discard=self._discard)]
        if against or numbers != [one.number for one in self._told]:
            raise DbSmartError(
                f"The database {self.database.name!r} ({self.database.url}) has changed meanwhile"
                f"{': ' + '; '.join(against) if against else ''}. Nothing was taken back. Start again."
            )
        made = {one.number: one for one in history.read_made(connection)}
        connection.rollback()  # what was only read
        return [made[number] for number in numbers]

    def _take_back(self, target: Made) -> Undone:
        """Take one run back, and record that."""
        connection, started = self.connection, time.perf_counter()
        connection.rollback()  # what a try before this one has left
        self._note_begin(target)
        begin(connection)
        see_all_rows(connection)
        transaction = UndoTransaction(
            self.database,
            connection,
            NoJournal(connection, target.name, at_once=False, begun=False),
            lock=self.lock,
            lock_timeout=self._lock_timeout,
            settings=self._runner.settings.ddl,
            transactional=True,
        )
        undone = Undone(target.number, target.name)
        kept = kept_of(target)
        assert kept is not None
        try:
            Inverting(transaction, self._keeper(transaction, undone), kept).run()
            self.lock.confirm(connection)
            self._record(connection, target, kept, time.perf_counter() - started)
            commit(connection)
        except LeaseLost:
            raise
        except Exception:
            if not transaction.changed:
                self._note_failed(target)
            raise
        finally:
            transaction.close()
        return undone

    def _note_begin(self, target: Made) -> None:
        """Write down that an undo begins, where each schema change commits.

        So the next undo goes on with this one, and each boot asks the history, which tells of it.
        """
        connection = self.connection
        if self.database.transactional_ddl:
            return
        begin(connection)
        self.lock.confirm(connection)
        if Marks(connection, target.number).put(UNDO_BEGUN):
            self._noted = target.number
        connection.execute(state.update().where(state.c.source != "").values(source=TAKEN_BACK))
        commit(connection)

    def _note_failed(self, target: Made) -> None:
        """Take that back where nothing was done, by this try or by one before it."""
        connection, marks = self.connection, Marks(self.connection, target.number)
        if self._noted != target.number:
            return
        with suppress(sa.exc.DBAPIError):  # the error itself says more
            connection.rollback()
            begin(connection)
            self.lock.confirm(connection)
            if not marks.has_changes():
                marks.remove(UNDO_BEGUN)
            commit(connection)

    def _record(self, connection: sa.Connection, target: Made, kept: dict[str, Any], seconds: float) -> None:
        """Record that a run was taken back, in the transaction of a connection."""
        self._forget(connection, target, kept)
        of = json.dumps({"of": target.number})
        history.record(
            connection, target.name, target.checksum, seconds, mark=TAKEN_BACK, release=self._release, inverse=of
        )
        found = history.read_state(connection)
        assert found is not None
        # Of other sources than any code has, so that each boot asks the history.
        source = found.source and TAKEN_BACK  # empty before the end of a first run
        history.update_state(connection, source, found.databases, learned=found.learned)

    def _downgrade(self) -> None:
        """Take the revisions back, newest first, and try one again where others were in its way."""
        database, retries = self.database, self._runner.settings.ddl.retries
        self._begun = history.begun(self.connection)
        tried: dict[str, int] = {}
        while True:
            done = {one.number for one in self.undone}
            left = [one.name for one in self._revised.values() if one.number not in done]
            downgrading = Downgrading(self, plan_of(self, left))
            self.connection.rollback()  # what was only read
            try:
                downgrading.run()
                return
            except LeaseLost:
                raise
            except Exception as error:
                end = ending(error)
                if end is not None:
                    raise end from None
                item, journal = downgrading.item, downgrading.journal
                if item is None:
                    raise self.environment_failed(error) from error
                name = item.migration.name
                tried[name] = tried.get(name, 0) + 1
                if journal is not None and journal.committed:
                    self._begun.add(self.steps_of(item))
                self._note_failed(self._revised[name])
                if tried[name] <= retries and database.says(error, "transient"):
                    back_off(tried[name])
                    continue
                raise self.failed(error, f"\n  At: {location(error, item.migration.path)}\n") from error

    @property
    def _so_far(self) -> str:
        """What was taken back so far."""
        return ", ".join(one.name for one in self.undone) or "nothing"

    def failed(self, error: Exception, more: str = " ") -> DbSmartError:
        """What to say of an error in the middle."""
        database = self.database
        kept = "" if database.transactional_ddl else ", and parts of what it was at, as each schema change commits here"
        return DbSmartError(
            f"Cannot undo {self.doing!r} on the database {database.name!r} ({database.url}): "
            f"{database.cause(error).rstrip('.')}.{more}"
            f"Taken back before that: {self._so_far}{kept}. Fix the cause and repeat it: it goes on where it "
            "was."
        )

    def environment_failed(self, error: Exception) -> DbSmartError:
        """What to say where no revision is to blame."""
        if isinstance(error, DbSmartError):
            return error
        scrub(error, self.database.hide)
        place = location_in(error, self.planner.revisions)
        failed = f"The environment of Alembic, {self.environment().directory}/env.py, failed"
        if place is not None:
            failed = f"The revision of Alembic in {place}, cannot be imported"
        return DbSmartError(
            f"{failed}: {self.database.cause(error)}. Taken back before that: {self._so_far}. Fix the cause and "
            "start again."
        )

    def begin_item(self, item: Pending) -> None:
        """Note that a revision begins."""
        self.doing = item.migration.name
        self.lock.note(item.migration.name)
        target = self._revised[item.migration.name]
        self._now = Undone(target.number, target.name)
        self.connection.rollback()
        self._note_begin(target)

    def end_item(self, item: Pending, seconds: float) -> None:
        """Note that a revision is taken back, and that this is recorded."""
        self.undone.append(self._now)

    def steps_of(self, item: Pending) -> str:
        """By what name the journal keeps how far the undo of a revision is."""
        return history.undo_mark(self._revised[item.migration.name].number)

    def has_steps(self, item: Pending) -> bool:
        """Whether an undo of it was killed."""
        return self.steps_of(item) in self._begun

    def end_revision(
        self, connection: sa.Connection, migration: Migration, seconds: float, journal: RevisionJournal
    ) -> None:
        """Record that a revision was taken back, in its own transaction."""
        assert isinstance(journal, DowngradeJournal)
        made = [{"op": "drop_table", "table": one.table, "schema": one.schema} for one in journal.dropped]
        self._record(connection, self._revised[migration.name], {"made": made}, seconds)

    @contextmanager
    def keeping(
        self,
        connection: sa.Connection,
        item: Pending,
        taken: Iterable[Taken | str],
        at_home: Callable[[sa.Connection], AbstractContextManager[None]],
    ) -> Iterator[None]:
        """Keep, or refuse to lose, what a statement takes away that a block sends.

        :raises DbSmartError: nobody has agreed to lose it.
        """
        catalog, parts = Catalog(connection), []
        for one in taken:
            if not isinstance(one, str):
                parts += parts_of(catalog, one, self.database.facts)
            elif not self._discard:
                raise DbSmartError(f"nobody has agreed to {one_line(one)}: --discard does so")
        if not parts:
            yield
            return
        within = WithinRevision(connection, partial(at_home, connection))
        with self._keeper(within, self._now).emptied(*parts):
            yield

    def _keeper(self, transaction: UndoTransaction | WithinRevision, undone: Undone) -> Keeper:
        return Keeper(transaction, undone, archive=self._archive, discard=self._discard)

    def _forget(self, connection: sa.Connection, target: Made, kept: dict[str, Any]) -> None:
        """Forget what the memory has of a run, and how far the undo was."""
        key = self.database.facts.normalize_name
        entries = [entry for entry in kept["made"] if "table" in entry]
        touched = {key(name) for entry in entries for name in tables_of(entry)}
        dropped = {key(entry["table"]) for entry in entries if entry["op"] in ("drop_table", "rename_table")}
        other = [one.name for one in history.read_made(connection) if one.number != target.number]
        rows = connection.execute(sa.select(objects.c.id, objects.c.migration, objects.c.event, objects.c.table_name))
        gone = [
            row.id
            for row in rows
            if (row.migration == target.name and (target.name not in other or key(row.table_name) in touched))
            or (row.event == "model" and key(row.table_name) in dropped)
        ]
        if gone:
            connection.execute(objects.delete().where(objects.c.id.in_(gone)))
        # Of a revision another tool may have finished a run that was killed; its steps would not be done again.
        names = [history.undo_mark(target.number), *([target.name] if is_revision(target) else [])]
        connection.execute(progress.delete().where(progress.c.migration.in_(names)))
