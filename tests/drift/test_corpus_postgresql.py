"""Every form of type, constraint and index on PostgreSQL: made from the models, none differs; changed, each does."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.postgresql.describe import PostgresqlScratch, describe
from aurum_harmony.db_smart.drift.comparison import Comparison
from aurum_harmony.db_smart.drift.differences import Difference, compare
from aurum_harmony.db_smart.schema.described import Description
from aurum_harmony.db_smart.store.database import Database
from tests.harness import processes, servers
from tests.harness.corpus_postgresql import CHANGES, SCHEMAS, corpus


@dataclass
class Made:
    """A database that has the corpus, and the models as a scratch place shows them."""

    database: Database
    metadata: sa.MetaData
    models: Description

    def after(self, *statements: str) -> list[Difference]:
        """What differs after changes of the database, which are taken back."""
        with self.database.connect() as connection, connection.begin() as transaction:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            found = compare(self.models, describe(connection, SCHEMAS, _everything))
            transaction.rollback()
            return found


def _everything(schema: str | None, name: str) -> bool:
    return True


@pytest.fixture(scope="module")
def made(postgres: URL) -> Iterator[Made]:
    with servers.new_database(postgres) as url:
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        metadata = corpus()
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA shop")
            metadata.create_all(connection)
        database = Database("default", None, engine)
        with PostgresqlScratch.open(database, SCHEMAS) as scratch:
            scratch.make(metadata)
            models = scratch.describe(_everything)
        yield Made(database, metadata, models)


@pytest.mark.filterwarnings("ignore:Expression #")  # Alembic's, of a model that it cannot compare
def test_nothing_differs(made: Made) -> None:
    assert [f"{one.owner}: {one}" for one in Comparison().of(made.database, made.metadata).differences] == []
    with made.database.connect() as connection:
        count = len(alembics(connection, made.metadata))
    tables = len(made.metadata.tables)
    processes.results.append(
        f"an unchanged corpus of {tables} tables on PostgreSQL: diff finds 0 differences, Alembic's comparison {count}"
    )


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_found(made: Made, change: str) -> None:
    sql, kind, name, facet = CHANGES[change]
    found = [one for one in made.after(sql) if (one.kind, one.name) == (kind, name)]
    assert len(found) == 1, made.after(sql)
    if facet is None:
        assert found[0].side != "both"
    else:
        assert found[0].side == "both"
        assert facet in found[0].changes


def alembics(connection: sa.Connection, metadata: sa.MetaData) -> list[Any]:
    """What Alembic's comparison finds."""
    options = {"compare_type": True, "compare_server_default": True, "include_schemas": True}
    found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    return [single for one in found for single in (one if isinstance(one, list) else [one])]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Expression #")
def test_how_many_changes_alembic_finds(made: Made) -> None:
    """A figure for the documentation: those after which its comparison finds anything else than before."""
    found = set()
    with made.database.connect() as connection:
        before = sorted(map(str, alembics(connection, made.metadata)))
        connection.rollback()
        for name, (sql, *_) in CHANGES.items():
            connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    after = sorted(map(str, alembics(connection, made.metadata)))
                except Exception as error:  # it is Alembic's
                    after = [str(error)]
            found |= {name} if [_plain(one) for one in after] != [_plain(one) for one in before] else set()
            connection.rollback()
    processes.results.append(
        f"single changes of the database on PostgreSQL: diff finds {len(CHANGES)} of {len(CHANGES)}, Alembic's "
        f"comparison {len(found)}; not: {', '.join(name for name in CHANGES if name not in found)}"
    )
    assert 0 < len(found) <= len(CHANGES)


def _plain(text: str) -> str:
    """Without the places of objects in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE serials RENAME TO served; ALTER TABLE served RENAME TO serials; "
        "ALTER SEQUENCE serials_id_seq RENAME TO served_id_seq",
        "ALTER TABLE parents RENAME CONSTRAINT parents_key TO other",
        "ALTER TABLE parents RENAME CONSTRAINT paired TO other",
        "ALTER TABLE children RENAME CONSTRAINT fk_self TO other",
        "ALTER TABLE parents DROP CONSTRAINT uq_parents; CREATE UNIQUE INDEX other ON parents (a, b, c)",
        "ALTER INDEX ix_lower RENAME TO other",
        "CREATE TABLE part PARTITION OF partitioned FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "CREATE VIEW seen AS SELECT 1; CREATE MATERIALIZED VIEW kept AS SELECT 1",
        "DROP TABLE shop.big_serials; CREATE VIEW shop.big_serials AS SELECT 1 AS id",
        "ALTER TABLE serials SET (autovacuum_enabled = off)",
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; "
        "CREATE FOREIGN TABLE rows (n integer) SERVER files OPTIONS (filename '/dev/null')",
        "CREATE TABLE spatial_ref_sys (id integer); ALTER EXTENSION hstore ADD TABLE spatial_ref_sys",
    ],
)
def test_what_is_no_difference(made: Made, sql: str) -> None:
    assert made.after(sql) == []


def test_a_copy_is_like_its_source(made: Made) -> None:
    """What pending migrations are played on has all that the database has, by the same names."""
    with made.database.connect() as connection, PostgresqlScratch.open(made.database, SCHEMAS) as scratch:
        there = describe(connection, SCHEMAS, _everything)
        scratch.copy(connection)
        copy = scratch.describe(_everything)
    assert copy.things == there.things
    for place, table in there.tables.items():
        assert copy.tables[place] == table
    assert copy == there
