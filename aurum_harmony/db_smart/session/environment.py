"""Run the ``env.py`` of an Alembic directory as it stands, and adopt the connections that it configures.

To run revisions without it breaks what it sets up (search paths, roles, binds, operations of its own), and to hand it
another connection may migrate the wrong schema. So it makes its connection, and this makes that connection ours: one
real transaction for each revision, with the record in it.
"""

from __future__ import annotations

import logging.config
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask.ctx import AppContext
from flask.globals import app_ctx

from ..dialects.base import autocommits, facts_of
from ..errors import DbSmartError
from ..loading.alembic_files import AlembicFiles
from ..notices import inside
from ..store.database import begin

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep
    from alembic.script import ScriptDirectory

#: Gives the steps to run on a connection that ``env.py`` configured, by the heads that it found there.
Steps = Callable[[tuple[str, ...], "MigrationContext"], Iterable["RevisionStep"]]
#: Called in the transaction of a revision, after it and its row of the version table, with the heads that it leaves.
Applied = Callable[["MigrationContext", "MigrationInfo", Collection[str]], None]


_locks = [threading.RLock()]


def one_at_a_time() -> AbstractContextManager[object]:
    """Held by the thread that runs an ``env.py``: ``alembic.op`` and ``alembic.context`` are there once a process."""
    return _locks[0]


def _new_lock() -> None:
    """For a forked process, in which a thread that held the lock is not there."""
    _locks[0] = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class Environment:
    """An Alembic directory as Alembic itself sees it; needs an application context.

    :param files: where it is.
    """

    def __init__(self, files: AlembicFiles) -> None:
        self._files = files
        self.directory = files.directory
        self._target = files.target
        #: What ``env.py`` gives to each revision, as that for several databases gives the name of one.
        self.arguments: dict[str, Any] = {}

    @cached_property
    def config(self) -> Config:
        """The configuration, which ``env.py`` may change."""
        return self._files.config()

    @cached_property
    def script(self) -> ScriptDirectory:
        """The revisions, as Alembic imports them."""
        from alembic.script import ScriptDirectory

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the file, which stays as it is
            return ScriptDirectory.from_config(self.config)

    def steps(self, heads: tuple[str, ...]) -> Sequence[RevisionStep]:
        """What lacks until the target is reached; imports the revisions."""
        target: Any = self._target if isinstance(self._target, str) else tuple(self._target)
        current: Any = heads
        return self.script._upgrade_revs(target, current)

    def back(self, name: str) -> RevisionStep:
        """The step that takes one revision back; imports the revisions.

        :raises AttributeError: it has no ``downgrade()``.
        """
        from alembic.runtime.migration import MigrationStep

        script = self.script.get_revision(name)
        return MigrationStep.downgrade_from_script(self.script.revision_map, script)

    def until(self, heads: tuple[str, ...], last: RevisionStep) -> list[RevisionStep]:
        """The steps from an empty database to one that has some heads, and then one more, as Alembic orders them."""
        name = str(last.revision.revision)
        before = {one.revision for one in self.script.iterate_revisions(name, "base")}
        wanted: Any = (name, *(head for head in heads if head not in before))
        steps = self.script._upgrade_revs(wanted, ())  # type: ignore[arg-type]
        return [*(one for one in steps if str(one.revision.revision) != name), last]

    def run(
        self,
        steps: Steps,
        applied: Applied,
        *,
        writes: Callable[[sa.Connection], bool],
        ask: bool = False,
        seen: Callable[[sa.Connection], object] = lambda _: None,
    ) -> None:
        """Run ``env.py``.

        :param steps: called for each connection that it configures.
        :param applied: called for each revision.
        :param writes: whether anything may be written through a connection, be it only the version table.
        :param ask: whether somebody is there to answer questions.
        :param seen: called for each connection, as ``env.py`` has made it.
        :raises DbSmartError: it ended the process, or wanted to.
        """
        from alembic.runtime.environment import EnvironmentContext
        from alembic.util import to_tuple

        environment = EnvironmentContext(
            self.config, self.script, fn=steps, as_sql=False, starting_rev=None, destination_rev=self._target, tag=None
        )
        configure: Any = environment.configure
        with ExitStack() as stack:

            def adopt(connection: sa.Connection | None = None, **options: Any) -> None:
                if connection is None:
                    raise DbSmartError(
                        f"{self.directory}/env.py configures no connection ('context.configure(connection=...)'), but "
                        "a URL, as for a script. Nothing was changed."
                    )
                if isinstance(connection, sa.Connection):  # else Alembic says what is wrong
                    if isinstance(connection.get_transaction(), sa.TwoPhaseTransaction):
                        raise DbSmartError(
                            f"{self.directory}/env.py has begun a two-phase transaction, in which db-smart cannot "
                            "commit one revision after the other. Nothing was changed. Set USE_TWOPHASE = False there."
                        )
                    if connection.dialect.is_async:
                        raise DbSmartError(
                            f"{self.directory}/env.py connects by an asynchronous driver ({connection.dialect.driver})"
                            ", whose transactions db-smart cannot take over. Nothing was changed. Let it make a plain "
                            "engine, for instance that of the application: 'connectable = db.engine'."
                        )
                    seen(connection)
                    stack.enter_context(facts_of(connection.dialect.name).adopted(connection))
                    # Each time, as Alembic keeps what the one before has said.
                    options["dont_mutate"] = options.get("dont_mutate", False) or not _asked(connection, writes)
                callbacks = (*to_tuple(options.pop("on_version_apply", None), default=()), told)
                options["transaction_per_migration"] = True
                configure(connection=connection, on_version_apply=callbacks, **options)
                context = environment.get_context()
                run_migrations = context.run_migrations

                def noting(**arguments: Any) -> None:
                    self.arguments = arguments
                    run_migrations(**arguments)

                context.run_migrations = noting  # type: ignore[method-assign]
                block = partial(_autocommit, context) if is_external(context) else context.autocommit_block
                if context.connection is not None:
                    context.autocommit_block = lambda: _rolled_back(context, block)  # type: ignore[method-assign]

            def told(ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], **_: Any) -> None:
                applied(ctx, step, heads)

            # On the instance: Alembic makes functions of the module from it.
            environment.configure = adopt  # type: ignore[assignment,method-assign]
            stack.enter_context(_inside())
            stack.enter_context(logging_kept())
            if not ask:
                stack.enter_context(_nobody_asked())
            stack.enter_context(_contexts_ended())
            try:
                with environment:
                    self.script.run_env()
                return
            except SystemExit as error:
                code = error.code
        # Not within the handler: what ends a process is looked for in the context of an error.
        raise DbSmartError(f"{self.directory}/env.py wanted to end the process ({code}).")

    def write(self, message: str, directives: Callable[..., None]) -> str:
        """Write a new revision by the template of the directory.

        :param message: what it is about.
        :param directives: called for each connection that ``env.py`` configures, as ``process_revision_directives``.
        :returns: its file.
        :raises DbSmartError: Alembic refuses it, as where there are several heads.
        """
        from alembic import command
        from alembic.util import CommandError

        self.config.set_main_option("revision_environment", "true")
        head = self._target if isinstance(self._target, str) and self._target.endswith("@head") else "head"
        with _inside(), logging_kept(), _contexts_ended():
            try:
                script = command.revision(self.config, message, head=head, process_revision_directives=directives)
            except CommandError as error:
                raise DbSmartError(f"Alembic cannot write a revision: {error}. Nothing was written.") from None
        written = script[0] if isinstance(script, list) else script
        if written is None:
            raise DbSmartError(f"{self.directory}/env.py lets no revision be written. Nothing was written.")
        return str(written.path)


