"""What authors of migrations write: the decorator, and what it makes of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])
#: Where a module keeps the functions that it decorated, in order.
REGISTRY = "__db_smart_migrations__"


@dataclass(frozen=True)
class Options:
    """How a migration is to be run; see :func:`migration`."""

    once: bool = False
    transactional: bool = True
    database: str | None = None
    destructive: bool = False
    allow: Mapping[str, str] = field(default_factory=dict, hash=False)
    background: bool = False
    contract: bool = False


@dataclass(frozen=True)
class Migration:
    """A migration found in the code.

    :ivar name: the function's name, unique among all migrations.
    :ivar checksum: hexadecimal hash of the function and of what it reaches in its module.
    :ivar options: how to run it.
    :ivar function: what to call.
    :ivar takes_operations: whether the function takes an :class:`~.operations.Operations`.
    :ivar path: its source file, for messages.
    :ivar revision: whether it is a revision of Alembic, which ``env.py`` runs, and not a function.
    :ivar message: what its author says of it in one line, where that is known.
    """

    name: str
    checksum: str
    options: Options
    function: Callable[..., object]
    takes_operations: bool
    path: str
    revision: bool = False
    message: str = ""


@overload
def migration(function: F, /) -> F: ...


@overload
def migration(
    *,
    once: bool = False,
    transactional: bool = True,
    database: str | None = None,
    destructive: bool = False,
    allow: Mapping[str, str] | None = None,
    background: bool = False,
    contract: bool = False,
) -> Callable[[F], F]: ...


def migration(
    function: F | None = None,
    /,
    *,
    once: bool = False,
    transactional: bool = True,
    database: str | None = None,
    destructive: bool = False,
    allow: Mapping[str, str] | None = None,
    background: bool = False,
    contract: bool = False,
) -> F | Callable[[F], F]:
    """Mark a function as a migration. The function itself is returned and can be called as before.

    It takes one argument, an :class:`~.operations.Operations`, or none. Without one it uses ``db.session`` and
    ``db.engine``, which are the migration's own connection while it runs.

    :param once: run it only once on each database, known by its name: a later edit is reported and never runs, not
        even with ``--force``. For work that must not repeat.
    :param transactional: ``False`` for statements that cannot run in a transaction, such as
        ``VACUUM``; each statement then commits by itself. Operations do not need it.
    :param database: bind key of ``SQLALCHEMY_BINDS``; the default database if ``None``.
    :param destructive: allow operations that destroy data or break the release that is still running.
    :param allow: rules that do not apply to it, each with the reason: ``{"DS301": "the table has 40 rows"}``.
    :param background: boot and readiness do not wait for it: it runs in a thread of a process that serves, after the
        migrations that boot waits for, also after later ones. For a long backfill that the release can live without;
        ``smart.applied("name")`` tells the application when it is done.
    :param contract: it takes away what an earlier release needs, and waits by itself until no process of such a release
        runs; boot and readiness do not wait for it. It may destroy data. Needs ``DB_SMART_RELEASES``.
    """

    if any(not isinstance(why, str) or not why.strip() for why in (allow or {}).values()):
        raise TypeError("@migration(allow=…) takes a reason for each rule: allow={'DS301': 'the table has 40 rows'}")
    called = function is None

    def mark(function: F) -> F:
        if not isinstance(function, FunctionType):
            raise TypeError(f"@migration is for functions defined with 'def', not for {function!r}")
        # The module that marks it, not the one that made it: another decorator may come from elsewhere.
        marking = sys._getframe(1 if called else 2).f_globals
        allowed = dict(allow or {})
        options = Options(once, transactional, database, destructive or contract, allowed, background, contract)
        marking.setdefault(REGISTRY, []).append((function, options))
        return function

    return mark if function is None else mark(function)
