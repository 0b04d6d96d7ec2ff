"""A run over a fleet: every tenant that needs it, each once, and what the ledger says afterwards."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.fleet.ledger import Result
from aurum_harmony.db_smart.fleet.run import Course, FleetRun, Limits
from aurum_harmony.db_smart.store.tables import epoch_us, fleet_lease
from tests.harness.fleets import FleetProject
from tests.samples import V1, V2

FAILS_ON_B = (
    V2
    + """
@migration
def fails(op):
    if op.connection.exec_driver_sql("SELECT count(*) FROM items WHERE id = 7").scalar():
        raise ValueError("not on this one")
    op.add_column("items", Column("more", Integer))
"""
)


def test_all_tenants_are_migrated_and_the_next_run_opens_none(fleet: FleetProject) -> None:
    fleet.write(V1)
    run = fleet.migrate()
    assert (run.total, dict(run.counts)) == (3, {"up_to_date": 0, "applied": 3, "failed": 0})
    assert {name: fleet.applied(name) for name in "abc"} == dict.fromkeys("abc", ["make_items"])
    assert fleet.ledger() == dict.fromkeys("abc", ("applied", 0))
    opened: list[str] = []
    place = fleet.url_of

    def watched(name: str) -> object:
        opened.append(name)
        return place(name)

    fleet.options = {"schema": watched} if fleet.kind == "schemas" else {"url": watched}
    run = fleet.migrate()
    assert (dict(run.counts), run.complete, opened) == ({"up_to_date": 3, "applied": 0, "failed": 0}, True, [])
    fleet.options = {}
    fleet.write(V2)
    fleet.make("d")
    assert fleet.migrate().counts["applied"] == 4
    assert {fleet.applied(name)[-1] for name in "abcd"} == {"add_price"}


def test_one_that_fails_stops_no_other_and_is_tried_again(fleet: FleetProject) -> None:
    fleet.write(V2)
    fleet.migrate()
    fleet.of("b", "INSERT INTO items (id, name) VALUES (7, 'x')")
    fleet.write(FAILS_ON_B)
    result = fleet.run("fleet", "migrate", "--json")
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert [data[key] for key in ("total", "up_to_date", "applied", "failed", "left")] == [3, 0, 2, 1, 0]
    assert [one["name"] for one in data["failures"]] == ["b"]
    assert "not on this one" in data["failures"][0]["error"]
    assert fleet.url_of("b").render_as_string() not in result.output
    assert fleet.run("fleet", "migrate", "--failed").exit_code == 1
    assert fleet.ledger() == {"a": ("applied", 0), "b": ("failed", 2), "c": ("applied", 0)}
    shown = fleet.run("fleet", "failed")
    assert "b: Migration 'fails' failed" in shown.output
    assert "failed 2 times" in shown.output
    fleet.of("b", "DELETE FROM items WHERE id = 7")
    result = fleet.run("fleet", "migrate", "--failed")
    assert (result.exit_code, "1 tenant " in result.output, "1 migrated" in result.output) == (0, True, True)
    assert fleet.run("fleet", "failed").output == "No tenant failed.\n"
    assert fleet.applied("b") == ["make_items", "add_price", "fails"]
    assert fleet.ledger()["b"] == ("applied", 0)


NO_TABLE = """
@migration
def needs_items(op):
    op.execute("INSERT INTO items (id, name) VALUES (1, 'x')")
"""
BY_SESSION = """
@migration
def note_where():
    db.session.execute(text("CREATE TABLE place (name VARCHAR(100))"))
    db.session.execute(text("INSERT INTO place VALUES (:name)"), {"name": WHERE})
    db.session.commit()
