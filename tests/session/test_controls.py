"""Which SQL begins or ends a transaction, also behind another statement."""

from __future__ import annotations

import pytest

from aurum_harmony.db_smart.session.controls import controls_transaction

EVERY = ("postgresql", "mysql", "sqlite")
CONTROLS = [
    (EVERY, "UPDATE t SET a = 1; COMMIT"),
    (EVERY, "UPDATE t SET a = 'it''s;';commit;"),
    (EVERY, 'UPDATE t SET "a;" = 1; /* and */ -- so\n ROLLBACK; SELECT 1'),
    (EVERY, ";; BEGIN"),
    (EVERY, "CREATE TABLE t (a int); COMMIT"),
    (EVERY, "SELECT 1; ROLLBACK AND CHAIN"),
    (("postgresql",), "SELECT $$ a; b $$; COMMIT"),
    (("postgresql",), r"SELECT E'it\'s'; COMMIT"),
    (("postgresql",), r"SELECT 'a\'; COMMIT"),
    (("postgresql",), "SELECT $1; COMMIT"),
    (("postgresql",), "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $f$ SELECT 1; $f$; COMMIT"),
    (("mysql",), r"""UPDATE t SET a = 'it\'s', b = "\"" # so;"""
     "\n; COMMIT"),
    (("mysql",), "SELECT 5--3; COMMIT"),
    (("sqlite",), "UPDATE [t;] SET a = 1; END"),
]  # fmt: skip
ALLOWED = [
    (EVERY, "UPDATE t SET a = '; COMMIT'"),
    (EVERY, "UPDATE t SET a = 'it''s; COMMIT'; SELECT 1"),
    (EVERY, "SELECT 1 -- ; COMMIT"),
    (EVERY, "SELECT 1 /* ; COMMIT */; SELECT CASE 1 WHEN 1 THEN 2 END; SAVEPOINT a; ROLLBACK TO SAVEPOINT a"),
    (EVERY, 'UPDATE t SET "; COMMIT" = 1'),
    (("postgresql",), "DO $do$ BEGIN PERFORM 1; COMMIT; END $do$"),
    (("postgresql",), r"UPDATE t SET a = E'it\'s; COMMIT'"),
    (("postgresql",), "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END"),
    (("postgresql",), "CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN NULL; END; $$;"),
    (("mysql",), r"UPDATE t SET a = 'it\'s; COMMIT', b = `; COMMIT`"),
    (("mysql",), "CREATE DEFINER=CURRENT_USER() PROCEDURE p() BEGIN UPDATE t SET a = 1; COMMIT; END"),
    (("mysql",), "BEGIN NOT ATOMIC UPDATE t SET a = 1; END"),
    (("mysql", "sqlite"), "CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW BEGIN UPDATE t SET a = 1; END"),
    (("sqlite",), "UPDATE [; COMMIT] SET a = 1"),
]


def cases(texts: list[tuple[tuple[str, ...], str]]) -> list[tuple[str, str]]:
    return [(dialect, text) for dialects, text in texts for dialect in dialects]


@pytest.mark.parametrize(("dialect", "sql"), cases(CONTROLS))
def test_control_is_seen(dialect: str, sql: str) -> None:
    assert controls_transaction(sql, dialect)


@pytest.mark.parametrize(("dialect", "sql"), cases(ALLOWED))
def test_what_only_looks_like_it_is_not(dialect: str, sql: str) -> None:
    assert not controls_transaction(sql, dialect)
