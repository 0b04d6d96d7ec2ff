"""``flask db upgrade`` typed in the middle of a boot, and a boot in the middle of it: never both apply."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness import processes
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked
from tests.harness.processes import in_the_middle, line_with
from tests.harness.project import DIALECTS

#: The application of both: with db-smart where the environment says so, as the release before had none.
APP = """
import logging, os
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

logging.basicConfig(level=logging.INFO)
db = SQLAlchemy()


def create_app():
    app = Flask("club", instance_path={instance!r})
    app.config.update(SQLALCHEMY_DATABASE_URI={url!r}, DB_SMART_LEASE_SECONDS=1)
    db.init_app(app)
    Migrate(app, db, directory={directory!r})
    if "WITH" in os.environ:
        from aurum_harmony.db_smart import DbSmart
        smart = DbSmart(app, db, alembic=True)
        report = smart.boot(app)
        if report.decision != "off":
            print(report.decision, flush=True)
    return app
"""
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); import club; club.create_app()"
#: What a revision does: it stops where the process is told to, and the account shows how often it ran.
BODY = """
{first}
import os
if "GATE" in os.environ:
    print("in the middle", flush=True)
    open(os.environ["GATE"]).close()
{second}
"""
DATA = 'op.execute("UPDATE accounts SET balance = balance * 2")'
DDL = 'op.add_column("accounts", sa.Column("currency", sa.String(3)))'
KINDS = {"data": (DATA, "pass"), "data, then schema": (DATA, DDL), "schema, then data": (DDL, DATA)}

#: What is safe beside a process without db-smart. Where each schema change commits, it also commits the data change
#: before it, whoever is quicker.
ALONE = [(name, kind) for name in DIALECTS for kind in KINDS if name != "mariadb" or not kind.startswith("data,")]


class Club:
    """An application as files, and its processes."""

    def __init__(self, project: AlembicProject) -> None:
        self.project = project
        url = make_url(project.url).render_as_string(hide_password=False)
        values = {"instance": str(project.instance), "url": url, "directory": str(project.alembic)}
        (project.directory / "club.py").write_text(APP.format(**values), encoding="utf-8")
        self.gate = project.directory / "gate"
        os.mkfifo(self.gate)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, gate: bool = False, alone: bool = False) -> subprocess.Popen[str]:
        """Start a process.

        :param gate: whether it stops in the middle of the revision.
        :param alone: whether it has no db-smart.
        """
        environment = processes.environment(
            **({} if alone else {"WITH": "1"}), **({"GATE": str(self.gate)} if gate else {})
        )
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.project.directory,
            env=environment,
        )
        self.started.append(process)
        return process

    def boot(self, *, gate: bool = False) -> subprocess.Popen[str]:
        return self.start("-c", BOOT, str(self.project.directory), gate=gate)

    def flask(self, *arguments: str, gate: bool = False, alone: bool = False) -> subprocess.Popen[str]:
        return self.start("-m", "flask", "--app", "club", *arguments, gate=gate, alone=alone)

    def open_gate(self) -> None:
        with open(self.gate, "w"):
            pass

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()

    def check(self) -> None:
        """The revision was applied once, and the next boot finds nothing to do."""
        assert self.project.heads() == {"b2"}
        assert self.project.query("SELECT balance FROM accounts") == [(200,)]
        boot = self.boot()
        assert boot.wait(30) == 0
        assert boot.stdout is not None
        assert boot.stdout.read() in ("verified\n", "skipped\n")
        assert self.project.query("SELECT balance FROM accounts") == [(200,)]
        names = [name for name, outcome in self.project.history() if outcome == "applied"]
        assert sorted(names) == ["a1", "b2"]


@pytest.fixture(params=DIALECTS)
def club(
    request: pytest.FixtureRequest, make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> Iterator[Club]:
    project = make_alembic(new_url(request.param))
    columns = 'sa.Column("id", sa.Integer, primary_key=True), sa.Column("balance", sa.Integer)'
    rows = 'op.execute("INSERT INTO accounts VALUES (1, 100)")'
    project.revision("a1", None, f'op.create_table("accounts", {columns})\n{rows}')
    club = Club(project)
    assert club.boot().wait(30) == 0
    yield club
    club.end()


def revision(club: Club, kind: str) -> None:
    first, second = KINDS[kind]
    club.project.revision("b2", "a1", BODY.format(first=first, second=second))


def output(process: subprocess.Popen[str]) -> str:
    return "".join(process.communicate(timeout=60))


def test_a_command_in_the_middle_of_a_boot_waits(club: Club) -> None:
    revision(club, "data, then schema")
    boot = club.boot(gate=True)
    in_the_middle(boot)
    command = club.flask("db", "upgrade")
    line_with(command, "waiting for")
    club.open_gate()
    said = output(boot)
    assert "migrated" in said
    assert "Running upgrade a1 -> b2" in said
    assert "Logging error" not in said
    assert command.wait(30) == 0
    club.check()


def test_a_boot_in_the_middle_of_a_command_waits(club: Club) -> None:
    revision(club, "data, then schema")
    command = club.flask("db", "upgrade", gate=True)
    in_the_middle(command)
    boot = club.boot()
    line_with(boot, "waiting for")
    club.open_gate()
    assert command.wait(30) == 0
    assert boot.wait(30) == 0
    club.check()


def test_a_boot_in_the_middle_of_the_first_revision_of_a_command_waits(
    make_alembic: Callable[..., AlembicProject], url: URL
) -> None:
    """Where each schema change commits, there are tables of the models then, and an empty version table."""
    project = make_alembic(url)
    body = 'op.create_table("accounts", sa.Column("id", sa.Integer, primary_key=True))'
    project.revision("a1", None, BODY.format(first=body, second="pass"))
    club = Club(project)
    with open(project.directory / "club.py", "a", encoding="utf-8") as file:
        file.write('db.Table("accounts", db.Column("id", db.Integer, primary_key=True))\n')
    try:
        command = club.flask("db", "upgrade", gate=True)
        in_the_middle(command)
        boot = club.boot()
        line_with(boot, "waiting for")
        club.open_gate()
        assert command.wait(30) == 0
        assert boot.wait(30) == 0
        assert project.heads() == {"a1"}
    finally:
        club.end()


#: Stops the process that has the signal's name in its environment.
STOPS = """
import os, signal
if "STOPS" in os.environ:
    os.kill(os.getpid(), signal.SIGSTOP)
