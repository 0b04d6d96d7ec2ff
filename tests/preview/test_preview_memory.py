"""What the history remembers, in dry runs and in scripts: as the run has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from aurum_harmony.db_smart.store.tables import TABLE_NAMES
from tests.harness.clients import ask_client, run_client
from tests.harness.models import ID, fresh, models, schema, second_application, string
from tests.harness.project import Project
from tests.samples import BACK, CASES, DROP, SEED


def remembered(project: Project) -> list[Any]:
    """What the database remembers, but for the end of first runs."""
    columns = "migration, event, kind, table_name, name"
    return sorted(project.query(f"SELECT {columns} FROM db_smart_objects WHERE event <> 'application'"))


def pending(project: Project, *options: str) -> list[dict[str, Any]]:
    """What a dry run says of each migration."""
    result = project.run("migrate", "--dry-run", "--json", *options)
    found: list[dict[str, Any]] = json.loads(result.stdout)["pending"]
    assert [item["name"] for item in found if item["error"] or item["unknown"]] == [], result.output
    return found


def run_script(project: Project, *options: str) -> None:
    """Have the database's client run what the command prints, and see that nothing is left to the next boot."""
    script = project.run("migrate", "--sql", *options)
    assert script.exit_code == 0, script.output
    assert "Left to db-smart" not in script.stdout, script.stdout
    run_client(project.url, script.stdout)
    assert project.boot().applied == ()


@pytest.mark.parametrize("case", ["rename", "data, then drop", "table"])
def test_a_script_for_a_new_database_does_what_the_first_boot_does(
    case: str, project: Project, new_url: Callable[[str], URL]
) -> None:
    _, source, last = CASES[case]
    project.models = models(**last)
    project.write(source)
    by_script = fresh(project, new_url)
    project.boot()
    assert pending(by_script)
    run_script(by_script)
    assert schema(by_script.url) == schema(project.url)
    assert remembered(by_script) == remembered(project)
    for table in ("persons", "seeds"):
        if table in last:
            assert by_script.query(f"SELECT * FROM {table}") == project.query(f"SELECT * FROM {table}")


@pytest.mark.parametrize("case", ["drop", "table", "types"])
def test_a_script_of_all_migrations_run_again_changes_nothing(case: str, project: Project) -> None:
    first, source, last = CASES[case]
    project.models = models(**first)
    project.write("")
    project.boot()
    project.write(source)
    project.models = models(**last)
    run_script(project)
    before = schema(project.url), remembered(project)
    pending(project, "--force")
    run_script(project, "--force")
    assert (schema(project.url), remembered(project)) == before


