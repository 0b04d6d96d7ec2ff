"""Refuses raw SQL of a migration at the moment it runs, before it is sent, by the rules DS301, DS302 and DS303."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..dialects.base import Facts
from ..errors import DbSmartError, shortened
from ..notices import logger_of
from ..session.controls import controls_transaction, split
from .catalog import Catalog
from .effects import changes_of
from .instead import backfill, batches
from .raw_sql import Loss, RowChange, changes_rows, losses, parts, place_of, row_change, within
from .rules import CONTROL, DESTROYS, MANY_ROWS, RULES, Refused, Rule

if TYPE_CHECKING:
    from ..loading.decorator import Options
    from ..session.transaction import Transaction

_logger = logger_of(__name__)

#: What all that is refused has one of; most statements have none, and are not looked at any further.
_WORDS = re.compile(
    r"\b(?:UPDATE|DELETE|DROP|TRUNCATE|DISCARD|REPLACE|COMMIT|ROLLBACK|BEGIN|START|END|ABORT|TABLE|PREPARE|AUTOCOMMIT)\b",
    re.IGNORECASE,
)
#: How many times more rows there may be than a database estimates, so that they are to be counted: of a condition of
#: which it knows nothing, PostgreSQL believes that one row in 200 meets it.
_DOUBT = 200


class Guard:
    """Looks at each statement of a migration's own SQL, whether by ``op.execute()``, ``op.session`` or ``db.session``.

    :param transaction: of the migration.
    :param options: of the migration: what it may destroy, and which rules do not apply to it.
    :param catalog: answers what the database has.
    :raises DbSmartError: the options allow what is no rule.
    """

    def __init__(self, transaction: Transaction, options: Options, catalog: Catalog | None = None) -> None:
        self._transaction = transaction
        self._options = options
        self._catalog = catalog or Catalog(transaction.connection)
        self._facts = transaction.facts
        self._most = transaction.settings.statement_rows
        #: Tables that this migration has made, which no release uses yet.
        self._made: set[str] = set()
        self._runs: Counter[str] = Counter()
        check_allowed(options.allow, transaction.journal.migration)

    def passed(self, statement: str) -> None:
        """Take note of a statement that an earlier, interrupted run has done."""
        if _WORDS.search(statement):
            for one in self._parts(statement):
                self._note(one, done=True)

    def check(self, statement: str, parameters: Any = None) -> None:
        """Look at what is about to be sent.

        :param parameters: as the driver takes them.
        :raises Refused: a rule forbids it.
        """
        if not _WORDS.search(statement):
            return
        if self._transaction.transactional and controls_transaction(statement, self._facts.name):
            raise Refused(CONTROL, shortened(statement))
        statements = self._parts(statement)
        for one in statements:
            lost = [] if self._options.destructive else [*self._lost(one)]
            if lost:
                said = [f"{loss.kind} {'.'.join(filter(None, (loss.place, loss.name)))}" for loss in lost]
                self._refuse(DESTROYS, one, f"It would destroy: {', '.join(said)}. ")
            if changes_rows(one, self._facts):
                self._check_rows(one, parameters if len(statements) == 1 else None)
            self._note(one)

    def _parts(self, statement: str) -> list[str]:
        return [one for part in split(statement, self._facts.name) for one in within(part, self._facts)]

    def _refuse(self, rule: Rule, statement: str, detail: str = "", instead: str = "") -> None:
        why = self._options.allow.get(rule.id)
        self._transaction.refuse(Refused(rule, shortened(statement), detail, instead="" if why else instead), why)
        if why is not None:
            _logger.info("db-smart: %r: %s is allowed: %s", self._transaction.journal.migration, rule.id, why)

    def _note(self, statement: str, *, done: bool = False) -> None:
        """Note which tables there are by a statement that were not there before.

        :param done: whether an earlier run has sent it, so that the table is there.
        """
        for change in changes_of(statement, self._facts).seen:
            if change.kind == "make table" and not (change.anyway if done else self._there(change.table)):
                self._made.add(change.table)
            elif change.kind == "rename table" and change.table in self._made:
                self._made.add(change.new)

    def _unused(self, place: str) -> bool:
        """Whether this migration or run has made a table, so that no release uses it."""
        schema, table = parts(place)
        memory = self._transaction.memory
        normalized = ".".join(self._catalog.normalize_name(name) for name in (schema, table) if name is not None)
        return normalized in self._made or (memory is not None and memory.unused(schema, table))

    def _there(self, place: str, column: str = "") -> bool:
        """Whether there is such a table or column; not a temporary one of this session."""
        schema, table = parts(place)
        try:
            if not self._catalog.has_table(table, schema):
                return False
            return not column or bool(self._catalog.present(table, [parts(column)[1]], schema))
        except (sa.exc.DBAPIError, sa.exc.NoSuchTableError):
            return False  # the statement itself will say what is wrong

    def _lost(self, statement: str) -> Iterator[Loss]:
        """What a statement destroys of what is there, with all that goes along."""
        for loss in losses(statement, self._facts):
            schema, name = parts(loss.place)
            with suppress(sa.exc.DBAPIError):  # the statement itself will say what is wrong
                if self._loses(loss):
                    yield loss
                    continue
                for place, column in self._along(loss, schema, name):
                    kind = "rows" if loss.kind == "rows" else "column" if column else "table"
                    one = Loss(kind, place, place_of(None, column or ""))
                    if self._loses(one):
                        yield one

    def _loses(self, loss: Loss) -> bool:
        if loss.kind in ("database", "all objects of", "attribute"):
            return True
        if loss.kind not in ("table", "column", "partition", "rows", "former rows"):
            return self._facts.name != "postgresql"
        if self._unused(loss.place) or not self._there(loss.place, loss.name if loss.kind == "column" else ""):
            return False
        schema, table = parts(loss.place)
        return loss.kind != "rows" or not self._catalog.empty(table, schema)

    def _along(self, loss: Loss, schema: str | None, name: str) -> Iterator[tuple[str, str | None]]:
        """The tables, or columns of tables, that something takes along."""
        for place, table, column in self._facts.along(
            self._transaction.connection, loss.kind, schema, name, cascades=loss.cascades
        ):
            yield place_of(place, table), column

    def _check_rows(self, statement: str, parameters: Any) -> None:
        """Refuse a statement that would change more rows than one may.

        :raises Refused: it would.
        """
        change = row_change(statement, self._facts)
        if change is not None and self._unused(change.table):
            return
        # A loop may send one statement for each row: what it is asked about each time would take as long again.
        self._runs[statement] += 1
        if self._runs[statement] & (self._runs[statement] - 1):
            return
        count = self.rows(statement, change, parameters)
        if count is not None and count > self._most:
            about = f"More than {self._most:,} rows" if change is not None else f"About {counted_text(count)}"
            instead = "" if change is None else self._instead(change)
            self._refuse(MANY_ROWS, statement, f"{about}. ", instead)

    def rows(self, statement: str, change: RowChange | None, parameters: Any) -> float | None:
        """As :func:`rows_changed`; in a dry run, by what the tables would have."""
        if self._transaction.dry is None:
            return self._asked(
                lambda cursor: rows_changed(cursor, self._facts, statement, change, parameters, self._most)
            )
        if self._facts.server:
            estimate = self._asked(lambda cursor: self._facts.estimate(cursor, statement, parameters))
            if estimate is not None and (change is None or estimate * _DOUBT <= self._most):
                return estimate
        return None if change is None else self._planned(change)

    def _planned(self, change: RowChange) -> float | None:
        """As :meth:`rows`, of a dry run, by what the tables would have."""
        catalog: Any = self._catalog
        schema, table = parts(change.table)
        try:
            if catalog.stored(table, schema) is None:
                return None  # the run makes it
            rows = catalog.rows(table, schema, None if change.alias is None else parts(change.alias)[1])
            if rows is None:
                return None
            query = sa.select(sa.literal(1)).select_from(rows)
            if change.condition:
                query = query.where(sa.text(change.condition.replace(":", "\\:")))
            few = query.limit(self._most + 1).subquery()
            return float(catalog.ask(sa.select(sa.func.count()).select_from(few)))
        except (sa.exc.DBAPIError, sa.exc.NoSuchTableError, DbSmartError):
            return None

    def _asked(self, ask: Any) -> float | None:
        """What a question to the database gives; where it fails, the transaction is as before.

        The statement that was asked about fails in the same way, and then says what is wrong.
        """
        driver: Any = self._transaction.connection.connection.dbapi_connection
        driver = getattr(driver, "driver", driver)
        within = self._facts.failure_ends_transaction and self._transaction.transactional
        cursor = driver.cursor()
        try:
            if within:
                cursor.execute("SAVEPOINT db_smart_guard")
            found: float | None = ask(cursor)
            if within:
                cursor.execute("RELEASE SAVEPOINT db_smart_guard")
            return found
        except Exception as error:
            _logger.debug("db-smart: cannot foresee how many rows change: %s", self._transaction.database.redact(error))
            if within:
                with suppress(Exception):
                    cursor.execute("ROLLBACK TO SAVEPOINT db_smart_guard")
            return None
        finally:
            cursor.close()

    def _instead(self, change: RowChange) -> str:
        """A migration that does it in batches."""
        schema, table = parts(change.table)
        name = self._transaction.journal.migration
        if change.alias is not None or (change.verb == "UPDATE" and not change.alone):
            return ""  # whose SQL would not do in a backfill
        if change.verb == "UPDATE":
            return backfill(name, table, schema, change.assignments, change.condition)
        key = ["id"]
        with suppress(sa.exc.DBAPIError, sa.exc.NoSuchTableError):
            key = self._catalog.primary_key(table, schema) or key
        return batches(name, table, schema, key, change.condition)


def check_allowed(allow: Mapping[str, str], migration: str) -> None:
    """Make sure that rules which do not apply to a migration are rules.

    :raises DbSmartError: one is not.
    """
    unknown = sorted(allow.keys() - RULES.keys())
    if unknown:
        raise DbSmartError(
            f"{migration!r} allows {', '.join(unknown)}, which is no rule. Nothing was changed. The rules are: "
            f"{', '.join(RULES)}."
        )


def rows_changed(
    cursor: Any, facts: Facts, statement: str, change: RowChange | None, parameters: Any, most: int
) -> float | None:
    """How many rows a statement would change; where they are those of one table, counted up to one more than a bound.

    ``None`` where nobody knows: on SQLite, of a statement with several tables.

    :param cursor: of the driver.
    :param change: what is read from the statement.
    :param parameters: as the driver takes them.
    """
    if facts.server:
        estimate = facts.estimate(cursor, statement, parameters)
        if estimate is None or change is None or estimate * _DOUBT <= most:
            return estimate
    if change is None:
        return None
    values = () if parameters is None else (change.values(parameters),)
    cursor.execute(change.bounded(most), *values)
    return float(cursor.fetchone()[0])


def counted_text(count: float) -> str:
    """A number of rows in words."""
    return f"{count:,.0f} rows" if count != 1 else "1 row"
