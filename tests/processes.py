"""Other processes for the tests: another Python, another user."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

#: Ends a script's rights to read what its mode forbids, as root may read everything.
BECOME_NOBODY = "import os\nif os.geteuid() == 0:\n    os.seteuid(65534)\n"


def run_python(script: str, *args: str, python: str = sys.executable, options: tuple[str, ...] = ()) -> str:
    """Run a script in a new process and return what it prints.

    :param options: more options of the interpreter.

    :raises AssertionError: it fails.
    """
    checkout = str(Path(__file__).parent.parent)
    found = subprocess.run(
        [python, "-B", "-W", "ignore", *options, "-c", script, *args],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": checkout, "PYTHONIOENCODING": "utf-8"},
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
