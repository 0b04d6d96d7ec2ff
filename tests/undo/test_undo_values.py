"""What undo counts and archives: values of every type, whatever hides or resembles them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from tests.harness.project import Project
from tests.undo.samples import BASE, apply, archives, described, refusal

#: By dialect: the columns of a table, with a value of each, as SQL.
COLUMNS = {
    "sqlite": {
        'Column("j", JSON, server_default="{}")': "'[1, 2]'",
        'Column("b", LargeBinary)': "X'00ff'",
        'Column("n", Numeric(20, 5))': "12345.67890",
        'Column("l", Text(collation="NOCASE"), server_default="abc")': "'ABC'",
        'Column("i", Integer, server_default=text("(-1)"))': "'text'",
    },
    "postgresql": {
        'Column("j", JSON, server_default="{}")': "'{\"x\": [1, 2]}'",
        'Column("e", Enum("a", "b", name="mood"), server_default="a")': "'b'",
        'Column("es", ARRAY(Enum("p", "q", name="pq")))': "'{p,q}'",
        'Column("d", postgresql.DOMAIN("positive", Integer, check="VALUE > 0"))': "3",
        'Column("b", LargeBinary)': r"'\x00ff'",
        'Column("a", ARRAY(Integer), server_default="{}")': "'{1,NULL,3}'",
        'Column("r", postgresql.INT4RANGE)': "'[1,5)'",
        'Column("t", postgresql.TSVECTOR)': "'a b'",
        'Column("bit", postgresql.BIT(3), server_default=text("B\'000\'"))': "B'101'",
        'Column("n", Numeric(20, 5))': "12345.67890",
        'Column("w", DateTime(timezone=True))': "'2020-01-01 00:00:00.123456+02'",
    },
    "mysql": {
        'Column("j", JSON)': "'{\"x\": [1, 2]}'",
        'Column("e", Enum("a", "b"), server_default="a")': "'b'",
        'Column("s", mysql.SET("x", "y"), server_default="x")': "'x,y'",
        'Column("b", LargeBinary)': "X'00ff'",
        'Column("bit", mysql.BIT(3), server_default=text("b\'000\'"))': "b'101'",
        'Column("n", Numeric(20, 5))': "12345.67890",
        'Column("w", mysql.TIMESTAMP(fsp=6))': "'2020-01-01 00:00:00.123456'",
        'Column("l", String(20, collation="latin1_german2_ci"))': "'ä'",
    },
}
NAMES = (
    'Column("Quoted Col", String(9), server_default="it\'s")',
    'Column("per%cent", Text)',
    'Column("co:lon", Text)',
)


def sent(project: Project, sql: str) -> list[Any]:
    """Rows of a query as it is, with whatever signs."""
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        result = connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
        return [tuple(row) for row in result] if result.returns_rows else []


def test_archives_hold_what_was_there(project: Project) -> None:
    """Of each type, in a table and in a column, and with names that need quotes."""
    kinds = COLUMNS[project.dialect]
    columns = [*kinds, *NAMES]
    values = [*kinds.values(), "'x'", "'y'", "'z'"]
    names = [one.split('"')[1] for one in columns]
    quoted = [f"`{name}`" if project.dialect == "mysql" else f'"{name}"' for name in names]
    listed = ", ".join(columns)
    computed = 'Column("id", Integer, primary_key=True), Column("g", Integer, Computed("1 + 1"))'
    apply(
        project,
        "from sqlalchemy.dialects import mysql, postgresql\n"
        f'    op.create_table("t", {computed}, {listed})\n'
        f'    op.add_columns("users", {listed}, online=False)',
    )
    before = described(project)
    project.boot()
    sent(project, f"INSERT INTO t (id, {', '.join(quoted)}) VALUES (1, {', '.join(values)})")
    sent(project, f"UPDATE users SET {', '.join(map('{} = {}'.format, quoted, values))} WHERE id = 1")
    text = {"sqlite": "quote({})", "postgresql": "CAST({} AS TEXT)"}.get(project.dialect, "CAST({} AS CHAR)")
    shown = [text.format(name) for name in quoted]
    (whole,) = sent(project, f"SELECT {', '.join(shown)} FROM t")
    of_column = {
        name: sent(project, f"SELECT {one} FROM users WHERE id = 1") for name, one in zip(names, shown, strict=True)
    }
    result = project.run("undo", "--archive", "--yes")
    assert result.exit_code == 0, result.output
    after = {name: kind for name, kind in described(project).items() if not name.startswith("db_smart_archive_")}
    assert after == before
    kept = archives(project)
    assert len(kept) == len(names) + 1
    engine = sa.create_engine(project.url, poolclass=sa.pool.NullPool)
    for archive in kept:
        found = [one["name"] for one in sa.inspect(engine).get_columns(archive)]
        if found[1] == "g":
            assert sent(project, f"SELECT {', '.join(shown)} FROM {archive}") == [whole]
            assert sent(project, f"SELECT g FROM {archive}") == [(2,)]
        else:
            one = shown[names.index(found[1])]
            assert sent(project, f"SELECT {one} FROM {archive} WHERE id = 1") == of_column.pop(found[1])
    assert not of_column


def test_rows_that_a_policy_hides_are_not_lost(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    """The owner of a table sees what its policies show, where they are forced; so it counts nothing."""
    url = new_url("postgresql")
    project = make_project(url)
    role = f"owner_{url.database}"
    sent(project, f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT ALL ON SCHEMA public TO {role}")
    try:
        project.url = url.set(username=role, password="x")
        apply(project, 'op.create_table("notes", Column("id", Integer, primary_key=True))')
        project.boot()
        sent(project, "INSERT INTO notes VALUES (1); CREATE POLICY none ON notes USING (false)")
        sent(project, "ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        assert sent(project, "SELECT * FROM notes") == []
        for option in ("--archive", "--discard", "--dry-run"):
            said = refusal(project.run("undo", "--yes", option))
            assert 'row-level security policy for table "notes"' in said
            assert "Nothing was taken back. Undo it as one who may" in said
        project.url = url
        assert sent(project, "SELECT * FROM notes") == [(1,)]
        assert "1 row of the table 'notes' would be lost" in refusal(project.run("undo", "--yes"))
    finally:
        sent(Project(project.directory, project.module, url), f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.filterwarnings("ignore:Did not recognize type")
def test_values_of_types_without_equality(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    """Of a point PostgreSQL has none, and two boxes are the same to it when their areas are."""
    project = make_project(new_url("postgresql"))
    apply(project, "pass")
    project.write(
        BASE
        + """
