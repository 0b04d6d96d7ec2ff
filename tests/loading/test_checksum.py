"""Checksums: which edits of a module count as an edit of a migration, on every Python."""

from __future__ import annotations

import ast
import dis
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import CodeType, FunctionType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurum_harmony.db_smart.errors import MigrationError
from aurum_harmony.db_smart.loading.checksum import ModuleSource, _codes
from tests.harness.processes import find_python, run_python

#: The version of Python and the definitions of this sample must not matter. Each is reached by ``migrate``.
SAMPLE = '''\
"""A module of migrations."""

from __future__ import annotations

import asyncio
from sqlalchemy import Column as C, Integer, Text

COLUMNS = [("city", Text), ("state", Text)]
COLUMNS.append(("country", Text))
COLUMNS += [(f"line_{number:>{WIDTH}}!", Text) for number in range(3) if number != 1]
SQL = """
    UPDATE users
    SET country = 'IN'
    WHERE country IS NULL
"""


def traced(function):
    return function


class Limits:
    """Limits."""

    rows: int = 1_000
    share = 0.25

    @property
    def pause(self):
        return self.share * 2 or None


async def fetch(name, /, *rest, timeout=1.5, **more):
    """Fetch."""
    async with name as one, rest[0]:
        await asyncio.sleep(timeout)
    return [two async for two in one if two]


def describe(value):
    match value:
        case {"kind": "city", **rest} if rest:
            return f"{value!r:>10} {f'{rest}'} {rest=}"
        case [first, *others] | (first, others):
            return first, others
        case Limits(rows=1) as found:
            return found
        case None | True | -1 | "x":
            return ...
    return b"\\x00\\xff"


@migration
@traced
def migrate(op, rows: int = Limits.rows) -> None:
    """Add the columns."""
    seen: dict[str, int] = {}
    for name, kind in COLUMNS:
        try:
            if (count := seen.get(name, 0)) > 0 and not (name in seen):
                raise KeyError(name) from None
            elif count < -1:
                continue
            else:
                seen[name] = count + 1
        except (KeyError, ValueError) as error:
            print(f"{error!s}", end="")
        finally:
            del kind
    op.add_columns("users", *(C(name, kind) for name, kind in COLUMNS), key=lambda each, *_, by=1: (each, by))
    while seen:
        seen.popitem()
        if len(seen) % 2 == 1:
            break
    with open("f") as file:
        op.execute(SQL + file.read()[1:-1:2])
    asyncio.run(fetch(op))
    assert describe({**seen}), "nothing"
'''
GOLDEN = "df50717323623fb18a09ab817b16029d483e13f52667594509008aa277293500"

#: More of Python, with what its versions print or parse in ways of their own.
SAMPLES = {
    "sample": SAMPLE,
    "text newer than some Unicode tables": 'def migrate(op):\n    op.execute("\U0001fae8 \U0001fabf")\n',
    "identifiers beyond ASCII": "GRÖSSE = 1\ndef migrate(op, straße=GRÖSSE):\n    op.f(straße, ﬁ=1)\n",
    "surrogates, controls and separators": 'def migrate(op):\n    op.f("\\ud800 \\x00\\x7f\\x85\\u2028\\ufeff")\n',
    "f-strings": '''\
def migrate(op, x, w):
    op.f(f"{x:}", f"{x!r:>{w}}", f"{ x = :>3}", "a" f"{x}b" "c", f"{x:{w}}" "b", f"", f"plain", rf"{x:\\d}\\d")
    op.f(f"{x:%H\\n%M}", f"{{}}{x}{{", f"{x:{w}.{w}f}", f"{(lambda q: q)(1)}", f"{x!s}{x!a}", f"{x['k']}")
    op.f(f"""
        {x}   """ f"""
        {
        w}

        end""", f"{f'{x}'}", f"\\N{DIGIT ONE}{x:\\N{DIGIT ONE}}")
''',
    "numbers": "def migrate(op):\n    op.f(0x_ff, 0b1, 1e308 * 10, 1e-7, 1E400, .1, 5j, 1234567890123456789012)\n",
    "code that compilers leave out": """\
def one(): return 1
def two(): return 2
def three(): return 3
def four(): return 4
def five(): return 5
def six(): return 6
def seven(): return 7
def eight(): return 8
def nine(): return 9
class Local: pass


def migrate(op):
    seen: Local = op
    if False:
        one()
    while 0:
        two()
    assert three(), four()
    if __debug__:
        five()
    op.f(1 if True else six(), None and seven(), [n for n in () if not n])
    if not op:
        return None
        eight()
    while True:
        op.g()
    nine()
""",
    "positional patterns": """\
def migrate(op):
    match op:
        case str("a" "b") | int() | {1: _}:
            pass
        case {1: _, **more}:
            pass
        case [1, [2, *_]] | 1 + 2j | None:
            pass
""",
}


@cache
def checksum(source: str | bytes, name: str = "migrate") -> str:
    """The checksum of a function of a module, under a decorator named ``migration``."""
    content = dedent(source).encode() if isinstance(source, str) else source
    return ModuleSource("sample", "sample.py", content).checksum(_function(content, name), _named_migration)


