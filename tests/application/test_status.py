"""What ``status`` says of trouble, and that it foretells what boot does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL, make_url

from aurum_harmony.db_smart import DbSmartError
from aurum_harmony.db_smart.errors import DatabaseUnreachable, Interrupted, MigrationFailed
from tests.harness.project import Project
from tests.harness.servers import free_ports
from tests.samples import V1, V2

FAILS = "@migration\ndef bad(op): op.execute('SELECT 1 FROM nowhere')\n"


def told(project: Project, **config: Any) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(project.run("status", "--json", **config).stdout)
    return report


def url_shown(project: Project) -> str:
    app, smart = project.app()
    return smart.planner(app).databases["default"].url


# Boot does what status has foretold


def new(project: Project) -> None:
    project.write(V1)


def warm(project: Project) -> None:
    new(project)
    project.boot()


def changed(project: Project) -> None:
    warm(project)
    project.write(V2)


def comment(project: Project) -> None:
    warm(project)
    project.write(V1 + "# a comment\n")


def without_flag(project: Project) -> None:
    warm(project)
    project.flag.unlink()


def failed(project: Project) -> None:
    warm(project)
    project.write(V2 + FAILS)
    with pytest.raises(MigrationFailed):
        project.boot()


def emptied(project: Project) -> None:
    """The tables of the history are gone, which a flag for a server does not know."""
    warm(project)
    project.query("DROP TABLE db_smart_state")
    project.query("DROP TABLE items")


@pytest.mark.parametrize(
    ("mode", "force"), [("migrate", False), ("migrate", True), ("check", False), ("check", True), ("off", False)]
)
@pytest.mark.parametrize("prepare", [new, warm, changed, comment, without_flag, failed, emptied])
def test_boot_does_what_status_foretells(
    project: Project, prepare: Callable[[Project], None], mode: str, force: bool
) -> None:
    prepare(project)
    config = {"DB_SMART_BOOT": mode, "FORCE_DB_MIGRATION": force}
    boot = told(project, **config)["boot"]
    decision: str
    try:
        decision = project.boot(**config).decision
    except MigrationFailed:
        decision = "migrated"
    except DbSmartError:
        decision = "stopped"
    assert boot["will_migrate"] is (decision == "migrated"), boot
    assert ("boot will stop" in boot["reason"]) is (decision == "stopped"), boot
    assert (boot["reason"] == "DB_SMART_BOOT is off") is (decision == "off"), boot


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_a_server_that_is_not_there(
    make_project: Callable[..., Project], new_url: Callable[..., Any], dialect: str, force: bool, flag: bool
) -> None:
    project = make_project(new_url(dialect))
    warm(project)
    # A flag that fits the same database at an address where nobody is.
    (port,) = free_ports(1)
    before = url_shown(project)
    project.url = make_url(project.url).set(host="127.0.0.1", port=port)
    if flag:
        project.flag.write_text(project.flag.read_text().replace(before, url_shown(project)))
    result = project.run("status", "--json", FORCE_DB_MIGRATION=force)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["state"] == "unreachable"
    if flag and not force:
        assert report["boot"]["reason"].startswith("nothing changed; but a database cannot be reached"), report
        assert project.boot().decision == "skipped"
    else:
        assert report["boot"]["reason"] == "a database cannot be reached, boot will stop"
        with pytest.raises(DatabaseUnreachable):
            project.boot(FORCE_DB_MIGRATION=force)


def test_what_goes_on_although_it_cannot_migrate(
    make_project: Callable[..., Project], new_url: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boot in the background does not stop, nor does one with ``check`` in debug mode, which has a page for that."""
    project = make_project(new_url("sqlite"))
    project.write(V1)
    with monkeypatch.context() as patch:
        patch.setenv("FLASK_DEBUG", "1")
        checked = told(project, DB_SMART_BOOT="check")["boot"]["reason"]
    assert checked.startswith("DB_SMART_BOOT is check, requests are refused: ")
    (port,) = free_ports(1)
    project.url = make_url("postgresql+psycopg://nobody@127.0.0.1/none").set(port=port)
    report = json.loads(project.run("status", "--json", DB_SMART_BOOT="background").stdout)
    assert report["boot"] == {
        "will_migrate": False,
        "reason": "a database cannot be reached, requests are refused and boot tries again",
    }


# Trouble


