"""Schema operations for migrations: idempotent, rendered by Alembic and SQLAlchemy.

Each looks at the database before it acts, so that a migration that was cut short, or is run again after an
edit, does only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from .database import Database
from .errors import DbSmartError

if TYPE_CHECKING:
    from alembic.operations import Operations as AlembicOperations
    from flask_sqlalchemy import SQLAlchemy
    from flask_sqlalchemy.session import Session
    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import scoped_session
    from sqlalchemy.sql.base import Executable


class _Index(NamedTuple):
    """An index as the database has it; an expression among its columns is ``None``."""

    columns: list[str | None]
    unique: bool


_SQLITE_COLUMNS = sa.text(
    "SELECT lower(name), cid FROM pragma_table_xinfo(:table, :schema) WHERE cid = 0 OR lower(name) IN :names"
).bindparams(sa.bindparam("names", expanding=True))
_SQLITE_INDEXES = sa.text(
    'SELECT i.name, i."unique", c.name FROM pragma_index_list(:table, :schema) AS i, '
    "pragma_index_info(i.name, :schema) AS c ORDER BY i.name, c.seqno"
)


class Operations:
    """What a migration may do to its database. One object serves one run of one migration.

    Names are plain names: quoting, reserved words and schemas are taken care of.

    :param database: the database being migrated.
    :param connection: the connection that the operations use, in the runner's transaction.
    :param engine: gives the engine that ``db.engine`` is during the migration.
    :param db: the application's Flask-SQLAlchemy.
    """

    def __init__(
        self, database: Database, connection: sa.Connection, engine: Callable[[], Engine], db: SQLAlchemy
    ) -> None:
        self._database = database
        self._connection = connection
        self._engine = engine
        self._db = db
        self._own_connection: sa.Connection | None = None

    @property
    def session(self) -> scoped_session[Session]:
        """``db.session``, in this migration's transaction; it is committed with the migration."""
        return self._db.session

    @property
    def connection(self) -> sa.Connection:
        """A connection in this migration's transaction. Committing it is allowed, and not needed."""
        if self._own_connection is None:
            self._own_connection = self._engine().connect()
        return self._own_connection

    @property
    def inspector(self) -> sa.Inspector:
        """A fresh inspector: it sees what this migration has changed so far."""
        return sa.inspect(self._connection)

    def execute(
        self,
        statement: str | Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> sa.CursorResult[Any]:
        """Run one SQL statement.

        :param statement: SQL with ``:name`` for bound parameters, or a SQLAlchemy statement.
        :param parameters: values by name, or a sequence of such for one run each.
        :raises sqlalchemy.exc.DBAPIError: the database refused it.
        """
        query = sa.text(statement) if isinstance(statement, str) else statement
        # Where schema changes commit, the statement must be recorded as a step, which the engine's connections do.
        connection = self._connection if self._database.transactional_ddl else self.connection
        return connection.execute(query, parameters)

    def has_table(self, table: str, *, schema: str | None = None) -> bool:
        """Whether there is such a table or view."""
        return self.inspector.has_table(table, schema=schema)

    def has_column(self, table: str, column: str, *, schema: str | None = None) -> bool:
        """Whether the table has such a column.

        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        return bool(self._present(table, [column], schema))

    def add_column(self, table: str, column: sa.Column[Any], *, schema: str | None = None) -> None:
        """Add one column where it is missing; see :meth:`add_columns`."""
        self.add_columns(table, column, schema=schema)

    def add_columns(self, table: str, *columns: sa.Column[Any], schema: str | None = None) -> None:
        """Add those columns that the table lacks, with their foreign keys, unique constraints and indexes.

        PostgreSQL and MariaDB do it in one ``ALTER TABLE``. SQLite adds columns one by one, and a unique column gets a
        unique index, as its ``ALTER TABLE`` has no constraints.

        :param columns: columns as in a model; they are copied, so that a list of them can be used again.
        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        copies = [column._copy() for column in columns]
        present = self._present(table, [column.name for column in copies], schema)
        if len(present) == len(copies) and not any(column.index for column in copies):
            return
        from alembic.operations.schemaobj import SchemaObjects

        from .ddl import AddColumns

        described = SchemaObjects().table(table, *copies, schema=schema)
        missing = [column for column in copies if self._fold(column.name) not in present]
        for column in missing:
            # PostgreSQL's native enumerations are types of their own, which ALTER TABLE does not make.
            create = getattr(column.type.dialect_impl(self._connection.dialect), "create", None)
            if create is not None:
                create(self._connection, checkfirst=True)
        if missing and self._database.dialect == "sqlite":
            for column in missing:
                unique, column.unique = column.unique, None
                self._connection.execute(AddColumns(described, [column]))
                if unique:
                    name = f"uq_{table}_{column.name}"
                    self.create_index(name, table, [column.name], schema=schema, unique=True)
        elif missing:
            names = {column.name for column in missing}
            constraints = [
                constraint
                for constraint in described.constraints
                if not isinstance(constraint, sa.PrimaryKeyConstraint)
                and {column.name for column in getattr(constraint, "columns", ())} & names
            ]
            self._connection.execute(AddColumns(described, missing, constraints))
            for column in missing:
                if column.comment is not None and not self._connection.dialect.inline_comments:
                    self._connection.execute(sa.schema.SetColumnComment(column))
        self._create_indexes(described)

    def create_table(self, table: str, *items: sa.schema.SchemaItem, schema: str | None = None, **options: Any) -> None:
        """Create a table where it is missing, and those of its indexes that are missing.

        A table that exists is left as it is, whatever its columns.

        :param items: columns and constraints.
        :param options: as in :class:`sqlalchemy.Table`, such as ``comment`` or ``mysql_engine``.
        """
        copies = [item._copy() if isinstance(item, (sa.Column, sa.Constraint)) else item for item in items]
        if self.has_table(table, schema=schema):
            from alembic.operations.schemaobj import SchemaObjects

            self._create_indexes(SchemaObjects().table(table, *copies, schema=schema, **options))
        else:
            self._alembic.create_table(table, *copies, schema=schema, **options)

    def create_index(
        self,
        name: str,
        table: str,
        columns: Sequence[str | sa.TextClause | sa.ColumnElement[Any]],
        *,
        schema: str | None = None,
        unique: bool = False,
        **options: Any,
    ) -> None:
        """Create an index where there is none of that name.

        :param columns: names or expressions.
        :param options: as in :class:`sqlalchemy.Index`, such as ``postgresql_where``.
        :raises DbSmartError: the table has an index of that name on other columns.
        """
        existing = self._indexes(table, schema).get(self._fold(name))
        if existing is None:
            self._alembic.create_index(name, table, list(columns), schema=schema, unique=unique, **options)
            return
        if all(isinstance(column, str) for column in columns) and None not in existing.columns:
            wanted = [self._fold(str(column)) for column in columns]
            if [self._fold(str(column)) for column in existing.columns] != wanted or existing.unique != unique:
                raise DbSmartError(
                    f"The table {table!r} already has an index {name!r}, on {', '.join(map(str, existing.columns))}"
                    f"{' (unique)' if existing.unique else ''}. Drop it first with op.drop_index(), "
                    "or give the new one another name."
                )

    def drop_index(self, name: str, table: str, *, schema: str | None = None) -> None:
        """Drop an index where there is one; a table that is missing has none."""
        if self.has_table(table, schema=schema) and self._fold(name) in self._indexes(table, schema):
            self._alembic.drop_index(name, table, schema=schema)

    def finish(self) -> None:
        """Commit and close :attr:`connection` if it was used. The runner calls it when the migration has returned."""
        if self._own_connection is not None:
            self._own_connection.commit()
            self.close()

    def close(self) -> None:
        """Close :attr:`connection` if it was used, rolling back what it left open."""
        if self._own_connection is not None:
            self._own_connection.close()
            self._own_connection = None

    @cached_property
    def _alembic(self) -> AlembicOperations:
        from alembic.migration import MigrationContext
        from alembic.operations import Operations as AlembicOperations

        return AlembicOperations(MigrationContext(self._connection.dialect, self._connection, {}))

    def _present(self, table: str, columns: Sequence[str], schema: str | None) -> set[str]:
        """Those of the columns, folded, that the table has."""
        if self._database.dialect == "sqlite":
            # Reflecting all columns to look for one is what makes a thousand migrations slow. The first column always
            # comes along, as only a table that exists has one.
            names = {"table": table, "schema": schema or "main", "names": [column.lower() for column in columns]}
            rows = self._connection.execute(_SQLITE_COLUMNS, names).all()
            if not rows:
                raise sa.exc.NoSuchTableError(table)
            found = {name for name, _ in rows}
        else:
            found = {self._fold(column["name"]) for column in self.inspector.get_columns(table, schema=schema)}
        return found & {self._fold(column) for column in columns}

    def _indexes(self, table: str, schema: str | None) -> dict[str, _Index]:
        """The indexes of a table by folded name."""
        found: dict[str, _Index] = {}
        if self._database.dialect == "sqlite":
            # SQLAlchemy does not reflect SQLite's indexes on expressions.
            rows = self._connection.execute(_SQLITE_INDEXES, {"table": table, "schema": schema or "main"})
            for name, unique, column in rows:
                found.setdefault(self._fold(name), _Index([], bool(unique))).columns.append(column)
        else:
            for index in self.inspector.get_indexes(table, schema=schema):
                if index["name"] is not None:
                    found[self._fold(index["name"])] = _Index(index["column_names"], bool(index["unique"]))
        return found

    def _create_indexes(self, table: sa.Table) -> None:
        missing = [index for index in table.indexes if index.name is not None]
        if missing:
            present = self._indexes(table.name, table.schema)
            for index in sorted(missing, key=lambda index: str(index.name)):
                if self._fold(str(index.name)) not in present:
                    self._connection.execute(sa.schema.CreateIndex(index))

    def _fold(self, name: str) -> str:
        """Names as the database compares them: PostgreSQL tells upper from lower case, the others do not."""
        return name if self._database.dialect == "postgresql" else name.lower()
