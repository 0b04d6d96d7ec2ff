"""The names of the commands, of which a server that boots needs no more."""

from __future__ import annotations

from typing import Any

import click

HELP = "Keep the database up to date with this code."


class Commands(dict[str, click.Command]):
    """The commands of ``flask db-smart`` by name, imported when one of them is asked for.

    A server never asks, and importing them takes longer than a boot.
    """

    def __init__(self) -> None:
        names = ("migrate", "status", "diff", "new", "lint", "explain", "history", "stamp", "snapshots", "restore")
        more = ("watch", "branch", "undo", "unlock", "reset-flag", "fleet")
        super().__init__(dict.fromkeys((*names, *more)))  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> click.Command:
        if name == "fleet":
            from .fleet.cli import group as fleet

            return fleet
        from .cli import group

        return group.commands[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The command of a name."""
        if name in self:
            return self[name]
        return default

    def values(self) -> Any:
        """All commands."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """All commands with their names."""
        return [(name, self[name]) for name in self]
