"""What a request gets that cannot be served yet: status 503, as JSON or as a page."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Response, request

from ..grid import took
from ..settings import Settings

if TYPE_CHECKING:
    from flask import Flask
    from jinja2 import Environment

    from .readiness import Readiness

#: https://www.rfc-editor.org/rfc/rfc9457
PROBLEM = "application/problem+json"
#: After how long at most a page that shows how far a run is looks again, seconds.
_LOOKS_AGAIN = 3
_TITLES = {
    "migrating": "The database is being migrated",
    "waiting": "The database is not ready yet",
    "behind": "The database is behind this code",
    "failed": "The database is not ready",
}


def refused(app: Flask, readiness: Readiness, *, cause: bool = False) -> Response:
    """The answer to a request that cannot be served yet.

    :param cause: whether who asks may see the whole message.
    """
    title = _TITLES[readiness.state]
    said = readiness.cause if cause else ""
    if wants_page():
        response = page(app, "waiting.html", title=title, readiness=readiness, cause=said, again=can_repeat())
        if can_repeat():
            soon = readiness.retry_after if readiness.state == "failed" else min(readiness.retry_after, _LOOKS_AGAIN)
            response.headers["Refresh"] = str(soon)
    else:
        told = {"type": "about:blank", "title": title, "status": 503, "detail": said or readiness.reason}
        response = in_json({**told, **readiness.public()}, PROBLEM)
    response.status_code = 503
    response.headers["Retry-After"] = str(readiness.retry_after)
    return response


def wants_page() -> bool:
    """Whether who asks would rather have HTML than JSON; a browser says so, a probe or a program does not."""
    found = request.accept_mimetypes
    return found["text/html"] > max(found["application/json"], found[PROBLEM])


def in_json(data: object, mimetype: str = "application/json", status: int = 200) -> Response:
    """JSON that nobody is to keep."""
    return _private(Response(json.dumps(data) + "\n", status, mimetype=mimetype))


def plain(text: bytes, mimetype: str) -> Response:
    """A text that nobody is to keep.

    :param mimetype: with its parameters.
    """
    return _private(Response(text, content_type=mimetype))


def page(app: Flask, template: str, **values: Any) -> Response:
    """A page from a template, which the application can put another one in place of: ``templates/db_smart/…``.

    Without the application's context processors, which may ask the database that is not ready.
    """
    from markupsafe import Markup

    style = _source(app, "style.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    more = {"style": Markup(style), "took": took}  # noqa: S704 - a file of ours, or of the application
    text = _environment(app).get_template(f"db_smart/{template}").render(**values, **more)
    response = _private(Response(text, mimetype="text/html"))
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    # Not "no-referrer", with which a browser does not say either from where a form is sent to us.
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def here(app: Flask) -> str:
    """The path of our routes, as the browser knows it."""
    return f"{request.script_root}{Settings(app).web}"


def see_other(path: str) -> Response:
    """Send a browser on, by GET.

    :param path: of this application; may have a query.
    """
    response = _private(Response(status=303))
    # One that began with two slashes would lead to another host.
    response.headers["Location"] = "/" + quote(path, safe="/%?&=:@!$'()*+,;~-._").lstrip("/")
    return response


def can_repeat() -> bool:
    """Whether a request may be sent again just so: it only asks."""
    return request.method in ("GET", "HEAD")


def _environment(app: Flask) -> Environment:
    """What renders templates of Jinja's own syntax, also where the application has another one for its own."""
    from jinja2 import defaults

    names = [f"{kind}_{end}_string" for kind in ("block", "variable", "comment") for end in ("start", "end")]
    syntax = {name: getattr(defaults, name.upper()) for name in names}
    own = app.jinja_env
    if all(getattr(own, name) == value for name, value in syntax.items()):
        return own
    return own.overlay(**syntax)


def _source(app: Flask, name: str) -> str:
    """The text of one of the files that templates are made from."""
    assert app.jinja_env.loader is not None
    return app.jinja_env.loader.get_source(app.jinja_env, f"db_smart/{name}")[0]


def _private(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    response.headers["Vary"] = "Accept"
    return response
