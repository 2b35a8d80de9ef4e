"""The gate: what every HTTP request passes before any route sees it, and what is counted when it leaves.

Plain ASGI, no route knowledge but the few paths that need no token. In order: sizes of path and headers, the path
brought into one spelling (each segment percent-decoded once and written again, so that routes match on segments and an
id may hold a slash), and the bearer token, compared in constant time.
"""

from __future__ import annotations

import hmac
import time
from functools import lru_cache
from urllib.parse import quote

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine import metrics
from engine.serving import refusals
from engine.serving.queries import decode_component
from engine.serving.refusals import Refusal
from engine.settings import Settings

MAX_PATH_BYTES = 8_192
MAX_HEADER_BYTES = 16_384
OPEN_PATHS = frozenset({"/health/live", "/", "/static/page.css", "/static/page.js", "/static/icon.svg"})
"""Need no token: a sign of life, and the page's own files, which hold no data. Everything else does."""
PLAIN_PATHS = (OPEN_PATHS | {"/openapi.json"}) - {"/health/live"}
"""Answered by plain routes, which leave no template behind."""
SEGMENT_SAFE = "!$&'()*+,;=:@-._~"


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._token = settings.api_token.get_secret_value().encode() if settings.api_token is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on and count how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refuse(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, send_counted)
            else:
                await self._app(scope, receive, send_counted)
        finally:
            route = _route(scope)
            _answered(route, status).inc()
            _seconds(route).observe(time.perf_counter() - started)

    def _refuse(self, scope: Scope) -> Refusal | None:
        raw_path: bytes = scope["raw_path"]
        if len(raw_path) + len(scope["query_string"]) >= MAX_PATH_BYTES:
            return refusals.path_too_long(MAX_PATH_BYTES)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return refusals.headers_too_large(MAX_HEADER_BYTES)
        try:
            scope["path"] = canonical_path(raw_path)
        except Refusal as refusal:
            # Without a token even this is told to nobody.
            return refusal if self._may_ask(scope) else refusals.no_token()
        if scope["path"] not in OPEN_PATHS and not self._may_ask(scope):
            return refusals.no_token()
        return None

    def _may_ask(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(sent) != 1:
            return False
        scheme, _, token = sent[0].partition(b" ")
        matches = hmac.compare_digest(token.strip(), self._token)
        return scheme.lower() == b"bearer" and matches


# Looking a label up costs more than counting; routes and statuses are few.
@lru_cache(maxsize=1_000)
def _answered(route: str, status: int) -> Counter:
    return metrics.REQUESTS.labels(route, status)


@lru_cache(maxsize=100)
def _seconds(route: str) -> Histogram:
    return metrics.REQUEST_SECONDS.labels(route)


def _route(scope: Scope) -> str:
    """Return the template of the route that answered, from a closed set; `none` where no route fits."""
    path: str = scope["path"]
    return path if path in PLAIN_PATHS else getattr(scope.get("route"), "path", "none")


def canonical_path(raw_path: bytes) -> str:
    """Return *raw_path* with each segment decoded once and encoded in the one way that routes are matched on.

    Raises:
        Refusal: an escape is broken, or the bytes are not UTF-8.
    """
    if b"%" not in raw_path and raw_path.isascii():
        return raw_path.decode()
    return "/".join(quote(decode_component(segment), safe=SEGMENT_SAFE) for segment in raw_path.split(b"/"))
