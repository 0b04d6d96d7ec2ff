"""``flask db-smart undo`` takes back what a run made, and only that; it loses no row that was not named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness.project import Project
from tests.undo.samples import BASE, apply, archives, described, refusal

CHANGES = {
    "columns": 'op.add_columns("users", Column("age", Integer, index=True), Column("mail", String(9), unique=True))',
    "keyed column": 'op.add_column("users", Column("team", Integer, ForeignKey("teams.id", name="fk_team")))',
    "indexed key": 'op.add_column("users", Column("team", Integer, ForeignKey("teams.id"), index=True))',
    "table": 'op.create_table("notes", Column("id", Integer, primary_key=True), Column("t", String(5), index=True))',
    "index": 'op.create_index("ix_name", "users", ["name", "city"], unique=True)',
    "unique": 'op.create_unique_constraint("uq_name", "users", ["name"])',
    "check": 'op.create_check_constraint("ck_points", "users", "points > 0", online=False)',
    "foreign key": 'op.create_foreign_key("fk_points", "users", "teams", ["points"], ["id"], online=False)',
    "foreign key and index": 'op.create_foreign_key("fk_points", "users", "teams", ["points"], ["id"], online=False); '
    'op.create_index("ix_points", "users", ["points"])',
    "wider type": 'op.alter_column("users", "name", type_=String(40))',
    "bigger type": 'op.alter_column("users", "points", type_=BigInteger, online=False)',
    "nullable": 'op.alter_column("users", "name", nullable=True)',
    "default": 'op.alter_column("users", "city", server_default="it\'s: 50%")',
    "no default": 'op.alter_column("users", "city", server_default=None)',
    "all of a column": 'op.alter_column("users", "name", type_=String(90), nullable=True, server_default="x")',
    "renamed column": 'op.alter_column("users", "note", new_column_name="remark")',
    "renamed table": 'op.rename_table("teams", "groups")',
    "dropped index": 'op.drop_index("ix_users_city", "users")',
    "replaced index": 'op.replace_index("ix_users_city", "users", ["city", "name"])',
    "view": 'op.view("v", "SELECT id, name FROM users")',
}


def rows(project: Project) -> list[Any]:
    return project.query("SELECT id, name, city, note, points FROM users ORDER BY id")


@pytest.mark.parametrize("change", CHANGES)
def test_each_operation_is_taken_back(project: Project, change: str) -> None:
    apply(project, CHANGES[change])
    before, had = described(project), rows(project)
    project.boot()
    assert described(project) != before, "the migration did nothing"
    result = project.run("undo", "--yes")
    assert result.exit_code == 0, result.output
    assert "took back" in result.output
    assert "the next boot applies it again" in result.output
    assert described(project) == before
    assert rows(project) == had
    assert project.history()[-1] == ("change", "taken back")
    project.boot()  # the code still has it
    assert project.history()[-1] == ("change", "applied")
    assert described(project) != before
    assert project.run("undo", "change", "--yes").exit_code == 0
    assert described(project) == before


KEY = 'op.create_foreign_key("fk_points", "users", "teams", ["points"], ["id"], online=False)'
OWN = f'{KEY}\n    op.create_index("ix_points", "users", ["points"])'


@pytest.mark.parametrize(
    ("older", "change"),
    [
        (KEY, 'op.create_index("ix_points", "users", ["points"])'),
        (KEY, 'op.create_index("ix_points", "users", ["points", "name"])'),
        (KEY, 'op.create_unique_constraint("uq_points", "users", ["points"])'),
        (KEY.replace('"fk_points"', "None"), 'op.create_index("ix_points", "users", ["points"])'),
        (OWN, 'op.replace_index("ix_points", "users", ["points", "name"])'),
        (OWN, 'op.create_index("ix_more", "users", ["points", "name"])'),
    ],
)
def test_an_older_foreign_key_that_uses_the_index_keeps_one(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], older: str, change: str
) -> None:
    """MariaDB drops the index that it has made for a foreign key as soon as there is another one."""
    project = make_project(new_url("mariadb"))
    base = f"{BASE}\n@migration\ndef older(op):\n    {older}\n"
    project.write(base)
    project.boot()
    before = described(project)
    project.write(f"{base}\n@migration\ndef change(op):\n    {change}\n")
    project.boot()
    assert described(project) != before
    result = project.run("undo", "--yes")
    assert result.exit_code == 0, result.output
    assert described(project) == before


def test_a_process_that_ends_after_the_commit_leaves_no_flag(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.boot()
    app, smart = project.app()
    flags: list[bool] = []
    with app.app_context():
        planner = smart.planner(app)
        database = planner.databases["default"]
        told = smart.undoing(app, planner, database, None)
        sa.event.listen(database.engine, "commit", lambda _: flags.append(project.flag.exists()))
        smart.undo(app, planner, database, None, told, archive=False, discard=False)
    project.dispose(app)
    assert flags
    assert flags[-1] is False, "the flag is gone when the last commit is made"
    assert project.boot().applied == ("change",)


def test_a_value_that_is_nearly_the_default_is_one(project: Project) -> None:
    apply(
        project,
        'op.add_columns("users", Column("a", String(9), server_default="x"), '
        'Column("b", String(9), server_default=text("NULL")))',
    )
    project.boot()
    assert project.run("undo", "--dry-run").exit_code == 0
    project.query("UPDATE users SET a = 'X', b = 'y' WHERE id = 1")
    said = refusal(project.run("undo", "--yes"))
    assert "1 value of the column 'a'" in said
    assert "1 value of the column 'b'" in said


def test_what_an_interrupted_run_has_perhaps_made_is_not_dropped(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.boot()
    (inverse,) = project.query("SELECT inverse FROM db_smart_history WHERE name = 'change'")[0]
    perhaps = inverse.replace('"sure": true', '"sure": false')
    assert perhaps != inverse
    project.query("UPDATE db_smart_history SET inverse = :inverse WHERE name = 'change'", inverse=perhaps)
    assert "drop the column 'age' of 'users': perhaps made by this run" in refusal(project.run("undo", "--yes"))
    assert "age" in project.columns("users")
    project.query("UPDATE users SET age = 3 WHERE id = 2")
    result = project.run("undo", "--archive", "--discard", "--yes")
    assert result.exit_code == 0, result.output
    assert project.query(f"SELECT * FROM {archives(project)[0]}") == [(2, 3)]


COLUMN = 'op.add_columns("users", Column("age", Integer, server_default="7"), Column("mail", String(9)))'
VALUES = "UPDATE users SET age = 30, mail = 'x' WHERE id = 1"


def test_values_are_counted_and_not_lost(project: Project) -> None:
    apply(project, COLUMN)
    project.boot()
    project.query(VALUES)
    said = refusal(project.run("undo", "--yes"))
    assert "1 value of the column 'age' of 'users' would be lost" in said, "the default is no value"
    assert "1 value of the column 'mail' of 'users' would be lost" in said
    assert "--archive" in said
    assert project.columns("users") >= {"age", "mail"}
    assert project.history()[-1] == ("change", "applied")


def test_values_are_archived(project: Project) -> None:
    apply(project, COLUMN)
    before = described(project)
    project.boot()
    project.query(VALUES)
    project.query("CREATE TABLE db_smart_archive_2_users_age (mine INTEGER)")
    result = project.run("undo", "--archive", "--yes")
    assert result.exit_code == 0, result.output
    mine, age, mail = archives(project)
    assert (mine, age, mail) == (
        "db_smart_archive_2_users_age",
        "db_smart_archive_2_users_age_2",
        "db_smart_archive_2_users_mail",
    )
    assert project.query(f"SELECT * FROM {age}") == [(1, 30)]
    assert project.query(f"SELECT * FROM {mail}") == [(1, "x")]
    assert f"kept 1 in the table {age}" in " ".join(result.output.split())
    now = described(project)
    assert {name: kinds for name, kinds in now.items() if not name.startswith("db_smart_archive_")} == before
    difference = project.run("diff")
    assert "db_smart_archive" not in difference.output


def test_values_are_discarded_when_that_is_said(project: Project) -> None:
    apply(project, COLUMN)
    before = described(project)
    project.boot()
    project.query(VALUES)
    result = project.run("undo", "--discard", "--yes")
    assert result.exit_code == 0, result.output
    assert "lost 1 value of the column 'age' of 'users'" in result.output
    assert described(project) == before


def test_rows_of_a_table_are_archived(project: Project) -> None:
    apply(project, 'op.create_table("order", Column("id", Integer, primary_key=True), Column("a b", Text))')
    before = described(project)
    project.boot()
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    table = sa.table("order", sa.column("id"), sa.column("a b"))
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "a b": "50%"}, {"id": 2, "a b": ":x"}])
    assert "2 rows of the table 'order' would be lost" in refusal(project.run("undo", "--yes"))
    result = project.run("undo", "--archive", "--yes")
    assert result.exit_code == 0, result.output
    (name,) = archives(project)
    assert project.query(f"SELECT * FROM {name} ORDER BY id") == [(1, "50%"), (2, ":x")]
    project.query(f"DROP TABLE {name}")
    assert described(project) == before


def test_what_the_run_found_stays(project: Project) -> None:
    apply(project, 'op.add_columns("users", Column("age", Integer), Column("note", Text))')
    project.query("ALTER TABLE users ADD COLUMN age INTEGER")
    project.boot()
    result = project.run("undo", "--yes")
    assert result.exit_code == 0, result.output
    assert project.columns("users") >= {"age", "note"}


def test_what_changed_since_is_refused(project: Project) -> None:
    apply(project, 'op.create_table("notes", Column("id", Integer, primary_key=True))')
    project.boot()
    project.query("ALTER TABLE notes ADD COLUMN extra INTEGER")
    assert "its columns are not those that were made: extra" in refusal(project.run("undo", "--yes"))


def test_what_a_later_run_changed_is_refused(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.boot()
    source = project.file.read_text(encoding="utf-8")
    project.write(source + '\n@migration\ndef later(op):\n    op.create_index("ix_age", "users", ["age"])\n', header="")
    project.boot()
    assert "'later' (run 3) has changed it since; undo that first" in refusal(project.run("undo", "change", "--yes"))
    assert project.run("undo", "--yes").exit_code == 0
    assert project.run("undo", "2", "--yes").exit_code == 0
    assert project.history()[-2:] == [("later", "taken back"), ("change", "taken back")]
    assert "age" not in project.columns("users")


@pytest.mark.parametrize(
    ("change", "view"),
    [
        ('op.create_table("notes", Column("id", Integer, primary_key=True))', "SELECT id FROM notes"),
        ('op.add_column("users", Column("mail", String(9)))', "SELECT u.id, u.mail AS m FROM users AS u"),
        ('op.rename_table("teams", "groups")', 'SELECT g.id FROM "groups" AS g'),
        ('op.alter_column("users", "note", new_column_name="remark")', "SELECT remark FROM users"),
    ],
)
def test_a_view_of_a_later_run_is_not_broken(project: Project, change: str, view: str) -> None:
    apply(project, change)
    project.boot()
    view = view.replace('"', "`") if project.dialect == "mysql" else view
    later = f"\n@migration\ndef later(op):\n    op.view('v', {view!r})\n    op.view('w', 'SELECT id FROM users')\n"
    project.write(project.file.read_text() + later, header="")
    project.boot()
    assert "'later' (run 3) has made the view 'v' of it since; undo that first" in refusal(
        project.run("undo", "change", "--yes")
    )
    assert project.query("SELECT count(*) FROM v")
    for name in ("later", "change"):
        result = project.run("undo", name, "--yes")
        assert result.exit_code == 0, result.output


def test_what_a_foreign_key_of_later_needs_is_refused(project: Project) -> None:
    apply(project, 'op.create_table("tags", Column("id", Integer, primary_key=True))')
    project.boot()
    more = '@migration\ndef refer(op):\n    op.add_column("teams", Column("tag", Integer, ForeignKey("tags.id")))\n'
    project.write(project.file.read_text(encoding="utf-8") + more, header="")
    project.boot()
    before = described(project)
    for option in ("--dry-run", "--discard"):
        said = refusal(project.run("undo", "change", "--yes", option))
        assert "drop the table 'tags': a foreign key of 'teams' on 'tag' refers to it; drop that first" in said
    assert described(project) == before
    for name in ("refer", "change"):
        result = project.run("undo", name, "--yes")
        assert result.exit_code == 0, result.output


def test_without_a_primary_key_whole_rows_are_archived(project: Project) -> None:
    apply(project, 'op.add_column("visits", Column("page", String(9)))')
    project.query("CREATE TABLE visits (a INTEGER, b INTEGER)")
    project.query("INSERT INTO visits VALUES (1, 2), (3, 4)")
    project.boot()
    project.query("UPDATE visits SET page = 'x' WHERE a = 3")
    assert project.run("undo", "--archive", "--yes").exit_code == 0
    (archive,) = archives(project)
    assert project.query(f"SELECT a, b, page FROM {archive}") == [(3, 4, "x")]


def test_migrations_applied_together_are_taken_back_together(project: Project) -> None:
    project.write(BASE)
    project.boot()
    before = described(project)
    project.write(
        BASE
        + """
@migration
def first(op):
    op.add_column("users", Column("age", Integer))
    op.create_table("notes", Column("id", Integer, primary_key=True))

@migration(destructive=True)
def second(op):
    op.rename_table("notes", "remarks")
    op.add_column("remarks", Column("more", Integer))
    op.alter_column("users", "age", new_column_name="years")
    op.create_index("ix_years", "users", ["years"])
"""
    )
    project.boot()
    result = project.run("undo", "--yes")
    assert result.exit_code == 0, result.output
    assert described(project) == before
    assert project.history()[-2:] == [("second", "taken back"), ("first", "taken back")]
    assert "Cannot" not in project.run("history").output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            'op.drop_column("users", "points")',
            "drop_column('users', 'points') cannot be taken back: what it held is gone",
        ),
        ('op.drop_table("teams")', "drop_table('teams') cannot be taken back: what it held is gone"),
        ('op.execute("CREATE TABLE raw (id INTEGER)")', "its own SQL cannot be taken back: CREATE TABLE raw"),
    ],
)
def test_what_cannot_be_taken_back_is_refused(project: Project, change: str, said: str) -> None:
    apply(project, change)
    project.boot()
    after = described(project)
    for options in ((), ("--discard",), ("--archive",), ("--dry-run",)):
        output = refusal(project.run("undo", "--yes", *options))
        assert said in output
        assert ("db-smart restore" in output) is (project.dialect == "sqlite")
    assert described(project) == after


def test_data_changes_are_named_and_stay(project: Project) -> None:
    apply(
        project,
        "op.execute(\"UPDATE users SET note = 'z'\")\n    op.backfill('users', {'points': 1})\n"
        "    op.add_column('users', Column('age', Integer))",
    )
    project.boot()
    shown = project.run("undo", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "stays, and would be done again with it: UPDATE users SET note = 'z'" in shown.output
    assert "stays, and would be done again with it: backfill('users')" in shown.output
    assert "drop the column 'age' of 'users'" in shown.output
    assert project.history()[-1] == ("change", "applied"), "it was a dry run"
    result = project.run("undo", "--yes")
    assert result.exit_code == 0, result.output
    plan, _, done = result.output.partition("took back run")
    assert "stays, and would be done again with it: " in plan, "said before it is done"
    assert done
    assert project.query("SELECT DISTINCT note, points FROM users") == [("z", 1)]


def test_nobody_to_ask_needs_yes(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.boot()
    result = project.run("undo")
    assert result.exit_code == 2
    assert "--yes" in result.output
    assert "age" in project.columns("users")


def test_json(project: Project) -> None:
    apply(project, COLUMN)
    project.boot()
    project.query(VALUES)
    found = json.loads(project.run("undo", "--json", "--dry-run").stdout)
    (run,) = found["runs"]
    assert (run["number"], run["name"]) == (2, "change")
    assert [(loss["column"], loss["rows"]) for loss in run["losses"]] == [("mail", 1), ("age", 1)]
    assert len(found["refused"]) == 2
    found = json.loads(project.run("undo", "--json", "--discard", "--yes").stdout)
    assert [one["number"] for one in found["undone"]] == [2]
    assert found["again"] == ["change"]
    runs = json.loads(project.run("history", "--json").stdout)["databases"][0]["runs"]
    assert [(run["number"], run["outcome"]) for run in runs] == [(1, "applied"), (2, "applied"), (3, "taken back")]


def test_the_code_that_made_it_need_not_be_there(project: Project) -> None:
    apply(project, 'op.rename_table("teams", "groups")')
    before = described(project)
    project.boot()
    project.write(BASE)
    result = project.run("undo", "--yes")
    assert result.exit_code == 0, result.output
    assert "next boot" not in result.output
    assert described(project) == before
    assert project.boot().applied == ()


def test_a_history_of_an_earlier_release(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.query("ALTER TABLE db_smart_history DROP COLUMN inverse")
    assert "does not have what takes it back" in refusal(project.run("undo", "--yes"))
    assert project.run("history").exit_code == 0
    project.boot()
    assert project.run("undo", "--yes").exit_code == 0
    assert "does not have what takes it back" in refusal(project.run("undo", "--yes"))
    assert "has no run 'nothing'" in refusal(project.run("undo", "nothing", "--yes"))


def test_values_that_the_type_of_before_cannot_hold(project: Project) -> None:
    apply(project, 'op.alter_column("users", "name", type_=String(40), nullable=True)')
    project.boot()
    project.query("UPDATE users SET name = 'much longer than twenty characters' WHERE id = 1")
    project.query("UPDATE users SET name = NULL WHERE id = 2")
    said = refusal(project.run("undo", "--yes"))
    assert "1 row has NULL in it" in said
    assert ("1 row has a value that may not fit" in said) is (project.dialect != "sqlite")


def test_what_is_taken_back_no_longer_counts_as_applied(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.boot()
    for wanted in (True, False):
        app, smart = project.app()
        with app.app_context():
            assert smart.applied("change") is wanted
        project.dispose(app)
        if wanted:
            assert project.run("undo", "--yes").exit_code == 0


def test_a_table_that_refers_to_others(project: Project) -> None:
    apply(
        project,
        'op.create_table("notes", Column("id", Integer, primary_key=True), '
        'Column("user", Integer, ForeignKey("users.id"), unique=True))\n'
        '    op.add_column("notes", Column("team", Integer, ForeignKey("teams.id")))',
    )
    before = described(project)
    project.boot()
    project.query("INSERT INTO notes (id, team) VALUES (1, 1)")
    result = project.run("undo", "--discard", "--yes")
    assert result.exit_code == 0, result.output
    assert "lost 1 row of the table 'notes'" in result.output
    assert described(project) == before


def test_a_row_without_inverse_is_refused(project: Project) -> None:
    apply(project, 'op.add_column("users", Column("age", Integer))')
    project.boot()
    project.query("UPDATE db_smart_history SET inverse = NULL WHERE name = 'change'")
    assert "does not have what takes it back" in refusal(project.run("undo", "--yes"))


_ENTRY = '{"op": "drop_columns", "schema": null, "table": "users", "names": ["age"], "constraints": [], "sure": true}'


@pytest.mark.parametrize(
    "inverse",
    [
        *("", "x", "[]", "null", "3", "{}", '{"run": "a", "own": []}', '{"run": "a", "made": {}, "own": []}'),
        f'{{"run": "a", "made": [{_ENTRY}], "own": [3]}}',
        *(
            f'{{"run": "a", "made": [{_ENTRY.replace(*change)}], "own": []}}'
            for change in (
                *(("drop_columns", "melt"), ("drop_columns", "look"), ("drop_columns", "drop_table")),
                *(
                    (', "names": ["age"]', ""),
                    ('["age"]', '"age"'),
                    ('["age"]', "[1]"),
                    ('"sure"', '"more": 1, "sure"'),
                ),
                *((_ENTRY, "[]"), (_ENTRY, '{"op": []}')),
            )
        ),
    ],
)
def test_an_inverse_that_this_release_does_not_know_is_refused(sqlite_project: Project, inverse: str) -> None:
    """It was edited, or a later release has written it."""
    apply(sqlite_project, 'op.add_column("users", Column("age", Integer))')
    sqlite_project.boot()
    (kept,) = sqlite_project.query("SELECT inverse FROM db_smart_history WHERE name = 'change'")[0]
    assert json.loads(kept)["made"] == [json.loads(_ENTRY)]
    edit = "UPDATE db_smart_history SET inverse = :inverse WHERE name = 'change' AND outcome = :outcome"
    sqlite_project.query(edit, inverse=inverse, outcome="applied")
    for discard in ([], ["--discard"]):
        said = refusal(sqlite_project.run("undo", "--yes", *discard))
        assert "is not as this release of db-smart writes it" in said
    assert "would be lost" in refusal(sqlite_project.run("undo", "base", "--yes"))
    assert "age" in sqlite_project.columns("users")
    sqlite_project.query(edit, inverse=kept, outcome="applied")
    assert sqlite_project.run("undo", "--yes").exit_code == 0
    sqlite_project.query(edit, inverse=inverse, outcome="taken back")
    assert "has no run 'change'" in refusal(sqlite_project.run("undo", "change", "--yes"))
