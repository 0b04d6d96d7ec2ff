"""What the source of a migration tells without a database."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from inspect import unwrap
from typing import Any

from ..dialects.base import Facts
from ..errors import shortened
from ..loading.decorator import Migration
from ..schema.raw_sql import losses, within
from ..schema.rules import (
    CONTROL,
    DESTROYS,
    DROP_COLUMN,
    DROP_TABLE,
    RENAME_TABLE,
    RULES,
    TODAYS_MODEL,
    Level,
    Rule,
)
from ..session.controls import controls_transaction, split
from .findings import Finding, shown_path

#: Methods whose first argument is SQL.
_SENDS = {"execute", "exec_driver_sql", "scalar", "scalars", "text", "executescript"}
#: Operations that destroy, as far as their names tell.
_DESTROY = {"drop_column": DROP_COLUMN, "drop_table": DROP_TABLE, "rename_table": RENAME_TABLE}
_ALLOWED = re.compile(r"#\s*db-smart:\s*allow\s+(DS\d+)\s+because\s+(\S.*?)\s*$", re.MULTILINE)
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def allowed(migration: Migration) -> Mapping[str, str]:
    """The rules that do not apply to a migration, each with the reason.

    A revision says so in a comment: ``# db-smart: allow DS301 because the table has 40 rows``.
    """
    if not migration.revision:
        return migration.options.allow
    return {rule: why for rule, why in _ALLOWED.findall(_text(migration.path)) if rule in RULES}


def found_in(migration: Migration, facts: Facts, models: Mapping[Any, str], *, sql: bool) -> Iterator[Finding]:
    """What breaks a rule in the source of a migration.

    :param facts: of the database that it is for.
    :param models: the models of the application, each with its name.
    :param sql: whether to look at its SQL and operations too, because nobody else can tell what it sends.
    """
    path, given = shown_path(migration), allowed(migration)

    def finding(
        rule: Rule, message: str, line: int, level: Level | None = None, statement: str | None = None
    ) -> Finding:
        why = None if rule is CONTROL else given.get(rule.id)
        return Finding(rule, level or rule.level, message, migration.name, path, line, statement, allowed=why)

    for root in _roots(migration):
        if sql:
            yield from _sql(migration, facts, root, finding)
        for name, line in _models_used(migration, root, models):
            yield finding(TODAYS_MODEL, f"It uses the model {name}.", line)


def _sql(migration: Migration, facts: Facts, root: ast.AST, finding: Callable[..., Finding]) -> Iterator[Finding]:
    for node in ast.walk(root):
        if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Attribute, ast.Name)):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        options = migration.options
        if name in _DESTROY and isinstance(node.func, ast.Attribute) and not migration.revision:
            if not options.destructive:
                yield finding(_DESTROY[name], ast.unparse(node), node.lineno)
            continue
        text = _string(node.args[0]) if node.args and name in _SENDS else None
        if text is None:
            continue
        if options.transactional and controls_transaction(text, facts.name):
            yield finding(CONTROL, "It begins or ends the transaction.", node.lineno, None, shortened(text))
        for statement in [one for part in split(text, facts.name) for one in within(part, facts)]:
            lost = [] if options.destructive else [*losses(statement, facts)]
            if lost:
                said = ", ".join(f"{one.kind} {'.'.join(filter(None, (one.place, one.name)))}" for one in lost)
                level = "warning" if migration.revision else "error"
                yield finding(DESTROYS, f"It destroys: {said}.", node.lineno, level, shortened(statement))


def _string(node: ast.expr) -> str | None:
    """The text of a constant, also of an f-string, whose values stand as a name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "value" for part in node.values)
    return None


def _models_used(migration: Migration, root: ast.AST, models: Mapping[Any, str]) -> Iterator[tuple[str, int]]:
    """The models that a function takes from elsewhere, but for those that it only gives to ``op.sync()``."""
    if not models:
        return
    synced = {
        id(argument)
        for node in ast.walk(root)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sync"
        for given in node.args
        for argument in ast.walk(given)
    }
    around = _globals(migration)
    seen: set[str] = set()
    for node in ast.walk(root):
        value: Any = None
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ImportFrom):
            module = sys.modules.get(node.module or "")
            for alias in node.names:
                value = getattr(module, alias.name, None)
                name = _model(value, models)
                if name is not None and name not in seen and _loads(root, alias.asname or alias.name, synced):
                    seen.add(name)
                    yield name, node.lineno
            continue
        if id(node) in synced:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            value = around.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = around.get(node.value.id)
            if _model(owner, models) is None:  # else the name itself says it
                value = getattr(owner, node.attr, None)
        name = _model(value, models)
        if name is not None and name not in seen:
            seen.add(name)
            yield name, line


def _loads(root: ast.AST, name: str, synced: set[int]) -> bool:
    """Whether a function uses a name, other than to give it to ``op.sync()``."""
    return any(
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == name and id(node) not in synced
        for node in ast.walk(root)
    )


def _model(value: Any, models: Mapping[Any, str]) -> str | None:
    try:
        return models.get(value)
    except TypeError:  # it has no hash
        return None


def _globals(migration: Migration) -> Mapping[str, Any]:
    if not migration.revision:
        return getattr(unwrap(migration.function), "__globals__", {})
    for module in [*sys.modules.values()]:
        if getattr(module, "__file__", None) == migration.path:
            return vars(module)
    return {}


def _roots(migration: Migration) -> Iterator[ast.AST]:
    """The functions that a migration is made of."""
    name = "upgrade" if migration.revision else migration.name
    for node in _tree(migration.path).body:
        if isinstance(node, _Function) and (node.name == name or (migration.revision and node.name.startswith(name))):
            yield node


def _text(path: str) -> str:
    return _read(path, _changed(path))


def _tree(path: str) -> ast.Module:
    return _parsed(path, _changed(path))


def _changed(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=64)
def _read(path: str, _: tuple[int, int] | None) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


@lru_cache(maxsize=64)
def _parsed(path: str, changed: tuple[int, int] | None) -> ast.Module:
    try:
        return ast.parse(_read(path, changed))
    except SyntaxError:
        return ast.Module([], [])
