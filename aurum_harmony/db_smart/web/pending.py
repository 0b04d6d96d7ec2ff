"""While debugging with ``check``: a page that lists what is pending and what it would do, and a button that does it.

Whoever could make a browser of the developer press it would change a database. So it takes no parameter but a token,
and only a request counts that comes straight from this machine, by a name of it, and from the page itself.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Response, request
from itsdangerous import BadData, URLSafeTimedSerializer

from ..errors import DbSmartError
from ..report import DryRun
from ..settings import Settings
from .access import LONGEST_FORM, is_local, not_found
from .answers import can_repeat, here, page, see_other

if TYPE_CHECKING:
    from flask import Flask

    from ..boot.app_state import AppState
    from ..extension import DbSmart

_COOKIE = "db_smart_run"
_NONCE = re.compile(r"[\w-]{43}", re.ASCII)
#: How long the button of a page can be pressed, seconds.
_GOOD_FOR = 3600
#: Of this process alone: after a restart, which follows each edit, the page is to be looked at again.
_signed = URLSafeTimedSerializer(
    secrets.token_bytes(32), "db-smart run", signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256}
)


def may_run(app: Flask) -> bool:
    """Whether who sends a request may be offered the button: never in production."""
    return is_local(app) and Settings(app).boot == "check"


def offer(smart: DbSmart, app: Flask, state: AppState) -> Response:
    """The page for a request that cannot be served because the database is behind."""
    path = quote(request.script_root + (request.path if can_repeat() else "/"))
    query = request.query_string.decode("latin-1")
    return _page(smart, app, state, f"{path}?{query}" if query and can_repeat() else path, status=503)


def run(smart: DbSmart, app: Flask, state: AppState) -> Response:
    """The answer to the button: apply what is pending, and go on to where the request was going."""
    if not may_run(app):
        return not_found()
    target = _target()
    if target is None:
        said = "This page is out of date, or the request does not come from it. Nothing was changed."
        response = page(app, "message.html", title="Nothing was run", message=said, link=f"{request.script_root}/")
        response.status_code = 403
        return response
    try:
        smart.run_pending(app)
    except DbSmartError as error:
        return _page(smart, app, state, target, error.message, status=500)
    return see_other(target)


def _target() -> str | None:
    """Where the request was going that got the page, of which this request is the button; ``None`` if it is not."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if (origin is None and site is None) or site not in (None, "same-origin"):
        return None
    if origin is not None and origin != request.host_url.rstrip("/"):
        return None
    if not 0 < (request.content_length or 0) <= LONGEST_FORM or request.query_string:
        return None
    if list(request.form.items(multi=True)) != [("csrf", request.form.get("csrf"))] or request.files:
        return None
    try:
        nonce, target = _signed.loads(request.form["csrf"], max_age=_GOOD_FOR)
    except (BadData, TypeError, ValueError):
        return None
    given = request.cookies.get(_COOKIE, "")
    return str(target) if secrets.compare_digest(given.encode(), str(nonce).encode()) else None


def _page(smart: DbSmart, app: Flask, state: AppState, target: str, error: str = "", *, status: int) -> Response:
    """What is pending, its SQL, and the button.

    :param target: where to go when it is done.
    :param error: why the last try failed.
    """
    nonce = request.cookies.get(_COOKIE, "")
    if not _NONCE.fullmatch(nonce):
        nonce = secrets.token_urlsafe(32)
    found: dict[str, Any] = {"report": None, "unknown": "", "pending": []}
    with state.deciding(), app.app_context():  # nobody migrates meanwhile
        if state.verified and state.refusal is None:  # another request has had it done
            return see_other(target)
        try:
            planner = smart.planner(app)
            plans = [planner.ask(database) for database in planner.involved]
            found["pending"] = [(plan.database.name, plan.clause) for plan in plans if plan.behind]
            found["report"] = DryRun.of(planner, smart.preview(app, planner, plans, as_sql=True))
        except DbSmartError as failure:
            found["unknown"] = failure.message
    response = page(
        app,
        "pending.html",
        title="The database is behind this code",
        error=error,
        csrf=_signed.dumps([nonce, target]),
        action=f"{here(app)}/run",
        several=len(found["pending"]) > 1,
        **found,
    )
    response.status_code = status
    path = request.script_root or "/"  # also for the pages, so that all that are open share it
    response.set_cookie(_COOKIE, nonce, path=path, secure=request.is_secure, httponly=True, samesite="Strict")
    return response
