"""What Alembic's comparison gets wrong, by the number of its issue: a model for each, where a database can show it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.schema import conv

_ALL = ("postgresql", "mariadb", "sqlite")
_POSTGRESQL = ("postgresql",)
_MARIADB = ("mariadb",)
_NOT_MARIADB = ("postgresql", "sqlite")  # MariaDB has no index on an expression
#: The databases that have a model of an issue; or why none has. 52 and 115 are those of alembic-postgresql-enum.
WHERE: dict[int, tuple[str, ...] | str] = {
    52: _POSTGRESQL,  # elsewhere an enumeration is no thing with a name and a schema
    115: _POSTGRESQL,
    276: _MARIADB,  # elsewhere a unique constraint and a unique index are two things
    278: _POSTGRESQL,
    461: _POSTGRESQL,  # nobody else has EXCLUDE
    478: _POSTGRESQL,
    508: _ALL,
    523: _NOT_MARIADB,
    553: _ALL,
    605: _ALL,
    647: ("postgresql", "mariadb"),  # SQLite takes names of any length
    654: _ALL,
    671: _ALL,
    750: _POSTGRESQL,  # nobody else has full text by an expression
    754: _POSTGRESQL,
    779: _MARIADB,  # an ENUM within its column
    796: _POSTGRESQL,
    821: _POSTGRESQL,  # nobody else has the options of an identity
    826: _ALL,
    947: _ALL,
    1098: _POSTGRESQL,  # nobody else has operator classes
    1152: "SQL Server's getdate(), which it shows in parentheses. Defaults in parentheses: the corpora's 'defaults'.",
    1165: _NOT_MARIADB,
    1177: "SQL Server shows a default without its blanks. Quotes within defaults: the corpora's 'defaults'.",
    1203: _ALL,
    1212: _NOT_MARIADB,
    1240: _ALL,
    1254: _POSTGRESQL,
    1270: _POSTGRESQL,
    1297: _ALL,
    1315: _POSTGRESQL,  # SQLite has no schemas; MariaDB's are databases: test_other_schemas
    1321: _POSTGRESQL,
    1327: _POSTGRESQL,
    1454: _POSTGRESQL,  # nobody else numbers by a sequence that a column owns
    1507: ("postgresql", "mariadb"),  # SQLite has no sequences
    1745: _MARIADB,
    1777: _ALL,
    1842: _NOT_MARIADB,  # MariaDB takes no name for a check of a column
}
MakeTable = Callable[..., sa.Table]
Changed = Callable[[int, Any, Any], Any]
#: Those that are of a change which nobody sees, or sees in a wrong way: who has what, in the order of their paths.
CHANGED: dict[int, list[tuple[str, str, str]]] = {
    115: [
        ("both", "column", "issue_115.kind"),
        ("models", "enumeration", "kind_115"),
        ("database", "enumeration", "kind_115_before"),
    ],
    276: [("database", "unique", "issue_276.uq_276"), ("database", "unique", "issue_276.ux_276")],
    278: [("both", "enumeration", "kind_278")],
    508: [("both", "check", "issue_508.ck_508")],
    553: [("both", "column", "issue_553.flag")],
    779: [("both", "column", "issue_779.kind")],
    821: [("both", "column", "issue_821.n")],
    826: [("both", "check", "issue_826.ck_826")],
    1203: [("both", "column", "issue_1203.created")],
    1212: [("database", "index", "issue_1212.ix_1212")],
    1315: [
        ("models", "unique", "shop.issue_1315.issue_1315_a_key"),
        ("models", "unique", "shop.issue_1315.uq_1315"),
    ],
    1745: [("both", "column", "issue_1745.kind"), ("both", "column", "issue_1745.other")],
}


def models(dialect: str, number: int, *, before: bool = False) -> sa.MetaData:
    """The tables of one issue alone.

    :param before: as they were before the change that it is about.
    """
    metadata = sa.MetaData()
    add(metadata, dialect, [number], {number} if before else ())
    return metadata


def add(metadata: sa.MetaData, dialect: str, numbers: Collection[int] = WHERE, before: Collection[int] = ()) -> None:
    """Add the tables of the issues that a database can show.

    :param before: the issues whose tables are to be as they were before the change.
    """

    def place(number: int) -> sa.MetaData:
        return metadata if number in numbers and dialect in WHERE[number] else sa.MetaData()

    def table(number: int, *parts: Any, also: str = "", **options: Any) -> sa.Table:
        name, key = f"issue_{number}{also}", sa.Column("id", sa.Integer, primary_key=True)
        return sa.Table(name, place(number), key, *parts, **options)

    def changed(number: int, then: Any, now: Any) -> Any:
        return then if number in before else now

    _types(table, changed, dialect)
    _enumerations(table, changed, place)
    _defaults(table, changed, place, dialect)
    _constraints(table, changed)
    _indexes(table, changed)


def _types(table: MakeTable, changed: Changed, dialect: str) -> None:
    # alembic#605: a type in another spelling, such as a Boolean that is TINYINT(1)
    table(605, sa.Column("a", sa.Boolean), sa.Column("b", sa.CHAR()), sa.Column("c", sa.DECIMAL(5, 0)))
    # alembic#671: a character set and a collation beside the type
    collation = {"postgresql": "C", "mariadb": "utf8mb4_bin", "sqlite": "NOCASE"}[dialect]
    of_server = mysql.VARCHAR(200, charset="utf8mb4") if dialect == "mariadb" else sa.VARCHAR(200)
    table(
        671,
        sa.Column("a", of_server),
        sa.Column("b", sa.Unicode(200)),
        sa.Column("c", sa.String(255, collation=collation)),
        sa.Column("d", sa.Text(collation=collation)),
    )
    # alembic#779, alembic#1745: values of an ENUM that come, go, or change places
    table(779, sa.Column("kind", sa.Enum(*changed(779, ("a", "b"), ("a", "b", "c")), name="kind_779")))
    table(
        1745,
        sa.Column("kind", sa.Enum(*changed(1745, ("a", "b"), ("b", "a")))),
        sa.Column("other", sa.Enum(*changed(1745, ("a", "b"), ("a",)))),
    )


def _enumerations(table: MakeTable, changed: Changed, place: Callable[[int], sa.MetaData]) -> None:
    # alembic#278: a value that comes
    table(278, sa.Column("kind", sa.Enum(*changed(278, ("b", "a"), ("b", "c", "a")), name="kind_278")))
    # alembic#754: a default of the type
    table(754, sa.Column("kind", sa.Enum("b", "a", name="kind_754"), server_default="a", nullable=False))
    # alembic#796: a type that something else makes
    made = sa.Enum("b", "a", name="kind_796", metadata=place(796))
    table(796, sa.Column("kind", made), sa.Column("other", pg.ENUM("b", "a", name="kind_796", create_type=False)))
    # alembic#1254: a type of two tables, which is there already for the second one
    for also in ("", "_other"):
        table(1254, sa.Column("kind", sa.Enum("b", "a", name="kind_1254")), also=also)
    # alembic-postgresql-enum#52: a type in another schema, altered each time
    kind = sa.Enum("b", "a", name="kind_52", schema="shop")
    table(52, sa.Column("kind", kind, server_default="b"), schema="shop")
    # alembic-postgresql-enum#115: a type with another name
    table(115, sa.Column("kind", sa.Enum("b", "a", name=changed(115, "kind_115_before", "kind_115"))))


def _defaults(
    table: MakeTable,
    changed: Changed,
    place: Callable[[int], sa.MetaData],
    dialect: str,
) -> None:
    # alembic#553: a default where none was
    table(553, sa.Column("flag", sa.Integer, nullable=False, server_default=changed(553, None, "0")))
    # alembic#1777: a Boolean's true and false, which are 1 and 0
    table(
        1777,
        sa.Column("yes", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("no", sa.Boolean, server_default=sa.false(), nullable=False),
    )
    # alembic#1203: a default that is another function; what only the application does on UPDATE is no part of it
    other = {
        "postgresql": "clock_timestamp()",
        "mariadb": "CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP",
        "sqlite": "(datetime('now', 'localtime'))",
    }[dialect]
    table(
        1203,
        sa.Column("created", sa.DateTime, server_default=changed(1203, sa.func.now(), sa.text(other))),
        sa.Column("updated", sa.DateTime, onupdate=changed(1203, None, sa.func.now())),
    )
    # alembic#1454: a key that is a UUID with a default, beside keys that are numbered by a sequence
    uuid = sa.Column("uuid", sa.Uuid, server_default=sa.func.gen_random_uuid(), unique=True, index=True)
    table(1454, uuid)
    table(1454, sa.Column("one", sa.ForeignKey("issue_1454.id")), also="_other")
    # alembic#1507: the next number of a sequence, with or without ::regclass
    sequence = sa.Sequence("issue_1507_seq", metadata=place(1507))
    table(1507, sa.Column("n", sa.Integer, sequence, server_default=sequence.next_value()))
    # alembic#821: the bounds of an identity
    highest = changed(821, 98, 99)
    table(821, sa.Column("n", sa.Integer, sa.Identity(minvalue=-5, start=-5, maxvalue=highest, cache=3)))


def _constraints(table: MakeTable, changed: Changed) -> None:
    # alembic#647: a name of a convention that is too long, and is cut
    table(647, sa.Column("a", sa.Integer), sa.UniqueConstraint("a", name=conv("uq_issue_647_" + "long_" * 12)))
    # alembic#654: a name with capital letters
    table(654, sa.Column("a", sa.Integer), sa.UniqueConstraint("a", name="UQ_Issue_654"))
    # alembic#276: what is unique goes, which MariaDB shows as a constraint and as an index
    one = table(276, sa.Column("a", sa.Integer), sa.Column("b", sa.Integer))
    if changed(276, True, False):
        sa.Index("ux_276", one.c.b, unique=True)
        one.append_constraint(sa.UniqueConstraint("a", name="uq_276"))
    # alembic#1240: unique columns in another order than that of their names, one of them a foreign key with an index
    table(1240, also="_contact")
    table(
        1240,
        sa.Column("device_name", sa.String(255), nullable=False),
        sa.Column("contact_id", sa.ForeignKey("issue_1240_contact.id", ondelete="RESTRICT"), index=True),
        sa.UniqueConstraint("device_name", "contact_id"),
    )
    # alembic#1297: the same of three columns, of which one has another name in the class
    table(1297, also="_base")
    table(
        1297,
        sa.Column("slug", sa.String(250), nullable=False),
        sa.Column("code", sa.String(2), nullable=False),
        sa.Column("base_id", sa.ForeignKey("issue_1297_base.id"), nullable=False),
        sa.Column("is_published", sa.Boolean, key="published"),
        sa.UniqueConstraint("slug", "base_id", "code"),
    )
    # alembic#1315: what is unique in another schema
    one = table(1315, sa.Column("a", sa.Integer), schema="shop")
    if changed(1315, False, True):
        one.append_constraint(sa.UniqueConstraint("a"))
        one.append_constraint(sa.UniqueConstraint("a", "id", name="uq_1315"))
    # alembic#947: a foreign key to a unique index that is no constraint
    one = table(947, sa.Column("code", sa.String(50), nullable=False))
    sa.Index("ux_947", one.c.code, unique=True)
    table(947, sa.Column("code", sa.ForeignKey("issue_947.code"), nullable=False), also="_side")
    # alembic#508: the text of a check
    condition = changed(508, "a > 0 AND a <> 7", "a > 1 AND a <> 7")
    table(508, sa.Column("a", sa.Integer), sa.CheckConstraint(condition, name="ck_508"), sa.CheckConstraint("a < 99"))
    # alembic#1842: a check with a name, of a column
    table(1842, sa.Column("a", sa.Integer, sa.CheckConstraint("a BETWEEN 1 AND 9", name="ck_1842")))
    # alembic#826: a value no longer than the others comes to an enumeration that is a text with a check
    values = changed(826, ("x", "yy"), ("x", "yy", "z"))
    table(826, sa.Column("kind", sa.Enum(*values, native_enum=False, create_constraint=True, name="ck_826")))
    # alembic#461: the index that EXCLUDE makes
    table(461, sa.Column("r", pg.INT4RANGE), pg.ExcludeConstraint(("r", "&&")))
    # alembic#478: a column with capital letters in EXCLUDE
    table(
        478, sa.Column("During", pg.DATERANGE), pg.ExcludeConstraint(("During", "&&"), name="ex_478", deferrable=True)
    )


def _indexes(table: MakeTable, changed: Changed) -> None:
    # alembic#523, alembic#1165: an index on an expression, and with a condition
    one = table(523, sa.Column("name", sa.String(20)))
    sa.Index("ix_523", sa.func.lower(one.c.name))
    one = table(1165, sa.Column("name", sa.String(20)), sa.Column("n", sa.Integer))
    where = one.c.n.is_(None)
    sa.Index("ix_1165", sa.func.lower(one.c.name), one.c.n.desc(), postgresql_where=where, sqlite_where=where)
    # alembic#1212: an index on an expression goes
    one = table(1212, sa.Column("network_id", sa.Integer), sa.Column("address", sa.String(20)))
    if changed(1212, True, False):
        sa.Index("ix_1212", one.c.network_id, sa.func.lower(one.c.address), unique=True)
    # alembic#1270: functions of functions, and their order
    one = table(1270, sa.Column("at", sa.DateTime), sa.Column("first", sa.Text), sa.Column("last", sa.Text))
    sa.Index("ix_1270", sa.func.date_trunc("day", one.c.at).desc())
    sa.Index("ix_1270_2", sa.func.coalesce(one.c.first, "").concat(one.c.last))
    # alembic#1321: casts
    one = table(1321, sa.Column("n", sa.Integer), sa.Column("s", sa.String(9)), sa.Column("document", pg.JSONB))
    sa.Index("ix_1321", sa.cast(one.c.n, sa.BigInteger), sa.text("((s)::text || 'x'::text)"))
    sa.Index("ix_1321_2", sa.cast(one.c.document["key"].astext, sa.Integer))
    # alembic#1327: an operator class behind an expression
    of_text = sa.text("(document->'identifier') jsonb_path_ops")
    one = table(1327, sa.Column("document", pg.JSONB), sa.Index("ix_1327", of_text, postgresql_using="gin"))
    sa.Index("ix_1327_2", one.c.document["a"]["b"], postgresql_using="gin")
    # alembic#1098: an operator class behind a column
    table(
        1098,
        sa.Column("name", sa.Text),
        sa.Column("address", pg.INET),
        sa.Index("ix_1098", sa.text("name text_pattern_ops"), sa.text("lower(name) text_pattern_ops DESC")),
        sa.Index("ix_1098_2", sa.text("address inet_ops"), postgresql_using="gist"),
    )
    # alembic#750: the words of a text
    one = table(750, sa.Column("name", sa.Text))
    words = sa.func.to_tsvector(sa.literal_column("'english'"), one.c.name)
    sa.Index("ix_750", words, postgresql_using="gin")
