"""Checksums of migrations: what a function does, not how its source is laid out.

The checksum of a function covers its code and every definition of its module that it reaches: a constant
list of columns, a helper, an import. Comments, docstrings, blank lines, line endings and trailing blanks do
not count, also not inside a string of several lines (SQL is written so). It is the same on every
version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

from .errors import MigrationError
from .sources import CHECKSUM_VERSION

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_BLANKS = re.compile(r"[ \t\r\f\v]*\n(?:[ \t\r\f\v]*\n)*")


class ModuleSource:
    """The parsed source of one module.

    :param name: dotted name of the module.
    :param path: its file, for messages.
    :param content: its source.
    :raises MigrationError: the source does not parse.
    """

    def __init__(self, name: str, path: str, content: bytes) -> None:
        self.name = name
        self.path = path
        try:
            self.tree = ast.parse(content, path)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            where = f"{path}, line {line}" if line else path
            raise MigrationError(
                f"The module of migrations {name!r} does not import: {where}: {type(error).__name__}: "
                f"{getattr(error, 'msg', error)}. Nothing was changed; mend the file and start again."
            ) from None
        self._texts: dict[ast.stmt, str] = {}
        self._used: dict[ast.stmt, set[str]] = {}

    def functions(self) -> dict[str, int]:
        """How many top-level functions have each name."""
        count: dict[str, int] = {}
        for node in self.tree.body:
            if isinstance(node, _Function):
                count[node.name] = count.get(node.name, 0) + 1
        return count

    def checksum(self, function: FunctionType, is_decorator: Callable[[ast.expr], bool]) -> str:
        """The checksum of a function of this module, in hexadecimal.

        :param function: the function as the module defined it.
        :param is_decorator: tells the decorators that only say how to run it; they do not count.
        :raises MigrationError: the source has no such function.
        """
        root = self._node(function)
        digest = hashlib.sha256(b"%d\0" % CHECKSUM_VERSION)
        digest.update(_encode(_dump(root, is_decorator)))
        for name, statements in sorted(self._closure(root).items()):
            for statement in statements:
                digest.update(_encode(f"{name}={self._text(statement, name)}"))
        return digest.hexdigest()

    def reaches(self, function: FunctionType) -> set[str]:
        """Names of this module's definitions that a function uses, directly or through others."""
        return set(self._closure(self._node(function)))

    def _closure(self, root: ast.AST) -> dict[str, list[ast.stmt]]:
        """Every name of the module that ``root`` reaches, with the statements that define it, in order."""
        closure: dict[str, list[ast.stmt]] = {}
        waiting = _used(root)
        while waiting:
            name = waiting.pop()
            if name in self._bindings and name not in closure:
                closure[name] = self._bindings[name]
                for statement in closure[name]:
                    if statement is not root:
                        waiting |= self._names(statement)
        return closure

    def _node(self, function: FunctionType) -> ast.AST:
        node = self._nodes.get((function.__code__.co_name, function.__code__.co_firstlineno))
        if node is None:
            raise MigrationError(
                f"The source of migration {function.__name__!r} is not in {self.path}: define it there with 'def', "
                "and start again if the file changed after this process loaded it."
            )
        return node

    @cached_property
    def _nodes(self) -> dict[tuple[str, int], ast.AST]:
        nodes: dict[tuple[str, int], ast.AST] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, _Function):
                # A code object begins at its first decorator.
                nodes[node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])] = node
        return nodes

    @cached_property
    def code(self) -> dict[tuple[str, int], CodeType]:
        """Name and first line -> the code of every function, as this source compiles."""
        found: dict[tuple[str, int], CodeType] = {}
        waiting = [compile(self.tree, self.path, "exec", dont_inherit=True)]
        while waiting:
            code = waiting.pop()
            found[code.co_name, code.co_firstlineno] = code
            waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        return found

    @cached_property
    def _bindings(self) -> dict[str, list[ast.stmt]]:
        """Name -> the top-level statements that define or change it, in order."""
        bindings: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            for name in _bound(statement):
                bindings.setdefault(name, []).append(statement)
        return bindings

    def _text(self, statement: ast.stmt, name: str) -> str:
        """The canonical text of what a top-level statement says of ``name``.

        Of an import, only the part for that name counts: importing something more changes no migration.
        """
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            aliases = [(a.name, a.asname) for a in statement.names if (a.asname or a.name).split(".")[0] == name]
            return repr((getattr(statement, "module", None), getattr(statement, "level", None), aliases))
        if statement not in self._texts:
            self._texts[statement] = _dump(statement, lambda _: False)
        return self._texts[statement]

    def _names(self, statement: ast.stmt) -> set[str]:
        if statement not in self._used:
            self._used[statement] = _used(statement)
        return self._used[statement]


