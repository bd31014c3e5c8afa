"""The orchestrator on real logs: a job's whole way, restarts from its folder and from nothing, takeover."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from penstock.core.job import TERMINAL, Job
from penstock.log.bundler import Bundler
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.opening import open_log
from penstock.log.port import Log
from penstock.orchestrator.leadership import Peers
from penstock.orchestrator.service import Orchestrator
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import TopicMismatch
from penstock.schemas.events import Enqueued
from penstock.schemas.ids import partition_of, ulid
from penstock.schemas.messages import Beat
from penstock.schemas.topics import Topics
from tests.orchestrator.model_worker import ModelWorker, fail, hang
from tests.waiting import until


class Bench:
    """A namespace on some log, with what a test needs at hand."""

    def __init__(self, log: Log, namespace: Namespace, folder: Path) -> None:
        self.log, self.namespace, self.topics, self.folder = log, namespace, namespace.topics, folder
        self.bundler = Bundler(log, self.topics.jobs)

    def orchestrator(
        self, name: str = "one", *, settle_ms: int = 0, partitions: Sequence[int] | None = None
    ) -> Orchestrator:
        return Orchestrator(
            self.log,
            self.namespace,
            self.folder / name,
            name=name,
            settle_ms=settle_ms,
            partitions=partitions,
        )

    async def enqueue(self, job: str = "", *, partition: int | None = None, **fields: object) -> str:
        job = job or ulid(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10)))
        line = msgspec.json.encode({"type": "Enqueued", "job": job, "job_type": "noop", **fields})
        home = partition_of(job, self.topics.partitions)
        await self.bundler.append(home if partition is None else partition, line)
        return job


def job_of(orchestrator: Orchestrator, job: str) -> Job | None:
    partitions = orchestrator.machine.partitions
    return partitions[partition_of(job, len(partitions))].store.job(f"default/{job}")


def started(orchestrator: Orchestrator, job: str) -> bool:
    """Whether the holder has told that it runs the job: from then on its attempt counts."""
    partitions = orchestrator.machine.partitions
    lease = partitions[partition_of(job, len(partitions))].lease_of(f"default/{job}")
    return lease is not None and lease.run_ms > 0


async def ended(orchestrator: Orchestrator, *jobs: str) -> None:
    def all_ended() -> bool:
        found = [job_of(orchestrator, job) for job in jobs]
        return all(job is not None and job.state in TERMINAL for job in found)

    await until(all_ended, orchestrator)


def spec_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "kafka":
        return f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    return f"embedded:{folder / 'log'}" if kind == "embedded" else "memory:"


@asynccontextmanager
async def bench_on(spec: str, namespace: str, folder: Path, partitions: int = 4) -> AsyncIterator[Bench]:
    topics = Topics(namespace=namespace, partitions=partitions, work_partitions=4, worker_partitions=2)
    async with open_log(spec) as log:
        bench = Bench(log, await open_namespace(log, topics), folder)
        async with bench.bundler:
            yield bench


@pytest.fixture(params=["memory", "embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, unique_namespace: str
) -> AsyncIterator[Bench]:
    async with bench_on(spec_of(request.param, request, tmp_path), unique_namespace, tmp_path) as made:
        yield made


async def test_a_job_goes_all_the_way(bench: Bench) -> None:
    async with bench.orchestrator() as orchestrator, ModelWorker(bench.log, bench.topics, "w1") as worker:
        jobs = [await bench.enqueue(payload={"n": n}) for n in range(20)]
        await ended(orchestrator, *jobs)
        assert {delivery.job for delivery in worker.delivered} == set(jobs)
        assert {job_of(orchestrator, job).state for job in jobs} == {"succeeded"}
        assert all(delivery.attempt == 1 and int(delivery.fence) >= 0 for delivery in worker.delivered)
        # On a slow machine one may be delivered again.
        assert {msgspec.json.decode(delivery.payload)["n"] for delivery in worker.delivered} == set(range(20))


async def test_orchestrators_that_share_the_partitions_out(bench: Bench) -> None:
    """Each leads what it follows and nothing else; a misrouted line finds its way from one to the other."""
    jobs = [ulid(number, number << 3) for number in range(40)]
    strays = [ulid(number, number << 3) for number in range(40, 60)]
    shares = [range(part, 4, 2) for part in (0, 1)]
    async with (
        bench.orchestrator("a", partitions=shares[0]) as first,
        bench.orchestrator("b", partitions=shares[1]) as second,
        ModelWorker(bench.log, bench.topics, "w1") as worker,
    ):
        for job in jobs:
            await bench.enqueue(job)
        for job in strays:
            await bench.enqueue(job, partition=(partition_of(job, 4) + 1) % 4)

        def all_ended() -> bool:
            found = [
                one.machine.partitions[home].store.job(f"default/{job}")
                for job in (*jobs, *strays)
                for home in (partition_of(job, 4),)
                for one in (first, second)
                if home in one.machine.partitions
            ]
            return all(job is not None and job.state == "succeeded" for job in found)

        await until(all_ended, first)
        for one, share in zip((first, second), shares, strict=True):
            assert {machine.number for machine in one.machine.leading} == set(share)
        assert {delivery.job for delivery in worker.delivered} == {*jobs, *strays}


async def test_a_share_is_taken_over_by_who_has_the_same(bench: Bench) -> None:
    async with (
        bench.orchestrator("a", partitions=(1, 3)) as standby,
        bench.orchestrator("other", partitions=(0, 2)),
    ):
        async with bench.orchestrator("b", partitions=(1, 3), settle_ms=1_200) as leader:
            await until(lambda: len(standby.machine.leading) + len(leader.machine.leading) == 2, standby)
        await until(lambda: len(standby.machine.leading) == 2, standby)
        assert {machine.number for machine in standby.machine.leading} == {1, 3}


async def test_delays_retries_and_dead_letters(bench: Bench) -> None:
    backoff = {"kind": "fixed", "base_ms": 50, "jitter": 0.0}
    async with bench.orchestrator() as orchestrator:
        async with ModelWorker(bench.log, bench.topics, "w1", handler=fail) as worker:
            job = await bench.enqueue(delay_ms=300, max_attempts=3, backoff=backoff)
            early = await bench.enqueue(job_type="unheard-of", expires_at=time.time_ns() // 1_000_000 + 200)
            await ended(orchestrator, job, early)
        dead = job_of(orchestrator, job)
        assert dead is not None
        assert (dead.state, dead.attempt, dead.error_code) == ("dead", 3, "boom")
        assert dead.started_at_ms - dead.created_at_ms >= 300
        assert [delivery.attempt for delivery in worker.delivered] == [1, 2, 3]
        await until(lambda: job_of(orchestrator, job).dead_lettered, orchestrator)
        expired = job_of(orchestrator, early)
        assert expired is not None
        assert expired.state == "expired"


async def test_a_silent_workers_job_is_rescued(bench: Bench) -> None:
    async with bench.orchestrator() as orchestrator:
        async with ModelWorker(bench.log, bench.topics, "w1", handler=hang, lease_ms=1_000) as lost:
            job = await bench.enqueue()
            await until(lambda: started(orchestrator, job), orchestrator)
        async with ModelWorker(bench.log, bench.topics, "w2") as rescuer:
            await ended(orchestrator, job)
        assert [delivery.attempt for delivery in rescuer.delivered] == [2]
        assert int(rescuer.delivered[0].fence) > int(lost.delivered[0].fence)


async def test_a_restarted_worker_gets_its_jobs_at_once(bench: Bench) -> None:
    async with bench.orchestrator() as orchestrator:
        async with ModelWorker(bench.log, bench.topics, "w1", handler=hang) as lost:
            job = await bench.enqueue()
            await until(lambda: bool(lost.delivered), orchestrator)
        async with ModelWorker(bench.log, bench.topics, "w1", incarnation="b"):
            await ended(orchestrator, job)


async def test_garbage_and_strays_stop_nothing(bench: Bench) -> None:
    async with bench.orchestrator() as orchestrator, ModelWorker(bench.log, bench.topics, "w1"):
        stray = "stray-1"
        wrong = (partition_of(stray, bench.topics.partitions) + 1) % bench.topics.partitions
        await bench.bundler.append_many(
            wrong, [b"\xff\xfe", b"not json", b'{"type":"Nonsense"}', b'{"type":"Enqueued"}']
        )
        await bench.enqueue(stray, partition=wrong)
        behind = await bench.enqueue()
        await ended(orchestrator, stray, behind)
        source = orchestrator.machine.partitions[wrong]
        await until(lambda: source.store.state.misrouted == 0, orchestrator)
        assert source.store.state.quarantined == 4


@pytest.mark.parametrize("lost", ["nothing", "folder"])
async def test_it_goes_on_where_it_stopped(bench: Bench, lost: str) -> None:
    async with (
        bench.orchestrator() as first,
        ModelWorker(bench.log, bench.topics, "w1", handler=hang) as worker,
    ):
        running = await bench.enqueue()
        waiting = await bench.enqueue(job_type="later")
        delayed = await bench.enqueue(delay_ms=1_500)
        await until(lambda: bool(worker.delivered), first)
        await until(lambda: job_of(first, delayed) is not None and job_of(first, waiting) is not None, first)
    if lost == "folder":
        shutil.rmtree(bench.folder / "one")
    async with bench.orchestrator() as second:
        async with ModelWorker(bench.log, bench.topics, "w1", incarnation="b", types=("noop", "later")):
            await ended(second, running, waiting, delayed)
        for machine in second.machine.partitions.values():
            machine.commit()
            assert machine.store.recompute_digest() == machine.store.digest


async def test_a_thousand_jobs_by_two_workers(bench: Bench) -> None:
    lines: dict[int, list[bytes]] = {}
    jobs = [f"job-{number}" for number in range(1_000)]
    for job in jobs:
        line = encode_line(Enqueued(job=job, job_type="noop"))
        lines.setdefault(partition_of(job, bench.topics.partitions), []).append(line)
    async with (
        bench.orchestrator() as orchestrator,
        ModelWorker(bench.log, bench.topics, "w1") as one,
        ModelWorker(bench.log, bench.topics, "w2") as two,
    ):
        await asyncio.gather(*(bench.bundler.append_many(number, of_it) for number, of_it in lines.items()))
        await ended(orchestrator, *jobs)
        # On a slow machine some may be delivered again.
        assert {delivery.job for delivery in one.delivered + two.delivered} == set(jobs)
        assert one.delivered
        assert two.delivered


async def test_wrong_partition_count_is_refused(bench: Bench) -> None:
    other = Topics(namespace=bench.topics.namespace, partitions=8, work_partitions=4, worker_partitions=2)
    with pytest.raises(TopicMismatch, match="4"):
        await open_namespace(bench.log, other)


async def abandon(orchestrator: Orchestrator) -> None:
    """What kill -9 does: it stops in the middle and says goodbye to nobody."""
    for task in orchestrator._tasks:  # there is no polite way to be rude
        task.cancel()
    await asyncio.gather(*orchestrator._tasks, return_exceptions=True)  # as above


@pytest.mark.kafka
async def test_two_share_and_one_takes_over(
    kafka_bootstrap: str,
    tmp_path: Path,
    unique_namespace: str,
    record_property: Callable[[str, object], None],
) -> None:
    async with AsyncExitStack() as stack:
        spec = f"kafka://{kafka_bootstrap}"
        bench = await stack.enter_async_context(bench_on(spec, unique_namespace, tmp_path, partitions=8))
        one = await stack.enter_async_context(bench.orchestrator("one", settle_ms=1_200))
        two = await stack.enter_async_context(bench.orchestrator("two", settle_ms=1_200))
        await until(
            lambda: len(one.machine.leading) + len(two.machine.leading) == 8 and two.machine.leading != [],
            one,
            two,
        )
        await until(lambda: 0 < len(one.machine.leading) < 8, one, two)
        await stack.enter_async_context(ModelWorker(bench.log, bench.topics, "w1"))
        before = [await bench.enqueue() for _ in range(40)]
        await ended(two, *before)
        await abandon(one)
        killed = time.monotonic()
        during = [await bench.enqueue() for _ in range(40)]
        await until(lambda: len(two.machine.leading) == 8, two)
        record_property("takeover_s", round(time.monotonic() - killed, 2))
        await ended(two, *during)
        assert {job_of(two, job).state for job in before + during} == {"succeeded"}


@pytest.mark.parametrize("bench", ["memory"], indirect=True)
async def test_one_that_joins_gets_its_share(bench: Bench) -> None:
    async with bench.orchestrator("one") as one, ModelWorker(bench.log, bench.topics, "w1", lease_ms=2_000):
        await until(lambda: len(one.machine.leading) == 4, one)
        share = 0
        for number in range(8):
            async with bench.orchestrator(f"two-{number}") as two:
                beat = Beat(orchestrator="one", incarnation=one.incarnation, leads=dict.fromkeys(range(4), 0))
                share = sum(Peers(two.incarnation).nominated(number, [beat]) for number in range(4))
                await until(
                    lambda two=two, share=share: (
                        (len(two.machine.leading), len(one.machine.leading)) == (share, 4 - share)
                    ),
                    one,
                    two,
                )
            await until(lambda: len(one.machine.leading) == 4, one)
            if share:
                break
        assert share
        jobs = [await bench.enqueue() for _ in range(20)]
        await ended(one, *jobs)
