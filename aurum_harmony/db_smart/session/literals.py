"""Statements with their values in them, as a database's own client takes them.

A value is written as the driver sends it: the type of the column makes of it what the driver gets, and the driver, or
SQLite itself, makes that a literal. So a script does with a value of any type what the run does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.functions import FunctionElement

from ..dialects.base import facts_of
from ..errors import DbSmartError
from .sql import render, string_text, without_doubled_percents

#: How a script bounds its transactions, and where one begins that commits by itself otherwise.
BEGIN, COMMIT, START = "BEGIN", "COMMIT", "START TRANSACTION"
#: What a client may not read as it stands in a script.
_CONTROLS = re.compile(r"[\0\r\x1a]")


class NoLiteral(DbSmartError):
    """A value that cannot be written as SQL."""


def statement_text(statement: Any, values: Mapping[str, Any], connection: sa.Connection) -> str:
    """A statement as SQL with its values in it, as an execution with these values would send it.

    :param values: values of its parameters by name, or of the columns of an ``INSERT`` or ``UPDATE``.
    :param connection: to the database, or to one of its kind.
    :raises NoLiteral: a value cannot be written as SQL.
    :raises sqlalchemy.exc.InvalidRequestError: a value is missing.
    :raises sqlalchemy.exc.CompileError: the statement is wrong, for an execution too.
    """
    if isinstance(statement, sa.schema.ExecutableDDLElement):
        return render(statement, connection.dialect)
    if isinstance(statement, FunctionElement):
        statement = statement.select()
    given = dict(values)
    dialect: Any = without_doubled_percents(connection.dialect)
    dialect.statement_compiler = _with_literals(dialect.statement_compiler, given, connection)

    def compiled() -> Any:
        try:
            return statement.compile(
                dialect=dialect, column_keys=sorted(values), compile_kwargs={"literal_binds": True}
            )
        except NotImplementedError as error:
            raise NoLiteral(str(error)) from error

    text = compiled()
    # Defaults of the models that Python makes: an execution asks for them, a compilation does not.
    made = False
    for columns, kind in ((text.insert_prefetch, "default"), (text.update_prefetch, "onupdate")):
        for column in columns:
            given[column.key] = _default(getattr(column, kind), given, connection)
            made = True
    return str(compiled() if made else text).strip()


def literal(value: Any, connection: sa.Connection) -> str:
    """A value as the driver gets it, as SQL.

    :raises NoLiteral: it cannot be written so.
    """
    dialect = connection.dialect
    kind = "mysql" if dialect.name == "mariadb" else dialect.name
    if value is None:
        return "NULL"
    if isinstance(value, (bytes, bytearray, memoryview)):
        digits = bytes(value).hex()
        return f"'\\x{digits}'::bytea" if kind == "postgresql" else f"X'{digits}'"
    if type(value) is str:
        return _string(value, kind, dialect)
    if type(value) is int:
        return str(value) if value >= 0 else f"({value})"  # behind another minus it would begin a comment
    if type(value) is float and kind == "sqlite" and math.isinf(value):
        return "9e999" if value > 0 else "(-9e999)"
    if type(value) is float and kind == "postgresql" and dialect.driver != "psycopg2":
        return f"'{value!r}'::float8"  # without it a number of as many digits
    try:
        text = _DRIVERS.get(kind, _as_sqlalchemy)(value, connection)
    except Exception as error:  # of the driver, each has its own
        raise NoLiteral(f"a value of the type {type(value).__name__} cannot be written as SQL") from error
    text = text.strip()
    return f"({text})" if text.startswith("-") else text


def _string(value: str, kind: str, dialect: sa.Dialect) -> str:
    if _CONTROLS.search(value) is None:
        return string_text(value, dialect)
    if kind == "mysql":
        return f"_utf8mb4 X'{value.encode().hex()}'"
    if kind == "postgresql":
        if "\0" in value:
            raise NoLiteral("a text with the character 0 cannot be written for PostgreSQL")
        written = value.replace("\\", "\\\\").replace("'", "''")
        return "E'" + _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", written) + "'"
    parts = re.split(f"({_CONTROLS.pattern})", value)
    texts = [f"char({ord(part)})" if _CONTROLS.fullmatch(part) else string_text(part, dialect) for part in parts]
    return f"({' || '.join(texts)})"


def _by_sqlite(value: Any, connection: sa.Connection) -> str:
    driver: Any = connection.connection.driver_connection
    text: str = driver.execute("SELECT quote(?)", (value,)).fetchone()[0]
    return text


def _by_driver(value: Any, connection: sa.Connection) -> str:
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver == "psycopg":
        from psycopg import ClientCursor

        return ClientCursor(driver).mogrify("%s", (value,))
    cursor = driver.cursor()
    try:
        if not hasattr(cursor, "mogrify"):
            return _as_sqlalchemy(value, connection)
        text = cursor.mogrify("%s", (value,))
    finally:
        cursor.close()
    return text.decode() if isinstance(text, bytes) else str(text)


def _as_sqlalchemy(value: Any, connection: sa.Connection) -> str:
    if isinstance(value, timedelta) and connection.dialect.name == "postgresql":
        # SQLAlchemy writes the days as hours, which PostgreSQL keeps apart.
        return f"'{value.days} days {value.seconds} seconds {value.microseconds} microseconds'::interval"
    return render(sa.literal(value), connection.dialect, literal_binds=True)


_DRIVERS: dict[str, Callable[[Any, sa.Connection], str]] = {
    "sqlite": _by_sqlite,
    "postgresql": _by_driver,
    "mysql": _by_driver,
}


def _default(default: Any, given: Mapping[str, Any], connection: sa.Connection) -> Any:
    if default.is_callable:
        context = SimpleNamespace(
            get_current_parameters=lambda isolate_multiinsert_groups=True: dict(given),
            current_parameters=dict(given),
            connection=connection,
            root_connection=connection,
            dialect=connection.dialect,
        )
        return default.arg(context)
    if not default.is_scalar:
        raise NoLiteral("the default of a column is asked of the database")
    return default.arg


def _with_literals(compiler: Any, given: Mapping[str, Any], connection: sa.Connection) -> Any:
    """A compiler that writes each value as the driver sends it."""
    absent = object()

    class Statements(compiler):  # type: ignore[misc]
        def render_literal_bindparam(
            self, bindparam: BindParameter[Any], render_literal_value: Any = absent, **options: Any
        ) -> str:
            if render_literal_value is not absent:
                value = render_literal_value
            elif bindparam.key in given:
                value = given[bindparam.key]
            elif bindparam.required and bindparam.callable is None:
                raise sa.exc.InvalidRequestError(f"A value is required for bind parameter {bindparam.key!r}")
            else:
                value = bindparam.effective_value
            if bindparam.expanding:
                text: str = super().render_literal_bindparam(bindparam, render_literal_value=value, **options)
                return text
            return self.render_literal_value(value, bindparam.type)

        def render_literal_value(self, value: Any, type_: Any) -> str:
            process = type_.dialect_impl(self.dialect).bind_processor(self.dialect)
            text = literal(value if process is None else process(value), connection)
            kind = type_._unwrapped_dialect_impl(self.dialect)
            if self.dialect._bind_typing_render_casts and kind.render_bind_cast:
                text = self.render_bind_cast(type_, kind, text)
            return text

    return Statements


def leniently_postgresql(statement: str, pattern: str | None, dialect: sa.Dialect) -> Iterator[str]:
    """A statement that is skipped if it needs a table or column that no longer exists."""
    yield "DO $db_smart$ BEGIN"
    yield f"  EXECUTE {string_text(statement, dialect)};"
    states = facts_of(dialect.name).errors["missing"]
    yield f"EXCEPTION WHEN {' OR '.join(f'SQLSTATE {state!r}' for state in states)} THEN"
    if pattern is not None:
        yield f"  IF SQLERRM !~* {string_text(pattern, dialect)} THEN RAISE; END IF;"
    yield "  RAISE NOTICE 'db-smart: left out, because what it needs no longer exists: %', SQLERRM;"
    yield "END $db_smart$"


def leniently_mariadb(statement: str, pattern: str | None, dialect: sa.Dialect) -> Iterator[str]:
    """As :func:`leniently_postgresql`."""
    yield "DELIMITER //"
    yield "BEGIN NOT ATOMIC"
    numbers = facts_of(dialect.name).errors["missing"]
    yield f"  DECLARE EXIT HANDLER FOR {', '.join(map(str, numbers))} BEGIN"
    if pattern is not None:
        yield "    GET DIAGNOSTICS CONDITION 1 @db_smart_message = MESSAGE_TEXT;"
        yield f"    IF @db_smart_message NOT REGEXP {string_text(pattern, dialect)} THEN RESIGNAL; END IF;"
    yield "  END;"
    yield f"  EXECUTE IMMEDIATE {string_text(statement, dialect)};"
    yield "END//"
    yield "DELIMITER ;"
