"""What happens around every request: its id, that it is counted, and a short way to where most of them go.

Plain ASGI, for each wrapper costs every request. Operations at fixed addresses (putting a job in, above all) are served
from here; what has parameters in its path, the documentation pages and all that is wrong go the framework's longer way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, cast

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.api.http import Endpoint
from penstock.api.metrics import ApiMetrics
from penstock.api.problems import on_disconnect, on_penstock_error, on_unexpected, respond
from penstock.client.idgen import new_id
from penstock.schemas.errors import NotFound, PenstockError

REQUEST_ID = "penstock.request_id"
_HEADER = b"x-request-id"
_ALLOWED = re.compile(rb"^[A-Za-z0-9._:\-]{1,128}$")
_OPENINGS = frozenset({"websocket.accept", "websocket.http.response.start"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Around:
    """Gives each request an id (the caller's, if it is a plain one), echoes it, and counts and times the request.

    ``direct`` maps method and path to endpoints that need no routing; ``paths`` has the others' address patterns.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ApiMetrics,
        direct: Mapping[tuple[str, str], Endpoint],
        paths: Mapping[Any, str],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._direct = direct
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope[REQUEST_ID] = request_id.decode()
        if scope["type"] == "websocket":
            await self._open(scope, receive, send, request_id)
            return
        status = 500
        started = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, request_id)]
            await send(message)

        endpoint = self._direct.get((scope["method"], scope["path"]))
        try:
            if endpoint is None:
                await self._app(scope, receive, answer)
            else:
                await _serve(endpoint, scope, receive, answer)
        finally:
            # A method is the caller's word, and a metric's labels must be few.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = self._route(scope) if endpoint is None else str(scope["path"])
            self._metrics.requested(method, route, status, time.perf_counter() - started)

    async def _open(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        """A WebSocket: what answers its handshake has the id, and a refusal is a problem like any other."""
        opening = True

        async def answer(message: Message) -> None:
            nonlocal opening
            if opening and message["type"] == "websocket.close":
                # What the framework does where it knows no address.
                error = NotFound(f"There is no WebSocket at {scope['path']}.")
                await respond(HTTPConnection(scope), error)(scope, receive, answer)
                return
            if message["type"] in _OPENINGS:
                opening = False
                message["headers"] = [*message.get("headers", ()), (_HEADER, request_id)]
            await send(message)

        await self._app(scope, receive, answer)

    def _route(self, scope: Scope) -> str:
        endpoint: Any = scope.get("endpoint")
        return "none" if endpoint is None else self._paths.get(endpoint, "other")


async def _serve(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        response = await endpoint(request)
    except PenstockError as error:
        response = await on_penstock_error(request, error)
    except ClientDisconnect as error:
        response = await on_disconnect(request, error)
    except Exception as error:  # noqa: BLE001 - a bug: the caller gets an answer, the log the rest
        response = await on_unexpected(request, error)
    await response(scope, receive, send)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == _HEADER and _ALLOWED.match(value):
            return cast(bytes, value)
    return new_id().encode()
