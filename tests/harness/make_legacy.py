"""Make a legacy database: a ``users`` table from before the personal fields, filled with rows.

``python -m tests.harness.make_legacy URL [--rows 100000]``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("username", sa.String(80), nullable=False, unique=True),
    sa.Column("email", sa.String(255), nullable=False, unique=True),
    sa.Column("password_hash", sa.String(255), nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("legacy_note", sa.Text),
)


def rows(count: int) -> Iterator[dict[str, Any]]:
    """The rows of the table, the same at every call."""
    start = datetime(2019, 1, 1)
    for number in range(1, count + 1):
        yield {
            "id": number,
            "username": f"user{number}",
            "email": f"user{number}@example.com",
            "password_hash": f"pbkdf2:sha256:{number:064x}",
            "created_at": start + timedelta(minutes=number),
            "active": number % 7 != 0,
            "legacy_note": f"note ü {number}" if number % 3 else None,
        }


def fill(engine: sa.Engine, count: int) -> None:
    """Make and fill the table.

    :param count: how many rows.
    """
    metadata.create_all(engine)
    with engine.begin() as connection:
        batch: list[dict[str, Any]] = []
        for row in rows(count):
            batch.append(row)
            if len(batch) == 5_000:
                connection.execute(users.insert(), batch)
                batch = []
        if batch:
            connection.execute(users.insert(), batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    fill(sa.create_engine(arguments.url), arguments.rows)
    print(f"Made users with {arguments.rows} rows.")
