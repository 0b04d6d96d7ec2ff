"""``flask db-smart migrate --resume``: a revision that another tool has left half-done is finished, or refused.

The other tool is a real ``flask db upgrade``, in a process that is killed by SIGKILL before one of its statements.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.base import facts_of
from aurum_harmony.db_smart.errors import DbSmartError, MigrationFailed
from aurum_harmony.db_smart.resuming import decides
from aurum_harmony.db_smart.schema.effects import changes_of
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked
from tests.harness.databases import connected, holding
from tests.harness.kill_revisions import plain_upgrade
from tests.harness.project import DIALECTS

MAKE = """
key = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
op.create_table("things", key, sa.Column("n", sa.Integer))
op.execute("INSERT INTO things (id, n) VALUES (1, 0)")
"""
REFUSED = "cannot be finished by itself"


def killed_before(project: AlembicProject, words: str) -> None:
    """Kill ``flask db upgrade`` before its first statement that has these words."""

    def run() -> None:
        def look(_: Any, __: Any, statement: str, *more: Any) -> None:
            if words in statement:
                signal.raise_signal(signal.SIGKILL)

        sa.event.listen(sa.Engine, "before_cursor_execute", look)
        plain_upgrade(project)

    assert ended(forked(run)) == -signal.SIGKILL, words


def resume(project: AlembicProject, *options: str, **config: Any) -> Any:
    return project.run("migrate", "--resume", *options, **config)


def upgraded(project: AlembicProject, new_url: Callable[[str], URL]) -> AlembicProject:
    """The same with another database, which an undisturbed ``flask db upgrade`` has upgraded."""
    whole = project.at(new_url("sqlite" if project.dialect == "sqlite" else "mariadb"))
    assert ended(forked(plain_upgrade, whole)) == 0
    return whole


def values(project: AlembicProject, sql: str = "SELECT id, n FROM things ORDER BY id") -> list[Any]:
    return project.query(sql)


def test_the_first_revision(make_alembic: Callable[..., AlembicProject], url: URL) -> None:
    """Of which an empty version table and some tables are left, as where they were made by ``create_all()``."""
    project = make_alembic(url)
    key = 'sa.Column("id", sa.Integer, primary_key=True)'
    project.revision("a1", None, f'op.create_table("first", {key})\nop.create_table("second", {key})')

    def models(db: SQLAlchemy) -> None:
        db.Table("first", sa.Column("id", sa.Integer, primary_key=True))

    project.models = models
    killed_before(project, "CREATE TABLE second")
    if project.dialect != "postgresql":
        with pytest.raises(DbSmartError, match=r"'flask db-smart migrate --resume' finishes it"):
            project.boot()
    result = resume(project, "--yes")
    assert result.exit_code == 0, result.output
    assert {"first", "second"} <= project.tables()
    assert project.heads() == {"a1"}
    assert project.boot().applied == ()


@pytest.fixture
def things(make_alembic: Callable[..., AlembicProject], url: URL) -> AlembicProject:
    """An application whose first revision, with a table and a row, was applied by ``flask db upgrade``."""
    project = make_alembic(url)
    project.revision("a1", None, MAKE)
    assert ended(forked(plain_upgrade, project)) == 0
    return project


def servers_only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("url", names, indirect=True)


#: Each is one schema change, by which it is seen, and what comes before it.
KINDS = {
    "table": ('op.create_table("more", sa.Column("id", sa.Integer, primary_key=True))', ""),
    "column": ('op.add_column("things", sa.Column("a", sa.Integer))', ""),
    "index": ('op.create_index("ix_n", "things", ["n"])', ""),
    "drop index": ('op.drop_index("ix_old", "things")', 'op.create_index("ix_old", "things", ["n"])'),
    "drop column": ('op.drop_column("things", "old")', 'op.add_column("things", sa.Column("old", sa.Integer))'),
    "drop table": ('op.drop_table("old")', 'op.create_table("old", sa.Column("id", sa.Integer, primary_key=True))'),
    "rename table": (
        'op.rename_table("old", "new")',
        'op.create_table("old", sa.Column("id", sa.Integer, primary_key=True))',
    ),
    "rename column": (
        'op.execute("ALTER TABLE things RENAME COLUMN old TO renamed")',
        'op.add_column("things", sa.Column("old", sa.Integer))',
    ),
    "view": ('op.execute("CREATE VIEW seen AS SELECT n FROM things")', ""),
    "raw": ('op.execute("/* made */ ALTER TABLE things ADD COLUMN raw INTEGER DEFAULT 7")', ""),
}


@servers_only("sqlite", "mariadb")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_schema_change_is_passed_by(
    make_alembic: Callable[..., AlembicProject], url: URL, new_url: Callable[[str], URL], kind: str
) -> None:
    change, before = KINDS[kind]
    project = make_alembic(url)
    project.revision("a1", None, MAKE + before)
    project.revision("b2", "a1", f"{change}\nop.execute('UPDATE things SET n = n + 1')")
    killed_before(project, "UPDATE things")
    found = resume(project)
    assert found.exit_code == 0, found.output
    assert "b2: passes by what is done: " in found.output
    assert values(project) == [(1, 1)]
    whole = upgraded(project, new_url)
    assert project.schema() == whole.schema()
    assert project.query("SELECT * FROM db_smart_progress") == []
    assert project.history()[-1] == ("b2", "applied")
    assert project.boot().applied == ()


@servers_only("mariadb")
def test_rows_that_a_later_schema_change_has_committed_are_not_changed_again(things: AlembicProject) -> None:
    things.revision(
        "b2",
        "a1",
        """
        op.execute("UPDATE things SET n = n + 1")
        op.add_column("things", sa.Column("a", sa.Integer))
        op.execute("UPDATE things SET n = n + 10")
        op.add_column("things", sa.Column("b", sa.Integer))
        op.execute("UPDATE things SET n = n + 100")
        """,
    )
    killed_before(things, "n + 100")
    found = resume(things)
    assert found.exit_code == 0, found.output
    assert found.output.count("passes by what is done") == 4
    assert values(things, "SELECT n FROM things") == [(111,)]


@servers_only("mariadb")
def test_a_person_is_asked_whether_a_schema_change_was_refused(things: AlembicProject) -> None:
    """Then it has committed what came before it."""
    things.revision(
        "b2",
        "a1",
        """
        op.add_column("things", sa.Column("a", sa.Integer))
        op.execute("UPDATE things SET n = n + 1")
        op.add_column("things", sa.Column("b", sa.Integer))
        """,
    )
    killed_before(things, "ADD COLUMN b")
    before = things.schema()
    app, _ = things.app()
    no = app.test_cli_runner().invoke(args=["db-smart", "migrate", "--resume"], input="n\n")
    things.dispose(app)
    assert no.exit_code == 1
    for words in ("Was it killed?", "Will be done now: UPDATE things SET n = n + 1", REFUSED):
        assert words in no.output
    assert things.schema() == before
    found = resume(things, "--yes")
    assert found.exit_code == 0, found.output
    assert values(things, "SELECT n FROM things") == [(1,)]


@servers_only("sqlite", "mariadb")
def test_rows_that_are_read_before_a_column_is_added_are_the_same(things: AlembicProject) -> None:
    things.revision(
        "b2",
        "a1",
        """
        old = op.get_bind().execute(sa.text("SELECT id, n FROM things")).all()
        op.add_column("things", sa.Column("a", sa.String(20)))
        for id_, n in old:
            op.get_bind().execute(sa.text("UPDATE things SET a = :a WHERE id = :id"), {"a": f"was {n}", "id": id_})
        """,
    )
    killed_before(things, "UPDATE things")
    assert resume(things).exit_code == 0
    assert values(things, "SELECT id, n, a FROM things") == [(1, 0, "was 0")]


@servers_only("sqlite", "mariadb")
def test_revisions_for_several_databases(things: AlembicProject) -> None:
    """Whose ``env.py`` gives each the name of a database."""
    env = things.alembic / "env.py"
    env.write_text(env.read_text().replace("context.run_migrations()", "context.run_migrations(engine_name='main')"))
    path = things.revision("b2", "a1", f"{KINDS['column'][0]}\nop.execute('UPDATE things SET n = n + 1')")
    path.write_text(path.read_text().replace("def upgrade()", "def upgrade(engine_name)"))
    killed_before(things, "UPDATE things")
    found = resume(things)
    assert found.exit_code == 0, found.output
    assert values(things, "SELECT id, n FROM things") == [(1, 1)]


@servers_only("sqlite")
def test_an_unfinished_copy_is_dropped(things: AlembicProject) -> None:
    things.revision(
        "b2",
        "a1",
        """
        op.add_column("things", sa.Column("a", sa.Integer))
        with op.batch_alter_table("things") as batch:
            batch.alter_column("n", new_column_name="renamed", existing_type=sa.Integer)
        """,
    )
    killed_before(things, "INSERT INTO _alembic_tmp_things")
    assert "_alembic_tmp_things" in things.tables()
    found = resume(things)
    assert found.exit_code == 0, found.output
    assert "drops _alembic_tmp_things, an unfinished copy of a table that is there" in found.output
    assert things.columns("things") == {"id", "renamed", "a"}
    assert "_alembic_tmp_things" not in things.tables()
    assert values(things, "SELECT id, renamed FROM things") == [(1, 0)]
    assert len(list(things.instance.rglob("*-before-b2.sqlite"))) == 1


#: A table with indexes and a unique constraint, and a batch that takes a copy of it into its place.
INDEXED = """
op.create_table(
    "things",
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, index=True),
    sa.Column("name", sa.String(20), nullable=False),
    sa.UniqueConstraint("name", name="uq_name"),
)
op.create_index("ix_both", "things", ["name", "n"], unique=True)
op.create_index("ix_gone", "things", ["n", "id"])
op.execute("INSERT INTO things (id, n, name) VALUES (1, 0, 'a')")
op.execute("INSERT INTO things (id, n, name) VALUES (2, 0, 'b')")
"""
REPLACED = """
with op.get_context().autocommit_block():
    op.add_column("things", sa.Column("before", sa.Integer))
    with op.batch_alter_table("things", recreate="always") as batch:
        batch.add_column(sa.Column("city", sa.String(20), server_default="x"))
        batch.alter_column("n", existing_type=sa.Integer, type_=sa.String(9))
        batch.drop_index("ix_gone")
        batch.create_index("ix_city", ["city"])