def _bound(statement: ast.stmt) -> set[str]:
    """The module-level names that a top-level statement defines or changes."""
    if isinstance(statement, (*_Function, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    names: set[str] = set()
    for node in _in_module_scope(statement):
        if isinstance(node, (*_Function, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names.add(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names |= _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            # COLUMNS.append(...) changes COLUMNS, and register(COLUMNS) may.
            names |= _root(node.value.func) if isinstance(node.value.func, ast.Attribute) else set()
            names |= {argument.id for argument in node.value.args if isinstance(argument, ast.Name)}
    return names


def _in_module_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Walk without entering what has a scope of its own."""
    yield node
    if not isinstance(node, (*_Function, ast.ClassDef, ast.Lambda, *_Comprehension)):
        for child in ast.iter_child_nodes(node):
            yield from _in_module_scope(child)


def _used(node: ast.AST) -> set[str]:
    """The names that a piece of code takes from outside itself.

    Names of a class body count although they may be its own: too many names re-run an idempotent migration
    once more, too few would miss an edit.
    """
    if isinstance(node, ast.Name):
        return {node.id}
    names: set[str] = set()
    for child in ast.iter_child_nodes(node):
        names |= _used(child)
    if isinstance(node, (*_Function, ast.Lambda)):
        body = node.body if isinstance(node.body, list) else [node.body]
        scope = [inner for statement in body for inner in _in_module_scope(statement)]
        local = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        local |= {n.id for n in scope if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        shared = {name for n in ast.walk(node) if isinstance(n, ast.Global) for name in n.names}
        around = [node.args, *getattr(node, "decorator_list", []), getattr(node, "returns", None)]
        outside = set().union(*(_used(part) for part in around if part is not None))
        names = (names - local) | outside | shared
    elif isinstance(node, _Comprehension):
        names -= {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
    return names


def _root(node: ast.expr) -> set[str]:
    """The name at the left end of ``name.attribute[index]``."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _dump(value: Any, is_decorator: Callable[[ast.expr], bool]) -> str:
    """Canonical text of a syntax tree.

    :func:`ast.dump` will not do: what it prints differs between versions of Python, by new and empty fields.
    """
    if isinstance(value, ast.Constant):
        return f"{type(value.value).__name__}:{_constant(value.value)!r}"
    if isinstance(value, ast.JoinedStr):
        return f"JoinedStr[{','.join(_joined(value, is_decorator))}]"
    if isinstance(value, ast.AST):
        fields = []
        for field in value._fields:
            child: Any = getattr(value, field, None)
            if field in ("ctx", "kind", "type_comment", "type_ignores"):
                continue
            if field == "body" and isinstance(value, (*_Function, ast.ClassDef)):
                child = child[1:] if ast.get_docstring(value, clean=False) is not None else child
            if field == "decorator_list":
                child = [decorator for decorator in child if not is_decorator(decorator)]
            if child is None or child == []:
                continue
            fields.append(f"{field}={_dump(child, is_decorator)}")
        return f"{type(value).__name__}({','.join(fields)})"
    if isinstance(value, list):
        return f"[{','.join(_dump(item, is_decorator) for item in value)}]"
    return repr(value)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass") + b"\0"


def _constant(value: object) -> object:
    return _BLANKS.sub("\n", value) if isinstance(value, str) and "\n" in value else value


def _joined(node: ast.JoinedStr, is_decorator: Callable[[ast.expr], bool]) -> Iterator[str]:
    """The parts of an f-string; versions of Python cut its constant parts differently."""
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        else:
            if text:
                yield repr(_constant(text))
            text = ""
            yield _dump(part, is_decorator)
    if text:
        yield repr(_constant(text))
