"""Take back what the operations of one run made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DropEnumType
from sqlalchemy.dialects.postgresql.named_types import DropDomainType

from ..dialects.editor import editor_of
from ..operations import Operations
from ..schema.catalog import Catalog
from ..schema.column_types import from_json
from ..schema.ddl import CreateDeclared, DropDeclared
from ..session.sql import without_doubled_percents
from .inverses import inverses
from .keeping import Keeper
from .transaction import UndoTransaction
from .values import Part, holds


class Inverting:
    """Takes back what one run made, in the open transaction.

    :param kept: what takes it back; see :func:`~.inverses.kept_of`.
    """

    def __init__(self, transaction: UndoTransaction, keeper: Keeper, kept: dict[str, Any]) -> None:
        self._transaction = transaction
        self._connection = transaction.connection
        self._catalog = Catalog(self._connection)
        self._keeper = keeper
        self._kept = kept
        self._op = Operations(transaction, destructive=True, catalog=self._catalog)
        self._editor = editor_of(transaction, self._catalog)

    def run(self) -> None:
        """Do all of it; each inverse has a method of its name."""
        for entry in inverses(self._kept):
            if entry["op"] not in ("cannot", "stays"):
                getattr(self, entry["op"])(entry)

    def drop_table(self, entry: dict[str, Any]) -> None:
        """Drop a table that the run made."""
        schema, table = entry["schema"], entry["table"]
        if self._catalog.has_table(table, schema):
            with self._keeper.emptied(Part(schema, table, None, sa.true())):
                self._op.drop_table(table, schema=schema)

    def drop_columns(self, entry: dict[str, Any]) -> None:
        """Drop columns that the run added, with what came with them."""
        schema, table = entry["schema"], entry["table"]
        if not self._catalog.has_table(table, schema):
            return
        there, key = self._catalog.constraints(table, schema).values(), self._catalog.normalize_name
        names = {key(name) for name in entry["names"]}
        # MariaDB drops no column that has a foreign key, to which it has given a name itself.
        keys = [one.name for one in there if one.kind == "foreign" and names.issuperset(map(key, one.columns))]
        for name in dict.fromkeys([*reversed(entry["constraints"]), *keys]):
            self._op.drop_constraint(name, table, schema=schema)
        for name in reversed(entry["names"]):
            if self._catalog.present(table, [name], schema):
                with self._keeper.emptied(Part(schema, table, name, holds(self._catalog, schema, table, name))):
                    self._op.drop_column(table, name, schema=schema, online=False)

    def drop_index(self, entry: dict[str, Any]) -> None:
        """Drop an index that the run made."""
        if not self._transaction.facts.transactional_ddl:
            self._drop_foreign_keys(entry["schema"], entry["table"])
            self._serve_foreign_keys(entry["schema"], entry["table"], entry["name"])
        self._op.drop_index(entry["name"], entry["table"], schema=entry["schema"], online=False)

    def _drop_foreign_keys(self, schema: str | None, table: str) -> None:
        """Drop the foreign keys that the run made: MariaDB drops no index that one of them needs."""
        key = self._catalog.normalize_name
        if not self._catalog.has_table(table, schema):
            return
        names: set[str] = set()
        columns: set[str] = set()
        for entry in self._kept["made"]:
            if (entry.get("schema"), entry.get("table")) == (schema, table):
                if entry["op"] == "drop_constraint":
                    names.add(key(entry["name"]))
                elif entry["op"] == "drop_columns":
                    columns.update(map(key, entry["names"]))
        for one in [*self._catalog.constraints(table, schema).values()]:
            if one.kind == "foreign" and (key(one.name) in names or columns.issuperset(map(key, one.columns))):
                self._op.drop_constraint(one.name, table, schema=schema)

    def _serve_foreign_keys(self, schema: str | None, table: str, name: str) -> None:
        """Give an older foreign key its own index again, which MariaDB dropped when the run made one that serves it."""
        if not self._catalog.has_table(table, schema):
            return
        key, indexes = self._catalog.normalize_name, self._catalog.indexes(table, schema)
        going = indexes.pop(key(name), None)
        if going is None:
            return
        others: list[Sequence[str | None]] = [one.columns for one in indexes.values()]
        others.append(self._catalog.primary_key(table, schema))
        for one in self._catalog.constraints(table, schema).values():
            count = len(one.columns)
            if one.kind != "foreign" or key(one.name) == key(name) or going.columns[:count] != one.columns:
                continue
            if not any(columns[:count] == one.columns for columns in others):
                unnamed = re.fullmatch(rf"{re.escape(table)}_ibfk_\d+", one.name, re.IGNORECASE)
                own = one.columns[0] if unnamed else one.name
                self._op.create_index(own, table, one.columns, schema=schema, online=False)
                others.append(one.columns)

    def drop_constraint(self, entry: dict[str, Any]) -> None:
        """Drop a constraint that the run made."""
        name, table, schema = entry["name"], entry["table"], entry["schema"]
        if not (self._transaction.facts.transactional_ddl or entry["implied"]):
            self._serve_foreign_keys(schema, table, name)
        self._op.drop_constraint(name, table, schema=schema)
        if entry["implied"]:  # by the foreign key
            self._op.drop_index(name, table, schema=schema, online=False)

    def rename_table(self, entry: dict[str, Any]) -> None:
        """Give a table its name of before."""
        if self._catalog.has_table(entry["table"], entry["schema"]):
            self._op.rename_table(entry["table"], entry["name"], schema=entry["schema"])

    def rename_column(self, entry: dict[str, Any]) -> None:
        """Give a column its name of before."""
        if self._there(entry):
            self._op.alter_column(
                entry["table"], entry["name"], new_column_name=entry["to"], schema=entry["schema"], online=False
            )

    def alter_column(self, entry: dict[str, Any]) -> None:
        """Give a column what it had before."""
        if not self._there(entry):
            return
        changes: dict[str, Any] = {key: entry[key] for key in ("nullable", "comment") if key in entry}
        if "type" in entry:
            changes["type_"] = from_json(entry["type"], self._connection.dialect)
        if "default" in entry:
            default = entry["default"]
            changes["server_default"] = None if default is None else sa.text(default.replace(":", r"\:"))
        self._op.alter_column(entry["table"], entry["name"], schema=entry["schema"], online=False, **changes)

    def table_comment(self, entry: dict[str, Any]) -> None:
        """Give a table the comment that it had before."""
        if self._catalog.has_table(entry["table"], entry["schema"]):
            self._op.create_table_comment(entry["table"], entry["comment"], schema=entry["schema"])

    def declare(self, entry: dict[str, Any]) -> None:
        """Put back what has a text, or drop it."""
        kind, name, schema, text = entry["kind"], entry["name"], entry["schema"], entry["text"]
        table = entry["table"] or None
        if kind == "index":
            if not self._catalog.has_table(str(table), schema):
                return
            now = self._catalog.declared(kind, name, schema, table)
            if now != text and text is not None and now is not None and not self._transaction.facts.transactional_ddl:
                quote = without_doubled_percents(self._connection.dialect).identifier_preparer.quote_identifier
                self._transaction.send(f"{text}, DROP INDEX {quote(name)}")  # at once, as a foreign key may need it
            elif now != text:
                self._op.drop_index(name, str(table), schema=schema, online=False)
                if text is not None:
                    self._transaction.send(text)
            return
        there = self._catalog.has_declared(kind, name, schema, table)
        if there and (text is None or not self._transaction.facts.transactional_ddl):
            self._editor.drop_declared(DropDeclared(kind, name, schema, table))
            there = False
        if text is not None:
            one = CreateDeclared(kind, name, schema, table, text)
            if self._transaction.facts.transactional_ddl:
                self._editor.declare(one, there)
            else:
                self._transaction.send(one)

    def drop_type(self, entry: dict[str, Any]) -> None:
        """Drop a type that the run made."""
        name, schema, dialect = entry["name"], entry["schema"], self._connection.dialect
        if dialect.has_type(self._connection, name, schema=schema):  # type: ignore[attr-defined]
            kind = sa.Enum(name=name, schema=schema)
            element = DropDomainType if entry["domain"] else DropEnumType
            self._transaction.send(element(kind))

    def _there(self, entry: dict[str, Any]) -> bool:
        table, schema = entry["table"], entry["schema"]
        return self._catalog.has_table(table, schema) and bool(self._catalog.present(table, [entry["name"]], schema))
