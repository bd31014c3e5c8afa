"""Workers on a memory log with real orchestrators: what only the whole shows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.client.idgen import new_id
from penstock.core.job import TERMINAL, Job
from penstock.log.bundler import Bundler
from penstock.log.memory import MemoryLog
from penstock.log.namespace import Namespace, open_namespace
from penstock.orchestrator.partition import PartitionMachine
from penstock.orchestrator.service import Orchestrator
from penstock.schemas.codec import encode_line
from penstock.schemas.events import CancelRequested
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from penstock.workers.context import Context
from penstock.workers.errors import JobStopped
from penstock.workers.log_transport import LogTransport
from penstock.workers.runtime import Worker
from penstock.workers.task import task
from penstock.workers.values import Cancel, PartError, Partial, Retry, Snooze
from tests.waiting import until
from tests.workers.bench import AtOnce


class World:
    def __init__(self, log: MemoryLog, namespace: Namespace, folder: Path, stack: AsyncExitStack) -> None:
        self.log, self.namespace, self._folder, self._stack = log, namespace, folder, stack
        self.bundler = Bundler(log, namespace.topics.jobs)
        self.orchestrators: list[Orchestrator] = []
        self.workers: list[Worker] = []

    async def orchestrator(
        self, name: str = "o1", settle_ms: int = 0, partitions: Sequence[int] | None = None
    ) -> Orchestrator:
        made = Orchestrator(
            self.log,
            self.namespace,
            self._folder / name,
            name=name,
            settle_ms=settle_ms,
            partitions=partitions,
        )
        self.orchestrators.append(await self._stack.enter_async_context(made))
        return made

    async def worker(self, *tasks: Any, **options: Any) -> Worker:
        options = {"concurrency": 4, "grace_ms": 0, **options}
        worker = Worker(tasks, LogTransport(self.log, self.namespace.topics), **options)
        self.workers.append(await self._stack.enter_async_context(worker))
        return worker

    async def enqueue(self, job_type: str, count: int = 1, **fields: Any) -> list[str]:
        lines: dict[int, list[bytes]] = {}
        jobs = [new_id() for _ in range(count)]
        for job in jobs:
            line = msgspec.json.encode({"type": "Enqueued", "job": job, "job_type": job_type, **fields})
            lines.setdefault(partition_of(job, self.namespace.topics.partitions), []).append(line)
        for partition, found in lines.items():
            await self.bundler.append_many(partition, found)
        return jobs

    def _home(self, job: str) -> PartitionMachine:
        """The job's partition, as the first orchestrator that follows it has it."""
        number = partition_of(job, self.namespace.topics.partitions)
        found = (one.machine.partitions.get(number) for one in self.orchestrators)
        return next(machine for machine in found if machine is not None)

    def job(self, job: str) -> Job:
        found = self._home(job).store.job(f"default/{job}")
        assert found is not None
        return found

    def started(self, job: str) -> bool:
        """Whether the leader knows that the job's handler runs."""
        lease = self._home(job).lease_of(f"default/{job}")
        return lease is not None and lease.run_ms > 0

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition, *self.orchestrators, *self.workers)

    async def ended(self, *jobs: str) -> list[Job]:
        def all_ended() -> bool:
            for job in jobs:
                found = self._home(job).store.job(f"default/{job}")
                if found is None or found.state not in TERMINAL:
                    return False
            return True

        await self.until(all_ended)
        return [self.job(job) for job in jobs]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(MemoryLog())
        namespace = await open_namespace(log, Topics(partitions=4, work_partitions=8))
        yield World(log, namespace, tmp_path, stack)


@task
async def noop(n: int = 0) -> int:
    return n


@task
async def stubborn(ctx: Context) -> str:
    if ctx.attempt < 3:
        raise ValueError(f"attempt {ctx.attempt}")
    return "third time"


@task
async def forever(ctx: Context) -> None:
    await ctx.progress(5, checkpoint={"row": 1})
    await asyncio.sleep(3_600)


@task
def thread_forever(ctx: Context) -> None:
    while True:
        ctx.sleep(3_600)


