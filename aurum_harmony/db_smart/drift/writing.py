"""Write a migration: a function with db-smart's operations, into the module or package of the migrations."""

from __future__ import annotations

import ast
import keyword
import os
import re
import stat
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _repr_type, render_op, renderers
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext

from ..errors import DbSmartError, WrongUsage
from ..loading.sources import Sources
from ..session.sql import without_doubled_percents
from ..store.tables import MAX_NAME
from .changes import Change, RenameTable
from .layout import WIDTH, laid_out

#: What stands before a change of a type, which a server may not do in place.
_MAY_BLOCK = (
    "# Of a table with rows this may be refused, because it would block the table:",
    "# 'flask db-smart migrate --dry-run' on such a database tells. If so, add online=False for",
    "# a time when the application stands still, or change over to a new column.",
)
_NUMBERED = re.compile(r"(\d+)_")
#: How many digits the first file of a package is numbered with.
_DIGITS = 4
_OURS = "aurum_harmony.db_smart"
#: What takes SQL in which a word behind a colon is a parameter, as SQLAlchemy finds it: at which place.
_TEXTS = {"sa.text": 0, "sa.CheckConstraint": 0, "sa.Computed": 0, "op.create_check_constraint": 2}
_PARAMETER = re.compile(r"(?<![:\w\\]):(?=\w+(?![:\w]))")
_SQLALCHEMY = "import sqlalchemy as sa"


@dataclass(frozen=True)
class Body:
    """What a migration does.

    :ivar name: of the function.
    :ivar database: bind key; ``None`` for the default database.
    :ivar lines: statements and comments.
    :ivar imports: what the statements need; what comments need stands before them as a comment.
    :ivar destructive: whether the migration must say that it may destroy something.
    """

    name: str
    database: str | None = None
    lines: Sequence[str] = ()
    imports: frozenset[str] = frozenset()
    destructive: bool = False

    @classmethod
    def of(cls, name: str, database: str | None, changes: Sequence[Change], dialect: sa.Dialect) -> Body:
        """The body that makes these changes."""
        context = _Rendering(dialect)
        lines: list[str] = []
        needed: set[str] = set()
        for change in changes:
            lines += context.lines(change, earlier=lines)
            if change.advice is None:
                needed |= context.needed
        others = sorted(context.all_needed - needed, key=_import_order)
        destructive = any(change.destructive and change.advice is None for change in changes)
        return cls(name, database, [*(f"# {line}" for line in others), *lines], frozenset(needed), destructive)

    def source(self, decorator: str = "migration", operations: str = "Operations", own: Iterable[str] = ()) -> str:
        """The function, as source.

        :param decorator: by what the module knows ``migration``.
        :param operations: by what it knows ``Operations``.
        :param own: imports that the function makes itself.
        """
        options = []
        if self.database is not None:
            options.append(laid_out(f"f(database={self.database!r})")[2:-1])
        if self.destructive:
            options.append("destructive=True")
        decorated = f"@{decorator}({', '.join(options)})" if options else f"@{decorator}"
        lines = [decorated, f"def {self.name}(op: {operations}) -> None:"]
        statements = any(not line.lstrip().startswith("#") for line in self.lines)
        imports = sorted(own, key=_import_order)
        body = [*imports, *([""] if imports else []), *self.lines, *([] if statements else ["pass"])]
        return "\n".join([*lines, *(textwrap.indent(line, "    ") for line in body)])


