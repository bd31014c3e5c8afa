"""The stream of events over a WebSocket: the same events, and ends that say why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from penstock.api import events_ws, stream, web_sockets
from penstock.api.app import create_app
from penstock.api.service import ApiService
from penstock.api.web_sockets import WebSocketProtocol
from tests.api.harness import Bench
from tests.waiting import PATIENCE_S, until


@pytest.fixture
async def service(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiService]:
    monkeypatch.setattr(stream, "POLL_MS", 50)
    async with ApiService(create_app(whole.deps), port=0) as served:
        yield served


def listening(
    service: ApiService, *, origin: str | None = None, request_id: str | None = None, **params: Any
) -> connect:
    address = f"{service.address.replace('http', 'ws', 1)}{events_ws.PATH}?{urlencode(params)}"
    given = {"Origin": origin, "X-Request-ID": request_id}
    headers = {name: value for name, value in given.items() if value is not None}
    return connect(address, proxy=None, additional_headers=headers)


async def hear(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    """So many events, each with the ``id`` that resumes behind it."""
    heard: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(heard) < count:
            message = json.loads(await socket.recv())
            if "event" in message:
                heard.append(message)
    return heard


async def closed(socket: ClientConnection) -> tuple[int | None, list[dict[str, Any]]]:
    """The close code, and what was said before."""
    said: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        try:
            while True:
                said.append(json.loads(await socket.recv()))
        except ConnectionClosed:
            return socket.close_code, said


async def test_a_jobs_whole_life_is_heard_and_resumed_without_a_gap(
    whole: Bench, service: ApiService
) -> None:
    async with listening(service) as socket:
        job = await whole.enqueue(payload={"n": 1})
        [leased] = await whole.fetch()
        first = await hear(socket, 1)
        await socket.send("nobody listens to this")
    await whole.report({"type": "Succeeded", "job": leased["id"], "lease": leased["lease"], "result": 7})
    async with listening(service, after=first[0]["id"]) as socket:
        heard = [*first, *await hear(socket, 2)]
    assert [one["event"]["type"] for one in heard] == ["Enqueued", "Leased", "Succeeded"]
    assert {one["event"]["job"] for one in heard} == {job["id"]}
    assert heard[2]["event"]["result"] == 7


async def test_only_what_is_asked_for(whole: Bench, service: ApiService) -> None:
    async with listening(service, types="Enqueued", queue="mail") as socket:
        await whole.enqueue(queue="other")
        wanted = await whole.enqueue(queue="mail")
        [heard] = await hear(socket, 1)
    assert heard["event"]["job"] == wanted["id"]


@pytest.mark.parametrize(
    ("params", "origin", "status", "code"),
    [
        ({"types": "Nothing"}, None, 422, "invalid_field"),
        ({"unknown": "1"}, None, 422, "invalid_field"),
        ({"after": "no token"}, None, 422, "invalid_cursor"),
        ({"after": "~0:99:0"}, None, 410, "position_gone"),
        ({}, "https://elsewhere.example", 403, "origin_forbidden"),
    ],
)
async def test_what_is_wrong_at_the_start_is_an_answer(
    service: ApiService, params: dict[str, str], origin: str | None, status: int, code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with pytest.raises(InvalidStatus) as refused:
        async with listening(service, origin=origin, request_id="r-1", **params):
            pass
    response = refused.value.response
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert problem["code"] == code
    assert problem["instance"] == events_ws.PATH
    assert response.headers["x-request-id"] == problem["request_id"] == "r-1"
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_an_address_without_a_websocket_is_a_problem_too(
    service: ApiService, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{service.address.replace('http', 'ws', 1)}/api/v1/jobs", proxy=None):
            pass
    response = refused.value.response
    problem = json.loads(response.body)
    assert (response.status_code, problem["code"]) == (404, "not_found")
    assert response.headers["x-request-id"] == problem["request_id"] != ""
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_the_request_id_comes_back_where_the_connection_stands_too(service: ApiService) -> None:
    async with listening(service, request_id="r-2") as socket:
        assert socket.response is not None
        assert socket.response.headers["x-request-id"] == "r-2"


async def test_pages_of_this_server_may_listen(whole: Bench, service: ApiService) -> None:
    async with listening(service, origin=service.address) as socket:
        await whole.enqueue()
        assert len(await hear(socket, 1)) == 1


async def test_the_end_of_the_server_is_said(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "POLL_MS", 50)
    async with ApiService(create_app(whole.deps), port=0) as service, listening(service) as socket:
        await whole.enqueue()
        await hear(socket, 1)
        whole.deps.parked.stop()
        code, said = await closed(socket)
    assert code == 4503
    error = said[-1]["error"]
    assert error["code"] == "read_model_unavailable"
    assert socket.response is not None
    assert error["request_id"] == socket.response.headers["x-request-id"]


async def test_how_far_it_is_is_told_where_nothing_happens(
    service: ApiService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "QUIET_S", 0.1)
    async with listening(service) as socket, asyncio.timeout(PATIENCE_S):
        message = json.loads(await socket.recv())
    assert message["id"].startswith("~")
    assert message.keys() == {"id"}


async def test_one_that_does_not_read_is_cut_off_and_comes_back_for_the_rest(
    whole: Bench, service: ApiService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_ws, "SLOW_S", 0.3)
    jobs: list[str] = []
    async with listening(service, types="Enqueued") as socket:
        # It reads nothing: what it was sent fills the buffers of both sides, and then there is no more room.
        socket.transport.pause_reading()
        for _ in range(400):
            jobs.append((await whole.enqueue(payload={"text": "x" * 60_000}))["id"])
        await asyncio.sleep(1.0)
        socket.transport.resume_reading()
        code, said = await closed(socket)
    assert code == 4408
    heard = [one["event"]["job"] for one in said if "event" in one]
    assert 0 < len(heard) < 400
    async with listening(service, types="Enqueued", after=said[len(heard) - 1]["id"]) as socket:
        heard += [one["event"]["job"] for one in await hear(socket, 400 - len(heard))]
    assert sorted(heard) == sorted(jobs), "each once; in order within a partition"


async def deaf(whole: Bench, service: ApiService, socket: ClientConnection) -> WebSocketProtocol:
    """The server's side of a connection whose buffers are full, for its listener does not read."""
    socket.transport.pause_reading()
    server: Any = service._server  # pyright: ignore[reportPrivateUsage]  # nothing public tells its connections
    [connection] = server.server_state.connections
    async with asyncio.timeout(PATIENCE_S):
        while connection.writable.is_set():
            await whole.enqueue(payload={"text": "x" * 60_000})
    found: WebSocketProtocol = connection
    return found