async def test_jobs_run_retry_and_die(world: World) -> None:
    await world.orchestrator()
    await world.worker(noop, stubborn)
    backoff = {"kind": "none"}
    done, retried, dead, wrong = (
        *await world.enqueue("noop", payload={"n": 7}),
        *await world.enqueue("stubborn", backoff=backoff),
        *await world.enqueue("stubborn", backoff=backoff, max_attempts=2),
        *await world.enqueue("noop", payload={"n": "x"}),
    )
    found = await world.ended(done, retried, dead, wrong)
    assert [(job.state, job.attempt) for job in found] == [
        ("succeeded", 1),
        ("succeeded", 3),
        ("dead", 2),
        ("dead", 1),
    ]
    assert found[3].error_code == "invalid_payload"


@task
async def says(ctx: Context, what: str) -> Any:
    values = {
        "part": Partial({"rows": 2}, [PartError("bad_row", "row 3")]),
        "cancel": Cancel("nothing to do"),
        "retry": Retry(1, "once more") if ctx.attempt == 1 else "second time",
        "snooze": Snooze(20) if ctx.checkpoint is None else "awake",
    }
    if what == "snooze":
        await ctx.progress(50, checkpoint="was here")
    return values[what]


async def test_b1_handlers_say_how_their_attempt_ended(world: World) -> None:
    await world.orchestrator()
    await world.worker(says)
    kinds = ("part", "cancel", "retry", "snooze")
    jobs = [(await world.enqueue("says", payload={"what": what}, max_attempts=2))[0] for what in kinds]
    found = await world.ended(*jobs)
    assert [(job.state, job.attempt) for job in found] == [
        ("partial", 1),
        ("cancelled", 0),
        ("succeeded", 2),
        ("succeeded", 1),
    ]
    assert (found[0].error_code, found[0].error_message) == ("bad_row", "row 3")


async def test_thousands_of_short_jobs_each_run_once(world: World) -> None:
    ran: list[int] = []

    @task
    async def count(n: int = 0) -> None:
        ran.append(n)

    await world.orchestrator()
    worker = await world.worker(count)
    jobs = await world.enqueue("count", 3_000)
    found = await world.ended(*jobs)
    assert {job.state for job in found} == {"succeeded"}
    assert {job.attempt for job in found} == {1}
    assert len(ran) == 3_000
    assert worker.capacity > 100, "it prefetches"


@pytest.mark.parametrize("handler", [forever, thread_forever])
async def test_a8_a_running_job_is_cancelled(world: World, handler: Any) -> None:
    await world.orchestrator()
    worker = await world.worker(handler, lease_ms=3_000)
    (job,) = await world.enqueue(handler.name)
    await world.until(lambda: worker.busy)
    wish = CancelRequested(
        id="c1", job=job, of=world.job(job).enqueued_id, not_after=world.job(job).time_ms + 300_000
    )
    await world.bundler.append(partition_of(job, 4), encode_line(wish))
    (found,) = await world.ended(job)
    assert found.state == "cancelled"
    await world.until(lambda: not worker.busy)


async def test_b7_a_worker_that_leaves_gives_back_and_another_goes_on_from_the_checkpoint(
    world: World,
) -> None:
    seen: list[tuple[int, Any]] = []
    first_gone = threading.Event()

    @task(name="work")
    async def work(ctx: Context) -> None:
        seen.append((ctx.attempt, ctx.checkpoint))
        if not first_gone.is_set():
            await ctx.save({"row": 9})
            await asyncio.sleep(3_600)

    await world.orchestrator()
    async with Worker([work], LogTransport(world.log, world.namespace.topics), grace_ms=0) as first:
        (job,) = await world.enqueue("work", max_attempts=1)
        await world.until(lambda: first.busy and world.job(job).checkpoint_hash)
        first_gone.set()
    await world.worker(work)
    (found,) = await world.ended(job)
    assert found.state == "succeeded"
    assert seen == [(1, None), (1, {"row": 9})]


