"""Retention in a running orchestrator and read model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.orchestrator import retention
from penstock.orchestrator.retention import MIN_AGE_MS, Retention
from penstock.orchestrator.service import Orchestrator
from penstock.projections.service import ProjectionService
from penstock.schemas.topics import Topics
from tests.state.shelf import Shelf
from tests.state.writing import START_MS, Writer
from tests.waiting import until

HOUR_MS = 3_600_000


async def test_an_orchestrator_forgets_what_ended_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_A_TURN", 7)
    writer = Writer()
    old = [f"old-{number}" for number in range(20)]
    for name in old:
        writer.enqueue(name)
        writer.run(name)
    writer.enqueue("waiting", job_type="nobody")
    records = writer.play([])
    wall_ms = [time.time_ns() // 1_000_000 - 2 * HOUR_MS]
    log = MemoryLog(now_ms=lambda: wall_ms[0])
    namespace = await open_namespace(log, Topics(partitions=1, work_partitions=2))
    topic = namespace.topics.jobs
    for record in records:
        await log.append(topic, 0, record.value)
        wall_ms[0] += record.time_ms - START_MS
    monkeypatch.setattr(log.topics, "_now_ms", lambda: time.time_ns() // 1_000_000)
    orchestrator = Orchestrator(
        log, namespace, tmp_path / "o", settle_ms=0, store_factory=Shelf(),
        retention=Retention({"succeeded": MIN_AGE_MS}),
    )  # fmt: skip
    views = ProjectionService(log, namespace.topics, tmp_path / "p", store_factory=Shelf())
    async with orchestrator, views:
        partition = orchestrator.machine.partitions[0]
        await until(
            lambda: all(partition.store.job(f"default/{name}") is None for name in old), orchestrator, views
        )
        await until(lambda: views.offsets[0] >= partition.store.next_offset, orchestrator, views)
        assert partition.store.job("default/waiting") is not None
        assert orchestrator.machine.forgetting.proposed == 20
        assert [row.jobs for row in await views.counts() if row.jobs] == [1]
        page = await views.history("default", "old-3")
        assert page is not None
        assert page.items[-1].type == "Forgotten"
        assert page.items[-1].actor.startswith("orchestrator/")
