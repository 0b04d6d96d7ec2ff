"""Databases that were made new by some release, beside one that went through all of them.

``RANDOM_SEED`` draws other histories, ``RANDOM_COUNT`` says how many for each database.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DbSmartError, MigrationFailed
from aurum_harmony.db_smart.store.tables import TABLE_NAMES
from tests.harness.crash import counted, ended, forked
from tests.harness.facts import Facts, differences, drop_tables, facts
from tests.harness.models import ID, fresh, models, schema, string
from tests.harness.project import Project
from tests.harness.random_releases import History, Release, histories
from tests.samples import SEED

CHOSEN = os.environ.get("RANDOM_SEED")
COUNT = os.environ.get("RANDOM_COUNT")
COUNTS = {"sqlite": 7, "postgresql": 3, "mariadb": 3}


class Place:
    """A database of its own, and an application on it that gets release after release."""

    _flags = itertools.count()

    def __init__(self, url: URL, make_project: Callable[..., Project]) -> None:
        self.engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        drop_tables(self.engine)
        self.project = make_project(
            url, {"DB_SMART_SNAPSHOTS": 0, "DB_SMART_FLAG": f"flag{next(self._flags)}", "DB_SMART_LEASE_SECONDS": 1}
        )
        self._values = itertools.count(1)

    def boot(self, die_before: int = 0) -> int:
        """Boot, and count the statements that change something; die by SIGKILL before the one of a number."""
        with counted(die_before) as count:
            assert self.project.boot().decision == "migrated"
        return count()

    def install(self, release: Release) -> None:
        """Boot with a release, twice."""
        self.project.models = release.define
        self.project.write(release.migrations)
        self.project.boot()
        assert self.project.boot().decision == "skipped"

    def force(self) -> None:
        """Run all migrations again, which changes nothing."""
        before = self.facts()
        result = self.project.run("migrate", "--force")
        assert result.exit_code == 0, result.output
        assert not differences(before, self.facts())

    def use(self, release: Release) -> None:
        """Insert rows as an application does."""
        metadata = release.metadata()
        with self.engine.begin() as connection:
            for table in metadata.sorted_tables:
                values: dict[str, Any] = {}
                for column in table.columns:
                    number = next(self._values)
                    if column.foreign_keys:
                        (key,) = column.foreign_keys
                        values[column.name] = sa.select(sa.func.max(key.column)).scalar_subquery()
                    elif not column.primary_key:
                        text = isinstance(column.type, sa.String)
                        values[column.name] = f"row {number}" if text else 100_000 + number  # no key of a row
                connection.execute(table.insert().values(values))

    def facts(self) -> Facts:
        with self.engine.connect() as connection:
            return facts(connection)

    def shape(self) -> Facts:
        """The schema, without the order of columns, nor names that the database makes of that of the table."""
        return {
            table: {kind: _plain(items) for kind, items in kinds.items() if kind != "rows"}
            for table, kinds in self.facts().items()
        }

    def marks(self, release: Release) -> set[str]:
        """The rows that migrations inserted, and that every database is to have."""
        found: list[str] = []
        with self.engine.connect() as connection:
            for seed in release.seeds:
                if seed.column is not None and seed.everywhere:
                    mark: Any = sa.column(seed.column)
                    query = sa.select(mark).select_from(sa.table(seed.table)).where(mark == seed.mark)
                    found += connection.scalars(query)
        assert len(found) == len(set(found))
        return set(found)


def _plain(items: Any) -> Any:
    if not isinstance(items, list):
        return items
    texts = [re.sub(r"\w+_pkey\b", "pkey", str(item)) for item in items]
    texts = [re.sub(r"\"'(\d+)'::\w+\"", r"'\1'", text) for text in texts]  # a number, as PostgreSQL writes it
    return sorted(re.sub(r"nextval\('[^']*'", "nextval(", text) for text in texts)


def upgrade(
    history: History, begins: int, jumps: int, urls: Sequence[URL], make_project: Callable[..., Project]
) -> None:
    """Compare databases that go through the releases with new ones.

    :param begins: the release that makes another database new, which then goes through those after it.
    :param jumps: the release that makes a third one new, which then gets the last one alone.
    """
    last = len(history.releases) - 1
    all_along, since, jumping = (Place(url, make_project) for url in urls[:3])
    for number, release in enumerate(history.releases):
        note(f"at release {number}")
        new = Place(urls[3], make_project)
        places = [all_along, new, *([since] if number >= begins else []), *([jumping] if number == jumps else [])]
        for place in places:
            place.install(release)
        if number == last:
            jumping.install(release)
            places.append(jumping)
        wanted, marks = all_along.shape(), all_along.marks(release)
        assert marks == {seed.mark for seed in release.seeds if seed.everywhere and seed.column is not None}
        for place in places:
            assert not differences(wanted, place.shape())
            assert place.marks(release) == marks
            place.use(release)
            place.force()


@pytest.mark.parametrize("dialect", COUNTS)
def test_random_releases(dialect: str, new_url: Callable[[str], URL], make_project: Callable[..., Project]) -> None:
    urls = [new_url(dialect) for _ in range(4)]

    @settings(
        derandomize=CHOSEN is None,
        max_examples=int(COUNT or COUNTS[dialect]),
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([] if CHOSEN is None else [Phase.shrink])],  # which takes minutes
    )
    @given(histories(), st.data())
    def test(history: History, data: st.DataObject) -> None:
        last = len(history.releases) - 1
        begins = data.draw(st.integers(0, last - 1), label="one database begins at")
        jumps = data.draw(st.integers(history.releases[-1].oldest, last - 1), label="another one jumps from")
        upgrade(history, begins, jumps, urls, make_project)

    (test if CHOSEN is None else hypothesis.seed(int(CHOSEN))(test))()


BACK_AGAIN = """
@migration(destructive=True)
def drop_notes(op: Operations) -> None:
    op.drop_column("users", "note")
    op.drop_table("notes")

