"""``flask db-smart new``: a new migration, empty or with what the models have and the database lacks.

An application with an Alembic directory alone gets a revision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from ..boot.planner import Planner
from ..errors import WrongUsage
from ..preview import OF_MODELS
from ..store.database import Database
from .changes import Change, Changes
from .comparison import Drift
from .differences import Difference
from .revision import write_revision
from .writing import Body, check_name, write

#: (table, old column) -> new column; (old table, ``None``) -> new table.
Renames = dict[tuple[str, "str | None"], str]


@dataclass
class Written:
    """What was written.

    :ivar path: where; ``None`` where there was nothing to write.
    :ivar names: of the migrations.
    :ivar notes: what to say besides.
    """

    path: Path | None = None
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def empty(planner: Planner, name: str, database: Database | None) -> Path:
    """Write an empty migration.

    :param database: for which it is; ``None`` for the default one.
    :raises DbSmartError: the name cannot be used, or the file cannot be written.
    """
    check_name(name, {migration.name for migration in planner.migrations})
    alembic = planner.code.alembic
    if planner.code.module is None and alembic is not None:
        return Path(write_revision(alembic, name, []))
    return write(planner.sources, [Body(name, None if database is None else database.key)])


def from_models(
    models: Mapping[str | None, sa.MetaData],
    planner: Planner,
    name: str,
    drifts: Sequence[Drift],
    renames: Sequence[str],
    confirm: Callable[[str], bool] | None,
) -> Written:
    """Write a migration for each database that differs from the models.

    :param renames: as ``table.old=new``.
    :param confirm: asks a person whether something was renamed; ``None`` where nobody is there.
    :raises DbSmartError: a name cannot be used, or the file cannot be written.
    """
    taken = {migration.name for migration in planner.migrations}
    check_name(name, taken)
    _check(renames, drifts)
    written = Written()
    found: list[tuple[Database, list[Change]]] = []
    for drift in drifts:
        database = planner.databases[drift.database]
        if OF_MODELS in drift.counted:
            written.notes.append(
                f"Database {drift.database}: its first boot makes the missing tables from the models, so these are not "
                "compared. For what an older database lacks, use one as production has it."
            )
        if drift and drift.uncounted:
            written.notes += drift.not_counted
            written.notes.append("So the new migration may do again what that one does: compare them before it runs.")
        if drift and drift.ahead:
            written.notes.append(
                f"Database {drift.database}: it is ahead of this code: {', '.join(drift.ahead)}. The new migration may "
                "take back what a newer release has done: write it with the code of that release."
            )
        if drift.weaker is not None:
            written.notes.append(f"Database {drift.database}: {drift.weaker}")
        if drift:
            metadata = models.get(database.key) or sa.MetaData()
            said = dict(_of_models(drift.differences, metadata)) | dict(_said(renames, drift.differences))
            _check_once(said)
            said |= dict(_asked(drift.differences, said, confirm, written.notes))
            changes = Changes(metadata, database, said).of(drift.differences)
            found.append((database, [*_schemas(database, drift.differences), *changes]))
    if not found:
        return written
    alembic = planner.code.alembic
    if planner.code.module is None and alembic is not None:
        written.path, written.names = Path(write_revision(alembic, name, found)), [name]
        for database, changes in found:
            dialect = database.app_engine.dialect
            written.notes += [f"Left out: {_told(one, dialect)}" for one in changes if one.advice is not None]
        return written
    bodies = []
    for database, changes in found:
        mine = name if database.key is None else re.sub(r"\W", "_", f"{name}_{database.key}")
        check_name(mine, taken)
        bodies.append(Body.of(mine, database.key, changes, database.app_engine.dialect))
    written.path, written.names = write(planner.sources, bodies), [body.name for body in bodies]
    return written


def _schemas(database: Database, found: Iterable[Difference]) -> Iterator[Change]:
    """The schemas of new tables that a PostgreSQL database does not have; elsewhere a schema is a database."""
    wanted = sorted({one.schema for one in found if one.side == "models" and one.schema is not None})
    if not wanted or database.dialect != "postgresql":
        return
    with database.connect() as connection:
        there = sa.inspect(connection).get_schema_names()
        for schema in wanted:
            if schema not in there:
                sql = f"CREATE SCHEMA IF NOT EXISTS {connection.dialect.identifier_preparer.quote_schema(schema)}"
                yield Change(None, f"op.execute({sql!r})", sql)


def _told(change: Change, dialect: sa.Dialect) -> str:
    """A change that is left out, with what to do instead, in one line."""
    lines = Body.of("", None, [change], dialect).lines
    return " ".join(" ".join(line.lstrip("# ") for line in lines).split())


def _said(renames: Sequence[str], found: Sequence[Difference]) -> Iterator[tuple[tuple[str, str | None], str]]:
    """What ``--rename`` says of one database."""
    gone = {one.path: one for one in found if one.side == "database" and one.kind in ("table", "column")}
    for text in renames:
        old, new = _names(text)
        if old in gone:
            one = gone[old]
            yield ((one.owner, one.name) if one.kind == "column" else (old, None)), _whole(new, one)


def _check(renames: Sequence[str], drifts: Iterable[Drift]) -> None:
    """Make sure that each ``--rename`` names something that went in a database, and something that came there.

    :raises WrongUsage: it does not.
    """
    found = [(drift.database, one) for drift in drifts for one in drift.differences if one.kind in ("table", "column")]
    for text in renames:
        old, new = _names(text)
        gone = {one.path: (database, one) for database, one in found if one.side == "database"}
        if old not in gone:
            raise WrongUsage(
                f"--rename {text}: the database has no {old} that the models lack; of such it has: "
                f"{', '.join(sorted(gone)) or 'nothing'}. Nothing was written."
            )
        where, one = gone[old]
        come = [each for place, each in found if place == where and each.side == "models" and each.kind == one.kind]
        column = one.kind == "column"
        names = {str(each.name) if column else each.owner for each in come if not column or each.owner == one.owner}
        if _whole(new, one) not in names:
            of_table = f" in {one.owner}" if column else ""
            raise WrongUsage(
                f"--rename {text}: the models have no {one.kind} {new}{of_table} that the database lacks; of such they "
                f"have: {', '.join(sorted(names)) or 'nothing'}. Nothing was written."
            )


def _check_once(said: Renames) -> None:
    """Make sure that no two things become one.

    :raises WrongUsage: they do.
    """
    taken: dict[tuple[str | None, str], str] = {}
    for (table, column), name in said.items():
        place, old = (None if column is None else table, name), ".".join(filter(None, (table, column)))
        if place in taken:
            raise WrongUsage(f"Both {taken[place]} and {old} would be renamed to {name}. Nothing was written.")
        taken[place] = old


def _whole(new: str, old: Difference) -> str:
    """A new name, a table's with the schema of the old one."""
    return new if old.kind == "column" or old.schema is None else f"{old.schema}.{new.rpartition('.')[2]}"


