"""Models of every kind on MariaDB, and changes of which each is to be found."""

from __future__ import annotations

import enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from tests.harness import corpus_issues


class Level(enum.Enum):
    low = "low"
    high = "high"


#: Every type, by the name of its column.
TYPES: dict[str, Any] = {
    "an_integer": sa.Integer,
    "a_small": sa.SmallInteger,
    "a_big": sa.BigInteger,
    "a_tiny": mysql.TINYINT,
    "a_medium": mysql.MEDIUMINT(unsigned=True),
    "an_unsigned": mysql.INTEGER(unsigned=True),
    "a_zerofill": mysql.INTEGER(display_width=5, zerofill=True),
    "a_width": mysql.INTEGER(display_width=3),
    "a_numeric": sa.Numeric,
    "a_price": sa.Numeric(10, 2),
    "a_decimal": mysql.DECIMAL(12, 4, unsigned=True),
    "a_float": sa.Float,
    "a_float_24": sa.Float(24),
    "a_double": sa.Double,
    "a_float_pair": mysql.FLOAT(7, 3),
    "a_bool": sa.Boolean,
    "a_bit": mysql.BIT(6),
    "a_string": sa.String(40),
    "a_unicode": sa.Unicode(40),
    "a_char": sa.CHAR(3),
    "a_national": mysql.NVARCHAR(20),
    "a_text": sa.Text,
    "a_text_size": sa.Text(300),
    "a_medium_text": mysql.MEDIUMTEXT,
    "a_long_text": mysql.LONGTEXT,
    "a_tiny_text": mysql.TINYTEXT,
    "a_binary": sa.LargeBinary,
    "a_binary_size": sa.LargeBinary(70000),
    "a_fixed_binary": sa.BINARY(16),
    "a_varbinary": sa.VARBINARY(16),
    "a_date": sa.Date,
    "a_time": sa.Time,
    "a_fine_time": mysql.TIME(fsp=3),
    "a_datetime": sa.DateTime,
    "a_fine_datetime": mysql.DATETIME(fsp=6),
    "a_timestamp": mysql.TIMESTAMP(fsp=6),
    "an_interval": sa.Interval,
    "a_year": mysql.YEAR,
    "a_uuid": sa.Uuid,
    "a_plain_uuid": sa.Uuid(native_uuid=False),
    "a_json": sa.JSON,
    "a_pickle": sa.PickleType,
    "an_enum": sa.Enum("low", "mid's", "High", name="level"),
    "a_class_enum": sa.Enum(Level),
    "a_plain_enum": sa.Enum("a", "b", native_enum=False),
    "a_set": mysql.SET("x", "y"),
    "a_latin": mysql.VARCHAR(20, charset="latin1"),
    "a_collated": sa.String(20, collation="utf8mb4_bin"),
    "an_ascii": mysql.TEXT(charset="ascii", collation="ascii_bin"),
    "an_inet": mysql.VARCHAR(45),
}

