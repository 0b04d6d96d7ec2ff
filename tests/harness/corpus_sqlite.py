"""Models of every kind on SQLite, and changes of which each is to be found."""

from __future__ import annotations

import enum
from typing import Any

import sqlalchemy as sa

from tests.harness import corpus_issues


class Level(enum.Enum):
    low = "low"
    high = "high"


#: Every type, by the name of its column.
TYPES: dict[str, Any] = {
    "an_integer": sa.Integer,
    "a_small": sa.SmallInteger,
    "a_big": sa.BigInteger,
    "a_numeric": sa.Numeric,
    "a_price": sa.Numeric(10, 2),
    "a_float": sa.Float,
    "a_double": sa.Double,
    "a_bool": sa.Boolean,
    "a_string": sa.String(40),
    "a_string_alone": sa.String,
    "a_unicode": sa.Unicode(40),
    "a_char": sa.CHAR(3),
    "a_text": sa.Text,
    "a_binary": sa.LargeBinary,
    "a_date": sa.Date,
    "a_time": sa.Time,
    "a_datetime": sa.DateTime(timezone=True),
    "a_timestamp": sa.TIMESTAMP,
    "an_interval": sa.Interval,
    "a_uuid": sa.Uuid,
    "a_json": sa.JSON,
    "a_pickle": sa.PickleType,
    "an_enum": sa.Enum("low", "mid's", "High", name="level"),
    "a_class_enum": sa.Enum(Level),
    "a_collated": sa.String(20, collation="NOCASE"),
}
#: Every form of a default.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "number": (sa.Integer, "7"),
    "negative": (sa.Integer, sa.text("-1")),
    "positive": (sa.Integer, sa.text("+1.5e3")),
    "text": (sa.String(20), "it's 100%"),
    "word": (sa.String(20), "CURRENT"),
    "empty": (sa.String(20), ""),
    "null": (sa.String(20), sa.text("NULL")),
    "true": (sa.Boolean, sa.true()),
    "one": (sa.Boolean, "1"),
    "now": (sa.DateTime, sa.func.now()),
    "today": (sa.Date, sa.text("CURRENT_DATE")),
    "expression": (sa.String(20), sa.text("(lower('A') || 'B (')")),
    "blob": (sa.LargeBinary, sa.text("x'0aFF'")),
    "hex": (sa.Integer, sa.text("0xFF")),
    "json": (sa.JSON, "{}"),
}


def corpus() -> sa.MetaData:
    """All of it in one."""
    metadata = sa.MetaData()
    table = sa.Table("types", metadata, sa.Column("id", sa.Integer, primary_key=True))
    for name, kind in TYPES.items():
        table.append_column(sa.Column(name, kind))
        table.append_column(sa.Column(f"{name}_needed", kind, nullable=False))
    table = sa.Table("defaults", metadata, sa.Column("id", sa.BigInteger, primary_key=True))
    for name, (kind, default) in DEFAULTS.items():
        table.append_column(sa.Column(name, kind, server_default=default))
    sa.Table(
        "parents",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, comment="which SQLite does not keep"),
        sa.Column("code", sa.String(20), unique=True),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.Integer),
        sa.UniqueConstraint("a", "b", name="uq_parents_ab"),
        sqlite_autoincrement=True,
    )
    sa.Table(
        "Mixed Case",
        metadata,
        sa.Column("Key One", sa.Integer, primary_key=True),
        sa.Column("select", sa.String(20), primary_key=True),
        sa.Column('qu"oted', sa.Integer, unique=True),
        sa.Column("per%cent", sa.Integer, index=True),
        sa.Column("parent", sa.ForeignKey("parents.id", ondelete="CASCADE", onupdate="RESTRICT"), nullable=False),
        sa.Column("code", sa.ForeignKey("parents.code", ondelete="SET NULL")),
        sa.Column("later", sa.ForeignKey("parents.id", name="fk_later", deferrable=True, initially="DEFERRED")),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.Integer),
        sa.ForeignKeyConstraint(["a", "b"], ["parents.a", "parents.b"], onupdate="CASCADE", name="fk_pair"),
        sa.ForeignKeyConstraint(["b", "a"], ["parents.b", "parents.a"]),
    )
    checked = sa.Table(
        "checked",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer, sa.CheckConstraint("n >= 0")),
        sa.Column("m", sa.Integer),
        sa.Column("s", sa.String(20)),
        sa.Column("virtual", sa.Integer, sa.Computed("n * 2", persisted=False)),
        sa.Column("stored", sa.String(40), sa.Computed("s || 'x''y'", persisted=True)),
        sa.Column("flag", sa.Boolean(create_constraint=True, name="ck_flag")),
        sa.Column("kind", sa.Enum("a", "b", create_constraint=True, name="ck_kind")),
        sa.CheckConstraint("n between 1 and 10 OR (m<>5 AND not (s = 'a, (b'))"),
        sa.CheckConstraint("s IN ('x', 'y%')", name="ck_in"),
        sa.CheckConstraint("s GLOB '[a-z]*' AND length(s) > 2", name="ck like"),
        sa.Index("ix_collated", sa.text("s COLLATE NOCASE")),
    )
    sa.Index("ix_desc", checked.c.n.desc(), checked.c.m)
    sa.Index("ix_unique_both", checked.c.n, checked.c.s, unique=True)
    sa.Index("ix_partial", checked.c.m, sqlite_where=checked.c.m > 5)
    sa.Index("ix_partial_unique", checked.c.m, unique=True, sqlite_where=sa.text("s IS NOT NULL AND n in (1, 2)"))
    sa.Index("ix_lower", sa.func.lower(checked.c.s))
    sa.Index("ix_mixed", checked.c.n, sa.text("coalesce(s, '')"), unique=True)
    sa.Index('ix "quoted"', checked.c.m)
    sa.Table(
        "indexed",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), index=True, unique=True),
        sa.Column("twice", sa.Integer, unique=True),
        sa.UniqueConstraint("twice", "id"),
        sa.UniqueConstraint("id", "name", sqlite_on_conflict="IGNORE"),
        sa.PrimaryKeyConstraint("id", name="pk_indexed"),
    )
    sa.Table(
        "nodes",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.ForeignKey("nodes.id")),
        sa.Column("leaf_id", sa.ForeignKey("leaves.id")),
    )
    sa.Table(
        "leaves",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("node_id", sa.ForeignKey("nodes.id")),
    )
    sa.Table("keyless", metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.Uuid))
    sa.Table("rowless", metadata, sa.Column("a", sa.String(5), primary_key=True), sqlite_with_rowid=False)
    sa.Table("strict", metadata, sa.Column("a", sa.Text, primary_key=True), sqlite_strict=True)
    sa.Table("texts", metadata, sa.Column("a", sa.String(5), primary_key=True), sa.Column("b", sa.Integer))
    corpus_issues.add(metadata, "sqlite")
    return metadata


