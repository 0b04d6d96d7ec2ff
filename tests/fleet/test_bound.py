"""Whatever fails, and whoever calls: what uses no tenant, or another one, never gets the database of a tenant."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, current_app, request, stream_with_context

from aurum_harmony.db_smart import DbSmartError
from tests.harness.fleets import FleetProject, add, names, running, with_model
from tests.samples import V1


@pytest.fixture
def migrated(fleet: FleetProject) -> FleetProject:
    """Three tenants, and the control database, with the same table."""
    fleet.models = with_model
    fleet.write(V1)
    fleet.boot()
    fleet.migrate()
    return fleet


@pytest.fixture
def files(make_fleet: Callable[..., FleetProject]) -> FleetProject:
    fleet = make_fleet("sqlite", "a", "b")
    fleet.models = with_model
    fleet.write(V1)
    fleet.boot()
    fleet.migrate()
    return fleet


def by_header(app: Flask, found: Any, db: Any) -> None:
    """Have requests use the tenant of a header, and say which database they see."""
    found.tenant_from_request(lambda: request.headers.get("X-Tenant"))
    app.add_url_rule("/where", view_func=lambda: where(db))


def where(db: Any) -> str:
    """The name of the database that the application sees, without its folder."""
    return str(db.engine.url.database).rpartition("/")[2]


def at(fleet: FleetProject, name: str) -> str:
    return str(fleet.url_of(name).database).rpartition("/")[2]


def check_none_is_used(app: Flask, fleet: FleetProject, db: Any) -> None:
    with app.app_context():
        assert where(db) == str(sa.make_url(fleet.url).database).rpartition("/")[2]
    assert app.test_client().get("/where").text == str(sa.make_url(fleet.url).database).rpartition("/")[2]


def test_a_teardown_that_fails_leaves_no_tenant_in_its_thread(files: FleetProject) -> None:
    seen: list[str] = []
    with running(files) as (app, found, db):
        by_header(app, found, db)

        @app.teardown_request
        def fails(_: object) -> None:
            seen.append(where(db))
            if len(seen) == 1:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            app.test_client().get("/where", headers={"X-Tenant": "a"})
        assert seen == [at(files, "a")]
        check_none_is_used(app, files, db)


def test_a_request_inside_a_request_leaves_the_outer_one_its_tenant(files: FleetProject) -> None:
    with running(files) as (app, found, db):
        by_header(app, found, db)

        @app.get("/outer")
        def outer() -> list[str]:
            add(db, "of a")
            inner = app.test_client().get("/where", headers={"X-Tenant": "b"}).text
            return [inner, where(db), *names(db)]

        assert app.test_client().get("/outer", headers={"X-Tenant": "a"}).json == [
            at(files, "b"), at(files, "a"), "of a",
        ]  # fmt: skip
        check_none_is_used(app, files, db)


def test_a_streamed_answer_is_that_of_its_tenant_to_its_end(files: FleetProject) -> None:
    with running(files) as (app, found, db):
        by_header(app, found, db)

        @app.get("/stream")
        def stream() -> Any:
            def rows() -> Iterator[str]:
                for _ in range(2):
                    yield where(db)

            return stream_with_context(rows())

        answer = app.test_client().get("/stream", headers={"X-Tenant": "a"})
        assert answer.text == 2 * at(files, "a")
        check_none_is_used(app, files, db)
        left = app.test_client().get("/stream", headers={"X-Tenant": "a"}, buffered=False)
        next(iter(left.response))
        left.close()
        check_none_is_used(app, files, db)


def test_generators_with_blocks_may_end_in_any_order(files: FleetProject) -> None:
    with running(files) as (app, found, db):
        by_header(app, found, db)

        def rows(name: str) -> Generator[str, None, None]:
            with found.use(name):
                yield where(db)

        with app.app_context():
            first, second = rows("a"), rows("b")
            assert [next(first), next(second)] == [at(files, "a"), at(files, "b")]
            first.close()
            second.close()
            assert where(db) == str(sa.make_url(files.url).database).rpartition("/")[2]
        check_none_is_used(app, files, db)


KILLS = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {}",
    "mariadb": "KILL {}",
}
KILLS["schemas"] = KILLS["postgresql"]


def test_a_session_that_cannot_be_ended_leaves_no_tenant_behind(migrated: FleetProject) -> None:
    with running(migrated) as (app, found, db), app.app_context():
        add(db, "own")
        block = found.use("a")
        block.__enter__()
        add(db, "of a")
        names(db)
        if migrated.kind == "sqlite":
            sa.event.listen(db.session.connection(), "rollback", lambda _: 1 // 0)
        else:
            own = "connection_id()" if migrated.kind == "mariadb" else "pg_backend_pid()"
            migrated.admin(KILLS[migrated.kind].format(db.session.scalar(sa.text(f"SELECT {own}"))))
        with suppress(sa.exc.DBAPIError, ZeroDivisionError):
            block.__exit__(None, None, None)
        assert names(db) == ["own"]


def test_tenants_and_places_are_asked_of_the_application_and_not_of_a_tenant(migrated: FleetProject) -> None:
    """The application keeps them in its own database, which the block of a tenant has none of."""
    place = migrated.place if migrated.kind == "schemas" else migrated.url_of

    def listed() -> list[str]:
        return names(current_app.extensions["sqlalchemy"])

    def looked_up(name: str) -> Any:
        return place(name if name in listed() else "nowhere")

    migrated.options = {"tenants": listed, "schema" if migrated.kind == "schemas" else "url": looked_up}
    with running(migrated) as (app, found, db):
        with app.app_context():
            for name in "abc":
                add(db, name)
        migrated.query("DELETE FROM db_smart_fleet")
        with app.app_context(), found.use("a"):
            with found.use("b"):
                add(db, "of b")
            assert (names(db), found.status()["total"], found.migrate().failures) == ([], 3, [])
        assert found.status()["up_to_date"] == 3
    assert migrated.of("b", "SELECT name FROM items") == [("of b",)]


class Unspeakable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


NO_NAMES: tuple[Any, ...] = (
    "", " a", "a ", "a\0", "\udcff", "x" * 300, "../../a", "a'; DROP TABLE items", 7, b"a", ["a"], ("a",),
    Unspeakable(),
)  # fmt: skip


def test_what_can_be_no_tenant_is_an_unknown_one(migrated: FleetProject) -> None:
    asked: list[Any] = []
    with running(migrated) as (app, found, _):
        found.tenant_from_request(asked.pop)
        for name in NO_NAMES:
            asked.append(name)
            answer = app.test_client().get("/")
            assert (answer.status_code, answer.text) == (404, "There is no such tenant.\n"), type(name)
            with pytest.raises(DbSmartError, match="no (such )?tenant"), found.use(name):
                pass
