"""Which existing rows would be in the way: a dry run asks for them, or only the run itself would find out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import Grouping

from .planned import DryCatalog
from .rules import OLD_ROWS, Refused, counted


class Foresight:
    """Asks the rows of a database, by the names that its tables and columns have at this point of a dry run.

    Where rows may have been changed by then, or cannot be asked, nothing is said.

    :param catalog: that of the dry run.
    """

    def __init__(self, catalog: DryCatalog) -> None:
        self._catalog = catalog

    def columns(self, table: str, columns: Iterable[Any], schema: str | None) -> None:
        """See that a table has these columns.

        :param columns: names; anything else is ignored.
        :raises sqlalchemy.exc.NoSuchTableError: there is no such table.
        :raises sqlalchemy.exc.NoSuchColumnError: it has no such column.
        """
        names = [name for name in columns if isinstance(name, str)]
        there = self._catalog.present(table, names, schema)
        for name in names:
            if self._catalog.normalize_name(name) not in there:
                raise sa.exc.NoSuchColumnError(f"the table {table!r} has no column {name!r}")

    def not_null(self, what: str, table: str, schema: str | None, column: str) -> None:
        """See that no row has NULL in a column.

        :raises Refused: some have.
        """
        rows = self._catalog.rows(table, schema)
        if rows is not None and column in rows.c:
            nulls = sa.select(sa.func.count()).select_from(rows).where(rows.c[column].is_(None))
            self._refuse(what, nulls, "has NULL", "have NULL")

    def fits(self, what: str, table: str, schema: str | None, column: str, kind: Any) -> None:
        """See that texts are short enough for a type.

        :raises Refused: some are not.
        """
        rows = self._catalog.rows(table, schema)
        if isinstance(kind, sa.String) and kind.length and rows is not None and column in rows.c:
            long = sa.func.char_length(rows.c[column]) > kind.length
            self._refuse(what, sa.select(sa.func.count()).select_from(rows).where(long), "is longer", "are longer")

    def unique(self, what: str, table: str, schema: str | None, columns: Sequence[str], where: Any = None) -> None:
        """See that no rows have the same values.

        :param where: the condition of a partial index.
        :raises Refused: some have.
        """
        rows = self._catalog.rows(table, schema)
        if rows is None or any(column not in rows.c for column in columns):
            return
        own = [rows.c[column] for column in columns]
        groups = sa.select(sa.func.count().label("n")).select_from(rows).where(*(one.is_not(None) for one in own))
        groups = groups.group_by(*own).having(sa.func.count() > 1)
        if where is not None:
            groups = groups.where(sa.text(where) if isinstance(where, str) else where)
        self._refuse(
            what,
            sa.select(sa.func.sum(groups.subquery().c.n)),
            "has the values of another",
            "have the same values as others",
        )

    def check(self, what: str, table: str, schema: str | None, condition: Any) -> None:
        """See that no row breaks a check.

        :raises Refused: some do.
        """
        rows = self._catalog.rows(table, schema)
        if rows is not None:
            wrong = sa.not_(Grouping(sa.text(condition) if isinstance(condition, str) else condition))
            self._refuse(what, sa.select(sa.func.count()).select_from(rows).where(wrong), "breaks it", "break it")

    def foreign(self, what: str, constraint: sa.ForeignKeyConstraint) -> None:
        """See that what rows refer to is there.

        :raises Refused: some refer to what is not there.
        """
        target = constraint.elements[0].column.table
        assert isinstance(target, sa.Table)
        rows = self._catalog.rows(constraint.parent.name, constraint.parent.schema)
        theirs = self._catalog.rows(target.name, target.schema, name="db_smart_target")
        pairs = [
            (key, element.column.name) for key, element in zip(constraint.column_keys, constraint.elements, strict=True)
        ]
        if rows is None or theirs is None or any(key not in rows.c or other not in theirs.c for key, other in pairs):
            return
        same = sa.exists().where(*(rows.c[key] == theirs.c[other] for key, other in pairs))
        broken = sa.and_(*(rows.c[key].is_not(None) for key, _ in pairs), ~same)
        missing = sa.select(sa.func.count()).select_from(rows).where(broken)
        self._refuse(what, missing, "refers to a missing row", "refer to missing rows")

    def _refuse(self, what: str, query: sa.Select[Any], one: str, more: str) -> None:
        count = None
        with suppress(sa.exc.DBAPIError, sa.exc.CompileError):  # on what only the run makes; or no right to read
            count = self._catalog.ask(query)
        if count:
            raise Refused(OLD_ROWS, what, f"{counted(count, one, more)}. ")
