"""Parts in which all systems do the same, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from benchmarks.report import Table, millis, rate
from benchmarks.system import System, Wrong, drain

IN_FLIGHT = 32


@dataclass
class Plan:
    """How much is done. ``failures`` collects what went wrong; such a row says so, and the run's exit code."""

    jobs: int
    rounds: int
    one_s: float
    idle_s: float = 10
    loaded_s: float = 6
    large: int = 1_000_000
    """Jobs of the parts that are about many."""
    failures: list[str] = field(default_factory=list[str])
    versions: dict[str, str] = field(default_factory=dict[str, str])

    def fewer(self) -> Plan:
        """With one round less, for parts that take long and differ by much."""
        return replace(self, rounds=max(1, self.rounds - 1))


def by_turns(
    systems: Sequence[System], plan: Plan, what: str, measure: Callable[[System], Any]
) -> dict[str, list[Any]]:
    """Results of every system by its name, one a round. Each round begins with another system.

    A round that fails is done once more, and named at the end: a peer may lose a job now and then. A system that fails
    twice running is left out from then on, with no results at all.
    """
    found: dict[str, list[Any]] = {system.name: [] for system in systems}
    for turn in range(plan.rounds):
        first = turn % len(systems)
        for system in (*systems[first:], *systems[:first]):
            if system.name not in found:
                continue
            result = _round_of(system, plan, f"{what}, round {turn + 1}", measure)
            if result is None:
                del found[system.name]
            else:
                found[system.name].append(result)
    return found


def _round_of(system: System, plan: Plan, what: str, measure: Callable[[System], Any]) -> Any:
    """What one round gave, done once more if it failed; None when it failed again. Failures go into the plan."""
    for _ in range(2):
        try:
            with system.round():
                result = measure(system)
        except (Wrong, AssertionError, OSError) as error:
            print(f"  {what}, {system.name}: FAILED: {error}", flush=True)
            plan.failures.append(f"{what}: {system.name}")
        else:
            print(f"  {what}, {system.name}: {_shown(result)}", flush=True)
            return result
    return None


def _shown(result: Any) -> str:
    if isinstance(result, dict):
        return ", ".join(f"{name} {value:,.1f}" for name, value in result.items())
    if isinstance(result, tuple):
        enqueued, drained = result
        return f"{drained:,.0f}/s, enqueued in bulk at {enqueued:,.0f}/s"
    return str(result)


FAILED = "failed"


def drains(systems: Sequence[System], plan: Plan, kind: str = "noop", what: str = "drain") -> Iterator[Table]:
    """All jobs are enqueued, then a worker is started: bulk enqueue and drain."""
    found = by_turns(systems, plan, what, lambda system: drain(system, plan.jobs, kind))
    titles = {
        "noop": f"Drain of {plan.jobs:,} no-op jobs",
        "flaky": f"Drain of {plan.jobs:,} jobs of which 10 % fail once and are retried",
        "payload": f"Drain of {plan.jobs:,} no-op jobs with 10 KB payloads",
    }
    table = Table(
        what, titles[kind], ("drained, jobs/s", "enqueued in bulk, jobs/s", "Penstock drains, times as fast")
    )
    ours = [drained for _, drained in found.get(systems[0].name, [])]
    for system in systems:
        results = found.get(system.name)
        if not results:
            table.add(system.name, [FAILED] * 3)
            continue
        enqueued, drained = zip(*results, strict=True)
        ratio = f"{median(ours) / median(drained):.2f}" if ours else ""
        table.add(system.name, [rate(drained), rate(enqueued), ratio], [median(drained), median(enqueued)])
    yield table


def retries(systems: Sequence[System], plan: Plan) -> Iterator[Table]:
    """One job in ten fails once."""
    return drains(systems, plan.fewer(), "flaky", "retries")


def payloads(systems: Sequence[System], plan: Plan) -> Iterator[Table]:
    """10 KB each."""
    return drains(systems, plan.fewer(), "payload", "payloads")


def enqueue_one_by_one(systems: Sequence[System], plan: Plan) -> Iterator[Table]:
    """Single enqueues, 32 on their way at any time, with no worker running."""

    def measure(system: System) -> dict[str, Any]:
        system.clear()
        found = system.one(plan.one_s, IN_FLIGHT)
        return {name: found[name] for name in ("per_s", "p50_ms", "p95_ms", "p99_ms")}

    found = by_turns(systems, plan, "enqueue", measure)
    table = Table(
        "enqueue",
        f"Enqueue one by one, {IN_FLIGHT} in flight",
        ("jobs/s", "p50, ms", "p95, ms", "p99, ms"),
    )
    for system in systems:
        results = found.get(system.name)
        if not results:
            table.add(system.name, [FAILED] * 4)
            continue
        per_s = [result["per_s"] for result in results]
        times = [median(result[f"p{share}_ms"] for result in results) for share in (50, 95, 99)]
        table.add(system.name, [rate(per_s), *map(millis, times)], [median(per_s), *times])
    yield table
