"""Issues of Alembic's comparison: of a model for each nothing is found in vain, and what changes is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import corpus_issues, corpus_mariadb, corpus_postgresql, corpus_sqlite
from tests.harness.corpus_issues import CHANGED, WHERE
from tests.harness.databases import engine_of
from tests.harness.drift import DIALECTS, differences, told

NewUrl = Callable[[str], URL]
CORPORA = {"sqlite": corpus_sqlite, "postgresql": corpus_postgresql, "mariadb": corpus_mariadb}
SHOWN = [(number, dialect) for number, where in WHERE.items() if isinstance(where, tuple) for dialect in where]


def made(url: URL, number: int, *, before: bool) -> sa.MetaData:
    """A database with the tables of an issue."""
    metadata = corpus_issues.models(url.get_backend_name().replace("mysql", "mariadb"), number, before=before)
    engine = engine_of(url)
    with engine.begin() as connection:
        if any(table.schema == "shop" for table in metadata.tables.values()):
            connection.exec_driver_sql("CREATE SCHEMA shop")
        metadata.create_all(connection)
    return metadata


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_corpora_have_each_of_them(dialect: str) -> None:
    names = {table.name for table in CORPORA[dialect].corpus().tables.values()}
    for number, where in WHERE.items():
        assert (f"issue_{number}" in names) == (isinstance(where, tuple) and dialect in where), number


@pytest.mark.parametrize(("number", "dialect"), SHOWN)
def test_nothing_is_found_in_vain(new_url: NewUrl, number: int, dialect: str) -> None:
    url = new_url(dialect)
    metadata = made(url, number, before=False)
    assert any(table.name == f"issue_{number}" for table in metadata.tables.values())
    assert [str(one) for one in differences(url, metadata)] == []


@pytest.mark.parametrize(("number", "dialect"), [one for one in SHOWN if one[0] in CHANGED])
def test_the_change_is_found_once(new_url: NewUrl, number: int, dialect: str) -> None:
    url = new_url(dialect)
    made(url, number, before=True)
    expected = CHANGED[number]
    found = [one[:3] for one in told(differences(url, corpus_issues.models(dialect, number)))]
    assert sorted(found, key=lambda one: one[2]) == expected
