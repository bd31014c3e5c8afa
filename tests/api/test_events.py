"""Hearing what happens: every event once and in order, whoever is asked, however often the connection is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from penstock.api import events, stream
from penstock.api.app import create_app
from penstock.api.deps import Parked
from penstock.api.service import ApiService
from penstock.client.event_stream import EventReader
from penstock.client.http_async import AsyncClient
from penstock.schemas.errors import PositionGone, ReadModelUnavailable
from tests.api.harness import Bench
from tests.waiting import PATIENCE_S, until

Event = dict[str, Any]


class Ear:
    """One open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self._reader = EventReader()
        self._lines = response.aiter_lines()
        self.token = ""

    async def hear(self, count: int) -> list[Event]:
        """So many events."""
        heard: list[Event] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(heard) < count:
                event = self._reader.take(await anext(self._lines))
                if event is not None:
                    self.token = event["token"]
                    if "type" in event:
                        heard.append(event)
        return heard

    async def until_it_tells_its_place(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = self._reader.take(await anext(self._lines))
                if event is not None:
                    return str(event["token"])


@asynccontextmanager
async def listening(service: ApiService, last: str = "", **params: Any) -> AsyncIterator[Ear]:
    headers = {"Last-Event-ID": last} if last else {}
    async with (
        httpx.AsyncClient(base_url=service.address, timeout=30) as http,
        http.stream("GET", "/api/v1/events", params=params, headers=headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Ear(response)


@pytest.fixture
async def service(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiService]:
    monkeypatch.setattr(stream, "POLL_MS", 50)
    async with ApiService(create_app(whole.deps), port=0) as served:
        yield served


async def test_a_jobs_whole_life_is_heard(whole: Bench, service: ApiService) -> None:
    async with listening(service) as ear:
        job = await whole.enqueue(payload={"n": 1})
        [leased] = await whole.fetch()
        await whole.report({"type": "Succeeded", "job": leased["id"], "lease": leased["lease"], "result": 7})
        heard = await ear.hear(3)
    assert [event["type"] for event in heard] == ["Enqueued", "Leased", "Succeeded"]
    assert {event["job"] for event in heard} == {job["id"]}
    assert {event["outcome"] for event in heard} == {"applied"}
    assert heard[0]["payload"] == {"n": 1}
    assert heard[2]["result"] == 7
    assert heard[0]["at"].endswith("Z")
    positions = [tuple(map(int, event["position"].split(":"))) for event in heard]
    assert positions == sorted(positions)


@pytest.mark.parametrize("cut_after", [1, 3, 7])
async def test_resuming_misses_nothing_and_repeats_nothing(
    whole: Bench, service: ApiService, cut_after: int
) -> None:
    async with listening(service) as ear:
        token = ear.token
        jobs = [(await whole.enqueue())["id"] for _ in range(3)]
        heard = await ear.hear(1)
        token = ear.token
    while len(heard) < 23:
        if len(jobs) < 23:
            jobs += [(await whole.enqueue())["id"] for _ in range(2)]
        async with listening(service, token) as ear:
            heard += await ear.hear(min(cut_after, len(jobs) - len(heard)))
            token = ear.token
    assert sorted(event["job"] for event in heard) == sorted(jobs)
    assert len({event["position"] for event in heard}) == len(heard)


async def test_one_that_heard_nothing_yet_resumes_where_it_began(
    whole: Bench, service: ApiService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "QUIET_S", 0.05)
    async with listening(service) as ear:
        token = await ear.until_it_tells_its_place()
    jobs = {(await whole.enqueue())["id"] for _ in range(8)}
    async with listening(service, token) as ear:
        assert {event["job"] for event in await ear.hear(8)} == jobs


async def test_from_a_write_on(whole: Bench, service: ApiService) -> None:
    answer = await whole.http.post("/api/v1/jobs", json={"type": "noop", "id": "mine"})
    await whole.http.post("/api/v1/jobs/mine/hold")
    async with listening(service, after=answer.headers["penstock-position"], job="mine") as ear:
        assert [event["type"] for event in await ear.hear(1)] == ["Held"]


async def test_only_what_is_asked_for(whole: Bench, service: ApiService) -> None:
    async with (
        listening(service, tags="red") as red,
        listening(service, types="Held,Unheld") as held,
        listening(service, job="one", refused="true") as one,
    ):
        await whole.enqueue(id="one")
        await whole.enqueue(id="two", tags=["red"])
        await whole.http.post("/api/v1/jobs/one/hold")
        await whole.http.post("/api/v1/jobs/one/hold")
        await whole.http.post("/api/v1/jobs/two/hold")
        assert [(event["job"], event["type"]) for event in await red.hear(2)] == [
            ("two", "Enqueued"), ("two", "Held")
        ]  # fmt: skip
        assert sorted(event["job"] for event in await held.hear(2)) == ["one", "two"]
        assert [(event["type"], event["outcome"]) for event in await one.hear(3)] == [
            ("Enqueued", "applied"), ("Held", "applied"), ("Held", "refused")
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"types": "Enqueued,Exploded"}, 422),
        ({"after": "nonsense"}, 422),
        ({"colour": "red"}, 422),
        ({"after": "0:99999:0"}, 410),
        ({"after": "~0:99999:0"}, 410),
    ],
)
async def test_what_cannot_be_followed_is_an_answer(api: Bench, params: dict[str, str], status: int) -> None:
    answer = await api.http.get("/api/v1/events", params=params)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("after", ["0:99999:0", "~0:99999:0"])
