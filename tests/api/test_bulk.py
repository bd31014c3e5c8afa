"""Many jobs in one call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.api.deps import ApiOptions
from penstock.log.memory import Fault
from penstock.schemas.ids import partition_of
from tests.api.harness import Bench, bench, break_log, mend_log

NDJSON = {"content-type": "application/x-ndjson"}


def ndjson(*items: Any) -> bytes:
    return b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in items)


async def test_ten_thousand_jobs_in_one_array_are_all_there(api: Bench) -> None:
    answer = await api.http.post(
        "/api/v1/jobs/bulk", json=[{"type": "noop", "payload": n} for n in range(10_000)]
    )
    assert answer.status_code == 200
    body = answer.json()
    assert (body["accepted"], body["rejected"], body["unknown"]) == (10_000, 0, 0)
    assert [item["index"] for item in body["items"]] == list(range(10_000))
    assert len({item["id"] for item in body["items"]}) == 10_000
    # The token covers every partition that was written to.
    position = answer.headers["penstock-position"]
    assert position.count(",") == api.topics.partitions - 1
    counts = await api.http.get("/api/v1/counts", headers={"penstock-position": position})
    assert counts.json()["total"] == 10_000
    last = await api.job(body["items"][-1]["id"])
    assert last["payload"] == 9_999


async def test_one_bad_item_leaves_the_others_alone(api: Bench) -> None:
    body = ndjson(
        {"type": "noop"}, b"{", b"", {"type": "noop", "colour": 1, "queue": " "}, b"  ", {"type": "noop"}
    )
    answer = await api.http.post("/api/v1/jobs/bulk", content=body, headers=NDJSON)
    found = answer.json()
    assert (found["accepted"], found["rejected"]) == (2, 2)
    statuses = [(item["status"], item.get("code", "")) for item in found["items"]]
    assert statuses == [
        ("accepted", ""), ("rejected", "malformed_json"), ("rejected", "invalid_field"), ("accepted", ""),
    ]  # fmt: skip
    assert {error["field"] for error in found["items"][2]["errors"]} == {"colour", "queue"}
    assert "id" not in found["items"][1]


async def test_lines_may_be_cut_anywhere_on_their_way(api: Bench) -> None:
    body = ndjson(*({"type": "noop", "payload": "ü" * n} for n in range(40))) + b"\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    answer = await api.http.post("/api/v1/jobs/bulk", content=pieces(), headers=NDJSON)
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (40, 0)


async def test_given_ids_are_settled_one_by_one(api: Bench) -> None:
    await api.enqueue(id="old", payload=1)
    items = [
        {"type": "noop", "id": "old", "payload": 1},
        {"type": "noop", "id": "old", "payload": 2},
        {"type": "noop", "id": "new", "payload": 1},
        {"type": "noop", "id": "new", "payload": 1},
        {"type": "noop", "id": "new", "payload": 3},
    ]
    found = (await api.http.post("/api/v1/jobs/bulk", json=items)).json()
    assert (found["accepted"], found["rejected"]) == (3, 2)
    assert [(item["status"], item.get("code", "")) for item in found["items"]] == [
        ("accepted", "duplicate"), ("rejected", "id_in_use"), ("accepted", ""),
        ("accepted", "duplicate"), ("rejected", "id_in_use"),
    ]  # fmt: skip


async def test_a_partition_that_is_away_makes_only_its_own_items_unknown(api: Bench) -> None:
    break_log(api, Fault.WRITTEN_UNKNOWN, [1])
    items = [{"type": "noop", "id": f"job-{n}"} for n in range(40)]
    answer = await api.http.post("/api/v1/jobs/bulk", json=items)
    assert answer.status_code == 200
    found = answer.json()
    assert found["unknown"] > 0
    assert found["accepted"] + found["unknown"] == 40
    for item in found["items"]:
        hit = partition_of(item["id"], api.topics.partitions) == 1
        assert item["status"] == ("unknown" if hit else "accepted")
    mend_log(api)
    again = (await api.http.post("/api/v1/jobs/bulk", json=items)).json()
    assert (again["accepted"], {item.get("code") for item in again["items"]}) == (40, {"duplicate"})


async def test_a_log_that_takes_nothing_is_503_with_every_id(api: Bench) -> None:
    break_log(api, Fault.REFUSED)
    answer = await api.http.post(
        "/api/v1/jobs/bulk", json=[{"type": "noop"}, {"type": "no noop"}, {"type": "noop"}]
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    items = answer.json()["items"]
    assert [item["status"] for item in items] == ["unknown", "rejected", "unknown"]
    assert all(item["id"] for item in items if item["status"] == "unknown")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"[", 400, "malformed_json"), (b"{}", 422, "invalid_field"), (b"[\xff]", 400, "malformed_json")],
)
async def test_a_body_that_is_no_array_is_refused_whole(
    api: Bench, body: bytes, status: int, code: str
) -> None:
    answer = await api.http.post(
        "/api/v1/jobs/bulk", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_bad_items_anywhere_leave_the_many_others_alone(api: Bench) -> None:
    bad = {
        0: {"type": "no noop"},
        700: 7,
        1_499: {"type": "noop", "run_at": "2030-01-01T00:00:00Z", "delay_ms": 1},
    }
    items = [bad.get(number, {"type": "noop", "payload": number}) for number in range(1_500)]
    answer = await api.http.post("/api/v1/jobs/bulk", json=items)
    found = answer.json()
    assert (found["accepted"], found["rejected"]) == (1_497, 3)
    assert {item["index"] for item in found["items"] if item["status"] == "rejected"} == set(bad)
    assert [error["field"] for error in found["items"][1_499]["errors"]] == ["delay_ms"]
    job = await api.job(found["items"][1_498]["id"], answer.headers["penstock-position"])
    assert job["payload"] == 1_498


async def test_an_array_that_is_nested_too_deep_is_refused_whole(api: Bench) -> None:
    json_body = {"content-type": "application/json"}
    for depth, status in ((60, 200), (63, 400), (100_000, 400)):
        # Long enough not to pass for shallow at a glance.
        item = b'{"type":"noop","payload":%s"%s"%s}' % (b"[" * depth, b"x" * 200, b"]" * depth)
        body = b"[" + item + b',{"type":"noop"}]'
        answer = await api.http.post("/api/v1/jobs/bulk", content=body, headers=json_body)
        assert answer.status_code == status
        if status == 400:
            assert answer.json()["code"] == "malformed_json"
    counts = await api.http.get("/api/v1/counts")
    assert counts.json()["total"] <= 2


@pytest.mark.parametrize("headers", [{"content-type": "application/json"}, NDJSON])
async def test_large_items_are_taken_in_smaller_slices(api: Bench, headers: dict[str, str]) -> None:
    """More bytes than are worked on without a break, some in items that fill a slice alone."""
    sizes = [60_000, 10, 60_000, 1, *[20_000] * 60]
    items = [json.dumps({"type": "noop", "payload": "x" * size}).encode() for size in sizes]
    body = b"\n".join(items) if headers is NDJSON else b"[" + b",".join(items) + b"]"
    found = (await api.http.post("/api/v1/jobs/bulk", content=body, headers=headers)).json()
    assert found["accepted"] == len(sizes)
    assert [item["index"] for item in found["items"]] == list(range(len(sizes)))


async def test_an_array_may_come_in_pieces(api: Bench) -> None:
    body = json.dumps([{"type": "noop", "payload": "ü" * n} for n in range(40)]).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    headers = {"content-type": "application/json"}
    answer = await api.http.post("/api/v1/jobs/bulk", content=pieces(), headers=headers)
    assert answer.json()["accepted"] == 40


async def test_an_empty_call_is_fine(api: Bench) -> None:
    answer = await api.http.post("/api/v1/jobs/bulk", json=[])
    assert answer.json() == {"accepted": 0, "rejected": 0, "unknown": 0, "items": []}
    assert "penstock-position" not in answer.headers


async def test_limits_of_items_and_bytes(tmp_path: Path) -> None:
    options = ApiOptions(bulk_max_items=3, bulk_max_bytes=120_000, max_payload_bytes=1_000)
    async with bench(tmp_path, options=options) as api:
        four = [{"type": "noop"}] * 4
        assert (await api.http.post("/api/v1/jobs/bulk", json=four)).status_code == 413
        # A stream's items are taken before anybody knows how many will come.
        streamed = (await api.http.post("/api/v1/jobs/bulk", content=ndjson(*four), headers=NDJSON)).json()
        assert (streamed["accepted"], streamed["items"][3]["code"]) == (3, "too_large")
        large = {"type": "noop", "payload": "x" * 1_000}
        found = (await api.http.post("/api/v1/jobs/bulk", json=[large, {"type": "noop"}])).json()
        assert [(item["status"], item.get("code")) for item in found["items"]] == [
            ("rejected", "too_large"), ("accepted", None),
        ]  # fmt: skip
        known = await api.http.post("/api/v1/jobs/bulk", content=b"x" * 120_001, headers=NDJSON)
        assert known.status_code == 413

        async def endless() -> AsyncIterator[bytes]:
            yield ndjson({"type": "noop"}) + b"\n"
            for _ in range(200):
                yield b"x" * 1_000

        cut = await api.http.post("/api/v1/jobs/bulk", content=endless(), headers=NDJSON)
        assert cut.status_code == 200
        first, *_, last = cut.json()["items"]
        assert (first["status"], last["code"]) == ("accepted", "too_large")
        assert "not read" in last["message"]