@migration
def add_notes(op: Operations) -> None:
    op.add_column("users", Column("note", String(50)))
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("text", String(50)))
"""


def test_what_the_models_have_again_stays_with_its_rows_on_a_new_database(project: Project) -> None:
    project.models = models(users=[ID, string("note")], notes=[ID, string("text")])
    project.write(BACK_AGAIN)
    project.boot()
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    project.query("INSERT INTO notes (id, text) VALUES (1, 'kept')")
    project.write(BACK_AGAIN.replace('("users", "note")\n', '("users", "note")\n    op.drop_column("users", "fax")\n'))
    assert project.boot().applied == ("drop_notes",)
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]
    assert project.query("SELECT id, text FROM notes") == [(1, "kept")]


ALTERED_TWICE = """
@migration(destructive=True)
def narrow(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(20), nullable=False, server_default="first", online=False)

@migration(destructive=True)
def widen(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(60), nullable=True, server_default="last", online=False)
"""


def test_what_was_altered_twice_stays_as_last_on_a_new_database(project: Project) -> None:
    project.models = models(users=[ID, string("name", 60, server_default="last")])
    project.write(ALTERED_TWICE)
    project.boot()
    project.query("INSERT INTO users (id, name) VALUES (1, NULL), (2, :name)", name="x" * 60)
    project.write(ALTERED_TWICE.replace('"first"', '"edited"'))
    assert project.boot().applied == ("narrow",)
    project.query("INSERT INTO users (id) VALUES (3)")
    assert project.query("SELECT id, name FROM users ORDER BY id") == [(1, None), (2, "x" * 60), (3, "last")]
    assert project.run("migrate", "--force").exit_code == 0


def test_what_sync_adds_again_stays(sqlite_project: Project) -> None:
    project = sqlite_project
    project.models = models(users=[ID, string("note")])
    project.write("")
    project.boot()
    drop = '@migration(destructive=True)\ndef drop_note(op):\n    op.drop_column("users", "note")\n'
    sync = "@migration\ndef sync_users(op):\n    op.sync(db.metadata.tables['users'])\n"
    project.write(drop + sync)
    project.boot()
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]


ONE_AFTER_THE_OTHER = """
@migration(destructive=True)
def change(op: Operations) -> None:
    op.alter_column("users", "fax", server_default="none")
    op.execute("UPDATE users SET name = fax WHERE name IS NULL")
    op.backfill("users", {"fax": "x"}, where="fax = ''")
    op.drop_column("users", "fax")
    op.create_index("ix_one", "users", ["one"])
    op.create_unique_constraint("uq_one", "users", ["one"])
    op.alter_column("users", "one", new_column_name="two")
    op.alter_column("users", "two", new_column_name="three")
    op.drop_column("users", "note")
    op.add_column("users", Column("note", String(80)))
    op.drop_column("users", "page")
    op.add_column("users", Column("page", String(80)))
    op.drop_column("users", "page")
    op.add_column("users", Column("short", String(50), server_default="x"))
    op.alter_column("users", "short", new_column_name="long")
    op.create_table("crowd", Column("id", Integer, primary_key=True))
    op.execute("INSERT INTO crowd (id) VALUES (1)")
    op.rename_table("crowd", "crowds")
    op.drop_table("notes")
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("text", String(50)))
    op.rename_table("people", "persons")
    op.create_table("people", Column("id", Integer, primary_key=True), Column("text", String(50)))
