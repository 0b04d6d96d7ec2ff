"""Revisions are read from their files: what they say, and what is wrong with them, each in one clear message."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from flask import Flask

from aurum_harmony.db_smart.errors import ConfigError, MigrationError
from aurum_harmony.db_smart.loading.alembic_files import AlembicFiles, find_alembic
from aurum_harmony.db_smart.loading.revisions import Revisions, read
from aurum_harmony.db_smart.loading.sources import scan


class Directory:
    """An Alembic directory of which only files are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "versions").mkdir(parents=True)
        (path / "env.py").touch()

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.path / "versions" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def files(self, target: str | Sequence[str] = "head") -> AlembicFiles:
        return find_alembic(Flask("reads"), self.path, target)

    def read(self, target: str | Sequence[str] = "head") -> Revisions:
        files = self.files(target)
        return read(scan(None, files), files)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "migrations")


def names(revisions: Revisions, heads: Sequence[str] = ()) -> list[str]:
    return [one.name for one in revisions.pending(heads)]


def test_every_spelling_of_the_literals(directory: Directory) -> None:
    directory.write("a.py", '"""The first.\n\nMore."""\nrevision: str = "a"\ndown_revision: str | None = None\n')
    directory.write("b.py", "revision = up = 'b'\ndown_revision = ('a')\nbranch_labels = ('one', 'two')\n")
    directory.write("c.py", "revision, unused = 'x', 1\nrevision = 'c'\ndown_revision = ['b']\ndepends_on = {'a'}\n")
    directory.write("d.py", "revision = 'd' 'd'\ndown_revision = (\n    'c',\n)\nbranch_labels = None\n")
    revisions = directory.read()
    assert names(revisions) == ["a", "b", "c", "dd"]
    assert names(revisions, ["b"]) == ["c", "dd"]
    assert revisions.by_name["a"].message == "The first."
    assert revisions.by_name["b"].labels == ("one", "two")
    assert revisions.by_name["c"].depends_on == ("a",)
    assert [one.name for one in revisions.applied(["c"])] == ["a", "b", "c"]
    assert revisions.unknown(["c", "zz"]) == ["zz"]


