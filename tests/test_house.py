"""The order of the code: who may import whom, in the package and in the tests; and each thing stands once."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
from collections import defaultdict
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.harness.processes import ROOT

PACKAGE = "aurum_harmony.db_smart"

#: The modules of the package from the lowest to the highest. A module imports from its own row and from those above it
#: in this table, wherever the import stands. Of patterns that match, the longest counts.
ORDER = (
    ("ground", "errors", "settings", "signals", "notices", "files", "beat", "retry", "interrupt", "spans"),
    ("facts of the dialects", "dialects.base", "dialects.*.facts", "dialects.sqlite.table_sql"),
    ("store", "store.*"),
    ("loading", "loading.*"),
    ("boot and session", "boot.*", "session.*"),
    ("schema", "schema.*", "autogenerate"),
    ("editors of the dialects", "dialects.*"),
    ("operations", "operations"),
    (
        "runs",
        "runner",
        "batches",
        "first_run",
        "revising",
        "stamping",
        "resuming",
        "undo.*",
        "preview",
        "script",
        "threads",
        "fence",
        "contract",
    ),
    ("drift and lint", "drift.*", "lint.*"),
    ("report", "grid", "report", "output", "watch"),
    ("work on fleets", "fleet.*"),
    ("commands", "cli", "commands", "completion", "beside", "fleet.cli"),
    ("web", "web.*"),
    ("extension", "extension"),
    ("tenants of requests", "fleet.requests"),
    ("fleets in an application", "fleet.fleet"),
    ("what users import", ""),
)

#: Imports against the order, of a type alone, under ``TYPE_CHECKING``: the commands find the extension among those of
#: the application, and say its type.
ONLY_TYPES = {
    ("cli", "extension"),
    ("report", "extension"),
    ("web.routes", "extension"),
    ("web.metrics", "extension"),
    ("web.overview", "extension"),
    ("web.pending", "extension"),
    ("fleet.cli", "fleet.fleet"),
    ("fleet.requests", "fleet.fleet"),
}


@cache  # the files are parsed once
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    """The dotted name of a module in the checkout."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """What a module imports, wherever in it, and whether it does so for types alone; of ``from A import b`` ``A.b``."""
    package = named(path) if path.name == "__init__.py" else named(path).rpartition(".")[0]
    nodes = list(ast.walk(tree_of(path)))
    blocks = [one for one in nodes if isinstance(one, ast.If) and "TYPE_CHECKING" in ast.unparse(one.test)]
    for_types = {id(node) for block in blocks for node in ast.walk(block)}
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(one.name, id(node) in for_types) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [(f"{base}.{one.name}", id(node) in for_types) for one in node.names]
    return found


def modules() -> dict[str, Path]:
    """The modules of the package by their names in it, without the empty ones that only make a folder a package."""
    folder = ROOT / PACKAGE.replace(".", "/")
    found = {named(path).removeprefix(PACKAGE).lstrip("."): path for path in sorted(folder.rglob("*.py"))}
    return {name: path for name, path in found.items() if name == "" or path.name != "__init__.py"}


def edges() -> dict[tuple[str, str], bool]:
    """Who imports whom in the package, and whether for types alone."""
    known = modules()
    found: dict[tuple[str, str], bool] = {}
    for name, path in known.items():
        for target, for_types in imports(path):
            if not target.startswith(PACKAGE):
                continue
            inner = target.removeprefix(PACKAGE).lstrip(".")
            while inner not in known:  # a class or a function of a module
                inner = inner.rpartition(".")[0]
            if inner != name:
                found[name, inner] = found.get((name, inner), True) and for_types
    return found


def row_of(name: str) -> int:
    """The row of a module in the table.

    :raises AssertionError: it is in none.
    """
    rows = [(len(one), row) for row, (_, *patterns) in enumerate(ORDER) for one in patterns if fnmatchcase(name, one)]
    assert rows, f"{name} has no row in ORDER"
    return max(rows)[1]


def broken() -> dict[tuple[str, str], bool]:
    """The imports that the order does not allow; the editors of the databases stand above their base class."""
    return {
        (low, high): for_types
        for (low, high), for_types in edges().items()
        if row_of(low) < row_of(high) or (low == "dialects.editor" and row_of(high) == row_of(low))
    }


def test_imports_run_one_way() -> None:
    found = broken()
    assert {edge for edge, for_types in found.items() if not for_types} == set()
    assert {edge for edge, for_types in found.items() if for_types} == ONLY_TYPES


def test_no_module_imports_itself_by_others() -> None:
    graph = defaultdict(set)
    for low, high in edges().keys() - broken().keys():
        graph[low].add(high)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])), pytrace=False)


def test_packages_import_nothing() -> None:
    """Whoever imports one module of a folder pays for that one alone."""
    for path in (ROOT / PACKAGE.replace(".", "/")).rglob("*/__init__.py"):
        if named(path) != PACKAGE:
            assert imports(path) == [], path


@pytest.mark.parametrize("folder", ["aurum_harmony", "tests", "benchmarks"])
def test_no_function_stands_twice(folder: str) -> None:
    places = defaultdict(list)
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 3:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                places["".join(map(ast.dump, [node.args, *body]))].append(f"{named(path)}.{node.name}")
    assert [found for found in places.values() if len(found) > 1] == []


def test_no_test_module_is_imported() -> None:
    """What tests share stands in ``tests/samples.py`` and ``tests/harness``."""
    found = [
        (named(path), name)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name, _ in imports(path)
        if any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_modules_that_are_named_exist(folder: str) -> None:
    """A path that is patched, or that must not be imported, or that a process is given as text."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        pattern = rf"(?<![\w./])(?:{re.escape(PACKAGE)}|tests|benchmarks)(?:\.[a-z]\w*)+"
        for name in set(re.findall(pattern, path.read_text(encoding="utf-8"))):
            assert exists(name), f"{named(path)} names {name}"


def exists(name: str) -> bool:
    """Whether there is a module of a name, or something in it."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return "." in module and exists(module) and hasattr(importlib.import_module(module), attribute)
    return True


def test_references_of_docstrings_resolve() -> None:
    """Of Sphinx: ``.x`` is any name of the package that ends so, ``x`` one of the module itself, or a full name."""
    known = {name: {f".{name}", *(f".{name}.{one}" for one in contents(path))} for name, path in modules().items()}
    everything = set().union(*known.values())
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r":(?:mod|class|func|meth|attr|data|exc):`~?([\w.]+)`", text):
            ending, places = (target, everything) if target.startswith(".") else (f".{target}", known[name])
            assert any(place.endswith(ending) for place in places) or importable(target), f"{name} refers to {target}"


def contents(path: Path) -> set[str]:
    """What a module defines, and behind the name of each class what that has."""
    found = set()
    for node in tree_of(path).body:
        found |= bound(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one}" for part in ast.walk(node) for one in bound(part)}
    return found


def bound(node: ast.AST) -> set[str]:
    """The names that a definition or an assignment binds, also those of ``self``."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = (getattr(target, "id", getattr(target, "attr", None)) for target in targets)
    return {name for name in names if isinstance(name, str)}


def importable(name: str) -> bool:
    """Whether a full name leads to something that can be imported."""
    try:
        pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError):
        return False
    return True
