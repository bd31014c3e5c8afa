"""Leases that a leader has written and not yet read back: what is neither in the backlog nor granted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from penstock.orchestrator.fleet import Session
from penstock.orchestrator.rows import Lane

LOST_MS = 45_000
"""A proposed lease that did not come back for so long is given up: longer than the log's writers keep trying."""


class Proposal:
    """One of them. ``made_ms`` is monotonic."""

    __slots__ = ("lane", "lease", "made_ms", "session")

    def __init__(self, lease: str, lane: Lane, session: Session, made_ms: int) -> None:
        self.lease, self.lane, self.session, self.made_ms = lease, lane, session, made_ms


class Proposals:
    """The proposals of one led partition, by job key. Each counts as held by its session until it is taken out."""

    def __init__(self) -> None:
        self._by_key: dict[str, Proposal] = {}
        self.in_lane: Counter[Lane] = Counter()
        """How many of a lane's ready jobs are proposed."""

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[tuple[str, Proposal]]:
        return iter(self._by_key.items())

    def get(self, key: str) -> Proposal | None:
        return self._by_key.get(key)

    def add(self, key: str, lane: Lane, lease: str, session: Session, now_ms: int) -> None:
        self._by_key[key] = Proposal(lease, lane, session, now_ms)
        self.in_lane[lane] += 1
        session.propose(lane.job_type)

    def take(self, key: str) -> None:
        """It came back, accepted or refused, or is given up. Nothing happens if there is none."""
        proposal = self._by_key.pop(key, None)
        if proposal is not None:
            proposal.session.retract(proposal.lane.job_type)
            lane, in_lane = proposal.lane, self.in_lane
            left = in_lane[lane] - 1
            if left:
                in_lane[lane] = left
            else:
                del in_lane[lane]

    def take_all(self) -> None:
        """Another leads: what was proposed is no longer this one's business."""
        for key in list(self._by_key):
            self.take(key)

    def lost(self, now_ms: int) -> list[str]:
        """Keys of those that should have come back long ago."""
        return [key for key, proposal in self._by_key.items() if now_ms - proposal.made_ms >= LOST_MS]