async def test_for_one_that_goes_on_not_reading_nothing_is_kept(
    whole: Bench, service: ApiService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events_ws, "SLOW_S", 0.3)
    monkeypatch.setattr(web_sockets, "LINGER_S", 0.2)
    async with listening(service, types="Enqueued") as socket:
        connection = await deaf(whole, service, socket)
        await until(lambda: connection.disconnected)
        assert connection.transport.get_write_buffer_size() == 0
        socket.transport.resume_reading()
        code, said = await closed(socket)
    assert code == 1006, "no close frame came"
    assert said
    assert [record.message for record in caplog.records] == [
        "a listener did not read for 0.3 s and was cut off"
    ]


async def code_after_a_ping(connection: Any, socket: ClientConnection) -> int | None:
    """With what a listener is closed that was pinged while it did not read, and reads again once that is sent."""
    connection.ping_timeout = 0.1
    connection.send_keepalive_ping()
    await until(lambda: connection.close_sent)
    socket.transport.resume_reading()
    code, _ = await closed(socket)
    return code


async def test_a_ping_behind_what_is_unread_ends_nothing(
    whole: Bench, service: ApiService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_ws, "SLOW_S", 1.0)
    async with listening(service, types="Enqueued") as socket:
        connection = await deaf(whole, service, socket)
        code = await code_after_a_ping(connection, socket)
    assert code == 4408


async def test_one_that_answers_no_ping_is_told_so(
    service: ApiService, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(service) as socket:
        socket.transport.pause_reading()
        server: Any = service._server  # pyright: ignore[reportPrivateUsage]  # nothing public tells its connections
        [connection] = server.server_state.connections
        code = await code_after_a_ping(connection, socket)
    assert code == 1011
    assert not caplog.records
