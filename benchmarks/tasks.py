"""Handlers of the benchmarks."""

import time

from penstock import task


@task
async def noop() -> None:
    """Does nothing."""


@task
async def since(sent_ns: int) -> int:
    """Nanoseconds from the producer's clock to the handler's: both are this machine's."""
    return time.time_ns() - sent_ns
