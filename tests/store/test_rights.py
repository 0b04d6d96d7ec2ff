"""Roles without rights, and files that another user has made."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError, HistoryUnreadable
from tests.harness import processes
from tests.harness.project import Project
from tests.harness.servers import role

V1 = """
@migration
def make_items(op: Operations) -> None:
    op.create_table("items", Column("id", Integer, primary_key=True))
"""


V2 = (
    V1
    + """
@migration
def add_name(op: Operations) -> None:
    op.add_column("items", Column("name", String(20)))
"""
)
V3 = (
    V2
    + """
@migration
def add_price(op: Operations) -> None:
    op.add_column("items", Column("price", Integer))
"""
)

#: What is refused -> the rights of the role, and the URL's options.
REFUSED = {
    ("postgresql", "no right to create"): (["GRANT CONNECT ON DATABASE {database} TO {user}"], {}),
    ("postgresql", "a role that only reads"): (
        ["GRANT ALL ON SCHEMA public TO {user}", "ALTER ROLE {user} SET default_transaction_read_only = on"],
        {},
    ),
    ("mariadb", "no right to create"): (["GRANT SELECT ON {database}.* TO {user}"], {}),
    ("mariadb", "a session that only reads"): (
        ["GRANT ALL ON {database}.* TO {user}"],
        {"init_command": "SET SESSION TRANSACTION READ ONLY"},
    ),
}


@pytest.mark.parametrize(("dialect", "what"), REFUSED)
def test_who_may_not_write_is_told_at_the_first_try(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str, what: str
) -> None:
    rights, options = REFUSED[dialect, what]
    with ExitStack() as stack:
        url = stack.enter_context(role(new_url(dialect), *rights))
        project = make_project(url.update_query_dict(options))
        project.write(V1)
        tries: list[str] = []

        def count(*arguments: object) -> None:
            tries.extend(re.findall("CREATE TABLE db_smart_state", str(arguments[2])))

        app, smart = project.app()
        stack.callback(project.dispose, app)
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", count)
        stack.callback(sa.event.remove, sa.engine.Engine, "before_cursor_execute", count)
        with pytest.raises(DbSmartError, match="(?i)denied|read[- ]only") as caught:
            smart.boot(app)
        assert "Fix the cause and start again" in str(caught.value)
        assert len(tries) == 1


#: How a database only reads for a role that once could write.
READS_ONLY = {
    "postgresql": "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}",
    "mariadb": "GRANT SELECT ON {database}.* TO {user}",
}


@pytest.mark.parametrize("dialect", READS_ONLY)
def test_who_may_only_read_boots_after_an_edited_comment(
    make_project: Callable[..., Project],
    new_url: Callable[[str], URL],
    dialect: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project = make_project(new_url(dialect))
    project.write(V1)
    project.boot()
    project.write(V1 + "# why\n")
    with role(make_url(project.url), READS_ONLY[dialect]) as url:
        caplog.clear()
        project.url = url
        for _ in range(2):
            assert project.boot(DB_SMART_FLAG=".reader").decision in ("verified", "skipped")
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []


def test_the_state_is_not_waited_for(make_project: Callable[..., Project], url: URL) -> None:
    """Another one holds its row, or a SQLite file, in a transaction that does not end."""
    project = make_project(url)
    project.write(V1)
    project.boot()
    project.write(V1 + "# why\n")
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE db_smart_state SET token = token + 1")
        assert project.boot().decision == "verified"
        connection.rollback()
    source = project.query("SELECT source FROM db_smart_state")
    project.flag.unlink()
    assert project.boot().decision == "verified"
    assert project.query("SELECT source FROM db_smart_state") != source


#: Boots as the user of a service; it may not read where Python is installed, so that all is imported before.
SERVICE = """
import _strptime, os, sys
sys.path.insert(0, sys.argv[1])
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
def boot(instance, url):
    app = Flask("service", instance_path=instance)
    app.config.update(SQLALCHEMY_DATABASE_URI=url)
    db = SQLAlchemy(app)
    report = DbSmart(app, db, migrations=sys.argv[2]).boot(app)
    return report.decision, *report.applied
