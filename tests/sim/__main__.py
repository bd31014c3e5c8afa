"""`python -m tests.sim [--seeds N] [--from SEED] [--seed SEED]`: many runs, or one, with a summary at the end."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.sim.worlds import Played, play, play_all

LEAST = {"steps": 2_000, "jobs succeeded": 3, "Leased applied": 5, "takeovers": 1}
"""A seed, in the mean: worlds in which hardly anything happens, or all fails, prove nothing."""

ENOUGH_SEEDS = 20
"""For a mean."""


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.sim")
    arguments.add_argument("--seeds", type=int, default=200, help="how many")
    arguments.add_argument("--from", dest="start", type=int, default=0, help="the first one")
    arguments.add_argument("--seed", type=int, help="only this one")
    arguments.add_argument("--processes", type=int, default=0, help="how many at once; 0: one a core")
    arguments.add_argument("--minutes", type=float, default=0.0, help="begin no further seed after so long")
    arguments.add_argument("--stats", action="store_true", help="what happened, by name")
    wanted = arguments.parse_args()
    total: Counter[str] = Counter()
    violations = count = 0
    for played in _played(wanted):
        count += 1
        total += played.stats
        if played.found:
            violations += 1
            print(f"{played.found}\nreplay: make sim SEED={played.seed}\n", flush=True)
    if wanted.stats or wanted.seed is not None:
        for name, many in sorted(total.items()):
            print(f"{many:>10} {name}")
    lazy = [name for name, least in LEAST.items() if count >= ENOUGH_SEEDS and total[name] < least * count]
    for name in lazy:
        print(f"too little happened: {total[name]} {name} in {count} seeds")
    print(f"{count} seeds, {total['steps']} steps, {violations} violations")
    return 1 if violations or lazy else 0


def _played(wanted: argparse.Namespace) -> Iterator[Played]:
    if wanted.seed is not None:
        only = play(wanted.seed)
        print(f"trace {only.trace_digest}")
        yield only
        return
    ends_s = time.monotonic() + 60 * wanted.minutes if wanted.minutes else float("inf")
    seeds = iter(range(wanted.start, wanted.start + wanted.seeds))
    in_time = (seed for seed in seeds if time.monotonic() < ends_s)
    yield from play_all(in_time, wanted.processes)


if __name__ == "__main__":
    sys.exit(main())
