"""The ``CREATE TABLE`` of a SQLite table: read as tokens, changed piece by piece, and written again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ...errors import DbSmartError

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
#: A name that needs no quotes.
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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


def tokenize(sql: str) -> list[_Token]:
    """The words of SQL with the space between them, none of it lost."""
    return [_Token(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(sql)]


def _significant(tokens: Iterable[_Token]) -> list[_Token]:
    return [token for token in tokens if token.kind != "space"]


def sql_text(tokens: Iterable[_Token]) -> str:
    """Tokens as SQL again."""
    return "".join(token.text for token in tokens)


def normalize_name(name: str) -> str:
    """A name as SQLite compares it: in ASCII it does not tell upper from lower case, elsewhere it does."""
    return name.encode().lower().decode()


def spelled_alike(sql: str) -> str:
    """SQL in one spelling: without comments, needless quotes and blanks, and in lower case outside of texts.

    SQLite keeps a definition as it was written, so that two are only the same when they are spelled alike.
    """
    words = [
        token.text
        if token.kind == "string" or (token.kind == "quoted" and not _PLAIN_NAME.fullmatch(token.name))
        else normalize_name(token.name if token.kind == "quoted" else token.text)
        for token in _significant(tokenize(sql))
    ]
    text = " ".join(words)
    while text.startswith("( ") and _closes(words) == len(words) - 1:
        words = words[1:-1]
        text = " ".join(words)
    return text


def _closes(words: list[str]) -> int:
    """Where the parenthesis closes that the first word opens."""
    depth = 0
    for index, word in enumerate(words):
        depth += (word == "(") - (word == ")")
        if not depth:
            return index
    return -1


def identifiers(sql: str, also: str = "") -> set[str]:
    """What may be a column in an expression or a list: the identifiers that are no functions, normalized.

    :param also: another kind of token that is one.
    """
    kinds = ("word", "quoted", also)
    tokens = [*_significant(tokenize(sql)), _Token("other", "")]
    return {
        normalize_name(one.name)
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


def listed(sql: str) -> tuple[str, ...]:
    """The normalized names that the first list in parentheses begins its items with."""
    return tuple(map(normalize_name, _listed(_significant(tokenize(sql)))))


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
        return cls(kind, name, sql_text(tokens[:end]), sql_text(tokens[end:]))

    @property
    def names(self) -> set[str]:
        """The identifiers between the first parentheses, normalized."""
        depth, inside = 0, []
        for token in tokenize(self.text):
            depth += (token.key == "(") - (token.key == ")")
            if depth:
                inside.append(token)
            elif inside:
                break
        lists = ("unique", "primary", "foreign")  # where even 'x' is a column
        return identifiers(sql_text(inside), "string" if self.kind in lists else "")

    def refers(self, column: str | None) -> tuple[list[str], tuple[str, tuple[str, ...]] | None]:
        """The columns that it is on, and the table and columns that it references.

        :param column: whose constraint it is; ``None`` for one of the table.
        """
        if self.kind == "check":
            return [], None
        tokens = _significant(tokenize(self.text))
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
        for token in tokenize(self.text):
            depth += token.key == "("
            inside += [token] if depth else []
            depth -= token.key == ")"
            if inside and not depth:
                break
        return sql_text(inside)


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
        self.lead, tokens = sql_text(tokens[:start]), tokens[start:]
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
    :ivar options: what stands behind the parentheses.
    :ivar without_rowid: whether it is a ``WITHOUT ROWID`` table.
    :ivar edited: normalized names of the columns whose definition was changed.
    :ivar constrained: normalized names of those that were added or dropped, or whose constraints were.
    :raises DbSmartError: the text is no definition of an ordinary table.
    """

    def __init__(self, sql: str) -> None:
        tokens = tokenize(sql)
        depth, cuts = 0, []
        for index, token in enumerate(tokens):
            depth -= token.key == ")"
            if depth == (token.key == ",") and token.key in ("(", ",", ")"):
                cuts.append(index)
            depth += token.key == "("
        head = _significant(tokens[: cuts[0]]) if cuts else []
        if depth or len(cuts) < 2 or "TABLE" not in [token.key for token in head[1:3]] or head[1].key == "VIRTUAL":
            raise DbSmartError(
                f"This does not define an ordinary table, so it cannot be edited: {sql}. Nothing was changed."
            )
        self.table = head[-1].name
        self._elements = [_Element(tokens[start + 1 : end]) for start, end in pairwise(cuts)]
        self.options = sql_text(tokens[cuts[-1] + 1 :])
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
            and normalize_name((piece.refers(element.column)[1] or ("", ()))[0]) == normalize_name(table)
            for element in self._elements
            for piece in element.pieces
        )

    def set_type(self, column: str, sql_type: str) -> None:
        """Give a column another type; a ``COLLATE`` that comes with it replaces the column's own."""
        element = self._edit(column)
        element.put("type", sql_type)
        if any(
            piece.kind == "primary" and self._columns_of(one, piece) == {normalize_name(column)}
            for one in self._elements
            for piece in one.pieces
        ):
            self.constrained.add(normalize_name(column))  # an INTEGER key is the rowid itself, any other has an index
        if "COLLATE" in [token.key for token in tokenize(sql_type)]:
            element.put("collate", None)
            self.constrained.add(normalize_name(column))

    def checks(self, name: str) -> list[str]:
        """The conditions of the checks that SQLite calls so when a row breaks them: by name, or by what they say."""
        pieces = [piece for element in self._elements for piece in element.pieces if piece.kind == "check"]
        named = [
            piece for piece in pieces if piece.name is not None and normalize_name(piece.name) == normalize_name(name)
        ]
        found = named or [
            piece for piece in pieces if piece.name is None and piece.expression[1:-1].strip() == name.strip()
        ]
        return [piece.expression for piece in found]

    @property
    def pieces(self) -> list[tuple[str | None, str, str | None, str]]:
        """Its parts in their order: column (``None`` for one of the table), kind, name of the constraint, text."""
        return [(one.column, piece.kind, piece.name, piece.text) for one in self._elements for piece in one.pieces]

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
        element = _Element(tokenize(f" {sql}"))
        self._elements.insert(len(self.columns), element)
        self.constrained.add(normalize_name(element.column or ""))

    def drop_column(self, column: str) -> None:
        """Drop a column, and the constraints on it alone.

        :raises DbSmartError: it is in the primary key, or in a constraint or an expression with other columns.
        """
        element = self._edit(column)
        dropped = normalize_name(column)
        if len(self.columns) == 1:
            raise DbSmartError(
                f"The column {column!r} is the only one of the table {self.table!r}, so it cannot be dropped. "
                "Nothing was changed. Drop the table."
            )
        used = [piece for piece in element.pieces if piece.kind == "primary"]
        alone: list[_Piece] = []
        for other in self._elements:
            for piece in other.pieces if other is not element else ():
                columns = self._columns_of(other, piece)
                if dropped in columns:
                    (alone if columns == {dropped} and piece.kind != "primary" else used).append(piece)
        if used:
            named = ", ".join(repr(" ".join(piece.text.split())) for piece in used)
            raise DbSmartError(
                f"The column {column!r} of the table {self.table!r} cannot be dropped, because it is used in {named}. "
                "Nothing was changed. Drop that first."
            )
        self._elements.remove(element)
        self._remove(lambda piece: piece in alone)
        self.constrained.add(dropped)

    def add_constraint(self, sql: str) -> None:
        """Add a constraint of the table."""
        element = _Element(tokenize(f" {sql}"))
        self._elements.append(element)
        for piece in element.pieces:
            self.constrained |= self._columns_of(element, piece)

    def set_check(self, condition: str, new: str) -> None:
        """Give the checks of a condition another one.

        :param condition: as in :attr:`all_checks`, with its parentheses; ``new`` likewise.
        """
        for element in self._elements:
            for piece in element.pieces:
                if piece.kind == "check" and piece.expression == condition:
                    piece.text = piece.text.replace(condition, new)
                    self.constrained |= self._columns_of(element, piece)

    def drop_constraint(self, name: str) -> None:
        """Drop a named constraint, of the table or of a column.

        :raises DbSmartError: there is no constraint of that name.
        """
        if not self._remove(
            lambda piece: piece.name is not None and normalize_name(piece.name) == normalize_name(name)
        ):
            raise DbSmartError(f"The table {self.table!r} has no constraint {name!r}. Nothing was changed.")

    def render(self, name: str) -> str:
        """The whole statement.

        :param name: name of the table to create, quoted and with its schema.
        """
        tokens = tokenize(",".join(map(str, self._elements)))
        # Under another name the old one may not stand before a column, where it is not needed.
        marks = [index for index, token in enumerate(tokens) if token.kind != "space"]
        for one, dot in pairwise(marks):
            is_name = tokens[one].kind in ("word", "quoted") and normalize_name(tokens[one].name) == normalize_name(
                self.table
            )
            if is_name and tokens[dot].text == ".":
                tokens[one] = tokens[dot] = _Token("space", "")
        return f"CREATE TABLE {name} ({sql_text(tokens)}){self.options}"

    def _edit(self, column: str) -> _Element:
        for element in self._elements:
            if element.column is not None and normalize_name(element.column) == normalize_name(column):
                self.edited.add(normalize_name(column))
                return element
        raise DbSmartError(f"The table {self.table!r} has no column {column!r}. Nothing was changed.")

    def _columns_of(self, element: _Element, piece: _Piece) -> set[str]:
        """Folded names of the columns that a constraint is on, or that an expression of a column names."""
        if element.column is not None and piece.kind not in ("check", "generated"):
            return {normalize_name(element.column)}
        own = {normalize_name(element.column)} if element.column is not None else set()
        return own | piece.names & {normalize_name(column) for column in self.columns}

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
