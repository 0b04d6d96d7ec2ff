"""db-smart: database migrations at boot, only when something changed.

A Flask extension. It needs Flask, Flask-SQLAlchemy and Alembic, and nothing of the application it serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    ConfigError,
    DatabaseBehind,
    DatabaseUnreachable,
    DbSmartError,
    HistoryUnreadable,
    MigrationError,
    MigrationFailed,
)
from .extension import BootReport, DbSmart

if TYPE_CHECKING:
    from .fleet.fleet import Fleet
    from .loading.decorator import migration
    from .operations import Operations

__all__ = [
    "BootReport",
    "ConfigError",
    "DatabaseBehind",
    "DatabaseUnreachable",
    "DbSmart",
    "DbSmartError",
    "Fleet",
    "HistoryUnreadable",
    "MigrationError",
    "MigrationFailed",
    "Operations",
    "migration",
]


def __getattr__(name: str) -> Any:
    """What only migrations or fleets need is imported when they ask for it: a boot with nothing to do does not."""
    if name == "Fleet":
        from .fleet.fleet import Fleet

        return Fleet
    if name == "Operations":
        from .operations import Operations

        return Operations
    if name == "migration":
        from .loading.decorator import migration

        return migration
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
