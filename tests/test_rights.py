"""Roles without rights, and files that another user has made."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

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
