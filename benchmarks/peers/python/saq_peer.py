"""SAQ on Redis. Its worker: `saq benchmarks.peers.python.saq_peer.settings --quiet`."""

from __future__ import annotations

import asyncio
import logging
import os
from importlib.metadata import version
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from saq import Queue
from saq.queue.redis import RedisQueue

from benchmarks import tally
from benchmarks.peers.python.producing import FAILING, Awaited, FailsOnce, arguments_of, main

logging.getLogger("saq").setLevel(logging.CRITICAL)

CONCURRENCY = 100
CONNECTIONS = 150
"""More than jobs at once: each of a worker's slots waits for its next job on a connection of its own."""
OPERATIONS = 100
"""Redis operations at once; 20 unless told."""
BULK_LANES = 100
NAMES = {"payload": "text", "flaky": "number", "since": "sent_ns"}


def _queue() -> Queue:
    pool = BlockingConnectionPool.from_url(
        os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0"), max_connections=CONNECTIONS, timeout=None
    )
    return RedisQueue(Redis(connection_pool=pool), max_concurrent_ops=OPERATIONS)


queue = _queue()


async def noop(context: dict[str, Any]) -> None:
    tally.count()


async def payload(context: dict[str, Any], *, text: str) -> None:
    tally.count()


async def flaky(context: dict[str, Any], *, number: int) -> None:
    tally.count()
    if number % FAILING == 0 and context["job"].attempts == 1:
        raise FailsOnce


async def since(context: dict[str, Any], *, sent_ns: int) -> None:
    tally.since(sent_ns)


settings = {"queue": queue, "functions": [noop, payload, flaky, since], "concurrency": CONCURRENCY}


async def enqueue(kind: str, number: int = 0, sent_ns: int = 0) -> None:
    """``timeout=0``: no timer a job, which no-ops do not need. ``retries`` is how often a job is tried."""
    values = arguments_of(kind, number, sent_ns)
    arguments = {NAMES[kind]: values[0]} if values else {}
    await queue.enqueue(kind, timeout=0, retries=3, **arguments)


async def bulk(jobs: int, kind: str) -> None:
    """Many at a time: SAQ has no call for many jobs."""
    numbers = iter(range(jobs))

    async def lane() -> None:
        for number in numbers:
            await enqueue(kind, number)

    await asyncio.gather(*(lane() for _ in range(BULK_LANES)))


async def send(kind: str, sent_ns: int) -> None:
    await enqueue(kind, sent_ns=sent_ns)


if __name__ == "__main__":
    main(lambda: version("saq"), Awaited(bulk, send, queue.connect, queue.disconnect))
