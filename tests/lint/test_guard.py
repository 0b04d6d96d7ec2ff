"""Raw SQL of a migration is refused before it is sent: DS301, DS302 and DS303."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, MigrationFailed
from tests.harness.project import Project
from tests.harness.servers import config_of

MAKE = """
@migration
def make(op: Operations):
    op.create_table(
        "orders",
        Column("id", Integer, primary_key=True),
        Column("state", String(20)),
        Column("number", Integer),
    )
    op.create_table("stray", Column("id", Integer, primary_key=True))
    op.execute("INSERT INTO orders (id, number) VALUES (:id, :id)", [{"id": number} for number in range(1, 201)])
    op.execute("INSERT INTO stray (id) VALUES (1)")
"""
FEW = {"DB_SMART_STATEMENT_ROWS": 50}


@pytest.fixture
def orders(project: Project) -> Project:
    project.config.update(FEW)
    project.write(MAKE)
    project.boot()
    if project.dialect != "sqlite":
        project.query("ANALYZE TABLE orders" if project.dialect == "mysql" else "ANALYZE orders")
    return project


def refused(project: Project, body: str, options: str = "", head: str = "") -> str:
    """What a migration of this body is refused with; the same in a dry run where that can tell."""
    source = f"{MAKE}\n{head}\n@migration{options}\ndef change(op: Operations):\n    {body}\n"
    project.write(source)
    with pytest.raises(MigrationFailed) as caught:
        project.boot()
    assert project.history()[-1][0] == "change"
    assert project.history()[-1][1] != "applied"
    return caught.value.message


def applied(project: Project, body: str, options: str = "") -> None:
    project.write(f"{MAKE}\n@migration{options}\ndef change(op: Operations):\n    {body}\n")
    assert project.boot().applied == ("change",)


WAYS = {
    "op": 'op.execute("{}")',
    "session": 'op.session.execute(sa.text("{}"))',
    "connection": 'op.connection.execute(sa.text("{}"))',
    "driver": 'op.connection.exec_driver_sql("{}")',
}
HEAD = "import sqlalchemy as sa"


@pytest.mark.parametrize("way", WAYS)
def test_many_rows(orders: Project, way: str) -> None:
    message = refused(orders, WAYS[way].format("UPDATE orders SET state = 'new' WHERE number >= 100"), head=HEAD)
    assert "DS301 UPDATE orders SET state = 'new' WHERE number >= 100: one statement would change very many" in message
    assert "More than 50 rows." in message
    assert orders.query("SELECT count(*) FROM orders WHERE state IS NOT NULL") == [(0,)]
    message = refused(orders, WAYS[way].format("DELETE FROM orders"), head=HEAD)
    assert "DS301 DELETE FROM orders: " in message
    assert orders.query("SELECT count(*) FROM orders") == [(200,)]


def test_values_beside_the_statement_count(orders: Project) -> None:
    update = "op.execute('UPDATE orders SET state = :state WHERE number <= :most', {'state': 'new', 'most': %d})"
    assert "DS301" in refused(orders, update % 60)
    applied(orders, update % 40)
    assert orders.query("SELECT count(*) FROM orders WHERE state = 'new'") == [(40,)]


def test_a_statement_of_sqlalchemy_counts_too(orders: Project) -> None:
    head = f"{HEAD}\norders = sa.table('orders', sa.column('id'), sa.column('number'))"
    body = "op.session.execute(sa.update(orders).values(number=0).where(orders.c.number > 60))"
    assert "DS301" in refused(orders, body, head=head)


def test_few_rows(orders: Project) -> None:
    applied(orders, "op.execute(\"UPDATE orders SET state = 'new' WHERE id <= 40\")")
    assert orders.query("SELECT count(*) FROM orders WHERE state = 'new'") == [(40,)]


def test_few_rows_among_many_without_an_index(orders: Project) -> None:
    """The plan of MariaDB says how many rows are read."""
    applied(orders, "op.execute(\"UPDATE orders SET state = 'new' WHERE number = 7\")")


def test_a_reason_lets_it_pass_and_is_no_part_of_the_checksum(orders: Project) -> None:
    body = "op.execute(\"UPDATE orders SET state = 'new'\")"
    refused(orders, body)
    applied(orders, body, '(allow={"DS301": "200 rows only"})')
    orders.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n    {body}\n")
    assert orders.boot().applied == ()


@pytest.mark.parametrize("allow", ['{"DS301": " "}', '{"DS301": None}'])
def test_a_rule_needs_a_reason(orders: Project, allow: str) -> None:
    orders.write(f"{MAKE}\n@migration(allow={allow})\ndef change(op: Operations):\n    pass\n")
    with pytest.raises(DbSmartError, match="takes a reason for each rule"):
        orders.boot()


def test_an_unknown_rule_is_said(orders: Project) -> None:
    orders.write(f"{MAKE}\n@migration(allow={{'DS999': 'why not'}})\ndef change(op: Operations):\n    pass\n")
    with pytest.raises(DbSmartError, match="'change' allows DS999, which is no rule"):
        orders.boot()


def test_a_table_of_this_migration_may_be_filled_and_dropped(orders: Project) -> None:
    applied(
        orders,
        'op.execute("CREATE TABLE filled (id INTEGER)")\n'
        '    op.execute("INSERT INTO filled SELECT id FROM orders")\n'
        '    op.execute("UPDATE filled SET id = id + 1")\n'
        '    op.execute("DROP TABLE filled")\n'
        '    op.execute("DROP TABLE IF EXISTS nowhere")\n'
        '    op.create_table("made", Column("id", Integer))\n'
        '    op.execute("INSERT INTO made SELECT id FROM orders")\n'
        '    op.execute("UPDATE made SET id = id + 1")\n'
        '    op.execute("DROP TABLE made")\n',
    )
    assert {"filled", "made"}.isdisjoint(orders.tables())


DESTROYS = {"DROP TABLE stray": "table stray", "ALTER TABLE orders DROP COLUMN state": "column orders.state"}


@pytest.mark.parametrize("statement", DESTROYS)
@pytest.mark.parametrize("way", WAYS)
def test_what_destroys(orders: Project, way: str, statement: str) -> None:
    message = refused(orders, WAYS[way].format(statement), head=HEAD)
    assert f"DS303 {statement}: this SQL destroys data. It would destroy: {DESTROYS[statement]}. " in message
    assert "stray" in orders.tables()
    assert "state" in orders.columns("orders")
    applied(orders, f'op.execute("{statement}")', "(destructive=True)")


def test_truncate(orders: Project) -> None:
    if orders.dialect == "sqlite":
        return
    assert "DS303 TRUNCATE TABLE stray" in refused(orders, 'op.execute("TRUNCATE TABLE stray")')
    applied(orders, 'op.execute("TRUNCATE TABLE stray")', '(allow={"DS303": "nobody reads it"})')
    assert orders.query("SELECT count(*) FROM stray") == [(0,)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_transaction_control(orders: Project, way: str, statement: str) -> None:
    message = refused(orders, WAYS[way].format(statement), head=HEAD)
    assert f"{statement}" in message
    assert "db-smart begins and ends the transaction of a migration" in message
    assert "DS302" in message


@pytest.mark.parametrize("way", WAYS)
def test_outside_a_transaction(orders: Project, way: str) -> None:
    message = refused(orders, WAYS[way].format("DROP TABLE stray"), "(transactional=False)", head=HEAD)
    assert "DS303" in message
    assert "stray" in orders.tables()
    message = refused(orders, WAYS[way].format("DELETE FROM orders"), "(transactional=False)", head=HEAD)
    assert "DS301" in message
    assert orders.query("SELECT count(*) FROM orders") == [(200,)]


def test_a_dry_run_foresees_it(orders: Project) -> None:
    for statement, rule in (("DELETE FROM orders WHERE number > 100", "DS301"), ("DROP TABLE stray", "DS303")):
        orders.write(f"{MAKE}\n@migration\ndef change(op: Operations):\n    op.execute('{statement}')\n")
        assert f"{rule} {statement}: " in orders.run("migrate", "--dry-run").output
    orders.write(
        f"{MAKE}\n@migration\ndef change(op: Operations):\n    op.execute('DELETE FROM orders WHERE id < 9')\n"
    )
    assert "DS3" not in orders.run("migrate", "--dry-run").output


def test_a_backfill_is_none_of_it(orders: Project) -> None:
    applied(orders, "op.backfill('orders', {'state': 'new'}, where='state IS NULL')")
    orders.write(
        f"{MAKE}\n{HEAD}\n@migration\ndef delete(op: Operations):\n"
        "    @op.batches('orders')\n    def rows(found):\n"
        "        op.execute(sa.text('DELETE FROM orders WHERE id = :id'), [{'id': row.id} for row in found])\n"
    )
    assert orders.boot().applied == ("delete",)


@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_other_drivers(make_project: Callable[..., Project], new_url: Callable[[str], URL], driver: str) -> None:
    url = new_url("postgresql")
    project = make_project(url, {**FEW, **config_of(url, f"postgresql+{driver}")})
    project.write(MAKE)
    project.boot()
    update = "op.execute('UPDATE orders SET state = :s WHERE mod(number, 2) = :rest AND id <= :most', {})"
    assert "DS301" in refused(project, update.format("dict(s='new', rest=0, most=200)"))
    applied(project, update.format("dict(s='new', rest=0, most=50)"))
    assert project.query("SELECT count(*) FROM orders WHERE state = 'new'") == [(25,)]


def test_a_percent_sign(orders: Project) -> None:
    assert "DS301" in refused(orders, "op.execute(\"UPDATE orders SET state = 'new' WHERE number % 2 = 0\")")
    assert "DS301" in refused(orders, "op.execute(\"UPDATE orders SET state = '50%' WHERE 'abc' LIKE '%b%'\")")


def test_a_migration_without_operations(orders: Project) -> None:
    module = orders.directory / "shop_db.py"
    module.write_text("from flask import current_app\n\n\ndef db():\n    return current_app.extensions['sqlalchemy']\n")
    head = "from shop_db import db\nimport sqlalchemy as sa\n"
    source = f"{MAKE}\n{head}\n@migration\ndef change():\n    db().session.execute(sa.text('DELETE FROM orders'))\n"
    orders.write(source)
    with pytest.raises(MigrationFailed, match="DS301 DELETE FROM orders"):
        orders.boot()
    assert orders.query("SELECT count(*) FROM orders") == [(200,)]


def test_what_an_interrupted_run_has_made_and_done_is_known(orders: Project) -> None:
    """The next run skips what is done, and still knows whose the table is."""
    body = (
        'op.execute("CREATE TABLE filled (id INTEGER)")\n'
        '    op.execute("INSERT INTO filled SELECT id FROM orders")\n'
        '    op.add_columns("orders", Column("note", String(5)))\n'
        '    op.create_index("ix_note", "orders", ["note"])\n'
        "    {}\n"
        '    op.execute("DROP TABLE filled")\n'
    )
    source = f"{MAKE}\n@migration\ndef change(op: Operations):\n    {body}"
    orders.write(source.replace("{}\n", "raise ValueError\n"))
    with pytest.raises(MigrationFailed):
        orders.boot()
    orders.write(source.replace("{}\n", "pass\n"))
    assert orders.boot().applied == ("change",)
    assert "filled" not in orders.tables()


READS = (
    "WITH few AS (SELECT id FROM orders) SELECT count(*), 'then (UPDATE' FROM few",
    "SELECT id FROM orders FOR UPDATE",
    "WITH few AS (SELECT id FROM orders) SELECT id FROM few FOR UPDATE",
)


def test_what_reads_many_rows_passes(orders: Project) -> None:
    for number, statement in enumerate(READS):
        if orders.dialect == "sqlite" and "FOR UPDATE" in statement:
            continue
        orders.write(f'{MAKE}\n@migration\ndef read_{number}(op: Operations):\n    op.execute("{statement}").all()\n')
        assert orders.boot().applied == (f"read_{number}",)


def test_several_tables(orders: Project) -> None:
    """By the estimate of the server alone; SQLite counts."""
    statement = {
        "postgresql": "WITH gone AS (DELETE FROM orders RETURNING id) SELECT count(*) FROM gone",
        "mysql": "UPDATE orders JOIN orders AS o ON o.id = orders.number SET orders.state = 'x'",
        "sqlite": "UPDATE orders SET state = 'x' FROM stray WHERE stray.id > 0",
    }[orders.dialect]
    said = "More than 50 rows. " if orders.dialect == "sqlite" else "About 200 rows. "
    assert said in refused(orders, f'op.execute("{statement}")')
    assert orders.query("SELECT count(*) FROM orders") == [(200,)]


def test_a_loop_of_single_rows_passes(orders: Project) -> None:
    applied(
        orders,
        "for number in range(1, 201):\n"
        "        op.execute('UPDATE orders SET state = :state WHERE id = :id', {'state': 'x', 'id': number})",
    )
    assert orders.query("SELECT count(*) FROM orders WHERE state = 'x'") == [(200,)]
