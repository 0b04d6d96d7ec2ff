"""A run in another thread than the main one is ended by an exception that is raised in it."""

from __future__ import annotations

import importlib
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from aurum_harmony.db_smart.interrupt import interrupt, start_thread

#: Of a module that is being imported.
begun, go_on = threading.Event(), threading.Event()


def test_a_thread_that_starts_others_is_interrupted_and_not_one_of_those() -> None:
    """As a migration does for each statement, whose wait another thread watches."""
    for _ in range(60):
        under_way = threading.Event()

        def work(under_way: threading.Event = under_way) -> None:
            try:
                while True:
                    timer = threading.Timer(0, under_way.set)
                    timer.daemon = True
                    start_thread(timer)
            except KeyboardInterrupt:
                pass

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert under_way.wait(30)
        interrupt(thread, 10)
        assert not thread.is_alive()


def test_a_thread_is_not_ended_in_an_import_whose_lock_would_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imported_slowly.py").write_text(
        "from tests.test_interrupt import begun, go_on\nbegun.set()\nassert go_on.wait(30)\n"
    )
    seen: list[str] = []

    def work() -> None:
        try:
            importlib.import_module("imported_slowly")
            seen.append("imported")
            while True:
                threading.Event().wait(0.01)
        except KeyboardInterrupt:
            seen.append("ended")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert begun.wait(30)
    ending = threading.Thread(target=interrupt, args=(thread, 30))
    ending.start()
    ending.join(0.1)  # by then the exception is raised in the thread, where nothing holds it back
    go_on.set()
    thread.join(30)
    assert seen == ["imported", "ended"]


def test_a_pool_logs_no_traceback_of_an_interruption(caplog: pytest.LogCaptureFixture) -> None:
    closing = threading.Event()

    class Slow(sqlite3.Connection):
        def close(self) -> None:
            try:
                closing.set()
                while True:
                    pass
            finally:
                super().close()

    seen: list[type[BaseException]] = []
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.NullPool, connect_args={"factory": Slow})

    def work() -> None:
        try:
            engine.connect().close()
        except KeyboardInterrupt as error:
            seen.append(type(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert closing.wait(30)
    interrupt(thread, 30)
    assert len(seen) == 1
    assert caplog.records == []
