"""The clients: both speak alike, and a call that is repeated is the same call."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from penstock.client import bulk, calls, http_async
from penstock.client.calls import Answer, Call, Calls, Pause, error_of
from penstock.client.http import Client
from penstock.client.http_async import AsyncClient
from penstock.schemas import errors

Handler = Callable[[httpx.Request], httpx.Response]
SERVER = "http://penstock.test"


def run_both(handler: Handler, use: Callable[[Any], Any], **options: Any) -> list[Any]:
    """The results, or errors, of the same use of both clients, each over its own log of requests."""

    def blocking() -> Any:
        with Client(SERVER, transport=httpx.MockTransport(handler), **options) as client:
            return use(client)

    async def awaiting() -> Any:
        async with AsyncClient(SERVER, transport=httpx.MockTransport(handler), **options) as client:
            return await use(client)

    found: list[Any] = []
    for way in (blocking, lambda: asyncio.run(awaiting())):
        try:
            found.append(way())
        except Exception as error:  # noqa: BLE001 - errors are results here
            found.append(error)
    return found


class Server:
    """Answers from a script, the last answer for ever, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


def job(**fields: Any) -> httpx.Response:
    return httpx.Response(
        201, json={"id": "a", "state": "ready", **fields}, headers={"Penstock-Position": "1:5:0"}
    )


def problem(status: int, code: str, **members: Any) -> httpx.Response:
    body = {"type": "x", "title": "T", "status": status, "detail": f"it is {code}", "code": code, **members}
    return httpx.Response(status, json=body, headers={"Retry-After": "0"} if status == 503 else {})


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def offered(client: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    blocking, awaiting = offered(Client), offered(AsyncClient)
    assert blocking.pop("close") == awaiting.pop("aclose")
    # Streams are read by the command line only.
    del blocking["stream_lines"]
    assert blocking == awaiting


class TestRepeats:
    @pytest.mark.parametrize(
        "trouble",
        [
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("slow"),
            httpx.RemoteProtocolError("cut"),
            problem(503, "log_unavailable"),
        ],
        ids=["refused", "slow", "cut", "unavailable"],
    )
    def test_a_repeated_enqueue_carries_the_same_id(self, trouble: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(calls, "FIRST_PAUSE_MS", 1)
        server = Server(trouble, trouble, job(), trouble, job())
        found = run_both(server, lambda client: client.enqueue("t", {"n": 1}))
        assert [one["state"] for one in found] == ["ready", "ready"]
        first, second = server.bodies[:3], server.bodies[3:]
        assert first == [first[0]] * 3
        assert second == [second[0]] * 2
        assert first[0]["id"] != second[0]["id"]

    def test_a_bulk_call_keeps_its_ids_too(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(calls, "FIRST_PAUSE_MS", 1)
        accepted = httpx.Response(
            200, json={"accepted": 1, "rejected": 0, "items": [{"index": 0, "status": "accepted"}]}
        )
        server = Server(problem(503, "log_unavailable"), accepted)
        run_both(server, lambda client: client.enqueue_many([{"type": "t"}]))
        assert server.requests[0].content == server.requests[1].content
        assert json.loads(server.requests[0].content)["id"]
        assert server.requests[0].headers["content-type"] == "application/x-ndjson"

    def test_patience_ends(self):
        server = Server(httpx.ConnectError("refused"))
        found = run_both(server, lambda client: client.get("a"), patience_ms=0)
        assert [type(one) for one in found] == [errors.ServerUnreachable] * 2
        assert "refused" in found[0].message
        assert len(server.requests) == 2

    def test_a_503_after_all_patience_is_the_servers_own_error(self):
        server = Server(problem(503, "read_behind", behind=[1]))
        found = run_both(server, lambda client: client.get("a"), patience_ms=0)
        assert [type(one) for one in found] == [errors.ReadBehind] * 2
        assert found[0].details == {"behind": [1]}

    @pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 500])
    def test_nothing_else_is_repeated(self, status: int):
        server = Server(problem(status, "internal"))
        run_both(server, lambda client: client.get("a"))
        assert len(server.requests) == 2

    def test_pauses_grow_and_heed_retry_after(self):
        steps = Calls(SERVER, 10_000).get("a")
        assert isinstance(steps.send(None), Call)
        assert steps.send(Answer(0, {}, b"", "refused")) == Pause(100)
        assert isinstance(steps.send(None), Call)
        assert steps.send(Answer(503, {"retry-after": "2"}, b"")) == Pause(2_000)
        assert isinstance(steps.send(None), Call)
        assert steps.send(Answer(503, {"retry-after": "soon"}, b"")) == Pause(400)

    def test_a_server_that_asks_for_more_patience_than_there_is_gets_none(self):
        steps = Calls(SERVER, 10_000).get("a")
        steps.send(None)
        with pytest.raises(errors.ServerUnreachable):
            steps.send(Answer(503, {"retry-after": "3600"}, b""))


class TestErrors:
    @pytest.mark.parametrize("code", sorted(calls.error_classes()))
    def test_each_code_becomes_its_error(self, code: str):
        answer = Answer(500, {}, json.dumps({"code": code, "detail": "said", "extra": 1}).encode())
        error = error_of(answer)
        assert error.code == code
        assert type(error) is calls.error_classes()[code]
        assert (error.message, error.details) == ("said", {"extra": 1})

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (502, b"<html>bad gateway", errors.ServerUnreachable),
            (500, b"", errors.PenstockError),
            (500, b"[1]", errors.PenstockError),
            (418, b'{"code":"teapot","detail":"short and stout"}', errors.PenstockError),
        ],
    )
    def test_what_is_no_problem_of_ours_is_still_told(self, status: int, body: bytes, kind: type[Exception]):
        assert type(error_of(Answer(status, {}, body))) is kind

    def test_an_answer_that_is_not_json_is_no_penstock_server(self):
        server = Server(httpx.Response(200, text="<html>hello"))
        found = run_both(server, lambda client: client.get("a"))
        assert [type(one) for one in found] == [errors.PenstockError] * 2
        assert "is it a Penstock server" in found[0].message

    @pytest.mark.parametrize("url", ["", "penstock", "ftp://a", "http://", "http://a:b"])
    def test_a_url_that_is_none_is_refused(self, url: str):
        with pytest.raises(errors.SettingsInvalid):
            Client(url)

    @pytest.mark.parametrize("job_id", ["", ".", ".."])
    def test_an_id_that_would_lead_elsewhere_is_not_asked_for(self, job_id: str):
        server = Server(job())
        found = run_both(server, lambda client: client.get(job_id))
        assert [type(one) for one in found] == [errors.JobNotFound] * 2
        assert not server.requests

    def test_a_slash_in_an_id_stays_in_the_id(self):
        server = Server(job())
        run_both(server, lambda client: client.get("a/../b?c"))
        assert server.requests[0].url.raw_path == b"/api/v1/jobs/a%2F..%2Fb%3Fc"


