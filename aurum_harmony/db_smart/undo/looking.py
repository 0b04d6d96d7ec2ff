"""Look what taking runs back comes to, and what stands against it; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from ..batches import COPY
from ..dialects.base import Facts
from ..errors import DbSmartError
from ..resuming import shown
from ..schema.catalog import Catalog
from ..schema.column_types import from_json, misfits
from ..schema.effects import Change, changes_of, names_in, split_name
from ..schema.rules import counted
from ..session.journal import ROWS
from ..store import history
from ..store.database import Database, see_all_rows
from ..store.history import Made
from .inverses import inverses, is_revision, kept_of, said_of, stands_on, touches, why_unknown
from .outcome import Undoing
from .revisions import Revisions, UndoingRun
from .statements import Taken, Takes, goes, stored
from .values import Loss, holds


def look(run: UndoingRun) -> list[Undoing]:
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
    if any(map(is_revision, targets)):
        revisions = Revisions(run)
        made = [one for one in made if not revisions.is_gone(one)]
        targets = revisions.in_order(_targets(database, made, wanted, begun))
        revisions.foresee(targets, begun)
    before, found = _Before(Catalog(connection), database.facts), []
    see_all_rows(connection)
    try:
        for target in targets:
            undoing = Undoing(target.number, target.name)
            later = [one for one in made if one.number > target.number and one not in targets]
            looking, kept = _Looking(before, undoing, later), kept_of(target)
            if revisions is not None and is_revision(target):
                statements = revisions.look(undoing, target)
                if statements is not None:
                    looking.look_at_downgrade(statements, (kept or {}).get("own", ()))
            else:
                if target.name in begun:
                    undoing.refusals.append("a later try of this migration was interrupted: let it be finished first")
                if kept is None:
                    undoing.refusals.append(why_unknown(target))
                else:
                    looking.look(kept)
            known = kept is not None or is_revision(target)
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


def _targets(database: Database, made: list[Made], wanted: str | None, begun: set[str]) -> list[Made]:
    """The runs to take back, newest first."""
    if not made:
        raise DbSmartError(f"The history of the database {database.name!r} has no run to take back.")
    if wanted is None:
        half = [one for one in made if history.undo_mark(one.number) in begun]  # of an undo that was killed
        last = (half or made)[-1]
        run = (kept_of(last) or {}).get("run")
        return [one for one in reversed(made) if one is last or (run and (kept_of(one) or {}).get("run") == run)]
    found = [one for one in made if wanted in (str(one.number), one.name)]
    if not found:
        raise DbSmartError(
            f"The history of the database {database.name!r} has no run {wanted!r} that is applied and was not taken "
            "back. 'flask db-smart history' shows the numbers and names."
        )
    return found[-1:]


class _Before:
    """The names of a time before now, as what came since is taken back in thought."""

    def __init__(self, catalog: Catalog, facts: Facts) -> None:
        self.catalog = catalog
        self.facts = facts
        self.key = facts.normalize_name
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
        self._dropped: set[str] = set()
        self._later = [(one, entry) for one in later for entry in (kept_of(one) or {"made": []})["made"]]
        #: The views that came since, with all names that they have; not each database looks after them.
        self._views = [
            (one, entry["name"], names_in(text, before.facts))
            for one, entry in self._later
            if entry["op"] == "declare" and entry["kind"] == "view"
            if self._catalog.has_declared("view", entry["name"], entry["schema"])
            if (text := self._catalog.declared("view", entry["name"], entry["schema"], None))
        ]

    def look_at_downgrade(self, statements: Iterable[str], own: Iterable[str]) -> None:
        """See what the statements of a ``downgrade()`` would do.

        :param own: how the ``upgrade()`` has changed rows.
        """
        facts = self._before.facts
        takes = Takes(facts)
        for statement in statements:
            self._undoing.does.append(shown(statement))
            for one in takes.of(statement):
                if isinstance(one, str):
                    self._undoing.unforeseen.append(one)
                else:
                    self._taken(one)
            for change in changes_of(statement, facts).seen:
                self._call(change)
        for statement in own:
            if not self._dropped & names_in(statement, facts):
                self._undoing.stays.append(f"{statement} (unless its downgrade() takes that back)")

    def _taken(self, taken: Taken) -> None:
        """See what one statement takes away, by the names of now."""
        before, schema, facts = self._before, taken.schema, self._before.facts
        if before.knows(schema, taken.table):
            table = before.table(schema, taken.table)
        else:
            table = stored(self._catalog, schema, taken.table, facts)
        if table is None:
            return
        whole = taken.whole
        there = before.columns(schema, table)
        gone = {} if whole else {key: name for key, name in there.items() if goes(taken, key, facts)}
        entry = {"op": "drop_table" if whole else "drop_columns", "schema": schema, "table": table, "names": [*gone]}
        changed = self._changed(entry)
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
            self._lose_table(schema, table)
            before.call(schema, taken.table, None)
            self._dropped.add(taken.table)

    def _call(self, change: Change) -> None:
        """Note what a name means after a statement."""
        if change.kind == "rename table" and not change.table.startswith(COPY):
            table, schema = split_name(change.table)
            now = self._before.table(schema, table) if self._before.knows(schema, table) else None
            now = now or stored(self._catalog, schema, table, self._before.facts)
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
        for entry in inverses(kept):
            if entry["op"] == "cannot":
                undoing.refusals.append(f"{entry['what']} cannot be taken back: {entry['why']}")
            elif entry["op"] == "stays":
                undoing.stays.append(entry["what"])
            else:
                changed = self._changed(entry)
                if changed is not None:
                    self._refuse(
                        entry, f"{changed.name!r} (run {changed.number}) has changed it since; undo that first"
                    )
                for one, view, names in self._views:
                    if stands_on(entry, names, self._before.key):
                        why = f"{one.name!r} (run {one.number}) has made the view {view!r} of it since; undo that first"
                        self._refuse(entry, why)
                self._entry(entry)
        for statement in kept["own"]:
            if statement.upper().startswith(ROWS):
                undoing.stays.append(statement)
            else:
                undoing.refusals.append(f"its own SQL cannot be taken back: {statement}")

    def _changed(self, entry: dict[str, Any]) -> Made | None:
        """The later run that has changed what an inverse is about."""
        return next((one for one, other in self._later if touches(entry, other)), None)

    def _refuse(self, entry: dict[str, Any], why: str) -> None:
        self._undoing.refusals.append(f"{said_of(entry)}: {why}")

    def _entry(self, entry: dict[str, Any]) -> None:
        before, undoing, schema, said = self._before, self._undoing, entry["schema"], said_of(entry)
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
        key = self._before.key
        now, then = {*self._before.columns(schema, table)}, {key(name) for name in entry["names"]}
        if now != then:
            changed = ", ".join(sorted(now ^ then))
            self._refuse(entry, f"its columns are not those that were made: {changed}")
        for one in self._before.referring(schema, table):
            self._refuse(entry, f"{one}; drop that first")
        self._before.dropped.add((schema, key(table), None))
        self._lose_table(schema, table)
        self._before.call(schema, entry["table"], None)
        return True

    def _drop_columns(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        columns, key = self._before.columns(schema, table), self._before.key
        there = [columns.pop(key(name), None) for name in reversed(entry["names"])]
        gone = {key(name) for name in there if name is not None}
        for one in self._before.referring(schema, table, gone):
            self._refuse(entry, f"{one}; drop that first")
        for name in there:
            if name is not None:
                self._lose(schema, table, name, holds(self._catalog, schema, table, name))
        return any(there)

    def _lose_table(self, schema: str | None, table: str) -> None:
        undoing = self._undoing
        undoing.losses = [loss for loss in undoing.losses if (loss.schema, loss.table) != (schema, table)]
        self._lose(schema, table, None, None)

    def _lose(self, schema: str | None, table: str, column: str | None, where: Any) -> None:
        if rows := self._catalog.count(table, schema, where):
            self._undoing.losses.append(Loss(schema, table, column, rows))

    def _rename_table(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        if self._before.table(schema, entry["name"]) is not None:
            self._refuse(entry, "there is another table of that name")
        self._before.call(schema, entry["table"], None)
        self._before.call(schema, entry["name"], table)
        return True

    def _rename_column(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        columns, key = self._before.columns(schema, table), self._before.key
        now = columns.pop(key(entry["name"]), None)
        if now is None:
            return False
        if key(entry["to"]) in columns:
            self._refuse(entry, "there is another column of that name")
        columns[key(entry["to"])] = now
        return True

    def _alter_column(self, entry: dict[str, Any], schema: str | None, table: str) -> bool:
        name = self._before.columns(schema, table).get(self._before.key(entry["name"]))
        if name is None:
            return False
        column: sa.ColumnClause[Any] = sa.column(name)
        catalog = self._catalog
        if entry.get("nullable") is False and (rows := catalog.count(table, schema, column.is_(None))):
            self._refuse(entry, f"{counted(rows, 'has NULL', 'have NULL')} in it")
        if "type" in entry and self._before.facts.enforces_lengths:
            dialect = catalog.inspector.dialect
            wrong = misfits(column, from_json(entry["type"], dialect), dialect)
            rows = catalog.count(table, schema, wrong)
            if rows:
                said = counted(rows, "has a value", "have values")
                self._refuse(entry, f"{said} that may not fit into its type of before")
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
            self._refuse(entry, f"there is another one of that name, on {', '.join(map(str, have))}")
        return True

    def _table_comment(self, *_: Any) -> bool:
        return True
