"""Foretell what pending migrations would do to a database in use."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..boot.planner import Planner
from ..dialects.mariadb.types import blocks
from ..errors import DatabaseUnreachable, DbSmartError, one_line, shortened
from ..loading.decorator import Migration
from ..preview import Preview, Sent
from ..schema.catalog import TABLE_NAME, Catalog
from ..schema.effects import IDENTIFIER, changes_of, listed
from ..schema.guard import check_allowed, counted_text, rows_changed
from ..schema.progress import duration
from ..schema.raw_sql import changes_rows, losses, parts, row_change, within
from ..schema.rules import (
    BLOCKS,
    DESTROYS,
    DROP_COLUMN,
    DROP_CONSTRAINT,
    DROP_TABLE,
    DROP_TAKES,
    MANY_ROWS,
    NOT_NULL,
    PRIMARY_KEY,
    RENAME_COLUMN,
    RENAME_TABLE,
    REWRITE,
    Level,
    Rule,
)
from ..session.controls import split
from ..store.database import Database, impatient
from ..store.lock import lock_of
from ..store.tables import TABLE_NAMES
from . import source, tables
from .findings import Finding, Linted, Taken, short_path, shown_path
from .locks import PLACE, Lock, locks_of
from .trace import trace

if TYPE_CHECKING:
    from collections.abc import Callable

_PRIMARY = re.compile(r"\bADD\s+(?:CONSTRAINT\s+\S+\s+)?PRIMARY\s+KEY\b(?!\s+USING\s+INDEX\b)", re.IGNORECASE)
#: As PostgreSQL's dialect of Alembic writes it.
_RENAME = re.compile(
    rf"ALTER\s+TABLE\s+({PLACE})\s+RENAME\s+(?!(?:TO|AS|COLUMN|CONSTRAINT|INDEX|KEY)\b)\S+\s+TO\b", re.IGNORECASE
)
_MODIFIES = re.compile(
    rf"(?:MODIFY\s+(?:COLUMN\s+)?({IDENTIFIER})|CHANGE\s+(?:COLUMN\s+)?({IDENTIFIER})\s+{IDENTIFIER})\s+(.*)",
    re.IGNORECASE | re.DOTALL,
)
_RETYPES = re.compile(
    rf"ALTER\s+(?:COLUMN\s+)?({IDENTIFIER})\s+(?:SET\s+DATA\s+)?TYPE\s+(.*)", re.IGNORECASE | re.DOTALL
)
_TEXT = re.compile(r"(?:character varying|varchar)(?:\((\d+)\))?|(text)", re.IGNORECASE)
_PG_TYPE = sa.text(
    "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
    f"WHERE attrelid = to_regclass({TABLE_NAME}) AND attname = :name"
)
_MY_TYPE = sa.text(
    "SELECT COLUMN_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) "
    "AND TABLE_NAME = :table AND COLUMN_NAME = :name"
)
_COLUMN = re.compile(r"drop_column\('(?P<table>[^']+)', '(?P<column>[^']+)'\)")
#: What a rename or a dropped constraint is by the rules.
_CHANGED: Mapping[str, Rule] = {
    "rename column": RENAME_COLUMN,
    "rename table": RENAME_TABLE,
    "drop constraint": DROP_CONSTRAINT,
}
#: How a migration says that something may be so.
_OPTION = re.compile(r"@migration\(.*\)")
#: What to do instead of SQL that blocks: on which databases, of which statement.
_WAYS = [
    (
        names,
        re.compile(does, re.IGNORECASE | re.DOTALL),
        f"Use op.{way} in a migration of db-smart: the table stays usable.",
    )
    for names, does, way in (
        (("postgresql",), r"\ACREATE\s+(?:UNIQUE\s+)?INDEX\b", "create_index()"),
        (("postgresql",), r"\bADD\b.*\bPRIMARY\s+KEY\b", "create_primary_key()"),
        (("postgresql", "mysql"), r"\bADD\b.*\bFOREIGN\s+KEY\b", "create_foreign_key()"),
        (("postgresql",), r"\bADD\b.*\bUNIQUE\b", "create_unique_constraint()"),
        (("postgresql",), r"\bADD\s+(?:CONSTRAINT\s+\S+\s+)?CHECK\b", "create_check_constraint()"),
        (("postgresql",), r"\bSET\s+NOT\s+NULL\b", "alter_column(nullable=False)"),
    )
] + [
    (
        ("postgresql", "mysql"),
        re.compile(r"\bTYPE\b|\bMODIFY\b|\bCHANGE\b", re.IGNORECASE),
        "Add a column of the new type, write both, op.backfill() it, and change over to it.",
    )
]
_WAY = "Do it while nobody uses the table."
#: What gives a new column a value.
_VALUE = re.compile(r"\b(?:DEFAULT|GENERATED|AS|AUTO_INCREMENT|IDENTITY|\w*SERIAL\d?)\b", re.IGNORECASE)
_WORK = {"scan": "reads every row", "build": "builds an index", "rewrite": "writes the table again"}


class Lint:
    """Looks at the migrations of one database.

    :param planner: of the application.
    :param metadata: the tables of the models that belong to the database.
    :param models: the models of the application, each with its name.
    :param preview: what pending migrations would do.
    :param versions: the version table of Alembic.
    """

    def __init__(
        self,
        planner: Planner,
        database: Database,
        *,
        metadata: sa.MetaData,
        models: Mapping[Any, str],
        preview: Callable[..., list[Preview]],
        versions: str,
    ) -> None:
        self._planner = planner
        self._database = database
        self._facts = database.facts
        self._metadata = metadata
        self._models = models
        self._preview = preview
        self._most = planner.settings.ddl.statement_rows
        self._indexes_keys = database.facts.name not in ("postgresql", "sqlite")
        self._left_out = {*TABLE_NAMES, versions}
        self._rows: dict[str, int | None] = {}
        self._linted = Linted(database.name)

    def of(self, *, everything: bool, traced: bool = False) -> Linted:
        """What is to be said.

        :param everything: whether what is applied is looked at too, by its source.
        :param traced: whether what is pending is applied to a scratch copy.
        :raises DbSmartError: the migrations cannot be loaded, or one allows what is no rule.
        """
        linted, mine = self._linted, self._planner.of(self._database)
        for migration in mine:
            check_allowed(migration.options.allow, migration.name)
        try:
            previews = self._previews()
        except DatabaseUnreachable as error:
            linted.unreachable = one_line(error.message)
            wanted, known = mine, set[str]()
        else:
            names = {one.name for one in previews}
            wanted = [one for one in mine if everything or one.name in names]
            known = {one.name for one in previews if one.unknown is None and one.error is None}
            self._ask(previews)
            if traced:
                try:
                    linted.traced = trace(self._database, previews, linted.notes)
                except DbSmartError as error:
                    linted.notes.append(f"Nothing is traced: {one_line(error.message)}")
            self._note_holder()
        linted.migrations = [one.name for one in wanted]
        for migration in wanted:
            sql = migration.name not in known
            for found in source.found_in(migration, self._facts, self._models, sql=sql):
                if found.line is None or not any(one.same_line(found) for one in linted.findings):
                    self._add(found)  # which the dry run may have told of
        shapes = self._placed(tables.of_models(self._metadata))
        for found in tables.found(shapes, "the models", indexes_keys=self._indexes_keys):
            self._add(found)
        order = {name: number for number, name in enumerate(linted.migrations)}
        linted.findings.sort(key=lambda one: (order.get(one.migration or "", len(order)), one.line or 0))
        return linted

    def _note_holder(self) -> None:
        """Say that another process migrates the database meanwhile."""
        holder = lock_of(self._database, self._planner.settings.lock).holder()
        if holder is not None:
            at = f", at {holder.migration!r}" if holder.migration else ""
            self._linted.notes.append(f"{holder.name} migrates this database now{at}. Ask again when it is done.")

    def _previews(self) -> list[Preview]:
        plan = self._planner.ask(self._database)
        try:
            return self._preview(plan, as_sql=True)
        except DatabaseUnreachable:
            raise
        except DbSmartError as error:
            if not any(item.migration.revision for item in plan.pending):
                raise
            self._linted.notes.append(one_line(error.message))
            return self._preview(plan, as_sql=False)

    def _add(self, finding: Finding) -> None:
        """Add a finding, unless it is among them: of the models and the database."""
        if not any(one.same_line(finding) and one.message == finding.message for one in self._linted.findings):
            self._linted.findings.append(finding)

    def _placed(self, shapes: Iterable[tables.Shape]) -> Iterator[tables.Shape]:
        """Tables, each with the place of its model; where it has none, with the file of the migrations."""
        places = {}
        for model in self._models:
            table = getattr(model, "__table__", None)
            if isinstance(model, type) and table is not None:
                with suppress(OSError, TypeError):
                    path = inspect.getsourcefile(model)
                    places[table.fullname] = path, inspect.getsourcelines(model)[1]
        home = next(iter(self._planner.sources.paths.values()), None)
        for shape in shapes:
            path, shape.line = places.get(shape.name, (home, None))
            shape.path = None if path is None else short_path(path)
            yield shape

    def _ask(self, previews: Sequence[Preview]) -> None:
        """Look at what is pending, and at the tables, with the database."""
        if not self._database.exists:
            for preview in previews:
                self._look(preview, None)
            return
        with self._database.connect() as connection, impatient(connection):
            for preview in previews:
                with self._noting(preview.name, connection):
                    self._look(preview, connection)
            with self._noting("tables", connection):
                shapes = list(self._placed(tables.of_database(connection, self._left_out)))
                for found in tables.found(shapes, "the database", indexes_keys=self._indexes_keys):
                    self._add(found)
                for found in tables.short_keys(connection, shapes):
                    self._add(found)

    @contextmanager
    def _noting(self, what: str, connection: sa.Connection) -> Iterator[None]:
        """Note where the database does not answer, as when another session has locked a table."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sa.exc.SAWarning)  # of types that SQLAlchemy does not know
                yield
        except sa.exc.DBAPIError as error:
            self._linted.notes.append(f"{what}: not all is looked at: {one_line(self._database.cause(error))}")
            connection.rollback()

    def _look(self, preview: Preview, connection: sa.Connection | None) -> None:
        """What one migration would do."""
        migration = preview.migration
        if migration is None:  # the tables of the models, all of them new
            return
        allowed = source.allowed(migration)

        def add(
            rule: Rule,
            message: str,
            line: int | None,
            statement: str = "",
            level: Level | None = None,
            fix: str = "",
        ) -> None:
            if migration.revision:  # which says so in a comment
                how = f"# db-smart: allow {rule.id} because …"
                fix = _OPTION.sub(how, fix or f"{rule.why} {rule.fix}")
            self._add(
                Finding(
                    rule,
                    level or rule.level,
                    message,
                    migration.name,
                    shown_path(migration),
                    line,
                    shortened(statement) or None,
                    fix=fix,
                    allowed=allowed.get(rule.id),
                )
            )

        for refusal in preview.refusals:
            rule, text = refusal.error.rule, refusal.error.message.partition("\n\n")[0]
            one = Finding(
                rule,
                "error",
                text.removeprefix(f"{rule.id} "),
                migration.name,
                shown_path(migration),
                refusal.line,
                instead=refusal.error.instead,
                allowed=refusal.allowed,
            )
            self._add(one)
        if preview.error is not None:
            why = one_line(preview.error)
            if any(refusal.allowed is None for refusal in preview.refusals):
                since = "there" if preview.line is None else f"line {preview.line}"
                self._linted.notes.append(
                    f"{migration.name}: from {since} on, only its source is looked at, because it needs what is "
                    f"refused: {why}"
                )
            elif any(one.refused for one in self._linted.findings):
                self._linted.notes.append(f"{migration.name} would fail after what is refused before it: {why}")
            else:
                self._linted.failing.append(f"{migration.name} would fail: {why}")
        if preview.unknown is not None:
            self._linted.notes.append(
                f"{migration.name}: it uses {preview.unknown}, so only its source is looked at from there on."
            )
        for statement in preview.script:
            text = statement.strip().removesuffix(";")
            if text.startswith("--") and "\n" not in text:
                continue
            for part in split(text, self._facts.name):
                for inner in within(part, self._facts):
                    self._statement(migration, statement, inner, connection, add)
        self._made(migration, preview, allowed)
        if connection is not None:
            for done in preview.does:
                found = _COLUMN.match(done)
                if found is not None:
                    line = done.line if isinstance(done, Sent) else None
                    self._along(connection, found["table"], found["column"], line, done, add)

    def _made(self, migration: Migration, preview: Preview, allowed: Mapping[str, str]) -> None:
        """What is wrong with the tables that a migration makes."""
        lines = {str(one): one.line for one in preview.script if isinstance(one, Sent)}
        for shape, statement in tables.of_statements(preview.script, self._facts):
            if shape.name in self._left_out or shape.name.rpartition(".")[2].startswith("_db_smart"):
                continue
            for one in tables.found([shape], migration.name, indexes_keys=self._indexes_keys):
                line, path = lines.get(statement), shown_path(migration)
                self._add(
                    replace(
                        one,
                        migration=migration.name,
                        path=path,
                        line=line,
                        allowed=allowed.get(one.rule.id),
                        where=None,
                    )
                )

    def _statement(
        self,
        migration: Migration,
        sent: str,
        text: str,
        connection: sa.Connection | None,
        add: Callable[..., None],
    ) -> None:
        """What one statement takes and breaks."""
        line, own = (sent.line, sent.own) if isinstance(sent, Sent) else (None, migration.revision)
        if any(name in text for name in self._left_out):
            return
        raw = own or migration.revision
        for lock in locks_of(text, self._facts, checked=not raw):
            rows = self._size(connection, lock.table)
            if connection is not None and lock.work == "rewrite" and self._free(connection, lock.table, text):
                lock = replace(lock, work="none")
            seconds = None if rows is None else lock.seconds(rows, self._facts)
            self._linted.taken.append(
                Taken(
                    migration.name, line, shortened(text), lock.table, lock.name, lock.blocks, lock.work, rows, seconds
                )
            )
            if rows and lock.halts and self._facts.server:
                self._halts(lock, rows, seconds or 0.0, text, line, add, raw=raw)
        if connection is None or not raw:
            return
        for loss in losses(text, self._facts):
            if migration.revision and self._there(connection, loss.place):
                rule = {"column": DROP_COLUMN, "table": DROP_TABLE}.get(loss.kind, DESTROYS)
                message = f"It destroys the {loss.kind} {'.'.join(filter(None, (loss.place, loss.name)))}."
                add(rule, message, line, text, "warning")
            if loss.kind == "column":
                self._along(connection, *parts(loss.place)[1:], parts(loss.name)[1], line, text, add)
        for change in changes_of(text, self._facts).seen:
            rule_of = _CHANGED.get(change.kind)
            if change.kind == "make column" and self._size(connection, change.table) and _lacks_value(change.form):
                level: Level = "warning" if self._facts.name == "mysql" else "error"  # which takes 0 or ''
                add(NOT_NULL, f"{change.table}.{change.name} has no value for existing rows.", line, text, level)
            if rule_of is not None and self._size(connection, change.table):
                add(rule_of, f"It does that by SQL: {rule_of.summary}.", line, text, "warning")
        if _RENAME.match(text):
            add(RENAME_COLUMN, f"It does that by SQL: {RENAME_COLUMN.summary}.", line, text, "warning")
        if changes_rows(text, self._facts) and migration.revision:
            count = self._changed(connection, text)
            if count is not None and count > self._most:
                add(MANY_ROWS, f"More than {self._most:,} rows in one statement.", line, text)

    def _free(self, connection: sa.Connection, place: str, text: str) -> bool:
        """Whether a statement that may write a table again gives columns types for which that is not needed."""
        schema, table = parts(place)
        changed = []
        for action in listed(text[text.find(place) + len(place) :].strip(), self._facts):
            found = (_RETYPES if self._facts.name == "postgresql" else _MODIFIES).match(action)
            if found is None:
                if not re.match(r"(?:LOCK|ALGORITHM)\b", action, re.IGNORECASE):
                    return False
                continue
            *names, wanted = found.groups()
            name = parts(next(filter(None, names)))[1]
            query = _PG_TYPE if self._facts.name == "postgresql" else _MY_TYPE
            old = connection.scalar(query, {"schema": schema, "table": table, "name": name})
            changed.append(old is not None and self._alike(old, wanted))
        return bool(changed) and all(changed)

    def _alike(self, old: str, wanted: str) -> bool:
        if self._facts.name != "postgresql":
            return not blocks(old, wanted, 4)
        before, after = _TEXT.fullmatch(old), _TEXT.fullmatch(wanted.strip())
        if before is None or after is None or before[2]:
            return False
        return after[1] is None or (before[1] is not None and int(before[1]) <= int(after[1]))

    def _halts(
        self,
        lock: Lock,
        rows: int,
        seconds: float,
        text: str,
        line: int | None,
        add: Callable[..., None],
        *,
        raw: bool,
    ) -> None:
        rule = BLOCKS
        if raw and _PRIMARY.search(text):
            rule = PRIMARY_KEY
        elif lock.blocks == "readers and writers":
            rule = REWRITE
        message = (
            f"The lock {lock.name} of {lock.table} keeps {lock.blocks} waiting for {duration(seconds)}: the database "
            f"{_WORK[lock.work]}, about {counted_text(rows)}."
        )
        if not raw:  # an operation has been asked for this form, with online=False
            add(rule, message, line, text, "warning")
            return
        way = next((way for names, does, way in _WAYS if self._facts.name in names and does.search(text)), _WAY)
        stand = "Or, if the application may stand still for that time, say so"
        add(rule, message, line, text, "error", f"{way} {stand}: @migration(allow={{'{rule.id}': 'because …'}}).")

    def _along(
        self,
        connection: sa.Connection,
        table: str,
        column: str,
        line: int | None,
        text: str,
        add: Callable[..., None],
    ) -> None:
        """Say what a dropped column takes along."""
        catalog, name = Catalog(connection), self._facts.normalize_name(column)
        with suppress(sa.exc.NoSuchTableError):
            found = [
                f"the index {one.name}"
                for one in catalog.indexes(table, None).values()
                if name in {self._facts.normalize_name(part) for part in one.columns if part is not None}
            ]
            found += [
                f"the {one.kind} constraint {one.name}"
                for one in catalog.constraints(table, None).values()
                if name in map(self._facts.normalize_name, one.columns) and f"the index {one.name}" not in found
            ]
            if found:
                add(DROP_TAKES, f"{table}.{column} takes along {', '.join(sorted(found))}.", line, text)

    def _there(self, connection: sa.Connection, place: str) -> bool:
        schema, table = parts(place)
        return Catalog(connection).has_table(table, schema)

    def _size(self, connection: sa.Connection | None, place: str) -> int | None:
        """How many rows a table has, about; ``None`` where there is no such table."""
        if connection is None or not place:
            return None
        if place not in self._rows:
            self._rows[place] = self._asked_size(connection, place)
        return self._rows[place]

    def _asked_size(self, connection: sa.Connection, place: str) -> int | None:
        schema, table = parts(place)
        catalog = Catalog(connection)
        try:
            if not catalog.has_table(table, schema):
                return None
            if catalog.empty(table, schema):
                return 0
            return max(1, round(self._facts.rows(connection, table, schema)))
        except sa.exc.DBAPIError:  # no right to read it
            return None
        finally:
            connection.rollback()  # so that a change of the table does not wait for this

    def _changed(self, connection: sa.Connection, text: str) -> float | None:
        """How many rows a statement of a revision would change; ``None`` where that cannot be told now."""
        driver: Any = connection.connection.dbapi_connection
        cursor = driver.cursor()
        try:
            return rows_changed(cursor, self._facts, text, row_change(text, self._facts), None, self._most)
        except Exception:  # of a table that an earlier one makes
            return None
        finally:
            cursor.close()
            connection.rollback()


def _lacks_value(column: str) -> bool:
    """Whether a new column is NOT NULL and has no value for existing rows, by its definition."""
    return (
        re.search(r"\bNOT\s+NULL\b|\bPRIMARY\s+KEY\b", column, re.IGNORECASE) is not None
        and _VALUE.search(column) is None
    )


def model_names(metadatas: Collection[sa.MetaData], registry: Any) -> Iterator[tuple[Any, str]]:
    """The models of an application, and its tables, each with its name."""
    for metadata in metadatas:
        for table in metadata.tables.values():
            yield table, table.fullname
    for mapper in registry.mappers:
        yield mapper.class_, mapper.class_.__name__
