"""An Alembic directory is taken over as it stands: what db-smart applies is what ``flask db upgrade`` applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask_migrate  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import URL

from tests.harness.alembic_project import AlembicProject
from tests.harness.project import DIALECTS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_linear_history(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_alembic(new_url(dialect))
    project.revision("a1", None, 'op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))')
    project.revision("b2", "a1", 'op.add_column("users", sa.Column("name", sa.String(20)))')
    report = project.boot()
    assert (report.decision, report.applied) == ("migrated", ("a1", "b2"))
    assert project.heads() == {"b2"}
    assert project.history() == [("a1", "applied"), ("b2", "applied")]
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"
    other = project.at(new_url(dialect))
    other.upgrade()
    assert other.schema() == project.schema()


def test_a_warm_boot_makes_no_configuration(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_alembic(new_url("sqlite"))
    project.revision("a1", None, 'op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))')
    project.boot()
    made: list[str] = []
    usual = flask_migrate.Migrate.get_config

    def counted(*given: Any) -> Any:
        made.append("made")
        return usual(*given)

    monkeypatch.setattr(flask_migrate.Migrate, "get_config", counted)
    assert project.boot().decision == "skipped"
    assert made == []
    app, _ = project.app()
    with app.app_context():
        app.extensions["migrate"].migrate.get_config()
    assert made == ["made"]
    project.dispose(app)
