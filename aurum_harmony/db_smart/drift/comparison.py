"""Compare the models with a database: both are described as the same server has them.

What pending migrations would do counts as done, because the next boot does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..errors import DbSmartError, one_line
from ..preview import Preview
from ..schema import model_names
from ..schema.described import PartKind, Wanted
from ..schema.scratch import NoScratch, Scratch
from ..store.database import Database
from ..store.tables import TABLE_NAMES, is_ours
from .differences import Difference, compare

if TYPE_CHECKING:
    from ..store.history import VersionTable

#: What a script writes down for the next boot; a database that was never migrated has no table for it yet.
_OWN_ROWS = re.compile(rf"INSERT INTO (?:{'|'.join(sorted(TABLE_NAMES))})\b")
#: As Alembic's ``include_object``: object, name, type, whether it is of the database, what it is compared to.
IncludeObject = Callable[[Any, "str | None", str, bool, Any], bool]
#: Gives the application another engine for a database, for as long as its models are made.
Making = Callable[[Callable[[], Engine]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Drift:
    """What the models and one database do not have alike.

    :ivar database: its name.
    :ivar counted: pending migrations whose changes count as made.
    :ivar uncounted: those whose changes cannot be told, each with the reason.
    :ivar weaker: why the comparison is Alembic's weaker one; ``None`` where it is ours.
    :ivar ahead: what a newer release has applied, and this code does not have.
    """

    database: str
    differences: list[Difference]
    counted: list[str] = field(default_factory=list)
    uncounted: dict[str, str] = field(default_factory=dict)
    weaker: str | None = None
    ahead: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.differences)

    @property
    def not_counted(self) -> list[str]:
        """What to say of the migrations whose changes cannot be told."""
        return [
            f"Database {self.database}: the pending {name!r} is not counted: {why.rstrip('.')}."
            for name, why in self.uncounted.items()
        ]

    @property
    def lacking(self) -> list[Difference]:
        """What the models have and the database lacks."""
        return [one for one in self.differences if one.side == "models"]


class Comparison:
    """Compares models with databases.

    :param ignored: glob patterns of what is left out, such as ``spatial_*`` or ``users.legacy_*``.
    :param include_object: as Alembic's; asked of each difference.
    :param versions: the version table of Alembic.
    """

    def __init__(
        self,
        *,
        ignored: Collection[str] = (),
        include_object: IncludeObject | None = None,
        versions: VersionTable | None = None,
    ) -> None:
        self._ignored = ignored
        self._include_object = include_object
        self._versions = "alembic_version" if versions is None else versions.name

    def of(
        self,
        database: Database,
        metadata: sa.MetaData,
        pending: Iterable[Preview] = (),
        making: Making = lambda _: nullcontext(),
    ) -> Drift:
        """What the models and a database do not have alike.

        :param pending: what is pending, as a script.
        :param making: gives the application the engine that it gets, of the scratch place: listeners of the models may
            add rows by ``db.session``.
        :raises DbSmartError: the models cannot be made.
        """
        pending = list(pending)
        weaker = None
        try:
            differences, counted, uncounted = self._by_scratch(database, metadata, pending, making)
        except NoScratch as error:
            from .weaker import compare as compare_weakly  # which imports Alembic's whole autogenerate

            with database.connect() as connection:
                differences = compare_weakly(connection, metadata, self._wanted)
            weaker = f"This is Alembic's comparison, which finds less than ours. {error.message}"
            counted, uncounted = [], {one.name: "the weaker comparison cannot" for one in pending}
        found = [one for one in differences if self._included(one, metadata)]
        return Drift(database.name, found, counted, uncounted, weaker)

    def _by_scratch(
        self, database: Database, metadata: sa.MetaData, pending: list[Preview], making: Making
    ) -> tuple[list[Difference], list[str], dict[str, str]]:
        """The differences, what is counted and what is not.

        :raises NoScratch: there can be no scratch place.
        """
        schemas: list[str | None] = [
            None,
            *sorted({table.schema for table in metadata.tables.values() if table.schema is not None}),
        ]
        folder = type(database.facts).__module__.rpartition(".")[0]
        try:
            module = import_module(f"{folder}.describe")
        except ModuleNotFoundError:
            raise NoScratch(f"Ours is not made for databases of the kind {database.dialect}.") from None
        kind: type[Scratch] = module.SCRATCH
        with kind.open(database, schemas) as scratch:
            try:
                with making(lambda: scratch.engine):
                    scratch.make(metadata)
            except DbSmartError:
                raise
            except Exception as error:  # of the database, of SQLAlchemy, or of a listener
                raise DbSmartError(
                    f"The models cannot be made in a scratch place beside the database {database.name!r} "
                    f"({database.url}), to be compared with it: {database.cause(error)}. Nothing was changed."
                ) from error
            models = scratch.describe(self._wanted)
        with database.connect() if database.exists else nullcontext() as connection:
            if connection is None or any(one.script for one in pending):
                with kind.open(database, schemas) as scratch:
                    try:
                        if connection is not None:
                            scratch.copy(connection)
                    except DbSmartError as error:
                        assert connection is not None
                        uncounted = {one.name: error.message for one in pending}
                    else:
                        played = {one.name: _play(scratch, one, database) for one in pending}
                        counted = [name for name, why in played.items() if why is None]
                        uncounted = {name: why for name, why in played.items() if why is not None}
                        return compare(models, scratch.describe(self._wanted)), counted, uncounted
            else:
                uncounted = {one.name: f"it uses {one.unknown}" for one in pending if one.unknown is not None}
            there = module.describe(connection, schemas, self._wanted)
        return compare(models, there), [], uncounted

    def lacking(self, database: Database, metadata: sa.MetaData) -> list[str]:
        """The tables and columns of the models that a database does not have, by their names alone. One query.

        :raises DatabaseUnreachable: it cannot be asked.
        """
        if not metadata.tables or not database.exists:
            return []

        def counts(table: sa.Table, column: sa.Column[Any] | None) -> bool:
            kind: PartKind | Literal["table"] = "table" if column is None else "column"
            name = None if column is None else column.name
            one = Difference(kind, table.schema, table.name, name, {}, None)
            return self._wanted(table.schema, table.name) and self._included(one, metadata)

        with database.connect() as connection:
            return model_names.lacking(connection, metadata, counts)

    @property
    def _wanted(self) -> Wanted:
        def wanted(schema: str | None, name: str) -> bool:
            path = name if schema is None else f"{schema}.{name}"
            return not is_ours(name) and name != self._versions and not self._is_ignored(path)

        return wanted

    def _is_ignored(self, path: str) -> bool:
        return any(fnmatchcase(path.lower(), pattern.lower()) for pattern in self._ignored)

    def _included(self, one: Difference, metadata: sa.MetaData) -> bool:
        if self._is_ignored(one.path):
            return False
        if self._include_object is None:
            return True
        mine, theirs = _object(one, metadata, True), _object(one, metadata, False)
        kind = {"foreign key": "foreign_key_constraint", "unique": "unique_constraint"}.get(one.kind, one.kind)
        name = one.table if one.kind == "table" else one.name
        if one.side == "database":
            return bool(self._include_object(theirs, name, kind, True, None))
        return bool(self._include_object(mine, name, kind, False, None if one.side == "models" else theirs))


def _play(scratch: Scratch, one: Preview, database: Database) -> str | None:
    """Do in a scratch place what a pending migration would do.

    :returns: why its changes cannot be told; ``None`` where all of them are made.
    """
    if one.unknown is not None:
        return f"it uses {one.unknown}"
    if one.error is not None:
        return f"it would fail: {one.error}"
    for statement in one.script:
        if statement.startswith("--") or _OWN_ROWS.match(statement):
            continue
        try:
            scratch.run(statement)
        except (sa.exc.DBAPIError, DbSmartError) as error:
            return one_line(database.cause(error))
    return None


def _object(one: Difference, metadata: sa.MetaData, models: bool) -> Any:
    """What stands for a difference in the models; for the database's side, one of that name."""
    key = one.owner
    if models and one.table is not None:
        table = metadata.tables.get(key)
        if table is None or one.kind == "table":
            return table
        if one.kind == "column":
            return table.columns.get(str(one.name))
        found: Sequence[Any] = [*table.indexes, *table.constraints]
        return next((item for item in found if item.name == one.name), None)
    described = sa.Table(one.table or str(one.name), sa.MetaData(), schema=one.schema)
    if one.kind == "column":
        described.append_column(sa.Column(one.name))
        return described.columns[str(one.name)]
    if one.kind == "index":
        return sa.Index(one.name, _table=described)
    return described