"""


def test_a_migration_that_changes_a_thing_twice_runs_again_with_nothing_lost(project: Project) -> None:
    last = models(
        users=[ID, *map(string, ("name", "three", "note")), string("long", server_default="x")],
        crowds=[ID],
        notes=[ID, string("text")],
        people=[ID, string("text")],
        persons=[ID],
    )
    project.models = models(users=[ID, *map(string, ("name", "fax", "one", "note", "page"))], notes=[ID], people=[ID])
    project.write("")
    project.boot()
    project.models = last
    project.write(ONE_AFTER_THE_OTHER)
    project.boot()
    project.query("INSERT INTO users (id, three, note) VALUES (1, 'three', 'kept')")
    for table in ("notes", "people"):
        project.query(f"INSERT INTO {table} (id, text) VALUES (1, 'kept')")
    for _ in range(2):
        result = project.run("migrate", "--force")
        assert result.exit_code == 0, result.output
    assert project.query("SELECT id, three, note FROM users") == [(1, "three", "kept")]
    for table in ("notes", "people"):
        assert project.query(f"SELECT id, text FROM {table}") == [(1, "kept")]
    assert project.columns("persons") == {"id"}
    assert project.columns("users") == {"id", "name", "three", "note", "long"}
    assert project.query("SELECT id FROM crowds") == [(1,)]
    assert "crowd" not in project.tables()
    project.write(ONE_AFTER_THE_OTHER.replace("SET name = fax", "SET name = faks"))
    with pytest.raises(MigrationFailed, match="faks"):
        project.boot()
    project.write('@migration\ndef change(op): op.add_column("users", Column("fax", String(9)))\n')
    with pytest.raises(MigrationFailed, match="removed what this creates.*migration of its own"):
        project.boot()


ADDED_BY_SQL = """
@migration
def add(op: Operations) -> None:
    if not op.has_column("users", "old"):
        op.execute("ALTER TABLE users ADD COLUMN old INTEGER")
    if not op.has_table("people"):
        op.execute("CREATE TABLE people (id INTEGER PRIMARY KEY)")

@migration(destructive=True)
def rename(op: Operations) -> None:
    op.alter_column("users", "old", new_column_name="new")
    op.rename_table("people", "persons")
"""


def test_what_sql_makes_again_by_a_former_name_goes_while_it_is_empty(project: Project) -> None:
    project.models = models(users=[ID])
    project.write("")
    project.boot()
    project.write(ADDED_BY_SQL)
    project.boot()
    project.query("INSERT INTO users (id, new) VALUES (1, 7)")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, new FROM users") == [(1, 7)]
    assert project.columns("users") == {"id", "new"}
    assert "people" not in project.tables()
    project.query("ALTER TABLE users ADD COLUMN old INTEGER")
    project.query("UPDATE users SET old = 8")
    result = project.run("migrate", "--force")
    assert result.exit_code == 1
    assert "already has a column 'new'" in result.output
    assert project.query("SELECT new, old FROM users") == [(7, 8)]


CONSTRAINTS = """
ITEMS = [
    Column("a", Integer), Column("b", Integer), Column("other", Integer),
    PrimaryKeyConstraint("a", "b"),
    ForeignKeyConstraint(["other"], ["users.id"], ondelete="CASCADE", name="fk_{name}"),
    UniqueConstraint("b", "other", name="uq_{name}"),
    CheckConstraint("a > 0", name="ck_{name}"),
]

@migration
def make(op: Operations) -> None:
    for name in ("one", "two"):
        op.create_table(name, *[_named(item, name) for item in ITEMS])

