"""A node of a Galera cluster fails, or is cut off, while its client boots."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import DbSmartError
from tests.harness import servers
from tests.harness.processes import in_the_middle
from tests.harness.project import Project
from tests.harness.servers import GaleraCluster, MariadbServer, wait_until

MIGRATIONS = """
@migration
def make_effects(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(20)))

@migration
def mixed(op):
    op.execute("INSERT INTO effects (name) VALUES ('before')")
    op.add_column("effects", Column("a", Integer))
    op.execute("INSERT INTO effects (name) VALUES ('between')")
    import os
    if os.environ.get("GATE"):
        print("in the middle", flush=True)
        with open(os.environ["GATE"]) as gate:
            gate.read()
    op.add_column("effects", Column("b", Integer))
    op.execute("INSERT INTO effects (name) VALUES ('after')")
"""


pytestmark = pytest.mark.slow


@pytest.fixture
def url(new_url: Callable[[str], URL]) -> URL:
    """A database of the cluster, by its last node."""
    return new_url("galera")


@pytest.fixture
def isolated(galera: GaleraCluster) -> Iterator[MariadbServer]:
    """The first node, cut off from the others, so that it may not answer."""
    node = galera.nodes[0]
    dirty = node.url.update_query_dict({"init_command": "SET wsrep_dirty_reads = ON"})  # it refuses all else

    def lonely() -> bool:
        return ("wsrep_cluster_status", "non-Primary") in servers.query(
            dirty, "SHOW STATUS LIKE 'wsrep_cluster_status'"
        )

    servers.query(node.url, "SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'")
    try:
        wait_until(lonely, "the node still believes in its cluster")
        yield node
    finally:
        servers.query(dirty, "SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'")


def test_a_killed_node_fails_its_client_and_another_node_goes_on(
    galera: GaleraCluster, project: Project, start_child: Callable[..., subprocess.Popen[str]], gate: Path
) -> None:
    project.write(MIGRATIONS)
    assert isinstance(project.url, URL)
    another, project.url = project.url, project.url.set(port=galera.nodes[0].port)
    child = start_child(gate)
    in_the_middle(child)
    galera.nodes[0].kill()
    gate.write_text("")
    output, error = child.communicate(timeout=60)
    assert child.returncode == 1, output + error
    assert "Traceback" not in output + error
    assert output.startswith("Migration 'mixed' failed on the database 'default'"), output
    assert "start again" in output
    project.url = another
    assert project.boot(DB_SMART_LOCK_TIMEOUT=120).applied == ("mixed",)
    assert project.query("SELECT name, count(*) FROM effects GROUP BY name ORDER BY name") == [
        ("after", 1),
        ("before", 1),
        ("between", 1),
    ]
    assert {"a", "b"} <= project.columns("effects")


def test_a_node_that_is_cut_off_is_one_clear_message(project: Project, isolated: MariadbServer) -> None:
    project.write(MIGRATIONS)
    assert isinstance(project.url, URL)
    project.url = project.url.set(port=isolated.port)
    with pytest.raises(DbSmartError, match="WSREP has not yet prepared node") as found:
        project.boot()
    assert "Nothing was changed" in found.value.message