class TestReads:
    def test_a_read_waits_for_the_clients_own_writes(self):
        server = Server(job(), httpx.Response(200, json={"id": "a"}))

        def write_and_read(client: Client) -> Any:
            client.enqueue("t")
            return client.get("a")

        with Client(SERVER, transport=httpx.MockTransport(server)) as client:
            write_and_read(client)
        assert "penstock-position" not in server.requests[0].headers
        assert server.requests[1].headers["penstock-position"] == "1:5:0"

    def test_the_highest_position_of_each_partition_counts(self):
        told = iter(["1:5:0", "1:4:9,0:2:0", "nonsense", "0:1:0"])

        def handler(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"position": request.headers["penstock-position"]})
            return httpx.Response(201, json={}, headers={"Penstock-Position": next(told)})

        with Client(SERVER, transport=httpx.MockTransport(handler)) as client:
            for _ in range(4):
                client.enqueue("t")
            assert client.get("a") == {"position": "0:2:0,1:5:0"}

    def test_a_list_is_read_page_by_page(self):
        pages = {"": (["a", "b"], "2"), "2": (["c"], None)}

        def handler(request: httpx.Request) -> httpx.Response:
            assert request.url.params["state"] == "dead"
            assert "queue" not in request.url.params
            items, cursor = pages[request.url.params.get("cursor", "")]
            return httpx.Response(
                200, json={"items": [{"id": one} for one in items], "next_cursor": cursor, "total": 3}
            )

        with Client(SERVER, transport=httpx.MockTransport(handler)) as client:
            assert [one["id"] for one in client.jobs(state="dead")] == ["a", "b", "c"]

        async def read() -> list[str]:
            async with AsyncClient(SERVER, transport=httpx.MockTransport(handler)) as other:
                return [one["id"] async for one in other.jobs(state="dead")]

        assert asyncio.run(read()) == ["a", "b", "c"]

    def test_a_list_takes_what_jobs_were_put_in_with(self):
        asked: list[dict[str, str]] = []

        def handler(request: httpx.Request) -> httpx.Response:
            asked.append(dict(request.url.params))
            return httpx.Response(200, json={"items": [], "next_cursor": None})

        async def read() -> None:
            async with AsyncClient(SERVER, transport=httpx.MockTransport(handler)) as other:
                assert [one async for one in other.jobs(batch="b", workflow="w", at="0:1:2")] == []

        with Client(SERVER, transport=httpx.MockTransport(handler)) as client:
            assert list(client.jobs(batch="b", workflow="w", at="0:1:2")) == []
        asyncio.run(read())
        run_both(handler, lambda client: client.jobs_page(batch="b", workflow="w", at="0:1:2"))
        assert asked == [{"batch": "b", "workflow": "w", "at": "0:1:2", "limit": "200"}] * 4

    def test_a_history_is_read_to_its_end(self):
        pages = {"": ([1, 2], "x"), "x": ([3], None)}

        def handler(request: httpx.Request) -> httpx.Response:
            items, cursor = pages[request.url.params.get("cursor", "")]
            return httpx.Response(200, json={"items": items, "next_cursor": cursor})

        assert run_both(handler, lambda client: client.history("a")) == [[1, 2, 3]] * 2

    @pytest.mark.parametrize("name", ["counts", "queues", "workers"])
    def test_resources(self, name: str):
        server = Server(httpx.Response(200, json={"items": []}))
        assert run_both(server, lambda client: getattr(client, name)()) == [{"items": []}] * 2
        assert {request.url.path for request in server.requests} == {f"/api/v1/{name}"}

    def test_what_was_is_asked_for_by_its_moment(self):
        server = Server(httpx.Response(200, json={"items": [], "next_cursor": None}))
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        run_both(server, lambda client: client.counts(moment))
        run_both(server, lambda client: client.jobs_page(at="0:1:2"))
        run_both(server, lambda client: client.search_page({}, at=moment))
        asked = [
            request.url.params.get("at") or json.loads(request.content)["at"] for request in server.requests
        ]
        assert asked == [moment.isoformat()] * 2 + ["0:1:2"] * 2 + [moment.isoformat()] * 2

    def test_waiting_ends_with_the_job(self):
        states = [
            httpx.Response(200, json={"id": "a", "state": state}) for state in ("ready", "active", "dead")
        ]
        server = Server(*states)
        assert [one["state"] for one in run_both(server, lambda client: client.wait("a"))] == ["dead", "dead"]
        assert len(server.requests) == 4
        assert {request.url.params["until"] for request in server.requests} == {"finished"}

    def test_waiting_ends_with_its_time(self):
        server = Server(httpx.Response(200, json={"id": "a", "state": "active"}))
        found = run_both(server, lambda client: client.wait("a", 50_000))
        assert [type(one) for one in found] == [TimeoutError] * 2
        waits = [request.url.params["wait_ms"] for request in server.requests]
        assert waits == ["20000", "20000", "10000"] * 2


