"""`make bench`: Penstock side by side with other job queues, and measured alone.

`QUICK=1` drains and enqueues against River and Dramatiq only, in a few minutes. `ONLY=drain,latency` chooses parts,
`PEERS=River,asynq` whom to compare with (`none`: nobody), `JOBS=`, `LARGE=` and `ROUNDS=` how much. `WRITE=1` writes
what was measured into docs/performance.md, with a plot.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

from benchmarks import alone, costs, failover, latency, machine, publishing, searching, side_by_side
from benchmarks.installing import NotInstalled, install
from benchmarks.interpreter import use_fastest
from benchmarks.ours import Penstock, PenstockDev
from benchmarks.peer import PEERS, Peer
from benchmarks.report import Table
from benchmarks.side_by_side import Plan
from benchmarks.system import System, Wrong, drain
from tests.kafka_broker import Broker

QUICK = os.environ.get("QUICK", "") not in ("", "0")
WRITE = os.environ.get("WRITE", "") not in ("", "0")
QUICK_PEERS = ("River", "Dramatiq")
WARM_UP_JOBS = 5_000
BUSY = 0.5

COMPARED: dict[str, Callable[[Sequence[System], Plan], Iterator[Table]]] = {
    "drain": side_by_side.drains,
    "enqueue": side_by_side.enqueue_one_by_one,
    "latency": latency.latency,
    "retries": side_by_side.retries,
    "payloads": side_by_side.payloads,
}
ALONE: dict[str, Callable[[Broker, Plan], Iterator[Table]]] = {
    "scale": alone.scale,
    "costs": costs.costs,
    "replay": alone.replay,
    "million": alone.million,
    "failover": failover.failover,
    "reads": alone.reads,
    "search": searching.search,
}
PARTS = [*COMPARED, *ALONE]
QUICK_PARTS = ["drain", "enqueue"]
USUAL_PARTS = [*COMPARED, "scale", "costs", "replay", "million", "search"]
"""The rest are parts of `million`, for sizes of their own."""


def chosen(variable: str, known: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    """Names from the environment, in the order of those known. SystemExit for one that isn't."""
    names = {name.strip().casefold() for name in os.environ.get(variable, "").split(",") if name.strip()}
    if unknown := names - {name.casefold() for name in known} - {"none"}:
        raise SystemExit(f"{variable}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if name.casefold() in names] if names else list(otherwise)


def present_peers(names: Sequence[str]) -> list[type[Peer]]:
    """Those that can be installed; the others are named with what is missing."""
    found: list[type[Peer]] = []
    for name in names:
        try:
            for step in PEERS[name].needs:
                install(step)
            found.append(PEERS[name])
        except NotInstalled as error:
            print(f"{name} is left out: {error}", flush=True)
    return found


def measure(parts: Sequence[str], peers: Sequence[type[Peer]], plan: Plan) -> Iterator[Table]:
    """Start all servers, warm everything up, and do the parts."""
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(heap_mb=1_024))
        compared = [part for part in parts if part in COMPARED]
        if compared:
            with ExitStack() as peers_stack:
                systems = _systems(broker, peers, peers_stack)
                _warm_up(systems, min(WARM_UP_JOBS, plan.jobs), plan)
                for part in compared:
                    yield from COMPARED[part](systems, plan)
        for part in parts:
            if part not in ALONE:
                continue
            try:
                yield from ALONE[part](broker, plan)
            except (Wrong, AssertionError, OSError) as error:
                print(f"  {part}: FAILED: {_with_causes(error)}", flush=True)
                plan.failures.append(part)


def _with_causes(error: BaseException) -> str:
    """What failed, and what had failed before it: what is wrong while all is put away hides what was wrong first."""
    told = [str(error) or type(error).__name__]
    while (error_before := error.__context__) is not None:
        error = error_before
        told.append(str(error) or type(error).__name__)
    return "\n  before that: ".join(told)


def _systems(broker: Broker, peers: Sequence[type[Peer]], stack: ExitStack) -> list[System]:
    servers = {
        kind: stack.enter_context(kind()) for kind in dict.fromkeys(peer.server_type for peer in peers)
    }
    systems: list[System] = [stack.enter_context(closing(Penstock(broker, nodes=2, shares=2)))]
    if not QUICK:
        systems.append(stack.enter_context(closing(PenstockDev())))
    return systems + [stack.enter_context(closing(peer(servers[peer.server_type]))) for peer in peers]


def _warm_up(systems: list[System], jobs: int, plan: Plan) -> None:
    """Once through, uncounted: a broker that has just started still compiles itself."""
    for system in list(systems):
        try:
            with system.round():
                drain(system, jobs)
                print(f"  {system.name} {system.version()}", flush=True)
                plan.versions[system.name] = system.version()
        except (Wrong, AssertionError, OSError) as error:
            print(f"  {system.name}: FAILED to warm up: {error}", flush=True)
            plan.failures.append(f"warm-up: {system.name}")


def main() -> int:
    """Measure, print tables; 1 when any row failed."""
    use_fastest()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    parts = chosen("ONLY", PARTS, QUICK_PARTS if QUICK else USUAL_PARTS)
    names = chosen("PEERS", list(PEERS), QUICK_PEERS if QUICK else list(PEERS))
    peers = present_peers(names) if set(parts) & set(COMPARED) else []
    plan = Plan(
        jobs=int(os.environ.get("JOBS", "20000")),
        rounds=int(os.environ.get("ROUNDS", "3")),
        one_s=3 if QUICK else 5,
        large=int(os.environ.get("LARGE", "1000000")),
    )
    print(machine.description(), flush=True)
    if machine.busy_share() > BUSY:
        print(
            f"The machine is busy (load {os.getloadavg()[0]:.1f}): these figures aren't to be trusted.",
            flush=True,
        )
    tables: list[Table] = []
    for table in measure(parts, peers, plan):
        tables.append(table)
        if WRITE:
            publishing.write([table], plan.versions)
    print(f"\nTook {time.monotonic() - began:.0f} s.\n")
    for table in tables:
        print(table.markdown(), flush=True)
    if WRITE:
        install("python")
        publishing.plot(tables)
    if plan.failures:
        print("FAILED: " + ", ".join(plan.failures), flush=True)
    _print_ratios(tables)
    return 1 if plan.failures else 0


def _print_ratios(tables: Sequence[Table]) -> None:
    """The last line, for programs that read it."""
    table = next((table for table in tables if table.part == "drain"), None)
    if table is None:
        return
    drained = {name: table.figures.get((name, table.columns[0])) for name in ("Penstock", *QUICK_PEERS)}
    ours = drained["Penstock"]
    ratios = (
        f"{name.lower()}={ours / peer:.2f}" if ours and (peer := drained[name]) else f"{name.lower()}=?"
        for name in QUICK_PEERS
    )
    print("ratio drain " + " ".join(ratios), flush=True)


if __name__ == "__main__":
    sys.exit(main())
