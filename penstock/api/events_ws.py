"""``/events/ws``: what ``GET /events`` tells, over a WebSocket.

Each message is a JSON object: ``{"id", "event"}`` for an event, ``{"id"}`` to tell only how far it is, ``{"error"}``
with a problem before the server closes. A listener comes back with ``?after=`` and the last ``id``.

What is wrong before the connection stands is an answer with a status. After that the close code is 4000 and the status:
4410 where the log does not have what follows, 4503 where the server stops or has no log or read model, 4408 for one
that does not read, which sees it if it reads on soon: see :mod:`penstock.api.web_sockets`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.events import EventsQuery, listening_of
from penstock.api.http import query
from penstock.api.problems import problem_at, respond
from penstock.api.stream import SLOW_S, Heard, Listener, serve_until_gone
from penstock.schemas.errors import OriginForbidden, PenstockError

PATH = "/api/v1/events/ws"
CLOSE_BASE = 4_000
SLOW = CLOSE_BASE + 408

_log = logging.getLogger("penstock.api")
_encode = msgspec.json.Encoder(enc_hook=str).encode


async def follow(socket: WebSocket) -> None:
    """Serve one listener."""
    deps = deps_of(socket)
    try:
        _check_origin(socket, deps)
        asked = query(socket, EventsQuery)
        listener = Listener(deps, listening_of(asked), asked.after or "")
        starts = await listener.starts()
    except PenstockError as error:
        await socket.send_denial_response(respond(socket, error))
        return
    await socket.accept()
    heard = listener.listen(starts)
    await serve_until_gone(_send_all(socket, deps, heard), _until_gone(socket), heard)


def _check_origin(socket: WebSocket, deps: ApiDeps) -> None:
    """Browsers let any page open a socket to anywhere: only pages of this server and of allowed origins may."""
    origin = socket.headers.get("origin")
    allowed = deps.options.cors_origins
    if origin is None or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc != socket.headers.get("host"):
        raise OriginForbidden(f"Pages of {origin[:200]!r} may not listen here.")


async def _send_all(socket: WebSocket, deps: ApiDeps, heard: AsyncGenerator[Heard]) -> None:
    try:
        try:
            async with deps.parked.wait():
                async for one in heard:
                    await _send(socket, _message(one))
        except PenstockError as error:
            await _send(socket, _encode({"error": problem_at(socket.scope, error)}))
            await _close(socket, CLOSE_BASE + error.status, error.message)
    except TimeoutError:
        _log.warning("a listener did not read for %g s and was cut off", SLOW_S)
        await _close(socket, SLOW, f"nothing was read for {SLOW_S:g} s")
    except WebSocketDisconnect:
        pass


async def _send(socket: WebSocket, message: bytes) -> None:
    """Raises TimeoutError for one that does not read."""
    async with asyncio.timeout(SLOW_S):
        await socket.send_text(message.decode())


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(WebSocketDisconnect):
        # A reason has room for 123 bytes. It goes out behind what is unread, without waiting for that.
        await socket.close(code, reason.encode()[:120].decode("utf-8", "ignore"))


async def _until_gone(socket: WebSocket) -> None:
    """Until the other side leaves; what it says meanwhile means nothing here."""
    while socket.client_state is WebSocketState.CONNECTED:
        if (await socket.receive())["type"] == "websocket.disconnect":
            return


def _message(heard: Heard) -> bytes:
    return _encode({"id": heard.token, "event": Raw(heard.data)} if heard.data else {"id": heard.token})


ROUTE = WebSocketRoute(PATH, follow)
