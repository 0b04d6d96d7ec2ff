"""Every rule has a section in the document, every refusal names it, and what is written there is so."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, ForeignKeyConstraint, Integer, Numeric, String
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.schema.rules import RULES, Refused
from tests.harness.processes import ROOT
from tests.harness.project import HEADER, Project

TEXT = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
BEFORE, *PARTS = re.split(r"^## (.+)\n", TEXT, flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
#: Rules of some kinds of databases only.
ONLY = {
    **dict.fromkeys(("DS201", "DS205", "DS206", "DS207"), {"postgresql"}),
    "DS202": {"mariadb"},
    "DS401": {"sqlite", "postgresql"},
    "DS402": {"mariadb", "postgresql"},
}


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_rule_has_a_section_and_every_refusal_names_it() -> None:
    assert list(SECTIONS) == list(RULES)
    assert (ROOT / "aurum_harmony" / "db_smart" / "rules.md").read_text(encoding="utf-8") == TEXT
    for name, rule in RULES.items():
        message = Refused(rule, "op.do()").message
        assert message.startswith(f"{name} op.do(): ")
        assert message.endswith(f" See docs/rules.md#{name.lower()}.")
        assert f"| [{name}](#{name.lower()}) |" in BEFORE
        assert len(blocks(SECTIONS[name])) >= 2
    for document in ("README.md", "docs/migrations.md"):
        assert "rules.md" in (ROOT / document).read_text(encoding="utf-8")


def build(url: URL) -> None:
    metadata = sa.MetaData()
    key: Callable[[], Column[Any]] = lambda: Column("id", Integer, primary_key=True, autoincrement=False)  # noqa: E731
    users = sa.Table("users", metadata, key(), Column("name", String(40), nullable=False))
    users.append_column(Column("fax", String(20), nullable=False))
    users.append_column(Column("city", String(20)))
    sa.Table("fax_machines", metadata, key())
    sa.Table("notes", metadata, key())
    sa.Table("badges", metadata, key(), Column("shape", String(20)))
    sa.Table("drafts", metadata, key())
    sa.Table("parcels", metadata, key(), Column("label", String(20), index=True))
    sa.Table("tags", metadata, Column("id", Integer, nullable=False))
    sa.Table("pings", metadata, key(), Column("at", Integer))
    sa.Table("clicks", metadata, key())
    sa.Table("coupons", metadata, key(), Column("code", String(10)))
    orders = sa.Table("orders", metadata, key(), Column("user_id", Integer), Column("number", Integer))
    orders.append_column(Column("total", Numeric(10, 2)))
    orders.append_constraint(ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_orders_user"))
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        for statement in (
            "INSERT INTO users VALUES (1, 'Asha', '1', 'Pune'), (2, 'Ravi', '2', NULL)",
            "INSERT INTO fax_machines VALUES (1)",
            "INSERT INTO notes VALUES (1)",
            "INSERT INTO drafts VALUES (1)",
            "INSERT INTO parcels VALUES (1, 'small')",
            "INSERT INTO tags VALUES (1), (2)",
            "INSERT INTO pings VALUES (1, 1), (2, 2), (3, 300)",
            "INSERT INTO clicks VALUES (1200000000)",
            "INSERT INTO coupons VALUES (1, 'a'), (2, 'a'), (3, 'b')",
            "INSERT INTO orders VALUES (1, 1, 7, 5), (2, 2, 8, 6)",
        ):
            connection.exec_driver_sql(statement)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("CREATE TYPE letter_state AS ENUM ('draft', 'sent', 'read')")
            connection.exec_driver_sql("CREATE TABLE letters (id int PRIMARY KEY, state letter_state)")
            connection.exec_driver_sql("INSERT INTO letters VALUES (1, 'draft'), (2, 'sent')")
            connection.exec_driver_sql("CREATE TABLE events (id int, at int) PARTITION BY RANGE (id)")
            connection.exec_driver_sql("CREATE TABLE events_old PARTITION OF events FOR VALUES FROM (0) TO (9)")
            connection.exec_driver_sql("CREATE TABLE events_new PARTITION OF events FOR VALUES FROM (9) TO (99)")
            connection.exec_driver_sql("INSERT INTO events VALUES (1, 1), (9, 9)")


def with_badge(db: SQLAlchemy) -> None:
    """The model that still has what a contract step drops."""
    db.Table("badges", Column("id", Integer, primary_key=True), Column("shape", String(20)))


def with_user(db: SQLAlchemy) -> None:
    """The model of which a recipe speaks, in its module."""
    columns = {"id": Column(Integer, primary_key=True), "city": Column(String(20))}
    module: Any = ModuleType("shop.models")
    module.User = type("User", (db.Model,), {"__tablename__": "users", **columns})
    sys.modules["shop"], sys.modules["shop.models"] = ModuleType("shop"), module


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"])
def test_what_a_section_refuses_is_refused_and_its_recipe_works(
    new_url: Callable[[str], URL], make_project: Callable[..., Project], dialect: str
) -> None:
    url = new_url(dialect)
    build(url)
    project = make_project(url, {"DB_SMART_SNAPSHOTS": 0, "DB_SMART_STATEMENT_ROWS": 1})
    (imports,) = blocks(BEFORE)
    header, source = HEADER + imports, "@migration\ndef begin(op):\n    pass\n"
    project.write(source, header=header)
    project.boot()
    for name, section in SECTIONS.items():
        if dialect not in ONLY.get(name, {dialect}):
            continue
        refused, *recipe = blocks(section)
        project.write(source + refused, header=header)
        if name == "DS107":  # for which boot does not wait
            project.models = with_badge
            assert f"{name} " in project.run("migrate").output
            source += recipe.pop()
            project.write(source, header=header)
            result = project.run("migrate", "--contract-now", "drop_badges_shape", "--yes")
            assert result.exit_code == 0, result.output
            project.models = None
        elif RULES[name].refuses:
            with pytest.raises(DbSmartError, match=rf"{name} .*docs/rules\.md#{name.lower()}\."):
                project.boot()
        else:
            project.models = with_user if "shop.models" in refused else None
            result = project.run("lint", "--json")
            (found,) = json.loads(result.stdout)["databases"]
            said = [one["migration"] for one in found["findings"] if one["rule"] == name]
            assert said, result.output
            assert said == [None] or said[0] in refused
            project.models = None
        for release in recipe:
            # A recipe may end with what was refused, in another form; those of the releases before stay.
            source += release
            project.write(source, header=header)
            assert len(project.boot().applied) == 1, release
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        assert {column["name"] for column in inspector.get_columns("users")} == {"id", "full_name", "city", "city_code"}
        assert {"fax_machines", "notes"}.isdisjoint(inspector.get_table_names())
        (key,) = inspector.get_foreign_keys("orders")
        assert (key["name"], key["options"].get("ondelete")) == ("fk_orders_user_cascade", "CASCADE")
        query = (
            "SELECT full_name, city_code, state, owner FROM users JOIN orders ON orders.user_id = users.id ORDER BY 1"
        )
        rows = connection.exec_driver_sql(query).all()
        assert rows == [("Asha", "Pun", "new", 1), ("Ravi", None, "new", 2)]
        assert connection.exec_driver_sql("SELECT id FROM coupons ORDER BY id").scalars().all() == [1, 3]
