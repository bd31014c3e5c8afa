"""What the clocks and dice of a simulated process say: those of the world, off by as much as its host's are."""

from __future__ import annotations

import gc
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from penstock.client import idgen
from penstock.client.idgen import UlidSource
from tests.sim.world import START_MS, World


class Clock:
    """A host's clocks: the wall clock is off by ``skew_ms``, and both run at ``rate`` (1.0 is right)."""

    def __init__(self, world: World, *, skew_ms: int = 0, rate: float = 1.0, up_ms: int = 0) -> None:
        self._world = world
        self.skew_ms = skew_ms
        self.rate = rate
        self._up_ms = up_ms
        """How long the host was up when the world began: monotonic clocks of two hosts have nothing in common."""

    def monotonic_ms(self) -> float:
        return self._up_ms + self._world.mono_ms * self.rate

    def wall_ms(self) -> float:
        return START_MS + self._world.mono_ms * self.rate + self.skew_ms


class _Ids:
    """Ids of whichever process asks."""

    def __init__(self, world: World) -> None:
        self._world = world

    def next(self) -> str:
        return self._of().next()

    def next_in(self, partition: int, partitions: int) -> str:
        return self._of().next_in(partition, partitions)

    def _of(self) -> UlidSource:
        assert self._world.current is not None, "an id is made outside of every process"
        return self._world.current.ids


@contextmanager
def virtual_clocks(world: World) -> Iterator[None]:
    """All that asks Python's clocks and dice inside is told those of the process that asks."""
    outside = Clock(world)

    def clock() -> Clock:
        return outside if world.current is None else world.current.clock

    def monotonic() -> float:
        return clock().monotonic_ms() / 1_000

    def monotonic_ns() -> int:
        return int(clock().monotonic_ms() * 1_000_000)

    def wall() -> float:
        return clock().wall_ms() / 1_000

    def wall_ns() -> int:
        return int(clock().wall_ms() * 1_000_000)

    collecting = gc.isenabled()
    gc.disable()
    if not gc.get_freeze_count():
        # What is loaded by now stays, and need not be looked through after each run.
        gc.freeze()
    try:
        with (
            mock.patch.multiple(
                time, monotonic=monotonic, monotonic_ns=monotonic_ns, perf_counter=monotonic, time=wall,
                time_ns=wall_ns,
            ),
            mock.patch.object(os, "urandom", world.random.randbytes),
            mock.patch.object(idgen, "_source", _Ids(world)),
        ):  # fmt: skip
            yield
    finally:
        _bury(world)
        if collecting:
            gc.enable()
            gc.collect()


def _bury(world: World) -> None:
    """What was left hanging is closed without a word: its process is dead."""
    with warnings.catch_warnings(), mock.patch.object(sys, "unraisablehook"):
        warnings.simplefilter("ignore")
        for loop in world.loops:
            loop.bury()
        world.loops.clear()
