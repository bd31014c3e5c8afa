"""Who should lead which partition: nomination by who is heard, decided by the log.

Orchestrators broadcast a beat every half second, naming the partitions they lead and those they have folded
to the end. Each of them computes, from the beats of the last 2.5 s, who would be best for a partition (the
highest hash of incarnation and partition among those who are caught up) and announces itself where it finds itself.
One that does not hear even its own beats claims nothing, for then the silence of others says nothing about them.

Two may both find themselves best: the fold accepts one announcement, and the ``supersedes`` of the other no longer
holds. Who leads and is no longer best need not step down by itself: the better one announces itself.
"""

from __future__ import annotations

from hashlib import blake2b

from penstock.schemas.messages import Beat

BEAT_EVERY_MS = 500
SILENT_MS = 2_500
ANNOUNCE_AGAIN_MS = 1_000
"""A nominee that does not lead announces again after this and up to as much more, by its own dice."""


class Peers:
    """The other orchestrators, as their beats show them. Times are monotonic ms."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._beats: dict[str, tuple[Beat, int]] = {}
        self._own_ms = -(10**12)

    def hear(self, beat: Beat, now_ms: int) -> None:
        """Take a beat, one's own included: that it came back shows that this one hears."""
        if beat.incarnation == self._incarnation:
            self._own_ms = now_ms
            return
        if beat.leaving:
            self._beats.pop(beat.incarnation, None)
        else:
            self._beats[beat.incarnation] = (beat, now_ms)

    def unheard(self, now_ms: int) -> None:
        """Nothing was listened to for a while: whoever was alive before must not count as silent for that."""
        self._own_ms = max(self._own_ms, now_ms)
        for incarnation, (beat, _) in self._beats.items():
            self._beats[incarnation] = (beat, now_ms)

    def deaf(self, now_ms: int, since_ms: int) -> bool:
        """Whether it does not hear even itself, and has listened since ``since_ms`` or longer."""
        return now_ms - max(self._own_ms, since_ms) > SILENT_MS

    def live(self, now_ms: int) -> list[Beat]:
        """Newest beats of those not silent."""
        for incarnation, (_, heard_ms) in list(self._beats.items()):
            if now_ms - heard_ms > SILENT_MS:
                del self._beats[incarnation]
        return [beat for beat, _ in self._beats.values()]

    def nominated(self, partition: int, live: list[Beat]) -> bool:
        """Whether this orchestrator, caught up on ``partition``, should lead it."""
        mine = _rank(self._incarnation, partition)
        return all(
            mine > _rank(beat.incarnation, partition)
            for beat in live
            if partition in beat.caught_up or partition in beat.leads
        )

    def announce_again_ms(self, partition: int) -> int:
        """How long this orchestrator waits before it repeats a claim that had no effect."""
        return (
            ANNOUNCE_AGAIN_MS
            + int.from_bytes(_rank(self._incarnation, partition)[:2], "big") % ANNOUNCE_AGAIN_MS
        )


def _rank(incarnation: str, partition: int) -> bytes:
    return blake2b(f"{incarnation}/{partition}".encode(), digest_size=8).digest()
