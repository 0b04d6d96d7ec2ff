"""The facts of each kind of database, held against a database of that kind."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.dialects.base import FOLDERS, Facts, facts_of
from aurum_harmony.db_smart.dialects.editor import editor_of
from aurum_harmony.db_smart.store.database import Database
from aurum_harmony.db_smart.store.tables import epoch_us
from tests.harness.direct import operations
from tests.harness.processes import ROOT, run_python

DIALECTS = ROOT / "aurum_harmony" / "db_smart" / "dialects"


@pytest.fixture
def database(url: URL) -> Database:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer, nullable=False)).create(engine)
    return Database("default", None, engine)


def test_each_folder_is_known_and_imports_no_alembic() -> None:
    folders = {path.parent.name for path in DIALECTS.glob("*/facts.py")}
    assert folders == {*FOLDERS.values()}
    code = (
        "import sys\n"
        "from aurum_harmony.db_smart.dialects.base import FOLDERS, facts_of\n"
        "print(*map(facts_of, FOLDERS), 'alembic' in sys.modules)"
    )
    assert run_python(code).endswith("False\n")


def test_a_kind_without_a_folder_has_the_facts_of_a_plain_server() -> None:
    facts = facts_of("oracle")
    assert (type(facts), facts.name, facts.server) == (Facts, "oracle", True)
    with pytest.raises(sa.exc.CompileError):
        sa.select(epoch_us()).compile(dialect=sa.dialects.registry.load("oracle")())


def test_the_editor_stands_beside_the_facts(database: Database) -> None:
    with operations(database) as op:
        kind = type(editor_of(op._transaction, op._catalog))
    assert (kind.__name__, kind.__module__) == (
        database.facts.editor,
        type(database.facts).__module__.replace(".facts", ".editor"),
    )


def test_the_clock(database: Database) -> None:
    with database.connect() as connection:
        now = connection.scalar(sa.select(epoch_us())) or 0
    assert abs(now / 1_000_000 - time.time()) < 60


@pytest.mark.parametrize("names", [("a", "A"), ("ä", "Ä")])
def test_names_that_are_the_same_to_the_database(database: Database, names: tuple[str, str]) -> None:
    with database.connect() as connection:
        quote = connection.dialect.identifier_preparer.quote_identifier
        table = f"CREATE TABLE names ({', '.join(f'{quote(name)} INTEGER' for name in names)})"
        try:
            connection.exec_driver_sql(table)
            same = False
        except sa.exc.DBAPIError:
            same = True
    one, other = map(database.facts.normalize_name, names)
    assert (one == other) is same


def test_errors_and_what_they_say(database: Database) -> None:
    facts = database.facts
    for sql in ("SELECT * FROM no_such_table", "SELECT no_such_column FROM t"):
        with database.connect() as connection, pytest.raises(sa.exc.DBAPIError) as missing:
            connection.exec_driver_sql(sql)
        assert facts.says(missing.value, "missing")
        assert not facts.says(missing.value, "transient")
        assert facts.column_without_value(missing.value) == (None, None)
    with database.connect() as connection, pytest.raises(sa.exc.DBAPIError) as empty:
        connection.exec_driver_sql("INSERT INTO t (id, n) VALUES (1, NULL)")
    table, column = facts.column_without_value(empty.value)
    assert (table, column) in (("t", "n"), (None, "n"))
    assert not facts.says(empty.value, "missing")
