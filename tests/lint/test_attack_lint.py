"""``lint`` of migrations that are odd, many, or end the process; and a process that is interrupted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import processes
from tests.harness.alembic_project import AlembicProject
from tests.harness.project import Project
from tests.lint.samples import MAKE, linted, pending, rules, schemas

#: ``flask db-smart lint`` with its options, in a process of its own.
COMMAND = """
import sys
from flask import Flask
from flask.cli import FlaskGroup
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
sys.path.insert(0, sys.argv[1])
app = Flask("x", instance_path=sys.argv[1] + "/instance")
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[3]
DbSmart(app, SQLAlchemy(app), migrations=sys.argv[2])
FlaskGroup(create_app=lambda: app).main(["db-smart", "lint", *sys.argv[4:]])
"""


def command(project: Project, *options: str) -> list[str]:
    url = sa.make_url(project.url).render_as_string(hide_password=False)
    return [sys.executable, "-c", COMMAND, str(project.directory), project.module, url, *options]


BODIES = {
    "raise RuntimeError('broken')": "change would fail: RuntimeError: broken",
    "raise SystemExit(3)": "change would fail: it wanted to end the process (3)",
    "exit()": "change would fail: it wanted to end the process (None)",
    "op.execute(f'{nothing}')": "change would fail: NameError",
    "change(op)": "change would fail: RecursionError",
}


@pytest.mark.parametrize("body", BODIES)
def test_migrations_that_end(sqlite_project: Project, body: str) -> None:
    pending(sqlite_project, f"print('said')\n    {body}")
    found = linted(sqlite_project)
    (why,) = found["failing"]
    assert why.startswith(BODIES[body])


ODD = {
    "postgresql": (
        'op.execute("ALTER TABLE \\"sel\\"\\"ect%s\\" ADD COLUMN \\"größe;%(x)s\\" text DEFAULT \'a;%\'")',
        "op.create_index('ix\"%odd', 'sel\"ect%s', ['order'])",
        "op.add_column('sel\"ect%s', Column('table', Integer), schema='public')",
    ),
    "mysql": (
        'op.execute(\'ALTER TABLE `sel"ect%s` ADD COLUMN `größe;%(x)s` VARCHAR(9) DEFAULT "a;%"\')',
        "op.create_index('ix\"%odd', 'sel\"ect%s', ['order'])",
        "op.add_column('sel\"ect%s', Column('table', Integer))",
    ),
    "sqlite": (
        'op.execute("ALTER TABLE \\"sel\\"\\"ect%s\\" ADD COLUMN \\"größe;%(x)s\\" text DEFAULT \'a;%\'")',
        "op.create_index('ix\"%odd', 'sel\"ect%s', ['order'])",
        "op.add_column('sel\"ect%s', Column('table', Integer))",
    ),
}


def test_odd_names(project: Project) -> None:
    make = "\n@migration\ndef make(op: Operations):\n    op.create_table('sel\"ect%s', Column('id', Integer, "
    make += "primary_key=True), Column('order', Integer))\n"
    make += "    op.execute(table('sel\"ect%s', column('id')).insert(), {'id': 1})\n"
    project.write(make)
    project.boot()
    odd = ODD[project.dialect]
    project.write(f"{make}\n@migration\ndef change(op: Operations):\n    " + "\n    ".join(odd) + "\n")
    found = linted(project, "--trace")
    assert found["failing"] == found["notes"] == []
    assert [bool(one["rows"]) for one in found["statements"]] == [True] * len(odd)
    assert [one["error"] for one in found["traced"]] == [None] * len(found["traced"])
    assert len(found["traced"]) == len(odd)
    for options in ((), ("--sarif",), ("--trace",)):
        assert project.run("lint", *options).exit_code == 0
    assert project.boot().applied == ("change",)


def test_many_pending(sqlite_project: Project) -> None:
    sqlite_project.write(MAKE)
    sqlite_project.boot()
    body = "@migration\ndef m{0}(op: Operations):\n    op.add_column('orders', Column('c{0}', Integer))\n"
    more = "".join(body.format(number) for number in range(300))
    sqlite_project.write(f"{MAKE}\n{more}")
    found = linted(sqlite_project)
    assert len(found["migrations"]) == len(found["statements"]) == 300


def test_a_reader_that_has_enough(sqlite_project: Project) -> None:
    sqlite_project.write(MAKE)
    sqlite_project.boot()
    pending(sqlite_project, "op.execute('DROP TABLE orders')")
    for options in ((), ("--json",), ("--sarif",), ("--trace",)):
        line = f"set -o pipefail; {shlex.join(command(sqlite_project, *options))} | head -c 1"
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env=processes.environment(), timeout=60, check=False
        )
        assert (len(done.stdout), done.stderr) == (1, "")


def test_a_type_that_sqlalchemy_does_not_know(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    """Its warning is an error here, as with ``PYTHONWARNINGS=error``."""
    project = make_project(new_url("postgresql"))
    project.write(MAKE)
    project.boot()
    project.query("CREATE TYPE place AS (a int); CREATE TABLE at (id int PRIMARY KEY, place place)")
    assert rules(linted(project)) == []


def test_several_heads(make_project: Callable[..., Project], sqlite_url: URL) -> None:
    project = AlembicProject(make_project(sqlite_url).directory, "heads_of_lint", sqlite_url)
    project.init()
    for name in ("one", "two"):
        (project.alembic / "versions" / f"{name}.py").write_text(
            f"revision = '{name}'\ndown_revision = None\ndef upgrade(): pass\ndef downgrade(): pass\n", encoding="utf-8"
        )
    result = project.run("lint", "--trace")
    assert result.exit_code == 1
    assert "heads" in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_trace_leaves_nothing(project: Project, number: signal.Signals) -> None:
    if project.dialect == "sqlite":
        return  # whose copy is a file in the folder for such
    project.write(MAKE)
    project.boot()
    slow = {"postgresql": "CAST(pg_sleep(8) AS text)", "mysql": "SLEEP(8)"}[project.dialect]
    pending(project, f'op.execute("CREATE TABLE slow AS SELECT {slow} AS a")')
    at_it = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE TABLE slow%'",
        "mysql": "SELECT count(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'CREATE TABLE slow%'",
    }[project.dialect]
    process = subprocess.Popen(
        command(project, "--trace"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(),
    )
    with process:
        deadline = time.monotonic() + 90
        while project.query(at_it) == [(0,)]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        assert schemas(project) != []
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (130, 143), said
    assert schemas(project) == []