#: Every form of a default.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "number": (sa.Integer, "7"),
    "negative": (sa.Integer, sa.text("-1")),
    "decimal": (sa.Numeric(5, 2), sa.text("1.50")),
    "text": (sa.String(20), "it's 100%"),
    "empty": (sa.String(20), ""),
    "backslash": (sa.String(20), sa.text(r"'a\\b'")),
    "null": (sa.String(20), sa.text("NULL")),
    "word_null": (sa.String(20), "NULL"),
    "true": (sa.Boolean, sa.true()),
    "false": (sa.Boolean, sa.text("false")),
    "one": (sa.Boolean, "1"),
    "now": (sa.DateTime, sa.func.now()),
    "stamp": (mysql.TIMESTAMP(fsp=6), sa.text("CURRENT_TIMESTAMP(6)")),
    "today": (sa.Date, sa.text("(CURRENT_DATE)")),
    "uuid": (sa.String(36), sa.text("(uuid())")),
    "expression": (sa.String(20), sa.text("(concat('a', 'b'))")),
    "updated": (sa.DateTime, sa.text("CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP")),
    "enum": (sa.Enum("a", "b", name="e"), "a"),
    "json": (sa.JSON, sa.text("('{}')")),
    "bit": (mysql.BIT(3), sa.text("b'101'")),
    "date": (sa.Date, "2000-01-01"),
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
        sa.Column("id", mysql.BIGINT(unsigned=True), primary_key=True, comment="the key; 50% of `it`"),
        sa.Column("code", sa.String(20), unique=True),
        sa.Column("a", sa.Integer, nullable=False),
        sa.Column("b", sa.Integer, nullable=False),
        sa.UniqueConstraint("a", "b", name="uq_parents_ab"),
        comment="it's a table",
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_unicode_ci",
    )
    sa.Table(
        "Mixed Case",
        metadata,
        sa.Column("Key One", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("select", sa.String(20), primary_key=True),
        sa.Column("parent", sa.ForeignKey("parents.id", ondelete="CASCADE", onupdate="RESTRICT"), nullable=False),
        sa.Column("code", sa.ForeignKey("parents.code", ondelete="SET NULL")),
        sa.Column("other", mysql.BIGINT(unsigned=True), sa.ForeignKey("parents.id", name="fk_named")),
        sa.Column("indexed", mysql.BIGINT(unsigned=True), sa.ForeignKey("parents.id"), index=True),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.Integer),
        sa.Column("self", sa.Integer),
        sa.ForeignKeyConstraint(["a", "b"], ["parents.a", "parents.b"], onupdate="CASCADE", name="fk_pair"),
        sa.Index("a_pair", "a", "b"),
        mysql_collate="utf8mb4_unicode_ci",
    )
    checked = sa.Table(
        "checked",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer, sa.CheckConstraint("n >= 0")),
        sa.Column("m", sa.Integer),
        sa.Column("s", sa.String(20)),
        sa.Column("virtual", sa.Integer, sa.Computed("n * 2", persisted=False)),
        sa.Column("stored", sa.String(40), sa.Computed("concat(s, 'x''y')", persisted=True)),
        sa.Column("flag", sa.Boolean(create_constraint=True, name="ck_flag")),
        sa.Column("kind", sa.Enum("a", "b", native_enum=False, create_constraint=True, name="ck_kind")),
        sa.CheckConstraint("n between 1 and 10 OR (m<>5 AND not (s = 'a, (b'))"),
        sa.CheckConstraint("s IN ('x', 'y%')", name="ck_in"),
        sa.CheckConstraint("char_length(s) > 2 and s like '%a\\_%'", name="ck_like"),
    )
    sa.Index("ix_desc", checked.c.n.desc(), checked.c.m)
    sa.Index("ix_both_unique", checked.c.n, checked.c.s, unique=True)
    sa.Index("ix_hash", checked.c.m, mysql_using="hash")
    indexed = sa.Table(
        "indexed",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("body", sa.Text),
        sa.Column("name", sa.String(200), index=True, unique=True),
        sa.Column("twice", sa.Integer, unique=True),
        sa.Column("long_column_of_which_the_index_gets_a_name_that_is_cut", sa.Integer, index=True),
    )
    sa.Index("ix_prefix", indexed.c.body, indexed.c.name, mysql_length={"body": 20, "name": 10})
    sa.Index("ix_elsewhere", indexed.c.id, indexed.c.twice).ddl_if(dialect="postgresql")
    sa.Index("ix_fulltext", indexed.c.body, mysql_prefix="FULLTEXT")
    sa.Index("ix_unique_prefix", indexed.c.name, mysql_length=8, unique=True)
    sa.UniqueConstraint(indexed.c.twice, indexed.c.id, name="uq_twice")
    sa.Table(
        "nodes",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.ForeignKey("nodes.id")),
        sa.Column("leaf_id", sa.ForeignKey("leaves.id", use_alter=True, name="fk_leaf")),
    )
    sa.Table(
        "leaves",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("node_id", sa.ForeignKey("nodes.id")),
    )
    sa.Table("latin", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("s", sa.String(5)),
             mysql_default_charset="latin1", mysql_engine="MyISAM")  # fmt: skip
    sa.Table("keyless", metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.Uuid))
    counter = sa.Sequence("numbers", start=5, increment=2, metadata=metadata)
    sa.Table(
        "numbered",
        metadata,
        sa.Column("id", sa.Integer, counter, server_default=counter.next_value(), primary_key=True),
        sa.Column("n", sa.Integer, server_default=counter.next_value()),
    )
    sa.Table("identified", metadata, sa.Column("id", sa.Integer, sa.Identity(start=3), primary_key=True))
    corpus_issues.add(metadata, "mariadb")
    return metadata


