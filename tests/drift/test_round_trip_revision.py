"""The corpora as revisions of Alembic: what ``flask db-smart new`` writes, and plain Flask-Migrate applies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import corpus_mariadb, corpus_postgresql, corpus_sqlite, round_trip
from tests.harness.alembic_project import AlembicProject
from tests.harness.databases import engine_of
from tests.harness.drift import execute
from tests.harness.project import DIALECTS

Make = Callable[..., AlembicProject]
NewUrl = Callable[[str], URL]
CORPORA: dict[str, Callable[[], sa.MetaData]] = {
    "sqlite": corpus_sqlite.corpus,
    "postgresql": corpus_postgresql.corpus,
    "mariadb": corpus_mariadb.corpus,
}


def _written(project: AlembicProject) -> str:
    project.revision("a1")
    project.boot()
    result = project.run("new", "from_models", "--from-models")
    assert result.exit_code == 0, result.output
    (path,) = (project.alembic / "versions").glob("*_from_models.py")
    compile(path.read_text(), str(path), "exec")
    return str(result.output)


@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_whole_corpus(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    """From nothing, and back to nothing."""
    url = new_url(dialect)
    if dialect == "postgresql":
        extensions = [f"CREATE EXTENSION IF NOT EXISTS {name} SCHEMA public" for name in corpus_postgresql.EXTENSIONS]
        execute(url, "CREATE SCHEMA shop", *extensions)
    project = make_alembic(url)
    project.models = round_trip.of(CORPORA[dialect]())
    _written(project)
    project.upgrade("head")
    assert round_trip.left(project) == []
    result = project.flask_db("downgrade")
    assert result.exit_code == 0, result.output
    assert {name for name in project.tables() if not name.startswith(("db_smart_", "alembic_"))} == set()


def _more(metadata: sa.MetaData) -> sa.MetaData:
    """Changes that a revision takes back."""
    users = metadata.tables["users"]
    users.append_column(sa.Column("nick", sa.String(40), index=True, comment="it's 100%"))
    users.append_column(sa.Column("score", sa.Integer, nullable=False, default=7))
    users.append_column(sa.Column("state", sa.String(40), nullable=False, server_default="it's 100%"))
    users.c.told.type = sa.String(90)
    sa.Table(
        "lines",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id"), nullable=False),
        sa.Column("what", sa.String(20), sa.CheckConstraint("what NOT LIKE '100%'"), server_default="'"),
    )
    return metadata


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_there_and_back(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    url = new_url(dialect)
    project = make_alembic(url)
    # A table of SQLite with a computed column or an index with an expression is too much for Alembic's batches.
    small = corpus_mariadb.small if dialect == "mariadb" else _plain
    small().create_all(engine_of(url))
    with engine_of(url).begin() as connection:
        connection.execute(small().tables["users"].insert().values(id=1, name="Ann"))
    project.revision("a1")
    project.boot()
    before = project.schema()
    project.models = round_trip.of(_more(small()))
    _written(project)
    project.upgrade("head")
    assert round_trip.left(project) == []
    assert project.query("SELECT name, score, state FROM users") == [("Ann", 7, "it's 100%")]
    result = project.flask_db("downgrade")
    assert result.exit_code == 0, result.output
    assert {name: one for name, one in project.schema().items() if name != "alembic_version"} == {
        name: one for name, one in before.items() if name != "alembic_version"
    }


def _plain() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("told", sa.String(20), comment="told"),
    )
    return metadata
