"""``flask db-smart`` in a process of its own: into a pipe, on a terminal, and asked by a shell what may follow."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from tests.harness.processes import ROOT, environment
from tests.harness.project import Project
from tests.samples import APP

_CLI = """
import json, sys
from flask import Flask
from flask.cli import ScriptInfo
from flask_sqlalchemy import SQLAlchemy
from aurum_harmony.db_smart import DbSmart
sys.path.insert(0, sys.argv[1])
app = Flask("cli", instance_path=sys.argv[3])
app.config.update(json.loads(sys.argv[4]))
DbSmart(app, SQLAlchemy(app), migrations=sys.argv[2])
info = ScriptInfo(create_app=lambda: app)
app.cli.main(args=["db-smart", *sys.argv[5:]], obj=info)
"""
#: What the script ``flask`` does; Click takes the name of the variable that asks for completion from its name.
_FLASK = "import sys; sys.argv[0] = 'flask'; from flask.cli import main; main()"
#: What moves the cursor, clears and colours: https://www.xfree86.org/current/ctlseqs.html
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def _text(url: URL | str) -> str:
    return make_url(url).render_as_string(hide_password=False)


def command_line(project: Project, *arguments: str, instance: Path | None = None) -> list[str]:
    """How to start ``flask db-smart ARGUMENTS``."""
    binds = {name: _text(url) for name, url in project.config.get("SQLALCHEMY_BINDS", {}).items()}
    config = {**project.config, "SQLALCHEMY_DATABASE_URI": _text(project.url), "SQLALCHEMY_BINDS": binds}
    where = [str(project.directory), project.module, str(instance or project.instance)]
    return [sys.executable, "-c", _CLI, *where, json.dumps(config), *arguments]


def run(project: Project, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``flask db-smart ARGUMENTS`` in a process of its own."""
    options = {"stdout": subprocess.PIPE, "text": True, "env": environment(), **options}
    return subprocess.run(command_line(project, *arguments), stderr=subprocess.PIPE, timeout=60, **options)


class Terminal:
    """A terminal on which a command runs.

    :ivar seen: what it has got by now, with all that moves the cursor.
    """

    def __init__(
        self, arguments: list[str], variables: Mapping[str, str] = {}, *, columns: int = 80, lines: int = 24
    ) -> None:
        fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        inherited = environment()
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            inherited.pop(name, None)
        surroundings = {**inherited, "TERM": "xterm", **variables}
        self.process = subprocess.Popen(arguments, stdin=side, stdout=side, stderr=side, env=surroundings)
        os.close(side)
        self._bytes = b""

    @property
    def seen(self) -> str:
        return self._bytes.decode()

    def until(self, words: str) -> None:
        """Wait until it shows something.

        :raises AssertionError: the command ends before.
        """
        while words.encode() not in self._bytes:
            assert self._read(), self.seen

    def rest(self) -> int:
        """Wait for the end, and return the exit code."""
        while self._read():
            pass
        return self.process.wait(60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)

    @property
    def lines(self) -> list[str]:
        """The lines of a command that only prints, without colours."""
        return ESCAPES.sub("", self.seen).replace("\r\n", "\n").splitlines()

    def _read(self) -> bool:
        try:
            chunk = os.read(self._main, 65536)
        except OSError:  # the other side is closed
            return False
        self._bytes += chunk
        return bool(chunk)


def printed(project: Project, *arguments: str, columns: int, **variables: str) -> list[str]:
    """The lines that a command prints on a terminal of so many columns.

    :raises AssertionError: it fails.
    """
    with Terminal(command_line(project, *arguments), variables, columns=columns) as terminal:
        assert terminal.rest() == 0, terminal.seen
        return terminal.lines


def write_app(project: Project) -> None:
    """Write the application as a module that ``flask --app other_app`` finds."""
    path = project.directory / "other_app.py"
    path.write_text(APP.format(instance=str(project.instance), url=_text(project.url), module=project.module))


def flask(project: Project, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``flask --app other_app ARGUMENTS``, see :func:`write_app`, as a user does."""
    return subprocess.run(
        [sys.executable, "-c", _FLASK, "--app", "other_app", *arguments],
        capture_output=True,
        text=True,
        cwd=project.directory,
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(project.directory)]), **variables),
        timeout=60,
    )


def completions(project: Project, *words: str, shell: str = "bash") -> list[str]:
    """What a shell offers for the last of these words behind ``flask --app other_app``; nothing else may be printed.

    :raises AssertionError: something else is.
    """
    line = " ".join(["flask", "--app", "other_app", *words])
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) + 2), "_FLASK_COMPLETE": f"{shell}_complete"}
    found = flask(project, **variables)
    assert (found.returncode, found.stderr) == (0, "")
    return [one.partition(",")[2] for one in found.stdout.splitlines() if one]
