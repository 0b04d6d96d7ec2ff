"""The forms of schema changes that leave a MariaDB or MySQL table usable.

``LOCK=NONE`` makes the server do a change beside the table's traffic, or refuse it; see "InnoDB Online DDL Operations
with the INPLACE Alter Algorithm" in its manual. A foreign key can be added so only without looking at the rows that are
there; they are looked at afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import DropColumn
from alembic.ddl.mysql import MySQLAlterDefault
from alembic.operations.schemaobj import SchemaObjects
from sqlalchemy.schema import DDLElement

from .catalog import Constraint
from .ddl import AddColumns, ModifyColumn, default_text, definition_text, render, string_text
from .errors import DbSmartError
from .forms import Change, Forms
from .rules import BLOCKS, OLD_ROWS, Refused

_ONLINE = ", LOCK=NONE"
#: ER_ALTER_OPERATION_NOT_SUPPORTED, and the same with a reason.
_CANNOT = (1845, 1846)
_DUPLICATE, _KEY_COLUMN = 1062, 1072
#: Types of which none becomes another one while the table is written to.
_KINDS = {"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double", "char", "varchar", "text"}
_KINDS |= {"mediumtext", "longtext", "date", "datetime", "timestamp", "time", "blob", "mediumblob", "longblob"}
_SAME_KIND = {"integer": "int", "numeric": "decimal", "bool": "tinyint", "boolean": "tinyint", "json": "longtext"}
#: Types whose length or precision cannot be changed in place; and a number in a definition.
_EXACT_LENGTH = ("decimal", "char", "binary", "datetime", "timestamp", "time")
_LENGTH = re.compile(r"\d+")
_ONE_BYTE, _MOST_OCTETS = 255, 4
_OCTETS = sa.text(
    "SELECT CHARACTER_OCTET_LENGTH DIV CHARACTER_MAXIMUM_LENGTH FROM information_schema.COLUMNS "
    "WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND TABLE_NAME = :table AND COLUMN_NAME = :column"
)
#: A column as ``SHOW CREATE TABLE`` has it: type, character set, whether NULL is allowed, all else.
_DEFINITION = re.compile(
    r"(\w+(?:\((?:'(?:[^']|'')*'|[^')])*\))?(?: unsigned)?(?: zerofill)?(?: /\*M?!\d+ COMPRESSED\*/)?)"
    r"((?: CHARACTER SET \w+)?(?: COLLATE \w+)?)( NOT NULL| NULL)?(.*)",
    re.IGNORECASE | re.DOTALL,
)
#: What a definition is made of: strings, names, words, and all else.
_TOKEN = re.compile(r"'(?:[^']|'')*'|`(?:[^`]|``)*`|\w+|.", re.DOTALL)
#: Words that can follow a default.
_AFTER_DEFAULT = ("ON", "AUTO_INCREMENT", "COMMENT", "CHECK")
_ON_UPDATE = re.compile(r"^ON UPDATE \w+(\(\d*\))? ?", re.IGNORECASE)
_DEFAULT_NULL = re.compile(r"^( INVISIBLE)? DEFAULT NULL")
_TARGET = sa.text(
    "SELECT TABLE_TYPE, ENGINE, CREATE_OPTIONS FROM information_schema.TABLES "
    "WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND TABLE_NAME = :table"
)


class MariadbForms(Forms):
    """See the module."""

    has_online = True

    def create_table(self, table: sa.Table) -> None:
        """Create a table that is missing, without its indexes."""
        self._take_named_checks(table, table.columns)
        super().create_table(table)

    def add_columns(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], online: bool
    ) -> None:
        """Add columns; foreign keys without looking at old rows."""
        constraints = [*constraints, *self._take_named_checks(table, columns)]
        if not online:
            super().add_columns(table, columns, constraints, online)
            return
        if self.execution.dry:
            what = f"op.add_columns({table.name!r}, …)"
            stored = any(column.computed is not None and column.computed.persisted for column in columns)
            if stored or any(isinstance(constraint, sa.CheckConstraint) for constraint in constraints):
                raise Refused(
                    BLOCKS, what, "The server adds a stored computed column, and a check that has a name, only so. "
                )
        added = [constraint for constraint in constraints if isinstance(constraint, sa.ForeignKeyConstraint)]
        keys = bool(added)
        for key in added:
            self._check_target(key)
        if keys:
            self.execution.promise(f"columns {table.schema} {table.name}")
        with self._unchecked(keys):
            self._online(AddColumns(table, columns, constraints), f"op.add_columns({table.name!r}, …)")
        planned = self.catalog.plan(table.name, table.schema)
        if planned is not None:
            for number, each in enumerate(constraints):
                if isinstance(each, sa.ForeignKeyConstraint):
                    name = str(each.name or f"{table.name}_ibfk_{number}")
                    planned.constraints[name] = Constraint(name, "foreign", list(each.column_keys))

    def finish_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Look at the rows that are there; a foreign key that was taken back is added again."""
        if not self.execution.promised(f"columns {table.schema} {table.name}"):
            return
        names = {column.name for column in columns}
        for constraint in table.foreign_key_constraints:
            if names.intersection(constraint.column_keys):
                if self._name_of(constraint) is None:
                    self.add_constraint(constraint, online)
                else:
                    self._check_rows(constraint)

    def drop_column(self, table: str, column: str, schema: str | None, online: bool) -> None:
        """Drop a column."""
        change = DropColumn(table, sa.Column(column, sa.types.NullType()), schema=schema)
        what = f"op.drop_column({table!r}, {column!r})"
        try:
            self._send(change, online, what)
        except sa.exc.DBAPIError as error:
            if _code(error) != _KEY_COLUMN:
                raise
            raise DbSmartError(
                f"{what}: the column is in a unique constraint with other columns. Nothing was changed. Drop that "
                "first, by op.drop_constraint() or op.drop_index()."
            ) from error

    def create_index(self, index: sa.Index, online: bool) -> None:
        """Create an index, beside the table's traffic."""
        assert index.table is not None
        what = f"op.create_index({str(index.name)!r}, {index.table.name!r})"
        with self._rows_alike(index.table, index.expressions, what):
            self._send(sa.schema.CreateIndex(index), online, what, " LOCK=NONE")

    def drop_index(self, index: sa.Index, online: bool) -> None:
        """Drop an index; MariaDB's ``DROP INDEX`` does not know ``LOCK``, and does not block."""
        self.execution.send(sa.schema.DropIndex(index))

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a constraint; a foreign key for new rows first, then a look at the old ones."""
        assert constraint.table is not None
        what = f"The constraint {str(constraint.name)!r} of {constraint.table.name!r}"
        if isinstance(constraint, sa.ForeignKeyConstraint) and online:
            self._check_target(constraint)
            self.execution.promise(f"key {constraint.name}")
            with self._unchecked(True):
                self._online(sa.schema.AddConstraint(constraint), what)
            self._check_rows(constraint)
        else:
            if self.execution.dry and online and isinstance(constraint, sa.CheckConstraint):
                raise Refused(BLOCKS, what, "The server checks old rows only so. ")
            with self._rows_alike(constraint.table, getattr(constraint, "columns", ()), what):
                self._send(sa.schema.AddConstraint(constraint), online, what)

    def finish_constraint(self, constraint: sa.Constraint, existing: Constraint) -> None:
        """Look at old rows where the run that added a foreign key may not have."""
        if isinstance(constraint, sa.ForeignKeyConstraint) and self.execution.promised(f"key {constraint.name}"):
            self._check_rows(constraint)

    def alter_column(self, change: Change, online: bool) -> None:
        """Change a column; type and nullability by a ``MODIFY``, which must repeat all else that the column has."""
        what = f"op.alter_column({change.table!r}, {change.column!r}, …)"
        if change.nullable is False and online and not self.execution.dry:
            missing = self._nulls(change)
            if missing:
                raise Refused(OLD_ROWS, what, f"{missing} rows have NULL. ")
        if (change.type_ is not None or change.nullable is not None) and change.existing.get("computed"):
            raise DbSmartError(f"{what}: the column is computed; change it by op.execute(), with its whole definition.")
        modify = change.type_ is not None or change.nullable is not None
        definition = None
        if modify or change.server_default is not False:
            definition, on_update = self._definition(change)
            if change.server_default is not False and not on_update:
                default = MySQLAlterDefault(change.table, change.column, change.server_default, schema=change.schema)
                self._send(default, online, what)  # first, as the old one may not fit the new type
            if self.execution.dry and online and change.type_ is not None:
                old, new = _kind(self._shown(change)), _kind(definition)
                if old != new and {old, new} <= _KINDS:
                    raise Refused(BLOCKS, what, f"It would change the type from {old} to {new}. ")
                if old == new and self._is_copied(change, definition):
                    raise Refused(BLOCKS, what, f"It would change how a {old} is stored. ")
            if modify or on_update:
                self._send(ModifyColumn(change.table, change.column, definition, change.schema), online, what)
        self.rename_column(change)
        planned = self.catalog.plan(change.table, change.schema)
        if planned is not None and definition is not None:
            planned.columns[self.catalog.fold(change.column)] = {**change.existing, "definition": definition}

    def _is_copied(self, change: Change, definition: str) -> bool:
        """Whether the table is copied for another length or precision of the same type, as far as that is known."""
        before, after = (_LENGTH.findall(text.partition(")")[0]) for text in (self._shown(change), definition))
        kind = _kind(definition)
        if kind not in ("varchar", "varbinary"):
            return kind in _EXACT_LENGTH and before != after
        shorter, longer = int(before[0]), int(after[0])
        names = {"schema": change.schema, "table": self.catalog.stored(change.table, change.schema)}
        names["column"] = change.existing.get("stored", change.column)
        octets = self.execution.connection.scalar(_OCTETS, names) or _MOST_OCTETS
        # The length of a value is in one byte, up to 255 of them, or in two.
        return longer < shorter or shorter * octets <= _ONE_BYTE < longer * octets

    def _take_named_checks(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]] | sa.ColumnCollection[str, sa.Column[Any]]
    ) -> list[sa.Constraint]:
        """Make checks of the table of those of its columns that have a name, which the server takes only so."""
        taken: list[sa.Constraint] = []
        for column in columns:
            for check in [*column.constraints]:
                if isinstance(check, sa.CheckConstraint) and isinstance(check.name, str):
                    column.constraints.discard(check)
                    taken.append(sa.CheckConstraint(check.sqltext, name=check.name))
                    table.append_constraint(taken[-1])
        return taken

    def _nulls(self, change: Change) -> int:
        """How many rows have NULL in a column."""
        return self.catalog.count(change.table, change.schema, sa.column(change.column).is_(None))

    def _definition(self, change: Change) -> tuple[str, bool]:
        """The definition that a column is to have: the one that the server shows, edited.

        :returns: it, and whether it has ``ON UPDATE``, which the server forgets when only a default is set.
        """
        line = self._shown(change)
        found = _DEFINITION.fullmatch(line)
        assert found is not None, line
        kind, characters, null, more = found.groups(default="")
        before, default, after = _around_default(more)
        on_update = after.upper().startswith("ON UPDATE ")
        if change.server_default is not False:
            column = sa.Column("c", change.type_ or change.existing["type"], server_default=change.server_default)
            text = default_text(column, self.dialect)
            default = "" if text is None else f"DEFAULT {text}"
            if _around_default(f" {default}")[2].upper().startswith("ON UPDATE "):
                after, on_update = _ON_UPDATE.sub("", after), True
            more = "".join(f" {part}" for part in (before, default, after) if part)
        if change.type_ is not None:
            kind = change.type_.compile(dialect=self.dialect)
            if not isinstance(change.type_, sa.String) or " COLLATE " in kind or " CHARACTER SET " in kind:
                characters = ""
        if change.nullable is not None:
            null = " NULL" if change.nullable else " NOT NULL"
            more = _DEFAULT_NULL.sub(r"\1", more)
        return kind + characters + null + more, on_update

    def _shown(self, change: Change) -> str:
        """The definition of a column as the server shows it; in a dry run, as it would."""
        existing = change.existing
        if "definition" in existing:
            return str(existing["definition"])
        if "column" in existing:
            return definition_text(existing["column"], self.dialect)
        table = self.catalog.stored(change.table, change.schema)
        column = existing.get("stored", existing["name"])
        name = self.dialect.identifier_preparer.format_table(sa.table(str(table), schema=change.schema))
        lines = self.execution.connection.exec_driver_sql(f"SHOW CREATE TABLE {name}").one()[1].split("\n")
        start = f"  `{column.replace('`', '``')}` "
        line: str = next(line for line in lines if line.lower().startswith(start.lower()))
        return line[len(start) :].rstrip(",")

    @contextmanager
    def _unchecked(self, keys: bool) -> Iterator[None]:
        """Have the server add foreign keys without looking at the rows, which it can do online only so."""
        if not keys:
            yield
            return
        self.execution.send("SET SESSION foreign_key_checks = 0")
        try:
            yield
        finally:
            self.execution.send("SET SESSION foreign_key_checks = 1")

    def _name_of(self, constraint: sa.ForeignKeyConstraint) -> str | None:
        """What a foreign key, which may have no name of ours, is called in the database."""
        columns = [self.catalog.fold(column) for column in constraint.column_keys]
        for existing in self.catalog.constraints(constraint.parent.name, constraint.parent.schema).values():
            same = constraint.name is None or self.catalog.fold(existing.name) == self.catalog.fold(
                str(constraint.name)
            )
            if existing.kind == "foreign" and same and [*map(self.catalog.fold, existing.columns)] == columns:
                return existing.name
        return None

    def _check_target(self, constraint: sa.ForeignKeyConstraint) -> None:
        """See that a foreign key refers to a table that can have one.

        Where it does not look at rows, the server takes such a key, and then refuses every row that is written.

        :raises DbSmartError: it does not.
        """
        target = constraint.elements[0].column.table
        assert isinstance(target, sa.Table)
        if not self.catalog.has_table(target.name, target.schema):
            found = "is not there"
        else:
            row = self.execution.connection.execute(_TARGET, {"schema": target.schema, "table": target.name}).first()
            if row is None:  # a dry run has planned it
                return
            kind, engine, options = row
            if kind != "BASE TABLE":
                found = "is a view"
            elif (engine or "").lower() != "innodb":
                found = f"is a table of the engine {engine}, not of InnoDB"
            elif "partitioned" in (options or ""):
                found = "is partitioned"
            else:
                return
        own, columns = constraint.parent.name, ", ".join(map(repr, constraint.column_keys))
        raise DbSmartError(
            f"A foreign key of {own!r} on {columns} refers to {target.name!r}, which {found}; writers of {own!r} would "
            "fail. Nothing was changed. Make such a table in an earlier migration, or leave the key out."
        )

    def _check_rows(self, constraint: sa.ForeignKeyConstraint) -> None:
        """Look for rows that break a foreign key; where there are any, or it cannot be known, drop it again.

        :raises Refused: there are.
        """
        table = sa.table(
            constraint.parent.name, *map(sa.column, constraint.column_keys), schema=constraint.parent.schema
        )
        first = constraint.elements[0].column.table
        targets = [element.column.name for element in constraint.elements]
        target = sa.table(first.name, *map(sa.column, targets), schema=first.schema).alias("target")
        pairs = list(zip(constraint.column_keys, targets, strict=True))
        match = sa.and_(*(table.c[own] == target.c[other] for own, other in pairs))
        broken = sa.and_(*(table.c[own].is_not(None) for own, _ in pairs), ~sa.exists().where(match))
        query = sa.select(sa.func.count()).select_from(table).where(broken)
        if self.execution.dry:
            # The script looks too; where it stops, the next boot finds the promise and takes the key back.
            said = string_text(f"Rows of {table.name} refer to what is not there in {first.name}"[:128], self.dialect)
            self.execution.send(
                f"DELIMITER //\nBEGIN NOT ATOMIC\n  IF ({render(query, self.dialect)}) > 0 THEN\n"
                f"    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {said};\n  END IF;\nEND//\nDELIMITER ;"
            )
            return
        name = str(self._name_of(constraint))
        key = SchemaObjects().generic_constraint(name, table.name, "foreignkey", schema=table.schema)
        try:
            count = self.execution.connection.scalar(query)
        except BaseException:
            with suppress(Exception):  # where that fails too, the next run looks at the rows, as was promised
                self.execution.send(sa.schema.DropConstraint(key))
            raise
        if count:
            self.execution.send(sa.schema.DropConstraint(key))
            raise Refused(
                OLD_ROWS,
                f"The foreign key {name!r} of {table.name!r} to {first.name!r}",
                f"{count} rows refer to what is not there. It was taken back. ",
            )

    def _send(self, change: DDLElement, online: bool, what: str, more: str = _ONLINE) -> None:
        if online:
            self._online(change, what, more)
        else:
            self.execution.send(change)

    def _online(self, change: DDLElement, what: str, more: str = _ONLINE) -> None:
        """Send a change that is not to block.

        :raises Refused: the server cannot do it so, or rows break it.
        """
        text = render(change, self.dialect)
        try:
            self.execution.send(text, more)
        except sa.exc.DBAPIError as error:
            if _code(error) in _CANNOT:
                raise Refused(BLOCKS, what, f"The server says: {self.execution.database.redact(error)}. ") from error
            raise

    @contextmanager
    def _rows_alike(self, table: sa.Table, columns: Iterable[Any], what: str) -> Iterator[None]:
        """Say how many rows are in the way of what is to be unique.

        :raises Refused: there are such rows.
        """
        try:
            yield
        except sa.exc.DBAPIError as error:
            if _code(error) != _DUPLICATE:
                raise
            names = [column.name for column in columns if isinstance(column, sa.ColumnClause)]
            rows = sa.table(table.name, *map(sa.column, names), schema=table.schema)
            filled = sa.and_(sa.true(), *(column.is_not(None) for column in rows.c))
            alike = sa.select(sa.func.count().label("alike")).select_from(rows).where(filled).group_by(*rows.c)
            groups = alike.having(sa.func.count() > 1).subquery()
            count = self.execution.connection.scalar(sa.select(sa.func.sum(groups.c.alike)))
            raise Refused(OLD_ROWS, what, f"{count or 'Some'} rows have the same values as others. ") from error


def _code(error: sa.exc.DBAPIError) -> Any:
    return error.orig.args[0] if error.orig is not None and error.orig.args else None


def _kind(definition: str) -> str:
    """The type that a definition begins with, by the server's own word."""
    word = definition.partition("(")[0].split()[0].rstrip(",").lower()
    return _SAME_KIND.get(word, word)


def _around_default(more: str) -> tuple[str, str, str]:
    """What stands before the default of a column's definition, the default, and what stands behind it."""
    depth, start, end = 0, None, len(more)
    for token in _TOKEN.finditer(more):
        word = token[0].upper()
        depth += (word == "(") - (word == ")")
        if depth or word == ")":
            continue
        if word in _AFTER_DEFAULT:
            end = token.start()
            break
        if word == "DEFAULT" and start is None:
            start = token.start()
    start = end if start is None else start
    return more[:start].strip(), more[start:end].strip(), more[end:].strip()
