"""What a database has: the questions that operations ask before they act."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import sqlalchemy as sa

from ..dialects.base import facts_of
from ..errors import DbSmartError

Kind = Literal["unique", "check", "foreign", "primary", "exclude"]

_SQLITE_COLUMNS = sa.text(
    "SELECT lower(name), cid FROM pragma_table_xinfo(:table, :schema) WHERE cid = 0 OR lower(name) IN :names"
).bindparams(sa.bindparam("names", expanding=True))
#: A name that SQLite's definition of a table holds as it is, however it is quoted.
_SIMPLE_NAME = re.compile(r"\w+")
_SQLITE_INDEXES = sa.text(
    'SELECT i.name, i."unique", c.name FROM pragma_index_list(:table, :schema) AS i, '
    "pragma_index_info(i.name, :schema) AS c ORDER BY i.name, c.seqno"
)
#: How MariaDB shows what it escapes in the values of an enumeration.
_ESCAPE, _SIGNS = re.compile(r"\\(.)", re.DOTALL), {"n": "\n", "r": "\r", "0": "\0"}
#: PostgreSQL: the name of a table as SQL, by ``:schema`` and ``:table``, quoted by the server itself.
TABLE_NAME = "COALESCE(quote_ident(CAST(:schema AS text)) || '.', '') || quote_ident(CAST(:table AS text))"
#: One row of NULL for a table that has none of the columns, none where there is no such table: nothing of the system's.
_POSTGRESQL_COLUMNS = sa.text(
    "SELECT CAST(a.attname AS text) FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid "
    "AND a.attnum > 0 AND NOT a.attisdropped AND CAST(a.attname AS text) IN :names "
    f"WHERE c.oid = to_regclass({TABLE_NAME}) AND c.relkind IN ('r', 'p', 'f', 'v', 'm') "
    "AND c.relnamespace <> CAST('pg_catalog' AS regnamespace)"
).bindparams(sa.bindparam("names", expanding=True, type_=sa.Text()))
_POSTGRESQL_INVALID = sa.text(
    "SELECT i.relname FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid "
    f"WHERE x.indrelid = to_regclass({TABLE_NAME}) AND NOT (x.indisvalid AND x.indisready) UNION ALL "
    f"SELECT conname FROM pg_constraint WHERE conrelid = to_regclass({TABLE_NAME}) AND NOT convalidated"
)
#: One row of NULL for an enumeration without values.
_POSTGRESQL_ENUMERATION = sa.text(
    "SELECT CAST(e.enumlabel AS text) FROM pg_type AS t LEFT JOIN pg_enum AS e ON e.enumtypid = t.oid "
    f"WHERE t.oid = to_regtype({TABLE_NAME}) AND t.typtype = 'e' ORDER BY e.enumsortorder"
)
_POSTGRESQL_HIDES = sa.text(f"SELECT row_security_active(CAST(to_regclass({TABLE_NAME}) AS oid))")
_POSTGRESQL_EXCLUSIONS = sa.text(
    f"SELECT conname FROM pg_constraint WHERE conrelid = to_regclass({TABLE_NAME}) AND contype = 'x'"
)


@dataclass
class Index:
    """An index as the database has it.

    :ivar columns: an expression among them is ``None``.
    :ivar valid: ``False`` for one that PostgreSQL could not finish building.
    :ivar options: of the dialect, such as ``postgresql_where``, as the inspector has them.
    """

    name: str
    columns: list[str | None]
    unique: bool
    valid: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Constraint:
    """A named constraint as the database has it.

    :ivar valid: ``False`` for one that PostgreSQL has not checked on old rows yet.
    :ivar target: of a foreign key, its table and columns.
    :ivar condition: of a check, as the database shows it; ``None`` where that is not known.
    :ivar options: of a foreign key, such as ``ondelete``, as the inspector has them; ``None`` where not known.
    :ivar schema: of a foreign key, that of its target, where it is not the usual one.
    """

    name: str
    kind: Kind
    columns: list[str]
    valid: bool = True
    target: tuple[str, tuple[str, ...]] | None = None
    condition: str | None = None
    options: dict[str, Any] | None = None
    schema: str | None = None


@dataclass
class Reference:
    """A foreign key of SQLite, by the table that has it.

    :ivar on_delete: such as ``RESTRICT``.
    """

    table: str
    columns: list[str]
    on_delete: str


#: By kind, how many there are of a name.
_POSTGRESQL_DECLARED = {
    "view": sa.text(
        "SELECT count(*) FROM pg_class WHERE relkind = 'v' AND oid = to_regclass("
        f"{TABLE_NAME.replace(':table', ':name')})"
    ),
    "function": sa.text(
        "SELECT count(*) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE p.proname = :name "
        "AND (n.nspname = CAST(:schema AS text) OR CAST(:schema AS text) IS NULL AND pg_function_is_visible(p.oid)) "
        "AND n.nspname <> 'pg_catalog' AND (CAST(:of AS text) IS NULL OR p.oid = to_regprocedure("
        f"{TABLE_NAME.replace(':table', ':name')} || '(' || CAST(:of AS text) || ')'))"
    ),
    "trigger": sa.text(
        "SELECT count(*) FROM pg_trigger WHERE tgname = :name AND NOT tgisinternal "
        f"AND tgrelid = to_regclass({TABLE_NAME.replace(':table', ':of')})"
    ),
}
#: By kind, the text of each of a name.
_POSTGRESQL_TEXTS = {
    "view": sa.text(f"SELECT pg_get_viewdef(to_regclass({TABLE_NAME.replace(':table', ':name')}))"),
    "function": sa.text(
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace "
        "WHERE p.proname = :name AND p.prokind IN ('f', 'p') AND n.nspname <> 'pg_catalog' "
        "AND (n.nspname = CAST(:schema AS text) OR CAST(:schema AS text) IS NULL AND pg_function_is_visible(p.oid))"
    ),
    "trigger": sa.text(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = :name AND NOT tgisinternal "
        f"AND tgrelid = to_regclass({TABLE_NAME.replace(':table', ':of')})"
    ),
    "index": sa.text(
        "SELECT pg_get_indexdef(i.indexrelid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid "
        f"WHERE c.relname = :name AND i.indrelid = to_regclass({TABLE_NAME.replace(':table', ':of')})"
    ),
}
_POSTGRESQL_MATERIALIZED = sa.text(_POSTGRESQL_DECLARED["view"].text.replace("'v'", "'m'"))
_MARIADB_DECLARED = {
    "view": sa.text(
        "SELECT count(*) FROM information_schema.VIEWS WHERE TABLE_SCHEMA = COALESCE(:schema, DATABASE()) "
        "AND TABLE_NAME = :name"
    ),
    "function": sa.text(
        "SELECT count(*) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = COALESCE(:schema, DATABASE()) "
        "AND ROUTINE_TYPE = 'FUNCTION' AND ROUTINE_NAME = :name"
    ),
    "trigger": sa.text(
        "SELECT count(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = COALESCE(:schema, DATABASE()) "
        "AND EVENT_OBJECT_TABLE = COALESCE(:of, EVENT_OBJECT_TABLE) AND TRIGGER_NAME = :name"
    ),
}


def _options(index: Any) -> dict[str, Any]:
    """What an inspector has of an index beside its name, its columns and whether it is unique."""
    return {**index.get("dialect_options", {}), "sorting": index.get("column_sorting")}


class Catalog:
    """Answers from a connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self._facts = facts_of(self._dialect)

    @property
    def inspector(self) -> sa.Inspector:
        """A fresh inspector: it sees what the migration has changed so far."""
        return sa.inspect(self._connection)

    def normalize_name(self, name: str) -> str:
        """A name as the database compares it."""
        return self._facts.normalize_name(name)

    def has_table(self, table: str, schema: str | None) -> bool:
        """Whether there is such a table or view."""
        return self.inspector.has_table(table, schema=schema)

    def columns(self, table: str, schema: str | None) -> dict[str, Any]:
        """The columns by normalized name, each as SQLAlchemy's inspector has it.

        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        found = [(self._plain(one["name"]), one) for one in self.inspector.get_columns(table, schema=schema)]
        if self._dialect == "mysql":
            for _, column in found:
                kind: Any = column["type"]
                if isinstance(kind, sa.Enum):  # of which SQLAlchemy leaves backslashes as the server shows them
                    kind.enums = [_ESCAPE.sub(lambda one: _SIGNS.get(one[1], one[1]), value) for value in kind.enums]
        return {self.normalize_name(name): {**column, "name": name} for name, column in found}

    def primary_key(self, table: str, schema: str | None) -> list[str]:
        """The columns of the primary key in its order; none where there is no such key."""
        key = self.inspector.get_pk_constraint(table, schema=schema)
        return [*map(self._plain, key["constrained_columns"])]

    def present(self, table: str, columns: Iterable[str], schema: str | None) -> set[str]:
        """Those of the columns, normalized, that the table has.

        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        """
        # Reflecting all columns to look for one is what makes a thousand migrations slow.
        wanted = {self.normalize_name(column) for column in columns}
        if self._dialect == "sqlite":
            return self._sqlite_present(table, wanted, schema)
        if self._dialect == "postgresql" and wanted:
            names = {"table": table, "schema": schema, "names": sorted(wanted)}
            found = self._connection.scalars(_POSTGRESQL_COLUMNS, names).all()
            if found:
                return wanted & {*found}
        return wanted & self.columns(table, schema).keys()

    def _sqlite_present(self, table: str, wanted: set[str], schema: str | None) -> set[str]:
        """As :meth:`present`, of normalized names."""
        # Of a column that a table has, its definition holds the name; the columns themselves are asked only where that
        # leaves a doubt.
        definition = self.definition(table, schema)
        if (
            definition is not None
            and definition.startswith("CREATE TABLE")
            and all(map(_SIMPLE_NAME.fullmatch, wanted))
        ):
            text = self.normalize_name(definition)
            if not any(name in text for name in wanted):
                return set()
        # The first column always comes along, because only a table that exists has one.
        names = {"table": table, "schema": schema or "main", "names": sorted(wanted)}
        rows = self._connection.execute(_SQLITE_COLUMNS, names).all()
        if not rows:
            raise sa.exc.NoSuchTableError(table)
        return wanted & {name for name, _ in rows}

    def indexes(self, table: str, schema: str | None) -> dict[str, Index]:
        """The indexes of a table by normalized name."""
        found: dict[str, Index] = {}
        if self._dialect == "sqlite":
            # SQLAlchemy does not reflect SQLite's indexes on expressions.
            rows = self._connection.execute(_SQLITE_INDEXES, {"table": table, "schema": schema or "main"})
            for name, unique, column in rows:
                found.setdefault(self.normalize_name(name), Index(name, [], bool(unique))).columns.append(column)
            return found
        invalid = self._invalid(table, schema)
        for index in self.inspector.get_indexes(table, schema=schema):
            if index["name"] is not None:
                name = self._plain(index["name"])
                found[self.normalize_name(name)] = Index(
                    name,
                    [None if column is None else self._plain(column) for column in index["column_names"]],
                    bool(index["unique"]),
                    name not in invalid,
                    {key: value for key, value in _options(index).items() if value},
                )
        return found

    def constraints(self, table: str, schema: str | None) -> dict[str, Constraint]:
        """The named constraints of a table by normalized name."""
        if self._dialect == "sqlite":
            return self._sqlite_constraints(table, schema)
        inspector, invalid = self.inspector, self._invalid(table, schema)
        found: list[Constraint] = []
        for key in inspector.get_foreign_keys(table, schema=schema):
            target = (key["referred_table"], tuple(key["referred_columns"]))
            foreign = Constraint(key["name"] or "", "foreign", key["constrained_columns"], target=target)
            foreign.options, foreign.schema = dict(key.get("options", {})), key["referred_schema"]
            found.append(foreign)
        for unique in inspector.get_unique_constraints(table, schema=schema):
            found.append(Constraint(unique["name"] or "", "unique", unique["column_names"]))
        for check in inspector.get_check_constraints(table, schema=schema):
            found.append(Constraint(check["name"] or "", "check", [], condition=check["sqltext"]))
        primary = inspector.get_pk_constraint(table, schema=schema)
        found.append(Constraint(primary["name"] or "", "primary", primary["constrained_columns"]))
        if self._dialect == "postgresql":  # SQLAlchemy does not reflect them
            names = self._connection.scalars(_POSTGRESQL_EXCLUSIONS, {"table": table, "schema": schema})
            found += [Constraint(name, "exclude", []) for name in names]
        for constraint in found:
            constraint.name, constraint.columns = self._plain(constraint.name), [*map(self._plain, constraint.columns)]
            if constraint.target is not None:
                constraint.target = self._plain(constraint.target[0]), (*map(self._plain, constraint.target[1]),)
            constraint.valid = constraint.name not in invalid
        return {self.normalize_name(constraint.name): constraint for constraint in found if constraint.name}

    def highest_key(self, table: str, schema: str | None) -> int:
        """MariaDB: the highest number in the names that the server gives to foreign keys; 0 where there are none."""
        named = re.compile(rf"{re.escape(table)}_ibfk_(\d+)", re.IGNORECASE)
        found = map(named.fullmatch, self.constraints(table, schema))
        return max((int(one[1]) for one in found if one), default=0)

    def _sqlite_constraints(self, table: str, schema: str | None) -> dict[str, Constraint]:
        """As :meth:`constraints`, by the definition itself: SQLAlchemy finds only some of the ways to write it."""
        from ..dialects.sqlite.table_sql import TableSql

        sql = self.definition(table, schema)
        if sql is None:
            if not self.inspector.has_table(table, schema=schema):
                raise sa.exc.NoSuchTableError(table)
            return {}  # a view
        try:
            definition = TableSql(sql)
        except DbSmartError:  # a virtual table
            return {}
        found = {}
        for constraint in definition.named:
            target = constraint.target
            if target is not None and not target[1] and self.inspector.has_table(target[0], schema=schema):
                key = self.inspector.get_pk_constraint(target[0], schema=schema)["constrained_columns"]
                target = (target[0], tuple(key))
            kind = cast(Kind, constraint.kind)
            known = Constraint(constraint.name, kind, constraint.columns, target=target)
            if kind == "check":
                known.condition = next(iter(definition.checks(constraint.name)), None)
            elif kind == "foreign":
                known.options = self._sqlite_options(table, schema, known)
            found[self.normalize_name(constraint.name)] = known
        return found

    def has_declared(self, kind: str, name: str, schema: str | None, of: str | None = None) -> bool:
        """Whether there is such a view, function or trigger.

        :param of: of a trigger its table, of a function of PostgreSQL the types of its arguments; any where ``None``,
            but for the triggers of PostgreSQL, whose names are those of a table.
        """
        if self._dialect == "sqlite":
            quote = self._connection.dialect.identifier_preparer.quote_identifier
            query = f"SELECT count(*) FROM {quote(schema or 'main')}.sqlite_master WHERE type = ? AND name = ?"
            query += " COLLATE NOCASE AND (? IS NULL OR tbl_name = ? COLLATE NOCASE)"
            of = of if kind == "trigger" else None
            return bool(self._connection.exec_driver_sql(query, (kind, name, of, of)).scalar())
        queries = _POSTGRESQL_DECLARED if self._dialect == "postgresql" else _MARIADB_DECLARED
        names = {"name": name, "schema": schema, **({"of": of} if ":of" in queries[kind].text else {})}
        return bool(self._connection.scalar(queries[kind], names))

    def declared(self, kind: str, name: str, schema: str | None, table: str | None = None) -> str | None:
        """The statement that makes a view, function, trigger or index as it is; ``None`` where that is not known.

        :param table: of a trigger or an index.
        """
        from ..session.sql import without_doubled_percents

        preparer = without_doubled_percents(self._connection.dialect).identifier_preparer
        run = self._connection.exec_driver_sql
        if self._dialect == "sqlite":
            query = f"SELECT sql FROM {preparer.quote_identifier(schema or 'main')}.sqlite_master WHERE type = ? AND "
            found: str | None = run(f"{query}name = ? COLLATE NOCASE", (kind, name)).scalar()
            return found
        if self._dialect == "postgresql":
            names = {"name": name, "schema": schema, "of": table}
            texts = self._connection.scalars(_POSTGRESQL_TEXTS[kind], names).all()
            if len(texts) != 1:
                return None
            place = preparer.format_table(sa.table(name, schema=schema))
            text = f"CREATE VIEW {place} AS\n{texts[0]}" if kind == "view" else str(texts[0])
            return text.strip().rstrip(";").replace("CREATE OR REPLACE ", "CREATE ", 1)
        of = preparer.format_table(sa.table(str(table) if kind == "index" else name, schema=schema))
        shown = run(
            f"SHOW CREATE {'TABLE' if kind == 'index' else kind.upper()} {of}",
            execution_options={"no_parameters": True},
        ).mappings()
        row = dict(shown.one())
        if kind == "index":
            quoted = re.escape(preparer.quote_identifier(name))
            line = re.search(rf"^ *((?:[A-Z]+ )?KEY {quoted} .*?),?$", row["Create Table"], re.MULTILINE)
            return None if line is None else f"ALTER TABLE {of} ADD {line[1]}"
        text = row["SQL Original Statement" if kind == "trigger" else f"Create {kind.title()}"]
        return text or None

    def has_materialized(self, name: str, schema: str | None) -> bool:
        """Whether there is such a view with rows of its own."""
        if self._dialect != "postgresql":
            return False
        return bool(self._connection.scalar(_POSTGRESQL_MATERIALIZED, {"name": name, "schema": schema}))

    def comment(self, table: str, schema: str | None) -> str | None:
        """The comment of a table."""
        return self.inspector.get_table_comment(table, schema=schema)["text"] or None

    def enumeration(self, name: str, schema: str | None) -> list[str] | None:
        """The values of an enumeration that is a type of its own; ``None`` where there is no such type."""
        if not self._facts.named_enumerations:
            return None
        found = self._connection.scalars(_POSTGRESQL_ENUMERATION, {"table": name, "schema": schema}).all()
        return [value for value in found if value is not None] if found else None

    def definition(self, table: str, schema: str | None) -> str | None:
        """SQLite: the text of a table's definition; ``None`` where there is no such table."""
        quote = self._connection.dialect.identifier_preparer.quote_identifier
        query = (
            f"SELECT sql FROM {quote(schema or 'main')}.sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE"
        )
        sql: str | None = self._connection.exec_driver_sql(query, (table,)).scalar()
        return sql

    def _sqlite_options(self, table: str, schema: str | None, key: Constraint) -> dict[str, Any] | None:
        """The actions of a foreign key, if there is one of its columns and target."""
        query = 'SELECT id, "from", "table", on_update, on_delete FROM pragma_foreign_key_list(?, ?) ORDER BY id, seq'
        found: dict[int, tuple[list[str], str, dict[str, Any]]] = {}
        for number, column, target, on_update, on_delete in self._connection.exec_driver_sql(
            query, (table, schema or "main")
        ):
            options = {"onupdate": on_update, "ondelete": on_delete}
            found.setdefault(number, ([], self.normalize_name(target), options))[0].append(self.normalize_name(column))
        mine = [*map(self.normalize_name, key.columns)], self.normalize_name(key.target[0] if key.target else "")
        same = [options for columns, target, options in found.values() if (columns, target) == mine]
        return same[0] if len(same) == 1 else None

    def references(self, table: str, schema: str | None) -> list[Reference]:
        """SQLite: the foreign keys to a table, of others and of its own."""
        quote = self._connection.dialect.identifier_preparer.quote_identifier
        rows = self._connection.exec_driver_sql(
            f'SELECT m.name, f.id, f."from", f.on_delete FROM {quote(schema or "main")}.sqlite_master AS m, '
            "pragma_foreign_key_list(m.name, ?) AS f WHERE m.type = 'table' AND f.\"table\" = ? COLLATE NOCASE "
            "ORDER BY m.name, f.id, f.seq",
            (schema or "main", table),
        )
        found: dict[tuple[str, int], Reference] = {}
        for child, number, column, on_delete in rows:
            found.setdefault((child, number), Reference(child, [], on_delete)).columns.append(column)
        return list(found.values())

    def refers(self, reference: Reference, schema: str | None) -> bool:
        """Whether any row has such a foreign key that is not NULL."""
        query = sa.select(sa.literal(1)).select_from(sa.table(reference.table, schema=schema)).limit(1)
        query = query.where(*(sa.column(column).is_not(None) for column in reference.columns))
        return self._connection.execute(query).first() is not None

    def empty(self, table: str, schema: str | None) -> bool:
        """Whether a table has no rows; one of which policies may hide some counts as having them."""
        query = sa.select(sa.literal(1)).select_from(sa.table(table, schema=schema)).limit(1)
        return self._connection.execute(query).first() is None and not self.hides_rows(table, schema)

    def hides_rows(self, table: str, schema: str | None) -> bool:
        """Whether policies may hide rows of a table from this user."""
        if self._dialect != "postgresql":
            return False
        return bool(self._connection.scalar(_POSTGRESQL_HIDES, {"table": table, "schema": schema}))

    def count(self, table: str, schema: str | None, where: sa.ColumnElement[bool] | None = None) -> int:
        """How many rows of a table meet a condition."""
        query = sa.select(sa.func.count()).select_from(sa.table(table, schema=schema))
        return self._connection.scalar(query if where is None else query.where(where)) or 0

    def stored(self, table: str, schema: str | None) -> str | None:
        """What the database itself calls a table; in a dry run, it may not have it (``None``), or by another name."""
        return table

    def stored_column(self, table: str, column: str, schema: str | None) -> str | None:
        """As :meth:`stored`, of a column."""
        return column

    def dropped(self, table: str, name: str, schema: str | None) -> bool:
        """Whether a dry run has dropped an index or a constraint by now, which the database still has."""
        return False

    def _plain(self, name: str) -> str:
        """A name as it is; in MariaDB's names SQLAlchemy leaves a quote as it is quoted, as two."""
        quote = self._connection.dialect.identifier_preparer.initial_quote
        return name if self._dialect in ("sqlite", "postgresql") else name.replace(quote * 2, quote)

    def _invalid(self, table: str, schema: str | None) -> Sequence[str]:
        """Names of what PostgreSQL has not finished: indexes and constraints."""
        if self._dialect != "postgresql":
            return ()
        return self._connection.scalars(_POSTGRESQL_INVALID, {"table": table, "schema": schema}).all()
