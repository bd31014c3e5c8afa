"""Sharing out a worker's capacity among the orchestrators that may lease to it.

Each live orchestrator has a *share*: the most leases it may let the worker hold at once. Shares follow the
backlogs that the orchestrators publish. A share cannot simply be moved: the orchestrator it is taken from may
be using it, and may not yet have heard that it is less. So every orchestrator is *charged* the most it may
still hold, which is the largest of its share, of every earlier share it may still believe in, and of what it
last said it holds; only capacity that nobody is charged for is handed out. A lowered share is believed from the
acknowledgement of the heartbeat that said so.

Where there is less capacity than orchestrators with work, they take turns, the one that waited longest first.

Pure: time (any clock, ms) is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping

TURN_MS = 500
"""How long an orchestrator keeps the share that another is waiting for."""

IDLE_FRACTION = 8
"""One without backlog keeps 1/8 of an equal part, so that its next job needs no round trip."""


class Account:
    """One orchestrator's part."""

    __slots__ = ("backlog", "granted_ms", "held", "share", "superseded", "wanted")

    def __init__(self) -> None:
        self.backlog = 0
        self.share = 0
        """What the next heartbeat says."""
        self.wanted = 0
        """What it should get."""
        self.held = 0
        """Leases it said it holds, with its last acknowledgement."""
        self.superseded: list[tuple[int, int]] = []
        """(sequence number of the first heartbeat that said less, the share before it)."""
        self.granted_ms = float("-inf")
        """When it last got from no share to one."""

    def supersede(self, seq: int) -> None:
        """The share is lowered with heartbeat ``seq``. What this covers anyway is forgotten, so that an orchestrator
        that never acknowledges leaves no trail.
        """
        while self.superseded and self.superseded[-1][1] <= self.share:
            self.superseded.pop()
        self.superseded.append((seq, self.share))

    @property
    def charged(self) -> int:
        """The most leases it may hold now or soon."""
        return max(self.share, self.held, *(share for _, share in self.superseded), 0)


class Credits:
    """The shares of one worker's capacity.

    Args:
        capacity: leases that it may hold at once.
        reserves: whether orchestrators without backlog keep a little of it. Of a few leases that would be too much.
    """

    def __init__(self, capacity: int, *, reserves: bool = True) -> None:
        self.capacity = capacity
        self._reserves = reserves
        self._accounts: dict[str, Account] = {}
        self._next_seq = 0
        self._unpublished = False

    # What is known

    def observe(self, orchestrator: str, backlog: int) -> None:
        """An orchestrator (by incarnation) is alive, with so many jobs ready that this worker could run."""
        self._accounts.setdefault(orchestrator, Account()).backlog = backlog

    def remove(self, orchestrator: str) -> None:
        """It is gone; whoever takes over counts its leases as their own."""
        if self._accounts.pop(orchestrator, None) is not None:
            self._unpublished = True

    def acknowledged(self, orchestrator: str, seq: int, outstanding: int) -> None:
        """It has seen heartbeat ``seq`` and holds ``outstanding`` leases of this worker."""
        account = self._accounts.get(orchestrator)
        if account is None:
            return
        account.held = outstanding
        account.superseded = [entry for entry in account.superseded if entry[0] > seq]

    # What follows

    @property
    def settling(self) -> bool:
        """Whether capacity waits to be freed by one orchestrator for another."""
        for account in self._accounts.values():  # noqa: SIM110 - asked for every outcome, and any() takes thrice as long
            if account.wanted > account.share:
                return True
        return False

    @property
    def unpublished(self) -> bool:
        """Whether shares have changed since they were last published."""
        return self._unpublished

    def publish(self, seq: int) -> dict[str, int]:
        """The shares for heartbeat ``seq``, which must be greater than any before."""
        self._unpublished = False
        self._next_seq = seq + 1
        return {name: account.share for name, account in self._accounts.items() if account.share}

    def total_charged(self) -> int:
        return sum(account.charged for account in self._accounts.values())

    def settle(self, now_ms: float) -> None:
        """Move shares towards what they should be, as far as it is safe now."""
        self._want(now_ms)
        for account in self._accounts.values():
            if account.wanted < account.share:
                account.supersede(self._next_seq)
                account.share = account.wanted
                self._unpublished = True
        free = self.capacity - self.total_charged()
        for account in sorted(self._accounts.values(), key=lambda account: account.granted_ms):
            # Raising a share up to what is charged anyway costs nothing.
            grant = min(account.wanted - account.share, max(free, 0) + account.charged - account.share)
            if grant <= 0:
                continue
            charged = account.charged
            if account.share == 0:
                account.granted_ms = now_ms
            account.share += grant
            free -= account.charged - charged
            self._unpublished = True

    def _want(self, now_ms: float) -> None:
        ideal = self._ideal(now_ms)
        # Backlogs change all the time; small differences are not worth a heartbeat each.
        tolerance = self.capacity // 8
        drifted = sum(account.wanted for account in self._accounts.values()) != min(
            self.capacity, sum(ideal.values())
        ) or any(
            abs(share - self._accounts[name].wanted) > tolerance
            or (share == 0) != (self._accounts[name].wanted == 0)
            for name, share in ideal.items()
        )
        if drifted:
            for name, share in ideal.items():
                self._accounts[name].wanted = share

    def _ideal(self, now_ms: float) -> dict[str, int]:
        busy = {name: account.backlog for name, account in self._accounts.items() if account.backlog}
        if not busy:
            busy = dict.fromkeys(self._accounts, 1)
        if len(busy) > self.capacity:
            return dict.fromkeys(self._accounts, 0) | self._turns(busy, now_ms)
        idle = [name for name in self._accounts if name not in busy]
        spare = self.capacity - len(busy)
        reserve = self.capacity // (IDLE_FRACTION * len(self._accounts)) if idle else 0
        each = min(max(1, reserve), spare // len(idle)) if idle and self._reserves else 0
        return dict.fromkeys(idle, each) | divide(self.capacity - each * len(idle), busy)

    def _turns(self, busy: Mapping[str, int], now_ms: float) -> dict[str, int]:
        """One lease each for those whose turn it is: who holds a share keeps it for a while, then who waited
        longest.
        """

        def rank(name: str) -> tuple[bool, float, str]:
            account = self._accounts[name]
            keeps = account.share > 0 and now_ms - account.granted_ms < TURN_MS
            return not keeps, account.granted_ms, name

        return dict.fromkeys(sorted(busy, key=rank)[: self.capacity], 1)


def divide(amount: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Split ``amount`` by weight into whole parts that sum up to it, each at least 1 (``amount`` ≥ number of
    weights).
    """
    total = sum(weights.values())
    rest = amount - len(weights)
    parts = {name: 1 + rest * weight // total for name, weight in weights.items()}
    left = amount - sum(parts.values())
    for name in sorted(weights, key=lambda name: (-(rest * weights[name] % total), name))[:left]:
        parts[name] += 1
    return parts
