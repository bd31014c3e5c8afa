"""Parts in which Penstock is measured alone: what it costs to be large, to restart, and to lose a leader."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.failover import failover
from benchmarks.ours import READY_TIMEOUT_S, Penstock
from benchmarks.report import Table, millis, rate
from benchmarks.served import HERE
from benchmarks.side_by_side import Plan
from benchmarks.system import drain
from tests.acceptance.processes import PENSTOCK, ROOT, Role, wait_for
from tests.kafka_broker import Broker

SMALL_JOBS = 10_000
REPLAY_JOBS = 100_000
"""Three lines each: `Enqueued`, `Leased`, `Succeeded`."""
READS = 300
"""Of each kind."""
SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("4 partitions, a node, a worker", {}),
    ("16 partitions, a node, a worker", {"partitions": 16}),
    ("32 partitions, a node, a worker", {"partitions": 32}),
    ("4 partitions, 2 nodes that both have all of them, a worker", {"nodes": 2}),
    ("4 partitions, 2 nodes that have half of them each, a worker", {"nodes": 2, "shares": 2}),
    ("4 partitions, a node, 2 workers", {"workers": 2}),
    ("4 partitions, 2 nodes that have half of them each, 2 workers", {"nodes": 2, "shares": 2, "workers": 2}),
    ("4 partitions, orchestrator and projection apart, a worker", {"apart": True}),
)


def scale(broker: Broker, plan: Plan) -> Iterator[Table]:
    """By number of partitions and processes."""
    table = Table(
        "scale",
        f"Penstock by partitions and processes: drain of {plan.jobs:,} no-op jobs",
        ("drained, jobs/s", "enqueued in bulk, jobs/s"),
        "More processes than the machine has cores share them; what they gain needs more machines.",
    )
    for name, settings in SHAPES:
        shape = Penstock(broker, **settings)
        with contextlib.closing(shape), shape.round():
            found = [drain(shape, plan.jobs) for _ in range(plan.fewer().rounds)]
        enqueued, drained = zip(*found, strict=True)
        table.add(name, [rate(drained), rate(enqueued)], [median(drained), median(enqueued)])
        print(f"  {name}: {rate(drained)}/s", flush=True)
    yield table


def replay(broker: Broker, plan: Plan) -> Iterator[Table]:
    """Fold a log from nothing with the command that does so."""
    ours = Penstock(broker)
    with contextlib.closing(ours):
        jobs = min(REPLAY_JOBS, 5 * plan.jobs)
        empty_s = _rebuild(ours)[0] if _made(ours) else 0.0
        with ours.round():
            drain(ours, jobs)
        took = [_rebuild(ours) for _ in range(plan.rounds)]
    lines = took[0][1]
    seconds = median(taken for taken, _ in took)
    table = Table(
        "replay", "Replay of a log into an empty read model, one process", ("lines", "s", "lines/s")
    )
    table.note = f"Start and end of the process included: {empty_s:.1f} s with an empty log."
    table.add("penstock projection rebuild", [f"{lines:,}", f"{seconds:.1f}", f"{lines / seconds:,.0f}"])
    if (folding_s := seconds - empty_s) > 0:
        cells = [f"{lines:,}", f"{folding_s:.1f}", f"{lines / folding_s:,.0f}"]
        table.add("without start and end", cells, [lines, folding_s, lines / folding_s])
    yield table


def _made(ours: Penstock) -> bool:
    """Make the namespace."""
    with ours.round():
        return True


def _rebuild(ours: Penstock) -> tuple[float, int]:
    """Seconds, and lines that were folded."""
    folder = ours.stack.folder / "rebuilt"
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, **ours.stack[ours.leaders[0]].environment}
    command = [*PENSTOCK, "projection", "rebuild", "--into", str(folder), "--output", "json"]
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ours.stack.folder
    )
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr[-2_000:]
    shutil.rmtree(folder, ignore_errors=True)
    parts = json.loads(done.stdout)["partitions"]
    return seconds, sum(part["accepted"] + part["refused"] + part["quarantined"] for part in parts)


def million(broker: Broker, plan: Plan) -> Iterator[Table]:
    """A million jobs: drained, remembered, read, restarted with; and a leader lost with as many waiting."""
    ours = Penstock(broker)
    memory = Table("memory", "Memory by role, MiB resident", tuple(ours.stack.roles))
    with contextlib.closing(ours), ours.round():
        time.sleep(2)
        _add_memory(memory, ours, "idle, nothing stored")
        small = [drain(ours, SMALL_JOBS)[1] for _ in range(max(3, plan.rounds))]
        yield from _backlog(ours, plan, small, memory)
        yield memory
        yield from reads_of(ours, plan.large)
        yield from _restart(ours)
    yield from failover(broker, plan)


def _backlog(ours: Penstock, plan: Plan, small: list[float], memory: Table) -> Iterator[Table]:
    jobs = plan.large
    ours.clear()
    enqueued = jobs / ours.bulk(jobs, "noop")
    _add_memory(memory, ours, f"{jobs:,} jobs waiting")
    with ours.working():
        seconds = ours.wait_done(jobs, jobs)
        _add_memory(memory, ours, f"{jobs:,} jobs done")
    large = jobs / seconds
    print(f"  backlog: {large:,.0f}/s of {jobs:,}, {rate(small)}/s of {SMALL_JOBS:,}", flush=True)
    table = Table("backlog", "Drain by size of the backlog", ("drained, jobs/s", "enqueued in bulk, jobs/s"))
    table.add(f"{SMALL_JOBS:,} jobs", [rate(small), ""], [median(small)])
    table.add(f"{jobs:,} jobs", [rate([large]), rate([enqueued])], [large])
    yield table


def _add_memory(table: Table, ours: Penstock, name: str) -> None:
    found = [_resident_mib(role) for role in ours.stack.roles.values()]
    table.add(name, [f"{mib:,.0f}" if mib else "" for mib in found], found)


def _resident_mib(role: Role) -> float:
    process = role._process  # the role has no name for it
    if process is None or process.poll() is not None:
        return 0.0
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def reads(broker: Broker, plan: Plan) -> Iterator[Table]:
    """Reads alone, on jobs that wait: for sizes that would take long to be worked off."""
    ours = Penstock(broker)
    with contextlib.closing(ours), ours.round():
        began = time.monotonic()
        ours.bulk(plan.large, "noop")
        print(f"  {plan.large:,} jobs in after {time.monotonic() - began:.0f} s", flush=True)
        yield from reads_of(ours, plan.large)


def reads_of(ours: Penstock, jobs: int) -> Iterator[Table]:
    """Over HTTP on one connection, one request after the other; and in the read model itself."""
    paths: dict[str, Callable[[], str]] = {}
    with httpx.Client(base_url=ours.server, timeout=60) as client:
        ids = _ids(client)
        paths["one job"] = lambda: f"/api/v1/jobs/{random.choice(ids)}"
        paths["its history"] = lambda: f"/api/v1/jobs/{random.choice(ids)}/history"
        paths["list of 50, newest"] = lambda: "/api/v1/jobs?limit=50"
        paths["list of 50, by type and state"] = lambda: "/api/v1/jobs?limit=50&type=noop&state=" + state
        paths["counts"] = lambda: "/api/v1/counts"
        state = client.get(f"/api/v1/jobs/{ids[0]}").json()["state"]
        over_http = {name: _timed(client, path) for name, path in paths.items()}
    direct = _direct(ours, ids, state)
    columns = ("HTTP p50, ms", "HTTP p99, ms", "direct p50, ms", "direct p99, ms")
    table = Table("reads", f"Reads with {jobs:,} jobs in the read model", columns)
    for name, times in over_http.items():
        figures = [*p50_p99(times), *p50_p99(direct[name])]
        table.add(name, map(millis, figures), figures)
    yield table


def _ids(client: httpx.Client) -> list[str]:
    """Some hundreds, from places all over the list: pages near its top would be warm."""
    found: list[str] = []
    cursor = ""
    for _ in range(20):
        page = client.get(f"/api/v1/jobs?limit=500{cursor}").raise_for_status().json()
        found += [item["id"] for item in page["items"][::10]]
        if not page.get("next_cursor"):
            break
        cursor = f"&cursor={page['next_cursor']}"
    return found


def _timed(client: httpx.Client, path: Callable[[], str]) -> list[float]:
    times: list[float] = []
    for _ in range(READS):
        url = path()
        began = time.perf_counter()
        client.get(url).raise_for_status()
        times.append((time.perf_counter() - began) * 1_000)
    return times


def p50_p99(times: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(times)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def _direct(ours: Penstock, ids: list[str], state: str) -> dict[str, list[float]]:
    """In a process of its own on the node's folder, while the node is stopped."""
    node = ours.stack[ours.leaders[0]]
    node.stop()
    asked = ours.stack.folder / "asked.json"
    asked.write_text(json.dumps({"ids": ids, "state": state, "reads": READS}), encoding="utf-8")
    environment = {**os.environ, **node.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "direct_reads.py"), str(asked)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ours.stack.folder
    )
    node.start().wait_ready(READY_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout.splitlines()[-1])


