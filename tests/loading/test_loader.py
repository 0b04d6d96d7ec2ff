"""Loading the migrations: which functions count, in which order, and from which bytes."""

from __future__ import annotations

import importlib
import importlib.util
import os
import py_compile
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurum_harmony.db_smart.errors import MigrationError
from aurum_harmony.db_smart.loading.decorator import Migration, Options
from aurum_harmony.db_smart.loading.loader import load
from aurum_harmony.db_smart.loading.sources import scan
from tests.harness.files import edit_in_place
from tests.harness.processes import BECOME_NOBODY, run_python
from tests.harness.project import Project

HEADER = "from aurum_harmony.db_smart import migration\n"


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    """A project without migrations; its database does not matter."""
    return make_project("sqlite://")


def found(project: Project) -> list[Migration]:
    """The migrations of a project."""
    importlib.invalidate_caches()  # Files were made faster than the clock of directories ticks.
    return load(scan(project.module))


def names(project: Project) -> list[str]:
    """The names of the migrations of a project, in order."""
    return [item.name for item in found(project)]


def write(project: Project, source: str, name: str | None = None) -> Path:
    """Write migrations below the import of ``migration``."""
    return project.write(source, name, header=HEADER)


def call(item: Migration, *args: object) -> Any:
    """What the function of a migration returns."""
    return item.function(*args)


def refusal(project: Project) -> str:
    """The message with which loading refuses."""
    with pytest.raises(MigrationError) as caught:
        found(project)
    return caught.value.message


# The decorator


