"""Finish a revision of Alembic that another tool has left half-done: ``flask db-smart migrate --resume``.

``flask db upgrade`` that is killed leaves on SQLite and MariaDB the schema changes that committed by themselves, and no
row of the version table that says so. Here the code of the revision runs once without a change, which tells what it
does and what commits it. What the database has of that tells after which statement the other tool was ended. Those up
to it become steps of the journal, as if db-smart had begun the revision; then it runs like one that was interrupted.

Which rows were changed cannot be seen from the rows. It is known only where what commits them has left something that
can be seen. Where it is not known, nothing is changed.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa

from .batches import COPY, Ending, alone, copy_of, ending, flushing, replaces
from .boot.plan import Pending, Plan
from .dialects.base import Facts, autocommits
from .errors import DbSmartError, plain
from .revising import Revising
from .runner import DatabaseRun, Outcome, Runner
from .schema.effects import Change, Changes, Contradiction, Found, Scene, changes_of, consistent, names_in
from .schema.forms import Forms
from .session.controls import controls_transaction, without_comments
from .session.environment import Environment, begin_revision, end_transaction
from .session.journal import Done, Journal, StepCursor, reads
from .session.replay import RevisionCursor, RevisionJournal
from .store import history
from .store.database import Database, begin, commit
from .store.tables import progress

if TYPE_CHECKING:
    from alembic.operations.batch import BatchOperationsImpl
    from alembic.runtime.migration import MigrationContext

#: So often the same statement comes from a loop that ends only when the database says so.
_MOST_ALIKE = 5_000
#: Before what Python's driver of SQLite begins a transaction.
_BEGINS = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_CHANGES_ROWS = re.compile(r"(?:INSERT|UPDATE|DELETE|REPLACE|MERGE|WITH|TRUNCATE)\b", re.IGNORECASE)
_OF_ROWS = re.compile(
    r"(?:INSERT\s+(?:\w+\s+)*?INTO|REPLACE\s+INTO|UPDATE|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?)\s+(?P<table>[^\s(]+)",
    re.IGNORECASE,
)
#: What surely adds a row, or all of a table to its copy, and what may take one away.
_ADDS = re.compile(
    r"INSERT\s+INTO\s+(?P<table>[^\s(]+)\s*(?:\([^)]*\)\s*)?(?:VALUES|(?P<from>SELECT))\b", re.IGNORECASE
)
_TAKES = re.compile(r"DELETE|TRUNCATE|REPLACE|MERGE|WITH|ALTER|DROP|RENAME", re.IGNORECASE)
#: A question about the schema.
_OF_SCHEMA = re.compile(
    r"\b(?:sqlite_master|sqlite_schema|information_schema|pg_catalog|pg_class|pg_\w+)\b|\A\s*(?:DESC|DESCRIBE)\b"
    r"|\A\s*SHOW\s+(?:FULL\s+)?(?:TABLE|COLUMN|FIELD|CREATE|INDEX|KEY)"
    r"|\A\s*PRAGMA\s+(?:\S+\.)?(?:table_|index_|foreign_key_list)",
    re.IGNORECASE,
)
#: Schema changes that change no value in a row.
_ADDED = ("make column", "make index", "drop index", "make constraint", "drop constraint", "make check")
_FROM = re.compile(r"\bFROM\b", re.IGNORECASE)
#: What revisions import that commits nothing unless they say so.
_LIBRARIES = {*sys.stdlib_module_names, "alembic", "sqlalchemy", "sqlalchemy_utils", "sqlmodel", "flask"}
_COMMITS = re.compile(r"commit|rollback|isolation_level|begin", re.IGNORECASE)
#: Calls and SQL that change a schema, in the source of a revision.
_CALLS = re.compile(r"(?!add_all$)(?:create|drop|add|alter|rename|batch_alter)_\w+")
_SQL = re.compile(r"\b(?:CREATE|DROP|ALTER|RENAME|TRUNCATE)\b", re.IGNORECASE)
#: What other sessions must not be busy with meanwhile.
_BUSY = {
    "mysql": "SELECT info FROM information_schema.processlist WHERE db = DATABASE() AND id <> connection_id() "
    "AND info REGEXP '^[[:space:]]*(ALTER|CREATE|DROP|RENAME|TRUNCATE)'",
    "postgresql": "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND state = 'active' AND query ~* '^\\s*(ALTER|CREATE|DROP|REINDEX)'",
}


class _Enough(Exception):
    """The rest of the revision cannot have been done."""


class Unclear(DbSmartError):
    """It cannot be known how far a revision has come; nothing was changed."""


@dataclass
class Resume:
    """What a person asks for.

    :ivar revision: its name; ``None`` for the next one.
    :ivar say: tells what is found and done.
    :ivar agree: asks a question.
    """

    revision: str | None
    say: Callable[[str], object]
    agree: Callable[[str], bool]


@dataclass
class Statement:
    """What a revision sends.

    :ivar step: by what the journal knows it; ``None`` for a question.
    :ivar alone: whether it commits by itself, as in an ``autocommit_block()``.
    :ivar rows: how many it is taken to have changed.
    :ivar numbered: whether the revision has asked for the number of an inserted row.
    """

    text: str
    step: str | None = None
    alone: bool = False
    rows: int = 0
    numbered: bool = False
    changes: Changes = field(default_factory=lambda: Changes((), False))


@dataclass
class _Unit:
    """Statements that were committed together.

    :ivar refused: whether rows were committed also where the schema change behind them was refused.
    """

    statements: list[Statement]
    refused: bool = False

    @property
    def seen(self) -> list[Change]:
        """What it leaves that can be seen."""
        return [change for one in self.statements for change in one.changes.seen]


def run_of(resume: Resume) -> Callable[..., ResumeRun]:
    """Makes the run on one database, for :meth:`~.runner.Runner.run`."""
    return functools.partial(ResumeRun, resume)


def shown(statement: str) -> str:
    """A statement in one line."""
    text = " ".join(plain(statement).split())
    return text if len(text) <= 120 else f"{text[:120]} …"


class ResumeRun(DatabaseRun):
    """The run on one database that first finds out how far another tool has come with the next revision."""

    def __init__(
        self, resume: Resume, runner: Runner, database: Database, outcome: Outcome, *, force: bool, remake: bool
    ) -> None:
        super().__init__(runner, database, outcome, force=force, remake=remake)
        self.resume = resume

    def _refusal(self, plan: Plan, connection: sa.Connection) -> str | None:
        """None where Alembic has begun: its first revision may be the one that is half-done."""
        versions = self._runner.planner.versions
        begun = versions is not None and history.read_heads(connection, versions) is not None
        return None if begun else super()._refusal(plan, connection)

    def _revise(self, plan: Plan) -> None:
        self._locate(plan)
        super()._revise(plan)

    def _locate(self, plan: Plan) -> None:
        """Make steps of what another tool has done of the next revision.

        :raises Unclear: that cannot be known.
        """
        self._runner.planner.learn()  # of a new file it could not be asked before
        connection, say = self.connection, self.resume.say
        connection.rollback()
        locating = _Locating(self, plan)
        locating.run()
        item = locating.next
        assert item is not None
        name = item.migration.name
        if name in self._begun:
            say(f"{name}: db-smart itself has begun it, and goes on from where it was.")
            return
        with self._unharmed(name):
            passed = locating.passed(connection)
            connection.rollback()
            listing = locating.listing
            if listing is not None and listing.units:
                again = _Locating(self, plan)
                again.run()
                again.compare([one for one in listing.statements if one.step is not None])
        connection.rollback()
        ending = locating.ending
        if not (passed or locating.copies):
            say(f"{name}: nothing of it is there, so it runs as any other.")
            return
        begin(connection)
        self.lock.confirm(connection)
        for copy in locating.copies:
            say(f"{name}: drops {copy}, an unfinished copy of a table that is there.")
            quoted = connection.dialect.identifier_preparer.quote_identifier(copy)
            connection.exec_driver_sql(f"DROP TABLE {quoted}")
        if passed:
            rows = [
                {"migration": name, "step": one.step, "row_count": one.rows, "last_row_id": 0, "detail": None}
                for one in passed
            ]
            connection.execute(progress.insert(), rows)
            self._begun.add(name)
        if ending is not None:
            journal = Journal(connection, name, at_once=False, begun=False)
            journal.record(ending.step, 0, None, ending.detail)
            journal.store()
        commit(connection)
        for one in passed:
            say(f"{name}: passes by what is done: {shown(one.text)}")
        if ending is not None:
            say(
                f"{name}: the table {ending.table!r} is gone, and {copy_of(ending.table)} has its rows in the new "
                "form. Its name and its indexes come back as all revisions until now make them in a scratch place; an "
                "index that was made by hand is not among them:"
            )
            for statement in ending.statements:
                say(f"{name}: sends {shown(statement)}")

    @contextmanager
    def _unharmed(self, name: str) -> Iterator[None]:
        """Say what to do where it is not clear what is done.

        :raises Unclear: with all of that.
        """
        try:
            yield
        except Unclear as error:
            raise Unclear(
                f"The revision {name!r} cannot be finished by itself on the database {self.database.name!r} "
                f"({self.database.url}): {error.message}. Nothing was changed. Finish by hand what it lacks, then "
                f"record it: 'flask db-smart stamp {name}'. Or put a backup back, and let it run as a whole."
            ) from None


class _Locating(Revising):
    """Runs the next revision without a change.

    :ivar next: that revision.
    :ivar copies: tables that ``batch_alter_table`` has left beside those whose place they were to take.
    :ivar ending: how the batch ends that has left one without that table.
    """

    def __init__(self, run: ResumeRun, plan: Plan) -> None:
        super().__init__(run, plan)
        self._resuming = run
        self.next: Pending | None = None
        self.copies: list[str] = []
        self.ending: Ending | None = None
        self.listing: Listing | None = None
        self._source = ""
        #: What ended the code of the revision before its end.
        self._broke: BaseException | None = None
        #: How the connections of env.py begin and end transactions: see :func:`_mode`.
        self._modes: dict[sa.Connection, str] = {}

    def run(self) -> None:
        """Run ``env.py`` once.

        :raises Unclear: the code does what cannot be followed.
        :raises DbSmartError: it never came to this database.
        """
        environment = self._run.environment()
        with self._run.led(environment.config):
            environment.run(
                lambda heads, context: self._list(environment, heads, context),
                lambda *_: None,
                writes=lambda connection: self._is_ours(connection) and False,
                seen=lambda connection: self._modes.setdefault(connection, _mode(connection)),
            )
        if self._error is not None:
            raise self._error
        if self.next is None:
            raise DbSmartError(
                f"{environment.directory}/env.py ran no revision on the database {self._run.database.name!r} "
                f"({self._run.database.url}). Nothing was changed."
            )

    def _list(self, environment: Environment, heads: tuple[str, ...], context: MigrationContext) -> Iterator[Any]:
        connection = context.connection
        assert connection is not None
        if not self._ours[connection] or self.next is not None:
            return
        end_transaction(context)
        self._check_versions(environment, context)
        step = next(iter(environment.steps(heads)), None)
        if step is None:
            return
        item = self._items[str(step.revision.revision)]
        wanted = self._resuming.resume.revision
        if wanted is not None and wanted != item.migration.name:
            self._error = DbSmartError(
                f"The next revision on the database {self._run.database.name!r} is {item.migration.name!r}, not "
                f"{wanted!r}. Nothing was changed. Only the next one can be half-done."
            )
            return
        self.next = item
        if self._run.has_steps(item):
            return
        path = item.migration.path
        self._source = Path(path).read_text(encoding="utf-8") if path else ""
        self.listing = listing = Listing(
            connection, item.migration.name, self._modes[connection], hidden=may_commit(self._source)
        )
        if not (self._run.database.facts.server and self._run.database.facts.transactional_ddl):
            tables = sa.inspect(connection).get_table_names()
            copies = {name for name in tables if name.startswith(COPY)}
            listing.lost = copies - {copy_of(name) for name in tables}
        end_transaction(context)
        begin_revision(context)
        with context.begin_transaction(_per_migration=True):
            try:
                with (
                    listing.recording(),
                    listing.followed(connection),
                    self._run.rebound(listing.refuse_engine),
                    alone(listing.refuse),
                ):
                    step.migration_fn(**environment.arguments)
            except Exception as error:  # it misses what it would have made
                self._broke = None if listing.enough else error
            finally:
                driver: Any = connection.connection.dbapi_connection
                driver.rollback()
        end_transaction(context)
        if listing.gone and not listing.unclear:
            with self._run.rebound(listing.refuse_engine):
                found = ending(
                    self._run.database,
                    context,
                    [
                        functools.partial(one.migration_fn, **environment.arguments)
                        for one in environment.until(heads, step)
                    ],
                    listing.gone,
                    listing.refuse,
                )
            if isinstance(found, Ending):
                self.ending = found
            else:
                listing.unclear = listing.unclear or _gone(connection, copy_of(listing.gone), listing.gone, found)
        yield from ()

    def passed(self, connection: sa.Connection) -> list[Statement]:
        """The statements of the revision that another tool has done.

        :raises Unclear: they are not known.
        """
        assert self.listing is not None
        listing, facts = self.listing, self._run.database.facts
        if listing.unclear:
            raise Unclear(listing.unclear)
        units = listing.units
        if facts.server and not (units or listing.may_commit):  # SQLite's driver commits each schema change at once
            return []
        _check_busy(connection, facts)
        self._find_copies(connection)
        if self._broke is not None and listing.may_commit:
            # What it would have done after that may have taken away again what seems not to be done.
            raise Unclear(f"its code cannot be followed to its end now: {self._run.database.cause(self._broke)}")
        for unit in units:
            for one in unit.statements:
                one.changes = changes_of(one.text, facts)
        sent = [change for one in listing.statements if one.step for change in changes_of(one.text, facts).seen]
        try:
            found = Found(connection, self.copies)
            possible = [*consistent(Scene.before(sent, facts), [unit.seen for unit in units], found)]
        except Contradiction:
            raise Unclear("its statements do not fit together, as where it looks first and then decides") from None
        if not possible:
            raise Unclear(
                "the database is in no state that the statements of this revision lead to one after the other"
            )
        first, last = possible[0], possible[-1]
        self._check_decisions(units, last)
        if possible != [*range(first, last + 1)]:
            raise Unclear("more than one state that its statements lead to is as the database is")
        for number, unit in enumerate(units[first:last], first):
            if self._surely_lacks(connection, unit, units[:number]):
                break
            for one in unit.statements:
                if not one.changes.again:
                    raise Unclear(f"what is there does not tell whether this was done: {shown(one.text)}")
        passed = [one for unit in units[:first] for one in unit.statements]
        self._check_reads(passed)
        self._check_forms(connection, passed)
        if not self._surely_lacks(connection, units[first] if first < len(units) else None, units[:first]):
            self._ask(units, first)
        return passed

    def _surely_lacks(self, connection: sa.Connection, unit: _Unit | None, before: Sequence[_Unit]) -> bool:
        """Whether a unit adds rows to a table that the revision itself has made, and which is empty."""
        facts = self._run.database.facts
        made = {change.table for one in before for change in one.seen if change.kind == "make table"}
        statements = [] if unit is None else unit.statements
        for one in statements:
            found = _ADDS.match(without_comments(one.text))
            for name in made & names_in(found["table"], facts) if found else ():
                takers = [other for other in statements if _TAKES.match(without_comments(other.text))]
                table = connection.dialect.identifier_preparer.quote(name)
                query = f"SELECT 1 FROM {table} LIMIT 1"
                if found is not None and found["from"] and not name.startswith(COPY):
                    continue  # there may be nothing to add
                if not any(name in _touched(other, facts) for other in takers):
                    return connection.exec_driver_sql(query).first() is None
        return False

    def compare(self, sent: Sequence[Statement]) -> None:
        """Make sure that the revision sends the same each time, as what is done is known by its text.

        :raises Unclear: it does not.
        """
        assert self.listing is not None
        facts = self._run.database.facts
        # The journal takes no account of values that are made anew; names that are would not be found.

        def key(one: Statement) -> object:
            return one.step, tuple(change._replace(form="") for change in changes_of(one.text, facts).seen)

        known = {key(one) for one in self.listing.statements}
        other = next((one for one in sent if key(one) not in known), None)
        if other is not None:
            raise Unclear(f"it sends another text each time it runs: {shown(other.text)}")

    def _find_copies(self, connection: sa.Connection) -> None:
        """Find what ``batch_alter_table`` has left.

        :raises Unclear: a copy has no table beside it.
        """
        assert self.listing is not None
        preparer = connection.dialect.identifier_preparer
        tables = sa.inspect(connection).get_table_names()
        for copy in [name for name in tables if name.startswith(COPY)]:
            name = next((name for name in tables if copy_of(name) == copy), None)
            if name is None:
                if self.ending is None or copy_of(self.ending.table) != copy:
                    name = copy.removeprefix(COPY)
                    raise Unclear(_gone(connection, copy, name))
                continue
            server = self._run.database.facts.server
            rows, there = (
                connection.exec_driver_sql(f"SELECT count(*) FROM {preparer.quote(one)}").scalar_one()
                for one in (copy, name)
            )
            if rows > (0 if server else there):
                raise Unclear(
                    f"{copy!r} has {rows} rows, and {name!r} is there as well, with {there}; it may have been made anew"
                )
            if not server:
                self.copies.append(copy)

    def _check_decisions(self, units: Sequence[_Unit], last: int) -> None:
        """Make sure that the code does not decide by what the other tool has changed.

        :raises Unclear: it may.
        """
        assert self.listing is not None
        statements = self.listing.statements
        until = len(statements)
        if last < len(units):  # something of the next one is not there, so what comes later was not reached
            until = statements.index(units[last].statements[-1])
        asked = [one for one in statements[:until] if one.step is None]
        schema = next((one for one in asked if _OF_SCHEMA.search(one.text)), None)
        if schema is not None:
            raise Unclear(
                f"its code asks what the schema has before it acts, and would get another answer now: "
                f"{shown(schema.text)}"
            )
        rows = next((one for one in asked if _FROM.search(one.text)), None)
        if rows is not None and decides(self._source):
            raise Unclear(f"its code reads rows and may decide by them what it changes: {shown(rows.text)}")

    def _check_reads(self, passed: Sequence[Statement]) -> None:
        """Make sure that the code reads what it read before.

        :raises Unclear: it may read something else.
        """
        assert self.listing is not None
        if not passed:
            return
        facts, statements = self._run.database.facts, self.listing.statements
        until = statements.index(passed[-1])
        for index, one in enumerate(statements[:until]):
            if one.step is None and _FROM.search(one.text):
                words = names_in(one.text, facts)
                for later in statements[index : until + 1]:
                    if later.step is not None and words & _touched(later, facts) and not _same_answer(one, later):
                        raise Unclear(
                            f"its code has read rows ({shown(one.text)}) which were changed after that "
                            f"({shown(later.text)}), so they cannot be read again"
                        )
        changed = next((one for one in passed if not one.changes.seen and _CHANGES_ROWS.match(one.text.lstrip())), None)
        if changed is not None and "rowcount" in self._source:
            raise Unclear(f"its code asks how many rows were changed, which is not known of {shown(changed.text)}")
        numbered = next((one for one in passed if one.numbered), None)
        if numbered is not None:
            raise Unclear(f"its code uses the number of a row that it has inserted: {shown(numbered.text)}")

    def _check_forms(self, connection: sa.Connection, passed: Sequence[Statement]) -> None:
        """Make sure that what is there was not made by somebody else, in another form.

        :raises Unclear: it was.
        """
        forms = Forms(connection, self._run.database.facts)
        other = next(forms.others(one.text for one in passed), None)
        if other is not None:
            raise Unclear(f"{other}, so something else has made it")
        if forms.unknown:
            self._resuming.resume.say(f"Not compared with what this revision makes: {', '.join(forms.unknown)}.")

    def _ask(self, units: Sequence[_Unit], done: int) -> None:
        """Ask where only a person knows it.

        :raises Unclear: the answer is no.
        """
        if done == len(units) or not units[done].refused:
            return
        *rows, change = units[done].statements
        resume = self._resuming.resume
        for one in rows:
            resume.say(f"Will be done now: {shown(one.text)}")
        if not resume.agree(
            f"Was the other tool ended from outside (killed)? If it ended with an error at '{shown(change.text)}', "
            "these changes of rows are done already, and must not be done twice. Was it killed?"
        ):
            raise Unclear(
                f"changes of rows before '{shown(change.text)}' are done if that statement was refused, and not done "
                "if the other tool was killed"
            )


def _gone(connection: sa.Connection, copy: str, table: str, why: str = "") -> str:
    """That a copy is all that is left of a table, and the statement to type.

    :param why: why its indexes cannot be known.
    """
    quote = connection.dialect.identifier_preparer.quote
    return (
        f"the table {table!r} is gone, and {copy!r} has its rows in the new form; which indexes it had is not known"
        f"{why and f' ({why})'}. Rename it, and make its indexes: ALTER TABLE {quote(copy)} RENAME TO {quote(table)}"
    )


def may_commit(source: str) -> bool:
    """Whether the source of a revision may commit a part of it, itself or by what it imports from elsewhere."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("" if node.level else str(node.module).partition(".")[0])
    return _COMMITS.search(source) is not None or not imported <= _LIBRARIES


