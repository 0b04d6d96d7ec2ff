"""Checksums of migrations: what a function does, not how its source is laid out.

The checksum of a function covers its code and every definition of its module that it reaches: a constant
list of columns, a helper, an import. Comments, docstrings, blank lines, line endings and trailing blanks do
not count, also not inside a string written over several lines, as SQL is. It is the same on every
version of Python.
"""

from __future__ import annotations

import ast
import copy
import dis
import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from ..errors import MigrationError, text_of
from .sources import CHECKSUM_VERSION

IsDecorator = Callable[[ast.expr], bool]

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (*_Function, ast.ClassDef)
_Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
#: What has a scope of its own, or nothing in it.
_UNENTERED = (*_DOCUMENTED, ast.Lambda, *_Comprehension, ast.Import, ast.ImportFrom, ast.Name, ast.Constant)
#: What ``from module import *`` binds: it may be behind any name, so that every migration reaches it.
_STAR = "*"
_LOADS = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
_BLANKS = re.compile(r"[ \t\r\f\v]*\n(?:[ \t\r\f\v]*\n)*")
#: Where code is. What is within an expression is not searched.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
#: Fields of syntax trees that say nothing of what the code does.
_UNSAID = ("ctx", "kind", "type_comment", "type_ignores")
#: Of a statement made only of these, the compiler leaves nothing out, and a name is bound nowhere but in a ``Name``
#: or an ``arg``: so the names that it takes can be read from its tree, without compiling it, which takes longer.
_STRAIGHT = {
    *(*_Function, ast.arguments, ast.arg, ast.Lambda, ast.Expr, ast.Assign, ast.Pass, ast.For, ast.With, ast.withitem),
    *(ast.Call, ast.keyword, ast.Starred, ast.Name, ast.Attribute, ast.Constant, ast.JoinedStr, ast.FormattedValue),
    *(ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Subscript, ast.Slice, ast.BinOp, ast.UnaryOp, ast.Compare),
    *(*ast.operator.__subclasses__(), *ast.unaryop.__subclasses__(), *ast.cmpop.__subclasses__()),
}


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
        self._content = content
        try:
            self.tree = ast.parse(content, path)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _not_importable(name, path, error) from None
        # A statement is reached by many functions, and each of these is asked about twice.
        self._dumps: dict[ast.stmt, _Dump] = {}
        self._used: dict[ast.stmt, set[str]] = {}
        self._closures: dict[ast.stmt, dict[str, list[ast.stmt]]] = {}
        self._lines: dict[tuple[ast.stmt, str], bytes] = {}

    def functions(self) -> dict[str, int]:
        """How many top-level functions have each name."""
        count: dict[str, int] = {}
        for node in self.tree.body:
            if isinstance(node, _Function):
                count[node.name] = count.get(node.name, 0) + 1
        return count

    def checksum(self, function: FunctionType, is_decorator: IsDecorator) -> str:
        """The checksum of a function of this module, in hexadecimal.

        :param function: the function as the module defined it.
        :param is_decorator: tells the decorators that only say how to run it; they do not count.
        :raises MigrationError: the source has no such function.
        """
        root = self._node(function)
        digest = hashlib.sha256(b"%d\0" % CHECKSUM_VERSION)
        digest.update(_encode(self._dump(root, is_decorator).text))
        for name, statements in sorted(self._closure(root, is_decorator).items()):
            for statement in statements:
                line = self._lines.get((statement, name))
                if line is None:
                    line = _encode(f"{name}={self._text(statement, name, is_decorator)}")
                    self._lines[statement, name] = line
                digest.update(line)
        return digest.hexdigest()

    def reaches(self, function: FunctionType, is_decorator: IsDecorator) -> set[str]:
        """Names of this module's definitions that a function uses, directly or through others."""
        return set(self._closure(self._node(function), is_decorator))

    def _closure(self, root: ast.stmt, is_decorator: IsDecorator) -> dict[str, list[ast.stmt]]:
        """Every name of the module that ``root`` reaches, with the statements that define it, in order."""
        closure = self._closures.get(root)
        if closure is not None:
            return closure
        closure = self._closures[root] = {}
        waiting = {*self._names(root, is_decorator), _STAR}
        while waiting:
            name = waiting.pop()
            if name in self._bindings and name not in closure:
                closure[name] = self._bindings[name]
                for statement in closure[name]:
                    waiting |= self._names(statement, is_decorator)
        return closure

    def _node(self, function: FunctionType) -> ast.stmt:
        code = inspect.unwrap(function).__code__
        node = self._nodes.get((code.co_name, code.co_firstlineno)) if code.co_filename == self.path else None
        if node is None:  # a decorator hides the function; only its name is left to find it by
            named = [n for n in self.tree.body if isinstance(n, _Function) and n.name == function.__name__]
            node = named[0] if len(named) == 1 and code.co_filename != self.path else None
        if node is None:
            raise MigrationError(
                f"The source of migration {function.__name__!r} is not in {self.path}. Nothing was changed. Define it "
                "there with 'def'; if the file changed after this process loaded it, start again."
            )
        return node

    @cached_property
    def _nodes(self) -> dict[tuple[str, int], ast.stmt]:
        nodes: dict[tuple[str, int], ast.stmt] = {}
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _Function):
                # A code object begins at its first decorator.
                nodes[node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])] = node
            for block in _BLOCKS:
                waiting += getattr(node, block, ())
        return nodes

    @cached_property
    def code(self) -> dict[tuple[str, int], CodeType]:
        """Name and first line -> the code of every function, as this source compiles."""
        return {(code.co_name, code.co_firstlineno): code for code in _codes(self.compiled)}

    @cached_property
    def compiled(self) -> CodeType:
        """The module as this source compiles.

        :raises MigrationError: it parses, but does not compile.
        """
        try:
            return compile(self._content, self.path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _not_importable(self.name, self.path, error) from None

    @cached_property
    def _bindings(self) -> dict[str, list[ast.stmt]]:
        """Name -> the top-level statements that define or change it, in order."""
        bindings: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            for name in _bound(statement):
                bindings.setdefault(name, []).append(statement)
        return bindings

    def _text(self, statement: ast.stmt, name: str, is_decorator: IsDecorator) -> str:
        """The canonical text of what a top-level statement says of ``name``.

        Of an import, only the part for that name counts: importing something more changes no migration. So with an
        ``if``, which is often around imports.
        """
        if isinstance(statement, ast.If):
            branches = [
                [self._text(child, name, is_decorator) for child in branch if name in _bound(child)]
                for branch in (statement.body, statement.orelse)
            ]
            return f"If({_dump(statement.test).text},{branches!r})"
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            aliases = [(a.name, a.asname) for a in statement.names if _imported(a) == name]
            return ascii((getattr(statement, "module", None), getattr(statement, "level", None), aliases))
        return self._dump(statement, is_decorator).text

    def _dump(self, statement: ast.stmt, is_decorator: IsDecorator) -> _Dump:
        dump = self._dumps.get(statement)
        if dump is None:
            dump = self._dumps[statement] = _dump(_plain(statement, is_decorator))
        return dump

    def _names(self, statement: ast.stmt, is_decorator: IsDecorator) -> set[str]:
        """The names that a statement takes from the module, also those that its functions take when called.

        The compiler decides which names are local. Names of a class body count although they may be its own: too many
        names re-run an idempotent migration once more, too few would miss an edit.
        """
        names = self._used.get(statement)
        if names is None:
            names = self._used[statement] = self._taken(statement, is_decorator)
        return names

    def _taken(self, statement: ast.stmt, is_decorator: IsDecorator) -> set[str]:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            return set()
        if not isinstance(statement, ast.If):  # of which the text is made of its parts
            dump = self._dump(statement, is_decorator)
            if dump.kinds <= _STRAIGHT:
                names = dump.loaded & self._bindings.keys()
                if names.isdisjoint(dump.bound):
                    return names
        return self._loaded(_plain(statement, is_decorator))

    def _loaded(self, statement: ast.stmt) -> set[str]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # given when the module itself is compiled
                code = compile(ast.Module([statement], []), self.path, "exec", dont_inherit=True, optimize=0)
        except (RecursionError, MemoryError):  # a very long sum, which only compiles from its text
            return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        return {
            instruction.argval
            for inner in _codes(code)
            if not self._bindings.keys().isdisjoint(inner.co_names)
            for instruction in dis.get_instructions(inner)
            if instruction.opname in _LOADS
        }


def _not_importable(name: str, path: str, error: BaseException) -> MigrationError:
    line = getattr(error, "lineno", None)
    where = f"{path}, line {line}" if line else path
    return MigrationError(
        f"The module of migrations {name!r} cannot be imported: {where}: {type(error).__name__}: "
        f"{text_of(getattr(error, 'msg', None) or error)}. Nothing was changed. Fix the file and start again."
    )


def _plain(statement: ast.stmt, is_decorator: IsDecorator) -> ast.stmt:
    """A function without the decorators that only say how to run it."""
    if not isinstance(statement, _Function) or not any(map(is_decorator, statement.decorator_list)):
        return statement
    plain = copy.copy(statement)
    plain.decorator_list = [decorator for decorator in statement.decorator_list if not is_decorator(decorator)]
    return plain


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _bound(statement: ast.stmt) -> set[str]:
    """The module-level names that a top-level statement defines or may change."""
    names: set[str] = set()
    for node in _in_module_scope(statement):
        if isinstance(node, _DOCUMENTED):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {_imported(alias) for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names.add(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name is not None:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest is not None:
            names.add(node.rest)
        elif isinstance(node, ast.Expr):
            for call in ast.walk(node):
                if isinstance(call, ast.Call):  # COLUMNS.append(...) changes COLUMNS, and fill(into=COLUMNS) may
                    target: ast.expr = call.func
                    while isinstance(target, (ast.Attribute, ast.Subscript, ast.Call)):
                        target = target.func if isinstance(target, ast.Call) else target.value
                    given = [target] if target is not call.func else []
                    given += [*call.args, *(keyword.value for keyword in call.keywords)]
                    names |= {argument.id for argument in given if isinstance(argument, ast.Name)}
    return names


def _in_module_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Walk without entering what has a scope of its own."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _UNENTERED):
            waiting += ast.iter_child_nodes(node)


def _imported(alias: ast.alias) -> str:
    """The name that an import binds; :data:`_STAR` for all."""
    return (alias.asname or alias.name).split(".")[0]


class _Dump(NamedTuple):
    """A statement, read once.

    :ivar text: its canonical text.
    :ivar kinds: the kinds of nodes that it is made of.
    :ivar loaded: names that it takes, its own among them.
    :ivar bound: names that a ``Name``, an argument or a function in it binds.
    """

    text: str
    kinds: set[type]
    loaded: set[str]
    bound: set[str]


def _dump(root: ast.AST) -> _Dump:
    """Canonical text of a syntax tree, and what is in it.

    :func:`ast.dump` will not do: what it prints differs between versions of Python, by new and empty fields. Without
    recursion, because a long sum is a deep tree.
    """
    written: list[str] = []
    dump = _Dump("", set(), set(), set())
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            written.append(item)
            continue
        kind = type(item)
        dump.kinds.add(kind)
        if kind is ast.Name:
            (dump.loaded if isinstance(item.ctx, ast.Load) else dump.bound).add(item.id)
        elif kind is ast.arg:
            dump.bound.add(item.arg)
        elif isinstance(item, _Function):
            dump.bound.add(item.name)
        waiting += reversed(_parts(item))
    return dump._replace(text="".join(written))


def _parts(node: ast.AST) -> list[Any]:
    """The text of a node, in pieces: strings as they are, and the nodes that are still to do."""
    kind = type(node)
    if isinstance(node, ast.Name):
        return [f"Name(id={node.id!a},)"]
    if isinstance(node, ast.Constant):
        return [f"{type(node.value).__name__}:{_constant(node.value, node)!a}"]
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr[", *_joined(node), "]"]
    parts: list[Any] = []
    text = f"{kind.__name__}("
    for field in kind._fields:
        child: Any = getattr(node, field, None)
        if child is None or child == [] or field in _UNSAID:
            continue
        if not isinstance(child, (ast.AST, list)):
            text += f"{field}={child!a},"
            continue
        if not isinstance(child, list):
            parts += [f"{text}{field}=", child]
            text = ","
            continue
        if field == "body" and isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            child = child[1:]
            if not child:
                continue
        text += f"{field}=["
        for one in child:
            if isinstance(one, ast.AST):
                parts += [text, one]
                text = ","
            else:
                text += f"{one!a},"
        text += "],"
    return [*parts, f"{text})"]


def _joined(node: ast.JoinedStr) -> Iterator[Any]:
    """The parts of an f-string; versions of Python cut its constant parts differently."""
    text = ""
    for part in [*node.values, None]:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        if text:
            yield f"{_constant(text, node)!a},"
        text = ""
        if part is not None:
            yield part
            yield ","


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass") + b"\0"


def _constant(value: object, literal: ast.expr) -> object:
    """The value of a constant; of a string written over several lines without blank lines and trailing blanks."""
    if isinstance(value, str) and literal.end_lineno != literal.lineno:
        return _BLANKS.sub("\n", value)
    return value
