"""How a PostgreSQL schema is changed while its tables stay usable.

The rules are those of its manual: ``ALTER TABLE`` (``NOT VALID``, ``VALIDATE CONSTRAINT``, ``SET NOT NULL``,
``USING INDEX``) and ``CREATE INDEX``, "Building Indexes Concurrently".
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import sqlalchemy as sa
from alembic.ddl.base import ColumnDefault, ColumnNullable
from alembic.ddl.postgresql import PostgresqlColumnType
from alembic.operations.schemaobj import SchemaObjects
from sqlalchemy.dialects.postgresql import DOMAIN, REGCLASS, CreateDomainType, CreateEnumType, NamedType
from sqlalchemy.types import TypeEngine

from ...errors import DbSmartError
from ...schema.catalog import TABLE_NAME, Constraint, Index
from ...schema.column_types import enumeration, free_on_postgresql, native_values, spelled
from ...schema.ddl import (
    AddEnumValue,
    CreateDeclared,
    DropDeclared,
    RenameIndex,
    ReplaceCheck,
    UniqueUsingIndex,
    ValidateConstraint,
)
from ...schema.defaults import without_types
from ...schema.instead import retyped_column
from ...schema.rules import BLOCKS, ENUM_VALUES, OLD_ROWS, PARTITIONED, REWRITE, Refused, counted
from ...session.sql import as_written, render, type_text
from ..editor import Broken, Change, SchemaEditor
from .facts import sqlstate

_MAX_NAME = 63
#: What constraints rows break, by SQLSTATE.
_BROKEN: dict[str, Broken] = {"23505": "unique", "23514": "check", "23503": "foreign"}
#: The version whose partitioned tables take foreign keys NOT VALID.
_KEYS_OF_PARTITIONED = (18,)
_CALLS = re.compile(r'("(?:[^"]|"")+"|\w+)\s*\(')
_VOLATILE = sa.text("SELECT count(*) FROM pg_proc WHERE proname IN :names AND provolatile = 'v'").bindparams(
    sa.bindparam("names", expanding=True)
)
_PARTITIONED = sa.text(f"SELECT count(*) FROM pg_class WHERE oid = to_regclass({TABLE_NAME}) AND relkind = 'p'")
_SEQUENCE = sa.text(f"SELECT pg_get_serial_sequence({TABLE_NAME}, :column)")

#: That of a serial column, and one that its default asks; the one of an identity column gets its type.
_NARROW_SEQUENCE = sa.text(
    "SELECT DISTINCT CAST(CAST(s.seqrelid AS regclass) AS text) FROM pg_sequence AS s JOIN pg_attribute AS a "
    f"ON a.attrelid = to_regclass({TABLE_NAME}) AND a.attname = :column "
    "WHERE s.seqtypid <> CAST('bigint' AS regtype) AND (EXISTS (SELECT 1 FROM pg_depend AS d "
    "WHERE d.classid = CAST('pg_class' AS regclass) AND d.objid = s.seqrelid AND d.deptype = 'a' "
    "AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum) OR EXISTS (SELECT 1 FROM pg_attrdef AS f "
    "JOIN pg_depend AS d ON d.classid = CAST('pg_attrdef' AS regclass) AND d.objid = f.oid "
    "AND d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = s.seqrelid "
    "WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum))"
)
#: The columns whose foreign keys lead to a column, in any schema. One that a table inherits, as a partition does,
#: changes with that of the table above it.
_REFERRING = sa.text(
    f"WITH RECURSIVE c AS (SELECT a.attrelid AS rel, a.attnum FROM pg_attribute AS a "
    f"WHERE a.attrelid = to_regclass({TABLE_NAME}) AND a.attname = :column UNION "
    "SELECT n.rel, n.attnum FROM c CROSS JOIN LATERAL (SELECT k.conrelid AS rel, u.own AS attnum "
    "FROM pg_constraint AS k CROSS JOIN LATERAL unnest(k.conkey, k.confkey) AS u (own, other) "
    "WHERE k.contype = 'f' AND k.confrelid = c.rel AND u.other = c.attnum UNION ALL "
    "SELECT i.inhparent, p.attnum FROM pg_inherits AS i JOIN pg_attribute AS a ON a.attrelid = i.inhrelid "
    "AND a.attnum = c.attnum AND a.attinhcount > 0 JOIN pg_attribute AS p ON p.attrelid = i.inhparent "
    "AND p.attname = a.attname AND NOT p.attisdropped WHERE i.inhrelid = c.rel) AS n) "
    "SELECT CASE WHEN r.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = "
    f"to_regclass({TABLE_NAME})) THEN CAST(:schema AS text) WHEN pg_table_is_visible(r.oid) THEN NULL "
    "ELSE CAST(n.nspname AS text) END, CAST(r.relname AS text), CAST(a.attname AS text) FROM c "
    "JOIN pg_class AS r ON r.oid = c.rel JOIN pg_namespace AS n ON n.oid = r.relnamespace "
    "JOIN pg_attribute AS a ON a.attrelid = c.rel AND a.attnum = c.attnum WHERE a.attinhcount = 0 ORDER BY 1, 2, 3"
)

#: Of a domain, and the domains that it is made of.
_CHECKED_DOMAIN = sa.text(
    "WITH RECURSIVE d AS (SELECT oid, typbasetype, typnotnull FROM pg_type WHERE oid = to_regtype(:type) "
    "AND typtype = 'd' UNION ALL SELECT t.oid, t.typbasetype, t.typnotnull FROM pg_type AS t JOIN d "
    "ON t.oid = d.typbasetype WHERE t.typtype = 'd') SELECT count(*) FROM d WHERE typnotnull "
    "OR EXISTS (SELECT 1 FROM pg_constraint WHERE contypid = d.oid)"
)
_COLLATION = sa.text(
    "SELECT c.collname FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid JOIN pg_collation AS c "
    f"ON c.oid = a.attcollation WHERE a.attrelid = to_regclass({TABLE_NAME}) AND a.attname = :column "
    "AND a.attcollation <> t.typcollation"
)
#: What PostgreSQL builds again when a column's type changes, of a table and those that inherit from it: checks, by a
#: look at every row, and indexes with an expression or a condition; all others it keeps where it can.
_REMADE = sa.text(
    f"WITH RECURSIVE t AS (SELECT to_regclass({TABLE_NAME})::oid AS oid UNION SELECT i.inhrelid FROM pg_inherits AS i "
    "JOIN t ON i.inhparent = t.oid), c AS (SELECT t.oid, a.attnum FROM t JOIN pg_attribute AS a ON a.attrelid = t.oid "
    "WHERE a.attname = :column) "
    "SELECT 'check' AS kind, k.conname AS name FROM c JOIN pg_constraint AS k ON k.conrelid = c.oid "
    "WHERE k.contype = 'c' AND k.convalidated AND c.attnum = ANY (k.conkey) UNION "
    "SELECT 'index', r.relname FROM c JOIN pg_index AS x ON x.indrelid = c.oid JOIN pg_class AS r ON r.oid = "
    "x.indexrelid WHERE (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL) AND EXISTS (SELECT 1 FROM pg_depend AS d "
    "WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid AND d.refclassid = 'pg_class'::regclass "
    "AND d.refobjid = c.oid AND d.refobjsubid = c.attnum) ORDER BY 1, 2"
)
#: What a column of a table, or of those that inherit from it, has together with others: constraints and indexes. Of a
#: foreign key its own columns count only, because those that it refers to may be of the same table.
_SHARED = sa.text(
    f"WITH RECURSIVE t AS (SELECT to_regclass({TABLE_NAME})::oid AS oid, true AS own UNION SELECT i.inhrelid, false "
    "FROM pg_inherits AS i JOIN t ON i.inhparent = t.oid) SELECT DISTINCT "
    "CASE WHEN k.oid IS NULL THEN 'index' ELSE 'constraint' END, COALESCE(k.conname, r.relname) AS name, t.own "
    "FROM t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = :column "
    "JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = a.attnum "
    "JOIN pg_depend AS o ON o.classid = d.classid AND o.objid = d.objid AND o.refclassid = d.refclassid "
    "AND o.refobjid = d.refobjid AND o.refobjsubid NOT IN (0, d.refobjsubid) "
    "LEFT JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.conrelid = t.oid "
    "AND (k.contype <> 'f' OR cardinality(k.conkey) > 1 AND a.attnum = ANY (k.conkey)) "
    "LEFT JOIN pg_class AS r ON d.classid = 'pg_class'::regclass AND r.oid = d.objid AND r.relkind IN ('i', 'I') "
    "WHERE k.oid IS NOT NULL OR r.oid IS NOT NULL ORDER BY 2"
)


#: What needs an index as it is, in words.
_NEEDING_INDEX = sa.text(
    "WITH x AS (SELECT i.* FROM pg_index AS i JOIN pg_class AS r ON r.oid = i.indexrelid "
    f"WHERE i.indrelid = to_regclass({TABLE_NAME}) AND r.relname = :name) "
    "SELECT 'the foreign key ' || quote_ident(k.conname) || ' of ' || CAST(CAST(k.conrelid AS regclass) AS text) "
    "FROM x JOIN pg_constraint AS k ON k.conindid = x.indexrelid AND k.contype = 'f' AND k.conparentid = 0 UNION ALL "
    "SELECT 'the index ' || CAST(CAST(h.inhparent AS regclass) AS text) || ' of the partitioned table' "
    "FROM x JOIN pg_inherits AS h ON h.inhrelid = x.indexrelid UNION ALL "
    "SELECT 'the replica identity of the table' FROM x WHERE indisreplident ORDER BY 1"
)
#: What has the name of an index or a key of a table, and is another.
_NAMESAKE = sa.text(
    f"WITH t AS (SELECT oid, relnamespace FROM pg_class WHERE oid = to_regclass({TABLE_NAME})) "
    "SELECT pg_describe_object('pg_class'::regclass, r.oid, 0) || COALESCE(' of ' || CAST(CAST(x.indrelid AS regclass) "
    "AS text), '') FROM t JOIN pg_class AS r ON r.relnamespace = t.relnamespace AND r.relname = :name "
    "LEFT JOIN pg_index AS x ON x.indexrelid = r.oid WHERE x.indrelid IS DISTINCT FROM t.oid UNION ALL "
    "SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0) FROM t JOIN pg_constraint AS k "
    "ON k.conrelid = t.oid AND k.conname = :name WHERE k.contype NOT IN ('p', 'u')".replace("::", r"\:\:")
)
#: The version that puts a trigger in the place of another.
_REPLACES_TRIGGERS = (14,)
#: Other columns of a view; another result of a function.
_CANNOT_REPLACE = ("42P16", "42P13")
#: What needs a view or a function, or would be lost with it: others that use it, triggers, rights.
#: A view, a rule or a computed column uses a column that is to get another type.
_CANNOT_ALTER = "0A000"
_RIGHTS = "rights granted on it"
#: Several functions of a name; something that others need.
_AMBIGUOUS, _NEEDED = "42725", "2BP01"
_NEEDS = (
    "SELECT DISTINCT CASE WHEN r.oid IS NULL OR r.ev_class = o.oid THEN pg_describe_object(d.classid, d.objid, "
    "d.objsubid) "
    "ELSE 'view ' || CAST(CAST(r.ev_class AS regclass) AS text) END FROM o JOIN pg_depend AS d ON d.refclassid = "
    "o.class AND d.refobjid = o.oid LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass "
    "AND r.oid = d.objid "
    "WHERE d.deptype IN ('n', 'a') AND d.classid <> 'pg_type'::regclass AND (r.oid IS NULL OR r.ev_class <> o.oid "
    "OR r.rulename <> '_RETURN') "
    f"UNION ALL SELECT '{_RIGHTS}' FROM o WHERE o.acl UNION ALL SELECT 'its comment' FROM o WHERE EXISTS (SELECT 1 "
    "FROM pg_description WHERE classoid = o.class AND objoid = o.oid)"
)
_OPTIONS = sa.text(
    "SELECT array_to_string(reloptions, ', ') FROM pg_class "
    f"WHERE oid = to_regclass({TABLE_NAME.replace(':table', ':name')})"
)
_OVERLOADS = sa.text(
    "SELECT CAST(CAST(p.oid AS regprocedure) AS text) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = "
    "p.pronamespace WHERE p.proname = :name AND (n.nspname = CAST(:schema AS text) OR CAST(:schema AS text) IS NULL "
    "AND pg_function_is_visible(p.oid)) ORDER BY 1"
)
_NEEDING = {
    "view": sa.text(
        "WITH o AS (SELECT 'pg_class'::regclass AS class, oid, relacl IS NOT NULL AS acl FROM pg_class "
        f"WHERE oid = to_regclass({TABLE_NAME.replace(':table', ':name')})) {_NEEDS}".replace("::", r"\:\:")
    ),
    "function": sa.text(
        "WITH o AS (SELECT 'pg_proc'::regclass AS class, p.oid, p.proacl IS NOT NULL AS acl FROM pg_proc AS p "
        "JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE p.proname = :name AND (n.nspname = "
        "CAST(:schema AS text) "
        f"OR CAST(:schema AS text) IS NULL AND pg_function_is_visible(p.oid))) {_NEEDS}".replace("::", r"\:\:")
    ),
}


class PostgresqlEditor(SchemaEditor):
    """See the module."""

    has_online = True

    def rows_moved(self, table: str, schema: str | None, columns: Sequence[str]) -> None:
        """Let sequences go on after the values that the rows have."""
        known = self.catalog.columns(table, schema)
        for column in columns:
            if not isinstance(known[column]["type"], (sa.Integer, sa.Numeric)):
                continue
            given = _SEQUENCE.bindparams(
                sa.bindparam("table", table, sa.Text()),
                sa.bindparam("schema", schema, sa.Text()),
                sa.bindparam("column", column, sa.Text()),
            )
            sequence = sa.cast(given.columns(sa.column("name", sa.Text())).scalar_subquery(), REGCLASS)
            highest: Any = sa.select(sa.func.max(sa.column(column))).select_from(sa.table(table, schema=schema))
            # Of a column without a sequence it is NULL, for which nothing is set.
            setting = sa.select(sa.func.setval(sequence, sa.cast(highest.scalar_subquery(), sa.BigInteger())))
            self.transaction.send(render(setting, self.dialect, literal_binds=True))

    def add_columns(
        self, table: sa.Table, columns: Sequence[sa.Column[Any]], constraints: Sequence[sa.Constraint], online: bool
    ) -> None:
        """Add columns; a constraint is not validated yet, a volatile default is for later rows only."""
        if not online:
            what = f"op.add_columns({table.name!r}, {', '.join(repr(column.name) for column in columns)})"
            more = [check for column in columns for check in column.constraints]
            with self.rows_in_the_way(table, [*constraints, *more], what, columns):
                super().add_columns(table, columns, constraints, online)
            return
        self._refuse_rewrite(table, columns)
        own = _constraints(table, columns)
        for constraint in own:
            if isinstance(constraint, (sa.ForeignKeyConstraint, sa.UniqueConstraint)):
                self._refuse_partitioned(constraint)
        volatile = [column for column in columns if self._volatile(column)]
        if own or volatile:
            self.transaction.journal.promise(_columns(table, columns))
        before = [(column, column.server_default, column.nullable, column.constraints) for column in columns]
        for column in columns:
            column.constraints = set()
        for column in volatile:
            column.server_default, column.nullable = None, True
        now = [constraint for constraint in own if not isinstance(constraint, sa.UniqueConstraint)]
        super().add_columns(table, columns, now, online)
        for column, default, nullable, checks in before:
            column.server_default, column.nullable, column.constraints = default, nullable, checks
            if column in volatile:
                self.transaction.send(ColumnDefault(table.name, column.name, default, schema=table.schema))

    def finish_columns(self, table: sa.Table, columns: Sequence[sa.Column[Any]], online: bool) -> None:
        """Give old rows a volatile default, validate the constraints, and make those that are missing."""
        if not online or not self.transaction.journal.promised(_columns(table, columns)):
            return
        for column in columns:
            if self._volatile(column):
                self._fill(table, column)
        for constraint in _constraints(table, columns):
            existing = self.catalog.constraints(table.name, table.schema).get(str(constraint.name))
            if existing is None:
                self.add_constraint(constraint, online)
            else:
                self.finish_constraint(constraint, existing)

    def shared(self, table: str, column: str, schema: str | None) -> list[str]:
        """What a column has together with others, checks and expressions too; the server would drop it in silence."""
        found = self._shared(table, column, schema)
        stored = self.catalog.stored(table, schema), self.catalog.stored_column(table, column, schema)
        names = {"table": stored[0], "column": stored[1], "schema": schema}
        for kind, name, own in self.transaction.connection.execute(_SHARED, names):
            dropped = own and self.catalog.dropped(table, name, schema)
            if not dropped and f"the {kind} {name!r}" not in found:
                found.append(f"the {kind} {name!r}")
        return found

    def create_index(self, index: sa.Index, online: bool) -> None:
        """Create an index, beside the table's traffic."""
        table = index.table
        assert table is not None
        what = f"op.create_index({str(index.name)!r}, {table.name!r}{', unique=True' if index.unique else ''})"
        if not online:
            with self.rows_in_the_way(table, (), what, unique=_values(index)):
                super().create_index(index, online)
            return
        if self._partitioned(table):
            raise Refused(PARTITIONED, what)
        self._build_index(index, table, what)

    def _build_index(self, index: sa.Index, table: sa.Table, what: str) -> None:
        """Build an index beside the table's traffic.

        :param what: what the migration asks for.
        """
        index.dialect_options["postgresql"]["concurrently"] = True
        failure = None
        with self.transaction.autocommit_block() as send:
            try:
                send(sa.schema.CreateIndex(index))
            except sa.exc.IntegrityError as error:
                send(sa.schema.DropIndex(index))  # what it leaves is invalid
                failure = error
        if failure is not None:
            found = self.found("unique", table, (), unique=_values(index))
            names = ", ".join(str(part) for part in index.expressions)
            raise Refused(OLD_ROWS, what, found or f"Rows repeat {names}. ") from failure

    def needing_index(self, name: str, table: str, schema: str | None) -> list[str]:
        """What needs an index as it is: foreign keys, the index above that of a partition, and replication."""
        names = {"table": self.catalog.stored(table, schema), "schema": schema, "name": name}
        return list(self.transaction.connection.scalars(_NEEDING_INDEX, names).all())

    def leftover(self, index: str) -> str | None:
        """What an index is called while it is built beside the one that it is to replace."""
        return _name(index, "db_smart_new")

    def replace_index(self, index: sa.Index, existing: Index, online: bool) -> None:
        """Build an index beside the one that it replaces, which then goes, and its name is the new one's."""
        assert index.table is not None
        table, schema, name = index.table.name, index.table.schema, str(index.name)
        new = str(self.leftover(name))
        there = self.catalog.indexes(table, schema)
        built = there.get(new)
        if not online:
            for old in [one for one in (new, existing.name) if one in there]:
                self.drop_index(SchemaObjects().index(old, table, [], schema=schema), online)
            self.create_index(index, online)
            return
        promise = f"index {schema} {new} {render(sa.schema.CreateIndex(index), self.dialect)}"
        if built is not None and not (built.valid and self.transaction.journal.promised(promise)):
            self.drop_index(SchemaObjects().index(new, table, [], schema=schema), online)
            built = None
        if built is None:
            self.transaction.journal.promise(promise)
            index.name = sa.quoted_name(new, None)
            self.create_index(index, online)
            index.name = sa.quoted_name(name, None)
        if existing.name in there:
            self.drop_index(SchemaObjects().index(existing.name, table, [], schema=schema), online)
        self.transaction.send(RenameIndex(table, new, name, schema))

    def drop_index(self, index: sa.Index, online: bool) -> None:
        """Drop an index, beside the table's traffic."""
        if not online:
            super().drop_index(index, online)
            return
        assert index.table is not None
        if self._partitioned(index.table):
            what = f"op.drop_index({str(index.name)!r}, {index.table.name!r})"
            raise Refused(BLOCKS, what, "PostgreSQL can drop an index of a partitioned table only in this way. ")
        index.dialect_options["postgresql"]["concurrently"] = True
        with self.transaction.autocommit_block() as send:
            send(sa.schema.DropIndex(index))

    def add_constraint(self, constraint: sa.Constraint, online: bool) -> None:
        """Add a constraint for new rows, then validate the old ones; a unique one by an index."""
        if online:
            self._refuse_partitioned(constraint)
        if isinstance(constraint, (sa.UniqueConstraint, sa.PrimaryKeyConstraint)):
            self.refuse_name(constraint)
        if not online:
            assert constraint.table is not None
            what = f"The constraint {str(constraint.name)!r} of {constraint.table.name!r}"
            with self.rows_in_the_way(constraint.table, [constraint], what):
                super().add_constraint(constraint, online)
        elif isinstance(constraint, (sa.UniqueConstraint, sa.PrimaryKeyConstraint)):
            self._add_unique(constraint)
        else:
            constraint.dialect_options["postgresql"]["not_valid"] = True
            super().add_constraint(constraint, online)
            assert constraint.table is not None
            self._validate(constraint.table.name, str(constraint.name), constraint.table.schema, constraint)

    def refuse_name(self, constraint: sa.Constraint) -> None:
        """Refuse a key whose name is that of something else in the schema.

        :raises DbSmartError: it is.
        """
        table, name = constraint.table, str(constraint.name)
        place = {"table": self.catalog.stored(table.name, table.schema), "schema": table.schema, "name": name}
        found = None if self.transaction.dry else self.transaction.connection.scalar(_NAMESAKE, place)
        if found is not None:
            raise DbSmartError(
                f"The constraint {name!r} of {table.name!r}: the name is that of the {found}. Nothing was changed. "
                "Give the constraint another name, or drop or rename that first."
            )

    def referring(self, table: str, column: str, schema: str | None) -> list[tuple[str | None, str, str]] | None:
        """The columns whose foreign keys lead to a column."""
        stored = self.catalog.stored(table, schema), self.catalog.stored_column(table, column, schema)
        names = {"table": stored[0], "schema": schema, "column": stored[1]}
        rows = self.transaction.connection.execute(_REFERRING, names)
        return [(place, name, own) for place, name, own in rows]

    def widen(self, changes: Sequence[Change]) -> None:
        """Give the columns of keys another type, and the sequences that number them too."""
        super().widen(changes)
        for change in changes:
            assert change.type_ is not None
            place = {"table": self.catalog.stored(change.table, change.schema), "schema": change.schema}
            column = change.existing.get("stored", change.column)
            for sequence in self.transaction.connection.scalars(_NARROW_SEQUENCE, {**place, "column": column}).all():
                self.transaction.send(f"ALTER SEQUENCE {sequence} AS {type_text(change.type_, self.dialect)}")

    def finish_constraint(self, constraint: sa.Constraint, existing: Constraint) -> None:
        """Validate a constraint that an earlier run only added."""
        if not existing.valid:
            table = constraint.table
            self._validate(table.name, existing.name, table.schema, constraint)

    def alter_column(self, change: Change, online: bool) -> None:
        """Change a column; NOT NULL by a validated check, which saves the scan under the exclusive lock."""
        replaced: list[str] = []
        if change.type_ is not None and self._add_values(change):
            change.type_ = None
        if change.type_ is not None:
            replaced = self._replaced(change)
            if online:
                self._refuse_scan(change, replaced)
            self.create_types([sa.Column(change.column, change.type_)])
            if not replaced:
                with self._used(change):
                    self.transaction.send(
                        PostgresqlColumnType(
                            change.table, change.column, change.type_, schema=change.schema, using=change.using
                        )
                    )
        for check in change.checks:
            if change.type_ is not None and str(check.name) in replaced:
                with self._used(change):
                    self.replace_check(str(check.name), check, online, change.column, change.type_)
            else:
                self.put_check(check, online)
        if change.server_default is not False:
            default = ColumnDefault(change.table, change.column, change.server_default, schema=change.schema)
            self.transaction.send(default)
        if change.nullable is not None:
            self._set_nullable(change, online)
        self.comment_column(change)
        self.rename_column(change)

    @contextmanager
    def _used(self, change: Change) -> Iterator[None]:
        """Say what to do where a column cannot get another type because something is computed from it.

        :raises DbSmartError: a view, a computed column, a trigger or a policy uses it.
        """
        try:
            with self.transaction.undoable():
                yield
        except sa.exc.DBAPIError as error:
            if sqlstate(error) != _CANNOT_ALTER:
                raise
            said = " ".join(self.transaction.database.redact(error).split())
            raise DbSmartError(
                f"op.alter_column({change.table!r}, {change.column!r}, type_=…): PostgreSQL says: {said}. The type was "
                "not changed. Drop what uses the column before, a view for example with op.drop_view(), and make it "
                "again afterwards."
            ) from error

    def _replaced(self, change: Change) -> list[str]:
        """The one check that gives way to another with the change of type, in one statement."""
        there = self.catalog.constraints(change.table, change.schema)
        names = [str(check.name) for check in change.checks if str(check.name) in there]
        return names[:1] if change.using is None else []

    def replace_check(
        self,
        name: str,
        check: sa.CheckConstraint,
        online: bool,
        column: str | None = None,
        type_: TypeEngine[Any] | None = None,
    ) -> None:
        """Put a check in the place of another, for new rows; then validate the old ones."""
        check.dialect_options["postgresql"]["not_valid"] = online
        self.transaction.send(ReplaceCheck(name, check, column, type_))
        if online:
            assert isinstance(check.table, sa.Table)
            self._validate(check.table.name, str(check.name), check.table.schema, check)

    def declare(self, one: CreateDeclared, there: bool) -> None:
        """Make a view, a function or a trigger; drop the old one only where it cannot be replaced.

        :raises DbSmartError: others need the old one.
        """
        if one.kind == "view" and there:
            options = self.transaction.connection.scalar(_OPTIONS, {"name": one.name, "schema": one.schema})
            if options:  # such as security_invoker, which the server takes away where it is not said again
                one.text = one.text.replace(" AS\n", f" WITH ({options}) AS\n", 1)
        version = self.dialect.server_version_info or ()
        plain = one.kind == "trigger" and (version < _REPLACES_TRIGGERS or not one.text.startswith("CREATE TRIGGER"))
        if plain or not there:
            super().declare(one, there)
            return
        try:
            with self.transaction.undoable():
                self.transaction.send(self.replacing(one))
        except sa.exc.DBAPIError as error:
            if sqlstate(error) not in _CANNOT_REPLACE:
                raise
            names = {"name": one.name, "schema": one.schema}
            said = f"op.{one.kind}({one.name!r}): PostgreSQL cannot replace it in place ({self._said(error)})"
            alike = [] if one.kind == "view" else self.transaction.connection.scalars(_OVERLOADS, names).all()
            if len(alike) > 1:
                raise DbSmartError(
                    f"{said}, and there are several of that name: {', '.join(alike)}. Nothing was changed. Drop the "
                    f"old one first: op.drop_function({one.name!r}, 'its, types')."
                ) from error
            needing = self.transaction.connection.scalars(_NEEDING[one.kind], names).all()
            if needing:
                raise DbSmartError(
                    f"{said}, and would have to drop it. It would take these along: {', '.join(sorted(needing))}. "
                    f"Nothing was changed. Drop them first, then op.drop_{one.kind}({one.name!r}), and make all of "
                    "them again."
                ) from error
            if not self.transaction.transactional:
                raise DbSmartError(
                    f"{said}. Nothing was changed. Outside of a transaction, drop the old one first with "
                    f"op.drop_{one.kind}({one.name!r}); or take transactional=False away."
                ) from error
            super().declare(one, there)

    def drop_declared(self, one: DropDeclared) -> None:
        """Drop a view, a function or a trigger.

        :raises DbSmartError: others need it, or there are several functions of that name.
        """
        try:
            with self.transaction.undoable():
                super().drop_declared(one)
        except sa.exc.DBAPIError as error:
            names, what = {"name": one.name, "schema": one.schema}, f"op.drop_{one.kind}({one.name!r})"
            if sqlstate(error) == _AMBIGUOUS:
                alike = self.transaction.connection.scalars(_OVERLOADS, names).all()
                raise DbSmartError(
                    f"{what}: there are several functions of that name: {', '.join(alike)}. Nothing was dropped. Say "
                    f"which one: op.drop_function({one.name!r}, 'its, types')."
                ) from error
            if sqlstate(error) == _NEEDED:
                needing = self.transaction.connection.scalars(_NEEDING[one.kind], names).all()
                found = ", ".join(sorted(need for need in needing if need != _RIGHTS))
                raise DbSmartError(
                    f"{what}: others need it: {found}. Nothing was dropped. Drop those first, or have them do without "
                    "it."
                ) from error
            raise

    def _said(self, error: sa.exc.DBAPIError) -> str:
        return self.transaction.database.redact(error).partition("\n")[0]

    def create_types(self, columns: Any) -> None:
        """Make the native types that are missing."""
        for column in columns:
            kind = enumeration(column.type.dialect_impl(self.dialect), self.dialect).dialect_impl(self.dialect)
            if isinstance(kind, DOMAIN) or (
                isinstance(kind, NamedType) and isinstance(kind, sa.Enum) and kind.native_enum
            ):
                connection: Any = self.transaction.connection
                if self.catalog.enumeration(str(kind.name), kind.schema) is not None:
                    continue
                if not self.dialect.has_type(connection, str(kind.name), schema=kind.schema):  # type: ignore[attr-defined]
                    domain, names = isinstance(kind, DOMAIN), {"schema": kind.schema, "name": str(kind.name)}
                    with self.transaction.making("drop_type", table="", domain=domain, **names):
                        self.transaction.send(CreateDomainType(kind) if domain else CreateEnumType(kind))

    def wanted(
        self, change: Change, type_: TypeEngine[Any] | None, nullable: bool | None
    ) -> tuple[TypeEngine[Any] | None, bool | None]:
        """What is asked for of a column: a text keeps its collation, which ``ALTER TYPE`` without one takes away."""
        type_, nullable = super().wanted(change, type_, nullable)
        old = change.existing["type"]
        if isinstance(old, sa.String) and isinstance(type_, sa.String):
            stored = self.catalog.stored(change.table, change.schema)
            column = change.existing.get("stored", change.column)
            names = {"table": stored, "schema": change.schema, "column": column}
            collation = old.collation or self.transaction.connection.scalar(_COLLATION, names)
            if collation is not None and not isinstance(type_, sa.Enum) and not isinstance(old, sa.Enum):
                type_, change.existing = copy.copy(type_), {**change.existing, "type": copy.copy(old)}
                kinds = [change.existing["type"]]  # SQLAlchemy 2.0 does not reflect it
                if type_.collation is None:
                    kinds.append(type_)
                for kind in kinds:
                    kind.collation = collation
                    if getattr(old, "collation_schema", None) is not None:
                        kind.collation_schema = old.collation_schema
                    kind.__dict__.pop("_static_cache_key", None)
        return type_, nullable

    def type_is(self, old: TypeEngine[Any], new: TypeEngine[Any]) -> Literal["same", "wider", "other"]:
        """What a change of type does; an enumeration can only be given more values.

        :raises Refused: values of an enumeration are to go, or to change places.
        """
        relation = super().type_is(old, new)
        values = native_values(old, self.dialect), native_values(new, self.dialect)
        if relation == "other" and None not in values and type_text(old, self.dialect) == type_text(new, self.dialect):
            raise Refused(
                ENUM_VALUES,
                f"The type {spelled(old, self.dialect)} cannot become {spelled(new, self.dialect)}",
                "PostgreSQL only adds values to an enumeration, and neither removes one nor changes their order. ",
            )
        return relation

    def _add_values(self, change: Change) -> bool:
        """Give an enumeration its new values, if that is what the change of type is."""
        old, new = change.existing["type"], change.type_
        assert new is not None
        have, wanted = native_values(old, self.dialect), native_values(new, self.dialect)
        if have is None or wanted is None or super().type_is(old, new) != "wider":
            return False
        kind: Any = enumeration(old, self.dialect)
        self.add_values(str(kind.name), kind.schema, have, wanted)
        return True

    def add_values(self, name: str, schema: str | None, have: Sequence[str], wanted: Sequence[str]) -> None:
        """Give an enumeration more values, each in its place.

        A transaction that has added a value cannot use it, so that each is added outside of the migration's.
        """
        with self.transaction.autocommit_block() as send:
            for number, value in enumerate(wanted):
                if value not in have:
                    after = wanted[number - 1] if number else None
                    before = have[0] if have and after is None else None
                    send(AddEnumValue(name, schema, value, before=before, after=after))

    def _set_nullable(self, change: Change, online: bool) -> None:
        plain = ColumnNullable(change.table, change.column, bool(change.nullable), schema=change.schema)
        name = _name(change.table, change.column, "db_smart_not_null")
        existing = self.catalog.constraints(change.table, change.schema).get(name)
        if change.nullable or not (online or existing):
            if not change.nullable and not self.transaction.dry:
                self._refuse_nulls(change)
            self.transaction.send(plain)
            return
        where = sa.column(change.column).is_not(None)
        check = SchemaObjects().check_constraint(
            name, change.table, where, schema=change.schema, postgresql_not_valid=True
        )
        if existing is None:
            self.transaction.send(sa.schema.AddConstraint(check))
        if existing is None or not existing.valid:
            try:
                self._validate(change.table, name, change.schema)
            except Refused as refused:  # it names the check, which only this extension knows
                self._refuse_nulls(change, refused)
                raise
        # The manual: SET NOT NULL needs no scan if a valid check proves it.
        self.transaction.send(plain)
        self.transaction.send(sa.schema.DropConstraint(check))

    def _refuse_nulls(self, change: Change, cause: Refused | None = None) -> None:
        """Refuse to make a column NOT NULL if rows have NULL there.

        :param cause: how it was found out, if so.
        :raises Refused: they have.
        """
        count = self.catalog.count(change.table, change.schema, sa.column(change.column).is_(None))
        if count:
            what = f"op.alter_column({change.table!r}, {change.column!r}, nullable=False)"
            raise Refused(OLD_ROWS, what, f"{counted(count, 'has NULL', 'have NULL')}. ") from cause

    def _add_unique(self, constraint: sa.UniqueConstraint | sa.PrimaryKeyConstraint) -> None:
        table = constraint.table
        name, columns = str(constraint.name), [column.name for column in constraint.columns]
        given = constraint.dialect_options["postgresql"]
        options = {f"postgresql_{key}": given.get(key) for key in ("include", "nulls_not_distinct") if given.get(key)}
        index = SchemaObjects().index(name, table.name, columns, schema=table.schema, unique=True, **options)
        own = index.table
        assert own is not None
        for column in given.get("include") or ():
            if column not in own.c:
                own.append_column(sa.Column(column, sa.types.NullType()))
        existing = self.catalog.indexes(table.name, table.schema).get(name)
        if existing is not None and not existing.valid:
            self.drop_index(SchemaObjects().index(name, table.name, columns, schema=table.schema), True)
            existing = None
        if existing is None:
            self._build_index(index, own, f"The constraint {name!r} of {table.name!r}")
        elif existing.columns != columns or not existing.unique or existing.options != options:
            more = ", ".join(f"{key} {value}" for key, value in sorted(existing.options.items()))
            raise DbSmartError(
                f"The table {table.name!r} already has an index {name!r}, on {', '.join(map(str, existing.columns))} "
                f"({'unique' if existing.unique else 'not unique'}{more and ', '}{more}). Nothing was changed. Drop it "
                "first with op.drop_index(), or give the constraint another name."
            )
        self.transaction.send(UniqueUsingIndex(table.name, name, table.schema, constraint))

    def _validate(
        self, table: str, name: str, schema: str | None, whole: sa.Constraint | sa.ForeignKeyConstraint | None = None
    ) -> None:
        """Validate a constraint in a transaction of its own; where rows break it, drop it again.

        :param whole: the constraint, to count those rows.
        :raises Refused: rows break it.
        """
        failure = None
        with self.transaction.autocommit_block() as send:
            try:
                send(ValidateConstraint(table, name, schema))
            except sa.exc.IntegrityError as error:
                failure = error
        if failure is not None:
            constraint = SchemaObjects().generic_constraint(name, table, "check", schema=schema)
            self.transaction.send(sa.schema.DropConstraint(constraint))
            self.transaction.checkpoint()
            kind = self.broken(failure)
            rows = "" if whole is None or kind is None else self.found(kind, whole.table, [whole])
            what = f"The constraint {name!r} of {table!r}"
            raise Refused(OLD_ROWS, what, f"{rows}It was removed again. ") from failure

    def broken(self, error: sa.exc.DBAPIError) -> Broken | None:
        """The kind of the constraint that rows break."""
        return _BROKEN.get(sqlstate(error) or "")

    def understood(self, query: str) -> Any:
        """How the server understands a query, without types: those in a condition stay when a column gets another."""
        (plan,) = self.plain(f"EXPLAIN (VERBOSE, FORMAT JSON) {query}").scalar_one()
        return [without_types(text) for text in plan["Plan"]["Output"]]

    def _fill(self, table: sa.Table, column: sa.Column[Any]) -> None:
        """Give the rows that are there the volatile default of a new column, each its own."""
        from ...schema.backfill import Backfill

        default = column.server_default
        assert isinstance(default, sa.DefaultClause)
        value = sa.text(default.arg) if isinstance(default.arg, str) else default.arg
        value = as_written(value) if isinstance(value, sa.TextClause) else value
        Backfill(self.transaction, table.name, table.schema).update(
            {column.name: value}, sa.column(column.name).is_(None)
        )
        if not column.nullable:
            existing = self.catalog.columns(table.name, table.schema)[column.name]
            change = Change(table.name, table.schema, column.name, existing, nullable=False)
            if existing["nullable"]:
                self._set_nullable(change, True)

    def _refuse_rewrite(self, table: sa.Table, columns: Sequence[sa.Column[Any]]) -> None:
        """Refuse columns that have a value of their own in every row from the start, or are checked in every row.

        :raises Refused: there is one.
        """
        compiler: Any = self.dialect.ddl_compiler(self.dialect, None)  # type: ignore[arg-type]
        for column in columns:
            why = None
            if column.identity is not None:
                why = "an identity column numbers the existing rows. "
            elif column.computed is not None and compiler.process(column.computed).endswith("STORED"):
                why = "a stored computed column is computed for the existing rows. "
            elif self._checked_domain(column.type):
                why = "a domain with constraints is checked for the existing rows. "
            if why is not None:
                what = f"op.add_columns({table.name!r}, Column({column.name!r}, …))"
                raise Refused(REWRITE, what, f"{why[0].upper()}{why[1:]}")

    def _partitioned(self, table: sa.Table) -> bool:
        """Whether a table has partitions; in a dry run, by what the database calls it."""
        name = {"table": self.catalog.stored(table.name, table.schema), "schema": table.schema}
        return bool(self.transaction.connection.scalar(_PARTITIONED, name))

    def _refuse_partitioned(self, constraint: sa.Constraint) -> None:
        """Refuse a constraint that a partitioned table takes only while its writers wait.

        :raises Refused: it is one.
        """
        table = constraint.table
        version = self.dialect.server_version_info or ()
        if isinstance(constraint, sa.ForeignKeyConstraint) and version < _KEYS_OF_PARTITIONED:
            why = "Before version 18, PostgreSQL adds a foreign key of a partitioned table only in this way. "
        elif isinstance(constraint, (sa.UniqueConstraint, sa.PrimaryKeyConstraint)):
            why = "PostgreSQL adds a unique constraint of a partitioned table only in this way. "
        else:
            return
        if self._partitioned(table):
            raise Refused(BLOCKS, f"The constraint {str(constraint.name)!r} of {table.name!r}", why)

    def _refuse_scan(self, change: Change, replaced: Sequence[str] = ()) -> None:
        """Refuse a change of type for which the rows are rewritten, or all of them are read.

        :param replaced: checks that give way with it.
        :raises Refused: it is such a change.
        """
        what = f"op.alter_column({change.table!r}, {change.column!r}, type_=…)"
        old, new = change.existing["type"], change.type_
        assert new is not None
        if change.using is not None or not free_on_postgresql(old, new):
            name, names = self.transaction.journal.migration, (change.table, change.schema, change.column)
            raise Refused(REWRITE, what, instead=retyped_column(name, *names, new))
        if getattr(old, "collation", None) != getattr(new, "collation", None):
            raise Refused(REWRITE, what, "For another collation the indexes on the column are built again. ")
        table = self.catalog.stored(change.table, change.schema)
        column = change.existing.get("stored", change.column)
        place = {"table": table, "schema": change.schema, "column": column}
        remade: dict[str, list[str]] = {"check": [], "index": []}
        for kind, name in self.transaction.connection.execute(_REMADE, place):
            if not self.catalog.dropped(change.table, name, change.schema) and name not in replaced:
                remade[kind].append(name)
        found = [f"the {kind} {name!r}" for kind in remade for name in remade[kind]]
        if found:
            raise Refused(
                REWRITE,
                what,
                f"PostgreSQL makes {', '.join(found)} again for that, and reads every row. Drop it before and "
                "create it after, which does not block. ",
            )

    def _checked_domain(self, kind: TypeEngine[Any]) -> bool:
        """Whether a type is a domain with constraints of its own, or of one that it is made of."""
        if isinstance(kind, sa.types.TypeDecorator):
            kind = kind.load_dialect_impl(self.dialect)
        if not isinstance(kind, (DOMAIN, sa.types.UserDefinedType)):
            return False
        name = type_text(kind, self.dialect).partition(" COLLATE ")[0]
        return bool(self.transaction.connection.scalar(_CHECKED_DOMAIN, {"type": name}))

    def _volatile(self, column: sa.Column[Any]) -> bool:
        """Whether a default is to be computed for each row, for which PostgreSQL would rewrite the table."""
        default = column.server_default
        if not isinstance(default, sa.DefaultClause) or isinstance(default.arg, str):
            return False
        value = as_written(default.arg) if isinstance(default.arg, sa.TextClause) else default.arg
        calls = _CALLS.findall(render(value, self.dialect, literal_binds=True))
        names = [call[1:-1].replace('""', '"') if call.startswith('"') else call.lower() for call in calls]
        return bool(names) and bool(self.transaction.connection.scalar(_VOLATILE, {"names": names}))


