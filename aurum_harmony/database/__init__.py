"""The application's data: ``db``, its models, and its migrations in :mod:`.migrate`."""

from __future__ import annotations

from .models import User, db

__all__ = ["User", "db"]
