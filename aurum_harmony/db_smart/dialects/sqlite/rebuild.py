"""SQLite: change what its ``ALTER TABLE`` cannot, by building a new table and moving the rows.

The definition is edited in its own text, as SQLite itself does. So what a reflected table would lose stays: collations,
``AUTOINCREMENT``, ``STRICT``, ``WITHOUT ROWID``, generated columns, conflict clauses, comments. The steps are those of
https://www.sqlite.org/lang_altertable.html#otheralter and need SQLite 3.26. The first of them, switching foreign keys
off, works only outside a transaction, so the caller does it: ``_rebuild`` in :mod:`.editor`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any, NamedTuple

import sqlalchemy as sa

from ...errors import DbSmartError
from ...schema.rules import counted
from .table_sql import TableSql, identifiers, normalize_name, sql_text, tokenize


class RowsInTheWay(DbSmartError):
    """Rows of the old table do not fit into the new one.

    :ivar rows: which, and how many, as a sentence.
    """

    def __init__(self, message: str, rows: str) -> None:
        super().__init__(message)
        self.rows = rows


def needs_foreign_keys_off(
    connection: sa.Connection,
    table: str,
    schema: str | None = None,
    change: Callable[[TableSql], None] = lambda definition: None,
) -> bool:
    """Whether foreign keys are enforced and some table, perhaps itself, references this one.

    To drop it is to delete its rows first, with every ``ON DELETE`` there is. ``PRAGMA foreign_keys`` can be switched
    only outside a transaction.

    :param change: what is to become of it, as for :func:`rebuild`: it may come to reference itself.
    :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
    """
    return _Rebuild(connection, table, schema).would_cascade(change)


def rebuild(
    connection: sa.Connection,
    table: str,
    change: Callable[[TableSql], None],
    *,
    schema: str | None = None,
    values: Mapping[str, str] | None = None,
) -> None:
    """Build a new table with a changed definition, and move everything that the old one had.

    Rows keep their rowids, ``AUTOINCREMENT`` its place; indexes, triggers and the planner's statistics are there as
    before, but for an index on nothing than a dropped column. Views, triggers and foreign keys of others go on meaning
    the table. All of it happens in a savepoint: after an error everything is as it was.

    :param change: edits the definition.
    :param values: SQL expressions over the old columns, by the name of a column that is new or gets other content.
    :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
    :raises DbSmartError: rows do not fit; the change breaks a view, a trigger or a foreign key; or
        :func:`needs_foreign_keys_off`, also by a reference of the table to itself that the change adds.
    """
    work = _Rebuild(connection, table, schema)
    try:
        with work.savepoint():
            work.run(change, {normalize_name(name): sql for name, sql in (values or {}).items()})
    except sa.exc.IntegrityError as error:
        raise work.unfit(error) from error
    except sa.exc.DBAPIError as error:
        raise work.failed(str(error.orig).replace(work.new, work.table)) from error


class _Fact(NamedTuple):
    """Something of a table that stays unless a change concerns its columns."""

    kind: str
    columns: tuple[str, ...]
    more: tuple[Any, ...]


class _Stored(NamedTuple):
    """An index, a trigger or a view as the schema has it."""

    schema: str
    kind: str
    name: str
    table: str
    sql: str

    def index_columns(self) -> set[str]:
        """What an index may name as columns, normalized."""
        tokens = tokenize(self.sql) if self.kind == "index" else []
        start = next((index for index, token in enumerate(tokens) if token.text == "("), 0)
        return identifiers(sql_text(tokens[start:]))


class _Rebuild:
    def __init__(self, connection: sa.Connection, table: str, schema: str | None) -> None:
        self._connection = connection
        self._quote = connection.dialect.identifier_preparer.quote_identifier
        self._schema = schema or "main"
        query = f"SELECT name, sql FROM {self._at('sqlite_master')} WHERE type = 'table' AND name = ? COLLATE NOCASE"
        found = self._rows(query, table)
        if not found:
            raise sa.exc.NoSuchTableError(table)
        self.table, self._sql = found[0]
        self.new = f"_db_smart_new_{self.table}"
        self._definition: TableSql | None = None

    def would_cascade(self, change: Callable[[TableSql], None] = lambda definition: None) -> bool:
        """Whether dropping the table would delete or change rows of others, or, changed so, of its own."""
        if not self._rows("PRAGMA foreign_keys")[0][0]:
            return False
        if self._children():
            return True
        definition = TableSql(self._sql)
        change(definition)
        return definition.references(self.table)

    def unfit(self, error: sa.exc.IntegrityError) -> RowsInTheWay:
        """What rows do not fit, and how many, after everything was taken back."""
        cause = str(error.orig)
        rows, count = cause.replace(self.new, self.table), 0
        failure = self.failed(rows)
        what, _, names = cause.partition(" constraint failed: ")
        columns = names.removeprefix(f"{self.new}.").split(f", {self.new}.")
        quoted = [self._quote(column) for column in columns]
        query, verb, text = "", ("", ""), ""
        if what == "UNIQUE":
            filled = " AND ".join(f"{column} IS NOT NULL" for column in quoted)
            query = (
                f"SELECT sum(n) FROM (SELECT count(*) AS n FROM {self._at(self.table)} WHERE {filled} "
                f"GROUP BY {', '.join(quoted)} HAVING count(*) > 1)"
            )
            verb, text = ("repeats", "repeat"), ", ".join(columns)
        elif what == "NOT NULL":
            query = f"SELECT count(*) FROM {self._at(self.table)} WHERE {quoted[0]} IS NULL"
            verb, text = ("has NULL in", "have NULL in"), columns[0]
        elif what == "CHECK" and self._definition is not None:
            checks = self._definition.checks(names)
            query = f"SELECT count(*) FROM {self._at(self.table)} WHERE NOT ({checks[0]})" if checks else ""
            verb, text = ("breaks", "break"), names
        known = {normalize_name(column) for column, _ in self._columns(self.table)}
        if query and (what == "CHECK" or {normalize_name(column) for column in columns} <= known):
            with suppress(sa.exc.DBAPIError):  # it names a column that is new
                count = self._rows(query)[0][0] or 0
        if count:
            rows = f"{counted(count, *verb)} {text}"
        return RowsInTheWay(failure.message, f"{rows}. Nothing was changed. ")

    def failed(self, cause: str, advice: str = "Fix the cause") -> DbSmartError:
        """An error that says what was kept."""
        return DbSmartError(
            f"Cannot rebuild the table {self.table!r}: {cause}. Nothing was changed. {advice} and start again."
        )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """All or nothing. SQLAlchemy's savepoint would leave a transaction open that it began itself."""
        self._rows("SAVEPOINT db_smart_rebuild")
        try:
            yield
        except BaseException:
            with suppress(sa.exc.DBAPIError):  # a full disk has rolled back everything already
                self._rows("ROLLBACK TO db_smart_rebuild")
                self._rows("RELEASE db_smart_rebuild")
            raise
        self._rows("RELEASE db_smart_rebuild")

    def run(self, change: Callable[[TableSql], None], values: Mapping[str, str]) -> None:
        """Do it, in the caller's savepoint."""
        definition = TableSql(self._sql)
        old, new = self._at(self.table), self._at(self.new)
        columns = [column for column, _ in self._columns(self.table)]
        if definition.columns != columns:
            raise self.failed(f"its definition was not understood: {self._sql}", "Report this")
        if self._rows(f"SELECT 1 FROM {self._at('sqlite_master')} WHERE name = ? COLLATE NOCASE", self.new):
            raise self.failed(f"a table {self.new!r} already exists", "Drop it")
        facts, violations, broken = self._facts(), self._violations(), self._broken()
        change(definition)
        self._definition = definition
        dropped = {normalize_name(column) for column in columns} - {
            normalize_name(column) for column in definition.columns
        }
        self._rows(definition.render(new))
        if self.would_cascade():
            raise self.failed(
                "a table references it and PRAGMA foreign_keys is on, so dropping it would delete rows",
                "Switch the pragma off, outside a transaction,",
            )
        with self._pragma("defer_foreign_keys"):  # a row that was in the wrong before must not stop the others
            self._copy(definition, [normalize_name(column) for column in columns], values)
            self._rename_records(self.table, self.new)
            stored = self._stored("index", "trigger")
            self._rows(f"DROP TABLE {old}")
        with self._pragma("legacy_alter_table"):  # or what others say of the missing table would count as an error
            self._rows(f"ALTER TABLE {new} RENAME TO {self._quote(self.table)}")
        self._rename_records(self.new, self.table)
        self._recreate(stored, dropped)
        more = [f"{what} ({why})" for what, why in self._broken(dropped).items() if what not in broken]
        if more:
            raise self.failed(f"it would break {', '.join(more)}", "Drop or change that first")
        wrong = [f"{count} {what}" for what, count in (self._violations() - violations).items()]
        if wrong:
            text = ", ".join(sorted(wrong))
            failure = self.failed(text, "Fix the rows")
            if any("unusable foreign key" in what for what in wrong):
                raise failure
            raise RowsInTheWay(failure.message, f"{text}. Nothing was changed. ")
        touched = {"column": definition.edited | definition.constrained}
        before, after = (
            [fact for fact in found if not touched.get(fact.kind, definition.constrained).intersection(fact.columns)]
            for found in (facts, self._facts())
        )
        if before != after:
            raise self.failed(f"it would have lost {[fact for fact in before if fact not in after]}", "Report this")

    def _copy(self, definition: TableSql, columns: Sequence[str], values: Mapping[str, str]) -> None:
        targets, sources = [], []
        ordinary = [column for column, hidden in self._columns(self.new) if not hidden]
        names = {*columns, *map(normalize_name, definition.columns)}
        rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in names), None)
        if rowid is not None and not definition.without_rowid:
            targets.append(rowid)  # first: a column that is the rowid itself has the last word
            sources.append(rowid)
        for column in ordinary:
            if normalize_name(column) in values or normalize_name(column) in columns:
                targets.append(self._quote(column))
                sources.append(values.get(normalize_name(column), targets[-1]))
        unknown = values.keys() - set(map(normalize_name, ordinary))
        if unknown:
            raise self.failed(f"it has no column {', '.join(sorted(map(repr, unknown)))} that could get values")
        old, new = self._at(self.table), self._at(self.new)
        # OR ABORT, because a conflict clause of the table could drop rows; NOT INDEXED, to keep the order of the rows.
        self._rows(
            f"INSERT OR ABORT INTO {new} ({', '.join(targets)}) SELECT {', '.join(sources)} FROM {old} NOT INDEXED"
        )
        counts = [self._rows(f"SELECT count(*) FROM {table}")[0][0] for table in (old, new)]
        if counts[0] != counts[1]:
            raise self.failed(f"only {counts[1]} of {counts[0]} rows were copied", "Report this")

    def _rename_records(self, table: str, name: str) -> None:
        """What SQLite records of a table and deletes with it: the last AUTOINCREMENT, and statistics."""
        for record, column in (("sqlite_sequence", "name"), ("sqlite_stat1", "tbl"), ("sqlite_stat4", "tbl")):
            if self._rows(f"SELECT 1 FROM {self._at('sqlite_master')} WHERE name = ?", record):
                if self._rows(f"SELECT 1 FROM {self._at(record)} WHERE {column} = ?", table):
                    self._rows(f"DELETE FROM {self._at(record)} WHERE {column} = ?", name)
                self._rows(f"UPDATE {self._at(record)} SET {column} = ? WHERE {column} = ?", name, table)

    def _stored(self, *kinds: str) -> list[_Stored]:
        """Indexes, triggers or views of this schema and the temporary one that were created as such."""
        return [
            _Stored(schema, *row)
            for schema in dict.fromkeys((self._schema, "temp"))
            for row in self._rows(
                f"SELECT type, name, tbl_name, sql FROM {self._at('sqlite_master', schema)} "
                f"WHERE type IN ({', '.join('?' * len(kinds))}) AND sql IS NOT NULL ORDER BY rowid",
                *kinds,
            )
        ]

    def _recreate(self, stored: Iterable[_Stored], dropped: set[str]) -> None:
        """Make what went with the old table, but no index on nothing than dropped columns."""
        left = set(self._stored("index", "trigger"))
        for item in stored:
            if item in left:
                continue
            used = item.index_columns() & {
                *dropped,
                *(normalize_name(column) for column, _ in self._columns(self.table)),
            }
            if used & dropped:
                if used <= dropped:
                    continue
                raise self.failed(f"the index {item.name!r} also covers a dropped column", "Drop that index first")
            # SQLite stores them from the same first words always, and without the schema.
            start = re.match(r"CREATE (UNIQUE INDEX|INDEX|TRIGGER) ", item.sql)
            if start is None:
                raise self.failed(f"the definition of {item.name!r} was not understood: {item.sql}", "Report this")
            self._rows(f"{start[0]}{self._quote(item.schema)}.{item.sql[start.end() :]}")

    def _broken(self, dropped: Set[str] = frozenset()) -> dict[str, str]:
        """Views that cannot be read, and tables and views whose triggers do not compile, with the reason."""
        probes, found = {}, {}
        for item in self._stored("view", "trigger"):
            # SQLite takes "x" for a string where there is no column x, and says nothing.
            quoted = {normalize_name(token.name) for token in tokenize(item.sql) if token.text.startswith('"')}
            if quoted & dropped and normalize_name(self.table) in identifiers(item.sql):
                found[f"the {item.kind} {item.name!r}"] = f"it names {min(quoted & dropped)!r}"
            if item.kind == "view":
                probes[f"the view {item.name!r}"] = f"SELECT * FROM {self._at(item.name, item.schema)}"
            else:
                probes |= {f"a trigger on {item.table!r} for {sql[:6]}": sql for sql in self._writes(item)}
        for what, statement in probes.items():
            try:
                self._rows(f"EXPLAIN {statement}")
            except sa.exc.DBAPIError as error:
                found[what] = str(error.orig)
        return found

    def _writes(self, trigger: _Stored) -> list[str]:
        """Statements that compile every trigger of the table or view."""
        table = self._at(trigger.table, trigger.schema)
        try:
            columns = [
                self._quote(column) for column, hidden in self._columns(trigger.table, trigger.schema) if not hidden
            ]
        except sa.exc.DBAPIError:  # a view that is broken
            columns = ["rowid"]
        update = ", ".join(f"{column} = {column}" for column in columns)
        return [f"INSERT INTO {table} DEFAULT VALUES", f"UPDATE {table} SET {update}", f"DELETE FROM {table}"]

    def _children(self) -> list[str]:
        """Names of the tables that reference this one."""
        query = (
            f"SELECT DISTINCT m.name FROM {self._at('sqlite_master')} AS m, pragma_foreign_key_list(m.name, ?) AS f "
            "WHERE m.type = 'table' AND f.\"table\" = ? COLLATE NOCASE"
        )
        return [name for (name,) in self._rows(query, self._schema, self.table)]

    def _violations(self) -> Counter[str]:
        """Rows that violate a foreign key of this table or to it, by what they violate."""
        found: Counter[str] = Counter()
        for child in {self.table, *self._children()}:
            keys = {
                number: f"FOREIGN KEY ({', '.join(own)}) REFERENCES {parent}"
                for number, own, parent, _ in self._foreign_keys(child)
            }
            try:
                rows = self._rows(
                    "SELECT fkid, count(*) FROM pragma_foreign_key_check(?, ?) GROUP BY fkid", child, self._schema
                )
            except sa.exc.DBAPIError as error:  # what is referenced is not unique
                found[f"unusable foreign key: {error.orig}"] += 1
            else:
                for number, count in rows:
                    found[f"row(s) of {child!r} violate {keys[number]}"] += count
        return found

    def _foreign_keys(self, table: str) -> list[tuple[int, tuple[str, ...], str, tuple[Any, ...]]]:
        """Number, columns, parent, and all else of each foreign key."""
        rows = self._rows("SELECT * FROM pragma_foreign_key_list(?, ?) ORDER BY id, seq", table, self._schema)
        return [
            (number, tuple(row[3] for row in group), group[0][2], tuple(tuple(row[3:]) for row in group))
            for number, group in ((number, list(group)) for number, group in groupby(rows, lambda row: row[0]))
        ]

    def _facts(self) -> list[_Fact]:
        columns = [
            _Fact("column", (normalize_name(row[1]),), tuple(row[1:]))
            for row in self._rows("SELECT * FROM pragma_table_xinfo(?, ?) ORDER BY cid", self.table, self._schema)
        ]
        others = [
            _Fact("foreign key", tuple(map(normalize_name, own)), (parent, *more))
            for _, own, parent, more in self._foreign_keys(self.table)
        ]
        stored = {item.name: item for item in self._stored("index")}
        for name, *more in self._rows(
            'SELECT name, "unique", origin, partial FROM pragma_index_list(?, ?)', self.table, self._schema
        ):
            parts = self._rows(
                'SELECT name, "desc", coll FROM pragma_index_xinfo(?, ?) WHERE key ORDER BY seqno', name, self._schema
            )
            used = {normalize_name(part[0]) for part in parts if part[0] is not None}
            if name in stored:
                used |= stored[name].index_columns()
                more.append(name)
            others.append(_Fact("index", tuple(sorted(used)), (*more, *map(tuple, parts))))
        return columns + sorted(others, key=repr)

    def _columns(self, table: str, schema: str | None = None) -> list[tuple[str, int]]:
        """Name of each column, and whether it is a generated one."""
        query = "SELECT name, hidden FROM pragma_table_xinfo(?, ?) ORDER BY cid"
        return [(name, hidden) for name, hidden in self._rows(query, table, schema or self._schema)]

    def _at(self, name: str, schema: str | None = None) -> str:
        return f"{self._quote(schema or self._schema)}.{self._quote(name)}"

    def _rows(self, sql: str, *parameters: Any) -> Sequence[Any]:
        result = self._connection.exec_driver_sql(sql, parameters or None)
        return result.all() if result.returns_rows else []

    @contextmanager
    def _pragma(self, name: str) -> Iterator[None]:
        """Switch a pragma on for a while."""
        former = self._rows(f"PRAGMA {name}")[0][0]
        self._rows(f"PRAGMA {name} = ON")
        try:
            yield
        finally:
            self._rows(f"PRAGMA {name} = {former}")