async def test_a_place_beyond_the_end_is_not_called_trimmed(api: Bench, after: str) -> None:
    problem = (await api.http.get("/api/v1/events", params={"after": after})).json()
    assert (problem["code"], problem["position"]) == ("position_gone", "0:99999:0")
    assert problem["detail"] == "the log ends before 0:99999:0: is it of another log?"
    assert "no longer" not in problem["title"]


async def test_what_was_trimmed_is_gone(whole: Bench, service: ApiService) -> None:
    answer = await whole.http.post("/api/v1/jobs", json={"type": "noop"})
    for _ in range(20):
        await whole.enqueue()
    for partition in range(whole.topics.partitions):
        bounds = await whole.log.bounds(whole.topics.jobs, partition)
        await whole.log.truncate(whole.topics.jobs, partition, bounds.end)
    async with httpx.AsyncClient(base_url=service.address) as http:
        found = await http.get("/api/v1/events", params={"after": answer.headers["penstock-position"]})
        assert found.status_code == 410
        assert found.json()["code"] == "position_gone"
        assert "no longer has what follows" in found.json()["detail"]


async def test_one_that_does_not_read_is_cut_off_and_comes_back_for_the_rest(
    whole: Bench, service: ApiService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "SLOW_S", 0.3)
    host, port = service.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    big = "x" * 40_000
    items = [{"type": "noop", "payload": big} for _ in range(400)]
    answer = await whole.http.post("/api/v1/jobs/bulk", json=items)
    assert answer.json()["accepted"] == 400
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.sleep(2)
        got = b""
        while part := await reader.read(1 << 20):
            got += part
    writer.close()
    # It ended without the last chunk, so whoever reads knows that it was cut.
    assert not got.endswith(b"0\r\n\r\n")
    assert got.count(b"event: Enqueued") < 400
    assert [record.message for record in caplog.records] == [
        "a listener did not read for 0.3 s and was cut off"
    ], "once, and not as an error of the server too"


async def test_the_end_of_the_server_ends_the_stream(whole: Bench) -> None:
    async with ApiService(create_app(whole.deps), port=0) as service, listening(service) as ear:
        whole.deps.stop()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ReadModelUnavailable, match="stops"):
                await ear.hear(1)


async def test_the_client_goes_on_after_a_restart_without_a_gap(
    whole: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_MS", 50)
    heard: list[Event] = []
    jobs: list[str] = []
    port = 0

    async def hear(server: str) -> None:
        async with AsyncClient(server) as client:
            async for event in client.events(types="Enqueued"):
                heard.append(event)

    listener: asyncio.Task[None] | None = None
    for _ in range(3):
        async with ApiService(create_app(whole.deps), port=port) as service:
            port = int(service.address.rpartition(":")[2])
            if listener is None:
                listener = asyncio.create_task(hear(service.address))
                await asyncio.sleep(0.5)
            for _ in range(5):
                jobs.append((await whole.enqueue())["id"])
            wanted = len(jobs)
            await until(lambda wanted=wanted: len(heard) == wanted)
            whole.deps.parked.stop()
            whole.deps.parked = Parked()
        # While nobody serves.
        jobs += [(await whole.enqueue())["id"] for _ in range(4)]
    async with ApiService(create_app(whole.deps), port=port):
        await until(lambda: len(heard) == len(jobs))
    assert listener is not None
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    assert sorted(event["job"] for event in heard) == sorted(jobs)
    assert len({event["token"] for event in heard}) == len(jobs)


async def test_the_client_says_when_it_cannot_go_on(whole: Bench, service: ApiService) -> None:
    async with AsyncClient(service.address) as client:
        with pytest.raises(PositionGone):
            async for _ in client.events(after="0:99999:0"):
                pass


def test_a_reader_joins_lines_and_notes_places() -> None:
    reader = EventReader()
    lines = ["retry: 5", "", ": comment", "id: ~0:1:2", "", "event: x", 'data: {"type":', 'data: "x"}', ""]
    found = [event for line in lines if (event := reader.take(line)) is not None]
    assert found == [{"token": "~0:1:2"}, {"token": "~0:1:2", "type": "x"}]
    assert json.dumps(found)