def _names(rename: str) -> tuple[str, str]:
    """The old name of a ``--rename``, a column's with its table, and the new name, a column's without.

    :raises WrongUsage: it cannot be understood.
    """
    old, equals, new = (part.strip() for part in rename.partition("="))
    table = old.rpartition(".")[0]
    if not equals or not new:
        raise WrongUsage(f"--rename {rename}: write it as TABLE.OLD=NEW, or OLD=NEW for a table. Nothing was written.")
    return old, new.removeprefix(f"{table}.") if table else new


def _of_models(found: Sequence[Difference], metadata: sa.MetaData) -> Iterator[tuple[tuple[str, str | None], str]]:
    """What models say by ``info={"renamed_from": "old"}``, as long as the database has the old name."""
    gone = {(one.owner, one.name) for one in found if one.side == "database"}
    for one in found:
        if one.side != "models" or one.kind not in ("table", "column") or one.owner not in metadata.tables:
            continue
        table = metadata.tables[one.owner]
        item = table if one.kind == "table" else table.columns.get(str(one.name))
        old = None if item is None else item.info.get("renamed_from")
        if old is None:
            continue
        if one.kind == "column" and (one.owner, old) in gone:
            yield (one.owner, old), str(one.name)
        elif one.kind == "table":
            whole = next((path for path in (old, f"{one.schema}.{old}") if (path, None) in gone), None)
            if whole is not None:
                yield (whole, None), one.owner


def _asked(
    found: Sequence[Difference], said: Renames, confirm: Callable[[str], bool] | None, notes: list[str]
) -> Iterator[tuple[tuple[str, str | None], str]]:
    """Ask where a table goes and one of the same columns comes, or a column of a table and one of the same type.

    That is never guessed.
    """
    taken = {(None if column is None else table, name) for (table, column), name in said.items()}
    gone = [one for one in found if one.side == "database" and one.kind in ("table", "column")]
    for old in sorted(gone, key=lambda one: one.kind, reverse=True):  # tables first
        place = (old.owner, None if old.kind == "table" else old.name)
        if place in said:
            continue
        for new in found:
            column = old.kind == "column"
            name = str(new.name) if column else new.owner
            if (old.owner if column else None, name) in taken or not _may_be(old, new):
                continue
            alike = "with the same type" if column else "with the same columns"
            if confirm is None:
                notes.append(
                    f"{old.path} goes and {new.path} comes, {alike}. If it was renamed, say so: --rename "
                    f"{old.path}={new.name if column else new.table}."
                )
            elif confirm(f"Was {old.path} renamed to {new.path}?"):
                taken.add((old.owner if column else None, name))
                yield place, name
                break


def _may_be(old: Difference, new: Difference) -> bool:
    """Whether something that goes may be something that comes, by another name."""
    if new.side != "models" or new.kind != old.kind:
        return False
    if old.kind == "table":
        return new.schema == old.schema and new.columns == old.columns and bool(old.columns)
    return new.owner == old.owner and (new.models or {}).get("type") == (old.database or {}).get("type")
