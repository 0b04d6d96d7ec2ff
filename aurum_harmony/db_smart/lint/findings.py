"""What ``lint`` has to say: findings, and what each statement takes."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field

from ..loading.decorator import Migration
from ..schema.rules import Level, Rule


@dataclass(frozen=True)
class Finding:
    """One breach of a rule.

    :ivar rule: the rule.
    :ivar message: what breaks it.
    :ivar migration: its migration or revision; ``None`` for what models or a database have.
    :ivar path: its file, as it is shown.
    :ivar line: in that file.
    :ivar statement: the SQL.
    :ivar instead: a migration to write instead.
    :ivar fix: what to do, where the words of the rule do not fit.
    :ivar allowed: why it is allowed; ``None`` where it is not.
    :ivar where: of what is wrong with a table itself, whose it is: ``the models`` or ``the database``.
    """

    rule: Rule
    level: Level
    message: str
    migration: str | None = None
    path: str | None = None
    line: int | None = None
    statement: str | None = None
    instead: str = ""
    fix: str = ""
    allowed: str | None = None
    where: str | None = None

    def same_line(self, other: Finding) -> bool:
        """Whether both say that the same line breaks the same rule."""
        return (self.rule, self.migration, self.line) == (other.rule, other.migration, other.line)

    @property
    def refused(self) -> bool:
        """Whether a run would not do it."""
        return self.rule.refuses and self.level == "error" and self.allowed is None and self.migration is not None


@dataclass(frozen=True)
class Taken:
    """What one statement takes of one table.

    :ivar rows: how many the table has, about; ``None`` where it is new or not known.
    :ivar seconds: how long the lock is needed, about.
    """

    migration: str
    line: int | None
    statement: str
    table: str
    lock: str
    blocks: str
    work: str
    rows: int | None
    seconds: float | None


@dataclass
class Traced:
    """What one statement did.

    :ivar locks: PostgreSQL: by table the strongest lock that it took.
    :ivar rewritten: tables that were written again.
    :ivar accepted: MariaDB: the weakest form that the server accepts.
    :ivar error: why it could not be done there.
    """

    migration: str
    statement: str
    seconds: float = 0.0
    locks: dict[str, str] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)
    accepted: str | None = None
    error: str | None = None


@dataclass
class Linted:
    """What was found out about one database and its migrations.

    :ivar traced: what each statement did on a scratch copy; ``None`` where that was not asked for.
    :ivar unreachable: why the database was not asked; ``None`` where it was.
    :ivar notes: what could not be found out.
    :ivar failing: which migrations would fail without a rule that refuses something, and why.
    """

    database: str
    unreachable: str | None = None
    migrations: list[str] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)
    traced: list[Traced] | None = None

    @property
    def errors(self) -> int:
        """How many migrations would fail, and findings are errors that nobody allows."""
        return len(self.failing) + sum(one.level == "error" and one.allowed is None for one in self.findings)


def shown_path(migration: Migration) -> str:
    """The path of a migration's file, from the working directory where it is below that."""
    return short_path(migration.path)


def short_path(path: str) -> str:
    """A path from the working directory where it is below that."""
    with suppress(ValueError):  # on another drive
        short = os.path.relpath(path)
        return path if short.startswith(os.pardir) else short
    return path