def test_decorated_function_is_a_migration(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return op, 1\n")
    (item,) = found(project)
    assert (item.name, item.options, item.takes_operations, item.path) == ("one", Options(), True, str(path))
    assert len(item.checksum) == 64
    assert int(item.checksum, 16) > 0
    assert call(item, "op") == ("op", 1)


@pytest.mark.parametrize(
    ("decorator", "options"),
    [
        ("@migration", Options()),
        ("@migration()", Options()),
        ("@migration(once=True)", Options(once=True)),
        ("@migration(transactional=False)", Options(transactional=False)),
        ("@migration(database='reports')", Options(database="reports")),
        ("@migration(once=True, transactional=False, database='b')", Options(True, False, "b")),
    ],
)
def test_options_of_the_decorator(project: Project, decorator: str, options: Options) -> None:
    write(project, f"{decorator}\ndef one(op):\n    pass\n")
    assert [item.options for item in found(project)] == [options]


def test_decorated_function_can_be_called_as_before(project: Project) -> None:
    write(
        project, "@migration\ndef one(op):\n    return 1\n@migration(once=True)\ndef two(op):\n    return one(op) + 1\n"
    )
    assert [call(item, None) for item in found(project)] == [1, 2]


SPELLINGS = {
    "from the package": "from aurum_harmony.db_smart import migration\n@migration\n",
    "from its module": "from aurum_harmony.db_smart.loading.loader import migration\n@migration\n",
    "under another name": "from aurum_harmony.db_smart import migration as change\n@change\n",
    "of the package": "import aurum_harmony.db_smart\n@aurum_harmony.db_smart.migration\n",
    "of an alias of the package": "from aurum_harmony import db_smart as ds\n@ds.migration\n",
    "with options": "from aurum_harmony.db_smart import migration\n@migration(once=True)\n",
    "with options of a constant": HEADER + "BIND = 'b'\n@migration(database=BIND)\n",
    "with options of an alias": "from aurum_harmony import db_smart as ds\n@ds.migration(transactional=False)\n",
    "by the name alone": "",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_of_the_decorator_does_not_count(make_project: Callable[..., Project], spelling: str) -> None:
    body = "def migrate_one():\n    return 1\n"
    one, two = make_project("sqlite://"), make_project("sqlite://")
    one.write(spelling + body, header="")
    two.write(HEADER + "@migration\n" + body, header="")
    assert [item.checksum for item in found(one)] == [item.checksum for item in found(two)]


@pytest.mark.parametrize("decorator", ["@migration\n@traced\n", "@migration(once=True)\n@traced\n"])
def test_migration_below_the_decorator_is_run_decorated(project: Project, decorator: str) -> None:
    write(project, _traced() + f"{decorator}def one(op):\n    return 1\n")
    (item,) = found(project)
    assert (item.name, item.takes_operations) == ("one", True)
    assert call(item, None) == ["traced", 1]


def test_edit_of_a_function_below_another_decorator_counts(make_project: Callable[..., Project]) -> None:
    one, two = make_project("sqlite://"), make_project("sqlite://")
    for project, value in ((one, 1), (two, 2)):
        write(project, _traced() + f"@migration\n@traced\ndef one(op):\n    return {value}\n")
    assert [item.checksum for item in found(one)] != [item.checksum for item in found(two)]


def test_migration_below_a_decorator_of_another_module_is_found(make_project: Callable[..., Project]) -> None:
    tools, project = make_project("sqlite://"), make_project("sqlite://")
    tools.write(_traced(), header="")
    write(project, f"from {tools.module} import traced\n@migration\n@traced\ndef one(op):\n    return 1\n")
    (item,) = found(project)
    assert (item.name, call(item, None)) == ("one", ["traced", 1])


def _traced() -> str:
    return """\
import functools
def traced(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return ["traced", function(*args, **kwargs)]
    return call
"""


@pytest.mark.parametrize(
    "marked", ["5", "print", "type('C', (), {})", "staticmethod(print)", "functools.partial(print)"]
)
def test_decorator_refuses_what_is_no_function(project: Project, marked: str) -> None:
    path = write(project, f"import functools\nmigration({marked})\n")
    message = refusal(project)
    assert f"{path}, line 3: TypeError: @migration is for functions defined with 'def', not for " in message


def test_decorator_refuses_a_lambda(project: Project) -> None:
    path = write(project, "one = migration(lambda op: None)\n")
    assert refusal(project).startswith(
        f"The source of migration '<lambda>' is not in {path}. Nothing was changed. Define it there with 'def'"
    )


# Which functions count


def test_undecorated_function_of_the_convention_is_a_migration(project: Project) -> None:
    write(project, "def migrate_user_fields():\n    return 1\n")
    (item,) = found(project)
    assert (item.name, item.options, item.takes_operations, call(item)) == ("migrate_user_fields", Options(), False, 1)


NO_MIGRATIONS = {
    "another name": "def user_fields():\n    pass\n",
    "name without the underscore": "def migrate():\n    pass\n",
    "private name": "def _migrate_users():\n    pass\n",
    "argument": "def migrate_users(op):\n    pass\n",
    "argument with a default": "def migrate_users(dry_run=False):\n    pass\n",
    "keyword argument": "def migrate_users(*, dry_run=False):\n    pass\n",
    "star arguments": "def migrate_users(*args, **kwargs):\n    pass\n",
    "class": "class migrate_users:\n    pass\n",
    "constant": "migrate_users = 5\n",
    "method": "class A:\n    def migrate_users():\n        pass\n",
    "nested": "def f():\n    def migrate_users():\n        pass\n",
    "deleted": "def migrate_users():\n    pass\ndel migrate_users\n",
    "built-in": "migrate_users = print\n",
}


@pytest.mark.parametrize("source", NO_MIGRATIONS.values(), ids=NO_MIGRATIONS)
def test_undecorated_function_outside_of_the_convention_is_none(project: Project, source: str) -> None:
    write(project, source)
    assert names(project) == []


def test_undecorated_function_of_another_module_is_none(make_project: Callable[..., Project]) -> None:
    other, project = make_project("sqlite://"), make_project("sqlite://")
    other.write("def migrate_users():\n    pass\n", header="")
    write(project, f"from {other.module} import migrate_users\nfrom {other.module} import *\n")
    assert names(project) == []


def test_decorated_function_of_another_module_is_none(make_project: Callable[..., Project]) -> None:
    other, project = make_project("sqlite://"), make_project("sqlite://")
    write(other, "@migration\ndef one(op):\n    pass\n")
    write(project, f"from {other.module} import one\n@migration\ndef two(op):\n    one(op)\n")
    assert names(project) == ["two"]


USED = {
    "by a decorated one": "@migration\ndef all_of_it(op):\n    migrate_users()\n",
    "by a helper": "def helper():\n    migrate_users()\n@migration\ndef all_of_it(op):\n    helper()\n",
    "in a list of a decorated one": "STEPS = [migrate_users]\n@migration\ndef all_of_it(op):\n    STEPS[0]()\n",
}


@pytest.mark.parametrize("source", USED.values(), ids=USED)
def test_undecorated_function_that_a_migration_uses_is_none(project: Project, source: str) -> None:
    write(project, "def migrate_users():\n    pass\n" + source)
    assert names(project) == ["all_of_it"]


def test_undecorated_function_that_another_undecorated_one_uses_is_none(project: Project) -> None:
    write(project, "def migrate_users():\n    pass\ndef migrate_all():\n    migrate_users()\n")
    assert names(project) == ["migrate_all"]


def test_undecorated_function_that_calls_itself_is_a_migration(project: Project) -> None:
    write(project, "def migrate_users():\n    migrate_users()\n")
    assert names(project) == ["migrate_users"]


def test_decorated_function_that_another_one_uses_is_a_migration(project: Project) -> None:
    write(project, "@migration\ndef one(op):\n    pass\n@migration\ndef two(op):\n    one(op)\n")
    assert names(project) == ["one", "two"]


def test_undecorated_function_with_two_names_is_one_migration(project: Project) -> None:
    write(project, "def migrate_users():\n    pass\nmigrate_people = migrate_users\n")
    assert names(project) == ["migrate_users"]


def test_module_without_migrations_has_none(project: Project) -> None:
    project.write("", header="")
    assert names(project) == []


@pytest.mark.parametrize("condition", ["if True:", "try:\n    raise KeyError\nexcept KeyError:", "for _ in [1]:"])
def test_migration_in_a_block_is_found(project: Project, condition: str) -> None:
    write(project, f"{condition}\n    @migration\n    def one(op):\n        return 1\n")
    assert [call(item, None) for item in found(project)] == [1]


def test_migration_defined_for_another_platform_is_not_found(project: Project) -> None:
    write(
        project,
        "if False:\n    @migration\n    def one(op):\n        pass\n"
        "else:\n    @migration\n    def one(op):\n        return 2\n",
    )
    assert [(item.name, call(item, None)) for item in found(project)] == [("one", 2)]


# Signatures


@pytest.mark.parametrize(
    ("signature", "takes"),
    [
        ("op", True),
        ("op, /", True),
        ("op: 'Operations'", True),
        ("op, dry_run=False", True),
        ("op, *, dry_run=False", True),
        ("op, **more", True),
        ("*args", True),
        ("", False),
        ("**more", False),
        ("dry_run=False", False),
        ("*, dry_run=False", False),
    ],
)
def test_function_takes_the_operations_or_nothing(project: Project, signature: str, takes: bool) -> None:
    write(project, f"@migration\ndef one({signature}):\n    return 1\n")
    (item,) = found(project)
    assert item.takes_operations is takes
    assert call(item, *(["op"] if takes else [])) == 1


@pytest.mark.parametrize(
    ("signature", "count"), [("op, table", 2), ("op, table, *, key", 3), ("op, *, key", 2), ("op, *tables", 2)]
)
def test_function_with_more_arguments_is_refused(project: Project, signature: str, count: int) -> None:
    path = write(project, f"@migration\ndef one({signature}):\n    pass\n")
    assert refusal(project) == (
        f"Migration 'one' in {path} must take one argument, the operations, or none; it takes {count}. Nothing was "
        "changed."
    )


def test_function_whose_only_argument_must_be_named_is_refused(project: Project) -> None:
    path = write(project, "@migration\ndef one(*, op):\n    pass\n")
    assert refusal(project).startswith(f"Migration 'one' in {path} must take one argument")


@pytest.mark.parametrize(
    "source",
    [
        "async def migrate_one():\n    pass\n",
        "def migrate_one():\n    yield\n",
        "async def migrate_one():\n    yield\n",
    ],
    ids=["async", "generator", "async generator"],
)
@pytest.mark.parametrize("decorator", ["", "@migration\n"], ids=["undecorated", "decorated"])
def test_function_that_a_call_does_not_run_is_refused(project: Project, source: str, decorator: str) -> None:
    path = write(project, decorator + source)
    assert refusal(project) == f"Migration 'migrate_one' in {path} must be a plain function."


# Order


def test_order_is_that_of_definition(project: Project) -> None:
    write(
        project,
        "@migration\ndef zebra(op):\n    pass\ndef migrate_middle():\n    pass\n@migration\ndef apple(op):\n    pass\n",
    )
    assert names(project) == ["zebra", "migrate_middle", "apple"]


def test_order_is_not_that_of_decoration(project: Project) -> None:
    write(project, "def one(op):\n    pass\ndef two(op):\n    pass\nmigration(two)\nmigration(one)\n")
    assert names(project) == ["one", "two"]


def test_order_in_a_package_is_that_of_module_names(project: Project) -> None:
    for name in ("b", "a", "c", "a_10", "a_9"):
        write(project, f"@migration\ndef of_{name}(op):\n    pass\n", name)
    assert names(project) == ["of_a", "of_a_10", "of_a_9", "of_b", "of_c"]


def test_order_of_a_module_does_not_depend_on_who_imports_it(project: Project) -> None:
    write(project, f"from {project.module}.b import two\n@migration\ndef one(op):\n    two(op)\n", "a")
    write(project, "@migration\ndef two(op):\n    pass\n", "b")
    assert names(project) == ["one", "two"]


def test_migrations_of_init_come_first(project: Project) -> None:
    write(project, "@migration\ndef later(op):\n    pass\n", "_a")
    write(project, "@migration\ndef first(op):\n    pass\n", "__init__")
    assert names(project) == ["first", "later"]


def test_migrations_of_subpackages_come_where_their_names_stand(project: Project) -> None:
    write(project, "@migration\ndef of_a(op):\n    pass\n", "a")
    write(project, "@migration\ndef of_z(op):\n    pass\n", "z")
    directory = project.directory / project.module / "m"
    (directory / "deep").mkdir(parents=True)
    (directory / "__init__.py").write_text(HEADER + "@migration\ndef of_m(op):\n    pass\n")
    (directory / "b.py").write_text(HEADER + "@migration\ndef of_m_b(op):\n    pass\n")
    (directory / "deep" / "c.py").write_text(HEADER + "@migration\ndef of_m_deep_c(op):\n    pass\n")
    assert names(project) == ["of_a", "of_m", "of_m_b", "of_m_deep_c", "of_z"]


def test_modules_whose_names_are_no_identifiers_are_loaded(project: Project) -> None:
    for name in ("0002_second", "0001_first", "0003-third"):
        write(project, f"@migration\ndef of_{name[:4]}(op):\n    pass\n", name)
    assert names(project) == ["of_0001", "of_0002", "of_0003"]


def test_namespace_package_is_loaded(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return 1\n", "a")
    (path.parent / "__init__.py").unlink()
    assert [(item.name, call(item, None)) for item in found(project)] == [("one", 1)]


def test_hidden_files_and_caches_are_ignored(project: Project) -> None:
    root = write(project, "@migration\ndef one(op):\n    pass\n", "a").parent
    for name in ("__pycache__/b.py", ".hidden/b.py", ".b.py", "b.py.orig", "b.cpython-311.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("raise RuntimeError\n")
    assert names(project) == ["one"]


def test_modules_import_each_other_relatively(project: Project) -> None:
    write(project, "from .z import VALUE\nfrom . import z\n@migration\ndef one(op):\n    return VALUE, z.VALUE\n", "a")
    write(project, "VALUE = 5\n", "z")
    assert [call(item, None) for item in found(project)] == [(5, 5)]


def test_loaded_modules_are_importable_and_attributes_of_their_package(project: Project) -> None:
    write(project, "@migration\ndef one(op):\n    pass\n", "a")
    (item,) = found(project)
    package = importlib.import_module(project.module)
    assert package.a is sys.modules[f"{project.module}.a"]
    assert package.a.one is item.function


# Names


def test_two_migrations_of_one_name_in_a_module_are_refused(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    pass\n@migration\ndef one(op):\n    return 2\n")
    message = refusal(project)
    assert message.startswith(f"Two migrations are named 'one' in {path}. Names must be unique")
    assert message.endswith("Nothing was changed. Rename one of them.")


def test_two_migrations_of_one_name_in_two_modules_are_refused(project: Project) -> None:
    one = write(project, "@migration\ndef one(op):\n    pass\n", "a")
    two = write(project, "@migration\ndef one(op):\n    pass\n", "b")
    message = refusal(project)
    assert message.startswith(f"Two migrations are named 'one', in {one} and in {two}. Names must be unique")
    assert message.endswith("Nothing was changed. Rename one of them.")


DUPLICATES = {
    "undecorated": "def migrate_one():\n    pass\ndef migrate_one():\n    return 2\n",
    "first undecorated": "def migrate_one():\n    pass\n@migration\ndef migrate_one():\n    return 2\n",
    "second undecorated": "@migration\ndef migrate_one():\n    pass\ndef migrate_one():\n    return 2\n",
}


@pytest.mark.parametrize("source", DUPLICATES.values(), ids=DUPLICATES)
def test_two_functions_of_one_name_are_refused(project: Project, source: str) -> None:
    path = write(project, source)
    assert refusal(project).startswith(f"Two migrations are named 'migrate_one' in {path}")


def test_undecorated_migrations_of_one_name_in_two_modules_are_refused(project: Project) -> None:
    for name in ("a", "b"):
        write(project, "def migrate_one():\n    pass\n", name)
    assert refusal(project).startswith("Two migrations are named 'migrate_one', in ")


def test_helpers_of_one_name_in_two_modules_are_allowed(project: Project) -> None:
    for name in ("a", "b"):
        write(
            project, f"def helper():\n    return '{name}'\n@migration\ndef of_{name}(op):\n    return helper()\n", name
        )
    assert [call(item, None) for item in found(project)] == ["a", "b"]


_IDENTIFIERS = st.from_regex(r"[a-z]{1,3}", fullmatch=True).map(lambda text: f"m_{text}")


@settings(max_examples=30, deadline=None)
@given(functions=st.lists(_IDENTIFIERS, unique=True, max_size=6))
def test_migrations_are_those_that_are_defined_in_their_order(functions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        module = f"migrations_{os.path.basename(name)}"
        source = HEADER + "".join(
            f"@migration\ndef {function}(op):\n    return '{function}'\n" for function in functions
        )
        Path(name, f"{module}.py").write_text(source)
        sys.path.insert(0, name)
        try:
            items = load(scan(module))
        finally:
            sys.path.remove(name)
            sys.modules.pop(module, None)
    assert [item.name for item in items] == functions
    assert [call(item, None) for item in items] == functions


# Modules that do not load

BROKEN = {
    "syntax error": ("x = 1\ndef one(:\n", 3, "SyntaxError: "),
    "indentation": ("x = 1\n  y = 2\n", 3, "IndentationError: unexpected indent"),
    "error of the compiler": ("x = 1\nreturn 1\n", 3, "SyntaxError: 'return' outside function"),
    "ImportError": ("x = 1\nfrom os import no_such_thing\n", 3, "ImportError: cannot import name 'no_such_thing'"),
    "missing module": (
        "import no_such_module_at_all\n",
        2,
        "ModuleNotFoundError: No module named 'no_such_module_at_all'",
    ),
    "NameError": ("x = 1\n\ny = no_such_name\n", 4, "NameError: name 'no_such_name' is not defined"),
    "error in a helper": ("def f():\n    return 1 / 0\nf()\n", 3, "ZeroDivisionError: division by zero"),
    "error in a decorator": ("@migration(twice=True)\ndef one(op):\n    pass\n", 2, "TypeError: "),
    "unfinished string": ("x = 1\ny = 'a\n", 3, "SyntaxError: unterminated string literal"),
    "null byte": ("x = 1\ny = '\0'\n", None, ""),
    "too deep for the parser": ("x = " + "-" * 100_000 + "1\n", None, ""),
    "too deep for the compiler": ("x = a" + ".b" * 100_000 + "\n", None, ""),
}


@pytest.mark.parametrize(("source", "line", "cause"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", [None, "a"], ids=["module", "package"])
def test_broken_module_is_refused_with_file_and_line(
    project: Project, source: str, line: int | None, cause: str, name: str | None
) -> None:
    path = write(project, source, name)
    message = refusal(project)
    module = project.module if name is None else f"{project.module}.{name}"
    assert message.startswith(f"The module of migrations {module!r} cannot be imported: {path}")
    assert message.endswith("Nothing was changed. Fix the file and start again.")
    assert cause in message
    assert line is None or f", line {line}" in message
    assert module not in sys.modules


def test_broken_module_is_loaded_once_it_is_mended(project: Project) -> None:
    write(project, "raise RuntimeError\n")
    refusal(project)
    write(project, "@migration\ndef one(op):\n    return 1\n")
    assert [call(item, None) for item in found(project)] == [1]


def test_module_that_ends_the_process_is_not_left_half_made(project: Project) -> None:
    write(project, "@migration\ndef one(op):\n    pass\nraise SystemExit(3)\n@migration\ndef two(op):\n    pass\n")
    with pytest.raises((SystemExit, MigrationError)):
        found(project)
    assert project.module not in sys.modules


def test_error_of_a_module_that_a_migration_imports_names_the_line_of_the_import(
    make_project: Callable[..., Project],
) -> None:
    other, project = make_project("sqlite://"), make_project("sqlite://")
    other.write("x = 1\nraise RuntimeError('in the other')\n", header="")
    path = write(project, f"import {other.module}\n")
    message = refusal(project)
    assert f"{path}, line 2: RuntimeError: in the other" in message


def test_missing_module_is_refused(project: Project) -> None:
    assert refusal(project).startswith(f"There is no module of migrations {project.module!r}. Make it (an empty file")


def test_link_without_target_is_refused(project: Project) -> None:
    root = write(project, "", "a").parent
    (root / "b.py").symlink_to("nowhere.py")
    assert refusal(project).startswith(f"Cannot read the migrations in {root / 'b.py'}: ")


def test_unknown_encoding_is_refused(project: Project) -> None:
    project.file.write_bytes(b"# -*- coding: no-such-encoding -*-\n")
    assert f"cannot be imported: {project.file}" in refusal(project)


def test_bytes_that_are_no_text_are_refused(project: Project) -> None:
    project.file.write_bytes(b"x = '\xff'\n")
    assert f"cannot be imported: {project.file}" in refusal(project)


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
def test_unreadable_module_is_refused() -> None:
    script = f"""
import sys
from aurum_harmony.db_smart.errors import MigrationError
from aurum_harmony.db_smart.loading.loader import load
from aurum_harmony.db_smart.loading.sources import scan
sys.path.insert(0, sys.argv[1])
{BECOME_NOBODY}
try:
    load(scan("secret_migrations"))
except MigrationError as error:
    print(error.message)
"""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = Path(name, "secret_migrations.py")
        path.touch()
        path.chmod(0)
        assert run_python(script, name) == f"Cannot read the migrations in {path}: Permission denied.\n"


# How a file is written


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_endings(project: Project, newline: str) -> None:
    source = HEADER + '@migration\ndef one(op):\n    return """a\nb"""\n'
    project.file.write_bytes(source.replace("\n", newline).encode())
    assert [call(item, None) for item in found(project)] == ["a\nb"]


def test_line_endings_do_not_count(make_project: Callable[..., Project]) -> None:
    checksums = set()
    for newline in ("\n", "\r\n"):
        project = make_project("sqlite://")
        source = HEADER + '@migration\ndef one(op):\n    return """a\nb"""\n'
        project.file.write_bytes(source.replace("\n", newline).encode())
        checksums |= {item.checksum for item in found(project)}
    assert len(checksums) == 1


@pytest.mark.parametrize(
    ("cookie", "encoding"),
    [
        ("# -*- coding: latin-1 -*-\n", "latin-1"),
        ("# vim: set fileencoding=cp1252 :\n", "cp1252"),
        ("", "utf-8"),
        ("", "utf-8-sig"),
    ],
)
def test_encodings(project: Project, cookie: str, encoding: str) -> None:
    source = cookie + HEADER + "@migration\ndef one(op):\n    return 'Grün'\n"
    project.file.write_bytes(source.encode(encoding))
    assert [call(item, None) for item in found(project)] == ["Grün"]


def test_module_finds_its_own_source(project: Project) -> None:
    path = write(
        project, "import inspect\n@migration\ndef one(op):\n    return inspect.getsource(one), __file__, __name__\n"
    )
    (item,) = found(project)
    source, file, name = call(item, None)
    assert source.startswith("@migration\ndef one(op):\n")
    assert (file, name) == (str(path), project.module)


def test_flags_of_our_own_compiler_do_not_reach_a_migration(project: Project) -> None:
    project.write(HEADER + "@migration\ndef one(op: 1 + 1):\n    return one.__annotations__\n", header="")
    assert [call(item, None) for item in found(project)] == [{"op": 2}]


# From which bytes


def test_edit_between_two_loads_is_what_runs(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return 1\n")
    (before,) = found(project)
    path.write_text(path.read_text().replace("return 1", "return 2"))
    (after,) = found(project)
    assert (call(before, None), call(after, None)) == (1, 2)
    assert after.checksum != before.checksum


def test_same_bytes_are_loaded_once(project: Project) -> None:
    write(project, "@migration\ndef one(op):\n    pass\n")
    (one,), (two,) = found(project), found(project)
    assert one.function is two.function


def test_what_was_scanned_is_what_runs(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return 1\n")
    sources = scan(project.module)
    digest = sources.digest
    path.write_text(path.read_text().replace("return 1", "return 2"))
    assert [call(item, None) for item in load(sources)] == [1]
    assert scan(project.module).digest != digest


def stale_cache(path: Path, old: str, new: str) -> None:
    """Edit a file so that Python's cached byte code, of its old content, still seems to fit."""
    source = path.read_text()
    py_compile.compile(str(path), doraise=True)
    edit_in_place(path, source.replace(old, new).encode())
    assert path.read_text() != source
    assert path.stat().st_size == len(source)
    assert os.path.exists(importlib.util.cache_from_source(str(path)))


def test_stale_byte_code_is_not_run(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return 1\n")
    stale_cache(path, "return 1", "return 2")
    assert [call(item, None) for item in found(project)] == [2]


def test_python_itself_runs_the_stale_byte_code(project: Project) -> None:
    """Else the tests around this one would show nothing."""
    path = write(project, "@migration\ndef one(op):\n    return 1\n")
    stale_cache(path, "return 1", "return 2")
    assert importlib.import_module(project.module).one(None) == 1


def test_stale_byte_code_of_a_constant_is_not_run(project: Project) -> None:
    path = write(project, "VALUE = 1\n@migration\ndef one(op):\n    return VALUE\n")
    stale_cache(path, "VALUE = 1", "VALUE = 2")
    assert [call(item, None) for item in found(project)] == [2]


def test_stale_byte_code_in_a_package_is_not_run(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return 1\n", "a")
    stale_cache(path, "return 1", "return 2")
    assert [call(item, None) for item in found(project)] == [2]


# Modules that the application imported


def test_module_that_the_application_imported_is_used_as_it_is(project: Project) -> None:
    write(project, "COUNT = []\n@migration\ndef one(op):\n    return 1\ndef migrate_two():\n    return 2\n")
    module = importlib.import_module(project.module)
    assert [item.function for item in found(project)] == [module.one, module.migrate_two]
    assert sys.modules[project.module] is module


def test_module_is_the_same_migration_whoever_imports_it(project: Project) -> None:
    write(project, "X = 1\n@migration\ndef one(op):\n    return X\n")
    loaded = [(item.name, item.checksum, item.options) for item in found(project)]
    del sys.modules[project.module]
    importlib.import_module(project.module)
    assert [(item.name, item.checksum, item.options) for item in found(project)] == loaded


@pytest.fixture
def byte_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python keeps the byte code of what it imports, as it does unless it is told not to."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


CHANGES = {
    "body": ("return VALUE", "return -VALUE"),
    "default": ("n=1", "n=2"),
    "helper": ("return 10", "return 20"),
    "constant": ("VALUE = 5", "VALUE = 6"),
    "list that is appended to": ("LIST.append(1)", "LIST.append(2)"),
    "import": ("from os import path as tool", "from os import sep as tool"),
    "new line above": ("VALUE = 5", "\nVALUE = 5"),
    "function removed": ("@migration\ndef one", "def two"),
    "no longer a program": ("VALUE = 5", "return 5"),
    "syntax error": ("VALUE = 5", "VALUE = "),
}


@pytest.mark.usefixtures("byte_code")
@pytest.mark.parametrize(("old", "new"), CHANGES.values(), ids=CHANGES)
def test_file_that_changed_after_the_application_imported_it_is_refused(project: Project, old: str, new: str) -> None:
    path = write(
        project,
        "from os import path as tool\nVALUE = 5\nLIST = []\nLIST.append(1)\n\ndef helper():\n    return 10\n\n"
        "@migration\ndef one(op, n=1):\n    helper(), tool, LIST\n    return VALUE\n",
    )
    importlib.import_module(project.module)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    message = refusal(project)
    assert str(path) in message
    assert "start" in message.lower()


@pytest.mark.usefixtures("byte_code")
def test_migration_added_after_the_application_imported_the_file_is_refused(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    pass\n")
    importlib.import_module(project.module)
    path.write_text(path.read_text() + "@migration\ndef two(op):\n    pass\n")
    assert f"{path} changed after this process loaded it" in refusal(project)


def test_stale_byte_code_that_the_application_imported_is_refused(project: Project) -> None:
    path = write(project, "@migration\ndef one(op):\n    return 1\n")
    stale_cache(path, "return 1", "return 2")
    importlib.import_module(project.module)
    assert refusal(project) == (
        f"{path} changed after this process loaded it. Nothing was applied. Restart the process."
    )


def test_stale_byte_code_of_a_constant_that_the_application_imported_is_refused(project: Project) -> None:
    path = write(project, "VALUE = 1\n@migration\ndef one(op):\n    return VALUE\n")
    stale_cache(path, "VALUE = 1", "VALUE = 2")
    importlib.import_module(project.module)
    assert f"{path} changed after this process loaded it" in refusal(project)


def test_stale_byte_code_of_a_sibling_that_a_migration_imports_is_refused(project: Project) -> None:
    write(project, f"import {project.module}.z\n@migration\ndef one(op):\n    pass\n", "a")
    path = write(project, "@migration\ndef two(op):\n    return 1\n", "z")
    stale_cache(path, "return 1", "return 2")
    assert f"{path} changed after this process loaded it" in refusal(project)
