"""Engine options, isolation levels, storage engines and two names of one database: none may cost an effect."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL
from sqlalchemy.orm import Mapped, mapped_column

from aurum_harmony.db_smart import DbSmartError, MigrationFailed
from aurum_harmony.db_smart.errors import LeaseLost
from aurum_harmony.db_smart.settings import LockSettings
from aurum_harmony.db_smart.store import tables
from aurum_harmony.db_smart.store.database import Database
from aurum_harmony.db_smart.store.lock import lock_of
from tests.harness.project import Project

SERVERS = ("postgresql", "mariadb")

TWO_BINDS = """
@migration
def make_t(op: Operations) -> None:
    op.create_table("t", Column("id", Integer, primary_key=True))

@migration(database="analytics")
def make_ev(op: Operations) -> None:
    op.create_table("ev", Column("id", Integer, primary_key=True))
"""


def options(**engine: Any) -> dict[str, Any]:
    return {"SQLALCHEMY_ENGINE_OPTIONS": engine}


@pytest.fixture
def two_binds(project: Project) -> Project:
    project.config["SQLALCHEMY_BINDS"] = {"analytics": project.url}
    project.write(TWO_BINDS)
    return project


def test_two_binds_of_one_database_both_get_their_migrations(
    two_binds: Project, caplog: pytest.LogCaptureFixture
) -> None:
    report = two_binds.boot()
    assert report.applied == ("make_t", "make_ev")
    assert {"t", "ev"} <= two_binds.tables()
    assert two_binds.boot().decision == "skipped"
    app, smart = two_binds.app()
    assert smart.boot(app).decision == "skipped"
    assert app.test_client().get("/").status_code == 200
    two_binds.dispose(app)
    assert "boot trusted the flag" not in caplog.text
    assert two_binds.run("status", "--check").exit_code == 0
    assert "ahead" not in two_binds.run("status").output


def test_a_run_that_ends_between_two_binds_of_one_database_is_finished_by_the_next(two_binds: Project) -> None:
    assert two_binds.run("migrate", "--database", "default").exit_code == 0
    assert two_binds.boot().applied == ("make_ev",)
    assert "ev" in two_binds.tables()


def test_migrate_runs_what_a_lost_row_of_the_history_asks_for(project: Project) -> None:
    project.write(TWO_BINDS.partition("@migration(database")[0])
    project.boot()
    project.query("DELETE FROM db_smart_history")
    result = project.run("migrate")
    assert "already completed" not in result.output
    assert project.history() == [("make_t", "applied")]


@pytest.fixture(params=SERVERS)
def server_project(
    request: pytest.FixtureRequest, make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> Project:
    """A project on each server in turn."""
    return make_project(new_url(request.param), {"DB_SMART_LEASE_SECONDS": 2, "DB_SMART_DDL_RETRIES": 2})


LEVELS = ["AUTOCOMMIT", "READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_failed_migration_leaves_nothing_at_any_isolation_level(server_project: Project, level: str) -> None:
    project = server_project
    project.config.update(options(isolation_level=level))
    source = """
        @migration
        def make_t(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True), Column("n", Integer))
            op.execute("INSERT INTO t (n) VALUES (1)")

        @migration
        def second(op: Operations) -> None:
            op.execute("UPDATE t SET n = n + 1")
            db.session.execute(text("UPDATE t SET n = n + 1"))
            db.session.commit()
            raise ValueError("stop")
    """
    project.write(source)
    with pytest.raises(MigrationFailed, match="stop"):
        project.boot()
    assert project.query("SELECT n FROM t") == [(1,)]
    project.write(source.replace('raise ValueError("stop")', "pass"))
    assert project.boot().applied == ("second",)
    assert project.query("SELECT n FROM t") == [(3,)]


DRIVERS_OWN = {"postgresql": {"autocommit": True}, "mysql": {"autocommit": True}}


def test_a_driver_in_autocommit_migrates_in_transactions(server_project: Project) -> None:
    project = server_project
    project.config.update(options(connect_args=DRIVERS_OWN[project.dialect]))
    project.write("""
        @migration
        def make_t(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True))

        @migration
        def fill(op: Operations) -> None:
            op.execute("INSERT INTO t (id) VALUES (1)")
            raise ValueError("stop")
    """)
    with pytest.raises(MigrationFailed, match="stop"):
        project.boot()
    assert project.query("SELECT * FROM t") == []


SLEEP = {"postgresql": "SELECT pg_sleep(1.2)", "mysql": "SELECT sleep(1.2)"}
#: Engine options under which a transaction may not write a row that has changed since it began.
STRICT: dict[str, list[dict[str, Any]]] = {
    "postgresql": [
        {"isolation_level": "REPEATABLE READ"},
        {"isolation_level": "SERIALIZABLE"},
        {"connect_args": {"options": "-c default_transaction_isolation=serializable"}},
    ],
    "mysql": [
        {"connect_args": {"init_command": "SET SESSION innodb_snapshot_isolation = ON"}},
        {"isolation_level": "SERIALIZABLE"},
    ],
}


@pytest.mark.parametrize("number", range(3))
def test_the_heartbeat_does_not_stop_a_long_migration(server_project: Project, number: int) -> None:
    project = server_project
    if number >= len(STRICT[project.dialect]):
        return
    project.config.update(options(**STRICT[project.dialect][number]))
    project.write(f"""
        @migration
        def long_one(op: Operations) -> None:
            op.execute("SELECT count(*) FROM db_smart_history")
            op.execute("{SLEEP[project.dialect]}")
    """)
    assert project.boot(DB_SMART_LEASE_SECONDS=1, DB_SMART_DDL_RETRIES=0).applied == ("long_one",)


def test_a_server_that_logs_statements_is_migrated_at_its_own_level(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    """InnoDB refuses READ COMMITTED where the binary log holds statements; whether there is one varies."""
    project = make_project(new_url("mariadb"))
    project.config.update(options(connect_args={"init_command": "SET SESSION binlog_format = 'STATEMENT'"}))
    project.write("""
        @migration
        def fill(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True))
            op.execute("INSERT INTO t (id) VALUES (1)")
    """)
    project.boot()
    assert project.query("SELECT * FROM t") == [(1,)]


STEAL = """
def steal():
    engine = create_engine(current_app.config["SQLALCHEMY_DATABASE_URI"], poolclass=pool.NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE db_smart_state SET token = token + 1, lease_expires = 0"))
"""


def test_who_lost_the_lease_commits_nothing_by_a_schema_change(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("mariadb"))
    project.write("""
        @migration
        def make_t(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True))
    """)
    project.boot()
    for change in (
        'op.execute("CREATE OR REPLACE VIEW v AS SELECT * FROM t")',
        'db.session.execute(text("CREATE OR REPLACE VIEW v AS SELECT * FROM t"))',
        'op.create_table("u", Column("id", Integer, primary_key=True))',
        'op.execute("/* odd */ ANALYZE TABLE t")',
    ):
        project.write(
            STEAL
            + f"""
