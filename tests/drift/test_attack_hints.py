"""Attacks on the hints: whatever becomes of one, a boot and a query are as without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from tests.harness.drift import models
from tests.harness.project import Project

Make = Callable[..., Project]
FIRST = "@migration\ndef first(op: Operations):\n    pass\n"


def with_bind(db: SQLAlchemy) -> None:
    models(db)
    db.Table("notes", sa.Column("id", sa.Integer, primary_key=True), bind_key="more")


def with_notes(db: SQLAlchemy) -> None:
    models(db)
    db.Table("notes", sa.Column("id", sa.Integer, primary_key=True))


@pytest.mark.parametrize("debug", [False, True])
def test_a_bind_that_cannot_be_read(
    make_project: Make, tmp_path: Path, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No migration names it, so that nothing but the hint would ask it."""
    broken = tmp_path / "more.db"
    broken.write_bytes(b"this is no database" * 100)
    project = make_project(f"sqlite:///{tmp_path / 'a.db'}")
    project.models = with_bind
    project.write(FIRST)
    project.config["SQLALCHEMY_BINDS"] = {"more": f"sqlite:///{broken}"}
    caplog.set_level(logging.DEBUG, "aurum_harmony.db_smart")
    for _ in range(2):
        assert project.boot(DEBUG=debug).decision in ("migrated", "verified", "skipped")
    assert "the models were not compared: the database 'more'" in caplog.text
    assert project.run("status").exit_code == 0


def test_a_hook_that_fails(make_project: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = make_project(f"sqlite:///{tmp_path / 'a.db'}")
    project.models = models
    project.write(FIRST)
    project.boot()
    project.query("DROP TABLE users")
    project.models = with_notes
    app, smart = project.app(DEBUG=True)

    @smart.include_object
    def fail(*_: object) -> bool:
        raise KeyError("no such schema")

    caplog.set_level(logging.DEBUG, "aurum_harmony.db_smart")
    assert smart.boot(app).decision == "verified"
    assert "KeyError: 'no such schema'" in caplog.text
    db = app.extensions["sqlalchemy"]
    with app.app_context(), pytest.raises(sa.exc.OperationalError, match="no such table: users"):
        db.session.execute(sa.text("SELECT * FROM users"))
    project.dispose(app)