class TestMany:
    def test_many_jobs_go_in_chunks(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(bulk, "BULK_LINES", 2)

        def handler(request: httpx.Request) -> httpx.Response:
            lines = request.content.split(b"\n")
            items = [
                {"index": number, "status": "accepted", "id": json.loads(line)["id"]}
                for number, line in enumerate(lines)
            ]
            return httpx.Response(200, json={"accepted": len(lines), "rejected": 0, "items": items})

        requests = [{"type": "t", "id": f"j{number}"} for number in range(5)]
        for result in run_both(handler, lambda client: client.enqueue_many(requests)):
            assert (result.accepted, result.rejected, result.unknown) == (5, 0, 0)
            assert [item["id"] for item in result.items] == [f"j{number}" for number in range(5)]
            assert [item["index"] for item in result.items] == [0, 1, 2, 3, 4]

    def test_a_chunk_has_a_size(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(bulk, "BULK_BYTES", 300)
        parts = list(bulk.bulk_parts({"type": "t", "payload": "x" * 100} for _ in range(4)))
        assert [part.body.count(b"\n") + 1 for part in parts] == [1, 1, 1, 1]

    def test_none_is_no_call(self):
        server = Server(job())
        assert [result.accepted for result in run_both(server, lambda client: client.enqueue_many([]))] == [
            0,
            0,
        ]
        assert not server.requests

    def test_bad_ones_are_told_and_stop_no_other(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(bulk, "BULK_LINES", 2)

        def handler(request: httpx.Request) -> httpx.Response:
            ids = [json.loads(line)["id"] for line in request.content.split(b"\n")]
            items = [{"index": number, "status": "accepted", "id": name} for number, name in enumerate(ids)]
            return httpx.Response(200, json={"accepted": len(ids), "rejected": 0, "items": items})

        good = [{"type": "t", "id": f"j{number}"} for number in range(4)]
        requests: list[Any] = [
            {"type": "t", "quue": 1},
            *good[:3],
            "x",
            {"type": "t", "payload": {"a": math.nan}},
            good[3],
        ]
        for result in run_both(handler, lambda client: client.enqueue_many(requests)):
            assert (result.accepted, result.rejected, result.unknown) == (4, 3, 0)
            assert [item["index"] for item in result.items] == list(range(7))
            assert [item.get("id", item.get("code")) for item in result.items] == [
                "invalid_field", "j0", "j1", "j2", "invalid_field", "invalid_field", "j3",
            ]  # fmt: skip
            assert result.items[0]["errors"][0]["field"] == "quue"
        [none, _] = run_both(handler, lambda client: client.enqueue_many(["x"]))
        assert (none.accepted, none.rejected) == (0, 1)

    async def test_an_asynchronous_generator_brings_them(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(http_async, "BULK_LINES", 2)
        sizes: list[int] = []

        def handler(request: httpx.Request) -> httpx.Response:
            count = request.content.count(b"\n") + 1
            sizes.append(count)
            items = [{"index": number, "status": "accepted", "id": "j"} for number in range(count)]
            return httpx.Response(200, json={"accepted": count, "rejected": 0, "items": items})

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for _ in range(5):
                yield {"type": "t"}

        async with AsyncClient(SERVER, transport=httpx.MockTransport(handler)) as client:
            result = await client.enqueue_many(requests())
        assert (result.accepted, [item["index"] for item in result.items]) == (5, [0, 1, 2, 3, 4])
        assert sizes == [2, 2, 1]


class TestStream:
    def test_lines_are_whole_whatever_the_chunks(self):
        def handler(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=iter([b"one\ntw", b"o\nthr", b"ee"]))

        with Client(SERVER, transport=httpx.MockTransport(handler)) as client:
            assert list(client.stream_lines(Call("GET", "/x"))) == [b"one", b"two", b"three"]

    def test_its_errors_are_the_servers(self):
        transport = httpx.MockTransport(Server(problem(404, "not_found")))
        with Client(SERVER, transport=transport) as client, pytest.raises(errors.NotFound):
            next(client.stream_lines(Call("GET", "/x")))

    def test_a_server_that_is_not_there_is_told(self):
        transport = httpx.MockTransport(Server(httpx.ConnectError("refused")))
        with Client(SERVER, transport=transport) as client, pytest.raises(errors.ServerUnreachable):
            next(client.stream_lines(Call("GET", "/x")))


async def test_without_an_address_the_environments_server_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_SERVER", "http://elsewhere:1/")
    async with AsyncClient() as client:
        assert client.server == "http://elsewhere:1"
    with Client() as client, Client("http://given:2") as given:
        assert (client.server, given.server) == ("http://elsewhere:1", "http://given:2")
    monkeypatch.delenv("PENSTOCK_SERVER")
    async with AsyncClient() as client:
        assert client.server == "http://127.0.0.1:8700"
