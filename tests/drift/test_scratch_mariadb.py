"""Scratch databases of MariaDB: nothing of them remains, nothing else is touched, and what is without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.mariadb.describe import MariadbScratch
from aurum_harmony.db_smart.drift.comparison import Comparison, Drift
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database
from tests.harness import servers
from tests.harness.drift import execute, models, scratch_databases, told
from tests.harness.processes import run_harness
from tests.harness.project import Project
from tests.harness.servers import query

NewUrl = Callable[[str], URL]


@pytest.fixture
def url(new_url: NewUrl) -> URL:
    url = new_url("mariadb")
    execute(url, "CREATE TABLE users (id INTEGER AUTO_INCREMENT PRIMARY KEY, name VARCHAR(20))")
    return url


def users() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))
    return metadata


def compared(url: URL, *script: str) -> Drift:
    pending = [Preview("more", "new", script=[*script])] if script else []
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    return Comparison().of(database, users(), pending)


@pytest.mark.slow
def test_killed_at_every_statement(new_url: NewUrl) -> None:
    """What a process that was killed has left, the next comparison removes."""
    url = new_url("mariadb")
    report = run_harness("kill_diff_mariadb", "mariadb", [url])
    assert report["kills"] > 80
    assert report["left"] > 20
    assert report["lost"] == 0


def test_two_at_once(url: URL) -> None:
    """One does not remove what another one, which still runs, has made."""
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with MariadbScratch.open(database, [None]) as scratch:
        scratch.make(users())
        (name,) = scratch_databases(url)
        assert not compared(url)
        assert scratch_databases(url) == [name]
        assert [table.name for table in scratch.describe(lambda schema, name: True)] == ["users"]
    assert scratch_databases(url) == []


def test_names_of_others(url: URL) -> None:
    """Only what has a name of ours, of this server, is ever removed."""
    whose = str(url.database)[:18]
    names = [
        f"db_smart_scratch_{whose}",
        f"db_smart_scratch_{whose}_000000_20260101t0000_abcdef",  # another server's, as on a replica
        f"db_smart_scratch_{whose}_mine",
    ]
    execute(url, *(f"CREATE DATABASE `{name}`" for name in names))
    try:
        assert not compared(url)
        assert sorted(scratch_databases(url)) == sorted(names)
    finally:
        execute(url, *(f"DROP DATABASE `{name}`" for name in names))


@pytest.mark.parametrize("option", [{"isolation_level": "AUTOCOMMIT"}, {"isolation_level": "SERIALIZABLE"}, {}])
def test_options_of_the_engine(url: URL, option: dict[str, str]) -> None:
    engine = sa.create_engine(url, **option)
    sa.event.listen(engine, "connect", lambda raw, _: raw.cursor().execute("SET sql_mode = 'ANSI,NO_ZERO_DATE'"))
    database = Database("default", None, engine)
    pending = [Preview("more", "new", script=['ALTER TABLE "users" ADD COLUMN "a b" INTEGER'])]
    execute(url, "CREATE TABLE `odd \"name\"` (a VARCHAR(20) DEFAULT 'it''s \"x\"', CHECK (a <> 'x\"y'))")
    drift = Comparison().of(database, users(), pending)
    assert told(drift.differences) == [
        ("database", "column", "users.a b", []),
        ("database", "table", 'odd "name"', []),
    ]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT DATABASE()").scalar() == url.database
    engine.dispose()


def test_what_is_pending_stays_within(url: URL, mariadb: URL) -> None:
    """It is played in scratch databases, whatever names it uses."""
    own = url.database
    with servers.new_database(mariadb) as other:
        execute(other, "CREATE TABLE t (id INT PRIMARY KEY)")
        drift = compared(
            url,
            f"ALTER TABLE {own}.users ADD COLUMN a INTEGER DEFAULT 1.5",
            f"ALTER TABLE `{own}` . `users` ADD COLUMN b VARCHAR(40) DEFAULT '{own}.x', LOCK=NONE",
            f"ALTER TABLE /*! {own}. */ users ADD COLUMN c INTEGER COMMENT '50%'",
            f"RENAME TABLE users TO {own}.people",
            "UPDATE people SET a = 1",
            "SET SESSION lock_wait_timeout = 2",
            "SET GLOBAL lock_wait_timeout = 4321",
            "CREATE USER db_smart_nobody",
            f"CREATE FUNCTION {own}.f() RETURNS INT RETURN 1",
        )
        assert (drift.counted, drift.uncounted) == (["more"], {})
        assert sorted(told(drift.differences)) == [
            ("database", "table", "people", []),
            ("models", "table", "users", []),
        ]
        assert told(compared(url).differences) == []
        assert query(url, "SELECT @@GLOBAL.lock_wait_timeout = 4321") == [(0,)]
        assert query(url, "SELECT user FROM mysql.user WHERE user = 'db_smart_nobody'") == []
        for statement, why in (
            (f"ALTER TABLE {other.database}.t ADD COLUMN n INTEGER", "it names the database"),
            (f"CREATE TABLE x (id INT, FOREIGN KEY (id) REFERENCES {other.database}.t (id))", "it names the database"),
            (f"DROP DATABASE {other.database}", "is not played in a scratch database"),
            (f"DROP TABLE /*!{other.database}.*/t", "it names the database"),
            (f"ALTER DATABASE {own} CHARACTER SET latin1", "is not played in a scratch database"),
            ("CALL changes_tables()", "is not played in a scratch database"),
            (f"USE {other.database}", "is not played in a scratch database"),
            ("ALTER TABLE users ADD COLUMN name INTEGER", "Duplicate column name"),
        ):
            drift = compared(url, statement)
            assert drift.counted == []
            assert why in drift.uncounted["more"]
            assert told(drift.differences) == []
        assert query(other, "SELECT count(*) FROM t") == [(0,)]
    assert scratch_databases(url) == []


def test_a_copy_of_all(url: URL, mariadb: URL) -> None:
    """Views, sequences, keys to other databases, cycles: what is pending finds them, and they are no difference."""
    with servers.new_database(mariadb) as other:
        execute(other, "CREATE TABLE t (id INT PRIMARY KEY)")
        execute(
            url,
            "CREATE SEQUENCE numbers",
            "SET foreign_key_checks = 0",
            "CREATE TABLE a (id INT PRIMARY KEY DEFAULT nextval(numbers), b_id INT REFERENCES b (id))",
            f"CREATE TABLE b (id INT PRIMARY KEY, t_id INT REFERENCES {other.database}.t (id), a_id INT)",
            "ALTER TABLE b ADD FOREIGN KEY (a_id) REFERENCES a (id)",
            "CREATE VIEW z AS SELECT id FROM users",
            "CREATE VIEW c AS SELECT id FROM z",
        )
        before = compared(url).differences
        drift = compared(url, "DROP VIEW c", "CREATE OR REPLACE VIEW z AS SELECT id, name FROM users")
        assert drift.counted == ["more"]
        assert drift.differences == before
        execute(
            url, "SET foreign_key_checks = 0", "DROP TABLE a, b"
        )  # whose key leads to a database that is dropped first


def test_rights(make_project: Callable[..., Project], url: URL) -> None:
    """The right that the message names is enough; without all of it nothing remains."""
    with servers.role(url, "GRANT ALL ON {database}.* TO {user}") as limited:
        project = make_project(limited)
        project.models = models
        project.write("@migration\ndef first(op: Operations):\n    pass\n")
        execute(url, "DROP TABLE users")
        project.boot()
        for rights, weaker in (
            ("USAGE", True),
            ("CREATE", True),  # and not drop
            ("CREATE, DROP", True),  # and no index or key in it
            ("ALL", False),
        ):
            execute(url, f"GRANT {rights} ON `db\\_smart\\_scratch\\_%`.* TO {limited.username}@'%'")
            output = project.run("diff").output
            assert ("This is Alembic's comparison" in output) is weaker, rights
            assert "the models and the database are alike" in output
            assert scratch_databases(url) == []
