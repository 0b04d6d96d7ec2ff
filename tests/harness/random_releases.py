"""Random histories of releases, drawn by Hypothesis: models and migrations of each, as source text.

The models of a release are what its migrations lead to. What no new database could have by them is not drawn, such as
an edit of a migration for a table that a later one has given another name.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from hypothesis import strategies as st

T = TypeVar("T")
TYPES = ["String(20)", "String(40)", "Integer", "BigInteger", "Text"]
WIDER = {"String(20)": "String(40)", "String(40)": "String(60)", "Integer": "BigInteger"}
SQL_TYPES = {"String(20)": "VARCHAR(20)", "String(40)": "VARCHAR(40)", "Integer": "INTEGER", "BigInteger": "BIGINT"}


@dataclass
class ColumnModel:
    """A column, whatever its name.

    :ivar made: whether only the models know it, and no migration that is still there made it.
    :ivar raw: whether raw SQL made it, which makes it again when it runs again.
    :ivar filled: whether every row is to have a value from now on.
    :ivar default_by: the number of the migration that altered its default last.
    """

    number: int
    type_: str
    nullable: bool = True
    default: str | None = None
    made: bool = False
    raw: bool = False
    filled: bool = False
    default_by: int = -1

    @property
    def text(self) -> bool:
        return self.type_.startswith(("String", "Text"))


@dataclass
class TableModel:
    """A table, whatever its name. Indexes and the like are by name; keys have a column and the name of their target."""

    number: int
    columns: dict[str, ColumnModel] = field(default_factory=dict)
    indexes: dict[str, tuple[list[str], bool]] = field(default_factory=dict)
    uniques: dict[str, str] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: bool = False
    raw: bool = False

    def constrained(self, column: str) -> bool:
        """Whether a constraint, or an index of several columns, has the column."""
        return (
            column in self.uniques.values()
            or column in self.checks.values()
            or column in [key for key, _ in self.keys.values()]
            or any(column in columns and len(columns) > 1 for columns, _ in self.indexes.values())
        )

    def indexed(self, column: str) -> bool:
        return any(column in columns for columns, _ in self.indexes.values())


@dataclass
class Seed:
    """A row that a migration inserts.

    :ivar column: which column has the mark by which it is known; ``None`` when that is gone.
    :ivar everywhere: whether a new database gets it too.
    """

    mark: str
    table: str
    column: str | None
    repeated: bool
    columns: list[int]
    everywhere: bool = True


@dataclass
class Migration:
    """A migration.

    :ivar release: the release that added or last edited it.
    :ivar made: numbers of the tables and columns, with their names, and names of indexes, that it makes.
    :ivar schema_only: whether the models have all that it does, so that it may be removed.
    :ivar known: the tables at its end: number and columns by their names.
    """

    number: int
    release: int
    lines: list[str]
    once: bool = False
    plain: bool = False
    raw: bool = False
    schema_only: bool = False
    made: list[tuple[str, int, str, int]] = field(default_factory=list)
    known: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        options = "once=True" if self.once else "destructive=True"
        lines = "".join(f"    {line}\n" for line in self.lines)
        return f"\n@migration({options})\ndef m{self.number}({'' if self.plain else 'op'}):\n{lines}"


@dataclass
class Release:
    """What a release has.

    :ivar oldest: the oldest release from which a database may jump to this one.
    """

    models: str
    migrations: str
    tables: dict[str, TableModel]
    seeds: list[Seed]
    oldest: int

    def define(self, db: SQLAlchemy) -> None:
        """Define the models."""
        self.metadata(db.metadata)

    def metadata(self, metadata: sa.MetaData | None = None) -> sa.MetaData:
        """The models."""
        found = metadata or sa.MetaData()
        exec("from sqlalchemy import *\n" + self.models, {"metadata": found})
        return found


class History:
    """A history of releases.

    :param draw: draws from a strategy.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self._numbers = itertools.count(1)
        self.tables: dict[str, TableModel] = {}
        self.migrations: list[Migration] = []
        self.seeds: list[Seed] = []
        self.releases: list[Release] = []
        self._oldest = 0
        #: Names of columns that were dropped, by table; and of tables.
        self._dropped: list[tuple[int, str]] = []
        self._dropped_tables: list[str] = []
        for _ in range(self._between(1, 2)):
            name = self._name("t")
            table = self.tables[name] = self._new_table()
            table.made = True
            for column in table.columns.values():
                column.made = True
        self._release()
        for _ in range(self._between(1, 5)):
            for _ in range(self._between(2, 4)):
                self._change()
            self._release()

    def __repr__(self) -> str:
        """Source of all releases, to be read."""
        return "\n".join(
            f"# Release {number}\n{release.models}{release.migrations}" for number, release in enumerate(self.releases)
        )

    def _between(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def _choice(self, items: Iterable[T]) -> T:
        found: T = self._draw(st.sampled_from(list(items)))
        return found

    def _some(self) -> bool:
        return bool(self._draw(st.booleans()))

    def _name(self, short: str) -> str:
        return f"{short}{next(self._numbers)}"

    def _release(self) -> None:
        tables = copy.deepcopy(self.tables)
        models = "".join(self._table_source(name, table) for name, table in tables.items())
        migrations = "".join(migration.source for migration in self.migrations)
        self.releases.append(Release(models, migrations, tables, copy.deepcopy(self.seeds), self._oldest))

    # Source of what there is.

    @staticmethod
    def _column_source(name: str, column: ColumnModel) -> str:
        nullable = "" if column.nullable else ", nullable=False"
        default = "" if column.default is None else f", server_default={column.default!r}"
        return f"Column({name!r}, {column.type_}{nullable}{default})"

    def _items(self, table: TableModel) -> list[str]:
        return [
            "Column('id', Integer, primary_key=True)",
            *(self._column_source(name, column) for name, column in table.columns.items()),
            *(f"UniqueConstraint({column!r}, name={name!r})" for name, column in table.uniques.items()),
            *(f"CheckConstraint({self._condition(column)}, name={name!r})" for name, column in table.checks.items()),
            *(
                f"ForeignKeyConstraint([{column!r}], ['{target}.id'], name={name!r})"
                for name, (column, target) in table.keys.items()
            ),
            *(
                f"Index({name!r}, {', '.join(map(repr, columns))}{', unique=True' if unique else ''})"
                for name, (columns, unique) in table.indexes.items()
            ),
        ]

    def _table_source(self, name: str, table: TableModel) -> str:
        return f"Table({name!r}, metadata, {', '.join(self._items(table))})\n"

    @staticmethod
    def _condition(column: str) -> str:
        return repr(f"{column} <> 'never'")

    # New things.

    def _new_column(self) -> ColumnModel:
        type_ = self._choice(TYPES)
        column = ColumnModel(next(self._numbers), type_)
        if type_ != "Text" and self._some():
            column.default = self._default(column)
            column.nullable = self._some()
            column.filled = True
        return column

    def _default(self, column: ColumnModel) -> str:
        return self._choice(["a", "b", "c"] if column.text else ["1", "2", "3"])

    def _new_table(self) -> TableModel:
        table = TableModel(next(self._numbers))
        for _ in range(self._between(1, 3)):
            table.columns[self._name("c")] = self._new_column()
        if self._some():
            column = self._pick(table, lambda _, model: model.type_ != "Text")
            if column is not None:
                table.indexes[self._name("ix")] = ([column], False)
        return table

    def _pick(self, table: TableModel, wanted: Callable[[str, ColumnModel], bool] = lambda *_: True) -> str | None:
        found = [name for name, column in table.columns.items() if wanted(name, column)]
        return self._choice(found) if found else None

    # Changes.

    def _change(self) -> None:
        kinds = [
            self._steps, self._steps, self._steps, self._steps, self._seed, self._seed, self._raw_column,
            self._raw_table, self._expand, self._edit, self._edit_default, self._remove,
        ]  # fmt: skip
        self._choice(kinds)()

    def _migration(self, lines: Sequence[str], **options: Any) -> Migration:
        migration = Migration(next(self._numbers), len(self.releases), list(lines), **options)
        self.migrations.append(migration)
        self._know(migration)
        return migration

    def _know(self, migration: Migration) -> None:
        migration.known = {
            name: (table.number, {one: column.number for one, column in table.columns.items()})
            for name, table in self.tables.items()
        }

    def _steps(self) -> None:
        migration = Migration(next(self._numbers), len(self.releases), [], schema_only=True)
        self.migrations.append(migration)
        kinds = [
            self._add_column, self._add_column, self._add_back, self._create_table, self._create_index, self._unique,
            self._check, self._key, self._drop_index, self._drop_constraint, self._rename_column, self._rename_column,
            self._rename_table, self._drop_column, self._drop_column, self._drop_table, self._type, self._default_of,
            self._default_of, self._nullable, self._tighten, self._move_index,
        ]  # fmt: skip
        for _ in range(self._between(1, 4)):
            kind = self._choice(kinds)
            name = self._choice(self.tables)
            migration.lines += kind(name, self.tables[name], migration)
        if not migration.lines:
            migration.lines.append("pass")
        self._know(migration)

    def _add_column(self, name: str, table: TableModel, migration: Migration, column: str = "") -> list[str]:
        column, model = column or self._name("c"), self._new_column()
        table.columns[column] = model
        migration.made.append(("column", table.number, column, model.number))
        lines = [f"op.add_column({name!r}, {self._column_source(column, model)})"]
        if self._some() and model.type_ != "Text":
            lines += self._index_on(name, table, migration, [column])
        return lines

    def _index_on(self, name: str, table: TableModel, migration: Migration, columns: list[str]) -> list[str]:
        index = self._name("ix")
        table.indexes[index] = (columns, False)
        migration.made.append(("index", table.number, index, 0))
        return [f"op.create_index({index!r}, {name!r}, {columns!r})"]

    def _add_back(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        """A column that was dropped comes again, by its old name."""
        migration.schema_only = False
        names = [column for number, column in self._dropped if number == table.number and column not in table.columns]
        return self._add_column(name, table, migration, self._choice(names)) if names else []

    def _create_table(self, _: str, __: TableModel, migration: Migration) -> list[str]:
        back = [name for name in self._dropped_tables if name not in self.tables]
        name = self._choice(back) if back and self._some() else self._name("t")
        migration.schema_only &= name not in back
        table = self._new_table()
        targets = list(self.tables)
        if self._some():
            column = self._name("c")
            table.columns[column] = ColumnModel(next(self._numbers), "Integer")
            table.indexes[self._name("ix")] = ([column], False)
            table.keys[self._name("fk")] = (column, self._choice([*targets, name]))
        self.tables[name] = table
        migration.made.append(("table", table.number, name, 0))
        migration.made += [("column", table.number, one, model.number) for one, model in table.columns.items()]
        return [f"op.create_table({name!r}, {', '.join(self._items(table))})"]

    def _create_index(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        columns = [column for column, model in table.columns.items() if model.type_ != "Text"]
        if not columns:
            return []
        on = [columns[0], columns[-1]] if len(columns) > 1 and self._some() else [self._choice(columns)]
        return self._index_on(name, table, migration, on)

    def _unique(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        # A default would be the value of several rows.
        column = self._pick(
            table,
            lambda name, model: model.type_ != "Text" and model.default is None and not table.constrained(name)
            and not table.indexed(name) and model.default_by < 0 and not model.filled,
        )  # fmt: skip
        if column is None:
            return []
        migration.schema_only = False
        table.uniques[constraint := self._name("uq")] = column
        return [f"op.create_unique_constraint({constraint!r}, {name!r}, [{column!r}])"]

    def _check(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        column = self._pick(table, lambda _, model: model.type_.startswith("String"))
        if column is None:
            return []
        migration.schema_only = False
        table.checks[constraint := self._name("ck")] = column
        condition = self._condition(column)
        return [f"op.create_check_constraint({constraint!r}, {name!r}, {condition}, online=False)"]

    def _key(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        target = self._choice([one for one in self.tables if one == name or not self._refers(one, name)])
        migration.schema_only = False
        column = self._name("c")
        table.columns[column] = ColumnModel(next(self._numbers), "Integer")
        lines = [f"op.add_column({name!r}, Column({column!r}, Integer))"]
        lines += self._index_on(name, table, migration, [column])  # MariaDB makes one of its own otherwise
        table.keys[constraint := self._name("fk")] = (column, target)
        return [*lines, f"op.create_foreign_key({constraint!r}, {name!r}, {target!r}, [{column!r}], ['id'])"]

    def _refers(self, name: str, target: str) -> bool:
        """Whether a table refers to another one, be it by way of others."""
        targets = {one for _, one in self.tables[name].keys.values()} - {name}
        return target in targets or any(self._refers(one, target) for one in targets)

    def _drop_index(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        keys = [[column] for column, _ in table.keys.values()]
        free = [index for index, (columns, _) in table.indexes.items() if columns[:1] not in keys]
        if not free:
            return []
        migration.schema_only = False
        del table.indexes[index := self._choice(free)]
        return [f"op.drop_index({index!r}, {name!r})"]

    def _move_index(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        """An index gets other columns and keeps its name."""
        keys = [[column] for column, _ in table.keys.values()]
        free = [index for index, (columns, _) in table.indexes.items() if columns[:1] not in keys]
        column = self._pick(table, lambda _, model: model.type_ != "Text")
        if not free or column is None:
            return []
        migration.schema_only = False
        table.indexes[index := self._choice(free)] = ([column], False)
        return [f"op.drop_index({index!r}, {name!r})", f"op.create_index({index!r}, {name!r}, [{column!r}])"]

    def _drop_constraint(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        found: list[dict[str, Any]] = [kind for kind in (table.uniques, table.checks, table.keys) if kind]
        if not found:
            return []
        migration.schema_only = False
        kind = self._choice(found)
        del kind[constraint := self._choice(kind)]
        return [f"op.drop_constraint({constraint!r}, {name!r})"]

    def _rename_column(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        # What raw SQL makes again is not to get rows again too: both would be there.
        repeated = [number for seed in self._seeds_of(name) if seed.repeated for number in seed.columns]
        column = self._pick(
            table,
            lambda name, model: name not in table.checks.values() and not (model.raw and model.number in repeated),
        )
        if column is None:
            return []
        migration.schema_only = False
        new = self._name("c")
        made = table.columns[column].made
        for seed in self._seeds_of(name):
            if made and table.columns[column].number in seed.columns:
                seed.everywhere = False
            if seed.column == column:
                seed.column = new
        table.columns = {new if one == column else one: model for one, model in table.columns.items()}
        table.indexes = {
            index: ([new if one == column else one for one in columns], unique)
            for index, (columns, unique) in table.indexes.items()
        }
        table.uniques = {one: new if on == column else on for one, on in table.uniques.items()}
        table.keys = {one: (new if on == column else on, target) for one, (on, target) in table.keys.items()}
        return [f"op.alter_column({name!r}, {column!r}, new_column_name={new!r})"]

    def _seeds_of(self, table: str) -> list[Seed]:
        return [seed for seed in self.seeds if seed.table == table]

    def _rename_table(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        if table.raw and any(seed.repeated for seed in self._seeds_of(name)):
            return []
        migration.schema_only = False
        new = self._name("t")
        for seed in self._seeds_of(name):
            seed.table = new
            seed.everywhere &= not table.made
        self.tables = {new if one == name else one: model for one, model in self.tables.items()}
        for other in self.tables.values():
            other.keys = {
                one: (column, new if target == name else target) for one, (column, target) in other.keys.items()
            }
        return [f"op.rename_table({name!r}, {new!r})"]

    def _drop_column(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        # What has the mark of a row that is inserted again and again where it is missing stays.
        marks = [seed.column for seed in self._seeds_of(name) if seed.repeated]
        column = self._pick(table, lambda name, _: not table.constrained(name) and name not in marks)
        if column is None or len(table.columns) < 2:
            return []
        migration.schema_only = False
        model = table.columns.pop(column)
        table.indexes = {one: found for one, found in table.indexes.items() if column not in found[0]}
        for seed in self._seeds_of(name):
            if model.made and model.number in seed.columns:
                seed.everywhere = False
            if seed.column == column:
                seed.column = None
        self._dropped.append((table.number, column))
        before = []
        if self._some():
            other = self._choice(table.columns)
            value = "CAST(NULL AS CHAR(1))" if table.columns[other].text else "0"
            if self._some():
                before = [f'op.execute("UPDATE {name} SET {other} = {value} WHERE {column} IS NULL AND id < 0")']
            else:
                before = [f"op.backfill({name!r}, {{{column!r}: None}}, where='{column} IS NOT NULL AND id < 0')"]
        return [*before, f"op.drop_column({name!r}, {column!r})"]

    def _drop_table(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        referenced = any(target == name for other in self.tables.values() for _, target in other.keys.values())
        if referenced or len(self.tables) < 2 or any(seed.repeated for seed in self._seeds_of(name)):
            return []
        migration.schema_only = False
        del self.tables[name]
        self.seeds = [seed for seed in self.seeds if seed.table != name]
        self._dropped_tables.append(name)
        before = [f'op.execute("DELETE FROM {name} WHERE id < 0")'] if self._some() else []
        return [*before, f"op.drop_table({name!r})"]

    def _type(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        column = self._pick(
            table, lambda name, model: model.type_ in WIDER and not table.constrained(name) and not table.indexed(name)
        )
        if column is None:
            return []
        migration.schema_only = False
        model = table.columns[column]
        model.type_ = WIDER[model.type_]
        return [f"op.alter_column({name!r}, {column!r}, type_={model.type_}, online=False)"]

    def _default_of(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        column = self._pick(
            table,
            lambda name, model: model.type_ != "Text" and name not in table.uniques.values()
            and name not in [key for key, _ in table.keys.values()],
        )  # fmt: skip
        if column is None:
            return []
        migration.schema_only = False
        model = table.columns[column]
        # Rows of seeds would be without a value.
        model.default = None if model.nullable and not model.filled and self._some() else self._default(model)
        model.default_by = migration.number
        return [f"op.alter_column({name!r}, {column!r}, server_default={model.default!r})"]

    def _nullable(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        column = self._pick(table, lambda _, model: not model.nullable)
        if column is None:
            return []
        migration.schema_only = False
        table.columns[column].nullable = True
        return [f"op.alter_column({name!r}, {column!r}, nullable=True)"]

    def _tighten(self, name: str, table: TableModel, migration: Migration) -> list[str]:
        """Rows get a value, and must have one."""
        column = self._pick(
            table,
            lambda name, model: model.nullable and not table.constrained(name) and name not in
            [seed.column for seed in self._seeds_of(name)],
        )  # fmt: skip
        if column is None:
            return []
        migration.schema_only = False
        model = table.columns[column]
        model.nullable, model.filled = False, True
        value = "x" if model.text else 7
        return [
            f"op.backfill({name!r}, {{{column!r}: {value!r}}}, where='{column} IS NULL')",
            f"op.alter_column({name!r}, {column!r}, nullable=False)",
        ]

    def _expand(self) -> None:
        """A new column gets the values of another one, which may be dropped later."""
        name = self._choice(self.tables)
        table = self.tables[name]
        old = self._pick(table, lambda _, model: model.type_ == "String(20)")
        if old is None:
            return
        new = self._name("c")
        table.columns[new] = ColumnModel(next(self._numbers), "String(20)", filled=True)
        self._migration(
            [
                f"op.add_column({name!r}, Column({new!r}, String(20)))",
                f"op.backfill({name!r}, {{{new!r}: column({old!r})}}, where='{new} IS NULL')",
            ]
        )

    def _seed(self) -> None:
        name = self._choice(self.tables)
        table = self.tables[name]
        marked = self._pick(table, lambda _, model: model.type_.startswith("String"))
        if marked is None:
            return
        number = next(self._numbers)
        mark = f"seed {number}"
        columns = {marked: f"'{mark}'"}
        for column, model in table.columns.items():
            if column == marked or column in [key for key, _ in table.keys.values()]:
                continue
            if model.filled or (not model.nullable and model.default is None) or self._some():
                columns[column] = f"'s{number}'" if model.text else str(number)
        repeated = self._some()
        into = f"INSERT INTO {name} ({', '.join(columns)})"
        if repeated:
            sql = (
                f"{into} SELECT {', '.join(columns.values())} FROM (SELECT 1 AS one) AS one "
                f"WHERE NOT EXISTS (SELECT 1 FROM {name} WHERE {marked} = '{mark}')"
            )
        else:
            sql = f"{into} VALUES ({', '.join(columns.values())})"
        kind = self._choice(["op", "op.session", "db.session"])
        lines = [f'op.execute("{sql}")'] if kind == "op" else [f'{kind}.execute(text("{sql}"))', f"{kind}.commit()"]
        numbers = [table.columns[column].number for column in columns]
        self.seeds.append(Seed(mark, name, marked, repeated, numbers))
        self._migration(lines, once=not repeated, plain=kind == "db.session", raw=True)

    def _raw_column(self) -> None:
        name = self._choice(self.tables)
        column = self._name("c")
        model = ColumnModel(next(self._numbers), self._choice(SQL_TYPES), raw=True)
        sql = f"ALTER TABLE {name} ADD COLUMN {column} {SQL_TYPES[model.type_]}"
        if self._some():
            lines = [f'if not op.has_column({name!r}, {column!r}): op.execute("{sql}")']
            self.tables[name].columns[column] = model
            self._migration(lines, raw=True)
            return
        lines = [
            f"names = [one['name'] for one in inspect(db.engine).get_columns({name!r})]",
            f'if {column!r} not in names: db.session.execute(text("{sql}"))',
            "db.session.commit()",
        ]
        self.tables[name].columns[column] = model
        self._migration(lines, plain=True, raw=True)

    def _raw_table(self) -> None:
        name, column = self._name("t"), self._name("c")
        table = self.tables[name] = TableModel(next(self._numbers), raw=True)
        table.columns[column] = ColumnModel(next(self._numbers), "String(20)", raw=True)
        # A number of its own that grows is written in another way on each database.
        items = "Column('id', Integer, primary_key=True), Column(" + repr(column) + ", String(20))"
        self._migration(
            [f"Table({name!r}, MetaData(), {items}).create(db.session.connection(), checkfirst=True)"],
            plain=True,
            raw=True,
        )

    def _known(self, migration: Migration) -> list[str]:
        """Tables that were there at a migration, and still have the same name."""
        return [
            name
            for name, table in self.tables.items()
            if name in migration.known and migration.known[name][0] == table.number
        ]

    def _editable(self) -> list[Migration]:
        return [one for one in self.migrations if not (one.once or one.raw) and self._known(one)]

    def _edit(self) -> None:
        """One more column in an old migration."""
        found = self._editable()
        if not found:
            return
        migration = self._choice(found)
        name = self._choice(self._known(migration))
        migration.lines += self._add_column(name, self.tables[name], migration)
        migration.release = len(self.releases)

    def _edit_default(self) -> None:
        """One more alteration in an old migration; a later one stands above it."""
        found = [
            (migration, name, column)
            for migration in self._editable()
            for name in self._known(migration)
            for column, model in self.tables[name].columns.items()
            if migration.known[name][1].get(column) == model.number
            and model.type_ != "Text"
            and column not in self.tables[name].uniques.values()
            and column not in [key for key, _ in self.tables[name].keys.values()]
        ]
        if not found:
            return
        migration, name, column = self._choice(found)
        model = self.tables[name].columns[column]
        default = self._default(model)
        migration.lines.append(f"op.alter_column({name!r}, {column!r}, server_default={default!r})")
        migration.release = len(self.releases)
        migration.schema_only = False
        order = [one.number for one in self.migrations]
        if model.default_by < 0 or (
            model.default_by in order and order.index(model.default_by) <= order.index(migration.number)
        ):
            model.default, model.default_by = default, migration.number

    def _remove(self) -> None:
        """A migration is removed, as the models have all that it made."""
        found = [one for one in self.migrations if self._removable(one)]
        if not found:
            return
        migration = self._choice(found)
        self.migrations.remove(migration)
        self._oldest = max(self._oldest, migration.release)
        for table in self.tables.values():
            table.made |= any(kind == "table" and number == table.number for kind, number, _, _ in migration.made)
            for model in table.columns.values():
                model.made |= any(kind == "column" and number == model.number for kind, _, _, number in migration.made)

    def _removable(self, migration: Migration) -> bool:
        """Whether a migration that was released has made nothing but what is still there by the same name."""
        if not (migration.schema_only and migration.made) or migration.release == len(self.releases):
            return False
        tables = {table.number: (name, table) for name, table in self.tables.items()}
        for kind, number, name, column in migration.made:
            if number not in tables:
                return False
            now, table = tables[number]
            there = table.columns.get(name)
            if (
                (kind == "table" and now != name)
                or (kind == "column" and (there is None or there.number != column))
                or (kind == "index" and name not in table.indexes)
            ):
                return False
        return True


@st.composite
def histories(draw: Callable[[st.SearchStrategy[Any]], Any]) -> History:
    """Histories of two to six releases."""
    return History(draw)
