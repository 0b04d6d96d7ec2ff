"""Take back what runs of migrations made, by what each has written into its row of the history.

The code that made it need not be there. Nothing is taken back that a run found satisfied, or that is not as the run
left it. :func:`look` says what there is to do and what stands against it; :class:`UndoRun` does it under the lock,
newest first. Each inverse looks first, so that an undo which was killed is finished by another one; the row that says
that a run was taken back is written last, in the same transaction where the database has such.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DropEnumType
from sqlalchemy.dialects.postgresql.named_types import DropDomainType, NamedType
from sqlalchemy.schema import DropTable

from .batches import COPY
from .boot.plan import Pending, Plan
from .dialects.base import Facts, facts_of
from .dialects.editor import editor_of
from .downgrading import (
    Downgrading,
    Foreseeing,
    Foreseen,
    Taken,
    Takes,
    UndoJournal,
    does_nothing,
    goes,
    raises,
    stored,
)
from .errors import DbSmartError, LeaseLost, one_line, scrub
from .interrupt import ending, interruptible
from .loading.loader import location, location_in
from .loading.sources import ALEMBIC
from .operations import Operations
from .resuming import shown
from .retry import back_off
from .runner import DatabaseRun, Outcome, Runner
from .schema.catalog import Catalog
from .schema.column_types import from_json, misfits
from .schema.ddl import CreateDeclared, CreateTableAs, DropDeclared, LockTables
from .schema.effects import Change, changes_of, names_in, split_name
from .schema.rules import counted
from .session.journal import ROWS, Journal
from .session.lock_timeout import DdlLockTimeout
from .session.sql import render
from .session.transaction import RunTransaction, tried_again
from .store import history, snapshot
from .store.database import Database, begin, commit
from .store.history import ADOPTED, STAMPED, TAKEN_BACK, Made
from .store.tables import ARCHIVE, objects, progress, state

if TYPE_CHECKING:
    from .boot.planner import Planner
    from .loading.decorator import Migration
    from .loading.revisions import Revision
    from .session.replay import RevisionJournal

#: A default that is the same for every row.
_CONSTANT = re.compile(r"\(*(?:'(?:[^']|'')*'|[+-]?[\d.]+|true|false)(?:::[\w ()\[\]\"]+)?\)*", re.IGNORECASE)
#: How long a name may be everywhere, bytes; a little less, for a number behind it.
_MAX_NAME = 56


@dataclass(frozen=True)
class Loss:
    """Values that go with what is taken back.

    :ivar column: ``None`` for a whole table.
    """

    schema: str | None
    table: str
    column: str | None
    rows: int

    def __str__(self) -> str:
        kind, what = ("row", "the table ") if self.column is None else ("value", f"the column {self.column!r} of ")
        return f"{self.rows} {kind}{'' if self.rows == 1 else 's'} of {what}{self.table!r}"


@dataclass
class Undoing:
    """What taking one run back comes to.

    :ivar does: what would be done, in this order.
    :ivar gone: what is no longer there.
    :ivar losses: what would be lost.
    :ivar perhaps: what an interrupted try of the run may or may not have made.
    :ivar unforeseen: of a revision of Alembic, what its ``downgrade()`` may take away that cannot be counted.
    :ivar stays: what cannot be taken back and stays as it is.
    :ivar refusals: why it cannot be taken back.
    """

    number: int
    name: str
    does: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    perhaps: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def objections(self, *, archive: bool, discard: bool) -> Iterator[str]:
        """Why it is not done, with these options.

        :param archive: whether what would be lost is copied first.
        :param discard: whether it may be lost.
        """
        yield from self.refusals
        if not (archive or discard):
            yield from (f"{one} would be lost: --archive copies them first, --discard does not" for one in self.losses)
        if not discard:
            said = "perhaps made by this run, which was interrupted there; --discard takes it to be so"
            yield from (f"{what}: {said}" for what in self.perhaps)
            said = "what that takes away cannot be counted, nor archived; --discard agrees to it"
            yield from (f"{one_line(what)}: {said}" for what in self.unforeseen)


@dataclass(frozen=True)
class Undone:
    """A run that was taken back.

    :ivar archived: names of the tables that keep what it held, and how many rows each has.
    :ivar lost: what was lost.
    """

    number: int
    name: str
    archived: list[tuple[str, int]]
    lost: list[str]


def asked(runner: Runner, database: Database, wanted: str | None) -> list[Undoing]:
    """As :func:`look`, by a connection of its own, without the lock.

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


def look(run: UndoRun) -> list[Undoing]:
    """What taking a run back comes to, newest first; nothing is written.

    :param run: has a connection, and says what is wanted: the number of a run, or the name of a migration for its last
        run; ``None`` for all migrations of the last run.
    :raises DbSmartError: there is no such run.
    """
    database, connection, wanted = run.database, run.connection, run.wanted
    made = history.read_made(connection)
    begun = history.begun(connection)
    targets = _targets(database, made, wanted, begun)
    revisions = None
    if any(map(_is_revision, targets)):
        revisions = _Revisions(run)
        made = [one for one in made if not revisions.is_gone(one)]
        targets = revisions.in_order(_targets(database, made, wanted, begun))
        revisions.foresee(targets, begun)
    before, found = _Before(Catalog(connection)), []
    _see_all_rows(connection)
    try:
        for target in targets:
            undoing = Undoing(target.number, target.name)
            later = [one for one in made if one.number > target.number and one not in targets]
            looking, kept = _Looking(before, undoing, later), _kept(target)
            if revisions is not None and _is_revision(target):
                revisions.look(looking, target)
            else:
                if target.name in begun:
                    undoing.refusals.append("a later try of this migration was interrupted: let it be finished first")
                if kept is None:
                    undoing.refusals.append(_why_unknown(target))
                else:
                    looking.look(kept)
            known = kept is not None or _is_revision(target)
            if known and undoing.refusals and database.path is not None:
                undoing.refusals.append(
                    "'flask db-smart restore' puts back the snapshot of before a run, with all rows of that time; "
                    "see 'flask db-smart snapshots'"
                )
            found.append(undoing)
    except sa.exc.DBAPIError as error:
        if not database.says(error, "denied"):
            raise
        raise DbSmartError(
            f"The user of the database {database.name!r} ({database.url}) may not see all rows of what would be taken "
            f"back: {database.redact(error)}. Nothing was taken back. Undo it as one who may: where policies hide "
            "rows, as a role with BYPASSRLS, by DB_SMART_MIGRATION_URL."
        ) from error
    return found


