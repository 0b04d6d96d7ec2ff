"""``flask db-smart new --from-models`` between random models: applied, only what the file tells as comments is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from tests.harness import round_trip
from tests.harness.databases import engine_of
from tests.harness.project import DIALECTS, Project

Make = Callable[..., Project]
NewUrl = Callable[[str], URL]
#: Any other examples than the usual ones: ``RANDOM_SEED=1``; and how many.
SEED = os.environ.get("RANDOM_SEED")
COUNT = os.environ.get("RANDOM_COUNT")

#: Types with a default, and with a condition on their columns.
TYPES: dict[str, tuple[Any, Any, str]] = {
    "small": (sa.SmallInteger, "1", "> 0"),
    "integer": (sa.Integer, "7", "> 0"),
    "big": (sa.BigInteger, "7", "<> 5"),
    "short": (sa.String(20), "it's", "<> '100%'"),
    "long": (sa.String(40), "a:b", "<> ':a'"),
    "text": (sa.Text, None, "IS NOT NULL"),
    "price": (sa.Numeric(8, 2), "1.50", ">= 0"),
    "more": (sa.Numeric(10, 2), "0.00", "BETWEEN 0 AND 100"),
    "flag": (sa.Boolean, sa.false(), "IS NOT NULL"),
    "day": (sa.Date, "2026-01-01", "> '2000-01-01'"),
    "two": (sa.Enum("a", "b", name="kind"), "a", "<> 'b'"),
    "three": (sa.Enum("a", "z", "b", name="kind"), "b", "<> 'b'"),
    "document": (sa.JSON, None, "IS NOT NULL"),
}
INDEXED = set(TYPES) - {"text", "document"}


@dataclass
class TableModel:
    """A table: columns by name, then names of indexes and constraints with what they are on."""

    key: str
    columns: dict[str, tuple[str, bool, bool, str | None]] = field(default_factory=dict)
    indexes: dict[str, tuple[list[str], bool]] = field(default_factory=dict)
    uniques: dict[str, list[str]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    keys: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    comment: str | None = None


Models = dict[str, TableModel]
names = st.sampled_from(["a", "select", "Mixed", "d", "it's"])


@st.composite
def models(draw: Any) -> Models:
    kind = draw(st.sampled_from(["two", "three"]))  # one enumeration has one list of values
    found: Models = {}
    for table in draw(st.lists(st.sampled_from(["users", "Order Lines", "tags"]), unique=True, max_size=3)):
        one = found[table] = TableModel(draw(st.sampled_from(["integer", "big"])))
        one.comment = draw(st.sampled_from([None, "100% of it's"]))
        for name in draw(st.lists(names, unique=True, max_size=4)):
            type_ = draw(st.sampled_from(sorted(TYPES)))
            type_ = kind if type_ in ("two", "three") else type_
            comment = draw(st.sampled_from([None, None, "it's :so"]))
            one.columns[name] = (type_, draw(st.booleans()), draw(st.booleans()), comment)
        indexed = [name for name, (type_, *_) in one.columns.items() if type_ in INDEXED]
        if indexed:
            some = st.lists(st.sampled_from(indexed), unique=True, min_size=1, max_size=2)
            for number in draw(st.lists(st.integers(1, 2), unique=True, max_size=2)):
                one.indexes[f"ix_{table}_{number}"] = (draw(some), draw(st.booleans()))
            if draw(st.booleans()):
                one.uniques[f"uq_{table}"] = draw(some)
        if one.columns and draw(st.booleans()):
            one.checks[f"ck_{table}"] = draw(st.sampled_from(sorted(one.columns)))
    for table, one in found.items():
        for number in draw(st.lists(st.integers(1, 2), unique=True, max_size=2)):
            target = draw(st.sampled_from(sorted(found)))
            one.keys[f"fk_{table}_{number}"] = (target, draw(st.sampled_from([None, "CASCADE", "SET NULL"])))
    return found


def made(models: Models, dialect: sa.Dialect) -> sa.MetaData:
    """The models as tables."""
    metadata = sa.MetaData()
    quoted = dialect.identifier_preparer.quote_identifier
    for name, one in models.items():
        table = sa.Table(name, metadata, sa.Column("id", TYPES[one.key][0], primary_key=True), comment=one.comment)
        for column, (type_, nullable, default, comment) in one.columns.items():
            value = TYPES[type_][1] if default else None
            table.append_column(
                sa.Column(column, TYPES[type_][0], nullable=nullable, server_default=value, comment=comment)
            )
        for index, (columns, unique) in one.indexes.items():
            sa.Index(index, *(table.c[column] for column in columns), unique=unique)
        for unique_name, columns in one.uniques.items():
            table.append_constraint(sa.UniqueConstraint(*columns, name=unique_name))
        for check, column in one.checks.items():
            text = f"{quoted(column)} {TYPES[one.columns[column][0]][2]}"
            table.append_constraint(sa.CheckConstraint(text.replace(":", "\\:"), name=check))
    for name, one in models.items():
        for key, (target, action) in one.keys.items():
            column = f"{target}_{key[-1]}"
            metadata.tables[name].append_column(sa.Column(column, TYPES[models[target].key][0]))
            constraint = sa.ForeignKeyConstraint([column], [f"{target}.id"], name=key, ondelete=action)
            metadata.tables[name].append_constraint(constraint)
    return metadata


def _renames(before: Models, after: Models) -> list[str]:
    """What may be the same by another name: the first column that goes and the first that comes, of one type."""
    for table in [name for name in before if name in after]:
        for old, (type_, *_) in before[table].columns.items():
            for new, (other, *_) in after[table].columns.items():
                if old not in after[table].columns and new not in before[table].columns and type_ == other:
                    return ["--rename", f"{table}.{old}={new}"]
    return []


def _check(make_project: Make, url: URL, before: Models, after: Models, renamed: bool) -> str:
    """Write a migration from models to models and apply it.

    :returns: the migration.
    """
    project = make_project(url)
    engine = engine_of(url)
    old, new = made(before, engine.dialect), made(after, engine.dialect)
    old.create_all(engine)
    round_trip.begun(project)
    project.models = round_trip.of(new)
    text = round_trip.written(project, *(_renames(before, after) if renamed else []))
    project.boot()
    comments = " ".join(line.strip(" #") for line in text.splitlines() if line.startswith("    #"))
    for one in round_trip.left(project):
        assert one.split(" ", 2)[2].split(".")[-1].removeprefix("key ") in comments, (one, text)
    return text


@pytest.mark.parametrize(
    ("dialect", "count"),
    [("sqlite", 20), ("postgresql", 4), ("mariadb", 4)],
)
@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
def test_from_models_to_models(make_project: Make, new_url: NewUrl, dialect: str, count: int) -> None:
    limits = settings(
        max_examples=int(COUNT or count),
        derandomize=SEED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def check(before: Models, after: Models, renamed: bool) -> None:
        _check(make_project, new_url(dialect), before, after, renamed)

    run = limits(given(models(), models(), st.booleans())(check))
    (run if SEED is None else seed(int(SEED))(run))()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_keys(make_project: Make, new_url: NewUrl, dialect: str) -> None:
    """A key that others refer to gets wider with them; nothing is made that needs one as it is not yet."""
    small, big = ("integer", "big") if dialect != "sqlite" else ("short", "long")
    before = {"Users": TableModel(small, keys={"fk_Users_1": ("Users", None)})}
    _check(make_project, new_url(dialect), before, {"Users": TableModel(big)}, False)
    before = {"Users": TableModel(big, {"a": ("big", False, False, None)})}
    after = {
        "Users": TableModel(small, {"a": ("flag", False, True, None)}),
        "tags": TableModel(small, keys={"fk_tags_1": ("Users", None)}),
    }
    _check(make_project, new_url(dialect), before, after, False)


def _column(type_: str, nullable: bool = True, default: bool = False) -> tuple[str, bool, bool, str | None]:
    return type_, nullable, default, None


#: What random models have found.
EXAMPLES: dict[str, tuple[Models, Models, str]] = {
    "a new table refers to a key that gets wider": (
        {"users": TableModel("integer")},
        {"users": TableModel("big"), "tags": TableModel("integer", keys={"fk_tags_1": ("users", "SET NULL")})},
        "fk_tags_1",
    ),
    "a new table and an old one refer to each other": (
        {"users": TableModel("integer")},
        {
            "users": TableModel("integer", keys={"fk_users_1": ("tags", None)}),
            "tags": TableModel("integer", keys={"fk_tags_1": ("tags", None), "fk_tags_2": ("users", None)}),
        },
        "fk_tags_2",
    ),
    "a check of a column that is of another type": (
        {"users": TableModel("integer", {"a": _column("more"), "d": _column("big")})},
        {"users": TableModel("integer", {"a": _column("big"), "d": _column("big")}, checks={"ck_users": "a"})},
        "ck_users",
    ),
    "an index of a column that is of another type": (
        {"users": TableModel("integer", {"a": _column("document"), "d": _column("big")})},
        {
            "users": TableModel(
                "integer", {"a": _column("big"), "d": _column("big")}, {"ix_users_1": (["d", "a"], False)}
            )
        },
        "ix_users_1",
    ),
    "what is unique, of a column that is of another type": (
        {"users": TableModel("integer", {"a": _column("document")})},
        {"users": TableModel("integer", {"a": _column("big")}, uniques={"uq_users": ["a"]})},
        "uq_users",
    ),
    "an index with a column more, which is of another type": (
        {
            "users": TableModel(
                "integer", {"a": _column("document"), "d": _column("big")}, {"ix_users_1": (["d"], False)}
            )
        },
        {
            "users": TableModel(
                "integer", {"a": _column("big"), "d": _column("big")}, {"ix_users_1": (["d", "a"], False)}
            )
        },
        "ix_users_1",
    ),
    "a unique index whose columns are in another order than those of the table": (
        {"users": TableModel("integer", {"a": _column("big")})},
        {
            "users": TableModel(
                "integer",
                {"a": _column("big"), "b": _column("big"), "d": _column("big")},
                {"ix_users_1": (["d", "b"], True)},
            )
        },
        "ix_users_1",
    ),
    "a unique index with the name of one that gets another": (
        {"users": TableModel("integer", {"a": _column("big"), "d": _column("big")}, {"ix_users_1": (["a"], False)})},
        {
            "users": TableModel(
                "integer",
                {"a": _column("big"), "d": _column("big")},
                {"ix_users_1": (["a", "d"], True), "ix_users_2": (["a"], False)},
            )
        },
        "ix_users_2",
    ),
}


@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
@pytest.mark.parametrize("what", EXAMPLES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_examples(make_project: Make, new_url: NewUrl, dialect: str, what: str) -> None:
    before, after, name = EXAMPLES[what]
    assert name in _check(make_project, new_url(dialect), before, after, False)
