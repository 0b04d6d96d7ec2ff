"""Attacks on op.widen_key(): whatever fails, no key is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.store.database import Database
from tests.harness import servers
from tests.harness.direct import operations
from tests.harness.drift import execute

KEYS = (
    "SELECT table_name, constraint_name, delete_rule FROM information_schema.referential_constraints "
    "WHERE constraint_schema = database() ORDER BY 1, 2"
)


def test_a_key_of_another_database_is_in_the_way(new_url: Callable[[str], URL], mariadb: URL) -> None:
    """That is said before; and where the server refuses the type, when the keys are dropped, they come back."""
    url = new_url("mariadb")
    execute(
        url,
        "CREATE TABLE parents (id INT AUTO_INCREMENT PRIMARY KEY, up INT, CONSTRAINT fk_up FOREIGN KEY (up) "
        "REFERENCES parents (id) ON DELETE SET NULL)",
        "CREATE TABLE toys (id INT PRIMARY KEY, parent_id INT, CONSTRAINT fk_parent FOREIGN KEY (parent_id) "
        "REFERENCES parents (id) ON DELETE CASCADE)",
        "INSERT INTO parents VALUES (1, NULL), (2, 1)",
        "INSERT INTO toys VALUES (1, 2)",
    )
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    before = servers.query(url, KEYS)
    with servers.new_database(mariadb) as other:
        name = url.database
        execute(
            other, f"CREATE TABLE far (id INT, CONSTRAINT fk_far FOREIGN KEY (id) REFERENCES `{name}`.parents (id))"
        )
        try:
            with pytest.raises(DbSmartError, match=r"leads from .*\.far\.id, .* changed"), operations(database) as op:
                op.widen_key("parents", online=False)
            assert servers.query(url, KEYS) == before
        finally:
            execute(other, "DROP TABLE far")
    execute(url, "INSERT INTO parents VALUES (40000, NULL)", "INSERT INTO toys VALUES (2, 40000)")
    with pytest.raises(sa.exc.DBAPIError), operations(database, destructive=True) as op:
        op.widen_key("parents", type_=sa.SmallInteger, online=False)
    assert servers.query(url, KEYS) == before
    execute(url, "DELETE FROM parents WHERE id = 40000", "ALTER TABLE parents AUTO_INCREMENT = 3")
    with operations(database) as op:
        op.widen_key("parents", online=False)
    assert servers.query(url, KEYS) == before
    types = "SELECT DISTINCT data_type FROM information_schema.columns WHERE table_schema = database() AND column_name"
    assert servers.query(url, f"{types} IN ('up', 'parent_id')") == [("bigint",)]
    execute(url, "INSERT INTO parents (up) VALUES (1)")
    assert servers.query(url, "SELECT id FROM parents ORDER BY id") == [(1,), (2,), (3,)]
