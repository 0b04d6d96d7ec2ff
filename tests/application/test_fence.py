"""A process serves only while the database knows that it does."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmart, fence
from aurum_harmony.db_smart.loading.git import Checkout
from aurum_harmony.db_smart.settings import LockSettings
from aurum_harmony.db_smart.store import releases
from aurum_harmony.db_smart.store.database import Database
from aurum_harmony.db_smart.store.lock import Lock, lock_of
from aurum_harmony.db_smart.store.releases import Touches
from aurum_harmony.db_smart.store.tables import epoch_us, state
from aurum_harmony.db_smart.store.tables import releases as releases_table
from tests.harness.crash import ended, forked
from tests.harness.databases import connected, engine_of
from tests.harness.project import Project, booted, process
from tests.harness.servers import wait_until

USERS = """
@migration
def users(op):
    op.create_table("users", Column("id", Integer, primary_key=True), Column("fax", String(20)))
"""
DROP = Touches(gone={"users": ["fax"]})
READY = "/_db-smart/ready"
ON = {"DB_SMART_RELEASES": True, "DB_SMART_RELEASE": "1.4", "DB_SMART_LEASE_SECONDS": 60, "DB_SMART_CREATE_ALL": False}


def models(db: SQLAlchemy) -> None:
    class User(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "users"
        id = sa.Column(sa.Integer, primary_key=True)
        fax = sa.Column(sa.String(20))


def later_models(db: SQLAlchemy) -> None:
    db.Table("users", sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def released(project: Project) -> Project:
    """Release 1.4, of which the models map a column that a later one drops; it is booted."""
    return booted(project, models, USERS, ON)


def cut_off(smart: DbSmart, app: Flask) -> Any:
    """Let the time of a process be over, as after it was stopped; nobody of its host knows better."""
    found = smart._state(app).fence
    found.stop()
    found.deadline = 0.0
    if found._file is not None:
        os.pwrite(found._file, b" " * 64, 0)
    return found


_held: dict[str, Lock] = {}


def begin_step(project: Project, touches: Touches = DROP, release: str = "1.5") -> None:
    """Be as a process of a later release that takes something away and holds the lock."""
    database = Database("default", None, engine_of(project.url))
    if not database.facts.server:
        _held[project.module] = lock_of(database, LockSettings())
        assert _held[project.module].try_acquire(lambda _: False)
    with database.connect() as connection:
        releases.intend(connection, "drop_fax", release, touches, 7)
        later = epoch_us() + 600_000_000
        connection.execute(state.update().values(token=7, lease_expires=later, holder="b:2"))
        connection.commit()


def end_step(project: Project, *, dead: bool = False) -> None:
    """End it.

    :param dead: whether its process was killed, so that it takes nothing back.
    """
    if project.module in _held:
        _held.pop(project.module).release()
    with Database("default", None, engine_of(project.url)).connect() as connection:
        if not dead:
            releases.give_way(connection, "drop_fax")
        connection.execute(state.update().values(lease_expires=0, holder=""))
        connection.commit()


def lose_fax(project: Project) -> None:
    """Have a later release take it away, from begin to end."""
    begin_step(project)
    project.query("ALTER TABLE users DROP COLUMN fax")
    end_step(project)


def rows(project: Project) -> list[Any]:
    with connected(project.url) as connection:
        return list(
            connection.execute(sa.select(*(releases_table.c[name] for name in ("release", "instance", "uses"))))
        )


@contextmanager
def sent(app: Flask) -> Iterator[list[str]]:
    """The statements that the application's databases get meanwhile."""
    found: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        found.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


def test_it_is_off_by_default(project: Project) -> None:
    project.write(USERS)
    with process(project) as (app, smart):
        assert app.test_client().get("/").status_code == 200
        assert smart._state(app).fence is None
        assert not {"db_smart_releases", "db_smart_contracts"} & project.tables()


def test_the_first_request_of_a_host_registers_it(released: Project) -> None:
    assert not {"db_smart_releases"} & released.tables(), "boot costs what it did"
    with process(released) as (app, _):
        assert app.test_client().get("/").text == "served"
    ((release, instance, uses),) = rows(released)
    assert (release, uses) == ("1.4", '{"users": ["fax", "id"]}')
    assert instance.startswith(f"{os.uname().nodename}:")


