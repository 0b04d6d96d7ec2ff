"""One story of an application, told again in every surroundings that a user may choose for it.

It boots on a new database, boots again with nothing to do, meets a migration that fails, gets it mended, is killed in
the midst of the next one, and finds an older state of its database at a first request. Each effect is there once.
"""

from __future__ import annotations

import signal
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL
from sqlalchemy.orm import Mapped, mapped_column

from aurum_harmony.db_smart import MigrationFailed
from tests.harness.crash import ended, forked
from tests.harness.project import Project
from tests.harness.servers import by_driver

HEADER = """\
import os, signal
from flask import current_app
from sqlalchemy import *
from aurum_harmony.db_smart import Operations, migration

db = current_app.extensions["sqlalchemy"]


def effect(name):
    return "INSERT INTO SCHEMAeffects (name, n) VALUES ('%s', 0)" % name
"""
FIRST = """

@migration
def make_effects(op: Operations) -> None:
    op.create_table(
        "effects", Column("id", Integer, primary_key=True), Column("name", String(30)), Column("n", Integer),
        mysql_engine="InnoDB",
    )
"""
SECOND = """

@migration
def second(op: Operations) -> None:
    op.execute(effect("second 1"))
    op.add_columns(
        "effects",
        Column("note", String(20), nullable=False, server_default="it's 5% \\\\"),
        Column("code", String(20)),
    )
    op.execute(effect("second 2"))
    db.session.execute(text(effect("second 3")))
    db.session.commit()
    raise ValueError("stop")
"""
THIRD = """

@migration
def third(op: Operations) -> None:
    op.execute(effect("third 1"))
    op.alter_column("effects", "name", nullable=False)
    op.backfill("effects", {"n": column("n") + 1})
    op.create_index("ix_effects_code", "effects", ["code"])
    op.execute(effect("third 2"))
    if not os.path.exists(os.environ["KILLED"]):
        open(os.environ["KILLED"], "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    op.execute(effect("third 3"))


@migration(once=True)
def last(op: Operations) -> None:
    op.execute(effect("last"))
"""
SECONDS = Counter({"second 1": 1, "second 2": 1, "second 3": 1})
THIRDS = Counter({"third 1": 1, "third 2": 1, "third 3": 1, "last": 1})
#: In most surroundings; a dead process must not be waited for long.
CONFIG = {"DB_SMART_LEASE_SECONDS": 0.5, "DB_SMART_DDL_RETRIES": 3}


def models(db: SQLAlchemy) -> None:
    class Thing(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(30), index=True)


