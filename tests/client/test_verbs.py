"""Verbs by both clients: what is sent, under one key however often, and the table that the API reads too."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from penstock.client import calls
from penstock.client.verbs import VERBS
from penstock.schemas import events as ev
from penstock.schemas.changes import Changes, decode_changes
from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.errors import Conflict, JobNotFound
from penstock.schemas.ids import home_of, home_of_key
from tests.client.test_http import Server, job, problem, run_both

ABOUT: dict[str, Any] = {"id": "x", "job": "j", "of": "e", "not_after": 9}


@pytest.mark.parametrize(
    ("use", "method", "path", "body"),
    [
        (lambda client: client.cancel("a", "why"), "POST", "/jobs/a/cancel", {"reason": "why"}),
        (lambda client: client.cancel("a"), "POST", "/jobs/a/cancel", {}),
        (lambda client: client.retry("a"), "POST", "/jobs/a/retry", {}),
        (lambda client: client.retry("a", 3), "POST", "/jobs/a/retry", {"attempts": 3}),
        (
            lambda client: client.reschedule("a", run_at="2030-01-01T00:00:00Z"),
            "POST", "/jobs/a/reschedule", {"run_at": "2030-01-01T00:00:00Z"},
        ),
        (lambda client: client.reschedule("a", delay_ms=0), "POST", "/jobs/a/reschedule", {"delay_ms": 0}),
        (lambda client: client.prioritise("a", "high"), "POST", "/jobs/a/priority", {"priority": "high"}),
        (lambda client: client.move("a", queue="q"), "POST", "/jobs/a/move", {"queue": "q"}),
        (lambda client: client.hold("a"), "POST", "/jobs/a/hold", {}),
        (lambda client: client.unhold("a/b"), "POST", "/jobs/a%2Fb/unhold", {}),
        (lambda client: client.delete("a"), "DELETE", "/jobs/a", None),
        (lambda client: client.clone("a", id="b"), "POST", "/jobs/a/clone", {"id": "b"}),
        (
            lambda client: client.clone("a", id="b", type="t", payload=[1], priority="low"),
            "POST", "/jobs/a/clone", {"id": "b", "type": "t", "payload": [1], "priority": "low"},
        ),
        (
            lambda client: client.clone("a", id="b", payload=None, batch=None, tags=None, run_at=None, unique=None),
            "POST", "/jobs/a/clone", {"id": "b", "payload": None, "batch": None, "tags": None},
        ),
    ],
)  # fmt: skip
def test_what_is_sent(use: Callable[[Any], Any], method: str, path: str, body: Any) -> None:
    server = Server(job())
    assert [one["id"] for one in run_both(server, use)] == ["a", "a"]
    for request in server.requests:
        assert (request.method, request.url.raw_path.decode()) == (method, f"/api/v1{path}")
        assert (msgspec.json.decode(request.content) if request.content else None) == body


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_a_repeat_is_known_by_its_key(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_MS", 1)
    server = Server(httpx.ReadTimeout("slow"), problem(503, "append_unknown"), job(), job())
    run_both(server, lambda client: getattr(client, verb)("a"))
    *first, last = [request.headers["idempotency-key"] for request in server.requests]
    assert len(first) == 3
    assert len(set(first)) == 1
    assert last not in first


def test_a_clone_has_its_id_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_MS", 1)
    server = Server(problem(503, "log_unavailable"), job())
    run_both(server, lambda client: client.clone("a", concurrency_key="k"))
    assert server.bodies[0] == server.bodies[1]
    assert server.bodies[0]["id"].endswith("~k")


@pytest.mark.parametrize("key", [None, "acc 1"])
def test_a_clone_lives_where_the_concurrency_key_of_the_first_job_does(key: str | None) -> None:
    server = Server(job(concurrency_key=key))
    run_both(server, lambda client: client.clone("a"))
    for asked, cloned in (server.requests[:2], server.requests[2:]):
        assert (asked.method, cloned.method) == ("GET", "POST")
        body = json.loads(cloned.content)
        assert body.get("concurrency_key") == key
        assert home_of(body["id"]) == (body["id"] if key is None else home_of_key(key))


def test_a_clone_without_the_concurrency_key_lives_by_itself() -> None:
    server = Server(job(concurrency_key="k"))
    run_both(server, lambda client: client.clone("a", id=None, concurrency_key=None))
    assert [request.method for request in server.requests] == ["POST", "POST"]
    for body in server.bodies:
        assert body == {"id": home_of(body["id"]), "concurrency_key": None}


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(409, "conflict", Conflict), (404, "job_deleted", JobNotFound)]
)
def test_refusals_are_errors(status: int, code: str, kind: type[Exception]) -> None:
    found = run_both(Server(problem(status, code, job_state="dead")), lambda client: client.hold("a"))
    assert all(isinstance(error, kind) for error in found)
    assert found[0].details["job_state"] == "dead"


def test_a_read_sees_the_change() -> None:
    server = Server(job())

    def use(client: Any) -> Any:
        client.cancel("a")
        return client.get("a")

    server.answers[:] = [job(), job()]
    with calls_of(server) as client:
        use(client)
    assert server.requests[-1].headers["penstock-position"] == "1:5:0"


def calls_of(server: Server) -> Any:
    from penstock.client.http import Client

    return Client("http://penstock.test", transport=httpx.MockTransport(server))


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_becomes_a_line_that_can_be_read(name: str) -> None:
    bodies: dict[str, Any] = {
        "reschedule": {"run_at": "2030-01-01T00:00:00Z"}, "priority": {"priority": "low"}, "move": {"pool": "p"},
    }  # fmt: skip
    verb = VERBS[name]
    assert verb.needs_body == (name in bodies)
    event = verb.event(**verb.own(msgspec.convert(bodies.get(name, {}), verb.request)), **ABOUT)
    assert isinstance(decode_line(encode_line(event)), type(event))
    if isinstance(event, ev.Edited):
        changes = decode_changes(event.changes)
        assert changes in (
            Changes(run_at=1_893_456_000_000), Changes(priority="low"), Changes(pool="p"),
        )  # fmt: skip


def test_a_result_is_waited_for() -> None:
    server = Server(job(state="active"), job(state="succeeded"), httpx.Response(200, json=[1]))
    assert run_both(server, lambda client: client.result("a", 30_000))[0] == [1]
    asked = [(request.url.path, request.url.params.get("until")) for request in server.requests[:3]]
    assert asked == [
        ("/api/v1/jobs/a", "finished"),
        ("/api/v1/jobs/a", "finished"),
        ("/api/v1/jobs/a/result", None),
    ]
