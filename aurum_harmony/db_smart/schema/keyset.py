"""How the rows of a table are addressed in the order of its key: the key's columns, and ranges of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..errors import DbSmartError
from ..session.sql import render
from .catalog import Catalog

#: MariaDB compares a ``SET`` with a number as floats, which are exact up to so many bits.
_EXACT_BITS = 53

Key = list[Any]


class Bounds(NamedTuple):
    """A range of keys.

    :ivar within: compares the key with it.
    :ivar keys: the keys for that.
    :ivar reached: the last key; ``None`` where the range goes to the highest one.
    :ivar size: how many rows there were when it was looked up.
    """

    within: sa.ColumnElement[bool]
    keys: dict[str, Any]
    reached: Key | None
    size: int


class Keyset:
    """The key of one table.

    :param dialect: name of the dialect; ``mysql`` for MariaDB too.
    :ivar columns: those of the key.
    :ivar asked: what tells the values of the key apart, as it is asked for.
    :ivar sorted: the key as it is compared and sorted.
    :raises DbSmartError: the table has no key.
    """

    def __init__(self, connection: sa.Connection, dialect: str, name: str, schema: str | None) -> None:
        self._connection = connection
        self._dialect = dialect
        self._name, self._schema = name, schema
        self._table = sa.table(name, schema=schema)
        self.columns: list[sa.ColumnClause[Any]] = [sa.column(column) for column in self._key_names()]
        #: The types of the columns whose text is asked for.
        self._text_kinds: dict[int, Any] = {}
        self.asked, self.sorted = self._forms()

    def highest(self) -> Key | None:
        """The highest key; ``None`` where there are no rows."""
        descending = [column.desc() for column in self.sorted]
        return self._one(sa.select(*self.asked).order_by(*descending).limit(1))

    def bounds(self, after: Key | None, until: Key | None, size: int) -> Bounds:
        """The next range of keys.

        :param after: the key that it begins after; ``None`` for the lowest.
        :param until: the highest key.
        :param size: how many rows it is to have.
        """
        within = self._compare("until", "<=")
        keys = self._bind("until", until)
        if after is not None:
            within = sa.and_(self._compare("cursor", ">"), within)
            keys |= self._bind("cursor", after)
        reached = self._one(sa.select(*self.asked).where(within).order_by(*self.sorted).limit(1).offset(size - 1), keys)
        if reached is None:
            count = sa.select(sa.func.count()).select_from(self._table).where(within)
            size = self._connection.scalar(count, keys) or 0
        else:
            keys |= self._bind("until", reached)
        return Bounds(within, keys, reached, size)

    def estimate(self, until: Key) -> int:
        """About how many rows the table has, as the planner has it; on SQLite by the range of rowids."""
        query: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(self._table)
        if self._dialect == "sqlite":
            first = self._one(sa.select(*self.asked).order_by(*self.sorted).limit(1))
            if first is not None and len(self.columns) == 1 and isinstance(first[0], int) and isinstance(until[0], int):
                return int(until[0] - first[0]) + 1
            return self._connection.scalar(sa.select(sa.func.count()).select_from(self._table)) or 0
        text = render(query, self._connection.dialect)
        plain: dict[str, Any] = {"execution_options": {"no_parameters": True}}  # a percent sign is one
        if self._dialect == "postgresql":
            (plan,) = self._connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", **plain).scalar_one()
            return int(plan["Plan"]["Plan Rows"])
        return int(self._connection.exec_driver_sql(f"EXPLAIN {text}", **plain).mappings().one()["rows"] or 0)

    def _key_names(self) -> Sequence[str]:
        """The columns that tell the rows of the table apart: its primary key, or on SQLite the rowid.

        :raises DbSmartError: there are none.
        """
        if self._dialect == "sqlite":  # where a primary key can be NULL
            columns = Catalog(self._connection).columns(self._name, self._schema)
            for name in ("rowid", "_rowid_", "oid"):
                if name not in columns and self._addressable(name):
                    return [name]
        names = Catalog(self._connection).primary_key(self._name, self._schema)
        if not names:
            raise DbSmartError(
                f"The table {self._name!r} has no primary key, which a backfill needs. Nothing of it was done. Give it "
                "one, or update it by op.execute(), as one transaction."
            )
        return names

    def _forms(self) -> tuple[list[sa.ColumnElement[Any]], list[sa.ColumnElement[Any]]]:
        """The key as it is asked for, and as it is compared and sorted.

        MariaDB sorts an ``ENUM`` or ``SET`` by its number, and compares it with a text by the text, but with a number
        by the number, for which it can use an index. A ``BIT`` comes as bytes, and compares as a number only. Of
        PostgreSQL's types that Python cannot hold every value of (a date may be infinite, or before Christ), or that
        drivers send as another one, the text is asked for.
        """
        asked: list[sa.ColumnElement[Any]] = list(self.columns)
        compared = list(asked)
        if self._dialect not in ("mysql", "postgresql"):
            return asked, compared
        from sqlalchemy.dialects import mysql, postgresql

        catalog = Catalog(self._connection)
        columns = catalog.columns(self._name, self._schema)
        for number, column in enumerate(self.columns):
            kind = columns[catalog.normalize_name(column.name)]["type"]
            if isinstance(kind, (sa.Enum, mysql.SET, mysql.BIT)) and self._dialect == "mysql":
                asked[number] = sa.cast(column, mysql.INTEGER(unsigned=True)).label(f"key_{number}")
            if isinstance(kind, mysql.SET) and len(kind.values) > _EXACT_BITS:
                compared[number] = sa.cast(column, mysql.INTEGER(unsigned=True))
            stored = kind.data_type if isinstance(kind, postgresql.DOMAIN) else kind
            if self._dialect == "postgresql" and isinstance(stored, (sa.Date, sa.DateTime)):
                # As JSON has them, whatever the session's style of dates.
                text = sa.func.to_jsonb(column).op("#>>")(sa.literal_column("'{}'"))
                asked[number], self._text_kinds[number] = text.label(f"key_{number}"), kind
            elif self._dialect == "postgresql" and isinstance(stored, (sa.ARRAY, postgresql.JSONB)):
                asked[number], self._text_kinds[number] = sa.cast(column, sa.Text).label(f"key_{number}"), kind
        return asked, compared

    def _addressable(self, rowid: str) -> bool:
        try:
            self._connection.execute(sa.select(sa.column(rowid)).select_from(self._table).limit(0))
        except sa.exc.OperationalError:  # WITHOUT ROWID
            return False
        return True

    def _one(self, query: sa.Select[Any], keys: Mapping[str, Any] | None = None) -> Key | None:
        """The key that a query finds."""
        row = self._connection.execute(query.select_from(self._table), keys or {}).first()
        if row is None:
            return None
        if self._dialect != "sqlite" and any(isinstance(value, float) for value in row):
            raise DbSmartError(
                f"The table {self._name!r} cannot be backfilled: its primary key is a float, which no client can name "
                "exactly. Nothing of it was done. Update it by op.execute()."
            )
        return list(row)

    def _bind(self, name: str, key: Key | None) -> dict[str, Any]:
        return {f"db_smart_{name}_{number}": value for number, value in enumerate(key or ())}

    def _compare(self, name: str, sign: str) -> sa.ColumnElement[bool]:
        """The key compared with another one, ``>`` or ``<=``, in a way that an index can be used for it.

        The values are bound without type, as the driver gave them, because with a cast to another type no index could
        be used. What was asked for as text is cast to the type of its column.
        """
        binds: list[sa.ColumnElement[Any]] = []
        for number, key in enumerate(self._bind(name, [None] * len(self.columns))):
            if number in self._text_kinds:
                binds.append(sa.cast(sa.bindparam(key, type_=sa.Text()), self._text_kinds[number]))
            else:
                binds.append(sa.bindparam(key, type_=sa.types.NullType()))
        if len(binds) == 1:
            return self.sorted[0].op(sign, is_comparison=True)(binds[0])
        if self._dialect != "mysql":
            return sa.tuple_(*self.sorted).op(sign, is_comparison=True)(sa.tuple_(*binds))
        # MariaDB uses no index for row values.
        *pairs, (column, bind) = zip(self.sorted, binds, strict=True)
        found: sa.ColumnElement[bool] = column > bind if sign == ">" else column <= bind
        for column, bind in reversed(pairs):
            beyond, within = (column > bind, column >= bind) if sign == ">" else (column < bind, column <= bind)
            found = sa.and_(within, sa.or_(beyond, sa.and_(column == bind, found)))
        return found
