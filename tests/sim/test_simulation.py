"""Many seeds, each a world of its own. `make sim SEED=42` plays one alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.sim.run import simulate
from tests.sim.weather import FORGET_MS, Weather
from tests.sim.whole import simulate_whole
from tests.sim.worlds import WHOLE_EVERY, play

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("SIM_SEEDS", "1200"))
CHUNK = 25
CHUNKS = 4

FLOOR = {
    "whole worlds": 5,
    "jobs succeeded": 100,
    "jobs dead": 20,
    "jobs cancelled": 8,
    "jobs expired": 8,
    "takeovers": 40,
    "orchestrator crashes": 10,
    "worker crashes": 3,
    "Leased applied": 200,
    "Leased stale": 4,
    "Succeeded stale": 4,
    "LeaseExpired applied": 10,
    "Enqueued misrouted": 5,
    "Forwarded applied": 5,
    "line quarantined": 2,
    "append written_unknown": 4,
    "append late_unknown": 4,
    "reads of own writes": 8,
    "Forgotten applied": 20,
    "CancelRequested applied": 5,
    "RetryRequested applied": 3,
    "Held applied": 1,
    "Unheld applied": 1,
    "keys taken": 5,
    "Edited applied": 1,
    "Deleted applied": 2,
    "Snoozed applied": 3,
}
"""What a chunk of seeds must at least have seen: a run in which nothing is tried proves nothing."""

OPERATED: list[dict[str, int]] = [
    {"forget_ms": FORGET_MS, "snapshots_ms": 700},
    {"upgrade_ms": 1_000, "copy_to": 3},
    {"upgrade_ms": 1_000, "snapshots_ms": 1_000},
    {"forget_ms": FORGET_MS, "copy_to": 1},
]
STORM = Weather(
    storm_ms=10_000, partitions=2, orchestrators=2, workers=2, projections=2, jobs=20, append_fault=0.1, hint_late=0.1,
    process_trouble_ms=700, odd_lines=0.4, verbs=0.4, crash_in_writes=0.005,
)  # fmt: skip
OPERATED_FLOOR = {
    "Forgotten applied": 60,
    "snapshots taken": 30,
    "offsets trimmed": 30,
    "restored from a snapshot": 3,
    "programs upgraded": 20,
    "RulesActivated applied": 12,
    "copies": 6,
    "copier crashes": 1,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_seeds(chunk: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        played = play(seed)
        assert not played.found, played.found
        total += played.stats
    missing = {name: total[name] for name, least in FLOOR.items() if total[name] < least}
    assert not missing


def test_no_more_of_a_limited_type_run_at_once() -> None:
    """One of them does not stop when it is told to."""
    played = play(30_080)
    assert not played.found, played.found
    assert played.stats["limited handlers"] > 3
    assert played.stats["handler deaf"]


def run_of_the_simulator(*arguments: str) -> str:
    """What `python -m tests.sim` prints, in a process of its own, without whatever measures this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2_400)
def test_many_seeds_on_all_cores() -> None:
    """SIM_SEEDS says how many."""
    last = run_of_the_simulator("--from", "10000", "--seeds", str(SEEDS)).splitlines()[-1]
    assert re.fullmatch(rf"{SEEDS} seeds, \d+ steps, 0 violations", last)


@pytest.mark.parametrize("seed", [7, 2 * WHOLE_EVERY], ids=["machines", "whole processes"])
def test_a_seed_replays_to_the_same_trace(seed: int) -> None:
    assert play(seed).trace_digest == play(seed).trace_digest
    assert play(seed).trace_digest != play(seed + WHOLE_EVERY).trace_digest


def test_a_seed_replays_to_the_same_trace_in_another_process() -> None:
    seed = str(5 * WHOLE_EVERY)
    traces = {run_of_the_simulator("--seed", seed).splitlines()[0] for _ in range(2)}
    assert len(traces) == 1
    assert traces.pop().startswith("trace ")


def test_what_operators_do_in_a_storm() -> None:
    """Jobs are forgotten, the log is trimmed behind snapshots, programs upgraded one by one, and the log is copied."""
    total: Counter[str] = Counter()
    for seed, change in enumerate(OPERATED * 3):
        total += simulate_whole(2_000 + seed, msgspec.structs.replace(STORM, **change))
    missing = {name: total[name] for name, least in OPERATED_FLOOR.items() if total[name] < least}
    assert not missing, total


def test_many_jobs_are_changed_at_once_under_fire() -> None:
    """Operations come to their end whoever dies, and pass over no job."""
    total: Counter[str] = Counter()
    for seed in range(3_000, 3_006):
        weather = msgspec.structs.replace(STORM, http_workers=1, apis=2, operations_ms=1_500)
        total += simulate_whole(seed, weather)
    assert total["operations done"] >= 20
    assert total["jobs changed by operations"] >= 40


def test_fair_weather_needs_no_second_try() -> None:
    """Without faults nothing is refused, nothing expires, and everybody's first lease is the only one."""
    total: Counter[str] = Counter()
    for seed in range(1_000, 1_010):
        total += simulate(seed, Weather(jobs=40, orchestrators=2, workers=3, partitions=4))
    refused = total["Enqueued conflict"]
    assert total["Enqueued applied"] + refused == 400
    # A job that expires as it is leased: both are proposed in one step, and the first is the one that holds.
    assert total["Leased stale"] <= total["jobs expired"]
    assert total["LeaseExpired stale"] == 0
    assert total["leases gone"] == total["handler hang"]
    assert total["Leased applied"] >= 400 - refused - total["jobs replaced"] - total["jobs expired"]
