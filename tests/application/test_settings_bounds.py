"""Values of settings that are out of any use are refused in one message, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.errors import ConfigError
from aurum_harmony.db_smart.session.lock_timeout import guarded
from aurum_harmony.db_smart.store.database import Database, begin
from tests.harness.project import Project
from tests.harness.servers import by_driver

MAKE_T = """
@migration
def make_t(op: Operations) -> None:
    op.create_table("t", Column("id", Integer, primary_key=True))
"""
WRONG = [
    *(("DB_SMART_FLAG", value) for value in ("a\0b", None, False, {}, {"a": 1}, 7, "", ".", "/", "..", b"x")),
    ("DB_SMART_DDL_RETRIES", "9" * 5000),
    ("DB_SMART_DDL_RETRIES", 10**5000),
    ("DB_SMART_STATEMENT_ROWS", 10**5000),
    ("DB_SMART_SNAPSHOTS", "9" * 16),
    ("DB_SMART_LOCK_TIMEOUT", 10**5000),
    ("DB_SMART_LOCK_TIMEOUT", "nan"),
    *(("DB_SMART_LEASE_SECONDS", value) for value in (1e12, 1e15, "inf", 31_622_401)),
    *(("DB_SMART_DDL_LOCK_TIMEOUT", value) for value in (2_147_484, 1e300, 10**5000)),
    ("DB_SMART_BRANCHES", 2),
    ("DB_SMART_BRANCHES", {}),
    ("DB_SMART_MIGRATION_URL", {"typo": "sqlite:///x.db"}),
    ("DB_SMART_MIGRATION_URL", {"default": "sqlite:///x.db", "typo": "sqlite:///x.db"}),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: repr(value)[:40] if type(value) is not int else "")
def test_a_useless_value_is_one_message(sqlite_project: Project, key: str, value: object) -> None:
    sqlite_project.write(MAKE_T)
    with pytest.raises(ConfigError) as refused:
        sqlite_project.boot(**{key: value})
    assert key in refused.value.message
    assert "Nothing was changed." in refused.value.message
    assert "\0" not in refused.value.message
    assert len(refused.value.message) < 400
    assert not Path(str(make_url(sqlite_project.url).database)).exists()
    run = sqlite_project.run("status", **{key: value})
    assert run.exit_code in (0, 1)
    assert run.exception is None or isinstance(run.exception, SystemExit)


@pytest.mark.parametrize("value", ["null", "false", "{}", "7"])
def test_a_flag_in_the_environment_that_is_no_path(
    sqlite_project: Project, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FLASK_DB_SMART_FLAG", value)
    sqlite_project.write(MAKE_T)
    with pytest.raises(ConfigError, match="DB_SMART_FLAG is .*; it must be the path of a file"):
        sqlite_project.boot()


def test_the_largest_values_work(project: Project) -> None:
    project.write(MAKE_T)
    largest: dict[str, Any] = {
        "DB_SMART_DDL_LOCK_TIMEOUT": 2_147_483,
        "DB_SMART_LEASE_SECONDS": 31_622_400,
        "DB_SMART_LOCK_TIMEOUT": 1e300,
        "DB_SMART_DDL_RETRIES": "9" * 15,
        "DB_SMART_STATEMENT_ROWS": "9" * 15,
        "DB_SMART_SNAPSHOTS": "9" * 15,
    }
    assert project.boot(**largest).applied == ("make_t",)
    assert project.run("status", **largest).exit_code == 0


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_why_a_lock_timeout_cannot_be_set_is_not_hidden(new_url: Callable[[str], URL], driver: str) -> None:
    url, options = by_driver(new_url("postgresql"), f"postgresql+{driver}")
    app_engine = sa.create_engine(url, connect_args=options)
    engine = guarded(Database("default", None, app_engine), 3_000_000, lambda statement: None)
    with engine.connect() as connection:
        begin(connection)
        with pytest.raises(Exception, match="lock_timeout"):
            connection.exec_driver_sql("CREATE TABLE t (id INTEGER)")
        connection.rollback()
    app_engine.dispose()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DB_SMART_SNAPSHOTS", "x"),
        ("DB_SMART_SNAPSHOTS", -1),
        ("DB_SMART_DDL_LOCK_TIMEOUT", 0),
        ("DB_SMART_DDL_RETRIES", "1.5"),
        ("DB_SMART_STATEMENT_ROWS", "many"),
        ("DB_SMART_CREATE_ALL", "maybe"),
    ],
)
def test_a_value_that_nothing_needs_yet_is_refused_by_status_and_dry_run(
    sqlite_project: Project, key: str, value: object
) -> None:
    project = sqlite_project
    project.write(MAKE_T)
    project.boot()
    project.config[key] = value
    for command in (["status"], ["migrate", "--dry-run"], ["migrate"]):
        found = project.run(*command)
        assert found.exit_code == 1
        assert f"{key} is" in found.output


def test_a_misspelt_setting_is_named(
    sqlite_project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = sqlite_project
    project.write(MAKE_T)
    project.config["DB_SMART_SNAPSHOT"] = 0
    monkeypatch.setenv("FLASK_DB_SMART_BOOTS", "check")
    said = ["DB_SMART_BOOTS is not a setting of db-smart and has no effect. Did you mean DB_SMART_BOOT?"]
    said += ["DB_SMART_SNAPSHOT is not a setting of db-smart and has no effect. Did you mean DB_SMART_SNAPSHOTS?"]
    project.boot()
    assert [line for line in said if line in caplog.text] == said
    for command in (["status"], ["migrate"]):
        found = project.run(*command)
        assert [line for line in said if line in found.output] == said
    caplog.clear()
    assert project.boot().decision == "skipped"
    assert "not a setting" not in caplog.text
