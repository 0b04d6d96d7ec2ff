"""What is handed out: hints that name packages that exist, and a source distribution that holds all of the source."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.harness.processes import ROOT, environment, run_python

WITHOUT_DRIVERS = """
import sys
sys.modules["psycopg"] = sys.modules["pymysql"] = None
from aurum_harmony import create_app
from aurum_harmony.db_smart import ConfigError
try:
    create_app({"SQLALCHEMY_DATABASE_URI": sys.argv[1], "INSTANCE_PATH": sys.argv[2]})
except ConfigError as error:
    print(error.message)
"""


@pytest.mark.parametrize(
    ("scheme", "package"),
    [
        ("postgres", "psycopg[binary]"),
        ("postgresql+psycopg", "psycopg[binary]"),
        ("mysql", "PyMySQL"),
        ("mariadb+pymysql", "PyMySQL"),
    ],
)
def test_a_missing_driver_is_named_as_pip_knows_it(tmp_path: Path, scheme: str, package: str) -> None:
    said = run_python(WITHOUT_DRIVERS, f"{scheme}://me:Gehe1m@db.example/shop", str(tmp_path))
    assert f"pip install '{package}'" in said
    assert "aurum-harmony[" not in said
    assert "Gehe1m" not in said


def test_the_hints_name_what_the_extras_install() -> None:
    from aurum_harmony.config import _DRIVERS

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    installed = {line.split(">")[0] for name in ("postgres", "mysql") for line in extras[name].split()}
    assert {package for _, package in _DRIVERS.values()} == installed


def test_a_source_distribution_holds_all_that_is_in_the_repository_and_its_tests_run(tmp_path: Path) -> None:
    names = _names()
    build = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(tmp_path)],
        cwd=_copy(names, tmp_path / "copy"),
        env=environment(),
        capture_output=True,
        check=True,
    )
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert [name for name in names if name not in held] == []
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/boot/test_boot.py", "-k", "sqlite"],
        capture_output=True,
        text=True,
        cwd=unpacked,
        env=environment(PYTHONPATH=str(unpacked)),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def _names() -> list[str]:
    """The files of the repository; of an unpacked source distribution, what it holds."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if (ROOT / ".git").exists() and listed.returncode == 0:
        return listed.stdout.splitlines()
    sources = next(ROOT.glob("*.egg-info")) / "SOURCES.txt"
    return [name for name in sources.read_text(encoding="utf-8").splitlines() if ".egg-info/" not in name]


def _copy(names: list[str], target: Path) -> Path:
    """A copy of the repository's files: building leaves files of its own beside them."""
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())
    return target


@pytest.mark.parametrize(("required", "code"), [("0", 0), ("1", 1)])
def test_a_skipped_test_fails_where_all_is_required(tmp_path: Path, required: str, code: int) -> None:
    source = (
        '@pytest.mark.skip("it rains")\ndef test_one():\n    pass\n\n\ndef test_two():\n    pytest.skip("it snows")\n'
    )
    (tmp_path / "test_some.py").write_text(f"import pytest\n\n\n{source}", encoding="utf-8")
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(REQUIRE_SERVERS=required),
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert ("lets no test be skipped: " in done.stdout) == bool(code)