async def test_b4_a_worker_that_falls_silent_is_fenced_and_its_job_rescued(world: World) -> None:
    fences: list[int] = []

    @task(name="work")
    async def work(ctx: Context) -> None:
        fences.append(int(ctx.fence))
        if len(fences) == 1:
            await asyncio.sleep(3_600)

    await world.orchestrator()
    silent = await world.worker(work, lease_ms=1_500, name="silent")
    (job,) = await world.enqueue("work", backoff={"kind": "none"})
    await world.until(lambda: world.started(job))
    hub = silent._transport._hub  # type: ignore[attr-defined]  # cut off from the log, as by a network
    for running in hub._tasks:
        running.cancel()
    await world.worker(work, name="other")
    (found,) = await world.ended(job)
    assert (found.state, found.worker, found.attempt) == ("succeeded", "other", 2)
    assert fences[0] < fences[1]


async def test_d3_a_restarted_worker_frees_its_jobs_at_once(world: World) -> None:
    await world.orchestrator()
    first = await world.worker(forever, name="same", lease_ms=600_000)
    (job,) = await world.enqueue("forever", backoff={"kind": "none"})
    await world.until(lambda: world.started(job))

    @task(name="forever")
    async def quick() -> None: ...

    await world.worker(quick, name="same")
    (found,) = await world.ended(job)
    assert found.state == "succeeded"
    assert found.incarnation > first.profile.incarnation
    await world.until(lambda: not first.busy)


async def test_b6_a_timeout_ends_the_attempt(world: World) -> None:
    @task(name="slow")
    def slow(ctx: Context) -> None:
        try:
            ctx.sleep(60)
        except JobStopped:
            raise ValueError("woken") from None

    await world.orchestrator()
    await world.worker(slow)
    (job,) = await world.enqueue("slow", timeout_ms=50, max_attempts=1)
    (found,) = await world.ended(job)
    assert (found.state, found.error_code) == ("dead", "timeout")


async def test_c1_one_slot_serves_two_orchestrators(world: World) -> None:
    at_once = AtOnce()

    @task(name="one")
    async def one() -> None:
        with at_once:
            await asyncio.sleep(0.005)

    await world.orchestrator("o1", partitions=(0, 2))
    await world.orchestrator("o2", partitions=(1, 3))
    await world.until(lambda: [len(one.machine.leading) for one in world.orchestrators] == [2, 2])
    worker = await world.worker(one, concurrency=1)
    jobs = await world.enqueue("one", 60)
    found = await world.ended(*jobs)
    assert {job.state for job in found} == {"succeeded"}
    assert {job.attempt for job in found} == {1}
    assert at_once.most == 1
    assert worker.busy == 0


slow_ones, quick_ones = AtOnce(), AtOnce()


@task(concurrency=2)
async def slow() -> None:
    with slow_ones:
        await asyncio.sleep(0.02)


@task
async def quick() -> None:
    with quick_ones:
        await asyncio.sleep(0.02)


async def test_b2_a_type_with_a_limit_leaves_the_rest_of_the_worker_to_others(world: World) -> None:
    for name in ("o1", "o2"):
        await world.orchestrator(name)
    jobs = [*await world.enqueue("slow", 30), *await world.enqueue("quick", 60)]
    await world.worker(slow, quick, concurrency=8)
    assert {job.state for job in await world.ended(*jobs)} == {"succeeded"}
    assert slow_ones.most == 2
    assert quick_ones.most >= 4
    lines = [
        line
        for partition in range(4)
        for record in world.log.topics.read(world.namespace.topics.jobs, partition, 0, 10_000_000)
        for line in record.value.split(b"\n")
    ]
    returned = sum(b'"type":"Returned"' in line for line in lines)
    assert returned <= 8, "leases go to those who have room for them"


async def test_b9_a_worker_knows_what_waits_for_its_like(world: World) -> None:
    go_on = asyncio.Event()

    @task
    async def waits() -> None:
        await go_on.wait()

    await world.orchestrator()
    await world.enqueue("another", 3)
    worker = await world.worker(waits, concurrency=2)
    jobs = await world.enqueue("waits", 7)
    # What waits is told by leases, and these come before the jobs themselves.
    await world.until(lambda: (worker.load().waiting, worker.load().busy) == (5, 2))
    load = worker.load()
    assert (load.concurrency, load.held, load.finished) == (2, 0, 0)
    go_on.set()
    await world.ended(*jobs)
    await world.until(lambda: worker.load().waiting == 0)
    assert worker.load().finished == 7
