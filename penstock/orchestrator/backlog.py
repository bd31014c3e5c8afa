"""Ready jobs of one led partition, in order, by lane.

Memory holds a window of each lane; what is beyond stays in the store and is read when the window runs low. A
million waiting jobs therefore cost no more memory than ten thousand. A job that leaves the backlog otherwise
than by being taken (cancelled, expired) is only marked, and dropped when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Sized
from itertools import islice

from penstock.core.job import Job
from penstock.orchestrator.rows import Index, Lane, lane_of, place_of
from penstock.orchestrator.turns import Turns

WINDOW = 8_192
"""Jobs of a lane held in memory at most; beyond, new ones wait in the store."""

REFILL_BELOW = 1_024

MOST_PASSED = 1_000
"""Jobs of a lane that are passed over at one time, for others of their concurrency keys have the turn."""

Taken = tuple[str, Lane, Job]
"""A job that is given out: its key, the lane it waited in, and its state."""


class _Window:
    """The head of a lane. ``rest_from``: from this place on jobs are only in the store; None when all are here."""

    __slots__ = ("entries", "rest_from")

    def __init__(self) -> None:
        self.entries: deque[tuple[int, str]] = deque()
        self.rest_from: bytes | None = None


class Backlog:
    """The ready jobs of one partition.

    Args:
        index: committed rows and counts of the partition.
        commit: makes the index complete up to the last folded line.
        job: the job of a key as of the last folded line.
        prepare: told of keys that are going to be asked for.
    """

    def __init__(
        self, index: Index, commit: Callable[[], None], job: Callable[[str], Job | None],
        prepare: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.turns = Turns(index, commit, job)
        self._index = index
        self._prepare = prepare
        self._commit = commit
        self._job = job
        self._windows: dict[Lane, _Window] = {}
        self._turn = 0
        self._left = False
        """Whether a job was left to the store since that was last committed."""

    def committed(self) -> None:
        """What was folded is in the store."""
        self._left = False
        self.turns.committed()

    def load(self) -> None:
        """Begin from the store. What was folded must be committed."""
        for lane in self._index.ready:
            window = self._windows[lane] = _Window()
            window.rest_from = b""
            self._refill(lane, window)

    def push(self, key: str, job: Job) -> None:
        """A job has just become ready."""
        lane = lane_of(job)
        window = self._windows.get(lane)
        if window is None:
            window = self._windows[lane] = _Window()
        if job.order != job.seen:
            # Given back: it keeps the place that it had.
            window.entries.appendleft((job.order, key))
        elif window.rest_from is not None:
            self._left = True
        elif len(window.entries) >= WINDOW:
            window.rest_from = place_of(job.order)
            self._left = True
        else:
            window.entries.append((job.order, key))

    def put_back(self, key: str, job: Job) -> None:
        """A job that was taken is still ready after all."""
        window = self._windows.setdefault(lane_of(job), _Window())
        window.entries.appendleft((job.order, key))

    def call(self) -> None:
        """Jobs that were passed over wait here again where nobody has the turn of their concurrency key any more."""
        for job in self.turns.called():
            self.put_back(job.key, job)

    def lanes(self, rank: int) -> list[Lane]:
        """Lanes of one urgency that have jobs to give."""
        return [lane for lane, window in self._windows.items() if lane.rank == rank and self._has(window)]

    @staticmethod
    def _has(window: _Window) -> bool:
        return bool(window.entries) or window.rest_from is not None

    @property
    def empty(self) -> bool:
        return not any(map(self._has, self._windows.values()))

    def take(self, lanes: list[Lane], limit: int, taken: Callable[[str], bool]) -> list[Taken]:
        """Up to ``limit`` jobs: by turns from each tenant's queues, and of a queue by turns from each of its types.

        Args:
            taken: tells of a key that is already proposed.
        """
        owners: dict[tuple[str, str], deque[Lane]] = {}
        for lane in lanes:
            owners.setdefault(lane.owner, deque()).append(lane)
        queue = deque(owners.values())
        if queue:
            for own in queue:
                own.rotate(-(self._turn // len(queue)))
            queue.rotate(-self._turn)
        self._turn += 1
        share = _share(limit, queue)
        found: list[Taken] = []
        # A job that came back may stand in a window twice, at its head and where it was read from the store.
        chosen: set[str] = set()
        while queue and len(found) < limit:
            own = queue.popleft()
            found += self._take_by_turns(own, min(share, limit - len(found)), taken, chosen)
            if own:
                queue.append(own)
        return found

    def _take_by_turns(
        self, lanes: deque[Lane], limit: int, taken: Callable[[str], bool], chosen: set[str]
    ) -> list[Taken]:
        """Up to ``limit`` jobs of one owner; lanes that have no more leave ``lanes``."""
        share = _share(limit, lanes)
        found: list[Taken] = []
        while lanes and len(found) < limit:
            lane = lanes.popleft()
            got = self._take_from(lane, min(share, limit - len(found)), taken, chosen)
            if got:
                found += got
                lanes.append(lane)
        return found

    def _take_from(
        self, lane: Lane, limit: int, taken: Callable[[str], bool], chosen: set[str]
    ) -> list[Taken]:
        window = self._windows.get(lane)
        found: list[Taken] = []
        if window is None:
            return found
        self._prepare([key for _, key in islice(window.entries, limit)])
        passed = 0
        while len(found) < limit:
            if window.rest_from is not None and len(window.entries) < REFILL_BELOW:
                self._refill(lane, window)
            if not window.entries:
                break
            order, key = window.entries.popleft()
            if key in chosen or taken(key):
                continue
            job = self._job(key)
            if job is None or job.state != "ready" or job.order != order or lane_of(job) != lane:
                continue
            if job.concurrency_key and not self.turns.take(job):
                passed += 1
                if passed == MOST_PASSED:
                    break
            else:
                found.append((key, lane, job))
                chosen.add(key)
        if not self._has(window):
            del self._windows[lane]
        return found

    def _refill(self, lane: Lane, window: _Window) -> None:
        if self._left:
            self._commit()
        rows = list(self._index.ready_from(lane, window.rest_from or b"", WINDOW))
        window.entries.extend(rows)
        window.rest_from = place_of(*rows[-1]) + b"\0" if len(rows) == WINDOW else None


def _share(limit: int, takers: Sized) -> int:
    return max(1, -(-limit // max(1, len(takers))))
