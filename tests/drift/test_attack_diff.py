"""Attacks on what ``diff`` finds: databases that are new, and what their first run makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from tests.harness.drift import DIALECTS, found, models
from tests.harness.project import Project


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_new_database(make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str) -> None:
    """The next boot makes the tables of the models: nothing differs, nothing is to be written, nothing is made."""
    project = make_project(new_url(dialect))
    project.models = models
    source = '@migration\ndef first(op: Operations):\n    op.create_index("ix_users_both", "users", ["name", "age"])\n'
    project.write(source)
    # What the migration makes is not in the models.
    assert found(project) == [("drop", "index", "users.ix_users_both")]
    result = project.run("diff")
    assert "counted as applied, because the next boot does so: tables of the models, first." in result.output
    assert "is not counted" not in result.output
    project.write(source.replace('"ix_users_both", "users", ["name", "age"]', '"ix_users_age", "users", ["age"]'))
    assert found(project) == []
    before = project.file.read_text()
    assert "there is nothing to write" in project.run("new", "more", "--from-models").output
    assert project.file.read_text() == before
    assert project.tables() == set()
