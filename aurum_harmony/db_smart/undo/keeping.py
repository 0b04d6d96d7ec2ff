"""Keep the values that go, or refuse to lose them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.named_types import NamedType
from sqlalchemy.schema import DropTable

from ..errors import DbSmartError
from ..schema.catalog import Catalog
from ..schema.ddl import CreateTableAs, LockTables
from ..store.tables import ARCHIVE
from .marks import ARCHIVES, Marks
from .outcome import Undone
from .transaction import UndoTransaction, WithinRevision
from .values import Loss, Part

#: How long a name may be everywhere, bytes; a little less, for a number behind it.
_MAX_NAME = 56


class Keeper:
    """Keeps the values that go, where they are to be kept.

    :param transaction: in which they go.
    :param archive: whether what would be lost is copied first.
    :param discard: whether it may be lost.
    """

    def __init__(
        self, transaction: UndoTransaction | WithinRevision, undone: Undone, *, archive: bool, discard: bool
    ) -> None:
        self._transaction = transaction
        self._connection = transaction.connection
        self._catalog = Catalog(self._connection)
        self._undone = undone
        self._archives = archive
        self._discards = discard

    @contextmanager
    def emptied(self, *parts: Part) -> Iterator[None]:
        """Keep the values that a block drops, where they are to be kept; nobody writes more of them meanwhile.

        :raises DbSmartError: there are values that nobody has agreed to lose.
        """
        catalog, all_rows = self._catalog, self._transaction.all_rows
        with all_rows():
            archives = [
                self._archive(part) if self._archives and catalog.count(part.table, part.schema, part.where) else None
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

    def _keep(self, part: Part, archive: tuple[str, list[str]] | None) -> None:
        schema, table, column, where = part
        catalog, transaction = self._catalog, self._transaction
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
        elif rows and not self._discards:
            raise DbSmartError(f"The database has changed meanwhile: {what} would be lost. Start again.")
        elif rows:
            self._undone.lost.append(what)

    def _archive(self, part: Part) -> tuple[str, list[str]]:
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
        """The name of the table that keeps values; of a try before this one, the same. It is written down first.

        :param another: whether the one of a try before this one is not to be that.
        """
        number, connection = self._undone.number, self._connection
        step = ARCHIVES + hashlib.sha256(f"{table}\0{column}".encode()).hexdigest()[:40]
        base = "_".join(filter(None, (f"{ARCHIVE}{number}", table, column)))
        if not re.fullmatch(r"\w+", base, re.ASCII) or len(base) > _MAX_NAME:
            short = re.sub(r"[^A-Za-z0-9_]+", "_", table)[:20]
            base = f"{ARCHIVE}{number}_{short}_{step.removeprefix(ARCHIVES)[:8]}"
        with self._transaction.at_home():
            marks = Marks(connection, number)
            if another:
                marks.remove(step)
            if (found := marks.get(step)) is not None:
                return found
            names, name, more = sa.inspect(connection), base, 1
            while names.has_table(name):
                name, more = f"{base}_{more + 1}", more + 1
            marks.put(step, name)
        return name

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


def _is_named(kind: Any) -> bool:
    """Whether a type is one of PostgreSQL's with a name of its own, or an array of such."""
    return isinstance(getattr(kind, "item_type", kind), NamedType)
