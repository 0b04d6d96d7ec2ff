"""The rows of the releases that run, and of what is taken away from them: each order in which two may come."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.boot.sessions import name_sessions
from aurum_harmony.db_smart.store import history, releases
from aurum_harmony.db_smart.store.database import Database
from aurum_harmony.db_smart.store.releases import Contract, Instance, Touches
from aurum_harmony.db_smart.store.tables import epoch_us, state
from aurum_harmony.db_smart.store.tables import releases as rows
from tests.harness.databases import engine_of

OLD = Instance("1.4", "a:1", {"users": ["id", "fax"]})
NEW = Instance("1.5", "b:1", {"users": ["id"]})
DROP = Touches(gone={"users": ["fax"]})
LEASE, GRACE, TOKEN = 60, 5, 7


@pytest.fixture
def database(url: URL) -> Database:
    """With the tables, and a lease that holds under a token."""
    database = Database("default", None, engine_of(url))
    with database.connect() as connection:
        history.create_state(connection)
        releases.make_tables(connection)
        later = epoch_us() + 600_000_000
        connection.execute(state.update().values(token=TOKEN, lease_expires=later, holder="b:2"))
        connection.commit()
    return database


@pytest.fixture
def open_one(database: Database) -> Iterator[Callable[[], sa.Connection]]:
    """Makes connections, each as another process has it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(database.connect())


def reads(database: Database, connection: sa.Connection) -> list[Contract]:
    """What a process reads that registers."""
    return releases.read_contracts(connection, holds=None if database.facts.server else True)


def harms(found: list[Contract], me: Instance) -> bool:
    return any(one.under_way and releases.harmed(one.touches, me, NEW) for one in found)


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("ssrr"))), ids="".join)
def test_whichever_order_one_gives_way(database: Database, open_one: Any, order: tuple[str, ...]) -> None:
    """The step writes and looks, the process writes and looks: never do both go on."""
    step, process = open_one(), open_one()
    goes_on: dict[str, bool] = {}

    def stepping() -> Iterator[None]:
        releases.intend(step, "drop_fax", "1.5", DROP, TOKEN)
        yield
        goes_on["step"] = not releases.in_the_way(step, DROP, NEW, GRACE)
        yield

    def registering() -> Iterator[None]:
        releases.register(process, OLD, LEASE)
        yield
        goes_on["process"] = not harms(reads(database, process), OLD)
        yield

    each = {"s": stepping(), "r": registering()}
    # An older snapshot that a connection would still have must not count.
    for connection in (step, process):
        connection.execute(sa.select(rows)).all()
    for one in order:
        next(each[one])
    assert goes_on.keys() == {"step", "process"}
    assert not (goes_on["step"] and goes_on["process"])
    if order == tuple("ssrr"):
        assert goes_on == {"step": True, "process": False}
    if order == tuple("rrss"):
        assert goes_on == {"step": False, "process": True}


