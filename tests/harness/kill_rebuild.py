"""Kill a table rebuild at each statement boundary: ``python -m tests.harness.kill_rebuild FILE JOURNAL_MODE``.

A forked process rebuilds a table and kills itself with SIGKILL before or after its n-th statement that writes, or the
commit, for every n until one gets through. What the next connection finds must be the old database or the new one.
Statements that only read are passed by: a kill there is the same as one after the write before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.dialects.sqlite.rebuild import rebuild
from aurum_harmony.db_smart.dialects.sqlite.table_sql import TableSql
from aurum_harmony.db_smart.store.database import Database, begin
from tests.harness.crash import ended, forked

TABLES = """
CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT);
CREATE TABLE child (t_id INT REFERENCES t (id) ON DELETE CASCADE);
CREATE INDEX ix ON t (name);
CREATE TRIGGER tr AFTER DELETE ON t BEGIN SELECT 1; END;
CREATE VIEW v AS SELECT name FROM t;
WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
    INSERT INTO t (name) SELECT hex(randomblob(100)) FROM n;
INSERT INTO child SELECT id FROM t;
DELETE FROM t WHERE id = 500;
"""


def change(table: TableSql) -> None:
    """The change: one more column, and another type."""
    table.set_type("name", "VARCHAR(200)")
    table.add_column("more INTEGER NOT NULL DEFAULT 7")


def rebuild_and_die(path: Path, boundary: int) -> None:
    """Rebuild; die by SIGKILL at a statement boundary."""
    count = 0

    def step(*event: Any) -> None:
        nonlocal count
        if len(event) > 2 and event[2].startswith(("SELECT", "EXPLAIN")):
            return
        count += 1
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    with Database("default", None, engine).connect() as connection:
        begin(connection)
        for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
            sa.event.listen(connection, name, step)
        rebuild(connection, "t", change)
        connection.commit()
        step()


def content(path: Path) -> list[Any]:
    """All that a new connection finds."""
    with closing(sqlite3.connect(path)) as driver:
        assert driver.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        driver.execute("SELECT * FROM v")
        return [*driver.iterdump(), *driver.execute("SELECT * FROM sqlite_sequence")]


def main() -> None:
    """Kill at each boundary and print the count as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a SQLite database that does not exist")
    parser.add_argument("journal_mode")
    arguments = parser.parse_args()
    path = Path(str(make_url(arguments.url).database))
    with closing(sqlite3.connect(path)) as driver:
        driver.execute(f"PRAGMA journal_mode = {arguments.journal_mode}")
        driver.executescript(TABLES)
    original = path.read_bytes()
    old = content(path)
    assert ended(forked(rebuild_and_die, path, 0)) == 0
    new = content(path)
    assert old != new
    counts = Counter(kills=0, old=0, new=0, other=0)
    while True:
        for suffix in ("", "-journal", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        path.write_bytes(original)
        code = ended(forked(rebuild_and_die, path, counts["kills"] + 1))
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        found = content(path)
        counts["kills"] += 1
        counts["old" if found == old else "new" if found == new else "other"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
