"""Retention: jobs that ended long ago leave the fold's state, by a ``Forgotten`` line of their partition's leader.

::

    round begins ──▶ a bounded number of rows, in key order ──▶ those old enough: Forgotten{seen} ──▶ ... ──▶ round ends
         ▲                       ▲                                        │ read back                          │
         │                       └────────────────────────────────────────┘                                    │
         └──────────────────────────────── a tenth of the shortest age later ──────────────────────────────────┘

Nothing is written when a job ends and nothing is owed in memory: who is to be forgotten is found in the committed rows,
by whoever leads. A leader that dies in the middle of a round leaves a successor that begins one; lines that were lost
are written again in the next round; a line that comes twice finds no job. Ages count by the log's time, since the job
ended, so a clock that is wrong forgets nobody: the fold refuses what is younger than twice the age of a verb, and the
log's time is what it goes by.

Foreground work comes first. One partition at a time has its turn, each turn looks at a few hundred rows, and a
partition's next turn waits until the lines of its last one are folded: where the log is slow, so is this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from msgspec import Struct

from penstock.core.job import MAX_VERB_AGE_MS, TERMINAL, Job, State
from penstock.core.rows import decode_job_row
from penstock.core.unique import holds
from penstock.orchestrator.outputs import Now, Outputs
from penstock.state.partition_store import FOLD, PartitionStore

MIN_AGE_MS = 2 * MAX_VERB_AGE_MS
"""The fold forgets no job that ended later: late copies of lines about it could still arrive."""

ROWS_A_TURN = 400
TURN_EVERY_MS = 40
LONGEST_PAUSE_MS = 3_600_000
SHORTEST_PAUSE_MS = 60_000
AGAIN_MS = 5_000
"""A turn's lines that do not come back for so long are left to the next round."""

_FIRST, _BEHIND = b"j", b"k"


class Retention(Struct, frozen=True):
    """How long jobs stay after their end, in ms of log time by state; a state that is missing is kept for ever."""

    ages_ms: Mapping[State, int] = {}

    def __post_init__(self) -> None:
        for state, age_ms in self.ages_ms.items():
            if state not in TERMINAL:
                raise ValueError(f"jobs that are {state} have not ended")
            if age_ms < MIN_AGE_MS:
                raise ValueError(
                    f"{state}: {age_ms} ms is less than the {MIN_AGE_MS} ms that a job must be kept"
                )

    @property
    def pause_ms(self) -> int:
        """From the beginning of one round to that of the next."""
        return min(LONGEST_PAUSE_MS, max(SHORTEST_PAUSE_MS, min(self.ages_ms.values(), default=0) // 10))

    def is_over(self, job: Job, log_ms: int) -> bool:
        """Whether a job's time is up, and the fold would let it go."""
        age_ms = self.ages_ms.get(job.state)
        if age_ms is None or log_ms < job.finished_at_ms + age_ms:
            return False
        if job.state == "dead" and not job.dead_lettered:
            return False
        if job.unique_key and holds(job, log_ms):
            return False
        return all(verdict.not_after_ms < log_ms for verdict in job.verdicts)


KEEP_FOR_EVER = Retention()


class Led(Protocol):
    """What retention needs of a partition that is led."""

    number: int
    epoch: int
    store: PartitionStore

    def forget(self, job: Job, now: Now, out: Outputs) -> None:
        """Propose that the job be forgotten."""
        ...


class _Round:
    """How far one leadership of one partition has looked. Times are monotonic ms."""

    __slots__ = ("began_ms", "cursor", "epoch", "last", "written_ms")

    def __init__(self, epoch: int, now_ms: int) -> None:
        self.epoch = epoch
        self.began_ms = now_ms
        self.cursor: bytes | None = _FIRST
        """The next row to look at; None: the round has ended."""
        self.last: tuple[str, int] | None = None
        """Key and ``seen`` of the last job proposed, until that line is folded."""
        self.written_ms = 0


class Forgetting:
    """Gives each led partition its turns. Owns no clock: times come with the calls."""

    def __init__(self, retention: Retention = KEEP_FOR_EVER) -> None:
        self.retention = retention
        self._rounds: dict[int, _Round] = {}
        self._turn_ms = -(10**9)
        self.clock_known = False
        """Whether the log was heard. Until then its time is a guess by this machine's clock: nobody is judged by it."""
        self.proposed = 0
        """Jobs proposed to be forgotten, by this process."""

    def next_turn_ms(self) -> int | None:
        """Monotonic time of the next turn; None where there is nothing to do."""
        if not self._rounds:
            return None
        soonest = min(self._due_ms(one) for one in self._rounds.values())
        return max(soonest, self._turn_ms + TURN_EVERY_MS)

    def turn(self, led: Iterable[Led], now: Now, out: Outputs) -> None:
        """Let the partition that has waited longest look at its next rows, if it is time."""
        if not self.retention.ages_ms or not self.clock_known or now.mono_ms < self._turn_ms + TURN_EVERY_MS:
            return
        by_number = {machine.number: machine for machine in led}
        self._follow(by_number, now)
        self._turn_ms = now.mono_ms
        for number, one in list(self._rounds.items()):
            machine = by_number[number]
            if self._due_ms(one) <= now.mono_ms and self._is_back(one, machine.store, now):
                if one.cursor is None:
                    one = _Round(one.epoch, now.mono_ms)
                self._look(machine, one, now, out)
                # Behind the others.
                del self._rounds[number]
                self._rounds[number] = one
                return

    def _follow(self, led: Mapping[int, Led], now: Now) -> None:
        for number in [number for number in self._rounds if number not in led]:
            del self._rounds[number]
        for number, machine in led.items():
            known = self._rounds.get(number)
            if known is None or known.epoch != machine.epoch:
                self._rounds[number] = _Round(machine.epoch, now.mono_ms)

    def _due_ms(self, one: _Round) -> int:
        return one.began_ms + self.retention.pause_ms if one.cursor is None else self._turn_ms

    def _is_back(self, one: _Round, store: PartitionStore, now: Now) -> bool:
        """Whether the lines of the last turn are folded, or not to be waited for any longer."""
        if one.last is not None:
            key, seen = one.last
            job = store.job(key)
            if job is not None and job.seen == seen and now.mono_ms < one.written_ms + AGAIN_MS:
                return False
            one.last = None
        return True

    def _look(self, machine: Led, one: _Round, now: Now, out: Outputs) -> None:
        store, is_over = machine.store, self.retention.is_over
        assert one.cursor is not None
        row, rows = b"", 0
        for row, data in store.store.scan(FOLD, one.cursor, _BEHIND, limit=ROWS_A_TURN):
            rows += 1
            if not is_over(decode_job_row(data), now.log_ms):
                continue
            # What is committed may have changed since.
            key = row[1:].decode()
            job = store.job(key)
            if job is not None and is_over(job, now.log_ms):
                machine.forget(job, now, out)
                one.last, one.written_ms = (key, job.seen), now.mono_ms
                self.proposed += 1
        one.cursor = row + b"\0" if rows == ROWS_A_TURN else None