def _see_all_rows(connection: sa.Connection) -> None:
    """Let no policy of PostgreSQL hide rows that are counted and copied: the server refuses to ask instead.

    Until the transaction ends.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL row_security = off")


def _targets(database: Database, made: list[Made], wanted: str | None, begun: set[str]) -> list[Made]:
    """The runs to take back, newest first."""
    if not made:
        raise DbSmartError(f"The history of the database {database.name!r} has no run to take back.")
    if wanted is None:
        half = [one for one in made if history.undo_mark(one.number) in begun]  # of an undo that was killed
        last = (half or made)[-1]
        run = (_kept(last) or {}).get("run")
        return [one for one in reversed(made) if one is last or (run and (_kept(one) or {}).get("run") == run)]
    found = [one for one in made if wanted in (str(one.number), one.name)]
    if not found:
        raise DbSmartError(
            f"The history of the database {database.name!r} has no run {wanted!r} that is applied and was not taken "
            "back. 'flask db-smart history' shows the numbers and names."
        )
    return found[-1:]


def _kept(run: Made) -> dict[str, Any] | None:
    """What takes a run back; ``None`` where that is not kept, or not as this release writes it."""
    try:
        found: dict[str, Any] = json.loads(run.inverse or "")
        made, own = found["made"], found["own"]
        lists = isinstance(made, list) and isinstance(own, list) and all(isinstance(one, str) for one in own)
        return found if lists and all(map(_known, made)) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


_TEXT, _NAMES = (str,), (list,)
_MAYBE = (str, type(None))
#: What tells of each inverse, besides its table.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "cannot": {"what": _TEXT, "why": _TEXT},
    "stays": {"what": _TEXT},
    "drop_table": {"names": _NAMES},
    "drop_columns": {"names": _NAMES, "constraints": _NAMES},
    "drop_index": {"name": _TEXT, "names": _NAMES},
    "drop_constraint": {"name": _TEXT, "names": _NAMES, "implied": (bool,)},
    "rename_table": {"name": _TEXT},
    "rename_column": {"name": _TEXT, "to": _TEXT},
    "alter_column": {"name": _TEXT},
    "table_comment": {"comment": _MAYBE},
    "declare": {"kind": _TEXT, "name": _TEXT, "text": _MAYBE},
    "drop_type": {"name": _TEXT, "domain": (bool,)},
}
_PLACE = {"schema": _MAYBE, "table": _TEXT}
#: What an altered column may have had before.
_ALTERED: dict[str, tuple[type, ...]] = {"type": (dict,), "nullable": (bool,), "default": _MAYBE, "comment": _MAYBE}


def _known(entry: dict[str, Any]) -> bool:
    """Whether an inverse is one of this release, with all that it needs, and nothing else."""
    op = entry["op"]
    needs = {"op": _TEXT, "sure": (bool,), **_FIELDS[op], **({} if op in ("cannot", "stays") else _PLACE)}
    may = needs | (_ALTERED if op == "alter_column" else {})
    typed = all(isinstance(value, may[name]) for name, value in entry.items())
    lists = (value for value in entry.values() if isinstance(value, list))
    return typed and needs.keys() <= entry.keys() and all(isinstance(name, _MAYBE) for its in lists for name in its)


def _why_unknown(made: Made) -> str:
    if made.error == STAMPED:
        return "it was recorded by 'stamp', so db-smart has made nothing for it"
    if made.inverse is not None:
        return (
            "what the history has to take it back is not as this release of db-smart writes it: it was edited, or a "
            "later release has written it, which can take it back"
        )
    return (
        "the history does not have what takes it back: it was applied by an earlier release of db-smart, or by a "
        "script of 'migrate --sql'"
    )


def _is_revision(made: Made) -> bool:
    return made.checksum.startswith(ALEMBIC)


def _inverses(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """What to do, in this order: types go last, when no column has them any more."""
    newest = kept["made"][::-1]
    return sorted(newest, key=lambda one: one["op"] == "drop_type")


class _Before:
    """The names of a time before now, as what came since is taken back in thought."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.key = catalog.normalize_name
        self._tables: dict[tuple[str | None, str], str | None] = {}
        self._columns: dict[tuple[str | None, str], dict[str, str]] = {}
        self._keys: dict[str | None, list[tuple[str, Any]]] = {}
        #: The tables and constraints that are dropped by then, by their names now.
        self.dropped: set[tuple[str | None, str, str | None]] = set()

    def table(self, schema: str | None, name: str) -> str | None:
        """What a table is called now; ``None`` where it is not there."""
        there = self._tables.get((schema, self.key(name)), ...)
        if there is ...:
            there = name if self.catalog.has_table(name, schema) else None
        return there

    def knows(self, schema: str | None, name: str) -> bool:
        """Whether it is known in thought what this name means."""
        return (schema, self.key(name)) in self._tables

    def columns(self, schema: str | None, table: str) -> dict[str, str]:
        """What the columns of a table, by its name now, are called now."""
        place = schema, self.key(table)
        if place not in self._columns:
            self._columns[place] = {key: one["name"] for key, one in self.catalog.columns(table, schema).items()}
        return self._columns[place]

    def referring(self, schema: str | None, table: str, columns: set[str] | None = None) -> Iterator[str]:
        """The foreign keys of other tables to a table, or to some of its columns."""
        key = self.key
        if schema not in self._keys:
            found = self.catalog.inspector.get_multi_foreign_keys(schema=schema)
            self._keys[schema] = [(child, one) for (_, child), keys in found.items() for one in keys]
        for child, one in self._keys[schema]:
            if (
                one["referred_schema"] == schema
                and key(one["referred_table"]) == key(table) != key(child)
                and (columns is None or columns & {*map(key, one["referred_columns"])})
                and self.dropped.isdisjoint({(schema, key(child), None), (schema, key(child), one["name"])})
                and {*one["constrained_columns"]} <= {*self.columns(schema, child).values()}
            ):
                yield f"a foreign key of {child!r} on {', '.join(map(repr, one['constrained_columns']))} refers to it"

    def call(self, schema: str | None, name: str, table: str | None) -> None:
        """From here on, this name means another table, or none."""
        self._tables[schema, self.key(name)] = table


