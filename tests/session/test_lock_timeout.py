"""Schema changes on tables in use: they wait for a short time, and the application goes on."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import BootReport
from aurum_harmony.db_smart.errors import ConfigError, MigrationFailed
from aurum_harmony.db_smart.settings import DdlSettings, Settings
from tests.harness.databases import READ, connected, holding
from tests.harness.project import Project
from tests.harness.servers import wait_until
from tests.samples import TABLE

WRITE = "UPDATE items SET n = n + 1 WHERE id = 2"
Start = Callable[..., Future[BootReport]]

#: What lets the application pass; MariaDB rounds it up to a second.
SHORT = 0.5


class Client:
    """A session of the application, which repeats a statement in a thread of its own and notes its longest wait."""

    def __init__(self, url: URL | str, statement: str) -> None:
        self.longest = 0.0
        self._count = 0
        self._begun = time.monotonic()
        self._url, self._statement = url, statement
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Client:
        self._work = self._pool.submit(self._repeat)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._work.result(60)
        self._pool.shutdown()

    def _repeat(self) -> None:
        options = {"timeout": 4} if make_url(self._url).get_backend_name() == "sqlite" else {}
        engine = sa.create_engine(self._url, poolclass=sa.pool.NullPool, connect_args=options)
        with engine.connect() as connection:
            while not self._stop.is_set():
                self._begun = time.monotonic()
                connection.exec_driver_sql(self._statement)
                connection.commit()
                self.longest = max(self.longest, time.monotonic() - self._begun)
                self._count += 1

    def passes(self) -> None:
        """Wait until a statement that begins after this call has ended."""
        before = self._count
        wait_until(lambda: self._count > before + 1 or self._work.done())
        assert not self._work.done(), self._work.exception()


@pytest.fixture
def start_boot(new_url: object) -> Iterator[Start]:
    """Boots a project in another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda project, **config: pool.submit(lambda: project.boot(**config))


class Tries:
    """How often something was tried again, by the log."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def count(self) -> int:
        return self._caplog.text.count("tried again")

    def another(self, boot: Future[BootReport]) -> None:
        """Wait until a boot tries once more."""
        before = self.count
        wait_until(lambda: self.count > before or boot.done())
        assert not boot.done()


@pytest.fixture
def tries(caplog: pytest.LogCaptureFixture) -> Tries:
    caplog.set_level(logging.INFO)
    return Tries(caplog)


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    return new_url(request.param)


@pytest.fixture
def items(project: Project) -> Project:
    """A project with a table in use."""
    project.config["DB_SMART_DDL_LOCK_TIMEOUT"] = SHORT
    project.write(TABLE)
    project.boot()
    return project


@pytest.fixture
def postgresql_items(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> Project:
    project = make_project(new_url("postgresql"), {"DB_SMART_DDL_LOCK_TIMEOUT": SHORT})
    project.write(TABLE)
    project.boot()
    return project


CHANGES = {
    "operation": """
@migration
def extend(op):
    op.execute("INSERT INTO items (id, n) VALUES (3, 0)")
    op.add_columns("items", Column("a", Integer, nullable=False, server_default="1"), Column("b", Integer))
""",
    "op.execute": """
@migration
def extend(op):
    op.execute("INSERT INTO items (id, n) VALUES (3, 0)")
    op.execute("/* why */ -- and more\\n alter table items ADD a INTEGER, ADD b INTEGER")
""",
    "db.session": """
@migration
def extend():
    db.session.execute(text("INSERT INTO items (id, n) VALUES (3, 0)"))
    db.session.execute(text("ALTER TABLE items ADD a INTEGER, ADD b INTEGER"))
    db.session.commit()
""",
    "operation, no transaction": """
@migration(transactional=False)
def extend(op):
    op.execute("INSERT INTO items (id, n) VALUES (3, 0)")
    op.add_columns("items", Column("a", Integer, nullable=False, server_default="1"), Column("b", Integer))
""",
    "op.execute, no transaction": """
@migration(transactional=False)
def extend(op):
    op.execute("INSERT INTO items (id, n) VALUES (3, 0)")
    op.execute("ALTER TABLE items ADD a INTEGER, ADD b INTEGER")
