"""What ``op.batches()`` takes, as a type checker sees it and as it runs; mypy reads these calls too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from aurum_harmony.db_smart import Operations
from tests.harness.project import Project

_users = sa.table("users", sa.column("id", sa.Integer), sa.column("name", sa.String))
_SOURCES = {
    "a name": lambda: "users",
    "a table": lambda: _users,
    "one column": lambda: sa.select(_users.c.id),
    "two columns": lambda: sa.select(_users.c.id, _users.c.name).where(_users.c.name.is_not(None)),
    "typed columns": lambda: sa.select(sa.column("id", sa.Integer), sa.column("name", sa.String)).select_from(_users),
}


def columns_of_types(op: Operations) -> None:
    """Not run: mypy holds the hints to what the documents show."""

    @op.batches(sa.select(sa.column("id", sa.Integer), sa.column("name", sa.String)).select_from(_users))
    def two(rows: Sequence[sa.Row[Any]]) -> None:
        op.execute(_users.update(), [{"key": row.id} for row in rows])

    @op.batches(sa.select(_users))
    def whole(rows: Sequence[sa.Row[Any]]) -> None: ...

    @op.batches(_users)
    def table(rows: Sequence[sa.Row[Any]]) -> None: ...


@pytest.mark.parametrize("kind", _SOURCES)
def test_each_kind_of_source_gives_its_rows(sqlite_project: Project, kind: str) -> None:
    seen: list[int] = []
    sqlite_project.config["SOURCE"], sqlite_project.config["SEEN"] = _SOURCES[kind], seen
    sqlite_project.write(
        """
        @migration
        def read(op):
            op.create_table("users", Column("id", Integer, primary_key=True), Column("name", Text))
            op.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")

            @op.batches(current_app.config["SOURCE"]())
            def rows(rows):
                current_app.config["SEEN"].extend(row.id for row in rows)
        """
    )
    sqlite_project.boot()
    assert seen == [1, 2]


def test_a_union_is_refused_with_what_to_do(sqlite_project: Project) -> None:
    sqlite_project.write(
        """
        @migration
        def read(op):
            op.create_table("users", Column("id", Integer, primary_key=True))
            users = table("users", column("id"))
            op.batches(union_all(select(users.c.id), select(users.c.id)))(print)
        """
    )
    result = sqlite_project.run("migrate")
    assert result.exit_code == 1
    assert "op.batches() takes a table, or a SELECT from one table" in result.output
