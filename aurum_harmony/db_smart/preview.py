"""Dry runs: what the pending migrations would do, found without doing any of it.

Each migration is called with operations that ask the database as usual, note what they would do, and from then on
find it as if it were done. What cannot be known in this way is reported as unknown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import ismethod
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import sqlalchemy as sa
from sqlalchemy.schema import AddConstraint

from .dialects.sqlite.copying import copy_schema, in_memory
from .errors import DbSmartError, one_line
from .loading.decorator import Migration
from .notices import without_plugin_lines
from .operations import Operations
from .schema import model_tables
from .schema.ddl import CreateDeclared
from .schema.guard import Guard
from .schema.planned import ROWS, CopyCatalog, DryCatalog, PlannedCatalog, apply
from .schema.rules import MANY_ROWS, STILL_MAPPED, Refused
from .schema.touched import place_of, touched, touched_by_rebuild, touched_by_sql
from .session.environment import Environment
from .session.journal import Journal, reads
from .session.literals import (
    BEGIN,
    COMMIT,
    START,
    NoLiteral,
    leniently_mariadb,
    leniently_postgresql,
    literal,
    statement_text,
)
from .session.offline import RevisionScript, revision_scripts
from .session.rebind import rebind
from .session.sql import render
from .session.transaction import NO_ROWS, Outcome, Send, Transaction
from .settings import DdlSettings
from .store import history, tables
from .store.database import Database, begin, impatient, translated
from .store.history import reading
from .store.memory import Event, Memory, insert
from .store.releases import Names, Touches, mapped, overlap

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy.schema import DDLElement

    from .boot.plan import Plan
    from .boot.planner import Planner

#: A parameter's mark; what else could hold one is matched whole.
_MARK = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\?""")
_NAME = r"""("(?:[^"]|"")+"|`(?:[^`]|``)+`|\w+)"""
#: A change of one table's rows: what it does, the table's schema, its name.
_CHANGE = re.compile(
    rf"\s*(?:(INSERT|REPLACE)\s+(?:(?:IGNORE|OR\s+\w+)\s+)?INTO|UPDATE|DELETE\s+FROM)\s+(?:{_NAME}\.)?{_NAME}"
    r"(?=\s*$|\s*\(|\s+(?:SET|WHERE|VALUES|SELECT|DEFAULT|AS)\b)",
    re.IGNORECASE,
)
#: What stands for the tables of the models, which the first run makes, among the names of migrations.
OF_MODELS = "tables of the models"
#: How much of a statement is shown as what a migration does, characters.
_SHOWN = 200


class Sent(str):
    """A statement of a script, or an operation.

    :ivar line: of the migration's file that sends it; ``None`` where none does.
    :ivar own: whether it is the migration's own SQL and not that of an operation.
    """

    __slots__ = ("line", "own")

    line: int | None
    own: bool


class Refusal(NamedTuple):
    """What a rule refuses.

    :ivar line: of the migration's file.
    :ivar allowed: why the migration says that it may be; ``None`` where it does not.
    """

    error: Refused
    line: int | None
    allowed: str | None


@dataclass
class Preview:
    """What one migration would do.

    :ivar migration: ``None`` for the tables of the models, which the first run makes.
    :ivar does: operations that would do something, in order.
    :ivar satisfied: operations that find nothing to do.
    :ivar unknown: why some of it cannot be known in advance; ``None`` if all of it is known.
    :ivar error: what the migration would fail with.
    :ivar refused: the same, where a rule refuses it.
    :ivar line: where in its file it would fail.
    :ivar refusals: all that rules refuse, where that was asked for, and what they would but for a reason.
    :ivar script: statements and, beginning with ``--``, remarks.
    :ivar steps_done: how many steps an earlier, interrupted run has done.
    :ivar journal: whether the script writes steps down.
    :ivar left: see :class:`~.boot.plan.Pending`.
    :ivar place: where in the script of a revision its row of the history belongs: it has its own transaction.
    :ivar touches: what it would take away from a release that runs.
    """

    name: str
    reason: str
    migration: Migration | None = None
    does: list[str] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)
    unknown: str | None = None
    error: str | None = None
    refused: Refused | None = None
    line: int | None = None
    refusals: list[Refusal] = field(default_factory=list)
    script: list[str] = field(default_factory=list)
    steps_done: int = 0
    journal: bool = False
    left: bool = False
    place: int | None = None
    touches: Touches = field(default_factory=Touches)