""",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_long_reader_delays_the_migration_and_not_the_application(
    items: Project, tries: Tries, change: str, start_boot: Start
) -> None:
    items.write(TABLE + CHANGES[change])
    clients = [Client(items.url, READ), Client(items.url, WRITE)]
    with ExitStack() as stack, holding(items.url) as holder:
        boot = start_boot(items)
        for client in clients:
            stack.enter_context(client)
        for _ in range(2):
            tries.another(boot)
            for client in clients:
                client.passes()  # it would not, if the change waited for the holder
        assert not boot.done()
        holder.commit()
        assert boot.result(60).applied == ("extend",)
    assert all(client.longest < SHORT + 10 for client in clients)
    assert items.columns("items") == {"id", "n", "a", "b"}
    assert items.query("SELECT id FROM items ORDER BY id") == [(1,), (2,), (3,)]
    assert items.history()[-1] == ("extend", "applied")


def test_a_long_reader_of_sqlite_delays_the_commit_and_not_other_readers(
    sqlite_project: Project, tries: Tries, start_boot: Start
) -> None:
    sqlite_project.config["DB_SMART_DDL_LOCK_TIMEOUT"] = 0.2
    sqlite_project.write(TABLE)
    sqlite_project.boot()
    sqlite_project.write(TABLE + CHANGES["operation"])
    with (
        holding(sqlite_project.url) as holder,
        Client(sqlite_project.url, READ) as reader,  # which gives up sooner than the driver's usual 5 s
    ):
        boot = start_boot(sqlite_project)
        for _ in range(2):
            tries.another(boot)
            reader.passes()
        assert not boot.done()
        holder.commit()
        assert boot.result(60).applied == ("extend",)
    assert sqlite_project.query("SELECT id FROM items ORDER BY id") == [(1,), (2,), (3,)]


def test_a_long_writer_of_sqlite_delays_the_begin(sqlite_project: Project, start_boot: Start) -> None:
    sqlite_project.config.update(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}})
    sqlite_project.write(TABLE)
    sqlite_project.boot()
    sqlite_project.write(TABLE + CHANGES["operation"])
    with (
        holding(sqlite_project.url, "INSERT INTO items (id, n) VALUES (4, 0)") as holder,
        Client(sqlite_project.url, READ) as reader,
    ):
        boot = start_boot(sqlite_project)
        for _ in range(3):
            reader.passes()
        assert not boot.done()
        holder.commit()
        assert boot.result(60).applied == ("extend",)
    assert sqlite_project.query("SELECT id FROM items ORDER BY id") == [(1,), (2,), (3,), (4,)]


def test_tables_of_the_models_wait_for_a_short_time_too(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], tries: Tries, start_boot: Start
) -> None:
    def models(db: SQLAlchemy) -> None:
        sa.Table("items", db.metadata, sa.Column("id", sa.Integer, primary_key=True))
        reference: sa.Column[int] = sa.Column("item_id", sa.ForeignKey("items.id"))
        sa.Table("parts", db.metadata, sa.Column("id", sa.Integer, primary_key=True), reference)

    project = make_project(new_url("postgresql"), {"DB_SMART_DDL_LOCK_TIMEOUT": SHORT})
    project.models = models
    project.query("CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER)")
    project.write("")
    # A foreign key asks for a lock of the table that it refers to, which this one excludes.
    lock = "LOCK TABLE items IN ROW EXCLUSIVE MODE"
    with holding(project.url, lock) as holder, Client(project.url, WRITE) as writer:
        boot = start_boot(project)
        tries.another(boot)
        writer.passes()
        holder.commit()
        boot.result(60)
    assert "parts" in project.tables()


@pytest.mark.parametrize("kind", ["operation", "op.execute, no transaction"])
def test_who_is_in_the_way_is_named_and_nothing_is_lost(
    items: Project, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    items.write(TABLE + CHANGES[kind])
    config = {"DB_SMART_DDL_LOCK_TIMEOUT": 2, "DB_SMART_DDL_RETRIES": 1}
    with holding(items.url) as holder:
        number = holder.exec_driver_sql(
            "SELECT pg_backend_pid()" if items.dialect == "postgresql" else "SELECT connection_id()"
        ).scalar_one()
        result = items.run("migrate", **config)
        assert result.exit_code == 1
        assert "raise DB_SMART_DDL_RETRIES or DB_SMART_DDL_LOCK_TIMEOUT" in result.output
        who = r"\(postgres long_report, idle in transaction, " if items.dialect == "postgresql" else r"\(root "
        named = rf"WARNING .* a schema change waits for session {number} {who}.*its transaction began \d+ s ago\)"
        assert re.search(named, caplog.text)
        assert items.columns("items") == {"id", "n"}
        kept = [] if items.dialect == "postgresql" and kind == "operation" else [(3,)]
        assert items.query("SELECT id FROM items WHERE id > 2") == kept
        assert items.history()[-1] == ("extend", "failed")
        holder.commit()
    if kind != "operation":
        items.query("DELETE FROM items WHERE id > 2")  # what such a migration must cope with
    assert items.run("migrate", **config).exit_code == 0
    assert items.query("SELECT id FROM items ORDER BY id") == [(1,), (2,), (3,)]


def test_a_session_of_its_own_transactions_gives_up_too(items: Project) -> None:
    items.write(
        TABLE
        + """
