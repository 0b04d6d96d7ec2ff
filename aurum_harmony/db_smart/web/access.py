"""Who may see what is only for those who operate the application: the pages, the metrics and the cause of a failure."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections import defaultdict, deque
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from flask import Response, request
from itsdangerous import BadData, URLSafeTimedSerializer

from ..errors import ConfigError
from ..notices import logger_of
from ..settings import Settings
from .answers import here, in_json, page, see_other, wants_page

if TYPE_CHECKING:
    from flask import Flask

_logger = logger_of(__name__)

_COOKIE = "db_smart"
#: How long the cookie is good, seconds.
_COOKIE_SECONDS = 8 * 3600
#: So many wrong tokens within so many seconds, then none is looked at until the first of them is past.
_TRIES, _WINDOW = 5, 60.0
#: The names of this machine. Another name that leads here may be one that a foreign page has made to (DNS rebinding).
_HERE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE | re.ASCII)
#: What a proxy adds: then the peer is the proxy, and nobody knows where the request comes from.
_PROXIED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP")
#: The longest form that is read, bytes.
LONGEST_FORM = 8192


class _TooMany(Exception):
    """So many tokens were wrong that none is looked at for a while.

    :ivar seconds: for how long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = int(seconds) + 1


class _Tries:
    """Compares tokens, a few wrong ones a minute."""

    def __init__(self) -> None:
        self._wrong: deque[float] = deque()
        self._lock = threading.Lock()

    def right(self, given: bytes, token: bytes) -> bool:
        """Whether a token is the right one, found in the same time whatever it is.

        :raises _TooMany: it was not looked at.
        """
        with self._lock:
            now = time.monotonic()
            while self._wrong and now - self._wrong[0] >= _WINDOW:
                self._wrong.popleft()
            if len(self._wrong) >= _TRIES:
                raise _TooMany(self._wrong[0] + _WINDOW - now)
            if hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(token).digest()):
                return True
            self._wrong.append(now)
            return False


#: Those of each application in this process: for our own routes, and for the others, where a header may well have a
#: token of the application's own users.
_tries: WeakKeyDictionary[Flask, defaultdict[str, _Tries]] = WeakKeyDictionary()


def is_local(app: Flask) -> bool:
    """Whether a request comes straight from this machine, by a name of it, to an application that is debugged.

    What the request says of where it comes from does not count, but that it came by a proxy does.
    """
    if not app.debug:
        return False
    environ = request.environ
    given: Any = environ.get("werkzeug.proxy_fix.orig") or environ
    return (
        not any(name in environ for name in _PROXIED)
        and _is_loopback(given.get("REMOTE_ADDR"))
        and _HERE.fullmatch(given.get("HTTP_HOST") or "") is not None
    )


def may_see(app: Flask) -> bool:
    """Whether who sends a request to any route may see the whole cause of a failure."""
    try:
        return is_local(app) or _has_token(app, "elsewhere")
    except _TooMany:
        return False


def refusal(app: Flask) -> Response | None:
    """What a request for one of our routes gets that may not see it; ``None`` for one that may."""
    try:
        if is_local(app) or _has_token(app, "ours"):
            return None
    except _TooMany as error:
        return _too_many(app, error)
    return not_found() if _token(app) is None else _ask(app)


def log_in(app: Flask) -> Response:
    """The answer to the form with the token: a cookie, and the way to the page."""
    token = _token(app)
    if token is None:
        return not_found()
    if not (0 < (request.content_length or 0) <= LONGEST_FORM):
        return in_json({"error": "a form with a token is expected"}, status=400)
    given = request.form.get("token", "")
    try:
        if not _tries_of(app, "ours").right(given.encode("utf-8", "replace"), token):
            return _ask(app, "This is not the token.")
    except _TooMany as error:
        return _too_many(app, error)
    response = see_other(f"{here(app)}/")
    response.set_cookie(
        _COOKIE,
        _signed(token).dumps("shown"),
        max_age=_COOKIE_SECONDS,
        path=request.script_root or "/",
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    return response


def not_found() -> Response:
    """The answer where nobody is to know that there is anything."""
    return in_json({"error": "not found"}, status=404)


def _has_token(app: Flask, where: str) -> bool:
    """Whether a request has the token in a header, or the cookie that who had it was given.

    :param where: which tries are counted together.
    :raises _TooMany: the header was not looked at.
    """
    token = _token(app)
    if token is None:
        return False
    cookie = request.cookies.get(_COOKIE)
    if cookie is not None:
        try:
            _signed(token).loads(cookie, max_age=_COOKIE_SECONDS)
            return True
        except BadData:
            pass
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not given:
        return False
    return _tries_of(app, where).right(given.strip().encode("latin-1", "replace"), token)


def _token(app: Flask) -> bytes | None:
    try:
        token = Settings(app).token
    except ConfigError as error:
        _logger.error("db-smart: %s", error.message)
        return None
    return None if token is None else token.encode("utf-8", "surrogateescape")


def _signed(token: bytes) -> URLSafeTimedSerializer:
    """Signs the cookie by the token itself: it is good for every process that has this token, and for no other one."""
    more = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeTimedSerializer(token, salt="db-smart pages", signer_kwargs=more)


def _tries_of(app: Flask, where: str) -> _Tries:
    return _tries.setdefault(app, defaultdict(_Tries))[where]


def _ask(app: Flask, error: str = "", status: int = 401) -> Response:
    """Ask for the token."""
    if wants_page():
        response = page(app, "token.html", title="Database migrations", error=error, action=f"{here(app)}/")
        response.status_code = status
    else:
        response = in_json({"error": error or "a token is needed"}, status=status)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="db-smart"'
    return response


def _too_many(app: Flask, error: _TooMany) -> Response:
    response = _ask(app, f"Too many wrong tokens. Try again in {error.seconds} s.", 429)
    response.headers["Retry-After"] = str(error.seconds)
    return response


def _is_loopback(peer: object) -> bool:
    try:
        found = ip_address(str(peer).partition("%")[0])
    except ValueError:  # none, as with a socket that is a file: that may be a proxy's
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback
