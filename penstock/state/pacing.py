"""How often a fold that is read is committed while nobody waits for it.

A job that is leased and done between two commits is written once instead of twice, so a busy process commits rarely;
an idle one at once, for then it costs nothing.
"""

from __future__ import annotations

QUIET_MS = 25
"""When nothing was folded for so long, what was is committed."""

QUIET_PART = 4
"""Where commits are dear and jobs are running, that takes a quarter of the time between two commits."""

LONGEST_MS = 1_000
MOST_ROWS = 4_000
"""Changed rows of one store that wait: more would hold the event loop for too long when they are written."""

SHARE = 0.2
"""Of the time, at most, that goes into commits; unless they are then rarer than ``LONGEST_MS``."""

_SMOOTHING = 0.25


def quiet_ms(wait_ms: int) -> int:
    """How long nothing must have been folded while jobs are running and commits are ``wait_ms`` apart."""
    return max(QUIET_MS, wait_ms // QUIET_PART)


class CommitPace:
    """For one process that commits ``stores`` alike."""

    def __init__(self, stores: int = 1) -> None:
        self.stores = stores
        self._took_ms = 0.0

    def took(self, ms: float) -> None:
        """The commit of one store took so long."""
        self._took_ms += _SMOOTHING * (ms - self._took_ms)

    @property
    def wait_ms(self) -> int:
        """From one commit of a store until the next one that nobody waits for."""
        return int(min(max(QUIET_MS, self._took_ms * self.stores / SHARE), LONGEST_MS))