def preview(
    app: Flask,
    db: SQLAlchemy,
    planner: Planner,
    plan: Plan,
    *,
    create_all: bool,
    remake: bool = False,
    as_sql: bool = False,
    beyond: bool = False,
) -> list[Preview]:
    """What each pending migration of a database would do. Needs an application context.

    Reads only. For a SQLite database the run is played through on a copy of its schema in memory, without rows.

    :param create_all: whether the first run on a database makes the missing tables of the models.
    :param remake: whether a later run makes them too, as ``migrate`` does and a boot does not.
    :param as_sql: whether Alembic is to write the SQL of revisions.
    :param beyond: whether to go on with a migration after what a rule refuses, as if that were done, or left out.
    :raises DatabaseUnreachable: no connection could be made, or the history cannot be read.
    :raises DbSmartError: the history is that of another application, and has names of this one's migrations.
    """
    previews = []
    database, mine, models = plan.database, planner.of(plan.database), db.metadatas.get(plan.database.key)
    with _opened(database) as (connection, catalog):
        memory = planner.memory(plan, models, connection)
        begun = _remembered(database, memory)
        first = plan.is_first_run(planner.module, mine, memory.applications)
        transaction = DryTransaction(database, connection, catalog, memory, planner.settings.ddl)
        missing: list[sa.Table] = []
        transaction.beyond = beyond
        if first and create_all and models is not None:
            transaction.current = Preview(OF_MODELS, "first run")
            wanted = model_tables.missing(connection, models)
            for event in memory.begin_first_run(connection, wanted):
                transaction.remember(event)
            previews += _tables(transaction, models, wanted)
            memory.keep()
        elif remake and create_all and models is not None and plan.first_run_done:
            missing = model_tables.missing(connection, models)
            taken = memory.taken(missing)
            missing = [table for table in missing if table.key not in taken]
            # Others may be made by what is pending.
            lost = memory.had(missing) or [] if plan.pending else missing
            transaction.current = Preview(OF_MODELS, "missing in the database")
            previews += _tables(transaction, models, lost)
        revisions = _revisions(app, planner, plan, as_sql=as_sql)
        previews += revisions
        for item in plan.pending:
            if item.migration.revision:
                continue
            if revisions:
                unknown = "what the revisions before it make"
                previews.append(
                    Preview(item.migration.name, item.reason, item.migration, unknown=unknown, left=item.left)
                )
                continue
            transaction.repeated = item.reason == "forced"
            shown = Preview(item.migration.name, item.reason, item.migration, left=item.left)
            transaction.current = shown
            transaction.begin(item.migration, begun.get(item.migration.name))
            transaction.journal.guard = Guard(transaction, item.migration.options, catalog)
            shown.steps_done = transaction.journal.kept
            previews.append(shown)
            try:
                with (
                    rebind(app, db, database, lambda: transaction.unforeseeable("db.session or db.engine")),
                    transaction.leniently(transaction.left_out, whole=True),
                ):
                    if not item.migration.takes_operations:
                        transaction.unforeseeable("no operations, only db.session and db.engine")
                    options = item.migration.options
                    operations = (_Beyond if beyond else Operations)(
                        transaction, destructive=options.destructive, allow=options.allow, catalog=catalog
                    )
                    item.migration.function(operations)
                if options.contract and models is not None:
                    transaction.refuse_mapped(mapped(models, database.app_engine), options.allow.get(STILL_MAPPED.id))
                if database.facts.server:  # a change of the tables that it asked about need not wait for the next ones
                    transaction.rollback()
                memory.keep()
            except _Unforeseeable as error:
                shown.unknown = str(error)
                transaction.remark(f"from here on it cannot be known in advance: the migration uses {error}")
            # Of the migration: a real one, or because what it would have made is missing.
            except (Exception, SystemExit) as error:
                connection.rollback()
                memory.take_back()
                if isinstance(error, sa.exc.DBAPIError) and database.facts.says(error, "transient"):
                    shown.unknown = f"what another session has locked ({one_line(database.cause(error))})"
                    transaction.remark(
                        f"from here on it cannot be known in advance: the migration uses {shown.unknown}"
                    )
                    continue
                ends = isinstance(error, SystemExit)
                shown.error = f"it wanted to end the process ({error})" if ends else database.cause(error)
                shown.refused = error if isinstance(error, Refused) else None
                shown.line = line_of(error, item.migration.path)
                transaction.remark(f"it ends here: {shown.error}")
        if models is not None and not any(shown.unknown or shown.error for shown in previews):
            places = {table.schema: translated(connection, table.schema) for table in missing}
            left = [table for table in missing if not catalog.has_table(table.name, places[table.schema])]
            transaction.current = Preview(OF_MODELS, "missing in the database")
            previews += _tables(transaction, models, left)
    return previews


