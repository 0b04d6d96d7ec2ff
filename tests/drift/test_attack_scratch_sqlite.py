"""Attacks on the scratch database of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from aurum_harmony.db_smart.drift.comparison import Comparison, Drift
from aurum_harmony.db_smart.lint.trace import trace
from aurum_harmony.db_smart.preview import Preview
from aurum_harmony.db_smart.store.database import Database


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The database, and another one."""
    paths = tmp_path / "a.db", tmp_path / "b.db"
    for path in paths:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE users (id INTEGER NOT NULL PRIMARY KEY)")
    return paths


def models(schema: str | None = None) -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True))
    if schema is not None:
        sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True), schema=schema)
    return metadata


def columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return [name for _, name, *_ in connection.execute("PRAGMA table_info(users)")]


def drift(path: Path, metadata: sa.MetaData, *script: str) -> Drift:
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    pending = [Preview("more", "new", script=[*script])] if script else []
    return Comparison().of(Database("default", None, engine), metadata, pending)


@pytest.mark.parametrize("pending", [True, False])
def test_files_are_not_attached(files: tuple[Path, Path], pending: bool) -> None:
    """Neither by a migration nor by a listener of the models."""
    path, other = files
    script = f"ATTACH DATABASE '{other}' AS other", "ALTER TABLE other.users ADD COLUMN more INTEGER"
    copy = f"VACUUM INTO '{path.with_name('copy.db')}'"
    metadata = models()
    if pending:
        found = drift(path, metadata, *script, copy)
        assert found.counted == []
    else:

        @sa.event.listens_for(metadata, "after_create")
        def attach(_: Any, connection: sa.Connection, **__: Any) -> None:
            for sql in script:
                with pytest.raises(sa.exc.DatabaseError):
                    connection.exec_driver_sql(sql)

        found = drift(path, metadata)
    assert found.differences == []
    assert columns(other) == ["id"]
    assert not path.with_name("copy.db").exists()


@pytest.fixture
def attaching(files: tuple[Path, Path]) -> Iterator[None]:
    """Every connection of SQLite attaches the other file, as a listener of all engines does."""

    def attach(connection: Any, _: object) -> None:
        connection.execute(f"ATTACH '{files[1]}' AS other")

    sa.event.listen(Engine, "connect", attach)
    yield
    sa.event.remove(Engine, "connect", attach)


@pytest.mark.parametrize("script", [(), ("ALTER TABLE users ADD COLUMN more INTEGER",)])
@pytest.mark.usefixtures("attaching")
def test_a_listener_of_all_engines(files: tuple[Path, Path], script: tuple[str, ...]) -> None:
    path, other = files
    found = drift(path, models("other"), *script)
    assert [one.path for one in found.differences] == ["users.more"] * len(script)
    assert found.uncounted == {}
    assert columns(path) == columns(other) == ["id"]


def test_a_trace_attaches_no_file(files: tuple[Path, Path]) -> None:
    path, other = files
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    script = [f"ATTACH DATABASE '{other}' AS other", "ALTER TABLE other.users ADD COLUMN more INTEGER"]
    notes: list[str] = []
    trace(Database("default", None, engine), [Preview("more", "new", script=script)], notes)
    assert "not authorized" in notes[0]
    assert columns(other) == ["id"]
