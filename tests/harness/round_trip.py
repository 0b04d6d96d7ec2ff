"""What ``flask db-smart new`` writes, applied: the database is as the models, or the file says what is left."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from difflib import unified_diff
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from tests.harness.project import Project

HEADER = "from __future__ import annotations\n\nfrom aurum_harmony.db_smart import Operations, migration\n\n\n"
FIRST = "@migration\ndef first(op: Operations) -> None:\n    pass\n"


def of(metadata: sa.MetaData) -> Callable[[SQLAlchemy], None]:
    """Models for a project, of tables that were made without Flask-SQLAlchemy."""

    def models(db: SQLAlchemy) -> None:
        metadata.info["bind_key"] = None
        db.metadatas[None] = metadata

    return models


def begun(project: Project) -> Project:
    """A project whose migrations have run, and have left the database as it was."""
    project.config["DB_SMART_CREATE_ALL"] = False
    project.models = of(sa.MetaData())
    project.write(FIRST, header=HEADER)
    project.boot()
    return project


def written(project: Project, *args: str) -> str:
    """What is written behind the first migration, in the format of both formatters."""
    result = project.run("new", "from_models", "--from-models", *args)
    assert result.exit_code == 0, result.output
    formatted(project.file)
    text = project.file.read_text(encoding="utf-8")
    return text.partition(FIRST)[2]


def formatted(path: Path, *, lint: bool = True) -> None:
    """Ruff and black would format a file as it is, and ruff finds nothing in it.

    :param lint: ``False`` for one that was not in order before.
    """
    text = path.read_bytes().decode()
    black: Any = import_module("black")
    other = black.format_str(text, mode=black.Mode())
    assert other == text, "\n".join(unified_diff(text.splitlines(), other.splitlines()))
    check = ["check", "--isolated", "--select", "E,F,W,I", "--ignore", "E501"]
    for command in ([check] if lint else []) + [["format", "--isolated", "--diff"]]:
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, path.name],
            capture_output=True,
            text=True,
            check=False,
            cwd=path.parent,  # the package of a user's is third-party to it
        )
        assert done.returncode == 0, done.stdout + done.stderr + text


def left(project: Project) -> list[str]:
    """What ``diff`` finds: action, kind and path."""
    result = project.run("diff", "--json")
    assert result.exit_code == 0, result.output
    (database,) = json.loads(result.stdout)["databases"]
    return [
        " ".join((one["action"], one["kind"], ".".join(filter(None, (one["schema"], one["table"], one["name"])))))
        for one in database["differences"]
    ]


def uncommented(text: str, value: str = "1") -> str:
    """What a person makes of it who wants all of it: each comment that is code is done.

    :param value: what is put where a value is to be said.
    """
    lines, found = text.splitlines(), list[str]()
    while lines:
        line = lines.pop(0)
        if line.startswith(("    # op.", "    # import ", "    # from ")):
            code = [line]
            while not _is_code(code):
                code.append(lines.pop(0))
            found += [one.replace("    # ", "    ", 1) for one in code]
        else:
            found.append(line)
    body = "\n".join(found).replace("...", value)
    return body.replace("@migration\ndef from_models", "@migration(destructive=True)\ndef from_models")


def _is_code(lines: list[str]) -> bool:
    try:
        ast.parse(textwrap.dedent("\n".join(one.replace("    # ", "", 1) for one in lines)))
    except SyntaxError:
        return False
    return True
