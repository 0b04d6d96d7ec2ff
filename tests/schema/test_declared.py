"""view(), function() and trigger(): made from their text, made anew when that is edited, and otherwise left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from aurum_harmony.db_smart import DbSmartError, Operations
from aurum_harmony.db_smart.store.database import Database
from tests.harness import servers
from tests.harness.clients import run_client
from tests.harness.databases import execute
from tests.harness.direct import operations, statements
from tests.harness.project import Project

BEGIN = """
@migration
def begin(op):
    op.create_table("t", Column("id", Integer, primary_key=True), Column("n", Integer), Column("name", String(20)))
    op.execute("INSERT INTO t (id, n, name) VALUES (1, 1, 'a'), (2, 2, 'b')")
"""
VIEW = """
@migration
def views(op):
    op.view("big", "SELECT id, n FROM t WHERE n > 1;")
"""
FUNCTION = {
    "postgresql": """CREATE OR REPLACE FUNCTION twice(n integer) RETURNS integer LANGUAGE plpgsql AS $$
        BEGIN RETURN n * 2; END $$;""",
    "mysql": "CREATE FUNCTION twice(n integer) RETURNS integer DETERMINISTIC BEGIN RETURN n * 2; END",
}
TRIGGER = {
    "sqlite": "CREATE TRIGGER stamp AFTER INSERT ON t BEGIN UPDATE t SET n = 7 WHERE id = new.id; END;",
    "postgresql": "create trigger stamp BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION stamped()",
    "mysql": "CREATE TRIGGER stamp BEFORE INSERT ON t FOR EACH ROW BEGIN SET new.n = 7; SET new.name = '50%'; END",
}
STAMPED = """CREATE FUNCTION stamped() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN new.n := 7; new.name := '50%'; RETURN new; END $$"""


@pytest.fixture
def project(url: URL, make_project: Callable[..., Project]) -> Project:
    made = make_project(url, {"DB_SMART_SNAPSHOTS": 0})
    made.write(BEGIN)
    made.boot()
    return made


def has_view(project: Project, name: str) -> bool:
    with sa.create_engine(project.url, poolclass=sa.pool.NullPool).connect() as connection:
        return name in sa.inspect(connection).get_view_names()


def foretold(project: Project) -> Any:
    (shown,) = json.loads(project.run("migrate", "--dry-run", "--json").stdout)["pending"]
    assert (shown["error"], shown["unknown"]) == (None, None)
    return shown


def test_a_view_is_made_anew_when_its_text_is_edited(project: Project) -> None:
    project.write(BEGIN + VIEW)
    assert foretold(project)["does"] == ["view('big')"]
    project.boot()
    assert project.query("SELECT id FROM big") == [(2,)]
    edited = VIEW.replace("n > 1", "n > 0")
    project.write(BEGIN + edited)
    assert foretold(project)["does"] == ["view('big')"]
    project.boot()
    assert project.query("SELECT id FROM big ORDER BY id") == [(1,), (2,)]
    project.write(BEGIN + edited + "    op.has_table('t')\n")
    shown = foretold(project)
    assert (shown["does"], shown["satisfied"]) == ([], ["view('big')"])
    project.boot()
    # Other columns, for which PostgreSQL cannot replace it.
    project.write(BEGIN + VIEW.replace("id, n", "name, id"))
    project.boot()
    assert project.query("SELECT name FROM big") == [("b",)]
    project.write(BEGIN + VIEW.replace("id, n", "name, id") + "@migration\ndef no_view(op):\n    op.drop_view('big')\n")
    assert foretold(project)["does"] == ["drop_view('big')"]
    project.boot()
    assert not has_view(project, "big")
    # The older migration, edited, leaves it as the later one left it.
    project.write(BEGIN + VIEW + "@migration\ndef no_view(op):\n    op.drop_view('big')\n")
    project.boot()
    assert not has_view(project, "big")


def test_functions_and_triggers(project: Project) -> None:
    kind = project.dialect
    lines = []
    if kind == "postgresql":
        lines.append(f"op.function('stamped', {STAMPED!r})")
    if kind in FUNCTION:
        lines.append(f"op.function('twice', {FUNCTION[kind]!r})")
    lines.append(f"op.trigger('stamp', {TRIGGER[kind]!r}, table='t')")
    source = "@migration\ndef declared(op):\n" + "".join(f"    {line}\n" for line in lines)
    project.write(BEGIN + source)
    assert len(foretold(project)["does"]) == len(lines)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.boot().applied == ()
    project.query("INSERT INTO t (id, n) VALUES (3, 0)")
    assert project.query("SELECT n, name FROM t WHERE id = 3") == [(7, None if kind == "sqlite" else "50%")]
    edited = source.replace("7", "8").replace("n * 2", "n * 2 + 0")
    project.write(BEGIN + edited)
    assert project.boot().applied
    project.query("INSERT INTO t (id, n) VALUES (4, 0)")
    assert project.query("SELECT n FROM t WHERE id = 4") == [(8,)]
    if kind in FUNCTION:
        assert project.query("SELECT twice(4)") == [(8,)]
    project.write(BEGIN + edited + "    op.has_table('t')\n")
    assert foretold(project)["does"] == []
    project.boot()
    drop = "@migration\ndef dropped(op):\n    op.drop_trigger('stamp', 't')\n    op.drop_function('twice')\n"
    project.write(BEGIN + edited + drop + "    op.drop_trigger('stamp', 't')\n")
    shown = foretold(project)
    assert len(shown["does"]) == (1 if kind == "sqlite" else 2)
    project.boot()
    project.query("INSERT INTO t (id, n) VALUES (5, 0)")
    assert project.query("SELECT n FROM t WHERE id = 5") == [(0,)]


def test_a_script_of_views_is_the_same(project: Project) -> None:
    source = VIEW + "    op.view('small', select(table('t', column('id'), column('name')).c.id).limit(1))\n"
    source += (
        "    op.view('big', 'SELECT id FROM t')\n    op.view('gone', 'SELECT 1 AS one')\n    op.drop_view('gone')\n"
    )
    project.write(BEGIN + (source if project.dialect != "postgresql" else source.replace("id, n", "id")))
    assert len(foretold(project)["does"]) == 5
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.boot().applied == ()
    assert project.query("SELECT count(*) FROM big") == [(2,)]
    assert project.query("SELECT count(*) FROM small") == [(1,)]
    assert not has_view(project, "gone")


def test_what_needs_a_view_is_named(new_url: Callable[[str], URL], make_project: Callable[..., Project]) -> None:
    project = make_project(new_url("postgresql"), {"DB_SMART_SNAPSHOTS": 0})
    more = "    op.view('of_it', 'SELECT id FROM big')\n"
    project.write(BEGIN + VIEW + more)
    project.boot()
    project.write(BEGIN + VIEW.replace("id, n", "n, id") + more)
    with pytest.raises(DbSmartError, match=r"would take these along: view of_it\. Nothing was changed"):
        project.boot()
    assert project.query("SELECT id, n FROM big") == [(2, 2)]
    project.query("DROP VIEW of_it")
    project.query("GRANT SELECT ON big TO PUBLIC")
    with pytest.raises(DbSmartError, match="rights granted on it"):
        project.boot()


def test_a_view_of_sqlite_keeps_its_triggers(sqlite_url: URL, make_project: Callable[..., Project]) -> None:
    project = make_project(sqlite_url, {"DB_SMART_SNAPSHOTS": 0})
    trigger = "CREATE TRIGGER put INSTEAD OF INSERT ON big BEGIN INSERT INTO t (id, n) VALUES (new.id, new.n); END"
    project.write(BEGIN + VIEW + f"    op.trigger('put', {trigger!r}, table='big')\n")
    project.boot()
    project.write(BEGIN + VIEW.replace("n > 1", "n > 0") + f"    op.trigger('put', {trigger!r}, table='big')\n")
    project.boot()
    project.query("INSERT INTO big (id, n) VALUES (9, 9)")
    assert project.query("SELECT n FROM t WHERE id = 9") == [(9,)]


def test_what_is_no_such_text_is_said(project: Project) -> None:
    for line, message in (
        ("op.trigger('stamp', 'BEGIN; END', table='t')", "does not begin as CREATE TRIGGER stamp"),
        ("op.function('other', 'CREATE FUNCTION twice() RETURNS int')", "does not begin as CREATE FUNCTION other"),
        ("op.view('t', 'SELECT 1')", "there is a table of that name"),
    ):
        project.write(BEGIN + f"@migration\ndef wrong(op):\n    {line}\n")
        with pytest.raises(DbSmartError, match=message):
            project.boot()
    if project.dialect == "sqlite":
        project.write(BEGIN + "@migration\ndef wrong(op):\n    op.function('f', 'CREATE FUNCTION f() RETURNS int')\n")
        with pytest.raises(DbSmartError, match="SQLite has no functions"):
            project.boot()


def test_a_script_ends_each_statement_behind_its_comment(project: Project) -> None:
    kind = project.dialect
    trigger = {
        "sqlite": "CREATE TRIGGER odd AFTER INSERT ON t BEGIN UPDATE t SET name = 'x://;:a%' WHERE id = 3; END -- end",
        "mysql": "CREATE TRIGGER odd BEFORE INSERT ON t FOR EACH ROW BEGIN SET new.name = 'x://;:a%'; END -- end",
    }.get(kind, TRIGGER[kind].replace("stamp ", "odd ") + " -- end")
    lines = [f"op.function('stamped', {STAMPED.replace('50%', 'x://;:a%')!r})"] if kind == "postgresql" else []
    lines += ["op.view('big', 'SELECT id, n FROM t WHERE n > 1 -- big')", f"op.trigger('odd', {trigger!r}, table='t')"]
    lines += ["op.execute('UPDATE t SET n = 5 WHERE id = 1 -- the first')", "op.view('big', 'SELECT id FROM t')"]
    lines += ["op.execute('INSERT INTO t (id, n) VALUES (3, 3)')"]
    if kind == "postgresql":
        lines[-2] = "op.view('big', 'SELECT id, n FROM t')"
    project.write(BEGIN + "@migration\ndef odd(op):\n" + "".join(f"    {line}\n" for line in lines))
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.boot().applied == ()
    assert project.query("SELECT n FROM t WHERE id = 1") == [(5,)]
    assert project.query("SELECT name FROM t WHERE id = 3") == [("x://;:a%",)]
    assert project.query("SELECT count(*) FROM big") == [(3,)]


def server(url: URL, *made: str) -> Database:
    database = Database("default", None, sa.create_engine(url, poolclass=sa.pool.NullPool))
    for statement in made:
        ask(database, statement)
    return database


def ask(database: Database, sql: str) -> Any:
    with database.engine.begin() as connection:
        result = connection.exec_driver_sql(sql)
        return result.all() if result.returns_rows else None


def done(database: Database, action: Callable[[Operations], None]) -> list[str]:
    def run() -> None:
        with operations(database) as op:
            action(op)

    return statements(database, run)


F = "CREATE FUNCTION f(a {}) RETURNS {} LANGUAGE sql AS 'SELECT 1'"


def test_one_of_several_functions_of_a_name(new_url: Callable[[str], URL]) -> None:
    database = server(new_url("postgresql"), F.format("integer", "integer"), F.format("text", "integer"))
    changed = F.format("integer", "numeric")
    with pytest.raises(DbSmartError, match=r"several of that name: f\(integer\), f\(text\)\. Nothing was changed"):
        done(database, lambda op: op.function("f", changed))
    with pytest.raises(DbSmartError, match=r"several functions of that name: .* Nothing was dropped"):
        done(database, lambda op: op.drop_function("f"))
    assert done(database, lambda op: op.drop_function("f", "integer")) == ["DROP FUNCTION f(integer)"]
    assert done(database, lambda op: op.drop_function("f", "integer")) == []
    assert done(database, lambda op: op.drop_function("f", "no_such_type")) == []
    assert ask(database, "SELECT f('x')") == [(1,)]


def test_both_of_several_functions_are_dropped_by_a_script(
    new_url: Callable[[str], URL], make_project: Callable[..., Project]
) -> None:
    project = make_project(new_url("postgresql"), {"DB_SMART_SNAPSHOTS": 0})
    project.write(BEGIN)
    project.boot()
    for kind in ("integer", "text"):
        project.query(F.format(kind, "integer"))
    drops = "".join(f"    op.drop_function('f', {kind!r})\n" for kind in ("integer", "text", "integer"))
    project.write(f"{BEGIN}@migration\ndef gone(op):\n{drops}")
    shown = foretold(project)
    assert (len(shown["does"]), len(shown["satisfied"])) == (2, 1)
    run_client(project.url, project.run("migrate", "--sql").stdout)
    assert project.query("SELECT count(*) FROM pg_proc WHERE proname = 'f'") == [(0,)]


@pytest.mark.parametrize("url", ["sqlite", "mariadb"], indirect=True)
def test_only_postgresql_has_functions_by_their_arguments(url: URL) -> None:
    with pytest.raises(DbSmartError, match="only PostgreSQL has several functions of a name"):
        done(server(url), lambda op: op.drop_function("f", "integer"))


def test_the_trigger_of_another_table_stays(url: URL) -> None:
    """On SQLite and MariaDB a name is there once, on PostgreSQL once for each table."""
    database = server(url, *(f"CREATE TABLE {name} (id integer, n integer, name varchar(20))" for name in ("t", "u")))
    trigger = TRIGGER[database.dialect]
    if database.dialect == "postgresql":
        ask(database, STAMPED.replace("%", "%%"))
    done(database, lambda op: op.trigger("stamp", trigger, table="t"))
    other = trigger.replace(" ON t ", " ON u ").replace("UPDATE t ", "UPDATE u ")
    if database.dialect == "postgresql":
        done(database, lambda op: op.trigger("stamp", other, table="u"))
    else:
        with pytest.raises(DbSmartError, match="another table than 'u' has a trigger of that name"):
            done(database, lambda op: op.trigger("stamp", other, table="u"))
    done(database, lambda op: op.drop_trigger("stamp", "u"))
    ask(database, "INSERT INTO t (id, n) VALUES (1, 0)")
    assert ask(database, "SELECT n FROM t") == [(7,)]


@pytest.mark.parametrize("kind", ["function", "trigger"])
def test_a_statement_that_makes_another_is_not_taken(url: URL, kind: str) -> None:
    database = server(url, "CREATE TABLE t (id integer, n integer, name varchar(20))")
    if kind == "function" and database.dialect == "sqlite":
        return
    text = TRIGGER[database.dialect] if kind == "trigger" else FUNCTION[database.dialect]
    name = "stamp" if kind == "trigger" else "twice"
    more: dict[str, Any] = {"table": "t"} if kind == "trigger" else {}
    # The name is somewhere in the text, but not the one that is given.
    for wrong in (text.replace(name, f"{name}_2", 1), text.replace(name, f"x_{name}", 1)):
        with pytest.raises(DbSmartError, match="Nothing was changed"), operations(database) as op:
            getattr(op, kind)(name, f"{wrong} -- {name}", **more)
    if kind == "function" and database.dialect == "postgresql":
        ask(database, "CREATE SCHEMA app")
        with pytest.raises(DbSmartError, match="another function than 'twice' in the schema 'app'.* It was taken back"):
            done(database, lambda op: op.function(name, text, schema="app"))
        assert ask(database, "SELECT count(*) FROM pg_proc WHERE proname = 'twice'") == [(0,)]
    if kind == "trigger" and database.dialect == "postgresql":
        ask(database, STAMPED.replace("%", "%%"))
    # A comment before it, and a name that is quoted, are no other.
    quoted = {"mysql": "`{}`"}.get(database.dialect, '"{}"').format(name)
    given = f"-- the {kind} 'other'\n/* of\nmine */ {text.replace(name, quoted, 1)}"
    assert len(done(database, lambda op: getattr(op, kind)(name, given, **more))) == 1


def test_what_a_view_has_beside_its_query_stays(new_url: Callable[[str], URL]) -> None:
    database = server(
        new_url("postgresql"), "CREATE TABLE t (id integer, n integer)", "CREATE VIEW v AS SELECT id, n FROM t"
    )
    ask(database, "ALTER VIEW v SET (security_invoker = true, security_barrier = true)")
    options = "SELECT reloptions FROM pg_class WHERE relname = 'v'"
    before = ask(database, options)
    done(database, lambda op: op.view("v", "SELECT id, n FROM t WHERE n > 1"))
    assert ask(database, options) == before
    done(database, lambda op: op.view("v", "SELECT n FROM t"))
    assert ask(database, options) == before
    ask(database, "COMMENT ON COLUMN v.n IS 'mine'")
    with pytest.raises(DbSmartError, match="would take these along: its comment"):
        done(database, lambda op: op.view("v", "SELECT id FROM t"))
    ask(database, "CREATE VIEW w AS SELECT n FROM v")
    with pytest.raises(DbSmartError, match=r"op\.drop_view\('v'\): others need it: .*view w\. Nothing was dropped"):
        done(database, lambda op: op.drop_view("v"))


def test_a_view_keeps_whose_rights_it_has(new_url: Callable[[str], URL]) -> None:
    database = server(new_url("mariadb"), "CREATE TABLE t (id integer, n integer)")
    ask(database, "CREATE SQL SECURITY INVOKER VIEW v AS SELECT id, n FROM t WHERE n > 0 WITH LOCAL CHECK OPTION")
    done(database, lambda op: op.view("v", "SELECT id FROM t WHERE n > 1 -- one"))
    kept = "SELECT SECURITY_TYPE, CHECK_OPTION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = DATABASE()"
    assert ask(database, kept) == [("INVOKER", "LOCAL")]


def test_a_view_that_others_need_is_not_dropped(url: URL) -> None:
    """SQLite and MariaDB would drop it, and each query of the others would fail from then on."""
    database = server(url, "CREATE TABLE t (id integer, n integer, big integer)", "CREATE VIEW big AS SELECT id FROM t")
    odd = "`of it's 100%`" if database.dialect == "mysql" else '"of it\'s 100%"'
    execute(database, f"CREATE VIEW {odd} AS SELECT b.id FROM t CROSS JOIN big AS b")
    ask(database, "CREATE VIEW alike AS SELECT big, 'from big' AS b FROM t")
    execute(database, f"CREATE VIEW upon AS SELECT id FROM {odd}")
    with pytest.raises(DbSmartError, match=r"drop_view\('big'\): others need it: view .*of it's 100%.*Nothing was dro"):
        done(database, lambda op: op.drop_view("big"))
    assert ask(database, "SELECT count(*) FROM upon") == [(0,)]

    def in_order(op: Operations) -> None:
        for name in ("upon", "of it's 100%", "big"):
            op.drop_view(name)

    done(database, in_order)
    assert done(database, in_order) == []
    assert ask(database, "SELECT count(*) FROM alike") == [(0,)]


def test_a_materialized_view_is_not_passed_over(new_url: Callable[[str], URL]) -> None:
    database = server(new_url("postgresql"), "CREATE MATERIALIZED VIEW m AS SELECT 1 AS id")
    with pytest.raises(DbSmartError, match="is a materialized view, which keeps rows. Nothing was dropped"):
        done(database, lambda op: op.drop_view("m"))
    assert ask(database, "SELECT id FROM m") == [(1,)]


DEFINED = {
    "view": ("VIEWS", "TABLE", "VIEW one AS SELECT id FROM t", "SELECT n FROM t"),
    "function": (
        *("ROUTINES", "ROUTINE", "FUNCTION one() RETURNS integer DETERMINISTIC RETURN 1"),
        "CREATE FUNCTION one() RETURNS integer DETERMINISTIC RETURN 2",
    ),
    "trigger": (
        *("TRIGGERS", "TRIGGER", "TRIGGER one BEFORE INSERT ON t FOR EACH ROW SET new.n = 1"),
        "CREATE TRIGGER one BEFORE INSERT ON t FOR EACH ROW SET new.n = 2",
    ),
}


@pytest.mark.parametrize("kind", DEFINED)
def test_what_is_made_anew_keeps_its_definer(new_url: Callable[[str], URL], kind: str) -> None:
    """It decides by whose rights it runs: another one may take rights away, or give them to everybody."""
    listed, column, before, after = DEFINED[kind]
    url = new_url("mariadb")
    database = server(url, "CREATE TABLE t (id integer, n integer)")
    shown = f"SELECT DEFINER FROM information_schema.{listed} WHERE {column}_SCHEMA = DATABASE()"
    more = {"table": "t"} if kind == "trigger" else {}
    with servers.role(url, "GRANT ALL ON {database}.* TO {user}") as mine:
        own = mine.username
        execute(database, f"CREATE DEFINER=`{own}`@`%%` {before}")
        done(database, lambda op: getattr(op, kind)("one", after, **more))
        assert ask(database, shown) == [(f"{own}@%%",)]
        ask(database, f"DROP {kind} one")
        ask(database, f"CREATE {before}")
        (kept,) = ask(database, shown)
        with pytest.raises(DbSmartError, match=rf"op\.{kind}\('one'\): it has the rights of .* Nothing was changed"):
            done(server(mine), lambda op: getattr(op, kind)("one", after, **more))
        assert ask(database, shown) == [kept]


def test_a_rule_of_a_view_is_not_lost(new_url: Callable[[str], URL]) -> None:
    database = server(
        new_url("postgresql"), "CREATE TABLE t (id integer, n integer)", "CREATE VIEW v AS SELECT id FROM t"
    )
    ask(database, "CREATE RULE put AS ON INSERT TO v DO INSTEAD INSERT INTO t (id) VALUES (new.id)")
    with pytest.raises(DbSmartError, match=r"would take these along: rule put on view v\. Nothing was changed"):
        done(database, lambda op: op.view("v", "SELECT n FROM t"))
    done(database, lambda op: op.view("v", "SELECT id, n FROM t"))
    ask(database, "INSERT INTO v (id) VALUES (3)")
    assert ask(database, "SELECT id, n FROM v") == [(3, None)]
