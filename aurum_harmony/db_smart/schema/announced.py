"""Holds a contract step to what its dry run has shown, because of that alone it was asked who still uses it.

The two may differ: a step may do one thing or another by the rows that it finds, and the dry run changes none; for
SQLite it has none at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.ddl.base import DropColumn, RenameTable
from sqlalchemy.schema import CreateTable, DropTable

from ..errors import DbSmartError
from ..store.releases import Names, Touches
from .ddl import DropDeclared, RenameColumn
from .guard import Guard
from .planned import DryCatalog
from .touched import touched, touched_by_sql

if TYPE_CHECKING:
    from ..loading.decorator import Options
    from ..session.transaction import Transaction

#: What drops or renames. What narrows is not compared: by the rows, the form may be another that comes to the same.
_TAKES = (DropTable, RenameTable, DropColumn, RenameColumn, DropDeclared)

#: As SQLAlchemy sends them for a transaction within another one.
_SAVEPOINT = re.compile(r"(?:SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) \w+")


class AnnouncedGuard(Guard):
    """A guard that also refuses what takes away more than was announced.

    :param announced: what the dry run has shown.
    """

    def __init__(self, transaction: Transaction, options: Options, announced: Touches) -> None:
        super().__init__(transaction, options)
        self._announced = announced
        self._names = _Names(transaction.connection)

    def check(self, statement: str, parameters: Any = None) -> None:
        """As :meth:`.Guard.check`."""
        super().check(statement, parameters)
        if _SAVEPOINT.fullmatch(statement):
            return
        found = touched_by_sql(statement, self._facts)
        self._hold(found)
        if found.unknown:
            raise _beyond(f"It is not known {found.unknown}")

    def check_change(self, change: sa.ClauseElement) -> None:
        """Look at what an operation is about to send.

        :raises DbSmartError: it takes away what was not announced.
        """
        if isinstance(change, _TAKES):
            # A view that comes again in another form was announced as narrowed.
            self._hold(touched(change, self._names), again=isinstance(change, DropDeclared))
        self._names.note(change)

    def _hold(self, found: Touches, *, again: bool = False) -> None:
        known = self._announced
        either = [known.narrowed, known.gone]
        beyond = [*_more(found.gone, either if again else [known.gone]), *_more(found.narrowed, either)]
        if beyond:
            raise _beyond(f"It takes away {', '.join(beyond)}")


class _Names(DryCatalog):
    """What tables were called before this run: releases know them by those names."""

    def __init__(self, connection: sa.Connection) -> None:
        super().__init__(connection)
        self._former: dict[tuple[str | None, str], str | None] = {}

    def stored(self, table: str, schema: str | None) -> str | None:
        """The former name; ``None`` for a table that this run has made."""
        return self._former.get((schema, self.normalize_name(table)), table)

    def note(self, change: sa.ClauseElement) -> None:
        """Take note of a new name."""
        if isinstance(change, CreateTable):
            self._former[change.element.schema, self.normalize_name(change.element.name)] = None
        elif isinstance(change, RenameTable):
            former = self.stored(change.table_name, change.schema)
            self._former[change.schema, self.normalize_name(change.new_table_name)] = former


def _more(found: Names, known: list[Names]) -> list[str]:
    """What is in none of the others; no columns stand for the whole table."""
    more = []
    for table, columns in found.items():
        its = [one[table] for one in known if table in one]
        if any(not one for one in its):
            continue
        left = sorted(set(columns).difference(*its))
        more += [f"{table}.{column}" for column in left] if columns else [table]
    return more


def _beyond(what: str) -> DbSmartError:
    return DbSmartError(
        f"{what}, which its dry run did not show: so no release was asked whether it still uses that, and the "
        "statement was not sent. Have the step do the same whatever rows there are, or run it by 'flask db-smart "
        "migrate --contract-now'"
    )
