"""Who gets which of the jobs that wait: the most urgent first, shared out among the sessions that have room.

Each session is offered its share of what waits in the lanes that it takes, so that the first one asked does not take
all; what it leaves unused goes to those after it. Partitions are served by turns, and within one its lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.orchestrator.fleet import Fleet, Session
from penstock.orchestrator.outputs import Now, Outputs
from penstock.orchestrator.partition import PartitionMachine
from penstock.orchestrator.rows import Lane
from penstock.schemas.events import PRIORITIES

BUNDLED_JOBS = 64
"""Taken from one partition before the next one's turn comes, where there is room for many."""


class Dispatcher:
    """Proposes leases for one orchestrator, to the sessions of its fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._turn = 0

    def dispatch(self, led: Sequence[PartitionMachine], now: Now, out: Outputs) -> None:
        """Propose as many leases of the jobs of these partitions as there is room for."""
        for machine in led:
            machine.call()
        waiting_ones = [machine for machine in led if not machine.idle]
        if not waiting_ones:
            return
        self._turn += 1
        for rank in range(len(PRIORITIES)):
            lanes = {machine: of_rank for machine in waiting_ones if (of_rank := machine.lanes(rank))}
            if not lanes:
                continue
            takers = [
                (session, fitting)
                for session in self._fleet.with_room(rank)
                if (fitting := _fitting(session, lanes))
            ]
            for index, (session, fitting) in enumerate(takers):
                waiting = sum(machine.waiting(of_machine) for machine, of_machine in fitting.items())
                share = -(-waiting // (len(takers) - index))
                room = min(session.room(rank), share)
                for part, most in _by_limit(session, fitting, room):
                    room -= self._fill(session, part, min(room, most), now, out)

    def _fill(
        self,
        session: Session,
        fitting: dict[PartitionMachine, list[Lane]],
        limit: int,
        now: Now,
        out: Outputs,
    ) -> int:
        """Give a session up to ``limit`` jobs: from all partitions by turns, many at once from each. How many it got.

        Their leases, and later their outcomes, are then few long records instead of one for each partition.
        """
        left = limit
        order = list(fitting)
        start = self._turn % len(order)
        order = order[start:] + order[:start]
        while order and left > 0:
            share = -(-left // len(order))
            if left > len(order):
                share = max(share, min(left, BUNDLED_JOBS))
            still: list[PartitionMachine] = []
            for machine in order:
                wanted = min(share, left)
                given = machine.lease(fitting[machine], session, wanted, now, out) if wanted else 0
                left -= given
                if given and given == wanted:
                    still.append(machine)
            order = still
        return limit - left


def _by_limit(
    session: Session, fitting: dict[PartitionMachine, list[Lane]], room: int
) -> list[tuple[dict[PartitionMachine, list[Lane]], int]]:
    """The lanes of each type that has a limit of its own, with how many more it allows; then all others together."""
    if not session.limits:
        return [(fitting, room)]
    found: dict[str, dict[PartitionMachine, list[Lane]]] = {}
    for machine, lanes in fitting.items():
        for lane in lanes:
            limited = lane.job_type if lane.job_type in session.limits else ""
            found.setdefault(limited, {}).setdefault(machine, []).append(lane)
    others = found.pop("", None)
    parts = [(part, session.room_for(job_type) or 0) for job_type, part in sorted(found.items())]
    return parts if others is None else [*parts, (others, room)]


def _fitting(
    session: Session, lanes: dict[PartitionMachine, list[Lane]]
) -> dict[PartitionMachine, list[Lane]]:
    """The lanes that a session takes, by partition; partitions without any are left out."""
    return {
        machine: taken
        for machine, of_machine in lanes.items()
        if (taken := [lane for lane in of_machine if session.takes(lane)])
    }
