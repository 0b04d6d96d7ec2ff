"""What a migration would do to bring a database to the models: the differences as operations, in a safe order."""

from __future__ import annotations

import copy
import enum
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import sqlalchemy as sa
from alembic.operations import ops
from sqlalchemy.sql.ddl import sort_tables_and_constraints
from sqlalchemy.types import TypeEngine

from ..schema.column_types import compare
from ..session.sql import needed, without_doubled_percents
from ..store.database import Database
from .differences import Difference

#: How long a name can be on PostgreSQL, characters.
_MAX_NAME = 63
#: The first words of what is left to its author.
_LATER = "The release that is still running may use it. Deploy this release first, then do this in a later one:"
_NARROW = (
    "The new type may not hold every value of the old one. Better add a column of the new type, op.backfill() it, and "
    "change over to it. Where all values fit:"
)
_BLOCKS = "No operation does that. The database blocks the writers of the table meanwhile:"
_WAITING = "When the table and its keys are as in the models:"
_LESS = "The new index keeps fewer values apart, which the release that is still running may rely on. In a later one:"
_REPLACED = (
    "Without it, rows can be written that break it. If rows may do so, add the new one with another name first. Else, "
    "both together:"
)
_WORD = re.compile(r"\w+")
#: Facets of a column that its definition on MariaDB has, and no operation.
_OF_DEFINITION = {"on update", "invisible", "autoincrement", "computed"}
#: Options of a table on MariaDB, as SQL has them.
_OPTIONS = {"engine": "ENGINE", "collation": "COLLATE"}


class RenameTable(ops.RenameTableOp):
    """A new name of a table, with a way back."""

    def reverse(self) -> RenameTable:
        """The old name again."""
        return RenameTable(self.new_table_name, self.table_name, schema=self.schema)


@dataclass(frozen=True)
class Change:
    """One operation.

    :ivar operation: as Alembic has it; ``None`` for what it has no operation for.
    :ivar call: the call of db-smart's operation, where that is another one than Alembic's.
    :ivar sql: what a revision of Alembic does in its place.
    :ivar advice: why it is not done, but left to the author of the migration as a comment; ``None`` where it is done.
    :ivar destructive: whether it needs ``@migration(destructive=True)``.
    :ivar replaces: whether it makes an index in the place of another one of its name.
    :ivar widens: whether it takes along the foreign keys that refer to the column.
    """

    operation: ops.MigrateOperation | None
    call: str | None = None
    sql: str | None = None
    advice: str | None = None
    destructive: bool = False
    replaces: bool = False
    widens: bool = False


#: What ``op.alter_column()`` changes.
_ALTERED = ("type", "collation", "nullable", "default", "comment")