def _named(item, name):
    if item.name and "{" in item.name:
        item.name = item.name.replace("{name}", name)
    elif item.name:
        item.name = item.name.replace("_one", "_" + name)
    return item
"""


def test_a_new_table_may_have_every_constraint(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(CONSTRAINTS)
    project.boot()
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        for name in ("one", "two"):
            assert inspector.get_pk_constraint(name)["constrained_columns"] == ["a", "b"]
            (key,) = inspector.get_foreign_keys(name)
            assert (key["referred_table"], key["options"]) == ("users", {"ondelete": "CASCADE"})
            (unique,) = inspector.get_unique_constraints(name)
            assert (unique["name"], unique["column_names"]) == (f"uq_{name}", ["b", "other"])
            assert [check["name"] for check in inspector.get_check_constraints(name)] == [f"ck_{name}"]


REQUIRED = """
@migration
def add_fullname(op: Operations) -> None:
    op.add_column("users", Column("fullname", String(50)))

@migration(once=True)
def first_user(op: Operations) -> None:
    op.execute("INSERT INTO users (fullname) VALUES ('first')")

@migration(once=True)
def second_user():
    db.session.execute(text("INSERT INTO users (fullname) VALUES ('second')"))
    db.session.commit()

@migration(destructive=True)
def rename(op: Operations) -> None:
    op.alter_column("users", "fullname", new_column_name="name")

@migration(destructive=True)
def require(op: Operations) -> None:
    op.add_column("users", Column("city", String(50)))
    op.backfill("users", {"city": "Pune"}, where="city IS NULL")
    op.alter_column("users", "city", nullable=False)
    op.alter_column("users", "name", nullable=False)
"""


def test_rows_of_migrations_may_lack_what_a_later_one_fills(
    project: Project, new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture
) -> None:
    project.models = models(users=[ID])
    project.write("")
    project.boot()
    project.models = models(users=[ID, string("name", nullable=False), string("city", nullable=False)])
    project.write(REQUIRED)
    project.boot()
    new = fresh(project, new_url)
    assert new.boot().decision == "migrated"
    assert schema(new.url) == schema(project.url)
    rows = "SELECT name, city FROM users ORDER BY name"
    assert new.query(rows) == project.query(rows) == [("first", "Pune"), ("second", "Pune")]
    assert not new.query("SELECT 1 FROM db_smart_objects WHERE event = 'loosened'")


DEFAULTED = """
@migration(once=True)
def first_user(op: Operations) -> None:
    op.execute("INSERT INTO users (name) VALUES ('first')")

@migration
def add_state(op: Operations) -> None:
    op.add_columns(
        "users",
        Column("state", String(20), nullable=False, server_default="it's 100%: new"),
        Column("level", Integer, nullable=False, server_default=text("1 + 1")),
    )

@migration(once=True)
def second_user(op: Operations) -> None:
    op.execute("UPDATE users SET level = level + 1")
    op.execute("INSERT INTO users (name) VALUES ('second')")
"""


def test_rows_have_the_default_that_a_column_was_added_with(project: Project, new_url: Callable[[str], URL]) -> None:
    project.models = models(users=[ID, string("name")])
    project.write("")
    project.boot()
    state, level = string("state", nullable=False), sa.Column("level", sa.Integer, nullable=False)
    project.models = models(users=[ID, string("name"), state, level])
    project.write(DEFAULTED)
    project.boot()
    new = fresh(project, new_url)
    assert new.boot().decision == "migrated"
    rows = "SELECT name, state, level FROM users ORDER BY name"
    wanted = [("first", "it's 100%: new", 3), ("second", "it's 100%: new", 2)]
    assert new.query(rows) == project.query(rows) == wanted


def test_a_required_value_that_no_migration_gives_is_named(project: Project) -> None:
    project.models = models(users=[ID, string("name"), string("city", nullable=False)])
    project.write(SEED.format(table="users"))
    for _ in range(2):
        with pytest.raises(DbSmartError, match="1 rows that they inserted into 'users' have no value for 'city'"):
            project.boot()
    give = "@migration\ndef give(op):\n    op.backfill('users', {'city': 'Pune'}, where='city IS NULL')\n"
    project.write(SEED.format(table="users") + give)
    assert project.boot().applied == ("give",)
    assert project.query("SELECT id, city FROM users") == [(1, "Pune")]
    with pytest.raises(sa.exc.DBAPIError):
        project.query("INSERT INTO users (id) VALUES (2)")


FIRST_RUN = """
@migration(once=True)
def seed_people(op: Operations) -> None:
    op.create_table("people", Column("id", Integer, primary_key=True), Column("town", String(50)))
    op.execute("INSERT INTO people (town) VALUES ('Pune')")
    op.add_column("people", Column("fullname", String(50)))
    op.execute("UPDATE people SET fullname = 'first'")

