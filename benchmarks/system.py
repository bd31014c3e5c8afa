"""What the benchmarks ask of a job queue, whichever it is."""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import tally
from tests.waiting import wait_for

PATIENCE_S = 900.0
STALL_S = 60.0
"""When not one job more has run for so long, none will."""
FLAKY_RUNS = 1.1
"""Runs of a `flaky` job on average: one in ten fails once."""
ASK_S = 0.01
"""Between two questions whether all is done: often enough to tell, and seldom enough not to be felt."""
SETTLE_S = 0.5
"""After the last job, for a run too many to show itself."""


class Wrong(Exception):
    """A system did not do what it was asked for: jobs lost, handlers that did not run. Its row fails."""


class System(ABC):
    """A job queue with its servers running, used by one benchmark at a time."""

    name: str
    runs_once = True
    """Whether a handler that runs twice though nothing failed is an error. Some peers do that, and are let to."""

    def __init__(self) -> None:
        self.surplus_runs = 0
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-bench-tally-")
        self.tally = Path(self._folder.name)

    @abstractmethod
    def version(self) -> str:
        """Of the queue and of what it stands on."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all jobs, or begin anew to count them."""

    @abstractmethod
    def bulk(self, jobs: int, kind: str) -> float:
        """Enqueue jobs as fast as it goes; seconds that it took. All are in the queue, and can be seen there."""

    @abstractmethod
    def one(self, seconds: float, in_flight: int) -> dict[str, Any]:
        """Enqueue no-op jobs one by one: ``sent``, ``per_s``, ``p50_ms``, ``p95_ms``, ``p99_ms``."""

    @abstractmethod
    def pace(self, per_s: float, seconds: float, lanes: int) -> dict[str, Any]:
        """Enqueue ``since`` jobs at a rate: ``jobs`` that were sent."""

    @abstractmethod
    def start_worker(self) -> None:
        """Start what runs handlers, without waiting."""

    @abstractmethod
    def stop_worker(self) -> None:
        """End it in an orderly way."""

    @abstractmethod
    def unfinished(self, jobs: int) -> int:
        """Of so many jobs enqueued since `clear`, how many the system itself does not call done yet."""

    def begin_round(self) -> None:  # noqa: B027 - most have nothing to do here
        """Be there: what would take processor time from others while they are measured runs from here on."""

    def end_round(self) -> None:  # noqa: B027 - as above
        """Leave the machine to others, keeping what is stored."""

    def close(self) -> None:
        """End everything."""
        self._folder.cleanup()

    @contextmanager
    def round(self) -> Iterator[None]:
        """With the machine to itself."""
        try:
            self.begin_round()
            yield
        finally:
            self.end_round()

    @contextmanager
    def working(self) -> Iterator[None]:
        """With a worker that has done nothing yet."""
        tally.clear(self.tally)
        self.start_worker()
        try:
            yield
        finally:
            self.stop_worker()

    def ran(self) -> int:
        """Handlers that ran since the worker started."""
        return tally.read_count(self.tally)[0]

    def wait_ran(self, runs: int) -> None:
        """Wait until so many handlers have run since the worker started. Raises Wrong when none does any more."""
        ran, since = -1, 0.0
        while (now_ran := self.ran()) < runs:
            if now_ran != ran:
                ran, since = now_ran, time.monotonic()
            if time.monotonic() - since > STALL_S:
                raise Wrong(f"{self.name}: {ran} of {runs} handlers ran, and no more for {STALL_S:g} s")
            time.sleep(0.005)

    def wait_done(self, jobs: int, runs: int) -> float:
        """Wait until the system says that all jobs are done, and check that every handler ran.

        Returns the seconds from the first handler that ran until then. The handlers' count is looked at until it is
        complete, for that costs the system nothing; only then is the system asked, often.
        """
        self.wait_ran(runs)
        wait_for(f"{self.name} calls {jobs} jobs done", lambda: not self.unfinished(jobs), STALL_S, ASK_S)
        ended_ns = time.time_ns()
        first_ns = tally.read_count(self.tally)[1]
        time.sleep(SETTLE_S)
        surplus = self.ran() - runs
        if surplus < 0 or (surplus and self.runs_once):
            raise Wrong(f"{self.name}: {self.ran()} handlers ran, and {runs} should have")
        self.surplus_runs += surplus
        return (ended_ns - first_ns) / 1e9


def drain(system: System, jobs: int, kind: str = "noop") -> tuple[float, float]:
    """Enqueue all, then start a worker: jobs a second enqueued, and jobs a second done."""
    system.clear()
    enqueued_s = system.bulk(jobs, kind)
    with system.working():
        runs = round(jobs * FLAKY_RUNS) if kind == "flaky" else jobs
        done_s = system.wait_done(jobs, runs)
    return jobs / enqueued_s, jobs / done_s
