"""Other processes for the tests: another Python, another user, herds and crashes."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

ROOT = Path(__file__).parents[2]

#: Ends a script's rights to read what its mode forbids, as root may read everything.
BECOME_NOBODY = "import os\nif os.geteuid() == 0:\n    os.seteuid(65534)\n"

_BYTECODE = tempfile.TemporaryDirectory(prefix="bytecode")

#: What the herds and the crashes came to, a line each.
results: list[str] = []


def environment(**more: str) -> dict[str, str]:
    """The environment of a new process that imports this checkout; byte code is kept between such processes."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": _BYTECODE.name, **more}


def run_harness(module: str, name: str, urls: Iterable[URL], *options: str) -> dict[str, Any]:
    """Run a module of ``tests.harness`` in a new process, return its report and keep it for the summary.

    :param name: what kind of database it is.
    :raises AssertionError: it fails.
    """
    texts = [url.render_as_string(hide_password=False) for url in urls]
    started = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", f"tests.harness.{module}", *texts, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    title = f"{module} on {name}, {time.monotonic() - started:.0f} s: "
    if found.returncode != 0:
        results.append(title + "failed")
        raise AssertionError(found.stderr)
    report: dict[str, Any] = json.loads(found.stdout)
    rounds = report if isinstance(next(iter(report.values())), dict) else {"": report}
    for round_name, counts in rounds.items():
        results.append(title + ", ".join([round_name] * bool(round_name) + [f"{k} {v}" for k, v in counts.items()]))
    return {**report, "stderr": found.stderr}


def run_python(script: str, *args: str, python: str = sys.executable, options: tuple[str, ...] = ()) -> str:
    """Run a script in a new process and return what it prints.

    :param options: more options of the interpreter.

    :raises AssertionError: it fails.
    """
    found = subprocess.run(
        [python, "-B", "-W", "ignore", *options, "-c", script, *args],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@cache
def find_python(version: str) -> str | None:
    """A Python of a minor version, from the path or from pyenv; ``None`` where there is none that runs."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    candidates = sorted(glob.glob(os.path.join(glob.escape(root), "versions", f"{version}.*", "bin", "python")))
    on_path = shutil.which(f"python{version}")
    for candidate in [*candidates, *([on_path] if on_path else [])]:
        try:
            found = run_python("import sys; print('%d.%d' % sys.version_info[:2])", python=candidate)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            continue  # A shim of pyenv stands on the path for versions that are not chosen.
        if found.strip() == version:
            return candidate
    return None


#: Starts a process that boots, as the fixture ``start_child`` does.
Start = Callable[..., "subprocess.Popen[str]"]


def line_with(process: subprocess.Popen[str], words: str) -> None:
    """Wait until a process logs something."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return
    raise AssertionError("".join(said))


def in_the_middle(child: subprocess.Popen[str]) -> None:
    """Wait until a child is in the middle of its migration."""
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "in the middle\n", line + child.stderr.read() if child.stderr else line
