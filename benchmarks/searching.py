"""How long searches and questions about the past take with many jobs in the read model, over HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx

from benchmarks.alone import p50_p99
from benchmarks.ours import Penstock
from benchmarks.report import Table, millis
from benchmarks.side_by_side import Plan
from tests.acceptance.processes import wait_for
from tests.kafka_broker import Broker

SEARCHES = 100
"""Of each kind, each for another job."""

COUNTS = 3
LONGEST_S = 20.0
"""A kind that takes long is asked less often."""

SLOWEST_PER_S = 500
"""Jobs that the text index takes in, at the least."""


def search(broker: Broker, plan: Plan) -> Iterator[Table]:
    """Jobs that wait, each with an address of its own in the payload and one of a thousand tags."""
    ours = Penstock(broker)
    jobs = plan.large
    with contextlib.closing(ours), ours.round():
        began = time.monotonic()
        ours.bulk(jobs, "searched")
        at = datetime.now(UTC).isoformat()
        readable_s = time.monotonic() - began
        wait_for("texts are indexed", lambda: _indexed(ours), 60 + jobs / SLOWEST_PER_S)
        indexed_s = time.monotonic() - began
        print(
            f"  {jobs:,} jobs readable after {readable_s:.0f} s, indexed after {indexed_s:.0f} s", flush=True
        )
        table = Table(
            "search",
            f"Searches and the past with {jobs:,} jobs in the read model, over HTTP",
            ("p50, ms", "p99, ms"),
            f"Readable {readable_s:.0f} s after the first was put in, and in the text index after {indexed_s:.0f} s.",
        )
        with httpx.Client(base_url=ours.server, timeout=300) as client:
            for name, requests in _kinds(client, jobs, at).items():
                figures = p50_p99(_timed(client, requests))
                table.add(name, map(millis, figures), figures)
    yield table


def _indexed(ours: Penstock) -> bool:
    items = httpx.get(f"{ours.server}/api/v1/partitions", timeout=60).json()["items"]
    return all(item["text_indexed"] and not item["unindexed_jobs"] for item in items)


def _kinds(client: httpx.Client, jobs: int, at: str) -> dict[str, list[httpx.Request]]:
    """Requests by what they are."""
    numbers = [number * jobs // SEARCHES for number in range(SEARCHES)]
    groups = [f"group-{number:03d}" for number in range(SEARCHES)]

    def asked(filter: dict[str, Any], **more: Any) -> httpx.Request:
        return client.build_request("POST", "/api/v1/jobs/search", json={"filter": filter, **more})

    return {
        "part of a word that one job has": [asked({"text": f"user{number}@"}) for number in numbers],
        "part of a payload that one job has": [
            asked({"payload_contains": f'"number": {number},'}) for number in numbers
        ],
        "a word that one job in a thousand has": [asked({"text": group}) for group in groups],
        "a word that all have": [asked({"text": "example.org"}) for _ in numbers],
        "a word that none has": [asked({"text": f"nobody{number}"}) for number in numbers],
        "a tag": [asked({"tags": group}) for group in groups],
        "with errors (there are none)": [asked({"has_errors": True}) for _ in numbers],
        "one priority of two": [asked({"priority": "high"}) for _ in numbers],
        "list of 50 as it was": [asked({}, at=at) for _ in numbers],
        "counts as they were": [
            client.build_request("GET", "/api/v1/counts", params={"at": at}) for _ in range(COUNTS)
        ],
    }


def _timed(client: httpx.Client, requests: list[httpx.Request]) -> list[float]:
    times: list[float] = []
    until = time.monotonic() + LONGEST_S
    for request in requests:
        began = time.perf_counter()
        client.send(request).raise_for_status()
        times.append((time.perf_counter() - began) * 1_000)
        if time.monotonic() > until:
            break
    return times
