"""What operations refuse: a catalogue of rules, each with why and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import DbSmartError

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """One reason to refuse an operation, or to warn of it.

    :ivar id: ``DS`` and a number, which never changes its meaning.
    :ivar summary: what is refused.
    :ivar why: what would happen.
    :ivar fix: what to do instead.
    :ivar level: ``error`` for what a run refuses, or what blocks a table with rows.
    :ivar refuses: whether a run refuses it; what does not is found by ``lint`` alone.
    """

    id: str
    summary: str
    why: str
    fix: str
    level: Level = "error"
    refuses: bool = True

    @property
    def document(self) -> str:
        """Where its section is, in the source distribution and the repository."""
        return f"docs/rules.md#{self.id.lower()}"


class Refused(DbSmartError):
    """An operation was refused before it did anything.

    :ivar rule: the rule.
    :ivar instead: a migration that does it safely, as source; empty where none is known.
    """

    def __init__(self, rule: Rule, what: str, detail: str = "", *, instead: str = "") -> None:
        self.rule = rule
        self.instead = instead
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
STILL_MAPPED = Rule(
    "DS107",
    "the models of this very release still map what a contract step takes away",
    "This release would fail as soon as it is gone.",
    "Take it out of the models first; the step then waits until no earlier release runs.",
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

ENUM_VALUES = Rule(
    "DS206",
    "values of an enumeration would go or change places",
    "Rows may have them, and the release that is still running writes them and sorts by their order.",
    "Keep the existing values in their order, and add new ones with op.alter_enum(). A value that is no longer needed "
    "may stay unused. To be rid of it, add a column of a new enumeration with another name, op.backfill() it, and "
    "change over to it.",
)

_ALLOW = "If it may be so here, say why: @migration(allow={{'{}': 'because …'}})."

DROP_TAKES = Rule(
    "DS108",
    "dropping the column takes its indexes and constraints along",
    "What relied on them, such as ON CONFLICT or a foreign key of another table, fails from then on.",
    "Drop each of them before, with op.drop_index() or op.drop_constraint(), so that it can be read in the migration.",
    level="warning",
    refuses=False,
)
PRIMARY_KEY = Rule(
    "DS207",
    "SQL that adds a primary key builds its index while it blocks the table",
    "Nobody can read or write the table meanwhile.",
    "Use op.create_primary_key(), which builds the index first, while the table is in use.",
    refuses=False,
)
MANY_ROWS = Rule(
    "DS301",
    "one statement would change very many rows",
    "It locks them until the transaction ends, and the application waits for that.",
    f"Use op.backfill() or op.batches(), which work in short transactions. {_ALLOW.format('DS301')}",
)
CONTROL = Rule(
    "DS302",
    "db-smart begins and ends the transaction of a migration",
    "What was done before could no longer be undone, nor be recorded. The statement was not sent.",
    "Leave it out. Put what cannot run in a transaction into a migration with @migration(transactional=False).",
)
DESTROYS = Rule(
    "DS303",
    "this SQL destroys data",
    "The release that is still running fails without it. The statement was not sent.",
    f"First deploy a release that no longer uses it. {_ASK}",
)
TODAYS_MODEL = Rule(
    "DS304",
    "the migration uses a model of the application",
    "The model will change, and the migration, which has to run on new databases for ever, then fails or does "
    "something else.",
    "Describe what the migration needs of the table in the migration: sa.table('name', sa.column('id')).",
    level="warning",
    refuses=False,
)
KEY_WITHOUT_INDEX = Rule(
    "DS401",
    "a foreign key has no index",
    "To delete or change a row of the table that it refers to, the database reads the whole table that has the key.",
    "Add one with op.create_index().",
    level="warning",
    refuses=False,
)
SHORT_KEY = Rule(
    "DS402",
    "a 32-bit key has used more than half of its numbers",
    "When they are used up, no row can be added.",
    "Make it 64-bit in good time, with op.widen_key().",
    level="warning",
    refuses=False,
)
REDUNDANT_INDEX = Rule(
    "DS403",
    "an index is redundant",
    "Another one begins with the same columns, so it only costs time at each write, and space.",
    "Drop it with op.drop_index().",
    level="warning",
    refuses=False,
)
NO_PRIMARY_KEY = Rule(
    "DS404",
    "a table has no primary key",
    "Its rows cannot be told apart: replication is slow or refused, and op.backfill() cannot work in batches.",
    "Add one with op.create_primary_key().",
    level="warning",
    refuses=False,
)

#: All rules, by their number.
RULES = dict(sorted((rule.id, rule) for rule in list(globals().values()) if isinstance(rule, Rule)))