@pytest.mark.parametrize("lost", ["db_smart_releases", "db_smart_contracts"])
def test_a_table_of_two_is_made(released: Project, lost: str) -> None:
    """Who made them may have ended between the two, and another thread may be between the two just now."""
    with process(released) as (app, smart):
        assert app.test_client().get("/").status_code == 200
        released.query(f"DROP TABLE {lost}")
        cut_off(smart, app)
        assert app.test_client().get("/").status_code == 200
    assert len(rows(released)) == 1


def test_what_it_costs(released: Project) -> None:
    with process(released) as (app, _):
        app.test_client().get("/")
    released.query("DELETE FROM db_smart_releases")
    for path in released.instance.glob("*.seen"):
        path.unlink()
    with process(released) as (app, smart):
        client = app.test_client()
        with sent(app) as first:
            assert client.get("/").status_code == 200
        asked = [one for one in first if "db_smart_releases" in one or "db_smart_contracts" in one]
        assert [one.split()[0] for one in asked] == ["INSERT", "SELECT"]
        assert len([one for one in first if "db_smart_state" in one]) == 2, (
            "the question of the first request, and ours"
        )
        with sent(app) as later:
            assert client.get("/").status_code == client.get(READY).status_code == 200
        assert later == []
        with process(released) as (other, _), sent(other) as another:
            assert other.test_client().get("/").status_code == 200
            assert not [one for one in another if "db_smart_releases" in one], "another process of the host knows"
    assert len(rows(released)) == 1


def test_it_asks_again_when_its_time_is_over(released: Project) -> None:
    with process(released) as (app, smart):
        client = app.test_client()
        assert client.get("/").status_code == 200
        cut_off(smart, app)
        with sent(app) as found:
            assert client.get("/").status_code == 200
        assert any("db_smart_contracts" in one for one in found)


@pytest.mark.parametrize("dead", [False, True], ids=["given up", "killed"])
def test_what_is_being_taken_away(released: Project, caplog: pytest.LogCaptureFixture, dead: bool) -> None:
    with process(released) as (app, smart):
        client = app.test_client()
        assert client.get("/").status_code == 200
        begin_step(released)
        assert client.get("/").status_code == 200, "its row holds: whoever drops has seen it"
        found = cut_off(smart, app)
        with caplog.at_level(logging.ERROR):
            answer = client.get("/")
        assert answer.status_code == 503
        assert answer.json is not None
        assert answer.json["detail"] == "The database is being migrated."
        assert "'drop_fax' is being applied to the database 'default'" in caplog.text
        assert client.get(READY).status_code == 503
        with sent(app) as asked:
            assert client.get("/").status_code == 503
        assert asked == [], "not more than once a second"
        end_step(released, dead=dead)
        wait_until(lambda: client.get("/").status_code == 200)
        assert found.refusal is None


def test_what_is_gone(released: Project) -> None:
    with process(released) as (app, smart):
        client = app.test_client()
        assert client.get("/").status_code == 200
        lose_fax(released)
        cut_off(smart, app)
        answer = client.get("/")
        assert answer.status_code == 503
        assert answer.json is not None
        assert answer.json["detail"] == "This release needs what a later one has taken away from the database."
        assert smart._state(app).fence.refusal.cause.startswith(
            "Release 1.4 uses users.fax, which the database 'default' no longer has since 'drop_fax'."
        )
        assert client.get(READY).json == {"state": "failed", "migration": None, "progress": None, "since": None}
        assert rows(released) == [], "it stands in nobody's way"
        released.query("ALTER TABLE users ADD COLUMN fax VARCHAR(20)")
        wait_until(lambda: client.get("/").status_code == 200)


def test_a_row_that_has_run_out_is_registered_and_not_renewed(released: Project) -> None:
    """Also where a request of this moment has just registered it, and has not looked yet at what is gone."""
    with process(released) as (app, smart):
        client = app.test_client()
        assert client.get("/").status_code == 200
        lose_fax(released)
        found = cut_off(smart, app)
        found._beat()
        assert len(rows(released)) == 0
        assert client.get("/").status_code == 503