def _function(content: bytes, name: str) -> FunctionType:
    """A function of a module, although the module would not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        code = _code(compile(content, "sample.py", "exec", dont_inherit=True), name)
    assert code is not None
    return FunctionType(code, {})


def _code(code: CodeType, name: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found = constant if constant.co_name == name else _code(constant, name)
            if found is not None:
                return found
    return None


def _named_migration(node: ast.expr) -> bool:
    return ast.unparse(node).split("(")[0] == "migration"


# What does not count


LAYOUT = {
    "comment": ("def migrate(op):\n    op.f(1)", "# a\ndef migrate(op):  # b\n    # c\n    op.f(1)  # d\n# e"),
    "docstring added": ("def migrate(op):\n    op.f(1)", 'def migrate(op):\n    """Doc."""\n    op.f(1)'),
    "docstring changed": ("def migrate(op):\n    'a'\n    op.f(1)", 'def migrate(op):\n    """B."""\n    op.f(1)'),
    "docstring of a nested function": (
        "def migrate(op):\n    def g():\n        return 1\n    op.f(g)",
        "def migrate(op):\n    def g():\n        'Doc.'\n        return 1\n    op.f(g)",
    ),
    "docstring of a helper": (
        "def helper():\n    return 1\ndef migrate(op):\n    helper()",
        "def helper():\n    '''Doc.'''\n    return 1\ndef migrate(op):\n    helper()",
    ),
    "docstring of a class": (
        "class A:\n    x = 1\ndef migrate(op):\n    A()",
        "class A:\n    '''Doc.'''\n    x = 1\ndef migrate(op):\n    A()",
    ),
    "docstring of an async helper": (
        "async def helper():\n    return 1\ndef migrate(op):\n    helper()",
        "async def helper():\n    '''Doc.'''\n    return 1\ndef migrate(op):\n    helper()",
    ),
    "docstring of the module": ("def migrate(op):\n    op.f(1)", '"""Module."""\ndef migrate(op):\n    op.f(1)'),
    "blank lines": (
        "def migrate(op):\n    op.f(1)\n    op.f(2)",
        "\n\ndef migrate(op):\n\n    op.f(1)\n\n\n    op.f(2)\n\n",
    ),
    "trailing blanks": ("def migrate(op):\n    op.f(1)\n", "def migrate(op):  \n    op.f(1)\t \n   \n"),
    "no newline at the end": ("def migrate(op):\n    op.f(1)\n", "def migrate(op):\n    op.f(1)"),
    "indentation by two": ("def migrate(op):\n    if op:\n        op.f(1)", "def migrate(op):\n  if op:\n    op.f(1)"),
    "indentation by tabs": ("def migrate(op):\n    if op:\n        op.f(1)", "def migrate(op):\n\tif op:\n\t\top.f(1)"),
    "parentheses": ("def migrate(op):\n    return 1 + 2 * op.x", "def migrate(op):\n    return (1 + (2 * (op).x))"),
    "parentheses of a tuple": ("def migrate(op):\n    a, b = 1, 2", "def migrate(op):\n    (a, b) = (1, 2)"),
    "call over several lines": (
        "def migrate(op):\n    op.f('users', name='x')",
        "def migrate(op):\n    op.f(\n        'users',\n        name='x',\n    )",
    ),
    "continuation line": ("def migrate(op):\n    x = 1 + 2", "def migrate(op):\n    x = 1 + \\\n        2"),
    "statements on one line": ("def migrate(op):\n    op.f(1)\n    op.f(2)", "def migrate(op): op.f(1); op.f(2)"),
    "quotes": ("def migrate(op):\n    op.f('a')", 'def migrate(op):\n    op.f("""a""")'),
    "escapes": ("def migrate(op):\n    op.f('A')", "def migrate(op):\n    op.f('\\x41')"),
    "raw string": ("def migrate(op):\n    op.f('\\\\d')", "def migrate(op):\n    op.f(r'\\d')"),
    "string in parts": ("def migrate(op):\n    op.f('ab')", "def migrate(op):\n    op.f('a' 'b')"),
    "f-string in parts": ("def migrate(op):\n    op.f(f'a{op}b')", "def migrate(op):\n    op.f('a' f'{op}' 'b')"),
    "prefix u": ("def migrate(op):\n    op.f('a')", "def migrate(op):\n    op.f(u'a')"),
    "notation of numbers": ("def migrate(op):\n    op.f(1000, 255)", "def migrate(op):\n    op.f(1_000, 0xff)"),
    "type comment": (
        "def migrate(op):\n    x = 1",
        "def migrate(op):\n    # type: (int) -> None\n    x = 1  # type: int",
    ),
    "trailing blanks in SQL": (
        'def migrate(op):\n    op.f("""SELECT 1\n    FROM a\n""")',
        'def migrate(op):\n    op.f("""SELECT 1  \n    FROM a\t\n""")',
    ),
    "blank lines in SQL": (
        'def migrate(op):\n    op.f("""SELECT 1\n    FROM a\n""")',
        'def migrate(op):\n    op.f("""SELECT 1\n\n   \n    FROM a\n\n""")',
    ),
    "trailing blanks and blank lines in SQL of an f-string": (
        'def migrate(op):\n    op.f(f"""SELECT {op}\n    FROM {op}\n    WHERE 1\n""")',
        'def migrate(op):\n    op.f(f"""SELECT {op}  \n\n    FROM {op}\n \n    WHERE 1 \n""")',
    ),
    "trailing blanks in SQL of a constant": (
        'SQL = """SELECT 1\n"""\ndef migrate(op):\n    op.f(SQL)',
        'SQL = """SELECT 1   \n"""\ndef migrate(op):\n    op.f(SQL)',
    ),
}


@pytest.mark.parametrize(("before", "after"), LAYOUT.values(), ids=LAYOUT)
def test_layout_does_not_count(before: str, after: str) -> None:
    assert checksum(before) == checksum(after)


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_line_endings_do_not_count(newline: str) -> None:
    assert checksum(SAMPLE.replace("\n", newline).encode()) == checksum(SAMPLE)


def test_byte_order_mark_does_not_count() -> None:
    assert checksum(b"\xef\xbb\xbf" + SAMPLE.encode()) == checksum(SAMPLE)


def test_encoding_of_the_file_does_not_count() -> None:
    text = "def migrate(op):\n    op.f('Grün')\n"
    assert checksum(b"# -*- coding: latin-1 -*-\n" + text.encode("latin-1")) == checksum(text.encode())


def test_reformatting_does_not_count() -> None:
    reformatted = ast.unparse(ast.parse(SAMPLE))
    assert "# " not in reformatted
    assert reformatted != SAMPLE
    assert checksum(reformatted) == checksum(SAMPLE)


def test_indenting_a_function_under_a_condition_does_not_count() -> None:
    text = "def migrate(op):\n    op.f('''a\nb''')\n"
    assert checksum("if True:\n    def migrate(op):\n        op.f('''a\nb''')\n") == checksum(text)


_IN_STRING = {
    line
    for node in ast.walk(ast.parse(SAMPLE))
    if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno is not None
    for line in range(node.lineno + 1, node.end_lineno + 1)
}
_LINES = st.integers(1, len(SAMPLE.splitlines()))
_BLANKS = st.sampled_from(["", "  ", "\t", " \t "])
_COMMENTS = st.sampled_from(["# a", "        # 'b", '#"""', "\t# ü"])