SMALL = {
    "parents": "CREATE TABLE parents (id INTEGER PRIMARY KEY, other_id INTEGER UNIQUE)",
    "users": """CREATE TABLE users (
        id INTEGER NOT NULL,
        name VARCHAR(40) NOT NULL,
        n INTEGER DEFAULT 7,
        folded TEXT COLLATE NOCASE,
        twice INTEGER GENERATED ALWAYS AS (n * 2) VIRTUAL,
        parent_id INTEGER CONSTRAINT fk_parent REFERENCES parents (id),
        told VARCHAR(20),
        PRIMARY KEY (id),
        CONSTRAINT ck_n CHECK (n > 5),
        CONSTRAINT uq_name UNIQUE (name, n)
    )""",
    "ix_n": "CREATE INDEX ix_n ON users (n, told)",
    "ix_partial": "CREATE INDEX ix_partial ON users (told) WHERE n > 5",
    "ix_lower": "CREATE INDEX ix_lower ON users (lower(name))",
}


def small() -> sa.MetaData:
    """The models of it."""
    metadata = sa.MetaData()
    sa.Table(
        "parents",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("other_id", sa.Integer, unique=True),
    )
    table = sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("n", sa.Integer, server_default=sa.text("7")),
        sa.Column("folded", sa.Text(collation="NOCASE")),
        sa.Column("twice", sa.Integer, sa.Computed("n * 2", persisted=False)),
        sa.Column("parent_id", sa.ForeignKey("parents.id", name="fk_parent")),
        sa.Column("told", sa.String(20)),
        sa.CheckConstraint("n > 5", name="ck_n"),
        sa.UniqueConstraint("name", "n", name="uq_name"),
        sa.Index("ix_n", "n", "told"),
    )
    sa.Index("ix_partial", table.c.told, sqlite_where=table.c.n > 5)
    sa.Index("ix_lower", sa.func.lower(table.c.name))
    return metadata


def column(name: str, *facets: str) -> list[tuple[str, str, str, list[str]]]:
    return [("both", "column", f"users.{name}", [*facets])]


