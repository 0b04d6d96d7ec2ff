"""Which changes of a column's type MariaDB and MySQL can make only while they block the table's writers.

The server knows, and refuses them when asked for ``LOCK=NONE``; this is for a dry run, which may not ask it. It was
found by trying all pairs of types on MariaDB 10.11; see also "InnoDB Online DDL Operations with the INSTANT Alter
Algorithm" in its manual.
"""

from __future__ import annotations

import re

#: Of which none becomes another one while the table is written to.
_KINDS = {
    *("tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double", "bit"),
    *("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set", "uuid", "inet4", "inet6"),
    *("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"),
    *("date", "datetime", "timestamp", "time", "year"),
}
#: Of which only the sign matters, and not how many digits are shown.
_NUMBERS = {"tinyint", "smallint", "mediumint", "int", "bigint", "float", "double"}
_SAME_KIND = {"integer": "int", "numeric": "decimal", "bool": "tinyint", "boolean": "tinyint", "json": "longtext"}
_SAME_KIND |= {"real": "double", "dec": "decimal", "fixed": "decimal", "nchar": "char", "nvarchar": "varchar"}
#: A type as a column's definition begins with it.
_TYPE = re.compile(
    r"(\w+)(?: precision)?(?:\(((?:'(?:[^']|'')*'|[^')])*)\))?((?: unsigned)?(?: zerofill)?)"
    r"( /\*M?!\d+ COMPRESSED\*/)?((?: CHARACTER SET \w+)?(?: COLLATE \w+)?)",
    re.IGNORECASE,
)
_MEMBER = re.compile(r"'((?:[^']|'')*)'")
_CHARACTER_SET = re.compile(r" CHARACTER SET (\w+)| COLLATE ([^\W_]+)", re.IGNORECASE)
#: Up to so many bytes, InnoDB takes one byte or two for the length of a value; up to so many, only one.
_EITHER, _SHORT = 127, 255


def type_of(definition: str) -> str:
    """The type that a definition begins with, with all that is said of it."""
    found = _TYPE.match(definition)
    return definition if found is None else found[0]


def character_set(definition: str) -> str | None:
    """The character set that a definition names; ``None`` where it has that of its table."""
    found = _CHARACTER_SET.search(_parts(definition)[4])
    return None if found is None else found[1] or found[2]


def blocks(old: str, new: str, width: int, *, mariadb: bool = True) -> bool:
    """Whether writers are blocked while a column gets another type; ``False`` where it is not known.

    :param old: the definition of the column.
    :param new: that which it is to have.
    :param width: how many bytes a character of the column can have.
    :param mariadb: whether the server is MariaDB, and not MySQL.
    """
    kind, had, sign, packed, text = _parts(old)
    new_kind, has, new_sign, new_packed, new_text = _parts(new)
    if kind != new_kind:
        return {kind, new_kind} <= _KINDS
    if kind not in _KINDS or text.lower() != new_text.lower():
        return False
    if bool(sign) != bool(new_sign) or bool(packed) != bool(new_packed):
        return True
    if kind in _NUMBERS:
        return False
    if kind in ("enum", "set"):
        before, after = _MEMBER.findall(had), _MEMBER.findall(has)
        same_size = _bytes(kind, len(before)) == _bytes(kind, len(after))
        return not same_size or [*map(str.lower, after[: len(before)])] != [*map(str.lower, before)]
    if kind in ("varchar", "varbinary") and had.isdigit() and has.isdigit():
        size, new_size = (int(length) * (width if kind == "varchar" else 1) for length in (had, has))
        short = _EITHER if mariadb else 0
        return not (size <= new_size and (size <= short or size > _SHORT or new_size <= _SHORT))
    return _plain(kind, had) != _plain(kind, has)


def _parts(definition: str) -> tuple[str, str, str, str, str]:
    """Of its type: the server's own word, what is in brackets, the sign, compression, character set and collation."""
    found = _TYPE.match(definition)
    if found is None:
        return "", "", "", "", ""
    word, arguments, sign, packed, text = found.groups(default="")
    return _SAME_KIND.get(word.lower(), word.lower()), arguments, sign, packed, text


def _plain(kind: str, arguments: str) -> str:
    """What is in brackets, with what stands for nothing."""
    default = {"decimal": "10,0", "char": "1", "binary": "1", "bit": "1", "year": "4"}.get(kind, "0")
    plain = arguments.replace(" ", "") or default
    return f"{plain},0" if kind == "decimal" and "," not in plain else plain


def _bytes(kind: str, members: int) -> int:
    """How many bytes a value has that is one of so many, or of which so many can be set."""
    if kind == "enum":
        return 1 if members <= 255 else 2
    return next(size for size in (1, 2, 3, 4, 8) if members <= 8 * size or size == 8)
