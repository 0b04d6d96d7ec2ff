"""Kill migrating processes and count what was lost or repeated: ``python -m tests.harness.crash URL [--random N]``.

A forked process boots and kills itself with SIGKILL at its n-th statement boundary (before a statement, before a
commit), for every n of a whole boot; with ``--operations``, on tables with rows, for migrations that make
every kind of schema change. So that not every round repeats all of the boot, the boundaries of each migration are those
of a boot that finds the ones before it done, where that does the same; what comes before the first migration and after
the last one belongs to these. Or, with ``--random``, a boot of all migrations on an empty database is killed from
outside at a random moment. One more boot must then finish, with every effect there exactly once, and also do the next
migration.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import pkgutil
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import URL

from aurum_harmony import db_smart
from aurum_harmony.db_smart import DbSmart
from aurum_harmony.db_smart.session.journal import reads
from aurum_harmony.db_smart.signals import migration_started
from aurum_harmony.db_smart.store import tables
from tests.harness.databases import engine_of
from tests.harness.facts import differences, facts
from tests.harness.saved import Saved, empty

MIGRATIONS = """
from flask import current_app
from sqlalchemy import Column, Integer, String, Text, inspect, text
from aurum_harmony.db_smart import migration

db = current_app.extensions["sqlalchemy"]


def effect(name):
    return "INSERT INTO effects (name) VALUES ('%s')" % name


@migration
def make_tables(op):
    op.create_table("effects", Column("id", Integer, primary_key=True), Column("name", String(50)))
    op.create_table("things", Column("id", Integer, primary_key=True), Column("name", String(50), index=True))


@migration
def data_alone(op):
    op.execute(effect("data 1"))
    op.execute(effect("data 2"))


@migration
def mixed(op):
    op.execute(effect("mixed 1"))
    op.add_columns("things", Column("a", Integer), Column("b", String(20), server_default="x"))
    op.execute(effect("mixed 2"))
    op.execute("ALTER TABLE things ADD COLUMN raw INTEGER")
    op.execute("INSERT INTO effects (name) VALUES (:name)", [{"name": "mixed 3"}, {"name": "mixed 4"}])
    op.create_index("ix_things_b", "things", ["b"])
    op.execute(effect("mixed 5"))


@migration
def as_the_document_says():
    columns = [column["name"] for column in inspect(db.engine).get_columns("things")]
    db.session.execute(text(effect("session 1")))
    db.session.commit()
    if "city" not in columns:
        db.session.execute(text("ALTER TABLE things ADD COLUMN city TEXT"))
        db.session.commit()
    db.session.execute(text(effect("session 2")))
    db.session.execute(text(effect("session 3")))
    db.session.commit()


@migration
def with_models(op):
    first, second = db.Effect(name="model 1"), db.Effect(name="model 2")
    op.session.add_all([first, second])
    op.session.flush()
    op.add_column("things", Column("c", Integer))
    op.session.add(db.Effect(name="model 3"))
    op.session.flush()
    second.name = "model 2"
    op.session.commit()


@migration(once=True)
def only_once(op):
    op.execute(effect("once"))
"""

OPERATIONS = """
from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer, Numeric, String, text
from aurum_harmony.db_smart import migration
from flask import current_app

db = current_app.extensions["sqlalchemy"]
online = db.engine.dialect.name != "mysql"  # where MariaDB cannot


def effect(name):
    return "INSERT INTO effects (name) VALUES ('%s')" % name


@migration
def mixed(op):
    op.execute(effect("mixed 1"))
    op.execute("UPDATE things SET count = count + 1")
    first, second = db.Effect(name="model 1"), db.Effect(name="model 2")
    op.session.add_all([first, second])
    op.session.flush()
    op.create_index("ix_things_name", "things", ["name"])
    op.execute(effect("mixed 2"))
    op.session.add(db.Pair(effect_id=second.id, name="of model 2"))
    op.alter_column("things", "name", nullable=False)
    third = db.Effect(name="model 3")
    op.session.add(third)
    op.session.flush()
    op.create_foreign_key("fk_owner", "things", "owners", ["owner_id"], ["id"], ondelete="SET NULL")
    op.session.add(db.Pair(effect_id=third.id, name="of model 3"))
    op.execute("UPDATE things SET count = count + 1")
    op.create_table("made", Column("id", Integer, primary_key=True), Column("name", String(9), index=True))
    op.execute("INSERT INTO made (id, name) VALUES (1, 'row')")


