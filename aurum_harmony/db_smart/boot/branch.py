"""Which database each Git branch has, and leading a process to those of the branch that is checked out."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask

from ..errors import ConfigError, DbSmartError
from ..loading.git import DETACHED, Checkout
from ..notices import logger_of, notice
from ..settings import Settings
from ..store.branches import BranchDatabases, Kept, branch_databases
from ..store.database import Database

_logger = logger_of(__name__)


class Branches:
    """The branches of the repository in which an application is, and the databases that they have.

    :param databases: the application's, by name, before an engine was led elsewhere.
    :ivar stores: those that are kept by branch, by name.
    :ivar entered: the branch whose databases this process uses.
    :raises ConfigError: one cannot be kept by branch, or the state of Git cannot be read.
    """

    def __init__(self, app: Flask, databases: Mapping[str, Database], settings: Settings) -> None:
        if settings.migration_urls:
            raise ConfigError(
                "DB_SMART_BRANCHES and DB_SMART_MIGRATION_URL cannot be combined. Nothing was changed. Leave the "
                "second one out while developing."
            )
        checkout = Checkout.find(app.root_path)
        if checkout is None or not checkout.readable:
            why = "is in no repository of Git" if checkout is None else "is in a repository whose refs are no files"
            raise ConfigError(
                f"The application {why} ({app.root_path}), so its branch is not known. Nothing was changed. Set "
                "DB_SMART_BRANCHES to False."
            )
        found = {name: branch_databases(database, settings.lock) for name, database in databases.items()}
        self.stores: dict[str, BranchDatabases] = {name: one for name, one in found.items() if one is not None}
        self.entered: str | None = None
        self._checkout = checkout
        self._named = settings.branches if isinstance(settings.branches, str) else None

    @property
    def branch(self) -> str:
        """The one that is checked out; :data:`~.loading.git.DETACHED` where none is."""
        return self._checkout.branch

    @property
    def main(self) -> str:
        """The branch that has the databases of the URLs.

        :raises ConfigError: that is not clear, or it is not there.
        """
        if self._named is not None and not self._checkout.has(self._named):
            raise ConfigError(
                f"DB_SMART_BRANCHES is {self._named!r}, but this repository has no branch of that name, which would "
                "have the database of the URL. Nothing was changed. Set it to True, or to the name of a branch."
            )
        main = self._named or self._checkout.main_branch()
        if main is None:
            raise ConfigError(
                "It is not clear which branch has the database of the URL: there is neither a default branch of "
                "'origin' nor 'main' or 'master'. Nothing was changed. Set DB_SMART_BRANCHES to the name of the branch."
            )
        return main

    def enter(self) -> None:
        """Lead the engines to the databases of the branch that is checked out; those that are missing are copied.

        :raises DbSmartError: a copy cannot be made; no engine was led elsewhere.
        """
        self._checkout.settle()
        branch = self.branch
        chosen = {store: self._chosen(store, branch) for store in self.stores.values()}
        for store, name in chosen.items():
            store.use(name)
            _logger.info("db-smart: the branch %r has the database %s", branch, store.at(name))
        self.entered = branch

    def current(self, store: BranchDatabases) -> str | None:
        """What the database of the branch that is checked out is called; ``None`` for that of the URL."""
        name = store.name_of(self.branch)
        return None if self.branch == self.main and not store.exists(name) else name

    def to_copy(self, store: BranchDatabases) -> str | None:
        """Path or name of what the next boot copies for this branch; ``None`` where its database is there."""
        name = self.current(store)
        return None if name is None or store.exists(name) else store.at(self._origin(store, self.branch))

    def _chosen(self, store: BranchDatabases, branch: str) -> str | None:
        """As :meth:`current`; it is copied where it is missing."""
        name = self.current(store)
        if name is not None and not store.exists(name):
            origin = self._origin(store, branch)
            if store.copy(origin, branch):
                notice(
                    _logger,
                    "db-smart: the branch %r has a database of its own from now on: %s, a copy of %s",
                    branch,
                    store.at(name),
                    store.at(origin),
                )
        return name

    def _origin(self, store: BranchDatabases, branch: str) -> str | None:
        """Which database a branch begins with: that of the nearest branch that it was made from.

        Else that of the URL: there is what the branch had, if another one has become the main branch.
        """
        seen, parent = {branch}, self._checkout.parent(branch)
        while parent is not None and parent not in seen:
            if store.exists(store.name_of(parent)):
                return store.name_of(parent)
            seen.add(parent)
            parent = self._checkout.parent(parent)
        return None

    def kept(self, store: BranchDatabases) -> list[tuple[Kept, bool]]:
        """The databases that branches have of their own, with the branch where it is there, and whether it is gone."""
        there = {store.name_of(branch): branch for branch in (*self._checkout.branches(), DETACHED)}
        return [
            (item._replace(branch=there.get(item.name, item.branch)), item.name not in there) for item in store.kept()
        ]

    def find(self, name: str) -> list[tuple[BranchDatabases, Kept]]:
        """What is kept for a branch, by its name or by that of a database.

        :raises DbSmartError: there is none, or this branch is checked out in any working tree.
        """
        pairs = [(store, item) for store in self.stores.values() for item, _ in self.kept(store)]
        found = [(store, item) for store, item in pairs if name in (item.branch, item.name)]
        if not found:
            raise DbSmartError(
                f"No database is kept for a branch {name!r}. Nothing was deleted. 'flask db-smart branch' lists them; "
                "that of the URL is never deleted."
            )
        used = self._checkout.checked_out()
        if any(item.branch in used or item.name == self.current(store) for store, item in found):
            raise DbSmartError(
                f"{name!r} is checked out, so its database is in use. Nothing was deleted. Check out another branch "
                "first."
            )
        return found

    def gone(self) -> list[tuple[BranchDatabases, Kept]]:
        """What is kept for branches that are not there any more."""
        return [(store, item) for store in self.stores.values() for item, gone in self.kept(store) if gone]
