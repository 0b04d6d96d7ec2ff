"""``flask db-smart new --from-models`` over the corpora: applied, what it writes leaves no difference."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import corpus_mariadb, corpus_postgresql, corpus_sqlite, round_trip, servers
from tests.harness.databases import engine_of
from tests.harness.drift import execute
from tests.harness.project import DIALECTS, Project

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
CORPORA: dict[str, Callable[[], sa.MetaData]] = {
    "sqlite": corpus_sqlite.corpus,
    "postgresql": corpus_postgresql.corpus,
    "mariadb": corpus_mariadb.corpus,
}


@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_whole_corpus(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    """From nothing."""
    url = new_url(dialect)
    if dialect == "postgresql":
        extensions = [f"CREATE EXTENSION IF NOT EXISTS {name} SCHEMA public" for name in corpus_postgresql.EXTENSIONS]
        execute(url, "CREATE SCHEMA shop", *extensions)
    project = round_trip.begun(make_project(url))
    project.models = round_trip.of(CORPORA[dialect]())
    round_trip.written(project)
    project.boot()
    assert round_trip.left(project) == []


#: What no operation and no statement can do in place, so that a comment says it.
BY_HAND = {
    "sqlite": {"computed", "stored", "not computed", "autoincrement", "strict", "primary key"},
    "mariadb": {"check of a column", "versioned", "sequence"},
    "postgresql": {
        *("default of a sequence", "computed", "no longer computed", "identity", "step", "no identity", "inherits"),
        *("enumeration value", "enumeration order", "enumeration", "domain", "domain check"),
        *("sequence", "sequence type"),
    },
}


@pytest.mark.parametrize("what", corpus_sqlite.MUTATIONS)
def test_each_change_on_sqlite(make_project: Make, sqlite_url: URL, what: str) -> None:
    before, after, _ = corpus_sqlite.MUTATIONS[what]
    script = ";\n".join(corpus_sqlite.SMALL.values()).replace(before, after)
    if after.startswith("id INTEGER PRIMARY"):
        script = script.replace("        PRIMARY KEY (id),\n", "")
    execute(sqlite_url, *filter(str.strip, script.split(";")))
    _round_trip(make_project(sqlite_url), corpus_sqlite.small(), what in BY_HAND["sqlite"])


def _on_mariadb(url: URL, whats: Sequence[str]) -> sa.MetaData:
    corpus_mariadb.small().create_all(engine_of(url))
    for what in whats:
        execute(url, *corpus_mariadb.MUTATIONS[what][0].split("; "))
    return corpus_mariadb.small()


def _on_postgresql(template: URL, url: URL, whats: Sequence[str]) -> sa.MetaData:
    execute(
        template.set(database="postgres"),
        f"DROP DATABASE {url.database}",
        f"CREATE DATABASE {url.database} TEMPLATE {template.database}",
    )
    for what in whats:
        execute(url, *corpus_postgresql.CHANGES[what][0].split("; "))
    return corpus_postgresql.corpus()


@pytest.fixture(scope="module")
def template(postgres: URL) -> Iterator[URL]:
    """A database with the corpus, of which others are copies."""
    with servers.new_database(postgres) as url:
        engine = engine_of(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA shop")
            corpus_postgresql.corpus().create_all(connection)
        yield url


def each(changes: Iterable[str]) -> list[str]:
    """All changes with ``EACH_CHANGE``, else every tenth and the primary key: others are tested in groups."""
    found = list(changes)
    return found if "EACH_CHANGE" in os.environ else [*dict.fromkeys([*found[::10], "primary key"])]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unknown schema content")
@pytest.mark.parametrize("what", each(corpus_mariadb.MUTATIONS))
def test_each_change_on_mariadb(make_project: Make, new_url: NewUrl, what: str) -> None:
    url = new_url("mariadb")
    metadata = _on_mariadb(url, [what])
    _round_trip(make_project(url), metadata, what in BY_HAND["mariadb"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Could not parse CHECK")
@pytest.mark.parametrize("what", each(corpus_postgresql.CHANGES))
def test_each_change_on_postgresql(make_project: Make, template: URL, new_url: NewUrl, what: str) -> None:
    url = new_url("postgresql")
    metadata = _on_postgresql(template, url, [what])
    _round_trip(make_project(url), metadata, what in BY_HAND["postgresql"])


#: What does not go together with others: it takes along what they change.
ALONE = {
    "rows",
    "another name",
    "the index of a key",
    "engine",
    "primary key",
    "no primary key",
    "lost table",
    "table",
    "no table",
    "versioned",
    "a longer index for a key",
}


def _together(names: Mapping[str, Collection[str]], without: Collection[str]) -> list[list[str]]:
    """Changes in groups, so that no two of a group change the same."""
    groups: list[tuple[set[str], list[str]]] = []
    for what, changed in names.items():
        if what in ALONE or what in without:
            continue
        group = next((one for one in groups if not one[0] & {*changed}), None)
        if group is None:
            groups.append(group := (set(), []))
        group[0].update(changed)
        group[1].append(what)
    return [group for _, group in groups]


MARIADB_GROUPS = _together(
    {what: [path for _, _, path, _ in found] for what, (_, found) in corpus_mariadb.MUTATIONS.items()},
    BY_HAND["mariadb"],
)
POSTGRESQL_GROUPS = _together(
    {what: [name or what] for what, (_, _, name, _) in corpus_postgresql.CHANGES.items()}, BY_HAND["postgresql"]
)


@pytest.mark.filterwarnings("ignore:Unknown schema content")
@pytest.mark.parametrize("whats", MARIADB_GROUPS, ids=lambda whats: whats[0])
def test_changes_together_on_mariadb(make_project: Make, new_url: NewUrl, whats: list[str]) -> None:
    url = new_url("mariadb")
    metadata = _on_mariadb(url, whats)
    _round_trip(make_project(url), metadata, False)


@pytest.mark.filterwarnings("ignore:Could not parse CHECK")
@pytest.mark.parametrize("whats", POSTGRESQL_GROUPS, ids=lambda whats: whats[0])
def test_changes_together_on_postgresql(make_project: Make, template: URL, new_url: NewUrl, whats: list[str]) -> None:
    url = new_url("postgresql")
    metadata = _on_postgresql(template, url, whats)
    _round_trip(make_project(url), metadata, False)


def _round_trip(project: Project, metadata: sa.MetaData, by_hand: bool) -> None:
    """Bring a database to the models: by what is written, then by what a person takes in of the comments."""
    round_trip.begun(project)
    project.models = round_trip.of(metadata)
    text = round_trip.written(project)
    project.boot()
    found = round_trip.left(project)
    comments = " ".join(line.strip(" #") for line in text.splitlines() if line.startswith("    #"))
    for one in found:
        assert one.split()[-1].split(".")[-1] in comments
    if found:
        project.file.write_text(round_trip.uncommented(project.file.read_text()))
        project.boot()
        found = round_trip.left(project)
    assert bool(found) == by_hand, found
