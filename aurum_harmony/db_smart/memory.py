"""What the history remembers beside the migrations: what they took away, and what the first run made.

Two things would break a new database or one on which an old migration runs again. The models of today already have what
the migrations of yesterday lead up to; so on the run that made the tables, the models are right for them. And an old
migration knows nothing of a newer one; so what a newer one dropped, renamed or altered is left as the newer one had it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa

from .database import sqlstate
from .history import TABLE_NAMES, objects

#: Events of the first run of an application; they are forgotten when that run is complete.
_FIRST_RUN = ("made", "added", "loosened", "there")
#: SQLSTATE of an undefined table or column, and MariaDB's numbers.
_STATES = ("42P01", "42703")
_NUMBERS = (1051, 1054, 1072, 1091, 1146)
_WORDS = ("no such table", "no such column", "has no column named")


class Event(NamedTuple):
    """One row of ``db_smart_objects``.

    :ivar migration: its name; of the events of a first run, the dotted name of the migrations.
    :ivar event: ``dropped``, ``renamed``, ``back``, ``altered``; of a first run ``made`` (from the models) and
        ``added`` (by a migration), ``loosened`` (a column, see :mod:`~.loosening`) and ``there`` (before it began; with
        an empty name of a schema whose tables were looked at); ``application`` when that run was complete.
    :ivar kind: ``table``, ``column``, ``index``, ``constraint``; of what was altered ``type``, ``nullable`` or
        ``default``.
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
    :param order: names of its migrations in the order of their definition.
    :param applied: names of migrations that the history held when the run began.
    :param models: the models; ``None`` where there are none for this database.
    :param fold: a name as the database compares it.
    :param place: the schema in which the database has what a model has in another one.
    """

    def __init__(
        self,
        module: str,
        order: Iterable[str] = (),
        applied: Iterable[str] = (),
        models: sa.MetaData | None = None,
        fold: Callable[[str], str] = str,
        place: Callable[[str | None], str | None] = lambda schema: schema,
    ) -> None:
        self.module = module
        self._order = {name: number for number, name in enumerate(order)}
        self._applied = set(applied)
        self._fold = fold
        self._place = place
        self._models = {
            (place(table.schema) or "", fold(table.name)): table for table in (models.tables.values() if models else ())
        }
        self._events: list[Event] = []
        self._found: dict[tuple[str, str, str, str], list[Event]] = {}
        self._kept = 0

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
        return bool({"made", "added"} & mine) or (self.fresh and looked and "there" not in mine)

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

    def same(self, name: str, other: str) -> bool:
        """Whether two names are the same to the database."""
        return self._fold(name) == self._fold(other)

    def model(self, schema: str | None, table: str) -> sa.Table | None:
        """The model of a table that this first run made from it; ``None`` for any other table."""
        if any(event.event == "made" and event.migration == self.module for event in self._of(schema, table)):
            return self._models.get((schema or "", self._fold(table)))
        return None

    def defines(self, schema: str | None, table: str, column: str) -> bool:
        """Whether the model of such a table has this column."""
        model = self.model(schema, table)
        return model is not None and self._fold(column) in {self._fold(one.name) for one in model.columns}

    def later(self, migration: str, kind: str, schema: str | None, table: str, name: str = "") -> Event | None:
        """The last event of an object that is of a migration defined later than this one."""
        mine = self._order.get(migration, len(self._order))
        last = None
        for event in self._of(schema, table, kind, name):
            if event.event in _FIRST_RUN or event.migration == migration:
                continue
            theirs = self._order.get(event.migration)
            # Of one that is no longer in the code, only the history can tell: this one ran before, or it is new.
            newer = theirs > mine if theirs is not None else migration in self._applied
            if newer and (last is None or (theirs or 0) >= self._order.get(last.migration, 0)):
                last = event
        return last

    def lenient(self, migration: str) -> bool:
        """Whether a migration may want what the database is past: see :meth:`excuses`."""
        return self.fresh or bool(self._taken_since(migration))

    def excuses(self, migration: str, error: BaseException) -> bool:
        """Whether an error is no fault: it wants a table or a column that is not there any more.

        On the run that made the tables from the models, any that is not there, but in SQL that names a table which was
        there before: the models say nothing of that one. Else what a later migration took away.
        """
        if not missing(error):
            return False
        statement = getattr(error, "statement", None) or ""
        before = (event.table_name for event in self._events if event.event == "there" and event.table_name)
        if self.fresh and not any(_named(name, statement) for name in before):
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

    def did(self, migration: str, kind: str, schema: str | None, table: str, name: str = "") -> list[str]:
        """What earlier runs of a migration have done to an object, events in their order."""
        place = kind, schema or "", self._fold(table), self._fold(name)
        return [
            one.event
            for one in self._events[: self._kept]
            if one.migration == migration
            and (one.kind, one.schema_name, self._fold(one.table_name), self._fold(one.name)) == place
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

    def begin_first_run(self, connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
        """Write down which tables are about to be made from the models; before they are, as that may commit.

        And which were there before, as the models are not right for those.
        """
        new = [("made", self._place(table.schema), table.name) for table in tables]
        if new and not self.fresh:
            inspector = sa.inspect(connection)
            for schema in {self._place(None), *(place or None for place, _ in self._models)}:
                names = {*inspector.get_table_names(schema)} - TABLE_NAMES
                new += [("there", schema, name) for name in ("", *sorted(names))]
        for kind, schema, name in new:
            event = self.event(self.module, kind, "table", schema, name)
            if event is not None:
                connection.execute(insert(event))

    def end_run(self, connection: sa.Connection) -> None:
        """Write down that all migrations of the application are applied."""
        mine = sa.and_(objects.c.migration == self.module, objects.c.event.in_(_FIRST_RUN))
        connection.execute(objects.delete().where(mine))
        if self.module not in self.applications:
            connection.execute(insert(Event("", "application", "", "", "", self.module)))

    def _add(self, event: Event) -> None:
        self._events.append(event)
        key = (event.kind, event.schema_name, self._fold(event.table_name), self._fold(event.name))
        self._found.setdefault(key, []).append(event)

    def _of(self, schema: str | None, table: str, kind: str = "table", name: str = "") -> list[Event]:
        return self._found.get((kind, schema or "", self._fold(table), self._fold(name)), [])


def _named(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def folding(dialect: str) -> Callable[[str], str]:
    """How a kind of database compares names: PostgreSQL alone tells upper from lower case."""
    return str if dialect == "postgresql" else str.lower


def insert(event: Event) -> sa.Insert:
    """The statement that remembers an event."""
    return objects.insert().values(event._asdict())


def missing(error: BaseException) -> bool:
    """Whether an error says that a table or a column does not exist."""
    if isinstance(error, sa.exc.NoSuchTableError):
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    cause = error.orig or error
    numbers = [code for code in cause.args[:1] if code in _NUMBERS]
    return sqlstate(error) in _STATES or bool(numbers) or any(words in str(cause) for words in _WORDS)