@migration
def columns(op):
    op.execute(effect("columns 1"))
    op.add_columns(
        "things",
        Column("a", Integer, index=True),
        Column("b", String(20), nullable=False, server_default="100%"),
        Column("c", Integer, ForeignKey("owners.id"), server_default="1"),
        Column("d", Integer, unique=True),
        Column("e", Integer, CheckConstraint("e > 0")),
    )
    op.execute(effect("columns 2"))
    op.sync(db.Sync)
    op.execute(effect("columns 3"))


@migration
def constraints(op):
    op.create_check_constraint("ck", "things", "count > 0", online=online)
    op.execute(effect("constraints 1"))
    op.create_unique_constraint("uq", "things", ["code"])
    op.execute(effect("constraints 2"))
    op.create_index("ux", "things", ["code", "count"], unique=True)


@migration(destructive=True)
def alterations(op):
    op.alter_column("things", "code", type_=String(60), nullable=False, server_default="5%")
    op.execute(effect("alterations 1"))
    op.alter_column("things", "amount", nullable=True, server_default=None)
    op.alter_column("things", "amount", new_column_name="sum")
    op.execute(effect("alterations 2"))


@migration(destructive=True)
def drops(op):
    op.execute(effect("drops 1"))
    op.drop_index("ux", "things")
    op.drop_constraint("uq", "things")
    op.drop_constraint("ck", "things")
    op.execute(effect("drops 2"))
    op.drop_constraint("fk_owner", "things")
    op.drop_column("things", "e")
    op.drop_table("spare")
    op.execute(effect("drops 3"))
    op.rename_table("made", "renamed")


@migration
def declarations(op):
    op.execute(effect("declarations 1"))
    op.alter_enum("mood", add=["so so", "50%"], after="sad", columns={"moods": "mood"}, online=online)
    op.execute("INSERT INTO moods (id, mood, n) VALUES (100, 'so so', 1)")
    op.replace_index("ix_moods", "moods", ["n", "mood"])
    op.alter_column("moods", "n", comment="it's 50%")
    op.create_table_comment("moods", "all")
    op.execute(effect("declarations 2"))
    op.view("some_things", "SELECT id FROM things WHERE id < 3")
    op.view("some_things", "SELECT name, id FROM things WHERE id < 5")
    if db.engine.dialect.name == "postgresql":
        body = "CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.n := 7; RETURN new; END $$"
        op.function("counted", body)
        op.trigger("count", "CREATE TRIGGER count BEFORE INSERT ON moods FOR EACH ROW EXECUTE FUNCTION counted()",
                   table="moods")
    op.execute("INSERT INTO moods (id, mood, n) SELECT id + 200, 'sad', 2 FROM some_things")
    op.execute(effect("declarations 3"))


@migration
def keys(op):
    op.execute(effect("keys 1"))
    op.create_primary_key("pk_keyless", "keyless", ["n"])
    op.execute(effect("keys 2"))
    op.widen_key("owners", online=False)
    op.execute(effect("keys 3"))
