"""A dry run closes what it opens, also its copy of a SQLite database in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.harness.project import Project
from tests.samples import V1


@pytest.fixture
def open_connections() -> Iterator[set[int]]:
    """The numbers of the driver's connections that any pool has opened and not closed again."""
    found: dict[int, object] = {}  # the connections are kept, as the number of one that is gone may come again

    def opened(connection: object, _: object) -> None:
        numbers.add(id(connection))
        found[id(connection)] = connection

    def closed(connection: object, _: object) -> None:
        numbers.discard(id(connection))

    numbers: set[int] = set()
    sa.event.listen(sa.pool.Pool, "connect", opened)
    sa.event.listen(sa.pool.Pool, "close", closed)
    yield numbers
    sa.event.remove(sa.pool.Pool, "connect", opened)
    sa.event.remove(sa.pool.Pool, "close", closed)


@pytest.mark.parametrize("option", ["--dry-run", "--sql"])
@pytest.mark.parametrize("state", ["new", "there", "failing"])
def test_a_dry_run_leaves_no_connection_open(
    sqlite_project: Project, open_connections: set[int], state: str, option: str
) -> None:
    sqlite_project.write(V1)
    if state != "new":
        sqlite_project.boot()
    if state == "failing":
        sqlite_project.write(V1 + "\n@migration\ndef broken(op):\n    raise RuntimeError('no')\n")
    result = sqlite_project.run("migrate", option)
    assert "Traceback" not in result.output
    assert open_connections == set()
