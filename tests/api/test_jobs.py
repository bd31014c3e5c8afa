"""Putting jobs in one by one, and reading them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.api.app import create_app
from penstock.api.deps import ApiOptions
from penstock.log.memory import Fault
from penstock.schemas.errors import ReadBehind
from penstock.schemas.ids import partition_of
from tests.api.harness import Bench, bench, break_log, mend_log

PROBLEM = "application/problem+json"


async def test_a_posted_job_is_answered_whole_and_read_back_alike(api: Bench) -> None:
    body = {
        "type": "resize",
        "queue": "images",
        "priority": "high",
        "payload": {"width": 200, "ratio": 1.0},
        "tags": ["a", "b"],
        "metadata": {"user": "ü"},
        "timeout_ms": 5_000,
        "max_attempts": 3,
        "backoff": {"kind": "fixed", "base_ms": 10},
    }
    answer = await api.http.post("/api/v1/jobs", json=body)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert answer.headers["penstock-position"] == job["position"]
    assert (job["state"], job["attempt"], job["max_attempts"]) == ("ready", 0, 3)
    for name in ("type", "queue", "priority", "payload", "tags", "metadata", "timeout_ms"):
        assert job[name] == body[name]
    assert job["backoff"] == {"kind": "fixed", "base_ms": 10, "factor": 2.0, "max_ms": 600_000, "jitter": 0.1}
    assert job["created_at"].endswith("Z")
    # What was computed without asking is what the read model says.
    assert await api.job(job["id"], answer.headers["penstock-position"]) == job


async def test_a_pretty_printed_payload_is_one_line_on_the_log(api: Bench) -> None:
    body = json.dumps({"type": "noop", "payload": {"text": "a\nb", "deep": [1, {"x": None}]}}, indent=2)
    answer = await api.http.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.json()["payload"] == {"text": "a\nb", "deep": [1, {"x": None}]}
    job = await api.job(answer.json()["id"], answer.headers["penstock-position"])
    assert job["payload"] == {"text": "a\nb", "deep": [1, {"x": None}]}


@pytest.mark.parametrize(
    "payload", [None, 0, -1.5, "", "ü\u2028", [], {}, [[]], True, 12345678901234567890123]
)
async def test_a_payload_is_any_json(api: Bench, payload: Any) -> None:
    job = await api.enqueue(payload=payload)
    assert (await api.job(job["id"]))["payload"] == payload


async def test_a_delayed_job_is_scheduled(api: Bench) -> None:
    answer = await api.http.post("/api/v1/jobs", json={"type": "noop", "delay_ms": 60_000})
    assert answer.json()["state"] == "scheduled"
    answer = await api.http.post("/api/v1/jobs", json={"type": "noop", "run_at": "2099-01-01T00:00:00+02:00"})
    assert answer.json()["scheduled_at"] == "2098-12-31T22:00:00.000Z"


async def test_the_same_id_and_body_is_the_first_job_and_another_body_is_refused(api: Bench) -> None:
    first = await api.http.post(
        "/api/v1/jobs", json={"type": "noop", "id": "order-1", "payload": {"b": 1, "a": 2}}
    )
    assert first.status_code == 201
    # Another order of the fields is the same request.
    again = await api.http.post(
        "/api/v1/jobs", json={"payload": {"a": 2, "b": 1}, "id": "order-1", "type": "noop"}
    )
    assert again.status_code == 200
    assert again.json() == first.json()
    other = await api.http.post(
        "/api/v1/jobs", json={"type": "noop", "id": "order-1", "payload": {"b": 2, "a": 2}}
    )
    assert other.status_code == 409
    assert other.headers["content-type"] == PROBLEM
    assert (other.json()["code"], other.json()["job_id"]) == ("id_in_use", "order-1")


async def test_a_write_whose_fate_is_unknown_tells_the_id_with_which_a_repeat_is_no_second_job(
    api: Bench,
) -> None:
    break_log(api, Fault.WRITTEN_UNKNOWN)
    answer = await api.http.post("/api/v1/jobs", json={"type": "noop", "payload": 7})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    problem = answer.json()
    assert problem["code"] == "append_unknown"
    mend_log(api)
    again = await api.http.post("/api/v1/jobs", json={"type": "noop", "payload": 7, "id": problem["job_id"]})
    assert again.status_code == 200
    assert again.json()["id"] == problem["job_id"]


async def test_a_log_that_is_away_is_503_with_the_id(api: Bench) -> None:
    break_log(api, Fault.REFUSED)
    answer = await api.http.post("/api/v1/jobs", json={"type": "noop", "id": "mine"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM)
    assert answer.json()["job_id"] == "mine"
    assert answer.headers["retry-after"] == "1"


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["type"]),
    ({"type": "no spaces"}, ["type"]),
    ({"type": "x", "colour": "red"}, ["colour"]),
    ({"type": "x", "priority": "urgent"}, ["priority"]),
    ({"type": "x", "max_attempts": 0, "queue": 3, "nope": 1}, ["max_attempts", "queue", "nope"]),
    ({"type": "x", "tags": ["ok", "not ok"]}, ["tags[1]"]),
    ({"type": "x", "backoff": {"kind": "sometimes"}}, ["backoff.kind"]),
    ({"type": "x", "backoff": {"jitters": 1}}, ["backoff.jitters"]),
    ({"type": "x", "run_at": "tomorrow"}, ["run_at"]),
    ({"type": "x", "run_at": "2030-01-01T00:00:00"}, ["run_at"]),
    ({"type": "x", "run_at": "1960-01-01T00:00:00Z"}, ["run_at"]),
    ({"type": "x", "run_at": "2030-01-01T00:00:00Z", "delay_ms": 1}, ["delay_ms"]),
    ({"type": "x", "delay_ms": -1}, ["delay_ms"]),
    ({"type": "x", "id": "a b"}, ["id"]),
    ({"type": "x", "metadata": [1]}, ["metadata"]),
]


@pytest.mark.parametrize(("body", "fields"), BAD, ids=[",".join(fields) for _, fields in BAD])
async def test_bad_values_are_422_and_every_wrong_field_is_named(
    api: Bench, body: dict[str, Any], fields: list[str]
) -> None:
    answer = await api.http.post("/api/v1/jobs", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    problem = answer.json()
    assert problem["code"] == "invalid_field"
    assert sorted(error["field"] for error in problem["errors"]) == sorted(fields)
    for error in problem["errors"]:
        assert error["field"].partition("[")[0].partition(".")[0] in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"type":"x",}',
        b'{"type": "\xff"}',
        b'{"type": "x", "payload": ' + b"[" * 80 + b"]" * 80 + b"}",
    ],
)
async def test_what_is_not_json_is_400(api: Bench, body: bytes) -> None:
    answer = await api.http.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"),
    [
        ("POST", "/operations", {"action": "x", "ids": ["a"]}, "retry, cancel, delete"),
        ("POST", "/jobs/search", {"sort": "x"}, "created_at, -created_at"),
        ("POST", "/jobs/search", {"filter": {"priority": ["x"]}}, "critical, high, normal, low"),
        ("GET", "/jobs/a?until=x", None, "finished, changed"),
        ("POST", "/jobs", {"type": "t", "priority": "x"}, "critical, high, normal, low"),
    ],
)
async def test_what_is_allowed_is_told_where_it_is_little(
    api: Bench, method: str, path: str, body: Any, allowed: str
) -> None:
    answer = await api.http.request(method, f"/api/v1{path}", json=body)
    assert answer.status_code == 422
    assert f"; allowed are {allowed}" in answer.json()["detail"]


async def test_half_of_a_character_is_called_so_alone_and_in_bulk(api: Bench) -> None:
    job = rb'{"type":"x","payload":"\ud800"}'
    alone = await api.http.post("/api/v1/jobs", content=job)
    array = await api.http.post("/api/v1/jobs/bulk", content=b"[%s]" % job)
    lines = await api.http.post(
        "/api/v1/jobs/bulk", content=job, headers={"content-type": "application/x-ndjson"}
    )
    told = [alone.json()["detail"], array.json()["detail"], lines.json()["items"][0]["message"]]
    assert [alone.status_code, array.status_code, lines.status_code] == [400, 400, 200]
    assert all(message.startswith(r"the body has \ud800 without the other half") for message in told)


async def test_another_json_than_an_object_is_422(api: Bench) -> None:
    answer = await api.http.post("/api/v1/jobs", json=[1])
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "$")


async def test_a_payload_beyond_the_limit_is_413(tmp_path: Path) -> None:
    async with bench(tmp_path, options=ApiOptions(max_payload_bytes=1_000)) as api:
        fits = await api.http.post("/api/v1/jobs", json={"type": "x", "payload": "x" * 998})
        assert fits.status_code == 201
        beyond = await api.http.post("/api/v1/jobs", json={"type": "x", "payload": "x" * 999})
        assert (beyond.status_code, beyond.json()["code"]) == (413, "too_large")

        async def endless() -> Any:
            for _ in range(1_000):
                yield b'"' + b"x" * 1_000

        # Without a length that could be believed, it is counted while it comes.
        streamed = await api.http.post(
            "/api/v1/jobs", content=endless(), headers={"content-type": "application/json"}
        )
        assert streamed.status_code == 413


async def test_another_content_type_is_415(api: Bench) -> None:
    answer = await api.http.post("/api/v1/jobs", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_unknown_jobs_routes_and_methods_are_problems_too(api: Bench) -> None:
    for method, path, status, code in [
        ("GET", "/api/v1/jobs/nobody", 404, "job_not_found"),
        ("GET", "/api/v1/jobs/nobody/history", 404, "job_not_found"),
        ("GET", "/api/v2/jobs", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("DELETE", "/api/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/api/v1/jobs/bulk/history/x", 404, "not_found"),
    ]:
        answer = await api.http.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), path
        assert answer.json()["code"] == code
        assert answer.json()["status"] == status
        assert answer.json()["instance"] == path
    assert set(answer.json()) >= {"type", "title", "detail", "request_id"}


async def test_a_request_id_is_kept_or_made(api: Bench) -> None:
    answer = await api.http.get("/api/v1/nothing", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "abc-1"
    answer = await api.http.get("/healthz", headers={"x-request-id": "no\tgood"})
    assert len(answer.headers["x-request-id"]) == 26


async def test_history_items_carry_the_events_own_fields(api: Bench) -> None:
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    posted = await api.http.post(
        "/api/v1/jobs", json={"type": "noop", "id": "h1", "payload": [1.50]}, headers=headers
    )
    await api.http.post("/api/v1/jobs", json={"type": "other", "id": "h1"})
    answer = await api.http.get("/api/v1/jobs/h1/history")
    history = answer.json()
    first, second = history["items"]
    assert (first["type"], first["actor"], first["outcome"]) == ("Enqueued", "api", "applied")
    assert first["position"] == posted.json()["position"]
    assert first["at"] == posted.json()["created_at"]
    assert (first["job_type"], first["payload"], first["trace"]) == ("noop", [1.5], headers["traceparent"])
    assert "refusal" not in first
    assert (second["outcome"], history["refused"]) == ("conflict", 1)
    assert second["refusal"]


async def test_lists_filter_page_and_count(api: Bench) -> None:
    for number in range(7):
        await api.enqueue(queue="a" if number % 2 else "b", type="noop" if number < 5 else "other")
    first = (await api.http.get("/api/v1/jobs", params={"limit": 3})).json()
    assert (len(first["items"]), first["total"]) == (3, 7)
    second = (await api.http.get("/api/v1/jobs", params={"limit": 10, "cursor": first["next_cursor"]})).json()
    assert (len(second["items"]), second["next_cursor"]) == (4, None)
    ids = [job["id"] for job in first["items"] + second["items"]]
    assert ids == sorted(ids, reverse=True)
    found = (await api.http.get("/api/v1/jobs?state=ready&queue=a&type=noop&limit=&cursor=")).json()
    assert found["total"] == 2


@pytest.mark.parametrize(
    ("query", "field"),
    [("status=ready", "status"), ("state=nonsense", "state"), ("limit=0", "limit"), ("limit=x", "limit"),
     ("limit=1&limit=2", "limit"), ("after=zzz", None), ("after=99:1:1", "after"), ("cursor=zzz", None)],
)  # fmt: skip
async def test_parameters_that_are_unknown_or_bad_are_422(api: Bench, query: str, field: str | None) -> None:
    answer = await api.http.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 422
    if field:
        assert answer.json()["errors"][0]["field"] == field
    else:
        assert answer.json()["code"] == "invalid_cursor"


async def test_a_read_that_is_ahead_of_the_read_model_is_503_with_the_lag(api: Bench) -> None:
    partition = partition_of("x", api.topics.partitions)
    token = f"{partition}:100:0"
    answer = await api.http.get("/api/v1/jobs/x?wait_ms=10", headers={"penstock-position": token})
    assert (answer.status_code, answer.json()["code"]) == (503, "read_behind")
    assert answer.json()["behind"][0]["lag_records"] == 101
    assert answer.headers["retry-after"]


async def test_browsers_may_call_from_configured_origins_only(tmp_path: Path, api: Bench) -> None:
    origin = {"origin": "https://ops.example", "access-control-request-method": "POST"}
    assert (await api.http.options("/api/v1/jobs", headers=origin)).status_code == 405
    async with bench(
        tmp_path / "cors", options=ApiOptions(cors_origins=("https://ops.example",))
    ) as open_api:
        preflight = await open_api.http.options("/api/v1/jobs", headers=origin)
        assert preflight.headers["access-control-allow-origin"] == "https://ops.example"
        answer = await open_api.http.get("/api/v1/jobs", headers=origin)
        assert "Penstock-Position" in answer.headers["access-control-expose-headers"]
        other = await open_api.http.get("/api/v1/jobs", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_backoff_that_contradicts_itself_names_its_field(api: Bench) -> None:
    backoff = {"kind": "fixed", "base_ms": 700_000}
    job = (await api.http.post("/api/v1/jobs", json={"type": "noop", "backoff": backoff})).json()
    assert (job["backoff"]["base_ms"], job["backoff"]["max_ms"]) == (700_000, 700_000)
    refused = await api.http.post("/api/v1/jobs", json={"type": "noop", "backoff": {**backoff, "max_ms": 5}})
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == ["backoff.base_ms"]


async def test_a_bug_is_a_500_that_tells_no_secrets(api: Bench) -> None:
    class Broken:
        async def job(self, *_: object) -> None:
            raise RuntimeError("secret")

    api.deps.read_model = Broken()
    answer = await api.http.get("/api/v1/jobs/x", headers={"x-request-id": "r1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "r1"


@pytest.mark.parametrize("address", ["/api/v1/jobs", "/api/v1/jobs/bulk"])
async def test_a_bug_in_what_is_served_directly_is_the_same_500(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    async with bench(tmp_path, options=ApiOptions(cors_origins=("https://ops.example",))) as api:

        def broken() -> int:
            raise RuntimeError("secret")

        api.deps.now_ms = broken
        job = {"type": "noop"}
        headers = {"x-request-id": "r1", "origin": "https://ops.example"}
        answer = await api.http.post(address, json=[job] if "bulk" in address else job, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert "secret" in caplog.text
        # A browser may read the error too, and knows the request by one id.
        assert answer.headers["access-control-allow-origin"] == "https://ops.example"
        assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]] == ["r1"]
        counted = (await api.http.get("/metrics")).text
        assert f'penstock_http_requests_total{{method="POST",route="{address}",status="500"}} 1.0' in counted


async def test_a_caller_that_leaves_in_the_middle_of_its_body_is_counted(api: Bench) -> None:
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/v1/jobs", "headers": [], "query_string": b""}
    await create_app(api.deps)(scope, receive, send)
    assert [message.get("status") for message in sent] == [400, None]
    assert (await api.http.get("/api/v1/counts")).json()["total"] == 0


async def test_a_log_that_does_not_answer_in_time_is_503_with_the_id(tmp_path: Path) -> None:
    async with bench(tmp_path, options=ApiOptions(append_wait_ms=20), give_up_ms=600) as api:
        break_log(api, Fault.LOST_UNKNOWN)
        answer = await api.http.post("/api/v1/jobs", json={"type": "noop"})
        assert (answer.status_code, answer.json()["code"]) == (503, "append_unknown")
        assert answer.json()["job_id"]
        mend_log(api)


async def test_a_given_id_whose_verdict_is_late_is_503_with_the_id(api: Bench) -> None:
    real = api.deps.read_model

    class Late:
        async def verdicts(self, *_: object) -> None:
            raise ReadBehind(behind=[])

    api.deps.read_model = Late()
    answer = await api.http.post("/api/v1/jobs", json={"type": "noop", "id": "late-1"})
    assert (answer.status_code, answer.json()["code"], answer.json()["job_id"]) == (
        503,
        "read_behind",
        "late-1",
    )
    bulk = (
        await api.http.post("/api/v1/jobs/bulk", json=[{"type": "noop", "id": "late-2"}, {"type": "noop"}])
    ).json()
    assert [(item["status"], item.get("code")) for item in bulk["items"]] == [
        ("unknown", "read_behind"), ("accepted", None),
    ]  # fmt: skip
    # It was durable all the same.
    api.deps.read_model = real
    again = await api.http.post("/api/v1/jobs", json={"type": "noop", "id": "late-1"})
    assert again.status_code == 200
