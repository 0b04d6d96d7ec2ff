"""Models of every kind on PostgreSQL, and changes of which each is to be found."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from tests.harness import corpus_issues

SCHEMAS = (None, "shop")
EXTENSIONS = ("citext", "hstore", "btree_gist", "pg_trgm", "ltree")


def corpus() -> sa.MetaData:
    """The models."""
    metadata = sa.MetaData()
    for name in EXTENSIONS:
        ddl = sa.DDL(f"CREATE EXTENSION IF NOT EXISTS {name} SCHEMA public")  # type: ignore[no-untyped-call]
        sa.event.listen(metadata, "before_create", ddl)
    _types(metadata)
    _defaults(metadata)
    _constraints(metadata)
    _indexes(metadata)
    corpus_issues.add(metadata, "postgresql")
    return metadata


def _types(metadata: sa.MetaData) -> None:
    level = sa.Enum("low", "high", "it's", name="level", metadata=metadata)
    state = sa.Enum("new", "Done", name="state", schema="shop", metadata=metadata)
    kinds: list[Any] = [
        sa.Integer,
        sa.SmallInteger,
        sa.BigInteger,
        sa.Numeric,
        sa.Numeric(12, 3),
        sa.Float,
        sa.Float(24),
    ]
    kinds += [sa.Double, sa.REAL, sa.Boolean, sa.String, sa.String(40), sa.CHAR(3), sa.Text, sa.Unicode(20)]
    kinds += [sa.Date, sa.DateTime, sa.DateTime(timezone=True), sa.Time, sa.Time(timezone=True), sa.Interval]
    kinds += [sa.LargeBinary, sa.Uuid, sa.Uuid(native_uuid=False), sa.JSON, sa.PickleType, level, state]
    kinds += [sa.Enum("a", "bb", native_enum=False, create_constraint=True, name="of_text"), sa.ARRAY(sa.Integer)]
    kinds += [pg.JSONB, pg.INET, pg.CIDR, pg.MACADDR, pg.MACADDR8, pg.MONEY, pg.OID, pg.REGCLASS, pg.BIT(5)]
    kinds += [pg.BIT(8, varying=True), pg.TSVECTOR, pg.TSQUERY, pg.INT4RANGE, pg.TSTZRANGE, pg.NUMMULTIRANGE, pg.CITEXT]
    kinds += [pg.HSTORE, pg.ARRAY(sa.String(7)), pg.ARRAY(sa.Integer, dimensions=2), pg.ARRAY(level)]
    kinds += [
        pg.INTERVAL(fields="DAY TO SECOND"),
        pg.INTERVAL(precision=3),
        pg.TIMESTAMP(precision=2),
        pg.TIME(precision=1),
    ]
    kinds += [sa.String(40, collation="C"), sa.Text(collation="ucs_basic"), pg.BYTEA, pg.DOUBLE_PRECISION(53)]
    kinds += [pg.DOMAIN("positive", sa.Integer, check="VALUE > 0", not_null=True, default="1")]
    kinds += [
        pg.DOMAIN("code", sa.String(9), schema="shop", collation="C", constraint_name="coded", check="VALUE <> ''")
    ]
    columns = [sa.Column(f"c{number}", kind) for number, kind in enumerate(kinds)]
    sa.Table("types", metadata, sa.Column("id", sa.Integer, primary_key=True), *columns, comment="it's a table")
    sa.Table("levels", metadata, sa.Column("level", level, server_default="low"), sa.Column("state", state))
    sa.Sequence("plain", metadata=metadata)
    sa.Sequence("tickets", start=100, increment=5, minvalue=10, maxvalue=1000, cycle=True, cache=7, metadata=metadata)
    sa.Sequence("numbers", data_type=sa.SmallInteger, schema="shop", metadata=metadata)


def _defaults(metadata: sa.MetaData) -> None:
    texts = ["'x'", "''", "'it''s'", "E'a\\nb'", "NULL", "1 + 2", "upper('x')", "current_user"]
    sa.Table(
        "defaults",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True, start=10, increment=2, cycle=True), primary_key=True),
        *(sa.Column(f"c{number}", sa.Text, server_default=sa.text(text)) for number, text in enumerate(texts)),
        sa.Column("zero", sa.Integer, server_default="0"),
        sa.Column("minus", sa.Integer, server_default=sa.text("-1")),
        sa.Column("at", sa.DateTime, server_default=sa.text("CURRENT_TIMESTAMP")),
        sa.Column("lowered", sa.Text, server_default=sa.func.lower("X")),
        sa.Column("plain", sa.String(20), server_default="100%", comment="of 100%: it's"),
        sa.Column("flag", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("when", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("day", sa.Date, server_default=sa.text("('now'::text)::date")),
        sa.Column("token", sa.Uuid, server_default=sa.text("gen_random_uuid()")),
        sa.Column("list", pg.ARRAY(sa.Text), server_default="{}"),
        sa.Column("document", pg.JSONB, server_default=sa.text("""'{"a": [1, 2]}'::jsonb""")),
        sa.Column("price", sa.Numeric(10, 2), server_default="0.00"),
        sa.Column("sum", sa.Numeric(10, 2), sa.Computed("price * 2")),
        sa.Column("label", sa.Text, sa.Computed("plain || '!'", persisted=True)),
        sa.Column("ticket", sa.Integer, server_default=sa.Sequence("tickets").next_value()),
        sa.Column("Mixed Case", sa.Integer, server_default="1"),
        comment="100%",
    )
    sa.Table("serials", metadata, sa.Column("id", sa.SmallInteger, primary_key=True))
    sa.Table("big_serials", metadata, sa.Column("id", sa.BigInteger, primary_key=True), schema="shop")
    sa.Table("given", metadata, sa.Column("id", sa.Integer, sa.Sequence("given_seq"), primary_key=True))
    sa.Table("by_default", metadata, sa.Column("id", sa.Integer, sa.Identity(), primary_key=True))


def _constraints(metadata: sa.MetaData) -> None:
    sa.Table(
        "parents",
        metadata,
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.String(5)),
        sa.Column("c", sa.Integer, unique=True),
        sa.Column("d", sa.Integer, sa.CheckConstraint("d > 0")),
        sa.PrimaryKeyConstraint("b", "a", name="parents_key"),
        sa.UniqueConstraint("a", "b", "c", name="uq_parents"),
        sa.UniqueConstraint("c", "a", deferrable=True, initially="DEFERRED", name="uq_late"),
        sa.UniqueConstraint("d", postgresql_nulls_not_distinct=True, name="uq_nulls"),
        sa.UniqueConstraint("b", postgresql_include=["d"], name="uq_include"),
        sa.CheckConstraint("a > 0 AND (c < 7 OR c IS NULL)", name="paired"),
        sa.CheckConstraint("b IN ('x', 'y', '100%')", name="listed"),
        sa.CheckConstraint("d BETWEEN 1 AND 9 AND b LIKE 'x%'", name="between_them"),
        sa.CheckConstraint("length(b) > 1", name="long", comment="it's so"),
    )
    sa.Table(
        "children",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_a", sa.Integer),
        sa.Column("parent_b", sa.String(5)),
        sa.Column("one", sa.ForeignKey("parents.c", ondelete="CASCADE", onupdate="RESTRICT")),
        sa.Column("self_id", sa.ForeignKey("children.id", name="fk_self", deferrable=True, initially="DEFERRED")),
        sa.Column("item_id", sa.ForeignKey("shop.items.id", ondelete="SET NULL")),
        sa.ForeignKeyConstraint(["parent_b", "parent_a"], ["parents.b", "parents.a"], match="FULL", name="fk_both"),
    )
    sa.Table(
        "items",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("other_id", sa.ForeignKey("shop.items.id", onupdate="CASCADE", ondelete="SET DEFAULT")),
        sa.Column("child_id", sa.ForeignKey("children.id", use_alter=True, name="fk_circle")),
        sa.Column("level", sa.Enum("a", "b", name="item level", schema="shop"), server_default="a"),
        sa.CheckConstraint("level <> 'b'", name="no_b"),
        schema="shop",
    )
    sa.Table(
        "bookings",
        metadata,
        sa.Column("room", sa.Integer),
        sa.Column("during", pg.TSRANGE),
        pg.ExcludeConstraint(("room", "="), ("during", "&&"), name="no_overlap", where=sa.text("room > 0")),
        pg.ExcludeConstraint((sa.text("int4range(room, room + 1)"), "&&"), using="gist", name="no_neighbours"),
    )
    sa.Table(
        "partitioned",
        metadata,
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("n", sa.Integer, index=True),
        postgresql_partition_by="RANGE (day)",
    )
    sa.Table("filled", metadata, sa.Column("n", sa.Integer), postgresql_with={"fillfactor": 70}, prefixes=["UNLOGGED"])
    sa.Table("heirs", metadata, sa.Column("more", sa.Integer), postgresql_inherits="filled")


def _indexes(metadata: sa.MetaData) -> None:
    table = sa.Table(
        "indexed",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("a", sa.Integer, index=True),
        sa.Column("b", sa.String(20), unique=True, index=True),
        sa.Column("c", sa.Text),
        sa.Column("d", pg.JSONB),
        sa.Column("e", pg.ARRAY(sa.Integer)),
        sa.Column("f", pg.TSVECTOR),
        sa.Column("select", sa.Boolean),
        sa.Column("Mixed", sa.Integer),
        sa.Column("at", sa.DateTime),
        sa.Column("path", sa.String(20)),
        sa.Index("ix_sum", sa.text("(a + 1)"), sa.text("coalesce(c, '')")),
    )
    c = table.c
    sa.Index("ix_two", c.a, c.b)
    sa.Index("ix_order", c.a.desc(), c.b.asc().nulls_first(), c.c.desc().nulls_last())
    sa.Index("ix_lower", sa.func.lower(c.c))
    sa.Index("ux_lower", sa.func.lower(c.b), c.a, unique=True)
    sa.Index("ix_where", c.b, postgresql_where=c.a > 5)
    sa.Index("ux_where", c.b, unique=True, postgresql_where=sa.text("c IS NOT NULL AND b <> 'it''s'"))
    sa.Index("ix_class", c.b, postgresql_ops={"b": "varchar_pattern_ops"})
    sa.Index("ix_gin", c.d, postgresql_using="gin", postgresql_ops={"d": "jsonb_path_ops"})
    sa.Index("ix_array", c.e, postgresql_using="gin", postgresql_with={"fastupdate": "off"})
    sa.Index("ix_search", c.f, postgresql_using="gist")
    sa.Index("ix_trgm", c.c, postgresql_using="gin", postgresql_ops={"c": "gin_trgm_ops"})
    sa.Index("ix_brin", c.at, postgresql_using="brin", postgresql_with={"pages_per_range": 16})
    sa.Index("ix_hash", c.b, postgresql_using="hash")
    sa.Index("ix_include", c.a, postgresql_include=["b", "Mixed"])
    sa.Index("ux_nulls", c.Mixed, unique=True, postgresql_nulls_not_distinct=True)
    sa.Index("ix_fill", c.a, postgresql_with={"fillfactor": 50})
    sa.Index("ix_words", c.select, c.Mixed)
    sa.Index("ix_collated", c.c.collate("C"))
    sa.Index("ix_json", c.d["key"].astext)
    sa.Index("ix_USING btree (a)", c.a)


#: A change of the database, and what is found: kind, name, what of it; nothing for a thing that one side lacks.
CHANGES = {
    "type": ("ALTER TABLE defaults ALTER zero TYPE bigint", "column", "zero", "type"),
    "length": ("ALTER TABLE types ALTER c11 TYPE varchar(41)", "column", "c11", "type"),
    "precision": ("ALTER TABLE types ALTER c4 TYPE numeric(12, 4)", "column", "c4", "type"),
    "time zone": ("ALTER TABLE types ALTER c16 TYPE timestamptz", "column", "c16", "type"),
    "nullable": ("ALTER TABLE defaults ALTER zero SET NOT NULL", "column", "zero", "nullable"),
    "not null": ("ALTER TABLE defaults ALTER flag DROP NOT NULL", "column", "flag", "nullable"),
    "default": ("ALTER TABLE defaults ALTER zero SET DEFAULT 1", "column", "zero", "default"),
    "no default": ("ALTER TABLE defaults ALTER zero DROP DEFAULT", "column", "zero", "default"),
    "default of a sequence": ("ALTER TABLE serials ALTER id DROP DEFAULT", "column", "id", "default"),
    "comment": ("COMMENT ON COLUMN defaults.plain IS 'other'", "column", "plain", "comment"),
    "new comment": ("COMMENT ON COLUMN defaults.zero IS 'other'", "column", "zero", "comment"),
    "collation": ('ALTER TABLE types ALTER c11 TYPE varchar(40) COLLATE "C"', "column", "c11", "collation"),
    "computed": ("ALTER TABLE defaults ALTER label SET EXPRESSION AS (plain || '?')", "column", "label", "computed"),
    "no longer computed": ("ALTER TABLE defaults ALTER label DROP EXPRESSION", "column", "label", "computed"),
    "identity": ("ALTER TABLE defaults ALTER id SET GENERATED BY DEFAULT", "column", "id", "identity"),
    "step": ("ALTER TABLE by_default ALTER id SET INCREMENT BY 3", "column", "id", "identity"),
    "no identity": ("ALTER TABLE by_default ALTER id DROP IDENTITY", "column", "id", "identity"),
    "column": ("ALTER TABLE defaults ADD more integer", "column", "more", None),
    "table comment": ("COMMENT ON TABLE types IS NULL", "table", None, "comment"),
    "logged": ("ALTER TABLE filled SET LOGGED", "table", None, "unlogged"),
    "inherits": ("ALTER TABLE heirs NO INHERIT filled", "table", None, "inherits"),
    "fill factor": ("ALTER TABLE filled SET (fillfactor = 71)", "table", None, "with"),
    "table": ("CREATE TABLE shop.stray (id integer)", "table", None, None),
    "lost table": ("DROP TABLE shop.big_serials", "table", None, None),
    "primary key": (
        "ALTER TABLE parents DROP CONSTRAINT parents_key CASCADE, ADD PRIMARY KEY (a, b)",
        "primary key",
        "parents_key",
        "columns",
    ),
    "no primary key": ("ALTER TABLE serials DROP CONSTRAINT serials_pkey", "primary key", "serials_pkey", None),
    "unique": (
        "ALTER TABLE parents DROP CONSTRAINT uq_parents, ADD CONSTRAINT uq_parents UNIQUE (b, a)",
        "unique",
        "uq_parents",
        "columns",
    ),
    "unique deferrable": (
        "ALTER TABLE parents DROP CONSTRAINT uq_late, ADD CONSTRAINT uq_late UNIQUE (c, a) DEFERRABLE",
        "unique",
        "uq_late",
        "deferrable",
    ),
    "nulls distinct": (
        "ALTER TABLE parents DROP CONSTRAINT uq_nulls, ADD CONSTRAINT uq_nulls UNIQUE (d)",
        "unique",
        "uq_nulls",
        "nulls not distinct",
    ),
    "unique include": (
        "ALTER TABLE parents DROP CONSTRAINT uq_include, ADD CONSTRAINT uq_include UNIQUE (b) INCLUDE (c)",
        "unique",
        "uq_include",
        "include",
    ),
    "no unique": ("ALTER TABLE parents DROP CONSTRAINT uq_parents", "unique", "uq_parents", None),
    "check": (
        "ALTER TABLE parents DROP CONSTRAINT listed, ADD CONSTRAINT listed CHECK (b IN ('x', 'z', '100%'))",
        "check",
        "listed",
        "condition",
    ),
    "check not valid": (
        "ALTER TABLE parents DROP CONSTRAINT paired, "
        "ADD CONSTRAINT paired CHECK (a > 0 AND (c < 7 OR c IS NULL)) NOT VALID",
        "check",
        "paired",
        "not valid",
    ),
    "check not enforced": (
        "ALTER TABLE parents DROP CONSTRAINT paired, "
        "ADD CONSTRAINT paired CHECK (a > 0 AND (c < 7 OR c IS NULL)) NOT ENFORCED",
        "check",
        "paired",
        "not enforced",
    ),
    "no check": ("ALTER TABLE parents DROP CONSTRAINT listed", "check", "listed", None),
    "constraint comment": ("COMMENT ON CONSTRAINT listed ON parents IS 'x'", "check", "listed", "comment"),
    "on delete": (
        "ALTER TABLE children DROP CONSTRAINT children_one_fkey, ADD CONSTRAINT children_one_fkey "
        "FOREIGN KEY (one) REFERENCES parents (c) ON UPDATE RESTRICT ON DELETE RESTRICT",
        "foreign key",
        "children_one_fkey",
        "on delete",
    ),
    "on update": (
        "ALTER TABLE children DROP CONSTRAINT children_one_fkey, ADD CONSTRAINT children_one_fkey "
        "FOREIGN KEY (one) REFERENCES parents (c) ON DELETE CASCADE",
        "foreign key",
        "children_one_fkey",
        "on update",
    ),
    "columns that a key empties": (
        "ALTER TABLE children DROP CONSTRAINT fk_both, ADD CONSTRAINT fk_both FOREIGN KEY (parent_b, parent_a) "
        "REFERENCES parents (b, a) MATCH FULL ON DELETE SET NULL (parent_a)",
        "foreign key",
        "fk_both",
        "on delete",
    ),
    "match": (
        "ALTER TABLE children DROP CONSTRAINT fk_both, "
        "ADD CONSTRAINT fk_both FOREIGN KEY (parent_b, parent_a) REFERENCES parents (b, a)",
        "foreign key",
        "fk_both",
        "match",
    ),
    "target": (
        "ALTER TABLE children DROP CONSTRAINT fk_self, ADD CONSTRAINT fk_self FOREIGN KEY (self_id) "
        "REFERENCES shop.items (id) DEFERRABLE INITIALLY DEFERRED",
        "foreign key",
        "fk_self",
        "target",
    ),
    "key deferrable": (
        "ALTER TABLE children ALTER CONSTRAINT fk_self NOT DEFERRABLE",
        "foreign key",
        "fk_self",
        "deferrable",
    ),
    "no key": ("ALTER TABLE children DROP CONSTRAINT fk_self", "foreign key", "fk_self", None),
    "exclusion": (
        "ALTER TABLE bookings DROP CONSTRAINT no_overlap, "
        "ADD CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, during WITH &&) WHERE (room > 1)",
        "exclusion",
        "no_overlap",
        "definition",
    ),
    "no exclusion": ("ALTER TABLE bookings DROP CONSTRAINT no_overlap", "exclusion", "no_overlap", None),
    "index columns": ("DROP INDEX ix_two; CREATE INDEX ix_two ON indexed (b, a)", "index", "ix_two", "columns"),
    "index order": ("DROP INDEX ix_two; CREATE INDEX ix_two ON indexed (a, b DESC)", "index", "ix_two", "columns"),
    "index nulls": (
        "DROP INDEX ix_order; CREATE INDEX ix_order ON indexed (a DESC, b NULLS FIRST, c DESC)",
        "index",
        "ix_order",
        "columns",
    ),
    "operator class": (
        "DROP INDEX ix_class; CREATE INDEX ix_class ON indexed (b varchar_ops, a)",
        "index",
        "ix_class",
        "columns",
    ),
    "operator class of gin": (
        "DROP INDEX ix_gin; CREATE INDEX ix_gin ON indexed USING gin (d)",
        "index",
        "ix_gin",
        "columns",
    ),
    "index expression": (
        "DROP INDEX ix_lower; CREATE INDEX ix_lower ON indexed (upper(c))",
        "index",
        "ix_lower",
        "columns",
    ),
    "index collation": (
        "DROP INDEX ix_collated; CREATE INDEX ix_collated ON indexed (c COLLATE ucs_basic)",
        "index",
        "ix_collated",
        "columns",
    ),
    "include": (
        "DROP INDEX ix_include; CREATE INDEX ix_include ON indexed (a) INCLUDE (b)",
        "index",
        "ix_include",
        "include",
    ),
    "where": ("DROP INDEX ix_where; CREATE INDEX ix_where ON indexed (b) WHERE a > 6", "index", "ix_where", "where"),
    "index method": ("DROP INDEX ix_hash; CREATE INDEX ix_hash ON indexed (b, a)", "index", "ix_hash", "method"),
    "index with": (
        "DROP INDEX ix_fill; CREATE INDEX ix_fill ON indexed (a) WITH (fillfactor = 51)",
        "index",
        "ix_fill",
        "with",
    ),
    "index unique": (
        "DROP INDEX ux_lower; CREATE INDEX ux_lower ON indexed (lower(b), a)",
        "index",
        "ux_lower",
        "unique",
    ),
    "index nulls distinct": (
        "DROP INDEX ux_nulls; CREATE UNIQUE INDEX ux_nulls ON indexed (\"Mixed\")",
        "index",
        "ux_nulls",
        "nulls not distinct",
    ),
    "no index": ("DROP INDEX ix_two", "index", "ix_two", None),
    "more index": ("CREATE INDEX more ON shop.items (other_id)", "index", "more", None),
    "enumeration value": ("ALTER TYPE shop.state ADD VALUE 'more'", "enumeration", "state", "values"),
    "enumeration order": ("ALTER TYPE level RENAME VALUE 'low' TO 'x'; ALTER TYPE level RENAME VALUE 'high' TO 'low'; "
        "ALTER TYPE level RENAME VALUE 'x' TO 'high'", "enumeration", "level", "values"),
    "enumeration": ("CREATE TYPE stray AS ENUM ('a')", "enumeration", "stray", None),
    "domain": ("ALTER DOMAIN positive DROP NOT NULL", "domain", "positive", "nullable"),
    "domain check": ("ALTER DOMAIN shop.code DROP CONSTRAINT coded", "domain", "code", "checks"),
    "sequence": ("ALTER SEQUENCE tickets INCREMENT BY 6", "sequence", "tickets", "options"),
    "sequence type": ("ALTER SEQUENCE plain AS integer", "sequence", "plain", "type"),
    "no sequence": ("DROP SEQUENCE shop.numbers", "sequence", "numbers", None),
}  # fmt: skip
