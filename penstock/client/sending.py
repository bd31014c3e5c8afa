"""What both clients need of httpx: a checked address, requests of calls and answers of responses."""

from __future__ import annotations

import httpx

from penstock.client.calls import Answer, Call
from penstock.schemas.errors import SettingsInvalid

REQUEST_TIMEOUT_S = 60.0
STREAM_TIMEOUT = httpx.Timeout(REQUEST_TIMEOUT_S, read=30.0)
"""A stream of events says every few seconds that it is still there."""

RECONNECT_S = 0.5


def checked(server: str) -> str:
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
