"""``lint`` where the database answers slowly, partly or not at all: it says so, and changes nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import processes
from tests.harness.own_servers import OwnMariaDB
from tests.harness.project import Project
from tests.harness.servers import role
from tests.lint.samples import MAKE, linted, pending, schemas

CHANGE = 'op.add_column("orders", Column("note", String(9)))'
#: Rights of a role, and what ``--trace`` says for want of others.
ROLES = {
    "postgresql": {
        "reads only": (("ALTER ROLE {user} SET default_transaction_read_only = on",), "Ask the one that is written to"),
        "may select": (("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}",), "Give the role the right CREATE"),
        "has no time": (("ALTER ROLE {user} SET statement_timeout = '1ms'",), ""),
    },
    "mariadb": {"may select": (("GRANT SELECT ON `{database}`.* TO {user}",), "Give it the right: GRANT ALL")},
}


def roles() -> list[tuple[str, str]]:
    return [(kind, name) for kind, names in ROLES.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), roles())
def test_roles(make_project: Callable[..., Project], new_url: Callable[[str], URL], kind: str, name: str) -> None:
    project = make_project(new_url(kind))
    project.write(MAKE)
    project.boot()
    pending(project, CHANGE)
    before = project.history(), project.columns("orders"), schemas(project)
    given, said = ROLES[kind][name]
    rights: tuple[str, ...] = given
    if name != "may select":
        rights = (
            *rights,
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}",
            "GRANT CREATE ON DATABASE {database} TO {user}",
        )
    with role(sa.make_url(project.url), *rights) as url:
        found = linted(project, "--trace", SQLALCHEMY_DATABASE_URI=url)
        result = project.run("lint", "--trace", SQLALCHEMY_DATABASE_URI=url)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if said:
        assert found["migrations"] == ["change"]
        assert any(said in note for note in found["notes"]), found
    else:
        answer = str([found["unreachable"], found["failing"], found["notes"]])
        assert "statement timeout" in answer or found["migrations"] == ["change"]  # a quick server needs less
    assert (project.history(), project.columns("orders"), schemas(project)) == before


def test_a_server_that_only_reads(make_project: Callable[..., Project]) -> None:
    """Even for whom it is whose role may do everything but write."""
    server = OwnMariaDB()
    try:
        with closing(sa.create_engine(server.url, poolclass=sa.pool.NullPool).connect()) as admin:
            admin.exec_driver_sql("CREATE DATABASE shop")
        project = make_project(server.url.set(database="shop"))
        project.write(MAKE)
        project.boot()
        pending(project, CHANGE)
        project.query("CREATE USER plain@'%'")
        project.query("GRANT ALL ON *.* TO plain@'%'")
        project.query("REVOKE READ_ONLY ADMIN, SUPER ON *.* FROM plain@'%'")
        project.query("SET GLOBAL read_only = 1")
        found = linted(project, "--trace", SQLALCHEMY_DATABASE_URI=server.url.set(username="plain", database="shop"))
        assert [one["table"] for one in found["statements"]] == ["orders"]
        (note,) = found["notes"]
        assert "the server only reads" in note
        assert project.columns("orders") == {"id", "number"}
    finally:
        server.remove()


@pytest.mark.parametrize("trace", [(), ("--trace",)])
def test_a_table_that_another_session_has_locked(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], trace: tuple[str, ...]
) -> None:
    """The lock is kept until lint has answered."""
    project = make_project(new_url("postgresql"))
    project.write(MAKE)
    project.boot()
    pending(project, CHANGE)
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        found = linted(project, *trace)
        assert found["failing"] == []
        assert any("change: it uses what another session has locked" in note for note in found["notes"])
        assert any(note.startswith("tables: not all is looked at: ") for note in found["notes"])
        assert schemas(project) == []
    assert [one["table"] for one in linted(project, *trace)["statements"]] == ["orders"]


LINT = """
import sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
sys.path.insert(0, sys.argv[1])
app = Flask("x", instance_path=sys.argv[1] + "/second")
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[3]
DbSmart(app, SQLAlchemy(app), migrations=sys.argv[2])
print(app.test_cli_runner().invoke(args=["db-smart", "lint"]).output)
"""


def test_while_another_process_migrates(project: Project) -> None:
    if project.dialect == "sqlite":
        return  # where it waits for the other process, whose transaction has the file
    project.write(MAKE)
    project.boot()
    said: list[str] = []
    url = sa.make_url(project.url).render_as_string(hide_password=False)

    def ask() -> None:
        if not said:
            said.append(processes.run_python(LINT, str(project.directory), project.module, url))

    body = "current_app.config.get('ASK', int)()"
    project.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n    {CHANGE}\n    {body}\n")
    assert project.boot(ASK=ask).applied == ("change",)
    assert " migrates this database now" in said[0]
    assert "Ask again when it is done." in said[0]


#: Lints as nobody a file that nobody may write, and then nobody's own with journal.
AS_NOBODY = """
import os, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
sys.path.insert(0, sys.argv[1])
def lint(file):
    app = Flask("x", instance_path=sys.argv[1] + "/instance")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///" + file
    DbSmart(app, SQLAlchemy(app), migrations=sys.argv[2])
    return app.test_cli_runner().invoke(args=["db-smart", "lint", "--trace"])
lint("")  # which imports what nobody may not read
os.seteuid(65534)
result = lint(sys.argv[3])
print(result.output, result.exit_code, repr(result.exception))
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_sqlite_file_that_may_only_be_read(sqlite_project: Project, open_directory: Path, journal: str) -> None:
    project = sqlite_project
    file = open_directory / "kept" / "app.db"
    file.parent.mkdir()
    project.directory, project.url = open_directory, URL.create("sqlite", database=str(file))
    project.write(MAKE)
    project.boot()
    pending(project, CHANGE)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.close()
    before = file.read_bytes(), sorted(file.parent.iterdir())
    project.file.chmod(0o644)
    file.chmod(0o444)
    file.parent.chmod(0o555)
    said = processes.run_python(AS_NOBODY, str(open_directory), project.module, str(file))
    assert "Traceback" not in said
    # With a journal of that kind SQLite itself needs to write beside the file.
    assert ("ADD COLUMN note" if journal == "delete" else "Nothing was changed") in said, said
    assert (file.read_bytes(), sorted(file.parent.iterdir())) == before


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to make a small disk")
def test_a_full_disk(sqlite_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_project.write(MAKE)
    sqlite_project.boot()
    sqlite_project.query("CREATE TABLE large AS SELECT zeroblob(2000000) AS a")
    pending(sqlite_project, CHANGE)
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("may not mount")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(small))
        found = linted(sqlite_project, "--trace")
        assert [one["table"] for one in found["statements"]] == ["orders"]
        (note,) = found["notes"]
        assert note.startswith("Nothing is traced: ")
        assert "full" in note
        assert [*small.iterdir()] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
