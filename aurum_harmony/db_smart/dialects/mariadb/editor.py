"""How a MariaDB or MySQL schema is changed while its tables stay usable.

``LOCK=NONE`` makes the server do a change beside the table's traffic, or refuse it; see "InnoDB Online DDL Operations
with the INPLACE Alter Algorithm" in its manual. A foreign key can be added so only without looking at the rows that are
there; they are looked at afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from alembic.ddl.base import DropColumn
from alembic.operations.schemaobj import SchemaObjects
from sqlalchemy.schema import DDLElement

from ...errors import DbSmartError
from ...schema.catalog import Constraint, Index
from ...schema.ddl import AddColumns, AlterDefault, CreateDeclared, ModifyColumn, ReplaceCheck, ReplaceIndex
from ...schema.rules import BLOCKS, OLD_ROWS, Refused, counted
from ...session.sql import default_text, definition_text, render, string_text, type_text, without_doubled_percents
from ..editor import Broken, Change, SchemaEditor
from .facts import number
from .types import blocks, character_set, type_of

_ONLINE = ", LOCK=NONE"
#: ER_ALTER_OPERATION_NOT_SUPPORTED, and the same with a reason.
_CANNOT = (1845, 1846)
_KEY_COLUMN = 1072
#: ER_DROP_INDEX_FK.
_KEY_INDEX = 1553
#: ER_YES: how it has understood a query.
_REWRITTEN = 1003
#: What rows break: ER_DUP_ENTRY, ER_NO_REFERENCED_ROW_2, ER_CONSTRAINT_FAILED; and what MySQL says of a check.
_BROKEN: dict[int | None, Broken] = {1062: "unique", 1452: "foreign", 4025: "check", 3819: "check"}
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
#: The comment of a column among what stands behind its default; a text in a check is none.
_COMMENT = re.compile(r"(?<![\w`'(])COMMENT '((?:[^'\\]|''|\\.)*)' ?", re.IGNORECASE | re.DOTALL)
_ESCAPE = re.compile(r"''|\\(.)", re.DOTALL)
_DEFAULT_NULL = re.compile(r"^( INVISIBLE)? DEFAULT NULL")
_WIDTH = sa.text(
    "SELECT MAXLEN FROM information_schema.CHARACTER_SETS WHERE CHARACTER_SET_NAME = COALESCE(:name, "
    "(SELECT SUBSTRING_INDEX(TABLE_COLLATION, '_', 1) FROM information_schema.TABLES "
    "WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND TABLE_NAME = :table))"
)
#: What a table can have because of which the server blocks writers for changes that otherwise do not block.
_IN_THE_WAY = sa.text(
    "SELECT i.INDEX_TYPE, c.EXTRA FROM information_schema.COLUMNS AS c LEFT JOIN information_schema.STATISTICS AS i "
    "ON i.TABLE_SCHEMA = c.TABLE_SCHEMA AND i.TABLE_NAME = c.TABLE_NAME AND i.COLUMN_NAME = c.COLUMN_NAME "
    "WHERE c.TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND c.TABLE_NAME = :table"
)
_TARGET = sa.text(
    "SELECT TABLE_TYPE, ENGINE, CREATE_OPTIONS FROM information_schema.TABLES "
    "WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND TABLE_NAME = :table"
)


#: The foreign keys of a column and those to it.
_ENDS = sa.text(
    "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME, "
    "REFERENCED_COLUMN_NAME, DATABASE() FROM information_schema.KEY_COLUMN_USAGE "
    "WHERE REFERENCED_TABLE_NAME IS NOT NULL AND "
    "(TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND TABLE_NAME = :table AND COLUMN_NAME = :column OR "
    "REFERENCED_TABLE_SCHEMA = COALESCE(:schema, DATABASE()) AND REFERENCED_TABLE_NAME = :table "
    "AND REFERENCED_COLUMN_NAME = :column)"
)
#: What the server takes away from what is made anew where it is not said again; of those whose rights are another's.
_KEPT = {
    kind: sa.text(
        f"SELECT {columns}, NULLIF(DEFINER, CURRENT_USER()) AS DEFINER FROM information_schema.{kind.upper()}S "
        f"WHERE {what}_SCHEMA = COALESCE(:schema, DATABASE()) AND {what}_NAME = :name"
    )
    for kind, what, columns in (
        ("view", "TABLE", "SECURITY_TYPE, CHECK_OPTION"),
        ("routine", "ROUTINE", "1"),
        ("trigger", "TRIGGER", "1"),
    )
}
#: The views of a server, as it spells them: with all names in full and quoted.
_VIEWS = sa.text(
    "SELECT TABLE_SCHEMA, TABLE_NAME, VIEW_DEFINITION, COALESCE(:schema, DATABASE()) FROM information_schema.VIEWS "
    "ORDER BY TABLE_SCHEMA, TABLE_NAME"
)
#: ER_SPECIFIC_ACCESS_DENIED_ERROR: to make something that has the rights of another user.
_NO_RIGHT = 1227
_CREATE = re.compile(r"CREATE (?:OR REPLACE )?")
_SAYS_DEFINER = re.compile(r"CREATE (?:OR REPLACE )?DEFINER\s*=", re.IGNORECASE)
_DESCENDING = sa.text(
    "SELECT 1 FROM information_schema.statistics WHERE table_schema = COALESCE(:schema, DATABASE()) "
    "AND table_name = :table AND index_name = :name AND collation = 'D' LIMIT 1"
)


class MariadbEditor(SchemaEditor):
    """See the module."""

    has_online = True
    has_unique_keys = True
    widening = BLOCKS

    def create_table(self, table: sa.Table) -> None:
        """Create a table that is missing, without its indexes."""
        self._take_named_checks(table, table.columns)
        super().create_table(table)

    def replace_table(self, table: sa.Table, name: str) -> None:
        """Drop an empty table, and give its name to another one, to which the foreign keys of others then lead."""
        with self._unchecked(True):
            super().replace_table(table, name)

    def add_columns(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], online: bool
    ) -> None:
        """Add columns; foreign keys without looking at old rows."""
        what = f"op.add_columns({table.name!r}, {', '.join(repr(column.name) for column in columns)})"
        constraints = [*constraints, *self._take_named_checks(table, columns)]
        self._look_at_checks(table, columns, constraints, what)
        if not online:
            with self.rows_in_the_way(table, constraints, what, columns):
                super().add_columns(table, columns, constraints, online)
            return
        if self.transaction.dry:
            what = f"op.add_columns({table.name!r}, …)"
            stored = any(column.computed is not None and column.computed.persisted for column in columns)
            if stored or any(isinstance(constraint, sa.CheckConstraint) for constraint in constraints):
                raise Refused(
                    BLOCKS, what, "The server needs that for a stored computed column, and for a check with a name. "
                )
        added = [constraint for constraint in constraints if isinstance(constraint, sa.ForeignKeyConstraint)]
        keys = bool(added)
        for key in added:
            self._check_target(key)
        if highest := self.catalog.highest_key(table.name, table.schema):
            # Where it does not look at rows, the server gives the name of the first key again, and refuses it.
            for number, key in enumerate((key for key in added if key.name is None), highest + 1):
                key.name = f"{table.name}_ibfk_{number}"
        if keys:
            self.transaction.journal.promise(f"columns {table.schema} {table.name}")
        indexed = any(not isinstance(constraint, sa.CheckConstraint) for constraint in constraints)
        self._foresee_rebuild(table.name, table.schema, "add indexed" if indexed else "add", what)
        with self._unchecked(keys), self.rows_in_the_way(table, constraints, what, columns):
            self._online(AddColumns(table, columns, constraints), what, (table.name, table.schema))

    def finish_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Look at the rows that are there; a foreign key that was taken back is added again."""
        if not self.transaction.journal.promised(f"columns {table.schema} {table.name}"):
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
        if online:
            self._foresee_rebuild(table, schema, "drop", what)
        try:
            self._send(change, online, what, (table, schema))
        except sa.exc.DBAPIError as error:
            if number(error) != _KEY_COLUMN:
                raise
            raise DbSmartError(
                f"{what}: the column is in a unique constraint with other columns. Nothing was changed. Drop that "
                "first, by op.drop_constraint() or op.drop_index()."
            ) from error

    def shared(self, table: str, column: str, schema: str | None) -> list[str]:
        """What a column has together with others; the server would make an index shorter in silence."""
        return self._shared(table, column, schema)

    def create_index(self, index: sa.Index, online: bool) -> None:
        """Create an index, beside the table's traffic."""
        assert index.table is not None
        what = f"op.create_index({str(index.name)!r}, {index.table.name!r})"
        place = index.table.name, index.table.schema
        names = [column.name for column in index.expressions if isinstance(column, sa.ColumnClause)]
        with self.rows_in_the_way(index.table, (), what, unique=names):
            self._send(sa.schema.CreateIndex(index), online, what, place, " LOCK=NONE")

    def same_index(self, index: sa.Index, existing: Index) -> bool | None:
        """Whether an index that is there is this one; SQLAlchemy does not tell which column descends."""
        same = super().same_index(index, existing)
        if same and index.table is not None:
            names = {"schema": index.table.schema, "table": index.table.name, "name": existing.name}
            if self.transaction.connection.scalar(_DESCENDING, names):
                return None
        return same

    def replace_index(self, index: sa.Index, existing: Index, online: bool) -> None:
        """Put an index in the place of another in one statement, so that the table has one of them at any time."""
        assert index.table is not None
        what = f"op.replace_index({str(index.name)!r}, {index.table.name!r})"
        place = index.table.name, index.table.schema
        names = [column.name for column in index.expressions if isinstance(column, sa.ColumnClause)]
        try:
            with self.rows_in_the_way(index.table, (), what, unique=names):
                self._send(ReplaceIndex(index), online, what, place)
        except sa.exc.DBAPIError as error:
            if number(error) != _KEY_INDEX:
                raise
            raise DbSmartError(
                f"{what}: a foreign key needs the index as it is. Nothing was changed. Create the new one with "
                "op.create_index() and another name; or first create an index on the columns of the foreign key."
            ) from error

    def drop_index(self, index: sa.Index, online: bool) -> None:
        """Drop an index; MariaDB's ``DROP INDEX`` does not know ``LOCK``, and does not block."""
        self.transaction.send(sa.schema.DropIndex(index))

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a constraint; a foreign key for new rows first, then a look at the old ones."""
        assert constraint.table is not None
        what = f"The constraint {str(constraint.name)!r} of {constraint.table.name!r}"
        place = constraint.table.name, constraint.table.schema
        if isinstance(constraint, sa.ForeignKeyConstraint) and online:
            self._check_target(constraint)
            self.transaction.journal.promise(f"key {constraint.name}")
            with self._unchecked(True):
                self._online(sa.schema.AddConstraint(constraint), what, place)
            self._check_rows(constraint)
        else:
            if self._foresees and online and isinstance(constraint, sa.CheckConstraint):
                raise Refused(BLOCKS, what, "The server checks old rows only in this way. ")
            with self.rows_in_the_way(constraint.table, [constraint], what):
                self._send(sa.schema.AddConstraint(constraint), online, what, place)

    def finish_constraint(self, constraint: sa.Constraint, existing: Constraint) -> None:
        """Look at old rows where the run that added a foreign key may not have."""
        promised = self.transaction.journal.promised(f"key {constraint.name}")
        if isinstance(constraint, sa.ForeignKeyConstraint) and promised:
            self._check_rows(constraint)

    def refuse_widening(self, columns: Sequence[tuple[str | None, str, str]], what: str) -> None:
        """Refuse to give columns another type if foreign keys lead from them or to them that stay as they are."""
        normalize_name = self.catalog.normalize_name
        known = {(normalize_name(table), normalize_name(column)) for _, table, column in columns}
        for schema, table, column in columns:
            names = {"schema": schema, "table": self.catalog.stored(table, schema), "column": column}
            for *ends, current in self.transaction.connection.execute(_ENDS, names):
                for place, other, name in (ends[:3], ends[3:]):
                    apart = normalize_name(place) != normalize_name(schema or current)
                    if apart or (normalize_name(other), normalize_name(name)) not in known:
                        which = f"{place}.{other}.{name}" if apart else f"{other}.{name}"
                        leads = "to" if other == ends[4] and name == ends[5] and place == ends[3] else "from"
                        raise DbSmartError(
                            f"{what}: a foreign key leads {leads} {which}, whose type would stay as it is, which the "
                            "server does not take. Nothing was changed. "
                            + (
                                "Drop that foreign key before, with op.drop_constraint() or by op.execute(), and make "
                                "it again when both have the new type."
                                if apart
                                else f"Widen {which}: this column comes along."
                            )
                        )

    def alter_column(self, change: Change, online: bool) -> None:
        """Change a column; type and nullability by a ``MODIFY``, which must repeat all else that the column has."""
        what = f"op.alter_column({change.table!r}, {change.column!r}, …)"
        if change.nullable is False and not self.transaction.dry:
            missing = self._nulls(change)
            if missing:
                raise Refused(OLD_ROWS, what, f"{counted(missing, 'has', 'have')} NULL. ")
        if (change.type_ is not None or change.nullable is not None) and change.existing.get("computed"):
            raise DbSmartError(f"{what}: the column is computed; change it by op.execute(), with its whole definition.")
        modify = change.type_ is not None or change.nullable is not None or change.comment is not False
        if modify or change.server_default is not False:
            definition, on_update = self._definition(change)
            becomes = self._becoming(change, definition)
            if change.server_default is not False and not on_update:
                default = AlterDefault(change.table, change.column, change.server_default, change.schema, becomes)
                self._send(default, online, what, None)  # first, because the old one may not fit the new type
            if self._foresees and online and change.type_ is not None:
                self._foresee(change, definition, what)
            if online and change.nullable is not None:
                self._foresee_rebuild(change.table, change.schema, "null" if change.nullable else "not null", what)
            if modify or on_update:
                modified = ModifyColumn(change.table, change.column, definition, change.schema, becomes)
                with self._strict():
                    self._send(modified, online, what, (change.table, change.schema))
        for check in change.checks:
            self.put_check(check, online)
        self.rename_column(change)

    def replace_check(self, name: str, check: sa.CheckConstraint, online: bool) -> None:
        """Put a check in the place of another; the server looks at the old rows, and blocks writers meanwhile."""
        assert isinstance(check.table, sa.Table)
        what, place = f"The constraint {name!r} of {check.table.name!r}", (check.table.name, check.table.schema)
        if self._foresees and online:
            raise Refused(BLOCKS, what, "The server checks old rows only in this way. ")
        self._send(ReplaceCheck(name, check), online, what, place)

    def declare(self, one: CreateDeclared, there: bool) -> None:
        """Make a view, a function or a trigger; MySQL can only replace a view in one statement.

        :raises DbSmartError: it has the rights of another user, and this one may not make such.
        """
        names = {"name": one.name, "schema": one.schema}
        query = _KEPT["routine" if one.kind == "function" else one.kind]
        kept = self.transaction.connection.execute(query, names).first() if there else None
        if getattr(self.dialect, "is_mariadb", True) or one.kind == "view":
            one, there = self.replacing(one), False
        definer = None if kept is None else kept.DEFINER
        if kept is not None and one.kind == "view":
            if kept.SECURITY_TYPE == "INVOKER":
                one.text = one.text.replace(" VIEW ", " SQL SECURITY INVOKER VIEW ", 1)
            if kept.CHECK_OPTION != "NONE":
                one.text += f"\nWITH {kept.CHECK_OPTION} CHECK OPTION"
        if definer is not None and not _SAYS_DEFINER.match(one.text):
            quote = without_doubled_percents(self.dialect).identifier_preparer.quote_identifier
            user, _, host = definer.rpartition("@")
            who = f"{quote(user)}@{quote(host)}" if host else quote(user)  # a role has no host
            one.text = _CREATE.sub(lambda found: f"{found[0]}DEFINER={who} ", one.text, count=1)
        if self.transaction.dry and one.kind != "view":  # it has semicolons of its own
            end = next(end for end in ("//", "$$", "@@", "~~~") if end not in one.text)
            one.text = f"DELIMITER {end}\n{one.text}\n{end}\nDELIMITER ;"
        try:
            super().declare(one, there)
        except sa.exc.DBAPIError as error:
            if number(error) != _NO_RIGHT or definer is None:
                raise
            raise DbSmartError(
                f"op.{one.kind}({one.name!r}): it has the rights of {definer}, and this user may not make one with the "
                f"rights of another. Nothing was changed. Migrate as {definer}, or grant the right to do so (SET USER "
                f"on MariaDB, SET_ANY_DEFINER on MySQL); or drop it first with op.drop_{one.kind}(): then it gets the "
                "rights of this user."
            ) from error

    def standing_on(self, view: str, schema: str | None) -> list[str]:
        """The views that select from a view: the server would drop it, and each query of theirs would fail."""
        quote = without_doubled_percents(self.dialect).identifier_preparer.quote_identifier
        found = []
        for place, name, text, own in self.transaction.connection.execute(_VIEWS, {"schema": schema}):
            place_of_it = re.escape(f"{quote(own)}.{quote(view)}")
            uses = re.search(rf"\b(?:from|join)[ (]+{place_of_it}(?!\.)", text or "")
            if uses and self.catalog.has_declared("view", name, place):
                found.append(name if place == own else f"{place}.{name}")
        return found

    def default(self, change: Change) -> str | None:
        """The default that a column has. SQLAlchemy does not find all that are expressions."""
        found = _DEFINITION.fullmatch(self._shown(change))
        if found is None:
            return super().default(change)
        return _around_default(found[4])[1][len("DEFAULT ") :] or None

    def comment(self, change: Change) -> str | None:
        """The comment that a column has. SQLAlchemy does not find those behind ``ON UPDATE``."""
        found = _DEFINITION.fullmatch(self._shown(change))
        comment = None if found is None else _COMMENT.search(_around_default(found[4])[2])
        if comment is None:
            return None
        signs = {"n": "\n", "r": "\r", "0": "\0", "Z": "\x1a"}
        return _ESCAPE.sub(lambda one: signs.get(one[1], one[1]) if one[1] else "'", comment[1]) or None

    @property
    def _foresees(self) -> bool:
        """Whether this is a dry run, of a server of which it is known what blocks its writers.

        MariaDB from 11.2 on can copy nearly any table beside them, and is asked to; only it knows when it cannot.
        """
        is_mariadb, version = getattr(self.dialect, "is_mariadb", True), self.dialect.server_version_info or ()
        return self.transaction.dry is not None and not (is_mariadb and version >= (11, 2))

    def _foresee(self, change: Change, definition: str, what: str) -> None:
        """Say in a dry run what the server would say to ``LOCK=NONE``.

        :raises Refused: that it blocks writers.
        """
        old = self._shown(change)
        table = {"schema": change.schema, "table": self.catalog.stored(change.table, change.schema)}
        names = {**table, "name": character_set(old)}
        width = self.transaction.connection.scalar(_WIDTH, names) or 1
        if blocks(old, definition, width, mariadb=bool(getattr(self.dialect, "is_mariadb", True))):
            raise Refused(BLOCKS, what, f"It would change the type from {type_of(old)} to {type_of(definition)}. ")

    def _foresee_rebuild(self, table: str, schema: str | None, how: str, what: str) -> None:
        """Say in a dry run that the server cannot rebuild a table beside its writers.

        :param how: ``add``, ``add indexed``, ``drop``, ``null`` or ``not null``.
        :raises Refused: it cannot.
        """
        if not self._foresees:
            return
        names = {"table": self.catalog.stored(table, schema), "schema": schema}
        columns = self.transaction.connection.execute(_IN_THE_WAY, names).all()
        kinds = {column.INDEX_TYPE for column in columns}
        found = ""
        if "FULLTEXT" in kinds:
            found = "a FULLTEXT index"
        elif "SPATIAL" in kinds and how in ("add indexed", "null", "not null"):
            found = "a SPATIAL index"
        elif any("VIRTUAL" in column.EXTRA and column.INDEX_TYPE for column in columns):
            found = "an indexed virtual column"
        elif how == "not null" and any("STORED" in column.EXTRA for column in columns):
            found = "a stored computed column"
        if found:
            raise Refused(BLOCKS, what, f"The table has {found}. ")

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
        if change.comment is not False:
            before, default, after = _around_default(more)
            after = _COMMENT.sub("", after) if " " in after else after
            checks = after.upper().find("CHECK (")
            text = "" if change.comment is None else f"COMMENT {string_text(change.comment, self.dialect)}"
            first, last = (after, "") if checks < 0 else (after[:checks], after[checks:])
            more = "".join(f" {part.strip()}" for part in (before, default, first, text, last) if part.strip())
        if change.type_ is not None:
            kind = type_text(change.type_, self.dialect)
            if not isinstance(change.type_, sa.String) or " COLLATE " in kind or " CHARACTER SET " in kind:
                characters = ""
        if change.nullable is not None:
            null = " NULL" if change.nullable else " NOT NULL"
            more = _DEFAULT_NULL.sub(r"\1", more)
        return kind + characters + null + more, on_update

    def _becoming(self, change: Change, definition: str) -> dict[str, Any]:
        """What an inspector has of a column after a change, where that is another than before; and its definition."""
        becomes: dict[str, Any] = {"definition": definition}
        if change.type_ is not None:
            becomes["type"] = change.type_
        if change.nullable is not None:
            becomes["nullable"] = change.nullable
        if change.server_default is not False:
            column = sa.Column("c", sa.types.NullType(), server_default=change.server_default)
            becomes["default"] = default_text(column, self.dialect)
        if change.comment is not False:
            becomes["comment"] = change.comment
        return becomes

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
        lines = self.transaction.connection.exec_driver_sql(f"SHOW CREATE TABLE {name}").one()[1].split("\n")
        quote = self.dialect.identifier_preparer.initial_quote  # a double one in the mode ANSI_QUOTES
        start = f"  {quote}{column.replace(quote, quote * 2)}{quote} "
        line: str | None = next((line for line in lines if line.lower().startswith(start.lower())), None)
        if line is None:
            raise DbSmartError(
                f"op.alter_column({change.table!r}, {change.column!r}, …): {change.table!r} is a view, or has no "
                "definition of the column. Nothing was changed. Edit the view with op.view()."
            )
        return line[len(start) :].rstrip(",")

    @contextmanager
    def _strict(self) -> Iterator[None]:
        """Have the server fail for a value that does not fit, rather than make another one of it and only warn."""
        mode = str(self.transaction.connection.exec_driver_sql("SELECT @@SESSION.sql_mode").scalar())
        if "STRICT" in mode:
            yield
            return
        self.transaction.send("SET @db_smart_mode = @@SESSION.sql_mode")
        self.transaction.send("SET SESSION sql_mode = CONCAT_WS(',', NULLIF(@db_smart_mode, ''), 'STRICT_ALL_TABLES')")
        try:
            yield
        finally:
            self.transaction.send("SET SESSION sql_mode = @db_smart_mode")

    @contextmanager
    def _unchecked(self, keys: bool) -> Iterator[None]:
        """Have the server add foreign keys without looking at the rows, which it can do online only so."""
        if not keys:
            yield
            return
        self.transaction.send("SET SESSION foreign_key_checks = 0")
        try:
            yield
        finally:
            self.transaction.send("SET SESSION foreign_key_checks = 1")

    def _name_of(self, constraint: sa.ForeignKeyConstraint) -> str | None:
        """What a foreign key, which may have no name of ours, is called in the database."""
        columns = [self.catalog.normalize_name(column) for column in constraint.column_keys]
        for existing in self.catalog.constraints(constraint.parent.name, constraint.parent.schema).values():
            same = constraint.name is None or self.catalog.normalize_name(existing.name) == self.catalog.normalize_name(
                str(constraint.name)
            )
            if existing.kind == "foreign" and same and [*map(self.catalog.normalize_name, existing.columns)] == columns:
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
            found = "does not exist"
        else:
            row = self.transaction.connection.execute(_TARGET, {"schema": target.schema, "table": target.name}).first()
            if row is None:  # a dry run has planned it
                return
            kind, engine, options = row
            if kind != "BASE TABLE":
                found = "is a view"
            elif (engine or "").lower() != "innodb":
                found = f"is a table of the engine {engine}, not InnoDB"
            elif "partitioned" in (options or ""):
                found = "is partitioned"
            else:
                return
        own, columns = constraint.parent.name, ", ".join(map(repr, constraint.column_keys))
        raise DbSmartError(
            f"A foreign key of {own!r} on {columns} refers to {target.name!r}, which {found}; writers of {own!r} would "
            "fail. Nothing was changed. Create such a table in an earlier migration, or leave the key out."
        )

    def _check_rows(self, constraint: sa.ForeignKeyConstraint) -> None:
        """Look for rows that break a foreign key; where there are any, or it cannot be known, drop it again.

        :raises Refused: there are.
        """
        if self.transaction.dry:
            # The script looks too; where it stops, the next boot finds the promise and takes the key back.
            names = constraint.parent.name, constraint.elements[0].column.table.name
            text = "Rows of {} refer to missing rows of {}".format(*names)
            said, query = string_text(text[:128], self.dialect), render(self.count_lost(constraint), self.dialect)
            self.transaction.send(
                f"DELIMITER //\nBEGIN NOT ATOMIC\n  IF ({query}) > 0 THEN\n"
                f"    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {said};\n  END IF;\nEND//\nDELIMITER ;"
            )
            return
        name = str(self._name_of(constraint))
        table, target = constraint.parent, constraint.elements[0].column.table
        key = SchemaObjects().generic_constraint(name, table.name, "foreignkey", schema=table.schema)
        try:
            count = self.lost(constraint)
        except BaseException:
            with suppress(Exception):  # where that fails too, the next run looks at the rows, as was promised
                self.transaction.send(sa.schema.DropConstraint(key))
            raise
        if count:
            self.transaction.send(sa.schema.DropConstraint(key))
            raise Refused(
                OLD_ROWS,
                f"The foreign key {name!r} of {table.name!r} to {target.name!r}",
                f"{counted(count, 'refers', 'refer')} to missing rows. It was removed again. ",
            )

    def _send(
        self, change: DDLElement, online: bool, what: str, place: tuple[str, str | None] | None, more: str = _ONLINE
    ) -> None:
        if online:
            self._online(change, what, place, more)
        else:
            self.transaction.send(change)

    def _online(self, change: DDLElement, what: str, place: tuple[str, str | None] | None, more: str = _ONLINE) -> None:
        """Send a change that is not to block.

        :param place: the table and its schema, if its storage engine matters.
        :raises Refused: the server cannot do it so, or rows break it.
        """
        if self._foresees and place is not None:
            names = {"table": self.catalog.stored(*place), "schema": place[1]}
            row = self.transaction.connection.execute(_TARGET, names).first()
            if row is not None and row.ENGINE is not None and row.ENGINE.lower() != "innodb":
                raise Refused(BLOCKS, what, f"The table has the engine {row.ENGINE}, not InnoDB. ")
        try:
            self.transaction.send(change, more)
        except sa.exc.DBAPIError as error:
            if number(error) in _CANNOT:
                raise Refused(BLOCKS, what, f"The server says: {self.transaction.database.redact(error)}. ") from error
            raise

    def broken(self, error: sa.exc.DBAPIError) -> Broken | None:
        """The kind of the constraint that rows break."""
        return _BROKEN.get(number(error))

    def understood(self, query: str) -> Any:
        """How the server understands a query."""
        self.plain(f"EXPLAIN EXTENDED {query}").all()
        notes = self.plain("SHOW WARNINGS").mappings()
        return [note["Message"] for note in notes if note["Code"] == _REWRITTEN]

    def _look_at_checks(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], what: str
    ) -> None:
        """Look at old rows for the checks of new columns, which the server does not do: their next update would fail.

        :raises Refused: rows break one.
        """
        if self.transaction.dry:
            return
        broken = self.broken_checks(table, columns, constraints)
        if broken:
            raise Refused(OLD_ROWS, what, broken)


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
