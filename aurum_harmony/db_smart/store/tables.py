"""The tables of this extension in each database, and the clock of the database that they are written by."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from ..dialects.base import facts_of

#: How long a name the history can hold, characters.
MAX_NAME = 200
metadata = sa.MetaData()
_NAME = sa.String(MAX_NAME)
_DIGEST = sa.String(64)
#: MariaDB's TEXT holds 65,535 bytes.
_LONG = sa.Text().with_variant(sa.Text(2**24 - 1), "mysql", "mariadb")
#: A step that outlives the rollback of its effect would lose that effect, so none of MariaDB's engines without it.
_TRANSACTIONAL: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
history = sa.Table(
    "db_smart_history",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("checksum", _DIGEST, nullable=False),
    # Text, because the dialects' own types with microseconds cost a boot the import of all their drivers.
    sa.Column("applied_at", sa.String(26), nullable=False, comment="end of the run, UTC, ISO 8601"),
    sa.Column("duration_ms", sa.Float, nullable=False),
    sa.Column("applied_by", sa.String(255), nullable=False, comment="user@host"),
    sa.Column("outcome", sa.String(10), nullable=False, comment="applied, failed or taken back"),
    sa.Column("error", sa.Text, comment="why it failed; of what was applied without a run, how"),
    # Not in the tables of earlier releases, until a run adds them.
    sa.Column("release", sa.String(255), comment="what the application said that it is"),
    sa.Column("inverse", _LONG, comment="JSON: what takes it back"),
    sa.Index("ix_db_smart_history_name", "name"),  # likewise
    **_TRANSACTIONAL,
)
state = sa.Table(
    "db_smart_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False, comment="always 1"),
    sa.Column("database_id", sa.String(32), nullable=False),
    sa.Column("applied", _DIGEST, nullable=False, comment="digest of the history"),
    sa.Column("source", _DIGEST, nullable=False, comment="digest of the sources last applied whole"),
    sa.Column("databases", sa.Text, nullable=False, comment="JSON: names of all databases of those sources"),
    sa.Column("token", sa.BigInteger, nullable=False, comment="grows with every holder of the lease"),
    sa.Column("holder", sa.String(255), nullable=False, comment="host:process id"),
    sa.Column("lease_since", sa.BigInteger, nullable=False, comment="microseconds since 1970, this database's clock"),
    sa.Column("lease_expires", sa.BigInteger, nullable=False, comment="as lease_since; 0 when free"),
    sa.Column("lease_migration", _NAME, nullable=False, comment="what the holder is on"),
    **_TRANSACTIONAL,
)
progress = sa.Table(
    "db_smart_progress",
    metadata,
    sa.Column("migration", _NAME, primary_key=True),
    sa.Column("step", _DIGEST, primary_key=True, comment="see the module steps"),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("last_row_id", sa.BigInteger, nullable=False),
    sa.Column("detail", sa.Text, comment="JSON: what a statement returned, or how far a backfill is"),
    **_TRANSACTIONAL,
)
objects = sa.Table(
    "db_smart_objects",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("migration", _NAME, nullable=False),
    sa.Column("event", sa.String(20), nullable=False, comment="see the module memory"),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("schema_name", sa.String(255), nullable=False),
    sa.Column("table_name", sa.String(255), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    **_TRANSACTIONAL,
)
#: Made in the one database that a fleet is led from, by its commands; see :mod:`~.fleet.ledger`.
fleet_metadata = sa.MetaData()
#: Not the same as in another case, nor with other accents, whatever the server makes of texts otherwise.
_TENANT = _NAME.with_variant(sa.String(MAX_NAME, collation="utf8mb4_bin"), "mysql", "mariadb")
fleet = sa.Table(
    "db_smart_fleet",
    fleet_metadata,
    sa.Column("name", _TENANT, primary_key=True, comment="of the tenant"),
    sa.Column("database_id", sa.String(32), nullable=False, comment="what its own db_smart_state says; empty: unknown"),
    sa.Column("applied", sa.Text, nullable=False, comment="likewise; with the heads of Alembic"),
    sa.Column("source", _DIGEST, nullable=False, index=True, comment="digest of the sources last applied whole"),
    sa.Column("status", sa.String(10), nullable=False, index=True, comment="applied, waiting or failed"),
    sa.Column("error", sa.Text, comment="why the last run on it failed"),
    sa.Column("attempts", sa.Integer, nullable=False, comment="runs since the last one that succeeded"),
    sa.Column("duration_ms", sa.Float, nullable=False, comment="of the last run"),
    sa.Column("release", sa.String(255), comment="what the application said that it is"),
    sa.Column("at", sa.String(26), nullable=False, comment="end of the last run, UTC, ISO 8601"),
    **_TRANSACTIONAL,
)
fleet_lease = sa.Table(
    "db_smart_fleet_lease",
    fleet_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False, comment="always 1"),
    sa.Column("token", sa.BigInteger, nullable=False, comment="grows with every holder"),
    sa.Column("holder", sa.String(255), nullable=False, comment="host:process id"),
    sa.Column("expires", sa.BigInteger, nullable=False, comment="microseconds since 1970, this database's clock"),
    **_TRANSACTIONAL,
)
#: Of what is made only with ``DB_SMART_RELEASES``.
release_metadata = sa.MetaData()
#: A table of many models fills more than the 64 kilobytes of MariaDB's shortest.
_NAMES = sa.Text().with_variant(sa.Text(2**24 - 1), "mysql", "mariadb")
releases = sa.Table(
    "db_smart_releases",
    release_metadata,
    sa.Column("release", sa.String(255), primary_key=True),
    sa.Column("instance", sa.String(255), primary_key=True, comment="host, and what tells it from others"),
    sa.Column("started", sa.BigInteger, nullable=False, comment="microseconds since 1970, this database's clock"),
    sa.Column("seen_at", sa.BigInteger, nullable=False, comment="as started"),
    sa.Column("seen_until", sa.BigInteger, nullable=False, comment="as started; it serves no longer than that"),
    sa.Column("uses", _NAMES, nullable=False, comment="JSON: tables that its models map, with the columns"),
    **_TRANSACTIONAL,
)
contracts = sa.Table(
    "db_smart_contracts",
    release_metadata,
    sa.Column("migration", _NAME, primary_key=True),
    sa.Column("release", sa.String(255), nullable=False, comment="of whoever tried it last"),
    sa.Column("touches", _NAMES, nullable=False, comment="JSON: what it drops, renames and narrows"),
    sa.Column(
        "token", sa.BigInteger, nullable=False, comment="of the lease under which it is being done; 0 if it waits"
    ),
    sa.Column("looked", sa.BigInteger, nullable=False, comment="when it was tried last, microseconds since 1970"),
    **_TRANSACTIONAL,
)
#: The tables of this extension, which comparisons of models with the database leave out.
TABLE_NAMES = frozenset({*metadata.tables, *fleet_metadata.tables, *release_metadata.tables})
#: How the names of tables begin that keep what an undone migration held.
ARCHIVE = "db_smart_archive_"


def is_ours(name: str) -> bool:
    """Whether a table is one of this extension, or an archive of its, which no model has."""
    return name in TABLE_NAMES or name.startswith(ARCHIVE)


class epoch_us(sa.ColumnElement[int]):  # noqa: N801 - it stands for a function in SQL
    """The database's clock, in microseconds since 1970; no time zone and no change of it can touch it."""

    inherit_cache = True
    type = sa.BigInteger()


@compiles(epoch_us)
def _epoch_us(element: epoch_us, compiler: SQLCompiler, **_: Any) -> str:
    return clock(compiler.dialect.name)


def clock(dialect: str) -> str:
    """SQL for :class:`epoch_us`.

    :param dialect: SQLAlchemy's name of it.
    :raises sqlalchemy.exc.CompileError: there is none for it.
    """
    found = facts_of(dialect).clock
    if found is None:
        raise sa.exc.CompileError(f"There is no SQL for the clock of {dialect} in microseconds.")
    return found
