"""What jobs cost that are asked for more: an id of one's own, a unique key, tags and a payload that searches find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from statistics import median

from benchmarks.ours import Penstock
from benchmarks.report import Table, rate
from benchmarks.side_by_side import Plan
from benchmarks.system import drain
from tests.kafka_broker import Broker

KINDS = (
    ("nothing more than a type", "noop"),
    ("an id of its own", "named"),
    ("a unique key", "unique"),
    ("a payload, a tag", "tagged"),
)
INDEXES = (("with the text index", True), ("without", False))


def costs(broker: Broker, plan: Plan) -> Iterator[Table]:
    """By turns, so that what changes on the machine meanwhile meets all alike."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        systems = [
            (index, stack.enter_context(closing(Penstock(broker, text_index=on)))) for index, on in INDEXES
        ]
        for turn in range(plan.rounds):
            for index, system in systems[:: -1 if turn % 2 else 1]:
                with system.round():
                    for name, kind in KINDS[turn % len(KINDS) :] + KINDS[: turn % len(KINDS)]:
                        measured = drain(system, plan.jobs, kind)
                        found.setdefault((name, index), []).append(measured)
                        print(f"  {name}, {index}: drained {measured[1]:,.0f}/s", flush=True)
    table = Table(
        "costs",
        f"What a job has, and what that costs: drain of {plan.jobs:,} no-op jobs",
        tuple(f"{what}, jobs/s, {index}" for index, _ in INDEXES for what in ("drained", "enqueued in bulk")),
        "An id of one's own and a unique key have each bulk call wait for the fold's verdict on every job.",
    )
    for name, _ in KINDS:
        rates: list[tuple[float, ...]] = []
        for index, _ in INDEXES:
            enqueued, drained = zip(*found[name, index], strict=True)
            rates += [drained, enqueued]
        table.add(name, map(rate, rates), map(median, rates))
    yield table