def decides(source: str) -> bool:
    """Whether the source of a revision changes the schema under a condition, in a loop, or not at all by its own code.

    :param source: with ``downgrade()``, which does not count.
    """
    branches = (ast.If, ast.For, ast.While, ast.Try, ast.IfExp, ast.BoolOp, ast.comprehension, ast.Match)
    tree = ast.parse(source)
    tree.body = [
        one for one in tree.body if not (isinstance(one, ast.FunctionDef) and one.name.startswith("downgrade"))
    ]
    for branch in (node for node in ast.walk(tree) if isinstance(node, branches)):
        for node in ast.walk(branch):
            if isinstance(node, ast.Attribute) and _CALLS.fullmatch(node.attr):
                return True
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.search(node.value):
                return True
            if isinstance(node, ast.Return):
                return True
    return False


def _same_answer(question: Statement, change: Statement) -> bool:
    """Whether a schema change surely leaves the answer to a question about its table as it is."""
    seen = change.changes.seen
    every_column = "*" in re.sub(r"count\(\*\)", "", question.text, flags=re.IGNORECASE)
    return bool(seen) and not every_column and all(one.kind in _ADDED for one in seen)


def _touched(statement: Statement, facts: Facts) -> set[str]:
    """The tables that a statement changes."""
    seen = changes_of(statement.text, facts).seen
    found = {name.rpartition(".")[2] for change in seen for name in (change.table, change.new)}
    rows = _OF_ROWS.match(without_comments(statement.text))
    return found | (names_in(rows["table"], facts) if rows else set())


