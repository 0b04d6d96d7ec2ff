"""What is told to be installed exists, and what is handed on is whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from aurum_harmony import create_app
from aurum_harmony.db_smart import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("postgres://u@h/d", "psycopg", r"psycopg\[binary\]"),
        ("postgresql://u@h/d", "psycopg", r"psycopg\[binary\]"),
        ("mysql://u@h/d", "pymysql", "PyMySQL"),
        ("mariadb://u@h/d", "pymysql", "PyMySQL"),
    ],
)
def test_a_missing_driver_is_named_as_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"Install it: pip install '{package}'"):
        create_app({"SQLALCHEMY_DATABASE_URI": url, "INSTANCE_PATH": str(tmp_path)})


def test_the_sdist_holds_all_that_is_versioned(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name for name in listed.stdout.splitlines() if not name.startswith(".") and (ROOT / name).exists()}
    for name in names:
        copy = tmp_path / "clone" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "clone", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "clone" / "dist").iterdir()
    with tarfile.open(made) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert names - packed == set()
