"""A refusal prints the migration to write instead, with the user's own names; and that migration works."""

from __future__ import annotations

import re
import textwrap

import pytest

from aurum_harmony.db_smart import MigrationFailed
from tests.harness.project import HEADER, Project

MAKE = """
@migration
def make(op: Operations):
    op.create_table(
        "users",
        Column("id", Integer, primary_key=True),
        Column("name", String(40), nullable=False),
        Column("city", String(20)),
        Column("number", Integer),
        UniqueConstraint("name", name="uq_users_name"),
    )
    op.create_table("notes", Column("id", Integer, primary_key=True))
    rows = [{"id": number, "name": str(number)} for number in range(1, 201)]
    op.execute("INSERT INTO users (id, name, city, number) VALUES (:id, :name, 'Pune', :id)", rows)
    op.execute("INSERT INTO notes VALUES (1)")
"""
#: Body of a migration that is refused -> the rule, a query, and its answer once the migration instead has run.
REFUSED = {
    'op.drop_column("users", "name")': ("DS101", "SELECT count(*) FROM users", 200),
    'op.drop_column("users", "city")': ("DS101", "SELECT count(*) FROM users", 200),
    'op.drop_table("notes")': ("DS102", "SELECT count(*) FROM users", 200),
    'op.alter_column("users", "name", new_column_name="full_name")': (
        "DS103",
        "SELECT count(*) FROM users WHERE full_name = name",
        200,
    ),
    'op.alter_column("users", "city", type_=String(5))': (
        "DS105",
        "SELECT count(*) FROM users WHERE new_city = 'Pune'",
        200,
    ),
    'op.drop_constraint("uq_users_name", "users")': ("DS106", "SELECT count(*) FROM users", 200),
    'op.add_column("users", Column("state", String(20), nullable=False))': (
        "DS203",
        "SELECT count(*) FROM users WHERE state = '…'",
        200,
    ),
    "op.execute(\"UPDATE users SET city = 'Goa', number = number + 1 WHERE city <> 'Goa'\")": (
        "DS301",
        "SELECT count(*) FROM users WHERE city = 'Goa' AND number = id + 1",
        200,
    ),
    'op.execute("DELETE FROM users WHERE number > 100")': ("DS301", "SELECT count(*) FROM users", 100),
}


@pytest.mark.parametrize("body", REFUSED)
def test_the_migration_instead_works(project: Project, body: str) -> None:
    rule, query, answer = REFUSED[body]
    header = f"{HEADER}import sqlalchemy as sa\nfrom sqlalchemy import UniqueConstraint\n"
    project.config["DB_SMART_STATEMENT_ROWS"] = 50
    project.write(MAKE, header=header)
    project.boot()
    source = f"{MAKE}\n@migration\ndef change(op: Operations):\n    {body}\n"
    project.write(source, header=header)
    with pytest.raises(MigrationFailed) as caught:
        project.boot()
    assert f"{rule} " in caught.value.message
    found = re.search(r"\n  Instead:\n\n(.*)\Z", caught.value.message, re.DOTALL)
    assert found is not None
    instead = textwrap.dedent(found[1]).strip()
    assert textwrap.indent(instead, " " * 8) in project.run("migrate", "--dry-run").output
    project.write(f"{MAKE}\n\n{instead}\n", header=header)
    names = re.findall(r"^def (\w+)", instead, re.MULTILINE)
    assert names[-1] == "change"
    assert project.boot().applied == tuple(names)
    assert project.query(query) == [(answer,)]
