"""What an interrupted ``CONCURRENTLY`` of a revision leaves behind on PostgreSQL is gone after the next boot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked
from tests.harness.databases import connected
from tests.harness.servers import wait_until

THINGS = """
things = op.create_table("things", sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer))
op.execute("INSERT INTO things VALUES (1, 1), (2, 2)")
op.execute("ALTER TABLE things ADD COLUMN long text")
op.create_index("ix_id", "things", ["id"])
"""
BODY = """
op.execute("UPDATE things SET n = n + 1")
with op.get_context().autocommit_block():
    {sql}
op.execute("UPDATE things SET n = n + 10")
"""


class Case(NamedTuple):
    """A statement, and the indexes that it leaves beside the two that are there."""

    sql: str
    made: tuple[str, ...] = ("ix_id",)


CASES = {
    "named": Case('op.create_index("ix_n", "things", ["n"], postgresql_concurrently=True)', ("ix_id", "ix_n")),
    "if not exists": Case(
        'op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_n ON things (n)")', ("ix_id", "ix_n")
    ),
    "unique": Case('op.execute("CREATE UNIQUE INDEX CONCURRENTLY ix_n ON public.things (n)")', ("ix_id", "ix_n")),
    "unnamed": Case('op.execute("CREATE INDEX CONCURRENTLY ON things (n)")', ("ix_id", "things_n_idx")),
    "unnamed, with comments": Case(
        'op.execute("-- an index\\n/* of n */ CREATE INDEX CONCURRENTLY ON public.things (n, id)")',
        ("ix_id", "things_n_id_idx"),
    ),
    "reindex": Case('op.execute("REINDEX INDEX CONCURRENTLY ix_id")'),
    "reindex table": Case('op.execute("REINDEX (VERBOSE) TABLE CONCURRENTLY things")'),
    "reindex by option": Case('op.execute("REINDEX (CONCURRENTLY) TABLE things")'),
    "drop": Case('op.drop_index("ix_id", "things", postgresql_concurrently=True)', ()),
}
#: Names of the session that is at such a statement and waits for an older transaction.
WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'CONCURRENTLY' "
    "AND state = 'active' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
)


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def project(make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], case: Case) -> AlembicProject:
    project = make_alembic(new_url("postgresql"), {"DB_SMART_LEASE_SECONDS": 0.3})
    project.revision("a1", None, THINGS)
    project.boot()
    project.revision("b2", "a1", BODY.format(sql=case.sql))
    return project


def boot(project: AlembicProject) -> None:
    app, smart = project.app()
    smart.boot(app)


def check(project: AlembicProject, case: Case) -> None:
    """Each effect is there once, and each index is valid."""
    query = "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid WHERE {} ORDER BY 1"
    found = project.query(query.format("indrelid = 'things'::regclass"))
    assert found == sorted((name, True) for name in (*case.made, "things_pkey"))
    assert project.query(query.format("NOT indisvalid")) == []
    assert project.query("SELECT n FROM things ORDER BY id") == [(12,), (13,)]
    assert project.query("SELECT * FROM db_smart_progress") == []
    assert project.heads() == {"b2"}


@pytest.mark.parametrize("goes_on", [False, True])
def test_killed_in_the_middle(project: AlembicProject, case: Case, goes_on: bool) -> None:
    """The process is killed, and its session of the server is ended too, or goes on to the end without its client."""
    with connected(project.url) as bystander:
        bystander.exec_driver_sql("LOCK TABLE things IN ROW EXCLUSIVE MODE")
        child = forked(boot, project)
        (pid,) = wait_until(lambda: project.query(WAITING), seconds=10)[0]
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        if not goes_on:
            project.query("SELECT pg_terminate_backend(:pid)", pid=pid)
            wait_until(lambda: not project.query(WAITING))
        bystander.rollback()
    if goes_on:
        wait_until(
            lambda: not project.query("SELECT 1 FROM pg_stat_activity WHERE pid = :pid AND state <> 'idle'", pid=pid)
        )
    assert project.boot().applied == ("b2",)
    check(project, case)


def test_refused_in_the_middle(project: AlembicProject, case: Case) -> None:
    """An administrator cancels it; the next boot begins it anew."""
    with connected(project.url) as bystander:
        bystander.exec_driver_sql("LOCK TABLE things IN ROW EXCLUSIVE MODE")
        child = forked(boot, project)
        (pid,) = wait_until(lambda: project.query(WAITING), seconds=10)[0]
        project.query("SELECT pg_cancel_backend(:pid)", pid=pid)
        assert ended(child) != 0
        bystander.rollback()
    assert project.history()[-1] == ("b2", "failed")
    assert project.boot().applied == ("b2",)
    check(project, case)


def test_a_boot_while_the_session_of_a_killed_one_is_still_at_it(project: AlembicProject, case: Case) -> None:
    with connected(project.url) as bystander:
        bystander.exec_driver_sql("LOCK TABLE things IN ROW EXCLUSIVE MODE")
        child = forked(boot, project)
        wait_until(lambda: project.query(WAITING), seconds=10)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        second = forked(boot, project)
        wait_until(lambda: project.query("SELECT 1 FROM db_smart_state WHERE holder LIKE :pid", pid=f"%:{second}"))
        bystander.rollback()
    assert ended(second) == 0
    check(project, case)


def test_what_fails_in_an_autocommit_block_is_named(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    """And not what fails after it because of that. The connection of env.py goes back to its pool."""
    project = make_alembic(new_url("postgresql"))
    project.revision("a1", None, THINGS)
    sql = 'op.create_foreign_key("fk_n", "things", "things", ["long"], ["id"])'
    project.revision("b2", "a1", BODY.format(sql=sql))
    app, smart = project.app()
    with pytest.raises(MigrationFailed, match=r"incompatible types(.|\n)*Statement: ALTER TABLE things ADD CONSTRAINT"):
        smart.boot(app)
    with app.app_context():
        pool: Any = app.extensions["sqlalchemy"].engine.pool
        assert pool.checkedout() == 0
    project.dispose(app)