#: What stands otherwise in the definition, and what is found: who has it, kind, path, facets.
MUTATIONS: dict[str, tuple[str, str, list[tuple[str, str, str, list[str]]]]] = {
    "nothing": ("CREATE", "CREATE", []),
    "type": ("n INTEGER", "n BIGINT", column("n", "type")),
    "length": ("VARCHAR(40)", "VARCHAR(41)", column("name", "type")),
    "nullable": ("VARCHAR(40) NOT NULL", "VARCHAR(40)", column("name", "nullable")),
    "default": ("DEFAULT 7", "DEFAULT 8", column("n", "default")),
    "no default": ("DEFAULT 7", "", column("n", "default")),
    "collation": ("NOCASE", "RTRIM", column("folded", "collation")),
    "no collation": ("COLLATE NOCASE", "", column("folded", "collation")),
    "computed": ("n * 2", "n * 3", column("twice", "computed")),
    "stored": ("VIRTUAL", "STORED", column("twice", "computed")),
    "not computed": ("GENERATED ALWAYS AS (n * 2) VIRTUAL", "", column("twice", "computed")),
    "autoincrement": (
        "id INTEGER NOT NULL,",
        "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,",
        column("id", "autoincrement"),
    ),
    "no column": ("folded TEXT COLLATE NOCASE,", "", [("models", "column", "users.folded", [])]),
    "more": ("told VARCHAR(20),", "told VARCHAR(20), fax INT,", [("database", "column", "users.fax", [])]),
    "check": ("CHECK (n > 5)", "CHECK (n > 6)", [("both", "check", "users.ck_n", ["condition"])]),
    "no check": ("CONSTRAINT ck_n CHECK (n > 5),", "", [("models", "check", "users.ck_n", [])]),
    "case in a check": ("CHECK (n > 5)", "CHECK (n > '5')", [("both", "check", "users.ck_n", ["condition"])]),
    "unique": ("UNIQUE (name, n)", "UNIQUE (n, name)", [("both", "unique", "users.uq_name", ["columns"])]),
    "no unique": (",\n        CONSTRAINT uq_name UNIQUE (name, n)", "", [("models", "unique", "users.uq_name", [])]),
    "key": (
        "REFERENCES parents (id)",
        "REFERENCES parents (other_id)",
        [("both", "foreign key", "users.fk_parent", ["target columns"])],
    ),
    "on delete": (
        "REFERENCES parents (id)",
        "REFERENCES parents (id) ON DELETE CASCADE",
        [("both", "foreign key", "users.fk_parent", ["on delete"])],
    ),
    "on update": (
        "REFERENCES parents (id)",
        "REFERENCES parents (id) ON UPDATE SET NULL",
        [("both", "foreign key", "users.fk_parent", ["on update"])],
    ),
    "deferrable": (
        "REFERENCES parents (id)",
        "REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED",
        [("both", "foreign key", "users.fk_parent", ["deferrable"])],
    ),
    "no key": ("CONSTRAINT fk_parent REFERENCES parents (id)", "", [("models", "foreign key", "users.fk_parent", [])]),
    "primary key": (
        "PRIMARY KEY (id)",
        "PRIMARY KEY (id, name)",
        [("both", "primary key", "users", ["columns"])],
    ),
    "index order": ("users (n, told)", "users (n DESC, told)", [("both", "index", "users.ix_n", ["columns"])]),
    "index columns": ("users (n, told)", "users (told, n)", [("both", "index", "users.ix_n", ["columns"])]),
    "unique index": ("CREATE INDEX ix_n", "CREATE UNIQUE INDEX ix_n", [("both", "index", "users.ix_n", ["unique"])]),
    "partial": ("WHERE n > 5", "WHERE n > 6", [("both", "index", "users.ix_partial", ["where"])]),
    "not partial": ("WHERE n > 5", "", [("both", "index", "users.ix_partial", ["where"])]),
    "expression": ("lower(name)", "upper(name)", [("both", "index", "users.ix_lower", ["columns"])]),
    "no index": ("CREATE INDEX ix_n ON users (n, told)", "", [("models", "index", "users.ix_n", [])]),
    "table": (
        "CREATE TABLE parents",
        "CREATE TABLE stray (id INT); CREATE TABLE parents",
        [("database", "table", "stray", [])],
    ),
    "strict": (
        "other_id INTEGER UNIQUE)",
        "other_id INTEGER UNIQUE) STRICT",
        [("both", "table", "parents", ["options"])],
    ),
    # What changes nothing is no difference.
    "spelling": ("n INTEGER DEFAULT 7", "[N]  integer /* it's */ default 7 -- CHECK (n)\n", []),
    "names": ("CONSTRAINT ck_n CHECK (n > 5)", "CHECK ( (`n`>5 ) )", []),
    "an index for a constraint": (
        ",\n        CONSTRAINT uq_name UNIQUE (name, n)\n    )",
        '); CREATE UNIQUE INDEX whatever ON users ("name", N)',
        [],
    ),
    "inline": ("PRIMARY KEY (id),", "", [("models", "primary key", "users", [])]),
    "a key inline": ("id INTEGER NOT NULL,", "id INTEGER PRIMARY KEY,", []),
    "null": ("folded TEXT", "folded TEXT NULL DEFAULT NULL", []),
    "another name": ("INDEX ix_lower ON users (lower(name))", 'INDEX "idx" ON "users"(LOWER("name"))', []),
    "a key of the table": (
        "parent_id INTEGER CONSTRAINT fk_parent REFERENCES parents (id)",
        "parent_id INTEGER REFERENCES Parents",
        [],
    ),
    "beside": (
        "CREATE TABLE parents",
        "CREATE VIEW seen AS SELECT 1 AS one; CREATE VIRTUAL TABLE texts USING fts5(body); CREATE TABLE parents",
        [],
    ),
}
