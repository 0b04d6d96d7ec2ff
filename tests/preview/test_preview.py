"""Dry runs: what each operation would do, and SQL for the database's own client that gives the same schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.clients import run_client
from tests.harness.project import Project
from tests.samples import V1

OLD = """
@migration
def tables(op):
    op.create_table("people", Column("id", Integer, primary_key=True), Column("name", String(50)), Column("n", Integer))
    op.create_table("orders", Column("id", Integer, primary_key=True), Column("person_id", Integer))
    op.create_index("ix_people_n", "people", ["n"])
    for number in range(1, 21):
        values = {"id": number, "name": "it's 100% " + str(number)}
        op.execute("INSERT INTO people (id, name, n) VALUES (:id, :name, :id)", values)
        op.execute("INSERT INTO orders (id, person_id) VALUES (:id, :id)", {"id": number})
"""

NEW = """
@migration
def columns(op):
    op.add_columns("people", Column("city", String(20), server_default="50%", nullable=False), Column("n", Integer))
    op.add_column("people", Column("mentor_id", Integer, ForeignKey("people.id")))
    op.create_index("ix_people_city", "people", ["city"])
    op.create_index("ix_people_n", "people", ["n"])

@migration
def tighten(op):
    op.alter_column("people", "n", nullable=False)
    op.alter_column("people", "name", type_=String(60), server_default="nobody")
    op.create_foreign_key("fk_orders_person", "orders", "people", ["person_id"], ["id"], ondelete="CASCADE")
    op.create_unique_constraint("uq_people_name", "people", ["name"])
    op.create_check_constraint("ck_people_n", "people", "n > 0", online=False)

@migration
def more(op):
    op.create_table("tags", Column("id", Integer, primary_key=True), Column("name", String(20), index=True))
    op.create_index("ix_tags_both", "tags", ["id", "name"])
    op.add_column("tags", Column("kind", Integer))
    if op.has_column("tags", "kind"):
        rows = [{"id": 1, "name": "a'b"}, {"id": 2, "name": None}]
        op.execute("INSERT INTO tags (id, name, kind) VALUES (:id, :name, 1)", rows)

@migration(destructive=True)
def less(op):
    op.drop_index("ix_people_n", "people")
    op.alter_column("people", "n", new_column_name="number")
    op.drop_column("people", "city")
    op.rename_table("orders", "purchases")
    op.drop_constraint("ck_people_n", "people")

@migration
def nothing(op):
    op.drop_index("ix_never", "people")
    op.create_table("people", Column("id", Integer, primary_key=True))
"""


def described(project: Project) -> dict[str, Any]:
    """Everything that a reader can see of the application's tables, with their rows."""
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        for table in sorted(inspector.get_table_names()):
            if table.startswith("db_smart_"):
                continue
            columns = [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)]
            rows = connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY id")).all()
            found[table] = (
                columns,
                sorted(map(repr, inspector.get_indexes(table))),
                sorted(map(repr, inspector.get_foreign_keys(table))),
                sorted(map(repr, inspector.get_unique_constraints(table))),
                sorted(map(repr, inspector.get_check_constraints(table))),
                [tuple(row) for row in rows],
            )
    return found


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> tuple[Project, Project]:
    """Two projects with the same populated database and the same pending migrations."""
    projects = []
    for _ in range(2):
        project = make_project(new_url(request.param))
        projects.append(project)
        project.write(OLD)
        project.boot()
        project.write(OLD + NEW)
    return projects[0], projects[1]


kinds = pytest.mark.parametrize("pair", ["sqlite", "postgresql", "mariadb"], indirect=True)


@kinds
def test_the_script_gives_the_same_database_as_the_run(pair: tuple[Project, Project]) -> None:
    first, second = pair
    before = described(first)
    result = first.run("migrate", "--sql")
    assert result.exit_code == 0, result.output
    assert described(first) == before
    assert first.history() == [("tables", "applied")]
    run_client(first.url, result.stdout)
    assert second.run("migrate").exit_code == 0
    assert described(first) == described(second)
    assert first.boot().applied == ()
    assert json.loads(first.run("status", "--json").stdout)["state"] == "up-to-date"
    assert first.history() == second.history()


