"""Steps of a migration that is cut, where the database does not cut it by itself; and the values that they keep."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, String
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.session import json_values as codec
from aurum_harmony.db_smart.store import tables
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations
from tests.harness.project import Project

T = sa.Table(
    "t",
    sa.MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", String(20)),
    Column("uid", sa.Uuid),
    Column("at", sa.DateTime),
    Column("amount", sa.Numeric(10, 3)),
    Column("raw", sa.LargeBinary),
    Column("data", sa.JSON),
    Column("long", sa.Text),
)


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "t"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Stop(Exception):
    """Ends a run where a kill could."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, new_url: Callable[[str], URL]) -> Database:
    """A database with an empty table, of each kind that does not commit at a schema change."""
    engine = sa.create_engine(new_url(request.param), poolclass=sa.pool.NullPool)
    T.create(engine)
    return Database("default", None, engine)


def names(database: Database) -> list[str]:
    with database.engine.connect() as connection:
        return list(connection.scalars(sa.select(T.c.name).order_by(T.c.id)))


def insert(op: Operations, name: str) -> None:
    op.execute("INSERT INTO t (name) VALUES (:name)", {"name": name})


def cut(op: Operations) -> None:
    op._transaction.checkpoint()


def stopped_and_finished(database: Database, action: Callable[[Operations], Any]) -> tuple[Any, Any]:
    """Run a migration that is stopped after its last cut, and once more.

    :returns: what both runs came to.
    """
    came_to = []
    with suppress(Stop), operations(database) as op:
        came_to.append(action(op))
        raise Stop
    with operations(database) as op:
        came_to.append(action(op))
    return came_to[0], came_to[1]


def test_what_was_done_before_a_cut_is_passed_by(database: Database) -> None:
    def action(op: Operations) -> None:
        insert(op, "a")
        insert(op, "a")
        cut(op)
        insert(op, "b")
        cut(op)
        insert(op, "c")

    with suppress(Stop), operations(database) as op:
        action(op)
        raise Stop
    assert names(database) == ["a", "a", "b"]
    with operations(database) as op:
        action(op)
    assert names(database) == ["a", "a", "b", "c"]
    # What was recorded went with the end of the migration, so that the next run does all of it again.
    with operations(database) as op:
        action(op)
    assert names(database) == ["a", "a", "b", "c"] * 2


def test_rows_that_were_returned_are_given_again(database: Database) -> None:
    kept = [column for column in T.columns if column.name != "long"]

    def action(op: Operations) -> list[Any]:
        values = {
            "name": "it's ü 100%",
            "uid": uuid.uuid4(),
            "at": datetime(2026, 2, 28, 23, 59, 59, 123456),
            "amount": Decimal("1.250"),
            "raw": b"\0\xff'",
            "data": {"a": [1, None, "x"]},
        }
        rows = list(op.execute(T.insert().values(values).returning(*kept)))
        rows += op.execute(T.insert().returning(*kept), [{"name": None}]).all()
        cut(op)
        updated = op.execute(sa.update(T).values(name="new").returning(T.c.id))
        some = updated.fetchmany(1)
        result = [rows, some, sorted(updated.fetchall())]
        cut(op)
        return result

    first, second = stopped_and_finished(database, action)
    assert [*map(tuple, second[0])] == [*map(tuple, first[0])]
    assert [list(map(type, row)) for row in second[0]] == [list(map(type, row)) for row in first[0]]
    assert second[1:] == first[1:]
    assert names(database) == ["new", "new"]


def test_a_result_that_cannot_be_kept_is_an_error_that_says_so(database: Database) -> None:
    def too_long(op: Operations) -> int:
        (row,) = op.execute(T.insert().values(long="x" * 20_000).returning(T.c.long)).all()
        cut(op)
        return len(row[0])

    with pytest.raises(DbSmartError, match="cannot be given again.*Query it by a SELECT"):
        stopped_and_finished(database, too_long)
    with operations(database, name="another") as op:
        assert too_long(op) == 20_000  # while it is not cut short, nothing is wrong


def test_a_type_that_cannot_be_kept_is_an_error_too(new_url: Callable[[str], URL]) -> None:
    engine = sa.create_engine(new_url("postgresql"), poolclass=sa.pool.NullPool)
    T.create(engine)

    def action(op: Operations) -> None:
        op.execute("INSERT INTO t (id) VALUES (99) RETURNING int4range(1, 5)").one()
        cut(op)

    with pytest.raises(DbSmartError, match="cannot be given again"):
        stopped_and_finished(Database("default", None, engine), action)


def test_what_a_savepoint_took_back_is_not_recorded(database: Database) -> None:
    def action(op: Operations) -> None:
        insert(op, "taken back")
        op.connection.rollback()
        insert(op, "kept")
        op.connection.commit()
        insert(op, "not committed")
        cut(op)

    stopped_and_finished(database, action)
    assert names(database) == ["kept", "not committed"]
    with database.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.progress)) == 0


