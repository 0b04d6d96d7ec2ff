"""Into what ``flask db-smart new`` writes, and how it looks: the format of black and of ruff, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import URL

from tests.harness import round_trip
from tests.harness.databases import engine_of
from tests.harness.drift import models
from tests.harness.project import DIALECTS, Project

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]

OURS = "from aurum_harmony.db_smart import Operations, migration\n"
#: Modules that a person may have, and what stands in them afterwards.
MODULES: dict[str, tuple[str, str]] = {
    "empty": ("", f"import sqlalchemy as sa\n{OURS}\n\n@migration"),
    "docstring": ('"""Migrations."""\n', f'"""Migrations."""\n\nimport sqlalchemy as sa\n{OURS}\n\n@migration'),
    "future": (
        "from __future__ import annotations\n",
        f"from __future__ import annotations\n\nimport sqlalchemy as sa\n{OURS}\n\n@migration",
    ),
    "docstring and future": (
        '"""Migrations."""\n\nfrom __future__ import annotations\n\nNUMBER = 1\n',
        f"import annotations\n\nimport sqlalchemy as sa\n{OURS}\nNUMBER = 1\n",
    ),
    "star": (
        f"from sqlalchemy import *\n\n{OURS}",
        f"import sqlalchemy as sa\nfrom sqlalchemy import *\n\n{OURS}\n\n@migration",
    ),
    "other name": (
        f"import sqlalchemy as db\n\n{OURS}\nKIND = db.Integer\n",
        f"import sqlalchemy as sa\nimport sqlalchemy as db\n\n{OURS}\nKIND = db.Integer\n",
    ),
    "sa is another": (
        f"from flask import abort as sa\n\n{OURS}\nSTOP = sa\n",
        "def from_models(op: Operations) -> None:\n    import sqlalchemy as sa\n\n    op.create_table(",
    ),
    "sa is a number": (f"{OURS}\nsa = 1\n", "    import sqlalchemy as sa\n\n    op.create_table("),
    "op is bound": (f"{OURS}\n\ndef op() -> None:\n    pass\n", "import sqlalchemy as sa\n"),
    "aliases": (
        "from aurum_harmony.db_smart import Operations as Ops\nfrom aurum_harmony.db_smart import migration as m\n",
        "@m\ndef from_models(op: Ops) -> None:\n",
    ),
    "no newline": (f"{OURS}\nNUMBER = 1", "NUMBER = 1\n\n\n@migration"),
    "crlf": (f"{OURS}\nNUMBER = 1\n".replace("\n", "\r\n"), "NUMBER = 1\r\n\r\n\r\n@migration\r\n"),
    "byte order mark": (f"\ufeff{OURS}", "\ufeffimport sqlalchemy as sa\n"),
    "blank lines": (f"{OURS}\n\n\n\n", f"{OURS}\n\n@migration"),
    "imports further down": (
        f"{OURS}\nNUMBER = 1\n\nimport os  # noqa: E402\n\nNAME = os.name\n",
        f"import sqlalchemy as sa\n{OURS}\nNUMBER = 1\n",
    ),
}


@pytest.mark.parametrize("what", MODULES)
def test_a_module(make_project: Make, sqlite_url: URL, what: str) -> None:
    before, expected = MODULES[what]
    project = make_project(sqlite_url, {"DB_SMART_CREATE_ALL": False})
    project.models = models
    project.file.write_bytes(before.encode())
    project.file.chmod(0o640)
    project.boot()
    result = project.run("new", "from_models", "--from-models")
    assert result.exit_code == 0, result.output
    assert expected in project.file.read_bytes().decode()
    assert project.file.stat().st_mode & 0o777 == 0o640
    if "\ufeff" not in before:
        round_trip.formatted(project.file, lint=False)
    assert project.boot().applied == ("from_models",)
    assert round_trip.left(project) == []


def _unchanged(project: Project, *words: str) -> None:
    before = project.file.read_bytes()
    result = project.run("new", "anything")
    assert result.exit_code != 0
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert project.file.read_bytes() == before
    assert list(project.directory.glob(f".{project.file.name}*")) == []


def test_a_module_that_means_something_else(make_project: Make, sqlite_url: URL) -> None:
    project = make_project(sqlite_url, {"DB_SMART_CREATE_ALL": False})
    project.models = models
    project.write("from flask import Flask as Operations\n", header="")
    _unchanged(project, "means something else by 'Operations'", "Nothing was written")


def test_a_module_that_is_read_only(make_project: Make, sqlite_url: URL) -> None:
    project = make_project(sqlite_url, {"DB_SMART_CREATE_ALL": False})
    project.models = models
    project.write(OURS, header="").chmod(0o444)
    _unchanged(project, f"Cannot write {project.file}: it is read-only", "Nothing was written")


@pytest.mark.parametrize("source", ["def broken(:\n", "import no_such_module_of_ours\n", "1 / 0\n"])
def test_a_module_that_does_not_load(make_project: Make, sqlite_url: URL, source: str) -> None:
    project = make_project(sqlite_url)
    project.models = models
    project.write(source, header="")
    _unchanged(project, project.module)


def test_a_module_behind_a_link(make_project: Make, sqlite_url: URL) -> None:
    project = make_project(sqlite_url, {"DB_SMART_CREATE_ALL": False})
    project.models = models
    real = project.directory / "real.py"
    real.write_text(OURS)
    project.file.symlink_to(real)
    assert project.run("new", "from_models", "--from-models").exit_code == 0
    assert project.file.is_symlink()
    assert "def from_models" in real.read_text()


class Trimmed(sa.types.TypeDecorator[str]):
    """A type of the application's own."""

    impl = sa.String(30)
    cache_ok = True


