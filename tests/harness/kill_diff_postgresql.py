"""Kill processes that compare models with a PostgreSQL database: ``python -m tests.harness.kill_diff_postgresql URL``.

Each round, a forked process compares, with a migration pending, and kills itself by SIGKILL at its n-th boundary of a
statement (before it, after it, before the rollback), for every n until one gets through. Afterwards the server must
have exactly what it had before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.drift.comparison import Comparison
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database
from tests.harness.crash import ended, forked
from tests.harness.servers import wait_until

EVENTS = ("before_cursor_execute", "after_cursor_execute", "rollback")
PENDING = Preview(
    "pending",
    "new",
    script=[
        "ALTER TYPE level ADD VALUE 'more'",
        "ALTER TABLE users ADD COLUMN more integer",
        "CREATE INDEX CONCURRENTLY ix_more ON users (more)",
        "DROP TABLE shop.items",
    ],
)


def models() -> sa.MetaData:
    """Something of each kind, in two schemas."""
    metadata = sa.MetaData()
    level = sa.Enum("a", "b", name="level", metadata=metadata)
    sa.Sequence("numbers", metadata=metadata)
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("level", level, index=True, comment="how far"),
    )
    owner: sa.Column[int] = sa.Column("user_id", sa.ForeignKey("users.id"))
    sa.Table("items", metadata, sa.Column("id", sa.Integer, sa.Identity(), primary_key=True), owner, schema="shop")
    return metadata


def compare(url: str, die_at: int = 0) -> None:
    """Compare, and die at a boundary."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    count = 0

    def boundary(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for event in EVENTS:
        sa.event.listen(sa.Engine, event, boundary)
    drift = Comparison().of(Database("default", None, engine), models(), [PENDING])
    assert drift.counted == ["pending"], drift.uncounted
    assert drift.differences


def everything(connection: sa.Connection) -> list[Any]:
    """All that the catalogue has, once the other sessions have ended."""
    others = "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> {})"
    wait_until(
        lambda: bool(connection.scalar(sa.text(others.format("pg_backend_pid()")))), "a killed session does not end"
    )
    query = (
        "SELECT 'schema', nspname::text FROM pg_namespace UNION ALL SELECT 'relation', oid::text || relname FROM "
        "pg_class UNION ALL SELECT 'type', oid::text || typname FROM pg_type UNION ALL SELECT 'label', enumlabel::text "
        "FROM pg_enum UNION ALL SELECT 'column', attrelid::text || attname FROM pg_attribute UNION ALL "
        "SELECT 'constraint', oid::text || conname FROM pg_constraint ORDER BY 1, 2"
    )
    return [*connection.execute(sa.text(query)).all()]


def main() -> None:
    """Run the rounds and print their counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    url = parser.parse_args().url
    engine = sa.create_engine(make_url(url), poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA shop")
        models().create_all(connection)
    counts: Counter[str] = Counter(kills=0, remains=0)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = everything(connection)
        for number in itertools.count(1):
            code = ended(forked(compare, url, number))
            counts["remains"] += everything(connection) != before
            if code != -signal.SIGKILL:
                assert code == 0, number
                break
            counts["kills"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
