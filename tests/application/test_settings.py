"""Settings: every value that is taken, what each means, and the words in which the others are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.errors import ConfigError, DatabaseUnreachable
from aurum_harmony.db_smart.settings import DEFAULTS, Settings, set_defaults
from aurum_harmony.db_smart.store.database import Database, databases, safe_url

YES = ("1", "true", "yes", "on")
NO = ("0", "false", "no", "off")


def make_app(**config: object) -> Flask:
    """An application with settings as DbSmart sees them."""
    app = Flask("settings", instance_path=os.path.abspath(os.sep + "instance"))
    app.config.update(config)
    set_defaults(app)
    return app


@st.composite
def spelled(draw: st.DrawFn, words: tuple[str, ...]) -> str:
    """A word in any case, with blanks around it."""
    word = draw(st.sampled_from(words))
    cased = "".join(letter.upper() if draw(st.booleans()) else letter for letter in word)
    return draw(st.sampled_from(["", " ", "\t"])) + cased + draw(st.sampled_from(["", " ", "\r\n"]))


# FORCE_DB_MIGRATION


@settings(deadline=None)
@given(value=spelled(YES) | st.just(True) | st.just(1))
def test_force_is_taken_for_yes(value: object) -> None:
    assert Settings(make_app(FORCE_DB_MIGRATION=value)).force == "forced by FORCE_DB_MIGRATION"


@settings(deadline=None)
@given(value=spelled(NO) | st.sampled_from(["", " ", False, 0]))
def test_force_is_not_taken_for_no_or_nothing(value: object) -> None:
    assert Settings(make_app(FORCE_DB_MIGRATION=value)).force is None


def test_force_is_off_by_default() -> None:
    assert Settings(make_app()).force is None


@pytest.mark.parametrize("value", ["yes", " TRUE ", "1"])
def test_force_is_read_from_the_environment_without_prefix(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FORCE_DB_MIGRATION", value)
    assert Settings(make_app()).force == "forced by FORCE_DB_MIGRATION"


def test_force_in_the_environment_is_read_at_each_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()
    monkeypatch.setenv("FORCE_DB_MIGRATION", "true")
    assert Settings(app).force == "forced by FORCE_DB_MIGRATION"
    monkeypatch.setenv("FORCE_DB_MIGRATION", "false")
    assert Settings(app).force is None


@pytest.mark.parametrize(("config", "reason"), [(False, None), ("", None), (True, "forced by FORCE_DB_MIGRATION")])
def test_force_of_the_application_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, config: object, reason: str | None
) -> None:
    monkeypatch.setenv("FORCE_DB_MIGRATION", "false" if reason else "true")
    assert Settings(make_app(FORCE_DB_MIGRATION=config)).force == reason


_BAD = st.text(min_size=1).filter(lambda text: text.strip() and text.strip().lower() not in (*YES, *NO))


@settings(deadline=None)
@given(value=_BAD)
@example(value="ture")
@example(value="2")
@example(value="none")
@example(value="y")
def test_force_refuses_what_is_neither_and_names_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(make_app(FORCE_DB_MIGRATION=value)).force  # noqa: B018
    assert caught.value.message == (
        f"FORCE_DB_MIGRATION is {value.strip().lower()!r}; it must be one of 1, true, yes, on, or 0, false, no, off. "
        "Nothing was changed."
    )


def test_force_refuses_a_bad_value_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_DB_MIGRATION", "maybe")
    with pytest.raises(ConfigError, match="FORCE_DB_MIGRATION is 'maybe'"):
        Settings(make_app()).force  # noqa: B018


@pytest.mark.parametrize("value", [2, -1])
def test_force_refuses_the_same_numbers_as_text_and_as_numbers(value: int) -> None:
    for given_value in (value, str(value)):
        with pytest.raises(ConfigError, match=f"FORCE_DB_MIGRATION is '?{value}'?;"):
            Settings(make_app(FORCE_DB_MIGRATION=given_value)).force  # noqa: B018


# DB_SMART_BOOT


@settings(deadline=None)
@given(mode=spelled(("migrate", "background", "check", "off")))
def test_boot_mode_is_taken_in_any_spelling(mode: str) -> None:
    assert Settings(make_app(DB_SMART_BOOT=mode)).boot == mode.strip().lower()


def test_boot_mode_is_migrate_by_default() -> None:
    assert Settings(make_app()).boot == "migrate"


@pytest.mark.parametrize("mode", ["", "on", "migrated", "che ck", "0", "false"])
def test_boot_mode_refuses_another_value_and_names_it(mode: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(make_app(DB_SMART_BOOT=mode)).boot  # noqa: B018
    assert caught.value.message == (
        f"DB_SMART_BOOT is {mode!r}; it must be 'migrate', 'background', 'check' or 'off'. Nothing was changed."
    )


@pytest.mark.parametrize("mode", [None, False, True, 0])
def test_boot_mode_refuses_what_is_no_text(mode: object) -> None:
    with pytest.raises(ConfigError, match=f"DB_SMART_BOOT is '{str(mode).lower()}'"):
        Settings(make_app(DB_SMART_BOOT=mode)).boot  # noqa: B018


# DB_SMART_CREATE_ALL


@settings(deadline=None)
@given(value=spelled(YES) | st.sampled_from([True, 1, "", " "]))
def test_create_all_is_taken_for_yes_and_nothing(value: object) -> None:
    assert Settings(make_app(DB_SMART_CREATE_ALL=value)).create_all is True


@settings(deadline=None)
@given(value=spelled(NO) | st.sampled_from([False, 0]))
def test_create_all_is_not_taken_for_no(value: object) -> None:
    assert Settings(make_app(DB_SMART_CREATE_ALL=value)).create_all is False


def test_create_all_is_on_by_default() -> None:
    assert Settings(make_app()).create_all is True


@settings(deadline=None)
@given(value=_BAD)
def test_create_all_refuses_what_is_neither_and_names_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(make_app(DB_SMART_CREATE_ALL=value)).create_all  # noqa: B018
    assert caught.value.message.startswith(f"DB_SMART_CREATE_ALL is {value.strip().lower()!r}; it must be one of 1, ")


# Environment and application


def test_defaults_are_set() -> None:
    app = make_app()
    assert {key: app.config[key] for key in DEFAULTS} == {
        "DB_SMART_BOOT": "migrate",
        "DB_SMART_FLAG": ".db_migration_completed",
        "DB_SMART_CREATE_ALL": True,
        "DB_SMART_MIGRATION_URL": None,
        "DB_SMART_LOCK_TIMEOUT": 600,
        "DB_SMART_LEASE_SECONDS": 15,
        "DB_SMART_DDL_LOCK_TIMEOUT": 2,
        "DB_SMART_DDL_RETRIES": 30,
        "DB_SMART_SNAPSHOTS": 3,
        "DB_SMART_RELEASE": None,
        "DB_SMART_RELEASES": False,
        "DB_SMART_REQUEST_GRACE": 30,
        "DB_SMART_DIFF_IGNORE": (),
        "DB_SMART_STATEMENT_ROWS": 10_000,
        "DB_SMART_WEB": True,
        "DB_SMART_URL_PREFIX": "/_db-smart",
        "DB_SMART_TOKEN": None,
        "DB_SMART_BRANCHES": False,
    }


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("DB_SMART_BOOT", "check", "check"),
        ("DB_SMART_BOOT", '"check"', "check"),
        ("DB_SMART_FLAG", "/run/flag", "/run/flag"),
        ("DB_SMART_CREATE_ALL", "false", False),
        ("DB_SMART_CREATE_ALL", "no", "no"),
        ("DB_SMART_MIGRATION_URL", "sqlite:///a.db", "sqlite:///a.db"),
        ("DB_SMART_MIGRATION_URL", '{"reports": "sqlite:///b.db"}', {"reports": "sqlite:///b.db"}),
        ("DB_SMART_MIGRATION_URL", "", ""),
        ("DB_SMART_MIGRATION_URL", "null", None),
    ],
)
def test_setting_is_read_from_the_environment_with_prefix(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"FLASK_{key}", text)
    assert make_app().config[key] == value


@pytest.mark.parametrize("key", DEFAULTS)
def test_setting_of_the_application_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(f"FLASK_{key}", "environment")
    assert make_app(**{key: "application"}).config[key] == "application"


def test_setting_of_the_application_that_is_none_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_DB_SMART_MIGRATION_URL", "sqlite:///a.db")
    assert Settings(make_app(DB_SMART_MIGRATION_URL=None)).migration_urls == {}


@pytest.mark.parametrize("key", DEFAULTS)
def test_setting_is_not_read_from_the_environment_without_prefix(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(key, "environment")
    assert make_app().config[key] == DEFAULTS[key]


# DB_SMART_FLAG


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (".db_migration_completed", ("instance", ".db_migration_completed")),
        ("flags/one", ("instance", "flags", "one")),
        (Path("flags", "two"), ("instance", "flags", "two")),
        (os.path.abspath(os.sep + "run"), ("run",)),
        (Path(os.path.abspath(os.sep + "run"), "three"), ("run", "three")),
    ],
    ids=str,
)
def test_flag_is_relative_to_the_instance_folder(value: object, parts: tuple[str, ...]) -> None:
    assert Path(Settings(make_app(DB_SMART_FLAG=value)).flag) == Path(os.path.abspath(os.sep), *parts)


# DB_SMART_MIGRATION_URL

_URL = "postgresql+psycopg://owner:p%40ss@db:5432/app"


@pytest.mark.parametrize("value", [None, "", {}])
def test_no_migration_url(value: object) -> None:
    assert Settings(make_app(DB_SMART_MIGRATION_URL=value)).migration_urls == {}


@pytest.mark.parametrize("value", [_URL, make_url(_URL)], ids=["text", "URL"])
def test_single_migration_url_is_for_the_default_database(value: object) -> None:
    assert Settings(make_app(DB_SMART_MIGRATION_URL=value)).migration_urls == {"default": _URL}


@pytest.mark.parametrize("value", [_URL, make_url(_URL)], ids=["text", "URL"])
@pytest.mark.parametrize(("key", "name"), [("default", "default"), (None, "default"), ("", "default"), ("x", "x")])
def test_migration_urls_by_name_keep_their_passwords(value: object, key: str | None, name: str) -> None:
    assert Settings(make_app(DB_SMART_MIGRATION_URL={key: value})).migration_urls == {name: _URL}


def test_migration_urls_of_several_databases() -> None:
    value = {"default": "sqlite:///a.db", "reports": "sqlite:///b.db"}
    assert Settings(make_app(DB_SMART_MIGRATION_URL=value)).migration_urls == value


def test_migration_url_without_value_is_none_of_that_database() -> None:
    value = {"default": None, "reports": "sqlite:///b.db"}
    assert Settings(make_app(DB_SMART_MIGRATION_URL=value)).migration_urls == {"reports": "sqlite:///b.db"}


@pytest.mark.parametrize("value", [5, ["sqlite:///a.db"], True], ids=repr)
def test_migration_url_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="DB_SMART_MIGRATION_URL"):
        Settings(make_app(DB_SMART_MIGRATION_URL=value)).migration_urls  # noqa: B018


@pytest.mark.parametrize("value", ["no url s3cret", "nosuch://u:s3cret@h/d", "postgresql://u:s3cret@h:port/d"])
def test_migration_url_that_cannot_be_used_is_refused_without_its_password(value: str) -> None:
    database = Database("reports", "reports", sa.create_engine("sqlite://"), value)
    with pytest.raises(ConfigError) as caught:
        database.engine  # noqa: B018
    assert caught.value.message.startswith("DB_SMART_MIGRATION_URL for the database 'reports' cannot be used (")
    assert "s3cret" not in caught.value.message


# What may be said of a URL


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/app.db", "sqlite:////srv/app.db"),
        ("sqlite://", "sqlite://"),
        ("postgresql://app@db/app", "postgresql://app@db/app"),
        ("postgresql://app:s3cret@db:5432/app", "postgresql://app:***@db:5432/app"),
        ("postgresql://app:p%40s3cret%2F@db/app", "postgresql://app:***@db/app"),
        ("postgresql://app:@db/app", "postgresql://app:***@db/app"),
        ("postgresql:///app?host=/run/postgresql&connect_timeout=3", None),
        ("postgresql://db/app?user=app&password=s3cret", "postgresql://db/app?password=hidden&user=app"),
        ("postgresql://db/app?sslpassword=s3cret&sslmode=require", None),
        ("postgresql://db/app?PASSWORD=s3cret", None),
        ("postgresql://db/app?passwd=s3cret&password=s3cret1&password=s3cret2", None),
        ("mysql://db/app?ssl_key=s3cret&read_timeout=3", None),
        ("mssql+pyodbc://db/app?pwd=s3cret", None),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cret", "mssql+pyodbc:///?odbc_connect=hidden"),
        ("snowflake://db/app?authenticator=oauth&token=s3cret", None),
        ("bigquery://project?client_secret=s3cret", None),
    ],
)
def test_safe_url_hides_the_password_and_secret_options(url: str, shown: str | None) -> None:
    found = safe_url(make_url(url))
    assert "s3cret" not in found
    if shown is not None:
        assert found == shown


def test_safe_url_keeps_the_other_options() -> None:
    url = make_url("postgresql://u:p@db/app?sslmode=require&password=s3cret&connect_timeout=3")
    found = make_url(safe_url(url))
    assert found.query == {"sslmode": "require", "password": "hidden", "connect_timeout": "3"}


def test_safe_url_leaves_the_url_itself_alone() -> None:
    url = make_url("postgresql://u:p@db/app?password=s3cret")
    safe_url(url)
    assert url.query == {"password": "s3cret"}
    assert url.password == "p"


_SECRETS = st.text(st.characters(codec="utf-8", min_codepoint=33), min_size=1).map(lambda text: f"S3{text}CRET")


@settings(deadline=None)
@given(password=_SECRETS, option=_SECRETS)
def test_safe_url_hides_every_password(password: str, option: str) -> None:
    url = URL.create("postgresql", "app", password, "db", 5432, "app", {"password": option, "sslmode": "require"})
    assert safe_url(url) == "postgresql://app:***@db:5432/app?password=hidden&sslmode=require"


# What may be said of an error


def make_database(url: str | URL, migration_url: str | None = None) -> Database:
    return Database("default", None, sa.create_engine(url), migration_url)


@settings(deadline=None)
@given(password=_SECRETS)
@example(password="S3  CRET")
@example(password="S3\nCRET")
@example(password="S3 +@CRET")
@example(password="S3%40CRET")
def test_redact_hides_the_password_as_it_is_and_as_an_url_has_it(password: str) -> None:
    url = URL.create("postgresql+psycopg", "app", password, "db", None, "app")
    text = f"bad password {password} in {url.render_as_string(hide_password=False)}"
    found = make_database(url).redact(ValueError(text))
    assert found == "bad password *** in postgresql+psycopg://app:***@db/app"


def test_redact_hides_the_password_of_the_migration_url() -> None:
    database = make_database("sqlite://", "postgresql+psycopg://owner:s3cret@db/app")
    assert database.redact(ValueError("no entry for owner/s3cret")) == "no entry for owner/***"


@pytest.mark.parametrize("option", ["password", "sslpassword", "client_secret", "token"])
@pytest.mark.parametrize("which", ["url", "migration url"])
def test_redact_hides_secret_options(option: str, which: str) -> None:
    url = f"postgresql+psycopg://db/app?{option}=s3%40cret"
    database = make_database(url) if which == "url" else make_database("sqlite://", url)
    found = database.redact(ValueError(f"bad dsn: {option}='s3@cret' or {option}=s3%40cret"))
    assert "s3@cret" not in found
    assert "s3%40cret" not in found
    assert found.startswith("bad dsn: ")


def test_redact_hides_each_value_of_a_repeated_option() -> None:
    database = make_database("postgresql+psycopg://db/app?password=s3one&password=s3two")
    assert database.redact(ValueError("neither s3one nor s3two")) == "neither *** nor ***"


def test_redact_leaves_a_message_without_secrets_alone() -> None:
    database = make_database("postgresql+psycopg://app:s3cret@db/app?sslmode=require")
    assert database.redact(ValueError("server does not support SSL, but sslmode require was asked for")) == (
        "server does not support SSL, but sslmode require was asked for"
    )


def test_redact_says_the_message_in_one_line_without_its_full_stop() -> None:
    assert make_database("sqlite://").redact(ValueError("first line\n\tsecond  line.\n")) == "first line second line"


def test_redact_says_what_the_driver_said() -> None:
    error = sa.exc.OperationalError("SELECT 1", {"id": 5}, ValueError("disk I/O error"))
    assert make_database("sqlite://").redact(error) == "disk I/O error"


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://app:s3cret@127.0.0.1:1/app", "mysql+pymysql://app:s3cret@127.0.0.1:1/app"]
)
def test_server_that_cannot_be_reached_is_named_without_password(url: str) -> None:
    with pytest.raises(DatabaseUnreachable) as caught, make_database(url).connect():
        pass
    shown = url.replace("s3cret", "***")
    assert caught.value.message.startswith(f"Cannot connect to the database 'default' ({shown}): ")
    assert "s3cret" not in caught.value.message
    assert "Check that the server is running" in caught.value.message


# Where a SQLite database is


@contextmanager
def connected(directory: Path, url: str, **config: Any) -> Iterator[tuple[Database, sa.Connection]]:
    """A database as Flask-SQLAlchemy makes it, and a connection to it that has written."""
    app = Flask("settings", instance_path=str(directory / "instance"))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, **config)
    db = SQLAlchemy()
    db.init_app(app)
    with app.app_context():
        try:
            with db.engine.connect() as connection:
                connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
                connection.commit()
                yield databases(db.engines, {})["default"], connection
        finally:
            for engine in db.engines.values():
                engine.dispose()


#: SQLAlchemy 2.1 decodes the name in a URL, 2.0 does not.
BLANK = str(make_url("sqlite:///a%20b.db").database)


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///a.db", "instance/a.db"),
        ("sqlite+pysqlite:///a.db", "instance/a.db"),
        ("sqlite:///sub/../a.db", "instance/a.db"),
        ("sqlite:///{directory}/a.db", "a.db"),
        ("sqlite:///{directory}//a.db", "a.db"),
        ("sqlite:///{directory}/a%20b.db", BLANK),
        ("sqlite:///{directory}/ü.db", "ü.db"),
        ("sqlite:///file:a.db", "instance/file:a.db"),
        ("sqlite:///file:a.db?uri=true", "instance/a.db"),
        ("sqlite:///file:{directory}/a.db?uri=true", "a.db"),
        ("sqlite:///file:{directory}/a.db?uri=1&mode=rwc&cache=shared", "a.db"),
        ("sqlite:///file:{directory}//a.db?uri=true", "a.db"),
        ("sqlite:///file://{directory}/a.db?uri=true", "a.db"),
        ("sqlite:///file://localhost{directory}/a.db?uri=true", "a.db"),
        ("sqlite:///file:{directory}/a%2520b.db?uri=true", BLANK),
        ("sqlite:///file:{directory}/a%20b.db?uri=true", "a b.db"),
        ("sqlite:///file:{directory}/a.db#part?uri=true", "a.db"),
        ("sqlite:///file::memory:?uri=true", "instance/:memory:"),
    ],
)
def test_path_is_the_file_that_sqlite_opened(tmp_path: Path, url: str, file: str) -> None:
    (tmp_path / "instance" / "sub").mkdir(parents=True)
    with connected(tmp_path, url.format(directory=tmp_path)) as (database, connection):
        opened = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
        assert opened == str(tmp_path / file)
        assert database.path == Path(opened)
        assert database.exists is True
        assert database.in_memory is False
        state = database.file_state()
        assert state is not None
        assert state["inode"] == os.stat(opened).st_ino


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:{directory}/name?mode=memory&cache=shared&uri=true",
        "sqlite:///file:name?mode=memory&cache=shared&uri=true",
        "sqlite:///file:{directory}/name?vfs=memdb&uri=true",
    ],
)
def test_database_in_memory_has_no_path(tmp_path: Path, url: str) -> None:
    options = {"poolclass": sa.pool.StaticPool}
    with connected(tmp_path, url.format(directory=tmp_path), SQLALCHEMY_ENGINE_OPTIONS=options) as (database, _):
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        assert database.path is None
        assert database.in_memory is True
        assert database.exists is True
        assert database.file_state() is None


def test_database_in_memory_is_migrated_by_the_pool_of_the_application(tmp_path: Path) -> None:
    with connected(tmp_path, "sqlite://") as (database, _):
        assert database.engine.pool is database.app_engine.pool


def test_server_has_no_path() -> None:
    database = make_database("postgresql+psycopg://app@db/app")
    assert database.path is None
    assert database.in_memory is False
    assert database.exists is True


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_file_without_database_does_not_exist_and_is_not_made(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.db"
    if content is not None:
        path.write_bytes(content)
    database = make_database(URL.create("sqlite", database=str(path)))
    assert database.exists is False
    assert path.exists() is (content is not None)


def test_databases_are_named_by_their_bind_keys_and_the_default_one_comes_first() -> None:
    engine = sa.create_engine("sqlite://")
    found = databases({"reports": engine, None: engine, "audit": engine}, {"audit": "sqlite:///owner.db"})
    assert [(name, item.key, item.migration_url) for name, item in found.items()] == [
        ("default", None, None),
        ("audit", "audit", "sqlite:///owner.db"),
        ("reports", "reports", None),
    ]


def test_a_key_of_the_environment_without_prefix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_SMART_BOOT", "check")
    (said,) = Settings(make_app()).check()
    assert said == "DB_SMART_BOOT in the environment has no effect: db-smart reads FLASK_DB_SMART_BOOT."
    assert Settings(make_app(DB_SMART_BOOT="check")).check() == []  # the application has read it itself
    monkeypatch.setenv("FLASK_DB_SMART_BOOT", "migrate")
    assert Settings(make_app()).check() == []
