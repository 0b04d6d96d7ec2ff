"""SQLite: change what its ``ALTER TABLE`` cannot, by making the table anew and moving the rows.

The definition is edited in its own text, as SQLite itself does. So what a reflected table would lose stays: collations,
``AUTOINCREMENT``, ``STRICT``, ``WITHOUT ROWID``, generated columns, conflict clauses, comments. The steps are those of
https://www.sqlite.org/lang_altertable.html#otheralter and need SQLite 3.26.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import sqlalchemy as sa

from ...errors import DbSmartError
from ...schema.rules import counted

_TOKEN = re.compile(
    r"""(?P<space>(?:[\s\ufeff]|--[^\n]*|/\*.*?(?:\*/|\Z))+)
    |(?P<string>[xX]?'(?:[^']|'')*')
    |(?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<word>[A-Za-z_$\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
#: Words that begin a constraint of a table, and of a column.
_TABLE_STARTS = {"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"}
_COLUMN_STARTS = {"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "REFERENCES", "NOT", "NULL", "DEFAULT", "COLLATE"}
_COLUMN_STARTS |= {"GENERATED", "AS", "DEFERRABLE"}
#: Words inside a constraint whose next word belongs to them and begins nothing.
_TAKES_NEXT = {"CONSTRAINT", "DEFAULT", "COLLATE", "REFERENCES", "MATCH", "SET", "NOT", "ALWAYS"}
#: Words that are no names unless they are quoted, of those that stand in expressions and lists.
_RESERVED = {
    "AND",
    "AS",
    "BETWEEN",
    "CASE",
    "COLLATE",
    "DISTINCT",
    "ELSE",
    "ESCAPE",
    "EXISTS",
    "FROM",
    "IN",
    "IS",
    "ISNULL",
}
_RESERVED |= {
    "NOT",
    "NOTNULL",
    "NULL",
    "ON",
    "OR",
    "SELECT",
    "THEN",
    "WHEN",
    "WHERE",
    "ORDER",
    "GROUP",
    "UNIQUE",
    "CHECK",
}
_RESERVED |= {"DEFAULT", "REFERENCES", "INDEX"}
_KINDS = {"references": "foreign", "as": "generated", "not deferrable": "deferrable"}


class _Token(NamedTuple):
    kind: str
    text: str

    @property
    def key(self) -> str:
        """A keyword or a sign; nothing for what is quoted."""
        return self.text.upper() if self.kind in ("word", "other") else ""

    @property
    def name(self) -> str:
        """The identifier, without its quotes."""
        if self.kind == "word":
            return self.text
        end = self.text[-1]
        return self.text[1:-1] if end == "]" else self.text[1:-1].replace(end * 2, end)


def _tokens(sql: str) -> list[_Token]:
    return [_Token(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(sql)]


def _significant(tokens: Iterable[_Token]) -> list[_Token]:
    return [token for token in tokens if token.kind != "space"]


def _text(tokens: Iterable[_Token]) -> str:
    return "".join(token.text for token in tokens)


def _normalize_name(name: str) -> str:
    """A name as SQLite compares it: in ASCII it does not tell upper from lower case, elsewhere it does."""
    return name.encode().lower().decode()


def _identifiers(sql: str, also: str = "") -> set[str]:
    """What may be a column in an expression or a list: the identifiers that are no functions, folded.

    :param also: another kind of token that is one.
    """
    kinds = ("word", "quoted", also)
    tokens = [*_significant(_tokens(sql)), _Token("other", "")]
    return {
        _normalize_name(one.name)
        for one, after in pairwise(tokens)
        if one.kind in kinds and after.text != "(" and one.key not in _RESERVED
    }


def _listed(tokens: Iterable[_Token]) -> list[str]:
    """The names that the first list in parentheses begins its items with."""
    depth, names, begins = 0, [], False
    for token in tokens:
        if begins:
            names.append(token.name)
        depth += (token.key == "(") - (token.key == ")")
        begins = depth == 1 and token.key in ("(", ",")
        if names and not depth:
            break
    return names


@dataclass
class _Piece:
    """The name, the type or one constraint of an element, with the blanks and comments behind it."""

    kind: str
    name: str | None
    text: str
    tail: str

    @classmethod
    def of(cls, tokens: list[_Token], kind: str | None = None) -> _Piece:
        end = len(tokens)
        while end and tokens[end - 1].kind == "space":
            end -= 1
        words = _significant(tokens)
        name = None
        if kind is None:
            if words[0].key == "CONSTRAINT" and len(words) > 1:
                name, words = words[1].name, words[2:]
            kind = " ".join(word.key for word in words[: 1 + (words[0].key == "NOT")]).lower() if words else ""
            kind = _KINDS.get(kind, kind)
        return cls(kind, name, _text(tokens[:end]), _text(tokens[end:]))

    @property
    def names(self) -> set[str]:
        """The identifiers between the first parentheses, folded."""
        depth, inside = 0, []
        for token in _tokens(self.text):
            depth += (token.key == "(") - (token.key == ")")
            if depth:
                inside.append(token)
            elif inside:
                break
        lists = ("unique", "primary", "foreign")  # where even 'x' is a column
        return _identifiers(_text(inside), "string" if self.kind in lists else "")

    def refers(self, column: str | None) -> tuple[list[str], tuple[str, tuple[str, ...]] | None]:
        """The columns that it is on, and the table and columns that it references.

        :param column: whose constraint it is; ``None`` for one of the table.
        """
        if self.kind == "check":
            return [], None
        tokens = _significant(_tokens(self.text))
        mark = next((index for index, token in enumerate(tokens) if token.key == "REFERENCES"), len(tokens))
        own = [column] if column is not None else _listed(tokens[:mark])
        if self.kind != "foreign" or mark + 1 >= len(tokens):
            return own, None
        with_columns = [token.text for token in tokens[mark + 2 : mark + 3]] == ["("]
        return own, (tokens[mark + 1].name, tuple(_listed(tokens[mark + 2 :]) if with_columns else ()))

    @property
    def expression(self) -> str:
        """What stands between the first parentheses, with them."""
        depth, inside = 0, []
        for token in _tokens(self.text):
            depth += token.key == "("
            inside += [token] if depth else []
            depth -= token.key == ")"
            if inside and not depth:
                break
        return _text(inside)


class Named(NamedTuple):
    """A named constraint.

    :ivar kind: ``unique``, ``check``, ``foreign`` or ``primary``.
    :ivar columns: of it in their order; none for a check.
    :ivar target: of a foreign key, its table and columns, none where it names none.
    """

    name: str
    kind: str
    columns: list[str]
    target: tuple[str, tuple[str, ...]] | None


class _Element:
    """A column or table constraints: what stands between two commas."""

    def __init__(self, tokens: list[_Token]) -> None:
        start = next((index for index, token in enumerate(tokens) if token.kind != "space"), len(tokens))
        self.lead, tokens = _text(tokens[:start]), tokens[start:]
        self.column = None
        self.pieces: list[_Piece] = []
        starts = _TABLE_STARTS
        if tokens and tokens[0].key not in _TABLE_STARTS:
            after = next((index for index in range(1, len(tokens)) if tokens[index].kind != "space"), len(tokens))
            self.column, starts = tokens[0].name, _COLUMN_STARTS
            self.pieces, tokens = [_Piece.of(tokens[:after], "column")], tokens[after:]
        groups: list[list[_Token]] = [[]]  # the type, then the constraints
        depth, previous = 0, ""
        for index, token in enumerate(tokens):
            if token.kind != "space":
                taken = len(groups) > 1 and previous in _TAKES_NEXT
                begins = token.key in starts and not depth and not taken
                if begins and not self._goes_on(groups[-1], tokens[index:]):
                    groups.append([])
                depth += (token.key == "(") - (token.key == ")")
                previous = "" if taken or depth else token.key
            groups[-1].append(token)
        if self.column is not None:
            self.pieces.append(_Piece.of(groups[0], "type"))
        self.pieces += map(_Piece.of, groups[1:])

    @staticmethod
    def _goes_on(group: Iterable[_Token], rest: Iterable[_Token]) -> bool:
        """Whether a word that could begin a constraint is part of what has begun."""
        word, after = [*_significant(rest), _Token("other", "")][:2]
        if word.key == "GENERATED":  # alone it is a type
            return after.key != "ALWAYS"
        prefix = _significant(group)
        return word.key != "CONSTRAINT" and len(prefix) == 2 and prefix[0].key == "CONSTRAINT"

    def put(self, kind: str, text: str | None) -> None:
        """Replace the pieces of a kind by one with this text, or by none."""
        found = [piece for piece in self.pieces if piece.kind == kind]
        for piece in found if text is None else found[1:]:
            self.remove(piece)
        if text is None:
            return
        if found:
            found[0].text, found[0].name = text, None
        else:
            self.pieces.append(_Piece(kind, None, text, self.pieces[-1].tail))
            self.pieces[-2].tail = ""
        for piece in self.pieces[:-1]:
            piece.tail = piece.tail or " "

    def remove(self, piece: _Piece) -> None:
        """Take a piece out; a comment behind it stays."""
        index = next(index for index, one in enumerate(self.pieces) if one is piece)
        if index and piece.tail.strip():
            self.pieces[index - 1].tail += piece.tail
        del self.pieces[index]

    def __str__(self) -> str:
        return self.lead + "".join(piece.text + piece.tail for piece in self.pieces)


class TableSql:
    """The text of a ``CREATE TABLE``, to be edited; what is not edited stays as it was written.

    New text (types, defaults, constraints, columns) is SQL that is rendered already.

    :ivar table: name of the table.
    :ivar without_rowid: whether it is a ``WITHOUT ROWID`` table.
    :ivar edited: folded names of the columns whose definition was changed.
    :ivar constrained: folded names of those that were added or dropped, or whose constraints were.
    :raises DbSmartError: the text is no definition of an ordinary table.
    """

    def __init__(self, sql: str) -> None:
        tokens = _tokens(sql)
        depth, cuts = 0, []
        for index, token in enumerate(tokens):
            depth -= token.key == ")"
            if depth == (token.key == ",") and token.key in ("(", ",", ")"):
                cuts.append(index)
            depth += token.key == "("
        head = _significant(tokens[: cuts[0]]) if cuts else []
        if depth or len(cuts) < 2 or "TABLE" not in [token.key for token in head[1:3]] or head[1].key == "VIRTUAL":
            raise DbSmartError(
                f"This is no definition of an ordinary table, so that it cannot be edited: {sql}. Nothing was changed."
            )
        self.table = head[-1].name
        self._elements = [_Element(tokens[start + 1 : end]) for start, end in pairwise(cuts)]
        self._options = _text(tokens[cuts[-1] + 1 :])
        self.without_rowid = "WITHOUT" in [token.key for token in tokens[cuts[-1] :]]
        self.edited: set[str] = set()
        self.constrained: set[str] = set()

    @property
    def columns(self) -> list[str]:
        """Names of the columns in their order."""
        return [element.column for element in self._elements if element.column is not None]

    @property
    def constraints(self) -> dict[str, str]:
        """Named constraints, of the table and of columns: ``unique``, ``check``, ``foreign`` or ``primary``."""
        kinds = ("unique", "check", "foreign", "primary")
        pieces = [piece for element in self._elements for piece in element.pieces]
        return {piece.name: piece.kind for piece in pieces if piece.name is not None and piece.kind in kinds}

    @property
    def named(self) -> list[Named]:
        """Named constraints, as :attr:`constraints`, in their order and with what they are on."""
        kinds = ("unique", "check", "foreign", "primary")
        return [
            Named(piece.name, piece.kind, *piece.refers(element.column))
            for element in self._elements
            for piece in element.pieces
            if piece.name is not None and piece.kind in kinds
        ]

    def references(self, table: str) -> bool:
        """Whether a foreign key of it is to a table."""
        return any(
            piece.kind == "foreign"
            and _normalize_name((piece.refers(element.column)[1] or ("", ()))[0]) == _normalize_name(table)
            for element in self._elements
            for piece in element.pieces
        )

    def set_type(self, column: str, sql_type: str) -> None:
        """Give a column another type; a ``COLLATE`` that comes with it replaces the column's own."""
        element = self._edit(column)
        element.put("type", sql_type)
        if any(
            piece.kind == "primary" and self._columns_of(one, piece) == {_normalize_name(column)}
            for one in self._elements
            for piece in one.pieces
        ):
            self.constrained.add(_normalize_name(column))  # an INTEGER key is the rowid itself, any other has an index
        if "COLLATE" in [token.key for token in _tokens(sql_type)]:
            element.put("collate", None)
            self.constrained.add(_normalize_name(column))

    def checks(self, name: str) -> list[str]:
        """The conditions of the checks that SQLite calls so when a row breaks them: by name, or by what they say."""
        pieces = [piece for element in self._elements for piece in element.pieces if piece.kind == "check"]
        named = [
            piece for piece in pieces if piece.name is not None and _normalize_name(piece.name) == _normalize_name(name)
        ]
        found = named or [
            piece for piece in pieces if piece.name is None and piece.expression[1:-1].strip() == name.strip()
        ]
        return [piece.expression for piece in found]

    @property
    def all_checks(self) -> list[str]:
        """The conditions of all checks."""
        return [piece.expression for element in self._elements for piece in element.pieces if piece.kind == "check"]

    def set_nullable(self, column: str, nullable: bool) -> None:
        """Take or give a column its ``NOT NULL``, with the name and the conflict clause of it."""
        element = self._edit(column)
        if nullable:
            element.put("not null", None)
        elif not any(piece.kind == "not null" for piece in element.pieces):
            element.put("null", None)
            element.put("not null", "NOT NULL")

    def set_default(self, column: str, sql: str | None) -> None:
        """Give a column another default (an expression in parentheses), or none."""
        self._edit(column).put("default", None if sql is None else f"DEFAULT {sql}")

    def add_column(self, sql: str) -> None:
        """Add a column behind the others."""
        element = _Element(_tokens(f" {sql}"))
        self._elements.insert(len(self.columns), element)
        self.constrained.add(_normalize_name(element.column or ""))

    def drop_column(self, column: str) -> None:
        """Drop a column, and the constraints on it alone.

        :raises DbSmartError: it is in the primary key, or in a constraint or an expression with other columns.
        """
        element = self._edit(column)
        folded = _normalize_name(column)
        if len(self.columns) == 1:
            raise DbSmartError(
                f"The column {column!r} is the only one of the table {self.table!r}, so that it cannot be dropped. "
                "Nothing was changed. Drop the table."
            )
        used = [piece for piece in element.pieces if piece.kind == "primary"]
        alone: list[_Piece] = []
        for other in self._elements:
            for piece in other.pieces if other is not element else ():
                columns = self._columns_of(other, piece)
                if folded in columns:
                    (alone if columns == {folded} and piece.kind != "primary" else used).append(piece)
        if used:
            named = ", ".join(repr(" ".join(piece.text.split())) for piece in used)
            raise DbSmartError(
                f"The column {column!r} of the table {self.table!r} cannot be dropped, as it is used in {named}. "
                "Nothing was changed. Drop that first."
            )
        self._elements.remove(element)
        self._remove(lambda piece: piece in alone)
        self.constrained.add(folded)

    def add_constraint(self, sql: str) -> None:
        """Add a constraint of the table."""
        element = _Element(_tokens(f" {sql}"))
        self._elements.append(element)
        for piece in element.pieces:
            self.constrained |= self._columns_of(element, piece)

    def drop_constraint(self, name: str) -> None:
        """Drop a named constraint, of the table or of a column.

        :raises DbSmartError: there is no constraint of that name.
        """
        if not self._remove(
            lambda piece: piece.name is not None and _normalize_name(piece.name) == _normalize_name(name)
        ):
            raise DbSmartError(f"The table {self.table!r} has no constraint {name!r}. Nothing was changed.")

    def render(self, name: str) -> str:
        """The whole statement.

        :param name: name of the table to create, quoted and with its schema.
        """
        tokens = _tokens(",".join(map(str, self._elements)))
        # Under another name the old one may not stand before a column, where it is not needed.
        marks = [index for index, token in enumerate(tokens) if token.kind != "space"]
        for one, dot in pairwise(marks):
            is_name = tokens[one].kind in ("word", "quoted") and _normalize_name(tokens[one].name) == _normalize_name(
                self.table
            )
            if is_name and tokens[dot].text == ".":
                tokens[one] = tokens[dot] = _Token("space", "")
        return f"CREATE TABLE {name} ({_text(tokens)}){self._options}"

    def _edit(self, column: str) -> _Element:
        for element in self._elements:
            if element.column is not None and _normalize_name(element.column) == _normalize_name(column):
                self.edited.add(_normalize_name(column))
                return element
        raise DbSmartError(f"The table {self.table!r} has no column {column!r}. Nothing was changed.")

    def _columns_of(self, element: _Element, piece: _Piece) -> set[str]:
        """Folded names of the columns that a constraint is on, or that an expression of a column names."""
        if element.column is not None and piece.kind not in ("check", "generated"):
            return {_normalize_name(element.column)}
        own = {_normalize_name(element.column)} if element.column is not None else set()
        return own | piece.names & {_normalize_name(column) for column in self.columns}

    def _remove(self, wanted: Callable[[_Piece], bool]) -> bool:
        """Take constraints out, and the ``DEFERRABLE`` of a column's foreign key with it."""
        found = False
        for element in list(self._elements):
            dropped = ""
            for piece in list(element.pieces):
                if wanted(piece) or (dropped == "foreign" and piece.kind == "deferrable"):
                    self.constrained |= self._columns_of(element, piece)
                    dropped, found = "foreign" if piece.kind in ("foreign", "deferrable") else piece.kind, True
                    element.remove(piece)
                else:
                    dropped = ""
            if not element.pieces:
                self._elements.remove(element)
        return found


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
    """Make a table anew with a changed definition, and move everything that the old one had.

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
            work.run(change, {_normalize_name(name): sql for name, sql in (values or {}).items()})
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
        """What an index may name as columns, folded."""
        tokens = _tokens(self.sql) if self.kind == "index" else []
        start = next((index for index, token in enumerate(tokens) if token.text == "("), 0)
        return _identifiers(_text(tokens[start:]))


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
        known = {_normalize_name(column) for column, _ in self._columns(self.table)}
        if query and (what == "CHECK" or {_normalize_name(column) for column in columns} <= known):
            with suppress(sa.exc.DBAPIError):  # it names a column that is new
                count = self._rows(query)[0][0] or 0
        if count:
            rows = f"{counted(count, *verb)} {text}"
        return RowsInTheWay(failure.message, f"{rows}. Nothing was changed. ")

    def failed(self, cause: str, advice: str = "Mend the cause") -> DbSmartError:
        """An error that says what was kept."""
        return DbSmartError(
            f"Cannot rebuild the table {self.table!r}: {cause}. Nothing of it was kept. {advice} and start again."
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
            raise self.failed(f"there is a table {self.new!r} already", "Drop it")
        facts, violations, broken = self._facts(), self._violations(), self._broken()
        change(definition)
        self._definition = definition
        dropped = {_normalize_name(column) for column in columns} - {
            _normalize_name(column) for column in definition.columns
        }
        self._rows(definition.render(new))
        if self.would_cascade():
            raise self.failed(
                "a table references it and PRAGMA foreign_keys is on, so that rows would be deleted with it",
                "Switch the pragma off, outside a transaction,",
            )
        with self._pragma("defer_foreign_keys"):  # a row that was in the wrong before must not stop the others
            self._copy(definition, [_normalize_name(column) for column in columns], values)
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
            failure = self.failed(text, "Mend the rows")
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
        names = {*columns, *map(_normalize_name, definition.columns)}
        rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in names), None)
        if rowid is not None and not definition.without_rowid:
            targets.append(rowid)  # first: a column that is the rowid itself has the last word
            sources.append(rowid)
        for column in ordinary:
            if _normalize_name(column) in values or _normalize_name(column) in columns:
                targets.append(self._quote(column))
                sources.append(values.get(_normalize_name(column), targets[-1]))
        unknown = values.keys() - set(map(_normalize_name, ordinary))
        if unknown:
            raise self.failed(f"it has no column {', '.join(sorted(map(repr, unknown)))} to give values")
        old, new = self._at(self.table), self._at(self.new)
        # OR ABORT, as a conflict clause of the table could drop rows; NOT INDEXED, for the order of the rows.
        self._rows(
            f"INSERT OR ABORT INTO {new} ({', '.join(targets)}) SELECT {', '.join(sources)} FROM {old} NOT INDEXED"
        )
        counts = [self._rows(f"SELECT count(*) FROM {table}")[0][0] for table in (old, new)]
        if counts[0] != counts[1]:
            raise self.failed(f"of {counts[0]} rows {counts[1]} were copied", "Report this")

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
                *(_normalize_name(column) for column, _ in self._columns(self.table)),
            }
            if used & dropped:
                if used <= dropped:
                    continue
                raise self.failed(f"the index {item.name!r} is on a dropped column too", "Drop that index first")
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
            quoted = {_normalize_name(token.name) for token in _tokens(item.sql) if token.text.startswith('"')}
            if quoted & dropped and _normalize_name(self.table) in _identifiers(item.sql):
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
            _Fact("column", (_normalize_name(row[1]),), tuple(row[1:]))
            for row in self._rows("SELECT * FROM pragma_table_xinfo(?, ?) ORDER BY cid", self.table, self._schema)
        ]
        others = [
            _Fact("foreign key", tuple(map(_normalize_name, own)), (parent, *more))
            for _, own, parent, more in self._foreign_keys(self.table)
        ]
        stored = {item.name: item for item in self._stored("index")}
        for name, *more in self._rows(
            'SELECT name, "unique", origin, partial FROM pragma_index_list(?, ?)', self.table, self._schema
        ):
            parts = self._rows(
                'SELECT name, "desc", coll FROM pragma_index_xinfo(?, ?) WHERE key ORDER BY seqno', name, self._schema
            )
            used = {_normalize_name(part[0]) for part in parts if part[0] is not None}
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