def _constraints(table: sa.Table, columns: Sequence[sa.Column[Any]]) -> list[Any]:
    """The constraints that come with columns, not validated yet, and named as PostgreSQL does."""
    names = {column.name for column in columns}
    found: list[Any] = []
    for constraint in table.constraints:
        own = [column.name for column in getattr(constraint, "columns", ())]
        if names.intersection(own) and not isinstance(constraint, sa.PrimaryKeyConstraint):
            end = {sa.UniqueConstraint: "key", sa.ForeignKeyConstraint: "fkey"}.get(type(constraint), "check")
            constraint.name = constraint.name or _name(table.name, *own, end)
            found.append(constraint)
    for column in columns:
        for number, check in enumerate(column.constraints):
            name = check.name or _name(table.name, column.name, f"check{number or ''}")
            assert isinstance(check, sa.CheckConstraint)
            found.append(SchemaObjects().check_constraint(str(name), table.name, check.sqltext, schema=table.schema))
    for constraint in found:
        if not isinstance(constraint, sa.UniqueConstraint):
            constraint.dialect_options["postgresql"]["not_valid"] = True
    return sorted(found, key=lambda constraint: str(constraint.name))


def _columns(table: sa.Table, columns: Sequence[sa.Column[Any]]) -> str:
    """What it is called that columns are being added."""
    return f"columns {table.schema} {table.name} {sorted(column.name for column in columns)}"


def _name(*parts: str) -> str:
    """A name made of parts, as long as PostgreSQL allows."""
    name = "_".join(parts)
    if len(name.encode()) <= _MAX_NAME:
        return name
    return name.encode()[: _MAX_NAME - 9].decode(errors="ignore") + "_" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _values(index: sa.Index) -> list[str]:
    """The columns whose values an index keeps apart; none where not all of it is their values."""
    columns = [part.name for part in index.expressions if isinstance(part, sa.ColumnClause)]
    if len(columns) < len(index.expressions) or index.dialect_options["postgresql"]["where"] is not None:
        return []
    return columns