"""
OPERATIONS_EFFECTS = ["mixed 1", "mixed 2", *(f"model {n}" for n in (1, 2, 3)), *(f"columns {n}" for n in (1, 2, 3))]
OPERATIONS_EFFECTS += [f"{name} {n}" for name in ("constraints", "alterations", "drops") for n in (1, 2)] + ["drops 3"]
OPERATIONS_EFFECTS += [f"{name} {n}" for name in ("declarations", "keys") for n in (1, 2, 3)]

EFFECTS = [f"data {n}" for n in (1, 2)] + [f"mixed {n}" for n in (1, 2, 3, 4, 5)]
EFFECTS += [f"session {n}" for n in (1, 2, 3)] + [f"model {n}" for n in (1, 2, 3)] + ["once"]
MODULE = "crash_migrations"


def make_app(folder: Path, url: str, lease: float) -> tuple[Flask, DbSmart]:
    """The application whose processes are killed.

    :param lease: for how long a process that was killed keeps the others out, seconds.
    """
    app = Flask("crash", instance_path=str(folder))
    app.config.update(SQLALCHEMY_DATABASE_URI=url, DB_SMART_LEASE_SECONDS=lease, DB_SMART_CREATE_ALL=False)
    db = SQLAlchemy()

    class Effect(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "effects"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    class Pair(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "pairs"
        id = sa.Column(sa.Integer, primary_key=True)
        effect_id = sa.Column(sa.Integer)
        name = sa.Column(sa.String(50))

    class Sync(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "owners"
        id = sa.Column(sa.Integer, primary_key=True)
        town = sa.Column(sa.String(20), index=True)

    db.Effect, db.Pair, db.Sync = Effect, Pair, Sync  # type: ignore[attr-defined]
    db.init_app(app)
    return app, DbSmart(app, db, migrations=MODULE)


def populate(engine: sa.Engine) -> None:
    """Make the tables that operations change: with rows, and referred to."""
    metadata = sa.MetaData()
    number = sa.Column("id", sa.Integer, primary_key=True)
    for name in ("effects", "owners", "spare"):
        sa.Table(name, metadata, number._copy(), *([sa.Column("name", sa.String(50))] if name == "effects" else []))
    sa.Table("pairs", metadata, number._copy(), sa.Column("effect_id", sa.Integer), sa.Column("name", sa.String(50)))
    things = sa.Table(
        "things",
        metadata,
        number._copy(),
        sa.Column("name", sa.String(50)),
        sa.Column("code", sa.String(20)),
        sa.Column("count", sa.Integer),
        sa.Column("amount", sa.Numeric(10, 2), nullable=False, server_default="0"),
        sa.Column("owner_id", sa.Integer, index=True),
    )
    sa.Table(
        "child",
        metadata,
        number._copy(),
        sa.Column("thing_id", sa.Integer, sa.ForeignKey("things.id", ondelete="CASCADE")),
    )
    mood: sa.Column[Any] = sa.Column("mood", sa.Enum("sad", "ok", name="mood", create_constraint=True))
    moods = sa.Table("moods", metadata, number._copy(), mood, sa.Column("n", sa.Integer), sa.Index("ix_moods", "mood"))
    keyless = sa.Table("keyless", metadata, sa.Column("n", sa.Integer))
    rows = [{"id": n, "name": f"it's {n}%", "code": f"c{n}", "count": n, "owner_id": n % 3 + 1} for n in range(1, 41)]
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(metadata.tables["owners"].insert(), [{"id": n} for n in (1, 2, 3)])
        connection.execute(things.insert(), rows)
        connection.execute(moods.insert(), [{"id": n, "mood": "ok", "n": n} for n in (1, 2, 3)])
        connection.execute(keyless.insert(), [{"n": n} for n in (1, 2, 3)])
        connection.execute(metadata.tables["child"].insert(), [{"id": n, "thing_id": n} for n in range(1, 41)])


def set_up(connection: Any, _: Any) -> None:
    """Enforce foreign keys on SQLite, as most applications do; and no fsync, as only processes die, not the machine."""
    driver = type(connection).__module__.partition(".")[0]
    if driver == "sqlite3":
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")
    elif driver == "psycopg":
        connection.autocommit = True
        connection.execute("SET synchronous_commit = off")
        connection.autocommit = False


def boot_and_die(folder: Path, url: str, boundary: int, part: Part, operations: bool, tell: int = -1) -> None:
    """Boot; die by SIGKILL at a statement boundary, or exit at the end of the part.

    :param boundary: its number within the part; 0 to tell the number of all but those of the heartbeat.
    :param tell: where to tell it.
    :param operations: count none between statements that only read: a rebuild has many of them.
    """
    count = 0

    def step(*event: Any) -> None:
        nonlocal count
        if operations and len(event) > 2 and reads(event[2]):
            return
        if not boundary and threading.current_thread() is not threading.main_thread():
            return
        count += 1
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    def end() -> None:
        if not boundary:
            os.write(tell, b"%d" % count)
        os._exit(0)

    def listen() -> None:
        # What follows the end of one statement is the begin of the next one, or a commit, without a change between.
        for name in ("before_cursor_execute", "commit"):
            sa.event.listen(sa.Engine, name, step)

    def begin(_: Any, migration: str, **__: Any) -> None:
        if migration == part.begins:
            listen()
        elif migration == part.ends:
            end()

    migration_started.connect(begin)
    if part.begins is None:
        listen()
    boot(folder, url)
    end()


def boot(folder: Path, url: str, lease: float = 1) -> None:
    """Boot as a new process does."""
    app, smart = make_app(folder, url, lease)
    smart.boot(app)


def run_out(url: URL | str) -> None:
    """Let the lease of a process that was killed be over, as it is when its time has passed."""
    engine = engine_of(url)
    with engine.begin() as connection:
        if sa.inspect(connection).has_table(tables.state.name):
            connection.execute(tables.state.update().values(lease_expires=0))


#: What a process imports in the middle of its work.
LATE = ("_strptime", "opentelemetry.context", "opentelemetry.trace")


@cache
def preload() -> None:
    """Import once what each forked process would import by itself, which takes longer than all that it does."""
    modules = [module.name for module in pkgutil.walk_packages(db_smart.__path__, f"{db_smart.__name__}.")]
    for name in [*modules, "alembic.migration", "alembic.operations", "filelock", "psycopg", "pymysql", *LATE]:
        import_module(name)


@contextmanager
def counted(die_before: int = 0) -> Iterator[Callable[[], int]]:
    """Count the statements that change something; die by SIGKILL before the one of a number."""
    count = 0

    def step(*event: Any) -> None:
        nonlocal count
        count += not reads(event[2])
        if die_before and count == die_before:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", step)
    try:
        yield lambda: count
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", step)


def forked(action: Any, *arguments: Any) -> int:
    """Run an action in a forked process.

    :returns: its process id.
    """
    preload()
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # what was imported is no garbage: to look at it is slow, and copies the memory of the parent
    try:
        action(*arguments)
        os._exit(0)
    except BaseException as error:  # the parent counts it
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def ended(pid: int) -> int:
    """Exit code of a forked process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Part(NamedTuple):
    """Some of the boundaries of a boot: from the begin of one migration to that of the next.

    :ivar begins: name of the migration; ``None`` for the begin of the boot.
    :ivar ends: name of the next one; ``None`` for the end of the boot.
    """

    begins: str | None
    ends: str | None


