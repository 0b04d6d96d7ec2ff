"""Attacks on the scratch schemas of PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.postgresql.describe import PostgresqlScratch
from aurum_harmony.db_smart.errors import DbSmartError
from tests.harness import servers
from tests.harness.drift_postgresql import database, drift, make, paths
from tests.harness.kill_diff_postgresql import models

NewUrl = Callable[[str], URL]


@pytest.fixture
def url(new_url: NewUrl) -> URL:
    url = new_url("postgresql")
    make(url, before="CREATE SCHEMA shop; CREATE SEQUENCE numbers")
    return url


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT setval('public.numbers', 1, false)",
        "SELECT nextval('public.numbers')",
        "SELECT pg_catalog.setval('\"public\".numbers'::regclass, 1)",
        "SELECT setval(CAST('public.numbers' AS regclass), coalesce(max(id), 1)) FROM public.users",
        "DO $$ BEGIN PERFORM setval('public.numbers', 1); END $$",
        "WITH a AS (SELECT setval('public.numbers', 1)) SELECT * FROM a",
        "INSERT INTO users (id) SELECT nextval('public.numbers')",
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$ SELECT setval('public.numbers', 1) $$; SELECT f()",
        "DO $$ DECLARE s text := 'numbers'; BEGIN EXECUTE format('SELECT setval(%L, 1)', 'public.' || s); END $$",
        "CREATE TABLE more AS SELECT setval('public.numbers', 1)",
    ],
)
def test_the_numbers_of_sequences(url: URL, sql: str) -> None:
    """No rollback takes them back."""
    servers.query(url, "SELECT setval('numbers', 500)")
    with database(url) as one:
        drift(one, sql)
    assert servers.query(url, "SELECT last_value, is_called FROM numbers") == [(500, True)]


def test_what_reaches_others(url: URL) -> None:
    """No session of others is ended, and no lock is left with a connection that a pooler keeps."""
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with database(url) as one, one.app_engine.connect() as other:
        other.exec_driver_sql("SELECT 1")
        ends += " AND pid <> pg_backend_pid()"
        found = drift(one, ends, "SELECT pg_advisory_lock(7)", "ALTER TABLE users ADD COLUMN a integer")
        assert (found.uncounted, paths(found)) == ({}, ["database column users.a"])
        found = drift(one, f"DO $$ BEGIN PERFORM ({ends}); END $$")
        assert found.uncounted == {"pending": "it uses pg_terminate_backend, which cannot be tried without doing it"}
        other.exec_driver_sql("SELECT 1")


def test_rows_are_not_needed(url: URL) -> None:
    """A copy has none, so that what changes or refers to some is not tried."""
    with database(url) as one:
        found = drift(one, "INSERT INTO shop.items (user_id) VALUES (7)", "ALTER TABLE users ADD COLUMN a integer")
    assert (found.uncounted, paths(found)) == ({}, ["database column users.a"])


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE PUBLIC.users ADD COLUMN a integer",
        "DO $$ BEGIN ALTER TABLE public.users ADD COLUMN a integer; END $$",
        "DO $$ BEGIN EXECUTE 'ALTER TABLE public.users ADD COLUMN a integer'; END $$",
        "DO 'BEGIN ALTER TABLE public . users ADD COLUMN a integer; END'",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ ALTER TABLE public.users ADD COLUMN a integer $$; "
        "SELECT f()",
    ],
)
def test_what_names_the_schema_in_another_way(url: URL, sql: str) -> None:
    """It is done in the copy, and does not even ask for a lock on the table itself."""
    with database(url) as one:
        found = drift(one, sql)
    assert (found.uncounted, paths(found)) == ({}, ["database column users.a"])


def test_a_path_that_is_set_within(url: URL) -> None:
    """What a statement has left of the search path does not lead the next one to the tables themselves."""
    with database(url) as one:
        found = drift(
            one,
            "DO $$ BEGIN PERFORM set_config('search_path', 'public', true); END $$",
            "ALTER TABLE users ADD COLUMN a integer",
        )
    assert (found.uncounted, paths(found)) == ({}, ["database column users.a"])


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TRIGGER t BEFORE INSERT ON %(fullname)s EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE shop.items ADD CHECK (id > 0)",
        "INSERT INTO PUBLIC.users (id) VALUES (1)",
        "SELECT setval('public.numbers', 1)",
    ],
)
def test_what_listeners_name(url: URL, sql: str) -> None:
    """What they do to a table by its full name is done to the one that was made, and the other is not even locked."""
    servers.query(url, "SELECT setval('numbers', 500)")
    metadata = models()
    sa.event.listen(metadata.tables["shop.items"], "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    sa.Sequence("numbers", metadata=metadata)
    with database(url) as one, one.app_engine.begin() as other:
        other.exec_driver_sql("LOCK TABLE shop.items, users IN ROW EXCLUSIVE MODE")
        assert [path for path in paths(drift(one, metadata=metadata)) if not path.startswith("models check")] == []
    assert servers.query(url, "SELECT last_value FROM numbers") == [(500,)]
    assert servers.query(url, "SELECT count(*) FROM users") == [(0,)]


def test_what_listeners_change_elsewhere(url: URL) -> None:
    make(url, before="CREATE SCHEMA beyond; CREATE TABLE beyond.things (n integer)")
    metadata = models()
    sql = "ALTER TABLE beyond.things ADD COLUMN more integer"
    sa.event.listen(metadata, "after_create", sa.DDL(sql))  # type: ignore[no-untyped-call]
    with database(url) as one, pytest.raises(DbSmartError, match=r"it changes beyond\.things of the database itself"):
        drift(one, metadata=metadata)
    assert servers.query(url, "SELECT * FROM beyond.things") == []


@pytest.mark.parametrize(
    ("sql", "query"),
    [
        ("CREATE ROLE {0}_nobody", "SELECT 1 FROM pg_roles WHERE rolname = '{0}_nobody'"),
        ("CREATE SCHEMA more", "SELECT 1 FROM pg_namespace WHERE nspname = 'more'"),
        ("DROP EXTENSION hstore", "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'hstore')"),
        ("COMMENT ON DATABASE {0} IS 'x'", "SELECT 1 FROM pg_shdescription WHERE description = 'x'"),
        ("INSERT INTO users (id) SELECT nextval('beyond.numbers')", "SELECT 1 FROM beyond.numbers WHERE is_called"),
    ],
)
def test_what_a_trace_would_leave(url: URL, sql: str, query: str) -> None:
    """A trace commits, each statement by itself."""
    make(url, before="CREATE EXTENSION hstore; CREATE SCHEMA beyond; CREATE SEQUENCE beyond.numbers")
    sql, query = sql.format(url.database), query.format(url.database)
    with database(url) as one, one.connect() as source, PostgresqlScratch.kept(one, source, [None]) as scratch:
        scratch.enter()
        with pytest.raises(DbSmartError):
            scratch.run(sql)
        scratch.connection.commit()
    assert servers.query(url, query) == []