class Changes:
    """Makes the changes of one database.

    :param metadata: of the models.
    :param database: asked for the types that columns have.
    :param renames: (table, old column) -> new column, or (old table, ``None``) -> new table.
    """

    def __init__(
        self, metadata: sa.MetaData, database: Database, renames: Mapping[tuple[str, str | None], str] | None = None
    ) -> None:
        self._database, self._facts = database, database.facts
        self._dialect = without_doubled_percents(database.app_engine.dialect)
        self._tables = {
            (table.schema, self._facts.normalize_name(table.name)): table for table in metadata.tables.values()
        }
        self._preparer: Any = self._dialect.identifier_preparer
        for constraint in (one for table in metadata.tables.values() for one in table.constraints):
            if isinstance(constraint.name, sa.schema.conv):  # the database has it as it is cut
                constraint.name = self._preparer.format_constraint(constraint, _alembic_quote=False)
        self._sequences = metadata._sequences
        self._renames = renames or {}
        #: Columns whose type stays what it is until a person takes in a comment: the table, and the normalized name.
        self._held: set[tuple[str, str]] = set()
        #: Columns that are as foreign keys need them only later in this migration; and the keys of new tables to them.
        self._later: set[tuple[str, str]] = set()
        self._behind: list[tuple[sa.ForeignKeyConstraint, sa.Table]] = []
        #: Columns to which foreign keys refer; and those of the keys, each with the columns that it refers to.
        self._targets: set[tuple[str, str]] = set()
        self._targets_of: dict[tuple[str, str], set[tuple[str, str]]] = {}
        self._there: dict[tuple[str | None, str], dict[str, TypeEngine[Any]]] = {}

    def of(self, differences: Iterable[Difference]) -> list[Change]:
        """What a migration would do, first what others need, last what destroys, as comments."""
        found = self._without_renamed_parts([one for one in differences if not self._is_renamed(one)])
        made = [one for one in found if one.side == "models"]
        changed = [one for one in found if one.side == "both"]
        left = [one for one in found if one.side == "database"]
        nameless = [
            pair for one in left if one.kind == "foreign key" and one.name is None for pair in _same_key(one, made)
        ]
        made = [one for one in made if all(one is not mine for mine, _ in nameless)]
        left = [one for one in left if all(one is not theirs for _, theirs in nameless)]
        moved = {one.owner for one in changed if one.kind == "table" and "engine" in one.changes}
        moved |= {one.owner for one in changed if one.kind in ("primary key", "unique")}
        self._held = held = {self._place(one) for one in changed if self._relation(one) == "other"}
        self._later, self._behind = {*self._made_later(made, changed)}, []
        self._targets_of = self._referred_to(left)
        self._targets = set().union(*self._targets_of.values())
        waiting = [one for one in made if self._waits(one, moved, held)]
        taken = {self._name_of(one) for one in left if one.kind not in ("table", "column") and one.name is not None}
        clashing = [one for one in made if one not in waiting and one.name and self._name_of(one) in taken]
        made = [one for one in made if one not in waiting and one not in clashing]
        return [
            *self._renamed(),
            *self._enumerations(one for one in changed if one.kind == "enumeration"),
            *self._new_sequences(one for one in made if one.kind == "sequence"),
            *self._new_tables([self._table(one) for one in made if one.kind == "table"]),
            *self._new_columns(one for one in made if one.kind == "column"),
            *self._altered(one for one in changed if one.kind in ("column", "table")),
            *self._replaced(one for one in changed if one.kind not in ("column", "table", "enumeration")),
            *self._new_parts(one for one in made if one.kind not in ("column", "table", "sequence")),
            *(Change(ops.CreateForeignKeyOp.from_constraint(self._named(*key))) for key in self._behind),
            *(replace(change, advice=_WAITING) for change in self._new_parts(waiting)),
            *(Change(None, advice=_nameless(mine, theirs)) for mine, theirs in nameless),
            *self._dropped(left),
            *(replace(change, advice=_LATER, destructive=True) for change in self._new_parts(clashing)),
        ]

    def _made_later(self, made: Iterable[Difference], changed: Iterable[Difference]) -> Iterator[tuple[str, str]]:
        if self._facts.name == "sqlite":  # where a foreign key can refer to what is not there
            return
        yield from (self._place(one) for one in changed if self._relation(one) == "wider")
        for one in made:
            if one.kind == "column":
                yield self._place(one)
            elif one.kind in ("primary key", "unique") or (one.models or {}).get("unique"):
                yield from (self._place(one, str(name)) for name in (one.models or {})["columns"])

    def _referred_to(self, left: Iterable[Difference]) -> dict[tuple[str, str], set[tuple[str, str]]]:
        """Columns of foreign keys, of the models or such that only the database has, each with those it refers to."""
        normalize_name = self._facts.normalize_name
        found: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for table in self._tables.values():
            for element in (one for key in table.foreign_key_constraints for one in key.elements):
                own = normalize_name(table.fullname), normalize_name(element.parent.name)
                target = normalize_name(element.column.table.fullname), normalize_name(element.column.name)
                found.setdefault(own, set()).add(target)
        for one in left:
            key = one.database or {}
            if one.kind == "foreign key":
                for name, other in zip(key["columns"], key["target columns"], strict=True):
                    target = normalize_name(str(key["target"])), normalize_name(str(other))
                    found.setdefault(self._place(one, str(name)), set()).add(target)
        return found

    def _place(self, one: Difference, column: str | None = None) -> tuple[str, str]:
        """The table and a column, by normalized names."""
        name = str(one.name) if column is None else column
        return self._facts.normalize_name(one.owner), self._facts.normalize_name(name)

    def _waits(self, one: Difference, moved: set[str], held: set[tuple[str, str]]) -> bool:
        """Whether a constraint or an index can be made only when other changes are, which are left as comments."""
        key, normalize_name = one.models or {}, self._facts.normalize_name
        if one.kind in ("check", "unique", "primary key", "index", "exclusion"):
            # Of a column of another type it would be another one, or cannot be made.
            told = (key.get(name) for name in ("condition", "columns", "where", "definition"))
            words = {*_WORD.findall(normalize_name(str([*filter(None, told)])))}
            return any(table == normalize_name(one.owner) and {*_WORD.findall(name)} <= words for table, name in held)
        if one.kind != "foreign key":
            return False
        owner, target = normalize_name(one.owner), normalize_name(key["target"])
        ends = {(owner, column) for column in key["columns"]} | {(target, column) for column in key["target columns"]}
        return bool({*map(normalize_name, moved)} & {owner, target} or held & ends)

    def _relation(self, one: Difference) -> str:
        """What the change of a column does to its type: ``"same"``, ``"wider"`` or ``"other"``."""
        if one.kind != "column" or not {"type", "collation"} & one.changes.keys():
            return "same"
        column, there = self._column(one), self._type_there(one)
        relation = compare(there, self._collated(column.type, one), self._dialect) if there is not None else "wider"
        if self._facts.name == "sqlite" and column.primary_key and relation != "other":
            return "same"  # its numbering comes from the name of the type, so that no operation changes it
        return relation

    def _name_of(self, one: Difference) -> tuple[object, ...]:
        """What may be there only once: the name of a constraint in its table, of an index in its schema."""
        wide = one.kind in ("index", "unique") and self._facts.name != "mysql"
        return one.schema, None if wide else one.table, self._facts.normalize_name(str(one.name))

    def _table(self, one: Difference) -> sa.Table:
        return self._tables[one.schema, self._facts.normalize_name(str(one.table))]

    def _column(self, one: Difference) -> sa.Column[Any]:
        wanted = self._facts.normalize_name(str(one.name))
        return next(column for column in self._table(one).columns if self._facts.normalize_name(column.name) == wanted)

    def _is_renamed(self, one: Difference) -> bool:
        """Whether a difference is only that something has a new name."""
        if one.kind not in ("table", "column"):
            return False
        old = {(table, column) for table, column in self._renames}
        new = {(table if column else name, column and name) for (table, column), name in self._renames.items()}
        return (one.owner, one.name) in (old if one.side == "database" else new)

    def _without_renamed_parts(self, found: Sequence[Difference]) -> list[Difference]:
        """Without the keys and indexes that only differ in names of columns and tables that a rename changes."""
        if not self._renames:
            return list(found)
        made = {self._part(one.owner, one.kind, one.models): one for one in found if one.side == "models"}
        follow: set[int] = set()
        for one in found:
            if one.side == "both" and self._part(one.owner, one.kind, one.models) == self._part(
                one.owner, one.kind, one.database, renamed=True
            ):
                follow.add(id(one))
            elif one.side == "database":
                other = made.get(self._part(one.owner, one.kind, one.database, renamed=True))
                if other is not None and other.kind not in ("column", "table"):
                    follow |= {id(one), id(other)}
        return [one for one in found if id(one) not in follow]

    def _part(self, owner: str, kind: str, facets: Mapping[str, Any] | None, *, renamed: bool = False) -> str:
        """What tells a key or an index from others, with the new names where they are wanted."""
        renames = self._renames if renamed else {}
        told = dict(facets or {})
        target = str(told.get("target"))
        for name, table in (("columns", owner), ("target columns", target)):
            if isinstance(told.get(name), tuple):
                told[name] = tuple(renames.get((table, str(column)), column) for column in told[name])
        if "target" in told:
            told["target"] = renames.get((target, None), target)
        return repr((renames.get((owner, None), owner), kind, sorted(told.items(), key=str)))

    def _renamed(self) -> Iterator[Change]:
        for (table, column), name in self._renames.items():
            schema, _, plain = table.rpartition(".")
            if column is None:
                operation: ops.MigrateOperation = RenameTable(plain, name.rpartition(".")[2], schema=schema or None)
            else:
                operation = ops.AlterColumnOp(plain, column, schema=schema or None, modify_name=name)
            yield Change(operation, destructive=True)

    def _enumerations(self, found: Iterable[Difference]) -> Iterator[Change]:
        for one in found:
            assert one.models is not None
            assert one.database is not None
            wanted, there = list(one.models["values"]), list(one.database["values"])
            added = [value for value in wanted if value not in there]
            if [value for value in wanted if value in there] != there:
                yield Change(
                    None,
                    advice=f"The values of the enumeration {one.name} are {there} in the database, {wanted} in the "
                    "models. PostgreSQL cannot take values away or move them: add a column of a new type, "
                    "op.backfill() it, and change over to it.",
                )
                continue
            for value in added:
                place = wanted.index(value)
                where = f"after={wanted[place - 1]!r}" if place else f"before={there[0]!r}"
                schema = "" if one.schema is None else f", schema={one.schema!r}"
                beside = f"AFTER {_text(wanted[place - 1])}" if place else f"BEFORE {_text(there[0])}"
                sql = f"ALTER TYPE {one.owner} ADD VALUE IF NOT EXISTS {_text(value)} {beside}"
                yield Change(None, f"op.alter_enum({one.name!r}, add=[{value!r}], {where}{schema})", sql)
                there.insert(place, value)

    def _new_tables(self, tables: Sequence[sa.Table]) -> Iterator[Change]:
        made: set[sa.Table] = set()
        for table, keys in sort_tables_and_constraints(sorted(tables, key=lambda one: one.key)):  # type: ignore[no-untyped-call]
            if table is None:
                for key in keys:
                    yield Change(ops.CreateForeignKeyOp.from_constraint(self._named(key, key.table)))
                continue
            made.add(table)
            operation = ops.CreateTableOp.from_table(table)
            waiting = [key for key in keys if self._refers_to(key, self._held)]
            behind = [key for key in keys if key not in waiting and self._refers_to(key, self._later)]
            self._behind += ((key, table) for key in behind)
            later = (table.foreign_key_constraints - set(keys)) | {*waiting, *behind}
            operation.columns = [one for one in operation.columns if getattr(one, "_referred", one) not in later]
            operation.columns = [self._unnumbered(one) for one in operation.columns]
            operation.columns = [one for one in operation.columns if self._is_needed(one)]
            operation.columns += self._checks_of_columns(table)
            yield Change(operation)
            for key in waiting:
                yield Change(ops.CreateForeignKeyOp.from_constraint(self._named(key, table)), advice=_WAITING)
            for constraint in sorted(table.constraints, key=lambda one: str(one.name)):
                yield from self._commented(constraint)
            made_here = (one for one in table.indexes if needed(one, self._dialect))
            for index in sorted(made_here, key=lambda one: str(one.name)):
                yield Change(self._create_index(index))

    def _refers_to(self, key: sa.ForeignKeyConstraint, columns: set[tuple[str, str]]) -> bool:
        targets = [element.column for element in key.elements]
        return bool(
            columns
            & {
                (self._facts.normalize_name(one.table.fullname), self._facts.normalize_name(one.name))
                for one in targets
            }
        )

    def _is_needed(self, item: sa.schema.SchemaItem) -> bool:
        return not isinstance(item, sa.Constraint) or needed(item, self._dialect)

    def _unnumbered(self, item: sa.schema.SchemaItem) -> sa.schema.SchemaItem:
        """A column that has its numbers from a sequence of the models is not to be numbered by the database too."""
        if not isinstance(item, sa.Column) or not isinstance(item.default, sa.Sequence) or item.default.optional:
            return item
        if not self._dialect.supports_sequences or item.server_default is not None:
            return item
        column = item._copy()
        column.autoincrement = False
        return column

    def _commented(self, constraint: sa.Constraint) -> Iterator[Change]:
        """The comment of a constraint, which only PostgreSQL has."""
        if constraint.comment and constraint.name is not None and self._dialect.supports_constraint_comments:
            yield self._execute(sa.schema.SetConstraintComment(constraint))

    def _checks_of_columns(self, table: sa.Table) -> Iterator[sa.CheckConstraint]:
        """The checks that are written with a column, as checks of the table."""
        for column in table.columns:
            for check in column.constraints:
                if isinstance(check, sa.CheckConstraint) and needed(check, self._dialect):
                    yield sa.CheckConstraint(check.sqltext, check.name)

    def _new_sequences(self, found: Iterable[Difference]) -> Iterator[Change]:
        for one in found:
            sequence = next(
                item
                for item in self._sequences.values()
                if item.schema == one.schema and self._same_name(item.name, one.name)
            )
            yield self._execute(sa.schema.CreateSequence(sequence, if_not_exists=True))

    def _execute(self, statement: str | sa.schema.DDLElement, advice: str | None = None) -> Change:
        """A statement that is sent as it is."""
        sql = statement if isinstance(statement, str) else str(statement.compile(dialect=self._dialect))
        sql = " ".join(sql.split("\n")).replace("\t", "").strip() if not isinstance(statement, str) else sql
        escaped = sql.replace("\\", "\\\\").replace(":", "\\:")
        return Change(None, f"op.execute({escaped!r})", sql, advice)

    def _same_name(self, one: object, other: object) -> bool:
        return self._facts.normalize_name(str(one)) == self._facts.normalize_name(str(other))

    def _type_there(self, one: Difference) -> TypeEngine[Any] | None:
        """The type that a column has; ``None`` where only a pending migration makes it."""
        place = one.schema, str(one.table)
        if place not in self._there:
            self._there[place] = {}
            if self._database.exists:
                with self._database.connect() as connection, warnings.catch_warnings():
                    warnings.simplefilter("ignore", sa.exc.SAWarning)  # of what SQLAlchemy does not know
                    inspector = sa.inspect(connection)
                    if inspector.has_table(place[1], schema=one.schema):
                        columns = inspector.get_columns(place[1], schema=one.schema)
                        self._there[place] = {self._facts.normalize_name(c["name"]): c["type"] for c in columns}
        return self._there[place].get(self._facts.normalize_name(str(one.name)))

    def _new_columns(self, found: Iterable[Difference]) -> Iterator[Change]:
        for one in found:
            column = self._column(one)
            added = column._copy()
            for item in [*added.constraints]:
                added.constraints.discard(item)
            if column.nullable or column.server_default is not None or column.identity is not None:
                yield Change(ops.AddColumnOp(str(one.table), added, schema=one.schema))
                continue
            added.nullable = True
            yield Change(ops.AddColumnOp(str(one.table), added, schema=one.schema))
            yield from self._filled(one, column)

    def _filled(self, one: Difference, column: sa.Column[Any]) -> Iterator[Change]:
        """A column of which every row has a value, and is to have one from now on."""
        default = getattr(column.default, "arg", None) if column.default is not None else None
        schema = "" if one.schema is None else f", schema={one.schema!r}"
        name = self._preparer.quote(column.name)
        if isinstance(default, enum.Enum) and isinstance(column.type, sa.Enum):
            default = cast(Any, column.type)._db_value_for_elem(default)
        elif isinstance(default, enum.Enum):
            default = default.value
        # Infinity and what is no number have no literal.
        if isinstance(default, (str, int)) or (isinstance(default, float) and math.isfinite(default)):
            value = _text(default) if isinstance(default, str) else repr(default)
            sql = f"UPDATE {self._quoted(one)} SET {name} = {value} WHERE {name} IS NULL"
            yield Change(None, self._backfill(one, name, repr(default), schema), sql)
        else:
            yield Change(
                None,
                self._backfill(one, name, "...", schema),
                advice=f"Rows that exist need a value for {one.path}. Say which:",
            )
        filled = ops.AlterColumnOp(
            str(one.table), column.name, schema=one.schema, modify_nullable=False, existing_type=column.type
        )
        yield Change(filled)

    @staticmethod
    def _backfill(one: Difference, name: str, value: str, schema: str) -> str:
        where = f"{name} IS NULL"
        return f"op.backfill({one.table!r}, {{{one.name!r}: {value}}}, where={where!r}{schema})"

    def _altered(self, found: Iterable[Difference]) -> Iterator[Change]:
        def order(one: Difference) -> tuple[bool, int]:
            return not (one.kind == "column" and self._is_key(one)), self._depth(self._place(one))

        for one in sorted(found, key=order):  # they take the columns of foreign keys along
            yield from self._altered_table(one) if one.kind == "table" else self._altered_column(one)

    def _depth(self, place: tuple[str, str], below: frozenset[tuple[str, str]] = frozenset()) -> int:
        """How many columns one refers to by foreign keys, one by way of another."""
        above = self._targets_of.get(place, set()) - below - {place}
        return max((1 + self._depth(one, below | {place}) for one in above), default=0)

    def _is_key(self, one: Difference) -> bool:
        """Whether a column changes its type together with the foreign keys that refer to it.

        On MariaDB that is every column to which one refers; elsewhere an integer that is the key of its table.
        """
        column = self._column(one)
        if self._facts.name == "mysql" and self._place(one) in self._targets:
            return True
        return (
            [*column.table.primary_key] == [column]
            and isinstance(column.type, sa.Integer)
            and self._facts.name != "sqlite"
        )

    def _altered_column(self, one: Difference) -> Iterator[Change]:
        column, changes = self._column(one), one.changes
        wanted = self._collated(column.type, one)
        options: dict[str, Any] = {}
        rest = [name for name in changes if name not in _ALTERED]
        relation = self._relation(one)
        if _OF_DEFINITION & {*rest} and self._facts.name == "mysql":
            yield self._modified(one, column, "No operation does that. The database may block writers meanwhile:")
            return
        if "default" in changes and not {"computed", "identity"} & {*rest}:
            options["modify_server_default"] = column.server_default
        if "comment" in changes:
            options["modify_comment"] = column.comment
        if "nullable" in changes and column.nullable:
            options["modify_nullable"] = True
        if "type" in changes or "collation" in changes:
            if relation == "same":
                if self._facts.name == "mysql":
                    yield self._modified(
                        one,
                        column,
                        "To op.alter_column() these two are the same. The database may block writers meanwhile:",
                    )
                else:
                    rest += [name for name in ("type", "collation") if name in changes]
            elif relation == "wider" and self._is_key(one):
                operation = ops.AlterColumnOp(str(one.table), column.name, schema=one.schema, modify_type=wanted)
                yield Change(operation, widens=True)
            elif relation == "wider":
                options["modify_type"] = wanted
        narrow: dict[str, Any] = {"modify_type": wanted}
        if relation == "other" and "modify_server_default" in options:  # which the old type may not take
            narrow["modify_server_default"] = options.pop("modify_server_default")
        if options:
            yield Change(ops.AlterColumnOp(str(one.table), column.name, schema=one.schema, **options))
        if relation == "other":
            operation = ops.AlterColumnOp(str(one.table), column.name, schema=one.schema, **narrow)
            widens = len(narrow) == 1 and self._facts.name == "mysql" and self._is_key(one)
            yield Change(operation, advice=_NARROW, destructive=True, widens=widens)
        if "nullable" in changes and not column.nullable:
            yield from self._filled(one, column)
        for name in rest:
            models, database = changes[name]
            yield Change(
                None,
                advice=f"{one.path}: {name} is {models or 'none'} in the models, {database or 'none'} in the "
                "database. That cannot be changed in place: add a column, op.backfill() it, and change over to it.",
            )

    def _collated(self, kind: TypeEngine[Any], one: Difference) -> TypeEngine[Any]:
        """A type with the collation that the column has in the models, where that is of another one."""
        if "collation" not in one.changes or not isinstance(kind, sa.String) or kind.collation is not None:
            return kind
        collation = one.changes["collation"][0] or ("default" if self._facts.name == "postgresql" else None)
        if collation is None:
            return kind
        collated = copy.copy(kind)
        collated.collation = str(collation).rpartition(".")[2].strip('"')
        return collated

    def _modified(self, one: Difference, column: sa.Column[Any], advice: str) -> Change:
        """A column of MariaDB with the definition that the models have."""
        definition = str(sa.schema.CreateColumn(column).compile(dialect=self._dialect))
        how = "MODIFY"
        if column.computed is not None:
            how = f"DROP COLUMN {self._preparer.quote(column.name)}, ADD COLUMN"
        return self._execute(f"ALTER TABLE {self._quoted(one)} {how} {definition}", advice)

    def _quoted(self, one: Difference) -> str:
        """A table, as SQL has it."""
        schema = "" if one.schema is None else f"{self._preparer.quote(one.schema)}."
        return f"{schema}{self._preparer.quote(str(one.table))}"

    def _altered_table(self, one: Difference) -> Iterator[Change]:
        for name, (models, database) in one.changes.items():
            if name == "comment":
                comment = ops.CreateTableCommentOp(str(one.table), models, schema=one.schema, existing_comment=database)
                yield Change(comment if models else ops.DropTableCommentOp(str(one.table), schema=one.schema))
                continue
            advice = f"{one.owner}: {name} is {models or 'none'} in the models, {database or 'none'} in the database."
            if self._facts.name == "postgresql" and (name == "unlogged" or (name == "with" and models)):
                logged = "UNLOGGED" if models else "LOGGED"
                sql = f"ALTER TABLE {self._quoted(one)} SET {logged if name == 'unlogged' else f'({models})'}"
                yield self._execute(sql, f"{advice} The database may block the table meanwhile:")
                continue
            if name in _OPTIONS and models and self._facts.name == "mysql":
                sql = f"ALTER TABLE {self._quoted(one)} {_OPTIONS[name]} = {models}"
                yield self._execute(sql, f"{advice} The database may block writers meanwhile:")
            else:
                yield Change(None, advice=advice)

    def _replaced(self, found: Iterable[Difference]) -> Iterator[Change]:
        for one in found:
            changed = {*one.changes}
            if one.kind == "index" and changed == {"ignored"}:
                name = self._preparer.quote(str(one.name))
                yield self._execute(f"ALTER TABLE {self._quoted(one)} ALTER INDEX {name} NOT IGNORED")
            elif one.kind == "index":
                index = self._index(one)
                less = (one.database or {}).get("unique") and not (index.unique and "columns" not in changed)
                advice = _LESS if less else _WAITING if self._waits(one, set(), self._held) else None
                yield Change(self._create_index(index), replaces=True, advice=advice, destructive=bool(less))
            elif changed == {"not valid"} and one.name is not None:
                name = self._preparer.quote(one.name)
                yield self._execute(f"ALTER TABLE {self._quoted(one)} VALIDATE CONSTRAINT {name}")
            elif changed == {"comment"} and one.name is not None and self._facts.name == "postgresql":
                yield self._commented_again(one)
            elif one.kind == "primary key" and self._facts.name == "mysql":
                names = ", ".join(self._preparer.quote(c.name) for c in self._table(one).primary_key)
                sql = f"ALTER TABLE {self._quoted(one)} DROP PRIMARY KEY, ADD PRIMARY KEY ({names})"
                yield self._execute(sql, _LATER)
            elif one.name is None or one.kind in ("sequence", "domain") or "comment" in changed:
                yield Change(None, advice=f"No operation changes this: {one.path}: {one}.")
            else:
                yield Change(self._drop_constraint(one), advice=_REPLACED, destructive=True)
                for change in self._new_parts([one]):
                    yield replace(change, advice=_REPLACED, destructive=True)

    def _commented_again(self, one: Difference) -> Change:
        text = one.changes["comment"][0]
        comment = "NULL" if text is None else _text(text)
        name = self._preparer.quote(str(one.name))
        return self._execute(f"COMMENT ON CONSTRAINT {name} ON {self._quoted(one)} IS {comment}")

    @staticmethod
    def _drop_constraint(one: Difference) -> ops.DropConstraintOp:
        kind = {"foreign key": "foreignkey", "primary key": "primary"}.get(one.kind, one.kind)
        return ops.DropConstraintOp(one.name_there or one.name, str(one.table), kind, schema=one.schema)

    def _new_parts(self, found: Iterable[Difference]) -> Iterator[Change]:
        order = ("index", "primary key", "unique", "check", "foreign key", "exclusion")
        for one in sorted(found, key=lambda one: order.index(one.kind) if one.kind in order else -1):
            if one.kind == "index":
                yield Change(self._create_index(self._index(one)))
            elif one.kind in ("unique", "check", "foreign key"):
                yield from self._new_constraint(one)
            elif one.kind == "primary key":
                table = self._table(one)
                name, names = one.name or self._free_name(table, "pkey"), [c.name for c in table.primary_key]
                schema = "" if one.schema is None else f", schema={one.schema!r}"
                listed = ", ".join(map(self._preparer.quote, names))
                sql = f"ALTER TABLE {self._quoted(one)} ADD PRIMARY KEY ({listed})"
                yield Change(None, f"op.create_primary_key({name!r}, {table.name!r}, {names!r}{schema})", sql)
            elif one.kind in ("enumeration", "sequence"):
                continue  # an enumeration comes with its column
            elif one.kind == "exclusion":
                yield from self._new_exclusion(one)
            else:
                yield Change(None, advice=f"The database lacks this: {one.owner}: {one}.")

    def _new_exclusion(self, one: Difference) -> Iterator[Change]:
        constraints = [item for item in self._table(one).constraints if hasattr(item, "_render_exprs")]
        item = next((item for item in constraints if one.name is not None and item.name == one.name), None)
        if item is None:
            yield Change(None, advice=f"The database lacks this: {one.owner}: {one}.")
        else:
            rule = item._create_rule  # which this takes out of the table of the models
            statement = sa.schema.AddConstraint(item)
            item._create_rule = rule
            yield self._execute(statement, _BLOCKS)

    def _new_constraint(self, one: Difference) -> Iterator[Change]:
        table, facets = self._table(one), one.models or {}
        if one.kind == "check":
            named = [
                item for item in table.constraints if isinstance(item, sa.CheckConstraint) and item.name == one.name
            ]
            condition = self._sql(named[0].sqltext) if named and one.name is not None else str(facets["condition"])
            name = one.name or self._free_name(table, "check")
            text = sa.text(condition.replace(":", "\\:"))  # no colon in it is that of a parameter
            yield Change(ops.CreateCheckConstraintOp(name, table.name, text, schema=one.schema))
            return
        kind = sa.UniqueConstraint if one.kind == "unique" else sa.ForeignKeyConstraint
        wanted = tuple(facets["columns"])
        found = [
            item
            for item in table.constraints
            if isinstance(item, kind)
            and tuple(self._facts.normalize_name(each.name) for each in item.columns) == wanted
        ]
        item = next((item for item in found if item.name == one.name), found[0] if found else None)
        if isinstance(item, sa.ForeignKeyConstraint):
            yield Change(ops.CreateForeignKeyOp.from_constraint(self._named(item, table)))
            return
        normalize_name = self._facts.normalize_name
        index = next((index for index in table.indexes if index.unique and index.name == one.name), None)
        if item is None and index is not None:  # MariaDB makes no difference between the two
            yield Change(self._create_index(index))
            return
        # A unique column may be one without a constraint in the models.
        names = [column.name for column in (item or table).columns if normalize_name(column.name) in wanted]
        names.sort(key=lambda name: wanted.index(normalize_name(name)))
        options: dict[str, Any] = {} if item is None else dict(item.dialect_kwargs)
        if item is not None:
            more = {"deferrable": item.deferrable, "initially": item.initially}
            options |= {option: value for option, value in more.items() if value is not None}
        name = one.name or self._free_name(table, *names, "key")
        yield Change(ops.CreateUniqueConstraintOp(name, table.name, names, schema=one.schema, **options))

    def _named(self, key: sa.ForeignKeyConstraint, table: sa.Table) -> sa.ForeignKeyConstraint:
        """A foreign key with a name, which one needs that is added to a table."""
        if key.name is None:
            key.name = self._free_name(table, *(column.name for column in key.columns), "fkey")
        return key

    @staticmethod
    def _free_name(table: sa.Table, *words: str) -> str:
        """A name as PostgreSQL itself gives one."""
        return "_".join((table.name, *words))[-_MAX_NAME:]

    def _index(self, one: Difference) -> sa.Index:
        wanted = self._facts.normalize_name(str(one.name))
        return next(
            index for index in self._table(one).indexes if self._facts.normalize_name(str(index.name)) == wanted
        )

    def _own_index(self, one: Difference) -> Iterator[Change]:
        """The index that a foreign key of MariaDB needs, where the one goes that it has used."""
        key = (one.schema, self._facts.normalize_name(str(one.table)))
        if self._facts.name != "mysql" or key not in self._tables:
            return
        columns = tuple((one.database or {}).get("columns") or ())
        for constraint in self._tables[key].foreign_key_constraints:
            names = [column.name for column in constraint.columns]
            if columns[: len(names)] == tuple(map(self._facts.normalize_name, names)):
                name = str(constraint.name or names[0])
                operation = ops.CreateIndexOp(name, str(one.table), names, schema=one.schema)
                yield Change(operation, advice=_LATER, destructive=True)

    def _create_index(self, index: sa.Index) -> ops.CreateIndexOp:
        """An index by the name that it gets in the database, where that of a convention is too long."""
        operation = ops.CreateIndexOp.from_index(index)
        operation.index_name = self._preparer.format_constraint(index, _alembic_quote=False)
        return operation

    def _sql(self, expression: Any) -> str:
        options = {"literal_binds": True, "include_table": False}
        return str(expression.compile(dialect=self._dialect, compile_kwargs=options))

    def _dropped(self, found: Iterable[Difference]) -> Iterator[Change]:
        order = ("foreign key", "check", "unique", "exclusion", "index", "primary key", "column", "table")
        found = sorted(found, key=lambda one: order.index(one.kind) if one.kind in order else len(order))
        tables = self._dropped_tables([one for one in found if one.kind == "table"])
        for one in found:
            operation: ops.MigrateOperation
            if one.kind == "table":
                yield from tables  # all of them, when it is the turn of the first
                continue
            if one.kind == "column":
                operation = ops.DropColumnOp(str(one.table), str(one.name), schema=one.schema)
            elif one.name is None or one.kind in ("enumeration", "sequence"):
                yield Change(None, advice=f"The models do not have this: {one.owner}: {one}.")
                continue
            elif one.kind == "index":
                yield from self._own_index(one)
                operation = ops.DropIndexOp(one.name, one.table, schema=one.schema)
            else:
                operation = self._drop_constraint(one)
            yield Change(operation, advice=_LATER, destructive=True)

    def _dropped_tables(self, found: Sequence[Difference]) -> Iterator[Change]:
        """Tables that go, each before those that it refers to; of a circle, a foreign key goes first."""
        left = {(one.schema, self._facts.normalize_name(str(one.table))): one for one in found}
        keys: list[tuple[Any, Any, str | None]] = []
        if len(left) > 1 and self._database.exists:
            with self._database.connect() as connection, warnings.catch_warnings():
                warnings.simplefilter("ignore", sa.exc.SAWarning)  # of what SQLAlchemy does not know
                inspector = sa.inspect(connection)
                for place, one in left.items():
                    if inspector.has_table(str(one.table), schema=one.schema):
                        for key in inspector.get_foreign_keys(str(one.table), schema=one.schema):
                            target = key["referred_schema"], self._facts.normalize_name(key["referred_table"])
                            keys.append((place, target, key["name"]))
        while left:
            others = [key for key in keys if key[0] in left and key[0] != key[1]]
            place = next((one for one in left if all(target != one for _, target, _ in others)), next(iter(left)))
            for owner, target, name in others:
                if target == place and name is not None:
                    table = left[owner]
                    operation = ops.DropConstraintOp(name, str(table.table), "foreignkey", schema=table.schema)
                    yield Change(operation, advice=_LATER, destructive=True)
            gone = left.pop(place)
            yield Change(ops.DropTableOp(str(gone.table), schema=gone.schema), advice=_LATER, destructive=True)


def _same_key(theirs: Difference, made: Iterable[Difference]) -> Iterator[tuple[Difference, Difference]]:
    """The foreign key of the models on the same columns as one of the database, with that one."""
    columns = (theirs.database or {}).get("columns")
    for mine in made:
        if (mine.kind, mine.owner, (mine.models or {}).get("columns")) == ("foreign key", theirs.owner, columns):
            yield mine, theirs
            return


def _nameless(mine: Difference, theirs: Difference) -> str:
    """What to say of a foreign key that the database has in another way, without a name."""
    columns = ", ".join((theirs.database or {})["columns"])
    said = [str(one).removeprefix("foreign key ").replace(f"{one.name} ", "", 1) for one in (mine, theirs)]
    return (
        f"{theirs.owner}: the foreign key on ({columns}) has no name in the database, so it cannot be dropped. In the "
        f"models it is {said[0]}; in the database {said[1]}. A second one would not replace it. Leave it in the models "
        "as it is, or make a new table with the right key, and copy the rows."
    )


def _text(value: object) -> str:
    """A text as SQL has it."""
    return "'" + str(value).replace("'", "''") + "'"