def _check_busy(connection: sa.Connection, facts: Facts) -> None:
    """Make sure that nobody changes the schema now, as a server may for a client that has ended.

    :raises Unclear: somebody does.
    """
    query = _BUSY.get(facts.name)
    running = None if query is None else connection.scalar(sa.text(query))
    if running:
        raise Unclear(f"another session is still busy with: {shown(running)}. Wait until it is done")


def _mode(connection: sa.Connection) -> str:
    """How a connection that ``env.py`` has made begins and ends transactions for another tool.

    :returns: ``each`` where each statement commits, ``driver`` where SQLite's driver begins one before it changes rows,
        ``own`` where it is done otherwise, and ``server``.
    """
    if autocommits(connection):
        return "each"
    if connection.dialect.name != "sqlite":
        return "server"
    driver: Any = connection.connection.dbapi_connection
    own = getattr(driver, "autocommit", -1)
    return "driver" if driver.isolation_level is not None and own == -1 else "own"


class Listing(RevisionJournal):
    """Notes what a revision sends, and sends only its questions.

    :param mode: see :func:`_mode`.
    :param hidden: whether the source of the revision may commit a part of it.
    :ivar statements: in their order.
    :ivar units: what was committed together.
    :ivar unclear: why it cannot be followed.
    """

    def __init__(
        self, connection: sa.Connection, revision: str, mode: str, *, hidden: bool, begun: bool = False
    ) -> None:
        super().__init__(connection, revision, lambda _: None, begun=begun)
        self.statements: list[Statement] = []
        self.units: list[_Unit] = []
        self.unclear = (
            "" if mode != "own" else ("its env.py or engine begins and ends SQLite's transactions in a way of its own")
        )
        self._mode = mode
        self._hidden = hidden
        self._open: list[Statement] = []
        #: Whether SQLite's driver has begun a transaction.
        self._began = False
        self._alike: Counter[str] = Counter()
        self._in_batch = False
        #: Whether it was stopped because what follows cannot have been done.
        self.enough = False
        #: Copies that ``batch_alter_table`` has made of tables that are gone; the table whose batch has come so far.
        self.lost: set[str] = set()
        self.gone = ""

    @property
    def may_commit(self) -> bool:
        """Whether what was not listed may be committed before the end of the revision."""
        return self._hidden or self._mode == "each" or self.at_once or not (self.facts.server or self._began)

    @contextmanager
    def followed(self, connection: sa.Connection) -> Iterator[None]:
        """Know what is rolled back, and when ``batch_alter_table`` asks what a table has, which decides nothing."""
        sa.event.listen(connection, "rollback", self._rolled_back)
        try:
            with flushing(self._flushed):
                yield
        finally:
            sa.event.remove(connection, "rollback", self._rolled_back)

    def _flushed(self, batch: BatchOperationsImpl, flush: Callable[[], None]) -> None:
        """Note what a batch does; of one whose table is gone, that it has come so far."""
        if batch.schema is None and copy_of(batch.table_name) in self.lost and replaces(batch, batch.table_name):
            self.gone = batch.table_name
            quote = self._connection.dialect.identifier_preparer.quote
            for text in (f"CREATE TABLE {quote(copy_of(self.gone))}", f"DROP TABLE {quote(self.gone)}"):
                self.change(self.number(text), text, 0)
            self.stop()
        self._in_batch = True
        try:
            flush()
        finally:
            self._in_batch = False

    def _rolled_back(self, _: sa.Connection) -> None:
        if self._open:
            self.unclear = "its code takes a part back"

    def refuse(self, why: str) -> NoReturn:
        """Stop; the code may catch it and go on.

        :raises Unclear: always.
        """
        self.unclear = why
        raise Unclear(why)

    def refuse_engine(self) -> sa.Engine:
        """In the place of the engine of the application."""
        self.refuse("it uses db.session or db.engine, which had a connection of its own")

    def stop(self) -> NoReturn:
        """Stop because what follows cannot have been done."""
        self.enough = True
        raise _Enough

    def recording_cursor(self, driver_cursor: Any, streams: bool) -> StepCursor:
        """A cursor that only asks."""
        return _ListingCursor(self, driver_cursor)

    def cut(self) -> None:
        """A commit."""
        self._began = False
        if self._open:
            self.units.append(_Unit(self._open))
            self._open = []

    def cut_open(self) -> None:
        """A commit past SQLAlchemy."""
        if not self.paused:
            self.cut()

    def control(self, statement: str, send: Callable[[], Any]) -> Any:
        """Follow what begins or ends a transaction."""
        text = without_comments(statement).upper()
        if self.paused:
            return send()
        if self._is_temporary(text):
            self.refuse(f"it uses a temporary table: {shown(statement)}")
        if controls_transaction(statement, self.facts.name):
            if text.startswith(("ROLLBACK", "ABORT")):
                self.refuse("its code takes a part back")
            if text.startswith(("COMMIT", "END")):
                self.cut()
            elif not self.facts.server:
                self._began = True
            return None
        if text.startswith(("LOCK", "ROLLBACK")) or (
            text.startswith(("SAVEPOINT", "RELEASE")) and not self.facts.server and not self._began
        ):
            self.refuse(f"it sends {shown(statement)}")
        return send()

    def ask(self, statement: str) -> None:
        """Note a question."""
        if not self._in_batch:
            self.statements.append(Statement(statement))

    def check_repeats(self, statement: str) -> None:
        """Stop code that repeats a statement for ever, as nothing of it is done.

        :raises Unclear: it does.
        """
        self._alike[statement] += 1
        if self._alike[statement] > _MOST_ALIKE:
            self.refuse(f"its code repeats a statement until there is nothing more to do: {shown(statement)}")

    def change(self, step: str, statement: str, rows: int) -> Statement:
        """Note a statement that changes something, and what is committed with it."""
        if self.enough:
            self.stop()
        self.check_repeats(statement)
        one = Statement(statement, step, self.autocommit or self._mode == "each", rows)
        text = without_comments(statement)
        if not (self.facts.server or self._began or self.gone) and re.match(rf"CREATE TABLE \"?{COPY}", text):
            if one.alone:
                self.refuse("it uses batch_alter_table() where each statement commits by itself")
            if not self._hidden:
                # What is there of it is dropped, and what follows is committed with the end of the revision.
                self.statements.append(one)
                self.units.append(_Unit([one]))
                self.stop()
        self.statements.append(one)
        if one.alone:
            self.units.append(_Unit([one]))
        elif self.at_once:
            if self.facts.commits(statement):
                self.units.append(_Unit([*self._open, one], refused=bool(self._open)))
                self._open = []
            else:
                self._open.append(one)
        elif self.facts.server:
            self._open.append(one)
        elif self._began or _BEGINS.match(statement):
            self._began = True
            if not self._hidden:
                self.stop()  # nothing more is committed before the end
            self._open.append(one)
        elif _CHANGES_ROWS.match(text):
            self.refuse(f"it depends on the version of Python whether this was committed: {shown(statement)}")
        else:
            self.units.append(_Unit([one]))
        return one


class _ListingCursor(RevisionCursor):
    """A driver's cursor that sends only questions."""

    _journal: Listing
    _last: Statement | None = None

    @property
    def lastrowid(self) -> Any:
        """As :pep:`249` has it."""
        if self._last is not None:
            self._last.numbered = True
        return super().lastrowid

    def _run(self, run: Any, statement: str, parameters: Any, name: str | None = None) -> Any:
        journal = self._journal
        self._passed = self._rows = self._description = self._last = None

        def send() -> Any:
            return run(statement) if parameters is None else run(statement, parameters)

        if not journal.paused and _OF_SCHEMA.search(statement) and reads(statement):
            journal.ask(statement)
            return send()
        step = journal.next(statement, name)
        if step is None:
            return journal.control(statement, send)
        done = journal.done(step)
        if done is not None:
            return self._replay(done)
        if reads(statement):
            journal.ask(statement)
            return send()
        many = run == self._cursor.executemany
        rows = 0 if changes_of(statement, journal.facts).seen else len(parameters) if many else 1
        self._last = journal.change(step, statement, rows)
        return self._replay(Done(rows, 0, None))
