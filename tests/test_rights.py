"""Roles without rights, and files that another user has made."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError

from .conftest import Project
from .servers import role

V1 = """
@migration
def make_items(op: Operations) -> None:
    op.create_table("items", Column("id", Integer, primary_key=True))
"""


#: What is refused -> the rights of the role, and the URL's options.
REFUSED = {
    ("postgresql", "no right to create"): (["GRANT CONNECT ON DATABASE {database} TO {user}"], {}),
    ("postgresql", "a role that only reads"): (
        ["GRANT ALL ON SCHEMA public TO {user}", "ALTER ROLE {user} SET default_transaction_read_only = on"],
        {},
    ),
    ("mariadb", "no right to create"): (["GRANT SELECT ON {database}.* TO {user}"], {}),
    ("mariadb", "a session that only reads"): (
        ["GRANT ALL ON {database}.* TO {user}"],
        {"init_command": "SET SESSION TRANSACTION READ ONLY"},
    ),
}


@pytest.mark.parametrize(("dialect", "what"), REFUSED)
def test_who_may_not_write_is_told_at_the_first_try(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str, what: str
) -> None:
    rights, options = REFUSED[dialect, what]
    with ExitStack() as stack:
        url = stack.enter_context(role(new_url(dialect), *rights))
        project = make_project(url.update_query_dict(options))
        project.write(V1)
        tries: list[str] = []

        def count(*arguments: object) -> None:
            tries.extend(re.findall("CREATE TABLE db_smart_state", str(arguments[2])))

        app, smart = project.app()
        stack.callback(project.dispose, app)
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", count)
        stack.callback(sa.event.remove, sa.engine.Engine, "before_cursor_execute", count)
        with pytest.raises(DbSmartError, match="(?i)denied|read[- ]only") as caught:
            smart.boot(app)
        assert "Mend the cause and start again" in str(caught.value)
        assert len(tries) == 1


#: How a database only reads for a role that once could write.
READS_ONLY = {
    "postgresql": "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}",
    "mariadb": "GRANT SELECT ON {database}.* TO {user}",
}


@pytest.mark.parametrize("dialect", READS_ONLY)
def test_who_may_only_read_boots_after_an_edited_comment(
    make_project: Callable[..., Project],
    new_url: Callable[[str], URL],
    dialect: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project = make_project(new_url(dialect))
    project.write(V1)
    project.boot()
    project.write(V1 + "# why\n")
    with role(make_url(project.url), READS_ONLY[dialect]) as url:
        caplog.clear()
        project.url = url
        for _ in range(2):
            assert project.boot(DB_SMART_FLAG=".reader").decision in ("verified", "skipped")
    assert [record.message for record in caplog.records if record.levelname != "DEBUG"] == []


def test_the_state_is_not_waited_for(make_project: Callable[..., Project], url: URL) -> None:
    """Another one holds its row, or a SQLite file, in a transaction that does not end."""
    project = make_project(url)
    project.write(V1)
    project.boot()
    project.write(V1 + "# why\n")
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE db_smart_state SET token = token + 1")
        assert project.boot().decision == "verified"
        connection.rollback()
    source = project.query("SELECT source FROM db_smart_state")
    project.flag.unlink()
    assert project.boot().decision == "verified"
    assert project.query("SELECT source FROM db_smart_state") != source
