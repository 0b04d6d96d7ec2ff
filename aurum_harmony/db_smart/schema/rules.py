"""What operations refuse: a catalogue of rules, each with why and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DbSmartError


@dataclass(frozen=True)
class Rule:
    """One reason to refuse an operation.

    :ivar id: ``DS`` and a number, which never changes its meaning.
    :ivar summary: what is refused.
    :ivar why: what would happen.
    :ivar fix: what to do instead.
    """

    id: str
    summary: str
    why: str
    fix: str

    @property
    def document(self) -> str:
        """Where its section is, in the source distribution and the repository."""
        return f"docs/rules.md#{self.id.lower()}"


class Refused(DbSmartError):
    """An operation was refused before it did anything.

    :ivar rule: the rule.
    """

    def __init__(self, rule: Rule, what: str, detail: str = "") -> None:
        self.rule = rule
        super().__init__(f"{rule.id} {what}: {rule.summary}. {detail}{rule.why} {rule.fix} See {rule.document}.")


def counted(count: int, one: str, more: str) -> str:
    """How many rows do something, as the words after their number say it of one and of more."""
    return f"1 row {one}" if count == 1 else f"{count} rows {more}"


_ASK = "If that is what you want, say so: @migration(destructive=True)."

DROP_COLUMN = Rule(
    "DS101",
    "dropping a column destroys its data",
    "The release that still runs reads and writes it, and fails without it.",
    f"Deploy a release that no longer uses the column first, and drop it in a later one. {_ASK}",
)
DROP_TABLE = Rule(
    "DS102",
    "dropping a table destroys its data",
    "The release that still runs fails without it.",
    f"Deploy a release that no longer uses the table first, and drop it in a later one. {_ASK}",
)
RENAME_COLUMN = Rule(
    "DS103",
    "renaming a column breaks the release that still runs",
    "It asks for the old name until its last process has ended.",
    "Add a column of the new name, write both, op.backfill() it, read the new one, and drop the old one in a later "
    "release; or keep the name in the database: new_name = mapped_column('old_name') in a model, "
    f"Column('old_name', key='new_name') in a table. {_ASK}",
)
RENAME_TABLE = Rule(
    "DS104",
    "renaming a table breaks the release that still runs",
    "It asks for the old name until its last process has ended.",
    f"Keep the name in the database: __tablename__ = 'old_name'. {_ASK}",
)
NARROW_TYPE = Rule(
    "DS105",
    "the new type may not hold every value of the old one",
    "Rows may not fit, or lose digits, and the release that still runs may write more of them.",
    f"Add a column of the new type, op.backfill() it, and move over to it. {_ASK}",
)
DROP_CONSTRAINT = Rule(
    "DS106",
    "without it, rows can be written that break it",
    "The release that still runs relies on it: ON CONFLICT, ON DUPLICATE KEY and ON DELETE fail or do otherwise. "
    "Such rows stay, and it cannot be made again before they are mended.",
    "Deploy a release that no longer relies on it first, and drop it in a later one; where another one takes its "
    f"place, add that first, by another name. {_ASK}",
)
REWRITE = Rule(
    "DS201",
    "the database would rewrite the table and block its readers and writers meanwhile",
    "The table has rows, and this cannot be done in place.",
    "Add a column of the new type, write both, op.backfill() it, and move over to it; or, where the application may "
    "stand still for as long, ask for the plain form with online=False.",
)
BLOCKS = Rule(
    "DS202",
    "the database can do this only while it blocks the table's writers",
    "The table has rows.",
    "Where the application may stand still for as long, ask for the plain form with online=False.",
)
NOT_NULL = Rule(
    "DS203",
    "a column that is NOT NULL needs a value for the rows that are there",
    "The table has rows.",
    "Give it a server_default; or add it as nullable, op.backfill() it, and then op.alter_column(nullable=False).",
)
OLD_ROWS = Rule(
    "DS204",
    "rows that are there break it",
    "A constraint must hold for old rows too.",
    "Mend those rows first, for example with op.backfill(), and run the migration again.",
)
PARTITIONED = Rule(
    "DS205",
    "PostgreSQL cannot build an index of a partitioned table beside its traffic",
    "The table has rows, and its writers would be blocked.",
    "Build the index on each partition first (op.create_index(), one by one) and then on the table, where it attaches "
    "those, with online=False.",
)

#: All rules, by their number.
RULES = {rule.id: rule for rule in list(globals().values()) if isinstance(rule, Rule)}
