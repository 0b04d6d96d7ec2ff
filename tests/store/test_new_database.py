"""A database made new by the last release, beside one that went through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DbSmartError, MigrationFailed
from aurum_harmony.db_smart.store.tables import TABLE_NAMES
from tests.conftest import Project

Columns = Sequence[sa.Column[Any] | Callable[[], sa.schema.SchemaItem]]


def models(**tables: Columns) -> Callable[[SQLAlchemy], None]:
    """Models of a release."""

    def define(db: SQLAlchemy) -> None:
        for name, columns in tables.items():
            sa.Table(name, db.metadata, *(item() if callable(item) else item._copy() for item in columns))

    return define


def schema(url: URL | str) -> dict[str, Any]:
    """Tables with columns, indexes and named constraints, as the database has them; without their order."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        for table in set(inspector.get_table_names()) - TABLE_NAMES:
            found[table] = {
                "columns": {
                    one["name"]: (str(one["type"]), one["nullable"], one["default"] and str(one["default"]).lower())
                    for one in inspector.get_columns(table)
                    if one["name"] != "id"
                },
                "indexes": {
                    one["name"]: (tuple(one["column_names"]), bool(one["unique"]))
                    for one in inspector.get_indexes(table)
                },
            }
    return found


def fresh(project: Project, new_url: Callable[[str], URL]) -> Project:
    """The same code on a new database."""
    dialect = {"mysql": "mariadb"}.get(project.dialect, project.dialect)
    directory = project.directory
    return Project(directory, project.module, new_url(dialect), {"DB_SMART_FLAG": "fresh"}, project.models)


ID = sa.Column("id", sa.Integer, primary_key=True)


def string(name: str, length: int = 50, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), **options)