class Other(types.UserDefinedType):
    cache_ok = True
    def __init__(self, name):
        self.name = name
    def get_col_spec(self, **_):
        return self.name
@migration
def change(op):
    op.add_column("users", Column("p", Other("point"), server_default="(0,0)"))
    op.add_column("users", Column("b", Other("box"), server_default="(1,1),(0,0)"))
    op.add_column("users", Column("j", ARRAY(JSON), server_default="{}"))
"""
    )
    project.boot()
    assert "would lose" not in project.run("undo", "--dry-run").output, "they have their default"
    sent(project, "UPDATE users SET p = '(1,0)', b = '(6,6),(5,5)', j = array['[1]'::json] WHERE id = 1")
    said = refusal(project.run("undo", "--yes"))
    assert all(f"1 value of the column '{name}'" in said for name in "pbj"), said
    assert project.run("undo", "--yes", "--archive").exit_code == 0
    assert sent(project, "SELECT id, b::text FROM db_smart_archive_2_users_b") == [(1, "(6,6),(5,5)")]


def test_an_archive_outlives_a_crash(make_project: Callable[..., Project], new_url: Callable[[str], URL]) -> None:
    """It is of MariaDB's engine that has transactions, whatever the server makes by default."""
    options = {"connect_args": {"init_command": "SET default_storage_engine=MyISAM"}}
    project = make_project(new_url("mariadb"), {"SQLALCHEMY_ENGINE_OPTIONS": options})
    apply(project, 'op.create_table("notes", Column("id", Integer, primary_key=True))')
    project.boot()
    project.query("INSERT INTO notes VALUES (1)")
    assert project.run("undo", "--yes", "--archive").exit_code == 0
    query = "SELECT engine FROM information_schema.tables WHERE table_schema = database() AND table_name = :name"
    assert project.query(query, name=archives(project)[0]) == [("InnoDB",)]


def test_an_archive_of_an_interrupted_undo_is_kept(
    make_project: Callable[..., Project], new_url: Callable[[str], URL]
) -> None:
    """The column was dropped before the undo ended, and somebody has added it again since."""
    project = make_project(new_url("mariadb"))
    apply(project, 'op.add_columns("users", Column("age", Integer), Column("mail", String(9)))')
    project.boot()
    project.query("UPDATE users SET age = id, mail = 'x'")

    def fail(*args: Any) -> None:
        if args[2].startswith("INSERT INTO db_smart_history"):
            raise RuntimeError("the server went away")

    sa.event.listen(sa.Engine, "before_cursor_execute", fail)
    try:
        assert "the server went away" in refusal(project.run("undo", "--yes", "--archive"))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)
    assert not {"age", "mail"} & project.columns("users")
    project.query("ALTER TABLE users ADD COLUMN age INTEGER, ADD COLUMN mail VARCHAR(9)")
    project.query("UPDATE users SET age = 7, mail = 'x' WHERE id = 2")
    assert project.run("undo", "--yes", "--archive").exit_code == 0
    kept = {name: project.query(f"SELECT * FROM {name} ORDER BY id") for name in archives(project)}
    assert kept == {
        "db_smart_archive_2_users_age": [(1, 1), (2, 2)],
        "db_smart_archive_2_users_age_2": [(2, 7)],
        "db_smart_archive_2_users_mail": [(1, "x"), (2, "x")],
        "db_smart_archive_2_users_mail_2": [(2, "x")],
    }