class _Rendering:
    """Changes as source, by Alembic's own way to render them.

    :ivar needed: the imports of the last change; ``all_needed`` of all.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        options: dict[str, Any] = {"sqlalchemy_module_prefix": "sa.", "alembic_module_prefix": "op."}
        options |= {"user_module_prefix": None, "render_item": render_item, "render_as_batch": False}
        context = MigrationContext.configure(dialect=without_doubled_percents(dialect), opts=options)
        self._context = AutogenContext(context, opts=options, autogenerate=False)
        self._context.imports = self._imports = set[str]()
        self.needed, self.all_needed = set[str](), set[str]()

    def lines(self, change: Change, earlier: Sequence[str]) -> list[str]:
        """The statement of a change, or as comments what is to be thought about first.

        :param earlier: the lines before it, which may say the same already.
        """
        self.needed.clear()
        if change.call is not None:
            calls = [change.call]
        elif change.operation is not None:
            calls = [line for line in render_op(self._context, change.operation) if not line.lstrip().startswith("#")]
            if change.replaces:
                calls = [call.replace("create_index(", "replace_index(", 1) for call in calls]
            if change.widens:
                calls = [call.replace("alter_column(", "widen_key(", 1) for call in calls]
        else:
            calls = []
        statements = [self._laid_out(call) for call in calls]
        self.all_needed |= self.needed
        if change.advice is None:
            typed = isinstance(change.operation, ops.AlterColumnOp) and change.operation.modify_type is not None
            return [*_MAY_BLOCK, *statements] if typed and self._context.dialect.name != "sqlite" else statements
        advice = [f"# {line}" for line in textwrap.wrap(change.advice, WIDTH - 6)]
        if advice[-1] in earlier and calls:
            advice = []
        commented = [textwrap.indent(one, "# ", lambda _: True) for one in statements]
        return [*advice, *(line for one in commented for line in one.splitlines())]

    def _laid_out(self, call: str) -> str:
        tree = _Plain().visit(ast.parse(call.strip(), mode="eval").body)
        known = {line.split()[-1].partition(".")[0]: line for line in self._imports}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                if node.id == "sa":
                    self.needed.add(_SQLALCHEMY)
                elif node.id in known:
                    self.needed.add(known[node.id])
        return textwrap.dedent(laid_out(ast.unparse(tree), 4))


def render_item(what: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """A default as it is, quotes and all; a type of the application's own as the one that the database has for it.

    A migration must not use what the application defines today, which later releases change. Only a type that
    SQLAlchemy has nothing for is imported from where it is defined.
    """
    dialect = context.dialect
    assert dialect is not None
    if what == "server_default" and isinstance(getattr(item, "arg", None), str):
        return repr(item.arg)
    if what != "type" or _is_sqlalchemys(type(item)):
        return False
    if isinstance(item, sa.types.TypeDecorator):
        return _repr_type(item.load_dialect_impl(dialect), context)
    base = next((kind for kind in type(item).__mro__ if _is_sqlalchemys(kind)), sa.types.NullType)
    if base not in (sa.types.NullType, sa.types.UserDefinedType, sa.types.TypeEngine):
        plain = item.adapt(base)
        if plain.compile(dialect=dialect) == item.compile(dialect=dialect):
            return _repr_type(plain, context)
    context.imports.add(f"import {type(item).__module__}")
    return False


def _is_sqlalchemys(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "sqlalchemy"


def _is_needless(argument: ast.keyword) -> bool:
    """Whether a call means the same without an argument."""
    if (argument.arg or "").startswith("existing_"):
        return True
    return argument.arg == "unique" and isinstance(argument.value, ast.Constant) and argument.value.value is False


@renderers.dispatch_for(RenameTable)
def _render_rename(context: AutogenContext, operation: RenameTable) -> str:
    """The call of ``rename_table``, which Alembic itself has never to render."""
    prefix = context.opts["alembic_module_prefix"]
    schema = "" if operation.schema is None else f", schema={operation.schema!r}"
    return f"{prefix}rename_table({operation.table_name!r}, {operation.new_table_name!r}{schema})"


class _Plain(ast.NodeTransformer):
    """Takes away what only Alembic needs: ``op.f(…)`` around names, and what a column is now.

    A colon in SQL is no parameter.
    """

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802 - the name is that of ast
        """A call without these."""
        self.generic_visit(node)
        node.keywords = [one for one in node.keywords if not _is_needless(one)]
        if isinstance(node.func, ast.Name) and hasattr(sa, node.func.id):  # as the representation of a type has others
            node.func = ast.Attribute(ast.Name("sa", ast.Load()), node.func.id, ast.Load())
        called = ast.unparse(node.func)
        place = _TEXTS.get(called, len(node.args))
        text = node.args[place] if place < len(node.args) else None
        if isinstance(text, ast.Constant):
            node.args[place] = ast.Constant(without_parameters(str(text.value)))
        return node.args[0] if called == "op.f" else node


def without_parameters(sql: str) -> str:
    """SQL for ``sa.text()``, in which no word behind a colon is a parameter."""
    return _PARAMETER.sub(r"\\\g<0>", sql)


def check_name(name: str, taken: Iterable[str]) -> None:
    """Make sure that a migration can have a name.

    :raises WrongUsage: it cannot.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise WrongUsage(
            f"{name!r} cannot be the name of a function, and so of no migration. Nothing was written. Use letters, "
            "digits and underscores, and do not begin with a digit."
        )
    if len(name) > MAX_NAME:
        raise WrongUsage(f"The name {name!r} is longer than {MAX_NAME} characters. Nothing was written. Shorten it.")
    if name in taken:
        raise WrongUsage(f"There is a migration {name!r} already. Nothing was written. Choose another name.")