@settings(max_examples=60, deadline=None)
@given(
    blanks=st.dictionaries(_LINES, _BLANKS, max_size=10),
    comments=st.dictionaries(_LINES.filter(lambda line: line not in _IN_STRING), _COMMENTS, max_size=10),
    trailing=st.dictionaries(_LINES, _BLANKS, max_size=10),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_no_noise_of_layout_counts(
    blanks: dict[int, str], comments: dict[int, str], trailing: dict[int, str], newline: str
) -> None:
    lines = []
    for number, line in enumerate(SAMPLE.splitlines(), 1):
        lines += [noise[number] for noise in (blanks, comments) if number in noise]
        lines.append(line + trailing.get(number, ""))
    assert checksum(newline.join(lines).encode()) == checksum(SAMPLE)


# What counts


EDITS = {
    "statement added": ("def migrate(op):\n    op.f(1)", "def migrate(op):\n    op.f(1)\n    op.f(1)"),
    "statement removed": ("def migrate(op):\n    op.f(1)\n    op.f(2)", "def migrate(op):\n    op.f(1)"),
    "statements swapped": ("def migrate(op):\n    op.f(1)\n    op.f(2)", "def migrate(op):\n    op.f(2)\n    op.f(1)"),
    "statement into the branch": (
        "def migrate(op):\n    if op:\n        op.f(1)\n    op.f(2)",
        "def migrate(op):\n    if op:\n        op.f(1)\n        op.f(2)",
    ),
    "statement into else": (
        "def migrate(op):\n    for x in op:\n        op.f(1)\n        op.f(2)",
        "def migrate(op):\n    for x in op:\n        op.f(1)\n    else:\n        op.f(2)",
    ),
    "constant": ("def migrate(op):\n    op.f(1)", "def migrate(op):\n    op.f(2)"),
    "type of a constant": ("def migrate(op):\n    op.f(1)", "def migrate(op):\n    op.f(1.0)"),
    "truth for a number": ("def migrate(op):\n    op.f(1)", "def migrate(op):\n    op.f(True)"),
    "bytes for text": ("def migrate(op):\n    op.f('a')", "def migrate(op):\n    op.f(b'a')"),
    "text for a name": ("def migrate(op):\n    op.f('a')", "def migrate(op):\n    op.f(a)"),
    "None removed": ("def migrate(op):\n    return None", "def migrate(op):\n    return"),
    "sign": ("def migrate(op):\n    op.f(1)", "def migrate(op):\n    op.f(-1)"),
    "operator": ("def migrate(op):\n    return op.x + 1", "def migrate(op):\n    return op.x - 1"),
    "comparison": ("def migrate(op):\n    return op.x < 1", "def migrate(op):\n    return op.x <= 1"),
    "and for or": ("def migrate(op):\n    return op.x and 1", "def migrate(op):\n    return op.x or 1"),
    "grouping": ("def migrate(op):\n    return op.x - 1 - 2", "def migrate(op):\n    return op.x - (1 - 2)"),
    "string": ("def migrate(op):\n    op.f('users')", "def migrate(op):\n    op.f('user')"),
    "case in a string": ("def migrate(op):\n    op.f('users')", "def migrate(op):\n    op.f('Users')"),
    "blank in a string": ("def migrate(op):\n    op.f('a b')", "def migrate(op):\n    op.f('a  b')"),
    "trailing blank in a string of one line": ("def migrate(op):\n    op.f('a')", "def migrate(op):\n    op.f('a ')"),
    "newline in a string": ("def migrate(op):\n    op.f('a b')", "def migrate(op):\n    op.f('a\\nb')"),
    "indentation in SQL": (
        'def migrate(op):\n    op.f("""a\n  b""")',
        'def migrate(op):\n    op.f("""a\n    b""")',
    ),
    "word in SQL": ('def migrate(op):\n    op.f("""a\n  b""")', 'def migrate(op):\n    op.f("""a\n  c""")'),
    "second newline in a string of one line": (
        "def migrate(op):\n    op.write('\\n'.join(op.x))",
        "def migrate(op):\n    op.write('\\n\\n'.join(op.x))",
    ),
    "blank before a newline in a string of one line": (
        "def migrate(op):\n    op.replace(' \\n', '\\n')",
        "def migrate(op):\n    op.replace('\\n', '\\n')",
    ),
    "text of an f-string": ("def migrate(op):\n    op.f(f'a{op}')", "def migrate(op):\n    op.f(f'b{op}')"),
    "value of an f-string": ("def migrate(op):\n    op.f(f'{op.a}')", "def migrate(op):\n    op.f(f'{op.b}')"),
    "format of an f-string": ("def migrate(op):\n    op.f(f'{op:>1}')", "def migrate(op):\n    op.f(f'{op:>2}')"),
    "conversion of an f-string": ("def migrate(op):\n    op.f(f'{op!r}')", "def migrate(op):\n    op.f(f'{op!s}')"),
    "text for a value in an f-string": ("def migrate(op):\n    op.f(f'{1}')", "def migrate(op):\n    op.f(f'1')"),
    "plain string for an f-string": ("def migrate(op):\n    op.f(f'{op}')", "def migrate(op):\n    op.f('{op}')"),
    "argument default": ("def migrate(op, n=1):\n    op.f(n)", "def migrate(op, n=2):\n    op.f(n)"),
    "default of a keyword argument": ("def migrate(op, *, n=1):\n    op.f(n)", "def migrate(op, *, n=2):\n    op.f(n)"),
    "argument added": ("def migrate(op):\n    op.f(1)", "def migrate(op, n=1):\n    op.f(1)"),
    "argument removed": ("def migrate(op):\n    op.f(1)", "def migrate():\n    op.f(1)"),
    "kind of argument": ("def migrate(op, n=1):\n    op.f(n)", "def migrate(op, *, n=1):\n    op.f(n)"),
    "attribute": ("def migrate(op):\n    op.f(1)", "def migrate(op):\n    op.g(1)"),
    "keyword": ("def migrate(op):\n    op.f(a=1)", "def migrate(op):\n    op.f(b=1)"),
    "positional for keyword": ("def migrate(op):\n    op.f(a=1)", "def migrate(op):\n    op.f(1)"),
    "order of arguments": ("def migrate(op):\n    op.f(1, 2)", "def migrate(op):\n    op.f(2, 1)"),
    "star": ("def migrate(op):\n    op.f(op.x)", "def migrate(op):\n    op.f(*op.x)"),
    "list for tuple": ("def migrate(op):\n    op.f([1, 2])", "def migrate(op):\n    op.f((1, 2))"),
    "start for stop of a slice": ("def migrate(op):\n    op.x[1:]", "def migrate(op):\n    op.x[:1]"),
    "guard": ("def migrate(op):\n    [x for x in op]", "def migrate(op):\n    [x for x in op if x]"),
    "case None for another": (
        "def migrate(op):\n    match op:\n        case None:\n            op.f(1)",
        "def migrate(op):\n    match op:\n        case False:\n            op.f(1)",
    ),
    "capture for wildcard": (
        "def migrate(op):\n    match op:\n        case _:\n            op.f(1)",
        "def migrate(op):\n    match op:\n        case x:\n            op.f(1)",
    ),
    "nested function": (
        "def migrate(op):\n    def g():\n        return 1\n    op.f(g)",
        "def migrate(op):\n    def g():\n        return 2\n    op.f(g)",
    ),
    "lambda": ("def migrate(op):\n    op.f(lambda x: x)", "def migrate(op):\n    op.f(lambda x: -x)"),
    "local import": ("def migrate(op):\n    from a import x", "def migrate(op):\n    from b import x"),
    "level of a local import": ("def migrate(op):\n    from .a import x", "def migrate(op):\n    from ..a import x"),
    "string that is no docstring": ("def migrate(op):\n    op.f(1)\n    'a'", "def migrate(op):\n    op.f(1)\n    'b'"),
}


@pytest.mark.parametrize(("before", "after"), EDITS.values(), ids=EDITS)
def test_edit_counts(before: str, after: str) -> None:
    assert checksum(before) != checksum(after)


LOADED = {
    "argument": "def migrate(op): A, B(1, x=C)",
    "assignment": "def migrate(op):\n    x = A\n    op.f(x[B:1], -C + 1, not x, f'{x!r:>{D}}')",
    "argument of the same name": "def migrate(A): A.f(B)",
    "default of an argument of the same name": "def migrate(op, A=A, *B, **C): A.f(B, C)",
    "local of the same name": "def migrate(op):\n    A = 1\n    op.f(A, B)",
    "loop": "def migrate(op):\n    for A in B:\n        op.f(A)\n    else:\n        C()",
    "with": "def migrate(op):\n    with A as B, C:\n        B()",
    "lambda": "def migrate(op):\n    op.f(lambda A, b=B: (A, b, C))",
    "nested function of the same name": "def migrate(op):\n    def A(): B\n    A()",
    "annotations": "def migrate(op: A) -> B:\n    c: C = 1\n    def f(a: D): pass",
    "decorator": "@A\n@B.b\n@C(1)\ndef migrate(op): pass",
    "dead code": "def migrate(op):\n    if False:\n        A()\n    while 0:\n        B()\n    return C\n    D()",
    "dead operands": "def migrate(op):\n    op.f(1 if True else A, None and B, [C for _ in op if False])",
    "assert": "def migrate(op):\n    assert A, B",
    "local import": "def migrate(op):\n    import A.B as C\n    from B import A\n    op.f(A, B, C)",
    "global": "def migrate(op):\n    global A\n    A += 1\n    del B",
    "walrus": "def migrate(op): op.f((A := 1), A, B)",
    "except": "def migrate(op):\n    try:\n        A\n    except B as C:\n        C",
    "class": "def migrate(op):\n    class A(B):\n        C = C\n        def f(self): return __class__, D",
    "match": "def migrate(op):\n    match op:\n        case A.a | B():\n            C\n        case {'x': D, **C}: D",
    "comprehension": "def migrate(op): return [A for A in B], {C: C for _ in op}",
}


@pytest.mark.parametrize("source", LOADED.values(), ids=LOADED)
def test_what_a_function_reaches_is_what_the_compiler_has_it_load(source: str) -> None:
    """Whether or not it was compiled for it."""
    constants = "A = 1\nB = 2\nC = 3\nD = 4\n"
    module = ModuleSource("sample", "sample.py", (constants + source).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of an assertion that is always true
        code = compile(source, "sample.py", "exec", dont_inherit=True, optimize=0)
    loaded = {
        instruction.argval
        for inner in _codes(code)
        for instruction in dis.get_instructions(inner)
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
    }
    function = _function((constants + source).encode(), "migrate")
    assert module.reaches(function, _named_migration) == loaded & set("ABCD")


def test_name_of_the_function_counts() -> None:
    assert checksum("def one(op):\n    op.f(1)", "one") != checksum("def two(op):\n    op.f(1)", "two")


def _edits(tree: ast.Module) -> list[Callable[[], object]]:
    """Every small edit of a tree, each to be called at most once, docstrings and ``migration`` left out."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and ast.get_docstring(node) is not None
        and isinstance(node.body[0], ast.Expr)
    }
    edits: list[Callable[[], object]] = []

    def assign(node: ast.AST, field: str, value: object) -> None:
        edits.append(lambda: setattr(node, field, value))

    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or node.value is None or node.value is ...:
                continue
            if isinstance(node.value, (int, float)):
                assign(node, "value", node.value + 1)
            elif isinstance(node.value, str):
                assign(node, "value", node.value + "x")
            elif isinstance(node.value, bytes):
                assign(node, "value", node.value + b"x")
        elif isinstance(node, ast.Attribute):
            assign(node, "attr", node.attr + "_")
        elif isinstance(node, (ast.keyword, ast.arg)) and node.arg:
            assign(node, "arg", node.arg + "_")
        elif isinstance(node, ast.Name) and node.id != "migration":
            assign(node, "id", node.id + "_")
        elif isinstance(node, ast.BinOp):
            assign(node, "op", ast.FloorDiv())
        elif isinstance(node, ast.BoolOp):
            assign(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        elif isinstance(node, ast.Compare):
            assign(node, "ops", [ast.NotIn()])
        elif isinstance(node, (ast.If, ast.While, ast.Assert)):
            assign(node, "test", ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            assign(node, "args", node.args[::-1])
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and not isinstance(node, ast.Module):
                edits.append(partial(statements.append, ast.Pass()))
    return edits


@settings(max_examples=100, deadline=None)
@given(number=st.integers(0, len(_edits(ast.parse(SAMPLE))) - 1))
def test_every_small_edit_counts(number: int) -> None:
    tree = ast.parse(SAMPLE)
    _edits(tree)[number]()
    edited = ast.unparse(ast.fix_missing_locations(tree))
    assert checksum(edited) != checksum(SAMPLE), edited


_LEAVES = st.sampled_from(["a", "b", "0", "1", "'a'", "'b'", "'a,b'", "''", "None", "True", "()", "[]", "f'a'", "b'a'"])


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    forms = (
        "({} + {})", "({} - {})", "-{}", "(not {})", "[{}, {}]", "({}, {})", "({},)", "[{}]", "{{{}: {}}}", "{{{}}}",
        "{{**{}}}", "f({}, {})", "f({}, k={})", "f({}, *{})", "f(**{})", "f({})({})", "({}).a", "({}).b", "({})[{}]",
        "({})[{}:]", "({})[:{}]", "({})[{}:{}]", "({} if {} else {})", "(lambda a: {})", "(lambda a={}: {})",
        "(lambda *a: {})", "(lambda *, a={}: {})", "({} < {} < {})", "({} < ({} < {}))", "[{} for a in {}]",
        "[{} for a in {} if {}]", "({} and {} or {})", "({} and ({} or {}))",
    )  # fmt: skip
    return st.sampled_from(forms).flatmap(
        lambda form: st.tuples(*[inner] * form.replace("{{", "").count("{}")).map(lambda parts: form.format(*parts))
    )


_EXPRESSIONS = st.recursive(_LEAVES, _compound, max_leaves=4)


@settings(max_examples=300, deadline=None)
@given(one=_EXPRESSIONS, two=_EXPRESSIONS)
def test_two_expressions_share_a_checksum_only_when_they_are_the_same(one: str, two: str) -> None:
    first, second = (
        f"async def migrate(op):\n    {expression}\n    return" for expression in (f"x = {one}", f"x = {two}")
    )
    same = ast.dump(ast.parse(first)) == ast.dump(ast.parse(second))
    assert (checksum(first) == checksum(second)) is same


# What a function reaches


REACHED = {
    "constant": ("X = 1\ndef migrate(op):\n    op.f(X)", "X = 2\ndef migrate(op):\n    op.f(X)"),
    "constant below": ("def migrate(op):\n    op.f(X)\nX = 1", "def migrate(op):\n    op.f(X)\nX = 2"),
    "constant list": ("X = ['a']\ndef migrate(op):\n    op.f(*X)", "X = ['a', 'b']\ndef migrate(op):\n    op.f(*X)"),
    "annotated constant": ("X: int = 1\ndef migrate(op):\n    op.f(X)", "X: int = 2\ndef migrate(op):\n    op.f(X)"),
    "unpacked constant": ("X, Y = 1, 2\ndef migrate(op):\n    op.f(X)", "X, Y = 3, 2\ndef migrate(op):\n    op.f(X)"),
    "list built by append": (
        "X = []\nX.append(1)\ndef migrate(op):\n    op.f(X)",
        "X = []\nX.append(2)\ndef migrate(op):\n    op.f(X)",
    ),
    "append removed": ("X = []\nX.append(1)\ndef migrate(op):\n    op.f(X)", "X = []\ndef migrate(op):\n    op.f(X)"),
    "order of appends": (
        "X = []\nX.append(1)\nX.append(2)\ndef migrate(op):\n    op.f(X)",
        "X = []\nX.append(2)\nX.append(1)\ndef migrate(op):\n    op.f(X)",
    ),
    "list built by +=": (
        "X = []\nX += [1]\ndef migrate(op):\n    op.f(X)",
        "X = []\nX += [2]\ndef migrate(op):\n    op.f(X)",
    ),
    "list built in a loop": (
        "X = []\nfor n in 'ab':\n    X.append(n)\ndef migrate(op):\n    op.f(X)",
        "X = []\nfor n in 'abc':\n    X.append(n)\ndef migrate(op):\n    op.f(X)",
    ),
    "list built under a condition": (
        "X = []\nif True:\n    X.append(1)\ndef migrate(op):\n    op.f(X)",
        "X = []\nif False:\n    X.append(1)\ndef migrate(op):\n    op.f(X)",
    ),
    "constant that an append uses": (
        "Y = 1\nX = []\nX.append(Y)\ndef migrate(op):\n    op.f(X)",
        "Y = 2\nX = []\nX.append(Y)\ndef migrate(op):\n    op.f(X)",
    ),
    "item assigned": (
        "X = {}\nX['a'] = 1\ndef migrate(op):\n    op.f(X)",
        "X = {}\nX['a'] = 2\ndef migrate(op):\n    op.f(X)",
    ),
    "item deleted": ("X = [1]\ndel X[0]\ndef migrate(op):\n    op.f(X)", "X = [1]\ndef migrate(op):\n    op.f(X)"),
    "attribute assigned": (
        "class A: pass\nA.x = 1\ndef migrate(op):\n    op.f(A)",
        "class A: pass\nA.x = 2\ndef migrate(op):\n    op.f(A)",
    ),
    "attribute of an attribute assigned": (
        "class A: pass\nA.x.y['z'] = 1\ndef migrate(op):\n    op.f(A)",
        "class A: pass\nA.x.y['z'] = 2\ndef migrate(op):\n    op.f(A)",
    ),
    "list filled by a function": (
        "X = []\nfill(X, 1)\ndef migrate(op):\n    op.f(X)",
        "X = []\nfill(X, 2)\ndef migrate(op):\n    op.f(X)",
    ),
    "list filled by a function, by keyword": (
        "X = []\nfill(n=1, into=X)\ndef migrate(op):\n    op.f(X)",
        "X = []\nfill(n=2, into=X)\ndef migrate(op):\n    op.f(X)",
    ),
    "function that filled a list": (
        "X = []\ndef fill(x):\n    x.append(1)\nfill(X)\ndef migrate(op):\n    op.f(X)",
        "X = []\ndef fill(x):\n    x.append(2)\nfill(X)\ndef migrate(op):\n    op.f(X)",
    ),
    "redefinition": ("X = 1\ndef migrate(op):\n    op.f(X)", "X = 1\nX = 2\ndef migrate(op):\n    op.f(X)"),
    "order of redefinitions": (
        "X = 1\nX = 2\ndef migrate(op):\n    op.f(X)",
        "X = 2\nX = 1\ndef migrate(op):\n    op.f(X)",
    ),
    "constant bound by :=": (
        "if (X := 1): pass\ndef migrate(op):\n    op.f(X)",
        "if (X := 2): pass\ndef migrate(op):\n    op.f(X)",
    ),
    "constant bound by for": (
        "for X in (1, 2): pass\ndef migrate(op):\n    op.f(X)",
        "for X in (1, 3): pass\ndef migrate(op):\n    op.f(X)",
    ),
    "constant bound by with": (
        "with f(1) as X: pass\ndef migrate(op):\n    op.f(X)",
        "with f(2) as X: pass\ndef migrate(op):\n    op.f(X)",
    ),
    "constant bound by match": (
        "match 1:\n    case X: pass\ndef migrate(op):\n    op.f(X)",
        "match 2:\n    case X: pass\ndef migrate(op):\n    op.f(X)",
    ),
    "constant of a constant": (
        "Y = 1\nX = [Y]\ndef migrate(op):\n    op.f(X)",
        "Y = 2\nX = [Y]\ndef migrate(op):\n    op.f(X)",
    ),
    "helper": (
        "def helper():\n    return 1\ndef migrate(op):\n    helper()",
        "def helper():\n    return 2\ndef migrate(op):\n    helper()",
    ),
    "default of a helper": (
        "def helper(n=1):\n    return n\ndef migrate(op):\n    helper()",
        "def helper(n=2):\n    return n\ndef migrate(op):\n    helper()",
    ),
    "helper of a helper": (
        "def two():\n    return 1\ndef one():\n    two()\ndef migrate(op):\n    one()",
        "def two():\n    return 2\ndef one():\n    two()\ndef migrate(op):\n    one()",
    ),
    "constant of a helper of a helper": (
        "X = 1\ndef two():\n    return X\ndef one():\n    two()\ndef migrate(op):\n    one()",
        "X = 2\ndef two():\n    return X\ndef one():\n    two()\ndef migrate(op):\n    one()",
    ),
    "async helper": (
        "async def helper():\n    return 1\ndef migrate(op):\n    helper()",
        "async def helper():\n    return 2\ndef migrate(op):\n    helper()",
    ),
    "helper that is a lambda": (
        "helper = lambda: 1\ndef migrate(op):\n    helper()",
        "helper = lambda: 2\ndef migrate(op):\n    helper()",
    ),
    "helper under a condition": (
        "if True:\n    def helper():\n        return 1\ndef migrate(op):\n    helper()",
        "if True:\n    def helper():\n        return 2\ndef migrate(op):\n    helper()",
    ),
    "condition of a helper": (
        "if A:\n    def helper():\n        return 1\ndef migrate(op):\n    helper()",
        "if B:\n    def helper():\n        return 1\ndef migrate(op):\n    helper()",
    ),
    "helper only named": (
        "def helper():\n    return 1\ndef migrate(op):\n    op.run(helper)",
        "def helper():\n    return 2\ndef migrate(op):\n    op.run(helper)",
    ),
    "helper used in a nested function": (
        "def helper():\n    return 1\ndef migrate(op):\n    def g():\n        return helper()\n    g()",
        "def helper():\n    return 2\ndef migrate(op):\n    def g():\n        return helper()\n    g()",
    ),
    "helper used in an f-string": (
        "def helper():\n    return 1\ndef migrate(op):\n    op.f(f'{helper()}')",
        "def helper():\n    return 2\ndef migrate(op):\n    op.f(f'{helper()}')",
    ),
    "width of an f-string": (
        "W = 1\ndef migrate(op):\n    op.f(f'{op:{W}}')",
        "W = 2\ndef migrate(op):\n    op.f(f'{op:{W}}')",
    ),
    "constant of a default": (
        "X = 1\ndef migrate(op, n=X):\n    op.f(n)",
        "X = 2\ndef migrate(op, n=X):\n    op.f(n)",
    ),
    "constant of a default of the same name": (
        "X = 1\ndef migrate(op, X=X):\n    op.f(X)",
        "X = 2\ndef migrate(op, X=X):\n    op.f(X)",
    ),
    "class": ("class A:\n    x = 1\ndef migrate(op):\n    A.x", "class A:\n    x = 2\ndef migrate(op):\n    A.x"),
    "method": (
        "class A:\n    def f(self):\n        return 1\ndef migrate(op):\n    A().f()",
        "class A:\n    def f(self):\n        return 2\ndef migrate(op):\n    A().f()",
    ),
    "constant of a method": (
        "X = 1\nclass A:\n    def f(self):\n        return X\ndef migrate(op):\n    A().f()",
        "X = 2\nclass A:\n    def f(self):\n        return X\ndef migrate(op):\n    A().f()",
    ),
    "base class": (
        "class A:\n    x = 1\nclass B(A):\n    pass\ndef migrate(op):\n    B.x",
        "class A:\n    x = 2\nclass B(A):\n    pass\ndef migrate(op):\n    B.x",
    ),
    "class in a match": (
        "class A:\n    x = 1\ndef migrate(op):\n    match op:\n        case A():\n            op.f(1)",
        "class A:\n    x = 2\ndef migrate(op):\n    match op:\n        case A():\n            op.f(1)",
    ),
    "exception class": (
        "class E(Exception):\n    x = 1\ndef migrate(op):\n    try:\n        op.f(1)\n    except E:\n        pass",
        "class E(Exception):\n    x = 2\ndef migrate(op):\n    try:\n        op.f(1)\n    except E:\n        pass",
    ),
    "source of an import": ("from a import x\ndef migrate(op):\n    x()", "from b import x\ndef migrate(op):\n    x()"),
    "imported name": (
        "from a import x as z\ndef migrate(op):\n    z()",
        "from a import y as z\ndef migrate(op):\n    z()",
    ),
    "imported module": ("import a as z\ndef migrate(op):\n    z.f()", "import b as z\ndef migrate(op):\n    z.f()"),
    "level of an import": (
        "from .a import x\ndef migrate(op):\n    x()",
        "from ..a import x\ndef migrate(op):\n    x()",
    ),
    "import for a constant": ("X = 1\ndef migrate(op):\n    op.f(X)", "from a import X\ndef migrate(op):\n    op.f(X)"),
    "import of last resort": (
        "try:\n    from a import x\nexcept ImportError:\n    from b import x\ndef migrate(op):\n    x()",
        "try:\n    from a import x\nexcept ImportError:\n    from c import x\ndef migrate(op):\n    x()",
    ),
    "source of a star import": (
        "from a import *\ndef migrate(op):\n    x()",
        "from b import *\ndef migrate(op):\n    x()",
    ),
    "decorator": (
        "def d(f):\n    return f\n@migration\n@d\ndef migrate(op):\n    pass",
        "def d(f):\n    return 1\n@migration\n@d\ndef migrate(op):\n    pass",
    ),
    "constant read before a parameter of the same name in a lambda of a default": (
        "X = 1\ndef migrate(op, key=lambda X: X):\n    return X",
        "X = 2\ndef migrate(op, key=lambda X: X):\n    return X",
    ),
    "constant that a comprehension runs over under its own name": (
        "X = [1]\ndef migrate(op):\n    op.f([X for X in X])",
        "X = [2]\ndef migrate(op):\n    op.f([X for X in X])",
    ),
    "global assigned in the function": (
        "X = 1\ndef migrate(op):\n    global X\n    op.f(X)\n    X = 5",
        "X = 2\ndef migrate(op):\n    global X\n    op.f(X)\n    X = 5",
    ),
    "local of a sibling function": (
        "X = 1\ndef migrate(op):\n    def g():\n        X = 5\n    op.f(X)",
        "X = 2\ndef migrate(op):\n    def g():\n        X = 5\n    op.f(X)",
    ),
    "variable of a comprehension used after it": (
        "X = 1\ndef migrate(op):\n    [X for X in op]\n    op.f(X)",
        "X = 2\ndef migrate(op):\n    [X for X in op]\n    op.f(X)",
    ),
    "name of a class body used outside of it": (
        "X = 1\ndef migrate(op):\n    class A:\n        X = 5\n    op.f(X)",
        "X = 2\ndef migrate(op):\n    class A:\n        X = 5\n    op.f(X)",
    ),
    "attribute and keyword of the same name do not hide it": (
        "X = 1\ndef migrate(op):\n    op.X = 2\n    op.f(X=X)",
        "X = 3\ndef migrate(op):\n    op.X = 2\n    op.f(X=X)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), REACHED.values(), ids=REACHED)
def test_reached_definition_counts(before: str, after: str) -> None:
    assert checksum(before) != checksum(after)


UNREACHED = {
    "constant": ("X = 1\ndef migrate(op):\n    op.f()", "X = 2\ndef migrate(op):\n    op.f()"),
    "function": ("def migrate(op):\n    op.f()", "def other(op):\n    op.g()\ndef migrate(op):\n    op.f()"),
    "other migration": (
        "@migration\ndef one(op):\n    op.f(1)\n@migration\ndef migrate(op):\n    op.f()",
        "@migration\ndef one(op):\n    op.f(2)\n@migration\ndef migrate(op):\n    op.f()",
    ),
    "statement": ("def migrate(op):\n    op.f()", "print(1)\ndef migrate(op):\n    op.f()"),
    "future": ("def migrate(op):\n    op.f()", "from __future__ import annotations\ndef migrate(op):\n    op.f()"),
    "import": ("from a import x\ndef migrate(op):\n    op.f()", "from b import y\ndef migrate(op):\n    op.f()"),
    "other name of the same import": (
        "from a import x\ndef migrate(op):\n    x()",
        "from a import w, x, y as z\ndef migrate(op):\n    x()",
    ),
    "other module of the same import": (
        "import a\ndef migrate(op):\n    a.f()",
        "import b, a\ndef migrate(op):\n    a.f()",
    ),
    "attribute of the same name": ("X = 1\ndef migrate(op):\n    op.X()", "X = 2\ndef migrate(op):\n    op.X()"),
    "keyword of the same name": ("X = 1\ndef migrate(op):\n    op.f(X=1)", "X = 2\ndef migrate(op):\n    op.f(X=1)"),
    "string of the same name": ("X = 1\ndef migrate(op):\n    op.f('X')", "X = 2\ndef migrate(op):\n    op.f('X')"),
    "users of a definition": (
        "X = 1\ndef migrate(op):\n    op.f(X)",
        "X = 1\nY = [X]\nprint(X.y)\ndef other():\n    return X\ndef migrate(op):\n    op.f(X)",
    ),
    "order of definitions": (
        "X = 1\nY = 2\ndef helper():\n    pass\ndef migrate(op):\n    op.f(X, Y)\n    helper()",
        "def migrate(op):\n    op.f(X, Y)\n    helper()\ndef helper():\n    pass\nY = 2\nX = 1",
    ),
    "order of imports": (
        "from a import x\nfrom b import y\ndef migrate(op):\n    x(y)",
        "from b import y\nfrom a import x\ndef migrate(op):\n    x(y)",
    ),
    "import statement split": (
        "from a import x, y\ndef migrate(op):\n    x(y)",
        "from a import x\nfrom a import y\ndef migrate(op):\n    x(y)",
    ),
    "other import for type checking": (
        "if TYPE_CHECKING:\n    from a import X\ndef migrate(op: X):\n    op.f()",
        "if TYPE_CHECKING:\n    from a import X\n    from b import Y\ndef migrate(op: X):\n    op.f()",
    ),
}


@pytest.mark.parametrize(("before", "after"), UNREACHED.values(), ids=UNREACHED)
def test_unreached_definition_does_not_count(before: str, after: str) -> None:
    assert checksum(before) == checksum(after)


SHADOWS = {
    "parameter": "def migrate(op, X):\n    op.f(X)",
    "positional-only parameter": "def migrate(X, /):\n    X.f()",
    "keyword-only parameter": "def migrate(op, *, X):\n    op.f(X)",
    "star parameter": "def migrate(op, *X):\n    op.f(X)",
    "double-star parameter": "def migrate(op, **X):\n    op.f(X)",
    "assignment": "def migrate(op):\n    X = 1\n    op.f(X)",
    "annotated assignment": "def migrate(op):\n    X: int = 1\n    op.f(X)",
    "assignment below its use": "def migrate(op):\n    for _ in op:\n        op.f(X)\n        X = 1",
    "unpacking": "def migrate(op):\n    a, (X, *b) = op\n    op.f(X)",
    "for": "def migrate(op):\n    for X in op:\n        op.f(X)",
    "with": "def migrate(op):\n    with op as X:\n        op.f(X)",
    "except": "def migrate(op):\n    try:\n        op.f()\n    except Exception as X:\n        op.f(X)",
    "walrus": "def migrate(op):\n    if (X := op.f()):\n        op.f(X)",
    "walrus in a comprehension": "def migrate(op):\n    any((X := item) for item in op)\n    op.f(X)",
    "local import": "def migrate(op):\n    import X\n    op.f(X)",
    "local import from": "def migrate(op):\n    from a import X\n    op.f(X)",
    "alias of a local import": "def migrate(op):\n    from a import b as X\n    op.f(X)",
    "nested function": "def migrate(op):\n    def X():\n        return 1\n    op.f(X)",
    "nested class": "def migrate(op):\n    class X:\n        pass\n    op.f(X)",
    "match": "def migrate(op):\n    match op:\n        case X:\n            op.f(X)",
    "match as": "def migrate(op):\n    match op:\n        case [1] as X:\n            op.f(X)",
    "match star": "def migrate(op):\n    match op:\n        case [1, *X]:\n            op.f(X)",
    "match rest": "def migrate(op):\n    match op:\n        case {1: 2, **X}:\n            op.f(X)",
    "lambda": "def migrate(op):\n    op.f(lambda X: X)",
    "list comprehension": "def migrate(op):\n    op.f([X for X in op])",
    "dict comprehension": "def migrate(op):\n    op.f({X: 1 for X in op if X})",
    "generator": "def migrate(op):\n    op.f(X for a in op for X in a)",
    "local of an enclosing function": "def migrate(op):\n    X = 1\n    def g():\n        return X\n    op.f(g)",
    "local of a helper": "def helper(X):\n    return X\ndef migrate(op):\n    helper(op)",
}


@pytest.mark.parametrize("source", SHADOWS.values(), ids=SHADOWS)
def test_local_name_hides_the_definition_of_the_module(source: str) -> None:
    assert checksum("X = 1\n" + source) == checksum("X = 2\n" + source)


# Decorators


@pytest.mark.parametrize(
    "decorator",
    ["@migration", "@migration()", "@migration(once=True)", "@migration(database='reports', transactional=False)"],
)
def test_migration_decorator_does_not_count(decorator: str) -> None:
    assert checksum(f"{decorator}\ndef migrate(op):\n    op.f(1)") == checksum("def migrate(op):\n    op.f(1)")


def test_import_of_the_migration_decorator_does_not_count() -> None:
    decorated = "from aurum_harmony.db_smart import migration\n@migration\ndef migrate():\n    f(1)"
    assert checksum(decorated) == checksum("def migrate():\n    f(1)")


def test_constant_in_the_options_of_a_migration_does_not_count() -> None:
    source = "BIND = {bind!r}\n@migration(database=BIND)\ndef migrate(op):\n    op.f(1)"
    assert checksum(source.format(bind="one")) == checksum(source.format(bind="two"))


def test_options_of_a_migration_that_another_calls_do_not_count() -> None:
    source = "{}\ndef one(op):\n    op.f(1)\n@migration\ndef migrate(op):\n    one(op)"
    assert checksum(source.format("@migration")) == checksum(source.format("@migration(once=True)"))


def test_options_of_a_recursive_migration_do_not_count() -> None:
    source = "{}\ndef migrate(op, n=3):\n    if n:\n        migrate(op, n - 1)"
    assert checksum(source.format("@migration")) == checksum(source.format("@migration(once=True)"))


@pytest.mark.parametrize("decorator", ["@retry", "@retry(times=3)", "@tools.retry", "@migrations"])
def test_another_decorator_counts(decorator: str) -> None:
    source = "@migration\ndef migrate(op):\n    op.f(1)"
    assert checksum(source.replace("\n", f"\n{decorator}\n", 1)) != checksum(source)


def test_argument_of_another_decorator_counts() -> None:
    source = "@migration\n@retry(times={})\ndef migrate(op):\n    op.f(1)"
    assert checksum(source.format(3)) != checksum(source.format(4))


def test_decorator_of_a_helper_counts() -> None:
    source = "@retry(times={})\ndef helper():\n    pass\n@migration\ndef migrate(op):\n    helper()"
    assert checksum(source.format(3)) != checksum(source.format(4))


# Going round and deep


RECURSIVE = {
    "direct": "def migrate(op):\n    migrate({})",
    "mutual": "def other(op):\n    migrate(op)\ndef migrate(op):\n    other({})",
    "of helpers": "def a():\n    b()\ndef b():\n    a({})\ndef migrate(op):\n    a()",
    "of a class": "class A:\n    def copy(self):\n        return A({})\ndef migrate(op):\n    A()",
    "of constants": "X = Y = []\nX.append(Y)\nY.append(X)\ndef migrate(op):\n    op.f(X, {})",
}


@pytest.mark.parametrize("source", RECURSIVE.values(), ids=RECURSIVE)
def test_recursion_ends_and_its_edit_counts(source: str) -> None:
    assert checksum(source.format(1)) == checksum(source.format(1) + "\n# end")
    assert checksum(source.format(1)) != checksum(source.format(2))


def test_chain_of_helpers_longer_than_the_stack_is_followed() -> None:
    count = sys.getrecursionlimit() + 100
    chain = "".join(f"def f{n}():\n    f{n + 1}()\n" for n in range(count))
    source = chain + f"def f{count}():\n    return {{}}\ndef migrate(op):\n    f0()\n"
    assert checksum(source.format(1)) != checksum(source.format(2))


LONG = {
    "sum": "    return " + " + ".join(["op.x"] * 1500) + " + {}",
    "calls in a chain": "    return op" + ".f(1)" * 700 + ".f({})",
    "elif": "    if op:\n        pass\n" + "    elif op:\n        pass\n" * 500 + "    elif op.f({}):\n        pass",
}


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_statement_as_long_as_python_compiles_has_a_checksum(body: str) -> None:
    source = f"def migrate(op):\n{body}\n"
    assert checksum(source.format(1)) != checksum(source.format(2))


def test_nesting_too_deep_for_python_is_a_migration_error() -> None:
    content = f"x = {'-' * 100_000}1".encode()
    with pytest.raises(MigrationError, match=r"'sample' cannot be imported: sample\.py"):
        ModuleSource("sample", "sample.py", content)


# Messages


def test_function_that_the_source_does_not_hold_is_a_migration_error() -> None:
    function = _function(b"\n\ndef migrate(op): pass", "migrate")
    source = ModuleSource("sample", "sample.py", b"def migrate(op): pass")
    with pytest.raises(MigrationError, match=r"The source of migration 'migrate' is not in sample\.py"):
        source.checksum(function, _named_migration)


def test_source_that_does_not_parse_is_a_migration_error() -> None:
    with pytest.raises(
        MigrationError, match=r"'sample' cannot be imported: sample\.py, line 2: SyntaxError: .*Fix the file"
    ):
        ModuleSource("sample", "sample.py", b"x = 1\ndef migrate(:\n")


# The same value, always and everywhere


def test_checksum_is_the_golden_one() -> None:
    """When this fails, every database would compare its whole history: see ``CHECKSUM_VERSION``."""
    assert checksum(SAMPLE) == GOLDEN


_PACKAGE = str(Path(__file__).parents[2] / "aurum_harmony" / "db_smart")

#: Prints the checksum of every function of the given files. It needs none of our dependencies, which another Python
#: may lack: the package around checksum.py is a stub with the names that it imports from what needs them.
_DRIVER = """
import json, sys, types

directory, *paths = sys.argv[1:]
package = types.ModuleType("stub")
package.__path__ = [directory]
errors = types.ModuleType("stub.errors")
errors.MigrationError = type("MigrationError", (Exception,), {})
errors.text_of = errors.scrub = str
sys.modules.update({"stub": package, "stub.errors": errors})
from stub.loading.checksum import ModuleSource, _Function

found = {}
for path in paths:
    with open(path, "rb") as file:
        content = file.read()
    try:
        source = ModuleSource("sample", path, content)
        codes = source.code
    except (errors.MigrationError, SyntaxError):
        continue  # Written for other versions.
    for node in source.tree.body:
        if isinstance(node, _Function):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            function = types.FunctionType(codes[node.name, line], {})
            found[f"{path}:{node.name}"] = source.checksum(function, lambda node: False)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Elsewhere:
    """Checksums as this Python and another one compute them.

    :ivar samples: name in :data:`SAMPLES` -> path of its file.
    """

    samples: dict[str, str]
    here: dict[str, str]
    there: dict[str, str]


@pytest.fixture(scope="module")
def sample_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("samples")
    paths = {name: directory / f"sample_{number}.py" for number, name in enumerate(SAMPLES)}
    for name, path in paths.items():
        path.write_text(SAMPLES[name], encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def installed_files() -> list[str]:
    """What people wrote, and this environment holds anyway."""
    directories = [Path(directory) for name in ("flask", "click") for directory in _directories(name)]
    return sorted(str(path) for directory in directories for path in directory.rglob("*.py"))


def _directories(package: str) -> list[str]:
    spec = find_spec(package)
    assert spec is not None
    return list(spec.submodule_search_locations or [])


@pytest.fixture(scope="module")
def here(sample_files: dict[str, str], installed_files: list[str]) -> dict[str, str]:
    found: dict[str, str] = json.loads(run_python(_DRIVER, _PACKAGE, *sample_files.values(), *installed_files))
    return found


VERSIONS = [version for version in ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15") if find_python(version)]


@pytest.fixture(scope="module", params=VERSIONS)
def elsewhere(
    request: pytest.FixtureRequest, sample_files: dict[str, str], installed_files: list[str], here: dict[str, str]
) -> Elsewhere:
    """Each other Python that the machine has, in turn."""
    python = find_python(request.param)
    assert python is not None
    output = run_python(_DRIVER, _PACKAGE, *sample_files.values(), *installed_files, python=python)
    return Elsewhere(sample_files, here, json.loads(output))


@pytest.mark.parametrize("name", SAMPLES)
def test_checksum_is_the_same_on_another_python(elsewhere: Elsewhere, name: str) -> None:
    key = f"{elsewhere.samples[name]}:migrate"
    assert elsewhere.there[key] == elsewhere.here[key]


def test_checksums_of_installed_code_are_the_same_on_another_python(elsewhere: Elsewhere) -> None:
    both = {key for key in elsewhere.here if key in elsewhere.there and "sample_" not in key}
    assert len(both) > 100
    assert {key for key in both if elsewhere.here[key] != elsewhere.there[key]} == set()


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_checksum_does_not_depend_on_optimisation(
    sample_files: dict[str, str], here: dict[str, str], option: str
) -> None:
    found = json.loads(run_python(_DRIVER, _PACKAGE, *sample_files.values(), options=(option,)))
    assert found == {key: value for key, value in here.items() if "sample_" in key}


def test_checksum_does_not_depend_on_the_seed_of_hashes(sample_files: dict[str, str]) -> None:
    path = sample_files["sample"]
    assert len({run_python(_DRIVER, _PACKAGE, path) for _ in range(4)}) == 1
