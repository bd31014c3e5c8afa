"""Which orchestrators are alive, from the beats they broadcast. Pure: time (monotonic ms) is an argument."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.schemas.messages import Beat

SILENT_MS = 2_500
"""An orchestrator that was not heard for so long is gone."""


class Roster:
    """The live orchestrators by incarnation."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[float, Beat]] = {}

    def hear(self, beat: Beat, now_ms: float) -> list[str]:
        """Take a beat. Returns the incarnations that are gone by it: its own if it leaves, older ones of its
        name.
        """
        gone: list[str] = []
        for incarnation, (_, other) in self._live.items():
            if other.orchestrator == beat.orchestrator and incarnation < beat.incarnation:
                gone.append(incarnation)
            elif other.orchestrator == beat.orchestrator and incarnation > beat.incarnation:
                # A late beat of a process that was replaced.
                return []
        if beat.leaving:
            if beat.incarnation in self._live:
                gone.append(beat.incarnation)
        else:
            self._live[beat.incarnation] = (now_ms, beat)
        for incarnation in gone:
            del self._live[incarnation]
        return gone

    def silent(self, now_ms: float) -> list[str]:
        """Remove and return the incarnations that have fallen silent."""
        gone = [name for name, (heard_ms, _) in self._live.items() if now_ms - heard_ms > SILENT_MS]
        for incarnation in gone:
            del self._live[incarnation]
        return gone

    def backlogs(self) -> Mapping[str, Mapping[str, int]]:
        """Backlog (``pool/type`` → ready jobs) by incarnation."""
        return {incarnation: beat.backlog for incarnation, (_, beat) in self._live.items()}
