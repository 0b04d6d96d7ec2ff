"""The scratch schemas of PostgreSQL: nothing remains, nobody is in the way, and every way to connect will do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, CITEXT, ENUM
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.postgresql.describe import PostgresqlScratch, describe
from aurum_harmony.db_smart.drift.comparison import Comparison
from aurum_harmony.db_smart.errors import DbSmartError
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.schema.scratch import NoScratch
from tests.harness import servers
from tests.harness.drift_postgresql import database, drift, make, paths, schemas
from tests.harness.kill_diff_postgresql import models
from tests.harness.processes import run_harness

NewUrl = Callable[[str], URL]


@pytest.fixture
def url(new_url: NewUrl) -> URL:
    """A database that is as the models are."""
    url = new_url("postgresql")
    make(url)
    return url


@pytest.mark.slow
def test_nothing_remains_after_a_kill_at_any_statement(new_url: NewUrl) -> None:
    report = run_harness("kill_diff_postgresql", "PostgreSQL", [new_url("postgresql")])
    assert report["kills"] > 50
    assert report["remains"] == 0


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+pg8000"])
def test_drivers(url: URL, driver: str) -> None:
    other, options = servers.by_driver(url, driver)
    with database(other, connect_args=options) as one:
        assert paths(drift(one)) == []
        played = drift(one, "ALTER TABLE users ADD COLUMN pct varchar(9) DEFAULT '100%'", "DROP TABLE shop.items")
        assert paths(played) == ["database column users.pct", "models table shop.items"]
        assert paths(drift(one)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "SERIALIZABLE"},
        {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
        {"execution_options": {"isolation_level": "REPEATABLE READ"}},
        {"connect_args": {"options": "-c default_transaction_isolation=serializable -c lock_timeout=1"}},
        {"connect_args": {"prepare_threshold": 0}},
        {"use_insertmanyvalues": False, "pool_size": 1, "max_overflow": 0},
    ],
)
def test_options_of_an_engine(url: URL, options: dict[str, Any]) -> None:
    before = schemas(url)
    with database(url, **options) as one:
        assert paths(drift(one)) == []
        assert paths(drift(one, "ALTER TABLE shop.items DROP COLUMN user_id")) == [
            "models column shop.items.user_id",
            "models foreign key shop.items.items_user_id_fkey",
        ]
    assert schemas(url) == before


def test_pgbouncer(new_url: NewUrl) -> None:
    url = new_url("pgbouncer")
    make(url)
    with database(url) as one:
        for _ in range(3):
            assert paths(drift(one)) == []
            assert paths(drift(one, "DROP TABLE shop.items")) == ["models table shop.items"]
    assert not [name for name in schemas(url) if "scratch" in name]


def test_search_path(new_url: NewUrl) -> None:
    """The usual place is where the search path leads; what is there behind it is found too."""
    url = new_url("postgresql")
    make(url, sa.MetaData(), before="CREATE SCHEMA app; CREATE SCHEMA shop; CREATE EXTENSION citext SCHEMA public")
    metadata = models()
    sa.Table("words", metadata, sa.Column("word", CITEXT, server_default="x"))
    options = {"connect_args": {"options": "-c search_path=app,public"}}
    with database(url, **options) as one:
        with one.app_engine.begin() as connection:
            metadata.create_all(connection)
        assert paths(drift(one, metadata=metadata)) == []
        # One that all tenants share, behind that of this one.
        make(url, before="ALTER TABLE app.words SET SCHEMA public; CREATE TABLE public.more (n integer)")
        assert paths(drift(one, metadata=metadata)) == ["database table more"]


def test_schema_translate_map(new_url: NewUrl) -> None:
    url = new_url("postgresql")
    make(url, sa.MetaData(), before="CREATE SCHEMA tenant; CREATE SCHEMA stock; CREATE TABLE other (n integer)")
    options = {"execution_options": {"schema_translate_map": {None: "tenant", "shop": "stock"}}}
    with database(url, **options) as one:
        with one.app_engine.begin() as connection:
            models().create_all(connection)
        assert paths(drift(one)) == []
        with one.app_engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE tenant.users ADD more integer")
        assert paths(drift(one)) == ["database column users.more"]


def test_two_schemas_in_one_place(new_url: NewUrl) -> None:
    url, metadata = new_url("postgresql"), models()
    sa.Table("more", metadata, sa.Column("item_id", sa.ForeignKey("shop.items.id")), schema="more")
    make(url, sa.MetaData(), before="CREATE SCHEMA stock")
    places = {"shop": "stock", "more": "stock"}
    with database(url, execution_options={"schema_translate_map": places}) as one:
        with one.app_engine.begin() as connection:
            metadata.create_all(connection)
        assert paths(drift(one, metadata=metadata)) == []


def test_the_usual_schema_by_its_name(new_url: NewUrl) -> None:
    """Some models name it, others do not: it is one place."""
    url = new_url("postgresql")
    metadata = sa.MetaData()
    sa.Table("a", metadata, sa.Column("id", sa.Integer, primary_key=True), schema="public")
    sa.Table("b", metadata, sa.Column("id", sa.Integer), sa.Column("a_id", sa.ForeignKey("public.a.id")))
    make(url, metadata)
    with database(url) as one:
        assert paths(drift(one, metadata=metadata)) == []
        assert paths(drift(one, "ALTER TABLE public.a ADD COLUMN n integer", metadata=metadata)) == [
            "database column a.n"
        ]


def test_without_the_right(url: URL) -> None:
    with servers.role(url, "GRANT USAGE ON SCHEMA public, shop TO {user}") as poor, database(poor) as one:
        said = "permission denied for database .* Give the role the right CREATE"
        with pytest.raises(NoScratch, match=said), PostgresqlScratch.open(one, [None]):
            pass
        make(url, before=f"GRANT CREATE ON DATABASE {url.database} TO {poor.username}")
        assert paths(drift(one)) == []


def test_what_listeners_make(url: URL) -> None:
    """They may refer to extensions, and make what names no schema; nothing of it stays."""
    metadata = models()
    for sql in ("CREATE EXTENSION IF NOT EXISTS hstore", "CREATE SCHEMA IF NOT EXISTS shop", "CREATE SCHEMA more"):
        sa.event.listen(metadata, "before_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    trigger = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
    for sql in (
        trigger,
        "CREATE TRIGGER t BEFORE INSERT ON users EXECUTE FUNCTION f()",
        "INSERT INTO users VALUES (1)",
    ):
        sa.event.listen(metadata, "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    before = schemas(url)
    with database(url) as one:
        assert paths(drift(one, metadata=metadata)) == []
    assert schemas(url) == before
    assert servers.query(url, "SELECT count(*) FROM users") == [(0,)]
    assert servers.query(url, "SELECT 1 FROM pg_extension WHERE extname = 'hstore'") == []


@pytest.mark.parametrize("schema", [None, "shop"])
@pytest.mark.parametrize("by_listener", [False, True])
def test_types_that_others_create(new_url: NewUrl, schema: str | None, by_listener: bool) -> None:
    """``create_type=False``: the models say what the type is, and leave it to a migration or a listener to make it."""
    url, metadata = new_url("postgresql"), sa.MetaData()
    kind = ENUM("a", "b", name="kind", schema=schema, create_type=False)
    sa.Table("one", metadata, sa.Column("kind", kind), sa.Column("kinds", ARRAY(kind)))
    sa.Table("two", metadata, sa.Column("kind", kind, server_default="a"), schema="shop")
    sql = f"CREATE TYPE {'shop.' * (schema is not None)}kind AS ENUM ('a', 'b')"
    make(url, metadata, before=f"CREATE SCHEMA shop; {sql}")
    if by_listener and schema is None:
        sa.event.listen(metadata, "before_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    with database(url) as one:
        assert paths(drift(one, metadata=metadata)) == []
        make(url, sa.MetaData(), before=f"ALTER TYPE {'shop.' * (schema is not None)}kind ADD VALUE 'c'")
        changed = f"both enumeration {'shop.' * (schema is not None)}kind"
        assert paths(drift(one, metadata=metadata)) == [changed]


def test_more_tables_than_the_server_can_lock(url: URL) -> None:
    """The weaker comparison is used then, and says why."""
    metadata = models()
    sql = "DO $$ BEGIN RAISE EXCEPTION 'out of shared memory' USING ERRCODE = '53200'; END $$"
    sa.event.listen(metadata, "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    with database(url) as one:
        found = drift(one, metadata=metadata)
    assert found.weaker is not None
    assert "out of shared memory" in found.weaker


def test_nothing_commits_it(url: URL) -> None:
    metadata = models()

    @sa.event.listens_for(metadata, "after_create")
    def commit(_: object, connection: sa.Connection, **__: object) -> None:
        connection.commit()

    before = schemas(url)
    with database(url) as one, pytest.raises(DbSmartError, match="cannot be committed"):
        drift(one, metadata=metadata)
    assert schemas(url) == before


def test_pending_statements_of_every_kind(url: URL) -> None:
    before = schemas(url)
    with database(url) as one:
        found = drift(
            one,
            "BEGIN",
            "SET search_path TO shop",
            "ALTER TYPE level ADD VALUE IF NOT EXISTS 'c' AFTER 'a'",
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_new ON public.users (id, level)",
            "DROP INDEX CONCURRENTLY ix_users_level",
            "COMMIT; BEGIN; ALTER TABLE users ADD COLUMN a integer; COMMIT",
            "VACUUM users",
            "INSERT INTO users (id) VALUES (1); UPDATE users SET a = 1 WHERE level = 'c'",
            "-- a remark",
            "CREATE TYPE shop.kind AS ENUM ('a')",
            "ALTER TYPE shop.kind ADD VALUE 'b'",
            "CREATE TABLE shop.kinds (kind shop.kind DEFAULT 'b')",
            "ALTER SEQUENCE shop.items_id_seq INCREMENT BY 2",
            "COMMENT ON TABLE shop.items IS 'about shop.items; and more'",
            "PREPARE TRANSACTION 'x'",
        )
    assert (found.uncounted, found.counted) == ({}, ["pending"])
    assert paths(found) == [
        "both column shop.items.id",
        "both enumeration level",
        "both table shop.items",
        "database column users.a",
        "database enumeration shop.kind",
        "database index users.ix_new",
        "database table shop.kinds",
        "models index users.ix_users_level",
    ]
    assert schemas(url) == before
    assert servers.query(url, "SELECT count(*) FROM users") == [(0,)]


def test_a_pending_statement_that_fails(url: URL) -> None:
    """It is said of its migration, and the others go on."""
    with database(url) as one:
        failing = Preview("failing", "new", script=["ALTER TABLE nowhere ADD COLUMN a integer"])
        other = Preview("other", "new", script=["ALTER TABLE users ADD COLUMN a integer"])
        found = Comparison().of(one, models(), [failing, other])
    assert found.uncounted == {"failing": 'relation "nowhere" does not exist'}
    assert found.counted == ["other"]
    assert paths(found) == ["database column users.a"]


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("ALTER TABLE beyond.things ADD COLUMN a integer", "beyond.things"),
        ("CREATE INDEX ON beyond.things (n)", "beyond.things"),
        ("DO $$ BEGIN EXECUTE format('DROP TABLE %I.items', 'shop'); END $$", "shop.items"),
        ("DROP SCHEMA shop CASCADE", "shop.items"),
    ],
)
def test_what_would_change_the_database_itself(url: URL, sql: str, table: str) -> None:
    """It is taken back at once, and said."""
    make(url, before="CREATE SCHEMA beyond; CREATE TABLE beyond.things AS SELECT 1 AS n")
    locks = "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation WHERE c.oid = '{}'::regclass"
    with database(url) as one:
        found = drift(one, sql)
        with one.connect() as connection, PostgresqlScratch.open(one, [None, "shop"]) as scratch:
            scratch.copy(connection)
            with pytest.raises(DbSmartError):
                scratch.run(sql)
            assert servers.query(url, locks.format(table)) == [(0,)]
    assert (paths(found), found.counted) == ([], [])
    assert found.uncounted["pending"].endswith("of the database itself, and not of the copy on which it is tried")
    assert servers.query(url, "SELECT * FROM beyond.things") == [(1,)]


def test_a_schema_that_cannot_be_copied(url: URL) -> None:
    """What is pending is not counted then, and the rest is compared."""
    make(url, before="CREATE TYPE pair AS (a integer); CREATE TABLE shop.level (n integer)")
    make(url, before="CREATE FUNCTION shop.f(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT n'")
    make(url, before="CREATE EXTENSION citext SCHEMA shop; CREATE TABLE texts (t shop.citext)")
    with database(url) as one:
        found = drift(one, "ALTER TABLE users ADD COLUMN a integer")
    assert "cannot be copied: type" in found.uncounted["pending"]
    assert paths(found) == ["database table shop.level", "database table texts"]


def test_functions_views_and_triggers_are_copied(url: URL) -> None:
    made = (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER t BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION f(); "
        "CREATE VIEW seen AS SELECT id FROM users; CREATE MATERIALIZED VIEW shop.kept AS SELECT * FROM seen"
    )
    make(url, before=made)
    with database(url) as one:
        found = drift(one, "DROP TRIGGER t ON users", "DROP FUNCTION f()", "DROP VIEW seen CASCADE")
        assert (found.uncounted, paths(found)) == ({}, [])


def test_a_migration_is_not_held_up(url: URL) -> None:
    """While models are compared, no lock is held on a table of the database."""
    with database(url) as one, one.connect() as connection, PostgresqlScratch.open(one, [None, "shop"]) as scratch:
        scratch.make(models())
        scratch.describe(lambda *_: True)
        with PostgresqlScratch.open(one, [None, "shop"]) as copy:
            copy.copy(connection)
            copy.run("ALTER TABLE users ADD COLUMN a integer; ALTER TABLE shop.items ADD COLUMN a integer")
            copy.describe(lambda *_: True)
            locks = servers.query(
                url,
                "SELECT relation::regclass::text, mode FROM pg_locks JOIN pg_class AS c ON c.oid = relation "
                "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE nspname IN ('public', 'shop') "
                "AND pid <> pg_backend_pid()",
            )
        assert locks == []


def test_a_migration_that_runs_is_waited_for(url: URL) -> None:
    options = {"connect_args": {"options": "-c lock_timeout=1"}}
    found = []
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    migrating = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with database(url, **options) as one, migrating.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE users ADD COLUMN a integer, ADD CHECK (a > 0)")
        connection.commit()
        connection.exec_driver_sql("ALTER TABLE users DROP COLUMN a")
        thread = threading.Thread(target=lambda: found.append(paths(drift(one))))
        thread.start()
        servers.wait_until(lambda: bool(servers.query(url, waiting)), "nobody waits")
        connection.commit()
        thread.join()
    assert found == [[]]


def test_description_reads_only(url: URL) -> None:
    with database(url) as one, one.connect() as connection:
        seen: list[str] = []
        sa.event.listen(connection, "before_cursor_execute", lambda *event: seen.append(event[2].split()[0]))
        describe(connection, [None, "shop"], lambda *_: True)
        assert {*seen} <= {"SELECT", "SET"}
        assert len(seen) <= 11
