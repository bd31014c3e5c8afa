"""How many worker processes there should be, from what each of them tells. Pure.

It grows while every slot is taken and what waits would wait for longer than it should: at once, and at most to twice as
many, which are then waited for until they have told of themselves. It shrinks by one after a time in which one fewer
would have been enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

TARGET_WAIT_MS = 500
"""What waits longer calls for more processes."""

FULL = 0.9
"""Share of slots that are busy from which a process counts as full."""

ENOUGH = 0.7
"""Share of slots up to which fewer processes are enough."""

CALM_MS = 10_000
"""How long that has to be so."""

MANY = -1
"""Of jobs that wait: some, and nobody knows how many."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one process tells.

    ``held`` jobs wait in it for a slot, ``waiting`` ones at the orchestrators for any worker of its pool (or ``MANY``);
    ``finished`` counts up since its start; ``stuck`` slots are lost to handlers that do not stop.
    """

    concurrency: int
    busy: int = 0
    stuck: int = 0
    held: int = 0
    waiting: int = 0
    finished: int = 0


class Bounds(NamedTuple):
    """At least and at most so many processes."""

    least: int
    most: int


def bounds_of(text: str) -> Bounds:
    """``4`` is always four, ``1..8`` one to eight.

    Raises:
        ValueError: it is neither.
    """
    least, dots, most = text.partition("..")
    if not all(
        part.isascii() and part.isdigit() and len(part) < 5 for part in (least, most if dots else least)
    ):
        raise ValueError("must be a number of processes like 4, or bounds like 1..8")
    found = Bounds(int(least), int(most) if dots else int(least))
    if not 1 <= found.least <= found.most:
        raise ValueError("must be at least one process, and no more at least than at most")
    return found


class Scaling:
    """Told the loads again and again, it says how many processes there should be."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._calm_since_ms: float | None = None
        self._finished: dict[int, tuple[float, int]] = {}
        self._rates: dict[int, float] = {}

    def wanted(self, loads: Sequence[tuple[int, Load | None]], now_ms: float) -> int:
        """How many there should be.

        Args:
            loads: of each process that runs and is not leaving, by its number; None of one that has not told yet.
            now_ms: monotonic.
        """
        running = len(loads)
        if running < self._bounds.least or running > self._bounds.most:
            self._calm_since_ms = None
            return min(max(running, self._bounds.least), self._bounds.most)
        told = [(number, load) for number, load in loads if load is not None]
        self._measure(told, now_ms)
        if len(told) < running:
            return running
        grown = self._grown([load for _, load in told])
        if grown > running:
            self._calm_since_ms = None
            return min(grown, self._bounds.most)
        return self._shrunk([load for _, load in told], now_ms)

    def _measure(self, told: Sequence[tuple[int, Load]], now_ms: float) -> None:
        """Jobs finished a second, of each."""
        present = {number for number, _ in told}
        for gone in self._finished.keys() - present:
            del self._finished[gone]
            self._rates.pop(gone, None)
        for number, load in told:
            then_ms, then = self._finished.setdefault(number, (now_ms, load.finished))
            if now_ms - then_ms >= TARGET_WAIT_MS:
                self._rates[number] = (load.finished - then) * 1_000 / (now_ms - then_ms)
                self._finished[number] = (now_ms, load.finished)

    def _grown(self, loads: Sequence[Load]) -> int:
        running = len(loads)
        unmet = any(load.held or load.waiting for load in loads)
        if not unmet or not all(load.busy >= FULL * _slots(load) for load in loads):
            return running
        if any(load.waiting == MANY for load in loads):
            return 2 * running
        waiting = max(load.waiting for load in loads) + sum(load.held for load in loads)
        rate = sum(self._rates.values())
        if not rate:
            # Nothing ends: as many as would take all that waits at once.
            return min(2 * running, running + math.ceil(waiting / max(1, _slots(loads[0]))))
        late = waiting * 1_000 / rate / TARGET_WAIT_MS
        return running if late <= 1 else min(2 * running, math.ceil(running * late))

    def _shrunk(self, loads: Sequence[Load], now_ms: float) -> int:
        running = len(loads)
        demand = sum(load.busy + load.held for load in loads) + max(0, *(load.waiting for load in loads))
        room = sum(map(_slots, loads[:-1]))
        if (
            running <= self._bounds.least
            or demand > ENOUGH * room
            or any(load.waiting == MANY for load in loads)
        ):
            self._calm_since_ms = None
            return running
        if self._calm_since_ms is None:
            self._calm_since_ms = now_ms
        if now_ms - self._calm_since_ms < CALM_MS:
            return running
        self._calm_since_ms = None
        return running - 1


def _slots(load: Load) -> int:
    return max(load.concurrency - load.stuck, 0)