class Story:
    """The story of one application.

    :param observer: a URL by which the test sees the tables of the application; that of the application by itself.
    :param schema: what SQL of the migrations has before the name of a table.
    """

    def __init__(self, project: Project, observer: URL | None = None, schema: str = "") -> None:
        self.header = HEADER.replace("SCHEMA", schema)
        self.project = project
        self.observer = sa.create_engine(observer or project.url, poolclass=sa.pool.NullPool)
        project.models = project.models or models
        project.config = {**CONFIG, **project.config}
        #: Called between two parts of the story.
        self.meanwhile: Callable[[], None] = lambda: None
        #: What the first boot applies.
        self.first: tuple[str, ...] = ("make_effects",)

    @property
    def transactional(self) -> bool:
        return self.project.dialect in ("sqlite", "postgresql")

    def ask(self, sql: str) -> list[Any]:
        with self.observer.begin() as connection:
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    def effects(self) -> Counter[str]:
        return Counter(name for (name,) in self.ask("SELECT name FROM effects"))

    def columns(self) -> set[str]:
        with self.observer.connect() as connection:
            return {column["name"] for column in sa.inspect(connection).get_columns("effects")}

    def write(self, *parts: str) -> None:
        self.meanwhile()
        self.project.write("".join(parts), header=self.header)

    def boot(self) -> tuple[str, ...]:
        report = self.project.boot()
        assert report.decision == "migrated"
        return report.applied

    def stays(self) -> None:
        """A boot with nothing to do, and its first request."""
        app, smart = self.project.app()
        try:
            assert smart.boot(app).decision == "skipped"
            assert app.test_client().get("/").status_code == 200
        finally:
            self.project.dispose(app)

    def tell(self, caplog: pytest.LogCaptureFixture) -> None:
        mended = SECOND.replace('raise ValueError("stop")', "pass")

        self.write(FIRST)
        assert self.boot() == self.first
        assert self.ask("SELECT * FROM things") == []
        self.stays()

        self.write(FIRST, SECOND)
        with pytest.raises(MigrationFailed, match="ValueError: stop") as caught:
            self.project.boot()
        assert ("Nothing of it was kept" in caught.value.message) == self.transactional
        assert self.effects() == (Counter() if self.transactional else Counter({"second 1": 1}))
        assert ("note" in self.columns()) == (not self.transactional)

        self.write(FIRST, mended)
        assert self.boot() == ("second",)
        assert self.effects() == SECONDS
        assert set(self.ask("SELECT note FROM effects")) == {("it's 5% \\",)}
        self.stays()
        (older,) = self.ask("SELECT applied, source FROM db_smart_state")

        self.write(FIRST, mended, THIRD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            assert ended(forked(self.project.boot)) == -signal.SIGKILL
        assert self.boot() == ("third", "last")
        self.holds_all()
        self.stays()
        assert self.ask("SELECT * FROM db_smart_progress") == []
        assert "boot trusted the flag" not in caplog.text
        assert "is trusted" not in caplog.text

        app, smart = self.project.app()
        try:
            assert smart.boot(app).decision == "skipped"
            self.put_back(*older)
            assert app.test_client().get("/").status_code == 200
        finally:
            self.project.dispose(app)
        assert "boot trusted the flag" in caplog.text
        self.holds_all()
        self.stays()
        self.meanwhile()
        assert self.project.run("status", "--check").exit_code == 0

    def holds_all(self) -> None:
        assert self.effects() == SECONDS + THIRDS
        counts = dict(self.ask("SELECT name, n FROM effects"))
        assert counts == {**dict.fromkeys((*SECONDS, "third 1"), 1), "third 2": 0, "third 3": 0, "last": 0}

    def put_back(self, applied: str, source: str) -> None:
        """The state before the third migration, as a backup that is restored brings it back."""
        self.ask(f"UPDATE db_smart_state SET applied = '{applied}', source = '{source}'")
        self.ask("DELETE FROM db_smart_history WHERE name IN ('third', 'last')")
        self.ask("DELETE FROM effects WHERE name IN ('third 1', 'third 2', 'third 3', 'last')")
        self.ask("UPDATE effects SET n = 0")
        self.ask("DROP INDEX ix_effects_code" + ("" if self.transactional else " ON effects"))


@pytest.fixture(autouse=True)
def _killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))


# Servers


def sql_on_connect(*statements: str) -> Callable[[Flask], None]:
    """A listener that sends statements on each new connection, as many applications have one."""

    def listen(driver: Any, _: Any) -> None:
        cursor = driver.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()

    return on_connect(listen)


def on_connect(listener: Callable[[Any, Any], None]) -> Callable[[Flask], None]:
    def tune(app: Flask) -> None:
        with app.app_context():
            for engine in app.extensions["sqlalchemy"].engines.values():
                sa.event.listen(engine, "connect", listener)

    return tune


def engine_options(**options: Any) -> dict[str, Any]:
    return {"SQLALCHEMY_ENGINE_OPTIONS": options}


ONE_CONNECTION = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 2, "pool_pre_ping": True}
NO_POOL = {"poolclass": sa.pool.NullPool}
STATIC = {"poolclass": sa.pool.StaticPool}

