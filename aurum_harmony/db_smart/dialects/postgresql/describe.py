"""What a PostgreSQL database has, described to be compared; see :mod:`~aurum_harmony.db_smart.schema.described`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.named_types import NamedType
from sqlalchemy.schema import ExecutableDDLElement

from ...errors import DbSmartError
from ...schema.described import Description, Part, TableDescription, Thing, Wanted
from ...schema.scratch import NoScratch, Scratch
from ...session.controls import controls_transaction, split, without_comments
from ...store.database import Database, begin, translated
from .copying import copy_statements
from .described_rows import Places, Rows, places_of, read, sequence_options, set_path
from .expressions import alike, constant, parenthesized
from .facts import FACTS, sqlstate

_ACTIONS = {"r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
_OWN_SEQUENCE = re.compile(r"nextval\('(?:[^']|'')*'::regclass\)")
_DELETE_COLUMNS = re.compile(r" ON DELETE (SET (?:NULL|DEFAULT) \([^)]*\))")
#: Parameters by which a table is looked after, and not what it is.
_UPKEEP = ("autovacuum_", "toast.")
_CONCURRENTLY = re.compile(r"\bCONCURRENTLY\b", re.IGNORECASE)
#: What is made again without a savepoint: a value of an enumeration that was made or changed in one cannot be used.
_TYPE = re.compile(r"(?:CREATE|ALTER)\s+TYPE\b", re.IGNORECASE)
#: What is of the session alone, and would lead the statements after it elsewhere; and what would outlive a rollback.
_NOT_PLAYED = re.compile(
    r"(?:SET\s+(?:LOCAL\s+|SESSION\s+)?(?:search_path|SCHEMA|ROLE|SESSION)\b|RESET\b|DISCARD\b|PREPARE\s+TRANSACTION\b"
    r"|LOCK\b|SELECT\s+(?:pg_catalog\.)?set_config\b)",
    re.IGNORECASE,
)
#: Changes rows, of which a copy has none, and may take the numbers of sequences for them.
_ROWS = re.compile(r"(?:INSERT|UPDATE|DELETE|MERGE|COPY)\b", re.IGNORECASE)
#: Changes something only by functions that it calls.
_QUERY = re.compile(r"(?:\(|SELECT|VALUES|WITH|EXPLAIN|PREPARE|EXECUTE|DECLARE)(?![\w$])", re.IGNORECASE)
_CALLED = re.compile(r'"((?:[^"]|"")+)"\s*\(|([\w$]+)\s*\(')
_OWN_FUNCTION = sa.text(
    "SELECT 1 FROM pg_proc WHERE CAST(proname AS text) IN :names AND pronamespace <> "
    "(SELECT oid FROM pg_namespace WHERE nspname = 'pg_catalog') LIMIT 1"
).bindparams(sa.bindparam("names", expanding=True, type_=sa.Text()))
#: What a rollback does not take back, or what reaches another session or server.
_BEYOND = re.compile(
    r"\b(?:nextval|setval|dblink\w*|pg_(?:try_)?advisory_(?:un)?lock\w*|pg_(?:terminate|cancel)_backend|pg_reload_conf"
    r"|pg_(?:create|drop|copy)_\w*slot|pg_logical_emit_message|pg_notify|lo_export|COPY)\b",
    re.IGNORECASE,
)
#: What has other statements in it, as strings, and what does at once what a query says.
_CODE = re.compile(r"(?:DO|CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE))\b", re.IGNORECASE)
_AT_ONCE = re.compile(
    r"(?:DO|CALL)\b|CREATE\s+(?:(?:GLOBAL|LOCAL|TEMP|TEMPORARY|UNLOGGED)\s+)*(?:TABLE|MATERIALIZED)\b.*"
    r"\b(?:SELECT|EXECUTE|VALUES)\b",
    re.IGNORECASE | re.DOTALL,
)
#: What is in a schema, or is of the session: all that may be committed in a copy that is kept.
_IN_SCHEMA = re.compile(
    r"(?:(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE|SET|SELECT|VALUES|WITH|EXPLAIN|ANALYZE|REINDEX|CLUSTER|REFRESH|DO|CALL)\b"
    r"|COMMENT\s+ON\s+(?:TABLE|COLUMN|INDEX|CONSTRAINT|VIEW|MATERIALIZED|SEQUENCE|TYPE|DOMAIN|FUNCTION|TRIGGER)\b"
    r"|(?:CREATE|ALTER|DROP)\s+(?:(?:OR\s+REPLACE|GLOBAL|LOCAL|TEMP|TEMPORARY|UNLOGGED|UNIQUE|RECURSIVE|CONSTRAINT)\s+)*"
    r"(?:TABLE|INDEX|VIEW|MATERIALIZED|SEQUENCE|TYPE|DOMAIN|TRIGGER|FUNCTION|PROCEDURE|STATISTICS|POLICY)\b)",
    re.IGNORECASE,
)
#: What code does by SQL that is not :data:`_IN_SCHEMA`, and so may be of the whole database or server.
_DOES = re.compile(
    r"\b(?:CREATE|ALTER|DROP|GRANT|REVOKE|REASSIGN|IMPORT|SECURITY|COMMENT|CALL|EXECUTE|LOAD|CHECKPOINT|VACUUM|NOTIFY)\b",
    re.IGNORECASE,
)
#: What locks the tables that it names as for a change.
_LOCKS = re.compile(
    r"(?:ALTER|DROP|TRUNCATE|REINDEX|CLUSTER|REFRESH|CREATE\s+(?:(?:OR\s+REPLACE|UNIQUE|CONSTRAINT)\s+)?(?:INDEX|TRIGGER))\b",
    re.IGNORECASE,
)
_QUALIFIED = re.compile(r"""("(?:[^"]|"")+"|(?<![\w$.])[\w$]+)\s*\.\s*("(?:[^"]|"")+"|[\w$]+)""")
#: Tables and what else has rows, by names with their schemas.
_RELATIONS = sa.text(
    "SELECT CAST(CAST(c.oid AS regclass) AS text) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname || '.' || c.relname IN :names AND CAST(n.nspname AS text) NOT IN :places LIMIT 1"
).bindparams(*(sa.bindparam(name, expanding=True, type_=sa.Text()) for name in ("names", "places")))
#: What takes the name of a table or a sequence as a string.
_OF_NAMES = re.compile(r"\b(?:nextval|setval|currval|to_regclass|pg_get_serial_sequence|CAST)\s*\(\s*\Z", re.IGNORECASE)
#: How long a statement of the models, and one of a migration, may wait for a lock, and how long the latter may take,
#: milliseconds: none needs a lock of others, unless it means the database itself, and there are no rows.
_PATIENCE, _PLAYED_PATIENCE, _DURATION = 1_000, 100, 10_000
#: By what the server says that its table of locks is full.
_OUT_OF_MEMORY = "53200"
#: A table outside of the place that this transaction has changed, or has locked as for a change.
_OUTSIDE = sa.text(
    "SELECT CAST(CAST(c.oid AS regclass) AS text) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation "
    "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' "
    "AND l.mode <> 'AccessShareLock' AND CAST(n.nspname AS text) NOT IN :places "
    "AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema') AND l.database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1 LIMIT 1"
).bindparams(sa.bindparam("places", expanding=True, type_=sa.Text()))


_OF_OTHERS = "it changes {} of the database itself, and not of the copy on which it is tried"
_STAYS = "it may change more than the copy, which would stay"

#: Scratch schemas that are committed, and the lock of the name of one, which the session has that made it.
_LEFT = sa.text(r"SELECT CAST(nspname AS text) FROM pg_namespace WHERE nspname LIKE 'db\_smart\_scratch\_%'")
_HOLD = sa.text("SELECT pg_try_advisory_lock(hashtext(:name))")
_FREE = sa.text("SELECT pg_advisory_unlock(hashtext(:name))")


def describe(connection: sa.Connection, schemas: Collection[str | None], wanted: Wanted) -> Description:
    """Describe the tables of a database; views, partitions, foreign tables and those of extensions are left out.

    It only reads. Where a migration is changing a table, it waits for the end of that.

    :param schemas: where to look, ``None`` for the usual place.
    """
    with _reading(connection):
        places = _visible(connection, schemas)
        return _described(read(connection, places.all), places.schema_of, wanted, str)


def _visible(connection: sa.Connection, schemas: Collection[str | None]) -> Places:
    """Where schemas are, of which the usual one is where the server looks first."""
    places = places_of(connection, schemas)
    if translated(connection, None) is not None:
        set_path(connection, places.path)
    return places


@contextmanager
def _reading(connection: sa.Connection) -> Iterator[None]:
    """A transaction that only reads, where none is open."""
    if connection.in_transaction():
        yield
        return
    begin(connection)
    try:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        yield
    finally:
        connection.rollback()


class PostgresqlScratch(Scratch):
    """Schemas with a name of their own, made in a transaction that is rolled back."""

    def __init__(self, database: Database, connection: sa.Connection, schemas: Collection[str | None]) -> None:
        super().__init__(database, connection, schemas)
        self._places = places_of(connection, schemas)
        token = uuid.uuid4().hex[:12]
        self._scratch = {schema: f"db_smart_scratch_{token}_{n}" for n, schema in enumerate(self._places.of)}
        #: What is called otherwise here, by its name on the server.
        self._moved = {place: self._scratch[schema] for schema, places in self._places.of.items() for place in places}
        #: Whether each statement is committed, and those that change rows are tried too.
        self._is_kept = False
        self._pattern = re.compile(rf"\bdb_smart_scratch_{token}_(\d+)\.")

    @classmethod
    @contextmanager
    def open(cls, database: Database, schemas: Collection[str | None]) -> Iterator[PostgresqlScratch]:
        """See :meth:`~.schema.scratch.Scratch.open`."""
        with database.connect() as connection:
            begin(connection)
            sa.event.listen(connection, "commit", _refuse)
            try:
                scratch = cls(database, connection, schemas)
                scratch._create()
                yield scratch
            finally:
                connection.rollback()

    @classmethod
    @contextmanager
    def kept(
        cls, database: Database, source: sa.Connection, schemas: Collection[str | None]
    ) -> Iterator[PostgresqlScratch]:
        """A copy of a database that is committed, so that each statement can have a transaction of its own.

        It is dropped afterwards. What a run that was killed has left is dropped before; its session, which is gone,
        held a lock of each name.

        :param source: leads to the database.
        :raises NoScratch: the role may not.
        """
        with database.connect() as connection:
            for name in connection.scalars(_LEFT).all():
                if connection.scalar(_HOLD, {"name": name}):
                    with suppress(sa.exc.DBAPIError):  # of another role, or the server only reads
                        _drop(connection, [name])
            connection.rollback()
            begin(connection)
            scratch = cls(database, connection, schemas)
            scratch._is_kept = True
            for name in scratch.names:
                connection.scalar(_HOLD, {"name": name})
            scratch._create()
            scratch.copy(source)
            try:
                connection.commit()
                yield scratch
            finally:
                connection.rollback()
                _drop(connection, scratch.names)

    @property
    def names(self) -> list[str]:
        """The schemas that it is made of."""
        return [*self._scratch.values()]

    def enter(self) -> None:
        """Begin another transaction in it."""
        begin(self.connection)
        self._set_path()
        self._exec(f"SET LOCAL statement_timeout = {_DURATION}; SET LOCAL lock_timeout = {_PLAYED_PATIENCE}")

    def _create(self) -> None:
        try:
            for name in self._scratch.values():
                self.connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            reads = self.database.facts.says(error, "read only")
            fix = "Ask the one that is written to" if reads else "Give the role the right CREATE on the database"
            raise NoScratch(
                f"No schema can be made in the database {self.database.name!r} ({self.database.url}), to be rolled "
                f"back: {self.database.cause(error)}. {fix}."
            ) from error
        self.connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_PATIENCE}")
        self._set_path()
        # What names no schema goes where the search path begins, also by SQL of listeners and migrations.
        there = {schema: translated(self.connection, schema) for schema in self.schemas if schema is not None}
        names = {schema: self._moved.get(str(place), self._scratch[None]) for schema, place in there.items()}
        # What is compiled for that map is of no use to connections whose map is another.
        self.connection.execution_options(schema_translate_map=names, compiled_cache=None)

    def _set_path(self) -> None:
        """Let each schema be found here where its namesake is in the search path; extensions are in those."""
        path = [self._scratch[None]]
        for place in self._places.path:
            path += [name for name in (self._moved.get(place), place) if name is not None and name not in path]
        set_path(self.connection, path)

    def make(self, metadata: sa.MetaData) -> None:
        """See :meth:`~.schema.scratch.Scratch.make`.

        :raises NoScratch: the server cannot have so many tables locked in one transaction.
        """

        def make_types(*_: object, **__: object) -> None:
            for kind in _not_created(metadata, self.connection.dialect):
                # One of the listeners before this may have made it.
                with suppress(sa.exc.ProgrammingError), self._attempt():
                    kind.create(self.connection, checkfirst=False)

        sa.event.listen(metadata, "before_create", make_types)
        try:
            with self._listeners_inside():
                metadata.create_all(self.connection, checkfirst=False)
        except sa.exc.DBAPIError as error:
            if sqlstate(error) != _OUT_OF_MEMORY:
                raise
            raise NoScratch(
                f"All tables of the models cannot be made in one transaction of the database {self.database.name!r} "
                f"({self.database.url}): {self.database.cause(error)}. Raise max_locks_per_transaction of the server."
            ) from error
        finally:
            sa.event.remove(metadata, "before_create", make_types)

    @contextmanager
    def _listeners_inside(self) -> Iterator[None]:
        """Keep in this place what listeners of the models send, whose names SQLAlchemy does not translate.

        :raises DbSmartError: one of them changes something outside.
        """

        def is_theirs(context: Any) -> bool:
            made: Any = getattr(getattr(context, "compiled", None), "statement", None)
            return made is not _OUTSIDE and (isinstance(made, sa.DDL) or not isinstance(made, ExecutableDDLElement))

        def before(_: Any, __: Any, statement: str, parameters: Any, context: Any, ___: bool) -> tuple[str, Any]:
            return self._elsewhere(statement) if is_theirs(context) else statement, parameters

        def after(_: Any, __: Any, ___: str, ____: Any, context: Any, _____: bool) -> None:
            if is_theirs(context):
                self._stay_inside()

        sa.event.listen(self.connection, "before_cursor_execute", before, retval=True)
        sa.event.listen(self.connection, "after_cursor_execute", after)
        try:
            yield
        finally:
            sa.event.remove(self.connection, "before_cursor_execute", before)
            sa.event.remove(self.connection, "after_cursor_execute", after)

    def copy(self, source: sa.Connection) -> None:
        """See :meth:`~.schema.scratch.Scratch.copy`."""
        try:
            with _reading(source):
                source.exec_driver_sql(f"SET LOCAL lock_timeout = {_PATIENCE}")
                _visible(source, self.schemas)
                enumerations, *groups = copy_statements(source, self._places.all, self._elsewhere)
            for statement in enumerations[0]:  # see _TYPE
                self._exec(statement)
            for statements, needed in groups:
                self._send(statements, needed)
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise DbSmartError(
                f"its changes cannot be tried, because the schema of the database {self.database.name!r} cannot be "
                f"copied: {self.database.cause(error)}"
            ) from error
        self._exec(f"SET LOCAL statement_timeout = {_DURATION}; SET LOCAL lock_timeout = {_PLAYED_PATIENCE}")

    def run(self, statement: str) -> None:
        """See :meth:`~.schema.scratch.Scratch.run`. An index is built plainly, in the transaction."""
        for one in split(statement, "postgresql"):
            sql = self._elsewhere(_unquoted(one, lambda text: _CONCURRENTLY.sub("", text)))
            if FACTS.runs_alone(sql) or _NOT_PLAYED.match(without_comments(sql)):
                continue
            if controls_transaction(sql, "postgresql"):
                if without_comments(sql).upper().startswith("CREATE"):
                    raise DbSmartError("it ends the transaction behind another statement of the same string")
                continue
            if self._is_of_rows(sql):
                continue
            apart = _TYPE.match(without_comments(sql)) is not None
            self._keep_off(sql)
            with self._attempt(keep=not apart):
                self._exec(sql)
                self._stay_inside()
            if apart:
                self._exec(sql)
            self._set_path()  # which it may have set elsewhere

    def _is_of_rows(self, sql: str) -> bool:
        """Whether a statement changes rows alone, or nothing.

        :raises DbSmartError: it may change what a rollback does not take back.
        """
        head = without_comments(sql)
        if not self._is_kept and _ROWS.match(head):
            return True
        is_query = _QUERY.match(head) is not None
        if is_query and not self._calls_own(head):
            return True
        at_once = is_query or _ROWS.match(head) or _AT_ONCE.match(head)
        # Nobody reads what a function does that is called.
        if self._is_kept and (
            not all(_IN_SCHEMA.match(head, found.start()) for found in _DOES.finditer(head))
            if head[:2].upper() == "DO"
            else not _IN_SCHEMA.match(head)
        ):
            raise DbSmartError(_STAYS)
        if self._is_kept and at_once and (head[:4].upper() == "CALL" or self._calls_own(head)):
            raise DbSmartError(_STAYS)
        beyond = _BEYOND.search(head) if at_once else None
        if beyond is not None:
            raise DbSmartError(f"it uses {beyond[0]}, which cannot be tried without doing it")
        return False

    def _calls_own(self, sql: str) -> bool:
        """Whether it calls functions other than those of PostgreSQL."""
        names = {quoted.replace('""', '"') or word.lower() for quoted, word in _CALLED.findall(sql)}
        return bool(names) and self.connection.scalar(_OWN_FUNCTION, {"names": sorted(names)}) is not None

    def _keep_off(self, sql: str) -> None:
        """Refuse what would lock a table outside before it does: it might have to wait for that, and others with it.

        :raises DbSmartError: the statement names one.
        """
        if not _LOCKS.match(without_comments(sql)):
            return
        names: set[str] = set()

        def note(text: str) -> str:
            names.update(".".join(map(_folded, found)) for found in _QUALIFIED.findall(text))
            return text

        _unquoted(sql, note)
        places = [*self._scratch.values(), "pg_catalog", "information_schema"]
        found = self.connection.scalar(_RELATIONS, {"names": sorted(names), "places": places}) if names else None
        if found is not None:
            raise DbSmartError(_OF_OTHERS.format(found))

    def describe(self, wanted: Wanted) -> Description:
        """See :meth:`~.schema.scratch.Scratch.describe`."""
        self._set_path()
        schemas = {name: schema for schema, name in self._scratch.items()}
        return _described(read(self.connection, [*schemas]), schemas.__getitem__, wanted, self._spelled)

    def _spelled(self, text: str) -> str:
        """What the server says, with the names that it would use without this place."""
        quote = self.connection.dialect.identifier_preparer.quote
        names = [self._places.current, *(places[0] for schema, places in self._places.of.items() if schema is not None)]

        def name(found: re.Match[str]) -> str:
            real = names[int(found[1])]
            return "" if real is None else f"{quote(real)}."

        return self._pattern.sub(name, text)

    def _elsewhere(self, sql: str) -> str:
        """SQL that means this place where it names one of the database's schemas."""
        is_code = _CODE.match(without_comments(sql)) is not None
        for place, name in self._moved.items():
            quoted = re.escape(place.replace('"', '""'))
            plain = rf"(?i:{re.escape(place)})|" if place == place.lower() else ""
            pattern = re.compile(rf'(?<![\w$".])(?:{plain}"{quoted}")\s*\.(?=\s*["\w])')

            def change(text: str, pattern: re.Pattern[str] = pattern, name: str = name) -> str:
                return pattern.sub(f"{name}.", text)

            sql = change(sql) if is_code else _unquoted(sql, change, regclass=True)
        return sql

    def _send(self, statements: list[str], needed: bool) -> None:
        """Send statements all at once; where one fails, each by itself, again while others get through.

        :param needed: whether one that fails for good is an error.
        """
        if not statements:
            return
        try:
            with self._attempt():
                self._exec(";\n".join(statements))
            return
        except sa.exc.DBAPIError:
            pass
        while statements:
            failed = []
            for statement in statements:
                try:
                    with self._attempt():
                        self._exec(statement)
                except sa.exc.DBAPIError as error:
                    failed.append((statement, error))
            if len(failed) == len(statements):
                if needed:
                    raise failed[0][1]
                return
            statements = [statement for statement, _ in failed]

    def _stay_inside(self) -> None:
        """Refuse what changes something outside; going back to a savepoint gives its locks free at once.

        :raises DbSmartError: the last statement does.
        """
        found = self.connection.scalar(_OUTSIDE, {"places": [*self._scratch.values()]})
        if found is not None:
            raise DbSmartError(_OF_OTHERS.format(found))

    @contextmanager
    def _attempt(self, *, keep: bool = True) -> Iterator[None]:
        """A savepoint of which nothing is left; SQLAlchemy leaves one open that it has gone back to."""
        self._exec("SAVEPOINT db_smart_attempt")
        try:
            yield
        except (sa.exc.DBAPIError, DbSmartError) as error:
            if not getattr(error, "connection_invalidated", False):
                self._exec("ROLLBACK TO db_smart_attempt; RELEASE db_smart_attempt")
            raise
        self._exec("RELEASE db_smart_attempt" if keep else "ROLLBACK TO db_smart_attempt; RELEASE db_smart_attempt")

    def _exec(self, sql: str) -> None:
        self.connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def _drop(connection: sa.Connection, names: Collection[str]) -> None:
    """Drop schemas that were committed, and free their locks."""
    try:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        for name in names:
            connection.exec_driver_sql(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
        connection.commit()
    finally:
        connection.rollback()
        for name in names:
            connection.scalar(_FREE, {"name": name})
        connection.commit()


def _folded(name: str) -> str:
    """A name as the catalogue has it."""
    return name[1:-1].replace('""', '"') if name[0] == '"' else name.lower()


def _not_created(metadata: sa.MetaData, dialect: sa.Dialect) -> list[Any]:
    """The types of the models that ``create_all`` leaves to others (``create_type=False``), each once."""
    found: dict[tuple[str | None, str], Any] = {}
    for table in metadata.tables.values():
        for column in table.columns:
            kind: Any = column.type
            while isinstance(kind, (sa.types.TypeDecorator, sa.ARRAY)):
                kind = kind.item_type if isinstance(kind, sa.ARRAY) else kind.load_dialect_impl(dialect)
            kind = kind.dialect_impl(dialect)
            if isinstance(kind, NamedType) and not getattr(kind, "create_type", True):
                found.setdefault((kind.schema, kind.name), kind)  # type: ignore[attr-defined]
    return [*found.values()]


def _refuse(_: sa.Connection) -> None:
    raise DbSmartError("What is made to compare the models with a database is rolled back; it cannot be committed.")


def _unquoted(sql: str, change: Callable[[str], str], *, regclass: bool = False) -> str:
    """SQL with a change outside of strings and comments, though not of quoted names.

    :param regclass: whether to change the names of tables in strings, too.
    """
    pieces, start = [], 0
    for token in re.finditer(FACTS.quoted, sql, re.DOTALL):
        if token[0].startswith('"'):
            continue
        before, names = sql[start : token.start()], regclass and token[0].startswith("'")
        pieces.append(change(before))
        if names and (sql.startswith("::regclass", token.end()) or _OF_NAMES.search(before)):
            pieces.append(f"'{change(token[0][1:-1])}'")
        else:
            pieces.append(token[0])
        start = token.end()
    return "".join([*pieces, change(sql[start:])])


def _described(
    rows: Rows, schema_of: Callable[[str], str | None], wanted: Wanted, spelled: Callable[[str], str]
) -> Description:
    """A description of what the catalogue says.

    :param spelled: what a text of the server is to be.
    """
    found = Description()
    server_text, spelled = spelled, lambda text: alike(server_text(text))
    for table in rows.tables:
        schema = schema_of(table.place)
        if (schema, table.name) in found.tables or not wanted(schema, table.name):
            continue
        if table.kind not in "rp" or table.is_partition or table.of_extension:
            found.others.add((schema, table.name))
            continue
        described = TableDescription(table.name, schema, facets=_table_facets(table, spelled))
        columns = rows.columns.get(table.number, [])
        for column in columns:
            facets = _column(column, rows.owned.get((column.owner, column.position)), spelled)
            described.columns[FACTS.normalize_name(column.name)] = Part("column", column.name, facets)
        for constraint in rows.constraints.get(table.number, []):
            described.parts.append(_constraint(constraint, spelled))
        quoted = {str(column.position): (column.name, column.quoted) for column in columns}
        for index in rows.indexes.get(table.number, []):
            described.parts.append(_index(index, quoted, spelled))
        found.tables[schema, FACTS.normalize_name(table.name)] = described
    for thing in _things(rows, schema_of, spelled):
        if wanted(thing.schema, thing.name):
            found.things.setdefault((thing.kind, thing.schema, FACTS.normalize_name(thing.name)), thing)
    return found


def _table_facets(row: Any, spelled: Callable[[str], str]) -> dict[str, Any]:
    options = sorted(option for option in row.options or () if not option.startswith(_UPKEEP))
    return {
        "comment": row.comment,
        "unlogged": row.unlogged,
        "method": None if row.method == "heap" else row.method,
        "with": ", ".join(options) or None,
        "partitioned by": None if row.partitioned is None else spelled(row.partitioned),
        "inherits": tuple(map(spelled, row.parents)) or None,
    }


def _column(row: Any, sequence: Any, spelled: Callable[[str], str]) -> dict[str, Any]:
    expression = None if row.expression is None else spelled(row.expression)
    default = None if row.generated or expression is None else constant(expression, row.type)
    identity = None
    if row.identity:
        more = [] if sequence is None else sequence_options(sequence)
        identity = " ".join(["ALWAYS" if row.identity == "a" else "BY DEFAULT", *more])
    elif sequence is not None and _OWN_SEQUENCE.fullmatch(row.expression or ""):
        # Its name is that of the table when it was made.
        default = " ".join(["the next value of its own sequence", *(sequence.increment != 1) * _steps(sequence)])
    return {
        "type": spelled(row.type),
        "nullable": not row.not_null,
        "default": default,
        "collation": None if row.collation is None else spelled(row.collation),
        "computed": f"{expression} {'STORED' if row.generated == 's' else 'VIRTUAL'}" if row.generated else None,
        "identity": identity,
        "comment": row.comment,
    }


def _steps(sequence: Any) -> list[str]:
    return [f"INCREMENT BY {sequence.increment}"]


def _constraint(row: Any, spelled: Callable[[str], str]) -> Part:
    columns = tuple(map(FACTS.normalize_name, row.columns))
    definition = spelled(row.definition)
    deferrable = None
    if row.deferrable:
        deferrable = "initially deferred" if row.deferred else "initially immediate"
    facets: dict[str, Any]
    if row.kind in "pu":
        _, rest = parenthesized(definition)
        facets = {
            "columns": columns,
            "include": parenthesized(rest)[0] if rest.startswith(" INCLUDE ") else None,
            "nulls not distinct": " NULLS NOT DISTINCT (" in definition,
            "without overlaps": " WITHOUT OVERLAPS)" in definition,
        }
        kind = "primary key" if row.kind == "p" else "unique"
    elif row.kind == "f":
        kind = "foreign key"
        only = _DELETE_COLUMNS.search(definition)
        facets = {
            "columns": columns,
            "target": spelled(row.target),
            "target columns": tuple(map(FACTS.normalize_name, row.target_columns)),
            "on update": _ACTIONS.get(row.on_update),
            "on delete": only[1] if only else _ACTIONS.get(row.on_delete),
            "match": "FULL" if row.match == "f" else None,
            "not enforced": definition.endswith(" NOT ENFORCED"),
        }
    elif row.kind == "c":
        kind = "check"
        text = definition.removeprefix("CHECK ").removesuffix(" NOT VALID").removesuffix(" NOT ENFORCED")
        inner, rest = parenthesized(text)
        facets = {"condition": inner + rest, "not enforced": definition.endswith(" NOT ENFORCED")}
    else:
        kind = "exclusion"
        facets = {"definition": definition.partition(" DEFERRABLE")[0] if row.deferrable else definition}
    facets |= {
        "deferrable": deferrable,
        "not valid": not row.valid and not facets.get("not enforced"),
        "comment": row.comment,
    }
    return Part(kind, row.name, facets)  # type: ignore[arg-type]


def _index(row: Any, names: Mapping[str, tuple[str, str]], spelled: Callable[[str], str]) -> Part:
    text = spelled(row.definition)
    body, rest = parenthesized(text[text.index(f" USING {row.method} (") :])
    include = None
    if rest.startswith(" INCLUDE "):
        include, rest = parenthesized(rest)
    head, _, where = rest.partition(" WHERE ")
    options = head.partition(" WITH ")[2]
    keys = [names.get(key) for key in str(row.keys).split()[: row.key_count]]
    plain = body == ", ".join("" if key is None else key[1] for key in keys)
    return Part(
        "index",
        row.name,
        {
            "columns": tuple(FACTS.normalize_name(key[0]) for key in keys if key) if plain else body,
            "unique": row.is_unique,
            "method": None if row.method == "btree" else row.method,
            "include": include,
            "nulls not distinct": " NULLS NOT DISTINCT" in head,
            "with": options or None,
            "where": where or None,
            "invalid": not row.valid,
        },
    )


def _things(rows: Rows, schema_of: Callable[[str], str | None], spelled: Callable[[str], str]) -> Iterator[Thing]:
    facets: dict[str, Any]
    for row in rows.types:
        if row.kind == "e":
            yield Thing("enumeration", row.name, schema_of(row.place), {"values": tuple(row.labels)})
            continue
        facets = {
            "type": spelled(row.base),
            "nullable": not row.not_null,
            "default": None if row.expression is None else spelled(row.expression),
            "collation": row.collation,
            "checks": tuple(map(spelled, row.checks)) or None,
        }
        yield Thing("domain", row.name, schema_of(row.place), facets)
    for row in rows.sequences:
        if row.bond != "i" and not row.is_default:
            facets = {"type": row.type, "options": " ".join(sequence_options(row)) or None}
            yield Thing("sequence", row.name, schema_of(row.place), facets)


SCRATCH = PostgresqlScratch
