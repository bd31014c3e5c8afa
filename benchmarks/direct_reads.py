"""Reads of a node's folder in the process that has it open: what HTTP and the way between processes add to.

    python benchmarks/direct_reads.py ASKED.json        with the node's settings in the environment

Prints the times of each kind of read in ms, as one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.cli.folders import NODE
from penstock.cli.opening import existing_log
from penstock.cli.settings import load
from penstock.projections.groups import Groups
from penstock.projections.port import JobsQuery
from penstock.projections.queries import PartitionQueries
from penstock.projections.reads import LocalReads
from penstock.state.partition_store import StoreIdentity

TENANT = "default"


async def measured(asked: dict[str, Any]) -> dict[str, list[float]]:
    """Times in ms by what was read."""
    settings = load()
    ids, state = asked["ids"], asked["state"]
    async with existing_log(settings) as (log, namespace):
        topics = namespace.topics
        with contextlib.ExitStack() as stack:
            queries: dict[int, PartitionQueries] = {}
            for number in range(topics.partitions):
                identity = StoreIdentity(
                    log.cluster_id, topics.jobs, number, topics.partitions, namespace.generation
                )
                store = stack.enter_context(NODE.open(NODE.path(settings.data), identity))
                queries[number] = PartitionQueries(store, Groups(store.store))
            reads = LocalReads(queries, topics.partitions)
            listed = JobsQuery(tenant=TENANT, limit=50)
            filtered = JobsQuery(tenant=TENANT, limit=50, type="noop", state=state)
            kinds: dict[str, Callable[[], object]] = {
                "one job": lambda: reads.job(TENANT, random.choice(ids)),
                "its history": lambda: reads.history(TENANT, random.choice(ids), 100, ""),
                "list of 50, newest": lambda: reads.list_jobs(listed),
                "list of 50, by type and state": lambda: reads.list_jobs(filtered),
                "counts": lambda: reads.counts(TENANT),
            }
            return {name: _times(read, asked["reads"]) for name, read in kinds.items()}


def _times(read: Callable[[], object], count: int) -> list[float]:
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        read()
        times.append((time.perf_counter() - began) * 1_000)
    return times


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asyncio.run(measured(asked))))
