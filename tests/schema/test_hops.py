"""How far it is from a migration's call to the driver: what a person reads through who follows one operation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Integer
from sqlalchemy.engine import URL

import aurum_harmony.db_smart
from aurum_harmony.db_smart.store.database import Database
from tests.harness.direct import operations

OURS = str(Path(aurum_harmony.db_smart.__file__).parent)


def test_one_operation_takes_few_calls(sqlite_url: URL) -> None:
    database = Database("default", None, sa.create_engine(sqlite_url))
    found: list[list[str]] = []

    def look(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.startswith("ALTER TABLE"):
            return
        frame, names = sys._getframe(), []
        while frame is not None and frame.f_code is not here:
            if frame.f_code.co_filename.startswith(OURS):
                names.append(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        found.append(names[::-1])

    here = sys._getframe().f_code
    sa.event.listen(database.engine, "before_cursor_execute", look)
    try:
        with operations(database) as op:
            op.create_table("t", Column("id", Integer, primary_key=True))
            op.add_column("t", Column("n", Integer))
    finally:
        database.engine.dispose()
    (calls,) = found
    assert len(calls) <= 7, calls
