"""What a database lacks of the migrations of the code, and what it has beyond them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import DbSmartError
from ..loading.sources import ALEMBIC
from ..notices import logger_of

if TYPE_CHECKING:
    from ..loading.decorator import Migration
    from ..store.database import Database
    from ..store.history import Applied, State

_logger = logger_of(__name__)


@dataclass(frozen=True)
class Pending:
    """A migration to run, and why."""

    migration: Migration
    reason: Literal["new", "edited", "forced"]

    @property
    def left(self) -> bool:
        """Whether boot leaves it to a thread that runs it while the process serves."""
        options = self.migration.options
        return (options.background and self.reason != "forced") or options.contract


def pending(
    migrations: Iterable[Migration], applied: Iterable[Applied], *, force: bool = False, lacking: Sequence[str] = ()
) -> list[Pending]:
    """The migrations of one database that are still to run, in order.

    :param force: run every repeatable migration again.
    :param lacking: names of the revisions of Alembic that are still to run, in order: its version table knows.
    """
    contents = {(item.name, item.checksum) for item in applied}
    names = {name for name, _ in contents}
    revisions = {migration.name: migration for migration in migrations if migration.revision}
    found = [Pending(revisions[name], "new") for name in lacking]
    for migration in migrations:
        if migration.revision:
            continue
        if migration.name not in names:
            found.append(Pending(migration, "new"))
        elif not migration.options.once:
            if (migration.name, migration.checksum) not in contents:
                found.append(Pending(migration, "edited"))
            elif force and not migration.options.contract:  # which is done once nothing is in its way
                found.append(Pending(migration, "forced"))
    return found


def ahead(migrations: Iterable[Migration], applied: Iterable[Applied]) -> list[str]:
    """Names of migrations whose last applied content is not of this code: the database is ahead of it.

    Which revisions of Alembic a database has is not told by what was once applied: some may be taken back.
    """
    known = {migration.name: migration for migration in migrations}
    contents = {(item.name, item.checksum) for item in applied}
    last = {item.name: item.checksum for item in applied}
    beyond = []
    for name, checksum in last.items():
        if checksum.startswith(ALEMBIC):
            continue
        migration = known.get(name)
        if migration is None or (
            not migration.options.once and checksum != migration.checksum and (name, migration.checksum) in contents
        ):
            beyond.append(name)
    return beyond


def edited_once(migrations: Iterable[Migration], applied: Iterable[Applied]) -> list[str]:
    """Names of ``once`` migrations edited after they were applied; they are reported and never run again."""
    contents = {(item.name, item.checksum) for item in applied}
    names = {name for name, _ in contents}
    return [
        migration.name
        for migration in migrations
        if migration.options.once
        and not migration.revision
        and migration.name in names
        and (migration.name, migration.checksum) not in contents
    ]


COMPLETE = "holds every migration of this code"
BUT_LATER = f"{COMPLETE} but those in the background"


@dataclass
class Plan:
    """What one database holds and lacks.

    :ivar state: its state row, ``None`` without history.
    :ivar reason: why it is behind, or that it is not, in words.
    :ivar pending: what is to run, in order.
    :ivar applied: its history; empty where the state row alone was enough.
    :ivar ahead: names that it is ahead of this code by.
    :ivar edited_once: ``once`` migrations edited after they were applied.
    """

    database: Database
    state: State | None
    reason: str
    pending: list[Pending] = field(default_factory=list)
    applied: list[Applied] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    edited_once: list[str] = field(default_factory=list)
    #: Numbers of the runs of which an undo was interrupted, where the database commits each schema change.
    half_undone: list[int] = field(default_factory=list)
    #: Whether the history is that of other applications alone, so that this one's first run is still to come.
    foreign: bool = False
    #: Whether the state row says that migrations with ``background=True`` are left; it does not say which.
    later: bool = False
    #: What Alembic's version table has, sorted; ``None`` where there is none, or no Alembic directory.
    heads: tuple[str, ...] | None = None

    @property
    def status(self) -> str:
        """``"pending"``, ``"ahead"`` or ``"up-to-date"``."""
        return "pending" if self.behind and not self.adoptable else "ahead" if self.ahead else "up-to-date"

    @property
    def clause(self) -> str:
        """The reason as a clause of its own."""
        return f"the database {self.database.name!r} {self.reason}"

    @property
    def elsewhere(self) -> str | None:
        """The schema of its history, where that is not the one in which a run would make it."""
        return None if self.state is None else self.state.place

    def is_first_run(self, module: str, migrations: Sequence[Migration], applications: Set[str]) -> bool:
        """Whether this application has never completed its migrations on a database.

        :param module: dotted name of the application's migrations.
        :param migrations: those for this database.
        :param applications: the migrations of which a first run was complete here.
        :raises DbSmartError: those of another one have, and share names with them.
        """
        if not self.first_run_done:
            return True
        others = applications - {module}
        if module in applications:
            return False
        applied = {(item.name, item.checksum) for item in self.applied}
        names = {name for name, _ in applied}
        shared = [item for item in migrations if item.name in names]
        if not others and (shared or not applied):  # of a release that did not write down whose history it is
            return False
        same_code = any((item.name, item.checksum) in applied for item in shared)  # a module that was renamed
        clash = [item.name for item in shared if item.options.once]
        owner = " and ".join(map(repr, sorted(others))) or "another application"
        database = self.database
        if clash and not same_code:
            raise DbSmartError(
                f"The database {database.name!r} ({database.url}) has the history of other migrations, those of "
                f"{owner}. It holds the names {', '.join(map(repr, clash))}, which {module!r} uses too, so they "
                "would count as applied. Nothing was changed. Rename these migrations, or give this application a "
                "database or a schema of its own."
            )
        counted = [item.name for item in shared if not item.revision]  # those are told by Alembic's version table
        if counted:
            _logger.warning(
                "db-smart: the history in the database %r belongs to %s; of %r it has as applied: %s",
                database.name,
                owner,
                module,
                ", ".join(counted),
            )
        return True

    def refuse_elsewhere(self) -> None:
        """Refuse to run anything by a history in another schema: it may be that of another installation.

        :raises DbSmartError: it is in another one.
        """
        if self.elsewhere is not None:
            raise DbSmartError(
                f"Cannot migrate the database {self.database.name!r} ({self.database.url}): there is no history of "
                f"db-smart in the current schema (the first one of the search path), and the one in {self.elsewhere!r} "
                "(to which the search path leads) holds migrations of this application too. It is not known whether "
                "that is the history of this installation or of another one. Nothing was changed. If it is this one's, "
                f"put {self.elsewhere!r} first in the search path of who migrates. If the current schema should get an "
                "installation of its own, migrate it once with a search path that does not lead elsewhere. More: "
                'docs/how-it-works.md, "Schemas of PostgreSQL".'
            )

    @property
    def undo_notes(self) -> list[str]:
        """That an undo was interrupted, in words."""
        return [
            f"An undo of run {number} was interrupted, so that a part of what it made is gone: "
            f"'flask db-smart undo {number}' goes on with it"
            for number in self.half_undone
        ]

    def refuse_half_undone(self) -> None:
        """Run nothing on what is neither as a run left it nor as it was before.

        :raises DbSmartError: an undo was interrupted.
        """
        if self.half_undone:
            raise DbSmartError(
                f"Cannot migrate the database {self.database.name!r} ({self.database.url}). "
                f"{'. '.join(self.undo_notes)}. Nothing was changed. Do that first, then start again."
            )

    def log_edited_once(self) -> None:
        """Say which migrations that run only once were edited after that."""
        for name in self.edited_once:
            _logger.warning(
                "db-smart: %r was edited after it was applied; it runs only once, so the edit has no effect. Write a "
                "new migration for it",
                name,
            )

    @property
    def first_run_done(self) -> bool:
        """Whether a run has ended here, of this application or of another one."""
        return self.state is not None and bool(self.state.source)

    @property
    def behind(self) -> bool:
        """Whether the database lacks something: a migration, or the end of its first run."""
        return bool(self.pending) or self.foreign or not self.first_run_done

    @property
    def blocks(self) -> bool:
        """Whether it lacks something that boot waits for: all but migrations with ``background=True``."""
        return self.foreign or not self.first_run_done or any(not item.left for item in self.pending)

    @property
    def adoptable(self) -> bool:
        """Whether it lacks our own tables alone: Alembic has applied every revision of this code, or more."""
        own = any(not item.checksum.startswith(ALEMBIC) for item in self.applied)
        return bool(self.heads) and not (self.pending or self.foreign or self.first_run_done or own)


def overall_state(states: Iterable[str]) -> str:
    """The one state that stands for several databases."""
    found = set(states)
    return next((state for state in ("unreachable", "unreadable", "pending", "ahead") if state in found), "up-to-date")


def describe(todo: list[Pending], state: State | None, applied: Sequence[Applied]) -> str:
    """Why a database is behind, or that it is not, as a clause without subject."""
    if not todo:
        if state is None or not (state.source or applied):
            return "has no history yet"
        # A script of ours applies migrations, and the run that follows it completes the first one.
        return COMPLETE if state.source else f"{COMPLETE}, and its first run is not complete yet"
    kinds: dict[str, list[str]] = {}
    for item in todo:
        how = " as a contract step" if item.migration.options.contract else " in the background" if item.left else ""
        kinds.setdefault(item.reason, []).append(item.migration.name + how)
    parts = []
    for reason, names in kinds.items():
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        parts.append(f"{len(names)} {reason} migration{'s' if len(names) > 1 else ''} ({shown})")
    return ("has no history yet: " if state is None else "has ") + " and ".join(parts)
