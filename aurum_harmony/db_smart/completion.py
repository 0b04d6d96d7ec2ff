"""What a shell offers when a person presses Tab: names of databases, snapshots, migrations, revisions,
branches and rules.

See https://click.palletsprojects.com/shell-completion/. Nothing is written, and what goes wrong offers nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING

import click
from flask.cli import ScriptInfo

if TYPE_CHECKING:
    from flask import Flask

    from .boot.planner import Planner

_Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _offering(find: Callable[[Flask, Planner, click.Context], Iterable[str]]) -> _Complete:
    """A function as Click calls it, by one that finds the words of an application."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        info = context.find_object(ScriptInfo)
        if info is None:
            return []
        # The line that is being typed must stay as it is, whatever is said meanwhile.
        with suppress(Exception), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            app = info.load_app()
            with app.app_context():
                given = context.params.get(parameter.name or "") or ()
                words = find(app, app.extensions["db_smart"].planner(app), context)
                return [word for word in words if word.startswith(begun) and word not in given]
        return []

    return complete


@_offering
def databases(app: Flask, planner: Planner, context: click.Context) -> Iterable[str]:
    """The names of the databases."""
    return planner.databases


@_offering
def snapshots(app: Flask, planner: Planner, context: click.Context) -> Iterable[str]:
    """The names of the snapshots, the newest first."""
    from .store.snapshot import listed

    names = context.params.get("names")
    files = [one for name, one in planner.databases.items() if one.path is not None and (not names or name in names)]
    return [item.path.name for database in files for item in reversed(listed(app, database))]


@_offering
def migrations(app: Flask, planner: Planner, context: click.Context) -> Iterable[str]:
    """The names of all migrations and revisions; which of them are pending only the databases know."""
    return [migration.name for migration in planner.migrations]


@_offering
def revisions(app: Flask, planner: Planner, context: click.Context) -> Iterable[str]:
    """The names of the revisions of Alembic."""
    return [] if planner.revisions is None else planner.revisions.by_name


@_offering
def branches(app: Flask, planner: Planner, context: click.Context) -> Iterable[str]:
    """The branches that have databases of their own; of one whose name was too long, the name of its database."""
    found = app.extensions["db_smart"].branches(app)
    kept = [item for store in found.stores.values() for item, _ in found.kept(store)]
    return dict.fromkeys(item.branch or item.name for item in kept)


def rules(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """The numbers of the rules."""
    from .schema.rules import RULES

    return [name for name in RULES if name.startswith(begun.upper())]
