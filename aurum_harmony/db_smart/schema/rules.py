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
    """A number of rows as the subject of a sentence, with the verb for one row or for several."""
    return f"1 row {one}" if count == 1 else f"{count} rows {more}"


_ASK = "If that is what you want, say so: @migration(destructive=True)."

DROP_COLUMN = Rule(
    "DS101",
    "dropping a column destroys its data",
    "The release that is still running reads and writes it, and fails without it.",
    f"First deploy a release that no longer uses the column, and drop it in a later one. {_ASK}",
)
DROP_TABLE = Rule(
    "DS102",
    "dropping a table destroys its data",
    "The release that is still running fails without it.",
    f"First deploy a release that no longer uses the table, and drop it in a later one. {_ASK}",
)
RENAME_COLUMN = Rule(
    "DS103",
    "renaming a column breaks the release that is still running",
    "It asks for the old name until its last process has ended.",
    "Add a column with the new name, write both, op.backfill() it, read the new one, and drop the old one in a later "
    "release. Or keep the name in the database: new_name = mapped_column('old_name') in a model, "
    f"Column('old_name', key='new_name') in a table. {_ASK}",
)
RENAME_TABLE = Rule(
    "DS104",
    "renaming a table breaks the release that is still running",
    "It asks for the old name until its last process has ended.",
    f"Keep the name in the database: __tablename__ = 'old_name'. {_ASK}",
)
NARROW_TYPE = Rule(
    "DS105",
    "the new type may not hold every value of the old one",
    "Rows may not fit, or lose digits, and the release that is still running may write more of them.",
    f"Add a column of the new type, op.backfill() it, and change over to it. {_ASK}",
)
DROP_CONSTRAINT = Rule(
    "DS106",
    "without it, rows can be written that break it",
    "The release that is still running relies on it: ON CONFLICT, ON DUPLICATE KEY and ON DELETE fail or do something "
    "else. Such rows stay, and you cannot create it again before you have fixed them.",
    "First deploy a release that no longer relies on it, and drop it in a later one. If another one takes its place, "
    f"add that first, with another name. {_ASK}",
)
REWRITE = Rule(
    "DS201",
    "the database would rewrite the table and block its readers and writers meanwhile",
    "The table has rows, and this cannot be done in place.",
    "Add a column of the new type, write both, op.backfill() it, and change over to it. Or, if the application may "
    "stand still for that time, ask for the plain form with online=False.",
)
BLOCKS = Rule(
    "DS202",
    "the database can do this only while it blocks the table's writers",
    "The table has rows.",
    "If the application may stand still for that time, ask for the plain form with online=False.",
)
NOT_NULL = Rule(
    "DS203",
    "a column that is NOT NULL needs a value for existing rows",
    "The table has rows.",
    "Give it a server_default. Or add it as nullable, op.backfill() it, and then op.alter_column(nullable=False).",
)
OLD_ROWS = Rule(
    "DS204",
    "existing rows break it",
    "A constraint must hold for old rows too.",
    "Fix those rows first, for example with op.backfill(), and run the migration again.",
)
PARTITIONED = Rule(
    "DS205",
    "PostgreSQL cannot build an index of a partitioned table without blocking its writers",
    "The table has rows, and its writers would have to wait.",
    "First build the index on each partition with op.create_index(). Then create it on the table with online=False, "
    "which only attaches those.",
)

#: All rules, by their number.
RULES = {rule.id: rule for rule in list(globals().values()) if isinstance(rule, Rule)}
