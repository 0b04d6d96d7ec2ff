"""``flask db-smart new --from-models`` on a terminal: whether something was renamed is asked, and never guessed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

from tests.harness.drift import DIALECTS, found
from tests.harness.processes import ROOT
from tests.harness.project import Project
from tests.harness.round_trip import FIRST, HEADER

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
APPLICATION = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart
from tests.drift.test_new_asks import models


def create_app():
    app = Flask(__name__, instance_path={directory!r})
    app.config["SQLALCHEMY_DATABASE_URI"] = {url!r}
    db = SQLAlchemy()
    models({tables!r}, db)
    db.init_app(app)
    DbSmart(app, db, migrations={module!r})
    return app
"""


def models(tables: dict[str, list[str]], db: SQLAlchemy) -> None:
    """Tables of texts, by the names of their columns."""
    for name, columns in tables.items():
        texts = (sa.Column(column, sa.String(20)) for column in columns)
        db.Table(name, sa.Column("id", sa.Integer, primary_key=True), *texts)


def answered(project: Project, tables: dict[str, list[str]], *answers: str) -> list[str]:
    """What is asked on a terminal by ``new --from-models``, with an answer to each question."""
    url = make_url(project.url)
    source = APPLICATION.format(
        directory=str(project.instance),
        url=url.render_as_string(hide_password=False),
        tables=tables,
        module=project.module,
    )
    (project.directory / "asked_app.py").write_text(source)
    ours, theirs = pty.openpty()
    paths = os.pathsep.join([str(ROOT), str(project.directory)])
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "asked_app", "db-smart", "new", "more", "--from-models"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=project.directory,
        env={**os.environ, "PYTHONPATH": paths, "TERM": "xterm"},
    )
    os.close(theirs)
    shown, left = b"", [*answers]
    with suppress(OSError):  # the other side is closed
        while part := os.read(ours, 4096):
            shown += part
            if shown.endswith(b"[y/N]: ") and left:
                os.write(ours, left.pop(0).encode() + b"\n")
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    assert left == []
    return [line.partition(" [y/N]")[0] for line in shown.decode().splitlines() if "[y/N]" in line]


@pytest.fixture(params=DIALECTS)
def project(request: pytest.FixtureRequest, make_project: Make, new_url: NewUrl) -> Project:
    """With a table of clients, and a row in it."""
    project = make_project(new_url(request.param))
    project.write(FIRST, header=HEADER)
    project.models = partial(models, {"clients": ["mail", "name"]})
    project.boot()
    project.query("INSERT INTO clients (id, mail) VALUES (1, 'ann@example.org')")
    return project


def test_a_table_that_was_renamed(project: Project) -> None:
    tables = {"customers": ["name", "mail"]}
    assert answered(project, tables, "y") == ["Was clients renamed to customers?"]
    text = project.file.read_text()
    assert '    op.rename_table("clients", "customers")\n' in text
    assert "create_table" not in text
    project.models = partial(models, tables)
    project.boot()
    assert project.query("SELECT mail FROM customers") == [("ann@example.org",)]
    assert found(project) == []


def test_a_table_that_was_not(project: Project) -> None:
    assert answered(project, {"customers": ["name", "mail"]}, "n") == ["Was clients renamed to customers?"]
    text = project.file.read_text()
    assert "rename_table" not in text
    assert '    op.create_table(\n        "customers",\n' in text
    assert '    # op.drop_table("clients")\n' in text


def test_one_of_two_tables(project: Project) -> None:
    """One that was renamed is not offered for another one; one with other columns never is."""
    project.query("CREATE TABLE people (id INTEGER PRIMARY KEY, mail VARCHAR(20), name VARCHAR(20))")
    tables = {"buyers": ["mail", "name"], "customers": ["mail", "name"], "friends": ["mail"], "names": ["mail", "nick"]}
    assert answered(project, tables, "n", "y", "n") == [
        "Was clients renamed to buyers?",
        "Was clients renamed to customers?",
        "Was people renamed to buyers?",
    ]
    text = project.file.read_text()
    assert text.count("rename_table") == 1
    assert 'op.rename_table("clients", "customers")' in text


def test_a_column_too(project: Project) -> None:
    asked = answered(project, {"clients": ["address", "name"]}, "y")
    assert asked == ["Was clients.mail renamed to clients.address?"]
    assert 'op.alter_column("clients", "mail", new_column_name="address")' in project.file.read_text()


def test_where_nobody_can_answer(project: Project) -> None:
    """The option is told, with which it is renamed."""
    project.models = partial(models, {"customers": ["mail", "name"]})
    result = project.run("new", "more", "--from-models")
    assert result.exit_code == 0, result.output
    assert "clients goes and customers comes, with the same columns." in result.stderr
    assert "--rename clients=customers." in result.stderr
    assert "rename_table" not in project.file.read_text()