@kinds
def test_a_dry_run_says_what_each_operation_would_do(pair: tuple[Project, Project]) -> None:
    project, _ = pair
    before = described(project)
    text = project.run("migrate", "--dry-run").output
    assert "would do   add_columns('people', 'city')" in text
    assert "satisfied  create_index('ix_people_n', 'people')" in text
    assert text.rstrip().endswith("Dry run: 5 to apply; nothing was written.")
    report = json.loads(project.run("migrate", "--dry-run", "--json").stdout)
    by_name = {item["name"]: item for item in report["pending"]}
    assert by_name["nothing"]["does"] == []
    assert len(by_name["nothing"]["satisfied"]) == 2
    assert by_name["more"]["does"][0] == "create_table('tags')"
    assert all(item["error"] is None and item["unknown"] is None for item in report["pending"]), report
    assert described(project) == before
    assert project.history() == [("tables", "applied")]


def test_what_cannot_be_known_is_said(project: Project) -> None:
    project.write("""
        @migration
        def table(op):
            op.create_table("t", Column("id", Integer, primary_key=True))

        @migration
        def by_session(op):
            op.add_column("t", Column("a", Integer))
            op.session.execute(text("INSERT INTO t (id) VALUES (1)"))

        @migration
        def by_the_documents_example():
            db.session.execute(text("INSERT INTO t (id) VALUES (2)"))
            db.session.commit()

        @migration
        def refused(op):
            op.drop_column("t", "id")

        @migration
        def by_what_it_reads(op):
            op.execute("SELECT no_such_column FROM t")
    """)
    result = project.run("migrate", "--sql")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("cannot be known in advance") == 2
    assert "op.session" in result.stdout
    assert "DS101" in result.stdout
    assert result.stdout.count("Left to db-smart") == 4
    run_client(project.url, result.stdout)
    assert project.history() == [("table", "applied")]
    assert project.columns("t") == {"id"}
    items = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert [item["unknown"] is not None for item in items] == [True, True, False, False]
    assert [item["error"] is not None for item in items] == [False, False, True, True]


def test_the_first_run_shows_the_tables_of_the_models(project: Project) -> None:
    def models(db: SQLAlchemy) -> None:
        class User(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(20), index=True)

    project.models = models
    project.write('@migration\ndef city(op):\n    op.add_column("user", Column("city", Text))\n')
    script = project.run("migrate", "--sql").stdout
    assert not project.tables()
    run_client(project.url, script)
    assert project.columns("user") == {"id", "name", "city"}
    report = project.boot()
    assert report.applied == ()
    assert project.history() == [("city", "applied")]


def test_the_script_makes_models_that_refer_to_each_other_and_share_a_type(project: Project) -> None:
    kind = sa.Enum("a", "b", name="kind_of")

    def models(db: SQLAlchemy) -> None:
        for one, other in (("left", "right"), ("right", "left")):
            key = sa.ForeignKey(f"{other}.id", name=f"fk_{one}")
            more = [sa.Column("other", sa.Integer, key), sa.Column("kind", kind), sa.Column("second", kind)]
            sa.Table(one, db.metadata, sa.Column("id", sa.Integer, primary_key=True), *more)

    project.models = models
    project.write('@migration\ndef more(op):\n    op.add_column("left", Column("n", Integer))\n')
    script = project.run("migrate", "--sql").stdout
    run_client(project.url, script)
    with sa.create_engine(project.url, poolclass=sa.pool.NullPool).connect() as connection:
        keys = [sa.inspect(connection).get_foreign_keys(table) for table in ("left", "right")]
    assert [[key["name"] for key in one] for one in keys] == [["fk_left"], ["fk_right"]]
    assert project.boot().applied == ()


def test_sql_with_nothing_pending_and_with_json(sqlite_project: Project) -> None:
    sqlite_project.write(
        '@migration\ndef one(op):\n    op.create_table("t", Column("id", Integer, primary_key=True))\n'
    )
    sqlite_project.boot()
    assert sqlite_project.run("migrate", "--sql").stdout == "-- Nothing to apply.\n"
    result = sqlite_project.run("migrate", "--sql", "--json")
    assert result.exit_code == 2
    assert "cannot be combined" in result.output


def test_a_script_without_a_migration_that_would_be_refused_fails(sqlite_project: Project) -> None:
    sqlite_project.write(V1)
    sqlite_project.boot()
    sqlite_project.write(V1 + "\n@migration\ndef drop(op):\n    op.drop_column('items', 'name')\n")
    result = sqlite_project.run("migrate", "--sql")
    assert result.exit_code == 1
    assert "-- Not in this script, and the next boot would fail at it too." in result.stdout