def test_what_a_script_dropped_stays_dropped_when_an_older_migration_is_edited(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(DROP)
    run_script(project)
    edited = DROP.replace("String(50)))", 'String(50)))\n    op.add_column("users", Column("room", String(9)))', 1)
    project.write(edited)
    (item,) = pending(project)
    assert item["does"] == ["add_columns('users', 'room')"]
    assert item["satisfied"] == ["add_columns('users', 'fax'): 'fax' was dropped later by 'drop_fax'"]
    run_script(project)
    assert project.columns("users") == {"id", "room"}


def test_a_statement_that_wants_a_dropped_column_is_left_out_of_the_dry_run_and_by_the_script(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(DROP)
    project.boot()
    project.query("INSERT INTO users (id) VALUES (1)")
    more = '    op.execute("UPDATE users SET id = id + 1")\n'
    project.write(
        DROP.replace("def mend_fax(op: Operations) -> None:\n", f"def mend_fax(op: Operations) -> None:\n{more}")
    )
    pending(project)
    run_script(project)
    assert project.query("SELECT id FROM users") == [(2,)]


def test_a_question_about_a_dropped_column_is_left_out_alone(project: Project) -> None:
    """It changes nothing, so that there is nothing else of the migration to take back."""
    project.models = models(persons=[ID, string("name")])
    project.write(
        """\
        @migration
        def ask(op):
            op.execute("UPDATE persons SET name = 'x'")
            op.execute("SELECT formerly FROM persons")
        """
    )
    (item,) = [item for item in pending(project) if item["name"] == "ask"]
    assert [what.partition("(")[0] for what in item["does"]] == ["execute"]
    assert "UPDATE persons" in item["does"][0]
    (left_out,) = item["satisfied"]
    assert left_out.startswith("execute('SELECT formerly FROM persons'): what it needs no longer exists: ")


def test_another_error_of_such_a_migration_stops_the_script(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(DROP)
    project.boot()
    project.query("INSERT INTO users (id) VALUES (1)")
    more = '    op.execute("INSERT INTO users (id) VALUES (1)")\n'
    project.write(
        DROP.replace("def mend_fax(op: Operations) -> None:\n", f"def mend_fax(op: Operations) -> None:\n{more}")
    )
    script = project.run("migrate", "--sql").stdout
    assert ask_client(project.url, script).returncode != 0
    assert [name for name, _ in project.history()].count("mend_fax") == 1


def test_a_dropped_column_that_a_newer_migration_adds_again_stays_in_a_script(project: Project) -> None:
    project.models = models(users=[ID, string("note")])
    project.write("")
    project.boot()
    project.write(BACK)
    run_script(project)
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    run_script(project, "--force")
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]


def test_a_dry_run_shows_the_tables_of_a_second_application(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    other = second_application(project, SEED.format(table="orders").replace("seed", "seed_orders"))
    report = json.loads(other.run("migrate", "--dry-run", "--json").stdout)
    assert [item["does"] for item in report["tables"]] == [["create_table('orders')"]]
    assert [item["error"] for item in report["pending"]] == [None]
    run_script(other)
    assert project.query("SELECT id FROM users") == project.query("SELECT id FROM orders") == [(1,)]
    clash = second_application(project, SEED.format(table="orders"))
    clash.module += "_c"
    clash.write(SEED.format(table="orders"))
    result = clash.run("migrate", "--dry-run")
    assert result.exit_code == 1
    assert "has the history of other migrations" in result.output


LEFT = """
@migration
def old(op: Operations) -> None:
    op.create_table("notes", Column("id", Integer, primary_key=True))
    if op.has_column("faxes", "id"):
        op.drop_index("ix", "faxes")

@migration(destructive=True)
def drop_faxes(op: Operations) -> None:
    op.drop_table("faxes")
"""


def test_a_migration_that_the_run_leaves_out_whole_is_left_out_of_dry_run_and_script(
    project: Project, new_url: Callable[[str], URL]
) -> None:
    project.models = models(users=[ID])
    project.write(LEFT)
    by_script = fresh(project, new_url)
    project.boot()
    item = pending(by_script)[0]
    assert item["does"] == []
    assert item["satisfied"][0].startswith("old: what it needs no longer exists")
    run_script(by_script)
    tables = {"users"} if project.dialect != "mysql" else {"users", "notes"}  # which does not take it back
    assert project.tables() - TABLE_NAMES == tables
    assert by_script.tables() - TABLE_NAMES == {"users"}
    assert remembered(by_script) == remembered(project)


CUT = """
@migration
def grow(op: Operations) -> None:
    op.add_column("users", Column("x", Integer))
    op.execute("UPDATE users SET n = n + :more", {"more": 1})
    op.execute(table("users", column("n")).update().values(n=column("n") * 2).where(column("id").in_([1, 2])))
    op.backfill("users", {"x": column("n") + 5})
    op.execute("UPDATE users SET n = n + 100")
    FAIL
    op.backfill("users", {"n": column("n") + 1000})
"""


def test_a_dry_run_and_its_script_go_on_behind_the_steps_of_a_run_that_was_cut_short(project: Project) -> None:
    project.models = models(users=[ID, sa.Column("n", sa.Integer)])
    project.write("")
    project.boot()
    project.query("INSERT INTO users (id, n) VALUES (1, 1)")
    project.write(CUT.replace("FAIL", "op.create_index('ix', 'users', ['n'])\n    raise RuntimeError"))
    with pytest.raises(MigrationFailed):
        project.boot()
    project.write(CUT.replace("FAIL", "pass"))
    kept = project.query(
        "SELECT count(*) FROM db_smart_progress WHERE step NOT LIKE 'promise%' AND step NOT LIKE 'undo%'"
    )[0][0]
    assert kept >= 4
    (item,) = pending(project)
    assert item["steps_done"] == kept
    undone = [one for one in item["does"] if "n + 100" in one]
    assert [one for one in item["does"] if one not in undone] == ["backfill('users')"]
    assert f"after {kept} steps" in project.run("migrate", "--dry-run").output
    run_script(project)
    assert project.query("SELECT n, x FROM users") == [(1104, 9)]
    assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]


STOPPED = """
@migration
def grow(op: Operations) -> None:
    op.add_column("users", Column("x", Integer))
    op.execute("UPDATE users SET n = n + :more", {"more": 1})
    op.backfill("users", {"n": column("n") + 10}, where="id < 100")
    op.create_index("ix_n", "users", ["n"])
    op.execute("UPDATE users SET n = n + :more", {"more": 100})
    op.create_index("ix_word", "users", ["word"], unique=True)
    op.execute("UPDATE users SET n = n + 1000")
"""


def test_a_boot_goes_on_behind_a_script_that_stopped(project: Project) -> None:
    project.models = models(users=[ID, sa.Column("n", sa.Integer), string("word")])
    project.write("")
    project.boot()
    project.query("INSERT INTO users (id, n, word) VALUES (1, 0, 'a')")
    project.write(STOPPED)
    script = project.run("migrate", "--sql").stdout
    project.query("INSERT INTO users (id, n, word) VALUES (2, 0, 'a')")
    assert ask_client(project.url, script).returncode != 0
    project.query("UPDATE users SET word = 'b' WHERE id = 2")
    if project.dialect == "postgresql":
        assert project.query("SELECT n FROM users") == [(111,), (111,)]  # it was cut for the index
    assert project.boot().applied == ("grow",)
    assert project.query("SELECT n FROM users") == [(1111,), (1111,)]
    assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]


def test_a_migration_outside_of_a_transaction_is_so_in_the_script(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("postgresql"))
    project.models = models(users=[ID])
    project.write("")
    project.boot()
    project.query("INSERT INTO users (id) VALUES (1)")
    project.write("""
        @migration(transactional=False)
        def outside(op):
            op.add_column("users", Column("x", Integer, server_default="1"))
            op.create_index("ix_x", "users", ["x"])
            op.execute("VACUUM users")
    """)
    run_script(project)
    assert project.columns("users") == {"id", "x"}
    assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]


def test_a_script_for_mariadb_looks_at_old_rows_too(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("mariadb"))
    project.models = models(users=[ID, sa.Column("boss", sa.Integer)])
    project.write("")
    project.boot()
    project.query("INSERT INTO users (id, boss) VALUES (1, 1)")
    project.write("""
        @migration
        def key(op):
            op.create_foreign_key("fk_boss", "users", "users", ["boss"], ["id"])
    """)
    script = project.run("migrate", "--sql").stdout
    project.query("INSERT INTO users (id, boss) VALUES (2, 77)")
    stopped = ask_client(project.url, script)
    assert "Rows of users refer to missing rows of users" in stopped.stderr
    with pytest.raises(MigrationFailed, match="DS204.*removed again"):
        project.boot()
    project.query("UPDATE users SET boss = 1 WHERE id = 2")
    assert project.boot().applied == ("key",)
