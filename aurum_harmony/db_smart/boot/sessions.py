"""Names the sessions of an application by its release, where a server shows such names and nobody has chosen one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine


def name_sessions(engines: Iterable[Engine], name: Callable[[], str | None]) -> None:
    """Have each new connection tell which release it is of; what a user has set stays.

    :param name: asked at each connection; ``None`` where it is not known.
    """

    def tell(dialect: sa.Dialect, _: Any, __: Any, parameters: dict[str, Any]) -> None:
        if dialect.name != "postgresql":
            return
        # libpq takes the first only where there is neither application_name nor PGAPPNAME.
        key = {"psycopg": "fallback_application_name", "psycopg2": "fallback_application_name"}.get(dialect.driver)
        if dialect.driver == "pg8000" and "PGAPPNAME" not in os.environ:
            key = "application_name"
        found = name() if key is not None else None
        if key is not None and found is not None:
            parameters.setdefault(key, found)

    for engine in engines:
        sa.event.listen(engine, "do_connect", tell)
