"""An operation that is edited after a failure is done, not passed by as the one that was done before the failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, Computed, Identity, Index, Integer, String, column, func, text
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.operations import _spelled
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations

PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "text": (lambda: text("1"), lambda: text("2")),
    "expression": (lambda: column("a") > 1, lambda: column("a") > 2),
    "function": (lambda: func.now(), lambda: func.localtime()),
    "default": (
        lambda: Column("c", Integer, server_default=text("1")),
        lambda: Column("c", Integer, server_default=text("2")),
    ),
    "computed": (lambda: Column("c", Integer, Computed("a + 1")), lambda: Column("c", Integer, Computed("a + 2"))),
    "persisted": (
        lambda: Column("c", Integer, Computed("a", persisted=True)),
        lambda: Column("c", Integer, Computed("a", persisted=False)),
    ),
    "identity": (
        lambda: Column("c", Integer, Identity(start=1)),
        lambda: Column("c", Integer, Identity(start=2)),
    ),
    "check": (
        lambda: Column("c", Integer, CheckConstraint(text("c > 1"))),
        lambda: Column("c", Integer, CheckConstraint(text("c > 2"))),
    ),
    "index": (lambda: Column("c", Integer, index=True), lambda: Column("c", Integer)),
    "unique": (lambda: Column("c", Integer, unique=True), lambda: Column("c", Integer)),
    "type": (lambda: Column("c", String(1)), lambda: Column("c", String(2))),
    "options": (lambda: {"postgresql_where": text("a > 1")}, lambda: {"postgresql_where": text("a > 2")}),
    "expression of an index": (lambda: Index("i", text("lower(a)")), lambda: Index("i", text("upper(a)"))),
    "table": (
        lambda: sa.Table("t", sa.MetaData(), Column("a", Integer, server_default=text("1"))),
        lambda: sa.Table("t", sa.MetaData(), Column("a", Integer, server_default=text("2"))),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_arguments_are_told_apart_by_what_they_say(pair: str) -> None:
    one, other = PAIRS[pair]
    assert _spelled(one()) == _spelled(one()) != _spelled(other())
    assert _spelled(other()) == _spelled(other())


def test_an_edit_after_a_failure_is_done(url: URL) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (id int, n int)"))
        connection.execute(text("INSERT INTO t VALUES (1, 1)"))

    def run(default: str, fails: bool) -> None:
        with operations(database) as op:
            op.alter_column("t", "n", server_default=text(default))
            op.create_index("i", "t", ["n"])
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        run("1", True)
    run("2", False)
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO t (id) VALUES (2)"))
        assert connection.scalar(text("SELECT n FROM t WHERE id = 2")) == 2
