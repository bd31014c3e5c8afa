"""From before a job is enqueued until its handler's first line: with nothing else going on, and at half load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import tally
from benchmarks.report import Table, millis
from benchmarks.side_by_side import FAILED, IN_FLIGHT, Plan, by_turns
from benchmarks.system import System, Wrong, drain

IDLE_PER_S = 20.0
WARM_UP_S = 2.0
PROBE_JOBS = 5_000
PROBE_S = 2.0
SHARES = (50, 95, 99)
CASES = ("idle", "half load")


def latency(systems: Sequence[System], plan: Plan) -> Iterator[Table]:
    """Idle is one job every 50 ms. Half load is half of what the system can enqueue one by one *and* run at once.

    What it can do at once is taken to be ``1 / (1/e + 1/d)`` of what it can enqueue (e) and drain (d) alone, since
    both share the machine; it is found anew for every system in every round.
    """
    found = by_turns(systems, plan.fewer(), "latency", lambda system: _measured(system, plan))
    for case in CASES:
        columns = [f"p{share}, ms" for share in SHARES] + ["jobs/s"]
        title = "nothing else going on" if case == "idle" else "at half load"
        table = Table(f"latency, {case}", f"Latency from enqueue to handler, {title}", columns)
        for system in systems:
            rounds = found.get(system.name)
            if not rounds:
                table.add(system.name, [FAILED] * len(columns))
                continue
            times = sorted(time for result in rounds for time in result.samples[case])
            per_s = sum(result.rates[case] for result in rounds) / len(rounds)
            quantiles = [times[min(len(times) - 1, len(times) * share // 100)] for share in SHARES]
            table.add(system.name, [*map(millis, quantiles), f"{per_s:,.0f}"], [*quantiles, per_s])
        yield table


class _Round:
    """Latencies in ms and jobs a second, by case."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}
        self.rates: dict[str, float] = {}

    def __str__(self) -> str:
        return "; ".join(
            f"{case} at {self.rates[case]:,.0f}/s: median {millis(sorted(times)[len(times) // 2])} ms"
            for case, times in self.samples.items()
        )


def _measured(system: System, plan: Plan) -> _Round:
    system.clear()
    enqueued = system.one(PROBE_S, IN_FLIGHT)["per_s"]
    _, drained = drain(system, PROBE_JOBS)
    half = 0.5 / (1 / enqueued + 1 / drained)
    found = _Round()
    system.clear()
    with system.working():
        for case, per_s, seconds, lanes in (
            ("idle", IDLE_PER_S, plan.idle_s, 1),
            ("half load", half, plan.loaded_s, IN_FLIGHT),
        ):
            _paced(system, per_s, WARM_UP_S, lanes)
            tally.forget_latencies(system.tally)
            jobs = _paced(system, per_s, seconds, lanes)
            found.samples[case] = tally.read_latencies_ms(system.tally)
            found.rates[case] = jobs / seconds
            if len(found.samples[case]) < jobs:
                raise Wrong(f"{system.name}: {len(found.samples[case])} latencies of {jobs} jobs")
    return found


def _paced(system: System, per_s: float, seconds: float, lanes: int) -> int:
    before = system.ran()
    jobs = int(system.pace(per_s, seconds, lanes)["jobs"])
    system.wait_ran(before + jobs)
    return jobs