@migration(transactional=False)
def extend():
    db.session.execute(text("ALTER TABLE items ADD a INTEGER"))
    db.session.commit()
"""
    )
    with holding(items.url), pytest.raises(MigrationFailed, match="raise DB_SMART_DDL_RETRIES"):
        items.boot()
    assert items.boot().applied == ("extend",)


def test_a_change_of_data_waits_for_its_rows_as_long_as_it_takes(
    items: Project, tries: Tries, start_boot: Start
) -> None:
    items.write(
        TABLE
        + """
@migration
def change(op):
    op.create_table("others", Column("id", Integer, primary_key=True))
    op.execute("ALTER TABLE others ADD a INTEGER")
    try:
        op.session.execute(text("SELECT nothing FROM others"))
    except exc.DBAPIError:
        op.session.rollback()  # takes back what was set since the savepoint
    op.execute("UPDATE items SET n = n + 1")
"""
    )
    waiting = {
        "postgresql": "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        f"AND query LIKE 'UPDATE items%' AND clock_timestamp() - query_start > interval '{3 * SHORT} s'",
        "mysql": "SELECT 1 FROM information_schema.processlist WHERE db = database() AND info LIKE 'UPDATE items%' "
        "AND time >= 3",
    }[items.dialect]
    with holding(items.url, "UPDATE items SET n = 10 WHERE id = 1") as holder:
        boot = start_boot(items)
        wait_until(lambda: items.query(waiting) or boot.done())
        assert not boot.done()
        holder.commit()
        assert boot.result(60).applied == ("change",)
    assert tries.count == 0
    assert items.query("SELECT n FROM items ORDER BY id") == [(11,), (1,)]


def test_the_changes_of_a_transaction_share_the_time(postgresql_items: Project, start_boot: Start) -> None:
    project = postgresql_items
    project.write(
        TABLE
        + """
@migration
def extend(op):
    op.execute("ALTER TABLE items ADD a INTEGER")
    op.execute("CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS setting")
    op.execute("INSERT INTO seen SELECT current_setting('lock_timeout')")
"""
    )
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND clock_timestamp() - query_start > interval '1 s'"
    )
    with holding(project.url) as holder:
        boot = start_boot(project, DB_SMART_DDL_LOCK_TIMEOUT=20)
        wait_until(lambda: project.query(waiting))
        holder.commit()
        boot.result(60)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert [timer for timer in timers if not timer.finished.is_set()] == []
    (left,), after = project.query("SELECT setting FROM seen")
    assert 50 <= int(left.removesuffix("ms")) <= 19_000
    assert after == ("0",)


def test_nothing_is_left_behind_in_sessions_of_a_pooler(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("pgbouncer"), {"DB_SMART_DDL_LOCK_TIMEOUT": 7})
    see = "CREATE TABLE seen_{0} AS SELECT current_setting('lock_timeout') AS setting"
    project.write(
        f"""
@migration
def inside(op):
    op.execute("{see.format(1)}")

