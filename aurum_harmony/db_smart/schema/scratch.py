"""A scratch place on the server of a database: there the models are made, to be described as the database is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from ..errors import DbSmartError
from .described import Description, Wanted

if TYPE_CHECKING:
    from ..store.database import Database


class NoScratch(DbSmartError):
    """There can be no scratch place, for want of a right; the message says of which."""


class Scratch(ABC):
    """A place of its own, of which nothing remains.

    :param database: whose server it is on.
    :param connection: leads there.
    :param schemas: of the tables, ``None`` for the usual one; each has a place of its own.
    """

    def __init__(self, database: Database, connection: sa.Connection, schemas: Collection[str | None]) -> None:
        self.database = database
        self.connection = connection
        self.schemas = schemas

    @property
    def engine(self) -> Engine:
        """One whose connections are all this one, for the listeners of models that make a connection of their own."""
        driver: Any = self.connection.connection.dbapi_connection
        outer, options = self.connection.engine, dict(self.connection.get_execution_options())
        options.pop("isolation_level", None)
        pool = NullPool(lambda: _Shared(driver), dialect=outer.dialect)
        return Engine(pool, outer.dialect, outer.url, execution_options=options, hide_parameters=outer.hide_parameters)

    @classmethod
    @abstractmethod
    def open(cls, database: Database, schemas: Collection[str | None]) -> AbstractContextManager[Scratch]:
        """Make a place, for as long as it is needed.

        :raises NoScratch: the role may not.
        """

    @abstractmethod
    def make(self, metadata: sa.MetaData) -> None:
        """Make all that the models define.

        :raises sqlalchemy.exc.DBAPIError: the database refuses something.
        """

    @abstractmethod
    def copy(self, source: sa.Connection) -> None:
        """Make what a database has, without its rows.

        :param source: leads to the database.
        """

    def run(self, statement: str) -> None:
        """Send a statement of a migration, as if the place were the database.

        :raises sqlalchemy.exc.DBAPIError: the database refuses it.
        """
        self.connection.exec_driver_sql(statement)

    @contextmanager
    def confining(self) -> Iterator[None]:
        """Keep within the place what others send through its connection."""
        yield

    @abstractmethod
    def describe(self, wanted: Wanted) -> Description:
        """What it has, with the names of schemas that the database itself has."""


class _Shared:
    """A driver connection that outlives those who use it: they neither end it nor its transaction."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def commit(self) -> None:
        """Nothing: all of it goes with the scratch place."""

    def rollback(self) -> None:
        """Nothing, likewise."""

    def close(self) -> None:
        """Nothing: the scratch place does so."""
