"""Samples of one whole table updated: by a backfill, and by what one would write without it."""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from .projects import MODULE, Project, make_app
from .sample import Result, timed


def backfilled(of: Project) -> Result:
    """A migration that backfills, from its start to its record; ``sizes`` are those of its batches."""
    from aurum_harmony.db_smart import DbSmart
    from aurum_harmony.db_smart.signals import migration_applied, migration_progress

    app, db = make_app(of)
    smart = DbSmart(app, db, migrations=MODULE)
    done: list[int] = []

    def listen(_: object, **progress: Any) -> None:
        done.append(progress["done"])

    def note(_: object, duration: float, **_more: object) -> None:
        result["ms"] = duration * 1000

    result: Result = {}
    with migration_progress.connected_to(listen), migration_applied.connected_to(note):
        smart.boot(app)
    sizes = [after - before for before, after in zip(done, done[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return {**result, "sizes": sizes, "peak_mb": peak}


def by_hand(of: Project) -> Result:
    """A loop in the bare driver, with batches as large as those of the last backfill, and no cursor saved."""
    sizes = json.loads(Path(of.directory, "sizes.json").read_text())
    connection, mark = _driver(of.url)
    cursor = connection.cursor()
    with timed() as result:
        low = 0
        for size in sizes:
            cursor.execute(f"SELECT id FROM items WHERE id > {mark} ORDER BY id LIMIT 1 OFFSET {size - 1}", (low,))
            (high,) = cursor.fetchone()
            cursor.execute(f"UPDATE items SET n = n + 1 WHERE id > {mark} AND id <= {mark}", (low, high))
            connection.commit()
            low = high
    connection.close()
    return result


def single(of: Project) -> Result:
    """One ``UPDATE`` in the bare driver."""
    connection, _ = _driver(of.url)
    with timed() as result:
        connection.cursor().execute("UPDATE items SET n = n + 1")
        connection.commit()
    connection.close()
    return result


def _driver(text: str) -> tuple[Any, str]:
    """A connection of the bare driver, and how it marks a parameter."""
    url = make_url(text)
    if url.get_backend_name() == "sqlite":
        return sqlite3.connect(str(url.database)), "?"
    if url.get_backend_name() == "postgresql":
        import psycopg

        return psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)), "%s"
    import pymysql

    options: dict[str, Any] = {"host": url.host, "port": url.port or 3306, "user": url.username}
    return pymysql.connect(**options, password=url.password or "", database=url.database), "%s"