#: Driver and engine options.
POSTGRESQL_ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "AUTOCOMMIT": ("psycopg", {**ONE_CONNECTION, "isolation_level": "AUTOCOMMIT"}),
    "READ UNCOMMITTED": ("psycopg2", {**NO_POOL, "isolation_level": "READ UNCOMMITTED"}),
    "READ COMMITTED": ("pg8000", {**STATIC, "isolation_level": "READ COMMITTED"}),
    "REPEATABLE READ": ("psycopg", {"isolation_level": "REPEATABLE READ", "connect_args": {"prepare_threshold": 0}}),
    "SERIALIZABLE": ("psycopg", {"execution_options": {"isolation_level": "SERIALIZABLE", "compiled_cache": None}}),
    "driver's autocommit": ("psycopg", {"connect_args": {"autocommit": True}}),
}
#: Settings that an administrator gives to a database, as to a role.
POSTGRESQL_DEFAULTS = {
    "serializable": ["default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on"],
    "time-outs": ["statement_timeout = '2s'", "lock_timeout = '1s'", "idle_in_transaction_session_timeout = '2s'"],
    "text": [
        "standard_conforming_strings = off",
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "transform_null_equals = on",
        "client_min_messages = 'debug1'",
        "bytea_output = 'escape'",
    ],
    "search path": ["search_path = 'tenant'"],
}