@migration(transactional=False)
def outside(op):
    op.execute("{see.format(2)}")
    op.execute("INSERT INTO seen_2 SELECT current_setting('lock_timeout')")
    op.connection.exec_driver_sql("{see.format(3)}")
    op.connection.commit()
    try:
        op.execute("ALTER TABLE nothing ADD a INTEGER")
    except exc.DBAPIError:
        op.execute("INSERT INTO seen_2 SELECT current_setting('lock_timeout')")
    op.execute("CREATE INDEX CONCURRENTLY ix_seen ON seen_2 (setting)")
    op.execute("VACUUM seen_2")
"""
    )
    assert project.boot().applied == ("inside", "outside")
    seen = [project.query(f"SELECT setting FROM seen_{number}") for number in (1, 2, 3)]
    assert seen == [[("7s",)], [("7s",), ("0",), ("0",)], [("7s",)]]
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with ExitStack() as stack:
        sessions = [stack.enter_context(engine.connect()) for _ in range(4)]  # as many as the pooler has
        pids = {session.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() for session in sessions}
        assert len(pids) == 4
        assert [session.exec_driver_sql("SHOW lock_timeout").scalar_one() for session in sessions] == ["0"] * 4


INDEX = """
@migration
def add_index(op):
    op.create_index("ix_items_n", "items", ["n"])
"""
SNAPSHOT = f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; {READ}"
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_items_n')"


def test_an_index_is_built_behind_a_long_reader(
    postgresql_items: Project, caplog: pytest.LogCaptureFixture, tries: Tries, start_boot: Start
) -> None:
    project = postgresql_items
    project.write(TABLE + INDEX)
    with (
        holding(project.url, SNAPSHOT) as holder,
        Client(project.url, READ) as reader,
        Client(project.url, WRITE) as writer,
    ):
        boot = start_boot(project)
        pid = holder.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        wait_until(lambda: project.query(BUILDING))
        reader.passes()
        writer.passes()
        wait_until(lambda: f"a schema change waits for session {pid} (" in caplog.text)
        wait_until(
            lambda: project.query(
                "SELECT 1 FROM pg_stat_activity JOIN pg_stat_progress_create_index USING (pid) "
                f"WHERE clock_timestamp() - query_start > interval '{3 * SHORT} s'"
            )
        )
        reader.passes()
        writer.passes()
        assert not boot.done()
        holder.commit()
        assert boot.result(60).applied == ("add_index",)
    assert tries.count == 0
    assert project.query(VALID) == [(True,)]


def test_an_index_whose_build_was_ended_is_built_anew(postgresql_items: Project, start_boot: Start) -> None:
    project = postgresql_items
    project.write(TABLE + INDEX)
    with holding(project.url, SNAPSHOT) as holder:
        boot = start_boot(project)
        ((pid,),) = wait_until(lambda: project.query(BUILDING))
        project.query("SELECT pg_terminate_backend(:pid)", pid=pid)
        with pytest.raises(MigrationFailed, match="terminating connection"):
            boot.result(60)
        assert project.query(VALID) == [(False,)]
        holder.commit()
    assert project.boot().applied == ("add_index",)
    assert project.query(VALID) == [(True,)]
    assert project.query("SELECT count(*) FROM pg_index WHERE indrelid = 'items'::regclass") == [(2,)]


@pytest.mark.parametrize("value", ["soon", "", None, -1, 0, 0.04, "nan", "inf"])
def test_a_time_out_must_be_a_number_of_seconds(sqlite_project: Project, value: object) -> None:
    app, _ = sqlite_project.app(DB_SMART_DDL_LOCK_TIMEOUT=value)
    with pytest.raises(ConfigError, match=r"DB_SMART_DDL_LOCK_TIMEOUT is .*; it must be a number of seconds, at least"):
        Settings(app).ddl  # noqa: B018


@pytest.mark.parametrize("value", ["many", "", None, -1, 1.5, True])
def test_retries_must_be_a_whole_number(sqlite_project: Project, value: object) -> None:
    app, _ = sqlite_project.app(DB_SMART_DDL_RETRIES=value)
    with pytest.raises(ConfigError, match=r"DB_SMART_DDL_RETRIES is .*; it must be a whole number, at least 0"):
        Settings(app).ddl  # noqa: B018


def test_settings_from_the_environment(sqlite_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = sqlite_project.app()
    assert vars(Settings(app).ddl) == vars(DdlSettings(2, 30))
    monkeypatch.setenv("FLASK_DB_SMART_DDL_LOCK_TIMEOUT", "0.3")
    monkeypatch.setenv("FLASK_DB_SMART_DDL_RETRIES", "0")
    app, _ = sqlite_project.app()
    assert vars(Settings(app).ddl) == vars(DdlSettings(0.3, 0))


def test_a_column_of_the_module_keeps_its_default_for_the_next_try(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], start_boot: Start, tries: Tries
) -> None:
    """A default for each row is given after the column was added; a try that meets a lock does not come so far."""
    project = make_project(new_url("postgresql"))
    project.write(TABLE)
    project.boot()
    project.write(
        TABLE
        + """