boot(sys.argv[5], f"sqlite:///{sys.argv[5]}/scratch.db")
owner = os.stat(sys.argv[3]).st_uid
os.umask(0o027)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(os.stat(sys.argv[3]).st_gid)
    os.setuid(owner)
print(*boot(sys.argv[3], sys.argv[4]))
"""


@pytest.fixture
def service(sqlite_project: Project, open_directory: Path) -> Callable[[], str]:
    """Boots the project as the user of its instance folder: nobody, where the tests are root's, else who they are."""
    project = sqlite_project
    project.directory = open_directory
    project.instance.mkdir()
    project.url = URL.create("sqlite", database=str(project.instance / "app.db"))
    if os.geteuid() == 0:
        os.chown(project.instance, 65534, 65534)
    numbers = iter(range(10))

    def boot() -> str:
        scratch = open_directory / f"scratch{next(numbers)}"
        scratch.mkdir()
        arguments = [str(open_directory), project.module, str(project.instance), str(project.url), str(scratch)]
        done = subprocess.run(
            [sys.executable, "-c", SERVICE, *arguments],
            capture_output=True,
            text=True,
            env=processes.environment(),
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return boot


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    """Who owns all that is in a folder, and the folder."""
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): (path.lstat().st_uid, path.lstat().st_gid) for path in paths}


@pytest.mark.skipif(os.name != "posix", reason="owners of files")
def test_a_service_goes_on_with_what_an_administrator_has_migrated(
    sqlite_project: Project, service: Callable[[], str]
) -> None:
    project = sqlite_project
    project.write(V1)
    assert service() == "migrated make_items"
    lock = project.instance / "app.db.db-smart.lock"
    lock.unlink()
    (project.instance / f"{project.flag.name}.lock").unlink()
    project.write(V2)
    assert project.run("migrate").exit_code == 0
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"
    found = owners(project.instance)
    assert {"app.db.db-smart.lock", project.flag.name, f"{project.flag.name}.lock", "snapshots"} <= found.keys()
    assert set(found.values()) == {found["."]}
    assert stat.S_IMODE(lock.stat().st_mode) == stat.S_IMODE((project.instance / "app.db").stat().st_mode)
    project.write(V3)
    assert service() == "migrated add_price"


@pytest.mark.skipif(os.name != "posix", reason="owners of files")
def test_a_folder_that_an_administrator_makes_is_of_the_owner_of_the_one_above(
    sqlite_project: Project, service: Callable[[], str]
) -> None:
    project = sqlite_project
    project.write(V1)
    project.boot(DB_SMART_FLAG="new/folder/flag")
    found = owners(project.instance)
    assert found["new/folder/flag"] == found["new/folder"] == found["new"] == found["."]
    assert found["app.db.db-smart.lock"] == found["."]  # there was no database yet


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_what_stood_at_the_lock_is_not_given_away(sqlite_project: Project, service: Callable[[], str]) -> None:
    project = sqlite_project
    victim = project.directory / "victim"
    victim.touch(0o600)
    before = victim.stat()
    (project.instance / "app.db.db-smart.lock").hardlink_to(victim)
    (project.instance / f"{project.flag.name}.lock").hardlink_to(victim)
    project.write(V1)
    assert project.boot().decision == "migrated"
    after = victim.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_status_tells_a_history_that_may_not_be_read_from_a_database_that_cannot_be_reached(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    project = make_project(new_url("postgresql"))
    project.write(V1)
    project.boot()
    with role(make_url(project.url)) as url:
        project.url = url
        found = project.run("status", "--json")
        report = json.loads(found.stdout)
        assert (found.exit_code, report["state"], report["databases"][0]["state"]) == (1, "unreadable", "unreadable")
        assert "cannot be reached" not in found.output
        assert "the history of a database cannot be read by its user, boot will stop" in report["boot"]["reason"]
        with pytest.raises(HistoryUnreadable):
            project.boot()
