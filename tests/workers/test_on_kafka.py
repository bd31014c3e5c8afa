"""A worker and an orchestrator on a real Kafka broker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from penstock.client.idgen import new_id
from penstock.log.bundler import Bundler
from penstock.log.namespace import open_namespace
from penstock.log.opening import open_log
from penstock.orchestrator.service import Orchestrator
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from penstock.workers.context import Context
from penstock.workers.log_transport import LogTransport
from penstock.workers.runtime import Worker
from penstock.workers.task import task


async def test_jobs_run_over_kafka(kafka_bootstrap: str, unique_namespace: str, tmp_path: Path) -> None:
    ran: dict[int, int] = {}
    done = asyncio.Event()

    @task(name="count")
    async def count(n: int, ctx: Context) -> int:
        ran[n] = ran.get(n, 0) + 1
        if n % 100 == 0:
            await ctx.progress(50, checkpoint={"n": n})
        if len(ran) == 500:
            done.set()
        return n

    async with open_log(f"kafka://{kafka_bootstrap}") as log:
        namespace = await open_namespace(log, Topics(unique_namespace, partitions=2, work_partitions=8))
        async with (
            Orchestrator(log, namespace, tmp_path, settle_ms=0) as orchestrator,
            Worker([count], LogTransport(log, namespace.topics)) as worker,
            Bundler(log, namespace.topics.jobs) as bundler,
        ):
            for number in range(500):
                job = new_id()
                line = msgspec.json.encode(
                    {"type": "Enqueued", "job": job, "job_type": "count", "payload": {"n": number}}
                )
                bundler.submit(partition_of(job, 2), [line])
            waiting = asyncio.ensure_future(done.wait())
            failures = (orchestrator.failure, worker.failure)
            await asyncio.wait({waiting, *failures}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            assert not any(failure.done() for failure in failures)
            assert done.is_set()
            waiting.cancel()
    assert set(ran.values()) == {1}
