"""Reports on a terminal: tables that fit it, in which nothing is cut or broken that a person wants to copy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from .errors import plain

_INDENT, _GAP = "  ", "  "
#: So much of a line is kept for what stands in its last column, where that is long.
_SHARE, _LEAST = 3, 20
#: What stays on one line: a word, or a command in quotes.
_WORD = re.compile(r"(?:'[^']*'(?!\w)|\S)+")
_COLOURS = {
    "applied": "green",
    "failed": "red",
    "missing": "red",
    "pending": "yellow",
    "taken back": "yellow",
    "unknown": "yellow",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    :ivar cells: of each row, which fit into one line.
    :ivar right: whether they are numbers, which stand below each other by their ends.
    :ivar spare: whether it can be left out on a narrow terminal; the greatest goes first, 0 never.
    :ivar said: how a cell is said on a line of its own where the column is left out, and the row must not lack it.
    """

    title: str
    cells: Sequence[str]
    right: bool = False
    spare: int = 0
    said: str = "{}"


@dataclass(frozen=True)
class Screen:
    """A terminal.

    :ivar width: columns.
    """

    width: int
    colours: bool = False

    def table(
        self,
        columns: Iterable[Column],
        last: Column,
        below: Mapping[int, Sequence[str]] | None = None,
        whole: Iterable[int] = (),
    ) -> Iterator[str]:
        """The lines of a table. The last cell of a row is never cut: where it does not fit, it gets its own line.

        :param below: row number -> lines that follow it, as they are.
        :param whole: numbers of rows that are told without gaps, whatever is left out of the others.
        """
        used = [column for column in columns if any(column.cells)]
        room = max(map(_width, last.cells), default=0)
        room = min(room, max(self.width // _SHARE, _LEAST))
        left_out = []
        while used and self._taken(used) + room > self.width:
            least = max(used, key=lambda column: column.spare)
            if not least.spare:
                break
            used.remove(least)
            left_out.append(least)
        widths = [max(map(_width, (column.title, *column.cells))) for column in used]
        taken = self._taken(used)
        fits = taken + _width(last.title) <= self.width
        yield self._row([column.title for column in used], used, widths, last.title if fits else "")
        rows_that_lack_nothing = set(whole)
        for number, name in enumerate(last.cells):
            cells = [_safe(column.cells[number]) for column in used]
            row = self._row(cells, used, widths, _safe(name))
            if taken + _width(name) <= self.width:
                yield row
            else:
                yield self._row(cells, used, widths, "")
                yield f"{_INDENT * 2}{_safe(name)}"
            if number in rows_that_lack_nothing:
                found = [column for column in reversed(left_out) if column.cells[number]]
                yield from (f"{_INDENT * 2}{column.said.format(_safe(column.cells[number]))}" for column in found)
            yield from map(_safe, (below or {}).get(number, ()))

    @staticmethod
    def _taken(columns: Sequence[Column]) -> int:
        """How much of a line stands before the last column."""
        widths = (max(map(_width, (column.title, *column.cells))) + len(_GAP) for column in columns)
        return len(_INDENT) + sum(widths)

    def _row(self, cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], last: str) -> str:
        text = _INDENT
        for number, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
            blank = " " * (width - _width(cell))
            shown = self._painted(cell) if number == 0 else cell
            text += (f"{blank}{shown}" if column.right else f"{shown}{blank}") + _GAP
        return (text + last).rstrip()

    def _painted(self, word: str) -> str:
        """A word for a state in its colour."""
        colour = _COLOURS.get(word)
        return click.style(word, fg=colour) if self.colours and colour else word

    def ending(self, text: str, last: str, indent: str = _INDENT) -> Iterator[str]:
        """A text, and what a person may want to copy: behind it, or on a line of its own."""
        last = _safe(last)
        if not last or _width(f"{text}{_GAP}{last}") <= self.width:
            yield f"{text}{_GAP}{last}".rstrip()
        else:
            yield from self.wrapped(text)
            yield f"{indent}{last}"

    def wrapped(self, text: str) -> Iterator[str]:
        """A text broken between words; one that may hold a path is left to the terminal, for that has blanks too."""
        text = _safe(text)
        if _width(text) <= self.width or os.sep in text.replace("rows/s", ""):
            yield text
            return
        start = text[: len(text) - len(text.lstrip())]
        line, words = start, _WORD.findall(text)
        for word in words:
            if line.strip() and _width(f"{line} {word}") > self.width:
                yield line
                line = f"{start}{_INDENT}{word}"
            else:
                line += f"{'' if line == start else ' '}{word}"
        yield line

    def cut(self, text: str) -> str:
        """A text in one line, cut at the end if need be."""
        text = _safe(text)
        if _width(text) <= self.width:
            return text
        text = text[: self.width]
        while _width(text) > self.width - 1:
            text = text[:-1]
        return f"{text.rstrip()}…"


def took(milliseconds: float) -> str:
    """How long something took."""
    seconds = milliseconds / 1000
    if seconds < 1:
        return f"{milliseconds:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _width(text: str) -> int:
    """How many columns a text takes: of some scripts, a letter takes two."""
    from rich.cells import cell_len

    return cell_len(_safe(text))


def _safe(text: str) -> str:
    """A text in one line, on which no terminal acts."""
    return plain(text).replace("\n", " ").replace("\t", " ")
