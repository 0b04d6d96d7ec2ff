"""Migrations, models and drivers that several tests use."""

from __future__ import annotations

import sqlalchemy as sa

from tests.harness.models import ID, Columns, string

V1 = """
@migration
def make_items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("name", String(50)))
"""
V2 = (
    V1
    + """
@migration
def add_price(op):
    op.add_column("items", Column("price", Float))
"""
)
#: Begins, and waits until a file is there.
WAITS = """
@migration
def waits(op):
    import pathlib, time
    op.create_table("waited", Column("id", Integer, primary_key=True))
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
"""
APP = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart

def create_app():
    app = Flask(__name__, instance_path={instance!r})
    app.config.from_prefixed_env()
    app.config["SQLALCHEMY_DATABASE_URI"] = {url!r}
    db = SQLAlchemy(app)
    DbSmart(app, db, migrations={module!r}).boot(app)
    return app
"""
DRIVERS = [
    ("postgresql", "postgresql+psycopg"),
    ("postgresql", "postgresql+psycopg2"),
    ("postgresql", "postgresql+pg8000"),
    ("mariadb", "mysql+pymysql"),
    ("mariadb", "mariadb+pymysql"),
]
TABLE = """
@migration
def make_items(op):
    op.create_table("items", Column("id", Integer, primary_key=True), Column("n", Integer))
    op.execute("INSERT INTO items (id, n) VALUES (1, 0), (2, 0)")
"""
SEED = """
@migration(once=True)
def seed(op: Operations) -> None:
    op.execute("INSERT INTO {table} (id) VALUES (1)")
"""
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
PEOPLE = """
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
        db.session.execute(text("ALTER PEOPLE users ADD COLUMN town VARCHAR(50)"))
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
    "table": ({"users": [ID]}, PEOPLE, {"users": [ID], "persons": [ID, string("city")]}),
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
