"""What a shell offers when a person presses Tab, and that this changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import URL

from tests.harness.project import Project
from tests.harness.repository import git
from tests.harness.terminal import completions, write_app
from tests.samples import V1, V2


@pytest.fixture
def shop(sqlite_project: Project) -> Project:
    """An application that ``flask`` finds, on a new database."""
    sqlite_project.write(V1)
    write_app(sqlite_project)
    return sqlite_project


@pytest.mark.parametrize("words", [("",), ("r",), ("run", "--"), ("db-smart", ""), ("db-smart", "migrate", "--f")])
def test_to_ask_what_may_follow_migrates_nothing_and_says_nothing(shop: Project, words: tuple[str, ...]) -> None:
    assert completions(shop, *words)
    assert not shop.flag.exists()
    assert not (shop.directory / "x.sqlite").exists()
    assert shop.tables() == set()


def snapshots(project: Project) -> list[str]:
    """The names of the snapshots, the newest first."""
    return sorted((path.name for path in (project.instance / "snapshots").glob("*.sqlite")), reverse=True)


def test_snapshots_are_offered_the_newest_first(shop: Project) -> None:
    assert completions(shop, "db-smart", "restore", "") == []
    shop.boot()
    for number in (1, 2):
        shop.write(V2 + f"@migration\ndef step(op): len({'x' * number!r})\n")
        shop.boot()
    names = snapshots(shop)
    assert len(names) == 2
    assert completions(shop, "db-smart", "restore", "") == names
    assert completions(shop, "db-smart", "restore", names[1][:-12]) == names[1:]
    assert completions(shop, "db-smart", "restore", "other") == []
    assert completions(shop, "db-smart", "restore", "--database", "default", "def") == names
    assert completions(shop, "db-smart", "restore", "--database", "nope", "") == []


@pytest.mark.parametrize("command", ["restore", "migrate", "history", "watch"])
def test_databases_are_offered_that_are_not_named_yet(
    shop: Project, new_url: Callable[[str], URL], command: str
) -> None:
    path = shop.directory / "other_app.py"
    binds = {name: new_url("sqlite").render_as_string() for name in ("analytics", "archive")}
    source = path.read_text().replace("    db = ", f'    app.config["SQLALCHEMY_BINDS"] = {binds!r}\n    db = ')
    path.write_text(source)
    assert completions(shop, "db-smart", command, "--database", "") == ["default", "analytics", "archive"]
    assert completions(shop, "db-smart", command, "--database", "an") == ["analytics"]
    assert completions(shop, "db-smart", command, "--database", "archive", "--database", "a") == ["analytics"]


def test_migrations_and_rules_are_offered(shop: Project) -> None:
    shop.write(V2)
    assert completions(shop, "db-smart", "stamp", "") == ["make_items", "add_price"]
    assert completions(shop, "db-smart", "stamp", "make_items", "") == ["add_price"]
    assert "DS203" in completions(shop, "db-smart", "explain", "ds2")
    assert completions(shop, "db-smart", "migrate", "--resume", "") == []
    assert shop.tables() == set()


def test_branches_with_a_database_are_offered(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.directory)  # where the application is whose module has no file
    git(shop.directory, "init", "-q")
    path = shop.directory / "other_app.py"
    path.write_text(path.read_text().replace("    db = ", '    app.config["DB_SMART_BRANCHES"] = True\n    db = '))
    git(shop.directory, "commit", "-q", "--allow-empty", "-m", "first")
    for name in ("feature/x", "other"):
        git(shop.directory, "checkout", "-q", "-b", name)
        shop.boot(DEBUG=True, DB_SMART_BRANCHES=True)
    assert completions(shop, "db-smart", "branch", "--delete", "") == ["feature/x", "other"]
    assert completions(shop, "db-smart", "branch", "--delete", "f") == ["feature/x"]


def test_an_application_that_cannot_be_used_offers_nothing(shop: Project) -> None:
    shop.write("def (:\n")
    assert completions(shop, "db-smart", "stamp", "") == []
    assert completions(shop, "db-smart", "migrate", "--database", "") == ["default"]
