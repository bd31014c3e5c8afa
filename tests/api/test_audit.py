"""The audit export over HTTP and the list of quarantined lines."""

from __future__ import annotations

import base64
import json

import pytest

from penstock.state.audit import verify_export
from tests.api.harness import Bench


async def garbage(api: Bench, partition: int = 2) -> str:
    """A line that nobody can decode; its position token."""
    place = await api.log.append(api.topics.jobs, partition, b"\xff garbage")
    return f"{partition}:{place.offset}:0"


async def test_an_export_verifies_and_a_changed_one_does_not(api: Bench) -> None:
    for number in range(20):
        await api.enqueue(payload=number)
    await garbage(api)
    answer = await api.http.get("/api/v1/audit/export")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = answer.content.splitlines()
    report = verify_export(lines)
    assert (report.ok, report.lines) == (True, 21)
    assert report.header is not None
    assert report.header.cluster_id == api.log.cluster_id
    changed = [line.replace(b'\\"payload\\":7', b'\\"payload\\":8') for line in lines]
    assert changed != lines
    assert not verify_export(changed).ok


async def test_an_export_of_one_partition_from_an_offset(api: Bench) -> None:
    for number in range(20):
        await api.enqueue(payload=number)
    bounds = await api.log.bounds(api.topics.jobs, 1)
    answer = await api.http.get(f"/api/v1/audit/export?partition=1&from={bounds.end - 1}")
    report = verify_export(answer.content.splitlines())
    assert (report.ok, report.lines) == (True, 1)
    assert report.header is not None
    assert report.header.ranges == {"1": (bounds.end - 1, bounds.end)}


@pytest.mark.parametrize("query", ["from=3", "partition=4", "partition=-1", "partition=x", "since=1"])
async def test_bad_ranges_are_422(api: Bench, query: str) -> None:
    assert (await api.http.get(f"/api/v1/audit/export?{query}")).status_code == 422


async def test_what_was_trimmed_cannot_be_exported(api: Bench) -> None:
    await garbage(api)
    await garbage(api)
    await api.log.truncate(api.topics.jobs, 2, 1)
    assert (await api.http.get("/api/v1/audit/export?partition=2&from=0")).status_code == 422
    assert verify_export((await api.http.get("/api/v1/audit/export")).content.splitlines()).ok


async def test_undecodable_lines_are_listed(api: Bench) -> None:
    token = await garbage(api)
    found = (await api.http.get("/api/v1/quarantine", params={"after": token})).json()
    [item] = found["items"]
    assert (item["position"], item["reason"]) == (token, "not_utf8")
    assert base64.b64decode(item["head"]) == b"\xff garbage"
    assert found["next_cursor"] is None


async def test_a_corrected_line_is_put_back_where_it_belongs(api: Bench) -> None:
    token = await garbage(api)
    line = json.dumps({"type": "Enqueued", "job": "mended", "job_type": "noop"})
    answer = await api.http.post(f"/api/v1/quarantine/{token}/redrive", content=line)
    assert answer.status_code == 201
    job = await api.job("mended", answer.json()["position"])
    assert job["state"] == "ready"


async def test_partitions_tell_their_digests(api: Bench) -> None:
    await api.enqueue()
    items = (await api.http.get("/api/v1/partitions")).json()["items"]
    assert [item["partition"] for item in items] == [0, 1, 2, 3]
    assert all(item["next_offset"] <= item["end_offset"] for item in items)
