"""A database as it was at one moment, to be put back many times: cheaper than what led to it."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from tests.harness.databases import engine_of


def empty(url: URL | str) -> None:
    """Take all away from a database, as a whole: dropping table by table takes longer than a boot."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        for name in glob.glob(f"{glob.escape(str(parsed.database))}*"):
            os.unlink(name)
        return
    what = "SCHEMA public" if parsed.get_backend_name() == "postgresql" else f"DATABASE `{parsed.database}`"
    with engine_of(parsed).begin() as connection:
        connection.exec_driver_sql(f"DROP {what}{' CASCADE' * ('SCHEMA' in what)}")
        connection.exec_driver_sql(f"CREATE {what}")


class Saved:
    """What a database has now; :meth:`put_back` makes it that again, and the end of the context forgets it.

    The file on SQLite; on PostgreSQL a database that is the template of those that are put back; the statements that
    make it on MariaDB, which has no templates.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._backend = self._url.get_backend_name()
        self._template = f"{self._url.database}_saved"
        self._path = Path(str(self._url.database))
        self._file: bytes | None = None
        self._statements: list[tuple[str, Any]] = []
        if self._backend == "sqlite":
            self._file = self._path.read_bytes() if self._path.exists() else None
        elif self._backend == "postgresql":
            self._admin(f"CREATE DATABASE {self._template} TEMPLATE {self._url.database}")
        else:
            self._read()

    def __enter__(self) -> Saved:
        return self

    def __exit__(self, *_: object) -> None:
        if self._backend == "postgresql":
            self._admin(f"DROP DATABASE {self._template}")

    def put_back(self) -> None:
        """Make the database what it was; on PostgreSQL whoever is connected is thrown out."""
        if self._backend == "postgresql":
            name = self._url.database
            self._admin(f"DROP DATABASE {name} WITH (FORCE)", f"CREATE DATABASE {name} TEMPLATE {self._template}")
            return
        empty(self._url)
        if self._file is not None:
            self._path.write_bytes(self._file)
        if not self._statements:
            return
        with engine_of(self._url).begin() as connection:
            for text, values in self._statements:
                connection.exec_driver_sql(text, values)

    def _admin(self, *texts: str) -> None:
        engine = engine_of(self._url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for text in texts:
                connection.exec_driver_sql(text)

    def _read(self) -> None:
        """Write down what makes the tables, their rows and the views again."""
        with engine_of(self._url).connect() as connection:
            quote = connection.dialect.identifier_preparer.quote_identifier
            # The tables of a foreign key may come later than the key.
            self._statements.append(("SET SESSION foreign_key_checks = 0", ()))
            for name in sa.inspect(connection).get_table_names():
                text = connection.exec_driver_sql(f"SHOW CREATE TABLE {quote(name)}").one()[1]
                self._statements.append((text.replace("%", "%%"), ()))
                rows = [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {quote(name)}")]
                if rows:
                    places = ", ".join(["%s"] * len(rows[0]))
                    self._statements.append((f"INSERT INTO {quote(name)} VALUES ({places})", rows))
            for name in sa.inspect(connection).get_view_names():
                text = connection.exec_driver_sql(f"SHOW CREATE VIEW {quote(name)}").one()[1]
                self._statements.append((text.replace("%", "%%"), ()))