class _Looking:
    """Looks at one run that is to be taken back."""

    def __init__(self, before: _Before, undoing: Undoing, later: Sequence[Made]) -> None:
        self._before = before
        self._catalog = before.catalog
        self._undoing = undoing
        #: The indexes that are replaced, or there again, by then.
        self._put: set[tuple[str | None, str]] = set()
        #: Normalized names of the tables that go with a revision.
        self.dropped: set[str] = set()
        self._later = [(one, entry) for one in later for entry in (_kept(one) or {"made": []})["made"]]
        #: The views that came since, with all names that they have; not each database looks after them.
        self._views = [
            (one, entry["name"], names_in(text, facts_of(self._catalog.inspector.dialect.name)))
            for one, entry in self._later
            if entry["op"] == "declare" and entry["kind"] == "view"
            if self._catalog.has_declared("view", entry["name"], entry["schema"])
            if (text := self._catalog.declared("view", entry["name"], entry["schema"], None))
        ]

    @property
    def undoing(self) -> Undoing:
        """What it comes to."""
        return self._undoing

    def look_at_statements(self, statements: Iterable[str]) -> None:
        """See what the statements of a ``downgrade()`` would do."""
        facts = facts_of(self._catalog.inspector.dialect.name)
        takes = Takes(facts)
        for statement in statements:
            self._undoing.does.append(shown(statement))
            for one in takes.of(statement):
                if isinstance(one, str):
                    self._undoing.unforeseen.append(one)
                else:
                    self._taken(one, facts)
            for change in changes_of(statement, facts).seen:
                self._call(change, facts)

    def _taken(self, taken: Taken, facts: Facts) -> None:
        """See what one statement takes away, by the names of now."""
        before, schema = self._before, taken.schema
        if before.knows(schema, taken.table):
            table = before.table(schema, taken.table)
        else:
            table = stored(self._catalog, schema, taken.table, facts)
        whole = taken.column is None and taken.kept is None
        if table is None:
            return
        there = before.columns(schema, table)
        gone = {} if whole else {key: name for key, name in there.items() if goes(taken, key, facts)}
        entry = {"op": "drop_table" if whole else "drop_columns", "schema": schema, "table": table, "names": [*gone]}
        changed = next((one for one, other in self._later if _touches(entry, other)), None)
        if changed is not None:
            what = f"the table {table!r}" if whole else f"{', '.join(map(repr, gone))} of {table!r}"
            self._undoing.refusals.append(
                f"its downgrade() drops {what}, and {changed.name!r} (run {changed.number}) has changed it since; "
                "undo that first"
            )
        for key, name in gone.items():
            del there[key]
            self._lose(schema, table, name, holds(self._catalog, schema, table, name))
        if whole:
            losses = self._undoing.losses
            losses[:] = [loss for loss in losses if (loss.schema, loss.table) != (schema, table)]
            self._lose(schema, table, None, None)
            before.call(schema, taken.table, None)
            self.dropped.add(taken.table)

    def _call(self, change: Change, facts: Facts) -> None:
        """Note what a name means after a statement."""
        if change.kind == "rename table" and not change.table.startswith(COPY):
            table, schema = split_name(change.table)
            now = self._before.table(schema, table) if self._before.knows(schema, table) else None
            now = now or stored(self._catalog, schema, table, facts)
            self._before.call(schema, table, None)
            self._before.call(schema, split_name(change.new)[0], now)
        elif change.kind == "rename column":
            table, schema = split_name(change.table)
            stands = self._before.table(schema, table)
            columns = {} if stands is None else self._before.columns(schema, stands)
            if change.name in columns:
                columns[change.new] = columns.pop(change.name)
        elif change.kind == "make table" and not change.table.startswith(COPY):
            table, schema = split_name(change.table)
            self._before.call(schema, table, None)

    def look(self, kept: dict[str, Any]) -> None:
        """See what each inverse would do."""
        undoing = self._undoing
        for entry in _inverses(kept):
            if entry["op"] == "cannot":
                undoing.refusals.append(f"{entry['what']} cannot be taken back: {entry['why']}")
            elif entry["op"] == "stays":
                undoing.stays.append(entry["what"])
            else:
                changed = next((one for one, other in self._later if _touches(entry, other)), None)
                if changed is not None:
                    undoing.refusals.append(
                        f"{_said(entry)}: {changed.name!r} (run {changed.number}) has changed it since; undo that first"
                    )
                for one, view, names in self._views:
                    if _stands_on(entry, names, self._before.key):
                        undoing.refusals.append(
                            f"{_said(entry)}: {one.name!r} (run {one.number}) has made the view {view!r} of it since; "
                            "undo that first"
                        )
                self._entry(entry)
        for statement in kept["own"]:
            if statement.upper().startswith(ROWS):
                undoing.stays.append(statement)
            else:
                undoing.refusals.append(f"its own SQL cannot be taken back: {statement}")

    def _entry(self, entry: dict[str, Any]) -> None:
        before, undoing, schema, said = self._before, self._undoing, entry["schema"], _said(entry)
        if entry["op"] in ("declare", "drop_type"):
            self._put.add((schema, before.key(entry["name"])))
            undoing.does.append(said)
            return
        table = before.table(schema, entry["table"])
        there = table is not None and getattr(self, f"_{entry['op']}")(entry, schema, table)
        (undoing.does if there else undoing.gone).append(said)
        if there and not entry["sure"]:
            undoing.perhaps.append(said)

    def _drop_table(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        key, undoing = self._before.key, self._undoing
        now, then = {*self._before.columns(schema, table)}, {key(name) for name in entry["names"]}
        if now != then:
            changed = ", ".join(sorted(now ^ then))
            undoing.refusals.append(f"{_said(entry)}: its columns are not those that were made: {changed}")
        undoing.refusals += [f"{_said(entry)}: {one}; drop that first" for one in self._before.referring(schema, table)]
        self._before.dropped.add((schema, key(table), None))
        undoing.losses = [loss for loss in undoing.losses if (loss.schema, loss.table) != (schema, table)]
        self._lose(schema, table, None, None)
        self._before.call(schema, entry["table"], None)
        return True

    def _drop_columns(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        columns, key = self._before.columns(schema, table), self._before.key
        there = [columns.pop(key(name), None) for name in reversed(entry["names"])]
        gone = {key(name) for name in there if name is not None}
        self._undoing.refusals += [
            f"{_said(entry)}: {one}; drop that first" for one in self._before.referring(schema, table, gone)
        ]
        for name in there:
            if name is not None:
                self._lose(schema, table, name, holds(self._catalog, schema, table, name))
        return any(there)

    def _lose(self, schema: str | None, table: str, column: str | None, where: Any) -> None:
        if rows := self._catalog.count(table, schema, where):
            self._undoing.losses.append(Loss(schema, table, column, rows))

    def _rename_table(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        if self._before.table(schema, entry["name"]) is not None:
            self._undoing.refusals.append(f"{_said(entry)}: there is another table of that name")
        self._before.call(schema, entry["table"], None)
        self._before.call(schema, entry["name"], table)
        return True

    def _rename_column(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        columns, key = self._before.columns(schema, table), self._before.key
        now = columns.pop(key(entry["name"]), None)
        if now is None:
            return False
        if key(entry["to"]) in columns:
            self._undoing.refusals.append(f"{_said(entry)}: there is another column of that name")
        columns[key(entry["to"])] = now
        return True

    def _alter_column(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        name = self._before.columns(schema, table).get(self._before.key(entry["name"]))
        if name is None:
            return False
        column: sa.ColumnClause[Any] = sa.column(name)
        catalog = self._catalog
        if entry.get("nullable") is False and (rows := catalog.count(table, schema, column.is_(None))):
            self._undoing.refusals.append(f"{_said(entry)}: {counted(rows, 'has NULL', 'have NULL')} in it")
        if "type" in entry and facts_of(catalog.inspector.dialect.name).enforces_lengths:
            dialect = catalog.inspector.dialect
            wrong = misfits(column, from_json(entry["type"], dialect), dialect)
            rows = catalog.count(table, schema, wrong)
            if rows:
                said = counted(rows, "has a value", "have values")
                self._undoing.refusals.append(f"{_said(entry)}: {said} that may not fit into its type of before")
        return True

    def _drop_index(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        return self._there(entry, schema, table, self._catalog.indexes(table, schema))

    def _drop_constraint(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        there = self._catalog.constraints(table, schema)
        if (existing := there.get(self._before.key(entry["name"]))) is not None:
            self._before.dropped.add((schema, self._before.key(table), existing.name))
        return self._there(entry, schema, table, there)

    def _there(self, entry: dict[str, Any], schema: str | None, table: str, found: dict[str, Any]) -> bool:
        existing, key = found.get(self._before.key(entry["name"])), self._before.key
        if existing is None or (schema, key(entry["name"])) in self._put:
            return existing is not None
        columns, names = self._before.columns(schema, table), entry["names"]
        wanted = [None if name is None else key(columns.get(key(name), name)) for name in names]
        have = [None if name is None else key(name) for name in existing.columns]
        if have and wanted and None not in (*have, *wanted) and have != wanted:
            self._undoing.refusals.append(
                f"{_said(entry)}: there is another one of that name, on {', '.join(map(str, have))}"
            )
        return True

    def _table_comment(self, *_: Any) -> bool:
        return True


def _touches(entry: dict[str, Any], later: dict[str, Any]) -> bool:
    """Whether what a later run did concerns what an earlier one made."""
    if "table" not in later or entry["schema"] != later["schema"] or not _tables(entry) & _tables(later):
        return False
    whole = {"drop_table", "rename_table"}
    if (entry["table"] and {entry["op"], later["op"]} & whole) or entry["op"] == later["op"] == "table_comment":
        return True
    return bool(_names(entry) & _names(later))


def _stands_on(entry: dict[str, Any], names: set[str], key: Callable[[str], str]) -> bool:
    """Whether a view that has these names would be broken by what an inverse takes away."""
    if entry["op"] not in ("drop_table", "drop_columns", "rename_table", "rename_column"):
        return False
    of_op: dict[str, list[str]] = {"drop_columns": entry.get("names", []), "rename_column": [entry.get("name", "")]}
    columns = of_op.get(entry["op"])
    return key(entry["table"]) in names and (columns is None or any(key(name) in names for name in columns))


def _tables(entry: dict[str, Any]) -> set[str]:
    return {entry["table"], *([entry["name"]] if entry["op"] == "rename_table" else [])}


def _names(entry: dict[str, Any]) -> set[Any]:
    return {entry.get("name"), entry.get("to"), *entry.get("names", ()), *entry.get("constraints", ())} - {None}


def _said(entry: dict[str, Any]) -> str:
    """An inverse as a person reads it."""
    table, name = f"{entry['table']!r}", repr(entry.get("name"))
    names = ", ".join(map(repr, entry.get("names", ())))
    column = f"the column {name} of {table}"
    kind = entry.get("kind")
    return {
        "drop_table": f"drop the table {table}",
        "drop_columns": f"drop the column{'s' if len(entry.get('names', ())) > 1 else ''} {names} of {table}",
        "drop_index": f"drop the index {name} of {table}",
        "drop_constraint": f"drop the constraint {name} of {table}",
        "rename_table": f"rename the table {table} back to {name}",
        "rename_column": f"rename {column} back to {entry.get('to')!r}",
        "alter_column": f"alter {column} back ({', '.join(key for key in _ALTERED if key in entry)})",
        "table_comment": f"put back the comment of {table}",
        "declare": f"{'drop' if entry.get('text') is None else 'put back'} the {kind} {name}",
        "drop_type": f"drop the type {name}",
    }[entry["op"]]


def holds(catalog: Catalog, schema: str | None, table: str, name: str) -> sa.ColumnElement[bool]:
    """The condition of rows that have a value in a column: neither NULL nor its default, and not computed."""
    existing = catalog.columns(table, schema)[catalog.normalize_name(name)]
    column: sa.ColumnElement[Any] = sa.column(name)
    if existing.get("computed"):
        return sa.false()
    has, default = column.is_not(None), existing["default"]
    kind = existing["type"]
    if default is None or isinstance(kind, sa.JSON) or not _CONSTANT.fullmatch(str(default)):
        return has
    usual: sa.ColumnElement[Any] = sa.literal_column(f"({default})")
    postgresql = catalog.inspector.dialect.name == "postgresql"
    # Others, such as a point, have no equality there, or one that is less than that: of boxes it compares the areas.
    as_text = postgresql and isinstance(getattr(kind, "item_type", kind), (sa.String, sa.types.NullType, sa.JSON))
    if isinstance(kind, sa.String) or as_text:  # whatever its collation
        as_it_is = sa.Text(collation="C") if postgresql else sa.LargeBinary()
        column, usual = sa.cast(column, as_it_is), sa.cast(usual, as_it_is)
    return sa.and_(has, column != usual)


def _is_named(kind: Any) -> bool:
    """Whether a type is one of PostgreSQL's with a name of its own, or an array of such."""
    return isinstance(getattr(kind, "item_type", kind), NamedType)


class _UndoJournal(Journal):
    """Keeps nothing: each inverse looks first."""

    def store(self) -> None:
        """Forget the steps."""
        self._made.clear()


class _UndoTransaction(RunTransaction):
    """The transaction of an undo.

    :ivar locked: whether tables of MariaDB are locked, so that no other can be asked, that of the lease neither.
    :ivar changed: whether it has sent a schema change, which the database has taken.
    """

    locked = False
    changed = False

    def send(self, change: sa.ClauseElement | str, more: str = "", *, connection: sa.Connection | None = None) -> None:
        """Send one schema change."""
        super().send(change, more, connection=connection)
        self.changed |= not isinstance(change, LockTables)

    def making(self, op: str, **inverse: Any) -> AbstractContextManager[None]:
        """Nothing takes an undo back but the migration itself."""
        return nullcontext()

    def _fence(self, statement: str) -> None:
        if not self.locked:
            super()._fence(statement)

    def at_home(self) -> AbstractContextManager[None]:
        """Have our tables be found, as they are."""
        return nullcontext()

    def all_rows(self) -> AbstractContextManager[None]:
        """Let no policy hide rows; none does in this transaction."""
        return nullcontext()

    def bounding(self) -> AbstractContextManager[None]:
        """Bound the wait for the lock of a table."""
        return self._lock_timeout.bounding()

    def settle(self) -> None:
        """Commit, as the lock of a table would."""
        self.confirm()
        commit(self.connection)
        begin(self.connection)


class _WithinRevision:
    """The transaction of a ``downgrade()``, in the middle of which values are kept.

    :param at_home: has our tables be found, whatever search path ``env.py`` has set.
    """

    locked = False

    def __init__(self, connection: sa.Connection, at_home: Callable[[], AbstractContextManager[None]]) -> None:
        self.connection = connection
        self.facts = facts_of(connection.dialect.name)
        self.at_home = at_home

    def send(self, change: sa.ClauseElement) -> None:
        """Send a statement."""
        text = render(change, self.connection.dialect)
        self.connection.exec_driver_sql(text, execution_options={"no_parameters": True})

    @contextmanager
    def all_rows(self) -> Iterator[None]:
        """Let no policy hide rows that are counted and copied; what the revision itself sends is as it was."""
        connection = self.connection
        if self.facts.name != "postgresql":
            yield
            return
        before = connection.exec_driver_sql("SELECT current_setting('row_security')").scalar_one()
        _see_all_rows(connection)
        yield
        connection.exec_driver_sql(f"SET LOCAL row_security = {before}")

    def bounding(self) -> AbstractContextManager[None]:
        """The statement in the middle of which this is has its time-out already."""
        return nullcontext()

    def pragma(self, name: str, value: str) -> AbstractContextManager[None]:
        """Foreign keys are off in a revision."""
        return nullcontext()

    def settle(self) -> None:
        """The record of the statement has confirmed the lock, and what is open is committed with its steps."""


class UndoRun(DatabaseRun):
    """Takes runs back on one database.

    :param wanted: see :func:`look`.
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
        self._now = Undone(0, "", [], [])

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

    def undo(self) -> None:
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
            self._runner.planner.forget()  # now, as this process may be killed after its last commit
            for target in targets:
                if _is_revision(target):
                    continue  # they come after the migrations of their run
                self.doing = target.name
                self.lock.note(target.name)
                self.undone.append(tried_again(database, lambda target=target: self._take_back(target), retries))  # type: ignore[misc]
            self._revised = {one.name: one for one in targets if _is_revision(one)}
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
        _see_all_rows(connection)
        transaction = _UndoTransaction(
            self.database,
            connection,
            _UndoJournal(connection, target.name, at_once=False, begun=False),
            lock=self.lock,
            lock_timeout=self._lock_timeout,
            settings=self._runner.settings.ddl,
            transactional=True,
        )
        undone = Undone(target.number, target.name, [], [])
        kept = _kept(target)
        assert kept is not None
        try:
            inverting = _Inverting(self, transaction, target, undone)
            for entry in _inverses(kept):
                if entry["op"] not in ("cannot", "stays"):
                    getattr(inverting, entry["op"])(entry)
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
        if self._mark(connection, target, "begun", ""):
            self._noted = target.number
        connection.execute(state.update().where(state.c.source != "").values(source=TAKEN_BACK))
        commit(connection)

    def _note_failed(self, target: Made) -> None:
        """Take that back where nothing was done, by this try or by one before it."""
        connection, name = self.connection, history.undo_mark(target.number)
        if self._noted != target.number:
            return
        with suppress(sa.exc.DBAPIError):  # the error itself says more
            connection.rollback()
            begin(connection)
            self.lock.confirm(connection)
            steps = connection.scalars(sa.select(progress.c.step).where(progress.c.migration == name)).all()
            if all(step == "begun" or step.startswith("archive:") for step in steps):
                mine = sa.and_(progress.c.migration == name, progress.c.step == "begun")
                connection.execute(progress.delete().where(mine))
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
            downgrading = Downgrading(self, self.plan_of(left))
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

    def plan_of(self, names: Iterable[str]) -> Plan:
        """Revisions to take back, as what is to be run.

        :param names: in order.
        """
        known = {one.name: one for one in self.planner.of(self.database) if one.revision}
        heads = None if self.versions is None else history.read_heads(self.connection, self.versions)
        return Plan(self.database, None, "", [Pending(known[name], "new") for name in names], heads=heads)

    def failed(self, error: Exception, more: str = " ") -> DbSmartError:
        """What to say of an error in the middle."""
        database = self.database
        kept = "" if database.transactional_ddl else ", and parts of what it was at, as each schema change commits here"
        return DbSmartError(
            f"Cannot undo {self.doing!r} on the database {database.name!r} ({database.url}): "
            f"{database.cause(error).rstrip('.')}.{more}"
            f"Taken back before that: {', '.join(one.name for one in self.undone) or 'nothing'}{kept}. Fix the cause "
            "and repeat it: it goes on where it was."
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
            f"{failed}: {self.database.cause(error)}. Taken back before that: "
            f"{', '.join(one.name for one in self.undone) or 'nothing'}. Fix the cause and start again."
        )

    def begin_item(self, item: Pending) -> None:
        """Note that a revision begins."""
        self.doing = item.migration.name
        self.lock.note(item.migration.name)
        target = self._revised[item.migration.name]
        self._now = Undone(target.number, target.name, [], [])
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
        assert isinstance(journal, UndoJournal)
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
                parts += _parts(catalog, one)
            elif not self._discard:
                raise DbSmartError(f"nobody has agreed to {one_line(one)}: --discard does so")
        if not parts:
            yield
            return
        within = _WithinRevision(connection, partial(at_home, connection))
        with _Keeper(self, within, self._revised[item.migration.name], self._now).emptied(*parts):
            yield

    def _mark(self, connection: sa.Connection, target: Made, step: str, detail: str) -> bool:
        """Write down how far an undo is.

        :returns: whether that was not written down before.
        """
        mine = sa.and_(progress.c.migration == history.undo_mark(target.number), progress.c.step == step)
        if connection.execute(sa.select(progress.c.step).where(mine)).first() is not None:
            return False
        values = {"migration": history.undo_mark(target.number), "step": step, "detail": detail}
        connection.execute(progress.insert().values(**values, row_count=0, last_row_id=0))
        return True

    def archive_name(
        self, connection: sa.Connection, target: Made, table: str, column: str | None, *, another: bool = False
    ) -> str:
        """The name of the table that keeps values; of a try before this one, the same. It is written down first.

        :param another: whether the one of a try before this one is not to be that.
        """
        step = "archive:" + hashlib.sha256(f"{table}\0{column}".encode()).hexdigest()[:40]
        mine = sa.and_(progress.c.migration == history.undo_mark(target.number), progress.c.step == step)
        if another:
            connection.execute(progress.delete().where(mine))
        found: str | None = connection.scalar(sa.select(progress.c.detail).where(mine))
        if found is not None:
            return found
        base, names = "_".join(filter(None, (f"{ARCHIVE}{target.number}", table, column))), sa.inspect(connection)
        if not re.fullmatch(r"\w+", base, re.ASCII) or len(base) > _MAX_NAME:
            base = f"{ARCHIVE}{target.number}_{re.sub(r'[^A-Za-z0-9_]+', '_', table)[:20]}_{step[8:16]}"
        name, more = base, 1
        while names.has_table(name):
            name, more = f"{base}_{more + 1}", more + 1
        self._mark(connection, target, step, name)
        return name

    def _forget(self, connection: sa.Connection, target: Made, kept: dict[str, Any]) -> None:
        """Forget what the memory has of a run, and how far the undo was."""
        key = self.database.facts.normalize_name
        entries = [entry for entry in kept["made"] if "table" in entry]
        touched = {key(name) for entry in entries for name in _tables(entry)}
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
        names = [history.undo_mark(target.number), *([target.name] if _is_revision(target) else [])]
        connection.execute(progress.delete().where(progress.c.migration.in_(names)))

    @property
    def archives(self) -> bool:
        """Whether what would be lost is copied first."""
        return self._archive

    @property
    def discards(self) -> bool:
        """Whether it may be lost."""
        return self._discard


class _Inverting:
    """Takes back what one run made, in the open transaction."""

    def __init__(self, run: UndoRun, transaction: _UndoTransaction, target: Made, undone: Undone) -> None:
        self._transaction = transaction
        self._connection = transaction.connection
        self._catalog = Catalog(self._connection)
        self._keeper = _Keeper(run, transaction, target, undone)
        self._target = target
        self._op = Operations(transaction, destructive=True, catalog=self._catalog)
        self._editor = editor_of(transaction, self._catalog)

    def drop_table(self, entry: dict[str, Any]) -> None:
        """Drop a table that the run made."""
        schema, table = entry["schema"], entry["table"]
        if self._catalog.has_table(table, schema):
            with self._keeper.emptied(_Part(schema, table, None, sa.true())):
                self._op.drop_table(table, schema=schema)

    def drop_columns(self, entry: dict[str, Any]) -> None:
        """Drop columns that the run added, with what came with them."""
        schema, table = entry["schema"], entry["table"]
        if not self._catalog.has_table(table, schema):
            return
        there, key = self._catalog.constraints(table, schema).values(), self._catalog.normalize_name
        names = {key(name) for name in entry["names"]}
        # MariaDB drops no column that has a foreign key, to which it has given a name itself.
        keys = [one.name for one in there if one.kind == "foreign" and names.issuperset(map(key, one.columns))]
        for name in dict.fromkeys([*reversed(entry["constraints"]), *keys]):
            self._op.drop_constraint(name, table, schema=schema)
        for name in reversed(entry["names"]):
            if self._catalog.present(table, [name], schema):
                with self._keeper.emptied(_Part(schema, table, name, holds(self._catalog, schema, table, name))):
                    self._op.drop_column(table, name, schema=schema, online=False)

    def drop_index(self, entry: dict[str, Any]) -> None:
        """Drop an index that the run made."""
        if not self._transaction.facts.transactional_ddl:
            self._drop_foreign_keys(entry["schema"], entry["table"])
        self._op.drop_index(entry["name"], entry["table"], schema=entry["schema"], online=False)

    def _drop_foreign_keys(self, schema: str | None, table: str) -> None:
        """Drop the foreign keys that the run made: MariaDB drops no index that one of them needs."""
        key = self._catalog.normalize_name
        if not self._catalog.has_table(table, schema):
            return
        names: set[str] = set()
        columns: set[str] = set()
        for entry in (_kept(self._target) or {"made": []})["made"]:
            if (entry.get("schema"), entry.get("table")) == (schema, table):
                if entry["op"] == "drop_constraint":
                    names.add(key(entry["name"]))
                elif entry["op"] == "drop_columns":
                    columns.update(map(key, entry["names"]))
        for one in [*self._catalog.constraints(table, schema).values()]:
            if one.kind == "foreign" and (key(one.name) in names or columns.issuperset(map(key, one.columns))):
                self._op.drop_constraint(one.name, table, schema=schema)

    def drop_constraint(self, entry: dict[str, Any]) -> None:
        """Drop a constraint that the run made."""
        name, table, schema = entry["name"], entry["table"], entry["schema"]
        self._op.drop_constraint(name, table, schema=schema)
        if entry["implied"]:  # by the foreign key
            self._op.drop_index(name, table, schema=schema, online=False)

    def rename_table(self, entry: dict[str, Any]) -> None:
        """Give a table its name of before."""
        if self._catalog.has_table(entry["table"], entry["schema"]):
            self._op.rename_table(entry["table"], entry["name"], schema=entry["schema"])

    def rename_column(self, entry: dict[str, Any]) -> None:
        """Give a column its name of before."""
        if self._there(entry):
            self._op.alter_column(
                entry["table"], entry["name"], new_column_name=entry["to"], schema=entry["schema"], online=False
            )

    def alter_column(self, entry: dict[str, Any]) -> None:
        """Give a column what it had before."""
        if not self._there(entry):
            return
        changes: dict[str, Any] = {key: entry[key] for key in ("nullable", "comment") if key in entry}
        if "type" in entry:
            changes["type_"] = from_json(entry["type"], self._connection.dialect)
        if "default" in entry:
            default = entry["default"]
            changes["server_default"] = None if default is None else sa.text(default.replace(":", r"\:"))
        self._op.alter_column(entry["table"], entry["name"], schema=entry["schema"], online=False, **changes)

    def table_comment(self, entry: dict[str, Any]) -> None:
        """Give a table the comment that it had before."""
        if self._catalog.has_table(entry["table"], entry["schema"]):
            self._op.create_table_comment(entry["table"], entry["comment"], schema=entry["schema"])

    def declare(self, entry: dict[str, Any]) -> None:
        """Put back what has a text, or drop it."""
        kind, name, schema, text = entry["kind"], entry["name"], entry["schema"], entry["text"]
        table = entry["table"] or None
        if kind == "index":
            if not self._catalog.has_table(str(table), schema):
                return
            now = self._catalog.declared(kind, name, schema, table)
            if now != text:
                self._op.drop_index(name, str(table), schema=schema, online=False)
                if text is not None:
                    self._transaction.send(text)
            return
        there = self._catalog.has_declared(kind, name, schema, table)
        if there and (text is None or not self._transaction.facts.transactional_ddl):
            self._editor.drop_declared(DropDeclared(kind, name, schema, table))
            there = False
        if text is not None:
            one = CreateDeclared(kind, name, schema, table, text)
            if self._transaction.facts.transactional_ddl:
                self._editor.declare(one, there)
            else:
                self._transaction.send(one)

    def drop_type(self, entry: dict[str, Any]) -> None:
        """Drop a type that the run made."""
        name, schema, dialect = entry["name"], entry["schema"], self._connection.dialect
        if dialect.has_type(self._connection, name, schema=schema):  # type: ignore[attr-defined]
            kind = sa.Enum(name=name, schema=schema)
            element = DropDomainType if entry["domain"] else DropEnumType
            self._transaction.send(element(kind))

    def _there(self, entry: dict[str, Any]) -> bool:
        table, schema = entry["table"], entry["schema"]
        return self._catalog.has_table(table, schema) and bool(self._catalog.present(table, [entry["name"]], schema))


class _Revisions:
    """The revisions of Alembic among the runs that are to be taken back."""

    def __init__(self, run: UndoRun) -> None:
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
        if not _is_revision(made) or revisions is None or self._held is None:
            return False
        return made.name in revisions.by_name and made.name not in self._held

    def in_order(self, targets: list[Made]) -> list[Made]:
        """The runs with the revisions last, each before those that it comes after."""
        places = {name: place for place, name in enumerate(self._held or ())}
        revisions = sorted(filter(_is_revision, targets), key=lambda one: -places.get(one.name, -1))
        return [*(one for one in targets if not _is_revision(one)), *revisions]

    def foresee(self, targets: list[Made], begun: set[str]) -> None:
        """Find out what each would do.

        :raises DbSmartError: the environment of Alembic cannot be run.
        """
        run, revisions = self._run, list(filter(_is_revision, targets))
        self._begun = begun
        run.expect(revisions)
        for one in revisions:
            why = self._why_not(one, {other.name for other in revisions})
            if why is not None:
                self._refused[one.number] = why
        self._targets = [one.name for one in revisions if one.number not in self._refused]
        if not self._targets:
            return
        foreseeing = Foreseeing(run, run.plan_of(self._targets), begun)
        run.connection.rollback()  # what was only read
        try:
            foreseeing.run()
        except Exception as error:
            raise run.environment_failed(error) from error
        self._foreseen = foreseeing.found

    def _why_not(self, target: Made, others: set[str]) -> str | None:
        if target.error == STAMPED:
            return _why_unknown(target)
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

    def look(self, looking: _Looking, target: Made) -> None:
        """See what the ``downgrade()`` of a revision would do."""
        undoing = looking.undoing
        if target.number in self._refused:
            undoing.refusals.append(self._refused[target.number])
            return
        foreseen, kept = self._foreseen[target.name], _kept(target) or {}
        assert self._planner.revisions is not None
        path, error = self._planner.revisions.by_name[target.name].path, foreseen.error
        half = history.undo_mark(target.number) in self._begun
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
        looking.look_at_statements(foreseen.statements)
        dropped = looking.dropped
        for statement in kept.get("own", ()):
            if not dropped & names_in(statement, self._run.database.facts):
                undoing.stays.append(f"{statement} (unless its downgrade() takes that back)")

    def _changes_schema(self, kept: dict[str, Any], path: str) -> bool:
        """Whether the ``upgrade()`` of a revision has changed the schema, as far as that is known."""
        known: bool | None = kept.get("schema")
        return not does_nothing(path, "upgrade") if known is None else known


def _parts(catalog: Catalog, taken: Taken) -> list[_Part]:
    """The values that go with what a statement takes away."""
    facts, schema = facts_of(catalog.inspector.dialect.name), taken.schema
    table = stored(catalog, schema, taken.table, facts)
    if table is None:
        return []
    if taken.column is None and taken.kept is None:
        return [_Part(schema, table, None, sa.true())]
    names = [one["name"] for one in catalog.columns(table, schema).values()]
    return [
        _Part(schema, table, name, holds(catalog, schema, table, name)) for name in names if goes(taken, name, facts)
    ]


class _Part(NamedTuple):
    """Values that go.

    :ivar column: ``None`` for whole rows.
    :ivar where: which rows have them.
    """

    schema: str | None
    table: str
    column: str | None
    where: sa.ColumnElement[bool]


class _Keeper:
    """Keeps the values that go, where they are to be kept.

    :param transaction: in which they go.
    """

    def __init__(self, run: UndoRun, transaction: _UndoTransaction | _WithinRevision, target: Made, undone: Undone):
        self._run = run
        self._transaction = transaction
        self._connection = transaction.connection
        self._catalog = Catalog(self._connection)
        self._target = target
        self._undone = undone

    @contextmanager
    def emptied(self, *parts: _Part) -> Iterator[None]:
        """Keep the values that a block drops, where they are to be kept; nobody writes more of them meanwhile.

        :raises DbSmartError: there are values that nobody has agreed to lose.
        """
        run, catalog, all_rows = self._run, self._catalog, self._transaction.all_rows
        with all_rows():
            archives = [
                self._archive(part) if run.archives and catalog.count(part.table, part.schema, part.where) else None
                for part in parts
            ]
        held = [(part.schema, part.table) for part in parts]
        held += [(part.schema, one[0]) for part, one in zip(parts, archives, strict=True) if one is not None]
        columns = any(part.column is not None for part in parts)
        with self._held(list(dict.fromkeys(held)), columns=columns):
            with all_rows():
                for part, archive in zip(parts, archives, strict=True):
                    self._keep(part, archive)
            yield

    def _keep(self, part: _Part, archive: tuple[str, list[str]] | None) -> None:
        schema, table, column, where = part
        run, catalog, transaction = self._run, self._catalog, self._transaction
        rows = catalog.count(table, schema, where)
        what = str(Loss(schema, table, column, rows))
        if rows and archive is not None:
            into, names = archive
            target = sa.table(into, *(sa.column(name) for name in names), schema=schema)
            transaction.send(target.insert().from_select(names, self._rows(schema, table, names).where(where)))
            if catalog.count(into, schema) != rows:
                raise DbSmartError(f"The archive {into!r} does not have the {what}. They were not dropped.")
            self._undone.archived.append((into, rows))
            if transaction.locked:
                self._connection.exec_driver_sql("COMMIT")
        elif rows and not run.discards:
            raise DbSmartError(f"The database has changed meanwhile: {what} would be lost. Start again.")
        elif rows:
            self._undone.lost.append(what)

    def _archive(self, part: _Part) -> tuple[str, list[str]]:
        """Make the empty table that is to keep values; its name and columns."""
        catalog, (schema, table, column, _) = self._catalog, part
        names = [one["name"] for one in catalog.columns(table, schema).values()]
        key = [] if column is None else catalog.primary_key(table, schema)
        if column is not None and key:  # else only the whole row tells
            names = list(dict.fromkeys([*key, column]))
        into = self._name(table, column)
        if catalog.has_table(into, schema):  # of a try before this one
            if self._copies(into, schema, table, names):
                self._transaction.send(DropTable(sa.Table(into, sa.MetaData(), schema=schema)))
            else:  # what was dropped is there again, with other values
                into = self._name(table, column, another=True)
        self._transaction.send(CreateTableAs(into, schema, self._rows(schema, table, names).where(sa.false())))
        return into, names

    def _name(self, table: str, column: str | None, *, another: bool = False) -> str:
        with self._transaction.at_home():
            return self._run.archive_name(self._connection, self._target, table, column, another=another)

    def _copies(self, archive: str, schema: str | None, table: str, names: list[str]) -> bool:
        """Whether all that an archive holds is still where it came from."""
        if [one["name"] for one in self._catalog.columns(archive, schema).values()] != names:
            return False
        kept = sa.select(sa.table(archive, *(sa.column(name) for name in names), schema=schema))
        return self._connection.execute(sa.except_(kept, self._rows(schema, table, names)).limit(1)).first() is None

    def _rows(self, schema: str | None, table: str, names: Iterable[str]) -> sa.Select[Any]:
        """The query for these columns of a table; as text where undo may have to drop the type."""
        kinds = {one["name"]: one["type"] for one in self._catalog.columns(table, schema).values()}
        source = sa.table(table, *(sa.column(name) for name in names), schema=schema)
        postgresql = self._transaction.facts.name == "postgresql"
        return sa.select(
            *(
                sa.cast(one, sa.Text).label(one.name) if postgresql and _is_named(kinds[one.name]) else one
                for one in source.c
            )
        )

    @contextmanager
    def _held(self, tables: Sequence[tuple[str | None, str]], *, columns: bool) -> Iterator[None]:
        """Let nobody write to tables until they, or columns of them, are dropped.

        :param tables: schemas and names; the archives too.
        """
        transaction, connection = self._transaction, self._connection
        schemas = list(dict.fromkeys(schema for schema, _ in tables))
        locks = [LockTables([name for schema, name in tables if schema == one], one) for one in schemas]
        if transaction.facts.name == "postgresql":
            with transaction.bounding():
                for lock in locks:
                    transaction.send(lock)
            yield
        elif transaction.facts.name == "sqlite":
            on = columns and connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
            with transaction.pragma("foreign_keys", "0") if on else nullcontext():
                yield
        else:
            if len(locks) > 1:  # the second one would end the first
                raise DbSmartError("one statement drops tables of several databases, which cannot be locked together")
            transaction.settle()
            transaction.send(locks[0])
            transaction.locked = True
            try:
                yield
            finally:
                connection.exec_driver_sql("UNLOCK TABLES")
                transaction.locked = False


def undo(runner: Runner, run: UndoRun) -> list[Undone]:
    """Take runs back on one database, while no other process migrates it.

    :raises DbSmartError: it changed meanwhile, or refuses something; the message says what was taken back.
    """
    database = run.database
    runner.check_led(database)
    try:
        with interruptible(database.name, lambda: run.doing):
            run.undo()
    except DbSmartError:
        raise
    except Exception as error:
        raise run.failed(error) from error
    finally:
        runner.planner.forget()
    return run.undone
