"""The SQL of a dry run: previews as a script for the client of the database, which does what a run would do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import sqlalchemy as sa

from .session.literals import BEGIN, COMMIT, START
from .session.sql import render
from .store import history, tables

if TYPE_CHECKING:
    from .boot.plan import Plan
    from .loading.decorator import Migration
    from .preview import Preview
    from .settings import Settings
    from .store.history import VersionTable


def certainly_fails(shown: Preview) -> bool:
    """Whether a migration would fail, and not only for want of what one before it may make that is not known."""
    return shown.error is not None and shown.unknown is None


def script(
    plan: Plan, previews: Iterable[Preview], settings: Settings, versions: VersionTable | None = None
) -> Iterator[str]:
    """The previews as SQL for the database's own client, line by line, with transaction boundaries.

    The history is written too, so that the next boot finds the migrations applied. From the first migration on that
    cannot be known completely, the script only has comments.

    :param versions: where Alembic keeps what is applied.
    """
    database = plan.database
    dialect = database.app_engine.dialect
    facts = database.facts
    place = f"{database.name!r} ({database.url})"
    yield f"-- For the database {place}, by {facts.client}. Made at {_now()} UTC."
    yield from facts.script_header
    if facts.name in _GUARDS:
        yield from _GUARDS[facts.name](_Guard.of(plan, versions))
    if (bound := facts.set_lock_timeout(settings.ddl.lock_timeout)) is not None:
        yield f"{bound};"
    transactional = database.transactional_ddl
    for table in tables.metadata.sorted_tables:
        yield f"{render(sa.schema.CreateTable(table, if_not_exists=True), dialect)};"
    if plan.state is None:
        yield f"{render(tables.state.insert().values(history.new_state()), dialect, literal_binds=True)};"
    release = settings.release if _has_room(plan) else None
    known = True
    for shown in previews:
        yield f"\n-- {shown.name} ({shown.reason})"
        if shown.migration is not None and shown.migration.options.contract:
            yield "-- Left to db-smart, which runs it when no release that runs has what it takes away."
            continue
        fails = known and certainly_fails(shown)
        known = known and shown.unknown is None and shown.error is None
        if not known:
            # Half of a migration would be done twice, and what comes after it may build on the other half.
            whose = "Left to db-smart, which runs it at the next boot"
            if fails:
                whose = "Not in this script, and the next boot would fail at it too"
            yield f"-- {whose}.{' What is known of it:' if shown.script else ''}"
            yield from ("-- " + line.removeprefix("-- ").replace("\n", "\n-- ") for line in shown.script)
            continue
        if shown.place is not None and shown.migration is not None:
            yield from shown.script[: shown.place]
            yield f"{_record(shown.migration, release, dialect)};"
            yield from shown.script[shown.place :]
            continue
        whole = transactional and (shown.migration is None or shown.migration.options.transactional)
        lines = [BEGIN, *shown.script] if whole else list(shown.script)
        lines += [] if whole else [START]
        if shown.migration is not None:
            lines.append(_record(shown.migration, release, dialect))
            if shown.steps_done or shown.journal:
                journal = tables.progress.delete().where(tables.progress.c.migration == shown.migration.name)
                lines.append(render(journal, dialect, literal_binds=True))
        lines.append(COMMIT)
        # A comment is no statement, and what sets another delimiter ends its statements itself.
        as_they_are = ("--", "DELIMITER")
        yield from (
            line if line.startswith(as_they_are) else _ended(line) for line in _without_empty_transactions(lines)
        )


def _ended(statement: str) -> str:
    """A statement with its end, which is no part of a comment in its last line."""
    last = statement.rpartition("\n")[2]
    return f"{statement}\n;" if "--" in last or "#" in last else f"{statement};"


def _record(migration: Migration, release: str | None, dialect: sa.Dialect) -> str:
    """SQL for the row of the history."""
    row = history.row(migration.name, migration.checksum, 0.0, release=release)
    return render(tables.history.insert().inline().values(row), dialect, literal_binds=True)


def _has_room(plan: Plan) -> bool:
    """Whether the history has, or will have, a place for the release: the next run makes it, a script does not."""
    if plan.state is None:
        return True
    with plan.database.connect() as connection:
        return history.has_release(connection) is not False


@dataclass
class _Guard:
    """The check that begins a script: is this the database that it was made for, and is it still as it was?

    :ivar wanted: the id of that database; ``None`` where it has no history yet.
    :ivar rows: how many rows its history and its journal have; ``None`` where there are none yet.
    :ivar heads: the condition that the version table of Alembic has what it had; ``None`` where that does not matter.
    """

    wanted: str | None
    rows: tuple[int, int] | None = None
    heads: str | None = None

    @classmethod
    def of(cls, plan: Plan, versions: VersionTable | None) -> _Guard:
        guard = cls._of_history(plan)
        # Where there is no version table, the script makes it, which fails where there is one by now.
        if versions is not None and plan.heads is not None and any(item.migration.revision for item in plan.pending):
            preparer = plan.database.app_engine.dialect.identifier_preparer
            table = preparer.quote(versions.name)
            if versions.schema is not None:
                table = f"{preparer.quote_schema(versions.schema)}.{table}"
            found = "".join(f" AND EXISTS (SELECT 1 FROM {table} WHERE version_num = '{one}')" for one in plan.heads)
            guard.heads = f"(SELECT count(*) FROM {table}) = {len(plan.heads)}{found}"
        return guard

    @classmethod
    def _of_history(cls, plan: Plan) -> _Guard:
        if plan.state is None:
            return cls(None)
        counted = tables.history, tables.progress
        with plan.database.connect() as connection:
            lacks = history.missing_tables(connection)
            if any(table.name in lacks for table in counted):
                return cls(plan.state.database_id)
            counts = [connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in counted]
        return cls(plan.state.database_id, (counts[0], counts[1]))

    @property
    def without(self) -> str:
        """The message where there is no history."""
        return self._said(f"is for the database with the id {self.wanted}, and this one has no history of db-smart")

    @property
    def other(self) -> str:
        """The message where there is another history, or any at all."""
        if self.wanted is None:
            return self._said("is for a database without a history of db-smart, and this one has one")
        return self._said(f"is for the database with the id {self.wanted}, and this one has another id")

    @property
    def later(self) -> str:
        """The message where migrations have run since."""
        return self._said("was made for an earlier state of the database, or has run already; make a new one")

    def mine(self, place: str = "") -> str:
        """The condition that it is that database; for one that has our tables."""
        wanted = (self.wanted or "").replace("'", "''").replace("\\", "")
        return f"EXISTS (SELECT 1 FROM {place}db_smart_state WHERE database_id = '{wanted}')"

    def fresh(self, place: str = "") -> str:
        """The condition that it is as it was when the script was made."""
        if self.rows is None:
            return "1 = 1"
        found = zip((tables.history.name, tables.progress.name), self.rows, strict=True)
        return " AND ".join(f"(SELECT count(*) FROM {place}{name}) = {count}" for name, count in found)

    @staticmethod
    def _said(text: str) -> str:
        return f"'This script {text}: nothing was changed'"


def _guard_postgresql(guard: _Guard) -> Iterator[str]:
    # In the schema where the script makes its tables: the search path may lead to those of another application.
    there = "to_regclass(quote_ident(current_schema()) || '.db_smart_state')"
    yield "DO $db_smart$ BEGIN"
    # Nested, because a condition that names a table is an error where there is none.
    if guard.wanted is None:
        yield f"  IF {there} IS NOT NULL THEN"
        yield "    IF EXISTS (SELECT 1 FROM db_smart_state) THEN"
        yield f"      RAISE EXCEPTION USING MESSAGE = {guard.other};"
    else:
        yield f"  IF {there} IS NULL THEN"
        yield f"    RAISE EXCEPTION USING MESSAGE = {guard.without};"
        yield "  ELSE"
        yield f"    IF NOT {guard.mine()} THEN"
        yield f"      RAISE EXCEPTION USING MESSAGE = {guard.other};"
        yield f"    ELSIF NOT ({guard.fresh()}) THEN"
        yield f"      RAISE EXCEPTION USING MESSAGE = {guard.later};"
    yield "    END IF;"
    yield "  END IF;"
    if guard.heads is not None:
        yield f"  IF NOT ({guard.heads}) THEN"
        yield f"    RAISE EXCEPTION USING MESSAGE = {guard.later};"
        yield "  END IF;"
    yield "END $db_smart$;"


def _guard_mariadb(guard: _Guard) -> Iterator[str]:
    there = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'db_smart_state'"
    yield "DELIMITER //"
    yield "BEGIN NOT ATOMIC"
    if guard.wanted is None:
        yield f"  IF EXISTS ({there}) THEN"
        yield "    IF EXISTS (SELECT 1 FROM db_smart_state) THEN"
        yield f"      SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {guard.other};"
    else:
        yield f"  IF NOT EXISTS ({there}) THEN"
        yield f"    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {guard.without};"
        yield "  ELSE"
        yield f"    IF NOT {guard.mine()} THEN"
        yield f"      SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {guard.other};"
        yield f"    ELSEIF NOT ({guard.fresh()}) THEN"
        yield f"      SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {guard.later};"
    yield "    END IF;"
    yield "  END IF;"
    if guard.heads is not None:
        yield f"  IF NOT ({guard.heads}) THEN"
        yield f"    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {guard.later};"
        yield "  END IF;"
    yield "END//"
    yield "DELIMITER ;"


def _guard_sqlite(guard: _Guard) -> Iterator[str]:
    """SQLite has neither conditions nor blocks, so a constraint stops the script; its name is the message."""
    there = "EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'db_smart_state')"
    questions = [(guard.other, f"NOT {there}")]
    if guard.wanted is not None:
        mine, fresh = guard.mine("main."), guard.fresh("main.")
        questions = [(guard.without, there), (guard.other, mine), (guard.later, fresh)]
    if guard.heads is not None:
        questions.append((guard.later, guard.heads))
    for text, question in questions:
        yield f'CREATE TEMP TABLE db_smart_guard (fine INTEGER CONSTRAINT "{text[1:-1]}" CHECK (fine));'
        yield f"INSERT INTO temp.db_smart_guard SELECT {question};"
        yield "DROP TABLE temp.db_smart_guard;"


def _without_empty_transactions(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if line == COMMIT and kept and kept[-1] == BEGIN:
            kept.pop()
        else:
            kept.append(line)
    return kept


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


_GUARDS: dict[str, Callable[[_Guard], Iterator[str]]] = {
    "postgresql": _guard_postgresql,
    "mysql": _guard_mariadb,
    "sqlite": _guard_sqlite,
}
