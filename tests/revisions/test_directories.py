"""Directories of every kind: what db-smart applies is what ``flask db upgrade`` applies, down to each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DbSmartError, MigrationError, MigrationFailed
from aurum_harmony.db_smart.signals import migration_applied
from tests.harness.alembic_project import AlembicProject
from tests.harness.clients import run_client
from tests.harness.project import DIALECTS

Make = Callable[..., AlembicProject]
NewUrl = Callable[[str], URL]


class Kind(NamedTuple):
    """One kind of directory.

    :ivar write: writes its revisions.
    :ivar dialects: the databases that it fits.
    :ivar target: as ``flask db upgrade`` takes it.
    :ivar before: a target that Alembic alone must have reached before, as it runs all of them in one transaction.
    """

    write: Callable[[AlembicProject], object]
    dialects: tuple[str, ...] = DIALECTS
    target: str = "head"
    before: str | None = None


USERS = """
op.create_table(
    "users",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(20), nullable=False),
)
op.bulk_insert(sa.table("users", sa.column("id"), sa.column("name")), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
"""


def table(name: str) -> str:
    return f'op.create_table({name!r}, sa.Column("id", sa.Integer, primary_key=True))'


def merges(project: AlembicProject) -> None:
    project.revision("root", None, USERS)
    project.revision("left", "root", table("t_left"))
    project.revision("right", "root", table("t_right"))
    project.revision("right2", "right", table("t_right2"))
    project.revision("merged", ("left", "right2"))
    project.revision("last", "merged", table("t_last"))


def several_heads(project: AlembicProject) -> None:
    project.revision("root", None, USERS)
    project.revision("left", "root", table("t_left"), labels=("west",))
    project.revision("right", "root", table("t_right"), labels=("east",))


def depends_on(project: AlembicProject) -> None:
    project.revision("a1", None, table("t_a1"), labels=("core",))
    project.revision("a2", "a1", table("t_a2"))
    project.revision("b1", None, table("t_b1"), labels=("plugin",), depends_on="a1")
    project.revision("b2", "b1", table("t_b2"), depends_on="a2")
    project.revision("c1", None, table("t_c1"), depends_on="plugin")


def get_bind(project: AlembicProject) -> None:
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        bind = op.get_bind()
        op.add_column("users", sa.Column("size", sa.Integer))
        for row in bind.execute(sa.text("SELECT id, name FROM users")).all():
            bind.execute(sa.text("UPDATE users SET size = :s WHERE id = :i"), {"s": len(row.name), "i": row.id})
        if "t_more" not in sa.inspect(bind).get_table_names():
            op.create_table("t_more", sa.Column("id", sa.Integer, primary_key=True))
        bind.exec_driver_sql("INSERT INTO t_more (id) VALUES (7)")
        """,
    )


def orm_session(project: AlembicProject) -> None:
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        from sqlalchemy.orm import Session, declarative_base

        class User(declarative_base()):
            __tablename__ = "users"
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(20))

        session = Session(bind=op.get_bind())
        for user in session.query(User).order_by(User.id):
            user.name = user.name * 2
        session.add(User(id=3, name="c"))
        session.flush()
        op.add_column("users", sa.Column("age", sa.Integer))
        session.commit()
        """,
    )
    project.revision(
        "a3",
        "a2",
        """
        from sqlalchemy import orm

        session = orm.sessionmaker()(bind=op.get_bind())
        session.execute(sa.text("UPDATE users SET age = 4"))
        session.commit()
        session.execute(sa.text("UPDATE users SET age = 5 WHERE id = 1"))
        session.commit()
        session.close()
        with orm.Session(op.get_bind()) as other, other.begin():
            other.execute(sa.text("INSERT INTO users (id, name) VALUES (9, 'z')"))
        """,
    )


def db_session(project: AlembicProject) -> None:
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        from flask import current_app
        db = current_app.extensions["sqlalchemy"]
        db.session.execute(sa.text("UPDATE users SET name = 'x' WHERE id = 1"))
        db.session.commit()
        with db.engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO users (id, name) VALUES (8, 'y')"))
        """,
    )
    project.revision("a3", "a2", 'op.add_column("users", sa.Column("age", sa.Integer))')