def test_a_release_that_does_not_map_it_serves(released: Project) -> None:
    with process(released) as (app, _):
        assert app.test_client().get("/").status_code == 200
    begin_step(released)
    released.models = later_models
    with process(released, DB_SMART_RELEASE="1.5") as (app, _):
        assert app.test_client().get("/").status_code == 200
    end_step(released)


def test_what_was_narrowed_is_no_reason(released: Project) -> None:
    with process(released) as (app, smart):
        app.test_client().get("/")
        begin_step(released, Touches(narrowed={"users": ["fax"]}))
        cut_off(smart, app)
        assert app.test_client().get("/").status_code == 503
        end_step(released)
        wait_until(lambda: app.test_client().get("/").status_code == 200)


@pytest.mark.parametrize("none", [False, True], ids=["more", "all"])
def test_models_that_are_imported_later(released: Project, none: bool) -> None:
    """As by a view that imports what it needs: from the next request on, the database knows of them too."""
    released.models = None if none else later_models
    with process(released) as (app, smart):
        client = app.test_client()
        assert client.get("/").status_code == 200
        assert none or [uses for _, _, uses in rows(released)] == ['{"users": ["id"]}']
        sa.Table("logs", smart._state(app).db.metadata, sa.Column("id", sa.Integer, primary_key=True))
        assert client.get("/").status_code == 200
        uses = '{"logs": ["id"]}' if none else '{"logs": ["id"], "users": ["id"]}'
        assert uses in [uses for _, _, uses in rows(released)]
        begin_step(released, Touches(gone={"logs": []}))
        cut_off(smart, app)
        assert client.get("/").status_code == 503
        end_step(released)


def test_the_thread_outlives_any_error(released: Project) -> None:
    """A listener of the application, or a driver, may raise what SQLAlchemy does not wrap."""
    with process(released, DB_SMART_LEASE_SECONDS=0.9) as (app, smart):
        assert app.test_client().get("/").status_code == 200
        found = smart._state(app).fence
        failed = threading.Event()

        def refuse(*_: Any) -> None:
            failed.set()
            raise OSError("no")

        sa.event.listen(sa.Engine, "before_cursor_execute", refuse)
        try:
            assert failed.wait(10)
            cut_off(smart, app)
            assert app.test_client().get("/").status_code == 503
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", refuse)
        wait_until(lambda: app.test_client().get("/").status_code == 200)
        first = found.deadline
        wait_until(lambda: found.deadline > first + 0.9)


def test_the_thread_renews(released: Project) -> None:
    with process(released, DB_SMART_LEASE_SECONDS=0.9) as (app, smart):
        assert app.test_client().get("/").status_code == 200
        found = smart._state(app).fence
        first = found.deadline
        wait_until(lambda: found.deadline > first + 0.9)
        seen = released.query("SELECT started, seen_at FROM db_smart_releases")
        assert len(seen) == 1
        assert seen[0][1] > seen[0][0]


def test_two_processes_share_one_row_and_one_renews(released: Project) -> None:
    with (
        process(released, DB_SMART_LEASE_SECONDS=3) as (first, smart),
        process(released, DB_SMART_LEASE_SECONDS=3) as (second, other),
    ):
        for app in (first, second):
            assert app.test_client().get("/").status_code == 200
        assert len(rows(released)) == 1
        one, two = smart._state(first).fence, other._state(second).fence
        before = two.deadline
        one.stop()
        two.stop()
        one.deadline = two.deadline = fence.clock() + 1
        os.pwrite(one._file, b" " * 64, 0)
        assert one._beat() > 0
        assert one.deadline > before - 3
        with sent(second) as asked:
            two._beat()
        assert two.deadline == pytest.approx(one.deadline, abs=1e-5)
        assert asked == [], "the file has told it"


