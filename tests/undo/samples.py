"""What tests of undo begin with, and how they look at a database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tests.harness.facts import facts
from tests.harness.project import Project

BASE = """
@migration
def base(op):
    op.create_table(
        "users", Column("id", Integer, primary_key=True), Column("name", String(20), nullable=False),
        Column("city", String(20), server_default="Bonn"), Column("note", Text), Column("points", Integer),
    )
    op.create_table("teams", Column("id", Integer, primary_key=True), Column("title", String(30)))
    op.create_index("ix_users_city", "users", ["city"])
    op.execute("INSERT INTO users (id, name, note) VALUES (1, 'a', 'n1'), (2, 'b', NULL)")
    op.execute("INSERT INTO teams (id, title) VALUES (1, 'red')")
"""


def described(project: Project) -> dict[str, Any]:
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        found = facts(connection)
        found["views"] = sorted(sa.inspect(connection).get_view_names())  # type: ignore[assignment]
    return dict(found)


def archives(project: Project) -> list[str]:
    return sorted(name for name in project.tables() if name.startswith("db_smart_archive_"))


def apply(project: Project, change: str, *, more: str = "destructive=True") -> None:
    """Boot with the base, and then with one more migration."""
    project.write(BASE)
    project.boot()
    project.write(BASE + f"\n@migration({more})\ndef change(op):\n    {change}\n")


def refusal(result: Any) -> str:
    """What a command said that refused, in one line."""
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())