class Short(sa.String):
    """Another."""


NAMES = ["select", "Mixed Case", 'qu"oted', "it's", "per%cent", "co:lon", "ünï", "日本", "back\\slash", "a" * 60]


def odd(dialect: str) -> sa.MetaData:
    """Models with odd names, long lines and types of their own."""
    metadata = sa.MetaData()
    names = [name for name in NAMES if dialect == "sqlite" or len(name.encode()) < 60]
    for name in names:
        table = sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True))
        for number, column in enumerate(names):
            table.append_column(sa.Column(column, sa.String(20), index=number == 3, unique=number == 2))
    condition = " OR ".join(f"n = {number}" for number in range(100))
    texts = ["", "'", '"', "'\"'", "%", "%%", ":a", "a:b", "\\", "\n", "{}", "é", "日", "'::text", "a" * 100]
    table = sa.Table(
        "texts",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer),
        sa.Column("many", sa.Enum(*(f"value {number}" for number in range(30)), name="many_values")),
        sa.Column("quoted", sa.Enum("it's", 'say "no"', "100%", "a:b", name="quoted_values")),
        sa.Column("trimmed", Trimmed),
        sa.Column("short", Short(5), comment='it\'s "so" 100% a:b\nin two lines ' + "and long " * 20),
        sa.Column("json", sa.JSON().with_variant(postgresql.JSONB(), "postgresql")),
        sa.Column(
            "varied", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb").with_variant(Trimmed(), "sqlite")
        ),
        sa.CheckConstraint(condition, name="long_condition"),
        sa.CheckConstraint("short <> 'a:b' AND short NOT LIKE '100%'", name="colon"),
        comment='it\'s a "table" of 100%: :a',
    )
    for number, text in enumerate(texts):
        table.append_column(sa.Column(f"text_{number}", sa.String(200), server_default=text))
    for number in range(1, 4):
        table.append_column(sa.Column(f"more_{number}", sa.String(20), server_default=sa.text(f"'{':' * number}a%'")))
    if dialect == "postgresql":
        table.append_column(sa.Column("list", postgresql.ARRAY(Trimmed())))
    return metadata


@pytest.mark.parametrize("dialect", DIALECTS)
def test_odd_models(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    project = round_trip.begun(make_project(new_url(dialect)))
    project.models = round_trip.of(odd(dialect))
    text = round_trip.written(project)
    assert "Trimmed" not in text
    assert "Short" not in text
    project.boot()
    assert round_trip.left(project) == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_odd_columns_and_constraints(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    """The same, where the tables are there with rows."""
    url = new_url(dialect)
    bare = sa.MetaData()
    for table in odd(dialect).tables.values():
        sa.Table(table.name, bare, sa.Column("id", sa.Integer, primary_key=True))
    with engine_of(url).begin() as connection:
        bare.create_all(connection)
        for table in bare.tables.values():
            connection.execute(table.insert().values(id=1))
    project = round_trip.begun(make_project(url))
    project.models = round_trip.of(odd(dialect))
    round_trip.written(project)
    text = project.file.read_text()
    if dialect == "mariadb":  # which blocks writers for a check, so that a person has to say so
        start = text.index("op.create_check_constraint(")
        project.file.write_text(text[:start] + text[start:].replace("    )\n", "        online=False,\n    )\n"))
    project.boot()
    assert round_trip.left(project) == []


def test_several_databases(make_project: Make, new_url: NewUrl) -> None:
    """A migration for each, in one file."""

    def more(db: SQLAlchemy) -> None:
        models(db)
        db.Table("events", sa.Column("id", sa.Integer, primary_key=True), bind_key="ana-lytics")

    url = new_url("sqlite")
    project = make_project(url, {"SQLALCHEMY_BINDS": {"ana-lytics": new_url("sqlite")}, "DB_SMART_CREATE_ALL": False})
    project.models = more
    project.write(round_trip.FIRST, header=round_trip.HEADER)
    project.boot()
    result = project.run("new", "from_models", "--from-models")
    assert result.exit_code == 0, result.output
    round_trip.formatted(project.file)
    assert project.boot().applied == ("from_models", "from_models_ana_lytics")
    assert project.run("diff", "--check").exit_code == 0


def test_a_colon_in_a_check(make_project: Make, url: URL) -> None:
    """It is no parameter, which would be NULL."""

    def checked(db: SQLAlchemy, *more: sa.CheckConstraint) -> None:
        db.Table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.String(40)), *more)

    project = make_project(url)
    project.models = checked
    round_trip.begun(project)
    project.models = lambda db: checked(db, sa.CheckConstraint("a <> '\\:a'", name="ck_users"))
    round_trip.written(project)
    project.boot()
    assert round_trip.left(project) == []
    project.query("INSERT INTO users (id, a) VALUES (1, 'NULL')")
