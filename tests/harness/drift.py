"""Models, and what ``diff`` finds of them."""

from __future__ import annotations

import json
import warnings
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.drift.comparison import Comparison
from aurum_harmony.db_smart.drift.differences import Difference
from aurum_harmony.db_smart.store.database import Database
from tests.harness.project import Project
from tests.harness.servers import query

#: The kinds of databases whose own reader is there.
DIALECTS = ("sqlite", "postgresql", "mariadb")


def models(db: SQLAlchemy) -> None:
    db.Table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(40), nullable=False, unique=True),
        sa.Column("age", sa.Integer, index=True),
    )
    db.Table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.CheckConstraint("user_id > 0", name="positive"),
    )


def found(project: Project, *args: str) -> list[tuple[str, str, str | None]]:
    """What ``diff`` finds: action, kind, name with the table."""
    result = project.run("diff", "--json", *args)
    assert result.exit_code == 0, result.output
    (database,) = json.loads(result.stdout)["databases"]
    return [
        (one["action"], one["kind"], ".".join(filter(None, (one["table"], one["name"]))))
        for one in database["differences"]
    ]


def differences(url: URL | str | sa.Engine, metadata: sa.MetaData) -> list[Difference]:
    """What a database and models do not have alike, by the comparison with a scratch place."""
    engine = url if isinstance(url, sa.Engine) else sa.create_engine(url, poolclass=sa.pool.NullPool)
    drift = Comparison().of(Database("default", None, engine), metadata)
    assert drift.weaker is None
    return drift.differences


def told(found: list[Difference]) -> list[tuple[str, str, str, list[str]]]:
    """Differences in short: side, kind, path, and the facets that differ."""
    return [(one.side, one.kind, one.path, [*one.changes]) for one in found]


def by_alembic(url: URL, metadata: sa.MetaData) -> list[Any]:
    """What Alembic's own comparison finds."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_schemas": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    return [one for change in found for one in (change if isinstance(change, list) else [change])]


def execute(url: URL, *statements: str) -> None:
    """Send statements past everything."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def scratch_databases(url: URL) -> list[str]:
    """The scratch databases that are there for a database of MariaDB."""
    whose = str(url.database)[:18]
    return [name for (name,) in query(url, "SHOW DATABASES") if name.startswith(f"db_smart_scratch_{whose}")]
