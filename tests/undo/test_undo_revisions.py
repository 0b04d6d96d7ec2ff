"""``flask db-smart undo`` of revisions of Alembic runs their ``downgrade()``, and loses no row that was not named."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DbSmartError
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import counted, ended, forked
from tests.harness.project import DIALECTS, HEADER

USERS = """
op.create_table(
    "users", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("name", sa.String(20))
)
op.execute("INSERT INTO users (id, name) VALUES (1, 'a'), (2, 'b')")
"""
#: The same rows are changed twice, before and after what commits on MariaDB.
TWICE = """
op.execute("UPDATE users SET name = 'once' WHERE name <> 'twice'")
op.drop_table("notes")
op.execute("UPDATE users SET name = 'twice' WHERE name = 'once'")
with op.batch_alter_table("users") as batch:
    batch.drop_column("mail")
"""
SEVERAL = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "b2", None


def upgrade(engine_name):
    globals()[f"upgrade_{engine_name}"]()


def downgrade(engine_name):
    globals()[f"downgrade_{engine_name}"]()


def upgrade_():
    op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))


def downgrade_():
    op.drop_table("users")


def upgrade_other():
    op.create_table("books", sa.Column("id", sa.Integer, primary_key=True))


def downgrade_other():
    op.drop_table("books")
"""
CONFIG = {"DB_SMART_SNAPSHOTS": 0, "DB_SMART_LEASE_SECONDS": 0.2}


def column(name: str, table: str = "users") -> dict[str, str]:
    """A revision that adds a column, and its way back; SQLite builds the table again for that."""
    return {
        "upgrade": f'op.add_column("{table}", sa.Column("{name}", sa.String(20)))',
        "downgrade": f'with op.batch_alter_table("{table}") as batch:\n    batch.drop_column("{name}")',
    }


def table(name: str) -> dict[str, str]:
    made = f'op.create_table("{name}", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))'
    return {"upgrade": made, "downgrade": f'op.drop_table("{name}")'}


@pytest.fixture
def project(make_alembic: Callable[..., AlembicProject], url: URL) -> AlembicProject:
    """A project with one applied revision on each kind of database in turn."""
    made = make_alembic(url, CONFIG)
    made.revision("a1", None, USERS, downgrade='op.drop_table("users")')
    made.boot()
    return made


def undone(project: AlembicProject, *options: str) -> str:
    result = project.run("undo", "--yes", *options)
    assert result.exit_code == 0, result.output
    return str(result.output)


def refused(project: AlembicProject, *options: str) -> str:
    before, heads, schema = project.history(), project.heads(), project.schema()
    result = project.run("undo", "--yes", *options)
    assert result.exit_code != 0, result.output
    assert "Traceback" not in result.output
    assert (project.history(), project.heads(), project.schema()) == (before, heads, schema)
    return str(result.output)


def archived(project: AlembicProject) -> dict[str, list[Any]]:
    names = sorted(name for name in project.tables() if name.startswith("db_smart_archive_"))
    quote = "`" if project.dialect == "mysql" else '"'
    return {name: sorted(project.query(f"SELECT * FROM {quote}{name}{quote}")) for name in names}


