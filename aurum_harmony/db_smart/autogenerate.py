"""Alembic's autogenerate leaves the tables of this extension alone.

A plugin of Alembic, found by its entry point in the group ``alembic.plugins``; where this package is not installed,
the extension registers it if Alembic is loaded. Its name lies below ``alembic.autogenerate``, because Alembic uses
those without being told: https://alembic.sqlalchemy.org/en/latest/api/plugins.html
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .store.tables import is_ours

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult

_NAME = "alembic.autogenerate.db_smart"


def setup(plugin: Plugin) -> None:
    """Called by Alembic."""
    from alembic.util import DispatchPriority

    plugin.add_autogenerate_comparator(_look_past_ours, "autogenerate", priority=DispatchPriority.FIRST)


def register() -> None:
    """Make the plugin known to an Alembic that is loaded, unless its entry point has done so."""
    from alembic.runtime.plugins import Plugin, _all_plugins

    if _NAME not in _all_plugins:
        Plugin.setup_plugin_from_module(sys.modules[__name__], _NAME)


def _look_past_ours(context: AutogenContext, upgrade: UpgradeOps) -> PriorityDispatchResult:
    """Filter our tables out before the database is compared, as an ``include_name`` of ``env.py`` would."""
    from alembic.util import PriorityDispatchResult

    def theirs(name: str | None, kind: str, _: Any) -> bool:
        return kind != "table" or not is_ours(name or "")

    context._name_filters.append(theirs)
    return PriorityDispatchResult.CONTINUE
