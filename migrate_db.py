"""``python migrate_db.py [--force]``: the command ``flask db-smart migrate`` for this application."""

from pathlib import Path

from flask.cli import ScriptInfo, load_dotenv

from aurum_harmony import create_app
from aurum_harmony.db_smart.cli import migrate

if __name__ == "__main__":
    load_dotenv()
    migrate.main(prog_name=Path(__file__).name, obj=ScriptInfo(create_app=create_app))