def _tables(transaction: DryTransaction, models: sa.MetaData, wanted: list[sa.Table]) -> list[Preview]:
    """Note in the present preview that these tables of the models would be made.

    :returns: it; nothing where there is none to make.
    """
    operations = Operations(transaction, destructive=False, catalog=transaction.catalog)
    copies = sa.MetaData()
    for table in models.tables.values():
        table.to_metadata(copies)
    for copy, keys in model_tables.in_order([copies.tables[table.key] for table in wanted]):
        if copy is not None:
            for key in copy.foreign_key_constraints.difference(keys):
                key.use_alter = True  # to a table that is only made after it
            operations.sync(copy)
        elif transaction.database.facts.key_needs_target:
            for key in keys:
                transaction.send(AddConstraint(key))
    return [transaction.current] if transaction.current.does else []


def _revisions(app: Flask, planner: Planner, plan: Plan, *, as_sql: bool) -> list[Preview]:
    """What the pending revisions of Alembic would do: only Alembic can tell, and only as SQL.

    :raises DbSmartError: ``env.py`` cannot write SQL.
    """
    pending = [item for item in plan.pending if item.migration.revision]
    alembic, scripts = planner.code.alembic, dict[str, RevisionScript]()
    if pending and as_sql and alembic is not None:
        environment = Environment(alembic)
        with without_plugin_lines():
            from .revising import leads_to

            database, several = plan.database, len(planner.revised) > 1
            scripts = revision_scripts(
                environment,
                planner.revisions,
                plan.heads,
                lambda url: not several or leads_to(sa.make_url(url), database),
                transactional=database.transactional_ddl,
            )
    previews = []
    for item in pending:
        shown = Preview(item.migration.name, item.reason, item.migration, unknown="operations of Alembic")
        previews.append(shown)
        script = scripts.get(item.migration.name)
        if script is None:
            continue
        if script.error is None and script.place is not None:
            shown.script, shown.place, shown.unknown = script.lines, script.place, None
        else:
            shown.unknown = f"what Alembic cannot write as SQL ({script.error})"
            shown.script = [f"-- Alembic cannot write it as SQL: {one_line(str(script.error))}"]
    return previews


def _remembered(database: Database, memory: Memory) -> dict[str, _DryJournal]:
    """Read what a database remembers.

    :returns: the steps of the migrations that an earlier run left unfinished, by their names.
    """
    if not database.exists:
        return {}
    with database.connect() as connection, reading(database):
        lacks = history.missing_tables(connection)
        if tables.objects.name not in lacks:
            memory.read(connection)
        if tables.progress.name in lacks:
            return {}
        names = history.begun(connection)
        return {name: _DryJournal(connection, name, at_once=False, begun=True) for name in names}


