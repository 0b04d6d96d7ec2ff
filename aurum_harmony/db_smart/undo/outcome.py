"""What taking runs back comes to, and what was taken back, as a person is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import one_line
from .values import Loss


@dataclass
class Undoing:
    """What taking one run back comes to.

    :ivar does: what would be done, in this order.
    :ivar gone: what is no longer there.
    :ivar losses: what would be lost.
    :ivar perhaps: what an interrupted try of the run may or may not have made.
    :ivar unforeseen: of a revision of Alembic, what its ``downgrade()`` may take away that cannot be counted.
    :ivar stays: what cannot be taken back and stays as it is.
    :ivar refusals: why it cannot be taken back.
    """

    number: int
    name: str
    does: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    perhaps: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def objections(self, *, archive: bool, discard: bool) -> Iterator[str]:
        """Why it is not done, with these options.

        :param archive: whether what would be lost is copied first.
        :param discard: whether it may be lost.
        """
        yield from self.refusals
        if not (archive or discard):
            yield from (f"{one} would be lost: --archive copies them first, --discard does not" for one in self.losses)
        if not discard:
            said = "perhaps made by this run, which was interrupted there; --discard takes it to be so"
            yield from (f"{what}: {said}" for what in self.perhaps)
            said = "what that takes away cannot be counted, nor archived; --discard agrees to it"
            yield from (f"{one_line(what)}: {said}" for what in self.unforeseen)


@dataclass(frozen=True)
class Undone:
    """A run that was taken back.

    :ivar archived: names of the tables that keep what it held, and how many rows each has.
    :ivar lost: what was lost.
    """

    number: int
    name: str
    archived: list[tuple[str, int]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
