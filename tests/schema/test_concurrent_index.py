"""An index is built concurrently, which waits for every transaction there is, while others wait for the lock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from tests.harness.databases import connected
from tests.harness.processes import Start, line_with
from tests.harness.project import Project
from tests.harness.servers import wait_until

INDEX = """
@migration
def make_things(op):
    op.create_table("things", Column("id", Integer, primary_key=True), Column("name", String(20)))
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(20)))
"""
CONCURRENTLY = (
    INDEX
    + """
@migration(transactional=False)
def index_things(op):
    op.execute("CREATE INDEX CONCURRENTLY ix_things_name ON things (name)")
    op.execute("INSERT INTO effects (name) VALUES ('indexed')")
"""
)


@pytest.fixture(params=["postgresql", "pgbouncer"])
def url(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> URL:
    """An empty database on PostgreSQL, reached directly, or through PgBouncer in transaction mode."""
    return new_url(request.param)


def test_an_index_is_built_concurrently_while_others_wait(project: Project, start_child: Start) -> None:
    project.write(INDEX)
    project.boot()
    project.flag.unlink()
    project.write(CONCURRENTLY)
    with connected(project.url) as bystander:
        bystander.exec_driver_sql("INSERT INTO things (id, name) VALUES (1, 'x')")  # the index must wait for this
        children = [start_child(flag=f"flag{number}") for number in range(9)]
        holder = wait_until(
            lambda: project.query("SELECT holder FROM db_smart_state WHERE lease_migration = 'index_things'")
        )[0][0]
        for child in children:
            if not holder.endswith(f":{child.pid}"):
                line_with(child, "waiting for")
        query = "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
        wait_until(lambda: project.query(query))
        bystander.commit()
    decisions = []
    for child in children:
        output, error = child.communicate(timeout=60)
        assert child.returncode == 0, output + error
        decisions.append(output)
    assert decisions.count("migrated\n") == 1, decisions
    assert set(decisions) <= {"migrated\n", "verified\n", "skipped\n"}
    assert project.query("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_things_name'::regclass") == [(True,)]
    assert project.query("SELECT name FROM effects") == [("indexed",)]