def small() -> sa.MetaData:
    """Models of which one thing at a time is changed in the database."""
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
        sa.Column("n", sa.Integer, server_default="7"),
        sa.Column("level", sa.Enum("low", "high", name="level")),
        sa.Column("data", sa.JSON),
        sa.Column("at", sa.DateTime, server_default=sa.func.now()),
        sa.Column("twice", sa.Integer, sa.Computed("n * 2", persisted=False)),
        sa.Column("parent_id", sa.ForeignKey("parents.id", name="fk_parent")),
        sa.Column("told", sa.String(20), comment="told"),
        sa.CheckConstraint("n > 5", name="ck_n"),
        sa.UniqueConstraint("name", "n", name="uq_name"),
        sa.Index("ix_n", "n", "told"),
        comment="people",
    )
    sa.Index("ix_prefix", table.c.told, mysql_length=10)
    sa.Sequence("numbers", start=5, metadata=metadata)
    return metadata


#: What is done to the database, and what is found: who has it, kind, path, facets.
MUTATIONS: dict[str, tuple[str, list[tuple[str, str, str, list[str]]]]] = {
    "type": ("ALTER TABLE users MODIFY n BIGINT DEFAULT 7", [("both", "column", "users.n", ["type"])]),
    "length": ("ALTER TABLE users MODIFY name VARCHAR(41) NOT NULL", [("both", "column", "users.name", ["type"])]),
    "unsigned": ("ALTER TABLE users MODIFY n INT UNSIGNED DEFAULT 7", [("both", "column", "users.n", ["type"])]),
    "enum order": ("ALTER TABLE users MODIFY level ENUM('high', 'low')", [("both", "column", "users.level", ["type"])]),
    "enum case": ("ALTER TABLE users MODIFY level ENUM('low', 'High')", [("both", "column", "users.level", ["type"])]),
    "json": (
        "ALTER TABLE users MODIFY data LONGTEXT COLLATE utf8mb4_bin",
        [("both", "column", "users.data", ["type", "collation"])],
    ),
    "nullable": ("ALTER TABLE users MODIFY name VARCHAR(40)", [("both", "column", "users.name", ["nullable"])]),
    "default": ("ALTER TABLE users ALTER n SET DEFAULT 8", [("both", "column", "users.n", ["default"])]),
    "no default": ("ALTER TABLE users ALTER n DROP DEFAULT", [("both", "column", "users.n", ["default"])]),
    "on update": (
        "ALTER TABLE users MODIFY at DATETIME DEFAULT NOW() ON UPDATE NOW()",
        [("both", "column", "users.at", ["on update"])],
    ),
    "collation": (
        "ALTER TABLE users MODIFY name VARCHAR(40) COLLATE utf8mb4_bin NOT NULL",
        [("both", "column", "users.name", ["collation"])],
    ),
    "comment": (
        "ALTER TABLE users MODIFY told VARCHAR(20) COMMENT 'said'",
        [("both", "column", "users.told", ["comment"])],
    ),
    "no comment": ("ALTER TABLE users MODIFY told VARCHAR(20)", [("both", "column", "users.told", ["comment"])]),
    "invisible": (
        "ALTER TABLE users MODIFY told VARCHAR(20) INVISIBLE COMMENT 'told'",
        [("both", "column", "users.told", ["invisible"])],
    ),
    "auto increment": ("ALTER TABLE users MODIFY id INT NOT NULL", [("both", "column", "users.id", ["autoincrement"])]),
    "computed": (
        "ALTER TABLE users DROP twice, ADD twice INT AS (n * 3)",
        [("both", "column", "users.twice", ["computed"])],
    ),
    "stored": (
        "ALTER TABLE users DROP twice, ADD twice INT AS (n * 2) STORED",
        [("both", "column", "users.twice", ["computed"])],
    ),
    "no column": ("ALTER TABLE users DROP data", [("models", "column", "users.data", [])]),
    "more": ("ALTER TABLE users ADD fax INT", [("database", "column", "users.fax", [])]),
    "no check": ("ALTER TABLE users DROP CONSTRAINT ck_n", [("models", "check", "users.ck_n", [])]),
    "check": (
        "ALTER TABLE users DROP CONSTRAINT ck_n, ADD CONSTRAINT ck_n CHECK (n > 6)",
        [("both", "check", "users.ck_n", ["condition"])],
    ),
    "check of a column": (
        "ALTER TABLE users MODIFY n INT DEFAULT 7 CHECK (n < 9)",
        [("database", "check", "users", [])],
    ),
    "a check for JSON": (
        "ALTER TABLE users ADD CONSTRAINT ck_json CHECK (json_valid(told))",
        [("database", "check", "users.ck_json", [])],
    ),
    "no unique": ("ALTER TABLE users DROP INDEX uq_name", [("models", "unique", "users.uq_name", [])]),
    "unique": (
        "ALTER TABLE users DROP INDEX uq_name, ADD UNIQUE uq_name (n, name)",
        [("both", "unique", "users.uq_name", ["columns"])],
    ),
    "no index": ("ALTER TABLE users DROP INDEX ix_n", [("models", "index", "users.ix_n", [])]),
    "index order": (
        "ALTER TABLE users DROP INDEX ix_n, ADD INDEX ix_n (n DESC, told)",
        [("both", "index", "users.ix_n", ["columns"])],
    ),
    "prefix": (
        "ALTER TABLE users DROP INDEX ix_prefix, ADD INDEX ix_prefix (told(9))",
        [("both", "index", "users.ix_prefix", ["columns"])],
    ),
    "fulltext": (
        "ALTER TABLE users DROP INDEX ix_prefix, ADD FULLTEXT INDEX ix_prefix (told)",
        [("both", "index", "users.ix_prefix", ["columns", "kind"])],
    ),
    "ignored": ("ALTER TABLE users ALTER INDEX ix_n IGNORED", [("both", "index", "users.ix_n", ["ignored"])]),
    "no key": ("ALTER TABLE users DROP FOREIGN KEY fk_parent", [("models", "foreign key", "users.fk_parent", [])]),
    "on delete": (
        "ALTER TABLE users DROP FOREIGN KEY fk_parent; ALTER TABLE users ADD CONSTRAINT fk_parent "
        "FOREIGN KEY (parent_id) REFERENCES parents (id) ON DELETE CASCADE",
        [("both", "foreign key", "users.fk_parent", ["on delete"])],
    ),
    "target": (
        "ALTER TABLE users DROP FOREIGN KEY fk_parent; ALTER TABLE users ADD CONSTRAINT fk_parent "
        "FOREIGN KEY (parent_id) REFERENCES parents (other_id)",
        [("both", "foreign key", "users.fk_parent", ["target columns"])],
    ),
    "primary key": (
        "ALTER TABLE users DROP PRIMARY KEY, ADD PRIMARY KEY (id, name)",
        [("both", "primary key", "users", ["columns"])],
    ),
    "engine": (
        "ALTER TABLE users DROP FOREIGN KEY fk_parent; ALTER TABLE users ENGINE = Aria",
        [("both", "table", "users", ["engine"]), ("models", "foreign key", "users.fk_parent", [])],
    ),
    "table collation": (
        "ALTER TABLE parents COLLATE utf8mb4_unicode_ci",
        [("both", "table", "parents", ["collation"])],
    ),
    "table comment": ("ALTER TABLE users COMMENT 'persons'", [("both", "table", "users", ["comment"])]),
    "versioned": (
        "ALTER TABLE parents ADD SYSTEM VERSIONING",
        [("both", "table", "parents", ["system versioned"])],
    ),
    "sequence": ("ALTER SEQUENCE numbers INCREMENT 3", [("both", "sequence", "numbers", ["increment"])]),
    "no sequence": ("DROP SEQUENCE numbers", [("models", "sequence", "numbers", [])]),
    "table": ("CREATE TABLE stray (id INT)", [("database", "table", "stray", [])]),
    # What the server does by itself, or what changes nothing, is no difference.
    "a view": ("CREATE VIEW seen AS SELECT id FROM users", []),
    "the index of a key": (
        "ALTER TABLE users DROP FOREIGN KEY fk_parent; ALTER TABLE users DROP INDEX fk_parent; "
        "ALTER TABLE users ADD CONSTRAINT another FOREIGN KEY (parent_id) REFERENCES parents (id) ON DELETE RESTRICT",
        [],
    ),
    "a longer index for a key": (
        "ALTER TABLE users ADD INDEX ix_longer (parent_id, n)",  # it drops its own
        [("database", "index", "users.ix_longer", [])],
    ),
    "another name": ("ALTER TABLE users RENAME INDEX ix_n TO idx_n", []),
    "digits": ("ALTER TABLE users MODIFY n INT(5) DEFAULT 7", []),
    "rows": ("INSERT INTO users (name) VALUES ('Ann')", []),
}
