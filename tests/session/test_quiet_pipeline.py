"""What psycopg says of its pipeline when a list of rows is left out does not reach anybody."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from tests.harness.models import ID, models, string
from tests.harness.project import Project

SEED = """
@migration
def seed(op: Operations) -> None:
    rows = [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}]
    op.execute("INSERT INTO users (id, former) VALUES (:id, :n)", rows)
"""


def test_a_list_of_rows_is_left_out_without_noise_of_the_driver(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project(new_url("postgresql"))
    project.models = models(users=[ID, string("name")])
    project.write(SEED)
    with caplog.at_level(logging.WARNING):
        project.boot()
    told = [record for record in caplog.records if not record.name.startswith("psycopg")]
    assert any("is left out" in record.getMessage() for record in told)
    assert told == caplog.records
    with caplog.at_level(logging.WARNING, "psycopg"):
        logging.getLogger("psycopg").warning("something else")  # and nothing else is kept back
    assert caplog.records[-1].getMessage() == "something else"
