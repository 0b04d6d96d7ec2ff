"""What a run is at: the statement that it has sent, and spans of OpenTelemetry where ``opentelemetry-api`` is there.

The spans are ``db_smart.run``, in it ``db_smart.migration``, in it ``db_smart.statement``. They have the kind of a
statement and what it is about, never its values, nor the message of an error, which may have some.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, NamedTuple

#: Questions that are answered sooner get no span, nor those whose failure the migration has foreseen; seconds.
_QUICK = 0.1
#: What begins a question, or what only frames other statements.
_QUESTIONS = frozenset(
    [
        "SELECT",
        "SHOW",
        "PRAGMA",
        "EXPLAIN",
        "WITH",
        "VALUES",
        "DESCRIBE",
        "DESC",
        "SAVEPOINT",
        "RELEASE",
        "ROLLBACK",
        "COMMIT",
        "BEGIN",
        "SET",
        "RESET",
    ]
)
_OBJECTS = frozenset(
    [
        "COLUMN",
        "TABLE",
        "INDEX",
        "VIEW",
        "FUNCTION",
        "PROCEDURE",
        "TRIGGER",
        "TYPE",
        "DOMAIN",
        "SCHEMA",
        "SEQUENCE",
        "EXTENSION",
        "DATABASE",
        "ROLE",
        "USER",
        "POLICY",
    ]
)
_NAME = r"(?:\"(?:[^\"]|\"\")*\"|`[^`]*`|[^\W\d][\w$]*)"
#: A name, or one sign; texts, comments and numbers are passed by.
_PART = re.compile(rf"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|(?P<name>{_NAME}(?:\.{_NAME})*)|\S", re.DOTALL)
#: So many parts from the start tell what a statement is about.
_PARTS = 20
#: Words between the first one and what it is about.
_BETWEEN = frozenset(
    [
        "INTO",
        "FROM",
        "ONLY",
        "TABLE",
        "IF",
        "NOT",
        "EXISTS",
        "CONCURRENTLY",
        "ON",
        "IGNORE",
        "LOW_PRIORITY",
        "QUICK",
        "DELAYED",
    ]
)
_WITH_TARGET = frozenset(["INSERT", "REPLACE", "UPDATE", "DELETE", "TRUNCATE", "ANALYZE"])


#: What is for our own tables and their indexes is none of the migration's.
_OURS = re.compile(r"(^|\.)[\"`]?(ix_)?db_smart_")


class Sent(NamedTuple):
    """A statement that has no answer yet.

    :ivar session: by what the server knows who has sent it; 0 where that is not known.
    :ivar since: seconds of the monotonic clock.
    :ivar began: nanoseconds since the epoch.
    """

    statement: str
    session: int
    since: float
    began: int


class Statements:
    """The run on one database, its migrations and its statements.

    :param system: tells the kind of database, as OpenTelemetry names it.
    :param namespace: the name of the database.
    :ivar at: the statement that has no answer yet.
    """

    def __init__(self, system: Callable[[], str], namespace: str | None) -> None:
        self.at: Sent | None = None
        self._api = _api()
        self._system = system
        self._namespace = namespace
        #: The spans that are open, the outermost first, each with what takes it back that it is the current one.
        self._open: list[tuple[Any, Any]] = []

    @property
    def traced(self) -> bool:
        """Whether there are spans."""
        return self._api is not None

    @contextmanager
    def run(self) -> Iterator[None]:
        """The span of the run; its parent is what is current."""
        self._begin("db_smart.run")
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        finally:
            self._end()

    def begin(self, migration: str) -> None:
        """A migration begins, maybe once more."""
        self.end(_Unsaid())
        self._begin("db_smart.migration", **{"db_smart.migration": migration})

    def end(self, error: BaseException | None = None) -> None:
        """The migration has ended, if one had begun."""
        if self.at is not None:
            self.failed(error or _Unsaid())
        if len(self._open) > 1:
            self._end(error, 1)

    def before(self, statement: str, session: int) -> None:
        """A statement is sent."""
        if self.at is not None:  # it failed, and the migration went on
            self.failed(_Unsaid())
        self.at = Sent(statement, session, time.monotonic(), time.time_ns())

    def after(self) -> None:
        """It is answered."""
        sent, self.at = self.at, None
        if sent is not None and self._api is not None:
            self._record(sent, None)

    def failed(self, error: BaseException) -> None:
        """The statement that has no answer, if there is one, has failed."""
        sent, self.at = self.at, None
        if sent is not None and self._api is not None:
            self._record(sent, error)

    def _record(self, sent: Sent, error: BaseException | None) -> None:
        operation, target = _summary(sent.statement)
        quick = time.monotonic() - sent.since < _QUICK and (error is None or isinstance(error, _Unsaid))
        if _OURS.search(target) or (quick and operation in _QUESTIONS):
            return
        said = {"db.operation.name": operation, "db.query.summary": f"{operation} {target}".strip()[:255]}
        with suppress(Exception):  # of whoever exports them: nothing of it may fail the migration
            context = self._api.set_span_in_context(self._open[-1][0]) if self._open else None
            span = self._tracer().start_span(
                "db_smart.statement",
                context,
                kind=self._api.SpanKind.CLIENT,
                attributes=self._about(**said),
                start_time=sent.began,
            )
            self._mark(span, error)
            span.end()

    def _begin(self, name: str, **about: str) -> None:
        if self._api is None:
            return
        span, token = self._api.INVALID_SPAN, None
        with suppress(Exception):
            span = self._tracer().start_span(name, attributes=self._about(**about))
            token = _context().attach(self._api.set_span_in_context(span))
        self._open.append((span, token))

    def _end(self, error: BaseException | None = None, above: int = 0) -> None:
        """End the spans that are open.

        :param above: how many stay open.
        """
        while len(self._open) > above:
            span, token = self._open.pop()
            with suppress(Exception):
                if token is not None:
                    _context().detach(token)
            with suppress(Exception):
                self._mark(span, error)
                span.end()

    def _mark(self, span: Any, error: BaseException | None) -> None:
        """Say that something has failed; what only gives way to others has not."""
        if error is None or not isinstance(error, (Exception, KeyboardInterrupt)):
            return
        cause = getattr(error, "orig", None) or error
        span.set_attribute("error.type", "_OTHER" if isinstance(error, _Unsaid) else type(cause).__qualname__)
        span.set_status(self._api.Status(self._api.StatusCode.ERROR))

    def _about(self, **about: str) -> dict[str, str]:
        named = {} if self._namespace is None else {"db.namespace": self._namespace}
        return {"db.system.name": self._system(), **named, **about}

    def _tracer(self) -> Any:
        return self._api.get_tracer("aurum_harmony.db_smart")


class _Unsaid(Exception):
    """Nobody has said how something failed."""


def _api() -> Any:
    """``opentelemetry.trace``; ``None`` where it is not installed."""
    try:
        return importlib.import_module("opentelemetry.trace")
    except ImportError:
        return None


def _context() -> Any:
    return importlib.import_module("opentelemetry.context")


def _summary(statement: str) -> tuple[str, str]:
    """What a statement does, such as ``CREATE INDEX``, and the name of what it is about, if that is easily found."""
    names = [found["name"] or "" for found in islice(_PART.finditer(statement), _PARTS) if found[0][:2] not in _COMMENT]
    words = [name.upper() for name in names]
    verb = words[0] if words and words[0].isidentifier() else ""
    if verb in ("CREATE", "ALTER", "DROP", "COMMENT"):
        at = next((place for place, word in enumerate(words) if word in _OBJECTS), None)
        if at is None:
            return verb, ""
        verb = f"{verb} {words[at]}"
    elif verb in _WITH_TARGET:
        at = 0
    else:
        return verb, ""
    return verb, next(
        (name for name, word in zip(names[at + 1 :], words[at + 1 :], strict=True) if word not in _BETWEEN), ""
    )


#: By what a comment begins.
_COMMENT = ("--", "/*")