def test_a_failed_run_is_shown_until_it_is_mended(project: Project) -> None:
    failed(project)
    entry = told(project)["databases"][0]
    assert entry["failed"].keys() == {"name", "failed_at", "duration_ms", "applied_by", "error"}
    assert entry["failed"]["name"] == "bad"
    assert "nowhere" in entry["failed"]["error"]
    text = project.run("status").output
    assert "  failed   bad  " in text
    assert "older copy" not in text
    with pytest.raises(MigrationFailed):
        project.boot()
    project.write(V2)
    assert told(project)["databases"][0]["failed"] is None  # it is no longer in the code
    project.write(V2 + "@migration\ndef bad(op): pass\n")
    assert told(project)["databases"][0]["failed"]["name"] == "bad"
    project.boot()
    assert told(project)["databases"][0]["failed"] is None
    assert "  failed   " not in project.run("status").output


def test_nothing_to_migrate_though_a_file_changed_is_no_contradiction(project: Project) -> None:
    comment(project)
    line = project.run("status").output.splitlines()[-1]
    assert line.startswith("Next boot: will not migrate, ")
    assert line.endswith(".py changed; the database 'default' holds every migration of this code")


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])  # of a file, boot itself sees it
def test_a_flag_that_hides_a_lost_history(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_project(new_url(dialect))
    emptied(project)
    report = told(project)
    assert report["state"] == "pending"
    assert "but the first request migrates, as the database 'default' has no history" in report["boot"]["reason"]
    assert "but the first request refuses" in told(project, DB_SMART_BOOT="check")["boot"]["reason"]


def test_a_name_that_is_unknown_is_shown_once(project: Project) -> None:
    project.write(V2)
    project.boot()
    project.write(V1)
    output = project.run("status").output
    assert output.count("add_price") == 1
    (line,) = [line for line in output.splitlines() if "add_price" in line]
    assert line.startswith("  unknown  add_price  ")
    assert line.endswith("  the database is ahead of this code")
    assert "  applied  make_items" in output


@pytest.mark.parametrize("create_all", [True, False])
def test_lost_tables_of_the_models_are_named(project: Project, create_all: bool) -> None:
    def models(db: SQLAlchemy) -> None:
        class User(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)

        class Item(db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "Quoted Item"
            id = sa.Column(sa.Integer, primary_key=True)

        class Seen(db.Model):  # type: ignore[name-defined,misc]
            id = sa.Column(sa.Integer, primary_key=True)

    project.models = models
    project.query("CREATE VIEW seen AS SELECT 1 AS id")
    project.write("@migration\ndef one(op): pass\n")
    project.boot()
    assert told(project)["state"] == "up-to-date"
    app, _ = project.app()
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        db.metadata.remove(db.metadata.tables["seen"])
        db.drop_all()
    project.dispose(app)
    report = told(project, DB_SMART_CREATE_ALL=create_all)
    assert (report["state"], report["databases"][0]["state"]) == ("pending", "pending")
    assert sorted(report["databases"][0]["missing"]) == ["Quoted Item", "user"]
    assert "; but tables of the models are missing: " in report["boot"]["reason"]
    result = project.run("status", "--check")
    assert result.exit_code == 1
    assert "  missing  user  the table of a model does not exist" in result.output


def test_json_though_the_migrations_do_not_load(project: Project) -> None:
    warm(project)
    for source, config in (("def (:\n", {}), (V1 + V1, {}), (V1, {"DB_SMART_BOOT": "nonsense"})):
        project.write(source)
        result = project.run("status", "--json", **config)
        assert result.exit_code == 1
        report = json.loads(result.stdout)
        assert report["state"] == "failed"
        assert report["error"] in result.stderr
        assert report["boot"]["will_migrate"] is False
        assert report["boot"]["reason"].startswith("boot will stop: ")
        assert report.keys() == {"state", "error", "databases", "lock", "progress", "flag", "boot", "branch"}


@pytest.mark.parametrize("ending", ["1 / 0", "raise KeyboardInterrupt"])
def test_the_next_boot_does_not_take_the_work_of_this_one_for_an_older_copy(
    sqlite_project: Project, ending: str
) -> None:
    warm(sqlite_project)
    sqlite_project.write(V2 + f"@migration\ndef last(op): {ending}\n")
    with pytest.raises((MigrationFailed, Interrupted)):
        sqlite_project.boot()
    assert sqlite_project.history()[:2] == [("make_items", "applied"), ("add_price", "applied")]
    assert told(sqlite_project)["flag"]["reason"] == "there is no flag file"
    sqlite_project.write(V2)
    assert sqlite_project.boot().decision == "verified"
