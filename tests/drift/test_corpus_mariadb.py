"""``diff`` on MariaDB: models of every kind are found alike once made, and each change of them is found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.drift import weaker
from tests.harness import servers
from tests.harness.corpus_mariadb import MUTATIONS, corpus, small
from tests.harness.drift import by_alembic, differences, execute, told
from tests.harness.processes import results
from tests.harness.project import Project

NewUrl = Callable[[str], URL]


def test_what_is_made_is_alike(new_url: NewUrl) -> None:
    url, metadata = new_url("mariadb"), corpus()
    metadata.create_all(sa.create_engine(url, poolclass=sa.pool.NullPool))
    assert [str(one) for one in differences(url, metadata)] == []
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with warnings.catch_warnings(), engine.connect() as connection:
        warnings.simplefilter("ignore")  # what Alembic has to say of it
        assert [f"{one.path}: {one}" for one in weaker.compare(connection, metadata, lambda *_: True)] == []
    count = len(by_alembic(url, metadata))
    tables, columns = len(metadata.tables), sum(len(table.columns) for table in metadata.tables.values())
    results.append(
        f"Unchanged models on MariaDB ({tables} tables, {columns} columns): differences found: 0; by Alembic: {count}"
    )


@pytest.fixture(scope="module")
def mutable(mariadb: URL) -> Iterator[URL]:
    with servers.new_database(mariadb) as url:
        yield url


@pytest.mark.parametrize("what", MUTATIONS)
def test_each_change_is_found(mutable: URL, what: str) -> None:
    statements, expected = MUTATIONS[what]
    names = [name for (name,) in servers.query(mutable, "SHOW TABLES")]
    kinds = {"numbers": "SEQUENCE", "seen": "VIEW"}
    drops = [f"DROP {kinds.get(name, 'TABLE')} `{name}`" for name in sorted(names, key=lambda name: name != "seen")]
    execute(mutable, "SET foreign_key_checks = 0", *drops)
    small().create_all(sa.create_engine(mutable, poolclass=sa.pool.NullPool))
    execute(mutable, *statements.split("; "))
    assert told(differences(mutable, small())) == expected


def test_made_by_our_operations(make_project: Callable[..., Project], new_url: NewUrl) -> None:
    """Tables made in steps, by every operation, are as the models make them at once."""
    project = make_project(new_url("mariadb"))
    project.write(
        """
        @migration(destructive=True)
        def first(op: Operations):
            op.create_table("parents", Column("id", Integer, primary_key=True))
            op.create_table("users", Column("id", Integer, primary_key=True), Column("nick", String(20)))
            op.add_columns(
                "users",
                Column("email", String(80), unique=True),
                Column("age", Integer, index=True),
                Column("parent_id", Integer, ForeignKey("parents.id", ondelete="CASCADE")),
                Column("flag", Boolean, server_default=text("1")),
                Column("data", JSON),
                Column("level", Enum("low", "high")),
                Column("positive", Integer, CheckConstraint("positive > 0")),
                Column("told", String(20), comment="it's told"),
                online=False,
            )
            op.alter_column("users", "nick", new_column_name="nickname")
            op.alter_column("users", "nickname", type_=String(30), nullable=False, online=False)
            op.create_unique_constraint("uq_both", "users", ["nickname", "age"])
            op.create_check_constraint("ck_age", "users", "age BETWEEN 0 AND 150", online=False)
            op.create_index("ix_flag", "users", ["flag", "age"])
            op.create_table("orders", Column("id", Integer, primary_key=True), Column("user_id", Integer))
            op.create_foreign_key("fk_user", "orders", "users", ["user_id"], ["id"])
            op.create_index("ix_user", "orders", ["user_id"])
        """
    )
    project.boot()

    metadata = sa.MetaData()
    sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("nickname", sa.String(30), nullable=False),
        sa.Column("email", sa.String(80), unique=True),
        sa.Column("age", sa.Integer, index=True),
        sa.Column("parent_id", sa.ForeignKey("parents.id", ondelete="CASCADE")),
        sa.Column("flag", sa.Boolean, server_default=sa.true()),
        sa.Column("data", sa.JSON),
        sa.Column("level", sa.Enum("low", "high")),
        sa.Column("positive", sa.Integer, sa.CheckConstraint("positive > 0")),
        sa.Column("told", sa.String(20), comment="it's told"),
        sa.UniqueConstraint("nickname", "age", name="uq_both"),
        sa.CheckConstraint("age BETWEEN 0 AND 150", name="ck_age"),
        sa.Index("ix_flag", "flag", "age"),
    )
    sa.Table(
        "orders",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id", name="fk_user"), index=True),
    )
    assert [str(one) for one in differences(project.url, metadata)] == []


def test_made_by_hand(new_url: NewUrl) -> None:
    url, metadata = new_url("mariadb"), small()
    sa.Table("plain", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("yes", sa.Boolean))
    execute(
        url,
        "CREATE SEQUENCE NUMBERS_ START WITH 5 CACHE 1000",
        "RENAME TABLE NUMBERS_ TO numbers",
        "create table parents (ID int(10) not null auto_increment, other_id integer, primary key using btree (id), "
        "unique key whatever (OTHER_ID))",
        """CREATE TABLE users (
            id INTEGER AUTO_INCREMENT PRIMARY KEY, -- the key, CHECK (no)
            Name VARCHAR ( 40 ) NOT NULL,
            n INT(11) DEFAULT '7' CONSTRAINT ck_other CHECK ( `n`>5 ),
            level ENUM ('low' , 'high') NULL DEFAULT NULL,
            data LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin CHECK (JSON_VALID(data)),
            at DATETIME DEFAULT CURRENT_TIMESTAMP(),
            twice INT GENERATED ALWAYS AS ((n)*2) VIRTUAL,
            parent_id INT REFERENCES parents (id) ON DELETE NO ACTION,
            told VARCHAR(20) COMMENT "told",
            UNIQUE KEY (name, n), KEY anything (n, told), KEY ix_prefix USING BTREE (told (10))
        ) COMMENT 'people'""".replace(" CONSTRAINT ck_other", ""),
        "CREATE TABLE `plain` (`id` INT PRIMARY KEY AUTO_INCREMENT, `yes` BOOL)",
        "CREATE VIEW seen AS SELECT * FROM users",
        "CREATE TRIGGER before_it BEFORE INSERT ON users FOR EACH ROW SET NEW.told = 'x'",
    )
    assert [str(one) for one in differences(url, metadata)] == []


def test_a_model_of_a_view(new_url: NewUrl) -> None:
    url, metadata = new_url("mariadb"), small()
    metadata.create_all(sa.create_engine(url, poolclass=sa.pool.NullPool))
    execute(url, "CREATE VIEW seen AS SELECT id FROM users")
    sa.Table("seen", metadata, sa.Column("id", sa.Integer, primary_key=True))
    assert told(differences(url, metadata)) == []


def test_other_schemas(mariadb: URL) -> None:
    """Each has a scratch database of its own, and is called by its name."""
    with servers.new_database(mariadb) as second, servers.new_database(mariadb) as url:
        metadata, other = sa.MetaData(), str(second.database)
        sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True), schema=other)
        sa.Table(
            "users",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("parent_id", sa.ForeignKey(f"{other}.parents.id")),
            sa.Column("email", sa.String(20), unique=True),
        )
        sa.Table("users", metadata, sa.Column("email", sa.String(20), unique=True), schema=other)  # alembic#1315
        sa.Table("named", metadata, sa.Column("id", sa.Integer, primary_key=True), schema=str(url.database))
        metadata.create_all(sa.create_engine(url, poolclass=sa.pool.NullPool))
        assert told(differences(url, metadata)) == []
        execute(second, "ALTER TABLE users ADD n INT", "ALTER TABLE parents COMMENT 'x'")
        execute(second, "ALTER TABLE users DROP INDEX email")
        execute(url, "DROP TABLE named")
        assert sorted(told(differences(url, metadata))) == [
            ("both", "table", f"{other}.parents", ["comment"]),
            ("database", "column", f"{other}.users.n", []),
            ("models", "table", "named", []),
            ("models", "unique", f"{other}.users.email", []),
        ]


def test_schemas_that_the_engine_translates(mariadb: URL) -> None:
    with servers.new_database(mariadb) as second, servers.new_database(mariadb) as url:
        places = {None: second.database, "shop": url.database}
        options = {"schema_translate_map": {**places}}
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool, execution_options=options)
        metadata = sa.MetaData()
        sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
        sa.Table("users", metadata, sa.Column("parent_id", sa.ForeignKey("parents.id"), index=True), schema="shop")
        metadata.create_all(engine)
        assert told(differences(engine, metadata)) == []
        execute(second, "ALTER TABLE parents ADD n INT")
        assert told(differences(engine, metadata)) == [("database", "column", "parents.n", [])]
        execute(url, "DROP TABLE users")
        assert ("models", "table", "shop.users", []) in told(differences(engine, metadata))