def dialect_checks(project: AlembicProject) -> None:
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        name = op.get_context().dialect.name
        if name == "postgresql":
            op.execute("ALTER TABLE users ADD COLUMN p TEXT")
        elif op.get_bind().engine.name == "sqlite":
            op.execute("ALTER TABLE users ADD COLUMN s TEXT")
        else:
            op.execute("ALTER TABLE users ADD COLUMN m TEXT")
        assert context.get_context().bind is op.get_bind()
        """,
    )


def raw_sql(project: AlembicProject) -> None:
    project.revision(
        "a1",
        None,
        '''
        op.execute("""
            CREATE TABLE raw (
                id INTEGER PRIMARY KEY, -- a comment; with a semicolon
                name VARCHAR(20) DEFAULT 'a;b'
            )
        """)
        op.execute(sa.text("INSERT INTO raw (id, name) VALUES (1, :name)").bindparams(name="x:y"))
        op.execute("INSERT INTO raw (id) SELECT 2")
        op.execute("CREATE VIEW raw_view AS SELECT id FROM raw")
        ''',
    )


def several_statements(project: AlembicProject) -> None:
    project.revision(
        "a1",
        None,
        '''
        op.execute("""
            CREATE TABLE raw (id INTEGER PRIMARY KEY);
            INSERT INTO raw (id) VALUES (1);
            INSERT INTO raw (id) VALUES (2);
        """)
        ''',
    )


def enums(project: AlembicProject) -> None:
    project.revision(
        "a1",
        None,
        """
        op.create_table(
            "moods",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("mood", sa.Enum("sad", "ok", name="mood")),
        )
        op.execute("INSERT INTO moods (id, mood) VALUES (1, 'sad')")
        """,
    )
    project.revision(
        "a2",
        "a1",
        """
        if op.get_bind().dialect.name == "postgresql":
            with op.get_context().autocommit_block():
                op.execute("ALTER TYPE mood ADD VALUE 'happy'")
        else:
            with op.batch_alter_table("moods") as batch:
                batch.alter_column(
                    "mood",
                    existing_type=sa.Enum("sad", "ok", name="mood"),
                    type_=sa.Enum("sad", "ok", "happy", name="mood"),
                )
        op.execute("UPDATE moods SET mood = 'happy'")
        """,
    )
    project.revision(
        "a3",
        "a2",
        """
        kind = sa.Enum("x", "y", name="kind")
        kind.create(op.get_bind(), checkfirst=True)
        op.add_column("moods", sa.Column("kind", kind, server_default="x"))
        """,
    )


def autocommit(project: AlembicProject) -> None:
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        op.add_column("users", sa.Column("age", sa.Integer))
        with op.get_context().autocommit_block():
            op.execute("UPDATE users SET age = 3")
            if op.get_bind().dialect.name == "postgresql":
                op.create_index("ix_age", "users", ["age"], postgresql_concurrently=True)
            else:
                op.create_index("ix_age", "users", ["age"])
        op.execute("UPDATE users SET age = age + 1")
        """,
    )
    project.revision("a3", "a2", 'op.add_column("users", sa.Column("last", sa.Integer))')


def autocommit_pragma(project: AlembicProject) -> None:
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        with op.get_context().autocommit_block():
            op.execute("PRAGMA foreign_keys=OFF")
        with op.batch_alter_table("users") as batch:
            batch.add_column(sa.Column("age", sa.Integer))
            batch.alter_column("name", new_column_name="title")
        with op.get_context().autocommit_block():
            op.execute("PRAGMA foreign_keys=ON")
        """,
    )
    project.revision("a3", "a2", 'op.execute("PRAGMA foreign_keys=ON")\nop.execute("UPDATE users SET age = 3")')


def batches(project: AlembicProject) -> None:
    """Each form of ``batch_alter_table``, on a table with children that are deleted with their parents."""
    project.revision(
        "a1",
        None,
        USERS
        + """
