"""Waiting for a condition, with one patience for the whole suite: long, for a machine that is busy with other things.

What takes longer than this does not come. A test that passes never waits for it to the end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

PATIENCE_S = 30.0

T = TypeVar("T")


class Failing(Protocol):
    """A service that tells of its end."""

    failure: asyncio.Future[None]


async def until(condition: Callable[[], object], *services: Failing) -> None:
    """Wait until the condition is true; what ends a service meanwhile ends the wait, with its error."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            for service in services:
                if service.failure.done():
                    service.failure.result()
            await asyncio.sleep(0.005)


def wait_for(
    what: str, probe: Callable[[], T | None], timeout_s: float = PATIENCE_S, pause_s: float = 0.05
) -> T:
    """The first true answer of ``probe``; AssertionError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s (last: {found!r})")
        time.sleep(pause_s)


def free_port() -> int:
    """A port below the range of outgoing connections that nobody listens on, so that a restart finds it free."""
    for port in range(12_000 + os.getpid() * 7 % 6_000, 19_900):
        if port in _GIVEN:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _GIVEN.add(port)
        return port
    raise RuntimeError("no free port")


_GIVEN: set[int] = set()