@migration
def gone(op: Operations) -> None:
    op.execute("UPDATE users SET fax = NULL")
    op.add_column("fax_machines", Column("number", String(50)))
    op.alter_column("users", "fax", type_=String(60))
    op.create_index("ix_fax", "users", ["fax"])
    op.execute("INSERT INTO seeds (note) VALUES ('gone')")

@migration
def gone_too():
    db.session.execute(text("INSERT INTO seeds (note) VALUES ('taken back')"))
    db.session.execute(text("UPDATE fax_machines SET number = 1"))
    db.session.commit()

@migration(destructive=True)
def rename(op: Operations) -> None:
    op.rename_table("people", "persons")
    op.execute("INSERT INTO seeds (note) VALUES ('renamed')")
    op.alter_column("persons", "town", new_column_name="city")
    op.drop_column("users", "fax")
    op.drop_table("fax_machines")

@migration(destructive=True)
def require(op: Operations) -> None:
    op.alter_column("persons", "fullname", new_column_name="name")
    op.add_column("persons", Column("state", String(50)))
    op.backfill("persons", {"state": "MH"}, where="state IS NULL")
    op.alter_column("persons", "state", nullable=False)
    op.execute("INSERT INTO seeds (note) VALUES ('last')")
"""


def numberless(found: Facts) -> Facts:
    """Without the keys of rows, as a transaction that is taken back uses numbers up."""
    return {table: {**kinds, "rows": sorted(tuple(row[1:]) for row in kinds["rows"])} for table, kinds in found.items()}


def test_a_first_run_killed_at_any_statement_is_finished(
    url: URL, new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    """At some statements in CI; with ``RANDOM_COUNT``, at that many."""
    dialect = {"mysql": "mariadb"}.get(url.get_backend_name(), url.get_backend_name())
    define = models(
        users=[ID],
        seeds=[ID, string("note")],
        persons=[ID, *(string(name, nullable=name == "city") for name in ("name", "city", "state"))],
    )

    def boot(place: Place) -> int:
        place.project.models = define
        place.project.write(FIRST_RUN)
        return place.boot()

    whole = Place(url, make_project)
    count = boot(whole)
    wanted = numberless(whole.facts())
    assert wanted["persons"]["rows"] == [("first", "Pune", "MH")]
    assert wanted["seeds"]["rows"] == [("gone",), ("last",), ("renamed",)]
    other = new_url(dialect)
    cases = int(COUNT or 6)
    chosen = random.Random(CHOSEN or dialect).sample(range(1, count + 1), min(cases, count))
    for boundary in chosen:
        place = Place(other, make_project)
        place.project.models = define
        place.project.write(FIRST_RUN)
        for die_before in (boundary, boundary % 7 + 1):  # and again in the run that goes on
            assert ended(forked(place.boot, die_before)) == -signal.SIGKILL, (chosen, boundary)
        place.boot()
        assert not differences(wanted, numberless(place.facts())), (chosen, boundary)
        assert place.project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]
        assert (
            place.project.query("SELECT name FROM db_smart_objects WHERE event IN ('made', 'added', 'loosened')") == []
        )
        place.project.query("INSERT INTO persons (name, city, state) VALUES ('second', 'Goa', 'GA')")
        assert place.project.boot().decision == "skipped"


MISTAKES = {
    "sql": 'op.execute("UPDATE users SET no_city = 1")',
    "index": 'op.create_index("ix_users_no_city", "users", ["no_city"])',
    "session": 'op.session.execute(text("UPDATE users SET no_city = 1"))',
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_table_that_was_there_before_the_first_run_excuses_nothing(project: Project, mistake: str) -> None:
    """The models made another table new; for this one they are not right."""
    project.query("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    project.models = models(users=[ID], notes=[ID])
    project.write(f"@migration(once=True)\ndef fill(op: Operations) -> None:\n    {MISTAKES[mistake]}\n")
    for _ in range(2):
        with pytest.raises(MigrationFailed, match="no_city"):
            project.boot()
    project.write(
        '@migration(once=True)\ndef fill(op: Operations) -> None:\n    op.execute("UPDATE notes SET fax = 1")\n'
    )
    assert project.boot().applied == ("fill",)


def test_sql_of_a_first_run_makes_a_table_that_gets_another_name(project: Project) -> None:
    project.models = models(users=[ID, sa.Column("new", sa.Integer)], persons=[ID])
    project.write(ADDED_BY_SQL)
    project.boot()
    assert project.columns("users") == {"id", "new"}
    assert project.tables() - TABLE_NAMES == {"users", "persons"}


TRANSLATED = """
@migration
def add_name(op: Operations) -> None:
    op.add_column("users", Column("fullname", String(50)))
    op.execute(Table("users", MetaData(), Column("fullname", Text)).insert().values(fullname="first"))

