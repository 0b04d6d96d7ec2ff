"""``flask db-smart new``: migrations that are written, empty or from the models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from tests.harness.drift import DIALECTS, found, models
from tests.harness.project import Project
from tests.harness.round_trip import FIRST, HEADER, formatted

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
DESTRUCTIVE = "@migration(destructive=True)\ndef drop("


@pytest.fixture(params=DIALECTS)
def project(request: pytest.FixtureRequest, make_project: Make, new_url: NewUrl) -> Project:
    project = make_project(new_url(request.param))
    project.models = models
    project.write(FIRST, header=HEADER)
    return project


def more(db: SQLAlchemy) -> None:
    """Models that have more than the database."""
    models(db)
    users, orders = db.metadata.tables["users"], db.metadata.tables["orders"]
    users.append_column(sa.Column("nickname", sa.String(40), index=True))
    users.append_column(sa.Column("score", sa.Integer, nullable=False, default=0))
    users.append_column(sa.Column("state", sa.String(10), nullable=False, server_default="new"))
    orders.append_constraint(sa.UniqueConstraint("user_id", "id", name="uq_orders"))
    users.c.age.type = sa.BigInteger()
    db.Table(
        "lines",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("order_id", sa.ForeignKey("orders.id"), nullable=False),
        sa.Column("what", sa.Text, server_default="it's"),
        sa.CheckConstraint("order_id <> 7", name="not_seven"),
    )


def test_an_empty_migration(project: Project) -> None:
    project.boot()
    result = project.run("new", "colours")
    assert result.exit_code == 0, result.output
    assert result.output == f"Wrote an empty migration 'colours' into {project.file}.\n"
    assert project.boot().applied == ("colours",)
    assert "There is a migration 'colours' already" in project.run("new", "colours").output
    assert "cannot be the name of a function" in project.run("new", "more colours").output


def test_from_the_models(project: Project) -> None:
    """What is written brings the database to the models, with rows in it."""
    project.boot()
    project.query("INSERT INTO users (id, name, age) VALUES (1, 'Ann', 30)")
    project.models = more
    assert found(project) != []
    result = project.run("new", "from_models", "--from-models")
    assert result.exit_code == 0, result.output
    formatted(project.file)
    if project.dialect != "sqlite":  # which block writers for that, so that a person has to say it
        text = project.file.read_text()
        assert "type_=sa.BigInteger())" in text
        project.file.write_text(text.replace("type_=sa.BigInteger())", "type_=sa.BigInteger(), online=False)"))
    assert project.boot().applied == ("from_models",)
    assert found(project) == []
    assert project.query("SELECT name, score, state FROM users") == [("Ann", 0, "new")]
    assert "there is nothing to write" in project.run("new", "again", "--from-models").output


def test_old_rows_need_a_value(project: Project) -> None:
    def note(db: SQLAlchemy) -> None:
        db.Table(
            "notes",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("text", sa.String(40)),
            sa.Column("kind", sa.String(10)),
        )

    def more(db: SQLAlchemy) -> None:
        db.Table(
            "notes",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("text", sa.String(40), nullable=False, default=""),
            sa.Column("kind", sa.String(10), nullable=False),
            sa.Column("day", sa.String(10), nullable=False),
        )

    project.models = note
    project.boot()
    project.query("INSERT INTO notes (id, kind) VALUES (1, 'new')")
    project.models = more
    result = project.run("new", "strict", "--from-models")
    assert result.exit_code == 0, result.output
    text = project.file.read_text()
    assert '    op.backfill("notes", {"text": ""}, where="text IS NULL")\n' in text
    assert '    # op.backfill("notes", {"day": ...}, where="day IS NULL")\n' in text
    assert '    # op.backfill("notes", {"kind": ...}, where="kind IS NULL")\n' in text
    project.write(text.replace("    # op.backfill", "    op.backfill").replace("...}", '"2026-01-01"}'), header="")
    project.boot()
    assert found(project) == []


def test_what_destroys_is_a_comment(project: Project) -> None:
    project.boot()
    project.query("ALTER TABLE users ADD COLUMN fax VARCHAR(20)")
    project.query("CREATE TABLE stray (id INTEGER)")
    assert project.run("new", "drop", "--from-models").exit_code == 0
    text = project.file.read_text()
    assert '    # op.drop_column("users", "fax")\n' in text
    assert '    # op.drop_table("stray")\n' in text
    assert text.endswith("    pass\n")
    assert project.boot().applied == ("drop",)
    assert "fax" in project.columns("users")


def test_tables_go_before_those_that_they_refer_to(project: Project) -> None:
    project.boot()
    project.query("CREATE TABLE a (id INTEGER PRIMARY KEY, b_id INTEGER)")
    key = "CONSTRAINT ba FOREIGN KEY (a_id) REFERENCES a (id)"
    project.query(f"CREATE TABLE b (id INTEGER PRIMARY KEY, a_id INTEGER, {key})")
    project.query("CREATE TABLE c (id INTEGER PRIMARY KEY, FOREIGN KEY (id) REFERENCES b (id))")
    if project.dialect != "sqlite":
        project.query("ALTER TABLE a ADD CONSTRAINT ab FOREIGN KEY (b_id) REFERENCES b (id)")
    assert project.run("new", "drop", "--from-models").exit_code == 0
    text = project.file.read_text()
    dropped = [line.strip("# ") for line in text.splitlines() if "op.drop_" in line]
    circle = [] if project.dialect == "sqlite" else ['op.drop_constraint("ba", "b", type_="foreignkey")']
    rest = ["a", "b"] if circle else ["b", "a"]
    assert dropped == ['op.drop_table("c")', *circle, *(f'op.drop_table("{name}")' for name in rest)]
    text = text.replace("    # op.drop_", "    op.drop_").replace("@migration\ndef drop(", DESTRUCTIVE)
    project.write(text, header="")
    assert project.boot().applied == ("drop",)
    assert not {"a", "b", "c"} & project.tables()


def test_renames(project: Project) -> None:
    project.boot()
    project.query("INSERT INTO users (id, name, age) VALUES (1, 'Ann', 30)")

    def renamed(db: SQLAlchemy) -> None:
        db.Table(
            "users",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(40), nullable=False, unique=True),
            sa.Column("years", sa.Integer),
        )
        db.Table(
            "orders",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
            sa.CheckConstraint("user_id > 0", name="positive"),
        )

    project.models = renamed
    result = project.run("new", "hint", "--from-models")
    assert "--rename users.age=years" in result.stderr
    project.write(FIRST, header=HEADER)
    assert "has no users.old" in project.run("new", "years", "--rename", "users.old=years").output
    result = project.run("new", "years", "--rename", "users.age=years")
    assert result.exit_code == 0, result.output
    assert 'op.alter_column("users", "age", new_column_name="years")' in project.file.read_text()
    project.boot()
    assert project.query("SELECT years FROM users") == [(30,)]


def with_clients(db: SQLAlchemy) -> None:
    db.Table("clients", sa.Column("id", sa.Integer, primary_key=True), sa.Column("mail", sa.String(40), unique=True))
    db.Table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("client_id", sa.ForeignKey("clients.id"), nullable=False, index=True),
    )


def with_customers(db: SQLAlchemy) -> None:
    db.Table(
        "customers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mail", sa.String(40), unique=True),
        info={"renamed_from": "clients"},
    )
    db.Table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer_id", sa.ForeignKey("customers.id"), nullable=False, index=True),
    )


def test_a_table_gets_another_name(project: Project) -> None:
    project.models = with_clients
    project.boot()
    project.query("INSERT INTO clients (id, mail) VALUES (1, 'ann@example.org')")
    project.query("INSERT INTO orders (id, client_id) VALUES (1, 1)")
    project.models = with_customers
    result = project.run("new", "customers", "--from-models", "--rename", "orders.client_id=customer_id")
    assert result.exit_code == 0, result.output
    text = project.file.read_text()
    assert 'op.rename_table("clients", "customers")' in text
    assert "create_foreign_key" not in text
    project.boot()
    assert project.query("SELECT mail, customer_id FROM customers JOIN orders ON customer_id = customers.id") == [
        ("ann@example.org", 1)
    ]
    assert found(project) == []


def with_one_table(name: str, db: SQLAlchemy) -> None:
    db.Table(name, sa.Column("id", sa.Integer, primary_key=True), schema="billing")


def test_a_table_of_a_schema_gets_another_name(make_project: Make, new_url: NewUrl) -> None:
    project = make_project(new_url("postgresql"))
    project.write(FIRST, header=HEADER)
    project.query("CREATE SCHEMA billing")
    project.models = partial(with_one_table, "bills")
    project.boot()
    project.models = partial(with_one_table, "invoices")
    written = project.file.read_text()
    for given in ("billing.bills=invoices", "billing.bills=billing.invoices"):
        project.write(written, header="")
        result = project.run("new", "invoices", "--rename", given)
        assert result.exit_code == 0, result.output
        assert 'op.rename_table("bills", "invoices", schema="billing")' in project.file.read_text()
    project.boot()
    assert found(project) == []


def test_a_schema_that_is_missing(make_project: Make, new_url: NewUrl) -> None:
    project = make_project(new_url("postgresql"))
    project.write(FIRST, header=HEADER)
    project.models = models
    project.boot()
    project.models = partial(with_one_table, "bills")
    result = project.run("new", "bills", "--from-models")
    assert result.exit_code == 0, result.output
    assert 'op.execute("CREATE SCHEMA IF NOT EXISTS billing")' in project.file.read_text()
    project.boot()
    assert ("add", "table", "bills") not in found(project)
    project.models = partial(with_one_table, "invoices")
    assert project.run("new", "invoices", "--from-models").exit_code == 0
    assert project.file.read_text().count("CREATE SCHEMA") == 1


def test_a_rename_concerns_the_database_that_has_it(make_project: Make, new_url: NewUrl) -> None:
    project = make_project(new_url("sqlite"), config={"SQLALCHEMY_BINDS": {"other": new_url("sqlite")}})
    project.write(
        FIRST + "\n\n@migration(database='other')\ndef more(op: Operations) -> None:\n    pass\n", header=HEADER
    )

    def before(column: str, db: SQLAlchemy) -> None:
        for key in (None, "other"):
            names = ("id", column if key is None else "name")
            options = {} if key is None else {"bind_key": key}
            db.Table("things", *(sa.Column(one, sa.Integer, primary_key=one == "id") for one in names), **options)

    def after(db: SQLAlchemy) -> None:
        before("now", db)
        db.metadatas["other"].tables["things"].append_column(sa.Column("added", sa.Integer))

    project.models = partial(before, "then")
    project.boot()
    project.models = after
    result = project.run("new", "names", "--rename", "things.then=now")
    assert result.exit_code == 0, result.output
    assert 'op.alter_column("things", "then", new_column_name="now")' in project.file.read_text()
    assert 'op.add_column("things", sa.Column("added"' in project.file.read_text()


def test_a_rename_to_what_the_models_do_not_have(project: Project) -> None:
    project.boot()

    def renamed(db: SQLAlchemy) -> None:
        models(db)
        db.metadata.tables["users"].append_column(sa.Column("nickname", sa.String(40)))

    project.query("ALTER TABLE users ADD COLUMN nick VARCHAR(40)")
    project.models = renamed
    before = project.file.read_text()
    for given, said in (
        (
            "users.nick=nickane",
            "the models have no column nickane in users that the database lacks; of such they have: ",
        ),
        ("users.nick=users.nickane", "of such they have: nickname. Nothing was written."),
    ):
        result = project.run("new", "names", "--from-models", "--rename", given)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    assert project.file.read_text() == before


def test_a_pending_migration_that_cannot_be_counted(project: Project) -> None:
    project.boot()
    project.models = more
    text = FIRST + "\n\n@migration\ndef mine(op: Operations) -> None:\n    op.session.commit()\n"
    project.write(text, header=HEADER)
    result = project.run("new", "again", "--from-models")
    assert result.exit_code == 0, result.output
    assert "the pending 'mine' is not counted: it uses op.session." in result.stderr
    assert "may do again what that one does" in result.stderr


def test_a_key_without_a_name_gets_no_second_one(make_project: Make, new_url: NewUrl) -> None:
    """SQLite has no name for it, so that it cannot be dropped."""
    project = make_project(new_url("sqlite"))
    project.write(FIRST, header=HEADER)
    project.models = models
    project.boot()

    def restricted(db: SQLAlchemy) -> None:
        models(db)
        (key,) = db.metadata.tables["orders"].foreign_key_constraints
        key.ondelete = "RESTRICT"

    project.models = restricted
    result = project.run("new", "restricted", "--from-models")
    assert result.exit_code == 0, result.output
    text = " ".join(project.file.read_text().replace("#", "").split())
    assert "create_foreign_key" not in text
    assert (
        "orders: the foreign key on (user_id) has no name in the database, so it cannot be dropped. In the models it "
        "is columns (user_id), target users, target columns (id), on delete RESTRICT; in the database columns "
        "(user_id), target users, target columns (id), on delete CASCADE. A second one would not replace it. "
        "Leave it in the models as it is, or make a new table with the right key, and copy the rows."
    ) in text


def test_a_new_database_has_nothing_to_compare_with(project: Project) -> None:
    result = project.run("new", "nothing", "--from-models")
    assert result.exit_code == 0, result.output
    assert result.stdout == "The models and the database are alike: there is nothing to write.\n"
    assert result.stderr == (
        "Database default: its first boot makes the missing tables from the models, so these are not compared. For "
        "what an older database lacks, use one as production has it.\n"
    )
    project.boot()
    assert project.run("new", "nothing", "--from-models").stderr == ""


def test_the_next_file_of_a_package(make_project: Make, new_url: NewUrl) -> None:
    project = make_project(new_url("sqlite"))
    project.models = models
    project.write(FIRST, "0007_first", header=HEADER)
    project.boot()
    project.models = more
    result = project.run("new", "second", "--from-models")
    assert result.exit_code == 0, result.output
    path = project.directory / project.module / "0008_second.py"
    formatted(path)
    assert project.boot().applied == ("second",)
    assert found(project) == []


def test_a_name_that_another_index_gets(project: Project) -> None:
    """A unique index does what the new constraint does, but its name is that of an index on more columns now."""

    def users(db: SQLAlchemy, *more: sa.schema.SchemaItem) -> None:
        db.Table(
            "users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.Integer, nullable=False), *more
        )

    def before(db: SQLAlchemy) -> None:
        users(db, sa.Index("ix_users", "a", unique=True))

    def after(db: SQLAlchemy) -> None:
        users(db, sa.Index("ix_users", "a", "id"), sa.UniqueConstraint("a", name="uq_users"))

    project.models = before
    project.boot()
    project.models = after
    assert project.run("new", "another_index", "--from-models").exit_code == 0
    project.boot()  # nothing that would be refused
    text = project.file.read_text()
    assert all(str(name).rpartition(".")[2] in text for _, _, name in found(project))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_new_table_refers_to_what_comes_with_it(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    """To a column that an old table gets, and to one that gets unique: they have to be there before."""
    project = make_project(new_url(dialect))
    project.write(FIRST, header=HEADER)

    def before(db: SQLAlchemy) -> None:
        db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(40)))

    def after(db: SQLAlchemy) -> None:
        name = sa.Column("name", sa.String(40), unique=True)
        db.Table(
            "users", sa.Column("id", sa.Integer, primary_key=True), name, sa.Column("code", sa.Integer, unique=True)
        )
        db.Table(
            "notes",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.ForeignKey("users.name", name="fk_name")),
            sa.Column("code", sa.ForeignKey("users.code", name="fk_code")),
        )

    project.models = before
    project.boot()
    project.models = after
    assert project.run("new", "notes", "--from-models").exit_code == 0
    project.boot()
    assert found(project) == []
