"""Schema operations for migrations: idempotent, and usable on a table that is in use.

Each looks at the database before it acts, so a migration that was interrupted, or runs again after an edit, does only
what is missing. If the table has rows, each takes the form that keeps the table usable, and splits the migration into
several transactions if that form needs it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache, cached_property, wraps
from inspect import ismethod, signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import sqlalchemy as sa

from .errors import DbSmartError
from .schema.catalog import Catalog, Constraint, Index
from .schema.loosening import as_default
from .schema.rules import (
    CONTROL,
    DROP_COLUMN,
    DROP_CONSTRAINT,
    DROP_TABLE,
    NARROW_TYPE,
    NOT_NULL,
    OLD_ROWS,
    RENAME_COLUMN,
    RENAME_TABLE,
    Refused,
    Rule,
)
from .session.controls import controls_transaction
from .store.database import translated

if TYPE_CHECKING:
    from flask_sqlalchemy.session import Session
    from sqlalchemy.orm import scoped_session
    from sqlalchemy.sql.base import Executable
    from sqlalchemy.types import TypeEngine

    from .dialects.editor import Change, SchemaEditor
    from .schema.foresight import Foresight
    from .session.transaction import Transaction

#: Of a column, constraint, index or default, what may hold an expression or has no place in its representation.
_SAID = (
    *("arg", "server_default", "computed", "identity", "constraints", "sqltext", "persisted", "expressions"),
    *("index", "unique", "start", "increment", "always", "dialect_kwargs"),
    *("deferrable", "initially", "ondelete", "onupdate", "use_alter", "match"),
)
#: Options of a foreign key, and what they are where none is given.
_KEY_OPTIONS = {
    "ondelete": "NO ACTION",
    "onupdate": "NO ACTION",
    "deferrable": "FALSE",
    "initially": "IMMEDIATE",
    "match": "SIMPLE",
}
ColumnNames = Sequence[str | sa.TextClause | sa.ColumnElement[Any]]
#: How a statement begins that makes a function or a trigger.
_CREATE = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*CREATE\s+(?:OR\s+REPLACE\s+)?", re.IGNORECASE | re.DOTALL)
_IDENTIFIER = r"""(?:"(?:[^"]|"")+"|`(?:[^`]|``)+`|[\w$]+)"""
#: The rest of its head, with the name that it gives.
_NAMED = {
    kind: re.compile(
        rf"(?P<head>(?:[^\"'`]|\"[^\"]*\"|`[^`]*`|'[^']*')*?\b{kind}\s+)(?:IF\s+NOT\s+EXISTS\s+)?"
        rf"(?P<rest>(?:{_IDENTIFIER}\s*\.\s*)*(?P<name>{_IDENTIFIER}))",
        re.IGNORECASE,
    )
    for kind in ("function", "trigger")
}
#: Why something cannot be taken back.
_GONE = "what it held is gone"
_FIRST_RUN = "the first run put the table of the models in its place"
_F = TypeVar("_F", bound=Callable[..., Any])
#: Where an object is in memory, as its representation has it.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _implied(function: _F) -> _F:
    """Let a method take Alembic's ``if_exists`` and ``if_not_exists`` too, which go without saying here."""

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        for implied in ("if_exists", "if_not_exists"):
            given.pop(implied, None)
        return function(*args, **given)

    return cast(_F, call)


def _step(function: _F) -> _F:
    """Skip an operation that an earlier, interrupted run has done.

    It would find nothing to do; or not find its table, which the migration has renamed or dropped since.
    """

    described = signature(function)
    schemas = [name for name in described.parameters if name.endswith("schema")]
    takes = function.__name__ in ("drop_column", "drop_table", "rename_table", "alter_column")

    @wraps(function)
    def call(self: Operations, *args: Any, **given: Any) -> None:
        journal = self._transaction.journal
        # A batch is done whole or not at all.
        key = None if journal.paused else journal.number(f"{function.__name__} {_spelled((args, given))}")
        given = self._placed(given, schemas)
        if takes:
            self._taking(function.__name__, described.bind(self, *args, **given).arguments)
        if key is not None and journal.done(key) is not None:
            self._report("done before", _called(function.__name__, args))
            return
        with self._leniently(function.__name__, args):
            function(self, *args, **given)
        if key is not None:
            journal.record(key, 0, None, None)

    return cast(_F, call)


