"""The scan of the migrations' files: what is found, what a change looks like, what cannot be scanned."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurum_harmony.db_smart.errors import MigrationError
from aurum_harmony.db_smart.loading.sources import RACY_NS, Sources, scan
from tests.harness.files import edit_in_place
from tests.harness.processes import BECOME_NOBODY, run_python
from tests.harness.project import Project


@pytest.fixture
def package(make_project: Callable[..., Project]) -> Project:
    """A package of migrations with the modules ``a`` and ``b``."""
    project = make_project("sqlite://")
    project.write("A = 1\n", "a", header="")
    project.write("B = 1\n", "b", header="")
    return project


@pytest.fixture
def module(make_project: Callable[..., Project]) -> Project:
    """A single module of migrations."""
    project = make_project("sqlite://")
    project.write("A = 1\n", header="")
    return project


# What is found


def test_scan_of_a_module_finds_its_file(module: Project) -> None:
    sources = scan(module.module)
    info = module.file.stat()
    assert sources.module == module.module
    assert sources.roots == [str(module.directory)]
    assert sources.stats == {module.file.name: [info.st_mtime_ns, info.st_ctime_ns, info.st_size]}
    assert sources.paths == {module.file.name: str(module.file)}
    assert sources.contents == {module.file.name: b"A = 1\n"}
    assert sources.module_name(module.file.name) == module.module


def test_scan_of_a_package_finds_every_module(package: Project) -> None:
    root = package.directory / package.module
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "sub" / "__init__.py").touch()
    (root / "sub" / "c.py").touch()
    (root / "sub" / "deeper" / "d.py").touch()
    sources = scan(package.module)
    assert sources.roots == [str(root)]
    assert list(sources.stats) == ["__init__.py", "a.py", "b.py", "sub/__init__.py", "sub/c.py", "sub/deeper/d.py"]
    assert sources.paths["sub/c.py"] == str(root / "sub" / "c.py")
    assert [sources.module_name(name) for name in sources.stats] == [
        package.module,
        f"{package.module}.a",
        f"{package.module}.b",
        f"{package.module}.sub",
        f"{package.module}.sub.c",
        f"{package.module}.sub.deeper.d",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "__pycache__/a.py",
        ".hidden/a.py",
        ".hidden.py",
        ".#a.py",
        "a.pyc",
        "a.sql",
        "a.py.orig",
        "a.cpython-311.py",
        "py",
    ],
)
def test_scan_ignores_what_is_no_migration(package: Project, name: str) -> None:
    path = package.directory / package.module / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("X = 1\n")
    assert list(scan(package.module).stats) == ["__init__.py", "a.py", "b.py"]


def test_scan_ignores_a_directory_that_cannot_be_a_package(package: Project) -> None:
    path = package.directory / package.module / "backup.2024" / "a.py"
    path.parent.mkdir()
    path.touch()
    assert list(scan(package.module).stats) == ["__init__.py", "a.py", "b.py"]


def test_scan_does_not_import_the_migrations(package: Project) -> None:
    scan(package.module)
    assert [name for name in sys.modules if name.startswith(package.module)] == []


def test_scan_imports_the_parent_packages_only(package: Project) -> None:
    sources = scan(f"{package.module}.a")
    assert sources.stats.keys() == {"a.py"}
    assert package.module in sys.modules
    assert f"{package.module}.a" not in sys.modules


def test_scan_of_a_namespace_package_finds_all_its_directories(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = make_project("sqlite://").module
    for directory, file in (("one", "a.py"), ("two", "b.py")):
        (tmp_path / directory / name).mkdir(parents=True)
        (tmp_path / directory / name / file).touch()
        monkeypatch.syspath_prepend(str(tmp_path / directory))
    sources = scan(name)
    assert sorted(sources.roots) == [str(tmp_path / "one" / name), str(tmp_path / "two" / name)]
    assert sources.paths == {
        "a.py": str(tmp_path / "one" / name / "a.py"),
        "b.py": str(tmp_path / "two" / name / "b.py"),
    }


def test_scan_of_an_imported_module_finds_the_same(module: Project, package: Project) -> None:
    for name in (module.module, package.module):
        before = scan(name)
        importlib.import_module(name)
        after = scan(name)
        after.scanned_ns = before.scanned_ns
        assert vars(after) == vars(before)


# What a change looks like


def test_same_files_scan_alike(package: Project) -> None:
    one, two = scan(package.module), scan(package.module)
    assert (one.stats, one.roots, one.digest) == (two.stats, two.roots, two.digest)


def test_new_file_is_seen(package: Project) -> None:
    before = scan(package.module)
    digest = before.digest
    package.write("C = 1\n", "c", header="")
    after = scan(package.module)
    assert after.stats.keys() - before.stats.keys() == {"c.py"}
    assert after.digest != digest


def test_empty_new_file_is_seen(package: Project) -> None:
    before = scan(package.module).digest
    package.write("", "c", header="")
    assert scan(package.module).digest != before


def test_removed_file_is_seen(package: Project) -> None:
    before = scan(package.module)
    digest = before.digest
    (package.directory / package.module / "b.py").unlink()
    after = scan(package.module)
    assert before.stats.keys() - after.stats.keys() == {"b.py"}
    assert after.digest != digest


def test_renamed_file_is_seen(package: Project) -> None:
    before = scan(package.module)
    digest = before.digest
    root = package.directory / package.module
    (root / "b.py").rename(root / "c.py")
    after = scan(package.module)
    assert after.stats.keys() == {"__init__.py", "a.py", "c.py"}
    assert after.digest != digest


def test_contents_that_swap_files_are_seen(package: Project) -> None:
    before = scan(package.module).digest
    package.write("B = 1\n", "a", header="")
    package.write("A = 1\n", "b", header="")
    assert scan(package.module).digest != before


def test_content_that_moves_to_the_next_file_is_seen(package: Project) -> None:
    package.write("A = 1\nB = 1\n", "a", header="")
    package.write("", "b", header="")
    one = scan(package.module).digest
    package.write("A = 1\n", "a", header="")
    package.write("B = 1\n", "b", header="")
    assert scan(package.module).digest != one


def test_edit_is_seen_by_size(module: Project) -> None:
    before = scan(module.module)
    info = module.file.stat()
    module.file.write_bytes(b"A = 100\n")
    os.utime(module.file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert [stat[2] for stat in before.stats.values()] == [6]
    assert [stat[2] for stat in scan(module.module).stats.values()] == [8]


def test_edit_of_the_same_size_with_restored_modification_time_is_seen(module: Project) -> None:
    before = scan(module.module)
    digest = before.digest
    edit_in_place(module.file, b"A = 2\n")
    after = scan(module.module)
    (old,), (new,) = before.stats.values(), after.stats.values()
    assert (new[0], new[2]) == (old[0], old[2])
    assert new[1] > old[1]
    assert after.digest != digest


def test_touched_file_changes_the_stats_and_keeps_the_digest(module: Project) -> None:
    before = scan(module.module)
    digest = before.digest
    os.utime(module.file, ns=(1, 1))
    after = scan(module.module)
    assert after.stats != before.stats
    assert after.digest == digest


def test_moved_package_changes_the_roots_and_keeps_the_digest(
    package: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scan(package.module)
    digest = before.digest
    elsewhere = package.directory / "elsewhere"
    elsewhere.mkdir()
    (package.directory / package.module).rename(elsewhere / package.module)
    monkeypatch.syspath_prepend(str(elsewhere))
    after = scan(package.module)
    assert before.roots == [str(package.directory / package.module)]
    assert after.roots == [str(elsewhere / package.module)]
    assert after.paths["a.py"] == str(elsewhere / package.module / "a.py")
    assert after.digest == digest


def test_digest_does_not_depend_on_the_order_of_the_directory(package: Project, tmp_path: Path) -> None:
    before = scan(package.module).digest
    root = package.directory / package.module
    for name in ("b.py", "a.py", "__init__.py"):
        shutil.copy2(root / name, tmp_path / name)
        (root / name).unlink()
        shutil.move(tmp_path / name, root / name)
    assert scan(package.module).digest == before


def test_contents_are_read_once(module: Project) -> None:
    sources = scan(module.module)
    assert sources.contents == {module.file.name: b"A = 1\n"}
    digest = sources.digest
    module.file.write_bytes(b"A = 2\n")
    assert sources.contents == {module.file.name: b"A = 1\n"}
    assert sources.digest == digest


_FILES = st.dictionaries(st.sampled_from(["a.py", "b.py", "a/b.py"]), st.binary(max_size=4), min_size=1)


def _sources(files: dict[str, bytes]) -> Sources:
    sources = Sources("m", True, ["r"], [], 0)
    sources.__dict__["contents"] = dict(sorted(files.items()))
    return sources


@settings(max_examples=200, deadline=None)
@given(one=_FILES, two=_FILES)
def test_digests_are_the_same_only_when_the_files_are(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    assert (_sources(one).digest == _sources(two).digest) is (one == two)


# When stamps are not enough


@pytest.mark.parametrize(
    ("mtime", "ctime", "racy"),
    [
        (-RACY_NS, -RACY_NS, False),
        (1 - RACY_NS, -RACY_NS, True),
        (-RACY_NS, 1 - RACY_NS, True),
        (-10 * RACY_NS, 0, True),
        (3600 * RACY_NS, -RACY_NS, True),
    ],
    ids=["both old", "young mtime", "young ctime", "edited with an old mtime", "mtime in the future"],
)
def test_scan_is_racy_when_a_file_may_change_with_its_stamps_unchanged(mtime: int, ctime: int, racy: bool) -> None:
    now = 1_700_000_000_000_000_000
    old = [now - 100 * RACY_NS, now - 100 * RACY_NS, 6]
    listing = (["a.py", "b.py"], [*old, now + mtime, now + ctime, 6])
    assert Sources("m", True, ["r"], [listing], now).racy is racy


_LISTINGS = st.lists(
    st.lists(st.tuples(st.sampled_from(["a.py", "b.py", "aa.py"]), *[st.integers(-2, 2)] * 3), max_size=2), max_size=2
).map(lambda roots: [([name for name, *_ in root], [n for _, *stat in root for n in stat]) for root in roots])


@settings(max_examples=300, deadline=None)
@given(one=_LISTINGS, two=_LISTINGS)
def test_listings_are_packed_the_same_only_when_they_are(one: list[Any], two: list[Any]) -> None:
    packed = [Sources("m", True, ["r"] * len(listings), listings, 0).packed for listings in (one, two)]
    assert (packed[0] == packed[1]) is (one == two)


def test_stamp_that_does_not_fit_is_not_packed(module: Project) -> None:
    assert scan(module.module).packed
    os.utime(module.file, ns=(0, 2**63))
    if module.file.stat().st_mtime_ns == 2**63:  # a file system may know no such year
        assert scan(module.module).packed == ""
    assert Sources("m", True, ["r"], [(["a.py"], [2**63, 0, 0])], 0).packed == ""


def test_scan_right_after_an_edit_is_racy(module: Project) -> None:
    module.file.write_bytes(b"A = 2\n")
    assert scan(module.module).racy is True


def test_scan_of_files_that_are_not_written_to_is_not_racy(module: Project) -> None:
    sources = scan(module.module)
    later = max(stamp for stat in sources.stats.values() for stamp in stat[:2]) + RACY_NS
    sources.scanned_ns = later
    assert sources.racy is False


# What cannot be scanned


def test_missing_module_is_a_migration_error() -> None:
    with pytest.raises(MigrationError, match=r"There is no module of migrations 'no_such_module'.*DbSmart\(app, db"):
        scan("no_such_module")


def test_missing_parent_is_a_migration_error() -> None:
    with pytest.raises(MigrationError, match="There is no module of migrations 'no_such.module'.*'no_such'"):
        scan("no_such.module")


def test_module_as_parent_is_a_migration_error(module: Project) -> None:
    with pytest.raises(MigrationError, match=rf"There is no module of migrations '{module.module}\.x'"):
        scan(f"{module.module}.x")


def test_parent_that_does_not_import_is_a_migration_error(package: Project) -> None:
    path = package.directory / package.module / "__init__.py"
    path.write_text("raise RuntimeError('broken')\n")
    with pytest.raises(MigrationError, match=r"'.*\.a' cannot be imported: RuntimeError: broken"):
        scan(f"{package.module}.a")


@pytest.mark.parametrize("name", ["", ".a", "a..b"])
def test_name_that_is_none_is_a_migration_error(name: str) -> None:
    with pytest.raises(MigrationError, match="migrations"):
        scan(name)


def test_module_without_source_is_a_migration_error() -> None:
    with pytest.raises(MigrationError, match="'sys' has no source file; db-smart needs the source"):
        scan("sys")


def test_package_without_modules_is_a_migration_error(package: Project) -> None:
    root = package.directory / package.module
    for path in root.glob("*.py"):
        path.unlink()
    with pytest.raises(MigrationError, match=f"'{package.module}' has no source file in {root}"):
        scan(package.module)


def test_module_in_an_archive_is_a_migration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "code.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("migrations_in_zip.py", "A = 1\n")
    monkeypatch.syspath_prepend(str(archive))
    with pytest.raises(MigrationError, match=f"Cannot read the migrations in {archive}"):
        scan("migrations_in_zip")


def test_broken_link_is_a_migration_error(package: Project) -> None:
    link = package.directory / package.module / "c.py"
    link.symlink_to("nowhere.py")
    with pytest.raises(MigrationError, match=f"Cannot read the migrations in {link}: No such file"):
        scan(package.module)


def test_file_that_goes_after_the_scan_is_a_migration_error(module: Project) -> None:
    sources = scan(module.module)
    module.file.unlink()
    with pytest.raises(MigrationError, match=f"Cannot read the migrations in {module.file}: No such file"):
        sources.contents  # noqa: B018


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
def test_unreadable_file_is_a_migration_error(open_directory: Path) -> None:
    path = open_directory / "secret_migrations.py"
    path.touch()
    path.chmod(0)
    script = f"""
import sys
from aurum_harmony.db_smart.errors import MigrationError
from aurum_harmony.db_smart.loading.sources import scan
sys.path.insert(0, sys.argv[1])
sources = scan("secret_migrations")
{BECOME_NOBODY}
try:
    sources.contents
except MigrationError as error:
    print(error.message)
"""
    assert run_python(script, str(open_directory)) == f"Cannot read the migrations in {path}: Permission denied.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
def test_unreadable_directory_is_a_migration_error(open_directory: Path) -> None:
    root = open_directory / "secret_migrations"
    (root / "sub").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "sub").chmod(0)
    script = f"""
import sys
from aurum_harmony.db_smart.errors import MigrationError
from aurum_harmony.db_smart.loading.sources import scan
sys.path.insert(0, sys.argv[1])
{BECOME_NOBODY}
try:
    scan("secret_migrations")
except MigrationError as error:
    print(error.message)
"""
    expected = f"Cannot list the migrations in {root / 'sub'}: Permission denied.\n"
    assert run_python(script, str(open_directory)) == expected