def write(sources: Sources, bodies: Sequence[Body]) -> Path:
    """Write migrations: behind the others of the module, or into the next file of the package.

    :returns: the file.
    :raises DbSmartError: it cannot be written.
    """
    path = (
        _next_file(sources, bodies[0].name) if sources.package else Path(next(iter(sources.paths.values()))).resolve()
    )
    before, bom, ends = "", "", "\n"
    try:
        if path.exists():
            before = path.read_bytes().decode("utf-8")
            if not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
                raise DbSmartError(f"Cannot write {path}: it is read-only. Nothing was written.")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not in UTF-8"
        raise DbSmartError(f"Cannot read {path}: {why}. Nothing was written.") from None
    if before.startswith("\ufeff"):
        bom, before = before[0], before[1:]
    if "\r\n" in before:
        ends, before = "\r\n", before.replace("\r\n", "\n")
    text = _added(before, bodies)
    try:
        _replace(path, (bom + text.replace("\n", ends)).encode("utf-8"))
    except OSError as error:
        raise DbSmartError(f"Cannot write {path}: {error.strerror}. Nothing was written.") from None
    return path


def _next_file(sources: Sources, name: str) -> Path:
    """The file that comes behind all others of a package.

    :raises DbSmartError: the files are not numbered, and one of this name would come before others.
    """
    modules = [relative for relative in sources.modules if not relative.endswith("__init__.py")]
    numbered = [match for match in map(_NUMBERED.match, modules) if match]
    number = max((int(match[1]) for match in numbered), default=0) + 1
    digits = max((len(match[1]) for match in numbered), default=_DIGITS)
    file = f"{number:0{digits}}_{name}.py" if numbered or not modules else f"{name}.py"
    last = max((sources.module_name(relative) for relative in modules), default="")
    mine = sources.module_name(file)
    if last >= mine:
        raise DbSmartError(
            f"Modules run in the order of their names, and {file!r} would come before {last!r}, which databases may "
            "have applied. Nothing was written. Choose a name that comes behind it, or number the files with leading "
            f"zeros from now on, such as 'z{number:0{_DIGITS}}_{name}'."
        )
    return Path(sources.roots[0], file)


def _added(text: str, bodies: Sequence[Body]) -> str:
    """A module with more migrations at its end, and with the imports that they need.

    :raises DbSmartError: it does not parse, or means something else by ``migration`` or ``Operations``.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise DbSmartError(f"The module of migrations does not parse: {error}. Nothing was written.") from None
    bound = _bound(tree)
    mine, missing = [], []
    for name in ("migration", "Operations"):
        line = f"from {_OURS} import {name}"
        known = next((one for one, meant in bound.items() if meant == line), None)
        if known is None and name in bound:
            raise DbSmartError(
                f"The module of migrations means something else by {name!r} than {_OURS}. Nothing was written. Give "
                "that another name."
            )
        mine.append(known or name)
        if known is None:
            missing.append(name)
    needed = {line: line.split()[-1].partition(".")[0] for body in bodies for line in body.imports}
    own = {line for line, name in needed.items() if bound.get(name, line) != line}
    functions = "\n\n\n".join(body.source(mine[0], mine[1], own & body.imports) for body in bodies)
    others = {line for line, name in needed.items() if name not in bound}
    if missing:
        others.add(f"from {_OURS} import {', '.join(sorted(missing))}")
    plain = [line for line in sorted(others) if line.startswith("import")]
    modules: dict[str, list[str]] = {}
    for line in sorted(others):
        if line.startswith("from"):
            module, _, name = line.partition(" import ")
            modules.setdefault(module, []).append(name)
    from_ = [f"{module} import {', '.join(names)}" for module, names in modules.items()]
    lines = text.split("\n")
    imports = list(_leading_imports(tree))
    usual = [node for node in imports if getattr(node, "module", None) != "__future__"]
    if usual:  # as isort has them: those that import a whole module come first
        end, start = usual[-1].end_lineno, usual[0].lineno - 1
        lines[end:end] = from_
        lines[start:start] = plain
    elif plain or from_:
        behind = max((node.end_lineno or 0 for node in imports), default=_behind_docstring(tree))
        more = bool(lines[behind:]) and lines[behind].strip() != ""
        lines[behind:behind] = [*([""] if behind else []), *plain, *from_, *([""] if more else [])]
    body = "\n".join(lines).rstrip()
    return f"{body}\n\n\n{functions}\n"


def _import_order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line


def _bound(tree: ast.Module) -> dict[str, str]:
    """The names of a module, each with the import that it comes from; with nothing if it comes from none."""
    bound: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for one in node.names:
                line = f"import {one.name}" + (f" as {one.asname}" if one.asname else "")
                bound[one.asname or one.name.partition(".")[0]] = line
        elif isinstance(node, ast.ImportFrom):
            bound |= {one.asname or one.name: f"from {node.module} import {one.name}" for one in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound[node.name] = ""
        else:
            names = (one for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))
            bound |= {one.id: "" for one in names}
    return bound


def _leading_imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports at the head of a module."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return


def _behind_docstring(tree: ast.Module) -> int:
    first = tree.body[0] if tree.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first.end_lineno or 0
    return 0


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, or leave it as it is."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        other.write_bytes(content)
        if path.exists():
            os.chmod(other, path.stat().st_mode)
        os.replace(other, path)
    finally:
        other.unlink(missing_ok=True)
