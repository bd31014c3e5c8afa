"""What both clients need of httpx: a checked address, requests of calls and answers of responses."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Protocol

import httpx

from penstock.client.calls import DEFAULT_SERVER, Answer, Call
from penstock.schemas.errors import SettingsInvalid

REQUEST_TIMEOUT_S = 60.0
STREAM_TIMEOUT = httpx.Timeout(REQUEST_TIMEOUT_S, read=30.0)
"""A stream of events says every few seconds that it is still there."""

RECONNECT_S = 0.5


def moment_text(at: datetime | str | None) -> str:
    """A moment as a query parameter; empty for none."""
    return at.isoformat() if isinstance(at, datetime) else at or ""


class StandIn(Protocol):
    """What takes the place of a server, for tests."""

    blocking: httpx.BaseTransport
    asynchronous: httpx.AsyncBaseTransport


_stand_in: StandIn | None = None


def stand_in() -> StandIn | None:
    """What clients speak to that are given no transport of their own; None for the server."""
    return _stand_in


def put_in_place(of_the_server: StandIn | None) -> StandIn | None:
    """Let clients made from now on speak to something else than a server; returns what it was before."""
    global _stand_in  # one for the whole process: the code under test makes its clients itself
    before, _stand_in = _stand_in, of_the_server
    return before


def checked(server: str | None) -> str:
    """The server's address; without one that of `PENSTOCK_SERVER`, else where `penstock dev` listens."""
    if server is None:
        server = os.environ.get("PENSTOCK_SERVER") or DEFAULT_SERVER
    server = server.rstrip("/")
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise SettingsInvalid(f"{server!r} is not a server's URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsInvalid(f"{server!r} is not a server's URL (http://host:port)")
    return server


def reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def answer(response: httpx.Response) -> Answer:
    return Answer(
        response.status_code,
        {name.lower(): value for name, value in response.headers.items()},
        response.content,
    )


def request(http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
    headers = dict(call.headers)
    if call.body is not None:
        headers["content-type"] = call.content_type
    return http.build_request(
        call.method, call.path, params=call.params or None, content=call.body, headers=headers
    )
