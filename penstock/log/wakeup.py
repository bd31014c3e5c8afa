"""Waiting for new records in one process: a tail takes what is there, else sleeps until somebody wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.log.port import Record
from penstock.schemas.errors import LogUnavailable


class Wakeup:
    """Wakes every waiter at each :meth:`fire`."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def poll(
        self, take: Callable[[], list[Record]], max_wait_ms: int, closed: Callable[[], bool]
    ) -> list[Record]:
        """What ``take`` returns, as soon as that is not empty; an empty list after ``max_wait_ms``.

        Raises:
            LogUnavailable: ``closed`` became true.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait_ms / 1000
        # A tail that always finds records must still let others run.
        await asyncio.sleep(0)
        while True:
            if closed():
                raise LogUnavailable("The log or this tail of it is closed.")
            records = take()
            left_s = deadline - loop.time()
            if records or left_s <= 0:
                return records
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=left_s)
            finally:
                self._waiters.discard(waiter)