op.create_table(
    "posts",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("mood", sa.String(10)),
    sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_user", ondelete="CASCADE"),
)
op.create_table(
    "notes",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("post_id", sa.Integer),
    sa.ForeignKeyConstraint(["post_id"], ["posts.id"], name="fk_post", ondelete="SET NULL"),
)
op.execute("INSERT INTO posts (id, user_id) VALUES (1, 1), (2, 2), (3, 2)")
op.execute("INSERT INTO notes (id, post_id) VALUES (1, 3), (2, 1)")
""",
    )
    project.revision(
        "a2",
        "a1",
        """
        with op.batch_alter_table("users") as batch:
            batch.add_column(sa.Column("age", sa.Integer, nullable=False, server_default="1"))
            batch.alter_column("name", existing_type=sa.String(20), type_=sa.String(40), existing_nullable=False)
            batch.create_unique_constraint("uq_name", ["name"])
            batch.create_check_constraint("ck_age", sa.column("age") >= 0)
        always = "always" if op.get_bind().dialect.name == "sqlite" else "auto"
        with op.batch_alter_table("users", schema=None, recreate=always) as batch:
            batch.create_index("ix_age", ["age"], unique=False)
        """,
    )
    project.revision(
        "a3",
        "a2",
        """
        with op.batch_alter_table("users") as batch:
            batch.alter_column(
                "name", new_column_name="title", existing_type=sa.String(40), existing_nullable=False
            )
            batch.drop_index("ix_age")
        with op.batch_alter_table("posts") as batch:
            batch.drop_constraint("fk_user", type_="foreignkey")
            batch.create_foreign_key("fk_user2", "users", ["user_id"], ["id"], ondelete="CASCADE")
            batch.drop_column("mood")
        op.execute("UPDATE users SET age = 5 WHERE id = 2")
        """,
    )
    project.revision(
        "a4",
        "a3",
        """
        users = sa.Table("users", sa.MetaData(), autoload_with=op.get_bind())
        with op.batch_alter_table("users", copy_from=users, recreate="auto") as batch:
            batch.alter_column("age", existing_type=sa.Integer, nullable=True, server_default=None)
        with op.batch_alter_table("users", naming_convention={"uq": "uq_%(table_name)s_%(column_0_name)s"}) as batch:
            batch.drop_constraint("uq_name", type_="unique")
        op.rename_table("notes", "remarks")
        """,
    )


def naming_convention(project: AlembicProject) -> None:
    names = {
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(column_0_label)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
    env = project.alembic / "env.py"
    old = "target_metadata=get_metadata(),\n            **conf_args"
    text = env.read_text()
    assert old in text
    env.write_text(
        text.replace(old, f"target_metadata=MetaData(naming_convention={names!r}),\n            **conf_args")
    )
    env.write_text("from sqlalchemy import MetaData\n" + env.read_text())
    project.revision(
        "a1",
        None,
        """
        op.create_table(
            "users",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(20), unique=True),
            sa.Column("age", sa.Integer),
            sa.CheckConstraint("age > 0", name=op.f("ck_users_age")),
        )
        op.create_table(
            "posts",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id")),
        )
        """,
    )
    project.revision(
        "a2",
        "a1",
        """
        metadata = context.get_context().opts["target_metadata"]
        assert metadata.naming_convention["pk"] == "pk_%(table_name)s"
        with op.batch_alter_table("posts") as batch:
            batch.drop_constraint("fk_posts_user_id_users", type_="foreignkey")
            batch.create_foreign_key(None, "users", ["user_id"], ["id"], ondelete="CASCADE")
        with op.batch_alter_table("users") as batch:
            batch.create_index(batch.f("ix_users_age"), ["age"])
        """,
    )


KINDS = {
    "merges": Kind(merges),
    "several heads": Kind(several_heads, target="heads"),
    "one label": Kind(several_heads, target="east@head"),
    "depends_on": Kind(depends_on, target="heads"),
    "batches": Kind(batches),
    "naming convention": Kind(naming_convention),
    "get_bind": Kind(get_bind),
    "ORM session": Kind(orm_session),
    "db.session": Kind(db_session, before="a1"),
    "dialect checks": Kind(dialect_checks),
    "raw SQL": Kind(raw_sql),
    "several statements": Kind(several_statements, ("postgresql",)),
    "enums": Kind(enums),
    "autocommit_block": Kind(autocommit),
    "autocommit_block and PRAGMA": Kind(autocommit_pragma, ("sqlite",)),
}


@pytest.mark.parametrize(
    ("name", "dialect"), [(name, dialect) for name, kind in KINDS.items() for dialect in kind.dialects]
)
def test_as_flask_db_upgrade(make_alembic: Make, new_url: NewUrl, name: str, dialect: str) -> None:
    kind = KINDS[name]
    project = make_alembic(new_url(dialect))
    kind.write(project)
    project.target = kind.target
    report = project.boot()
    assert report.decision == "migrated"
    assert [one for one, _ in project.history()] == list(report.applied)
    other = project.at(new_url(dialect))
    for target in filter(None, (kind.before, kind.target)):
        other.upgrade(target)
    assert project.schema() == other.schema()
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"


@pytest.mark.parametrize("begins", [False, True], ids=["driver", "events"])
def test_children_survive_a_batch(make_alembic: Make, new_url: NewUrl, begins: bool) -> None:
    """With foreign keys on, Alembic alone deletes the children when it drops the parent's old table."""
    project = make_alembic(new_url("sqlite"))
    batches(project)

    def tune(app: Flask) -> None:
        with app.app_context():
            engine = app.extensions["sqlalchemy"].engine
        sa.event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA foreign_keys=ON"))
        if begins:  # as SQLAlchemy's documentation advises
            sa.event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
            sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    project.tune = tune
    assert project.boot().applied == ("a1", "a2", "a3", "a4")
    assert project.query("SELECT id, user_id FROM posts ORDER BY id") == [(1, 1), (2, 2), (3, 2)]
    assert project.query("SELECT id, post_id FROM remarks ORDER BY id") == [(1, 3), (2, 1)]
    app, _ = project.app()
    with app.app_context():  # the application's connections are as they were
        assert app.extensions["sqlalchemy"].session.scalar(sa.text("PRAGMA foreign_keys")) == 1
    project.dispose(app)