def test_at_the_same_time(database: Database, open_one: Any) -> None:
    """Many times over, in two threads."""
    both: list[tuple[bool, bool]] = []
    barrier = threading.Barrier(2)
    step, process = open_one(), open_one()
    found: dict[str, bool] = {}

    def take() -> None:
        barrier.wait()
        releases.intend(step, "drop_fax", "1.5", DROP, TOKEN)
        found["step"] = not releases.in_the_way(step, DROP, NEW, GRACE)

    def register() -> None:
        barrier.wait()
        releases.register(process, OLD, LEASE)
        found["process"] = not harms(reads(database, process), OLD)

    for _ in range(20):
        threads = [threading.Thread(target=one) for one in (take, register)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        both.append((found.pop("step"), found.pop("process")))
        releases.give_way(step, "drop_fax")
        releases.withdraw(process, OLD)
    assert (True, True) not in both


@pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
def test_what_a_dead_holder_began_is_void(database: Database, open_one: Any) -> None:
    connection = open_one()
    releases.intend(connection, "drop_fax", "1.5", DROP, TOKEN)
    assert reads(database, connection) == [Contract("drop_fax", "1.5", DROP, True)]
    for values in ({"token": TOKEN + 1}, {"token": TOKEN, "lease_expires": epoch_us() - 1}):
        connection.execute(state.update().values(**values))
        connection.commit()
        assert reads(database, connection) == [Contract("drop_fax", "1.5", DROP, False)]


def test_another_step_ends_what_was_begun(database: Database, open_one: Any) -> None:
    connection = open_one()
    releases.intend(connection, "drop_fax", "1.5", DROP, TOKEN)
    releases.intend(connection, "drop_pager", "1.5", DROP, TOKEN)
    assert {one.migration: one.under_way for one in reads(database, connection)} == {
        "drop_fax": False,
        "drop_pager": True,
    }


def test_a_row_runs_out(database: Database, open_one: Any) -> None:
    connection = open_one()
    releases.register(connection, OLD, LEASE)
    (found,) = releases.in_the_way(connection, DROP, NEW, GRACE).instances
    assert (found.release, found.host, found.over) == ("1.4", "a", False)
    assert 0 <= found.seconds < 10
    assert releases.renew(connection, OLD, LEASE)
    age(connection, LEASE + 2)
    assert releases.in_the_way(connection, DROP, NEW, GRACE), "a request that began in time may go on"
    assert not releases.renew(connection, OLD, LEASE), "whoever looked may not have seen it"
    assert len(releases.read_instances(connection, GRACE, living=True)) == 1
    age(connection, GRACE)
    assert not releases.in_the_way(connection, DROP, NEW, GRACE)
    assert releases.read_instances(connection, GRACE, living=True) == [], "nobody reads what all pods of a week mapped"
    releases.register(connection, OLD, LEASE)
    assert releases.in_the_way(connection, DROP, NEW, GRACE)
    assert connection.execute(sa.select(sa.func.count()).select_from(rows)).scalar() == 1
    releases.forget(connection)
    assert len(releases.read_instances(connection, GRACE)) == 1
    age(connection, 8 * 86_400)
    releases.forget(connection)
    assert releases.read_instances(connection, GRACE) == []


def age(connection: sa.Connection, seconds: int) -> None:
    """Let the row be so much older."""
    moved = {name: rows.c[name] - seconds * 1_000_000 for name in ("seen_at", "seen_until")}
    connection.execute(rows.update().values(**moved))
    connection.commit()


@pytest.mark.parametrize(
    ("touches", "uses", "same_release", "other_release"),
    [
        (Touches(gone={"users": ["fax"]}), {"users": ["id", "fax"]}, True, True),
        (Touches(gone={"users": ["fax"]}), {"users": ["id"]}, False, False),
        (Touches(gone={"users": []}), {"users": ["id"]}, True, True),
        (Touches(gone={"public.users": ["fax"]}), {"users": ["fax"]}, True, True),
        (Touches(gone={"archive.users": ["fax"]}), {"main.users": ["fax"]}, False, False),
        (Touches(narrowed={"users": ["fax"]}), {"users": ["fax"]}, False, True),
        (Touches(unknown="SQL"), {"users": ["id"]}, False, True),
        (Touches(), {"users": ["id"]}, False, False),
    ],
)
def test_who_is_harmed(touches: Touches, uses: Any, same_release: bool, other_release: bool) -> None:
    me = Instance("1.5", "b:1", uses)
    assert releases.harmed(touches, Instance("1.5", "a:1", uses), me) is same_release
    assert releases.harmed(touches, Instance("1.4", "a:1", uses), me) is other_release
    assert Touches.of(touches.text()) == touches


def test_one_process_of_all_tries(database: Database, open_one: Any) -> None:
    first, second = open_one(), open_one()
    assert releases.claim(first, "drop_fax", LEASE), "nobody has"
    releases.intend(first, "drop_fax", "1.5", DROP, 0)
    assert not releases.claim(second, "drop_fax", LEASE)
    assert releases.claim(second, "drop_fax", 0)
    assert reads(database, first) == [Contract("drop_fax", "1.5", DROP, False)]


def test_many_make_the_tables(url: URL) -> None:
    errors: list[BaseException] = []
    engine = engine_of(url)
    with Database("default", None, engine).connect() as connection:
        history.create_state(connection)
        assert not releases.exist(connection)

    def make() -> None:
        try:
            with Database("default", None, engine_of(url)).connect() as connection:
                releases.make_tables(connection)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Database("default", None, engine).connect() as connection:
        assert releases.exist(connection)


def test_workers_of_a_host_that_start_together(database: Database) -> None:
    """None of them is told that it cannot register, because another one was quicker."""
    barrier, errors = threading.Barrier(8), list[Exception]()

    def register(release: str) -> None:
        with database.connect() as connection:
            connection.execute(sa.select(rows)).all()
            barrier.wait()
            try:
                releases.register(connection, Instance(release, "a:1", OLD.uses), LEASE)
            except Exception as error:
                errors.append(error)

    for number in range(5):
        threads = [threading.Thread(target=register, args=[f"1.{number}"]) for _ in range(barrier.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    with database.connect() as connection:
        assert len(releases.read_instances(connection, GRACE)) == 5


@pytest.mark.parametrize("text", ["", "x", "[]", "null", '{"users": 1}', '{"users": {"columns": ["id"]}}'])
def test_what_maps_is_not_to_be_read(database: Database, open_one: Any, text: str) -> None:
    """It was edited, or is of a release to come: it may be anything."""
    connection = open_one()
    releases.register(connection, OLD, LEASE)
    connection.execute(rows.update().values(uses=text))
    connection.commit()
    assert str(releases.in_the_way(connection, DROP, NEW, GRACE)).startswith("waits for 1 instance of release 1.4 ")
    age(connection, LEASE + GRACE + 1)
    assert not releases.in_the_way(connection, DROP, NEW, GRACE)


@pytest.mark.parametrize("release", ["1.5 – größer 'a' \\", "é" * 200, "x" * 255])
def test_sessions_of_a_release_whose_name_a_server_cannot_show(new_url: Callable[[str], URL], release: str) -> None:
    """PostgreSQL shows only ASCII, and 63 bytes: neither is one taken for another, nor is its own in the way."""
    url = new_url("postgresql")
    database = Database("default", None, engine_of(url))
    engine = engine_of(url)
    name_sessions([engine], lambda: releases.session_name(release))
    with database.connect() as connection, engine.connect() as mine:
        history.create_state(connection)
        releases.make_tables(connection)
        mine.execute(sa.text("SELECT 1"))
        me = Instance(release, "b:1", NEW.uses)
        assert releases.in_the_way(connection, DROP, me, GRACE).sessions == {}
        releases.register(connection, Instance(f"{release[:-1]}y", "b:1", NEW.uses), LEASE)
        assert list(releases.in_the_way(connection, DROP, NEW, GRACE).sessions.values()) == [1]


def test_sessions_of_a_release_without_row(new_url: Callable[[str], URL]) -> None:
    """A worker or a script serves no request, so that no host tells of it; PostgreSQL shows its name."""
    url = new_url("postgresql")
    database = Database("default", None, engine_of(url))

    def named(release: str) -> sa.Engine:
        return engine_of(url.update_query_dict({"application_name": f"db-smart/{release}"}))

    with database.connect() as connection, named("1.4").connect() as worker, named("1.5").connect() as mine:
        history.create_state(connection)
        releases.make_tables(connection)
        for one in (worker, mine):
            one.execute(sa.text("SELECT 1"))
        found = releases.in_the_way(connection, DROP, NEW, GRACE)
        assert str(found) == "waits for 1 session of release 1.4 that no host tells of"
        releases.register(connection, OLD, LEASE)
        assert releases.in_the_way(connection, DROP, NEW, GRACE).sessions == {}
        age(connection, LEASE + GRACE + 1)
        assert releases.in_the_way(connection, DROP, NEW, GRACE).sessions == {"1.4": 1}
        releases.register(connection, Instance("1.4", "a:1", {"users": ["id"]}), LEASE)
        assert not releases.in_the_way(connection, DROP, NEW, GRACE), "that release does not map it"


def test_words() -> None:
    seen = [releases.Seen("1.4", f"{host}:{n}", {}, seconds) for n, (host, seconds) in enumerate([("b", 7), ("a", 3)])]
    found = releases.InTheWay([*seen, releases.Seen("1.3", "c:x:9", {}, 0.2)])
    assert str(found) == (
        "waits for 2 instances of release 1.4 (hosts a, b), last seen 3 s ago and for 1 instance of release 1.3 "
        "(host c:x), last seen 0 s ago"
    )
    assert "host" not in " ".join(found.public)
