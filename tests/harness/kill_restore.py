"""Kill processes that restore a snapshot, at random moments: ``python -m tests.harness.kill_restore JOURNAL KILLS``.

After each kill the database must be a sound one, as before or as the snapshot, and the lock must be free.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.store import snapshot
from aurum_harmony.db_smart.store.database import databases
from tests.harness.crash import ended, forked

ROWS = 1000


def fill(path: Path, journal: str, word: str) -> None:
    """Make a database of some megabytes whose every row holds a word."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE words (word TEXT, filler BLOB)")
        connection.executemany("INSERT INTO words VALUES (?, zeroblob(2000))", [(word,)] * ROWS)
        connection.commit()


def found(path: Path) -> str:
    """What a database holds: a word, or why it holds none."""
    with closing(sqlite3.connect(path)) as connection:
        sound = connection.execute("PRAGMA integrity_check").fetchall()
        words = connection.execute("SELECT word, count(*) FROM words GROUP BY word").fetchall()
    return str(words[0][0]) if sound == [("ok",)] and [count for _, count in words] == [ROWS] else "broken"


def main() -> None:
    """Kill, and print the count of what was found as JSON."""
    journal, kills = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, old = folder / "live.sqlite", folder / "old.sqlite"
        app = Flask("kill_restore", instance_path=name)
        app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{path}", DB_SMART_SNAPSHOTS=1, DB_SMART_LOCK_TIMEOUT=10)
        db = SQLAlchemy(app)
        DbSmart(app, db, migrations="none")
        with app.app_context():
            database = databases(db.engines, {})["default"]
        fill(path, journal, "new")
        with app.app_context(), database.connect() as connection:
            snapshot.take(app, database, connection, "first_run")
        (chosen,) = snapshot.listed(app, database)
        fill(old, journal, "old")
        counts = Counter(kills=0, old=0, new=0, broken=0)
        length, whole = 0.0, 0
        while counts["kills"] < kills:
            for file in folder.glob("live.sqlite*"):
                file.unlink()
            shutil.copyfile(old, path)
            started = time.perf_counter()
            pid = forked(snapshot.restore, app, database, chosen)
            if whole < 2:  # the first one loads what those after it have
                assert ended(pid) == 0
                whole += 1
                length = time.perf_counter() - started
                assert found(path) == "new"
                continue
            time.sleep(random.uniform(0, length))  # the moment is the point
            os.kill(pid, signal.SIGKILL)
            if ended(pid) == -signal.SIGKILL:
                counts["kills"] += 1
                counts[found(path)] += 1
        snapshot.restore(app, database, chosen)
        assert found(path) == "new"
        assert not list((folder / "snapshots").glob("*.partial"))
        print(json.dumps(counts))


if __name__ == "__main__":
    main()
