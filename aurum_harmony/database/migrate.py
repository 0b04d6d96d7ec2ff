"""The application's migrations, in the order in which they run.

To add one, write a function below the last and mark it; to extend one, edit it. The next boot runs what is new or
edited, once on each database. See docs/migrations.md.
"""

from __future__ import annotations

from sqlalchemy import Column, Date, Float, Integer, Text

from aurum_harmony.db_smart import Operations, migration


@migration
def migrate_user_fields(op: Operations) -> None:
    """Add the personal fields to a ``users`` table from before them."""
    op.add_columns(
        "users",
        Column("date_of_birth", Date),
        Column("address", Text),
        Column("city", Text),
        Column("state", Text),
        Column("postal_code", Text),
        Column("country", Text),
        Column("pan_card", Text),
        Column("aadhar_card", Text),
        Column("initial_capital", Float),
        Column("max_accounts_allowed", Integer),
    )
