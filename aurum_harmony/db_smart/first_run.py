"""The first run on a new database: what differs from every later one.

The models are those of today, while the migrations were written over time. So a column may have to accept ``NULL``
until all migrations are applied; see :mod:`~.schema.loosening`.
"""

from __future__ import annotations

from typing import Any, Protocol

import sqlalchemy as sa

from .boot.plan import Plan
from .errors import DbSmartError
from .notices import logger_of
from .schema import loosening, model_tables
from .schema.catalog import Catalog
from .session.journal import Journal
from .session.transaction import RunTransaction
from .store import history, tables
from .store.database import Database, begin, commit, translated
from .store.history import VersionTable
from .store.lock import Lock
from .store.memory import Memory

_logger = logger_of(__name__)


class Run(Protocol):
    """What a first run needs of the run on its database; see :class:`~.runner.DatabaseRun`."""

    database: Database
    connection: sa.Connection
    lock: Lock
    memory: Memory

    def transaction(self, connection: sa.Connection, journal: Journal, *, transactional: bool = True) -> RunTransaction:
        """The transaction for operations."""


def warn_of_lost_history(database: Database, connection: sa.Connection, plan: Plan, metadata: sa.MetaData) -> None:
    """Say that a database is not new although it has no history: what runs only once may have run before."""
    inspector = sa.inspect(connection)
    used = []
    for table, _ in model_tables.in_order(metadata.tables.values()):
        if table is not None and inspector.has_table(table.name, schema=table.schema):
            query = sa.select(sa.literal(1)).select_from(sa.table(table.name, schema=table.schema)).limit(1)
            if connection.execute(query).first() is not None:
                used.append(table.name)
    if not used:
        return
    once = [item.migration.name for item in plan.pending if item.migration.options.once]
    dropped = " Alembic uses this database too: check whether one of its revisions dropped the tables db_smart_*."
    _logger.warning(
        "db-smart: the database %r has tables with rows (%s) but no history of db-smart, so all its migrations "
        "run%s. If they had run before, their history was lost: stop, and restore the tables db_smart_* from a "
        "backup.%s",
        database.name,
        ", ".join(used[:5]) + (", …" if len(used) > 5 else ""),
        f", also those that run only once ({', '.join(once)})" if once else "",
        dropped if inspector.has_table("alembic_version") else "",
    )


def made_otherwise(
    database: Database, connection: sa.Connection, plan: Plan, metadata: sa.MetaData | None, versions: VersionTable
) -> str | None:
    """Why no revision of Alembic may run on a database that has its tables, and nothing that says since which revision.

    An empty version table says nothing either: Alembic makes one before it compares models, or before its first
    revision fails.

    :returns: the message; ``None`` where revisions may run, or none is pending.
    """
    revisions = any(item.migration.revision for item in plan.pending)
    if metadata is None or plan.heads or plan.applied or not revisions:
        return None
    missing = {table.key for table in model_tables.missing(connection, metadata)}
    there = sorted(metadata.tables.keys() - missing)
    connection.rollback()
    # Asked after the tables: whoever makes them now, by revisions, has made these before.
    heads = history.read_heads(connection, versions) if there else None
    if not there or heads:
        return None
    if tables.history.name not in history.missing_tables(connection):
        return None
    connection.rollback()
    shown = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
    begun = ""
    nothing = f"neither {versions.name!r}, the version table of Alembic, nor a history of db-smart"
    if heads is not None:
        nothing = f"{versions.name!r}, the version table of Alembic, is empty, and there is no history of db-smart"
        begun = " Or was 'flask db upgrade' ended in its first revision? 'flask db-smart migrate --resume' finishes it."
    return (
        f"The database {database.name!r} ({database.url}) has tables of the application ({shown}), but "
        f"{nothing}: it was made by create_all(), and the revisions would make these tables again. Nothing was "
        "changed. If it has what all revisions make, record that: 'flask db-smart stamp --all'. If it is older, name "
        "the last revision whose work it has: 'flask db-smart stamp NAME'. Then start again. Only if no revision has "
        f"to do with these tables: 'flask db upgrade' runs all of them.{begun}"
    )


def loosen(run: Run, error: Exception) -> bool:
    """Let a column take NULL until the first run is complete, if that is what a row of a migration needs.

    :returns: whether something was changed, so that the migration is to be tried again.
    """
    if not run.memory.fresh:
        return False
    required = loosening.required(error, run.memory)
    if not required:
        return False
    run.connection.rollback()
    run.memory.read(run.connection)  # a part may be committed
    run.connection.rollback()
    known = run.memory.loosened()
    wanted = [column for column in required if column not in known]
    for model, name in wanted:
        _logger.info(
            "db-smart: a migration inserts a row into %r without %r, which the models require: it may be NULL "
            "until all migrations are applied",
            model.name,
            name,
        )
        _set_nullable(run, model, name, True)
    return bool(wanted)


def tighten(run: Run) -> None:
    """Make the columns that were loosened what they are in the models.

    :raises DbSmartError: rows have no value for one.
    """
    database, connection = run.database, run.connection
    for model, name in run.memory.loosened():
        column: Any = sa.column(name)
        place = sa.table(model.name, schema=translated(connection, model.schema))
        query = sa.select(sa.func.count()).select_from(place).where(column.is_(None))
        key = place.schema, run.memory.normalize_name(model.name), run.memory.normalize_name(name)
        if key in run.memory.defaults:
            begin(connection)
            connection.execute(loosening.as_default(model.name, place.schema, name, run.memory.defaults[key]))
            run.lock.confirm(connection)
            commit(connection)
        empty = connection.scalar(query)
        connection.rollback()  # what was only read
        if empty:
            raise DbSmartError(
                f"All migrations are applied to the new database {database.name!r} ({database.url}), but {empty} "
                f"rows that they inserted into {model.name!r} have no value for {name!r}, which the models require"
                ". Everything is kept; the column may be NULL meanwhile. Add a migration that gives these rows a "
                "value and start again."
            )
        _set_nullable(run, model, name, False)


def _set_nullable(run: Run, model: sa.Table, name: str, nullable: bool) -> None:
    """Change a column of a table that this first run made."""
    from .dialects.editor import Change, editor_of  # imports Alembic

    connection = run.connection
    schema = translated(connection, model.schema)
    begin(connection)
    transaction = run.transaction(connection, Journal(connection, "(first run)", at_once=False, begun=False))
    try:
        if nullable:  # noted first, because MariaDB commits this note together with the change
            transaction.note(run.memory.module, "loosened", "column", schema, model.name, name)
        catalog = Catalog(connection)
        existing = catalog.columns(model.name, schema)[catalog.normalize_name(name)]
        if existing["nullable"] != nullable:
            change = Change(model.name, schema, existing["name"], existing, nullable=nullable)
            editor_of(transaction, catalog).alter_column(change, False)
        run.lock.confirm(connection)
        commit(connection)
    finally:
        transaction.close()
    run.memory.keep()
