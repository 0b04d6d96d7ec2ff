"""A process that writes to a SQLite file until its standard input ends: ``python tests/harness/counter.py FILE``.

Each transaction adds one to two counters, which are in two tables and so on two pages; each commit is printed. When
the database is locked it tries again; anything else ends the process with an error.
"""

from __future__ import annotations

import sqlite3
import sys
import threading

TABLES = ("first", "second")


def read(connection: sqlite3.Connection) -> int:
    """The counters.

    :raises AssertionError: they differ.
    """
    first, second = (connection.execute(f"SELECT counter FROM {table}").fetchone()[0] for table in TABLES)
    assert first == second
    return int(first)


def main() -> None:
    """Write."""
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    connection = sqlite3.connect(sys.argv[1], timeout=0.2, isolation_level=None)
    while not stop.is_set():
        try:
            connection.execute("BEGIN IMMEDIATE")
            counter = read(connection) + 1
            for table in TABLES:
                connection.execute(f"UPDATE {table} SET counter = ?", (counter,))
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if str(error) != "database is locked":
                raise
            connection.rollback()
        else:
            print(counter, flush=True)


if __name__ == "__main__":
    main()