RENAME = """
@migration
def add_name(op: Operations) -> None:
    op.add_column("users", Column("fullname", String(50)))
    op.create_index("ix_users_name", "users", ["fullname"])
    op.create_unique_constraint("uq_users_name", "users", ["fullname"])

@migration(destructive=True)
def rename_name(op: Operations) -> None:
    op.alter_column("users", "fullname", new_column_name="name")
"""
DROP = """
@migration
def add_fax(op: Operations) -> None:
    op.add_column("users", Column("fax", String(50)))

@migration
def mend_fax(op: Operations) -> None:
    op.execute("UPDATE users SET fax = NULL WHERE fax = ''")
    op.backfill("users", {"fax": "x"}, where="fax = ''")

@migration(destructive=True)
def drop_fax(op: Operations) -> None:
    op.drop_column("users", "fax")
"""
LEGACY_DROP = """
@migration(once=True)
def fill_phone(op: Operations) -> None:
    op.execute("UPDATE users SET phone = old_phone")
    op.execute("INSERT INTO seeds (id) VALUES (1)")

@migration(destructive=True)
def drop_old_phone(op: Operations) -> None:
    op.drop_column("users", "old_phone")
"""
TABLE = """
@migration(once=True)
def seed_people(op: Operations) -> None:
    op.create_table("people", Column("id", Integer, primary_key=True), Column("city", String(50)))
    op.create_index("ix_people_city", "people", ["city"])
    op.execute("INSERT INTO people (city) VALUES ('Pune')")

@migration(destructive=True)
def rename_people(op: Operations) -> None:
    op.drop_index("ix_people_city", "people")
    op.rename_table("people", "persons")
"""
TYPES = """
@migration(destructive=True)
def widen(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(60), nullable=True)

@migration(destructive=True)
def widen_again(op: Operations) -> None:
    op.alter_column("users", "name", type_=String(80), nullable=False, server_default="x")
"""
PLAIN = """
from sqlalchemy import inspect, text

@migration(destructive=True)
def migrate_city():
    if "town" not in {one["name"] for one in inspect(db.engine).get_columns("users")}:
        db.session.execute(text("ALTER TABLE users ADD COLUMN town VARCHAR(50)"))
    db.session.execute(text("UPDATE users SET town = village"))
    db.session.commit()

@migration(destructive=True)
def drop_village(op: Operations) -> None:
    op.drop_column("users", "village")
"""
BACK = """
@migration(destructive=True)
def drop_note(op: Operations) -> None:
    op.drop_column("users", "note")

@migration
def add_note(op: Operations) -> None:
    op.add_column("users", Column("note", String(50)))
"""
AGAIN = """
@migration
def make_notes(op: Operations) -> None:
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("a", String(50)))
    op.add_column("notes", Column("b", String(50), index=True))
    op.execute("INSERT INTO notes (id, b) VALUES (1, 'old')")

@migration(destructive=True)
def drop_notes(op: Operations) -> None:
    op.drop_table("notes")

@migration
def make_notes_again(op: Operations) -> None:
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("text", String(50)))
"""
NAMES = """
@migration
def make_people(op: Operations) -> None:
    op.create_table(
        "people",
        Column("id", Integer, primary_key=True),
        Column("city", String(50), index=True),
        Column("other_id", Integer, ForeignKey("users.id", name="fk_people_users"), index=True),
        UniqueConstraint("city", name="uq_people_city"),
    )
    op.create_index("ix_people_both", "people", ["city", "id"])
    op.add_column("people", Column("name", String(50), index=True))
    op.create_unique_constraint("uq_people_name", "people", ["name"])
    op.create_foreign_key("fk_people_self", "people", "people", ["id"], ["id"])

@migration(destructive=True)
def rename_people(op: Operations) -> None:
    op.rename_table("people", "persons")
"""
PERSONS: Columns = [
    ID,
    string("city"),
    sa.Column("other_id", sa.Integer),
    string("name"),
    lambda: sa.ForeignKeyConstraint(["other_id"], ["users.id"], name="fk_people_users"),
    lambda: sa.ForeignKeyConstraint(["id"], ["persons.id"], name="fk_people_self"),
    lambda: sa.UniqueConstraint("city", name="uq_people_city"),
    lambda: sa.UniqueConstraint("name", name="uq_people_name"),
    lambda: sa.Index("ix_people_city", "city"),
    lambda: sa.Index("ix_people_other_id", "other_id"),
    lambda: sa.Index("ix_people_both", "city", "id"),
    lambda: sa.Index("ix_people_name", "name"),
]
WOODS: Columns = [
    ID,
    sa.Column("parent_id", sa.Integer),
    lambda: sa.ForeignKeyConstraint(["parent_id"], ["woods.id"], name="fk_trees_trees"),
]
KEYS = """
@migration
def make_pets(op: Operations) -> None:
    op.create_table("people", Column("id", Integer, primary_key=True))
    op.create_table(
        "pets",
        Column("id", Integer, primary_key=True),
        Column("person_id", Integer, ForeignKey("people.id", name="fk_pets_people", ondelete="CASCADE")),
    )
    op.execute("INSERT INTO people (id) VALUES (1)")
    op.execute("INSERT INTO pets (id, person_id) VALUES (1, 1)")

@migration(destructive=True)
def rename_people(op: Operations) -> None:
    op.rename_table("people", "persons")

@migration
def make_parts(op: Operations) -> None:
    op.create_table(
        "parts",
        Column("id", Integer, primary_key=True),
        Column("machine_id", Integer, ForeignKey("machines.id", name="fk_parts_machines")),
    )
    op.create_table(
        "trees",
        Column("id", Integer, primary_key=True),
        Column("parent_id", Integer, ForeignKey("trees.id", name="fk_trees_trees")),
    )
    op.execute("INSERT INTO trees (id) VALUES (1)")
    op.add_column("users", Column("machine_id", Integer, ForeignKey("machines.id", name="fk_users_machines")))
    op.add_column("users", Column("other_id", Integer))
    op.create_foreign_key("fk_users_other", "users", "machines", ["other_id"], ["id"])

@migration(destructive=True)
def drop_machines(op: Operations) -> None:
    for name in ("fk_users_machines", "fk_users_other"):
        op.drop_constraint(name, "users")
    op.drop_column("users", "machine_id")
    op.drop_column("users", "other_id")
    for table in ("parts", "machines", "pets"):
        op.drop_table(table)
    op.rename_table("trees", "woods")
"""

#: Models of the first release, migrations, and models of the last one.
CASES: dict[str, tuple[dict[str, Columns], str, dict[str, Columns]]] = {
    "rename": (
        {"users": [ID]},
        RENAME,
        {
            "users": [
                ID,
                string("name"),
                lambda: sa.Index("ix_users_name", "name"),
                lambda: sa.UniqueConstraint("name", name="uq_users_name"),
            ]
        },
    ),
    "drop": ({"users": [ID]}, DROP, {"users": [ID]}),
    "data, then drop": (
        {"users": [ID, string("old_phone"), string("phone")], "seeds": [ID]},
        LEGACY_DROP,
        {"users": [ID, string("phone")], "seeds": [ID]},
    ),
    "table": ({"users": [ID]}, TABLE, {"users": [ID], "persons": [ID, string("city")]}),
    "types": (
        {"users": [ID, string("name")]},
        TYPES,
        {"users": [ID, string("name", 80, nullable=False, server_default="x")]},
    ),
    "plain function": (
        {"users": [ID, string("village"), string("town")]},
        PLAIN,
        {"users": [ID, string("town")]},
    ),
    "table again": ({"users": [ID]}, AGAIN, {"users": [ID], "notes": [ID, string("text")]}),
    "names of a table's old name": ({"users": [ID]}, NAMES, {"users": [ID], "persons": PERSONS}),
    "keys": ({"users": [ID], "machines": [ID]}, KEYS, {"users": [ID], "persons": [ID], "woods": WOODS}),
    "back": ({"users": [ID, string("note")]}, BACK, {"users": [ID, string("note")]}),
}


