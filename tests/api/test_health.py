"""Health, readiness, metrics, and who is alive."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.api.progress import ProgressWatch
from penstock.schemas.errors import LogUnavailable, ReadModelUnavailable
from penstock.schemas.messages import Heartbeat, Holding, encode_messages
from tests.api.harness import Bench
from tests.waiting import until


async def beat(api: Bench, worker: str = "w9", **fields: Any) -> None:
    heartbeat = Heartbeat(worker=worker, **({"incarnation": "i1", "seq": 1, "types": ("noop",)} | fields))
    partition = api.topics.reports_partition_of(worker)
    await api.log.append(api.topics.workers, partition, encode_messages([heartbeat]))


async def test_alive(api: Bench) -> None:
    answer = await api.http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


async def test_ready_tells_how_far_each_partition_is(api: Bench) -> None:
    job = await api.enqueue()
    answer = await api.http.get("/readyz")
    assert (answer.status_code, answer.json()["problems"]) == (200, [])
    partitions = answer.json()["partitions"]
    assert [item["partition"] for item in partitions] == [0, 1, 2, 3]
    home = partitions[int(job["position"].partition(":")[0])]
    assert (home["next_offset"], home["end_offset"], home["lag"]) == (1, 1, 0)


async def test_a_log_or_read_model_that_does_not_answer_is_unready(api: Bench) -> None:
    class Away:
        async def bounds(self, *_: object) -> None:
            raise LogUnavailable

        async def status(self) -> None:
            raise ReadModelUnavailable

        async def counts(self, *_: object, **__: object) -> None:
            raise ReadModelUnavailable

    log, read_model = api.deps.log, api.deps.read_model
    api.deps.log = Away()
    answer = await api.http.get("/readyz")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.json()["code"] == "not_ready"
    assert answer.json()["problems"] == ["the log: The log cannot be reached."]
    api.deps.log, api.deps.read_model = log, Away()
    problems = (await api.http.get("/readyz")).json()["problems"]
    assert problems == ["the read model: No projection process answers for this partition."]
    # Metrics still come.
    assert (await api.http.get("/metrics")).status_code == 200
    api.deps.read_model = read_model


async def test_a_partition_that_is_behind_and_does_not_move_is_unready(api: Bench) -> None:
    now_ms = 1_000_000
    api.deps.now_ms = lambda: now_ms
    real = api.deps.read_model

    class Stuck:
        async def status(self) -> list[Any]:
            statuses = await real.status()
            return [
                msgspec.structs.replace(status, end_offset=status.next_offset + 5) for status in statuses[:3]
            ]

    api.deps.read_model = Stuck()
    first = (await api.http.get("/readyz")).json()
    assert first["problems"] == ["no projection answers for partitions 3"]
    now_ms += 10_000
    problems = (await api.http.get("/readyz")).json()["problems"]
    assert problems[0] == "partition 0: nothing folded for 10000 ms and behind the log"
    assert len(problems) == 4


def test_progress_counts_as_life() -> None:
    watch = ProgressWatch()
    assert watch.stalled_ms(0, 5, 9, 0) == 0
    assert watch.stalled_ms(0, 5, 9, 700) == 700
    assert watch.stalled_ms(0, 6, 9, 900) == 0
    assert watch.stalled_ms(0, 6, 9, 1_000) == 100
    assert watch.stalled_ms(0, 6, 6, 2_000) == 0
    assert watch.stalled_ms(0, 6, 7, 2_500) == 500


async def test_counts_in_every_direction_and_what_nobody_handles(api: Bench) -> None:
    await api.enqueue(queue="a")
    await api.enqueue(queue="a", type="other")
    await api.enqueue(queue="b", pool="gpu")
    await api.enqueue(queue="b", delay_ms=60_000, type="other")
    found = (await api.http.get("/api/v1/counts")).json()
    assert (found["total"], found["states"]) == (4, {"ready": 3, "scheduled": 1})
    assert (found["queues"], found["types"]) == ({"a": 2, "b": 2}, {"noop": 2, "other": 2})
    waiting = {(item["type"], item["pool"]): item["ready"] for item in found["unhandled"]}
    assert waiting == {("noop", "default"): 1, ("noop", "gpu"): 1, ("other", "default"): 1}
    await beat(api)
    await until(lambda: bool(api.deps.registry.live()))
    found = (await api.http.get("/api/v1/counts")).json()
    waiting = {(item["type"], item["pool"]): item["ready"] for item in found["unhandled"]}
    assert waiting == {("noop", "gpu"): 1, ("other", "default"): 1}
    queues = (await api.http.get("/api/v1/queues")).json()["items"]
    assert queues == [
        {"name": "a", "jobs": 2, "states": {"ready": 2}},
        {"name": "b", "jobs": 2, "states": {"ready": 1, "scheduled": 1}},
    ]


async def test_live_workers_are_those_that_beat(api: Bench) -> None:
    holding = (Holding(0, "default/x", "0.0.1"),)
    await beat(api, seq=2, pool="gpu", concurrency=8, busy=3, holding=holding, host="h", version="1")
    # One that says nothing of what is held; late news; and an older life of it.
    await beat(api, seq=3, pool="gpu", concurrency=8, busy=3, partial=True, host="h", version="1")
    await beat(api, seq=1, pool="late")
    await beat(api, incarnation="i0", seq=9, pool="older")
    await beat(api, "gone", leaving=True)
    await api.log.append(api.topics.workers, 0, b"not a heartbeat\n{}")
    await beat(api, "w8")
    await until(lambda: len(api.deps.registry.live()) == 2)
    first, second = (await api.http.get("/api/v1/workers")).json()["items"]
    assert first["id"] == "w8"
    assert second["last_seen"].endswith("Z")
    del second["last_seen"]
    assert second == {
        "id": "w9", "pool": "gpu", "types": ["noop"], "concurrency": 8, "busy": 3, "holding": 1,
        "incarnation": "i1", "via": "", "host": "h", "version": "1", "leaving": False,
    }  # fmt: skip


async def test_a_worker_that_falls_silent_is_not_live(api: Bench) -> None:
    now_ms = api.deps.now_ms()
    registry = api.deps.registry
    registry.hear([Heartbeat(worker="old", seq=1)], now_ms - 20_000)
    registry.hear([Heartbeat(worker="new", seq=1)], now_ms)
    assert [seen.heartbeat.worker for seen in registry.live()] == ["new"]
    registry.hear([Heartbeat(worker="older", seq=1)], now_ms - 70_000)
    registry.forget_silent()
    assert "older" not in registry._seen


async def test_metrics_tell_of_requests_jobs_and_partitions(api: Bench) -> None:
    await api.enqueue(queue="a")
    await api.http.get("/api/v1/jobs/nobody")
    await api.http.get("/api/v1/nothing")
    text = (await api.http.get("/metrics")).text
    for line in [
        'penstock_http_requests_total{method="POST",route="/api/v1/jobs",status="201"} 1.0',
        'penstock_http_requests_total{method="GET",route="/api/v1/jobs/{id}",status="404"} 1.0',
        'penstock_http_requests_total{method="GET",route="none",status="404"} 1.0',
        "penstock_appended_lines_total 1.0",
        'penstock_jobs{queue="a",state="ready",type="noop"} 1.0',
        'penstock_unhandled_jobs{pool="default",type="noop"} 1.0',
        'penstock_projection_lag_records{partition="3"} 0.0',
        "penstock_gateway_sessions 0.0",
    ]:
        assert line in text, line
    assert 'penstock_http_request_seconds_count{method="POST",route="/api/v1/jobs"} 1.0' in text