class Rounds:
    """Rounds of kill and recovery on one database, and their count."""

    def __init__(self, url: str, folder: Path, *, operations: bool = False) -> None:
        self.url = url
        self.folder = folder
        self.operations = operations
        self.engine = engine_of(url)
        #: What the module of migrations begins with, and then the migrations.
        self.source = re.split(r"(?m)^(?=@migration)", OPERATIONS if operations else MIGRATIONS)
        self.names = [re.findall(r"(?m)^def (\w+)", text)[0] for text in self.source[1:]]
        if operations:
            sa.event.listen(sa.Engine, "connect", set_up)
        self.expected = self.undisturbed(len(self.names))
        assert sorted(self.expected["effects"]["rows"]) == sorted(OPERATIONS_EFFECTS if operations else EFFECTS)
        self.counts: Counter[str] = Counter(kills=0, converged=0, failed=0, lost=0, repeated=0)

    def write(self, migrations: int) -> None:
        """Let the application have the first ones of the migrations."""
        (self.folder / f"{MODULE}.py").write_text("".join(self.source[: migrations + 1]), encoding="utf-8")

    def undisturbed(self, migrations: int) -> Any:
        """What an empty database has after the first ones of the migrations, if nobody is killed."""
        self.write(migrations)
        self.empty()
        assert ended(forked(boot, self.folder, self.url)) == 0
        return self.content()

    def forget(self) -> None:
        """Forget the flag."""
        for path in self.folder.iterdir():
            if path.suffix not in (".py", ".sqlite") and path.is_file():
                path.unlink()

    def empty(self) -> None:
        """Empty the database and forget the flag."""
        self.forget()
        empty(self.url)
        if self.operations:
            populate(self.engine)

    def content(self) -> Any:
        """All tables and rows; of effects, whose numbers are the database's, the names."""
        with self.engine.connect() as connection:
            found = facts(connection)
            effects: dict[int, str] = {
                row.id: row.name for row in connection.execute(sa.text("SELECT id, name FROM effects"))
            }
        found["effects"]["rows"] = Counter(effects.values())
        if self.operations:
            found["pairs"]["rows"] = sorted((effects.get(effect), name) for _, effect, name in found["pairs"]["rows"])
        return found

    def recover(self, *options: Any) -> None:
        """Boot once more after a kill, and count what it finds."""
        self.counts["kills"] += 1
        if ended(forked(boot, self.folder, self.url, *options)) != 0:
            self.counts["failed"] += 1
            return
        content = self.content()
        found = content["effects"]["rows"]
        with self.engine.connect() as connection:
            left = connection.scalar(sa.text("SELECT count(*) FROM db_smart_progress"))
        lost = sum(found[name] == 0 for name in self.expected["effects"]["rows"])
        repeated = sum(count > 1 for count in found.values())
        self.counts["lost"] += lost
        self.counts["repeated"] += repeated
        different = differences(content, self.expected)
        if different:
            print(f"after kill {self.counts['kills']}: {different}", file=sys.stderr)
        if not lost and not repeated and not different and not left:
            self.counts["converged"] += 1

    def every_boundary(self) -> None:
        """One kill at each statement boundary."""
        last = len(self.names) - 1
        for number, name in enumerate(self.names):
            known = min(number + 2, last + 1)
            self.expected = self.undisturbed(known)
            part = Part(name if number else None, None if number == last else self.names[number + 1])
            count = self.boundaries(part, self.empty)
            self.write(number)
            self.empty()
            if number:
                assert ended(forked(boot, self.folder, self.url)) == 0
            self.write(known)
            with Saved(self.url) as saved:
                before = partial(self.put_back, saved)
                self.every_boundary_of(part, before if self.stands_for_all(part, before, count) else self.empty)

    def put_back(self, saved: Saved) -> None:
        """Put what was saved back and forget the flag."""
        self.forget()
        saved.put_back()

    def stands_for_all(self, part: Part, before: Callable[[], None], count: int) -> bool:
        """Whether a boot that begins with what was saved has the boundaries, and leads to the same, as one of all.

        What a process remembers of what it made itself changes later statements, and MariaDB names the index of a
        foreign key anew, unless it was named.
        """
        if self.boundaries(part, before) != count:
            return False
        before()
        assert ended(forked(boot, self.folder, self.url)) == 0
        return not differences(self.content(), self.expected)

    def boundaries(self, part: Part, before: Callable[[], None]) -> int:
        """How many a part has.

        :param before: makes what the boot begins with.
        """
        before()
        hear, tell = os.pipe()
        assert ended(forked(boot_and_die, self.folder, self.url, 0, part, self.operations, tell)) == 0
        os.close(tell)
        with open(hear) as told:
            return int(told.read())

    def every_boundary_of(self, part: Part, before: Callable[[], None]) -> None:
        """One kill at each statement boundary of a part."""
        for boundary in itertools.count(1):
            before()
            code = ended(forked(boot_and_die, self.folder, self.url, boundary, part, self.operations))
            if code != -signal.SIGKILL:
                self.counts["failed"] += code != 0
                return
            run_out(self.url)
            self.recover()

    def at_random(self, kills: int) -> None:
        """Kills from outside at random moments of a boot, whose length is measured first; the leases run out."""
        lease = 0.2
        self.empty()
        started = time.perf_counter()
        ended(forked(boot, self.folder, self.url, lease))
        length = time.perf_counter() - started
        while self.counts["kills"] < kills:
            self.empty()
            pid = forked(boot, self.folder, self.url, lease)
            time.sleep(random.uniform(0, length))  # the moment is the point
            os.kill(pid, signal.SIGKILL)
            if ended(pid) == -signal.SIGKILL:
                self.recover(lease)


def main() -> None:
    """Run the rounds and print their count as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--random", type=int, metavar="N", help="N kills at random moments instead of at each boundary")
    parser.add_argument("--operations", action="store_true", help="schema changes of every kind on tables with rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, name)
        url = arguments.url if "://" in arguments.url else f"sqlite:///{name}/crash.sqlite"
        rounds = Rounds(url, folder, operations=arguments.operations)
        if arguments.random:
            rounds.at_random(arguments.random)
        else:
            rounds.every_boundary()
        print(json.dumps(rounds.counts))


if __name__ == "__main__":
    main()
