"""The tables of the application's models: finds the missing ones and makes them, also after a kill in the middle."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.schema import AddConstraint, sort_tables_and_constraints

from ..store.database import begin, commit, translated
from ..store.tables import progress

#: Under which name, one that no migration can have, it is written down which tables are being made.
_MAKING = "(tables of the models)"


def missing(connection: sa.Connection, metadata: sa.MetaData) -> list[sa.Table]:
    """The tables that the database lacks, those first that others refer to. Leaves no transaction."""
    inspector = sa.inspect(connection)
    places = {schema: translated(connection, schema) for schema in {table.schema for table in metadata.tables.values()}}
    there = {schema: set(inspector.get_table_names(place)) for schema, place in places.items()}
    return [
        table
        for table, _ in in_order(metadata.tables.values())
        # A model may stand for a view, and names may differ in case.
        if table is not None
        and table.name not in there[table.schema]
        and not inspector.has_table(table.name, places[table.schema])
    ]


def in_order(
    tables: Iterable[sa.Table],
) -> list[tuple[sa.Table | None, Collection[sa.ForeignKeyConstraint]]]:
    """Tables, those first that others refer to, each with the foreign keys that it can be made with.

    Those of tables that refer to each other come at the end, with ``None`` for the table.
    """
    named = sorted(tables, key=lambda table: table.key)
    return list(sort_tables_and_constraints(named))  # type: ignore[no-untyped-call]


def lost(database: str, names: Iterable[str], taken: Mapping[str, str]) -> str:
    """What to say of tables that are missing although the database has its history.

    :param taken: see :meth:`~.store.memory.Memory.taken`.
    """
    said = f"the database {database!r} lacks tables of the models: {', '.join(names)}. "
    if set(names) - taken.keys():
        said += (
            "'flask db-smart migrate' creates them; for a new model 'flask db-smart new NAME --from-models' writes the "
            "migration. "
        )
    for name, migration in taken.items():
        said += (
            f"{name!r} was dropped or renamed by the migration {migration!r}, which this code does not have: either "
            "this release is older than the database, or the migration was removed. The table is not created, because "
            "its rows may be elsewhere now. Start the release that has the migration, or add one that creates the "
            "table. "
        )
    return said.rstrip()


def make(connection: sa.Connection, metadata: sa.MetaData, wanted: Sequence[sa.Table], *, transactional: bool) -> None:
    """Make missing tables, with their indexes and keys, in the transaction that is open.

    Where each schema change commits by itself, the names are committed first, so that the next run can tell a table
    that this has only begun from one that was there before.

    :param wanted: what :func:`missing` found, or some of it.
    :param transactional: whether the database takes schema changes back.
    """
    if not transactional:
        names = [table.key for table in wanted]
        unfinished = _unfinished(connection)
        if names:
            connection.execute(progress.delete().where(progress.c.migration == _MAKING))
            detail = json.dumps(sorted({*names, *unfinished}))
            row = {"migration": _MAKING, "step": "make", "row_count": 0, "last_row_id": 0, "detail": detail}
            connection.execute(progress.insert(), row)
            commit(connection)
            begin(connection)
    metadata.create_all(connection, wanted)
    if not transactional:
        _finish(connection, metadata, _unfinished(connection))
        connection.execute(progress.delete().where(progress.c.migration == _MAKING))


def _unfinished(connection: sa.Connection) -> list[str]:
    query = sa.select(progress.c.detail).where(progress.c.migration == _MAKING)
    return [str(name) for detail in connection.scalars(query) for name in json.loads(detail)]


def _finish(connection: sa.Connection, metadata: sa.MetaData, names: Iterable[str]) -> None:
    """Make the indexes and foreign keys that these tables still lack."""
    for table in [metadata.tables[name] for name in names if name in metadata.tables]:
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            index.create(connection, checkfirst=True)
        inspector = sa.inspect(connection)
        there = {tuple(key["constrained_columns"]) for key in inspector.get_foreign_keys(table.name, table.schema)}
        for constraint in table.foreign_key_constraints:
            if tuple(constraint.column_keys) not in there:
                connection.execute(AddConstraint(constraint))
