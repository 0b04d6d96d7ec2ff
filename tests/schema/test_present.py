"""Which columns a table has: what is asked for a few of them is what a reflection of all of them would say."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Boolean, CheckConstraint, Column, ForeignKey, Integer
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.schema.catalog import Catalog
from aurum_harmony.db_smart.schema.ddl import alone
from aurum_harmony.db_smart.store.database import Database

NAMES = ("plain", "Upper", "two words", 'a "quote"', "select", "größe", "it's", "back`tick", "a]b")
ABSENT = ("plai", "plain_", "words", "quote", "absent", "varchar", "Größen")


def test_names_in_every_spelling_are_found(url: URL) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with database.connect() as connection:
        columns = [Column(name, Integer) for name in NAMES]
        check = CheckConstraint("1 < 2", name="absent")  # a word of the definition that is no column
        sa.Table("Of things", sa.MetaData(), *columns, check).create(connection)
        catalog = Catalog(connection)
        found = catalog.columns("Of things", None).keys()
        assert {catalog.normalize_name(name) for name in NAMES} == found
        for name in (*NAMES, *ABSENT):
            wanted = {catalog.normalize_name(name)}
            assert catalog.present("Of things", [name], None) == wanted & found
        assert catalog.present("Of things", [*NAMES, *ABSENT], None) == found
        assert catalog.present("Of things", [*ABSENT], None) == set()
        assert catalog.present("Of things", [], None) == set()
        connection.rollback()


def test_a_view_has_columns_and_what_is_not_there_has_none(url: URL) -> None:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    with database.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE base (a int, b int)")
        connection.exec_driver_sql("CREATE INDEX things ON base (a)")
        connection.exec_driver_sql("CREATE VIEW seen AS SELECT a AS c FROM base")
        catalog = Catalog(connection)
        assert catalog.present("seen", ["a", "c"], None) == {"c"}
        assert catalog.present("seen", ["a"], None) == set()
        for missing in ("things", "absent"):
            with pytest.raises(sa.exc.NoSuchTableError):
                catalog.present(missing, ["a"], None)
        connection.rollback()


def test_what_brings_something_along_is_not_alone() -> None:
    assert alone(Column("c", Integer))
    assert alone(Column("c", sa.String(5), nullable=False))
    brings: tuple[Column[Any], ...] = (
        Column("c", Integer, primary_key=True),
        Column("c", Integer, unique=True),
        Column("c", Integer, index=True),
        Column("c", Integer, ForeignKey("t.id")),
        Column("c", Integer, CheckConstraint("c > 1")),
        Column("c", Integer, server_default="1"),
        Column("c", Integer, sa.Computed("1")),
        Column("c", Integer, sa.Identity()),
        Column("c", Integer, comment="said"),
        Column("c", Boolean(create_constraint=True)),
        Column("c", sa.Enum("a", "b", name="e", create_constraint=True)),
    )
    assert not any(map(alone, brings))


def test_who_listens_for_a_column_of_a_table_hears_of_it() -> None:
    def listen(*_: object) -> None:
        """Not called."""

    sa.event.listen(Column, "after_parent_attach", listen)
    try:
        assert not alone(Column("c", Integer))
    finally:
        sa.event.remove(Column, "after_parent_attach", listen)
    assert alone(Column("c", Integer))
