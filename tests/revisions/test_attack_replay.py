"""Statements that a journal can take for something else: a killed run and one more give what one run gives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import flask_migrate  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import URL

from aurum_harmony.db_smart.session.environment import logging_kept
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked

TABLES = """
op.create_table(
    "things", sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer),
    sa.Column("old", sa.String(40)),
)
op.create_table("kids", sa.Column("id", sa.Integer, primary_key=True), sa.Column("p", sa.Integer))
op.execute("INSERT INTO things (n, old) VALUES (1, 'a')")
op.execute("INSERT INTO things (n, old) VALUES (2, 'b')")
"""
#: A commit in the middle, and then the end of the first run.
KILLED = """
import os, signal
if op.get_bind().dialect.name == "postgresql":
    with op.get_context().autocommit_block():
        op.execute("CREATE TABLE between_two (id integer)")
elif op.get_bind().dialect.name == "mysql":
    op.execute("CREATE TABLE between_two (id integer)")
if "DIES" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
"""
MARIADB = {
    "last identifier": f"""
op.execute("INSERT INTO things (n) VALUES (3)")
{KILLED}
op.execute("INSERT INTO kids (p) VALUES (LAST_INSERT_ID())")
""",
    "variable": f"""
op.execute("SET @before = (SELECT count(*) FROM things)")
op.execute("SELECT old INTO @old FROM things WHERE id = 2")
op.execute("DELETE FROM things WHERE id = 1")
op.drop_column("things", "old")
{KILLED}
op.execute("INSERT INTO kids (p) VALUES (@before)")
op.execute("INSERT INTO kids (p) VALUES (ASCII(@old))")
""",
    "locked tables": f"""
op.execute("LOCK TABLES things WRITE, kids AS k READ;")
op.execute("INSERT INTO things (n) VALUES (3)")
op.execute("UNLOCK TABLES")
{KILLED}
op.execute("UPDATE things SET n = n + 1")
""",
    "versions in comments": f"""
bind = op.get_bind()
bind.exec_driver_sql(
    "INSERT INTO kids (p) VALUES (1); /*!50001 CREATE TABLE hinted (id integer) */; UPDATE kids SET p = 2"
)
bind.exec_driver_sql("/*!50001 CREATE TABLE other (id integer) */")
{KILLED}
op.execute("UPDATE things SET n = n + 1")
""",
    "read with a comment": f"""
rows = op.get_bind().exec_driver_sql("/* long */ SELECT repeat('x', 20000) FROM things").all()
{KILLED}
op.execute("INSERT INTO kids (p) VALUES (%d)" % len(rows))
""",
    "procedure": f"""
op.execute(
    "CREATE PROCEDURE adds(x INT) BEGIN INSERT INTO things (n) VALUES (x); INSERT INTO things (n) VALUES (6); END"
)
op.get_bind().connection.cursor().callproc("adds", (5,))
{KILLED}
op.execute("DROP PROCEDURE adds")
""",
    "streamed": f"""
bind = op.get_bind()
rows = bind.execute(sa.text("SELECT id, old FROM things"), execution_options={{"stream_results": True}})
rows = list(rows)
op.drop_column("things", "old")
{KILLED}
op.execute("INSERT INTO kids (p) VALUES (%d)" % len(rows))
""",
}
POSTGRESQL = {
    "old copy": f"""
import io
op.get_bind().connection.cursor().copy_from(io.StringIO("5"), "things", columns=("n",))
op.get_bind().connection.cursor().copy_expert("COPY things (n) FROM STDIN", io.StringIO("6"))
{KILLED}
op.execute("UPDATE things SET n = n + 1")
""",
    "select into": f"""
op.execute("SELECT id, n INTO copy_of FROM things")
{KILLED}
op.execute("UPDATE copy_of SET n = n + 1")
""",
    "copy": f"""
with op.get_bind().connection.cursor().copy("COPY things (n) FROM STDIN") as copy:
    copy.write_row((5,))
{KILLED}
op.execute("UPDATE things SET n = n + 1")
""",
}
SQLITE = {
    "script of the connection": f"""
op.execute("INSERT INTO things (n) VALUES (3)")
op.get_bind().connection.executescript(
    "CREATE TABLE log (n); -- a; comment\\nCREATE TRIGGER t AFTER INSERT ON kids BEGIN INSERT INTO log VALUES (1); "
    "INSERT INTO log VALUES (';'); END; INSERT INTO kids (p) VALUES (1)"
)
{KILLED}
op.execute("UPDATE things SET n = n + 1")
""",
    "script of a cursor": f"""
op.execute("INSERT INTO things (n) VALUES (3)")
op.get_bind().connection.cursor().executescript("CREATE TABLE s (id integer); INSERT INTO things (n) VALUES (7);")
{KILLED}
op.execute("UPDATE things SET n = n + 1")
""",
}
CASES = {("mariadb", name): body for name, body in MARIADB.items()}
CASES |= {("postgresql", name): body for name, body in POSTGRESQL.items()}
CASES |= {("sqlite", name): body for name, body in SQLITE.items()}


#: As many have it: what is new in each run stands within the SQL.
ANEW = f"""
import datetime, time, uuid
from werkzeug.security import generate_password_hash
def insert(n, value):
    op.get_bind().exec_driver_sql(f"INSERT INTO things (n, made) VALUES ({{n}}, '{{value}}')")