@pytest.mark.parametrize("name", POSTGRESQL_ENGINES)
def test_engines_of_postgresql(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    driver, options = POSTGRESQL_ENGINES[name]
    url = new_url("postgresql")
    other, connect = by_driver(url, f"postgresql+{driver}")
    options = {**options, "connect_args": {**options.get("connect_args", {}), **connect}}
    Story(make_project(other, engine_options(**options)), url).tell(caplog)


@pytest.mark.parametrize("name", POSTGRESQL_DEFAULTS)
def test_defaults_of_a_postgresql_database(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    story = Story(make_project(new_url("postgresql")))
    story.ask("CREATE SCHEMA tenant")
    for setting in POSTGRESQL_DEFAULTS[name]:
        story.ask(f"ALTER DATABASE {story.observer.url.database} SET {setting}")
    story.tell(caplog)


@pytest.mark.parametrize("by", ["URL", "listener", "schema_translate_map"])
def test_schemas_of_postgresql(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture, by: str
) -> None:
    url = new_url("postgresql")
    inside = url.update_query_dict({"options": "-c search_path=tenant"})
    project = make_project(inside if by == "URL" else url)
    if by == "listener":
        project.tune = sql_on_connect("SET search_path = tenant", "COMMIT")
    elif by == "schema_translate_map":
        project.config = engine_options(execution_options={"schema_translate_map": {None: "tenant"}})
    story = Story(project, inside, "tenant." if by == "schema_translate_map" else "")
    story.ask("CREATE SCHEMA tenant")
    story.tell(caplog)


#: What the session sets, and engine options.
MARIADB: dict[str, tuple[str, dict[str, Any]]] = {
    "Aria": ("default_storage_engine = 'Aria', autocommit = 1", {"isolation_level": "AUTOCOMMIT"}),
    "MyISAM": (
        "default_storage_engine = 'MyISAM', innodb_snapshot_isolation = ON",
        {"isolation_level": "READ UNCOMMITTED"},
    ),
    "ANSI_QUOTES": (
        "sql_mode = 'ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH,NO_AUTO_VALUE_ON_ZERO'",
        {"isolation_level": "READ COMMITTED"},
    ),
    "NO_BACKSLASH_ESCAPES": (
        "sql_mode = 'NO_BACKSLASH_ESCAPES,SIMULTANEOUS_ASSIGNMENT,STRICT_ALL_TABLES'",
        {"isolation_level": "REPEATABLE READ"},
    ),
    "ORACLE": ("sql_mode = 'ORACLE'", {"isolation_level": "SERIALIZABLE"}),
    "no mode": (
        "sql_mode = '', time_zone = '+05:45', group_concat_max_len = 4, old_mode = ''",
        {"connect_args": {"autocommit": True, "charset": "latin1"}},
    ),
    "time-outs": (
        "max_statement_time = 2, lock_wait_timeout = 1, innodb_lock_wait_timeout = 1, wait_timeout = 5",
        ONE_CONNECTION,
    ),
    "careful": ("sql_safe_updates = 1, foreign_key_checks = 0, unique_checks = 0, completion_type = 'CHAIN'", STATIC),
    "serializable": ("tx_isolation = 'SERIALIZABLE'", NO_POOL),
}
CHARACTERS = {"time-outs": "latin1", "careful": "utf8mb4 COLLATE utf8mb4_bin"}


@pytest.mark.parametrize("name", MARIADB)
def test_sessions_of_mariadb(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    settings, options = MARIADB[name]
    connect = {"init_command": f"SET SESSION {settings}", **options.get("connect_args", {})}
    url = new_url("mariadb")
    driver = "mariadb+pymysql" if name in CHARACTERS else "mysql+pymysql"
    story = Story(make_project(url.set(drivername=driver), engine_options(**{**options, "connect_args": connect})))
    if name in CHARACTERS:
        story.ask(f"ALTER DATABASE {url.database} CHARACTER SET {CHARACTERS[name]}")
    story.tell(caplog)


# More than one

OTHER = """
@migration
def of_the_other(op: Operations) -> None:
    op.create_table("others", Column("id", Integer, primary_key=True))
    op.execute("INSERT INTO others (id) VALUES (1)")
"""


def test_a_role_that_only_reads_beside_one_that_migrates(
    server_url: URL, make_project: Callable[..., Project], caplog: pytest.LogCaptureFixture
) -> None:
    with reader(server_url) as url:
        story = Story(make_project(url, {"DB_SMART_MIGRATION_URL": server_url.render_as_string(False)}), server_url)
        story.tell(caplog)


def test_two_names_of_one_database(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.config["SQLALCHEMY_BINDS"] = {"analytics": project.url}
    story = Story(project)
    story.header += OTHER.replace("@migration", '\n\n@migration(database="analytics")')
    story.first = ("make_effects", "of_the_other")
    story.tell(caplog)
    assert story.ask("SELECT id FROM others") == [(1,)]


def test_two_applications_on_one_database(
    project: Project, make_project: Callable[..., Project], caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(project)
    other = make_project(project.url, {**CONFIG, "DB_SMART_FLAG": ".other"})
    other.write(OTHER)
    assert other.boot().decision == "migrated"
    decisions = []
    story.meanwhile = lambda: decisions.append(other.boot().decision)
    story.tell(caplog)
    assert set(decisions) <= {"skipped", "verified"}
    assert story.ask("SELECT id FROM others") == [(1,)]


@pytest.fixture(params=["postgresql", "mariadb"])
def server_url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    return new_url(request.param)


@contextmanager
def reader(url: URL) -> Iterator[URL]:
    """A role that may only read, also what is made later."""
    role, engine = f"reader_{url.database}"[:32], sa.create_engine(url, poolclass=sa.pool.NullPool)
    begin, end = {
        "postgresql": (
            [f"CREATE ROLE {role} LOGIN", f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}"],
            [f"DROP OWNED BY {role}", f"DROP ROLE {role}"],
        ),
        "mysql": ([f"CREATE USER {role}", f"GRANT SELECT ON {url.database}.* TO {role}"], [f"DROP USER {role}"]),
    }[url.get_backend_name()]
    with engine.begin() as connection:
        for statement in begin:
            connection.exec_driver_sql(statement)
    try:
        yield url.set(username=role)
    finally:
        with engine.begin() as connection:
            for statement in end:
                connection.exec_driver_sql(statement)


# SQLite


def pragmas(**settings: str) -> Callable[[Flask], None]:
    return sql_on_connect(*(f"PRAGMA {name} = {value}" for name, value in settings.items()))


def transactions_by_hand(app: Flask) -> None:
    """What SQLAlchemy's documents advise for sqlite3's transactions."""

    def connect(driver: Any, _: Any) -> None:
        driver.isolation_level = None

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    sa.event.listen(engine, "connect", connect)
    sa.event.listen(engine, "begin", begin)


def rows_by_name(driver: Any, _: Any) -> None:
    driver.row_factory = sqlite3.Row


TUNES: dict[str, Callable[[Flask], None]] = {
    "WAL": pragmas(journal_mode="WAL", foreign_keys="ON", mmap_size="1000000000", synchronous="OFF"),
    "TRUNCATE": pragmas(journal_mode="TRUNCATE", reverse_unordered_selects="ON", secure_delete="ON"),
    "EXCLUSIVE": pragmas(locking_mode="EXCLUSIVE", journal_mode="DELETE"),
    "WAL and EXCLUSIVE": pragmas(locking_mode="EXCLUSIVE", journal_mode="WAL"),
    "legacy": pragmas(legacy_alter_table="ON", case_sensitive_like="ON", recursive_triggers="ON"),
    "pages": pragmas(page_size="512", auto_vacuum="FULL", encoding="'UTF-16'", cell_size_check="ON"),
    "careful": pragmas(trusted_schema="OFF", defer_foreign_keys="ON", journal_mode="PERSIST", temp_store="MEMORY"),
    "rows by name": on_connect(rows_by_name),
    "transactions by hand": transactions_by_hand,
}


@pytest.mark.parametrize("name", TUNES)
def test_listeners_of_sqlite(sqlite_project: Project, caplog: pytest.LogCaptureFixture, name: str) -> None:
    sqlite_project.tune = TUNES[name]
    Story(sqlite_project).tell(caplog)


#: Where the file is, as the URL says it, and engine options.
PLACES: dict[str, tuple[Callable[[Path], str | URL], dict[str, Any]]] = {
    "relative": (lambda folder: "sqlite:///app.db", {"isolation_level": "AUTOCOMMIT"}),
    "relative URI": (
        lambda folder: "sqlite:///file:app.db?uri=true",
        {"connect_args": {"isolation_level": None}},
    ),
    "absolute URI": (
        lambda folder: f"sqlite:///file:{folder}/app%2520one.db?uri=true&cache=private",
        {"isolation_level": "READ UNCOMMITTED"},
    ),
    "with host": (
        lambda folder: f"sqlite:///file://localhost{folder}/app.db?uri=true",
        {"isolation_level": "SERIALIZABLE", **NO_POOL},
    ),
    "odd names": (lambda folder: URL.create("sqlite", database=f"{folder}/o d%20d/ä#?&=*[1]'\"\\.db"), STATIC),
    "linked file": (
        lambda folder: f"sqlite:///{folder}/link.db",
        {"connect_args": {"isolation_level": "IMMEDIATE", "cached_statements": 0}},
    ),
    "linked folder": (
        lambda folder: f"sqlite:///{folder}/link/app.db",
        {"connect_args": {"detect_types": 3, "check_same_thread": False, "timeout": 1}},
    ),
    "creator": (lambda folder: "sqlite://", {}),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_a_sqlite_file(
    make_project: Callable[..., Project], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = tmp_path / "instance" / "app.db"
    path.parent.mkdir()
    (tmp_path / "o d%20d").mkdir()
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "link").symlink_to(path.parent, target_is_directory=True)
    place, options = PLACES[name]
    project = make_project(place(tmp_path), engine_options(**options))
    observer = None
    if name.startswith("relative"):
        observer = URL.create("sqlite", database=str(path))
    elif name == "creator":
        observer = URL.create("sqlite", database=str(path))
        project.config = engine_options(creator=lambda: sqlite3.connect(path))
    Story(project, observer).tell(caplog)


def test_a_sqlite_file_that_moves(sqlite_project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    story = Story(sqlite_project)

    def move() -> None:
        old = Path(str(story.observer.url.database))
        new = tmp_path / f"moved{len(list(tmp_path.iterdir()))}" / "app.db"
        new.parent.mkdir()
        if old.exists():
            for path in old.parent.glob(f"{old.name}*"):
                path.rename(new.with_name(path.name.replace(old.name, new.name)))
        sqlite_project.url = URL.create("sqlite", database=str(new))
        story.observer = sa.create_engine(sqlite_project.url, poolclass=sa.pool.NullPool)

    story.meanwhile = move
    story.tell(caplog)
