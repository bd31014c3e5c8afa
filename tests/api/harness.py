"""A whole Penstock in one process for the API's tests: memory log, orchestrator, projection, gateway, app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from penstock import task
from penstock.api.app import create_app
from penstock.api.deps import ApiDeps, ApiOptions
from penstock.api.gateway import Gateway
from penstock.api.metrics import ApiMetrics
from penstock.api.operating import OperationWorker
from penstock.api.registry import WorkerRegistry
from penstock.client.idgen import new_id
from penstock.log.bundler import Bundler
from penstock.log.memory import Fault, MemoryLog
from penstock.log.namespace import Namespace, open_namespace
from penstock.orchestrator.service import Orchestrator
from penstock.projections.service import ProjectionService
from penstock.schemas.topics import Topics
from penstock.workers.task import Task
from tests.state.shelf import Shelf
from tests.waiting import PATIENCE_S


class Bench:
    """Everything that a test may want to reach into."""

    def __init__(self, log: MemoryLog, namespace: Namespace, deps: ApiDeps, http: httpx.AsyncClient) -> None:
        self.log = log
        self.namespace = namespace
        self.topics = namespace.topics
        self.deps = deps
        self.http = http

    async def enqueue(self, **fields: Any) -> dict[str, Any]:
        """Post a job, and have it folded."""
        answer = await self.http.post("/api/v1/jobs", json={"type": "noop", **fields})
        assert answer.status_code in (200, 201), answer.text
        job: dict[str, Any] = answer.json()
        await self.job(job["id"], answer.headers["penstock-position"])
        return job

    async def job(self, job_id: str, after: str = "") -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/jobs/{job_id}", params={"after": after})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def until(self, job_id: str, state: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self.job(job_id)
                if job["state"] == state:
                    return job
                await asyncio.sleep(0.01)

    async def fetch(self, worker: str = "w1", **fields: Any) -> list[dict[str, Any]]:
        body = {"worker": worker, "types": ["noop"], "max": 1, "wait_ms": 15_000, **fields}
        answer = await self.http.post("/api/v1/worker/fetch", json=body)
        assert answer.status_code == 200, answer.text
        jobs: list[dict[str, Any]] = answer.json()["jobs"]
        return jobs

    async def report(self, *events: dict[str, Any], worker: str = "w1") -> list[dict[str, Any]]:
        answer = await self.http.post(
            "/api/v1/worker/report", json={"worker": worker, "events": list(events)}
        )
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def heartbeat(self, *leases: Any, worker: str = "w1") -> list[dict[str, Any]]:
        body = {"worker": worker, "leases": list(leases)}
        answer = await self.http.post("/api/v1/worker/heartbeat", json=body)
        assert answer.status_code == 200, answer.text
        signals: list[dict[str, Any]] = answer.json()["signals"]
        return signals


def held_up() -> tuple[Task[[], Any], asyncio.Event, asyncio.Event]:
    """A handler of ``noop`` that returns ``done`` once it may; set when it has begun, and to be set to let it go on."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def noop() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    return noop, begun, go_on


@asynccontextmanager
async def bench(
    folder: Path,
    *,
    orchestrate: bool = False,
    options: ApiOptions | None = None,
    give_up_ms: int = 500,
    now_ms: Callable[[], int] | None = None,
    text_index: bool = False,
) -> AsyncIterator[Bench]:
    """A running service. ``orchestrate``: somebody leads the partitions and hands out jobs."""
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(MemoryLog())
        topics = Topics(namespace="test", partitions=4, work_partitions=4, worker_partitions=2)
        namespace = await open_namespace(log, topics)
        if orchestrate:
            await stack.enter_async_context(
                Orchestrator(log, namespace, folder / "o", settle_ms=0, store_factory=Shelf())
            )
        read_model = await stack.enter_async_context(
            ProjectionService(log, topics, folder / "p", store_factory=Shelf(), text_index=text_index)
        )
        deps = ApiDeps(
            log=log,
            topics=topics,
            writer=await stack.enter_async_context(Bundler(log, topics.jobs, give_up_ms=give_up_ms)),
            read_model=read_model,
            registry=await stack.enter_async_context(WorkerRegistry(log, topics)),
            gateway=await stack.enter_async_context(Gateway(log, topics, new_id())),
            metrics=ApiMetrics(),
            options=options or ApiOptions(),
            made_with=namespace.rules,
        )
        if orchestrate:
            await stack.enter_async_context(OperationWorker(deps, "api"))
        if now_ms is not None:
            deps.now_ms = now_ms
        transport = httpx.ASGITransport(create_app(deps), raise_app_exceptions=False)
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://penstock", timeout=30)
        )
        yield Bench(log, namespace, deps, http)


def break_log(api: Bench, fault: Fault, partitions: Iterable[int] | None = None) -> None:
    """Every append to the jobs topic (or to some of its partitions) fails, until it is mended."""
    for partition in range(api.topics.partitions) if partitions is None else partitions:
        api.log.topics.arm(*[fault] * 100, topic=api.topics.jobs, partition=partition)


def mend_log(api: Bench) -> None:
    for partition in range(api.topics.partitions):
        while api.log.topics.take_fault((api.topics.jobs, partition)):
            pass
