"""What a dry run foretells is what the run then does, and the script gives the same tables.

Each operation has a table of its own, which is empty, has rows, or has rows that are in the way. All are foretold at
once; what fails in the run is set aside, so that the run can go on.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness.clients import run_client
from tests.harness.facts import facts
from tests.harness.project import DIALECTS, Project

#: What a migration does to its table ``T`` by name; those beginning with ``ask`` without ``destructive``.
STEPS = {
    "column": 'op.add_column(T, Column("x", Integer))',
    "column_there": 'op.add_column(T, Column("n", Integer))',
    "column_without_value": 'op.add_column(T, Column("x", Integer, nullable=False))',
    "column_default": 'op.add_column(T, Column("x", String(9), server_default="it\'s", nullable=False))',
    "column_volatile": 'op.add_column(T, Column("x", Float, server_default=func.random(), nullable=False))',
    "column_unique": 'op.add_column(T, Column("x", Integer, unique=True))',
    "column_unique_default": 'op.add_column(T, Column("x", Integer, server_default="1", unique=True))',
    "column_key": 'op.add_column(T, Column("x", Integer, ForeignKey("teams.id")))',
    "column_key_default": 'op.add_column(T, Column("x", Integer, ForeignKey("teams.id"), server_default="77"))',
    "column_check": 'op.add_column(T, Column("x", Integer, CheckConstraint("x > 0", name="ck_x_" + T)))',
    "column_identity": 'op.add_column(T, Column("x", Integer, Identity()))',
    "column_computed": 'op.add_column(T, Column("x", Integer, Computed("n + 1", persisted=True)))',
    "index": 'op.create_index("ix_" + T, T, ["n"])',
    "index_unique": 'op.create_index("ix_" + T, T, ["name"], unique=True)',
    "index_unknown": 'op.create_index("ix_" + T, T, ["nothing"])',
    "index_expression": 'op.create_index("ix_" + T, T, [text("(n + 1)")])',
    "unique": 'op.create_unique_constraint("uq_" + T, T, ["name"])',
    "unique_plain": 'op.create_unique_constraint("uq_" + T, T, ["name"], online=False)',
    "check": 'op.create_check_constraint("ck_" + T, T, "n > 0")',
    "check_plain": 'op.create_check_constraint("ck_" + T, T, "n > 0", online=False)',
    "key": 'op.create_foreign_key("fk_" + T, T, "teams", ["team"], ["id"])',
    "key_plain": 'op.create_foreign_key("fk_" + T, T, "teams", ["team"], ["id"], online=False)',
    "key_unknown": 'op.create_foreign_key("fk_" + T, T, "nothing", ["team"], ["id"])',
    "not_null": 'op.alter_column(T, "n", nullable=False)',
    "not_null_plain": 'op.alter_column(T, "n", nullable=False, online=False)',
    "not_null_already": 'op.alter_column(T, "team", nullable=True)',
    "default": 'op.alter_column(T, "n", server_default="5")',
    "wider": 'op.alter_column(T, "name", type_=String(90))',
    "bigger": 'op.alter_column(T, "n", type_=BigInteger)',
    "bigger_plain": 'op.alter_column(T, "n", type_=BigInteger, online=False)',
    "narrower": 'op.alter_column(T, "name", type_=String(2), online=False)',
    "rename": 'op.alter_column(T, "n", new_column_name="number")',
    "alter_unknown": 'op.alter_column(T, "nothing", nullable=True)',
    "drop": 'op.drop_column(T, "n")',
    "drop_unknown": 'op.drop_column(T, "nothing")',
    "drop_table": "op.drop_table(T)",
    "drop_nothing": 'op.drop_index("nothing", T)\nop.drop_constraint("nothing", T)\nop.drop_table("nothing")',
    "ask_drop": 'op.drop_column(T, "n")',
    "ask_drop_table": "op.drop_table(T)",
    "ask_rename": 'op.alter_column(T, "n", new_column_name="number")',
    "ask_rename_table": 'op.rename_table(T, T + "_b")',
    "ask_narrower": 'op.alter_column(T, "name", type_=String(2))',
    "no_table": 'op.add_column("nothing", Column("x", Integer))',
    "table": 'op.create_table(T + "_b", Column("id", Integer, primary_key=True))\n'
    'op.create_index("ix_" + T, T + "_b", ["id"])',
    "table_there": 'op.create_table(T, Column("id", Integer, primary_key=True))',
    "table_with_rows": 'op.create_table(T + "_b", Column("id", Integer, primary_key=True))\n'
    'op.execute("INSERT INTO " + T + "_b (id) VALUES (1)")\n'
    'op.add_column(T + "_b", Column("x", Integer, nullable=False))',
    "table_then_type": 'op.create_table(T + "_b", Column("id", Integer, primary_key=True), Column("n", Integer))\n'
    'op.alter_column(T + "_b", "n", type_=BigInteger)',
    "recipe": 'op.add_column(T, Column("x", Integer))\nop.backfill(T, {"x": 1})\n'
    'op.alter_column(T, "x", nullable=False)',
    "not_filled": 'op.add_column(T, Column("x", Integer))\nop.alter_column(T, "x", nullable=False)',
    "backfill": 'op.backfill(T, {"n": 7}, where="n IS NULL")\nop.alter_column(T, "n", nullable=False)',
    "backfill_unknown": 'op.backfill(T, {"nothing": 7})',
    "backfill_no_table": 'op.backfill("nothing", {"n": 7})',
    "update":  'op.execute("UPDATE " + T + " SET n = 7 WHERE n IS NULL")\nop.alter_column(T, "n", nullable=False)',
    "renamed": 'op.rename_table(T, T + "_b")\nop.create_index("ix_" + T, T + "_b", ["n"])\n'
    'op.add_column(T + "_b", Column("x", Float, server_default=func.random(), nullable=False))',
    "renamed_without_value": 'op.rename_table(T, T + "_b")\n'
    'op.add_column(T + "_b", Column("x", Integer, nullable=False))',
    "renamed_not_null": 'op.rename_table(T, T + "_b")\nop.alter_column(T + "_b", "n", new_column_name="number")\n'
    'op.alter_column(T + "_b", "number", nullable=False)',
    "renamed_unique": 'op.rename_table(T, T + "_b")\nop.alter_column(T + "_b", "name", new_column_name="called")\n'
    'op.create_unique_constraint("uq_" + T, T + "_b", ["called"])',
    "renamed_key": 'op.rename_table(T, T + "_b")\n'
    'op.create_foreign_key("fk_" + T, T + "_b", "teams", ["team"], ["id"])',
    "type_and_null": 'op.alter_column(T, "name", type_=String(90))\nop.alter_column(T, "name", server_default="x")\n'
    'op.alter_column(T, "name", nullable=False)',
}  # fmt: skip
GOOD = [{"id": number, "name": f"name {number}", "n": number, "team": 1} for number in range(1, 5)]
BAD: list[dict[str, Any]] = [
    *GOOD,
    {"id": 7, "name": "name 1", "n": -1, "team": 9},
    {"id": 8, "name": "name 1", "n": None, "team": None},
]
STATES: dict[str, list[dict[str, Any]]] = {"empty": [], "rows": GOOD, "in the way": BAD}
#: What a database does not have.
LACKS = {"sqlite": ("column_identity",), "mariadb": ("column_identity", "index_expression"), "postgresql": ()}
FUNCTIONS = {"mariadb": {"func.random()": "func.rand()"}}


@dataclass
class Place:
    """A database with the tables, and the migrations of some of them."""

    project: Project
    dialect: str
    left: list[str] = field(default_factory=list)

    def fill(self, rows: list[dict[str, Any]]) -> None:
        engine = sa.create_engine(self.project.url, poolclass=sa.pool.NullPool)
        metadata = sa.MetaData()
        teams = sa.Table("teams", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
        tables = [
            sa.Table(
                f"t_{name}",
                metadata,
                sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
                sa.Column("name", sa.String(50)),
                sa.Column("n", sa.Integer),
                sa.Column("team", sa.Integer, index=True),
            )
            for name in self.left
        ]
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(teams.insert(), [{"id": 1}])
            for table in tables if rows else ():
                connection.execute(table.insert(), rows)

    def write(self) -> None:
        source = ""
        for name in self.left:
            mark = "" if name.startswith("ask") else "(destructive=True)"
            body = STEPS[name]
            for theirs, own in FUNCTIONS.get(self.dialect, {}).items():
                body = body.replace(theirs, own)
            source += f"\n@migration{mark}\ndef m_{name}(op):\n    T = 't_{name}'\n{textwrap.indent(body, '    ')}\n"
        self.project.write(source)

    def foretold(self) -> dict[str, Any]:
        """What a dry run says of each migration."""
        items = json.loads(self.project.run("migrate", "--dry-run", "--json").stdout)["pending"]
        return {item["name"][2:]: item for item in items}

    def run(self) -> dict[str, str]:
        """Run what can be run.

        :returns: the errors of those that cannot.
        """
        failed: dict[str, str] = {}
        while True:
            self.write()
            try:
                self.project.boot()
            except MigrationFailed as error:
                failed[error.migration[2:]] = error.cause
                self.left.remove(error.migration[2:])
            else:
                return failed

    def facts(self) -> dict[str, dict[str, Any]]:
        """What the database has, by migration."""
        with sa.create_engine(self.project.url, poolclass=sa.pool.NullPool).connect() as connection:
            found = facts(connection)
        for name in self.left:
            for table in found.keys() & {f"t_{name}", f"t_{name}_b"}:
                if "random()" in STEPS[name]:  # which are others each time
                    found[table]["rows"] = len(found[table]["rows"])
        return {name: {table: found.get(table) for table in (f"t_{name}", f"t_{name}_b")} for name in self.left}


def _kind(error: str | None) -> str:
    """The rule that an error names, or that it is one."""
    found = re.match(r"DS\d+", error or "")
    return found[0] if found else "error" if error else ""


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_foretold_is_done(
    dialect: str, state: str, new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    def place(names: list[str]) -> Place:
        made = Place(make_project(new_url(dialect), {"DB_SMART_SNAPSHOTS": 0}), dialect, names)
        made.fill(STATES[state])
        made.write()
        return made

    run = place([name for name in STEPS if name not in LACKS[dialect]])
    foretold = run.foretold()
    before = run.facts()
    failed = run.run()
    errors = {name: item["error"] for name, item in foretold.items()}
    wrong = {
        name: (error, failed.get(name)) for name, error in errors.items() if _kind(error) != _kind(failed.get(name))
    }
    assert not wrong, "\n".join(f"{name}: {pair[0]!r:.150} | {pair[1]!r:.250}" for name, pair in wrong.items())

    for name in ("no_table", "backfill_no_table"):
        assert errors[name] == failed[name] == "there is no table 'nothing'"

    after = run.facts()
    changed = {name for name in run.left if before[name] != after[name]}
    does = {name for name in run.left if foretold[name]["does"]}
    assert changed <= does
    assert {name for name in does - changed if "backfill" not in STEPS[name]} == set()

    script = place([*run.left])
    text = script.project.run("migrate", "--sql").stdout
    assert "Left to db-smart" not in text, text[text.index("Left to db-smart") - 300 :][:1500]
    run_client(script.project.url, text)
    found = script.facts()
    assert {name: (found[name], after[name]) for name in after if found[name] != after[name]} == {}
    assert script.project.boot().applied == ()


def test_an_index_of_a_partitioned_table_is_foretold(
    new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    project = make_project(new_url("postgresql"))
    project.query("CREATE TABLE t (id integer) PARTITION BY RANGE (id)")
    project.query("CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (9)")
    project.query("INSERT INTO t VALUES (1)")
    project.write('@migration\ndef index(op):\n    op.create_index("ix_t", "t", ["id"])\n')
    (item,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    with pytest.raises(MigrationFailed) as failed:
        project.boot()
    assert item["error"] == failed.value.cause
    assert item["error"].startswith("DS205")
