"""Kill a comparison with a MariaDB database: ``python -m tests.harness.kill_diff_mariadb URL``.

A forked process compares, with a pending migration, and kills itself with SIGKILL before or after its n-th statement,
for every n until one gets through. The next comparison must find the same, and leave no scratch database.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.drift.comparison import Comparison, Drift
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database
from tests.harness.crash import ended, forked
from tests.harness.drift import scratch_databases
from tests.harness.servers import query, wait_until


def models() -> sa.MetaData:
    """Two tables."""
    metadata = sa.MetaData()
    sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.ForeignKey("parents.id")),
        sa.Column("n", sa.Integer, index=True),
    )
    return metadata


def compare(url: URL, boundary: int) -> Drift:
    """Compare; die by SIGKILL at a statement boundary."""
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    for name in ("before_cursor_execute", "after_cursor_execute"):
        sa.event.listen(database.engine, name, step)
    pending = Preview("more", "new", script=["ALTER TABLE users ADD COLUMN more INTEGER"])
    return Comparison().of(database, models(), [pending])


def free(url: URL) -> bool:
    """Whether the server has noticed that the process is gone."""
    return all(query(url, f"SELECT IS_FREE_LOCK('{name}')") == [(1,)] for name in scratch_databases(url))


def main() -> None:
    """Kill at each boundary and print the count as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of an empty database")
    url = make_url(parser.parse_args().url)
    models().create_all(sa.create_engine(url, poolclass=sa.pool.NullPool))
    expected = compare(url, 0)
    assert [one.path for one in expected.differences] == ["users.more"], expected
    counts = Counter(kills=0, left=0, lost=0)
    while True:
        code = ended(forked(compare, url, counts["kills"] + 1))
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        counts["kills"] += 1
        wait_until(lambda: free(url), "the server still has the session of a process that was killed")
        counts["left"] += len(scratch_databases(url))
        assert compare(url, 0) == expected
        counts["lost"] += len(scratch_databases(url))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