@migration
def second(op: Operations) -> None:
    steal()
    op.execute("INSERT INTO t (id) VALUES (1)")
    {change}
"""
        )
        with pytest.raises(LeaseLost):
            project.boot()
        assert project.query("SELECT * FROM t") == [], change
        assert project.query("SELECT * FROM db_smart_progress") == [], change
        assert "u" not in project.tables()


@pytest.mark.parametrize("dialect", SERVERS)
def test_who_lost_the_lease_writes_nothing_outside_a_transaction(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_project(new_url(dialect))
    project.write("""
        @migration
        def make_t(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True))
    """)
    project.boot()
    project.write(
        STEAL
        + """
@migration(transactional=False)
def second(op: Operations) -> None:
    steal()
    op.execute("INSERT INTO t (id) VALUES (1)")
"""
    )
    with pytest.raises(LeaseLost):
        project.boot()
    assert project.query("SELECT * FROM t") == []
    assert project.query("SELECT * FROM db_smart_progress") == []


@pytest.mark.parametrize("engine", ["Aria", "MyISAM", "InnoDB"])
def test_our_tables_have_transactions_whatever_the_default_storage_engine(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], engine: str
) -> None:
    project = make_project(new_url("mariadb"))
    project.query("CREATE TABLE t (id INTEGER PRIMARY KEY) ENGINE = InnoDB")
    project.config.update(options(connect_args={"init_command": f"SET SESSION default_storage_engine = {engine}"}))
    source = """
        @migration
        def fill(op: Operations) -> None:
            op.execute("INSERT INTO t (id) VALUES (1)")
            raise ValueError("stop")
    """
    project.write(source)
    with pytest.raises(MigrationFailed, match="stop"):
        project.boot()
    project.write(source.replace('raise ValueError("stop")', "pass"))
    project.boot()
    assert project.query("SELECT * FROM t") == [(1,)]
    engines = project.query(
        "SELECT DISTINCT engine FROM information_schema.tables "
        "WHERE table_schema = database() AND table_name LIKE 'db\\_smart\\_%'"
    )
    assert engines == [("InnoDB",)]


def test_a_link_to_a_database_file_leads_to_the_same_lock(tmp_path: Path) -> None:
    shared = tmp_path / "shared.db"
    sqlite3.connect(shared).close()
    locks = []
    for release in ("r42", "r43"):
        link = tmp_path / release / "app.db"
        link.parent.mkdir()
        link.symlink_to(shared)
        engine = sa.create_engine(f"sqlite:///{link}", poolclass=sa.pool.NullPool)
        locks.append(lock_of(Database("default", None, engine), LockSettings(1, 1)))
    assert locks[0].try_acquire(lambda _: False)
    assert locks[1].try_acquire(lambda _: False) is False
    holder = locks[1].holder()
    assert holder is not None
    locks[0].release()
    assert sorted(path.name for path in (tmp_path / "r42").iterdir()) == ["app.db"]


def test_a_database_made_by_a_creator_is_a_file_with_lock_flag_and_snapshot(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    path = tmp_path / "made.db"
    project = make_project("sqlite://", options(creator=lambda: sqlite3.connect(path)))
    source = """
        @migration
        def make_t(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True))
    """
    project.write(source)
    assert project.boot().decision == "migrated"
    assert project.flag.exists()
    assert project.boot().decision == "skipped"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(path), poolclass=sa.pool.NullPool)
    database = Database("default", None, engine)
    assert database.path == path
    beside = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    other = lock_of(Database("default", None, beside), LockSettings(1, 1))
    assert other.try_acquire(lambda _: False)
    project.write(source.replace("make_t", "make_it"))
    with pytest.raises(DbSmartError, match="is being migrated by"):
        project.boot(DB_SMART_LOCK_TIMEOUT=0.2)
    other.release()


@pytest.mark.parametrize("options_", [{}, {"poolclass": sa.pool.StaticPool}])
def test_a_database_in_memory_stays_one(make_project: Callable[..., Project], options_: dict[str, Any]) -> None:
    project = make_project("sqlite://", options(**options_))
    project.write("""
        @migration
        def make_t(op: Operations) -> None:
            op.create_table("t", Column("id", Integer, primary_key=True))
    """)
    app, smart = project.app()
    assert smart.boot(app).decision == "migrated"
    assert smart.boot(app).decision == "verified"
    assert not project.flag.exists()
    project.dispose(app)


def test_a_schema_translate_map_of_the_engine_counts_for_migrations(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("postgresql"), options(execution_options={"schema_translate_map": {None: "tenant"}}))
    project.query("CREATE SCHEMA tenant")

    def models(db: SQLAlchemy) -> None:
        class Item(db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)

    project.models = models
    source = """
        @migration
        def extend(op: Operations) -> None:
            op.add_column("item", Column("name", String(20), server_default="x", nullable=False))
            op.create_index("ix_item_name", "item", ["name"])
            op.create_unique_constraint("uq_item_name", "item", ["name"])
            op.create_check_constraint("ck_item_name", "item", "name <> ''")
            assert op.has_column("item", "name")
            op.create_table("other", Column("id", Integer, primary_key=True))
            other = Table("other", MetaData(), Column("id", Integer))
            db.session.execute(delete(other))
            db.session.execute(insert(other).values(id=1))
            op.backfill("item", {"name": "y"})
    """
    project.write(source)
    assert project.boot().decision == "migrated"
    found = project.query("SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname IN ('public', 'tenant')")
    assert found == [("tenant",)]
    assert project.query("SELECT id FROM tenant.other") == [(1,)]
    assert project.boot().decision == "skipped"
    app, smart = project.app()
    smart.boot(app)
    assert app.test_client().get("/").status_code == 200
    with app.app_context():
        assert app.extensions["sqlalchemy"].session.execute(sa.text("SELECT count(*) FROM tenant.item")).scalar() == 0
    project.dispose(app)
    assert project.run("migrate", "--force").exit_code == 0
    assert json.loads(project.run("status", "--json").stdout)["state"] == "up-to-date"
    assert tables.state.schema is None