class Operations:
    """What a migration may do to its database. One object serves one run of one migration.

    Names are plain names: quoting, reserved words and schemas are taken care of. ``online=False`` asks an operation
    for the plain form, which blocks the table while it works, in the migration's own transaction.

    :param transaction: the connection of the run.
    :param destructive: whether the migration may destroy or break something.
    :param allow: rules of those that ask for it that do not apply to the migration, each with the reason.
    :param catalog: answers what the database has; one of its own when ``None``.
    """

    def __init__(
        self,
        transaction: Transaction,
        *,
        destructive: bool,
        allow: Mapping[str, str] = MappingProxyType({}),
        catalog: Catalog | None = None,
    ) -> None:
        self._transaction = transaction
        self._report = transaction.report
        self._connection = transaction.connection
        self._name = transaction.journal.migration
        self._destructive = destructive
        self._allow = allow
        self._catalog = catalog or Catalog(transaction.connection)
        #: What this run has dropped or renamed so far, and what it left out for that: kind, place and names.
        self._taken_now: set[tuple[str, ...]] = set()
        self._left_out: dict[tuple[str, ...], str] = {}

    @property
    def session(self) -> scoped_session[Session]:
        """``db.session``, in this migration's transaction; it is committed with the migration."""
        return self._transaction.session

    @property
    def connection(self) -> sa.Connection:
        """A connection in this migration's transaction. Committing it is allowed, and not needed."""
        return self._transaction.own_connection

    @property
    def inspector(self) -> sa.Inspector:
        """A fresh inspector: it sees what this migration has changed so far."""
        return self._catalog.inspector

    def execute(
        self,
        statement: str | Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> sa.CursorResult[Any]:
        """Run one SQL statement.

        :param statement: SQL with ``:name`` for bound parameters, or a SQLAlchemy statement.
        :param parameters: values by name, or a sequence of such for one run each.
        :raises Refused: a rule forbids it: it begins or ends a transaction, destroys data or changes very many rows.
        :raises sqlalchemy.exc.DBAPIError: the database refused it.
        """
        query = sa.text(statement) if isinstance(statement, str) else statement
        if (
            self._transaction.transactional
            and isinstance(query, sa.TextClause)
            and controls_transaction(query.text, self._transaction.dialect)
        ):
            raise Refused(CONTROL, f"op.execute({query.text.strip()!r})")
        return self._transaction.execute(query, parameters)

    def has_table(self, table: str, *, schema: str | None = None) -> bool:
        """Whether there is such a table or view."""
        return self._catalog.has_table(table, translated(self._connection, schema))

    def has_column(self, table: str, column: str, *, schema: str | None = None) -> bool:
        """Whether the table has such a column.

        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        return bool(self._catalog.present(table, [column], translated(self._connection, schema)))

    @_implied
    def add_column(
        self, table_name: str, column: sa.Column[Any], *, schema: str | None = None, online: bool = True
    ) -> None:
        """Add one column if it is missing; see :meth:`add_columns`."""
        self.add_columns(table_name, column, schema=schema, online=online)

    @_step
    def add_columns(self, table: str, *columns: sa.Column[Any], schema: str | None = None, online: bool = True) -> None:
        """Add the columns that the table lacks, with their foreign keys, unique constraints and indexes.

        PostgreSQL and MariaDB do it in one ``ALTER TABLE``. SQLite adds columns one by one, and a unique column gets a
        unique index, because its ``ALTER TABLE`` cannot add constraints.

        :param columns: columns as in a model; you can use a list of them again.
        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        :raises Refused: the table has rows, and a column that is NOT NULL has no value for them.
        """
        from .schema.ddl import BareTable, alone

        table, columns = self._followed(schema, table, columns)
        if not columns or self._passed(f"add_columns({table!r})", schema, table):
            return
        wanted = []
        for column in columns:
            what = f"add_columns({table!r}, {column.name!r})"
            if self._passed(what, schema, table, "column", column.name) or self._taken_after(
                what, "column", schema, table, column.name
            ):
                continue
            self._note_back("column", schema, table, column.name)
            if self._model_has(what, schema, table, column.name):
                self._fill_as_added(schema, table, column)
            else:
                wanted.append(column)
        if not wanted:
            return
        if all(map(alone, wanted)):
            self._add_columns(cast(sa.Table, BareTable(table, schema)), wanted, online)
        else:
            copies = [column._copy() for column in wanted]
            self._add_columns(self._described(table, copies, schema), copies, online)

    def _add_columns(self, described: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Add columns of a table to it.

        :param described: a table with at least these columns, and with what they need.
        """
        from .session.sql import needed, settle_names

        table, schema = described.name, described.schema
        for constraint in [*described.constraints]:
            if not needed(constraint, self._connection.dialect):
                described.constraints.discard(constraint)
        checks = [check for column in columns for check in column.constraints]
        settle_names([*described.constraints, *checks], self._connection.dialect)
        present = self._catalog.present(table, [column.name for column in columns], schema)
        missing = [column for column in columns if self._catalog.normalize_name(column.name) not in present]
        if not missing:
            self._report("satisfied", f"add_columns({table!r}, {', '.join(repr(column.name) for column in columns)})")
            if not any(item.index or item.unique or item.foreign_keys or item.constraints for item in columns):
                return
        online = self._busy(table, schema, online)
        for column in missing:
            if not column.nullable and not _has_value(column) and not self._catalog.empty(table, schema):
                from .schema.instead import filled_column

                raise Refused(
                    NOT_NULL,
                    f"op.add_columns({table!r}, Column({column.name!r}, …))",
                    instead=filled_column(self._name, table, schema, column.name, column.type),
                )
        if missing:
            names = {column.name for column in missing}
            constraints = [
                constraint
                for constraint in described.constraints
                if not isinstance(constraint, sa.PrimaryKeyConstraint)
                and not self._claimed(schema, table, constraint.name)
                and {column.name for column in getattr(constraint, "columns", ())} & names
            ]
            self._need(one for one in constraints if isinstance(one, sa.ForeignKeyConstraint))
            what = f"add_columns({table!r}, {', '.join(map(repr, sorted(names)))})"
            self._report("does", what)
            made = {
                "names": [one.name for one in missing],
                "constraints": [one.name for one in constraints if one.name],
            }
            with self._rows_said(f"op.{what}"), self._making("drop_columns", schema, table, **made):
                self._editor.add_columns(described, missing, constraints, online)
        self._editor.finish_columns(described, columns if online else missing, online)
        self._foresee_columns(described, missing)
        self._create_indexes(described, online)

    @_implied
    @_step
    def create_table(
        self, table_name: str, *items: sa.schema.SchemaItem, schema: str | None = None, **options: Any
    ) -> None:
        """Create a table if it is missing, and those of its indexes that are missing.

        A table that exists is left as it is, whatever its columns; :meth:`sync` adds what it lacks.

        :param items: columns and constraints.
        :param options: as in :class:`sqlalchemy.Table`, such as ``comment`` or ``mysql_engine``.
        """
        what = f"create_table({table_name!r})"
        if self._passed(what, schema, table_name) or self._taken_after(what, "table", schema, table_name):
            return
        self._note_back("table", schema, table_name)
        if self._model(schema, table_name) is not None:
            self._report("satisfied", what)
            return
        if self._fresh and not self.has_table(table_name, schema=schema):
            self._note_first_run("added", schema, table_name)
        copies = [_copied(item) for item in items]
        self._create_table(self._described(table_name, copies, schema, **options))

    @_step
    def sync(self, model: Any, *, online: bool = True) -> None:
        """Add to a table what the model has and the table lacks: the table itself, columns, indexes.

        It never removes or changes anything. The model is the one of the day on which the migration runs, and is not
        part of its checksum, so it runs again only if the migration itself is edited.

        :param model: a model class, or a :class:`sqlalchemy.Table`.
        :raises Refused: the table has rows, and a new column that is NOT NULL has no ``server_default``.
        """
        table: sa.Table = getattr(model, "__table__", model)
        if not isinstance(table, sa.Table):
            raise DbSmartError(f"op.sync() takes a model or a table, not {model!r}.")
        metadata = sa.MetaData(naming_convention=table.metadata.naming_convention)
        schema = translated(self._connection, table.schema)
        described = table.to_metadata(metadata, schema=cast(Any, schema), referred_schema_fn=self._referred_schema)
        self._note_back("table", schema, table.name)
        for column in table.columns:
            self._note_back("column", schema, table.name, column.name)
        for key in table.foreign_keys:
            other = key.column.table
            place = translated(self._connection, other.schema)
            if other is not table and sa.Table(other.name, sa.MetaData(), schema=place).key not in metadata.tables:
                other.to_metadata(metadata, schema=cast(Any, place), referred_schema_fn=self._referred_schema)
        if not self.has_table(table.name, schema=schema):
            self._create_table(described)
            return
        present = self._catalog.columns(table.name, schema)
        columns = [column for column in described.columns if self._catalog.normalize_name(column.name) not in present]
        if columns:
            self._add_columns(described, columns, online)
        self._create_indexes(described, self._busy(table.name, schema, online))

    @_implied
    @_step
    def drop_table(self, table_name: str, *, schema: str | None = None) -> None:
        """Drop a table if it exists. Destructive.

        :raises Refused: the migration is not marked as destructive.
        """
        what = f"drop_table({table_name!r})"
        if self._passed(what, schema, table_name):
            return
        model = self._model(schema, table_name)
        if model is not None or not self.has_table(table_name, schema=schema):
            self._note("dropped", "table", schema, table_name)
            if model is None or not self._reset(model, schema, what):
                self._report("satisfied", what)
            return
        if self._made_again(what, schema, table_name) or self._made_since(what, schema, table_name):
            return
        from .schema import instead

        self._ask(DROP_TABLE, f"op.{what}", lambda: instead.dropped(self._name, f'op.drop_table("{table_name}")'))
        self._note("dropped", "table", schema, table_name)
        self._report("does", what)
        with self._cannot(what, _GONE):
            self._editor.drop_table(self._described(table_name, [], schema))

    @_step
    def rename_table(self, old_table_name: str, new_table_name: str, *, schema: str | None = None) -> None:
        """Give a table another name, if the old name exists and the new one does not. Destructive.

        :raises Refused: the migration is not marked as destructive.
        :raises DbSmartError: both exist, or neither.
        """
        what = f"rename_table({old_table_name!r}, {new_table_name!r})"
        if self._passed(what, schema, old_table_name) or self._passed(what, schema, new_table_name):
            return
        old = self.has_table(old_table_name, schema=schema)
        new = self.has_table(new_table_name, schema=schema)
        if self._fresh and (not old or self._model(schema, old_table_name) is not None):
            self._note_renamed("table", schema, old_table_name, new_table_name)
            self._report("left out", what, "the models already have it differently")
            return
        if new and not old:
            self._note_renamed("table", schema, old_table_name, new_table_name)
            self._report("satisfied", what)
            return
        if old and new and self._new(schema, old_table_name) and self._model(schema, new_table_name) is not None:
            self._note_renamed("table", schema, old_table_name, new_table_name)
            self._report("does", what)
            with self._cannot(what, _FIRST_RUN):
                self._replace_table(old_table_name, new_table_name, schema)
            return
        if (not old or new) and "renamed" in self._did("table", schema, old_table_name):
            if not old or self._made_again(what, schema, old_table_name):
                self._report("left out", what, "an earlier run has renamed it")
                return
            if self._catalog.empty(old_table_name, schema):  # SQL of an older migration that ran again has made it
                self._note_renamed("table", schema, old_table_name, new_table_name)
                self._report("does", what)
                with self._cannot(what, _GONE):
                    self._editor.drop_table(self._described(old_table_name, [], schema))
                return
        if old and not new and "renamed" in self._did("table", schema, old_table_name):
            again = self._made_again(what, schema, old_table_name)
            if again or self._made_since(what, schema, old_table_name):
                return
        # The models' table, which this first run has made, gives way to the one that was there before it.
        empty = new and self._model(schema, new_table_name) is not None and self._catalog.empty(new_table_name, schema)
        if not old or (new and not empty):
            state = "both tables exist" if old else "neither table exists"
            raise DbSmartError(f"op.{what}: {state}. Nothing was renamed. Find out which one holds the data.")
        self._ask(RENAME_TABLE, f"op.{what}")
        if empty:
            self._note_first_run("there", schema, new_table_name)
            self._note_renamed("table", schema, old_table_name, new_table_name)
            keys = self._keys_to(new_table_name, schema) if self._transaction.facts.key_holds_table else []
            self._report("does", what)
            with self._cannot(what, _FIRST_RUN):
                for key in keys:
                    self._drop_key(*key, schema)
                self._editor.replace_table(self._described(new_table_name, [], schema), old_table_name)
                for key in keys:
                    self._add_key(*key, new_table_name, schema)
            return
        if self._new(schema, old_table_name):
            self._note_first_run("added", schema, new_table_name)
        if self._unused(schema, old_table_name):
            self._note_unused(schema, new_table_name)
        self._note_renamed("table", schema, old_table_name, new_table_name)
        self._report("does", what)
        with self._making("rename_table", schema, new_table_name, name=old_table_name):
            self._editor.rename_table(old_table_name, new_table_name, schema)

    @_step
    def drop_column(self, table_name: str, column_name: str, *, schema: str | None = None, online: bool = True) -> None:
        """Drop a column if it exists, with the indexes and constraints on it alone. Destructive.

        :raises Refused: the migration is not marked as destructive.
        :raises DbSmartError: an index or a constraint has the column together with others.
        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        what = f"drop_column({table_name!r}, {column_name!r})"
        if self._passed(what, schema, table_name, "column", column_name):
            return
        if not self.has_column(table_name, column_name, schema=schema) or self._defines(
            schema, table_name, column_name
        ):
            self._note("dropped", "column", schema, table_name, column_name)
            self._report("satisfied", what)
            return
        if self._made_again(what, schema, table_name, "column", column_name) or self._made_since(
            what, schema, table_name, column_name
        ):
            return
        from .schema import instead

        place = (self._name, table_name, schema, column_name)
        existing = self._catalog.normalize_name(column_name)
        self._ask(
            DROP_COLUMN,
            f"op.{what}",
            lambda: instead.dropped_column(*place, self._catalog.columns(table_name, schema)[existing]),
        )
        shared = self._editor.shared(table_name, column_name, schema)
        if shared:
            raise DbSmartError(
                f"op.{what}: {', '.join(shared)}: each has the column together with others, and would change. "
                "Nothing was changed. Drop that first, with op.drop_index() or op.drop_constraint()."
            )
        self._note("dropped", "column", schema, table_name, column_name)
        self._report("does", what)
        with self._cannot(what, _GONE):
            self._editor.drop_column(table_name, column_name, schema, self._busy(table_name, schema, online))

    @_step
    def alter_column(
        self,
        table_name: str,
        column_name: str,
        *,
        nullable: bool | None = None,
        server_default: Any = False,
        new_column_name: str | None = None,
        type_: TypeEngine[Any] | type[TypeEngine[Any]] | None = None,
        comment: str | Literal[False] | None = False,
        schema: str | None = None,
        postgresql_using: str | None = None,
        online: bool = True,
        **existing: Any,
    ) -> None:
        """Change a column: whether it is nullable, its type, its default in the database, its comment, its name.

        What is already so is left alone. Renaming, and a type that may not hold every value, are destructive.

        :param server_default: as in :class:`sqlalchemy.Column`; ``None`` drops it, ``False`` leaves it.
        :param comment: ``None`` drops it, ``False`` leaves it; SQLite has none.
        :param postgresql_using: expression for the values of the new type.
        :param existing: Alembic's ``existing_type`` and so on; not needed, because the database is asked.
        :raises Refused: it would block the table, rows break it, or the migration is not marked as destructive.
        :raises DbSmartError: there is no such column.
        """
        from .dialects.editor import Change
        from .schema import instead

        unknown = [name for name in existing if not name.startswith("existing_")]
        if unknown:
            raise TypeError(f"alter_column() got an unexpected keyword argument {unknown[0]!r}")
        normalize_name = self._catalog.normalize_name
        what = f"alter_column({table_name!r}, {column_name!r})"
        new = None if new_column_name in (None, column_name) else new_column_name
        if self._passed(what, schema, table_name, "column", column_name) or (
            new is not None and self._passed(what, schema, table_name, "column", new)
        ):
            return
        if self._model(schema, table_name) is not None and not self._alter_as_model(
            what, schema, table_name, column_name, new
        ):
            self._note_altered(schema, table_name, new or column_name, type_, nullable, server_default, comment)
            return
        columns = self._catalog.columns(table_name, schema)
        if normalize_name(column_name) not in columns and new is not None and normalize_name(new) in columns:
            self._note_renamed("column", schema, table_name, str(new_column_name), column=column_name)
            column_name, new = str(new_column_name), None  # an earlier run has renamed it
        if normalize_name(column_name) not in columns:
            if self._took(schema, table_name, column_name):
                self._report("left out", what, "an earlier run of this migration has removed it")
                return
            raise DbSmartError(f"op.{what}: the table {table_name!r} has no column {column_name!r}.")
        if new is not None and normalize_name(new) in columns and normalize_name(new) != normalize_name(column_name):
            if "renamed" in self._did("column", schema, table_name, column_name):
                if self._made_again(what, schema, table_name, "column", column_name):
                    return
                if self._no_values(schema, table_name, column_name):  # an older migration has added it by SQL again
                    self._note_renamed("column", schema, table_name, str(new), column=column_name)
                    self._report("does", what)
                    with self._cannot(what, _GONE):
                        online = self._busy(table_name, schema, online)
                        self._editor.drop_column(table_name, column_name, schema, online)
                    return
            raise DbSmartError(f"op.{what}: the table {table_name!r} already has a column {new!r}.")
        if (
            new is not None
            and normalize_name(new) not in columns
            and "renamed" in self._did("column", schema, table_name, column_name)
        ):
            again = self._made_again(what, schema, table_name, "column", column_name)
            if again or self._made_since(what, schema, table_name, column_name):
                return
        change = Change(
            table_name, schema, column_name, columns[normalize_name(column_name)], name=new, using=postgresql_using
        )
        if type_ is not None and self._passed(f"{what} to {type_!r}", schema, table_name, "type", column_name):
            type_ = None
        if nullable is not None and self._passed(f"{what}, nullable", schema, table_name, "nullable", column_name):
            nullable = None
        if server_default is not False and self._passed(f"{what}, default", schema, table_name, "default", column_name):
            server_default = False
        if comment is not False and (
            self._passed(f"{what}, comment", schema, table_name, "comment", column_name) or self._no_comments(what)
        ):
            comment = False
        wanted: TypeEngine[Any] | None = type_() if isinstance(type_, type) else type_
        wanted, nullable = self._editor.wanted(change, wanted, nullable)
        if wanted is not None:
            relation = self._editor.type_is(change.existing["type"], wanted)
            if relation != "same":
                change.type_ = wanted
            if relation == "other":
                from .schema.column_types import spelled

                dialect = self._connection.dialect
                types = spelled(change.existing["type"], dialect), spelled(wanted, dialect)
                place = (self._name, table_name, schema, column_name)
                self._ask(
                    NARROW_TYPE,
                    f"op.{what} from {types[0]} to {types[1]}",
                    lambda: instead.retyped_column(*place, wanted),
                )
        if nullable is not None and nullable != change.existing["nullable"]:
            change.nullable = nullable
        if server_default is not False and not self._same_default(change, server_default):
            change.server_default = server_default
        if comment is not False and (comment or None) != self._editor.comment(change):
            change.comment = comment or None
        if change.name is not None:
            names = (column_name, change.name, change.existing["type"])
            self._ask(
                RENAME_COLUMN,
                f"op.{what} to {change.name!r}",
                lambda: instead.renamed_column(self._name, table_name, schema, *names),
            )
            self._note_renamed("column", schema, table_name, change.name, column=column_name)
        self._note_altered(schema, table_name, change.name or column_name, type_, nullable, server_default, comment)
        self._alter(change, what, online)

    @_step
    def create_table_comment(
        self, table_name: str, comment: str | None, *, existing_comment: str | None = None, schema: str | None = None
    ) -> None:
        """Give a table a comment, or with ``None`` take it away. SQLite has none.

        :param existing_comment: as in Alembic; not needed, because the database is asked.
        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        what = f"create_table_comment({table_name!r})"
        if self._passed(what, schema, table_name, "comment") or self._no_comments(what):
            return
        if not self.has_table(table_name, schema=schema):
            raise sa.exc.NoSuchTableError(table_name)
        self._note("altered", "comment", schema, table_name)
        model = self._model(schema, table_name) is not None
        before = None if model else self._catalog.comment(table_name, schema)
        if model or (comment or None) == before:
            self._report("satisfied", what)
            return
        self._report("does", what)
        with self._making("table_comment", schema, table_name, comment=before):
            self._editor.comment_table(self._described(table_name, [], schema, comment=comment or None))

    def drop_table_comment(
        self, table_name: str, *, existing_comment: str | None = None, schema: str | None = None
    ) -> None:
        """Take the comment of a table away; see :meth:`create_table_comment`."""
        self.create_table_comment(table_name, None, schema=schema)

    def _no_comments(self, what: str) -> bool:
        """Whether the database has no comments, so that there is nothing to do."""
        if self._connection.dialect.supports_comments:
            return False
        self._report("satisfied", f"{what}, comment: {self._connection.dialect.name} has no comments")
        return True

    @_step
    def alter_enum(
        self,
        enum_name: str,
        *,
        add: Sequence[str],
        after: str | None = None,
        before: str | None = None,
        columns: Mapping[str, str | Sequence[str]] | None = None,
        schema: str | None = None,
        online: bool = True,
    ) -> None:
        """Give an enumeration the values that it lacks, in their place.

        :param add: the values, in their order.
        :param after: the value behind which they stand; or ``before``; without both they are the last.
        :param columns: the columns that have it, by their tables, where it is no type of its own: on MariaDB and
            SQLite, and everywhere where it is a text with a check. Those of the models when ``None``.
        :raises DbSmartError: there is no such enumeration, or no such value to stand beside.
        :raises Refused: the table has rows, and the database would block it.
        """
        if after is not None and before is not None:
            raise TypeError("alter_enum() takes after= or before=, not both")
        values = [add] if isinstance(add, str) else [*add]
        what = f"alter_enum({enum_name!r}, add={values!r})"
        memory = self._transaction.memory
        models = {} if memory is None else memory.enumerated(schema, enum_name)
        if models and self._fresh:  # what the models no longer have is not needed
            values = [value for value in values if any(value in known for known in models.values())]
        place = (values, after, before)
        found = [*models]
        if columns is not None:
            named = [(table, [one] if isinstance(one, str) else [*one]) for table, one in columns.items()]
            found = [(table, column) for table, of in named for column in of]
        have = self._catalog.enumeration(enum_name, schema)
        if have is not None:
            for table, column in found:  # an older migration that runs again is not to want fewer
                self._note("altered", "type", schema, table, column)
            wanted = self._with_values(what, have, *place)
            if wanted == have:
                self._report("satisfied", what)
            else:
                self._report("does", what)
                with self._stays(what):
                    self._editor.add_values(enum_name, schema, have, wanted)
            return
        if not found:
            raise DbSmartError(
                f"op.{what}: neither the database nor the models have an enumeration of that name. Nothing was "
                "changed. Say which columns have it: columns={'table': 'column'}."
            )
        for table, column in found:
            self._alter_enumerated(what, schema, table, column, place, online)

    def _with_values(
        self, what: str, have: Sequence[str], add: Sequence[str], after: str | None, before: str | None
    ) -> list[str]:
        """The values of an enumeration with those that are to be added.

        :raises DbSmartError: it does not have the one that they are to stand beside.
        """
        from .schema.column_types import with_values

        beside = after if after is not None else before
        if beside is not None and beside not in have and not set(add) <= {*have}:
            if not self._fresh:
                raise DbSmartError(
                    f"op.{what}: the enumeration has no value {beside!r}, only {', '.join(map(repr, have))}. Nothing "
                    "was changed."
                )
            after = before = None
        if beside is not None and beside not in have:
            return list(have)
        return with_values(have, add, after=after, before=before)

    def _alter_enumerated(
        self,
        what: str,
        schema: str | None,
        table: str,
        column: str,
        place: tuple[Sequence[str], str | None, str | None],
        online: bool,
    ) -> None:
        """Give a column more values, whose enumeration is no type of its own."""
        from .dialects.editor import Change
        from .schema.column_types import listed_values, longer, native_values

        what = f"{what} of {table}.{column}"
        if self._passed(what, schema, table, "column", column) or self._passed(what, schema, table, "type", column):
            return
        self._note("altered", "type", schema, table, column)
        if self._model_has(what, schema, table, column):
            return
        there = self._catalog.columns(table, schema)
        existing = there.get(self._catalog.normalize_name(column))
        if existing is None:
            if self._took(schema, table, column):
                self._report("left out", what, "an earlier run of this migration has removed it")
                return
            raise DbSmartError(f"op.{what}: the table {table!r} has no column {column!r}.")
        change = Change(table, schema, column, existing)
        have = native_values(existing["type"], self._connection.dialect)
        if have is not None:
            wanted = self._with_values(what, have, *place)
            if wanted != have:
                change.type_ = sa.Enum(*wanted)
            self._alter(change, what, online)
            return
        listing = self._editor.listing(table, column, schema)
        have = None if listing is None else listed_values(listing.condition, column, self._connection.dialect)
        if listing is None or have is None:
            if self._transaction.facts.enforces_lengths:
                change.type_, _ = self._editor.wanted(change, longer(existing["type"], place[0]), None)
            self._alter(change, what if change.type_ is not None else f"{what}: no check lists its values", online)
            return
        wanted = self._with_values(what, have, *place)
        if wanted == have:
            self._alter(change, what, online)
            self._editor.finish_constraint(self._listing(change, listing.name, wanted), listing)
            return
        change.type_, _ = self._editor.wanted(change, longer(existing["type"], wanted), None)
        change.checks = [self._listing(change, listing.name, wanted)]
        self._alter(change, what, online)

    def _listing(self, change: Change, name: str, values: Sequence[str]) -> sa.CheckConstraint:
        """A check that lists the values of a column."""
        check: sa.CheckConstraint = self._objects.check_constraint(
            name or None, change.table, sa.column(change.column).in_(values), schema=change.schema
        )
        return check

    @_step
    def create_foreign_key(
        self,
        constraint_name: str,
        source_table: str,
        referent_table: str,
        local_cols: Sequence[str],
        remote_cols: Sequence[str],
        *,
        source_schema: str | None = None,
        referent_schema: str | None = None,
        online: bool = True,
        **options: Any,
    ) -> None:
        """Add a foreign key if there is none of that name.

        :param options: as in Alembic: ``onupdate``, ``ondelete``, ``deferrable``, ``initially``, ``match`` and so on.
        :raises Refused: rows break it.
        """
        constraint = self._objects.foreign_key_constraint(
            constraint_name,
            source_table,
            referent_table,
            list(local_cols),
            list(remote_cols),
            source_schema=source_schema,
            referent_schema=referent_schema,
            **options,
        )
        self._add_constraint(constraint, "foreign", list(local_cols), online, (referent_table, tuple(remote_cols)))

    @_step
    def create_check_constraint(
        self,
        constraint_name: str,
        table_name: str,
        condition: str | sa.ColumnElement[bool] | sa.TextClause,
        *,
        schema: str | None = None,
        online: bool = True,
        **options: Any,
    ) -> None:
        """Add a check if there is none of that name.

        :raises Refused: rows break it, or the database would block the table.
        """
        constraint = self._objects.check_constraint(constraint_name, table_name, condition, schema=schema, **options)
        self._add_constraint(constraint, "check", [], online)

    @_step
    def create_unique_constraint(
        self,
        constraint_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        schema: str | None = None,
        online: bool = True,
        **options: Any,
    ) -> None:
        """Add a unique constraint if there is none of that name.

        :raises Refused: rows break it.
        """
        constraint = self._objects.unique_constraint(constraint_name, table_name, columns, schema=schema, **options)
        _include(constraint.table, options)
        self._add_constraint(constraint, "unique", list(columns), online)

    @_step
    def create_primary_key(
        self,
        constraint_name: str | None,
        table_name: str,
        columns: Sequence[str],
        *,
        schema: str | None = None,
        online: bool = True,
    ) -> None:
        """Add a primary key to a table that has none; its columns become NOT NULL.

        :param constraint_name: ``None`` for the one that PostgreSQL would give it.
        :raises Refused: rows break it.
        :raises DbSmartError: the table has another one.
        """
        from .dialects.editor import Change

        constraint_name = constraint_name or f"{table_name}_pkey"
        what = f"create_primary_key({constraint_name!r}, {table_name!r})"
        if self._passed(what, schema, table_name, "constraint", constraint_name) or self._past(
            what, schema, table_name, columns
        ):
            return
        if not self.has_table(table_name, schema=schema):
            raise sa.exc.NoSuchTableError(table_name)
        normalize_name = self._catalog.normalize_name
        have = self._catalog.primary_key(table_name, schema)
        if self._model(schema, table_name) is not None or [*map(normalize_name, have)] == [
            *map(normalize_name, columns)
        ]:
            self._report("satisfied", what)
            return
        if self._catalog.has_declared("view", table_name, schema):
            raise DbSmartError(f"op.{what}: {table_name!r} is a view, which can have no key. Nothing was changed.")
        if have:
            raise DbSmartError(
                f"op.{what}: the table has a primary key already, on {', '.join(have)}. Nothing was changed. Drop it "
                "first with op.drop_constraint()."
            )
        constraint = self._objects.primary_key_constraint(constraint_name, table_name, [*columns], schema=schema)
        self._editor.refuse_name(constraint)
        there = self._catalog.columns(table_name, schema)
        for column in columns:
            existing = there.get(normalize_name(column))
            if existing is None:
                raise DbSmartError(f"op.{what}: the table {table_name!r} has no column {column!r}.")
            if existing["nullable"]:
                change = Change(table_name, schema, column, existing, nullable=False)
                self._alter(change, f"alter_column({table_name!r}, {column!r})", online)
        self._add_constraint(constraint, "primary", [*columns], online)

    @_step
    def widen_key(
        self,
        table_name: str,
        column_name: str = "id",
        type_: TypeEngine[Any] | type[TypeEngine[Any]] = sa.BigInteger,
        *,
        schema: str | None = None,
        online: bool = True,
    ) -> None:
        """Give the column of a key a wider type, and the columns of the foreign keys that refer to it.

        SQLite has nothing to do: its integers have 64 bits.

        :raises Refused: one of the tables has rows; or the type may not hold every value, and the migration is not
            marked as destructive.
        :raises DbSmartError: there is no such column, or something else uses it.
        """
        from .dialects.editor import Change

        what = f"widen_key({table_name!r}, {column_name!r})"
        journal = self._transaction.journal
        step = journal.number(f"keys of {schema} {table_name} {column_name}")
        if self._passed(what, schema, table_name, "column", column_name) or self._passed(
            what, schema, table_name, "type", column_name
        ):
            return
        if not self._transaction.facts.enforces_lengths:
            self._report("satisfied", f"{what}: an integer of {self._connection.dialect.name} has 64 bits")
            return
        done = journal.done(step)
        wanted = type_() if isinstance(type_, type) else type_
        columns, keys = [(schema, table_name, column_name)], list[list[Any]]()
        referring = self._editor.referring(table_name, column_name, schema)
        if referring is not None:
            columns += [one for one in referring if one != columns[0]]
        else:
            place = table_name, column_name, schema
            keys = self._keys_from(*place) if done is None else json.loads(done.detail or "[]")
            for table, key in keys:
                pairs = zip(key["constrained_columns"], key["referred_columns"], strict=True)
                new = [own for own, other in pairs if self._among(columns, key["referred_table"], other)]
                columns += [(schema, table, own) for own in new if not self._among(columns, table, own)]
        changes = []
        for where, table, column in columns:
            self._note("altered", "type", where, table, column)
            existing = self._catalog.columns(table, where).get(self._catalog.normalize_name(column))
            if existing is None:
                raise DbSmartError(f"op.{what}: the table {table!r} has no column {column!r}.")
            relation = self._editor.type_is(existing["type"], wanted)
            if relation == "other":
                self._ask(NARROW_TYPE, f"op.{what}, the column {column!r} of {table!r}")
            if relation != "same" and not self._defines(where, table, column):
                changes.append(Change(table, where, column, existing, type_=wanted))
        if not changes and done is None:
            self._report("satisfied", what)
            return
        if self._transaction.dry is not None and self._transaction.dry.catalog.makes_keys:
            self._transaction.dry.unforeseeable("op.widen_key() where the same run makes tables or foreign keys")
        if done is None and any(self._busy(change.table, change.schema, online) for change in changes):
            others = sorted(f"{change.table}.{change.column}" for change in changes)
            raise Refused(self._editor.widening, f"op.{what}", f"The type of {', '.join(others)} would change. ")
        if done is None:
            self._editor.refuse_widening(columns, f"op.{what}")
        self._report("does", what)
        with self._stays(what):
            self._widen(changes, keys, schema, step)

    def _widen(self, changes: Sequence[Change], keys: list[list[Any]], schema: str | None, step: str) -> None:
        """Widen columns; the foreign keys are dropped meanwhile where that is needed."""
        journal, apart = self._transaction.journal, self._transaction.facts.transactional_ddl
        done = journal.done(step)
        if not apart and done is None:  # what a kill leaves without its keys gets them back
            journal.record(step, 0, None, json.dumps(keys))
        if not apart:
            for table, key in keys:
                if self._key(key["name"]) in self._catalog.constraints(table, schema):
                    self._drop_key(table, key, schema)
        try:
            self._editor.widen(changes)
        except Exception:
            with suppress(sa.exc.SQLAlchemyError, DbSmartError):  # one of a widened column waits for the next run
                self._add_keys_back([] if apart else keys, schema)
            raise
        self._add_keys_back([] if apart else keys, schema)

    def _add_keys_back(self, keys: Iterable[list[Any]], schema: str | None) -> None:
        """Add the foreign keys that are not there: the table and the key of each."""
        for table, key in keys:
            if self._key(key["name"]) not in self._catalog.constraints(table, schema):
                self._add_key(table, key, key["referred_table"], schema)

    def _among(self, columns: Iterable[tuple[str | None, str, str]], table: str, column: str) -> bool:
        """Whether a column is among others of the same schema, by their tables and names."""
        normalize_name = self._catalog.normalize_name
        return (normalize_name(table), normalize_name(column)) in {
            (normalize_name(one), normalize_name(other)) for _, one, other in columns
        }

    def _keys_from(self, table: str, column: str, schema: str | None) -> list[list[Any]]:
        """The foreign keys that refer to a column, and those that refer to theirs: the table and the key of each."""
        inspector, normalize_name = self._catalog.inspector, self._catalog.normalize_name
        there: list[list[Any]] = [
            [name, dict(key)]
            for name in inspector.get_table_names(schema)
            for key in inspector.get_foreign_keys(name, schema)
            if key["referred_schema"] in (None, schema)
        ]
        targets, found = {(normalize_name(table), normalize_name(column))}, list[list[Any]]()
        while True:
            new = [
                [name, key]
                for name, key in there
                if [name, key] not in found
                and {(normalize_name(key["referred_table"]), normalize_name(one)) for one in key["referred_columns"]}
                & targets
            ]
            if not new:
                return found
            found += new
            for name, key in new:
                pairs = zip(key["constrained_columns"], key["referred_columns"], strict=True)
                targets |= {
                    (normalize_name(name), normalize_name(own))
                    for own, other in pairs
                    if (normalize_name(key["referred_table"]), normalize_name(other)) in targets
                }

    @_implied
    @_step
    def drop_constraint(
        self, constraint_name: str, table_name: str, type_: str | None = None, *, schema: str | None = None
    ) -> None:
        """Drop a constraint if it exists; a missing table has none. Destructive if the table has rows.

        :param type_: as in Alembic; not needed, because the database is asked.
        :raises Refused: the migration is not marked as destructive.
        """
        what = f"drop_constraint({constraint_name!r}, {table_name!r})"
        if self._passed(what, schema, table_name, "constraint", constraint_name):
            return
        found = None
        if self.has_table(table_name, schema=schema):
            found = self._catalog.constraints(table_name, schema).get(self._key(constraint_name))
        if found is None or self._model_names(schema, table_name, constraint_name):
            self._note("dropped", "constraint", schema, table_name, constraint_name)
            self._report("satisfied", what)
            return
        self._ask_for_rules(table_name, schema, f"op.{what}, a constraint of the kind {found.kind!r}", f"op.{what}")
        self._note("dropped", "constraint", schema, table_name, constraint_name)
        kind = {"foreign": "foreignkey", "exclude": None}.get(found.kind, found.kind)
        constraint = self._objects.generic_constraint(found.name, table_name, kind, schema=schema)
        self._report("does", what)
        with self._cannot(what, "what it was is not kept"):
            self._editor.drop_constraint(constraint)

    @_implied
    @_step
    def create_index(
        self,
        index_name: str,
        table_name: str,
        columns: ColumnNames,
        *,
        schema: str | None = None,
        unique: bool = False,
        online: bool = True,
        **options: Any,
    ) -> None:
        """Create an index if there is none of that name.

        On PostgreSQL an invalid index that an interrupted build left behind is dropped and built again.

        :param columns: names or expressions.
        :param options: as in :class:`sqlalchemy.Index`, such as ``postgresql_where``.
        :raises DbSmartError: the table has an index of that name on other columns.
        :raises Refused: it is unique, and rows have the same values.
        """
        what = f"create_index({index_name!r}, {table_name!r})"
        if self._passed(what, schema, table_name, "index", index_name) or self._past(what, schema, table_name, columns):
            return
        if "altered" in self._did("index", schema, table_name, index_name):
            self._report("left out", what, "an earlier run of this migration has replaced it")
            return
        self._note_back("index", schema, table_name, index_name)
        if (
            self._model_names(schema, table_name, index_name)
            or self._claimed(schema, table_name, index_name)
            or self._lacks(what, schema, table_name, columns)
        ):
            self._report("satisfied", what)
            return
        index = self._index(index_name, table_name, columns, schema=schema, unique=unique, **options)
        existing = self._catalog.indexes(table_name, schema).get(self._key(index_name))
        if existing is None or not existing.valid:
            self._create_index(index, existing, self._busy(table_name, schema, online))
            return
        if all(isinstance(column, str) for column in columns) and None not in existing.columns:
            wanted = [self._catalog.normalize_name(str(column)) for column in columns]
            if [
                self._catalog.normalize_name(str(column)) for column in existing.columns
            ] != wanted or existing.unique != unique:
                on = ", ".join(map(str, existing.columns)) + (" (unique)" if existing.unique else "")
                raise DbSmartError(
                    f"The table {table_name!r} already has an index {index_name!r}, on {on}. "
                    "Nothing was changed. Drop it first with op.drop_index(), or give the new one another name."
                )
        self._report("satisfied", f"create_index({index_name!r}, {table_name!r})")

    @_step
    def replace_index(
        self,
        index_name: str,
        table_name: str,
        columns: ColumnNames,
        *,
        schema: str | None = None,
        unique: bool = False,
        online: bool = True,
        **options: Any,
    ) -> None:
        """Have an index be on these columns, whatever it is on now; the new one is there before the old one goes.

        If there is none of that name, it is created. Destructive if the old one keeps values apart that the new one
        does not.

        :param columns: names or expressions.
        :param options: as in :class:`sqlalchemy.Index`, such as ``postgresql_where``.
        :raises DbSmartError: the index is that of a constraint.
        :raises Refused: the new one is unique, and rows have the same values; or the migration is not marked as
            destructive.
        """
        what = f"replace_index({index_name!r}, {table_name!r})"
        if self._passed(what, schema, table_name, "index", index_name) or self._past(what, schema, table_name, columns):
            return
        self._note_back("index", schema, table_name, index_name)
        self._note("altered", "index", schema, table_name, index_name)
        if (
            self._model_names(schema, table_name, index_name)
            or self._claimed(schema, table_name, index_name)
            or self._lacks(what, schema, table_name, columns)
        ):
            self._report("satisfied", what)
            return
        index = self._index(index_name, table_name, columns, schema=schema, unique=unique, **options)
        text, indexes = _spelled(index), self._catalog.indexes(table_name, schema)
        existing, online = indexes.get(self._key(index_name)), self._busy(table_name, schema, online)
        left = self._editor.leftover(index_name)
        if existing is not None and existing.valid:
            same = self._editor.same_index(index, existing)
            if same or (same is None and self._declared("index", schema, table_name, index_name, text)):
                if left in indexes:  # of a run that was killed, and then edited
                    self._editor.drop_index(self._objects.index(left, table_name, [], schema=schema), online)
                self._report("satisfied", what)
                return
        elif left not in indexes:
            self._create_index(index, existing, online)
            self._note_declared("index", schema, table_name, index_name, text)
            return
        constraints = {} if self._editor.has_unique_keys else self._catalog.constraints(table_name, schema)
        if existing is not None and self._key(index_name) in constraints:
            raise DbSmartError(
                f"op.{what}: the index is that of a constraint. Nothing was changed. Add another constraint, and drop "
                "this one with op.drop_constraint()."
            )
        needing = [] if existing is None else self._editor.needing_index(existing.name, table_name, schema)
        if needing:
            raise DbSmartError(
                f"op.{what}: {' and '.join(needing)} {'needs' if len(needing) == 1 else 'need'} the index as it is. "
                "Nothing was changed. Create the new one with op.create_index() and another name; or first drop what "
                "needs it, and make it again afterwards."
            )
        if existing is not None and existing.unique and not self._as_strict(index, existing):
            self._ask_for_rules(table_name, schema, f"op.{what}, a unique index", f"op.{what}")
        self._report("does", what)
        name = index_name if existing is None else existing.name
        inverse = self._making_declared(what, "index", name, schema, table_name, existing is not None)
        with self._rows_said(f"op.{what}"), inverse:
            if self._foresight is not None:
                names = [getattr(expression, "name", None) for expression in index.expressions]
                self._foresight.columns(table_name, names, schema)
            self._editor.replace_index(index, existing or Index(index_name, [], False), online)
            if self._foresight is not None and unique:
                self._foresee_unique(index)
        self._note_declared("index", schema, table_name, index_name, text)

    def _as_strict(self, index: sa.Index, existing: Index) -> bool:
        """Whether an index surely keeps all values apart that a unique one which is there keeps apart."""
        new: Any = index.dialect_kwargs
        dialect, nulls = self._connection.dialect.name, "postgresql_nulls_not_distinct"
        if not index.unique or new.get(f"{dialect}_where") is not None:
            return False
        if existing.options.get(nulls) and not new.get(nulls):
            return False
        names = {one.name if isinstance(one, sa.ColumnClause) else None for one in index.expressions}
        return None not in names and {*existing.columns} == names

    def _index(self, name: str, table: str, columns: ColumnNames, **options: Any) -> sa.Index:
        index: sa.Index = self._objects.index(name, table, list(columns), **options)
        _include(index.table, options)
        return index

    def _declared(self, kind: str, schema: str | None, table: str, name: str, text: str) -> bool:
        """Whether something was made from this text last."""
        memory = self._transaction.memory
        return memory is not None and memory.declared(kind, schema, table, name) == _digest(text)

    def _note_declared(self, kind: str, schema: str | None, table: str, name: str, text: str) -> None:
        """Remember the text that something is made from."""
        self._note("declared", kind, schema, table, f"{name} {_digest(text)}")

    @_implied
    @_step
    def drop_index(self, index_name: str, table_name: str, *, schema: str | None = None, online: bool = True) -> None:
        """Drop an index if it exists; a missing table has none.

        A unique index is a constraint: dropping it is destructive if the table has rows.

        :raises Refused: it is unique, and the migration is not marked as destructive.
        """
        what = f"drop_index({index_name!r}, {table_name!r})"
        if self._passed(what, schema, table_name, "index", index_name):
            return
        found = None
        if self.has_table(table_name, schema=schema):
            found = self._catalog.indexes(table_name, schema).get(self._key(index_name))
        if found is None or self._model_names(schema, table_name, index_name):
            self._note("dropped", "index", schema, table_name, index_name)
            self._report("satisfied", what)
            return
        if found.unique and found.valid:
            self._ask_for_rules(table_name, schema, f"op.{what}, a unique index", f"op.{what}")
        self._note("dropped", "index", schema, table_name, index_name)
        index = self._objects.index(found.name, table_name, [], schema=schema)
        self._report("does", what)
        with self._making_declared(what, "index", found.name, schema, table_name, True):
            self._editor.drop_index(index, self._busy(table_name, schema, online))

    @_step
    def view(self, name: str, sql: str | sa.Select[Any], *, schema: str | None = None) -> None:
        """Have a view of a name be this query; it is made anew where it was made from another text.

        :param sql: the ``SELECT`` alone.
        :raises DbSmartError: there is a table of that name; or PostgreSQL would have to drop the view, and others need
            it.
        """
        from .session.sql import render, without_doubled_percents

        dialect = without_doubled_percents(self._connection.dialect)
        query = sql if isinstance(sql, str) else render(sql, dialect, literal_binds=True)
        place = dialect.identifier_preparer.format_table(sa.table(name, schema=schema))
        self._declare("view", name, f"CREATE VIEW {place} AS\n{_one_statement(query)}", schema)

    @_step
    def function(self, name: str, sql: str, *, schema: str | None = None) -> None:
        """Have a function of a name be what a statement makes; it is made anew where it was made from another text.

        :param sql: the whole ``CREATE FUNCTION``.
        :raises DbSmartError: the text does not make it; PostgreSQL would have to drop it, and others need it; or the
            database is SQLite, which has none.
        """
        self._declare("function", name, self._statement("function", name, sql), schema)

    @_step
    def trigger(self, name: str, sql: str, *, table: str, schema: str | None = None) -> None:
        """Have a trigger of a table be what a statement makes; it is made anew where it was made from another text.

        :param sql: the whole ``CREATE TRIGGER``.
        :raises DbSmartError: the text does not make it.
        """
        self._declare("trigger", name, self._statement("trigger", name, sql), schema, table)

    @_implied
    @_step
    def drop_view(self, name: str, *, schema: str | None = None) -> None:
        """Drop a view if it exists."""
        self._drop_declared("view", name, schema)

    @_implied
    @_step
    def drop_function(self, name: str, arguments: str | None = None, *, schema: str | None = None) -> None:
        """Drop a function if it exists.

        :param arguments: the types of its arguments, where PostgreSQL has several of that name.
        """
        self._drop_declared("function", name, schema, arguments=arguments)

    @_implied
    @_step
    def drop_trigger(self, name: str, table: str, *, schema: str | None = None) -> None:
        """Drop a trigger if it exists."""
        self._drop_declared("trigger", name, schema, table)

    def _declare(self, kind: str, name: str, text: str, schema: str | None, table: str | None = None) -> None:
        from .schema.ddl import CreateDeclared

        what = f"{kind}({name!r})"
        if self._passed(what, schema, table or "", kind, name):
            return
        there = self._catalog.has_declared(kind, name, schema, table)
        if kind == "view" and not there and self.has_table(name, schema=schema):
            raise DbSmartError(
                f"op.{what}: there is a table of that name, or a materialized view. Nothing was changed."
            )
        if kind == "trigger" and not there and self._catalog.has_declared(kind, name, schema):
            raise DbSmartError(
                f"op.{what}: another table than {table!r} has a trigger of that name, and here each name is there only "
                "once. Nothing was changed. Give it another name, or drop that one with op.drop_trigger()."
            )
        if there and self._declared(kind, schema, table or "", name, text):
            self._report("satisfied", what)
        else:
            self._report("does", what)
            with self._making_declared(what, kind, name, schema, table, there):
                self._editor.declare(CreateDeclared(kind, name, schema, table, text), there)
            if not (self._transaction.dry or self._catalog.has_declared(kind, name, schema, table)):
                where = (f" in the schema {schema!r}" if schema else "") + (f" on the table {table!r}" if table else "")
                kept = "It was taken back" if self._transaction.facts.transactional_ddl else "What it made stays"
                raise DbSmartError(
                    f"op.{what}: the statement made another {kind} than {name!r}{where}, where it is looked for. "
                    f"{kept}. Have the statement and the arguments of op.{kind}() name the same."
                )
        self._note("altered", kind, schema, table or "", name)
        self._note_declared(kind, schema, table or "", name, text)

    def _drop_declared(
        self, kind: str, name: str, schema: str | None, table: str | None = None, arguments: str | None = None
    ) -> None:
        from .schema.ddl import DropDeclared

        what = f"drop_{kind}({name!r}{'' if arguments is None else f', {arguments!r}'})"
        if arguments is not None and self._transaction.facts.name != "postgresql":
            raise DbSmartError(
                f"op.{what}: only PostgreSQL has several functions of a name, by their arguments. Nothing was changed. "
                "Leave the arguments out, or ask op.connection.dialect.name before this."
            )
        if self._passed(what, schema, table or "", kind, name):
            return
        if self._catalog.has_declared(kind, name, schema, table if kind == "trigger" else arguments):
            broken = self._editor.standing_on(name, schema) if kind == "view" else []
            if broken:
                raise DbSmartError(
                    f"op.{what}: others need it: view {', view '.join(broken)}. Nothing was dropped. Drop those first, "
                    "or have them do without it."
                )
            self._report("does", what)
            with self._making_declared(what, kind, name, schema, table, True):
                self._editor.drop_declared(DropDeclared(kind, name, schema, table, arguments))
        elif kind == "view" and self._catalog.has_materialized(name, schema):
            raise DbSmartError(
                f"op.{what}: it is a materialized view, which keeps rows. Nothing was dropped. Drop it with "
                "op.execute('DROP MATERIALIZED VIEW IF EXISTS …')."
            )
        else:
            self._report("satisfied", what)
        if arguments is None:  # else those of other arguments stay
            self._note("dropped", kind, schema, table or "", name)

    def _statement(self, kind: str, name: str, sql: str) -> str:
        """The statement that makes something, beginning with ``CREATE`` alone.

        :raises DbSmartError: it makes something else.
        """
        begin = _CREATE.match(sql)
        found = None if begin is None else _NAMED[kind].match(sql, begin.end())
        given = "" if found is None else found["name"]
        if given[:1] in ('"', "`"):
            given = given[1:-1].replace(given[0] * 2, given[0])
        elif self._transaction.facts.name == "postgresql":
            given = given.lower()
        normalize_name = self._catalog.normalize_name
        if found is None or normalize_name(given) != normalize_name(name):
            raise DbSmartError(
                f"op.{kind}({name!r}): this does not begin as CREATE {kind.upper()} {name}: {sql.strip()[:60]!r}. "
                "Nothing was changed. Give the whole statement."
            )
        return f"CREATE {found['head']}{_one_statement(sql[found.start('rest') :])}"

    def backfill(
        self,
        table: str,
        set_: Mapping[str, Any],
        *,
        where: str | sa.ColumnElement[bool] | None = None,
        schema: str | None = None,
        batch_seconds: float = 0.2,
        throttle: float = 0.0,
        pause: Callable[[], bool] | None = None,
    ) -> None:
        """Update the rows of a table in batches, each a short transaction; see :mod:`~.schema.backfill`.

        :param set_: new values by column: plain values, or SQLAlchemy expressions.
        :param where: which rows, as SQL or a SQLAlchemy expression; all if ``None``.
        :param batch_seconds: how long a batch should take, seconds.
        :param throttle: how long to rest after each batch, as a fraction of the time that it took.
        :param pause: called before each batch; the backfill waits while it returns true, for a replica for example.
        """
        from .schema.backfill import Backfill, Pace
        from .session.sql import as_written

        what, place = f"backfill({table!r})", translated(self._connection, schema)
        columns = [str(getattr(name, "name", name)) for name in set_]
        if self._passed(what, place, table) or any(
            self._passed(f"{what} of {name!r}", place, table, "column", name) for name in columns
        ):
            return
        if self._catalog.has_table(table, place):
            there = self._catalog.present(table, columns, place)
            for name in columns:
                if self._catalog.normalize_name(name) not in there and self._took(place, table, name):
                    self._report("left out", what, f"an earlier run of this migration has removed {name!r}")
                    return
        if self._catalog.has_table(table, place) and self._lacks(what, place, table, columns):
            return

        with self._leniently("backfill", (table,)):
            self._report("does", what)
            with self._stays(what):
                pass
            if self._foresight is not None:
                self._foresight.columns(table, columns, place)
            condition: Any = where
            if isinstance(where, str):  # a comment at its end is to end before our bracket
                condition = as_written(sa.text(f"{where}\n" if "--" in where or "#" in where else where))
            Backfill(self._transaction, table, place, Pace(batch_seconds, throttle, pause)).update(set_, condition)

    def batches(
        self,
        source: str | sa.TableClause | sa.GenerativeSelect,
        *,
        schema: str | None = None,
        batch_seconds: float = 0.2,
        throttle: float = 0.0,
        pause: Callable[[], bool] | None = None,
    ) -> Callable[[Callable[[Sequence[sa.Row[Any]]], object]], None]:
        """Call the decorated function with the rows of a table, batch by batch; see :mod:`~.schema.backfill`.

        What the function does by ``op.execute()``, ``op.session`` or ``op.connection`` is one short transaction,
        together with the record of how far the work is.

        :param source: a table, or a plain ``SELECT`` from one table.
        """
        from .schema.backfill import Backfill, Pace

        def run(function: Callable[[Sequence[sa.Row[Any]]], object]) -> None:
            name = getattr(function, "__name__", "function")
            place = translated(self._connection, schema)

            with self._leniently("batches", (name,)):
                self._report("does", f"batches({name})")
                with self._stays(f"batches({name})"):
                    pass
                Backfill(self._transaction, source, place, Pace(batch_seconds, throttle, pause)).call(function)

        return run

    def finish(self) -> None:
        """Commit what :attr:`connection` has left open. The runner calls it when the migration has returned.

        :raises DbSmartError: something is not created, because the migration removed it before its edit.
        """
        for thing, what in self._left_out.items():
            if thing not in self._taken_now:
                raise DbSmartError(
                    f"op.{what}: an earlier run of this migration, before its edit, removed what this creates, so it "
                    "was left out. Put it into a migration of its own, after this one."
                )
        self._transaction.settle_connection()

    @cached_property
    def _editor(self) -> SchemaEditor:
        from .dialects.editor import editor_of

        return editor_of(self._transaction, self._catalog)

    @cached_property
    def _objects(self) -> Any:
        from alembic.operations.schemaobj import SchemaObjects

        return SchemaObjects()

    def _placed(self, given: dict[str, Any], schemas: Sequence[str]) -> dict[str, Any]:
        """Arguments by name, with the schemas that the engine's ``schema_translate_map`` makes of those given."""
        return {**given, **{name: translated(self._connection, given.get(name)) for name in schemas}}

    def _referred_schema(self, table: sa.Table, schema: str | None, key: sa.ForeignKeyConstraint, _: Any) -> str | None:
        return translated(self._connection, key.referred_table.schema)

    def _described(self, table: str, items: Sequence[Any], schema: str | None, **options: Any) -> sa.Table:
        described: sa.Table = self._objects.table(table, *items, schema=schema, **options)
        return described

    def _busy(self, table: str, schema: str | None, online: bool) -> bool:
        """Whether the form is to be taken that leaves the table usable."""
        if self._new(schema, table):
            return False  # nobody uses it yet
        return self._editor.has_online and online and not self._catalog.empty(table, schema)

    def _create_table(self, described: sa.Table) -> None:
        name, schema = described.name, described.schema
        if self.has_table(name, schema=schema):
            self._report("satisfied", f"create_table({name!r})")
        else:
            self._need(described.foreign_key_constraints)
            for constraint in [*described.constraints]:
                if self._claimed(schema, name, constraint.name):
                    described.constraints.discard(constraint)
            self._note_unused(schema, name)
            self._report("does", f"create_table({name!r})")
            with self._making("drop_table", schema, name, names=[column.name for column in described.columns]):
                self._editor.create_table(described)
        self._create_indexes(described, self._busy(name, schema, True))

    def _create_indexes(self, table: sa.Table, online: bool) -> None:
        named = [
            index
            for index in table.indexes
            if index.name is not None and not self._claimed(table.schema, table.name, index.name)
        ]
        if named:
            from .session.sql import name_text

            present = self._catalog.indexes(table.name, table.schema)
            for index in sorted(named, key=lambda index: str(index.name)):
                existing = present.get(self._catalog.normalize_name(name_text(index, self._connection.dialect)))
                if existing is None or not existing.valid:
                    self._create_index(index, existing, online)

    def _create_index(self, index: sa.Index, existing: Index | None, online: bool) -> None:
        from .session.sql import name_text

        assert index.table is not None
        table, name = index.table, name_text(index, self._connection.dialect)
        what = f"create_index({name!r}, {table.name!r})"
        self._report("does", what)
        with self._rows_said(f"op.{what}"):
            if existing is not None:  # what an interrupted build has left
                self._editor.drop_index(self._objects.index(existing.name, table.name, [], schema=table.schema), online)
            if self._foresight is not None:
                names = [getattr(expression, "name", None) for expression in index.expressions]
                self._foresight.columns(table.name, names, table.schema)
            columns = [getattr(expression, "name", None) for expression in index.expressions]
            with self._making("drop_index", table.schema, table.name, name=name, names=columns):
                self._editor.create_index(index, online)
            if self._foresight is not None and index.unique:
                self._foresee_unique(index)

    def _add_constraint(
        self,
        constraint: Any,
        kind: Any,
        columns: list[str],
        online: bool,
        target: tuple[str, tuple[str, ...]] | None = None,
    ) -> None:
        from .session.sql import settle_names

        table, schema, name = constraint.table.name, constraint.table.schema, str(constraint.name)
        what = f"create {kind} {name!r} on {table!r}"
        if self._passed(what, schema, table, "constraint", name) or self._past(what, schema, table, columns):
            return
        self._note_back("constraint", schema, table, name)
        settle_names([constraint], self._connection.dialect)
        name = str(constraint.name)
        if (
            self._model_names(schema, table, name)
            or self._claimed(schema, table, name)
            or self._lacks(what, schema, table, columns)
        ):
            self._report("satisfied", what)
            return
        existing = self._catalog.constraints(table, schema).get(self._catalog.normalize_name(name))
        if existing is None:
            if isinstance(constraint, sa.ForeignKeyConstraint):
                self._need([constraint])
            self._report("does", what)
            with self._rows_said(f"The constraint {name!r} of {table!r}"):
                if self._foresight is not None:
                    self._foresight.columns(table, columns, schema)
                online = self._busy(table, schema, online)
                if kind in ("check", "unique", "primary") and self._unused(schema, table):
                    online = False  # a foreign key, though, may block the other table
                # MariaDB gives a foreign key an index of its name, where none serves it.
                implied = self._editor.has_unique_keys and kind == "foreign"
                implied = implied and self._catalog.normalize_name(name) not in self._catalog.indexes(table, schema)
                with self._making("drop_constraint", schema, table, name=name, names=columns, implied=implied):
                    self._editor.add_constraint(constraint, online)
                if self._foresight is not None and target is not None:
                    self._foresight.columns(target[0], target[1], constraint.referred_table.schema)
                self._foresee(constraint)
            return
        normalize_name = self._catalog.normalize_name
        if existing.kind != kind or (
            columns and existing.columns and [*map(normalize_name, existing.columns)] != [*map(normalize_name, columns)]
        ):
            on = f" on {', '.join(existing.columns)}" if existing.columns else ""
            raise DbSmartError(
                f"The table {table!r} already has a constraint {name!r}, of kind {existing.kind!r}{on}. Nothing was "
                "changed. Drop it first with op.drop_constraint(), or give the new one another name."
            )
        if target is not None and existing.target is not None:
            wanted, have = (
                (normalize_name(table), [*map(normalize_name, of)]) for table, of in (target, existing.target)
            )
            other = wanted[0] != have[0] or (wanted[1] and have[1] and wanted[1] != have[1])
            # If what is asked for does not exist, a later migration has given it the name that it has now.
            if other and self._is_there(constraint.referred_table, target[1]):
                raise DbSmartError(
                    f"The table {table!r} already has a foreign key {name!r}, to {existing.target[0]!r} "
                    f"({', '.join(existing.target[1])}). Nothing was changed. Drop it first with op.drop_constraint(), "
                    "or give the new one another name."
                )
        differs = self._otherwise(constraint, existing)
        if differs is not None:
            # What was once skipped silently must fail neither when it runs again nor on a new database.
            memory = self._transaction.memory
            new = self._fresh or (memory is not None and memory.unused(schema, table))
            if not (self._transaction.repeated or new):
                raise DbSmartError(
                    f"The table {table!r} already has a constraint {name!r}, {differs}. Nothing was changed. Drop it "
                    "first with op.drop_constraint(), or give the new one another name."
                )
            self._report("left out", what, f"it exists, {differs}")
        elif existing.valid:
            self._report("satisfied", what)
        self._editor.finish_constraint(constraint, existing)

    def _otherwise(self, constraint: Any, existing: Constraint) -> str | None:
        """How an existing check or foreign key surely differs from this one; ``None`` if it may be the same."""
        if isinstance(constraint, sa.CheckConstraint):
            if self._editor.same_condition(constraint, existing):
                return None
            return f"with another condition: {existing.condition}"
        if not isinstance(constraint, sa.ForeignKeyConstraint):
            return None
        schema = constraint.referred_table.schema
        if existing.schema is not None and schema is not None and existing.schema != schema:
            return f"to a table of the schema {existing.schema!r}"
        if existing.options is None:
            return None
        facts = self._transaction.facts
        for name, usual in _KEY_OPTIONS.items():
            if not facts.shows_key_options and not name.startswith("on"):
                continue  # the others do not show it
            wanted, have = (
                str(value or usual).upper() for value in (getattr(constraint, name), existing.options.get(name))
            )
            if name == "deferrable" and str(constraint.initially).upper() == "DEFERRED":
                wanted = "TRUE"
            if wanted != have and not (facts.restrict_is_no_action and {wanted, have} == {"NO ACTION", "RESTRICT"}):
                return f"with {name} {have}"
        return None

    def _is_there(self, table: sa.Table, columns: Sequence[str]) -> bool:
        """Whether there is such a table with such columns."""
        if not self.has_table(table.name, schema=table.schema):
            return False
        return len(self._catalog.present(table.name, columns, table.schema)) == len(columns)

    def _alter(self, change: Any, what: str, online: bool) -> None:
        if change.empty:
            self._report("satisfied", what)
            return
        self._report("does", what)
        with self._rows_said(f"op.{what}"), self._making_column(what, change):
            self._editor.alter_column(change, self._busy(change.table, change.schema, online))
            if self._foresight is not None:
                where = (f"op.{what}", change.table, change.schema, change.name or str(change.existing["name"]))
                if change.nullable is False:
                    self._foresight.not_null(*where)
                if change.type_ is not None and self._transaction.facts.enforces_lengths:
                    self._foresight.fits(*where, change.type_)

    def _making(self, op: str, schema: str | None, table: str, **inverse: Any) -> AbstractContextManager[None]:
        """Make a change of a table, and keep what takes it back; see :mod:`~.undo.inverses`."""
        return self._transaction.making(op, schema=schema, table=table, **inverse)

    def _cannot(self, what: str, why: str) -> AbstractContextManager[None]:
        """Make a change that nothing takes back."""
        return self._transaction.making("cannot", what=what, why=why)

    def _stays(self, what: str) -> AbstractContextManager[None]:
        """Make a change that is left as it is when the rest is taken back."""
        return self._transaction.making("stays", what=what)

    @contextmanager
    def _making_column(self, what: str, change: Change) -> Iterator[None]:
        """Change a column, and keep how it was."""
        from .schema.column_types import as_json

        if self._transaction.dry:
            yield
            return
        existing, inverse = change.existing, dict[str, Any]()
        name = change.name or change.column
        if change.type_ is not None:
            inverse["type"] = as_json(existing["type"], self._connection.dialect)
        if change.nullable is not None:
            inverse["nullable"] = existing["nullable"]
        if change.server_default is not False:
            inverse["default"] = self._editor.default(change)
        if change.comment is not False:
            inverse["comment"] = self._editor.comment(change)
        with ExitStack() as kept:
            if change.checks:
                kept.enter_context(self._stays(what))
            elif change.type_ is not None and (
                inverse["type"] is None or self._editor.type_is(existing["type"], change.type_) == "other"
            ):
                kept.enter_context(self._cannot(what, "the values may have been converted"))
            elif inverse:
                kept.enter_context(self._making("alter_column", change.schema, change.table, name=name, **inverse))
            if change.name is not None:
                place = change.schema, change.table
                kept.enter_context(self._making("rename_column", *place, name=change.name, to=change.column))
            yield

    def _making_declared(
        self, what: str, kind: str, name: str, schema: str | None, table: str | None, there: bool
    ) -> AbstractContextManager[None]:
        """Put what has a text in the place of another one, or drop that, and keep that text."""
        text = self._catalog.declared(kind, name, schema, table) if there and not self._transaction.dry else None
        if there and text is None:
            return self._cannot(what, "what was there before is not kept")
        return self._making("declare", schema, table or "", kind=kind, name=name, text=text)

    @contextmanager
    def _rows_said(self, what: str) -> Iterator[None]:
        """Name the rule if rows are in the way of a form that has not said so itself.

        :raises Refused: they are.
        """
        try:
            yield
        except sa.exc.DBAPIError as error:
            if not self._transaction.facts.says(error, "old rows"):
                raise

            said = f"The database says: {self._transaction.database.redact(error)}. "
            raise Refused(OLD_ROWS, what, said) from error

    @cached_property
    def _foresight(self) -> Foresight | None:
        """In a dry run, what asks whether rows would be in the way; ``None`` when the run is real."""
        if self._transaction.dry is None:
            return None
        from .schema.foresight import Foresight

        return Foresight(self._transaction.dry.catalog)

    def _foresee(self, constraint: Any, what: str | None = None) -> None:
        """In a dry run, see whether rows would break a constraint.

        :raises Refused: they would.
        """
        if self._foresight is None:
            return
        table, schema = constraint.table.name, constraint.table.schema
        what = what or f"The constraint {str(constraint.name)!r} of {table!r}"
        if isinstance(constraint, sa.ForeignKeyConstraint):
            self._foresight.foreign(what, constraint)
        elif isinstance(constraint, (sa.UniqueConstraint, sa.PrimaryKeyConstraint)):
            self._foresight.unique(what, table, schema, [column.name for column in constraint.columns])
        elif isinstance(constraint, sa.CheckConstraint):
            self._foresight.check(what, table, schema, constraint.sqltext)

    def _foresee_unique(self, index: sa.Index) -> None:
        assert self._foresight is not None
        assert index.table is not None
        columns = [getattr(expression, "name", None) for expression in index.expressions]
        options: Any = index.dialect_kwargs
        where = options.get(f"{self._connection.dialect.name}_where")
        if not any(column is None for column in columns):
            what = f"op.create_index({str(index.name)!r}, {index.table.name!r}, unique=True)"
            self._foresight.unique(what, index.table.name, index.table.schema, [str(one) for one in columns], where)

    def _foresee_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]]) -> None:
        """In a dry run, see whether rows would break what comes with new columns, by what the columns have in them."""
        if self._foresight is None:
            return
        names = {column.name for column in columns}
        what = f"op.add_columns({table.name!r}, {', '.join(map(repr, sorted(names)))})"
        for constraint in table.constraints:
            if names & {column.name for column in getattr(constraint, "columns", ())}:
                self._foresee(constraint, what)
        for column in columns:
            for check in column.constraints:
                if isinstance(check, sa.CheckConstraint):
                    self._foresight.check(what, table.name, table.schema, check.sqltext)

    def _same_default(self, change: Change, wanted: Any) -> bool:
        """Whether a column has a default already, by what the database shows of it; in doubt it is set again."""
        from .schema.defaults import same_default

        return same_default(self._editor.default(change), self._default_text(wanted), self._transaction.dialect)

    def _default_text(self, default: Any) -> str | None:
        from .session.sql import default_text

        column = sa.Column("c", sa.types.NullType(), server_default=default)
        return default_text(column, self._connection.dialect)

    @property
    def _fresh(self) -> bool:
        """Whether this is the run that made tables from the models."""
        return self._transaction.memory is not None and self._transaction.memory.fresh

    def _new(self, schema: str | None, table: str) -> bool:
        return self._transaction.memory is not None and self._transaction.memory.new(schema, table)

    def _model(self, schema: str | None, table: str) -> sa.Table | None:
        return None if self._transaction.memory is None else self._transaction.memory.model(schema, table)

    def _defines(self, schema: str | None, table: str, column: str) -> bool:
        return self._transaction.memory is not None and self._transaction.memory.defines(schema, table, column)

    def _model_has(self, what: str, schema: str | None, table: str, column: str) -> bool:
        """Whether a table that was made from its model has a column of it, so that there is nothing to do."""
        if not self._defines(schema, table, column) or not self.has_column(table, column, schema=schema):
            return False
        self._report("satisfied", what)
        return True

    def _fill_as_added(self, schema: str | None, table: str, column: sa.Column[Any]) -> None:
        """Give rows of older migrations what a column, which the model has, would have given them when it was added."""
        default, memory = column.server_default, self._transaction.memory
        if not isinstance(default, sa.DefaultClause) or memory is None:
            return
        memory.defaults[schema, memory.normalize_name(table), memory.normalize_name(column.name)] = default.arg
        if self._may_have_rows(schema, table):
            self._transaction.send(as_default(table, schema, column.name, default.arg))

    def _may_have_rows(self, schema: str | None, table: str) -> bool:
        """Whether a table has rows, or would have some by now, which a dry run does not know for sure."""
        dry = self._transaction.dry
        return (dry is not None and dry.rows_changed) or not self._catalog.empty(table, schema)

    def _model_names(self, schema: str | None, table: str, name: str) -> bool:
        """Whether the model that a table was made from has an index or a constraint of this name."""
        model = self._model(schema, table)
        if model is None:
            return False
        items: list[Any] = [*model.indexes, *model.constraints]
        return self._key(name) in {self._key(str(item.name)) for item in items if item.name}

    def _key(self, name: str) -> str:
        """By what the catalog knows an index or a constraint, whose long name may have been shortened."""
        from .session.sql import short_name

        return self._catalog.normalize_name(short_name(name, self._connection.dialect))

    def _claimed(self, schema: str | None, table: str, name: Any) -> bool:
        """Whether the models have an index or a constraint of this name on another table, which was made from them.

        That is the one that this table gets a new name for, where it has none of a model; and such names may be those
        of a whole schema.
        """
        if not name or not self._new(schema, table) or self._model(schema, table) is not None:
            return False
        memory = self._transaction.memory
        return memory is not None and memory.claims(schema, str(name))

    def _lacks(self, what: str, schema: str | None, table: str, columns: Sequence[Any]) -> bool:
        """Whether a new table lacks one of these columns: the models no longer have it, or a migration dropped it."""
        memory = self._transaction.memory
        if not (self._new(schema, table) or (memory is not None and memory.left(self._name))):
            return False
        names = [column for column in columns if isinstance(column, str)]
        there = self._catalog.present(table, names, schema)
        for name in names:
            if self._catalog.normalize_name(name) not in there:
                self._report("left out", what, f"the models no longer have {name!r}")
                return True
        return False

    @contextmanager
    def _leniently(self, name: str, arguments: tuple[Any, ...]) -> Iterator[None]:
        """Leave a block out if it needs what no longer exists; see :meth:`~.store.memory.Memory.excuses`."""

        def left_out(error: Exception) -> None:
            reason = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else str(error)
            self._report("left out", _called(name, arguments), f"what it needs no longer exists: {reason}")

        with self._transaction.leniently(left_out):
            yield

    def _followed(
        self, schema: str | None, table: str, columns: tuple[sa.Column[Any], ...]
    ) -> tuple[str, tuple[sa.Column[Any], ...]]:
        """The name that later migrations have given to a table, and those of the columns that they left alone.

        Only for what an edit or an inserted migration adds: what is repeated exists already, by whatever name.
        """
        memory = self._transaction.memory
        if memory is None or memory.fresh or self._transaction.repeated:
            return table, columns
        seen = {table}
        while (name := memory.name_now(self._name, schema, table)) not in (None, *seen):
            assert name is not None
            seen.add(name)
            decided = [memory.later(self._name, "column", schema, table, one.name) for one in columns]
            columns = tuple(one for one, event in zip(columns, decided, strict=True) if event is None)
            table = name
        return table, columns

    def _passed(self, what: str, schema: str | None, table: str, kind: str = "table", name: str = "") -> bool:
        """Whether a migration defined later than this one has decided what becomes of a table, or of a part of it."""
        memory = self._transaction.memory
        if memory is None:
            return False
        event = memory.later(self._name, "table", schema, table)
        if event is None and kind != "table":
            event = memory.later(self._name, kind, schema, table, name)
        if event is None:
            return False
        done = "created again" if event.event == "back" else event.event
        self._report("left out", what, f"{event.name or event.table_name!r} was {done} later by {event.migration!r}")
        return True

    def _did(self, kind: str, schema: str | None, table: str, name: str = "") -> list[str]:
        """What earlier runs of this very migration have done to an object."""
        memory = self._transaction.memory
        return [] if memory is None else memory.did(self._name, kind, schema, table, name)

    def _took(self, schema: str | None, table: str, column: str) -> bool:
        return bool({"dropped", "renamed"} & {*self._did("column", schema, table, column)})

    def _past(self, what: str, schema: str | None, table: str, columns: Sequence[Any]) -> bool:
        """Whether one of the columns of an index or constraint has another name since, or is gone."""
        names = [column for column in columns if isinstance(column, str)]
        if any(self._passed(what, schema, table, "column", name) for name in names):
            return True
        taken = [name for name in names if self._took(schema, table, name)]
        if taken and self.has_table(table, schema=schema):
            there = self._catalog.present(table, taken, schema)
            for name in taken:
                if self._catalog.normalize_name(name) not in there:
                    self._report("left out", what, f"an earlier run of this migration has removed {name!r}")
                    return True
        return False

    def _thing(self, kind: str, schema: str | None, table: str, name: str = "") -> tuple[str, ...]:
        return kind, schema or "", self._catalog.normalize_name(table), self._catalog.normalize_name(name)

    def _taking(self, function: str, arguments: Mapping[str, Any]) -> None:
        """Take note of an operation that takes a column or a table away, also where it is done already."""
        schema, column = arguments.get("schema"), arguments.get("column_name", "")
        table = arguments.get("table_name", arguments.get("old_table_name"))
        if function != "alter_column" or arguments.get("new_column_name") is not None:
            self._taken_now.add(self._thing("column" if column else "table", schema, str(table), column))

    def _taken_after(self, what: str, kind: str, schema: str | None, table: str, name: str = "") -> bool:
        """Whether this migration drops or renames afterwards what it makes here, as its earlier run did."""
        thing = self._thing(kind, schema, table, name)
        if self._did(kind, schema, table, name)[-1:] not in (["dropped"], ["renamed"]) or thing in self._taken_now:
            return False
        self._left_out[thing] = what
        self._report("left out", what, "an earlier run of this migration has removed it")
        return True

    def _made_again(self, what: str, schema: str | None, table: str, kind: str = "table", name: str = "") -> bool:
        """Whether what is to be dropped, or to get another name, is what this migration made in its place."""
        if self._did(kind, schema, table, name)[-1:] != ["back"]:
            return False
        self._report("left out", what, "an earlier run has done so, and created the present one afterwards")
        return True

    def _made_since(self, what: str, schema: str | None, table: str, column: str = "") -> bool:
        """Whether a complete run of this migration has removed it before, and it has come back with rows since.

        Somebody has brought it back without a migration; what older migrations bring back when they run again is empty.
        """
        memory = self._transaction.memory
        done = {"dropped", "renamed"} & {*self._did("column" if column else "table", schema, table, column)}
        if memory is None or not done or not memory.finished(self._name):
            return False
        if self._no_values(schema, table, column) if column else self._catalog.empty(table, schema):
            return False
        self._report("left out", what, "an earlier run has done so; the present one was created later, and has rows")
        return True

    def _no_values(self, schema: str | None, table: str, column: str) -> bool:
        target: Any = sa.column(column)
        query = sa.select(sa.literal(1)).select_from(sa.table(table, schema=schema)).where(target.is_not(None)).limit(1)
        return self._connection.execute(query).first() is None and not self._catalog.hides_rows(table, schema)

    def _note(self, event: str, kind: str, schema: str | None, table: str, name: str = "") -> None:
        self._transaction.note(self._name, event, kind, schema, table, name)

    def _note_first_run(self, event: str, schema: str | None, table: str) -> None:
        if self._transaction.memory is not None:
            self._transaction.note(self._transaction.memory.module, event, "table", schema, table)

    def _note_back(self, kind: str, schema: str | None, table: str, name: str = "") -> None:
        """Remember that something is there again that a migration has taken away before."""
        memory = self._transaction.memory
        if memory is not None and memory.gone(kind, schema, table, name):
            self._note("back", kind, schema, table, name)

    def _note_altered(
        self,
        schema: str | None,
        table: str,
        column: str,
        type_: Any,
        nullable: bool | None,
        server_default: Any,
        comment: str | Literal[False] | None,
    ) -> None:
        """Remember what this migration decides of a column, also where it is so already, as in the models."""
        for kind, given in (("type", type_ is not None), ("nullable", nullable is not None)):
            if given:
                self._note("altered", kind, schema, table, column)
        for kind, changes in (("default", server_default is not False), ("comment", comment is not False)):
            if changes:
                self._note("altered", kind, schema, table, column)

    def _note_renamed(self, kind: str, schema: str | None, old: str, new: str, *, column: str | None = None) -> None:
        """Remember a new name of a table; or, with ``column``, of a column of the table ``old``."""
        if column is None:
            self._note("renamed", kind, schema, old)
            if self._transaction.memory is not None:
                self._note("renamed", self._transaction.memory.new_name, schema, old, new)
            self._note_back(kind, schema, new)
        else:
            self._note("renamed", kind, schema, old, column)
            self._note_back(kind, schema, old, new)

    def _alter_as_model(self, what: str, schema: str | None, table: str, column: str, new: str | None) -> bool:
        """Decide whether to alter a column of a table that was made from its model.

        :returns: whether it is to be done: where the model does not have the column.
        """
        there = self._catalog.present(table, [column, *([] if new is None else [new])], schema)
        old = self._catalog.normalize_name(column) in there
        if new is not None:
            if old and self._defines(schema, table, new) and not self._defines(schema, table, column):
                self._note_renamed("column", schema, table, new, column=column)
                self._report("does", f"{what} to {new!r}")
                with self._cannot(what, _FIRST_RUN):
                    self._replace_column(schema, table, column, new)
                return False
            if not old or self._defines(schema, table, column):
                self._note_renamed("column", schema, table, new, column=column)
                self._report("left out", f"{what} to {new!r}", "the models already have it differently")
                return False
        if not old or self._defines(schema, table, column):
            self._report("satisfied", what)
            return False
        return True

    def _replace_column(self, schema: str | None, table: str, old: str, new: str) -> None:
        """Drop a column that this first run has added, as the model has it by its new name; its values go there."""
        if self._may_have_rows(schema, table):
            target = sa.table(table, sa.column(old), sa.column(new), schema=schema)
            self._transaction.send(target.update().values({new: target.c[old]}).where(target.c[old].is_not(None)))
        self._editor.drop_column(table, old, schema, False)

    def _reset(self, model: sa.Table, schema: str | None, what: str) -> bool:
        """Take back what older migrations did to a table that the models have again after it was dropped.

        :returns: whether there was anything.
        """
        table, normalize_name = model.name, self._catalog.normalize_name
        if not self.has_table(table, schema=schema):
            return False
        columns, indexes = (
            {normalize_name(str(one.name)) for one in items} for items in (model.columns, model.indexes)
        )
        more = [one["name"] for key, one in self._catalog.columns(table, schema).items() if key not in columns]
        named = {normalize_name(str(one.name)) for one in model.constraints if one.name} | indexes
        extra = [
            index.name
            for key, index in self._catalog.indexes(table, schema).items()
            if key not in named
            and {normalize_name(str(column)) for column in index.columns} & {normalize_name(name) for name in more}
        ]
        empty = self._catalog.empty(table, schema)
        if not (more or extra) and empty:
            return False
        self._report("does", what)
        if not empty and not self._transaction.dry and self._destructive:
            self._connection.execute(sa.table(table, schema=schema).delete())
        with self._cannot(what, _FIRST_RUN):
            for name in extra:
                self._editor.drop_index(self._objects.index(name, table, [], schema=schema), False)
            for name in more:
                self._editor.drop_column(table, name, schema, False)
        return True

    def _need(self, constraints: Iterable[sa.ForeignKeyConstraint]) -> None:
        """Make sure, on the run that made the tables, that the targets of foreign keys are there.

        SQLite does not need them, and MariaDB does not say that one is missing.

        :raises sqlalchemy.exc.NoSuchTableError: one is missing; what needs it is left out.
        """
        if not self._fresh or not self._transaction.facts.key_needs_target:
            return
        for constraint in constraints:
            if constraint.use_alter:  # added later, when its target is there
                continue
            target, own = constraint.referred_table, constraint.table
            if (target.name, target.schema) != (own.name, own.schema) and not self.has_table(
                target.name, schema=target.schema
            ):
                raise sa.exc.NoSuchTableError(target.name)

    def _keys_to(self, table: str, schema: str | None) -> list[tuple[str, Any]]:
        """The named foreign keys of other tables to a table, with the names of those; none in a dry run."""
        if self._transaction.dry:
            return []
        inspector = self._catalog.inspector
        names = [name for name in inspector.get_table_names(schema) if name != table]
        return [
            (name, key)
            for name in names
            for key in inspector.get_foreign_keys(name, schema)
            if key["name"] and key["referred_table"] == table and key["referred_schema"] in (None, schema)
        ]

    def _drop_key(self, table: str, key: Any, schema: str | None) -> None:
        self._editor.drop_constraint(self._objects.generic_constraint(key["name"], table, "foreignkey", schema=schema))

    def _add_key(self, table: str, key: Any, target: str, schema: str | None) -> None:
        constraint = self._objects.foreign_key_constraint(
            key["name"],
            table,
            target,
            key["constrained_columns"],
            key["referred_columns"],
            source_schema=schema,
            referent_schema=schema,
            **key["options"],
        )
        self._editor.add_constraint(constraint, False)

    def _replace_table(self, old: str, new: str, schema: str | None) -> None:
        """Drop a table that this first run has created, as the models have it by its new name; its rows go there."""
        if not self._catalog.empty(old, schema):
            if not self._catalog.empty(new, schema):
                raise DbSmartError(f"op.rename_table({old!r}, {new!r}): both tables have rows. Nothing was renamed.")
            target, source = self._catalog.columns(new, schema), self._catalog.columns(old, schema)
            # What the models do not have is to get another name too, or to be dropped, and may be read before.
            more = [sa.Column(one["name"], one["type"]) for key, one in source.items() if key not in target]
            if more:
                self._add_columns(self._described(new, [*more], schema), more, False)
            names = [column["name"] for column in source.values()]
            columns: list[Any] = [sa.column(name) for name in names]
            rows = sa.select(*columns).select_from(sa.table(old, *columns, schema=schema))
            into = sa.table(new, *(sa.column(name) for name in names), schema=schema)
            self._transaction.send(into.insert().from_select(names, rows))
            self._editor.rows_moved(new, schema, names)
        for name, key in self._keys_to(old, schema):
            self._drop_key(name, key, schema)
            self._add_key(name, key, new, schema)
        self._editor.drop_table(self._described(old, [], schema))

    def _ask(self, rule: Rule, what: str, instead: Callable[[], str] = str) -> None:
        """Refuse what destroys or breaks something, unless the migration says that it may.

        :param instead: gives the migration to write instead.
        :raises Refused: it does not.
        """
        if not self._destructive:
            why = self._allow.get(rule.id)
            self._transaction.refuse(Refused(rule, what, instead="" if why else instead()), why)

    def _ask_for_rules(self, table: str, schema: str | None, what: str, call: str) -> None:
        """Refuse to drop a constraint of a table that has rows and that a release may use.

        :param call: of the operation.
        :raises Refused: the migration does not say that it may.
        """
        unused = self._unused(schema, table) or self._new(schema, table)
        if not unused and not self._catalog.empty(table, schema):
            from .schema.instead import dropped

            self._ask(DROP_CONSTRAINT, what, lambda: dropped(self._name, call.replace("'", '"')))

    def _unused(self, schema: str | None, table: str) -> bool:
        """Whether a run that is not complete, or this dry one, has created a table, so that no release uses it yet."""
        if self._transaction.dry and self._catalog.stored(table, schema) is None:
            return True
        return self._transaction.memory is not None and self._transaction.memory.unused(schema, table)

    def _note_unused(self, schema: str | None, table: str) -> None:
        """Remember that this run creates a table; a script of a dry one is complete when it ends."""
        memory = self._transaction.memory
        if memory is not None and not self._transaction.dry:
            self._transaction.note(memory.module, *memory.created, schema, table)


