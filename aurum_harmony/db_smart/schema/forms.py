"""Whether what is there by the name of what schema changes make also has the form that they give it.

A column of another type, or an index on other columns, was made by somebody else. What a definition comes to is asked
of the database itself: a temporary table is made of it and looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import sqlalchemy as sa

from ..dialects.base import Facts
from .catalog import Catalog
from .effects import IDENTIFIER, Change, changes_of, defined, inside, listed, normalized, split_name

_TEMPORARY = "db_smart_form"
#: Of what ``CREATE TABLE`` lists, what a temporary table cannot have, or what has no part in the form of a column.
_LEFT_OUT = re.compile(r"(?:CONSTRAINT\s+\S+\s+)?(?:FOREIGN|CHECK|EXCLUDE)\b", re.IGNORECASE)
_PLACE = re.compile(rf"\s+(?:FIRST|AFTER\s+{IDENTIFIER})\s*\Z", re.IGNORECASE)
_REFERS = re.compile(
    rf"\s*REFERENCES\s+(?P<table>(?:{IDENTIFIER}\s*\.\s*)?{IDENTIFIER})\s*(?P<rest>.*)", re.IGNORECASE | re.DOTALL
)
#: Changes that leave the form of columns, indexes and constraints that are there as it is.
_LEAVES = ("make column", "make index", "drop index", "make constraint", "drop constraint", "make check", "drop column")
_MAKES = ("make table", "make column", "make index", "make constraint")


class NoForm(Exception):
    """What a definition comes to cannot be asked."""


class Forms:
    """What statements have made, compared with what a database has.

    :ivar unknown: columns that could not be compared.
    """

    def __init__(self, connection: sa.Connection, facts: Facts) -> None:
        self._connection = connection
        self._facts = facts
        self._catalog = Catalog(connection)
        self.unknown: list[str] = []

    def others(self, statements: Iterable[str]) -> Iterator[str]:
        """What has another form, in words.

        :param statements: what was done, in its order.
        """
        for change in self._standing(statements):
            if change.kind == "make table":
                yield from self._columns(change, change.columns or ())
            elif change.kind == "make column":
                yield from self._columns(change, (change.name,))
            elif change.kind == "make index":
                yield from self._index(change)
            else:
                yield from self._constraint(change)

    def described(self, table: str) -> dict[str, str]:
        """The columns of a table, in words."""
        return {name: self._shown(column, plain=True) for name, column in self._catalog.columns(table, None).items()}

    def _standing(self, statements: Iterable[str]) -> list[Change]:
        """What was made, and not changed after that."""
        made: list[Change] = []
        for statement in statements:
            changes = changes_of(statement, self._facts)
            touched = {one.table for one in changes.seen if one.kind not in _LEAVES}
            if not changes.whole:
                touched |= self._names(statement)
            made = [one for one in made if one.table not in touched]
            for one in changes.seen:
                verb, what = one.kind.split()
                if verb == "drop" and what != "table":
                    made = [other for other in made if not _is_of(other, what, one)]
                    if what == "column":
                        made = [_without(other, one) for other in made]
                elif one.kind in _MAKES and changes.whole and not one.anyway:
                    made.append(one)
        return made

    def _names(self, statement: str) -> set[str]:
        return {normalized(name, self._facts) for name in re.findall(rf"(?:{IDENTIFIER}\.)?{IDENTIFIER}", statement)}

    def _columns(self, change: Change, names: Sequence[str]) -> Iterator[str]:
        """Columns that are others than a definition comes to."""
        if not names:
            return
        try:
            expected = self._made(change)
        except NoForm:
            self.unknown += [f"{change.table}.{name}" for name in names]
            return
        found = self._catalog.columns(*split_name(change.table))
        for name in names:
            if name in found and name in expected:
                plain = re.search(r"\b(?:COLLATE|CHARSET|CHARACTER)\b", change.form, re.IGNORECASE) is None
                is_, makes = (self._shown(one[name], plain) for one in (found, expected))
                if is_ != makes:
                    yield f"{name!r} of the table {change.table!r} is {is_}, and this revision makes {makes}"

    def _made(self, change: Change) -> dict[str, Any]:
        """The columns of a temporary table that a definition makes.

        :raises NoForm: there can be none.
        """
        if change.kind == "make column":
            items, end = ["db_smart_key INTEGER", _PLACE.sub("", change.form)], ""
        else:
            all_items, end = defined(change.form, self._facts)
            items = [one for one in all_items or () if not (self._facts.server and _LEFT_OUT.match(one))]
        connection, facts = self._connection, self._facts
        place = connection.begin_nested() if facts.server and facts.transactional_ddl else nullcontext()
        temporary = "TEMPORARY TABLE " if facts.server else "TABLE temp."
        gone = "TABLE pg_temp." if facts.has_search_path else temporary
        try:
            with place:
                connection.exec_driver_sql(f"CREATE {temporary}{_TEMPORARY} ({', '.join(items)}){end}")
                found = Catalog(connection).columns(_TEMPORARY, None)
                connection.exec_driver_sql(f"DROP {gone}{_TEMPORARY}")
        except sa.exc.DBAPIError as error:
            raise NoForm from error
        return found

    def _shown(self, column: dict[str, Any], plain: bool) -> str:
        """A column as it is compared.

        :param plain: leave out the collation, which comes from elsewhere.
        """
        kind = column["type"]
        if plain and getattr(kind, "collation", None) is not None:
            kind.collation = None
        if plain and getattr(kind, "charset", None) is not None:
            kind.charset = None
        with suppress(sa.exc.CompileError):
            kind = kind.compile(self._connection.dialect)
        default = column.get("default")
        if default is not None and "nextval(" in str(default):
            default = "nextval()"
        computed = (column.get("computed") or {}).get("sqltext")
        if computed and not self._facts.server:
            computed = "…"  # SQLAlchemy takes what follows it for a part of it
        return (
            f"{kind}{'' if default is None else f' DEFAULT {default}'}{f' AS ({computed})' if computed else ''}"
            f"{'' if column['nullable'] else ' NOT NULL'}"
        )

    def _index(self, change: Change) -> Iterator[str]:
        """An index that is another."""
        columns = self._listed(change.form)
        found = self._catalog.indexes(*split_name(change.table)).get(change.name)
        if found is None:
            yield f"The index {change.name!r} is not one of the table {change.table!r}"
            return
        is_ = f"{'UNIQUE ' if found.unique else ''}({', '.join(str(one) for one in found.columns)})"
        if found.unique is not change.unique or (columns is not None and _lower(found.columns) != columns):
            makes = f"{'UNIQUE ' if change.unique else ''}({', '.join(columns or ['…'])})"
            yield f"The index {change.name!r} is {is_}, and this revision makes {makes}"

    def _constraint(self, change: Change) -> Iterator[str]:
        """A foreign key or a unique constraint that is another."""
        kind = change.form.split("(")[0].split()[0].lower()
        found = self._catalog.constraints(*split_name(change.table)).get(change.name)
        if kind not in ("foreign", "unique") or found is None:
            return
        columns = self._listed(change.form)
        if found.kind != kind or (columns is not None and _lower(found.columns) != columns):
            yield (
                f"The constraint {change.name!r} is {found.kind} ({', '.join(found.columns)}), and this revision makes "
                f"{change.form}"
            )
            return
        start = change.form.find("(")
        _, rest = inside(change.form[start:], self._facts)
        refers = _REFERS.match(rest)
        if found.target is not None and refers is not None:
            table, columns = normalized(refers["table"], self._facts).rpartition(".")[2], self._listed(refers["rest"])
            if found.target[0].lower() != table.lower() or (
                columns is not None and _lower(list(found.target[1])) != columns
            ):
                yield (
                    f"The constraint {change.name!r} refers to {found.target[0]} ({', '.join(found.target[1])}), and "
                    f"this revision makes {change.form}"
                )

    def _listed(self, form: str) -> list[str] | None:
        """The columns in the first parentheses, in lower case; ``None`` where there is something else among them."""
        start = form.find("(")
        if start < 0:
            return None
        items = listed(inside(form[start:], self._facts)[0], self._facts)
        if not all(re.fullmatch(IDENTIFIER, item) for item in items):
            return None
        return [normalized(item, self._facts).lower() for item in items]


def _is_of(made: Change, what: str, dropped: Change) -> bool:
    """Whether something that was made is what is dropped."""
    kinds = {"make index", "make constraint"} if what in ("index", "constraint") else {f"make {what}"}
    same_table = not dropped.table or made.table == dropped.table
    return made.kind in kinds and made.name == dropped.name and same_table


def _without(made: Change, dropped: Change) -> Change:
    """What was made, without a column that is dropped."""
    if made.kind != "make table" or made.table != dropped.table or made.columns is None:
        return made
    return made._replace(columns=tuple(name for name in made.columns if name != dropped.name))


def _lower(names: Sequence[str | None]) -> list[str]:
    return [str(name).lower() for name in names]
