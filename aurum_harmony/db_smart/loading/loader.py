"""Find the migrations of a module or package, and load them.

A migration is an idempotent function. It is known by its name and its checksum: it runs where that pair was
never applied, or, with ``once=True``, where the name never was.
"""

from __future__ import annotations

import inspect
import linecache
import marshal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import MAGIC_NUMBER
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..errors import MigrationError, scrub, text_of
from ..store.tables import MAX_NAME
from .checksum import ModuleSource
from .decorator import REGISTRY, Migration, Options, migration
from .revisions import Revision, Revisions
from .sources import Sources

#: Bytes before the code in a file of byte code, see :pep:`552`.
_PYC_HEADER = 16
#: Where a module that was loaded here keeps the source that it was made from.
_LOADED = "__db_smart_source__"


def load(sources: Sources, revisions: Revisions | None = None) -> list[Migration]:
    """Load the migrations from the very bytes that were scanned, in the order of their definition.

    In a package, modules come in the order of their names. Undecorated functions named ``migrate_…`` that take
    no argument count too, unless another migration uses them.

    :raises MigrationError: a module does not import, two migrations share a name, or one cannot be called.
    """
    found = [] if revisions is None else [_of_revision(one) for one in revisions.by_name.values()]
    for relative in sorted(sources.modules, key=sources.module_name):
        name, path, content = sources.module_name(relative), sources.paths[relative], sources.contents[relative]
        source = ModuleSource(name, path, content)
        module = _import(name, path, content, source)
        found += _migrations(module, source)
    places: dict[str, Migration] = {}
    for item in found:
        other = places.setdefault(item.name, item)
        if other is not item:
            raise MigrationError(
                f"Two migrations are named {item.name!r}, in {other.path} and in {item.path}. Names must be "
                "unique, because the history knows a migration by its name. Nothing was changed. Rename one of them."
            )
    return found


def _of_revision(one: Revision) -> Migration:
    """A revision of Alembic as a migration, which ``env.py`` runs."""

    def run() -> None:
        raise AssertionError("a revision is run by env.py")

    return Migration(one.name, one.checksum, Options(once=True), run, False, one.path, True, one.message)


def _import(name: str, path: str, content: bytes, source: ModuleSource) -> ModuleType:
    """The module ``name``, made from ``content``.

    Python's cached byte code is not used: it is chosen by seconds and size, so it can be older than an edit,
    and the old function would then be recorded under the new checksum.

    Python's own import does the work, so that of several threads one executes the module and the others wait for it,
    also where one of them is in a plain ``import``.
    """
    module = sys.modules.get(name)
    if module is not None and module.__dict__.get(_LOADED, content) != content:
        del sys.modules[name]  # made from what the file held before
    finder = _Finder(name, content, source)
    sys.meta_path.insert(0, finder)
    try:
        linecache.checkcache(path)
        module = import_module(name)
    except Exception as error:
        if isinstance(error, MigrationError):
            raise
        scrub(error)
        raise MigrationError(
            f"The module of migrations {name!r} cannot be imported: {location(error, path)}: "
            f"{type(error).__name__}: {text_of(error)}. "
            "Nothing was changed. Fix the file and start again."
        ) from error
    finally:
        sys.meta_path.remove(finder)
    if _executing(module):
        # It boots the application itself, at its end for instance, or Python broke a deadlock of two imports.
        missing = [function for function in source.functions() if function not in module.__dict__]
        if missing:
            raise MigrationError(
                f"The module of migrations {name!r} is still being imported, and {missing[0]!r} is not defined yet. "
                "Nothing was changed. Boot the application after the last migration of the module."
            )
    if _LOADED not in module.__dict__:
        _check_imported(module, source)
    elif module.__dict__[_LOADED] != content:
        raise MigrationError(f"{path} changed while this process loaded it. Nothing was applied. Restart the process.")
    return module


