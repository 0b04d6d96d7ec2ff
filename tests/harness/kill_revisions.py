"""Kill processes that apply revisions of Alembic: ``python -m tests.harness.kill_revisions URL [--every N]``.

For each directory of revisions, each round begins with an empty database. A forked process boots and kills itself by
SIGKILL at its n-th statement boundary (before a statement, before a commit) from the first revision on, for
every n until a boot gets through. One more boot must then give what an undisturbed one gives: schema, rows, version,
history. Beside it, as a figure to compare with, the same directories under a plain ``flask db upgrade``, killed
likewise, with one more upgrade: how many databases that does not mend. Each of these is then killed in the same place
again, and finished by ``flask db-smart migrate --resume``, or refused without a change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import flask_migrate  # type: ignore[import-untyped]
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import make_url

from aurum_harmony.db_smart.session import environment
from aurum_harmony.db_smart.signals import migration_started
from tests.harness.alembic_project import AlembicProject
from tests.harness.crash import ended, forked, run_out
from tests.harness.saved import empty

DDL = [
    """
    op.create_table("users", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))
    op.create_index("ix_users_name", "users", ["name"])
    op.create_table("spare", sa.Column("id", sa.Integer, primary_key=True))
    """,
    """
    op.add_column("users", sa.Column("age", sa.Integer, server_default="7"))
    op.add_column("users", sa.Column("note", sa.Text))
    op.rename_table("spare", "renamed")
    op.drop_index("ix_users_name", "users")
    op.create_index("ix_users_age", "users", ["age"], unique=False)
    op.drop_column("users", "note")
    """,
    """
    op.drop_table("renamed")
    op.create_table(
        "pets", sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner", sa.Integer, sa.ForeignKey("users.id", name="fk_owner"), index=True),
    )
    """,
]
DATA = [
    """
    table = op.create_table(
        "counters", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("n", sa.Integer),
        sa.Column("old", sa.String(20)),
    )
    op.bulk_insert(table, [{"id": 1, "n": 0, "old": "a"}, {"id": 2, "n": 0, "old": "b"}])
    op.execute("UPDATE counters SET n = n + 1")
    """,
    """
    from sqlalchemy.orm import Session, declarative_base
    bind = op.get_bind()
    Base = declarative_base()
    class Counter(Base):
        __tablename__ = "counters"
        id = sa.Column(sa.Integer, primary_key=True)
        n = sa.Column(sa.Integer)
    op.add_column("counters", sa.Column("new", sa.String(40)))
    bind.execute(sa.text("INSERT INTO counters (id, n, old) VALUES (:id, 5, :old)"), {"id": 3, "old": "c"})
    session = Session(bind=bind)
    for counter in session.query(Counter).order_by(Counter.id):
        counter.n = counter.n + 1
    session.commit()
    before = bind.execute(sa.text("SELECT id, old FROM counters ORDER BY id")).all()
    with op.batch_alter_table("counters") as batch:
        batch.drop_column("old")
    for id_, old in before:
        bind.execute(sa.text("UPDATE counters SET new = :new WHERE id = :id"), {"new": "was " + old, "id": id_})
    op.execute("UPDATE counters SET n = n + 1")
    """,
    """
    bind = op.get_bind()
    if "seen" not in [column["name"] for column in sa.inspect(bind).get_columns("counters")]:
        op.add_column("counters", sa.Column("seen", sa.Integer, server_default="0"))
        op.execute("UPDATE counters SET seen = seen + 1")
    op.execute(sa.text("UPDATE counters SET n = n + :more").bindparams(more=10))
    op.create_index("ix_counters_n", "counters", ["n"])
    """,
]
BATCH = [
    """
    parent = op.create_table(
        "parent", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("name", sa.String(20)),
        sa.Column("fax", sa.String(20)),
    )
    child = op.create_table(
        "child", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("parent_id", sa.Integer, sa.ForeignKey("parent.id", name="fk_parent", ondelete="CASCADE")),
    )
    op.bulk_insert(parent, [{"id": n, "name": "p%d" % n, "fax": "x"} for n in range(1, 4)])
    op.bulk_insert(child, [{"id": n, "parent_id": n} for n in range(1, 4)])
    """,
    """
    with op.batch_alter_table("parent") as batch:
        batch.add_column(sa.Column("age", sa.Integer, nullable=False, server_default="1"))
        batch.alter_column("name", existing_type=sa.String(20), nullable=False)
        batch.create_unique_constraint("uq_name", ["name"])
        batch.drop_column("fax")
    op.execute("UPDATE parent SET age = age + 1")
    with op.batch_alter_table("parent") as batch:
        batch.alter_column("age", existing_type=sa.Integer, new_column_name="years", existing_nullable=False,
                           existing_server_default="1")
    """,
]
RAW = [
    '''
    op.execute("""
        CREATE TABLE raw (
            id INTEGER NOT NULL PRIMARY KEY, -- a number; and more
            n INTEGER
        )
    """)
    op.execute("INSERT INTO raw (id, n) VALUES (1, 0)")
    op.execute("ALTER TABLE raw ADD COLUMN a VARCHAR(20)")
    op.execute("UPDATE raw SET n = n + 1, a = 'x;y'")
    op.execute("CREATE INDEX ix_raw_n ON raw (n)")
    op.get_bind().exec_driver_sql("ALTER TABLE raw RENAME COLUMN a TO b")
    op.execute("INSERT INTO raw (id, n) VALUES (2, 0)")
    ''',
    """
    op.execute("CREATE TABLE other (id INTEGER NOT NULL PRIMARY KEY, n INTEGER)")
    op.execute("INSERT INTO other (id, n) SELECT id, n FROM raw")
    op.execute("ALTER TABLE raw RENAME TO between_two")
    op.execute("ALTER TABLE other RENAME TO raw")
    op.execute("ALTER TABLE between_two RENAME TO other")
    op.execute("UPDATE raw SET n = n + 100")
    op.execute("ALTER TABLE raw ADD CHECK (n < 1000)" if op.get_bind().dialect.name != "sqlite" else "SELECT 1")
    op.execute("UPDATE raw SET n = n + 100")
    """,
]
MULTI = [
    """
    op.execute("CREATE TABLE many (id INTEGER NOT NULL PRIMARY KEY, n INTEGER); CREATE INDEX ix_many ON many (n); "
               "INSERT INTO many (id, n) VALUES (1, 0); INSERT INTO many (id, n) VALUES (2, 0)")
    op.execute("UPDATE many SET n = n + 1; ALTER TABLE many ADD COLUMN a VARCHAR(9) DEFAULT ';'; "
               "UPDATE many SET n = n + 1;")
    op.execute("UPDATE many SET n = n + 1; DROP INDEX ix_many" +
               (" ON many" if op.get_bind().dialect.name != "postgresql" else "") + "; UPDATE many SET n = n + 1")
    """,
]
AUTOCOMMIT = [
    """
    table = op.create_table(
        "things", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("n", sa.Integer)
    )
    op.bulk_insert(table, [{"id": 1, "n": 0}])
    """,
    """
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.execute("UPDATE things SET n = n + 1")
    op.add_column("things", sa.Column("a", sa.Integer))
    with op.get_context().autocommit_block():
        op.execute("UPDATE things SET n = n + 1")
        op.create_index("ix_things_n", "things", ["n"], **({"postgresql_concurrently": True} if postgresql else {}))
        op.execute("INSERT INTO things (id, n) VALUES (2, 0)")
        op.create_table("inside", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("UPDATE things SET n = n + 1")
    op.add_column("things", sa.Column("b", sa.Integer))
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX %s ix_things_a ON things (a)" % ("CONCURRENTLY IF NOT EXISTS" * postgresql))
    op.bulk_insert(sa.table("things", sa.column("id"), sa.column("n")), [{"id": 3, "n": 0}])
    """,
    """
    op.execute("UPDATE things SET n = n + 1")
    with op.get_context().autocommit_block():
        op.drop_index("ix_things_n", "things",
                      **({"postgresql_concurrently": True} if op.get_bind().dialect.name == "postgresql" else {}))
    """,
]
COMMITS = [
    """
    op.create_table(
        "things", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("n", sa.Integer)
    )
    op.execute("INSERT INTO things (id, n) VALUES (1, 0)")
    op.get_bind().commit()
    op.execute("UPDATE things SET n = n + 1")
    """,
    """
    op.execute("UPDATE things SET n = n + 1")
    op.add_column("things", sa.Column("a", sa.Integer))
    op.execute("COMMIT")
    op.execute("UPDATE things SET n = n + 1")
    op.add_column("things", sa.Column("b", sa.Integer))
    """,
]
DIRECTORIES = {"ddl": DDL, "data": DATA, "batch": BATCH, "raw": RAW, "multi": MULTI, "autocommit": AUTOCOMMIT}
DIRECTORIES["commits"] = COMMITS


#: What follows the end of one statement is the begin of the next one, or a commit, without a change of the database.
EVENTS = ("before_cursor_execute", "commit")


def count_boundaries(die_at: int) -> Any:
    """Count the statement boundaries from now on; die at that of a number."""
    count = 0

    def boundary(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for event in EVENTS:
        sa.event.listen(sa.Engine, event, boundary)
    return lambda: count


def boot(project: AlembicProject, die_at: int = 0) -> None:
    """Boot, and die at a boundary after the first revision has begun."""

    def begin(*_: Any, **__: Any) -> None:
        if die_at and not begun:
            begun.append(count_boundaries(die_at))

    begun: list[Any] = []
    migration_started.connect(begin)
    app, smart = project.app(DB_SMART_LEASE_SECONDS=1)
    smart.boot(app)


def plain_upgrade(project: AlembicProject, die_at: int = 0) -> None:
    """What ``flask db upgrade`` does; dies at a boundary."""
    app = Flask("plain", instance_path=str(project.instance))
    app.config["SQLALCHEMY_DATABASE_URI"] = project.url
    db = SQLAlchemy(app)
    flask_migrate.Migrate(app, db, str(project.alembic))
    with app.app_context():
        if die_at:
            count_boundaries(die_at)
        with environment.logging_kept(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            flask_migrate.upgrade()


#: Exit code of a process whose rescue was refused in words.
TOLD = 3


def rescue(project: AlembicProject) -> None:
    """``flask db-smart migrate --resume``."""
    result = project.run("migrate", "--resume", "--yes", DB_SMART_SNAPSHOTS=0)
    if result.exit_code == 1 and "cannot be finished by itself" in result.output:
        print(f"    {result.output.strip().splitlines()[-1][:400]}", file=sys.stderr, flush=True)
        os._exit(TOLD)
    if result.exit_code:
        raise AssertionError(f"{result.exit_code}: {result.output} {result.exception!r}")


class Rounds:
    """Rounds of kill and recovery over one directory of revisions."""

    def __init__(self, project: AlembicProject, last: str, every: int) -> None:
        self.project = project
        self.last = last
        self.every = every
        self.counts: Counter[str] = Counter(kills=0, converged=0, failed=0, different=0)
        #: Of the databases that a plain upgrade does not mend.
        self.rescued: Counter[str] = Counter(broken=0, finished=0, told=0, wrong=0)

    def empty(self) -> None:
        """Empty the database and forget the flag."""
        self.project.flag.unlink(missing_ok=True)
        empty(self.project.url)

    def content(self, *, ours: bool) -> Any:
        """Schema, rows and version; with ours also the history, and what is left of the journal."""
        found: dict[str, Any] = self.project.schema()
        if ours:
            found["history"] = self.project.history()
            found["journal"] = self.project.query("SELECT * FROM db_smart_progress")
        return found

    def every_boundary(self, run: Any, *, ours: bool) -> Counter[str]:
        """One kill at each boundary, and the same run once more."""
        self.counts.clear()
        self.counts.update(kills=0, converged=0, failed=0, different=0)
        self.empty()
        assert ended(forked(run, self.project)) == 0
        expected = whole = self.content(ours=ours)
        if not ours and self.project.heads() != {self.last}:
            # Of a revision that commits by itself, a plain upgrade on PostgreSQL loses what comes after that.
            self.empty()
            assert ended(forked(boot, self.project)) == 0
            whole = self.content(ours=False)
        for number in itertools.count(1, self.every):
            self.empty()
            code = ended(forked(run, self.project, number))
            if code != -signal.SIGKILL:
                assert code == 0, number
                break
            self.counts["kills"] += 1
            run_out(self.project.url)
            if ended(forked(run, self.project)) != 0:
                self.counts["failed"] += 1
                if ours:
                    print(f"after the kill at boundary {number} a boot fails", file=sys.stderr)
            elif (found := self.content(ours=ours)) != expected:
                self.counts["different"] += 1
                if ours:
                    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
                    shown = [(found.get(name), expected.get(name)) for name in names]
                    print(f"after the kill at boundary {number}: {names} differ: {shown}", file=sys.stderr)
            else:
                self.counts["converged"] += 1
                continue
            if not ours:
                self.rescue(run, number, whole)
        return self.counts

    def rescue(self, run: Any, number: int, expected: Any) -> None:
        """Break a database at a boundary again, and have it finished."""
        self.empty()
        assert ended(forked(run, self.project, number)) == -signal.SIGKILL
        self.rescued["broken"] += 1
        before = self.content(ours=False)
        code = ended(forked(rescue, self.project))
        found = self.content(ours=False)
        if code == 0 and found == expected and not self.project.query("SELECT * FROM db_smart_progress"):
            self.rescued["finished"] += 1
        elif code == TOLD and found == before:
            self.rescued["told"] += 1
        else:
            self.rescued["wrong"] += 1
            names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
            shown = [(found.get(name), expected.get(name)) for name in names]
            print(f"after the kill at boundary {number}, rescue ended with {code}: {shown}", file=sys.stderr)


def main() -> None:
    """Run the rounds and print their counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--only", choices=DIRECTORIES)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a kill at each N-th boundary only")
    parser.add_argument("--without-ours", action="store_true", help="leave the boots of db-smart out")
    parser.add_argument("--without-plain", action="store_true", help="leave the plain upgrades out")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    report: dict[str, Counter[str]] = {"db-smart": Counter(), "flask db upgrade": Counter(), "rescue": Counter()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = make_url(arguments.url if "://" in arguments.url else f"sqlite:///{name}/crash.sqlite")
        backend = url.get_backend_name()
        for directory, bodies in DIRECTORIES.items():
            if arguments.only not in (None, directory) or (directory == "multi" and backend == "sqlite"):
                continue
            if backend == "mysql" and directory == "multi":
                url = url.update_query_dict({"client_flag": str(1 << 16)})  # several statements in one string
            (folder / directory).mkdir()
            project = AlembicProject(folder / directory, "revisions", url, {})
            with redirect_stdout(sys.stderr):
                project.init()
            for number, body in enumerate(bodies):
                project.revision(f"r{number}", f"r{number - 1}" if number else None, body)
            rounds = Rounds(project, f"r{len(bodies) - 1}", arguments.every)
            if not arguments.without_ours:
                report["db-smart"] += Counter(rounds.every_boundary(boot, ours=True))
                print(f"{directory}: {dict(rounds.counts)}", file=sys.stderr)
            if not arguments.without_plain:
                report["flask db upgrade"] += Counter(rounds.every_boundary(plain_upgrade, ours=False))
                report["rescue"] += rounds.rescued
                print(f"{directory}, flask db upgrade: {dict(rounds.counts)}", file=sys.stderr)
                print(f"{directory}, rescue: {dict(rounds.rescued)}", file=sys.stderr)
    counted = dict.fromkeys(report, ("kills", "converged", "failed", "different"))
    counted["rescue"] = ("broken", "finished", "told", "wrong")
    print(json.dumps({who: {key: counts[key] for key in counted[who]} for who, counts in report.items() if counts}))


if __name__ == "__main__":
    main()