def _asked(connection: sa.Connection, question: Callable[[sa.Connection], bool]) -> bool:
    """Ask something of a connection, and leave it as it was: in a transaction, or in none."""
    before = connection.in_transaction()
    answer = question(connection)
    if not before:
        connection.rollback()
    return answer


def is_external(context: MigrationContext) -> bool:
    """Whether ``env.py`` itself begins and ends the transaction, as Flask-Migrate's template for several databases.

    For SQLAlchemy it stays open until then, as its owner expects, but each revision is one of its own: it is ended past
    SQLAlchemy, on the driver.
    """
    return context._in_external_transaction


def end_transaction(context: MigrationContext) -> None:
    """Commit what is open on the connection of ``env.py``."""
    connection = context.connection
    assert connection is not None
    if is_external(context):
        _driver_of(connection).commit()
    else:
        connection.commit()


def begin_revision(context: MigrationContext) -> None:
    """Begin the transaction of one revision, where its statements do not commit by themselves."""
    connection = context.connection
    assert connection is not None
    if is_external(context):
        facts_of(connection.dialect.name).begin_within(connection)
    elif not autocommits(connection):
        begin(connection)


@contextmanager
def _autocommit(context: MigrationContext) -> Iterator[None]:
    """``autocommit_block()`` in a transaction of ``env.py``, where Alembic has none."""
    connection = context.connection
    assert connection is not None
    driver, dialect = _driver_of(connection), connection.dialect
    driver.commit()
    level = dialect.get_isolation_level(driver)
    driver.commit()
    dialect.set_isolation_level(driver, "AUTOCOMMIT")
    try:
        yield
    finally:
        dialect.set_isolation_level(driver, level)
        driver.commit()


@contextmanager
def _rolled_back(context: MigrationContext, block: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """An ``autocommit_block()`` in which a statement that fails leaves no transaction, such as that of its time-out.

    The driver would refuse what ends the block, and the connection would be lost to its pool.
    """
    connection = context.connection
    assert connection is not None
    with block():
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the error itself says more
                _driver_of(connection).rollback()
            raise


def _driver_of(connection: sa.Connection) -> Any:
    driver: Any = connection.connection.dbapi_connection
    return driver


@contextmanager
def _inside() -> Iterator[None]:
    """Tell the extension, which ``create_app()`` in ``env.py`` or in a revision reaches, that it runs already."""
    with one_at_a_time():
        before, inside.directory = inside.directory, True
        try:
            yield
        finally:
            inside.directory = before


@contextmanager
def _contexts_ended() -> Iterator[None]:
    """End the application contexts that ``env.py`` has begun by ``app.app_context().push()``."""
    before = _current_context()
    try:
        yield
    finally:
        while (found := _current_context()) is not None and found is not before:
            found.pop()


def _current_context() -> AppContext | None:
    found: AppContext | None = app_ctx._get_current_object() if app_ctx else None  # type: ignore[attr-defined]
    return found


@contextmanager
def _nobody_asked() -> Iterator[None]:
    """Have a question fail that a revision would ask, where the process would wait for ever for an answer."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before


@contextmanager
def logging_kept() -> Iterator[None]:
    """Have ``fileConfig`` and its like do nothing: nearly every ``env.py`` calls it, and it disables loggers."""
    module: Any = logging.config
    before = module.fileConfig, module.dictConfig
    module.fileConfig = module.dictConfig = lambda *_, **__: None
    try:
        yield
    finally:
        module.fileConfig, module.dictConfig = before