class _DryJournal(Journal):
    """The journal of a script: it records the steps, so that a boot can go on where the script stopped."""

    #: Where to.
    shown: Preview

    def store(self) -> None:
        """Have the script write down the steps that were noted since."""
        for row in self._made:
            self.shown.script.append(render(tables.progress.insert().values(row), self._dialect, literal_binds=True))
            self.shown.journal = True
        self._made.clear()

    @property
    def _dialect(self) -> sa.Dialect:
        return self._connection.dialect


@contextmanager
def _opened(database: Database) -> Iterator[tuple[sa.Connection, DryCatalog]]:
    """A connection to play a run through, and what is there."""
    if database.facts.server:
        with database.connect() as connection, impatient(connection):
            yield connection, PlannedCatalog(connection)
        return
    with in_memory() as engine, Database(database.name, database.key, engine).connect() as connection:
        if not database.exists:
            yield connection, DryCatalog(connection)
            return
        with database.connect() as source:
            copy_schema(source, connection)
            yield connection, CopyCatalog(connection, source)


class DryTransaction(Transaction):
    """A transaction that notes instead of sending."""

    journal: _DryJournal
    memory: Memory
    #: What the present migration would do.
    current: Preview

    def __init__(
        self,
        database: Database,
        connection: sa.Connection,
        catalog: DryCatalog,
        memory: Memory,
        settings: DdlSettings | None = None,
    ) -> None:
        journal = _DryJournal(connection, "", at_once=False, begun=False)
        # Nothing is sent that could wait for a lock.
        super().__init__(
            database, connection, journal, settings=settings or DdlSettings(), transactional=True, memory=memory
        )
        self.catalog = catalog
        self.rows_changed = False
        #: Whether to go on after what a rule refuses.
        self.beyond = False
        self._types: set[str] = set()
        self._own = False

    @property
    def dry(self) -> DryTransaction:
        """This very transaction."""
        return self

    def begin(self, migration: Migration, journal: _DryJournal | None) -> None:
        """Go on to the next migration.

        :param journal: the steps of an interrupted run.
        """
        self.transactional = migration.options.transactional
        self.journal = journal or _DryJournal(self.connection, migration.name, at_once=False, begun=False)
        self.journal.shown = self.current
        self.journal.at_once = not (self.transactional and self.database.transactional_ddl)

    @property
    def session(self) -> NoReturn:
        """There is none: what does not use the operations cannot be predicted."""
        self.unforeseeable("op.session")

    @property
    def own_connection(self) -> NoReturn:
        """There is none, as for :attr:`session`."""
        self.unforeseeable("op.connection")

    def settle_connection(self) -> None:
        """There is none."""

    def unforeseeable(self, what: str) -> NoReturn:
        """A migration uses something that cannot be foreseen."""
        raise _Unforeseeable(what)

    def refuse(self, refusal: DbSmartError, allowed: str | None = None) -> None:
        """Note what a rule refuses, where one is to go on after that, as if it were done.

        What changes very many rows is left out: those after it are asked about the rows that are there.
        """
        if not self.beyond or (allowed is None and isinstance(refusal, Refused) and refusal.rule is MANY_ROWS):
            super().refuse(refusal, allowed)
        elif isinstance(refusal, Refused):
            self.note_refusal(refusal, allowed)

    def refuse_mapped(self, uses: Names, allowed: str | None) -> None:
        """Refuse to take away what the models of this release map.

        :param allowed: why it may be so.
        :raises Refused: it would, and may not.
        """
        found = overlap(self.current.touches.gone, uses)
        if found:
            self.refuse(Refused(STILL_MAPPED, f"{self.current.name} ({', '.join(found)})"), allowed)

    def note_refusal(self, refusal: Refused, allowed: str | None = None) -> None:
        """Note what a rule refuses, or would but for a reason."""
        self.current.refusals.append(Refusal(refusal, self._line(), allowed))

    def report(self, outcome: Outcome, operation: str, reason: str = "") -> None:
        """Note what becomes of an operation."""
        if outcome == "does":
            self.current.does.append(self._sent(operation))
            return
        reason = "done by the run that was cut short" if outcome == "done before" else reason
        self.current.satisfied.append(f"{operation}: {reason}" if reason else operation)

    def found_done(self) -> None:
        """An earlier run has done what was just reported as something to do."""
        self.report("done before", self.current.does.pop())

    def note(self, migration: str, event: str, kind: str, schema: str | None, table: str, name: str = "") -> None:
        """Note what the run would remember; the script does so too."""
        new = self.memory.event(migration, event, kind, schema, table, name)
        if new is not None:
            self.remember(new)

    def remember(self, event: Event) -> None:
        """Have the script write down an event."""
        self.current.script.append(render(insert(event), self.connection.dialect, literal_binds=True))

    @contextmanager
    def _ignoring(self, passes: Callable[[Exception], bool]) -> Iterator[None]:
        """Forget what the block would have done, because it is left out."""
        try:
            yield
        except Exception as error:
            self.rollback()
            if not passes(error):
                raise
            self.current.script.clear()
            self.current.does.clear()
            self.memory.take_back()

    @contextmanager
    def undoable(self) -> Iterator[None]:
        """Nothing is done, so that there is nothing to undo."""
        yield

    def remark(self, text: str) -> None:
        """Say something that is no SQL."""
        self.current.script.append(f"-- {' '.join(text.split())}")

    def send(self, change: sa.ClauseElement | str, more: str = "") -> None:
        """Note one schema change."""
        text = (change if isinstance(change, str) else render(change, self.connection.dialect)) + more
        if text.startswith("CREATE TYPE "):
            if text in self._types:  # the database is asked for it again, and does not have it
                return
            self._types.add(text)
        self.current.script.append(self._sent(text))
        self._note_rows(text)
        if not isinstance(change, str):
            self.current.touches |= touched(change, self.catalog)
        if isinstance(change, CreateDeclared) and change.kind == "view":
            self.current.touches = self.current.touches.made_again(place_of(self.catalog, change.name, change.schema))
        self.catalog.play(text)
        apply(change, self.catalog)

    def _sent(self, text: str) -> Sent:
        """A statement, with the line of the migration that is at it."""
        sent = Sent(text)
        sent.line, sent.own = self._line(), self._own
        return sent

    def _line(self) -> int | None:
        """The line of the migration that is at work."""
        migration, frame = self.current.migration, sys._getframe(1)
        path = None if migration is None else migration.path
        while path is not None and frame is not None:
            if frame.f_code.co_filename == path:
                return frame.f_lineno
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def _note_rows(self, statement: str) -> None:
        """Note that a statement would change rows, and of which table."""
        if ROWS.match(statement) is None:
            return
        self.rows_changed = True
        change = _CHANGE.match(statement)
        if change is None:
            self.catalog.rows_unknown = True
            return
        adds, schema, table = change.groups()
        names = [name if name is None or name[0] not in '"`' else _unquoted(name) for name in (schema, table)]
        schema, table = names[0], str(names[1])
        self.catalog.plan_rows(table, schema, filled=adds is not None)
        # A foreign key may delete or empty rows of others with it.
        self.catalog.rows_unknown = self.catalog.rows_unknown or "DELETE" in change[0].upper()

    def left_out(self, error: Exception) -> None:
        """A whole migration needs what no longer exists."""
        why = f"what it needs no longer exists: {self.database.redact(error)}"
        self.report("left out", self.current.name, why)

    @contextmanager
    def by_hand(self, change: DDLElement | None) -> Iterator[sa.Connection]:
        """Note what is sent without :meth:`send`, as the rebuild of a SQLite table is."""

        def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
            if not reads(statement) or (statement.startswith("PRAGMA") and "=" in statement):
                self.current.script.append(self._sent(_with_values(statement, parameters or (), self.connection)))

        before = len(self.current.script)
        if change is not None:
            self.current.touches |= touched(change, self.catalog)
        sa.event.listen(self.connection, "before_cursor_execute", note)
        try:
            yield self.connection
        finally:
            sa.event.remove(self.connection, "before_cursor_execute", note)
        if change is None:
            self.current.touches |= touched_by_rebuild(self.current.script[before:], self.facts)
        apply(change, self.catalog)

    def checkpoint(self) -> None:
        """Note the end of a transaction."""
        if self.database.transactional_ddl and self.transactional:
            self.journal.store()
            self.current.script += [COMMIT, BEGIN]

    def commit(self) -> None:
        """Note the end of a transaction; the next one begins later."""
        self.journal.store()
        self.current.script += [COMMIT] if self.transactional else []

    def rollback(self) -> None:
        """Let the connection be used as before."""
        self.connection.rollback()

    @contextmanager
    def autocommit_block(self) -> Iterator[Send]:
        """Note what cannot run in a transaction."""
        if self.transactional:
            self.commit()
        yield self.send
        if self.transactional:
            self.current.script.append(BEGIN)

    @contextmanager
    def pragma(self, name: str, value: str) -> Iterator[None]:
        """Note a pragma for one transaction."""
        before = self.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        self.commit()
        self.current.script += [f"PRAGMA {name} = {value}", BEGIN]
        self.connection.exec_driver_sql(f"PRAGMA {name} = {value}")
        yield
        self.connection.exec_driver_sql(f"PRAGMA {name} = {before}")
        self.current.script += [COMMIT, f"PRAGMA {name} = {before}"]
        self.current.script += [BEGIN] if self.transactional else []

    def execute(self, statement: Any, parameters: Any) -> sa.CursorResult[Any]:
        """Run a statement that only reads; note any other, which then returns nothing."""
        dialect = self.connection.dialect
        text = " ".join(str(statement).split())
        what = f"execute({text if len(text) <= _SHOWN else text[:_SHOWN] + ' …'!r})"
        try:
            if reads(str(statement.compile(dialect=dialect))):
                self._read_only()
                try:
                    return self.connection.execute(statement, parameters)
                except sa.exc.DBAPIError as error:
                    if not self.facts.says(error, "read only"):
                        raise
                    self.rollback()
            self._note(statement, parameters, what)
        except sa.exc.DBAPIError as error:
            if not self.memory.excuses(self.journal.migration, error):
                raise
            if self.facts.failure_ends_transaction:
                self.rollback()
            self._left_out(what, error)
        return self.connection.exec_driver_sql(NO_ROWS)

    def _read_only(self) -> None:
        """Begin a transaction in which a query cannot write, nor set the numbers of a sequence for good."""
        if self.facts.reads_only:
            self.rollback()
            begin(self.connection)
            self.connection.exec_driver_sql(self.facts.reads_only)

    def _note(self, statement: Any, parameters: Any, what: str) -> None:
        """Note a statement of a migration that changes something."""
        step = self.journal.next(_as_sent(statement, parameters, self.connection.dialect))
        self.current.does.append(self._sent(what))
        if step is not None and self.journal.done(step) is not None:
            self.found_done()
            self.journal.look(str(statement), passed=True)
        else:
            many = parameters is not None and not isinstance(parameters, Mapping)
            with nullcontext() if step is None else self.recorded(step):
                for values in (parameters or [None]) if many else [parameters]:
                    self.foretell(statement, values or {}, own=True)

    @contextmanager
    def recorded(self, step: str, detail: str | None = None) -> Iterator[None]:
        """Have the script record a step in one transaction with what a block notes."""
        apart = self.transactional and not self.database.transactional_ddl
        self.current.script += [START] if apart else []
        yield
        self.journal.record(step, 0, None, detail)
        self.current.script += [COMMIT] if apart else []

    def foretell(self, statement: Any, values: Mapping[str, Any], *, own: bool = False) -> None:
        """Note a statement of a migration with its values, which a script may not be able to have.

        :param own: whether it is the migration's own SQL and not that of an operation.
        :raises Refused: a rule forbids it.
        """
        try:
            text = statement_text(statement, values, self.connection)
        except NoLiteral as error:
            # What follows is foreseen all the same; a script ends before this migration.
            self.rows_changed = self.catalog.rows_unknown = True
            self.current.unknown = self.current.unknown or f"values that a script cannot hold: {error}"
            self.remark(f"not written, because {error}: {statement}")
        else:
            if own:
                self.journal.look(text)
                self.current.touches |= touched_by_sql(text, self.facts)
            self._own = own
            try:
                self._foretell(text)
            finally:
                self._own = False

    def _foretell(self, statement: str) -> None:
        """Note a statement of a migration; where it may need what no longer exists, so that it is left out then.

        SQLite tries it now, because the copy has every table; on a server the client does so.
        """
        migration = self.journal.migration
        pattern = self.memory.excused(migration, statement) if self.memory.lenient(migration) else ""
        if pattern == "":
            self.send(statement)
        elif not self.facts.server:
            try:
                self.send(statement)
            except sa.exc.DBAPIError as error:
                if not self.memory.excuses(migration, error):
                    raise
                self.current.script.pop()
                self._left_out(self.current.does.pop(), error)
        else:
            dialect = self.connection.dialect
            lenient = leniently_postgresql if self.dialect == "postgresql" else leniently_mariadb
            self.current.script.append("\n".join(lenient(statement, pattern, dialect)))
            self._note_rows(statement)

    def _left_out(self, what: str, error: sa.exc.DBAPIError) -> None:
        """SQL of a migration needs a table or a column that no longer exists."""
        self.report("left out", what, f"what it needs no longer exists: {error.orig}")


