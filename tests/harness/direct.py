"""Operations without a runner: one run of one migration, under the lock, as the runner has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from aurum_harmony.db_smart import Operations
from aurum_harmony.db_smart.session.journal import Journal
from aurum_harmony.db_smart.session.lock_timeout import DdlLockTimeout
from aurum_harmony.db_smart.session.transaction import RunTransaction
from aurum_harmony.db_smart.settings import DdlSettings, LockSettings
from aurum_harmony.db_smart.store import history, tables
from aurum_harmony.db_smart.store.database import Database, begin
from aurum_harmony.db_smart.store.lock import lock_of

_CHANGES = ("ALTER", "CREATE", "DROP", "COMMENT", "RENAME", "SET SESSION FOREIGN_KEY_CHECKS")
_OWN = re.compile("|".join(tables.TABLE_NAMES))


@contextmanager
def operations(
    database: Database, connection: sa.Connection | None = None, *, destructive: bool = False, name: str = "direct"
) -> Iterator[Operations]:
    """Operations in a transaction that is committed at the end, as that of a migration of this name.

    :param connection: a connection of ``database``; a new one when ``None``.
    """
    if connection is None:
        with database.connect() as new, operations(database, new, destructive=destructive, name=name) as op:
            yield op
        return
    history.create_state(connection)
    begin(connection)
    history.create_tables(connection)
    connection.commit()
    ddl = DdlSettings()
    lock = lock_of(database, LockSettings())
    with lock.held(lambda _: False):
        lock_timeout = DdlLockTimeout(database, connection, ddl.lock_timeout)
        begin(connection)
        journal = Journal(connection, name, at_once=not database.transactional_ddl, begun=True)
        transaction = RunTransaction(
            database,
            connection,
            journal,
            lock=lock,
            lock_timeout=lock_timeout,
            settings=ddl,
            transactional=True,
        )
        op = Operations(transaction, destructive=destructive)
        try:
            yield op
            op.finish()
            journal.clear(connection)
            connection.commit()
        finally:
            transaction.close()
            connection.rollback()


def statements(database: Database, action: Callable[[], None]) -> list[str]:
    """The schema changes that an action sends, but for those of the extension's own tables."""
    sent: list[str] = []

    def listen(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.lstrip().upper().startswith(_CHANGES) and not _OWN.search(statement):
            sent.append(statement)

    sa.event.listen(database.engine, "before_cursor_execute", listen)
    try:
        action()
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", listen)
    return sent
