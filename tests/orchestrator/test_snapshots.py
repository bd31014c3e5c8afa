"""Snapshots of an orchestrator: taken by who leads, restored by who starts without a folder."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import msgspec
import pytest

from penstock.log.blobs import open_blobs
from penstock.log.namespace import open_namespace
from penstock.log.opening import open_log
from penstock.log.port import Log
from penstock.orchestrator.service import Orchestrator
from penstock.schemas.errors import OffsetTrimmed
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from penstock.state import keeping
from penstock.state.snapshots import Snapshots
from penstock.state.snapshots_taking import SnapshotTaker
from tests.orchestrator.model_worker import ModelWorker
from tests.waiting import until

PARTITIONS = 2


async def enqueue(log: Log, topics: Topics, *jobs: str, job_type: str = "noop") -> None:
    for job in jobs:
        line = msgspec.json.encode({"type": "Enqueued", "job": job, "job_type": job_type})
        await log.append(topics.jobs, partition_of(job, PARTITIONS), line)


def states(orchestrator: Orchestrator, *jobs: str) -> set[str]:
    found = [
        orchestrator.machine.partitions[partition_of(job, PARTITIONS)].store.job(f"default/{job}")
        for job in jobs
    ]
    return {"none" if job is None else job.state for job in found}


@pytest.mark.parametrize("spec", ["memory:", "embedded:"])
async def test_work_goes_on_from_a_snapshot(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "TURN_EVERY_S", 0.01)
    snapshots = Snapshots(open_blobs(f"memory://{uuid.uuid4()}"), every_s=0, keep=2)
    topics = Topics(namespace="test", partitions=PARTITIONS, work_partitions=2, worker_partitions=2)
    async with open_log(spec if spec == "memory:" else f"embedded:{tmp_path / 'log'}") as log:
        namespace = await open_namespace(log, topics)

        def orchestrator(name: str, using: Snapshots | None = snapshots) -> Orchestrator:
            return Orchestrator(log, namespace, tmp_path / name, name=name, settle_ms=0, snapshots=using)

        first = [f"a{number}" for number in range(30)]
        waiting = [f"later-{number}" for number in range(10)]
        async with orchestrator("one") as one:
            async with ModelWorker(log, topics, "w1"):
                await enqueue(log, topics, *first)
                await until(lambda: states(one, *first) == {"succeeded"}, one)
            await enqueue(log, topics, *waiting, job_type="rare")
            await until(lambda: states(one, *waiting) == {"ready"}, one)

            def taken(number: int) -> bool:
                numbers = one.snapshot_numbers()
                store = one.machine.partitions[number].store
                key = f'penstock_snapshot_next_offset{{partition="{number}"}}'
                return bool(store.next_offset == store.committed_offset == numbers.get(key))

            await until(lambda: taken(0) and taken(1), one)
            offsets = {
                number: machine.store.next_offset for number, machine in one.machine.partitions.items()
            }
        shutil.rmtree(tmp_path / "one")
        for number, offset in offsets.items():
            await log.truncate(topics.jobs, number, offset - 1)
        with pytest.raises(OffsetTrimmed):
            async with orchestrator("none", None):
                pass
        async with orchestrator("two") as two:
            assert states(two, *first) == {"succeeded"}
            assert states(two, *waiting) == {"ready"}
            async with ModelWorker(log, topics, "w2", types=("rare",)) as worker:
                await until(lambda: states(two, *waiting) == {"succeeded"}, two)
                assert {delivery.job for delivery in worker.delivered} == set(waiting)
            for machine in two.machine.partitions.values():
                machine.commit()
                assert machine.store.recompute_digest() == machine.store.digest


async def test_who_follows_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "TURN_EVERY_S", 0.01)
    snapshots = Snapshots(open_blobs(f"memory://{uuid.uuid4()}"), every_s=0)
    topics = Topics(namespace="test", partitions=PARTITIONS, work_partitions=2, worker_partitions=2)
    async with open_log("memory:") as log:
        namespace = await open_namespace(log, topics)
        async with Orchestrator(
            log, namespace, tmp_path / "follows", settle_ms=60_000, snapshots=snapshots
        ) as follower:
            await enqueue(log, topics, *(f"j{number}" for number in range(10)))
            stores = [machine.store for machine in follower.machine.partitions.values()]
            await until(lambda: sum(store.committed_offset for store in stores) >= 10, follower)
            turns = 0

            async def count(taker: SnapshotTaker) -> None:
                nonlocal turns
                turns += 1
                await whole(taker)

            whole = SnapshotTaker.turns
            monkeypatch.setattr(SnapshotTaker, "turns", count)
            await until(lambda: turns > 3, follower)
            assert not follower.machine.leading
            assert follower.snapshot_numbers()["penstock_snapshots_taken"] == 0
            assert await snapshots.blobs.list() == []