def line_of(error: BaseException, path: str) -> int | None:
    """The last line of a file that an error went through; ``None`` if it went through none."""
    found = None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == path:
            found = step.tb_lineno
        step = step.tb_next
    return found


class _Beyond(Operations):
    """Operations that go on after one that is refused, which is left out."""

    _transaction: DryTransaction
    _within = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not ismethod(found) or self._within:
            return found

        def call(*args: Any, **given: Any) -> Any:
            self._within = True
            try:
                return found(*args, **given)
            except Refused as error:
                self._transaction.rollback()
                self._transaction.note_refusal(error)
                return self._transaction.connection.exec_driver_sql(NO_ROWS) if name == "execute" else None
            finally:
                self._within = False

        return call


_Beyond.__name__ = Operations.__name__  # in what Python says of it


class _Unforeseeable(Exception):
    """A dry run cannot go on with this migration."""


def _unquoted(name: str) -> str:
    return name[1:-1].replace(2 * name[0], name[0])


def _with_values(statement: str, values: Iterable[Any], connection: sa.Connection) -> str:
    """A statement with its ``?`` replaced by values, but for those in names and strings."""
    left = iter(values)

    def fill(found: re.Match[str]) -> str:
        if found[0] != "?":
            return found[0]
        return literal(next(left), connection)

    return _MARK.sub(fill, statement) if values else statement


def _as_sent(statement: Any, parameters: Any, dialect: sa.Dialect) -> str:
    """A statement as the driver gets it, by which a step of a run is known."""
    many = parameters is not None and not isinstance(parameters, Mapping)
    first = next(iter(parameters), {}) if many else parameters or {}
    compiled = statement.compile(dialect=dialect, column_keys=sorted(first), for_executemany=many)
    if compiled.post_compile_params or compiled.literal_execute_params:
        return str(compiled.construct_expanded_state(first).statement)
    return str(compiled)