"""
#: What tells the database, or the schema, to which a statement went.
WHERE = {
    "sqlite": "str(db.engine.url.database)",
    "postgresql": "db.session.scalar(text('SELECT current_database()'))",
    "schemas": "db.session.scalar(text('SELECT current_schema()'))",
    "mariadb": "db.session.scalar(text('SELECT database()'))",
}


def test_migrations_in_eight_threads_each_have_the_session_of_their_tenant(fleet: FleetProject) -> None:
    fleet.make(*(f"n{number}" for number in range(13)))
    fleet.write(BY_SESSION.replace("WHERE", WHERE[fleet.kind]))
    run = fleet.migrate(workers=8)
    assert (run.failures, run.counts["applied"]) == ([], 16)
    for name in fleet.names:
        (found,) = fleet.of(name, "SELECT name FROM place")
        assert fleet.place(name) in found[0]
    assert "place" not in fleet.tables()


@pytest.fixture
def files(make_fleet: Callable[..., FleetProject]) -> FleetProject:
    """Six tenants, of which ``b`` and ``e`` fail."""
    fleet = make_fleet("sqlite", *"abcdef", groups=lambda name: "vowels" if name in "ae" else ["others", "all"])
    fleet.write(NO_TABLE)
    for name in "acdf":
        fleet.of(name, "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
    return fleet


def outcome(fleet: FleetProject, *args: str) -> tuple[int, list[int]]:
    """The exit code of a run, and its counts."""
    result = fleet.run("fleet", "migrate", "--json", *args)
    data = json.loads(result.output)
    return result.exit_code, [data[key] for key in ("total", "up_to_date", "applied", "failed", "left")]


def test_a_canary_that_fails_is_the_end_and_one_that_does_not_is_not(files: FleetProject) -> None:
    assert outcome(files, "--canary", "2", "--workers", "1") == (1, [6, 0, 1, 1, 4])
    assert files.ledger() == {"a": ("applied", 0), "b": ("failed", 1)}
    files.of("b", "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
    # One of the five that are pending; after it, what fails stops nobody.
    assert outcome(files, "--canary", "20%", "--workers", "1") == (1, [6, 1, 4, 1, 0])


@pytest.mark.parametrize("canary", ["x", "-1", "x%", "nan%"])
def test_a_canary_that_is_no_number_changes_nothing(files: FleetProject, canary: str) -> None:
    result = files.run("fleet", "migrate", "--canary", canary)
    assert (result.exit_code, "must be a number of tenants" in result.output) == (1, True)
    assert files.tables() == set()


def test_no_other_tenant_is_begun_after_so_many_failures(files: FleetProject) -> None:
    assert outcome(files, "--stop-after", "1", "--workers", "1") == (1, [6, 0, 1, 1, 4])
    assert outcome(files, "--stop-after", "2", "--workers", "1") == (1, [6, 1, 2, 2, 1])


def test_tenants_are_chosen_by_name_and_by_group(files: FleetProject) -> None:
    assert outcome(files, "--only", "c", "--only", "d") == (0, [2, 0, 2, 0, 0])
    assert outcome(files, "--group", "vowels") == (1, [2, 0, 1, 1, 0])
    assert outcome(files, "--group", "all") == (1, [4, 2, 1, 1, 0])
    unknown = files.run("fleet", "migrate", "--only", "nobody")
    assert (unknown.exit_code, "no tenant 'nobody'" in unknown.output) == (2, True)
    # One that no tenant is in, and one of which none has failed.
    unknown = files.run("fleet", "migrate", "--group", "vowel")
    assert (unknown.exit_code, unknown.output.splitlines()[-1]) == (
        2, "Error: No tenant is in the group 'vowel'. There are: 'all', 'others', 'vowels'. Nothing was changed.",
    )  # fmt: skip
    files.of("e", "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
    assert outcome(files, "--group", "vowels") == (0, [2, 1, 1, 0, 0])
    assert outcome(files, "--group", "vowels", "--failed") == (0, [0, 0, 0, 0, 0])
    files.options.pop("groups")
    assert files.run("fleet", "migrate", "--group", "all").exit_code == 2


@pytest.mark.parametrize("known", [True, False])
def test_a_contract_step_waits_until_the_own_database_of_the_application_has_it(
    make_fleet: Callable[..., FleetProject], known: bool
) -> None:
    fleet = make_fleet("sqlite", "a", "b", strategy="full" if known else "on_request")
    fleet.config.update({"DB_SMART_RELEASES": known, "DB_SMART_RELEASE": "1"})
    fleet.write(V1)
    fleet.boot()
    fleet.migrate()
    drop = "@migration(contract=True)\ndef drop_name(op):\n    op.drop_column('items', 'name')\n"
    fleet.config["DB_SMART_RELEASE"] = "2"
    fleet.write(V1 + drop)
    # What the other release maps is known in the application's own database alone, and no tenant has a row of it.
    for _ in range(2):
        run = fleet.migrate()
        assert (run.complete, run.waiting) == (True, 2)
    assert (fleet.applied("a"), fleet.applied("b")) == (["make_items"], ["make_items"])
    assert "In 2 tenants a contract step waits" in fleet.run("fleet", "migrate").output
    shown = fleet.run("fleet", "status", "--check")
    assert (shown.exit_code, shown.output.count("0 of another release")) == (1, 1)
    assert "In 2 tenants a contract step waits" in shown.output
    app, _ = fleet.app()
    try:
        with app.app_context(), app.extensions["db_smart_fleet"].use("a"):  # it is served meanwhile
            pass
    finally:
        app.extensions["db_smart_fleet"].close()
        fleet.dispose(app)
    assert fleet.run("migrate", "--contract-now", "drop_name", "--yes").exit_code == 0
    run = fleet.migrate()
    assert (run.counts["applied"], run.waiting) == (2, 0)
    assert (fleet.applied("a"), fleet.applied("b")) == (["make_items", "drop_name"],) * 2
    assert fleet.migrate().pending == 0


def test_the_status_is_that_of_the_ledger(files: FleetProject) -> None:
    assert json.loads(files.run("fleet", "status", "--json").output) == {
        "total": 6, "up_to_date": 0, "waiting": 0, "pending": 0, "failed": 0, "new": 6, "gone": 0,
    }  # fmt: skip
    assert files.tables() == set()
    outcome(files)
    files.names.remove("a")
    files.make("g")
    found = files.run("fleet", "status", "--json", "--failed", "--check")
    data = json.loads(found.output)
    assert (found.exit_code, [one["name"] for one in data.pop("failures")]) == (1, ["b", "e"])
    assert data == {"total": 6, "up_to_date": 3, "waiting": 0, "pending": 0, "failed": 2, "new": 1, "gone": 1}
    files.write(V1)
    shown = files.run("fleet", "status").output
    assert "6 tenants: 0 up to date, 3 of another release, 2 failed, 1 new." in shown


REGIONS = """
@migration(database="eu")
def make_items(op):
    op.create_table("items", Column("id", Integer, primary_key=True))

