"""Random migrations: tables with rows, operations on them as source text, and plain Alembic to compare with."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations as Alembic

#: Names that must be quoted somewhere, or nearly be too long.
NAMES = [
    "plain", "Mixed", "two words", "select", "order", "it's", 'quo"te', "back`tick", "dot.ted", "co:lon", "semi;colon",
    "ünï", "Äpfel", "日本", "l" + "o" * 58 + "g", "quest?ion", "[bracket]", "-- dash", "UPPER", "user", "Group", "x",
    "y",
]  # fmt: skip
#: Those that PostgreSQL's and MariaDB's drivers could take for parameters.
PERCENT = ["per%cent", "%s", "100%"]
TYPES = [
    "Integer",
    "BigInteger",
    "SmallInteger",
    "String(20)",
    "String(60)",
    "Text",
    "Numeric(10, 2)",
    "Boolean",
    "Date",
]
DEFAULTS = {
    "Integer": ["'7'", "text('-1')"],
    "BigInteger": ["'9000000000'"],
    "SmallInteger": ["'3'"],
    "String(20)": ['"it\'s 50%"', "'a:b ? ''", "''"],
    "String(60)": ["'näh'"],
    "Numeric(10, 2)": ["'1.50'"],
    "Boolean": ["false()"],
    "Date": ["'2020-02-29'"],
}
DEFAULTS["String(20)"][1] = repr("a:b ? 'c'")


@dataclass
class ColumnModel:
    """What the generator knows of a column."""

    type_: str
    nullable: bool = True
    nulls: bool = False
    unique: bool = False
    key: bool = False


@dataclass
class TableModel:
    """What the generator knows of a table."""

    columns: dict[str, ColumnModel] = field(default_factory=dict)
    indexes: dict[str, list[str]] = field(default_factory=dict)
    constraints: dict[str, tuple[str, list[str], str]] = field(default_factory=dict)
    rows: int = 0

    def used(self, column: str) -> bool:
        """Whether an index or a constraint has the column."""
        return any(column in columns for columns in self.indexes.values()) or any(
            column in columns for _, columns, _ in self.constraints.values()
        )


class Generator:
    """A database and a migration, the same for the same seed.

    :param length: number of operations.
    :param without: names of operations not to use; ``percent`` for names that hold a percent sign.
    :ivar set_up: statements of the first migration, as source.
    :ivar steps: those of the second.
    """

    def __init__(self, seed: int, dialect: str, *, length: int = 6, without: Collection[str] = ()) -> None:
        self.random = random.Random(f"{seed} {dialect}")
        self.dialect = dialect
        self.tables: dict[str, TableModel] = {}
        self._without = without
        self._names = [*NAMES, *([] if "percent" in without else PERCENT)]
        self.random.shuffle(self._names)
        self._number = 0
        self.set_up: list[str] = []
        self.steps: list[str] = []
        for _ in range(2):
            self.set_up += self._new_table(rows=True)
        while len(self.steps) < length:
            self.steps += self._step()

    def source(self, *, steps: bool) -> str:
        """A module of migrations."""
        text = _module("set_up", self.set_up)
        return text + _module("change", self.steps) if steps else text

    def _name(self, short: str) -> str:
        self._number += 1
        return f"{short}_{self._number}"

    def _free(self, taken: Any) -> str | None:
        """A name that nothing has yet, whatever its case."""
        folded = {name.lower() for name in taken}
        free = [name for name in self._names if name.lower() not in folded]
        return self.random.choice(free) if free else None

    def _column(self, name: str, model: ColumnModel, more: str = "") -> str:
        return f"Column({name!r}, {model.type_}{'' if model.nullable else ', nullable=False'}{more})"

    def _new_table(self, *, rows: bool) -> list[str]:
        name = self._free(self.tables)
        if name is None:
            return []
        table = self.tables[name] = TableModel({"id": ColumnModel("Integer", False, key=True, unique=True)})
        for _ in range(self.random.randint(2, 4)):
            column = self._free(table.columns)
            assert column is not None
            nulls = self.random.random() < 0.4
            table.columns[column] = ColumnModel(self.random.choice(TYPES), nulls or self.random.random() < 0.7, nulls)
        table.columns["code"] = ColumnModel("Integer", True, unique=True)
        columns = ", ".join(
            f"Column({column!r}, Integer, primary_key=True, autoincrement=False)"
            if model.key
            else self._column(column, model)
            for column, model in table.columns.items()
        )
        made = [f"op.create_table({name!r}, {columns})"]
        if rows:
            table.rows = 12
            bare = ", ".join(f"column({column!r}, {model.type_})" for column, model in table.columns.items())
            values = [
                "{"
                + ", ".join(f"{column!r}: {self._value(model, number)}" for column, model in table.columns.items())
                + "}"
                for number in range(1, table.rows + 1)
            ]
            made.append(f"op.execute(table({name!r}, {bare}).insert().values([{', '.join(values)}]))")
        return made

    def _value(self, model: ColumnModel, number: int) -> str:
        if model.key or model.unique:
            return str(number)
        if model.nulls and number % 3 == 0:
            return "None"
        kind = model.type_.partition("(")[0]
        return {
            "String": repr(f"it's {number}: 100% ü"[:20]),
            "Text": repr(f'text "{number}" \\ ?'),
            "Numeric": f"Decimal('{number}.25')",
            "Boolean": str(number % 2 == 0),
            "Date": f"date(2020, 1, {number})",
        }.get(kind, str(number % 5 + 1))

    def _step(self) -> list[str]:
        table = self.random.choice(list(self.tables))
        kinds = [
            self._add_columns, self._add_columns, self._nullable, self._default, self._type, self._rename_column,
            self._drop_column, self._create_index, self._create_index, self._drop_index, self._unique, self._check,
            self._foreign, self._foreign, self._drop_constraint, self._create_table, self._drop_table,
            self._rename_table, self._update, self._replace_index, self._comment,
        ]  # fmt: skip
        kinds = [kind for kind in kinds if kind.__name__.removeprefix("_") not in self._without]
        made: list[str] = self.random.choice(kinds)(table, self.tables[table])
        return made

    @property
    def _plain(self) -> str:
        """MariaDB and PostgreSQL refuse some changes beside the table's traffic."""
        return "" if self.dialect == "sqlite" else ", online=False"

    def _pick(self, table: TableModel, *, wanted: Any = lambda name, model: True) -> str | None:
        found = [name for name, model in table.columns.items() if not model.key and wanted(name, model)]
        return self.random.choice(found) if found else None

    def _add_columns(self, name: str, table: TableModel) -> list[str]:
        columns = []
        for _ in range(self.random.randint(1, 2)):
            column = self._free(table.columns)
            if column is None:
                return []
            model = ColumnModel(self.random.choice(TYPES))
            defaults = DEFAULTS.get(model.type_)
            more = ""
            if defaults and self.random.random() < 0.5:
                model.nullable = self.random.random() < 0.5
                more = f", server_default={self.random.choice(defaults)}"
            else:
                model.nulls = True
            table.columns[column] = model
            columns.append(self._column(column, model, more))
        return [f"op.add_columns({name!r}, {', '.join(columns)})"]

    def _nullable(self, name: str, table: TableModel) -> list[str]:
        column = self._pick(table, wanted=lambda _, model: not model.nulls)
        if column is None:
            return []
        model = table.columns[column]
        model.nullable = not model.nullable
        return [f"op.alter_column({name!r}, {column!r}, nullable={model.nullable})"]

    def _default(self, name: str, table: TableModel) -> list[str]:
        column = self._pick(table, wanted=lambda _, model: model.type_ in DEFAULTS)
        if column is None:
            return []
        default = self.random.choice([*DEFAULTS[table.columns[column].type_], "None"])
        return [f"op.alter_column({name!r}, {column!r}, server_default={default})"]

    def _type(self, name: str, table: TableModel) -> list[str]:
        wider = {
            "String(20)": "String(60)",
            "SmallInteger": "Integer",
            "Integer": "BigInteger",
            "Numeric(10, 2)": "Numeric(14, 2)",
        }
        column = self._pick(table, wanted=lambda name, model: model.type_ in wider and not table.used(name))
        if column is None:
            return []
        table.columns[column].type_ = wider[table.columns[column].type_]
        return [f"op.alter_column({name!r}, {column!r}, type_={table.columns[column].type_}{self._plain})"]

    def _rename_column(self, name: str, table: TableModel) -> list[str]:
        # A name that a check has stays, as Alembic cannot write it anew.
        column, new = self._pick(table, wanted=lambda name, _: not table.used(name)), self._free(table.columns)
        if column is None or new is None:
            return []
        table.columns = {new if one == column else one: model for one, model in table.columns.items()}
        return [f"op.alter_column({name!r}, {column!r}, new_column_name={new!r})"]

    def _drop_column(self, name: str, table: TableModel) -> list[str]:
        column = self._pick(table, wanted=lambda name, _: not table.used(name))
        if column is None or len(table.columns) < 4:
            return []
        del table.columns[column]
        return [f"op.drop_column({name!r}, {column!r})"]

    def _indexable(self, table: TableModel) -> list[str]:
        return [name for name, model in table.columns.items() if model.type_ != "Text" and not model.key]

    def _create_index(self, name: str, table: TableModel) -> list[str]:
        columns = self._indexable(table)
        if not columns:
            return []
        on = self.random.sample(columns, min(len(columns), self.random.randint(1, 2)))
        unique = any(table.columns[column].unique for column in on) and self.random.random() < 0.5
        index = self._name("Ix" if self.random.random() < 0.3 else "ix")
        table.indexes[index] = on
        return [f"op.create_index({index!r}, {name!r}, {on!r}{', unique=True' if unique else ''})"]

    def _drop_index(self, name: str, table: TableModel) -> list[str]:
        keys = [columns for kind, columns, _ in table.constraints.values() if kind == "foreign"]
        free = [index for index, columns in table.indexes.items() if columns[:1] not in keys]
        if not free:
            return []
        index = self.random.choice(free)
        del table.indexes[index]
        return [f"op.drop_index({index!r}, {name!r})"]

    def _replace_index(self, name: str, table: TableModel) -> list[str]:
        keys = [columns for kind, columns, _ in table.constraints.values() if kind == "foreign"]
        free = [index for index, columns in table.indexes.items() if columns[:1] not in keys]
        columns = self._indexable(table)
        if not free or not columns:
            return []
        index, on = self.random.choice(free), self.random.sample(columns, min(len(columns), self.random.randint(1, 2)))
        table.indexes[index] = on
        return [f"op.replace_index({index!r}, {name!r}, {on!r})"]

    def _comment(self, name: str, table: TableModel) -> list[str]:
        column, text = self._pick(table), self.random.choice(["it's a comment", "näh", None])
        return [] if column is None else [f"op.alter_column({name!r}, {column!r}, comment={text!r})"]

    def _unique(self, name: str, table: TableModel) -> list[str]:
        column = self._pick(table, wanted=lambda _, model: model.unique)
        taken = [columns for kind, columns, _ in table.constraints.values() if kind == "unique"]
        if column is None or [column] in taken or [column] in table.indexes.values():
            return []
        constraint = self._name("uq")
        table.constraints[constraint] = ("unique", [column], "")
        return [f"op.create_unique_constraint({constraint!r}, {name!r}, [{column!r}])"]

    def _check(self, name: str, table: TableModel) -> list[str]:
        column = self._pick(table, wanted=lambda _, model: "Integer" in model.type_)
        if column is None or self._clash(table, column, "foreign"):
            return []
        constraint = self._name("ck")
        table.constraints[constraint] = ("check", [column], "")
        return [f"op.create_check_constraint({constraint!r}, {name!r}, column({column!r}) > -1000{self._plain})"]

    def _clash(self, table: TableModel, column: str, kind: str) -> bool:
        """MariaDB has no foreign key that changes a column with a check."""
        found = any(one == kind and column in columns for one, columns, _ in table.constraints.values())
        return self.dialect == "mariadb" and found

    def _foreign(self, name: str, table: TableModel) -> list[str]:
        # Alembic does not understand a dot in the name of the target, nor on SQLite a quote, SQLAlchemy no backtick.
        targets = [one for one, model in self.tables.items() if model.rows and not {'"', ".", "`"} & {*one}]
        taken = any("code" in columns for kind, columns, _ in table.constraints.values() if kind == "foreign")
        column = "code" if table.rows and "code" in table.columns and not taken else None
        # MariaDB wants the type of the column that it leads to.
        if column is None or not targets or table.columns[column].type_ != "Integer":
            return []
        target = self.random.choice(targets)
        index, constraint = self._name("ix"), self._name("fk")
        table.indexes[index] = [column]  # MariaDB makes one of its own otherwise
        table.constraints[constraint] = ("foreign", [column], target)
        more = self.random.choice(["", ", ondelete='CASCADE'", ", ondelete='SET NULL'", ", onupdate='CASCADE'"])
        more = "" if "NULL" in more and not table.columns[column].nullable else more
        more = "" if self._clash(table, column, "check") else more
        return [
            f"op.create_index({index!r}, {name!r}, [{column!r}])",
            f"op.create_foreign_key({constraint!r}, {name!r}, {target!r}, [{column!r}], ['id']{more})",
        ]

    def _drop_constraint(self, name: str, table: TableModel) -> list[str]:
        if not table.constraints:
            return []
        constraint = self.random.choice(list(table.constraints))
        kind, _, _ = table.constraints.pop(constraint)
        return [f"op.drop_constraint({constraint!r}, {name!r}, type_={'foreignkey' if kind == 'foreign' else kind!r})"]

    def _create_table(self, _: str, __: TableModel) -> list[str]:
        return self._new_table(rows=self.random.random() < 0.5) if len(self.tables) < 4 else []

    def _referenced(self, name: str) -> bool:
        return any(target == name for table in self.tables.values() for _, _, target in table.constraints.values())

    def _drop_table(self, name: str, _: TableModel) -> list[str]:
        if self._referenced(name) or len(self.tables) < 3:
            return []
        del self.tables[name]
        return [f"op.drop_table({name!r})"]

    def _rename_table(self, name: str, table: TableModel) -> list[str]:
        new = self._free(self.tables)
        if new is None or self._referenced(name):
            return []
        del self.tables[name]
        self.tables[new] = table
        return [f"op.rename_table({name!r}, {new!r})"]

    def _update(self, name: str, table: TableModel) -> list[str]:
        column = self._pick(table, wanted=lambda name, model: model.type_ == "SmallInteger" and not table.used(name))
        if column is None:
            return []
        bare = f"table({name!r}, column({column!r}), column('id'))"
        return [f"op.execute({bare}.update().values({{{column!r}: column('id') + 5}}))"]