def inserts():
    insert(3, uuid.uuid4())
    insert(3, uuid.uuid4())
    insert(4, uuid.uuid4().hex)
    insert(5, datetime.datetime.now())
    insert(6, datetime.datetime.now(datetime.timezone.utc).isoformat())
    insert(7, time.time())
    insert(8, generate_password_hash("secret"))
    insert(8, "admin")
inserts()
{KILLED}
inserts()
"""


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_values_that_are_new_in_each_run(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str
) -> None:
    project = make_alembic(new_url(dialect))
    project.revision("a1", None, TABLES + 'op.add_column("things", sa.Column("made", sa.String(250)))')
    project.boot()
    project.revision("b2", "a1", ANEW)
    assert ended(forked(lambda: boot(project, dies=True))) == -signal.SIGKILL
    project.boot()
    found = [row[0] for row in project.query("SELECT n FROM things ORDER BY n")]
    assert found == [1, 2, *sorted(2 * [3, 3, 4, 5, 6, 7, 8, 8])]
    assert project.query("SELECT * FROM db_smart_progress") == []


def boot(project: AlembicProject, *, dies: bool) -> None:
    if dies:
        os.environ["DIES"] = "1"
    app, smart = project.app(DB_SMART_LEASE_SECONDS=0.2)
    smart.boot(app)


@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_killed_and_booted_again(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], dialect: str, name: str
) -> None:
    def found(project: AlembicProject) -> Any:
        return {key: value for key, value in project.schema().items() if key != "alembic_version"}

    def url() -> URL:
        made = new_url(dialect)
        return made.set(drivername="postgresql+psycopg2") if name == "old copy" else made

    killed = make_alembic(url())
    killed.revision("a1", None, TABLES)
    killed.boot()
    killed.revision("b2", "a1", CASES[dialect, name])
    assert ended(forked(lambda: boot(killed, dies=True))) == -signal.SIGKILL
    killed.boot()
    whole = killed.at(url())
    whole.boot()
    assert found(killed) == found(whole)
    assert "kids" in found(killed)
    assert killed.query("SELECT * FROM db_smart_progress") == []


def downgrade(project: AlembicProject, target: str) -> None:
    """As ``flask db downgrade`` of a release without db-smart."""
    app, _ = project.app(DB_SMART_BOOT="off")
    with app.app_context(), logging_kept():
        flask_migrate.downgrade(revision=target)
    project.dispose(app)


def test_a_downgrade_below_a_revision_that_was_killed(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL]
) -> None:
    project = make_alembic(new_url("mariadb"))
    project.revision("a1", None, 'op.create_table("first", sa.Column("id", sa.Integer, primary_key=True))')
    table = 'op.create_table("things", sa.Column("id", sa.Integer, primary_key=True))'
    project.revision("b2", "a1", table, downgrade='op.drop_table("things")')
    project.boot()
    column = 'op.add_column("things", sa.Column("{}", sa.Integer))'
    project.revision("c3", "b2", f"{column.format('x')}\n{KILLED}\n{column.format('y')}")
    assert ended(forked(lambda: boot(project, dies=True))) == -signal.SIGKILL
    downgrade(project, "a1")
    project.query("DROP TABLE IF EXISTS between_two")
    assert project.boot().applied == ("b2", "c3")
    assert project.columns("things") == {"id", "x", "y"}


@pytest.mark.parametrize("again", ["c3", "b2"])
def test_a_revision_that_was_killed_and_then_applied_and_taken_back_by_another_tool(
    make_alembic: Callable[..., AlembicProject], new_url: Callable[[str], URL], again: str
) -> None:
    project = make_alembic(new_url("mariadb"))
    table = 'op.create_table("things", sa.Column("id", sa.Integer, primary_key=True))'
    project.revision("b2", None, table, downgrade='op.drop_table("things")')
    project.boot()
    column = 'op.add_column("things", sa.Column("{}", sa.Integer))'
    back = 'op.drop_column("things", "x")\nop.drop_column("things", "y")'
    project.revision("c3", "b2", f"{column.format('x')}\n{KILLED}\n{column.format('y')}", downgrade=back)
    assert ended(forked(lambda: boot(project, dies=True))) == -signal.SIGKILL
    project.query("ALTER TABLE things DROP COLUMN x")
    project.query("DROP TABLE between_two")
    result = project.flask_db("upgrade", "-d", str(project.alembic))
    assert result.exit_code == 0, result.output
    target = "b2" if again == "c3" else "base"
    result = project.flask_db("downgrade", "-d", str(project.alembic), target)
    assert result.exit_code == 0, result.output
    project.query("DROP TABLE IF EXISTS between_two")
    project.boot()
    assert project.columns("things") == {"id", "x", "y"}