def test_a_migration_that_is_never_cut_records_no_steps(database: Database) -> None:
    sent: list[str] = []
    listen = lambda _, __, statement, *___: sent.append(statement)  # noqa: E731
    sa.event.listen(database.engine, "before_cursor_execute", listen)
    with operations(database) as op:
        insert(op, "a")
        op.add_column("t", Column("more", Integer))
    assert not any("INSERT INTO db_smart_progress" in statement for statement in sent)
    with operations(database) as op:
        insert(op, "a")
        cut(op)
    assert any("INSERT INTO db_smart_progress" in statement for statement in sent)


def test_objects_that_were_flushed_have_the_same_ids_again(database: Database) -> None:
    def action(op: Operations) -> list[int]:
        with Session(op.connection.engine, expire_on_commit=False) as session:
            first = [Row(name="a"), Row(name="b")]
            session.add_all(first)
            session.flush()
            second = Row(name=f"after {first[1].id}")
            session.add(second)
            session.flush()
            session.commit()
            cut(op)
            third = Row(name=f"after {second.id}")
            session.add(third)
            session.commit()
        cut(op)
        return [row.id for row in (*first, second, third)]

    first, second = stopped_and_finished(database, action)
    assert second == first
    assert names(database) == ["a", "b", f"after {first[1]}", f"after {first[2]}"]


def test_the_part_that_failed_can_be_edited(database: Database) -> None:
    with suppress(sa.exc.DBAPIError), operations(database) as op:
        insert(op, "a")
        cut(op)
        op.execute("INSERT INTO t (nowhere) VALUES (1)")
        pytest.fail("it ran")
    with operations(database) as op:
        insert(op, "a")
        cut(op)
        insert(op, "mended")
    assert names(database) == ["a", "mended"]


def test_a_column_that_was_renamed_is_not_missed_in_the_next_run(url: URL) -> None:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    T.create(engine)

    def action(op: Operations) -> None:
        op.alter_column("t", "name", type_=String(30), nullable=True)
        op.alter_column("t", "name", new_column_name="renamed")
        cut(op)

    with suppress(Stop), operations(Database("default", None, engine), destructive=True) as op:
        action(op)
        raise Stop
    with operations(Database("default", None, engine), destructive=True) as op:
        action(op)
    with engine.connect() as connection:
        (column,) = (one for one in sa.inspect(connection).get_columns("t") if one["name"] == "renamed")
    assert str(column["type"]).startswith("VARCHAR(30)")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.sampled_from([None, timezone.utc, timezone(timedelta(hours=5, minutes=30))]))
    | st.timedeltas(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")) | st.integers(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(_VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    result = codec.loads(codec.dumps(value))
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize("value", [{"datetime": "x"}, {"dict": 1}, {"bytes": "x", "uuid": 2}, {}])
def test_dictionaries_that_look_like_a_value_come_back(value: Any) -> None:
    assert codec.loads(codec.dumps([value])) == [value]


@pytest.mark.parametrize("value", [object(), 1j, {1, 2}, [date(2026, 1, 1), time(1), range(3)]])
def test_a_value_without_a_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        codec.dumps(value)


def test_buffers_come_back_as_bytes() -> None:
    assert codec.loads(codec.dumps([memoryview(b"a"), bytearray(b"b")])) == [b"a", b"b"]


def test_a_run_goes_on_past_what_it_has_renamed_and_dropped(project: Project) -> None:
    """Where schema changes commit, or the migration was cut, its first operations do not find their tables any more."""
    project.write("""
        @migration
        def old(op):
            op.create_table("t", Column("id", Integer, primary_key=True), Column("a", Integer), Column("n", Integer))
            op.execute("INSERT INTO t (id, a, n) VALUES (1, 1, 0)")
    """)
    project.boot()
    work = """
        @migration(destructive=True)
        def moves(op):
            op.alter_column("t", "a", server_default="5")
            op.add_columns("t", Column("b", Integer))
            op.create_index("ix_t_b", "t", ["b"])
            op.execute("UPDATE t SET b = a, n = n + 1")
            op.drop_column("t", "a")
            op.rename_table("t", "u")
            op.backfill("u", {"n": text("n + 10")})
            raise ValueError("in the end")
    """
    project.write(work)
    for _ in range(2):
        with pytest.raises(DbSmartError, match="in the end"):
            project.boot()
    project.file.write_text(project.file.read_text().replace('raise ValueError("in the end")', ""))
    project.boot()
    assert project.query("SELECT * FROM u") == [(1, 11, 1)]
    assert project.query("SELECT count(*) FROM db_smart_progress") == [(0,)]
