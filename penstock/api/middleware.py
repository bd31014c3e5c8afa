"""What happens around every request: its id, and that it is counted. Plain ASGI, for a wrapper a request is dear."""

from __future__ import annotations

import re
import time
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.api.metrics import ApiMetrics
from penstock.client.idgen import new_id

REQUEST_ID = "penstock.request_id"
_HEADER = b"x-request-id"
_ALLOWED = re.compile(rb"^[A-Za-z0-9._:\-]{1,128}$")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Around:
    """Gives each request an id (the caller's, if it is a plain one), echoes it, and counts and times the request."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope[REQUEST_ID] = request_id.decode()
        status = 500
        started = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, request_id)]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            # A method is the caller's word, and a metric's labels must be few.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requested(method, _route(scope), status, time.perf_counter() - started)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == _HEADER and _ALLOWED.match(value):
            return cast(bytes, value)
    return new_id().encode()


def _route(scope: Scope) -> str:
    endpoint: Any = scope.get("endpoint")
    if endpoint is None:
        return "none"
    return str(getattr(endpoint, "penstock_path", None) or getattr(scope.get("route"), "path", "other"))