def _restart(ours: Penstock) -> Iterator[Table]:
    """Time from start until all is folded and answered for, for the role that keeps a folder."""
    columns = (
        "folder kept",
        "folder lost, from a snapshot",
        "folder lost, from the log",
        "taking the snapshot",
    )
    table = Table(
        "restart", f"Restart of a node with {ours.known():,} jobs, s until it has caught up", columns
    )
    node = ours.stack[ours.leaders[0]]
    node.stop()
    found = [_caught_up_after(ours, node)]
    node.stop()
    snapshots = str(ours.stack.folder / "snapshots")
    taken_s = _snapshot(node, snapshots)
    for place in (snapshots, ""):
        shutil.rmtree(node.environment["PENSTOCK_DATA"])
        node.environment["PENSTOCK_SNAPSHOTS"] = place
        found.append(_caught_up_after(ours, node))
        if place:
            node.stop()
    found.append(taken_s)
    table.add("node", [f"{seconds:.1f}" for seconds in found], found)
    print(f"  restart: {', '.join(f'{seconds:.1f} s' for seconds in found)}", flush=True)
    yield table


def _snapshot(role: Role, place: str) -> float:
    """Take snapshots of a stopped role's folder; seconds that it took, the command's start included."""
    environment = {**os.environ, **role.environment, "PENSTOCK_SNAPSHOTS": place}
    began = time.monotonic()
    command = [*PENSTOCK, "snapshot", "create"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return time.monotonic() - began


def _caught_up_after(ours: Penstock, role: Role) -> float:
    """Ready it is sooner: as soon as it moves."""
    began = time.monotonic()
    role.start().wait_ready(timeout_s=900)
    wait_for("all is folded", ours.caught_up, 900, 0.02)
    return time.monotonic() - began
