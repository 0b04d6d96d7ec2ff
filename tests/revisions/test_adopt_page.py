"""The page "From Flask-Migrate, and back": its application, and every command of it, in its order."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness import processes
from tests.harness.processes import ROOT
from tests.harness.project import DIALECTS

PAGE = "docs/from-flask-migrate.md"
REVISION = """\
import sqlalchemy as sa
from alembic import op

revision = {name!r}
down_revision = {down!r}


def upgrade():
    {upgrade}


def downgrade():
    pass
"""
MAKE = 'op.create_table("members", sa.Column("id", sa.Integer, primary_key=True))'
#: The process is killed in the middle of it, once.
HALF = """op.add_column("members", sa.Column("phone", sa.String(20)))
    import os, pathlib, signal
    if pathlib.Path("kill").exists():
        pathlib.Path("kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    op.add_column("members", sa.Column("street", sa.String(20)))"""
NAME = 'op.add_column("members", sa.Column("name", sa.String(20)))'


def blocks(language: str) -> list[str]:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Reader:
    """Who types what the page says."""

    def __init__(self, folder: Path, url: URL) -> None:
        self.folder = folder
        self.url = url.render_as_string(hide_password=False)
        (self.source,) = blocks("python")
        self.typed: list[str] = []

    def write(self, *, new: bool) -> None:
        """Write the application, with the lines that are new or without them."""
        lines = [line for line in self.source.splitlines() if new or not line.endswith("# new")]
        source = "\n".join(lines).replace('"sqlite:///club.db"', repr(self.url))
        (self.folder / "club.py").write_text(source + "\n", encoding="utf-8")

    def python(self, *arguments: str, code: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            cwd=self.folder,
            env=processes.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == code, f"{arguments}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def type(self, command: str) -> str:
        """Type a command of the page."""
        self.typed.append(command)
        quoted = [one or other for one, other in re.findall(r'"([^"]*)"|(\S+)', command)]
        return self.python("-m", *quoted)

    def serve(self) -> str:
        return self.python("-c", "import club; print(club.create_app().test_client().get('/').text)").split()[0]

    def revision(self, name: str, down: str | None, upgrade: str) -> None:
        path = self.folder / "migrations" / "versions" / f"{name}.py"
        path.write_text(REVISION.format(name=name, down=down, upgrade=upgrade), encoding="utf-8")


@pytest.mark.parametrize(
    "dialect", [pytest.param(name, marks=[pytest.mark.slow] if name != "sqlite" else []) for name in DIALECTS]
)
def test_every_command_of_the_page(new_url: Callable[[str], URL], tmp_path: Path, dialect: str) -> None:
    url = new_url(dialect)
    reader = Reader(tmp_path, url)
    assert reader.source.count("# new") <= 5
    reader.write(new=False)
    reader.python("-m", "flask", "--app", "club", "db", "init")
    reader.revision("a1", None, MAKE)
    reader.python("-m", "flask", "--app", "club", "db", "upgrade")
    reader.revision("b2", "a1", NAME)
    before, move, write, apply, rescue, back = (block.splitlines() for block in blocks("bash"))
    assert "a1" in [reader.type(command) for command in before][-1]
    reader.write(new=True)
    assert "b2" in "".join(map(reader.type, move))
    assert reader.serve() == '{"members":0}'
    for command in write:
        said = reader.type(command)
    assert "(head)" in said
    for command in apply:
        said = reader.type(command)
    assert "No new upgrade operations detected" in said
    assert reader.serve() == '{"members":0}'
    reader.write(new=False)
    with sa.create_engine(url, poolclass=sa.pool.NullPool).connect() as connection:
        head = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    reader.revision("half", head, HALF)
    (tmp_path / "kill").touch()
    reader.python("-m", "flask", "--app", "club", "db", "upgrade", code=-signal.SIGKILL)
    reader.write(new=True)
    (command,) = rescue
    said = reader.type(command)
    begun = "passes by what is done: ALTER TABLE members ADD COLUMN phone"
    assert ("nothing of it is there" if dialect == "postgresql" else begun) in said
    assert reader.serve() == '{"members":0}'
    reader.write(new=False)
    for command in back:
        reader.type(command)
    assert reader.serve() == '{"members":0}'
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        for statement in "".join(blocks("sql")).split(";\n"):
            if statement:
                connection.exec_driver_sql(statement)
        assert set(sa.inspect(connection).get_table_names()) == {"members", "alembic_version"}
    reader.write(new=True)
    assert reader.serve() == '{"members":0}'
    assert reader.typed == [line for block in blocks("bash") for line in block.splitlines()]
