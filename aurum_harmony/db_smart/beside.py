"""The commands of Flask-Migrate that change a database hold the lock of db-smart meanwhile.

Alembic has no lock of its own: it reads the version table, and runs what lacks by what it read. So ``flask db upgrade``
typed while a boot migrates would run the same revisions again, and a boot in the middle of it too.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial

import click
import sqlalchemy as sa
from flask import current_app

from .boot.planner import Planner
from .errors import DbSmartError
from .notices import logger_of
from .store import history
from .store.database import Database, begin, commit
from .store.lock import lock_of

_logger = logger_of(__name__)

#: Those that write to the version table.
_COMMANDS = {"upgrade", "downgrade", "stamp"}


def hold_during(context: click.Context) -> None:
    """Wait for the lock, and hold it until a command ends, where it is one of these and its application has db-smart.

    :raises DbSmartError: another process held it for too long, or the database cannot be reached.
    """
    group = getattr(sys.modules.get("flask_migrate.cli"), "db", None)
    named = context.info_name in _COMMANDS and context.parent is not None and context.parent.command is group
    smart = current_app.extensions.get("db_smart") if named else None
    if smart is None or context.params.get("sql"):  # a script is made without a database
        return
    planner: Planner = smart.planner(current_app._get_current_object())  # type: ignore[attr-defined]
    names = ["default"]
    for name in names:  # grows by what the first one says
        database = planner.databases.get(name)
        if database is None or database.in_memory:
            continue
        state = _row(planner, database)
        names += [other for other in (state.databases if state else ()) if other not in names]
        if state is None or state.place is None:  # that of another schema is not what a boot would take
            lock = lock_of(database, planner.settings.lock)
            context.with_resource(lock.held(lambda _: False))
            lock.note(f"flask db {context.info_name}")
            if context.info_name == "downgrade" and state is not None:
                _forget_finished(planner, database)
            context.call_on_close(partial(_note, planner, database))  # while the lock is still held


def _note(planner: Planner, database: Database) -> None:
    """Have the history say what a command has done; else the next run does so, if its code has the revision."""
    try:
        with database.connect() as connection:
            plan = planner.by_connection(database, connection)
            connection.rollback()  # what was only read
            if plan.first_run_done:
                begin(connection)
                for name, checksum, mark in planner.done_alone(plan):
                    history.record(connection, name, checksum, 0.0, mark=mark)
                history.forget_steps(connection, planner.without_steps(plan))
                commit(connection)
    except (DbSmartError, sa.exc.DBAPIError) as error:
        _logger.debug("db-smart: what a command has done is not recorded: %s", database.redact(error))


def _forget_finished(planner: Planner, database: Database) -> None:
    """Forget the steps of revisions that another tool has finished, before the command takes one of them back."""
    with suppress(DbSmartError), database.connect() as connection:  # of files that the command may not need
        plan = planner.by_connection(database, connection)
        connection.rollback()
        begin(connection)
        history.forget_steps(connection, planner.without_steps(plan))
        commit(connection)


def _row(planner: Planner, database: Database) -> history.State | None:
    """The state row of a database, which on a server holds the lock and is made where there is none."""
    if database.path is not None:
        database.path.parent.mkdir(parents=True, exist_ok=True)
    state = planner.state(database)
    if state is None and database.facts.server:
        with database.connect() as connection:
            history.create_state(connection)
    return state
