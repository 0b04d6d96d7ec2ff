"""The routes below ``DB_SMART_URL_PREFIX``. They answer before every hook of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response, request

from .access import log_in, may_see, not_found
from .access import refusal as refusal_of
from .answers import in_json, refused, wants_page
from .readiness import planner_of, readiness

if TYPE_CHECKING:
    from flask import Flask

    from ..boot.app_state import AppState
    from ..extension import DbSmart


def answer(smart: DbSmart, app: Flask, state: AppState, name: str, held: str | None) -> Response:
    """The answer to a request for one of our routes.

    :param name: what follows the prefix.
    :param held: what requests are told because a thread migrates; ``None`` where none does.
    """
    if request.method in ("GET", "HEAD"):
        if name == "live":
            return in_json({"state": "live"})
        if name == "ready":
            return _ready(smart, app, state, held)
        if name == "metrics":
            return refusal_of(app) or _metrics(smart, app, state)
        if not name:
            return refusal_of(app) or _overview(smart, app, state)
    elif not name:
        return log_in(app)
    elif name == "run":
        from .pending import run

        return run(smart, app, state)
    return not_found()


def _overview(smart: DbSmart, app: Flask, state: AppState) -> Response:
    from .overview import overview

    return overview(smart, app, state)


def _metrics(smart: DbSmart, app: Flask, state: AppState) -> Response:
    from .metrics import metrics

    return metrics(smart, app, state)


def _ready(smart: DbSmart, app: Flask, state: AppState, held: str | None) -> Response:
    """Whether this process can serve: no query once it can, and one a second until then."""
    refusal = None if state.verified and state.refusal is None else smart.unready(app, wait=False, held=held)
    if refusal is None:
        refusal = smart.fenced(app)
    planner = None if refusal is None else planner_of(smart, app)
    found = readiness(app, state, planner, refusal)
    response = in_json(found.public(), status=200 if refusal is None else 503)
    if refusal is not None:
        response.headers["Retry-After"] = str(found.retry_after)
    return response


def refuse(smart: DbSmart, app: Flask, state: AppState, refusal: str) -> Response:
    """The answer to a request of the application that cannot be served yet."""
    if state.behind and refusal == state.refusal and wants_page():
        from .pending import may_run, offer

        if may_run(app):
            return offer(smart, app, state)
    # Without a thread that migrates, a request has just asked the database, or was refused for its silence.
    planner = None if state.background is None else planner_of(smart, app)
    return refused(app, readiness(app, state, planner, refusal, steps=wants_page()), cause=may_see(app))