def test_without_a_file_each_process_has_its_row(released: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> int:
        raise PermissionError(13, "no")

    monkeypatch.setattr(fence, "open_beside", refused)
    with process(released) as (first, _), process(released) as (second, _):
        for app in (first, second):
            assert app.test_client().get("/").status_code == 200
        assert len({instance for _, instance, _ in rows(released)}) == 2


def test_what_the_file_says_is_not_believed_too_far(released: Project) -> None:
    with process(released) as (app, smart):
        app.test_client().get("/")
        found = cut_off(smart, app)
        for text in (b"garbage", b"9 8", b"nan nan", b"-5 -5", b""):
            os.pwrite(found._file, text.ljust(64), 0)
            found._adopt()
            assert not found.deadline > fence.clock(), text
        os.pwrite(found._file, b"9e99 9e99".ljust(64), 0)
        found._adopt()
        assert found.deadline <= fence.clock() + 60


@pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
def test_a_silent_database_does_not_hold_requests_for_long(released: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "_PATIENCE", 0.2)
    with process(released) as (app, smart):
        client = app.test_client()
        assert client.get("/").status_code == 200
        cut_off(smart, app)
        with connected(released.url) as other:
            other.execute(sa.text("SELECT * FROM db_smart_releases FOR UPDATE")).all()
            began = time.monotonic()
            assert client.get("/").status_code == 503
            assert time.monotonic() - began < 5
            other.rollback()
        wait_until(lambda: client.get("/").status_code == 200)


def test_many_requests_ask_once(released: Project) -> None:
    with process(released) as (app, smart):
        client = app.test_client()
        client.get("/")
        cut_off(smart, app)
        codes: list[int] = []
        barrier = threading.Barrier(8)

        def ask() -> None:
            barrier.wait()
            codes.append(app.test_client().get("/").status_code)

        with sent(app) as asked:
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert codes == [200] * 8
        assert len([one for one in asked if "INSERT INTO db_smart_releases" in one]) == 1


def test_a_forked_process_has_a_thread_of_its_own(released: Project) -> None:
    with process(released, DB_SMART_LEASE_SECONDS=5) as (app, smart):
        assert app.test_client().get("/").status_code == 200

        def look() -> None:
            found = smart._state(app).fence
            assert found.deadline == 0
            assert not found._beats
            assert found.admit() is None
            assert found._beats

        assert ended(forked(look)) == 0


def test_an_exempt_view_answers(released: Project) -> None:
    with process(released) as (app, smart):
        app.add_url_rule("/alive", view_func=smart.exempt(lambda: "alive"), endpoint="alive")
        client = app.test_client()
        client.get("/")
        released.query("DROP TABLE db_smart_contracts")
        released.query("DROP TABLE db_smart_releases")
        released.query("CREATE TABLE db_smart_releases (id INTEGER)")
        cut_off(smart, app)
        assert client.get("/").status_code == 503
        assert "cannot be told that this process serves" in smart._state(app).fence.refusal.cause
        assert client.get("/alive").text == "alive"
        assert client.get("/_db-smart/live").status_code == 200


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sessions_say_their_release(
    make_project: Callable[..., Project], new_url: Callable[[str], URL], driver: str
) -> None:
    pytest.importorskip(driver)
    project = make_project(new_url("postgresql").set(drivername=f"postgresql+{driver}"), ON)
    project.write(USERS)
    shown = "SELECT current_setting('application_name')"
    with process(project) as (app, _), app.app_context():
        assert app.extensions["sqlalchemy"].session.execute(sa.text(shown)).scalar() == "db-smart/1.4"
        app.extensions["sqlalchemy"].session.remove()
    project.url = project.url.update_query_dict({"application_name": "mine"})  # type: ignore[union-attr]
    with process(project) as (app, _), app.app_context():
        assert app.extensions["sqlalchemy"].session.execute(sa.text(shown)).scalar() == "mine"
        app.extensions["sqlalchemy"].session.remove()


def test_the_commit_is_the_name(tmp_path: Path) -> None:
    def commit_of(path: str) -> str | None:
        found = Checkout.find(path)
        return None if found is None else found.commit

    commit = "a" * 40
    assert commit_of(str(tmp_path)) is None
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(str(tmp_path)) is None
    (git / "packed-refs").write_text(f"# pack-refs\n{'b' * 40} refs/heads/main\n")
    assert commit_of(str(tmp_path / "deep/below")) == "b" * 40
    (git / "refs/heads/main").write_text(f"{commit}\n")
    assert commit_of(str(tmp_path)) == commit
    tree = tmp_path / "tree"
    (git / "worktrees/tree").mkdir(parents=True)
    (git / "worktrees/tree/HEAD").write_text("c" * 40)
    (git / "worktrees/tree/commondir").write_text("../..\n")
    tree.mkdir()
    (tree / ".git").write_text(f"gitdir: {git}/worktrees/tree\n")
    assert commit_of(str(tree)) == "c" * 40
