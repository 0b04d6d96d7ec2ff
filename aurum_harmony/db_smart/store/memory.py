"""What the history remembers besides the migrations: what they took away, and what the first run made.

Without it, two things would go wrong. On a new database the tables come from the models of today, which already have
what the migrations lead up to. So on the run that made these tables, the models win. And an old migration that runs
again knows nothing of a newer one. So what the newer one dropped, renamed or altered stays as the newer one left it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..dialects.base import Facts
from .database import Database, translated
from .history import Applied
from .tables import TABLE_NAMES, objects

_logger = logging.getLogger(__name__)

#: A migration that the first run on a new database has left to run after it.
_LEFT = "left"
#: Events of the first run of an application; they are forgotten when that run is complete, and what it left is applied.
_FIRST_RUN = ("made", "added", "loosened", "there", _LEFT)
#: Which tables of the models were there when a run was complete.
_MODEL = "model"


class Event(NamedTuple):
    """One row of ``db_smart_objects``.

    :ivar migration: its name; of the events of a first run and of models, the dotted name of the migrations.
    :ivar event: ``dropped``, ``renamed``, ``back``, ``altered``; ``declared``, of what was made from a text, with the
        digest of that behind its name; of a first run ``made`` (from the models) and ``added`` (by a migration),
        ``loosened`` (a column, see :mod:`~.schema.loosening`) and ``there`` (before it began; with an empty name of a
        schema whose tables were looked at), and ``left`` (a migration, to run after it); ``application``
        when that run was complete; ``model`` for a table of the models that was there when the last run was complete.
    :ivar kind: ``table``, ``column``, ``index``, ``constraint``, ``view``, ``function``, ``trigger``; of what was
        altered ``type``, ``nullable``, ``default``, ``comment`` or ``index``; ``new table``, of the event ``added``,
        for one that no complete run has left to the application; ``new name``, of the event ``renamed``, with the new
        name of the table; ``migration``, of the event ``left``.
    """

    migration: str
    event: str
    kind: str
    schema_name: str
    table_name: str
    name: str


class Memory:
    """The memory of one run on one database.

    :param module: dotted name of the application's migrations.
    :param facts: of the kind of database.
    :param order: names of its migrations in the order of their definition.
    :param applied: names of migrations that the history held when the run began.
    :param models: the models; ``None`` where there are none for this database.
    :param place: the schema in which the database has what a model has in another one.
    """

    #: The event that a run has created a table, and its kind.
    created = ("added", "new table")
    #: The kind of the event that says which name a table was given.
    new_name = "new name"

    def __init__(
        self,
        module: str,
        facts: Facts,
        order: Iterable[str] = (),
        applied: Iterable[str] = (),
        models: sa.MetaData | None = None,
        place: Callable[[str | None], str | None] = lambda schema: schema,
    ) -> None:
        self.module = module
        self._order = {name: number for number, name in enumerate(order)}
        self._applied = set(applied)
        self.facts = facts
        self._normalize_name = normalize_name = facts.normalize_name
        self._place = place
        self._models = {
            (place(table.schema) or "", normalize_name(table.name)): table
            for table in (models.tables.values() if models else ())
        }
        self._events: list[Event] = []
        self._found: dict[tuple[str, str, str, str], list[Event]] = {}
        self._kept = 0
        #: What the columns of models have in old rows, by the migrations that add them: schema, table, column.
        self.defaults: dict[tuple[str | None, str, str], Any] = {}

    @classmethod
    def of(
        cls,
        module: str,
        migrations: Iterable[str],
        database: Database,
        applied: Iterable[Applied],
        models: sa.MetaData | None,
        connection: sa.Connection,
    ) -> Memory:
        """The memory of a run; nothing is read yet.

        :param migrations: names of those of the application for this database, in order.
        :param applied: what the history held when the run began.
        :param connection: that of the run.
        """
        place = partial(translated, connection)
        return cls(module, database.facts, [*migrations], {item.name for item in applied}, models, place)

    def read(self, connection: sa.Connection) -> None:
        """Read what the database remembers. One query."""
        self._events, self._found = [], {}
        columns = [objects.c[field] for field in Event._fields]
        for row in connection.execute(sa.select(*columns).order_by(objects.c.id)):
            self._add(Event(*row))
        self.keep()

    def keep(self) -> None:
        """What was noted so far is committed."""
        self._kept = len(self._events)

    def take_back(self) -> None:
        """What was noted since :meth:`keep` was rolled back."""
        events, self._events, self._found = self._events[: self._kept], [], {}
        for event in events:
            self._add(event)

    @property
    def applications(self) -> set[str]:
        """The migrations of which a first run was complete."""
        return {event.name for event in self._events if event.event == "application"}

    @property
    def fresh(self) -> bool:
        """Whether this is the run that made tables from the models."""
        return any(event.event == "made" and event.migration == self.module for event in self._events)

    def new(self, schema: str | None, table: str) -> bool:
        """Whether the first run, which is not complete, has made this table: from the models, by a migration or SQL."""
        mine = {event.event for event in self._of(schema, table) if event.migration == self.module}
        looked = any(event.event == "there" and event.migration == self.module for event in self._of(schema, ""))
        return "there" not in mine and (bool({"made", "added"} & mine) or (self.fresh and looked))

    def unused(self, schema: str | None, table: str) -> bool:
        """Whether a run that is not complete has created this table, so that no release uses it yet."""
        return any(event.migration == self.module for event in self._of(schema, table, self.created[1]))

    def enumerated(self, schema: str | None, name: str) -> dict[tuple[str, str], list[str]]:
        """The columns of models that have an enumeration of a name, as table and column, with the values of each."""
        found = {}
        for (place, _), model in self._models.items():
            for column in model.columns if place == (schema or "") else ():
                kind: Any = column.type
                while isinstance(kind, (sa.types.TypeDecorator, sa.ARRAY)):
                    kind = kind.item_type if isinstance(kind, sa.ARRAY) else kind.impl
                if isinstance(kind, sa.Enum) and kind.name == name:
                    found[model.name, column.name] = list(kind.enums)
        return found

    def made(self) -> list[sa.Table]:
        """The models of the tables that this first run made from them."""
        return [
            model for (place, _), model in self._models.items() if self.model(place or None, model.name) is not None
        ]

    def claims(self, schema: str | None, name: str) -> bool:
        """Whether the model of such a table has an index or a constraint of this name."""
        models = [model for (place, _), model in self._models.items() if place == (schema or "")]
        items: list[Any] = [
            item
            for model in models
            if self.model(schema, model.name) is not None
            for item in (*model.indexes, *model.constraints)
        ]
        return any(self.same(str(item.name), name) for item in items if item.name)

    def loosened(self) -> list[tuple[sa.Table, str]]:
        """The columns of such tables that take ``NULL`` until this first run is complete: model and name."""
        return [
            (model, column.name)
            for model in self.made()
            for column in model.columns
            if any(
                one.event == "loosened"
                for one in self._of(self._place(model.schema), model.name, "column", column.name)
            )
        ]

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it."""
        return self._normalize_name(name)

    def same(self, name: str, other: str) -> bool:
        """Whether two names are the same to the database."""
        return self._normalize_name(name) == self._normalize_name(other)

    def model(self, schema: str | None, table: str) -> sa.Table | None:
        """The model of a table that this first run made from it; ``None`` for any other table."""
        mine = {event.event for event in self._of(schema, table) if event.migration == self.module}
        if "made" in mine and "there" not in mine:  # both: one that was there got this name
            return self._models.get((schema or "", self._normalize_name(table)))
        return None

    def defines(self, schema: str | None, table: str, column: str) -> bool:
        """Whether the model of such a table has this column."""
        model = self.model(schema, table)
        return model is not None and self._normalize_name(column) in {
            self._normalize_name(one.name) for one in model.columns
        }

    def later(self, migration: str, kind: str, schema: str | None, table: str, name: str = "") -> Event | None:
        """The last event of an object that is of a migration defined later than this one."""
        mine = self._order.get(migration, len(self._order))
        last = None
        for event in self._of(schema, table, kind, name):
            if event.event in (*_FIRST_RUN, _MODEL) or event.migration == migration:
                continue
            theirs = self._order.get(event.migration)
            # Of one that is no longer in the code, only the history can tell: this one ran before, or it is new.
            newer = theirs > mine if theirs is not None else migration in self._applied
            if newer and (last is None or (theirs or 0) >= self._order.get(last.migration, 0)):
                last = event
        return last

    def name_now(self, migration: str, schema: str | None, table: str) -> str | None:
        """The name that a later migration has given to a table; ``None`` where none did, or none that is known."""
        event = self.later(migration, "table", schema, table)
        if event is None or event.event != "renamed":
            return None
        place = schema or "", self._normalize_name(table)
        for one in reversed(self._events):
            mine = one.kind == self.new_name and one.migration == event.migration
            if mine and (one.schema_name, self._normalize_name(one.table_name)) == place:
                return one.name
        return None

    def lenient(self, migration: str) -> bool:
        """Whether a migration may need what the database no longer has; see :meth:`excuses`."""
        return self.fresh or self.left(migration) or bool(self._taken_since(migration))

    def left(self, migration: str) -> bool:
        """Whether the run that made all tables has left this migration to run later."""
        return migration in {event.name for event in self._mine(_LEFT)}

    def excuses(self, migration: str, error: BaseException) -> bool:
        """Whether an error may be ignored: it says that a table or a column is missing which no longer exists.

        On the run that made the tables from the models, and for what it left to run later, that is any one that is
        missing, except in SQL that names a table from before that run, of which the models say nothing. On other runs,
        what a later migration took away.
        """
        if not self._missing(error):
            return False
        statement = getattr(error, "statement", None) or ""
        if self.excused(migration, statement) is None:
            return True
        cause = getattr(error, "orig", None) or error
        first = cause.args[0] if cause.args else None
        text = str(first.get("M", "") if isinstance(first, dict) else cause)  # a dict: pg8000
        text = text.partition("\n")[0]  # below it PostgreSQL shows the statement
        return any(
            # Of a column that is missing with its table, MariaDB names the column only.
            _named(name, text) or (kind == "table" and _named(name, statement))
            for kind, name in self._taken_since(migration)
        )

    def _missing(self, error: BaseException) -> bool:
        """Whether an error says that a table or a column does not exist."""
        if isinstance(error, sa.exc.DBAPIError):
            return self.facts.says(error, "missing")
        return isinstance(error, (sa.exc.NoSuchTableError, sa.exc.NoSuchColumnError))

    def excused(self, migration: str, statement: str) -> str | None:
        """A pattern for the message of such an error, that of databases too.

        :returns: ``None`` where any is excused, an empty one where none is.
        """
        before = (event.table_name for event in self._events if event.event == "there" and event.table_name)
        first = self.fresh or self.left(migration)
        if first and not any(_named(name, statement) for name in before):
            return None
        names = sorted({re.escape(name) for _, name in self._taken_since(migration)})
        return rf"(^|\W)({'|'.join(names)})(\W|$)" if names else ""

    def _taken_since(self, migration: str) -> set[tuple[str, str]]:
        """Kinds and names of what migrations after this one, or an earlier run of this one, have taken away."""
        return {
            (event.kind, event.name or event.table_name)
            for number, event in enumerate(self._events)
            if event.event in ("dropped", "renamed")
            and event.kind in ("table", "column")
            and (
                (event.migration == migration and number < self._kept)
                or self.later(migration, event.kind, event.schema_name, event.table_name, event.name) is not None
            )
        }

    def declared(self, kind: str, schema: str | None, table: str, name: str) -> str | None:
        """The digest of the text that something was made from last; ``None`` where it was not made from one."""
        for one in reversed(self._events):
            own, _, digest = one.name.rpartition(" ")
            if (one.event, one.kind, one.schema_name) == ("declared", kind, schema or "") and (
                self.same(one.table_name, table) and self.same(own, name)
            ):
                return digest
        return None

    def finished(self, migration: str) -> bool:
        """Whether a migration was applied whole before, in this content or another one."""
        return migration in self._applied

    def did(self, migration: str, kind: str, schema: str | None, table: str, name: str = "") -> list[str]:
        """What earlier runs of a migration have done to an object, events in their order."""
        place = kind, schema or "", self._normalize_name(table), self._normalize_name(name)
        return [
            one.event
            for one in self._events[: self._kept]
            if one.migration == migration
            and (one.kind, one.schema_name, self._normalize_name(one.table_name), self._normalize_name(one.name))
            == place
        ]

    def gone(self, kind: str, schema: str | None, table: str, name: str = "") -> bool:
        """Whether any migration has taken it away at some time."""
        return any(event.event in ("dropped", "renamed") for event in self._of(schema, table, kind, name))

    def event(
        self, migration: str, event: str, kind: str, schema: str | None, table: str, name: str = ""
    ) -> Event | None:
        """A new event, taken note of; ``None`` where it is the last one of this migration already."""
        new = Event(migration, event, kind, schema or "", table, name)
        mine = [one for one in self._of(schema, table, kind, name) if one.migration == migration]
        if mine and mine[-1] == new:
            return None
        self._add(new)
        return new

    def begin_first_run(self, connection: sa.Connection, tables: Iterable[sa.Table]) -> list[Event]:
        """Note which tables are about to be made from the models.

        And which were there before, because the models are not right for those.

        :returns: what to write down; before they are made, because that may commit.
        """
        new = [("made", self._place(table.schema), table.name) for table in tables]
        if new and not self.fresh:
            inspector = sa.inspect(connection)
            for schema in {self._place(None), *(place or None for place, _ in self._models)}:
                names = {*inspector.get_table_names(schema)} - TABLE_NAMES
                new += [("there", schema, name) for name in ("", *sorted(names))]
        events = (self.event(self.module, kind, "table", schema, name) for kind, schema, name in new)
        return [event for event in events if event is not None]

    def had(self, tables: Iterable[sa.Table]) -> list[sa.Table] | None:
        """Those tables of the models that were there when the last run was complete; ``None`` where no run noted any.

        A table that is missing and was not there is new: a migration that is pending may make it.
        """
        known = {(event.schema_name, event.table_name) for event in self._mine(_MODEL)}
        return [table for table in tables if (table.schema or "", table.name) in known] if known else None

    def taken(self, tables: Iterable[sa.Table]) -> dict[str, str]:
        """Tables that a migration which this code does not have dropped or renamed: key of the model, migration."""
        found = {}
        for table in tables:
            events = [one for one in self._of(table.schema, table.name) if one.event in ("dropped", "renamed", "back")]
            if events and events[-1].event != "back" and events[-1].migration not in self._order:
                found[table.key] = events[-1].migration
        return found

    def end_run(self, connection: sa.Connection, models: Iterable[sa.Table] = (), left: Iterable[str] = ()) -> None:
        """Write down that all migrations of the application are applied, but for those that are to run later.

        :param models: the tables of the models that are there.
        :param left: the migrations that are to run later.
        """
        # Of tables from before the first run, the models say nothing; which those are is forgotten now.
        new = self.fresh and not any(event.table_name for event in self._mine("there"))
        late = [name for name in dict.fromkeys(left) if new or self.left(name)]
        mine = sa.and_(objects.c.migration == self.module, objects.c.event.in_(_FIRST_RUN))
        if numbers := connection.scalars(sa.select(objects.c.id).where(mine)).all():
            connection.execute(objects.delete().where(objects.c.id.in_(numbers)))  # MariaDB's safe updates need a key
        for name in late:
            connection.execute(insert(Event(self.module, _LEFT, "migration", "", "", name)))
        if self.module not in self.applications:
            connection.execute(insert(Event("", "application", "", "", "", self.module)))
        wanted = {Event(self.module, _MODEL, "table", table.schema or "", table.name, "") for table in models}
        before = set(self._mine(_MODEL))
        mine = sa.and_(objects.c.migration == self.module, objects.c.event == _MODEL)
        rows = connection.execute(sa.select(objects.c.id, *(objects.c[field] for field in Event._fields)).where(mine))
        if gone := [row.id for row in rows if Event(*row[1:]) not in wanted]:
            connection.execute(objects.delete().where(objects.c.id.in_(gone)))
        if wanted - before:
            connection.execute(objects.insert(), [event._asdict() for event in sorted(wanted - before)])

    def _mine(self, kind: str) -> list[Event]:
        return [event for event in self._events if event.event == kind and event.migration == self.module]

    def _add(self, event: Event) -> None:
        self._events.append(event)
        key = (event.kind, event.schema_name, self._normalize_name(event.table_name), self._normalize_name(event.name))
        self._found.setdefault(key, []).append(event)

    def _of(self, schema: str | None, table: str, kind: str = "table", name: str = "") -> list[Event]:
        return self._found.get((kind, schema or "", self._normalize_name(table), self._normalize_name(name)), [])


def _named(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def insert(event: Event) -> sa.Insert:
    """The statement that remembers an event."""
    return objects.insert().values(event._asdict())
