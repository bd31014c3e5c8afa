"""A leader is killed while jobs wait, and how long its partitions stand still is told by their handlers."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks import tally
from benchmarks.ours import READY_TIMEOUT_S, Penstock
from benchmarks.report import Table
from benchmarks.side_by_side import Plan
from tests.kafka_broker import Broker

BEFORE_S = 5.0
AFTER_S = 15.0
STANDSTILL_S = 0.8
"""Shorter pauses are not told from a busy machine's."""
LEADING = re.compile(r"^(?P<at>\S+Z) .*partition (?P<partition>\d+): leading", re.MULTILINE)


def failover(broker: Broker, plan: Plan) -> Iterator[Table]:
    """Two nodes share the partitions; one is ended with SIGKILL. No job may be lost."""
    ours = Penstock(broker, nodes=2)
    for name in ours.leaders:
        ours.stack[name].environment["PENSTOCK_LOG_LEVEL"] = "info"  # they tell what they lead
    with contextlib.closing(ours), ours.round():
        ours.clear()
        ours.bulk(plan.large, "placed")
        with ours.working():
            ours.wait_ran(1)
            time.sleep(BEFORE_S)
            outputs = {name: ours.stack[name].output for name in ours.leaders}
            # Whoever came first may lead them all: of the other nobody would miss anything.
            by_name = {name: led_by(name, outputs) for name in ours.leaders}
            victim = max(by_name, key=lambda name: len(by_name[name]))
            led, killed = by_name[victim], ours.stack[victim]
            ours.gone.add(killed.name)
            killed_ns = time.time_ns()
            killed.kill()
            time.sleep(AFTER_S)
            waiting = plan.large - ours.ran()
            runs = tally.read_places(ours.tally)
        stopped = standstills_s(runs, killed_ns, led)
        killed.start().wait_ready(READY_TIMEOUT_S)
    print(f"  failover: partitions stood still for {', '.join(f'{s:.1f}' for s in stopped)} s", flush=True)
    table = Table(
        "failover",
        f"A leader is killed with {waiting:,} jobs waiting",
        ("partitions that it led", "first job after, s (median)", "last partition's first job after, s"),
    )
    if stopped:
        cells = [str(len(stopped)), f"{median(stopped):.1f}", f"{max(stopped):.1f}"]
        table.add("Penstock", cells, [len(stopped), median(stopped), max(stopped)])
    else:
        table.add("Penstock", ["none was seen to stop", "", ""])
    yield table


def led_by(name: str, outputs: Mapping[str, Path]) -> list[int]:
    """Partitions that a node leads, by what all of them logged: who said so last does."""
    said = sorted(
        (found["at"], int(found["partition"]), who)
        for who, output in outputs.items()
        for found in LEADING.finditer(output.read_text(encoding="utf-8", errors="replace"))
    )
    leaders = {partition: who for _, partition, who in said}
    return sorted(partition for partition, who in leaders.items() if who == name)


def standstills_s(runs: Sequence[tuple[int, int]], killed_ns: int, led: Sequence[int]) -> list[float]:
    """From the kill until a partition went on, for each that paused: the end of its longest pause after the kill.

    What was leased before still runs right after the kill, so the first run after it says nothing. ``runs`` are
    partition and time in ns of handlers' starts.
    """
    found: list[float] = []
    for partition in led:
        times = sorted(at for where, at in runs if where == partition and at > killed_ns)
        pauses = [(after - before, after) for before, after in zip([killed_ns, *times], times, strict=False)]
        longest, ended = max(pauses, default=(0, 0))
        if longest > STANDSTILL_S * 1e9:
            found.append((ended - killed_ns) / 1e9)
    return sorted(found)