def _executing(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


class _Finder(MetaPathFinder):
    """Lets Python import one module from the bytes that were scanned; for every other it finds nothing."""

    def __init__(self, name: str, content: bytes, source: ModuleSource) -> None:
        self._name = name
        self._content = content
        self._source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification that the other finders have, with a loader of ours."""
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader, self._content, self._source.compiled)
                return spec
        return None


class _Loader(Loader):
    """Makes a module from bytes; all else, such as its resources, is left to the loader that it would have.

    The module keeps it for good, so that it must not hold the syntax tree.
    """

    def __init__(self, usual: Any, content: bytes, code: CodeType) -> None:
        self._usual = usual
        self._content = content
        self._code = code

    def exec_module(self, module: ModuleType) -> None:
        """Execute the source."""
        module.__dict__[_LOADED] = self._content
        exec(self._code, module.__dict__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)


def _migrations(module: ModuleType, source: ModuleSource) -> list[Migration]:
    marked: list[tuple[FunctionType, Options]] = list(module.__dict__.get(REGISTRY, ()))
    decorated = {id(function) for function, _ in marked}
    plain = [
        value
        for name, value in module.__dict__.items()
        if name.startswith("migrate_")
        and isinstance(value, FunctionType)
        and value.__name__ == name
        and value.__module__ == module.__name__
        and id(value) not in decorated
        and not inspect.signature(value).parameters
    ]

    def is_decorator(node: Any) -> bool:
        return _is_migration_decorator(node, module)

    candidates = [*(function for function, _ in marked), *plain]
    reach = {function: source.reaches(function, is_decorator) for function in candidates}
    users: dict[str, list[FunctionType]] = {}
    names = {function.__name__ for function in plain}
    for function, reached in reach.items():
        for name in reached & names:
            users.setdefault(name, []).append(function)
    for function in plain:
        # A part of another migration; of two that call each other, neither is.
        if all(other.__name__ in reach[function] for other in users.get(function.__name__, ())):
            marked.append((function, Options()))
    definitions = source.functions()
    migrations = []
    for function, options in sorted(marked, key=lambda item: inspect.unwrap(item[0]).__code__.co_firstlineno):
        name = function.__name__
        if len(name) > MAX_NAME:
            raise MigrationError(
                f"The name of migration {name!r} in {source.path} is longer than the {MAX_NAME} characters that the "
                "history can hold. Nothing was changed. Shorten the name."
            )
        if definitions.get(name, 0) > 1:
            raise MigrationError(
                f"Two migrations are named {name!r} in {source.path}. Names must be unique, because the history knows "
                "a migration by its name. Nothing was changed. Rename one of them."
            )
        checksum = source.checksum(function, is_decorator)
        takes = _takes_operations(function, source.path)
        migrations.append(Migration(name, checksum, options, function, takes, source.path))
    return migrations


def _takes_operations(function: FunctionType, path: str) -> bool:
    if (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    ):
        raise MigrationError(f"Migration {function.__name__!r} in {path} must be a plain function.")
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(parameters) > 1 or any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters):
        raise MigrationError(
            f"Migration {function.__name__!r} in {path} must take one argument, the operations, or none; "
            f"it takes {len(parameters)}. Nothing was changed."
        )
    return bool(parameters)


def _check_imported(module: ModuleType, source: ModuleSource) -> None:
    """Make sure that a module which the application imported is what its file now holds.

    The byte code that Python keeps of it tells, where there is any: it is what was loaded, or was written then.

    :raises MigrationError: it is not; running it would record the new checksum for old code.
    """
    loaded = None
    try:
        with open(str(module.__dict__.get("__cached__")), "rb") as file:
            if file.read(4) == MAGIC_NUMBER:
                file.seek(_PYC_HEADER)
                loaded = marshal.load(file)
    except (OSError, ValueError, EOFError, TypeError):
        pass
    functions = [value for value in module.__dict__.values() if isinstance(value, FunctionType)]
    codes = [inspect.unwrap(function).__code__ for function in functions]
    mine = [code for code in codes if code.co_filename == source.path]
    if (isinstance(loaded, CodeType) and loaded != source.compiled) or any(
        source.code.get((code.co_name, code.co_firstlineno)) != code for code in mine
    ):
        raise MigrationError(
            f"{source.path} changed after this process loaded it. Nothing was applied. Restart the process."
        )


def _is_migration_decorator(node: Any, module: ModuleType) -> bool:
    """Whether a decorator is :func:`~.decorator.migration`, under whatever name the module knows it."""
    target = node.func if hasattr(node, "func") else node
    attributes: list[str] = []
    while hasattr(target, "attr"):
        attributes.append(target.attr)
        target = target.value
    value: object = module.__dict__.get(getattr(target, "id", ""))
    for attribute in reversed(attributes):
        value = getattr(value, attribute, None)
    return value is migration


def location(error: BaseException, path: str) -> str:
    """The last line of a source file that an exception came through, or the file alone."""
    line = None
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return path if line is None else f"{path}, line {line}"


def location_in(error: BaseException, revisions: Revisions | None) -> str | None:
    """Where in a revision an exception came from, ``None`` if it came through none."""
    paths = () if revisions is None else (one.path for one in revisions.by_name.values())
    return next((found for path in paths if (found := location(error, path)) != path), None)
