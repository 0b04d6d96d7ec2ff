"""What a run of a revision that ended early has done is replayed by the next, and not done again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.errors import MigrationFailed
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked
from tests.harness.project import DIALECTS

THINGS = """
op.create_table(
    "things", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("n", sa.Integer)
)
op.execute("INSERT INTO things (id, n) VALUES (1, 0)")
op.execute("INSERT INTO things (id, n) VALUES (2, 0)")
"""
SERVERS = [dialect for dialect in DIALECTS if dialect != "sqlite"]


@contextmanager
def in_transaction(project: AlembicProject, sql: str, seconds: float) -> Iterator[None]:
    """Hold a transaction open that has sent this, for some time from now on, in a thread."""
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    sent = threading.Event()

    def hold() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(sql).all()
            sent.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    assert sent.wait(10)
    try:
        yield
    finally:
        thread.join()


def boot(project: AlembicProject) -> None:
    app, smart = project.app(DB_SMART_LEASE_SECONDS=0.2)
    smart.boot(app)


@pytest.mark.parametrize("dialect", SERVERS)
def test_a_schema_change_does_not_wait_long_and_is_tried_again(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_alembic(new_url(dialect), {"DB_SMART_DDL_LOCK_TIMEOUT": 0.5, "DB_SMART_DDL_RETRIES": 20})
    project.revision("a1", None, THINGS)
    project.boot()
    update = 'op.execute("UPDATE things SET n = n + 1")'
    column = 'op.add_column("things", sa.Column("name", sa.String(20)))'
    project.revision("b2", "a1", f"{update}\n{column}\n{update}")
    with in_transaction(project, "SELECT * FROM things", 1.8):
        assert project.boot().decision == "migrated"
    assert project.query("SELECT id, n, name FROM things ORDER BY id") == [(1, 2, None), (2, 2, None)]
    assert project.heads() == {"b2"}
    assert project.query("SELECT * FROM db_smart_progress") == []


@pytest.mark.parametrize("dialect", SERVERS)
def test_without_an_end_of_the_wait_the_message_says_who_was_in_the_way(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_alembic(new_url(dialect), {"DB_SMART_DDL_LOCK_TIMEOUT": 0.3, "DB_SMART_DDL_RETRIES": 0})
    project.revision("a1", None, THINGS)
    project.boot()
    project.revision("b2", "a1", 'op.add_column("things", sa.Column("name", sa.String(20)))')
    with in_transaction(project, "SELECT * FROM things", 2.5), pytest.raises(MigrationFailed, match="in its way"):
        project.boot()
    assert project.boot().decision == "migrated"


CHOICES = {
    "SET LOCAL lock_timeout = '33s'": ["33s", "7s", "7s"],
    "-- a comment\nset local lock_timeout TO '33s'; SELECT 1": ["33s", "7s", "7s"],
    "SELECT set_config('lock_timeout', '33s', true)": ["33s", "7s", "7s"],
    "SET lock_timeout = 2000": ["2s", "2s", "7s"],
    "SET SESSION lock_timeout = 0": ["0", "0", "7s"],
    "SELECT set_config('lock_timeout', '33s', false)": ["33s", "33s", "7s"],
    "SELECT 'SET lock_timeout = 1'": ["7s", "7s", "7s"],
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_time_out_of_its_own_is_left_as_it_is(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], choice: str
) -> None:
    project = make_alembic(new_url("postgresql"), {"DB_SMART_DDL_LOCK_TIMEOUT": 7})
    see = "op.execute(\"CREATE TABLE seen_{0} AS SELECT current_setting('lock_timeout') AS setting\")"
    project.revision("a1", None, f"op.execute({choice!r})\n{see.format(1)}")
    project.revision("b2", "a1", see.format(2))
    project.revision("c3", "b2", f'op.execute("RESET lock_timeout")\n{see.format(3)}')
    project.boot()
    seen = [setting for n in (1, 2, 3) for (setting,) in project.query(f"SELECT setting FROM seen_{n}")]
    assert [one.replace("7000ms", "7s") for one in seen] == CHOICES[choice]


@pytest.mark.parametrize("in_time", [False, True])
def test_a_longer_time_out_of_its_own_waits_longer(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], in_time: bool
) -> None:
    project = make_alembic(new_url("postgresql"), {"DB_SMART_DDL_LOCK_TIMEOUT": 0.3, "DB_SMART_DDL_RETRIES": 0})
    project.revision("a1", None, THINGS)
    project.boot()
    column = 'op.add_column("things", sa.Column("name", sa.String(20)))'
    seconds = "30s" if in_time else "200ms"
    project.revision("b2", "a1", f"op.execute(\"SET LOCAL lock_timeout = '{seconds}'\")\n{column}")
    failing = nullcontext() if in_time else pytest.raises(MigrationFailed, match="in its way")
    with in_transaction(project, "SELECT * FROM things", 2), failing:
        assert project.boot().applied == ("b2",)


def test_a_time_out_of_its_own_in_an_autocommit_block(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    project = make_alembic(new_url("postgresql"), {"DB_SMART_DDL_LOCK_TIMEOUT": 7})
    see = "op.execute(\"CREATE TABLE seen_{0} AS SELECT current_setting('lock_timeout') AS setting\")"
    project.revision(
        "a1",
        None,
        f"""
        with op.get_context().autocommit_block():
            {see.format(1)}
            op.execute("SET lock_timeout = '33s'")
            {see.format(2)}
            op.execute("SET lock_timeout TO DEFAULT")
            {see.format(3)}
        """,
    )
    project.boot()
    seen = [setting for n in (1, 2, 3) for (setting,) in project.query(f"SELECT setting FROM seen_{n}")]
    assert seen == ["7s", "33s", "7s"]


@pytest.mark.parametrize("dialect", SERVERS)
def test_what_failed_goes_on_from_its_last_commit(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_alembic(new_url(dialect))
    project.revision("a1", None, THINGS)
    project.boot()
    project.revision(
        "b2",
        "a1",
        """
        op.execute("UPDATE things SET n = n + 1")
        postgresql = op.get_bind().dialect.name == "postgresql"
        with op.get_context().autocommit_block():
            op.execute("CREATE UNIQUE INDEX " + "CONCURRENTLY IF NOT EXISTS " * postgresql + "ux ON things (n)")
        op.execute("UPDATE things SET n = n + 10")
        """,
    )
    with pytest.raises(MigrationFailed, match=r"(?i)duplicate.*\n.*\n.*\nWhat it had committed is kept") as failed:
        project.boot()
    assert "the next run goes on after what is kept, so leave that part of the file as it is" in str(failed.value)
    project.query("UPDATE things SET n = 5 WHERE id = 2")
    assert project.boot().applied == ("b2",)
    assert project.query("SELECT id, n FROM things ORDER BY id") == [(1, 11), (2, 15)]
    assert project.schema()["things"]["indexes"]
    if dialect == "postgresql":
        assert project.query("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
    assert project.query("SELECT * FROM db_smart_progress") == []


def test_a_refused_schema_change_that_is_mended_by_hand_is_made(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    """What was written before it does not count as begun: another change of the table is not taken for it."""
    project = make_alembic(new_url("mariadb"))
    project.revision("a1", None, THINGS)
    project.boot()
    project.revision("b2", "a1", 'op.create_check_constraint("ck", "things", "n > 0")')
    with pytest.raises(MigrationFailed):
        project.boot()
    project.query("ALTER TABLE things ADD COLUMN more INTEGER")
    project.query("UPDATE things SET n = 1")
    project.boot()
    with sa.create_engine(project.url, poolclass=sa.pool.NullPool).connect() as connection:
        (check,) = sa.inspect(connection).get_check_constraints("things")
    assert check["name"] == "ck"


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE things ADD INDEX (n)",
        "RENAME TABLE things TO other, spare TO things, other TO spare",
        "CREATE TABLE slow AS SELECT id, SLEEP(2) AS slept FROM things",
    ],
    ids=["unnamed", "swap", "goes on"],
)
def test_a_server_that_is_still_busy_with_a_killed_client_is_waited_for(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], change: str
) -> None:
    """A schema change that would not fail the second time is made once."""
    project = make_alembic(new_url("mariadb"), {"DB_SMART_DDL_LOCK_TIMEOUT": 20})
    spare = 'op.create_table("spare", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))'
    project.revision("a1", None, f"{THINGS}\n{spare}")
    project.boot()
    project.revision("b2", "a1", f'op.execute("UPDATE things SET n = n + 1")\nop.execute("{change}")')
    with in_transaction(project, "SELECT * FROM things", 3):
        child = forked(boot, project)
        running = "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE '{}%'"
        while project.query(running.format(change)) != [(1,)]:
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        project.boot()
    tables = project.schema()
    counted = "spare" if "RENAME" in change else "things"
    assert project.query(f"SELECT n FROM {counted}") == [(1,), (1,)]
    assert len(tables[counted]["indexes"]) == ("INDEX" in change)


def test_what_alembic_has_finished_leaves_no_steps(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    project = make_alembic(new_url("mariadb"))
    project.revision("a1", None, THINGS)
    project.boot()
    project.revision(
        "b2",
        "a1",
        'op.execute("UPDATE things SET n = n + 1")\nop.add_column("things", sa.Column("a", sa.Integer))\n'
        'op.execute("broken")',
        downgrade='op.drop_column("things", "a")',
    )
    with pytest.raises(MigrationFailed):
        project.boot()
    assert project.query("SELECT DISTINCT migration FROM db_smart_progress") == [("b2",)]
    project.query("UPDATE alembic_version SET version_num = 'b2'")
    project.revision("c3", "b2", "pass")
    project.boot()
    assert project.query("SELECT * FROM db_smart_progress") == []


def test_what_another_tool_has_stamped_leaves_no_steps(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    """Nothing is pending then; and after a downgrade the revision runs as a whole."""
    project = make_alembic(new_url("mariadb"))
    project.revision("a1", None, THINGS)
    project.boot()
    update = 'op.execute("UPDATE things SET n = n + 1")'
    column = 'op.add_column("things", sa.Column("a", sa.Integer))'
    project.revision("b2", "a1", f'{update}\n{column}\nop.execute("broken")')
    with pytest.raises(MigrationFailed):
        project.boot()
    before = project.query("SELECT id, n FROM things ORDER BY id")
    project.query("UPDATE alembic_version SET version_num = 'b2'")
    project.flag.unlink(missing_ok=True)
    assert project.boot().decision == "verified"
    assert project.query("SELECT * FROM db_smart_progress") == []
    project.query("ALTER TABLE things DROP COLUMN a")
    project.query("UPDATE alembic_version SET version_num = 'a1'")
    project.flag.unlink()
    project.revision("b2", "a1", f"{update}\n{column}")
    assert project.boot().applied == ("b2",)
    assert project.query("SELECT id, n FROM things ORDER BY id") == [(id_, n + 1) for id_, n in before]
    assert "a" in project.columns("things")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_read_before_a_schema_change_is_there_after_it(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    """Also more than one row of the journal holds, also in a run that fails between the two."""
    project = make_alembic(new_url(dialect))
    project.revision(
        "a1",
        None,
        """
        bind = op.get_bind()
        table = op.create_table(
            "notes", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("text", sa.Text)
        )
        op.bulk_insert(table, [{"id": n, "text": "ä%d " % n + "x" * 50} for n in range(3000)])
        """,
    )
    project.boot()
    body = """
        bind = op.get_bind()
        found = bind.execute(sa.text("SELECT id, text FROM notes ORDER BY id")).all()
        with op.batch_alter_table("notes") as batch:
            batch.drop_column("text")
            batch.add_column(sa.Column("length", sa.Integer))
        {}
        for id_, text in found[::100]:
            bind.execute(sa.text("UPDATE notes SET length = :n WHERE id = :id"), dict(n=len(text), id=id_))
    """
    project.revision("b2", "a1", body.format('op.execute("broken")'))
    with pytest.raises(MigrationFailed):
        project.boot()
    project.revision("b2", "a1", body.format("pass"))
    project.boot()
    lengths = "SELECT id, length FROM notes WHERE length IS NOT NULL ORDER BY id"
    assert project.query(lengths) == [(n, len(f"ä{n} ") + 50) for n in range(0, 3000, 100)]
    assert project.query("SELECT * FROM db_smart_progress") == []


def test_after_a_refused_schema_change_rows_are_read_again(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    project = make_alembic(new_url("mariadb"))
    project.revision("a1", None, THINGS)
    project.boot()
    project.revision(
        "b2",
        "a1",
        """
        found = op.get_bind().execute(sa.text("SELECT id, n FROM things")).all()
        op.create_unique_constraint("uq", "things", ["n"])
        for id_, n in found:
            op.execute(sa.text("UPDATE things SET n = :n WHERE id = :id").bindparams(n=n + 100, id=id_))
        """,
    )
    with pytest.raises(MigrationFailed):
        project.boot()
    project.query("UPDATE things SET n = 5 WHERE id = 2")
    project.boot()
    assert project.query("SELECT id, n FROM things ORDER BY id") == [(1, 100), (2, 105)]


def test_a_referred_column_of_mariadb_says_what_to_do(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    """The server changes it only without the foreign key, also for a plain ``flask db upgrade``."""
    project = make_alembic(new_url("mariadb"))
    child = 'op.create_table("notes", sa.Column("thing_id", sa.Integer, sa.ForeignKey("things.id", name="fk_thing")))'
    project.revision("a1", None, f"{THINGS}\n{child}")
    project.boot()
    wide = "existing_type=sa.Integer(), type_=sa.BigInteger()"
    ends = [f'op.alter_column("things", "id", {wide})', f'op.alter_column("notes", "thing_id", {wide})']
    project.revision("b2", "a1", "\n".join(ends))
    with pytest.raises(MigrationFailed, match="drop the foreign key, change both columns, .* Change the revision"):
        project.boot()
    key = 'op.create_foreign_key("fk_thing", "notes", "things", ["thing_id"], ["id"])'
    project.revision("b2", "a1", "\n".join(['op.drop_constraint("fk_thing", "notes", type_="foreignkey")', *ends, key]))
    project.boot()
    assert project.heads() == {"b2"}
