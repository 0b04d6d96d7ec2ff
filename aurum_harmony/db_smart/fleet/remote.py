"""What a worker in another process, or on another machine, does for a fleet: only names travel to it.

It makes the application as ``flask --app`` would, without migrating its databases, and finds the fleet there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import click
from flask.cli import ScriptInfo

from ..errors import DbSmartError
from .ledger import FAILED, Result

if TYPE_CHECKING:
    from .tenants import Crew

#: Where ``app.extensions`` has the fleet.
EXTENSION = "db_smart_fleet"
_crews: dict[str | None, Crew] = {}
_making = threading.Lock()


def bring(name: str, factory: str | None, source: str) -> Result:
    """Bring one tenant up to date.

    :param factory: the application, as ``flask --app`` takes it; ``None`` for what that finds by itself.
    :param source: the digest of the sources that are to be applied.
    """
    try:
        crew = _crew(factory)
    except DbSmartError as error:
        return Result(name, FAILED, error=error.message)
    if crew.source != source:
        return Result(
            name,
            FAILED,
            error="The worker has other migrations than who leads the run. It changed nothing. Start the workers again "
            "with the same release.",
        )
    return crew.bring(name)


def _crew(factory: str | None) -> Crew:
    """Who brings tenants up to date in this process; made once.

    :raises DbSmartError: the application cannot be made, or has no fleet.
    """
    with _making:
        if factory not in _crews:
            info = ScriptInfo(app_import_path=factory)
            # As under a flask command, so that making the application does not migrate.
            with click.Context(click.Command("db-smart"), info_name="db-smart", obj=info):
                try:
                    app = info.load_app()
                except click.ClickException as error:
                    raise DbSmartError(f"The worker cannot make the application: {error.message}") from None
            if EXTENSION not in app.extensions:
                raise DbSmartError("The application that the worker makes has no fleet.")
            crew = app.extensions[EXTENSION].crew(app)
            crew.load()
            _crews[factory] = crew
        return _crews[factory]
