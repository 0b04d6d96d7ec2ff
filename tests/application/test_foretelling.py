"""Boot does what ``status`` has foretold, whatever the flag, the server, the mode and FORCE say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError
from tests.harness.project import Project
from tests.harness.servers import free_ports
from tests.samples import V1


def foretold(project: Project, **config: Any) -> str:
    """What ``status`` says that boot will do, as one word."""
    boot = json.loads(project.run("status", "--json", **config).stdout)["boot"]
    stops = "boot will stop" in boot["reason"]
    assert not (stops and boot["will_migrate"]), boot
    return "stopped" if stops else "migrated" if boot["will_migrate"] else "not migrated"


def done(project: Project, **config: Any) -> str:
    """What boot does."""
    try:
        decision = project.boot(**config).decision
    except DbSmartError:
        return "stopped"
    return decision if decision == "migrated" else "not migrated"


def shown(project: Project) -> str:
    app, smart = project.app()
    return smart.planner(app).databases["default"].url


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_every_combination(make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str) -> None:
    project = make_project(new_url(dialect))
    alive = project.url
    (port,) = free_ports(1)
    dead = make_url(alive).set(host="127.0.0.1", port=port)
    source, count = V1, itertools.count()
    found = {}
    for valid, lives, behind, mode, force in itertools.product(
        [True, False], [True, False], [True, False], ["migrate", "check", "off"], [True, False]
    ):
        if valid and behind:
            continue  # that the flag cannot know is another test
        project.url = alive
        project.write(source)
        project.boot()
        if behind:
            source += f"@migration\ndef m{next(count)}(op): pass\n"
            project.write(source)
        if not valid:
            project.flag.unlink()
        if not lives:
            before = shown(project)
            project.url = dead
            if valid:
                project.flag.write_text(project.flag.read_text().replace(before, shown(project)))
        config = {"DB_SMART_BOOT": mode, "FORCE_DB_MIGRATION": force}
        case = (valid, lives, behind, mode, force)
        found[case] = (foretold(project, **config), done(project, **config))
    assert {case: pair for case, pair in found.items() if pair[0] != pair[1]} == {}
    assert {pair[1] for pair in found.values()} == {"migrated", "not migrated", "stopped"}


@pytest.mark.parametrize("fault", ["migrations", "setting"])
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("mode", ["migrate", "check", "off"])
@pytest.mark.parametrize("force", [True, False])
def test_what_boot_does_not_need_does_not_stop_it(
    sqlite_project: Project, monkeypatch: pytest.MonkeyPatch, fault: str, flag: bool, mode: str, force: bool
) -> None:
    project = sqlite_project
    monkeypatch.setenv("NEEDED", "yes")
    project.write("import os\nos.environ['NEEDED']\n" + V1)
    project.boot()
    if not flag:
        project.flag.unlink()
    config = {"DB_SMART_BOOT": mode, "FORCE_DB_MIGRATION": force}
    if fault == "migrations":
        monkeypatch.delenv("NEEDED")
    else:
        config["DB_SMART_SNAPSHOTS"] = "nonsense"
    assert json.loads(project.run("status", "--json", **config).stdout)["state"] == "failed"
    assert foretold(project, **config) == done(project, **config)


def test_nothing_that_can_be_run_again(sqlite_project: Project) -> None:
    sqlite_project.write("@migration(once=True)\ndef seed(op): pass\n")
    sqlite_project.boot()
    assert foretold(sqlite_project, FORCE_DB_MIGRATION=True) == "not migrated"
    assert done(sqlite_project, FORCE_DB_MIGRATION=True) == "not migrated"


@pytest.mark.parametrize("force", [True, False])
def test_a_history_in_another_schema(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], force: bool
) -> None:
    project = make_project(new_url("postgresql"))
    project.write(V1)
    project.boot()
    project.query("CREATE SCHEMA mine")
    project.url = make_url(project.url).update_query_dict({"options": "-csearch_path=mine,public"})
    project.write(V1 + "@migration\ndef second(op): pass\n")
    config = {"FORCE_DB_MIGRATION": force}
    assert foretold(project, **config) == done(project, **config) == "stopped"


@pytest.mark.parametrize("behind", [True, False])
def test_a_history_of_which_only_the_state_may_be_read(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], behind: bool
) -> None:
    project = make_project(new_url("postgresql"))
    project.write(V1)
    project.boot()
    project.flag.unlink()
    role = f"half_{project.module}"
    project.query(f"CREATE ROLE {role} LOGIN PASSWORD 'half'")
    owner = project.url
    try:
        project.query(f"GRANT SELECT ON db_smart_state TO {role}")
        project.url = make_url(owner).set(username=role, password="half")
        if behind:
            project.write(V1 + "@migration\ndef second(op): pass\n")
        assert foretold(project) == done(project) == ("stopped" if behind else "not migrated")
    finally:
        project.url = owner
        project.query(f"DROP OWNED BY {role}")
        project.query(f"DROP ROLE {role}")