def test_a_run_is_taken_back_as_a_whole_and_a_boot_applies_it_again(project: AlembicProject) -> None:
    before = project.schema()
    project.revision("b2", "a1", **column("mail"))
    project.revision("c3", "b2", **table("notes"))
    project.boot()
    after = project.schema()
    shown = project.run("undo", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "2 to undo" in shown.output
    assert "DROP TABLE notes" in shown.output
    assert project.schema() == after
    said = undone(project)
    assert [line.split()[-1] for line in said.splitlines() if "took back" in line] == ["c3", "b2"]
    assert "the next boot applies them again" in said
    assert project.schema() == before
    assert project.heads() == {"a1"}
    assert project.history()[-2:] == [("c3", "taken back"), ("b2", "taken back")]
    assert project.query("SELECT * FROM db_smart_progress") == []
    status = json.loads(project.run("status", "--json").stdout)
    assert [one["name"] for one in status["databases"][0]["pending"]] == ["b2", "c3"]
    assert project.flask_db("check").exit_code != 0  # the database is behind
    assert project.boot().applied == ("b2", "c3")
    assert project.schema() == after


def test_the_code_without_the_revision_boots_without_it(project: AlembicProject) -> None:
    path = project.revision("b2", "a1", **column("mail"))
    project.boot()
    undone(project, "b2")
    path.unlink()
    assert project.boot().applied == ()
    assert project.heads() == {"a1"}


def test_rows_that_would_be_lost_are_named_kept_or_discarded(project: AlembicProject) -> None:
    project.revision("b2", "a1", **column("mail"))
    project.revision("c3", "b2", **table("notes"))
    project.boot()
    project.query("UPDATE users SET mail = 'x' WHERE id = 2")
    project.query("INSERT INTO notes (id) VALUES (7), (8)")
    said = refused(project)
    assert "2 rows of the table 'notes' would be lost: --archive" in said
    assert "1 value of the column 'mail' of 'users' would be lost" in said
    number = project.query("SELECT id FROM db_smart_history WHERE name = 'b2'")[0][0]
    undone(project, "--archive")
    assert archived(project) == {
        f"db_smart_archive_{number}_users_mail": [(2, "x")],
        f"db_smart_archive_{number + 1}_notes": [(7,), (8,)],
    }
    assert project.heads() == {"a1"}
    assert project.query("SELECT * FROM db_smart_progress") == []
    project.boot()
    project.query("UPDATE users SET mail = 'y'")
    assert "lost 2 values of the column 'mail'" in undone(project, "--discard")
    assert project.columns("users") == {"id", "name"}


RAW = {
    "table": ('op.execute("DROP TABLE notes")', "1 row of the table 'notes' would be lost"),
    "rows": (
        'op.execute("DELETE FROM notes")\nop.drop_table("notes")',
        "DELETE FROM notes: what that takes away cannot",
    ),
    "loop": (
        'for (one,) in op.get_bind().execute(sa.text("SELECT id FROM notes")).all():\n'
        '    op.execute(f"UPDATE notes SET id = {one + 10} WHERE id = {one}")\nop.drop_table("notes")',
        "UPDATE notes SET id = 17 WHERE id = 7: what that takes away cannot",
    ),
}


@pytest.mark.parametrize("raw", RAW)
def test_raw_sql_that_takes_rows_away_is_named(project: AlembicProject, raw: str) -> None:
    project.revision("b2", "a1", table("notes")["upgrade"], downgrade=RAW[raw][0])
    project.boot()
    project.query("INSERT INTO notes (id) VALUES (7)")
    assert RAW[raw][1] in refused(project)
    undone(project, "--discard")
    assert "notes" not in project.tables()


def test_what_a_statement_runs_for_the_session_is_only_looked_at(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    project = make_alembic(new_url("mariadb"), CONFIG)
    drop = 'op.execute("SET STATEMENT max_statement_time=60 FOR DROP TABLE notes")'
    project.revision("a1", None, table("notes")["upgrade"], downgrade=drop)
    project.boot()
    project.query("INSERT INTO notes (id) VALUES (7)")
    assert "1 row of the table 'notes' would be lost" in refused(project)
    undone(project, "--archive")
    assert archived(project) == {"db_smart_archive_1_notes": [(7,)]}


def test_a_dry_run_waits_for_no_writer(make_alembic: Callable[..., AlembicProject], sqlite_url: URL) -> None:
    project = make_alembic(sqlite_url, CONFIG)
    project.revision("a1", None, USERS, downgrade='op.drop_table("users")')
    project.boot()
    with closing(sqlite3.connect(str(sqlite_url.database), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        shown = project.run("undo", "--dry-run")
        writer.execute("ROLLBACK")
    assert "2 rows of the table 'users' would be lost" in shown.output


def test_what_the_code_hides_is_kept_right_before_it_is_sent(project: AlembicProject) -> None:
    """Its ``downgrade()`` cannot be followed, so that nothing is known of rows before."""
    hidden = 'op.get_bind().engine.connect().close()\nop.drop_table("notes")'
    project.revision("b2", "a1", table("notes")["upgrade"], downgrade=hidden)
    project.boot()
    project.query("INSERT INTO notes (id) VALUES (7)")
    said = refused(project, "--archive")
    assert "its downgrade() cannot be followed to its end (it uses a connection of its own)" in said
    undone(project, "--archive", "--discard")
    assert [*archived(project).values()] == [[(7,)]]


def test_rows_that_a_policy_hides_are_not_lost(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    url = new_url("postgresql")
    project, role = make_alembic(url, CONFIG), f"owner_{url.database}"
    project.query(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    project.query(f"GRANT ALL ON SCHEMA public TO {role}")
    try:
        project.url = url.set(username=role, password="x")
        back = 'op.drop_table("notes")'
        hidden = f"op.get_bind().engine.connect().close()\n{back}"
        project.revision("a1", None, table("notes")["upgrade"], downgrade=back)
        project.boot()
        project.query("INSERT INTO notes VALUES (1)")
        project.query("CREATE POLICY none ON notes USING (false)")
        project.query("ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        assert 'row-level security policy for table "notes"' in refused(project)
        project.revision("a1", None, table("notes")["upgrade"], downgrade=hidden)
        assert 'row-level security policy for table "notes"' in refused(project, "--discard")
        project.url = url
        assert project.query("SELECT * FROM notes") == [(1,)]
    finally:
        project.url = url
        project.query(f"DROP OWNED BY {role}")
        project.query(f"DROP ROLE {role}")


WAYS = {
    "pass": ("pass", "its downgrade() does nothing"),
    "raises": ('raise NotImplementedError("no way")', "its downgrade() raises an error"),
    "late": ("irreversible()", "its downgrade() raises an error"),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_back_is_refused_before_anything_is_done(project: AlembicProject, way: str) -> None:
    path = project.revision("b2", "a1", column("mail")["upgrade"], downgrade=WAYS[way][0])
    with path.open("a") as file:
        file.write("\n\ndef irreversible():\n    raise NotImplementedError\n")
    project.revision("c3", "b2", **table("notes"))
    project.boot()
    assert WAYS[way][1] in refused(project)
    assert WAYS[way][1] in refused(project, "--discard")


def test_no_downgrade_at_all_is_refused(project: AlembicProject) -> None:
    path = project.revision("b2", "a1", column("mail")["upgrade"])
    path.write_text(path.read_text().partition("def downgrade")[0])
    project.boot()
    assert "it has no downgrade()" in refused(project)


def test_changed_rows_are_named_and_stay(project: AlembicProject) -> None:
    """Nothing else was done, so that a ``downgrade()`` that does nothing is right."""
    project.revision("b2", "a1", "op.execute(\"UPDATE users SET name = 'z' WHERE id = 1\")")
    project.boot()
    shown = project.run("undo", "--dry-run")
    assert "stays, and would be done again with it: UPDATE users SET name = 'z' WHERE id = 1 (unless" in shown.output
    undone(project)
    assert project.heads() == {"a1"}
    assert project.query("SELECT name FROM users ORDER BY id") == [("z",), ("b",)]


def test_a_middle_one_is_refused_until_those_after_it_are_taken_back(project: AlembicProject) -> None:
    project.revision("b2", "a1", **column("mail"))
    project.boot()
    project.revision("c3", "b2", **table("notes"))
    project.boot()
    assert "'c3' comes after it; undo that first" in refused(project, "b2")
    undone(project, "c3")
    undone(project, "b2")
    assert project.heads() == {"a1"}


def test_branches_merges_and_dependencies_leave_the_rows_of_before(project: AlembicProject) -> None:
    project.target = "heads"
    project.revision("b2", "a1", **table("bees"))
    project.revision("b3", "a1", **table("bears"))
    project.revision("other", None, **table("others"), labels=("aside",), depends_on="b2")
    project.boot()
    before = project.heads()
    project.revision("m4", ("b2", "b3"))
    project.boot()
    after = project.heads()
    assert (len(before), len(after)) == (2, 2)
    undone(project)
    assert project.heads() == before
    undone(project)
    assert project.heads() == {"a1"}
    assert project.tables() & {"bees", "bears", "others"} == set()
    assert project.boot().applied[-1] == "m4"
    assert project.heads() == after


def test_migrations_of_the_run_go_first(
    project: AlembicProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    project.migrations = f"own_{project.module}"
    project.revision("b2", "a1", **table("notes"))
    added = 'op.add_column("notes", Column("t", String(9)))'
    (tmp_path / f"{project.migrations}.py").write_text(f"{HEADER}\n@migration\ndef texts(op):\n    {added}\n")
    project.boot()
    assert [name for name, _ in project.history()[-2:]] == ["b2", "texts"]
    project.query("INSERT INTO notes (id, t) VALUES (1, 'x')")
    assert "'texts' (run 3) has changed it since; undo that first" in refused(project, "b2", "--discard")
    undone(project, "--archive")
    assert project.history()[-2:] == [("texts", "taken back"), ("b2", "taken back")]
    assert archived(project) == {"db_smart_archive_3_notes_t": [(1, "x")], "db_smart_archive_2_notes": [(1,)]}
    assert project.heads() == {"a1"}


def test_what_alembic_alone_has_applied_is_taken_back_when_it_is_named(
    make_alembic: Callable[..., AlembicProject], sqlite_url: URL
) -> None:
    project = make_alembic(sqlite_url)
    project.revision("a1", None, USERS, downgrade='op.drop_table("users")')
    project.revision("b2", "a1", **column("mail"))
    project.upgrade()
    project.run("migrate")
    assert project.history() == [("a1", "applied"), ("b2", "applied")]
    assert "Alembic alone has applied it" in refused(project)
    undone(project, "b2")
    assert project.heads() == {"a1"}
    project.boot()
    project.flask_db("downgrade")
    assert "no run 'b2'" in refused(project, "b2")


def test_a_version_table_of_its_own(make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]) -> None:
    project = make_alembic(new_url("postgresql"), CONFIG)
    project.query("CREATE SCHEMA versions")
    project.migrate_options = {"version_table": "applied", "version_table_schema": "versions"}
    project.revision("a1", None, **table("users"))
    project.revision("b2", "a1", **column("mail"))
    project.boot()
    undone(project)
    assert project.query("SELECT * FROM versions.applied") == []
    assert "users" not in project.tables()
    assert "alembic_version" not in project.tables()


def test_json_says_it_all(project: AlembicProject) -> None:
    project.revision("b2", "a1", column("mail")["upgrade"], downgrade='op.execute("DELETE FROM users")\npass')
    project.boot()
    (run,) = json.loads(project.run("undo", "--dry-run", "--json").stdout)["runs"]
    assert (run["name"], run["unforeseen"]) == ("b2", ["DELETE FROM users"])


def undo(project: AlembicProject, die_before: int, *options: str) -> None:
    with counted(die_before):
        result = project.run("undo", "b2", "--yes", *options)
    assert result.exit_code == 0, result.output


BACK = """
op.execute("UPDATE users SET name = name || '!'" if op.get_bind().dialect.name != "mysql"
           else "UPDATE users SET name = concat(name, '!')")
op.drop_table("notes")
with op.batch_alter_table("users") as batch:
    batch.drop_column("mail")
op.execute("INSERT INTO log (id) SELECT 1 + count(*) FROM log")
"""


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_undo_that_was_killed_anywhere_goes_on(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    """At each statement: nothing is lost, nothing is done twice."""
    project = make_alembic(new_url(dialect), CONFIG)
    project.revision("a1", None, f"{USERS}\n{table('log')['upgrade']}", downgrade='op.drop_table("users")')
    both = f"{column('mail')['upgrade']}\n{table('notes')['upgrade']}"
    project.revision("b2", "a1", both, downgrade=BACK)
    for number in range(1, 200):
        project.boot()
        project.query("UPDATE users SET name = 'n', mail = 'x'")
        project.query("INSERT INTO notes (id) VALUES (7)")
        project.query("DELETE FROM log")
        code = ended(forked(undo, project, number, "--archive", "--discard"))
        if code == -signal.SIGKILL and project.heads() == {"b2"}:
            assert project.history()[-1] == ("b2", "applied")
            assert ended(forked(undo, project, 0, "--archive", "--discard")) == 0
        else:
            assert code in (0, -signal.SIGKILL)
        where = f"killed before statement {number}"
        assert project.history()[-1] == ("b2", "taken back"), where
        assert project.heads() == {"a1"}, where
        assert project.query("SELECT id, name FROM users ORDER BY id") == [(1, "n!"), (2, "n!")], where
        assert project.query("SELECT id FROM log") == [(1,)], where
        assert project.columns("users") == {"id", "name"}, where
        kept = archived(project)
        assert sorted(kept.values(), key=str) == [[(1, "x"), (2, "x")], [(7,)]], where
        for name in kept:
            project.query(f"DROP TABLE {name}")
        assert project.query("SELECT * FROM db_smart_progress") == [], where
        if dialect == "mariadb":
            project.query("ALTER TABLE users FORCE")  # it takes only so many columns that come and go
        if code == 0:
            break
    assert number > 3


def undo_and_die(project: AlembicProject, before: str) -> None:
    """Undo, and be killed before a statement, after the two times in which it is only looked at."""
    met = 0

    def die(*event: Any) -> None:
        nonlocal met
        met += event[2].startswith(before)
        if met == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", die)
    project.run("undo", "--yes", "--archive", "--discard")


def test_a_killed_undo_is_gone_on_with(project: AlembicProject, caplog: pytest.LogCaptureFixture) -> None:
    """Until then nothing is migrated, and who looks is told, where a part of it is done."""
    project.revision("b2", "a1", f"{column('mail')['upgrade']}\n{table('notes')['upgrade']}", downgrade=TWICE)
    project.boot()
    project.query("UPDATE users SET mail = 'x' WHERE id = 1")
    project.query("INSERT INTO notes (id) VALUES (7)")
    assert ended(forked(undo_and_die, project, "UPDATE users SET name = 'twice'")) == -signal.SIGKILL
    assert project.heads() == {"b2"}
    assert project.history()[-1] == ("b2", "applied")
    half = project.dialect == "mysql"
    assert ("notes" in project.tables()) != half
    status = project.run("status")
    assert ("An undo of run 2 was interrupted" in status.output) == half
    assert json.loads(project.run("status", "--json").stdout)["databases"][0]["half_undone"] == [2] * half
    for _ in range(2):
        caplog.clear()
        assert project.boot().applied == ()
        assert ("'flask db-smart undo 2' goes on with it" in caplog.text) == half
    later = project.revision("c3", "b2", **table("more"))
    if half:
        with pytest.raises(DbSmartError, match="An undo of run 2 was interrupted"):
            project.boot()
    later.unlink()
    undone(project, "--archive", "--discard")
    assert project.heads() == {"a1"}
    assert project.history()[-1] == ("b2", "taken back")
    assert project.query("SELECT name FROM users ORDER BY id") == [("twice",), ("twice",)]
    assert project.columns("users") == {"id", "name"}
    assert sorted(archived(project).values(), key=str) == [[(1, "x")], [(7,)]]
    assert project.query("SELECT * FROM db_smart_progress") == []


def test_one_of_several_databases(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], tmp_path: Path
) -> None:
    other = f"sqlite:///{tmp_path}/other.sqlite"
    project = make_alembic(new_url("sqlite"), {"SQLALCHEMY_BINDS": {"other": other}, **CONFIG}, multidb=True)
    (project.alembic / "versions" / "b2.py").write_text(SEVERAL)
    project.boot()
    undone(project, "--database", "other")
    there = project.at(other)
    assert (project.heads(), there.heads()) == ({"b2"}, set())
    assert "books" not in there.tables()
    assert "users" in project.tables()


def test_an_undo_that_fails_at_once_leaves_nothing(project: AlembicProject) -> None:
    """So that nothing is in the way of the next migration; and one that fails later is gone on with."""
    project.revision("b2", "a1", table("notes")["upgrade"], downgrade='op.execute("DROP TABLE nowhere")')
    project.boot()
    result = project.run("undo", "--yes")
    assert result.exit_code == 1
    assert "Cannot undo 'b2'" in result.output
    assert "nowhere" in result.output
    assert project.query("SELECT * FROM db_smart_progress") == []
    project.revision("c3", "b2", **table("more"))
    assert project.boot().applied == ("c3",)
    undone(project)
    project.revision("b2", "a1", downgrade='op.drop_table("notes")\nop.execute("DROP TABLE nowhere")')
    assert "Cannot undo 'b2'" in project.run("undo", "--yes").output
    assert ("notes" in project.tables()) == (project.dialect != "mysql")
    project.revision("b2", "a1", downgrade='op.drop_table("notes")\nop.execute("DROP TABLE IF EXISTS nowhere")')
    undone(project)
    assert project.heads() == {"a1"}


MANY = {
    "parent": (
        'op.create_table("teams", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))\n'
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.add_column(sa.Column("team", sa.Integer))\n'
        '    batch.create_foreign_key("fk_team", "teams", ["team"], ["id"])',
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.drop_constraint("fk_team", type_="foreignkey")\n    batch.drop_column("team")\n'
        'op.drop_table("teams")',
    ),
    "index": ('op.create_index("ix_name", "users", ["name"])', 'op.drop_index("ix_name", "users")'),
    "type": (
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.alter_column("name", type_=sa.String(40), existing_type=sa.String(20))',
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.alter_column("name", type_=sa.String(20), existing_type=sa.String(40))',
    ),
    "enum": (
        'op.create_table("moods", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), '
        'sa.Column("mood", sa.Enum("sad", "happy", name="mood")))',
        'op.drop_table("moods")\nsa.Enum(name="mood").drop(op.get_bind(), checkfirst=True)',
    ),
    "looks": (
        'op.create_table("looks", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))',
        'if sa.inspect(op.get_bind()).has_table("looks"):\n    op.drop_table("looks")',
    ),
    "renamed": ('op.rename_table("looks", "Seen")', 'op.rename_table("Seen", "looks")'),
}


def test_what_revisions_do_is_taken_back_and_kept(project: AlembicProject) -> None:
    before, last = project.schema(), "a1"
    for name, (forth, back) in MANY.items():
        project.revision(name, last, forth, downgrade=back)
        last = name
    project.boot()
    quote = "`" if project.dialect == "mysql" else '"'
    for row in ("teams (id) VALUES (5)", "moods (id, mood) VALUES (1, 'sad')", f"{quote}Seen{quote} (id) VALUES (9)"):
        project.query(f"INSERT INTO {row}")
    project.query("UPDATE users SET team = 5 WHERE id = 1")
    shown = project.run("undo", "--dry-run").output
    for loss in ("1 row of the table 'teams'", "1 value of the column 'team' of 'users'", "1 row of the table 'moods'"):
        assert f"{loss} would be lost" in shown
    undone(project, "renamed")
    undone(project, "--archive")
    assert sorted(archived(project).values(), key=str) == [[(1, "sad")], [(1, 5)], [(5,)], [(9,)]]
    for name in archived(project):
        project.query(f"DROP TABLE {name}")
    assert project.schema() == before
    assert project.heads() == {"a1"}
    project.boot()


@pytest.mark.parametrize("again", ["never", "always"])
def test_names_that_need_quotes_are_counted_too(project: AlembicProject, again: str) -> None:
    made = 'op.create_table("Odd Name", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))'
    project.revision("b2", "a1", made, downgrade='op.drop_table("Odd Name")')
    column = f'with op.batch_alter_table("Odd Name", recreate="{again}") as batch:\n    batch.'
    add, drop = 'add_column(sa.Column("Mixed Case", sa.Integer))', 'drop_column("Mixed Case")'
    project.revision("c3", "b2", column + add, downgrade=column + drop)
    project.boot()
    quote = "`" if project.dialect == "mysql" else '"'
    table, name = (f"{quote}{one}{quote}" for one in ("Odd Name", "Mixed Case"))
    project.query(f"INSERT INTO {table} (id, {name}) VALUES (1, 2)")
    assert "1 value of the column 'Mixed Case' of 'Odd Name' would be lost" in refused(project)
    undone(project, "c3", "--archive")
    assert [*archived(project).values()] == [[(1, 2)]]
    assert "1 row of the table 'Odd Name' would be lost" in refused(project, "b2")
    undone(project, "b2", "--archive")
    assert sorted(archived(project).values()) == [[(1,)], [(1, 2)]]


def test_what_an_earlier_release_applied_is_taken_back_one_by_one(
    make_alembic: Callable[..., AlembicProject], sqlite_url: URL
) -> None:
    project = make_alembic(sqlite_url, CONFIG)
    project.revision("a1", None, table("notes")["upgrade"])
    project.revision("b2", "a1", **table("bees"))
    project.revision("m3", "b2")
    project.boot()
    project.query("UPDATE db_smart_history SET inverse = NULL")
    for heads in ({"b2"}, {"a1"}):
        undone(project)
        assert project.heads() == heads
    assert "its downgrade() does nothing" in refused(project)
