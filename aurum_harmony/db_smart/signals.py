"""Signals for those who want to listen: https://blinker.readthedocs.io/

The sender is always the Flask application.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A migration begins. Arguments: ``migration`` (its name), ``database`` (name), ``index`` (from 1), ``total``.
migration_started = _signals.signal("migration-started")

#: A migration was applied and recorded. Arguments as above, and ``duration`` in seconds.
migration_applied = _signals.signal("migration-applied")

#: A migration failed. Arguments as for the start, and ``error``, a :class:`~.errors.MigrationFailed`.
migration_failed = _signals.signal("migration-failed")

#: A snapshot was made before a run. Arguments: ``database`` (name), ``path``.
snapshot_taken = _signals.signal("snapshot-taken")

#: A backfill has come further; sent after each batch. Arguments: ``migration``, ``database`` (names), ``done`` and
#: ``total`` (rows, the second an estimate), ``rate`` (rows per second), ``eta`` (seconds, ``None`` when not known).
migration_progress = _signals.signal("migration-progress")

#: Boot came to a decision. Argument: ``report``, a :class:`~.extension.BootReport`.
booted = _signals.signal("booted")
