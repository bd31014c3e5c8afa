"""The time that a step of the machine is given, and all that it gives out.

Plain values: the shell, or a simulator, carries them out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from penstock.schemas.messages import Beat, Delivery, Echo, Signal


class Now(NamedTuple):
    """One moment by three clocks, in ms."""

    log_ms: int
    """The log's time, Unix: for timers."""
    mono_ms: int
    """Never steps back: for leases and beats."""
    wall_ms: int = 0
    """This machine's own clock, Unix: only to be compared with the log's."""


class Forward(NamedTuple):
    """Lines that stand in partition ``source`` and belong in ``target``: to be appended there, in order.

    When the log has acknowledged them, the shell hands this very value back in ``Inputs.forwarded``; ``batch`` tells
    it from all others of this process.
    """

    source: int
    target: int
    batch: int
    lines: list[bytes]


class QuarantineNote(NamedTuple):
    """A refused line for the quarantine topic."""

    partition: int
    position: int
    time_ms: int
    reason: str
    size_bytes: int
    sha256: bytes
    head: bytes


class Outputs:
    """Everything that a step wants done. Order inside each list counts; between the lists it does not."""

    __slots__ = ("beats", "deliveries", "echo", "forwards", "lines", "notices", "quarantine", "signals")

    def __init__(self) -> None:
        self.lines: dict[int, list[bytes]] = defaultdict(list)
        """Lines to append to the jobs topic, by partition."""
        self.deliveries: dict[tuple[str, int, str], list[Delivery]] = defaultdict(list)
        """By priority, route and worker id."""
        self.signals: dict[int, list[Signal]] = defaultdict(list)
        """By route."""
        self.beats: list[Beat] = []
        self.echo: Echo | None = None
        """To be written to every partition of the workers topic."""
        self.forwards: list[Forward] = []
        self.quarantine: list[QuarantineNote] = []
        self.notices: list[str] = []
        """What an operator should read in the log."""
