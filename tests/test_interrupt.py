"""A run in another thread than the main one is ended by an exception that is raised in it."""

from __future__ import annotations

import threading

from aurum_harmony.db_smart.interrupt import interrupt, start_thread


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