op.add_column("things", sa.Column("later", sa.Integer))
op.execute("UPDATE things SET later = 7")
"""


@pytest.fixture
def replaced(make_alembic: Callable[..., AlembicProject], url: URL) -> AlembicProject:
    """An application whose second revision was killed when the copy had taken the rows, and the table was gone."""
    project = make_alembic(url)
    project.revision("a1", None, INDEXED)
    project.revision("b2", "a1", REPLACED)
    killed_before(project, "RENAME")
    assert "things" not in project.tables()
    return project


@servers_only("sqlite", "mariadb")
def test_a_copy_whose_table_is_gone_takes_its_place(replaced: AlembicProject, new_url: Callable[[str], URL]) -> None:
    """With the indexes that were read of the table, which are known of the revisions before."""
    found = resume(replaced)
    assert found.exit_code == 0, found.output
    for words in ("the table 'things' is gone, and _alembic_tmp_things has its rows", "sends CREATE", "ix_both"):
        assert words in found.output, found.output
    whole = upgraded(replaced, new_url)
    assert whole.query("SELECT id, name, later FROM things") == [(1, "a", 7), (2, "b", 7)]
    assert replaced.schema() == whole.schema()
    assert replaced.query("SELECT * FROM db_smart_progress") == []
    assert replaced.boot().applied == ()
    if replaced.dialect == "sqlite":
        assert len(list(replaced.instance.rglob("*-before-b2.sqlite"))) == 1


@servers_only("sqlite", "mariadb")
@pytest.mark.parametrize("words", ["RENAME", "CREATE INDEX ix_city", "ADD COLUMN later", "UPDATE things"])
def test_a_kill_while_the_copy_takes_its_place(
    replaced: AlembicProject, new_url: Callable[[str], URL], words: str
) -> None:
    def run() -> None:
        def look(_: Any, __: Any, statement: str, *more: Any) -> None:
            if words in statement and begun:
                signal.raise_signal(signal.SIGKILL)
            if "INSERT INTO db_smart_progress" in statement:
                begun.append(True)

        begun: list[bool] = []
        sa.event.listen(sa.Engine, "before_cursor_execute", look)
        resume(replaced, DB_SMART_LEASE_SECONDS=0.2)

    assert ended(forked(run)) == -signal.SIGKILL
    replaced.boot()
    whole = upgraded(replaced, new_url)
    assert replaced.schema() == whole.schema()
    assert replaced.query("SELECT * FROM db_smart_progress") == []


#: Where the ending of a batch cannot be known, what is done before the rescue, and the words.
UNKNOWN = {
    "column made by hand": ("ALTER TABLE _alembic_tmp_things ADD COLUMN by_hand INTEGER", "its column 'by_hand' is"),
    "its table made anew": ("CREATE TABLE things (id INTEGER NOT NULL PRIMARY KEY)", "is there as well"),
}


@servers_only("sqlite", "mariadb")
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_copy_that_is_not_that_of_the_revisions_is_left(replaced: AlembicProject, name: str) -> None:
    sql, words = UNKNOWN[name]
    replaced.query(sql)
    before = replaced.schema()
    found = resume(replaced, "--yes")
    assert found.exit_code == 1, found.output
    for text in (REFUSED, words, "flask db-smart stamp b2"):
        assert text in found.output, found.output
    assert replaced.schema() == before


@servers_only("sqlite", "mariadb")
def test_which_of_two_copies_is_left_is_not_guessed(replaced: AlembicProject) -> None:
    batch = """
    with op.batch_alter_table("things", recreate="always") as batch:
        batch.create_index("ix_{}", ["city"])
    """
    path = replaced.alembic / "versions" / "b2.py"
    path.write_text(path.read_text().replace("\n\n\ndef downgrade", batch.format(2) + "\n\n\ndef downgrade"))
    before = replaced.schema()
    found = resume(replaced, "--yes")
    assert found.exit_code == 1, found.output
    assert "puts a copy in the place of 'things' 2 times" in found.output
    assert replaced.schema() == before


@servers_only("sqlite", "mariadb")
def test_a_copy_is_named_where_the_revisions_do_not_run_elsewhere(replaced: AlembicProject) -> None:
    path = replaced.alembic / "versions" / "a1.py"
    path.write_text(path.read_text().replace("def upgrade():", "def upgrade():\n    raise ValueError('not again')"))
    before = replaced.schema()
    found = resume(replaced, "--yes")
    assert found.exit_code == 1, found.output
    for text in (REFUSED, "not again", "ALTER TABLE _alembic_tmp_things RENAME TO things", "flask db-smart stamp b2"):
        assert text in found.output, found.output
    assert replaced.schema() == before


@servers_only("postgresql")
def test_a_copy_on_postgresql_is_named(things: AlembicProject) -> None:
    things.revision(
        "b2",
        "a1",
        """
        with op.get_context().autocommit_block():
            with op.batch_alter_table("things", recreate="always") as batch:
                batch.create_index("ix_n", ["n"])
        """,
    )
    killed_before(things, "RENAME")
    before = things.schema()
    found = resume(things, "--yes")
    assert found.exit_code == 1, found.output
    assert "ALTER TABLE _alembic_tmp_things RENAME TO things" in found.output
    assert things.schema() == before


@servers_only("mariadb")
def test_an_empty_copy_is_filled(things: AlembicProject) -> None:
    """The rows were not committed, as the table that they came from was still there."""
    things.revision(
        "b2",
        "a1",
        """
        with op.batch_alter_table("things", recreate="always") as batch:
            batch.alter_column("n", new_column_name="renamed", existing_type=sa.Integer)
        """,
    )
    killed_before(things, "DROP TABLE")
    found = resume(things)
    assert found.exit_code == 0, found.output
    assert things.query("SELECT id, renamed FROM things") == [(1, 0)]
    assert "_alembic_tmp_things" not in things.tables()


#: Revisions of which it cannot be known how far they have come, before what they are killed, and the reason.
UNCLEAR = {
    "looks first": (
        """
        if "a" not in [one["name"] for one in sa.inspect(op.get_bind()).get_columns("things")]:
            op.add_column("things", sa.Column("a", sa.Integer))
            op.execute("UPDATE things SET n = n + 1")
        """,
        "UPDATE things",
        "asks what the schema has",
    ),
    "looks first, and then changes rows": (
        """
        if "a" not in [one["name"] for one in sa.inspect(op.get_bind()).get_columns("things")]:
            op.add_column("things", sa.Column("a", sa.Integer, server_default="0"))
            op.execute("UPDATE things SET a = a + 1")
        op.execute("UPDATE things SET n = n + 1")
        """,
        "a = a + 1",
        "asks what the schema has",
    ),
    "reads rows and decides": (
        """
        op.add_column("things", sa.Column("a", sa.Integer))
        if op.get_bind().scalar(sa.text("SELECT count(*) FROM things")):
            op.add_column("things", sa.Column("b", sa.Integer))
        op.execute("UPDATE things SET n = n + 1")
        """,
        "UPDATE things",
        "may decide by them",
    ),
    "rows that are others": (
        """
        old = op.get_bind().execute(sa.text("SELECT * FROM things")).all()
        op.add_column("things", sa.Column("a", sa.String(20)))
        for row in old:
            op.get_bind().execute(sa.text("UPDATE things SET a = :a"), {"a": f"was {row}"})
        """,
        "UPDATE things",
        "cannot be read again",
    ),
    "there before and after": (
        """
        op.drop_column("things", "n")
        op.add_column("things", sa.Column("n", sa.String(20)))
        op.execute("UPDATE things SET n = 'x'")
        """,
        "UPDATE things",
        "more than one state",
    ),
    "rows in autocommit": (
        """
        op.add_column("things", sa.Column("a", sa.Integer))
        with op.get_context().autocommit_block():
            op.execute("UPDATE things SET n = n + 1")
            op.execute("UPDATE things SET n = n + 10")
        """,
        "n + 10",
        "does not tell whether this was done",
    ),
    "another text each time": (
        """
        import uuid
        op.execute(f"ALTER TABLE things ADD COLUMN a{uuid.uuid4().hex} INTEGER")
        op.execute("UPDATE things SET n = n + 1")
        """,
        "UPDATE things",
        "another text each time",
    ),
    "db.session": (
        """
        from flask import current_app
        op.add_column("things", sa.Column("a", sa.Integer))
        current_app.extensions["sqlalchemy"].session.execute(sa.text("SELECT n FROM things")).all()
        op.execute("UPDATE things SET n = n + 1")
        """,
        "UPDATE things",
        "db.session",
    ),
}


@servers_only("sqlite", "mariadb")
@pytest.mark.parametrize("name", UNCLEAR)
def test_where_it_cannot_be_known_nothing_is_changed(things: AlembicProject, name: str) -> None:
    body, words, reason = UNCLEAR[name]
    things.revision("b2", "a1", body)
    killed_before(things, words)
    before = things.schema()
    found = resume(things, "--yes")
    assert found.exit_code == 1, found.output
    for text in (REFUSED, reason, "Nothing was changed", "flask db-smart stamp b2"):
        assert text in found.output, found.output
    assert things.schema() == before
    assert things.query("SELECT * FROM db_smart_progress") == []
    assert things.run("stamp", "b2", "--yes").exit_code == 0
    assert things.boot().applied == ()


#: What is there for another reason, by the name of what a revision makes, in another form: the body, what was made
#: there, and the words.
OTHERS = {
    "type of a column": (
        KINDS["column"][0],
        "ALTER TABLE things ADD COLUMN a VARCHAR(20)",
        "'a' of the table 'things' is VARCHAR(20), and this revision makes INTEGER",
    ),
    "default of a column": (
        'op.add_column("things", sa.Column("a", sa.Integer, server_default="7"))',
        "ALTER TABLE things ADD COLUMN a INTEGER DEFAULT 8",
        "'a' of the table 'things'",
    ),
    "column of a table": (
        KINDS["table"][0],
        "CREATE TABLE more (id VARCHAR(20) NOT NULL PRIMARY KEY)",
        "'id' of the table 'more'",
    ),
    "columns of an index": (KINDS["index"][0], "CREATE INDEX ix_n ON things (id)", "The index 'ix_n'"),
    "unique index": (KINDS["index"][0], "CREATE UNIQUE INDEX ix_n ON things (n)", "The index 'ix_n'"),
}


@servers_only("sqlite", "mariadb")
@pytest.mark.parametrize("name", OTHERS)
def test_what_has_another_form_was_made_by_somebody_else(things: AlembicProject, name: str) -> None:
    body, made, words = OTHERS[name]
    things.revision("b2", "a1", f"{body}\nop.execute('UPDATE things SET n = n + 1')")
    things.query(made)
    before = things.schema()
    found = resume(things, "--yes")
    assert found.exit_code == 1, found.output
    for text in (REFUSED, words, "Nothing was changed"):
        assert text in found.output, found.output
    assert things.schema() == before


#: How a revision changes rows past its connection.
PAST = {
    "engine of its own": "engine = sa.create_engine(op.get_bind().engine.url)",
    "engine of the connection": "engine = op.get_bind().engine",
}


@servers_only("sqlite", "mariadb")
@pytest.mark.parametrize("past", PAST)
def test_nothing_is_changed_past_the_connection_of_the_revision(things: AlembicProject, past: str) -> None:
    things.revision(
        "b2",
        "a1",
        f"""
        {PAST[past]}
        with engine.begin() as other:
            other.execute(sa.text("UPDATE things SET n = n + 100"))
        engine.dispose()
        op.add_column("things", sa.Column("a", sa.Integer))
        op.execute("UPDATE things SET a = 1")
        """,
    )
    killed_before(things, "SET a")
    assert values(things) == [(1, 100)]
    found = resume(things, "--yes")
    assert found.exit_code == 1, found.output
    assert "it uses a connection of its own" in found.output
    assert values(things) == [(1, 100)]


@servers_only("sqlite")
def test_nothing_is_changed_elsewhere(things: AlembicProject) -> None:
    """By another program, for instance."""
    made = things.directory / "made"
    things.revision(
        "b2",
        "a1",
        f"""
        import subprocess, sys
        op.add_column("things", sa.Column("a", sa.Integer))
        subprocess.run([sys.executable, "-c", "open({str(made)!r}, 'a').write('x')"], check=True)
        op.execute("UPDATE things SET a = 1")
        """,
    )
    killed_before(things, "SET a")
    found = resume(things, "--yes")
    assert found.exit_code == 1, found.output
    assert "it reaches what is not in this database (subprocess.Popen)" in found.output
    assert made.read_text() == "x"


@servers_only("sqlite")
def test_what_was_taken_away_again_does_not_count_as_never_made(things: AlembicProject) -> None:
    """The column is gone because the batch is done, which its code cannot do again."""
    things.revision(
        "b2",
        "a1",
        """
        op.add_column("things", sa.Column("a", sa.Integer))
        op.execute("UPDATE things SET n = n + 1")
        with op.batch_alter_table("things") as batch:
            batch.drop_column("a")
        with op.get_context().autocommit_block():
            op.execute("SELECT 1")
            op.add_column("things", sa.Column("b", sa.Integer))
        """,
    )
    killed_before(things, "ADD COLUMN b")
    assert values(things) == [(1, 1)]
    before = things.schema()
    found = resume(things, "--yes")
    assert found.exit_code == 1, found.output
    assert "cannot be followed to its end" in found.output
    assert things.schema() == before


@servers_only("mariadb")
def test_the_number_of_a_row_that_was_inserted_is_not_guessed(
    make_alembic: Callable[..., AlembicProject], url: URL
) -> None:
    project = make_alembic(url)
    project.revision("a1", None, 'op.create_table("p", sa.Column("id", sa.Integer, primary_key=True))')
    project.revision(
        "b2",
        "a1",
        """
        p = sa.table("p", sa.column("id", sa.Integer))
        result = op.get_bind().exec_driver_sql("INSERT INTO p () VALUES ()")
        number = result.lastrowid
        op.create_table("c", sa.Column("p_id", sa.Integer))
        op.execute(f"INSERT INTO c (p_id) VALUES ({number})")
        """,
    )
    killed_before(project, "INSERT INTO c")
    found = resume(project, "--yes")
    assert found.exit_code == 1
    assert "the number of a row that it has inserted" in found.output


@servers_only("mariadb")
def test_nothing_is_concluded_while_a_session_changes_the_schema(things: AlembicProject) -> None:
    things.revision("b2", "a1", 'op.add_column("things", sa.Column("a", sa.Integer))')
    things.revision("c3", "b2", "op.execute('UPDATE things SET n = n + 1')")
    change = "ALTER TABLE things ADD COLUMN a INTEGER"
    with connected(things.url) as other, ThreadPoolExecutor() as pool:
        number = other.exec_driver_sql("SELECT connection_id()").scalar_one()
        with holding(things.url, "SELECT n FROM things"):
            changing = pool.submit(other.exec_driver_sql, change)
            query = "SELECT state FROM information_schema.processlist WHERE id = :number"
            while "metadata lock" not in str(things.query(query, number=number)):
                assert not changing.done()
            found = resume(things)
            assert found.exit_code == 1
            assert f"another session is still busy with: {change}" in found.output
        changing.result()
        found = resume(things)
    assert found.exit_code == 0, found.output
    assert things.columns("things") == {"id", "n", "a"}


def test_nothing_half_done_runs_as_any_other(things: AlembicProject) -> None:
    things.revision("b2", "a1", 'op.add_column("things", sa.Column("a", sa.Integer))')
    found = resume(things, "b2")
    assert found.exit_code == 0, found.output
    assert "b2: nothing of it is there, so it runs as any other." in found.output
    assert things.heads() == {"b2"}
    found = resume(things)
    assert found.exit_code == 0
    assert "No revision of Alembic is pending" in found.output


@servers_only("sqlite")
def test_what_cannot_be_resumed_is_said(things: AlembicProject) -> None:
    things.revision("b2", "a1", 'op.add_column("things", sa.Column("a", sa.Integer))')
    things.revision("c3", "b2")
    for args, words in (
        (("c3",), "The next revision on the database 'default' is 'b2', not 'c3'"),
        (("a1",), "'a1' is no revision that is pending"),
        (("zz",), "There is no migration or revision 'zz'"),
        (("--dry-run",), "--resume cannot be combined with --dry-run"),
    ):
        found = resume(things, *args)
        assert found.exit_code != 0
        assert words in found.output
        assert things.heads() == {"a1"}


@pytest.mark.parametrize("again", ["column", "table"])
@servers_only("sqlite", "mariadb")
def test_the_message_of_what_is_there_already_names_the_command(things: AlembicProject, again: str) -> None:
    things.revision("b2", "a1", f"{KINDS[again][0]}\nop.execute('UPDATE things SET n = n + 1')")
    killed_before(things, "UPDATE things")
    with pytest.raises(MigrationFailed, match=r"flask db-smart migrate --resume b2'\.$"):
        things.boot()
    assert resume(things, "b2").exit_code == 0
    assert values(things, "SELECT n FROM things") == [(1,)]


@servers_only("postgresql")
def test_a_part_in_autocommit_on_postgresql(things: AlembicProject) -> None:
    things.revision(
        "b2",
        "a1",
        """
        op.execute("UPDATE things SET n = n + 1")
        with op.get_context().autocommit_block():
            op.create_index("ix_n", "things", ["n"], postgresql_concurrently=True)
        op.execute("UPDATE things SET n = n + 10")
        """,
    )
    killed_before(things, "n + 10")
    found = resume(things)
    assert found.exit_code == 0, found.output
    assert values(things) == [(1, 11)]


@servers_only("sqlite")
def test_a_kill_of_the_rescue_itself_is_gone_on_from(things: AlembicProject) -> None:
    things.revision(
        "b2",
        "a1",
        """
        op.add_column("things", sa.Column("a", sa.Integer))
        op.add_column("things", sa.Column("b", sa.Integer))
        op.execute("UPDATE things SET n = n + 1")
        """,
    )
    killed_before(things, "ADD COLUMN b")

    def run() -> None:
        def look(_: Any, __: Any, statement: str, *more: Any) -> None:
            if "UPDATE alembic_version" in statement:
                signal.raise_signal(signal.SIGKILL)

        sa.event.listen(sa.Engine, "before_cursor_execute", look)
        resume(things)

    assert ended(forked(run)) == -signal.SIGKILL
    assert things.boot().applied == ("b2",)
    assert values(things) == [(1, 1)]
    assert things.columns("things") == {"id", "n", "a", "b"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def upgrade():\n    for x in rows: execute('UPDATE t SET n = 1')", False),
        ("def upgrade():\n    if x: op.add_column('t', c)", True),
        ("def upgrade():\n    for x in y: op.execute('ALTER TABLE t ADD c INT')", True),
        ("def upgrade():\n    if x: return\n    op.add_column('t', c)", True),
        ("def upgrade():\n    pass\ndef downgrade():\n    if x: op.drop_column('t', 'c')", False),
    ],
)
def test_whether_code_decides_what_it_changes(source: str, expected: bool) -> None:
    assert decides(source) is expected


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_not_understood_is_not_taken_for_seen(dialect: str) -> None:
    facts = facts_of("mysql" if dialect == "mariadb" else dialect)
    for statement in ("CREATE TRIGGER x", "ALTER TABLE t ADD UNIQUE (n)", "ALTER TABLE t ADD PRIMARY KEY (n)", "DO 1"):
        assert changes_of(statement, facts)[:2] == ((), False), statement
    several = changes_of("ALTER TABLE t ADD COLUMN a NUMERIC(10, 2), DROP COLUMN b", facts)
    assert [(one.kind, one.name) for one in several.seen] == [("make column", "a"), ("drop column", "b")]
