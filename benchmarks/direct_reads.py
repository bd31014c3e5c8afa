"""Reads of a projection's folder in the process that has it open: what HTTP and the way between processes add to.

    python benchmarks/direct_reads.py ASKED.json        with the projection's settings in the environment

Prints the times of each kind of read in ms, as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from penstock.cli.folders import PROJECTION
from penstock.cli.opening import existing_log
from penstock.cli.settings import load
from penstock.projections.port import JobsQuery
from penstock.projections.service import ProjectionService

TENANT = "default"


async def measured(asked: dict[str, Any]) -> dict[str, list[float]]:
    """Times in ms by what was read."""
    settings = load()
    ids, state = asked["ids"], asked["state"]
    async with existing_log(settings) as (log, namespace):
        folder = PROJECTION.path(settings.data)
        async with ProjectionService(log, namespace.topics, folder, generation=namespace.generation) as model:
            kinds: dict[str, Callable[[], Awaitable[object]]] = {
                "one job": lambda: model.job(TENANT, random.choice(ids)),
                "its history": lambda: model.history(TENANT, random.choice(ids), 100, ""),
                "list of 50, newest": lambda: model.list_jobs(JobsQuery(tenant=TENANT, limit=50)),
                "list of 50, by type and state": lambda: model.list_jobs(
                    JobsQuery(tenant=TENANT, limit=50, type="noop", state=state)
                ),
                "counts": lambda: model.counts(TENANT),
            }
            return {name: await _times(read, asked["reads"]) for name, read in kinds.items()}


async def _times(read: Callable[[], Awaitable[object]], count: int) -> list[float]:
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        await read()
        times.append((time.perf_counter() - began) * 1_000)
    return times


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asyncio.run(measured(asked))))