op.execute("UPDATE accounts SET balance = balance * 2")
"""


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_stopped_process_is_not_waited_for_without_end(
    make_alembic: Callable[..., AlembicProject],
    new_url: Callable[[str], URL],
    dialect: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lease has run out, but its transaction still holds the row of the version table."""
    project = make_alembic(new_url(dialect))
    columns = 'sa.Column("id", sa.Integer, primary_key=True), sa.Column("balance", sa.Integer)'
    project.revision(
        "a1", None, f'op.create_table("accounts", {columns})\nop.execute("INSERT INTO accounts VALUES (1, 9)")'
    )
    project.boot()
    project.revision("b2", "a1", STOPS)
    project.config.update(DB_SMART_LEASE_SECONDS=0.5, DB_SMART_DDL_LOCK_TIMEOUT=0.2, DB_SMART_DDL_RETRIES=1)
    monkeypatch.setenv("STOPS", "1")
    stopped = forked(lambda: project.boot(DB_SMART_FLAG="elsewhere"))
    os.waitpid(stopped, os.WUNTRACED)
    monkeypatch.delenv("STOPS")
    with pytest.raises(MigrationFailed, match=r"'b2' failed .* lock timeout"):
        project.boot()
    os.kill(stopped, signal.SIGCONT)
    assert ended(stopped) != 0  # it has lost its lease
    assert project.boot().applied == ("b2",)
    assert project.query("SELECT balance FROM accounts") == [(18,)]


@pytest.mark.slow
@pytest.mark.parametrize(("club", "kind"), ALONE, indirect=["club"])
def test_a_release_without_db_smart_in_the_middle_of_a_boot(club: Club, kind: str) -> None:
    """It knows no lock, but each locks the row of the version table, so that the second one takes back what it did."""
    revision(club, kind)
    boot = club.boot(gate=True)
    in_the_middle(boot)
    other = club.flask("db", "upgrade", alone=True)
    with suppress(subprocess.TimeoutExpired):  # it waits for our transaction, or fails
        other.wait(3)
    club.open_gate()
    said = output(boot), output(other)
    assert boot.returncode == 0, said
    club.check()


@pytest.mark.slow
@pytest.mark.parametrize(("club", "kind"), ALONE, indirect=["club"])
def test_a_boot_in_the_middle_of_a_release_without_db_smart(club: Club, kind: str) -> None:
    revision(club, kind)
    other = club.flask("db", "upgrade", alone=True, gate=True)
    in_the_middle(other)
    boot = club.boot()
    with suppress(subprocess.TimeoutExpired):
        boot.wait(3)
    club.open_gate()
    said = output(other), output(boot)
    assert 0 in (other.returncode, boot.returncode), said
    club.check()
