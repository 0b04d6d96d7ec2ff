"""A history of thousands of runs: what a boot and a first request ask does not grow with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from aurum_harmony.db_smart.store import history, tables
from tests.harness.project import Project

RUNS = 2000


@pytest.fixture
def long_lived(project: Project) -> Project:
    """A project whose two migrations have run again and again, and failed in between."""
    project.write(
        "@migration\ndef first(op: Operations) -> None:\n    pass\n\n"
        "@migration\ndef second(op: Operations) -> None:\n    pass\n"
    )
    project.boot()
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        checksums = {row.name: row.checksum for row in connection.execute(sa.select(tables.history))}
        runs = [
            history.row(name, checksums[name], 1.0, error="no" if number % 5 == 4 else None)
            for number in range(RUNS)
            for name in ("second", "first")
        ]
        connection.execute(tables.history.insert(), runs)
        history.update_state(connection, _source(project), ["default"])
    return project


def _source(project: Project) -> str:
    ((source,),) = project.query("SELECT source FROM db_smart_state")
    return str(source)


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What is sent to any database."""
    found: list[str] = []

    def sent(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        found.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", sent)
    yield found
    sa.event.remove(sa.Engine, "before_cursor_execute", sent)


def test_a_boot_and_the_first_request_do_not_read_the_history(long_lived: Project, statements: list[str]) -> None:
    long_lived.flag.unlink()
    assert long_lived.boot().decision == "verified"
    app, smart = long_lived.app()
    assert smart.boot(app).decision == "skipped"
    assert app.test_client().get("/").text == "served"
    long_lived.dispose(app)
    assert statements
    assert not [statement for statement in statements if "db_smart_history" in statement]


def test_of_the_history_only_the_last_run_of_each_content_is_fetched(
    long_lived: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    rows = history._rows

    def count(connection: sa.Connection, query: Any, table: sa.Table, *more: Any, **options: Any) -> Any:
        found = rows(connection, query, table, *more, **options)
        if table is tables.history:
            fetched.append(len(found or ()))
        return found

    monkeypatch.setattr(history, "_rows", count)
    # A comment is no edit of a migration, but has the whole history read.
    with long_lived.file.open("a") as file:
        file.write("# why\n")
    assert long_lived.boot(DB_SMART_BOOT="check").decision == "verified"
    assert fetched == [2]
    applied = long_lived.query("SELECT name, MAX(id) FROM db_smart_history WHERE outcome = 'applied' GROUP BY name")
    engine = sa.create_engine(long_lived.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        found = [item.name for item in history.read_applied(connection)]
    assert found == [name for name, _ in sorted(applied, key=lambda row: row[1])] == ["second", "first"]


def test_names_that_a_database_takes_for_one_are_two_migrations(project: Project) -> None:
    """MariaDB compares texts without regard to case and accents; the checksum of one function is the same."""
    project.write(
        """
        def make(name: str) -> None:
            def fill(op: Operations) -> None:
                pass
            fill.__name__ = name
            migration(once=True)(fill)

        for name in ("fill_e", "fill_E", "fill_é"):
            make(name)
        """
    )
    assert project.boot().applied == ("fill_e", "fill_E", "fill_é")
    with project.file.open("a") as file:
        file.write("# why\n")
    assert project.boot().decision == "verified"
