"""Migrations on several databases at the same time, each in a thread of its own."""

from __future__ import annotations

import threading

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart.session.rebind import rebind
from aurum_harmony.db_smart.store.database import Database


def test_threads_that_end_in_another_order_see_their_own_engines_alone() -> None:
    app = Flask("threads")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db = SQLAlchemy(app)
    with app.app_context():
        own = db.engine
    database = Database("default", None, own)
    first, second = (sa.create_engine("sqlite://") for _ in range(2))
    entered, left = threading.Barrier(2), threading.Event()
    seen: dict[str, sa.Engine] = {}

    def leaves_first() -> None:
        with rebind(app, db, database, lambda: first):
            entered.wait()
            seen["first"] = db.engine
        left.set()

    def goes_on() -> None:
        with rebind(app, db, database, lambda: second):
            entered.wait()
            left.wait()
            seen["second"] = db.engine

    threads = [threading.Thread(target=one) for one in (leaves_first, goes_on)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    with app.app_context():
        assert db.engine is own
        assert seen == {"first": first, "second": second}
    for engine in (own, first, second):
        engine.dispose()