@pytest.mark.parametrize("case", CASES)
def test_new_beside_upgraded(case: str, project: Project, new_url: Callable[[str], URL]) -> None:
    first, source, last = CASES[case]
    project.models = models(**first)
    project.write("")
    project.boot()
    project.write(source)
    project.models = models(**last)
    project.boot()
    new = fresh(project, new_url)
    assert new.boot().decision == "migrated"
    assert schema(new.url) == schema(project.url)
    for table in ("persons", "seeds", "notes", "woods"):
        if table in last:
            assert new.query(f"SELECT * FROM {table}") == project.query(f"SELECT * FROM {table}")
    for one in (project, new):
        before = schema(one.url)
        result = one.run("migrate", "--force")
        assert result.exit_code == 0, result.output
        assert schema(one.url) == before


def test_an_edited_migration_does_not_bring_back_what_a_later_one_dropped(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(DROP)
    project.boot()
    project.write(
        DROP.replace("String(50)))", 'String(50)))\n    op.add_column("users", Column("room", String(9)))', 1)
    )
    assert project.boot().applied == ("add_fax",)
    assert project.columns("users") == {"id", "room"}


def test_a_dropped_column_that_a_newer_migration_adds_again_stays(project: Project) -> None:
    project.models = models(users=[ID, string("note")])
    project.write("")
    project.boot()
    project.write(BACK)
    project.boot()
    project.query("INSERT INTO users (id, note) VALUES (1, 'kept')")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id, note FROM users") == [(1, "kept")]


def second_application(project: Project, source: str) -> Project:
    other = Project(project.directory, f"{project.module}_b", project.url, {"DB_SMART_FLAG": "other"})
    other.models = models(orders=[ID])
    other.write(source)
    return other


SEED = """
@migration(once=True)
def seed(op: Operations) -> None:
    op.execute("INSERT INTO {table} (id) VALUES (1)")
"""


def test_a_second_application_on_one_database_gets_its_tables(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    other = second_application(project, SEED.format(table="orders").replace("seed", "seed_orders"))
    assert other.boot().applied == ("seed_orders",)
    assert project.query("SELECT id FROM users") == project.query("SELECT id FROM orders") == [(1,)]
    for one in (project, other):
        one.flag.with_name(one.config.get("DB_SMART_FLAG", one.flag.name)).unlink()
        assert one.boot().applied == ()


def test_a_second_application_with_migrations_of_the_same_name_is_refused(project: Project) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    other = second_application(project, SEED.format(table="orders"))
    with pytest.raises(DbSmartError, match="history of other migrations.*'seed'"):
        other.boot()
    assert project.boot().decision == "skipped"


def test_a_lost_history_is_said(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.models = models(users=[ID])
    project.write(SEED.format(table="users"))
    project.boot()
    for table in TABLE_NAMES & project.tables():
        project.query(f"DROP TABLE {table}")
    project.flag.unlink()
    caplog.clear()
    with pytest.raises(MigrationFailed):  # the row is there
        project.boot()
    assert "has tables with rows (users) but no history of db-smart" in caplog.text
    assert "also those that run only once (seed)" in caplog.text


def test_a_wrong_name_in_a_migration_that_runs_again_is_an_error(project: Project) -> None:
    """Only what a later migration took away is no fault, and by its whole name."""
    project.models = models(users=[ID], seeds=[ID, string("fax")])
    project.write(DROP)
    project.boot()
    wrong = '    op.execute("UPDATE seeds SET fax = faxx")\n'
    project.write(
        DROP.replace("def mend_fax(op: Operations) -> None:\n", f"def mend_fax(op: Operations) -> None:\n{wrong}")
    )
    with pytest.raises(MigrationFailed, match="faxx"):
        project.boot()


ADD = '@migration\ndef m1(op):\n    op.add_columns("users", Column("a", Integer){more})\n'
RENAMED = '@migration(destructive=True)\ndef m3(op): op.rename_table("users", "people")\n'
DROPPED = '@migration(destructive=True)\ndef m4(op): op.drop_column("people", "b")\n'


@pytest.mark.parametrize("how", ["edited", "inserted"])
def test_a_column_that_an_older_migration_adds_goes_to_the_table_by_its_new_name(
    project: Project, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    first, columns = ADD.format(more=""), [ID, sa.Column("a", sa.Integer)]
    project.models = models(users=[ID])
    project.write(first)
    project.boot()
    project.query("INSERT INTO users (id, a) VALUES (1, 2)")
    project.models = models(people=columns)
    project.write(first + RENAMED + DROPPED)
    project.boot()
    more = 'Column("c", Integer, server_default="7"), Column("b", Integer)'
    inserted = f'@migration\ndef m2(op): op.add_columns("users", {more})\n'
    edited = ADD.format(more=f", {more}")
    project.models = models(people=[*columns, sa.Column("c", sa.Integer)])
    project.write((edited if how == "edited" else first + inserted) + RENAMED + DROPPED)
    assert project.boot().applied == (("m1",) if how == "edited" else ("m2",))
    assert project.query("SELECT id, a, c FROM people") == [(1, 2, 7)]
    assert set(project.columns("people")) == {"id", "a", "c"}
    assert "'people', 'b'" in caplog.text  # what is left out, not for the first time, is said loudly
    assert project.run("migrate", "--force").exit_code == 0
    assert set(project.columns("people")) == {"id", "a", "c"}


def test_what_an_edit_leaves_out_is_a_warning(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.models = models(users=[ID])
    project.write(ADD.format(more="") + RENAMED)
    project.models = models(users=[ID])
    project.write(ADD.format(more=""))
    project.boot()
    project.models = models(people=[ID])
    project.write(ADD.format(more="") + RENAMED)
    project.boot()
    caplog.clear()
    project.write(ADD.format(more="") + '    op.create_index("ix_a", "users", ["a"])\n' + RENAMED)
    assert project.boot().applied == ("m1",)
    said = [record.levelname for record in caplog.records if "is left out" in record.message]
    assert said == ["WARNING"]


BROUGHT_BACK: dict[str, str] = {
    "migrate": "",
    "create_all": "",
    "sql": '@migration\ndef back(op):\n    if not op.has_table("logs"):\n'
    '        op.execute("CREATE TABLE logs (id INTEGER PRIMARY KEY, a INTEGER)")\n',
}


@pytest.mark.parametrize("how", BROUGHT_BACK)
def test_a_dropped_table_that_is_there_again_with_rows_is_not_dropped_again(project: Project, how: str) -> None:
    logs: Columns = [ID, sa.Column("a", sa.Integer)]
    drop = '@migration(destructive=True)\ndef drop(op): op.drop_table("logs")\n'
    project.models = models(logs=logs)
    project.write("@migration\ndef first(op): ...\n")
    project.boot()
    project.models = models(users=[ID])
    project.write("@migration\ndef first(op): ...\n" + drop)
    project.run("migrate")
    assert "logs" not in project.tables()
    project.models = models(users=[ID], logs=logs)
    if how == "create_all":
        app, _ = project.app()
        with app.app_context():
            app.extensions["sqlalchemy"].create_all()
        project.dispose(app)
    else:
        project.write("@migration\ndef first(op): ...\n" + drop + BROUGHT_BACK[how])
        project.run("migrate")
    project.query("INSERT INTO logs (id, a) VALUES (7, 7)")
    assert project.run("migrate", "--force").exit_code == 0
    assert project.query("SELECT id FROM logs") == [(7,)]


@pytest.mark.parametrize("rows", [True, False])
def test_a_swap_of_names_is_not_repeated(project: Project, rows: bool) -> None:
    columns: Columns = [ID, sa.Column("a", sa.Integer), sa.Column("b", sa.String(5))]
    project.models = models(left=columns, right=[ID])
    project.write("@migration\ndef first(op): ...\n")
    project.boot()
    if rows:
        project.query(
            "INSERT INTO \"left\" (id, a, b) VALUES (1, 2, 'x')"
            if project.dialect != "mysql"
            else "INSERT INTO `left` (id, a, b) VALUES (1, 2, 'x')"
        )
    project.write(
        "@migration(destructive=True)\ndef swap(op):\n"
        '    op.rename_table("left", "t")\n    op.rename_table("right", "left")\n    op.rename_table("t", "right")\n'
        '    op.alter_column("right", "a", new_column_name="t")\n'
        '    op.alter_column("right", "b", new_column_name="a")\n'
        '    op.alter_column("right", "t", new_column_name="b")\n'
    )
    project.models = models(right=[ID, sa.Column("a", sa.String(5)), sa.Column("b", sa.Integer)], left=[ID])
    project.boot()
    before = schema(project.url)
    assert before["right"]["columns"]["b"][0] == "INTEGER"
    for _ in range(2):
        assert project.run("migrate", "--force").exit_code == 0
        assert schema(project.url) == before