def test_odd_names_of_files(directory: Directory) -> None:
    directory.write("2024.01.02-first thing.py", "revision = 'a'\ndown_revision = None\n")
    directory.write("1_ä.py", "revision = 'b'\ndown_revision = 'a'\n")
    directory.write("ae1027a6acf.py", "down_revision = 'b'\n")  # as the first releases of Alembic wrote them
    directory.write("__init__.py", "raise ValueError")
    directory.write("__init__old.py", "raise ValueError")
    directory.write(".#lock.py", "raise ValueError")
    directory.write("notes.txt", "nothing")
    directory.write("legacy/old.py", "revision = 'old'")
    assert names(directory.read()) == ["a", "b", "ae1027a6acf"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("revision = ", r"a\.py does not parse: .*Nothing was changed"),
        (b"revision = '\xff'", r"a\.py does not parse: "),
        (b"revision = 'a'\0", r"a\.py does not parse: "),
        ("revision = make()", r"a\.py computes its 'revision'.*must be written out\. Nothing was changed"),
        ("revision = 'a'\ndown_revision = BEFORE", r"a\.py computes its 'down_revision'"),
        ("revision = f'{1}'", r"a\.py computes its 'revision'"),
        ("down_revision = None", r"a\.py .*does not say which one it is \('revision = \.\.\.'\)\. Nothing was changed"),
        ("revision = 7", r"a\.py .*does not say which one it is"),
        ("revision = ''", r"a\.py .*does not say which one it is"),
        (
            "revision = 'a'\ndown_revision = 7",
            r"a\.py has 'down_revision' 7, which names no revision.*Nothing was changed",
        ),
        ("revision = 'a'\ndepends_on = {'x': 1}", r"a\.py has 'depends_on' .*which names no revision"),
        ("revision = 'a'\nbranch_labels = (None,)", r"a\.py has 'branch_labels' .*which names no revision"),
    ],
)
def test_bad_files(directory: Directory, text: str | bytes, message: str) -> None:
    directory.write("zza.py", text)
    with pytest.raises(MigrationError, match=message) as caught:
        directory.read()
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name(directory: Directory) -> None:
    directory.write("one.py", "revision = 'a'")
    directory.write("two.py", "revision = 'a'")
    with pytest.raises(MigrationError, match=r"named 'a': \S*one.py and \S*two.py\. Nothing was changed\. Remove one"):
        directory.read()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b": "down_revision = 'gone'"}, r"'gone'"),
        ({"b": "depends_on = 'gone'"}, r"'gone'"),
        ({"a": "down_revision = 'b'", "b": "down_revision = 'a'"}, r"[Cc]ycle"),
        ({"a": "down_revision = 'a'"}, r".*[Ll]oop"),
        ({"a": "branch_labels = 'x'", "b": "branch_labels = 'x'"}, r"[Bb]ranch name 'x'"),
    ],
)
def test_what_cannot_be_put_in_order(directory: Directory, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        directory.write(f"z{name}.py", f"revision = '{name}'\n{text}\n")
    with pytest.raises(
        MigrationError, match=rf"cannot be put in order for the target 'heads': .*{message}.*Nothing was"
    ):
        directory.read("heads").pending(())


def test_no_revision_at_all(directory: Directory) -> None:
    revisions = directory.read()
    assert names(revisions) == []
    assert revisions.applied(()) == []


def test_a_short_identifier_as_the_target(directory: Directory) -> None:
    directory.write("one.py", "revision = 'abcdef'")
    directory.write("two.py", "revision = 'bcdefa'\ndown_revision = 'abcdef'")
    assert names(directory.read("abcd")) == ["abcdef"]
    assert names(directory.read("base")) == []
    assert names(directory.read("+1")) == ["abcdef"]


@pytest.mark.parametrize(
    "line", ["[alembic", "[alembic]\nversion_locations = %(nothing)s/x", b"[alembic]\nversion_locations=\xff"]
)
def test_an_unreadable_configuration(directory: Directory, line: str | bytes) -> None:
    content = line if isinstance(line, bytes) else line.encode()
    (directory.path / "alembic.ini").write_bytes(content + b"\nversion_locations = a\n")
    with pytest.raises(MigrationError, match=r"Cannot read \S*alembic.ini: .*Nothing was changed") as caught:
        directory.read()
    assert "\n" not in str(caught.value)


def test_a_version_location_by_another_case(directory: Directory) -> None:
    (directory.path / "alembic.ini").write_text(
        "[alembic]\n# version_locations = no\nVersion_Locations = %(here)s/more\n"
    )
    (directory.path / "more").mkdir()
    (directory.path / "more" / "one.py").write_text("revision = 'a'")
    assert names(directory.read()) == ["a"]


def test_a_version_location_that_is_not_there(directory: Directory) -> None:
    (directory.path / "alembic.ini").write_text("[alembic]\nversion_locations = %(here)s/versions %(here)s/gone\n")
    directory.write("one.py", "revision = 'a'")
    assert names(directory.read()) == ["a"]  # as Alembic: a branch that is optional


def test_no_folder_of_versions(directory: Directory) -> None:
    (directory.path / "versions").rmdir()
    assert names(directory.read()) == []


def test_the_configuration_is_a_folder(directory: Directory) -> None:
    (directory.path / "alembic.ini").mkdir()
    assert directory.files().ini is None


def test_where_the_directory_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Directory(tmp_path / "src" / "migrations")
    package = tmp_path / "src" / "package"
    package.mkdir()
    app = Flask("looks", root_path=str(package))
    monkeypatch.chdir(tmp_path)
    assert find_alembic(app, "migrations", "head").directory == str(tmp_path / "src" / "migrations")
    assert find_alembic(app, os.path.join("src", "migrations"), "head").directory == str(
        tmp_path / "src" / "migrations"
    )
    with pytest.raises(ConfigError, match=r"no Alembic directory 'nothing'.*Correct DbSmart\(app, db, alembic=...\)"):
        find_alembic(app, "nothing", "head")
    with pytest.raises(
        ConfigError, match=r"no Migrate is registered on this application.*Call Migrate\(app, db\) first"
    ):
        find_alembic(app, True, "head")


def test_env_py_of_flask_migrate_without_it(directory: Directory) -> None:
    (directory.path / "env.py").write_text("engine = current_app.extensions['migrate'].db.engine\n")
    with pytest.raises(
        ConfigError, match=r"env.py is one of Flask-Migrate, but no Migrate is registered.*Call Migrate"
    ):
        directory.files()


def test_revisions_without_source(directory: Directory) -> None:
    directory.write("one.pyc", b"compiled")
    with pytest.raises(MigrationError, match=r"versions has compiled revisions without .*Nothing was changed"):
        directory.read()
    directory.write("one.py", "revision = 'a'")
    assert names(directory.read()) == ["a"]
