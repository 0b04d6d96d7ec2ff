"""No password, no parameter and no control character reaches a message, a traceback or a log."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError, MigrationFailed
from aurum_harmony.db_smart.errors import MigrationError, plain, without_secrets
from tests.harness.project import Project

SECRET = "Gehe1m!pw"
FAILING = """
@migration
def rotate(op: Operations) -> None:
    op.execute({sql!r})
"""


@pytest.fixture
def with_password(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> Project:
    """A project on a PostgreSQL server whose URL has a password."""
    url = new_url("postgresql")
    return make_project(url.set(password=url.password or SECRET))


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER ROLE nobody_here WITH PASSWORD '{0}'",
        "SELECT '{0}' FROM nothing_here",
        "SELECT 'postgresql://app:{0}@db/app' FROM nothing_here",
        "CREATE ROLE other_one PASSWORD 'An0ther' SUPERUSR",
        "this is '{0}' no SQL",
    ],
)
def test_a_failing_statement_is_shown_without_password(with_password: Project, sql: str) -> None:
    password = make_url(with_password.url).password
    with_password.write(FAILING.format(sql=sql.format(password)))
    with pytest.raises(MigrationFailed) as failed:
        with_password.boot()
    assert failed.value.statement is not None
    assert "***" in failed.value.statement
    shown = [failed.value.message, failed.value.statement, *traceback.format_exception(failed.value)]
    shown += [with_password.run("migrate").output, with_password.run("migrate", "--json").output]
    assert '"result": "failed"' in shown[-1]
    # The source line of the migration is the author's own; it is what the program says that counts.
    text = "\n".join(shown).replace(repr(sql.format(password)), "")
    assert "An0ther" not in text
    assert str(password) not in text


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('cannot use postgresql+psycopg://u:Gehe1m%21pw@db/x')",
        "try:\n    raise KeyError('redis://u:Gehe1m%21pw@db/x')\nexcept KeyError as e:\n raise ValueError('a') from e",
        "raise OSError('https://db/?user=u&access_token=Gehe1m%21pw')",
    ],
)
@pytest.mark.parametrize("package", [False, True])
def test_a_module_that_does_not_import_shows_no_password(sqlite_project: Project, source: str, package: bool) -> None:
    if package:
        folder = sqlite_project.directory / sqlite_project.module
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        (folder / "steps.py").write_text("")
        sqlite_project.module += ".steps"
    else:
        sqlite_project.write(source)
    with pytest.raises(MigrationError) as failed:
        sqlite_project.boot()
    assert "cannot be imported" in failed.value.message
    assert "Gehe1m" not in failed.value.message
    last = [line for line in traceback.format_exception(failed.value) if not line.startswith("  File")]
    assert "Gehe1m" not in "".join(last)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_traceback_has_no_parameters(project: Project, hidden: bool) -> None:
    project.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"hide_parameters": hidden}
    project.write(
        """
        @migration
        def insert(op: Operations) -> None:
            op.execute("INSERT INTO nothing_here VALUES (:a)", {"a": "PERSONAL" + "DATA"})
        """
    )
    with pytest.raises(MigrationFailed) as failed:
        project.boot()
    assert "PERSONALDATA" not in "".join(traceback.format_exception(failed.value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a postgresql://u:p@h/d b", "a postgresql://u:***@h/d b"),
        ("mysql+pymysql://u:p/w:x@h", "mysql+pymysql://u:***@h"),
        ("postgresql://:p@h", "postgresql://:***@h"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("http://h:80/path of u@h", "http://h:80/path of u@h"),
        ("x?sslpassword=a&sslmode=b", "x?sslpassword=***&sslmode=b"),
        ("CREATE USER u IDENTIFIED BY 'it''s' x", "CREATE USER u IDENTIFIED BY '***' x"),
        (
            "CREATE USER u IDENTIFIED VIA ed25519 USING PASSWORD('a') x",
            "CREATE USER u IDENTIFIED VIA ed25519 USING PASSWORD('***') x",
        ),
        ("set password = password('a\\'b')", "set password = password('***')"),
        ("ALTER ROLE u PASSWORD 'cut sh", "ALTER ROLE u PASSWORD '***"),
        ("EXECUTE 'ALTER ROLE u PASSWORD ''it''''s a'' x'", "EXECUTE 'ALTER ROLE u PASSWORD ''***'' x'"),
        ("ALTER ROLE u PASSWORD '' VALID UNTIL ''", "ALTER ROLE u PASSWORD '***' VALID UNTIL ''"),
        ("column 'password' is 'x'", "column 'password' is 'x'"),
    ],
)
def test_without_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


def test_plain_text_moves_no_terminal() -> None:
    text = "a\x1b[31m\r\nb\tc\x07\x9b\x00\u202e"
    assert plain(text) == "a\\x1b[31m\nb\tc\\x07\\x9b\\x00\\x202e"
    assert DbSmartError(text).message == plain(text)


@pytest.mark.parametrize("where", ["url", "stats"])
def test_a_flag_forges_no_line_and_moves_no_terminal(
    sqlite_project: Project, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    sqlite_project.write("@migration\ndef nothing(op: Operations) -> None:\n    pass\n")
    sqlite_project.boot()
    evil = "x\nERROR: forged\x1b[2J"
    flag = json.loads(sqlite_project.flag.read_text())
    if where == "url":
        flag["databases"]["default"]["url"] = evil
    else:
        flag["stats"][evil] = [1, 2, 3]
        flag["digest"] = "0"
    sqlite_project.flag.write_text(json.dumps(flag))
    caplog.set_level("DEBUG")
    report = sqlite_project.boot(DB_SMART_BOOT="check")
    sqlite_project.flag.write_text(json.dumps(flag))
    status = sqlite_project.run("status").output
    assert "forged" in report.reason
    for text in (report.reason, status, *(record.getMessage() for record in caplog.records)):
        assert "\x1b" not in text
        assert "\nERROR" not in text


def test_the_answer_to_a_request_names_no_file(sqlite_project: Project, caplog: pytest.LogCaptureFixture) -> None:
    sqlite_project.write("@migration\ndef first(op: Operations) -> None:\n    pass\n")
    sqlite_project.boot()
    sqlite_project.write("@migration\ndef second(op: Operations) -> None:\n    pass\n")
    app, _ = sqlite_project.app(DB_SMART_BOOT="check")
    response = app.test_client().get("/")
    sqlite_project.dispose(app)
    assert response.status_code == 503
    said = response.get_json()["detail"]
    assert said.startswith("The database is behind this code: the database 'default' has 1 new migration")
    assert "second" in response.text
    assert str(sqlite_project.directory) not in response.text
    assert str(sqlite_project.file) in caplog.text