def _include(table: Any, options: Mapping[str, Any]) -> None:
    """Give a table that stands for another the columns that an index of PostgreSQL includes."""
    for column in options.get("postgresql_include") or ():
        if column not in table.c:
            table.append_column(sa.Column(column, sa.types.NullType()))


def _one_statement(sql: str) -> str:
    """A statement without the semicolon at its end."""
    return sql.strip().rstrip(";").rstrip()


def _digest(text: str) -> str:
    """What a text is remembered by."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _called(name: str, arguments: tuple[Any, ...]) -> str:
    """An operation in short, by the names that it was given."""
    return f"{name}({', '.join(repr(one) for one in arguments if isinstance(one, str))})"


def _spelled(value: Any) -> str:
    """Arguments of an operation as text, with all that is said in them, so that an edit makes another text."""
    if isinstance(value, str):
        return _ADDRESS.sub("", repr(value))
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=_spelled)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_spelled, value)) + ")"
    table = getattr(value, "__table__", value) if isinstance(value, type) else value
    if isinstance(table, sa.Table):
        parts: list[Any] = [*table.columns, *sorted(table.indexes, key=lambda index: str(index.name))]
        return f"{_ADDRESS.sub('', repr(value))}{_spelled(parts)}"
    text = _ADDRESS.sub("", repr(value))
    if isinstance(value, (sa.schema.SchemaItem, sa.FetchedValue)):
        # The representation of an expression within is its address only, and some things have no place in it.
        kind: Any = type(value)
        said, own, shared = [text], vars(value), _said_by(kind)
        for name in _SAID:
            # To ask a column for what it lacks takes long: it looks for an operator of its type.
            part = getattr(value, name, None) if name in own or name in shared else None
            if part is None or part is value:
                continue
            if ismethod(part):  # as its representation is, with that of the column, which is known
                said.append(f" {name}=<bound method {part.__qualname__} of {text}>")
            else:
                said.append(f" {name}={_spelled(part)}")
        return "".join(said)
    if isinstance(value, sa.ClauseElement):
        return f"{text} {value} {_spelled(value.compile().params)}"
    return text


@cache
def _said_by(kind: type) -> frozenset[str]:
    """Which of :data:`_SAID` all objects of a class have, such as properties."""
    return frozenset(name for name in _SAID if hasattr(kind, name))


def _copied(item: sa.schema.SchemaItem) -> sa.schema.SchemaItem:
    """A copy of a column or constraint, so that it can be used for several tables.

    SQLAlchemy copies no constraint that names its columns and has no table yet.
    """
    if not isinstance(item, (sa.Column, sa.Constraint)):
        return item
    options: dict[str, Any] = {}
    if isinstance(item, sa.Constraint) and getattr(item, "parent", None) is None:
        options = {name: getattr(item, name) for name in ("name", "deferrable", "initially", "comment")}
        options |= dict(getattr(item, "dialect_kwargs", {}))
    if options and isinstance(item, sa.ForeignKeyConstraint):
        options |= {
            name: getattr(item, name) for name in ("onupdate", "ondelete", "use_alter", "link_to_name", "match")
        }
        targets = [key._colspec for key in item.elements]
        return sa.ForeignKeyConstraint(item.column_keys, cast(Any, targets), **options)
    if options and type(item) in (sa.UniqueConstraint, sa.PrimaryKeyConstraint):
        names = [getattr(column, "name", column) for column in cast(Any, item)._pending_colargs]
        return type(item)(*names, **options)
    if options and hasattr(item, "_render_exprs"):  # an exclusion constraint of PostgreSQL
        exclusion: Any = item
        pairs = ((expression, operator) for expression, _, operator in exclusion._render_exprs)
        options = {name: options[name] for name in ("name", "deferrable", "initially")}
        options |= {name: getattr(exclusion, name) for name in ("where", "using", "ops")}
        return cast(sa.Constraint, type(exclusion)(*pairs, **options))
    return item._copy()


def _has_value(column: sa.Column[Any]) -> bool:
    """Whether the rows that are there get a value of a new column."""
    return column.server_default is not None or column.computed is not None or column.identity is not None
