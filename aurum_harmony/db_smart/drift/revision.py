"""Write a revision of Alembic that brings databases to the models, with our comparison and Alembic's own templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.autogenerate.render import render_op, renderers
from alembic.operations import ops

from ..loading.alembic_files import AlembicFiles
from ..notices import without_plugin_lines
from ..revising import leads_to
from ..session.environment import Environment
from ..session.sql import without_doubled_percents
from .changes import Change
from .writing import render_item, without_parameters

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import MigrationScript
    from alembic.runtime.migration import MigrationContext

    from ..store.database import Database

#: What Alembic renders within ``batch_alter_table``, where the directory asks for that.
_OF_A_TABLE = (
    ops.AddColumnOp,
    ops.AlterColumnOp,
    ops.DropColumnOp,
    ops.CreateForeignKeyOp,
    ops.CreateUniqueConstraintOp,
    ops.CreateCheckConstraintOp,
    ops.DropConstraintOp,
)


class NoWayBack(ops.MigrateOperation):
    """What ``downgrade()`` does not undo: a comment that says so."""

    def __init__(self, operation: ops.MigrateOperation) -> None:
        self.operation = operation
        #: Whether the function has nothing else, and needs a statement.
        self.alone = False


@renderers.dispatch_for(NoWayBack)
def _render_no_way_back(context: AutogenContext, one: NoWayBack) -> list[str]:
    lines = [line for call in render_op(context, one.operation) for line in call.splitlines()]
    text = "# What upgrade() did here has no way back that can be written for you:"
    return [text, *(f"#     {line}" for line in lines), *(["pass"] if one.alone else [])]


def write_revision(files: AlembicFiles, name: str, changes: Sequence[tuple[Database, Sequence[Change]]]) -> str:
    """Write one revision with the changes of all databases.

    :param name: its message.
    :param changes: of each database.
    :returns: its file.
    :raises DbSmartError: it cannot be written.
    """

    def directives(context: MigrationContext, _: object, scripts: list[MigrationScript]) -> None:
        connection = context.connection
        assert connection is not None
        if connection.dialect.name == "sqlite":  # which changes a table only by another one in its place
            context.opts["render_as_batch"] = True
        if context.opts.get("render_item") is None:
            context.opts["render_item"] = render_item
        context.impl.dialect = without_doubled_percents(context.impl.dialect)  # as the text of the revision is read
        for database, found in changes:
            if leads_to(connection.engine.url, database):
                operations = list(_operations(found, sa.inspect(connection)))
                upgrade, downgrade = scripts[0].upgrade_ops_list[-1], scripts[0].downgrade_ops_list[-1]
                upgrade.ops[:] = _grouped(operations)
                downgrade.ops[:] = _grouped(_reversed(operations))
                last = downgrade.ops[-1] if downgrade.ops else None
                if isinstance(last, NoWayBack):
                    last.alone = all(isinstance(one, NoWayBack) for one in downgrade.ops)

    environment = Environment(files)
    with without_plugin_lines():
        return environment.write(name, directives)


def _operations(changes: Iterable[Change], inspector: sa.Inspector) -> Iterator[ops.MigrateOperation]:
    """What Alembic is to do; of a changed column also what it is now, for the way back."""
    columns: dict[tuple[str | None, str], Mapping[str, Any]] = {}
    for change in changes:
        if change.advice is not None:
            continue
        if change.operation is None:
            if change.sql is not None:
                yield ops.ExecuteSQLOp(without_parameters(change.sql))
            continue
        operation = change.operation
        if change.replaces and isinstance(operation, ops.CreateIndexOp):
            yield ops.DropIndexOp(str(operation.index_name), operation.table_name, schema=operation.schema)
        if isinstance(operation, ops.AlterColumnOp):
            place = operation.schema, operation.table_name
            if place not in columns:
                columns[place] = {one["name"]: one for one in inspector.get_columns(place[1], place[0])}
            now = columns[place].get(operation.column_name)
            if now is not None:
                operation.existing_type = now["type"]
                operation.existing_nullable = now["nullable"]
                operation.existing_server_default = _default(now["default"])
                operation.existing_comment = now.get("comment")
        if isinstance(operation, ops.CreateCheckConstraintOp) and isinstance(operation.condition, sa.TextClause):
            # Once more, for the text of the revision, in which a word behind a colon is a parameter too.
            operation.condition = sa.text(operation.condition.text.replace("\\:", "\\\\:"))
        yield operation


def _default(text: str | None) -> sa.DefaultClause | None:
    """The default of a column, of which Alembic also asks whether it is true: a mere text has no answer to that."""
    return None if text is None else sa.DefaultClause(sa.text(text))


def _reversed(operations: Sequence[ops.MigrateOperation]) -> Iterator[ops.MigrateOperation]:
    made = {(one.schema, one.table_name) for one in operations if isinstance(one, ops.CreateTableOp)}
    for operation in reversed(operations):
        if isinstance(operation, ops.CreateIndexOp) and (operation.schema, operation.table_name) in made:
            continue  # it goes with its table; MariaDB does not let it go before, if a foreign key needs it
        if isinstance(operation, ops.AlterColumnOp) and operation.existing_nullable is None:
            continue  # a column that this revision adds goes as a whole
        try:
            # Alembic makes up columns for an index of which it does not know more than its name.
            known = not isinstance(operation, ops.DropIndexOp) or operation._reverse is not None
            back = operation.reverse() if known else NoWayBack(operation)
        except (NotImplementedError, ValueError):
            back = NoWayBack(operation)
        if isinstance(back, ops.AlterColumnOp) and isinstance(operation, ops.AlterColumnOp):
            # Alembic does not turn the names round.
            back.column_name = operation.modify_name or operation.column_name
            back.modify_name = operation.modify_name and operation.column_name
        yield back


def _grouped(operations: Iterable[ops.MigrateOperation]) -> list[ops.MigrateOperation]:
    """The operations, those of one table that follow each other together."""

    def table(operation: ops.MigrateOperation) -> tuple[Any, ...] | None:
        if not isinstance(operation, _OF_A_TABLE):
            return None
        if isinstance(operation, ops.CreateForeignKeyOp):
            return operation.source_table, operation.kw.get("source_schema")
        return operation.table_name, operation.schema

    found: list[ops.MigrateOperation] = []
    for place, group in groupby(operations, table):
        together = list(group)
        found += together if place is None else [ops.ModifyTableOps(place[0], together, schema=place[1])]
    return found
