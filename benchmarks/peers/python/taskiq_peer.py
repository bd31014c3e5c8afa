"""taskiq on Redis streams. Its worker: `taskiq worker benchmarks.peers.python.taskiq_peer:broker --workers 1`."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from typing import Annotated

from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq_redis import RedisStreamBroker

from benchmarks import tally
from benchmarks.peers.python.producing import FAILING, Awaited, FailsOnce, arguments_of, main

READ_AT_ONCE = 1_000
"""Messages of one read; 100 unless told. Each read is followed by a look for abandoned ones, which costs a lock."""
BULK_LANES = 100

# The broker for streams, since it acknowledges what was done; the one for lists loses what a worker had when it ends.
broker = RedisStreamBroker(
    os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0"), xread_count=READ_AT_ONCE, consumer_id="0"
).with_middlewares(SimpleRetryMiddleware(default_retry_count=3))


@broker.task("noop")
async def noop() -> None:
    tally.count()


@broker.task("payload")
async def payload(text: str) -> None:
    tally.count()


@broker.task("flaky", retry_on_error=True)
async def flaky(number: int, context: Annotated[Context, TaskiqDepends()]) -> None:
    tally.count()
    if number % FAILING == 0 and not int(context.message.labels.get("_retries", 0)):
        raise FailsOnce


@broker.task("since")
async def since(sent_ns: int) -> None:
    tally.since(sent_ns)


TASKS = {"noop": noop, "payload": payload, "flaky": flaky, "since": since}


async def bulk(jobs: int, kind: str) -> None:
    """Many at a time: taskiq has no call for many tasks."""
    numbers = iter(range(jobs))

    async def lane() -> None:
        for number in numbers:
            await TASKS[kind].kiq(*arguments_of(kind, number))

    await asyncio.gather(*(lane() for _ in range(BULK_LANES)))


async def send(kind: str, sent_ns: int) -> None:
    await TASKS[kind].kiq(*arguments_of(kind, sent_ns=sent_ns))


if __name__ == "__main__":
    main(lambda: version("taskiq"), Awaited(bulk, send, broker.startup, broker.shutdown))