TOKEN = Column("token", Uuid, server_default=text("gen_random_uuid()"), nullable=False)

@migration
def add_token(op):
    op.add_column("items", TOKEN)
"""
    )
    with holding(project.url):
        boot = start_boot(project, DB_SMART_DDL_LOCK_TIMEOUT=0.1, DB_SMART_DDL_RETRIES=100)
        wait_until(lambda: tries.count > 0 or boot.done())
    assert boot.result(60).decision == "migrated"
    assert len(set(project.query("SELECT token FROM items WHERE token IS NOT NULL"))) == 2
    project.query("INSERT INTO items (id, n) VALUES (3, 0)")
    assert project.query("SELECT count(token) FROM items") == [(3,)]


#: What the newer operations change; what is there then, and where it is seen.
KEYLESS = {
    "postgresql": ("CREATE TABLE notes (id integer, n integer, name varchar(9))", "CREATE INDEX ix_notes ON notes (n)"),
    "mysql": (
        "CREATE TABLE notes (id integer, n integer, name varchar(9), mood enum('a', 'b'))",
        "CREATE INDEX ix_notes ON notes (n)",
    ),
}
#: Another table refers to each key.
FAMILY = (
    "INSERT INTO notes (id, n, name) VALUES (1, 1, 'one'), (2, 2, 'two')",
    "CREATE TABLE parents (id integer PRIMARY KEY)",
    "CREATE TABLE children (id integer PRIMARY KEY, p integer)",
    "ALTER TABLE children ADD CONSTRAINT fk_p FOREIGN KEY (p) REFERENCES parents (id)",
    "INSERT INTO parents VALUES (1)",
    "INSERT INTO children VALUES (1, 1)",
    "CREATE VIEW seen AS SELECT id FROM notes",
)
STAMPED = "CREATE FUNCTION stamped() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.n := 7; RETURN new; END $$"
TRIGGER = {
    "postgresql": "CREATE TRIGGER stamp BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION stamped()",
    "mysql": "CREATE TRIGGER stamp BEFORE INSERT ON notes FOR EACH ROW SET new.n = 7",
}
NEWER = {
    "alter_enum": ("op.alter_enum('mood', add=['c'], columns={'notes': 'mood'})", "notes"),
    "create_primary_key": ("op.create_primary_key('pk_notes', 'notes', ['id'])", "notes"),
    "widen_key": ("op.widen_key('parents', online=False)", "parents"),
    "widen_key of the other": ("op.widen_key('parents', online=False)", "children"),
    "replace_index": ("op.replace_index('ix_notes', 'notes', ['name', 'n'])", "notes"),
    "comment": ("op.alter_column('notes', 'n', comment='one')", "notes"),
    "view": ("op.view('seen', 'SELECT id, n FROM notes')", "seen"),
    "trigger": ("op.trigger('stamp', TRIGGER, table='notes')", "notes"),
}

#: On PostgreSQL an enumeration gets a value without a lock on the table.
ON_SERVERS = [
    (url, what) for what in NEWER for url in ("postgresql", "mariadb") if (url, what) != ("postgresql", "alter_enum")
]


def newer(project: Project, what: str) -> tuple[str, str]:
    """A project whose next migration is a newer operation; a statement that reads, and one that holds the table."""
    line, table = NEWER[what]
    kind = project.dialect
    for statement in (*KEYLESS[kind], *FAMILY, *([STAMPED] if kind == "postgresql" else [])):
        project.query(statement.replace(":", "\\:"))
    more = f"@migration\ndef newer(op):\n    {line.replace('TRIGGER', repr(TRIGGER[kind]))}\n"
    project.config.update(DB_SMART_DDL_LOCK_TIMEOUT=SHORT, DB_SMART_SNAPSHOTS=0)
    project.write(TABLE)
    project.boot()
    project.write(TABLE + more)
    read = f"SELECT count(*) FROM {table}"
    if kind == "postgresql" and what in ("comment", "trigger"):  # which readers do not delay
        return read, f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE"
    return read, read


def patient(project: Project, what: str) -> bool:
    """Whether it waits for as long as it takes, because nobody waits for it."""
    return project.dialect == "postgresql" and what == "replace_index"


def shape(project: Project) -> Any:
    """All that the newer operations can change, and what they may leave half."""
    with connected(project.url) as connection:
        inspector = sa.inspect(connection)
        found: dict[str, Any] = {}
        for table in ("notes", "parents", "children", "seen"):
            columns = [
                (one["name"], one["type"].compile(connection.dialect), one.get("comment"))
                for one in inspector.get_columns(table)
            ]
            found[table] = [columns, inspector.get_pk_constraint(table)["constrained_columns"]]
            found[table] += [sorted((one["name"], one["column_names"]) for one in inspector.get_indexes(table))]
            found[table] += [[one["name"] for one in inspector.get_foreign_keys(table)]]
            checks = [] if table == "seen" else inspector.get_check_constraints(table)
            found[table] += [[one["name"] for one in checks]]
        found["tables"] = sorted(inspector.get_table_names())
        triggers = {
            "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
            "mysql": "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()",
        }[project.dialect]
        found["triggers"] = connection.exec_driver_sql(triggers).scalars().all()
        if project.dialect == "postgresql":
            invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
            found["invalid"] = connection.exec_driver_sql(invalid).scalars().all()
        return found


@pytest.mark.parametrize(("url", "what"), ON_SERVERS, indirect=["url"])
def test_newer_operations_give_way_and_leave_nothing_half(project: Project, what: str) -> None:
    read, held = newer(project, what)
    before = shape(project)
    if not patient(project, what):
        with holding(project.url, held), pytest.raises(MigrationFailed, match="raise DB_SMART_DDL_RETRIES"):
            project.boot(DB_SMART_DDL_RETRIES=1)
        assert shape(project) == before
    with holding(project.url, held) as holder, Client(project.url, read) as reader, ThreadPoolExecutor(1) as pool:
        boot = pool.submit(project.boot)
        wait_until(lambda: waits(project) or boot.done())
        for _ in range(3):
            reader.passes()
        holder.commit()
        assert boot.result(60).applied == ("newer",)
    assert reader.longest < SHORT + 5
    after = shape(project)
    assert after != before
    assert project.boot().applied == ()


@pytest.mark.slow
@pytest.mark.parametrize(("url", "what"), ON_SERVERS, indirect=["url"])
def test_newer_operations_are_finished_after_a_kill_while_they_wait(
    project: Project, start_child: Callable[..., Any], what: str
) -> None:
    _, held = newer(project, what)
    before = shape(project)
    with holding(project.url, held):
        child = start_child()
        wait_until(lambda: waits(project) or child.poll() is not None)
        assert child.poll() is None, child.stderr.read()
        child.kill()
        child.wait(60)
        if not patient(project, what):
            wait_until(lambda: not waits(project))
    assert project.boot().applied == ("newer",)
    once = shape(project)
    assert once != before
    assert (once.get("invalid"), once["tables"]) == (before.get("invalid"), before["tables"])


def waits(project: Project) -> list[Any]:
    """The sessions that wait for a lock."""
    return project.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        if project.dialect == "postgresql"
        else "SELECT id FROM information_schema.processlist WHERE db = database() AND state LIKE 'Waiting for table%'"
    )