@migration(destructive=True)
def rename_name(op: Operations) -> None:
    op.alter_column("users", "fullname", new_column_name="name")
    op.alter_column("users", "name", nullable=False)
"""


def test_models_are_right_in_the_schema_that_the_engine_puts_them_in(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    options = {"SQLALCHEMY_ENGINE_OPTIONS": {"execution_options": {"schema_translate_map": {None: "tenant"}}}}
    project = make_project(new_url("postgresql"), options)
    project.query("CREATE SCHEMA tenant")
    project.models = models(users=[ID, string("name", nullable=False)])
    project.write(TRANSLATED)
    project.boot()
    assert project.query("SELECT name FROM tenant.users") == [("first",)]
    project.query("INSERT INTO tenant.users (name) VALUES ('second')")
    result = project.run("migrate", "--force")
    assert result.exit_code == 0, result.output
    assert project.query("SELECT name FROM tenant.users ORDER BY id") == [("first",), ("second",)]


CUT = """
@migration
def cut(op: Operations) -> None:
    op.execute("INSERT INTO seeds (id, note) VALUES (1, 'before')")
    op.backfill("seeds", {"note": "filled"})
    op.execute("INSERT INTO seeds (id, note) VALUES (2, 'taken back')")
    op.session.execute(text("UPDATE users SET fax = 1"))

@migration(transactional=False)
def alone(op: Operations) -> None:
    op.execute("INSERT INTO seeds (id, note) VALUES (3, 'by itself')")
    op.session.execute(text("UPDATE users SET fax = 1"))

@migration
def last(op: Operations) -> None:
    op.execute("INSERT INTO seeds (id, note) VALUES (4, 'last')")
"""


def test_what_is_left_out_keeps_what_was_committed_before(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.models = models(users=[ID], seeds=[ID, string("note")])
    project.write(CUT)
    project.boot()
    for name in ("cut", "alone"):
        assert f"'{name}' is left out and counts as applied" in caplog.text
    assert project.query("SELECT id, note FROM seeds ORDER BY id") == [(1, "filled"), (3, "by itself"), (4, "last")]
    assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]


def test_a_dry_run_and_a_script_know_what_later_migrations_took_away(project: Project) -> None:
    project.models = models(users=[ID, string("fax"), string("note")])
    project.write("")
    project.boot()
    source = (
        '@migration\ndef add_fax(op):\n    op.add_column("users", Column("fax", String(50)))\n'
        + '    op.execute(text("UPDATE users SET fax = 1"))\n' * (project.dialect == "sqlite")
        + '@migration(destructive=True)\ndef drop_both(op):\n    op.drop_column("users", "fax")\n'
        '    op.drop_column("users", "note")\n'
        '@migration\ndef add_note(op):\n    op.add_column("users", Column("note", String(50)))\n'
    )
    project.write(source)
    project.boot()
    found = project.run("migrate", "--force", "--dry-run", "--json")
    shown = json.loads(found.stdout)["pending"]
    assert [(item["error"], item["unknown"]) for item in shown] == [(None, None)] * 3
    assert [item["does"] for item in shown[1:]] == [[], []]
    found = project.run("migrate", "--force", "--sql")
    assert "ALTER TABLE users" not in found.stdout
