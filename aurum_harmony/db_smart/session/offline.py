"""The SQL of revisions, as Alembic writes it offline: ``env.py`` runs as it stands, and connects to nothing."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import DbSmartError, text_of
from ..loading.loader import location_in
from ..loading.revisions import Revisions
from .environment import Environment, logging_kept, one_at_a_time
from .literals import COMMIT, START

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, RevisionStep


@dataclass
class RevisionScript:
    """The SQL of one revision, with its transaction.

    :ivar lines: statements, each with its semicolon, and comments.
    :ivar place: where in them its row of the history belongs; ``None`` while it is not whole.
    :ivar error: why it cannot be written.
    """

    lines: list[str] = field(default_factory=list)
    place: int | None = None
    error: str | None = None


def revision_scripts(
    environment: Environment,
    revisions: Revisions | None,
    heads: tuple[str, ...] | None,
    wanted: Callable[[str], bool],
    *,
    transactional: bool,
) -> dict[str, RevisionScript]:
    """The SQL of all that lacks until the target is reached, by the identifiers; it ends with the first that has none.

    :param heads: what the version table has; ``None`` where there is none.
    :param wanted: whether a URL that ``env.py`` configures is that of the database; of others nothing is written.
    :param transactional: whether schema changes can be taken back.
    :raises DbSmartError: ``env.py`` cannot do that, or a revision cannot be imported.
    """
    from alembic.util import CommandError

    scripts: dict[str, RevisionScript] = {}
    try:
        _run(environment, _Writing(environment, heads, wanted, scripts, transactional))
    except (Exception, SystemExit) as error:
        last = next(reversed(scripts.values()), None)
        place = location_in(error, revisions)
        if last is None and place is not None:
            raise DbSmartError(
                f"The revision of Alembic in {place}, cannot be imported: {text_of(error)}. Nothing was changed. "
                "Fix the cause and try again."
            ) from error
        if last is None:
            raise DbSmartError(
                f"{environment.directory}/env.py cannot write the revisions as SQL: {text_of(error)}. Nothing was "
                "changed. It must support Alembic's offline mode ('context.is_offline_mode()'), as that of "
                "Flask-Migrate does."
            ) from error
        last.error = f"{type(error).__name__}: {text_of(error)}"
        if not isinstance(error, CommandError):
            last.error += " (so it is with what reads from the database, or opens a session of its own)"
    return scripts


class _Writing:
    """Takes what Alembic writes, revision by revision."""

    def __init__(
        self,
        environment: Environment,
        heads: tuple[str, ...] | None,
        wanted: Callable[[str], bool],
        scripts: dict[str, RevisionScript],
        transactional: bool,
    ) -> None:
        self.heads = heads
        self._wanted = wanted
        self._ours = True
        self._environment = environment
        self._scripts = scripts
        self.transactional = transactional
        self.script = RevisionScript()

    def configured(self, url: Any) -> None:
        """Take note of the database whose script is about to be written."""
        self._ours = url is None or self._wanted(str(url))
        if not self._ours:
            self.script = RevisionScript()  # what Alembic writes for another one goes nowhere

    def steps(self, _: tuple[str, ...], context: MigrationContext) -> Iterator[RevisionStep]:
        """Give Alembic what is pending."""
        context.impl.static_output = self.write  # type: ignore[method-assign]
        if not self._ours:
            return
        for step in self._environment.steps(self.heads or ()):
            self.script = self._scripts.setdefault(str(step.revision.revision), RevisionScript())
            upgrade: Any = step.migration_fn

            @functools.wraps(upgrade)  # Alembic names the step by the name of its function
            def run(upgrade: Any = upgrade, **options: Any) -> None:
                if self.heads is not None:  # what begins at the base would have the version table made
                    self.script.lines = [line for line in self.script.lines if not line.startswith("CREATE TABLE")]
                upgrade(**options)
                if not self.transactional:
                    self.script.lines.append(f"{START};")

            step.migration_fn = run
            yield step

    def applied(self, **_: Any) -> None:
        """A revision is written, with its row of the version table."""
        self.script.place = len(self.script.lines)
        if not self.transactional:
            self.script.lines.append(f"{COMMIT};")

    def write(self, text: str) -> None:
        """Take a statement, or a line of comment."""
        text = text.strip()
        if not (text.startswith("--") and "\n" not in text):
            text = text.rstrip("; \n")
            # Where it ends with a comment, that must not take the semicolon with it.
            text += "\n;" if "--" in text.rpartition("\n")[2] else ";"
        self.script.lines.append(text)


def _run(environment: Environment, writing: _Writing) -> None:
    from alembic.runtime.environment import EnvironmentContext
    from alembic.util import to_tuple

    start: Any = writing.heads or None
    context = EnvironmentContext(
        environment.config, environment.script, fn=writing.steps, as_sql=True, starting_rev=start, tag=None
    )
    configure: Any = context.configure
    configured: list[bool] = []

    def adopt(connection: Any = None, **options: Any) -> None:
        if connection is not None:
            raise DbSmartError("it configures a connection although only a script is asked for")
        callbacks = (*to_tuple(options.pop("on_version_apply", None), default=()), writing.applied)
        options.update(
            transaction_per_migration=True,
            transactional_ddl=writing.transactional,
            literal_binds=True,
            output_buffer=io.StringIO(),
        )
        configured.append(True)
        writing.configured(options.get("url"))
        configure(on_version_apply=callbacks, **options)

    context.configure = adopt  # type: ignore[assignment,method-assign]
    with one_at_a_time(), logging_kept(), context:
        environment.script.run_env()
    if not configured:
        raise DbSmartError("it configures nothing where only a script is asked for")
