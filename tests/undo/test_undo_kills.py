"""Runs that are killed at each statement are taken back whole; and an undo that is killed is finished by the next."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.harness.crash import counted, ended, forked
from tests.harness.project import Project
from tests.undo.samples import BASE, archives, described

CHANGE = """
@migration(destructive=True)
def change(op):
    op.create_table("notes", Column("id", Integer, primary_key=True), Column("t", String(5)))
    op.add_columns("users", Column("age", Integer, server_default="7", index=True), Column("mail", String(9)))
    op.create_index("ix_name", "users", ["name"])
    op.alter_column("users", "note", new_column_name="remark")
    op.rename_table("teams", "groups")
    op.alter_column("users", "name", nullable=True, server_default="x")
    op.view("v", "SELECT id FROM users")
"""
VALUES = (
    "UPDATE users SET age = 30, mail = 'x' WHERE id = 1",
    "INSERT INTO notes (id, t) VALUES (1, 'a'), (2, 'b')",
)
CONFIG = {"DB_SMART_SNAPSHOTS": 0, "DB_SMART_LEASE_SECONDS": 0.2}


def boot(project: Project, die_before: int) -> None:
    with counted(die_before):
        project.boot(**CONFIG)


def undo(project: Project, die_before: int, *options: str) -> None:
    with counted(die_before):
        result = project.run("undo", "change", "--yes", *options, **CONFIG)
    assert result.exit_code == 0, result.output


def ready(project: Project) -> dict[str, Any]:
    """Boot with the base, and write the change; the database as it is before that."""
    project.write(BASE)
    project.boot(**CONFIG)
    project.write(BASE + CHANGE)
    return described(project)


def without_archives(project: Project) -> dict[str, Any]:
    return {name: kinds for name, kinds in described(project).items() if not name.startswith("db_smart_archive_")}


@pytest.mark.slow
def test_a_migration_that_was_killed_anywhere_is_taken_back(project: Project) -> None:
    before = ready(project)
    for number in range(1, 500):
        killed = ended(forked(boot, project, number)) == -signal.SIGKILL
        project.boot(**CONFIG)
        assert ended(forked(undo, project, 0, "--discard")) == 0
        assert described(project) == before, f"killed before statement {number}"
        if not killed:
            break
    assert number > 20


@pytest.mark.slow
def test_an_undo_that_was_killed_anywhere_goes_on(project: Project) -> None:
    before = ready(project)
    for number in range(1, 500):
        project.boot(**CONFIG)
        for statement in VALUES:
            project.query(statement)
        killed = ended(forked(undo, project, number, "--archive")) == -signal.SIGKILL
        if project.history()[-1] != ("change", "taken back"):
            assert project.history()[-1] == ("change", "applied")
            assert ended(forked(undo, project, 0, "--archive")) == 0
        assert project.history()[-1] == ("change", "taken back")
        assert without_archives(project) == before, f"killed before statement {number}"
        kept = sorted(str(sorted(project.query(f"SELECT * FROM {name}"))) for name in archives(project))
        assert kept == ["[(1, 'a'), (2, 'b')]", "[(1, 'x')]", "[(1, 30)]"], f"killed before statement {number}"
        for name in archives(project):
            project.query(f"DROP TABLE {name}")
        assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]
        if not killed:
            break
    assert number > 10
