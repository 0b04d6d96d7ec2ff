"""What boot decides, and why, on every kind of database."""

from __future__ import annotations

import logging
import sys

import pytest

from aurum_harmony.db_smart import DatabaseBehind
from tests.harness.project import Project
from tests.samples import V1, V2


def test_first_boot_migrates_and_later_boots_skip(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.write(V1)
    caplog.set_level(logging.INFO, "aurum_harmony.db_smart")
    report = project.boot()
    assert report.decision == "migrated"
    assert report.applied == ("make_items",)
    assert "no flag" in report.reason
    assert project.flag.is_file()
    caplog.clear()
    report = project.boot()
    assert (report.decision, report.applied) == ("skipped", ())
    (record,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert "skipped" in record.message
    assert "0 queries" in record.message
    assert project.history() == [("make_items", "applied")]


def test_new_code_is_noticed_and_only_it_runs(project: Project) -> None:
    project.write(V1)
    project.boot()
    path = project.write(V2)
    report = project.boot()
    assert (report.decision, report.applied) == ("migrated", ("add_price",))
    assert str(path) in report.reason
    assert "price" in project.columns("items")
    assert project.boot().decision == "skipped"


def test_edited_migration_runs_again_and_layout_does_not(project: Project) -> None:
    project.write(V1)
    project.boot()
    project.write(V1.replace("def make_items(op):", 'def make_items(op):\n    """Doc."""\n\n    # why'))
    assert project.boot().decision == "verified"
    project.write(V1 + '    op.add_column("items", Column("city", Text))\n')
    report = project.boot()
    assert (report.decision, report.applied) == ("migrated", ("make_items",))
    assert "city" in project.columns("items")


def test_without_flag_one_query_is_enough(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.write(V2)
    project.boot()
    project.flag.unlink()
    caplog.set_level(logging.INFO, "aurum_harmony.db_smart")
    report = project.boot()
    assert report.decision == "verified"
    assert ", 1 query)" in caplog.records[-1].message
    assert project.boot().decision == "skipped"


def test_after_an_edited_comment_one_query_is_enough_again(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    project.write(V2)
    project.boot()
    project.write(V2 + "# why\n")
    project.flag.unlink()
    before = project.query("SELECT source FROM db_smart_state")
    assert project.boot(DB_SMART_BOOT="check").decision == "verified"
    assert project.query("SELECT source FROM db_smart_state") == before
    caplog.set_level(logging.INFO, "aurum_harmony.db_smart")
    assert project.boot().decision == "verified"
    assert ", 1 query)" not in caplog.records[-1].message
    assert project.boot().decision == "skipped"
    project.flag.unlink()
    assert project.boot().decision == "verified"
    assert ", 1 query)" in caplog.records[-1].message
    assert len(project.history()) == 2


@pytest.mark.parametrize("what", ["ahead", "edited once", "another history", "a holder"])
def test_a_boot_that_finds_nothing_to_do_leaves_the_state_alone_where_it_may_hide_something(
    project: Project, what: str
) -> None:
    project.write(V2.replace("@migration\ndef add_price", "@migration(once=True)\ndef add_price"))
    project.boot()
    project.flag.unlink()
    newer = {"ahead": V1, "edited once": V2.replace("Float", "Integer").replace("n\ndef a", "n(once=True)\ndef a")}
    project.write(
        newer.get(what, V2.replace("@migration\ndef add_price", "@migration(once=True)\ndef add_price")) + "#\n"
    )
    if what == "a holder":
        project.query("UPDATE db_smart_state SET lease_expires = 9000000000000000, holder = 'somebody'")
    rows = project.query("SELECT source FROM db_smart_state")
    if what == "another history":
        app, smart = project.app()
        with app.app_context():
            planner = smart.planner(app)
            plans = planner.by_history()
            project.query("UPDATE db_smart_state SET applied = 'another'")
            planner.settle(plans)
        project.dispose(app)
    else:
        assert project.boot().decision == "verified"
    assert project.query("SELECT source FROM db_smart_state") == rows


def test_check_mode_refuses_and_writes_nothing(project: Project) -> None:
    project.write(V1)
    with pytest.raises(DatabaseBehind, match="make_items"):
        project.boot(DB_SMART_BOOT="check")
    assert project.tables() == set()
    assert not project.flag.exists()
    project.boot()
    assert project.boot(DB_SMART_BOOT="check").decision == "skipped"
    project.flag.unlink()
    assert project.boot(DB_SMART_BOOT="check").decision == "verified"
    assert not project.flag.exists()


def test_off_does_nothing(project: Project) -> None:
    project.write(V1)
    assert project.boot(DB_SMART_BOOT="off").decision == "off"
    assert project.boot(DB_SMART_BOOT="off", FORCE_DB_MIGRATION="neither yes nor no").decision == "off"
    assert not project.flag.exists()
    assert project.tables() == set()


def test_seven_calls_lead_from_boot_to_the_function_of_a_migration(sqlite_project: Project) -> None:
    """As CONTRIBUTING tells it in "One boot, from top to bottom"."""
    sqlite_project.write(
        """\
        import sys, traceback

        calls = []

        @migration
        def make_items(op):
            frames = [frame for frame, _ in traceback.walk_stack(sys._getframe())]
            calls[:] = [f.f_code.co_name for f in frames if f.f_globals["__name__"].startswith(("aurum", __name__))]
        """
    )
    sqlite_project.boot()
    calls = sys.modules[sqlite_project.module].calls
    assert calls == ["make_items", "apply_once", "apply", "run", "run", "_decide", "boot"]