@migration(database="us")
def make_items_too(op):
    op.create_table("items", Column("id", Integer, primary_key=True))
"""


@pytest.mark.parametrize("binds", [("eu", "us"), ("eu", "eu")])
def test_a_tenant_of_another_fleet_that_has_its_name_is_another_one(
    make_fleet: Callable[..., FleetProject], binds: tuple[str, str]
) -> None:
    """Two fleets of one application, or one of two applications, that share a ledger."""
    fleet = make_fleet("sqlite", "a")
    fleet.write(REGIONS)
    for number, bind in enumerate(binds):
        places = {key: f"sqlite:///{fleet.directory / key}{number}.sqlite" for key in ("eu", "us")}
        fleet.config["SQLALCHEMY_BINDS"] = places
        place = fleet.url_of(f"{number}_a")
        with sa.create_engine(place, poolclass=sa.pool.NullPool).connect() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 1")  # so that the file is there
        fleet.options.update(bind=bind, url=lambda name, place=place: place)
        assert json.loads(fleet.run("fleet", "status", "--json").output)["up_to_date"] == 0
        run = fleet.migrate()
        assert (run.failures, run.counts["applied"]) == ([], 1)
        assert fleet.migrate().pending == 0


def test_a_line_of_json_for_each_tenant(files: FleetProject) -> None:
    files.write("print('printed by a migration')\n" + NO_TABLE)
    result = files.run("fleet", "migrate", "--json-lines")
    *tenants, last = (json.loads(line) for line in result.stdout.splitlines())
    assert sorted((one["name"], one["status"]) for one in tenants) == [
        ("a", "applied"), ("b", "failed"), ("c", "applied"), ("d", "applied"), ("e", "failed"), ("f", "applied"),
    ]  # fmt: skip
    assert (last["applied"], last["failed"], last["total"]) == (4, 2, 6)
    assert next(one for one in tenants if one["name"] == "a")["applied"] == ["needs_items"]


def test_neither_url_nor_password_is_told(make_fleet: Callable[..., FleetProject], caplog: Any) -> None:
    caplog.set_level("DEBUG", "aurum_harmony.db_smart")
    fleet = make_fleet("sqlite", "a", url=lambda name: "postgresql+psycopg://anna:geheim@127.0.0.1:9/shop")
    fleet.write(V1)
    result = fleet.run("fleet", "migrate", "--json-lines")
    said = result.output + caplog.text + str(fleet.query("SELECT * FROM db_smart_fleet"))
    assert (result.exit_code, "Cannot connect" in said) == (1, True)
    assert not [word for word in ("geheim", "anna", "127.0.0.1:9", "/shop") if word in said]


@pytest.mark.parametrize("name", ["", " a", "a\nb", "x" * 201, 7])
def test_a_name_that_cannot_be_kept_changes_nothing(make_fleet: Callable[..., FleetProject], name: Any) -> None:
    fleet = make_fleet("sqlite", "a")
    fleet.names.append(name)
    fleet.write(V1)
    result = fleet.run("fleet", "migrate")
    assert (result.exit_code, "cannot be the name of a tenant" in result.output) == (1, True)
    assert fleet.tables() == set()


def test_a_place_that_cannot_be_told_is_the_failure_of_its_tenant_alone(files: FleetProject) -> None:
    place = files.url_of

    def url(name: str) -> Any:
        return {"a": "nonsense", "b": 1 / 0 if name == "b" else ""}.get(name) or place(name)

    files.options["url"] = url
    assert outcome(files, "--per-server", "1")[1] == [6, 0, 3, 3, 0]
    errors = {one["name"]: one["error"] for one in json.loads(files.run("fleet", "failed", "--json").output)}
    assert "is no URL" in errors["a"]
    assert "division by zero" in errors["b"]


def test_names_and_groups_that_cannot_be_told_have_a_clear_answer(files: FleetProject) -> None:
    files.options["groups"] = {"b": "vowels", "c": None, "d": None, "e": "vowels", "f": ()}.__getitem__
    result = files.run("fleet", "migrate", "--group", "vowels")
    assert result.output == (
        "Error: Fleet(groups=…) cannot tell the group of the tenant 'a': KeyError: 'a'. Nothing was changed.\n"
    )
    files.names.remove("a")
    assert outcome(files, "--group", "vowels")[1][0] == 2

    def tenants() -> Iterator[str]:
        with files.engine().connect() as connection:
            yield from connection.scalars(sa.text("SELECT slug FROM tenants"))

    files.options["tenants"] = tenants
    for command in ("migrate", "status"):
        result = files.run("fleet", command)
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        assert "cannot tell the names of the tenants: no such table: tenants. Nothing was changed." in result.output
        assert "'flask db-smart migrate'" in result.output


def test_two_tenants_are_not_led_to_one_place_by_a_name_that_the_server_cuts_off(
    make_fleet: Callable[..., FleetProject],
) -> None:
    fleet = make_fleet("schemas")
    fleet.names += ["ä" * 31 + "x", "b" * 64]
    fleet.options["schema"] = lambda name: f"t{name[:-1]}{name[-1]}"
    fleet.write(V1)
    databases = {"schema": None, "url": lambda name: make_url(fleet.url).set(database=f"t{name}")}
    for options in {}, databases:
        fleet.options.update(options)
        run = fleet.migrate()
        assert (run.counts["failed"], len(run.failures)) == (2, 2)
        assert {"of more than 63 bytes" in str(one.error) for one in run.failures} == {True}
    fleet.names.clear()


def test_each_server_has_so_many_tenants_at_a_time_and_none_is_forgotten(
    make_fleet: Callable[..., FleetProject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurum_harmony.db_smart.fleet.run._MOST_WAITING", 3)
    fleet = make_fleet("sqlite")
    at_work, most, seen, guard = Counter[str](), Counter[str](), list[str](), threading.Lock()
    met = threading.Barrier(4)

    def bring(name: str) -> Result:
        with guard:
            at_work[name[0]] += 1
            most[name[0]] = max(most[name[0]], at_work[name[0]])
            seen.append(name)
        with suppress(threading.BrokenBarrierError):
            met.wait(0.02)
        with guard:
            at_work[name[0]] -= 1
        return Result(name, "applied")

    names = [f"{server}{number}" for server in "aab" for number in range(10)] + ["c0"]
    run, app = FleetRun(len(names)), fleet.app()[0]
    with app.app_context(), ThreadPoolExecutor(8) as pool:
        ledger = app.extensions["db_smart_fleet"].ledger(app)
        with ledger.held():
            limits = Limits(8, per_server=2)
            course = Course(
                run,
                lambda name: pool.submit(bring, name),
                lambda name: name[0],
                ledger,
                "",
                None,
                limits,
                print,
                lambda: False,
            )
            assert course.go(names, None)
    assert sorted(seen) == sorted(names)
    assert (max(most.values()), run.counts["applied"], run.left) == (2, 31, 0)
    fleet.dispose(app)


def test_another_run_is_not_joined_while_it_lives_and_succeeded_when_it_is_dead(fleet: FleetProject) -> None:
    fleet.config["DB_SMART_LEASE_SECONDS"] = 1
    fleet.write(V1)
    app, _ = fleet.app()
    with app.app_context():
        ledger = app.extensions["db_smart_fleet"].ledger(app)
        with ledger.held():
            result = fleet.run("fleet", "migrate")
            assert (result.exit_code, "whose heartbeat is alive" in result.output) == (3, True)
    fleet.dispose(app)
    # One that was killed leaves its lease, which runs out.
    now = "SELECT expires FROM db_smart_fleet_lease"
    assert fleet.query(now) == [(0,)]
    with fleet.engine().begin() as connection:
        soon = epoch_us() + 700_000
        connection.execute(fleet_lease.update().values(expires=soon, holder="gone:1"))
    assert fleet.run("fleet", "migrate").exit_code == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_a_lease_that_lies_further_ahead_than_one_can_is_waited_for_no_longer_than_another(
    make_fleet: Callable[..., FleetProject], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aurum_harmony.db_smart")
    fleet = make_fleet(kind, "a")
    fleet.config["DB_SMART_LEASE_SECONDS"] = 1
    fleet.write(V1)
    assert fleet.migrate().complete
    fleet.write(V2)
    # As of a run that was killed before the clock of the server was set back.
    fleet.query("UPDATE db_smart_fleet_lease SET expires = expires + 9999999999999999, holder = 'gone:1'")
    assert fleet.run("fleet", "migrate").exit_code == 0
    assert "waiting for gone:1, which migrates the fleet or was killed" in caplog.text
    assert fleet.applied("a")[-1] == "add_price"
    assert fleet.query("SELECT expires, holder FROM db_smart_fleet_lease") == [(0, "")]
