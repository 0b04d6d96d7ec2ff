"""Kill processes while they make the database of a Git branch: ``python -m tests.harness.kill_branch URL``.

A forked process enters a new branch and kills itself with SIGKILL at its n-th step, for every n until one gets
through: at each statement to the server, and at each file that it opens, renames or removes. The next boot must then
find every row in the database of either branch, and no part of a copy may be left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from aurum_harmony.db_smart import DbSmart
from tests.harness.crash import ended, forked
from tests.harness.repository import git

ROWS = 500
_EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.chmod", "sqlite3.connect")
_left: list[int] = []


def _step(*_: Any) -> None:
    """End the process if this is the step."""
    if _left:
        _left[0] -= 1
        if _left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _boot(folder: Path, url: str, kill_at: int = 0) -> str:
    """Boot, and return how many rows the application sees, and where."""
    app = Flask("kill_branch", root_path=str(folder), instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DEBUG=True, DB_SMART_BRANCHES=True, DB_SMART_LOCK_TIMEOUT=10)
    db = SQLAlchemy(app)
    smart = DbSmart(app, db, migrations="kill_branch_migrations")
    if kill_at:
        _left[:] = [kill_at]
    smart.enter_branch(app)
    _left.clear()
    smart.boot(app)
    with app.app_context():
        count = db.session.scalar(sa.text("SELECT count(*) FROM words"))
        db.session.close()
        db.engine.dispose()
        return f"{count} {'.branch-' in str(db.engine.url.database)}"


def main() -> None:
    """Kill, and print the count of what was found as JSON."""
    url = sys.argv[1]
    sys.addaudithook(lambda event, _: _step() if event in _EVENTS else None)
    sa.event.listen(sa.Engine, "before_cursor_execute", _step)
    counts = {"kills": 0, "broken": 0, "steps": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kill_branch_migrations.py").write_text(
            "from aurum_harmony.db_smart import migration\n@migration\ndef words(op):\n"
            "    op.execute('CREATE TABLE words (word VARCHAR(200))')\n"
        )
        sys.path.insert(0, name)
        git(folder, "init", "-q")
        git(folder, "commit", "-q", "--allow-empty", "-m", "first")
        _boot(folder, url)
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO words VALUES (:word)"), [{"word": "x" * 200}] * ROWS)
        while True:
            counts["steps"] += 1
            git(folder, "checkout", "-q", "-b", f"b{counts['steps']}", "main")
            killed = ended(forked(_boot, folder, url, counts["steps"])) == -signal.SIGKILL
            counts["kills"] += killed
            counts["broken"] += _boot(folder, url) != f"{ROWS} True"
            git(folder, "checkout", "-q", "main")
            counts["broken"] += _boot(folder, url) != f"{ROWS} False"
            counts["broken"] += len(list(folder.glob("*.partial")))
            if not killed:
                break
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