IMPORTS = "from datetime import date\nfrom decimal import Decimal\nfrom sqlalchemy import *\n"


def _module(name: str, steps: list[str]) -> str:
    lines = "".join(f"    {step}\n" for step in steps)
    return f"\n@migration(destructive=True)\ndef {name}(op):\n{lines}"


class PlainAlembic:
    """The same calls, done by Alembic's own operations, on SQLite by its batches."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._alembic = Alembic(MigrationContext.configure(connection))

    def run(self, steps: list[str]) -> None:
        """Run steps as they stand in a migration."""
        names: dict[str, Any] = {"op": self}
        exec(IMPORTS, names)
        for step in steps:
            exec(step, names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._alembic, name)

    def add_columns(self, table: str, *columns: sa.Column[Any]) -> None:
        """Add columns one by one."""
        for column in columns:
            self._alembic.add_column(table, column)

    def drop_index(self, name: str, table: str) -> None:
        """Drop an index."""
        self._alembic.drop_index(name, table_name=table)

    def replace_index(self, name: str, table: str, columns: list[str]) -> None:
        """Drop an index, and create the other one."""
        self.drop_index(name, table)
        self._alembic.create_index(name, table, columns)

    def alter_column(self, table: str, column: str, *, online: bool = True, **changes: Any) -> None:
        """Change a column; MariaDB wants to hear all that it is."""
        (known,) = (one for one in sa.inspect(self._connection).get_columns(table) if one["name"] == column)
        if self._connection.dialect.name == "sqlite" and changes.keys() == {"comment"}:
            return  # it has none
        default = known["default"]
        existing: dict[str, Any] = {
            "existing_type": known["type"],
            "existing_nullable": known["nullable"],
            "existing_server_default": None if default is None else sa.text(default.replace(":", "\\:")),
            "existing_comment": known.get("comment"),
        }
        if self._connection.dialect.name == "sqlite" and changes.keys() != {"new_column_name"}:
            with self._batch(table) as batch:
                batch.alter_column(column, **changes)
        elif self._connection.dialect.name == "sqlite":
            quote = self._connection.dialect.identifier_preparer.quote
            new = quote(changes["new_column_name"])
            self._connection.exec_driver_sql(f"ALTER TABLE {quote(table)} RENAME COLUMN {quote(column)} TO {new}")
        else:
            self._alembic.alter_column(table, column, **changes, **existing)

    def drop_column(self, table: str, column: str) -> None:
        """Drop a column."""
        with self._batch(table) as batch:
            batch.drop_column(column)

    def create_unique_constraint(self, name: str, table: str, columns: list[str]) -> None:
        """Add a unique constraint."""
        with self._batch(table) as batch:
            batch.create_unique_constraint(name, columns)

    def create_check_constraint(self, name: str, table: str, condition: Any, *, online: bool = True) -> None:
        """Add a check."""
        with self._batch(table) as batch:
            batch.create_check_constraint(name, condition)

    def create_foreign_key(
        self, name: str, table: str, target: str, columns: list[str], remote: list[str], **options: Any
    ) -> None:
        """Add a foreign key."""
        with self._batch(table) as batch:
            batch.create_foreign_key(name, target, columns, remote, **options)

    def drop_constraint(self, name: str, table: str, *, type_: str) -> None:
        """Drop a constraint."""
        with self._batch(table) as batch:
            batch.drop_constraint(name, type_=type_)

    def _batch(self, table: str) -> Any:
        return self._alembic.batch_alter_table(
            table, recreate="always" if self._connection.dialect.name == "sqlite" else "never"
        )