def test_new_violations_fail_and_old_ones_pass(make_alembic: Make, new_url: NewUrl) -> None:
    project = make_alembic(new_url("sqlite"))
    batches(project)
    project.target = "a1"
    project.boot()
    project.query("INSERT INTO posts (id, user_id) VALUES (9, 99)")
    project.target = "head"
    assert project.boot().applied == ("a2", "a3", "a4")
    project.revision("a5", "a4", 'op.execute("DELETE FROM users WHERE id = 1")')
    with pytest.raises(MigrationFailed, match=r"'a5' failed .*refers to 'users'"):
        project.boot()
    assert project.heads() == {"a4"}
    assert project.query("SELECT count(*) FROM users") == [(2,)]


@pytest.mark.parametrize(
    "change",
    ["INSERT INTO posts (id, user_id) VALUES (9, 99)", "DELETE FROM users WHERE id = 1", "DROP TABLE users"],
)
def test_violations_by_another_between_two_revisions_are_not_of_the_next(
    make_alembic: Make, new_url: NewUrl, change: str
) -> None:
    project = make_alembic(new_url("sqlite"))
    batches(project)
    project.target = "a1"
    project.boot()
    project.revision("b1", "a1", "op.execute(\"UPDATE posts SET mood = 'b'\")")
    project.revision("b2", "b1", "op.execute(\"UPDATE posts SET mood = 'c'\")")
    project.target = "b2"
    listeners: list[Callable[..., object]] = []

    def tune(app: Flask) -> None:
        def applied(_: Flask, *, migration: str, **__: object) -> None:
            if migration == "b1":
                project.query(change)

        listeners.append(applied)  # the signal alone does not keep it
        migration_applied.connect(applied, sender=app)

    project.tune = tune
    assert project.boot().applied == ("b1", "b2")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_raw_commit_splits_a_revision_and_no_more(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    project.revision("a1", None, USERS)
    project.revision(
        "a2",
        "a1",
        """
        op.execute("UPDATE users SET name = 'u'")
        op.execute("COMMIT")
        op.execute("ALTER TABLE users ADD COLUMN age INTEGER")
        op.execute("UPDATE users SET age = 3")
        """,
    )
    project.revision("a3", "a2", 'op.execute("COMMIT")\nop.execute("BEGIN")\nop.execute("UPDATE users SET age = 4")')
    project.revision("a4", "a3", "op.get_bind().commit()\nop.execute('UPDATE users SET age = age + 1')")
    project.revision("a5", "a4", "op.get_bind().rollback()\nop.add_column('users', sa.Column('last', sa.Integer))")
    assert project.boot().applied == ("a1", "a2", "a3", "a4", "a5")
    assert project.query("SELECT id, name, age, last FROM users ORDER BY id") == [(1, "u", 5, None), (2, "u", 5, None)]
    assert project.heads() == {"a5"}
    project.revision("a6", "a5", 'op.execute("UPDATE users SET age = 9")\nop.execute("COMMIT")\nraise ValueError("no")')
    with pytest.raises(MigrationFailed, match="'a6' failed"):
        project.boot()
    assert project.heads() == {"a5"}


@pytest.mark.parametrize("above", [False, True], ids=["beside", "above"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_generic_template(make_alembic: Make, new_url: NewUrl, dialect: str, above: bool) -> None:
    """Its own engine from its own configuration; Flask-Migrate is not registered."""
    project = make_alembic(new_url(dialect))
    project.init_alembic(above=above)
    get_bind(project)
    assert project.boot().applied == ("a1", "a2")
    assert project.boot().decision == "skipped"
    found = project.schema()
    other = project.at(new_url(dialect))
    other.upgrade()
    assert found == other.schema()


def test_the_generic_template_with_another_database(make_alembic: Make, new_url: NewUrl) -> None:
    project = make_alembic(new_url("sqlite"))
    project.init_alembic()
    get_bind(project)
    other = project.at(new_url("sqlite"))
    with pytest.raises(
        DbSmartError, match="on the database 'default'.*configured no connection to it, but one to sqlite"
    ):
        project.boot()
    assert project.heads() == set()
    assert other.heads() == set()


MULTI = """
def upgrade(engine_name):
    globals()["upgrade_%s" % engine_name]()


def downgrade(engine_name):
    globals()["downgrade_%s" % engine_name]()


def upgrade_():
    op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO users (id) VALUES (1)")


def upgrade_log():
    op.create_table("events", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO events (id) VALUES (7)")
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_template_for_several_databases(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    def make(path: AlembicProject | None = None) -> tuple[AlembicProject, AlembicProject]:
        default, log = new_url(dialect), new_url(dialect)
        config = {"SQLALCHEMY_BINDS": {"log": log.render_as_string(hide_password=False)}}
        project = (
            make_alembic(default, config, multidb=True) if path is None else replace(path, url=default, config=config)
        )
        return project, project.at(log)

    project, log = make()
    file = project.revision("a1")
    file.write_text(file.read_text().split("def upgrade")[0] + MULTI)
    file = project.revision("a2", "a1")
    file.write_text(
        file.read_text().split("def upgrade")[0] + MULTI.replace("users", "people").replace("events", "calls")
    )
    assert project.boot().applied == ("a1", "a2", "a1", "a2")
    assert not (project.instance / "snapshots").exists()  # nothing was in any of them
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"
    assert project.heads() == log.heads() == {"a2"}
    assert project.query("SELECT id FROM users") == [(1,)]
    assert log.query("SELECT id FROM calls") == [(7,)]
    plain, plain_log = make(project)
    plain.upgrade()
    assert plain.schema() == project.schema()
    assert plain_log.schema() == log.schema()


def test_a_script_for_several_databases(make_alembic: Make, new_url: NewUrl) -> None:
    """One part for each of them, which does there what a run does."""
    default, log_url = new_url("sqlite"), new_url("sqlite")
    config = {"SQLALCHEMY_BINDS": {"log": log_url.render_as_string(hide_password=False)}}
    project = make_alembic(default, config, multidb=True)
    log = project.at(log_url)
    file = project.revision("a1")
    file.write_text(file.read_text().split("def upgrade")[0] + MULTI)
    found = project.run("migrate", "--sql", "--database", "log")
    assert found.exit_code == 0, found.output
    assert "CREATE TABLE events" in found.stdout
    assert "CREATE TABLE users" not in found.stdout
    run_client(log_url, found.stdout)
    found = project.run("migrate", "--sql", "--database", "default")
    assert "CREATE TABLE users" in found.stdout
    assert "CREATE TABLE events" not in found.stdout
    run_client(default, found.stdout)
    assert (project.heads(), log.heads()) == ({"a1"}, {"a1"})
    assert project.boot().applied == ()
    assert log.query("SELECT id FROM events") == [(7,)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_bind_that_env_py_leaves_alone(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    other = new_url(dialect).render_as_string(hide_password=False)
    project = make_alembic(new_url(dialect), {"SQLALCHEMY_BINDS": {"replica": other}})
    get_bind(project)
    assert project.boot().applied == ("a1", "a2")
    assert project.at(other).tables() == set()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_version_table_by_configure_args(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    project = make_alembic(new_url(dialect))
    project.migrate_options = {"version_table": "my_versions"}
    takes_over(project, new_url(dialect), "my_versions")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_version_table_by_env_py(make_alembic: Make, new_url: NewUrl, dialect: str) -> None:
    """Nothing but a look at what env.py does tells its name, and what that told is kept in the database."""
    project = make_alembic(new_url(dialect))
    configured(project, 'version_table="-".join(["odd", "Versions"]),')
    takes_over(project, new_url(dialect), "odd-Versions")


def test_a_version_table_by_another_address(make_alembic: Make, new_url: NewUrl) -> None:
    """As seen by env.py, whose own URL names the same database in another way."""
    project = make_alembic(new_url("mariadb"))
    project.init_alembic()
    env = project.alembic / "env.py"
    env.write_text(env.read_text().replace("target_metadata=target_metadata\n", "version_table='own'\n"))
    assert project.ini is not None
    text = project.ini.read_text()
    other = text.replace("127.0.0.1", "localhost")
    assert other != text
    project.ini.write_text(other)
    get_bind(project)
    assert project.boot().applied == ("a1", "a2")
    assert project.heads("own") == {"a2"}
    assert project.boot().decision == "skipped"


def test_a_schema_of_its_own_for_the_versions(make_alembic: Make, new_url: NewUrl) -> None:
    project = make_alembic(new_url("postgresql"))
    project.query("CREATE SCHEMA side")
    configured(project, 'version_table_schema="side",')
    get_bind(project)
    project.upgrade("a1")
    assert project.boot().applied == ("a2",)
    assert project.query("SELECT version_num FROM side.alembic_version") == [("a2",)]
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("commits", [True, False])
def test_a_search_path_of_env_py(make_alembic: Make, new_url: NewUrl, commits: bool, autocommit: bool) -> None:
    project = make_alembic(new_url("postgresql"))
    if autocommit:
        project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"isolation_level": "AUTOCOMMIT"}
    project.query("CREATE SCHEMA side")
    setup = 'connection.exec_driver_sql("SET search_path TO side")' + ("; connection.commit()" if commits else "")
    env = project.alembic / "env.py"
    env.write_text(
        env.read_text().replace(
            "        context.configure(\n            connection",
            f"        {setup}\n        context.configure(\n            connection",
        )
    )
    get_bind(project)
    if commits:
        project.upgrade("a1")
    assert project.boot().applied == (("a2",) if commits else ("a1", "a2"))
    assert project.query("SELECT version_num FROM side.alembic_version") == [("a2",)]
    assert project.query("SELECT id FROM side.t_more") == [(7,)]
    assert not {"users", "alembic_version"} & project.tables()
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"


def test_several_heads_are_refused_by_name(make_alembic: Make, new_url: NewUrl) -> None:
    project = make_alembic(new_url("sqlite"))
    several_heads(project)
    with pytest.raises(MigrationError, match=r"several heads \(left, right\).*'head'.*merge.*alembic_target='heads'"):
        project.boot()
    assert project.tables() == set()
    project.target = ["left", "right"]
    assert set(project.boot().applied) == {"root", "left", "right"}
    assert project.heads() == {"left", "right"}


def test_a_target_that_is_not_there(make_alembic: Make, new_url: NewUrl) -> None:
    project = make_alembic(new_url("sqlite"))
    several_heads(project)
    for target in ("nothing", "north@head", "nothing@left"):
        project.target = target
        with pytest.raises(MigrationError, match=rf"target '{target}'.*Nothing was changed"):
            project.boot()


def configured(project: AlembicProject, options: str) -> None:
    """Have env.py pass more options to ``context.configure()``."""
    env = project.alembic / "env.py"
    text = env.read_text()
    assert "            **conf_args" in text
    env.write_text(text.replace("            **conf_args", f"            {options}\n            **conf_args"))


def takes_over(project: AlembicProject, url: URL, table: str) -> None:
    """In the middle of a history that Alembic alone has begun; and Alembic alone goes on with it."""
    get_bind(project)
    project.revision("a3", "a2", 'op.add_column("users", sa.Column("last", sa.Integer))')
    project.upgrade("a1")
    project.target = "a2"
    assert project.boot().applied == ("a2",)
    assert project.heads(table) == {"a2"}
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"
    project.target = "head"
    project.upgrade()
    assert project.boot().decision in ("verified", "migrated")
    project.revision("a4", "a3", 'op.add_column("users", sa.Column("more", sa.Integer))')
    assert project.boot().applied == ("a4",)
    assert {name for name, _ in project.history()} == {"a1", "a2", "a3", "a4"}
    other = project.at(url)
    other.upgrade()
    assert project.schema() == other.schema()


def test_what_cannot_run_in_a_transaction(make_alembic: Make, new_url: NewUrl) -> None:
    """SQLite: it runs where nothing was written before it in the revision, and is refused where something was."""
    project = make_alembic(new_url("sqlite"))
    project.revision("a1", None, USERS)
    pragmas = 'op.execute("PRAGMA journal_mode=WAL")\nop.execute("PRAGMA synchronous=NORMAL")\nop.execute("VACUUM")'
    project.revision("a2", "a1", f"{pragmas}\nop.execute(\"UPDATE users SET name = 'u'\")")
    assert project.boot().applied == ("a1", "a2")
    assert project.query("PRAGMA journal_mode") == [("wal",)]
    assert project.query("SELECT DISTINCT name FROM users") == [("u",)]
    project.revision("a3", "a2", "op.execute(\"UPDATE users SET name = 'v'\")\nop.execute('VACUUM')")
    with pytest.raises(MigrationFailed, match="'a3' failed .*cannot VACUUM from within a transaction"):
        project.boot()
    assert project.query("SELECT DISTINCT name FROM users") == [("u",)]
    assert project.heads() == {"a2"}
